"""Standard streams of the server: lines on stdout, the log on stderr, and /dev/null for a closed stream."""

from __future__ import annotations

import logging
import os
from contextlib import suppress

logger = logging.getLogger("gaman")

LEVELS = ("debug", "info", "warning", "error", "critical")
"""The names of log levels."""


def print_line(line: str) -> None:
    """Print *line* at once. A stdout that is closed doesn't stop the server."""
    with suppress(OSError):
        print(line, flush=True)


def print_waiting(requests: int) -> bool:
    """Print how many requests delay the shutdown, and return whether there are any."""
    if requests:
        print_line(f"gaman: waiting for {plural(requests, 'request')} to finish; Ctrl+C again ends it at once")
    return requests > 0


def plural(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def set_log(level: str | None, *, is_chatty: bool, is_explicit: bool) -> None:
    """Set the level of gaman's log, and write it to stderr unless the user has configured logging.

    If the server *is_chatty*, the level is INFO or lower; where the user has configured logging, only if that *is_explicit*.
    """
    if level is None and not is_chatty:
        return
    has_handlers = logger.hasHandlers()
    if not has_handlers:
        handler = logging.StreamHandler()
        handler.setFormatter(logging.Formatter("gaman: %(message)s"))
        logger.addHandler(handler)
    if level is not None:
        logger.setLevel(level.upper())
    if is_chatty and (is_explicit or not has_handlers) and not logger.isEnabledFor(logging.INFO):
        logger.setLevel(logging.INFO)


def open_standard_streams() -> None:
    """Open /dev/null for each standard stream that is closed: libuv aborts if a socket gets one of their numbers."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The system assigns the lowest free number, which is this one.
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)
