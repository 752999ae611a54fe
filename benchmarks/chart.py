"""Charts: a panel a case, in which a person sees who is ahead, by how much, and how sure that is."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.figures import best_first, interval, judge, to_floor
from benchmarks.results import CaseResult, ContenderResult, GoalResult, QuestionResult, Results
from benchmarks.table import figure

# Okabe and Ito's colours, which those who confuse red and green tell apart too.
OURS, PEER, FLOOR, GOAL = "#D55E00", "#56B4E9", "#999999", "#009E73"
LINES = ("#56B4E9", "#009E73", "#CC79A7", "#E69F00", "#0072B2", "#000000", "#F0E442")
MARKERS = "ovsD^Px"
WIDE = 3
EACH = (6.2, 0.33)
"""Inches: how wide a panel is, and how high a bar."""


def draw(question: QuestionResult, about: dict[str, str], folder: Path) -> list[Path]:
    """Draw *question* as SVG and PNG in *folder*; return the files, none where nothing was found."""
    cases = [case for case in question.cases if case.contenders]
    if not cases:
        return []
    plt = _pyplot()
    columns = min(2, len(cases))
    rows = math.ceil(len(cases) / columns)
    heights = [
        max(3.4 if case.axis else 1.3 + EACH[1] * len(case.contenders) for case in cases[row * columns : (row + 1) * columns])
        for row in range(rows)
    ]
    size = (EACH[0] * columns, sum(heights) + 1.1)
    chart, grid = plt.subplots(rows, columns, figsize=size, squeeze=False, layout="constrained", height_ratios=heights)
    panels = [panel for row in grid for panel in row]
    for panel, case in zip(panels, cases, strict=False):
        (_draw_growth if case.axis else _draw_bars)(panel, case)
    for panel in panels[len(cases) :]:
        panel.axis("off")
    chart.suptitle(f"{question.title}\n", fontsize=15, fontweight="bold")
    _foot(chart, about)
    return _save(plt, chart, folder, question.name)


def summarize(results: Results, folder: Path) -> list[Path]:
    """Draw all goals in one picture: how gaman stands against each."""
    found: list[tuple[str, GoalResult, CaseResult]] = []
    for question in results.questions:
        for case in question.cases:
            found += [(f"{question.name}: {case.name}", goal, case) for goal in case.goals if judge(case, goal).ratio is not None]
    if not found:
        return []
    plt = _pyplot()
    chart, panel = plt.subplots(figsize=(12, 1.8 + 0.3 * len(found)), layout="constrained")
    labels: list[str] = []
    for place, (name, goal, case) in enumerate(reversed(found)):
        verdict, ratio, against = judge(case, goal)
        assert ratio is not None
        # To the right of 1 is better than the goal, whatever the goal's sense.
        by = [goal.limit / each if goal.sense == "at most" else each / goal.limit for each in (ratio.low, ratio.median, ratio.high)]
        low, middle, high = sorted(by)
        colour = {"met": GOAL, "missed": OURS, "can't tell": FLOOR}[verdict]
        panel.plot([1, middle], [place, place], color=colour, lw=5, alpha=0.35, solid_capstyle="butt")
        panel.errorbar(middle, place, xerr=[[middle - low], [high - middle]], fmt="o", color=colour, capsize=3)
        panel.annotate(f"{ratio.median:.2f}", (high, place), (5, 0), textcoords="offset points", va="center", fontsize=8)
        than = against if goal.against_at is None else f"itself at {goal.against_at:,.0f} {case.axis}"
        times = "× the cost of" if goal.sense == "at most" else "× as good as"
        labels.append(f"{name} ({goal.of}) – {goal.sense} {goal.limit:g} {times} {than}")
    panel.set_yticks(range(len(labels)), labels, fontsize=8)
    panel.axvline(1, color="black", lw=1)
    panel.set_xscale("log")
    panel.set_xticks([0.25, 0.5, 0.8, 1, 1.25, 2, 4, 8], ["4× short", "2× short", "0.8", "the goal", "1.25", "2× better", "4×", "8×"])
    panel.minorticks_off()
    panel.set_ylim(-0.7, len(labels) - 0.3)
    _unframe(panel)
    panel.set_xlabel("how far from its goal: right is better; the number beside a point is the ratio that was measured", fontsize=9)
    met = sum(judge(case, goal).verdict == "met" for _, goal, case in found)
    chart.suptitle(f"gaman meets {met} of its {len(found)} goals on this machine\n", fontsize=15, fontweight="bold")
    _foot(chart, results.about)
    return _save(plt, chart, folder, "summary")


def _draw_bars(panel: Any, case: CaseResult) -> None:
    order = best_first(case, case.contenders)
    by_floor = any(each.name == case.floor for each in order)
    most = 0.0
    for place, each in enumerate(reversed(order)):
        spread = to_floor(case, each) if by_floor else interval(each.figures)
        middle, first, third = (1.0, 1.0, 1.0) if spread is None else (spread.median, spread.first, spread.third)
        most = max(most, third)
        colour = {"ours": OURS, "floor": FLOOR, "peer": PEER}[each.kind]
        error = [[max(0.0, middle - first)], [max(0.0, third - middle)]]
        panel.barh(place, middle, color=colour, height=0.72, xerr=error, error_kw={"elinewidth": 1.2, "capsize": 2.5})
        times = f"{middle:.2f}× · " if by_floor else ""
        panel.annotate(
            f"{times}{figure(statistics.median(each.figures))}",
            (third, place),
            (6, 0),
            textcoords="offset points",
            va="center",
            fontsize=8,
            fontweight="bold" if each.kind == "ours" else "normal",
        )
    panel.set_yticks(range(len(order)), [_label(each) for each in reversed(order)], fontsize=9)
    for tick, each in zip(panel.get_yticklabels(), reversed(order), strict=True):
        if each.kind == "ours":
            tick.set_fontweight("bold")
            tick.set_color(OURS)
    unit = case.unit
    if by_floor:
        panel.axvline(1, color="black", lw=1, ls="--")
        for goal in case.goals:
            _draw_goal(panel, case, goal, order)
        panel.set_xlabel(f"times “{case.floor}” (dashed); behind it {unit}; {case.better} is better", fontsize=8)
    else:
        panel.set_xlabel(f"{unit}; {case.better} is better", fontsize=8)
    panel.set_xlim(0, most * 1.28)
    panel.set_title(f"{case.name}\n{_in_words(case, order)}", fontsize=10, loc="left")
    panel.tick_params(axis="x", labelsize=8)
    _unframe(panel)


def _draw_goal(panel: Any, case: CaseResult, goal: GoalResult, order: Sequence[ContenderResult]) -> None:
    """Mark where the bar of gaman is to end for a goal against the floor."""
    place = next((place for place, each in enumerate(reversed(order)) if each.name == goal.of), None)
    if place is None or goal.against != case.floor:
        return
    limit = goal.limit if (goal.sense == "at most") == (case.better == "lower") else 1 / goal.limit
    if case.better == "higher" and goal.sense == "at least":
        limit = goal.limit
    panel.plot([limit, limit], [place - 0.46, place + 0.46], color=GOAL, lw=3, solid_capstyle="butt", zorder=5)
    panel.annotate(f"goal {goal.limit:g}", (limit, place + 0.4), (0, 1), textcoords="offset points", ha="center", fontsize=7, color=GOAL)


def _in_words(case: CaseResult, order: Sequence[ContenderResult]) -> str:
    """Return the answer as a person would give it."""
    ours = next((each for each in order if each.kind == "ours"), None)
    peer = next((each for each in order if each.kind == "peer"), None)
    if ours is None:
        return ""
    said: list[str] = []
    if (by_floor := to_floor(case, ours)) is not None:
        said.append(f"{by_floor.median:.2f} times the {case.floor}")
    if peer is not None:
        goal = GoalResult("at least", 1, ours.name, peer.name, ours.at, peer.at)
        _, ratio, _ = judge(case, goal)
        assert ratio is not None
        more, less = ("faster", "slower") if case.better == "lower" else ("more", "less")
        unit_is_time = "µs" in case.unit or "ms" in case.unit
        if not unit_is_time:
            more, less = "better", "worse"
        if ratio.is_sure and ratio.low <= 1 <= ratio.high:
            said.append(f"no telling it from {peer.name}")
        elif ratio.median >= 1:
            said.append(f"{ratio.median:.1f} times {more} than the best peer, {peer.name}")
        else:
            said.append(f"{1 / ratio.median:.1f} times {less} than the best peer, {peer.name}")
    return f"{ours.name}: {'; '.join(said)}" if said else ""


def _draw_growth(panel: Any, case: CaseResult) -> None:
    names = list(dict.fromkeys(each.name for each in case.contenders))
    ends: list[tuple[float, float, str, str]] = []
    peers = 0
    for name in names:
        points = sorted((each for each in case.contenders if each.name == name), key=lambda each: each.at or 0)
        kind = points[0].kind
        if points[0].at is None:
            panel.axhline(statistics.median(points[0].figures), color=FLOOR, ls="--", lw=1.5, label=name)
            continue
        colour, marker = (OURS, "o") if kind == "ours" else (FLOOR, "None")
        if kind == "peer":
            colour, marker = LINES[peers % len(LINES)], MARKERS[peers % len(MARKERS)]
            peers += 1
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
            ls="--" if kind == "floor" else "-",
            capsize=2,
            label=name,
            zorder=5 if kind == "ours" else 3,
        )
        ends.append((points[-1].at or 0, medians[-1], name, colour))
    panel.set_xscale("log")
    panel.set_yscale("log")
    ticks = sorted({each.at for each in case.contenders if each.at is not None})
    panel.set_xticks(ticks, [f"{tick:,.0f}" for tick in ticks], fontsize=8)
    panel.minorticks_off()
    panel.yaxis.set_major_formatter(lambda value, _: figure(value))
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
    panel.set_title(f"{case.name}\n{said}", fontsize=10, loc="left")
    for side in ("top", "right"):
        panel.spines[side].set_visible(False)


def _label(contender: ContenderResult) -> str:
    name = contender.name if contender.version is None else f"{contender.name} {contender.version}"
    return name if contender.at is None else f"{name}, {contender.at:,.0f}"


def _pyplot() -> Any:
    matplotlib: Any = import_module("matplotlib")
    matplotlib.use("agg")
    # Text stays text in an SVG, and the same results give the same file.
    matplotlib.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "gaman", "font.family": "DejaVu Sans"})
    return import_module("matplotlib.pyplot")


def _unframe(panel: Any) -> None:
    for side in ("top", "right", "left"):
        panel.spines[side].set_visible(False)
    panel.tick_params(axis="y", length=0)


def _foot(chart: Any, about: dict[str, str]) -> None:
    known = [about[key] for key in ("machine", "python", "commit") if key in about]
    known += [f"msgspec {about['msgspec']}"] if "msgspec" in about else []
    legend = "orange: gaman · grey: the floor · blue: others · whiskers: quartiles of the rounds · green: the goal"
    chart.supxlabel(f"{legend}\n{' · '.join(known)}", fontsize=8, color="#555555")


def _save(plt: Any, chart: Any, folder: Path, name: str) -> list[Path]:
    files = [folder / f"{name}.svg", folder / f"{name}.png"]
    chart.savefig(files[0], metadata={"Date": None})
    chart.savefig(files[1], dpi=110)
    plt.close(chart)
    return files
