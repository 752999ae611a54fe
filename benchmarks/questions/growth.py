"""The size of a session and the cost of calls in each store, while the store grows to a million sessions.

A session is what a login stores: one sealed value, and with owners a sealed note. Each owner has two sessions. Deadlines are spread
over a day that begins when the store is filled. An idle sweep finds no expired session; a due sweep removes those of one minute.
Redis and MongoDB remove sessions by themselves.

A process of its own fills each store: python -m benchmarks.questions.growth KIND COUNT [owners].
"""

from __future__ import annotations

import asyncio
import gc
import os
import statistics
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from secrets import token_hex
from typing import Any, Final
from unittest.mock import patch

import msgspec
import uvloop

from benchmarks.harness import Case, Contender, Missing, Plan, Question, Sample, contenders
from benchmarks.places import make_driver, place_for
from gaman.session import OwnerDriver, Ownership, Record
from gaman_session import _sealing
from gaman_session.drivers._mongodb_documents import to_document

SIZES: Final = (10_000, 100_000, 1_000_000)
HOUR: Final = 3_600
DAY: Final = 86_400
PLAIN: Final = {"value": 40, "seal": 0, "note": 35}
SEALED: Final = {"value": 73, "seal": 21, "note": 68}
"""Bytes of what a login of the user stores, as the memory driver gets them and as the others do."""
PER_OWNER: Final = 2
"""Sessions of an owner."""
CALLS: Final = 200
"""Calls whose median is taken."""


