"""Damage: what lies in a store and was not written there, reported once for each place."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

logger = logging.getLogger("gaman")

# A thief who spoils a million sessions does not fill the memory with their names.
_MOST: Final = 1000


class Damage:
    """Remembers what it has reported of the store of *driver*."""

    def __init__(self, driver: str) -> None:
        self._driver = driver
        self._reported: set[tuple[str | None, str]] = set()

    def report(self, id: str | None, what: str, extra: Mapping[str, Any] | None = None) -> None:
        """Log, once, that *what* of the session *id* is not what was written there; *extra* is known of the request."""
        mark = (id, what)
        if mark not in self._reported and len(self._reported) < _MOST:
            self._reported.add(mark)
            told = {**(extra or {}), "session": id, "driver": self._driver}
            logger.warning("session %s: %s is not what was written there; it counts as absent", id, what, extra=told)
