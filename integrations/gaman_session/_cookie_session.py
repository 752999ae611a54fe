"""CookieSession: a session in the browser's cookie, which needs no store and can't be revoked.

Three promises need a store, so this driver can't keep them. Concurrent requests each send their own copy of the session, and the
last response to arrive wins; update() is atomic only within its own request. A logout removes the cookie from the browser, but a
copy of it opens the session until it expires. Each change and each refresh of an idle limit sends the cookie again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from itertools import islice
from typing import Any, Final, TypeVar

import msgspec

from gaman import find_cookie
from gaman_session import _sealing
from gaman_session._counters import Rejection
from gaman_session._errors import SessionTooLarge, SessionUnsupported
from gaman_session._session import REMOVED, CookieValue, Session, changed, too_late_to_read
from gaman_session._sessions import Sessions

T = TypeVar("T")

_MAX_COOKIE: Final = 4096
"""Bytes that browsers must keep of a cookie, attributes included (RFC 6265, section 6.1)."""
_SMALL: Final = 1024
"""Bytes of data that fit into a cookie with any attributes."""
_UNENCODED: Final = b""


class Contents(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The contents of a session's cookie; times are whole seconds."""

    raw_id: bytes
    is_transient: bool
    created: int
    expires: int
    deadline: int
    fields: dict[str, bytes]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Contents).decode


