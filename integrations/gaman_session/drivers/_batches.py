"""Batches: calls that are made while earlier ones are in flight share the next round trip to the store."""

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
    """Gathers calls and gives them to *run* in their order, in batches of at most *max_calls*.

    A call that finds nothing in flight is sent at once, by itself. Later calls form a batch, which is sent when the earlier one has
    returned. If that is late, the batch is sent beside it, unless *max_in_flight* batches are in flight. A call that is one of
    several waits for the others of this turn of the event loop, even if nothing is in flight.

    *run* returns a result for each call, and an exception among them is raised to the caller of that call. An exception that *run*
    itself raises is raised to all callers of the batch. Cancelling one call does not affect the rest of its batch.

    A caller bounds its own call. A batch is sent by a task of its own, which *limit* bounds.
    """

    def __init__(
        self,
        run: Callable[[list[Call]], Awaitable[Sequence[Result | BaseException]]],
        *,
        max_in_flight: int = 1,
        max_calls: int | None = None,
        limit: AbstractContextManager[None] | None = None,
    ) -> None:
        self._run = run
        self._max_in_flight = max_in_flight
        self._max_calls = max_calls
        self._limit = limit or nullcontext()
        self._loop: asyncio.AbstractEventLoop
        self._in_flight = 0
        self._waiting: list[tuple[Call, asyncio.Future[Result]]] = []
        # The event loop keeps only weak references to tasks.
        self._tasks: set[asyncio.Task[None]] = set()

    def call(self, call: Call, *, is_one_of_several: bool = False) -> Awaitable[Result]:
        """Return an awaitable of the result of *call*, which raises its exception."""
        if not (self._in_flight or self._waiting or is_one_of_several):
            return self._send_alone(call)
        if not self._waiting:
            # Asked once for each batch: up to Python 3.11 this is a system call.
            self._loop = asyncio.get_running_loop()
        future: asyncio.Future[Result] = self._loop.create_future()
        self._waiting.append((call, future))
        if len(self._waiting) == 1 and not self._in_flight:
            self._loop.call_soon(self._send)
        elif len(self._waiting) == 1:
            # One large batch costs less than several small ones, so it waits for the one before, but not for long.
            self._loop.call_later(_LATE, self._send)
        return future

    async def drain(self) -> None:
        """Wait until no call is waiting or in flight."""
        while self._waiting or self._in_flight:  # noqa: ASYNC110 - only closing a driver waits like this
            await asyncio.sleep(0.001)

    async def _send_alone(self, call: Call) -> Result:
        self._in_flight += 1
        try:
            [result] = await self._run([call])
        finally:
            self._end()
        if isinstance(result, BaseException):
            raise result
        return result

    def _send(self) -> None:
        batch = [(call, future) for call, future in self._waiting if not future.done()]
        if batch and self._in_flight == self._max_in_flight:
            return
        self._waiting = [] if self._max_calls is None else batch[self._max_calls :]
        if batch := batch[: self._max_calls]:
            self._in_flight += 1
            task = asyncio.create_task(self._run_batch(batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _end(self) -> None:
        self._in_flight -= 1
        if self._waiting:
            self._send()

    async def _run_batch(self, batch: list[tuple[Call, asyncio.Future[Result]]]) -> None:
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
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, BaseException):
                future.set_exception(result)
            else:
                future.set_result(result)
