"""The harness: it measures the cases of a question in rounds, in which the contenders take turns.

The module of a question names its cases and their contenders, and gives the result that all of them must return. A case has a time
budget: it gets as many rounds as fit. Each round measures every contender once, in a new random order.
"""

from __future__ import annotations

import gc
import inspect
import random
import sys
import time
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from timeit import Timer
from typing import Any, Literal, NamedTuple

from benchmarks.report.figures import MIN_ROUNDS
from benchmarks.report.results import AbsentResult, Better, CaseResult, ContenderResult, GoalResult, Kind, QuestionResult

HERE = Path(__file__).parent
SLICE = 0.002
"""Seconds of a turn, if the harness chooses the number of calls. It is short so that a disturbance affects all contenders."""
GRACE = 0.5
"""Seconds beyond its budget that a case may take, until it has enough rounds for an interval."""
FAILED = "failed"
"""The reason begins with this if a case failed."""


class Sample(NamedTuple):
    """The figure of one turn, in the case's unit, and further figures, such as {"p99, ms": 1.2}."""

    figure: float
    extra: Mapping[str, float] = {}


Figure = float | Sample
Measure = Callable[[], Figure | Awaitable[Figure]]
"""One turn of a contender."""


class Absent(Exception):
    """A case can't be measured on this machine: its row shows the reason."""


def caller(*, module: str = __name__) -> str:
    """Return the line outside the harness that is running, in the form questions/memory.py:12."""
    frame = sys._getframe(1)
    # The code of a dataclass's __init__ comes from a string.
    while frame.f_back is not None and (frame.f_globals.get("__name__") == module or frame.f_code.co_filename == "<string>"):
        frame = frame.f_back
    return _place(frame.f_code.co_filename, frame.f_lineno)


def line_of(function: Any) -> str:
    """Return the line that defines *function*, in the form questions/memory.py:12."""
    code = inspect.unwrap(function).__code__
    return _place(code.co_filename, code.co_firstlineno)


def _place(file: str, line: int) -> str:
    # Tables have no room for the full path.
    path = Path(file)
    folder = next((each for each in (HERE, HERE.parent) if path.is_relative_to(each)), path.parent)
    return f"{path.relative_to(folder)}:{line}"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One participant of a case: *measure* takes one turn, and *result* must return the same as the baseline's.

    *at* is its place on the case's axis. *kind* decides how charts show it: "ours" stands out, "baseline" is the dashed line.
    *session* is one of `SESSIONS`, or empty if the case has no session.
    """

    name: str
    measure: Measure
    result: Callable[[], Any] | None = None
    kind: Kind = "peer"
    at: float | None = None
    version: str | None = None
    session: str = ""
    source: str = field(default_factory=caller)


@dataclass(frozen=True)
class Missing:
    """A contender that can't take part: its row shows the reason."""

    name: str
    reason: str
    at: float | None = None


