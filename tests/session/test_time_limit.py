"""A time limit cancels late tasks, and only those."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time

import pytest

from gaman_session.drivers._time_limit import TimeLimit

pytestmark = pytest.mark.anyio

SECONDS = 0.02


async def stay(limit: TimeLimit) -> float:
    """Return the seconds after which the limit ends this call."""
    began = time.monotonic()
    try:
        with limit:
            await asyncio.Event().wait()
    except TimeoutError:
        return time.monotonic() - began
    raise AssertionError("it was not ended")


async def test_a_late_task_gets_a_timeout_error_and_goes_on() -> None:
    assert await stay(TimeLimit(SECONDS)) >= SECONDS
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_a_task_that_is_in_time_is_not_cancelled_later() -> None:
    limit = TimeLimit(SECONDS)
    with limit:
        await asyncio.sleep(0)
    with pytest.raises(ValueError, match="its own"), limit:
        raise ValueError("its own")
    await asyncio.sleep(2 * SECONDS)


async def test_each_task_has_its_full_time_even_if_others_began_earlier() -> None:
    limit = TimeLimit(SECONDS)
    tasks = list[asyncio.Task[float]]()
    for _ in range(5):
        tasks.append(asyncio.create_task(stay(limit)))
        await asyncio.sleep(SECONDS / 3)
    assert min(await asyncio.gather(*tasks)) >= SECONDS


async def test_the_timer_starts_again_after_no_task_was_inside() -> None:
    limit = TimeLimit(SECONDS)
    for _ in range(2):
        assert await stay(limit) >= SECONDS
        with limit:
            await asyncio.sleep(0)
        await asyncio.sleep(2 * SECONDS)
    assert await stay(limit) >= SECONDS


async def test_a_task_that_is_cancelled_stays_cancelled() -> None:
    task = asyncio.create_task(stay(TimeLimit(10)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_late_task_that_is_cancelled_at_the_same_moment_stays_cancelled() -> None:
    limit = TimeLimit(SECONDS)
    task = asyncio.create_task(stay(limit))
    await asyncio.sleep(0)
    # Both happen in one iteration of the event loop.
    time.sleep(SECONDS)
    limit._cancel_late_tasks(asyncio.get_running_loop())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not limit._inside
    assert not limit._late


async def test_the_cleanup_of_a_cancelled_task_has_a_limit_too() -> None:
    async def clean_up() -> float:
        try:
            await asyncio.Event().wait()
        finally:
            seconds.append(await stay(limit))
        raise AssertionError("it was not cancelled")

    limit, seconds = TimeLimit(SECONDS), list[float]()
    task = asyncio.create_task(clean_up())
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert seconds[0] >= SECONDS


def test_the_timer_starts_again_in_another_event_loop() -> None:
    limit = TimeLimit(SECONDS)

    async def use() -> None:
        with limit:
            await asyncio.sleep(0)

    asyncio.run(use())
    assert asyncio.run(stay(limit)) >= SECONDS


async def test_a_task_knows_how_much_time_it_has_left() -> None:
    limit = TimeLimit(10)
    assert limit.left() == math.inf
    with limit:
        assert 9 < limit.left() <= 10
    assert limit.left() == math.inf


def test_a_task_whose_event_loop_was_closed_unbounds_no_other() -> None:
    async def ended_by_the_limit() -> bool:
        async with asyncio.timeout(100 * SECONDS) as other:
            await stay(limit)
            await stay(limit)
        return not other.expired()

    limit, loop = TimeLimit(SECONDS), asyncio.new_event_loop()
    forgotten = loop.create_task(stay(limit))
    loop.run_until_complete(asyncio.sleep(0))
    loop.close()
    time.sleep(SECONDS)
    assert asyncio.run(ended_by_the_limit())
    assert not limit._inside
    forgotten._log_destroy_pending = False  # type: ignore[attr-defined] # asyncio has no public name for it
