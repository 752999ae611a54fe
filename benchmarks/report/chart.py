"""Charts with one panel per case, which show the contenders' order, distances and spreads."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.report.figures import Interval, best_first, interval, judge, to_baseline
from benchmarks.report.results import CaseResult, ContenderResult, GoalResult, QuestionResult, Results
from benchmarks.report.table import figure, name_of, wanted

# Okabe and Ito's colours, which people with red-green colour blindness can distinguish.
OURS, PEER, BASELINE, GOAL, UNREACHED = "#D55E00", "#56B4E9", "#999999", "#009E73", "#CC79A7"
LINES = ("#56B4E9", "#009E73", "#CC79A7", "#E69F00", "#0072B2", "#000000", "#F0E442")
MARKERS = "ovsD^Px"
EACH = (6.6, 0.33)
"""Inches: the width of a panel and the height of a bar."""
MAX_LENGTH = 5
"""Longer bars are cut; the unit is the length of gaman's."""
_ONE = Interval(1, 1, 1, 1, 1, is_sure=True)


def draw(question: QuestionResult, about: dict[str, str], folder: Path) -> list[Path]:
    """Draw *question* as SVG and PNG in *folder*; return the files, none if no case has figures."""
    cases = [case for case in question.cases if case.contenders]
    if not cases:
        return []
    plt = _pyplot()
    columns = min(2, len(cases))
    rows = math.ceil(len(cases) / columns)
    heights = [
        max(3.4 if _grows(case) else 1.4 + EACH[1] * len(case.contenders) for case in cases[row * columns : (row + 1) * columns])
        for row in range(rows)
    ]
    size = (EACH[0] * columns, sum(heights) + 1.1)
    chart, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", height_ratios=heights)
    panels = [panel for row in grid for panel in row]
    # A contender has the same colour in all panels.
    peers = list(dict.fromkeys(each.name for case in cases for each in case.contenders if each.kind == "peer"))
    for panel, case in zip(panels, cases, strict=False):
        if _grows(case):
            _draw_growth(panel, case, peers)
        else:
            _draw_bars(panel, case)
    for panel in panels[len(cases) :]:
        panel.axis("off")
    chart.suptitle(f"{question.title}\n", fontsize=15, fontweight="bold")
    others = "" if all(_grows(case) for case in cases) else " · blue: others · green line: the goal · a bar with a gap is cut"
    _foot(
        chart,
        f"orange: gaman · grey: the baseline, which the others are divided by{others} · whiskers: quartiles of the rounds",
        about,
    )
    return _save(plt, chart, folder, question.name)


def summarize(results: Results, folder: Path) -> list[Path]:
    """Draw all goals in one chart, each with gaman's distance from it."""
    found = [(question, case, goal) for question in results.questions for case in question.cases for goal in case.goals]
    found = [each for each in found if judge(each[1], each[2]).ratio is not None]
    if not found:
        return []
    plt = _pyplot()
    chart, panel = plt.subplots(figsize=(12.5, 1.9 + 0.27 * len(found)), layout="constrained")
    labels: list[str] = []
    for place, (question, case, goal) in enumerate(reversed(found)):
        verdict, ratio, against, _ = judge(case, goal)
        assert ratio is not None
        # Right of 1 is better than the goal, for both senses.
        by = [goal.limit / each if goal.sense == "at most" else each / goal.limit for each in (ratio.low, ratio.median, ratio.high)]
        low, middle, high = sorted(by)
        colour = {"met": GOAL, "missed": OURS, "out of reach": UNREACHED, "can't tell": BASELINE}[verdict]
        panel.plot([1, middle], [place, place], color=colour, lw=6, alpha=0.35, solid_capstyle="butt")
        panel.errorbar(middle, place, xerr=[[middle - low], [high - middle]], fmt="o", color=colour, capsize=3)
        on_right = middle >= 1
        offset, side = ((7, 0), "left") if on_right else ((-7, 0), "right")
        edge = high if on_right else low
        panel.annotate(f"{ratio.median:.2f}", (edge, place), offset, textcoords="offset points", va="center", ha=side, fontsize=8.5)
        label = "" if goal.of == "gaman" else f", {goal.of.removeprefix('gaman, ')}"
        label += "" if goal.at is None else f" at {goal.at:,.0f}"
        labels.append(f"{question.name}: {case.name}{label}, {wanted(goal, against)}")
    panel.set_yticks(range(len(labels)), labels, fontsize=8.5)
    panel.axvline(1, color="black", lw=1)
    panel.set_xscale("log")
    ticks = {0.125: "8 x short of it", 0.25: "4 x", 0.5: "2 x short of it", 1: "goal", 2: "2 x better", 4: "4 x", 8: "8 x better"}
    left, right = panel.get_xlim()
    left, right = min(left * 0.8, 0.45), max(right * 1.2, 2.2)
    shown = {tick: label for tick, label in ticks.items() if left <= tick <= right}
    panel.set_xticks(list(shown), list(shown.values()), fontsize=8.5)
    panel.minorticks_off()
    panel.set_xlim(left, right)
    panel.set_ylim(-0.7, len(labels) - 0.3)
    panel.grid(True, axis="x", alpha=0.25)
    _unframe(panel)
    met = sum(judge(case, goal).verdict == "met" for _, case, goal in found)
    chart.suptitle(f"gaman meets {met} of its {len(found)} goals on this machine\n", fontsize=15, fontweight="bold")
    legend = (
        "right of the line: better than the goal · the number: the ratio that was measured\n"
        "green: met · orange: missed · pink: the baseline itself misses it · grey: can't tell"
    )
    _foot(chart, legend, results.about)
    return _save(plt, chart, folder, "summary")


