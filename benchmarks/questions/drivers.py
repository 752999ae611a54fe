"""How many requests a second get their session from each driver's store, asked in this process: no socket but the store's own.

gaman and the floor, in stores.py, answer whole requests; the peers of storing.py only store, without their frameworks. Those who
ask at once have a session each, and ask again as soon as the answer is there.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from importlib.metadata import version
from typing import Any, Final

from benchmarks import places
from benchmarks.harness import Case, Contender, Missing, Plan, Question, line_of
from benchmarks.places import place_for
from benchmarks.report.results import Kind
from benchmarks.rivals.bare import FLOOR
from benchmarks.rivals.bare_stores import STORES
from benchmarks.rivals.called import HANDLERS, CalledFloor, CalledGaman
from benchmarks.rivals.peer_stores import PEERS, Way

AT_ONCE: Final = (1, 8, 64)
QUICK_AT_ONCE: Final = (1, 64)
TURN: Final = 0.03
"""Seconds."""


class Crowd:
    """Those who ask at once in one way, each in a session of its own."""

    def __init__(self, way: Way, operation: str, at_once: int) -> None:
        self._way = way
        self._operation = operation
        self._at_once = at_once
        self._keys: list[Any] = []

    async def answer(self) -> Any:
        """Return what three requests in a session answer, what is in it then, and what is there for its first key."""
        self._keys = [(await self._serve("write", None))[0] for _ in range(self._at_once)]
        key, first, answers = self._keys[0], self._keys[0], list[Any]()
        for _ in range(3):
            key, user = await self._serve(self._operation, key)
            # An answer to a write has no user in it.
            answers.append(self._operation == "write" or user)
        self._keys[0] = key
        return answers, (await self._serve("load", key))[1], (await self._serve("load", first))[1]

    async def measure(self) -> float:
        """Return how many requests a second are served."""
        began = time.perf_counter()
        until = began + TURN
        if self._way.in_threads:
            with ThreadPoolExecutor(self._at_once) as threads:
                counts = [*threads.map(partial(self._ask_in_thread, until), range(self._at_once))]
        else:
            counts = await asyncio.gather(*(self._ask(until, i) for i in range(self._at_once)))
        return sum(counts) / (time.perf_counter() - began)

    async def _serve(self, operation: str, key: Any) -> tuple[Any, Any]:
        served = self._way.serve(operation, key)
        key, answer = served if self._way.in_threads else await served
        return key, self._way.read(answer)

    async def _ask(self, until: float, i: int) -> int:
        count = 0
        while not count or time.perf_counter() < until:
            self._keys[i], _ = await self._way.serve(self._operation, self._keys[i])
            count += 1
        return count

    def _ask_in_thread(self, until: float, i: int) -> int:
        count = 0
        while not count or time.perf_counter() < until:
            self._keys[i], _ = self._way.serve(self._operation, self._keys[i])
            count += 1
        return count


@asynccontextmanager
async def enter(kind: str, operation: str, plan: Plan) -> AsyncGenerator[Sequence[Contender | Missing]]:
    """Open all ways to use the store of that kind."""
    found: list[Contender | Missing] = []
    with place_for(kind) as place:
        async with AsyncExitStack() as stack:

            async def add(name: str, way: Way, as_what: Kind, version: str, source: str) -> None:
                await way.open()
                stack.push_async_callback(way.close)
                # In memory nothing waits, so that nobody comes meanwhile.
                for n in (1,) if kind == "memory" else QUICK_AT_ONCE if plan.quick else AT_ONCE:
                    crowd = Crowd(way, operation, n)
                    found.append(
                        Contender(
                            name=name,
                            measure=crowd.measure,
                            answer=crowd.answer,
                            kind=as_what,
                            at=n,
                            version=version,
                            source=source,
                        )
                    )

            await add(FLOOR, CalledFloor(kind, place), "floor", "", line_of(STORES[kind].__init__))
            await add("gaman", CalledGaman(kind, place), "ours", version("gaman"), line_of(HANDLERS[operation]))
            for peer, kinds in PEERS.items():
                if kind not in kinds or not plan.invites(peer.name):
                    continue
                if operation in peer.lacks:
                    found.append(Missing(peer.name, peer.lacks[operation]))
                    continue
                try:
                    way = peer(kind, place)
                except ModuleNotFoundError as error:
                    found.append(Missing(peer.name, f"not installed: {error.name}"))
                    continue
                await add(peer.name, way, "peer", version(peer.package), line_of(peer.serve))
            yield found


def share(kind: str, operation: str) -> float:
    """Return what part of the time a case needs: as much as it has turns in a round."""
    present = 2 + sum(kind in kinds and operation not in peer.lacks for peer, kinds in PEERS.items())
    # Flask-Session's threads wait for SQLite's lock, each until it has had it.
    return {"memory": present / 3, "sql": present + 4}.get(kind, present)


def cases(plan: Plan) -> Sequence[Case]:
    kinds, operations = (("memory", "redis"), ("write",)) if plan.quick else (("memory", *places.STORES), tuple(HANDLERS))
    return [
        Case(
            name=f"{kind}, {operation}",
            enter=partial(enter, kind, operation, plan),
            floor=FLOOR,
            unit="requests a second",
            better="higher",
            axis="requests at once",
            share=share(kind, operation),
        )
        for kind in kinds
        for operation in operations
    ]


QUESTION = Question(
    name="drivers", title="How many requests a second get their session from each store?", cases=cases, seconds=90, quick_seconds=6
)