Entered = AbstractAsyncContextManager[Sequence[Contender | Missing]]
"""The type that `Case.enter` returns."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A limit on the ratio of gaman to *against*.

    "at most" limits the ratio of their costs, be it time or the inverse of a rate. "at least" limits how many times better gaman
    is. *at* and *against_at* choose points on the case's axis.
    """

    sense: Literal["at most", "at least"]
    limit: float
    against: str
    of: str = "gaman"
    at: float | None = None
    against_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """One task that all contenders perform; *enter* sets them up and tears them down.

    *baseline* is the name of the contender that the others are divided by. *axis* names the quantity that grows, if contenders have
    an *at*. *rounds* is an upper limit, for tasks that are slow or exact. *share* is the case's share of the question's time.
    *summary* is the heading of its column on the summary page, empty if it has none.
    """

    name: str
    enter: Callable[[], Entered]
    baseline: str
    unit: str = "µs of CPU a call"
    better: Better = "lower"
    goals: Sequence[Goal] = ()
    axis: str | None = None
    rounds: int = 1000
    share: float = 1.0
    summary: str = ""
    source: str = field(default_factory=caller)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a run measures: *against* names the peers that take part, None for all; *scale* multiplies the time budgets."""

    quick: bool = False
    against: frozenset[str] | None = None
    scale: float = 1.0

    def invites(self, peer: str) -> bool:
        """Return whether the peer takes part; case doesn't matter."""
        return self.against is None or peer.lower() in {name.strip().lower() for name in self.against}


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question and the cases that answer it; *seconds* limits all of it, including the setup.

    *notes* are sentences that a reader of its charts needs.
    """

    name: str
    title: str
    cases: Callable[[Plan], Sequence[Case]]
    seconds: float
    quick_seconds: float
    notes: Sequence[str] = ()
    source: str = field(default_factory=caller)

    def budget(self, plan: Plan) -> float:
        return (self.quick_seconds if plan.quick else self.seconds) * plan.scale


def contenders(*found: Contender | Missing) -> Entered:
    """Return the value of `Case.enter` for contenders that need no setup."""

    @asynccontextmanager
    async def enter() -> AsyncGenerator[Sequence[Contender | Missing]]:
        yield found

    return enter()


def timed(turn: Callable[[int], float | Awaitable[float]]) -> Measure:
    """Return a measure of microseconds per call: *turn* takes a number of calls, and returns the seconds that they took.

    The first turn finds the number of calls that fill a slice.
    """
    calls = 0

    async def measure() -> float:
        nonlocal calls
        if not calls:
            calls = 1
            seconds: float = 0
            while seconds < SLICE / 2:
                calls *= 2
                # The faster of two turns, because one may be disturbed.
                seconds = min(await _resolved(turn(calls)), await _resolved(turn(calls)))
            calls = max(1, round(calls * SLICE / seconds))
        seconds = await _resolved(turn(calls))
        return seconds / calls * 1e6

    return measure


def timed_code(code: str, names: Mapping[str, Any]) -> Measure:
    """Return a measure of *code* with *names* as its globals: microseconds of CPU."""
    # timeit switches the garbage collector off.
    return timed(Timer(code, "gc.enable()", time.process_time, {**names, "gc": gc}).timeit)


def timed_call(call: Callable[[Any], object], argument: Any) -> Measure:
    """Return a measure of `call(argument)`: microseconds of CPU."""
    return timed_code("call(argument)", {"call": call, "argument": argument})


async def _resolved(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


async def run(
    question: Question, plan: Plan, progress: Callable[[str, float], None], clock: Callable[[], float] = time.monotonic
) -> QuestionResult:
    """Measure the cases of *question*; *progress* is called with the name of the case and the seconds that have passed."""
    began, cases, found = clock(), list(question.cases(plan)), list[CaseResult]()
    ends = began + question.budget(plan)
    shares = sum(case.share for case in cases)
    for case in cases:
        now = clock()
        until = now + (ends - now) * case.share / shares
        shares -= case.share
        try:
            found.append(await run_case(case, plan, until, lambda name: progress(name, clock() - began), clock))
        except Exception as error:
            # The figures of the other cases are kept.
            traceback.print_exc()
            found.append(_describe(case, AbsentResult("all contenders", f"{FAILED}: {error!r}")))
    return QuestionResult(question.name, question.title, question.source, clock() - began, found, list(question.notes))


async def run_case(
    case: Case, plan: Plan, until: float, progress: Callable[[str], None], clock: Callable[[], float] = time.monotonic
) -> CaseResult:
    """Measure *case* in rounds until the *clock* reaches *until*; at least one round, and `MIN_ROUNDS` if they are short."""
    progress(case.name)
    result = _describe(case)
    try:
        async with case.enter() as entered:
            for each in entered:
                if isinstance(each, Missing):
                    result.absent.append(AbsentResult(each.name, each.reason, each.at))
            present = [each for each in entered if isinstance(each, Contender) and _takes_part(each, plan)]
            await check(case, present)
            samples = await _rounds(case, present, until, progress, clock)
    except Absent as absent:
        result.absent.append(AbsentResult("all contenders", str(absent)))
        return result
    for each in present:
        turns = samples[each.name, each.at]
        extra = {name: [turn.extra[name] for turn in turns] for name in turns[0].extra}
        figures = [turn.figure for turn in turns]
        result.contenders.append(
            ContenderResult(each.name, each.kind, each.source, figures, each.version, each.at, extra, each.session)
        )
    return result


def _describe(case: Case, *absent: AbsentResult) -> CaseResult:
    goals = [GoalResult(goal.sense, goal.limit, goal.of, goal.against, goal.at, goal.against_at) for goal in case.goals]
    described = (case.name, case.unit, case.better, case.baseline, case.source, case.axis, goals)
    return CaseResult(*described, absent=list(absent), summary=case.summary)


def _takes_part(contender: Contender, plan: Plan) -> bool:
    return contender.kind != "peer" or plan.invites(contender.name)


async def check(case: Case, present: Sequence[Contender]) -> None:
    """Raise AssertionError if a contender's result differs from the baseline's: its figures would be those of another task."""
    results = [(each, await _resolved(each.result())) for each in present if each.result is not None]
    for each, result in results:
        # If the baseline has no result, the first contender's counts.
        baselines = (found for other, found in results if other.name == case.baseline and other.at in (None, each.at))
        expected = next(baselines, results[0][1])
        if result != expected:
            raise AssertionError(f"{case.name}: {each.name} returns {result!r}, and {case.baseline} {expected!r}")


async def _rounds(
    case: Case, present: Sequence[Contender], until: float, progress: Callable[[str], None], clock: Callable[[], float]
) -> dict[tuple[str, float | None], list[Sample]]:
    samples: dict[tuple[str, float | None], list[Sample]] = {(each.name, each.at): [] for each in present}
    # One turn each to warm up, unless the case has only one round.
    if case.rounds > 1:
        for each in present:
            await _turn(each)
    order, shuffle = list(present), random.Random(0).shuffle
    gc.collect()
    gc.freeze()
    latest = clock() + GRACE
    try:
        for number in range(1, case.rounds + 1):
            began = clock()
            shuffle(order)
            for each in order:
                samples[each.name, each.at].append(await _turn(each))
            progress(case.name)
            now = clock()
            # The setup may have taken all of the budget.
            if now + (now - began) > (until if number >= MIN_ROUNDS else max(until, latest)):
                break
    finally:
        gc.unfreeze()
    return samples


async def _turn(contender: Contender) -> Sample:
    figure = await _resolved(contender.measure())
    return figure if isinstance(figure, Sample) else Sample(figure)
