"""Requests per second over HTTP, and their latencies, with sessions in each store.

Each contender of rivals/servers.py runs in a process of its own; load.py sends the requests.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.cores import on_load_cores, on_server_core
from benchmarks.harness import Case, Contender, Goal, Missing, Plan, Question, Sample
from benchmarks.load import Aim, Load, load
from benchmarks.places import STORES, place_for
from benchmarks.report.results import BEST_PEER
from benchmarks.rivals.bare import BARE, BARE_NOTE
from benchmarks.rivals.peers import session_in
from benchmarks.rivals.servers import BARE_ON_GRANIAN, ON_GRANIAN, SERVERS, Server
from tests.serving import ParsedResponse, Program, get, running, until

ROOT = Path(__file__).parents[2]
TURN, QUICK_TURN = 0.15, 0.05
"""Seconds. wrk takes slightly longer, see load.py."""
QUICK = (BARE, "gaman", ON_GRANIAN, "FastAPI", "Litestar", "Fastify", "Hono on Bun")


class Setting(NamedTuple):
    """A case: a request for *path*, to servers of *kind*, over a number of connections.

    With *workers*, servers that can run several processes take part with each of these numbers of them.
    """

    name: str
    kind: str
    path: str
    connections: int
    goals: tuple[Goal, ...] = ()
    workers: tuple[int, ...] = ()

    def invites(self, server: Server) -> bool:
        return self.kind in server.kinds and self.path not in server.passes and (server.has_workers or not self.workers)


def at_least(limit: float, against: str = BARE, of: str = "gaman") -> Goal:
    return Goal(sense="at least", limit=limit, against=against, of=of)


def on_granian(limit: float) -> Goal:
    return at_least(limit, BARE_ON_GRANIAN, ON_GRANIAN)


LIKE_BARE = at_least(0.9)
AHEAD = at_least(1.9, BEST_PEER)
# gaman.serve competes with servers in Python and on Node, and gaman on Granian with those on Bun.
AHEAD_IN_COOKIES = (
    at_least(1.9, "BlackSheep"),
    at_least(1, "Fastify"),
    *(at_least(1, peer, ON_GRANIAN) for peer in ("Hono on Bun", "Elysia on Bun")),
)
NO_START = "doesn't start"
SHARED = "cores shared with the load"

SETTINGS = [
    # gaman's advantage over the bare callable on uvicorn should stay as large as it was when these limits were set.
    Setting("JSON", "plain", "/json", 64, (at_least(1.41), on_granian(0.95))),
    Setting("two params, 100 routes", "plain", "/users/42/posts/7", 64, (LIKE_BARE,)),
    Setting("cookies, read", "cookies", "/read", 64, (at_least(1.52), on_granian(1), *AHEAD_IN_COOKIES)),
    Setting("cookies, write", "cookies", "/write", 64, (at_least(1.19), on_granian(0.85), *AHEAD_IN_COOKIES)),
    *(Setting(f"memory, {path[1:]}", "memory", path, 64, (LIKE_BARE, AHEAD)) for path in ("/read", "/write")),
    Setting(f"JSON, {SHARED}", "plain", "/json", 64, workers=(1, 2)),
    Setting(f"cookies, read, {SHARED}", "cookies", "/read", 64, workers=(1, 2)),
    Setting("redis, read, 64 at once", "redis", "/read", 64, (at_least(1.8), AHEAD, at_least(1, "Express"))),
    Setting("redis, write, 64 at once", "redis", "/write", 64, (at_least(2.2), AHEAD, at_least(1, "Express"))),
    Setting("sql, read, 64 at once", "sql", "/read", 64, (LIKE_BARE,)),
    Setting("sql, write, 64 at once", "sql", "/write", 64, (LIKE_BARE, at_least(4, "gaman, a commit a write"))),
    *(
        Setting(f"{kind}, {path[1:]}, 64 at once", kind, path, 64, (LIKE_BARE,))
        for kind in ("file", "mongodb")
        for path in ("/read", "/write")
    ),
    *(
        Setting(f"{kind}, {path[1:]}, one at a time", kind, path, 1, (LIKE_BARE,))
        for kind in STORES
        for path in ("/read", "/write")
    ),
]
SUMMARY = {
    "JSON": "JSON",
    "cookies, read": "read a session in a cookie",
    "cookies, write": "write a session in a cookie",
    "redis, read, 64 at once": "read a session in Redis",
    "redis, write, 64 at once": "write a session in Redis",
}
"""The headings of cases on the summary page."""
QUICK_SETTINGS = ("JSON", "cookies, read", "cookies, write")


class Site:
    """A running server, and the sessions of its clients."""

    def __init__(self, server: Server, setting: Setting, workers: int | None, port: int, turn: float) -> None:
        self.server = server
        self._turn = turn
        self._setting = setting
        self._workers = workers
        self._port = port
        self._aim = Aim(port, setting.path, setting.connections, (), b"")

    def request(self, path: str, *fields: str) -> ParsedResponse:
        """Send one request, and wait until the server listens."""

        def respond() -> ParsedResponse | None:
            try:
                return get(self._port, path, *fields)
            except ConnectionRefusedError:
                return None

        found = until(respond, f"{self.server.name} to listen")
        assert found.status == 200, f"{self.server.name} responds {found.status} to {path}: {found.body!r}"
        return found

    def log_in(self) -> str:
        return self.request("/write").headers["set-cookie"].partition(";")[0]

    async def result(self) -> Any:
        """Return the body of a response, and after a write the body of the read that follows."""
        path, plain = self._setting.path, self._setting.kind == "plain"
        # Concurrent logins take a store less time than successive ones.
        logins = () if plain else (asyncio.to_thread(self.log_in) for _ in range(self._setting.connections))
        cookies = await asyncio.gather(*logins)
        found = self.request(path, *(f"Cookie: {cookie}" for cookie in cookies[:1]))
        self._aim = self._aim._replace(cookies=cookies, body=found.body)
        if self.server.warm_up:
            await self._load(self.server.warm_up)
        bodies = [json.loads(found.body)]
        if path == "/write":
            cookie = found.headers.get("set-cookie", cookies[0]).partition(";")[0]
            bodies.append(json.loads(self.request("/read", f"Cookie: {cookie}").body))
        return bodies

    async def measure(self) -> Sample:
        found = await self._load(self._turn)
        return Sample(found.rate, {"p50, ms": found.p50, "p99, ms": found.p99})

    async def _load(self, seconds: float) -> Load:
        with nullcontext() if self._setting.workers else on_load_cores():
            return await load(self._aim, seconds)

    def contender(self) -> Contender:
        server = self.server
        return Contender(
            name=server.name,
            measure=self.measure,
            result=self.result,
            kind=server.kind,
            at=self._workers,
            version=server.version(),
            session=session_in(self._setting.kind, server.session),
            source=server.source,
        )


Started = Sequence[tuple[Server, int | None, Program]]
"""Servers that have been started, and the numbers of their workers."""


@contextmanager
def running_servers(setting: Setting, plan: Plan) -> Generator[tuple[Started, Sequence[Missing]]]:
    """Start a server for each contender; yield the servers, and those that this machine lacks."""
    with ExitStack() as stack:
        place = stack.enter_context(place_for(setting.kind))
        started: list[tuple[Server, int | None, Program]] = []
        missing: list[Missing] = []
        for server in filter(setting.invites, SERVERS):
            if plan.quick and server.name not in QUICK:
                continue
            if server.kind == "peer" and not plan.invites(server.name):
                continue
            if (reason := server.absence()) is not None:
                missing.append(Missing(server.name, reason))
                continue
            command = ("-m", "benchmarks.rivals.servers", server.name, setting.kind, place)
            for workers in setting.workers or (None,):
                more = () if workers is None else (str(workers),)
                with on_server_core() if workers is None else nullcontext():
                    program = stack.enter_context(running(*command, *more, cwd=ROOT))
                started.append((server, workers, program))
        yield started, missing


def contenders_at(started: Started, setting: Setting, plan: Plan) -> Sequence[Contender | Missing]:
    """Return the contenders at servers that start in parallel, and those that don't start."""
    turn = QUICK_TURN if plan.quick else TURN
    found: list[Contender | Missing] = []
    for server, workers, program in started:
        try:
            found.append(Site(server, setting, workers, program.port, turn).contender())
        except AssertionError as error:
            # The peer may need another version of Node, and the others are measured without it.
            if server.kind != "peer":
                raise
            found.append(Missing(server.name, f"{NO_START}: {str(error).strip().splitlines()[-1]}", workers))
    return found


