"""Several processes: a supervisor that keeps its workers serving, each of which runs the script again as far as serve()."""

from __future__ import annotations

import logging
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
from contextlib import ExitStack, contextmanager, suppress
from enum import IntEnum
from functools import partial
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection, Pipe, wait
from types import FrameType, ModuleType
from typing import Final

from gaman._server._draining import stop_handshakes
from gaman._server._reload import Watcher

logger = logging.getLogger("gaman")

_TICK: Final = 0.25
"""Seconds between two looks at the workers, at most."""
_PING_EVERY: Final = 0.5
_MAX_SILENCE: Final = 10
"""Seconds without a pong after which a worker counts as hung."""
_MAX_PAUSE: Final = 30
"""Seconds between two attempts to start a worker, at most."""
FORCED_END: Final = 1.0
"""Seconds that the hooks and the rest of a process have when its end is forced."""


class Leave(IntEnum):
    """How a server ends. A later, greater one takes the place of a smaller one, never the reverse."""

    RETIRE = 1
    """A successor serves: connections that are kept have the keep-alive timeout for another request."""
    STOP = 2
    """The whole server ends."""
    RELOAD = 3
    """The code has changed: a moment for the requests in flight, and streams are cut off."""
    FORCE = 4
    """At once: the requests in flight are cut off, and only the on_shutdown hooks run."""


class Place:
    """A worker's side: the sockets that it serves on, and the supervisor."""

    def __init__(self, sockets: list[socket.socket], supervisor: Connection) -> None:
        self.sockets = sockets
        self._supervisor = supervisor
        self._leave: Callable[[Leave], None] | None = None
        threading.Thread(target=self._obey, daemon=True).start()

    def say_it_serves(self, leave: Callable[[Leave], None]) -> None:
        """Tell the supervisor, and call *leave*, in a thread, each time that it wants this worker to leave."""
        self._leave = leave
        self._tell("serves")

    def say_what_it_waits_for(self, requests: int) -> None:
        self._tell(requests)

    def _tell(self, word: str | int) -> None:
        with suppress(OSError):
            self._supervisor.send(word)

    def _obey(self) -> None:
        while True:
            try:
                word: Leave | None = self._supervisor.recv()
            except (OSError, EOFError):
                # The supervisor has died.
                os.kill(os.getpid(), signal.SIGTERM)
                return
            if word is None:
                self._tell("pong")
            elif self._leave is not None:
                self._leave(word)


place: Place | None = None
"""What this process has been given; None in the first one, which the user has started."""


