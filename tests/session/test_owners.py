"""The sessions of an owner are listed and ended from anywhere, and the store doesn't learn the owner."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from datetime import UTC, datetime
from secrets import token_hex
from typing import Any

import pytest

from gaman import App, Context
from gaman.errors import ConfigError
from gaman.session import (
    TOMBSTONE,
    Driver,
    Outcome,
    OwnedSession,
    Ownership,
    Record,
    Session,
    SessionIntegration,
    SessionSerializationError,
    SessionUnsupported,
    SessionUseError,
    session,
)
from gaman.testing import TestClient
from gaman_session.drivers import find_driver
from gaman_session.drivers._redis_keyspace import Keyspace
from gaman_session.drivers.file import FileDriver
from gaman_session.drivers.memory import MemoryDriver
from gaman_session.drivers.redis import RedisDriver
from gaman_session.drivers.sql import SQLDriver
from tests import servers
from tests.session.sites import DRIVERS, SECRET, Browser, Clock, Reply, Sealing, Site, Work, new_folder, opened, serving, setting

pytestmark = pytest.mark.anyio

OWNER = "user:1"


def _unshared(kind: str, **options: Any) -> Driver:
    """A driver whose store has only this test's sessions."""
    return find_driver(kind)(**options)


STORES: dict[str, Callable[[], Driver | None]] = {
    **{name: make for name, make in DRIVERS.items() if "cookies" not in name},
    "redis": lambda: _unshared("redis", url=servers.redis_url(), prefix=f"{token_hex(8)}:"),
    "redis cluster": lambda: _unshared("redis", url=servers.redis_cluster_url(), prefix=f"{token_hex(8)}:"),
    "mongodb": lambda: _unshared("mongodb", uri=servers.mongodb_uri(), db_name="gaman_test", collection=f"owners_{token_hex(8)}"),
}


@pytest.fixture(params=STORES)
def store(request: pytest.FixtureRequest) -> Driver:
    driver = STORES[request.param]()
    assert driver is not None
    return driver


@pytest.fixture
async def site(store: Driver, clock: Clock) -> AsyncIterator[Site]:
    async with serving(Site(store, clock)) as opened:
        yield opened


def logging_in(owner: str | None = OWNER, note: Any = None) -> Work:
    async def work(session: Session) -> None:
        await session.regenerate()
        await session.set("user", 1)
        await session.set_owner(owner, note=note)

    return work


async def log_out(session: Session) -> None:
    await session.clear()


async def renew(session: Session) -> None:
    await session.regenerate()


async def handle_of(session: Session) -> str | None:
    return session.id


async def logged_in(site: Site, owner: str = OWNER, note: Any = None) -> Browser:
    browser = site.browser()
    await browser.do(logging_in(owner, note))
    site.clock.now += 1
    return browser


async def handles(site: Site, owner: str = OWNER) -> list[str]:
    return [each.handle for each in await site.sessions.list(owner)]


# Listing and counting


async def test_a_list_has_each_session_in_the_order_of_the_logins(store: Driver, clock: Clock) -> None:
    async with serving(Site(store, clock, idle_timeout=600)) as site:
        began = clock.now
        phone, desk = await logged_in(site, note={"device": "a phone"}), await logged_in(site)
        await logged_in(site, "user:2")
        clock.now = began + 100
        await phone.all()
        first, second = await site.sessions.list(OWNER)
        assert first == OwnedSession(
            handle=await phone.do(handle_of),
            created_at=datetime.fromtimestamp(began, UTC),
            last_used_at=datetime.fromtimestamp(began + 100, UTC),
            expires_at=datetime.fromtimestamp(began + 700, UTC),
            note={"device": "a phone"},
        )
        assert (second.handle, second.note) == (await desk.do(handle_of), None)
        assert await site.sessions.list("user:3") == []


async def test_without_an_idle_limit_the_last_use_is_unknown(site: Site) -> None:
    await logged_in(site)
    assert [each.last_used_at for each in await site.sessions.list(OWNER)] == [None]


