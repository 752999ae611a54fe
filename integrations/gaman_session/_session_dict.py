"""SessionDict: a session as the dict that Starlette's users know."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from functools import wraps
from typing import Any, Final

from gaman_session._errors import SessionError, SessionUseError
from gaman_session._login import LOGIN
from gaman_session._scope_session import calls_mark_accessed, values_of
from gaman_session._session import Session

_IMMUTABLE: Final = frozenset((str, int, float, bool, bytes, type(None)))


class SessionDict(dict[str, Any]):
    """The values of a session, of which write() takes over what was changed, when the response begins.

    Each key is written by itself, so concurrent requests keep each other's changes of other keys. A nested change is found by
    comparing bytes. A change of the dict itself raises SessionClosed once the response has begun.

    The dict shows what the same request changes by get_session(), so the last change of a key wins. In the other direction,
    get_session() sees what the dict changes once that is written.

    The application may put something else in the place of the dict. The next use of the session, or else the response, takes its
    values over into the dict, and puts the dict back.
    """

    __slots__ = ("_apps", "_is_written", "_loaded", "_root_path", "_scope", "_session", "_source")

    _session: Session
    _loaded: dict[str, bytes]
    """The encoded values that the session has, as far as the dict knows."""
    _is_written: bool
    """Whether write() was called."""
    _scope: MutableMapping[str, Any]
    """The scope that has the dict, until the request has ended."""
    _apps: tuple[Any, Any]
    """The application that the middleware calls, and the framework's application in the scope."""
    _root_path: str | None
    _source: tuple[Any, dict[str, bytes]] | None
    """What was taken over last, and its encoded values, because the handler may still change it."""

    @classmethod
    async def load(cls, session: Session, scope: MutableMapping[str, Any], app: Any) -> SessionDict:
        """Return the values of *session*, for the *scope* of *app*. Without a cookie of the session's name, nothing is read."""
        was_used = session._is_used
        # Not awaiting what needs no `await` saves 4 % of a request that reads a session in a cookie, and 9 % in memory.
        if not session._is_ready():
            await session._read(Session._has, None)
        decode = session._sessions.codec.decoder.decode
        values: dict[str, Any] = {}
        loaded: dict[str, bytes] = {}
        for key in session._keys():
            # A value is opened once.
            data = session._peek(key)
            if data is None:
                continue
            try:
                values[key] = decode(data)
            except Exception as cause:
                session._undecodable(key, None, None, cause)
            else:
                loaded[key] = data
        self = cls(values)
        self._session, self._loaded, self._is_written, self._source = session, loaded, False, None
        self._scope, self._apps, self._root_path = scope, (app, scope.get("app")), scope.get("root_path")
        session._dict = self
        # The load itself doesn't make the response depend on the session.
        session._is_used = was_used
        return self

    def show(self, key: str, data: bytes | None) -> None:
        """Take over what the session has for *key* now: encoded *data*, or nothing."""
        if key == LOGIN:
            return
        if data is not None:
            try:
                super().__setitem__(key, self._session._decode(data))
            except Exception as cause:
                self._session._undecodable(key, None, None, cause)
            else:
                self._loaded[key] = data
                return
        super().pop(key, None)
        self._loaded.pop(key, None)

    def show_end(self) -> None:
        """Be empty, because the session was ended. Values that the handler still holds don't come back."""
        super().clear()
        self._loaded = {}
        self._source = None

    def find_set(self) -> dict[str, Any]:
        """Return the values that the dict itself has set, and that aren't written."""
        changes = self._find_changes()
        return {key: value for key, value in super().items() if changes.get(key) is not None}

    def take_over(self) -> None:
        """Take over what the application has put in the place of the dict, and the later changes of that."""
        found = self._scope.get("session")
        if found is not self and self._is_replaced():
            values = values_of(found, self._session, self._apps[0])
            source = found, self._encode_all(values)
            self._scope["session"], self._source = self, None
            if values:
                self._session._open_for_change()
                super().clear()
                super().update(values)
            else:
                self.clear()
            self._source = source
        elif self._source is not None:
            source, before = self._source
            values = values_of(source, self._session, self._apps[0])
            after = self._encode_all(values)
            if after != before:
                self._source = source, after
                self._session._open_for_change()
                for key in before.keys() - after.keys():
                    super().pop(key, None)
                super().update({key: value for key, value in values.items() if after[key] != before.get(key)})

    def _is_replaced(self) -> bool:
        """Return whether the application has put something else in the place of the dict."""
        scope, (_, framework) = self._scope, self._apps
        if isinstance(scope.get("session"), SessionDict):
            return False
        # A mounted application may have another session.
        return scope.get("root_path") == self._root_path if framework is None else scope.get("app") is framework

    def is_replaced_late(self) -> bool:
        """Return whether the dict was replaced after write(), which nothing writes any more."""
        return self._is_written and self._scope.get("session") is not self and self._is_replaced()

    def _encode_all(self, values: Mapping[str, Any]) -> dict[str, bytes]:
        encode = self._session._sessions.codec.encode
        return {key: encode(key, value) for key, value in values.items()}

    def settle(self, status: int) -> None:
        """Make the changes those of the session before the response begins, unless it is an error of the server.

        Code in C reads a dict without its methods, so a dict that has values makes the response depend on the session, unless the
        framework calls mark_accessed().
        """
        session = self._session
        if not session._is_used and not calls_mark_accessed(self._scope) and (self._loaded or super().__len__()):
            session._is_used = True
        if status < 500:
            if self._source is not None or self._scope.get("session") is not self:
                self.take_over()
            self.write()

    def release(self) -> None:
        """Remove the dict from the scope, when the request has ended."""
        self._scope.pop("session", None)
        self._session._dict = None
        # It may be a copy of the scope, which refers to the connection.
        del self._scope

    def write(self) -> None:
        """Make the changes of the dict those of the session.

        SessionSerializationError: a value can't be encoded. SessionUseError: a key isn't text. SessionTooLarge: there is too much.
        """
        session = self._session
        # The session gets the dict's own changes now, which it needn't show.
        session._dict = None
        changes = self._find_changes()
        for key, data in changes.items():
            session._drop(key) if data is None else session._put(key, data)
        if changes:
            self._loaded = {key: data for key, data in {**self._loaded, **changes}.items() if data is not None}
        self._is_written = True

    def has_lost(self) -> bool:
        """Return whether a value was changed inside after write(), which nothing writes any more."""
        session, loaded = self._session, self._loaded
        if not self._is_written or not session._is_used:
            return False
        # Encoding only what can be changed inside, without naming what can't be encoded, saves 6 % of a request that reads a value.
        encode = session._sessions.codec.encoder.encode
        for key, value in super().items():
            if type(value) not in _IMMUTABLE:
                try:
                    data = encode(value)
                except Exception:
                    return True
                if data != loaded.get(key):
                    return self.modified
        return False

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
        encode = session._sessions.codec.encode
        changes: dict[str, bytes | None] = {}
        keys = super().keys()
        # Not subtracting the keys where none was removed saves 2 % of a request that reads its session.
        if not loaded.keys() <= keys:
            changes = dict.fromkeys(loaded.keys() - keys)
        for key, value in super().items():
            if not isinstance(key, str):
                raise SessionUseError(f"a session's key is a str, not {key!r}: write `request.session[{str(key)!r}] = ...`")
            if key == LOGIN:
                raise session._key_error("set", key)
            data, before = encode(key, value), loaded.get(key)
            # A newer version of a serializer may encode the same value as other bytes.
            if data != before and (before is None or data != encode(key, session._decode(before))):
                changes[key] = data
        return changes

    def clear(self) -> None:
        """End the session; what is set afterwards begins a new one."""
        self._session._open_for_change()
        self._session._clear()
        self.show_end()

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
