"""What a call costs, without a server: scope, receive and send ready, against a bare callable that does the same work."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager

from benchmarks import contenders
from benchmarks.asgi import contend, log_in, peers
from benchmarks.harness import BEST_PEER, Case, Contender, Goal, Missing, Plan, Question, line_of
from benchmarks.peers import Paths
from gaman_session import _sealing

FLOOR = "bare callable"
STRANGERS = "gaman, each cookie new"
MANY = 2 * _sealing._CACHE_SIZE
"""So many cookies that when the first one comes again, gaman has forgotten it."""
OTHERS: tuple[Paths, Paths] = [f"/other/{i}/{{name}}" for i in range(50)], [f"/other/{i}/{{name}}" for i in range(50, 100)]


@asynccontextmanager
async def plain(path: str, others: tuple[Paths, Paths] = ((), ())) -> AsyncGenerator[Sequence[Contender | Missing]]:
    floor, gaman = contenders.floor_plain, contenders.gaman_plain
    yield [
        await contend(floor, path, name=FLOOR, kind="floor", source=line_of(floor)),
        await contend(gaman(*others), path, name="gaman", kind="ours", source=line_of(gaman)),
        *await peers(path, lambda peer: peer.plain(*others)),
    ]


@asynccontextmanager
async def in_session(kind: str, path: str) -> AsyncGenerator[Sequence[Contender | Missing]]:
    if kind == "cookies":
        read, write = contenders.floor_cookie_read, contenders.floor_cookie_write
    else:
        memory = contenders.FloorMemory()
        read, write = memory.read, memory.write
    floor, gaman = read if path == "/read" else write, contenders.gaman_session
    app = gaman({"type": kind})
    await app.load()
    try:
        theirs, ours = [[await log_in(each, "/write") for _ in range(MANY)] for each in (write, app)]
        yield [
            await contend(floor, path, *theirs, name=FLOOR, kind="floor", source=line_of(floor)),
            await contend(app, path, ours[0], name="gaman", kind="ours", source=line_of(gaman)),
            await contend(app, path, *ours, name=STRANGERS, kind="ours", source=line_of(gaman)),
            *await peers(path, lambda peer: peer.session(kind), "/write"),
        ]
    finally:
        await app.shutdown()


def at_most(limit: float, of: str = "gaman") -> Goal:
    return Goal(sense="at most", limit=limit, against=FLOOR, of=of)


def faster(limit: float) -> Goal:
    return Goal(sense="at least", limit=limit, against=BEST_PEER)


def cases(plan: Plan) -> list[Case]:
    return [
        Case(name="JSON", floor=FLOOR, enter=lambda: plain("/json"), goals=[at_most(1.8), faster(2.5)], share=2),
        Case(
            name="two params, among 100 routes",
            floor=FLOOR,
            enter=lambda: plain("/users/42/posts/7", OTHERS),
            goals=[at_most(2.4)],
        ),
        Case(
            name="read a session in a cookie",
            floor=FLOOR,
            enter=lambda: in_session("cookies", "/read"),
            goals=[at_most(1.45, STRANGERS), faster(5)],
        ),
        Case(
            name="write a session in a cookie",
            floor=FLOOR,
            enter=lambda: in_session("cookies", "/write"),
            goals=[at_most(1.7, STRANGERS), faster(5)],
        ),
        Case(name="read a session in memory", floor=FLOOR, enter=lambda: in_session("memory", "/read")),
        Case(name="write a session in memory", floor=FLOOR, enter=lambda: in_session("memory", "/write")),
    ]


QUESTION = Question(
    name="in_process",
    title="What does a call cost, without a server?",
    cases=cases,
    seconds=90,
    quick_seconds=9,
)
