"""SessionBase: what a session in a cookie and a session in a store do each in its own way."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterable, MutableMapping
from typing import Any, Final, TypeAlias, TypeVar

from gaman_session._awaitable import MakesCalls
from gaman_session._counters import Rejection
from gaman_session._errors import too_late_to_change
from gaman_session._misuse import NotADict
from gaman_session._sessions import Sessions

CookieValue: TypeAlias = tuple[str, int | None]
"""The value of the cookie to send, and its Max-Age in seconds; None for a cookie that ends with the browser."""

REMOVED: Final[CookieValue] = ("", 0)
"""Removes the cookie from the browser."""

T = TypeVar("T")


class SessionBase(NotADict, MakesCalls, ABC):
    """What the calls of a session are made of."""

    __slots__ = ("_dict", "_is_closed", "_is_used", "_scope", "_sessions")

    _dict: Any
    """The SessionDict that shows the session's changes, until it is written itself, or None."""
    _scope: MutableMapping[str, Any]
    _sessions: Sessions
    _is_used: bool
    _is_closed: bool

    @property
    @abstractmethod
    def id(self) -> str | None:
        """The session's handle, or None if there is no session yet. It is safe to log: no cookie can be made of it."""

    @property
    @abstractmethod
    def is_new(self) -> bool:
        """Whether the request came without a session, or has cleared it.

        Until the first read, a valid cookie counts as a session.
        """

    @abstractmethod
    def _is_ready(self) -> bool:
        """Return whether reads need no `await`. This opens a session in a cookie, and loads one in memory."""

    @abstractmethod
    async def _read(self, read: Callable[..., T], key: str | None, default: Any = None, type: Any = None) -> T:
        """Make *key* readable, or everything for None, and return `read(self, key, default, type)`."""

    @abstractmethod
    def _peek(self, key: str) -> bytes | None:
        """Return the encoded data of *key* as this request sees it, once it is readable."""

    @abstractmethod
    def _keys(self) -> Iterable[str]:
        """Return the application's keys, and maybe some that were deleted; the login isn't one of them."""

    @abstractmethod
    def _times(self) -> tuple[float, float] | None: ...

    @abstractmethod
    def _put(self, key: str, data: bytes) -> None: ...

    @abstractmethod
    def _drop(self, key: str) -> None: ...

    @abstractmethod
    def _clear(self) -> None: ...

    @abstractmethod
    def _has_set(self, key: str) -> bool:
        """Return whether this request has set *key*, and nothing has written it."""

    def _is_renewing(self) -> bool:
        """Return whether the session gets a new id that `id` doesn't show yet."""
        return False

    @abstractmethod
    def _renew(self, max_age: int | None, begins: bool | None = None) -> None:
        """Give the session a new id. If it ends meanwhile, a new one begins, unless *begins* is False.

        None for *max_age* or *begins* leaves what an earlier call of this request has asked for.
        """

    @abstractmethod
    async def _update(self, key: str, fn: Callable[[Any], T], default: Any) -> T: ...

    @abstractmethod
    def _set_owner(self, owner: str | None, note: Any) -> None: ...

    def _list_login(self, owner: str, note: Any) -> None:
        """Have sessions.list() find the session of a login, where it can."""

    @abstractmethod
    async def _save(self) -> None: ...

    @abstractmethod
    def _cookie(self) -> CookieValue | None:
        """Return the cookie to send, or None; also after a failed _flush(), if it began, renamed or ended a session."""

    @abstractmethod
    def _discard(self) -> None:
        """Drop the changes that aren't saved."""

    @abstractmethod
    def _has_cookie(self) -> bool:
        """Return whether the request came with a cookie of the session's name, once the session was used."""

    @abstractmethod
    def _reject(self, reason: Rejection) -> None:
        """Count, once a request, that its cookie or session was rejected."""

    # What end_all() calls, for the session that it keeps

    async def _find(self) -> None:
        """Find out which of the request's cookies leads to a live session, so that `id` is its id."""

    def _since(self) -> float:
        """Return when the session's login was, if it is in a cookie."""
        return 0

    def _outlive_end(self) -> None:
        """Date a pending login or change of owner from now, so that end_all() doesn't revoke it."""

    # The next two are only called if there is a store, of the sessions or of the ended ones.

    def _needs_store(self) -> bool:
        """Return whether _flush() has something to do."""
        raise NotImplementedError

    def _flush(self) -> Coroutine[Any, Any, None]:
        """Write the pending changes."""
        raise NotImplementedError

    # What they share

    def _restart(self) -> None:
        """End the session, which was read, and begin a new one with the values that this request has set."""
        of_dict: dict[str, Any] = {} if self._dict is None else self._dict.find_set()
        changes = {key: data for key in self._keys() if self._has_set(key) and (data := self._peek(key)) is not None}
        self._clear()
        for key, data in changes.items():
            self._put(key, data)
        if self._dict is not None:
            self._dict.update(of_dict)

    def _open_for_change(self) -> None:
        self._is_used = True
        if self._is_closed:
            raise too_late_to_change()
        if self._dict is not None:
            self._dict.take_over()

    def _follow_dict(self) -> None:
        """Take over what the application has put in the place of the dict: an empty one ends the session, for reads too."""
        if self._dict is not None and not self._is_closed:
            self._dict.take_over()

    def _encode(self, key: str, value: Any) -> bytes:
        return self._sessions.codec.encode(key, value)

    def _decode(self, data: bytes) -> Any:
        return self._sessions.codec.decoder.decode(data)
