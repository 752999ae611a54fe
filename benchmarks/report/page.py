"""A page as wide as a README shows it: texts are measured before they are placed, and nothing is stretched to fit.

Lengths are pixels at the README's size, from the top left corner.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from benchmarks.report.figures import Verdict
from benchmarks.report.results import Kind

WIDTH, MARGIN = 830, 10
TITLE, HEADING, BODY, SMALL = 17, 12, 11, 10
"""Sizes of texts."""
LINE = 1.35
"""The height of a line, in sizes of its text."""

# Okabe and Ito's colours, which people with red-green colour blindness can distinguish.
OURS, PEER, BASELINE = "#D55E00", "#56B4E9", "#999999"
GOAL, UNREACHED = "#009E73", "#CC79A7"
INK, GREY, RULE = "#222222", "#666666", "#DDDDDD"
COLOURS: dict[Kind, str] = {"ours": OURS, "peer": PEER, "baseline": BASELINE}
VERDICTS: dict[Verdict, tuple[str, str]] = {
    "met": ("✓", GOAL),
    "missed": ("✗", OURS),
    "out of reach": ("✗", UNREACHED),
    "can't tell": ("?", GREY),
}

_DPI = 100
_POINTS = 72 / _DPI
"""Points per pixel."""
_SHARPNESS = 2
"""Pixels of the PNG per pixel of the README."""
_widths: dict[tuple[str, float, bool], float] = {}
"""Measured texts, most of which the pages repeat: halves the time of drawing."""


class Page:
    """A drawing that grows downwards; *end* is where the next part begins."""

    def __init__(self, title: str, subtitle: str = "") -> None:
        matplotlib: Any = import_module("matplotlib")
        matplotlib.use("agg")
        # Text stays text in an SVG, equal results give equal files, and texts have the same width at each sharpness.
        matplotlib.rcParams.update(
            {"svg.fonttype": "none", "svg.hashsalt": "gaman", "font.family": "DejaVu Sans", "text.hinting": "none"}
        )
        self.figure: Any = import_module("matplotlib.figure").Figure(figsize=(WIDTH / _DPI, 1), dpi=_SHARPNESS * _DPI)
        self._canvas: Any = import_module("matplotlib.backends.backend_agg").FigureCanvasAgg(self.figure)
        self._renderer: Any = self._canvas.get_renderer()
        self._axes: Any = self.figure.add_axes((0, 0, 1, 1))
        self._axes.axis("off")
        self._font: Any = import_module("matplotlib.font_manager").FontProperties
        self._rectangle: Any = import_module("matplotlib.patches").Rectangle
        self.end = float(MARGIN)
        self.end = self.paragraph(title, MARGIN, self.end, size=TITLE, is_bold=True)
        if subtitle:
            self.end = self.paragraph(subtitle, MARGIN, self.end + 2, colour=GREY)
        self.end += 10

    def width(self, text: str, size: float = BODY, *, is_bold: bool = False) -> float:
        """Return the width of *text*."""
        measured = (text, size, is_bold)
        if measured not in _widths:
            font = self._font(size=size * _POINTS, weight="bold" if is_bold else "normal")
            _widths[measured] = float(self._renderer.get_text_width_height_descent(text, font, ismath=False)[0]) / _SHARPNESS
        return _widths[measured]

    def wrap(self, text: str, width: float, size: float = BODY, *, is_bold: bool = False) -> list[str]:
        """Return *text* in lines that are at most *width* wide, unless a word is wider."""
        lines: list[str] = []
        for word in text.split():
            longer = f"{lines[-1]} {word}" if lines else word
            if lines and self.width(longer, size, is_bold=is_bold) <= width:
                lines[-1] = longer
            else:
                lines.append(word)
        return lines

    def text(
        self,
        text: str,
        x: float,
        y: float,
        *,
        size: float = BODY,
        is_bold: bool = False,
        colour: str = INK,
        align: Literal["left", "right", "center"] = "left",
    ) -> None:
        """Write one line; *y* is its middle."""
        weight = "bold" if is_bold else "normal"
        # Three quarters of a text's size are above its baseline, so half of this is between the middle and the baseline.
        self._axes.text(
            x, y + size * 0.36, text, size=size * _POINTS, weight=weight, color=colour, ha=align, va="baseline", parse_math=False
        )

    def paragraph(
        self,
        text: str | Sequence[str],
        x: float,
        y: float,
        width: float = WIDTH - 2 * MARGIN,
        *,
        size: float = BODY,
        is_bold: bool = False,
        colour: str = INK,
    ) -> float:
        """Write *text*, wrapped unless it is lines, below *y*; return its lower end."""
        for line in self.wrap(text, width, size, is_bold=is_bold) if isinstance(text, str) else text:
            self.text(line, x, y + size * LINE / 2, size=size, is_bold=is_bold, colour=colour)
            y += size * LINE
        return y

    def bar(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        """Draw a rectangle; *y* is its middle."""
        self._axes.add_patch(self._rectangle((x, y - height / 2), width, height, color=colour, lw=0))

    def line(self, xs: Sequence[float], ys: Sequence[float], colour: str = INK, width: float = 1, **style: Any) -> None:
        """Draw a line through the points, with markers if *style* has one."""
        self._axes.plot(xs, ys, color=colour, lw=width * _POINTS, **{"solid_capstyle": "butt", **style})

    def whisker(self, ends: tuple[float, float], at: float, *, is_upright: bool = False, colour: str = INK) -> None:
        """Draw a spread between *ends*."""
        across = (at, at)
        xs, ys, marker = (across, ends, "_") if is_upright else (ends, across, "|")
        self.line(xs, ys, colour, 1.2, marker=marker, ms=5 * _POINTS, mew=1.2 * _POINTS)

    def save(self, folder: Path, name: str) -> list[Path]:
        """Write the page as SVG and PNG; return the files."""
        self.finish()
        files = [folder / f"{name}.svg", folder / f"{name}.png"]
        folder.mkdir(parents=True, exist_ok=True)
        self.figure.savefig(files[0], metadata={"Date": None})
        self.figure.savefig(files[1])
        return files

    def finish(self) -> None:
        """Cut the page below its end."""
        height = self.end + MARGIN
        self.figure.set_size_inches(WIDTH / _DPI, height / _DPI)
        self._axes.set_xlim(0, WIDTH)
        self._axes.set_ylim(height, 0)

    def foot(self, notes: Sequence[str], about: dict[str, str]) -> None:
        """Write the *notes*, one a line, and the conditions of the run."""
        self.end += 6
        for note in notes:
            self.end = self.paragraph(note, MARGIN, self.end, size=SMALL, colour=GREY)
        known = [about[key] for key in ("machine", "system") if key in about]
        known += [f"{about['cores']} cores"] if "cores" in about else []
        known += [f"Python {about['python']}"] if "python" in about else []
        known += [f"{name} {about[name]}" for name in ("gaman", "uvicorn", "uvloop", "msgspec") if name in about]
        known += [f"commit {about['commit']}"] if "commit" in about else []
        self.end = self.paragraph(" · ".join(known), MARGIN, self.end + 3, size=SMALL, colour=GREY)
