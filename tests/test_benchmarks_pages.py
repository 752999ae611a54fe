from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks.harness import Plan
from benchmarks.report import chart, goals, summary
from benchmarks.report.figures import tally
from benchmarks.report.page import MARGIN, WIDTH, Page
from benchmarks.report.results import (
    BEST_PEER,
    SESSIONS,
    AbsentResult,
    Better,
    CaseResult,
    ContenderResult,
    GoalResult,
    Kind,
    QuestionResult,
    Results,
)
from benchmarks.rivals.peers import PEERS
from benchmarks.rivals.servers import SERVERS

ABOUT = {
    "machine": "Intel(R) Xeon(R) Platinum 8488C, of a cloud with a long name",
    "system": "Linux-6.18.44-fc-v595-x86_64-with-glibc2.36",
    "cores": "2",
    "python": "3.11.7 (64-bit)",
    "gaman": "0.1.0",
    "uvicorn": "0.54.0",
    "uvloop": "0.23.0",
    "msgspec": "0.23.0",
    "commit": "eca378fb6392-dirty",
}
LONG = ["gaman on Granian, each cookie new", "Fastify with secure-session", "Elysia on Bun with signed cookies"]
QUESTIONS = [*command.QUESTIONS, *command.LONG_QUESTIONS]


def contender(chance: random.Random, name: str, kind: Kind, at: float | None, scale: float, session: str) -> ContenderResult:
    middle = scale * chance.lognormvariate(0, 1.5)
    figures = [middle * chance.lognormvariate(0, 0.3) for _ in range(20)]
    version = "25.12.0, secure-session 8.2.0" if kind == "peer" else None
    return ContenderResult(name, kind, "a.py:1", figures, version, at, {}, session)


def made_up(name: str, seed: int) -> QuestionResult:
    """Return the question's own cases, titles and goals with made-up figures and all names of contenders, and with longer ones."""
    [question] = command.find_questions([name])
    chance = random.Random(seed)
    found: list[CaseResult] = []
    cases = question.cases(Plan())
    # The other cases of a question look like these.
    for case in [*cases[:4], *(case for case in cases[4:] if case.summary)]:
        scale = 20_000.0 if case.better == "higher" else 5.0
        ours = dict.fromkeys(["gaman", LONG[0], *(goal.of for goal in case.goals)])
        peers = dict.fromkeys([*LONG[1:], *(peer.name for peer in PEERS[:3])])
        if name == "over_http":
            ours |= dict.fromkeys(server.name for server in SERVERS if server.kind == "ours")
            peers |= dict.fromkeys(server.name for server in SERVERS if server.kind == "peer")
        kinds: dict[str, Kind] = {**dict.fromkeys(peers, "peer"), **dict.fromkeys(ours, "ours"), case.baseline: "baseline"}
        # A goal's other contender may be a peer or not.
        kinds |= {goal.against: "peer" for goal in case.goals if goal.against not in (BEST_PEER, *kinds)}
        ats: Sequence[float | None] = (1, 1000, 1_000_000) if case.axis else (None,)
        present = [
            contender(chance, each, kind, at, scale, chance.choice(["", *SESSIONS]) if case.summary else "")
            for each, kind in kinds.items()
            for at in ats
        ]
        absent = [
            AbsentResult("Gone with the wind", "not installed: npm install --prefix benchmarks/rivals/node"),
            AbsentResult("Falcon with a middleware", "no sessions in a cookie"),
        ]
        wanted = [GoalResult(goal.sense, goal.limit, goal.of, goal.against, goal.at, goal.against_at) for goal in case.goals]
        described = (case.name, case.unit, case.better, case.baseline, case.source, case.axis, wanted)
        found.append(CaseResult(*described, present, absent, case.summary))
    reason = "failed: AssertionError('there was no response, and the errors of servers are longer than this')"
    absent = [AbsentResult("all contenders", reason)]
    found.append(CaseResult("failed", "µs", "lower", "a", "a.py:1", absent=absent, summary=found[0].summary and "failed"))
    return QuestionResult(name, question.title, question.source, 1.0, found, list(question.notes))


