"""Threads: functions that wait for a disk are made in them, while the event loop goes on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from queue import SimpleQueue
from threading import Thread
from typing import Any, Final, TypeAlias, TypeVar, TypeVarTuple

T = TypeVar("T")
Ts = TypeVarTuple("Ts")
_Call: TypeAlias = tuple[asyncio.AbstractEventLoop, asyncio.Future[Any], Callable[..., Any], tuple[Any, ...]]


class Threads:
    """At most so many threads as *most*, which are started as they are needed and end with the process, or with close().

    A call costs about half of one by concurrent.futures, whose futures threads could wait for too.
    """

    def __init__(self, most: int, name: str) -> None:
        self._most: Final = most
        self._name: Final = name
        self._threads: list[Thread] = []
        self._under_way = 0
        self._calls = SimpleQueue[_Call | None]()

    async def call(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Return what *function* returns, or raise what it raises. Who is cancelled before it is begun is not in its way."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        if len(self._threads) < min(self._under_way + 1, self._most):
            thread = Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
            thread.start()
            self._threads.append(thread)
        self._under_way += 1
        self._calls.put((loop, future, function, arguments))
        return await future

    async def close(self) -> None:
        """Wait until all calls are made, and the threads have ended."""
        for _ in self._threads:
            self._calls.put(None)
        while self._threads:
            await asyncio.to_thread(self._threads.pop().join)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            loop, future, function, arguments = call
            result, error = None, None
            try:
                # Nobody waits for what was cancelled, and it must not be made after all.
                if not future.cancelled():
                    result = function(*arguments)
            except BaseException as raised:
                error = raised
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._answer, future, result, error)
            # Until there is another call, nothing is kept alive.
            del call, future, function, arguments, result, error

    def _answer(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        self._under_way -= 1
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
