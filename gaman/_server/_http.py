"""The HTTP/1.1 protocol: uvicorn's, with limits of our own."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gaman._server._outbox import Outbox, Transport

_MAX_HEAD = 1 << 18
# Seconds in which a connection that has yet to ask may still do so when the server stops.
_LAST_CHANCE = 0.5


class Protocol(HttpToolsProtocol):
    """HTTP/1.1 with a limit for a request's head, in bytes; httptools has none, and an endless header would fill the memory."""

    _in_head = False
    _has_asked = _is_last = False

    def __init__(self, outbox: Outbox, **given: Any) -> None:
        super().__init__(**given)
        self._outbox = outbox

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        wrapped = Transport(transport, self._outbox, self.tasks)
        super().connection_made(wrapped)  # type: ignore[arg-type] # no asyncio.Transport by name, it has all that uvicorn asks of one

    _head_size = 0

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_size += len(data)
            if self._head_size > _MAX_HEAD:
                self.send_400_response("The request's header is too large.")
                return
        # Three calls of super() would cost a request 3 % of its time up to Python 3.11.
        HttpToolsProtocol.data_received(self, data)

    def on_message_begin(self) -> None:
        self._in_head, self._head_size = True, 0
        HttpToolsProtocol.on_message_begin(self)

    def on_headers_complete(self) -> None:
        self._in_head, self._has_asked = False, True
        HttpToolsProtocol.on_headers_complete(self)
        if self._is_last:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        if not self._has_asked and not self._is_last:
            # Who has just connected is about to ask, and gets an answer.
            self._is_last = True
            self.loop.call_later(_LAST_CHANCE, self.shutdown)
        elif not self.transport.is_closing():
            super().shutdown()

    def _unsupported_upgrade_warning(self) -> None:
        # The request for a WebSocket is answered as any other (RFC 9110, section 7.8); it is no news for the log.
        pass
