"""Payloads: bodies that send themselves, from an iterator or from a file."""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from types import AsyncGeneratorType, TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import anyio.lowlevel
import anyio.to_thread

from gaman import _file
from gaman._asgi import STOPPING, Send
from gaman._framing import BODILESS, without_body
from gaman._headers import Headers, RawHeaders
from gaman.errors import ClientDisconnected, HeaderError, HTTPError, ResultError

if TYPE_CHECKING:
    from asyncio import Event

    from gaman._context import Context
    from gaman._response import Response


class Payload(Protocol):
    """A body that sends itself, for one whose bytes aren't in memory; it may change *headers*."""

    async def send(self, status: int, headers: RawHeaders, ctx: Context, send: Send) -> None: ...


class Stream:
    """A body from an async iterator; an *endless* one ends when the server stops."""

    def __init__(self, chunks: AsyncIterable[bytes | str], endless: bool = False) -> None:
        self._chunks = chunks
        self._is_endless = endless

    async def send(self, status: int, headers: RawHeaders, ctx: Context, send: Send) -> None:
        chunks = aiter(self._chunks)
        try:
            if status in BODILESS:
                headers = without_body(status, headers)
            await _emit(send, {"type": "http.response.start", "status": status, "headers": headers})
            if ctx.method != "HEAD" and status not in BODILESS:
                length = Headers(headers).get("content-length")
                # Only gaman's server tells of its stop.
                stopping: Event | None = ctx.scope.get(STOPPING) if self._is_endless else None
                await _send_while_connected(chunks, ctx, send, None if length is None else int(length), stopping)
        finally:
            if (close := getattr(chunks, "aclose", None)) is not None:
                await close()
        await _emit(send, {"type": "http.response.body", "body": b""})


class FileBody:
    """A body from a file, which *find* opens. It reads the disk, so it is called in a thread."""

    file: _file.File
    """The file, once it is open."""

    def __init__(self, find: Callable[[], _file.File]) -> None:
        self._find = find

    async def open(self, response: Response, ctx: Context) -> Response:
        """Return a copy of *response* with the file open and its header fields added; *ctx* closes it after the request.

        HTTPError 404 is raised if the file doesn't exist, HTTPError 503 if the system fails to open it.
        """
        if hasattr(self, "file") and self.file.opened in (ctx._open or ()):
            return response
        try:
            file = await anyio.to_thread.run_sync(self._find)
        except (OSError, ValueError) as cause:
            status = 404 if _file.is_absent(cause) else 503
            raise HTTPError(status, headers=_cache_limits(response.headers)) from cause
        ctx._close_later(file.opened)
        # Copied because a handler may return the same Response for every request.
        response = response.__copy__()
        response.body = body = FileBody(self._find)
        body.file = file
        for name, value in file.fields().items():
            response.headers.setdefault(name, value)
        return response

    async def send(self, status: int, headers: RawHeaders, ctx: Context, send: Send) -> None:
        status, first, length, fields = _file.select(self.file, status, Headers(headers), ctx.scope)
        if status in BODILESS:
            await _emit_empty(send, status, without_body(status, headers))
            return
        headers = [*(field for field in headers if field[0] != b"content-length"), *fields]
        if not length or ctx.method == "HEAD":
            await _emit_empty(send, status, headers)
            return
        async with aclosing(_file.read(self.file, first, length)) as chunks:
            await _emit(send, {"type": "http.response.start", "status": status, "headers": headers})
            await _send_while_connected(chunks, ctx, send)
        await _emit(send, {"type": "http.response.body", "body": b""})


async def _emit_empty(send: Send, status: int, headers: RawHeaders) -> None:
    await _emit(send, {"type": "http.response.start", "status": status, "headers": headers})
    await _emit(send, {"type": "http.response.body", "body": b""})


async def _emit(send: Send, message: dict[str, Any]) -> None:
    try:
        await send(message)
    except OSError as cause:
        # The server reports a disconnected client with an OSError (ASGI 2.4).
        raise ClientDisconnected("the client disconnected before its response was sent completely") from cause


async def _send_while_connected(
    chunks: AsyncIterator[bytes | str], ctx: Context, send: Send, length: int | None = None, stopping: Event | None = None
) -> None:
    """Send every chunk. When the client disconnects or *stopping* is set, cancel the chunk in flight, and let `finally` await.

    ResultError is raised for a chunk that isn't bytes or str, and HeaderError if the chunks aren't *length* bytes in total.
    """
    from asyncio import CancelledError, current_task  # noqa: PLC0415 - takes 20 ms to load, which a server has done

    sender = current_task()
    is_stopped = False

    async def stop_after(wait: Callable[[], Awaitable[object]]) -> None:
        nonlocal is_stopped
        await wait()
        if sender is not None and not is_stopped:
            is_stopped = True
            # A cancellation by anyio would be repeated in each turn of the event loop.
            sender.cancel()

    failure: Exception | None = None
    left = length
    async with anyio.create_task_group() as tasks:
        sending = tasks.cancel_scope
        tasks.start_soon(stop_after, ctx.disconnected)
        if stopping is not None:
            tasks.start_soon(stop_after, stopping.wait)
        try:
            async for chunk in chunks:
                data = chunk.encode() if isinstance(chunk, str) else chunk
                if not isinstance(data, bytes):
                    raise ResultError(f"a chunk is bytes or str, not {type(data).__name__}").with_traceback(_position_of(chunks))
                if left is not None and (left := left - len(data)) < 0:
                    raise HeaderError(f"a stream had more bytes than the {length} of its content-length")
                await _emit(send, {"type": "http.response.body", "body": data, "more_body": True})
                # Let the other task run. If the iterator never waits, nothing else does, because sending to a client that
                # has disconnected returns at once.
                await anyio.lowlevel.checkpoint()
            if left:
                raise HeaderError(f"a stream ended {left} bytes before the {length} of its content-length")
        except CancelledError:
            if sender is None or not is_stopped or sender.uncancel():
                raise
        except Exception as error:
            failure = error
        is_stopped = True
        sending.cancel()
    if failure is not None:
        raise failure


def _position_of(chunks: object) -> TracebackType | None:
    """Return a traceback to the `yield` where an async generator is suspended, so that the log can name its line."""
    frame = chunks.ag_frame if isinstance(chunks, AsyncGeneratorType) else None
    return None if frame is None else TracebackType(None, frame, frame.f_lasti, frame.f_lineno)


def _cache_limits(headers: Headers) -> dict[str, str]:
    """Return the fields that keep a file's error out of the caches that may not store the file.

    A file's lifetime isn't among them, because it doesn't apply to the error.
    """
    fields = {name: ", ".join(headers.getall(name)) for name in ("vary", "cache-control")}
    if re.search(r"no-store|no-cache|private", fields["cache-control"], re.IGNORECASE) is None:
        del fields["cache-control"]
    return {name: value for name, value in fields.items() if value}
