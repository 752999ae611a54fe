"""Concurrent requests in one session, in one process and in several: no write is lost, and a logout is final."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from gaman.session import Session
from tests import servers
from tests.faults.crews import crew
from tests.faults.site_under_load import Visitor
from tests.serving import ParsedResponse, Program
from tests.session.sites import DRIVERS, Browser, Clock, Reply, Site, Work, serving, setting

ROUNDS = 200

SHARED: dict[str, Callable[[Path], dict[str, Any]]] = {
    "file": lambda folder: {"type": "file", "dir": str(folder / "sessions")},
    "sql": lambda folder: {"type": "sql", "file": str(folder / "sessions.db")},
    "redis": lambda _: {"type": "redis", "url": servers.redis_url()},
    "redis cluster": lambda _: {"type": "redis", "url": servers.redis_cluster_url()},
    "mongodb": lambda _: {"type": "mongodb", "uri": servers.mongodb_uri(), "db_name": "gaman_test"},
}


STORES = [name for name in DRIVERS if "cookies" not in name]
SLOW = ("file", "mongodb")


@pytest.fixture(params=STORES)
async def site(request: pytest.FixtureRequest) -> AsyncIterator[Site]:
    async with serving(Site(DRIVERS[request.param](), Clock())) as opened:
        yield opened


@pytest.fixture(params=SHARED)
def program(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[Program]:
    """A site that two processes serve."""
    with crew(tmp_path, SHARED[request.param](tmp_path), 2) as program:
        yield program


# No write is lost

EVERYTHING = {"key": "value", "count": 50, **{f"key{number}": "value" for number in range(50)}}


async def count(session: Session) -> None:
    await session.update("count", lambda count: count + 1, 0)


@pytest.mark.anyio
async def test_a_hundred_concurrent_requests_lose_no_key_and_no_count(site: Site) -> None:
    browser = site.browser()
    await browser.do(setting(key="value"))
    requests = [work for number in range(50) for work in (setting(**{f"key{number}": "value"}), count)]
    await asyncio.gather(*map(browser.do, requests))
    assert await browser.all() == EVERYTHING


def test_a_hundred_concurrent_requests_to_two_processes_lose_no_key_and_no_count(program: Program) -> None:
    visitor = Visitor(program.port)
    visitor.put("key")
    start = Barrier(100)

    def get(target: str) -> ParsedResponse:
        start.wait()
        return visitor.get(target)

    with ThreadPoolExecutor(100) as pool:
        responses = [*pool.map(get, [target for number in range(50) for target in (f"/put/key{number}/value", "/count")])]
    assert {response.status for response in responses} == {200}
    assert visitor.all() == EVERYTHING


# A logout is final


async def read_and_set(session: Session) -> None:
    await session.get("key")
    await session.set("more", 1)


async def delete(session: Session) -> None:
    await session.delete("key")


async def save_and_set(session: Session) -> None:
    await session.set("more", 1)
    await session.save()
    await session.set("more", 2)


async def regenerate(session: Session) -> None:
    await session.regenerate()


async def log_in(session: Session) -> None:
    await session.set("user", 7)
    await session.regenerate()


async def log_out(session: Session) -> None:
    await session.clear()


WRITERS: list[Work] = [setting(more=1), read_and_set, delete, save_and_set, count, regenerate, log_in]


@pytest.mark.anyio
@pytest.mark.parametrize(
    "site", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in STORES], indirect=True
)
async def test_no_concurrent_write_undoes_a_logout_or_removes_a_cookie(site: Site) -> None:
    for _ in range(ROUNDS):
        visitor = site.browser()
        await visitor.do(setting(key="value", other="value"))
        works = [log_out, *(random.choice(WRITERS) for _ in range(20))]
        browsers = [Browser(site, visitor.token) for _ in works]
        replies = await asyncio.gather(*map(soon, browsers, works))
        assert await visitor.all() == {}
        assert browsers[0].token is None
        for work, browser, reply in zip(works[1:], browsers[1:], replies[1:], strict=True):
            assert (reply.status, reply.error) == (200, None)
            if work is log_in:
                # A login before the logout has ended with it. A login after it is another session.
                assert await browser.all() in ({}, {"user": 7})
            elif work is regenerate:
                assert browser.token is not None
                assert await browser.all() == {}
            else:
                assert reply.set_cookie is None


async def soon(browser: Browser, work: Work) -> Reply:
    await asyncio.sleep(random.expovariate(400))
    return await browser.request(work)


@pytest.mark.slow
def test_no_concurrent_write_in_another_process_undoes_a_logout_or_removes_a_cookie(program: Program) -> None:
    with ThreadPoolExecutor(21) as pool:
        for _ in range(ROUNDS):
            visitor = Visitor(program.port)
            visitor.put("key")
            uses = ["/end", *random.choices(["/put/more/value", "/count", "/renew"], k=20)]
            visitors = [Visitor(program.port) for _ in uses]
            for each in visitors:
                each.cookie = visitor.cookie
            responses = [*pool.map(get_soon, visitors, uses)]
            assert visitor.all() == {}
            assert visitors[0].cookie is None
            for use, each, response in zip(uses[1:], visitors[1:], responses[1:], strict=True):
                assert response.status == 200
                if use == "/renew":
                    assert each.cookie is not None
                    assert each.all() == {}
                else:
                    assert "set-cookie" not in response.headers


def get_soon(visitor: Visitor, target: str) -> ParsedResponse:
    time.sleep(random.expovariate(400))
    return visitor.get(target)
