"""Worker processes: one supervisor, which binds the socket, and a crew that serves on it; knows neither server nor App."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import NoReturn

logger = logging.getLogger("gaman")

# In the environment of a worker process: the file descriptors of the socket that it serves on and of its line to the supervisor.
_WORKER = "GAMAN_WORKER"
_STOPS = (signal.SIGINT, signal.SIGTERM)


def inherited() -> tuple[socket.socket, socket.socket] | None:
    """Return the socket to serve on and the line to the supervisor, in a worker process; None in any other."""
    numbers = os.environ.pop(_WORKER, None)
    if numbers is None:
        return None
    listener, line = (socket.socket(fileno=int(number)) for number in numbers.split())
    return listener, line


class _Worker:
    """A process that runs this one's own command again, as far as serve(), which then serves on the same socket."""

    def __init__(self, listener: socket.socket) -> None:
        # The other end closes with either process, so that neither outlives the other unnoticed.
        self._line, its_end = socket.socketpair()
        with its_end:
            inherited = (listener.fileno(), its_end.fileno())
            self._process = subprocess.Popen(  # noqa: S603 - what it runs is what runs already
                [sys.executable, *sys.orig_argv[1:]],
                pass_fds=inherited,
                env={**os.environ, _WORKER: "{} {}".format(*inherited)},
                # A Ctrl+C is the supervisor's, which then ends its workers, be they only starting.
                process_group=0,
            )

    def wait_until_ready(self) -> None:
        """Return once it serves; where it ends before, all ends, for the next one would do the same."""
        if not self._line.recv(1):
            status = self._process.wait()
            # With status 1 it has said why.
            sys.exit(1 if status == 1 else f"gaman: a worker process ended with status {status} before it served")

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def send(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    def wait(self) -> None:
        self._process.wait()
        self._line.close()

    def __str__(self) -> str:
        return f"worker process {self._process.pid} (status {self._process.returncode})"


def supervise(listener: socket.socket, workers: int, reload: bool, announce: Callable[[], None]) -> None:
    """Keep worker processes serving until SIGINT or SIGTERM."""
    handlers = [signal.signal(number, signal.default_int_handler) for number in _STOPS]
    crew: list[_Worker] = []
    try:
        if reload:
            announce()
            _reload(listener, crew)
        else:
            _replace(listener, crew, workers, announce)
    except KeyboardInterrupt:
        pass
    finally:
        for number in _STOPS:
            signal.signal(number, partial(_pass_on, crew))
        _send(signal.SIGTERM, crew)
        for worker in crew:
            worker.wait()
        for number, handler in zip(_STOPS, handlers, strict=True):
            signal.signal(number, handler)
        listener.close()


def _pass_on(crew: list[_Worker], number: int, frame: FrameType | None) -> None:
    _send(signal.SIGINT, crew)


def _send(number: signal.Signals, crew: list[_Worker]) -> None:
    for worker in crew:
        worker.send(number)


def _replace(listener: socket.socket, crew: list[_Worker], workers: int, announce: Callable[[], None]) -> NoReturn:
    # The first starts alone, so that what is wrong is said once.
    crew.append(_Worker(listener))
    crew[0].wait_until_ready()
    announce()
    crew.extend(_Worker(listener) for _ in range(workers - 1))
    for worker in crew[1:]:
        worker.wait_until_ready()
    while True:
        for i, worker in enumerate(crew):
            if worker.has_ended():
                worker.wait()
                logger.error("%s died; another takes its place", worker)
                crew[i] = _Worker(listener)
                crew[i].wait_until_ready()
        time.sleep(0.2)


def _reload(listener: socket.socket, crew: list[_Worker]) -> NoReturn:
    while True:
        before = _sources()
        crew[:] = [_Worker(listener)]
        while not (changed := [path for path, _ in before ^ _sources()]):
            time.sleep(0.3)
        print(f"gaman: {os.path.relpath(changed[0])} has changed; starting again", flush=True)
        crew[0].send(signal.SIGTERM)
        crew[0].wait()


def _sources() -> set[tuple[str, int]]:
    """Return the Python files in the working directory and beside the script, hidden and virtual environments left out."""
    sources: set[tuple[str, int]] = set()
    for root in {os.getcwd(), os.path.abspath(sys.path[0])}:
        for folder, below, names in os.walk(root):
            if "pyvenv.cfg" in names:
                below.clear()
                continue
            below[:] = [name for name in below if not name.startswith(".")]
            for path in [os.path.join(folder, name) for name in names if name.endswith(".py")]:
                try:
                    sources.add((path, os.stat(path).st_mtime_ns))
                except FileNotFoundError:
                    # An editor is just replacing it.
                    continue
    return sources
