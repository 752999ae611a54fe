"""Logins of one owner at once, and the end of all they have beside them: no session outlives it, and there are never too many."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Awaitable
from secrets import token_hex
from typing import Any

import pytest

from gaman.session import Session
from tests.session.sites import DRIVERS, Browser, Clock, Site, Work, opened, serving

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ROUNDS = 50
STORES = [name for name in DRIVERS if name != "cookies"]


class Watch(Clock):
    """The real time, by which one login is told from the next."""

    def __call__(self) -> float:
        return time.time()


def logging_in(owner: str, logins: dict[str, float]) -> Work:
    """Return the work of a login, as often with a new id as without; what it is known by, and when it began, go into *logins*."""

    async def work(session: Session) -> None:
        began = time.time()
        await session.tag(owner)
        await session.set("user", owner)
        if random.random() < 0.5:
            await session.regenerate()
        await session.save()
        if session.id is not None:
            logins[session.id] = began

    return work


async def renew(session: Session) -> None:
    await session.get("user")
    await session.regenerate()


async def soon(work: Awaitable[Any]) -> Any:
    await asyncio.sleep(random.expovariate(400))
    return await work


@pytest.mark.parametrize("name", STORES)
async def test_no_login_that_was_done_or_under_way_outlives_the_end_of_all(name: str) -> None:
    driver: Any = DRIVERS[name]()
    # Two processes, as far as the store can tell.
    async with serving(Site(driver, Watch())) as one, serving(Site(opened(driver), Watch())) as other:
        for _ in range(ROUNDS):
            owner = token_hex(8)
            logins: dict[str, float] = {}
            there = [one.browser() for _ in range(4)]
            await asyncio.gather(*(browser.do(logging_in(owner, logins)) for browser in there))
            visitors = [random.choice((one, other)).browser() for _ in range(10)]
            renewing = [Browser(other, browser.token) for browser in there]
            requests = [
                *(soon(browser.request(logging_in(owner, logins))) for browser in visitors),
                *(soon(browser.request(renew)) for browser in renewing),
            ]
            tasks = [asyncio.create_task(request) for request in requests]
            await asyncio.sleep(random.expovariate(400))
            called = time.time()
            await one.sessions.end_all(owner)
            replies = await asyncio.gather(*tasks)
            assert [reply.error for reply in replies] == [None] * len(replies)
            left = {each.handle for each in await other.sessions.list(owner)}
            # Whoever logged in before the call, or had yet to store it, is out; only who began after it is in.
            assert all(began > called for handle, began in logins.items() if handle in left)
            # What is alive is listed, whichever way it came to be.
            for browser in (*there, *visitors, *renewing):
                if (await browser.all()).get("user") == owner:
                    assert await handle(browser) in left
            await other.sessions.end_all(owner)
            assert await one.sessions.count(owner) == 0
            assert [await browser.all() for browser in (*there, *visitors, *renewing)] == [{}] * 18


async def handle(browser: Browser) -> Any:
    async def work(session: Session) -> str | None:
        return session.id

    return await browser.do(work)


@pytest.mark.parametrize("name", STORES)
async def test_logins_at_once_leave_so_many_sessions_and_the_last_one(name: str) -> None:
    driver: Any = DRIVERS[name]()
    async with (
        serving(Site(driver, Watch(), max_sessions_per_owner=3)) as one,
        serving(Site(opened(driver), Watch(), max_sessions_per_owner=3)) as other,
    ):
        for _ in range(ROUNDS):
            owner, logins = token_hex(8), dict[str, float]()
            browsers = [random.choice((one, other)).browser() for _ in range(10)]
            await asyncio.gather(*(soon(browser.do(logging_in(owner, logins))) for browser in browsers))
            assert 0 < await one.sessions.count(owner) <= 3
            last = other.browser()
            await last.do(logging_in(owner, logins))
            alive = [browser for browser in (*browsers, last) if await browser.all()]
            assert len(alive) == 3
            assert last in alive
