"""EndedSessions: which sessions in cookies were ended, in a store that remembers each for as long as its cookie could live.

A session that was ended has a record under its handle. After end_all(), the owner has one under a keyed hash: it holds a time, and
sessions with an earlier login are ended. The empty owner stands for everyone. A LoginList says which sessions an owner has. No
record can open or make a session.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any, Final, NamedTuple

import msgspec

from gaman_session._driver import MAX_SKEW, TOMBSTONE, YEAR_10000, Driver, Outcome, Record, load_all
from gaman_session._ended_store import MAX_COOKIE_AGE, milliseconds, try_create
from gaman_session._errors import SessionConflict, SessionStoreError, SessionUnsupported
from gaman_session._gather import gather
from gaman_session._login_list import Entry, Listed, LoginList
from gaman_session._owned import OwnedSession
from gaman_session._owners import KeptSession, Owners, age_of, check_owner, is_id

_EVERYONE: Final = ""
"""No owner is empty."""
_NEXT: Final = "next"
_CONFIRMED: Final = "confirmed"
_LIMIT: Final = "limit"
_MAX_SIZE: Final = 1 << 20
_MAX_ATTEMPTS: Final = 100
_MAX_RENEWALS: Final = 100
"""How often a session was renewed at most since the list was written. A longer chain of records is damaged."""
_MAX_KEPT: Final = 4
"""Ids of a session that end_all() keeps: those that it gets while end_all() is in flight. Later ones have a later login."""
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
    """A session of an owner, as far as the list leads to it."""

    entry: Entry
    listed: Listed
    """As *entry* has it or, if it has another id by now, as the store of ended sessions does."""


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
                if limit.kept != handle and handle not in await self._kept(limit, now):
                    return Found(limit.at, 0)
                kept_at = max(kept_at, limit.at)
        return Found(None, kept_at)

    async def _kept(self, limit: _Limit, now: float) -> set[str]:
        """Return the handle of the session that end_all() kept, and those under which it went on."""
        kept, following = set[str](), limit.kept
        while following is not None and following not in kept and len(kept) < _MAX_KEPT:
            kept.add(following)
            successor = self._successor(following, await self.store.load(following, now=now))
            following = None if successor is None else successor.handle
        return kept

    async def end_once(self, session: Ending, successor: Ending | None = None) -> str | None:
        """End a session, which continues as its *successor*, if any; return its handle, or None if it had ended before.

        Of concurrent calls, one returns the handle.
        """
        now = self._clock()
        # As long as it may lead to the next id. The margin is for processes whose clock is behind.
        last = max(session.expires, now, now if successor is None else successor.expires)
        expires = min(last, now + MAX_COOKIE_AGE) + TOMBSTONE
        data = b"" if successor is None else _encode(successor)
        try:
            await self.store.create(session.handle, Record({_NEXT: data}, milliseconds(now), expires, expires))
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
        tried = set[str]()
        while following is not None and following.handle not in tried and len(tried) < _MAX_RENEWALS:
            tried.add(following.handle)
            if (handle := await self.end_once(following)) is not None:
                return handle
            now = self._clock()
            found = await self.store.load(following.handle, now=now)
            is_recent = isinstance(found, Record) and now - found.created < TOMBSTONE
            following = self._successor(following.handle, found) if is_recent else None
        return None

    async def end_oldest(self, owner: str) -> None:
        """End the owner's oldest sessions beyond the limit, after a login.

        Of several logins at once, the last one sees them all.
        """
        if self._max_sessions is None:
            return
        for _ in range(_MAX_ATTEMPTS):
            oldest = [Ending(each.listed.handle, each.listed.expires) for each in (await self._live(owner))[: -self._max_sessions]]
            ended = await gather(*map(self.end_once, oldest))
            for handle in filter(None, ended):
                self._counters.ended += 1
                self._audit.note("ended", handle=handle, owner=self.hash_of(owner), reason="limit")
            if all(ended):
                return
            # One was renewed or ended meanwhile.

    async def newest(self, owner: str, login: str) -> float:
        """Return when the owner's last login before this one was, if their number is limited; 0 without one.

        A process whose clock is behind dates a login after it, or the login would count as the oldest.
        """
        if self._max_sessions is None:
            return 0
        now = self._clock()
        others = [each.listed.since for each in await self.logins.find(owner, now) if each.login != login]
        newest = max((since for since in others if since <= now + MAX_SKEW), default=0.0)
        # The next end_all() of this process has to come after this login.
        self._latest = max(self._latest, newest)
        return newest

    def is_listing_due(self, before: float, deadline: float) -> bool:
        """Return whether the list has to learn that the idle limit of a session moves from *before* to *deadline*."""
        step = 1 if self._idle_timeout is None else self._idle_timeout / _STEPS
        return before // step != deadline // step

    def listed_at(self, handle: str, since: float, created: float, expires: float, now: float) -> Listed:
        """Return the entry of a session that is used *now*."""
        idle, expires = self._idle_timeout, min(expires, created + MAX_COOKIE_AGE)
        if idle is None:
            return Listed(handle, since, created, expires, expires, expires)
        # A step may begin while the store is asked.
        until = min(expires, now + idle * (1 + 2 / _STEPS))
        return Listed(handle, since, created, min(expires, now + idle), until, expires)

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
            self._owned(
                each.listed.handle,
                each.listed.created,
                each.listed.deadline,
                self._decode_note(each.listed.handle, each.entry.note),
            )
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
        kept_since = 0.0 if keep is None else keep._since()
        if keep is not None:
            keep._outlive_end()
        with self._noting_failure():
            before = await self._limits(owner, self._clock())
            await gather(*(self._raise_limit(name, limit, kept_since) for name in names))
            ended = 0
            try:
                # Afterwards, so that nothing in the list delays the end.
                live = [each.listed for each in await self._live(owner, before)]
                ended = sum(each.since <= limit.at and each.handle != limit.kept for each in live)
            finally:
                self._counters.ended += ended
                self._audit.note("ended", owner=self.hash_of(owner), reason="end_all", count=ended)
        return ended

    async def end_everyone(self) -> None:
        """End all sessions. Those without a login are dated in whole seconds, so one that begins in the same second ends too."""
        limit = _Limit(self.instant(), None)
        with self._noting_failure():
            await gather(*(self._raise_limit(name, limit, 0) for name in self._names_of_everyone))
        self._audit.note("ended", reason="end_everyone")

    async def _live(self, owner: str, limits: list[_Limit] | None = None) -> list[_Live]:
        """Return the live sessions of *owner* in the order of their logins, and put the list right.

        With the *limits* of an earlier time, sessions that were ended since by end_all() or end_everyone() count as live.
        """
        now = self._clock()
        if limits is None:
            limits = await self._limits(owner, now)
        entries = await self.logins.find(owner, now)
        found = [each for each in await self._follow(entries, now) if each.listed.until > now]
        for limit in limits:
            if any(each.listed.since <= limit.at for each in found):
                kept = await self._kept(limit, now)
                found = [each for each in found if each.listed.since > limit.at or each.listed.handle in kept]
        # A session that is listed under an earlier id too, or with an older secret, counts once.
        found.sort(key=lambda each: (each.entry.listed is each.listed, each.listed.until))
        live = {each.listed.handle: each for each in found}
        entries_left = {each.entry.field for each in live.values()}
        others = [each.entry for each in live.values()]
        left_behind = [each for each in entries if each.field not in entries_left]
        moved = [each for each in live.values() if each.listed is not each.entry.listed]
        # It is right without these, too.
        with suppress(SessionStoreError):
            if left_behind:
                await self.logins.remove(owner, left_behind, others, now)
            await gather(
                *(self.logins.put(owner, each.entry.login, each.listed, now, former=each.entry.listed.handle) for each in moved)
            )
        return sorted(live.values(), key=lambda each: (age_of(each.listed.since, now), each.listed.handle))

    async def _limits(self, owner: str, now: float) -> list[_Limit]:
        """Return when the sessions of *owner*, and of everyone, were ended."""
        names = [*self._names_of_everyone, *self._keyring.owner_names(owner)]
        found = await load_all(self.store, names, now=now)
        return [limit for limit in map(self._limit, names, found) if limit is not None]

    async def _follow(self, entries: list[Entry], now: float) -> list[_Live]:
        """Return the sessions that *entries* lead to, unless they were ended one by one."""
        found: list[_Live] = []
        following = [_Live(each, each.listed) for each in entries]
        for _ in range(_MAX_RENEWALS):
            if not following:
                break
            handles = [each.listed.handle for each in following]
            next_ones: list[_Live] = []
            for each, record in zip(following, await load_all(self.store, handles, now=now), strict=True):
                if not isinstance(record, Record):
                    found.append(each)
                elif (successor := self._successor(each.listed.handle, record)) is not None:
                    listed = self.listed_at(successor.handle, each.listed.since, record.created, successor.expires, record.created)
                    next_ones.append(_Live(each.entry, listed))
            following = next_ones
        return found

    async def _raise_limit(self, name: str, limit: _Limit, kept_since: float) -> None:
        """Store the *limit* under *name*, unless a later one is there. The session that it keeps has a login of *kept_since*."""
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
            if before is not None:
                if before.at >= limit.at:
                    if before.at <= limit.at + MAX_SKEW:
                        return
                    # The clock was set back since. Sessions that began since then are dated from `before.at` on.
                    limit = _Limit(math.nextafter(before.at, math.inf), limit.kept)
                if kept_since <= before.at and limit.kept not in await self._kept(before, now):
                    # The request that keeps this session doesn't know that it has ended meanwhile.
                    limit = _Limit(limit.at, None)
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

    def _successor(self, handle: str, found: Record | Outcome | None) -> Ending | None:
        """Return the session that an ended one goes on as, from its record, or None."""
        data = found.fields.get(_NEXT) if isinstance(found, Record) else None
        if not data:
            return None
        with suppress(msgspec.DecodeError):
            successor = _decode_next(data)
            if is_id(successor.handle) and 0 <= successor.expires < YEAR_10000:
                return successor
        self._damage.report(handle, "its next id")
        return None
