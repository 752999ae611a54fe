"""Clients that hop between the processes of a site, and note their requests and responses in a history; holds no test."""

from __future__ import annotations

import json
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from http.client import HTTPException
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, Self

from tests.faults.history import History, Request
from tests.faults.site_under_load import Threads, Visitor, site
from tests.serving import Program, until

PAUSE = 0.05
"""Seconds between two steps of a client."""
KEYS = 40
"""Keys in a session after which its client begins another."""
STUCK = 60.0
"""Seconds after which a repeated request counts as one that never succeeds."""
AT_ONCE = 3
"""Browsers at which an owner is logged in."""


class Processes:
    """The processes that serve SITE, each on its port; a killed one is replaced. One more serves a single client."""

    def __init__(self, folder: Path, driver: Mapping[str, Any], number: int = 2) -> None:
        self._folder = folder
        self._driver = driver
        self._number = number
        self._stack = ExitStack()
        self._programs: dict[int, Program] = {}
        self._others: list[Program] = []
        self.quiet = 0
        self.killed: set[int] = set()

    @property
    def ports(self) -> list[int]:
        return [*self._programs]

    def __enter__(self) -> Self:
        for _ in range(self._number + 1):
            self._start()
        self.quiet = self.ports[-1]
        self._others = [self._programs.pop(self.quiet)]
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def replace(self, random: Random) -> None:
        """Kill one, and start another in its place."""
        port = random.choice(self.ports)
        self.killed.add(port)
        self._programs.pop(port).send_signal(signal.SIGKILL)
        self._start()

    def logs(self) -> str:
        return "".join(program.stderr for program in [*self._programs.values(), *self._others])

    def _start(self) -> None:
        """Start one, repeatedly like a supervisor, because a start fails while the store fails over."""

        def listening() -> Program | None:
            program = self._stack.enter_context(site(self._folder, self._driver))
            with suppress(AssertionError):
                return program if program.port else None
            return None

        program = until(listening, "a process of the site to listen", seconds=STUCK)
        self._programs[program.port] = program


@dataclass
class Held:
    """A session as its client knows it: by a name of the tests, and by its cookie."""

    name: str
    cookie: str | None = None


@dataclass
class Common:
    """The site, the history, and the sessions that clients share."""

    processes: Processes
    history: History
    seed: int
    ended: list[Held] = field(default_factory=list[Held])
    alive: list[Held] = field(default_factory=list[Held])
    is_rough: bool = False
    """Whether a server is away."""


TARGETS: dict[str, Callable[[Held, str, str], str]] = {
    "read": lambda _, __, ___: "/all",
    "put": lambda held, key, _: f"/put/{key}/{held.name}",
    "count": lambda _, __, ___: "/count",
    "renew": lambda _, __, ___: "/renew",
    "end": lambda _, __, ___: "/end",
    "login": lambda _, __, owner: f"/login/{owner}",
    "end_all": lambda _, __, owner: f"/end_all/{owner}",
}


class Stuck(Exception):
    """A request that is repeated never succeeds."""


class Client(ABC):
    """Sends one request after the other, each to one of the processes."""

    def __init__(self, name: str, common: Common) -> None:
        self.name = name
        self.common = common
        self.random = Random(f"{common.seed} {name}")
        self._numbers = count()

    @property
    def ports(self) -> list[int]:
        return self.common.processes.ports

    @abstractmethod
    def step(self) -> None:
        """Do one round of requests."""

    def new(self) -> Held:
        """Return a session whose name is unique, and not the beginning of another name."""
        return Held(f"{self.name}-{next(self._numbers)}.")

    def fetch(self, held: Held, action: str, key: str = "", owner: str = "") -> Request:
        """Send a request, and note it in the history."""
        port = self.random.choice(self.ports)
        visitor = Visitor(port)
        visitor.cookie = cookie = held.cookie
        status, number = 0, None
        found: dict[str, Any] | None = None
        target = TARGETS[action](held, key, owner)
        began = time.monotonic()
        try:
            response = visitor.get(target)
        except (ConnectionError, HTTPException):
            ended = time.monotonic()
        else:
            ended, status = time.monotonic(), response.status
            if status == 200 and action in {"put", "count"} and cookie not in {None, visitor.cookie}:
                # The request began a new session, so the old one was absent.
                found, key, visitor.cookie = {}, "", cookie
            elif status == 200 and action == "read":
                found = json.loads(response.body)
                number = (found or {}).get("count")
            elif status == 200 and action == "count":
                number = int(response.body)
        held.cookie = visitor.cookie
        key = "user" if action == "login" else key
        return self.common.history.add(
            Request(self.name, action, held.name, cookie, held.cookie, began, ended, status, key, owner, found, number, port)
        )

    def insist(self, held: Held, action: str, key: str = "", owner: str = "", seconds: float = STUCK) -> Request:
        """Repeat a request until it is acknowledged, or raise Stuck."""
        return self._repeat(lambda: self.fetch(held, action, key, owner), seconds)

    def begin(self) -> Held:
        """Return an acknowledged session: no client has the cookie of any other."""
        return self.begin_as(self.new, "put", "first")

    def begin_as(self, name: Callable[[], Held], action: str, key: str = "", owner: str = "") -> Held:
        """Return the session of the first attempt that was acknowledged, each under another *name*."""
        held = Held("")

        def attempt() -> Request:
            nonlocal held
            held = name()
            return self.fetch(held, action, key, owner)

        self._repeat(attempt)
        return held

    @staticmethod
    def _repeat(attempt: Callable[[], Request], seconds: float = STUCK) -> Request:
        deadline = time.monotonic() + seconds
        while not (request := attempt()).is_acknowledged:
            if time.monotonic() > deadline:
                raise Stuck(f"{request} did not succeed within {seconds:.0f} s")
            time.sleep(PAUSE)
        return request


