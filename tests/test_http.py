"""The server's HTTP/1.1, over real sockets: what a client may send, and how the server responds."""

from __future__ import annotations

import itertools
import json
import re
import select
import signal
import socket
import time
from collections.abc import Generator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from tests.serving import PATIENCE, Connection, ParsedResponse, Program, get, request, running_script, until

SERVED = """
import asyncio, logging, resource, sys, time
import gaman
from gaman import Response

streams_open = 0

def describe(ctx):
    return {
        "method": ctx.method, "path": ctx.path, "host": ctx.host, "ip": ctx.ip, "cookie": ctx.cookie("a"),
        "x": ctx.header("x-test"), "fields": [name.decode() for name, _ in ctx.scope["headers"]],
    }

async def echo(ctx):
    before = describe(ctx)
    body = await ctx.body()
    return {"before": before, "after": describe(ctx), "body": body.decode()}

async def late(ctx):
    await asyncio.sleep(0.01)
    return {"body": (await ctx.body()).decode(), "n": ctx.query.get("n")}

async def ignore(ctx):
    return "not read"

released = asyncio.Event()

async def hold(ctx):
    await released.wait()
    return "held"

async def release(ctx):
    released.set()
    return "released"

async def slow(ctx):
    await asyncio.sleep(2.5)
    return "slow"

async def busy(ctx):
    size = len(await ctx.body())
    await asyncio.sleep(2.2)
    return str(size)

async def ticks(pause):
    global streams_open
    streams_open += 1
    try:
        for i in range(3):
            yield f"tick {i};"
            await asyncio.sleep(pause)
    finally:
        streams_open -= 1

async def tick(ctx):
    return Response.stream(ticks(0.02), content_type="text/plain")

async def endless(ctx):
    return Response.stream(ticks(3600), content_type="text/plain")

async def poll(ctx):
    global streams_open
    await ctx.body()
    streams_open += 1
    await ctx.disconnected()
    streams_open -= 1
    return "disconnected"

async def large(ctx):
    return bytes(1 << int(ctx.query.get("log", "25")))

async def closing(ctx):
    return Response(bytes(1 << 23), headers={"connection": "close"})

async def block(ctx):
    time.sleep(0.0005)
    return "blocked"

async def breaks(ctx):
    async def chunks():
        yield b"first"
        await asyncio.sleep(0.05)
        yield 1
    return Response.stream(chunks())

async def framed(ctx):
    headers = [tuple(pair) for pair in await ctx.json()]
    return Response("body", headers=headers) if ctx.query.get("stream") is None else Response.stream(ticks(0), headers=headers)

async def cancelled(ctx):
    task = asyncio.create_task(asyncio.sleep(60))
    await asyncio.sleep(0)
    task.cancel()
    await task

async def injected(ctx):
    response = Response.stream(ticks(0))
    response.raw_headers.append((b"x", b"1\\r\\nset-cookie: evil"))
    return response

async def state(ctx):
    return {
        "tasks": len(asyncio.all_tasks()), "streams": streams_open,
        "peak_kib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (10 if sys.platform == "darwin" else 0),
    }

routes = {
    "/echo": echo, "/late": late, "/ignore": ignore, "/hold": hold, "/release": release, "/slow": slow, "/busy": busy,
    "/tick": tick, "/closing": closing, "/block": block, "/breaks": breaks, "/endless": endless,
    "/poll": poll, "/large": large, "/state": state, "/framed": framed,
    "/cancelled": cancelled, "/injected": injected,
}
gaman.serve(routes, port=0, OPTIONS)
"""


