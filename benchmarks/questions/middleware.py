"""The cost that sessions add to a call of Starlette or FastAPI without a server, compared with Starlette's own middleware."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib.metadata import version
from itertools import cycle
from typing import Any, Final

from benchmarks.asgi import fetch, log_in, time_calls
from benchmarks.harness import Absent, Case, Contender, Goal, Measure, Missing, Plan, Question, line_of
from benchmarks.questions.in_process import COOKIE_COUNT
from benchmarks.report.results import Kind
from benchmarks.rivals import middleware
from benchmarks.rivals.bare import ASGI
from benchmarks.rivals.middleware import BARE, COOKIE, COOKIE_DICT, DEPENDS, FRAMEWORKS, MEMORY, MEMORY_DICT, OWN, RIVALS, Rival

NEW_COOKIES: Final = f"{COOKIE}, each new"
LIMIT: Final = "0.3 µs"
"""The goal of a request that doesn't use its session, as a contender: the others are divided by it."""
CALLS: Final = 100
"""Calls of each application in a turn. They take a few milliseconds, so that a disturbance affects both."""


def added(app: ASGI, without: ASGI, path: str, cookies: Iterator[bytes | None]) -> Measure:
    """Return a measure of the CPU that a call of *app* takes beyond a call of *without*, in microseconds."""
    chance = random.Random(0)

    async def measure() -> float:
        seconds = 0.0
        for sign, each in chance.sample([(1, app), (-1, without)], 2):
            seconds += sign * await time_calls(each, path, cookies, CALLS)
        return seconds / CALLS * 1e6

    return measure


async def respond(app: ASGI, path: str, cookies: Iterator[bytes | None]) -> tuple[int, Any]:
    """Return the status and the data of a response."""
    status, _, body = await fetch(app, path, next(cookies))
    return status, json.loads(body)


async def contend(rival: Rival, app: ASGI, without: ASGI, path: str, kind: Kind, count: int = 1) -> Contender:
    """Return a contender that gets requests for *path* with the cookies of *count* sessions, in turn."""
    cookies = cycle([await log_in(app, "/login") if rival.session else None for _ in range(count)])

    return Contender(
        name=rival.name,
        measure=added(app, without, path, cookies),
        result=partial(respond, app, path, cookies),
        kind=kind,
        version=version(rival.package) if rival.package else None,
        session=rival.session,
        source=line_of(getattr(rival.enter, "func", rival.enter)),
    )


@asynccontextmanager
async def in_framework(name: str, path: str) -> AsyncGenerator[Sequence[Contender | Missing]]:
    """Request *path* of an application of the framework *name*, with the cookie of a session."""
    framework, found = FRAMEWORKS[name], list[Contender | Missing]()
    async with AsyncExitStack() as stack:
        try:
            without = await stack.enter_async_context(middleware.without(framework))
        except ModuleNotFoundError as error:
            raise Absent(f"not installed: {error.name}") from error
        for rival in _rivals(name, path):
            try:
                app = await stack.enter_async_context(rival.enter(framework))
            except ModuleNotFoundError as error:
                found.append(Missing(rival.name, f"not installed: {error.name}"))
                continue
            kind: Kind = "baseline" if rival.name == _baseline(path) else "ours" if rival.package == "gaman" else "peer"
            found.append(await contend(rival, app, without, path, kind))
            if rival.name == COOKIE and path != "/unused":
                found.append(await contend(rival._replace(name=NEW_COOKIES), app, without, path, kind, COOKIE_COUNT))
        if path == "/unused":
            result = partial(respond, without, path, cycle([None]))
            found.append(Contender(name=LIMIT, measure=lambda: 0.3, result=result, kind="baseline"))
        yield found


def _baseline(path: str) -> str:
    return LIMIT if path == "/unused" else OWN


def _rivals(framework: str, path: str) -> Sequence[Rival]:
    skipped = {BARE} if path != "/unused" else set[str]()
    return [each for each in RIVALS if each.name not in skipped and (each.name != DEPENDS or (framework == "FastAPI" and skipped))]


def cases(plan: Plan) -> Sequence[Case]:
    of_framework = partial(Case, unit="µs of CPU that a session adds to a call")
    unused = [Goal(sense="at most", limit=1, of=each, against=LIMIT) for each in (COOKIE, MEMORY)]
    used = [Goal(sense="at most", limit=0.8, of=each, against=OWN) for each in (COOKIE, COOKIE_DICT, MEMORY, MEMORY_DICT)]
    return [
        of_framework(
            name=f"{name}, {what}",
            baseline=_baseline(path),
            enter=partial(in_framework, name, path),
            # A session that FastAPI passes to a handler costs what Depends() costs as well.
            goals=[] if name == "FastAPI" else unused if path == "/unused" else used,
        )
        for name in (["Starlette"] if plan.quick else FRAMEWORKS)
        for path, what in (("/unused", "session unused"), ("/read", "read a session"), ("/write", "write a session"))
    ]


QUESTION = Question(
    name="middleware",
    title="What do sessions add to a call of Starlette or FastAPI?",
    cases=cases,
    seconds=60,
    quick_seconds=6,
    notes=[
        "A session's cost is the time of a call minus that of the same application without sessions, measured in the same turn.",
        "Bare middleware: passes the messages of the response on, and does nothing else.",
        "In FastAPI, gaman's handlers get the session by Depends(get_session), or with as_dict from the request.",
        f"“Each new”: {COOKIE_COUNT:,} cookies in turn, so gaman opens every one, as it does at a visitor's first request.",
    ],
)
