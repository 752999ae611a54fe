"""serve(): an App on uvicorn, from a script, in one process or in several; the only file that knows uvicorn."""

from __future__ import annotations

import asyncio
import errno
import gc
import logging
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from functools import partial
from multiprocessing import resource_tracker
from pathlib import Path
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn, cast

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.supervisors import multiprocess
from uvicorn.supervisors.basereload import BaseReload

from gaman._app import App
from gaman._integration import Integration
from gaman._outbox import Outbox, Transport
from gaman._proxies import NEARBY
from gaman._routing import Routes, Table
from gaman._tracebacks import explain
from gaman.errors import ConfigError, GamanError

logger = logging.getLogger("gaman")

_MAX_HEAD = 1 << 18
_LONGEST_PAUSE = 30
# Seconds in which a connection that has yet to ask may still do so when the server stops.
_LAST_CHANCE = 0.5


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
    timeout_graceful_shutdown: int = 30,
) -> None:
    """Serve *routes* until SIGINT or SIGTERM; then requests in flight have *timeout_graceful_shutdown* seconds to finish.

    Port 0 takes a free one. What stands in the way of a start ends the process with a line on stderr that says so, and status 1.
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
    run(app, host=host, port=port, workers=workers, reload=reload, timeout_graceful_shutdown=timeout_graceful_shutdown)


def run(app: App, *, host: str, port: int, workers: int, reload: bool, timeout_graceful_shutdown: int) -> None:
    """Serve *app* as serve() does."""
    if not isinstance(workers, int) or workers < 1:
        _exit(f"workers={workers!r} is no number of processes; give 1 or more")
    app.workers = workers
    if app.debug:
        _show_log()
    if _place is not None:
        # The script runs again, in a process that has been started for it, and has come as far as it shall.
        if _place.worker is None and workers > 1:
            _supervise(_place.sockets, workers, lambda: None)
        else:
            _Server(app, timeout_graceful_shutdown).serve_until_stopped(_place.sockets)
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
        with _signals_put_back():
            _Reloader([listener]).run()
    elif workers > 1:
        _supervise([listener], workers, announce)
    else:
        _Server(app, timeout_graceful_shutdown, announce).serve_until_stopped([listener])


class _Protocol(HttpToolsProtocol):
    """HTTP/1.1 with a limit for a request's head, in bytes; httptools has none, and an endless header would fill the memory."""

    _in_head = False
    _has_asked = _is_last = False

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
        self._in_head, self._has_asked = False, True
        HttpToolsProtocol.on_headers_complete(self)
        if self._is_last:
            self.cycle.keep_alive = False

    def shutdown(self) -> None:
        if not self._has_asked and not self._is_last:
            # Who has just connected is about to ask, and gets an answer.
            self._is_last = True
            self.loop.call_later(_LAST_CHANCE, self.shutdown)
        elif not self.transport.is_closing():
            super().shutdown()

    def _unsupported_upgrade_warning(self) -> None:
        # The request for a WebSocket is answered as any other (RFC 9110, section 7.8); it is no news for the log.
        pass


