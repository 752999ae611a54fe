"""StoreClock: the store's time, so that machines with different clocks behave alike."""

from __future__ import annotations

import logging
import math
import time
from time import monotonic
from typing import Final, TypeGuard

from gaman_session._driver import MAX_SKEW, ClockDriver, Driver

logger = logging.getLogger("gaman")

_ATTEMPTS: Final = 5
_MAX_DURATION: Final = 1.0
"""Seconds after which a measurement stops."""
_EXACT_ENOUGH: Final = 0.05
"""Seconds. A shorter round trip always counts: its result is wrong by at most half of its duration."""


def has_clock(driver: Driver | None) -> TypeGuard[ClockDriver]:
    """Return whether *driver* is a ClockDriver."""
    return callable(getattr(driver, "time", None))


class StoreClock:
    """The time of a driver's store: the last measurement, continued by the monotonic clock.

    Until the first measurement, it is this machine's time.
    """

    def __init__(self, driver: ClockDriver) -> None:
        self._driver = driver
        self._base = time.time() - monotonic()
        """The difference between the store's time and monotonic()."""
        self._is_off = False

    def now(self) -> float:
        """Return the time, in seconds since the epoch."""
        return monotonic() + self._base

    async def measure(self) -> None:
        """Measure the store's time; SessionStoreError: the store failed, and the clock continues as before.

        The server reads its clock during the round trip, so the shortest of several is the most exact. A longer one, due to a slow
        store or a busy event loop, counts only if it proves the clock wrong.
        """
        shortest, base, started = math.inf, self._base, monotonic()
        for _ in range(_ATTEMPTS):
            began = monotonic()
            found = await self._driver.time()
            ended = monotonic()
            if ended - began < shortest:
                shortest, base = ended - began, found - (began + ended) / 2
            if ended - started > _MAX_DURATION:
                break
        if shortest <= _EXACT_ENOUGH or abs(base - self._base) > (shortest + _EXACT_ENOUGH) / 2:
            self._base = base
        self._compare()

    def _compare(self) -> None:
        """Log a warning when this machine's clock starts to differ from the store's by more than MAX_SKEW."""
        ahead = time.time() - self.now()
        was_off, self._is_off = self._is_off, abs(ahead) > MAX_SKEW
        if self._is_off and not was_off:
            logger.warning(
                "the clock of this machine is %.1f s %s that of the %s server; sessions use the server's. "
                "Keep both right with NTP, such as chrony or systemd-timesyncd",
                abs(ahead),
                "ahead of" if ahead > 0 else "behind",
                self._driver.name,
                extra={"driver": self._driver.name},
            )