class Served:
    """The server of SERVED, and what it reports about itself."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self.port = program.port

    def state(self) -> dict[str, int]:
        state: dict[str, int] = json.loads(get(self.port, "/state", "Connection: close").body)
        return state

    def exchange(self, *packets: bytes) -> list[ParsedResponse]:
        """Send *packets*, each in its own segment, and return all responses until the server closes."""
        with Connection(self.port) as client:
            client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            for packet in packets:
                client.send(packet)
                time.sleep(0.005)
            return responses(client.read_rest())


def responses(octets: bytes) -> list[ParsedResponse]:
    """Return the responses in *octets*, without interim ones (1xx); AssertionError if one is incomplete."""
    found: list[ParsedResponse] = []
    while octets:
        head, end, octets = octets.partition(b"\r\n\r\n")
        assert end, head
        first, *lines = head.decode("latin-1").split("\r\n")
        status = int(first.split(" ")[1])
        if status < 200:
            continue
        pairs = [(name.lower(), value) for name, _, value in (line.partition(": ") for line in lines)]
        headers = dict(pairs)
        assert len(headers) == len(pairs), head
        if headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(octets.split(b"\r\n", 1)[0], 16):
                octets = octets.split(b"\r\n", 1)[1]
                body += octets[:size]
                assert octets[size : size + 2] == b"\r\n"
                octets = octets[size + 2 :]
            last, octets = octets.split(b"\r\n\r\n", 1)
            assert set(last) <= set(b"0")
        else:
            length = int(headers.get("content-length", len(octets)))
            assert len(octets) >= length
            body, octets = octets[:length], octets[length:]
        found.append(ParsedResponse(status, headers, body))
    return found


def last(target: str, *headers: str, method: str = "GET", body: bytes = b"") -> bytes:
    """Return a request with `Connection: close`."""
    return request(target, "Connection: close", *headers, method=method, body=body)


def chunked(*chunks: bytes, trailers: bytes = b"") -> bytes:
    return b"".join([b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks]) + b"0\r\n" + trailers + b"\r\n"


def drip(client: Connection) -> None:
    """Send an octet ten times a second, for at most ten seconds."""
    for _ in range(100):
        client.send(b"x")
        time.sleep(0.1)


def bytewise(octets: bytes) -> list[bytes]:
    return [octets[i : i + 1] for i in range(len(octets))]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Generator[Served]:
    source = SERVED.replace("OPTIONS", "")
    with running_script(source, tmp_path_factory.mktemp("served")) as program:
        yield Served(program)
        assert program.stop() == 0, program.stderr
        assert program.stderr == ""


@pytest.fixture(scope="module")
def impatient(tmp_path_factory: pytest.TempPathFactory) -> Generator[Served]:
    """A server with timeout_request=1."""
    source = SERVED.replace("OPTIONS", "timeout_request=1")
    with running_script(source, tmp_path_factory.mktemp("impatient")) as program:
        yield Served(program)
        assert program.stop() == 0, program.stderr


# --- trailers

FORGED = b"X-Test: forged\r\nHost: evil.example\r\nX-Forwarded-For: 192.0.2.66\r\nCookie: a=forged\r\n"


@pytest.mark.parametrize("cut", ["one packet", "after the head", "before the trailers", "bytewise"])
def test_trailers_are_not_header_fields(served: Served, cut: str) -> None:
    head = last("/echo", "Transfer-Encoding: chunked", "Trailer: X-Test", method="POST")
    body = chunked(b"hello", trailers=FORGED)
    packets = {
        "one packet": [head + body],
        "after the head": [head, body],
        "before the trailers": [head + body.partition(FORGED)[0], FORGED + b"\r\n"],
        "bytewise": [head, *bytewise(body)],
    }[cut]
    [response] = served.exchange(*packets)
    seen = json.loads(response.body)
    assert seen["body"] == "hello"
    assert seen["before"] == seen["after"]
    assert (seen["after"]["x"], seen["after"]["cookie"], seen["after"]["host"], seen["after"]["ip"]) == (
        None,
        None,
        "test",
        "127.0.0.1",
    )


@pytest.mark.parametrize("endless", [b"X: " + b"x" * 65536, b"X: 1\r\n" * 10_000])
@pytest.mark.parametrize(
    "begin", [b"0\r\n", b"5\r\nhello\r\n0\r\n", b"5;", b"5;x="], ids=["trailers", "more", "extension", "value"]
)
def test_endless_trailers_and_chunk_extensions_end_the_connection(served: Served, begin: bytes, endless: bytes) -> None:
    before = served.state()["peak_kib"]
    with Connection(served.port) as client:
        client.send(request("/echo", "Transfer-Encoding: chunked", method="POST") + begin)
        sent = 0
        while not select.select([client.socket], [], [], 0)[0]:
            client.send(endless.replace(b"\r\n", b"") if b";" in begin else endless)
            sent += len(endless)
            assert sent < 1 << 26, "it took 64 MB"
        assert client.read("POST").status in (400, 431)
    assert served.state()["peak_kib"] - before < 16_000


# --- upgrades that are not accepted


@pytest.mark.parametrize("cut", ["one packet", "after the head", "before the next", "bytewise"])
@pytest.mark.parametrize("framing", ["length", "chunked", "none"])
@pytest.mark.parametrize(
    ("method", "offer"),
    [
        ("POST", ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAMAAABkAAQAoAAAAAIAAAAA")),
        ("GET", ("Connection: upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZQ==")),
        ("PUT", ("Upgrade: TLS/1.0, foo", "Connection: keep-alive, Upgrade")),
        ("DELETE", ("upgrade: a", "UPGRADE: b", "connection: UPGRADE")),
    ],
)
def test_a_request_that_offers_an_upgrade_is_served_like_any_other(
    served: Served, method: str, offer: tuple[str, ...], framing: str, cut: str
) -> None:
    body, fields = b"", offer
    if framing == "length":
        body, fields = b"GET /evil HTTP/1.1\r\n\r\n", (*offer, "Content-Length: 22")
    elif framing == "chunked":
        body, fields = chunked(b"GET /evil", b" HTTP/1.1\r\n\r\n"), (*offer, "Transfer-Encoding: chunked")
    head = request("/echo", *fields, method=method)
    following = request("/late?n=2") + last("/late?n=3")
    packets = {
        "one packet": [head + body + following],
        "after the head": [head, body + following],
        "before the next": [head + body, following],
        "bytewise": [*bytewise(head + body), following],
    }[cut]
    first, second, third = served.exchange(*packets)
    seen = json.loads(first.body)
    assert seen["body"] == ("GET /evil HTTP/1.1\r\n\r\n" if body else "")
    assert seen["after"]["method"] == method
    assert "upgrade" in seen["after"]["fields"]
    assert "connection" not in first.headers
    assert (json.loads(second.body)["n"], json.loads(third.body)["n"]) == ("2", "3")


def test_pipelined_upgrade_offers_are_each_answered_once(served: Served) -> None:
    offer = ("Connection: Upgrade", "Upgrade: h2c")
    found = served.exchange(
        b"".join([request(f"/late?n={n}", *offer, method="POST", body=b"%d" % n) for n in range(200)]) + last("/ignore", *offer)
    )
    assert [json.loads(each.body) for each in found[:-1]] == [{"body": str(n), "n": str(n)} for n in range(200)]
    assert found[-1].status == 200


@pytest.mark.parametrize(
    "octets",
    [
        b"CONNECT test:443 HTTP/1.1\r\nHost: test\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/2.0\r\nHost: test\r\n\r\n",
    ],
)
def test_a_tunnel_and_another_version_are_refused(served: Served, octets: bytes) -> None:
    [response] = served.exchange(octets)
    assert response.status in (400, 405, 501, 505)
    assert response.headers["connection"] == "close"


def test_an_unknown_transfer_coding_is_refused(served: Served) -> None:
    [response] = served.exchange(request("/echo", "Transfer-Encoding: gzip, chunked", method="POST") + chunked(b"x"))
    assert response.status == 501


# --- requests parsed ahead


def test_only_a_few_requests_are_parsed_ahead_of_the_current_one(served: Served) -> None:
    before = served.state()["peak_kib"]
    with ExitStack() as stack:
        for _ in range(10):
            client = stack.enter_context(Connection(served.port))
            client.send(request("/hold"))
            client.socket.setblocking(False)
            try:
                while True:
                    client.socket.send(request("/ignore") * 1000)
            except BlockingIOError:
                pass
        for _ in range(3):
            assert served.state()["tasks"] < 20
        # If they were all parsed, the requests of one connection would take 34 MB.
        assert served.state()["peak_kib"] - before < 40_000
    assert get(served.port, "/release").status == 200


def test_any_number_of_requests_in_one_segment_is_answered_in_order(served: Served) -> None:
    with Connection(served.port) as client:
        client.send(b"".join([request(f"/late?n={n}", method="POST", body=b"\r\n\r\n" * n) for n in range(150)]) + last("/ignore"))
        found = responses(client.read_rest())
    assert [json.loads(each.body)["n"] for each in found[:-1]] == [str(n) for n in range(150)]
    assert [len(json.loads(each.body)["body"]) for each in found[:-1]] == [4 * n for n in range(150)]


def test_a_body_that_consists_of_ends_of_heads_arrives_whole(served: Served) -> None:
    for body in (b"\r\n\r\n" * 100_000, b"\r\n" * 100_000):
        first, second = served.exchange(request("/echo", method="POST", body=body) + last("/ignore"))
        assert json.loads(first.body)["body"].encode() == body
        assert second.body == b"not read"


@pytest.mark.parametrize(
    "behind", [b"\xff\xff\xff\r\n\r\n", b"GET / HTTP/1.1\r\nBad\x00: 1\r\n\r\n", request("/", *["X: 1"] * 300)]
)
def test_a_malformed_request_is_answered_after_those_before_it(served: Served, behind: bytes) -> None:
    first, second, third = served.exchange(request("/late?n=1") + request("/late?n=2") + behind + request("/late?n=3"))
    assert (json.loads(first.body)["n"], json.loads(second.body)["n"]) == ("1", "2")
    assert third.status in (400, 431)
    assert third.headers["connection"] == "close"


def test_a_body_that_becomes_malformed_gets_400(served: Served) -> None:
    head = request("/echo", "Transfer-Encoding: chunked", method="POST")
    for packets in ([head + b"5\r\nhello\r\nxyz\r\n"], [head, b"5\r\nhello\r\n", b"xyz\r\n"]):
        [response] = served.exchange(*packets)
        assert response.status == 400


@pytest.mark.parametrize(("count", "status"), [(255, 200), (257, 431), (20_000, 431)])
def test_a_request_has_at_most_256_fields(served: Served, count: int, status: int) -> None:
    [response] = served.exchange(last("/ignore", *["X: 1"] * (count - 2)))
    assert response.status == status


def test_a_target_that_takes_long_to_decode_is_refused(served: Served) -> None:
    [response] = served.exchange(request("/" + "%41" * 30_000))
    assert response.status == 414
    [response] = served.exchange(last("/%41" * 15_000))
    assert response.status == 400


# --- silent clients


@pytest.mark.parametrize(
    "octets",
    [
        b"G",
        b"GET /ignore HTTP/1.1\r\nHost: te",
        request("/echo", "Content-Length: 10", method="POST") + b"x",
        request("/echo", "Transfer-Encoding: chunked", method="POST") + b"5\r\nhel",
    ],
)
def test_a_client_that_falls_silent_within_a_request_gets_408(impatient: Served, octets: bytes) -> None:
    [response] = impatient.exchange(octets)
    assert response.status == 408
    assert response.headers["connection"] == "close"


def test_a_client_that_sends_nothing_is_disconnected_without_a_response(impatient: Served) -> None:
    with Connection(impatient.port) as client, Connection(impatient.port) as other:
        other.send(b"\r\n")
        assert client.read_rest() == other.read_rest() == b""


def test_the_timeout_of_a_head_begins_at_its_first_byte(impatient: Served) -> None:
    with Connection(impatient.port) as client:
        client.send(b"GET /ignore HTTP/1.1\r\n")
        while not select.select([client.socket], [], [], 0.2)[0]:
            client.send(b"X: 1\r\n")
        assert client.read().status == 408


def test_the_timeout_of_a_body_begins_at_each_byte(impatient: Served) -> None:
    with Connection(impatient.port) as client:
        client.send(request("/echo", "Content-Length: 10", method="POST"))
        for _ in range(10):
            time.sleep(0.25)
            client.send(b"x")
        assert client.read("POST").status == 200


def test_a_client_that_waits_for_the_server_is_not_silent(impatient: Served) -> None:
    with Connection(impatient.port) as held, Connection(impatient.port) as expecting:
        held.send(request("/hold"))
        expecting.send(request("/hold", "Expect: 100-continue", "Content-Length: 5", method="POST"))
        time.sleep(3)
        assert get(impatient.port, "/release").status == 200
        assert (held.read().body, expecting.read("POST").body) == (b"held", b"held")


def test_an_incomplete_request_behind_a_slow_one_gets_408_after_it(impatient: Served) -> None:
    with Connection(impatient.port) as client:
        client.send(request("/late?n=1") + b"GET /ignore HTT")
        first, second = responses(client.read_rest())
    assert (first.status, second.status) == (200, 408)


def test_a_request_that_the_server_has_paused_does_not_time_out(impatient: Served) -> None:
    with Connection(impatient.port) as client:
        client.send(request("/slow") + request("/ignore") + b"GET /ignore HTTP/1.1\r\nHost: test\r\n")
        time.sleep(2)
        client.send(b"Connection: close\r\n\r\n")
        assert [response.body for response in responses(client.read_rest())] == [b"slow", b"not read", b"not read"]


def test_a_client_that_reads_nothing_of_its_response_is_disconnected(impatient: Served) -> None:
    idle = impatient.state()["tasks"]
    with Connection(impatient.port) as open_one, Connection(impatient.port) as closing_one:
        open_one.send(request("/large"))
        closing_one.send(last("/large"))
        time.sleep(4)
        for client in (open_one, closing_one):
            # The connection was reset, or ends after what had been sent.
            with suppress(ConnectionResetError):
                assert len(client.read_rest()) < 1 << 25
        assert impatient.state()["tasks"] <= idle


def test_silence_is_logged_once(impatient: Served) -> None:
    with Connection(impatient.port) as client, Connection(impatient.port) as other:
        for each in (client, other):
            each.send(b"G")
        for each in (client, other):
            assert [response.status for response in responses(each.read_rest())] == [408]
    assert impatient.program.stderr.count("a client was silent within its request for timeout_request=1 seconds") == 1


def test_connections_beyond_the_limit_get_503(tmp_path: Path) -> None:
    with running_script(SERVED.replace("OPTIONS", "max_connections=20"), tmp_path) as program, ExitStack() as stack:
        port = program.port
        clients = [stack.enter_context(Connection(port)) for _ in range(40)]
        for client in clients:
            client.send(request("/ignore"))
        statuses = [client.read().status for client in clients]
        assert sorted(statuses) == [200] * 20 + [503] * 20
        for client in clients:
            client.socket.close()
        assert get(port, "/ignore").status in (200, 503)
        until(lambda: get(port, "/ignore").status == 200, "a place")
        assert program.stderr.count("max_connections=20") == 1


@pytest.mark.parametrize(
    ("option", "word"), [("timeout_request=0", "timeout_request=0 "), ("max_connections=0", "max_connections=0 ")]
)
def test_a_limit_that_allows_nothing_is_an_error_at_the_start(tmp_path: Path, option: str, word: str) -> None:
    with running_script(SERVED.replace("OPTIONS", option), tmp_path) as program:
        assert program.wait() == 1
        [line] = program.stderr.splitlines()
        assert line.startswith(f"gaman: {word}")


# --- clients that half-close, and clients that disconnect


@pytest.mark.parametrize("target", ["/late?n=1", "/tick", "/echo"])
def test_clients_that_half_close_get_their_responses(served: Served, target: str) -> None:
    with ExitStack() as stack:
        clients = [stack.enter_context(Connection(served.port)) for _ in range(50)]
        for client in clients:
            client.send(request(target, method="POST", body=b"x"))
            client.socket.shutdown(socket.SHUT_WR)
        for client in clients:
            [response] = responses(client.read_rest())
            assert response.status == 200
            if target == "/tick":
                assert response.body == b"tick 0;tick 1;tick 2;"


@pytest.mark.parametrize("pause", [0, 0.0002, 0.005])
def test_a_response_in_the_outbox_is_sent_to_a_client_that_half_closes(served: Served, pause: float) -> None:
    # With another request in flight, because a single response would be sent at once.
    with Connection(served.port) as other:
        other.send(request("/poll"))
        until(lambda: served.state()["streams"] > 0, "the other request")
        for target in ["/block", "/ignore"] * 20:
            with Connection(served.port) as client:
                client.send(request(target))
                time.sleep(pause)
                client.socket.shutdown(socket.SHUT_WR)
                assert [response.status for response in responses(client.read_rest())] == [200]
        assert served.state()["streams"] > 0


def test_a_client_that_half_closes_after_several_requests_gets_every_response(served: Served) -> None:
    with Connection(served.port) as client:
        client.send(request("/late?n=1") + request("/tick") + request("/late?n=3") + b"GET /half")
        client.socket.shutdown(socket.SHUT_WR)
        found = responses(client.read_rest())
    assert [response.status for response in found] == [200, 200, 200]


def test_a_client_that_half_closes_within_its_request_is_disconnected(served: Served) -> None:
    for octets in (b"GET /ig", request("/late", "Content-Length: 9", method="POST") + b"x", b""):
        with Connection(served.port) as client:
            client.send(octets)
            client.socket.shutdown(socket.SHUT_WR)
            assert client.read_rest() == b""


@pytest.mark.parametrize("how", ["close", "reset", "half-close, then close"])
def test_handlers_end_when_their_client_disconnects(served: Served, how: str) -> None:
    behind = (b"", request("/ignore"), b"GET /half")
    until(lambda: served.state()["streams"] == 0, "an idle server")
    with ExitStack() as stack:
        for target, octets in [*itertools.product(("/endless", "/poll"), behind), ("/endless", request("/ignore") * 20_000)]:
            client = stack.enter_context(Connection(served.port))
            client.send(request(target))
            if target == "/endless":
                client.read_until(b"tick 0;")
            client.socket.setblocking(False)
            with suppress(BlockingIOError):
                client.socket.send(octets)
            if how == "half-close, then close":
                client.socket.shutdown(socket.SHUT_WR)
            elif how == "reset":
                stack.callback(client.reset)
        until(lambda: served.state()["streams"] == 7, "the streams")
        time.sleep(0.1)
        assert served.state()["streams"] == 7
    until(lambda: served.state()["streams"] == 0, "the end of the streams")


def test_a_stream_whose_client_has_disconnected_does_not_delay_the_stop(tmp_path: Path) -> None:
    with running_script(SERVED.replace("OPTIONS", ""), tmp_path) as program:
        with Connection(program.port) as client:
            client.send(request("/endless") + request("/ignore"))
            client.read_until(b"tick 0;")
        assert program.stop() == 0
        assert "Traceback" not in program.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "octets", [b"GET /endless HTTP/1.0\r\n\r\n", request("/endless"), request("/endless") + request("/ignore")]
)
def test_handlers_end_however_late_their_client_disconnects(impatient: Served, octets: bytes) -> None:
    until(lambda: impatient.state()["streams"] == 0, "an idle server")
    with Connection(impatient.port) as client:
        client.send(octets)
        client.read_until(b"tick 0;")
        client.socket.shutdown(socket.SHUT_WR)
        time.sleep(3)
        assert impatient.state()["streams"] == 1
    # Until Linux forgets the connection that the client has closed, it acknowledges what the server sends.
    until(lambda: impatient.state()["streams"] == 0, "the end of the stream", seconds=90)


@pytest.mark.parametrize("behind", [b"GET /x", request("/echo", "Content-Length: 9", method="POST") + b"x"])
def test_a_client_that_disconnects_after_the_idle_timeout_is_noticed(impatient: Served, behind: bytes) -> None:
    until(lambda: impatient.state()["streams"] == 0, "an idle server")
    with Connection(impatient.port) as client:
        client.send(request("/endless") + request("/ignore") + behind)
        client.read_until(b"tick 0;")
        time.sleep(2.5)
        client.reset()
    until(lambda: impatient.state()["streams"] == 0, "the end of the stream")


def test_a_connected_client_gets_only_its_response(served: Served) -> None:
    # The body is so large that the server pauses reading while the handler is busy.
    with Connection(served.port) as client:
        client.send(request("/busy", method="POST", body=bytes(900_000)))
        client.send(request("/busy", "Connection: close", method="POST", body=bytes(300_000)))
        octets = client.read_rest()
    assert octets.count(b"HTTP/1.1 ") == 2
    assert [response.body for response in responses(octets)] == [b"900000", b"300000"]


# --- the end of a connection


@pytest.mark.parametrize(
    ("first", "second"),
    [
        (b"GET /large?log=23 HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n", b"\r\n"),
        (b"GET /large?log=23 HTTP/1.0\r\n\r\n", b"\r\n"),
        (request("/closing"), request("/ignore")),
        (request("/large?log=22", "Transfer-Encoding: chunked", method="POST"), b"zz\r\nmore"),
        (request("/closing", "Content-Length: 1000", method="POST"), b"x" * 100),
    ],
)
def test_the_last_response_arrives_whole_whatever_the_client_sends_meanwhile(served: Served, first: bytes, second: bytes) -> None:
    with Connection(served.port) as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        client.send(first)
        for _ in range(3):
            time.sleep(0.05)
            client.send(second)
        octets = b""
        while part := client.socket.recv(1 << 16):
            octets += part
            time.sleep(0.001)
    [response] = responses(octets)
    assert len(response.body) == (1 << 22 if b"log=22" in first else 1 << 23)


@pytest.mark.parametrize("how", ["idle", "stopped", "stopped, and asked again"])
def test_a_client_that_still_reads_the_last_response_is_not_idle(tmp_path: Path, how: str) -> None:
    with running_script(SERVED.replace("OPTIONS", ""), tmp_path) as program, Connection(program.port) as client:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        if how == "stopped, and asked again":
            client.fetch(request("/ignore"))
            program.send_signal(signal.SIGTERM)
            time.sleep(0.3)
        client.send(request("/large?log=23"))
        octets, start = b"", time.monotonic()
        while True:
            octets += client.socket.recv(1 << 16)
            if how == "stopped" and not octets[1 << 17 :] and len(octets) > 1 << 16:
                program.send_signal(signal.SIGTERM)
            # This would reset a connection that the server has already closed.
            if time.monotonic() - start > 1:
                with suppress(ConnectionError):
                    client.send(b"x" if "asked" in how else b"\r\n")
            if len(octets) > 1 << 23:
                break
            time.sleep(0.03 if how == "idle" else 0.02)
        assert len(responses(octets)[0].body) == 1 << 23


def test_a_stream_of_http_1_0_that_ends_with_its_unfinished_request_does_not_look_complete(served: Served) -> None:
    with Connection(served.port) as client:
        client.send(b"POST /tick HTTP/1.0\r\nContent-Length: 10\r\n\r\nabc")
        client.read_until(b"tick 0;")
        client.socket.shutdown(socket.SHUT_WR)
        with pytest.raises(ConnectionResetError):
            client.read_rest()


def test_a_client_that_never_closes_is_disconnected(served: Served) -> None:
    with Connection(served.port) as client:
        client.send(last("/ignore"))
        assert responses(client.read_rest())
        # The server has closed its side for writing, and resets the connection once it closes it for reading.
        with pytest.raises(ConnectionError):
            drip(client)


def test_a_closed_connection_is_freed_without_the_garbage_collector(tmp_path: Path) -> None:
    source = """
