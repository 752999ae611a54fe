"""HTTP/1.1 (RFC 9112) on one connection: httptools parses its requests, which are answered in order.

From uvicorn it uses how a server makes a protocol (it calls `Config.http_protocol_class` with config, server_state, app_state and
_loop), and the server's sets of `connections` and `tasks`. From the event loop, uvloop's or asyncio's, it uses that a transport
stays open for writing where `eof_received()` returns True, that no data arrives while reading is paused, and that `close()` first
sends what was written.
"""

from __future__ import annotations

import asyncio
from collections import deque
from math import inf
from typing import TYPE_CHECKING, Any, Final, cast

from gaman._response import Scope
from gaman._server import _tcp
from gaman._server._exchange import STATUS_LINES, Exchange
from gaman._server._outbox import Writer
from gaman._server._parser import RefusedError, RequestParser

if TYPE_CHECKING:
    from uvicorn import Config
    from uvicorn.server import ServerState

    from gaman._server._connections import Connections

_MAX_BUFFERED: Final = 1 << 16
"""Bytes of a body that wait for the application before reading pauses."""
_MAX_SEGMENT: Final = 1 << 16
"""Bytes after which a connection lets others have their turn."""
_MAX_REFUSED: Final = 32
"""Connections beyond max_connections that linger; more are closed at once."""
_LINGER: Final = 1.0
"""Seconds in which a client that has taken the last response may close the connection itself."""


