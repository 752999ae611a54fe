"""The drivers of stores by name, each imported when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import cast

from gaman_session._driver import Driver

DRIVERS = {
    "memory": "gaman_session.drivers.memory:MemoryDriver",
}


def find_driver(name: str) -> Callable[..., Driver]:
    """Return the class of the driver *name*, one of DRIVERS."""
    module, _, attribute = DRIVERS[name].partition(":")
    return cast("Callable[..., Driver]", getattr(import_module(module), attribute))
