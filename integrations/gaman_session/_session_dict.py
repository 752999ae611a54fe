"""SessionDict: a session as the dict that Starlette's users know."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from gaman_session._errors import SessionError, SessionUseError
from gaman_session._login import LOGIN
from gaman_session._session import Session


class SessionDict(dict[str, Any]):
    """The values of a session, of which write() takes over what was changed.

    It is loaded and written at once, so concurrent requests don't undo each other's changes of different keys. A nested change is
    found by comparing bytes. A change of the dict itself raises SessionClosed once the response has begun.
    """

    __slots__ = ("_loaded", "_session")

    _session: Session
    _loaded: dict[str, bytes]
    """The encoded values that the dict was made of."""

    @classmethod
    async def load(cls, session: Session) -> SessionDict:
        """Return the values of *session*. Without a cookie of the session's name, nothing is read."""
        was_used = session._is_used
        # Not awaiting what needs no `await` saves 4 % of a request that reads a session in a cookie, and 9 % in memory.
        if not session._is_ready():
            await session._read(Session._has, None)
        values: dict[str, Any] = {}
        loaded: dict[str, bytes] = {}
        for key in session._keys():
            # A value is opened once.
            data = session._peek(key)
            if data is None:
                continue
            try:
                values[key] = session._decode(data)
            except Exception as cause:
                session._undecodable(key, None, None, cause)
            else:
                loaded[key] = data
        self = cls(values)
        self._session, self._loaded = session, loaded
        # The load itself doesn't make the response depend on the session.
        session._is_used = was_used
        return self

    def write(self) -> None:
        """Make the changes of the dict those of the session. SessionSerializationError: a value can't be encoded."""
        session, changes = self._session, self._find_changes()
        if changes and not super().__len__() and not session._has_changes() and session._peek(LOGIN) is None:
            # A request in flight can't write to a session that has ended, as it can to one whose keys were deleted.
            session._clear()
        else:
            for key, data in changes.items():
                session._drop(key) if data is None else session._put(key, data)
        self._loaded = {key: data for key, data in {**self._loaded, **changes}.items() if data is not None}

    # The names that Starlette's own session has beside a dict's

    @property
    def accessed(self) -> bool:
        """Whether the request has used its session."""
        return self._session._is_used

    @property
    def modified(self) -> bool:
        """Whether write() has something to do."""
        try:
            return bool(self._find_changes())
        except SessionError:
            return True

    def mark_accessed(self) -> None:
        """Make the response depend on the session; Starlette calls this for `request.session`."""
        self._session._is_used = True

    def mark_modified(self) -> None:
        """Raise SessionClosed if the response has begun. Nested changes are found without this."""
        self._session._open_for_change()

    def _find_changes(self) -> dict[str, bytes | None]:
        """Return the encoded values that aren't the session's, and None for each key that was removed."""
        session, loaded = self._session, self._loaded
        if not session._is_used:
            return {}
        changes: dict[str, bytes | None] = dict.fromkeys(loaded.keys() - super().keys())
        for key, value in super().items():
            if not isinstance(key, str):
                raise SessionUseError(f"a session's key is a str, not {key!r}: write `request.session[{str(key)!r}] = ...`")
            if key == LOGIN:
                raise session._key_error("set", key)
            data, before = session._encode(key, value), loaded.get(key)
            # A newer version of a serializer may encode the same value as other bytes.
            if data != before and (before is None or data != session._encode(key, session._decode(before))):
                changes[key] = data
        return changes

    def clear(self) -> None:
        """End the session; what is set afterwards begins a new one."""
        self._session._open_for_change()
        self._session._clear()
        self._loaded = {}
        super().clear()

    def __reduce__(self) -> tuple[type[dict[str, Any]], tuple[dict[str, Any]]]:
        """Let copies and pickles be plain dicts."""
        return dict, (self.copy(),)

    @classmethod
    def fromkeys(cls, *args: Any) -> dict[str, Any]:  # type: ignore[override]  # dict has overloads
        """Return a plain dict."""
        return dict.fromkeys(*args)


def _reads(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def reading(self: SessionDict, *args: Any, **kwargs: Any) -> Any:
        self._session._is_used = True
        return method(self, *args, **kwargs)

    return reading


def _changes(method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def changing(self: SessionDict, *args: Any, **kwargs: Any) -> Any:
        self._session._open_for_change()
        return method(self, *args, **kwargs)

    return changing


# A handler uses the session by any method of the dict, except where code in C reads a dict without its methods.
for name in ("copy", "get", "items", "keys", "values"):
    setattr(SessionDict, name, _reads(getattr(dict, name)))
for name in ("contains", "eq", "getitem", "iter", "len", "ne", "or", "repr", "reversed", "ror"):
    setattr(SessionDict, f"__{name}__", _reads(getattr(dict, f"__{name}__")))
for name in ("pop", "popitem", "setdefault", "update", "__delitem__", "__ior__", "__setitem__"):
    setattr(SessionDict, name, _changes(getattr(dict, name)))
