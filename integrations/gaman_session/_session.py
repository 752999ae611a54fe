"""Session: what a handler sees as ctx.session, wherever it is kept; and what the sessions of an application share."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Iterator, MutableMapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from inspect import iscoroutinefunction
from itertools import islice
from sys import _getframe as getframe
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn, TypeAlias, TypeVar, cast, overload

from gaman import find_cookies, log_extra
from gaman_session._awaitable import Done, Due, DueReading, SessionCall, later, reading, run
from gaman_session._counters import Counters, Rejection
from gaman_session._damage import Damage
from gaman_session._driver import Driver
from gaman_session._errors import (
    SessionClosed,
    SessionSerializationError,
    SessionTypeError,
    SessionUseError,
)
from gaman_session._owners import Owners
from gaman_session._sealing import OVERHEAD, Keyring
from gaman_session._serializer import MAX_DEPTH, TOO_DEEP, Codec

Answer: TypeAlias = tuple[str, int | None]
"""The cookie to send: its value, and for how many seconds to keep it, or None for as long as the browser runs."""

logger = logging.getLogger("gaman")

T = TypeVar("T")
D = TypeVar("D")

FOREVER: Final = 1000 * 365 * 86_400
"""Seconds: what clocks can still be asked for."""

# An idle limit is moved on once a tenth of it has passed, so that reading does not become writing.
_TOUCH_AFTER: Final = 0.1
_MISSING: Final = object()

_MAX_COOKIES: Final = 4
"""How many cookies of the session's name a request may have; the rest is ignored."""

END: Final[Answer] = ("", 0)
"""Have the browser forget the cookie."""

_SET, _DELETED, _CLEARED = Done("ctx.session.set"), Done("ctx.session.delete"), Done("ctx.session.clear")
_REGENERATED, _SET_OWNER = Done("ctx.session.regenerate"), Done("ctx.session.set_owner")


@dataclass(slots=True)
class Sessions:
    """What the sessions of an application share; times are seconds, *cookie_overhead* is what a cookie has beside its value."""

    driver: Driver | None
    keyring: Keyring
    codec: Codec
    max_age: int
    idle_timeout: int | None
    max_size: int
    encrypt: bool
    cookie_overhead: int
    cookie_name: str
    clock: Callable[[], float]
    damage: Damage
    max_sessions_per_owner: int | None = None
    counters: Counters = field(default_factory=Counters)
    is_sealed: bool = field(init=False)
    """Whether the store is not to know what it keeps. Where nobody but this process sees it, the key would lie beside it."""
    overhead: int = field(init=False)
    """By how many bytes a value in the store is longer than its encoding."""
    owners: Owners = field(init=False)

    def __post_init__(self) -> None:
        self.is_sealed = self.encrypt and self.driver is not None and self.driver.shared
        self.overhead = OVERHEAD if self.is_sealed else 0
        self.owners = Owners(
            self.driver,
            self.keyring,
            self.codec,
            self.damage,
            self.counters,
            self.clock,
            is_sealed=self.is_sealed,
            idle_timeout=self.idle_timeout,
            most=self.max_sessions_per_owner,
        )

    def deadline(self, now: float, expires: float) -> float:
        """Return when a session that is used *now* is over if nobody comes back to it."""
        return expires if self.idle_timeout is None else min(expires, now + self.idle_timeout)

    def is_touch_due(self, deadline: float, expires: float) -> bool:
        """Return whether it is time to move on the idle limit of a session."""
        idle = self.idle_timeout
        return idle is not None and deadline < expires and self.clock() >= deadline - idle * (1 - _TOUCH_AFTER)

    def terms(self, asked: int | None, lifetime: float | None, is_transient: bool) -> tuple[int, bool]:
        """Return the lifetime of a session that begins, and whether its cookie ends with the browser.

        What regenerate() *asked* for comes first, then what the session had, and then the server's limit.
        """
        if asked is not None:
            return asked or self.max_age, asked == 0
        return (self.max_age, False) if lifetime is None else (round(lifetime), is_transient)


def too_late_to_read() -> SessionClosed:
    """Return the error for a first read that caches of the response could not be told of any more."""
    return SessionClosed("the session is read for the first time after the response has begun; read it before")


