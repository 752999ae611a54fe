"""The guide's chapter on OWASP ASVS has each requirement, leaves none of level 1 to the application, and names existing tests."""

from __future__ import annotations

import ast
import functools
import re
from typing import NamedTuple

from tests.test_examples import ROOT

CHAPTER = "examples/guide/asvs.md"
# The levels of ASVS 5.0.0, by section, in the order of its requirements.
LEVELS = {
    "7.1": (2, 2, 2),
    "7.2": (1, 1, 1, 1),
    "7.3": (2, 2),
    "7.4": (1, 1, 2, 2, 2),
    "7.5": (2, 2, 3),
    "7.6": (2, 2),
    "3.3": (1, 2, 2, 2, 3),
    "3.5": (1, 1, 1, 2, 2, 3, 3, 3),
}
NONE = "\N{EN DASH}"
UNTESTED = {"7.1.3", "3.5.5"}
"""What no library can do any part of."""


class Row(NamedTuple):
    """A row of a table: its requirement, that one's level, and the other cells."""

    requirement: str
    level: int
    cells: list[str]


def table(section: str) -> list[list[str]]:
    """Return the rows of the first table of a *section* of the chapter."""
    _, _, rest = (ROOT / CHAPTER).read_text().partition(f"\n## {section}\n")
    [found] = re.findall(r"\A[^|]*\n((?:\|.*\n)+)", rest)
    return [line.strip("| ").split(" | ") for line in found.splitlines()[2:]]


def rows(*sections: str) -> list[Row]:
    return [Row(first, int(level), cells) for section in sections for first, level, *cells in table(section)]


BY_DRIVER = rows("First, choose where sessions are kept")
REQUIREMENTS = rows("V7: session management", "V3.3: cookies", "V3.5: requests from other sites")
TESTS = {requirement: re.findall(r"`(tests/.*?)`", cell) for requirement, cell in table("The tests")}


@functools.cache
def names_in(file: str) -> set[str]:
    tree = ast.parse((ROOT / file).read_text())
    return {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def test_the_chapter_has_each_requirement_with_its_level() -> None:
    expected = [(f"{section}.{place}", level) for section, levels in LEVELS.items() for place, level in enumerate(levels, 1)]
    assert [(row.requirement, row.level) for row in REQUIREMENTS] == expected
    assert {(row.requirement, row.level) for row in BY_DRIVER} <= set(expected)


def test_no_requirement_of_level_1_is_left_to_the_application() -> None:
    assert {row.requirement: row.cells[2] for row in REQUIREMENTS if row.level == 1 and row.cells[2] != "nothing"} == {}
    # A store, and cookies with `ended`
    assert {cell for row in BY_DRIVER if row.level == 1 for cell in row.cells[:2]} == {"satisfied"}


def test_what_is_satisfied_has_a_test_and_what_is_not_says_what_is_left() -> None:
    for requirement, _, (asked, satisfied_by, left) in REQUIREMENTS:
        assert asked, requirement
        assert left != ("nothing" if satisfied_by == NONE else NONE), requirement
        assert satisfied_by == NONE or requirement not in UNTESTED, requirement
    assert [row.requirement for row in REQUIREMENTS if row.requirement not in UNTESTED] == list(TESTS)
    assert all(TESTS.values())


def test_each_row_by_driver_says_what_fails_and_has_a_test_of_cookies_with_ended() -> None:
    for requirement, _, cells in BY_DRIVER:
        assert all(re.match("satisfied$|fails(:| for) ", cell) for cell in cells), requirement
        assert cells[0] == cells[1] == "satisfied", requirement
        assert cells[-1].startswith("fails"), requirement
        assert any(re.search("test_(ended_cookies|login_list).py", name) for name in TESTS[requirement]), requirement


def test_each_test_that_the_chapter_names_exists() -> None:
    missing: list[str] = []
    for name in sorted({name for names in TESTS.values() for name in names}):
        file, _, function = name.partition("::")
        if not (function.startswith("test_") and (ROOT / file).exists() and function in names_in(file)):
            missing.append(name)
    assert missing == []
