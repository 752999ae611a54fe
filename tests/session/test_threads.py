"""Threads: what a call returns, how many there are, and what becomes of calls that nobody waits for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncGenerator

import pytest

from gaman_session.drivers._threads import Threads

pytestmark = pytest.mark.anyio


@pytest.fixture
async def threads() -> AsyncGenerator[Threads]:
    threads = Threads(2, "some")
    yield threads
    await threads.close()


def running() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("some-")}


async def test_a_call_returns_what_its_function_returns_or_raises_it(threads: Threads) -> None:
    assert await threads.call(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await threads.call(divmod, 7, 0)
    assert await threads.call(threading.get_ident) != threading.get_ident()


async def test_threads_are_started_as_they_are_needed_and_never_more_than_most(threads: Threads) -> None:
    assert running() == set()
    for _ in range(3):
        await threads.call(time.sleep, 0)
    assert running() == {"some-0"}
    await asyncio.gather(*(threads.call(time.sleep, 0.01) for _ in range(5)))
    assert running() == {"some-0", "some-1"}


async def test_who_is_cancelled_waits_no_more_and_what_was_not_begun_is_not_made(threads: Threads) -> None:
    go, made = threading.Event(), list[int]()
    stuck = [asyncio.ensure_future(threads.call(go.wait)) for _ in range(2)]
    calls = [asyncio.ensure_future(threads.call(made.append, number)) for number in range(3)]
    await asyncio.sleep(0)
    for call in (stuck[0], calls[1]):
        call.cancel()
    done, _ = await asyncio.wait((stuck[0], calls[1]), timeout=1)
    assert len(done) == 2
    go.set()
    assert await stuck[1] is True
    await asyncio.gather(calls[0], calls[2])
    assert made == [0, 2]


async def test_to_close_waits_for_the_calls_and_ends_the_threads_and_new_ones_can_follow(threads: Threads) -> None:
    made: list[int] = []
    calls = [asyncio.ensure_future(threads.call(function)) for function in (lambda: time.sleep(0.02), lambda: made.append(1))]
    await asyncio.sleep(0)
    await threads.close()
    assert made == [1]
    assert running() == set()
    await asyncio.gather(*calls)
    assert await threads.call(len, "two") == 3


def test_an_event_loop_that_has_ended_is_not_spoken_to(capfd: pytest.CaptureFixture[str]) -> None:
    threads, go = Threads(1, "some"), threading.Event()

    async def leave() -> None:
        asyncio.ensure_future(threads.call(go.wait))  # noqa: RUF006 - nobody waits for it
        await asyncio.sleep(0.01)

    asyncio.run(leave())
    go.set()
    asyncio.run(threads.close())
    assert capfd.readouterr() == ("", "")
