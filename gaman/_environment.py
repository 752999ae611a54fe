"""The environment as it was before the application was imported, for worker processes, which import the application again."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager

_before = {**os.environ}


def remember() -> None:
    """Take the present environment for the one before the application is imported."""
    global _before  # noqa: PLW0603 - there is one environment
    _before = {**os.environ}


@contextmanager
def restored() -> Generator[None]:
    """Inside, the environment is the one from before, which a new process inherits.

    Otherwise the process would inherit what load_dotenv() has set, and its own load_dotenv() would keep that.
    """
    now = {**os.environ}
    _replace(_before)
    try:
        yield
    finally:
        _replace(now)


def _replace(environment: dict[str, str]) -> None:
    for name in os.environ.keys() - environment.keys():
        del os.environ[name]
    os.environ.update(environment)
