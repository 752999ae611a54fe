"""login(), confirm() and logout() on every driver."""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pytest

from gaman import App, ConfigError, Context, HTTPError, mount
from gaman.session import (
    Driver,
    Session,
    SessionClosed,
    SessionLoginRequired,
    SessionSerializationError,
    SessionUseError,
    require_fresh,
    session,
)
from gaman.testing import TestClient
from gaman_session._login import LOGIN
from tests.asgi import fetch
from tests.session.sites import SECRET, Browser, Clock, Recording, Site, gaman_only, new_folder, opened, serving, setting

pytestmark = pytest.mark.anyio


def logging_in(owner: str = "user:1", **options: Any) -> Callable[[Session], Awaitable[None]]:
    async def work(session: Session) -> None:
        await session.login(owner, **options)

    return work


def confirming(level: int | None = None) -> Callable[[Session], Awaitable[None]]:
    async def work(session: Session) -> None:
        await session.confirm(level)

    return work


async def log_out(session: Session) -> None:
    await session.logout()


async def owner_of(session: Session) -> str | None:
    return await session.owner()


async def login_time(session: Session) -> datetime | None:
    await session.owner()
    return session.authenticated_at


async def regenerate(session: Session) -> None:
    await session.regenerate()


def freshness(browser: Browser, seconds: float = 300, level: int = 1) -> Awaitable[bool]:
    async def work(session: Session) -> bool:
        return await session.is_fresh(seconds, level=level)

    return browser.do(work)


async def test_a_login_gives_the_session_an_owner_and_a_new_id(site: Site) -> None:
    browser = site.browser()
    await browser.do(setting(cart=[1]))
    old = site.browser(browser.token)
    await browser.do(logging_in())
    assert await browser.do(owner_of) == "user:1"
    assert await browser.all() == {"cart": [1]}
    assert browser.token != old.token
    if site.driver is not None:
        assert await old.all() == {}
        assert await old.do(owner_of) is None


async def test_a_login_needs_no_other_value_to_begin_a_session(site: Site) -> None:
    browser = site.browser()
    await browser.do(logging_in())
    assert browser.token is not None
    assert await browser.all() == {}
    assert await browser.do(owner_of) == "user:1"


async def test_a_fresh_login_keeps_values_that_its_request_has_set(site: Site) -> None:
    browser = site.browser()
    await browser.do(logging_in("user:1"))
    await browser.do(setting(cart=[1]))

    async def work(session: Session) -> tuple[str | None, dict[str, Any]]:
        await session.set("theme", "dark")
        await session.login("user:1", fresh=True)
        await session.set("name", "Budi")
        return await session.owner(), await session.all()

    expected = {"theme": "dark", "name": "Budi"}
    assert await browser.do(work) == ("user:1", expected)
    assert await browser.all() == expected


@pytest.mark.parametrize("is_fresh", [False, True])
async def test_a_login_of_another_owner_keeps_nothing_from_before_it(site: Site, is_fresh: bool) -> None:
    browser = site.browser()
    await browser.do(logging_in("user:1"))
    await browser.do(setting(cart=[1], secret=1))

    async def work(session: Session) -> None:
        await session.update("cart", lambda cart: [*cart, 2])
        await session.set("secret", 2)
        await session.save()
        await session.set("theme", "dark")
        await session.login("user:2", fresh=is_fresh)
        await session.set("name", "Budi")

    await browser.do(work)
    assert await browser.all() == {"name": "Budi"}
    assert await browser.do(owner_of) == "user:2"


async def test_a_login_of_another_owner_sees_nothing_of_the_one_before(site: Site) -> None:
    browser = site.browser()
    await browser.do(logging_in("user:1"))
    await browser.do(setting(address="secret"))
    before = site.browser(browser.token)
    await browser.do(logging_in("user:2"))
    assert await browser.all() == {}
    assert await browser.do(owner_of) == "user:2"
    if site.driver is not None:
        assert await before.do(owner_of) is None


async def test_a_second_login_of_the_same_owner_keeps_the_data(site: Site) -> None:
    browser = site.browser()
    await browser.do(logging_in())
    await browser.do(setting(cart=[1]))
    await browser.do(logging_in())
    assert await browser.all() == {"cart": [1]}


