"""Sessions in the browser's cookie: nothing to run, and nothing that could be taken back.

Three promises need a store that this driver does not have. Two requests at once each send their own copy of the session, and the
last answer to arrive wins; so update() is atomic within its own request alone. A logout removes the cookie from the browser, but a
copy that somebody has kept opens the session until it expires. And each change, like each refresh of an idle limit, sends the
cookie anew.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import Any, Final, TypeVar

import msgspec

from gaman import find_cookie
from gaman_session import _sealing
from gaman_session._errors import SessionTooLarge, SessionUnsupported
from gaman_session._session import END, Answer, Session, changed, too_late_to_read

T = TypeVar("T")

# Attributes included, browsers must keep so many bytes (RFC 6265, section 6.1).
_LIMIT: Final = 4096
# So long a payload fits with any attributes that there are.
_SMALL: Final = 1024
_UNPACKED: Final = b""


class Carried(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """What a cookie carries, sealed: which session it is, its times in whole seconds, and its values."""

    id: bytes
    is_transient: bool
    created: int
    expires: int
    deadline: int
    fields: dict[str, bytes]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Carried).decode


class CookieSession(Session):
    """A session that comes with its request and goes back with the response."""

    __slots__ = ("_came", "_carried", "_fields", "_payload")

    _needs_no_store = True

    _came: Carried | None
    """What the request brought."""
    _carried: Carried | None
    """Which session it is now, and its times."""
    _fields: dict[str, bytes]
    _payload: bytes | None
    """What is to go back: None where nothing has changed, and _UNPACKED where it is still to be packed."""

    @property
    def id(self) -> str | None:
        """A handle of the session, or None where there is no session yet."""
        self._load()
        return None if self._carried is None or not self._fields else _sealing.handle(self._carried.id)

    @property
    def is_new(self) -> bool:
        """Whether the request came without a session."""
        self._load()
        return self._came is None or self._carried is None

    async def _update(self, key: str, fn: Callable[[Any], T], default: Any) -> T:
        """Replace the value under *key* by `fn(value)`; other requests are not seen, and do not see it."""
        self._open_for_change()
        self._load()
        value = changed(key, fn, self._value(key, default, None))
        self._put(key, self._encode(key, value))
        return value

    def _set_owner(self, owner: str | None, note: Any) -> None:
        # There is no store in which others could find the session.
        raise SessionUnsupported("cookies")

    async def _save(self) -> None:
        # Nothing more to do before the response: only that can bring a cookie to its browser.
        self._open_for_change()

    def _peek(self, key: str) -> bytes | None:
        return self._fields.get(key)

    def _keys(self) -> Iterable[str]:
        return self._fields

    def _load(self, key: str | None = None) -> None:
        if not self._is_loaded:
            self._open()

    def _open(self) -> bool:
        if self._is_closed:
            raise too_late_to_read()
        self._is_loaded = self._is_used = True
        self._payload = None
        sessions = self._sessions
        token = find_cookie(self._scope["headers"], sessions.cookie_name)
        self._has_cookie = token is not None
        others: Iterator[str] | None = None
        while token is not None:
            try:
                carried = sessions.keyring.open_token(token, _decode)
            except msgspec.DecodeError:
                # Ours, and of another version of this package.
                self._reject("unreadable")
            else:
                if carried is None:
                    self._reject("forged")
                elif carried.deadline > sessions.clock():
                    sessions.counters.loaded += 1
                    self._came = self._carried = carried
                    self._fields = carried.fields
                    return True
                else:
                    self._reject("expired")
            # Browsers may send a dead cookie of the same name before the live one (RFC 6265, section 5.4).
            if others is None:
                others = islice(self._tokens(), 1, None)
            token = next(others, None)
        self._came = self._carried = None
        self._fields = {}
        return True

    def _times(self) -> tuple[float, float] | None:
        carried = self._carried if self._is_loaded else None
        return None if carried is None or not self._fields else (carried.created, carried.deadline)

    def _put(self, key: str, data: bytes) -> None:
        self._load()
        fields = {**self._fields, key: data}
        payload = self._pack(fields)
        if len(payload) > _SMALL and (size := self._sessions.cookie_overhead + _sealing.token_length(len(payload))) > _LIMIT:
            raise SessionTooLarge(
                f"with {key!r} the session's cookie would have {size} bytes, attributes included, and browsers keep {_LIMIT}; "
                "store less, or choose a driver that keeps sessions on the server",
                size,
                _LIMIT,
            )
        self._fields, self._payload = fields, payload

    def _drop(self, key: str) -> None:
        self._load()
        if key in self._fields:
            self._fields = {other: data for other, data in self._fields.items() if other != key}
            self._payload = _UNPACKED

    def _clear(self) -> None:
        self._load()
        self._carried, self._fields, self._payload = None, {}, _UNPACKED

    def _renew(self, max_age: int | None) -> None:
        self._load()
        self._carried = self._begin(max_age)
        self._payload = _UNPACKED

    def _discard(self) -> None:
        self._is_loaded = False

    def _finish(self) -> Answer | None:
        if not self._is_loaded:
            return None
        carried, payload, sessions = self._carried, self._payload, self._sessions
        if carried is None or not self._fields:
            if self._came is None:
                return None
            sessions.counters.ended += 1
            return END
        if payload is None and (sessions.idle_timeout is None or not sessions.is_touch_due(carried.deadline, carried.expires)):
            return None
        if self._came is None:
            sessions.counters.created += 1
        else:
            sessions.counters.written += 1
        token = sessions.keyring.seal_token(payload or self._pack(self._fields))
        return token, None if carried.is_transient else math.ceil(carried.expires - sessions.clock())

    def _begin(self, asked: int | None) -> Carried:
        before, now = self._carried, int(self._sessions.clock())
        lifetime = None if before is None else before.expires - before.created
        lifetime, is_transient = self._sessions.terms(asked, lifetime, before is not None and before.is_transient)
        expires = now + lifetime
        return Carried(_sealing.new_id(16), is_transient, now, expires, int(self._sessions.deadline(now, expires)), {})

    def _pack(self, fields: dict[str, bytes]) -> bytes:
        carried = self._carried
        if carried is None:
            carried = self._carried = self._begin(None)
        sessions, deadline = self._sessions, carried.expires
        if sessions.idle_timeout is not None:
            deadline = int(sessions.deadline(sessions.clock(), deadline))
        return _encode((carried.id, carried.is_transient, carried.created, carried.expires, deadline, fields))