import gc, gaman
gc.disable()
async def count(ctx):
    return str(sum(type(each).__module__ == "gaman._server._http" for each in gc.get_objects()))
gaman.serve({"/": count}, port=0)
"""
    with running_script(source, tmp_path) as program:
        for _ in range(20):
            get(program.port, "/")
        until(lambda: get(program.port, "/").body == b"1", "the end of the other connections")


@pytest.mark.parametrize("version", ["1.0", "1.1"])
def test_a_response_that_breaks_off_does_not_look_complete(tmp_path: Path, version: str) -> None:
    with running_script(SERVED.replace("OPTIONS", ""), tmp_path) as program, Connection(program.port) as client:
        client.send(f"GET /breaks HTTP/{version}\r\nHost: test\r\n\r\n".encode())
        client.read_until(b"first")
        if version == "1.0":
            with pytest.raises(ConnectionResetError):
                client.read_rest()
        else:
            assert client.read_rest() in (b"", b"\r\n")
        [line] = program.stderr.splitlines()
        assert "ResultError" in line


def test_a_client_that_keeps_sending_requests_does_not_delay_the_stop(tmp_path: Path) -> None:
    with running_script(SERVED.replace("OPTIONS", ""), tmp_path) as program, Connection(program.port) as client:
        client.send(request("/late") * 5)
        client.socket.setblocking(False)
        start = time.monotonic()
        program.send_signal(signal.SIGTERM)
        received = b""
        while not program.has_ended():
            with suppress(OSError):
                client.socket.send(request("/late") * 5)
            with suppress(OSError):
                received += client.socket.recv(1 << 16)
            time.sleep(0.005)
            assert time.monotonic() - start < PATIENCE
        with suppress(OSError):
            received += client.socket.recv(1 << 16)
        *others, final = responses(received)
        assert final.headers["connection"] == "close"
        assert all("connection" not in response.headers for response in others)
        assert {response.status for response in (*others, final)} == {200}


def test_the_body_behind_an_early_response_times_out(impatient: Served) -> None:
    with Connection(impatient.port) as client:
        client.send(request("/ignore", "Content-Length: 99999999", method="POST"))
        assert client.read("POST").status == 200
        with pytest.raises(ConnectionError):
            drip(client)


# --- Expect: 100-continue


def test_a_client_that_expects_100_continue_gets_it(served: Served) -> None:
    with Connection(served.port) as client:
        client.send(request("/echo", "Expect: 100-continue", "Content-Length: 5", method="POST"))
        client.read_until(b"HTTP/1.1 100 Continue\r\n\r\n")
        client.send(b"hello")
        assert json.loads(client.read("POST").body)["body"] == "hello"
        assert client.fetch(request("/ignore")).body == b"not read"


def test_a_response_without_100_continue_ends_the_connection(served: Served) -> None:
    with Connection(served.port) as client:
        client.send(request("/ignore", "Expect: 100-continue", "Content-Length: 44", method="POST"))
        response = client.read("POST")
        assert (response.status, response.headers["connection"]) == (200, "close")
        client.send(b"GET /ignore HTTP/1.1\r\nHost: test\r\nX: 1234\r\n\r\n")
        assert client.read_rest() == b""


@pytest.mark.parametrize("expectation", ["100-continue ", "100-CONTINUE\t", "x, 100-continue", "100-continue\r\nExpect: x"])
def test_an_expectation_may_be_one_of_several(served: Served, expectation: str) -> None:
    fields = (f"Expect: {expectation}", "Content-Length: 5")
    with Connection(served.port) as client:
        client.send(request("/echo", *fields, method="POST"))
        client.read_until(b"HTTP/1.1 100 Continue\r\n\r\n")
    [response] = served.exchange(request("/ignore", *fields, method="POST"))
    assert response.headers["connection"] == "close"


def test_blanks_after_a_value_are_stripped(served: Served) -> None:
    fields = ("Transfer-Encoding: chunked ", "X-Test: value \t ", "Connection: close")
    [response] = served.exchange(request("/echo", *fields, method="POST") + chunked(b"x"))
    seen = json.loads(response.body)
    assert (seen["body"], seen["before"]["x"]) == ("x", "value")


@pytest.mark.parametrize(
    "octets", [request("/ignore", "Expect: 100-continue"), request("/echo", "Expect: 100-continue", method="POST", body=b"x")]
)
def test_an_expectation_with_the_body_already_there_keeps_the_connection(served: Served, octets: bytes) -> None:
    first, second = served.exchange(octets + last("/ignore"))
    assert (first.status, second.body) == (200, b"not read")
    assert "connection" not in first.headers


# --- framing


def test_a_stream_to_a_client_of_http_1_0_ends_with_the_connection(served: Served) -> None:
    [response] = served.exchange(b"GET /tick HTTP/1.0\r\n\r\n")
    assert response.body == b"tick 0;tick 1;tick 2;"
    assert "transfer-encoding" not in response.headers
    assert "content-length" not in response.headers
    assert response.headers["connection"] == "close"


def test_a_response_to_head_has_no_body_whatever_the_version(served: Served) -> None:
    for target in ("/tick", "/ignore"):
        with Connection(served.port) as client:
            client.send(request(target, method="HEAD") + f"HEAD {target} HTTP/1.0\r\n\r\n".encode())
            assert re.fullmatch(rb"(HTTP/1.1 200 OK\r\n([^\r\n]+\r\n)+\r\n){2}", client.read_rest())


def test_the_host_of_an_absolute_target_replaces_the_field(served: Served) -> None:
    [response] = served.exchange(b"GET http://example.com:81/echo?x#y HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
    seen = json.loads(response.body)["before"]
    assert (seen["host"], seen["path"]) == ("example.com:81", "/echo")
    [response] = served.exchange(b"GET HTTP://example.com?x HTTP/1.0\r\n\r\n")
    assert response.status == 404


def test_a_date_of_the_handler_replaces_the_servers(served: Served) -> None:
    date = "Sun, 06 Nov 1994 08:49:37 GMT"
    [response] = served.exchange(last("/framed", method="POST", body=json.dumps([["Date", date]]).encode()))
    assert response.headers["date"] == date


def test_an_application_that_fails_after_its_response_or_sends_none_is_logged_with_the_request(tmp_path: Path) -> None:
    source = """
