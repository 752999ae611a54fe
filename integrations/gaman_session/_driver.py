"""The contract of a driver: one store of sessions, which sees bytes and never a key, a cookie or a clock."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from enum import Enum, auto
from typing import Final, Literal, Protocol

from msgspec import Struct

TOMBSTONE: Final = 60
"""Seconds for which a driver remembers that an id was ended or renamed, and that the sessions of an owner were ended."""

MAX_SKEW: Final = 1
"""Seconds by which the clocks of processes may differ. What was noted further ahead comes from a clock that was set back since.

Where the store tells the time, as a ClockDriver's does, they differ by a few milliseconds.
"""

LARGE: Final = 64 * 1024
"""Bytes of a session beyond which loading it shares no round trip with other calls."""

YEAR_10000: Final = 253_402_300_800
"""Seconds since the epoch: the first time for which datetime has no name."""


class Outcome(Enum):
    """What became of a write."""

    WRITTEN = auto()
    """It is in the store."""
    EMPTIED = auto()
    """It took the last field, and so ended the session."""
    CONFLICT = auto()
    """Somebody else's write came first; nothing was written."""
    ENDED = auto()
    """The session was ended or renamed within the last TOMBSTONE seconds; nothing was written."""
    ABSENT = auto()
    """There is no such session: never begun, expired, or lost with the store's data; nothing was written."""
    REVOKED = auto()
    """The sessions of the tag's owner were ended after the tag was made; nothing was written. See OwnerDriver."""
    TOO_LARGE = auto()
    """The session would grow beyond the size allowed; nothing was written."""


# Up to Python 3.11, looking up an enum's member costs as much as a call, and nearly every write has this outcome.
WRITTEN: Final = Outcome.WRITTEN


class Ownership(Struct, frozen=True):
    """Whose a session is."""

    owner: str
    """Any text but the empty one: a keyed hash of the owner's name, or the name where nothing is sealed."""
    note: bytes
    """What the application noted with it."""
    since: float
    """When the session was tied to the owner, in seconds since the epoch. What begins anew has another `since`."""


class Record(Struct, omit_defaults=True):
    """A session as a driver keeps it; times are seconds since the epoch, and the first two are whole milliseconds."""

    fields: dict[str, bytes]
    created: float
    expires: float
    """The absolute limit."""
    deadline: float
    """When it is over if nobody touches it: `expires`, or the idle limit where that comes first."""
    version: int = 0
    """Raised by each write, so that rename() can tell whether one came in between."""
    ownership: Ownership | None = None
    """None where it is nobody's, and always so in a driver that is no OwnerDriver."""
    seal: bytes = b""
    """What proves `created` and `expires`; empty where nothing is sealed. Any bytes: the driver keeps them with the times."""


def size_of(fields: Mapping[str, bytes]) -> int:
    """Return the size of a session that has *fields*, in bytes."""
    return len("".join(fields).encode()) + sum(map(len, fields.values()))


def length_of(name: str) -> int:
    """Return how many bytes the name of a field adds to the size of its session."""
    return len(name) if name.isascii() else len(name.encode())


