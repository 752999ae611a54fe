"""The client of the other tests, tests/asgi.py, does what its callers rely on."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.asgi import ASGI, Exchange, Message, Receive, Send, fetch, http_scope

pytestmark = pytest.mark.anyio


def receiving(count: int) -> tuple[list[Message], ASGI]:
    """Return a list, and an application that receives *count* messages into it before it responds."""
    received: list[Message] = []

    async def app(scope: Any, receive: Receive, send: Send) -> None:
        received.extend([await receive() for _ in range(count)])
        await send({"type": "http.response.start", "status": 201, "headers": [(b"x-method", scope["method"].encode())]})
        await send({"type": "http.response.body", "body": b"caf\xc3", "more_body": True})
        await send({"type": "http.response.body", "body": b"\xa9"})
        received.append(await receive())

    return received, app


def test_a_target_stays_as_it_is_and_its_path_is_decoded() -> None:
    scope = http_scope("/a%2Fb//%c3%a9?q=%20")
    assert (scope["raw_path"], scope["path"], scope["query_string"]) == (b"/a%2Fb//%c3%a9", "/a/b//\xe9", b"q=%20")


def test_headers_stay_as_they_are_and_host_is_added_where_it_is_missing() -> None:
    assert http_scope(headers=[(b"X-Raw", b"\xff")])["headers"] == [(b"host", b"testserver"), (b"X-Raw", b"\xff")]
    assert http_scope(headers={"Host": "a.example"})["headers"] == [(b"host", b"a.example")]


async def test_entries_of_the_scope_can_be_replaced() -> None:
    _, app = receiving(0)
    exchange = await fetch(app, method="GET", scope={"method": "POST"})
    assert exchange.headers["x-method"] == "POST"


async def test_a_response_is_read_from_its_messages() -> None:
    _, app = receiving(0)
    exchange = await fetch(app)
    assert (exchange.status, exchange.headers["x-method"], exchange.text) == (201, "GET", "caf\xe9")
    assert [message["type"] for message in exchange.messages] == ["http.response.start", *["http.response.body"] * 2]


async def test_a_request_ends_and_the_client_disconnects_after_the_response() -> None:
    received, app = receiving(2)
    await fetch(app, body=[b"one", b"two"])
    assert received == [
        {"type": "http.request", "body": b"one", "more_body": True},
        {"type": "http.request", "body": b"two", "more_body": False},
        {"type": "http.disconnect"},
    ]


@pytest.mark.parametrize("body", [b"", []], ids=["bytes", "chunks"])
async def test_a_request_without_a_body_is_one_empty_message(body: bytes | list[bytes]) -> None:
    received, app = receiving(1)
    await fetch(app, body=body)
    assert received[0] == {"type": "http.request", "body": b"", "more_body": False}


async def test_a_client_that_leaves_never_ends_its_body() -> None:
    received, app = receiving(2)
    await fetch(app, body=[b"one"], disconnects=True)
    assert received[:2] == [{"type": "http.request", "body": b"one", "more_body": True}, {"type": "http.disconnect"}]


async def test_a_client_disconnects_when_it_is_told_to() -> None:
    exchange = Exchange()
    assert (await exchange.receive())["type"] == "http.request"
    waiting = asyncio.create_task(exchange.receive())
    await asyncio.sleep(0.01)
    assert not waiting.done()
    exchange.disconnected.set()
    assert await waiting == {"type": "http.disconnect"}


async def test_a_request_that_hangs_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.asgi.TIME_LIMIT", 0.01)
    _, app = receiving(2)
    with pytest.raises(TimeoutError):
        await fetch(app)
