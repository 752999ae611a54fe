"""The audit trail: `on_event` and the log learn what happened to sessions."""

from __future__ import annotations

import asyncio
import logging
import re
import threading
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pytest

from gaman import ConfigError, Response
from gaman.session import Driver, Session, SessionEvent, SessionIntegration, SessionStoreError, session
from gaman.session.asgi import SessionMiddleware, get_session
from gaman_session.drivers.memory import MemoryDriver
from tests.asgi import http_scope
from tests.session.sites import SECRET, Browser, Clock, Recording, Reply, Sealing, Site, serving, setting

pytestmark = pytest.mark.anyio

Events = list[SessionEvent]


def logging_in(owner: str = "user:1", **options: Any) -> Callable[[Session], Awaitable[None]]:
    async def work(session: Session) -> None:
        await session.login(owner, **options)

    return work


async def confirm(session: Session) -> None:
    await session.confirm()


async def regenerate(session: Session) -> None:
    await session.regenerate()


async def log_out(session: Session) -> None:
    await session.get("x")
    await session.logout()


async def handle(session: Session) -> str | None:
    return session.id


@pytest.fixture
def events() -> Events:
    return []


@pytest.fixture
async def site(driver: Driver | None, clock: Clock, events: Events) -> AsyncIterator[Site]:
    async with serving(Site(driver, clock, on_event=events.append)) as opened:
        yield opened


@asynccontextmanager
async def blocked(clock: Clock, events: Events) -> AsyncGenerator[Site]:
    """Serve a site whose `on_event` takes its first event only at the end; *events* has them all after that."""
    is_released = asyncio.Event()

    async def on_event(event: SessionEvent) -> None:
        await is_released.wait()
        events.append(event)

    async with serving(Site(MemoryDriver(), clock, on_event=on_event)) as site:
        try:
            yield site
        finally:
            is_released.set()


async def told(events: Events, count: int) -> Events:
    """Return the events, once there are *count*, and forget them."""
    async with asyncio.timeout(5):
        while len(events) < count:
            await asyncio.sleep(0.001)
    found = events.copy()
    events.clear()
    return found


async def test_the_life_of_a_session_is_told(site: Site, events: Events) -> None:
    browser = site.browser()
    await browser.do(setting(x=1))
    handles = [await browser.do(handle)]
    for work in (logging_in(), confirm, regenerate):
        site.clock.now += 1
        await browser.do(work)
        handles.append(await browser.do(handle))
    await browser.do(log_out)
    found = await told(events, 5)
    kinds = ["began", "logged in", "confirmed", "renewed", "ended"]
    assert [each.kind for each in found] == kinds
    assert [each.handle for each in found] == [*handles, handles[-1]]
    assert [each.former for each in found] == [None, *handles[:-1], None]
    assert found[-1].reason == "logout"
    assert [each.owner for each in found] == [None, *[site.sessions._owners.hash_of("user:1")] * 4]
    assert found[-1].at == datetime.fromtimestamp(site.clock.now, UTC)
    assert len({each.request_id for each in found}) == 5


async def test_a_login_and_a_confirmation_tell_their_level(site: Site, events: Events) -> None:
    async def with_second_factor(session: Session) -> None:
        await session.login("user:1")
        await session.confirm(2)

    browser = site.browser()
    for work in (with_second_factor, confirm, regenerate):
        site.clock.now += 1
        await browser.do(work)
    found = await told(events, 4)
    expected = [("began", None), ("logged in", 2), ("confirmed", 1), ("renewed", None)]
    assert [(each.kind, each.level) for each in found] == expected
    assert found[1].owner == site.sessions.hash_of("user:1")


async def test_a_first_login_begins_a_session(site: Site, events: Events) -> None:
    browser = site.browser()
    await browser.do(logging_in())
    assert [each.kind for each in await told(events, 2)] == ["began", "logged in"]
    await browser.do(logging_in("user:2"))
    assert [each.kind for each in await told(events, 3)] == ["ended", "began", "logged in"]


async def test_reads_writes_and_failed_requests_are_no_events(site: Site, events: Events) -> None:
    browser = site.browser()
    await browser.do(setting(x=1))
    await told(events, 1)

    async def fail(session: Session) -> None:
        await session.login("user:1")
        raise RuntimeError("failed on purpose")

    await browser.do(setting(x=2))
    await browser.all()
    await browser.request(fail)
    await browser.do(log_out)
    assert [each.kind for each in await told(events, 1)] == ["ended"]


