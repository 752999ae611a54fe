"""run(): checks the settings, opens the port or the Unix socket, and serves an application in one process or in several."""

from __future__ import annotations

import asyncio
import socket
import sys
from os import PathLike
from typing import NoReturn

from gaman import _worker_count
from gaman._access import LoggedApplication
from gaman._app import App
from gaman._asgi import Application
from gaman._lifespan import Lifespan
from gaman._server import _workers
from gaman._server._connections import Connections
from gaman._server._console import LEVELS, open_standard_streams, print_line, set_log
from gaman._server._listeners import listen, listen_unix, name_of, removing
from gaman._server._reload import Watcher
from gaman._server._supervisor import Supervisor
from gaman._server._tls import load_certificate
from gaman._server._uvicorn import Server
from gaman._tracebacks import exit_with
from gaman.errors import ConfigError, check_bool

HOST, PORT = "127.0.0.1", 3431


def run(
    app: Application,
    *,
    host: str = HOST,
    port: int = PORT,
    uds: str | PathLike[str] | None = None,
    ssl_certfile: str | PathLike[str] | None = None,
    ssl_keyfile: str | PathLike[str] | None = None,
    workers: int = 1,
    reload: bool = False,
    timeout_request: float = 30,
    max_connections: int | None = None,
    timeout_graceful_shutdown: int = 30,
    access_log: bool = False,
    log_level: str | None = None,
    place: str = "",
) -> None:
    """Serve *app* as serve() does, in this process or in workers; never returns in a worker. *place* ends messages of options."""

    def _exit(message: str) -> NoReturn:
        raise SystemExit(f"gaman: {message}{place}")

    _refuse_running_loop()
    for name, value, default in (("host", host, HOST), ("port", port, PORT)):
        if uds is not None and value != default:
            _exit(f"uds={uds!r} and {name}={value!r} are two addresses, and the server has one; give only one of them")
    if not _is_number(port, int) or not 0 <= port <= 65535:
        fix = f"write port=int({port!r})" if isinstance(port, str) and port.isdigit() else "give a number from 0 to 65535"
        _exit(f"port={port!r} isn't a port; {fix}")
    if not _is_number(timeout_request) or not timeout_request > 0:
        _exit(f"timeout_request={timeout_request!r} isn't a time for clients; give seconds, such as 30")
    if not _is_number(timeout_graceful_shutdown) or not timeout_graceful_shutdown >= 0:
        _exit(f"timeout_graceful_shutdown={timeout_graceful_shutdown!r} isn't a time for requests; give seconds, such as 30")
    if max_connections is not None and (not _is_number(max_connections, int) or max_connections < 1):
        _exit(f"max_connections={max_connections!r} isn't a number of clients; give 1 or more, or None for no limit")
    if not _is_number(workers, int) or workers < 1:
        _exit(f"workers={workers!r} isn't a number of processes; give 1 or more")
    if log_level is not None and log_level not in LEVELS:
        _exit(f"log_level={log_level!r} isn't a level; give {', '.join(LEVELS)}")
    try:
        check_bool("reload", reload)
        check_bool("access_log", access_log)
        tls = load_certificate(ssl_certfile, ssl_keyfile)
    except ConfigError as error:
        _exit(str(error))
    _worker_count.serving = workers
    lifespan: App | Lifespan = app if isinstance(app, App) else Lifespan(app)
    if isinstance(app, App):
        app.workers = workers
        if access_log:
            app.log_requests()
    elif access_log:
        app = LoggedApplication(app)
    set_log(log_level, is_chatty=access_log or (isinstance(app, App) and app.debug), is_explicit=access_log)
    connections = Connections(app, timeout_request, max_connections)
    open_standard_streams()
    if _workers.this_worker is not None:
        server = Server(app, lifespan, connections, timeout_graceful_shutdown, tls)
        _serve_here(server, _workers.this_worker.sockets)
        # The rest of the script is for the process that the user started.
        sys.exit()
    if (workers > 1 or reload) and sys.platform == "win32":
        _exit("workers and reload need a system on which processes share sockets, such as Linux or macOS")
    if (workers > 1 or reload) and not hasattr(sys.modules["__main__"], "__file__"):
        _exit("workers and reload need a script that each process can run; put the call into a file")
    try:
        listener = listen_unix(uds) if uds is not None else listen(host, port)
    except ConfigError as error:
        _exit(str(error))
    place = name_of(listener, host, is_secure=tls is not None)

    def announce() -> None:
        print_line(f"gaman: listening on {place} (Ctrl+C stops it)")

    with removing(listener):
        if reload or workers > 1:
            Supervisor([listener], workers, announce, Watcher() if reload else None).run()
        else:
            _serve_here(Server(app, lifespan, connections, timeout_graceful_shutdown, tls, announce), [listener])


def _serve_here(server: Server, sockets: list[socket.socket]) -> None:
    try:
        server.serve_until_stopped(sockets)
    except Exception as error:
        exit_with(error)


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
    """Return whether *value* is a number of this kind, and not a bool."""
    return isinstance(value, (int, kind)) and not isinstance(value, bool)
