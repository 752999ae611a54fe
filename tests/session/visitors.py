"""Visitors of an ASGI application in this process, whose sessions come from SessionMiddleware; has no tests."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Self

import anyio
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, DispatchFunction
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute

from gaman.session import SessionIntegration, session
from gaman.session.asgi import SessionMiddleware
from tests.asgi import TIME_LIMIT, Channel, Exchange, Message, http_scope
from tests.session.sites import SECRET

NAME = "gaman"
"""The name of the session's cookie over plain HTTP."""


def sessions_in(driver: Any = None, **options: Any) -> SessionIntegration:
    """Return sessions in *driver*, by default in memory, for visitors without HTTPS."""
    return session(SECRET, {"type": "memory"} if driver is None else driver, secure=False, **options)


def starlette(
    sessions: SessionIntegration, *, as_dict: bool = False, sockets: Mapping[str, Any] | None = None, **handlers: Any
) -> Starlette:
    """Return an application in Starlette with a route for each of *handlers*, and a WebSocket for each of *sockets*."""
    routes = [
        *(Route(f"/{name}", handler, methods=["GET", "POST"]) for name, handler in handlers.items()),
        *(WebSocketRoute(f"/{name}", handler) for name, handler in (sockets or {}).items()),
    ]
    app = Starlette(routes=routes)
    app.add_middleware(SessionMiddleware, sessions=sessions, as_dict=as_dict)
    return app


def add_inside(app: Starlette, dispatch: DispatchFunction) -> None:
    """Add a BaseHTTPMiddleware between SessionMiddleware and the routes."""
    app.user_middleware.append(Middleware(BaseHTTPMiddleware, dispatch=dispatch))


class Reply(Exchange):
    """A response, with the error that the application raised."""

    error: BaseException | None = None

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def cookies(self) -> list[str]:
        return self.headers.getall("set-cookie")


class Visitor:
    """A browser that keeps cookies."""

    def __init__(self, app: Any, cookies: Mapping[str, str] | None = None) -> None:
        self.app = app
        self.cookies = dict(cookies or {})

    def again(self) -> Visitor:
        """Return a second browser with a copy of this one's cookies."""
        return Visitor(self.app, self.cookies)

    @property
    def fields(self) -> list[tuple[bytes, bytes]]:
        """The header fields of a request."""
        pairs = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        return [(b"host", b"localhost"), *([(b"cookie", pairs.encode())] if pairs else [])]

    async def get(
        self, target: str = "/", *, body: bytes | Iterable[bytes] = b"", reply: Reply | None = None, **scope: Any
    ) -> Reply:
        reply = reply or Reply(body)
        with anyio.fail_after(TIME_LIMIT):
            try:
                await self.app({**http_scope(target, headers=self.fields, scheme="http"), **scope}, reply.receive, reply.send)
            except Exception as error:
                # Its traceback would keep the request's frames.
                reply.error = error.with_traceback(None)
        if reply.messages:
            self.take(reply.cookies)
        return reply

    async def post(self, target: str, form: bytes = b"") -> Reply:
        fields = [*self.fields, (b"content-type", b"application/x-www-form-urlencoded")]
        return await self.get(target, method="POST", body=form, headers=fields)

    def take(self, lines: Iterable[str]) -> None:
        """Apply Set-Cookie fields."""
        for line in lines:
            pair, *attributes = line.split("; ")
            name, _, value = pair.partition("=")
            if "Max-Age=0" in attributes or any(each.startswith("expires=Thu, 01 Jan 1970") for each in attributes):
                self.cookies.pop(name, None)
            else:
                self.cookies[name] = value

    def connect(self, target: str, *, can_deny: bool = False) -> Socket:
        """Open a WebSocket, of which the server supports responses to a denied handshake or doesn't."""
        extensions: dict[str, Any] = {"websocket.http.response": {}} if can_deny else {}
        scope = http_scope(target, headers=self.fields, type="websocket", scheme="ws", subprotocols=[], extensions=extensions)
        del scope["method"]
        return Socket(self, scope)


class Socket(Channel):
    """The client's side of a WebSocket: a context manager that disconnects at its end and waits for the application."""

    def __init__(self, visitor: Visitor, scope: Message) -> None:
        super().__init__()
        self._visitor = visitor
        self._scope = scope
        self._incoming: asyncio.Queue[Message] = asyncio.Queue()
        self._outgoing: asyncio.Queue[Message] = asyncio.Queue()
        self.error: BaseException | None = None

    async def __aenter__(self) -> Self:
        self._incoming.put_nowait({"type": "websocket.connect"})
        self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._incoming.put_nowait({"type": "websocket.disconnect", "code": 1001})
        with anyio.fail_after(TIME_LIMIT):
            await self._task

    async def _run(self) -> None:
        try:
            await self._visitor.app(self._scope, self.receive, self.send)
        except Exception as error:
            self.error = error.with_traceback(None)
        await self.send({"type": "end"})

    async def receive(self) -> Message:
        return await self._incoming.get()

    async def send(self, message: Any) -> None:
        # Servers refuse messages after the last one.
        if any(sent["type"] == "websocket.close" for sent in self.messages) and message["type"] != "end":
            raise RuntimeError(f"Unexpected ASGI message {message['type']!r}")
        await super().send(message)
        self._outgoing.put_nowait(message)
        if message["type"] in {"websocket.close", "websocket.http.response.body"}:
            self._incoming.put_nowait({"type": "websocket.disconnect", "code": 1006})

    async def next(self) -> Message:
        """Return the next message of the application."""
        with anyio.fail_after(5):
            return await self._outgoing.get()

    def tell(self, text: str) -> None:
        """Send *text*."""
        self._incoming.put_nowait({"type": "websocket.receive", "text": text})

    async def ask(self, text: str) -> str:
        """Send *text*, and return the text that comes back."""
        self.tell(text)
        message = await self.next()
        assert message["type"] == "websocket.send", message
        return str(message["text"])

    async def accepted(self) -> list[str]:
        """Wait until the WebSocket is accepted, and return the cookies that came with that."""
        message = await self.next()
        assert message["type"] == "websocket.accept", message
        cookies = [value.decode() for name, value in message.get("headers", ()) if name == b"set-cookie"]
        self._visitor.take(cookies)
        return cookies


def answering(work: Callable[[Any], Any]) -> Any:
    """Return a handler of Starlette that answers with what *work* returns for its request."""

    async def answer(request: Any) -> Response:
        result = work(request)
        if asyncio.iscoroutine(result):
            result = await result
        return result if isinstance(result, Response) else JSONResponse(result)

    return answer
