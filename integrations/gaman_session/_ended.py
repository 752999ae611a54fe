"""EndedSessions: which sessions in cookies were ended, in a store that remembers each for as long as its cookie could live.

A session that was ended has a record under its handle. After end_all(), the owner has one under a keyed hash: it holds a time, and
sessions with an earlier login are ended. The empty owner stands for everyone. A LoginList says which sessions an owner has. No
record can open or make a session.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import msgspec

from gaman_session._driver import MAX_SKEW, TOMBSTONE, Driver, Outcome, Record, load_all
from gaman_session._errors import SessionConflict, SessionStoreError, SessionUnsupported
from gaman_session._gather import gather
from gaman_session._login_list import MAX_COOKIE_AGE, MAX_SIZE, Entry, LoginList, milliseconds, try_create
from gaman_session._owned import OwnedSession
from gaman_session._owners import KeptSession, Owners, check_owner, is_id

_EVERYONE: Final = ""
"""No owner is empty."""
_NEXT: Final = "next"
_CONFIRMED: Final = "confirmed"
_LIMIT: Final = "limit"
_MAX_ATTEMPTS: Final = 100
_STEPS: Final = 10
"""How often the list learns that a session was used, in one `idle_timeout`."""


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


class _Live(NamedTuple):
    """A live session of an owner."""

    ending: Ending
    created: float
    deadline: float
    since: float
    is_renewed: bool
    """Whether it has another id than the one that is listed."""
    note: bytes


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
        self.logins = LoginList(ended, self._keyring, self._damage)
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
                if not await self._is_kept(handle, limit, now):
                    return Found(limit.at, 0)
                kept_at = max(kept_at, limit.at)
        return Found(None, kept_at)

    async def _is_kept(self, handle: str, limit: _Limit, now: float) -> bool:
        """Return whether end_all() kept the session, or one that went on as this one meanwhile."""
        following, followed = limit.kept, set[str]()
        while following is not None and following != handle and following not in followed:
            followed.add(following)
            successor = _successor(await self.store.load(following, now=now))
            following = None if successor is None else successor.handle
        return following == handle

    async def end_once(self, session: Ending, successor: Ending | None = None) -> str | None:
        """End a session, which continues as its *successor*, if any; return its handle, or None if it had ended before.

        Of concurrent calls, one returns the handle.
        """
        now = self._clock()
        # The margin is for processes whose clock is behind.
        expires = min(max(session.expires, now), now + MAX_COOKIE_AGE) + TOMBSTONE
        data = b"" if successor is None else _encode(successor)
        try:
            await self.store.create(session.handle, Record({_NEXT: data}, milliseconds(now), expires, expires))
        except SessionStoreError as error:
            if error.is_unconfirmed:
                raise
            # The id may be taken because the session has ended before. Unlike a read, a write has the store confirm that.
            outcome = await self.store.apply(session.handle, {_CONFIRMED: b""}, (), now=now, deadline=None, max_size=MAX_SIZE)
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
            is_recent = isinstance(found, Record) and now - found.created < TOMBSTONE
            following = _successor(found) if is_recent else None
        return None

    async def end_oldest(self, owner: str, handle: str) -> None:
        """End the owner's oldest sessions beyond the limit, after the login of the session *handle*.

        Of several logins at once, the last one sees them all.
        """
        if self._max_sessions is None:
            return
        live = sorted(await self._live(owner), key=lambda each: (each.since, each.ending.handle == handle))
        for ended in await gather(*(self.end_to_last(each.ending) for each in live[: -self._max_sessions])):
            if ended is not None:
                self._counters.ended += 1
                self._audit.note("ended", handle=ended, owner=self.hash_of(owner), reason="limit")

    def is_listing_due(self, before: float, deadline: float) -> bool:
        """Return whether the list has to learn that the idle limit of a session moves from *before* to *deadline*."""
        idle = self._idle_timeout
        return idle is not None and before // (idle / _STEPS) != deadline // (idle / _STEPS)

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

    async def listed(self, owner: str) -> list[OwnedSession]:
        """Return the live sessions of *owner*, in the order of their logins."""
        with self._noting_failure():
            live = await self._live(check_owner(owner))
        return [
            self._owned(each.ending.handle, each.created, each.deadline, self._decode_note(each.ending.handle, each.note))
            for each in live
        ]

    async def count(self, owner: str | None) -> int:
        """Return how many live sessions *owner* has."""
        if owner is None:
            raise SessionUnsupported("cookies", "count() without an owner", "name one, or choose a driver that keeps sessions")
        with self._noting_failure():
            return len(await self._live(check_owner(owner)))

    async def end_all(self, owner: str, keep: KeptSession | None) -> int:
        """End the sessions of *owner* except *keep*; return how many of them were listed."""
        names = self._keyring.owner_names(check_owner(owner))
        if keep is not None:
            await keep._find()
        limit = _Limit(self.instant(), None if keep is None else keep.id)
        if keep is not None:
            keep._outlive_end()
        with self._noting_failure():
            live = await self._live(owner)
        await self._end_before(names, limit)
        ended = sum(each.since <= limit.at and each.ending.handle != limit.kept for each in live)
        self._counters.ended += ended
        self._audit.note("ended", owner=self.hash_of(owner), reason="end_all", count=ended)
        return ended

    async def end_everyone(self) -> None:
        """End all sessions. Those without a login are dated in whole seconds, so one that begins in the same second ends too."""
        await self._end_before(self._names_of_everyone, _Limit(self.instant(), None))
        self._audit.note("ended", reason="end_everyone")

    async def _live(self, owner: str) -> list[_Live]:
        """Return the live sessions of *owner* in the order of their logins, and remove the others from the list."""
        now = self._clock()
        entries, limits = await gather(self.logins.find(owner, now), self._limits(owner, now))
        followed = await gather(*(self._follow(each, limits, now) for each in entries))
        dead = [entry for entry, live in zip(entries, followed, strict=True) if live is None]
        if dead:
            await self.logins.remove(owner, dead, [entry for entry in entries if entry not in dead], now)
        # A session that is listed under two of its ids counts once.
        live = {each.ending.handle: each for each in sorted(filter(None, followed), key=lambda each: not each.is_renewed)}
        return sorted(live.values(), key=lambda each: each.since)

    async def _limits(self, owner: str, now: float) -> list[_Limit]:
        """Return when the sessions of *owner*, and of everyone, were ended."""
        names = [*self._names_of_everyone, *self._keyring.owner_names(owner)]
        found = await load_all(self.store, names, now=now)
        return [limit for limit in map(self._limit, names, found) if limit is not None]

    async def _follow(self, entry: Entry, limits: list[_Limit], now: float) -> _Live | None:
        """Return the session that an entry of the list leads to, or None if it isn't live."""
        listed = entry.listed
        ending, created, deadline = Ending(listed.handle, listed.expires), listed.created, listed.deadline
        followed = set[str]()
        while ending.handle not in followed:
            followed.add(ending.handle)
            found = await self.store.load(ending.handle, now=now)
            if not isinstance(found, Record):
                break
            successor = _successor(found)
            if successor is None:
                return None
            ending, created, deadline = successor, found.created, successor.expires
        else:
            # Damaged: it leads back to itself.
            return None
        lag = (self._idle_timeout or 0) * 2 / _STEPS
        if min(deadline + lag, ending.expires) <= now:
            return None
        for limit in limits:
            if listed.since <= limit.at and not await self._is_kept(ending.handle, limit, now):
                return None
        return _Live(ending, created, deadline, listed.since, ending.handle != listed.handle, entry.note)

    async def _end_before(self, names: Sequence[str], limit: _Limit) -> None:
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
                    # No other process has made the record.
                    raise failure
                failure = await try_create(self.store, name, {_LIMIT: _encode(limit)}, now, deadline)
                if failure is None:
                    return
                continue
            before = self._limit(name, found)
            if before is not None and before.at >= limit.at:
                if before.at <= limit.at + MAX_SKEW:
                    return
                # The clock was set back since. Sessions that began since then are dated from `before.at` on.
                limit = _Limit(math.nextafter(before.at, math.inf), limit.kept)
            outcome = await self.store.swap(
                name, _LIMIT, found.fields.get(_LIMIT), _encode(limit), now=now, deadline=deadline, max_size=MAX_SIZE
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


def _successor(found: Record | Outcome | None) -> Ending | None:
    """Return the session that an ended one goes on as, from its record, or None."""
    data = found.fields.get(_NEXT) if isinstance(found, Record) else None
    return _decode_next(data) if data else None
