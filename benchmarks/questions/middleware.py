"""The cost that a session middleware adds to a call of Starlette or FastAPI, without a server."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from importlib.metadata import version
from itertools import cycle
from typing import Any, Final

from benchmarks.asgi import fetch, log_in, time_calls
from benchmarks.harness import Case, Contender, Goal, Measure, Missing, Plan, Question, line_of
from benchmarks.questions.in_process import COOKIE_COUNT
from benchmarks.report.results import Kind
from benchmarks.rivals import middleware
from benchmarks.rivals.bare import ASGI
from benchmarks.rivals.middleware import COOKIE, COOKIE_DICT, MEMORY, MEMORY_DICT, OWN, RIVALS, Rival

FRAMEWORKS: Final[dict[str, Callable[[middleware.Access], Any]]] = {
    "Starlette": middleware.starlette,
    "FastAPI": middleware.fastapi,
}
NEW_COOKIES: Final = "gaman, each cookie new"
LIMIT: Final = "0.3 µs"
"""The goal of a request that doesn't touch its session, as a contender: the others are divided by it."""
CALLS: Final = 40
"""Calls of each application in a turn. They take a few milliseconds, so that a disturbance affects both."""


def added(app: ASGI, without: ASGI, path: str, cookies: Iterator[bytes]) -> Measure:
    """Return a measure of the microseconds of CPU that a call of *app* takes more than one of *without*."""
    chance = random.Random(path)
    same = cycle([next(cookies)])

    async def measure() -> float:
        seconds = 0.0
        for sign in chance.sample((1, -1), 2):
            seconds += sign * await time_calls(app if sign > 0 else without, path, cookies if sign > 0 else same, CALLS)
        return seconds / CALLS * 1e6

    return measure


async def contend(rival: Rival, app: ASGI, without: ASGI, path: str, name: str = "", count: int = 1) -> Contender:
    """Return a contender that gets requests for *path* with the cookies of *count* sessions, in turn."""
    cookies = cycle([await log_in(app, "/write") for _ in range(count)])

    async def result() -> tuple[int, Any]:
        status, _, body = await fetch(app, path, next(cookies))
        return status, json.loads(body)

    kind: Kind = "ours" if rival.package == "gaman" else "peer"
    return Contender(
        name=name or rival.name,
        measure=added(app, without, path, cookies),
        result=result,
        kind="baseline" if rival.name == OWN and path != "/unused" else kind,
        version=version(rival.package),
        session=rival.session,
        source=line_of(getattr(rival.enter, "func", rival.enter)),
    )


@asynccontextmanager
async def in_framework(name: str, path: str) -> AsyncGenerator[Sequence[Contender | Missing]]:
    """Request *path* of an application of the framework *name*, with the cookie of a session."""
    framework = FRAMEWORKS[name]
    found: list[Contender | Missing] = []
    if path == "/unused":
        found.append(Contender(name=LIMIT, measure=lambda: 0.3, kind="baseline"))
    async with AsyncExitStack() as stack:
        without = await stack.enter_async_context(middleware.without(framework))
        for rival in RIVALS:
            try:
                app = await stack.enter_async_context(rival.enter(framework))
            except ModuleNotFoundError as error:
                found.append(Missing(rival.name, f"not installed: {error.name}"))
                continue
            found.append(await contend(rival, app, without, path))
            if rival.name == COOKIE and path != "/unused":
                found.append(await contend(rival, app, without, path, NEW_COOKIES, COOKIE_COUNT))
        yield found


def cases(plan: Plan) -> Sequence[Case]:
    found: list[Case] = []
    for name in FRAMEWORKS:
        for path in ("/unused", "/read", "/write"):
            against, limit, of = (
                (LIMIT, 1.0, (COOKIE, MEMORY)) if path == "/unused" else (OWN, 0.8, (COOKIE, COOKIE_DICT, MEMORY, MEMORY_DICT))
            )
            found.append(
                Case(
                    name=f"{name}, {path}",
                    unit="µs of CPU that a session adds to a call",
                    baseline=against,
                    enter=lambda name=name, path=path: in_framework(name, path),
                    goals=[Goal(sense="at most", limit=limit, of=each, against=against) for each in of],
                )
            )
    return found


QUESTION = Question(
    name="middleware",
    title="What does a session add to a call of Starlette or FastAPI?",
    cases=cases,
    seconds=120,
    quick_seconds=12,
)
