"""A comparison of two runs: which figures got worse, got better, stayed the same, or can't be told apart.

It compares gaman's ratios to the baseline, because a faster machine doesn't change them; without a baseline, the figures. A figure
got worse if the interval of the new median lies beyond the old one's, and the medians are 5 % apart. Two processes that run the
same code may differ by less than that. The more figures there are, the wider each interval is (Bonferroni's correction), so that at
most one comparison in twenty raises a false alarm.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from rich.table import Table
from rich.text import Text

from benchmarks.report.figures import APART, CONFIDENCE, Interval, find, interval, ratios
from benchmarks.report.results import CaseResult, ContenderResult, Results
from benchmarks.report.table import figure

Change = Literal["worse", "better", "same", "can't tell"]
STYLES = {"worse": "bold red", "better": "green", "same": "dim", "can't tell": "yellow"}


class Difference(NamedTuple):
    """One figure in both runs; *by* is the ratio of the new cost to the old one, above 1 if it got worse."""

    question: str
    case: str
    name: str
    at: float | None
    source: str
    what: str
    old: Interval
    new: Interval
    by: float
    change: Change


def judge(old: Interval, new: Interval, *, lower_is_better: bool) -> tuple[float, Change]:
    """Return the ratio of the new cost to the old one, and its verdict."""
    if not lower_is_better:
        old, new = _inverse(old), _inverse(new)
    by = new.median / old.median
    if not (old.is_sure and new.is_sure):
        return by, "can't tell"
    if new.low > old.high and by > APART:
        return by, "worse"
    if new.high < old.low and by < 1 / APART:
        return by, "better"
    is_narrow = new.high / old.low <= APART and old.high / new.low <= APART
    is_told = new.low > old.high or new.high < old.low
    return by, "same" if is_narrow or (is_told and 1 / APART <= by <= APART) else "can't tell"


def _inverse(each: Interval) -> Interval:
    return Interval(1 / each.high, 1 / each.median, 1 / each.low, 1 / each.third, 1 / each.first, each.is_sure)


def compare(old: Results, new: Results) -> list[Difference]:
    """Return all figures of gaman that both runs have."""
    before = {(question.name, case.name): case for question in old.questions for case in question.cases}
    pairs: list[tuple[str, CaseResult, CaseResult, ContenderResult, ContenderResult]] = []
    for question in new.questions:
        for case in question.cases:
            if (earlier := before.get((question.name, case.name))) is None or earlier.unit != case.unit:
                continue
            for mine in case.contenders:
                then = next((each for each in earlier.contenders if (each.name, each.at) == (mine.name, mine.at)), None)
                if mine.kind == "ours" and then is not None:
                    pairs.append((question.name, earlier, case, then, mine))
    confidence = 1 - (1 - CONFIDENCE) / max(1, 2 * len(pairs))
    found: list[Difference] = []
    for name, earlier, case, then, mine in pairs:
        baselines = find(earlier, case.baseline, then.at), find(case, case.baseline, mine.at)
        has_baseline = baselines[0] is not None and baselines[1] is not None
        values = [
            ratios(each, baseline) if has_baseline and baseline is not None else each.figures
            for each, baseline in zip((then, mine), baselines, strict=True)
        ]
        was, now = (interval(each, confidence) for each in values)
        what = f"times {case.baseline}" if has_baseline else case.unit
        by, change = judge(was, now, lower_is_better=case.better == "lower")
        found.append(Difference(name, case.name, mine.name, mine.at, mine.source, what, was, now, by, change))
    return found


def warnings(old: Results, new: Results) -> list[str]:
    """Return other differences between the runs that may explain a changed figure."""
    keys = ("machine", "cores", "python", "msgspec", "cryptography", "uvicorn", "uvloop")
    found = [
        f"{key}: {old.about.get(key, 'unknown')} before, {new.about.get(key, 'unknown')} now"
        for key in keys
        if old.about.get(key) != new.about.get(key)
    ]
    return found + (["one run is quick, the other is not"] if old.quick != new.quick else [])


def comparison_table(differences: list[Difference]) -> Table:
    """Return the table of *differences* for a terminal, the worst first."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("verdict", no_wrap=True)
    for heading in ("cost", "old", "new"):
        table.add_column(heading, justify="right", no_wrap=True)
    for heading in ("in", "case and contender", "defined in"):
        table.add_column(heading)
    for each in sorted(differences, key=lambda each: (list(STYLES).index(each.change), -abs(each.by - 1))):
        label = f"{each.question}: {each.case}, {each.name}{'' if each.at is None else f', {each.at:,.0f}'}"
        figures = [f"{each.by - 1:+.1%}", figure(each.old.median), figure(each.new.median)]
        table.add_row(Text(each.change, STYLES[each.change]), *figures, each.what, label, Text(each.source, "dim"))
    return table
