"""Response: what goes back to the client, and what a handler's result becomes."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextlib import aclosing
from dataclasses import is_dataclass
from inspect import iscoroutine
from typing import TYPE_CHECKING, Any, Protocol, cast
from urllib.parse import quote

import anyio
import anyio.lowlevel
import msgspec

from gaman import _file
from gaman._headers import Headers, MutableHeaders, RawHeaders, encode_value
from gaman.errors import ClientDisconnected, HTTPError, ResultError

if TYPE_CHECKING:
    from gaman._context import Context

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
HeadersInit = Mapping[str, str] | Iterable[tuple[str, str]]

_JSON = (b"content-type", b"application/json")
_TEXT = (b"content-type", b"text/plain; charset=utf-8")
_HTML = (b"content-type", b"text/html; charset=utf-8")
_BYTES = (b"content-type", b"application/octet-stream")


def _refuse(value: object) -> object:
    if iscoroutine(value):
        raise ResultError(f"the result holds the coroutine {value.__qualname__!r}: write `await` before that call")
    raise ResultError(f"JSON can't hold a {type(value).__name__}; give it a dict, list, dataclass or Struct in its place")


def _close_coroutines(data: object) -> None:
    """Close what was not awaited in *data*, so that Python does not complain of each as well."""
    if iscoroutine(data):
        data.close()
    elif isinstance(data, dict):
        for value in cast("dict[object, object]", data).values():
            _close_coroutines(value)
    elif isinstance(data, (list, tuple, set)):
        for value in cast("Iterable[object]", data):
            _close_coroutines(value)


# RFC 9110, section 6.4.1
BODILESS = frozenset({204, 304})

_new = object.__new__
_encode_json = msgspec.json.Encoder(enc_hook=_refuse).encode


class Payload(Protocol):
    """A body that is not at hand as bytes, and knows how to send itself; *headers* are its own to change."""

    async def send(self, status: int, headers: RawHeaders, ctx: Context, send: Send) -> None: ...


class Response:
    """A status, headers and a body."""

    __slots__ = ("body", "raw_headers", "status")

    status: int
    body: bytes | Payload
    """The body, or for stream() and file() what will send it."""
    raw_headers: RawHeaders
    """The header fields as ASGI has them; `headers` is the way to read and change them."""

    def __init__(
        self,
        body: str | bytes | None = None,
        status: int = 200,
        headers: HeadersInit | None = None,
        *,
        content_type: str | None = None,
    ) -> None:
        if body is None:
            field, self.body = None, b""
        elif isinstance(body, str):
            field, self.body = _TEXT, body.encode()
        elif isinstance(body, bytes):
            field, self.body = _BYTES, body
        else:
            raise ResultError(f"a Response's body is str, bytes or None, not {type(body).__name__}; did you mean Response.json()?")
        self.status = status
        if content_type is not None:
            field = (b"content-type", encode_value(content_type))
        self.raw_headers = [] if field is None else [field]
        if headers is not None:
            self._add(headers)

    def _add(self, headers: HeadersInit) -> None:
        own = self.headers
        pairs = list(cast("Mapping[str, str]", headers).items() if isinstance(headers, Mapping) else headers)
        if any(name.lower() == "content-type" for name, _ in pairs):
            self.raw_headers.clear()
        for name, value in pairs:
            own.add(name, value)

    def __copy__(self) -> Response:
        copied = _new(Response)
        copied.status, copied.body, copied.raw_headers = self.status, self.body, [*self.raw_headers]
        return copied

    @property
    def headers(self) -> MutableHeaders:
        """The response's fields; setting one that could inject another raises HeaderError."""
        return MutableHeaders(self.raw_headers)

    @staticmethod
    def json(data: object, status: int = 200, headers: HeadersInit | None = None) -> Response:
        """Encode *data* as msgspec does: dicts, lists, dataclasses, Structs, datetimes, UUIDs; ResultError for what it can't."""
        # Unrolled, for this is where most responses come from.
        response = _new(Response)
        response.status = status
        try:
            response.body = _encode_json(data)
        except ResultError:
            _close_coroutines(data)
            raise
        response.raw_headers = [_JSON]
        if headers is not None:
            response._add(headers)
        return response

    @staticmethod
    def text(text: str, status: int = 200, headers: HeadersInit | None = None) -> Response:
        """Send *text* as text/plain."""
        return _make(text.encode(), _TEXT, status, headers)

    @staticmethod
    def html(html: str, status: int = 200, headers: HeadersInit | None = None) -> Response:
        """Send *html* as it is; escape what came from a visitor, with html.escape or a template engine."""
        return _make(html.encode(), _HTML, status, headers)

    @staticmethod
    def redirect(location: str, status: int = 302, headers: HeadersInit | None = None) -> Response:
        """Send the browser to *location* (RFC 9110, section 15.4), whose non-ASCII characters are percent-encoded."""
        if status not in (301, 302, 303, 307, 308):
            raise ValueError(f"{status} is no redirect; take 301, 302, 303, 307 or 308")
        response = _make(b"", None, status, headers)
        # Control characters are left for the header check to refuse, rather than made harmless without a word.
        response.headers["location"] = "".join(c if c.isascii() else quote(c) for c in location)
        return response

    @staticmethod
    def stream(
        chunks: AsyncIterable[bytes | str],
        status: int = 200,
        headers: HeadersInit | None = None,
        *,
        content_type: str = "application/octet-stream",
    ) -> Response:
        """Send *chunks* as they come. When the client leaves, the iterator is cancelled and closed."""
        return _make(_Stream(chunks), (b"content-type", encode_value(content_type)), status, headers)

    @staticmethod
    def file(
        path: str | os.PathLike[str],
        status: int = 200,
        headers: HeadersInit | None = None,
        *,
        root: str | os.PathLike[str] | None = None,
        content_type: str | None = None,
        download: str | None = None,
    ) -> Response:
        """Send a file, in ranges and under conditions if the client asks for them (RFC 9110, sections 13 and 14).

        Give *root* where *path* comes from a visitor: a path that leads out of it, through `..` or a link, answers 404, as
        one that names no file does. The content type is guessed from the name; *download* has the browser save under that name.
        """
        file = _file.find(path, root)
        response = _make(_File(file), (b"content-type", encode_value(content_type or file.content_type)), status, headers)
        for name, value in file.validators().items():
            response.headers.setdefault(name, value)
        if download is not None:
            response.headers["content-disposition"] = _file.attachment(download)
        return response


