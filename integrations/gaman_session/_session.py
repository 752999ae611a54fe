"""Session: what a handler sees as ctx.session, and how a request's changes reach the store."""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Callable, Collection, Mapping
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Any, Final, NamedTuple, TypeVar, overload

from gaman_session import _sealing
from gaman_session._driver import Driver, Outcome, Record
from gaman_session._errors import SessionClosed, SessionConflict, SessionSerializationError, SessionTooLarge, SessionTypeError
from gaman_session._sealing import Keyring, Values
from gaman_session._serializer import Serializer
from gaman_session.drivers.cookies import CookiesDriver, pack, unpack

T = TypeVar("T")
D = TypeVar("D")

logger = logging.getLogger("gaman")

_ATTEMPTS: Final = 100
_COOKIE_LIMIT: Final = 4096
# An idle limit is refreshed once a tenth of it has passed, so that reading does not become writing.
_TOUCH_AFTER: Final = 0.1


_MISSING: Final = object()


class _Kept(Enum):
    """The session keeps its id: nobody has called regenerate()."""

    ID = auto()


class Answer(NamedTuple):
    """The cookie to send: a token to keep for *max_age* seconds, or until the browser ends; without a token, the cookie goes."""

    token: str | None
    max_age: int | None


class Sessions:
    """What all sessions of an application share."""

    def __init__(
        self,
        *,
        driver: Driver,
        keyring: Keyring,
        serializer: Serializer,
        max_age: int,
        idle_timeout: int | None,
        encrypt: bool,
        cookie_overhead: int,
        clock: Callable[[], float],
    ) -> None:
        self.driver = driver
        self.keyring = keyring
        self.serializer = serializer
        self.max_age = max_age
        self.idle_timeout = idle_timeout
        self.clock = clock
        self.in_cookie = isinstance(driver, CookiesDriver)
        # In this process lies the key as well, and a cookie is sealed as a whole.
        self.seals_values = encrypt and driver.shared and not self.in_cookie
        self._cookie_overhead = cookie_overhead
        self._unreadable: set[tuple[str, str]] = set()

    def new_record(self, fields: dict[str, bytes], lifetime: int) -> Record:
        now = self.clock()
        return Record(fields, now, now + lifetime, self.deadline(now, now + lifetime))

    def deadline(self, now: float, expires: float) -> float:
        return expires if self.idle_timeout is None else min(expires, now + self.idle_timeout)

    def idle_deadline(self, now: float) -> float | None:
        return None if self.idle_timeout is None else now + self.idle_timeout

    def check_size(self, key: str, payload: bytes, max_age: int) -> None:
        """Raise SessionTooLarge where the cookie around *payload* is one that browsers may drop (RFC 6265, section 6.1)."""
        size = self._cookie_overhead + len(str(max_age)) + _sealing.token_length(len(payload))
        if size > _COOKIE_LIMIT:
            raise SessionTooLarge(
                f"with {key!r} the session's cookie would have {size} bytes, attributes included, and browsers keep {_COOKIE_LIMIT}; "
                "store less, or choose a driver that keeps sessions on the server"
            )

    def report_unreadable(self, handle: str, key: str) -> None:
        """Log, once, that a value of a session is none that we have written."""
        if (handle, key) not in self._unreadable and len(self._unreadable) < 1000:
            self._unreadable.add((handle, key))
            logger.warning("session %s: the stored value of %r is not one that was written there; it counts as absent", handle, key)


class _Identity(NamedTuple):
    """Which session it is."""

    id: bytes
    handle: str
    is_transient: bool
    values: Values | None


