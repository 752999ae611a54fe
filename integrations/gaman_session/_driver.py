"""The contract of a driver: a store of sessions that sees bytes, and never a key, a cookie or a clock."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from enum import Enum, auto
from typing import Final, Literal, Protocol, TypeGuard

from msgspec import Struct

from gaman_session._gather import gather

TOMBSTONE: Final = 60
"""Seconds for which a store keeps the tombstone of a session, and the time when the sessions of an owner were ended."""

MAX_SKEW: Final = 1
"""Seconds by which the clocks of processes may differ. A time that is further ahead was stored before the clock was set back.

With a ClockDriver, the times of processes differ by a few milliseconds.
"""

MAX_FLIGHT: Final = 10
"""Seconds that a call to a server may be in flight and still be dropped by end_everyone().

Only a ClockDriver can allow it so much, because its clock isn't set back with the machine's.
"""

LARGE: Final = 64 * 1024
"""Bytes. A larger session is loaded by itself, so that no other call waits for it."""

YEAR_10000: Final = 253_402_300_800
"""Seconds since the epoch: the first time that datetime can't represent."""


class Outcome(Enum):
    """The result of a write. Nothing was written unless it is WRITTEN or EMPTIED; rename() has the one exception."""

    WRITTEN = auto()
    """The store has the change."""
    EMPTIED = auto()
    """The write deleted the last field, and so ended the session."""
    CONFLICT = auto()
    """Another write came first."""
    ENDED = auto()
    """The session was ended or renamed within the last TOMBSTONE seconds."""
    ABSENT = auto()
    """There is no such session: it never existed, has expired, or was lost with the store's data."""
    REVOKED = auto()
    """The sessions of the owner, or of everyone, were ended after the change began. See OwnerDriver and EveryoneDriver."""
    TOO_LARGE = auto()
    """The session would grow beyond *max_size*."""


class Ownership(Struct, frozen=True):
    """The owner of a session."""

    owner: str
    """The owner's name in the store, not empty: a keyed hash of the owner, or the owner itself if nothing is sealed."""
    note: bytes
    """The application's note, as bytes."""
    since: float
    """When set_owner() was called, in seconds since the epoch. It identifies the ownership: a new one has another `since`."""


# Files keep the name that the ownership had when they were written first.
class Record(Struct, omit_defaults=True, rename={"ownership": "tag"}):
    """A session as a driver stores it. Times are seconds since the epoch; `created` and `expires` are whole milliseconds."""

    fields: dict[str, bytes]
    created: float
    expires: float
    """The absolute limit."""
    deadline: float
    """When the session expires unless it is used: `expires`, or the idle limit if that is earlier."""
    version: int = 0
    """Each write raises it, so that rename() notices a write that came in between."""
    ownership: Ownership | None = None
    """None if the session has no owner, and always in a driver that isn't an OwnerDriver."""
    seal: bytes = b""
    """Proves `created` and `expires`; empty if nothing is sealed. To the driver, it is any bytes that belong to these times."""


def size_of(fields: Mapping[str, bytes]) -> int:
    """Return the size of a session that has *fields*, in bytes."""
    return len("".join(fields).encode()) + sum(map(len, fields.values()))


def length_of(name: str) -> int:
    """Return how many bytes the name of a field adds to the size of its session."""
    return len(name) if name.isascii() else len(name.encode())


class LoadAtOnce(Protocol):
    """Driver.load() of a driver in this process, without `await`."""

    def __call__(self, id: str, *, now: float) -> Record | Literal[Outcome.ENDED] | None: ...


