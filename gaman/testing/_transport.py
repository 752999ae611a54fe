"""Transport: turns requests of httpx into calls of an ASGI application, whose response arrives chunk by chunk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, MutableMapping
from typing import Any, TypeAlias, cast

import httpx
from anyio.from_thread import BlockingPortal

from gaman._asgi import Application
from gaman._disconnects import Disconnected
from gaman._failures import FAILURES, Failures
from gaman.testing._portal import call

Message: TypeAlias = MutableMapping[str, Any]

_GRACE = 5
"""Seconds that an application has to end a request after the test has closed its response."""


def scope_of(request: httpx.Request) -> dict[str, Any]:
    """Return the ASGI scope of *request*."""
    url = request.url
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": request.method,
        "scheme": url.scheme,
        "path": url.path,
        "raw_path": url.raw_path.partition(b"?")[0],
        "query_string": url.query,
        "root_path": "",
        "headers": [(name.lower(), value) for name, value in request.headers.raw],
        "client": ("127.0.0.1", 50000),
        "server": (url.host, url.port or (443 if url.scheme == "https" else 80)),
    }


class Transport(httpx.AsyncBaseTransport):
    """Calls *app* for each request. With *raises_errors*, a request that fails raises its error instead of returning a response."""

    def __init__(self, app: Application, *, raises_errors: bool) -> None:
        self.state: dict[str, Any] = {}
        self._app = app
        self._raises_errors = raises_errors
        self._open: set[_Exchange] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Return the response as soon as it has a status."""
        exchange = _Exchange(self._app, request, self.state, raises_errors=self._raises_errors)
        self._open = {exchange, *(each for each in self._open if not each.is_over)}
        return await exchange.begin()

    async def aclose(self) -> None:
        """End the requests whose responses are still open."""
        for exchange in self._open:
            await exchange.aclose()


class SyncTransport(httpx.BaseTransport):
    """Sends requests through *inner*, in the event loop of `portal`."""

    portal: BlockingPortal

    def __init__(self, inner: Transport) -> None:
        self.inner = inner

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Return the response as soon as it has a status."""
        # httpx makes the body asynchronous as well once it is read.
        request.read()
        response = call(self.portal, self.inner.handle_async_request, request)
        stream = _SyncStream(self.portal, cast("httpx.AsyncByteStream", response.stream))
        return httpx.Response(response.status_code, headers=response.headers, stream=stream)

    def close(self) -> None:
        """End the requests whose responses are still open."""
        call(self.portal, self.inner.aclose)


class _SyncStream(httpx.SyncByteStream):
    """The chunks of *stream*, which lives in the event loop of *portal*."""

    def __init__(self, portal: BlockingPortal, stream: httpx.AsyncByteStream) -> None:
        self._portal = portal
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        chunks = aiter(self._stream)

        async def take() -> bytes | None:
            return await anext(chunks, None)

        while (chunk := call(self._portal, take)) is not None:
            yield chunk

    def close(self) -> None:
        call(self._portal, self._stream.aclose)


class _Exchange(httpx.AsyncByteStream):
    """One request and its response, whose chunks it yields."""

    def __init__(self, app: Application, request: httpx.Request, state: dict[str, Any], *, raises_errors: bool) -> None:
        self._request = request
        self._raises_errors = raises_errors
        self._failures = Failures()
        self._body = aiter(cast("httpx.AsyncByteStream", request.stream))
        self._is_sent = False
        """Whether the application has the whole body of the request."""
        self._messages = asyncio.Queue[Message | None]()
        self._has_begun = self._is_complete = self._has_disconnected = False
        self._over = asyncio.Event()
        """Set when the response is complete or the client has disconnected."""
        scope = {**scope_of(request), "state": {**state}, FAILURES: self._failures}
        self._task = asyncio.ensure_future(app(scope, self._receive, self._send))
        self._task.add_done_callback(lambda _: self._messages.put_nowait(None))

    @property
    def is_over(self) -> bool:
        """Whether the application has ended the request."""
        return self._task.done()

    async def begin(self) -> httpx.Response:
        """Return the response as soon as it has a status."""
        try:
            start = await self._next()
            if start is None:
                self._check()
                return httpx.Response(500)
            self._has_begun = True
            if self._raises_errors and (error := self._failures.hidden_by(start["status"])) is not None:
                while await self._next() is not None:
                    pass
                raise error
        except BaseException:
            await self._end(grace=0)
            raise
        return httpx.Response(start["status"], headers=[*start.get("headers", ())], stream=self)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while (message := await self._next()) is not None:
            if (chunk := message.get("body", b"")) and self._request.method != "HEAD":
                yield chunk
        self._check()

    async def aclose(self) -> None:
        """Disconnect, unless the application has ended the request."""
        if not self._task.done():
            await self._end(_GRACE)
            if (error := self._error()) is not None and not isinstance(error, Disconnected):
                raise error

    async def _end(self, grace: float) -> None:
        """Disconnect, and cancel the application's call if it takes longer than *grace* seconds to end."""
        self._has_disconnected = True
        self._over.set()
        while not self._messages.empty():
            await self._next()
        await asyncio.wait([self._task], timeout=grace)
        self._task.cancel()
        await asyncio.wait([self._task])

    def _check(self) -> None:
        """Raise what made the application's call or its response fail."""
        error = self._error()
        if error is not None:
            raise error
        if not self._is_complete and (self._has_begun or self._task.cancelled() or self._task.exception() is None):
            raise httpx.RemoteProtocolError("the application ended before its response was complete", request=self._request)

    def _error(self) -> BaseException | None:
        """Return the error to raise in the test, once the application has ended the request."""
        error = None if self._task.cancelled() else self._task.exception()
        if not self._raises_errors:
            # pytest.fail() in a handler still ends the test.
            return None if isinstance(error, Exception) else error
        return error or self._failures.lost

    async def _next(self) -> Message | None:
        """Return the next message of the application, or None after its end."""
        message = await self._messages.get()
        self._messages.task_done()
        return message

    async def _receive(self) -> Message:
        if not self._is_sent:
            chunk = await anext(self._body, None)
            self._is_sent = chunk is None
            return {"type": "http.request", "body": chunk or b"", "more_body": not self._is_sent}
        await self._over.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Message) -> None:
        if self._has_disconnected:
            raise Disconnected("the client has disconnected")
        self._messages.put_nowait(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self._is_complete = True
            self._over.set()
        else:
            # An endless stream runs only as fast as the client reads it.
            await self._messages.join()
