"""Attacks on sessions that must fail: fixation, replay of a copied cookie, and logins that another site sends."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from gaman import App, Context
from gaman.session import Driver, Session, SessionLoginRequired, session
from gaman.testing import TestClient
from tests.session.sites import SECRET, Browser, Clock, Site, gaman_only, of_its_own, serving, setting

pytestmark = pytest.mark.anyio

OWNER = "user:1"
OTHER_SECRET = "the secret of an attacker that is long enough"


@pytest.fixture
async def stored(own_store: Driver, clock: Clock) -> AsyncIterator[Site]:
    """A site with each driver that has a store; no other test has its owners."""
    async with serving(Site(own_store, clock)) as opened:
        yield opened


async def log_in(session: Session) -> None:
    await session.login(OWNER)
    await session.set("address", "1 Main Street")


async def log_out(session: Session) -> None:
    await session.logout()


async def confirm(session: Session) -> None:
    await session.confirm()


async def renew(session: Session) -> None:
    await session.regenerate()


async def handle_of(session: Session) -> str | None:
    await session.all()
    return session.id


async def seen_by(browser: Browser) -> tuple[str | None, dict[str, Any]]:
    """Return the owner and the values that *browser* sees."""

    async def work(session: Session) -> tuple[str | None, dict[str, Any]]:
        return await session.owner(), await session.all()

    seen: tuple[str | None, dict[str, Any]] = await browser.do(work)
    return seen


NOTHING: tuple[None, dict[str, Any]] = (None, {})
VICTIMS = (OWNER, {"address": "1 Main Street"})


# Fixation


async def test_a_planted_session_is_not_logged_in_with_its_victim(site: Site) -> None:
    attacker = site.browser()
    await attacker.do(setting(cart=["a trap"]))
    victim = site.browser(attacker.token)
    await victim.do(log_in)
    assert victim.token != attacker.token
    assert (await seen_by(victim))[0] == OWNER
    owner, values = await seen_by(attacker)
    assert owner is None
    assert "address" not in values
    # Nor does it come back by a write of the attacker's.
    await attacker.do(setting(cart=["another trap"]))
    assert (await seen_by(attacker))[0] is None
    assert (await seen_by(victim))[1]["cart"] == ["a trap"]


async def test_an_id_that_an_attacker_made_up_is_never_adopted(site: Site, clock: Clock) -> None:
    async with serving(Site(None if site.driver is None else of_its_own("memory"), clock, secret=OTHER_SECRET)) as evil:
        forging = evil.browser()
        await forging.do(log_in)
        assert forging.token is not None
        for token in (forging.token, "A" * len(forging.token), ""):
            attacker, victim = site.browser(token), site.browser(token)
            assert await seen_by(attacker) == NOTHING
            await victim.do(log_in)
            assert victim.token != token
            assert await seen_by(attacker) == NOTHING
            assert await seen_by(victim) == VICTIMS


async def test_the_session_of_an_attacker_that_the_victim_logs_in_to_shows_nothing_of_the_next_login(site: Site) -> None:
    attacker = site.browser()

    async def log_in_attacker(session: Session) -> None:
        await session.login("mallory")
        await session.set("cart", ["a trap"])

    await attacker.do(log_in_attacker)
    victim = site.browser(attacker.token)
    await victim.do(log_in)
    assert await seen_by(victim) == VICTIMS
    owner, values = await seen_by(attacker)
    assert owner != OWNER
    assert "address" not in values


# Replay


async def end(site: Site, victim: Browser) -> None:
    handle = await victim.do(handle_of)
    assert await site.sessions.end(handle) is True


async def end_all(site: Site, victim: Browser) -> None:
    assert await site.sessions.end_all(OWNER) >= 1


async def expire(site: Site, victim: Browser) -> None:
    site.clock.now += 86_400


ENDS: dict[str, Callable[[Site, Browser], Awaitable[Any]]] = {
    "logout": lambda site, victim: victim.do(log_out),
    "end": end,
    "end_all": end_all,
    "expiry": expire,
}


@pytest.mark.parametrize("way", ENDS)
async def test_a_copied_cookie_opens_nothing_after_the_session_has_ended(stored: Site, way: str) -> None:
    victim = stored.browser()
    await victim.do(log_in)
    thief = stored.browser(victim.token)
    assert await seen_by(thief) == VICTIMS
    await ENDS[way](stored, victim)
    copies = [stored.browser(thief.token) for _ in range(4)]
    assert await seen_by(copies[0]) == NOTHING
    await copies[1].do(setting(late=True))
    owner, values = await seen_by(copies[1])
    assert owner is None
    # A write with an expired id begins a new session; one with an ended id is dropped.
    assert values == ({"late": True} if way == "expiry" else {})
    await copies[2].do(renew)
    reply = await copies[3].request(confirm)
    assert isinstance(reply.error, SessionLoginRequired)
    assert [await seen_by(copy) for copy in (stored.browser(thief.token), copies[2], victim)] == [NOTHING] * 3


async def test_a_copied_cookie_opens_nothing_after_all_sessions_have_ended(stored: Site) -> None:
    victim = stored.browser()
    await victim.do(log_in)
    stored.clock.now += 1
    await stored.sessions.end_everyone()
    stored.clock.now += 1
    assert await seen_by(stored.browser(victim.token)) == NOTHING


@pytest.mark.parametrize("work", [log_in, confirm, renew], ids=["login", "confirm", "regenerate"])
async def test_a_copied_cookie_opens_nothing_after_the_session_got_a_new_id(stored: Site, work: Any) -> None:
    victim = stored.browser()
    await victim.do(log_in)
    thief = stored.browser(victim.token)
    await victim.do(work)
    assert await seen_by(thief) == NOTHING
    await thief.do(setting(address="a thief's"))
    assert await seen_by(victim) == VICTIMS


async def test_a_copied_cookie_of_the_cookies_driver_opens_its_session_until_it_expires(clock: Clock) -> None:
    """What sessions in cookies can't promise without a store of those that have ended."""
    async with serving(Site(None, clock)) as site:
        victim = site.browser()
        await victim.do(log_in)
        for work in (confirm, log_out):
            thief = site.browser(victim.token)
            await victim.do(work)
            assert victim.token != thief.token
            assert await seen_by(thief) == VICTIMS
        clock.now += 86_400
        assert await seen_by(thief) == NOTHING


