"""StoreClock: the time as a store tells it, so that machines agree on it, whatever their own clocks show."""

from __future__ import annotations

import logging
import math
import time
from time import monotonic
from typing import Final, TypeGuard

from gaman_session._driver import MAX_SKEW, ClockDriver, Driver

logger = logging.getLogger("gaman")

_ATTEMPTS: Final = 5
_ENOUGH: Final = 1.0
"""Seconds after which a measurement makes no further attempt."""
_EXACT: Final = 0.05
"""Seconds of a round trip up to which its answer counts in any case. It is then wrong by at most half of that."""


def tells_time(driver: Driver | None) -> TypeGuard[ClockDriver]:
    """Return whether *driver* is a ClockDriver."""
    return callable(getattr(driver, "time", None))


class StoreClock:
    """The time of a driver's store, counted from the last measurement on by a clock that is never set.

    Until the first measurement, it is the time of this machine.
    """

    def __init__(self, driver: ClockDriver) -> None:
        self._driver = driver
        self._base = time.time() - monotonic()
        """What monotonic() lacks to be the time."""
        self._is_off = False

    def now(self) -> float:
        """Return the time, in seconds since the epoch."""
        return monotonic() + self._base

    async def measure(self) -> None:
        """Ask the store for its time; SessionStoreError: it failed, and the clock goes on as before.

        The server has read its clock within the round trip, so the shortest of several tells most. The answer of a longer one, as
        from a slow store or in a busy event loop, counts only where it proves the clock wrong.
        """
        shortest, base, began = math.inf, self._base, monotonic()
        for _ in range(_ATTEMPTS):
            asked = monotonic()
            found = await self._driver.time()
            answered = monotonic()
            if answered - asked < shortest:
                shortest, base = answered - asked, found - (asked + answered) / 2
            if answered - began > _ENOUGH:
                break
        if shortest <= _EXACT or abs(base - self._base) > (shortest + _EXACT) / 2:
            self._base = base
        self._compare()

    def _compare(self) -> None:
        """Warn when this machine's clock begins to differ from the store's by more than MAX_SKEW."""
        ahead = time.time() - self.now()
        was_off, self._is_off = self._is_off, abs(ahead) > MAX_SKEW
        if self._is_off and not was_off:
            logger.warning(
                "the clock of this machine is %.1f s %s that of the %s server; sessions go by the server's. "
                "Keep both right with NTP, such as chrony or systemd-timesyncd",
                abs(ahead),
                "ahead of" if ahead > 0 else "behind",
                self._driver.name,
                extra={"driver": self._driver.name},
            )