async def test_a_fresh_login_drops_the_data(site: Site) -> None:
    browser = site.browser()
    await browser.do(setting(cart=[1]))
    await browser.do(logging_in(fresh=True))
    assert await browser.all() == {}
    assert await browser.do(owner_of) == "user:1"


async def test_a_login_has_a_lifetime_of_its_own(site: Site) -> None:
    browser = site.browser()
    await browser.do(logging_in(max_age=60))
    site.clock.now += 59
    assert await browser.do(owner_of) == "user:1"
    site.clock.now += 1
    assert await browser.do(owner_of) is None
    reply = await browser.request(logging_in(max_age=0))
    assert reply.set_cookie is not None
    assert "Max-Age" not in reply.set_cookie


async def test_a_logout_ends_the_session(site: Site) -> None:
    browser = site.browser()
    await browser.do(logging_in())
    before = site.browser(browser.token)
    await browser.do(log_out)
    assert browser.token is None
    if site.driver is not None:
        assert await before.do(owner_of) is None


async def test_a_visitor_is_not_logged_in(site: Site) -> None:
    browser = site.browser()
    assert await browser.do(owner_of) is None
    assert await browser.do(login_time) is None
    assert not await freshness(browser)
    await browser.do(setting(cart=[1]))
    assert await browser.do(owner_of) is None
    assert not await freshness(browser)


async def test_the_login_survives_regenerate(site: Site) -> None:
    browser = site.browser()
    await browser.do(logging_in())
    logged_in_at = await browser.do(login_time)
    assert logged_in_at == datetime.fromtimestamp(site.clock.now, UTC)
    site.clock.now += 100
    await browser.do(regenerate)
    assert await browser.do(login_time) == logged_in_at
    assert await browser.do(owner_of) == "user:1"


async def test_a_login_is_fresh_for_a_while(site: Site) -> None:
    browser = site.browser()
    await browser.do(logging_in())
    site.clock.now += 299
    assert await freshness(browser, 300)
    site.clock.now += 1
    assert not await freshness(browser, 300)


async def test_a_confirmation_makes_the_login_fresh_under_a_new_id(site: Site) -> None:
    browser = site.browser()
    await browser.do(logging_in())
    await browser.do(setting(cart=[1]))
    site.clock.now += 1000
    before = browser.token
    await browser.do(confirming())
    assert browser.token != before
    assert await browser.do(login_time) == datetime.fromtimestamp(site.clock.now, UTC)
    assert await freshness(browser)
    assert await browser.all() == {"cart": [1]}
    assert await browser.do(owner_of) == "user:1"


async def test_a_second_factor_is_fresh_by_itself(site: Site) -> None:
    browser = site.browser()
    await browser.do(logging_in())
    assert not await freshness(browser, level=2)
    await browser.do(confirming(2))
    assert await freshness(browser, level=2)
    site.clock.now += 1000
    await browser.do(confirming())
    assert await freshness(browser)
    assert not await freshness(browser, level=2)
    await browser.do(confirming(3))
    assert await freshness(browser, level=2)
    await browser.do(logging_in())
    assert not await freshness(browser, level=2)


async def test_a_visitor_has_nothing_to_confirm(site: Site) -> None:
    browser = site.browser()
    await browser.do(setting(cart=[1]))
    reply = await browser.request(confirming())
    assert reply.status == 401
    assert isinstance(reply.error, SessionLoginRequired)
    assert reply.body == b"log in, or confirm the login"
    assert await browser.all() == {"cart": [1]}


async def test_a_failed_request_does_not_log_in(site: Site) -> None:
    browser = site.browser()

    async def fail(session: Session) -> None:
        await session.login("user:1")
        raise RuntimeError("failed on purpose")

    await browser.request(fail)
    assert browser.token is None


async def test_a_login_and_a_confirmation_in_one_request_are_one_rename(clock: Clock) -> None:
    driver = Recording()
    async with serving(Site(driver, clock)) as site:
        browser = site.browser()
        await browser.do(setting(cart=[1]))
        driver.events.clear()

        async def work(session: Session) -> None:
            await session.login("user:1")
            await session.confirm(2)

        await browser.do(work)
        assert driver.events == ["load", "rename"]
        assert await freshness(browser, level=2)


