"""The results of a run as they are stored in a file: every sample of every round, and the code that it measures."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import msgspec

Kind = Literal["baseline", "ours", "peer"]
Better = Literal["lower", "higher"]
SESSIONS = {
    "encrypts": "only the server can read the values",
    "signs": "the cookie's values can be read, and not be changed",
    "stores the values themselves": "the store's values can be read",
    "in memory": "the values stay in the process",
}
"""What a contender's session does with its values, and what this means."""
BEST_PEER = "the best peer"
"""Stands for the name of a peer in a goal: the peer with the best median."""


class ContenderResult(msgspec.Struct):
    """The figures of one contender, one per round, and *extra* figures, such as {"p99, ms": [...]}; see harness.Contender."""

    name: str
    kind: Kind
    source: str
    figures: list[float]
    version: str | None = None
    at: float | None = None
    extra: dict[str, list[float]] = {}
    session: str = ""


class AbsentResult(msgspec.Struct):
    """A contender that did not take part, and the reason."""

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
    baseline: str
    source: str
    axis: str | None = None
    goals: list[GoalResult] = []
    contenders: list[ContenderResult] = []
    absent: list[AbsentResult] = []
    summary: str = ""


class QuestionResult(msgspec.Struct):
    """See harness.Question; *seconds* is the time that it took."""

    name: str
    title: str
    source: str
    seconds: float
    cases: list[CaseResult]
    notes: list[str] = []


class Results(msgspec.Struct):
    """A run; *about* names the machine, the versions, the commit and the method."""

    about: dict[str, str]
    quick: bool
    questions: list[QuestionResult]


def save(results: Results, file: Path) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(msgspec.json.format(msgspec.json.encode(results), indent=1))


def load(file: Path) -> Results:
    # Older runs call the baseline "floor".
    return msgspec.json.decode(file.read_bytes().replace(b'"floor"', b'"baseline"'), type=Results)
