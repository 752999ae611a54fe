"""end_everyone(): all sessions of all users end at one instant, on every driver with a store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from time import monotonic
from typing import Any

import pytest

from gaman.session import (
    Driver,
    EveryoneDriver,
    Outcome,
    Record,
    Session,
    SessionIntegration,
    SessionStoreError,
    SessionUnsupported,
    session,
)
from gaman_session._clock import has_clock
from gaman_session._driver import MAX_FLIGHT, MAX_SKEW
from gaman_session.drivers import find_driver
from gaman_session.drivers._sqlite_sessions import SessionTables
from gaman_session.drivers.memory import MemoryDriver
from tests import servers
from tests.session.sites import SECRET, Clock, Site, Work, gaman_only, new_folder, of_its_own, serving, setting
from tests.session.test_redis_driver import NOW, Moving, new_id, opened, record

pytestmark = pytest.mark.anyio

OWNER = "user:1"


@pytest.fixture
async def site(own_store: Driver, clock: Clock) -> AsyncIterator[Site]:
    async with serving(Site(own_store, clock)) as opened_site:
        yield opened_site


async def end_everyone(site: Site) -> None:
    """End all sessions; the site's clock goes on meanwhile."""
    before = monotonic()
    await asyncio.sleep(0.005)
    site.clock.now += 0.005
    assert await site.sessions.end_everyone() is None  # type: ignore[func-returns-value]  # what users see
    site.clock.now += monotonic() - before


async def log_in(session: Session) -> None:
    await session.regenerate()
    await session.set("user", 1)
    await session.set_owner(OWNER)


async def test_every_visitor_is_logged_out_at_once_and_can_log_in_again(site: Site) -> None:
    visitors = [site.browser() for _ in range(4)]
    for visitor in visitors[:3]:
        await visitor.do(log_in)
    await visitors[3].do(setting(cart=[1]))
    assert await site.sessions.count() == 4
    await end_everyone(site)
    assert [await visitor.all() for visitor in visitors] == [{}] * 4
    assert (await site.sessions.count(), await site.sessions.count(OWNER), await site.sessions.list(OWNER)) == (0, 0, [])
    assert await site.sessions.end_all(OWNER) == 0
    for visitor in visitors:
        await visitor.do(log_in)
    assert [await visitor.all() for visitor in visitors] == [{"user": 1}] * 4
    assert await site.sessions.count(OWNER) == 4
    assert await site.sessions.end_all(OWNER) == 4


def ending(site: Site, *, before: Work | None = None, after: Work | None = None) -> Work:
    """Return work during which all sessions are ended."""

    async def work(session: Session) -> None:
        if before is not None:
            await before(session)
        await end_everyone(site)
        if after is not None:
            await after(session)

    return work


async def read(session: Session) -> None:
    assert await session.get("cart") == [1]


@pytest.mark.parametrize("before", [None, read, setting(other=1)], ids=["nothing", "read", "set"])
async def test_a_request_in_flight_loses_its_changes_and_sets_no_cookie(site: Site, before: Work | None) -> None:
    visitor = site.browser()
    await visitor.do(setting(cart=[1]))
    token = visitor.token
    reply = await site.request(ending(site, before=before, after=setting(late=1)), visitor.cookie)
    assert reply.set_cookie is None
    assert visitor.token == token
    assert await visitor.all() == {}
    assert await site.sessions.count() == 0


async def renew(session: Session) -> None:
    await session.regenerate()
    await session.set("user", 1)


@pytest.mark.parametrize("login", [log_in, renew], ids=["with an owner", "without an owner"])
@pytest.mark.parametrize("is_known", [True, False])
async def test_a_login_in_flight_is_dropped_and_a_later_one_lives(site: Site, login: Work, is_known: bool) -> None:
    visitor = site.browser()
    if is_known:
        await visitor.do(setting(cart=[1]))
    elif login is renew:
        pytest.skip("without an owner, a new session begins when it is stored")
    await site.request(ending(site, before=login), visitor.cookie)
    assert await site.sessions.count() == 0
    await visitor.do(log_in)
    assert await visitor.all() == {"user": 1}


