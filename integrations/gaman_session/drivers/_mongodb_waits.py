"""Waits of pymongo on Python 3.11, made so that a call that is cancelled doesn't leave a lock held, and hang all later ones."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable
from typing import TypeVar

import pymongo.lock

T = TypeVar("T")


def make_waits_cancellable() -> None:
    """Replace the asyncio.wait_for() that pymongo waits with, in all its clients of this process, on Python 3.11.

    pymongo waits for a server or a connection by `wait_for(condition.wait(), timeout)`, while it holds the condition's lock. On
    Python 3.11, a second task makes that wait, and takes the lock back at its end: after each half second, or when the call is
    cancelled. If the call is cancelled just then, it goes on without the task, which later takes the lock and never releases it.
    """
    if sys.version_info < (3, 12):
        pymongo.lock.wait_for = _wait_for  # type: ignore[attr-defined, assignment]  # an imported name


async def _wait_for(wait: Awaitable[T], seconds: float | None) -> T:
    async with asyncio.timeout(seconds):
        return await wait
