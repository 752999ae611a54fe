"""serve() with any ASGI application, on a Unix socket, with TLS, and with its log options, over real sockets."""

from __future__ import annotations

import fcntl
import json
import os
import re
import signal
import socket
import ssl
import stat
import subprocess
import sys
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from http.client import HTTPResponse
from pathlib import Path
from threading import Barrier
from types import ModuleType
from typing import Any

import flask
import pytest
from starlette.applications import Starlette

import gaman
from gaman import ConfigError, mount
from gaman.__main__ import main
from gaman._server._listeners import listen_unix
from tests.serving import PATIENCE, Connection, Program, get, request, running, running_script, until

STARLETTE = """
import os, sys
from contextlib import asynccontextmanager
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

@asynccontextmanager
async def lifespan(app):
    print("starts", flush=True)
    yield {"name": "shop"}
    print("ends", flush=True)

async def home(request):
    import asyncio
    if request.url.path == "/slow":
        await asyncio.sleep(0.7)
    return JSONResponse({"pid": os.getpid(), "name": request.state.name, "url": str(request.url)})

app = Starlette(routes=[Route("/{path:path}", home)], lifespan=lifespan)
"""


def fails_to_start(source: str, folder: Path) -> list[str]:
    """Run *source*, check that it ends with status 1, and return the lines of its stderr."""
    with running_script(source, folder) as program:
        assert program.wait() == 1, program.stdout
        return program.stderr.splitlines()


# --- any ASGI application


@pytest.mark.parametrize("options", ["", ", workers=2"])
def test_an_application_runs_with_its_lifespan_and_a_stop_waits_for_its_requests(tmp_path: Path, options: str) -> None:
    with running_script(f"{STARLETTE}\nimport gaman\ngaman.serve(app, port=0{options})", tmp_path) as program:
        assert json.loads(get(program.port, "/x").body)["name"] == "shop"
        with closing(socket.create_connection(("127.0.0.1", program.port), timeout=PATIENCE)) as client:
            client.sendall(request("/slow"))
            time.sleep(0.2)
            program.send_signal(signal.SIGTERM)
            response = HTTPResponse(client)
            response.begin()
            assert response.status == 200
        assert program.wait() == 0
        lines = program.stdout.splitlines()
        # The second worker may not have started.
        assert lines.count("starts") == lines.count("ends") >= 1
        assert program.stderr == ""


@pytest.mark.parametrize("number", [signal.SIGHUP, None], ids=["SIGHUP", "reload"])
def test_its_workers_are_replaced(tmp_path: Path, number: signal.Signals | None) -> None:
    (tmp_path / "main.py").write_text(STARLETTE)
    options = ["--workers", "2"] if number else ["--reload"]
    with running("-m", "gaman", "serve", "main:app", "--port", "0", *options, cwd=tmp_path) as program:
        port = program.port

        def pid() -> int | None:
            try:
                return int(json.loads(get(port, "/").body)["pid"])
            except (OSError, ValueError):
                return None

        before = {until(pid, "a response") for _ in range(8)}
        if number:
            program.send_signal(number)
        else:
            # The watcher needs a moment to start.
            time.sleep(1)
            (tmp_path / "main.py").write_text(STARLETTE + "\n")
        until(lambda: pid() not in {None, *before}, "new workers")
        assert program.stop() == 0


@pytest.mark.parametrize("options", ["", ", workers=2"])
def test_a_start_that_fails_is_reported_in_one_line(tmp_path: Path, options: str) -> None:
    source = STARLETTE.replace("yield {", "raise ValueError('no database')\n    yield {")
    [line] = fails_to_start(f"{source}\nimport gaman\ngaman.serve(app, port=0{options})", tmp_path)
    assert line == "gaman: the application can't start: ValueError: no database (script.py, line 11, in lifespan)"


@pytest.mark.parametrize("answer", ["assert scope['type'] == 'http'", "if scope['type'] != 'http': return"])
def test_an_application_without_a_lifespan_is_served(tmp_path: Path, answer: str) -> None:
    source = f"""
import gaman
async def app(scope, receive, send):
    {answer}
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": repr(scope["state"]).encode()}})
gaman.serve(app, port=0)
"""
    with running_script(source, tmp_path) as program:
        assert get(program.port, "/").body == b"{}"
        assert program.stop() == 0
        assert program.stderr == ""


