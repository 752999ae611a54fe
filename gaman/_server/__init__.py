"""run(): check the settings, open the port, and serve an App in one process or in several."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import sys
from typing import NoReturn

from gaman._app import App
from gaman._server import _workers
from gaman._server._connections import Connections
from gaman._server._console import open_standard_streams, print_line, show_log
from gaman._server._reload import Watcher
from gaman._server._supervisor import Supervisor
from gaman._server._uvicorn import Server
from gaman._tracebacks import explain
from gaman.errors import ConfigError, GamanError


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
    """Serve *app* as serve() does, in this process or in workers; never returns in a worker."""
    _refuse_running_loop()
    if not _is_number(timeout_request) or not timeout_request > 0:
        _exit(f"timeout_request={timeout_request!r} isn't a time for clients; give seconds, such as 30")
    if not _is_number(timeout_graceful_shutdown) or not timeout_graceful_shutdown >= 0:
        _exit(f"timeout_graceful_shutdown={timeout_graceful_shutdown!r} isn't a time for requests; give seconds, such as 30")
    if max_connections is not None and (not _is_number(max_connections, int) or max_connections < 1):
        _exit(f"max_connections={max_connections!r} isn't a number of clients; give 1 or more, or None for no limit")
    if not _is_number(workers, int) or workers < 1:
        _exit(f"workers={workers!r} isn't a number of processes; give 1 or more")
    if not isinstance(reload, bool):
        _exit(f"reload={reload!r} is neither True nor False, and any text counts as true; write reload=text == '1'")
    connections = Connections(app, timeout_request, max_connections)
    app.workers = workers
    if app.debug:
        show_log()
    open_standard_streams()
    if _workers.this_worker is not None:
        _serve_here(Server(app, connections, timeout_graceful_shutdown), _workers.this_worker.sockets)
        # The rest of the script is for the process that the user started.
        sys.exit()
    if (workers > 1 or reload) and sys.platform == "win32":
        _exit("workers and reload need a system on which processes share sockets, such as Linux or macOS")
    if (workers > 1 or reload) and not hasattr(sys.modules["__main__"], "__file__"):
        _exit("workers and reload need a script that each process can run; put the call into a file")
    listener = _listen(host, port)
    url = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"

    def announce() -> None:
        print_line(f"gaman: listening on {url} (Ctrl+C stops it)")

    if reload or workers > 1:
        Supervisor([listener], workers, announce, Watcher() if reload else None).run()
    else:
        _serve_here(Server(app, connections, timeout_graceful_shutdown, announce), [listener])


def _serve_here(server: Server, sockets: list[socket.socket]) -> None:
    try:
        server.serve_until_stopped(sockets)
    except GamanError as error:
        _exit(explain(error))


def _refuse_running_loop() -> None:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return
    raise ConfigError(
        "gaman.serve() runs its own event loop, and one is already running here; call it outside `async def`, or write "
        "`await uvicorn.Server(uvicorn.Config(gaman.App(...), proxy_headers=False)).serve()`"
    )


def _is_number(value: object, kind: type = float) -> bool:
    return isinstance(value, (int, kind)) and not isinstance(value, bool)


def _listen(host: str, port: int) -> socket.socket:
    if not _is_number(port, int) or not 0 <= port <= 65535:
        _exit(f"port={port!r} isn't a port; give a number from 0 to 65535")
    try:
        # min() prefers IPv4, where a name such as localhost has both.
        family, _, _, _, address = min(socket.getaddrinfo(host or " ", port, type=socket.SOCK_STREAM))
        return socket.create_server(address, family=family, backlog=2048)
    except (socket.gaierror, UnicodeError, TypeError):
        _exit(f"host={host!r} isn't an address of this machine; 127.0.0.1 serves only this machine, 0.0.0.0 every network")
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            _exit(f"port {port} on {host} is taken; stop what listens there, or take another port")
        _exit(f"can't listen on {host}, port {port}: {os.strerror(error.errno or 0)}")


def _exit(message: str) -> NoReturn:
    raise SystemExit(f"gaman: {message}")