async def test_a_forged_cookie_is_told_with_its_request(site: Site, events: Events) -> None:
    await site.request(handle, f"{site.cookie_name}=forged")
    [event] = await told(events, 1)
    assert event.kind == "forged"
    assert event.request_id
    assert event.handle is None


async def test_a_cross_site_request_is_told(clock: Clock, events: Events) -> None:
    async with serving(Site(MemoryDriver(), clock, on_event=events.append)) as site:
        reply = Reply()
        headers = [(b"host", b"shop.example"), (b"sec-fetch-site", b"cross-site")]
        await site.app(http_scope("/", "POST", headers=headers, reply=reply), reply.receive, reply.send)
        assert reply.status == 403
        [event] = await told(events, 1)
        assert event.kind == "refused"
        assert event.request_id


async def test_ends_from_elsewhere_are_told(store: Driver, clock: Clock, events: Events) -> None:
    async with serving(Site(store, clock, on_event=events.append, max_sessions_per_owner=2)) as site:
        owner = f"user:{id(site)}"
        browsers = [site.browser() for _ in range(3)]
        handles: list[Any] = []
        for browser in browsers:
            await browser.do(logging_in(owner))
            handles.append(await browser.do(handle))
            clock.now += 1
        hashed = site.sessions._owners.hash_of(owner)
        ended = [each for each in await told(events, 7) if each.kind == "ended"]
        assert [(each.handle, each.owner, each.reason) for each in ended] == [(handles[0], hashed, "limit")]
        assert await site.sessions.end(handles[1])
        [event] = await told(events, 1)
        assert (event.kind, event.handle, event.owner, event.reason) == ("ended", handles[1], hashed, "end")
        assert await site.sessions.end_all(owner) == 1
        [event] = await told(events, 1)
        assert (event.kind, event.handle, event.owner, event.reason, event.count) == ("ended", None, hashed, "end_all", 1)
        assert event.request_id is None
        assert not await site.sessions.end(handles[1])
        assert await site.sessions.end_all(owner) == 0
        await asyncio.sleep(0.01)
        assert events == []


async def test_an_eviction_is_told(clock: Clock, events: Events) -> None:
    async with serving(Site(MemoryDriver(max_sessions=1), clock, on_event=events.append)) as site:
        browser = site.browser()
        await browser.do(setting(x=1))
        evicted = await browser.do(handle)
        await site.browser().do(setting(x=1))
        [_, event, _] = await told(events, 3)
        assert (event.kind, event.handle, event.reason) == ("ended", evicted, "eviction")


async def test_no_cookie_and_no_owner_is_in_an_event_or_a_line(
    site: Site, events: Events, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "gaman.session.audit")
    browser = site.browser()
    tokens: list[str | None] = []
    for work in (setting(x="a value"), logging_in("angga@example.com", note="a note"), confirm, log_out):
        tokens.append(browser.token)
        await browser.do(work)
    found = await told(events, 4)
    lines = [f"{record.getMessage()} {record.__dict__}" for record in caplog.records if record.name == "gaman.session.audit"]
    assert len(lines) == 4
    for text in (*lines, *map(repr, found)):
        for secret in (*filter(None, tokens), "angga@example.com", "a note", "a value"):
            assert secret not in text


