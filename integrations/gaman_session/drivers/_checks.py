"""The checks that settings of drivers and of session() share: whole numbers, and timeouts."""

from __future__ import annotations

import math

from gaman.errors import ConfigError


def check_whole_number(
    value: object, found: str, takes: str = "a whole number above 0", *, minimum: int = 1, maximum: float = math.inf
) -> None:
    """Raise ConfigError, *found* and what the setting *takes*, unless *value* is an int within the limits."""
    if not isinstance(value, int) or isinstance(value, bool) or not minimum <= value <= maximum:
        raise ConfigError(f"{found} it takes {takes}")


def check_timeout(driver: str, timeout: object, takes: str = "a number of seconds above 0", *, below: float = math.inf) -> None:
    """Raise ConfigError unless *timeout* is a number of seconds above 0 and *below* the limit."""
    if not isinstance(timeout, (int, float)) or isinstance(timeout, bool) or not 0 < timeout < below:
        raise ConfigError(f"the {driver} driver has timeout={timeout!r}; it takes {takes}")