@asynccontextmanager
async def enter(setting: Setting, plan: Plan) -> AsyncGenerator[Sequence[Contender | Missing]]:
    """Start a server for each contender."""
    with running_servers(setting, plan) as (started, missing):
        yield [*missing, *contenders_at(started, setting, plan)]


def cases(plan: Plan) -> Sequence[Case]:
    settings = [each for each in SETTINGS if each.name in QUICK_SETTINGS or not plan.quick]
    return [
        Case(
            name=each.name,
            enter=partial(enter, each, plan),
            baseline=BARE,
            summary=SUMMARY.get(each.name, ""),
            axis="workers" if each.workers else None,
            unit="requests a second",
            better="higher",
            goals=[goal for goal in each.goals if {goal.of, goal.against} <= {*QUICK, BEST_PEER} or not plan.quick],
            share=1 if plan.quick else sum(map(each.invites, SERVERS)) * max(1, len(each.workers)),
        )
        for each in settings
    ]


QUESTION = Question(
    name="over_http",
    title="How many requests a second does a server handle over HTTP?",
    cases=cases,
    seconds=360,
    quick_seconds=36,
    notes=[
        "Over HTTP, each server is one process, except where workers are counted. gaman runs on its own server, and on Granian, a "
        "server that is written in Rust. Other frameworks in Python run on uvicorn, except Sanic.",
        BARE_NOTE,
        "Over HTTP, 64 visitors send their cookies again and again, and gaman opens each of these cookies once.",
    ],
)
