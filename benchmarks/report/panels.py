"""The panel of a case: bars in the order of the contenders, or lines that grow along an axis."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from typing import NamedTuple

from benchmarks.report.figures import Interval, best_first, interval, judge, to_baseline
from benchmarks.report.page import BASELINE, BODY, COLOURS, GOAL, GREY, HEADING, INK, LINE, OURS, RULE, SMALL, VERDICTS, Page
from benchmarks.report.results import CaseResult, ContenderResult, GoalResult, Kind
from benchmarks.report.table import figure, limit_of, missing, name_of

LINES = ("#56B4E9", "#009E73", "#CC79A7", "#E69F00", "#0072B2", "#000000", "#F0E442")
MARKERS = "ovsD^Px"
MAX_LENGTH = 5
"""Longer bars are cut; the unit is the length of gaman's."""
GAP = 6
"""Pixels between a label and its bar."""
ROW, PLOT = 19, 170
"""The heights of a bar's row, and of a plot with lines."""


class Place(NamedTuple):
    """Where a panel is: its upper left corner and its width."""

    x: float
    y: float
    width: float

    @property
    def right(self) -> float:
        return self.x + self.width


def grows(case: CaseResult) -> bool:
    """Return whether the figures of *case* are at several places of its axis."""
    return len({each.at for each in case.contenders if each.at is not None}) > 1


def draw_panel(page: Page, case: CaseResult, place: Place, peers: Sequence[str]) -> float:
    """Draw *case*; return the lower end. *peers* are those of all panels, so that a peer has the same colour in each."""
    y = page.paragraph(case.name, place.x, place.y, place.width, size=HEADING, is_bold=True)
    for said in _in_words(case):
        y = page.paragraph(said, place.x, y, place.width)
    for goal in case.goals:
        verdict, ratio, against, _ = judge(case, goal)
        mark, colour = VERDICTS[verdict]
        found = "" if ratio is None else f"{ratio.median:.2f}, "
        said = f"{goal.of}{'' if goal.at is None else f' at {goal.at:,.0f}'} {limit_of(goal, against)}: {found}{verdict}"
        y = page.paragraph(f"{mark} goal: {said}", place.x, y, place.width, size=SMALL, colour=colour)
    times = f"× {case.baseline}, and " if _is_relative(case) and not grows(case) else ""
    y = page.paragraph(f"{times}{case.unit}; {case.better} is better", place.x, y, place.width, size=SMALL, colour=GREY)
    if case.contenders:
        y = (
            _draw_growth(page, case, place._replace(y=y + 8), peers)
            if grows(case)
            else _draw_bars(page, case, place._replace(y=y + 2))
        )
    for said in missing(case):
        y = page.paragraph(said, place.x, y, place.width, size=SMALL, colour=GREY)
    return y


def _is_relative(case: CaseResult) -> bool:
    return any(each.name == case.baseline for each in case.contenders)


def cut_at(case: CaseResult, order: Sequence[ContenderResult], lengths: Sequence[float]) -> float:
    """Return the length of the longest bar. A very long one would leave no room for the others, so it is cut."""
    ours = [length for each, length in zip(order, lengths, strict=True) if each.kind == "ours"]
    return min(max(lengths), MAX_LENGTH * max(ours)) if ours and case.better == "lower" else max(lengths)


def draw_bar(page: Page, x: float, y: float, length: float, height: float, kind: Kind, *, is_cut: bool) -> None:
    """Draw the bar of a contender; a cut one has a gap."""
    page.bar(x, y, length, height, COLOURS[kind])
    if is_cut:
        page.bar(x + length * 0.9, y, 3, height, "white")


