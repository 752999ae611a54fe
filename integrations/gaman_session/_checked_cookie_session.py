"""CheckedCookieSession: a session in the browser's cookie that is read only after a store was asked whether it has ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import msgspec

from gaman import log_extra
from gaman_session import _sealing
from gaman_session._cookie_session import Contents, CookieSession, decode_contents
from gaman_session._driver import TOMBSTONE
from gaman_session._ended import EndedSessions, Found
from gaman_session._ended_store import MAX_COOKIE_AGE
from gaman_session._errors import SessionStoreError
from gaman_session._login import LOGIN, Login, login_in
from gaman_session._sessions import Sessions

if TYPE_CHECKING:
    from asyncio import Lock

T = TypeVar("T")

LIVE: Final = Found(None, 0)


class CheckedCookieSession(CookieSession):
    """A session in a cookie, as far as it is read."""

    __slots__ = ("_base", "_begins", "_ended", "_is_checked", "_is_cookie_due", "_is_end", "_is_lost", "_lock")

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

    def __init__(self, sessions: Sessions, scope: MutableMapping[str, Any], is_closed: bool = False) -> None:
        super().__init__(sessions, scope, is_closed)
        self._ended = cast("EndedSessions", sessions.owners)
        self._lock: Lock | None = None
        self._is_checked = False

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
            return LIVE
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
        fields = {key: data for key, data in self._fields.items() if base.fields.get(key) is not data}
        if self._new_login() is None:
            # The login was only dated anew.
            fields.pop(LOGIN, None)
        self._received, self._base, self._fields = None, None, fields
        self._max_size = 0
        if self._begins is None:
            self._contents = None

    def _new_login(self) -> Login | None:
        """Return the login that this request has made, if any."""
        login = self._login_in(self._fields)
        before = None if self._base is None else self._login_in(self._base.fields)
        return None if login is None or (before is not None and before.nonce == login.nonce) else login

    def _opened(self) -> list[Contents]:
        """Return every session that a cookie of this request holds, whether it has ended or not, in their order."""
        now, opened = self._sessions.clock(), dict[bytes, Contents]()
        for token in self._sessions.tokens(self._scope):
            with suppress(msgspec.DecodeError):
                contents = self._sessions.keyring.open_token(token, decode_contents)
                if contents is not None and contents.deadline > now:
                    opened.setdefault(contents.raw_id, contents)
        return [*opened.values()]

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
