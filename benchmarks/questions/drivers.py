"""Requests per second with a session in each driver's store, called in this process: the only socket is the store's.

gaman and the bare callable serve whole requests. The peers of rivals/peer_stores.py only store, without their frameworks.
Concurrent clients have a session each, and send the next request when the response has arrived.
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
from benchmarks.rivals.bare import BARE
from benchmarks.rivals.bare_stores import STORES
from benchmarks.rivals.called import HANDLERS, CalledBare, CalledGaman
from benchmarks.rivals.peer_stores import PEERS, Service

AT_ONCE: Final = (1, 8, 64)
QUICK_AT_ONCE: Final = (1, 64)
TURN: Final = 0.03
"""Seconds."""


class Clients:
    """Concurrent clients of one service, each with its own session."""

    def __init__(self, service: Service, operation: str, at_once: int) -> None:
        self._service = service
        self._operation = operation
        self._at_once = at_once
        self._keys: list[Any] = []

    async def result(self) -> Any:
        """Return the responses of three requests in a session, the user that it then has, and the user under its first key."""
        self._keys = [(await self._serve("write", None))[0] for _ in range(self._at_once)]
        key, first, users = self._keys[0], self._keys[0], list[Any]()
        for _ in range(3):
            key, user = await self._serve(self._operation, key)
            # The response to a write has no user.
            users.append(self._operation == "write" or user)
        self._keys[0] = key
        return users, (await self._serve("load", key))[1], (await self._serve("load", first))[1]

    async def measure(self) -> float:
        """Return the requests that are served per second."""
        began = time.perf_counter()
        until = began + TURN
        if self._service.in_threads:
            with ThreadPoolExecutor(self._at_once) as threads:
                counts = [*threads.map(partial(self._request_in_thread, until), range(self._at_once))]
        else:
            counts = await asyncio.gather(*(self._request(until, i) for i in range(self._at_once)))
        return sum(counts) / (time.perf_counter() - began)

    async def _serve(self, operation: str, key: Any) -> tuple[Any, Any]:
        served = self._service.serve(operation, key)
        key, response = served if self._service.in_threads else await served
        return key, self._service.read(response)

    async def _request(self, until: float, i: int) -> int:
        count = 0
        while not count or time.perf_counter() < until:
            self._keys[i], _ = await self._service.serve(self._operation, self._keys[i])
            count += 1
        return count

    def _request_in_thread(self, until: float, i: int) -> int:
        count = 0
        while not count or time.perf_counter() < until:
            self._keys[i], _ = self._service.serve(self._operation, self._keys[i])
            count += 1
        return count


@asynccontextmanager
async def enter(kind: str, operation: str, plan: Plan) -> AsyncGenerator[Sequence[Contender | Missing]]:
    """Open all services that use a store of *kind*."""
    found: list[Contender | Missing] = []
    with place_for(kind) as place:
        async with AsyncExitStack() as stack:

            async def add(name: str, service: Service, as_what: Kind, version: str, source: str) -> None:
                await service.open()
                stack.push_async_callback(service.close)
                # The memory store never waits, so its requests never overlap.
                for n in (1,) if kind == "memory" else QUICK_AT_ONCE if plan.quick else AT_ONCE:
                    clients = Clients(service, operation, n)
                    found.append(
                        Contender(
                            name=name,
                            measure=clients.measure,
                            result=clients.result,
                            kind=as_what,
                            at=n,
                            version=version,
                            source=source,
                        )
                    )

            await add(BARE, CalledBare(kind, place), "baseline", "", line_of(STORES[kind].__init__))
            await add("gaman", CalledGaman(kind, place), "ours", version("gaman"), line_of(HANDLERS[operation]))
            for peer, kinds in PEERS.items():
                if kind not in kinds or not plan.invites(peer.name):
                    continue
                if operation in peer.lacks:
                    found.append(Missing(peer.name, peer.lacks[operation]))
                    continue
                try:
                    service = peer(kind, place)
                except ModuleNotFoundError as error:
                    found.append(Missing(peer.name, f"not installed: {error.name}"))
                    continue
                await add(peer.name, service, "peer", version(peer.package), line_of(peer.serve))
            yield found


def share(kind: str, operation: str) -> float:
    """Return the share of a case: one per turn in a round."""
    present = 2 + sum(kind in kinds and operation not in peer.lacks for peer, kinds in PEERS.items())
    # Each of Flask-Session's threads waits for SQLite's lock.
    return {"memory": present / 3, "sql": present + 4}.get(kind, present)


def cases(plan: Plan) -> Sequence[Case]:
    kinds, operations = (("memory", "redis"), ("write",)) if plan.quick else (("memory", *places.STORES), tuple(HANDLERS))
    return [
        Case(
            name=f"{kind}, {operation}",
            enter=partial(enter, kind, operation, plan),
            baseline=BARE,
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