async def test_another_process_sees_the_end_at_once_whatever_it_has_seen_before(clock: Clock, own_store: Any) -> None:
    if isinstance(own_store, MemoryDriver):
        pytest.skip("its sessions are in one process")
    other: Any = find_driver(own_store.name)(**options_of(own_store))
    async with serving(Site(own_store, clock)) as site, serving(Site(other, clock)) as elsewhere:
        reader, writer, leaver = [elsewhere.browser() for _ in range(3)]
        for each in (reader, writer, leaver):
            await each.do(setting(cart=[1], other=2))
        await end_everyone(site)
        # Each of these is the first call of its kind in a process that hasn't read anything since.
        await writer.do(setting(cart=[2]))
        await leaver.do(deleting)
        newcomer = elsewhere.browser()
        await newcomer.do(log_in)
        assert await newcomer.all() == {"user": 1}
        assert (await reader.all(), await writer.all(), await leaver.all()) == ({}, {}, {})
        assert (await elsewhere.sessions.count(), await site.sessions.count()) == (1, 1)


async def deleting(session: Session) -> None:
    await session.delete("cart")


def options_of(driver: Any) -> dict[str, Any]:
    """Return the options with which another process opens the same store."""
    if driver.name == "redis":
        return {"url": servers.redis_cluster_url() if driver._is_cluster else servers.redis_url(), "prefix": driver._prefix}
    if driver.name == "mongodb":
        return {"uri": driver._uri, "db_name": driver._db_name, "collection": driver._collection}
    return {"file": driver._file} if driver.name == "sql" else {"dir": driver._folder.dir}


async def test_sessions_under_another_prefix_or_in_another_collection_stay(site: Site, own_store: Driver, clock: Clock) -> None:
    kind = "redis cluster" if getattr(own_store, "_is_cluster", False) else own_store.name
    other = Site(of_its_own(kind), clock)
    async with serving(other):
        visitor = other.browser()
        await visitor.do(setting(cart=[1]))
        await site.sessions.end_everyone()
        assert await visitor.all() == {"cart": [1]}


async def test_it_survives_a_restart(own_store: Any, clock: Clock) -> None:
    if isinstance(own_store, MemoryDriver):
        pytest.skip("its sessions don't")
    async with serving(Site(own_store, clock)) as site:
        visitor = site.browser()
        await visitor.do(setting(cart=[1]))
        await site.sessions.end_everyone()
    async with serving(site):
        assert await visitor.all() == {}
        clock.now += 3600
        assert await visitor.all() == {}


@gaman_only
async def test_the_cookies_driver_says_what_to_do_in_its_place() -> None:
    sessions = session(SECRET)
    with pytest.raises(SessionUnsupported) as raised:
        await sessions.end_everyone()
    assert str(raised.value) == (
        "the cookies driver doesn't support end_everyone(); "
        "take a new secret and remove the old one, which ends all sessions in cookies"
    )


async def test_a_driver_without_the_call_is_named() -> None:
    class Older(MemoryDriver):
        name = "older"
        end_everyone = None  # type: ignore[assignment]  # as if it had none

    with pytest.raises(SessionUnsupported) as raised:
        await session(SECRET, Older()).end_everyone()
    assert str(raised.value) == "the older driver doesn't support end_everyone(); add it to the driver as EveryoneDriver says"


async def test_a_failure_of_the_store_is_counted_and_raised(clock: Clock) -> None:
    class Failing(MemoryDriver):
        async def end_everyone(self, *, now: float) -> None:
            raise SessionStoreError("memory", "end all sessions")

    sessions: SessionIntegration = Site(Failing(), clock).sessions
    with pytest.raises(SessionStoreError, match=r"could not end all sessions$"):
        await sessions.end_everyone()
    assert sessions.counters.store_errors == 1


async def test_the_rows_of_ended_sessions_leave_sqlite_in_batches() -> None:
    driver: Any = find_driver("sql")(file=new_folder() / "sessions.db")
    await driver.open()
    ids = [f"{number:064x}" for number in range(120)]
    for id in ids[::2]:
        await driver.create(id, at(1000.0))
    await driver.end_everyone(now=1000.5)
    for id in ids[1::2]:
        await driver.create(id, at(1001.0))
    assert await driver.purge(now=1030.0, limit=1000) == 0
    removed = [await driver.purge(now=1062.0, limit=20) for _ in range(12)]
    assert (sum(removed), max(removed) <= 20) == (60, True)
    assert await driver.count(now=1062.0) == 60
    assert await driver._reader.call(SessionTables._swept) is None
    await driver.close()


def at(created: float) -> Record:
    return Record({"a": b"1"}, created, created + 5000, created + 5000)


async def test_a_damaged_ending_of_the_file_driver_is_a_failure_of_the_store() -> None:
    folder = new_folder() / "sessions"
    driver: Any = find_driver("file")(dir=folder)
    await driver.open()
    await driver.create("a" * 64, at(1000.0))
    await driver.end_everyone(now=1001.0)
    (folder / "ending").write_bytes(b"damaged")
    with pytest.raises(SessionStoreError) as raised:
        await driver.load("a" * 64, now=1002.0)
    assert "is damaged; remove it with the sessions, or restore it" in str(raised.value.__cause__)
    await driver.close()


