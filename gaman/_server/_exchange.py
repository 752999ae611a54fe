"""Exchange: a request and its response (RFC 9110, section 3.4) as the ASGI application sees them."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable, MutableMapping
from functools import lru_cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final

from gaman._asgi import Application, Scope
from gaman._context import log_extra
from gaman._disconnects import Disconnected
from gaman._framing import BODILESS
from gaman._tracebacks import exc_info_of
from gaman.errors import ClientDisconnected, comes_of

if TYPE_CHECKING:
    from gaman._server._http import Connection

logger = logging.getLogger("gaman")

_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"
_MAX_PROBES: Final = 8
"""Probes of one response. Each may be a zero before a chunk's size, and some clients accept only 16 digits."""
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding", b"connection"})
"""Fields that only the server writes, whatever the application sends."""


def _status_line(status: int) -> bytes:
    try:
        phrase = HTTPStatus(status).phrase
    except ValueError:
        phrase = ""
    return f"HTTP/1.1 {status} {phrase}\r\n".encode("ascii")


_is_token = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch


# Responses repeat few names, so the check takes no longer than lower() does.
@lru_cache(maxsize=1024)
def _lower(name: bytes) -> bytes:
    """Return the *name* of a field in lower case. Clients may take another name than a token for a framing field."""
    if _is_token(name) is None:
        raise RuntimeError(f"the application sent {name!r} as the name of a header (RFC 9110, section 5.6.2)")
    return name.lower()


STATUS_LINES: Final = {status: _status_line(status) for status in range(200, 600)}


