"""Connections: what the connections of a server share, and the clock that ends those whose client is silent."""

from __future__ import annotations

import asyncio
import logging
import time
from email.utils import formatdate
from typing import Any, Final

import uvicorn
from uvicorn.server import ServerState

from gaman._server._exchange import Application
from gaman._server._http import Connection
from gaman._server._outbox import Outbox

logger = logging.getLogger("gaman")

_CHECK_INTERVAL: Final = 1.0
"""Seconds between two looks at all connections."""


class Connections:
    """What the connections of a server share, and, called as uvicorn calls a protocol class, the maker of each.

    *timeout_request* is in seconds; beyond *max_connections* a new connection is answered 503, and None sets no limit.
    """

    def __init__(self, app: Application, timeout_request: float, max_connections: int | None) -> None:
        self.app = app
        self.timeout_request = timeout_request
        self.max_connections = max_connections
        self.outbox = Outbox()
        self.refused: set[Connection] = set()
        """Those beyond max_connections, which end soon."""
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

    def date_line(self) -> bytes:
        """Return the Date that each response has (RFC 9110, section 6.6.1), as a line of its head."""
        second = int(time.time())
        if second != self._second:
            self._second, self._date_line = second, f"date: {formatdate(second, usegmt=True)}\r\n".encode("ascii")
        return self._date_line

    def watch(self, connection: Connection) -> None:
        """Check *connection* each second, until unwatch(): one timer for all, so that a request pays for none."""
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
        """Log *message* the first time only, because clients cause it and could fill the log."""
        if message not in self._logged:
            self._logged.add(message)
            logger.warning(message, *values)
