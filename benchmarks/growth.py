"""How stores grow: what a session takes, and what a sweep costs, with ten thousand, a hundred thousand and a million of them.

A session holds the user of the other benchmarks, sealed. Sessions end at times that are spread over a day. `idle` is a sweep that
finds nothing to remove; `due` is one that removes a minute's worth, by session. Redis and MongoDB sweep by themselves.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import uvloop

from gaman.session import Driver, Record
from gaman_session import _sealing
from gaman_session.drivers import find_driver
from tests import servers

SIZES = (10_000, 100_000, 1_000_000)
DAY = 86_400
VALUE = 95
"""Bytes: as many as the user has, sealed."""


async def memory_of_process(driver: Driver, folder: str) -> int:
    status = await asyncio.to_thread(Path("/proc/self/statm").read_text)
    return int(status.split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def disk(driver: Driver, folder: str) -> int:
    return sum(
        os.lstat(os.path.join(where, name)).st_blocks * 512
        for where, folders, files in os.walk(folder)
        for name in (*folders, *files)
    )


async def memory_of_redis(driver: Any, folder: str) -> int:
    found: int = (await driver._client.info("memory"))["used_memory"]
    return found


async def disk_of_mongodb(driver: Any, folder: str) -> int:
    database = driver._client["gaman_growth"]
    await driver._client.admin.command("fsync")
    found = await database.command("collStats", "sessions")
    return int(found["storageSize"] + found["totalIndexSize"])


def make(kind: str, folder: str) -> Driver:
    """Return a driver of that kind on a new store."""
    options: dict[str, Callable[[], dict[str, Any]]] = {
        "memory": lambda: {"max_sessions": 2 * SIZES[-1]},
        "sql": lambda: {"file": f"{folder}/sessions.db"},
        "file": lambda: {"dir": f"{folder}/sessions"},
        "redis": lambda: {"url": servers.RedisServer().__enter__().url},
        "mongodb": lambda: {"uri": servers.MongoServer().__enter__().uri, "db_name": "gaman_growth"},
    }
    return find_driver(kind)(**options[kind]())


STORES: dict[str, Callable[[Any, str], Awaitable[int]]] = {
    "memory": memory_of_process,
    "sql": disk,
    "file": disk,
    "redis": memory_of_redis,
    "mongodb": disk_of_mongodb,
}
"""For each driver, how to find out how many bytes its sessions take."""


async def fill(driver: Driver, count: int, now: float) -> None:
    """Begin so many sessions, whose ends are spread over a day from *now*."""

    async def begin(numbers: range) -> None:
        for number in numbers:
            deadline = now + 1 + DAY * number / count
            record = Record({"user": os.urandom(VALUE)}, now, deadline, deadline)
            await driver.create(_sealing.handle(_sealing.new_id()), record)

    await asyncio.gather(*(begin(range(start, count, 256)) for start in range(256)))


async def sweep(driver: Driver, now: float) -> tuple[int, float]:
    """Remove what is over at *now*; return how much that was, and the seconds."""
    began, removed = time.perf_counter(), 0
    while batch := await driver.purge(now=now, limit=1000):
        removed += batch
    return removed, time.perf_counter() - began


async def measure(kind: str, count: int) -> None:
    folder = tempfile.mkdtemp()
    driver, size_of = make(kind, folder), STORES[kind]
    await driver.open()
    try:
        now, empty = time.time(), await size_of(driver, folder)
        # Filling is not what is measured, and the disk would take most of an hour for it.
        with patch("os.fsync"):
            await fill(driver, count, now)
        size = (await size_of(driver, folder) - empty) / count
        line = f"{kind:10}{count:>12,}{size:>14,.0f}"
        _, idle = await sweep(driver, now)
        removed, due = await sweep(driver, now + 61)
        if removed:
            line += f"{idle * 1e3:>12.2f}{due / removed * 1e6:>16.0f}"
        print(line, flush=True)
    finally:
        await driver.close()
        shutil.rmtree(folder)


def main(names: Sequence[str] = ()) -> None:
    print(f"{'store':10}{'sessions':>12}{'bytes each':>14}{'idle, ms':>12}{'due, us each':>16}")
    for kind in STORES:
        if not names or kind in names:
            for size in SIZES:
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    runner.run(measure(kind, size))