class CookieSession(Session):
    """A session that comes with its request and goes back with the response."""

    __slots__ = ("_contents", "_data", "_fields", "_found_cookie", "_is_loaded", "_is_rejected", "_received")

    _found_cookie: bool
    _received: Contents | None
    """The session that the request came with."""
    _contents: Contents | None
    """The session's id and times; its values are in `_fields`."""
    _fields: dict[str, bytes]
    _data: bytes | None
    """The encoded contents to send: None without a change, _UNENCODED if they have yet to be encoded."""

    def __init__(self, sessions: Sessions, scope: MutableMapping[str, Any], is_closed: bool = False) -> None:
        # super().__init__() unrolled: this saves 3 % of a request that doesn't use its session.
        self._sessions = sessions
        self._scope = scope
        self._is_closed = is_closed
        self._is_used = self._is_loaded = self._is_rejected = False
        self._unawaited = ()

    @property
    def id(self) -> str | None:
        """The session's handle, or None if there is no session yet."""
        self._is_ready()
        return None if self._contents is None or not self._fields else _sealing.id_of(self._contents.raw_id)

    @property
    def is_new(self) -> bool:
        """Whether the request came without a session."""
        self._is_ready()
        return self._received is None or self._contents is None

    def _has_cookie(self) -> bool:
        return self._found_cookie

    def _reject(self, reason: Rejection) -> None:
        if not self._is_rejected:
            self._is_rejected = True
            self._sessions.counters.reject(reason)

    # Reading

    def _is_ready(self) -> bool:
        """Open the first cookie that holds a live session, unless that was done, and return True."""
        if self._is_loaded:
            return True
        if self._is_closed:
            raise too_late_to_read()
        self._is_loaded = self._is_used = True
        self._data = None
        sessions = self._sessions
        token = find_cookie(self._scope["headers"], sessions.cookie_name)
        self._found_cookie = token is not None
        others: Iterator[str] | None = None
        while token is not None:
            try:
                contents = sessions.keyring.open_token(token, _decode)
            except msgspec.DecodeError:
                # Sealed by another version of this package.
                self._reject("unreadable")
            else:
                if contents is None:
                    self._reject("forged")
                elif contents.deadline > sessions.clock():
                    sessions.counters.loaded += 1
                    self._received = self._contents = contents
                    self._fields = contents.fields
                    return True
                else:
                    self._reject("expired")
            # Browsers may send a dead cookie of the same name before the live one (RFC 6265, section 5.4).
            if others is None:
                others = islice(sessions.tokens(self._scope), 1, None)
            token = next(others, None)
        self._received = self._contents = None
        self._fields = {}
        return True

    async def _read(self, read: Callable[..., T], key: str | None, default: Any = None, type: Any = None) -> T:
        self._is_ready()
        return read(self, key, default, type)

    def _peek(self, key: str) -> bytes | None:
        return self._fields.get(key)

    def _keys(self) -> Iterable[str]:
        return self._fields

    def _times(self) -> tuple[float, float] | None:
        contents = self._contents if self._is_loaded else None
        return None if contents is None or not self._fields else (contents.created, contents.deadline)

    # Changing

    def _put(self, key: str, data: bytes) -> None:
        self._is_ready()
        fields = {**self._fields, key: data}
        encoded = self._encode_contents(fields)
        size = len(encoded)
        if size > _SMALL and (size := self._sessions.cookie_overhead + _sealing.token_length(size)) > _MAX_COOKIE:
            raise SessionTooLarge(
                f"with {key!r} the session's cookie would have {size} bytes, attributes included, and browsers keep {_MAX_COOKIE}; "
                "store less, or choose a driver that keeps sessions on the server",
                size,
                _MAX_COOKIE,
            )
        self._fields, self._data = fields, encoded

    def _drop(self, key: str) -> None:
        self._is_ready()
        if key in self._fields:
            self._fields = {other: data for other, data in self._fields.items() if other != key}
            self._data = _UNENCODED

    def _clear(self) -> None:
        self._is_ready()
        self._contents, self._fields, self._data = None, {}, _UNENCODED

    def _renew(self, max_age: int | None) -> None:
        self._is_ready()
        self._contents = self._begin(max_age)
        self._data = _UNENCODED

    async def _update(self, key: str, fn: Callable[[Any], T], default: Any) -> T:
        """Replace the value of *key* by `fn(value)`; other requests neither see this nor are seen."""
        self._open_for_change()
        self._is_ready()
        value = changed(key, fn, self._value(key, default, None))
        self._put(key, self._encode(key, value))
        return value

    def _set_owner(self, owner: str | None, note: Any) -> None:
        # Without a store, no other request could find the session.
        raise SessionUnsupported("cookies")

    def _discard(self) -> None:
        self._is_loaded = False

    # Writing

    async def _save(self) -> None:
        # Only the response can send a cookie to the browser.
        self._open_for_change()

    def _cookie(self) -> CookieValue | None:
        if not self._is_loaded:
            return None
        contents, data, sessions = self._contents, self._data, self._sessions
        if contents is None or not self._fields:
            if self._received is None:
                return None
            sessions.counters.ended += 1
            return REMOVED
        if data is None and (sessions.idle_timeout is None or not sessions.is_touch_due(contents.deadline, contents.expires)):
            return None
        if self._received is None:
            sessions.counters.created += 1
        else:
            sessions.counters.written += 1
        token = sessions.keyring.seal_token(data or self._encode_contents(self._fields))
        return token, None if contents.is_transient else math.ceil(contents.expires - sessions.clock())

    def _begin(self, max_age: int | None) -> Contents:
        """Return the id and the times of a session under a new id."""
        before, now = self._contents, int(self._sessions.clock())
        lifetime = None if before is None else before.expires - before.created
        lifetime, is_transient = self._sessions.terms(max_age, lifetime, before is not None and before.is_transient)
        expires = now + lifetime
        return Contents(_sealing.new_raw_id(16), is_transient, now, expires, int(self._sessions.deadline(now, expires)), {})

    def _encode_contents(self, fields: dict[str, bytes]) -> bytes:
        """Return the session with *fields* as bytes; it begins if there is none yet."""
        contents = self._contents
        if contents is None:
            contents = self._contents = self._begin(None)
        sessions, deadline = self._sessions, contents.expires
        if sessions.idle_timeout is not None:
            deadline = int(sessions.deadline(sessions.clock(), deadline))
        return _encode((contents.raw_id, contents.is_transient, contents.created, contents.expires, deadline, fields))
