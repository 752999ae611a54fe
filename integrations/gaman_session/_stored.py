"""StoredSession: a session in a driver's store, and the flush, which brings a request's changes there without undoing another's."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, MutableMapping
from typing import Any, Final, NamedTuple, NoReturn, TypeVar, cast

from gaman import find_cookie, log_extra
from gaman_session import _sealing
from gaman_session._driver import Driver, Outcome, OwnerDriver, Ownership, Record, length_of, size_of
from gaman_session._errors import SessionConflict, SessionStoreError, StoredSessionTooLarge
from gaman_session._owners import Wish
from gaman_session._sealing import Identity
from gaman_session._session import END, Answer, Session, Sessions, changed, too_late_to_read

logger = logging.getLogger("gaman")

T = TypeVar("T")

_ATTEMPTS: Final = 100


class Renewal(NamedTuple):
    """What a request has asked for by calling regenerate()."""

    max_age: int | None


class StoredSession(Session):
    """A session whose cookie holds nothing but a signed id."""

    __slots__ = (
        "_answer",
        "_changes",
        "_driver",
        "_identity",
        "_is_busy",
        "_is_cleared",
        "_is_ended",
        "_is_identified",
        "_lock",
        "_record",
        "_renewal",
        "_size",
        "_stored_size",
        "_wish",
    )

    def __init__(self, sessions: Sessions, scope: MutableMapping[str, Any]) -> None:
        # super().__init__(), unrolled, because each request comes by here.
        self._sessions = sessions
        self._scope = scope
        self._is_loaded = self._is_used = self._is_closed = False
        self._forgotten = ()
        self._driver = cast("Driver", sessions.driver)
        # What is known of the session: which one it is, once the cookie was looked at, and what it holds, once it was loaded.
        self._identity: Identity | None = None
        self._record: Record | None = None
        self._is_identified = self._is_ended = False
        # What the request wants of it: keys to set, or with None to delete; a new id; its end; an owner.
        self._changes: dict[str, bytes | None] = {}
        self._renewal: Renewal | None = None
        self._is_cleared = False
        self._wish: Wish | None = None
        # The bytes that the session has in the store, as far as is known, and will have; None until they are summed up.
        self._stored_size = 0
        self._size: int | None = None
        # Whether a cookie is to be sent (True), or taken back (False).
        self._answer: bool | None = None
        # Whether somebody is at the store, and what others wait for then.
        self._is_busy = False
        self._lock: asyncio.Lock | None = None

    @property
    def id(self) -> str | None:
        """A handle of the session, or None where there is no session yet."""
        self._identify()
        return None if self._identity is None else self._identity.handle

    @property
    def is_new(self) -> bool:
        """Whether the request came without a session, as far as is known."""
        self._identify()
        return self._identity is None or (self._is_loaded and self._record is None)

    async def _update(self, key: str, fn: Callable[[Any], T], default: Any) -> T:
        """Replace the value under *key* by `fn(value)`, by comparing and swapping what is stored."""
        self._open_for_change()

        async def compare_and_swap() -> T:
            await self._flush()
            for attempt in range(_ATTEMPTS):
                await self._read()
                value = changed(key, fn, self._value(key, default, None))
                if await self._swap(key, self._encode(key, value)):
                    return value
                self._is_loaded = False
                await asyncio.sleep(random.random() * min(attempt, 20) / 1000)  # noqa: S311
            raise SessionConflict(
                f"update({key!r}) met another request's change {_ATTEMPTS} times; let fewer requests share this key"
            )

        return await self._in_turn(compare_and_swap)

    def _set_owner(self, owner: str | None, note: Any) -> None:
        self._wish = self._sessions.owners.wish(owner, b"" if note is None else self._encode("note", note))

    async def _save(self) -> None:
        self._open_for_change()
        await self._in_turn(self._flush)

    # Reading

    def _identify(self) -> None:
        """Find out from the cookie which session this is, without a trip."""
        if self._is_identified:
            return
        self._is_identified = self._is_used = True
        token = find_cookie(self._scope["headers"], self._sessions.cookie_name)
        self._has_cookie = token is not None
        if token is not None:
            self._identity = self._sessions.keyring.identify(token)
            if self._identity is None:
                self._reject("forged")
                self._go_on()

    def _twins(self) -> list[Identity]:
        """Return every session, live or not, that the request's cookies of the session's name lead to, in their order."""
        identities = map(self._sessions.keyring.identify, self._tokens())
        return list({identity.id: identity for identity in identities if identity is not None}.values())

    def _untried(self) -> list[Identity]:
        """Return the twins that come after the current session; none after one that this request began."""
        twins, identity = self._twins(), self._identity
        if identity is None:
            return twins
        ids = [twin.id for twin in twins]
        return twins[ids.index(identity.id) + 1 :] if identity.id in ids else []

    def _go_on(self) -> bool:
        """Take the next twin as the current session, because this one is dead; return whether there is one.

        A browser keeps a dead cookie beside the live one if they differ in domain, path or partition, and may send it first.
        """
        untried = self._untried()
        if untried:
            self._identity = untried[0]
        return bool(untried)

    def _load(self, key: str | None) -> Awaitable[None] | None:
        if key in self._changes:
            return None
        if self._is_closed:
            raise too_late_to_read()
        self._is_used = True
        return self._in_turn(self._read) if self._is_busy or self._lock is not None else self._read(is_alone=True)

    async def _read(self, *, is_alone: bool = False) -> None:
        """Read the session, unless it was read before; if *is_alone*, this is a turn by itself, at the cost of one coroutine."""
        if self._is_loaded:
            return
        if is_alone:
            self._is_busy = True
        try:
            self._identify()
            record, is_ended = None, False
            while (identity := self._identity) is not None:
                now = self._sessions.clock()
                found = await self._driver.load(identity.handle, now=now)
                if not isinstance(found, Record):
                    self._reject("expired")
                    # A tombstone. Of several dead sessions, one that was ended is enough for the request's changes to be dropped.
                    is_ended = is_ended or found is not None
                elif now < found.expires and (
                    not self._sessions.is_sealed or identity.values.proves_times(found.seal, found.created, found.expires)
                ):
                    record, is_ended = found, False
                    self._sessions.counters.loaded += 1
                    break
                else:
                    self._reject("unreadable")
                    self._sessions.damage.report(identity.handle, "its lifetime", log_extra(self._scope))
                # A session that this request has read is not replaced by another one.
                if self._record is not None or not self._go_on():
                    break
            if not self._is_cleared:
                self._record, self._is_ended = record, is_ended
                self._is_loaded = True
        except SessionStoreError:
            if is_alone:
                self._note_failure()
            raise
        finally:
            if is_alone:
                # _end_turn(), unrolled.
                self._is_busy = False
                self._size = None
                if self._lock is not None:
                    self._lock.release()

    def _keys(self) -> Iterable[str]:
        return {**({} if self._record is None else self._record.fields), **self._changes}

    def _peek(self, key: str) -> bytes | None:
        if key in self._changes:
            return self._changes[key]
        stored = None if self._record is None else self._record.fields.get(key)
        if stored is None or self._identity is None or not self._sessions.is_sealed:
            return stored
        data = self._identity.values.open(key, stored)
        if data is None:
            self._report_damage(key)
        return data

    def _times(self) -> tuple[float, float] | None:
        return None if self._record is None else (self._record.created, self._record.deadline)

    # Changing

    def _put(self, key: str, data: bytes) -> None:
        sessions, size = self._sessions, self._size
        if size is None:
            size = self._measure() if self._changes or self._record is not None else 0
        if size:
            size -= self._length(key)
        size += length_of(key) + len(data) + sessions.overhead
        if size > sessions.max_size and (self._record is None or size > self._stored_size):
            raise StoredSessionTooLarge(size, sessions.max_size, key)
        self._size = size
        self._changes[key] = data

    def _drop(self, key: str) -> None:
        try:
            key.encode()
        except UnicodeEncodeError:
            # set() takes no such key, so it is in no session.
            return
        if self._size is not None:
            self._size -= self._length(key)
        self._changes[key] = None

    def _measure(self) -> int:
        """Return how many bytes the session has with this request's changes, as far as is known without a round trip."""
        fields = {} if self._record is None else self._record.fields
        size = self._stored_size = size_of(fields) if fields else 0
        for key in self._changes:
            size += self._length(key) - _length_in(fields, key)
        return size

    def _length(self, key: str) -> int:
        """Return how many bytes *key* and its value have in the store, as this request sees it."""
        if key in self._changes:
            data = self._changes[key]
            return 0 if data is None else length_of(key) + len(data) + self._sessions.overhead
        return 0 if self._record is None else _length_in(self._record.fields, key)

    def _clear(self) -> None:
        self._identify()
        self._size = None
        self._changes.clear()
        self._renewal = self._wish = None
        self._record = None
        self._is_loaded = self._is_cleared = True

    def _renew(self, max_age: int | None) -> None:
        self._renewal = Renewal(max_age)

    def _discard(self) -> None:
        self._size = None
        self._changes.clear()
        self._renewal = self._wish = None
        if self._is_cleared:
            self._is_cleared = self._is_loaded = False

    def _outlive(self) -> None:
        if self._wish is not None:
            self._wish = self._sessions.owners.again(self._wish)

    async def _find_out(self) -> None:
        self._identify()
        if not self._is_loaded and self._untried():
            await self._in_turn(self._read)

    async def _in_turn(self, work: Callable[[], Awaitable[T]]) -> T:
        """Return what *work* returns, while nobody else of this request does the like."""
        if self._is_busy and self._lock is None:
            # Now that there is somebody to wait for, there is a lock, which is theirs. Most requests never have one.
            self._lock = asyncio.Lock()
            await self._lock.acquire()
        if self._lock is not None:
            await self._lock.acquire()
        self._is_busy = True
        try:
            return await work()
        except SessionStoreError:
            self._note_failure()
            raise
        finally:
            self._end_turn()

    def _note_failure(self) -> None:
        self._sessions.counters.store_errors += 1
        log_extra(self._scope).update(session=self.id, driver=self._driver.name)

    def _end_turn(self) -> None:
        self._is_busy = False
        self._size = None
        if self._lock is not None:
            self._lock.release()

    # Writing

    def _finish(self) -> Awaitable[Answer | None] | None:
        is_read_only = not self._changes and not self._is_cleared and self._renewal is None and self._answer is None
        is_touch_due = self._sessions.idle_timeout is not None and self._is_touch_due()
        if is_read_only and self._wish is None and not self._is_busy and not is_touch_due:
            return None
        return self._bring()

    async def _bring(self) -> Answer | None:
        await self._in_turn(self._flush)
        return self._cookie()

    def _cookie(self) -> Answer | None:
        identity, record = self._identity, self._record
        if self._answer is None:
            return None
        if not self._answer or identity is None or record is None:
            return END
        token = self._sessions.keyring.sign_id(identity.id, identity.is_transient)
        return token, (None if identity.is_transient else math.ceil(record.expires - self._sessions.clock()))

    async def _flush(self) -> None:
        """Bring every change to the store, without undoing what other requests do at the same time."""
        if self._is_cleared:
            await self._end()
        if self._wish is not None and self._sessions.owners.is_revoked(self._wish):
            self._refuse()
        elif self._renewal is not None:
            await self._rename()
        elif self._changes or self._wish is not None:
            self._identify()
            if self._is_ended:
                self._changes.clear()
                self._wish = None
            elif self._is_loaded and self._record is None:
                await self._begin()
            else:
                await self._apply(dict(self._changes))
        elif self._is_touch_due():
            await self._apply({})

    def _is_touch_due(self) -> bool:
        return self._record is not None and self._sessions.is_touch_due(self._record.deadline, self._record.expires)

    async def _end(self) -> None:
        if self._identity is not None:
            # In this order, no request in between finds another session than the visitor's.
            await self._end_others(self._twins())
            await self._driver.destroy(self._identity.handle, now=self._sessions.clock())
            self._sessions.counters.ended += 1
            self._forget()
        self._is_cleared = False

    async def _end_others(self, twins: Iterable[Identity]) -> None:
        """End *twins* except the current session, so that the visitor's other cookies lead to no session."""
        current = self._identity
        for twin in twins:
            if current is None or twin.id != current.id:
                await self._driver.destroy(twin.handle, now=self._sessions.clock())

    async def _apply(self, changes: Mapping[str, bytes | None], was_ended: bool = False) -> None:
        identity = self._identity
        if identity is None:
            await self._begin()
            return
        sets = self._seal(identity, changes)
        deletes = [key for key, data in changes.items() if data is None] if None in changes.values() else ()
        now = self._sessions.clock()
        if (wish := self._wish) is not None:
            outcome = await self._apply_wish(wish, identity, sets, deletes, now)
        else:
            outcome = await self._driver.apply(
                identity.handle, sets, deletes, now=now, deadline=self._idle_deadline(now), max_size=self._sessions.max_size
            )
        if outcome is Outcome.WRITTEN:
            self._sessions.counters.written += 1
            self._note(sets, deletes, now)
            self._settle(changes)
            if wish is not None:
                await self._settle_wish(wish)
            return
        if outcome is Outcome.TOO_LARGE:
            await self._exceed(identity, sets, deletes)
        if outcome is Outcome.REVOKED:
            self._refuse()
            return
        if outcome is Outcome.EMPTIED:
            self._sessions.counters.ended += 1
            await self._end_others(self._twins())
            self._forget()
            self._settle(changes)
            return
        if self._record is None:
            self._reject("expired")
            was_ended = was_ended or outcome is Outcome.ENDED
            if self._go_on():
                await self._apply(changes, was_ended)
                return
        if not was_ended and outcome is Outcome.ABSENT and self._record is None:
            # Nobody has ended what this request has seen: the cookie is an old one, and a session begins anew.
            await self._begin()
        else:
            self._lose()

    async def _apply_wish(
        self, wish: Wish, identity: Identity, sets: Mapping[str, bytes], deletes: Collection[str], now: float
    ) -> Outcome:
        """Do what apply() does, and give the session to the owner that was wished for."""
        ownership = self._sessions.owners.set_owner(wish, identity.handle)
        driver = cast("OwnerDriver", self._driver)
        deadline, max_size = self._idle_deadline(now), self._sessions.max_size
        outcome = await driver.set_owner(identity.handle, ownership, sets, deletes, now=now, deadline=deadline, max_size=max_size)
        if outcome is Outcome.WRITTEN and self._record is not None:
            self._record.ownership = ownership
        return outcome

    async def _begin(self, lost: tuple[Ownership, str] | None = None) -> None:
        """Store what this request has set as a new session, unless that is nothing.

        *lost* is the tag, with the handle, of the session that it was to change. Without another it goes on, so that what was ended
        with all that its owner had is not begun again.
        """
        changes = dict(self._changes)
        if any(data is not None for data in changes.values()):
            wish, (identity, lifetime) = self._wish, self._new_identity()
            record = self._new_record(identity, self._seal(identity, changes), lifetime)
            # Where it is known, it was checked already.
            if self._size is None or self._size > self._sessions.max_size:
                self._check_size(record.fields, {})
            if wish is not None:
                record.ownership = self._sessions.owners.set_owner(wish, identity.handle)
            elif lost is not None:
                record.ownership = self._sessions.owners.move(*lost, identity.handle)
            if await self._driver.create(identity.handle, record) is Outcome.REVOKED:
                self._refuse()
                return
            self._sessions.counters.created += 1
            self._adopt(identity, record)
            await self._settle_wish(wish)
        self._settle(changes)
        self._renewal = None

    async def _rename(self) -> None:
        """Move the session, as it is in the store at that moment and with this request's changes, to a new id."""
        self._identify()
        lost: tuple[Ownership, str] | None = None
        for _ in range(_ATTEMPTS):
            await self._read()
            if self._identity is None or self._record is None:
                # What was ended meanwhile stays so; but a login beside a logout is not lost.
                await self._begin(lost)
                return
            # With its cookie first, an older session would come before the one that a login has just renamed.
            await self._end_others(self._untried())
            if self._record.ownership is not None:
                lost = self._record.ownership, self._identity.handle
            changes = dict(self._changes)
            kept = {key: self._peek(key) for key in {**self._record.fields, **changes}}
            identity, lifetime = self._new_identity()
            record = self._new_record(identity, self._seal(identity, kept), lifetime)
            self._check_size(record.fields, self._record.fields)
            if not record.fields:
                await self._end()
                self._settle(changes)
                return
            wish = self._wish
            record.ownership = self._new_tag(wish, self._identity, identity)
            old, now = self._identity.handle, self._sessions.clock()
            try:
                outcome = await self._driver.rename(old, identity.handle, record, version=self._record.version, now=now)
            except SessionStoreError as error:
                if error.is_unconfirmed:
                    # The old id is dead, so the visitor gets the new one. The changes stay pending, so that the response of a
                    # handler that catches this error is below 500 only if the store confirms them then.
                    self._adopt(identity, record)
                raise
            if outcome is Outcome.WRITTEN:
                self._sessions.counters.written += 1
                self._adopt(identity, record)
                self._settle(changes)
                self._renewal = None
                await self._settle_wish(wish)
                return
            if outcome is Outcome.REVOKED:
                self._refuse()
                return
            self._is_loaded = False
        raise SessionConflict(f"regenerate() met other requests' changes {_ATTEMPTS} times; let fewer requests share this session")

    async def _swap(self, key: str, data: bytes) -> bool:
        """Store *data* where the value is still the one that was read; return whether there is nothing left to do."""
        if self._identity is None or self._record is None:
            if not self._is_ended:
                self._put(key, data)
                await self._begin()
            return True
        sets, now = self._seal(self._identity, {key: data}), self._sessions.clock()
        outcome = await self._driver.swap(
            self._identity.handle,
            key,
            self._record.fields.get(key),
            sets[key],
            now=now,
            deadline=self._idle_deadline(now),
            max_size=self._sessions.max_size,
        )
        if outcome is Outcome.CONFLICT:
            return False
        if outcome is Outcome.TOO_LARGE:
            await self._exceed(self._identity, sets, (), key)
        if outcome is Outcome.WRITTEN:
            self._sessions.counters.written += 1
            self._note(sets, (), now)
            self._changes.pop(key, None)
        else:
            self._lose()
        return True

    def _check_size(self, fields: Mapping[str, bytes], before: Mapping[str, bytes]) -> None:
        """Drop the request's changes, and raise SessionTooLarge, if *fields* are too large, and larger than those *before*."""
        size = size_of(fields)
        if size > self._sessions.max_size and size > size_of(before):
            self._discard()
            raise StoredSessionTooLarge(size, self._sessions.max_size)

    async def _exceed(
        self, identity: Identity, sets: Mapping[str, bytes], deletes: Collection[str], key: str | None = None
    ) -> NoReturn:
        """Drop the request's changes, which the store has found too large, and raise SessionTooLarge."""
        self._discard()
        found = await self._driver.load(identity.handle, now=self._sessions.clock())
        stored = found.fields if isinstance(found, Record) else {}
        size = size_of({name: data for name, data in {**stored, **sets}.items() if name not in deletes})
        # The store counts a little more, and others may have written since.
        raise StoredSessionTooLarge(max(size, self._sessions.max_size + 1), self._sessions.max_size, key)

    def _seal(self, identity: Identity, changes: Mapping[str, bytes | None]) -> dict[str, bytes]:
        """Return what the store is to hold of *changes*, a dict of the caller's own, without what they delete."""
        sets = cast("dict[str, bytes]", changes)
        if None in changes.values():
            sets = {key: data for key, data in changes.items() if data is not None}
        return {key: identity.values.seal(key, data) for key, data in sets.items()} if self._sessions.is_sealed else sets

    def _new_identity(self) -> tuple[Identity, int]:
        """Return a new identity, and for how many seconds it is to last."""
        record, identity = self._record, self._identity
        lifetime = None if record is None else record.expires - record.created
        asked = None if self._renewal is None else self._renewal.max_age
        lasts, is_transient = self._sessions.terms(asked, lifetime, identity is not None and identity.is_transient)
        return self._sessions.keyring.identity(_sealing.new_id(), is_transient), lasts

    def _new_tag(self, wish: Wish | None, old: Identity, new: Identity) -> Ownership | None:
        """Return the tag of the session under its new identity: the one that was wished for, or the one that it has."""
        if wish is not None:
            return self._sessions.owners.set_owner(wish, new.handle)
        ownership = None if self._record is None else self._record.ownership
        return None if ownership is None else self._sessions.owners.move(ownership, old.handle, new.handle)

    def _new_record(self, identity: Identity, fields: dict[str, bytes], lifetime: int) -> Record:
        now = self._sessions.clock()
        milliseconds = int(now * 1000)
        created, expires = milliseconds / 1000, (milliseconds + lifetime * 1000) / 1000
        seal = identity.values.seal_times(created, expires) if self._sessions.is_sealed else b""
        return Record(fields, created, expires, self._sessions.deadline(now, expires), seal=seal)

    def _idle_deadline(self, now: float) -> float | None:
        idle = self._sessions.idle_timeout
        return None if idle is None else now + idle

    def _note(self, sets: Mapping[str, bytes], deletes: Collection[str], now: float) -> None:
        """See in what was loaded what was written."""
        if (record := self._record) is not None:
            record.fields.update(sets)
            for key in deletes:
                record.fields.pop(key, None)
            record.version += 1
            record.deadline = self._sessions.deadline(now, record.expires)

    def _settle(self, changes: Mapping[str, bytes | None]) -> None:
        """Forget the changes that have arrived, but none that was made on top of them meanwhile."""
        for key, data in changes.items():
            if key in self._changes and self._changes[key] is data:
                del self._changes[key]

    async def _settle_wish(self, wish: Wish | None) -> None:
        """Forget the wish that has come true, unless there is another meanwhile, and see that the owner has not too many."""
        if wish is not None:
            if self._wish is wish:
                self._wish = None
            await self._sessions.owners.trim(wish)

    def _adopt(self, identity: Identity, record: Record) -> None:
        self._identity, self._record = identity, record
        self._is_loaded = self._answer = True
        self._is_ended = False

    def _forget(self) -> None:
        """Go on as a visitor without a session."""
        self._identity = self._record = None
        self._is_loaded = True
        self._answer = False

    def _lose(self) -> None:
        """Somebody has ended the session: drop what was to be changed, and leave the cookie to those who ended it."""
        self._changes.clear()
        self._wish = None
        self._record = self._answer = None
        self._is_loaded = self._is_ended = True

    def _refuse(self) -> None:
        """Drop what was to be changed: the owner's sessions were ended while this request was to begin another."""
        handle = self.id
        told = {**log_extra(self._scope), "session": handle, "driver": self._driver.name}
        logger.warning(
            "session %s: what this request changed was dropped, because end_all() ended the sessions of its owner meanwhile; "
            "if it was a login, the user has to log in again",
            handle or "(a new one)",
            extra=told,
        )
        if self._identity is not None:
            self._reject("expired")
        answer = self._answer
        self._lose()
        self._answer, self._renewal = answer, None


def _length_in(fields: Mapping[str, bytes], name: str) -> int:
    data = fields.get(name)
    return 0 if data is None else length_of(name) + len(data)