class Worker:
    """A process of the supervisor's."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        self._pipe, theirs = Pipe()
        context = multiprocessing.get_context("spawn")
        self.process = context.Process(target=_work, args=(_find_main(), sockets, theirs))
        with _starting():
            self.process.start()
        theirs.close()
        self.has_served = False
        self.failures = 0
        """How many before it, in its place, have ended without having served."""
        self.retry_at: float | None = None
        """When another takes the place of this one, which has ended, by the monotonic clock."""
        self.waits_for: int | None = None
        """How many requests it finishes; None until it has said so."""
        self._asked_at = -math.inf
        self._has_answered = True

    @property
    def has_ended(self) -> bool:
        return self.process.exitcode is not None

    @property
    def signs(self) -> list[Connection | int]:
        """What becomes readable when it says something, and when it ends."""
        return [self._pipe, self.process.sentinel]

    def hear(self) -> None:
        """Take in what it has said so far."""
        with suppress(OSError, EOFError):
            while self._pipe.poll():
                word: str | int = self._pipe.recv()
                if word == "pong":
                    self._has_answered = True
                elif word == "serves":
                    self.has_served = True
                elif isinstance(word, int):
                    self.waits_for = word

    def hangs(self) -> bool:
        """Ping it from time to time, and return whether it has left the last ping unanswered for too long."""
        now = time.monotonic()
        if self._has_answered and now - self._asked_at > _PING_EVERY:
            self._asked_at, self._has_answered = now, False
            self._say(None)
        return not self._has_answered and now - self._asked_at > _MAX_SILENCE

    def leave(self, how: Leave) -> None:
        if self.has_served:
            self._say(how)
        else:
            self.process.terminate()

    def end(self) -> None:
        """Kill it, if it still runs, and close what leads to it."""
        self.process.kill()
        self.process.join()
        self.hear()
        self._pipe.close()

    def _say(self, word: Leave | None) -> None:
        with suppress(OSError):
            self._pipe.send(word)


class Supervisor:
    """Keeps its number of workers serving. A first start that fails ends all; later, it is tried again until it succeeds.

    With a *watcher*, changed files have all workers start again, and a start that fails waits for the next change.
    """

    def __init__(
        self, sockets: list[socket.socket], count: int, on_start: Callable[[], None], watcher: Watcher | None = None
    ) -> None:
        self._sockets = sockets
        self._count = count
        self._on_start = on_start
        self._watcher = watcher
        self._has_started = False
        # One for each place, of those that serve or shall.
        self._workers: list[Worker] = []
        # Those that SIGHUP replaces, one after the other, and what is about to take the first one's place.
        self._outdated: list[Worker] = []
        self._successor: Worker | None = None
        self._leaving: list[Worker] = []
        self._stopped_at: float | None = None
        self._kill_at = math.inf
        self._not_before = 0.0
        """When another process may be started, by the monotonic clock, after the system had no place for one."""
        self._has_said_what_it_waits_for = False

    def run(self) -> None:
        """Serve until SIGINT or SIGTERM, and until every worker has ended."""
        with _signals() as arriving, ExitStack() as stack:
            if self._watcher is not None:
                stack.callback(self._watcher.stop)
                self._say_it_started()
            self._workers = [Worker(self._sockets)]
            while self._stopped_at is None or self._leaving:
                others = [] if self._watcher is None else [self._watcher.changes]
                running = [worker for worker in self._all() if worker.retry_at is None]
                wait([arriving, *others, *(sign for worker in running for sign in worker.signs)], _TICK)
                for worker in running:
                    worker.hear()
                with suppress(BlockingIOError):
                    for number in arriving.recv(4096):
                        self._handle(number)
                if self._watcher is not None and self._watcher.changes.poll():
                    self._reload(self._watcher.read())
                if self._stopped_at is None:
                    self._tend()
                    self._replace_outdated()
                self._see_off()

    def _all(self) -> list[Worker]:
        return [*self._workers, *([] if self._successor is None else [self._successor]), *self._leaving]

    def _handle(self, number: int) -> None:
        # A server with reload is a developer's, and ends with the terminal.
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
                self._dismiss(worker, Leave.RETIRE)

    def _stop(self) -> None:
        # Before the workers are told, because the last of them closes the socket as soon as nothing waits to be accepted.
        stop_handshakes(self._sockets)
        self._stopped_at = time.monotonic()
        for worker in self._all():
            self._dismiss(worker, Leave.STOP)
        for listener in self._sockets:
            listener.close()

    def _force(self) -> None:
        for worker in self._leaving:
            worker.leave(Leave.FORCE)
        self._kill_at = min(self._kill_at, time.monotonic() + FORCED_END)

    def _reload(self, changed: str) -> None:
        if self._stopped_at is None:
            logger.warning("detected changes in %s. Reloading...", changed)
            for worker in self._all():
                self._dismiss(worker, Leave.RELOAD)
            self._workers = [Worker(self._sockets)]

    def _start_one(self) -> Worker | None:
        """Start a worker, or return None while the system has no place for another process."""
        if time.monotonic() < self._not_before:
            return None
        try:
            return Worker(self._sockets)
        except OSError as error:
            self._not_before = time.monotonic() + _MAX_PAUSE
            logger.error("a worker process can't be started: %s; the next attempt is in %d s", error, _MAX_PAUSE)
            return None

    def _dismiss(self, worker: Worker, how: Leave) -> None:
        """Have *worker* leave its place, and see that it ends."""
        if worker in self._workers:
            self._workers.remove(worker)
        if worker in self._outdated:
            self._outdated.remove(worker)
        if worker is self._successor:
            self._successor = None
        if worker.retry_at is None:
            worker.leave(how)
            if worker not in self._leaving:
                self._leaving.append(worker)

    def _abandon_successor(self) -> None:
        if self._successor is not None:
            self._dismiss(self._successor, Leave.STOP)

    def _tend(self) -> None:
        """See that there are as many workers as there shall be."""
        for i, worker in enumerate(self._workers):
            # A start may take long, and hold the interpreter: it imports what the script needs.
            if worker.retry_at is None and (worker.has_ended or (worker.has_served and worker.hangs())):
                self._give_up(worker)
            if worker.retry_at is not None and time.monotonic() >= worker.retry_at and (another := self._start_one()):
                self._workers[i] = another
                another.failures = 0 if worker.has_served else worker.failures + 1
        # The first starts alone, so that what is wrong is said once.
        if any(worker.has_served for worker in self._workers):
            if not self._has_started:
                self._say_it_started()
            while len(self._workers) < self._count and (another := self._start_one()):
                self._workers.append(another)

    def _say_it_started(self) -> None:
        self._has_started = True
        self._on_start()

    def _give_up(self, worker: Worker) -> None:
        what = f"(status {worker.process.exitcode}) died" if worker.has_ended else "does not answer"
        worker.end()
        if worker in self._outdated:
            self._outdated.remove(worker)
        status = worker.process.exitcode
        if worker.has_served:
            pause: float = 0
            logger.error("worker process %s %s; another takes its place", worker.process.pid, what)
        elif self._watcher is not None:
            pause = math.inf
            # With status 1 it has said why.
            if status != 1:
                logger.error("worker process %s %s before it served; the next change starts another", worker.process.pid, what)
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
            self._successor = self._start_one()
        elif self._successor.has_served:
            old = self._outdated[0]
            self._workers[self._workers.index(old)] = self._successor
            self._successor = None
            self._dismiss(old, Leave.RETIRE)
        elif self._successor.has_ended:
            self._successor.end()
            logger.error("worker process %s ended before it served; those that serve go on", self._successor.process.pid)
            self._successor = None
            self._outdated.clear()

    def _see_off(self) -> None:
        """Take note of those that have left."""
        now = time.monotonic()
        for worker in [*self._leaving]:
            if hangs := worker.hangs():
                logger.error("worker process %s does not answer, and is killed", worker.process.pid)
            if worker.has_ended or hangs or now >= self._kill_at:
                self._leaving.remove(worker)
                worker.end()
        if self._stopped_at is not None and not self._has_said_what_it_waits_for:
            counts = [worker.waits_for for worker in self._leaving if worker.has_served]
            # One that says nothing for long is busy with a request at least.
            if None not in counts or now - self._stopped_at > 1:
                self._has_said_what_it_waits_for = say_what_it_waits_for(sum(1 if count is None else count for count in counts))


def say(line: str) -> None:
    """Print *line* at once; that nothing reads stdout is no reason to end."""
    with suppress(OSError):
        print(line, flush=True)


def say_what_it_waits_for(requests: int) -> bool:
    """Say how many requests delay the end, and return whether there is any."""
    if requests:
        say(f"gaman: waiting for {plural(requests, 'request')} to finish; Ctrl+C again ends it at once")
    return requests > 0


def plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _work(run_main: Callable[[], object], sockets: list[socket.socket], supervisor: Connection) -> None:
    global place  # noqa: PLW0603 - it is what serve() finds when the script calls it, and the script knows nothing of it
    # A terminal sends these to all its processes, and the supervisor says what to do.
    signal.signal(signal.SIGINT, _ignore)
    signal.signal(signal.SIGHUP, _ignore)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    # multiprocessing has put /dev/null there, and a debugger needs the terminal.
    sys.stdin = open(0, closefd=False)  # noqa: SIM115 - it stays open
    place = Place(sockets, supervisor)
    run_main()


def _ignore(_number: int, _frame: FrameType | None) -> None:
    """Handle a signal by doing nothing. Unlike with SIG_IGN, a program that this one starts hears of it."""


def _find_main() -> Callable[[], object]:
    """Return what runs this process's program again, in another process."""
    main = sys.modules["__main__"]
    spec = main.__spec__
    if spec is not None and spec.name != "__main__":
        return partial(runpy.run_module, spec.name, run_name="__main__", alter_sys=True)
    # A zip archive runs as a whole, a folder by the __main__.py in it.
    return partial(runpy.run_path, str(getattr(main.__loader__, "archive", main.__file__)), run_name="__main__")


@contextmanager
def _starting() -> Generator[None]:
    """Start a process that does not import the script by itself, and hears of a Ctrl+C once it knows what to do."""
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
def _signals() -> Generator[socket.socket]:
    """Have the numbers of the signals that a supervisor knows arrive at a socket, as octets."""
    known = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGTTIN, signal.SIGTTOU)
    arriving, writer = socket.socketpair()
    with arriving, writer:
        arriving.setblocking(False)
        writer.setblocking(False)
        wakeup = signal.set_wakeup_fd(writer.fileno())
        handlers = {number: signal.signal(number, _ignore) for number in known}
        try:
            yield arriving
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(wakeup)
