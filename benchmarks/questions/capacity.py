"""The CPU that a request takes, in the application and in its store's server, while 64 clients send requests."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any, Final

from benchmarks.asgi import fetch, log_in
from benchmarks.harness import Case, Contender, Missing, Plan, Question, Sample
from benchmarks.places import make_driver, place_for
from benchmarks.questions.round_trips import Site
from benchmarks.rivals.bare import SECRET
from gaman.session import session

STORES: Final = ("cookies", "memory", "sql", "file", "redis", "redis, compact", "redis cluster", "mongodb")
CLIENTS: Final = 64
TURN: Final = 10
"""Requests of each client in a turn."""


async def servers_of(kind: str, driver: Any) -> list[int]:
    """Return the processes of the store's servers, which are on this machine; none for a store without a server."""
    if kind == "mongodb":
        return [int((await driver._client.admin.command("serverStatus"))["pid"])]
    if not kind.startswith("redis"):
        return []
    masters = await driver._calls.masters()
    return [int((await driver._calls.ask(master, "INFO", "server"))["process_id"]) for master in masters]


def cpu_of(processes: Sequence[int]) -> float:
    """Return the microseconds of CPU that the threads of *processes* have used."""
    tasks = [task for process in processes for task in Path(f"/proc/{process}/task").iterdir()]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e3


async def measure(site: Site, servers: Sequence[int], path: str, cookies: Sequence[bytes]) -> Sample:
    """Return the microseconds of CPU of a request for *path*: of this process, and of the servers."""

    async def send(cookie: bytes) -> None:
        for _ in range(TURN):
            status, *_ = await fetch(site.app, path, None if path == "/log_in" else cookie)
            assert status == 200

    before, of_servers = time.process_time(), cpu_of(servers)
    await asyncio.gather(*map(send, cookies))
    sent = len(cookies) * TURN
    own = (time.process_time() - before) * 1e6 / sent
    return Sample(own, {"in the server, µs": (cpu_of(servers) - of_servers) / sent} if servers else {})


@asynccontextmanager
async def enter(kind: str) -> AsyncGenerator[Sequence[Contender | Missing]]:
    with place_for(kind) as place:
        # Nothing times out, however busy this machine is.
        timeout = {} if kind == "memory" else {"timeout": 600}
        driver = None if kind == "cookies" else make_driver(kind, place, **timeout)
        # With cookies, a session has no owner. Elsewhere each login is another user's.
        owners = iter(()) if driver is None else map("user:{}".format, count())
        site = Site(session(SECRET, driver), owners)
        await site.app.load()
        try:
            servers = await servers_of(kind, driver)
            cookies = [await log_in(site.app, "/log_in") for _ in range(CLIENTS)]
            yield [
                Contender(name=name, measure=partial(measure, site, servers, path, cookies), kind="ours")
                for name, path in (("read", "/read"), ("write", "/write"), ("login", "/log_in"))
            ]
        finally:
            await site.app.shutdown()


def cases(plan: Plan) -> Sequence[Case]:
    return [Case(name=kind, enter=partial(enter, kind), baseline="read", unit="µs of CPU a request", rounds=20) for kind in STORES]


QUESTION = Question(
    name="capacity",
    title="How much CPU does a request take, in the application and in its store's server?",
    cases=cases,
    seconds=60,
    quick_seconds=20,
)