@pytest.mark.parametrize("before", ["nothing", "a visitor", "another owner", "the same owner", "a dead cookie"])
@pytest.mark.parametrize("is_fresh", [False, True])
async def test_a_login_with_a_second_factor_in_one_request_is_kept(site: Site, before: str, is_fresh: bool) -> None:
    browser = site.browser()
    if before == "a visitor":
        await browser.do(setting(cart=[1]))
    elif before == "another owner":
        await browser.do(logging_in("user:2"))
    elif before != "nothing":
        await browser.do(logging_in())
    if before == "a dead cookie":
        dead = browser.token
        await browser.do(log_out)
        browser.token = dead

    async def work(session: Session) -> None:
        await session.login("user:1", fresh=is_fresh)
        await session.regenerate()
        await session.confirm(2)

    await browser.do(work)
    assert await browser.do(owner_of) == "user:1"
    assert await freshness(browser, level=2)


async def test_a_confirmation_of_a_session_that_ends_meanwhile_stays_none_after_regenerate(store: Driver, clock: Clock) -> None:
    async with serving(Site(store, clock)) as site, serving(Site(opened(store), clock)) as other:
        browser = site.browser()
        await browser.do(logging_in())
        same = other.browser(browser.token)

        async def work(session: Session) -> None:
            await session.confirm()
            await session.regenerate()
            await same.do(log_out)

        await browser.request(work)
        assert await browser.do(owner_of) is None


@pytest.mark.parametrize("reads", [False, True])
@pytest.mark.parametrize("owner", ["user:2", None])
async def test_set_owner_cannot_contradict_the_login(store: Driver, clock: Clock, owner: str | None, reads: bool) -> None:
    async with serving(Site(store, clock)) as site:
        browser, logged_in = site.browser(), f"user:{id(site)}"
        await browser.do(logging_in(logged_in))

        async def work(session: Session) -> None:
            if reads:
                await session.owner()
            await session.set("cart", [1])
            await session.set_owner(owner)
            await session.save()

        reply = await browser.request(work)
        assert isinstance(reply.error, SessionUseError)
        assert str(reply.error) == (
            f"set_owner({owner!r}): {logged_in!r} is logged in; write `await session.login(...)` for another owner, or "
            "`await session.logout()`"
        )
        assert await browser.all() == {}
        assert await site.sessions.end_all(logged_in) >= 1
        assert await browser.do(owner_of) is None


async def test_set_owner_changes_the_note_of_a_login(store: Driver, clock: Clock) -> None:
    async with serving(Site(store, clock)) as site:
        owner = f"user:{id(site)}"

        async def work(session: Session) -> None:
            await session.set_owner(owner, note="a tablet")

        browser = site.browser()
        await browser.do(logging_in(owner, note="a phone"))
        await browser.do(work)
        assert [each.note for each in await site.sessions.list(owner)] == ["a tablet"]


async def test_a_login_is_not_fresh_for_longer_when_the_clock_is_set_back(site: Site) -> None:
    browser = site.browser()
    await browser.do(logging_in())
    site.clock.now -= 0.5
    assert await freshness(browser)
    site.clock.now -= 3600
    assert not await freshness(browser)


async def test_a_login_after_accept_leaves_the_session_as_it_is(store: Driver, clock: Clock) -> None:
    async with serving(Site(store, clock)) as site:
        browser = site.browser()
        await browser.do(logging_in())

        async def work(session: Session) -> None:
            session._end_handshake()
            for owner, is_fresh in (("user:2", False), ("user:1", True)):
                with pytest.raises(SessionClosed):
                    await session.login(owner, fresh=is_fresh)
            await session.save()

        await browser.request(work)
        assert await browser.do(owner_of) == "user:1"


async def test_the_store_lists_the_sessions_of_a_login(store: Driver, clock: Clock) -> None:
    async with serving(Site(store, clock)) as site:
        owner = f"user:{id(site)}"
        await site.browser().do(logging_in(owner, note="a phone"))
        [session] = await site.sessions.list(owner)
        assert session.note == "a phone"
        assert await site.sessions.end_all(owner) == 1


async def test_a_login_is_json_in_a_store_that_is_not_encrypted(clock: Clock) -> None:
    folder = new_folder()
    async with serving(Site({"type": "sql", "file": folder / "sessions.db"}, clock, encrypt=False)) as site:
        browser = site.browser()
        await browser.do(logging_in())
        await browser.do(confirming(2))
        assert await browser.do(owner_of) == "user:1"
        assert await freshness(browser, level=2)
        with closing(sqlite3.connect(folder / "sessions.db")) as database:
            [(value,)] = database.execute("SELECT json(value) FROM session_values").fetchall()
    assert json.loads(value)[0] == "user:1"


