"""Threads: what a call returns, how many threads there are, and what happens to cancelled calls."""

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


async def test_a_call_returns_or_raises_what_its_function_does(threads: Threads) -> None:
    assert await threads.call(divmod, 7, 2) == (3, 1)
    with pytest.raises(ZeroDivisionError):
        await threads.call(divmod, 7, 0)
    assert await threads.call(threading.get_ident) != threading.get_ident()


async def test_threads_are_started_when_needed_up_to_the_maximum(threads: Threads) -> None:
    assert running() == set()
    for _ in range(3):
        await threads.call(time.sleep, 0)
    assert running() == {"some-0"}
    await asyncio.gather(*(threads.call(time.sleep, 0.01) for _ in range(5)))
    assert running() == {"some-0", "some-1"}


async def test_a_cancelled_call_stops_waiting_and_is_not_made_if_it_has_not_started(threads: Threads) -> None:
    go, made = threading.Event(), list[int]()
    stuck = [asyncio.ensure_future(threads.call(go.wait)) for _ in range(2)]
    calls = [asyncio.ensure_future(threads.call(made.append, number)) for number in range(3)]
    await asyncio.sleep(0)
    for call in (stuck[0], calls[1]):
        call.cancel()
    done, _ = await asyncio.wait((stuck[0], calls[1]), timeout=25)
    assert len(done) == 2
    go.set()
    assert await stuck[1] is True
    await asyncio.gather(calls[0], calls[2])
    assert made == [0, 2]


async def test_close_waits_for_the_calls_and_ends_the_threads_and_new_calls_can_follow(threads: Threads) -> None:
    made: list[int] = []
    calls = [asyncio.ensure_future(threads.call(function)) for function in (lambda: time.sleep(0.02), lambda: made.append(1))]
    await asyncio.sleep(0)
    await threads.close()
    assert made == [1]
    assert running() == set()
    await asyncio.gather(*calls)
    assert await threads.call(len, "two") == 3


def test_a_closed_event_loop_is_not_called(capfd: pytest.CaptureFixture[str]) -> None:
    threads, go = Threads(1, "some"), threading.Event()

    async def start() -> None:
        asyncio.ensure_future(threads.call(go.wait))  # noqa: RUF006 - the event loop ends before the call
        await asyncio.sleep(0.01)

    asyncio.run(start())
    go.set()
    asyncio.run(threads.close())
    assert capfd.readouterr() == ("", "")
