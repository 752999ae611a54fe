"""The cost of one ASGI call without a server, compared with a bare callable that does the same work."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from benchmarks.asgi import contend, log_in
from benchmarks.harness import Case, Contender, Goal, Missing, Plan, Question, line_of
from benchmarks.report.results import BEST_PEER
from benchmarks.rivals import bare, ours
from benchmarks.rivals.bare import BARE, OTHERS
from benchmarks.rivals.peers import Paths, peers
from gaman_session import _sealing

NEW_COOKIES = "gaman, each cookie new"
COOKIE_COUNT = 2 * _sealing.CACHE_SIZE
"""So many cookies that gaman has dropped the first one from its cache when it is sent again."""


@asynccontextmanager
async def plain(path: str, others: tuple[Paths, Paths] = ((), ())) -> AsyncGenerator[Sequence[Contender | Missing]]:
    baseline, gaman = bare.plain, ours.plain
    yield [
        await contend(baseline, path, name=BARE, kind="baseline", source=line_of(baseline)),
        await contend(gaman(*others), path, name="gaman", kind="ours", source=line_of(gaman)),
        *await peers(path, lambda peer: peer.plain(*others)),
    ]


@asynccontextmanager
async def in_session(kind: str, path: str) -> AsyncGenerator[Sequence[Contender | Missing]]:
    if kind == "cookies":
        read, write = bare.read_cookie, bare.write_cookie
    else:
        memory = bare.BareMemory()
        read, write = memory.read, memory.write
    baseline, gaman = read if path == "/read" else write, ours.with_session
    app = gaman({"type": kind})
    await app.load()
    try:
        bare_cookies, cookies = [[await log_in(each, "/write") for _ in range(COOKIE_COUNT)] for each in (write, app)]
        yield [
            await contend(baseline, path, *bare_cookies, name=BARE, kind="baseline", source=line_of(baseline)),
            await contend(app, path, cookies[0], name="gaman", kind="ours", source=line_of(gaman)),
            await contend(app, path, *cookies, name=NEW_COOKIES, kind="ours", source=line_of(gaman)),
            *await peers(path, lambda peer: peer.session(kind), "/write"),
        ]
    finally:
        await app.shutdown()


def at_most(limit: float, of: str = "gaman") -> Goal:
    return Goal(sense="at most", limit=limit, against=BARE, of=of)


def faster(limit: float) -> Goal:
    return Goal(sense="at least", limit=limit, against=BEST_PEER)


def cases(plan: Plan) -> list[Case]:
    return [
        Case(name="JSON", baseline=BARE, enter=lambda: plain("/json"), goals=[at_most(1.8), faster(2.5)], share=2),
        Case(
            name="two params, among 100 routes",
            baseline=BARE,
            enter=lambda: plain("/users/42/posts/7", OTHERS),
            goals=[at_most(2.4)],
        ),
        Case(
            name="read a session in a cookie",
            baseline=BARE,
            enter=lambda: in_session("cookies", "/read"),
            goals=[at_most(1.45, NEW_COOKIES), faster(5)],
        ),
        Case(
            name="write a session in a cookie",
            baseline=BARE,
            enter=lambda: in_session("cookies", "/write"),
            goals=[at_most(1.7, NEW_COOKIES), faster(5)],
        ),
        Case(name="read a session in memory", baseline=BARE, enter=lambda: in_session("memory", "/read")),
        Case(name="write a session in memory", baseline=BARE, enter=lambda: in_session("memory", "/write")),
    ]


QUESTION = Question(
    name="in_process",
    title="What does a call cost, without a server?",
    cases=cases,
    seconds=90,
    quick_seconds=9,
)
