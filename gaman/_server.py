"""serve(): an App on uvicorn, from a script; the only file that knows uvicorn."""

from __future__ import annotations

import asyncio
import errno
import logging
import multiprocessing
import os
import runpy
import socket
import sys
from collections.abc import Iterable
from typing import Any, NoReturn

import uvicorn

from gaman._app import App
from gaman._integration import Integration
from gaman._routing import Routes, Table
from gaman.errors import ConfigError

# In the environment of supervised workers: what to run for the App, a script's path or a module's name.
_MAIN = "GAMAN_MAIN"
_handed_over: App | None = None


def serve(
    routes: Routes | Table,
    *,
    integrations: Iterable[Integration] = (),
    deps: Any = None,
    debug: bool = False,
    max_body_size: int = 1 << 20,
    host: str = "127.0.0.1",
    port: int = 3431,
    workers: int = 1,
    reload: bool = False,
    timeout_graceful_shutdown: int = 30,
) -> None:
    """Serve *routes* until SIGINT or SIGTERM; then requests in flight have *timeout_graceful_shutdown* seconds to finish.

    Port 0 takes a free one. What stands in the way of a start ends the process with a line on stderr that says so, and status 1.
    With *workers* or *reload*, each worker process runs the calling script again, up to this call.
    """
    app = App(routes, integrations=integrations, deps=deps, debug=debug, max_body_size=max_body_size)
    run(app, None, host=host, port=port, workers=workers, reload=reload, timeout_graceful_shutdown=timeout_graceful_shutdown)


def run(app: App, target: str | None, *, host: str, port: int, workers: int, reload: bool, timeout_graceful_shutdown: int) -> None:
    """Serve *app*, which a worker process finds under *target* (`module:app`) or, without one, by running the main script."""
    global _handed_over
    if os.environ.get(_MAIN) and multiprocessing.parent_process() is not None:
        _handed_over = app
        return
    app.workers = workers
    if workers < 1:
        _exit(f"workers={workers}: at least one process must serve")
    if reload and workers > 1:
        _exit("reload=True serves with one process; leave out workers or reload")
    listener = _listen(host, port)
    port = listener.getsockname()[1]
    where = f"http://{f'[{host}]' if ':' in host else host}:{port}"
    # Without a log_config, the logging that the user has set up stays as it is.
    options: dict[str, Any] = {
        "lifespan": "on",
        "log_config": None,
        "access_log": False,
        "server_header": False,
        "ws": "none",
        "timeout_graceful_shutdown": timeout_graceful_shutdown,
    }
    logging.getLogger("uvicorn.error").addFilter(_is_news)
    if workers == 1 and not reload:
        try:
            _Server(uvicorn.Config(app, **options), where).run(sockets=[listener])
        except KeyboardInterrupt:
            # uvicorn passes the signal on when all is shut down.
            pass
        return
    listener.close()
    if workers > 1:
        _rehearse(app)
    print(f"gaman: listening on {where} (Ctrl+C stops it)", flush=True)
    if target is None:
        target = f"{__name__}:worker_app"
        options["factory"] = True
        os.environ[_MAIN] = _main()
    uvicorn.run(target, host=host, port=port, workers=workers, reload=reload, **options)


def worker_app() -> App:
    """Return the App of the script that was started, in a worker process: what its own serve() call hands over."""
    if _handed_over is None:
        main = os.environ[_MAIN]
        # A script without `if __name__ == "__main__":` has run, and handed over, when multiprocessing imported it.
        if main.endswith(".py"):
            runpy.run_path(main, run_name="__main__")
        else:
            runpy.run_module(main, run_name="__main__", alter_sys=True)
    if _handed_over is None:
        _exit(f"{os.environ[_MAIN]} did not come to its gaman.serve() in a worker process")
    return _handed_over


class _Server(uvicorn.Server):
    def __init__(self, config: uvicorn.Config, where: str) -> None:
        super().__init__(config)
        self._where = where

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets=sockets)
        except SystemExit:
            # The reason is in the log; a status of 1 is what every failed start of ours has.
            raise SystemExit(1) from None
        print(f"gaman: listening on {self._where} (Ctrl+C stops it)", flush=True)


def _is_news(record: logging.LogRecord) -> bool:
    """Keep out of the log what only repeats the line before it."""
    return record.msg != "Application startup failed. Exiting."


def _listen(host: str, port: int) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address, family=family, backlog=2048)
    except socket.gaierror as error:
        _exit(
            f"host={host!r} is no address of this machine ({error.strerror}); 127.0.0.1 serves this machine alone, 0.0.0.0 every network"
        )
    except (OverflowError, TypeError, ValueError):
        _exit(f"port={port!r} is no port; give a number from 0 to 65535")
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            _exit(f"port {port} on {host} is taken; stop what listens there or pass another port=")
        _exit(f"can't listen on {host}:{port}: {error.strerror}")


def _rehearse(app: App) -> None:
    """Load and shut down once, so that what is misconfigured stops the start instead of one worker after the other."""

    async def rehearse() -> None:
        await app.load()
        await app.shutdown()

    try:
        asyncio.run(rehearse())
    except ConfigError as error:
        _exit(str(error))


def _main() -> str:
    main = sys.modules["__main__"]
    spec = getattr(main, "__spec__", None)
    if spec is not None:
        return str(spec.name).removesuffix(".__main__")
    if (path := getattr(main, "__file__", None)) is None:
        _exit("workers and reload need a script to run in each process; put the call into a file")
    return os.path.abspath(path)


def _exit(message: str) -> NoReturn:
    raise SystemExit(f"gaman: {message}")
