"""A time limit ends what is late, and only that."""

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
    """Return after how many seconds the limit has ended this call."""
    began = time.monotonic()
    try:
        with limit:
            await asyncio.Event().wait()
    except TimeoutError:
        return time.monotonic() - began
    raise AssertionError("it was not ended")


async def test_what_is_late_gets_a_timeout_error_and_the_task_goes_on() -> None:
    assert await stay(TimeLimit(SECONDS)) >= SECONDS
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_what_is_in_time_is_left_alone_even_long_after() -> None:
    limit = TimeLimit(SECONDS)
    with limit:
        await asyncio.sleep(0)
    with pytest.raises(ValueError, match="its own"), limit:
        raise ValueError("its own")
    await asyncio.sleep(2 * SECONDS)


async def test_each_has_all_of_its_time_whoever_else_began_before() -> None:
    limit = TimeLimit(SECONDS)
    tasks = list[asyncio.Task[float]]()
    for _ in range(5):
        tasks.append(asyncio.create_task(stay(limit)))
        await asyncio.sleep(SECONDS / 3)
    assert min(await asyncio.gather(*tasks)) >= SECONDS


async def test_the_clock_begins_again_after_nobody_was_there() -> None:
    limit = TimeLimit(SECONDS)
    for _ in range(2):
        assert await stay(limit) >= SECONDS
        with limit:
            await asyncio.sleep(0)
        await asyncio.sleep(2 * SECONDS)
    assert await stay(limit) >= SECONDS


async def test_who_is_cancelled_by_somebody_else_is_cancelled() -> None:
    task = asyncio.create_task(stay(TimeLimit(10)))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_who_is_late_and_cancelled_by_somebody_else_at_once_is_cancelled() -> None:
    limit = TimeLimit(SECONDS)
    task = asyncio.create_task(stay(limit))
    await asyncio.sleep(0)
    # Both come in one turn of the loop.
    time.sleep(SECONDS)
    limit._look(asyncio.get_running_loop())
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not limit._inside
    assert not limit._late


async def test_what_a_cancelled_task_does_on_its_way_out_has_its_limit_too() -> None:
    async def leave() -> float:
        try:
            await asyncio.Event().wait()
        finally:
            seconds.append(await stay(limit))
        raise AssertionError("it was not cancelled")

    limit, seconds = TimeLimit(SECONDS), list[float]()
    task = asyncio.create_task(leave())
    await asyncio.sleep(0)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert seconds[0] >= SECONDS


def test_a_loop_that_was_closed_takes_the_clock_of_no_other_with_it() -> None:
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
