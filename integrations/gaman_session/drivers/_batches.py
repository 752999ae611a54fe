"""Batches: calls that are made while earlier ones are under way share the next trip to the store."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Final, Generic, TypeVar

Call = TypeVar("Call")
Result = TypeVar("Result")

_LATE: Final = 0.002
"""Seconds after which a batch no longer waits for the one before it."""


class Batches(Generic[Call, Result]):
    """Gathers calls and gives them to *run*, in the order they were made, with at most *at_once* batches of *most* under way.

    A call that finds nothing under way goes out directly, by itself. Those that come meanwhile go out together when it is back, or
    where there is room for them, when it is late. *run* returns a result for each call; an exception among them is raised to the
    one who made that call. What *run* itself raises is raised to all of its batch. Whoever is cancelled leaves, and the others of
    the batch do not notice. Those who go out together wait *timeout* seconds at most, and then get a TimeoutError; a call that goes
    out by itself is for *run* to bound.
    """

    def __init__(
        self,
        run: Callable[[list[Call]], Awaitable[Sequence[Result | BaseException]]],
        *,
        at_once: int = 1,
        most: int | None = None,
        timeout: float | None = None,
        limit: AbstractContextManager[None] | None = None,
    ) -> None:
        self._run = run
        self._at_once = at_once
        self._most = most
        self._timeout = timeout
        self._limit = limit or nullcontext()
        self._loop: asyncio.AbstractEventLoop
        self._under_way = 0
        self._waiting: list[tuple[Call, asyncio.Future[Result]]] = []
        self._timer: asyncio.TimerHandle | None = None
        # The event loop itself would let go of a task that nobody holds.
        self._tasks: set[asyncio.Task[None]] = set()

    def call(self, call: Call) -> Awaitable[Result]:
        """Return what waits for the result of *call*, and raises what became of it."""
        if not self._under_way and not self._waiting:
            return self._go_alone(call)
        if not self._waiting:
            # Asked for once a trip: up to Python 3.11 it costs a system call.
            self._loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = self._loop.create_future()
        self._waiting.append((call, future))
        if len(self._waiting) == 1:
            self._time()
            # One large batch costs less than several small ones, unless it has to wait for long.
            self._loop.call_later(_LATE, self._start)
        return future

    async def _go_alone(self, call: Call) -> Result:
        self._under_way += 1
        try:
            [result] = await self._run([call])
        finally:
            self._end()
        if isinstance(result, BaseException):
            raise result
        return result

    async def drain(self) -> None:
        """Wait until nothing is waiting or under way."""
        while self._waiting or self._under_way:  # noqa: ASYNC110 - it is for the end, where nothing is in a hurry
            await asyncio.sleep(0.001)

    def _time(self) -> None:
        """Have those who wait give up together: one clock is enough, and it begins with the first of them."""
        if self._timeout is not None:
            self._timer = self._loop.call_later(self._timeout, _give_up, self._waiting)

    def _start(self) -> None:
        batch = [(call, future) for call, future in self._waiting if not future.done()]
        if batch and self._under_way == self._at_once:
            return
        timer, self._timer = self._timer, None
        self._waiting = [] if self._most is None else batch[self._most :]
        if self._waiting:
            self._time()
        if batch := batch[: self._most]:
            self._under_way += 1
            task = asyncio.create_task(self._answer(batch, timer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif timer is not None:
            timer.cancel()

    def _end(self) -> None:
        self._under_way -= 1
        if self._waiting:
            self._start()

    async def _answer(self, batch: list[tuple[Call, asyncio.Future[Result]]], timer: asyncio.TimerHandle | None) -> None:
        results: Sequence[Result | BaseException]
        try:
            with self._limit:
                results = await self._run([call for call, _ in batch])
        except Exception as error:
            results = [error] * len(batch)
        except BaseException:
            for _, future in batch:
                future.cancel()
            raise
        finally:
            self._end()
            if timer is not None:
                timer.cancel()
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)


def _give_up(batch: list[tuple[Call, asyncio.Future[Result]]]) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(TimeoutError())
