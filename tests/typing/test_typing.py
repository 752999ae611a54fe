"""What users write passes mypy and pyright at their strictest, in a project of its own; no line of mistakes.py passes either."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent
FILES = ["mistakes.py", "plugins.py", "request.py", "session.py"]
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
    """Put what users write into *folder*, with settings of its own, and return it."""
    folder.mkdir(exist_ok=True)
    (folder / "pyproject.toml").write_text(SETTINGS)
    for name in FILES:
        shutil.copy(FOLDER / name, folder)
    return folder


def check(checker: str, project: Path, python: str | Path = sys.executable) -> str:
    """Return what *checker* says of a project whose packages are those of *python*."""
    option, *what = CHECKERS[checker]
    command = [sys.executable, "-m", checker, option, str(python), *what]
    done = subprocess.run(command, cwd=project, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    return done.stdout


def assert_passes(said: str) -> None:
    assert re.match(rf"Success: no issues found in {len(FILES)} source files|0 errors, 0 warnings", said), said


@pytest.mark.parametrize("checker", CHECKERS)
def test_what_users_write_passes_and_their_mistakes_do_not(checker: str, tmp_path: Path) -> None:
    assert_passes(check(checker, make_project(tmp_path)))


@pytest.mark.parametrize(("checker", "complaint"), [("mypy", "[unused-ignore]"), ("pyright", "reportUnnecessaryTypeIgnoreComment")])
def test_a_mistake_that_is_no_longer_caught_is_told_of(checker: str, complaint: str, tmp_path: Path) -> None:
    mistakes = make_project(tmp_path) / "mistakes.py"
    mistakes.write_text(mistakes.read_text().replace('same_site="Lax"', 'same_site="lax"'))
    assert complaint in check(checker, tmp_path)


def test_each_mistake_is_one_to_both_checkers() -> None:
    lines = [line for line in (FOLDER / "mistakes.py").read_text().splitlines() if ": ignore[" in line]
    assert len(lines) > 50
    for line in lines:
        assert re.search(r"  # type: ignore\[.+\]  # pyright: ignore\[.+\]$", line), line


def test_every_file_is_checked() -> None:
    assert sorted(path.name for path in FOLDER.glob("*.py") if not path.name.startswith("test_")) == FILES
