"""EndedSessions: which sessions in cookies were ended, in a store that remembers each for as long as its cookie could live.

A session that was ended has a record under its handle. After end_all(), the owner has one under a keyed hash: it holds a time, and
sessions with an earlier login are ended. The empty owner stands for everyone. No record can open or make a session.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from gaman_session._driver import MAX_SKEW, TOMBSTONE, YEAR_10000, Driver, Outcome, Record, load_all
from gaman_session._errors import SessionConflict, SessionStoreError
from gaman_session._owners import KeptSession, Owners, check_owner, is_id

MAX_COOKIE_AGE: Final = 400 * 86_400
"""Seconds. Browsers keep no cookie longer (RFC 6265bis, section 5.5), so no record is needed longer."""

_EVERYONE: Final = ""
"""No owner is empty."""
_NEXT: Final = "next"
_CONFIRMED: Final = "confirmed"
_LIMIT: Final = "limit"
_MAX_SIZE: Final = 1 << 20
_MAX_ATTEMPTS: Final = 100


class Ending(NamedTuple):
    """A session to end."""

    handle: str
    expires: float
    """When its cookie expires at the latest, in seconds since the epoch."""


class Found(NamedTuple):
    """What the store knows of a session."""

    ended_at: float | None
    """When it was ended, or None if it wasn't."""
    kept_at: float
    """When the other sessions of its owner were ended; 0 if it wasn't kept by then."""


class _Limit(msgspec.Struct, array_like=True, frozen=True):
    """The end of an owner's sessions."""

    at: float
    """Logins until then are ended, in seconds since the epoch."""
    kept: str | None
    """The handle of the session that end_all() kept."""


_encode = msgspec.msgpack.Encoder().encode
_decode_next = msgspec.msgpack.Decoder(Ending).decode
_decode_limit = msgspec.msgpack.Decoder(_Limit).decode


