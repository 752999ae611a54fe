"""Sessions use the clock of a store that has one: how its time is measured, in spite of delays, and what is logged."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from itertools import cycle
from typing import Any
from uuid import uuid4

import anyio
import pytest

from gaman import App, Context
from gaman.session import MAX_SKEW, Driver, Record, SessionStoreError, session
from gaman_session import _clock, _upkeep
from gaman_session._clock import StoreClock, has_clock
from gaman_session.drivers.memory import MemoryDriver
from gaman_session.drivers.redis import RedisDriver
from tests import servers
from tests.asgi import Fetch
from tests.session.sites import DRIVERS, SECRET, Clock, Site, serving, setting

pytestmark = pytest.mark.anyio

HOUR = 3600.0
NTP = "Keep both right with NTP, such as chrony or systemd-timesyncd"


class Watch:
    """A monotonic clock that only the test advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Store(MemoryDriver):
    """Memory with a clock, which is *ahead* of this machine's."""

    def __init__(self, watch: Watch | None = None, *, ahead: float = 0.0) -> None:
        super().__init__()
        self.watch = watch or Watch()
        self.offset = time.time() - self.watch() + ahead
        self.errors: list[Exception] = []
        self.asked = 0
        self.is_open = False
        self.take((0.001, 0.001))

    @property
    def now(self) -> float:
        return self.watch() + self.offset

    def take(self, *round_trips: tuple[float, float]) -> None:
        """Set the seconds that the request and the response of each round trip take, in turn."""
        self._round_trips = cycle(round_trips)

    async def open(self) -> None:
        self.is_open = True

    async def close(self) -> None:
        self.is_open = False

    async def time(self) -> float:
        self.asked += 1
        if self.errors:
            raise self.errors.pop(0)
        there, back = next(self._round_trips)
        self.watch.now += there
        found = self.now
        self.watch.now += back
        return found


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    watch = Watch()
    monkeypatch.setattr(_clock, "monotonic", watch)
    return watch


@asynccontextmanager
async def running(driver: Driver | dict[str, Any] | None) -> AsyncGenerator[App]:
    async def begin(ctx: Context) -> float:
        await ctx.session.set("key", "value")
        await ctx.session.save()
        assert ctx.session.created_at is not None
        return ctx.session.created_at.timestamp()

    async def text(ctx: Context) -> str:
        return repr(await begin(ctx))

    app = App({"/": text}, integrations=[session(SECRET, driver)])
    await app.load()
    try:
        yield app
    finally:
        await app.shutdown()


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message for record in caplog.records if record.levelno == logging.WARNING]


# The clock in use


async def test_sessions_use_the_time_of_a_store_that_has_a_clock(watch: Watch, fetch: Fetch) -> None:
    driver = Store(watch, ahead=HOUR)
    async with running(driver) as app:
        assert abs(float((await fetch(app)).body) - driver.now) < 0.01


@pytest.mark.parametrize("name", ["cookies", "memory", "file", "sql"])
async def test_sessions_on_one_machine_use_its_clock(name: str) -> None:
    driver = DRIVERS[name]()
    assert not has_clock(driver)
    integration = session(SECRET, driver)
    assert integration._upkeep()._sessions.clock is time.time


@pytest.mark.parametrize("name", ["redis", "redis cluster", "mongodb"])
async def test_a_store_that_other_machines_share_has_a_clock(name: str) -> None:
    driver = DRIVERS[name]()
    assert has_clock(driver)
    await driver.open()
    try:
        before = time.time()
        # These servers run on this machine. MongoDB cuts the fractions of a millisecond.
        assert before - 0.01 < await driver.time() < time.time() + 0.01
    finally:
        await driver.close()


async def test_writes_that_share_a_round_trip_with_the_time_succeed() -> None:
    driver = RedisDriver(url=servers.redis_url())
    await driver.open()
    try:
        ids = [f"{uuid4().hex}{uuid4().hex}" for _ in range(40)]
        now = time.time()
        records = [Record({"key": b"1"}, int(now), int(now) + 100, int(now) + 100) for _ in ids]
        calls = [call for id, record in zip(ids, records, strict=True) for call in (driver.time(), driver.create(id, record))]
        await asyncio.gather(*calls)
        assert all([isinstance(await driver.load(id, now=now), Record) for id in ids])
    finally:
        await driver.close()


async def test_every_process_asks_the_same_server_of_a_cluster() -> None:
    with servers.RedisCluster(3) as cluster:
        for _ in range(3):
            driver = RedisDriver(url=cluster.url)
            await driver.open()
            await driver.time()
            await driver.close()
        asked = 0
        for node in cluster.nodes:
            with node.client() as client:
                asked += "cmdstat_time" in client.info("commandstats")
    assert asked == 1


async def test_a_clock_that_a_test_sets_overrides_the_stores(clock: Clock) -> None:
    driver = Store(ahead=HOUR)
    async with serving(Site(driver, clock)) as site:
        await site.browser().do(setting(key=1))
    [record] = driver._sessions.values()
    assert (record.created, driver.asked) == (clock.now, 0)


# Measuring