class Connection(asyncio.Protocol):
    """A client's connection: parses its requests ahead, has them answered one after another, and decides when it ends."""

    writer: Writer
    _transport: asyncio.Transport
    _parser: RequestParser

    def __init__(self, shared: Connections, config: Config, state: ServerState, user_state: dict[str, Any]) -> None:
        self._shared = shared
        self._state = state
        self._user_state = user_state
        self._app = shared.app
        self._idle_timeout = config.timeout_keep_alive
        self._loop = asyncio.get_running_loop()
        self._is_ending = False
        """Whether nothing more is parsed, because the connection ends with what is being answered."""
        self._is_lingering = False
        """Whether everything is answered, and only the client's end is awaited."""

        self._receiving: Exchange | None = None
        # The requests that are to be answered, in order.
        self._exchange: Exchange | None = None
        self._queue: deque[Exchange] = deque()
        self._unparsed = b""
        self._refusal: int | None = None
        """The status that answers what could not be parsed, after all others."""

        self._deadline = inf
        """When the client has been silent for too long, by the loop's clock."""
        self._has_ended = False
        """Whether the client sends no more."""
        self._grace: float | None = None
        """Seconds for one more request, once the server stops."""

        self._is_paused = False
        self.drained: asyncio.Event | None = None
        """Set once the client has taken enough of what was written; None where it keeps up."""
        self._unsent = -1
        """Bytes that the client had not taken at the last look."""
        self._unsent_since = inf

    # --- what the event loop calls

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self.writer = Writer(self._transport, self._shared.outbox, self._state.tasks)
        base_scope = {
            "type": "http",
            "server": _tcp.address(transport.get_extra_info("sockname")),
            "client": _tcp.address(transport.get_extra_info("peername")),
            "scheme": "https" if transport.get_extra_info("sslcontext") else "http",
            "root_path": "",
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
                if len(refused) > _MAX_REFUSED:
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
        """Keep the connection while there are responses to send: a client that sends no more may still read."""
        self._has_ended = True
        receiving, self._receiving = self._receiving, None
        if receiving is not None:
            # Its request will never be complete. None is behind it, because that would have paused reading.
            receiving.disconnect()
            self._exchange = None
            if receiving.has_started and not receiving.is_complete:
                self.break_off(is_delimited=receiving.is_delimited)
        if self._exchange is not None:
            return True
        # Its last response may still wait for the end of the turn.
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

    # --- what the server calls

    def shutdown(self, grace: float) -> None:
        """Answer what is in flight, or one more request within *grace* seconds, with `Connection: close`, and close."""
        self._grace = grace
        if self._exchange is None and (not self._is_lingering or not grace):
            self._loop.call_later(grace, self._close_idle)

    def _close_idle(self) -> None:
        if self._grace == 0 or (self._exchange is None and not self._is_lingering):
            self._close() if _tcp.count_unsent(self._transport) else self.writer.close()

    def check(self, now: float) -> None:
        """End the connection if its client has been silent for too long, or has left."""
        receiving = self._receiving
        if self._is_lingering or self.drained is not None or self.writer.is_closing():
            self._check_reader(now)
        elif self._exchange is not None and (self._has_ended or self._is_paused):
            self._look_for_client(self._exchange, now)
        elif now >= self._deadline and not self._is_paused and (receiving is None or not receiving.awaits_continue):
            self._time_out(now)

    def _time_out(self, now: float) -> None:
        if self._receiving is None and self._parser.fields is None:
            # There is no request to answer, but a client that still reads the last response is not idle.
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
        """Break the connection off if the client takes nothing of a response, or after it has taken the last, does not close."""
        unsent = _tcp.count_unsent(self._transport)
        if unsent != self._unsent:
            self._unsent, self._unsent_since = unsent, now
        elif now - self._unsent_since >= (self._timeout if unsent else _LINGER):
            if unsent:
                self._shared.log_once(
                    "a client took nothing of its response for timeout_request=%g seconds (logged once)", self._timeout
                )
            self._transport.abort()

    def _look_for_client(self, exchange: Exchange, now: float) -> None:
        """Break the connection off if the client has left, which the loop does not notice while nothing is read or written."""
        state = _tcp.client_state(self._transport)
        if state == "gone":
            self._transport.abort()
        elif state is not None:
            # A client that has left looks like one that half-closes, but answers what it is sent with a reset.
            exchange.probe(now, has_ended=self._has_ended or state == "half-closed")

    @property
    def _timeout(self) -> float:
        return self._shared.timeout_request

    def expect_more(self) -> None:
        """Give the client its time to send the next byte."""
        self._deadline = self._loop.time() + self._timeout

    # --- what the parser calls

    def begin_request(self, scope: Scope, *, keep_alive: bool, awaits_continue: bool) -> None:
        scope["state"] = self._user_state.copy()
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
        """Read on, unless there are requests to answer first, or a body waits for the application, or the server stops."""
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
        """Return whether the response that now begins is the last, so that its head must say so."""
        return (self._grace is not None or self._has_ended) and not (self._queue or self._unparsed or self._refusal)

    def finish(self, keep_alive: bool) -> None:
        """Answer the next request, after a response that is complete, or close."""
        self._exchange = None
        if self.writer.is_closing():
            return
        if not keep_alive:
            self._close()
            return
        if self._queue:
            self._start(self._queue.popleft())
        if self._unparsed and not self._queue:
            # It may begin with the rest of the body that this request waits for. Requests behind that are not begun any more.
            data, self._unparsed = self._unparsed, b""
            if self._grace is None or self._receiving is not None:
                self._parse(data)
        if self._exchange is None:
            self._end_or_idle()
        self.resume_reading()

    def _end_or_idle(self) -> None:
        if self._refusal is not None:
            self._send_refusal(self._refusal)
        elif self._has_ended:
            self.writer.close()
        elif self._grace is not None:
            self.shutdown(self._grace)
        elif self._receiving is not None:
            # The rest of a body that was answered early, however slowly it comes.
            self.expect_more()
        elif self._parser.fields is None and not self._is_ending:
            self._become_idle()

    def _become_idle(self) -> None:
        self._deadline = self._loop.time() + self._idle_timeout

    def break_off(self, *, is_delimited: bool) -> None:
        """End the connection in the middle of a response, so that the client does not take it for complete."""
        self._exchange = None
        self.writer.flush()
        if not is_delimited:
            # Where the end of the connection is the end of the body, only a reset tells that it is cut off.
            _tcp.reset(self._transport)
        elif not self.writer.is_closing():
            self._close()

    def _refuse(self, status: int) -> None:
        """Answer what is arriving with *status*, after the requests before it, and close."""
        self._is_ending = True
        self._deadline = inf
        receiving, self._receiving = self._receiving, None
        if receiving is not None and receiving in self._queue:
            self._queue.remove(receiving)
        elif receiving is not None:
            receiving.disconnect()
            if receiving.has_started:
                # It has its response, or the beginning of one.
                self.break_off(is_delimited=receiving.is_complete or receiving.is_delimited)
                return
            self._exchange = None
        if self._exchange is None:
            self._send_refusal(status)
        else:
            self._refusal = status

    def fail(self, status: int) -> None:
        """Answer the request in progress with *status*, and close."""
        self._exchange = None
        self._send_refusal(status)

    def _send_refusal(self, status: int) -> None:
        self._refusal = None
        text = STATUS_LINES[status][9:-2]
        head = b"%bcontent-type: text/plain; charset=utf-8\r\ncontent-length: %d\r\nconnection: close\r\n%b\r\n"
        self.writer.begin(head % (STATUS_LINES[status], len(text), self.date_line()) + text)
        self._close()

    def _close(self) -> None:
        """Close after the last response, in stages (RFC 9112, section 9.6).

        A close resets the connection if the client sends more, and the client may then lose what it has not read of the response.
        """
        self._is_ending = self._is_lingering = True
        self._receiving = None
        self._queue.clear()
        self._unparsed = b""
        self._unsent = -1
        if self._has_ended:
            self.writer.close()
            return
        self.writer.flush()
        try:
            self._transport.write_eof()
        except OSError:
            # asyncio, unlike uvloop, tells at once that the client has left.
            self._transport.abort()
        self.resume_reading()