async def test_expired_and_ended_sessions_are_not_listed(site: Site) -> None:
    browsers = [await logged_in(site) for _ in range(3)]
    assert await site.sessions.count(OWNER) == 3
    await browsers[0].do(log_out)
    assert await handles(site) == [await browser.do(handle_of) for browser in browsers[1:]]
    site.clock.now += 86_400
    assert (await site.sessions.list(OWNER), await site.sessions.count(OWNER)) == ([], 0)


async def test_all_sessions_are_counted_whether_they_have_an_owner_or_not(site: Site) -> None:
    before = await site.sessions.count()
    browser = await logged_in(site)
    await site.browser().do(setting(key="value"))
    assert await site.sessions.count() == before + 2
    await browser.do(log_out)
    assert await site.sessions.count() == before + 1


# Setting an owner


async def test_an_owner_and_its_note_survive_a_new_id(site: Site) -> None:
    browser = await logged_in(site, note="a phone")
    await browser.do(renew)
    await browser.do(renew)
    [listed] = await site.sessions.list(OWNER)
    assert (listed.handle, listed.note) == (await browser.do(handle_of), "a phone")
    assert await site.sessions.end_all(OWNER) == 1
    assert await browser.all() == {}


async def test_an_existing_session_gets_an_owner_with_or_without_a_new_id(site: Site) -> None:
    async def own(session: Session) -> None:
        await session.set_owner(OWNER, note="noted")
        await session.set("more", 1)

    for login in (own, logging_in()):
        browser = site.browser()
        await browser.do(setting(cart=[1]))
        await browser.do(login)
        assert await handles(site) == [await browser.do(handle_of)]
        assert (await browser.all())["cart"] == [1]
        site.clock.now += 1
        await site.sessions.end_all(OWNER)
        assert await browser.all() == {}


async def test_a_session_loses_its_owner_and_gets_another_one(site: Site) -> None:
    async def own(session: Session) -> None:
        await session.set_owner("user:2")

    async def untag(session: Session) -> None:
        await session.set_owner(None)

    browser = await logged_in(site)
    await browser.do(own)
    assert (await handles(site), len(await handles(site, "user:2"))) == ([], 1)
    await browser.do(untag)
    assert await handles(site, "user:2") == []
    await browser.do(renew)
    assert await browser.all() == {"user": 1}


async def test_the_last_call_of_a_request_counts_and_a_note_is_encoded_at_once(site: Site) -> None:
    note = {"device": "a phone"}

    async def log_in(session: Session) -> None:
        await session.set("user", 1)
        await session.set_owner("user:2")
        await session.set_owner(OWNER, note=note)
        note["device"] = "another"
        await session.save()

    await site.browser().do(log_in)
    assert await site.sessions.list("user:2") == []
    assert [each.note for each in await site.sessions.list(OWNER)] == [{"device": "a phone"}]


async def test_an_owner_without_a_key_begins_no_session_and_keeps_none(site: Site) -> None:
    async def own(session: Session) -> None:
        await session.set_owner(OWNER)

    async def tag_and_count(session: Session) -> None:
        await session.set_owner(OWNER)
        await session.update("count", lambda count: count + 1, 0)

    browser = site.browser()
    reply = await browser.request(own)
    assert (reply.status, reply.set_cookie) == (200, None)
    assert await handles(site) == []
    await browser.do(tag_and_count)
    assert await handles(site) == [await browser.do(handle_of)]

    async def delete(session: Session) -> None:
        await session.delete("count")

    await browser.do(delete)
    assert browser.token is None
    assert await handles(site) == []


async def test_a_request_that_fails_or_logs_out_sets_no_owner(site: Site) -> None:
    async def fail(session: Session) -> None:
        await logging_in()(session)
        raise RuntimeError("on purpose")

    async def log_in_and_out(session: Session) -> None:
        await logging_in()(session)
        await session.clear()
        await session.set("key", "value")

    await site.browser().request(fail)
    await site.browser().do(log_in_and_out)
    assert await handles(site) == []