def test_a_response_has_one_framing_whatever_the_application_sends(tmp_path: Path) -> None:
    fields = [(b"content-length ", b"3"), (b"transfer-encoding: chunked\x0b", b"1"), (b"", b"1"), (b"content-length", b"-5")]
    source = f"""
import gaman
async def app(scope, receive, send):
    field = {fields!r}[int(scope["path"][1:])]
    await send({{"type": "http.response.start", "status": 200, "headers": [field]}})
    await send({{"type": "http.response.body", "body": b"x"}})
gaman.serve(app, port=0)
"""
    with running_script(source, tmp_path) as program:
        for number in range(len(fields)):
            assert get(program.port, f"/{number}").status == 500
        assert program.stop() == 0
        assert program.stderr.count("RuntimeError: the application sent ") == len(fields)


def test_sending_to_a_client_that_has_disconnected_raises_an_error_that_is_logged_only_with_a_bug(tmp_path: Path) -> None:
    source = """
import gaman
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    try:
        while True:
            await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
    except OSError as error:
        print("raised", type(error).__mro__, flush=True)
        if scope["path"] == "/wrapped":
            raise ValueError("can't send") from error
        if scope["path"] == "/":
            raise
    raise ValueError("a bug")
gaman.serve(app, port=0)
"""
    with running_script(source, tmp_path) as program:
        for count, path in enumerate(("/", "/wrapped", "/caught")):
            with closing(socket.create_connection(("127.0.0.1", program.port), timeout=PATIENCE)) as client:
                client.sendall(request(path))
                client.recv(100)
            until(lambda count=count: program.stdout.count("raised") > count, "the error")  # type: ignore[misc]
        assert program.stop() == 0
        assert program.stderr.startswith("GET '/caught' broke off\nTraceback (most recent call last):\n")
        assert program.stderr.endswith("\nValueError: a bug\n")
        assert program.stderr.count("Traceback") == 1


def test_a_request_that_the_server_answers_has_its_line_in_the_log(tmp_path: Path) -> None:
    source = """
import asyncio, gaman
async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        raise NotImplementedError
    if scope["path"] == "/cancelled":
        raise asyncio.CancelledError
    if scope["path"] == "/slow":
        print("slow", flush=True)
        await asyncio.sleep(60)
gaman.serve(app, port=0, access_log=True, timeout_graceful_shutdown=0)
"""
    with running_script(source, tmp_path) as program:
        assert [get(program.port, path).status for path in ("/nothing", "/cancelled")] == [500, 500]
        with closing(socket.create_connection(("127.0.0.1", program.port), timeout=PATIENCE)) as client:
            client.sendall(request("/slow"))
            until(lambda: "slow" in program.stdout, "the request")
            program.stop()
        lines = program.stderr.splitlines()
    assert "gaman: GET '/nothing': the application returned without a response" in lines
    access = [line.rpartition(" in ")[0] for line in lines if line.endswith(" ms")]
    assert access == [f"gaman: GET '{line}" for line in ("/nothing' 500", "/cancelled' 500", "/slow' 503")]


def test_a_client_that_closes_an_idle_connection_during_the_stop_is_not_logged(tmp_path: Path) -> None:
    source = """
import asyncio, gaman
async def home(ctx): return "hello"
async def slow(ctx):
    print("slow", flush=True)
    # Longer than the server waits for a last request on an idle connection.
    await asyncio.sleep(0.8)
    return "slow"
gaman.serve({"/": home, "/slow": slow}, port=0)
"""
    with running_script(source, tmp_path) as program, ExitStack() as opened:
        idle, busy = (opened.enter_context(Connection(program.port)) for _ in range(2))
        assert idle.fetch(request("/")).status == 200
        busy.send(request("/slow"))
        until(lambda: "slow" in program.stdout, "the request")
        program.send_signal(signal.SIGTERM)
        until(lambda: "waiting for 1 request" in program.stdout + program.stderr, "the stop")
        idle.socket.close()
        assert busy.read().body == b"slow"
        assert program.wait() == 0
        assert "Exception in callback" not in program.stderr


