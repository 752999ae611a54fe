"""The list of an owner's sessions in cookies, in each kind of store of ended sessions."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Iterator
from contextvars import ContextVar
from datetime import UTC, datetime
from secrets import token_hex
from typing import Any

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gaman import ConfigError
from gaman.session import Driver, OwnedSession, Record, Session, SessionStoreError, SessionTooLarge, SessionUnsupported, session
from gaman_session._ended import EndedSessions, Ending
from gaman_session._ended_store import MAX_COOKIE_AGE
from gaman_session._login_list import MAX_NOTE, MAX_SESSIONS, Listed, login_of
from tests.session.endings import OWNER, confirm, handle_of, in_cookies, log_in, log_out, logged_in, owner_of, regenerate
from tests.session.sites import DRIVERS, SECRET, Browser, Clock, Recording, Sealing, Site, Work, opened, serving, setting

pytestmark = pytest.mark.anyio


async def handles(site: Site) -> list[str]:
    return [each.handle for each in await site.sessions.list(OWNER)]


async def handle(browser: Browser) -> Any:
    return await browser.do(handle_of)


def logging_in(owner: str = OWNER, **options: Any) -> Work:
    async def work(session: Session) -> None:
        await session.login(owner, **options)

    return work


def stored(site: Site) -> EndedSessions:
    assert isinstance(site.sessions._owners, EndedSessions)
    return site.sessions._owners


# What is listed


async def test_a_list_has_each_session_in_the_order_of_the_logins(ending: Site, clock: Clock) -> None:
    began = int(clock.now)
    phone, desk = ending.browser(), ending.browser()
    await phone.do(logging_in(note={"device": "a phone"}))
    clock.now += 1
    await desk.do(log_in)
    await ending.browser().do(logging_in("user:2"))
    await ending.browser().do(setting(cart=[1]))
    first, second = await ending.sessions.list(OWNER)
    assert first == OwnedSession(
        handle=await handle(phone),
        created_at=datetime.fromtimestamp(began, UTC),
        last_used_at=None,
        expires_at=datetime.fromtimestamp(began + 86_400, UTC),
        note={"device": "a phone"},
    )
    assert (second.handle, second.note) == (await handle(desk), None)
    assert await ending.sessions.count(OWNER) == 2
    assert await ending.sessions.list("user:3") == []
    assert await ending.sessions.count("user:3") == 0


async def test_all_sessions_in_cookies_can_not_be_counted(ending: Site) -> None:
    with pytest.raises(SessionUnsupported, match=r"count\(\) without an owner; name one"):
        await ending.sessions.count()


@pytest.mark.parametrize("renew", [confirm, regenerate, log_in], ids=["confirm", "regenerate", "login"])
async def test_a_session_is_listed_once_under_each_new_id(ending: Site, renew: Work) -> None:
    browser = ending.browser()
    await browser.do(logging_in(note="a phone"))
    for _ in range(3):
        await browser.do(renew)
        assert await handles(ending) == [await handle(browser)]
    if renew is not log_in:
        assert [each.note for each in await ending.sessions.list(OWNER)] == ["a phone"]


async def test_a_login_of_a_visitor_and_of_another_user_in_one_browser(ending: Site) -> None:
    browser = ending.browser()
    await browser.do(setting(cart=[1]))
    await browser.do(log_in)
    assert await handles(ending) == [await handle(browser)]
    await browser.do(logging_in("user:2"))
    assert await handles(ending) == []
    assert [each.handle for each in await ending.sessions.list("user:2")] == [await handle(browser)]


@pytest.mark.parametrize("way", ["logout", "end", "end_all", "end_everyone", "expiry", "a new user"])
async def test_a_session_that_has_ended_is_not_listed(ending: Site, clock: Clock, way: str) -> None:
    browser = await logged_in(ending)
    await browser.do(confirm)
    match way:
        case "logout":
            await browser.do(log_out)
        case "end":
            await ending.sessions.end(await handle(browser))
        case "end_all":
            await ending.sessions.end_all(OWNER)
        case "end_everyone":
            await ending.sessions.end_everyone()
        case "expiry":
            clock.now += 86_401
        case _:
            await browser.do(logging_in("user:2"))
    assert await handles(ending) == []
    clock.now += 2
    later = await logged_in(ending)
    assert await handles(ending) == [await handle(later)]


async def test_a_session_is_ended_by_the_handle_in_the_list(ending: Site) -> None:
    browsers = [await logged_in(ending) for _ in range(3)]
    await browsers[1].do(confirm)
    first, second, third = await handles(ending)
    assert await ending.sessions.end(second)
    assert [await each.do(owner_of) for each in browsers] == [OWNER, None, OWNER]
    assert await handles(ending) == [first, third]


async def test_the_session_that_end_all_keeps_stays_listed(ending: Site, clock: Clock) -> None:
    async def end_others(session: Session) -> None:
        assert await ending.sessions.end_all(OWNER, keep=session) == 2

    mine, *_ = [await logged_in(ending) for _ in range(3)]
    clock.now += 1
    await mine.do(end_others)
    assert await handles(ending) == [await handle(mine)]
    await mine.do(confirm)
    assert await handles(ending) == [await handle(mine)]
    assert await ending.sessions.end_all(OWNER) == 1
    assert ending.sessions.counters.ended == 3


async def test_a_login_that_ends_the_others_is_listed(ending: Site) -> None:
    async def log_in_and_end_others(session: Session) -> None:
        await session.login(OWNER, note="mine")
        await ending.sessions.end_all(OWNER, keep=session)

    await logged_in(ending)
    mine = ending.browser()
    await mine.do(log_in_and_end_others)
    assert [(each.handle, each.note) for each in await ending.sessions.list(OWNER)] == [(await handle(mine), "mine")]


async def test_a_logout_with_an_old_cookie_leaves_the_note_of_the_session_that_goes_on(ending: Site, clock: Clock) -> None:
    browser = ending.browser()
    await browser.do(logging_in(note="a phone"))
    copy = ending.browser(browser.token)
    await browser.do(confirm)
    clock.now += 61
    await copy.do(log_out)
    assert [(each.handle, each.note) for each in await ending.sessions.list(OWNER)] == [(await handle(browser), "a phone")]


async def test_a_new_id_after_end_all_is_listed_for_its_whole_life(ending: Site, clock: Clock) -> None:
    async def end_others(session: Session) -> None:
        await ending.sessions.end_all(OWNER, keep=session)

    browser = ending.browser()
    await browser.do(logging_in(note="a phone"))
    clock.now += 80_000
    await browser.do(end_others)
    await browser.do(confirm)
    clock.now += 10_000
    # The record of the old id has expired.
    assert await browser.do(owner_of) == OWNER
    assert [(each.handle, each.note) for each in await ending.sessions.list(OWNER)] == [(await handle(browser), "a phone")]


async def test_logins_in_one_browser_leave_nothing_in_the_list(clock: Clock) -> None:
    store = Recording()
    async with serving(Site(in_cookies(store), clock)) as site:
        browser = site.browser()
        for _ in range(100):
            await browser.do(logging_in(note="a phone"))
        store.events.clear()
        assert await handles(site) == [await handle(browser)]
        assert len(store.events) < 10


# The idle limit


@pytest.mark.parametrize("name", [name for name in DRIVERS if "cookies" not in name])
async def test_a_session_in_use_stays_listed_and_an_idle_one_does_not(name: str, clock: Clock) -> None:
    async with serving(Site(in_cookies(DRIVERS[name]()), clock, idle_timeout=1000, secret=token_hex(32))) as site:
        used, changed, _ = [await logged_in(site) for _ in range(3)]
        for turn in range(25):
            clock.now += 70
            await used.do(owner_of)
            await changed.do(setting(a=turn))
            assert (await handles(site))[:2] == [await handle(used), await handle(changed)]
        first, second = await site.sessions.list(OWNER)
        for each in (first, second):
            assert each.last_used_at is not None
            # To a tenth of the limit.
            assert 0 <= clock.now - each.last_used_at.timestamp() <= 100
        clock.now += 1201
        assert await used.do(owner_of) is None
        assert await handles(site) == []


async def test_a_change_writes_to_the_list_ten_times_in_an_idle_limit(clock: Clock) -> None:
    store = Recording()
    async with serving(Site(in_cookies(store), clock, idle_timeout=1000)) as site:
        browser = await logged_in(site)
        store.events.clear()
        for turn in range(100):
            clock.now += 10
            await browser.do(setting(a=turn))
        assert store.events.count("apply") == 10


# The limit of sessions


@pytest.mark.parametrize("name", [name for name in DRIVERS if "cookies" not in name])
async def test_the_oldest_session_ends_when_there_are_too_many(name: str, clock: Clock) -> None:
    async with serving(Site(in_cookies(DRIVERS[name]()), clock, max_sessions_per_owner=2, secret=token_hex(32))) as site:
        browsers = [await logged_in(site) for _ in range(2)]
        other_user = site.browser()
        await other_user.do(logging_in("user:2"))
        await browsers[0].do(confirm)
        browsers += [await logged_in(site)]
        assert [await each.do(owner_of) for each in browsers] == [None, OWNER, OWNER]
        assert await other_user.do(owner_of) == "user:2"
        # Another login on the same device isn't another session.
        await browsers[1].do(log_in)
        assert [await each.do(owner_of) for each in browsers] == [None, OWNER, OWNER]
        # A device that has logged out makes room.
        await browsers[1].do(log_out)
        browsers += [await logged_in(site)]
        assert [await each.do(owner_of) for each in browsers] == [None, None, OWNER, OWNER]


async def test_a_session_that_the_limit_has_ended_stays_ended(clock: Clock) -> None:
    store = Sealing()
    async with serving(Site(in_cookies(store), clock, idle_timeout=1800, max_sessions_per_owner=1)) as site:
        before, after, apply = await logged_in(site), site.browser(), store.apply

        async def apply_later(id: str, *arguments: Any, **named: Any) -> Any:
            store.apply = apply  # type: ignore[method-assign]  # of this object only
            await after.do(log_in)
            return await apply(id, *arguments, **named)

        clock.now += 1790
        # A use of the session that overlaps its end sends a cookie that lives on.
        store.apply = apply_later  # type: ignore[method-assign]  # of this object only
        await before.request(setting(a=1))
        for _ in range(10):
            assert (await before.do(owner_of), await after.do(owner_of)) == (None, OWNER)
            clock.now += 300
            await site.app.purge()


async def test_a_renewal_beside_another_login_counts_once(clock: Clock) -> None:
    store = Sealing()
    async with serving(Site(in_cookies(store), clock, max_sessions_per_owner=2)) as site:
        phone, desk, create = await logged_in(site), site.browser(), store.create

        async def create_later(id: str, record: Any) -> Any:
            store.create = create  # type: ignore[method-assign]  # of this object only
            await desk.do(log_in)
            return await create(id, record)

        store.create = create_later  # type: ignore[method-assign]  # of this object only
        await phone.do(confirm)
        assert (await phone.do(owner_of), await desk.do(owner_of)) == (OWNER, OWNER)
        assert await site.sessions.count(OWNER) == 2


async def test_two_logins_at_one_instant_leave_one(clock: Clock) -> None:
    store, behind = Sealing(), Clock()
    behind.now -= 0.005
    async with (
        serving(Site(in_cookies(store), clock, max_sessions_per_owner=1)) as ahead,
        serving(Site(opened(in_cookies(store)), behind, max_sessions_per_owner=1)) as site,
    ):
        await logged_in(ahead)
        browsers = [site.browser(), site.browser()]
        await asyncio.gather(*(each.do(log_in) for each in browsers))
        assert sorted([str(await each.do(owner_of)) for each in browsers]) == ["None", OWNER]


# The store


async def test_a_login_waits_for_the_store_no_longer_than_without_a_list(clock: Clock) -> None:
    class AtOnce(Recording):
        """Answers its first calls once there are four."""

        calls = 0

        async def _wait(self) -> None:
            self.calls += 1
            for _ in range(100):
                await asyncio.sleep(0)
                if self.calls >= 4:
                    return
            raise AssertionError("calls follow each other")

        async def load(self, id: str, *, now: float) -> Any:
            found = await super().load(id, now=now)
            await self._wait()
            return found

        async def apply(self, id: str, *arguments: Any, **named: Any) -> Any:
            outcome = await super().apply(id, *arguments, **named)
            await self._wait()
            return outcome

    store = AtOnce()
    async with serving(Site(in_cookies(store), clock)) as site:
        await logged_in(site)
        store.events.clear()
        store.calls = 0
        await logged_in(site)
        # The look-up of the login, and its entry; one login in eight also loads the list. All of that is at once.
        assert sorted(store.events)[:4] == ["apply", "load", "load", "load"]
        assert store.events[4:] in ([], ["load"])


async def test_a_read_does_not_load_the_list(clock: Clock) -> None:
    store = Recording()
    async with serving(Site(in_cookies(store), clock)) as site:
        browser = await logged_in(site)
        store.events.clear()
        await browser.do(owner_of)
        assert store.events == ["load"] * 3


async def test_logins_that_have_expired_leave_the_store(clock: Clock) -> None:
    store = Sealing()
    async with serving(Site(in_cookies(store), clock, max_age=3600)) as site:
        for day in range(400):
            await site.browser().do(logging_in(note=day))
            clock.now += 86_400
        [record] = store._sessions.values()
        # Each has a note, and one field keeps the record. One login in eight removes the others.
        assert len(record.fields) < 2 * 100


async def test_a_list_that_is_full_loses_its_older_half(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    async with serving(Site(in_cookies(Sealing()), clock)) as site:
        caplog.set_level(logging.WARNING, "gaman")
        first = await logged_in(site)
        for _ in range(450):
            clock.now += 1
            await site.browser().do(logging_in(note="a" * 1000))
        last = await logged_in(site)
        listed = await handles(site)
        assert 150 < len(listed) < 400
        assert listed[-1] == await handle(last)
        assert "oldest logins of an owner; set max_sessions_per_owner" in caplog.text
        # They go on, and end_all() ends them.
        assert await first.do(owner_of) == OWNER
        await site.sessions.end_all(OWNER)
        assert await first.do(owner_of) is None


async def test_the_largest_limit_of_sessions_fits_into_the_list_with_the_largest_notes(clock: Clock) -> None:
    with pytest.raises(ConfigError, match="max_sessions_per_owner=301"):
        session(SECRET, in_cookies(Sealing()), max_sessions_per_owner=MAX_SESSIONS + 1)
    async with serving(Site(in_cookies(Sealing()), clock, max_sessions_per_owner=MAX_SESSIONS)) as site:
        first = await logged_in(site)
        for _ in range(MAX_SESSIONS):
            await site.browser().do(logging_in(note="a" * (MAX_NOTE - 3)))
        assert len(await handles(site)) == MAX_SESSIONS
        assert await first.do(owner_of) is None


async def test_a_note_that_is_too_large_is_an_error_of_the_login(ending: Site) -> None:
    browser = ending.browser()
    reply = await browser.request(logging_in(note="a" * MAX_NOTE))
    assert isinstance(reply.error, SessionTooLarge)
    assert reply.set_cookie is None
    assert await handles(ending) == []


@pytest.mark.parametrize("action", ["apply", "create"])
async def test_a_login_that_can_not_be_listed_fails(clock: Clock, action: str) -> None:
    store = Recording()
    async with serving(Site(in_cookies(store), clock)) as site:
        store.failing = {action}
        reply = await site.browser().request(log_in)
        assert (reply.status, reply.set_cookie) == (503, None)


@pytest.mark.parametrize("work", [confirm, regenerate, log_in], ids=["confirm", "regenerate", "login"])
@pytest.mark.parametrize("action", ["load", "create", "apply"])
async def test_a_new_id_that_can_not_be_written_is_not_listed(clock: Clock, work: Work, action: str) -> None:
    store = Recording()
    async with serving(Site(in_cookies(store), clock)) as site:
        browser = await logged_in(site)
        for _ in range(3):
            store.failing = {action}
            reply = await browser.request(work)
            assert reply.status == 503
            # A renewal writes to the list last, when the old id is dead.
            assert (reply.set_cookie is None) == (work is log_in or action != "apply")
            store.failing = set()
            assert await browser.do(owner_of) == OWNER
        assert await handles(site) == [await handle(browser)]


@pytest.mark.parametrize("action", ["load", "apply"])
async def test_failed_logins_take_no_place_in_the_limit(clock: Clock, action: str) -> None:
    store = Recording()
    async with serving(Site(in_cookies(store), clock, max_sessions_per_owner=2)) as site:
        phone, desk = await logged_in(site), site.browser()
        for _ in range(3):
            clock.now += 1
            store.failing = {action}
            assert (await desk.request(log_in)).status == 503
            store.failing = set()
        await desk.do(log_in)
        assert await phone.do(owner_of) == OWNER
        assert await handles(site) == [await handle(phone), await handle(desk)]


async def test_a_new_id_is_listed_although_that_could_not_be_written(clock: Clock) -> None:
    class Late(Sealing):
        """Fails after the end of the old id."""

        has_ended = False

        async def create(self, id: str, record: Any) -> Any:
            self.has_ended = "next" in record.fields
            return await super().create(id, record)

        async def apply(self, id: str, *arguments: Any, **named: Any) -> Any:
            if self.has_ended:
                raise SessionStoreError("late", "apply")
            return await super().apply(id, *arguments, **named)

    store = Late()
    async with serving(Site(in_cookies(store), clock, max_age=86_400)) as site:
        browser = await logged_in(site)
        clock.now += 80_000
        store.has_ended = False
        assert (await browser.request(confirm)).status == 503
        store.has_ended = False
        clock.now += 10_000
        # The cookie of the old id has expired.
        assert await browser.do(owner_of) == OWNER
        assert await handles(site) == [await handle(browser)]


async def test_a_logout_succeeds_although_the_list_can_not_be_changed(clock: Clock) -> None:
    store = Recording()
    async with serving(Site(in_cookies(store), clock)) as site:
        browser = await logged_in(site)
        copy = site.browser(browser.token)
        store.failing = {"apply"}
        assert (await browser.request(log_out)).status == 200
        store.failing = set()
        assert await copy.do(owner_of) is None
        assert await handles(site) == []


async def test_a_list_fails_if_the_store_does(clock: Clock) -> None:
    store = Recording()
    async with serving(Site(in_cookies(store), clock)) as site:
        await logged_in(site)
        store.failing = {"load"}
        for call in (site.sessions.list(OWNER), site.sessions.count(OWNER), site.sessions.end_all(OWNER)):
            with pytest.raises(SessionStoreError):
                await call


async def test_a_list_is_found_after_the_secret_was_rotated(clock: Clock) -> None:
    old, new = token_hex(32), token_hex(32)
    store: Driver = Sealing()
    async with (
        serving(Site(in_cookies(store), clock, secret=old)) as before,
        serving(Site(opened(in_cookies(store)), clock, secret=[new, old])) as rotated,
    ):
        browser, other = before.browser(), before.browser()
        await browser.do(logging_in(note="a phone"))
        await other.do(logging_in(note="a desk"))
        browser.site = other.site = rotated
        await browser.do(confirm)
        clock.now += 1
        third = await logged_in(rotated)
        assert [(each.handle, each.note) for each in await rotated.sessions.list(OWNER)] == [
            (await handle(browser), "a phone"),
            (await handle(other), "a desk"),
            (await handle(third), None),
        ]


async def test_a_list_from_elsewhere_counts_as_absent_and_is_logged(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    store = Sealing()
    async with serving(Site(in_cookies(store), clock)) as site:
        await logged_in(site)
        [record] = store._sessions.values()
        [field] = [each for each in record.fields if " " in each]
        # Another owner's, and a session that no one has logged in to.
        record.fields["0" * 32 + " " + "1" * 64] = record.fields[field]
        record.fields["2" * 32 + " " + "3" * 64] = b"damaged"
        assert len(await handles(site)) == 1
        assert "a login of an owner is damaged and counts as absent" in caplog.text


async def test_the_store_has_no_owner_and_no_note(clock: Clock) -> None:
    store = Sealing()
    async with serving(Site(in_cookies(store), clock)) as site:
        browser = site.browser()
        await browser.do(logging_in(note="Firefox on Linux"))
        await browser.do(confirm)
        kept = repr({id: record.fields for id, record in store._sessions.items()})
        for secret in (OWNER, "Firefox", str(browser.token)):
            assert secret not in kept


@pytest.mark.parametrize(
    "following",
    [
        b"\xc1",
        b"",
        msgspec.msgpack.encode(("../../etc/passwd", 4e9)),
        msgspec.msgpack.encode(("0" * 64, math.nan)),
        msgspec.msgpack.encode(("0" * 64, 1e300)),
        msgspec.msgpack.encode(7),
    ],
    ids=["no MessagePack", "nothing", "no handle", "nan", "too late", "a number"],
)
async def test_a_damaged_next_id_counts_as_absent(clock: Clock, following: bytes, caplog: pytest.LogCaptureFixture) -> None:
    store = Sealing()
    async with serving(Site(in_cookies(store), clock, max_sessions_per_owner=2)) as site:
        browser, other = await logged_in(site), await logged_in(site)
        former, old = await handle(browser), site.browser(browser.token)
        await browser.do(confirm)
        store._sessions[former].fields["next"] = following
        assert await handles(site) == [await handle(browser), await handle(other)]
        assert await site.sessions.end(former) is False
        assert (await old.request(log_out)).status == 200
        await site.browser().do(log_in)
        assert await site.sessions.end_all(OWNER) == 2
        if following:
            assert "its next id is damaged and counts as absent" in caplog.text


async def test_a_cycle_in_the_store_ends_no_process(clock: Clock) -> None:
    """With write access to the store, one can have a session lead to any other."""
    store = Sealing()
    async with serving(Site(in_cookies(store), clock)) as site:
        browser = await logged_in(site)
        first, old = await handle(browser), site.browser(browser.token)
        await browser.do(confirm)
        second = await handle(browser)
        await browser.do(confirm)
        store._sessions[second].fields["next"] = msgspec.msgpack.encode(Ending(first, clock.now + 99))
        await stored(site).logins.put(
            OWNER, login_of("a"), Listed(first, clock.now, clock.now, clock.now + 9, clock.now + 9, clock.now + 9), clock.now
        )
        assert await handles(site) == [await handle(browser)]
        assert await site.sessions.end(first) is False
        assert (await old.request(log_out)).status == 200
        assert await browser.do(owner_of) == OWNER


async def test_end_all_ends_the_sessions_although_their_list_can_not_be_read(clock: Clock) -> None:
    class Listless(Sealing):
        is_failing = False

        async def load(self, id: str, *, now: float) -> Any:
            found = await super().load(id, now=now)
            if self.is_failing and isinstance(found, Record) and "kept" in found.fields:
                raise SessionStoreError("listless", "load")
            return found

    store = Listless()
    async with serving(Site(in_cookies(store), clock)) as site:
        browser = await logged_in(site)
        store.is_failing = True
        with pytest.raises(SessionStoreError):
            await site.sessions.end_all(OWNER)
        assert await browser.do(owner_of) is None


# Changes of the options


@pytest.mark.parametrize(
    ("before", "after"), [(1000, None), (None, 1000), (86_400, 1000), (1000, 86_400)], ids=["removed", "added", "lowered", "raised"]
)
async def test_a_live_session_stays_listed_after_a_change_of_the_idle_limit(
    clock: Clock, before: int | None, after: int | None
) -> None:
    store: Driver = Sealing()
    options: dict[str, Any] = {"max_age": 30 * 86_400}
    async with (
        serving(Site(in_cookies(store), clock, idle_timeout=before, **options)) as old,
        serving(Site(opened(in_cookies(store)), clock, idle_timeout=after, **options)) as new,
    ):
        browser = old.browser()
        await browser.do(logging_in(note="a phone"))
        clock.now += 90
        await browser.do(setting(a=0))
        browser.site = new
        for turn in range(30):
            clock.now += 333
            assert [each.note for each in await new.sessions.list(OWNER)] == ["a phone"]
            await browser.do(setting(a=turn))
            assert await browser.do(owner_of) == OWNER


async def test_a_session_that_was_written_with_the_new_secret_stays_listed_without_the_old_one(clock: Clock) -> None:
    old, new = token_hex(32), token_hex(32)
    store: Driver = Sealing()
    async with (
        serving(Site(in_cookies(store), clock, secret=old)) as before,
        serving(Site(opened(in_cookies(store)), clock, secret=[new, old])) as rotated,
        serving(Site(opened(in_cookies(store)), clock, secret=new)) as after,
    ):
        browser = await logged_in(before)
        browser.site = rotated
        await browser.do(setting(a=1))
        browser.site = after
        assert await browser.do(owner_of) == OWNER
        assert await handles(after) == [await handle(browser)]


async def test_a_session_that_no_browser_keeps_is_not_listed(clock: Clock) -> None:
    async with serving(Site(in_cookies(Sealing()), clock, max_age=1000 * 86_400)) as site:
        browser = await logged_in(site)
        clock.now += MAX_COOKIE_AGE - 1
        assert await handles(site) == [await handle(browser)]
        clock.now += 2
        assert await handles(site) == []


# Clocks


@pytest.mark.parametrize("seconds", [0.05, 3600])
async def test_the_newest_login_counts_as_the_newest_although_its_clock_is_behind(clock: Clock, seconds: float) -> None:
    async with serving(Site(in_cookies(Sealing()), clock, max_sessions_per_owner=1)) as site:
        before = await logged_in(site)
        clock.now -= seconds
        after = await logged_in(site)
        assert (await before.do(owner_of), await after.do(owner_of)) == (None, OWNER)


# Overlapping requests


class Slow(Sealing):
    """Lets other requests go on before each call, and after it, for as many turns of the event loop as *turns* says."""

    def __init__(self) -> None:
        super().__init__()
        self.turns: Iterator[int] = iter(())

    async def _wait(self) -> None:
        for _ in range(next(self.turns, 0)):
            await asyncio.sleep(0)

    async def load(self, id: str, *, now: float) -> Any:
        await self._wait()
        found = await super().load(id, now=now)
        await self._wait()
        return found

    async def create(self, id: str, record: Any) -> Any:
        await self._wait()
        created = await super().create(id, record)
        await self._wait()
        return created

    async def apply(self, id: str, *arguments: Any, **named: Any) -> Any:
        await self._wait()
        outcome = await super().apply(id, *arguments, **named)
        await self._wait()
        return outcome


async def end_all(session: Session) -> None:
    await session.has("a")
    await session_of.get().sessions.end_all(OWNER, keep=session)


async def write(session: Session) -> None:
    await session.set("a", token_hex(4))


KINDS = {"log in": log_in, "log out": log_out, "confirm": confirm, "regenerate": regenerate, "write": write, "end all": end_all}
session_of: ContextVar[Site] = ContextVar("session_of")


@settings(max_examples=5 * settings().max_examples, deadline=None)
@example(kinds=["confirm", "end all"], turns=[], gap=0)
@example(kinds=["confirm", "end all"], turns=[], gap=150)
@given(
    kinds=st.lists(st.sampled_from(sorted(KINDS)), min_size=2, max_size=4),
    turns=st.lists(st.integers(0, 6), max_size=60),
    gap=st.sampled_from([0, 150]),
)
def test_the_list_has_the_sessions_that_a_cookie_opens(kinds: list[str], turns: list[int], gap: int) -> None:
    """Whatever concurrent requests do, no cookie opens a session of the owner that isn't listed."""

    async def play() -> None:
        store, clock = Slow(), Clock()
        async with serving(Site(in_cookies(store), clock, idle_timeout=1000)) as site:
            session_of.set(site)
            browser = await logged_in(site)
            clock.now += gap
            store.turns = iter(turns)
            replies = await asyncio.gather(*(site.request(KINDS[kind], browser.cookie) for kind in kinds))
            store.turns = iter(())
            live: list[str] = []
            for reply in replies:
                after = Browser(site, browser.token)
                after.take(reply)
                if await after.do(owner_of) == OWNER:
                    live.append(await handle(after))
            assert sorted(set(live)) == sorted(await handles(site))

    asyncio.run(play())
