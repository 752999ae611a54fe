"""Uncancelled: a write to the store ends before a cancellation of its request takes effect."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any, TypeVar

import anyio

T = TypeVar("T")


async def uncancelled(work: Coroutine[Any, Any, T], report: Callable[[Exception], None]) -> T:
    """Return what *work* returns. A cancellation of this task is raised once *work* has ended, after a *report* of its error.

    A write that is cancelled halfway may have renamed the session in the store, and the browser wouldn't get the new id.
    """
    from asyncio import CancelledError, create_task, shield, wait  # noqa: PLC0415 - takes 20 ms to load, which a server has done

    task = create_task(work)
    try:
        return await shield(task)
    except CancelledError:
        # anyio would cancel again in each iteration of the event loop.
        with anyio.CancelScope(shield=True):
            while not task.done():
                with suppress(CancelledError):
                    await wait([task])
        if not task.cancelled() and isinstance(error := task.exception(), Exception):
            report(error)
        error = None
        raise
    finally:
        # The traceback of an error refers to this frame, and the task to the error.
        del task
