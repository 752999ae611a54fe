"""python -m benchmarks: measure all questions or the named ones, or compare two runs."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import uvloop
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from benchmarks import harness
from benchmarks.harness import Plan, Question
from benchmarks.report import chart, goals, machine, summary
from benchmarks.report.compare import compare, comparison_table, warnings
from benchmarks.report.figures import tally, verdicts
from benchmarks.report.results import Results, load, save
from benchmarks.report.table import show

HERE = Path(__file__).parent
QUESTIONS = ("serializer", "sealing", "in_process", "middleware", "scaling", "over_http", "drivers", "memory", "imports")
LONG_QUESTIONS = ("growth", "owners", "round_trips", "capacity")
"""Questions that only run by name, because they take an hour, or compare gaman with nothing else."""
MAX_SECONDS, MAX_QUICK_SECONDS = 560.0, 40.0
"""Seconds for all questions together. The rest of ten minutes, or of one, is for the start and the charts."""


def find_questions(names: Sequence[str]) -> list[Question]:
    """Return the named questions, by default all."""
    return [import_module(f"benchmarks.questions.{name}").QUESTION for name in names or QUESTIONS]


def plan_for(questions: Sequence[Question], quick: bool, against: str | None) -> Plan:
    plan = Plan(quick=quick, against=None if against is None else frozenset(against.split(",")))
    if len(questions) < len(QUESTIONS):
        return plan
    needed = sum(question.budget(plan) for question in questions)
    return replace(plan, scale=min(1.0, (MAX_QUICK_SECONDS if quick else MAX_SECONDS) / needed))


def measure(questions: Sequence[Question], plan: Plan, console: Console) -> Results:
    results = Results(machine.about(), plan.quick, [])
    results.about["event loop"] = f"uvloop {results.about['uvloop']}"
    console.print(", ".join(f"{name}: {value}" for name, value in results.about.items()), style="dim", highlight=False)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TextColumn("of about"), TimeRemainingColumn())
    with (
        Progress(*columns, console=console, transient=True) as progress,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        budgets = [question.budget(plan) for question in questions]
        bar = progress.add_task("", total=sum(budgets))
        for number, question in enumerate(questions):
            before = sum(budgets[:number])

            def tell(case: str, seconds: float, question: Question = question, before: float = before) -> None:
                done = before + min(seconds, question.budget(plan))
                progress.update(bar, completed=done, description=f"{question.name}: {case}")

            found = runner.run(harness.run(question, plan, tell))
            results.questions.append(found)
            console.print(show(found))
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    # A terminal has its own width; a file gets enough for the tables.
    console = Console() if sys.stdout.isatty() else Console(width=132)
    if arguments and arguments[0] == "compare":
        return compare_runs(arguments[1:], console)
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__, epilog="Also: compare OLD NEW.")
    parser.add_argument(
        "questions",
        nargs="*",
        metavar="question",
        help=f"one of {', '.join(QUESTIONS)}, by default all; or {' or '.join(LONG_QUESTIONS)}",
    )
    parser.add_argument("--quick", action="store_true", help="at most one minute for all, instead of ten")
    parser.add_argument("--against", metavar="NAMES", help="only these peers, separated by commas: orjson,json,pickle")
    parser.add_argument(
        "--to", type=Path, metavar="FOLDER", help="the folder for results and charts; by default a new one in benchmarks/runs/"
    )
    parser.add_argument("--check", action="store_true", help="end with status 1 if a goal is missed or a case fails")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.questions if name not in QUESTIONS + LONG_QUESTIONS]:
        parser.error(f"there is no question {unknown[0]!r}; there are {', '.join(QUESTIONS + LONG_QUESTIONS)}")
    questions = find_questions(options.questions)
    results = measure(questions, plan_for(questions, options.quick, options.against), console)
    folder: Path = options.to or HERE / "runs" / f"{time.strftime('%Y-%m-%d-%H%M%S')}-{results.about['commit']}"
    save(results, folder / "results.json")
    for question in results.questions:
        chart.draw(question, results.about, folder)
    goals.draw(results, folder)
    summary.draw(results, folder)
    cases = [case for question in results.questions for case in question.cases]
    console.print(f"{tally(results)}.")
    known = {each.name for case in cases for each in case.contenders} | {each.name for case in cases for each in case.absent}
    for name in (options.against or "").split(","):
        if name and name.strip().lower() not in {each.lower() for each in known}:
            console.print(f"There is no contender {name!r}.", style="yellow")
    console.print(f"Figures and charts: {folder}", soft_wrap=True)
    # A run that has measured is a success, whatever it found.
    has_failed = any(each.reason.startswith(harness.FAILED) for case in cases for each in case.absent)
    is_bad = has_failed or "missed" in verdicts(results) if options.check else not any(case.contenders for case in cases)
    return int(is_bad)


def compare_runs(arguments: Sequence[str], console: Console) -> int:
    """Print the differences between two runs; return 1 if a figure got worse."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks compare", description="Tell a regression from noise.")
    for name in ("old", "new"):
        parser.add_argument(name, type=Path, help="a folder of a run, or its results.json")
    options = parser.parse_args(arguments)
    old, new = (load(path / "results.json" if path.is_dir() else path) for path in (options.old, options.new))
    differences = compare(old, new)
    console.print(comparison_table(differences))
    for warning in warnings(old, new):
        console.print(f"Note: {warning}", style="yellow")
    return int(any(each.change == "worse" for each in differences))


if __name__ == "__main__":
    sys.exit(main())
