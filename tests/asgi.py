"""A client that calls an ASGI application in the same process, message by message.

Most tests of users need only `gaman.testing.TestClient`. This client exists beside it because httpx normalizes targets and header
fields, and hides messages. These tests are about raw scopes, the order of messages, and disconnects.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, MutableMapping
from typing import Any
from urllib.parse import unquote_to_bytes

import anyio
import anyio.lowlevel

from gaman import Headers

Message = dict[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Any], Awaitable[None]]
ASGI = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]
Fields = Mapping[str, str] | list[tuple[bytes, bytes]]

TIME_LIMIT = 25
"""Seconds that ask() waits for a response. Only a request that hangs reaches it."""


def http_scope(target: str = "/", method: str = "GET", headers: Fields | None = None, **changes: Any) -> Message:
    """Return the scope of a request for *target*, octet by octet; *changes* replace or add entries.

    Host is added if *headers* lack it.
    """
    if isinstance(headers, Mapping):
        headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    headers = headers or []
    if not any(name == b"host" for name, _ in headers):
        headers = [(b"host", b"testserver"), *headers]
    raw_path, _, query = target.encode().partition(b"?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "https",
        "path": unquote_to_bytes(raw_path).decode("utf-8", "replace"),
        "raw_path": raw_path,
        "query_string": query,
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 50000),
        "server": ("testserver", 443),
        **changes,
    }


class Channel:
    """The server's side of one call: the messages that the application may receive, and those that it sent."""

    def __init__(self, *incoming: Message) -> None:
        self.incoming = [*incoming]
        self.messages: list[Message] = []

    async def receive(self) -> Message:
        return self.incoming.pop(0)

    async def send(self, message: Any) -> None:
        self.messages.append(message)


class Exchange(Channel):
    """One HTTP request and its response, of which *messages* is empty if the application sent none.

    Each chunk of *body* is one message. The client disconnects when the response is complete, when `disconnected` is set, or, if it
    *disconnects*, after its last chunk and before the end of its body.
    """

    def __init__(self, body: bytes | Iterable[bytes] = b"", *, disconnects: bool = False) -> None:
        chunks = [body] if isinstance(body, bytes) else [*body]
        if not chunks and not disconnects:
            chunks = [b""]
        last = None if disconnects else len(chunks) - 1
        super().__init__(*({"type": "http.request", "body": chunk, "more_body": i != last} for i, chunk in enumerate(chunks)))
        self.disconnected = asyncio.Event()
        if disconnects:
            self.disconnected.set()

    @property
    def status(self) -> int:
        status: int = self.messages[0]["status"]
        return status

    @property
    def headers(self) -> Headers:
        return Headers(self.messages[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message.get("body", b"") for message in self.messages[1:])

    @property
    def text(self) -> str:
        return self.body.decode()

    async def receive(self) -> Message:
        # Other tasks run first, as they do over a network.
        await anyio.lowlevel.checkpoint()
        if self.incoming:
            return await super().receive()
        await self.disconnected.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        await super().send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.disconnected.set()


async def fetch(
    app: ASGI,
    target: str = "/",
    method: str = "GET",
    *,
    headers: Fields | None = None,
    body: bytes | Iterable[bytes] = b"",
    disconnects: bool = False,
    scope: Mapping[str, Any] | None = None,
) -> Exchange:
    """Send one request to *app* and return its exchange; *scope* replaces or adds entries of the request's scope."""
    exchange = Exchange(body, disconnects=disconnects)
    with anyio.fail_after(TIME_LIMIT):
        await app(http_scope(target, method, headers) | dict(scope or {}), exchange.receive, exchange.send)
    return exchange


Fetch = Callable[..., Coroutine[Any, Any, Exchange]]
"""The type of ask()."""