class Driver(Protocol):
    """A store of sessions.

    An id is 64 hexadecimal digits, the hash of what the cookie holds. A field's name is any string that UTF-8 can encode, and
    its value any bytes. A session is there until its deadline: at `now == deadline` it is gone, whether the store has removed it
    by then or not. Each call is atomic against every other, in all processes that share the store. Absence is an answer, never an
    error; what goes wrong in the store is raised as SessionStoreError, from its cause, within the driver's timeout.

    Ending or renaming a session leaves a tombstone in its place for TOMBSTONE seconds, which holds nothing but, after a rename,
    the new id. It makes late writes answer ENDED, and leads a late destroy() on to the renamed session.

    The size of a session is the sum of the bytes of its fields' names and values. A driver may count what its store needs beside
    them, at most 64 bytes a field and 256 a session. A write that takes a session beyond *max_size* bytes, and makes it larger than
    it is, is TOO_LARGE. The check is part of the atomic write, so that concurrent writes can't exceed the size together. create()
    and rename() store a whole record, whose size the caller has checked.

    Loading a session of more than LARGE bytes shares no round trip with other calls, so that these don't wait for it.

    What lies in the store and can't be one of these, because it was damaged or written by someone else, is absent too, and is
    reported once.
    """

    @property
    def name(self) -> str:
        """The driver's name, for logs and errors."""
        ...

    @property
    def shared(self) -> bool:
        """Whether several processes that open it see the same sessions. Values are sealed where that is so."""
        ...

    async def open(self) -> None:
        """Get ready, or raise ConfigError or SessionStoreError with the reason. Called before any other method."""

    async def close(self) -> None:
        """Let go of every connection, file and task."""

    async def load(self, id: str, *, now: float) -> Record | Literal[Outcome.ENDED] | None:
        """Return the session, ENDED where its tombstone stands, or None; in one trip. The record is the caller's own."""
        ...

    async def create(self, id: str, record: Record) -> Literal[Outcome.REVOKED] | None:
        """Store a new session. An id that is taken raises SessionStoreError: creating never overwrites.

        Only an OwnerDriver refuses, where the sessions of the tag's owner were ended after the tag was made.
        """

    async def apply(
        self,
        id: str,
        sets: Mapping[str, bytes],
        deletes: Collection[str],
        *,
        now: float,
        deadline: float | None,
        max_size: int,
    ) -> Outcome:
        """Set and delete single fields in one trip and leave all others alone; never bring a session into being.

        The session's deadline moves to *deadline*, but not beyond its expiry, and stays where *deadline* is None. Where no field is
        left, the session ends and the outcome is EMPTIED. Otherwise it is WRITTEN, TOO_LARGE, ENDED or ABSENT.
        """
        ...

    async def swap(
        self, id: str, field: str, old: bytes | None, new: bytes, *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        """Set one field if its bytes are *old*, or if it is missing where *old* is None.

        The deadline moves as with apply(). The outcome is WRITTEN, CONFLICT, TOO_LARGE, ENDED or ABSENT.
        """
        ...

    async def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
        """Replace the session by *record* under *new_id* if its version is still *version*: WRITTEN, CONFLICT, ENDED or ABSENT.

        The old id is dead when the new one lives. Where a store can't do both in one trip, the old one dies first; a destroy()
        between the two leaves a tombstone in the new one's place, and the outcome is ENDED. An OwnerDriver answers REVOKED to an
        ownership that the session did not have already, as create() does; the old id may then be dead or not.

        A SessionStoreError with `is_unconfirmed` says that the store has the new id, and may yet lose it.
        """
        ...

    async def destroy(self, id: str, *, now: float) -> None:
        """End the session, and those it was renamed to; nothing happens, and nothing is stored, for an id that is unknown."""

    async def purge(self, *, now: float, limit: int) -> int:
        """Remove at most *limit* expired sessions and tombstones; return how many, 0 where the store does it by itself."""
        ...


class OwnerDriver(Driver, Protocol):
    """The part of the contract that a driver may leave out: sessions that belong to somebody. It is there if these methods are.

    A record may have a tag. Each call here finds the sessions of an owner by an index, and costs what they are, not what is stored.
    The index never misses a session that is there. What it has of others, which were ended, ran out or were given to somebody else,
    is left out of every answer, and leaves it by itself.

    end_owned() takes effect at one instant, its *now*. For TOMBSTONE seconds, a tag that was made before is REVOKED: a login in
    flight at that instant is dropped, and a later one succeeds. A call whose own *now* is more than MAX_SKEW seconds before that
    instant ignores it, because the clock was set back since. A rename takes along a tag that the session already has, which is one
    with the same `since`; it is never refused.
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
        """Do what apply() does, and in the same step give the session to the owner of *ownership*, or to nobody where that is None.

        A tag alone keeps no session: where no field is left, it is EMPTIED.
        """
        ...

    async def owned(self, owner: str, *, now: float) -> Mapping[str, Record]:
        """Return every session of *owner* by its id, with its times and its tag; the fields may be left out."""
        ...

    async def end_owned(self, owner: str, *, keep: Collection[str], now: float) -> int:
        """End every session of *owner* but those in *keep*, and those they are renamed to meanwhile; return how many that were.

        Tags made before *now* are refused from then on; those kept stay as they are. SessionStoreError with
        `is_partial`: the store works, may have lost some of the owner's sessions from its index, and has ended those that it found.
        """
        ...

    async def count(self, *, now: float) -> int:
        """Return how many sessions are in the store, whoever's they are. It may take a look at each."""
        ...


class ClockDriver(Driver, Protocol):
    """The part of the contract for a store that has a clock and serves several machines. A driver with this method has it.

    Every *now* is then the store's time, whatever the machines' own clocks show. All processes have to get it from the same server,
    such as the primary.
    """

    async def time(self) -> float:
        """Return the store's time, in seconds since the epoch, to the millisecond or better; in one round trip."""
        ...


def is_sound(created: float, expires: float, deadline: float) -> bool:
    """Return whether these can be the times of a session. Another program may have written anything to the store."""
    return 0 <= created <= expires < YEAR_10000 and 0 <= deadline <= expires


OWNER_METHODS: Final = ("set_owner", "owned", "end_owned", "count")
