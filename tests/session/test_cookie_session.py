"""The session in a cookie: attacks on it, and how it differs from a stored session."""

from __future__ import annotations

import random
from base64 import b64decode
from collections.abc import Iterator
from typing import Any

import pytest

from gaman.session import Session, SessionTooLarge
from gaman_session.drivers.memory import MemoryDriver
from tests.session.sites import Clock, Site, getting, opened, serving, setting

pytestmark = pytest.mark.anyio

USER = {"id": 1, "name": "Angga", "email": "angga@example.com"}
NAME = "__Host-Http-gaman"


async def _token(site: Site) -> str:
    browser = site.browser()
    await browser.do(setting(user=USER, isAuthenticated=True))
    assert browser.token is not None
    return browser.token


async def _seen(site: Site, cookie: str) -> Any:
    async def work(session: Session) -> Any:
        return await session.all(), await session.has("isAuthenticated"), session.is_new

    reply = await site.request(work, cookie)
    assert (reply.status, reply.set_cookie) == (200, None)
    return reply.result


NO_SESSION: tuple[dict[str, Any], bool, bool] = ({}, False, True)


def _damaged(token: str) -> Iterator[str]:
    for place in range(len(token)):
        for bit in range(8):
            changed = bytearray(token.encode())
            changed[place] ^= 1 << bit
            yield changed.decode("latin-1")
        yield token[:place]
    yield from (token + extra for extra in ("A", "=", "==", "AAAA", " x", '"'))
    yield from (token.swapcase(), token[::-1], f'"{token}"', token.replace("+", "-").replace("/", "_") + "=", "A" * 10_000)


async def test_a_damaged_cookie_opens_no_session(site: Site) -> None:
    token = await _token(site)
    assert (await _seen(site, f"{NAME}={token}"))[1]
    for damaged in _damaged(token):
        if damaged.strip(" \t").split(";")[0].rstrip(" \t") != token:
            assert await _seen(site, f"{NAME}={damaged}") == NO_SESSION, damaged


async def test_a_cookie_of_another_secret_name_or_driver_opens_no_session(site: Site, driver: Any, clock: Clock) -> None:
    theirs = opened(driver)
    others = [
        Site(theirs, clock, secret="another secret that is just as long as the other"),
        Site(theirs, clock, cookie_name="__Host-other"),
        Site(MemoryDriver() if driver is None or isinstance(driver, dict) else None, clock),
    ]
    for other in others:
        async with serving(other):
            token = await _token(other)
        assert await _seen(site, f"{NAME}={token}") == NO_SESSION


async def test_an_expired_cookie_opens_no_session_whatever_the_browsers_clock_says(site: Site, clock: Clock) -> None:
    token = await _token(site)
    clock.now += 86_399
    assert (await _seen(site, f"{NAME}={token}"))[1]
    clock.now += 1
    assert (await _seen(site, f"{NAME}={token}"))[:2] == ({}, False)


async def test_a_clock_that_is_set_back_a_little_logs_no_visitor_out(site: Site, clock: Clock) -> None:
    token = await _token(site)
    clock.now -= 300
    assert (await _seen(site, f"{NAME}={token}"))[1]


async def test_the_first_valid_cookie_of_several_counts(site: Site) -> None:
    token, other = await _token(site), await _token(site)
    first = await _seen(site, f"{NAME}={token}")
    assert first[1]
    assert await _seen(site, f"{NAME}={token}; {NAME}=garbage") == first
    assert await _seen(site, f"{NAME}=garbage; {NAME}={token}; {NAME}={other}") == first


@pytest.mark.parametrize(
    "cookie",
    [
        "{n}\x85={t}",
        "{n}\xa0={t}",
        "\xa0{n}={t}",
        "\x0b{n}={t}",
        "{t}",
        "={t}",
        "__host-gaman={t}",
        "x{n}={t}",
        "{n}x={t}",
        "={n}={t}",
        "a={n}={t}",
    ],
)
async def test_a_lookalike_name_is_not_the_name(site: Site, cookie: str) -> None:
    token = await _token(site)
    assert await _seen(site, cookie.format(n=NAME, t=token)) == NO_SESSION


async def test_a_hundred_kilobytes_of_cookies_are_read_in_one_pass(site: Site) -> None:
    token = await _token(site)
    padding = "; ".join(f"c{i}=" + "x" * 20 for i in range(3500))
    assert len(padding) > 90_000
    assert (await _seen(site, f"{padding}; {NAME}={token}"))[1]
    for hostile in (";" * 100_000, "=" * 100_000, '\\"' * 50_000, f"{NAME}=" + "A" * 100_000, NAME * 10_000, f"{NAME}=;" * 10_000):
        assert await _seen(site, hostile) == NO_SESSION


async def test_any_octets_in_a_cookie_get_a_response_and_open_no_session(site: Site) -> None:
    octets = random.Random(1)
    for _ in range(200):
        noise = "".join(chr(octets.randrange(256)) for _ in range(octets.randrange(200)))
        assert await _seen(site, f"{NAME}={noise}") == NO_SESSION
        assert await _seen(site, noise) == NO_SESSION


