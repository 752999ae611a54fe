"""The memory driver never exceeds its limit, and removes expired sessions."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from gaman.session import TOMBSTONE, Outcome, Ownership, Record, Session
from gaman_session import _sealing
from gaman_session.drivers.memory import MemoryDriver
from tests.session.sites import SECRET, Clock, Site, getting, serving, setting

pytestmark = pytest.mark.anyio

NOW = 1_800_000_000.0


def record(lasts: float = 1000, *, deadline: float | None = None, now: float = NOW) -> Record:
    return Record({"key": b"value"}, now, now + lasts, now + (lasts if deadline is None else deadline))


def id_of(number: int) -> str:
    return f"{number:064x}"


async def is_there(driver: MemoryDriver, number: int, now: float = NOW) -> bool:
    return isinstance(await driver.load(id_of(number), now=now), Record)


async def filled(max_sessions: int, count: int) -> MemoryDriver:
    driver = MemoryDriver(max_sessions=max_sessions)
    for number in range(count):
        await driver.create(id_of(number), record())
    return driver


def sizes(driver: MemoryDriver) -> tuple[int, int, int]:
    return len(driver._sessions), len(driver._tombstones), len(driver._deadlines)


def maxima(first: tuple[int, int, int], second: tuple[int, int, int]) -> tuple[int, int, int]:
    return max(first[0], second[0]), max(first[1], second[1]), max(first[2], second[2])


# The limit


async def test_the_limit_holds_for_a_hundred_thousand_new_sessions() -> None:
    driver, most = MemoryDriver(max_sessions=100), 0
    one = record()
    for number in range(100_000):
        await driver.create(id_of(number), one)
        most = max(most, len(driver._deadlines))
        assert len(driver) <= 100
    assert len(driver) == 100
    assert most <= 2 * 100 + 1001


async def test_the_limit_holds_if_each_session_is_ended_at_once() -> None:
    driver, most = MemoryDriver(max_sessions=100), (0, 0, 0)
    for number in range(20_000):
        await driver.create(id_of(number), record())
        await driver.destroy(id_of(number), now=NOW)
        most = maxima(most, sizes(driver))
    assert most[0] == 0
    assert most[1] == 100
    assert most[2] <= 2 * 100 + 1001


async def test_the_limit_holds_if_one_session_is_renamed_for_ever() -> None:
    driver, most = await filled(100, 1), (0, 0, 0)
    for number in range(20_000):
        assert await driver.rename(id_of(number), id_of(number + 1), record(), version=0, now=NOW) is Outcome.WRITTEN
        most = maxima(most, sizes(driver))
    assert most[0] == 1
    assert most[1] == 100
    assert most[2] <= 2 * 100 + 1001


async def test_the_limit_holds_if_one_session_is_used_for_ever() -> None:
    driver = MemoryDriver(max_sessions=100)
    await driver.create(id_of(0), record(1_000_000, deadline=10))
    for now in range(int(NOW), int(NOW) + 5000):
        assert await driver.apply(id_of(0), {"key": b"%d" % now}, (), now=now, deadline=now + 10, max_size=1000) is Outcome.WRITTEN
    assert sizes(driver) == (1, 0, 1)


async def test_a_driver_with_room_for_one_session_keeps_the_last() -> None:
    driver = await filled(1, 3)
    assert [await is_there(driver, number) for number in range(3)] == [False, False, True]


@pytest.mark.parametrize("old", [0, 3, 9])
async def test_a_rename_in_a_full_store_evicts_no_other_session(old: int) -> None:
    driver = await filled(10, 10)
    assert await driver.rename(id_of(old), id_of(10), record(), version=0, now=NOW) is Outcome.WRITTEN
    assert [number for number in range(11) if await is_there(driver, number)] == [n for n in range(11) if n != old]


async def test_visitors_that_set_nothing_store_nothing() -> None:
    driver, clock = MemoryDriver(max_sessions=10), Clock()
    async with serving(Site(driver, clock)) as site:
        browser = site.browser()
        await browser.do(setting(key="value"))
        assert browser.token is not None
        for i in range(200):
            forged = browser.token[:-1] + "ABCDEFGH"[i % 8]
            await site.request(getting("key"), f"{site.cookie_name}={forged}")
            await site.request(getting("key"))
        assert sizes(driver) == (1, 0, 1)
        assert await browser.all() == {"key": "value"}


# Eviction


async def test_the_least_recently_used_session_is_evicted_first() -> None:
    driver = await filled(3, 3)
    await driver.load(id_of(0), now=NOW)
    await driver.create(id_of(3), record())
    assert [await is_there(driver, number) for number in range(4)] == [True, False, True, True]


USES: dict[str, Callable[[MemoryDriver], Awaitable[object]]] = {
    "load": lambda driver: driver.load(id_of(0), now=NOW),
    "apply": lambda driver: driver.apply(id_of(0), {"key": b"1"}, (), now=NOW, deadline=None, max_size=1000),
    "swap": lambda driver: driver.swap(id_of(0), "key", b"value", b"1", now=NOW, deadline=None, max_size=1000),
    "swap with a conflict": lambda driver: driver.swap(id_of(0), "key", b"other", b"1", now=NOW, deadline=None, max_size=1000),
}


@pytest.mark.parametrize("use", USES.values(), ids=USES)
async def test_a_used_session_is_evicted_last(use: Callable[[MemoryDriver], Awaitable[object]]) -> None:
    driver = await filled(3, 3)
    await use(driver)
    await driver.create(id_of(3), record())
    await driver.create(id_of(4), record())
    assert set(driver._sessions) == {id_of(0), id_of(3), id_of(4)}


async def test_visitors_without_a_cookie_evict_no_session_that_was_used_twice_or_has_an_owner() -> None:
    driver, clock = MemoryDriver(max_sessions=100), Clock()
    async with serving(Site(driver, clock)) as site:

        async def log_in(session: Session) -> None:
            await session.set("user", 1)
            await session.set_owner("user:1")

        users, readers, writers = [[site.browser() for _ in range(30)] for _ in range(3)]
        for browser in users:
            await browser.do(log_in)
        for browser in (*readers, *writers):
            await browser.do(setting(a=1))
        for browser in readers:
            await browser.do(getting("a"))
        clock.now += 2
        for browser in writers:
            await browser.do(setting(b=1))

        async def visit(session: Session) -> None:
            await session.update("visits", lambda count: count + 1, 0)
            await session.update("last", lambda _: 1)
            await session.regenerate()

        last = site.browser()
        for number in range(5000):
            await last.site.request(visit if number % 2 else setting(visit=1))
        assert [await browser.do(getting("user")) for browser in users] == [1] * 30
        assert [await browser.do(getting("a")) for browser in (*readers, *writers)] == [1] * 60
        assert len(driver) == 100


async def test_sessions_are_evicted_in_the_order_used_once_then_least_recently_used_then_owned() -> None:
    driver = await filled(6, 3)
    for number in (3, 4):
        await driver.create(id_of(number), record())
    owned = record()
    owned.ownership = Ownership("owner", b"", NOW)
    await driver.create(id_of(5), owned)
    for number in (1, 0):
        await driver.load(id_of(number), now=NOW)
    expected = [2, 3, 4, 1, 0, 5]
    for evicted, old in enumerate(expected):
        await driver.create(id_of(10 + evicted), record())
        await driver.load(id_of(10 + evicted), now=NOW)
        ownership = Ownership(f"owner {evicted}", b"", NOW)
        await driver.set_owner(id_of(10 + evicted), ownership, {}, (), now=NOW, deadline=None, max_size=1000)
        assert set(driver._sessions) & {id_of(number) for number in range(6)} == {
            id_of(number) for number in expected[evicted + 1 :]
        }, old


async def test_a_session_that_gets_or_loses_an_owner_changes_its_place_in_the_order() -> None:
    driver, ownership = await filled(3, 2), Ownership("owner", b"", NOW)
    await driver.set_owner(id_of(0), ownership, {}, (), now=NOW, deadline=None, max_size=1000)
    await driver.load(id_of(1), now=NOW)
    renamed = record()
    renamed.ownership = ownership
    assert await driver.rename(id_of(0), id_of(2), renamed, version=1, now=NOW) is Outcome.WRITTEN
    await driver.create(id_of(3), record())
    await driver.load(id_of(3), now=NOW)
    await driver.create(id_of(4), record())
    assert set(driver._sessions) == {id_of(2), id_of(3), id_of(4)}
    await driver.load(id_of(4), now=NOW)
    await driver.set_owner(id_of(2), None, {}, (), now=NOW, deadline=None, max_size=1000)
    for number in (3, 4):
        await driver.load(id_of(number), now=NOW)
    await driver.create(id_of(5), record())
    assert set(driver._sessions) == {id_of(3), id_of(4), id_of(5)}
    assert sum(len(queue) for queue in driver._queues) == 3


async def test_an_evicted_session_is_absent_and_not_ended() -> None:
    driver = await filled(1, 2)
    assert await driver.load(id_of(0), now=NOW) is None
    assert await driver.apply(id_of(0), {"key": b"1"}, (), now=NOW, deadline=None, max_size=1000) is Outcome.ABSENT


async def test_a_full_store_logs_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    driver = await filled(3, 3)
    assert caplog.records == []
    for number in range(3, 10):
        await driver.create(id_of(number), record())
    (warning,) = caplog.records
    assert (warning.name, warning.levelno) == ("gaman", logging.WARNING)
    assert "max_sessions=3" in warning.getMessage()


# Expiry


@pytest.mark.parametrize(("after", "there"), [(99.9, True), (100, False), (100.1, False)], ids=["before", "at", "after"])
async def test_a_session_expires_at_its_deadline_without_a_purge(after: float, there: bool) -> None:
    driver = MemoryDriver()
    await driver.create(id_of(0), record(1000, deadline=100))
    assert await is_there(driver, 0, NOW + after) is there
    assert len(driver) == there


async def test_an_expired_session_is_absent_and_not_ended() -> None:
    driver = MemoryDriver()
    await driver.create(id_of(0), record(100))
    assert await driver.apply(id_of(0), {"key": b"1"}, (), now=NOW + 100, deadline=None, max_size=1000) is Outcome.ABSENT
    await driver.destroy(id_of(0), now=NOW + 100)
    assert await driver.load(id_of(0), now=NOW + 100) is None
    assert sizes(driver)[:2] == (0, 0)


# Purging


async def test_a_purge_removes_at_most_its_limit_and_returns_how_many() -> None:
    driver = MemoryDriver()
    for number in range(25):
        await driver.create(id_of(number), record(10))
    assert [await driver.purge(now=NOW + 10, limit=10) for _ in range(4)] == [10, 10, 5, 0]
    assert sizes(driver) == (0, 0, 0)


@pytest.mark.parametrize("limit", [1, 2, 3])
async def test_a_purge_with_a_small_limit_terminates(limit: int) -> None:
    driver = MemoryDriver()
    for number in range(5):
        await driver.create(id_of(number), record(10))
    with anyio.fail_after(25):
        assert await _purge_all(driver, NOW + 10, limit) == 5


async def test_a_purge_removes_only_expired_sessions() -> None:
    driver = MemoryDriver()
    for number in range(10):
        await driver.create(id_of(number), record(10 * (number + 1)))
    assert await driver.purge(now=NOW + 50, limit=100) == 5
    # A load at an earlier time would find a session that the purge has left.
    assert [await is_there(driver, number) for number in range(10)] == [False] * 5 + [True] * 5


async def test_a_purge_without_expired_sessions_removes_nothing() -> None:
    assert await MemoryDriver().purge(now=NOW, limit=10) == 0
    driver = await filled(10, 5)
    assert await driver.purge(now=NOW + 999, limit=10) == 0
    assert len(driver) == 5


async def test_a_session_whose_deadline_has_moved_is_purged_at_its_new_deadline() -> None:
    driver = MemoryDriver()
    await driver.create(id_of(0), record(1000, deadline=100))
    await driver.apply(id_of(0), {"key": b"1"}, (), now=NOW, deadline=NOW + 500, max_size=1000)
    assert await driver.purge(now=NOW + 100, limit=10) == 0
    assert await driver.purge(now=NOW + 499, limit=10) == 0
    assert len(driver) == 1
    assert await driver.purge(now=NOW + 500, limit=10) == 1
    assert sizes(driver) == (0, 0, 0)


async def _purge_all(driver: MemoryDriver, now: float, limit: int) -> int:
    """Purge as the integration does, until nothing is removed; return how many sessions were removed."""
    total = 0
    while removed := await driver.purge(now=now, limit=limit):
        assert removed <= limit
        total += removed
    return total


async def test_ended_sessions_do_not_hide_expired_ones() -> None:
    driver = MemoryDriver()
    for number in range(50):
        await driver.create(id_of(number), record(10))
        await driver.destroy(id_of(number), now=NOW)
    for number in range(50, 60):
        await driver.create(id_of(number), record(20))
    assert await _purge_all(driver, NOW + TOMBSTONE, 10) == 60
    assert sizes(driver) == (0, 0, 0)


async def test_sessions_in_use_do_not_hide_expired_ones() -> None:
    driver = MemoryDriver()
    for number in range(50):
        await driver.create(id_of(number), record(1000, deadline=10))
        await driver.apply(id_of(number), {"key": b"1"}, (), now=NOW, deadline=NOW + 500, max_size=1000)
    for number in range(50, 60):
        await driver.create(id_of(number), record(20))
    assert await _purge_all(driver, NOW + 20, 10) == 10
    assert len(driver) == 50


# Tombstones


@pytest.mark.parametrize("end", ["destroy", "rename", "emptying"])
async def test_a_tombstone_stays_for_a_minute_and_is_then_purged(end: str) -> None:
    driver = await filled(10, 1)
    if end == "destroy":
        await driver.destroy(id_of(0), now=NOW)
    elif end == "rename":
        await driver.rename(id_of(0), id_of(1), record(), version=0, now=NOW)
    else:
        await driver.apply(id_of(0), {}, ["key"], now=NOW, deadline=None, max_size=1000)
    assert await driver.load(id_of(0), now=NOW + TOMBSTONE - 1) is Outcome.ENDED
    assert await driver.purge(now=NOW + TOMBSTONE - 1, limit=10) == 0
    assert await driver.load(id_of(0), now=NOW + TOMBSTONE) is None
    assert await driver.purge(now=NOW + TOMBSTONE, limit=10) == 1
    assert len(driver._tombstones) == 0


async def test_tombstones_are_purged_in_batches() -> None:
    driver = await filled(100, 25)
    for number in range(25):
        await driver.destroy(id_of(number), now=NOW)
    assert [await driver.purge(now=NOW + TOMBSTONE, limit=10) for _ in range(3)] == [10, 10, 5]


async def test_the_oldest_of_too_many_tombstones_are_removed() -> None:
    driver = MemoryDriver(max_sessions=5)
    for number in range(8):
        await driver.create(id_of(number), record())
        await driver.destroy(id_of(number), now=NOW + number)
    found = [await driver.load(id_of(number), now=NOW + 8) for number in range(8)]
    assert found == [None] * 3 + [Outcome.ENDED] * 5


async def test_a_tombstone_has_nothing_of_the_session() -> None:
    driver = await filled(10, 1)
    await driver.rename(id_of(0), id_of(1), record(), version=0, now=NOW)
    assert driver._tombstones[id_of(0)] == (NOW + TOMBSTONE, id_of(1))
    await driver.destroy(id_of(1), now=NOW)
    assert driver._tombstones[id_of(1)] == (NOW + TOMBSTONE, None)


# Other


async def test_closing_removes_everything() -> None:
    driver = await filled(10, 5)
    await driver.destroy(id_of(0), now=NOW)
    await driver.close()
    assert sizes(driver) == (0, 0, 0)


async def test_two_drivers_share_nothing() -> None:
    first, second = await filled(10, 1), MemoryDriver()
    assert await second.load(id_of(0), now=NOW) is None
    assert await is_there(first, 0)


async def test_the_store_has_the_id_and_never_the_raw_id() -> None:
    driver = MemoryDriver()
    async with serving(Site(driver, Clock())) as site:
        browser = site.browser()
        await browser.do(setting(key="value"))
        assert browser.token is not None
        verified = _sealing.Keyring([SECRET], site.cookie_name).verify_id(browser.token)
        assert verified is not None
        assert list(driver._sessions) == [_sealing.id_of(verified[0])]


async def test_values_in_memory_are_not_sealed_because_the_key_is_in_the_same_process() -> None:
    driver = MemoryDriver()
    async with serving(Site(driver, Clock())) as site:
        await site.browser().do(setting(key="value"))
        assert [kept.fields for kept in driver._sessions.values()] == [{"key": b"\xa5value"}]


async def test_a_subclass_with_a_load_of_its_own_loads_every_session(clock: Clock) -> None:
    loads: list[str] = []

    class Recording(MemoryDriver):
        async def load(self, id: str, *, now: float) -> Any:
            loads.append(id)
            return await super().load(id, now=now)

    async with serving(Site(Recording(), clock)) as site:
        browser = site.browser()
        await browser.do(setting(a=1))
        assert await browser.all() == {"a": 1}
    assert len(loads) == 1


async def test_a_request_that_reads_only_what_it_has_set_loads_nothing(clock: Clock) -> None:
    async def set_and_read(session: Session) -> Any:
        await session.set("a", 2)
        return await session.get("a"), await session.has("a")

    async with serving(Site(MemoryDriver(), clock)) as site:
        browser = site.browser()
        await browser.do(setting(a=1))
        assert await browser.do(set_and_read) == (2, True)
        assert site.sessions.counters.loaded == 0
        assert await browser.all() == {"a": 2}
