"""Several processes: a supervisor that keeps its workers serving, each of which runs the script again as far as serve()."""

from __future__ import annotations

import logging
import multiprocessing
import runpy
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from multiprocessing import resource_tracker
from types import ModuleType
from typing import NamedTuple, cast

import uvicorn
from uvicorn.supervisors import multiprocess

logger = logging.getLogger("gaman")

_LONGEST_PAUSE = 30


class Place(NamedTuple):
    """What a process that runs the script again has been given; *worker* is None in the one process that a reload starts anew."""

    sockets: list[socket.socket]
    worker: Worker | None


place: Place | None = None
"""What this process has been given; None in the first one, which the user has started."""


class Worker(multiprocess.Process):
    """A process of the supervisor's, seen from either side."""

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket]) -> None:
        super().__init__(config, sockets)
        self._run_main = find_main()
        self.has_served = False
        self.failures = 0
        """How many before it, in its place, have ended without having served."""
        self.retry_at: float | None = None
        """When another takes the place of this one, which has ended, by the monotonic clock."""

    def start(self) -> None:
        with starting():
            super().start()

    def target(self, sockets: list[socket.socket] | None = None) -> None:
        threading.Thread(target=self.always_pong, daemon=True).start()
        run_again(self._run_main, Place(sockets or [], self))

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


class Supervisor(multiprocess.Multiprocess):
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
        for i, worker in enumerate(cast("list[Worker]", self.processes)):
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

    def _start_one(self) -> Worker:
        worker = Worker(self.config, self.sockets)
        worker.start()
        return worker

    def _give_up(self, worker: Worker) -> None:
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


def supervise(sockets: list[socket.socket], workers: int, on_start: Callable[[], None]) -> None:
    # uvicorn's supervisor makes its processes by this name, and can't be told of another.
    multiprocess.Process = Worker  # type: ignore[misc] # a class is no variable to mypy
    with signals_put_back():
        Supervisor(sockets, workers, on_start).run()


def find_main() -> Callable[[], object]:
    """Return what runs this process's program again, in another process."""
    main = sys.modules["__main__"]
    spec = main.__spec__
    if spec is not None and spec.name != "__main__":
        return partial(runpy.run_module, spec.name, run_name="__main__", alter_sys=True)
    # A zip archive runs as a whole, a folder by the __main__.py in it.
    return partial(runpy.run_path, str(getattr(main.__loader__, "archive", main.__file__)), run_name="__main__")


def run_again(run_main: Callable[[], object], given: Place) -> None:
    global place  # noqa: PLW0603 - it is what serve() finds when the script calls it, and the script knows nothing of it
    place = given
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    run_main()


@contextmanager
def starting() -> Generator[None]:
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
def signals_put_back() -> Generator[None]:
    handlers = {number: signal.getsignal(number) for number in multiprocess.SIGNALS}
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