def _grows(case: CaseResult) -> bool:
    return len({each.at for each in case.contenders if each.at is not None}) > 1


def _draw_bars(panel: Any, case: CaseResult) -> None:
    order = best_first(case, case.contenders)
    is_relative = any(each.name == case.baseline for each in order)
    spreads = [(to_baseline(case, each) or _ONE) if is_relative else interval(each.figures) for each in order]
    ours = [spread.median for each, spread in zip(order, spreads, strict=True) if each.kind == "ours"]
    # A very long bar would leave no room for the others, so it is cut and drawn with a gap.
    max_length = max(spread.third for spread in spreads)
    cut = min(max_length, MAX_LENGTH * max(ours)) if ours and case.better == "lower" else max_length
    unit = f" {case.unit.split()[0]}" if case.unit.split()[0] in ("µs", "ms", "s", "bytes") else ""
    for place, (each, spread) in enumerate(zip(reversed(order), reversed(spreads), strict=True)):
        colour = {"ours": OURS, "baseline": BASELINE, "peer": PEER}[each.kind]
        is_cut = spread.median > cut * 1.05
        panel.barh(place, min(spread.median, cut), color=colour, height=0.72)
        if is_cut:
            panel.barh(place, cut * 0.02, left=cut * 0.93, color="white", height=0.9)
        elif spread is not _ONE:
            error = [[spread.median - spread.first], [spread.third - spread.median]]
            panel.errorbar(spread.median, place, xerr=error, color="black", elinewidth=1.2, capsize=2.5)
        times = f"{figure(spread.median) if spread.median >= 10 else format(spread.median, '.2f')}x · " if is_relative else ""
        goals = [goal for goal in case.goals if goal.of == each.name]
        against_baseline = [goal for goal in goals if goal.against == case.baseline]
        said = "; ".join(
            f"goal {'≤' if goal.sense == 'at most' else '≥'} {goal.limit:g}: {judge(case, goal).verdict}"
            for goal in against_baseline
        )
        # A line marks the goal.
        limits = [goal.limit if goal.sense == "at most" or case.better == "higher" else 1 / goal.limit for goal in against_baseline]
        for limit in limits:
            panel.plot([limit, limit], [place - 0.45, place + 0.45], color=GOAL, lw=3, solid_capstyle="butt", zorder=5)
        panel.annotate(
            f"{times}{figure(statistics.median(each.figures))}{unit}{f' ({said})' if said else ''}",
            (max([min(spread.third, cut), *limits]), place),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8.5,
            fontweight="bold" if each.kind == "ours" else "normal",
        ).set_in_layout(False)
    panel.set_yticks(range(len(order)), [name_of(each) for each in reversed(order)], fontsize=9)
    for tick, each in zip(panel.get_yticklabels(), reversed(order), strict=True):
        if each.kind == "ours":
            tick.set_fontweight("bold")
            tick.set_color(OURS)
    if is_relative:
        panel.axvline(1, color="black", lw=1, ls="--")
    axis = f"times “{case.baseline}”, and {case.unit}" if is_relative else case.unit
    panel.set_xlabel(f"{axis}; {case.better} is better", fontsize=8.5)
    panel.set_xlim(0, cut * (2.3 if case.goals else 1.45))
    panel.set_xticks([tick for tick in panel.get_xticks() if tick <= cut])
    panel.tick_params(axis="x", labelsize=8)
    longest = max(len(name_of(each)) for each in order)
    _title(panel, case.name, _in_words(case, order), min(110, round(4.6 * longest)))
    _unframe(panel)


def _title(panel: Any, name: str, result: str, left: int) -> None:
    """Write the case and its result above *panel*, *left* points to the left of its axis."""
    # Both may be wider than the panel and must not stretch it: an empty title reserves their height.
    panel.set_title(" ", fontsize=11, pad=20)
    for text, height, style in ((name, 21, {"fontsize": 11, "fontweight": "bold"}), (result, 7, {"fontsize": 9})):
        panel.annotate(text, (0, 1), (-left, height), xycoords="axes fraction", textcoords="offset points", **style).set_in_layout(
            False
        )


