"""What a run has found, as it is kept in a file: every sample of every round, and where each comes from."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

Kind = Literal["floor", "ours", "peer"]
Better = Literal["lower", "higher"]
BEST_PEER = "the best peer"
"""What a goal is against, if it is the peer with the best median."""


class ContenderResult(msgspec.Struct):
    """The figures of one contender, by round; *extra* likewise, such as {"p99, ms": [...]}."""

    name: str
    kind: Kind
    source: str
    figures: list[float]
    version: str | None = None
    at: float | None = None
    extra: dict[str, list[float]] = {}


class AbsentResult(msgspec.Struct):
    """Who did not take part, and why."""

    name: str
    reason: str
    at: float | None = None


class GoalResult(msgspec.Struct):
    """See harness.Goal."""

    sense: Literal["at most", "at least"]
    limit: float
    of: str
    against: str
    at: float | None = None
    against_at: float | None = None


class CaseResult(msgspec.Struct):
    """See harness.Case."""

    name: str
    unit: str
    better: Better
    floor: str
    source: str
    axis: str | None = None
    goals: list[GoalResult] = []
    contenders: list[ContenderResult] = []
    absent: list[AbsentResult] = []


class QuestionResult(msgspec.Struct):
    """See harness.Question; *seconds* is what it took."""

    name: str
    title: str
    source: str
    seconds: float
    cases: list[CaseResult]


class Results(msgspec.Struct):
    """A run: *about* is the machine, the versions, the commit, and the method."""

    about: dict[str, str]
    quick: bool
    questions: list[QuestionResult]


def save(results: Results, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1))


def load(file: Path) -> Results:
    return msgspec.json.decode(file.read_bytes(), type=Results)
