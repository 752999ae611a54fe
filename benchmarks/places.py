"""The place of each store, a real server's URL or a temporary folder, and the options of gaman's driver for it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

from benchmarks.harness import Absent
from gaman_session.drivers import find_driver

STORES = ("redis", "sql", "file", "mongodb")
COMPACT = ("--hash-max-ziplist-value", "1024")
"""A setting with which Redis stores a small hash in one piece; newer versions also call it hash-max-listpack-value."""


def _servers() -> Any:
    # It imports pytest and the stores' clients, for which a contender over HTTP, in its own process, would wait as well.
    return import_module("tests.servers")


SERVERS: dict[str, Callable[[], str]] = {
    "redis": lambda: _servers().redis_url(),
    "redis, compact": cache(lambda: _servers().RedisServer(*COMPACT).__enter__().url),
    "redis cluster": lambda: _servers().redis_cluster_url(),
    "redis cluster, compact": cache(lambda: _servers().RedisCluster(3, 0, *COMPACT, node_timeout=60_000).__enter__().url),
    "mongodb": lambda: _servers().mongodb_uri(),
}
_OPTIONS = {
    "redis": {"url": "{}"},
    "sql": {"file": "{}/sessions.db"},
    "file": {"dir": "{}/sessions"},
    "mongodb": {"uri": "{}", "db_name": "gaman_benchmark"},
}


@contextmanager
def place_for(kind: str) -> Generator[str]:
    """Yield the place of a store, empty if that kind needs none; raise Absent if its server is missing."""
    if kind in SERVERS:
        try:
            place = SERVERS[kind]()
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
    # What follows the driver's name says how its server runs.
    name = kind.partition(" ")[0].rstrip(",")
    return {"type": name, **{option: value.format(place) for option, value in _OPTIONS.get(name, {}).items()}}


def make_driver(kind: str, place: str, **more: Any) -> Any:
    """Return gaman's driver for a place, which isn't open yet; *more* are further options."""
    options = driver_options(kind, place)
    return find_driver(options.pop("type"))(**options, **more)
