"""Concurrent logins of one owner: ending all sessions leaves no older one, and there are never too many."""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import Awaitable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from secrets import token_hex
from typing import Any

import pytest

from gaman.session import Session
from tests.faults.crews import crew
from tests.faults.site_under_load import Visitor
from tests.faults.test_races import SHARED
from tests.serving import Program
from tests.session.sites import DRIVERS, Browser, Clock, Site, Work, opened, serving, setting

pytestmark = [pytest.mark.anyio, pytest.mark.slow]

ROUNDS = 50
WINDOW = 0.03
"""Seconds within which concurrent calls begin."""

STORES = [name for name in DRIVERS if "cookies" not in name]


class RealClock(Clock):
    """The real time, which tells one login from the next."""

    def __call__(self) -> float:
        return time.time()


def logging_in(owner: str, logins: dict[str, float]) -> Work:
    """Return the work of a login, with a new id or without; it adds its handle and the time when it began to *logins*."""

    async def work(session: Session) -> None:
        began = time.time()
        await session.set_owner(owner)
        await session.set("user", owner)
        if random.random() < 0.5:
            await session.regenerate()
        await session.save()
        if session.id is not None:
            logins[session.id] = began

    return work


async def regenerate(session: Session) -> None:
    await session.get("user")
    await session.regenerate()


async def soon(work: Awaitable[Any]) -> Any:
    await asyncio.sleep(random.uniform(0, WINDOW))
    return await work


@pytest.mark.parametrize("name", STORES)
async def test_no_session_begun_before_a_call_of_end_all_outlives_it(name: str) -> None:
    driver: Any = DRIVERS[name]()
    # Two processes, as far as the store can tell.
    async with serving(Site(driver, RealClock())) as one, serving(Site(opened(driver), RealClock())) as other:
        for _ in range(ROUNDS):
            owner = token_hex(8)
            logins: dict[str, float] = {}
            first = [one.browser() for _ in range(4)]
            await asyncio.gather(*(browser.do(logging_in(owner, logins)) for browser in first))
            visitors = [random.choice((one, other)).browser() for _ in range(16)]
            guests = [random.choice((one, other)).browser() for _ in range(4)]
            await asyncio.gather(*(browser.do(setting(cart=[1])) for browser in guests))
            renewing = [Browser(other, browser.token) for browser in first]
            requests = [
                *(soon(browser.request(logging_in(owner, logins))) for browser in (*visitors, *guests)),
                *(soon(browser.request(regenerate)) for browser in renewing),
            ]
            tasks = [asyncio.create_task(request) for request in requests]
            await soon(asyncio.sleep(0))
            called = time.time()
            await one.sessions.end_all(owner)
            returned = time.time()
            replies = await asyncio.gather(*tasks)
            assert [reply.error for reply in replies] == [None] * len(replies)
            left = {each.handle for each in await other.sessions.list(owner)}
            # The call takes effect at one instant between call and return.
            assert all(logins[handle] >= called for handle in left)
            assert {handle for handle, began in logins.items() if began > returned} <= left
            # Every live session is listed, however it began.
            browsers = (*first, *visitors, *guests, *renewing)
            for browser in browsers:
                if (await browser.all()).get("user") == owner:
                    assert await handle(browser) in left
            await other.sessions.end_all(owner)
            assert await one.sessions.count(owner) == 0
            assert {None} == {(await browser.all()).get("user") for browser in browsers}


@pytest.fixture(params=SHARED)
def program(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[Program]:
    """A site that two processes serve."""
    with crew(tmp_path, SHARED[request.param](tmp_path), 2) as program:
        yield program


def test_no_login_in_one_process_outlives_a_call_of_end_all_in_another(program: Program) -> None:
    def request(target: str) -> Any:
        time.sleep(random.uniform(0, WINDOW))
        visitor = Visitor(program.port)
        return visitor, json.loads(visitor.get(target).body)

    together = set[bool]()
    with ThreadPoolExecutor(12) as pool:
        for _ in range(20):
            owner = token_hex(8)
            logging_in = [pool.submit(request, f"/login/{owner}") for _ in range(11)]
            _, ended = request(f"/end_all/{owner}")
            logins = [login.result() for login in logging_in]
            left = set(json.loads(Visitor(program.port).get(f"/handles/{owner}").body))
            for visitor, login in logins:
                is_in = visitor.all() == {"user": owner}
                assert is_in == (login["handle"] in left)
                # set_owner() takes effect at an instant between the two times.
                assert not is_in or login["owned"] >= ended["called"]
                assert is_in or login["began"] <= ended["returned"]
                together.add(login["by"] == ended["by"])
    assert together == {True, False}


async def handle(browser: Browser) -> Any:
    async def work(session: Session) -> str | None:
        return session.id

    return await browser.do(work)


@pytest.mark.parametrize("name", STORES)
async def test_concurrent_logins_leave_the_allowed_number_of_sessions_and_the_last_one(name: str) -> None:
    driver: Any = DRIVERS[name]()
    async with (
        serving(Site(driver, RealClock(), max_sessions_per_owner=3)) as one,
        serving(Site(opened(driver), RealClock(), max_sessions_per_owner=3)) as other,
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
