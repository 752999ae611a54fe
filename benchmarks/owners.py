"""What it costs to list and to end a thousand sessions of one owner, and to log in, while the store grows to a million sessions.

All that the store holds beside them is nobody's. `tag` is a login: a new session that is tied to an owner, the median of a hundred.
`list` and `end_all` are of a thousand sessions, in milliseconds, each the median of a few; memory, which waits for nothing, also
shows what Python takes.
"""

from __future__ import annotations

import asyncio
import shutil
import statistics
import tempfile
import time
from collections.abc import Awaitable, Sequence
from typing import cast
from unittest.mock import patch

import uvloop

from benchmarks.growth import SIZES, STORES, fill, make
from gaman.session import OwnerDriver, Record, Tag
from gaman_session import _sealing

OWNED = 1000
LOGINS = 100
ROUNDS = 3


async def login(driver: OwnerDriver, owner: str) -> None:
    now = time.time()
    record = Record({"user": bytes(95)}, now, now + 86_400, now + 86_400, tag=Tag(owner, bytes(60), now))
    await driver.create(_sealing.handle(_sealing.new_id()), record)


async def timed(work: Awaitable[object]) -> float:
    """Return how many milliseconds *work* takes."""
    began = time.perf_counter()
    await work
    return (time.perf_counter() - began) * 1e3


async def measure(driver: OwnerDriver) -> tuple[float, float, float]:
    """Return the milliseconds of a tag, of a list and of an end of all, each the median of several."""
    listings, endings = list[float](), list[float]()
    for _ in range(ROUNDS):
        with patch("os.fsync"):
            for _ in range(OWNED):
                await login(driver, "owner")
        listings += [await timed(driver.owned("owner", now=time.time())) for _ in range(3)]
        now = time.time()
        endings.append(await timed(driver.end_owned("owner", keep=(), now=now, until=now)))
    tags = [await timed(login(driver, f"user:{number}")) for number in range(LOGINS)]
    return statistics.median(tags), statistics.median(listings), statistics.median(endings)


async def fill_and_measure(kind: str, count: int) -> None:
    folder = tempfile.mkdtemp()
    driver = cast("OwnerDriver", make(kind, folder))
    await driver.open()
    try:
        with patch("os.fsync"):
            await fill(driver, count, time.time())
        tag, listing, ending = await measure(driver)
        print(f"{kind:10}{count:>12,}{tag:>12.2f}{listing:>12.1f}{ending:>14.1f}", flush=True)
    finally:
        await driver.close()
        shutil.rmtree(folder)


def main(names: Sequence[str] = (), sizes: Sequence[int] = SIZES) -> None:
    print(f"{'store':10}{'sessions':>12}{'tag, ms':>12}{'list, ms':>12}{'end_all, ms':>14}")
    for kind in STORES:
        if not names or kind in names:
            for size in sizes:
                with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
                    runner.run(fill_and_measure(kind, size))
