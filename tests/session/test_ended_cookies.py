"""Sessions in cookies whose ends are remembered in a store, over each kind of store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import nullcontext, suppress
from secrets import token_hex
from typing import Any

import pytest

from gaman import App, ConfigError, Context, Response
from gaman.session import (
    Outcome,
    Session,
    SessionIntegration,
    SessionLoginRequired,
    SessionStoreError,
    session,
)
from gaman.testing import TestClient
from gaman_session._driver import TOMBSTONE
from gaman_session._ended import EndedSessions, Ending
from gaman_session._ended_store import MAX_COOKIE_AGE
from gaman_session.drivers.memory import MemoryDriver
from tests.session.endings import OWNER, confirm, handle_of, in_cookies, log_in, log_out, logged_in, owner_of, regenerate
from tests.session.sites import (
    DRIVERS,
    SECRET,
    Browser,
    Clock,
    Recording,
    Reply,
    Sealing,
    Site,
    Work,
    gaman_only,
    getting,
    opened,
    serving,
    setting,
)

pytestmark = pytest.mark.anyio

DAY = 86_400


@pytest.fixture
async def store() -> Recording:
    return Recording()


@pytest.fixture
async def ending_at(store: Recording, clock: Clock) -> AsyncIterator[Site]:
    """Return a site whose store records its calls."""
    async with serving(Site(in_cookies(store), clock)) as site:
        store.events.clear()
        yield site


class Pause:
    """Stops a request between two calls of its session."""

    def __init__(self) -> None:
        self.is_reached = asyncio.Event()
        self.goes_on = asyncio.Event()

    async def here(self) -> None:
        self.is_reached.set()
        await self.goes_on.wait()


async def during(browser: Browser, work: Callable[[Session, Pause], Awaitable[None]], meanwhile: Awaitable[Any]) -> Reply:
    """Run a request of *browser* with *work*, and *meanwhile* while it is paused; the browser takes its response last."""
    pause = Pause()
    cookie = browser.cookie

    async def paused(session: Session) -> None:
        await work(session, pause)

    request = asyncio.create_task(browser.site.request(paused, cookie))
    await pause.is_reached.wait()
    await meanwhile
    pause.goes_on.set()
    return await request


# A copy of an old cookie


@pytest.mark.parametrize("work", [log_out, log_in, confirm, regenerate], ids=["logout", "login", "confirm", "regenerate"])
async def test_a_copy_of_the_cookie_is_dead_after_it_was_replaced(ending: Site, work: Work) -> None:
    browser = await logged_in(ending, cart=[1])
    copy = ending.browser(browser.token)
    assert await copy.do(owner_of) == OWNER
    await browser.do(work)
    assert await copy.all() == {}
    assert await copy.do(owner_of) is None
    # A change doesn't revive it.
    await copy.request(setting(a=1))
    assert await copy.do(owner_of) is None
    if work is log_out:
        assert browser.token is None
    else:
        assert await browser.all() == {"cart": [1]}
        assert await browser.do(owner_of) == OWNER


async def test_a_copy_is_dead_for_as_long_as_its_cookie_could_live(ending: Site) -> None:
    browser = await logged_in(ending)
    copy = ending.browser(browser.token)
    await browser.do(log_out)
    for seconds in (TOMBSTONE + 1, DAY - TOMBSTONE - 3):
        ending.clock.now += seconds
        await ending.app.purge()
        assert await copy.do(owner_of) is None
    # The cookie expires by now, and the record a minute later, for processes whose clock is behind.
    ending.clock.now += 2
    await ending.app.purge()
    ending.clock.now -= 1
    assert await copy.do(owner_of) is None


async def test_removing_the_last_key_ends_the_session(ending: Site) -> None:
    async def remove(session: Session) -> None:
        await session.delete("a")

    browser = ending.browser()
    await browser.do(setting(a=1))
    copy = ending.browser(browser.token)
    await browser.do(remove)
    assert browser.token is None
    assert await copy.all() == {}


async def test_a_new_session_after_clear_has_a_new_id(ending: Site) -> None:
    async def replace(session: Session) -> None:
        await session.clear()
        await session.set("b", 2)

    browser = ending.browser()
    await browser.do(setting(a=1))
    copy = ending.browser(browser.token)
    await browser.do(replace)
    assert await browser.all() == {"b": 2}
    assert await copy.all() == {}


async def test_a_login_of_another_user_ends_the_session_before(ending: Site) -> None:
    async def log_in_another(session: Session) -> None:
        await session.login("user:2")

    browser = await logged_in(ending, address="secret")
    copy = ending.browser(browser.token)
    await browser.do(log_in_another)
    assert await browser.all() == {}
    assert await browser.do(owner_of) == "user:2"
    assert await copy.do(owner_of) is None


async def test_two_logouts_of_one_session_both_succeed(ending: Site) -> None:
    browser = await logged_in(ending)
    replies = await asyncio.gather(*(ending.request(log_out, browser.cookie) for _ in range(5)))
    assert [reply.status for reply in replies] == [200] * 5
    assert all(reply.set_cookie and "Max-Age=0" in reply.set_cookie for reply in replies)
    assert await browser.do(owner_of) is None


# Requests in flight


async def test_a_write_in_flight_is_dropped_by_a_logout(ending: Site) -> None:
    async def write(session: Session, pause: Pause) -> None:
        assert await session.owner() == OWNER
        await pause.here()
        await session.set("a", 1)

    browser = await logged_in(ending)
    copy = ending.browser(browser.token)
    reply = await during(browser, write, browser.do(log_out))
    assert (reply.status, reply.set_cookie) == (200, None)
    assert await copy.do(owner_of) is None


async def test_a_write_in_flight_does_not_replace_the_cookie_of_a_login(ending: Site) -> None:
    async def write(session: Session, pause: Pause) -> None:
        await session.set("a", 1)
        await pause.here()

    browser = ending.browser()
    await browser.do(setting(cart=[1]))
    reply = await during(browser, write, browser.do(log_in))
    assert (reply.status, reply.set_cookie) == (200, None)
    assert await browser.do(owner_of) == OWNER


async def test_a_confirmation_in_flight_is_dropped_by_a_logout(ending: Site) -> None:
    async def confirm_late(session: Session, pause: Pause) -> None:
        await session.confirm()
        await pause.here()

    browser = await logged_in(ending)
    reply = await during(browser, confirm_late, browser.do(log_out))
    assert (reply.status, reply.set_cookie) == (200, None)


async def test_a_logout_in_flight_ends_what_the_session_was_renewed_to(ending: Site) -> None:
    async def log_out_late(session: Session, pause: Pause) -> None:
        await session.owner()
        await pause.here()
        await session.logout()

    browser = await logged_in(ending)

    async def renew_twice() -> None:
        await browser.do(confirm)
        await browser.do(regenerate)

    reply = await during(browser, log_out_late, renew_twice())
    assert reply.set_cookie is not None
    assert "Max-Age=0" in reply.set_cookie
    assert await browser.do(owner_of) is None


async def test_a_logout_does_not_end_what_the_session_was_renewed_to_long_ago(ending: Site) -> None:
    browser = await logged_in(ending)
    copy = ending.browser(browser.token)
    await browser.do(confirm)
    ending.clock.now += TOMBSTONE
    await copy.do(log_out)
    assert await browser.do(owner_of) == OWNER


async def test_a_login_beside_a_logout_is_not_lost_and_has_only_its_own_data(ending: Site) -> None:
    async def log_in_late(session: Session, pause: Pause) -> None:
        await session.login(OWNER)
        await session.set("mine", 1)
        await pause.here()

    browser = ending.browser()
    await browser.do(setting(cart=[1]))
    browser.take(await during(browser, log_in_late, browser.do(log_out)))
    assert await browser.do(owner_of) == OWNER
    assert await browser.all() == {"mine": 1}


async def test_of_two_confirmations_one_goes_on(ending: Site) -> None:
    browser = await logged_in(ending)
    replies = await asyncio.gather(*(ending.request(confirm, browser.cookie) for _ in range(3)))
    for reply in replies:
        browser.take(reply)
    assert [reply.status for reply in replies if reply.set_cookie] == [200]
    assert await browser.do(owner_of) == OWNER


async def test_an_old_cookie_begins_a_new_session_once_its_end_is_past(ending: Site) -> None:
    browser = ending.browser()
    await browser.do(setting(a=1))
    copy = ending.browser(browser.token)
    before = await copy.do(handle_of)
    await browser.do(log_out)
    assert (await copy.request(setting(b=2))).set_cookie is None
    ending.clock.now += TOMBSTONE
    await copy.do(setting(b=2))
    assert await copy.all() == {"b": 2}
    assert await copy.do(handle_of) != before


async def test_a_request_that_fails_ends_nothing(ending: Site) -> None:
    async def fail(session: Session) -> None:
        await session.logout()
        raise RuntimeError

    browser = await logged_in(ending)
    assert (await browser.request(fail)).status == 500
    assert await browser.do(owner_of) == OWNER


async def test_save_ends_the_session_at_once(ending: Site) -> None:
    async def end(session: Session) -> None:
        await session.logout()
        await session.save()
        assert await copy.do(owner_of) is None
        await session.set("b", 2)

    browser = await logged_in(ending)
    copy = ending.browser(browser.token)
    await browser.do(end)
    assert await browser.all() == {"b": 2}


async def test_a_request_that_fails_after_save_sends_the_only_cookie_that_works(ending: Site) -> None:
    async def work(session: Session) -> None:
        await session.set("saved", 1)
        await session.login(OWNER)
        await session.save()
        await session.set("dropped", 1)
        raise RuntimeError

    browser = ending.browser()
    await browser.do(setting(a=1))
    assert (await browser.request(work)).status == 500
    assert await browser.do(owner_of) == OWNER
    assert await browser.all() == {"a": 1, "saved": 1}


# All sessions of an owner


async def test_all_sessions_of_an_owner_end(ending: Site) -> None:
    first, second = await logged_in(ending), await logged_in(ending)
    other, visitor = ending.browser(), ending.browser()

    async def log_in_other(session: Session) -> None:
        await session.login("user:2")

    await other.do(log_in_other)
    await visitor.do(setting(cart=[1]))
    assert await ending.sessions.end_all(OWNER) == 2
    assert await first.do(owner_of) is None
    assert await second.do(owner_of) is None
    assert await other.do(owner_of) == "user:2"
    assert await visitor.all() == {"cart": [1]}
    # A later login lives, and is ended by the next call.
    third = await logged_in(ending)
    assert await third.do(owner_of) == OWNER
    await ending.sessions.end_all(OWNER)
    assert await third.do(owner_of) is None


async def test_the_sessions_stay_ended_for_as_long_as_their_cookies_could_live(clock: Clock) -> None:
    async with serving(Site(in_cookies(Sealing()), clock, max_age=1000 * DAY)) as site:
        copy = await logged_in(site)
        await site.sessions.end_all(OWNER)
        clock.now += MAX_COOKIE_AGE - 1
        await site.app.purge()
        assert await copy.do(owner_of) is None
        later = await logged_in(site)
        clock.now += TOMBSTONE + 2
        await site.app.purge()
        # No browser sends the cookie any more, and it isn't accepted, so it needs no record.
        assert await copy.do(owner_of) is None
        assert await later.do(owner_of) == OWNER


async def test_one_session_of_the_owner_is_kept(ending: Site) -> None:
    async def end_others(session: Session) -> None:
        await ending.sessions.end_all(OWNER, keep=session)

    mine, other = await logged_in(ending, a=1), await logged_in(ending)
    before = mine.token
    # The kept session needs no new cookie, so a response that is lost logs no user out.
    assert (await mine.request(end_others)).set_cookie is None
    assert mine.token == before
    assert await mine.do(owner_of) == OWNER
    assert await other.do(owner_of) is None
    # It goes on under a new id, and ends with the next call.
    await mine.do(confirm)
    assert await mine.do(owner_of) == OWNER
    await mine.do(setting(b=2))
    assert await mine.all() == {"a": 1, "b": 2}
    await ending.sessions.end_all(OWNER)
    assert await mine.do(owner_of) is None


@pytest.mark.parametrize("renew", [confirm, regenerate, log_in])
async def test_a_session_that_is_kept_under_a_pending_id_keeps_its_login_and_values(ending: Site, renew: Work) -> None:
    async def end_others(session: Session) -> None:
        await renew(session)
        await ending.sessions.end_all(OWNER, keep=session)

    async def end_others_and_fail(session: Session) -> None:
        await end_others(session)
        raise RuntimeError

    mine, other = await logged_in(ending, a=1), await logged_in(ending)
    # Without the new id, the old one stays.
    assert (await mine.request(end_others_and_fail)).status == 500
    assert await mine.do(owner_of) == OWNER
    assert await other.do(owner_of) is None
    other = await logged_in(ending)
    assert (await mine.request(end_others)).set_cookie is not None
    assert await mine.do(owner_of) == OWNER
    assert await mine.all() == {"a": 1}
    assert await other.do(owner_of) is None
    await ending.sessions.end_all(OWNER)
    assert await mine.do(owner_of) is None


async def test_a_login_that_ends_the_others_is_kept(ending: Site) -> None:
    async def log_in_alone(session: Session) -> None:
        await session.login(OWNER)
        await ending.sessions.end_all(OWNER, keep=session)

    other, browser = await logged_in(ending), ending.browser()
    await browser.do(setting(cart=[1]))
    await browser.do(log_in_alone)
    assert await browser.do(owner_of) == OWNER
    assert await browser.all() == {"cart": [1]}
    assert await other.do(owner_of) is None


async def test_a_login_in_flight_is_dropped_and_logged(ending: Site, caplog: pytest.LogCaptureFixture) -> None:
    async def log_in_late(session: Session, pause: Pause) -> None:
        await session.login(OWNER)
        await pause.here()

    browser = ending.browser()
    with caplog.at_level(logging.WARNING, "gaman"):
        reply = await during(browser, log_in_late, ending.sessions.end_all(OWNER))
    assert (reply.status, reply.set_cookie) == (200, None)
    assert "if it was a login, the user has to log in again" in caplog.text


async def test_a_login_during_the_call_that_comes_later_lives(ending: Site) -> None:
    async def log_in_late(session: Session, pause: Pause) -> None:
        await pause.here()
        await session.login(OWNER)

    browser = ending.browser()
    browser.take(await during(browser, log_in_late, ending.sessions.end_all(OWNER)))
    assert await browser.do(owner_of) == OWNER


async def test_concurrent_calls_end_what_was_there_before_the_last(ending: Site) -> None:
    browsers = list[Browser]()
    for _ in range(3):
        browsers.append(await logged_in(ending))
        await asyncio.gather(*(ending.sessions.end_all(OWNER) for _ in range(3)))
    assert [await browser.do(owner_of) for browser in browsers] == [None] * 3
    assert await (await logged_in(ending)).do(owner_of) == OWNER


async def test_a_login_succeeds_although_the_clock_was_set_back(ending: Site) -> None:
    before = await logged_in(ending)
    await ending.sessions.end_all(OWNER)
    ending.clock.now -= 3600
    browser = await logged_in(ending)
    assert await browser.do(owner_of) == OWNER
    assert await before.do(owner_of) is None
    await ending.sessions.end_all(OWNER)
    assert await browser.do(owner_of) is None


# Sessions that are ended from outside


async def test_a_session_is_ended_by_its_handle(ending: Site) -> None:
    browser = await logged_in(ending)
    handle = await browser.do(handle_of)
    assert await ending.sessions.end(handle) is True
    assert await ending.sessions.end(handle) is False
    assert await browser.do(owner_of) is None
    assert ending.sessions.counters.ended == 1
    assert await ending.sessions.end("no handle") is False


async def test_a_handle_ends_what_the_session_was_renewed_to(ending: Site) -> None:
    browser = await logged_in(ending)
    handle = await browser.do(handle_of)
    await browser.do(confirm)
    assert await ending.sessions.end(handle) is True
    assert await browser.do(owner_of) is None


async def test_all_sessions_of_all_users_end(ending: Site) -> None:
    ended = ending.sessions._owners
    assert isinstance(ended, EndedSessions)
    user, visitor = await logged_in(ending), ending.browser()
    await visitor.do(setting(cart=[1]))
    await ended.end_everyone()
    assert await user.do(owner_of) is None
    assert await visitor.all() == {}
    ending.clock.now += 1
    await visitor.do(log_in)
    assert await visitor.do(owner_of) == OWNER


# Secrets


@pytest.mark.parametrize("name", [name for name in DRIVERS if "cookies" not in name])
async def test_the_ends_are_known_after_the_secret_was_rotated(name: str, clock: Clock) -> None:
    old, new = token_hex(32), token_hex(32)
    store: Any = DRIVERS[name]()
    same = opened(in_cookies(store))
    async with (
        serving(Site(in_cookies(store), clock, secret=old)) as before,
        serving(Site(same, clock, secret=[new, old])) as rotated,
        serving(Site(same, clock, secret=new)) as after,
    ):
        one, two = await logged_in(before), await logged_in(before)
        copy = before.browser(one.token)
        await one.do(log_out)
        await before.sessions.end_all(OWNER)
        three = await logged_in(before)
        for browser in (copy, two, three):
            browser.site = rotated
        assert await copy.do(owner_of) is None
        assert await two.do(owner_of) is None
        assert await three.do(owner_of) == OWNER
        four = await logged_in(rotated)
        clock.now += 1  # As no time passes in a test, the two processes would have the same times.
        await rotated.sessions.end_all(OWNER)
        # Processes that have only one of the secrets know it as well.
        three.site, four.site = before, after
        assert await three.do(owner_of) is None
        assert await four.do(owner_of) is None


async def test_the_store_has_no_owner_and_nothing_that_opens_a_session(clock: Clock) -> None:
    store = Sealing()
    async with serving(Site(in_cookies(store), clock)) as site:
        browser = await logged_in(site, address="Jalan Kaliurang")
        token = browser.token
        await browser.do(confirm)
        await site.sessions.end_all(OWNER)
        kept = repr({id: (record.fields, record.ownership) for id, record in store._sessions.items()})
    assert len(store._sessions) == 0  # closed
    assert OWNER not in kept
    assert "Jalan" not in kept
    assert token is not None
    assert token not in kept


# The store


async def test_a_request_looks_up_its_session_at_most_once_before_the_response(ending_at: Site, store: Recording) -> None:
    async def read(session: Session) -> None:
        await asyncio.gather(session.get("a"), session.has("b"), session.owner())
        await session.all()

    async def nothing(session: Session) -> None: ...

    browser = ending_at.browser()
    await browser.do(setting(a=1))
    assert store.events == []  # A new session has nothing to look up.
    await browser.do(nothing)
    assert store.events == []
    await browser.do(read)
    # The session, and everyone.
    assert store.events == ["load"] * 2
    store.events.clear()
    await browser.do(setting(a=2))
    assert store.events == ["load"] * 2
    store.events.clear()
    await browser.do(log_out)
    assert store.events == ["create"]


async def test_a_store_that_is_down_is_503_and_logs_no_user_out(ending_at: Site, store: Recording) -> None:
    browser = await logged_in(ending_at)
    store.failing = {"load"}
    for work in (owner_of, setting(a=1), confirm, regenerate):
        reply = await browser.request(work)
        assert (reply.status, reply.set_cookie) == (503, None)
    assert ending_at.sessions.counters.store_errors == 4
    store.failing = set()
    assert await browser.do(owner_of) == OWNER


@pytest.mark.parametrize("work", [log_out, confirm, log_in], ids=["logout", "confirm", "login"])
async def test_an_end_that_can_not_be_written_is_503_and_the_browser_keeps_its_cookie(
    ending_at: Site, store: Recording, work: Work
) -> None:
    browser = await logged_in(ending_at)
    store.failing = {"create", "apply"}
    reply = await browser.request(work)
    assert (reply.status, reply.set_cookie) == (503, None)
    store.failing = set()
    # So that the next attempt ends it.
    assert await browser.do(owner_of) == OWNER
    copy = ending_at.browser(browser.token)
    await browser.do(work)
    assert await copy.do(owner_of) is None


async def test_a_confirmation_whose_answer_was_lost_goes_on(clock: Clock) -> None:
    class Lost(Sealing):
        """Makes the record, and fails."""

        async def create(self, id: str, record: Any) -> Any:
            await super().create(id, record)
            return await super().create(id, record)

    async with serving(Site(in_cookies(Lost()), clock)) as site:
        browser = await logged_in(site)
        copy = site.browser(browser.token)
        await browser.do(confirm)
        assert await browser.do(owner_of) == OWNER
        assert await copy.do(owner_of) is None


@pytest.mark.parametrize("work", [log_in, confirm], ids=["login", "confirm"])
async def test_an_unconfirmed_end_sends_the_new_cookie_with_the_503(clock: Clock, work: Work) -> None:
    class Unconfirmed(Sealing):
        fails = False

        async def create(self, id: str, record: Any) -> Any:
            await super().create(id, record)
            if self.fails:
                raise SessionStoreError("unconfirmed", "create a session", is_unconfirmed=True)

    store = Unconfirmed()
    async with serving(Site(in_cookies(store), clock)) as site:
        browser = await logged_in(site, cart=[1])
        copy = site.browser(browser.token)
        store.fails = True
        assert (await browser.request(work)).status == 503
        # The old id is dead, so the browser has to have the new one.
        assert await copy.do(owner_of) is None
        assert await browser.do(owner_of) == OWNER
        # A logout is repeated until it is confirmed.
        token = browser.token
        assert (await browser.request(log_out)).status == 503
        assert browser.token == token
        store.fails = False
        await browser.do(log_out)
        assert browser.token is None


@pytest.mark.parametrize("is_caught", [False, True])
@pytest.mark.parametrize("is_fresh", [False, True])
async def test_an_unconfirmed_end_by_save_or_by_a_fresh_login_sends_the_new_cookie(
    clock: Clock, is_fresh: bool, is_caught: bool
) -> None:
    store = Sealing()
    async with serving(Site(in_cookies(store), clock)) as site:
        browser, create = await logged_in(site), store.create

        async def fail(id: str, record: Any) -> None:
            await create(id, record)
            if "next" in record.fields:
                store.create = create  # type: ignore[method-assign]  # of this object only
                raise SessionStoreError("sealing", "end a session", is_unconfirmed=True)

        async def work(session: Session) -> None:
            await session.login(OWNER, fresh=is_fresh)
            store.create = fail  # type: ignore[method-assign]  # of this object only
            with suppress(SessionStoreError) if is_caught else nullcontext():
                await session.save()

        assert (await browser.request(work)).status == (200 if is_caught else 503)
        assert await browser.do(owner_of) == OWNER
        assert [each.handle for each in await site.sessions.list(OWNER)] == [await browser.do(handle_of)]


async def test_what_was_saved_is_sent_if_the_rest_can_not_be_written(ending_at: Site, store: Recording) -> None:
    async def work(session: Session) -> None:
        await session.set("saved", 1)
        await session.login(OWNER)
        await session.save()
        await session.set("late", 1)
        store.failing = {"load"}

    browser = ending_at.browser()
    await browser.do(setting(a=1))
    assert (await browser.request(work)).status == 503
    store.failing = set()
    assert await browser.do(owner_of) == OWNER
    assert await browser.all() == {"a": 1, "saved": 1}


async def test_a_logout_whose_request_is_cancelled_is_noted(clock: Clock) -> None:
    class Slow(Sealing):
        is_reached, goes_on = asyncio.Event(), asyncio.Event()

        async def create(self, id: str, record: Any) -> Any:
            self.is_reached.set()
            await self.goes_on.wait()
            return await super().create(id, record)

    store = Slow()
    async with serving(Site(in_cookies(store), clock)) as site:
        store.goes_on.set()
        browser = await logged_in(site)
        store.goes_on.clear()
        store.is_reached.clear()
        request = asyncio.create_task(site.request(log_out, browser.cookie))
        await store.is_reached.wait()
        request.cancel()
        await asyncio.sleep(0)
        store.goes_on.set()
        await asyncio.wait([request])
        assert await browser.do(owner_of) is None


async def test_end_all_fails_if_the_store_does(ending_at: Site, store: Recording) -> None:
    for event in ("load", "create"):
        store.failing = {event}
        with pytest.raises(SessionStoreError):
            await ending_at.sessions.end_all(OWNER)
    assert ending_at.sessions.counters.store_errors == 2


async def test_a_damaged_limit_counts_as_absent_and_is_logged(
    ending_at: Site, store: Recording, caplog: pytest.LogCaptureFixture
) -> None:
    browser = await logged_in(ending_at)
    await ending_at.sessions.end_all(OWNER)
    [record] = [each for each in store._sessions.values() if "limit" in each.fields]
    record.fields["limit"] = b"\xc1"
    assert await browser.do(owner_of) == OWNER
    assert "the end of an owner's sessions is damaged" in caplog.text
    await ending_at.sessions.end_all(OWNER)
    assert await browser.do(owner_of) is None


async def test_a_dead_cookie_that_is_sent_twice_is_skipped(ending: Site) -> None:
    browser = await logged_in(ending)
    same, earlier = browser.cookie, browser.cookie
    await browser.do(setting(a=1))
    await browser.do(log_out)
    for cookie in (f"{same}; {same}", f"{browser.cookie}; {same}; {earlier}; {same}"):
        reply = await ending.request(owner_of, cookie)
        assert (reply.status, reply.result) == (200, None)


async def test_a_session_that_has_ended_is_not_kept(ending: Site) -> None:
    async def end_twice(session: Session) -> None:
        assert await session.owner() == OWNER
        ending.clock.now += 1
        await ending.sessions.end_all(OWNER)  # from elsewhere
        ending.clock.now += 1
        await ending.sessions.end_all(OWNER, keep=session)

    thief = await logged_in(ending)
    copy = ending.browser(thief.token)
    await thief.do(end_twice)
    assert (await thief.do(owner_of), await copy.do(owner_of)) == (None, None)


@pytest.mark.parametrize("end", ["logout", "end"])
async def test_a_new_id_that_comes_too_late_has_no_login(clock: Clock, end: str) -> None:
    store = Sealing()
    async with serving(Site(in_cookies(store), clock)) as site:
        browser = await logged_in(site)
        copy, create = site.browser(browser.token), store.create

        async def end_others(session: Session) -> None:
            await site.sessions.end_all(OWNER, keep=session)

        async def end_first(id: str, record: Any) -> Any:
            store.create = create  # type: ignore[method-assign]  # of this object only
            await (copy.do(log_out) if end == "logout" else site.sessions.end(id))
            return await create(id, record)

        async def renew(session: Session) -> None:
            await session.regenerate()
            store.create = end_first  # type: ignore[method-assign]  # of this object only

        clock.now += 1
        await browser.do(end_others)
        clock.now += 1
        await browser.request(renew)
        assert await browser.do(owner_of) is None
        assert await site.sessions.list(OWNER) == []


@pytest.mark.parametrize("work", [confirm, regenerate, log_in], ids=["confirm", "regenerate", "login"])
async def test_a_save_that_a_timeout_interrupts_logs_no_user_out(ending: Site, work: Work) -> None:
    async def save_in_no_time(session: Session) -> None:
        await work(session)
        with suppress(TimeoutError):
            async with asyncio.timeout(0):
                await session.save()

    browser = await logged_in(ending)
    for _ in range(2):
        assert (await browser.request(save_in_no_time)).status == 200
        assert await browser.do(owner_of) == OWNER
        assert [each.handle for each in await ending.sessions.list(OWNER)] == [await browser.do(handle_of)]


async def test_a_dead_cookie_before_the_live_one_is_skipped(ending: Site) -> None:
    dead, live = await logged_in(ending), await logged_in(ending)
    first, second = dead.cookie, live.cookie
    await dead.do(log_out)
    assert first is not None
    assert second is not None
    assert (await ending.request(owner_of, f"{first}; {second}")).result == OWNER
    # A login and a logout end every other session that the browser has a cookie of.
    other = await logged_in(ending)
    live.take(await ending.request(confirm, f"{second}; {other.cookie}"))
    assert await other.do(owner_of) is None
    second = live.cookie
    another = await logged_in(ending)
    assert another.cookie is not None
    await ending.request(log_out, f"{second}; {another.cookie}")
    assert await live.do(owner_of) is None
    assert await another.do(owner_of) is None


async def test_the_idle_limit_moves_unless_the_session_has_ended(clock: Clock) -> None:
    async with serving(Site(in_cookies(Sealing()), clock, idle_timeout=600)) as site:
        browser = await logged_in(site)
        copy = site.browser(browser.token)
        clock.now += 100
        reply = await browser.request(owner_of)
        assert reply.set_cookie is not None
        await browser.do(log_out)
        reply = await copy.request(owner_of)
        assert (reply.result, reply.set_cookie) == (None, None)


async def test_calls_that_need_a_login_raise_if_it_has_ended(ending: Site) -> None:
    browser = await logged_in(ending)
    copy = ending.browser(browser.token)
    await browser.do(log_out)
    reply = await copy.request(confirm)
    assert (reply.status, reply.set_cookie) == (401, None)
    assert isinstance(reply.error, SessionLoginRequired)


async def test_nothing_is_read_before_the_look_up(ending_at: Site) -> None:
    async def times(session: Session) -> list[Any]:
        before = [session.authenticated_at, session.created_at, session.expires_at]
        await session.owner()
        return [*before, session.authenticated_at is not None, session.created_at is not None]

    browser = await logged_in(ending_at)
    assert await browser.do(times) == [None, None, None, True, True]


async def test_update_does_not_read_a_session_that_has_ended(ending: Site) -> None:
    async def count(session: Session) -> int:
        value: int = await session.update("n", lambda n: n + 1, 0)
        return value

    browser = await logged_in(ending)
    copy = ending.browser(browser.token)
    assert await browser.do(count) == 1
    copy.token = browser.token
    await browser.do(log_out)
    assert await copy.do(count) == 1


async def test_a_successor_is_ended_only_once(ending: Site) -> None:
    ended = ending.sessions._owners
    assert isinstance(ended, EndedSessions)
    expires = ending.clock.now + DAY
    one, two = Ending(token_hex(32), expires), Ending(token_hex(32), expires)
    assert await ended.end_once(one, two)
    assert await ended.end_once(one, two)  # The same call again: the answer to the first was lost.
    assert not await ended.end_once(one)
    assert await ended.end_to_last(one)
    assert not await ended.end_to_last(one)


# The options


@pytest.mark.parametrize(
    ("ended", "reason"),
    [
        ({"type": "cookies"}, "is a store, and cookies can't be one; choose memory, file"),
        (None, "write session(driver={'type': 'cookies', 'ended': {'type': 'sql'}})"),
        ("sql", "write session(driver={'type': 'cookies', 'ended': {'type': 'sql'}})"),
        ({"type": "sqlite"}, "there is no such driver"),
        ({"type": "sql", "path": "x"}, "the sql driver has no option 'path'"),
        (7, "takes a dict with the type of a store"),
    ],
)
def test_an_invalid_store_of_ended_sessions_is_an_error(ended: object, reason: str) -> None:
    with pytest.raises(ConfigError, match="the option 'ended' of the cookies driver") as caught:
        session(SECRET, {"type": "cookies", "ended": ended})
    assert reason in str(caught.value)


def test_only_the_cookies_driver_takes_ended() -> None:
    with pytest.raises(ConfigError, match="the memory driver has no option 'ended'"):
        session(SECRET, {"type": "memory", "ended": {"type": "memory"}})
    with pytest.raises(ConfigError, match="the cookies driver has no option 'end'; it takes ended"):
        session(SECRET, {"type": "cookies", "end": {"type": "memory"}})


async def test_ends_in_memory_are_refused_for_several_workers() -> None:
    app = App({}, integrations=[session(SECRET, {"type": "cookies", "ended": {"type": "memory"}})])
    app.workers = 2
    with pytest.raises(ConfigError, match=r"keeps ended sessions in one process, and 2 workers .* take file, redis, sql, mongodb"):
        await app.load()


async def test_ends_in_memory_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    async with serving(Site(in_cookies(MemoryDriver()), Clock())):
        pass
    assert "memory forgets ended sessions when this process ends" in caplog.text


@gaman_only
async def test_the_store_is_opened_swept_checked_and_closed(store: Recording) -> None:
    async with serving(Site(in_cookies(store), Clock())) as site:
        assert store.events == ["open"]
        assert await site.app.check() == {"session": None}
        assert await site.app.purge() == {"session": 0}
        assert store.events == ["open", "load", "purge"]
    assert store.events[-1] == "close"


async def test_the_sessions_use_the_clock_of_their_store() -> None:
    class Late(Sealing):
        async def time(self) -> float:
            return 4_000_000_000.0

    sessions = session(SECRET, in_cookies(Late()))
    async with sessions.running():
        assert sessions._owners.instant() == pytest.approx(4_000_000_000.0, abs=60)


def test_a_site_with_ended_sessions_logs_out_for_good(tmp_path: Any) -> None:
    async def enter(ctx: Context) -> Response:
        await ctx.session.login(OWNER)
        return Response("in")

    async def leave(ctx: Context) -> Response:
        await ctx.session.logout()
        return Response("out")

    async def name(ctx: Context) -> Response:
        return Response(await ctx.session.owner() or "a visitor")

    sessions: SessionIntegration = session(
        SECRET, {"type": "cookies", "ended": {"type": "sql", "file": str(tmp_path / "ended.db")}}, secure=False
    )
    app = App({"/in": enter, "/out": leave, "/": name}, integrations=[sessions])
    with TestClient(app) as here, TestClient(app) as thief:
        here.get("/in")
        thief.cookies.update(here.cookies)
        assert thief.get("/").text == OWNER
        here.get("/out")
        assert here.get("/").text == thief.get("/").text == "a visitor"


def test_an_outcome_of_a_missing_record_is_absent() -> None:
    """The store's contract, on which end_once() relies."""

    async def apply() -> Outcome:
        return await Sealing().apply("0" * 64, {"a": b""}, (), now=0, deadline=None, max_size=1)

    assert asyncio.run(apply()) is Outcome.ABSENT


async def test_a_value_is_read_after_a_renewal_in_the_same_request(ending: Site) -> None:
    async def work(session: Session) -> Any:
        await session.login(OWNER)
        await session.set("b", 2)
        return await session.get("a"), await session.get("b"), await session.owner()

    browser = ending.browser()
    await browser.do(setting(a=1))
    assert await browser.do(work) == (1, 2, OWNER)
    assert await browser.do(getting("a")) == 1
