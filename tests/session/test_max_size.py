"""A session in a store has at most max_size bytes, and a change that would exceed them changes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from secrets import token_hex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaman import HTTPError
from gaman.errors import ConfigError
from gaman.session import Driver, Session, SessionTooLarge, session
from gaman_session import _sealing
from gaman_session._stored import StoredSession
from gaman_session.drivers.memory import MemoryDriver
from tests.session.sites import SECRET, Clock, Sealing, Site, opened, serving, setting

pytestmark = pytest.mark.anyio

LIMIT = 10_000


@pytest.fixture
async def small(store: Driver, clock: Clock) -> AsyncIterator[Site]:
    async with serving(Site(store, clock, max_size=LIMIT)) as site:
        yield site


def too_large(size: str = r"\d+") -> Any:
    return pytest.raises(SessionTooLarge, match=rf"would have {size} bytes, and session\(max_size={LIMIT}\)")


async def test_a_value_that_is_too_large_raises_at_set_with_both_sizes_and_without_a_round_trip(clock: Clock) -> None:
    for store, more in ((MemoryDriver(), 0), (Sealing(), _sealing.OVERHEAD)):
        async with serving(Site(store, clock, max_size=LIMIT)) as site:
            # MessagePack adds three bytes before it.
            fits = LIMIT - len("key") - 3 - more

            async def work(session: Session, fits: int = fits) -> None:
                with too_large(str(LIMIT + 1)) as raised:
                    await session.set("key", "x" * (fits + 1))
                assert (raised.value.size, raised.value.max_size) == (LIMIT + 1, LIMIT)
                assert "'key'" in str(raised.value)
                await session.set("key", "x" * fits)
                await session.set("key", "y" * fits)

            browser = site.browser()
            await browser.do(work)
            assert await browser.all() == {"key": "y" * fits}


async def test_stored_values_that_were_read_count_at_set(small: Site) -> None:
    browser = small.browser()
    await browser.do(setting(a="x" * 4000, b="y" * 4000))

    async def work(session: Session) -> None:
        assert await session.has("a")
        with too_large():
            await session.set("c", "z" * 4000)
        await session.set("d", 1)
        await session.delete("a")
        await session.set("c", "z" * 4000)
        with too_large():
            await session.set("a", "x" * 4000)
        await session.set("b", "y")
        await session.set("a", "x" * 3000)

    await browser.do(work)
    assert await browser.all() == {"a": "x" * 3000, "b": "y", "c": "z" * 4000, "d": 1}


async def test_stored_values_that_were_not_read_count_at_the_flush_which_drops_all_changes(small: Site) -> None:
    # Other tests ended the sessions of other owners in the same store.
    browser, owner = small.browser(), f"user:{token_hex(8)}"
    before = {"a": "x" * 4000, "b": "y" * 4000}
    await browser.do(setting(**before))

    async def own(session: Session) -> None:
        await session.set("c", "z" * 4000)
        await session.set_owner(owner)

    async def renew(session: Session) -> None:
        await session.set("c", "z" * 4000)
        await session.regenerate()

    for work in (setting(c="z" * 4000, d=1), own, renew):
        reply = await browser.request(work)
        assert (reply.status, reply.set_cookie) == (413, None)
        assert reply.body == b"the session would be larger than 10000 bytes"
        assert reply.headers["cache-control"] == "no-store"
        assert await browser.all() == before
    assert await small.sessions.list(owner) == []


async def test_save_and_update_raise_with_both_sizes(small: Site) -> None:
    browser = small.browser()
    await browser.do(setting(a="x" * 4000, b="y" * 4000))

    async def work(session: Session) -> None:
        await session.set("c", "z" * 4000)
        await session.set("d", 1)
        with too_large(r"12\d\d\d"):
            await session.save()
        with too_large(r"12\d\d\d"):
            await session.update("c", lambda _: "z" * 4000)
        await session.update("e", lambda _: 2)
        await session.set("f", 3)

    await browser.do(work)
    assert await browser.all() == {"a": "x" * 4000, "b": "y" * 4000, "e": 2, "f": 3}


async def test_an_error_that_is_not_caught_is_413_and_drops_all_changes(small: Site) -> None:
    browser = small.browser()
    await browser.do(setting(kept=1))

    async def at_set(session: Session) -> None:
        await session.set("other", 2)
        await session.set("big", "x" * LIMIT)

    async def at_update(session: Session) -> None:
        await session.update("big", lambda _: "x" * LIMIT)

    for work in (at_set, at_update):
        reply = await browser.request(work)
        assert (reply.status, reply.set_cookie) == (413, None)
        assert isinstance(reply.error, HTTPError)
        assert await browser.all() == {"kept": 1}
        reply = await small.request(work)
        assert (reply.status, reply.set_cookie) == (413, None)


async def test_a_session_that_is_too_large_already_is_read_regenerated_and_made_smaller(store: Driver, clock: Clock) -> None:
    async with serving(Site(store, clock)) as before:
        browser = before.browser()
        await browser.do(setting(a="x" * 8000, b="y" * 8000))
        async with serving(Site(opened(store), clock, max_size=LIMIT)) as site:
            browser = site.browser(browser.token)

            async def renew(session: Session) -> None:
                await session.regenerate()

            async def read_and_grow(session: Session) -> None:
                await session.all()
                await session.set("c", 1)

            async def grow_and_renew(session: Session) -> None:
                await session.set("c", 1)
                await session.regenerate()

            await browser.do(renew)
            for work in (read_and_grow, setting(c=1), grow_and_renew):
                assert (await browser.request(work)).status == 413
            await browser.do(setting(a="z" * 8000))
            await browser.do(renew)
            await browser.do(setting(a="z" * 7000))
            assert await browser.all() == {"a": "z" * 7000, "b": "y" * 8000}
            await browser.do(setting(a="z"))
            await browser.do(setting(c=1))
            assert await browser.all() == {"a": "z", "b": "y" * 8000, "c": 1}


async def test_visitors_that_choose_the_keys_fill_a_session_to_its_size_only(small: Site) -> None:
    browser = small.browser()
    statuses = [(await browser.request(setting(**{"k" * 990 + str(i): i}))).status for i in range(20)]
    assert statuses == sorted(statuses)
    assert set(statuses) == {200, 413}
    found = await browser.all()
    assert sum(map(len, found)) <= LIMIT
    assert len(found) == statuses.count(200) > 7


@pytest.mark.parametrize("max_size", [0, -1, True, 1.5, "1", None])
async def test_an_invalid_size_is_an_error_at_start(max_size: Any) -> None:
    with pytest.raises(ConfigError, match=r"session\(max_size=.*a whole number of bytes above 0"):
        session(SECRET, {"type": "memory"}, max_size=max_size)


async def test_a_cookie_that_is_too_large_is_a_500(clock: Clock) -> None:
    async with serving(Site(None, clock, max_size=10)) as site:
        assert (await site.request(setting(key="x" * 1000))).status == 200
        reply = await site.request(setting(key="x" * 4000))
        assert (reply.status, reply.set_cookie) == (500, None)
        assert isinstance(reply.error, SessionTooLarge)
        assert (reply.error.size > 4096, reply.error.max_size) == (True, 4096)


KEYS = st.sampled_from(["", "a", "b", "é", "k" * 50])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("set"), KEYS, st.binary(max_size=300)),
        st.tuples(st.sampled_from(["delete", "get", "save", "clear", "regenerate"]), KEYS, st.none()),
    ),
    max_size=30,
)


@given(steps=STEPS)
def test_the_running_size_is_the_sum_of_all_fields(steps: list[tuple[str, str, bytes | None]]) -> None:
    async def work(session: Session) -> None:
        assert isinstance(session, StoredSession)
        for name, key, value in steps:
            with suppress(SessionTooLarge):
                await getattr(session, name)(*((key, value) if name == "set" else (key,) if name in ("delete", "get") else ()))
            running, session._size = session._size, None
            if running is not None:
                assert session._measure() == running
                assert running <= max(500, session._stored_size)

    async def run() -> None:
        for driver in (MemoryDriver(), Sealing()):
            async with serving(Site(driver, Clock(), max_size=500)) as site:
                browser = site.browser()
                await browser.do(setting(a=1, b="é"))
                await browser.do(work)
                await browser.do(work)

    asyncio.run(run())
