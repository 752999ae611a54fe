"""Worker processes: each runs the script again as far as serve(), and is connected to the supervisor by a pipe."""

from __future__ import annotations

import math
import multiprocessing
import os
import runpy
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager, suppress
from enum import IntEnum
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, Pipe
from types import FrameType, ModuleType
from typing import Final

from gaman._environment import restored

_PING_INTERVAL: Final = 0.5
"""Seconds between two pings to a worker."""
_MAX_SILENCE: Final = 10
"""Seconds without a pong after which a worker counts as hung."""
FORCED_END: Final = 1.0
"""Seconds that a forced shutdown leaves for the on_shutdown hooks and the rest of the process."""


class Shutdown(IntEnum):
    """How a server process ends. A greater one replaces a smaller one, never the reverse."""

    RETIRE = 1
    """A successor serves. Idle connections have the keep-alive timeout for another request."""
    STOP = 2
    """The whole server ends."""
    RELOAD = 3
    """The code has changed. Requests in flight have a moment; streams are cut off."""
    FORCE = 4
    """Requests in flight are cut off at once, and only the on_shutdown hooks run."""


class ThisWorker:
    """The worker's side of the pipe, with the sockets that the worker serves on."""

    def __init__(self, sockets: list[socket.socket], supervisor: Connection) -> None:
        self.sockets = sockets
        self._supervisor = supervisor
        self._begin_shutdown: Callable[[Shutdown], None] | None = None
        threading.Thread(target=self._read_commands, daemon=True).start()

    def report_started(self, begin_shutdown: Callable[[Shutdown], None]) -> None:
        """Tell the supervisor that this worker serves. Each of its commands calls *begin_shutdown*, in a thread."""
        self._begin_shutdown = begin_shutdown
        self._send("started")

    def report_waiting(self, requests: int) -> None:
        """Tell the supervisor how many requests delay this worker's end."""
        self._send(requests)

    def _send(self, message: str | int) -> None:
        with suppress(OSError):
            self._supervisor.send(message)

    def _read_commands(self) -> None:
        while True:
            try:
                command: Shutdown | None = self._supervisor.recv()
            except (OSError, EOFError):
                # The supervisor has died.
                os.kill(os.getpid(), signal.SIGTERM)
                return
            if command is None:
                self._send("pong")
            elif self._begin_shutdown is not None:
                self._begin_shutdown(command)


this_worker: ThisWorker | None = None
"""Set in a worker; None in the process that the user started."""


class Worker:
    """The supervisor's side of the pipe, with the process at its other end."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        self._pipe, child_pipe = Pipe()
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(target=_work, args=(_find_main(), sockets, child_pipe))
        with _spawning():
            self.process.start()
        child_pipe.close()
        self.has_started = False
        """Whether it has begun to serve."""
        self.failures = 0
        """How many of its predecessors in a row have ended before they served."""
        self.retry_at: float | None = None
        """When to replace this worker, which has ended, by the monotonic clock."""
        self.waiting_for: int | None = None
        """How many requests delay its end; None until it has reported that."""
        self._pinged_at = -math.inf
        self._has_answered = True

    @property
    def has_ended(self) -> bool:
        return self.process.exitcode is not None

    @property
    def waitables(self) -> list[Connection | int]:
        """What becomes readable when the worker sends a message, and when it ends."""
        return [self._pipe, self.process.sentinel]

    def read_messages(self) -> None:
        """Process the messages that have arrived from the worker."""
        with suppress(OSError, EOFError):
            while self._pipe.poll():
                message: str | int = self._pipe.recv()
                if message == "pong":
                    self._has_answered = True
                elif message == "started":
                    self.has_started = True
                elif isinstance(message, int):
                    self.waiting_for = message

    def hangs(self) -> bool:
        """Ping the worker if it is time to, and return whether the last ping has been without a pong for too long."""
        now = time.monotonic()
        if self._has_answered and now - self._pinged_at > _PING_INTERVAL:
            self._pinged_at, self._has_answered = now, False
            self._send(None)
        return not self._has_answered and now - self._pinged_at > _MAX_SILENCE

    def begin_shutdown(self, how: Shutdown) -> None:
        if self.has_started:
            self._send(how)
        else:
            self.process.terminate()

    def kill(self) -> None:
        """Kill the process if it still runs, and close the pipe."""
        self.process.kill()
        self.process.join()
        self.read_messages()
        self._pipe.close()

    def _send(self, command: Shutdown | None) -> None:
        with suppress(OSError):
            self._pipe.send(command)


def _work(run_main: Callable[[], object], sockets: list[socket.socket], supervisor: Connection) -> None:
    global this_worker  # noqa: PLW0603 - the script calls serve(), which finds it here
    # A terminal sends these to all its processes, but only the supervisor decides what they mean.
    signal.signal(signal.SIGINT, ignore_signal)
    signal.signal(signal.SIGHUP, ignore_signal)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    # multiprocessing has replaced stdin with /dev/null, and a debugger needs the terminal.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - it stays open
    this_worker = ThisWorker(sockets, supervisor)
    run_main()


def ignore_signal(_number: int, _frame: FrameType | None) -> None:
    """Handle a signal by doing nothing. Child processes don't inherit this, as they would SIG_IGN."""


def _find_main() -> Callable[[], object]:
    """Return a callable that runs this process's program again, in another process."""
    main = sys.modules["__main__"]
    spec = main.__spec__
    if spec is not None and spec.name != "__main__":
        return partial(runpy.run_module, spec.name, run_name="__main__", alter_sys=True)
    # A zip archive runs as a whole; a folder runs by its __main__.py.
    return partial(runpy.run_path, str(getattr(main.__loader__, "archive", main.__file__)), run_name="__main__")


@contextmanager
def _spawning() -> Generator[None]:
    """Inside, a new process starts with SIGINT blocked until it has a handler, and doesn't import the script by itself."""
    # Started first, because its start would unblock SIGINT.
    resource_tracker.ensure_running()
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        with restored():
            yield
    finally:
        sys.modules["__main__"] = main
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
