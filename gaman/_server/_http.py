"""Connection: HTTP/1.1 (RFC 9112) with one client, whose requests are answered in order.

It relies on uvicorn for two things: the server creates a protocol by calling `Config.http_protocol_class` with config,
server_state, app_state and _loop, and it has sets of `connections` and `tasks`.

It relies on the event loop, uvloop's or asyncio's, for three. A transport stays open for writing if `eof_received()` returns True.
No data arrives while reading is paused. `close()` first sends what was written.
"""

from __future__ import annotations

import asyncio
from collections import deque
from math import inf
from typing import TYPE_CHECKING, Any, Final, cast

from gaman._asgi import STOPPING, Scope
from gaman._server import _tcp
from gaman._server._exchange import STATUS_LINES, Exchange
from gaman._server._outbox import Writer
from gaman._server._parser import RefusedError, RequestParser

if TYPE_CHECKING:
    from uvicorn import Config
    from uvicorn.server import ServerState

    from gaman._server._connections import Connections

_MAX_BUFFERED: Final = 1 << 16
"""Bytes of a body that the application hasn't received. Beyond them, reading pauses."""
_MAX_SEGMENT: Final = 1 << 16
"""Bytes received at once after which reading pauses for one turn of the loop, so that other connections have theirs."""
MAX_REFUSED: Final = 32
"""Connections beyond max_connections that get a graceful close. Further ones are closed at once."""
_LINGER: Final = 1.0
"""Seconds that a client has, after it received the last response, to close the connection itself."""


