"""TimeLimit: asyncio.timeout() for calls of which hardly one reaches it, with one timer for all of them instead of one for each."""

from __future__ import annotations

import asyncio
import math
from time import monotonic
from types import TracebackType
from typing import Any, cast


class TimeLimit:
    """Bounds tasks, each once at a time, as `with limit:`. After *seconds*, the block is cancelled, and raises TimeoutError."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        # The deadline, and how often the task was cancelled before. The first to begin is the first to be late.
        self._inside: dict[asyncio.Task[Any], tuple[float, int]] = {}
        self._late: dict[asyncio.Task[Any], int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        """The event loop that has the timer."""

    def __enter__(self) -> None:
        self.enter()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        task: Any = asyncio.current_task()
        is_late = self.is_late(task)
        self.leave(task)
        if is_late and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def enter(self) -> asyncio.Task[Any]:
        """Begin to bound the current task, and return it. leave() has to follow.

        Up to Python 3.11, asking for the current task again, as `with` does, takes most of the time.
        """
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        self._inside[task] = monotonic() + self._seconds, task.cancelling()
        if self._loop is not (loop := task.get_loop()):
            self._loop = loop
            loop.call_later(self._seconds, self._look, loop)
        return task

    def is_late(self, task: asyncio.Task[Any]) -> bool:
        """Return whether the limit has cancelled *task*, and nothing else has."""
        cancelling = self._late.get(task)
        return cancelling is not None and task.cancelling() <= cancelling + 1

    def leave(self, task: asyncio.Task[Any]) -> None:
        """End what enter() has begun."""
        if self._inside.pop(task, None) is None:
            del self._late[task]
            task.uncancel()

    def left(self) -> float:
        """Return how many seconds the current task has left, or infinity if it isn't inside."""
        task: Any = asyncio.current_task()
        return self._inside[task][0] - monotonic() if task in self._inside else math.inf

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        """Cancel what is late, and look again when the next would be."""
        if self._loop is not loop:
            return
        now = monotonic()
        for task, (until, cancelling) in [*self._inside.items()]:
            if until > now:
                loop.call_later(until - now, self._look, loop)
                return
            del self._inside[task]
            self._late[task] = cancelling
            task.cancel()
        self._loop = None
