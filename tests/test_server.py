"""serve(), in separate processes and over real sockets."""

from __future__ import annotations

import json
import os
import re
import select
import signal
import socket
import subprocess
import sys
import time
import zipapp
from collections.abc import Generator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.servers import RedisServer
from tests.serving import PATIENCE, Connection, ParsedResponse, Program, get, request, running, running_script, until

SERVED = """
import asyncio, logging, os, resource, sys
from pathlib import Path
import gaman
from gaman import Context, HTTPError, Response

logging.basicConfig(level=logging.DEBUG, stream=sys.stderr, format="%(levelname)s %(name)s: %(message)s")
streams_open = forms_parsed = 0
big = Path(__file__).with_name("big")
big.write_bytes(bytes(1 << 24))

async def state(ctx: Context):
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (10 if sys.platform == "darwin" else 0)
    fds = len(os.listdir("/dev/fd"))
    return {
        "tasks": len(asyncio.all_tasks()), "streams": streams_open, "peak_kib": peak, "fds": fds, "forms": forms_parsed,
    }

async def show(ctx: Context):
    cookies = [ctx.cookies.get(name) for name in ("a", "last")]
    return {"params": dict(ctx.params), "query": list(ctx.query.items()), "x": ctx.header("x-test"), "cookies": cookies}

async def body(ctx: Context):
    return {"size": len(await ctx.body())}

async def count(ctx: Context):
    return {"size": sum([len(chunk) async for chunk in ctx.stream()])}

async def form(ctx: Context):
    form = await ctx.form(1 << 30)
    return {"files": len(form.files), "fields": len(form.fields)}

async def parse(ctx: Context):
    global forms_parsed
    await ctx.body(1 << 30)
    # From here on, other requests are served only if the parser yields.
    forms_parsed += 1
    try:
        await ctx.form()
    finally:
        forms_parsed -= 1
    return "parsed"

async def ignore(ctx: Context):
    return "not read"

async def wait(ctx: Context):
    await asyncio.sleep(1)
    return "not read"

async def forever(first: bytes, pause: bool):
    global streams_open
    streams_open += 1
    try:
        yield first
        while True:
            if pause:
                await asyncio.Event().wait()
            yield bytes(65536)
    finally:
        streams_open -= 1

async def flood(ctx: Context):
    return Response.stream(forever(b"first", pause=False))

async def stall(ctx: Context):
    return Response.stream(forever(b"first", pause=True))

async def file(ctx: Context):
    return Response.file(big)

async def refuse(ctx: Context):
    raise HTTPError(403)

routes = {
    "/state": state,
    "/static": {"GET": show},
    "/users/:id": {"GET": show},
    "/body": {"POST": body},
    "/count": {"POST": count},
    "/form": {"POST": form},
    "/parse": {"POST": parse},
    "/ignore": {"POST": ignore},
    "/wait": {"POST": wait},
    "/flood": flood,
    "/stall": stall,
    "/file": file,
    "/refuse": refuse,
}
gaman.serve(routes, port=0)
"""


class Served:
    """The server of SERVED, and what it reports about itself."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self.port = program.port

    def state(self) -> dict[str, int]:
        state: dict[str, int] = json.loads(get(self.port, "/state", "Connection: close").body)
        return state

    def log(self) -> str:
        return self._program.stderr

    @contextmanager
    def leaves_nothing_behind(self) -> Generator[dict[str, int]]:
        """Check that the block leaves no task, no open file and no line in the log above DEBUG."""
        idle = self._idle_state()
        before = self.log()
        yield idle
        keys = ("tasks", "streams", "fds")
        until(lambda: all(self.state()[key] <= idle[key] for key in keys), f"no more than {idle}; now {self.state()}")
        loud = [line for line in self.log().removeprefix(before).splitlines() if not line.startswith("DEBUG ")]
        assert loud == []

    def _idle_state(self) -> dict[str, int]:
        until(lambda: self.state()["tasks"] == self.state()["tasks"] and self.state()["streams"] == 0, "an idle server")
        return self.state()


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Generator[Served]:
    with running_script(SERVED, tmp_path_factory.mktemp("served")) as program:
        yield Served(program)
        assert program.stop() == 0, program.stderr
        assert "Traceback" not in program.stderr


def as_json(response: ParsedResponse) -> Any:
    assert response.status == 200, response
    return json.loads(response.body)


# --- what a client may do


@pytest.mark.parametrize("path", ["/body", "/count"])
@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_disconnects_within_its_body_leaves_nothing_behind(served: Served, path: str, reset: bool) -> None:
    with served.leaves_nothing_behind():
        before = served.log().count("the client disconnected")
        with Connection(served.port) as client:
            client.send(request(path, "Content-Length: 1000", method="POST") + b"x" * 10)
            if reset:
                client.reset()
        until(lambda: served.log().count("the client disconnected") > before, "the log line about the client")


def test_a_client_that_disconnects_within_an_upload_leaves_no_temporary_file(served: Served) -> None:
    head = request("/form", "Content-Type: multipart/form-data; boundary=b", "Content-Length: 9000000", method="POST")
    with served.leaves_nothing_behind() as idle, Connection(served.port) as client:
        client.send(head + b'--b\r\nContent-Disposition: form-data; name="f"; filename="f"\r\n\r\n' + bytes(1 << 20))
        until(lambda: served.state()["fds"] == idle["fds"] + 2, "the connection and the upload's temporary file")


FIELD = b'--b\r\nContent-Disposition: form-data; name="f"'
FILE = FIELD + b'; filename="f"\r\n\r\n'


@pytest.mark.parametrize(
    ("kind", "start", "rest", "size", "status"),
    [
        pytest.param("application/x-www-form-urlencoded", b"", b"%", 1 << 19, 200, id="percents"),
        pytest.param("multipart/form-data; boundary=b", b"", b"\r\n--b-", 1 << 21, 400, id="preamble"),
        pytest.param("multipart/form-data; boundary=b", FIELD + b"\r\n\r\n", b"\r\n--b-\r\n ", 1 << 20, 400, id="data"),
        pytest.param("multipart/form-data; boundary=b", b"", FIELD + b";" * 4_000 + b"\r\n\r\n\r\n", 1 << 20, 400, id="options"),
    ],
)
def test_other_requests_are_served_while_a_hostile_form_is_parsed(
    served: Served, kind: str, start: bytes, rest: bytes, size: int, status: int
) -> None:
    body = start + rest * ((size - len(start)) // len(rest))
    with served.leaves_nothing_behind(), Connection(served.port) as client:
        client.send(request("/parse", f"Content-Type: {kind}", method="POST", body=body))
        until(lambda: served.state()["forms"] == 1, "a response while the form is parsed")
        assert client.read("POST").status == status


@pytest.mark.parametrize(
    ("start", "rest", "status"),
    [
        pytest.param(b"", b"x", None, id="preamble"),
        pytest.param(b"--b--\r\n", b"x", None, id="epilogue"),
        pytest.param(FIELD + b"\r\nX: ", b"x", 413, id="header value"),
        pytest.param(FIELD + b"\r\n", b"x", 413, id="header name"),
        pytest.param(FIELD + b"\r\n", b"X: 1\r\n", 413, id="header fields"),
        pytest.param(FIELD + b"\r\nX: ", b"\r\n ", 413, id="folds"),
        pytest.param(FIELD + b"\r\n\r\n", b"x", 413, id="field"),
        pytest.param(b"", FIELD + b"\r\n\r\n\r\n", 413, id="fields"),
        pytest.param(b"", FILE + b"\r\n", 413, id="files"),
    ],
)
def test_an_endless_form_takes_no_memory(served: Served, start: bytes, rest: bytes, status: int | None) -> None:
    piece = rest * ((1 << 18) // len(rest))
    head = request("/form", "Content-Type: multipart/form-data; boundary=b", "Content-Length: 1000000000", method="POST")
    before = served.state()["peak_kib"]
    with served.leaves_nothing_behind(), Connection(served.port) as client:
        client.send(head + start)
        for _ in range(100 if status is None else 1_000):
            if select.select([client.socket], [], [], 0)[0]:
                break
            client.send(piece)
        if status is not None:
            assert client.read("POST").status == status
        assert served.state()["peak_kib"] - before < 16_000


def test_a_malformed_form_writes_nothing_to_stderr(tmp_path: Path) -> None:
    source = """
