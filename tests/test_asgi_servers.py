"""An App under the common ASGI servers, each started by its command."""

from __future__ import annotations

import json
import signal
import socket
import sys
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.servers import free_port
from tests.serving import Connection, get, request, running, running_script, until

APP = """
import gaman
from gaman.session import session

async def login(ctx):
    await ctx.session.set("user", "Angga")
    return {"ip": ctx.ip, "url": ctx.url}

async def profile(ctx):
    return {"user": await ctx.session.get("user")}

async def logout(ctx):
    await ctx.session.clear()

async def fields(ctx):
    def show():
        return [name.decode() for name, _ in ctx.scope["headers"]]
    return {"before": show(), "size": len(await ctx.body()), "after": show(), "ip": ctx.ip}

app = gaman.App(
    {"/login": {"POST": login}, "/profile": profile, "/logout": [logout, profile], "/fields": fields},
    integrations=[session("a secret of the tests, long enough", {"type": "sql"}, secure=False)],
)
"""
# The commands from the README.
SERVERS = {
    "uvicorn": ["main:app", "--no-proxy-headers"],
    "granian": ["--interface", "asgi", "main:app"],
    "hypercorn": ["main:app"],
}
each_server = pytest.mark.parametrize("name", SERVERS)
OURS = {"gaman": ["serve", "main:app"]}
each_server_and_ours = pytest.mark.parametrize("name", [*SERVERS, *OURS])
GUARDED = """
import gaman
from gaman import Context, HTTPError

seen = []

def guard(ctx):
    seen.append(ctx.path)
    if ctx.path == "/admin" or ctx.path.startswith("/admin/"):
        raise HTTPError(403)

async def show(ctx):
    return {"path": ctx.path, "url": ctx.url, "tags": ctx.query.getall("tag")}

async def show_seen(ctx):
    return seen

app = gaman.App(
    {"/admin": show, "/tell": show, "/seen": show_seen},
    integrations=[gaman.define_integration(name="guard", on_request=guard)],
)
"""


def program_of(name: str) -> str:
    return str(Path(sys.executable).with_name(name))


@contextmanager
def served(
    name: str,
    folder: Path,
    *where: str,
    uds: str | None = None,
    source: str = APP,
    options: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
) -> Generator[httpx.Client]:
    """Run the command *name*, at *where* or on a free port, with the App of *source*; yield a client that keeps cookies."""
    (folder / "main.py").write_text(source)
    port = free_port()
    if not where:
        where = ("--bind", f"127.0.0.1:{port}") if name == "hypercorn" else ("--port", str(port))
    transport = httpx.HTTPTransport(uds=uds)
    with (
        running(program_of(name), *(SERVERS | OURS)[name], *where, *options, cwd=folder, env=env) as program,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=transport) as client,
    ):

        def listens() -> bool:
            assert not program.has_ended(), program.stdout + program.stderr
            with socket.socket(socket.AF_INET if uds is None else socket.AF_UNIX) as probe:
                return probe.connect_ex(("127.0.0.1", port) if uds is None else uds) == 0

        until(listens, f"{name} to listen")
        yield client
        # uvicorn ends by the signal itself, after its shutdown.
        assert program.stop() in (0, -signal.SIGTERM), program.stderr
        assert "Traceback" not in program.stderr


@each_server
def test_a_session_lives_from_login_to_logout(name: str, tmp_path: Path) -> None:
    with served(name, tmp_path) as client:
        assert client.get("/profile").json() == {"user": None}
        assert client.post("/login").status_code == 200
        assert client.get("/profile").json() == {"user": "Angga"}
        assert client.get("/logout").json() == {"user": None}
        assert client.get("/profile").json() == {"user": None}
        assert client.get("/login").status_code == 405


@each_server
def test_a_trusted_proxys_fields_are_read_once(name: str, tmp_path: Path) -> None:
    with served(name, tmp_path) as client:
        fields = {"X-Forwarded-For": "1.1.1.1, 203.0.113.5", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "shop.example"}
        assert client.post("/login", headers=fields).json() == {"ip": "203.0.113.5", "url": "https://shop.example/login"}
        assert client.post("/login").json()["ip"] == "127.0.0.1"


