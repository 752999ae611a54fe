"""A driver that derives from KeyValueDriver keeps the whole contract, whatever its lock is and wherever it is interrupted."""

from __future__ import annotations

import asyncio
import math
import sqlite3
import types
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest

from gaman import ConfigError
from gaman.session import TOMBSTONE, KeyValueDriver, Outcome, Ownership, Record, SessionStoreError
from gaman.session.testing import CONTRACT, EVERYONE_CONTRACT, OWNER_CONTRACT, EveryoneCheck
from gaman_session.drivers._encoding import encode
from tests.session.sites import Clock, Site, getting, serving, setting
from tests.test_readme import blocks

pytestmark = pytest.mark.anyio

CHECKS: list[EveryoneCheck] = [*CONTRACT, *OWNER_CONTRACT, *EVERYONE_CONTRACT]
GUIDE = "integrations/gaman_session/README.md"
NOW = 1_800_000_000.0
ID, OTHER = "a" * 64, "b" * 64


def record(owner: str | None = None, *, lasts: float = 1000, since: float = NOW) -> Record:
    ownership = None if owner is None else Ownership(owner, b"", since)
    return Record({"key": b"value"}, NOW, NOW + lasts, NOW + lasts, ownership=ownership)


class DictDriver(KeyValueDriver):
    """Keeps its items in a dict; other tasks run between any two steps."""

    name = "dict"
    shared = False

    def __init__(self, *, timeout: float = 5) -> None:
        super().__init__(timeout=timeout)
        self.items: dict[str, tuple[bytes, float]] = {}
        self.steps: list[tuple[str, str]] = []
        self._lock = asyncio.Lock()

    async def get(self, key: str) -> bytes | None:
        await asyncio.sleep(0)
        return self.items[key][0] if key in self.items else None

    async def put(self, key: str, data: bytes, expires: float) -> None:
        await self._step("put", key)
        self.items[key] = data, expires

    async def delete(self, key: str) -> None:
        await self._step("delete", key)
        self.items.pop(key, None)

    async def keys(self, before: float) -> AsyncIterator[str]:
        for key in [key for key, (_, expires) in self.items.items() if expires <= before]:
            yield key

    def lock(self, keys: Sequence[str]) -> AbstractAsyncContextManager[object]:
        return self._lock

    async def _step(self, kind: str, key: str) -> None:
        await asyncio.sleep(0)
        self.steps.append((kind, key))


class LockingEachKey(DictDriver):
    """Has a lock for each key."""

    def __init__(self) -> None:
        super().__init__()
        self._locks: dict[str, asyncio.Lock] = {}

    def lock(self, keys: Sequence[str]) -> AbstractAsyncContextManager[object]:
        return self._hold(keys)

    @asynccontextmanager
    async def _hold(self, keys: Sequence[str]) -> AsyncGenerator[None, None]:
        locks = [self._locks.setdefault(key, asyncio.Lock()) for key in keys]
        for lock in locks:
            await lock.acquire()
        try:
            yield
        finally:
            for lock in locks:
                lock.release()


class NamingItsOwn(DictDriver):
    """Has private names that a base class might use itself."""

    _get = _put = _write = _purge = _timeout = _damage = _prune = _key = None


@pytest.fixture(params=["the guide's", "one lock", "a lock for each key", "names of its own"])
def driver(request: pytest.FixtureRequest, tmp_path: Path) -> KeyValueDriver:
    if request.param == "the guide's":
        return _from_the_guide(tmp_path)
    kinds: dict[str, type[DictDriver]] = {
        "one lock": DictDriver,
        "a lock for each key": LockingEachKey,
        "names of its own": NamingItsOwn,
    }
    return kinds[str(request.param)]()


def _guide_code() -> str:
    [code] = [block.code for block in blocks(GUIDE, "python") if "(KeyValueDriver)" in block.code]
    return code


def _from_the_guide(folder: Path) -> KeyValueDriver:
    """Return the driver that the guide shows, made from exactly its code."""
    module = types.ModuleType("table_driver")
    exec(_guide_code(), module.__dict__)
    made: KeyValueDriver = module.__dict__["TableDriver"](str(folder / "app.db"))
    return made


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
async def test_each_driver_keeps_the_contract(check: EveryoneCheck, driver: KeyValueDriver) -> None:
    await driver.open()
    try:
        await check(driver)
    finally:
        await driver.close()


async def test_checks_may_share_a_store(driver: KeyValueDriver) -> None:
    await driver.open()
    for check in [*CONTRACT, *OWNER_CONTRACT] * 2:
        await check(driver)
    await driver.close()


def test_the_guides_driver_is_short() -> None:
    assert len(_guide_code().splitlines()) <= 80


