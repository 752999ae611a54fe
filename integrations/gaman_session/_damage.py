"""Damage: logs what is damaged in a store, once for each session and field."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Final

logger = logging.getLogger("gaman")

# If an attacker damages a million sessions, their ids don't fill the memory.
_MAX_REPORTS: Final = 1000


class Damage:
    """Remembers what it has logged about the store of *driver*."""

    def __init__(self, driver: str) -> None:
        self._driver = driver
        self._reported: set[tuple[str | None, str]] = set()

    def report(self, id: str | None, what: str, extra: Mapping[str, Any] | None = None) -> None:
        """Log, once, that *what* of the session *id* is damaged. *extra* is the request's `log_extra`."""
        damage = (id, what)
        if damage not in self._reported and len(self._reported) < _MAX_REPORTS:
            self._reported.add(damage)
            all_extra = {**(extra or {}), "session": id, "driver": self._driver}
            logger.warning("session %s: %s is damaged and counts as absent", id, what, extra=all_extra)
