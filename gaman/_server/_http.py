"""The HTTP/1.1 protocol: uvicorn's, with limits of our own."""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from uvicorn._types import ASGI3Application
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from gaman._server._outbox import Outbox, Transport

_MAX_HEAD = 1 << 18


class Protocol(HttpToolsProtocol):
    """HTTP/1.1 with a limit for a request's head, in bytes; httptools has none, and an endless header would fill the memory."""

    _in_head = False
    _is_last = False

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
        self._in_head = False
        HttpToolsProtocol.on_headers_complete(self)
        if self._is_last:
            self.cycle.keep_alive = False

    def shutdown(self, grace: float = 0.5) -> None:
        """Close after the request in flight, or, where there is none, after the next one or *grace* seconds."""
        self._is_last = True
        if self._is_busy():
            self.cycle.keep_alive = False
        else:
            self.loop.call_later(grace, self._close_if_idle)

    def _is_busy(self) -> bool:
        return bool(self.cycle) and not self.cycle.response_complete

    def _close_if_idle(self) -> None:
        if not self._is_busy() and not self.transport.is_closing():
            self.transport.close()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        super()._start_asgi_task(cycle, partial(_answer, cycle, app))

    def _unsupported_upgrade_warning(self) -> None:
        # The request for a WebSocket is answered as any other (RFC 9110, section 7.8); it is no news for the log.
        pass


async def _answer(cycle: RequestResponseCycle, app: ASGI3Application, *given: Any) -> None:
    try:
        await app(*given)
    except asyncio.CancelledError:
        # The server cuts it off, and says so.
        if cycle.response_started:
            cycle.disconnected = True
            cycle.transport.close()
        else:
            cycle.keep_alive = False
            await cycle.send({"type": "http.response.start", "status": 503, "headers": [(b"content-length", b"0")]})
            await cycle.send({"type": "http.response.body", "body": b"", "more_body": False})