async def test_the_guides_driver_serves_a_site_and_keeps_its_sessions_over_a_restart(tmp_path: Path) -> None:
    cookie = None
    for value in (None, "kept"):
        async with serving(Site(_from_the_guide(tmp_path), Clock())) as site:
            browser = site.browser(cookie)
            assert await browser.do(getting("key")) == value
            await browser.do(setting(key="kept"))
            cookie = browser.token


async def test_processes_share_the_guides_table(tmp_path: Path) -> None:
    drivers = [_from_the_guide(tmp_path) for _ in range(3)]
    for each in drivers:
        await each.open()
    await drivers[0].create(ID, record())
    writes = [
        each.apply(ID, {f"{index} {number}": b"1"}, (), now=NOW, deadline=None, max_size=10_000)
        for number in range(10)
        for index, each in enumerate(drivers)
    ]
    assert {*await asyncio.gather(*writes)} == {Outcome.WRITTEN}
    found = await drivers[1].load(ID, now=NOW)
    assert isinstance(found, Record)
    assert (len(found.fields), found.version) == (31, 30)
    for each in drivers:
        await each.close()


async def test_a_write_that_is_cancelled_twice_leaves_the_guides_table_to_other_processes(tmp_path: Path) -> None:
    driver = _from_the_guide(tmp_path)
    await driver.open()
    other = sqlite3.connect(tmp_path / "app.db", isolation_level=None, timeout=0)
    other.execute("BEGIN IMMEDIATE")
    write = asyncio.create_task(driver.create(ID, record()))
    # The driver's thread waits for the other process, as when a timeout and the time limit follow each other.
    for _ in range(2):
        await asyncio.sleep(0.1)
        write.cancel()
    with pytest.raises(asyncio.CancelledError):
        await write
    other.execute("COMMIT")
    with anyio.fail_after(25):
        # The driver's thread may still be about to take the lock and return it.
        while not other.in_transaction:
            await asyncio.sleep(0.1)
            with suppress(sqlite3.OperationalError):
                other.execute("BEGIN IMMEDIATE")
    other.close()
    assert await driver.load(ID, now=NOW) is None
    await driver.close()


# Failures


async def test_any_failure_of_the_store_is_reported_with_its_cause() -> None:
    class Failing(DictDriver):
        async def get(self, key: str) -> bytes | None:
            raise LookupError("the library's own")

    driver = Failing()
    for call, action in (
        (driver.load(ID, now=NOW), "load a session"),
        (driver.destroy(ID, now=NOW), "end a session"),
        (driver.owned("owner", now=NOW), "list the sessions of an owner"),
    ):
        with pytest.raises(SessionStoreError, match=rf"\(dict\) could not {action}") as raised:
            await call
        assert isinstance(raised.value.__cause__, LookupError)


async def test_a_call_that_takes_too_long_fails_in_time_and_lets_go_of_the_lock() -> None:
    driver = DictDriver(timeout=0.5)
    await driver.create(ID, record())
    async with driver._lock:
        with pytest.raises(SessionStoreError) as raised:
            await driver.destroy(ID, now=NOW)
        assert "did not answer for 0.5 seconds" in str(raised.value.__cause__)
        assert await driver.load(ID, now=NOW) == record()
    await driver.destroy(ID, now=NOW)
    assert await driver.load(ID, now=NOW) is Outcome.ENDED


@pytest.mark.parametrize("timeout", [0, -1, "5", math.nan])
def test_a_timeout_is_a_number_of_seconds(timeout: Any) -> None:
    with pytest.raises(ConfigError, match="the dict driver has timeout="):
        DictDriver(timeout=timeout)


async def test_damaged_bytes_are_reported_once_and_count_as_absent(caplog: pytest.LogCaptureFixture) -> None:
    driver = DictDriver()
    await driver.create(ID, record("owner"))
    driver.items |= {key: (data[:-1], expires) for key, (data, expires) in driver.items.items()}
    for _ in range(2):
        assert await driver.load(ID, now=NOW) is None
        assert await driver.owned("owner", now=NOW) == {}
    assert len(caplog.records) == 2
    await driver.create(ID, record("owner"))
    assert await driver.owned("owner", now=NOW) == {ID: record("owner")}


class Interrupted(Exception):
    """The process ends here."""


