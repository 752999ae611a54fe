"""What a handler sees of its session, on every driver."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from gaman import App, Context, HTTPError, Response, define_integration
from gaman.errors import a_type
from gaman.session import Session, SessionClosed, SessionConflict, SessionSerializationError, SessionTypeError
from gaman_session._stored import StoredSession
from gaman_session.drivers.memory import MemoryDriver
from tests.session.sites import Browser, Clock, Sealing, Site, gaman_only, getting, opened, serving, setting

pytestmark = pytest.mark.anyio

USER = {"id": 1, "name": "Angga", "email": "angga@example.com"}


async def _clear(session: Session) -> None:
    await session.clear()


async def test_the_seeds_workflow_works(site: Site) -> None:
    browser = site.browser()

    async def check(session: Session) -> Any:
        return await session.has("user"), bool(await session.get("isAuthenticated"))

    async def logout(session: Session) -> None:
        await session.delete("user")
        await session.delete("isAuthenticated")

    assert await browser.do(check) == (False, False)
    await browser.do(setting(user=USER, isAuthenticated=True))
    assert await browser.do(check) == (True, True)
    assert await browser.do(getting("user")) == USER
    await browser.do(logout)
    assert browser.token is None
    assert await browser.do(check) == (False, False)


def _alive() -> list[Context | Session]:
    # isinstance() is slow with abstract classes, and there are many objects.
    return [each for each in gc.get_objects() if not {Context, Session}.isdisjoint(type(each).__mro__)]


async def test_a_request_leaves_nothing_to_the_garbage_collector(site: Site) -> None:
    for _ in range(30):
        # First let each node of a Redis Cluster load the scripts: redis-py leaves an error in a cycle for each one that has not.
        await site.browser().do(setting(user=USER))
    browser = site.browser()
    gc.collect()
    before = _alive()
    gc.disable()
    try:
        await browser.do(setting(user=USER))
        assert await browser.do(getting("user")) == USER
        assert len(_alive()) == len(before)
    finally:
        gc.enable()


async def test_a_value_comes_back_as_it_was_set(site: Site) -> None:
    browser = site.browser()
    values = {
        "text": "123",
        "empty": "",
        "zero": 0,
        "no": False,
        "none": None,
        "octets": b"\x00\xff",
        "list": [1, [2.5]],
        "ключ": "🔑",
    }
    await browser.do(setting(**values))
    assert await browser.all() == values


@pytest.mark.parametrize("value", [0, "", False, None, [], {}], ids=repr)
async def test_has_tests_the_key_and_not_its_value(site: Site, value: Any) -> None:
    browser = site.browser()
    await browser.do(setting(key=value))

    async def work(session: Session) -> Any:
        return await session.has("key"), await session.has("other"), await session.get("key", "default")

    assert await browser.do(work) == (True, False, value)


async def test_a_missing_key_returns_the_default(site: Site) -> None:
    async def work(session: Session) -> Any:
        return await session.get("key"), await session.get("key", 5), await session.pop("key"), await session.pop("key", 6)

    assert await site.browser().do(work) == (None, 5, None, 6)


async def test_changing_an_object_later_changes_nothing(site: Site) -> None:
    browser = site.browser()

    async def work(session: Session) -> None:
        cart = ["apple"]
        await session.set("cart", cart)
        cart.append("pear")
        (await session.get("cart")).append("plum")

    await browser.do(work)
    assert await browser.do(getting("cart")) == ["apple"]


async def test_a_request_reads_its_own_changes(site: Site) -> None:
    browser = site.browser()
    await browser.do(setting(a=1, b=2))

    async def work(session: Session) -> Any:
        await session.set("a", 10)
        await session.delete("b")
        await session.set("c", 3)
        return await session.get("a"), await session.has("b"), await session.pop("c"), await session.all()

    assert await browser.do(work) == (10, False, 3, {"a": 10})
    assert await browser.all() == {"a": 10}


async def test_deleting_a_missing_key_does_nothing(site: Site) -> None:
    async def work(session: Session) -> None:
        await session.delete("key")
        await session.delete("key")

    reply = await site.request(work)
    assert (reply.status, reply.set_cookie) == (200, None)


async def test_deleting_the_last_key_ends_the_session(site: Site) -> None:
    browser = site.browser()
    await browser.do(setting(a=1, b=2))

    async def one(session: Session) -> None:
        await session.delete("a")

    async def other(session: Session) -> None:
        await session.pop("b")

    await browser.do(one)
    token = browser.token
    await browser.do(other)
    assert token is not None
    assert browser.token is None


async def test_a_session_that_stays_empty_sends_no_cookie(site: Site) -> None:
    async def work(session: Session) -> None:
        await session.get("key")
        await session.set("key", 1)
        await session.delete("key")
        await session.regenerate()
        await session.clear()

    assert (await site.request(work)).set_cookie is None


async def test_clear_ends_the_session_and_a_later_set_begins_a_new_one(site: Site) -> None:
    browser = site.browser()
    await browser.do(setting(old=1))
    before = browser.token

    async def work(session: Session) -> Any:
        old = session.id
        await session.clear()
        seen = await session.all(), session.is_new
        await session.set("new", 2)
        return old, seen

    old, seen = await browser.do(work)
    assert seen == ({}, True)
    assert browser.token != before
    assert await browser.all() == {"new": 2}

    async def handle(session: Session) -> Any:
        return session.id

    assert await browser.do(handle) != old


async def test_logout_removes_the_cookie(site: Site) -> None:
    browser = site.browser()
    await browser.do(setting(a=1))
    reply = await browser.request(_clear)
    assert reply.set_cookie == "__Host-Http-gaman=; Max-Age=0; Path=/; Secure; HttpOnly; SameSite=Lax"
    assert await browser.all() == {}


async def test_regenerate_keeps_the_data_under_a_new_id(site: Site) -> None:
    browser = site.browser()
    await browser.do(setting(a=1, b=2))
    before = browser.token

    async def login(session: Session) -> Any:
        old = session.id
        await session.set("user", USER)
        await session.delete("b")
        await session.regenerate()
        await session.set("after", True)
        return old

    old = await browser.do(login)
    assert browser.token not in (before, None)
    assert await browser.all() == {"a": 1, "user": USER, "after": True}

    async def handle(session: Session) -> Any:
        return session.id

    assert await browser.do(handle) != old


async def test_remember_me_gives_a_session_a_lifetime_of_its_own(site: Site, clock: Clock) -> None:
    browser = site.browser()

    async def login(session: Session) -> None:
        await session.set("user", USER)
        await session.regenerate(max_age=30 * 86_400)

    async def again(session: Session) -> None:
        await session.regenerate()

    assert "; Max-Age=2592000;" in str((await browser.request(login)).set_cookie)
    clock.now += 29 * 86_400
    assert await browser.do(getting("user")) == USER
    assert "; Max-Age=2592000;" in str((await browser.request(again)).set_cookie)
    clock.now += 29 * 86_400
    assert await browser.do(getting("user")) == USER
    clock.now += 86_400
    assert await browser.do(getting("user")) is None


async def test_a_cookie_that_ends_with_the_browser_stays_one(site: Site, clock: Clock) -> None:
    browser = site.browser()

    async def login(session: Session) -> None:
        await session.set("user", USER)
        await session.regenerate(max_age=0)

    async def again(session: Session) -> None:
        await session.regenerate()

    for work in (login, again):
        line = str((await browser.request(work)).set_cookie)
        assert line.startswith("__Host-Http-gaman=")
        assert "Max-Age" not in line
    clock.now += 86_399
    assert await browser.do(getting("user")) == USER
    clock.now += 1
    assert await browser.do(getting("user")) is None


@pytest.mark.parametrize("max_age", [-1, 1.5, "1", 10**30], ids=repr)
async def test_a_lifetime_is_a_whole_number_of_seconds(site: Site, max_age: Any) -> None:
    async def work(session: Session) -> None:
        with pytest.raises(ValueError, match="max_age is a whole number of seconds"):
            await session.regenerate(max_age=max_age)

    await site.browser().do(work)


async def test_max_age_is_absolute(site: Site, clock: Clock) -> None:
    browser = site.browser()
    await browser.do(setting(a=1))
    for _ in range(3):
        clock.now += 86_400 / 4
        await browser.do(setting(b=1))
    clock.now += 86_400 / 4 - 1
    assert await browser.do(getting("a")) == 1
    clock.now += 1
    assert await browser.do(getting("a")) is None


async def test_an_idle_session_expires_and_one_in_use_lasts_until_max_age(driver: Any, clock: Clock) -> None:
    async with serving(Site(driver, clock, idle_timeout=600, max_age=3600)) as site:
        browser = site.browser()
        await browser.do(setting(a=1))
        for _ in range(7):
            clock.now += 500
            assert await browser.do(getting("a")) == 1
        clock.now += 99
        assert await browser.do(getting("a")) == 1
        clock.now += 1
        assert await browser.do(getting("a")) is None
        await browser.do(setting(a=2))
        clock.now += 600
        assert await browser.do(getting("a")) is None


async def test_a_session_that_begins_after_clear_is_new_whatever_was_asked_of_it(site: Site) -> None:
    browser = site.browser()
    await browser.do(setting(old=1))

    async def work(session: Session) -> list[bool]:
        seen = [session.is_new]
        await session.clear()
        await session.set("new", 2)
        seen.append(session.is_new)
        # With the cookies driver, this gives the session its id.
        assert isinstance(session.id, str | None)
        seen.append(session.is_new)
        await session.regenerate()
        return [*seen, session.is_new]

    assert await browser.do(work) == [False, True, True, True]


async def test_a_session_has_its_times_once_it_is_read(driver: Any, clock: Clock) -> None:
    async with serving(Site(driver, clock, idle_timeout=600)) as site:
        browser = site.browser()
        began = clock.now

        async def times(session: Session) -> Any:
            await session.get("a")
            return session.created_at, session.expires_at, session.is_new

        assert await browser.do(times) == (None, None, True)
        await browser.do(setting(a=1))
        clock.now += 30
        assert await browser.do(times) == (datetime.fromtimestamp(began, UTC), datetime.fromtimestamp(began + 600, UTC), False)


async def test_a_session_that_begins_after_clear_is_new_whatever_was_read_before(site: Site) -> None:
    browser = site.browser()
    await browser.do(setting(old=1))

    async def work(session: Session) -> Any:
        await session.clear()
        await session.set("new", 2)
        before, _, _ = session.is_new, session.id, session.created_at
        return before, session.is_new

    assert await browser.do(work) == (True, True)


async def test_the_handle_of_a_session_is_the_same_each_time_and_opens_nothing(site: Site) -> None:
    browser = site.browser()

    async def handle(session: Session) -> Any:
        return session.id

    assert await browser.do(handle) is None
    await browser.do(setting(a=1))
    first = await browser.do(handle)
    assert first == await browser.do(handle)
    assert first not in str(browser.token)
    assert await site.browser(first).all() == {}


@dataclass
class User:
    id: int
    name: str
    email: str


ANGGA = User(1, "Angga", "angga@example.com")


async def test_a_value_is_decoded_into_the_given_type(site: Site) -> None:
    browser = site.browser()
    await browser.do(setting(user=ANGGA, when=datetime(2026, 1, 1, tzinfo=UTC), tags={"a"}))

    async def work(session: Session) -> Any:
        assert await session.get("user", type=dict[str, Any]) == USER
        assert await session.get("missing", type=User) is None
        assert await session.get("missing", 5, type=User) == 5
        return (
            await session.get("user", type=User),
            await session.get("when", type=datetime),
            await session.get("tags", type=set[str]),
        )

    assert await browser.do(work) == (ANGGA, datetime(2026, 1, 1, tzinfo=UTC), {"a"})


async def test_a_value_that_does_not_fit_the_type_raises_and_names_the_key(site: Site) -> None:
    async def work(session: Session) -> None:
        await session.set("user", "Angga")
        with pytest.raises(SessionTypeError, match="'user' doesn't fit User"):
            await session.get("user", type=User)

    await site.browser().do(work)


async def test_a_key_that_utf_8_cannot_encode_is_in_no_session(site: Site) -> None:
    async def work(session: Session) -> Any:
        await session.delete("\udcff")
        await session.set("kept", 1)
        await session.delete("\udcff")
        return await session.has("\udcff"), await session.get("\udcff"), await session.pop("\udcff", "none")

    browser = site.browser()
    for _ in range(2):
        assert await browser.do(work) == (False, None, "none")
    assert await browser.all() == {"kept": 1}


@pytest.mark.parametrize(
    "value",
    [object(), lambda: None, 2**70, "\ud800", iter(())],
    ids=["object", "function", "2**70", "surrogate", "iterator"],
)
async def test_a_value_that_cannot_be_encoded_raises_at_set(site: Site, value: Any) -> None:
    browser = site.browser()
    await browser.do(setting(key="before"))

    async def work(session: Session) -> None:
        with pytest.raises(SessionSerializationError, match=f"can't keep 'key', {a_type(value)}"):
            await session.set("key", value)

    await browser.do(work)
    assert await browser.all() == {"key": "before"}


async def test_update_returns_the_new_value_and_begins_a_session_if_there_is_none(site: Site) -> None:
    browser = site.browser()

    async def count(session: Session) -> Any:
        return await session.update("n", lambda n: n + 1, 0)

    assert [await browser.do(count) for _ in range(3)] == [1, 2, 3]
    assert await browser.all() == {"n": 3}


async def test_update_sees_what_the_request_has_set_and_saves_it(site: Site) -> None:
    browser = site.browser()

    async def work(session: Session) -> Any:
        await session.set("n", 10)
        await session.set("other", 1)
        return await session.update("n", lambda n: n * 2), await session.get("n"), await session.all()

    assert await browser.do(work) == (20, 20, {"n": 20, "other": 1})
    assert await browser.all() == {"n": 20, "other": 1}


async def test_an_update_that_raises_changes_nothing(site: Site) -> None:
    browser = site.browser()
    await browser.do(setting(n=1))

    async def work(session: Session) -> None:
        with pytest.raises(ZeroDivisionError):
            await session.update("n", lambda n: n / 0)
        assert await session.get("n") == 1

    await browser.do(work)
    assert await browser.all() == {"n": 1}


async def test_concurrent_updates_in_one_request_lose_nothing(site: Site) -> None:
    browser = site.browser()

    async def work(session: Session) -> None:
        await asyncio.gather(*(session.update("n", lambda n: n + 1, 0) for _ in range(20)))

    await browser.do(work)
    assert await browser.all() == {"n": 20}


async def test_a_handler_that_raises_leaves_the_session_as_it_was(site: Site) -> None:
    browser = site.browser()
    await browser.do(setting(a=1, b=2))

    async def work(session: Session) -> None:
        await session.set("a", 10)
        await session.delete("b")
        await session.regenerate()
        raise RuntimeError("oops")

    async def cleared(session: Session) -> None:
        await session.clear()
        await session.set("c", 3)
        raise RuntimeError("oops")

    for broken in (work, cleared):
        reply = await browser.request(broken)
        assert (reply.status, reply.set_cookie) == (500, None)
        assert await browser.all() == {"a": 1, "b": 2}


async def test_an_http_error_that_a_handler_raises_keeps_its_changes(site: Site) -> None:
    browser = site.browser()

    async def work(session: Session) -> None:
        await session.set("attempts", 3)
        raise HTTPError(403)

    assert (await browser.request(work)).status == 403
    assert await browser.all() == {"attempts": 3}


@pytest.mark.parametrize("status", [500, 503, 599])
async def test_a_response_of_500_or_more_drops_the_changes(site: Site, status: int) -> None:
    browser = site.browser()
    await browser.request(setting(a=1), response=Response("sorry", status))
    assert browser.token is None


async def test_after_the_headers_reads_still_work_and_changes_raise(site: Site) -> None:
    browser = site.browser()
    await browser.do(setting(a=1))
    seen: list[Any] = []
    sessions: list[Session] = []

    async def chunks() -> AsyncIterator[bytes]:
        session = sessions[0]
        seen.append((await session.get("a"), await session.get("b")))
        changes: list[Callable[[], object]] = [
            lambda: session.set("c", 1),
            lambda: session.delete("a"),
            session.clear,
            session.regenerate,
        ]
        for change in changes:
            with pytest.raises(SessionClosed, match="the response has begun"):
                change()
        with pytest.raises(SessionClosed, match="the response has begun"):
            await session.save()
        with pytest.raises(SessionClosed):
            await session.update("a", lambda a: a)
        with pytest.raises(SessionClosed):
            await session.pop("a")
        yield b"done"

    async def work(session: Session) -> None:
        sessions.append(session)
        await session.set("b", 2)
        await session.get("a")

    reply = await browser.request(work, response=Response.stream(chunks()))
    assert (reply.body, seen) == (b"done", [(1, 2)])
    assert await browser.all() == {"a": 1, "b": 2}


async def test_the_first_read_after_the_headers_raises_because_caches_may_have_the_response(site: Site) -> None:
    browser = site.browser()
    await browser.do(setting(a=1))
    sessions: list[Session] = []

    async def chunks() -> AsyncIterator[bytes]:
        with pytest.raises(SessionClosed, match="read it before"):
            await sessions[0].get("a")
        yield b"done"

    async def work(session: Session) -> None:
        sessions.append(session)

    assert (await browser.request(work, response=Response.stream(chunks()))).body == b"done"


async def test_two_hundred_concurrent_requests_keep_all_their_keys(store: Any, clock: Clock) -> None:
    async with serving(Site(store, clock)) as site:
        browser = site.browser()
        await browser.do(setting(first=0))
        await asyncio.gather(*(browser.do(setting(**{f"k{i}": i})) for i in range(200)))
        assert await browser.all() == {"first": 0, **{f"k{i}": i for i in range(200)}}


async def test_a_session_that_was_ended_elsewhere_is_not_revived(store: Any, clock: Clock) -> None:
    async with serving(Site(store, clock)) as site:
        browser = site.browser()
        await browser.do(setting(a=1))
        stale = Browser(site, browser.token)

        async def slow(session: Session) -> None:
            await session.get("a")
            await browser.do(_clear)
            await session.set("b", 2)

        reply = await stale.request(slow)
        assert (reply.status, reply.set_cookie) == (200, None)
        assert await stale.all() == {}


async def test_a_write_with_last_weeks_cookie_begins_a_new_session(store: Any, clock: Clock) -> None:
    async with serving(Site(store, clock)) as site:
        browser = site.browser()
        await browser.do(setting(a=1))
        old = browser.token
        clock.now += 7 * 86_400
        await browser.do(setting(b=2))
        assert browser.token not in (old, None)
        assert await browser.all() == {"b": 2}


async def test_save_writes_the_changes_before_the_response(store: Any, clock: Clock) -> None:
    async with serving(Site(store, clock)) as site:
        browser = site.browser()
        await browser.do(setting(a=1))

        async def work(session: Session) -> None:
            await session.set("a", 2)
            await session.save()
            assert await Browser(site, browser.token).all() == {"a": 2}
            raise RuntimeError("too late to undo")

        assert (await browser.request(work)).status == 500
        assert await browser.all() == {"a": 2}


async def test_a_session_that_was_saved_reaches_the_browser_even_if_the_handler_fails(store: Any, clock: Clock) -> None:
    async with serving(Site(store, clock)) as site:
        browser = site.browser()

        async def work(session: Session) -> None:
            await session.set("a", 1)
            await session.save()
            raise RuntimeError("oops")

        assert (await browser.request(work)).status == 500
        assert await browser.all() == {"a": 1}


@gaman_only
async def test_a_hook_that_fails_after_the_flush_does_not_lose_the_new_cookie(driver: Any, clock: Clock) -> None:
    def fail(ctx: Context, response: Response) -> None:
        raise RuntimeError("too late to matter")

    async def login(session: Session) -> None:
        await session.set("user", USER)
        await session.regenerate()

    site = Site(driver, clock)
    outer = define_integration(name="outer", priority="very-high", on_response=fail)
    site.app = App(site.app.routes, integrations=[outer, *site.app.integrations])
    async with serving(site):
        browser = site.browser()
        assert (await browser.request(login)).status == 500
        assert browser.token is not None
        assert (await browser.request(getting("user"))).result == USER


class Counting(Sealing):
    """A store that records its calls."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name in ("load", "create", "apply", "swap", "rename", "destroy"):
            self.calls.append(name)
        return super().__getattribute__(name)