async def test_the_visitor_does_not_choose_the_id(store: Any, clock: Clock) -> None:
    async with serving(Site(store, clock)) as site:
        for chosen in ("A" * 72, "0" * 64, "../../etc/passwd", ""):
            browser = site.browser(chosen)
            await browser.do(setting(a=1))
            assert browser.token is not None
            assert browser.token != chosen


@pytest.fixture
async def cookies(clock: Clock) -> Any:
    async with serving(Site(None, clock)) as opened:
        yield opened


async def test_the_cookie_contains_no_plaintext(cookies: Site) -> None:
    browser = cookies.browser()
    await browser.do(setting(user=USER))
    token = str(browser.token)
    raw = b64decode(token + "=" * (-len(token) % 4))
    for secret in ("user", "Angga", "example"):
        assert secret not in token
        assert secret.encode() not in raw


async def test_a_session_that_is_too_large_for_its_cookie_raises_at_set_with_both_sizes(cookies: Site) -> None:
    browser = cookies.browser()
    await browser.do(setting(kept=1))

    async def work(session: Session) -> Any:
        with pytest.raises(SessionTooLarge, match=r"'big'.* would have \d{4} bytes.* browsers keep 4096") as raised:
            await session.set("big", "x" * 3000)
        with pytest.raises(SessionTooLarge):
            await session.update("kept", lambda _: "x" * 3000)
        await session.set("small", 2)
        return str(raised.value)

    assert "x" * 20 not in await browser.do(work)
    assert await browser.all() == {"kept": 1, "small": 2}


async def test_the_largest_cookie_that_is_sent_has_4096_bytes_with_its_attributes(cookies: Site) -> None:
    fits, size = 0, 4096
    while fits < size - 1:
        middle = (fits + size) // 2
        reply = await cookies.request(setting(big="x" * middle))
        if reply.set_cookie is None:
            assert isinstance(reply.error, SessionTooLarge)
            size = middle
        else:
            assert len(reply.set_cookie) <= 4096
            fits = middle
    line = (await cookies.request(setting(big="x" * fits))).set_cookie
    assert 4094 <= len(str(line)) <= 4096
    token = str(line).partition(";")[0].partition("=")[2]
    assert await cookies.browser(token).do(getting("big")) == "x" * fits


async def test_neither_reading_nor_an_empty_change_sends_a_cookie(cookies: Site) -> None:
    browser = cookies.browser()
    await browser.do(setting(a=1))

    async def work(session: Session) -> None:
        await session.get("a")
        await session.delete("never there")

    assert (await browser.request(work)).set_cookie is None


async def test_requests_with_the_same_cookie_do_not_see_each_others_changes(cookies: Site) -> None:
    browser = cookies.browser()
    await browser.do(setting(a=[1], b=2))
    token = browser.token

    async def change(session: Session) -> None:
        (await session.get("a")).append(2)
        await session.set("a", [3])
        await session.delete("b")
        await session.regenerate()
        await session.set("c", 4)
        await session.clear()

    await cookies.browser(token).do(change)
    assert await cookies.browser(token).do(Session.all) == {"a": [1], "b": 2}


async def test_a_write_does_not_prolong_the_cookie(cookies: Site, clock: Clock) -> None:
    browser = cookies.browser()
    await browser.do(setting(a=1))
    clock.now += 86_000
    assert "; Max-Age=400;" in str((await browser.request(setting(b=1))).set_cookie)


async def test_an_idle_limit_is_refreshed_in_the_cookie_now_and_then(clock: Clock) -> None:
    async with serving(Site(None, clock, idle_timeout=1000)) as site:
        browser = site.browser()
        await browser.do(setting(a=1))
        clock.now += 99
        assert (await browser.request(getting("a"))).set_cookie is None
        clock.now += 1
        assert (await browser.request(getting("a"))).set_cookie is not None
        clock.now += 999
        assert await browser.do(getting("a")) == 1


async def test_the_id_after_the_response_has_begun_is_the_id_in_the_cookie(clock: Clock) -> None:
    sessions: list[Session] = []

    async def begin(session: Session) -> None:
        sessions.append(session)
        await session.set("key", "value")

    async def ask(session: Session) -> str | None:
        return session.id

    async with serving(Site(None, clock)) as site:
        browser = site.browser()
        await browser.do(begin)
        assert sessions[0].id == await browser.do(ask)


@pytest.mark.parametrize("before", [{}, {"key": "value"}])
async def test_a_value_that_is_too_large_changes_nothing(clock: Clock, before: dict[str, Any]) -> None:
    async def attempt(session: Session) -> Any:
        with pytest.raises(SessionTooLarge):
            await session.set("large", "x" * 4000)
        return await session.all()

    async with serving(Site(None, clock)) as site:
        browser = site.browser()
        await browser.do(setting(**before))
        reply = await browser.request(attempt)
        assert (reply.status, reply.result, reply.set_cookie) == (200, before, None)
        assert site.sessions.counters.written == 0
