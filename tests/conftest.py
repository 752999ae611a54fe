"""What the tests share: the event loop they run on, and a client of bare ASGI."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from typing import Any, Protocol
from urllib.parse import unquote_to_bytes

import anyio
import anyio.lowlevel
import pytest
from hypothesis import HealthCheck, settings

from gaman import App, Headers

Message = dict[str, Any]

# Beside other tests, an example may take long without a fault. The rest stays as Hypothesis sets it, for CI too.
settings.register_profile("beside others", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("beside others")


class Answer:
    """The messages that an App has sent; none at all where it kept silent."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

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


class Ask(Protocol):
    async def __call__(
        self,
        app: App,
        target: str = "/",
        method: str = "GET",
        *,
        headers: Mapping[str, str] | list[tuple[bytes, bytes]] | None = None,
        body: bytes | Iterable[bytes] = b"",
        leaves: bool = False,
        scope: Mapping[str, Any] | None = None,
    ) -> Answer: ...


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session")
def ask() -> Ask:
    """Ask an App for a raw *target*, octet by octet, and with a Host if *headers* have none.

    Chunks of a *body* come one message each, after which the client may leave. *scope* has the last word.
    """

    async def ask(
        app: App,
        target: str = "/",
        method: str = "GET",
        *,
        headers: Mapping[str, str] | list[tuple[bytes, bytes]] | None = None,
        body: bytes | Iterable[bytes] = b"",
        leaves: bool = False,
        scope: Mapping[str, Any] | None = None,
    ) -> Answer:
        if isinstance(headers, Mapping):
            headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
        headers = headers or []
        if not any(name == b"host" for name, _ in headers):
            headers = [(b"host", b"testserver"), *headers]
        raw_path, _, query = target.encode().partition(b"?")
        chunks = [body] if isinstance(body, bytes) else list(body)
        if not chunks and not leaves:
            chunks = [b""]
        answer, answered = Answer(), asyncio.Event()

        async def receive() -> Message:
            # As over a network: others have their turn first.
            await anyio.lowlevel.checkpoint()
            if chunks:
                chunk = chunks.pop(0)
                return {"type": "http.request", "body": chunk, "more_body": bool(chunks) or leaves}
            if not leaves:
                await answered.wait()
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            answer.messages.append(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                answered.set()

        request: dict[str, Any] = {
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
            **(scope or {}),
        }
        # Only a request that hangs ever meets this limit.
        with anyio.fail_after(25):
            await app(request, receive, send)
        return answer

    return ask