def pages(seed: int) -> Iterator[tuple[str, Page]]:
    run = Results(ABOUT, False, [made_up(name, seed + number) for number, name in enumerate(QUESTIONS)])
    for question in run.questions:
        yield question.name, chart.page_of(question, ABOUT)
    yield "goals", goals.page_of(run)
    page = summary.page_of(run)
    assert page is not None
    yield "summary", page


def faults(page: Page) -> list[str]:
    """Return the texts that are cut off by the edge of the page, that overlap, or that a line or a bar crosses."""
    page.finish()
    renderer = page.figure.canvas.get_renderer()
    [axes] = page.figure.axes
    boxes = [(text.get_text(), text.get_window_extent(renderer)) for text in axes.texts]
    corners = [(said, box.extents.tolist()) for said, box in boxes]
    edge = page.figure.bbox
    cut = [said for said, box in boxes if min(box.x0, box.y0) < 0 or box.x1 > edge.x1 or box.y1 > edge.y1]
    found = [f"{said!r} is cut off" for said in cut]
    found += [
        f"{one!r} overlaps {other!r}"
        for (one, (left, bottom, right, top)), (other, second) in combinations(corners, 2)
        if left <= second[2] and second[0] <= right and bottom <= second[3] and second[1] <= top
    ]
    drawn: list[Any] = [line.get_path().transformed(line.get_transform()) for line in axes.lines]
    drawn += [patch.get_path().transformed(patch.get_transform()) for patch in axes.patches]
    extents = [(path, path.get_extents()) for path in drawn]
    found += [
        f"{said!r} is crossed"
        for said, box in boxes
        for path, extent in extents
        if extent.x1 >= box.x0 and extent.x0 <= box.x1 and extent.y1 >= box.y0 and extent.y0 <= box.y1 and path.intersects_bbox(box)
    ]
    return found


@pytest.mark.slow
def test_no_text_of_a_page_is_cut_off_or_covered() -> None:
    for name, page in pages(1):
        assert faults(page) == [], name


def test_a_text_that_is_cut_off_or_covered_is_found() -> None:
    page = Page("title")
    page.text("right of the edge", WIDTH - 20, page.end)
    page.text("one", MARGIN, page.end)
    page.text("other", MARGIN + 5, page.end)
    page.text("crossed", 200, page.end)
    page.whisker((190, 300), page.end)
    page.text("free", 200, page.end + 30)
    page.bar(400, page.end + 30, 50, 10, "blue")
    page.text("covered", 410, page.end + 30)
    page.end += 60
    assert faults(page) == [
        "'right of the edge' is cut off",
        "'one' overlaps 'other'",
        "'crossed' is crossed",
        "'covered' is crossed",
    ]


def text_of(page: Page) -> str:
    [axes] = page.figure.axes
    return " ".join(text.get_text() for text in axes.texts)


def test_the_summary_has_each_framework_with_its_version_its_session_and_the_reason_of_an_absence() -> None:
    run = Results(ABOUT, False, [made_up("in_process", 1), made_up("over_http", 2)])
    page = summary.page_of(run)
    assert page is not None
    said = text_of(page)
    for expected in ("requests a second: higher is better", "µs of CPU a call: lower is better", "not installed: npm install"):
        assert expected in said
    for expected in ("25.12.0", "encrypts", "signs", "Python 3.11.7", "uvicorn 0.54.0", "bare callable", "Each cookie new", "Xeon"):
        assert expected in said
    # A long name is wrapped.
    names = {server.name for server in SERVERS if {*server.kinds} & {"plain", "cookies", "redis"}}
    assert {word for name in names for word in name.split()} <= {*said.split()}
    rows = [text.get_text() for text in page.figure.axes[0].texts if text.get_position()[0] == MARGIN]
    assert rows.index("gaman") < rows.index("Starlette 25.12.0") < rows.index("bare callable")