import gaman

async def form(ctx: gaman.Context):
    return str(len((await ctx.form()).fields))

gaman.serve({"/": {"POST": form}}, port=0)
"""
    with running_script(source, tmp_path) as program, Connection(program.port) as client:
        kind = "Content-Type: multipart/form-data; boundary=b"
        for body in (
            b"--b?\r\n",
            b"--b--",
            b"--b \x1b",
            FIELD + b"\x1b: 1",
            FIELD + b"\r\n\r?",
            FIELD + b"\r\nX: 1\r?",
            b"--b\r\n: 1",
        ):
            assert client.fetch(request("/", kind, method="POST", body=body)).status == (200 if body == b"--b--" else 400)
        assert program.stop() == 0
        assert program.stderr == ""


@pytest.mark.parametrize("path", ["/flood", "/stall"])
@pytest.mark.parametrize("reset", [False, True])
def test_a_stream_ends_when_its_client_disconnects(served: Served, path: str, reset: bool) -> None:
    with served.leaves_nothing_behind(), Connection(served.port) as client:
        client.send(request(path))
        client.read_until(b"first")
        assert served.state()["streams"] == 1
        if reset:
            client.reset()


def test_a_file_is_closed_when_its_client_disconnects(served: Served) -> None:
    with served.leaves_nothing_behind(), Connection(served.port) as client:
        client.send(request("/file"))
        assert client.socket.recv(100).startswith(b"HTTP/1.1 200")


def test_a_stream_that_the_client_does_not_read_is_not_buffered(served: Served) -> None:
    with served.leaves_nothing_behind(), Connection(served.port) as client:
        before = served.state()["peak_kib"]
        client.send(request("/flood"))
        until(lambda: served.state()["streams"] == 1, "the stream")
        for _ in range(50):
            served.state()
        assert served.state()["peak_kib"] - before < 16_000


@pytest.mark.parametrize("path", ["/body", "/count", "/ignore", "/nowhere", "/static"])
def test_an_endless_body_gets_an_early_response_and_takes_no_memory(served: Served, path: str) -> None:
    before = served.state()["peak_kib"]
    chunk = b"10000\r\n" + bytes(1 << 16) + b"\r\n"
    with served.leaves_nothing_behind(), Connection(served.port) as client:
        client.send(request(path, "Transfer-Encoding: chunked", method="POST"))
        sent = 0
        while not select.select([client.socket], [], [], 0)[0]:
            client.send(chunk)
            sent += 1 << 16
            assert sent < 1 << 28, "no response to 256 MB of body"
        assert client.read("POST").status == {"/ignore": 200, "/nowhere": 404, "/static": 405}.get(path, 413)
        # Further data is discarded, or the connection is closed.
        try:
            for _ in range(1024):
                client.send(chunk)
        except ConnectionError:
            pass
        assert served.state()["peak_kib"] - before < 16_000


def test_a_body_that_no_handler_has_read_stays_at_the_client(served: Served) -> None:
    before = served.state()["peak_kib"]
    with Connection(served.port) as client:
        client.send(request("/wait", "Transfer-Encoding: chunked", method="POST"))
        client.socket.setblocking(False)
        while not select.select([client.socket], [], [], 0)[0]:
            if select.select([], [client.socket], [], 0.05)[1]:
                try:
                    client.socket.send(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
                except BlockingIOError:
                    continue
        assert served.state()["peak_kib"] - before < 16_000


@pytest.mark.parametrize("line", [b"X: " + b"x" * (1 << 16), b"X: 1\r\n" * 10_000])
def test_an_endless_header_is_refused_and_takes_no_memory(served: Served, line: bytes) -> None:
    before = served.state()["peak_kib"]
    with served.leaves_nothing_behind(), Connection(served.port) as client:
        client.send(b"GET /static HTTP/1.1\r\nHost: test\r\n")
        sent = 0
        while not select.select([client.socket], [], [], 0)[0]:
            client.send(line)
            sent += len(line)
            assert sent < 1 << 26, "it took 64 MB of header"
        assert client.read().status == 431
    assert served.state()["peak_kib"] - before < 16_000


ODD = [
    *(
        b"/%s" % odd
        for odd in (b"%FF", b"%", b"%2", b"%zz", b"%00", b"%C3%28", b"%ED%A0%80", b"%2e%2e%2f", b"%25ff", b"a%2Fb", b"+ +")
    ),
    *(
        b"?%s" % odd
        for odd in (b"a=%FF", b"%FF=1", b"a=%", b"a=%zz&&=&=b&c", b"a=%00", b"a=\xff", b"a=\xc3\xa9", b"&" * 5000, b"?#")
    ),
    *(b"/%s" % odd for odd in (b"\xff", b"\xc3\xa9", b"a\tb", b"a b", b"\x00", b"x" * 100_000)),
]


@pytest.mark.parametrize("base", [b"/static", b"/users", b"/users/1", b"/nowhere", b""])
def test_an_odd_target_causes_neither_a_server_error_nor_a_hang(served: Served, base: bytes) -> None:
    before = served.log()
    for odd in ODD:
        with Connection(served.port) as client:
            response = client.fetch(request(base + odd))
            assert response.status in (200, 400, 404, 414), (base + odd, response)
            # The connection stays usable, unless the response closes it.
            if response.headers.get("connection") != "close":
                assert client.fetch(request("/static")).status == 200
            else:
                assert client.read_rest() == b""
    assert not {line.split()[0] for line in served.log().removeprefix(before).splitlines()} & {"ERROR", "CRITICAL", "Traceback"}


@pytest.mark.parametrize("path", ["/static", "/users/%C3%A9"])
@pytest.mark.parametrize(
    "header",
    [
        b"X-Test: \xff\xfe",
        b"X-Test: \xc3\xa9",
        b"Cookie: \xff=\xfe; a=\xff",
        b'Cookie: a="\\"; ;;=;last',
        b"X-Test: " + b"x" * 50_000,
    ],
)
def test_odd_octets_in_a_header_are_read_unchanged(served: Served, path: str, header: bytes) -> None:
    with Connection(served.port) as client:
        shown = as_json(client.fetch(request(path, header)))
        if header.startswith(b"X-Test"):
            assert shown["x"] == header.removeprefix(b"X-Test: ").decode("latin-1")
        assert client.fetch(request("/static")).status == 200


@pytest.mark.parametrize("path", ["/static", "/users/1"])
def test_a_cookie_header_of_100_kb_is_read_to_its_end(served: Served, path: str) -> None:
    for filler in (b'\\"' * 50_000, b"; " * 50_000, b"a=1; " * 20_000, b"\xa0\x85=1;" * 20_000):
        assert as_json(get(served.port, path, b"Cookie: first=" + filler + b"; last=here"))["cookies"][1] == "here"


@pytest.mark.parametrize(
    "octets",
    [
        b"GET /\xff\xfe HTTP/1.1\r\nHost: test\r\n\r\n",
        b"G\xc9T / HTTP/1.1\r\nHost: test\r\n\r\n",
        b"GET /static HTTP/9.9\r\n\r\n",
        b"GET http://test HTTP/1.1\r\nHost: test\r\n\r\n",
        b"GET * HTTP/1.1\r\nHost: test\r\n\r\n",
        b"CONNECT test:443 HTTP/1.1\r\nHost: test\r\n\r\n",
        b"PROPFIND /static HTTP/1.1\r\nHost: test\r\n\r\n",
        b"GET /static HTTP/1.1\r\nHost: test\r\nBad\x00Name: 1\r\n\r\n",
        b"GET /static HTTP/1.1\r\nHost: test\r\nContent-Length: x\r\n\r\n",
        b"GET /static HTTP/1.1\r\nHost: test\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"\xff" * 1000 + b"\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_a_malformed_request_gets_a_4xx(served: Served, octets: bytes) -> None:
    with Connection(served.port) as client:
        assert 400 <= client.fetch(octets).status < 500
    assert get(served.port, "/static").status == 200


def test_a_connection_stays_usable_after_each_4xx(served: Served) -> None:
    json_type = "Content-Type: application/json"
    with Connection(served.port) as client:
        for octets, status in [
            (request("/nowhere"), 404),
            (request("/static", method="DELETE"), 405),
            (request("/users/%FF"), 400),
            (request("/static?" + "&a" * 2000), 400),
            (request("/refuse"), 403),
            (request("/refuse", method="POST", body=b"x" * 100_000), 403),
            (request("/body", method="POST", body=bytes(3 << 20)), 413),
            (request("/body", "Content-Encoding: gzip", method="POST", body=b"x"), 415),
            (request("/form", json_type, method="POST", body=b"{}"), 415),
            (request("/form", "Content-Type: multipart/form-data; boundary=b", method="POST", body=b"--x"), 400),
        ]:
            assert client.fetch(octets).status == status, octets[:100]
            assert client.fetch(request("/static")).status == 200, octets[:100]


@pytest.mark.parametrize("path", ["/static", "/users/1", "/file", "/flood", "/nowhere", "/refuse"])
def test_a_response_to_head_has_the_headers_of_get_and_no_body(served: Served, path: str) -> None:
    with served.leaves_nothing_behind():
        with Connection(served.port) as client:
            client.send(request(path, method="HEAD") + request("/body", "Connection: close", method="HEAD"))
            first, _, second = client.read_rest().partition(b"\r\n\r\n")
        assert second.startswith(b"HTTP/1.1 405"), "octets between the two heads"
        if path != "/flood":
            length = len(get(served.port, path).body)
            assert b"content-length: %d" % length in first.lower()


def test_a_websocket_is_refused_without_a_hang_or_a_log_line(served: Served) -> None:
    with served.leaves_nothing_behind(), Connection(served.port) as client:
        upgrade = (
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        )
        assert client.fetch(request("/static", *upgrade)).status != 101
    assert get(served.port, "/static").status == 200


# --- start and stop

GRACEFUL = """
import asyncio
from pathlib import Path
import gaman
from gaman import define_integration

