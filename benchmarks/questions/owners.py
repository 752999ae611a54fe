"""The cost of a login with set_owner(), and of listing and ending an owner's thousand sessions, while the store grows to a million.

The other sessions of the store have no owner. The memory driver waits for no store, so its figures show the cost of Python.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from secrets import token_hex
from unittest.mock import patch

from benchmarks.harness import Case, Contender, Missing, Plan, Question, Sample
from benchmarks.questions.growth import DAY, SIZES, STORES, fill, make_record, new_id, opened
from gaman.session import OwnerDriver

OWNED = 1000


async def log_in(driver: OwnerDriver, kind: str, owner: str) -> None:
    now = time.time()
    await driver.create(new_id(), make_record(kind, now, now + DAY, owner))


async def timed(work: Awaitable[object]) -> float:
    """Return the milliseconds that *work* takes."""
    began = time.perf_counter()
    await work
    return (time.perf_counter() - began) * 1e3


async def measure(driver: OwnerDriver, kind: str) -> Sample:
    """Return the milliseconds of a login, and of listing and ending the sessions of a new owner."""
    owner = token_hex()
    with patch("os.fsync"):
        for _ in range(OWNED):
            await log_in(driver, kind, owner)
    login = await timed(log_in(driver, kind, token_hex()))
    listing = await timed(driver.owned(owner, now=time.time()))
    now = time.time()
    ending = await timed(driver.end_owned(owner, keep=(), now=now))
    return Sample(login, {f"list of {OWNED:,}, ms": listing, f"end of {OWNED:,}, ms": ending})


@asynccontextmanager
async def enter(kind: str, sizes: Sequence[int]) -> AsyncGenerator[Sequence[Contender | Missing]]:
    """Fill a store for each of *sizes*."""
    async with AsyncExitStack() as stack:
        found: list[Contender | Missing] = []
        for size in sizes:
            driver, _ = await stack.enter_async_context(opened(kind))
            await fill(driver, kind, size, time.time())
            found.append(Contender(name="gaman", measure=partial(measure, driver, kind), kind="ours", at=size))
        yield found


def cases(plan: Plan) -> Sequence[Case]:
    return [
        Case(
            name=f"{kind}, a login with set_owner()",
            enter=partial(enter, kind, SIZES),
            baseline="gaman",
            unit="ms",
            axis="sessions",
            rounds=20,
        )
        for kind in STORES
    ]


QUESTION = Question(
    name="owners",
    title="What do set_owner(), list and end_all cost, while the store grows?",
    cases=cases,
    seconds=3600,
    quick_seconds=3600,
)
