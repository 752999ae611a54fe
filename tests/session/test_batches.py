"""Batches: who shares a trip with whom, and that what becomes of one call is nobody else's matter."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from gaman_session.drivers import _batches
from gaman_session.drivers._batches import Batches

pytestmark = pytest.mark.anyio


class Store:
    """Answers each call with itself, a batch at a time, when it is told to; negative numbers fail."""

    def __init__(self, *, at_once: int = 1, most: int | None = None) -> None:
        self.batches = Batches(self.run, at_once=at_once, most=most)
        self.seen: list[list[int]] = []
        self.under_way = self.most = 0
        self.error: BaseException | None = None
        self.gate = asyncio.Event()

    async def run(self, calls: list[int]) -> Sequence[int | BaseException]:
        self.seen.append(calls)
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await self.gate.wait()
        finally:
            self.under_way -= 1
        if self.error is not None:
            raise self.error
        return [call if call >= 0 else ValueError(call) for call in calls]

    def start(self, *calls: int) -> list[asyncio.Task[int]]:
        return [asyncio.create_task(self.ask(call)) for call in calls]

    async def ask(self, call: int) -> int:
        return await self.batches.call(call)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_lone_call_goes_out_in_the_turn_that_makes_it() -> None:
    store = Store()
    store.gate.set()
    assert await store.batches.call(1) == 1
    assert await store.batches.call(2) == 2
    assert store.seen == [[1], [2]]


async def test_a_trip_takes_so_many_and_leaves_the_others_to_the_next() -> None:
    store = Store(most=2)
    tasks = store.start(*range(6))
    await settle()
    store.gate.set()
    assert await asyncio.gather(*tasks) == [*range(6)]
    assert store.seen == [[0], [1, 2], [3, 4], [5]]


async def test_calls_that_find_another_under_way_share_the_next_trip_in_their_order() -> None:
    store = Store(at_once=3)
    tasks = store.start(1, 2, 3)
    await settle()
    tasks += store.start(4, 5)
    await settle()
    assert store.seen == [[1]]
    store.gate.set()
    assert await asyncio.gather(*tasks) == [1, 2, 3, 4, 5]
    assert store.seen == [[1], [2, 3, 4, 5]]
    assert store.most == 1


async def test_where_a_trip_is_late_the_next_goes_out_beside_it_as_long_as_there_is_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_batches, "_LATE", 0)
    store = Store(at_once=3)
    tasks = store.start(1, 2, 3)
    await settle()
    tasks += store.start(4, 5)
    await settle()
    tasks += store.start(6, 7)
    await settle()
    assert store.seen == [[1], [2, 3], [4, 5]]
    store.gate.set()
    assert await asyncio.gather(*tasks) == [1, 2, 3, 4, 5, 6, 7]
    assert store.seen[-1] == [6, 7]
    assert store.most == 3


async def test_a_call_that_fails_fails_alone() -> None:
    store = Store()
    store.gate.set()
    results = await asyncio.gather(*store.start(-1, 2, -3, 4), return_exceptions=True)
    assert [str(result) for result in results] == ["-1", "2", "-3", "4"]
    assert [type(result) for result in results] == [ValueError, int, ValueError, int]


async def test_a_trip_that_fails_fails_for_all_who_share_it_and_for_nobody_else() -> None:
    store = Store()
    tasks = store.start(1, 2, 3)
    await settle()
    store.error = OSError("gone")
    store.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [OSError] * 3
    store.error = None
    assert await store.batches.call(4) == 4


async def test_whoever_is_cancelled_before_the_trip_does_not_take_part_in_it() -> None:
    store = Store()
    first, second, third = store.start(1, 2, 3)
    await settle()
    second.cancel()
    await settle()
    store.gate.set()
    assert [await first, await third] == [1, 3]
    assert store.seen == [[1], [3]]


@pytest.mark.parametrize("leaver", [0, 1, 2])
async def test_whoever_is_cancelled_during_the_trip_leaves_alone(leaver: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_batches, "_LATE", 0)
    store = Store(at_once=2)
    tasks = store.start(1, 2, 3)
    await settle()
    tasks[leaver].cancel()
    await settle()
    store.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(result, asyncio.CancelledError) for result in results] == [i == leaver for i in range(3)]
    assert await asyncio.gather(*store.start(4, 5)) == [4, 5]


async def test_where_all_who_wait_are_cancelled_no_trip_is_made() -> None:
    store = Store()
    first, *others = store.start(1, 2, 3)
    await settle()
    for task in others:
        task.cancel()
    await settle()
    store.gate.set()
    assert await first == 1
    assert await store.batches.call(4) == 4
    assert store.seen == [[1], [4]]


async def test_a_trip_that_is_cancelled_itself_leaves_nobody_waiting() -> None:
    store = Store()
    first, second = store.start(1, 2)
    await settle()
    first.cancel()
    await settle()
    for task in store.batches._tasks:
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    store.gate.set()
    assert await store.batches.call(3) == 3


async def test_drain_waits_for_all_that_is_waiting_or_under_way() -> None:
    store = Store()
    tasks = store.start(1, 2, 3)
    await settle()
    draining = asyncio.create_task(store.batches.drain())
    await settle()
    assert not draining.done()
    store.gate.set()
    await draining
    await settle()
    assert all(task.done() for task in tasks)


async def test_nobody_who_shares_a_trip_waits_longer_than_the_timeout_be_it_for_a_place_or_for_an_answer() -> None:
    store = Store(at_once=2)
    store.batches = Batches(store.run, at_once=2, timeout=0.05)
    alone, *others = store.start(1, 2, 3)
    await settle()
    others += store.start(4, 5)
    results = await asyncio.gather(*others, return_exceptions=True)
    assert [type(result) for result in results] == [TimeoutError] * 4
    assert not alone.done()
    store.gate.set()
    assert await alone == 1
    assert await asyncio.gather(*store.start(9, 10)) == [9, 10]
