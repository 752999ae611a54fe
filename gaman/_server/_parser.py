"""RequestParser: httptools turns the bytes of a connection into requests, within limits (RFC 9112)."""

from __future__ import annotations

from collections.abc import Sized
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote

import httptools

from gaman._asgi import Scope
from gaman._headers import MAX_FIELDS, RawHeaders

if TYPE_CHECKING:
    from gaman._server._http import Connection

_MAX_HEAD: Final = 1 << 18
"""Bytes before a body or between two pieces of it: a request's head, a chunk's extensions, the trailers."""
_MAX_TARGET: Final = 1 << 16
"""Bytes of a request's target. Decoding them takes up to 20 ms."""
_MAX_AHEAD: Final = 64
"""Requests of a connection that are parsed and not yet answered."""

_END_OF_HEAD: Final = b"\r\n\r\n"
_CHECKED: Final = frozenset({b"content-length", b"expect", b"host", b"transfer-encoding"})
"""Fields that on_header() evaluates."""


class RefusedError(Exception):
    """The request that is arriving can't be served: it is answered with *status*, and the connection ends."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class RequestParser:
    """Parses requests and passes each to *connection*: begin_request(), add_body() for each piece, end_request().

    *base_scope* has the keys of an ASGI scope that all requests of the connection share.
    """

    _parser: httptools.HttpRequestParser

    def __init__(self, connection: Connection, base_scope: Scope) -> None:
        self._connection = connection
        self._base_scope = base_scope
        self._target = b""
        self.fields: RawHeaders | None = None
        """The fields of the head that is arriving, so far; None outside a head."""
        self._declined: RawHeaders | None = None
        """The fields of a head that offered an upgrade, until it is parsed again without the offer."""
        self._has_host = self._expects_continue = False
        self._body_left = 0
        """Bytes of a body with a Content-Length that haven't arrived."""
        self._unread = 0
        """Bytes parsed since the last piece of a body, or since the message began."""
        self._restart()

    def _restart(self) -> None:
        self._parser = httptools.HttpRequestParser(self)
        # Data after the client's last request is discarded. It isn't an error of that request.
        self._parser.set_dangerous_leniencies(lenient_data_after_close=True)

    def close(self) -> None:
        """Break the reference cycles with *connection* and httptools' parser, to free them without the garbage collector."""
        del self._connection, self._parser

    def feed(self, data: bytes, queue: Sized) -> bytes:
        """Parse *data* until *queue* is full of unanswered requests, and return the rest; RefusedError if it can't be parsed."""
        start = 0
        while start < len(data):
            # Each end of a head is a request, and one may have begun before *data*.
            room = _MAX_AHEAD - len(queue) - 1
            if room <= 0:
                return data[start:]
            if self._body_left:
                end = min(len(data), start + self._body_left)
            elif not start and data.count(_END_OF_HEAD) <= room:
                end = len(data)
            else:
                end = _find_nth(data, _END_OF_HEAD, room, start)
            self._unread += end - start
            try:
                self._parser.feed_data(memoryview(data)[start:end] if end - start < len(data) else data)
                start = end
            except httptools.HttpParserUpgrade as offer:
                data = self._decline_upgrade() + data[start + offer.args[0] :]
                start = 0
            except httptools.HttpParserCallbackError as error:
                if isinstance(error.__context__, RefusedError):
                    raise error.__context__ from None
                raise
            except httptools.HttpParserError:
                raise RefusedError(400) from None
        if self._unread > _MAX_HEAD:
            raise RefusedError(431)
        return b""

    def _decline_upgrade(self) -> bytes:
        """Return the head without the offer, for a new parser: the old one would take the body for another protocol."""
        request_line = (self._parser.get_method(), self._target, b"HTTP/" + self._parser.get_http_version().encode())
        fields = [b"%b: %b" % field for field in self._declined or () if field[0] != b"upgrade"]
        self._restart()
        return b"\r\n".join([b" ".join(request_line), *fields, b"", b""])

    # --- called by httptools

    def on_message_begin(self) -> None:
        self._unread = 0
        self._target = b""
        self.fields = []
        self._has_host = self._expects_continue = False
        self._body_left = 0
        self._connection.expect_more()

    def on_url(self, url: bytes) -> None:
        self._target += url
        if len(self._target) > _MAX_TARGET:
            raise RefusedError(414)

    def on_header(self, name: bytes, value: bytes) -> None:
        fields = self.fields
        if fields is None:
            # A trailer, which must not pass for a field of the head (RFC 9110, section 6.5.1).
            return
        if len(fields) >= MAX_FIELDS:
            raise RefusedError(431)
        name, value = name.lower(), value.rstrip(b" \t")
        if name in _CHECKED:
            if name == b"host":
                if self._has_host:
                    raise RefusedError(400)
                self._has_host = True
            elif name == b"content-length":
                self._body_left = int(value)
            elif name == b"expect":
                self._expects_continue |= b"100-continue" in [each.strip() for each in value.lower().split(b",")]
            elif value.lower() != b"chunked":
                raise RefusedError(501)
        fields.append((name, value))

    def on_headers_complete(self) -> None:
        parser, fields = self._parser, self.fields or []
        method = parser.get_method()
        if parser.should_upgrade():
            if method == b"CONNECT":
                raise RefusedError(400)
            # A server may ignore the offer (RFC 9110, section 7.8).
            self._declined = fields
            return
        version = parser.get_http_version()
        if version not in ("1.1", "1.0"):
            raise RefusedError(505)
        if self._declined is not None:
            fields, self._declined = self._declined, None
        self.fields = None
        raw_path, _, query = self._target.partition(b"#")[0].partition(b"?")
        path = raw_path.decode("ascii")
        is_1_1 = version == "1.1"
        scope = {
            **self._base_scope,
            # Not 2.4, for which Starlette notices a disconnect only when it sends; send() raises as 2.4 wants.
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": version,
            "method": method.decode("ascii"),
            "path": unquote(path) if "%" in path else path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": fields,
        }
        self._connection.begin_request(
            scope, keep_alive=is_1_1 and parser.should_keep_alive(), awaits_continue=is_1_1 and self._expects_continue
        )

    def on_body(self, body: bytes) -> None:
        self._unread = 0
        if self._body_left:
            self._body_left -= len(body)
        self._connection.add_body(body)

    def on_message_complete(self) -> None:
        self._connection.end_request()


def _find_nth(data: bytes, part: bytes, n: int, start: int) -> int:
    """Return where the *n*th *part* after *start* ends, or the end of *data* if there are fewer."""
    for _ in range(n):
        if (found := data.find(part, start)) < 0:
            return len(data)
        start = found + len(part)
    return start
