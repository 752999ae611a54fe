"""Several cookies of the session's name in one request: the first live one counts, and a logout leaves none alive."""

from __future__ import annotations

from collections import Counter
from contextlib import AsyncExitStack
from secrets import token_hex
from typing import Any

import pytest

from gaman.session import Driver, Session, SessionIntegration
from gaman_session.drivers.memory import MemoryDriver
from tests.session.sites import Clock, Reply, Sealing, Site, Work, getting, opened, serving, setting

pytestmark = pytest.mark.anyio

DEAD = ("made up", "cut", "quoted", "empty", "expired")


async def _clear(session: Session) -> None:
    await session.clear()


async def _everything(session: Session) -> dict[str, Any]:
    return await session.all()


async def _token(site: Site, **values: Any) -> str:
    browser = site.browser()
    await browser.do(setting(**values))
    assert browser.token is not None
    return browser.token


async def _dead(site: Site, how: str) -> str:
    token = await _token(site, user="dead")
    if how == "expired":
        site.clock.now += 86_400
    elif how == "ended":
        assert (await site.browser(token).request(_clear)).error is None
    elif how == "renamed":
        await site.browser(token).do(_regenerate)
    return {"made up": "A" * len(token), "cut": token[:-1], "quoted": f'"{token}"', "empty": ""}.get(how, token)


async def _regenerate(session: Session) -> None:
    await session.regenerate()


async def _ask(site: Site, work: Work, *tokens: str) -> Reply:
    reply = await site.request(work, "; ".join(f"{site.cookie_name}={token}" for token in tokens))
    if reply.error is not None:
        raise reply.error
    return reply


async def _result(site: Site, work: Work, *tokens: str) -> Any:
    return (await _ask(site, work, *tokens)).result


async def _user(site: Site, *tokens: str) -> Any:
    return await _result(site, getting("user"), *tokens)


def _new_token(site: Site, reply: Reply) -> str:
    name, _, rest = (reply.set_cookie or "").partition("=")
    assert name == site.cookie_name
    return rest.partition(";")[0]


def _counted(site: Site) -> tuple[int, int, int]:
    [integration] = site.app.integrations
    assert isinstance(integration, SessionIntegration)
    counters = integration.counters
    return counters.forged, counters.expired, counters.unreadable


# Which one counts


@pytest.mark.parametrize("how", DEAD)
async def test_a_dead_cookie_before_the_live_one_locks_no_visitor_out(site: Site, how: str) -> None:
    dead = await _dead(site, how)
    live = await _token(site, user="live")
    assert await _user(site, dead, live) == "live"
    assert await _user(site, live, dead) == "live"
    assert await _user(site, dead) is None


@pytest.mark.parametrize("how", ["ended", "renamed"])
async def test_the_cookie_of_an_ended_session_before_the_live_one_locks_no_visitor_out(
    store: Driver, clock: Clock, how: str
) -> None:
    async with serving(Site(store, clock)) as site:
        dead = await _dead(site, how)
        live = await _token(site, user="live")
        assert await _user(site, dead, live) == "live"


async def test_of_two_live_sessions_the_first_counts(site: Site) -> None:
    first, second = await _token(site, user="first"), await _token(site, user="second")
    assert await _user(site, first, second) == "first"
    assert await _user(site, second, first) == "second"


async def test_a_live_cookie_in_another_field_is_found(site: Site) -> None:
    live = await _token(site, user="live")
    fields = [f"theme=dark; {site.cookie_name}=dead", f"{site.cookie_name}={live}; lang=en"]
    assert (await site.request(getting("user"), fields)).result == "live"


async def test_the_fifth_cookie_is_ignored(site: Site) -> None:
    live = await _token(site, user="live")
    assert await _user(site, "a", "b", "c", live) == "live"
    assert await _user(site, "a", "b", "c", "d", live) is None
    assert await _user(site, *["a"] * 5000, live) is None


async def test_a_request_whose_every_cookie_is_dead_begins_a_session(site: Site) -> None:
    dead = [await _dead(site, how) for how in DEAD[:2]] + [await _dead(site, "expired"), await _dead(site, "expired")]
    assert await _result(site, _everything, *dead) == {}
    begun = _new_token(site, await _ask(site, setting(user="new"), *dead))
    assert await _user(site, *dead[1:], begun) == "new"


