"""How much memory sessions take: bytes a session, a million of them, and whether a process grows over a million requests.

Each figure comes from a process of its own: python -m benchmarks.memory sessions WAY COUNT, or requests COUNT, prints it.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import version
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import uvloop

from benchmarks import contenders, places
from benchmarks.contenders import USER
from benchmarks.drivers import Called, CalledGaman
from benchmarks.growth import bytes_each, resident
from benchmarks.harness import Absent, Case, Contender, Goal, Missing, Plan, Question, Sample, line_of
from benchmarks.storing import PEERS, Litestar, Starsessions, Way

VALUES: Final = len(contenders.encode(USER))
"""Bytes of what a session holds."""
LIMIT: Final = f"its {VALUES} bytes of values and 1.5 KB"
WAYS: Final[dict[str, Any]] = {"gaman": CalledGaman, "starsessions": Starsessions, "Litestar": Litestar}
FEW: Final = 20_000
SAMPLES: Final = 10
"""At how many moments of the first tenth of all requests, and of the last, the memory is looked at."""


async def count_sessions(way: Way, count: int) -> int:
    """Return the bytes by which this process has grown after so many logins."""
    before = resident()
    for _ in range(count):
        served = way.serve("write", None)
        if not way.in_threads:
            await served
    return resident() - before


async def count_requests(way: Way, count: int) -> list[tuple[int, int]]:
    """Return how much memory this process takes, after how many requests in a thousand sessions, which are written and read in turn."""
    keys = [(await way.serve("write", None))[0] for _ in range(1000)]
    found: list[tuple[int, int]] = []
    step = count // 10 // SAMPLES
    operations = cycle(("load", "write", "read-write", "update"))
    for served in range(count):
        await way.serve(next(operations), keys[served % 997])
        if served % step == 0:
            found.append((served, resident()))
    return found
