"""Payloads: bodies that send themselves, from an iterator or from a file."""

from __future__ import annotations

import re
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import aclosing
from types import AsyncGeneratorType, TracebackType
from typing import TYPE_CHECKING, Any, Protocol

import anyio
import anyio.lowlevel
import anyio.to_thread

from gaman import _file
from gaman._asgi import Send
from gaman._framing import BODILESS, without_body
from gaman._headers import Headers, RawHeaders
from gaman.errors import ClientDisconnected, HeaderError, HTTPError, ResultError

if TYPE_CHECKING:
    from gaman._context import Context
    from gaman._response import Response


class Payload(Protocol):
    """A body that is not at hand as bytes, and knows how to send itself; *headers* are its own to change."""

    async def send(self, status: int, headers: RawHeaders, ctx: Context, send: Send) -> None: ...


class Stream:
    def __init__(self, chunks: AsyncIterable[bytes | str]) -> None:
        self._chunks = chunks

    async def send(self, status: int, headers: RawHeaders, ctx: Context, send: Send) -> None:
        chunks = aiter(self._chunks)
        try:
            if status in BODILESS:
                headers = without_body(status, headers)
            await _emit(send, {"type": "http.response.start", "status": status, "headers": headers})
            if ctx.method != "HEAD" and status not in BODILESS:
                length = Headers(headers).get("content-length")
                await _send_while_connected(chunks, ctx, send, None if length is None else int(length))
            await _emit(send, {"type": "http.response.body", "body": b""})
        finally:
            if (close := getattr(chunks, "aclose", None)) is not None:
                await close()


class FileBody:
    """A file that *find* returns, which asks the disk."""

    file: _file.File
    """What is sent, once it is open."""

    def __init__(self, find: Callable[[], _file.File]) -> None:
        self._find = find

    async def open(self, response: Response, ctx: Context) -> Response:
        """Return *response* with the file open and described, for *ctx* to close; HTTPError 404 or 503 where it can't be opened."""
        if hasattr(self, "file") and self.file.opened in (ctx._open_files or ()):
            return response
        try:
            file = await anyio.to_thread.run_sync(self._find)
        except (OSError, ValueError) as cause:
            status = 404 if _file.is_absent(cause) else 503
            raise HTTPError(status, headers=_limits_on_caches(response.headers)) from cause
        if ctx._open_files is None:
            ctx._open_files = []
        ctx._open_files.append(file.opened)
        # A handler may return the same Response for every request.
        response = response.__copy__()
        response.body = body = FileBody(self._find)
        body.file = file
        for name, value in file.fields().items():
            response.headers.setdefault(name, value)
        return response

    async def send(self, status: int, headers: RawHeaders, ctx: Context, send: Send) -> None:
        status, first, length, fields = _file.select(self.file, status, Headers(headers), ctx.scope)
        if status in BODILESS:
            await _emit_whole(send, status, without_body(status, headers), b"")
            return
        headers = [*(field for field in headers if field[0] != b"content-length"), *fields]
        if not length or ctx.method == "HEAD":
            await _emit_whole(send, status, headers, b"")
            return
        async with aclosing(_file.read(self.file, first, length)) as chunks:
            await _emit(send, {"type": "http.response.start", "status": status, "headers": headers})
            await _send_while_connected(chunks, ctx, send)
        await _emit(send, {"type": "http.response.body", "body": b""})


async def _emit_whole(send: Send, status: int, headers: RawHeaders, body: bytes) -> None:
    await _emit(send, {"type": "http.response.start", "status": status, "headers": headers})
    await _emit(send, {"type": "http.response.body", "body": body})


async def _emit(send: Send, message: dict[str, Any]) -> None:
    try:
        await send(message)
    except OSError as cause:
        # So a server says that there is nobody to send to (ASGI 2.4).
        raise ClientDisconnected("the client left before its answer had gone out whole") from cause


async def _send_while_connected(chunks: AsyncIterator[bytes | str], ctx: Context, send: Send, length: int | None = None) -> None:
    """Send every chunk, or stop and cancel the one under way as soon as the client has left.

    ResultError is raised for what isn't a chunk, HeaderError where all of them are not *length* bytes, if that is given.
    """

    async def watch() -> None:
        await ctx.disconnected()
        watching.cancel()

    failure: Exception | None = None
    left = length
    async with anyio.create_task_group() as tasks:
        watching = tasks.cancel_scope
        tasks.start_soon(watch)
        try:
            async for chunk in chunks:
                data = chunk.encode() if isinstance(chunk, str) else chunk
                if not isinstance(data, bytes):
                    raise ResultError(f"a chunk is bytes or str, not {type(data).__name__}").with_traceback(_stand_of(chunks))
                if left is not None and (left := left - len(data)) < 0:
                    raise HeaderError(f"a stream had more bytes than the {length} of its content-length")
                await _emit(send, {"type": "http.response.body", "body": data, "more_body": True})
                # Neither an iterator nor a server that has lost its client need ever wait, and watch() must have its turn.
                await anyio.lowlevel.checkpoint()
            if left:
                raise HeaderError(f"a stream ended {left} bytes before the {length} of its content-length")
        except Exception as error:
            failure = error
        watching.cancel()
    if failure is not None:
        raise failure


def _stand_of(chunks: object) -> TracebackType | None:
    """Return a traceback to the `yield` that an async generator stands at, so that the log can name its line."""
    frame = chunks.ag_frame if isinstance(chunks, AsyncGeneratorType) else None
    return None if frame is None else TracebackType(None, frame, frame.f_lasti, frame.f_lineno)


def _limits_on_caches(headers: Headers) -> dict[str, str]:
    """Return what keeps an error in place of a file from being cached more widely than that; its lifetime is the file's alone."""
    fields = {name: ", ".join(headers.getall(name)) for name in ("vary", "cache-control")}
    if re.search(r"no-store|no-cache|private", fields["cache-control"], re.IGNORECASE) is None:
        del fields["cache-control"]
    return {name: value for name, value in fields.items() if value}