class _Server(uvicorn.Server):
    """Serves one App. It loads the App itself, so that a failure reaches us, not only a log that may go anywhere."""

    def __init__(self, app: App, timeout_graceful_shutdown: int, on_start: Callable[[], None] = lambda: None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                lifespan="off",
                # To uvicorn it is a class, and all that it does with that is to call it.
                http=cast("Any", partial(_Protocol, Outbox())),
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
        if _place is not None and (supervisor := multiprocessing.parent_process()) is not None:
            # It becomes readable with the supervisor's end, however that came.
            asyncio.get_running_loop().add_reader(supervisor.sentinel, self._leave, supervisor.sentinel)
        if _place is not None and _place.worker is not None:
            _place.worker._server = self
            _place.worker.say_it_serves()
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


# --- several processes: uvicorn's supervisors, each of whose processes runs the script again, as far as serve()


class _Place(NamedTuple):
    """What a process that runs the script again has been given; *worker* is None in the one process that a reload starts anew."""

    sockets: list[socket.socket]
    worker: _Worker | None


_place: _Place | None = None


class _Worker(multiprocess.Process):
    """A process of the supervisor's, seen from either side."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        self._run_main = _find_main()
        self.has_served = False
        self.failures = 0
        """How many before it, in its place, have ended without having served."""
        self.retry_at: float | None = None
        """When another takes the place of this one, which has ended, by the monotonic clock."""

    def start(self) -> None:
        with _starting():
            super().start()

    def target(self, sockets: list[socket.socket] | None = None) -> None:
        threading.Thread(target=self.always_pong, daemon=True).start()
        _run_again(self._run_main, _Place(sockets or [], self))

    def say_it_serves(self) -> None:
        # As an answer to a question to come, so that it is known even of a worker that dies at its first request.
        self.child_conn.send(True)

    def hear(self) -> None:
        """Take in what it has said so far."""
        while self.parent_conn.poll():
            self.has_served |= self.parent_conn.recv()

    def _healthcheck(self, timeout: float) -> bool | None:
        # An answer that came too late for its question must not count for the next.
        self.hear()
        answer = super()._healthcheck(timeout)
        self.has_served |= answer is True
        return answer


class _Supervisor(multiprocess.Multiprocess):
    """Keeps its number of workers serving. A start that fails ends all; later, it is tried again until it succeeds."""

    def __init__(self, sockets: list[socket.socket], workers: int, on_start: Callable[[], None]) -> None:
        super().__init__(uvicorn.Config("", workers=workers, log_config=None, timeout_worker_healthcheck=10), sockets)
        self._on_start = on_start

    def init_processes(self) -> None:
        # The first starts alone, so that what is wrong is said once.
        first = self._start_one()
        self.processes.append(first)
        while not first.is_ready(timeout=0.1):
            self.handle_signals()
            if self.should_exit.is_set():
                return
            if (status := first.exitcode) is not None:
                # With status 1 it has said why.
                sys.exit(1 if status == 1 else f"gaman: a worker process ended with status {status} before it served")
            time.sleep(0.02)
        self._on_start()
        self.processes += [self._start_one() for _ in range(self.processes_num - 1)]

    def keep_subprocess_alive(self) -> None:
        if (above := multiprocessing.parent_process()) is not None and not above.is_alive():
            self.should_exit.set()
        # _supervise() sees to it that they are of our kind.
        for i, worker in enumerate(cast("list[_Worker]", self.processes)):
            if self.should_exit.is_set():
                return
            if worker.retry_at is None and not worker.is_alive(self.config.timeout_worker_healthcheck):
                self._give_up(worker)
            if worker.retry_at is not None and time.monotonic() >= worker.retry_at:
                self.processes[i] = another = self._start_one()
                another.failures = 0 if worker.has_served else worker.failures + 1

    def terminate_all(self) -> None:
        # Who connects from now on is refused; here, the connection would wait for workers that take no more.
        for listener in self.sockets:
            listener.close()
        super().terminate_all()

    def _start_one(self) -> _Worker:
        worker = _Worker(self.config, self.sockets)
        worker.start()
        return worker

    def _give_up(self, worker: _Worker) -> None:
        hangs = worker.process.is_alive()
        worker.hear()
        worker.kill()
        worker.join()
        what = "does not answer" if hangs else f"(status {worker.exitcode}) died"
        if worker.has_served:
            pause = 0
            logger.error("worker process %s %s; another takes its place", worker.pid, what)
        else:
            pause = min(2**worker.failures, _LONGEST_PAUSE)
            logger.error("worker process %s %s before it served; another is tried in %d s", worker.pid, what, pause)
        worker.retry_at = time.monotonic() + pause


class _FileWatcher(BaseReload):
    """Looks at every Python file several times a second, which no other package is needed for."""

    def startup(self) -> None:
        self.reloader_name = "gaman"
        self._seen = _sources(self.config.reload_dirs)
        super().startup()

    def should_restart(self) -> list[Path] | None:
        self.pause()
        seen = _sources(self.config.reload_dirs)
        changed = {path for path, _ in seen ^ self._seen}
        self._seen = seen
        return sorted(changed)


if TYPE_CHECKING:
    _Watcher = BaseReload
else:
    try:
        from uvicorn.supervisors.watchfilesreload import WatchFilesReload as _Watcher
    except ImportError:
        _Watcher = _FileWatcher


class _Reloader(_Watcher):
    """Starts the one process below it again when a Python file changes, in the working directory or beside the script."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        folders = [os.getcwd(), os.path.abspath(sys.path[0])]
        # watchfiles waits by itself, and begins to see changes when it is first asked: before the script is read, that is.
        pause = 0.25 if issubclass(_Reloader, _FileWatcher) else 0
        config = uvicorn.Config("", reload=True, reload_dirs=folders, reload_delay=pause, log_config=None)
        super().__init__(config, partial(_serve_again, _find_main()), sockets)

    def startup(self) -> None:
        with _starting():
            super().startup()

    def restart(self) -> None:
        with _starting():
            super().restart()


def _supervise(sockets: list[socket.socket], workers: int, on_start: Callable[[], None]) -> None:
    # uvicorn's supervisor makes its processes by this name, and can't be told of another.
    multiprocess.Process = _Worker  # type: ignore[misc] # a class is no variable to mypy
    with _signals_put_back():
        _Supervisor(sockets, workers, on_start).run()


def _find_main() -> Callable[[], object]:
    """Return what runs this process's program again, in another process."""
    main = sys.modules["__main__"]
    spec = main.__spec__
    if spec is not None and spec.name != "__main__":
        return partial(runpy.run_module, spec.name, run_name="__main__", alter_sys=True)
    # A zip archive runs as a whole, a folder by the __main__.py in it.
    return partial(runpy.run_path, str(getattr(main.__loader__, "archive", main.__file__)), run_name="__main__")


def _serve_again(run_main: Callable[[], object], sockets: list[socket.socket] | None) -> None:
    _run_again(run_main, _Place(sockets or [], None))


def _run_again(run_main: Callable[[], object], place: _Place) -> None:
    global _place  # noqa: PLW0603 - it is what serve() finds when the script calls it, and the script knows nothing of it
    _place = place
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    run_main()


@contextmanager
def _starting() -> Generator[None]:
    """Start processes that do not import the script by themselves, and hear of a Ctrl+C once they know what to do."""
    # It would lift the mask.
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)


@contextmanager
def _signals_put_back() -> Generator[None]:
    handlers = {number: signal.getsignal(number) for number in multiprocess.SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _sources(folders: Sequence[Path]) -> set[tuple[Path, int]]:
    """Return the Python files in *folders* and when each was written, hidden folders and virtual environments left out."""
    sources: set[tuple[Path, int]] = set()
    for root in folders:
        for folder, below, names in os.walk(root):
            if "pyvenv.cfg" in names:
                below.clear()
                continue
            below[:] = [name for name in below if not name.startswith(".")]
            for path in [Path(folder, name) for name in names if name.endswith(".py")]:
                try:
                    sources.add((path, path.stat().st_mtime_ns))
                except FileNotFoundError:
                    # An editor is just replacing it.
                    continue
    return sources


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