class Driver(Protocol):
    """A store of sessions.

    An id is 64 hexadecimal digits: the hash of the raw id, which only the cookie holds. A field's name is any string that UTF-8
    can encode, and its value any bytes. A session expires at its deadline: at `now == deadline` it is absent, even if the store
    hasn't removed it yet. Each call is atomic against every other call, in all processes that share the store. Absence is a
    result, never an error. If the store fails, the call raises SessionStoreError from its cause, within the driver's timeout.

    Ending or renaming a session leaves a tombstone in its place for TOMBSTONE seconds. It holds nothing but the new id, after a
    rename. With it, late writes are ENDED, and a late destroy() ends the renamed session as well.

    A session's size is the bytes of its fields' names and values. A driver may add the store's overhead, up to 64 bytes a field
    and 256 a session. A write is TOO_LARGE if it makes the session larger, and larger than *max_size*. The check is a part of the
    atomic write, so that concurrent writes can't exceed the limit together. create() and rename() store a whole record, and their
    caller has checked its size.

    A session of more than LARGE bytes is loaded by itself, so that no other call waits for it.

    Damaged or foreign data in the store counts as absent, and is reported once.

    KeyValueDriver implements the contract for a store that keeps bytes under keys and has a lock.
    """

    @property
    def name(self) -> str:
        """The driver's name, for logs and errors."""
        ...

    @property
    def shared(self) -> bool:
        """Whether several processes that open the driver see the same sessions. If so, values are sealed."""
        ...

    async def open(self) -> None:
        """Prepare the store, or raise ConfigError or SessionStoreError with the reason. Called before any other method."""

    async def close(self) -> None:
        """Release every connection, file and task."""

    async def load(self, id: str, *, now: float) -> Record | Literal[Outcome.ENDED] | None:
        """Return the session, ENDED for a tombstone, or None, in one round trip. The caller may change the record."""
        ...

    async def create(self, id: str, record: Record) -> Literal[Outcome.REVOKED] | None:
        """Store a new session. Creating never overwrites: an id that is taken raises SessionStoreError.

        An OwnerDriver returns REVOKED if the sessions of the owner were ended after the ownership was made, and an EveryoneDriver
        if all sessions were ended after `created`. No other driver returns it.
        """

    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        """Set and delete single fields in one round trip, and leave all others as they are; never create a session.

        The session's deadline becomes *deadline*, or `expires` if that is earlier; with None it stays. If no field is left, the
        session ends and the outcome is EMPTIED. Otherwise it is WRITTEN, TOO_LARGE, ENDED or ABSENT.
        """
        ...

    async def swap(
        self, id: str, field: str, old: bytes | None, new: bytes, *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        """Set one field if its bytes are *old*; if *old* is None, set it if it is missing.

        The deadline moves as with apply(). The outcome is WRITTEN, CONFLICT, TOO_LARGE, ENDED or ABSENT.
        """
        ...

    async def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
        """Replace the session by *record* under *new_id* if its version is still *version*.

        The outcome is WRITTEN, CONFLICT, ENDED or ABSENT. The old id is dead when the new one lives. If a store can't do both in
        one step, the old id dies first; a destroy() between the two steps leaves a tombstone under the new id, and the outcome is
        ENDED. In an OwnerDriver, an ownership that the session did not have may be REVOKED, as in create(); the old id may then
        be dead or not.

        A SessionStoreError with `is_unconfirmed` means that the store has the new id, and may yet lose it.
        """
        ...

    async def destroy(self, id: str, *, now: float) -> None:
        """End the session, and those it was renamed to. For an unknown id, nothing happens and nothing is stored."""

    async def purge(self, *, now: float, limit: int) -> int:
        """Remove at most *limit* expired sessions and tombstones; return how many. Return 0 if the store removes them by itself."""
        ...


class OwnerDriver(Driver, Protocol):
    """The optional part of the contract for sessions with owners. A driver with these methods is an OwnerDriver.

    Each call here finds the sessions of an owner by an index. Its cost depends on how many sessions the owner has, not on how
    many the store has. The index misses no live session. Other entries, of sessions that have ended, expired or changed their
    owner, are left out of every result, and leave the index in time.

    end_owned() takes effect at one instant, its *now*. For TOMBSTONE seconds, an ownership that was made before is REVOKED: a
    login in flight at that instant is dropped, and a later one succeeds. A call whose own *now* is more than MAX_SKEW seconds
    before that instant ignores it, because the clock was set back since. An ownership that the session already has is never
    REVOKED: it has the same `since`, and a rename keeps it.
    """

    async def set_owner(
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
        """Do what apply() does, and replace the session's ownership in the same step; None leaves the session without an owner.

        An ownership doesn't keep a session alive: if no field is left, the session is EMPTIED.
        """
        ...

    async def owned(self, owner: str, *, now: float) -> Mapping[str, Record]:
        """Return every session of *owner* by its id, with its times and its ownership; the fields may be left out."""
        ...

    async def end_owned(self, owner: str, *, keep: Collection[str], now: float) -> int:
        """End every session of *owner* except those in *keep* and those they are renamed to meanwhile; return how many were ended.

        Ownerships made before *now* are REVOKED from then on; the sessions to keep are unchanged. A SessionStoreError with
        `is_partial` means that the store works, but its index may have lost some of the owner's sessions; those that it found are
        ended.
        """
        ...

    async def count(self, *, now: float) -> int:
        """Return how many sessions the store has. This may read all of them."""
        ...


class EveryoneDriver(Driver, Protocol):
    """The optional part of the contract for ending all sessions of all users. A driver with this method is an EveryoneDriver.

    end_everyone() takes effect at one instant between call and return, however many sessions the store has. Each session that the
    store had before is dead from then on, in every process and for every call of the contract: it is ENDED for TOMBSTONE seconds,
    and then ABSENT. Its data may stay in the store until it would have expired, but no call returns or counts it.

    A session that begins later lives. Calls in flight at that instant are dropped: for TOMBSTONE seconds, a create() whose
    `created` is before the instant is REVOKED, and so is an ownership made before. An instant more than MAX_SKEW seconds ahead of a
    call is ignored, because the clock was set back since; a ClockDriver may ignore only one more than MAX_FLIGHT seconds ahead. For
    the sessions that were stored, clocks don't matter.

    A store that stamps each session with a number can do this in one write: see Ending in `_rules.py`.
    """

    async def end_everyone(self, *, now: float) -> None:
        """End every session in the store, at *now* or, if that takes several steps, at a time between *now* and the return.

        A SessionStoreError means that some sessions may be ended, and others not.
        """


class ClockDriver(Driver, Protocol):
    """The optional part of the contract for a store that has a clock and serves several machines.

    Every *now* is then the store's time, whatever the machines' own clocks show. All processes must get it from the same server,
    for example the primary.
    """

    async def time(self) -> float:
        """Return the store's time, in seconds since the epoch, to the millisecond or better; in one round trip."""
        ...


class BatchDriver(Driver, Protocol):
    """The optional part of the contract for a store that can load several sessions in one round trip.

    A driver with this method is a BatchDriver. In any other, each session is loaded by load(), all at the same time.
    """

    async def load_all(self, ids: Sequence[str], *, now: float) -> list[Record | Literal[Outcome.ENDED] | None]:
        """Return what load() does for each of *ids*, in their order and in one round trip; large sessions may take a second one.

        Each session is as it was at one instant of the call, which may be another one for each. In a store of several servers, one
        round trip goes to each of them, all at the same time. A large session may delay other calls of load_all().
        """
        ...


async def load_all(driver: Driver, ids: Sequence[str], *, now: float) -> list[Record | Literal[Outcome.ENDED] | None]:
    """Return what load() does for each of *ids*, in one round trip if the driver is a BatchDriver."""
    if loads_all(driver):
        return await driver.load_all(ids, now=now)
    return await gather(*(driver.load(id, now=now) for id in ids))


def supports_owners(driver: Driver | None) -> TypeGuard[OwnerDriver]:
    """Return whether *driver* is an OwnerDriver."""
    return all(callable(getattr(driver, name, None)) for name in ("set_owner", "owned", "end_owned", "count"))


def ends_everyone(driver: Driver | None) -> TypeGuard[EveryoneDriver]:
    """Return whether *driver* is an EveryoneDriver."""
    return callable(getattr(driver, "end_everyone", None))


def loads_all(driver: Driver) -> TypeGuard[BatchDriver]:
    """Return whether *driver* is a BatchDriver."""
    return callable(getattr(driver, "load_all", None))


def is_sound(created: float, expires: float, deadline: float) -> bool:
    """Return whether these can be the times of a session: another program may have written anything to the store."""
    return 0 <= created <= expires < YEAR_10000 and 0 <= deadline <= expires
