"""The size of a session and the cost of a sweep in each store, while the store grows to a million sessions.

A session has the sealed user of the other benchmarks. The sessions' deadlines are spread over a day. An idle sweep finds no expired
session; a due sweep removes those of one minute. Redis and MongoDB sweep by themselves. A process of its own fills each store:
python -m benchmarks.questions.growth KIND COUNT.
"""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import msgspec
import uvloop

from benchmarks.harness import Case, Contender, Missing, Plan, Question, Sample, contenders
from benchmarks.places import driver_options, place_for
from gaman.session import Driver, Record
from gaman_session import _sealing
from gaman_session.drivers import find_driver

SIZES: Final = (10_000, 100_000, 1_000_000)
DAY: Final = 86_400
VALUE: Final = 95
"""Bytes of the sealed user."""


class Grown(msgspec.Struct):
    """Bytes per session, and the microseconds of sweeps; None for a store that sweeps by itself."""

    bytes_each: float
    idle_sweep: float | None
    due_sweep_each: float | None


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def memory_of_process(driver: Driver, place: str) -> int:
    gc.collect()
    return resident()


async def disk(driver: Driver, place: str) -> int:
    return sum(
        os.lstat(os.path.join(where, name)).st_blocks * 512
        for where, folders, files in os.walk(place)
        for name in (*folders, *files)
    )


async def memory_of_redis(driver: Any, place: str) -> int:
    found: int = (await driver._client.info("memory"))["used_memory"]
    return found


async def disk_of_mongodb(driver: Any, place: str) -> int:
    await driver._client.admin.command("fsync")
    found = await driver._client["gaman_benchmark"].command("collStats", "sessions")
    return int(found["storageSize"] + found["totalIndexSize"])


STORES: Final[dict[str, Callable[[Any, str], Awaitable[int]]]] = {
    "memory": memory_of_process,
    "sql": disk,
    "file": disk,
    "redis": memory_of_redis,
    "mongodb": disk_of_mongodb,
}
"""For each driver, the function that returns the bytes of its sessions."""


@asynccontextmanager
async def opened(kind: str) -> AsyncGenerator[tuple[Any, str]]:
    """Open a driver of *kind* with a new store; yield it and the store's place."""
    with place_for(kind) as place:
        options = driver_options(kind, place)
        del options["type"]
        driver: Driver = find_driver(kind)(**options, **({"max_sessions": 2 * SIZES[-1]} if kind == "memory" else {}))
        await driver.open()
        try:
            yield driver, place
        finally:
            await driver.close()


async def fill(driver: Driver, count: int, now: float) -> None:
    """Create *count* sessions, whose deadlines are spread over the day from *now*."""

    async def begin(numbers: range) -> None:
        for number in numbers:
            deadline = now + 1 + DAY * number / count
            record = Record({"user": os.urandom(VALUE)}, now, deadline, deadline)
            await driver.create(_sealing.id_of(_sealing.new_raw_id()), record)

    # The filling isn't measured, and with fsync it would take most of an hour.
    with patch("os.fsync"):
        await asyncio.gather(*(begin(range(start, count, 256)) for start in range(256)))
    os.sync()


async def sweep(driver: Driver, now: float) -> tuple[int, float]:
    """Remove the sessions that have expired at *now*; return their number, and the microseconds."""
    began, removed = time.perf_counter(), 0
    while batch := await driver.purge(now=now, limit=1000):
        removed += batch
    return removed, (time.perf_counter() - began) * 1e6


async def grow(kind: str, count: int) -> Grown:
    """Fill a new store and measure it."""
    async with opened(kind) as (driver, place):
        now, empty = time.time(), await STORES[kind](driver, place)
        await fill(driver, count, now)
        size = (await STORES[kind](driver, place) - empty) / count
        _, idle = await sweep(driver, now)
        removed, due = await sweep(driver, now + 61)
        return Grown(size, idle if removed else None, due / removed if removed else None)


def grow_apart(kind: str, count: int) -> Grown:
    """Call grow() in a new process, whose memory no other store has used."""
    command = [sys.executable, "-m", "benchmarks.questions.growth", kind, str(count)]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return msgspec.json.decode(done.stdout, type=Grown)


def bytes_each(kind: str, count: int) -> Sample:
    found = grow_apart(kind, count)
    sweeps = {"idle sweep, µs": found.idle_sweep, "due sweep, µs a session": found.due_sweep_each}
    return Sample(found.bytes_each, {name: value for name, value in sweeps.items() if value is not None})


def _contenders(kind: str) -> Sequence[Contender | Missing]:
    return [Contender(name="gaman", measure=partial(bytes_each, kind, size), kind="ours", at=size) for size in SIZES]


def cases(plan: Plan) -> Sequence[Case]:
    return [
        Case(
            name=kind,
            enter=partial(contenders, *_contenders(kind)),
            baseline="gaman",
            unit="bytes a session",
            axis="sessions",
            rounds=1,
        )
        for kind in STORES
    ]


QUESTION = Question(
    name="growth",
    title="What does a session take in each store, and what does a sweep cost, while the store grows?",
    cases=cases,
    seconds=3600,
    quick_seconds=3600,
)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        print(msgspec.json.encode(runner.run(grow(sys.argv[1], int(sys.argv[2])))).decode())
