"""Threads: run functions that wait for a disk, so that the event loop doesn't wait."""

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
    """At most *max_threads* threads, which are started when they are needed and end with the process or with close().

    A call costs about half as much as with concurrent.futures, whose futures let threads wait for them as well.
    """

    def __init__(self, max_threads: int, name: str) -> None:
        self._max_threads: Final = max_threads
        self._name: Final = name
        self._threads: list[Thread] = []
        self._in_flight = 0
        self._calls = SimpleQueue[_Call | None]()

    async def call(self, function: Callable[[*Ts], T], *arguments: *Ts) -> T:
        """Return what *function* returns, or raise what it raises. A call that is cancelled before it starts isn't made."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        if len(self._threads) < min(self._in_flight + 1, self._max_threads):
            thread = Thread(target=self._work, name=f"{self._name}-{len(self._threads)}", daemon=True)
            thread.start()
            self._threads.append(thread)
        self._in_flight += 1
        self._calls.put((loop, future, function, arguments))
        return await future

    async def close(self) -> None:
        """Wait until all calls are made and the threads have ended."""
        for _ in self._threads:
            self._calls.put(None)
        while self._threads:
            await asyncio.to_thread(self._threads.pop().join)

    def _work(self) -> None:
        while (call := self._calls.get()) is not None:
            loop, future, function, arguments = call
            result, error = None, None
            try:
                # A cancelled call must not be made later.
                if not future.cancelled():
                    result = function(*arguments)
            except BaseException as raised:
                error = raised
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._settle, future, result, error)
            # Keep nothing alive until the next call.
            del call, future, function, arguments, result, error

    def _settle(self, future: asyncio.Future[Any], result: Any, error: BaseException | None) -> None:
        self._in_flight -= 1
        if future.done():
            return
        if error is None:
            future.set_result(result)
        else:
            future.set_exception(error)
