"""Connections: creates the connections of a server, holds what they share, and checks them for silent clients."""

from __future__ import annotations

import asyncio
import logging
import time
from email.utils import formatdate
from typing import Any, Final

import uvicorn
from uvicorn.server import ServerState

from gaman._asgi import Application
from gaman._server._http import MAX_REFUSED, Connection
from gaman._server._outbox import Outbox

logger = logging.getLogger("gaman")

_CHECK_INTERVAL: Final = 1.0
"""Seconds between two checks of all connections."""


class Connections:
    """What the connections of a server share. uvicorn calls it as it calls a protocol class, to create a connection.

    *timeout_request* is in seconds. A connection beyond *max_connections* gets 503 or is closed; None sets no limit.
    """

    def __init__(self, app: Application, timeout_request: float, max_connections: int | None) -> None:
        self.app = app
        self.timeout_request = timeout_request
        self.max_connections = max_connections
        self.outbox = Outbox()
        self.stopping = asyncio.Event()
        """Set when the server begins to stop."""
        self.refused: set[Connection] = set()
        """The connections beyond max_connections, which end soon."""
        self._connections: set[Connection] = set()
        self._is_checking = False
        self._logged: set[str] = set()
        self._second = 0
        self._date_line = b""

    def __call__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> Connection:
        return Connection(self, config, server_state, app_state)

    def has_room(self, connections: int) -> bool:
        """Return whether a new TLS handshake may begin. *connections* counts open connections and unfinished handshakes."""
        limit = self.max_connections
        if limit is None or connections < limit + MAX_REFUSED:
            return True
        self.log_once("max_connections=%d and %d more are open, so a new connection is closed (logged once)", limit, MAX_REFUSED)
        return False

    def date_line(self) -> bytes:
        """Return the Date field of a response (RFC 9110, section 6.6.1) as a line, which is formatted once a second."""
        second = int(time.time())
        if second != self._second:
            self._second, self._date_line = second, f"date: {formatdate(second, usegmt=True)}\r\n".encode("ascii")
        return self._date_line

    def watch(self, connection: Connection) -> None:
        """Check *connection* each second until unwatch(). One timer for all connections saves each request one."""
        self._connections.add(connection)
        if not self._is_checking:
            self._is_checking = True
            asyncio.get_running_loop().call_later(_CHECK_INTERVAL, self._check)

    def unwatch(self, connection: Connection) -> None:
        self._connections.discard(connection)

    def _check(self) -> None:
        loop = asyncio.get_running_loop()
        self._is_checking = bool(self._connections)
        if self._is_checking:
            loop.call_later(_CHECK_INTERVAL, self._check)
        now = loop.time()
        for connection in [*self._connections]:
            connection.check(now)

    def log_once(self, message: str, *values: object) -> None:
        """Log *message* only once, because clients cause it and could fill the log."""
        if message not in self._logged:
            self._logged.add(message)
            logger.warning(message, *values)
