"""Every error of the session; absence, tampering and expiry are none: they read as an empty session."""

from gaman.errors import GamanError, HTTPError


class SessionError(GamanError):
    """The root of the session's errors."""


class SessionSerializationError(SessionError):
    """A value that the serializer can't keep was given to set() or update()."""


class SessionTypeError(SessionError):
    """What is stored does not fit the type that get() was asked for."""


class SessionUseError(SessionError, TypeError, ValueError):
    """A session was taken for a dict, a call of it for its result, or a call was given what it doesn't take."""


class SessionTooLarge(SessionError):
    """The session would be larger than its cookie or `max_size` allows; what was stored before is intact.

    Unless it is caught, the request's changes are dropped. Beyond `max_size`, the response is 413, because the visitor has sent too
    much. Beyond what a cookie holds, it is 500, because the application has chosen a driver that is too small for it.
    """

    def __init__(self, message: str, size: int, max_size: int) -> None:
        super().__init__(message)
        self.size = size
        """Bytes that it would have."""
        self.max_size = max_size
        """Bytes that it may have."""


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
    """The response has begun, and the change that was asked for could not reach the browser or the store with it."""


class SessionConflict(SessionError):
    """update() or regenerate() gave up, because others changed the same session at every attempt."""


class SessionUnsupported(SessionError):
    """The driver can't tell whose sessions are whose; the message names those that can."""

    def __init__(self, driver: str) -> None:
        super().__init__(
            f"the {driver} driver can't tell whose sessions are whose; choose one that can: memory, file, sql, redis or mongodb"
        )
        self.driver = driver


class SessionStoreError(SessionError, HTTPError):
    """The store failed: the response is 503, and no visitor is logged out. The cause, and *reason* if any, say what happened."""

    def __init__(self, driver: str, action: str, reason: str = "", *, is_unconfirmed: bool = False) -> None:
        HTTPError.__init__(self, 503, headers={"cache-control": "no-store"})
        self.driver = driver
        self.action = action
        self.reason = reason
        """What the store said, if anything, without values."""
        self.is_unconfirmed = is_unconfirmed
        """Whether the store has made the change, and may yet lose it, because too few replicas have confirmed it."""

    def __str__(self) -> str:
        reason = self.reason and f": {self.reason}"
        return f"the session store ({self.driver}) could not {self.action}{reason}"