# Cross-site requests


@gaman_only
@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example", "sec-fetch-site": "cross-site"},
        {"origin": "https://blog.shop.example", "sec-fetch-site": "same-site"},
        {"origin": "null", "sec-fetch-site": "cross-site"},
        # Browsers from before 2023
        {"origin": "https://evil.example"},
        {"origin": "null"},
    ],
    ids=str,
)
async def test_a_login_of_another_site_neither_begins_a_session_nor_replaces_the_victims(headers: dict[str, str]) -> None:
    async def login(ctx: Context) -> str:
        await ctx.session.login(await ctx.input("user") or "")
        return "logged in"

    async def logout(ctx: Context) -> str:
        await ctx.session.logout()
        return "logged out"

    async def home(ctx: Context) -> str:
        return await ctx.session.owner() or "a visitor"

    routes: Any = {"/": home, "/login": {"POST": login}, "/logout": {"POST": logout}}
    app = App(routes, integrations=[session(SECRET, {"type": "memory"})])
    async with TestClient(app, base_url="https://shop.example") as client:
        for user in ("a visitor", OWNER):
            if user == OWNER:
                await client.post("/login", data={"user": OWNER}, headers={"origin": "https://shop.example"})
            cookies = dict(client.cookies)
            for path in ("/login", "/logout"):
                attempt = await client.post(path, data={"user": "mallory"}, headers=headers)
                assert (attempt.status_code, "set-cookie" in attempt.headers) == (403, False)
            assert dict(client.cookies) == cookies
            assert (await client.get("/")).text == user