@pytest.mark.parametrize("key", ["get", "has", "delete", "pop"])
async def test_the_login_is_not_a_value_of_the_application(site: Site, key: str) -> None:
    async def work(session: Session) -> None:
        with pytest.raises(SessionUseError, match="only login"):
            await getattr(session, key)(LOGIN)
        with pytest.raises(SessionUseError, match="choose another key"):
            await session.set(LOGIN, "user:2")
        with pytest.raises(SessionUseError, match="choose another key"):
            await session.update(LOGIN, lambda value: value, 0)

    await site.browser().do(work)


@pytest.mark.parametrize("owner", ["", None, 1, "\ud800"])
async def test_an_owner_is_text(site: Site, owner: Any) -> None:
    reply = await site.browser().request(logging_in(owner))
    assert isinstance(reply.error, SessionUseError)
    assert "an owner is text" in str(reply.error)


async def test_invalid_arguments_are_named(site: Site) -> None:
    browser = site.browser()

    async def work(session: Session) -> None:
        with pytest.raises(SessionUseError, match="max_age is a whole number of seconds"):
            await session.login("user:1", max_age=-1)
        with pytest.raises(SessionUseError, match="a level is 1 for a password"):
            await session.confirm(0)
        with pytest.raises(SessionUseError, match="a level is 1 for a password"):
            await session.is_fresh(300, level=10)
        for seconds in (0, -1, "300", True, float("nan")):
            with pytest.raises(SessionUseError, match="the age of a login is a number of seconds"):
                await session.is_fresh(seconds)  # type: ignore[arg-type]  # on purpose

    await browser.do(work)
    assert browser.token is None


async def test_a_note_that_cannot_be_encoded_logs_nobody_in(store: Driver, clock: Clock) -> None:
    async with serving(Site(store, clock)) as site:
        reply = await site.browser().request(logging_in(note=object()))
        assert isinstance(reply.error, SessionSerializationError)
        assert reply.set_cookie is None


async def test_a_login_after_the_response_has_begun_is_an_error(site: Site) -> None:
    sessions: list[Session] = []

    async def work(session: Session) -> None:
        await session.owner()
        sessions.append(session)

    await site.browser().do(work)
    for call in (sessions[0].login("user:1"), sessions[0].confirm()):
        with pytest.raises(SessionClosed):
            await call
    with pytest.raises(SessionClosed):
        sessions[0].logout()


