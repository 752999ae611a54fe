"""The counters that each event in a session's life raises, on every driver, and their export to OpenTelemetry."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from secrets import token_hex
from typing import Any

import anyio
import msgspec
import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from gaman import App, Context
from gaman.session import Counters, Driver, Session, SessionIntegration, SessionStoreError
from gaman_session import _counters, _upkeep
from gaman_session._sealing import Keyring
from gaman_session.drivers.memory import MemoryDriver
from gaman_session.drivers.redis import RedisDriver
from tests import servers
from tests.asgi import Fetch
from tests.session.sites import SECRET, Browser, Clock, Sealing, Site, Work, getting, serving, setting

pytestmark = pytest.mark.anyio
Metrics = Callable[[], dict[tuple[str, ...], int]]


def counters(site: Site) -> Counters:
    [integration] = site.app.integrations
    assert isinstance(integration, SessionIntegration)
    return integration.counters


class Raised:
    """The counters that requests raise from now on."""

    def __init__(self, site: Site) -> None:
        self._counters = counters(site)
        self._before = msgspec.structs.asdict(self._counters)

    def since(self) -> dict[str, int]:
        """Return the counters that were raised since the last call, and by how much."""
        before, self._before = self._before, msgspec.structs.asdict(self._counters)
        return {name: count - before[name] for name, count in self._before.items() if count != before[name]}


async def login(session: Session) -> None:
    await session.regenerate()
    await session.set("user", 1)


async def clear(session: Session) -> None:
    await session.clear()


async def test_each_step_of_a_sessions_life_is_counted(site: Site) -> None:
    browser, raised = site.browser(), Raised(site)
    await browser.do(getting("a"))
    assert raised.since() == {}
    await browser.do(setting(a=1, b=2))
    assert raised.since() == {"created": 1}
    await browser.do(getting("a"))
    assert raised.since() == {"loaded": 1}
    await browser.do(login)
    assert raised.since() == {"loaded": 1, "written": 1}
    await browser.do(clear)
    assert {**raised.since(), "loaded": 0} == {"loaded": 0, "ended": 1}
    await browser.do(getting("a"))
    assert raised.since() == {}


async def test_a_request_with_several_changes_counts_one_write(site: Site) -> None:
    browser, raised = site.browser(), Raised(site)
    await browser.do(setting(a=1))
    raised.since()
    await browser.do(setting(a=2, b=3))
    assert {**raised.since(), "loaded": 0} == {"written": 1, "loaded": 0}


async def test_an_update_counts_as_a_write(site: Site) -> None:
    async def work(session: Session) -> None:
        await session.update("a", lambda a: a + 1)

    browser, raised = site.browser(), Raised(site)
    await browser.do(setting(a=1))
    raised.since()
    await browser.do(work)
    assert raised.since() == {"loaded": 1, "written": 1}


async def test_deleting_the_last_key_counts_as_an_end(site: Site) -> None:
    async def work(session: Session) -> None:
        await session.delete("a")

    browser, raised = site.browser(), Raised(site)
    await browser.do(setting(a=1))
    raised.since()
    await browser.do(work)
    assert {**raised.since(), "loaded": 0} == {"ended": 1, "loaded": 0}


async def test_extending_the_idle_limit_counts_as_a_write(driver: Any, clock: Clock) -> None:
    async with serving(Site(driver, clock, idle_timeout=1000)) as site:
        browser, raised = site.browser(), Raised(site)
        await browser.do(setting(a=1))
        raised.since()
        await browser.do(getting("a"))
        assert raised.since() == {"loaded": 1}
        clock.now += 500
        await browser.do(getting("a"))
        assert raised.since() == {"loaded": 1, "written": 1}


async def test_changes_that_an_error_drops_are_not_counted(site: Site) -> None:
    async def work(session: Session) -> None:
        await session.set("a", 2)
        raise RuntimeError

    browser, raised = site.browser(), Raised(site)
    await browser.do(setting(a=1))
    raised.since()
    await browser.request(work)
    assert {**raised.since(), "loaded": 0} == {"loaded": 0}


# Rejected


async def several(session: Session) -> None:
    await session.get("a")
    await session.has("b")
    assert session.id is None or session.id
    await session.set("c", 1)
    await session.all()


@pytest.mark.parametrize("token", ["", "x", "AAAA" * 20], ids=["empty", "not base64", "another's"])
async def test_a_foreign_cookie_counts_as_forged_once_per_request(site: Site, token: str) -> None:
    raised = Raised(site)
    for _ in range(2):
        await Browser(site, token).do(several)
        assert raised.since() == {"created": 1, "forged": 1}


async def test_a_cookie_under_a_removed_secret_counts_as_forged(driver: Any, clock: Clock) -> None:
    async with serving(Site(driver, clock)) as site:
        browser = site.browser()
        await browser.do(setting(a=1))
        other = Site(None if driver is None else MemoryDriver(), clock, secret="another secret of the tests, long enough")
        async with serving(other):
            raised = Raised(other)
            await other.browser(browser.token).do(getting("a"))
            assert raised.since() == {"forged": 1}


@pytest.mark.parametrize("work", [getting("a"), several, login], ids=["read", "several", "login"])
async def test_an_expired_session_counts_as_expired_once_per_request(driver: Any, clock: Clock, work: Any) -> None:
    async with serving(Site(driver, clock)) as site:
        browser, raised = site.browser(), Raised(site)
        await browser.do(setting(a=1))
        clock.now += 100_000
        raised.since()
        await browser.do(work)
        assert {**raised.since(), "created": 0} == {"expired": 1, "created": 0}


async def test_a_write_with_an_expired_cookie_counts_as_expired(driver: Any, clock: Clock) -> None:
    async with serving(Site(driver, clock)) as site:
        browser, raised = site.browser(), Raised(site)
        await browser.do(setting(a=1))
        clock.now += 100_000
        raised.since()
        await browser.do(setting(a=2))
        assert raised.since() == {"expired": 1, "created": 1}


async def test_a_session_that_another_request_ended_counts_as_expired(store: Any, clock: Clock) -> None:
    async with serving(Site(store, clock)) as site:
        browser, raised = site.browser(), Raised(site)
        await browser.do(setting(a=1))
        other = Browser(site, browser.token)
        await browser.do(clear)
        raised.since()
        await other.do(getting("a"))
        assert raised.since() == {"expired": 1}
        await Browser(site, other.token).do(setting(a=1))
        assert raised.since() == {"expired": 1}


async def test_a_value_that_does_not_open_counts_as_unreadable_once_per_request(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    driver = Sealing()
    async with serving(Site(driver, clock)) as site:
        browser, raised = site.browser(), Raised(site)
        await browser.do(setting(a=1, b=2))
        [(id, record)] = driver._sessions.items()
        record.fields.update(a=b"damaged", b=b"damaged")
        raised.since()
        assert await browser.all() == {}
        assert raised.since() == {"loaded": 1, "unreadable": 1}
    for entry in map(vars, caplog.records):
        assert (entry["session"], entry["driver"], entry["method"], entry["path"]) == (id, "memory", "GET", "/")
        assert entry["request_id"]
    assert len(caplog.records) == 2


async def test_a_value_that_does_not_decode_counts_as_unreadable(clock: Clock) -> None:
    driver = MemoryDriver()
    async with serving(Site(driver, clock)) as site:
        browser, raised = site.browser(), Raised(site)
        await browser.do(setting(a=1))
        [record] = driver._sessions.values()
        record.fields["a"] = b"\xc1"
        raised.since()
        await browser.do(several)
        assert raised.since() == {"loaded": 1, "written": 1, "unreadable": 1}


async def test_a_cookie_of_another_version_counts_as_unreadable(clock: Clock) -> None:
    async with serving(Site(None, clock)) as site:
        raised = Raised(site)
        token = Keyring([SECRET], site.cookie_name).seal_token(b"\x93of another version")
        await Browser(site, token).do(getting("a"))
        assert raised.since() == {"unreadable": 1}


# Errors of the store


@asynccontextmanager
async def lost(clock: Clock) -> AsyncGenerator[tuple[Site, Browser]]:
    """A site whose Redis has crashed, and a browser with a session there."""
    with servers.RedisServer() as server:
        async with serving(Site(RedisDriver(url=server.url, timeout=0.5), clock)) as site:
            browser = site.browser()
            await browser.do(setting(a=1))
            server.kill()
            yield site, browser


async def test_each_failed_call_counts_as_a_store_error_whether_it_is_caught_or_not(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async def careful(session: Session) -> str:
        try:
            return str(await session.get("a"))
        except SessionStoreError:
            return "later"

    async def saving(session: Session) -> None:
        await session.set("a", 2)
        await session.save()

    async def counting(session: Session) -> None:
        await session.update("a", lambda a: a + 1)

    async with lost(clock) as (site, browser):
        raised = Raised(site)
        assert await browser.do(careful) == "later"
        assert raised.since() == {"store_errors": 1}
        assert caplog.records == []
        for work in (getting("a"), setting(a=1), login, clear, saving, counting):
            caplog.clear()
            assert (await browser.request(work)).status == 503
            assert raised.since() == {"store_errors": 1}, work
            [record] = map(vars, caplog.records)
            assert (record["driver"], record["method"], len(record["session"])) == ("redis", "GET", 64)
            assert record["request_id"]
        assert str(browser.token) not in caplog.text


async def test_a_failed_check_counts_as_a_store_error(clock: Clock) -> None:
    async with lost(clock) as (site, _):
        raised = Raised(site)
        assert isinstance((await site.app.check())["session"], SessionStoreError)
        assert raised.since() == {"store_errors": 1}


async def test_a_failed_sweep_counts_as_a_store_error(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(MemoryDriver):
        async def purge(self, *, now: float, limit: int) -> int:
            raise SessionStoreError(self.name, "remove expired sessions")

    monkeypatch.setattr(_upkeep, "_SWEEP_SECONDS", 0)
    async with serving(Site(Full(), clock)) as site:
        with anyio.fail_after(25):
            while counters(site).store_errors < 2:
                await asyncio.sleep(0)


# Owners


def owning(owner: str) -> Work:
    async def work(session: Session) -> None:
        await session.regenerate()
        await session.set("user", 1)
        await session.set_owner(owner)

    return work


async def test_setting_an_owner_counts_as_the_call_that_stores_it(store: Driver, clock: Clock) -> None:
    async with serving(Site(store, clock)) as site:
        browser, raised, owner = site.browser(), Raised(site), token_hex(8)
        await browser.do(owning(owner))
        assert raised.since() == {"created": 1}
        await browser.do(lambda session: session.set_owner(owner, note=1))
        assert {**raised.since(), "loaded": 0} == {"written": 1, "loaded": 0}
        await browser.do(owning(owner))
        assert raised.since() == {"loaded": 1, "written": 1}


async def test_ending_an_owners_sessions_counts_as_ends_and_listing_them_counts_nothing(store: Driver, clock: Clock) -> None:
    async with serving(Site(store, clock)) as site:
        owner, browsers = token_hex(8), [site.browser() for _ in range(3)]
        for browser in browsers:
            await browser.do(owning(owner))
        raised = Raised(site)
        [first, *_] = await site.sessions.list(owner)
        assert await site.sessions.count(owner) == 3
        assert raised.since() == {}
        assert await site.sessions.end(first.handle)
        assert raised.since() == {"ended": 1}
        assert not await site.sessions.end(first.handle)
        assert raised.since() == {}
        assert await site.sessions.end_all(owner) == 2
        assert raised.since() == {"ended": 2}


async def test_a_session_that_the_owners_limit_ends_counts_as_an_end(store: Driver, clock: Clock) -> None:
    async with serving(Site(store, clock, max_sessions_per_owner=1)) as site:
        raised, owner = Raised(site), token_hex(8)
        await site.browser().do(owning(owner))
        clock.now += 1
        await site.browser().do(owning(owner))
        assert raised.since() == {"created": 2, "ended": 1}


@pytest.mark.parametrize("has_session", [False, True])
async def test_a_login_that_end_all_revokes_counts_neither_a_begin_nor_a_write(
    store: Driver, clock: Clock, *, has_session: bool
) -> None:
    async with serving(Site(store, clock)) as site:
        owner, browser = token_hex(8), site.browser()
        await site.browser().do(owning(owner))

        async def late(session: Session) -> None:
            await owning(owner)(session)
            await site.sessions.end_all(owner)

        if has_session:
            await browser.do(setting(a=1))
        raised = Raised(site)
        await browser.do(late)
        assert raised.since() == ({"expired": 1, "ended": 1} if has_session else {"ended": 1})


async def test_each_failed_call_for_an_owner_counts_as_a_store_error(clock: Clock) -> None:
    async with lost(clock) as (site, _):
        raised, sessions = Raised(site), site.sessions
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: sessions.list("user:1"),
            lambda: sessions.end("0" * 64),
            lambda: sessions.end_all("user:1"),
            lambda: sessions.count("user:1"),
            sessions.count,
        ]
        for call in calls:
            with pytest.raises(SessionStoreError):
                await call()
            assert raised.since() == {"store_errors": 1}


# Reading the counters


async def test_a_handler_may_return_the_counters(fetch: Fetch, clock: Clock) -> None:
    async def show(ctx: Context) -> Counters:
        return counters(site)

    async with serving(Site(None, clock)) as site:
        await site.browser().do(setting(a=1))
        assert json.loads((await fetch(App({"/": show}))).body)["created"] == 1


@pytest.fixture
def metrics(monkeypatch: pytest.MonkeyPatch) -> Generator[Metrics]:
    """Return a function that reads the metrics as an exporter does: the counts by name and attributes."""
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    monkeypatch.setattr("opentelemetry.metrics.get_meter", provider.get_meter)
    _counters._exported.cache_clear()

    def read() -> dict[tuple[str, ...], int]:
        data: Any = reader.get_metrics_data()
        found: dict[tuple[str, ...], int] = {}
        for metric in data.resource_metrics[0].scope_metrics[0].metrics if data else ():
            assert metric.data.is_monotonic
            assert metric.unit.startswith("{")
            for point in metric.data.data_points:
                found[metric.name, *point.attributes.values()] = point.value
        return found

    yield read
    provider.shutdown()
    _counters._exported.cache_clear()


async def test_opentelemetry_reads_the_counters(clock: Clock, metrics: Metrics) -> None:
    async with serving(Site(None, clock)) as one, serving(Site(MemoryDriver(), clock)) as other:
        browser = one.browser()
        await browser.do(setting(a=1))
        await browser.do(setting(a=2))
        await other.browser("forged").do(setting(a=1))
        found = metrics()
    # Each driver has six instruments, one of which has four reasons.
    assert len(found) == 18
    assert {point: count for point, count in found.items() if count} == {
        ("gaman.session.created", "cookies"): 1,
        ("gaman.session.created", "memory"): 1,
        ("gaman.session.loaded", "cookies"): 1,
        ("gaman.session.written", "cookies"): 1,
        ("gaman.session.rejected", "memory", "forged"): 1,
    }


async def test_two_applications_with_the_same_kind_of_driver_are_counted_together(
    clock: Clock, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        async with serving(Site(None, clock)) as site:
            await site.browser().do(setting(a=1))
    assert metrics()["gaman.session.created", "cookies"] == 2
    assert caplog.records == []


async def test_the_counters_count_without_opentelemetry(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry.metrics", None)
    _counters._exported.cache_clear()
    async with serving(Site(None, clock)) as site:
        await site.browser().do(setting(a=1))
        assert counters(site).created == 1
    _counters._exported.cache_clear()
