"""Damage: what lies in a store and was not written there, reported once for each place."""

from __future__ import annotations

import logging
from typing import Final

logger = logging.getLogger("gaman")

# A thief who spoils a million sessions does not fill the memory with their names.
_MOST: Final = 1000


class Damage:
    """Remembers what it has reported."""

    def __init__(self) -> None:
        self._reported: set[tuple[str | None, str]] = set()

    def report(self, id: str | None, what: str) -> None:
        """Log, once, that *what* of the session *id* is not what was written there."""
        mark = (id, what)
        if mark not in self._reported and len(self._reported) < _MOST:
            self._reported.add(mark)
            logger.warning("session %s: %s is not what was written there; it counts as absent", id, what)
