"""An App under the ASGI servers that people use, each started as a person does."""

from __future__ import annotations

import json
import signal
import socket
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from tests.servers import free_port
from tests.serving import Connection, request, running, until

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
    def tell():
        return [name.decode() for name, _ in ctx.scope["headers"]]
    return {"before": tell(), "size": len(await ctx.body()), "after": tell(), "ip": ctx.ip}

app = gaman.App(
    {"/login": {"POST": login}, "/profile": profile, "/logout": [logout, profile], "/fields": fields},
    integrations=[session("a secret of the tests, long enough", {"type": "sql"}, secure=False)],
)
"""
# As the README has them.
SERVERS = {
    "uvicorn": ["main:app", "--no-proxy-headers"],
    "granian": ["--interface", "asgi", "main:app"],
    "hypercorn": ["main:app"],
}
each_server = pytest.mark.parametrize("name", SERVERS)


@contextmanager
def served(name: str, folder: Path, *where: str, uds: str | None = None) -> Generator[httpx.Client]:
    """Serve APP by the command *name*, there or on a free port, and give a client that keeps cookies."""
    (folder / "main.py").write_text(APP)
    port = free_port()
    if not where:
        where = ("--bind", f"127.0.0.1:{port}") if name == "hypercorn" else ("--port", str(port))
    transport = httpx.HTTPTransport(uds=uds)
    with (
        running(str(Path(sys.executable).with_name(name)), *SERVERS[name], *where, cwd=folder) as program,
        httpx.Client(base_url=f"http://127.0.0.1:{port}", transport=transport) as client,
    ):

        def listens() -> bool:
            assert not program.has_ended(), program.stdout + program.stderr
            with socket.socket(socket.AF_INET if uds is None else socket.AF_UNIX) as probe:
                return probe.connect_ex(("127.0.0.1", port) if uds is None else uds) == 0

        until(listens, f"{name} to listen")
        yield client
        # uvicorn ends by the signal itself, once it has finished.
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
def test_a_trusted_proxy_is_believed_once(name: str, tmp_path: Path) -> None:
    with served(name, tmp_path) as client:
        fields = {"X-Forwarded-For": "1.1.1.1, 203.0.113.5", "X-Forwarded-Proto": "https", "X-Forwarded-Host": "shop.example"}
        assert client.post("/login", headers=fields).json() == {"ip": "203.0.113.5", "url": "https://shop.example/login"}
        assert client.post("/login").json()["ip"] == "127.0.0.1"


@each_server
def test_a_proxy_on_a_unix_socket_is_believed(name: str, tmp_path: Path) -> None:
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
        told = json.loads(connection.read("POST").body)
    assert told["before"] == told["after"] == ["host", "transfer-encoding", "x-forwarded-for"]
    assert (told["size"], told["ip"]) == (5, "203.0.113.5")
