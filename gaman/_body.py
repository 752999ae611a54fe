"""RequestBody: a request's body, read once and within limits, as chunks, bytes, text, JSON or a form."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import anyio
from multidict import MultiDict

from gaman import _json
from gaman._asgi import Receive
from gaman._fields import Fields
from gaman._forms import Form, UploadedFile, read_urlencoded
from gaman._headers import Headers
from gaman.errors import ClientDisconnected, GamanError, HTTPError, ResultError

_MAX_CONTENT_TYPE = 1 << 10


class RequestBody:
    """The body of one request. *max_size*, in bytes, is the limit unless a call sets its own; Context documents the calls."""

    __slots__ = ("_body", "_ended", "_form", "_headers", "_max_size", "_reading", "_receive")

    def __init__(self, receive: Receive, headers: Headers, max_size: int) -> None:
        self._receive = receive
        self._headers = headers
        self._max_size = max_size
        self._body: bytes | None = None
        self._form: Form | None = None
        self._reading: anyio.Lock | None = None
        self._ended: anyio.Event | None = None
        """Set when reading has ended; None until it begins."""

    def stream(self, max_size: int | None = None) -> AsyncIterator[bytes]:
        """Yield the chunks as they arrive, once; HTTPError 413 beyond *max_size* bytes."""
        if self._ended is not None:
            raise GamanError(
                "the body can be read once, and body(), form(), stream() or the response has begun to; "
                "read it before the response begins, and keep the result"
            )
        if max_size is not None and not isinstance(max_size, int):
            raise ResultError(f"max_size={max_size!r} isn't a number of bytes; give an int, such as 5 << 20 for 5 MiB")
        self._ended = anyio.Event()
        return self._chunks(self._max_size if max_size is None else max_size, self._ended)

    def take(self) -> bytes | None:
        """Return the body if it is read and kept, or None if it isn't read, and leave the messages that follow to the caller.

        GamanError is raised if it is read and not kept.
        """
        if self._body is None and self._ended is not None:
            raise GamanError(
                "a mounted application gets the body, and a handler or hook before it has read it with form() or stream(), which "
                "don't keep it; call await ctx.body() first"
            )
        if self._ended is None:
            self._ended = anyio.Event()
            self._ended.set()
        return self._body

    async def disconnected(self) -> None:
        """Return when the client has disconnected. A body that isn't read by then is discarded."""
        if self._ended is not None:
            await self._ended.wait()
        else:
            # stream() raises from now on, because two readers would take messages from each other.
            self._ended = anyio.Event()
            self._ended.set()
        while (await self._receive())["type"] != "http.disconnect":
            pass

    async def read(self, max_size: int | None = None) -> bytes:
        """Return the whole body; HTTPError 413 beyond *max_size* bytes."""
        async with self._lock():
            if self._body is None:
                self._body = b"".join([chunk async for chunk in self.stream(max_size)])
            return self._body

    async def text(self) -> str:
        """Return the body as text; HTTPError 400 if it isn't UTF-8."""
        body = await self.read()
        try:
            return body.decode()
        except UnicodeDecodeError as cause:
            raise HTTPError(400, "the body is not valid UTF-8") from cause

    async def json(self, type: Any = None) -> Any:
        """Return the JSON body, decoded into *type* if one is given."""
        return _json.decode(await self.read(), type)

    async def form(self, max_size: int | None = None) -> Form:
        """Return the form; HTTPError 400 if it is malformed, 413 beyond a limit, 415 if the body isn't a form."""
        async with self._lock():
            if self._form is None:
                chunks = self.stream(max_size) if self._body is None else _once(self._body)
                self._form = await self._read_form(chunks)
            return self._form

    def _lock(self) -> anyio.Lock:
        """Return the lock that keeps concurrent readers from sharing the chunks.

        Only a read creates it, which saves each streamed response 1.4 microseconds.
        """
        if self._reading is None:
            self._reading = anyio.Lock()
        return self._reading

    async def _chunks(self, limit: int, ended: anyio.Event) -> AsyncIterator[bytes]:
        try:
            # A compressed body could unpack to any size.
            if self._headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
                raise HTTPError(415, "send the body without a Content-Encoding", headers={"accept-encoding": "identity"})
            announced = self._headers.get("content-length", "0")
            if announced.isdecimal() and len(announced) < 20 and int(announced) > limit:
                raise _too_large(limit)
            size = 0
            while True:
                message = await self._receive()
                if message["type"] == "http.disconnect":
                    raise ClientDisconnected("the client disconnected before its body had arrived completely")
                chunk = message.get("body", b"")
                size += len(chunk)
                if size > limit:
                    raise _too_large(limit)
                yield chunk
                if not message.get("more_body", False):
                    return
        finally:
            ended.set()

    async def _read_form(self, chunks: AsyncIterator[bytes]) -> Form:
        content_type = self._headers.get("content-type", "")
        if len(content_type) > _MAX_CONTENT_TYPE:
            raise HTTPError(400, f"the Content-Type is longer than {_MAX_CONTENT_TYPE} bytes")
        kind = content_type.partition(";")[0].strip(" \t").lower()
        if kind == "application/x-www-form-urlencoded":
            return Form(await read_urlencoded(chunks, self._max_size), Fields(MultiDict[UploadedFile]()))
        if kind != "multipart/form-data":
            async for chunk in chunks:
                if chunk:
                    raise HTTPError(415, "expected a form: application/x-www-form-urlencoded or multipart/form-data")
            # Clients that send nothing have no reason to name a type.
            return Form(Fields(MultiDict[str]()), Fields(MultiDict[UploadedFile]()))
        from gaman._multipart import read_multipart  # noqa: PLC0415 - takes 3 ms to load, and most applications never need it

        return await read_multipart(chunks, content_type, self._max_size)


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


def _too_large(limit: int) -> HTTPError:
    return HTTPError(413, f"the body is larger than {limit} bytes")