class Session:
    """The session of one request. Reading it costs at most one trip to the store, changing it at most one more.

    A key is a string. A value is anything that the serializer keeps; what comes back is a fresh copy each time. Changes wait in the
    request and go out together before the response's headers do, unless the request fails: a response with a status of 500 or more
    drops them.
    """

    __slots__ = (
        "_answer",
        "_changes",
        "_driver",
        "_identity",
        "_is_cleared",
        "_is_closed",
        "_is_ended",
        "_is_identified",
        "_is_loaded",
        "_is_used",
        "_lock",
        "_new_max_age",
        "_read_token",
        "_record",
        "_sessions",
    )

    def __init__(self, sessions: Sessions, read_token: Callable[[], str | None]) -> None:
        self._sessions = sessions
        self._read_token = read_token
        self._driver = sessions.driver
        # What is known of the session: who it is, once the cookie was looked at, and what it holds, once it was loaded.
        self._identity: _Identity | None = None
        self._record: Record | None = None
        self._is_identified = self._is_loaded = self._is_ended = False
        # What the request wants of it: keys to set, or with None to delete; a new id, with that lifetime; its end.
        self._changes: dict[str, bytes | None] = {}
        self._new_max_age: int | None | _Kept = _Kept.ID
        self._is_cleared = False
        # How far the request has come: whether a cookie is to be sent (True), or taken back (False).
        self._answer: bool | None = None
        self._is_used = self._is_closed = False
        self._lock: asyncio.Lock | None = None

    @property
    def id(self) -> str | None:
        """A handle of the session, safe to log, or None where there is no session yet; no cookie can be made of it."""
        self._identify()
        return None if self._identity is None else self._identity.handle

    @property
    def is_new(self) -> bool:
        """Whether the request came without a session, as far as is known: a cookie counts as one until the first read."""
        self._identify()
        return self._identity is None or (self._is_loaded and self._record is None)

    @property
    def created_at(self) -> datetime | None:
        """When the session began or was last regenerated; None before the first read, and where there is none."""
        return None if self._record is None else datetime.fromtimestamp(self._record.created, UTC)

    @property
    def expires_at(self) -> datetime | None:
        """When the session is over if nobody comes back to it; None before the first read, and where there is none."""
        return None if self._record is None else datetime.fromtimestamp(self._record.deadline, UTC)

    @overload
    async def get(self, key: str, default: None = None, *, type: None = None) -> Any: ...
    @overload
    async def get(self, key: str, default: D, *, type: None = None) -> Any: ...
    @overload
    async def get(self, key: str, default: None = None, *, type: type[T]) -> T | None: ...
    @overload
    async def get(self, key: str, default: D, *, type: type[T]) -> T | D: ...
    async def get(self, key: str, default: Any = None, *, type: Any = None) -> Any:
        """Return the value under *key*, or *default* where there is none. SessionTypeError: it does not fit *type*."""
        data = await self._find(key)
        return default if data is None else self._decode(key, data, default, type)

    async def has(self, key: str) -> bool:
        """Return whether *key* is there, whatever its value: 0, "", False and None are there."""
        return await self._find(key) is not None

    async def set(self, key: str, value: Any) -> None:
        """Keep *value* under *key*; later changes to the object are not seen.

        SessionSerializationError is raised for a value that can't be kept, SessionTooLarge where a cookie would not hold it, and
        SessionClosed after the response has begun.
        """
        self._open_for_change()
        data = self._encode(key, value)
        if self._sessions.in_cookie:
            await self._check_size(key, data)
        self._changes[key] = data

    async def delete(self, key: str) -> None:
        """Remove *key*; nothing happens where it is not there. With the last key, the session ends, and its cookie goes."""
        self._open_for_change()
        self._changes[key] = None

    async def pop(self, key: str, default: Any = None) -> Any:
        """Remove *key* and return its value, or *default* where there is none."""
        self._open_for_change()
        value = await self.get(key, default)
        self._changes[key] = None
        return value

    async def all(self) -> dict[str, Any]:
        """Return every key with its value."""
        if not self._is_loaded:
            await self._load()
        keys = [*(self._record.fields if self._record is not None else ()), *self._changes]
        found = {key: self._peek(key) for key in dict.fromkeys(keys)}
        values = {key: self._decode(key, data, _MISSING, None) for key, data in found.items() if data is not None}
        return {key: value for key, value in values.items() if value is not _MISSING}

    async def clear(self) -> None:
        """End the session: here at once, in the store and in the browser with the response. What is set later begins a new one."""
        self._open_for_change()
        self._identify()
        self._changes.clear()
        self._new_max_age = _Kept.ID
        self._record = None
        self._is_loaded = self._is_cleared = True

    async def update(self, key: str, fn: Callable[[Any], T], default: Any = None) -> T:
        """Replace the value under *key* by `fn(value)`, as one atomic step against every other request; return the new value.

        *fn* gets *default* where there is no value. It is called again where another request came in between, so it should do
        nothing but compute. The store has the value, and all that was set before, when this returns. SessionConflict: the store
        was still contended after many attempts. With the cookies driver, the step is atomic within this request alone.
        """
        self._open_for_change()
        async with self._locked():
            await self._flush()
            for attempt in range(_ATTEMPTS):
                if not self._is_loaded:
                    await self._read()
                before = self._peek(key)
                value = fn(default if before is None else self._decode(key, before, default, None))
                data = self._encode(key, value)
                if self._sessions.in_cookie:
                    await self._check_size(key, data)
                if await self._swap(key, data):
                    return value
                self._is_loaded = False
                await asyncio.sleep(random.random() * min(attempt, 20) / 1000)  # noqa: S311
        raise SessionConflict(f"update({key!r}) met another request's change {_ATTEMPTS} times; let fewer requests share this key")

    async def regenerate(self, *, max_age: int | None = None) -> None:
        """Give the session a new id and keep its data; the old id is dead at once. Call it at login.

        *max_age* is the session's own lifetime from now, in seconds; without one it keeps the lifetime that it had. 0 stands for
        the server's limit, and a cookie that ends with the browser.
        """
        self._open_for_change()
        if max_age is not None and max_age < 0:
            raise ValueError(f"max_age is a number of seconds, and 0 or more; it can't be {max_age}")
        self._new_max_age = max_age

    async def save(self) -> None:
        """Bring what was changed to the store now. SessionStoreError: it is not there."""
        self._open_for_change()
        async with self._locked():
            await self._flush()

    # Reading

    def _identify(self) -> None:
        """Find out from the cookie which session this is, without a trip."""
        if self._is_identified:
            return
        self._is_identified = self._is_used = True
        sessions = self._sessions
        if sessions.in_cookie:
            self._driver = CookiesDriver()
        if (token := self._read_token()) is None:
            return
        if not sessions.in_cookie:
            if (known := sessions.keyring.verify_id(token)) is not None:
                self._identity = self._make_identity(*known)
        elif (payload := sessions.keyring.open_token(token)) is not None and (carried := unpack(payload)) is not None:
            self._identity = self._make_identity(carried.id, carried.is_transient)
            record = Record(carried.fields, carried.created, carried.expires, carried.deadline)
            self._driver = CookiesDriver(self._identity.handle, record)

    def _make_identity(self, id: bytes, is_transient: bool) -> _Identity:
        sessions = self._sessions
        return _Identity(id, _sealing.handle(id), is_transient, sessions.keyring.values(id) if sessions.seals_values else None)

    async def _load(self) -> None:
        """Read the session, once for all who ask at the same moment."""
        if self._is_closed:
            raise SessionClosed("the session is read for the first time after the response has begun; read it before")
        async with self._locked():
            if not self._is_loaded:
                await self._read()

    async def _read(self) -> None:
        self._identify()
        identity = self._identity
        found = None if identity is None else await self._driver.load(identity.handle, now=self._sessions.clock())
        if not self._is_cleared:
            self._is_ended = found is Outcome.ENDED
            self._record = found if isinstance(found, Record) else None
            self._is_loaded = True

    async def _find(self, key: str) -> bytes | None:
        if not self._is_loaded and key not in self._changes:
            await self._load()
        return self._peek(key)

    def _peek(self, key: str) -> bytes | None:
        """Return the encoded value of *key* as this request sees it, from what is loaded."""
        if key in self._changes:
            return self._changes[key]
        stored = None if self._record is None else self._record.fields.get(key)
        if stored is None or self._identity is None or self._identity.values is None:
            return stored
        data = self._identity.values.open(key, stored)
        if data is None:
            self._sessions.report_unreadable(self._identity.handle, key)
        return data

    def _decode(self, key: str, data: bytes, default: Any, type: Any) -> Any:
        try:
            return self._sessions.serializer.decode(data, type)
        except Exception as cause:
            if type is None:
                self._sessions.report_unreadable(self.id or "", key)
                return default
            raise SessionTypeError(f"the session's {key!r} is no {getattr(type, '__name__', type)}: {cause}") from cause

    # Changing

    def _open_for_change(self) -> None:
        self._is_used = True
        if self._is_closed:
            raise SessionClosed("the response has begun, so a change of the session would be lost; make it before")

    def _encode(self, key: str, value: Any) -> bytes:
        try:
            key.encode()
            return self._sessions.serializer.encode(value)
        except Exception as cause:
            raise SessionSerializationError(f"the session can't keep {key!r}, a {type(value).__name__}: {cause}") from cause

    async def _check_size(self, key: str, data: bytes) -> None:
        """Find out now whether a cookie will hold the session with *data*, rather than when the browser drops it."""
        if not self._is_loaded:
            await self._load()
        stored: Mapping[str, bytes | None] = {} if self._record is None else self._record.fields
        fields = {name: value for name, value in {**stored, **self._changes, key: data}.items() if value is not None}
        lifetime, is_transient = self._terms()
        now = self._sessions.clock()
        payload = pack(bytes(_sealing.ID), is_transient, Record(fields, now, now, now))
        self._sessions.check_size(key, payload, lifetime)

    def _locked(self) -> asyncio.Lock:
        if self._lock is None:
            self._lock = asyncio.Lock()
        return self._lock

    # Writing

    async def _flush(self) -> None:
        """Bring every change to the store, without undoing what other requests do at the same time."""
        if self._is_cleared:
            await self._end()
        if self._new_max_age is not _Kept.ID:
            await self._rename()
        elif self._changes:
            await self._write()
        elif self._is_touch_due():
            await self._apply({})

    async def _end(self) -> None:
        if self._identity is not None:
            await self._driver.destroy(self._identity.handle, now=self._sessions.clock())
            self._forget()
        self._is_cleared = False

    async def _write(self) -> None:
        self._identify()
        if self._is_ended:
            self._changes.clear()
        elif self._identity is None or (self._is_loaded and self._record is None):
            await self._begin()
        else:
            await self._apply(dict(self._changes))

    async def _apply(self, changes: Mapping[str, bytes | None]) -> None:
        identity = self._known()
        sets = _seal(identity, changes)
        deletes = [key for key, data in changes.items() if data is None]
        now = self._sessions.clock()
        outcome = await self._driver.apply(identity.handle, sets, deletes, now=now, deadline=self._sessions.idle_deadline(now))
        if outcome is Outcome.WRITTEN:
            self._note(sets, deletes, now)
            self._settle(changes)
        elif outcome is Outcome.EMPTIED:
            self._forget()
            self._settle(changes)
        elif outcome is Outcome.ABSENT and self._record is None:
            # Nobody has ended what this request has seen: the cookie is an old one, and a session begins anew.
            await self._begin()
        else:
            self._lose()

    async def _begin(self) -> None:
        """Store what this request has set as a new session, unless that is nothing."""
        changes = dict(self._changes)
        if any(data is not None for data in changes.values()):
            lifetime, is_transient = self._terms()
            identity = self._make_identity(_sealing.new_id(), is_transient)
            record = self._sessions.new_record(_seal(identity, changes), lifetime)
            await self._driver.create(identity.handle, record)
            self._adopt(identity, record)
        self._settle(changes)
        self._new_max_age = _Kept.ID

    async def _rename(self) -> None:
        """Move the session, as it is in the store at that moment and with this request's changes, to a new id."""
        self._identify()
        for _ in range(_ATTEMPTS):
            if not self._is_loaded:
                await self._read()
            if self._identity is None or self._record is None:
                # What was ended meanwhile stays so; but a login beside a logout is not lost.
                return await self._begin()
            changes = dict(self._changes)
            kept = {key: self._peek(key) for key in {**self._record.fields, **changes}}
            lifetime, is_transient = self._terms()
            identity = self._make_identity(_sealing.new_id(), is_transient)
            record = self._sessions.new_record(_seal(identity, kept), lifetime)
            if not record.fields:
                await self._end()
                return self._settle(changes)
            old, now = self._identity.handle, self._sessions.clock()
            outcome = await self._driver.rename(old, identity.handle, record, version=self._record.version, now=now)
            if outcome is Outcome.WRITTEN:
                self._adopt(identity, record)
                self._settle(changes)
                self._new_max_age = _Kept.ID
                return None
            self._is_loaded = False
        raise SessionConflict(f"regenerate() met other requests' changes {_ATTEMPTS} times; let fewer requests share this session")

    async def _swap(self, key: str, data: bytes) -> bool:
        """Store *data* where the value is still the one that was read; return whether there is nothing left to do."""
        if self._identity is None or self._record is None:
            if not self._is_ended:
                self._changes[key] = data
                await self._begin()
            return True
        sets, now = _seal(self._identity, {key: data}), self._sessions.clock()
        outcome = await self._driver.swap(
            self._identity.handle,
            key,
            self._record.fields.get(key),
            sets[key],
            now=now,
            deadline=self._sessions.idle_deadline(now),
        )
        if outcome is Outcome.CONFLICT:
            return False
        if outcome is Outcome.WRITTEN:
            self._note(sets, (), now)
            self._changes.pop(key, None)
        else:
            self._lose()
        return True

    def _terms(self) -> tuple[int, bool]:
        """Return the lifetime that the session is to have, in seconds, and whether its cookie ends with the browser."""
        asked, record, identity = self._new_max_age, self._record, self._identity
        if isinstance(asked, int):
            return asked or self._sessions.max_age, asked == 0
        if record is None or identity is None:
            return self._sessions.max_age, False
        return round(record.expires - record.created), identity.is_transient

    def _is_touch_due(self) -> bool:
        record, idle = self._record, self._sessions.idle_timeout
        if record is None or idle is None or record.deadline >= record.expires:
            return False
        return self._sessions.clock() - (record.deadline - idle) >= idle * _TOUCH_AFTER

    def _known(self) -> _Identity:
        assert self._identity is not None  # noqa: S101
        return self._identity

    def _note(self, sets: Mapping[str, bytes], deletes: Collection[str], now: float) -> None:
        """See in what was loaded what was written."""
        if self._sessions.in_cookie:
            self._answer = True
        if (record := self._record) is not None:
            record.fields.update(sets)
            for key in deletes:
                record.fields.pop(key, None)
            record.version += 1
            record.deadline = self._sessions.deadline(now, record.expires)

    def _settle(self, changes: Mapping[str, bytes | None]) -> None:
        """Forget the changes that have arrived, but none that was made on top of them meanwhile."""
        for key, data in changes.items():
            if self._changes.get(key, _MISSING) is data:
                del self._changes[key]

    def _adopt(self, identity: _Identity, record: Record) -> None:
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
        self._record = None
        self._is_loaded = self._is_ended = True


