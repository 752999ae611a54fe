"""Every error of the session; absence, tampering and expiry are none: they read as an empty session."""

from gaman.errors import GamanError, HTTPError


class SessionError(GamanError):
    """The root of the session's errors."""


class SessionSerializationError(SessionError):
    """A value that the serializer can't keep was given to set() or update()."""


class SessionTypeError(SessionError):
    """What is stored does not fit the type that get() was asked for."""


class SessionUseError(SessionError, TypeError):
    """A session was taken for a dict, a call of it for its result, or something else than text for a key."""


class SessionTooLarge(SessionError):
    """The session would not fit into its cookie any more; what was stored before is intact."""


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
    """The store failed; the request answers 503 and nobody is logged out. The cause says what happened."""

    def __init__(self, driver: str, action: str) -> None:
        HTTPError.__init__(self, 503, headers={"cache-control": "no-store"})
        self.driver = driver
        self.action = action

    def __str__(self) -> str:
        return f"the session store ({self.driver}) could not {self.action}"
