"""The contract as code: what each call does to sessions, tombstones and the owners' index, for stores that have locks.

Each rule is the method of Store that has the name of its call in the contract. A driver takes the locks that a call needs first.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from math import floor, inf
from typing import Annotated, Final, Literal, TypeAlias

from msgspec import Meta, Struct, structs

from gaman_session._driver import MAX_SKEW, TOMBSTONE, Outcome, Ownership, Record, size_of
from gaman_session._errors import SessionStoreError


class Tombstone(Struct):
    """The remains of a session that was ended, or renamed to *successor*."""

    deadline: float
    """When the tombstone expires."""
    successor: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")] | None


class Ending(Struct, frozen=True):
    """The last end_everyone() of a store.

    A new session gets this `min_version` as its version, and one with a smaller version was ended. So a single number ends any
    number of sessions at one instant. A call has to read it at any time between its beginning and its write: a session that is
    stored with an earlier number is dead from the start.
    """

    min_version: int = 0
    at: float = -inf
    """The call's *now*."""


NEVER: Final = Ending()
"""The Ending of a store without an end_everyone()."""
MAX_WRITES: Final = 1 << 32
"""More writes than a session gets: each end_everyone() raises the version of new sessions by so much."""
_WRITES_A_SECOND: Final = 1 << 20
"""More writes than a session gets in a second."""

Stored: TypeAlias = Record | Tombstone
_Missing: TypeAlias = Literal[Outcome.ENDED, Outcome.ABSENT]


# Reading


def find(stored: Stored | None, now: float, ending: Ending = NEVER) -> Record | _Missing:
    """Return the session, ENDED for a tombstone, or ABSENT if there is neither or it has expired.

    A session that *ending* ended is ENDED for a minute, and then ABSENT.
    """
    if stored is None or has_expired(stored, now):
        return Outcome.ABSENT
    if isinstance(stored, Tombstone):
        return Outcome.ENDED
    if stored.version >= ending.min_version:
        return stored
    return Outcome.ENDED if still_counts(ending.at, now) else Outcome.ABSENT


def has_expired(stored: Stored, now: float) -> bool:
    """Return whether the session or tombstone has expired, so that purge() removes it."""
    return stored.deadline <= now


def load(stored: Stored | None, now: float, ending: Ending = NEVER) -> Record | Literal[Outcome.ENDED] | None:
    """Return the session, ENDED for a tombstone, or None, as Driver.load() does."""
    found = find(stored, now, ending)
    return None if found is Outcome.ABSENT else found


def owned(stored: Stored | None, owner: str, now: float, ending: Ending = NEVER) -> Record | None:
    """Return the session if it is one of *owner*, otherwise None."""
    record = find(stored, now, ending)
    return record if isinstance(record, Record) and record.ownership is not None and record.ownership.owner == owner else None


# Writing


