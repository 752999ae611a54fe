"""Outbox: a response goes out in one piece, and small ones that are ready in one turn of the event loop go out together.

To wake a client costs the system as much as a small response does, and whoever is awake takes several.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sized
from typing import Any, Final

_LARGE: Final = 1 << 12
"""Bytes of a response from which on it is better sent at once than come back to."""
_LATE: Final = 0.001
"""Seconds after which a turn is so slow that nobody waits for its end. The loop counts in whole milliseconds."""


class Outbox:
    """What waits for the end of the turn, for all connections of a server."""

    def __init__(self) -> None:
        self._loop: asyncio.AbstractEventLoop
        self._waiting: list[Transport] = []

    def add(self, transport: Transport) -> None:
        """Flush *transport* at the end of the turn."""
        if not self._waiting:
            # Asked for once a turn: up to Python 3.11 it costs a system call.
            self._loop = asyncio.get_running_loop()
            self._loop.call_soon(self.flush)
        self._waiting.append(transport)

    def is_late(self) -> bool:
        """Return whether the turn is slow, by uvloop's clock, which stands still in a turn; by one that runs on, none ever is."""
        return time.monotonic() - self._loop.time() > _LATE

    def flush(self) -> None:
        """Send all that waits."""
        waiting, self._waiting = self._waiting, []
        for transport in waiting:
            transport.flush()


class Transport:
    """A transport for HTTP/1.1 that keeps a response's head until the first of its body is there, and both until the turn ends.

    *under_way* are the requests that the server is answering: where there is but one, its response waits for nobody.
    """

    __slots__ = ("__weakref__", "_outbox", "_response", "_transport", "_under_way", "is_closing")

    def __init__(self, transport: asyncio.Transport, outbox: Outbox, under_way: Sized) -> None:
        self._transport = transport
        self._outbox = outbox
        self._under_way = under_way
        # Asked at each response, and __getattr__ is slow.
        self.is_closing = transport.is_closing
        self._response = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._response:
            self._response += data
            if len(self._under_way) == 1 or len(self._response) > _LARGE:
                self.flush()
            elif self._outbox.is_late():
                self._outbox.flush()
        elif data.startswith(b"HTTP/1.1 "):
            self._response = data
            self._outbox.add(self)
        else:
            self._transport.write(data)

    def close(self) -> None:
        self.flush()
        self._transport.close()

    def flush(self) -> None:
        """Send what waits, unless the client has left."""
        response, self._response = self._response, b""
        if response and not self.is_closing():
            self._transport.write(response)
