"""Where each store is, and how gaman's driver is told: real servers, and folders that are gone afterwards."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

from benchmarks.harness import Absent
from tests import servers

STORES = ("redis", "sql", "file", "mongodb")
_SERVERS: dict[str, Callable[[], str]] = {"redis": servers.redis_url, "mongodb": servers.mongodb_uri}
_OPTIONS = {
    "redis": {"url": "{}"},
    "sql": {"file": "{}/sessions.db"},
    "file": {"dir": "{}/sessions"},
    "mongodb": {"uri": "{}", "db_name": "gaman_benchmark"},
}


@contextmanager
def place_for(kind: str) -> Generator[str]:
    """Give the place of a store, nothing where that kind needs none; Absent where there is no such server."""
    if kind in _SERVERS:
        try:
            place = _SERVERS[kind]()
        except AssertionError as error:
            raise Absent(str(error)) from error
        yield place
    elif kind in _OPTIONS:
        folder = tempfile.mkdtemp(prefix="gaman-benchmark-")
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    else:
        yield ""


def driver_options(kind: str, place: str) -> dict[str, Any]:
    """Return what session() takes as its driver."""
    return {"type": kind, **{name: value.format(place) for name, value in _OPTIONS.get(kind, {}).items()}}
