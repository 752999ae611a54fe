"""The table of a question: each figure with its spread, its ratio to the baseline, and the line that defines it."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from benchmarks.report.figures import APART, Interval, best_first, interval, judge, to_baseline
from benchmarks.report.results import CaseResult, ContenderResult, GoalResult, QuestionResult

MARKS = {"met": ("✓", "green"), "missed": ("✗", "red"), "out of reach": ("✗", "magenta"), "can't tell": ("?", "yellow")}


def figure(value: float) -> str:
    """Return *value* with three significant digits."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def ratio_text(ratio: Interval) -> Text:
    """Return a ratio with its error; an error above 5 % is marked."""
    off = f"±{ratio.width:.0%}" if ratio.width >= 0.01 else "±1%"
    if not ratio.is_sure:
        return Text(f"{ratio.median:.2f} too few rounds", "yellow")
    text = Text(f"{ratio.median:.2f} {off}")
    if ratio.width > APART - 1:
        text.append(" can't tell 5 %", "yellow")
    return text


def name_of(contender: ContenderResult) -> str:
    """Return the contender's name; a peer's with its version."""
    return f"{contender.name} {contender.version}" if contender.version and contender.kind == "peer" else contender.name


def limit_of(goal: GoalResult, against: str) -> str:
    """Return the limit of *goal*; *against* is the name of the other contender."""
    than = against if goal.against_at is None else f"{against} at {goal.against_at:,.0f}"
    if goal.sense == "at most":
        return f"≤ {goal.limit:g} × the cost of {than}"
    return f"ahead of {than}" if goal.limit == 1 else f"≥ {goal.limit:g} × as good as {than}"


def missing(case: CaseResult) -> list[str]:
    """Return the contenders that did not take part, in lines by reason."""
    places: dict[tuple[str, str], list[float]] = defaultdict(list)
    for absent in case.absent:
        places[absent.reason, absent.name] += [] if absent.at is None else [absent.at]
    names: dict[str, list[str]] = defaultdict(list)
    for (reason, name), ats in places.items():
        takes_part_elsewhere = any(each.name == name for each in case.contenders)
        elsewhere = f" at {' and '.join(f'{at:,.0f}' for at in ats)} {case.axis}" if takes_part_elsewhere else ""
        names[reason].append(f"{name}{elsewhere}")
    return [f"{'; '.join(found)}: {reason}" for reason, found in names.items()]


def goal_text(case: CaseResult, goal: GoalResult) -> Text:
    verdict, ratio, against, baseline = judge(case, goal)
    mark, colour = MARKS[verdict]
    where = "" if goal.at is None else f" at {goal.at:,.0f}"
    why = f", because the baseline itself is at {baseline.median:.2f}" if verdict == "out of reach" and baseline is not None else ""
    found = "unknown, as a contender is missing" if ratio is None else f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
    return Text(f"  {mark} goal of {goal.of}{where}: {limit_of(goal, against)}; it is {found}: {verdict}{why}", colour)


def show(question: QuestionResult) -> Group:
    """Return the tables of *question* for a terminal."""
    title = Text(f"{question.title}  ({question.name}, {question.seconds:.0f} s)", "bold reverse")
    notes = [Text(f"\n{note}" if number == 0 else note, "dim") for number, note in enumerate(question.notes)]
    return Group(title, *(part for case in question.cases for part in _show_case(case)), *notes)


def _show_case(case: CaseResult) -> Iterator[RenderableType]:
    rounds = len(case.contenders[0].figures) if case.contenders else 0
    yield Text.assemble(
        "\n", (case.name, "bold"), f"  {case.unit}; {case.better} is better; {rounds} rounds; ", (case.source, "dim")
    )
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="dim")
    table.add_column("", no_wrap=True, min_width=34)
    for heading in ("" if case.axis is None else case.axis, "median", "quartiles", f"x {case.baseline}"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("defined in", style="dim", no_wrap=True)
    order = best_first(case, case.contenders)
    if case.axis is not None:
        names = list(dict.fromkeys(each.name for each in order))
        order.sort(key=lambda each: (names.index(each.name), each.at or 0))
    for each in order:
        spread, ratio = interval(each.figures), to_baseline(case, each)
        ratio_cell = Text("") if ratio is None else ratio_text(ratio)
        quartiles = f"{figure(spread.first)} to {figure(spread.third)}"
        where = "" if each.at is None else f"{each.at:,.0f}"
        label = Text(f"  {name_of(each)}", {"ours": "bold cyan", "baseline": "dim"}.get(each.kind, ""))
        table.add_row(label, where, figure(spread.median), quartiles, ratio_cell, each.source)
        if each.extra:
            medians = " · ".join(figure(statistics.median(values)) for values in each.extra.values())
            table.add_row(Text(f"    {' · '.join(each.extra)}", "dim"), "", medians, "", "", "")
    yield table
    for line in missing(case):
        yield Text(f"  {line}", "dim")
    for goal in case.goals:
        yield goal_text(case, goal)
