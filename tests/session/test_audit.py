"""The audit trail: `on_event` and the log learn what happened to sessions."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import pytest

from gaman import ConfigError
from gaman.session import Driver, Session, SessionEvent, session
from gaman_session.drivers.memory import MemoryDriver
from tests.asgi import http_scope
from tests.session.sites import SECRET, Browser, Clock, Reply, Site, serving, setting

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
        f"session logged in: handle={event['handle']}, owner={event['owner']}, request_id={event['request_id']}"
    )
    assert record.__dict__["request_id"] == event["request_id"]


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


async def test_a_slow_async_function_delays_no_request(clock: Clock) -> None:
    release = asyncio.Event()
    told: Events = []

    async def on_event(event: SessionEvent) -> None:
        await release.wait()
        told.append(event)

    async with serving(Site(MemoryDriver(), clock, on_event=on_event)) as site:
        await _finish(site, site.browser())
        assert told == []
        release.set()
    assert len(told) == 21


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
    clock: Clock, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gaman_session._audit._MAX_WAITING", 3)
    release = asyncio.Event()
    told: Events = []

    async def on_event(event: SessionEvent) -> None:
        await release.wait()
        told.append(event)

    async with serving(Site(MemoryDriver(), clock, on_event=on_event)) as site:
        browser = site.browser()
        for _ in range(9):
            await browser.do(logging_in())
        release.set()
    assert len(told) < 10
    assert f"{10 - len(told)} events were dropped, because on_event is slower than they come" in caplog.messages


@pytest.mark.parametrize("given", [1, "print", []])
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
