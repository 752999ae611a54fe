"""What samples say: medians, ratios by pairs of rounds, and whether they suffice to say it.

Two contenders of one round met the same machine, so their ratio is taken within the round, and the median over the rounds. Its
interval is the exact one for a median, from scipy: it supposes nothing about how the samples are spread.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from importlib import import_module
from typing import Any, Literal, NamedTuple

from benchmarks.report.results import BEST_PEER, CaseResult, ContenderResult, GoalResult

CONFIDENCE = 0.95
APART = 1.05
"""What a run is to tell apart: 5 %."""
FEWEST = 6
"""Of fewer rounds no interval holds a median with 95 %."""

Verdict = Literal["met", "missed", "out of reach", "can't tell"]
"""Out of reach: missed, and the floor would miss it too, so that no code on top of it could meet it."""


class Interval(NamedTuple):
    """A median, between which figures it is with the confidence that was asked for, and the quartiles of the samples.

    With too few samples, *is_sure* is false, and the least and the greatest stand for the interval.
    """

    low: float
    median: float
    high: float
    first: float
    third: float
    is_sure: bool

    @property
    def width(self) -> float:
        """By what part of it the median may be off, to the farther side."""
        return max(self.high / self.median, self.median / self.low) - 1 if self.low > 0 else float("inf")

    @property
    def tells(self) -> bool:
        """Whether it tells 5 % apart."""
        return self.is_sure and self.width <= APART - 1


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    stats: Any = import_module("scipy.stats")
    found = stats.quantile_test(values, p=0.5).confidence_interval(confidence)
    # Where the samples are too few, scipy gives nan, the only float that differs from itself.
    is_sure = bool(found.low == found.low and found.high == found.high)
    low, high = (float(found.low), float(found.high)) if is_sure else (min(values), max(values))
    first, median, third = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else [values[0]] * 3
    return Interval(low, median, high, first, third, is_sure)


def ratios(of: ContenderResult, against: ContenderResult) -> list[float]:
    """Return the ratios of two contenders of a case, round by round."""
    return [mine / other for mine, other in zip(of.figures, against.figures, strict=True)]


def find(case: CaseResult, name: str, at: float | None = None) -> ContenderResult | None:
    """Return the contender of that name, at that place or at all of them, or None where it did not take part."""
    return next((each for each in case.contenders if each.name == name and each.at in (at, None)), None)


def to_floor(case: CaseResult, contender: ContenderResult) -> Interval | None:
    """Return the ratio of *contender* to the floor, or None where there is no floor."""
    floor = find(case, case.floor, contender.at)
    return None if floor is None or floor is contender else interval(ratios(contender, floor))


def best_first(case: CaseResult, contenders: Sequence[ContenderResult]) -> list[ContenderResult]:
    return sorted(contenders, key=lambda each: statistics.median(each.figures), reverse=case.better == "higher")


def best_peer(case: CaseResult, at: float | None = None) -> ContenderResult | None:
    peers = [each for each in case.contenders if each.kind == "peer" and each.at in (at, None)]
    return best_first(case, peers)[0] if peers else None


class Judgement(NamedTuple):
    """How a goal went: its ratio, None where somebody is missing, and against whom; where a peer is ahead, the floor's too."""

    verdict: Verdict
    ratio: Interval | None
    against: str
    floor: Interval | None = None


def judge(case: CaseResult, goal: GoalResult) -> Judgement:
    at = goal.at if goal.against_at is None else goal.against_at
    of = find(case, goal.of, goal.at)
    against = best_peer(case, at) if goal.against == BEST_PEER else find(case, goal.against, at)
    if of is None or against is None:
        return Judgement("can't tell", None, goal.against)
    verdict, ratio = _judge(case, goal, of, against)
    floor = find(case, case.floor, goal.at)
    if verdict != "missed" or floor is None or against.kind != "peer":
        return Judgement(verdict, ratio, against.name)
    at_best, floors = _judge(case, goal, floor, against)
    # Whoever is ahead of the floor, and by more than chance, is not held back by it.
    is_ahead = ratio.high < floors.low if goal.sense == "at most" else ratio.low > floors.high
    return Judgement("out of reach" if at_best == "missed" and not is_ahead else verdict, ratio, against.name, floors)


def _judge(case: CaseResult, goal: GoalResult, of: ContenderResult, against: ContenderResult) -> tuple[Verdict, Interval]:
    # A cost of gaman's is its time by the other's, or the other's rate by its own; an advantage is the inverse.
    is_of_first = (goal.sense == "at most") == (case.better == "lower")
    ratio = interval(ratios(of, against) if is_of_first else ratios(against, of))
    if not ratio.is_sure:
        return "can't tell", ratio
    if goal.sense == "at most":
        is_met, is_missed = ratio.high <= goal.limit, ratio.low > goal.limit
    else:
        is_met, is_missed = ratio.low >= goal.limit, ratio.high < goal.limit
    return "met" if is_met else "missed" if is_missed else "can't tell", ratio
