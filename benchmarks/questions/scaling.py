"""The growth of a call's cost with the number of routes, the keys in a session, and the length of a value."""

from __future__ import annotations

import sys
from collections.abc import AsyncGenerator, Awaitable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial

from benchmarks.asgi import contend, log_in
from benchmarks.harness import Case, Contender, Goal, Missing, Plan, Question, line_of
from benchmarks.rivals import bare, ours
from benchmarks.rivals.bare import ASGI, BARE, BareMemory
from benchmarks.rivals.peers import Peer, peers

MAX_ROUTES = {"Falcon": 2000, "Litestar": 2000}
"""The cost of adding a route grows with their number: ten thousand take these peers one or two minutes."""


def build_plain(before: Sequence[str], after: Sequence[str], peer: Peer) -> Awaitable[ASGI] | str:
    if len(before) + len(after) >= MAX_ROUTES.get(peer.name, sys.maxsize):
        return "takes minutes to set up so many routes"
    return peer.plain(before, after)


def build_session(extra: Mapping[str, object], peer: Peer) -> Awaitable[ASGI] | str:
    return peer.with_session("memory", extra)


@asynccontextmanager
async def by_routes(path: str, other: str, counts: Sequence[int]) -> AsyncGenerator[Sequence[Contender | Missing]]:
    """Request *path* among other routes in each of *counts*, half of them before it."""
    baseline, gaman = bare.plain, ours.plain
    entered: list[Contender | Missing] = [await contend(baseline, path, name=BARE, kind="baseline", source=line_of(baseline))]
    for count in counts:
        others = [other.format(i) for i in range(count)]
        before, after = others[: count // 2], others[count // 2 :]

        entered.append(await contend(gaman(before, after), path, name="gaman", kind="ours", source=line_of(gaman), at=count))
        entered += await peers(path, partial(build_plain, before, after), at=count)
    yield entered


@asynccontextmanager
async def by_contents(path: str, contents: Mapping[int, Mapping[str, object]]) -> AsyncGenerator[Sequence[Contender | Missing]]:
    """Request *path* with sessions in memory that have the user and *contents*."""
    entered: list[Contender | Missing] = []
    async with AsyncExitStack() as stack:
        for at, extra in contents.items():
            memory, gaman = BareMemory(extra), ours.with_session
            baseline: ASGI = getattr(memory, path[1:])
            app = gaman({"type": "memory"}, extra)
            await app.load()
            stack.push_async_callback(app.shutdown)
            entered += [
                await contend(
                    baseline, path, await log_in(memory.fill, "/fill"), name=BARE, kind="baseline", source=line_of(baseline), at=at
                ),
                await contend(app, path, await log_in(app, "/fill"), name="gaman", kind="ours", source=line_of(gaman), at=at),
                *await peers(path, partial(build_session, extra), "/fill", at, "memory"),
            ]
        yield entered


def cases(plan: Plan) -> list[Case]:
    routes = (10, 1000) if plan.quick else (10, 100, 1000, 10_000)
    flat = Goal(sense="at most", limit=1.1, against="gaman", at=routes[-1], against_at=routes[0])
    keys = {count: {f"key{i}": i for i in range(count - 1)} for count in ((1, 100, 1000) if plan.quick else (1, 10, 100, 1000))}
    lengths = (10, 1000, 100_000) if plan.quick else (10, 100, 1000, 10_000, 100_000)
    values = {length: {"value": "x" * length} for length in lengths}
    with_params = Case(
        name="routes with a param each",
        baseline=BARE,
        axis="routes",
        enter=lambda: by_routes("/users/42/posts/7", "/other/{}/{{name}}", routes),
        share=4,
    )
    without_params = Case(
        name="routes with no params",
        baseline=BARE,
        axis="routes",
        enter=lambda: by_routes("/json", "/other/{}", routes),
        goals=[flat],
        share=4,
    )
    of_keys, of_values = "keys in the session", "bytes of the value"
    read = [
        Case(name="read one of many keys", baseline=BARE, axis=of_keys, enter=lambda: by_contents("/read", keys)),
        Case(name="read a long value", baseline=BARE, axis=of_values, enter=lambda: by_contents("/size", values)),
    ]
    written = [
        Case(name="write one of many keys", baseline=BARE, axis=of_keys, enter=lambda: by_contents("/write", keys)),
        Case(name="write a long value", baseline=BARE, axis=of_values, enter=lambda: by_contents("/fill", values)),
    ]
    return [without_params, *read] if plan.quick else [without_params, with_params, *read, *written]


QUESTION = Question(
    name="scaling",
    title="How does the cost of a call grow?",
    cases=cases,
    seconds=90,
    quick_seconds=6,
)
