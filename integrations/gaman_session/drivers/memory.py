"""Sessions in this process's memory: fast, limited in number, and lost when the process ends."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from heapq import heapify, heappop, heappush
from typing import Final, Literal, NamedTuple

import msgspec

from gaman_session._driver import TOMBSTONE, Outcome, Ownership, Record, length_of, size_of
from gaman_session._errors import SessionStoreError
from gaman_session._rules import NEVER, began_before, is_carried, is_outdated, is_revoked, next_ending, revoked_at, still_counts
from gaman_session.drivers._checks import check_whole_number

logger = logging.getLogger("gaman")

# Python 3.11 takes 0.2 µs to look up a member of an enum, 2 % of a request that writes a session in memory.
_WRITTEN: Final = Outcome.WRITTEN
_ONE_REQUEST: Final = 1
"""Seconds after its creation in which a write to a session may come from the request that created it. A load never does."""


class _Tombstone(NamedTuple):
    deadline: float
    successor: str | None


class _Session(Record):
    """A session with what only this driver needs."""

    size: int = 0
    """Bytes of its fields' names and values."""
    queue: OrderedDict[str, None] = msgspec.field(default_factory=OrderedDict[str, None])
    """The driver's queue that has the session."""


class MemoryDriver:
    """Keeps at most *max_sessions*; another one evicts a session.

    Sessions that only one request has used are evicted first, and sessions with an owner last, so that visitors without a cookie
    don't log users out. Among equals, the least recently used session is evicted.

    The writes of _rules.py are written here once more, on live records: through them, a write takes 1.5 to 5 microseconds longer.
    """

    name = "memory"
    shared = False

    def __init__(self, *, max_sessions: int = 100_000) -> None:
        check_whole_number(max_sessions, f"the memory driver has max_sessions={max_sessions!r};")
        self._max_sessions = max_sessions
        self._sessions: dict[str, _Session] = {}
        # Each session is in one queue, the least recently used first: it was only created, it was used again, or it has an owner.
        self._queues: tuple[OrderedDict[str, None], ...] = (OrderedDict(), OrderedDict(), OrderedDict())
        self._new, self._used, self._with_owner = self._queues
        self._tombstones: OrderedDict[str, _Tombstone] = OrderedDict()
        # A heap of deadlines. purge() corrects those whose session has a later deadline by now, or was removed.
        self._deadlines: list[tuple[float, str]] = []
        self._owned: dict[str, dict[str, None]] = {}
        # When all sessions of an owner were ended, the earliest first.
        self._ended: OrderedDict[str, float] = OrderedDict()
        # The last end_everyone(), and the sessions that it and earlier ones ended, with the time until which they are ENDED.
        self._ending = NEVER
        self._ended_sessions: list[tuple[float, dict[str, _Session]]] = []
        self._has_warned = False
        self.on_evict: Callable[[str], None] | None = None
        """Called with the id of each session that is evicted."""

    def __len__(self) -> int:
        return len(self._sessions)

    async def open(self) -> None:
        """Nothing to prepare."""

    async def close(self) -> None:
        """Remove every session."""
        self._sessions.clear()
        for queue in self._queues:
            queue.clear()
        self._tombstones.clear()
        self._deadlines.clear()
        self._owned.clear()
        self._ended.clear()
        self._ended_sessions.clear()

    async def load(self, id: str, *, now: float) -> Record | Literal[Outcome.ENDED] | None:
        """Return a copy of the session, ENDED, or None."""
        return self.load_at_once(id, now=now)

    def load_at_once(self, id: str, *, now: float) -> Record | Literal[Outcome.ENDED] | None:
        """Return what load() returns."""
        record = self._find(id, now)
        if record is None:
            return Outcome.ENDED if self._is_ended(id, now) else None
        if record.queue is self._new:
            self._queue(id, record)
        return Record(
            dict(record.fields), record.created, record.expires, record.deadline, record.version, record.ownership, record.seal
        )

    async def create(self, id: str, record: Record) -> Literal[Outcome.REVOKED] | None:
        """Store a new session, and evict another one if the driver is full."""
        if id in self._sessions:
            raise SessionStoreError(self.name, "create a session under an id that is taken")
        if began_before(record.created, self._ending):
            return Outcome.REVOKED
        if record.ownership is not None and self._is_revoked(record.ownership, record.created):
            return Outcome.REVOKED
        self._add(id, record)
        return None

    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        """Set and delete single fields of the session."""
        record = self._find(id, now)
        if record is None:
            return self._missing(id, now)
        size, fields = record.size, record.fields
        for name, value in sets.items():
            before = fields.get(name)
            size += len(value) + length_of(name) if before is None else len(value) - len(before)
        for name in deletes:
            if (deleted := sets.get(name, fields.get(name))) is not None:
                size -= len(deleted) + length_of(name)
        if size > max_size and size > record.size:
            return Outcome.TOO_LARGE
        fields.update(sets)
        for name in deletes:
            fields.pop(name, None)
        if not fields:
            self._end(id, now, None)
            return Outcome.EMPTIED
        record.size = size
        record.version += 1
        if deadline is not None:
            record.deadline = min(deadline, record.expires)
        return _WRITTEN

    async def swap(
        self, id: str, field: str, old: bytes | None, new: bytes, *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        """Set one field if its bytes are *old*."""
        record = self._find(id, now)
        if record is None:
            return self._missing(id, now)
        if record.fields.get(field) != old:
            return Outcome.CONFLICT
        size = record.size + len(new) + (length_of(field) if old is None else -len(old))
        if size > max_size and size > record.size:
            return Outcome.TOO_LARGE
        record.fields[field] = new
        record.size = size
        record.version += 1
        if deadline is not None:
            record.deadline = min(deadline, record.expires)
        return _WRITTEN

    async def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
        """Replace the session by *record* under *new_id* if its version is still *version*."""
        old = self._find(id, now)
        if old is None:
            return self._missing(id, now)
        if old.version != version:
            return Outcome.CONFLICT
        if (
            record.ownership is not None
            and not is_carried(record.ownership, old.ownership)
            and self._is_revoked(record.ownership, now)
        ):
            return Outcome.REVOKED
        self._end(id, now, new_id)
        self._add(new_id, record)
        if old.queue is not self._new:
            self._queue(new_id, self._sessions[new_id])
        return _WRITTEN

    async def destroy(self, id: str, *, now: float) -> None:
        """End the session, and those it was renamed to."""
        cursor: str | None = id
        while cursor is not None:
            tombstone = self._tombstone(cursor, now)
            if tombstone is None and self._find(cursor, now) is not None:
                self._end(cursor, now, None)
            cursor = tombstone and tombstone.successor

    async def purge(self, *, now: float, limit: int) -> int:
        """Remove expired sessions; let other tasks run after every *limit* deadlines."""
        removed = 0
        while self._tombstones and removed < limit and next(iter(self._tombstones.values())).deadline <= now:
            self._tombstones.popitem(last=False)
            removed += 1
        while self._ended_sessions and removed < limit and self._ended_sessions[0][0] <= now:
            sessions = self._ended_sessions[0][1]
            while sessions and removed < limit:
                sessions.popitem()
                removed += 1
            if not sessions:
                del self._ended_sessions[0]
        while self._ended and not still_counts(next(iter(self._ended.values())), now):
            self._ended.popitem(last=False)
        checked = 0
        while removed < limit and self._deadlines and self._deadlines[0][0] <= now:
            _, id = heappop(self._deadlines)
            record = self._sessions.get(id)
            if record is not None and record.deadline > now:
                heappush(self._deadlines, (record.deadline, id))
            elif record is not None:
                self._remove(id)
                removed += 1
            checked += 1
            if checked % limit == 0:
                await asyncio.sleep(0)
        return removed

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
        """Do what apply() does, and set the session's ownership in the same step."""
        record = self._find(id, now)
        if (
            record is not None
            and ownership is not None
            and not is_carried(ownership, record.ownership)
            and self._is_revoked(ownership, now)
        ):
            return Outcome.REVOKED
        outcome = await self.apply(id, sets, deletes, now=now, deadline=deadline, max_size=max_size)
        if record is not None and outcome is _WRITTEN:
            self._disown(id, record)
            record.ownership = ownership
            self._own(id, record)
            if ownership is not None or record.queue is not self._new:
                self._queue(id, record)
        return outcome

    async def owned(self, owner: str, *, now: float) -> Mapping[str, Record]:
        """Return the owner's sessions, without their fields."""
        found = {id: self._sessions[id] for id in self._owned.get(owner, ())}
        return {
            id: Record({}, record.created, record.expires, record.deadline, record.version, record.ownership)
            for id, record in found.items()
            if record.deadline > now
        }

    async def end_owned(self, owner: str, *, keep: Collection[str], now: float) -> int:
        """End the owner's sessions except those in *keep*."""
        ending = [id for id in await self.owned(owner, now=now) if id not in keep]
        for id in ending:
            self._end(id, now, None)
        # Removed first, so that the dict keeps the order in which the times were stored.
        self._ended[owner] = revoked_at(self._ended.pop(owner, None), now)
        return len(ending)

    async def end_everyone(self, *, now: float) -> None:
        """End every session, in one step."""
        self._ending = next_ending(self._ending, now)
        # Removing each would hold up other requests, so a purge does that.
        self._ended_sessions.append((now + TOMBSTONE, self._sessions))
        self._sessions = {}
        for queue in self._queues:
            queue.clear()
        self._deadlines.clear()
        self._owned.clear()

    async def count(self, *, now: float) -> int:
        """Remove all expired sessions, and return how many are left."""
        removed = 1
        while removed:
            removed = await self.purge(now=now, limit=1000)
        return len(self._sessions)

    def _find(self, id: str, now: float) -> _Session | None:
        record = self._sessions.get(id)
        if record is None:
            return None
        if record.deadline <= now:
            self._remove(id)
            return None
        if record.queue is self._new and now >= record.created + _ONE_REQUEST:
            self._queue(id, record)
        else:
            record.queue.move_to_end(id)
        return record

    def _queue(self, id: str, record: _Session) -> None:
        """Move a session that was used again to the end of the queue for its kind."""
        del record.queue[id]
        record.queue = self._used if record.ownership is None else self._with_owner
        record.queue[id] = None

    def _add(self, id: str, record: Record) -> None:
        while len(self._sessions) >= self._max_sessions:
            if not self._has_warned:
                self._has_warned = True
                logger.warning(
                    "the memory driver holds max_sessions=%d and now evicts sessions: new ones first, and those with an owner last",
                    self._max_sessions,
                    extra={"driver": self.name},
                )
            evicted = next(iter(self._new or self._used or self._with_owner))
            self._remove(evicted)
            if self.on_evict is not None:
                self.on_evict(evicted)
        queue = self._new if record.ownership is None else self._with_owner
        queue[id] = None
        self._sessions[id] = _Session(
            dict(record.fields),
            record.created,
            record.expires,
            record.deadline,
            record.version,
            record.ownership,
            record.seal,
            size_of(record.fields),
            queue,
        )
        self._own(id, record)
        if len(self._deadlines) > 2 * len(self._sessions) + 1000:
            self._deadlines = [(each.deadline, its_id) for its_id, each in self._sessions.items()]
            heapify(self._deadlines)
        else:
            heappush(self._deadlines, (record.deadline, id))

    def _end(self, id: str, now: float, successor: str | None) -> None:
        self._remove(id)
        while len(self._tombstones) >= self._max_sessions:
            self._tombstones.popitem(last=False)
        self._tombstones[id] = _Tombstone(now + TOMBSTONE, successor)

    def _remove(self, id: str) -> None:
        record = self._sessions.pop(id)
        del record.queue[id]
        self._disown(id, record)

    def _own(self, id: str, record: Record) -> None:
        if record.ownership is not None:
            self._owned.setdefault(record.ownership.owner, {})[id] = None

    def _disown(self, id: str, record: Record) -> None:
        if record.ownership is not None:
            sessions = self._owned[record.ownership.owner]
            del sessions[id]
            if not sessions:
                del self._owned[record.ownership.owner]

    def _is_revoked(self, ownership: Ownership, now: float) -> bool:
        return is_revoked(ownership, self._ended.get(ownership.owner), now) or is_outdated(ownership, self._ending, now)

    def _tombstone(self, id: str, now: float) -> _Tombstone | None:
        tombstone = self._tombstones.get(id)
        return tombstone if tombstone is not None and tombstone.deadline > now else None

    def _is_ended(self, id: str, now: float) -> bool:
        if self._tombstone(id, now):
            return True
        return any(now < until and id in sessions and now < sessions[id].deadline for until, sessions in self._ended_sessions)

    def _missing(self, id: str, now: float) -> Outcome:
        return Outcome.ENDED if self._is_ended(id, now) else Outcome.ABSENT
