"""The memory of sessions: bytes per session, up to a million of them, and the growth of a process over a million requests.

Each figure comes from a process of its own: python -m benchmarks.questions.memory sessions SERVICE COUNT, or requests COUNT.
"""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
from collections.abc import AsyncGenerator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle
from pathlib import Path
from typing import Any, Final

import uvloop

from benchmarks import places
from benchmarks.harness import Absent, Case, Contender, Goal, Missing, Plan, Question, Sample, contenders
from benchmarks.questions.growth import bytes_each, resident
from benchmarks.report.results import Kind
from benchmarks.rivals.bare import USER, encode
from benchmarks.rivals.called import CalledGaman
from benchmarks.rivals.peer_stores import Litestar, Service, Starsessions

VALUES: Final = len(encode(USER))
"""Bytes of a session's values."""
LIMIT: Final = f"its {VALUES} bytes of values and 1.5 KB"
SERVICES: Final[Mapping[str, Callable[[str, str], Service]]] = {
    "gaman": partial(CalledGaman, max_sessions=2_000_000),
    "starsessions": Starsessions,
    "Litestar": Litestar,
}
SAMPLES: Final = 8
"""Samples of the memory in each tenth of the requests."""
TENTHS: Final = (1, 2, 5, 10)
"""The tenths that are shown."""


async def count_sessions(service: Service, count: int) -> int:
    """Return the bytes by which this process grows during *count* logins."""
    gc.collect()
    before = resident()
    for _ in range(count):
        await service.serve("write", None)
    gc.collect()
    return resident() - before


async def count_requests(service: Service, count: int) -> list[int]:
    """Return samples of this process's memory during *count* requests that read and write a thousand sessions."""
    keys = [(await service.serve("write", None))[0] for _ in range(1000)]
    found: list[int] = []
    operations = cycle(("load", "write", "read-write", "update"))
    for number in range(1, count + 1):
        await service.serve(next(operations), keys[number % 997])
        if number % (count // 10 // SAMPLES) == 0:
            found.append(resident())
    return found


def run_apart(*arguments: str) -> Any:
    """Return the output of this program in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.questions.memory", *arguments]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    if "ModuleNotFoundError" in done.stderr:
        raise Absent(done.stderr.strip().splitlines()[-1])
    assert not done.returncode, done.stderr
    return json.loads(done.stdout)


def sessions_of(name: str, count: int) -> Sample:
    grown: int = run_apart("sessions", name, str(count))
    return Sample(grown / count, {"all, MB": grown / 1e6})


LIMITED: Final = Contender(name=LIMIT, measure=lambda: VALUES + 1500, kind="baseline")
IN_LIMIT: Final = Goal(sense="at most", limit=1, against=LIMIT)


def of_services(names: Iterable[str], count: int) -> Sequence[Contender | Missing]:
    found: list[Contender | Missing] = [LIMITED]
    for name in names:
        try:
            of_package = version(name.lower())
        except PackageNotFoundError:
            found.append(Missing(name, f"not installed: {name.lower()}"))
            continue
        kind: Kind = "ours" if name == "gaman" else "peer"
        found.append(Contender(name=name, measure=partial(sessions_of, name, count), kind=kind, version=of_package))
    return found


def of_stores(count: int) -> Sequence[Contender | Missing]:
    return [
        LIMITED,
        *(Contender(name=f"gaman, {kind}", measure=partial(bytes_each, kind, count), kind="ours") for kind in places.STORES),
    ]


def of_sizes(sizes: Sequence[int]) -> Sequence[Contender | Missing]:
    return [
        contender
        for size in sizes
        for contender in (
            Contender(name=LIMIT, measure=lambda: VALUES + 1500, kind="baseline", at=size),
            Contender(name="gaman", measure=partial(sessions_of, "gaman", size), kind="ours", at=size, version=version("gaman")),
        )
    ]


@asynccontextmanager
async def over_requests(count: int) -> AsyncGenerator[Sequence[Contender | Missing]]:
    """Let a process serve *count* requests, and show its memory in some tenths of them."""
    found: list[int] = run_apart("requests", str(count))
    tenths = [(each, cycle(size / 1e6 for size in found[(each - 1) * SAMPLES : each * SAMPLES])) for each in TENTHS]
    yield [
        Contender(name="gaman", measure=partial(next, sizes), kind="ours", at=each * count // 10, version=version("gaman"))
        for each, sizes in tenths
    ]


def cases(plan: Plan) -> Sequence[Case]:
    requests = 50_000 if plan.quick else 1_000_000
    names = ("gaman",) if plan.quick else tuple(SERVICES)
    bytes_a_session = partial(Case, unit="bytes a session", baseline=LIMIT)
    # All cases but the second spend their time on the setup.
    found = [
        Case(
            name=f"a process that serves {requests:,} requests",
            unit="MB of memory",
            baseline="gaman",
            enter=lambda: over_requests(requests),
            axis="requests",
            rounds=SAMPLES,
            goals=[Goal(sense="at most", limit=1.02, against="gaman", at=requests, against_at=requests // 10)],
            share=3,
        ),
        bytes_a_session(
            name="in memory", enter=lambda: contenders(*of_services(names, 20_000)), goals=[IN_LIMIT], rounds=7, share=4
        ),
    ]
    if not plan.quick:
        sizes, stores = contenders(*of_sizes((10_000, 100_000, 1_000_000))), contenders(*of_stores(10_000))
        found += [
            bytes_a_session(name="in memory, up to a million", enter=lambda: sizes, axis="sessions", rounds=1, share=3),
            bytes_a_session(name="in each store, of 10,000 sessions", enter=lambda: stores, rounds=1),
        ]
    return found


QUESTION = Question(name="memory", title="How much memory do sessions take?", cases=cases, seconds=90, quick_seconds=6)


async def _main(what: str, *arguments: str) -> None:
    name, count = arguments if what == "sessions" else ("gaman", *arguments)
    service = SERVICES[name]("memory", "")
    await service.open()
    found: Any = await (count_sessions if what == "sessions" else count_requests)(service, int(count))
    print(json.dumps(found))


if __name__ == "__main__":
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_main(*sys.argv[1:]))
