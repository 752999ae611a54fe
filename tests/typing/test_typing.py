"""Users' code passes mypy and pyright in strict mode, in a project of its own, and both catch every line of mistakes.py."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import gaman_session.asgi

FOLDER = Path(__file__).parent
FILES = ["frameworks.py", "mistakes.py", "plugins.py", "request.py", "session.py", "testing.py"]
EXPORTS = "exports.py"
"""The generated file of a project: it misuses every name of the modules below, which goes unnoticed only if a name is Any."""
MODULES = {"gaman.session": gaman_session.__all__, "gaman.session.asgi": gaman_session.asgi.__all__}
SETTINGS = """
[tool.mypy]
strict = true
enable_error_code = ["truthy-bool"]
strict_equality_for_none = true

[tool.pyright]
typeCheckingMode = "strict"
enableTypeIgnoreComments = false
reportUnnecessaryTypeIgnoreComment = true
"""
CHECKERS = {"mypy": ("--python-executable", "."), "pyright": ("--pythonpath",)}


def make_project(folder: Path) -> Path:
    """Write users' code and its own settings into *folder*, and return it."""
    folder.mkdir(exist_ok=True)
    (folder / "pyproject.toml").write_text(SETTINGS)
    for name in FILES:
        shutil.copy(FOLDER / name, folder)
    imports = [f"from {module} import {', '.join(names)}" for module, names in MODULES.items()]
    mistakes = [
        f"wrong_{name}: str = {name}  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]"
        for name in {name: None for names in MODULES.values() for name in names}
    ]
    (folder / EXPORTS).write_text("\n".join([*imports, "", *mistakes, ""]))
    return folder


def check(checker: str, project: Path, python: str | Path = sys.executable) -> str:
    """Return the output of *checker* for a project that uses the packages of *python*."""
    option, *what = CHECKERS[checker]
    command = [sys.executable, "-m", checker, option, str(python), *what]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    return done.stdout


def assert_passes(output: str) -> None:
    assert re.match(rf"Success: no issues found in {len(FILES) + 1} source files|0 errors, 0 warnings", output), output


@pytest.mark.parametrize("checker", CHECKERS)
def test_users_code_passes_and_their_mistakes_do_not(checker: str, tmp_path: Path) -> None:
    assert_passes(check(checker, make_project(tmp_path)))


@pytest.mark.parametrize(
    ("checker", "unused", "missing"),
    [
        ("mypy", r"\[unused-ignore\]", r"\[attr-defined\]"),
        ("pyright", "reportUnnecessaryTypeIgnoreComment", "reportAttributeAccessIssue"),
    ],
)
def test_a_mistake_that_is_no_longer_caught_and_a_name_that_is_any_or_missing_are_reported(
    checker: str, unused: str, missing: str, tmp_path: Path
) -> None:
    # In one project, because each run of a checker takes ten seconds.
    mistakes, exports = make_project(tmp_path) / "mistakes.py", tmp_path / EXPORTS
    mistakes.write_text(mistakes.read_text().replace('same_site="Lax"', 'same_site="lax"'))
    names = exports.read_text()
    (tmp_path / "lacking.py").write_text(names.replace("SessionClosed", "SessionOpened"))
    exports.write_text("from typing import Any\n\n" + names.replace(" SessionClosed,", "") + "SessionClosed: Any = None\n")
    output = check(checker, tmp_path)
    for file, complaint in (("mistakes.py", unused), (EXPORTS, unused), ("lacking.py", missing)):
        assert re.search(rf"{file}:.*{complaint}", output), (file, output)


def test_each_mistake_is_one_to_both_checkers() -> None:
    lines = [line for line in (FOLDER / "mistakes.py").read_text().splitlines() if ": ignore[" in line]
    assert len(lines) > 50
    for line in lines:
        assert re.search(r"  # type: ignore\[.+\]  # pyright: ignore\[.+\]$", line), line


def test_every_file_is_checked() -> None:
    assert sorted(path.name for path in FOLDER.glob("*.py") if not path.name.startswith("test_")) == FILES
