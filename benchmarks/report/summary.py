"""The summary page: gaman beside the frameworks that a reader may use, with the columns that cases name."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks.report.figures import MIN_ROUNDS, best_first, best_peer, find, interval, ratios
from benchmarks.report.page import BODY, GREY, HEADING, INK, LINE, MARGIN, OURS, RULE, SMALL, WIDTH, Page
from benchmarks.report.panels import cut_at, draw_bar
from benchmarks.report.results import SESSIONS, CaseResult, ContenderResult, QuestionResult, Results
from benchmarks.report.table import figure

NAME = 172
"""The width of the column with names."""
BAR = 11
SUBTITLE = "gaman is a minimal async web framework for Python. All frameworks do the same tasks, on one machine, in turns."
NOT_MEASURED = "not measured"


def draw(results: Results, folder: Path) -> list[Path]:
    """Draw the summary as SVG and PNG in *folder*; return the files, none if no case has a column."""
    page = page_of(results)
    return [] if page is None else page.save(folder, "summary")


def page_of(results: Results) -> Page | None:
    blocks = [Block(question, [case for case in question.cases if case.summary]) for question in results.questions]
    # Requests over HTTP tell a stranger more than calls without a server do.
    blocks = sorted((block for block in blocks if block.columns), key=lambda block: block.columns[0].better != "higher")
    if not blocks:
        return None
    page = Page("How does gaman compare with other frameworks?", SUBTITLE)
    for block in blocks:
        block.draw(page)
        page.end += 16
    shown = {each.session for block in blocks for case in block.columns for each in case.contenders}
    meanings = "; ".join(f"{name}: {meaning}" for name, meaning in SESSIONS.items() if name in shown)
    notes = [f"What a session does with its values. {meanings[:1].upper()}{meanings[1:]}."] if meanings else []
    notes += list(dict.fromkeys(note for block in blocks for note in block.question.notes))
    if any(block.has_blanks for block in blocks):
        notes += ["Not measured: the framework has no such session, or the benchmarks don't set it up."]
    notes += ["A bar with a gap is cut. The charts of the questions have the spreads."]
    notes += (
        ["A quick run has few rounds, fewer frameworks, and JavaScript that may not be warm yet. “make bench” has more."]
        if results.quick
        else []
    )
    page.foot(notes, results.about)
    return page


class Row(NamedTuple):
    """A contender, with its figures by column; *absent* has the reasons by column."""

    name: str
    version: str
    found: dict[int, ContenderResult]
    absent: dict[int, str]

    @property
    def kind(self) -> str:
        return next((each.kind for each in self.found.values()), "peer")


class Block(NamedTuple):
    """The table of a question; *columns* are its cases on this page."""

    question: QuestionResult
    columns: Sequence[CaseResult]

    def draw(self, page: Page) -> None:
        unit, divisor = _unit(self.columns[0])
        page.end = page.paragraph(self.question.title, MARGIN, page.end, size=HEADING, is_bold=True)
        page.end = page.paragraph(f"{unit}: {self.columns[0].better} is better", MARGIN, page.end, colour=GREY)
        for said in self._in_words():
            page.end = page.paragraph(said, MARGIN, page.end, is_bold=True, colour=OURS)
        page.end += 4
        width = (WIDTH - 2 * MARGIN - NAME) / max(3, len(self.columns))
        headings = [page.wrap(case.summary, width - 10, is_bold=True) for case in self.columns]
        lefts = [MARGIN + NAME + column * width for column in range(len(self.columns))]
        for left, lines in zip(lefts, headings, strict=True):
            page.paragraph(lines, left, page.end, is_bold=True)
        page.end += max(map(len, headings)) * BODY * LINE + 3
        rows = list(self._rows())
        for row in rows:
            page.line([MARGIN, WIDTH - MARGIN], [page.end, page.end], RULE, 0.7)
            self._draw_row(page, row, lefts, width, divisor)
        page.line([MARGIN, WIDTH - MARGIN], [page.end, page.end], RULE, 0.7)
        for case in self.columns:
            if not case.contenders:
                reason = "; ".join(dict.fromkeys(each.reason for each in case.absent))
                page.end = page.paragraph(f"{case.summary}: not measured, {reason}", MARGIN, page.end + 2, size=SMALL, colour=GREY)

    def _in_words(self) -> Iterator[str]:
        """Compare gaman with the best peer, in the first case and in the first one with a session."""
        cases = [case for case in self.columns if find(case, "gaman") and best_peer(case)]
        for case in dict.fromkeys(map(self.columns.index, cases[:1] + [case for case in cases if _has_session(case)][:1])):
            yield _compared(self.columns[case])
        rounds = min((len(each.figures) for case in cases for each in case.contenders), default=MIN_ROUNDS)
        if rounds < MIN_ROUNDS:
            yield f"Some of these figures come from too few rounds to be sure: {rounds}, instead of {MIN_ROUNDS} or more."

    def _rows(self) -> Iterator[Row]:
        """Return gaman first, then the peers, the best first, and the bare callables last."""
        names = dict.fromkeys(
            each.name for case in self.columns for each in (*case.contenders, *(case.absent if case.contenders else ()))
        )
        rows = [self._row(name) for name in names]

        def rank(row: Row) -> tuple[int, bool, float]:
            costs = [_to_gaman(self.columns[column], each) for column, each in row.found.items()]
            place = ["ours", "peer", "baseline"].index(row.kind)
            # gaman by itself is the first row.
            return place, not row.found, 0 if row.name == "gaman" else 1 + statistics.fmean(costs or [0])

        return iter(sorted(rows, key=rank))

    def _row(self, name: str) -> Row:
        found = {number: each for number, case in enumerate(self.columns) if (each := find(case, name)) is not None}
        absent = {number: each.reason for number, case in enumerate(self.columns) for each in case.absent if each.name == name}
        versions = [each.version or "" for each in found.values() if each.kind == "peer"]
        return Row(name, versions[0].partition(",")[0] if versions else "", found, absent)

    def _blanks(self, row: Row) -> list[int]:
        """Return the columns in which a peer has neither a figure nor a reason."""
        if row.kind != "peer" or not row.found:
            return []
        return [column for column in range(len(self.columns)) if column not in row.found and column not in row.absent]

    @property
    def has_blanks(self) -> bool:
        return any(map(self._blanks, self._rows()))

    def _draw_row(self, page: Page, row: Row, lefts: Sequence[float], width: float, divisor: float) -> None:
        is_ours = row.kind == "ours"
        name = page.wrap(f"{row.name} {row.version}", NAME - 10, is_bold=is_ours)
        reasons = {column: page.wrap(reason, width - 12, SMALL) for column, reason in row.absent.items()}
        if not row.found:
            # The reason is the same for all columns.
            reasons = {0: page.wrap("; ".join(dict.fromkeys(row.absent.values())), WIDTH - 2 * MARGIN - NAME, SMALL)}
        of_name = page.wrap("written by hand, no framework" if row.kind == "baseline" else "", NAME - 10, SMALL)
        notes = {column: page.wrap(each.session, width - 12, SMALL) for column, each in row.found.items() if each.session}
        heights = [len(name) * BODY + len(of_name) * SMALL, *(len(lines) * SMALL for lines in reasons.values())]
        heights += [(BODY + len(notes.get(column, ())) * SMALL) for column in row.found]
        height = max(heights) * LINE + 6
        top = page.end + 3
        y = page.paragraph(name, MARGIN, top, is_bold=is_ours, colour=OURS if is_ours else INK)
        page.paragraph(of_name, MARGIN, y, size=SMALL, colour=GREY)
        for column, each in row.found.items():
            case = self.columns[column]
            order = best_first(case, case.contenders)
            lengths = [statistics.median(other.figures) for other in order]
            cut = cut_at(case, order, lengths)
            median, text = statistics.median(each.figures), page.width("8,888", is_bold=True)
            middle, length = top + BODY * LINE / 2, min(median, cut) / cut * (width - text - 22)
            draw_bar(page, lefts[column], middle, length, BAR, each.kind, is_cut=median > cut)
            page.text(figure(median / divisor), lefts[column] + length + 5, middle, is_bold=is_ours)
            page.paragraph(notes.get(column, ()), lefts[column], top + BODY * LINE, size=SMALL, colour=GREY)
        for column in self._blanks(row):
            page.paragraph(NOT_MEASURED, lefts[column], top, size=SMALL, colour=GREY)
        for column, lines in reasons.items():
            page.paragraph(lines, lefts[column], top, size=SMALL, colour=GREY)
        page.end += height


def _has_session(case: CaseResult) -> bool:
    return any(each.session for each in case.contenders)


def _compared(case: CaseResult) -> str:
    mine, peer = best_first(case, [each for each in case.contenders if each.kind == "ours"])[0], best_peer(case)
    assert peer is not None
    ratio = interval(ratios(mine, peer) if case.better == "higher" else ratios(peer, mine))
    names = [f"{each.name} ({each.session})" if each.session else each.name for each in (mine, peer)]
    task = f"{case.summary[:1].upper()}{case.summary[1:]}"
    if ratio.low <= 1 <= ratio.high:
        return f"{task}: {names[0]} can't be told from the best other framework here, {names[1]}."
    if case.better == "higher":
        return f"{task}: {names[0]} serves {ratio.median:.1f} × the requests of the best other framework here, {names[1]}."
    return f"{task}: the best other framework here, {names[1]}, takes {ratio.median:.1f} × the time of {names[0]}."


def _to_gaman(case: CaseResult, each: ContenderResult) -> float:
    """Return the cost of a contender divided by gaman's."""
    gaman = find(case, "gaman") or each
    ratio = statistics.median(each.figures) / statistics.median(gaman.figures)
    return 1 / ratio if case.better == "higher" else ratio


def _unit(case: CaseResult) -> tuple[str, float]:
    """Return the unit of the page, and its size in the unit of *case*."""
    return ("thousand requests a second", 1000) if case.unit == "requests a second" else (case.unit, 1)