@each_server
def test_a_proxy_on_a_unix_socket_is_trusted(name: str, tmp_path: Path) -> None:
    uds = str(tmp_path / "socket")
    where = ("--bind", f"unix:{uds}") if name == "hypercorn" else ("--uds", uds)
    with served(name, tmp_path, *where, uds=uds) as client:
        assert client.post("/login", headers={"X-Forwarded-For": "203.0.113.5"}).json()["ip"] == "203.0.113.5"
        assert client.post("/login").json()["ip"] is None


@each_server
@pytest.mark.parametrize("cut", [0, 1, 2])
def test_trailers_are_not_header_fields(name: str, cut: int, tmp_path: Path) -> None:
    head = request("/fields", "Transfer-Encoding: chunked", "X-Forwarded-For: 203.0.113.5", method="POST")
    body, trailers = b"5\r\nhello\r\n", b"0\r\nX-Forwarded-For: 192.0.2.66\r\nCookie: a=b\r\nX: y\r\n\r\n"
    with served(name, tmp_path) as client, Connection(client.base_url.port or 0) as connection:
        for packet in ([head + body + trailers], [head, body + trailers], [head + body, trailers])[cut]:
            connection.send(packet)
            time.sleep(0.05)
        seen = json.loads(connection.read("POST").body)
    assert seen["before"] == seen["after"] == ["host", "transfer-encoding", "x-forwarded-for"]
    assert (seen["size"], seen["ip"]) == (5, "203.0.113.5")


