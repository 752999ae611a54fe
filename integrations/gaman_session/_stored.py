"""StoredSession: a session in a driver's store, which reads through the pending changes of its request."""

from __future__ import annotations

import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping, MutableMapping
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from gaman import HTTPError, log_extra
from gaman_session._counters import Rejection
from gaman_session._driver import length_of, size_of, supports_owners
from gaman_session._errors import SessionConflict, SessionStoreError, StoredSessionTooLarge, too_late_for_cookie, too_late_to_read
from gaman_session._flush import MAX_ATTEMPTS, Flush
from gaman_session._known import Absent, Ended, Known, Live, Unread, is_touch_due, open_field
from gaman_session._login import LOGIN
from gaman_session._misuse import changed
from gaman_session._pending import Pending, Renewal
from gaman_session._session import Session
from gaman_session._session_base import REMOVED, CookieValue
from gaman_session._sessions import Sessions
from gaman_session._uncancelled import uncancelled

if TYPE_CHECKING:
    from asyncio import Lock

logger = logging.getLogger("gaman")

T = TypeVar("T")

_NO_FIELDS: Mapping[str, bytes] = {}
# Shared by all requests until they change something.
_NOTHING = Pending()


class StoredSession(Session):
    """A session whose cookie holds only a signed id."""

    __slots__ = ("_is_busy", "_known", "_lock", "_pending", "_size", "_stored_size")

    _stored_size: int
    """The session's bytes in the store, as far as is known, when `_size` was measured."""

    def __init__(self, sessions: Sessions, scope: MutableMapping[str, Any], is_closed: bool = False) -> None:
        # super().__init__() unrolled: this saves 5 % of a request that reads a session in memory.
        self._sessions = sessions
        self._scope = scope
        self._is_closed = is_closed
        self._is_used = self._is_busy = False
        self._name = "ctx.session"
        self._due = self._more_due = None
        self._dict = None
        self._known = Known(sessions, scope)
        self._pending = _NOTHING
        self._size: int | None = None
        """The session's bytes with the pending changes; None until they are measured."""
        self._lock: Lock | None = None

    @property
    def id(self) -> str | None:
        """The session's handle, which is safe to log, or None if there is no session yet."""
        self._is_used = True
        identity = self._known.identify().identity
        return None if identity is None else identity.id

    @property
    def is_new(self) -> bool:
        """Whether the request came without a session, as far as is known, or has cleared it."""
        self._follow_dict()
        self._is_used = True
        return self._pending.is_end or isinstance(self._known.identify(), (Absent, Ended))

    def _has_cookie(self) -> bool:
        return self._known.has_cookie

    # Reading

    def _is_ready(self) -> bool:
        if self._known.state.is_read or self._pending.is_end:
            return True
        load = self._sessions.load_at_once
        # A request that reads only what it has set loads nothing, so _read() looks at the key.
        if load is None or self._pending.changes or self._is_busy or self._is_closed:
            return False
        self._is_used, self._size = True, None
        self._known.load_at_once(load)
        return True

    async def _read(self, read: Callable[..., T], key: str | None, default: Any = None, type: Any = None) -> T:
        known, pending = self._known, self._pending
        if not (known.state.is_read or pending.is_end or key in pending.changes):
            if self._is_closed:
                raise too_late_to_read()
            self._is_used = True
            await self._exclusively(known.load)
        return read(self, key, default, type)

    def _live(self) -> Live | None:
        """Return the session that reads see below the pending changes, if any."""
        state = self._known.state
        return state if isinstance(state, Live) and not self._pending.is_end else None

    def _fields(self) -> Mapping[str, bytes]:
        state = self._known.state
        return state.record.fields if isinstance(state, Live) and not self._pending.is_end else _NO_FIELDS

    def _keys(self) -> Iterable[str]:
        return [key for key in {**self._fields(), **self._pending.changes} if key != LOGIN]

    def _peek(self, key: str) -> bytes | None:
        pending, state = self._pending, self._known.state
        if key in pending.changes:
            return pending.changes[key]
        if not isinstance(state, Live) or pending.is_end:
            return None
        return open_field(self._known, state, key) if self._sessions.is_sealed else state.record.fields.get(key)

    def _times(self) -> tuple[float, float] | None:
        live = self._live()
        return None if live is None else (live.record.created, live.record.deadline)

    async def _find(self) -> None:
        self._is_used = True
        state = self._known.identify()
        if not self._pending.is_end and isinstance(state, Unread) and self._known.twins_after(state.identity):
            await self._exclusively(self._known.load)

    # Changing

    def _own_pending(self) -> Pending:
        """Return the request's own pending changes, to add to them."""
        if self._pending is _NOTHING:
            self._pending = Pending()
        return self._pending

    def _put(self, key: str, data: bytes) -> None:
        sessions, size = self._sessions, self._size
        if size is None:
            # Not measuring a session that was not read saves 5 % of a request that only writes, in memory.
            size = self._measure() if self._pending.changes or self._known.state.is_read else 0
        if size:
            size -= self._length(key)
        size += length_of(key) + len(data) + sessions.overhead
        if size > sessions.max_size and (self._live() is None or size > self._stored_size):
            self._failure = StoredSessionTooLarge(size, sessions.max_size, key)
            raise self._failure
        self._size, self._failure = size, None
        self._own_pending().changes[key] = data
        if self._dict is not None:
            self._dict.show(key, data)

    def _drop(self, key: str) -> None:
        try:
            key.encode()
        except UnicodeEncodeError:
            # set() refuses such a key, so no session has it.
            return
        if self._size is not None:
            self._size -= self._length(key)
        self._own_pending().changes[key] = None
        if self._dict is not None:
            self._dict.show(key, None)

    def _measure(self) -> int:
        """Return the session's size with the pending changes, in bytes, as far as is known without the store."""
        fields = self._fields()
        size = self._stored_size = size_of(fields) if fields else 0
        for key in self._pending.changes:
            size += self._length(key) - _length_in(fields, key)
        return size

    def _length(self, key: str) -> int:
        """Return how many bytes *key* and its value will have in the store."""
        changes = self._pending.changes
        if key in changes:
            data = changes[key]
            return 0 if data is None else length_of(key) + len(data) + self._sessions.overhead
        return _length_in(self._fields(), key)

    def _clear(self) -> None:
        self._known.identify()
        self._own_pending().end()
        self._size = None
        if self._dict is not None:
            self._dict.show_end()

    def _has_set(self, key: str) -> bool:
        return self._pending.changes.get(key) is not None

    def _is_renewing(self) -> bool:
        return self._pending.renewal is not None

    def _renew(self, max_age: int | None, begins: bool | None = None) -> None:
        if not self._known.can_send_cookie:
            raise too_late_for_cookie()
        pending = self._own_pending()
        before = Renewal() if pending.renewal is None else pending.renewal
        pending.renewal = Renewal(before.max_age if max_age is None else max_age, before.begins if begins is None else begins)

    def _set_owner(self, owner: str | None, note: Any) -> None:
        self._own_pending().owner = self._sessions.owners.pending(owner, b"" if note is None else self._encode("note", note))

    def _list_login(self, owner: str, note: Any) -> None:
        if supports_owners(self._sessions.driver):
            self._set_owner(owner, note)

    def _outlive_end(self) -> None:
        if self._pending.owner is not None:
            self._pending.owner = self._sessions.owners.dated_now(self._pending.owner)

    def _discard(self) -> None:
        self._pending.discard()
        self._known.can_touch, self._size = False, None

    # Writing

    async def _update(self, key: str, fn: Callable[[Any], T], default: Any) -> T:
        """Replace the value under *key* by `fn(value)`, by comparing and swapping its stored bytes."""
        self._open_for_change()

        async def compare_and_swap() -> T:
            flush = Flush(self._known, self._own_pending())
            for attempt in range(MAX_ATTEMPTS):
                await flush.run()
                await self._known.load(again=attempt > 0)
                value = changed(self, key, fn, self._value(key, default, None))
                data = self._encode(key, value)
                live = self._live()
                if live is None:
                    if self._pending.is_end or not isinstance(self._known.state, Ended):
                        self._put(key, data)
                        await flush.run()
                    return value
                if await flush.swap(live, key, data):
                    if self._dict is not None:
                        self._dict.show(key, data)
                    return value
                await anyio.sleep(random.random() * min(attempt, 20) / 1000)  # noqa: S311
            raise SessionConflict(
                f"update({key!r}) met another request's change {MAX_ATTEMPTS} times; let fewer requests share this key"
            )

        return await self._write(compare_and_swap)

    async def _save(self) -> None:
        self._open_for_change()
        await self._flush()

    def _needs_store(self) -> bool:
        return (
            self._pending is not _NOTHING
            or self._is_busy
            or (self._sessions.idle_timeout is not None and is_touch_due(self._known))
        )

    def _end_handshake(self) -> None:
        self._is_closed = self._known.can_send_cookie = False

    def _has_changes(self) -> bool:
        pending = self._pending
        return bool(pending.changes or pending.is_end or pending.renewal or pending.owner)

    def _flush(self) -> Coroutine[Any, Any, None]:
        return self._write(Flush(self._known, self._own_pending()).run)

    def _cookie(self) -> CookieValue | None:
        known = self._known
        if not known.is_cookie_due:
            return None
        if not isinstance(live := known.state, Live):
            return REMOVED
        identity = live.identity
        token = self._sessions.keyring.sign_id(identity.raw_id, identity.is_transient)
        # This request has begun or renamed the session, so its whole lifetime is left.
        return token, None if identity.is_transient else round(live.record.expires - live.record.created)

    def _write(self, work: Callable[[], Awaitable[T]]) -> Coroutine[Any, Any, T]:
        """Return what *work* returns, as _exclusively(). A cancellation doesn't interrupt a login or a logout."""
        writing, pending = self._exclusively(work), self._pending
        if pending.is_end or pending.renewal or pending.owner or None in pending.changes.values():
            return uncancelled(writing, self._report_unwritten)
        # The store sets keys in one step or not at all, and they stay pending for a later response. Not using a task for this saves
        # 15 % of a request that writes to Redis.
        return writing

    async def _exclusively(self, work: Callable[[], Awaitable[T]]) -> T:
        """Return what *work* returns. A request has at most one call to the store in flight."""
        if self._is_busy and self._lock is None:
            from asyncio import Lock  # noqa: PLC0415 - takes 20 ms to load, which a server has done

            # Most requests need no lock: it is created under contention and held on behalf of the first call.
            self._lock = Lock()
            await self._lock.acquire()
        if self._lock is not None:
            await self._lock.acquire()
        self._is_busy = True
        try:
            result = await work()
            self._failure = None
            return result
        except HTTPError as error:
            self._failure = error
            if not isinstance(error, SessionStoreError):
                raise
            self._sessions.counters.store_errors += 1
            log_extra(self._scope).update(session=self.id, driver=self._sessions.store.name)
            raise
        finally:
            self._is_busy = False
            self._size = None
            if self._lock is not None:
                self._lock.release()

    def _reject(self, reason: Rejection) -> None:
        self._known.reject(reason)


def _length_in(fields: Mapping[str, bytes], name: str) -> int:
    data = fields.get(name)
    return 0 if data is None else length_of(name) + len(data)