async def slow(ctx):
    print("in flight", flush=True)
    while not Path("go").exists():
        await asyncio.sleep(0.01)
    return "finished"

async def bye(app):
    await asyncio.sleep(0)
    print("shut down", flush=True)

gaman.serve({"/": slow}, integrations=[define_integration(name="x", on_shutdown=bye)], port=0, **OPTIONS)
print("after serve", flush=True)
"""


def refuses_connections(port: int) -> bool:
    try:
        # A stopping server at first leaves new connections without a response, and later refuses them.
        socket.create_connection(("127.0.0.1", port), 0.1).close()
    except OSError:
        return True
    return False


@pytest.mark.parametrize("options", ["{}", "{'workers': 2}", "{'reload': True}"])
@pytest.mark.parametrize(("number", "to_group"), [(signal.SIGTERM, False), (signal.SIGINT, False), (signal.SIGINT, True)])
def test_a_signal_lets_the_request_in_flight_finish_and_runs_the_hooks(
    tmp_path: Path, options: str, number: signal.Signals, to_group: bool
) -> None:
    with running_script(GRACEFUL.replace("OPTIONS", options), tmp_path) as program, Connection(program.port) as client:
        port = program.port
        client.send(request("/"))
        until(lambda: "in flight" in program.stdout, "the request")
        program.send_signal(number, to_group=to_group)
        until(lambda: refuses_connections(port), "the end of listening")
        until(lambda: "waiting" in program.stdout, "the line about the requests in flight")
        assert not program.has_ended()
        (tmp_path / "go").touch()
        assert client.read().body == b"finished"
        assert program.wait() == 0
        assert "shut down\n" in program.stdout
        assert program.stdout.count("gaman: waiting for 1 request to finish; Ctrl+C again ends it at once\n") == 1
        assert program.stdout.count("after serve") == 1
        assert program.stderr == ""
        assert refuses_connections(port)


@pytest.mark.parametrize("options", ["{}", "{'workers': 2}", "{'reload': True}"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_idle_server_stops_soon_and_prints_nothing(tmp_path: Path, options: str, number: signal.Signals) -> None:
    source = f"import gaman\nasync def home(ctx): return 'hello'\ngaman.serve({{'/': home}}, port=0, **{options})"
    with running_script(source, tmp_path) as program, Connection(program.port) as idle, Connection(program.port):
        assert idle.fetch(request("/")).body == b"hello"
        start = time.monotonic()
        assert program.stop(number) == 0
        # The keep-alive timeout would be 5 seconds.
        assert time.monotonic() - start < 4
        assert program.stdout.count("\n") == 1
        assert program.stderr == ""


STREAMS = """
import asyncio, os
import gaman
from gaman import Response, define_integration

async def events():
    while True:
        yield b"data: here\\n\\n"
        await asyncio.sleep(0.01)

async def stream(ctx):
    return Response.stream(events())

async def wait(ctx):
    print("waits", flush=True)
    await asyncio.Event().wait()

async def pid(ctx):
    return {"pid": os.getpid()}

async def bye(app):
    print("shut down", flush=True)

gaman.serve(
    {"/": pid, "/stream": stream, "/wait": wait},
    integrations=[define_integration(name="x", on_shutdown=bye)], port=0, **OPTIONS)
print("after serve", flush=True)
"""


ENDLESS = """
import asyncio
import gaman
from gaman import Response, define_integration

async def events(name):
    try:
        yield "data: here\\n\\n"
        await asyncio.Event().wait()
    finally:
        print("closed", name, flush=True)

async def ticks():
    try:
        while True:
            yield "data: here\\n\\n"
            # Not faster than the client reads, which is after the stop.
            await asyncio.sleep(0.01)
    finally:
        print("closed ticks", flush=True)

async def endless(ctx):
    return Response.stream(events("endless"), content_type="text/event-stream", endless=True)

async def busy(ctx):
    return Response.stream(ticks(), content_type="text/event-stream", endless=True)

async def stream(ctx):
    return Response.stream(events("stream"), content_type="text/event-stream")

async def bye(app):
    print("shut down", flush=True)

gaman.serve(
    {"/endless": endless, "/busy": busy, "/stream": stream},
    integrations=[define_integration(name="x", on_shutdown=bye)], port=0, **OPTIONS)
"""


@pytest.mark.parametrize("options", ["{}", "{'workers': 2}", "{'reload': True}"])
@pytest.mark.parametrize("path", ["/endless", "/busy"])
def test_an_endless_stream_ends_completely_as_soon_as_the_server_stops(tmp_path: Path, options: str, path: str) -> None:
    with running_script(ENDLESS.replace("OPTIONS", options), tmp_path) as program, Connection(program.port) as client:
        client.send(request(path))
        client.read_until(b"data: here")
        # Without `endless`, this waits for 30 seconds.
        assert program.stop() == 0
        assert client.read_rest().endswith(b"0\r\n\r\n")
        assert f"closed {path[1:].replace('busy', 'ticks')}\n" in program.stdout
        assert "shut down\n" in program.stdout
        assert "waiting" not in program.stdout
        assert program.stderr == ""


def test_an_endless_stream_of_a_worker_that_is_replaced_ends_and_the_next_one_is_its_successors(tmp_path: Path) -> None:
    with (
        running_script(ENDLESS.replace("OPTIONS", "{'workers': 2}"), tmp_path) as program,
        Connection(program.port) as client,
    ):
        client.send(request("/endless"))
        client.read_until(b"data: here")
        program.send_signal(signal.SIGHUP)
        assert client.read_rest().endswith(b"0\r\n\r\n")
        until(lambda: program.stdout.count("shut down\n") == 2, "the end of both workers")
        assert program.stdout.count("closed endless\n") == 1
        with Connection(program.port) as later:
            later.send(request("/endless"))
            later.read_until(b"data: here")
            assert program.stop() == 0


def test_any_other_stream_is_cut_off_after_the_time_limit_and_its_finally_runs(tmp_path: Path) -> None:
    source = ENDLESS.replace("OPTIONS", "{'timeout_graceful_shutdown': 1}")
    with running_script(source, tmp_path) as program, Connection(program.port) as client:
        client.send(request("/stream"))
        client.read_until(b"data: here")
        assert program.stop() == 0
        assert not client.read_rest().endswith(b"0\r\n\r\n")
        assert "waiting for 1 request to finish" in program.stdout
        assert "closed stream\nshut down\n" in program.stdout
        assert program.stderr == "cut off 1 request after 1 s\n"


@pytest.mark.parametrize("options", ["{}", "{'workers': 2}", "{'reload': True}"])
@pytest.mark.parametrize("to_group", [False, True])
def test_a_second_ctrl_c_cuts_streams_off_and_still_runs_the_hooks(tmp_path: Path, options: str, to_group: bool) -> None:
    with (
        running_script(STREAMS.replace("OPTIONS", options), tmp_path) as program,
        Connection(program.port) as streaming,
        Connection(program.port) as waiting,
    ):
        serving = pids(program.port, 2 if "workers" in options else 1)
        streaming.send(request("/stream"))
        streaming.read_until(b"data: here")
        waiting.send(request("/wait"))
        until(lambda: "waits" in program.stdout, "the request")
        program.send_signal(signal.SIGINT, to_group=to_group)
        until(lambda: "waiting for 2 requests to finish" in program.stdout, "the line about the requests in flight")
        assert not program.has_ended()
        program.send_signal(signal.SIGINT, to_group=to_group)
        assert program.wait() == 0
        # The stream is cut off, and the client can see that.
        assert not streaming.read_rest().endswith(b"0\r\n\r\n")
        assert waiting.read().status == 503
        assert program.stdout.count("shut down\n") == (2 if "workers" in options else 1)
        assert program.stdout.count("after serve\n") == 1
        assert re.fullmatch(r"(cut off \d requests? after \d s\n)+", program.stderr) or "reload" in options
        assert "Traceback" not in program.stderr
        assert not any(map(is_alive, serving))


@pytest.mark.parametrize("options", ["{}", "{'workers': 2}"])
@pytest.mark.parametrize("what", ["on_load", "on_shutdown", "handler", "thread"])
def test_a_second_ctrl_c_ends_even_a_blocked_server(tmp_path: Path, options: str, what: str) -> None:
    source = """
