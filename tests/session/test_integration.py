"""The session in its hooks: caches, cookies, start-up and shutdown, failures, and other integrations."""

from __future__ import annotations

import asyncio
import logging
import re
import signal
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import anyio
import pytest

from gaman import App, ConfigError, Context, HTTPError, Integration, Response, mount
from gaman._tracebacks import explain
from gaman.session import Driver, Session, SessionClosed, SessionStoreError, session
from gaman.testing import TestClient
from gaman_session import _cookie_session, _sealing, _upkeep
from gaman_session.drivers.memory import MemoryDriver
from gaman_session.drivers.redis import RedisDriver
from tests import servers
from tests.asgi import Exchange, Fetch
from tests.session.sites import SECRET, Browser, Clock, Recording, Sealing, Site, Work, gaman_only, getting, serving, setting

pytestmark = pytest.mark.anyio

Handle = Callable[[Context], Awaitable[Any]]


@asynccontextmanager
async def running(handle: Handle, *others: Integration, first: bool = False, **options: Any) -> AsyncGenerator[App, None]:
    """An application with sessions and *others*, which are *first* in its list or after the session."""
    given: dict[str, Any] = {"secret": SECRET, **options}
    ours = session(**given)
    app = App({"/": handle}, integrations=[*others, ours] if first else [ours, *others])
    await app.load()
    try:
        yield app
    finally:
        await app.shutdown()


def cookie_of(response: Exchange) -> dict[str, str]:
    """Return the headers of a browser's next request."""
    (line,) = response.headers.getall("set-cookie")
    return {"cookie": line.partition(";")[0], "host": "testserver"}


@pytest.mark.parametrize("depth", [1, 2])
async def test_two_sessions_with_one_cookie_in_an_app_and_a_mounted_one_stop_the_start(depth: int) -> None:
    app = App({"/": remember}, integrations=[session(SECRET)])
    for _ in range(depth - 1):
        app = App({"/*": mount(app)})
    outer = App({"/": remember, "/api/*": mount(app)}, integrations=[session(SECRET)])
    here = r" \(tests/session/test_integration.py, line [0-9]+, in test_two_sessions\w+\)"
    with pytest.raises(ConfigError) as raised:
        await outer.load()
    cookie, fix = "the cookie '__Host-Http-gaman'", "pass the same session() object to both Apps, or give one a cookie_name"
    said = f"a mounted App has another session() with {cookie}@, and one would log out the visitors of the other; {fix}@"
    assert re.fullmatch(re.escape(said).replace("@", here), explain(raised.value))


async def test_an_app_and_a_mounted_one_may_share_a_session_or_have_two_cookies() -> None:
    shared = replace(session(SECRET), priority="high")
    for integration in (shared, session(SECRET, cookie_name="__Host-api")):
        api = App({"/": remember}, integrations=[integration])
        outer = App({"/api/*": mount(api)}, integrations=[shared])
        await outer.load()
        await outer.shutdown()


@pytest.mark.parametrize("depth", [1, 2])
async def test_without_the_integration_a_mounted_app_says_to_pass_the_same_object(depth: int) -> None:
    app = App({"/": remember})
    for _ in range(depth):
        app = App({"/*": mount(app)}, integrations=[session(SECRET)] if depth == 1 else ())
    async with TestClient(app) as client:
        with pytest.raises(ConfigError, match=r"in a mounted App too: pass both Apps the same integrations=\[sessions\]"):
            await client.get("/")


async def remember(ctx: Context) -> str:
    await ctx.session.set("key", "value")
    return "remembered"


async def recall(ctx: Context) -> Any:
    return Response.json(await ctx.session.all())


def doing(work: Callable[[Session], Any]) -> Work:
    """Return *work*, an async or a plain function, as an async function."""

    async def done(session: Session) -> Any:
        result = work(session)
        return await result if asyncio.iscoroutine(result) else result

    return done


# Caches

CALLS: dict[str, Callable[[Session], Any]] = {
    "get": lambda session: session.get("key"),
    "has": lambda session: session.has("key"),
    "all": lambda session: session.all(),
    "set": lambda session: session.set("key", 1),
    "delete": lambda session: session.delete("key"),
    "pop": lambda session: session.pop("key"),
    "clear": lambda session: session.clear(),
    "update": lambda session: session.update("key", lambda value: value),
    "regenerate": lambda session: session.regenerate(),
    "save": lambda session: session.save(),
    "id": lambda session: session.id,
    "is_new": lambda session: session.is_new,
}


@pytest.mark.parametrize("visitor", ["a new visitor", "a returning visitor"])
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
async def test_a_response_that_used_its_session_is_kept_out_of_shared_caches(
    site: Site, visitor: str, call: Callable[[Session], Any]
) -> None:
    browser = site.browser()
    if visitor == "a returning visitor":
        await browser.do(setting(key="value", other="value"))
    reply = await browser.request(doing(call))
    assert reply.status == 200
    assert reply.headers.getall("vary") == ["Cookie"]
    assert reply.headers.getall("cache-control") == ["no-store"]