async def _many_reads(session: Session) -> None:
    await asyncio.gather(*(session.get("a") for _ in range(10)), session.has("b"), session.all())


async def _read_and_set(session: Session) -> None:
    await session.get("a")
    await session.set("b", 1)
    await session.set("c", 1)
    await session.delete("d")


async def _set_and_read_that(session: Session) -> None:
    await session.set("b", 1)
    assert await session.get("b") == 1


async def _ask_for_the_handle(session: Session) -> None:
    assert session.id


async def _nothing(session: Session) -> None:
    pass


@pytest.mark.parametrize(
    ("work", "calls"),
    [
        (_nothing, []),
        (_ask_for_the_handle, []),
        (_many_reads, ["load"]),
        (setting(b=1, c=2), ["apply"]),
        (_set_and_read_that, ["apply"]),
        (_read_and_set, ["load", "apply"]),
        (_clear, ["destroy"]),
    ],
    ids=["untouched", "handle", "many reads", "sets", "set and read", "read and set", "logout"],
)
async def test_a_request_loads_in_one_round_trip_and_writes_in_one(clock: Clock, work: Any, calls: list[str]) -> None:
    driver = Counting()
    async with serving(Site(driver, clock)) as site:
        browser = site.browser()
        await browser.do(setting(a=1))
        driver.calls.clear()
        await browser.do(work)
        assert driver.calls == calls


