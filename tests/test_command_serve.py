"""`gaman serve` over real sockets: a Unix socket, HTTPS, the log, and applications that aren't an App."""

from __future__ import annotations

import socket
import ssl
import subprocess
from pathlib import Path

import pytest

from tests.serving import Program, get, running, until

APP = """
import gaman

async def home(ctx):
    return {"scheme": ctx.scheme}

async def broken(ctx):
    raise LookupError("lost")

app = gaman.App({"/": home, "/broken": broken})

async def other(scope, receive, send):
    await app(scope, receive, send)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "main.py").write_text(APP, encoding="utf-8")
    return tmp_path


def serve(*arguments: str, target: str = "main:app") -> tuple[str, ...]:
    return ("-m", "gaman", "serve", target, *arguments)


def read_all(connection: socket.socket) -> bytes:
    connection.sendall(b"GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
    parts: list[bytes] = []
    while part := connection.recv(65536):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_listens_on_a_unix_socket(folder: Path, workers: str) -> None:
    path = folder / "site.sock"
    with running(*serve("--uds", "site.sock", "--workers", workers), cwd=folder) as program:
        until(lambda: "listening" in program.stdout or program.has_ended(), "the line that says where it listens")
        assert "site.sock" in program.stdout, program.stderr
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            assert read_all(connection).endswith(b'{"scheme":"http"}')
        assert program.stop() == 0


def make_certificate(folder: Path) -> None:
    command = "openssl req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=localhost -addext subjectAltName=IP:127.0.0.1"
    subprocess.run([*command.split(), "-keyout", "key.pem", "-out", "cert.pem"], cwd=folder, capture_output=True, check=True)


@pytest.mark.parametrize("workers", ["1", "2"])
def test_it_serves_https_with_a_certificate(folder: Path, workers: str) -> None:
    make_certificate(folder)
    arguments = ("--ssl-certfile", "cert.pem", "--ssl-keyfile", "key.pem", "--workers", workers, "--port", "0")
    with running(*serve(*arguments), cwd=folder) as program:
        context = ssl.create_default_context(cafile=folder / "cert.pem")
        with (
            socket.create_connection(("127.0.0.1", program.port), timeout=20) as plain,
            context.wrap_socket(plain, server_hostname="127.0.0.1") as connection,
        ):
            assert read_all(connection).endswith(b'{"scheme":"https"}')
        assert "https://127.0.0.1:" in program.stdout
        assert program.stop() == 0


def test_debug_shows_the_traceback_to_the_client_and_logs_each_request(folder: Path) -> None:
    with running(*serve("--debug", "--port", "0"), cwd=folder) as program:
        assert b"LookupError: lost" in get(program.port, "/broken").body
        assert get(program.port, "/").status == 200
        until(lambda: "GET '/' 200 in " in program.stderr, "the line about the request")
        assert program.stop() == 0


def test_the_access_log_has_each_request_and_shows_no_traceback_to_the_client(folder: Path) -> None:
    with running(*serve("--access-log", "--port", "0"), cwd=folder) as program:
        assert b"LookupError" not in get(program.port, "/broken").body
        assert get(program.port, "/").status == 200
        until(lambda: "GET '/' 200 in " in program.stderr, "the line about the request")
        assert program.stop() == 0


def test_without_an_option_a_request_is_not_logged(folder: Path) -> None:
    with running(*serve("--port", "0"), cwd=folder) as program:
        assert get(program.port, "/").status == 200
        assert program.stop() == 0
        assert program.stderr == ""


@pytest.mark.parametrize(("level", "is_shown"), [("error", True), ("critical", False)])
def test_the_log_begins_at_the_given_level(folder: Path, level: str, is_shown: bool) -> None:
    with running(*serve("--log-level", level, "--port", "0"), cwd=folder) as program:
        assert get(program.port, "/broken").status == 500
        assert program.stop() == 0
        assert ("LookupError: lost" in program.stderr) == is_shown


def test_any_asgi_application_is_served(folder: Path) -> None:
    with running(*serve("--port", "0", target="main:other"), cwd=folder) as program:
        assert get(program.port, "/").body == b'{"scheme":"http"}'
        assert program.stop() == 0


def test_a_mounted_application_has_one_row_in_the_table_of_routes(folder: Path) -> None:
    mounted = "\nasync def guard(ctx):\n    pass\n\nsite = gaman.App({'/': home, '/blog/*': [guard, gaman.mount(other)]})\n"
    (folder / "main.py").write_text(APP + mounted, encoding="utf-8")
    with running("-m", "gaman", "routes", "main:site", cwd=folder) as program:
        assert program.wait() == 0, program.stderr
        assert program.stdout == (
            "methods  path     middleware  handler       line\n"
            "ALL      /                    home          main.py:4\n"
            "ALL      /blog/*              guard         main.py:15\n"
            "ALL      /blog/*  guard       mount(other)\n"
        )


def fails(*arguments: str, folder: Path) -> str:
    program: Program
    with running("-m", "gaman", *arguments, cwd=folder) as program:
        assert program.wait() == 1, program.stderr
        return program.stderr


@pytest.mark.parametrize("option", [("--debug",), ("--trusted-proxies", "10.0.0.0/8"), ("--allowed-hosts", "shop.example")])
def test_an_option_of_an_app_is_refused_for_another_application(folder: Path, option: tuple[str, ...]) -> None:
    expected = f"gaman: {option[0]} needs a gaman.App, and main:other is the application other\n"
    assert fails("serve", "main:other", *option, folder=folder) == expected


@pytest.mark.parametrize(("command", "what"), [("routes", "a gaman.App"), ("purge", "a gaman.App, or a session() object")])
def test_a_command_that_needs_an_app_refuses_another_application(folder: Path, command: str, what: str) -> None:
    expected = f"gaman: gaman {command} needs {what}, and main:other is the application other\n"
    assert fails(command, "main:other", folder=folder) == expected
