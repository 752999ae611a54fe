"""The cost of one ASGI call without a server, compared with a bare callable that does the same work."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from benchmarks.asgi import contend, log_in
from benchmarks.harness import Case, Contender, Goal, Missing, Plan, Question, line_of
from benchmarks.report.results import BEST_PEER
from benchmarks.rivals import bare, ours
from benchmarks.rivals.bare import BARE, BARE_NOTE, OTHERS, SECOND_KEY
from benchmarks.rivals.peers import Paths, peers
from gaman_session import _sealing

NEW_COOKIES = "gaman, each cookie new"
UNUSED = "gaman, session unused"
COOKIE_COUNT = 2 * _sealing.CACHE_SIZE
"""So many cookies that gaman has dropped the first one from its cache when it is sent again."""


@asynccontextmanager
async def plain(path: str, others: tuple[Paths, Paths] = ((), ())) -> AsyncGenerator[Sequence[Contender | Missing]]:
    """Request *path* without using a session."""
    baseline, gaman, unused = bare.plain, ours.plain, ours.unused_session
    with_session = unused(*others)
    await with_session.load()
    try:
        yield [
            await contend(baseline, path, name=BARE, kind="baseline", source=line_of(baseline)),
            await contend(gaman(*others), path, name="gaman", kind="ours", source=line_of(gaman)),
            await contend(with_session, path, name=UNUSED, kind="ours", source=line_of(unused)),
            *await peers(path, lambda peer: peer.plain(*others)),
        ]
    finally:
        await with_session.shutdown()


@asynccontextmanager
async def in_session(kind: str, path: str) -> AsyncGenerator[Sequence[Contender | Missing]]:
    """Request *path* with the cookie of a session."""
    if kind == "cookies":
        read, write, what = bare.read_cookie, bare.write_cookie, "encrypts"
    else:
        memory, what = bare.BareMemory(), "in memory"
        read, write = memory.read, memory.write
    baseline, gaman = read if path == "/read" else write, ours.with_session
    app = gaman({"type": kind})
    await app.load()
    mine: dict[str, Any] = {"kind": "ours", "source": line_of(gaman), "session": what}
    try:
        bare_cookies, cookies = [[await log_in(each, "/write") for _ in range(COOKIE_COUNT)] for each in (write, app)]
        yield [
            await contend(baseline, path, *bare_cookies, name=BARE, kind="baseline", source=line_of(baseline), session=what),
            await contend(app, path, cookies[0], name="gaman", **mine),
            await contend(app, path, *cookies, name=NEW_COOKIES, **mine),
            *await peers(path, lambda peer: peer.with_session(kind), "/write", kind=kind),
        ]
    finally:
        await app.shutdown()


@asynccontextmanager
async def new_visitor() -> AsyncGenerator[Sequence[Contender | Missing]]:
    """Let requests without a cookie begin sessions in cookies, and set two keys."""
    path, baseline, gaman = "/fill", bare.begin_cookie, ours.with_session
    app = gaman({"type": "cookies"}, SECOND_KEY)
    await app.load()
    try:
        yield [
            await contend(baseline, path, name=BARE, kind="baseline", source=line_of(baseline), session="encrypts"),
            await contend(app, path, name="gaman", kind="ours", source=line_of(gaman), session="encrypts"),
            *await peers(path, lambda peer: peer.with_session("cookies", SECOND_KEY), kind="cookies"),
        ]
    finally:
        await app.shutdown()


def at_most(limit: float, of: str = "gaman", against: str = BARE) -> Goal:
    return Goal(sense="at most", limit=limit, against=against, of=of)


def faster(limit: float) -> Goal:
    return Goal(sense="at least", limit=limit, against=BEST_PEER)


def cases(plan: Plan) -> list[Case]:
    return [
        Case(
            name="JSON",
            summary="JSON",
            baseline=BARE,
            enter=lambda: plain("/json"),
            goals=[at_most(1.8, UNUSED), at_most(1.05, UNUSED, "gaman"), faster(2.5)],
            share=2,
        ),
        Case(
            name="two params, among 100 routes",
            summary="two params, 100 routes",
            baseline=BARE,
            enter=lambda: plain("/users/42/posts/7", OTHERS),
            goals=[at_most(2.3, UNUSED)],
        ),
        Case(
            name="read a session in a cookie",
            summary="read a session in a cookie",
            baseline=BARE,
            enter=lambda: in_session("cookies", "/read"),
            goals=[at_most(1.4, NEW_COOKIES), faster(5)],
        ),
        Case(
            name="write a session in a cookie",
            summary="write a session in a cookie",
            baseline=BARE,
            enter=lambda: in_session("cookies", "/write"),
            goals=[at_most(1.55, NEW_COOKIES), faster(5)],
        ),
        Case(
            name="begin a session in a cookie, two keys",
            summary="begin a session in a cookie",
            baseline=BARE,
            enter=new_visitor,
            goals=[at_most(1.8)],
        ),
        Case(name="read a session in memory", baseline=BARE, enter=lambda: in_session("memory", "/read"), goals=[at_most(1.8)]),
        Case(name="write a session in memory", baseline=BARE, enter=lambda: in_session("memory", "/write"), goals=[at_most(2.4)]),
    ]


QUESTION = Question(
    name="in_process",
    title="What does a call cost, without a server?",
    cases=cases,
    seconds=90,
    quick_seconds=9,
    notes=[
        BARE_NOTE,
        "gaman remembers the cookies that it opened last. “gaman”, like the other frameworks, gets the same cookie again. “Each "
        f"cookie new”: {COOKIE_COUNT:,} cookies in turn, so gaman opens every one, as it does at a visitor's first request.",
        "“Session unused”: the App has session(), but the handler doesn't use it.",
    ],
)