class EndedSessions(Owners):
    """The ended sessions of an application whose sessions are in cookies."""

    def __init__(self, ended: Driver, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.store = ended
        self._names_of_everyone = self._keyring.owner_names(_EVERYONE)

    # For a session

    async def find(self, handle: str, owner: str | None, since: float) -> Found:
        """Return whether a session has ended. *since* is the time of its login or, without an owner, of its beginning."""
        names = self._names_of_everyone if owner is None else [*self._names_of_everyone, *self._keyring.owner_names(owner)]
        now = self._clock()
        ended, *limits = await load_all(self.store, (handle, *names), now=now)
        if isinstance(ended, Record):
            return Found(ended.created, 0)
        kept_at = 0.0
        for limit in map(self._limit, names, limits):
            if limit is not None and since <= limit.at:
                if limit.kept != handle:
                    return Found(limit.at, 0)
                kept_at = max(kept_at, limit.at)
        return Found(None, kept_at)

    async def end_once(self, session: Ending, successor: Ending | None = None) -> str | None:
        """End a session, which continues as its *successor*, if any; return its handle, or None if it had ended before.

        Of concurrent calls, one returns the handle.
        """
        now = self._clock()
        # The margin is for processes whose clock is behind.
        expires = min(max(session.expires, now), now + MAX_COOKIE_AGE) + TOMBSTONE
        data = b"" if successor is None else _encode(successor)
        try:
            await self.store.create(session.handle, Record({_NEXT: data}, _milliseconds(now), expires, expires))
        except SessionStoreError as error:
            if error.is_unconfirmed:
                raise
            # The id may be taken because the session has ended before. Unlike a read, a write has the store confirm that.
            outcome = await self.store.apply(session.handle, {_CONFIRMED: b""}, (), now=now, deadline=None, max_size=_MAX_SIZE)
            if outcome is not Outcome.WRITTEN:
                raise
            # The store may have made the record, and its reply was lost.
            found = await self.store.load(session.handle, now=now)
            is_own = isinstance(found, Record) and data != b"" and found.fields.get(_NEXT) == data
            return session.handle if is_own else None
        return session.handle

    async def end_to_last(self, session: Ending) -> str | None:
        """End a session or, if it was renewed within the last TOMBSTONE seconds, its last successor.

        Return the handle of the one that was live, or None.
        """
        following: Ending | None = session
        while following is not None:
            if (handle := await self.end_once(following)) is not None:
                return handle
            now = self._clock()
            found = await self.store.load(following.handle, now=now)
            following = None
            if isinstance(found, Record) and now - found.created < TOMBSTONE and found.fields.get(_NEXT):
                following = _decode_next(found.fields[_NEXT])
        return None

    # For the application

    async def end(self, id: str) -> bool:
        """End a session; return False if it had ended before. Whether it existed isn't known."""
        if not isinstance(id, str) or not is_id(id):
            return False
        with self._noting_failure():
            handle = await self.end_to_last(Ending(id, math.inf))
        if handle is not None:
            self._counters.ended += 1
            self._audit.note("ended", handle=handle, reason="end")
        return handle is not None

    async def end_all(self, owner: str, keep: KeptSession | None) -> int:
        """End the sessions of *owner* except *keep*; return 0, because how many there are isn't known."""
        names = self._keyring.owner_names(check_owner(owner))
        if keep is not None:
            await keep._find()
        limit = _Limit(self.instant(), None if keep is None else keep.id)
        if keep is not None:
            keep._outlive_end()
        await self._end_before(names, limit)
        self._audit.note("ended", owner=self.hash_of(owner), reason="end_all")
        return 0

    async def end_everyone(self) -> None:
        """End all sessions. Those without a login are dated in whole seconds, so one that begins in the same second ends too."""
        await self._end_before(self._names_of_everyone, _Limit(self.instant(), None))
        self._audit.note("ended", reason="end_everyone")

    async def _end_before(self, names: Sequence[str], limit: _Limit) -> None:
        from asyncio import gather  # noqa: PLC0415 - takes 20 ms to load, which a server has done

        with self._noting_failure():
            await gather(*(self._raise_limit(name, limit) for name in names))

    async def _raise_limit(self, name: str, limit: _Limit) -> None:
        """Store the *limit* under *name*, unless a later one is there."""
        failure: SessionStoreError | None = None
        for _ in range(_MAX_ATTEMPTS):
            now = self._clock()
            deadline = now + MAX_COOKIE_AGE + TOMBSTONE
            found = await self.store.load(name, now=now)
            if not isinstance(found, Record):
                if failure is not None:
                    raise failure
                record = Record({_LIMIT: _encode(limit)}, _milliseconds(now), YEAR_10000 - 1, deadline)
                try:
                    await self.store.create(name, record)
                except SessionStoreError as error:
                    if error.is_unconfirmed:
                        raise
                    # Unless another process has created the record meanwhile, it's still missing in the next attempt.
                    failure = error
                    continue
                return
            before = self._limit(name, found)
            if before is not None and before.at >= limit.at:
                if before.at <= limit.at + MAX_SKEW:
                    return
                # The clock was set back since. Sessions that began since then are dated from `before.at` on.
                limit = _Limit(math.nextafter(before.at, math.inf), limit.kept)
            outcome = await self.store.swap(
                name, _LIMIT, found.fields.get(_LIMIT), _encode(limit), now=now, deadline=deadline, max_size=_MAX_SIZE
            )
            if outcome is Outcome.WRITTEN:
                return
        raise SessionConflict(f"end_all() or end_everyone() met concurrent calls {_MAX_ATTEMPTS} times")

    def _limit(self, name: str, found: Record | Outcome | None) -> _Limit | None:
        if not isinstance(found, Record):
            return None
        try:
            return _decode_limit(found.fields.get(_LIMIT, b""))
        except msgspec.DecodeError:
            self._damage.report(name, "the end of an owner's sessions")
            return None


def _milliseconds(now: float) -> float:
    """Return *now* in whole milliseconds, as a record's time."""
    return int(now * 1000) / 1000
