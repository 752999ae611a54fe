from __future__ import annotations

import asyncio
import copy
import gc
import json
import logging
import re
import warnings
from collections.abc import AsyncIterator, Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import msgspec
import pytest
from starlette.exceptions import HTTPException

from gaman import (
    App,
    Context,
    Handler,
    HeaderError,
    HTTPError,
    Integration,
    InvalidInput,
    Response,
    ResultError,
    define_integration,
)
from gaman.errors import a_type
from tests.asgi import Exchange, Fetch, http_scope
from tests.serving import SERVES, Connection, Program, request, running_script, until

pytestmark = pytest.mark.anyio

INJECTIONS = ["/x\r\nSet-Cookie: a=b", "/x\ny", "/x\ry", "/x\x00y"]


@dataclass
class User:
    name: str


class Point(msgspec.Struct):
    x: int


def returning(result: Any) -> Handler:
    async def returning(ctx: Context) -> Any:
        return result

    return returning


async def raising(ctx: Context) -> None:
    raise ValueError


# What a handler returns


@pytest.mark.parametrize(
    ("result", "kind", "body"),
    [
        pytest.param("hello", "text/plain; charset=utf-8", b"hello", id="str"),
        pytest.param("caf\xe9", "text/plain; charset=utf-8", b"caf\xc3\xa9", id="str beyond ascii"),
        pytest.param(
            "<!doctype html><script>x()</script>", "text/plain; charset=utf-8", b"<!doctype html><script>x()</script>", id="markup"
        ),
        pytest.param('{"a": 1}', "text/plain; charset=utf-8", b'{"a": 1}', id="text that looks like JSON"),
        pytest.param("", "text/plain; charset=utf-8", b"", id="empty str"),
        pytest.param(b"<html>\xff", "application/octet-stream", b"<html>\xff", id="bytes"),
        pytest.param({"a": [1, None, True]}, "application/json", b'{"a":[1,null,true]}', id="dict"),
        pytest.param([], "application/json", b"[]", id="empty list"),
        pytest.param(["<b>"], "application/json", b'["<b>"]', id="list"),
        pytest.param(User("A"), "application/json", b'{"name":"A"}', id="dataclass"),
        pytest.param(Point(1), "application/json", b'{"x":1}', id="Struct"),
        pytest.param({"u": [User("A"), Point(1)]}, "application/json", b'{"u":[{"name":"A"},{"x":1}]}', id="nested"),
        pytest.param(
            {"t": datetime(2024, 1, 2, tzinfo=UTC), "i": UUID(int=1)},
            "application/json",
            b'{"t":"2024-01-02T00:00:00Z","i":"00000000-0000-0000-0000-000000000001"}',
            id="times and ids",
        ),
    ],
)
async def test_a_result_becomes_a_response_by_its_type(fetch: Fetch, result: object, kind: str, body: bytes) -> None:
    response = await fetch(App({"/": returning(result)}))
    assert (response.status, response.headers["content-type"], response.body) == (200, kind, body)
    assert response.headers["content-length"] == str(len(body))


@pytest.mark.parametrize("result", [1, 1.5, True, (1, 2), {1}, object(), ("body", 201)], ids=lambda r: str(type(r).__name__))
async def test_an_invalid_result_gets_500_and_the_log_names_its_type(
    fetch: Fetch, result: object, caplog: pytest.LogCaptureFixture
) -> None:
    response = await fetch(App({"/": returning(result)}))
    assert (response.status, response.text) == (500, "Internal Server Error")
    assert f"returned {a_type(result)}" in caplog.text