async def test_the_error_of_the_time_is_at_most_half_of_the_shortest_round_trip(watch: Watch) -> None:
    for ahead in (-HOUR, -0.2, 0.0, 0.2, HOUR):
        driver = Store(watch, ahead=ahead)
        driver.take((0.3, 0.0), (0.0, 0.02), (0.004, 0.0), (0.0, 0.3), (0.1, 0.1))
        clock = StoreClock(driver)
        await clock.measure()
        assert abs(clock.now() - driver.now) <= 0.0021
        watch.now += HOUR
        assert abs(clock.now() - driver.now) <= 0.0021


async def test_a_busy_event_loop_or_a_slow_store_spoils_no_measurement(watch: Watch) -> None:
    driver = Store(watch, ahead=30)
    clock = StoreClock(driver)
    await clock.measure()
    for there, back in ((0.0, 0.4), (0.4, 0.0), (0.0, 10.0), (9.0, 0.0)):
        driver.take((there, back))
        await clock.measure()
        assert abs(clock.now() - driver.now) < 0.001, (there, back)


async def test_a_slow_first_measurement_keeps_the_clock_of_the_machine_if_that_may_be_right(watch: Watch) -> None:
    driver = Store(watch, ahead=0.9)
    driver.take((0.0, 2.0))
    clock = StoreClock(driver)
    own = clock.now() - watch()
    await clock.measure()
    assert clock.now() - watch() == own
    driver.offset += 30
    await clock.measure()
    assert abs(clock.now() - driver.now) <= 1.0
    driver.take((0.001, 0.001))
    await clock.measure()
    assert abs(clock.now() - driver.now) < 0.001


async def test_a_slow_store_is_not_asked_again_and_again(watch: Watch) -> None:
    driver = Store(watch)
    driver.take((0.0, 0.01))
    await StoreClock(driver).measure()
    assert driver.asked == 5
    driver.take((0.0, 2.0))
    await StoreClock(driver).measure()
    assert driver.asked == 6


@pytest.mark.parametrize("step", [-HOUR, -30, -0.3, 0.3, 30, HOUR])
@pytest.mark.parametrize("round_trip", [(0.001, 0.001), (0.1, 0.1)])
async def test_the_clock_follows_a_store_whose_clock_is_set(watch: Watch, step: float, round_trip: tuple[float, float]) -> None:
    driver = Store(watch)
    clock = StoreClock(driver)
    await clock.measure()
    driver.take(round_trip)
    driver.offset += step
    await clock.measure()
    assert abs(clock.now() - driver.now) < 0.001


async def test_setting_the_clock_of_the_machine_changes_nothing(watch: Watch, monkeypatch: pytest.MonkeyPatch) -> None:
    driver = Store(watch)
    clock = StoreClock(driver)
    await clock.measure()
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + HOUR)
    assert abs(clock.now() - driver.now) < 0.001
    await clock.measure()
    assert abs(clock.now() - driver.now) < 0.001


# What is logged


@pytest.mark.parametrize(("ahead", "difference"), [(30, "30.0 s behind that of"), (-90, "90.0 s ahead of that of")])
async def test_a_different_clock_is_a_warning_with_the_difference_and_the_fix(
    watch: Watch, ahead: float, difference: str, caplog: pytest.LogCaptureFixture
) -> None:
    driver = Store(watch, ahead=ahead)
    async with running(driver):
        pass
    [warning] = warnings(caplog)
    assert warning == f"the clock of this machine is {difference} the memory server; sessions use the server's. {NTP}"


async def test_a_different_clock_is_a_warning_each_time_it_begins_to_differ(watch: Watch, caplog: pytest.LogCaptureFixture) -> None:
    driver = Store(watch, ahead=0.9 * MAX_SKEW)
    clock = StoreClock(driver)
    for step, expected in ((0, 0), (5, 1), (0, 1), (5, 1), (-10, 1), (-5, 2), (0, 2)):
        driver.offset += step
        await clock.measure()
        assert len(warnings(caplog)) == expected, step


# Failures


async def test_a_store_whose_clock_fails_stops_the_start() -> None:
    driver = Store()
    driver.errors = [SessionStoreError("memory", "tell the time")]
    with pytest.raises(SessionStoreError):
        async with running(driver):
            pass
    assert not driver.is_open


async def test_a_later_failure_is_logged_and_the_clock_continues(
    watch: Watch, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fetch: Fetch
) -> None:
    monkeypatch.setattr(_upkeep, "_SWEEP_SECONDS", 0)
    driver = Store(watch, ahead=HOUR)
    async with running(driver) as app:
        driver.errors = [SessionStoreError("memory", "tell the time"), RuntimeError("a bug")]
        driver.take((0, 0))
        asked = driver.asked
        with anyio.fail_after(25):
            while driver.asked < asked + 8:
                await anyio.sleep(0)
        assert abs(float((await fetch(app)).body) - driver.now) < 0.1
    failures = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert ["asking the store for its time failed" in record.message for record in failures] == [True, True]
    assert [record.exc_info is not None for record in failures] == [False, True]


async def test_the_clock_of_a_redis_that_is_down_fails_within_its_timeout() -> None:
    with servers.RedisServer() as server:
        driver = RedisDriver(url=server.url, timeout=1)
        await driver.open()
        server.kill()
        with anyio.fail_after(25), pytest.raises(SessionStoreError, match="could not tell the time"):
            await driver.time()
        await driver.close()