async def test_a_response_that_did_not_use_its_session_is_not_changed(site: Site) -> None:
    browser = site.browser()
    await browser.do(setting(key="value"))
    reply = await browser.request(doing(lambda session: None))
    assert sorted(reply.headers) == ["content-length", "content-type"]


async def test_an_error_that_depends_on_the_session_is_kept_out_of_shared_caches(driver: Driver | None, fetch: Fetch) -> None:
    async def handle(ctx: Context) -> str:
        if ctx.query.get("use"):
            await ctx.session.get("user")
        if ctx.query.get("fail"):
            raise ValueError("it fails")
        raise HTTPError(403)

    async with running(handle, driver=driver) as app:
        for target, status in (("/?use=1", 403), ("/?use=1&fail=1", 500)):
            response = await fetch(app, target)
            assert response.status == status
            assert response.headers.get("cache-control") == "no-store"
            assert response.headers.get("vary") == "Cookie"
        response = await fetch(app, "/")
        assert response.status == 403
        assert "vary" not in response.headers
        assert "cache-control" not in response.headers


@pytest.mark.parametrize("own", ["private, max-age=60", "public, max-age=600", "no-cache", ""], ids=repr)
async def test_the_handlers_own_cache_control_stays(site: Site, own: str) -> None:
    reply = await site.request(getting("key"), response=Response("done", headers={"Cache-Control": own}))
    assert reply.headers.getall("cache-control") == [own]
    assert reply.headers.getall("vary") == ["Cookie"]