class Slow(Counting):
    """Loads in the next iteration of the event loop."""

    async def load(self, id: str, *, now: float) -> Any:
        await asyncio.sleep(0)
        return await super().load(id, now=now)


async def test_cancelling_one_of_several_concurrent_reads_leaves_the_others(clock: Clock) -> None:
    driver = Slow()

    async def work(session: Session) -> None:
        reads = [asyncio.create_task(session.get("a")) for _ in range(5)]
        await asyncio.sleep(0)
        # One read is at the store, and one waits for it.
        reads[0].cancel()
        reads[2].cancel()
        await session.set("b", 2)
        await session.save()
        assert await asyncio.gather(*(reads[i] for i in (1, 3, 4))) == [1, 1, 1]

    async with serving(Site(driver, clock)) as site:
        browser = site.browser()
        await browser.do(setting(a=1))
        driver.calls.clear()
        await browser.do(work)
        assert driver.calls == ["load", "load", "apply"]
        assert await browser.all() == {"a": 1, "b": 2}


async def test_a_visitor_without_a_session_costs_no_round_trip(clock: Clock) -> None:
    driver = Counting()
    async with serving(Site(driver, clock)) as site:
        driver.calls.clear()
        for cookie in (None, "__Host-Http-gaman=", "__Host-Http-gaman=garbage", "__Host-Http-gaman=" + "A" * 72):
            await site.request(_many_reads, cookie)
            await site.request(_clear, cookie)
        assert driver.calls == []