def too_late_to_change() -> SessionClosed:
    """Return the error for a change that neither the browser nor the store would see any more."""
    return SessionClosed("the response has begun, so a change of the session would be lost; make it before")


def _no_text(call: str, key: object, more: str = "") -> SessionUseError:
    """Return the error for a key that isn't text."""
    return SessionUseError(f"a session's key is a str, not {key!r}: write `await ctx.session.{call}({str(key)!r}{more})`")


def changed(key: str, fn: Callable[[Any], T], value: Any) -> T:
    """Return `fn(value)`; SessionUseError if it has changed a list or a dict in place and returns nothing."""
    result = fn(value)
    if result is None and isinstance(value, (list, dict)):
        raise SessionUseError(
            f"update({key!r}): the function returned None for a {type(cast('object', value)).__name__}: have it return the new "
            "value, as in `lambda cart: [*cart, item]`"
        )
    return result


class Session(ABC):
    """The session of one request. Reading it costs at most one trip to the store, changing it at most one more.

    A key is a string. A value is anything that the serializer keeps; what comes back is a fresh copy each time. Changes wait in the
    request and go out together before the response's headers do, unless the request fails: an exception that is no HTTPError, and a
    response with a status of 500 or more, drop them.
    """

    __slots__ = ("_forgotten", "_has_cookie", "_is_closed", "_is_loaded", "_is_rejected", "_is_used", "_scope", "_sessions")

    _has_cookie: bool
    """Whether the request came with a cookie of that name, once it was looked for."""
    _is_rejected: bool

    def __init__(self, sessions: Sessions, scope: MutableMapping[str, Any]) -> None:
        self._sessions = sessions
        # Not the context, which holds the session: such a circle would have to wait for the garbage collector.
        self._scope = scope
        self._is_loaded = self._is_used = self._is_closed = False
        # The lines to log about calls that were never awaited; None once they are no longer logged.
        self._forgotten: tuple[str, ...] | None = ()

    @property
    @abstractmethod
    def id(self) -> str | None:
        """A handle of the session, safe to log, or None where there is no session yet; no cookie can be made of it."""

    @property
    @abstractmethod
    def is_new(self) -> bool:
        """Whether the request came without a session, as far as is known: a cookie counts as one until the first read."""

    @property
    def created_at(self) -> datetime | None:
        """When the session began or was last regenerated; None before the first read, and where there is none."""
        times = self._times()
        return None if times is None else datetime.fromtimestamp(times[0], UTC)

    @property
    def expires_at(self) -> datetime | None:
        """When the session is over if nobody comes back to it; None before the first read, and where there is none."""
        times = self._times()
        return None if times is None else datetime.fromtimestamp(times[1], UTC)

    # A call that reads returns a SessionCall, which type checkers report in a condition. One that changes something when it is
    # awaited returns a Coroutine to them, which they report where it is not awaited.

    @overload
    def get(self, key: str, default: None = None, *, type: None = None) -> SessionCall[Any]: ...
    @overload
    def get(self, key: str, default: object, *, type: None = None) -> SessionCall[Any]: ...
    @overload
    def get(self, key: str, default: None = None, *, type: type[T]) -> SessionCall[T | None]: ...
    @overload
    def get(self, key: str, default: D, *, type: type[T]) -> SessionCall[T | D]: ...
    def get(self, key: str, default: Any = None, *, type: Any = None) -> SessionCall[Any]:
        """Return the value under *key*, or *default* where there is none. SessionTypeError: it does not fit *type*."""
        if key.__class__ is not str and not isinstance(key, str):
            raise _no_text("get", key)
        call: Due[Any]
        if self._is_loaded or (self._needs_no_store and self._open()):
            # Unrolled, because most requests come by here.
            if (data := self._peek(key)) is None:
                value = default
            elif type is None:
                try:
                    value = self._sessions.codec.decoder.decode(data)
                except Exception as cause:
                    value = self._unreadable(key, default, None, cause)
            else:
                value = self._value(key, default, type)
            call = Due()
            call._value = value
        else:
            call = DueReading()
            call._work = Session._value, key, default, type
        # The stack tells where the call stands; a function of its own for this would cost as much again.
        frame = getframe(1)
        call._code, call._instruction = frame.f_code, frame.f_lasti
        call._name, call._reporter = "ctx.session.get", self
        return call

    def has(self, key: str) -> SessionCall[bool]:
        """Return whether *key* is there, whatever its value: 0, "", False and None are there."""
        if key.__class__ is not str and not isinstance(key, str):
            raise _no_text("has", key)
        call: Due[bool]
        if self._is_loaded or (self._needs_no_store and self._open()):
            call = Due()
            call._value = self._peek(key) is not None
        else:
            call = DueReading()
            call._work = Session._has, key, None, None
        frame = getframe(1)
        call._code, call._instruction = frame.f_code, frame.f_lasti
        call._name, call._reporter = "ctx.session.has", self
        return call

    def set(self, key: str, value: Any) -> SessionCall[None]:
        """Keep *value* under *key*; later changes to the object are not seen.

        Without a *type*, get() returns what the serializer makes of it: a list of a set or a tuple, and a string of a datetime that
        has no time zone.

        SessionSerializationError is raised for a value that can't be kept, such as one that is nested deeper than 100 levels,
        SessionTooLarge if the session would be too large, and SessionClosed after the response has begun. What this request hasn't
        read counts only when the change is written, so SessionTooLarge may come then.
        """
        if not isinstance(key, str):
            raise _no_text("set", key, ", ...")
        self._is_used = True
        if self._is_closed:
            raise too_late_to_change()
        self._put(key, self._encode(key, value))
        return _SET

    def delete(self, key: str) -> SessionCall[None]:
        """Remove *key*; nothing happens where it is not there. With the last key, the session ends, and its cookie goes."""
        if not isinstance(key, str):
            raise _no_text("delete", key)
        self._open_for_change()
        self._drop(key)
        return _DELETED

    def pop(self, key: str, default: Any = None) -> Coroutine[Any, Any, Any]:
        """Remove *key* and return its value, or *default* where there is none."""
        if not isinstance(key, str):
            raise _no_text("pop", key)
        return later(self, "ctx.session.pop", run(self._pop, key, default))

    def all(self) -> SessionCall[dict[str, Any]]:
        """Return every key with its value."""
        return reading(self, "ctx.session.all", Session._all, None)

    def clear(self) -> SessionCall[None]:
        """End the session: here at once, in the store and in the browser with the response. What is set later begins a new one."""
        self._open_for_change()
        self._clear()
        return _CLEARED

    def update(self, key: str, fn: Callable[[Any], T], default: Any = None) -> Coroutine[Any, Any, T]:
        """Replace the value under *key* by `fn(value)`, as one atomic step against every other request; return the new value.

        *fn* gets *default* where there is no value. It is called again where another request came in between, so it should do
        nothing but compute. The store has the value, and all that was set before, when this returns. SessionConflict: the store
        was still contended after many attempts. With the cookies driver, the step is atomic within this request alone.
        SessionUseError: *fn* isn't a plain function, or it returned None for a list or a dict, as `append` does.
        """
        if not isinstance(key, str):
            raise _no_text("update", key, ", ...")
        if not callable(fn) or iscoroutinefunction(fn):
            told = "an async function" if callable(fn) else f"a {type(fn).__name__}"
            raise SessionUseError(
                f"update() takes a plain function, not {told}: write `await ctx.session.update({key!r}, lambda value: ..., 0)`"
            )
        return later(self, "ctx.session.update", run(self._update, key, fn, default))

    def regenerate(self, *, max_age: int | None = None) -> SessionCall[None]:
        """Give the session a new id and keep its data; the old id is dead at once. Call it at login.

        *max_age* is the session's own lifetime from now, in seconds; without one it keeps the lifetime that it had. 0 stands for
        the server's limit, and a cookie that ends with the browser.
        """
        self._open_for_change()
        if max_age is not None and (not isinstance(max_age, int) or not 0 <= max_age <= FOREVER):
            raise SessionUseError(
                f"max_age is a whole number of seconds, 0 or more, below a thousand years; it can't be {max_age!r}"
            )
        self._renew(max_age)
        return _REGENERATED

    def set_owner(self, owner: str | None, *, note: Any = None) -> SessionCall[None]:
        """Tie the session to *owner*, such as "user:1", or with None to nobody, and keep *note* with it. Call it at login.

        `sessions = session(...)` then finds it: `sessions.list(owner)` and `sessions.end_all(owner)`. Like what is set, it goes out
        before the response's headers do. It survives regenerate(), and ends with the session, which needs a key to be there: a tag
        alone keeps none. The store sees a keyed hash of the owner; *note* is anything that the serializer keeps, and is sealed.

        If the owner's sessions are ended between this call and the response, what this request has changed is dropped, and the log
        says so.
        SessionUseError: the owner is empty, or no text. SessionUnsupported: the driver can't, as the cookies driver can't.
        """
        self._open_for_change()
        self._set_owner(owner, note)
        return _SET_OWNER

    def save(self) -> Coroutine[Any, Any, None]:
        """Bring what was changed to the store now. SessionStoreError: it is not there. SessionTooLarge: it was dropped instead."""
        return later(self, "ctx.session.save", run(self._save))

    if not TYPE_CHECKING:
        # What is written where a session is taken for a dict.

        def __getitem__(self, key: object) -> NoReturn:
            raise SessionUseError(f"a session isn't a dict: write `await ctx.session.get({key!r})`")

        def __setitem__(self, key: object, value: object) -> NoReturn:
            raise SessionUseError(f"a session isn't a dict: write `await ctx.session.set({key!r}, ...)`")

        def __delitem__(self, key: object) -> NoReturn:
            raise SessionUseError(f"a session isn't a dict: write `await ctx.session.delete({key!r})`")

        def __contains__(self, key: object) -> NoReturn:
            raise SessionUseError(f"a session isn't a dict: write `await ctx.session.has({key!r})`")

        def __iter__(self) -> NoReturn:
            raise SessionUseError("a session isn't a dict: write `await ctx.session.all()`")

        def __len__(self) -> NoReturn:
            raise SessionUseError("a session isn't a dict: write `len(await ctx.session.all())`")

        def __bool__(self) -> NoReturn:
            raise SessionUseError("a session is there for every visitor: write `await ctx.session.has(...)`")

    # What the integration calls, and what each place that keeps a session does its own way.

    _needs_no_store: ClassVar[bool] = False
    """Whether _open() loads the session. A class that sets it has that method; a store's session pays for no call to find out."""

    def _open(self) -> bool:
        """Load a session that needs no store, and return True."""
        raise NotImplementedError  # get() and has() call it only where _needs_no_store is set

    @abstractmethod
    def _load(self, key: str | None) -> Awaitable[None] | None:
        """Have ready what is needed to know *key*, or with None all there is; return what has to be awaited for it."""

    @abstractmethod
    def _peek(self, key: str) -> bytes | None:
        """Return the encoded value of *key* as this request sees it, from what is ready."""

    @abstractmethod
    def _keys(self) -> Iterable[str]: ...

    @abstractmethod
    def _times(self) -> tuple[float, float] | None: ...

    @abstractmethod
    def _put(self, key: str, data: bytes) -> None: ...

    @abstractmethod
    def _drop(self, key: str) -> None: ...

    @abstractmethod
    def _clear(self) -> None: ...

    @abstractmethod
    def _renew(self, max_age: int | None) -> None: ...

    @abstractmethod
    async def _update(self, key: str, fn: Callable[[Any], T], default: Any) -> T: ...

    @abstractmethod
    def _set_owner(self, owner: str | None, note: Any) -> None: ...

    @abstractmethod
    async def _save(self) -> None: ...

    @abstractmethod
    def _discard(self) -> None:
        """Drop what the request has changed and not saved."""

    @abstractmethod
    def _finish(self) -> Awaitable[Answer | None] | Answer | None:
        """Bring the changes to where they are kept, and return the cookie to send, or None for none."""

    def _cookie(self) -> Answer | None:
        """Return the cookie to send after a failed _finish(), if the session was begun, renamed or ended before that; else None."""
        return None

    def _outlive(self) -> None:  # noqa: B027 - only a session that can have an owner has something to do
        """Have a tag that waits to go out count as made only now."""

    async def _find_out(self) -> None:  # noqa: B027 - only a store knows which sessions are live
        """See which of the request's cookies leads to the session that *id* is to name."""

    def _tokens(self) -> Iterator[str]:
        """Return the values of the request's cookies with the session's name, in order, and at most _MAX_COOKIES of them."""
        return islice(find_cookies(self._scope["headers"], self._sessions.cookie_name), _MAX_COOKIES)

    def _open_for_change(self) -> None:
        self._is_used = True
        if self._is_closed:
            raise too_late_to_change()

    def _value(self, key: str, default: Any, type: Any) -> Any:
        """Return what get() gives, from what is ready."""
        data = self._peek(key)
        if data is None:
            return default
        try:
            codec = self._sessions.codec
            if type is None:
                return codec.decoder.decode(data)
            try:
                decoder = codec.decoders[type]
            except (KeyError, TypeError):
                # In here, what learn() raises would seem to come of this.
                decoder = None
            return (decoder or codec.learn(type)).decode(data)
        except Exception as cause:
            return self._unreadable(key, default, type, cause)

    def _has(self, key: str, *_: object) -> bool:
        return self._peek(key) is not None

    async def _pop(self, key: str, default: Any) -> Any:
        self._open_for_change()
        if not self._is_loaded and (loading := self._load(key)) is not None:
            await loading
        value = self._value(key, default, None)
        self._drop(key)
        return value

    def _all(self, *_: object) -> dict[str, Any]:
        values = {key: self._value(key, _MISSING, None) for key in self._keys()}
        return {key: value for key, value in values.items() if value is not _MISSING}

    def _report_forgotten(self, told: str) -> None:
        """Have logged, once the response begins, that a call was never awaited.

        A request that fails or is cancelled before then may have been about to await it.
        """
        # Once for each line of a handler, because a loop may repeat it as often as a visitor likes.
        if self._forgotten is not None and told not in self._forgotten:
            self._is_used = True
            self._forgotten = (*self._forgotten, told)
            if self._is_closed:
                self._tell_forgotten()

    def _tell_forgotten(self) -> None:
        """Log the calls that were never awaited."""
        told, self._forgotten = self._forgotten, ()
        for each in told or ():
            logger.error("%s", each, extra=log_extra(self._scope))

    def _encode(self, key: str, value: Any) -> bytes:
        codec = self._sessions.codec
        try:
            key.encode()
            data = codec.encoder.encode(value)
            if data.__class__ is not bytes:
                raise TypeError(f"the serializer gave a {type(data).__name__}, not bytes")
            if codec.check_depth is not None and len(data) > MAX_DEPTH:
                codec.check_depth(data)
            return data
        except MemoryError:
            raise
        except Exception as cause:
            if isinstance(value, Coroutine):
                name = getattr(cast("object", value), "__qualname__", "?")
                value.close()
                raise SessionSerializationError(
                    f"the session can't keep {key!r}, the coroutine {name!r}: write `await` before that call"
                ) from None
            reason = TOO_DEEP if isinstance(cause, RecursionError) else cause
            raise SessionSerializationError(f"the session can't keep {key!r}, a {type(value).__name__}: {reason}") from cause

    def _unreadable(self, key: str, default: Any, type: Any, cause: Exception) -> Any:
        if isinstance(cause, (RecursionError, MemoryError)):
            # This says something of the process, and nothing of the value.
            raise cause
        if type is not None:
            raise SessionTypeError(f"the session's {key!r} is no {getattr(type, '__name__', type)}: {cause}") from cause
        self._report_damage(key)
        return default

    def _report_damage(self, key: str) -> None:
        self._reject("unreadable")
        self._sessions.damage.report(self.id, f"the value of {key!r}", log_extra(self._scope))

    def _reject(self, reason: Rejection) -> None:
        """Count, once a request, that the session it came with was turned down."""
        if not hasattr(self, "_is_rejected"):
            self._is_rejected = True
            self._sessions.counters.reject(reason)
