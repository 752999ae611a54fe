"""later(): sets the clock of sessions forward in a test, where a login is then no longer fresh, and sessions expire."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from gaman.errors import a_type
from gaman_session._errors import SessionUseError
from gaman_session._integration import SessionIntegration
from gaman_session._sessions import MAX_LIFETIME


@contextmanager
def later(sessions: SessionIntegration, seconds: float) -> Generator[None]:
    """Set the clock of *sessions*, which session() has returned, forward by *seconds* within the block; for tests.

        with later(sessions, 301):
            assert client.get("/email").status_code == 401

    It works with each driver. Only this process is ahead: the store's own clock stays as it is.
    """
    if not isinstance(sessions, SessionIntegration):
        raise SessionUseError(f"later() takes what session() returns, not {a_type(sessions)}")
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not 0 <= seconds <= MAX_LIFETIME:
        raise SessionUseError(f"later() takes a number of seconds, such as 301; it can't be {seconds!r}")
    shared = sessions._upkeep()._sessions
    before = shared.clock

    def ahead() -> float:
        return before() + seconds

    shared.clock = ahead
    try:
        yield
    finally:
        shared.clock = before