@pytest.mark.parametrize("owner", ["", 7, b"user:1", "\ud800"])
async def test_an_invalid_owner_raises_at_the_line_that_named_it(site: Site, owner: Any) -> None:
    async def own(session: Session) -> None:
        with pytest.raises(ValueError, match=r"owner|surrogates"):
            await session.set_owner(owner)

    await site.browser().do(own)
    for call in (site.sessions.list, site.sessions.end_all):
        with pytest.raises(ValueError, match=r"owner|surrogates"):
            await call(owner)


async def test_a_note_that_cannot_be_encoded_raises(site: Site) -> None:
    async def own(session: Session) -> None:
        with pytest.raises(SessionSerializationError, match="note"):
            await session.set_owner(OWNER, note=object())

    await site.browser().do(own)


# Ending


async def test_a_session_in_the_place_of_its_handle_raises(site: Site) -> None:
    async def end(session: Session) -> None:
        with pytest.raises(SessionUseError, match="takes a handle"):
            await site.sessions.end(session)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

    await site.browser().do(end)


async def test_a_session_is_ended_by_its_handle_once(site: Site) -> None:
    phone, desk = await logged_in(site), await logged_in(site)
    handle = await phone.do(handle_of)
    assert await site.sessions.end(handle) is True
    assert await site.sessions.end(handle) is False
    assert (await phone.all(), await desk.all()) == ({}, {"user": 1})
    for unknown in ("0" * 64, "", "../../etc/passwd", handle.upper(), f"{handle}\n"):
        assert await site.sessions.end(unknown) is False


async def test_a_session_that_expired_after_regenerate_does_not_count_as_ended(store: Driver, clock: Clock) -> None:
    async with serving(Site(store, clock, idle_timeout=600)) as site:
        browser = await logged_in(site)
        await browser.do(renew)
        clock.now += 600
        assert await site.sessions.end_all(OWNER) == 0


async def test_all_but_the_session_to_keep_are_ended_in_every_process(store: Driver, clock: Clock, site: Site) -> None:
    other = Site(opened(store), clock)
    async with serving(other):
        browsers = [await logged_in(site) for _ in range(3)]
        other_user = await logged_in(site, "user:2")

        async def end_others(session: Session) -> int:
            return await other.sessions.end_all(OWNER, keep=session)

        assert await Browser(other, browsers[1].token).do(end_others) == 2
        assert [await browser.all() for browser in browsers] == [{}, {"user": 1}, {}]
        assert await other_user.all() == {"user": 1}
        await browsers[1].do(renew)
        assert await browsers[1].all() == {"user": 1}


async def test_a_login_that_ends_all_others_is_kept(site: Site) -> None:
    async def log_in_alone(session: Session) -> int:
        await logging_in()(session)
        return await site.sessions.end_all(OWNER, keep=session)

    browsers = [await logged_in(site) for _ in range(2)]
    assert await browsers[0].do(log_in_alone) == 1
    fresh = site.browser()
    assert await fresh.do(log_in_alone) == 1
    assert [await browser.all() for browser in (*browsers, fresh)] == [{}, {}, {"user": 1}]


async def test_end_all_that_keeps_the_session_of_a_request_without_one_names_the_missing_integration(site: Site) -> None:
    async def handler(ctx: Context) -> str:
        with pytest.raises(ConfigError, match="session integration"):
            await site.sessions.end_all(OWNER, keep=ctx.session)
        return "done"

    async with TestClient(App({"/": handler})) as client:
        assert (await client.get("/")).status_code == 200