import os, time, anyio.to_thread, gaman
def hang(*given):
    while True:
        try:
            print("hangs", os.getpid(), flush=True)
            time.sleep(60)
        except BaseException:
            pass
async def handler(ctx):
    hang() if "HOOK" == "handler" else await anyio.to_thread.run_sync(hang)
hooks = [gaman.define_integration(name="x", HOOK=hang)] if "HOOK".startswith("on_") else []
gaman.serve({"/": handler}, integrations=hooks, port=0, **OPTIONS)
"""
    with running_script(source.replace("HOOK", what).replace("OPTIONS", options), tmp_path) as program, ExitStack() as stack:
        if what in ("handler", "thread"):
            stack.enter_context(Connection(program.port)).send(request("/"))
        elif what == "on_shutdown":
            assert program.port
            program.send_signal(signal.SIGINT)
        until(lambda: "hangs" in program.stdout, "the function that hangs")
        if what != "on_shutdown":
            program.send_signal(signal.SIGINT)
        with pytest.raises(subprocess.TimeoutExpired):
            program.wait(0.5)
        program.send_signal(signal.SIGINT)
        assert program.wait() in (0, 130)
        assert not any(is_alive(int(pid)) for pid in re.findall(r"hangs (\d+)", program.stdout))
        assert "Traceback" not in program.stderr


@pytest.mark.parametrize("workers", [1, 2])
def test_a_stop_answers_every_connection_that_was_established(tmp_path: Path, workers: int) -> None:
    with running_script(GUARDED.replace("OPTIONS", str({"workers": workers})), tmp_path) as program, ExitStack() as stack:
        serving = pids(program.port, workers)
        # While the processes are stopped, the connections wait in the kernel.
        for pid in serving:
            os.kill(pid, signal.SIGSTOP)
        clients = [stack.enter_context(Connection(program.port)) for _ in range(100)]
        for client in clients:
            client.send(request("/"))
        program.send_signal(signal.SIGTERM)
        # So long that a process, once continued, handles its signals at once.
        time.sleep(1)
        for pid in serving:
            os.kill(pid, signal.SIGCONT)
        assert [client.read().status for client in clients] == [200] * 100
        assert program.wait() == 0
        assert program.stderr == ""


CLIENTS = """
import collections, json, socket, sys, threading, time

counts = collections.Counter()
deadline = time.monotonic() + 10

def send_requests():
    # Until a connection is refused: after a handshake, everything must succeed.
    while time.monotonic() < deadline:
        with socket.socket() as client:
            client.settimeout(25)
            try:
                client.connect(("127.0.0.1", int(sys.argv[1])))
            except ConnectionRefusedError:
                counts["refused"] += 1
                return
            try:
                client.sendall(b"GET / HTTP/1.1\\r\\nHost: test\\r\\nConnection: close\\r\\n\\r\\n")
                response = b"".join(iter(lambda: client.recv(65536), b""))
            except OSError as error:
                counts[type(error).__name__] += 1
            else:
                counts["answered" if response.startswith(b"HTTP/1.1 200 ") else "lost"] += 1

threads = [threading.Thread(target=send_requests) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps(counts))
"""


@pytest.mark.slow
@pytest.mark.parametrize("options", ["{}", "{'workers': 2}"])
def test_a_stop_under_load_resets_no_connection(tmp_path: Path, options: str) -> None:
    for _ in range(4):
        with running_script(GUARDED.replace("OPTIONS", options), tmp_path) as program:
            command = [sys.executable, "-c", CLIENTS, str(program.port)]
            clients = [subprocess.Popen(command, stdout=subprocess.PIPE) for _ in range(2)]
            time.sleep(1)
            assert program.stop() == 0
            for client in clients:
                counts = json.loads(client.communicate()[0])
                assert counts.pop("answered") > 16
                assert counts == {"refused": 8}


@pytest.mark.parametrize("options", ["{}", "{'workers': 2}", "{'reload': True}"])
def test_closed_standard_streams_do_no_harm(tmp_path: Path, options: str) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    (tmp_path / "main.py").write_text(
        "import gaman, os\n"
        "async def home(ctx): return str(os.getpid())\n"
        f"gaman.serve({{'/': home}}, port={port}, **{options})\n"
        "open('ended', 'w').close()\n"
    )
    command = ["sh", "-c", 'exec "$0" main.py <&- >&- 2>&-', sys.executable]
    with subprocess.Popen(command, cwd=tmp_path, start_new_session=True) as process:
        try:
            until(lambda: not refuses_connections(port), "the server")
            pid = int(get(port, "/").body)
            for _ in range(10):
                assert get(port, "/").status == 200
            process.send_signal(signal.SIGTERM)
            assert process.wait(PATIENCE) == 0
            assert (tmp_path / "ended").exists()
            assert pid == process.pid or not is_alive(pid)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)


def test_the_line_with_the_address_needs_no_reader(tmp_path: Path) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = free.getsockname()[1]
    (tmp_path / "main.py").write_text(f"import gaman\ngaman.serve({{}}, port={port})")
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen([sys.executable, "main.py"], cwd=tmp_path, stdout=writer, stderr=subprocess.PIPE) as process:
        os.close(writer)
        try:
            until(lambda: not refuses_connections(port), "the server")
            assert get(port, "/").status == 404
        finally:
            process.kill()


@pytest.mark.parametrize("options", ["{}", "{'workers': 2}"])
def test_a_closed_terminal_ends_a_server_as_sigterm_does_unless_it_has_workers(tmp_path: Path, options: str) -> None:
    with running_script(GRACEFUL.replace("OPTIONS", options), tmp_path) as program, Connection(program.port) as client:
        client.send(request("/"))
        until(lambda: "in flight" in program.stdout, "the request")
        program.send_signal(signal.SIGHUP)
        (tmp_path / "go").touch()
        assert client.read().body == b"finished"
        if "workers" in options:
            assert get(program.port, "/").status == 200
        else:
            assert program.wait() == 0
            assert "shut down\nafter serve\n" in program.stdout


def test_an_endless_request_delays_the_stop_only_until_the_timeout(tmp_path: Path) -> None:
    source = GRACEFUL.replace("OPTIONS", "{'timeout_graceful_shutdown': 0}")
    with running_script(source, tmp_path) as program, Connection(program.port) as client:
        client.send(request("/"))
        until(lambda: "in flight" in program.stdout, "the request")
        assert program.stop() == 0
        assert client.read().status == 503
        assert "shut down\nafter serve\n" in program.stdout
        assert program.stderr == "cut off 1 request after 0 s\n"


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_requests_in_flight_have_the_timeout_to_finish_and_not_more(tmp_path: Path, workers: int) -> None:
    source = """
