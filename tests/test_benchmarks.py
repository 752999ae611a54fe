from __future__ import annotations

import json
import random
import re
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from itertools import count, repeat
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__ as command
from benchmarks import harness
from benchmarks.asgi import fetch, log_in
from benchmarks.harness import Absent, Case, Contender, Goal, Missing, Plan, Question
from benchmarks.places import place_for
from benchmarks.questions import in_process, middleware, scaling, sealing, serializer
from benchmarks.report import chart, goals, summary
from benchmarks.report import compare as comparing
from benchmarks.report.figures import MIN_ROUNDS, interval, judge, ratios, to_baseline
from benchmarks.report.results import (
    BEST_PEER,
    AbsentResult,
    CaseResult,
    ContenderResult,
    GoalResult,
    Kind,
    QuestionResult,
    Results,
    load,
    save,
)
from benchmarks.report.table import show
from benchmarks.rivals import bare, bare_stores, ours, peers
from benchmarks.rivals.bare import ASGI, BareMemory
from gaman import App

pytestmark = pytest.mark.anyio

QUICK = Plan(quick=True)
QUESTIONS = [serializer.QUESTION, sealing.QUESTION, in_process.QUESTION, middleware.QUESTION, scaling.QUESTION]


def nothing(case: str, seconds: float) -> None:
    pass


def lack(name: str) -> None:
    raise ModuleNotFoundError(f"No module named {name!r}", name=name)


# The contenders


@pytest.mark.parametrize(
    ("path", "baseline", "app"),
    [
        ("/json", bare.plain, ours.plain),
        ("/users/42/posts/7", bare.plain, lambda: ours.plain(*bare.OTHERS)),
        ("/json", bare.plain, ours.unused_session),
    ],
)
async def test_the_bare_callable_and_gaman_give_the_same_response(path: str, baseline: ASGI, app: Callable[[], App]) -> None:
    expected = await fetch(baseline, path)
    assert expected[0] == 200
    built = app()
    await built.load()
    assert await fetch(built, path) == expected
    await built.shutdown()


@pytest.mark.parametrize("kind", ["cookies", "memory"])
async def test_the_bare_callable_and_gaman_respond_alike_in_a_session_except_for_the_token(kind: str) -> None:
    memory = BareMemory()
    read = bare.read_cookie if kind == "cookies" else memory.read
    write = bare.write_cookie if kind == "cookies" else memory.write
    app = ours.with_session({"type": kind})
    await app.load()
    both: list[tuple[ASGI, ASGI]] = [(read, write), (app, app)]
    for path in ("/read", "/write"):
        responses: list[object] = []
        for reader, writer in both:
            cookie = await log_in(writer, "/write")
            status, headers, body = await fetch(reader if path == "/read" else writer, path, cookie)
            headers = {name: value.partition(b"; ")[2] if name == b"set-cookie" else value for name, value in headers.items()}
            responses.append((status, headers, body))
        assert responses[0] == responses[1], path
    await app.shutdown()


async def test_the_bare_callable_and_gaman_begin_a_session_with_the_same_two_keys() -> None:
    app = ours.with_session({"type": "cookies"}, bare.SECOND_KEY)
    await app.load()
    (status, headers, body), (expected_status, expected, expected_body) = [
        await fetch(each, "/fill") for each in (app, bare.begin_cookie)
    ]
    assert (status, body) == (expected_status, expected_body)
    assert headers.keys() == expected.keys()
    token = expected[b"set-cookie"].partition(b";")[0].partition(b"=")[2]
    *_, values = bare._open(token)
    assert {key: bare.decode(value) for key, value in values.items()} == {"user": bare.USER, **bare.SECOND_KEY}
    cookie = headers[b"set-cookie"].partition(b";")[0]
    assert [json.loads((await fetch(app, path, cookie))[2]) for path in ("/read", "/size")] == [{"user": bare.USER}, {"size": 4}]
    await app.shutdown()