async def test_reading_an_idle_session_writes_only_now_and_then(clock: Clock) -> None:
    driver = Counting()
    async with serving(Site(driver, clock, idle_timeout=1000)) as site:
        browser = site.browser()
        await browser.do(setting(a=1))
        driver.calls.clear()
        for _ in range(21):
            clock.now += 10
            await browser.do(getting("a"))
        assert driver.calls.count("load") == 21
        assert driver.calls.count("apply") == 2


async def test_an_update_that_always_meets_another_change_gives_up_loudly(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gaman_session._stored.MAX_ATTEMPTS", 3)
    driver = Sealing()
    async with serving(Site(driver, clock)) as site:
        browser = site.browser()
        await browser.do(setting(n=1))

        async def work(session: Session) -> None:
            assert isinstance(session, StoredSession)

            def contended(n: int) -> int:
                record = next(iter(driver._sessions.values()))
                record.fields["n"] = record.fields["n"] + b"!"
                return n

            with pytest.raises(SessionConflict, match="3 times"):
                await session.update("n", contended, 0)

        await browser.do(work)


async def test_values_in_a_store_are_sealed_and_moving_them_makes_them_absent(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    driver = Sealing()
    async with serving(Site(driver, clock)) as site:
        browser, attacker = site.browser(), site.browser()
        await browser.do(setting(preferences={"theme": "dark"}, isAuthenticated=True))
        await attacker.do(setting(preferences={"theme": "light"}))
        theirs, mine = driver._sessions.values()
        assert not any(b"theme" in value or b"dark" in value for value in (*theirs.fields.values(), *mine.fields.values()))
        mine.fields["isAuthenticated"] = mine.fields["preferences"]
        mine.fields["stolen"] = theirs.fields["isAuthenticated"]

        async def work(session: Session) -> Any:
            found = await session.has("isAuthenticated"), await session.get("isAuthenticated"), await session.get("stolen")
            return found, await session.all()

        for _ in range(2):
            assert await attacker.do(work) == ((False, None, None), {"preferences": {"theme": "light"}})
        unreadable = [record for record in caplog.records if "is damaged" in record.message]
        assert len(unreadable) == 2


async def test_write_access_to_a_store_prolongs_no_session(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    store = Sealing()
    async with serving(Site(store, clock, max_age=1000)) as site:
        browsers = [site.browser() for _ in range(6)]
        for browser in browsers:
            await browser.do(setting(a=1))
            clock.now += 0.001
        unchanged, *records = store._sessions.values()
        longer, younger, unsealed, swapped, infinite = records
        longer.expires = longer.deadline = longer.expires + 1
        younger.created += 1
        unsealed.seal = b""
        swapped.seal, swapped.created, swapped.expires = unchanged.seal, unchanged.created, unchanged.expires
        infinite.expires = infinite.deadline = float("inf")
        for _ in range(2):
            assert [await browser.all() for browser in browsers] == [{"a": 1}, {}, {}, {}, {}, {}]
        logged = [record for record in caplog.records if "its lifetime is damaged" in record.message]
        assert len(logged) == 5
        # The visitor begins a new session.
        for browser in browsers[1:]:

            async def log_in(session: Session) -> None:
                await session.regenerate()
                await session.set("user", 1)

            await browser.do(log_in)
            assert await browser.all() == {"user": 1}
        # A deadline beyond the absolute limit has no effect; up to that limit, it is what a use would set.
        unchanged.deadline = unchanged.expires + 1000
        clock.now = unchanged.expires - 0.5
        assert await browsers[0].all() == {"a": 1}
        clock.now = unchanged.expires
        assert await browsers[0].all() == {}


@pytest.mark.parametrize("changed", [{"encrypt": False}, {"driver": MemoryDriver()}], ids=["not encrypted", "memory"])
async def test_times_are_not_sealed_if_values_are_not(clock: Clock, changed: dict[str, Any]) -> None:
    options: dict[str, Any] = {"driver": Sealing(), **changed}
    async with serving(Site(clock=clock, **options)) as site:
        browser = site.browser()
        await browser.do(setting(a=1))
        [record] = options["driver"]._sessions.values()
        assert record.seal == b""
        record.expires = record.deadline = record.expires + 1000
        clock.now += 86_400
        assert await browser.all() == {"a": 1}


async def test_times_are_whole_milliseconds_and_new_with_the_id(clock: Clock) -> None:
    store = Sealing()
    clock.now += 0.123_456_7
    async with serving(Site(store, clock, max_age=1000)) as site:
        browser = site.browser()
        reply = await browser.request(setting(a=1))
        assert "Max-Age=1000;" in str(reply.set_cookie)
        [before] = store._sessions.values()
        assert (before.created, before.expires) == (4_000_000_000.123, 4_000_001_000.123)

        async def renew(session: Session) -> None:
            await session.regenerate()

        clock.now += 500
        await browser.do(renew)
        [after] = store._sessions.values()
        assert (after.created, after.expires) == (4_000_000_500.123, 4_000_001_500.123)
        assert after.seal != before.seal
        assert await browser.all() == {"a": 1}


async def test_a_value_that_the_serializer_can_no_longer_decode_is_absent(clock: Clock) -> None:
    driver = Sealing()
    async with serving(Site(driver, clock)) as before, serving(Site(driver, clock, serializer="json")) as after:
        browser = before.browser()
        await browser.do(setting(a="text"))
        browser.site = after
        assert await browser.do(getting("a")) is None
        assert await browser.all() == {}


@asynccontextmanager
async def rotation(driver: Any, clock: Clock) -> AsyncGenerator[tuple[Site, Site, Site], None]:
    """Yield the site with an old secret, with both secrets, and with only the new one."""
    old, new = "the old secret, long enough to be one", "the new secret, long enough to be one"
    same = opened(driver)
    async with (
        serving(Site(driver, clock, secret=old)) as before,
        serving(Site(same, clock, secret=[new, old])) as rotated,
        serving(Site(same, clock, secret=new)) as after,
    ):
        yield before, rotated, after


async def test_an_old_secret_opens_what_it_sealed(driver: Any, clock: Clock) -> None:
    async with rotation(driver, clock) as (before, rotated, after):
        browser = before.browser()
        await browser.do(setting(a=1))
        browser.site = rotated
        assert await browser.all() == {"a": 1}
        await browser.do(setting(b=2))
        assert await browser.all() == {"a": 1, "b": 2}
        browser.site = after
        # The write has sealed the session in a cookie again. The id of a stored session is still signed with the old secret.
        assert await browser.all() == ({"a": 1, "b": 2} if driver is None or isinstance(driver, dict) else {})


async def test_regenerating_seals_and_signs_with_the_newest_secret(driver: Any, clock: Clock) -> None:
    async def login(session: Session) -> None:
        await session.regenerate()

    async with rotation(driver, clock) as (before, rotated, after):
        browser = before.browser()
        await browser.do(setting(a=1))
        browser.site = rotated
        await browser.do(login)
        browser.site = after
        assert await browser.all() == {"a": 1}
