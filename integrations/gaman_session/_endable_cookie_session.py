"""EndableCookieSession: a session in the browser's cookie, whose end a store remembers.

The first read asks the store whether the session has ended. A response that sends the cookie asks once more: a late one would
otherwise replace the cookie of a login with one that is dead. Of concurrent requests that end or renew a session, the first to
write its end continues, and the others lose the session.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import msgspec

from gaman import log_extra
from gaman_session import _sealing
from gaman_session._audit import Reason
from gaman_session._cookie_session import Contents, CookieSession, decode_contents
from gaman_session._driver import MAX_SKEW, TOMBSTONE
from gaman_session._ended import EndedSessions, Ending, Found
from gaman_session._errors import SessionStoreError, SessionUnsupported
from gaman_session._gather import gather
from gaman_session._login import LOGIN, Login, login_in
from gaman_session._login_list import MAX_COOKIE_AGE, Listed
from gaman_session._session_base import CookieValue
from gaman_session._sessions import Sessions
from gaman_session._uncancelled import uncancelled

if TYPE_CHECKING:
    from asyncio import Lock

T = TypeVar("T")

_LIVE: Final = Found(None, 0)


class EndableCookieSession(CookieSession):
    """A session in a cookie, with a store of ended sessions."""

    __slots__ = ("_base", "_begins", "_ended", "_is_checked", "_is_cookie_due", "_is_end", "_is_lost", "_lock", "_note", "_saved")

    _base: Contents | None
    """The session that this request goes on with: that of its cookie or, after save(), the one that was saved."""
    _is_checked: bool
    """Whether the store was asked if that session has ended. Nothing of it is read before."""
    _is_lost: bool
    """Whether it was ended a short time ago or during this request, whose changes are then dropped."""
    _is_end: bool
    """Whether clear() was called, and isn't written."""
    _begins: bool | None
    """As in Renewal, if a new id was asked for; otherwise None."""
    _is_cookie_due: bool
    """Whether the store has what the cookie says."""
    _note: bytes
    """The note of a login, as sessions.list() gets it; empty for none."""

    def __init__(self, sessions: Sessions, scope: MutableMapping[str, Any], is_closed: bool = False) -> None:
        super().__init__(sessions, scope, is_closed)
        self._ended = cast("EndedSessions", sessions.owners)
        self._lock: Lock | None = None
        self._is_checked = False
        self._note = b""
        self._saved: dict[str, bytes] | None = None
        """The values that save() was called with, if it has noted an end; the browser has to get them."""

    @property
    def id(self) -> str | None:
        """The session's handle, or None if there is no session yet. A new id shows when it is written, as in a store."""
        self._is_ready()
        base = self._base
        return _sealing.id_of(base.raw_id) if base is not None and self._is_renewing() else super().id

    # Reading

    def _is_ready(self) -> bool:
        if not self._is_loaded:
            super()._is_ready()
            self._base = self._received
            self._is_checked = self._base is None
            self._is_end = self._is_lost = self._is_cookie_due = False
            self._begins = None
        return self._is_checked

    async def _read(self, read: Callable[..., T], key: str | None, default: Any = None, type: Any = None) -> T:
        await self._find()
        return read(self, key, default, type)

    async def _update(self, key: str, fn: Callable[[Any], T], default: Any) -> T:
        self._open_for_change()
        await self._find()
        return await super()._update(key, fn, default)

    async def _find(self) -> None:
        if not self._is_ready():
            await self._exclusively(self._check)

    def _peek(self, key: str) -> bytes | None:
        return super()._peek(key) if self._is_checked else None

    def _times(self) -> tuple[float, float] | None:
        return super()._times() if self._is_checked else None

    async def _check(self) -> None:
        """Find the first cookie whose session has not ended."""
        while not self._is_checked:
            base = cast("Contents", self._base)
            found = await self._look_up(base)
            if found.ended_at is None:
                self._is_checked = True
                return
            twins = self._opened()
            raw_ids = [twin.raw_id for twin in twins]
            following = twins[raw_ids.index(base.raw_id) + 1 :] if base.raw_id in raw_ids else []
            if self._is_changed or not following:
                self._lose(base, found.ended_at)
            else:
                self._reject("expired")
                self._received = self._contents = self._base = following[0]
                self._fields = following[0].fields

    async def _look_up(self, contents: Contents | None) -> Found:
        """Return what the store knows of a session; a new one, None, is live."""
        if contents is None:
            return _LIVE
        if (oldest := self._sessions.clock() - MAX_COOKIE_AGE) >= contents.created:
            return Found(oldest, 0)
        login = self._login_in(contents.fields)
        owner, since = (None, contents.created) if login is None else (login.owner, login.since)
        return await self._ended.find(_sealing.id_of(contents.raw_id), owner, since)

    def _lose(self, base: Contents, ended_at: float) -> None:
        """Go on without the session, which was ended, and keep only what this request has set."""
        self._reject("expired")
        self._is_lost = self._is_lost or self._is_checked or self._sessions.clock() - ended_at < TOMBSTONE
        self._is_checked = self._is_new = True
        self._received = self._base = None
        self._fields = {key: data for key, data in self._fields.items() if base.fields.get(key) is not data}
        self._max_size = 0
        if self._begins is None:
            self._contents = None

    # Changing

    def _has_set(self, key: str) -> bool:
        written = {} if self._base is None else self._base.fields
        return key in self._fields and self._fields[key] is not written.get(key)

    def _clear(self) -> None:
        super()._clear()
        self._is_end = self._is_checked = True
        self._begins = None

    def _renew(self, max_age: int | None, begins: bool | None = None) -> None:
        super()._renew(max_age)
        self._begins = self._begins is not False if begins is None else begins

    def _is_renewing(self) -> bool:
        return self._base is not None and self._begins is not None and not self._is_end

    def _set_owner(self, owner: str | None, note: Any) -> None:
        raise SessionUnsupported("cookies", "set_owner()", "write `await session.login(owner)`")

    def _tie(self, owner: str, note: Any) -> None:
        self._note = b"" if note is None else self._encode("note", note)

    def _outlive_end(self) -> None:
        if (login := self._new_login()) is not None:
            self._date_login(login, self._ended.instant())

    def _discard(self) -> None:
        if self._saved is None:
            super()._discard()
            return
        self._contents, self._fields, self._max_size = self._base, self._saved, 0
        self._is_end, self._begins = False, None

    # Writing

    async def _save(self) -> None:
        self._open_for_change()
        if self._is_loaded and (self._is_end or self._begins is not None):
            await self._flush()
            self._saved = self._fields = {**self._fields}
            # Values that are set later belong to a copy.
            self._max_size = 0
            self._base = msgspec.structs.replace(self._begun(), fields=self._saved) if self._saved else None

    def _needs_store(self) -> bool:
        return self._is_loaded and (self._is_changed or self._is_touch_due())

    def _is_touch_due(self) -> bool:
        base, sessions = self._base, self._sessions
        return self._is_checked and base is not None and sessions.is_touch_due(base.deadline, base.expires, sessions.clock())

    async def _flush(self) -> None:
        work = self._exclusively(self._write)
        try:
            if self._is_end or self._begins is not None or not self._fields:
                # A cancellation doesn't interrupt a login or a logout.
                await uncancelled(work, self._report_unwritten)
            else:
                await work
        except BaseException:
            if self._saved is not None:
                self._discard()
            raise

    async def _write(self) -> None:
        """Note that the session ends or gets a new id, before the browser gets the cookie."""
        if self._fields is self._saved and not self._is_end and self._begins is None:
            return
        base, login = None if self._is_end else self._base, self._new_login()
        found = await (self._look_up_and_list(base) if login is None else self._look_up_login(base, login))
        if self._is_end:
            await self._end()
        elif base is not None and found is not None:
            await self._go_on(base, found)
        if found is None or (self._is_lost and not self._begins and self._base is None):
            self._fields, self._base = {}, None
            if not self._is_end:
                self._received = None
        self._is_end, self._begins = False, None
        self._is_checked = self._is_cookie_due = True
        if login is not None and self._fields:
            await self._ended.end_oldest(login.owner, _sealing.id_of(self._begun().raw_id))

    async def _end(self) -> None:
        """End every session that a cookie of this request holds."""
        base = () if self._base is None else (self._base,)
        sessions = {each.raw_id: each for each in (*base, *self._opened())}
        reason: Reason = "logout" if self._login_in(self._fields) is None else "login"
        await gather(*(self._end_and_note(self._ended.end_to_last, each, reason) for each in sessions.values()))
        self._base = None
        self._received = next(iter(sessions.values()), None)

    async def _end_and_note(self, end: Callable[[Ending], Awaitable[str | None]], session: Contents, reason: Reason) -> None:
        """Have *end* end a session, and note that if it was live."""
        try:
            handle = await end(_ending(session))
        except SessionStoreError as error:
            # The next attempt may find that it has ended.
            if error.is_unconfirmed:
                self._note_end(session, _sealing.id_of(session.raw_id), reason)
            raise
        if handle is None:
            return
        self._note_end(session, handle, reason)
        login = self._login_in(session.fields)
        if login is not None:
            # The list leaves out a session that has ended.
            with suppress(SessionStoreError):
                handles = {handle, _sealing.id_of(session.raw_id)}
                await self._ended.logins.remove_login(login.owner, login.nonce, handles, self._sessions.clock())

    def _note_removal(self, received: Contents, reason: Reason) -> None:
        """Do nothing: the end was noted when the store had it."""

    async def _go_on(self, base: Contents, found: Found) -> None:
        """Write to the session that the cookie holds, unless it has ended."""
        if found.ended_at is not None:
            self._lose(base, found.ended_at)
            return
        if self._fields and self._begins is None:
            return
        successor = None
        if self._fields:
            successor = _ending(self._begun())
            login = self._login_in(self._fields)
            if login is not None and login.since <= found.kept_at:
                # end_all() has kept the session, under its old id only.
                self._date_login(login, found.kept_at)
        try:
            was_live = await self._ended.end_once(_ending(base), successor) is not None
        except SessionStoreError as error:
            # The old id is dead, so the browser gets the new one.
            self._is_cookie_due = error.is_unconfirmed and successor is not None
            raise
        self._is_cookie_due = was_live and successor is not None
        # The browser may send the cookie of another session first, and would then be logged out.
        known = {base.raw_id, *(() if self._received is None else (self._received.raw_id,))}
        twins = [each for each in self._opened() if each.raw_id not in known]
        work = [self._end_and_note(self._ended.end_once, each, "login") for each in twins]
        login = self._login_in(self._fields)
        if self._is_cookie_due and login is not None and self._new_login() is None:
            work.append(self._list(login, former=_sealing.id_of(base.raw_id)))
        await gather(*work)
        if not was_live:
            self._lose(base, self._sessions.clock())
        elif not self._fields:
            self._note_end(base, _sealing.id_of(base.raw_id), "logout")
            self._base = None

    def _new_login(self) -> Login | None:
        """Return the login that this request has made, if any."""
        login = self._login_in(self._fields)
        before = None if self._base is None else self._login_in(self._base.fields)
        return None if login is None or (before is not None and before.since == login.since) else login

    async def _look_up_and_list(self, base: Contents | None) -> Found:
        """Return what the store knows of *base*, and have the list of logins know that it was used, if that is due."""
        sessions, reading = self._sessions, self._look_up(base)
        if base is not None and self._begins is None:
            deadline = sessions.deadline(sessions.clock(), base.expires)
            login = self._login_in(self._fields) if self._ended.is_listing_due(base.deadline, deadline) else None
            if login is not None:
                found, _ = await gather(reading, self._list(login))
                return found
        return await reading

    async def _look_up_login(self, base: Contents | None, login: Login) -> Found | None:
        """List the *login* of this request, and return what the store knows of *base*.

        None: the owner's sessions were ended after the login.
        """
        finding = self._ended.find(_sealing.id_of(self._begun().raw_id), login.owner, login.since)
        of_login, of_base, _ = await gather(finding, self._look_up(base), self._list(login, is_new=True))
        dated_from = of_login.kept_at
        if of_login.ended_at is not None:
            if of_login.ended_at <= self._sessions.clock() + MAX_SKEW:
                self._report_revoked()
                return None
            # The clock was set back since end_all().
            dated_from = of_login.ended_at
        if dated_from:
            await self._list(self._date_login(login, dated_from))
        return of_base

    async def _list(self, login: Login, *, is_new: bool = False, former: str | None = None) -> None:
        """Have sessions.list() find the session of a *login*, which had the handle *former* before."""
        contents, now, logins = self._begun(), self._sessions.clock(), self._ended.logins
        deadline = self._sessions.deadline(now, contents.expires)
        listed = Listed(_sealing.id_of(contents.raw_id), login.since, contents.created, contents.expires, deadline)
        if is_new:
            await logins.add(login.owner, login.nonce, listed, self._note, now)
        else:
            await logins.put(login.owner, login.nonce, listed, now, former=former)

    def _date_login(self, login: Login, ended_at: float) -> Login:
        """Date the login from the first instant after *ended_at*, so that only a later end_all() ends it; return it."""
        dated = msgspec.structs.replace(login, since=math.nextafter(ended_at, math.inf))
        self._put_login(dated)
        return dated

    def _report_revoked(self) -> None:
        self._reject("expired")
        self._sessions.warn_of_revocation(self._scope, self.id, self._ended.store)

    def _cookie(self) -> CookieValue | None:
        return super()._cookie() if self._is_loaded and self._is_cookie_due else None

    # What they share

    def _opened(self) -> list[Contents]:
        """Return every session that a cookie of this request holds, whether it has ended or not, in their order."""
        now, opened = self._sessions.clock(), list[Contents]()
        for token in self._sessions.tokens(self._scope):
            with suppress(msgspec.DecodeError):
                contents = self._sessions.keyring.open_token(token, decode_contents)
                if contents is not None and contents.deadline > now:
                    opened.append(contents)
        return opened

    def _login_in(self, fields: dict[str, bytes]) -> Login | None:
        """Return the login among the values of a session, or None for a visitor."""
        return login_in(fields.get(LOGIN), self._sessions.codec)

    async def _exclusively(self, work: Callable[[], Awaitable[None]]) -> None:
        """Do the *work*. A request has at most one in flight, so that concurrent reads look up its session once."""
        if self._lock is None:
            from asyncio import Lock  # noqa: PLC0415 - takes 20 ms to load, which a server has done

            self._lock = Lock()
        async with self._lock:
            try:
                await work()
            except SessionStoreError as error:
                self._failure = error
                self._sessions.counters.store_errors += 1
                log_extra(self._scope).update(session=self.id, driver=self._ended.store.name)
                raise


def _ending(contents: Contents) -> Ending:
    return Ending(_sealing.id_of(contents.raw_id), contents.expires)
