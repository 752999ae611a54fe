"""The errors of the session; a session that is absent, forged or expired is not an error: it reads as empty."""

from typing import Final

from gaman.errors import GamanError, HTTPError


class SessionError(GamanError):
    """The base class of the session's errors."""


class SessionSerializationError(SessionError):
    """The serializer can't encode a value that was given to set() or update()."""


class SessionTypeError(SessionError):
    """The stored value doesn't fit the type that was given to get()."""


class SessionUseError(SessionError, TypeError, ValueError):
    """A session was used as a dict, a call without `await`, or a call with an invalid argument."""


class SessionAttributeError(SessionUseError, AttributeError):
    """An attribute that a session doesn't have; the message says what to write."""


class SessionTooLarge(SessionError):
    """The session would be larger than its cookie or `max_size` allows; what was stored before is unchanged.

    Unless the error is caught, the request's changes are dropped. Beyond `max_size`, the response is 413, because the visitor sent
    too much. Beyond the limit of cookies, it is 500, because the application needs a driver that stores more.
    """

    def __init__(self, message: str, size: int, max_size: int) -> None:
        super().__init__(message)
        self.size = size
        """Bytes that the session would have."""
        self.max_size = max_size
        """Bytes that it may have at most."""


class StoredSessionTooLarge(SessionTooLarge, HTTPError):
    """A session in a store would be larger than `max_size` allows."""

    def __init__(self, size: int, max_size: int, key: str | None = None) -> None:
        HTTPError.__init__(self, 413, f"the session would be larger than {max_size} bytes", headers={"cache-control": "no-store"})
        self.size = size
        self.max_size = max_size
        self.key = key

    def __str__(self) -> str:
        reason = "" if self.key is None else f"with {self.key!r} "
        return f"{reason}the session would have {self.size} bytes, and session(max_size={self.max_size}) allows no more"


class SessionClosed(SessionError):
    """The response has begun, so a change would reach neither the browser nor the store."""


def too_late_to_read() -> SessionClosed:
    """Return the error for a first read after the headers, which can no longer tell caches that the response depends on it."""
    return SessionClosed("the session is read for the first time after the response has begun; read it before")


def too_late_to_change() -> SessionClosed:
    """Return the error for a change after the headers, which would reach neither the browser nor the store."""
    return SessionClosed("the response has begun, so a change of the session would be lost; make it before")


def too_late_for_cookie() -> SessionClosed:
    """Return the error for a new session or a new id after the handshake of a WebSocket, the only response with a cookie."""
    return SessionClosed(
        "the WebSocket is accepted, so the browser can't get the cookie of a new id; begin sessions before accept()"
    )


class SessionLoginRequired(SessionError, HTTPError):
    """The session has no login, or none that is recent enough: the response is 401."""

    def __init__(self) -> None:
        HTTPError.__init__(self, 401, "log in, or confirm the login", headers={"cache-control": "no-store"})


class SessionConflict(SessionError):
    """update(), regenerate() or login() gave up, because other requests changed the same session at each attempt."""


_WITH_ENDED: Final = ("owners", "list()", "count()", "end()", "end_all()")
"""What sessions in cookies support with a store of ended sessions."""


class SessionUnsupported(SessionError):
    """The driver doesn't support a call; the message names the fix."""

    def __init__(
        self, driver: str, what: str = "owners", fix: str = "choose one that does: memory, file, sql, redis or mongodb"
    ) -> None:
        if driver == "cookies" and what in _WITH_ENDED:
            fix += ", or give it a store of ended sessions: driver={'type': 'cookies', 'ended': {'type': 'sql'}}"
        super().__init__(f"the {driver} driver doesn't support {what}; {fix}")
        self.driver = driver


class SessionStoreError(SessionError, HTTPError):
    """The store failed: the response is 503, and no visitor is logged out. The cause and *reason* say what happened."""

    def __init__(
        self, driver: str, action: str, reason: str = "", *, is_unconfirmed: bool = False, is_partial: bool = False
    ) -> None:
        HTTPError.__init__(self, 503, headers={"cache-control": "no-store"})
        self.driver = driver
        self.action = action
        self.reason = reason
        """The store's own message, without values, or an empty string."""
        self.is_unconfirmed = is_unconfirmed
        """Whether the store has made the change and may still lose it, because too few replicas have confirmed it."""
        self.is_partial = is_partial
        """Whether the store works and did only a part: it may have evicted some of an owner's sessions."""

    def __str__(self) -> str:
        reason = self.reason and f": {self.reason}"
        return f"the session store ({self.driver}) could not {self.action}{reason}"
