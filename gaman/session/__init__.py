"""The door to the session, which lives in a package of its own, as every integration does."""

from gaman_session import (
    TOMBSTONE,
    Driver,
    Outcome,
    Record,
    Serializer,
    Session,
    SessionClosed,
    SessionConflict,
    SessionError,
    SessionSerializationError,
    SessionStoreError,
    SessionTooLarge,
    SessionTypeError,
    session,
)

__all__ = [
    "TOMBSTONE",
    "Driver",
    "Outcome",
    "Record",
    "Serializer",
    "Session",
    "SessionClosed",
    "SessionConflict",
    "SessionError",
    "SessionSerializationError",
    "SessionStoreError",
    "SessionTooLarge",
    "SessionTypeError",
    "session",
]