def _draw_bars(page: Page, case: CaseResult, place: Place) -> float:
    order = best_first(case, case.contenders)
    is_relative = _is_relative(case)
    one = Interval(1, 1, 1, 1, 1, is_sure=True)
    spreads = [(to_baseline(case, each) or one) if is_relative else interval(each.figures) for each in order]
    names = [page.wrap(name_of(each), place.width * 0.42, is_bold=each.kind == "ours") for each in order]
    ratios = [
        f"{figure(each.median) if each.median >= 10 else format(each.median, '.2f')} ×" if is_relative else "" for each in spreads
    ]
    figures = [figure(statistics.median(each.figures)) for each in order]
    of_names, of_ratios, of_figures = (
        max(page.width(text, is_bold=True) for text in texts)
        for texts in ([line for lines in names for line in lines], ratios, figures)
    )
    left, right = place.x + of_names + GAP, place.right - of_ratios - of_figures - 3 * GAP
    cut = cut_at(case, order, [each.third for each in spreads])
    scale = (right - left) / cut
    y = place.y
    for each, lines, spread, ratio, median in zip(order, names, spreads, ratios, figures, strict=True):
        height = max(ROW, len(lines) * BODY * LINE + 4)
        middle, is_ours = y + height / 2, each.kind == "ours"
        for number, line in enumerate(lines):
            lower = (number - (len(lines) - 1) / 2) * BODY * LINE
            page.text(line, left - GAP, middle + lower, is_bold=is_ours, colour=OURS if is_ours else INK, align="right")
        is_cut = spread.median > cut
        draw_bar(page, left, middle, min(spread.median, cut) * scale, 13, each.kind, is_cut=is_cut)
        if not is_cut and spread is not one:
            page.whisker((left + spread.first * scale, left + min(spread.third, cut) * scale), middle)
        for goal in case.goals:
            if goal.of == each.name and goal.against == case.baseline:
                # A line marks the goal.
                limit = goal.limit if goal.sense == "at most" or case.better == "higher" else 1 / goal.limit
                page.line([left + min(limit, cut) * scale] * 2, [middle - 8, middle + 8], GOAL, 3)
        page.text(ratio, place.right - of_figures - 2 * GAP, middle, is_bold=is_ours, align="right")
        page.text(median, place.right, middle, is_bold=is_ours, align="right")
        y += height
    page.line([left, left], [place.y, y], INK)
    if is_relative and cut >= 1:
        page.line([left + scale] * 2, [place.y, y], INK, ls="--")
    return y


def _in_words(case: CaseResult) -> list[str]:
    """Return the result of *case* in words."""
    if grows(case):
        return _growth_in_words(case)
    order = best_first(case, case.contenders)
    mine = [each for each in order if each.kind == "ours"]
    # gaman on another server may have a better figure.
    ours = next((each for each in mine if each.name == "gaman"), next(iter(mine), None))
    peer = next((each for each in order if each.kind == "peer"), None)
    if ours is None:
        return []
    said: list[str] = []
    if (ratio := to_baseline(case, ours)) is not None:
        said.append(f"{ratio.median:.2f} × {case.baseline}")
    if peer is not None:
        _, ratio, *_ = judge(case, GoalResult("at least", 1, ours.name, peer.name, ours.at, peer.at))
        assert ratio is not None
        is_time = case.unit.split()[0] in ("µs", "ms", "s")
        more, less = ("faster", "slower") if is_time else ("better", "worse")
        if ratio.is_sure and ratio.low <= 1 <= ratio.high:
            said.append(f"can't be told from {peer.name}")
        elif ratio.median >= 1:
            said.append(f"{figure(ratio.median)} × {more} than {peer.name}")
        else:
            said.append(f"{figure(1 / ratio.median)} × {less} than {peer.name}")
    return [f"{ours.name}: {'; '.join(said)}"] if said else []


def _growth_in_words(case: CaseResult) -> list[str]:
    ours = sorted((each for each in case.contenders if each.kind == "ours"), key=lambda each: each.at or 0)
    if len(ours) < 2 or ours[0].at is None or ours[-1].at is None or ours[-1].name != ours[0].name:
        return []
    grown = statistics.median(ours[-1].figures) / statistics.median(ours[0].figures)
    return [f"{ours[0].name}: {grown:.2f} × as much with {ours[-1].at:,.0f} as with {ours[0].at:,.0f}"]


