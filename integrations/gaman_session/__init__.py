"""Sessions for gaman: session() returns the integration, which gives handlers their ctx.session."""

from gaman_session._audit import SessionEvent
from gaman_session._check_csrf import check_csrf
from gaman_session._counters import Counters
from gaman_session._driver import (
    LARGE,
    MAX_SKEW,
    TOMBSTONE,
    BatchDriver,
    ClockDriver,
    Driver,
    EveryoneDriver,
    Outcome,
    OwnerDriver,
    Ownership,
    Record,
)
from gaman_session._errors import (
    SessionClosed,
    SessionConflict,
    SessionError,
    SessionLoginRequired,
    SessionSerializationError,
    SessionStoreError,
    SessionTooLarge,
    SessionTypeError,
    SessionUnsupported,
    SessionUseError,
)
from gaman_session._guard import allow_cross_site
from gaman_session._integration import SessionIntegration, session
from gaman_session._owned import OwnedSession
from gaman_session._require_fresh import require_fresh
from gaman_session._require_same_origin import require_same_origin
from gaman_session._serializer import Serializer
from gaman_session._session import Session
from gaman_session.drivers._key_value import KeyValueDriver

__all__ = [
    "LARGE",
    "MAX_SKEW",
    "TOMBSTONE",
    "BatchDriver",
    "ClockDriver",
    "Counters",
    "Driver",
    "EveryoneDriver",
    "KeyValueDriver",
    "Outcome",
    "OwnedSession",
    "OwnerDriver",
    "Ownership",
    "Record",
    "Serializer",
    "Session",
    "SessionClosed",
    "SessionConflict",
    "SessionError",
    "SessionEvent",
    "SessionIntegration",
    "SessionLoginRequired",
    "SessionSerializationError",
    "SessionStoreError",
    "SessionTooLarge",
    "SessionTypeError",
    "SessionUnsupported",
    "SessionUseError",
    "allow_cross_site",
    "check_csrf",
    "require_fresh",
    "require_same_origin",
    "session",
]
