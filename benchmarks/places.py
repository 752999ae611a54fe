"""The place of each store, a real server's URL or a temporary folder, and the options of gaman's driver for it."""

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
    """Yield the place of a store, empty if that kind needs none; raise Absent if its server is missing."""
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
    """Return the `driver` option of session()."""
    return {"type": kind, **{name: value.format(place) for name, value in _OPTIONS.get(kind, {}).items()}}