async def test_a_redis_whose_ending_is_no_hash_is_a_failure_of_the_store() -> None:
    async with opened(prefix=f"{new_id()}:") as driver:
        id = new_id()
        await driver.create(id, record(n=b"1"))
        await driver._client.set(f"{driver._prefix}ending", "no hash")
        # A load by itself, and loads that share a command.
        for loads in (1, 3):
            results = await asyncio.gather(*(driver.load(id, now=NOW) for _ in range(loads)), return_exceptions=True)
            assert all(isinstance(each, SessionStoreError) and "WRONGTYPE" in str(each.__cause__) for each in results)
        await driver._client.delete(f"{driver._prefix}ending")
        assert isinstance(await driver.load(id, now=NOW), Record)


@pytest.mark.parametrize("is_ending_moved", [False, True])
async def test_a_slot_of_a_cluster_may_move_while_all_sessions_end(is_ending_moved: bool) -> None:
    with Moving(0) as moving:
        async with opened(url=moving.url) as driver:
            everyone: EveryoneDriver = driver
            staying, moved, new = ([moving.new_id() for _ in range(3)] for _ in range(3))
            now = record().created
            await asyncio.gather(*(driver.create(id, record(n=b"1")) for id in (*staying, *moved)))
            for is_moving in (False, True):
                await everyone.end_everyone(now=now)
                for id in (*staying, *moved, *new):
                    assert not isinstance(await driver.load(id, now=now), Record)
                    outcome = await driver.apply(id, {"n": b"2"}, (), now=now, deadline=None, max_size=1000)
                    assert outcome.name in ("ENDED", "ABSENT")
                if not is_moving:
                    moving.begin()
                    keys = [driver._keyspace.key(id) for id in moved]
                    moving.move(*keys, *([f"{keys[0][:-64]}ending"] if is_ending_moved else []))
                    for id in new:
                        later = record(n=b"1")
                        later.created = now + 8
                        await driver.create(id, later)
                        assert isinstance(await driver.load(id, now=now + 9), Record)
                    for id in (*staying, *moved):
                        assert await driver.load(id, now=now) is Outcome.ENDED
            moving.end()


async def test_a_collection_that_was_emptied_has_no_ending_any_more() -> None:
    driver: Any = of_its_own("mongodb")
    other: Any = find_driver("mongodb")(**options_of(driver))
    await driver.open()
    await driver.end_everyone(now=(created := record().created))
    await driver._sessions.delete_many({})
    # Another process, which has seen no ending, stores a session.
    await other.create("a" * 64, at(created + 1))
    assert isinstance(await driver.load("a" * 64, now=created + 2), Record)
    await driver.close()
    await other.close()


@pytest.mark.parametrize("back", [0.5, 2, 5, 3600])
async def test_a_later_session_lives_although_the_clock_was_set_back(site: Site, own_store: Driver, back: float) -> None:
    if has_clock(own_store) and MAX_SKEW < back < MAX_FLIGHT:
        pytest.skip("the server's clock isn't set back with the machine's")
    old, visitor, user = site.browser(), site.browser(), site.browser()
    await old.do(log_in)
    await end_everyone(site)
    site.clock.now -= back
    await visitor.do(setting(cart=[1]))
    await user.do(log_in)
    assert (await old.all(), await visitor.all(), await user.all()) == ({}, {"cart": [1]}, {"user": 1})
    await old.do(log_in)
    assert await old.all() == {"user": 1}


@pytest.mark.parametrize("own_store", ["file", "sql"], indirect=True)
@pytest.mark.parametrize("back", [0.5, 2, 5])
async def test_another_process_drops_a_session_for_a_second_at_most_and_logs_it(
    site: Site, own_store: Any, back: float, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Site(find_driver(own_store.name)(**options_of(own_store)), site.clock)) as elsewhere:
        await site.sessions.end_everyone()
        site.clock.now -= back
        for work, stored in ((setting(cart=[1]), {"cart": [1]}), (log_in, {"user": 1})):
            caplog.clear()
            await (browser := elsewhere.browser()).do(work)
            is_dropped = back < MAX_SKEW
            assert await browser.all() == ({} if is_dropped else stored)
            assert ("what this request changed was dropped" in caplog.text) is is_dropped
        site.clock.now += 0.5
        await (browser := elsewhere.browser()).do(log_in)
        assert await browser.all() == {"user": 1}