class Store(ABC):
    """A driver's store during one call, while the locks are held: those of the ids, and of the owner in a new ownership."""

    name: str
    """The driver's name."""

    @abstractmethod
    def get(self, id: str) -> Stored | None:
        """Return what is stored under *id*, as a copy that the rule may change."""

    @abstractmethod
    def put(self, stored: Mapping[str, Stored]) -> None:
        """Store all of these, or none of them. If the store writes them one by one, it keeps their order."""

    @abstractmethod
    def move(self, id: str, before: Ownership | None, after: Ownership | None, *, now: float) -> None:
        """Move the session in the owners' index. An entry is added before its session is stored, and removed afterwards."""

    @abstractmethod
    def revoked(self, owner: str) -> float | None:
        """Return when the owner's sessions were ended, or None if that isn't stored."""

    @property
    @abstractmethod
    def ending(self) -> Ending:
        """The last end_everyone(), or NEVER."""

    # The rules

    def create(self, id: str, record: Record) -> Literal[Outcome.REVOKED] | None:
        """Store a new session, or raise SessionStoreError for an id that is taken."""
        if self.get(id) is not None:
            raise SessionStoreError(self.name, "create a session under an id that is taken")
        if began_before(record.created, self.ending) or self._is_revoked(record.ownership, None, record.created):
            return Outcome.REVOKED
        self.put({id: self._begin(record)})
        self.move(id, None, record.ownership, now=record.created)
        return None

    def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        """Set and delete fields of the session."""
        record = find(self.get(id), now, self.ending)
        if not isinstance(record, Record):
            return record
        fields = _changed(record, sets, deletes)
        return self._write(id, record, fields, record.ownership, now=now, deadline=deadline, max_size=max_size)

    def swap(
        self, id: str, field: str, old: bytes | None, new: bytes, *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        """Set one field of the session if its bytes are *old*."""
        record = find(self.get(id), now, self.ending)
        if not isinstance(record, Record):
            return record
        if record.fields.get(field) != old:
            return Outcome.CONFLICT
        fields = {**record.fields, field: new}
        return self._write(id, record, fields, record.ownership, now=now, deadline=deadline, max_size=max_size)

    def set_owner(
        self,
        id: str,
        ownership: Ownership | None,
        sets: Mapping[str, bytes],
        deletes: Collection[str],
        *,
        now: float,
        deadline: float | None,
        max_size: int,
    ) -> Outcome:
        """Set and delete fields of the session, and change its ownership."""
        record = find(self.get(id), now, self.ending)
        if not isinstance(record, Record):
            return record
        if self._is_revoked(ownership, record.ownership, now):
            return Outcome.REVOKED
        fields = _changed(record, sets, deletes)
        return self._write(id, record, fields, ownership, now=now, deadline=deadline, max_size=max_size)

    def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
        """Replace the session by *record* under *new_id*, or raise SessionStoreError if that id is taken."""
        old = find(self.get(id), now, self.ending)
        if not isinstance(old, Record):
            return old
        if old.version != version:
            return Outcome.CONFLICT
        if self.get(new_id) is not None:
            raise SessionStoreError(self.name, "rename a session to an id that is taken")
        if self._is_revoked(record.ownership, old.ownership, now):
            return Outcome.REVOKED
        # In this order, the old id is dead when the new one lives.
        self.put({id: Tombstone(now + TOMBSTONE, new_id), new_id: self._begin(record)})
        self.move(id, old.ownership, None, now=now)
        self.move(new_id, None, record.ownership, now=now)
        return Outcome.WRITTEN

    def destroy(self, id: str, *, now: float) -> str | None:
        """End the session; return the id that it was renamed to, if any. See destroy_all()."""
        stored = self.get(id)
        found = find(stored, now, self.ending)
        if isinstance(found, Record):
            self._end(id, found, now)
        return stored.successor if isinstance(stored, Tombstone) and found is Outcome.ENDED else None

    def end_owned(self, id: str, owner: str, *, now: float) -> str | bool:
        """End the session if it is one of *owner*; return whether it was, or the id that it was renamed to. See end_all_owned()."""
        stored = self.get(id)
        record = owned(stored, owner, now, self.ending)
        if record is not None:
            self._end(id, record, now)
        elif isinstance(stored, Tombstone) and stored.successor is not None and not has_expired(stored, now):
            return stored.successor
        return record is not None

    def _is_revoked(self, ownership: Ownership | None, before: Ownership | None, now: float) -> bool:
        if ownership is None or is_carried(ownership, before):
            return False
        return is_revoked(ownership, self.revoked(ownership.owner), now) or is_outdated(ownership, self.ending, now)

    def _begin(self, record: Record) -> Record:
        """Return *record* as a session that begins now is stored."""
        ending = self.ending
        return structs.replace(record, version=record.version + ending.min_version) if ending.min_version else record

    def _write(
        self,
        id: str,
        record: Record,
        fields: dict[str, bytes],
        ownership: Ownership | None,
        *,
        now: float,
        deadline: float | None,
        max_size: int,
    ) -> Outcome:
        size = size_of(fields)
        if size > max_size and size > size_of(record.fields):
            return Outcome.TOO_LARGE
        if not fields:
            self._end(id, record, now)
            return Outcome.EMPTIED
        before, record.fields, record.ownership = record.ownership, fields, ownership
        record.version += 1
        if deadline is not None:
            record.deadline = min(deadline, record.expires)
        self.put({id: record})
        if ownership is not before:
            self.move(id, before, ownership, now=now)
        return Outcome.WRITTEN

    def _end(self, id: str, record: Record, now: float) -> None:
        self.put({id: Tombstone(now + TOMBSTONE, None)})
        self.move(id, record.ownership, None, now=now)


async def destroy_all(id: str, destroy: Callable[[str], Awaitable[str | None]]) -> None:
    """Call *destroy* for the session, and for each id that it was renamed to."""
    successor: str | None = id
    seen: set[str] = set()
    # Damaged tombstones may lead in a circle.
    while successor is not None and successor not in seen:
        seen.add(successor)
        successor = await destroy(successor)


async def end_all_owned(
    ids: Iterable[str], end: Callable[[list[str]], Awaitable[Iterable[str | bool]]], *, keep: Collection[str]
) -> int:
    """Give *end* the sessions except those in *keep*, and then the ids that they were renamed to; return how many were ended.

    Store the time for revoked() before you read *ids*. A session that is written later is then REVOKED, or has the index entry of a
    session that is among them.
    """
    seen, ended = set(keep), 0
    while ending := [id for id in ids if id not in seen]:
        seen.update(ending)
        results = list(await end(ending))
        ended += sum(result is True for result in results)
        ids = [result for result in results if isinstance(result, str)]
    return ended


def revoked_at(before: float | None, now: float) -> float:
    """Return the time to store for revoked() when end_owned() is called at *now*; *before* is the time stored so far."""
    # A time that is further ahead was stored before the clock was set back.
    return now if before is None or before > now + MAX_SKEW else max(before, now)


def still_counts(revoked: float | None, now: float) -> bool:
    """Return whether the time that is stored for revoked() still counts. Otherwise it may be removed."""
    # See revoked_at() for MAX_SKEW.
    return revoked is not None and revoked - MAX_SKEW <= now < revoked + TOMBSTONE


def is_revoked(ownership: Ownership, revoked: float | None, now: float) -> bool:
    """Return whether *ownership* was made before the sessions of its owner were ended, at the time stored for revoked()."""
    return revoked is not None and ownership.since < revoked and still_counts(revoked, now)


def next_ending(before: Ending, now: float) -> Ending:
    """Return the Ending to store when end_everyone() is called at *now*; *before* is the one stored so far."""
    # By the time as well, in case the store has lost an Ending that later sessions have the number of.
    return Ending(max(before.min_version + MAX_WRITES, floor(now) * _WRITES_A_SECOND), revoked_at(before.at, now))


def began_before(created: float, ending: Ending, max_ahead: float = MAX_SKEW) -> bool:
    """Return whether a create() with this `created` began before *ending*, which counts up to *max_ahead* seconds ahead."""
    # `created` is in whole milliseconds, rounded down.
    return ending.at - max_ahead <= created < ending.at and created < floor(ending.at * 1000) / 1000


def is_outdated(ownership: Ownership, ending: Ending, now: float, max_ahead: float = MAX_SKEW) -> bool:
    """Return whether *ownership* was made before *ending*, which counts up to *max_ahead* seconds ahead."""
    return ownership.since < ending.at and ending.at - max_ahead <= now < ending.at + TOMBSTONE


def is_carried(ownership: Ownership, before: Ownership | None) -> bool:
    """Return whether the session already has this ownership, which is then never revoked."""
    return before is not None and before.since == ownership.since


def _changed(record: Record, sets: Mapping[str, bytes], deletes: Collection[str]) -> dict[str, bytes]:
    fields = {**record.fields, **sets}
    for field in deletes:
        fields.pop(field, None)
    return fields
