"""The page of the project's own goals: each with its limit, the measured ratio, and the distance between them."""

from __future__ import annotations

import math
from pathlib import Path

from benchmarks.report.figures import Judgement, judge, tally
from benchmarks.report.page import BODY, GREY, HEADING, INK, LINE, MARGIN, RULE, SMALL, VERDICTS, WIDTH, Page
from benchmarks.report.results import CaseResult, GoalResult, Results
from benchmarks.report.table import limit_of

CASE, LIMIT = 250, 280
"""The widths of the columns for the case and for its limit."""
MAX_TIMES = 4
"""The distance from a goal at which bars end."""


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw all goals of a run as SVG and PNG in *folder*; return the files, or an empty list without a goal."""
    has_goals = any(case.goals for question in results.questions for case in question.cases)
    return page_of(results).save(folder, "goals") if has_goals else []


def page_of(results: Results) -> Page:
    page = Page(tally(results), "The limits that the project sets itself, measured on this machine.")
    for question in results.questions:
        found = [(case, goal) for case in question.cases for goal in case.goals]
        if not found:
            continue
        page.end = page.paragraph(question.title, MARGIN, page.end, size=HEADING, is_bold=True) + 2
        for case, goal in found:
            _draw_goal(page, case, goal)
        page.end += 12
    marks = (
        "✓ met: all of the interval is within the limit. ✗ missed: none of it is. ? can't tell: too few rounds, or part of it is."
    )
    notes = [
        marks,
        "✗ out of reach, in pink: the baseline misses the limit too, and gaman isn't ahead of the baseline.",
        "Cost: time, or the inverse of a rate. Bars to the right of the line are better than the goal; they end at "
        f"{MAX_TIMES} times. Whiskers: 95 % confidence.",
    ]
    notes += ["A quick run has few rounds, so it can't tell much. “make bench” has more."] if results.quick else []
    page.foot(notes, results.about)
    return page


def _draw_goal(page: Page, case: CaseResult, goal: GoalResult) -> None:
    judged = judge(case, goal)
    mark, colour = VERDICTS[judged.verdict]
    of = "" if goal.of == "gaman" else f": {goal.of}"
    at = "" if goal.at is None else f" at {goal.at:,.0f}"
    left = page.wrap(f"{case.name}{of}{at}", CASE - 30)
    limit = page.wrap(limit_of(goal, judged.against), LIMIT - 12, SMALL)
    height = max(len(left), len(limit)) * BODY * LINE + 6
    middle = page.end + height / 2
    page.text(mark, MARGIN, middle, colour=colour, is_bold=True)
    page.paragraph(left, MARGIN + 18, middle - len(left) * BODY * LINE / 2)
    page.paragraph(limit, MARGIN + CASE, middle - len(limit) * SMALL * LINE / 2, size=SMALL, colour=GREY)
    figure = MARGIN + CASE + LIMIT + 40
    _draw_distance(page, goal, judged, figure, middle, colour)
    page.end += height
    page.line([MARGIN, WIDTH - MARGIN], [page.end, page.end], RULE, 0.7)


def _draw_distance(page: Page, goal: GoalResult, judged: Judgement, left: float, middle: float, colour: str) -> None:
    """Write the ratio, and draw its distance from the goal on a logarithmic scale."""
    ratio = judged.ratio
    if ratio is None:
        page.text("a contender is missing", left + 8, middle, size=SMALL, colour=GREY)
        return
    page.text(f"{ratio.median:.2f}", left, middle, is_bold=True, colour=colour, align="right")
    half = (WIDTH - MARGIN - left - 16) / 2
    zero = left + 8 + half

    def place(value: float) -> float:
        better = goal.limit / value if goal.sense == "at most" else value / goal.limit
        return zero + half * max(-1.0, min(1.0, math.log(better) / math.log(MAX_TIMES)))

    low, middle_x, high = sorted(place(each) for each in (ratio.low, ratio.median, ratio.high))
    page.bar(min(zero, middle_x), middle, abs(middle_x - zero), 9, colour)
    page.whisker((low, high), middle)
    page.line([zero, zero], [middle - 9, middle + 9], INK)