@pytest.mark.parametrize(
    ("result", "told"),
    [
        (HTTPError(403), "the error HTTPError(403); write `raise` in the place of `return`"),
        (HTTPError, "the error HTTPError itself; write `raise HTTPError(...)`"),
        (InvalidInput, "the error InvalidInput itself; write `raise InvalidInput(...)`"),
        (ValueError("no"), "a ValueError; an error is raised, as in `raise HTTPError(400)`"),
        (HTTPException(403), "an HTTPException; an error is raised, as in `raise HTTPError(400)`"),
    ],
    ids=lambda each: type(each).__name__,
)
async def test_an_error_that_is_returned_opens_no_guard_and_is_told_with_the_fix(
    fetch: Fetch, result: object, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    guard, secret = returning(result), returning("a secret")

    def hook(*_: object) -> Any:
        return result

    def choose(method: str, handlers: object) -> Any:
        return hook

    def app_with(handler: Handler, path: str = "/", **hooks: Any) -> App:
        return App({path: handler}, integrations=[Integration(name="guard", **hooks)])

    apps = [
        App({"/": [guard, secret]}),
        App({"/*": guard, "/": secret}),
        App({"/*": {"GET": guard}, "/": secret}),
        App({"/": guard}),
        app_with(secret, on_request=hook),
        app_with(secret, on_request=guard),
        app_with(secret, on_route=choose),
        app_with(secret, on_response=hook),
        app_with(secret, "/other", on_unmatched=hook),
        app_with(raising, on_error=hook),
    ]
    for app in apps:
        caplog.clear()
        response = await fetch(app)
        assert (response.status, response.text) == (500, "Internal Server Error")
        assert f"returned {told}" in caplog.text


async def test_a_missing_await_is_named(fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(ctx: Context) -> dict[str, object]:
        return {"body": ctx.body()}

    assert (await fetch(App({"/": handler}))).status == 500
    assert "ctx.body" in caplog.text
    assert "await" in caplog.text


async def test_a_value_that_json_cannot_hold_is_named(fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    assert (await fetch(App({"/": returning({"a": object()})}))).status == 500
    assert "JSON can't hold an object" in caplog.text


async def test_a_response_is_sent_with_its_status_and_headers(fetch: Fetch) -> None:
    response = Response("made", 201, {"X-A": "1", "location": "/x"})
    received = await fetch(App({"/": returning(response)}))
    assert (received.status, received.text) == (201, "made")
    assert dict(received.headers) == {
        "content-type": "text/plain; charset=utf-8",
        "x-a": "1",
        "location": "/x",
        "content-length": "4",
    }


# Making responses


@pytest.mark.parametrize(
    ("response", "kind", "body"),
    [
        (Response.text("<b>"), "text/plain; charset=utf-8", b"<b>"),
        (Response.html("<b>\xe9"), "text/html; charset=utf-8", b"<b>\xc3\xa9"),
        (Response.json(None), "application/json", b"null"),
        (Response.json("a"), "application/json", b'"a"'),
        (Response("a"), "text/plain; charset=utf-8", b"a"),
        (Response(b"a"), "application/octet-stream", b"a"),
        (Response("a", content_type="text/css"), "text/css", b"a"),
        (Response("a", headers={"Content-Type": "text/css"}), "text/css", b"a"),
        (Response.json({}, headers={"CONTENT-TYPE": "application/problem+json"}), "application/problem+json", b"{}"),
        (Response(), None, b""),
        (Response(content_type="text/css"), "text/css", b""),
    ],
)
async def test_a_response_has_one_content_type(fetch: Fetch, response: Response, kind: str | None, body: bytes) -> None:
    received = await fetch(App({"/": returning(response)}))
    assert received.headers.getall("content-type") == ([] if kind is None else [kind])
    assert received.body == body


@pytest.mark.parametrize("make", [Response.text, Response.html, Response.json, Response])
async def test_every_kind_of_response_takes_a_status_and_headers(fetch: Fetch, make: Callable[..., Response]) -> None:
    response = await fetch(App({"/": returning(make("x", 418, {"x-a": "1"}))}))
    assert (response.status, response.headers["x-a"]) == (418, "1")


async def test_headers_may_be_pairs_with_a_repeated_name(fetch: Fetch) -> None:
    response = Response("x", headers=[("link", "</a>"), ("Link", "</b>")])
    assert (await fetch(App({"/": returning(response)}))).headers.getall("link") == ["</a>", "</b>"]


@pytest.mark.parametrize("body", [{"a": 1}, 1, ["a"], bytearray(b"a")], ids=lambda b: str(type(b).__name__))
def test_a_body_is_text_or_bytes_and_nothing_else(body: Any) -> None:
    with pytest.raises(TypeError, match=type(body).__name__):
        Response(body)


@pytest.mark.parametrize("value", INJECTIONS, ids=ascii)
def test_no_way_to_make_a_response_lets_a_header_be_injected(value: str) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        yield b""

    attempts: list[Callable[[], object]] = [
        lambda: Response("", headers={"x": value}),
        lambda: Response("", headers={value: "x"}),
        lambda: Response("", content_type=value),
        lambda: Response.json({}, headers=[("x", value)]),
        lambda: Response.text("", headers={"content-type": value}),
        lambda: Response.html("", headers={"x": value}),
        lambda: Response.redirect(value),
        lambda: Response.redirect("/", headers={"x": value}),
        lambda: Response.stream(chunks(), content_type=value),
        lambda: Response.stream(chunks(), headers={"x": value}),
        lambda: Response.file(__file__, content_type=value),
        lambda: Response.file(__file__, headers={"x": value}),
        lambda: Response("").headers.update({"x": value}),
    ]
    for attempt in attempts:
        with pytest.raises(HeaderError):
            attempt()


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_has_its_status_and_location(fetch: Fetch, status: int) -> None:
    response = await fetch(App({"/": returning(Response.redirect("/next?a=b#c", status))}))
    assert (response.status, response.headers["location"], response.body) == (status, "/next?a=b#c", b"")
    assert "content-type" not in response.headers


def test_the_default_status_of_a_redirect_is_302() -> None:
    assert Response.redirect("/").status == 302


@pytest.mark.parametrize("status", [200, 300, 304, 400])
def test_a_redirect_takes_no_other_status(status: int) -> None:
    with pytest.raises(ValueError, match=str(status)):
        Response.redirect("/", status)


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("/caf\xe9", "/caf%C3%A9"),
        ("/\u20ac?q=\u20ac", "/%E2%82%AC?q=%E2%82%AC"),
        ("/a%20b", "/a%20b"),
        ("/\x85\xa0", "/%C2%85%C2%A0"),
        ("/\u2028", "/%E2%80%A8"),
    ],
    ids=ascii,
)
def test_a_redirect_target_beyond_ascii_is_percent_encoded(location: str, expected: str) -> None:
    assert Response.redirect(location).headers["location"] == expected


def test_headers_of_a_response_can_be_changed() -> None:
    response = Response("x")
    response.headers["X-A"] = "1"
    response.headers.setdefault("x-a", "2")
    del response.headers["content-type"]
    assert dict(response.headers) == {"x-a": "1"}


def test_a_copy_of_a_response_has_its_own_headers() -> None:
    response = Response("x", 201)
    copied = copy.copy(response)
    copied.headers["x-a"] = "1"
    assert (copied.status, copied.body) == (201, b"x")
    assert "x-a" not in response.headers


# Responses without a body


async def test_a_response_to_head_has_the_length_and_no_body(fetch: Fetch) -> None:
    response = await fetch(App({"/": returning("hello")}), method="HEAD")
    assert (response.body, response.headers["content-length"]) == (b"", "5")


@pytest.mark.parametrize("status", [204, 304])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_a_status_without_a_body_has_no_body_and_no_length(fetch: Fetch, status: int, method: str) -> None:
    response = await fetch(App({"/": returning(Response("x", status))}), method=method)
    assert (response.status, response.body, "content-length" in response.headers) == (status, b"", False)


@pytest.mark.parametrize("status", [204, 304])
async def test_a_stream_with_a_status_without_a_body_sends_no_body(fetch: Fetch, status: int) -> None:
    async def handler(ctx: Context) -> Response:
        return Response.stream(Chunks([b"x"]), status)

    assert (await fetch(App({"/": handler}))).body == b""


async def test_an_empty_response_has_the_length_zero(fetch: Fetch) -> None:
    assert (await fetch(App({"/": returning(Response())}))).headers["content-length"] == "0"


# A response that is returned again


async def test_a_response_that_a_handler_keeps_never_accumulates_cookies_or_headers(fetch: Fetch) -> None:
    kept = Response("kept", headers={"x-own": "1"})

    async def handler(ctx: Context) -> Response:
        ctx.cookies.set("a", ctx.query["v"])
        return kept

    def stamp(ctx: Context, response: Response) -> None:
        response.headers.add("x-stamp", "1")

    for integrations in ([], [define_integration(name="stamp", on_response=stamp)]):
        app = App({"/": handler}, integrations=integrations)
        for value in "123":
            received = await fetch(app, f"/?v={value}")
            assert [line[:3] for line in received.headers.getall("set-cookie")] == [f"a={value}"]
            assert len(received.headers.getall("x-stamp")) == len(integrations)
            assert received.headers.getall("content-length") == ["4"]
    assert kept.headers.raw == [(b"content-type", b"text/plain; charset=utf-8"), (b"x-own", b"1")]


@pytest.mark.parametrize("source", ["on_request", "on_response", "on_error", "on_error of on_response"])
async def test_a_response_that_a_hook_keeps_never_accumulates_cookies_or_headers(fetch: Fetch, source: str) -> None:
    kept = Response("kept")

    async def handler(ctx: Context) -> str:
        if source == "on_error":
            raise ValueError
        return "handled"

    def keep(ctx: Context, *_: object) -> Response:
        return kept

    def cookie(ctx: Context, *_: object) -> None:
        ctx.cookies.set("a", "1")

    def fail(ctx: Context, response: Response) -> None:
        raise ValueError

    def stamp(ctx: Context, response: Response) -> None:
        response.headers.add("x-stamp", "1")

    hooks: dict[str, Any] = {source: keep} if source != "on_error of on_response" else {"on_error": keep, "on_response": fail}
    app = App(
        {"/": handler},
        integrations=[
            # The hook that sets the cookie runs last of its kind, and marks the response after the hook that keeps it.
            define_integration(name="stamp", priority="very-high", on_response=stamp, on_request=cookie, on_error=cookie),
            define_integration(name="keep", **hooks),
        ],
    )
    for _ in range(3):
        received = await fetch(app)
        assert received.text == "kept"
        assert len(received.headers.getall("x-stamp")) == 1
        assert len(received.headers.getall("set-cookie")) <= 1
    assert kept.headers.raw == [(b"content-type", b"text/plain; charset=utf-8")]


@pytest.mark.parametrize("status", [200, 204, 304])
async def test_a_server_that_adds_headers_to_the_message_adds_none_to_the_response(status: int) -> None:
    kept = Response("kept", status)

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            message["headers"].append((b"server", b"x"))

    await App({"/": returning(kept)})(http_scope(), Exchange().receive, send)
    assert "server" not in kept.headers


# Streams


class Chunks:
    """An iterator that records how it ends. After its chunks it waits for ever, or raises."""

    def __init__(self, chunks: list[bytes | str], *, then: BaseException | None = None, waits: bool = False) -> None:
        self.chunks = chunks
        self.then = then
        self.waits = waits
        self.waiting = asyncio.Event()
        self.events: list[str] = []

    def __aiter__(self) -> Chunks:
        return self

    async def __anext__(self) -> bytes | str:
        if self.chunks:
            return self.chunks.pop(0)
        if self.waits:
            self.waiting.set()
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.events.append("cancelled")
                raise
        if self.then is not None:
            raise self.then
        raise StopAsyncIteration

    async def aclose(self) -> None:
        self.events.append("closed")


@pytest.mark.parametrize("chunks", [["caf\xe9", b"\xff"], [], [b""], ["a"] * 1_000], ids=["two kinds", "none", "empty", "many"])
async def test_a_stream_sends_each_chunk_when_it_is_ready(fetch: Fetch, chunks: list[bytes | str]) -> None:
    source = Chunks([*chunks])

    async def handler(ctx: Context) -> Response:
        return Response.stream(source, 201, {"x-a": "1"}, content_type="text/csv")

    response = await fetch(App({"/": handler}))
    assert (response.status, response.headers["content-type"], response.headers["x-a"]) == (201, "text/csv", "1")
    assert "content-length" not in response.headers
    expected = [chunk.encode() if isinstance(chunk, str) else chunk for chunk in chunks]
    assert [message["body"] for message in response.messages[1:]] == [*expected, b""]
    assert source.events == ["closed"]


async def test_head_of_a_stream_reads_no_chunk_and_closes_it(fetch: Fetch) -> None:
    source = Chunks([b"x"])

    async def handler(ctx: Context) -> Response:
        return Response.stream(source)

    response = await fetch(App({"/": handler}), method="HEAD")
    assert (response.status, response.body, source.chunks, source.events) == (200, b"", [b"x"], ["closed"])


async def test_a_stream_can_have_cookies(fetch: Fetch) -> None:
    async def handler(ctx: Context) -> Response:
        ctx.cookies.set("a", "1")
        return Response.stream(Chunks([b"x"]))

    response = await fetch(App({"/": handler}))
    assert (response.body, response.headers["set-cookie"][:4]) == (b"x", "a=1;")


async def test_a_client_that_disconnects_during_a_stream_leaves_no_trace(fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    source = Chunks([b"one", b"two"], waits=True)

    async def handler(ctx: Context) -> Response:
        return Response.stream(source)

    before = asyncio.all_tasks()
    await fetch(App({"/": handler}), disconnects=True)
    assert source.events in (["cancelled", "closed"], ["closed"])
    assert asyncio.all_tasks() == before
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


class Line(Exchange):
    """A connection that takes no more after the first chunk, or refuses it as if the client had disconnected."""

    def __init__(self, *, full: bool = False, refuses: bool = False) -> None:
        super().__init__()
        self.full = full
        self.refuses = refuses

    async def send(self, message: Any) -> None:
        if self.refuses and message.get("body"):
            # ASGI 2.4: servers raise this after the client has disconnected.
            raise OSError("the client has disconnected")
        await super().send(message)
        if self.full and message.get("body"):
            await asyncio.Event().wait()


async def test_a_chunk_in_flight_is_cancelled_when_the_client_disconnects() -> None:
    line, source = Line(), Chunks([b"one"], waits=True)

    async def handler(ctx: Context) -> Response:
        return Response.stream(source)

    serving = asyncio.create_task(App({"/": handler})(http_scope(), line.receive, line.send))
    await source.waiting.wait()
    line.disconnected.set()
    await serving
    assert source.events == ["cancelled", "closed"]
    assert line.messages[1]["body"] == b"one"


async def test_what_a_cancelled_chunk_awaits_in_its_finally_is_done() -> None:
    line, waiting, events = Line(), asyncio.Event(), list[str]()

    async def generate() -> AsyncIterator[bytes]:
        try:
            yield b"one"
            waiting.set()
            await asyncio.Event().wait()
        finally:
            # As leaving a channel of Redis takes.
            await asyncio.sleep(0.01)
            events.append("left")

    async def handler(ctx: Context) -> Response:
        return Response.stream(generate())

    serving = asyncio.create_task(App({"/": handler})(http_scope(), line.receive, line.send))
    await waiting.wait()
    line.disconnected.set()
    await serving
    assert events == ["left"]
    assert not serving.cancelling()


@pytest.mark.parametrize("shape", ["generator", "iterable"])
async def test_a_generator_is_closed_when_the_client_disconnects_while_a_chunk_is_sent(shape: str) -> None:
    line = Line(full=True)
    events: list[str] = []
    yielded = asyncio.Event()

    async def generate() -> AsyncIterator[bytes]:
        try:
            yielded.set()
            yield b"one"
        finally:
            # A slow close, such as returning a connection to its pool.
            await asyncio.sleep(0)
            events.append("closed")

    class Source:
        def __aiter__(self) -> AsyncIterator[bytes]:
            return generate()

    async def handler(ctx: Context) -> Response:
        return Response.stream(Source() if shape == "iterable" else generate())

    serving = asyncio.create_task(App({"/": handler})(http_scope(), line.receive, line.send))
    await yielded.wait()
    line.disconnected.set()
    await serving
    assert events == ["closed"]


async def test_a_server_may_report_a_disconnected_client_with_an_error(caplog: pytest.LogCaptureFixture) -> None:
    line, source = Line(refuses=True), Chunks([b"one", b"two"])

    async def handler(ctx: Context) -> Response:
        return Response.stream(source)

    await App({"/": handler})(http_scope(), line.receive, line.send)
    assert source.events == ["closed"]
    assert caplog.records == []


@pytest.mark.parametrize("chunks", [[], [b"one"]], ids=["at first", "later"])
async def test_an_iterator_that_raises_breaks_the_response_off(fetch: Fetch, chunks: list[bytes | str]) -> None:
    source = Chunks([*chunks], then=RuntimeError("no more"))
    messages: list[Any] = []

    async def handler(ctx: Context) -> Response:
        return Response.stream(source)

    line = Line()
    before = asyncio.all_tasks()
    with pytest.raises(RuntimeError, match="no more"):
        await App({"/": handler})(http_scope(), line.receive, line.send)
    messages = line.messages
    # The last message is missing, so the client notices that the response is incomplete.
    assert [message.get("body") for message in messages[1:]] == chunks
    assert all(message.get("more_body", True) for message in messages)
    assert source.events == ["closed"]
    assert asyncio.all_tasks() == before


async def test_a_cancelled_server_closes_the_iterator() -> None:
    line, source = Line(), Chunks([b"one"], waits=True)

    async def handler(ctx: Context) -> Response:
        return Response.stream(source)

    serving = asyncio.create_task(App({"/": handler})(http_scope(), line.receive, line.send))
    await source.waiting.wait()
    serving.cancel()
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert source.events == ["cancelled", "closed"]


async def test_an_iterator_needs_no_aclose(fetch: Fetch) -> None:
    class Bare:
        def __init__(self) -> None:
            self.left = 3

        def __aiter__(self) -> Bare:
            return self

        async def __anext__(self) -> str:
            self.left -= 1
            if self.left < 0:
                raise StopAsyncIteration
            return "x"

    async def handler(ctx: Context) -> Response:
        return Response.stream(Bare())

    assert (await fetch(App({"/": handler}))).text == "xxx"


async def test_a_request_can_be_streamed_back_while_it_arrives(fetch: Fetch) -> None:
    async def echo(ctx: Context) -> Response:
        return Response.stream(ctx.stream())

    chunks = [b"%d," % i for i in range(50)]
    assert (await fetch(App({"/": echo}), body=chunks)).body == b"".join(chunks)


async def test_a_client_that_disconnects_while_its_request_is_streamed_back_leaves_no_trace(
    fetch: Fetch, caplog: pytest.LogCaptureFixture
) -> None:
    async def echo(ctx: Context) -> Response:
        return Response.stream(ctx.stream())

    await fetch(App({"/": echo}), body=[b"a", b"b"], disconnects=True)
    assert caplog.records == []


# Missing awaits


async def forgotten() -> int:
    return 1


@pytest.mark.parametrize(
    "make",
    [
        forgotten,
        lambda: {"a": 1, "b": forgotten()},
        lambda: {"a": [forgotten(), (forgotten(), {"b": forgotten()})], "c": forgotten()},
        lambda: [[forgotten()], forgotten()],
    ],
    ids=["result", "dict", "nested", "list"],
)
async def test_a_coroutine_in_a_result_is_one_error_that_says_await(
    fetch: Fetch, make: Callable[[], Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(ctx: Context) -> Any:
        return make()

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        response = await fetch(App({"/": handler}))
        gc.collect()
    assert response.status == 500
    [record] = caplog.records
    assert re.search(r"the coroutine 'forgotten': write `await` before that call \(tests/test_response.py", record.getMessage())
    assert [str(warning.message) for warning in caught] == []


# Over real sockets

SERVED = """
import asyncio
import gaman
from gaman import Context, HTTPError, Response, define_integration

class Shapeless:
    pass

async def chunks(*parts):
    for part in parts:
        yield part

async def forgotten():
    return chunks(b"x")

def plain():
    yield b"x"

STREAMS = {
    "coroutine": lambda: forgotten(),
    "function": lambda: chunks,
    "generator": plain,
    "list": lambda: [b"x"],
    "str": lambda: "x",
    "bytes": lambda: b"x",
    "None": lambda: None,
    "object": lambda: Shapeless(),
}
CHUNKS = {"int": 7, "None": None, "bytearray": bytearray(b"x"), "memoryview": memoryview(b"x"), "list": [b"x"], "dict": {}}
STATUSES = {
    "99": 99, "100": 100, "101": 101, "199": 199, "600": 600, "999": 999, "-1": -1, "0": 0, "True": True, "float": 200.0,
    "str": "200", "None": None,
}

async def stream(ctx: Context):
    return Response.stream(STREAMS[ctx.params["shape"]]())

async def yielding(chunk):
    yield b"first"
    yield chunk  # the line
    yield b"never sent"

async def broken(ctx: Context):
    return Response.stream(yielding(CHUNKS[ctx.params["kind"]]))

async def promised(ctx: Context):
    parts = [part.encode() for part in ctx.query.getall("part", [])]
    return Response.stream(chunks(*parts), headers={"content-length": ctx.query["length"]})

async def made(ctx: Context):
    status = STATUSES[ctx.params["status"]]
    match ctx.params["by"]:
        case "Response":
            return Response("x", status)
        case "stream":
            return Response.stream(chunks(b"x"), status)
        case "file":
            return Response.file(__file__, status)
        case "redirect":
            return Response.redirect("/", status)
        case "set":
            response = Response("x")
            response.status = status
            return response
        case name:
            return getattr(Response, name)("x", status)

async def framed(ctx: Context):
    headers = [tuple(field.split(":")) for field in ctx.query.getall("header")]
    response = Response("hello", int(ctx.query.get("status", 200)))
    if "raw" in ctx.query:
        response.raw_headers += [(name.encode(), value.encode()) for name, value in headers]
    else:
        for name, value in headers:
            response.headers.add(name, value)
    return response

async def error(ctx: Context):
    raise HTTPError(404, headers=dict([ctx.query["header"].split(":")]))

async def body(ctx: Context):
    response = Response("x")
    response.body = "text"
    return response

async def redirect(ctx: Context):
    return Response.redirect((await ctx.json())["to"], local="local" in ctx.query)

async def hello(ctx: Context):
    return "hello"

def on_response(ctx: Context, response: Response):
    match ctx.query.get("hook"):
        case "status":
            response.status = STATUSES[ctx.query["to"]]
        case "length":
            response.headers["content-length"] = ctx.query["to"]
        case "coding":
            response.raw_headers.append((b"transfer-encoding", b"chunked"))

routes = {
    "/stream/:shape": stream, "/broken/:kind": broken, "/promised": promised, "/made/:by/:status": made, "/framed": framed,
    "/error": error, "/body": body, "/redirect": redirect, "/hello": hello,
}
integrations = [define_integration(name="hooks", on_response=on_response)]
"""


class Served:
    """A server that runs SERVED."""

    def __init__(self, program: Program) -> None:
        self._program = program
        self.port = program.port

    def exchange(self, target: str, method: str = "GET", body: bytes = b"") -> tuple[bytes, bytes]:
        """Return the raw head and body of a response."""
        with Connection(self.port) as connection:
            connection.send(request(target, "Connection: close", method=method, body=body))
            head, _, rest = connection.read_rest().partition(b"\r\n\r\n")
            return head.lower(), rest

    def status(self, target: str, method: str = "GET", body: bytes = b"") -> int:
        return int(self.exchange(target, method, body)[0].split(b" ")[1])

    @contextmanager
    def logs(self, *words: str) -> Generator[None]:
        """Assert that the block adds one line with these words to gaman's log, and no traceback."""
        before = len(self._program.stderr)
        yield

        def line() -> str:
            said = self._program.stderr[before:]
            return said if said.endswith("\n") else ""

        said = until(line, "a line in the log")
        assert "Traceback" not in said
        # uvicorn logs its own line for a response that breaks off.
        lines = [line for line in said.splitlines() if "ASGI callable returned without completing response" not in line]
        assert len(lines) == 1, lines
        for word in words:
            assert word in lines[0]


@pytest.fixture(scope="module", params=SERVES)
def served(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Generator[Served]:
    with running_script(SERVED + SERVES[request.param], tmp_path_factory.mktemp("served")) as program:
        yield Served(program)
        program.stop()
        assert "Traceback" not in program.stderr
        assert "never awaited" not in program.stderr


def line_of(code: str) -> str:
    """Return how the log names the line of SERVED that contains *code*."""
    return f"line {[code in line for line in SERVED.splitlines()].index(True) + 1}"


@pytest.mark.parametrize(
    ("shape", "fix"),
    [
        ("coroutine", "'forgotten': write `yield` in it, or `await` before the call"),
        ("function", "'chunks' itself: call it"),
        ("generator", "'plain': write `async def` in place of its `def`"),
        *((kind, "write an `async def` that yields its chunks") for kind in ("list", "str", "bytes", "None", "object")),
    ],
)
def test_a_stream_of_another_object_is_refused_where_it_is_made(served: Served, shape: str, fix: str) -> None:
    with served.logs("ResultError", fix, line_of("Response.stream(STREAMS")):
        assert served.status(f"/stream/{shape}") == 500


@pytest.mark.parametrize("kind", ["int", "None", "bytearray", "memoryview", "list", "dict"])
def test_a_chunk_that_is_not_bytes_or_text_breaks_the_response_off(served: Served, kind: str) -> None:
    with served.logs("broke off: ResultError", "a chunk is bytes or str, not", line_of("# the line")):
        head, body = served.exchange(f"/broken/{kind}")
    assert b" 200 " in head
    # Chunked without the last chunk: the client notices that the response is incomplete.
    assert body == b"5\r\nfirst\r\n"


def test_a_stream_may_have_a_content_length(served: Served) -> None:
    head, body = served.exchange("/promised?length=6&part=abc&part=def")
    assert b"content-length: 6" in head
    assert b"transfer-encoding" not in head
    assert body == b"abcdef"
    head, body = served.exchange("/promised?length=6&part=abc&part=def", "HEAD")
    assert b"content-length: 6" in head
    assert body == b""
    assert served.exchange("/promised?length=0")[1] == b""


@pytest.mark.parametrize(
    ("target", "sent", "told"),
    [
        ("/promised?length=5&part=abc", b"abc", "ended 2 bytes before the 5"),
        ("/promised?length=5", b"", "ended 5 bytes before the 5"),
        ("/promised?length=5&part=abc&part=def", b"abc", "more bytes than the 5"),
        ("/promised?length=0&part=abc", b"", "more bytes than the 0"),
    ],
)
def test_a_stream_with_a_wrong_content_length_breaks_off(served: Served, target: str, sent: bytes, told: str) -> None:
    with served.logs("GET '/promised' broke off: HeaderError", told, "in promised"):
        assert served.exchange(target)[1] == sent


@pytest.mark.parametrize("length", ["-1", "x", "1.0", "0x5", "", "5, 5", "9" * 5_000])
def test_a_content_length_that_is_not_a_number_is_refused(served: Served, length: str) -> None:
    for target in (f"/promised?part=hello&length={length}", f"/framed?header=content-length:{length}"):
        with served.logs("HeaderError", "content-length"):
            assert served.status(target.replace(" ", "+")) == 500


@pytest.mark.parametrize("raw", ["", "&raw=1"])
def test_a_handlers_content_length_must_be_that_of_the_body(served: Served, raw: str) -> None:
    head, body = served.exchange(f"/framed?header=content-length:5{raw}")
    assert head.count(b"content-length") == 1
    assert body == b"hello"
    for wrong in ("content-length:4", "content-length:6", "content-length:5&header=content-length:5"):
        with served.logs("HeaderError", "content-length", "in framed"):
            assert served.status(f"/framed?header={wrong}{raw}") == 500


def test_a_response_to_head_may_have_another_length(served: Served) -> None:
    head, body = served.exchange("/framed?header=content-length:123456", "HEAD")
    assert b"content-length: 123456" in head
    assert head.count(b"content-length") == 1
    assert body == b""
    # A length that is valid for HEAD is still checked for the next request.
    with served.logs("HeaderError", "content-length"):
        assert served.status("/framed?header=content-length:123456") == 500


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("status", [204, 304])
def test_a_status_without_a_body_is_sent_without_a_length(served: Served, status: int, method: str) -> None:
    for length in (5, 123):
        head, body = served.exchange(f"/framed?status={status}&header=content-length:{length}", method)
        assert head.startswith(b"http/1.1 %d " % status)
        assert b"content-length" not in head
        assert b"transfer-encoding" not in head
        assert (b"content-type" in head) == (status == 204)
        assert body == b""


@pytest.mark.parametrize("raw", ["", "&raw=1"])
@pytest.mark.parametrize("coding", ["chunked", "identity", "gzip, chunked"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
def test_a_handler_cannot_set_a_transfer_coding(served: Served, coding: str, raw: str, method: str) -> None:
    with served.logs("HeaderError", "transfer-encoding"):
        assert served.status(f"/framed?header=transfer-encoding:{coding.replace(' ', '+')}{raw}", method) == 500


@pytest.mark.parametrize("header", ["transfer-encoding:chunked", "content-length:1"])
def test_an_error_with_a_wrong_framing_gets_500(served: Served, header: str) -> None:
    with served.logs("HeaderError"):
        assert served.status(f"/error?header={header}") == 500


def test_a_body_that_is_set_to_text_is_named(served: Served) -> None:
    with served.logs("ResultError", "a response's body is bytes, not str", "in body"):
        assert served.status("/body") == 500


STATUSES = ["99", "100", "101", "199", "600", "999", "-1", "0", "True", "float", "str", "None"]


@pytest.mark.parametrize("status", STATUSES)
@pytest.mark.parametrize(
    ("by", "line"),
    [
        ("Response", 'Response("x", status)'),
        ("stream", 'Response.stream(chunks(b"x"), status)'),
        ("file", "Response.file("),
        ("redirect", "Response.redirect("),
        ("set", "async def made"),
        *((by, "getattr(Response, name)") for by in ("json", "text", "html")),
    ],
)
def test_the_error_of_an_invalid_status_names_the_line_that_made_it(served: Served, by: str, status: str, line: str) -> None:
    with served.logs("ResultError", "status", line_of(line)):
        assert served.status(f"/made/{by}/{status}") == 500


@pytest.mark.parametrize("status", STATUSES)
def test_an_invalid_status_of_a_hook_is_a_500(served: Served, status: str) -> None:
    with served.logs("ResultError", "status"):
        assert served.status(f"/hello?hook=status&to={status}") == 500


def test_a_hook_with_a_wrong_framing_causes_a_500(served: Served) -> None:
    for hook in ("length&to=4", "coding"):
        with served.logs("HeaderError"):
            assert served.status(f"/hello?hook={hook}") == 500
    head, body = served.exchange("/hello?hook=length&to=5")
    assert head.count(b"content-length") == 1
    assert body == b"hello"


def redirected(served: Served, to: str, query: str = "") -> str | int:
    """Return the location of a redirect to *to*, or the status of another response."""
    with Connection(served.port) as connection:
        response = connection.fetch(request(f"/redirect{query}", method="POST", body=json.dumps({"to": to}).encode()))
        return response.headers["location"] if response.status == 302 else response.status


@pytest.mark.parametrize(
    ("to", "expected"),
    [
        ("/a b", "/a%20b"),
        ('/"<>\\^`{|}', "/%22%3C%3E%5C%5E%60%7B%7C%7D"),
        ("/a%20b%zz%2", "/a%20b%25zz%252"),
        ("/100%", "/100%25"),
        ("/%e9%", "/%e9%25"),
        ("/a?b=c d&e=[1]#f g", "/a?b=c%20d&e=[1]#f%20g"),
        ("/!$&'()*+,;=:@-._~/", "/!$&'()*+,;=:@-._~/"),
        ("https://[2001:db8::1]:8080/x", "https://[2001:db8::1]:8080/x"),
        ("https://b\xfccher.example/", "https://b%C3%BCcher.example/"),
        ("/\u20ac", "/%E2%82%AC"),
        ("/\U0001f600", "/%F0%9F%98%80"),
        ("", ""),
    ],
    ids=ascii,
)
def test_a_redirect_percent_encodes_characters_that_a_uri_cannot_hold(served: Served, to: str, expected: str) -> None:
    assert redirected(served, to) == expected


@pytest.mark.parametrize("to", ["/\t/evil", "/x\r\nSet-Cookie: a=b", "/\x00", "/\x7f", "/\x1f"], ids=ascii)
def test_a_control_character_in_a_redirect_is_refused(served: Served, to: str) -> None:
    with served.logs("HeaderError", line_of("return Response.redirect((await")):
        assert redirected(served, to) == 500


@pytest.mark.parametrize(
    ("to", "expected"),
    [
        ("/", "/"),
        ("/account?tab=1&next=//x#top", "/account?tab=1&next=//x#top"),
        ("/a//b", "/a//b"),
        ("/a b", "/a%20b"),
        ("/@name", "/@name"),
        ("/mail/a@b.example", "/mail/a@b.example"),
        ("/?back=https://other.example/\\", "/?back=https://other.example/%5C"),
        ("/caf\xe9", "/caf%C3%A9"),
        ("/:x", "/:x"),
    ],
    ids=ascii,
)
def test_a_local_redirect_leads_to_a_path_of_this_site(served: Served, to: str, expected: str) -> None:
    assert redirected(served, to, "?local=1") == expected


@pytest.mark.parametrize(
    "to",
    [
        "",
        "next",
        "?a=1",
        "#x",
        ".",
        "../x",
        "//evil.example",
        "///evil.example",
        "/\\evil.example",
        "/\\/evil.example",
        "\\\\evil.example",
        "\\/evil.example",
        "/x\\..\\..\\evil",
        "https:evil.example",
        "https:/evil.example",
        "https://evil.example",
        "HTTPS://evil.example",
        "http:",
        "javascript:alert(1)",
        "data:text/html,x",
        "@evil.example",
        ":80",
        " //evil.example",
        " /x",
        "\t//evil.example",
        "/\t/evil.example",
        "\n//evil.example",
        "/\n/evil.example",
        "/\r/evil.example",
        "/\x00/evil.example",
        "/x\r\nSet-Cookie: a=b",
        "/x?a=\r\nb",
        "/x?a=\t",
        "/x#\x7f",
        "/x\n",
        "\xa0//evil.example",
        "\u2028/x",
        "\ufeff/x",
    ],
    ids=ascii,
)
def test_a_local_redirect_to_anywhere_else_is_a_400(served: Served, to: str) -> None:
    assert redirected(served, to, "?local=1") == 400


def test_a_local_redirect_has_at_most_4096_encoded_bytes() -> None:
    for longest in ("/" + "x" * 4095, "/x" + "\u20ac" * 454 + "x" * 8):
        assert len(Response.redirect(longest, local=True).headers["location"]) == 4096
        with pytest.raises(HTTPError) as caught:
            Response.redirect(longest + "x", local=True)
        assert caught.value.status == 400
        # The application's own targets have no limit.
        assert len(Response.redirect(longest + "x").headers["location"]) == 4097


@pytest.mark.parametrize("target", [None, 5, b"/", ["/"]], ids=repr)
def test_a_redirect_to_anything_but_a_str_is_a_400_if_local_and_otherwise_an_error_with_a_fix(target: Any) -> None:
    with pytest.raises(HTTPError) as caught:
        Response.redirect(target, local=True)
    assert caught.value.status == 400
    with pytest.raises(ResultError, match=r'or "/"'):
        Response.redirect(target)


@pytest.mark.parametrize("read", ["body", "stream"])
async def test_reading_the_body_too_late_in_a_stream_raises_instead_of_hanging(
    fetch: Fetch, caplog: pytest.LogCaptureFixture, read: str
) -> None:
    async def stream(ctx: Context) -> Response:
        async def chunks() -> AsyncIterator[bytes]:
            yield b"first"
            await asyncio.sleep(0.01)
            if read == "body":
                yield await ctx.body()
            async for chunk in ctx.stream():
                yield chunk

        return Response.stream(chunks())

    for body in (b"", b"body"):
        caplog.clear()
        assert (await fetch(App({"/": stream}), "/", "POST", body=body)).messages[-1]["more_body"]
        assert "read it before the response begins" in caplog.text