@pytest.mark.parametrize(
    "own",
    [
        {"Cache-Control": "public, max-age=600"},
        {"Cache-Control": "private"},
        {"Cache-Control": ""},
        {"Cache-Control": 'private="no-store"'},
        {"CDN-Cache-Control": "max-age=600"},
        {"Surrogate-Control": "max-age=600", "Cache-Control": "no-store"},
    ],
    ids=str,
)
async def test_beside_the_sessions_cookie_a_response_is_no_store_whatever_the_handler_sets(
    site: Site, own: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(2):
        reply = await site.request(setting(key=1), response=Response("done", headers=own))
        assert "set-cookie" in reply.headers
        assert [field for field in reply.headers if field.endswith("-control")] == ["cache-control"]
        assert reply.headers.getall("cache-control") == ["no-store"]
        assert reply.headers.getall("vary") == ["Cookie"]
    [record] = [record for record in caplog.records if "no-store" in record.getMessage()]
    assert record.levelname == "WARNING"
    name, value = next(iter(own.items()))
    assert f"{name.lower()}: {value}" in record.getMessage()


@pytest.mark.parametrize("own", ["no-store", "private, No-Store, max-age=0"])
async def test_a_handler_that_sets_no_store_itself_is_not_warned(site: Site, own: str, caplog: pytest.LogCaptureFixture) -> None:
    reply = await site.request(setting(key=1), response=Response("done", headers={"Cache-Control": own}))
    assert "set-cookie" in reply.headers
    assert reply.headers.getall("cache-control") == ["no-store"]
    assert caplog.records == []


@pytest.mark.parametrize("own", ["Cookie", "cookie", "COOKIE", "Accept, Cookie", "Accept,cookie,Origin", "Cookie ,Accept", "*"])
async def test_a_vary_that_covers_the_cookie_is_not_added_to(site: Site, own: str) -> None:
    reply = await site.request(getting("key"), response=Response("done", headers={"Vary": own}))
    assert reply.headers.getall("vary") == [own]
    assert reply.headers.getall("cache-control") == ["no-store"]


async def test_of_two_vary_fields_either_may_name_the_cookie(site: Site) -> None:
    response = Response("done", headers=[("Vary", "Cookie"), ("Vary", "Accept")])
    reply = await site.request(getting("key"), response=response)
    assert reply.headers.getall("vary") == ["Cookie", "Accept"]


@pytest.mark.parametrize("own", ["Accept-Encoding", "X-Cookie-Consent", "Cookies, Accept"])
async def test_a_vary_that_names_something_else_is_kept_and_joined(site: Site, own: str) -> None:
    reply = await site.request(getting("key"), response=Response("done", headers={"Vary": own}))
    names = [name.strip() for field in reply.headers.getall("vary") for name in field.split(",")]
    assert names == [*own.split(", "), "Cookie"]


async def test_a_response_that_a_handler_returns_to_all_requests_is_not_changed(driver: Driver | None, fetch: Fetch) -> None:
    shared = Response("always the same")

    async def handle(ctx: Context) -> Response:
        if ctx.query.get("use"):
            await ctx.session.set("key", "value")
        return shared

    async with running(handle, driver=driver) as app:
        before = await fetch(app)
        for _ in range(2):
            used = await fetch(app, "/?use=1")
            assert used.headers.getall("vary") == ["Cookie"]
        assert list((await fetch(app)).headers.items()) == list(before.headers.items())


async def test_a_response_that_another_hook_returns_to_all_requests_is_not_changed(driver: Driver | None, fetch: Fetch) -> None:
    shared = Response("always the same")

    async def handle(ctx: Context) -> str:
        return str(await ctx.session.get("key")) if ctx.query.get("use") else ""

    async with running(handle, Integration(name="other", on_response=lambda ctx, response: shared), driver=driver) as app:
        for _ in range(2):
            used = await fetch(app, "/?use=1")
            assert used.headers.getall("vary") == ["Cookie"]
            assert used.headers.getall("cache-control") == ["no-store"]
        assert "vary" not in (await fetch(app)).headers


# The cookie


@pytest.mark.parametrize("driver", [None, {"type": "memory"}], ids=["cookies", "memory"])
@pytest.mark.parametrize(
    ("options", "name", "attributes"),
    [
        ({}, "__Host-Http-gaman", "Max-Age=86400; Path=/; Secure; HttpOnly; SameSite=Lax"),
        ({"max_age": 60}, "__Host-Http-gaman", "Max-Age=60; Path=/; Secure; HttpOnly; SameSite=Lax"),
        ({"secure": False}, "gaman", "Max-Age=86400; Path=/; HttpOnly; SameSite=Lax"),
        ({"same_site": "strict"}, "__Host-Http-gaman", "Max-Age=86400; Path=/; Secure; HttpOnly; SameSite=Strict"),
        ({"same_site": "none"}, "__Host-Http-gaman", "Max-Age=86400; Path=/; Secure; HttpOnly; SameSite=None"),
        ({"domain": "example.com"}, "__Secure-gaman", "Max-Age=86400; Path=/; Domain=example.com; Secure; HttpOnly; SameSite=Lax"),
        ({"path": "/app"}, "__Secure-gaman", "Max-Age=86400; Path=/app; Secure; HttpOnly; SameSite=Lax"),
        ({"partitioned": True}, "__Host-Http-gaman", "Max-Age=86400; Path=/; Secure; HttpOnly; SameSite=Lax; Partitioned"),
        ({"cookie_name": "sid"}, "sid", "Max-Age=86400; Path=/; Secure; HttpOnly; SameSite=Lax"),
        ({"idle_timeout": 60}, "__Host-Http-gaman", "Max-Age=86400; Path=/; Secure; HttpOnly; SameSite=Lax"),
        ({"encrypt": True, "serializer": "json"}, "__Host-Http-gaman", "Max-Age=86400; Path=/; Secure; HttpOnly; SameSite=Lax"),
    ],
    ids=str,
)
async def test_the_cookie_has_the_configured_attributes(
    clock: Clock, driver: Any, options: dict[str, Any], name: str, attributes: str
) -> None:
    async with serving(Site(driver, clock, **options)) as site:
        browser = site.browser()
        began = (await browser.request(setting(key="value"))).set_cookie
        assert began == f"{name}={browser.token}; {attributes}"
        # A browser removes a cookie only if its other attributes are the same.
        ended = (await browser.request(doing(lambda session: session.clear()))).set_cookie
        assert ended is not None
        assert ended == f"{name}=; Max-Age=0; {attributes.partition('; ')[2]}"


async def test_a_cookie_that_ends_with_the_browser_has_no_max_age(site: Site) -> None:
    async def work(session: Session) -> None:
        await session.set("key", "value")
        await session.regenerate(max_age=0)

    browser = site.browser()
    line = (await browser.request(work)).set_cookie
    assert line == f"{site.cookie_name}={browser.token}; Path=/; Secure; HttpOnly; SameSite=Lax"


@pytest.mark.parametrize("call", ["get", "has", "all", "id", "is_new", "save"])
async def test_reading_sends_no_cookie(site: Site, call: str) -> None:
    browser = site.browser()
    assert (await browser.request(doing(CALLS[call]))).set_cookie is None
    await browser.do(setting(key="value"))
    assert (await browser.request(doing(CALLS[call]))).set_cookie is None


@pytest.mark.parametrize("call", ["delete", "pop", "clear"])
async def test_deleting_from_an_empty_session_sends_no_cookie(site: Site, call: str) -> None:
    assert (await site.request(doing(CALLS[call]))).set_cookie is None


async def test_the_sessions_cookie_and_the_handlers_own_do_not_disturb_each_other(driver: Driver | None, fetch: Fetch) -> None:
    async def handle(ctx: Context) -> str:
        ctx.cookies.set("theme", "dark")
        await ctx.session.set("key", "value")
        return "done"

    async with running(handle, driver=driver) as app:
        names = [line.partition("=")[0] for line in (await fetch(app)).headers.getall("set-cookie")]
    assert sorted(names) == ["__Host-Http-gaman", "theme"]


def _sent_over(scheme: str, host: str | None) -> dict[str, Any]:
    return {"headers": {} if host is None else {"host": host}, "scope": {"scheme": scheme}}


@pytest.mark.parametrize(
    "host",
    [
        "example.com",
        "example.com:8000",
        "192.168.1.5:3431",
        "localhost.example.com",
        "127.0.0.1.example.com",
        "mylocalhost",
        "[::2]",
    ],
)
async def test_a_secure_cookie_over_plain_http_logs_exactly_one_warning(
    driver: Driver | None, fetch: Fetch, caplog: pytest.LogCaptureFixture, host: str
) -> None:
    async with running(remember, driver=driver) as app:
        for _ in range(3):
            assert (await fetch(app, **_sent_over("http", host))).status == 200
    (record,) = caplog.records
    assert (record.name, record.levelno) == ("gaman", logging.WARNING)
    for word in ("Secure", host, "HTTP", "secure=False"):
        assert word in record.getMessage()


@pytest.mark.parametrize(
    ("scheme", "host"),
    [
        ("http", "localhost"),
        ("http", "localhost:3431"),
        ("http", "LocalHost:3431"),
        ("http", "localhost.:3431"),
        ("http", "127.0.0.1"),
        ("http", "127.0.0.1:3431"),
        ("http", "127.1.2.3"),
        ("http", "[::1]"),
        ("http", "[::1]:3431"),
        ("http", "x.localhost"),
        ("http", "shop.x.localhost:3431"),
        ("https", "example.com"),
        ("https", "192.168.1.5:3431"),
    ],
)
async def test_a_secure_cookie_that_browsers_keep_logs_no_warning(
    driver: Driver | None, fetch: Fetch, caplog: pytest.LogCaptureFixture, scheme: str, host: str
) -> None:
    async with running(remember, driver=driver) as app:
        response = await fetch(app, **_sent_over(scheme, host))
        assert "; Secure" in response.headers.getall("set-cookie")[0]
    assert caplog.records == []


async def test_a_cookie_that_the_browser_sent_logs_no_warning(fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    async with running(remember) as app:
        line = (await fetch(app, **_sent_over("https", "example.com"))).headers.getall("set-cookie")[0]
        sent = _sent_over("http", "example.com")
        sent["headers"]["cookie"] = line.partition(";")[0]
        assert (await fetch(app, **sent)).headers.getall("set-cookie")
    assert caplog.records == []


async def test_a_local_request_does_not_use_up_the_warning(fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    async with running(remember) as app:
        await fetch(app, **_sent_over("http", "localhost"))
        await fetch(app, **_sent_over("https", "example.com"))
        assert caplog.records == []
        await fetch(app, **_sent_over("http", "example.com"))
        assert len(caplog.records) == 1


async def test_plain_http_is_fine_if_no_secure_cookie_is_sent(fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    async with running(remember, secure=False) as app:
        assert "Secure" not in (await fetch(app, **_sent_over("http", "example.com"))).headers.getall("set-cookie")[0]
    async with running(recall) as app:
        await fetch(app, **_sent_over("http", "example.com"))
    assert caplog.records == []


# Start-up and shutdown


async def test_the_driver_is_open_before_the_first_request_and_closed_after_the_last(fetch: Fetch) -> None:
    driver = Recording()
    other = Integration(
        name="other",
        on_load=lambda app: driver.events.append("other loads"),
        on_shutdown=lambda app: driver.events.append("other shuts down"),
    )
    async with running(remember, other, first=True, driver=driver) as app:
        driver.events.append("first request")
        await fetch(app)
    assert driver.events == ["open", "other loads", "first request", "create", "other shuts down", "close"]


async def test_a_driver_that_cannot_open_stops_the_start_up_with_its_reason() -> None:
    driver = Recording()
    driver.failing = {"open"}
    with pytest.raises(SessionStoreError, match="could not open"):
        async with running(remember, driver=driver):
            pytest.fail("the application has started")
    assert driver.events == ["open"]


@pytest.mark.parametrize("driver", [{"type": "memory"}, MemoryDriver()], ids=["by name", "an object"])
async def test_sessions_in_memory_refuse_to_start_with_two_workers(driver: Any) -> None:
    app = App({"/": remember}, integrations=[session(SECRET, driver)])
    app.workers = 2
    with pytest.raises(ConfigError) as caught:
        await app.load()
    for word in ("memory", "2 workers", "workers=1", "cookies, file, redis, sql, mongodb"):
        assert word in str(caught.value)


@pytest.mark.parametrize("driver", [None, Sealing()], ids=["cookies", "a shared store"])
async def test_sessions_that_all_workers_share_start_with_two(driver: Any, fetch: Fetch) -> None:
    app = App({"/": remember}, integrations=[session(SECRET, driver)])
    app.workers = 2
    await app.load()
    assert (await fetch(app)).status == 200
    await app.shutdown()


async def test_shutdown_leaves_no_task_behind(driver: Driver | None) -> None:
    before = asyncio.all_tasks()
    async with running(remember, driver=driver):
        await asyncio.sleep(0)
    assert asyncio.all_tasks() == before


class Swept(MemoryDriver):
    """Records each purge. Its results are given beforehand: a number, or an error to raise."""

    def __init__(self, *results: int | Exception) -> None:
        super().__init__()
        self.results = list(results)
        self.purges: list[tuple[float, int]] = []
        self.is_done = asyncio.Event()

    async def purge(self, *, now: float, limit: int) -> int:
        self.purges.append((now, limit))
        if not self.results:
            self.is_done.set()
            return 0
        result = self.results.pop(0)
        if isinstance(result, Exception):
            raise result
        return result


async def test_expired_sessions_are_swept_from_the_store(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_upkeep, "_SWEEP_SECONDS", 0)
    driver = MemoryDriver()
    async with serving(Site(driver, clock, max_age=100)) as site:
        await site.browser().do(setting(key="old"))
        clock.now += 50
        await site.browser().do(setting(key="young"))
        clock.now += 50
        with anyio.fail_after(25):
            while len(driver) > 1:
                await asyncio.sleep(0)
        assert [record.fields for record in driver._sessions.values()] == [{"key": b"\xa5young"}]


async def test_the_sweeper_uses_the_clock_and_purges_in_batches(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_upkeep, "_SWEEP_SECONDS", 0)
    driver = Swept()
    async with serving(Site(driver, clock)):
        with anyio.fail_after(25):
            await driver.is_done.wait()
    assert driver.purges[0] == (clock.now, _upkeep._SWEEP_BATCH)


async def test_the_sweeper_continues_at_once_if_there_is_more(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(Swept):
        async def purge(self, *, now: float, limit: int) -> int:
            # From here on, a pause would last longer than the test.
            monkeypatch.setattr(_upkeep, "_SWEEP_SECONDS", 3600)
            return await super().purge(now=now, limit=limit)

    monkeypatch.setattr(_upkeep, "_SWEEP_SECONDS", 0)
    driver = Full(1000, 1000, 3)
    async with serving(Site(driver, clock)):
        with anyio.fail_after(25):
            await driver.is_done.wait()
        assert len(driver.purges) == 4


async def test_the_sweeper_survives_a_purge_that_raises(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_upkeep, "_SWEEP_SECONDS", 0)
    driver = Swept(RuntimeError("a bug"), SessionStoreError("swept", "purge"), 5)
    async with serving(Site(driver, clock)):
        with anyio.fail_after(25):
            await driver.is_done.wait()
    assert len(driver.purges) >= 4
    failures = [record for record in caplog.records if "sweeping" in record.message]
    assert [record.exc_info is not None for record in failures] == [True, False]
    assert {(record.name, record.levelno) for record in failures} == {("gaman", logging.ERROR)}


# Errors


@pytest.mark.parametrize(
    ("end", "status", "is_kept"),
    [
        (ValueError("it fails"), 500, False),
        (HTTPError(400), 400, True),
        (HTTPError(404, "no such thing"), 404, True),
        (HTTPError(499), 499, True),
        (HTTPError(500), 500, False),
        (HTTPError(503), 503, False),
        (Response("no", 400), 400, True),
        (Response("no", 500), 500, False),
        (Response("no", 599), 599, False),
        (Response.redirect("/"), 302, True),
    ],
    ids=lambda value: f"{type(value).__name__} {value.status}" if hasattr(value, "status") else str(value),
)
async def test_an_error_undoes_the_request_and_an_http_error_does_not(
    driver: Driver | None, fetch: Fetch, end: Exception | Response, status: int, is_kept: bool
) -> None:
    async def handle(ctx: Context) -> Any:
        if ctx.query.get("recall"):
            return await recall(ctx)
        await ctx.session.set("key", ctx.query.get("value"))
        if not ctx.query.get("fail"):
            return "done"
        if isinstance(end, Exception):
            raise end
        return end

    async with running(handle, driver=driver) as app:
        browser = cookie_of(await fetch(app, "/?value=old"))
        response = await fetch(app, "/?value=new&fail=1", headers=browser)
        assert response.status == status
        if response.headers.getall("set-cookie"):
            assert is_kept
            browser = cookie_of(response)
        found = (await fetch(app, "/?recall=1", headers=browser)).text
        assert found == ('{"key":"new"}' if is_kept else '{"key":"old"}')
        # No session begins for a visitor without one.
        assert len((await fetch(app, "/?value=new&fail=1")).headers.getall("set-cookie")) == is_kept


@pytest.mark.parametrize("call", ["clear", "regenerate", "delete"])
async def test_an_error_undoes_a_logout_and_a_new_id_too(site: Site, call: str) -> None:
    async def work(session: Session) -> None:
        await doing(CALLS[call])(session)
        raise ValueError("it fails")

    browser = site.browser()
    await browser.do(setting(key="value"))
    token = browser.token
    reply = await browser.request(work)
    assert (reply.status, reply.set_cookie, browser.token) == (500, None, token)
    assert await browser.all() == {"key": "value"}


def answering(**settings: Any) -> Integration:
    """An integration that turns every error into a response of 200."""
    return Integration(name="answering", on_error=lambda ctx, error: Response("answered"), **settings)


async def _failing(ctx: Context) -> Any:
    if ctx.query.get("recall"):
        return await recall(ctx)
    await ctx.session.set("key", ctx.query.get("value"))
    if ctx.query.get("fail"):
        raise ValueError("it fails")
    return "done"


@pytest.mark.parametrize("priority", ["very-high", "normal", "very-low"])
@pytest.mark.parametrize("first", [False, True], ids=["listed after the session", "listed before the session"])
async def test_an_error_that_a_hook_has_answered_still_undoes_the_request(
    driver: Driver | None, fetch: Fetch, priority: Any, first: bool
) -> None:
    async with running(_failing, answering(priority=priority), first=first, driver=driver) as app:
        browser = cookie_of(await fetch(app, "/?value=old"))
        response = await fetch(app, "/?value=new&fail=1", headers=browser)
        assert (response.status, response.text) == (200, "answered")
        assert response.headers.getall("set-cookie") == []
        assert (await fetch(app, "/?recall=1", headers=browser)).text == '{"key":"old"}'


async def test_changes_of_a_hook_that_answers_the_error_are_kept(driver: Driver | None, fetch: Fetch) -> None:
    async def answer_error(ctx: Context, error: Exception) -> Response:
        await ctx.session.set("failed", str(error))
        return Response("answered")

    async with running(_failing, Integration(name="answering", on_error=answer_error), driver=driver) as app:
        response = await fetch(app, "/?value=new&fail=1")
        assert response.status == 200
        assert (await fetch(app, "/?recall=1", headers=cookie_of(response))).text == '{"failed":"it fails"}'


# The session of a request is made when the request first uses it


async def test_a_request_that_does_not_use_its_session_makes_none(driver: Driver | None, fetch: Fetch) -> None:
    made: list[str] = []
    ours: Any = session(SECRET, driver)

    def make(scope: Any, is_closed: bool) -> Session:
        made.append(scope["query_string"].decode())
        made_session: Session = ours.make_session(scope, is_closed)
        return made_session

    async def handle(ctx: Context) -> str:
        for _ in range(int(ctx.query["uses"])):
            await ctx.session.get("key")
        return "done"

    app = App({"/": handle}, integrations=[replace(ours, make_session=make)])
    await app.load()
    try:
        for uses in range(3):
            assert (await fetch(app, f"/?uses={uses}")).text == "done"
    finally:
        await app.shutdown()
    assert made == ["uses=1", "uses=2"]


async def test_a_session_alone_copies_no_response(fetch: Fetch, driver: Driver | None, monkeypatch: pytest.MonkeyPatch) -> None:
    def copy(response: Response) -> Response:
        raise AssertionError("a response was copied")

    async def handle(ctx: Context) -> Response:
        if ctx.query.get("use"):
            await ctx.session.set("key", "value")
        return Response("done", headers={"etag": '"1"'})

    monkeypatch.setattr(Response, "__copy__", copy)
    async with running(handle, driver=driver) as app:
        assert (await fetch(app)).text == "done"
        assert (await fetch(app, "/?use=1")).headers.getall("vary") == ["Cookie"]


async def test_a_session_that_is_first_used_after_its_turn_refuses_changes(driver: Driver | None, fetch: Fetch) -> None:
    async def use(ctx: Context, *_: object) -> None:
        with pytest.raises(SessionClosed, match="make it before"):
            await ctx.session.set("key", "value")
        with pytest.raises(SessionClosed, match="read it before"):
            await ctx.session.get("key")

    async def handle(ctx: Context) -> Any:
        async def chunks() -> AsyncGenerator[str, None]:
            await use(ctx)
            yield "done"

        return Response.stream(chunks()) if ctx.query.get("stream") else "done"

    outer = Integration(name="outer", priority="very-high", on_response=use)
    async with running(handle, outer, first=True, driver=driver) as app:
        assert (await fetch(app)).text == "done"
    async with running(handle, driver=driver) as app:
        assert (await fetch(app, "/?stream=1")).text == "done"


async def test_a_task_that_outlives_its_request_can_not_change_the_session(driver: Driver | None, fetch: Fetch) -> None:
    left: list[Context] = []

    async def handle(ctx: Context) -> str:
        left.append(ctx)
        return "done"

    async with running(handle, driver=driver) as app:
        await fetch(app)
        with pytest.raises(SessionClosed):
            await left[0].session.set("key", "value")


# One packing, one seal and one look at the clock


@pytest.mark.parametrize("count", [1, 2, 50])
async def test_a_session_in_a_cookie_is_encoded_and_sealed_once_however_many_keys_were_set(
    fetch: Fetch, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []

    def counting(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            calls.append(name)
            return function(*args)

        return call

    async def handle(ctx: Context) -> str:
        for key in range(count):
            await ctx.session.set(str(key), key)
        return "done"

    monkeypatch.setattr(_cookie_session, "_encode", counting("encode", _cookie_session._encode))
    monkeypatch.setattr(_sealing, "_seal", counting("seal", _sealing._seal))
    async with running(handle) as app:
        assert (await fetch(app)).headers.getall("set-cookie") != []
    assert calls == ["encode", "seal"]


class CountingClock(Clock):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __call__(self) -> float:
        self.count += 1
        return super().__call__()


@pytest.mark.parametrize("kind", ["cookies", "memory"])
async def test_a_request_that_begins_a_session_reads_the_clock_once(kind: str) -> None:
    clock = CountingClock()
    async with serving(Site({"type": kind}, clock)) as site:
        browser = site.browser()
        clock.count = 0
        await browser.do(setting(a=1, b=2))
        assert clock.count == 1
        assert browser.token is not None


# Other integrations


@pytest.mark.parametrize("priority", ["high", "normal", "very-low"])
@pytest.mark.parametrize("hook", ["on_request", "on_response"])
async def test_the_hooks_of_another_integration_have_the_session(
    driver: Driver | None, fetch: Fetch, priority: Any, hook: str
) -> None:
    async def count(ctx: Context, *_: Response) -> None:
        await ctx.session.set("count", await ctx.session.get("count", 0) + 1)

    async def handle(ctx: Context) -> str:
        return str(await ctx.session.get("count", 0))

    hooks: dict[str, Any] = {hook: count}
    other = Integration(name="other", priority=priority, **hooks)
    async with running(handle, other, first=True, driver=driver) as app:
        browser: dict[str, str] = {}
        for seen in (1, 2, 3) if hook == "on_request" else (0, 1, 2):
            response = await fetch(app, headers=browser)
            assert response.text == str(seen)
            assert response.headers.get("cache-control") == "no-store"
            if response.headers.getall("set-cookie"):
                browser = cookie_of(response)


async def test_another_hook_that_fails_in_on_response_undoes_the_request(driver: Driver | None, fetch: Fetch) -> None:
    def fail(ctx: Context, response: Response) -> None:
        if ctx.query.get("fail"):
            raise ValueError("it fails")

    async def handle(ctx: Context) -> Any:
        if ctx.query.get("recall"):
            return await recall(ctx)
        await ctx.session.set("key", ctx.query.get("value"))
        return "done"

    async with running(handle, Integration(name="other", on_response=fail), driver=driver) as app:
        browser = cookie_of(await fetch(app, "/?value=old"))
        response = await fetch(app, "/?value=new&fail=1", headers=browser)
        assert response.status == 500
        assert response.headers.getall("set-cookie") == []
        assert (await fetch(app, "/?recall=1", headers=browser)).text == '{"key":"old"}'


@pytest.mark.parametrize(
    ("early", "status"),
    [(Response("early"), 200), (HTTPError(403), 403), (ValueError("it fails"), 500)],
    ids=["answers", "refuses", "fails"],
)
async def test_a_hook_that_answers_a_request_before_it_has_a_session_breaks_nothing(
    driver: Driver | None, fetch: Fetch, caplog: pytest.LogCaptureFixture, early: Response | Exception, status: int
) -> None:
    def end(ctx: Context) -> Response:
        if isinstance(early, Exception):
            raise early
        return early

    other = Integration(name="other", priority="very-high", on_request=end)
    async with running(remember, other, first=True, driver=driver) as app:
        response = await fetch(app)
    assert response.status == status
    assert response.headers.getall("set-cookie") == []
    assert "vary" not in response.headers
    # Only the failure itself is logged, and no second one.
    assert len(caplog.records) == (status == 500)


async def test_without_the_integration_the_error_names_the_line_to_add(fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    assert (await fetch(App({"/": remember}))).status == 500
    (record,) = caplog.records
    assert "integrations=[session(...)]" in record.getMessage()


# A store that fails


async def _update(session: Session) -> Any:
    return await session.update("key", lambda value: value + 1)


FAILURES: dict[str, tuple[str, Work]] = {
    "load": ("load", getting("key")),
    "apply": ("apply", setting(key=2)),
    "swap": ("swap", _update),
    "rename": ("rename", doing(lambda session: session.regenerate())),
    "destroy": ("destroy", doing(lambda session: session.clear())),
}


@pytest.mark.parametrize(("failing", "work"), FAILURES.values(), ids=FAILURES)
async def test_a_store_that_fails_is_503_and_logs_no_visitor_out(
    clock: Clock, caplog: pytest.LogCaptureFixture, failing: str, work: Work
) -> None:
    driver = Recording()
    async with serving(Site(driver, clock)) as site:
        browser = site.browser()
        await browser.do(setting(key=1))
        driver.failing = {failing}
        reply = await browser.request(work)
        assert failing in driver.events
        assert (reply.status, reply.set_cookie) == (503, None)
        assert b"out of reach" not in reply.body
        assert "out of reach" in caplog.text
        driver.failing = set()
        assert await browser.all() == {"key": 1}


async def test_a_session_that_cannot_begin_is_503_and_no_cookie(clock: Clock) -> None:
    driver = Recording()
    driver.failing = {"create"}
    async with serving(Site(driver, clock)) as site:
        reply = await site.request(setting(key=1))
        assert (reply.status, reply.set_cookie) == (503, None)


@pytest.mark.parametrize("failing", ["load", "apply"])
async def test_the_response_to_a_store_that_fails_is_kept_out_of_shared_caches_too(clock: Clock, failing: str) -> None:
    driver = Recording()
    async with serving(Site(driver, clock)) as site:
        browser = site.browser()
        await browser.do(setting(key=1))
        driver.failing = {failing}
        reply = await browser.request(FAILURES[failing][1])
        assert reply.status == 503
        assert reply.headers.getall("cache-control") == ["no-store"]


async def test_a_request_that_does_not_use_its_session_needs_no_store(clock: Clock) -> None:
    driver = Recording()
    async with serving(Site(driver, clock)) as site:
        browser = site.browser()
        await browser.do(setting(key=1))
        driver.failing = {"load", "apply", "create", "destroy"}
        assert (await browser.request(doing(lambda session: None))).status == 200


async def test_a_handler_may_continue_without_a_store_that_fails(clock: Clock) -> None:
    async def work(session: Session) -> str:
        try:
            return str(await session.get("key"))
        except SessionStoreError:
            return "no idea"

    driver = Recording()
    async with serving(Site(driver, clock)) as site:
        browser = Browser(site)
        await browser.do(setting(key=1))
        driver.failing = {"load"}
        reply = await browser.request(work)
        assert (reply.status, reply.result, reply.set_cookie) == (200, "no idea", None)


# The check


async def test_a_check_fails_while_the_store_is_down_and_names_no_password(clock: Clock) -> None:
    with servers.RedisServer() as server:
        # A user without a password accepts any.
        url = f"redis://default:hidden@{server.address}"
        async with serving(Site(RedisDriver(url=url, timeout=1), clock)) as site:
            assert await site.app.check() == {"session": None}
            server.kill()
            error = (await site.app.check())["session"]
            assert isinstance(error, SessionStoreError)
            assert "hidden" not in f"{error} {error.__cause__!r}"
            server.start().wait()
            assert await site.app.check() == {"session": None}


async def test_a_check_waits_no_longer_than_the_driver_does(clock: Clock) -> None:
    with servers.RedisServer() as server:
        async with serving(Site(RedisDriver(url=server.url, timeout=0.5), clock)) as site:
            server.send_signal(signal.SIGSTOP)
            with anyio.fail_after(25):
                assert isinstance((await site.app.check())["session"], SessionStoreError)
            server.send_signal(signal.SIGCONT)


async def test_a_check_loads_from_every_kind_of_store_and_writes_nothing(store: Driver, clock: Clock) -> None:
    async with serving(Site(store, clock)) as site:
        assert await site.app.check() == {"session": None}
        clock.now += 10 * 365 * 86_400
        assert await store.purge(now=clock.now, limit=10) == 0


@gaman_only
async def test_cookies_have_nothing_to_check(clock: Clock) -> None:
    async with serving(Site(None, clock)) as site:
        assert await site.app.check() == {}


async def test_the_warning_of_a_secure_cookie_names_request_session_and_driver(
    clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Site(None, clock)) as site:
        await site.request(setting(a=1), scheme="http")
    [record] = map(vars, caplog.records)
    assert (record["method"], record["path"], record["driver"], len(record["session"])) == ("GET", "/", "cookies", 64)
