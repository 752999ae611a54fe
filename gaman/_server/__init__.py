"""serve(): an App on uvicorn, from a script, in one process or in several; the only folder that knows uvicorn."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, NoReturn, cast

import uvicorn

from gaman._app import App
from gaman._integration import Integration
from gaman._proxies import NEARBY
from gaman._routing import Routes, Table
from gaman._server import _workers
from gaman._server._connections import Connections
from gaman._server._reload import Reloader
from gaman._tracebacks import explain
from gaman.errors import ConfigError, GamanError

logger = logging.getLogger("gaman")


def serve(
    routes: Routes | Table,
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
    """Serve *routes* until SIGINT or SIGTERM; then requests in flight have *timeout_graceful_shutdown* seconds to finish.

    Port 0 takes a free one. What stands in the way of a start ends the process with a line on stderr that says so, and status 1.
    A client that sends nothing within a request for *timeout_request* seconds is answered 408, and one that takes nothing of a
    response for as long is cut off. Beyond *max_connections*, in each process, a new connection is answered 503.
    With *workers* or *reload*, each worker process runs the script again, as far as this call, which never returns there. A worker
    that dies or hangs is replaced, SIGHUP replaces them one by one, and SIGTTIN and SIGTTOU start and stop one.
    All before *host* is as for App.
    """
    try:
        app = App(
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
    if not timeout_request > 0:
        _exit(f"timeout_request={timeout_request!r} gives a client no time; give seconds, such as 30")
    if max_connections is not None and max_connections < 1:
        _exit(f"max_connections={max_connections!r} lets no client in; give 1 or more, or None for no limit")
    if not isinstance(workers, int) or workers < 1:
        _exit(f"workers={workers!r} is no number of processes; give 1 or more")
    connections = Connections(app, timeout_request, max_connections)
    app.workers = workers
    if app.debug:
        _show_log()
    if _workers.place is not None:
        # The script runs again, in a process that has been started for it, and has come as far as it shall.
        if _workers.place.worker is None and workers > 1:
            _workers.supervise(_workers.place.sockets, workers, lambda: None)
        else:
            _Server(app, connections, timeout_graceful_shutdown).serve_until_stopped(_workers.place.sockets)
        sys.exit()
    if (workers > 1 or reload) and sys.platform == "win32":
        _exit("workers and reload need a system on which processes share sockets, such as Linux or macOS")
    if (workers > 1 or reload) and not hasattr(sys.modules["__main__"], "__file__"):
        _exit("workers and reload need a script that each process can run; put the call into a file")
    listener = _listen(host, port)
    where = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"

    def announce() -> None:
        print(f"gaman: listening on {where} (Ctrl+C stops it)", flush=True)

    if reload:
        announce()
        with _workers.signals_put_back():
            Reloader([listener]).run()
    elif workers > 1:
        _workers.supervise([listener], workers, announce)
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
                # To uvicorn it is a class, and all that it does with that is to call it.
                http=cast("Any", connections),
                ws="none",
                # App reads what proxies say, under this server as under any other.
                proxy_headers=False,
                server_header=False,
                timeout_graceful_shutdown=timeout_graceful_shutdown,
                # The logging that the user has set up stays as it is. Who gave this logger a handler wants to read what it says.
                log_config=None,
                access_log=bool(logging.getLogger("uvicorn.access").handlers),
            )
        )
        self._app = app
        self._on_start = on_start

    def serve_until_stopped(self, sockets: list[socket.socket]) -> None:
        try:
            self.run(sockets=sockets)
        except KeyboardInterrupt:
            pass
        except GamanError as error:
            _exit(explain(error))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self._app.load()
        await super().startup(sockets=sockets)
        # What is there now stays: a collection need not go through all of it while requests wait.
        gc.collect()
        gc.freeze()
        if _workers.place is not None and (supervisor := multiprocessing.parent_process()) is not None:
            # It becomes readable with the supervisor's end, however that came.
            asyncio.get_running_loop().add_reader(supervisor.sentinel, self._leave, supervisor.sentinel)
        if _workers.place is not None and _workers.place.worker is not None:
            _workers.place.worker._server = self
            _workers.place.worker.say_it_serves()
        self._on_start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets=sockets)
        await self._app.shutdown()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # uvicorn's own would send itself the signal again at the end, and wait for a start-up that hangs.
        if not self.started:
            raise KeyboardInterrupt
        self.force_exit = self.should_exit and sig == signal.SIGINT
        self.should_exit = True

    def _leave(self, sentinel: int) -> None:
        asyncio.get_running_loop().remove_reader(sentinel)
        self.should_exit = True


def _listen(host: str, port: int) -> socket.socket:
    if not isinstance(port, int) or not 0 <= port <= 65535:
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
