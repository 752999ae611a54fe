"""EndableCookieSession: a session in the browser's cookie, whose end a store remembers.

The first read asks the store whether the session has ended. A response that sends the cookie asks once more: a late one would
otherwise replace the cookie of a login with one that is dead. Of concurrent requests that end or renew a session, the first to
write its end continues, and the others lose the session.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from contextlib import suppress
from typing import Any, TypeVar, cast

import msgspec

from gaman_session import _sealing
from gaman_session._audit import Reason
from gaman_session._checked_cookie_session import CheckedCookieSession
from gaman_session._cookie_session import Contents
from gaman_session._driver import MAX_SKEW
from gaman_session._ended import Ending, Found
from gaman_session._errors import SessionStoreError, SessionTooLarge, SessionUnsupported
from gaman_session._gather import gather
from gaman_session._login import Login
from gaman_session._login_list import MAX_NOTE, login_of
from gaman_session._session_base import CookieValue
from gaman_session._sessions import Sessions
from gaman_session._uncancelled import uncancelled

T = TypeVar("T")


class EndableCookieSession(CheckedCookieSession):
    """A session in a cookie, with a store of ended sessions."""

    __slots__ = ("_note", "_saved")

    _note: bytes
    """The note of a login, as sessions.list() gets it; empty for none."""
    _saved: dict[str, bytes] | None
    """The values that save() was called with, if it has noted an end; the browser has to get them."""

    def __init__(self, sessions: Sessions, scope: MutableMapping[str, Any], is_closed: bool = False) -> None:
        super().__init__(sessions, scope, is_closed)
        self._note = b""
        self._saved = None

    @property
    def id(self) -> str | None:
        """The session's handle, or None if there is no session yet. A new id shows when it is written, as in a store."""
        self._is_ready()
        base = self._base
        return _sealing.id_of(base.raw_id) if base is not None and self._is_renewing() else super().id

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

    def _list_login(self, owner: str, note: Any) -> None:
        self._note = b"" if note is None else self._encode("note", note)
        if len(self._note) > MAX_NOTE:
            message = f"the note of a login has {len(self._note)} bytes, and in a list of sessions in cookies at most {MAX_NOTE}"
            raise SessionTooLarge(message, len(self._note), MAX_NOTE)

    def _since(self) -> float:
        login = None if self._base is None else self._login_in(self._base.fields)
        return 0 if login is None else login.since

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
            await self._undisturbed(self._write_and_go_on)

    async def _write_and_go_on(self) -> None:
        try:
            await self._write()
        finally:
            # Also after an error, if the browser gets the new id with it.
            if self._is_cookie_due:
                self._is_end, self._begins = False, None
                self._saved = self._fields = {**self._fields}
                # Values that are set later belong to a copy.
                self._max_size = 0
                self._base = msgspec.structs.replace(self._begun(), fields=self._saved) if self._saved else None

    def _needs_store(self) -> bool:
        return self._is_loaded and (self._is_changed or self._is_touch_due())

    def _is_touch_due(self) -> bool:
        base, sessions = self._base, self._sessions
        return self._is_checked and base is not None and sessions.is_touch_due(base.deadline, base.expires, sessions.clock())

    def _flush(self) -> Coroutine[Any, Any, None]:
        return self._undisturbed(self._write)

    async def _undisturbed(self, write: Callable[[], Awaitable[None]]) -> None:
        """Have *write* write the changes. A cancellation doesn't interrupt a login or a logout."""
        work = self._exclusively(write)
        try:
            if self._is_end or self._begins is not None or not self._fields:
                await uncancelled(work, self._report_unwritten)
            else:
                await work
        except BaseException:
            if self._saved is not None and not self._is_cookie_due:
                self._discard()
                self._is_cookie_due = True
            raise

    async def _write(self) -> None:
        """Note that the session ends or gets a new id, before the browser gets the cookie."""
        if self._fields is self._saved and not self._is_end and self._begins is None:
            return
        self._is_cookie_due = False
        login = self._new_login()
        handle = "" if login is None else _sealing.id_of(self._begun().raw_id)
        try:
            await self._write_session(login)
        finally:
            if login is not None and not (self._is_cookie_due and self._fields):
                # It was listed before it was written.
                await self._remove_from_list(login, {handle})
        if login is not None and self._fields:
            await self._ended.end_oldest(login.owner)

    async def _write_session(self, login: Login | None) -> None:
        """Do what _write() says, after a new *login*, if there is one."""
        base = None if self._is_end else self._base
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

    async def _end(self) -> None:
        """End every session that a cookie of this request holds."""
        base = () if self._base is None else (self._base,)
        sessions = {each.raw_id: each for each in (*base, *self._opened())}
        reason: Reason = "logout" if self._login_in(self._fields) is None else "login"
        try:
            await gather(*(self._end_and_note(self._ended.end_to_last, each, reason) for each in sessions.values()))
        except SessionStoreError as error:
            # The old id is dead, so the browser gets the new one.
            self._is_cookie_due = error.is_unconfirmed and bool(self._fields)
            raise
        self._base = None
        self._received = next(iter(sessions.values()), None)

    async def _end_and_note(self, end: Callable[[Ending], Awaitable[str | None]], session: Contents, reason: Reason) -> None:
        """Have *end* end a session, and note that if it was live."""
        own = _sealing.id_of(session.raw_id)
        try:
            handle = await end(_ending(session))
        except SessionStoreError as error:
            # The next attempt may find that it has ended.
            if error.is_unconfirmed:
                self._note_end(session, own, reason)
            raise
        if handle is not None:
            self._note_end(session, handle, reason)
            if (login := self._login_in(session.fields)) is not None:
                await self._remove_from_list(login, {own, handle})

    def _note_removal(self, received: Contents, reason: Reason) -> None:
        """Do nothing: the end was noted when the store had it."""

    async def _go_on(self, base: Contents, found: Found) -> None:
        """Write to the session that the cookie holds, unless it has ended."""
        if found.ended_at is not None:
            self._lose(base, found.ended_at)
            return
        if self._fields and self._begins is None:
            return
        login, before = self._login_in(self._fields), self._login_in(base.fields)
        if login is not None and login.since <= found.kept_at:
            # end_all() has kept the session, under its old id only.
            login = self._date_login(login, found.kept_at)
        contents = self._begun()
        successor = _ending(contents) if self._fields else None
        try:
            was_live = await self._ended.end_once(_ending(base), successor) is not None
        except SessionStoreError as error:
            # The old id is dead, so the browser gets the new one.
            self._is_cookie_due = error.is_unconfirmed and successor is not None
            raise
        # Another task of the request may have asked for one more id meanwhile.
        self._contents = contents
        self._is_cookie_due = was_live and successor is not None
        # The browser may send the cookie of another session first, and would then be logged out.
        known = {base.raw_id, *(() if self._received is None else (self._received.raw_id,))}
        twins = [each for each in self._opened() if each.raw_id not in known]
        work = [self._end_and_note(self._ended.end_once, each, "login") for each in twins]
        if self._is_cookie_due and login is not None and before is not None:
            former = _sealing.id_of(base.raw_id)
            is_same = login.nonce == before.nonce
            work.append(self._list(login, former=former) if is_same else self._remove_from_list(before, {former}))
        await gather(*work)
        if not was_live:
            self._lose(base, self._sessions.clock())
        elif not self._fields:
            self._note_end(base, _sealing.id_of(base.raw_id), "logout")
            self._base = None

    # The list of logins

    async def _look_up_and_list(self, base: Contents | None) -> Found:
        """Return what the store knows of *base*, and have the list know that it was used, if that is due."""
        sessions, reading = self._sessions, self._look_up(base)
        login = None if base is None or self._begins is not None else self._login_in(self._fields)
        if base is not None and login is not None:
            deadline = sessions.deadline(sessions.clock(), base.expires)
            if self._ended.is_listing_due(base.deadline, deadline) or self._is_sealed_anew():
                found, _ = await gather(reading, self._list(login))
                return found
        return await reading

    def _is_sealed_anew(self) -> bool:
        """Return whether the cookie moves to the newest secret, as the list does."""
        keyring = self._sessions.keyring
        return keyring.is_rotating and any(map(keyring.is_outdated, self._sessions.tokens(self._scope)))

    async def _look_up_login(self, base: Contents | None, login: Login) -> Found | None:
        """List the *login* of this request, and return what the store knows of *base*.

        None: the owner's sessions were ended after the login.
        """
        ended = self._ended
        finding = ended.find(_sealing.id_of(self._begun().raw_id), login.owner, login.since)
        newest = ended.newest(login.owner, login_of(login.nonce))
        results = await _settle(finding, self._look_up(base), newest, self._list(login, is_new=True))
        of_login, of_base, newest_since = cast("tuple[Found, Found, float]", results[:3])
        dated_from = max(of_login.kept_at, newest_since)
        if of_login.ended_at is not None:
            if of_login.ended_at <= self._sessions.clock() + MAX_SKEW:
                self._report_revoked()
                return None
            # The clock was set back since end_all().
            dated_from = of_login.ended_at
        if dated_from >= login.since:
            await self._list(self._date_login(login, dated_from))
        return of_base

    async def _list(self, login: Login, *, is_new: bool = False, former: str | None = None) -> None:
        """Have sessions.list() find the session of a *login*, which had the handle *former* before."""
        contents, now, ended = self._begun(), self._sessions.clock(), self._ended
        handle = _sealing.id_of(contents.raw_id)
        listed = ended.listed_at(handle, login.since, contents.created, contents.expires, now)
        if is_new:
            await ended.logins.add(login.owner, login_of(login.nonce), listed, self._note, now)
        else:
            await ended.logins.put(login.owner, login_of(login.nonce), listed, now, former=former)

    async def _remove_from_list(self, login: Login, handles: set[str]) -> None:
        # If it fails, list() leaves out a session that has ended, and has one that never began until that would have expired.
        with suppress(SessionStoreError):
            await self._ended.logins.remove_login(login.owner, login_of(login.nonce), handles, self._sessions.clock())

    def _date_login(self, login: Login, before: float) -> Login:
        """Date the login from the first instant after *before*, so that only a later end_all() ends it; return it."""
        dated = msgspec.structs.replace(login, since=math.nextafter(before, math.inf))
        self._put_login(dated)
        return dated

    def _report_revoked(self) -> None:
        self._reject("expired")
        self._sessions.warn_of_revocation(self._scope, self.id, self._ended.store)

    def _cookie(self) -> CookieValue | None:
        return super()._cookie() if self._is_loaded and self._is_cookie_due else None


def _ending(contents: Contents) -> Ending:
    return Ending(_sealing.id_of(contents.raw_id), contents.expires)


async def _settle(*work: Awaitable[object]) -> list[object]:
    """Return the results of *work* once all of it has ended; raise the first error."""
    results = await gather(*work, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results