def test_an_app_within_another_applications_middleware_knows_its_workers(tmp_path: Path) -> None:
    source = """
import gaman
from gaman.session import session
from starlette.middleware.cors import CORSMiddleware
app = gaman.App({}, integrations=[session("a secret of this test, long enough", driver={"type": "memory"})])
gaman.serve(CORSMiddleware(app), port=0, workers=2)
"""
    [line] = fails_to_start(source, tmp_path)
    assert "the memory driver keeps sessions in one process, and 2 workers would not share them" in line


async def handler(ctx: Any) -> str:
    return "handled"


def factory() -> gaman.App:
    return gaman.App({})


class Double:
    """An application of ASGI 2."""

    def __call__(self, scope: Any) -> None: ...


async def make() -> gaman.App:
    return gaman.App({})


MISTAKES: list[tuple[Any, str]] = [
    (
        flask.Flask("x"),
        "Flask is called with two arguments, as a WSGI application is; `pip install a2wsgi`, and give a2wsgi.WSGIMiddlew",
    ),
    (
        Double(),
        "Double is called with one argument, as an ASGI 2 application is; `pip install asgiref`, and give asgiref.compatibility",
    ),
    (Starlette, "Starlette is a class; make an application of it first, such as Starlette()"),
    (sys, "sys is a module; give the application in it, such as sys.app"),
    (make, "make() is a coroutine; await it first, and give its result"),
]