def _make(body: bytes | Payload, field: tuple[bytes, bytes] | None, status: int, headers: HeadersInit | None) -> Response:
    response = _new(Response)
    response.status = status
    response.body = body
    response.raw_headers = [] if field is None else [field]
    if headers is not None:
        response._add(headers)
    return response


class _Stream:
    def __init__(self, chunks: AsyncIterable[bytes | str]) -> None:
        self._chunks = chunks

    async def send(self, status: int, headers: RawHeaders, ctx: Context, send: Send) -> None:
        chunks = aiter(self._chunks)
        try:
            await _emit(send, {"type": "http.response.start", "status": status, "headers": headers})
            if ctx.method != "HEAD" and status not in BODILESS:
                await _send_while_connected(chunks, ctx, send)
            await _emit(send, {"type": "http.response.body", "body": b""})
        finally:
            if (close := getattr(chunks, "aclose", None)) is not None:
                await close()


class _File:
    def __init__(self, file: _file.File) -> None:
        self._file = file

    async def send(self, status: int, headers: RawHeaders, ctx: Context, send: Send) -> None:
        status, first, length, fields = _file.select(self._file, status, Headers(headers), ctx.scope)
        headers += fields
        if not length or ctx.method == "HEAD":
            await _emit_whole(send, status, headers, b"")
            return
        try:
            opened = await anyio.open_file(self._file.path, "rb")
        except OSError:
            # It has gone since it was found.
            gone = error_response(HTTPError(404))
            body = cast("bytes", gone.body)
            await _emit_whole(send, gone.status, [*gone.raw_headers, (b"content-length", b"%d" % len(body))], body)
            return
        async with opened, aclosing(_file.read(opened, first, length)) as chunks:
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


async def _send_while_connected(chunks: AsyncIterator[bytes | str], ctx: Context, send: Send) -> None:
    """Send every chunk, or stop and cancel the one under way as soon as the client has left."""

    async def watch() -> None:
        await ctx.left()
        watching.cancel()

    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        watching = tasks.cancel_scope
        tasks.start_soon(watch)
        try:
            async for chunk in chunks:
                data = chunk.encode() if isinstance(chunk, str) else chunk
                await _emit(send, {"type": "http.response.body", "body": data, "more_body": True})
                # Neither an iterator nor a server that has lost its client need ever wait, and watch() must have its turn.
                await anyio.lowlevel.checkpoint()
        except Exception as error:
            failure = error
        watching.cancel()
    if failure is not None:
        raise failure


def to_response(result: object) -> Response:
    """Return what a handler's *result* becomes; for None HTTPError 404, for what can't be sent a ResultError that names it.

    Text is never sniffed for markup: a visitor's own words, sent back, must not become a page.
    """
    if isinstance(result, Response):
        return result
    if result is None:
        raise HTTPError(404)
    if isinstance(result, str):
        return Response.text(result)
    if isinstance(result, bytes):
        return Response(result)
    if isinstance(result, (dict, list, msgspec.Struct)) or (is_dataclass(result) and not isinstance(result, type)):
        return Response.json(cast("object", result))
    if iscoroutine(result):
        result.close()
        raise ResultError(f"a handler returned the coroutine {result.__qualname__!r}: write `await` before that call")
    raise ResultError(
        f"a handler returned a {type(result).__name__}; return a Response, str, bytes, dict, list, dataclass, Struct or None"
    )


def error_response(error: HTTPError) -> Response:
    """Return the plain-text answer that *error* asks for."""
    return Response.text(error.detail, error.status, error.headers)
