"""Server: uvicorn, which serves an application in this process until it is told to stop, and finishes the requests in flight."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Final, cast

import uvicorn

from gaman._app import App
from gaman._asgi import Application
from gaman._lifespan import Lifespan
from gaman._server import _workers
from gaman._server._connections import Connections
from gaman._server._console import plural, print_waiting
from gaman._server._draining import drain, stop_handshakes
from gaman._server._http import Connection
from gaman._server._tls import limit_handshakes
from gaman._server._workers import FORCED_END, Shutdown

logger = logging.getLogger("gaman")

_LAST_REQUEST: Final = 0.5
"""Seconds that an idle connection has for another request when the whole server ends."""
_RELOAD: Final = 1
"""Seconds that requests in flight have when the code has changed."""


class Server(uvicorn.Server):
    """Serves *app*, whose *lifespan* it runs itself: uvicorn would only log why it fails. *on_start* is called once it listens."""

    def __init__(
        self,
        app: Application,
        lifespan: App | Lifespan,
        connections: Connections,
        timeout_graceful_shutdown: int,
        tls: ssl.SSLContext | None = None,
        on_start: Callable[[], None] = lambda: None,
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                # uvicorn expects a class, and only calls it.
                http=cast("Any", connections),
                ws="none",
                # App reads the proxies' fields, under this server as under any other.
                proxy_headers=False,
                server_header=False,
                # Leave the user's logging configuration alone.
                log_config=None,
            )
        )
        self.config.load()
        self._connections = connections
        self._tls = tls
        self._lifespan = lifespan
        self._on_start = on_start
        self._loop: asyncio.AbstractEventLoop
        self._how = Shutdown.RETIRE
        idle, last = self.config.timeout_keep_alive, _LAST_REQUEST
        self._grace = {Shutdown.RETIRE: idle, Shutdown.STOP: last, Shutdown.RELOAD: last, Shutdown.FORCE: 0}
        """Seconds that an idle connection has for another request."""
        long, short = timeout_graceful_shutdown, min(timeout_graceful_shutdown, _RELOAD)
        self._limit = {Shutdown.RETIRE: long, Shutdown.STOP: long, Shutdown.RELOAD: short, Shutdown.FORCE: 0}
        """Seconds after which everything is cut off."""
        self._watchdog = threading.Timer(FORCED_END, os._exit, [128 + signal.SIGINT])
        self._watchdog.daemon = True

    def serve_until_stopped(self, sockets: list[socket.socket]) -> None:
        """Serve on *sockets* until a signal or the supervisor ends it; an error of loading *app* is raised."""
        with suppress(KeyboardInterrupt), self._handling_hangup():
            self.run(sockets=sockets)

    @contextmanager
    def _handling_hangup(self) -> Generator[None]:
        """Handle SIGHUP like SIGTERM, because a closed terminal sends it. A handler that is already set stays, such as nohup's."""
        number = getattr(signal, "SIGHUP", None)
        if (
            number is None
            or threading.current_thread() is not threading.main_thread()
            or signal.getsignal(number) is not signal.SIG_DFL
        ):
            yield
            return
        signal.signal(number, self.handle_exit)
        try:
            yield
        finally:
            signal.signal(number, signal.SIG_DFL)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        await self._lifespan.load()
        self.lifespan.state.update(self._lifespan.lifespan_state)
        await self._listen(sockets or [])
        # Exempt everything loaded so far from garbage collection.
        gc.collect()
        gc.freeze()
        if _workers.this_worker is not None:
            _workers.this_worker.report_started(self.begin_shutdown)
        self._on_start()

    async def _listen(self, listeners: list[socket.socket]) -> None:
        """Listen as uvicorn's startup() does, which sets no limit for a TLS handshake; the event loop's is 60 seconds."""

        def connect() -> Connection:
            return self._connections(self.config, self.server_state, self.lifespan.state)

        limit = None
        if self._tls is not None:
            limit, open_ = self._connections.timeout_request, self.server_state.connections
            limit_handshakes(self._tls, lambda unfinished: self._connections.has_room(len(open_) + unfinished))
        self.servers = [
            await self._loop.create_server(
                connect, sock=listener, ssl=self._tls, ssl_handshake_timeout=limit, backlog=self.config.backlog
            )
            for listener in listeners
        ]
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        state, listeners = self.server_state, sockets or []
        start = changed_at = time.monotonic()
        in_flight = {*state.tasks}
        if self._how is Shutdown.STOP:
            if _workers.this_worker is None:
                stop_handshakes(listeners)
            await drain(listeners)
        self._stop_listening()
        for listener in listeners:
            listener.close()
        # uvloop calls connection_made() for the last accepted connection one turn later.
        await asyncio.sleep(0)
        how, has_reported = None, False
        while state.connections or state.tasks:
            if how is not self._how:
                if how is not None:
                    in_flight, changed_at = {*state.tasks}, time.monotonic()
                how = self._how
                # uvicorn's type lists its own protocols.
                for connection in cast("list[Connection]", [*state.connections]):
                    connection.shutdown(self._grace[how])
                # Afterwards, so that a client whose stream ends can't send another request on its connection.
                self._connections.stopping.set()
                await asyncio.sleep(0.05)
                continue
            if time.monotonic() - start >= self._limit[self._how]:
                break
            if how is Shutdown.STOP and not has_reported:
                # Requests that began after the stop count only if they last.
                lasting = state.connections if time.monotonic() - changed_at > 2 * _LAST_REQUEST else in_flight & state.tasks
                has_reported = self._report_waiting(len(lasting))
            await asyncio.sleep(0.05)
        await self._cut_off(time.monotonic() - start)
        await self._lifespan.shutdown()

    def begin_shutdown(self, how: Shutdown) -> None:
        """Begin to end in the given way; may be called from any thread."""
        self._how = max(self._how, how)
        self.should_exit = True
        if how is not Shutdown.STOP:
            # The other processes accept the waiting connections. After a change of the code, only they may.
            # RuntimeError means that the loop is closed, so the server has ended.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop_listening)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Overridden, because uvicorn's sends the signal again at the end, and waits for a start that hangs.
        if _workers.this_worker is not None and sig == signal.SIGINT:
            # A terminal sends it to all processes, but only the supervisor decides what it means.
            return
        is_forced = self.should_exit and sig == signal.SIGINT
        if is_forced and not self._watchdog.is_alive():
            self._watchdog.start()
        if not self.started:
            self.should_exit = True
            raise KeyboardInterrupt
        self.begin_shutdown(Shutdown.FORCE if is_forced else Shutdown.STOP)

    def _stop_listening(self) -> None:
        for server in self.servers:
            server.close()

    def _report_waiting(self, requests: int) -> bool:
        """Report how many requests delay the end, and return whether there are any."""
        if _workers.this_worker is None:
            return print_waiting(requests)
        _workers.this_worker.report_waiting(requests)
        return requests > 0

    async def _cut_off(self, seconds: float) -> None:
        """Cancel the requests in flight, after *seconds* of shutdown."""
        if tasks := [*self.server_state.tasks]:
            level = logging.INFO if self._how is Shutdown.RELOAD else logging.WARNING
            logger.log(level, "cut off %s after %.0f s", plural(len(tasks), "request"), seconds)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=1)
