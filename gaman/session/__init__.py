"""The door to the session, which lives in a package of its own, as every integration does."""

from gaman_session import (
    TOMBSTONE,
    Counters,
    Driver,
    Outcome,
    Record,
    Serializer,
    Session,
    SessionClosed,
    SessionConflict,
    SessionError,
    SessionIntegration,
    SessionSerializationError,
    SessionStoreError,
    SessionTooLarge,
    SessionTypeError,
    session,
)

__all__ = [
    "TOMBSTONE",
    "Counters",
    "Driver",
    "Outcome",
    "Record",
    "Serializer",
    "Session",
    "SessionClosed",
    "SessionConflict",
    "SessionError",
    "SessionIntegration",
    "SessionSerializationError",
    "SessionStoreError",
    "SessionTooLarge",
    "SessionTypeError",
    "session",
]