def test_the_summary_has_columns_for_json_and_for_sessions_in_process_and_over_http() -> None:
    for question in command.find_questions(["in_process", "over_http"]):
        for plan in (Plan(), Plan(quick=True)):
            headings = [case.summary for case in question.cases(plan) if case.summary]
            assert {"JSON", "read a session in a cookie", "write a session in a cookie"} <= {*headings}


def test_the_summary_says_where_a_peer_is_not_measured_and_which_figures_come_from_too_few_rounds() -> None:
    def case(rounds: int, *names: str) -> CaseResult:
        kinds: dict[str, Kind] = {"gaman": "ours", "gaman on Granian": "ours"}
        found = [ContenderResult(name, kinds.get(name, "peer"), "a.py:1", [1.0 + len(name)] * rounds) for name in names]
        return CaseResult("case", "µs", "lower", "baseline", "a.py:1", contenders=found, summary="a column")

    def said_of(*cases: CaseResult, quick: bool = False) -> str:
        page = summary.page_of(Results(ABOUT, quick, [QuestionResult("question", "What?", "a.py:1", 1.0, [*cases])]))
        assert page is not None
        return text_of(page)

    said = said_of(case(9, "gaman", "gaman on Granian", "Hono"), case(9, "gaman", "Falcon"))
    # Once for each peer; gaman's own rows have blanks.
    assert said.count("not measured") == 2
    assert said.count("Not measured:") == 1
    assert "too few rounds" not in said
    assert "quick run" not in said
    said = said_of(case(9, "gaman", "Hono"), case(2, "gaman", "Hono"), quick=True)
    assert "not measured" not in said.lower()
    assert "too few rounds to be sure: 2, instead of 6 or more" in said
    assert "A quick run has few rounds" in said


def test_a_run_without_columns_has_no_summary_and_one_without_goals_no_page_of_goals(tmp_path: Path) -> None:
    run = Results(ABOUT, False, [QuestionResult("question", "What?", "a.py:1", 1.0, [])])
    assert summary.draw(run, tmp_path) == goals.draw(run, tmp_path) == []


def test_the_title_of_the_page_of_goals_is_their_count() -> None:
    run = Results(ABOUT, False, [made_up("in_process", 1)])
    said = tally(run)
    assert text_of(goals.page_of(run)).startswith(said)
    assert f" of {sum(len(case.goals) for case in run.questions[0].cases)} goals met" in said


@pytest.mark.parametrize(
    ("better", "mine", "other", "expected"),
    [
        ("higher", 3.0, 2.0, "JSON: gaman serves 1.5 × the requests of the best other framework here, Hono (signs)."),
        ("higher", 1.0, 2.0, "JSON: gaman serves 0.5 × the requests of the best other framework here, Hono (signs)."),
        ("lower", 2.0, 3.0, "JSON: the best other framework here, Hono (signs), takes 1.5 × the time of gaman."),
        ("lower", 2.0, 2.0, "JSON: gaman can't be told from the best other framework here, Hono (signs)."),
    ],
)
def test_the_summary_says_how_gaman_does_beside_the_best_peer(better: Better, mine: float, other: float, expected: str) -> None:
    found = [
        ContenderResult("gaman", "ours", "a.py:1", [mine] * 9),
        ContenderResult("Hono", "peer", "a.py:1", [other] * 9, session="signs"),
        ContenderResult("worse", "peer", "a.py:1", [other * (0.5 if better == "higher" else 2)] * 9),
    ]
    case = CaseResult("case", "µs", better, "baseline", "a.py:1", contenders=found, summary="JSON")
    page = summary.page_of(Results(ABOUT, False, [QuestionResult("question", "What?", "a.py:1", 1.0, [case])]))
    assert page is not None
    assert expected in text_of(page)
