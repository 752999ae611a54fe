"""CookieSession: a session in the browser's cookie, which needs no store and can't be revoked.

Three promises need a store, so this driver can't keep them. Concurrent requests each send their own copy of the session, and the
last response to arrive wins; update() is atomic only within its own request. A logout removes the cookie from the browser, but a
copy of it opens the session until it expires; EndableCookieSession has a store for that. Each change and each refresh of an idle
limit sends the cookie again.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, MutableMapping
from itertools import islice
from typing import Any, Final, TypeVar

import msgspec

from gaman import find_cookie
from gaman_session import _sealing
from gaman_session._audit import Reason
from gaman_session._counters import Rejection
from gaman_session._errors import SessionTooLarge, SessionUnsupported, too_late_to_read
from gaman_session._login import LOGIN, Login, kind_of_renewal, login_in
from gaman_session._misuse import changed
from gaman_session._session import Session
from gaman_session._session_base import REMOVED, CookieValue
from gaman_session._sessions import MAX_COOKIE, Sessions

T = TypeVar("T")

_MAX_FRAME: Final = 64
"""Bytes that the id, the times and the length of the fields take at most."""
_MAX_LENGTHS: Final = 10
"""Bytes that MessagePack takes at most for the lengths of a key and of its value."""


class Contents(msgspec.Struct, array_like=True, frozen=True, gc=False):
    """The contents of a session's cookie; times are whole seconds."""

    raw_id: bytes
    is_transient: bool
    created: int
    expires: int
    deadline: int
    fields: dict[str, bytes]


_encode = msgspec.msgpack.Encoder().encode
decode_contents: Final = msgspec.msgpack.Decoder(Contents).decode