def _draw_growth(page: Page, case: CaseResult, place: Place, peers: Sequence[str]) -> float:
    names = list(dict.fromkeys(each.name for each in case.contenders))
    last = {name: statistics.median([each for each in case.contenders if each.name == name][-1].figures) for name in names}
    names.sort(key=last.__getitem__, reverse=True)
    of_names = min(place.width * 0.32, max(page.width(name, SMALL, is_bold=True) for name in names))
    spreads = [interval(each.figures) for each in case.contenders]
    # A line that hardly grows should look level.
    low, high = min(each.first for each in spreads) / 1.3, max(each.third for each in spreads) * 1.3
    ticks = _ticks(low, high)
    left = place.x + max(page.width(figure(tick), SMALL) for tick in ticks) + GAP
    right, bottom = place.right - of_names - 30, place.y + PLOT
    places = sorted({each.at for each in case.contenders if each.at is not None})
    x_of = _scale((places[0], places[-1]), (left + 8, right - 8))
    y_of = _scale((low, high), (bottom, place.y))
    free = bottom + LINE * SMALL
    for tick in ticks:
        page.line([left, right], [y_of(tick)] * 2, RULE)
        # A label that would overlap the one before is left out.
        if y_of(tick) + LINE * SMALL <= free:
            page.text(figure(tick), left - GAP, y_of(tick), size=SMALL, align="right")
            free = y_of(tick)
    page.line([left, left, right], [place.y, bottom, bottom], INK)
    free = left - 40
    for number in places:
        said, half = f"{number:,.0f}", page.width(f"{number:,.0f}", SMALL) / 2
        page.line([x_of(number)] * 2, [bottom, bottom + 3], INK)
        middle = min(x_of(number), right - half)
        if middle - half > free + GAP:
            page.text(said, middle, bottom + 11, size=SMALL, align="center")
            free = middle + half
    page.text(case.axis or "", (left + right) / 2, bottom + 25, size=SMALL, colour=GREY, align="center")
    y = place.y
    # gaman's own lines have one colour, and the second and further ones are dotted.
    ours = [name for name in names if any(each.name == name and each.kind == "ours" for each in case.contenders)]
    for name in names:
        points = sorted((each for each in case.contenders if each.name == name), key=lambda each: each.at or 0)
        kind = points[0].kind
        colour, marker = (OURS, "o") if kind == "ours" else (BASELINE, "None")
        if kind == "peer":
            colour, marker = LINES[peers.index(name) % len(LINES)], MARKERS[peers.index(name) % len(MARKERS)]
        style = {
            "ls": "--" if kind == "baseline" else ":" if name in ours[1:] else "-",
            "marker": marker,
            "ms": 4,
            "zorder": 5 if kind == "ours" else 3,
        }
        thick = 3 if kind == "ours" else 1.5
        medians = [y_of(statistics.median(each.figures)) for each in points]
        if points[0].at is None:
            page.line([left, right], medians[:1] * 2, colour, thick, **style)
        else:
            for each, spread in zip(points, (interval(each.figures) for each in points), strict=True):
                page.whisker((y_of(spread.first), y_of(spread.third)), x_of(each.at or 1), is_upright=True, colour=colour)
            page.line([x_of(each.at or 1) for each in points], medians, colour, thick, **style)
        page.line([right + 8, right + 16, right + 24], [y + LINE * SMALL / 2] * 3, colour, thick, **style, markevery=[1])
        lines = page.wrap(name, of_names, SMALL, is_bold=kind == "ours")
        y = page.paragraph(lines, right + 28, y, size=SMALL, is_bold=kind == "ours", colour=OURS if kind == "ours" else INK) + 2
    return max(y, bottom + 34)


def _scale(values: tuple[float, float], pixels: tuple[float, float]) -> Callable[[float], float]:
    """Return the logarithmic scale from *values* to *pixels*."""
    (low, high), (start, end) = values, pixels
    return lambda value: start + (end - start) * math.log(value / low) / math.log(high / low)


def _ticks(low: float, high: float) -> list[float]:
    """Return the numbers 1, 2 and 5 times the powers of ten between *low* and *high*; if there is none, the middle."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    return [tick for power in powers for step in (1, 2, 5) if low <= (tick := step * 10.0**power) <= high] or [
        math.sqrt(low * high)
    ]