@pytest.mark.parametrize("kind", ["redis", "sql", "file", "mongodb"])
async def test_a_session_of_a_bare_callable_in_a_store_expires(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    with place_for(kind) as place:
        store = bare_stores.STORES[kind](place)
        await store.open()
        try:
            for lifetime, expected in ((86_400, b"value"), (-1, None)):
                monkeypatch.setattr(bare_stores, "DAY", lifetime)
                await store.write("ab" * 32, b"value")
                assert await store.read("ab" * 32) == expected
        finally:
            await store.close()


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.name)
async def test_all_contenders_of_a_case_return_the_same_result(monkeypatch: pytest.MonkeyPatch, question: Question) -> None:
    if question is scaling.QUESTION:
        # Peers take long to build a thousand routes, and the other questions check the same responses.
        monkeypatch.setattr(peers, "import_module", lack)
    for case in question.cases(QUICK):
        async with case.enter() as entered:
            present = [each for each in entered if isinstance(each, Contender)]
            await harness.check(case, present)
            assert {each.kind for each in present} >= {"baseline", "ours"}
            assert all(each.result is not None for each in present)
            assert all(re.fullmatch(r"(questions|rivals)/\w+\.py:\d+", each.source) for each in present)


@pytest.mark.parametrize("kind", ["plain", "cookies", "memory"])
async def test_a_peer_that_is_not_installed_is_a_row_with_the_reason(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setattr(peers, "import_module", lack)
    case = Case(
        name="case",
        baseline=bare.BARE,
        enter=lambda: in_process.plain("/json") if kind == "plain" else in_process.in_session(kind, "/read"),
    )
    found = await harness.run(question_of(case), QUICK, nothing)
    ours = ["gaman", in_process.UNUSED if kind == "plain" else in_process.NEW_COOKIES]
    assert [each.name for each in found.cases[0].contenders] == ["bare callable", *ours]
    reasons = {each.name: each.reason for each in found.cases[0].absent}
    assert list(reasons) == [peer.name for peer in peers.PEERS]
    assert reasons["Litestar"].startswith("not installed: litestar")
    assert shown(found).count("not installed") == sum(reason.startswith("not installed") for reason in reasons.values())


@pytest.mark.parametrize("package", ["starsessions", "starlette.applications"])
async def test_a_middleware_or_a_framework_that_is_not_installed_is_a_row_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    def find(name: str) -> Any:
        return lack(name) if name == package else import_module(name)

    monkeypatch.setattr("benchmarks.rivals.middleware.import_module", find)
    [unused, *_] = middleware.cases(QUICK)
    found = await harness.run(question_of(unused), QUICK, nothing)
    names = ["starsessions, in a cookie", "starsessions, in memory"] if package == "starsessions" else ["all contenders"]
    assert found.cases[0].absent == [AbsentResult(name, f"not installed: {package}") for name in names]


async def test_the_cost_of_a_session_is_the_time_beyond_the_application_without_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []

    async def time_calls(app: object, path: str, cookies: Iterator[bytes], count: int) -> float:
        assert (path, next(cookies), count) == ("/read", b"a=1", middleware.CALLS)
        calls.append(str(app))
        return count * (5e-6 if app == "with" else 3e-6)

    monkeypatch.setattr(middleware, "time_calls", time_calls)
    measure: Any = middleware.added("with", "without", "/read", repeat(b"a=1"))  # type: ignore[arg-type]  # names of applications
    for _ in range(20):
        assert await measure() == pytest.approx(2.0)
    turns = {tuple(calls[at : at + 2]) for at in range(0, len(calls), 2)}
    assert turns == {("with", "without"), ("without", "with")}


async def test_a_serializer_that_does_not_keep_a_value_is_a_row_with_the_reason() -> None:
    case = next(case for case in serializer.cases(QUICK) if case.name == "encode bytes")
    async with case.enter() as entered:
        assert Missing("json", "does not keep bytes") in entered


# The harness


def question_of(*cases: Case, seconds: float = 0.05) -> Question:
    return Question(name="question", title="What?", cases=lambda plan: cases, seconds=seconds, quick_seconds=seconds)


def constant(name: str, figure: float, kind: Kind = "peer", result: object = 42) -> Contender:
    return Contender(name=name, kind=kind, measure=lambda: figure, result=lambda: result)


def shown(question: QuestionResult) -> str:
    from rich.console import Console

    console = Console(width=200)
    with console.capture() as capture:
        console.print(show(question))
    return capture.get()


async def test_each_round_measures_every_contender_once_in_random_order() -> None:
    turns: list[str] = []

    def contend(name: str) -> Contender:
        def measure() -> float:
            turns.append(name)
            return 1.0

        return Contender(name=name, measure=measure)

    case = Case(name="case", baseline="a", enter=lambda: harness.contenders(*map(contend, "abc")), rounds=20)
    await harness.run(question_of(case, seconds=60), Plan(), nothing)
    rounds = ["".join(turns[at : at + 3]) for at in range(0, len(turns), 3)]
    # The first round warms up.
    assert len(rounds) == 1 + 20
    assert all(sorted(each) == ["a", "b", "c"] for each in rounds)
    assert len(set(rounds)) > 1


async def test_a_question_stays_within_its_time_and_each_case_gets_its_share() -> None:
    now = 1000.0

    def measure() -> float:
        nonlocal now
        now += 1
        return 1.0

    def enter() -> harness.Entered:
        return harness.contenders(Contender(name="baseline", kind="baseline", measure=measure))

    cases = [Case(name="one", baseline="baseline", enter=enter), Case(name="three", baseline="baseline", enter=enter, share=3)]
    found = await harness.run(question_of(*cases, seconds=40), Plan(scale=0.5), nothing, lambda: now)
    assert found.seconds == 20
    # The first turn of each warms up.
    assert [len(case.contenders[0].figures) for case in found.cases] == [4, 14]


async def test_a_result_other_than_the_baselines_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    entered = [constant("baseline", 1.0, "baseline"), constant("cheat", 0.1, result=43)]
    case = Case(name="case", baseline="baseline", enter=lambda: harness.contenders(*entered))
    with pytest.raises(AssertionError, match="cheat returns 43, and baseline 42"):
        await harness.check(case, entered)
    found = await harness.run(question_of(case), Plan(), nothing)
    assert found.cases[0].contenders == []
    assert found.cases[0].absent[0].reason.startswith(harness.FAILED)
    assert "cheat returns 43" in capsys.readouterr().err


async def test_a_case_that_this_machine_can_not_measure_is_a_row_with_the_reason() -> None:
    @asynccontextmanager
    async def enter() -> AsyncGenerator[Sequence[Contender]]:
        raise Absent("there is no server")
        yield

    found = await harness.run(question_of(Case(name="case", baseline="baseline", enter=enter)), Plan(), nothing)
    assert found.cases[0].absent == [AbsentResult("all contenders", "there is no server")]
    assert "there is no server" in shown(found)


async def test_against_selects_peers_and_never_the_baseline_or_gaman() -> None:
    entered = [constant("baseline", 1.0, "baseline"), constant("gaman", 1.0, "ours"), constant("one", 2.0), constant("other", 3.0)]
    case = Case(name="case", baseline="baseline", enter=lambda: harness.contenders(*entered), rounds=1)
    found = await harness.run(question_of(case), Plan(against=frozenset({"other"})), nothing)
    assert [each.name for each in found.cases[0].contenders] == ["baseline", "gaman", "other"]


def test_a_contender_knows_the_line_that_defines_it() -> None:
    assert re.fullmatch(r"tests/test_benchmarks\.py:\d+", constant("a", 1.0).source)
    assert harness.line_of(bare.plain).startswith("rivals/bare.py:")


# Statistics


def of(figures: Sequence[float], name: str = "gaman", kind: Kind = "ours", at: float | None = None) -> ContenderResult:
    return ContenderResult(name, kind, "benchmarks/a.py:1", list(figures), at=at)


def case_of(*found: ContenderResult, goals: Sequence[GoalResult] = (), better: str = "lower") -> CaseResult:
    return CaseResult(
        "case", "µs", "higher" if better == "higher" else "lower", "baseline", "a.py:1", None, list(goals), list(found)
    )


def test_a_ratio_within_rounds_is_free_of_a_disturbance_of_both() -> None:
    disturbed = [random.Random(number).uniform(1, 10) for number in range(50)]
    baseline, gaman = of(disturbed, "baseline", "baseline"), of([1.5 * each for each in disturbed])
    assert ratios(gaman, baseline) == pytest.approx([1.5] * 50)
    found = to_baseline(case_of(baseline, gaman), gaman)
    assert found is not None
    assert found.tells
    assert found.median == pytest.approx(1.5)


def test_the_interval_contains_the_median_as_often_as_its_confidence_says() -> None:
    chance = random.Random(7)
    held = 0
    for _ in range(400):
        found = interval([chance.lognormvariate(0, 0.3) for _ in range(31)])
        held += found.low <= 1 <= found.high
    assert 0.93 <= held / 400 <= 1


@pytest.mark.parametrize(("count", "low", "high"), [(6, 1, 6), (10, 2, 9), (20, 6, 15), (50, 18, 33)])
def test_the_interval_lies_between_the_samples_that_statistical_tables_name(count: int, low: int, high: int) -> None:
    found = interval([float(rank) for rank in range(count, 0, -1)])
    assert (found.low, found.high, found.is_sure) == (low, high, True)


def test_an_interval_of_few_rounds_or_a_wide_spread_tells_nothing() -> None:
    assert not interval([1.0] * 5).is_sure
    assert interval([1.0] * 6).tells
    assert not interval([1.0, 1.5] * 10).tells


@pytest.mark.parametrize(
    ("cost", "spread", "verdict"), [(1.5, 0.01, "met"), (2.5, 0.01, "missed"), (1.99, 0.3, "can't tell"), (1.0, None, "can't tell")]
)
def test_a_goal_is_met_or_missed_only_if_the_interval_lies_on_one_side(cost: float, spread: float | None, verdict: str) -> None:
    chance = random.Random(1)
    figures = [cost] if spread is None else [cost * chance.uniform(1 - spread, 1 + spread) for _ in range(30)]
    case = case_of(of([1.0] * len(figures), "baseline", "baseline"), of(figures))
    assert judge(case, GoalResult("at most", 2, "gaman", "baseline")).verdict == verdict


@pytest.mark.parametrize(
    ("better", "limit", "verdict"), [("lower", 2.4, "met"), ("lower", 2.6, "missed"), ("higher", 2.4, "missed")]
)
def test_the_best_peer_has_the_best_median(better: str, limit: float, verdict: str) -> None:
    case = case_of(
        of([2.0] * 9), of([1.0] * 9, "baseline", "baseline"), of([5.0] * 9, "a", "peer"), of([7.0] * 9, "b", "peer"), better=better
    )
    found = judge(case, GoalResult("at least", limit, "gaman", BEST_PEER))
    assert (found.against, found.verdict) == ("a" if better == "lower" else "b", verdict)


@pytest.mark.parametrize(("baseline", "verdict"), [(2.0, "missed"), (4.0, "out of reach")])
def test_a_goal_that_the_baseline_misses_too_is_out_of_reach(baseline: float, verdict: str) -> None:
    case = case_of(of([baseline] * 9, "baseline", "baseline"), of([5.0] * 9), of([10.0] * 9, "a", "peer"))
    found = judge(case, GoalResult("at least", 4, "gaman", BEST_PEER))
    assert found.verdict == verdict
    assert found.baseline is not None
    assert found.baseline.median == 10 / baseline


@pytest.mark.parametrize(("cost", "verdict"), [(0.996, "out of reach"), (0.9, "missed")])
def test_a_goal_is_missed_and_not_out_of_reach_where_gaman_is_ahead_of_the_baseline_by_more_than_chance(
    cost: float, verdict: str
) -> None:
    chance = random.Random(3)
    baseline, gaman = ([each * chance.uniform(0.98, 1.02) for _ in range(30)] for each in (1.0, cost))
    case = case_of(of(baseline, "baseline", "baseline"), of(gaman), of([0.8] * 30, "a", "peer"))
    assert judge(case, GoalResult("at least", 1, "gaman", BEST_PEER)).verdict == verdict


@pytest.mark.parametrize(("rate", "limit", "verdict"), [(95.0, 0.9, "met"), (85.0, 0.9, "missed"), (190.0, 1.8, "met")])
def test_a_higher_rate_is_better(rate: float, limit: float, verdict: str) -> None:
    case = case_of(of([100.0] * 9, "baseline", "baseline"), of([rate] * 9), better="higher")
    assert judge(case, GoalResult("at least", limit, "gaman", "baseline")).verdict == verdict


def test_growth_is_the_ratio_of_two_points_on_the_axis() -> None:
    case = case_of(of([1.0] * 9, at=10), of([1.05] * 9, at=1000), of([0.5] * 9, "baseline", "baseline"))
    goal = GoalResult("at most", 1.1, "gaman", "gaman", at=1000, against_at=10)
    found = judge(case, goal)
    assert found.verdict == "met"
    assert found.ratio is not None
    assert found.ratio.median == pytest.approx(1.05)


# Comparisons of two runs


def results(seed: int, slower: float = 1.0, cases: int = 30, rounds: int = 60) -> Results:
    """Return a run on a noisy machine; in its first case gaman is *slower* times as slow."""
    chance = random.Random(seed)
    found: list[CaseResult] = []
    for number in range(cases):
        noise = [chance.lognormvariate(0, 0.2) for _ in range(rounds)]
        cost = 2 * (slower if number == 0 else 1)
        mine = [cost * each * chance.lognormvariate(0, 0.05) for each in noise]
        case = case_of(of(noise, "baseline", "baseline"), of(mine))
        case.name = f"case {number}"
        found.append(case)
    return Results({"machine": "made up"}, False, [QuestionResult("question", "What?", "a.py:1", 1.0, found)])


@pytest.mark.parametrize(("slower", "change"), [(1.2, "worse"), (1 / 1.2, "better")])
def test_a_change_of_20_percent_is_told_from_noise(slower: float, change: str) -> None:
    found = comparing.compare(results(1), results(2, slower))
    assert [each.change for each in found if each.case == "case 0"] == [change]
    assert {each.change for each in found if each.case != "case 0"} <= {"same", "can't tell"}


def test_two_runs_of_the_same_code_raise_no_alarm() -> None:
    for seed in range(20):
        changes = {each.change for each in comparing.compare(results(seed), results(seed + 1000))}
        assert changes <= {"same", "can't tell"}


def test_a_comparison_of_few_rounds_can_not_tell() -> None:
    found = comparing.compare(results(1, rounds=5), results(2, 1.2, rounds=5))
    assert {each.change for each in found} == {"can't tell"}


def test_compare_fails_if_a_figure_got_worse(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, run in (("old", results(1)), ("same", results(2)), ("slow", results(3, 1.2))):
        save(run, tmp_path / name / "results.json")
    assert command.main(["compare", str(tmp_path / "old"), str(tmp_path / "same")]) == 0
    assert command.main(["compare", str(tmp_path / "old"), str(tmp_path / "slow" / "results.json")]) == 1
    assert "worse" in capsys.readouterr().out


# A whole run


def make_question() -> Question:
    """Return a question with a case of bars and a case of growth, both with made-up figures."""
    ticks = count(1)

    def contend(name: str, figure: float, kind: Kind = "peer", at: float | None = None) -> Contender:
        return Contender(name=name, kind=kind, at=at, measure=lambda: figure * (1 + next(ticks) % 7 / 100))

    bars = Case(
        name="bars",
        summary="In the summary",
        baseline="baseline",
        goals=[Goal(sense="at most", limit=1.8, against="baseline"), Goal(sense="at least", limit=2, against=BEST_PEER)],
        enter=lambda: harness.contenders(
            contend("baseline", 1, "baseline"),
            contend("gaman", 1.5, "ours"),
            contend("Peer", 4),
            contend("Slow", 99),
            Missing("Lost", "gone"),
        ),
    )
    growth = Case(
        name="growth",
        baseline="baseline",
        axis="routes",
        goals=[Goal(sense="at most", limit=1.1, against="gaman", at=1000, against_at=10)],
        enter=lambda: harness.contenders(
            contend("baseline", 1, "baseline"),
            *(contend("gaman", 2, "ours", at) for at in (10, 1000)),
            *(contend("Peer", at, "peer", at) for at in (10, 1000)),
            Missing("Peer", "too slow", 10_000),
        ),
    )
    return question_of(bars, growth, seconds=0.6)


@pytest.mark.parametrize(("tick", "rounds"), [(0.01, MIN_ROUNDS), (1, 1)])
async def test_a_case_whose_setup_took_its_time_gets_only_short_rounds_beyond_it(tick: float, rounds: int) -> None:
    ticks = count()
    case = Case(name="case", baseline="a", enter=lambda: harness.contenders(Contender(name="a", measure=lambda: 1.0)))
    found = await harness.run_case(case, QUICK, 0, lambda name: None, lambda: tick * next(ticks))
    assert [len(each.figures) for each in found.contenders] == [rounds]


async def test_a_run_is_shown_drawn_and_saved(tmp_path: Path) -> None:
    ticks = count()
    found = await harness.run(make_question(), QUICK, nothing, lambda: next(ticks) / 100)
    table = shown(found)
    for expected in (
        "Lost: gone",
        "Peer at 10,000 routes: too slow",
        "≤ 1.8 × the cost of baseline",
        ": met",
        "tests/test_benchmarks.py:",
    ):
        assert expected in table
    run = Results({"machine": "made up", "commit": "abc"}, True, [found])
    save(run, tmp_path / "results.json")
    assert load(tmp_path / "results.json") == run
    for file in [*chart.draw(found, run.about, tmp_path), *goals.draw(run, tmp_path), *summary.draw(run, tmp_path)]:
        assert file.stat().st_size > 1000
    drawn = (tmp_path / "question.svg").read_text()
    for expected in (
        "What?",
        "bars",
        "growth",
        "gaman",
        "Slow",
        "lower is better",
        "goal: gaman ≤ 1.8 × the cost of baseline: 1.",
        "Lost",
    ):
        assert expected in drawn
    assert "3 of 3 goals met" in (tmp_path / "goals.svg").read_text()
    assert "In the summary" in (tmp_path / "summary.svg").read_text()


def test_the_command_measures_the_named_question_and_prints_the_folder_of_its_results(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(serializer, "QUESTION", make_question())
    assert command.main(["serializer", "--quick", "--to", str(tmp_path), "--against", "Peer,Pear"]) == 0
    said = capsys.readouterr().out.replace("\n", "")
    assert str(tmp_path) in said
    assert "event loop: uvloop" in said
    assert "There is no contender 'Pear'" in said
    # The page has the same count.
    assert (found := re.search(r"\d of 3 goals met", said)) is not None
    assert found[0] in (tmp_path / "goals.svg").read_text()
    assert "Slow" not in said
    about = load(tmp_path / "results.json").about
    assert about.keys() >= {"machine", "cores", "python", "commit", "msgspec", "event loop", "garbage collector"}
    pages = [f"{name}.{format}" for name in ("goals", "question", "summary") for format in ("png", "svg")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*pages, "results.json"])


@pytest.mark.parametrize(("limit", "arguments", "status"), [(1.8, ["--check"], 0), (1.1, [], 0), (1.1, ["--check"], 1)])
def test_only_check_fails_on_a_missed_goal(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: float, arguments: Sequence[str], status: int
) -> None:
    def enter() -> harness.Entered:
        return harness.contenders(constant("baseline", 1.0, "baseline"), constant("gaman", 1.5, "ours"))

    goal = Goal(sense="at most", limit=limit, against="baseline")
    case = Case(name="case", baseline="baseline", goals=[goal], enter=enter, rounds=10)
    monkeypatch.setattr(serializer, "QUESTION", question_of(case, seconds=60))
    assert command.main(["serializer", "--to", str(tmp_path), *arguments]) == status


@pytest.mark.parametrize(("failing", "arguments", "status"), [(1, [], 0), (1, ["--check"], 1), (2, [], 1)])
def test_a_run_in_which_a_case_fails_has_measured_unless_all_fail(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, failing: int, arguments: Sequence[str], status: int
) -> None:
    def enter() -> harness.Entered:
        return harness.contenders(constant("baseline", 1.0, "baseline"))

    def fail() -> harness.Entered:
        raise AssertionError("there was no response")

    cases = [
        Case(name=f"case {number}", baseline="baseline", enter=fail if number < failing else enter, rounds=1) for number in (0, 1)
    ]
    monkeypatch.setattr(serializer, "QUESTION", question_of(*cases, seconds=60))
    assert command.main(["serializer", "--to", str(tmp_path), *arguments]) == status


def test_the_command_knows_its_questions(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main(["weather"])
    assert "there is no question 'weather'" in capsys.readouterr().err


@pytest.mark.parametrize("quick", [False, True])
def test_all_questions_together_stay_within_their_time(quick: bool) -> None:
    questions = command.find_questions([])
    plan = command.plan_for(questions, quick, None)
    assert (
        sum(question.budget(plan) for question in questions) <= (command.MAX_QUICK_SECONDS if quick else command.MAX_SECONDS) + 1e-6
    )
