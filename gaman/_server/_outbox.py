"""Outbox: a response is sent in one piece, and small responses that are ready in one turn of the event loop are sent together.

Waking a client costs as much as sending a small response, so responses that are ready together share one wake-up.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sized
from typing import Final

_LARGE: Final = 1 << 12
"""Responses of more bytes are sent at once."""
_LATE: Final = 0.001
"""Seconds after which a turn is so slow that its responses are sent at once. The loop counts in whole milliseconds."""


class Outbox:
    """The responses that wait for the end of the turn, of all connections of a server."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop
        self._waiting: list[Writer] = []

    def add(self, writer: Writer) -> None:
        """Flush *writer* at the end of the turn."""
        if not self._waiting:
            # Looked up once a turn: up to Python 3.11 it costs a system call.
            self._loop = asyncio.get_running_loop()
            self._loop.call_soon(self.flush)
        self._waiting.append(writer)

    def is_late(self) -> bool:
        """Return whether the turn is slow, by uvloop's clock, which stands still in a turn; a clock that runs on never says so."""
        return time.monotonic() - self._loop.time() > _LATE

    def flush(self) -> None:
        """Send everything that waits; a write that raises is reported to the event loop and does not affect the others."""
        waiting, self._waiting = self._waiting, []
        for writer in waiting:
            try:
                writer.flush()
            except Exception as error:
                self._loop.call_exception_handler({"message": "a response could not be sent", "exception": error})


class Writer:
    """The writing side of a connection: keeps a response's head until the first of its body is there, and both until the turn ends.

    *in_flight* are the requests that the server is answering: a response that is alone is sent at once.
    """

    __slots__ = ("_in_flight", "_outbox", "_pending", "_transport", "is_closing")

    def __init__(self, transport: asyncio.WriteTransport, outbox: Outbox, in_flight: Sized) -> None:
        self._transport = transport
        self._outbox = outbox
        self._in_flight = in_flight
        self._pending = b""
        self.is_closing = transport.is_closing

    def begin(self, head: bytes) -> None:
        """Write the head of a response, to be sent with what write() adds to it, or at the end of the turn."""
        if self._pending:
            self._pending += head
        else:
            self._pending = head
            self._outbox.add(self)

    def write(self, data: bytes) -> None:
        """Write *data* behind everything that was written before."""
        if not self._pending:
            self._transport.write(data)
            return
        self._pending += data
        if len(self._in_flight) == 1 or len(self._pending) > _LARGE:
            self.flush()
        elif self._outbox.is_late():
            self._outbox.flush()

    def flush(self) -> None:
        """Send what waits, unless the client has left."""
        pending, self._pending = self._pending, b""
        if pending and not self.is_closing():
            self._transport.write(pending)

    def close(self) -> None:
        """Send what waits and close the connection."""
        self.flush()
        self._transport.close()