async def test_a_confirmation_before_the_login_is_named_in_the_log(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gaman")

    async def work(session: Session) -> None:
        await session.confirm(level=2)
        await session.login("user:1")

    assert (await site.browser().request(work)).status == 401
    [message] = [each for each in caplog.messages if "confirm()" in each]
    assert message == "GET '/': confirm() found no login; if the user has just logged in, call login() first"


async def test_an_owner_under_an_old_id_is_warned_of_once(store: Driver, clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    async def set_owner(session: Session) -> None:
        await session.set_owner("user:1")

    async def set_both(session: Session) -> None:
        await session.regenerate()
        await session.set_owner("user:1")

    async def set_note(session: Session) -> None:
        await session.get("cart")
        await session.set_owner("user:1", note="a phone")

    async def set_after_save(session: Session) -> None:
        await session.regenerate()
        await session.save()
        await session.set_owner("user:2")

    async with serving(Site(store, clock)) as site:
        for work in (set_both, set_note, set_after_save):
            browser = site.browser()
            await browser.do(setting(cart=[1]))
            await browser.do(set_both)
            await browser.do(work)
            assert caplog.messages == []
        for _ in range(2):
            browser = site.browser()
            await browser.do(setting(cart=[1]))
            await browser.do(set_owner)
        [message] = [each for each in caplog.messages if "old id" in each]
        assert "write `await session.login(owner)`" in message


async def test_a_logout_beside_a_confirmation_wins(store: Driver, clock: Clock) -> None:
    async with serving(Site(store, clock)) as site, serving(Site(opened(store), clock)) as other:
        browser = site.browser()
        await browser.do(logging_in())
        same = other.browser(browser.token)

        async def work(session: Session) -> None:
            await session.confirm()
            await same.do(log_out)

        reply = await browser.request(work)
        assert reply.set_cookie is None
        assert await browser.do(owner_of) is None


@gaman_only
async def test_a_route_can_require_a_fresh_login(clock: Clock) -> None:
    async def log_in(ctx: Context) -> str:
        await ctx.session.login("user:1")
        return "logged in"

    async def confirm(ctx: Context) -> str:
        await ctx.session.confirm(2)
        return "confirmed"

    async def change(ctx: Context) -> str:
        return "changed"

    routes: Any = {
        "/login": log_in,
        "/confirm": confirm,
        "/password": [require_fresh(300, redirect="/confirm"), change],
        "/keys": [require_fresh(300, level=2), change],
    }
    async with TestClient(App(routes, integrations=[session(SECRET, {"type": "memory"}, secure=False)])) as client:
        refused = await client.post("/password", follow_redirects=False)
        assert (refused.status_code, refused.headers["location"]) == (303, "/confirm")
        await client.get("/login")
        assert (await client.get("/password")).text == "changed"
        refused = await client.get("/keys")
        assert (refused.status_code, refused.text) == (401, "log in, or confirm the login")
        assert refused.headers["cache-control"] == "no-store"
        await client.get("/confirm")
        assert (await client.get("/keys")).text == "changed"


@gaman_only
@pytest.mark.parametrize(
    ("redirect", "target", "location"),
    [
        ("/confirm", "/password", "/confirm?next=/password"),
        ("/confirm", "/password?to=a&b=%2F+c%C3%A9", "/confirm?next=/password%3Fto%3Da%26b%3D%252F%2Bc%25C3%25A9"),
        ("/confirm?by=code#form", "/password", "/confirm?by=code&next=/password#form"),
        ("confirm", "/password", "confirm?next=/password"),
        # The application's own parameter is the first, so it counts.
        ("/confirm?next=/", "/password", "/confirm?next=/&next=/password"),
        ("/confirm", "/shop/password?a=1", "/confirm?next=/shop/password%3Fa%3D1"),
        # Browsers read these as another site's, and Response.redirect(..., local=True) refuses them.
        ("/confirm", "//evil.example/password", "/confirm"),
        ("/confirm", f"/password?{'a' * 4096}", "/confirm"),
        ("https://login.example/confirm", "/password", "https://login.example/confirm"),
        ("//login.example/confirm", "/password", "//login.example/confirm"),
    ],
)
async def test_a_page_that_requires_a_fresh_login_is_named_to_the_page_that_confirms_it(
    redirect: str, target: str, location: str
) -> None:
    async def confirm(ctx: Context) -> str:
        return ctx.query.get("next") or ""

    guarded: Any = {
        "/password": require_fresh(300, redirect=redirect),
        "/evil.example/password": require_fresh(300, redirect=redirect),
    }
    shop = App(guarded, integrations=[session(SECRET, cookie_name="shop", secure=False)])
    routes: Any = {**guarded, "/shop/*": mount(shop), "/confirm": confirm}
    app = App(routes, integrations=[session(SECRET, secure=False)])
    await app.load()
    for method in ("GET", "HEAD"):
        refused = await fetch(app, target, method)
        assert (refused.status, refused.headers["location"]) == (303, location)
    # The body of another method is lost, so its URL leads nowhere.
    assert (await fetch(app, target, "POST")).headers["location"] == redirect
    if "next=" in location and redirect == "/confirm":
        assert (await fetch(app, location)).text == target


async def show(ctx: Context) -> str:
    return ctx.path


FORMS: Any = {"/confirm": {"GET": show, "POST": show}, "/": show}
CONFIRMED = require_fresh(300, redirect="/account/confirm", level=2)


@gaman_only
@pytest.mark.parametrize(
    "routes",
    [
        {"/account/*": CONFIRMED, "/account": FORMS},
        {"/account": {"*": CONFIRMED, **FORMS}},
        {"/:area/*": CONFIRMED, "/account": FORMS},
        {"/account/confirm": {"GET": [CONFIRMED, show]}},
        {"/account/confirm": [CONFIRMED, show]},
    ],
)
async def test_a_guard_of_the_page_that_it_redirects_to_is_an_error_that_names_it(routes: Any) -> None:
    message = r"^require_fresh\(300, redirect='/account/confirm', level=2\) guards '/account/confirm' itself, and would redirect"
    async with TestClient(App(routes, integrations=[session(SECRET)])) as client:
        with pytest.raises(ConfigError, match=message):
            await client.get("/account/confirm?next=/")


@gaman_only
@pytest.mark.parametrize(
    "routes",
    [
        {"/account": {**FORMS, "/email": [CONFIRMED, show], "/:page": [CONFIRMED, show]}},
        {"/account/confirm": {"GET": show, "POST": [CONFIRMED, show]}},
        {"/account/confirm": {"POST": [CONFIRMED, show]}},
        {"/account/confirm": {"GET": show, "ALL": [CONFIRMED, show]}},
        {"/*": [require_fresh(300, redirect="https://login.example/account"), show], "/account": FORMS},
    ],
)
async def test_a_guard_of_other_pages_than_its_own_redirects(routes: Any) -> None:
    async with TestClient(App(routes, integrations=[session(SECRET)])) as client:
        for method, path in (("GET", "/account/confirm"), ("POST", "/account/confirm"), ("GET", "/account/email")):
            assert (await client.request(method, path)).status_code in (200, 303, 404, 405)


@gaman_only
async def test_a_guard_of_all_pages_that_redirects_to_one_of_them_is_an_error_of_the_request() -> None:
    guarded = App({"*": require_fresh(300, redirect="/confirm"), "/email": show}, integrations=[session(SECRET, cookie_name="a")])
    app = App({"/confirm": show, "/account/*": mount(guarded)}, integrations=[session(SECRET)])
    async with TestClient(app) as client:
        assert (await client.get("/account/confirm")).headers["location"] == "/confirm?next=/account/confirm"
    async with TestClient(guarded) as client:
        assert (await client.get("/email")).headers["location"] == "/confirm?next=/email"
        with pytest.raises(ConfigError, match=r"^require_fresh\(300, redirect='/confirm'\) guards '/confirm' itself"):
            await client.get("/confirm?next=/email")


def test_a_require_fresh_that_is_not_called_is_named() -> None:
    routes: Any = {"/": [require_fresh, owner_of]}
    with pytest.raises(ConfigError, match=r"/: require_fresh makes a handler; write require_fresh\(\.\.\.\)"):
        App(routes)


async def test_a_login_without_an_owner_is_named(site: Site) -> None:
    async def work(session: Any) -> None:
        await session.login()

    reply = await site.browser().request(work)
    assert str(reply.error) == "Session.login() missing 1 required positional argument: 'owner'"


def test_an_invalid_require_fresh_is_named_at_once() -> None:
    with pytest.raises(ConfigError, match="the age of a login"):
        require_fresh(0)
    with pytest.raises(ConfigError, match="a level is 1"):
        require_fresh(300, level=0)
    with pytest.raises((ConfigError, HTTPError, ValueError)):
        require_fresh(300, redirect="/confirm\r\nx: y")


async def test_two_logins_at_once_leave_one_live_session_in_the_browser(store: Driver, clock: Clock) -> None:
    async with serving(Site(store, clock)) as site:
        browser = site.browser()
        await browser.do(setting(cart=[1]))
        replies = await asyncio.gather(*(site.request(logging_in(f"user:{n}"), browser.cookie) for n in range(3)))
        for reply in replies:
            assert reply.error is None
            browser.take(reply)
        assert await browser.do(owner_of) == "user:2"


async def test_a_login_begins_a_session_if_the_old_one_ends_meanwhile(store: Driver, clock: Clock) -> None:
    async with serving(Site(store, clock)) as site, serving(Site(opened(store), clock)) as other:
        for owner in ("user:1", "user:2"):
            browser = site.browser()
            await browser.do(logging_in("user:1"))
            await browser.do(setting(cart=[1]))
            same = other.browser(browser.token)

            async def work(session: Session, owner: str = owner, same: Browser = same) -> None:
                await session.login(owner)
                await same.do(log_out)

            await browser.do(work)
            assert await browser.do(owner_of) == owner
            assert await browser.all() == {}


async def test_a_logout_under_the_old_id_ends_the_new_session_of_the_same_owner_only(store: Driver, clock: Clock) -> None:
    async with serving(Site(store, clock)) as site:
        for owner, left in (("user:1", None), ("user:2", "user:2")):
            browser = site.browser()
            await browser.do(logging_in("user:1"))
            old = site.browser(browser.token)
            await browser.do(logging_in(owner))
            await old.do(log_out)
            assert await browser.do(owner_of) == left