import asyncio, gaman
async def take(ctx):
    print("in flight", flush=True)
    await asyncio.sleep(float(ctx.query["seconds"]))
    return "finished"
gaman.serve({"/": take}, port=0, timeout_graceful_shutdown=2, **OPTIONS)
"""
    with running_script(source.replace("OPTIONS", str({"workers": workers})), tmp_path) as program:
        with Connection(program.port) as short, Connection(program.port) as endless:
            short.send(request("/?seconds=1"))
            endless.send(request("/?seconds=600"))
            until(lambda: program.stdout.count("in flight") == 2, "the requests")
            start = time.monotonic()
            program.send_signal(signal.SIGTERM)
            assert short.read().body == b"finished"
            assert endless.read().status == 503
            assert program.wait() == 0
            assert time.monotonic() - start >= 2
        assert program.stderr == "cut off 1 request after 2 s\n"


@pytest.mark.parametrize("options", ["", ", workers=2"])
def test_a_start_that_hangs_can_be_stopped(tmp_path: Path, options: str) -> None:
    source = """
import asyncio, gaman
async def hang(app):
    print("loading", flush=True)
    await asyncio.Event().wait()
async def bye(app):
    print("shut down", flush=True)
first = gaman.define_integration(name="first", priority="high", on_shutdown=bye)
gaman.serve({}, integrations=[first, gaman.define_integration(name="x", on_load=hang)], port=0OPTIONS)
"""
    for number in (signal.SIGTERM, signal.SIGINT):
        with running_script(source.replace("OPTIONS", options), tmp_path) as program:
            until(lambda: "loading" in program.stdout, "the hook")
            assert program.stop(number) == 0
            assert (program.stdout, program.stderr) == ("loading\nshut down\n", "")


def test_port_0_takes_a_free_port_and_prints_it(tmp_path: Path) -> None:
    source = "import gaman\nasync def home(ctx): return 'hello'\ngaman.serve({'/': home}, port=0)"
    with running_script(source, tmp_path) as program:
        assert get(program.port, "/").body == b"hello"
        assert program.stdout == f"gaman: listening on http://127.0.0.1:{program.port} (Ctrl+C stops it)\n"
        assert program.stop() == 0
        assert program.stderr == ""


def test_an_app_can_be_served_instead_of_routes(tmp_path: Path) -> None:
    source = """
import gaman
async def show(ctx): return {"size": ctx.app.max_body_size, "server": ctx.locals["server"]}
name = gaman.define_integration(name="name", on_request=lambda ctx: ctx.locals.update(server="mine"))
app = gaman.App({"/": show}, integrations=[name], max_body_size=7)
gaman.serve(app, port=0OPTIONS)
"""
    for options in ("", ", workers=2"):
        with running_script(source.replace("OPTIONS", options), tmp_path) as program:
            assert json.loads(get(program.port, "/").body) == {"size": 7, "server": "mine"}
            assert program.stop() == 0
            assert program.stderr == ""


def test_in_a_running_loop_uvicorn_serves_by_the_line_in_the_error(tmp_path: Path) -> None:
    source = """
import asyncio, re, socket, uvicorn
import gaman
async def home(ctx): return "hello"
async def main():
    try:
        gaman.serve({"/": home}, port=0)
    except gaman.ConfigError as error:
        [advice] = re.findall("`await (.*)`", str(error))
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    await eval(advice.replace("...", "{'/': home}").replace("serve()", "serve([listener])"), {**globals(), **locals()})
asyncio.run(main())
"""
    with running_script(source, tmp_path) as program:
        assert get(program.port, "/").body == b"hello"


def test_the_host_can_be_a_name_of_the_machine(tmp_path: Path) -> None:
    with running_script("import gaman\ngaman.serve({}, host='localhost', port=0)", tmp_path) as program:
        assert get(program.port, "/").status == 404
        assert program.stdout.startswith(f"gaman: listening on http://localhost:{program.port} ")


@pytest.mark.skipif(not socket.has_ipv6 or not os.path.exists("/proc/net/if_inet6"), reason="this machine has no IPv6")
def test_an_ipv6_host_is_announced_in_brackets(tmp_path: Path) -> None:
    with running_script("import gaman\ngaman.serve({}, host='::1', port=0)", tmp_path) as program:
        port = program.port
        assert program.stdout.startswith(f"gaman: listening on http://[::1]:{port} ")


@pytest.mark.skipif(not socket.has_ipv6 or not os.path.exists("/proc/net/if_inet6"), reason="this machine has no IPv6")
def test_without_a_host_an_ipv6_server_names_itself_in_brackets(tmp_path: Path) -> None:
    source = "import gaman\nasync def home(ctx): return ctx.url\ngaman.serve({'/': home}, host='::1', port=0)"
    with running_script(source, tmp_path) as program, socket.create_connection(("::1", program.port), timeout=10) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        assert client.makefile("rb").read().endswith(f"\r\n\r\nhttp://[::1]:{program.port}/".encode())


def test_control_characters_of_a_request_reach_no_log_line_raw(tmp_path: Path) -> None:
    source = """
import gaman, logging, sys
logging.basicConfig(level=logging.DEBUG, stream=sys.stderr, format="%(method)s %(path)s %(message)s")

async def fail(ctx):
    raise ValueError(ctx.query["a"])

async def refuse(ctx):
    raise gaman.HTTPError(503, ctx.query["a"]) from OSError()

gaman.serve({"/fail/:x": fail, "/refuse/:x": refuse}, port=0, debug=True)
"""
    hostile = "%0Aforged%0D%1B%5B31m%C2%85%E2%80%A8"
    with running_script(source, tmp_path) as program:
        for path in ("/fail/", "/refuse/", "/nowhere/"):
            assert get(program.port, f"{path}{hostile}?a={hostile}").status >= 400
        lines = [line for line in program.stderr.split("\n") if not line.startswith("--- Logging error")]
        assert len(lines) > 6
        assert [line for line in lines if not line.isprintable() or line.startswith("forged")] == []


def fails_to_start(source: str, folder: Path) -> list[str]:
    """Run *source*, check that it ends with status 1 and never listens, and return the lines on stderr."""
    with running_script(source, folder) as program:
        assert program.wait() == 1, program.stderr
        assert "listening" not in program.stdout
        return program.stderr.splitlines()


@pytest.mark.parametrize("options", ["", ", workers=2", ", reload=True"])
def test_a_port_in_use_is_reported_in_one_line(tmp_path: Path, options: str) -> None:
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        [line] = fails_to_start(f"import gaman\ngaman.serve({{}}, port={port}{options})", tmp_path)
    assert line.startswith(f"gaman: port {port} on 127.0.0.1 is taken; stop what listens there, or take another port (")


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ("host='no-such-host.invalid'", "host='no-such-host.invalid' isn't an address of this machine"),
        ("host='192.0.2.1'", "can't listen on 192.0.2.1, port 3431"),
        ("host=''", "host='' isn't an address"),
        ("host=None", "host=None isn't an address"),
        ("host='.'", "host='.' isn't an address"),
        ("host='a' * 99", "isn't an address"),
        ("port=-1", "port=-1 isn't a port"),
        ("port=70000", "port=70000 isn't a port"),
        ("port='x'", "port='x' isn't a port"),
        ("port=None", "port=None isn't a port"),
        ("workers=0", "workers=0 isn't a number of processes"),
        ("workers='2'", "workers='2' isn't a number of processes"),
        ("integrations=[gaman.define_integration(name='x', on_load=configured)], port=0", "the colour is missing"),
        ("allowed_hosts=[], port=0", "allowed_hosts is empty"),
        ("allowed_hosts=['https://shop.example'], port=0", "allowed_hosts: 'https://shop.example' isn't a host"),
    ],
)
def test_an_obstacle_to_the_start_is_reported_in_one_line(tmp_path: Path, options: str, word: str) -> None:
    source = f"""
import gaman, logging
logging.basicConfig(filename="log", level="CRITICAL")
async def configured(app):
    raise gaman.ConfigError("the colour is missing")
gaman.serve({{}}, {options})
"""
    [line] = fails_to_start(source, tmp_path)
    assert line.startswith("gaman: ")
    assert word in line


def test_a_mistake_in_the_routes_is_reported_in_one_line(tmp_path: Path) -> None:
    [line] = fails_to_start("import gaman\ngaman.serve({'/a': 1})", tmp_path)
    assert line.startswith("gaman: /a: ")


@pytest.mark.parametrize("options", ["", ", workers=2"])
def test_a_hook_that_fails_unexpectedly_stops_the_start_with_its_traceback(tmp_path: Path, options: str) -> None:
    source = f"""
