"""The chart of a question, with one panel per case."""

from __future__ import annotations

from pathlib import Path

from benchmarks.report.page import MARGIN, WIDTH, Page
from benchmarks.report.panels import Place, draw_panel, grows
from benchmarks.report.results import QuestionResult

GUTTER = 26
"""Pixels between two panels."""
BARS = "Orange: gaman. Grey: the baseline, which the others are divided by, and the dashed line at 1. Blue: the others."
MARKS = "Green line: a goal. Whiskers: quartiles of the rounds. A bar with a gap is cut. The text above names the best peer."
GROWTH = "Orange: gaman. Dashed: the baseline. Whiskers: quartiles of the rounds. Both axes are logarithmic."


def draw(question: QuestionResult, about: dict[str, str], folder: Path) -> list[Path]:
    """Draw *question* as SVG and PNG in *folder*; return the files, or an empty list without a case."""
    return page_of(question, about).save(folder, question.name) if question.cases else []


def page_of(question: QuestionResult, about: dict[str, str]) -> Page:
    cases = question.cases
    page = Page(question.title)
    columns = min(2, len(cases))
    width = (WIDTH - 2 * MARGIN - GUTTER * (columns - 1)) / columns
    peers = list(dict.fromkeys(each.name for case in cases for each in case.contenders if each.kind == "peer"))
    for start in range(0, len(cases), columns):
        places = [Place(MARGIN + column * (width + GUTTER), page.end, width) for column in range(columns)]
        row = zip(cases[start : start + columns], places, strict=False)
        page.end = max(draw_panel(page, case, place, peers) for case, place in row) + 18
    growing = {grows(case) for case in cases}
    page.foot([*question.notes, *([BARS, MARKS] if False in growing else []), *([GROWTH] if True in growing else [])], about)
    return page