async def test_a_rejected_cookie_counts_once_a_request_whatever_follows_it(site: Site) -> None:
    expired, live = await _dead(site, "expired"), await _token(site, user="live")
    assert _counted(site) == (0, 0, 0)
    await _user(site, "forged", "other", expired, live)
    assert _counted(site) == (1, 0, 0)
    await _user(site, expired, "forged", live)
    assert _counted(site) == (1, 1, 0)
    await _user(site, live, "forged")
    assert _counted(site) == (1, 1, 0)


async def test_the_handle_is_that_of_the_live_session_once_it_was_read(site: Site) -> None:
    async def work(session: Session) -> Any:
        await session.all()
        return session.id, session.is_new

    dead, live = await _dead(site, "expired"), await _token(site, user="live")
    assert await _result(site, work, dead, live) == await _result(site, work, live)


# Writing


@pytest.mark.parametrize("how", ["made up", "expired", "ended"])
async def test_a_write_without_a_read_goes_to_the_live_session(store: Driver, clock: Clock, how: str) -> None:
    async with serving(Site(store, clock)) as site:
        dead, live = await _dead(site, how), await _token(site, user="live")
        reply = await _ask(site, setting(cart=1), dead, live)
        assert reply.set_cookie is None
        assert await _result(site, _everything, live) == {"user": "live", "cart": 1}


async def test_update_counts_in_the_live_session(site: Site) -> None:
    async def count(session: Session) -> Any:
        return await session.update("count", lambda before: before + 1, 0)

    dead, live = await _dead(site, "expired"), await _token(site, count=5)
    assert await _result(site, count, dead, live) == 6


async def test_an_owner_is_set_for_the_live_session(store: Driver, clock: Clock) -> None:
    owner = f"user:{token_hex(8)}"

    async def own(session: Session) -> None:
        await session.set_owner(owner)

    async with serving(Site(store, clock)) as site:
        dead, live = await _dead(site, "ended"), await _token(site, user="live")
        await _ask(site, own, dead, live)
        assert await site.sessions.end_all(owner) == 1
        assert await _user(site, live) is None


@pytest.mark.parametrize("how", ["made up", "expired", "ended"])
async def test_end_all_keeps_the_live_session_even_if_it_was_not_read(store: Driver, clock: Clock, how: str) -> None:
    owner = f"user:{token_hex(8)}"

    async def log_in(session: Session) -> None:
        await session.set("user", "live")
        await session.set_owner(owner)

    async with serving(Site(store, clock)) as site:

        async def end_others(session: Session) -> int:
            return await site.sessions.end_all(owner, keep=session)

        dead, browsers = await _dead(site, how), [site.browser(), site.browser()]
        for browser in browsers:
            await browser.do(log_in)
        live, other = [browser.token or "" for browser in browsers]
        assert await _result(site, end_others, dead, live) == 1
        assert await _user(site, dead, live) == "live"
        assert await _user(site, other) is None


async def test_a_write_after_a_logout_begins_nothing_whichever_cookie_led_to_that_session(store: Driver, clock: Clock) -> None:
    async with serving(Site(store, clock)) as site, serving(Site(MemoryDriver(), clock)) as elsewhere:
        ended, unknown = await _dead(site, "ended"), await _token(elsewhere, user="unknown")
        for tokens in ([ended, unknown], [unknown, ended], ["made up", unknown, ended]):
            for work in (setting(late=1), _read_then(setting(late=1))):
                assert (await _ask(site, work, *tokens)).set_cookie is None
        assert _new_token(site, await _ask(site, setting(late=1), unknown, "made up"))


def _read_then(work: Work) -> Work:
    async def both(session: Session) -> None:
        await session.all()
        await work(session)

    return both


async def test_a_session_that_was_read_is_not_replaced_by_another_one_in_the_same_request(store: Driver, clock: Clock) -> None:
    async with serving(Site(store, clock)) as site:
        first, second = await _token(site, user="first"), await _token(site, user="second")

        async def ended_meanwhile(session: Session) -> Any:
            await session.get("user")
            await site.browser(first).request(_clear)
            await session.update("secret", lambda _: "of the first")

        assert (await _ask(site, ended_meanwhile, first, second)).set_cookie is None
        assert await _result(site, _everything, second) == {"user": "second"}


# Ending, and logging in


async def _delete_all(session: Session) -> None:
    for key in await session.all():
        await session.delete(key)


async def _delete_blindly(session: Session) -> None:
    await session.delete("user")


async def _delete_and_regenerate(session: Session) -> None:
    await session.regenerate()
    await session.delete("user")


LOGOUTS = [_clear, _read_then(_clear), _delete_all, _delete_blindly, _delete_and_regenerate]