async def test_requests_in_flight_do_not_revive_their_sessions_after_end_all(site: Site) -> None:
    inside, may_go_on = asyncio.Semaphore(0), asyncio.Event()

    def held(work: Work) -> Work:
        async def hold(session: Session) -> None:
            await work(session)
            inside.release()
            await may_go_on.wait()

        return hold

    async def read_and_renew(session: Session) -> None:
        await session.get("user")
        await session.set("more", 1)
        await session.regenerate()

    visitor = site.browser()
    await visitor.do(setting(cart=[1]))
    browsers = [await logged_in(site), await logged_in(site), visitor, site.browser()]
    works = [setting(more=1), read_and_renew, logging_in(), logging_in()]
    requests = [asyncio.create_task(browser.request(held(work))) for browser, work in zip(browsers, works, strict=True)]
    for _ in requests:
        await inside.acquire()
    assert await site.sessions.end_all(OWNER) == 2
    may_go_on.set()
    replies: list[Reply] = await asyncio.gather(*requests)
    assert [reply.error for reply in replies] == [None] * 4
    for browser in browsers:
        assert "user" not in await browser.all()
        assert "more" not in await browser.all()
    assert await handles(site) == []
    await site.browser().do(logging_in())
    assert len(await handles(site)) == 1


# The instant of end_all()


class Held:
    """Logins that have called set_owner() and have yet to be written."""

    def __init__(self) -> None:
        self._inside, self._may_go_on = asyncio.Semaphore(0), asyncio.Event()
        self._requests: list[asyncio.Task[Reply]] = []

    async def begin(self, *browsers: Browser) -> None:
        async def work(session: Session) -> None:
            await logging_in()(session)
            self._inside.release()
            await self._may_go_on.wait()

        self._requests = [asyncio.create_task(browser.request(work)) for browser in browsers]
        for _ in browsers:
            await self._inside.acquire()

    async def finish(self) -> None:
        self._may_go_on.set()
        assert [reply.status for reply in await asyncio.gather(*self._requests)] == [200] * len(self._requests)


async def test_a_login_right_after_end_all_succeeds_in_every_process(store: Driver, clock: Clock, site: Site) -> None:
    other = Site(opened(store), clock)
    async with serving(other):
        before = await logged_in(site)
        assert await site.sessions.end_all(OWNER) == 1
        # This clock stands still.
        browsers = [site.browser(), other.browser(), site.browser()]
        for browser in browsers:
            await browser.do(logging_in())
        assert [await browser.all() for browser in (before, *browsers)] == [{}, {"user": 1}, {"user": 1}, {"user": 1}]
        assert await other.sessions.end_all(OWNER) == 3
        assert await site.sessions.end_all(OWNER) == 0


@pytest.mark.parametrize("seconds", [0.3, 1.5, 3600])
async def test_end_all_returns_and_logins_succeed_after_the_clock_was_set_back(
    store: Driver, clock: Clock, site: Site, seconds: float
) -> None:
    other = Site(opened(store), clock)
    async with serving(other):
        before = [await logged_in(site), await logged_in(other)]
        assert await site.sessions.end_all(OWNER, keep=None) == 2
        clock.now -= seconds
        # The clocks of two processes may differ by a second.
        browsers = [site.browser(), *([other.browser()] if seconds > 1 else [])]
        for browser in browsers:
            await browser.do(logging_in())
            assert await browser.all() == {"user": 1}
        assert await asyncio.wait_for(site.sessions.end_all(OWNER), 10) == len(browsers)
        again = site.browser()
        await again.do(logging_in())
        assert [await browser.all() for browser in (*before, *browsers, again)] == [{}] * (2 + len(browsers)) + [{"user": 1}]