class CookieSession(Session):
    """A session that comes with its request and goes back with the response."""

    __slots__ = (
        "_contents",
        "_fields",
        "_found_cookie",
        "_is_changed",
        "_is_loaded",
        "_is_new",
        "_is_rejected",
        "_max_size",
        "_received",
    )

    _found_cookie: bool
    _received: Contents | None
    """The session that the request came with."""
    _contents: Contents | None
    """The session's id and times; its values are in `_fields`. None until a new session needs them."""
    _fields: dict[str, bytes]
    """The values. They belong to the received session until the first change of a value, and are copied then."""
    _is_changed: bool
    _is_new: bool
    _max_size: int
    """A bound of the encoded contents' bytes; 0 until the values are copied. A sum saves encoding them after each change."""

    def __init__(self, sessions: Sessions, scope: MutableMapping[str, Any], is_closed: bool = False) -> None:
        # super().__init__() unrolled: this saves 4 % of a request that reads its session.
        self._sessions = sessions
        self._scope = scope
        self._is_closed = is_closed
        self._is_used = self._is_loaded = self._is_rejected = False
        self._name = "ctx.session"
        self._due = self._more_due = None
        self._dict = None

    @property
    def id(self) -> str | None:
        """The session's handle, or None if there is no session yet."""
        self._follow_dict()
        self._is_ready()
        return _sealing.id_of(self._begun().raw_id) if self._fields else None

    @property
    def is_new(self) -> bool:
        """Whether the request came without a session, or has ended it."""
        self._follow_dict()
        self._is_ready()
        return self._is_new

    def _has_cookie(self) -> bool:
        return self._found_cookie

    def _reject(self, reason: Rejection) -> None:
        if not self._is_rejected:
            self._is_rejected = True
            self._sessions.reject(reason, self._scope)

    # Reading

    def _is_ready(self) -> bool:
        """Open the first cookie that holds a live session, unless that was done, and return True."""
        if self._is_loaded:
            return True
        if self._is_closed:
            raise too_late_to_read()
        self._is_loaded = self._is_used = True
        self._is_changed = self._is_new = False
        self._max_size = 0
        sessions = self._sessions
        token = find_cookie(self._scope["headers"], sessions.cookie_name)
        self._found_cookie = token is not None
        others: Iterator[str] | None = None
        while token is not None:
            try:
                contents = sessions.keyring.open_token(token, decode_contents)
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
                    self._is_new = False
                    return True
                else:
                    self._reject("expired")
            # Browsers may send a dead cookie of the same name before the live one (RFC 6265, section 5.4).
            if others is None:
                others = islice(sessions.tokens(self._scope), 1, None)
            token = next(others, None)
        self._received = self._contents = None
        self._fields = {}
        self._is_new = True
        return True

    async def _read(self, read: Callable[..., T], key: str | None, default: Any = None, type: Any = None) -> T:
        self._is_ready()
        return read(self, key, default, type)

    def _peek(self, key: str) -> bytes | None:
        return self._fields.get(key)

    def _keys(self) -> Iterable[str]:
        return [key for key in self._fields if key != LOGIN]

    def _times(self) -> tuple[float, float] | None:
        if not self._is_loaded or not self._fields:
            return None
        contents = self._begun()
        return contents.created, contents.deadline

    # Changing

    def _put(self, key: str, data: bytes) -> None:
        if not (self._is_loaded and self._max_size):
            self._own_fields()
        size = self._max_size + 4 * len(key) + len(data) + _MAX_LENGTHS
        if size > self._sessions.max_contents:
            size = self._measure({**self._fields, key: data}, key)
        self._max_size = size
        self._fields[key] = data
        self._is_changed = True
        if self._dict is not None:
            self._dict.show(key, data)

    def _own_fields(self) -> None:
        """Copy the received values before the first change, because other requests with the same cookie have them as well."""
        self._is_ready()
        if not self._max_size:
            fields = self._fields = {**self._fields}
            lengths = [4 * len(key) + len(data) + _MAX_LENGTHS for key, data in fields.items()]
            self._max_size = _MAX_FRAME + sum(lengths)

    def _measure(self, fields: dict[str, bytes], key: str) -> int:
        """Return the exact size of the contents with *fields*, in bytes; SessionTooLarge if *key* makes the cookie too large."""
        size = len(self._encode_contents(self._begun(), fields, self._sessions.clock()))
        cookie_size = self._sessions.cookie_overhead + _sealing.token_length(size)
        if cookie_size > MAX_COOKIE:
            raise SessionTooLarge(
                f"with {key!r} the session's cookie would have {cookie_size} bytes, attributes included, and browsers keep "
                f"{MAX_COOKIE}; store less, or choose a driver that keeps sessions on the server",
                cookie_size,
                MAX_COOKIE,
            )
        return size

    def _drop(self, key: str) -> None:
        self._is_ready()
        if key in self._fields:
            self._own_fields()
            del self._fields[key]
            self._is_changed = True
        if self._dict is not None:
            self._dict.show(key, None)

    def _clear(self) -> None:
        self._is_ready()
        self._contents, self._fields, self._max_size = None, {}, _MAX_FRAME
        self._is_changed = self._is_new = True
        if self._dict is not None:
            self._dict.show_end()

    def _has_set(self, key: str) -> bool:
        received = {} if self._received is None else self._received.fields
        return key in self._fields and self._fields[key] is not received.get(key)

    def _renew(self, max_age: int | None, begins: bool | None = None) -> None:
        self._is_ready()
        self._is_changed = True
        self._contents = self._begin(max_age, self._sessions.clock())

    async def _update(self, key: str, fn: Callable[[Any], T], default: Any) -> T:
        """Replace the value of *key* by `fn(value)`; other requests neither see this nor are seen."""
        self._open_for_change()
        self._is_ready()
        value = changed(self, key, fn, self._value(key, default, None))
        self._put(key, self._encode(key, value))
        return value

    def _set_owner(self, owner: str | None, note: Any) -> None:
        # Without a store, no other request could find the session.
        raise SessionUnsupported("cookies", "set_owner()", "write `await session.login(owner)`, or choose another driver")

    def _discard(self) -> None:
        self._is_loaded = False

    # Writing

    async def _save(self) -> None:
        # Only the response can send a cookie to the browser.
        self._open_for_change()

    def _cookie(self) -> CookieValue | None:
        if not self._is_loaded:
            return None
        contents, sessions = self._contents, self._sessions
        if not self._fields:
            if self._received is None:
                return None
            self._note_removal(self._received, "logout")
            return REMOVED
        if not self._is_changed and sessions.idle_timeout is None:
            return None
        now = sessions.clock()
        if contents is None:
            contents = self._contents = self._begin(None, now)
        elif not self._is_changed and not sessions.is_touch_due(contents.deadline, contents.expires, now):
            return None
        if self._is_new and self._received is not None:
            self._note_removal(self._received, "logout" if self._login() is None else "login")
        if self._received is None:
            sessions.counters.created += 1
        else:
            sessions.counters.written += 1
        if sessions.audit.is_on:
            self._note_events(contents)
        token = sessions.keyring.seal_token(self._encode_contents(contents, self._fields, now))
        return token, None if contents.is_transient else math.ceil(contents.expires - now)

    def _note_events(self, contents: Contents) -> None:
        """Note what the request has done to the session, which now has these *contents*."""
        note, received, login = self._sessions.audit.note, self._received, self._login()
        id, owner = _sealing.id_of(contents.raw_id), self._hash_of(login)
        former = None if received is None else _sealing.id_of(received.raw_id)
        if self._is_new:
            note("began", self._scope, handle=id, owner=owner)
        if former != id:
            before = None if received is None else login_in(received.fields.get(LOGIN), self._sessions.codec)
            kind, level = kind_of_renewal(before, login)
            if kind != "renewed" or not self._is_new:
                note(kind, self._scope, handle=id, former=former, owner=owner, level=level)

    def _note_removal(self, received: Contents, reason: Reason) -> None:
        """Note that the response removes the session from the browser."""
        self._note_end(received, _sealing.id_of(received.raw_id), reason)

    def _note_end(self, ended: Contents, handle: str, reason: Reason) -> None:
        sessions = self._sessions
        sessions.counters.ended += 1
        if sessions.audit.is_on:
            owner = self._hash_of(login_in(ended.fields.get(LOGIN), sessions.codec))
            sessions.audit.note("ended", self._scope, handle=handle, owner=owner, reason=reason)

    def _hash_of(self, login: Login | None) -> str | None:
        return None if login is None else self._sessions.owners.hash_of(login.owner)

    def _begun(self) -> Contents:
        """Return the session's id and times. A new session begins now."""
        if self._contents is None:
            self._contents = self._begin(None, self._sessions.clock())
        return self._contents

    def _begin(self, max_age: int | None, now: float) -> Contents:
        """Return the id and the times of a session under a new id."""
        before, created = self._contents, int(now)
        lifetime = None if before is None else before.expires - before.created
        lifetime, is_transient = self._sessions.terms(max_age, lifetime, before is not None and before.is_transient)
        expires = created + lifetime
        deadline = int(self._sessions.deadline(created, expires))
        return Contents(_sealing.new_raw_id(16), is_transient, created, expires, deadline, {})

    def _encode_contents(self, contents: Contents, fields: dict[str, bytes], now: float) -> bytes:
        """Return the session with *fields* as bytes, with the idle limit of a session that is used *now*."""
        deadline = int(self._sessions.deadline(now, contents.expires))
        return _encode((contents.raw_id, contents.is_transient, contents.created, contents.expires, deadline, fields))
