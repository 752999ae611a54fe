"""The table of a question: each figure with its spread, its ratio to the floor, and the line that it comes from."""

from __future__ import annotations

import statistics
from collections import defaultdict

from rich.table import Table
from rich.text import Text

from benchmarks.figures import APART, Interval, best_first, interval, judge, to_floor
from benchmarks.results import CaseResult, ContenderResult, GoalResult, QuestionResult

MARKS = {"met": ("✓", "green"), "missed": ("✗", "red"), "can't tell": ("?", "yellow")}


def figure(value: float) -> str:
    """Return *value* with three digits that mean something."""
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def ratio_text(ratio: Interval) -> Text:
    """Return a ratio and by how much it may be off; where that is more than 5 %, it says so."""
    off = f"±{ratio.width:.0%}" if ratio.width >= 0.01 else "±1%"
    if not ratio.is_sure:
        return Text(f"{ratio.median:.2f} too few rounds", "yellow")
    text = Text(f"{ratio.median:.2f} {off}")
    if ratio.width > APART - 1:
        text.append(" can't tell 5 %", "yellow")
    return text


def name_of(contender: ContenderResult) -> str:
    return contender.name if contender.version is None else f"{contender.name} {contender.version}"


def goal_text(case: CaseResult, goal: GoalResult) -> Text:
    verdict, ratio, against = judge(case, goal)
    mark, colour = MARKS[verdict]
    where = "" if goal.at is None else f" at {goal.at:,.0f}"
    than = against if goal.against_at is None else f"{against} at {goal.against_at:,.0f}"
    wanted = f"{goal.sense} {goal.limit:g} times {'the cost of' if goal.sense == 'at most' else 'as good as'} {than}"
    found = "somebody is missing" if ratio is None else f"{ratio.median:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
    return Text(f"{mark} goal of {goal.of}{where}: {wanted}; it is {found}: {verdict}", colour)


def question_table(question: QuestionResult) -> Table:
    table = Table(title=f"{question.title}  ({question.name}, {question.seconds:.0f} s)", title_justify="left", title_style="bold")
    table.add_column("case, and who", no_wrap=True)
    table.add_column("median", justify="right", no_wrap=True)
    table.add_column("quartiles", justify="right", no_wrap=True)
    table.add_column("by the floor", no_wrap=True)
    table.add_column("defined in", style="dim", no_wrap=True)
    for case in question.cases:
        _add_case(table, case)
    return table


def _add_case(table: Table, case: CaseResult) -> None:
    rounds = len(case.contenders[0].figures) if case.contenders else 0
    table.add_section()
    unit = Text(f"{case.unit}; {case.better} is better; {rounds} round{'' if rounds == 1 else 's'}", "italic")
    table.add_row(Text(case.name, "bold"), "", "", unit, case.source)
    for at in sorted({each.at for each in case.contenders}, key=lambda at: -1 if at is None else at):
        for each in best_first(case, [other for other in case.contenders if other.at == at]):
            spread, ratio = interval(each.figures), to_floor(case, each)
            where = "" if at is None else f", {at:,.0f} {case.axis}"
            by_floor = Text("the floor" if each.name == case.floor else "") if ratio is None else ratio_text(ratio)
            quartiles = f"{figure(spread.first)} to {figure(spread.third)}"
            style = {"ours": "bold cyan", "floor": "dim"}.get(each.kind, "")
            table.add_row(Text(f"  {name_of(each)}{where}", style), figure(spread.median), quartiles, by_floor, each.source)
            for what, values in each.extra.items():
                table.add_row(Text(f"    {what}", "dim"), figure(statistics.median(values)), "", "", "")
    places: dict[tuple[str, str], list[float]] = defaultdict(list)
    for absent in case.absent:
        places[absent.name, absent.reason] += [] if absent.at is None else [absent.at]
    for (name, reason), ats in places.items():
        among = {other.at for other in case.absent if other.name == name}
        some = ats and len(ats) < len({each.at for each in case.contenders if each.at is not None} | among)
        where = f", {' and '.join(f'{at:,.0f}' for at in ats)} {case.axis}" if some else ""
        table.add_row(Text(f"  {name}{where}", "dim"), "", "", Text(reason, "dim"), "")
    for goal in case.goals:
        table.add_row(Text("  ") + goal_text(case, goal), "", "", "", "")
