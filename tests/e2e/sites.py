"""Sites for the browser: a certificate that only it trusts, and visited_site.py in a process of its own."""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from playwright.sync_api import Frame, Page

from tests.serving import Program, running


class Certificate(NamedTuple):
    """A file with a certificate and its key, and the hash that makes Chromium trust only that key."""

    path: Path
    trust: str


class Site(NamedTuple):
    """A site that responds under any name; to a browser a.test and its subdomains are one site, and b.test is another."""

    program: Program
    scheme: str

    def url(self, path: str = "/", host: str = "a.test") -> str:
        return f"{self.scheme}://{host}:{self.program.port}{path}"

    def visit(self, page: Page | Frame, path: str = "/", host: str = "a.test") -> str:
        """Go to *path*, and return the text of the page."""
        page.goto(self.url(path, host))
        return page.inner_text("body")


class Serve(Protocol):
    """Serve visited_site.py with *options* of session() until the test ends, by default over TLS."""

    def __call__(self, *, tls: bool = True, **options: Any) -> Site: ...


def make_certificate(folder: Path) -> Certificate:
    """Write a certificate for the hosts below .test into *folder*."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "tests of gaman")])
    now, day = datetime.datetime.now(datetime.UTC), datetime.timedelta(days=1)
    hosts = x509.SubjectAlternativeName([x509.DNSName("*.test"), x509.DNSName("*.a.test")])
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
    signed = builder.add_extension(hosts, critical=False).sign(key, hashes.SHA256())
    path = folder / "certificate.pem"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()) + signed.public_bytes(Encoding.PEM))
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Certificate(path, base64.b64encode(hashlib.sha256(public).digest()).decode())


@contextmanager
def site(folder: Path, certificate: Certificate | None, options: dict[str, Any]) -> Generator[Site]:
    """Serve visited_site.py until the block ends; its stores are in *folder*."""
    env = {"SESSION": json.dumps(options), "CERTIFICATE": "" if certificate is None else str(certificate.path)}
    with running(str(Path(__file__).with_name("visited_site.py")), cwd=folder, env=env) as program:
        yield Site(program, "http" if certificate is None else "https")
