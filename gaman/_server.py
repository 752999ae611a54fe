"""serve(): an App on uvicorn, from a script; the only file that knows uvicorn."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from types import FrameType
from typing import Any, NoReturn

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from gaman import _workers
from gaman._app import App
from gaman._integration import Integration
from gaman._routing import Routes, Table
from gaman.errors import ConfigError, GamanError

_MAX_HEAD = 1 << 18


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
    With *workers* or *reload*, each worker process runs the script again, as far as this call, which never returns there.
    """
    try:
        app = App(routes, integrations=integrations, deps=deps, debug=debug, max_body_size=max_body_size)
    except ConfigError as error:
        _exit(str(error))
    run(app, host=host, port=port, workers=workers, reload=reload, timeout_graceful_shutdown=timeout_graceful_shutdown)


def run(app: App, *, host: str, port: int, workers: int, reload: bool, timeout_graceful_shutdown: int) -> None:
    """Serve *app* as serve() does."""
    if not isinstance(workers, int) or workers < 1:
        _exit(f"workers={workers!r} is no number of processes; give 1 or more")
    if reload and workers > 1:
        _exit("reload=True serves with one process; leave out workers or reload")
    app.workers = workers
    config = uvicorn.Config(
        app,
        lifespan="off",
        http=_Protocol,
        ws="none",
        server_header=False,
        timeout_graceful_shutdown=timeout_graceful_shutdown,
        # The logging that the user has set up stays as it is. Who gave this logger a handler wants to read what it says.
        log_config=None,
        access_log=bool(logging.getLogger("uvicorn.access").handlers),
    )
    if (inherited := _workers.inherited()) is not None:
        listener, line = inherited
        server = _Server(config, app, listener)
        server.serve_until_stopped(lambda: server.report_to(line))
        sys.exit()
    listener = _listen(host, port)
    where = f"http://{f'[{host}]' if ':' in host else host}:{listener.getsockname()[1]}"

    def announce() -> None:
        print(f"gaman: listening on {where} (Ctrl+C stops it)", flush=True)

    if workers == 1 and not reload:
        _Server(config, app, listener).serve_until_stopped(announce)
    elif sys.platform == "win32":
        _exit("workers and reload need a system on which processes share sockets, such as Linux or macOS")
    elif not hasattr(sys.modules["__main__"], "__file__"):
        _exit("workers and reload need a script that each process can run; put the call into a file")
    else:
        _workers.supervise(listener, workers, reload, announce)


class _Protocol(HttpToolsProtocol):
    """HTTP/1.1 with a limit for a request's head, in bytes; httptools has none, and an endless header would fill the memory."""

    _in_head = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        # It is no asyncio.Transport by name, and has all that uvicorn asks of one.
        super().connection_made(_Transport(transport, self.loop))  # type: ignore[arg-type]

    _head_size = 0

    def data_received(self, data: bytes) -> None:
        if self._in_head:
            self._head_size += len(data)
            if self._head_size > _MAX_HEAD:
                self.send_400_response("The request's header is too large.")
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        self._in_head, self._head_size = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        self._in_head = False
        super().on_headers_complete()

    def _unsupported_upgrade_warning(self) -> None:
        # The request for a WebSocket is answered as any other (RFC 9110, section 7.8); it is no news for the log.
        pass


class _Transport:
    """Sends the head of a response with the first of its body, in one packet, where the body comes in the same turn of the loop."""

    __slots__ = ("__weakref__", "_head", "_loop", "_transport")

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def write(self, data: bytes) -> None:
        if self._head:
            self._head, data = b"", self._head + data
        elif data.startswith(b"HTTP/1.1 "):
            self._head = data
            self._loop.call_soon(self._flush)
            return
        self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def _flush(self) -> None:
        if self._head:
            head, self._head = self._head, b""
            self._transport.write(head)


class _Server(uvicorn.Server):
    """Serves one App on one socket. It loads the App itself, so that a failure reaches us, not only a log that may go anywhere."""

    def __init__(self, config: uvicorn.Config, app: App, listener: socket.socket) -> None:
        super().__init__(config)
        self._app = app
        self._listener = listener
        self._on_start: Callable[[], None]

    def serve_until_stopped(self, on_start: Callable[[], None]) -> None:
        self._on_start = on_start
        try:
            self.run(sockets=[self._listener])
        except KeyboardInterrupt:
            pass
        except GamanError as error:
            _exit(explain(error))

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await self._app.load()
        await super().startup(sockets=sockets)
        gc.collect()
        gc.freeze()
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

    def report_to(self, line: socket.socket) -> None:
        """Tell the supervisor that this worker serves, and stop as soon as there is no supervisor."""
        loop = asyncio.get_running_loop()

        def leave() -> None:
            loop.remove_reader(line)
            self.should_exit = True

        loop.add_reader(line, leave)
        line.send(b"1")


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


def explain(error: GamanError) -> str:
    """Return what *error* says, and what has led to it, on a line."""
    text, cause = str(error), str(error.__cause__ or "")
    return text if cause in text else f"{text}: {cause}"


def _exit(message: str) -> NoReturn:
    raise SystemExit(f"gaman: {message}")
