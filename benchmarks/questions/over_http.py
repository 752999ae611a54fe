"""How many requests a second are answered over HTTP, and how late, with sessions in each store: a server of one process for each.

Who contends stands in entrants.py, and what makes the load in load.py.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.harness import Case, Contender, Goal, Missing, Plan, Question, Sample, line_of
from benchmarks.load import Aim, load
from benchmarks.places import STORES, place_for
from benchmarks.report.results import BEST_PEER
from benchmarks.rivals.bare import FLOOR
from benchmarks.rivals.servers import ENTRANTS, Entrant
from tests.serving import Answer, get, running, until

ROOT = Path(__file__).parents[2]
TURN, QUICK_TURN = 0.15, 0.05
"""Seconds. wrk takes a little longer, see load.py."""
QUICK = (FLOOR, "gaman", "Starlette", "Express")


class Setting(NamedTuple):
    """A case: what is asked of servers of that *kind*, over how many connections."""

    name: str
    kind: str
    path: str
    connections: int
    goals: tuple[Goal, ...]


def at_least(limit: float, against: str = FLOOR) -> Goal:
    return Goal(sense="at least", limit=limit, against=against)


LIKE_FLOOR = at_least(0.9)
AHEAD = at_least(1.9, BEST_PEER)

SETTINGS = [
    Setting("JSON", "plain", "/json", 64, (LIKE_FLOOR,)),
    Setting("two params, 100 routes", "plain", "/users/42/posts/7", 64, (LIKE_FLOOR,)),
    *(
        Setting(f"{kind}, {path[1:]}", kind, path, 64, (LIKE_FLOOR, AHEAD))
        for kind in ("cookies", "memory")
        for path in ("/read", "/write")
    ),
    Setting("redis, read, 64 at once", "redis", "/read", 64, (at_least(1.8), AHEAD, at_least(1, "Express"))),
    Setting("redis, write, 64 at once", "redis", "/write", 64, (at_least(2.2), AHEAD, at_least(1, "Express"))),
    Setting("sql, read, 64 at once", "sql", "/read", 64, (LIKE_FLOOR,)),
    Setting("sql, write, 64 at once", "sql", "/write", 64, (LIKE_FLOOR, at_least(4, "gaman, a commit a write"))),
    *(
        Setting(f"{kind}, {path[1:]}, 64 at once", kind, path, 64, (LIKE_FLOOR,))
        for kind in ("file", "mongodb")
        for path in ("/read", "/write")
    ),
    *(
        Setting(f"{kind}, {path[1:]}, one at a time", kind, path, 1, (LIKE_FLOOR,))
        for kind in STORES
        for path in ("/read", "/write")
    ),
]
QUICK_SETTINGS = ("cookies, read", "redis, write, 64 at once")


class Site:
    """A server of an entrant's, and the sessions that it is asked in."""

    def __init__(self, entrant: Entrant, setting: Setting, port: int, turn: float) -> None:
        self.entrant = entrant
        self._turn = turn
        self._setting = setting
        self._port = port
        self._aim = Aim(port, setting.path, setting.connections, (), b"")

    def ask(self, path: str, *fields: str) -> Answer:
        """Ask once; who has not started to listen yet is waited for."""

        def answer() -> Answer | None:
            try:
                return get(self._port, path, *fields)
            except ConnectionRefusedError:
                return None

        found = until(answer, f"{self.entrant.name} to listen")
        assert found.status == 200, f"{self.entrant.name} answers {found.status} to {path}: {found.body!r}"
        return found

    def log_in(self) -> str:
        return self.ask("/write").headers["set-cookie"].partition(";")[0]

    async def answer(self) -> Any:
        """Return what it answers; after a write also what it reads then."""
        path, plain = self._setting.path, self._setting.kind == "plain"
        # A store answers those who come together sooner than one after the other.
        logins = () if plain else (asyncio.to_thread(self.log_in) for _ in range(self._setting.connections))
        cookies = await asyncio.gather(*logins)
        found = self.ask(path, *(f"Cookie: {cookie}" for cookie in cookies[:1]))
        self._aim = self._aim._replace(cookies=cookies, body=found.body)
        if self.entrant.warm_up:
            await load(self._aim, self.entrant.warm_up)
        answers = [json.loads(found.body)]
        if path == "/write":
            cookie = found.headers.get("set-cookie", cookies[0]).partition(";")[0]
            answers.append(json.loads(self.ask("/read", f"Cookie: {cookie}").body))
        return answers

    async def measure(self) -> Sample:
        found = await load(self._aim, self._turn)
        return Sample(found.rate, {"p50, ms": found.p50, "p99, ms": found.p99})

    def contender(self) -> Contender:
        entrant = self.entrant
        source = line_of(entrant.defined_by)
        return Contender(
            name=entrant.name, measure=self.measure, answer=self.answer, kind=entrant.kind, version=entrant.version(), source=source
        )


@asynccontextmanager
async def enter(setting: Setting, plan: Plan) -> AsyncGenerator[Sequence[Contender | Missing]]:
    """Start the servers of all who take part."""
    with ExitStack() as stack:
        place = stack.enter_context(place_for(setting.kind))
        found: list[Contender | Missing] = []
        programs: list[tuple[Entrant, Any]] = []
        for entrant in ENTRANTS:
            if (plan.quick and entrant.name not in QUICK) or setting.kind not in entrant.kinds or setting.path in entrant.passes:
                continue
            if entrant.kind == "peer" and not plan.invites(entrant.name):
                continue
            if (reason := entrant.absence()) is not None:
                found.append(Missing(entrant.name, reason))
                continue
            arguments = ("-m", "benchmarks.rivals.servers", entrant.name, setting.kind, place)
            programs.append((entrant, stack.enter_context(running(*arguments, cwd=ROOT))))
        # They start side by side.
        turn = QUICK_TURN if plan.quick else TURN
        yield [*(Site(entrant, setting, program.port, turn).contender() for entrant, program in programs), *found]


def cases(plan: Plan) -> Sequence[Case]:
    settings = [each for each in SETTINGS if each.name in QUICK_SETTINGS or not plan.quick]
    return [
        Case(
            name=each.name,
            enter=partial(enter, each, plan),
            floor=FLOOR,
            unit="requests a second",
            better="higher",
            goals=[goal for goal in each.goals if goal.against in (*QUICK, BEST_PEER) or not plan.quick],
            share=1 if plan.quick else sum(each.kind in entrant.kinds and each.path not in entrant.passes for entrant in ENTRANTS),
        )
        for each in settings
    ]


QUESTION = Question(
    name="over_http", title="How many requests a second are answered over HTTP?", cases=cases, seconds=240, quick_seconds=18
)
