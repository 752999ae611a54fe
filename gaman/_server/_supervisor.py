"""Supervisor: starts worker processes, replaces those that die or hang, and ends them when a signal says so."""

from __future__ import annotations

import logging
import math
import signal
import socket
import sys
import time
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager, suppress
from multiprocessing.connection import wait
from typing import Final

from gaman._server._console import print_waiting
from gaman._server._draining import stop_handshakes
from gaman._server._reload import Watcher
from gaman._server._workers import FORCED_END, Shutdown, Worker, ignore_signal

logger = logging.getLogger("gaman")

_TICK: Final = 0.25
"""Seconds between two checks of the workers, at most."""
_MAX_PAUSE: Final = 30
"""Seconds between two attempts to start a worker, at most."""


class Supervisor:
    """Keeps *count* workers serving. If the first start fails, the server ends; later, a failed start is retried.

    With a *watcher*, changed files restart all workers, and a failed start waits for the next change.
    """

    def __init__(
        self, sockets: list[socket.socket], count: int, on_start: Callable[[], None], watcher: Watcher | None = None
    ) -> None:
        self._sockets = sockets
        self._count = count
        self._on_start = on_start
        self._watcher = watcher
        self._has_started = False
        self._workers: list[Worker] = []
        """The workers that serve or are starting, and those that have ended and are to be replaced."""
        self._outdated: list[Worker] = []
        """The workers that SIGHUP replaces, one after another."""
        self._successor: Worker | None = None
        """The worker that is starting, to replace the first outdated one."""
        self._ending: list[Worker] = []
        """The workers that have been told to end."""
        self._stopped_at: float | None = None
        self._kill_at = math.inf
        self._not_before = 0.0
        """When the next process may be started, by the monotonic clock, after the system refused one."""
        self._has_printed_waiting = False

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM, and until every worker has ended."""
        with _signals() as arriving, ExitStack() as stack:
            if self._watcher is not None:
                stack.callback(self._watcher.stop)
                self._announce_start()
            self._workers = [Worker(self._sockets)]
            while self._stopped_at is None or self._ending:
                others = [] if self._watcher is None else [self._watcher.changes]
                running = [worker for worker in self._all() if worker.retry_at is None]
                wait([arriving, *others, *(each for worker in running for each in worker.waitables)], _TICK)
                for worker in running:
                    worker.read_messages()
                with suppress(BlockingIOError):
                    for number in arriving.recv(4096):
                        self._handle(number)
                if self._watcher is not None and self._watcher.changes.poll():
                    self._reload(self._watcher.read())
                if self._stopped_at is None:
                    self._maintain_workers()
                    self._replace_outdated()
                self._remove_ended()

    def _all(self) -> list[Worker]:
        return [*self._workers, *([] if self._successor is None else [self._successor]), *self._ending]

    def _handle(self, number: int) -> None:
        # With reload, SIGHUP ends the server: the developer has closed the terminal.
        if number in (signal.SIGINT, signal.SIGTERM) or (number == signal.SIGHUP and self._watcher is not None):
            if self._stopped_at is None:
                self._stop()
            elif number == signal.SIGINT:
                self._force()
        elif self._stopped_at is not None:
            return
        elif number == signal.SIGHUP:
            self._abandon_successor()
            self._outdated = [worker for worker in self._workers if worker.retry_at is None]
        elif number == signal.SIGTTIN:
            self._count += 1
        elif number == signal.SIGTTOU and self._count > 1:
            self._count -= 1
            for worker in self._workers[self._count :]:
                self._dismiss(worker, Shutdown.RETIRE)

    def _stop(self) -> None:
        # Before the workers end, because the last of them closes the socket when no connection is left to accept.
        stop_handshakes(self._sockets)
        self._stopped_at = time.monotonic()
        for worker in self._all():
            self._dismiss(worker, Shutdown.STOP)
        for listener in self._sockets:
            listener.close()

    def _force(self) -> None:
        for worker in self._ending:
            worker.begin_shutdown(Shutdown.FORCE)
        self._kill_at = min(self._kill_at, time.monotonic() + FORCED_END)

    def _reload(self, changed: str) -> None:
        if self._stopped_at is None:
            logger.warning("detected changes in %s. Reloading...", changed)
            for worker in self._all():
                self._dismiss(worker, Shutdown.RELOAD)
            self._workers = [Worker(self._sockets)]

    def _start_worker(self) -> Worker | None:
        """Start a worker. Return None if the system refuses another process, now or a short time ago."""
        if time.monotonic() < self._not_before:
            return None
        try:
            return Worker(self._sockets)
        except OSError as error:
            self._not_before = time.monotonic() + _MAX_PAUSE
            logger.error("a worker process can't be started: %s; the next attempt is in %d s", error, _MAX_PAUSE)
            return None

    def _dismiss(self, worker: Worker, how: Shutdown) -> None:
        """Tell *worker* to end, and watch it until it has."""
        if worker in self._workers:
            self._workers.remove(worker)
        if worker in self._outdated:
            self._outdated.remove(worker)
        if worker is self._successor:
            self._successor = None
        if worker.retry_at is None:
            worker.begin_shutdown(how)
            if worker not in self._ending:
                self._ending.append(worker)

    def _abandon_successor(self) -> None:
        if self._successor is not None:
            self._dismiss(self._successor, Shutdown.STOP)

    def _maintain_workers(self) -> None:
        """Replace workers that have ended or hang, and start those that are missing."""
        for i, worker in enumerate(self._workers):
            # A worker that is starting isn't pinged: while it imports the script, it may not answer for long.
            if worker.retry_at is None and (worker.has_ended or (worker.has_started and worker.hangs())):
                self._give_up(worker)
            if worker.retry_at is not None and time.monotonic() >= worker.retry_at and (another := self._start_worker()):
                self._workers[i] = another
                another.failures = 0 if worker.has_started else worker.failures + 1
        # The others start after the first one, so that a mistake in the script is reported once.
        if any(worker.has_started for worker in self._workers):
            if not self._has_started:
                self._announce_start()
            while len(self._workers) < self._count and (another := self._start_worker()):
                self._workers.append(another)

    def _announce_start(self) -> None:
        self._has_started = True
        self._on_start()

    def _give_up(self, worker: Worker) -> None:
        """End *worker*, log why, and set when it is to be replaced; SystemExit if it was the first and has never served."""
        what = f"(status {worker.process.exitcode}) died" if worker.has_ended else "does not answer"
        worker.kill()
        if worker in self._outdated:
            self._outdated.remove(worker)
        status = worker.process.exitcode
        if worker.has_started:
            pause: float = 0
            logger.error("worker process %s %s; another takes its place", worker.process.pid, what)
        elif self._watcher is not None:
            pause = math.inf
            logger.error(
                "worker process %s %s before it served; requests wait until the next change starts another",
                worker.process.pid,
                what,
            )
        elif not self._has_started:
            sys.exit(1 if status == 1 else f"gaman: a worker process ended with status {status} before it served")
        else:
            pause = min(2**worker.failures, _MAX_PAUSE)
            logger.error("worker process %s %s before it served; another is tried in %d s", worker.process.pid, what, pause)
        worker.retry_at = time.monotonic() + pause

    def _replace_outdated(self) -> None:
        if not self._outdated or not self._has_started:
            self._abandon_successor()
        elif self._successor is None:
            self._successor = self._start_worker()
        elif self._successor.has_started:
            old = self._outdated[0]
            self._workers[self._workers.index(old)] = self._successor
            self._successor = None
            self._dismiss(old, Shutdown.RETIRE)
            if not self._outdated:
                logger.info("new processes have replaced all workers (SIGHUP)")
        elif self._successor.has_ended:
            self._successor.kill()
            logger.error("worker process %s ended before it served; those that serve go on", self._successor.process.pid)
            self._successor = None
            self._outdated.clear()

    def _remove_ended(self) -> None:
        """Forget the workers that have ended, kill those that hang, and print once how many requests delay the shutdown."""
        now = time.monotonic()
        for worker in [*self._ending]:
            if hangs := worker.hangs():
                logger.error("worker process %s does not answer, and is killed", worker.process.pid)
            if worker.has_ended or hangs or now >= self._kill_at:
                self._ending.remove(worker)
                worker.kill()
        if self._stopped_at is not None and not self._has_printed_waiting:
            counts = [worker.waiting_for for worker in self._ending if worker.has_started]
            # A worker that reports nothing for a second is busy with at least one request.
            if None not in counts or now - self._stopped_at > 1:
                self._has_printed_waiting = print_waiting(sum(1 if count is None else count for count in counts))


@contextmanager
def _signals() -> Generator[socket.socket]:
    """Yield a socket on which the numbers of the supervisor's signals arrive, as octets."""
    handled = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU)
    arriving, writer = socket.socketpair()
    with arriving, writer:
        arriving.setblocking(False)
        writer.setblocking(False)
        wakeup = signal.set_wakeup_fd(writer.fileno())
        handlers = {number: signal.signal(number, ignore_signal) for number in handled}
        try:
            yield arriving
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(wakeup)