class Exchange:
    """A request and its response, which the application gets as a scope, receive and send."""

    __slots__ = (
        "_arrival",
        "_body",
        "_body_left",
        "_connection",
        "_has_changed",
        "_is_bodiless",
        "_is_chunked",
        "_is_disconnected",
        "_keep_alive",
        "_more_body",
        "_probe_at",
        "_probes",
        "_scope",
        "awaits_continue",
        "has_started",
        "is_complete",
        "is_delimited",
    )

    def __init__(self, connection: Connection, scope: Scope, keep_alive: bool) -> None:
        self._connection = connection
        self._scope = scope
        self._keep_alive = keep_alive
        self._is_disconnected = False

        self._body: bytes | bytearray = b""
        self._more_body = True
        self._has_changed = False
        """Whether anything has arrived since the last message that the application received."""
        self._arrival: asyncio.Event | None = None
        """Set when something arrives; None until the application first waits for it."""
        self.awaits_continue = False

        self.has_started = self.is_complete = False
        self.is_delimited = True
        """Whether the framing marks the end of the body; otherwise the end of the connection does."""
        self._is_bodiless = self._is_chunked = False
        self._probes = 0
        self._probe_at = 0.0
        self._body_left: int | None = None
        """Bytes of a body with a Content-Length that aren't sent yet."""

    # --- the request, as it arrives

    def add_body(self, data: bytes) -> int:
        """Buffer *data* for the application, unless its response is complete; return how many bytes are buffered."""
        if not self.is_complete:
            if not self._body:
                self._body = data
            elif isinstance(self._body, bytearray):
                self._body += data
            else:
                # One buffer: a list of small pieces would take a hundred times their size.
                self._body = bytearray(self._body + data)
            self._wake()
        return self.size

    @property
    def size(self) -> int:
        """How many bytes are buffered for the application."""
        return 0 if self.is_complete else len(self._body)

    def end_body(self) -> None:
        self._more_body = self.awaits_continue = False
        self._wake()

    def disconnect(self) -> None:
        self._is_disconnected = True
        self._wake()

    def _is_waiting(self) -> bool:
        return self._arrival is not None and not self._arrival.is_set()

    def _wake(self) -> None:
        self._has_changed = True
        if self._arrival is not None:
            self._arrival.set()

    # --- called by the application

    async def receive(self) -> dict[str, Any]:
        if self.awaits_continue:
            self.awaits_continue = False
            if not self.has_started and not self._body:
                self._connection.writer.write(_CONTINUE)
            self._connection.expect_more()
        if not self._has_changed:
            self._connection.resume_reading()
            if self._arrival is None:
                self._arrival = asyncio.Event()
            self._arrival.clear()
            await self._arrival.wait()
        if self._is_disconnected or self.is_complete:
            return {"type": "http.disconnect"}
        body, self._body = bytes(self._body), b""
        self._has_changed = False
        return {"type": "http.request", "body": body, "more_body": self._more_body}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        connection = self._connection
        if connection.drained is not None:
            await connection.drained.wait()
        # The transport knows of a disconnect one turn of the loop earlier. An application that only sends would prevent that turn.
        if self._is_disconnected or (message.get("more_body") and connection.writer.is_closing()):
            raise Disconnected("the client disconnected before its response was sent completely")
        kind = message["type"]
        if not self.has_started:
            if kind != "http.response.start":
                raise RuntimeError(f"the application sent {kind!r} before 'http.response.start'")
            connection.writer.begin(self._begin(message["status"], message.get("headers", ())))
            self.has_started = True
        elif kind != "http.response.body" or self.is_complete:
            raise RuntimeError(f"the application sent {kind!r} {'after' if self.is_complete else 'within'} a response")
        else:
            has_more: bool = message.get("more_body", False)
            connection.writer.write(self._frame(message.get("body", b""), has_more))
            if not has_more:
                self.is_complete = True
                self._wake()
                connection.finish(self._keep_alive)

    async def run(self, application: Application) -> None:
        """Run *application*. An exception is logged and answered with 500, or breaks off a response that has begun."""
        status = 500
        try:
            await application(self._scope, self.receive, self.send)
            if not self.has_started and not self._is_disconnected:
                extra = log_extra(self._scope)
                logger.error("%s %r: the application returned without a response", extra["method"], extra["path"], extra=extra)
        except BaseException as error:
            task = asyncio.current_task()
            if isinstance(error, asyncio.CancelledError) and task is not None and task.cancelling():
                # The server is stopping, and has logged that it cuts requests off.
                status = 503
            else:
                extra = log_extra(self._scope)
                level = logging.DEBUG if comes_of(error, ClientDisconnected) else logging.ERROR
                what = "failed after its response" if self.is_complete else "broke off" if self.has_started else "failed"
                logger.log(level, "%s %r %s", extra["method"], extra["path"], what, exc_info=exc_info_of(error), extra=extra)
        if self.is_complete or self._is_disconnected:
            return
        if self.has_started:
            self._connection.break_off(is_delimited=self.is_delimited)
        else:
            self._connection.fail(status)

    # --- the response, framed (RFC 9112, section 6)

    def _begin(self, status: int, fields: Iterable[tuple[bytes, bytes]]) -> bytes:
        """Return the head of the response, with exactly one framing, whatever *fields* contain."""
        line = STATUS_LINES.get(status)
        if line is None:
            raise RuntimeError(f"the application sent the status {status!r}; it must be from 200 to 599")
        connection = self._connection
        is_bodiless = self._scope["method"] == "HEAD" or status in BODILESS
        is_chunked = False
        length: int | None = None
        lines = [line]
        date = connection.date_line()
        for field, value in fields:
            name = _lower(field)
            if name in _FRAMING:
                if name == b"content-length":
                    if not value.isdigit():
                        raise RuntimeError(f"the application sent the content-length {value!r}; it must be digits")
                    length = int(value)
                elif name == b"connection" and b"close" in value.lower():
                    self._keep_alive = False
                continue
            if name == b"date":
                date = b""
            lines += (name, b": ", value, b"\r\n")
        if length is not None and status not in BODILESS:
            lines += (b"content-length", b": ", b"%d" % length, b"\r\n")
        elif not is_bodiless and self._scope["http_version"] == "1.1":
            is_chunked = True
            lines += (b"transfer-encoding", b": ", b"chunked", b"\r\n")
        elif not is_bodiless:
            # The end of the connection is the end of the body (RFC 9112, section 6.3).
            self._keep_alive = self.is_delimited = False
        # Without 100 Continue the client may skip the body, so the next bytes could be a body or a request.
        if self.awaits_continue or connection.is_last():
            self._keep_alive = False
        if not self._keep_alive:
            lines += (b"connection", b": ", b"close", b"\r\n")
        head = b"".join(lines)
        count = 1 + len(lines) // 4
        if head.count(b"\n") != count or head.count(b"\r") != count or b"\0" in head:
            raise RuntimeError("a header of the response holds CR, LF or NUL")
        self._is_bodiless, self._is_chunked, self._body_left = is_bodiless, is_chunked, length
        return b"%b%b\r\n" % (head, date)

    def _frame(self, body: bytes, has_more: bool) -> bytes:
        """Return the bytes to send for *body*."""
        if self._is_bodiless:
            return b""
        if self._is_chunked:
            chunk = b""
            if body:
                chunk = b"%x\r\n%b\r\n" % (len(body), body)
                self._probes = 0
            return chunk if has_more else chunk + b"0\r\n\r\n"
        if self._body_left is not None:
            self._body_left -= len(body)
            if self._body_left < 0 or (self._body_left and not has_more):
                raise RuntimeError("the response's body doesn't have the length of its Content-Length")
        return body

    def probe(self, now: float, *, is_half_closed: bool) -> None:
        """Send something without meaning, at growing intervals: a client that has gone resets the connection."""
        if now < self._probe_at or self._probes >= _MAX_PROBES:
            return
        if self._is_chunked:
            # The size of the next chunk may begin with zeros (RFC 9112, section 7.1).
            self._connection.writer.write(b"0")
        elif is_half_closed and not self.has_started and self._is_waiting() and self._scope["http_version"] == "1.1":
            # The application is waiting in ctx.disconnected(). A client accepts any number of interim responses (RFC 9110,
            # section 15.2). A proxy might not, but proxies don't half-close.
            self._connection.writer.write(_CONTINUE)
        else:
            return
        self._probes += 1
        self._probe_at = now + 2**self._probes
