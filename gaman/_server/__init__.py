"""serve(): an App on uvicorn, from a script, in one process or in several; the only folder that knows uvicorn."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, NoReturn, cast

import uvicorn

from gaman._app import App
from gaman._integration import Integration
from gaman._matching import Routes
from gaman._proxies import NEARBY
from gaman._routing import Table
from gaman._server import _workers
from gaman._server._connections import Connections
from gaman._server._draining import drain, stop_handshakes
from gaman._server._http import Connection
from gaman._server._reload import Watcher
from gaman._server._workers import FORCED_END, Leave, Supervisor, plural, say, say_what_it_waits_for
from gaman._tracebacks import explain
from gaman.errors import ConfigError, GamanError

logger = logging.getLogger("gaman")

_LAST_CHANCE = 0.5
"""Seconds in which an idle connection may still send a request when the whole server ends."""
_RELOAD = 1
"""Seconds that requests in flight have when the code has changed."""


def serve(
    routes: App | Routes | Table,
    *,
    integrations: Iterable[Integration] = (),
    deps: Any = None,
    debug: bool = False,
    max_body_size: int = 1 << 20,
    trusted_proxies: str | Iterable[str] = NEARBY,
    allowed_hosts: str | Iterable[str] = "*",
    host: str = "127.0.0.1",
    port: int = 3431,
    workers: int = 1,
    reload: bool = False,
    timeout_request: float = 30,
    max_connections: int | None = None,
    timeout_graceful_shutdown: int = 30,
) -> None:
    """Serve *routes*, or an App, until SIGINT or SIGTERM; requests in flight then have *timeout_graceful_shutdown* seconds.

    Port 0 takes a free one. What stands in the way of a start ends the process with a line on stderr that says so, and status 1.
    A client that sends nothing within a request for *timeout_request* seconds is answered 408, and one that takes nothing of a
    response for as long is cut off. Beyond *max_connections*, in each process, a new connection is answered 503.
    With *workers* or *reload*, each worker process runs the script again, as far as this call, which never returns there. A worker
    that dies or hangs is replaced, SIGHUP replaces them one by one, and SIGTTIN and SIGTTOU start and stop one.
    All before *host* is as for App, and given to App where *routes* are one. ConfigError is raised in a running event loop.
    """
    _refuse_a_running_loop()
    try:
        app = _app_of(
            routes,
            integrations=integrations,
            deps=deps,
            debug=debug,
            max_body_size=max_body_size,
            trusted_proxies=trusted_proxies,
            allowed_hosts=allowed_hosts,
        )
    except ConfigError as error:
        _exit(str(error))
    run(
        app,
        host=host,
        port=port,
        workers=workers,
        reload=reload,
        timeout_request=timeout_request,
        max_connections=max_connections,
        timeout_graceful_shutdown=timeout_graceful_shutdown,
    )


def run(
    app: App,
    *,
    host: str,
    port: int,
    workers: int = 1,
    reload: bool = False,
    timeout_request: float = 30,
    max_connections: int | None = None,
    timeout_graceful_shutdown: int = 30,
) -> None:
    """Serve *app* as serve() does."""
    if not _is_number(timeout_request) or not timeout_request > 0:
        _exit(f"timeout_request={timeout_request!r} isn't a time for clients; give seconds, such as 30")
    if not _is_number(timeout_graceful_shutdown) or not timeout_graceful_shutdown >= 0:
        _exit(f"timeout_graceful_shutdown={timeout_graceful_shutdown!r} isn't a time for requests; give seconds, such as 30")
    if max_connections is not None and (not _is_number(max_connections, int) or max_connections < 1):
        _exit(f"max_connections={max_connections!r} isn't a number of clients; give 1 or more, or None for no limit")
    if not _is_number(workers, int) or workers < 1:
        _exit(f"workers={workers!r} is no number of processes; give 1 or more")
    if not isinstance(reload, bool):
        _exit(f"reload={reload!r} is neither True nor False, and any text counts as true; write reload=text == '1'")
    connections = Connections(app, timeout_request, max_connections)
    app.workers = workers
    if app.debug:
        _show_log()
    _open_standard_streams()
    if _workers.place is not None:
        # The script runs again, in a process that has been started for it, and has come as far as it shall.
        _Server(app, connections, timeout_graceful_shutdown).serve_until_stopped(_workers.place.sockets)
        sys.exit()
    if (workers > 1 or reload) and sys.platform == "win32":
        _exit("workers and reload need a system on which processes share sockets, such as Linux or macOS")
    if (workers > 1 or reload) and not hasattr(sys.modules["__main__"], "__file__"):
        _exit("workers and reload need a script that each process can run; put the call into a file")
    listener = _listen(host, port)
    where = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"

    def announce() -> None:
        say(f"gaman: listening on {where} (Ctrl+C stops it)")

    if reload or workers > 1:
        Supervisor([listener], workers, announce, Watcher() if reload else None).run()
    else:
        _Server(app, connections, timeout_graceful_shutdown, announce).serve_until_stopped([listener])


class _Server(uvicorn.Server):
    """Serves one App. It loads the App itself, so that a failure reaches us, not only a log that may go anywhere."""

    def __init__(
        self, app: App, connections: Connections, timeout_graceful_shutdown: int, on_start: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                # uvicorn expects a class, and only calls it.
                http=cast("Any", connections),
                ws="none",
                # App reads what proxies say, under this server as under any other.
                proxy_headers=False,
                server_header=False,
                # The logging that the user has set up stays as it is.
                log_config=None,
            )
        )
        self._app = app
        self._on_start = on_start
        self._loop: asyncio.AbstractEventLoop
        self._how = Leave.RETIRE
        kept, last = self.config.timeout_keep_alive, _LAST_CHANCE
        self._grace = {Leave.RETIRE: kept, Leave.STOP: last, Leave.RELOAD: last, Leave.FORCE: 0}
        """Seconds that an idle connection has for another request."""
        long, short = timeout_graceful_shutdown, min(timeout_graceful_shutdown, _RELOAD)
        self._limit = {Leave.RETIRE: long, Leave.STOP: long, Leave.RELOAD: short, Leave.FORCE: 0}
        """Seconds that everything has."""
        self._watchdog = threading.Timer(FORCED_END, os._exit, [128 + signal.SIGINT])
        self._watchdog.daemon = True

    def serve_until_stopped(self, sockets: list[socket.socket]) -> None:
        try:
            with self._ended_by_hangup():
                self.run(sockets=sockets)
        except KeyboardInterrupt:
            pass
        except GamanError as error:
            _exit(explain(error))

    @contextmanager
    def _ended_by_hangup(self) -> Generator[None]:
        """End as SIGTERM does when the terminal is closed, unless the user has decided otherwise, as nohup does."""
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
        await self._app.load()
        await super().startup(sockets=sockets)
        # Exempt everything loaded so far from garbage collection.
        gc.collect()
        gc.freeze()
        if _workers.place is not None:
            _workers.place.say_it_serves(self.leave)
        self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        state, listeners = self.server_state, sockets or []
        start = told_at = time.monotonic()
        in_flight = {*state.tasks}
        if self._how is Leave.STOP:
            if _workers.place is None:
                stop_handshakes(listeners)
            await drain(listeners)
        self._stop_listening()
        for listener in listeners:
            listener.close()
        # uvloop makes the last connection that it has accepted known a turn later.
        await asyncio.sleep(0)
        how, has_said = None, False
        while state.connections or state.tasks:
            if how is not self._how:
                if how is not None:
                    in_flight, told_at = {*state.tasks}, time.monotonic()
                how = self._how
                # uvicorn knows other protocols.
                for connection in cast("list[Connection]", [*state.connections]):
                    connection.shutdown(self._grace[how])
            if time.monotonic() - start >= self._limit[self._how]:
                break
            if how is Leave.STOP and not has_said:
                # A request that has begun since is worth a line only if it lasts.
                lasting = state.connections if time.monotonic() - told_at > 2 * _LAST_CHANCE else in_flight & state.tasks
                has_said = self._say_what_it_waits_for(len(lasting))
            await asyncio.sleep(0.05)
        await self._cut_off(time.monotonic() - start)
        await self._app.shutdown()

    def leave(self, how: Leave) -> None:
        """End, in the way that *how* says; from any thread."""
        self._how = max(self._how, how)
        self.should_exit = True
        if how is not Leave.STOP:
            # Other processes accept what waits, and none but they may once the code has changed. A loop that is closed has ended.
            with suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._stop_listening)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn's own would send itself the signal again at the end, and wait for a start-up that hangs.
        if _workers.place is not None and sig == signal.SIGINT:
            # A terminal sends it to all processes, and the supervisor says what it means.
            return
        is_forced = self.should_exit and sig == signal.SIGINT
        if is_forced and not self._watchdog.is_alive():
            self._watchdog.start()
        if not self.started:
            self.should_exit = True
            raise KeyboardInterrupt
        self.leave(Leave.FORCE if is_forced else Leave.STOP)

    def _stop_listening(self) -> None:
        for server in self.servers:
            server.close()

    def _say_what_it_waits_for(self, requests: int) -> bool:
        if _workers.place is None:
            return say_what_it_waits_for(requests)
        _workers.place.say_what_it_waits_for(requests)
        return requests > 0

    async def _cut_off(self, seconds: float) -> None:
        """Cancel what is in flight after *seconds*."""
        if cut := [*self.server_state.tasks]:
            level = logging.INFO if self._how is Leave.RELOAD else logging.WARNING
            logger.log(level, "cut off %s after %.0f s", plural(len(cut), "request"), seconds)
            for task in cut:
                task.cancel()
            await asyncio.wait(cut, timeout=1)


def _refuse_a_running_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise ConfigError(
        "gaman.serve() runs an event loop of its own, and one runs here; call it outside `async def`, or write "
        "`await uvicorn.Server(uvicorn.Config(gaman.App(...), proxy_headers=False)).serve()`"
    )


def _app_of(routes: App | Routes | Table, **options: Any) -> App:
    if not isinstance(routes, App):
        return App(routes, **options)
    defaults = cast("dict[str, Any]", serve.__kwdefaults__)
    # By identity: `==` may mean anything to what a user passes as deps.
    if given := [name for name, value in options.items() if value is not defaults[name]]:
        raise ConfigError(f"gaman.serve() has an App, so write {given[0]}= where that is made: gaman.App(..., {given[0]}=...)")
    return routes


def _is_number(value: object, kind: type = float) -> bool:
    return isinstance(value, (int, kind)) and not isinstance(value, bool)


def _open_standard_streams() -> None:
    """Open /dev/null in the place of standard streams that are closed: libuv aborts where a socket has one of their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # It gets the lowest number that is free, which is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _listen(host: str, port: int) -> socket.socket:
    if not _is_number(port, int) or not 0 <= port <= 65535:
        _exit(f"port={port!r} is no port; give a number from 0 to 65535")
    try:
        # IPv4 first, for a name such as localhost that has both.
        family, _, _, _, address = min(socket.getaddrinfo(host or " ", port, type=socket.SOCK_STREAM))
        return socket.create_server(address, family=family, backlog=2048)
    except (socket.gaierror, UnicodeError, TypeError):
        _exit(f"host={host!r} is no address of this machine; 127.0.0.1 serves this machine alone, 0.0.0.0 every network")
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            _exit(f"port {port} on {host} is taken; stop what listens there, or take another port")
        _exit(f"can't listen on {host}, port {port}: {os.strerror(error.errno or 0)}")


def _show_log() -> None:
    """Show on stderr what gaman logs, unless the user has set up where that goes."""
    if not logger.hasHandlers():
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("gaman: %(message)s"))
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)


def _exit(message: str) -> NoReturn:
    raise SystemExit(f"gaman: {message}")
