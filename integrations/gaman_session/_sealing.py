"""Sealing: bytes that only the holder of a secret can write or read.

Sealed bytes begin with a version and the id of the key that sealed them, so opening costs one attempt, not one per secret.
Ciphertexts are AES-256-GCM-SIV (RFC 8452), which tolerates a repeated nonce. HKDF (RFC 5869) derives the keys from each secret, one
per purpose. The keys of values at rest also need the session's raw id, which no store has.
"""

from __future__ import annotations

from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Iterable
from functools import lru_cache
from hashlib import blake2b
from hmac import compare_digest
from os import urandom
from typing import Any, NamedTuple, TypeVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from msgspec import Struct

from gaman import ConfigError

T = TypeVar("T")

_VERSION = b"\x01"
_KEY_ID = 4
_NONCE = 12
_MAC = 16
_HEAD = len(_VERSION) + _KEY_ID
_BODY = _HEAD + _NONCE
OVERHEAD = _BODY + 16
"""Bytes that sealing adds."""
_MAX_TOKEN = 4096
_RAW_ID = 32
_MAX_SIGNED_ID = -(-(_HEAD + 1 + _RAW_ID + _MAC) * 4 // 3)
CACHE_SIZE = 1024
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
# By the length of a token, modulo 4: its padding, and its allowed last characters. The last of two or three characters has unused
# bits, which must be 0.
_PADDING = ("", "", "==", "=")
_LAST = (_ALPHABET, "", _ALPHABET[::16], _ALPHABET[::4])


class _Keys(Struct, frozen=True):
    """The keys of one secret."""

    # Struct's would show the keys.
    __repr__ = object.__repr__

    head: bytes
    token: AESGCMSIV
    id: bytes
    value: bytes
    owner: bytes
    note: bytes


class Identity(NamedTuple):
    """Which session a cookie leads to."""

    raw_id: bytes
    """The secret in the cookie."""
    id: str
    """Its hash, under which the store has the session."""
    is_transient: bool
    """Whether the cookie ends with the browser."""
    values: Values

    def __repr__(self) -> str:
        # The raw id is left out, because it opens the session as the cookie does.
        return f"{type(self).__name__}(id={self.id!r})"


class Keyring:
    """The keys of every secret, for the cookie *name*: the first secret seals, and all of them open.

    A secret may be listed twice. ConfigError: two secrets have the same key id, so one of them could not open what it sealed.
    """

    def __init__(self, secrets: Iterable[str], name: str) -> None:
        self._name = name.encode()
        self._token_context = b"token\0" + self._name
        all_keys = [_derive(secret.encode()) for secret in dict.fromkeys(secrets)]
        self._keys = {keys.head: keys for keys in all_keys}
        if len(self._keys) < len(all_keys):
            raise ConfigError(
                "session(): two of the secrets have the same key id, so sessions of one of them could not be opened; replace the "
                "newer of the two with one that `gaman key` makes"
            )
        self._newest = all_keys[0]
        # Browsers send the same cookie with each request, so its contents and its session are cached.
        self._opened: dict[str, Any] = {}
        self._identify = lru_cache(maxsize=CACHE_SIZE)(self._identify_once)

    @property
    def is_rotating(self) -> bool:
        """Whether there is more than one secret."""
        return len(self._keys) > 1

    def is_outdated(self, token: str) -> bool:
        """Return whether *token* wasn't sealed with the newest secret."""
        sealed = _decode(token)
        return sealed is not None and sealed[:_HEAD] != self._newest.head

    def seal_token(self, data: bytes) -> str:
        """Return *data* sealed, as the value of a cookie."""
        keys = self._newest
        return _encode(_seal(keys.token, keys.head, data, self._token_context))

    def open_token(self, token: str, read: Callable[[bytes], T]) -> T | None:
        """Return `read(data)` of the data that seal_token() sealed, or None if *token* isn't one of this cookie's.

        The same object may be returned again, so it must not be changed.
        """
        if (opened := self._opened.get(token)) is not None:
            if isinstance(opened, bytes):
                # Decoded objects are cached from the second use on; until then bytes are cheaper to keep.
                opened = self._opened[token] = read(opened)
            kept: T = opened
            return kept
        sealed = _decode(token)
        if sealed is None or (keys := self._keys.get(sealed[:_HEAD])) is None:
            return None
        data = _open(keys.token, sealed, self._token_context)
        if data is None:
            return None
        # An lru_cache would make the first use of a cookie several times as slow. A cookie that was cleared is cheap to open again.
        if len(self._opened) >= CACHE_SIZE:
            self._opened.clear()
        self._opened[token] = data
        return read(data)

    def sign_id(self, raw_id: bytes, is_transient: bool) -> str:
        """Return *raw_id* with its MAC, as the value of a cookie. *is_transient* says that the cookie ends with the browser."""
        keys = self._newest
        signed = keys.head + bytes((is_transient,)) + raw_id
        return _encode(signed + self._mac(keys, signed))

    def identify(self, token: str) -> Identity | None:
        """Return the session that *token* leads to, or None if it wasn't signed with our secrets for this cookie."""
        return self._identify(token) if len(token) <= _MAX_SIGNED_ID else None

    def _identify_once(self, token: str) -> Identity | None:
        verified = self.verify_id(token)
        return None if verified is None else self.identity(*verified)

    def identity(self, raw_id: bytes, is_transient: bool) -> Identity:
        """Return the identity of the session with that raw id."""
        return Identity(raw_id, id_of(raw_id), is_transient, self.values(raw_id))

    def verify_id(self, token: str) -> tuple[bytes, bool] | None:
        """Return the raw id and `is_transient` that sign_id() signed, or None if *token* isn't one of this cookie's."""
        decoded = _decode(token)
        if decoded is None or (keys := self._keys.get(decoded[:_HEAD])) is None:
            return None
        signed, mac = decoded[:-_MAC], decoded[-_MAC:]
        if not compare_digest(mac, self._mac(keys, signed)):
            return None
        return signed[_HEAD + 1 :], bool(signed[_HEAD])

    def values(self, raw_id: bytes) -> Values:
        """Return what seals the values of the session with that raw id."""
        return Values(self._keys, self._newest, raw_id, b"value\0" + self._name + b"\0")

    def owner_names(self, owner: str) -> list[str]:
        """Return the names of *owner* in a store: a keyed hash for each secret, the newest first."""
        named = self._name + b"\0" + owner.encode()
        return [blake2b(named, digest_size=32, key=keys.owner, person=b"gaman owner").hexdigest() for keys in self._keys.values()]

    def seal_note(self, id: str, owner_name: str, note: bytes) -> bytes:
        """Return *note* sealed for the session *id* and the owner of that name only.

        The key comes from the secret and the id, because list() doesn't know raw ids. So a stolen store and a stolen
        secret together open notes, but not values.
        """
        keys = self._newest
        return _seal(_note_key(keys, id), keys.head, note, self._note_context(owner_name))

    def open_note(self, id: str, owner_name: str, sealed: bytes) -> bytes | None:
        """Return the note that seal_note() sealed, or None if *sealed* isn't one of this session and owner."""
        keys = self._keys.get(sealed[:_HEAD])
        return None if keys is None else _open(_note_key(keys, id), sealed, self._note_context(owner_name))

    def seal_csrf(self, binding: str) -> str:
        """Return a token that proves *binding*. Each one is different, so that compressed pages don't give it away (BREACH)."""
        keys = self._newest
        return _encode(_seal(keys.token, keys.head, b"", b"csrf\0" + self._name + b"\0" + binding.encode()))

    def proves_csrf(self, token: str, binding: str) -> bool:
        """Return whether *token* is one that seal_csrf() returned for *binding*."""
        sealed = _decode(token)
        if sealed is None or (keys := self._keys.get(sealed[:_HEAD])) is None:
            return False
        return _open(keys.token, sealed, b"csrf\0" + self._name + b"\0" + binding.encode()) is not None

    def _note_context(self, owner_name: str) -> bytes:
        return b"note\0" + self._name + b"\0" + owner_name.encode()

    def _mac(self, keys: _Keys, signed: bytes) -> bytes:
        return blake2b(self._name + b"\0" + signed, digest_size=_MAC, key=keys.id, person=b"gaman id").digest()


class Values:
    """Seals the values of one session, each bound to its field."""

    __slots__ = ("_context", "_keys", "_newest", "_proven", "_raw_id", "_subkeys")

    def __init__(self, keys: dict[bytes, _Keys], newest: _Keys, raw_id: bytes, context: bytes) -> None:
        self._keys = keys
        self._newest = newest
        self._raw_id = raw_id
        self._context = context
        self._subkeys: dict[bytes, AESGCMSIV] = {}
        # The times that were proven last. They seldom change, and Values are cached across requests.
        self._proven: tuple[bytes, float, float] | None = None

    def seal(self, field: str, data: bytes) -> bytes:
        """Return *data* sealed for *field* of this session only."""
        keys = self._newest
        return _seal(self._subkey(keys), keys.head, data, self._context + field.encode())

    def open(self, field: str, sealed: bytes) -> bytes | None:
        """Return the data that seal() sealed, or None if *sealed* isn't one of this field and session."""
        keys = self._keys.get(sealed[:_HEAD])
        return None if keys is None else _open(self._subkey(keys), sealed, self._context + field.encode())

    def seal_times(self, created: float, expires: float) -> bytes:
        """Return the MAC of the session's times, which are seconds in whole milliseconds."""
        return self._newest.head + self._mac_times(self._newest, created, expires)

    def proves_times(self, seal: bytes, created: float, expires: float) -> bool:
        """Return whether *seal* is what seal_times() returned for these times."""
        if self._proven == (seal, created, expires):
            return True
        keys = self._keys.get(seal[:_HEAD])
        try:
            is_proven = keys is not None and compare_digest(seal[_HEAD:], self._mac_times(keys, created, expires))
        except (OverflowError, ValueError):
            # A damaged time may be infinite, or not a number.
            return False
        if is_proven:
            self._proven = seal, created, expires
        return is_proven

    def _mac_times(self, keys: _Keys, created: float, expires: float) -> bytes:
        times = b"%d %d" % (round(created * 1000), round(expires * 1000))
        return blake2b(self._raw_id + times, digest_size=_MAC, key=keys.value, person=b"gaman times").digest()

    def _subkey(self, keys: _Keys) -> AESGCMSIV:
        subkey = self._subkeys.get(keys.head)
        if subkey is None:
            material = blake2b(self._raw_id, digest_size=32, key=keys.value, person=b"gaman values").digest()
            subkey = self._subkeys[keys.head] = AESGCMSIV(material)
        return subkey


def new_raw_id(length: int = _RAW_ID) -> bytes:
    """Return the raw id of a new session: *length* random bytes."""
    return urandom(length)


def id_of(raw_id: bytes) -> str:
    """Return the id under which the store has a session: a hash, from which the cookie can't be made."""
    return blake2b(raw_id, digest_size=32, person=b"gaman handle").hexdigest()


def token_length(size: int) -> int:
    """Return how many characters a token of *size* bytes has."""
    return -(-(size + OVERHEAD) * 4 // 3)


def _derive(secret: bytes) -> _Keys:
    def key(purpose: bytes, length: int = 32) -> bytes:
        return HKDF(SHA256(), length, salt=None, info=b"gaman.session 1 " + purpose).derive(secret)

    head = _VERSION + key(b"key id", _KEY_ID)
    return _Keys(head, AESGCMSIV(key(b"token")), key(b"id"), key(b"value"), key(b"owner"), key(b"note"))


def _note_key(keys: _Keys, id: str) -> AESGCMSIV:
    return AESGCMSIV(blake2b(id.encode(), digest_size=32, key=keys.note, person=b"gaman note").digest())


def _seal(key: AESGCMSIV, head: bytes, data: bytes, context: bytes) -> bytes:
    nonce = urandom(_NONCE)
    return head + nonce + key.encrypt(nonce, data, context)


def _open(key: AESGCMSIV, sealed: bytes, context: bytes) -> bytes | None:
    try:
        return key.decrypt(sealed[_HEAD:_BODY], sealed[_BODY:], context)
    except (InvalidTag, ValueError):
        # ValueError: too short for a nonce.
        return None


def _encode(data: bytes) -> str:
    # Standard base64 (RFC 4648, section 4): a cookie may contain + and /.
    return b2a_base64(data, newline=False).rstrip(b"=").decode("ascii")


def _decode(token: str) -> bytes | None:
    """Return the bytes of *token*, or None unless it is their only spelling, without padding (RFC 4648, section 3.5)."""
    rest = len(token) % 4
    if not token or len(token) > _MAX_TOKEN or token[-1] not in _LAST[rest]:
        return None
    try:
        # Strict mode refuses characters outside of base64, and padding in the middle.
        return a2b_base64(token + _PADDING[rest], strict_mode=True)
    except ValueError:
        return None
