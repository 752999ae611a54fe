"""TimeLimit: asyncio.timeout() for many calls that rarely reach it, with one timer for all of them instead of one for each."""

from __future__ import annotations

import asyncio
import math
from asyncio import current_task, get_running_loop
from time import monotonic
from types import TracebackType
from typing import Any


class TimeLimit:
    """Raises TimeoutError in a task that stays longer than *seconds* in its `with` block.

        limit = TimeLimit(10)
        with limit:
            await connection.send(command)

    Many tasks may be in such blocks of one limit, each task in one at a time.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._inside: dict[asyncio.Task[Any], tuple[float, int]] = {}
        """For each task when it is late, earliest first, and how many cancellations it had pending when it entered."""
        self._late: dict[asyncio.Task[Any], int] = {}
        """The tasks that were cancelled because they were late, with the same number."""
        self._loop: asyncio.AbstractEventLoop | None = None
        """The event loop of the latest block."""
        self._timed_loop: asyncio.AbstractEventLoop | None = None
        """The event loop in which the timer runs."""

    def __enter__(self) -> None:
        # Up to Python 3.11 this is a system call, which current_task() would make once more.
        self._loop = loop = get_running_loop()
        task: Any = current_task(loop)
        self._inside[task] = monotonic() + self._seconds, task.cancelling()
        if self._timed_loop is not loop:
            self._timed_loop = loop
            loop.call_later(self._seconds, self._cancel_late_tasks, loop)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        task: Any = current_task(self._loop)
        if self._inside.pop(task, None) is not None or task is None:
            # Without a task, the garbage collector closes a coroutine whose event loop was closed before it ended.
            return
        if task.uncancel() <= self._late.pop(task) and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def left(self) -> float:
        """Return how many seconds the current task has left, or infinity outside a block."""
        task: Any = current_task(self._loop)
        return self._inside[task][0] - monotonic() if task in self._inside else math.inf

    def _cancel_late_tasks(self, loop: asyncio.AbstractEventLoop) -> None:
        """Cancel the tasks that are late, and run again when the next one may be."""
        if self._timed_loop is not loop:
            return
        now = monotonic()
        for task, (until, cancelling) in [*self._inside.items()]:
            if task.get_loop().is_closed():
                # The task never ended, and cancel() would raise.
                del self._inside[task]
                continue
            if until > now:
                loop.call_later(until - now, self._cancel_late_tasks, loop)
                return
            del self._inside[task]
            self._late[task] = cancelling
            task.cancel()
        self._timed_loop = None
