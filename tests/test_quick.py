"""The option --quick: a test that starts a process is skipped there, and every other test runs, with few examples."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

TESTS = """
import os, subprocess, sys
import pytest
from hypothesis import given, strategies as st
from tests import servers, serving

@pytest.fixture
def redis():
    return servers.redis_url()

def test_with_a_fixture(redis): raise AssertionError
def test_with_a_server(): servers.mongodb_uri(); raise AssertionError
def test_with_a_script(tmp_path):
    with serving.running_script("", tmp_path): raise AssertionError
def test_with_a_command():
    try:
        subprocess.run([sys.executable, "-c", ""])
    except Exception:
        raise AssertionError
def test_with_a_fork(): os.fork(); raise AssertionError
def test_without_a_process(): pass

examples = []

@given(st.integers())
def test_with_examples(number): examples.append(number)
def test_the_examples(): assert 0 < len(examples) <= 20
"""


def test_a_test_is_skipped_at_the_first_process_that_it_starts_and_tries_few_examples(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(TESTS)
    root = Path(__file__).parents[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("GAMAN_", "PYTEST_"))}
    command = [sys.executable, "-m", "pytest", "--quick", "-p", "no:cacheprovider", "-p", "tests.conftest"]
    done = subprocess.run(
        [*command, f"--rootdir={root}", f"--config-file={root / 'pyproject.toml'}", str(tmp_path)],
        cwd=root,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert "3 passed, 5 skipped" in done.stdout, done.stdout + done.stderr