import gaman
async def app(scope, receive, send):
    if scope["path"] == "/none":
        return
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body", "body": b"done", "more_body": scope["path"] == "/half"})
    raise LookupError("late")
gaman.serve(app, port=0)
"""
    with running_script(source, tmp_path) as program:
        for target in ("/none", "/done", "/half"):
            with Connection(program.port) as client:
                client.send(last(target))
                client.read_rest()
        assert program.stop() == 0
        titles = [line for line in program.stderr.splitlines() if line.startswith("GET")]
    assert titles == [
        "GET '/none': the application returned without a response",
        "GET '/done' failed after its response",
        "GET '/half' broke off",
    ]


def test_a_mistake_of_the_application_gets_500_in_one_framing(tmp_path: Path) -> None:
    with running_script(SERVED.replace("OPTIONS", ""), tmp_path) as program:
        for target in ("/cancelled", "/injected"):
            with Connection(program.port) as client:
                client.send(request(target))
                [response] = responses(client.read_rest())
            assert (response.status, response.body) == (500, b"500 Internal Server Error")
        assert program.stop() == 0
        assert program.stderr.startswith("GET '/cancelled' failed\nTraceback (most recent call last):\n")
        assert program.stderr.count("CancelledError") == 1
        assert "a header of the response holds CR, LF or NUL" in program.stderr