def _in_words(case: CaseResult, order: Sequence[ContenderResult]) -> str:
    """Return the result of *case* in words."""
    mine = [each for each in order if each.kind == "ours"]
    # gaman on another server may have a better figure.
    ours = next((each for each in mine if each.name == "gaman"), next(iter(mine), None))
    peer = next((each for each in order if each.kind == "peer"), None)
    if ours is None:
        return ""
    said: list[str] = []
    if (ratio := to_baseline(case, ours)) is not None:
        said.append(f"{ratio.median:.2f} x the baseline")
    if peer is not None:
        _, ratio, *_ = judge(case, GoalResult("at least", 1, ours.name, peer.name, ours.at, peer.at))
        assert ratio is not None
        is_time = case.unit.split()[0] in ("µs", "ms", "s")
        more, less = ("faster", "slower") if is_time else ("better", "worse")
        if ratio.is_sure and ratio.low <= 1 <= ratio.high:
            said.append(f"can't be told from {peer.name}, the best peer")
        elif ratio.median >= 1:
            said.append(f"{ratio.median:.1f} x {more} than {peer.name}, the best peer")
        else:
            said.append(f"{1 / ratio.median:.1f} x {less} than {peer.name}, the best peer")
    return f"{ours.name}: {'; '.join(said)}" if said else ""


def _draw_growth(panel: Any, case: CaseResult, peers: Sequence[str]) -> None:
    names = list(dict.fromkeys(each.name for each in case.contenders))
    for name in names:
        points = sorted((each for each in case.contenders if each.name == name), key=lambda each: each.at or 0)
        kind = points[0].kind
        if points[0].at is None:
            panel.axhline(statistics.median(points[0].figures), color=BASELINE, ls="--", lw=1.5, label=name)
            continue
        colour, marker = (OURS, "o") if kind == "ours" else (BASELINE, "None")
        if kind == "peer":
            place = peers.index(name)
            colour, marker = LINES[place % len(LINES)], MARKERS[place % len(MARKERS)]
        spreads = [interval(each.figures) for each in points]
        medians = [each.median for each in spreads]
        error = [[each.median - each.first for each in spreads], [each.third - each.median for each in spreads]]
        panel.errorbar(
            [each.at for each in points],
            medians,
            yerr=error,
            color=colour,
            marker=marker,
            ms=5,
            lw=3 if kind == "ours" else 1.5,
            ls="--" if kind == "baseline" else "-",
            capsize=2,
            label=name,
            zorder=5 if kind == "ours" else 3,
        )
    panel.set_xscale("log")
    panel.set_yscale("log")
    ticks = sorted({each.at for each in case.contenders if each.at is not None})
    shown = ticks[:1]
    for tick in ticks[1:]:
        # A label that would overlap the one before is left out.
        if math.log(tick / shown[-1]) > 0.17 * math.log(ticks[-1] / ticks[0]):
            shown.append(tick)
    panel.set_xticks(shown, [f"{tick:,.0f}" for tick in shown], fontsize=8)
    # A line that hardly grows should look level.
    figures = [statistics.median(each.figures) for each in case.contenders]
    panel.set_ylim(min(figures) / 1.5, max(figures) * 1.5)
    panel.yaxis.set_major_locator(import_module("matplotlib.ticker").LogLocator(subs=(1, 2, 5)))
    panel.yaxis.set_major_formatter(_tick)
    panel.minorticks_off()
    panel.tick_params(axis="y", labelsize=8)
    panel.set_xlabel(case.axis, fontsize=8)
    panel.set_ylabel(f"{case.unit}\n{case.better} is better", fontsize=8)
    panel.grid(True, axis="y", alpha=0.3)
    panel.legend(fontsize=7.5, loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    ours = sorted((each for each in case.contenders if each.kind == "ours"), key=lambda each: each.at or 0)
    said = ""
    if len(ours) > 1 and ours[0].at is not None and ours[-1].name == ours[0].name:
        grown = statistics.median(ours[-1].figures) / statistics.median(ours[0].figures)
        said = f"{ours[0].name}: {grown:.2f} times as much with {ours[-1].at:,.0f} as with {ours[0].at:,.0f}"
    _title(panel, case.name, said, 30)
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _tick(value: float, position: int) -> str:
    return figure(value)


def _pyplot() -> Any:
    matplotlib: Any = import_module("matplotlib")
    matplotlib.use("agg")
    # Text stays text in an SVG, and equal results give equal files.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "gaman", "font.family": "DejaVu Sans"})
    return import_module("matplotlib.pyplot")


def _unframe(panel: Any) -> None:
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.tick_params(axis="y", length=0)


def _foot(chart: Any, legend: str, about: dict[str, str]) -> None:
    known = [about[key] for key in ("machine", "system", "commit") if key in about]
    known += [f"Python {about['python']}"] if "python" in about else []
    known += [f"msgspec {about['msgspec']}"] if "msgspec" in about else []
    chart.supxlabel(f"{legend}\n{' · '.join(known)}", fontsize=8, color="#555555")


def _save(plt: Any, chart: Any, folder: Path, name: str) -> list[Path]:
    files = [folder / f"{name}.svg", folder / f"{name}.png"]
    chart.savefig(files[0], metadata={"Date": None})
    # The panels already have their places; finding them again takes as long as drawing.
    chart.set_layout_engine("none")
    chart.savefig(files[1], dpi=110)
    plt.close(chart)
    return files
