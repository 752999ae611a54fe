"""The harness: a question's cases, each measured in rounds in which its contenders take turns.

A module of a question says what is asked, who contends, and that all give the same answer; the rest is here. A case is given
seconds, not a count: it gets as many rounds as fit, and each round takes every contender once, in an order that is shuffled anew.
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

from benchmarks.report.results import AbsentResult, Better, CaseResult, ContenderResult, GoalResult, Kind, QuestionResult

HERE = Path(__file__).parent
SLICE = 0.002
"""Seconds of one contender's turn, where the harness chooses how often it calls: short, so that what disturbs one disturbs all."""
FAILED = "failed"
"""What the reason begins with, where a case that should have run did not."""


class Sample(NamedTuple):
    """What one turn found: the figure, in the case's unit, and others that belong to it, such as {"p99, ms": 1.2}."""

    figure: float
    extra: Mapping[str, float] = {}


Figure = float | Sample
Measure = Callable[[], Figure | Awaitable[Figure]]
"""One turn of a contender."""


class Absent(Exception):
    """Raise it where a contender, or a whole case, can't take part: the reason becomes its row."""


def caller(*, module: str = __name__) -> str:
    """Return the line outside the harness that is being run, as benchmarks/file.py:12."""
    frame = sys._getframe(1)
    # The __init__ of a dataclass comes from a string.
    while frame.f_back is not None and (frame.f_globals.get("__name__") == module or frame.f_code.co_filename == "<string>"):
        frame = frame.f_back
    return _place(frame.f_code.co_filename, frame.f_lineno)


def line_of(function: Any) -> str:
    """Return where *function* is defined, as benchmarks/file.py:12."""
    code = inspect.unwrap(function).__code__
    return _place(code.co_filename, code.co_firstlineno)


def _place(file: str, line: int) -> str:
    path = Path(file)
    return f"{path.relative_to(HERE.parent) if path.is_relative_to(HERE.parent) else path.name}:{line}"


@dataclass(frozen=True, kw_only=True)
class Contender:
    """Someone who takes part in a case: *measure* is one turn, and *answer* what is compared with the floor's before the first.

    *at* is the place on the axis of a case that shows growth. *kind* is how it is drawn: "ours" stands out, "floor" is the line.
    """

    name: str
    measure: Measure
    answer: Callable[[], Any] | None = None
    kind: Kind = "peer"
    at: float | None = None
    version: str | None = None
    source: str = field(default_factory=caller)


@dataclass(frozen=True)
class Missing:
    """A contender that can't take part, and why: a row that says so."""

    name: str
    reason: str
    at: float | None = None


Entered = AbstractAsyncContextManager[Sequence[Contender | Missing]]
"""What `Case.enter` gives."""


@dataclass(frozen=True, kw_only=True)
class Goal:
    """What gaman is held to.

    "at most": how many times the cost of *against* it has, be it that it takes longer or does less a second. "at least": how many
    times better it is. *at* and *against_at* choose points of a case that shows growth.
    """

    sense: Literal["at most", "at least"]
    limit: float
    against: str
    of: str = "gaman"
    at: float | None = None
    against_at: float | None = None


@dataclass(frozen=True, kw_only=True)
class Case:
    """One thing that is asked of all contenders; *enter* sets them up, and takes them down.

    *floor* is the name of the contender that the others are divided by. *axis* is what grows, where contenders have an *at*.
    *rounds* is an upper limit, for what is too slow, or too exact, to be asked often. *share* is of the question's time.
    """

    name: str
    enter: Callable[[], Entered]
    floor: str
    unit: str = "µs of CPU a call"
    better: Better = "lower"
    goals: Sequence[Goal] = ()
    axis: str | None = None
    rounds: int = 1000
    share: float = 1.0
    source: str = field(default_factory=caller)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How much there is time for: *against* are the peers that take part, None for all; *scale* is what budgets are cut by."""

    quick: bool = False
    against: frozenset[str] | None = None
    scale: float = 1.0

    def invites(self, peer: str) -> bool:
        """Return whether a peer of that name takes part, in capitals or not."""
        return self.against is None or peer.lower() in {name.strip().lower() for name in self.against}


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question that a person asks, and the cases that answer it; *seconds* is what all of it may take, setting up included."""

    name: str
    title: str
    cases: Callable[[Plan], Sequence[Case]]
    seconds: float
    quick_seconds: float
    source: str = field(default_factory=caller)

    def budget(self, plan: Plan) -> float:
        return (self.quick_seconds if plan.quick else self.seconds) * plan.scale


