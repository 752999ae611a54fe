"""Batches: which calls share one, and that the failure or cancellation of one call does not affect the others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from gaman_session.drivers import _batches
from gaman_session.drivers._batches import Batches
from gaman_session.drivers._time_limit import TimeLimit

pytestmark = pytest.mark.anyio


class Store:
    """Returns each call itself, batch by batch, once its gate is open; negative numbers fail."""

    def __init__(self, *, max_in_flight: int = 1, max_calls: int | None = None) -> None:
        self.batches = Batches(self.run, max_in_flight=max_in_flight, max_calls=max_calls)
        self.seen: list[list[int]] = []
        self.in_flight = self.max_in_flight = 0
        self.error: BaseException | None = None
        self.gate = asyncio.Event()

    async def run(self, calls: list[int]) -> Sequence[int | BaseException]:
        self.seen.append(calls)
        self.in_flight += 1
        self.max_in_flight = max(self.max_in_flight, self.in_flight)
        try:
            await self.gate.wait()
        finally:
            self.in_flight -= 1
        if self.error is not None:
            raise self.error
        return [call if call >= 0 else ValueError(call) for call in calls]

    def start(self, *calls: int) -> list[asyncio.Task[int]]:
        return [asyncio.create_task(self.call(call)) for call in calls]

    async def call(self, call: int, *, is_one_of_several: bool = False) -> int:
        return await self.batches.call(call, is_one_of_several=is_one_of_several)


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


async def test_a_call_by_itself_is_sent_at_once() -> None:
    store = Store()
    store.gate.set()
    assert await store.batches.call(1) == 1
    assert await store.batches.call(2) == 2
    assert store.seen == [[1], [2]]


async def test_calls_that_are_some_of_several_share_a_batch_although_nothing_is_in_flight() -> None:
    store = Store()
    store.gate.set()
    several = [asyncio.create_task(store.call(call, is_one_of_several=True)) for call in (1, -2, 3)]
    other = store.start(4)
    assert [str(result) for result in await asyncio.gather(*several, *other, return_exceptions=True)] == ["1", "-2", "3", "4"]
    assert await store.batches.call(5, is_one_of_several=True) == 5
    assert store.seen == [[1, -2, 3, 4], [5]]


async def test_calls_that_are_some_of_several_wait_for_the_batch_in_flight() -> None:
    store = Store()
    [first] = store.start(1)
    await settle()
    several = [asyncio.create_task(store.call(call, is_one_of_several=True)) for call in (2, 3)]
    await settle()
    assert store.seen == [[1]]
    store.gate.set()
    assert await asyncio.gather(first, *several) == [1, 2, 3]
    assert store.seen == [[1], [2, 3]]


async def test_a_batch_takes_a_limited_number_of_calls_and_leaves_the_others_to_the_next() -> None:
    store = Store(max_calls=2)
    tasks = store.start(*range(6))
    await settle()
    store.gate.set()
    assert await asyncio.gather(*tasks) == [*range(6)]
    assert store.seen == [[0], [1, 2], [3, 4], [5]]


async def test_calls_made_while_another_is_in_flight_share_the_next_batch_in_their_order() -> None:
    store = Store(max_in_flight=3)
    tasks = store.start(1, 2, 3)
    await settle()
    tasks += store.start(4, 5)
    await settle()
    assert store.seen == [[1]]
    store.gate.set()
    assert await asyncio.gather(*tasks) == [1, 2, 3, 4, 5]
    assert store.seen == [[1], [2, 3, 4, 5]]
    assert store.max_in_flight == 1


async def test_a_batch_is_sent_beside_a_late_one_up_to_the_number_allowed_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_batches, "_LATE", 0)
    store = Store(max_in_flight=3)
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
    assert store.max_in_flight == 3


async def test_a_failed_call_does_not_affect_the_rest_of_its_batch() -> None:
    store = Store()
    store.gate.set()
    results = await asyncio.gather(*store.start(-1, 2, -3, 4), return_exceptions=True)
    assert [str(result) for result in results] == ["-1", "2", "-3", "4"]
    assert [type(result) for result in results] == [ValueError, int, ValueError, int]


async def test_a_failed_batch_fails_all_of_its_calls_and_no_other_call() -> None:
    store = Store()
    tasks = store.start(1, 2, 3)
    await settle()
    store.error = OSError("gone")
    store.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(result) for result in results] == [OSError] * 3
    store.error = None
    assert await store.batches.call(4) == 4


async def test_a_call_cancelled_before_its_batch_is_sent_is_left_out() -> None:
    store = Store()
    first, second, third = store.start(1, 2, 3)
    await settle()
    second.cancel()
    await settle()
    store.gate.set()
    assert [await first, await third] == [1, 3]
    assert store.seen == [[1], [3]]


@pytest.mark.parametrize("cancelled", [0, 1, 2])
async def test_a_call_cancelled_in_flight_does_not_affect_the_rest_of_its_batch(
    cancelled: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_batches, "_LATE", 0)
    store = Store(max_in_flight=2)
    tasks = store.start(1, 2, 3)
    await settle()
    tasks[cancelled].cancel()
    await settle()
    store.gate.set()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert [isinstance(result, asyncio.CancelledError) for result in results] == [i == cancelled for i in range(3)]
    assert await asyncio.gather(*store.start(4, 5)) == [4, 5]


async def test_no_batch_is_sent_if_all_waiting_calls_are_cancelled() -> None:
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


async def test_cancelling_a_batch_cancels_its_calls() -> None:
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


async def test_drain_waits_for_all_calls_that_are_waiting_or_in_flight() -> None:
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


async def test_a_batch_that_reaches_its_limit_fails_its_calls_and_makes_room_for_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_batches, "_LATE", 0)
    store = Store()
    store.batches = Batches(store.run, max_in_flight=2, limit=TimeLimit(0.05))
    by_itself, *others = store.start(1, 2, 3)
    results = await asyncio.gather(*others, return_exceptions=True)
    assert [type(result) for result in results] == [TimeoutError] * 2
    assert not by_itself.done()
    assert store.in_flight == 1
    store.gate.set()
    assert await by_itself == 1
    assert await asyncio.gather(*store.start(4, 5)) == [4, 5]


async def test_calls_that_share_a_batch_time_out_while_they_wait_to_be_sent_and_in_flight(monkeypatch: pytest.MonkeyPatch) -> None:
    async def call_in_time(call: int) -> int:
        with limit:
            return await store.batches.call(call)

    monkeypatch.setattr(_batches, "_LATE", 0)
    store, limit = Store(max_in_flight=2), TimeLimit(0.05)
    [by_itself] = store.start(1)
    await settle()
    others = [asyncio.create_task(call_in_time(call)) for call in (2, 3)]
    await settle()
    others += [asyncio.create_task(call_in_time(call)) for call in (4, 5)]
    results = await asyncio.gather(*others, return_exceptions=True)
    assert [type(result) for result in results] == [TimeoutError] * 4
    assert store.seen == [[1], [2, 3]]
    assert not by_itself.done()
    store.gate.set()
    assert await by_itself == 1
    assert await asyncio.gather(*store.start(9, 10)) == [9, 10]
