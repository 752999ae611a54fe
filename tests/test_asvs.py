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
NOT_YET = {"tests/session/test_ended_cookies.py"}
"""Files of tests that the chapter may name before they are here."""


class Row(NamedTuple):
    """A row of a table: its requirement and level, the cells between, and its tests."""

    requirement: str
    level: int
    cells: list[str]
    tests: list[str]


def rows(section: str) -> list[Row]:
    """Return the rows of the first table of a *section* of the chapter."""
    _, _, rest = (ROOT / CHAPTER).read_text().partition(f"\n## {section}\n")
    [table] = re.findall(r"\A[^|]*\n((?:\|.*\n)+)", rest)
    found: list[Row] = []
    for line in table.splitlines()[2:]:
        requirement, level, *cells, tests = line.strip("| ").split(" | ")
        found.append(Row(requirement, int(level), cells, re.findall(r"`(.*?)`", tests)))
    return found


BY_DRIVER = rows("First, choose where sessions are kept")
REQUIREMENTS = [
    row for section in ("V7: session management", "V3.3: cookies", "V3.5: requests from other sites") for row in rows(section)
]


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


def test_what_is_satisfied_names_a_test_and_what_is_not_says_what_is_left() -> None:
    for row in REQUIREMENTS:
        asked, satisfied_by, left, *others = row.cells
        assert asked
        assert not others
        if row.requirement in UNTESTED:
            assert (satisfied_by, row.tests) == (NONE, [])
        else:
            assert row.tests, row.requirement
        assert left != ("nothing" if satisfied_by == NONE else NONE), row.requirement
    for row in BY_DRIVER:
        assert all(re.match("satisfied$|fails(:| for) ", cell) for cell in row.cells), row.requirement
        # The plain cookies driver fails, and that is shown as well.
        assert row.cells[-1].startswith("fails"), row.requirement
        assert len(row.tests) >= 2, row.requirement


def test_each_test_that_the_chapter_names_exists() -> None:
    text = (ROOT / CHAPTER).read_text()
    named = {tuple(name.split("::")) for name in re.findall(r"`(tests/[^`]*::[^`]*)`", text)}
    assert named == {tuple(name.split("::")) for row in (*REQUIREMENTS, *BY_DRIVER) for name in row.tests}
    missing = [
        f"{file}::{name}"
        for file, name in sorted(named)
        if ((ROOT / file).exists() or file not in NOT_YET) and not (name.startswith("test_") and name in names_in(file))
    ]
    assert missing == []