class Connection(asyncio.Protocol):
    """A client's connection: parses requests ahead, runs the application for one after another, and decides when to close."""

    writer: Writer
    _transport: asyncio.Transport
    _parser: RequestParser

    def __init__(self, shared: Connections, config: Config, state: ServerState, app_state: dict[str, Any]) -> None:
        self._shared = shared
        self._state = state
        self._app_state = app_state
        self._app = shared.app
        self._idle_timeout = config.timeout_keep_alive
        self._loop = asyncio.get_running_loop()
        self._is_ending = False
        """Whether parsing has stopped, because the connection ends after the current response."""
        self._is_lingering = False
        """Whether the last response is written, and only the client's close is awaited."""

        self._receiving: Exchange | None = None
        """The request whose body is arriving."""
        self._exchange: Exchange | None = None
        """The request that is being answered."""
        self._queue: deque[Exchange] = deque()
        """The requests to answer after it, in order."""
        self._unparsed = b""
        """The bytes that arrived when the queue was full."""
        self._refusal: int | None = None
        """The status that answers, after all others, a request that couldn't be parsed."""

        self._deadline = inf
        """When to end the connection unless the client sends something, by the loop's clock."""
        self._is_half_closed = False
        """Whether the client has closed its side."""
        self._grace: float | None = None
        """Seconds that the client has for one more request; None unless the server is stopping."""

        self._is_paused = False
        self.drained: asyncio.Event | None = None
        """Set when the client has received enough of what was written; None while the client keeps up."""
        self._unsent = -1
        """Bytes that the client hadn't acknowledged at the last check, or -1."""
        self._unsent_since = inf

    # --- called by the event loop

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.writer = Writer(self._transport, self._shared.outbox, self._state.tasks)
        base_scope = {
            "type": "http",
            "server": _tcp.address(transport.get_extra_info("sockname")),
            "client": _tcp.address(transport.get_extra_info("peername")),
            "scheme": "https" if _tcp.is_secure(self._transport) else "http",
            "root_path": "",
            STOPPING: self._shared.stopping,
        }
        self._parser = RequestParser(self, base_scope)
        connections: set[Any] = self._state.connections
        connections.add(self)
        self._shared.watch(self)
        _tcp.keep_alive(self._transport, self._timeout)
        self.expect_more()
        if (limit := self._shared.max_connections) is not None:
            refused = self._shared.refused
            if len(connections) - len(refused) > limit:
                self._shared.log_once("max_connections=%d are open, so a new connection is answered 503 (logged once)", limit)
                refused.add(self)
                self._refuse(503)
                if len(refused) > MAX_REFUSED:
                    self._transport.close()

    def data_received(self, data: bytes) -> None:
        if self._unparsed:
            self._unparsed += data
        elif not self._is_ending:
            self._parse(data)
            if self._receiving is not None and not self._receiving.is_complete:
                self.expect_more()
        if len(data) >= _MAX_SEGMENT:
            self._pause_reading()
            self._loop.call_soon(self.resume_reading)

    def eof_received(self) -> bool:
        """Keep the connection open while there are responses to send: a client that half-closes may still read."""
        self._is_half_closed = True
        receiving, self._receiving = self._receiving, None
        if receiving is not None:
            # Its request will never be complete. No request is queued, because reading pauses while one is.
            receiving.disconnect()
            self._exchange = None
            if receiving.has_started and not receiving.is_complete:
                self.break_off(is_delimited=receiving.is_delimited)
        # With TLS, the event loop closes the connection whatever this returns.
        if self._exchange is not None and not _tcp.is_secure(self._transport):
            return True
        # The last response may still be in the outbox.
        self.writer.flush()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        connections: set[Any] = self._state.connections
        connections.discard(self)
        self._shared.unwatch(self)
        self._shared.refused.discard(self)
        if self._exchange is not None:
            self._exchange.disconnect()
        self._queue.clear()
        self._unparsed = b""
        self._parser.close()
        self._exchange = self._receiving = None
        self.resume_writing()

    def pause_writing(self) -> None:
        self.drained = asyncio.Event()

    def resume_writing(self) -> None:
        drained, self.drained = self.drained, None
        self._unsent = -1
        if drained is not None:
            drained.set()

    # --- called by the server

    def shutdown(self, grace: float) -> None:
        """Close after the requests in flight, or one more within *grace* seconds, whose response has `Connection: close`."""
        self._grace = grace
        if self._exchange is None and (not self._is_lingering or not grace):
            self._loop.call_later(grace, self._close_idle)

    def _close_idle(self) -> None:
        if self.writer.is_closing():
            return
        if self._grace == 0 or (self._exchange is None and not self._is_lingering):
            self._close() if _tcp.count_unsent(self._transport) else self.writer.close()

    def check(self, now: float) -> None:
        """End the connection if the client has been silent for too long or has gone."""
        receiving = self._receiving
        if self._is_lingering or self.drained is not None or self.writer.is_closing():
            self._check_reader(now)
        elif self._exchange is not None and (self._is_half_closed or self._is_paused):
            self._check_client(self._exchange, now)
        elif now >= self._deadline and not self._is_paused and (receiving is None or not receiving.awaits_continue):
            self._time_out(now)

    def _time_out(self, now: float) -> None:
        if self._receiving is None and self._parser.fields is None:
            # No request is arriving, but a client that still reads the last response isn't idle.
            if _tcp.count_unsent(self._transport):
                self._become_idle()
                self._check_reader(now)
            else:
                self.writer.close()
        else:
            if self._receiving is None or not self._receiving.is_complete:
                self._shared.log_once(
                    "a client was silent within its request for timeout_request=%g seconds (logged once)", self._timeout
                )
            self._refuse(408)

    def _check_reader(self, now: float) -> None:
        """Abort the connection if the client stops reading a response, or doesn't close after the last one."""
        unsent = _tcp.count_unsent(self._transport)
        if unsent != self._unsent:
            self._unsent, self._unsent_since = unsent, now
        elif now - self._unsent_since >= (self._timeout if unsent else _LINGER):
            if unsent:
                self._shared.log_once(
                    "a client read nothing of its response for timeout_request=%g seconds (logged once)", self._timeout
                )
            self._transport.abort()

    def _check_client(self, exchange: Exchange, now: float) -> None:
        """Abort the connection if the client has gone, which the loop doesn't notice while it neither reads nor writes."""
        state = _tcp.client_state(self._transport)
        if state == "gone":
            self._transport.abort()
        elif state is not None:
            # A client that has gone looks half-closed, but it resets the connection if it is sent anything.
            exchange.probe(now, is_half_closed=self._is_half_closed or state == "half-closed")

    @property
    def _timeout(self) -> float:
        return self._shared.timeout_request

    def expect_more(self) -> None:
        """Give the client timeout_request seconds to send the next byte."""
        self._deadline = self._loop.time() + self._timeout

    # --- called by the parser

    def begin_request(self, scope: Scope, *, keep_alive: bool, awaits_continue: bool) -> None:
        scope["state"] = self._app_state.copy()
        self._receiving = exchange = Exchange(self, scope, keep_alive)
        exchange.awaits_continue = awaits_continue
        if self._exchange is None:
            self._start(exchange)
        else:
            self._queue.append(exchange)

    def add_body(self, body: bytes) -> None:
        if self._receiving is not None and self._receiving.add_body(body) > _MAX_BUFFERED:
            self._pause_reading()

    def end_request(self) -> None:
        exchange, self._receiving = self._receiving, None
        if exchange is not None:
            self._deadline = inf
            exchange.end_body()
            if self._exchange is None:
                self._become_idle()

    # --- reading

    def _parse(self, data: bytes) -> None:
        try:
            self._unparsed = self._parser.feed(data, self._queue)
        except RefusedError as refused:
            self._refuse(refused.status)
        if self._queue or self._unparsed:
            self._pause_reading()

    def _pause_reading(self) -> None:
        if not self._is_paused and not self.writer.is_closing():
            self._is_paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Resume reading, unless requests are queued, the application has a body to receive, or the server is stopping."""
        receiving = self._receiving
        if (
            self._is_paused
            and not self.writer.is_closing()
            and not self._queue
            and not self._unparsed
            and (receiving is None or receiving.size <= _MAX_BUFFERED)
            and (self._grace is None or self._exchange is None or self._exchange is receiving)
        ):
            self._is_paused = False
            if self._receiving is not None or self._parser.fields is not None:
                self.expect_more()
            self._transport.resume_reading()

    # --- answering

    def _start(self, exchange: Exchange) -> None:
        self._exchange = exchange
        task = self._loop.create_task(exchange.run(self._app))
        task.add_done_callback(self._state.tasks.discard)
        self._state.tasks.add(task)

    def date_line(self) -> bytes:
        return self._shared.date_line()

    def is_last(self) -> bool:
        """Return whether the response that begins now is the last one, so that its head has `Connection: close`."""
        return (self._grace is not None or self._is_half_closed) and not (self._queue or self._unparsed or self._refusal)

    def finish(self, keep_alive: bool) -> None:
        """Start the next request after a complete response, or close."""
        self._exchange = None
        if self.writer.is_closing():
            return
        if not keep_alive:
            self._close()
            return
        if self._queue:
            self._start(self._queue.popleft())
        if self._unparsed and not self._queue:
            # These bytes may begin with the rest of this request's body. If the server is stopping, no later request starts.
            data, self._unparsed = self._unparsed, b""
            if self._grace is None or self._receiving is not None:
                self._parse(data)
        if self._exchange is None:
            self._end_or_idle()
        self.resume_reading()

    def _end_or_idle(self) -> None:
        if self._refusal is not None:
            self._send_refusal(self._refusal)
        elif self._is_half_closed:
            self.writer.close()
        elif self._grace is not None:
            self.shutdown(self._grace)
        elif self._receiving is not None:
            # The response was early. The rest of the body may arrive slowly.
            self.expect_more()
        elif self._parser.fields is None and not self._is_ending:
            self._become_idle()

    def _become_idle(self) -> None:
        self._deadline = self._loop.time() + self._idle_timeout

    def break_off(self, *, is_delimited: bool) -> None:
        """End the connection within a response, in a way that shows the client that the response is incomplete."""
        self._exchange = None
        self.writer.flush()
        if not is_delimited:
            # The body would end with the connection, so only a reset shows that it is incomplete.
            _tcp.reset(self._transport)
        elif not self.writer.is_closing():
            self._close()

    def _refuse(self, status: int) -> None:
        """Answer the request that is arriving with *status*, after the requests before it, and close."""
        self._is_ending = True
        self._deadline = inf
        receiving, self._receiving = self._receiving, None
        if receiving is not None and receiving in self._queue:
            self._queue.remove(receiving)
        elif receiving is not None:
            receiving.disconnect()
            if receiving.has_started:
                # Its response is sent, or has begun.
                self.break_off(is_delimited=receiving.is_complete or receiving.is_delimited)
                return
            self._exchange = None
        if self._exchange is None:
            self._send_refusal(status)
        else:
            self._refusal = status

    def fail(self, status: int) -> None:
        """Answer the current request with *status*, and close."""
        self._exchange = None
        self._send_refusal(status)

    def _send_refusal(self, status: int) -> None:
        self._refusal = None
        text = STATUS_LINES[status][9:-2]
        head = b"%bcontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n%b\r\n"
        self.writer.begin(head % (STATUS_LINES[status], len(text), self.date_line()) + text)
        self._close()

    def _close(self) -> None:
        """Close in stages after the last response (RFC 9112, section 9.6).

        If the client sent more after a plain close, TCP would reset the connection, and the client could lose unread data.
        """
        self._is_ending = self._is_lingering = True
        self._receiving = None
        self._queue.clear()
        self._unparsed = b""
        self._unsent = -1
        # With TLS, close() sends an alert, and reads until the client has sent its own (RFC 8446, section 6.1).
        if self._is_half_closed or _tcp.is_secure(self._transport):
            self.writer.close()
            return
        self.writer.flush()
        try:
            self._transport.write_eof()
        except OSError:
            # asyncio, unlike uvloop, raises at once if the client has gone.
            self._transport.abort()
        self.resume_reading()
