"""The cores of this machine: one for the servers that are measured, and another for their load."""

from __future__ import annotations

import os
import sys
from collections.abc import Generator, Iterable
from contextlib import contextmanager


@contextmanager
def on_server_core() -> Generator[None]:
    """Run this thread, and the processes that it starts inside, on the first core.

    Every server has then as much CPU as the others, however many threads it starts.
    """
    with _on(sorted(_allowed())[:1]):
        yield


@contextmanager
def on_load_cores() -> Generator[None]:
    """Run this thread, and the processes that it starts inside, on the other cores, if there are any."""
    with _on(sorted(_allowed())[1:] or _allowed()):
        yield


@contextmanager
def _on(cores: Iterable[int]) -> Generator[None]:
    before = _allowed()
    _limit(cores)
    try:
        yield
    finally:
        _limit(before)


if sys.platform == "linux":

    def _allowed() -> set[int]:
        return os.sched_getaffinity(0)

    def _limit(cores: Iterable[int]) -> None:
        os.sched_setaffinity(0, cores)

else:
    # Other systems have no such call in Python; their schedulers choose the cores.
    def _allowed() -> set[int]:
        return set()

    def _limit(cores: Iterable[int]) -> None:
        pass