class Grown(msgspec.Struct):
    """The bytes of a session, and the microseconds of calls; None for what a store or a session doesn't have."""

    bytes_each: float
    read: float
    login: float
    end_all: float | None
    count: float
    idle_sweep: float | None
    due_sweep_each: float | None


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    return int(Path("/proc/self/statm").read_bytes().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def memory_of_process(driver: OwnerDriver, place: str) -> int:
    gc.collect()
    return resident()


async def disk(driver: OwnerDriver, place: str) -> int:
    return sum(
        os.lstat(os.path.join(where, name)).st_blocks * 512
        for where, folders, files in os.walk(place)
        for name in (*folders, *files)
    )


async def memory_of_redis(driver: Any, place: str) -> int:
    """Return the memory of all masters without the buffers of connections, which grow while a store is filled."""
    found = [await driver._calls.ask(node, "INFO", "memory") for node in await driver._calls.masters()]
    return sum(each["used_memory"] - each["mem_clients_normal"] for each in found)


async def disk_of_mongodb(driver: Any, place: str) -> int:
    return sum(await disks_of_mongodb(driver))


async def disks_of_mongodb(driver: Any) -> tuple[int, int]:
    """Return the bytes of the documents, and those of the indexes."""
    await driver._client.admin.command("fsync")
    found = await driver._sessions.database.command("collStats", driver._sessions.name)
    return int(found["storageSize"]), int(found["totalIndexSize"])


STORES: Final[dict[str, Callable[[Any, str], Awaitable[int]]]] = {
    "memory": memory_of_process,
    "sql": disk,
    "file": disk,
    "redis": memory_of_redis,
    "redis, compact": memory_of_redis,
    "redis cluster": memory_of_redis,
    "redis cluster, compact": memory_of_redis,
    "mongodb": disk_of_mongodb,
}
"""For each store, the function that returns the bytes of its sessions."""


@asynccontextmanager
async def opened(kind: str) -> AsyncGenerator[tuple[Any, str]]:
    """Open a driver of *kind* with a new store; yield it and the store's place."""
    with place_for(kind) as place:
        # Nothing times out, however busy this machine is. The store's keys or collection are its own.
        options: dict[str, Any] = {"max_sessions": 2 * SIZES[-1]} if kind == "memory" else {"timeout": 600}
        if kind.startswith("redis"):
            options["prefix"] = token_hex(3)
        elif kind == "mongodb":
            options["collection"] = token_hex(4)
        driver: OwnerDriver = make_driver(kind, place, **options)
        await driver.open()
        try:
            yield driver, place
        finally:
            await driver.close()


def new_id() -> str:
    return _sealing.id_of(_sealing.new_raw_id())


def make_record(kind: str, now: float, deadline: float, owner: str | None) -> Record:
    """Return what a login stores in a store of *kind*."""
    sizes = PLAIN if kind == "memory" else SEALED
    now, deadline = round(now, 3), round(deadline, 3)
    # A sealed value begins with the version of the seal, which no JSON does.
    value, seal, note = (b"\x01" + os.urandom(size - 1) if size else b"" for size in sizes.values())
    ownership = None if owner is None else Ownership(owner, note, now)
    return Record({"user": value}, now, deadline, deadline, ownership=ownership, seal=seal)


def owner_name(kind: str, number: int) -> str:
    """Return the name of an owner in a store of *kind*."""
    # Elsewhere it is a hash of 64 hexadecimal digits.
    return f"user:{number}" if kind == "memory" else _sealing.id_of(number.to_bytes(32))


async def fill(driver: Any, kind: str, count: int, now: float, *, with_owners: bool = False) -> None:
    """Create *count* sessions, whose deadlines are spread over a day that begins an hour after *now*."""

    def make(number: int) -> Record:
        owner = owner_name(kind, number // PER_OWNER) if with_owners else None
        return make_record(kind, now, now + HOUR + DAY * number / count, owner)

    async def begin(numbers: range) -> None:
        for number in numbers:
            await driver.create(new_id(), make(number))

    if kind == "mongodb":
        # A million insertions with one round trip each would take most of an hour.
        for start in range(0, count, 1000):
            numbers = range(start, min(start + 1000, count))
            await driver._sessions.insert_many([{"_id": new_id(), **to_document(make(number))} for number in numbers])
        return
    # The filling isn't measured, and with fsync it would take most of an hour. Files share a transaction for each of 256 folders.
    at_once = 5_000 if kind == "file" else 256
    with patch("os.fsync", int):
        await asyncio.gather(*(begin(range(start, count, at_once)) for start in range(at_once)))
    os.sync()


async def sweep(driver: OwnerDriver, now: float) -> tuple[int, float]:
    """Remove the sessions that have expired at *now*; return their number, and the microseconds."""
    began, removed = time.perf_counter(), 0
    while batch := await driver.purge(now=now, limit=1000):
        removed += batch
    return removed, (time.perf_counter() - began) * 1e6


async def timed(work: Awaitable[object]) -> float:
    """Return the microseconds that *work* takes."""
    began = time.perf_counter()
    await work
    return (time.perf_counter() - began) * 1e6


async def time_calls(driver: OwnerDriver, kind: str, now: float, with_owners: bool) -> tuple[float, float, float | None]:
    """Return the medians of the microseconds of a read, a login, and the end of an owner's sessions, one call at a time."""
    reads, logins, ends = list[float](), list[float](), list[float]()
    for number in range(CALLS):
        owner = owner_name(kind, 2**64 + number) if with_owners else None
        for _ in range(PER_OWNER):
            id = new_id()
            logins.append(await timed(driver.create(id, make_record(kind, now, now + DAY, owner))))
            reads.append(await timed(driver.load(id, now=now)))
        if owner is not None:
            ends.append(await timed(driver.end_owned(owner, keep=(), now=now)))
    return statistics.median(reads), statistics.median(logins), statistics.median(ends) if ends else None


async def fill_and_weigh(driver: OwnerDriver, place: str, kind: str, count: int, now: float, *, with_owners: bool = False) -> float:
    """Fill a new store, and return the bytes that each session takes."""
    empty = await STORES[kind](driver, place)
    await fill(driver, kind, count, now, with_owners=with_owners)
    return (await STORES[kind](driver, place) - empty) / count


async def grow(kind: str, count: int, *, with_owners: bool = False) -> Grown:
    """Fill a new store and measure it."""
    async with opened(kind) as (driver, place):
        now = time.time()
        size = await fill_and_weigh(driver, place, kind, count, now, with_owners=with_owners)
        counted = min([await timed(driver.count(now=now)) for _ in range(3)])
        assert await driver.count(now=now) == count
        _, idle = await sweep(driver, now)
        removed, due = await sweep(driver, now + HOUR + 60)
        read, login, end_all = await time_calls(driver, kind, now, with_owners)
        return Grown(size, read, login, end_all, counted, None if kind == "mongodb" else idle, due / removed if removed else None)


def grow_apart(kind: str, count: int, *, with_owners: bool = False) -> Grown:
    """Call grow() in a new process, whose memory no other store has used."""
    command = [sys.executable, "-m", "benchmarks.questions.growth", kind, str(count), *(["owners"] if with_owners else [])]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return msgspec.json.decode(done.stdout, type=Grown)


def bytes_each(kind: str, count: int, *, with_owners: bool = False) -> Sample:
    found = grow_apart(kind, count, with_owners=with_owners)
    calls = {
        "read, µs": found.read,
        "login, µs": found.login,
        f"end_all of {PER_OWNER}, µs": found.end_all,
        "count, µs": found.count,
        "idle sweep, µs": found.idle_sweep,
        "due sweep, µs a session": found.due_sweep_each,
    }
    return Sample(found.bytes_each, {name: value for name, value in calls.items() if value is not None})


def _contenders(kind: str, *, with_owners: bool) -> Sequence[Contender | Missing]:
    return [
        Contender(name="gaman", measure=partial(bytes_each, kind, size, with_owners=with_owners), kind="ours", at=size)
        for size in SIZES
    ]


def cases(plan: Plan) -> Sequence[Case]:
    return [
        Case(
            name=f"{kind}, with owners" if with_owners else kind,
            enter=partial(contenders, *_contenders(kind, with_owners=with_owners)),
            baseline="gaman",
            unit="bytes a session",
            axis="sessions",
            rounds=1,
        )
        for kind in STORES
        for with_owners in (False, True)
    ]


QUESTION = Question(
    name="growth",
    title="What does a session take in each store, and what do calls cost, while the store grows?",
    cases=cases,
    seconds=3600,
    quick_seconds=3600,
)


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        grown = runner.run(grow(sys.argv[1], int(sys.argv[2]), with_owners=sys.argv[3:] == ["owners"]))
        print(msgspec.json.encode(grown).decode())
