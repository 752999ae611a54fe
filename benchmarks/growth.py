"""How stores grow: what a session takes, and what a sweep costs, while the store grows to a million sessions.

A session holds the user of the other benchmarks, sealed. Sessions end at times that are spread over a day. An idle sweep finds
nothing to remove; a due one removes a minute's worth. Redis and MongoDB sweep by themselves. Each store is filled by a process of
its own: python -m benchmarks.growth KIND COUNT.
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
"""Bytes: as many as the user has, sealed."""


class Grown(msgspec.Struct):
    """What was found in a store of so many sessions: bytes a session, and microseconds; no sweeps where it sweeps by itself."""

    bytes_each: float
    idle_sweep: float | None
    due_sweep_each: float | None


def resident() -> int:
    """Return the bytes of memory that this process takes."""
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
"""For each driver, how to find out how many bytes its sessions take."""


@asynccontextmanager
async def opened(kind: str) -> AsyncGenerator[tuple[Any, str]]:
    """Give a driver of that kind on a new store, and the store's place."""
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
    """Begin so many sessions, whose ends are spread over a day from *now*."""

    async def begin(numbers: range) -> None:
        for number in numbers:
            deadline = now + 1 + DAY * number / count
            record = Record({"user": os.urandom(VALUE)}, now, deadline, deadline)
            await driver.create(_sealing.id_of(_sealing.new_raw_id()), record)

    # Filling is not what is measured, and the disk would take most of an hour for it.
    with patch("os.fsync"):
        await asyncio.gather(*(begin(range(start, count, 256)) for start in range(256)))
    os.sync()


async def sweep(driver: Driver, now: float) -> tuple[int, float]:
    """Remove what is over at *now*; return how much that was, and the microseconds."""
    began, removed = time.perf_counter(), 0
    while batch := await driver.purge(now=now, limit=1000):
        removed += batch
    return removed, (time.perf_counter() - began) * 1e6


async def grow(kind: str, count: int) -> Grown:
    """Fill a new store, and look at it."""
    async with opened(kind) as (driver, place):
        now, empty = time.time(), await STORES[kind](driver, place)
        await fill(driver, count, now)
        size = (await STORES[kind](driver, place) - empty) / count
        _, idle = await sweep(driver, now)
        removed, due = await sweep(driver, now + 61)
        return Grown(size, idle if removed else None, due / removed if removed else None)


def grow_apart(kind: str, count: int) -> Grown:
    """Do that in a process of its own, whose memory was never another store's."""
    command = [sys.executable, "-m", "benchmarks.growth", kind, str(count)]
    done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=False)
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
            floor="gaman",
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
