"""Logins: login(), confirm() and logout() of a session, and what it knows of its login."""

from __future__ import annotations

import logging
from collections.abc import Coroutine
from datetime import UTC, datetime
from math import inf
from os import urandom
from typing import Any, Final, Literal

import msgspec

from gaman import log_extra
from gaman_session._awaitable import Done, SessionCall, deferred, reading, run
from gaman_session._driver import MAX_SKEW
from gaman_session._errors import SessionLoginRequired, SessionUseError
from gaman_session._owners import check_owner
from gaman_session._serializer import Codec
from gaman_session._session_base import SessionBase
from gaman_session._sessions import MAX_LIFETIME

logger = logging.getLogger("gaman")

LOGIN: Final = "gaman.login"
"""The key of the login among the values of a session. The application can neither read nor set it."""

_MAX_LEVEL: Final = 9
_NONCE: Final = 16
_LOGGED_OUT: Final = Done("session.logout")


class Login(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """A login, as the session stores it. Times are seconds since the epoch."""

    owner: str
    """Empty in a session that began for a csrf_token()."""
    since: float
    """When login() was called, or later: an end_all() that keeps the session may date it anew."""
    confirmed: list[float]
    """When each level was last confirmed. The first is level 1, the login itself."""
    nonce: str
    """What the tokens of csrf_token() are bound to. A login has a new one; confirm() and regenerate() keep it."""


class Logins(SessionBase):
    """The calls of a session that have to do with its login."""

    __slots__ = ()

    def login(self, owner: str, *, max_age: int | None = None, note: Any = None, fresh: bool = False) -> Coroutine[Any, Any, None]:
        """Log in *owner*, such as "user:1": the session gets a new id, the owner, and a new `authenticated_at`.

            await ctx.session.login(f"user:{user.id}", note="Firefox on Linux", max_age=30 * 86_400)

        The old id is dead at once. The session keeps its data, such as a cart; with *fresh*, only what this request has set. If
        another owner was logged in, it keeps nothing from before this call. *max_age* is its lifetime from now, in seconds; 0 means
        the server's limit, and a cookie that ends with the browser. `sessions.list(owner)` shows the *note*.

        SessionUseError: the owner isn't text, or is empty.
        """
        return deferred(self, "login", run(self._log_in, owner, max_age, note, fresh))

    def logout(self) -> SessionCall[None]:
        """End the session: for this request at once, in the store and the browser with the response. The same as clear()."""
        self._open_for_change()
        self._clear()
        return _LOGGED_OUT

    def confirm(self, level: int | None = None) -> Coroutine[Any, Any, None]:
        """Note that the user has authenticated again: the session gets a new id and a new `authenticated_at`.

            if verify(await ctx.input("password"), user.password_hash):
                await ctx.session.confirm()

        *level* is what the user has proved, from 1, the default; the application defines it, such as 2 for a second factor. A
        level includes those below it. Forms in other tabs stay valid, unlike after a login. A concurrent logout wins.
        SessionLoginRequired, which is answered with 401: the session has no login.
        """
        return deferred(self, "confirm", run(self._confirm, level))

    def csrf_token(self) -> Coroutine[Any, Any, str]:
        """Return a token for forms of browsers that send neither `Sec-Fetch-Site` nor `Origin`; see check_csrf().

            f'<input type="hidden" name="csrf_token" value="{await ctx.session.csrf_token()}">'

        Each call returns a different text, which is valid until the session's next login or logout. confirm() and regenerate()
        keep it valid after a login; before one, a new id may make it invalid. A visitor without a session gets one.
        """
        return deferred(self, "csrf_token", run(self._csrf_token))

    def is_csrf_token(self, token: str) -> SessionCall[bool]:
        """Return whether *token* is one that csrf_token() returned for this session."""
        return reading(self, "is_csrf_token", Logins._is_csrf_token, LOGIN, token)

    def owner(self) -> SessionCall[str | None]:
        """Return the owner that login() was given, or None without a login."""
        return reading(self, "owner", Logins._owner, LOGIN)

    def is_fresh(self, seconds: float, *, level: int = 1) -> SessionCall[bool]:
        """Return whether the login or its last confirm(), at *level* or above, is at most that many *seconds* ago.

        `if not await ctx.session.is_fresh(300): return Response.redirect("/confirm")`
        """
        check_age(seconds)
        check_level(level)
        return reading(self, "is_fresh", Logins._is_fresh, LOGIN, seconds, level)

    @property
    def authenticated_at(self) -> datetime | None:
        """When login() or confirm() was called last; None before the first read, and without a login."""
        self._is_ready()
        login = self._login()
        return None if login is None else datetime.fromtimestamp(login.confirmed[0], UTC)

    async def _log_in(self, owner: str, max_age: int | None, note: Any, fresh: bool) -> None:
        check_owner(owner)
        check_max_age(max_age)
        self._encode("note", note)
        self._open_for_change()
        login = await self._read(Logins._login, LOGIN)
        # First, because it raises if the browser can't get a new id any more.
        self._renew(max_age, begins=True)
        if login is not None and login.owner != owner:
            # Data of one user must not become another's.
            self._clear()
            self._renew(max_age)
        elif fresh:
            self._restart()
            self._renew(max_age)
        # `since` differs from the time of every end_all(), so the two have an order.
        since = self._sessions.owners.instant()
        self._put_login(Login(owner, since, [self._sessions.clock()], urandom(_NONCE).hex()))
        self._list_login(owner, note)

    async def _confirm(self, level: int | None) -> None:
        check_level(level := 1 if level is None else level)
        self._open_for_change()
        login = await self._read(Logins._login, LOGIN)
        if login is None:
            # Not a warning, because a session may expire while its user types the password.
            extra = log_extra(self._scope)
            message = "%s %r: confirm() found no login; if the user has just logged in, call login() first"
            logger.info(message, extra["method"], extra["path"], extra=extra)
            raise SessionLoginRequired
        now = self._sessions.clock()
        # A login of this request isn't lost to a concurrent logout.
        self._renew(None, begins=None if self._has_set(LOGIN) else False)
        self._put_login(Login(login.owner, login.since, [now] * level + login.confirmed[level:], login.nonce))

    async def _csrf_token(self) -> str:
        binding = await self._read(Logins._csrf_binding, LOGIN)
        if binding is None or (binding == self.id and self._is_renewing()):
            self._open_for_change()
            binding = urandom(_NONCE).hex()
            self._put_login(Login("", 0, [], binding))
        return self._sessions.keyring.seal_csrf(binding)

    def _is_csrf_token(self, key: str, token: str, _: object) -> bool:
        binding = self._csrf_binding()
        return binding is not None and isinstance(token, str) and self._sessions.keyring.proves_csrf(token, binding)

    def _csrf_binding(self, *_: object) -> str | None:
        """Return what tokens are bound to: the login or, before one, the session's id. None without a session."""
        login = self._stored_login()
        if login is not None:
            return login.nonce
        return None if self.is_new else self.id

    def _login(self, *_: object) -> Login | None:
        """Return the session's login, once it is readable; None for a visitor."""
        login = self._stored_login()
        return login if login is not None and login.owner else None

    def _stored_login(self) -> Login | None:
        """Return what login() or csrf_token() has stored, or None if there is nothing or it is unreadable."""
        self._follow_dict()
        data = self._peek(LOGIN)
        if data is None:
            return None
        login = _stored_login_in(data, self._sessions.codec)
        if login is None:
            # Written by another version of this package.
            self._reject("unreadable")
        return login

    def _put_login(self, login: Login) -> None:
        # A list, because every serializer can encode it, and the login should be stored like the other values.
        self._put(LOGIN, self._encode(LOGIN, [login.owner, login.since, login.confirmed, login.nonce]))

    def _owner(self, *_: object) -> str | None:
        login = self._login()
        return None if login is None else login.owner

    def _is_fresh(self, key: str, seconds: float, level: int) -> bool:
        login = self._login()
        times = [] if login is None else login.confirmed[level - 1 :]
        # A time in the future is from before the clock was set back, and may be old.
        return -MAX_SKEW <= self._sessions.clock() - max(times, default=-inf) < seconds


# Python's own errors about arguments name the class in which a method is written.
for _name in ("login", "logout", "confirm", "csrf_token", "is_csrf_token", "owner", "is_fresh"):
    getattr(Logins, _name).__qualname__ = f"Session.{_name}"


def login_in(data: bytes | None, codec: Codec) -> Login | None:
    """Return the login that *data* holds, or None for a visitor, or if there is none or it is unreadable."""
    login = None if data is None else _stored_login_in(data, codec)
    return login if login is not None and login.owner else None


def _stored_login_in(data: bytes, codec: Codec) -> Login | None:
    """Return what login() or csrf_token() has stored as *data*, or None if it is unreadable."""
    try:
        return msgspec.convert(codec.decoder.decode(data), Login)
    except (RecursionError, MemoryError):
        # The process is at its limits, and the login isn't at fault.
        raise
    except Exception:
        # A serializer may raise anything.
        return None


def kind_of_renewal(before: Login | None, after: Login | None) -> tuple[Literal["logged in", "confirmed", "renewed"], int | None]:
    """Return what gave a session its new id, by its login *before* and *after*, and which level was given, if any."""
    if after is None or before == after:
        return "renewed", None
    kind: Final = "confirmed" if before is not None and before.nonce == after.nonce else "logged in"
    return kind, after.confirmed.count(after.confirmed[0])


def check_change(login: Login | None, owner: str | None) -> None:
    """Raise SessionUseError if set_owner() gives a session with this *login* another *owner*, so that the two would disagree."""
    if login is not None and login.owner != owner:
        raise SessionUseError(
            f"set_owner({owner!r}): {login.owner!r} is logged in; write `await session.login(...)` for another owner, or "
            "`await session.logout()`"
        )


def check_max_age(max_age: object) -> None:
    """Raise SessionUseError if *max_age* is neither None nor a lifetime of a session."""
    if max_age is not None and (not isinstance(max_age, int) or not 0 <= max_age <= MAX_LIFETIME):
        raise SessionUseError(f"max_age is a whole number of seconds, 0 or more, below a thousand years; it can't be {max_age!r}")


def check_age(seconds: object) -> None:
    """Raise SessionUseError if *seconds* can't be the age of a login."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
        raise SessionUseError(f"the age of a login is a number of seconds above 0, such as 300; it can't be {seconds!r}")


def check_level(level: object) -> None:
    """Raise SessionUseError if *level* can't be the level of a confirmation."""
    if isinstance(level, bool) or not isinstance(level, int) or not 1 <= level <= _MAX_LEVEL:
        raise SessionUseError(f"a level is 1 for a password, 2 for a second factor, up to {_MAX_LEVEL}; it can't be {level!r}")