async def test_the_log_has_each_event(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gaman.session.audit")
    browser = site.browser()
    await browser.do(logging_in())
    [_, record] = [record for record in caplog.records if record.name == "gaman.session.audit"]
    event = record.__dict__["event"]
    assert record.getMessage() == (
        f"session logged in: handle={event['handle']}, owner={event['owner']}, level=1, request_id={event['request_id']}"
    )
    assert record.__dict__["request_id"] == event["request_id"]


async def test_the_access_log_has_no_events(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gaman")
    await site.browser().do(logging_in())
    assert "gaman.session.audit" not in {record.name for record in caplog.records}


async def test_without_a_listener_nothing_is_made(
    driver: Driver | None, clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.WARNING, "gaman.session.audit")
    async with serving(Site(driver, clock)) as site:
        assert not site.sessions._owners._audit.is_on
        await site.browser().do(logging_in())


async def _finish(site: Site, browser: Browser) -> None:
    for _ in range(20):
        await browser.do(logging_in())


async def test_a_slow_function_delays_no_request(clock: Clock) -> None:
    release = threading.Event()
    told: Events = []

    def on_event(event: SessionEvent) -> None:
        assert release.wait(30)
        told.append(event)

    async with serving(Site(MemoryDriver(), clock, on_event=on_event)) as site:
        async with asyncio.timeout(10):
            await _finish(site, site.browser())
        assert told == []
        release.set()
    assert [each.kind for each in told] == ["began", *["logged in"] * 20]


async def test_a_slow_async_function_delays_no_request(clock: Clock, events: Events) -> None:
    async with blocked(clock, events) as site:
        await _finish(site, site.browser())
        assert events == []
    assert len(events) == 21


async def test_a_failing_function_is_logged_and_gets_the_next_event(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    told: Events = []

    def on_event(event: SessionEvent) -> None:
        told.append(event)
        if event.kind == "began":
            raise RuntimeError("failed on purpose")

    async with serving(Site(MemoryDriver(), clock, on_event=on_event)) as site:
        await site.browser().do(logging_in())
    assert [each.kind for each in told] == ["began", "logged in"]
    assert [message for message in caplog.messages if "on_event failed" in message]


async def test_a_shutdown_does_not_wait_for_ever(
    clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gaman_session._upkeep._MAX_DELIVERY", 0.01)

    async def on_event(event: SessionEvent) -> None:
        await asyncio.Event().wait()

    async with serving(Site(MemoryDriver(), clock, on_event=on_event)) as site:
        await site.browser().do(logging_in())
        started = time.monotonic()
    assert time.monotonic() - started < 5
    assert "1 events were dropped, because the server has stopped" in caplog.messages


async def test_more_events_than_a_slow_function_can_take_are_dropped(
    clock: Clock, events: Events, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gaman_session._audit._MAX_WAITING", 3)
    async with blocked(clock, events) as site:
        browser = site.browser()
        for _ in range(9):
            await browser.do(logging_in())
    assert len(events) < 10
    fix = "let it only put them into a queue"
    assert f"{10 - len(events)} events were dropped, because on_event is slower than the events; {fix}" in caplog.messages


@pytest.mark.parametrize("given", [1, "print", (), str.join, logging.basicConfig])
async def test_on_event_is_a_function(given: Any) -> None:
    with pytest.raises(ConfigError, match="on_event="):
        session(SECRET, on_event=given)


async def test_cookies_of_a_browser_session_end_with_the_browser(driver: Driver | None, clock: Clock) -> None:
    async with serving(Site(driver, clock, browser_session=True)) as site:
        browser = site.browser()
        for work in (setting(x=1), logging_in(), confirm, logging_in(fresh=True)):
            reply = await browser.request(work)
            assert reply.set_cookie is not None
            assert "Max-Age" not in reply.set_cookie
            clock.now += 1
        reply = await browser.request(logging_in(max_age=60))
        assert reply.set_cookie is not None
        assert "Max-Age=60" in reply.set_cookie


# Every kind of function


async def _send(event: SessionEvent, told: Events) -> None:
    await asyncio.sleep(0)
    told.append(event)


def _starting(told: Events) -> Callable[[SessionEvent], Awaitable[None]]:
    return lambda event: _send(event, told)


class _Sender:
    def __init__(self, told: Events) -> None:
        self.told = told

    async def __call__(self, event: SessionEvent) -> None:
        await _send(event, self.told)


_FUNCTIONS: dict[str, Callable[[Events], Any]] = {
    "a plain function that returns a coroutine": _starting,
    "an object with an async __call__": _Sender,
    "a partial of an async function": lambda told: partial(_send, told=told),
    "a partial of such an object": lambda told: partial(_Sender(told)),
    "an async method": lambda told: _Sender(told).__call__,
    "a plain method": lambda told: told.append,
}


@pytest.mark.parametrize("kind", _FUNCTIONS)
async def test_each_kind_of_function_gets_the_events(clock: Clock, kind: str) -> None:
    told: Events = []
    async with serving(Site(MemoryDriver(), clock, on_event=_FUNCTIONS[kind](told))) as site:
        await site.browser().do(logging_in())
    assert [each.kind for each in told] == ["began", "logged in"]


@pytest.mark.parametrize("error", [asyncio.CancelledError, SystemExit, StopIteration, asyncio.TimeoutError])
@pytest.mark.parametrize("is_async", [True, False])
async def test_no_error_of_a_function_ends_the_delivery(
    clock: Clock, caplog: pytest.LogCaptureFixture, error: type[BaseException], is_async: bool
) -> None:
    told: Events = []

    def on_event(event: SessionEvent) -> None:
        told.append(event)
        if event.kind == "began":
            raise error

    async def on_event_async(event: SessionEvent) -> None:
        on_event(event)

    async with serving(Site(MemoryDriver(), clock, on_event=on_event_async if is_async else on_event)) as site:
        await site.browser().do(logging_in())
    assert [each.kind for each in told] == ["began", "logged in"]
    assert len([message for message in caplog.messages if "on_event failed" in message]) == 1


async def test_a_cancelled_delivery_goes_on(clock: Clock, events: Events) -> None:
    async with serving(Site(MemoryDriver(), clock, on_event=events.append)) as site:
        await site.browser().do(logging_in())
        await told(events, 2)
        for task in asyncio.all_tasks():
            if "deliver" in repr(task.get_coro()):
                task.cancel()
        await asyncio.sleep(0.01)
        await site.browser().do(logging_in())
        assert [each.kind for each in await told(events, 2)] == ["began", "logged in"]


@pytest.mark.parametrize("fault", ["a log filter", "a clock", "a scope"])
async def test_a_failure_to_note_an_event_fails_no_request(
    clock: Clock, events: Events, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def fail(*_: object) -> Any:
        raise RuntimeError("failed on purpose")

    caplog.set_level(logging.INFO, "gaman.session.audit")
    async with serving(Site(MemoryDriver(), clock, on_event=events.append)) as site:
        audit = site.sessions._owners._audit
        logger = logging.getLogger("gaman.session.audit")
        if fault == "a log filter":
            monkeypatch.setattr(logger, "filters", [fail])
        elif fault == "a clock":
            monkeypatch.setattr(audit, "_clock", fail)
        audit.note("forged", {} if fault == "a scope" else None)
        if fault != "a log filter":
            assert "the event 'forged' of a session could not be noted" in caplog.messages
        await site.browser().do(setting(x=1))


# A flood


async def _forge(site: Site, count: int) -> None:
    for _ in range(count):
        await site.request(handle, f"{site.cookie_name}=forged")


async def test_a_flood_of_forged_cookies_displaces_no_login(
    clock: Clock, events: Events, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gaman_session._audit._MAX_WAITING", 10)
    monkeypatch.setattr("gaman_session._audit._MAX_UNMERGED", 3, raising=False)
    caplog.set_level(logging.INFO, "gaman.session.audit")
    async with blocked(clock, events) as site:
        await _forge(site, 1)
        await asyncio.sleep(0.01)
        await _forge(site, 30)
        last = [record.__dict__["request_id"] for record in caplog.records if "session forged" in record.getMessage()][-1]
        await site.browser().do(logging_in())
    assert [(each.kind, each.count) for each in events] == [
        *[("forged", 1)] * 4,
        ("began", 1),
        ("logged in", 1),
        ("forged", 27),
    ]
    assert events[-1].request_id == last
    assert not [message for message in caplog.messages if "dropped" in message]


async def test_a_flood_of_visitors_displaces_no_login(clock: Clock, events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gaman_session._audit._MAX_WAITING", 10)
    async with blocked(clock, events) as site:
        for _ in range(30):
            visitor = site.browser()
            await visitor.do(setting(x=1))
            await visitor.do(log_out)
        await site.browser().do(logging_in())
    assert [each.kind for each in events][-2:] == ["began", "logged in"]


# Event loops


async def _log_in(sessions: SessionIntegration) -> int:
    """Log in, in a request of an application without a start or end, and return the response's status."""

    class Request:
        scope: Any

    async def app(scope: Any, receive: Any, send: Any) -> None:
        request = Request()
        request.scope = scope
        await (await get_session(request)).login("user:1")
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    reply = Reply()
    await SessionMiddleware(app, sessions=sessions)(http_scope("/", "POST"), reply.receive, reply.send)
    return reply.status


def test_events_go_on_after_the_event_loop_that_delivered_them_was_closed(events: Events) -> None:
    sessions = session(SECRET, {"type": "memory"}, on_event=events.append)
    first = asyncio.new_event_loop()
    first.run_until_complete(_log_in(sessions))
    first.run_until_complete(told(events, 2))
    tasks = asyncio.all_tasks(first)
    first.close()

    async def second() -> None:
        assert [await _log_in(sessions) for _ in range(3)] == [200] * 3
        assert [each.kind for each in await told(events, 6)] == ["began", "logged in"] * 3

    asyncio.run(second())
    for task in tasks:
        # No loop is left to end them.
        task._log_destroy_pending = False  # type: ignore[attr-defined]


def test_another_event_loop_takes_over_the_delivery(events: Events) -> None:
    sessions = session(SECRET, {"type": "memory"}, on_event=events.append)
    has_begun, ends = threading.Event(), threading.Event()

    async def first() -> None:
        async with sessions.running():
            await _log_in(sessions)
            has_begun.set()
            await asyncio.to_thread(ends.wait)

    async def second() -> None:
        async with sessions.running():
            await _log_in(sessions)
            await told(events, 4)
            ends.set()
            await asyncio.to_thread(thread.join)
            await _log_in(sessions)
            assert [each.kind for each in await told(events, 2)] == ["began", "logged in"]

    thread = threading.Thread(target=asyncio.run, args=(first(),))
    thread.start()
    assert has_begun.wait(10)
    asyncio.run(second())


def test_the_end_of_asyncio_run_delivers_what_is_left() -> None:
    told: Events = []

    async def on_event(event: SessionEvent) -> None:
        await asyncio.sleep(0.01)
        told.append(event)

    async def main() -> None:
        sessions = session(SECRET, {"type": "memory"}, on_event=on_event)
        for _ in range(3):
            await _log_in(sessions)

    asyncio.run(main())
    # asyncio.run() may cancel the first call.
    assert [each.kind for each in told][-5:] == ["logged in", *["began", "logged in"] * 2]


# Ends


async def log_out_unread(session: Session) -> None:
    await session.logout()


async def _ends(site: Site, events: Events, count: int) -> list[tuple[str | None, str | None, str | None]]:
    return [(each.handle, each.owner, each.reason) for each in await told(events, count) if each.kind == "ended"]


async def test_a_logout_that_reads_nothing_has_the_owner(site: Site, events: Events) -> None:
    browser = site.browser()
    await browser.do(logging_in())
    of_session, owner = await browser.do(handle), site.sessions._owners.hash_of("user:1")
    await told(events, 2)
    await browser.do(log_out_unread)
    assert await _ends(site, events, 1) == [(of_session, owner, "logout")]


async def test_a_login_of_another_owner_is_the_reason_of_an_end(site: Site, events: Events) -> None:
    browser = site.browser()
    await browser.do(logging_in())
    of_session = await browser.do(handle)
    await told(events, 2)
    await browser.do(logging_in("user:2"))
    hash_of = site.sessions._owners.hash_of
    assert await _ends(site, events, 3) == [(of_session, hash_of("user:1"), "login")]
    assert site.sessions.counters.ended == 1
    await browser.do(log_out)
    [event] = await told(events, 1)
    assert event.reason == "logout"
    assert site.sessions.counters.ended == 2


async def test_a_logout_tells_of_each_session_that_it_ends(site: Site, events: Events) -> None:
    if site.driver is None:
        pytest.skip("a response can remove one cookie, and there is no store")
    browsers = [site.browser(), site.browser()]
    handles: list[Any] = []
    for number, browser in enumerate(browsers):
        await browser.do(logging_in(f"user:{number}"))
        handles.append(await browser.do(handle))
    await told(events, 4)
    await site.request(log_out_unread, f"{browsers[0].cookie}; {browsers[1].cookie}")
    hash_of = site.sessions._owners.hash_of
    found = await _ends(site, events, 2)
    assert sorted(found) == sorted((handles[number], hash_of(f"user:{number}"), "logout") for number in range(2))
    assert site.sessions.counters.ended == 2


async def test_a_login_tells_of_the_session_of_a_further_cookie(site: Site, events: Events) -> None:
    if site.driver is None:
        pytest.skip("a response can remove one cookie, and there is no store")
    browsers = [site.browser(), site.browser()]
    for browser in browsers:
        await browser.do(logging_in())
    second = await browsers[1].do(handle)
    await told(events, 4)
    await site.request(logging_in(), f"{browsers[0].cookie}; {browsers[1].cookie}")
    assert await _ends(site, events, 2) == [(second, site.sessions._owners.hash_of("user:1"), "login")]


async def test_a_logout_with_a_dead_cookie_is_no_event(site: Site, events: Events) -> None:
    if site.driver is None:
        pytest.skip("without a store, a copy of a cookie stays valid")
    browser = site.browser()
    await browser.do(logging_in())
    dead = browser.cookie
    await browser.do(log_out_unread)
    await told(events, 3)
    await site.request(log_out_unread, dead)
    await site.request(log_out, dead)
    await asyncio.sleep(0.01)
    assert events == []
    assert site.sessions.counters.ended == 1


async def test_a_logout_needs_no_load(clock: Clock, events: Events) -> None:
    store = Recording()
    async with serving(Site(store, clock, on_event=events.append)) as site:
        browser = site.browser()
        await browser.do(logging_in())
        copy = site.browser(browser.token)
        await told(events, 2)
        store.failing = {"load"}
        await browser.do(log_out_unread)
        assert [(owner, reason) for _, owner, reason in await _ends(site, events, 1)] == [(None, "logout")]
        store.failing = set()
        assert await copy.all() == {}


class _Unconfirmed(Sealing):
    """A store that makes each change and, while it *fails*, doesn't confirm it."""

    fails = False

    def _confirm(self) -> None:
        if self.fails:
            raise SessionStoreError("unconfirmed", "write", is_unconfirmed=True)

    async def create(self, id: str, record: Any) -> Any:
        outcome = await super().create(id, record)
        self._confirm()
        return outcome

    async def rename(self, *arguments: Any, **options: Any) -> Any:
        outcome = await super().rename(*arguments, **options)
        self._confirm()
        return outcome

    async def destroy(self, id: str, *, now: float) -> None:
        await super().destroy(id, now=now)
        self._confirm()


@pytest.mark.parametrize("is_in_cookies", [False, True])
async def test_an_unconfirmed_login_and_logout_are_told(clock: Clock, events: Events, is_in_cookies: bool) -> None:
    store = _Unconfirmed()
    driver: Any = {"type": "cookies", "ended": store} if is_in_cookies else store
    async with serving(Site(driver, clock, on_event=events.append)) as site:
        browser = site.browser()
        await browser.do(logging_in())
        former = await browser.do(handle)
        await told(events, 2)
        store.fails = True
        assert (await browser.request(logging_in())).status == 503
        [event] = await told(events, 1)
        assert (event.kind, event.former) == ("logged in", former)
        assert event.handle == await browser.do(handle)
        assert (await browser.request(log_out_unread)).status == 503
        store.fails = False
        await browser.do(log_out_unread)
        [event] = await told(events, 1)
        assert (event.kind, event.reason) == ("ended", "logout")
        assert site.sessions.counters.ended == 1


async def test_an_unconfirmed_end_is_told(clock: Clock, events: Events) -> None:
    store = _Unconfirmed()
    async with serving(Site(store, clock, on_event=events.append)) as site:
        browser = site.browser()
        await browser.do(logging_in())
        of_session = await browser.do(handle)
        await told(events, 2)
        store.fails = True
        with pytest.raises(SessionStoreError):
            await site.sessions.end(of_session)
        assert [(each.handle, each.reason) for each in await told(events, 1)] == [(of_session, "end")]


async def test_the_end_of_an_old_id_is_told_with_the_id_that_it_ends(clock: Clock, events: Events) -> None:
    async with serving(Site({"type": "cookies", "ended": Sealing()}, clock, on_event=events.append)) as site:
        browser = site.browser()
        await browser.do(logging_in())
        old = await browser.do(handle)
        await browser.do(confirm)
        new = await browser.do(handle)
        await told(events, 3)
        assert await site.sessions.end(old)
        assert [each.handle for each in await told(events, 1)] == [new]


async def test_a_line_has_nothing_of_the_request_but_a_plain_request_id(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gaman.session.audit")
    reply = Reply()
    headers = [(b"x-request-id", b"1, owner=x\nsession ended"), (b"user-agent", b"chosen"), (b"cookie", b"c=chosen")]
    scope = http_scope(headers=headers, scheme="https", reply=reply, work=logging_in(), response=Response("done"))
    await site.app(scope, reply.receive, reply.send)
    lines = [record.getMessage() for record in caplog.records if record.name == "gaman.session.audit"]
    assert len(lines) == 2
    for line in lines:
        assert re.fullmatch("session [a-z ]+: handle=[0-9a-f]{64}, owner=[0-9a-f]{64}(, level=1)?, request_id=[0-9a-f]{32}", line)
