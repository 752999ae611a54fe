"""gaman.serve() behind an nginx with TLS, HTTP/1.1 and HTTP/2."""

from __future__ import annotations

import datetime
import ipaddress
import re
import ssl
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.servers import Nginx
from tests.serving import Program, running_script

ROOT = Path(__file__).parent.parent
CLIENT = "127.0.0.2"
SITE = """
import gaman
from gaman.session import session

async def where(ctx):
    return {"ip": ctx.ip, "url": ctx.url, "host": ctx.host}

async def login(ctx):
    await ctx.session.set("user", "Angga")
    return "hello"

async def profile(ctx):
    return {"user": await ctx.session.get("user")}

# The client has another loopback address, which isn't trusted.
gaman.serve(
    {"/where": where, "/login": login, "/profile": profile},
    integrations=[session("a secret of the tests, long enough")],
    trusted_proxies=TRUSTED,
    port=0,
)
"""
# The lines from the README.
X_FORWARDED = re.findall(r"^```nginx\n(.*?)^```$", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)[0]
FORWARDED = """
    proxy_set_header Host inner;
    proxy_set_header X-Forwarded-For "";
    proxy_set_header X-Forwarded-Proto "";
    proxy_set_header X-Forwarded-Host "";
    proxy_set_header Forwarded '$http_forwarded, for="$remote_addr:$remote_port";proto=$scheme;host="$http_host"';
"""
each_protocol = pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
each_field = pytest.mark.parametrize("fields", [X_FORWARDED, FORWARDED], ids=["X-Forwarded", "Forwarded"])


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A self-signed certificate for shop.example, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "shop.example")])
    now = datetime.datetime.now(datetime.UTC)
    names = [x509.DNSName("shop.example"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    signed = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now, now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path_factory.mktemp("tls") / "certificate.pem"
    pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    file.write_bytes(signed.public_bytes(pem[0]) + key.private_bytes(*pem))
    return file


@contextmanager
def served(
    folder: Path, certificate: Path, http2: bool, fields: str, trusted: str = "127.0.0.1"
) -> Generator[tuple[Program, httpx.Client]]:
    """Serve SITE behind nginx, and yield its program and a client of https://shop.example."""
    with running_script(SITE.replace("TRUSTED", repr(trusted)), folder) as program:
        http = f"""
server {{
    listen 127.0.0.1:PORT ssl http2;
    ssl_certificate {certificate};
    ssl_certificate_key {certificate};
    location / {{ proxy_pass {program.url}; {fields} }}
}}
"""
        with Nginx(http) as nginx:
            trust = ssl.create_default_context(cafile=str(certificate))
            transport = httpx.HTTPTransport(verify=trust, http2=http2, local_address=CLIENT)
            url, host = f"https://127.0.0.1:{nginx.port}", {"Host": f"shop.example:{nginx.port}"}
            with httpx.Client(transport=transport, base_url=url, headers=host) as client:
                yield program, client


@each_protocol
@each_field
def test_a_client_cannot_forge_its_address_or_url(tmp_path: Path, certificate: Path, http2: bool, fields: str) -> None:
    with served(tmp_path, certificate, http2, fields) as (_, client):
        host = client.headers["host"]
        expected = {"ip": CLIENT, "url": f"https://{host}/where?q=1", "host": host}
        response = client.get("/where?q=1")
        assert (response.http_version, response.json()) == ("HTTP/2" if http2 else "HTTP/1.1", expected)
        for claims in (
            {"X-Forwarded-For": "1.1.1.1, 127.0.0.1", "X-Forwarded-Proto": "http", "X-Forwarded-Host": "evil.example"},
            {"Forwarded": 'for=1.1.1.1;proto=http;host=evil.example, for="'},
        ):
            assert client.get("/where?q=1", headers=claims).json() == expected


@each_protocol
@each_field
def test_the_secure_cookie_is_kept_without_a_warning(tmp_path: Path, certificate: Path, http2: bool, fields: str) -> None:
    with served(tmp_path, certificate, http2, fields) as (program, client):
        [cookie] = client.get("/login").headers.get_list("set-cookie")
        assert cookie.startswith("__Host-Http-gaman=")
        assert "; Secure" in cookie
        assert client.get("/profile").json() == {"user": "Angga"}
        assert program.stop() == 0
        assert program.stderr == ""


def test_an_untrusted_proxy_counts_as_the_client_and_the_cookie_causes_a_warning(tmp_path: Path, certificate: Path) -> None:
    with served(tmp_path, certificate, True, X_FORWARDED, trusted="10.0.0.1") as (program, client):
        host = client.headers["host"]
        assert client.get("/where").json() == {"ip": "127.0.0.1", "url": f"http://{host}/where", "host": host}
        assert client.get("/login").status_code == 200
        assert "was requested over plain HTTP" in program.stderr