@pytest.mark.parametrize("seconds", [0, 0.3, 30, 3600])
@pytest.mark.parametrize("ends_first", [True, False], ids=["ended and set back", "set back and ended"])
async def test_a_login_in_flight_loses_its_changes_even_if_the_clock_is_set_back(
    site: Site, seconds: float, ends_first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    held, visitor, newcomer = Held(), site.browser(), site.browser()
    await visitor.do(setting(cart=[1]))
    handle = await visitor.do(handle_of)
    await held.begin(visitor, newcomer)
    if ends_first:
        await site.sessions.end_all(OWNER)
    site.clock.now -= seconds
    if not ends_first:
        await site.sessions.end_all(OWNER)
    await held.finish()
    assert (await visitor.all(), await newcomer.all(), newcomer.token) == ({"cart": [1]}, {}, None)
    assert await handles(site) == []
    logged = [record for record in caplog.records if "end_all()" in record.getMessage()]
    assert {record.__dict__["session"] for record in logged} == {handle, None}
    assert {record.levelname for record in logged} == {"WARNING"}
    assert OWNER not in caplog.text
    await newcomer.do(logging_in())
    assert await newcomer.all() == {"user": 1}


async def test_a_login_in_flight_loses_its_changes_if_another_process_calls_end_all(
    store: Driver, clock: Clock, site: Site
) -> None:
    other = Site(opened(store), clock)
    async with serving(other):
        for seconds in (0, 30, 3600):
            held, browser = Held(), site.browser()
            await held.begin(browser)
            clock.now -= seconds
            clock.now += 0.01
            await other.sessions.end_all(OWNER)
            await held.finish()
            assert (await browser.all(), browser.token) == ({}, None)


async def test_a_login_under_its_old_id_that_another_process_overtakes_is_logged(
    store: Driver, clock: Clock, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    other, browser = Site(opened(store), clock), site.browser()
    await browser.do(setting(cart=[1]))
    handle = await browser.do(handle_of)

    async def work(session: Session) -> None:
        await session.set("user", 1)
        await session.set_owner(OWNER)
        clock.now += 0.01
        await other.sessions.end_all(OWNER)

    async with serving(other):
        await browser.do(work)
        assert await browser.all() == {"cart": [1]}
    [logged] = [record for record in caplog.records if "end_all()" in record.getMessage()]
    assert logged.__dict__["session"] == handle


async def test_a_logout_beside_a_login_that_end_all_revokes_still_ends_the_session(clock: Clock) -> None:
    is_in_store, may_go_on = asyncio.Event(), asyncio.Event()

    class Slow(MemoryDriver):
        async def set_owner(self, *arguments: Any, **options: Any) -> Outcome:
            is_in_store.set()
            await may_go_on.wait()
            return await super().set_owner(*arguments, **options)

    async with serving(Site(Slow(), clock)) as site:

        async def work(session: Session) -> None:
            await session.set_owner(OWNER)
            saving = asyncio.ensure_future(session.save())
            await is_in_store.wait()
            await site.sessions.end_all(OWNER)
            await session.clear()
            may_go_on.set()
            await saving

        browser = site.browser()
        await browser.do(setting(cart=[1]))
        token = browser.token
        await browser.do(work)
        assert browser.token is None
        assert await site.browser(token).all() == {}


@pytest.mark.parametrize("seconds", [0.3, 30, 3600])
async def test_a_login_that_is_in_flight_while_the_clock_is_set_back_succeeds(site: Site, seconds: float) -> None:
    await site.sessions.end_all(OWNER)
    held, browser = Held(), site.browser()
    await held.begin(browser)
    site.clock.now -= seconds
    await held.finish()
    assert await browser.all() == {"user": 1}


async def test_a_login_succeeds_when_a_clock_that_was_set_back_reaches_an_earlier_end_all(site: Site) -> None:
    await site.sessions.end_all(OWNER)
    site.clock.now -= 30
    held, browser = Held(), site.browser()
    await held.begin(browser)
    site.clock.now += 29.5
    await held.finish()
    assert await browser.all() == {"user": 1}
    again = site.browser()
    await again.do(logging_in())
    assert await again.all() == {"user": 1}


async def test_end_all_does_not_wait_for_an_idle_event_loop(site: Site) -> None:
    is_done = False

    async def keep_busy() -> None:
        while not is_done:
            time.sleep(0.01)
            await asyncio.sleep(0)

    await logged_in(site)
    busy = asyncio.create_task(keep_busy())
    try:
        assert await asyncio.wait_for(site.sessions.end_all(OWNER), 30) == 1
    finally:
        is_done = True
        await busy


# The limit


async def test_the_oldest_session_ends_when_there_are_too_many(store: Driver, clock: Clock) -> None:
    async with serving(Site(store, clock, max_sessions_per_owner=2)) as site:
        browsers = [await logged_in(site) for _ in range(2)]
        other_user = await logged_in(site, "user:2")
        await browsers[0].do(renew)
        browsers += [await logged_in(site)]
        assert [await browser.all() for browser in browsers] == [{}, {"user": 1}, {"user": 1}]
        assert await other_user.all() == {"user": 1}
        # Another login on the same device isn't another session.
        await browsers[1].do(logging_in())
        assert [await browser.all() for browser in browsers] == [{}, {"user": 1}, {"user": 1}]


@pytest.mark.parametrize("number", [0, -1, True, 1.5, "2"])
async def test_an_invalid_number_of_sessions_is_an_error_at_start(number: Any) -> None:
    with pytest.raises(ConfigError, match="max_sessions_per_owner"):
        session(SECRET, {"type": "memory"}, max_sessions_per_owner=number)


# What the store learns


async def test_a_store_knows_neither_owner_nor_note(clock: Clock) -> None:
    file = new_folder() / "sessions.db"
    async with serving(Site(SQLDriver(file=file), clock)) as site:
        await logged_in(site, note="a telltale phone")
        await site.sessions.end_all("user:2")
        with closing(sqlite3.connect(file)) as db:
            stored = "\n".join(db.iterdump())
            assert [note[0] for (note,) in db.execute("SELECT note FROM sessions")] == [1]
        for secret in (OWNER, "user:2", "telltale"):
            assert secret not in stored
            assert secret.encode().hex().upper() not in stored


async def test_a_note_belongs_to_its_session_and_its_owner(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    store = Sealing()
    async with serving(Site(store, clock)) as site:
        first, second = [await logged_in(site, note=note) for note in ("mine", "yours")]
        ids = [await browser.do(handle_of) for browser in (first, second)]
        mine, yours = (store._sessions[id] for id in ids)
        assert mine.ownership is not None
        assert yours.ownership is not None
        mine.ownership = Ownership(mine.ownership.owner, yours.ownership.note, mine.ownership.since)
        assert [each.note for each in await site.sessions.list(OWNER)] == [None, "yours"]
        assert "its note" in caplog.text
        await first.do(renew)
        assert len(await handles(site)) == 2


async def test_applications_with_different_cookies_have_different_owners(store: Driver, clock: Clock, site: Site) -> None:
    async with serving(Site(opened(store), clock, cookie_name="other")) as other:
        await logged_in(site)
        assert await other.sessions.list(OWNER) == ([] if store.shared else await site.sessions.list(OWNER))


# Rotation


async def test_a_new_secret_finds_the_sessions_of_the_old_one(store: Driver, clock: Clock, site: Site) -> None:
    new = "a newer secret of the tests, long enough"
    async with serving(Site(opened(store), clock, secret=[new, SECRET], max_sessions_per_owner=3)) as rotated:
        browsers = [await logged_in(site, note=note) for note in ("a", "b", "c")]
        renewed = Browser(rotated, browsers[0].token)
        await renewed.do(renew)
        assert [each.note for each in await rotated.sessions.list(OWNER)] == ["a", "b", "c"]
        # The new id is sealed with the new secret.
        async with serving(Site(opened(store), clock, secret=new)) as later:
            if store.shared:
                assert [each.note for each in await later.sessions.list(OWNER)] == ["a"]
            await logged_in(rotated, note="d")
            assert [each.note for each in await rotated.sessions.list(OWNER)] == ["b", "c", "d"]
            assert await renewed.all() == {}
            assert await rotated.sessions.end_all(OWNER) == 3
            assert await later.sessions.list(OWNER) == await site.sessions.list(OWNER) == []


# Drivers without owners


class Bare:
    """A driver that implements the contract without owners."""

    def __init__(self) -> None:
        self._driver = MemoryDriver()

    def __getattr__(self, name: str) -> Any:
        if name in ("set_owner", "owned", "end_owned", "count"):
            raise AttributeError(name)
        return getattr(self._driver, name)


@pytest.mark.parametrize("make", [lambda: None, Bare], ids=["cookies", "a driver without owners"])
async def test_the_error_of_a_driver_without_owners_names_the_others(make: Any, clock: Clock) -> None:
    driver = make()
    name = "cookies" if driver is None else "memory"
    async with serving(Site(driver, clock)) as site:

        async def own(session: Session) -> None:
            fix = r"write `await session.login\(owner\)`" if driver is None else "memory, file, sql, redis or mongodb"
            with pytest.raises(SessionUnsupported, match=rf"{name} driver .* set_owner\(\); .*{fix}"):
                await session.set_owner(OWNER)
            await session.set("key", "value")

        browser = site.browser()
        await browser.do(own)
        assert await browser.all() == {"key": "value"}
        for call in ("list", "end_all", "count"):
            with pytest.raises(SessionUnsupported, match=rf"the {name} driver doesn't support {call}\(\); "):
                await getattr(site.sessions, call)(OWNER)
        with pytest.raises(SessionUnsupported, match=r"count\(\); "):
            await site.sessions.count()
        handle = await browser.do(handle_of)
        if driver is None:
            with pytest.raises(SessionUnsupported, match=r"end\(\); "):
                await site.sessions.end(handle)
        else:
            assert await site.sessions.end(handle) is True
    with pytest.raises(ConfigError, match=f"the {name} driver"):
        session(SECRET, make(), max_sessions_per_owner=1)


async def test_the_integration_serves_scripts_that_take_no_requests() -> None:
    async def log_in(ctx: Context) -> str:
        await logging_in()(ctx.session)
        return "in"

    sessions: SessionIntegration = session(SECRET, {"type": "memory"})
    app = App({"/": log_in}, integrations=[sessions])
    async with TestClient(app) as client:
        await client.get("/")
        assert await sessions.count() == await sessions.count(OWNER) == 1
        [listed] = await sessions.list(OWNER)
        assert await sessions.end(listed.handle)
        assert await sessions.count() == 0


# Entries that leave an index by themselves


def _record(lasts: float, now: float, owner: str = OWNER) -> Record:
    return Record({"key": b"\1value"}, now, now + lasts, now + lasts, ownership=Ownership(owner, b"", now))


async def test_files_of_owners_are_removed_with_their_sessions_and_by_a_purge(clock: Clock) -> None:
    folder = new_folder()
    driver = FileDriver(dir=folder)
    await driver.open()
    ids = [f"{number:064x}" for number in range(3)]
    for id, lasts in zip(ids, (1000, 1000, 100), strict=True):
        await driver.create(id, _record(lasts, clock.now))

    def entries() -> list[str]:
        return sorted(path.name for path in folder.glob("owners/??/*/*"))

    assert entries() == ids
    await driver.destroy(ids[0], now=clock.now)
    assert entries() == ids[1:]
    await driver.purge(now=clock.now + 100, limit=100)
    assert entries() == [ids[1]]
    await driver.end_owned(OWNER, keep=(), now=clock.now + 100)
    assert entries() == [".ended"]
    await driver.purge(now=clock.now + 100 + TOMBSTONE, limit=100)
    assert [*folder.glob("owners/??/*")] == []
    await driver.close()


async def test_an_entry_that_a_crash_has_left_is_removed_by_the_next_list(clock: Clock) -> None:
    folder = new_folder()
    driver = FileDriver(dir=folder)
    await driver.open()
    await driver.create("0" * 64, _record(1000, clock.now))
    [entry] = folder.glob("owners/??/*/*")
    left = entry.with_name("f" * 64)
    left.touch()
    assert set(await driver.owned(OWNER, now=clock.now)) == {"0" * 64}
    assert not left.exists()
    await driver.close()


async def test_an_owners_set_in_redis_loses_expired_sessions_and_has_no_ttl() -> None:
    now, prefix = time.time(), f"{token_hex(8)}:"
    driver = RedisDriver(url=servers.redis_url(), prefix=prefix)
    await driver.open()
    try:
        key, ids = f"{prefix}owner:{OWNER}", [f"{number:064x}" for number in range(3)]
        for id, lasts in zip(ids, (500, 1000, 20), strict=True):
            await driver.create(id, _record(lasts, now))
        assert await driver._client.ttl(key) == -1
        await driver.destroy(ids[0], now=now)
        assert await driver._client.zrange(key, 0, -1) == [ids[2].encode(), ids[1].encode()]
        # A login removes expired entries.
        await driver.create("f" * 64, _record(500, now + 30))
        assert await driver._client.zcard(key) == 2
        await driver.end_owned(OWNER, keep=(), now=now + 40)
        assert await driver._client.zrange(key, 0, -1) == [b"ended"]
        for _ in range(60):
            await driver.purge(now=now + 40 + TOMBSTONE, limit=1000)
        assert not await driver._client.exists(key)
    finally:
        await driver.close()


async def test_a_set_owner_that_end_all_overtakes_in_a_cluster_is_revoked_and_the_next_one_is_not() -> None:
    class Overtaken(Keyspace):
        async def enter(self, id: str, ownership: Ownership, expires: float, *, now: float, is_carried: bool = False) -> Outcome:
            outcome = await super().enter(id, ownership, expires, now=now, is_carried=is_carried)
            if ownership == early:
                # A driver bounds each task by one time limit.
                assert await asyncio.create_task(driver.end_owned(OWNER, keep=(), now=now + 0.5)) == 0
            return outcome

    now, id = round(time.time(), 3), "0" * 64
    early, later = Ownership(OWNER, b"", now), Ownership(OWNER, b"", now + 0.5)
    prefix = f"{token_hex(8)}:"
    driver = RedisDriver(url=servers.redis_cluster_url(), prefix=prefix)
    driver._keyspace = Overtaken(prefix, driver._calls, is_cluster=True)
    await driver.open()
    try:
        await driver.create(id, Record({"key": b"1"}, now, now + 100, now + 100))
        assert await driver.set_owner(id, early, {"key": b"2"}, (), now=now, deadline=None, max_size=1000) is Outcome.REVOKED
        assert await driver.load(id, now=now) == Record({"key": b"1"}, now, now + 100, now + 100)
        assert await driver.set_owner(id, later, {"key": b"3"}, (), now=now, deadline=None, max_size=1000) is Outcome.WRITTEN
        assert [*await driver.owned(OWNER, now=now)] == [id]
    finally:
        await driver.close()


async def test_mongodb_finds_an_owner_by_an_index(clock: Clock) -> None:
    driver: Any = STORES["mongodb"]()
    async with serving(Site(driver, clock, encrypt=False)) as site:
        browser = await logged_in(site, note={"device": "a phone"})
        await (await logged_in(site)).do(log_out)
        await site.browser().do(setting(user=1))
        query = {"owner": OWNER, "ended": None}
        found = [document async for document in driver._sessions.find(query)]
        assert [(each["_id"], each["note"]) for each in found] == [(await browser.do(handle_of), {"device": "a phone"})]
        plan = await driver._sessions.find(query).explain()
        assert "'indexName': 'owner_1'" in str(plan)
        assert [each.note for each in await site.sessions.list(OWNER)] == [{"device": "a phone"}]