WRITES: dict[str, Callable[[DictDriver], Awaitable[object]]] = {
    "create": lambda driver: driver.create(OTHER, record("owner")),
    "rename": lambda driver: driver.rename(ID, OTHER, record("owner"), version=0, now=NOW),
    "rename to another owner": lambda driver: driver.rename(ID, OTHER, record("other"), version=0, now=NOW),
    "set an owner": lambda driver: driver.set_owner(
        ID, Ownership("other", b"", NOW), {}, (), now=NOW, deadline=None, max_size=1000
    ),
    "destroy": lambda driver: driver.destroy(ID, now=NOW),
}


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
async def test_a_write_that_is_interrupted_leaves_one_session_at_most_and_the_index_misses_none(
    write: Callable[[DictDriver], Awaitable[object]],
) -> None:
    for steps in range(8):
        driver = DictDriver()
        await driver.create(ID, record("owner"))

        async def step(kind: str, key: str, *, limit: int = steps, driver: DictDriver = driver) -> None:
            if len(driver.steps) == limit:
                raise Interrupted
            driver.steps.append((kind, key))

        driver.steps.clear()
        driver._step = step  # type: ignore[method-assign] # the step that fails
        try:
            await write(driver)
        except SessionStoreError as error:
            cause = error.__cause__
        else:
            cause = None
        assert cause is None or isinstance(cause, Interrupted)
        del driver._step
        found = {id: stored for id in (ID, OTHER) if isinstance(stored := await driver.load(id, now=NOW), Record)}
        if write is not WRITES["create"]:
            assert len(found) <= 1
        listed = {**await driver.owned("owner", now=NOW), **await driver.owned("other", now=NOW)}
        assert listed == found
        if len(driver.steps) < steps:
            return
    raise AssertionError("the write has more steps than were tried")


# The end of all sessions


@pytest.mark.parametrize("write", WRITES.values(), ids=WRITES)
async def test_no_session_outlives_an_end_of_everyone_whatever_step_of_a_write_it_meets(
    write: Callable[[DictDriver], Awaitable[object]],
) -> None:
    class Ending(LockingEachKey):
        """Ends all sessions before its call number *at* of the store."""

        calls, at = 0, -1

        async def get(self, key: str) -> bytes | None:
            await self._count()
            return await super().get(key)

        async def _step(self, kind: str, key: str) -> None:
            await self._count()

        async def _count(self) -> None:
            self.calls += 1
            if self.calls == self.at:
                await asyncio.create_task(self.end_everyone(now=NOW + 0.5))

    for at in range(1, 30):
        driver = Ending()
        await driver.create(ID, record("owner"))
        driver.calls, driver.at = 0, at
        await write(driver)
        if driver.calls < at:
            assert at > 3
            return
        for id in (ID, OTHER):
            assert not isinstance(await driver.load(id, now=NOW + 1), Record), at
        assert await driver.count(now=NOW + 1) == 0
        assert [await driver.owned(owner, now=NOW + 1) for owner in ("owner", "other")] == [{}, {}]
    raise AssertionError("the write has more calls than were tried")


async def test_the_end_of_everyone_is_one_write_whatever_the_number_of_sessions() -> None:
    driver = DictDriver()
    for number in range(100):
        await driver.create(f"{number:064x}", record("owner"))
    driver.steps.clear()
    await driver.end_everyone(now=NOW)
    assert driver.steps == [("put", "ending")]
    assert await driver.count(now=NOW) == 0


async def test_sessions_stored_before_there_was_an_end_of_everyone_live_until_the_first() -> None:
    driver = DictDriver()
    driver.items[ID] = encode(ID, record()), NOW + 1000
    assert await driver.apply(ID, {"key": b"new"}, (), now=NOW, deadline=None, max_size=1000) is Outcome.WRITTEN
    found = await driver.load(ID, now=NOW)
    assert isinstance(found, Record)
    assert (found.fields, found.version) == ({"key": b"new"}, 1)
    await driver.end_everyone(now=NOW)
    assert await driver.load(ID, now=NOW) is Outcome.ENDED


async def test_processes_share_the_end_of_everyone_in_the_guides_table(tmp_path: Path) -> None:
    clock = Clock()
    async with serving(Site(_from_the_guide(tmp_path), clock)) as site, serving(Site(_from_the_guide(tmp_path), clock)) as other:
        browser = other.browser()
        await browser.do(setting(key="value"))
        await site.sessions.end_everyone()
        assert await browser.do(getting("key")) is None
        later = other.browser()
        await later.do(setting(key="new"))
        assert await later.do(getting("key")) == "new"
        assert await site.sessions.count() == 1


async def test_no_purge_removes_the_end_of_everyone_even_if_the_store_yields_its_key() -> None:
    class YieldingAll(DictDriver):
        async def keys(self, before: float) -> AsyncIterator[str]:
            for key in [*self.items]:
                yield key

    driver = YieldingAll()
    await driver.create(ID, record())
    await driver.end_everyone(now=NOW)
    assert await driver.purge(now=NOW, limit=10) == 0
    assert await driver.load(ID, now=NOW) is Outcome.ENDED