import gaman
async def connect(app):
    raise OSError("the store is down")
async def bye(app):
    print("shut down")
first = gaman.define_integration(name="first", priority="high", on_shutdown=bye)
gaman.serve({{}}, integrations=[first, gaman.define_integration(name="x", on_load=connect)], port=0{options})
"""
    lines = fails_to_start(source, tmp_path)
    assert lines[-2] == "OSError: the store is down"
    assert lines[-1].startswith("on_load of the integration 'x' failed (")
    assert lines.count("OSError: the store is down") == 1


def test_the_logging_of_the_user_stays_unchanged(tmp_path: Path) -> None:
    source = """
import logging, gaman
access, root = logging.getLogger("uvicorn.access"), logging.getLogger()
handler = logging.FileHandler("access.log")
access.addHandler(handler)
root.setLevel(logging.WARNING)
loggers = [root, access, *map(logging.getLogger, ("uvicorn", "uvicorn.error", "gaman"))]
def setup():
    return [(each.level, each.propagate, each.disabled, tuple(each.handlers), tuple(each.filters)) for each in loggers]
before = setup()
async def same(ctx):
    return {"same": setup() == before}
gaman.serve({"/": same}, port=0)
"""
    with running_script(source, tmp_path) as program:
        assert as_json(get(program.port, "/")) == {"same": True}
        assert program.stop() == 0


# --- workers

PIDS = """
import asyncio, dataclasses, os, sys
import gaman
print("run", flush=True)

@dataclasses.dataclass
class User:
    friend: "User | None"

async def pid(ctx):
    return {"pid": os.getpid(), "workers": seen[-1], "main": sys.modules["__main__"].__dict__ is globals()}

async def user(ctx):
    return {"friend": (await ctx.json(User)).friend is not None}

async def quit(ctx):
    os._exit(3)

seen = []
def load(app):
    seen.append(app.workers)

def main():
    asyncio.run(asyncio.sleep(0))
    gaman.serve(
        {"/": pid, "/user": user, "/quit": quit},
        integrations=[gaman.define_integration(name="x", on_load=load)], port=0, **OPTIONS)
    print("after serve", flush=True)
"""
GUARDED = PIDS + 'if __name__ == "__main__":\n    main()\n'
UNGUARDED = PIDS + "main()\n"


def pids(port: int, count: int) -> set[int]:
    """Return the process ids of the workers once *count* of them have answered."""
    found: set[int] = set()

    def fetch() -> bool:
        found.add(as_json(get(port, "/", "Connection: close"))["pid"])
        return len(found) >= count

    until(fetch, f"responses of {count} workers")
    return found


@pytest.mark.parametrize("source", [GUARDED, UNGUARDED], ids=["guarded", "unguarded"])
def test_two_workers_serve_a_plain_script(tmp_path: Path, source: str) -> None:
    with running_script(source.replace("OPTIONS", "{'workers': 2}"), tmp_path) as program:
        workers = pids(program.port, 2)
        assert program.pid not in workers
        shown = as_json(get(program.port, "/"))
        assert (shown["workers"], shown["main"]) == (2, True)
        with Connection(program.port) as client:
            assert as_json(client.fetch(request("/user", method="POST", body=b'{"friend": {"friend": null}}'))) == {"friend": True}
        assert program.stop() == 0
        # Each process ran the script once, and only the first continued after serve().
        assert program.stdout.count("run\n") == 3
        assert program.stdout.count("listening") == 1
        assert program.stdout.count("after serve") == 1
        assert program.stderr == ""
        assert not any(map(is_alive, workers))


@pytest.mark.parametrize("arguments", [["-m", "package"], ["-m", "package.inner"], ["package"], ["package.pyz"]])
def test_two_workers_serve_a_module_a_package_and_an_archive(tmp_path: Path, arguments: list[str]) -> None:
    package = tmp_path / "package"
    package.mkdir()
    (package / "__main__.py").write_text(
        "from package.inner import main\nmain()" if arguments[0] == "-m" else "from inner import main\nmain()"
    )
    (package / "inner.py").write_text(GUARDED.replace("OPTIONS", "{'workers': 2}"))
    zipapp.create_archive(package)
    with running(*arguments, cwd=tmp_path) as program:
        pids(program.port, 2)
        assert program.stop() == 0
        assert program.stderr == ""


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("by", ["itself", "a signal"])
def test_a_worker_that_dies_is_replaced_and_the_log_says_so(tmp_path: Path, by: str) -> None:
    with running_script(GUARDED.replace("OPTIONS", "{'workers': 2}"), tmp_path) as program:
        before = pids(program.port, 2)
        if by == "itself":
            with Connection(program.port) as client:
                client.send(request("/quit"))
                assert client.read_rest() == b""
        else:
            os.kill(min(before), signal.SIGKILL)
        until(lambda: program.stderr, "the log line")
        assert len(pids(program.port, 2) & before) == 1
        assert program.stop() == 0
        [line] = program.stderr.splitlines()
        assert line.endswith("died; another takes its place")


@pytest.mark.parametrize("options", ["{'workers': 2}", "{'reload': True}", "{'workers': 2, 'reload': True}"])
def test_workers_end_when_their_supervisor_is_killed(tmp_path: Path, options: str) -> None:
    with running_script(GUARDED.replace("OPTIONS", options), tmp_path) as program:
        port = program.port
        pids(port, 2 if "workers" in options else 1)
        assert program.stop(signal.SIGKILL) == -signal.SIGKILL
        until(lambda: refuses_connections(port), "the end of the workers")


@pytest.mark.slow
def test_a_worker_that_hangs_is_replaced(tmp_path: Path) -> None:
    with running_script(GUARDED.replace("OPTIONS", "{'workers': 2}"), tmp_path) as program:
        hung = min(pids(program.port, 2))
        os.kill(hung, signal.SIGSTOP)
        until(lambda: program.stderr, "the log line", seconds=30)
        assert program.stderr == f"worker process {hung} does not answer; another takes its place\n"
        assert hung not in pids(program.port, 2)
        assert program.stop() == 0


def test_sighup_replaces_the_workers_one_by_one_and_no_request_fails(tmp_path: Path) -> None:
    with running_script(GUARDED.replace("OPTIONS", "{'workers': 2, 'log_level': 'info'}"), tmp_path) as program:
        before = pids(program.port, 2)
        program.send_signal(signal.SIGHUP)
        seen: set[int] = set()

        def renewed() -> bool:
            seen.add(as_json(get(program.port, "/"))["pid"])
            return len(seen - before) == 2 and not any(map(is_alive, before))

        until(renewed, "two new workers")
        assert program.stop() == 0
        assert program.stderr == "gaman: new processes have replaced all workers (SIGHUP)\n"


def test_a_retiring_worker_still_answers_on_idle_connections(tmp_path: Path) -> None:
    with running_script(GUARDED.replace("OPTIONS", "{'workers': 2}"), tmp_path) as program, ExitStack() as stack:
        before = pids(program.port, 2)
        idle = [stack.enter_context(Connection(program.port)) for _ in range(8)]
        for client in idle[:6]:
            assert client.fetch(request("/")).status == 200
        program.send_signal(signal.SIGHUP)
        until(lambda: len(pids(program.port, 2) - before) == 2, "two new workers")
        for client in idle:
            # Successors serve before the old workers are told to end.
            while (response := client.fetch(request("/"))).headers.get("connection") != "close":
                assert as_json(response)["pid"] in before
            assert as_json(response)["pid"] in before
            assert client.read_rest() == b""
        # The old workers have no connection left.
        until(lambda: not any(map(is_alive, before)), "the end of the old workers")
        assert program.stop() == 0
        assert program.stderr == ""


def test_sighup_replaces_workers_without_waiting_for_their_requests(tmp_path: Path) -> None:
    with running_script(STREAMS.replace("OPTIONS", "{'workers': 2}"), tmp_path) as program, ExitStack() as stack:
        seen: set[int] = set()
        for _ in range(2):
            before = pids(program.port, 2)
            waiting = [stack.enter_context(Connection(program.port)) for _ in range(8)]
            for client in waiting:
                client.send(request("/stream"))
                client.read_until(b"data: here")
            program.send_signal(signal.SIGHUP)
            until(lambda old=before: not pids(program.port, 2) & old, "two new workers")  # type: ignore[misc]
            seen |= before
        # A worker that dies meanwhile is replaced, and a stop waits for all of them.
        serving = pids(program.port, 2)
        os.kill(min(serving), signal.SIGKILL)
        until(lambda: "another takes its place" in program.stderr, "the log line")
        serving = pids(program.port, 2)
        assert any(map(is_alive, seen))
        program.send_signal(signal.SIGINT)
        until(lambda: "waiting for 16 requests to finish" in program.stdout, "the line about the requests in flight")
        program.send_signal(signal.SIGINT)
        assert program.wait() == 0
        assert not any(map(is_alive, seen | serving))


def test_the_old_workers_go_on_if_the_new_code_does_not_start(tmp_path: Path) -> None:
    (tmp_path / "other.py").write_text("")
    with running_script("import other\n" + GUARDED.replace("OPTIONS", "{'workers': 2}"), tmp_path) as program:
        before = pids(program.port, 2)
        (tmp_path / "other.py").write_text("1 / 0")
        program.send_signal(signal.SIGHUP)
        until(lambda: "ended before it served; those that serve go on" in program.stderr, "the log line")
        assert program.stderr.count("ZeroDivisionError: division by zero") == 1
        assert pids(program.port, 2) == before
        (tmp_path / "other.py").write_text("")
        program.send_signal(signal.SIGHUP)
        until(lambda: not pids(program.port, 2) & before, "two new workers")
        assert program.stop() == 0


@pytest.mark.slow
def test_a_retiring_worker_closes_an_idle_connection_at_the_keep_alive_timeout(tmp_path: Path) -> None:
    with running_script(GUARDED.replace("OPTIONS", "{'workers': 2}"), tmp_path) as program:
        before = pids(program.port, 2)
        with Connection(program.port) as idle:
            get(program.port, "/")
            start = time.monotonic()
            program.send_signal(signal.SIGHUP)
            assert idle.read_rest() == b""
            assert time.monotonic() - start > 4
        until(lambda: not any(map(is_alive, before)), "the end of the old workers")
        assert program.stop() == 0


@pytest.mark.slow
def test_sighup_under_load_loses_no_request(tmp_path: Path) -> None:
    source = """