def _seal(identity: _Identity, changes: Mapping[str, bytes | None]) -> dict[str, bytes]:
    values = identity.values
    return {key: data if values is None else values.seal(key, data) for key, data in changes.items() if data is not None}


# What the integration does with a session, out of its users' sight.


def is_used(session: Session) -> bool:
    """Return whether the response depends on the session, or changes it."""
    return session._is_used


def discard(session: Session) -> None:
    """Drop what the request has changed and not saved."""
    session._changes.clear()
    session._new_max_age = _Kept.ID
    if session._is_cleared:
        session._is_cleared = session._is_loaded = False


async def finish(session: Session) -> Answer | None:
    """Bring the changes to the store, refuse any that come later, and return the cookie to send, or None for none."""
    session._is_closed = True
    async with session._locked():
        await session._flush()
    identity, record = session._identity, session._record
    if session._answer is None:
        return None
    if not session._answer or identity is None or record is None:
        return Answer(None, None)
    sessions = session._sessions
    if sessions.in_cookie:
        token = sessions.keyring.seal_token(pack(identity.id, identity.is_transient, record))
    else:
        token = sessions.keyring.sign_id(identity.id, identity.is_transient)
    return Answer(token, None if identity.is_transient else math.ceil(record.expires - sessions.clock()))