@each_server_and_ours
def test_a_request_without_a_proper_host_or_path_is_refused_before_any_hook(name: str, tmp_path: Path) -> None:
    with served(name, tmp_path, source=GUARDED) as client:
        port = client.base_url.port or 0
        for octets, status in [
            (b"GET /tell HTTP/1.1\r\nHost: a\r\n\r\n", 200),
            (b"GET /tell HTTP/1.1\r\n\r\n", 400),
            (b"GET /tell HTTP/1.0\r\n\r\n", 200),
            (b"GET /tell HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n", 400),
            (b"GET /tell HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
            *(
                (b"GET /tell HTTP/1.1\r\nHost:%s\r\n\r\n" % host, 400)
                for host in (b"", b" a b", b" a,b", b" u@a", b" a/b", b" [::1")
            ),
            (b"GET @evil.example/x HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"GET tell HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"GET ?tell HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"GET * HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"GET /%FF HTTP/1.1\r\nHost: a\r\n\r\n", 400),
            (b"GET http://u@a/tell HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
            (b"OPTIONS * HTTP/1.1\r\nHost: a\r\n\r\n", 204),
            (b"OPTIONS * HTTP/1.1\r\n\r\n", 400),
        ]:
            with Connection(port) as connection:
                assert connection.fetch(octets).status == status, octets
        assert client.get("/seen").json() == ["/tell", "/tell", "/seen"]


def test_the_host_of_an_absolute_target_replaces_the_field_if_the_server_passes_it(tmp_path: Path) -> None:
    for name, options in [("uvicorn", ["--http", "h11"]), ("hypercorn", [])]:
        with served(name, tmp_path, source=GUARDED, options=options) as client, Connection(client.base_url.port or 0) as connection:
            response = connection.fetch(b"GET http://b.example/tell HTTP/1.1\r\nHost: a\r\n\r\n")
            assert json.loads(response.body)["url"] == "http://b.example/tell"


@each_server_and_ours
def test_hooks_and_routes_agree_on_every_spelling_of_a_path(name: str, tmp_path: Path) -> None:
    with served(name, tmp_path, source=GUARDED) as client, Connection(client.base_url.port or 0) as connection:
        for target in ["/admin", "//admin", "///admin//", "/%61dmin", "//%61dmin/", "/admin/"]:
            assert connection.fetch(request(target)).status == 403, target
        for target in ["//tell?tag=1&tag=2", "/%74ell?tag=1&tag=2"]:
            expected = {"path": "/tell", "url": f"http://test{target}", "tags": ["1", "2"]}
            assert json.loads(connection.fetch(request(target)).body) == expected
        assert json.loads(connection.fetch(request("/tell")).body)["tags"] == []
        assert connection.fetch(request("/admin%2Fx")).status == 404


@pytest.mark.parametrize(
    ("name", "option"), [("uvicorn", "--root-path"), ("hypercorn", "--root-path"), ("granian", "--url-path-prefix")]
)
def test_a_prefix_of_the_server_is_removed_in_every_spelling(name: str, option: str, tmp_path: Path) -> None:
    with (
        served(name, tmp_path, source=GUARDED, options=[option, "/app"]) as client,
        Connection(client.base_url.port or 0) as connection,
    ):
        # uvicorn adds the prefix to the path, for a proxy that has removed it.
        prefixes = [""] if name == "uvicorn" else ["/app", "//app", "/%61pp", "/app/"]
        for prefix in prefixes:
            assert connection.fetch(request(f"{prefix}/admin")).status == 403, prefix
            response = connection.fetch(request(f"{prefix}/tell"))
            assert json.loads(response.body)["path"] == "/tell", prefix


@each_server_and_ours
def test_only_allowed_hosts_are_served(name: str, tmp_path: Path) -> None:
    source = GUARDED.replace("integrations=", 'allowed_hosts=["shop.example", "*.shop.example:8000", "[::1]"], integrations=')
    with served(name, tmp_path, source=source) as client, Connection(client.base_url.port or 0) as connection:
        for host, status in [
            ("shop.example", 200),
            ("SHOP.example.:1", 200),
            ("www.shop.example:8000", 200),
            ("www.shop.example", 400),
            ("[::1]:80", 200),
            ("evil.example", 400),
            ("127.0.0.1", 400),
        ]:
            assert connection.fetch(f"GET /tell HTTP/1.1\r\nHost: {host}\r\n\r\n".encode()).status == status, host
        octets = "GET /tell HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Forwarded-Host: shop.example\r\n\r\n"
        assert json.loads(connection.fetch(octets.encode()).body)["url"] == "http://shop.example/tell"


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no socket for IPv4 and IPv6")
def test_an_ipv4_client_on_an_ipv6_socket_has_its_ipv4_address(tmp_path: Path) -> None:
    source = """
import socket, uvicorn, gaman

async def show_ip(ctx):
    return [ctx.ip, ctx.scope["client"][0]]

listener = socket.create_server(("::", 0), family=socket.AF_INET6, dualstack_ipv6=True)
print(f"listening on http://localhost:{listener.getsockname()[1]}", flush=True)
app = gaman.App({"/": show_ip}, trusted_proxies=["::ffff:127.0.0.0/104"])
uvicorn.Server(uvicorn.Config(app, proxy_headers=False)).run([listener])
"""
    with running_script(source, tmp_path) as program:
        assert get(program.port, "/").body == b'["127.0.0.1","::ffff:127.0.0.1"]'
        assert get(program.port, "/", "X-Forwarded-For: ::ffff:203.0.113.5").body == b'["203.0.113.5","::ffff:127.0.0.1"]'


def test_uvicorn_takes_at_most_256_fields(tmp_path: Path) -> None:
    with served("uvicorn", tmp_path) as client, Connection(client.base_url.port or 0) as connection:
        assert connection.fetch(request("/profile", *["X: 1"] * 255)).status == 200
        assert connection.fetch(request("/profile", *["X: 1"] * 256)).status == 400


def test_granian_without_its_option_for_asgi_ends_with_the_fix(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(APP)
    with running(program_of("granian"), "main:app", "--port", str(free_port()), cwd=tmp_path) as program:
        assert program.wait() == 1
        assert "gaman: an App speaks ASGI" in program.stderr
        assert "`granian --interface asgi ...`" in program.stderr
        assert "Traceback" not in program.stderr


@pytest.mark.parametrize("name", ["granian", "hypercorn"])
def test_a_session_over_http2_is_found_in_each_of_several_cookie_fields(name: str, tmp_path: Path) -> None:
    with served(name, tmp_path) as first, httpx.Client(base_url=first.base_url, http1=False, http2=True) as client:
        response = client.post("/login")
        assert response.http_version == "HTTP/2"
        assert response.json() == {"ip": "127.0.0.1", "url": f"{first.base_url}/login"}
        cookie = response.headers["set-cookie"].partition(";")[0]
        client.cookies.clear()
        for fields in (["a=1", cookie], [cookie, "a=1"]):
            # Browsers send each cookie in a field of its own (RFC 9113, section 8.2.3).
            headers = [("cookie", field) for field in fields]
            assert client.get("/profile", headers=headers).json() == {"user": "Angga"}
        assert client.head("/profile").content == b""


# --- workers

IN_MEMORY = APP.replace('"sql"', '"memory"')


@pytest.mark.parametrize(
    ("name", "options", "env"),
    [
        ("uvicorn", ["--workers", "2"], {}),
        ("uvicorn", [], {"WEB_CONCURRENCY": "2"}),
        ("hypercorn", ["--workers", "2"], {}),
        ("granian", ["--workers", "2"], {}),
        ("granian", [], {"GRANIAN_WORKERS": "2"}),
        ("granian", ["--workers", "2", "--respawn-failed-workers"], {}),
    ],
)
def test_sessions_in_memory_refuse_two_workers(name: str, options: list[str], env: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(IN_MEMORY)
    where = ("--bind", "127.0.0.1:0") if name == "hypercorn" else ("--port", str(free_port()))
    with running(program_of(name), *SERVERS[name], *where, *options, cwd=tmp_path, env=env) as program:
        program.wait()
        assert (
            "the memory driver keeps sessions in one process, and 2 workers would not share them" in program.stdout + program.stderr
        )


def test_sessions_in_memory_refuse_two_workers_of_gunicorn(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(IN_MEMORY)
    options = ("-k", "uvicorn_worker.UvicornWorker", "--no-control-socket", "--bind", "127.0.0.1:0", "--workers", "2")
    with running(program_of("gunicorn"), *options, "main:app", cwd=tmp_path) as program:
        assert program.wait() != 0
        assert "the memory driver keeps sessions in one process, and 2 workers" in program.stdout + program.stderr


def test_sessions_in_memory_refuse_two_workers_of_a_script_that_runs_granian(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(IN_MEMORY)
    source = f"""
from granian import Granian
from granian.constants import Interfaces

if __name__ == "__main__":
    # Without the limit, Granian waits forever for a worker that it stops while the worker starts.
    Granian("main:app", port={free_port()}, interface=Interfaces.ASGI, workers=2, workers_kill_timeout=1).serve()
"""
    with running_script(source, tmp_path) as program:
        assert program.wait() == 1
        assert "the memory driver keeps sessions in one process, and 2 workers" in program.stdout


@pytest.mark.parametrize(
    ("name", "options", "env"),
    [
        ("uvicorn", [], {}),
        # uvicorn runs one worker while it reloads.
        ("uvicorn", ["--reload"], {"WEB_CONCURRENCY": "2"}),
        ("hypercorn", ["--workers", "1"], {}),
        ("granian", ["--workers", "1"], {}),
        # Another server's variable.
        ("granian", [], {"WEB_CONCURRENCY": "2"}),
    ],
)
def test_sessions_in_memory_start_with_one_worker(name: str, options: list[str], env: dict[str, str], tmp_path: Path) -> None:
    with served(name, tmp_path, source=IN_MEMORY, options=options, env=env) as client:
        assert client.post("/login").status_code == 200
        assert client.get("/profile").json() == {"user": "Angga"}


def test_sessions_in_memory_start_in_the_worker_that_replaces_granians_only_one(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(IN_MEMORY)
    port = free_port()
    options = ("--port", str(port), "--respawn-interval", "0.5")
    with running(program_of("granian"), *SERVERS["granian"], *options, cwd=tmp_path) as program:
        until(lambda: "Started worker-1" in program.stdout, "the first worker")
        program.send_signal(signal.SIGHUP)
        # Granian stops the old worker after the interval, whether or not the new one serves.
        until(lambda: "Stopped old worker-1" in program.stdout, "the first worker to stop")
        until(lambda: program.stdout.count("Started worker-1") == 2, "the second worker")
        assert get(port, "/profile").status == 200
        assert program.stop() == 0
