"""SessionDict: a session as the dict that Starlette's users know."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from gaman_session._errors import SessionUseError
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
        self = cls()
        self._session = session
        self._loaded = {}
        if session._brings_cookie():
            await session._read(Session._all, None)
            dict.update(self, session._all())
            self._loaded = {key: data for key in self if (data := session._peek(key)) is not None}
            # The load itself doesn't make the response depend on the session.
            session._is_used = False
        return self

    def write(self) -> None:
        """Make the changes of the dict those of the session. SessionSerializationError: a value can't be encoded."""
        session = self._session
        if not session._is_used:
            return
        if self._loaded and not dict.__len__(self):
            session._clear()
            return
        for key in self._loaded.keys() - dict.keys(self):
            session._drop(key)
        for key, value in dict.items(self):
            if not isinstance(key, str):
                raise SessionUseError(f"a session's key is a str, not {key!r}: write `request.session[{str(key)!r}] = ...`")
            if (data := session._encode(key, value)) != self._loaded.get(key):
                session._put(key, data)


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


for name in ("copy", "get", "items", "keys", "values"):
    setattr(SessionDict, name, _reads(getattr(dict, name)))
for name in ("contains", "eq", "getitem", "iter", "len", "ne", "or", "repr", "reversed", "ror"):
    setattr(SessionDict, f"__{name}__", _reads(getattr(dict, f"__{name}__")))
for name in ("clear", "pop", "popitem", "setdefault", "update", "__delitem__", "__ior__", "__setitem__"):
    setattr(SessionDict, name, _changes(getattr(dict, name)))