async def test_sessions_that_were_ended_with_all_leave_their_owners_entry_when_it_is_listed() -> None:
    driver = DictDriver()
    await driver.create(ID, record("owner"))
    await driver.end_everyone(now=NOW)
    assert await driver.owned("owner", now=NOW) == {}
    assert {*driver.items} == {ID, "ending"}


async def test_a_damaged_end_of_everyone_is_a_failure_of_the_store() -> None:
    driver = DictDriver()
    await driver.create(ID, record())
    await driver.end_everyone(now=NOW)
    driver.items["ending"] = b"damaged", math.inf
    for call in (driver.load(ID, now=NOW), driver.create(OTHER, record()), driver.end_everyone(now=NOW)):
        with pytest.raises(SessionStoreError) as raised:
            await call
        assert "'ending' is damaged; remove it with the sessions, or restore it" in str(raised.value.__cause__)


# What is left


async def test_nothing_is_left_of_sessions_and_owners_that_have_expired() -> None:
    driver = DictDriver()
    await driver.create(ID, record("owner"))
    await driver.create(OTHER, record("owner", lasts=2000))
    await driver.end_owned("other", keep=(), now=NOW)
    assert len(driver.items) == 4
    assert await driver.purge(now=NOW + 999, limit=10) == 0
    assert len(driver.items) == 3
    assert await driver.purge(now=NOW + 1000, limit=10) == 1
    assert await driver.owned("owner", now=NOW + 1000) == {OTHER: record("owner", lasts=2000)}
    assert await driver.purge(now=NOW + 2000, limit=10) == 1
    assert driver.items == {}


async def test_a_session_that_ends_leaves_its_owners_entry() -> None:
    driver = DictDriver()
    for end in ("destroy", "apply", "another owner", "none"):
        await driver.create(ID, record("owner"))
        [entry] = [key for key in driver.items if key != ID]
        if end == "destroy":
            await driver.destroy(ID, now=NOW)
        elif end == "apply":
            await driver.apply(ID, {}, ["key"], now=NOW, deadline=None, max_size=1000)
        else:
            ownership = Ownership("other", b"", NOW) if end == "another owner" else None
            await driver.set_owner(ID, ownership, {}, (), now=NOW, deadline=None, max_size=1000)
        assert entry not in driver.items
        driver.items.clear()


@pytest.mark.parametrize("kind", [DictDriver, LockingEachKey])
async def test_a_session_that_comes_back_to_its_owner_meanwhile_stays_in_the_index(kind: type[DictDriver]) -> None:
    driver, ownership = kind(), Ownership("owner", b"", NOW)
    await driver.create(ID, record("owner"))
    for owner in (None, Ownership("other", b"", NOW)):
        for _ in range(20):
            outcomes = await asyncio.gather(
                driver.set_owner(ID, owner, {}, (), now=NOW, deadline=None, max_size=1000),
                driver.set_owner(ID, ownership, {}, (), now=NOW, deadline=None, max_size=1000),
            )
            assert {*outcomes} == {Outcome.WRITTEN}
            assert [*await driver.owned("owner", now=NOW)] == [ID]


async def test_a_session_whose_deadline_an_earlier_call_moves_stays_in_the_index() -> None:
    driver = DictDriver()
    await driver.create(ID, Record({"key": b"value"}, NOW, NOW + 1000, NOW + 10, ownership=Ownership("owner", b"", NOW)))
    assert await driver.owned("owner", now=NOW + 10) == {}
    assert await driver.apply(ID, {}, (), now=NOW + 9, deadline=NOW + 500, max_size=1000) is Outcome.WRITTEN
    assert [*await driver.owned("owner", now=NOW + 10)] == [ID]


async def test_a_purge_removes_no_session_whose_deadline_moves_meanwhile() -> None:
    driver = DictDriver()
    await driver.create(ID, Record({"key": b"value"}, NOW, NOW + 1000, NOW + 10))
    async with driver._lock:
        purging = asyncio.ensure_future(driver.purge(now=NOW + 10, limit=10))
        while not driver._lock._waiters:
            await asyncio.sleep(0)
        other = DictDriver()
        other.items = driver.items
        assert await other.apply(ID, {}, (), now=NOW, deadline=NOW + 500, max_size=1000) is Outcome.WRITTEN
    assert await purging == 0
    assert isinstance(await driver.load(ID, now=NOW + 100), Record)


async def test_a_tombstone_expires_after_a_minute() -> None:
    driver = DictDriver()
    await driver.create(ID, record())
    await driver.destroy(ID, now=NOW)
    assert [expires for _, expires in driver.items.values()] == [NOW + TOMBSTONE]