@pytest.mark.parametrize("logout", LOGOUTS, ids=["clear", "read, clear", "delete", "blind delete", "delete and regenerate"])
async def test_a_logout_ends_every_session_that_came_with_the_request(store: Driver, clock: Clock, logout: Work) -> None:
    async with serving(Site(store, clock)) as site:
        tokens = [await _dead(site, "ended"), *[await _token(site, user=user) for user in ("a", "b")], "made up"]
        reply = await _ask(site, logout, *tokens)
        assert (reply.set_cookie or "").startswith(f"{site.cookie_name}=; Max-Age=0;")
        for token in tokens:
            assert await _result(site, _everything, token) == {}


async def test_after_a_logout_a_login_in_the_same_request_is_the_only_session(store: Driver, clock: Clock) -> None:
    async def switch(session: Session) -> None:
        await session.clear()
        await session.set("user", "new")

    async with serving(Site(store, clock)) as site:
        first, second = await _token(site, user="first"), await _token(site, user="second")
        begun = _new_token(site, await _ask(site, switch, first, second))
        assert await _user(site, first, second, begun) == "new"


@pytest.mark.parametrize("is_dead_first", [True, False])
async def test_after_a_login_the_new_session_counts_wherever_its_cookie_is(
    store: Driver, clock: Clock, is_dead_first: bool
) -> None:
    async def login(session: Session) -> None:
        await session.regenerate()
        await session.set("user", "new")

    async with serving(Site(store, clock)) as site:
        tokens = [await _dead(site, "ended")] if is_dead_first else []
        tokens += [await _token(site, user=user) for user in ("first", "second", "third")]
        renamed = _new_token(site, await _ask(site, login, *tokens))
        for place in range(4):
            others = [token for token in tokens if token is not tokens[-1]][:3]
            assert await _user(site, *others[:place], renamed, *others[place:]) == "new"
        for token in tokens:
            assert await _user(site, token) is None


# Without a store


async def test_a_cookie_of_the_cookies_driver_counts_only_with_the_attributes_that_it_was_sent_with(clock: Clock) -> None:
    # Nothing could end it: a logout removes only the cookie with the current attributes.
    options: list[dict[str, Any]] = [{}, {"partitioned": True}, {"domain": "example.com"}, {"path": "/app"}]
    async with AsyncExitStack() as stack:
        sites = [await stack.enter_async_context(serving(Site(None, clock, cookie_name="sid", **each))) for each in options]
        tokens = [await _token(site, user=str(index)) for index, site in enumerate(sites)]
        for index, site in enumerate(sites):
            assert await _user(site, *tokens) == str(index)
            assert await _user(site, *tokens[:index], *tokens[index + 1 :]) is None
    async with serving(Site(None, clock, cookie_name="sid", domain=".Example.COM")) as site:
        assert await _user(site, tokens[2]) == "2"


async def test_a_session_in_a_store_survives_a_change_of_the_cookies_attributes(store: Driver, clock: Clock) -> None:
    async with serving(Site(store, clock, cookie_name="sid")) as site:
        token = await _token(site, user="live")
        async with serving(Site(opened(store), clock, cookie_name="sid", domain="example.com")) as changed:
            assert await _user(changed, token) == "live"


# Cost


class _Counting(Sealing):
    """Counts the calls of the store."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    def __getattribute__(self, name: str) -> Any:
        if name in ("load", "create", "apply", "swap", "rename", "destroy", "set_owner"):
            self.calls[name] += 1
        return super().__getattribute__(name)


async def test_a_request_tries_another_cookie_only_if_the_first_is_dead(clock: Clock) -> None:
    driver = _Counting()
    async with serving(Site(driver, clock)) as site:
        first, second = await _token(site, user="first"), await _token(site, user="second")
        ended = await _dead(site, "ended")
        for work, tokens, calls in [
            (getting("user"), [first, second], {"load": 1}),
            (getting("user"), [ended], {"load": 1}),
            (getting("user"), [ended, ended], {"load": 1}),
            (getting("user"), [ended, first, second], {"load": 2}),
            (getting("user"), ["made up", first], {"load": 1}),
            (setting(user="first"), [first, second], {"apply": 1}),
            (setting(user="first"), [ended, first], {"apply": 2}),
            (_clear, [first], {"destroy": 1}),
        ]:
            driver.calls.clear()
            await _ask(site, work, *tokens)
            assert driver.calls == calls, (tokens, calls)
