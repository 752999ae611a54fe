"""Pending: what a request has changed, and not yet written."""

from __future__ import annotations

from collections.abc import Mapping
from time import monotonic

from msgspec import Struct, field

from gaman_session._owners import PendingOwner


class Renewal(Struct, frozen=True):
    """A new id, as regenerate(), login() and confirm() ask for it."""

    max_age: int | None = None
    begins: bool = True
    """Whether a new session begins if this one ends meanwhile. It doesn't for confirm(), which would undo a logout."""
    moment: float = field(default_factory=monotonic)
    """When it was called, by the monotonic clock."""


class Pending(Struct, gc=False):
    """The changes of one request."""

    changes: dict[str, bytes | None] = {}
    """The encoded data to set, by key; None deletes the key."""
    renewal: Renewal | None = None
    is_end: bool = False
    """Whether the session is to end. Changes after that begin a new one."""
    owner: PendingOwner | None = None

    def end(self) -> None:
        """End the session, with everything that was pending."""
        self.discard()
        self.is_end = True

    def discard(self) -> None:
        """Drop everything that is pending."""
        self.drop_changes()
        self.is_end = False

    def drop_changes(self) -> None:
        """Drop what is pending but a clear(), which may have been called meanwhile."""
        self.changes.clear()
        self.renewal = self.owner = None

    def settle(self, written: Mapping[str, bytes | None]) -> None:
        """Remove the changes that were *written*, unless the handler changed the key again meanwhile."""
        for key, data in written.items():
            if key in self.changes and self.changes[key] is data:
                del self.changes[key]
