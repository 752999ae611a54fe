"""The cost of importing a framework, from the start of Python to its end, each time in a new process."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final, NamedTuple

from benchmarks.harness import Case, Contender, Goal, Missing, Plan, Question, Sample, contenders
from benchmarks.report.results import Kind

BASELINE: Final = "Starlette"
SESSION: Final = "gaman.session"


class Import(NamedTuple):
    """A contender: the *statement* that an application begins with, and the package that has it."""

    name: str
    package: str
    statement: str
    kind: Kind = "peer"


IMPORTS: Final = (
    Import(BASELINE, "starlette", "import starlette.applications", "baseline"),
    Import("gaman", "gaman", "import gaman", "ours"),
    Import(SESSION, "gaman", "from gaman.session import session", "ours"),
    Import("BlackSheep", "blacksheep", "import blacksheep"),
    Import("Falcon", "falcon", "import falcon.asgi"),
    Import("FastAPI", "fastapi", "import fastapi"),
    Import("Litestar", "litestar", "import litestar"),
    Import("Quart", "quart", "import quart"),
)


def run(code: str) -> Sample:
    """Return the milliseconds of CPU that a new Python takes to run *code*."""
    # Otherwise each run would compile the source again. The first round writes the bytecode, and only warms up.
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before, began = _seconds_of_children(), time.perf_counter()
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], env=environment, check=True)
    return Sample((_seconds_of_children() - before) * 1e3, {"passed, ms": (time.perf_counter() - began) * 1e3})


def _seconds_of_children() -> float:
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def importing(imports: Sequence[Import], first: str = "") -> Sequence[Contender | Missing]:
    """Return the contenders. Each process runs the code *first* before its import."""
    found: list[Contender | Missing] = []
    for each in imports:
        try:
            of_package = version(each.package)
        except PackageNotFoundError:
            found.append(Missing(each.name, f"not installed: {each.package}"))
            continue
        measure = partial(run, first + each.statement)
        found.append(Contender(name=each.name, measure=measure, kind=each.kind, version=of_package))
    return found


def cases(plan: Plan) -> Sequence[Case]:
    imports = [each for each in IMPORTS if each.kind != "peer" or not plan.quick]
    of_process = partial(Case, unit="ms of CPU a process", baseline=BASELINE)
    alone = of_process(
        name="in a new process",
        enter=lambda: contenders(*importing(imports)),
        goals=[Goal(sense="at most", limit=1.1, of=SESSION, against=BASELINE)],
        share=3,
    )
    # uvicorn loads asyncio, among others, before the application. Starlette loads it in any case; gaman does when it serves.
    served = of_process(name="after uvicorn", enter=lambda: contenders(*importing(imports, "import uvicorn; ")))
    return [alone] if plan.quick else [alone, served]


QUESTION = Question(name="imports", title="How long does an import take?", cases=cases, seconds=40, quick_seconds=5)