import collections, http.client, json, sys, threading, time

counts = collections.Counter()
deadline = time.monotonic() + 12

def send_requests():
    while time.monotonic() < deadline:
        client = http.client.HTTPConnection("127.0.0.1", int(sys.argv[1]), timeout=25)
        closes = False
        while not closes and time.monotonic() < deadline:
            try:
                client.request("POST", "/user", b'{"friend": null}')
                response = client.getresponse()
                response.read()
                counts[response.status] += 1
                closes = response.will_close
            except (OSError, http.client.HTTPException) as error:
                counts[type(error).__name__] += 1
                break

threads = [threading.Thread(target=send_requests) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(json.dumps(counts))
"""
    with running_script(GUARDED.replace("OPTIONS", "{'workers': 2}"), tmp_path) as program:
        clients = [subprocess.Popen([sys.executable, "-c", source, str(program.port)], stdout=subprocess.PIPE) for _ in range(2)]
        for _ in range(4):
            before = pids(program.port, 2)
            program.send_signal(signal.SIGHUP)
            until(lambda old=before: not pids(program.port, 2) & old, "two new workers")  # type: ignore[misc]
        for client in clients:
            [(status, number)] = json.loads(client.communicate()[0]).items()
            assert status == "200"
            assert number > 100
        assert program.stop() == 0


def test_a_client_that_connected_before_a_stop_may_still_send_a_request(tmp_path: Path) -> None:
    with running_script(GUARDED.replace("OPTIONS", "{}"), tmp_path) as program:
        port = program.port
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            # This connection is accepted before the next one.
            get(port, "/")
            program.send_signal(signal.SIGTERM)
            until(lambda: refuses_connections(port), "the server to stop listening")
            connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
            response = connection.recv(65_536)
        assert response.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nconnection: close\r\n" in response.lower()


@pytest.mark.parametrize("first", [signal.SIGTTOU, signal.SIGHUP])
def test_a_stop_right_after_a_worker_retires_loses_no_request(tmp_path: Path, first: signal.Signals) -> None:
    source = GRACEFUL.replace("OPTIONS", "{'workers': 2}")
    with running_script(source, tmp_path) as program, ExitStack() as stack:
        clients = [stack.enter_context(Connection(program.port)) for _ in range(8)]
        for client in clients:
            client.send(request("/"))
        until(lambda: program.stdout.count("in flight") == 8, "the requests")
        program.send_signal(first)
        if first == signal.SIGHUP:
            time.sleep(0.4)
        program.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        (tmp_path / "go").touch()
        assert [client.read().body for client in clients] == [b"finished"] * 8
        assert program.wait() == 0
        assert "Traceback" not in program.stderr


def test_workers_go_on_when_the_system_refuses_another_process(tmp_path: Path) -> None:
    source = GUARDED.replace("OPTIONS", "{'workers': 2}").replace(
        "def main():",
        """def shrink():
    import resource, time
    while not os.path.exists("shrink"):
        time.sleep(0.05)
    resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/proc/self/fd")),) * 2)
    print("shrunk", flush=True)

def main():
    import multiprocessing, threading
    if multiprocessing.parent_process() is None:
        threading.Thread(target=shrink).start()""",
    )
    with running_script(source, tmp_path) as program:
        workers = pids(program.port, 2)
        (tmp_path / "shrink").touch()
        until(lambda: "shrunk" in program.stdout, "the limit")
        program.send_signal(signal.SIGTTIN)
        until(lambda: "can't be started" in program.stderr, "the log line")
        assert pids(program.port, 2) == workers
        assert program.stop() == 0
        assert "Traceback" not in program.stderr
        assert not any(map(is_alive, workers))


def test_sigttin_and_sigttou_change_the_number_of_workers(tmp_path: Path) -> None:
    with running_script(GUARDED.replace("OPTIONS", "{'workers': 2}"), tmp_path) as program:
        pids(program.port, 2)
        program.send_signal(signal.SIGTTIN)
        three = pids(program.port, 3)
        program.send_signal(signal.SIGTTOU)
        until(lambda: sum(map(is_alive, three)) == 2, "the end of one worker")
        assert program.stop() == 0
        assert program.stderr == ""


STORED = """
import os
import gaman
from gaman.session import session

async def pid(ctx):
    return {"pid": os.getpid()}

async def visit(ctx):
    return {"visits": await ctx.session.update("visits", lambda n: n + 1, 0)}

driver = {"type": "redis", "url": URL, "timeout": 1}
gaman.serve({"/": pid, "/visit": visit}, integrations=[session("s" * 32, driver)], port=0, workers=2)
"""


@pytest.mark.slow
def test_a_worker_that_dies_while_its_store_is_down_is_restarted_until_the_store_is_back(tmp_path: Path) -> None:
    with RedisServer() as store, running_script(STORED.replace("URL", repr(store.url)), tmp_path) as program:
        one, other = pids(program.port, 2)
        assert as_json(get(program.port, "/visit")) == {"visits": 1}
        store.kill()
        os.kill(one, signal.SIGKILL)
        until(lambda: "another is tried in 2 s" in program.stderr, "the second attempt", seconds=30)
        # Requests that don't use the session are served; those that use it get 503.
        assert as_json(get(program.port, "/"))["pid"] == other
        assert get(program.port, "/visit").status == 503
        assert program.stderr.count("gaman: the session store (redis) could not be reached") == 2
        assert program.stderr.count("another takes its place") == 1
        store.start().wait()
        until(lambda: len(pids(program.port, 1) | {other}) == 2, "the other worker", seconds=30)
        assert as_json(get(program.port, "/visit")) == {"visits": 1}
        assert program.stop() == 0


def test_the_memory_driver_refuses_two_workers_in_one_line(tmp_path: Path) -> None:
    source = f"""
import gaman
from gaman.session import session
gaman.serve({{}}, integrations=[session("{"s" * 32}", {{"type": "memory"}})], port=0, workers=2)
"""
    [line] = fails_to_start(source, tmp_path)
    assert line.startswith("gaman: the memory driver keeps sessions in one process, and 2 workers")
    assert line.endswith("take cookies, file, redis, sql, mongodb, or workers=1 (script.py, line 4, in <module>)")


def test_a_script_that_fails_only_in_its_workers_stops_without_a_loop(tmp_path: Path) -> None:
    source = """
import gaman, multiprocessing
print("run", flush=True)
if multiprocessing.parent_process():
    WHAT
gaman.serve({}, port=0, workers=2)
"""
    for what, word in [
        ("raise LookupError('lost')", "LookupError: lost"),
        ("raise SystemExit", "ended with status 0 before it served"),
    ]:
        with running_script(source.replace("WHAT", what), tmp_path) as program:
            assert program.wait() == 1
            assert program.stdout == "run\nrun\n"
            assert word in program.stderr.splitlines()[-1]


def test_workers_need_a_script(tmp_path: Path) -> None:
    with running("-c", "import gaman; gaman.serve({}, port=0, workers=2)", cwd=tmp_path) as program:
        assert program.wait() == 1
        assert program.stderr.startswith("gaman: workers and reload need a script")
        assert len(program.stderr.splitlines()) == 1


# --- reload


@pytest.mark.parametrize("watcher", ["watchfiles", "gaman"])
@pytest.mark.parametrize("source", [GUARDED, UNGUARDED], ids=["guarded", "unguarded"])
def test_reload_serves_the_current_code(tmp_path: Path, source: str, watcher: str) -> None:
    other = tmp_path / "other.py"
    source = "import other\n" + source.replace("OPTIONS", "{'reload': True}").replace('"pid": os', '"word": other.WORD, "pid": os')
    if watcher == "gaman":
        source = "import sys\nsys.modules['watchfiles'] = None\n" + source
    other.write_text("WORD = 'first'")
    with running_script(source, tmp_path) as program:

        def change(content: str) -> None:
            runs = program.stdout.count("run\n")
            other.write_text(content)
            until(lambda: program.stdout.count("run\n") > runs or "Error" in program.stderr, "the next run")

        assert as_json(get(program.port, "/"))["word"] == "first"
        if watcher == "watchfiles" and sys.platform == "linux":
            until(lambda: watches_files(program.pid), "the watch for changes")
        change("WORD = 'second'")
        assert as_json(get(program.port, "/"))["word"] == "second"
        # A mistake is logged, and the next change fixes it.
        change("WORD = 1 / 0")
        until(lambda: "requests wait" in program.stderr, "the log line")
        error, line = program.stderr.splitlines()[-2:]
        assert error == "ZeroDivisionError: division by zero"
        line = re.sub(r"\d+", "N", line)
        assert line == "worker process N (status N) died before it served; requests wait until the next change starts another"
        other.write_text("WORD = 'third!'")
        assert as_json(get(program.port, "/"))["word"] == "third!"
        assert program.stop() == 0
        assert len(re.findall("detected changes in '(.*/)?other.py'. Reloading", program.stderr)) == 3
        assert program.stdout.count("after serve") == 1


@pytest.mark.parametrize("options", ["{'reload': True}", "{'reload': True, 'workers': 2}"])
def test_reload_ends_an_open_stream_and_serves_the_current_code(tmp_path: Path, options: str) -> None:
    other = tmp_path / "other.py"
    other.write_text("WORD = 'first'")
    source = "import sys\nsys.modules['watchfiles'] = None\nimport other\n" + STREAMS.replace("OPTIONS", options)
    with (
        running_script(source.replace('"pid": os', '"word": other.WORD, "pid": os'), tmp_path) as program,
        Connection(program.port) as streaming,
        Connection(program.port) as waiting,
    ):
        old = as_json(get(program.port, "/"))
        streaming.send(request("/stream"))
        streaming.read_until(b"data: here")
        waiting.send(request("/wait"))
        until(lambda: "waits" in program.stdout, "the request")
        other.write_text("WORD = 'second'")
        until(lambda: as_json(get(program.port, "/"))["word"] == "second", "the new code")
        assert not streaming.read_rest().endswith(b"0\r\n\r\n")
        assert waiting.read().status == 503
        until(lambda: not is_alive(old["pid"]), "the end of the old process")
        assert "shut down\n" in program.stdout
        assert program.stop() == 0
        [line] = program.stderr.splitlines()
        assert line.startswith("detected changes in 'other.py'")


def test_a_server_with_reload_ends_with_its_terminal(tmp_path: Path) -> None:
    with running_script(GUARDED.replace("OPTIONS", "{'reload': True}"), tmp_path) as program:
        [worker] = pids(program.port, 1)
        program.send_signal(signal.SIGHUP, to_group=True)
        assert program.wait() == 0
        assert not is_alive(worker)
        assert program.stderr == ""


def test_reload_tolerates_a_dangling_link(tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    source = GUARDED.replace("OPTIONS", "{'reload': True}").replace('"pid": os', '"word": other.WORD, "pid": os')
    other.write_text("WORD = 'first'")
    with running_script("import sys, other\nsys.modules['watchfiles'] = None\n" + source, tmp_path) as program:
        assert as_json(get(program.port, "/"))["word"] == "first"
        (tmp_path / "loop.py").symlink_to("loop.py")
        time.sleep(0.5)
        other.write_text("WORD = 'second'")
        until(lambda: "detected changes" in program.stderr, "the change")
        until(lambda: as_json(get(program.port, "/"))["word"] == "second", "the new code")
        assert "Traceback" not in program.stderr


def watches_files(pid: int) -> bool:
    folder = f"/proc/{pid}/fd"
    return any(os.readlink(f"{folder}/{number}") == "anon_inode:inotify" for number in os.listdir(folder))


def test_reload_restarts_all_workers(tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    source = "import other\n" + GUARDED.replace("OPTIONS", "{'reload': True, 'workers': 2}").replace("os.getpid()", "other.pid()")
    other.write_text("import os\ndef pid(): return os.getpid()")
    with running_script("import sys\nsys.modules['watchfiles'] = None\n" + source, tmp_path) as program:
        before = pids(program.port, 2)
        other.write_text("import os\ndef pid(): return -os.getpid()")
        until(lambda: not any(map(is_alive, before)), "the end of the workers")
        after = pids(program.port, 2)
        assert all(pid < 0 for pid in after)
        assert program.stop() == 0
        assert not any(is_alive(-pid) for pid in after)
        assert program.stdout.count("listening") == 1
        assert len(program.stderr.splitlines()) == 1


# The log


LOGGED = """
import logging
import gaman

async def home(ctx):
    return "hello"

async def broken(ctx):
    return 1 / 0

{}
gaman.serve({{"/": home, "/broken": broken}}, port=0, debug={})
"""


def stderr_of(source: str, folder: Path) -> str:
    """Return the lines on stderr about one request that succeeds and one that fails."""
    with running_script(source, folder) as program:
        with Connection(program.port) as connection:
            connection.fetch(request("/"))
            connection.fetch(request("/broken"))
        assert program.stop() == 0
        return program.stderr


def test_debug_logs_each_request_to_stderr(tmp_path: Path) -> None:
    first, failed, *traceback, last = stderr_of(LOGGED.format("", True), tmp_path).splitlines()
    assert re.fullmatch(r"gaman: GET '/' 200 in \d+\.\d ms", first)
    assert failed == "gaman: GET '/broken' failed"
    assert traceback[-1] == "ZeroDivisionError: division by zero"
    assert re.fullmatch(r"gaman: GET '/broken' 500 in \d+\.\d ms", last)


def test_without_debug_only_failures_are_logged(tmp_path: Path) -> None:
    first, *_ = stderr_of(LOGGED.format("", False), tmp_path).splitlines()
    assert first == "GET '/broken' failed"


@pytest.mark.parametrize(("level", "count"), [("INFO", 2), ("WARNING", 0)])
def test_debug_leaves_the_logging_of_the_user_unchanged(tmp_path: Path, level: str, count: int) -> None:
    setting = f"logging.basicConfig(level='{level}', format='mine: %(name)s %(status)s', force=True)\n"
    setting += "logging.getLogger().handlers[0].addFilter(lambda record: hasattr(record, 'status'))"
    stderr = stderr_of(LOGGED.format(setting, True), tmp_path)
    assert stderr.splitlines() == ["mine: gaman 200", "mine: gaman 500"][:count]
