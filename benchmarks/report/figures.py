"""Statistics of samples: medians, ratios within rounds, and their confidence intervals.

The contenders of one round run under the same conditions. A ratio is therefore taken within each round, and its median over all
rounds. The interval is the exact one for a median, and assumes nothing about the distribution of the samples.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from itertools import accumulate
from typing import Literal, NamedTuple, get_args

from benchmarks.report.results import BEST_PEER, CaseResult, ContenderResult, GoalResult, Results

CONFIDENCE = 0.95
APART = 1.05
"""The smallest ratio that a run should tell from 1: 5 %."""
MIN_ROUNDS = 6
"""With fewer rounds no interval contains the median with 95 % confidence."""

Verdict = Literal["met", "missed", "out of reach", "can't tell"]
"""Out of reach: the baseline misses the goal as well, and gaman isn't ahead of the baseline."""


class Interval(NamedTuple):
    """A median, its confidence interval, and the quartiles of the samples.

    With too few samples, *is_sure* is false, and the interval reaches from the smallest sample to the largest.
    """

    low: float
    median: float
    high: float
    first: float
    third: float
    is_sure: bool

    @property
    def width(self) -> float:
        """The largest relative error of the median within the interval."""
        return max(self.high / self.median, self.median / self.low) - 1 if self.low > 0 else float("inf")

    @property
    def tells(self) -> bool:
        """Whether the interval is narrow enough to tell 5 % apart."""
        return self.is_sure and self.width <= APART - 1


def interval(values: Sequence[float], confidence: float = CONFIDENCE) -> Interval:
    ordered, count = sorted(values), len(values)
    # How many samples lie below the true median has the binomial distribution of a fair coin.
    below = accumulate(math.comb(count, number) / 2**count for number in range(count + 1))
    cut = next(number for number, chance in enumerate(below) if chance >= (1 - confidence) / 2)
    low, high = (ordered[cut - 1], ordered[count - cut]) if cut else (ordered[0], ordered[-1])
    first, median, third = statistics.quantiles(values, n=4, method="inclusive") if count > 1 else [values[0]] * 3
    return Interval(low, median, high, first, third, is_sure=cut > 0)


def ratios(of: ContenderResult, against: ContenderResult) -> list[float]:
    """Return the ratios of two contenders of a case, round by round."""
    return [mine / other for mine, other in zip(of.figures, against.figures, strict=True)]


def find(case: CaseResult, name: str, at: float | None = None) -> ContenderResult | None:
    """Return the contender of that name at that place, or the one that has no place; None if it did not take part."""
    return next((each for each in case.contenders if each.name == name and each.at in (at, None)), None)


def to_baseline(case: CaseResult, contender: ContenderResult) -> Interval | None:
    """Return the ratio of *contender* to the baseline, or None if the baseline did not take part."""
    baseline = find(case, case.baseline, contender.at)
    return None if baseline is None or baseline is contender else interval(ratios(contender, baseline))


def best_first(case: CaseResult, contenders: Sequence[ContenderResult]) -> list[ContenderResult]:
    return sorted(contenders, key=lambda each: statistics.median(each.figures), reverse=case.better == "higher")


def best_peer(case: CaseResult, at: float | None = None) -> ContenderResult | None:
    peers = [each for each in case.contenders if each.kind == "peer" and each.at in (at, None)]
    return best_first(case, peers)[0] if peers else None


class Judgement(NamedTuple):
    """The verdict on a goal: its ratio, None if a contender is missing, and the other contender's name.

    If the goal is against a peer and missed, *baseline* is the ratio of the baseline.
    """

    verdict: Verdict
    ratio: Interval | None
    against: str
    baseline: Interval | None = None


def judge(case: CaseResult, goal: GoalResult) -> Judgement:
    at = goal.at if goal.against_at is None else goal.against_at
    of = find(case, goal.of, goal.at)
    against = best_peer(case, at) if goal.against == BEST_PEER else find(case, goal.against, at)
    if of is None or against is None:
        return Judgement("can't tell", None, goal.against)
    verdict, ratio = _judge(case, goal, of, against)
    baseline = find(case, case.baseline, goal.at)
    if verdict != "missed" or baseline is None or against.kind != "peer":
        return Judgement(verdict, ratio, against.name)
    at_best, baselines = _judge(case, goal, baseline, against)
    # A contender that is clearly ahead of the baseline isn't limited by it.
    is_ahead = ratio.high < baselines.low if goal.sense == "at most" else ratio.low > baselines.high
    return Judgement("out of reach" if at_best == "missed" and not is_ahead else verdict, ratio, against.name, baselines)


def _judge(case: CaseResult, goal: GoalResult, of: ContenderResult, against: ContenderResult) -> tuple[Verdict, Interval]:
    # gaman's cost is its time divided by the other's, or the other's rate divided by gaman's. An advantage is the inverse.
    is_of_first = (goal.sense == "at most") == (case.better == "lower")
    ratio = interval(ratios(of, against) if is_of_first else ratios(against, of))
    if not ratio.is_sure:
        return "can't tell", ratio
    if goal.sense == "at most":
        is_met, is_missed = ratio.high <= goal.limit, ratio.low > goal.limit
    else:
        is_met, is_missed = ratio.low >= goal.limit, ratio.high < goal.limit
    return "met" if is_met else "missed" if is_missed else "can't tell", ratio


def verdicts(results: Results) -> list[Verdict]:
    """Return the verdicts on all goals of a run."""
    return [judge(case, goal).verdict for question in results.questions for case in question.cases for goal in case.goals]


def tally(results: Results) -> str:
    """Return the count of a run's goals in words, such as "31 of 39 goals met; 6 missed, 2 can't tell"."""
    found = verdicts(results)
    others = [f"{found.count(verdict)} {verdict}" for verdict in get_args(Verdict)[1:] if verdict in found]
    return f"{found.count('met')} of {len(found)} goals met{'; ' if others else ''}{', '.join(others)}"
