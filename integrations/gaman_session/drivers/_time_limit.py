"""TimeLimit: asyncio.timeout() for calls of which hardly one reaches it, with one timer for all of them instead of one for each."""

from __future__ import annotations

import asyncio
from asyncio import current_task, get_running_loop
from time import monotonic
from types import TracebackType
from typing import Any


class TimeLimit:
    """Bounds what tasks do inside of it, as `with limit:`, each once at a time: after so many *seconds* they get a TimeoutError."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        # Until when, and how often the task was to be cancelled before. Whoever began first is first to end.
        self._inside: dict[asyncio.Task[Any], tuple[float, int]] = {}
        self._late: dict[asyncio.Task[Any], int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        """Where the timer runs."""

    def __enter__(self) -> None:
        loop = get_running_loop()
        task: Any = current_task(loop)
        self._inside[task] = monotonic() + self._seconds, task.cancelling()
        if self._loop is not loop:
            self._loop = loop
            loop.call_later(self._seconds, self._look, loop)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        task: Any = current_task()
        if self._inside.pop(task, None) is None and task.uncancel() <= self._late.pop(task) and kind is asyncio.CancelledError:
            raise TimeoutError from error

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
