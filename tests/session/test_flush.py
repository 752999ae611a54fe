"""Overlapping requests keep the promises: every interleaving of two, and many of three."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from contextvars import ContextVar
from itertools import combinations_with_replacement
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaman.session import Outcome, Session, SessionLoginRequired
from gaman_session._login import LOGIN
from gaman_session.drivers.memory import MemoryDriver
from tests.session.sites import Browser, Clock, Reply, Sealing, Site, serving

current: ContextVar[Run] = ContextVar("current")


class Run:
    """One request that runs step by step."""

    def __init__(self, index: int, kind: str) -> None:
        self.kind = kind
        self.key = f"{kind}{index}"
        self.task: asyncio.Task[Reply] | None = None
        self.gate: asyncio.Future[None] | None = None
        self.acknowledged = False
        self.is_done = False

    async def step(self, browser: Browser) -> None:
        if self.task is None:
            self.task = asyncio.create_task(self._start(browser))
        elif self.gate is not None:
            self.gate.set_result(None)
            self.gate = None
        else:
            browser.take(self.task.result())
            self.is_done = True
            return
        while not self.task.done() and self.gate is None:
            await asyncio.sleep(0)

    async def _start(self, browser: Browser) -> Reply:
        current.set(self)
        return await browser.site.request(KINDS[self.kind](self.key), browser.cookie)

    async def pause(self) -> None:
        self.gate = asyncio.get_running_loop().create_future()
        await self.gate


def _stepped(base: type[MemoryDriver]) -> MemoryDriver:
    """Return a driver that pauses before each call, so that each is a step."""

    # mypy doesn't allow a base that is only known at run time.
    class Stepped(base):  # type: ignore[valid-type, misc]
        def __getattribute__(self, name: str) -> Any:
            found = super().__getattribute__(name)
            if name not in ("load", "create", "apply", "swap", "rename", "destroy"):
                return found

            async def step(*args: Any, **named: Any) -> Any:
                run = current.get(None)
                if run is not None:
                    await run.pause()
                outcome = await found(*args, **named)
                if run is not None and outcome is Outcome.WRITTEN:
                    run.acknowledged = True
                return outcome

            return step

    driver: MemoryDriver = Stepped()
    return driver


def _write(key: str) -> Callable[[Session], Awaitable[None]]:
    async def work(session: Session) -> None:
        await session.set(key, 1)

    return work


def _read_and_write(key: str) -> Callable[[Session], Awaitable[None]]:
    async def work(session: Session) -> None:
        await session.get("x")
        await session.set(key, 1)

    return work


def _regenerate(key: str) -> Callable[[Session], Awaitable[None]]:
    async def work(session: Session) -> None:
        await session.get("x")
        await session.set("user", 1)
        await session.regenerate()

    return work


def _login(key: str) -> Callable[[Session], Awaitable[None]]:
    async def work(session: Session) -> None:
        await session.login("user:1")
        await session.set("user", 1)

    return work


def _confirm(key: str) -> Callable[[Session], Awaitable[None]]:
    async def work(session: Session) -> None:
        # A logout came first.
        with suppress(SessionLoginRequired):
            await session.confirm()

    return work


def _logout(key: str) -> Callable[[Session], Awaitable[None]]:
    async def work(session: Session) -> None:
        await session.clear()

    return work


def _logout_by_deleting(key: str) -> Callable[[Session], Awaitable[None]]:
    async def work(session: Session) -> None:
        for name in await session.all():
            await session.delete(name)

    return work


def _count(key: str) -> Callable[[Session], Awaitable[None]]:
    async def work(session: Session) -> None:
        await session.update("count", lambda count: count + 1, 0)

    return work


KINDS = {
    "W": _write,
    "RW": _read_and_write,
    "R": _regenerate,
    "L": _login,
    "F": _confirm,
    "C": _logout,
    "D": _logout_by_deleting,
    "U": _count,
}


async def _play(kinds: tuple[str, ...], choose: Callable[[int], int], base: type[MemoryDriver]) -> None:
    """Run requests of *kinds*, each step of the one that *choose* picks among those in flight, and check the promises."""
    driver = _stepped(base)
    async with serving(Site(driver, Clock())) as site:
        browser = site.browser()
        if "F" in kinds:
            await browser.do(_login(""))
        await browser.do(_write("x"))
        runs = [Run(i, kind) for i, kind in enumerate(kinds)]
        trace: list[str] = []
        while in_flight := [run for run in runs if not run.is_done]:
            run = in_flight[choose(len(in_flight))]
            trace.append(run.key)
            await run.step(browser)
        for run in runs:
            assert run.task is not None
            assert run.task.result().error is None, trace
        await _check(kinds, runs, driver, browser, trace)


async def _check(kinds: tuple[str, ...], runs: list[Run], driver: MemoryDriver, browser: Browser, trace: list[str]) -> None:
    data = await browser.all()
    alive = [record.fields for record in driver._sessions.values()]
    confirmed, logouts = kinds.count("F"), kinds.count("C") + kinds.count("D")
    logins = kinds.count("R") + kinds.count("L") + confirmed
    if not logins and not logouts:
        assert {run.key for run in runs if run.kind in ("W", "RW")} <= set(data), ("a key is lost", trace)
        assert data.get("count", 0) == kinds.count("U"), ("a count is lost", trace)
    if kinds.count("C") and logins <= 1 and not kinds.count("D"):
        assert not any("x" in fields for fields in alive), ("an ended session is back", trace)
        if confirmed:
            assert not any(LOGIN in fields for fields in alive), ("a confirmation undid a logout", trace)
    if logins and not logouts:
        assert "user" in data, ("the login is lost", trace)
    if logins == 1 and not logouts:
        assert {run.key for run in runs if run.kind in ("W", "RW") and run.acknowledged} <= set(data), ("a key is lost", trace)


def _schedules(kinds: tuple[str, ...], base: type[MemoryDriver]) -> Iterator[list[int]]:
    """Play every schedule, depth first: each run follows a prefix of choices, and then always the first way."""
    prefix: list[int] = []
    while True:
        choices: list[tuple[int, int]] = []

        def choose(ways: int, choices: list[tuple[int, int]] = choices, prefix: list[int] = prefix) -> int:
            at = prefix[len(choices)] if len(choices) < len(prefix) else 0
            choices.append((at, ways))
            return at

        asyncio.run(_play(kinds, choose, base))
        yield [at for at, _ in choices]
        while choices and choices[-1][0] + 1 == choices[-1][1]:
            choices.pop()
        if not choices:
            return
        prefix = [at for at, _ in choices[:-1]] + [choices[-1][0] + 1]


@pytest.mark.parametrize("base", [MemoryDriver, Sealing])
@pytest.mark.parametrize("kinds", list(combinations_with_replacement(KINDS, 2)), ids="-".join)
def test_two_requests_keep_the_promises_in_every_interleaving(kinds: tuple[str, ...], base: type[MemoryDriver]) -> None:
    assert sum(1 for _ in _schedules(kinds, base)) > 1


@settings(max_examples=15 * settings().max_examples)
@given(kinds=st.tuples(*[st.sampled_from(sorted(KINDS))] * 3), picks=st.lists(st.integers(0, 2), max_size=40))
def test_three_requests_keep_the_promises_in_any_interleaving(kinds: tuple[str, ...], picks: list[int]) -> None:
    left = iter(picks)
    asyncio.run(_play(kinds, lambda ways: next(left, 0) % ways, MemoryDriver))