@pytest.mark.parametrize(("value", "message"), MISTAKES)
@pytest.mark.parametrize("call", [gaman.serve, mount])
def test_what_is_no_asgi_3_application_is_an_error(call: Any, value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        call(value() if value is make else value)
    assert str(raised.value).startswith(f"{call.__name__.replace('serve', 'gaman.serve')}(): {message}")


def four(a: int, b: int, c: int, d: int) -> None:
    """A function with too many arguments."""


UNMOUNTABLE: list[tuple[Any, str]] = [
    (None, "None isn't an ASGI application; give an object such as gaman.App(routes) or Starlette(...)"),
    ("main:app", "a value of the type str isn't an ASGI application; "),
    ({"/": handler}, "routes aren't an application; make an App of them first: gaman.App(routes)"),
    (gaman.define_routes({}), "routes aren't an application; make an App of them first: gaman.App(routes)"),
    (handler, "handler is a handler; give gaman.App({'/': handler}) in its place"),
    (factory, "factory takes no arguments; if it makes the application, write application = factory(), and give that"),
    (four, "four isn't an ASGI application, because it isn't called with scope, receive and send"),
]


@pytest.mark.parametrize(("value", "message"), UNMOUNTABLE)
def test_what_is_no_application_cannot_be_mounted(value: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        mount(value)
    text = str(raised.value)
    assert text.startswith("mount(): ")
    assert message in text


@pytest.mark.parametrize(
    "option", ["integrations", "middleware", "deps", "debug", "max_body_size", "trusted_proxies", "allowed_hosts"]
)
def test_options_of_app_beside_an_application_are_an_error_with_the_fix(option: str) -> None:
    with pytest.raises(ConfigError) as raised:
        gaman.serve(Starlette(), **{option: ["x"]})  # type: ignore[arg-type] # one that is right would serve
    assert str(raised.value) == (
        f"gaman.serve() got the application Starlette, and {option}= is an option of App; "
        f"mount the application in one: gaman.serve({{'*': gaman.mount(app)}}, {option}=...)"
    )


@pytest.mark.parametrize(
    ("arguments", "purpose"),
    [
        (["serve", "a_shop:app", "--trusted-proxies", "*"], "--trusted-proxies needs a gaman.App"),
        (["serve", "a_shop:app", "--allowed-hosts", "*"], "--allowed-hosts needs a gaman.App"),
        (["purge", "a_shop:app"], "gaman purge needs a gaman.App, or a session() object"),
    ],
)
def test_the_command_needs_an_app_for_options_of_app_and_to_purge(
    arguments: list[str], purpose: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = ModuleType("a_shop")
    module.__dict__["app"] = Starlette()
    monkeypatch.setitem(sys.modules, "a_shop", module)
    monkeypatch.setattr(sys, "path", [*sys.path])
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == f"gaman: {purpose}, and a_shop:app is the application Starlette"


# --- a Unix socket

WHERE = """
import asyncio, os, gaman
from gaman import Response
async def where(ctx):
    return {"ip": ctx.ip, "host": ctx.host, "scheme": ctx.scheme, "url": ctx.url, "pid": os.getpid()}
async def slow(ctx):
    await asyncio.sleep(0.7)
    return "slow"
async def big(ctx):
    return bytes(3_000_000)
async def upload(ctx):
    return {"size": len(await ctx.body(1 << 30))}
async def stream(ctx):
    async def chunks():
        try:
            while True:
                yield "x"
                await asyncio.sleep(0.02)
        finally:
            print("stream ended", flush=True)
    return Response.stream(chunks())
async def cookie(ctx):
    ctx.cookies.set("a", "1")
    return "set"
routes = {"/where": where, "/slow": slow, "/big": big, "/upload": {"POST": upload}, "/stream": stream, "/cookie": cookie}
gaman.serve(routes, OPTIONS)
"""


def ask(client: socket.socket, octets: bytes) -> tuple[int, bytes]:
    client.sendall(octets)
    response = HTTPResponse(client)
    response.begin()
    return response.status, response.read()


def connect_unix(path: Path) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.settimeout(PATIENCE)
    client.connect(str(path))
    return client


def listens(program: Program) -> bool:
    assert not program.has_ended(), program.stderr
    return "(Ctrl+C stops it)\n" in program.stdout


@pytest.mark.parametrize("options", ["", ", workers=2", ", reload=True"])
def test_a_unix_socket_serves_and_is_removed_at_the_end(tmp_path: Path, options: str) -> None:
    path = tmp_path / "app.sock"
    with running_script(WHERE.replace("OPTIONS", f"uds='app.sock'{options}"), tmp_path) as program:
        until(lambda: listens(program), "the server")
        assert f"gaman: listening on unix:{path} (Ctrl+C stops it)\n" in program.stdout
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        with closing(connect_unix(path)) as client:
            told = json.loads(ask(client, request("/where", "X-Forwarded-For: 6.6.6.6"))[1])
            assert (told["ip"], told["host"], told["scheme"]) == ("6.6.6.6", "test", "http")
            assert json.loads(ask(client, request("/where"))[1])["ip"] is None
            assert len(ask(client, request("/big"))[1]) == 3_000_000
            if options == ", workers=2":
                before = told["pid"]
                program.send_signal(signal.SIGHUP)

                def is_new() -> bool:
                    with closing(connect_unix(path)) as another:
                        return bool(json.loads(ask(another, request("/where"))[1])["pid"] != before)

                until(is_new, "a new worker")
                assert path.exists()
        with closing(connect_unix(path)) as client:
            client.sendall(request("/slow"))
            time.sleep(0.2)
            program.send_signal(signal.SIGTERM)
            if not options:
                # No client can connect any more, and those that are connected are served.
                until(lambda: not path.exists(), "the removal of the socket")
                assert not program.has_ended()
            response = HTTPResponse(client)
            response.begin()
            assert response.read() == b"slow"
        assert program.wait() == 0
        assert not path.exists()
        assert program.stderr == ""


def test_a_socket_of_a_dead_server_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    with closing(socket.socket(socket.AF_UNIX)) as dead:
        dead.bind(str(path))
    with running_script(WHERE.replace("OPTIONS", "uds='app.sock'"), tmp_path) as program:
        until(lambda: listens(program), "the server")
        with closing(connect_unix(path)) as client:
            assert ask(client, request("/where"))[0] == 200
        # Another server's socket in its place stays.
        path.unlink()
        with closing(socket.socket(socket.AF_UNIX)) as other:
            other.bind(str(path))
            assert program.stop() == 0
            assert path.exists()


@pytest.mark.parametrize(
    ("uds", "message"),
    [
        ("'app.sock'", "a server listens on {folder}/app.sock; stop it, or take another path"),
        ("'a file'", "uds='{folder}/a file' is a file, not a socket; take another path, or remove the file"),
        ("'absent/app.sock'", "can't listen on {folder}/absent/app.sock: No such file or directory"),
        ("'x' * 200", "can't listen on {folder}/" + "x" * 200 + ": AF_UNIX path too long"),
        ("''", "uds='' isn't a path; give one such as '/run/shop/shop.sock'"),
        ("8000", "uds=8000 isn't a path; give one such as '/run/shop/shop.sock'"),
        ("'a', port=0", "uds='a' and port=0 are two addresses, and the server has one; give only one of them"),
        ("'a', host='::'", "uds='a' and host='::' are two addresses, and the server has one; give only one of them"),
    ],
)
def test_a_path_that_cannot_be_served_is_reported_in_one_line(tmp_path: Path, uds: str, message: str) -> None:
    (tmp_path / "a file").write_text("kept")
    with closing(socket.socket(socket.AF_UNIX)) as live:
        live.bind(str(tmp_path / "app.sock"))
        live.listen()
        [line] = fails_to_start(WHERE.replace("OPTIONS", f"uds={uds}"), tmp_path)
    assert re.fullmatch(rf"gaman: {re.escape(message.format(folder=tmp_path))} \(script.py, line \d+, in <module>\)", line), line
    assert (tmp_path / "a file").read_text() == "kept"


def test_of_servers_that_start_at_once_exactly_one_gets_the_path(tmp_path: Path) -> None:
    path = tmp_path / "app.sock"
    with ThreadPoolExecutor(8) as threads:
        for _ in range(20):
            barrier = Barrier(8)

            def start(barrier: Barrier = barrier) -> socket.socket | str:
                barrier.wait()
                try:
                    return listen_unix(path)
                except ConfigError as error:
                    return str(error)

            results = [each.result() for each in [threads.submit(start) for _ in range(8)]]
            [listener] = [each for each in results if isinstance(each, socket.socket)]
            assert results.count(f"a server listens on {path}; stop it, or take another path") == 7
            # Its file stays, as that of a killed server does.
            listener.close()


def test_the_mode_of_the_socket_is_set_without_following_a_link(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("os.chmod")
    umask = os.umask(0o077)
    try:
        listen_unix(tmp_path / "app.sock").close()
        assert stat.S_IMODE((tmp_path / "app.sock").stat().st_mode) == 0o666
        assert os.umask(0o077) == 0o077
    finally:
        os.umask(umask)


def test_a_folder_that_another_program_locks_holds_the_socket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gaman._server._listeners._MAX_WAIT", 0.1)
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        listen_unix(tmp_path / "app.sock").close()
    finally:
        os.close(folder)


@pytest.mark.parametrize("function", ["os.open", "fcntl.flock"])
def test_a_folder_that_cannot_be_locked_holds_the_socket(function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Root may list any folder, and a file system without locks would have to be mounted.
    def refuse(*_: object) -> None:
        raise PermissionError

    monkeypatch.setattr(function, refuse)
    listen_unix(tmp_path / "app.sock").close()


def test_a_start_that_fails_removes_the_socket(tmp_path: Path) -> None:
    source = """
import gaman
async def fail(app):
    raise gaman.ConfigError("no store")
gaman.serve({}, integrations=[gaman.define_integration(name="x", on_load=fail)], uds="app.sock")
"""
    assert fails_to_start(source, tmp_path) == ["gaman: no store (script.py, line 5, in <module>)"]
    assert not (tmp_path / "app.sock").exists()


# --- TLS


def issue(folder: Path, name: str, *, password: str = "") -> None:
    """Write a certificate for localhost, which signs itself, and its key."""
    key = ["-passout", f"pass:{password}"] if password else ["-nodes"]
    command = "openssl req -x509 -newkey rsa:2048 -days 2 -subj /CN=localhost -addext subjectAltName=DNS:localhost"
    files = ["-out", str(folder / f"{name}.pem"), "-keyout", str(folder / f"{name}.key")]
    subprocess.run([*command.split(), *key, *files], check=True, capture_output=True, timeout=60)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two certificates and their keys, one key with a password, and one file with both."""
    folder = tmp_path_factory.mktemp("certificates")
    issue(folder, "shop")
    issue(folder, "other")
    issue(folder, "locked", password="secret")
    (folder / "both.pem").write_text((folder / "shop.pem").read_text() + (folder / "shop.key").read_text())
    return folder


def connect_tls(port: int, certificate: Path) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=str(certificate))
    context.set_alpn_protocols(["h2", "http/1.1"])
    return context.wrap_socket(socket.create_connection(("127.0.0.1", port), timeout=PATIENCE), server_hostname="localhost")


TLS = "port=0, ssl_certfile=FOLDER / 'shop.pem', ssl_keyfile=str(FOLDER / 'shop.key')"


def tls_script(certificates: Path, options: str = TLS) -> str:
    return "from pathlib import Path\n" + WHERE.replace("OPTIONS", options.replace("FOLDER", f"Path({str(certificates)!r})"))


@pytest.fixture(scope="module")
def secure(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Program]:
    with running_script(tls_script(certificates), tmp_path_factory.mktemp("secure")) as program:
        yield program
        assert program.stop() == 0
        assert program.stderr == ""


@pytest.fixture(scope="module")
def impatient(certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Generator[Program]:
    with running_script(tls_script(certificates, f"{TLS}, timeout_request=0.5"), tmp_path_factory.mktemp("impatient")) as program:
        yield program
        assert program.stop() == 0


def test_tls_serves_https(secure: Program, certificates: Path) -> None:
    port = secure.port
    assert f"listening on https://127.0.0.1:{port}" in secure.stdout
    with connect_tls(port, certificates / "shop.pem") as client:
        assert client.selected_alpn_protocol() == "http/1.1"
        told = json.loads(ask(client, request("/where"))[1])
        assert (told["scheme"], told["url"], told["ip"]) == ("https", "https://test/where", "127.0.0.1")
        client.sendall(request("/cookie"))
        response = HTTPResponse(client)
        response.begin()
        assert "Secure" in (response.getheader("set-cookie") or "")
        response.read()
        assert len(ask(client, request("/big"))[1]) == 3_000_000
        assert ask(client, request("/upload", method="POST", body=bytes(3_000_000)))[1] == b'{"size":3000000}'


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("octets", [request("/big", "Connection: close"), request("/big").replace(b"HTTP/1.1", b"HTTP/1.0")])
def test_the_last_response_over_tls_arrives_complete_and_ends_properly(
    secure: Program, certificates: Path, octets: bytes, version: ssl.TLSVersion
) -> None:
    context = ssl.create_default_context(cafile=str(certificates / "shop.pem"))
    context.minimum_version = context.maximum_version = version
    plain = socket.create_connection(("127.0.0.1", secure.port), timeout=PATIENCE)
    # A close without TLS's own alert would be an error.
    with context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False) as client:
        client.sendall(octets)
        received = b""
        while part := client.recv(65536):
            received += part
    assert len(received.partition(b"\r\n\r\n")[2]) == 3_000_000


def test_a_client_of_tls_that_goes_away_ends_its_stream(secure: Program, certificates: Path) -> None:
    for count in range(2):
        before = secure.stdout.count("stream ended")
        client = connect_tls(secure.port, certificates / "shop.pem")
        client.sendall(request("/stream"))
        client.recv(100)
        if count:
            # With its alert.
            client.settimeout(0.2)
            with pytest.raises((ssl.SSLError, TimeoutError)):
                client.unwrap()
        client.close()
        # mypy can't infer a lambda with a default, which binds this round's count.
        until(lambda before=before: secure.stdout.count("stream ended") > before, "the end of the stream")  # type: ignore[misc]


def test_an_error_over_tls_and_octets_without_tls_leave_the_server_serving(secure: Program, certificates: Path) -> None:
    with connect_tls(secure.port, certificates / "shop.pem") as client:
        client.sendall(b"nonsense\r\n\r\n")
        assert client.recv(65536).startswith(b"HTTP/1.1 400 ")
    with closing(socket.create_connection(("127.0.0.1", secure.port), timeout=PATIENCE)) as plain:
        plain.sendall(request("/where"))
        assert b"HTTP/1.1 200" not in plain.recv(100)
    with connect_tls(secure.port, certificates / "shop.pem") as client:
        assert ask(client, request("/where"))[0] == 200


@pytest.mark.parametrize("octets", [b"", b"\x16\x03\x01\x02\x00\x01"], ids=["nothing", "half of a record"])
def test_a_client_that_is_silent_in_its_tls_handshake_is_disconnected(impatient: Program, octets: bytes) -> None:
    with closing(socket.create_connection(("127.0.0.1", impatient.port), timeout=PATIENCE)) as client:
        client.sendall(octets)
        assert client.recv(100) == b""


def test_connections_in_their_tls_handshake_count(certificates: Path, tmp_path: Path) -> None:
    # Without the garbage collector, so that each handshake is forgotten at its end.
    source = "import gc\ngc.disable()\n" + tls_script(certificates, f"{TLS}, max_connections=1")
    with running_script(source, tmp_path) as program:
        port = program.port

        def connect() -> socket.socket:
            return socket.create_connection(("127.0.0.1", port), timeout=5)

        for _ in range(2):
            with ExitStack() as stack:
                silent = [stack.enter_context(closing(connect())) for _ in range(1 + 32)]
                with closing(connect()) as another, suppress(ConnectionResetError):
                    assert another.recv(100) == b""
                for client in silent:
                    client.setblocking(False)
                    with pytest.raises(BlockingIOError):
                        client.recv(100)
            for _ in range(40):
                with closing(connect()) as client, suppress(ConnectionResetError):
                    client.sendall(b"nonsense" * 10)
                    while client.recv(100):
                        pass

            def answers() -> bool:
                try:
                    with connect_tls(port, certificates / "shop.pem") as client:
                        return ask(client, request("/where"))[0] == 200
                except OSError:
                    return False

            until(answers, "the end of the handshakes", seconds=5)
        assert program.stop() == 0
        assert program.stderr == "max_connections=1 and 32 more are open, so a new connection is closed (logged once)\n"


def test_a_stop_waits_for_a_request_over_tls(certificates: Path, tmp_path: Path) -> None:
    options = TLS.replace("ssl_keyfile=str(FOLDER / 'shop.key')", "").replace("shop.pem", "both.pem")
    with running_script(tls_script(certificates, options), tmp_path) as program:
        with connect_tls(program.port, certificates / "shop.pem") as client, connect_tls(program.port, certificates / "shop.pem"):
            client.sendall(request("/slow"))
            time.sleep(0.2)
            program.send_signal(signal.SIGTERM)
            response = HTTPResponse(client)
            response.begin()
            assert (response.read(), response.getheader("connection")) == (b"slow", "close")
        assert program.wait() == 0
        assert program.stderr == ""


def test_sighup_renews_the_certificate(certificates: Path, tmp_path: Path) -> None:
    for suffix in ("pem", "key"):
        (tmp_path / f"shop.{suffix}").write_bytes((certificates / f"shop.{suffix}").read_bytes())
    with running_script(tls_script(tmp_path, TLS + ", workers=2"), tmp_path) as program:
        port = program.port
        with connect_tls(port, certificates / "shop.pem") as client:
            assert ask(client, request("/where"))[0] == 200
        for suffix in ("pem", "key"):
            (tmp_path / f"shop.{suffix}").write_bytes((certificates / f"other.{suffix}").read_bytes())
        program.send_signal(signal.SIGHUP)

        def is_renewed() -> bool:
            try:
                connect_tls(port, certificates / "other.pem").close()
            except (ssl.SSLError, OSError):
                return False
            return True

        until(is_renewed, "the new certificate")
        assert program.stop() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("ssl_keyfile=F / 'shop.key'", "ssl_keyfile= is the key of a certificate; give ssl_certfile= too"),
        ("ssl_certfile='absent.pem'", "ssl_certfile='absent.pem' can't be read: No such file or directory"),
        (
            "ssl_certfile=F / 'shop.pem', ssl_keyfile='absent.key'",
            "ssl_keyfile='absent.key' can't be read: No such file or directory",
        ),
        ("ssl_certfile=F", "ssl_certfile={repr} can't be read: Is a directory"),
        (
            "ssl_certfile=F / 'shop.pem'",
            "{folder}/shop.pem has no private key in PEM form; give its file as ssl_keyfile=",
        ),
        (
            "ssl_certfile=F / 'shop.pem', ssl_keyfile=F / 'other.key'",
            "the key in {folder}/other.key isn't that of the certificate in {folder}/shop.pem; give the pair",
        ),
        (
            "ssl_certfile=F / 'locked.pem', ssl_keyfile=F / 'locked.key'",
            "the key in {folder}/locked.key has a password, and a server starts without one; write a copy: "
            "openssl pkey -in {folder}/locked.key -out plain.key",
        ),
        ("ssl_certfile=F / 'shop.key', ssl_keyfile=F / 'shop.pem'", "{folder}/shop.key has no certificate in PEM form"),
        ("ssl_certfile=F / 'shop.pem', ssl_keyfile=F / 'shop.pem'", "{folder}/shop.pem has no private key in PEM form"),
    ],
)
def test_a_certificate_that_cannot_be_used_is_reported_in_one_line(
    certificates: Path, tmp_path: Path, options: str, message: str
) -> None:
    source = f"from pathlib import Path\nimport gaman\nF = Path({str(certificates)!r})\ngaman.serve({{}}, port=0, {options})"
    [line] = fails_to_start(source, tmp_path)
    assert line.startswith("gaman: " + message.format(folder=certificates, repr=repr(certificates)))


# --- the log

CONFIGURED = "logging.basicConfig(format='%(name)s> %(message)s')"
LOGGED = """
import logging, gaman
SETUP
async def home(ctx):
    logging.getLogger("gaman").warning("a warning")
    logging.getLogger("gaman").debug("details")
    return "home"
async def raw(scope, receive, send):
    assert scope["type"] == "http"
    await send({"type": "http.response.start", "status": 201, "headers": []})
    await send({"type": "http.response.body", "body": b"raw"})
gaman.serve(APP, port=0, OPTIONS)
"""


@pytest.mark.parametrize(
    ("app", "options", "setup", "lines"),
    [
        ("{'/': home}", "", "", ["a warning"]),
        ("{'/': home}", "access_log=True", "", ["gaman: a warning", "gaman: GET '/' 200"]),
        ("{'/': home}", "access_log=True, log_level='error'", "", ["gaman: a warning", "gaman: GET '/' 200"]),
        ("{'/': home}", "debug=True", "", ["gaman: a warning", "gaman: GET '/' 200"]),
        ("{'/': home}", "log_level='error'", "", []),
        ("{'/': home}", "log_level='debug'", "", ["gaman: a warning", "gaman: details"]),
        (
            "{'/': home}",
            "access_log=True",
            CONFIGURED,
            ["gaman> a warning", "gaman> GET '/' 200"],
        ),
        ("{'/': home}", "debug=True", CONFIGURED, ["gaman> a warning"]),
        ("raw", "access_log=True", "", ["gaman: GET '/' 201"]),
        ("raw", "access_log=True, workers=2", "", ["gaman: GET '/' 201"]),
        ("raw", "", "", []),
    ],
)
def test_the_log_has_the_lines_that_the_options_name(tmp_path: Path, app: str, options: str, setup: str, lines: list[str]) -> None:
    source = LOGGED.replace("SETUP", setup).replace("APP", app).replace("OPTIONS", options)
    with running_script(source, tmp_path) as program:
        get(program.port, "/")
        assert program.stop() == 0
        # The application has no lifespan, which is a line at INFO.
        found = [line for line in program.stderr.splitlines() if "has no lifespan" not in line]
        assert [line.partition(" in ")[0] for line in found] == lines


def test_debug_set_later_shows_tracebacks_and_the_requests(tmp_path: Path) -> None:
    source = """
import gaman
async def fail(ctx):
    raise ValueError("no more")
app = gaman.App({"/": fail})
app.debug = True
gaman.serve(app, port=0)
"""
    with running_script(source, tmp_path) as program:
        assert b"ValueError: no more" in get(program.port, "/").body
        assert program.stop() == 0
        assert program.stderr.count("gaman: GET '/' 500 in ") == 1


def test_debug_takes_only_true_and_false() -> None:
    app = gaman.App({})
    with pytest.raises(ConfigError, match="debug='no' is neither True nor False"):
        app.debug = "no"  # type: ignore[assignment]  # the mistake


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("log_level='WARN'", "log_level='WARN' isn't a level; give debug, info, warning, error, critical"),
        ("log_level=20", "log_level=20 isn't a level; give debug, info, warning, error, critical"),
        (
            "access_log='no'",
            "access_log='no' is neither True nor False, and any text counts as true; compare a text, as in "
            "os.environ.get('NAME') == '1'",
        ),
    ],
)
def test_a_wrong_option_of_the_log_is_reported_in_one_line(tmp_path: Path, options: str, message: str) -> None:
    [line] = fails_to_start(f"import gaman\ngaman.serve({{}}, port=0, {options})", tmp_path)
    assert line == f"gaman: {message} (script.py, line 2, in <module>)"
