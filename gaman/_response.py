"""Response: what goes back to the client, and what a handler's result becomes."""

from __future__ import annotations

import os
from collections.abc import AsyncIterable, Awaitable, Callable, Iterable, Mapping, MutableMapping
from contextlib import aclosing
from dataclasses import is_dataclass
from inspect import iscoroutine
from typing import Any, Protocol
from urllib.parse import quote

import anyio
import msgspec

from gaman import _file
from gaman._headers import MutableHeaders, RawHeaders, encode_value
from gaman.errors import HTTPError

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
HeadersInit = Mapping[str, str] | Iterable[tuple[str, str]]

_JSON = b"application/json"
_TEXT = b"text/plain; charset=utf-8"
_HTML = b"text/html; charset=utf-8"
_BYTES = b"application/octet-stream"
_BODILESS = frozenset({204, 304})


def _refuse(value: object) -> object:
    if iscoroutine(value):
        value.close()
        raise TypeError(f"the result holds the coroutine {value.__qualname__!r}: write `await` before the call")
    raise TypeError(f"JSON can't hold a {type(value).__name__}")


_encode_json = msgspec.json.Encoder(enc_hook=_refuse).encode


class Response:
    """A status, headers and a body: text, bytes or nothing. It is an ASGI application that sends itself."""

    __slots__ = ("_payload", "_raw", "body", "status")

    def __init__(
        self,
        body: str | bytes | None = None,
        status: int = 200,
        headers: HeadersInit | None = None,
        *,
        content_type: str | None = None,
    ) -> None:
        if body is None:
            default, self.body = None, b""
        elif isinstance(body, str):
            default, self.body = _TEXT, body.encode()
        elif isinstance(body, bytes):
            default, self.body = _BYTES, body
        else:
            raise TypeError(f"a Response's body is str, bytes or None, not {type(body).__name__}; did you mean Response.json()?")
        self._init(status, default if content_type is None else encode_value(content_type), headers)

    def _init(self, status: int, content_type: bytes | None, headers: HeadersInit | None) -> None:
        self.status = status
        self._payload: _Payload | None = None
        self._raw: RawHeaders = [] if content_type is None else [(b"content-type", content_type)]
        if headers is not None:
            own = self.headers
            pairs = list(headers.items() if isinstance(headers, Mapping) else headers)
            if any(name.lower() == "content-type" for name, _ in pairs):
                self._raw.clear()
            for name, value in pairs:
                own.add(name, value)

    def __copy__(self) -> Response:
        copied = Response.__new__(Response)
        copied.status, copied.body, copied._raw, copied._payload = self.status, self.body, [*self._raw], self._payload
        return copied

    @property
    def headers(self) -> MutableHeaders:
        """The response's fields; setting one that could inject another raises HeaderError."""
        return MutableHeaders(self._raw)

    @classmethod
    def json(cls, data: object, status: int = 200, headers: HeadersInit | None = None) -> Response:
        """Encode *data* as msgspec does: dicts, lists, dataclasses, Structs, datetimes, UUIDs; TypeError for what JSON can't hold."""
        return _make(_encode_json(data), _JSON, status, headers)

    @classmethod
    def text(cls, text: str, status: int = 200, headers: HeadersInit | None = None) -> Response:
        """Send *text* as text/plain."""
        return _make(text.encode(), _TEXT, status, headers)

    @classmethod
    def html(cls, html: str, status: int = 200, headers: HeadersInit | None = None) -> Response:
        """Send *html* as it is; escape what came from a visitor, with html.escape or a template engine."""
        return _make(html.encode(), _HTML, status, headers)

    @classmethod
    def redirect(cls, location: str, status: int = 302, headers: HeadersInit | None = None) -> Response:
        """Send the browser to *location* (RFC 9110, section 15.4), whose non-ASCII characters are percent-encoded."""
        if status not in (301, 302, 303, 307, 308):
            raise ValueError(f"{status} is no redirect; take 301, 302, 303, 307 or 308")
        response = _make(b"", None, status, headers)
        # Control characters are left for the header check to refuse, rather than made harmless without a word.
        response.headers["location"] = "".join(c if c.isascii() else quote(c) for c in location)
        return response

    @classmethod
    def stream(
        cls,
        chunks: AsyncIterable[bytes | str],
        status: int = 200,
        headers: HeadersInit | None = None,
        *,
        content_type: str = "application/octet-stream",
    ) -> Response:
        """Send *chunks* as they come. When the client leaves, the iterator is cancelled and closed."""
        response = _make(b"", encode_value(content_type), status, headers)
        response._payload = _Stream(chunks)
        return response

    @classmethod
    def file(
        cls,
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
        response = _make(b"", encode_value(content_type or file.content_type), status, headers)
        for name, value in file.validators().items():
            response.headers.setdefault(name, value)
        if download is not None:
            response.headers["content-disposition"] = _file.attachment(download)
        response._payload = _File(file)
        return response

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the response; the body is left out for HEAD, and where the status has none (RFC 9110, section 6.4.1)."""
        if self._payload is not None:
            await self._payload.send(self, scope, receive, send)
            return
        raw = self._raw
        if self.status not in _BODILESS:
            raw = [*raw, (b"content-length", b"%d" % len(self.body))]
        await send({"type": "http.response.start", "status": self.status, "headers": raw})
        body = b"" if scope["method"] == "HEAD" or self.status in _BODILESS else self.body
        await send({"type": "http.response.body", "body": body})


def _make(body: bytes, content_type: bytes | None, status: int, headers: HeadersInit | None) -> Response:
    response = Response.__new__(Response)
    response.body = body
    response._init(status, content_type, headers)
    return response


class _Payload(Protocol):
    """A body that is not at hand as bytes, and knows how to send itself."""

    async def send(self, response: Response, scope: Scope, receive: Receive, send: Send) -> None: ...


class _Stream:
    def __init__(self, chunks: AsyncIterable[bytes | str]) -> None:
        self._chunks = chunks

    async def send(self, response: Response, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": response.status, "headers": response.headers.raw})
            if scope["method"] != "HEAD":
                await _send_while_connected(self._chunks, receive, send)
            await send({"type": "http.response.body", "body": b""})
        finally:
            if (close := getattr(self._chunks, "aclose", None)) is not None:
                await close()


class _File:
    def __init__(self, file: _file.File) -> None:
        self._file = file

    async def send(self, response: Response, scope: Scope, receive: Receive, send: Send) -> None:
        status, first, length, fields = _file.select(self._file, response.status, response.headers, scope)
        await send({"type": "http.response.start", "status": status, "headers": [*response.headers.raw, *fields]})
        if length and scope["method"] != "HEAD":
            async with aclosing(_file.read(self._file, first, length)) as chunks:
                await _send_while_connected(chunks, receive, send)
        await send({"type": "http.response.body", "body": b""})


async def _send_while_connected(chunks: AsyncIterable[bytes | str], receive: Receive, send: Send) -> None:
    """Send every chunk, or stop and cancel the one under way as soon as the client has left."""

    async def watch() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass
        watching.cancel()

    failure: Exception | None = None
    async with anyio.create_task_group() as tasks:
        watching = tasks.cancel_scope
        tasks.start_soon(watch)
        try:
            async for chunk in chunks:
                data = chunk.encode() if isinstance(chunk, str) else chunk
                await send({"type": "http.response.body", "body": data, "more_body": True})
        except Exception as error:
            failure = error
        watching.cancel()
    if failure is not None:
        raise failure


def to_response(result: object) -> Response:
    """Return what a handler's *result* becomes; a TypeError names what can't be sent.

    Text is never sniffed for markup: a visitor's own words, sent back, must not become a page.
    """
    if isinstance(result, Response):
        return result
    if isinstance(result, str):
        return Response.text(result)
    if isinstance(result, bytes):
        return Response(result)
    if isinstance(result, (dict, list, msgspec.Struct)) or (is_dataclass(result) and not isinstance(result, type)):
        return Response.json(result)
    raise TypeError(
        f"a handler returned a {type(result).__name__}; return a Response, str, bytes, dict, list, dataclass, msgspec.Struct or None"
    )


def error_response(error: HTTPError) -> Response:
    """Return the plain-text answer that *error* asks for."""
    return Response.text(error.detail, error.status, error.headers)