class Filling(Client):
    """Writes one key after the other into one session, and begins another when that is full."""

    def __init__(self, name: str, common: Common) -> None:
        super().__init__(name, common)
        self._held: Held | None = None
        self._keys = 0

    def fill(self) -> Held:
        """Write the next key, and return the session's cookie."""
        if self._held is None or self._keys == KEYS:
            self._held, self._keys = self.begin(), 0
        self._keys += 1
        self.fetch(self._held, "put", f"key{self._keys}")
        return self._held


class Writing(Filling):
    """Reads its writes."""

    def step(self) -> None:
        read = self.fetch(self.fill(), "read")
        if read.is_acknowledged and not read.found:
            self._held = None


class Counting(Client):
    """Adds to a counter from several browsers at once; begins another if an increment is in doubt."""

    def __init__(self, name: str, common: Common) -> None:
        super().__init__(name, common)
        self._held: Held | None = None
        self._pool = ThreadPoolExecutor(2)

    def step(self) -> None:
        if self._held is None:
            self._held = self.begin()
        browsers = [Held(self._held.name, self._held.cookie) for _ in range(2)]
        requests = [each.result() for each in [self._pool.submit(self.fetch, browser, "count") for browser in browsers]]
        read = self.fetch(self._held, "read")
        if not all(request.is_acknowledged for request in requests) or not read.found or (read.count or 0) >= KEYS:
            self._held = None


class Coming(Client):
    """Begins one session after the other."""

    def step(self) -> None:
        self.common.alive.append(self.begin())


class Renewing(Filling):
    """Renews its session again and again; the old id is dead."""

    def step(self) -> None:
        held = self.fill()
        before = Held(held.name, held.cookie)
        renewed = self.fetch(held, "renew")
        read = self.insist(held, "read")
        if renewed.is_acknowledged:
            self.common.ended.append(before)
        if not renewed.is_acknowledged or not read.found:
            self._held = None


class Leaving(Client):
    """Begins a session and ends it, and keeps the cookie."""

    def step(self) -> None:
        held = self.begin()
        left = Held(held.name, held.cookie)
        self.insist(held, "end")
        self.fetch(left, "read")
        self.common.ended.append(left)


class Owning(Client):
    """Logs an owner in at several browsers, ends all of the owner's sessions, and logs in once more."""

    def step(self) -> None:
        owner = self.new().name
        sessions = [self._log_in(f"{owner}{number}.", owner) for number in range(AT_ONCE)]
        self.insist(Held(owner), "end_all", owner=owner)
        self.common.ended += sessions
        for held in sessions:
            self.fetch(held, "read")
        again = self._log_in(f"{owner}again.", owner)
        self.fetch(again, "read")
        self.common.alive.append(again)

    def _log_in(self, name: str, owner: str) -> Held:
        attempts = count()
        return self.begin_as(lambda: Held(f"{name}{next(attempts)}."), "login", owner=owner)


class Reading(Client):
    """Reads ended sessions, mostly the latest ones, and some live ones."""

    def step(self) -> None:
        for sessions in (self.common.ended[-20:], self.common.ended, self.common.alive):
            if sessions:
                held = self.random.choice(sessions)
                self.fetch(Held(held.name, held.cookie), "read")


class Returning(Client):
    """Reads at a process of its own, and pauses while a server is away, so that no connection to this server breaks meanwhile."""

    def __init__(self, name: str, common: Common) -> None:
        super().__init__(name, common)
        self._pool = ThreadPoolExecutor(8)

    @property
    def ports(self) -> list[int]:
        return [self.common.processes.quiet]

    def step(self) -> None:
        if self.common.is_rough:
            return
        if self.random.random() < 0.1:
            # Together, they take as many connections as the process opens.
            for each in [self._pool.submit(self._read, self.common.alive) for _ in range(32)]:
                each.result()
        self._read(self.common.ended[-20:])

    def _read(self, sessions: list[Held]) -> None:
        if sessions:
            held = self.random.choice(sessions)
            self.fetch(Held(held.name, held.cookie), "read")


CREW: Mapping[type[Client], int] = {
    **dict.fromkeys((Counting, Coming, Renewing, Leaving, Owning, Returning), 1),
    Writing: 4,
    Reading: 2,
}


class Crew(Threads):
    """Clients of all kinds, each in a thread of its own, for as long as the block lasts; the history gets the stuck ones."""

    def __init__(self, common: Common) -> None:
        self._common = common
        clients = [kind(f"{kind.__name__.lower()}{i}", common) for kind, number in CREW.items() for i in range(number)]
        super().__init__([client.step for client in clients], pause=PAUSE)

    def check(self) -> None:
        self._common.history.stuck += [str(error) for error in self.errors if isinstance(error, Stuck)]
        self.errors = [error for error in self.errors if not isinstance(error, Stuck)]
        super().check()


def read_all(common: Common) -> None:
    """Read every session once more, by each of its cookies, after the faults."""
    reader, deadline = Reading("last", common), time.monotonic() + STUCK

    def read(name: str, cookie: str) -> None:
        if common.history.stuck:
            return
        try:
            reader.insist(Held(name, cookie), "read", seconds=deadline - time.monotonic())
        except Stuck as error:
            common.history.stuck.append(str(error))

    with ThreadPoolExecutor(8) as pool:
        for each in [pool.submit(read, *pair) for pair in common.history.cookies()]:
            each.result()
