"""The drivers by name; each is imported when it is first used."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import cast

from gaman.errors import MissingDependency
from gaman_session._driver import Driver

DRIVERS = {
    "memory": "gaman_session.drivers.memory:MemoryDriver",
    "file": "gaman_session.drivers.file:FileDriver",
    "redis": "gaman_session.drivers.redis:RedisDriver",
    "sql": "gaman_session.drivers.sql:SQLDriver",
    "mongodb": "gaman_session.drivers.mongodb:MongoDBDriver",
}


def find_driver(name: str) -> Callable[..., Driver]:
    """Return the class of the driver *name*, one of DRIVERS; raise MissingDependency if it needs a package that isn't installed."""
    module, _, attribute = DRIVERS[name].partition(":")
    try:
        found = import_module(module)
    except ModuleNotFoundError as cause:
        if cause.name is None or cause.name.startswith("gaman"):
            raise
        package = cause.name.partition(".")[0]
        # pymongo installs bson, and the package of that name is another one.
        package = "pymongo" if package == "bson" else package
        raise MissingDependency(f'the {name} driver needs the package {package}: pip install "gaman[{name}]"') from cause
    return cast("Callable[..., Driver]", getattr(found, attribute))
