"""The round trips of a request in each store, or its syncs of the disk: counts, which are the same on every machine."""

from __future__ import annotations

import os
import statistics
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from functools import cache, partial
from itertools import repeat
from sqlite3 import Connection
from typing import Final
from unittest.mock import patch
from urllib.parse import urlsplit

from benchmarks.asgi import fetch, log_in
from benchmarks.harness import Case, Contender, Missing, Plan, Question
from benchmarks.places import make_driver, place_for
from benchmarks.rivals.bare import SECRET, USER
from benchmarks.wire import opened_wire
from gaman import App, Context, Response
from gaman.session import SessionIntegration, session
from tests import servers

STORES: Final = ("sql", "file", "redis", "redis cluster", "mongodb")
OWNER: Final = "user:1"
TIMES: Final = 5
"""How often each request is sent; the median leaves out a heartbeat of the client."""
TIMES_IN_CLUSTER: Final = 12
"""The same in a Cluster, where the fewest round trips count.

A login, list() and end_all() send calls for two random keys at once. If one master has both, which is so in a third of the
requests, the second call waits for the answer to the first. Of many masters, one rarely has both.
"""


class Site:
    """An application whose handlers are the requests that are measured; each login takes the next of *owners*, or none."""

    def __init__(self, sessions: SessionIntegration, owners: Iterator[str]) -> None:
        self.sessions = sessions
        self._owners = owners
        routes = {f"/{name}": getattr(self, name) for name in ("read", "write", "change", "log_in", "log_out", "list", "end_all")}
        self.app = App(routes, integrations=[self.sessions])

    async def read(self, ctx: Context) -> str:
        await ctx.session.get("user")
        return "read"

    async def write(self, ctx: Context) -> str:
        await ctx.session.set("user", USER)
        return "written"

    async def change(self, ctx: Context) -> str:
        await ctx.session.update("visits", lambda count: count + 1, 0)
        return "changed"

    async def log_in(self, ctx: Context) -> str:
        await ctx.session.regenerate()
        await ctx.session.set("user", USER)
        if owner := next(self._owners, None):
            await ctx.session.set_owner(owner, note={"device": "Firefox on Linux"})
        return "logged in"

    async def log_out(self, ctx: Context) -> str:
        await ctx.session.clear()
        return "logged out"

    async def list(self, ctx: Context) -> str:
        return str(len(await self.sessions.list(OWNER)))

    async def end_all(self, ctx: Context) -> Response:
        return Response.json({"ended": await self.sessions.end_all(OWNER)})


REQUESTS: Final[dict[str, tuple[str, str | None]]] = {
    "read": ("/read", "/log_in"),
    "write": ("/write", "/log_in"),
    "update()": ("/change", "/log_in"),
    "login of a new visitor": ("/log_in", None),
    "login in a session": ("/log_in", "/write"),
    "logout": ("/log_out", "/log_in"),
    "list() of two sessions": ("/list", None),
    "end_all() of two sessions": ("/end_all", None),
}
"""For each request, its path, and the path of the request that begins its session."""


@cache
def proxied_cluster() -> tuple[str, Sequence[tuple[str, int, int]]]:
    """Return the URL of a Cluster of three masters that announce the ports of their proxies, and the servers of the wire."""
    cluster = servers.RedisCluster(node_timeout=60_000)
    found = [("127.0.0.1", node.port, servers.free_port()) for node in cluster.masters]
    for node, (_, port, own_port) in zip(cluster.masters, found, strict=True):
        node.config.write_text(f"cluster-announce-port {own_port}\ncluster-announce-bus-port {port + 10_000}\n")
    cluster.__enter__()
    return "redis+cluster://" + ",".join(f"127.0.0.1:{own_port}" for *_, own_port in found), found


@asynccontextmanager
async def counted_on_wire(kind: str, place: str) -> AsyncGenerator[tuple[Site, Callable[[], int]]]:
    """Yield a site whose driver reaches its server through a proxy, and the number of its round trips so far."""
    if kind == "redis cluster":
        url, proxied = proxied_cluster()
    else:
        parts = urlsplit(place)
        own_port = servers.free_port()
        proxied = [(str(parts.hostname), parts.port or 6379, own_port)]
        url = parts._replace(netloc=f"{parts.netloc.rpartition('@')[0]}127.0.0.1:{own_port}").geturl()
    async with opened_wire(proxied) as wire:
        site = Site(session(SECRET, make_driver(kind, url)), repeat(OWNER))
        await site.app.load()
        try:
            yield site, lambda: wire.round_trips
        finally:
            await site.app.shutdown()


@asynccontextmanager
async def counted_on_disk(kind: str, place: str) -> AsyncGenerator[tuple[Site, Callable[[], int]]]:
    """Yield a site, and the number of syncs of its driver so far: its fsync() calls, or SQLite's commits of a write."""
    statements: list[str] = []
    driver = make_driver(kind, place)
    site = Site(session(SECRET, driver), repeat(OWNER))
    await site.app.load()
    try:
        if kind == "sql":

            def note_statements(database: Connection) -> None:
                database.set_trace_callback(statements.append)

            await driver._writer.perform(note_statements)
            yield site, lambda: statements.count("COMMIT")
        else:
            with patch("os.fsync", wraps=os.fsync) as fsync:
                yield site, lambda: fsync.call_count
    finally:
        await site.app.shutdown()


async def count_request(site: Site, count: Callable[[], int], name: str, kind: str) -> float:
    """Return the round trips, or syncs, of the request *name*: their median, or in a Cluster the fewest."""
    times, choose = (TIMES_IN_CLUSTER, min) if kind == "redis cluster" else (TIMES, statistics.median)
    path, before = REQUESTS[name]
    found: list[int] = []
    for _ in range(times):
        await site.sessions.end_all(OWNER)
        if path in ("/list", "/end_all"):
            for _ in range(2):
                await log_in(site.app, "/log_in")
        cookie = None if before is None else await log_in(site.app, before)
        began = count()
        status, *_ = await fetch(site.app, path, cookie)
        assert status == 200
        found.append(count() - began)
    return choose(found)


@asynccontextmanager
async def enter(kind: str) -> AsyncGenerator[Sequence[Contender | Missing]]:
    counted = counted_on_disk if kind in ("sql", "file") else counted_on_wire
    with place_for(kind) as place:
        async with counted(kind, place) as (site, count):
            yield [Contender(name=name, measure=partial(count_request, site, count, name, kind), kind="ours") for name in REQUESTS]


def cases(plan: Plan) -> Sequence[Case]:
    return [
        Case(
            name=kind,
            enter=partial(enter, kind),
            baseline="write",
            unit="syncs a request" if kind in ("sql", "file") else "round trips a request",
            rounds=1,
        )
        for kind in STORES
    ]


QUESTION = Question(
    name="round_trips",
    title="How many round trips, or syncs of the disk, does a request take in each store?",
    cases=cases,
    seconds=30,
    quick_seconds=30,
)