def contenders(*found: Contender | Missing) -> Entered:
    """Return what `Case.enter` gives, for contenders that need no setting up."""

    @asynccontextmanager
    async def enter() -> AsyncGenerator[Sequence[Contender | Missing]]:
        yield found

    return enter()


def timed(turn: Callable[[int], float | Awaitable[float]]) -> Measure:
    """Return a measure of microseconds a call: *turn* makes so many calls, and returns the seconds that they took.

    How many, is found at the first call: as many as fill a slice.
    """
    calls = 0

    async def measure() -> float:
        nonlocal calls
        if not calls:
            calls = 1
            seconds: float = 0
            while seconds < SLICE / 2:
                calls *= 2
                # Of two, for one may be disturbed.
                seconds = min(await _given(turn(calls)), await _given(turn(calls)))
            calls = max(1, round(calls * SLICE / seconds))
        seconds = await _given(turn(calls))
        return seconds / calls * 1e6

    return measure


def timed_code(code: str, names: Mapping[str, Any]) -> Measure:
    """Return a measure of *code*, which knows those *names*: microseconds of CPU."""
    # timeit would switch the garbage collector off.
    return timed(Timer(code, "gc.enable()", time.process_time, {**names, "gc": gc}).timeit)


def timed_call(call: Callable[[Any], object], argument: Any) -> Measure:
    """Return a measure of `call(argument)`: microseconds of CPU."""
    return timed_code("call(argument)", {"call": call, "argument": argument})


async def _given(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value


async def run(
    question: Question, plan: Plan, progress: Callable[[str, float], None], clock: Callable[[], float] = time.monotonic
) -> QuestionResult:
    """Measure the cases of *question*; *progress* is told what is measured, and how many seconds of the budget have gone."""
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
            # What has been measured for minutes is not lost for it.
            traceback.print_exc()
            found.append(_describe(case, AbsentResult("everybody", f"{FAILED}: {error!r}")))
    return QuestionResult(question.name, question.title, question.source, clock() - began, found)


async def run_case(
    case: Case, plan: Plan, until: float, progress: Callable[[str], None], clock: Callable[[], float] = time.monotonic
) -> CaseResult:
    """Measure *case* in rounds until that time by the *clock*; at least one."""
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
        result.absent.append(AbsentResult("everybody", str(absent)))
        return result
    for each in present:
        turns = samples[each.name, each.at]
        extra = {name: [turn.extra[name] for turn in turns] for name in turns[0].extra}
        figures = [turn.figure for turn in turns]
        result.contenders.append(ContenderResult(each.name, each.kind, each.source, figures, each.version, each.at, extra))
    return result


def _describe(case: Case, *absent: AbsentResult) -> CaseResult:
    goals = [GoalResult(goal.sense, goal.limit, goal.of, goal.against, goal.at, goal.against_at) for goal in case.goals]
    return CaseResult(case.name, case.unit, case.better, case.floor, case.source, case.axis, goals, absent=list(absent))


def _takes_part(contender: Contender, plan: Plan) -> bool:
    return contender.kind != "peer" or plan.invites(contender.name)


async def check(case: Case, present: Sequence[Contender]) -> None:
    """Raise AssertionError where a contender does not give the floor's answer: its figures would be of something else."""
    answers = [(each, await _given(each.answer())) for each in present if each.answer is not None]
    for each, answer in answers:
        # Where the floor has no answer of its own, whoever came first has to be agreed with.
        floors = (given for other, given in answers if other.name == case.floor and other.at in (None, each.at))
        expected = next(floors, answers[0][1])
        if answer != expected:
            raise AssertionError(f"{case.name}: {each.name} answers {answer!r}, and {case.floor} {expected!r}")


async def _rounds(
    case: Case, present: Sequence[Contender], until: float, progress: Callable[[str], None], clock: Callable[[], float]
) -> dict[tuple[str, float | None], list[Sample]]:
    samples: dict[tuple[str, float | None], list[Sample]] = {(each.name, each.at): [] for each in present}
    # A turn to warm up, unless there is only one.
    if case.rounds > 1:
        for each in present:
            await _turn(each)
    order, shuffle = list(present), random.Random(0).shuffle
    gc.collect()
    gc.freeze()
    try:
        for _ in range(case.rounds):
            began = clock()
            shuffle(order)
            for each in order:
                samples[each.name, each.at].append(await _turn(each))
            progress(case.name)
            now = clock()
            if now + (now - began) > until:
                break
    finally:
        gc.unfreeze()
    return samples


async def _turn(contender: Contender) -> Sample:
    figure = await _given(contender.measure())
    return figure if isinstance(figure, Sample) else Sample(figure)
