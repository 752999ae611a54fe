"""Session: what a handler sees as ctx.session, wherever the session is kept."""

from __future__ import annotations

import logging
from collections.abc import Callable, Coroutine, MutableMapping
from datetime import UTC, datetime
from inspect import iscoroutinefunction
from sys import _getframe as getframe
from typing import Any, Final, TypeVar, overload

from gaman import HTTPError, log_extra
from gaman.errors import a_type
from gaman_session._awaitable import Done, Place, Ready, SessionCall, deferred, reading, ready, run
from gaman_session._errors import SessionTypeError, SessionUseError
from gaman_session._login import LOGIN, Logins, check_change, check_max_age
from gaman_session._sessions import Sessions

logger = logging.getLogger("gaman")

T = TypeVar("T")
D = TypeVar("D")

_MISSING: Final = object()

_SET, _DELETED, _CLEARED = Done("session.set"), Done("session.delete"), Done("session.clear")
_REGENERATED, _SET_OWNER = Done("session.regenerate"), Done("session.set_owner")


class Session(Logins):
    """The session of one request. Reading it costs at most one round trip to the store, and writing it at most one more.

    A key is a string. A value is anything that the serializer supports; get() returns a fresh copy each time. Changes are pending
    until the response begins, and are then written together. A request that fails drops them: its handler raises an exception other
    than HTTPError, or its response has a status of 500 or more.
    """

    __slots__ = ("_failure",)

    _failure: HTTPError | None
    """The error of the last call, if it should be the response, until the response begins. Its traceback refers to the session."""

    def __init__(self, sessions: Sessions, scope: MutableMapping[str, Any], is_closed: bool = False) -> None:
        super().__init__("ctx.session")
        self._sessions = sessions
        # The scope and not the context, which refers to the session: only the garbage collector would free such a cycle.
        self._scope = scope
        self._is_used, self._is_closed = False, is_closed
        self._dict = None

    @property
    def created_at(self) -> datetime | None:
        """When the session began or was last regenerated; None before the first read, and if there is no session."""
        self._follow_dict()
        times = self._times()
        return None if times is None else datetime.fromtimestamp(times[0], UTC)

    @property
    def expires_at(self) -> datetime | None:
        """When the session expires unless it is used again; None before the first read, and if there is no session."""
        self._follow_dict()
        times = self._times()
        return None if times is None else datetime.fromtimestamp(times[1], UTC)

    # A call that reads returns a SessionCall, which type checkers report in a condition. A call that changes something when it is
    # awaited returns a Coroutine to them, which they report without `await`.

    @overload
    def get(self, key: str, default: None = None, *, type: None = None) -> SessionCall[Any]: ...
    @overload
    def get(self, key: str, default: object, *, type: None = None) -> SessionCall[Any]: ...
    @overload
    def get(self, key: str, default: None = None, *, type: type[T]) -> SessionCall[T | None]: ...
    @overload
    def get(self, key: str, default: D, *, type: type[T]) -> SessionCall[T | D]: ...
    def get(self, key: str, default: Any = None, *, type: Any = None) -> SessionCall[Any]:
        """Return the value of *key*, or *default* if it is missing. SessionTypeError: the value doesn't fit *type*.

        `user = await ctx.session.get("user", type=User)`
        """
        if not isinstance(key, str) or key == LOGIN:
            raise self._key_error("get", key)
        # _follow_dict() without a call, where there is no dict.
        if self._dict is not None:
            self._follow_dict()
        if not self._is_ready():
            return reading(self, "get", Session._value, key, default, type)
        # _value() and ready() unrolled: this saves 2 % of a request that reads a session in a cookie.
        if type is not None:
            value = self._value(key, default, type)
        elif (data := self._peek(key)) is None:
            value = default
        else:
            try:
                value = self._sessions.codec.decoder.decode(data)
            except Exception as cause:
                value = self._undecodable(key, default, None, cause)
        frame = getframe(1)
        if self._due is not None:
            return ready(self, "get", value, frame)
        self._due = "get", frame.f_code, frame.f_lasti
        call: Ready[Any] = Ready()
        call._maker, call._name, call._value = self, "get", value
        return call

    def has(self, key: str) -> SessionCall[bool]:
        """Return whether *key* exists, whatever its value: 0, "", False and None exist."""
        if not isinstance(key, str) or key == LOGIN:
            raise self._key_error("has", key)
        self._follow_dict()
        if self._is_ready():
            return ready(self, "has", self._peek(key) is not None, getframe(1))
        return reading(self, "has", Session._has, key)

    def set(self, key: str, value: Any) -> SessionCall[None]:
        """Set *key* to *value*, which is encoded at once: later changes to the object have no effect.

        Without a *type*, get() returns the serializer's version of the value: a list for a set or a tuple, and a string for a
        datetime without a time zone.

        SessionSerializationError: the value can't be encoded, for example because it is nested deeper than 100 levels.
        SessionTooLarge: the session would be too large; if this request hasn't read it, the flush may raise this instead.
        SessionClosed: the response has begun.
        """
        if not isinstance(key, str) or key == LOGIN:
            raise self._key_error("set", key, ", ...")
        self._open_for_change()
        self._put(key, self._sessions.codec.encode(key, value))
        return _SET

    def delete(self, key: str) -> SessionCall[None]:
        """Remove *key*, if it exists. Without a login, removing the last key ends the session."""
        if not isinstance(key, str) or key == LOGIN:
            raise self._key_error("delete", key)
        self._open_for_change()
        self._drop(key)
        return _DELETED

    def pop(self, key: str, default: Any = None) -> Coroutine[Any, Any, Any]:
        """Remove *key* and return its value, or *default* if it is missing."""
        if not isinstance(key, str) or key == LOGIN:
            raise self._key_error("pop", key)
        return deferred(self, "pop", run(self._pop, key, default))

    def all(self) -> SessionCall[dict[str, Any]]:
        """Return all keys with their values."""
        self._follow_dict()
        return reading(self, "all", Session._all, None)

    def clear(self) -> SessionCall[None]:
        """End the session: for this request at once, in the store and the browser with the response.

        A later set() begins a new session.
        """
        self._open_for_change()
        self._clear()
        return _CLEARED

    def update(self, key: str, fn: Callable[[Any], T], default: Any = None) -> Coroutine[Any, Any, T]:
        """Replace the value of *key* by `fn(value)`, as one atomic step against all other requests; return the new value.

        `visits = await ctx.session.update("visits", lambda n: n + 1, 0)`

        *fn* gets *default* if the key is missing. It is called again if another request wrote in between, so it should only
        compute. When this returns, the store has the value and every earlier change of this request. With the cookies driver, the
        step is atomic only within this request.

        SessionConflict: the key was still contended after many attempts. SessionUseError: *fn* isn't a plain function, or returned
        None for a list or a dict, as `append` does.
        """
        if not isinstance(key, str) or key == LOGIN:
            raise self._key_error("update", key, ", ...")
        if not callable(fn) or iscoroutinefunction(fn):
            given = "an async function" if callable(fn) else a_type(fn)
            raise SessionUseError(
                f"update() takes a plain function, not {given}: write `await {self._name}.update({key!r}, lambda value: ..., 0)`"
            )
        return deferred(self, "update", run(self._update, key, fn, default))

    def regenerate(self, *, max_age: int | None = None) -> SessionCall[None]:
        """Give the session a new id and keep its data; the old id is dead at once. login() does so by itself.

        `await ctx.session.regenerate()` belongs where rights change.

        *max_age* is the session's own lifetime from now, in seconds; without it, the session keeps its lifetime. 0 means the
        server's limit, and a cookie that ends with the browser.
        """
        self._open_for_change()
        check_max_age(max_age)
        self._renew(max_age)
        return _REGENERATED

    def set_owner(self, owner: str | None, *, note: Any = None) -> SessionCall[None]:
        """Set the session's owner, such as "user:1", and a *note* for lists of sessions; None removes the owner.

        login() does so by itself, and a session that is logged in keeps its owner. There,
        `await ctx.session.set_owner(f"user:{user.id}", note="Firefox on Linux")` changes the note.

        `sessions = session(...)` then finds the session: `sessions.list(owner)`, `sessions.end_all(owner)`. Like any change, the
        owner is written before the response's headers. It survives regenerate(), and needs a session with at least one key. The
        store sees only a keyed hash of the owner; *note* is any value that the serializer supports, and is sealed.

        If end_all() ends the owner's sessions between this call and the response, this request's changes are dropped and logged.
        SessionUseError: the owner isn't text, is empty, or isn't the one that is logged in; the flush raises this if the request
        hasn't read the session. SessionUnsupported: the driver has no owners, like the cookies driver.
        """
        self._open_for_change()
        if self._is_ready():
            check_change(self._login(), owner)
        self._set_owner(owner, note)
        return _SET_OWNER

    def save(self) -> Coroutine[Any, Any, None]:
        """Write the pending changes now. SessionStoreError: they aren't written. SessionTooLarge: they are dropped."""
        return deferred(self, "save", run(self._save))

    # What the integration calls

    def _close(self) -> bool:
        """Refuse changes from now on, and return whether the request has used the session.

        SessionUseError names the calls that were never awaited; the changes are dropped.
        """
        self._is_closed, self._failure = True, None
        if self._due or self._more_due:
            self._discard()
            raise SessionUseError("; ".join(self._take_lines()))
        return self._is_used

    def _fail(self, *, keeps_changes: bool) -> None:
        """Drop the changes of a request that failed, unless it *keeps_changes*. It may have been about to await its due calls."""
        self._failure = None
        self._forget_due()
        self._log_unawaited()
        if not keeps_changes:
            self._discard()

    def _end_handshake(self) -> None:
        """Allow only what needs no cookie from now on, because a WebSocket was accepted."""
        # What the handshake hasn't read can still be read afterwards.
        self._is_closed = False
        self._is_ready()
        self._is_closed = True

    def _has_changes(self) -> bool:
        """Return whether there are changes that weren't written."""
        return False

    # What they share

    def _value(self, key: str, default: Any, type: Any) -> Any:
        """Return the value of *key*, once it is readable; *default* if it is missing or damaged."""
        data = self._peek(key)
        if data is None:
            return default
        try:
            codec = self._sessions.codec
            return (codec.decoder if type is None else codec.decoder_of(type)).decode(data)
        except Exception as cause:
            return self._undecodable(key, default, type, cause)

    def _undecodable(self, key: str, default: Any, type: Any, cause: Exception) -> Any:
        """Return *default* and report the damage, or raise SessionTypeError if a *type* was asked for."""
        if isinstance(cause, (RecursionError, MemoryError)):
            # The process is at its limits, and the value isn't at fault.
            raise cause
        if type is not None:
            raise SessionTypeError(f"the session's {key!r} doesn't fit {getattr(type, '__name__', type)}: {cause}") from cause
        self._reject("unreadable")
        self._sessions.damage.report(self.id, f"the value of {key!r}", log_extra(self._scope))
        return default

    def _has(self, key: str, *_: object) -> bool:
        return self._peek(key) is not None

    async def _pop(self, key: str, default: Any) -> Any:
        self._open_for_change()
        value = await self._read(Session._value, key, default)
        self._drop(key)
        return value

    def _all(self, *_: object) -> dict[str, Any]:
        values = {key: self._value(key, _MISSING, None) for key in self._keys()}
        return {key: value for key, value in values.items() if value is not _MISSING}

    def _report(self, place: Place) -> None:
        if self._is_closed:
            logger.error("%s", self._line(place), extra=log_extra(self._scope))
        else:
            # _close() reports it.
            self._remember(place, place)

    def _report_unwritten(self, error: Exception) -> None:
        """Log the *error* of a write that has ended after its request was cancelled."""
        extra = log_extra(self._scope)
        message = "%s %r was cancelled, and its session could not be written: %s: %s"
        logger.error(message, extra["method"], extra["path"], type(error).__name__, error, extra=extra)

    def _log_unawaited(self) -> None:
        for line in self._take_lines():
            logger.error("%s", line, extra=log_extra(self._scope))
