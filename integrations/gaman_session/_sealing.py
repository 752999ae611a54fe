"""Sealing: bytes that only the holder of a secret could have written, or can read.

A sealed string begins with a version and the id of the key that sealed it, so that opening costs one attempt however many
secrets are still honoured. Ciphertexts are AES-256-GCM-SIV (RFC 8452), which a repeated nonce does not break. The keys come from
each secret by HKDF (RFC 5869), one for each purpose; those of values at rest also need the session's id, which no store holds.
"""

from __future__ import annotations

from binascii import a2b_base64, b2a_base64
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from hmac import compare_digest
from os import urandom
from typing import NamedTuple, TypeVar, cast

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from gaman import ConfigError

T = TypeVar("T")

_VERSION = b"\x01"
_KEY_ID = 4
_NONCE = 12
_MAC = 16
_HEAD = len(_VERSION) + _KEY_ID
_BODY = _HEAD + _NONCE
OVERHEAD = _BODY + 16
"""By how many bytes a ciphertext is longer than its plaintext."""
_LONGEST_TOKEN = 4096
_ID = 32
_LONGEST_SIGNED = -(-(_HEAD + 1 + _ID + _MAC) * 4 // 3)
_REMEMBERED = 1024
_ALPHABET = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
# By the length of a token, modulo 4: what fills it up, and what it may end in, for of the last of two or three characters, some
# bits stand for nothing and must be 0.
_PADDING = ("", "", "==", "=")
_LAST = (_ALPHABET, "", _ALPHABET[::16], _ALPHABET[::4])


@dataclass(frozen=True, slots=True, repr=False)
class _Keys:
    """What one secret gives."""

    head: bytes
    token: AESGCMSIV
    id: bytes
    value: bytes
    owner: bytes
    note: bytes


class Identity(NamedTuple):
    """Which session a cookie leads to, and what the store knows of that."""

    id: bytes
    handle: str
    is_transient: bool
    """Whether the cookie is to end with the browser."""
    values: Values

    def __repr__(self) -> str:
        # The id is as good as the cookie.
        return f"{type(self).__name__}(handle={self.handle!r})"


class Keyring:
    """The keys of every honoured secret, for the cookie *name*: the first one seals, and all of them open.

    A secret may be listed twice. ConfigError: two secrets have the same key id, so what one of them has sealed could not be opened.
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
        # A browser asks several times in a row, and its cookie is the same each time: what it holds, and which session it leads to.
        self._opened: dict[str, object] = {}
        self._identify = lru_cache(maxsize=_REMEMBERED)(self._identify_once)

    def seal_token(self, payload: bytes) -> str:
        """Return *payload* as the value of a cookie."""
        # _seal(), unrolled, as _open() is below: every write of a cookie's session comes by here.
        keys, nonce = self._newest, urandom(_NONCE)
        return _encode(keys.head + nonce + keys.token.encrypt(nonce, payload, self._token_context))

    def open_token(self, token: str, read: Callable[[bytes], T]) -> T | None:
        """Return what *read* makes of what seal_token() was given, or None if *token* wasn't sealed here for this cookie.

        The same object may be returned again, so it must not be changed.
        """
        if (opened := self._opened.get(token)) is not None:
            if isinstance(opened, bytes):
                # It is read for the second time. What is seen only once stays bytes, which are cheaper to keep.
                opened = self._opened[token] = read(opened)
            return cast("T", opened)
        sealed = _decode(token)
        if sealed is None or (keys := self._keys.get(sealed[:_HEAD])) is None:
            return None
        try:
            # _open(), unrolled.
            payload = keys.token.decrypt(sealed[_HEAD:_BODY], sealed[_BODY:], self._token_context)
        except (InvalidTag, ValueError):
            return None
        # Unlike identities, these are cheap to drop all at once, and lru_cache would cost a new cookie several times as much.
        if len(self._opened) >= _REMEMBERED:
            self._opened.clear()
        self._opened[token] = payload
        return read(payload)

    def sign_id(self, id: bytes, transient: bool) -> str:
        """Return a session's *id* as the value of a cookie, which remembers whether it is to end with the browser."""
        keys = self._newest
        signed = keys.head + bytes((transient,)) + id
        return _encode(signed + self._mac(keys, signed))

    def identify(self, token: str) -> Identity | None:
        """Return which session *token* leads to, or None where it was not us who signed it, for this cookie."""
        return self._identify(token) if len(token) <= _LONGEST_SIGNED else None

    def _identify_once(self, token: str) -> Identity | None:
        known = self.verify_id(token)
        return None if known is None else self.identity(*known)

    def identity(self, id: bytes, is_transient: bool) -> Identity:
        """Return all that goes with a session's id."""
        return Identity(id, handle(id), is_transient, self.values(id))

    def verify_id(self, token: str) -> tuple[bytes, bool] | None:
        """Return what sign_id() was given, or None where it was not us who signed *token*, for this cookie."""
        raw = _decode(token)
        if raw is None or (keys := self._keys.get(raw[:_HEAD])) is None:
            return None
        signed, mac = raw[:-_MAC], raw[-_MAC:]
        if not compare_digest(mac, self._mac(keys, signed)):
            return None
        return signed[_HEAD + 1 :], bool(signed[_HEAD])

    def values(self, id: bytes) -> Values:
        """Return the seal for the values of the session *id*."""
        return Values(self._keys, self._newest, id, b"value\0" + self._name + b"\0")

    def owners(self, owner: str) -> list[str]:
        """Return the hashes under which stores know *owner*: one for each secret that is honoured, the newest first."""
        named = self._name + b"\0" + owner.encode()
        return [blake2b(named, digest_size=32, key=keys.owner, person=b"gaman owner").hexdigest() for keys in self._keys.values()]

    def seal_note(self, handle: str, owner: str, note: bytes) -> bytes:
        """Return *note*, to be opened for that session of that owner alone, both by their hashes.

        The key comes from the secret and the handle, for whoever lists an owner's sessions has not their ids. So a stolen store and
        a stolen secret together open notes, other than values.
        """
        keys = self._newest
        return _seal(_note_key(keys, handle), keys.head, note, self._note_context(owner))

    def open_note(self, handle: str, owner: str, sealed: bytes) -> bytes | None:
        """Return what seal_note() was given, or None where *sealed* comes from somewhere else."""
        keys = self._keys.get(sealed[:_HEAD])
        return None if keys is None else _open(_note_key(keys, handle), sealed, self._note_context(owner))

    def _note_context(self, owner: str) -> bytes:
        return b"note\0" + self._name + b"\0" + owner.encode()

    def _mac(self, keys: _Keys, signed: bytes) -> bytes:
        return blake2b(self._name + b"\0" + signed, digest_size=_MAC, key=keys.id, person=b"gaman id").digest()


class Values:
    """Seals the values of one session, each bound to its field."""

    __slots__ = ("_context", "_id", "_keys", "_newest", "_proven", "_subkeys")

    def __init__(self, keys: dict[bytes, _Keys], newest: _Keys, id: bytes, context: bytes) -> None:
        self._keys = keys
        self._newest = newest
        self._id = id
        self._context = context
        self._subkeys: dict[bytes, AESGCMSIV] = {}
        # A session's times are the same at each load, and Values are kept for many requests.
        self._proven: tuple[bytes, float, float] | None = None

    def seal(self, field: str, data: bytes) -> bytes:
        """Return *data*, to be opened under *field* of this session alone."""
        keys = self._newest
        return _seal(self._subkey(keys), keys.head, data, self._context + field.encode())

    def open(self, field: str, sealed: bytes) -> bytes | None:
        """Return what seal() was given, or None where *sealed* comes from somewhere else."""
        keys = self._keys.get(sealed[:_HEAD])
        return None if keys is None else _open(self._subkey(keys), sealed, self._context + field.encode())

    def seal_times(self, created: float, expires: float) -> bytes:
        """Return what proves the times of this session, which are seconds in whole milliseconds."""
        return self._newest.head + self._mac_times(self._newest, created, expires)

    def proves_times(self, seal: bytes, created: float, expires: float) -> bool:
        """Return whether *seal* is what seal_times() gave for these times."""
        if self._proven == (seal, created, expires):
            return True
        keys = self._keys.get(seal[:_HEAD])
        try:
            is_proven = keys is not None and compare_digest(seal[_HEAD:], self._mac_times(keys, created, expires))
        except (OverflowError, ValueError):
            # It is infinite, or not a number.
            return False
        if is_proven:
            self._proven = seal, created, expires
        return is_proven

    def _mac_times(self, keys: _Keys, created: float, expires: float) -> bytes:
        times = b"%d %d" % (round(created * 1000), round(expires * 1000))
        return blake2b(self._id + times, digest_size=_MAC, key=keys.value, person=b"gaman times").digest()

    def _subkey(self, keys: _Keys) -> AESGCMSIV:
        subkey = self._subkeys.get(keys.head)
        if subkey is None:
            material = blake2b(self._id, digest_size=32, key=keys.value, person=b"gaman values").digest()
            subkey = self._subkeys[keys.head] = AESGCMSIV(material)
        return subkey


def new_id(length: int = _ID) -> bytes:
    """Return a session's id: *length* random bytes."""
    return urandom(length)


def handle(id: bytes) -> str:
    """Return the name under which the store keeps the session *id*: a hash, from which nobody gets back to the cookie."""
    return blake2b(id, digest_size=32, person=b"gaman handle").hexdigest()


def token_length(payload: int) -> int:
    """Return how many characters seal_token() makes of so many bytes."""
    return -(-(payload + OVERHEAD) * 4 // 3)


def _derive(secret: bytes) -> _Keys:
    def key(purpose: bytes, length: int = 32) -> bytes:
        return HKDF(SHA256(), length, salt=None, info=b"gaman.session 1 " + purpose).derive(secret)

    head = _VERSION + key(b"key id", _KEY_ID)
    return _Keys(head, AESGCMSIV(key(b"token")), key(b"id"), key(b"value"), key(b"owner"), key(b"note"))


def _note_key(keys: _Keys, handle: str) -> AESGCMSIV:
    return AESGCMSIV(blake2b(handle.encode(), digest_size=32, key=keys.note, person=b"gaman note").digest())


def _seal(key: AESGCMSIV, head: bytes, data: bytes, context: bytes) -> bytes:
    nonce = urandom(_NONCE)
    return head + nonce + key.encrypt(nonce, data, context)


def _open(key: AESGCMSIV, sealed: bytes, context: bytes) -> bytes | None:
    try:
        return key.decrypt(sealed[_HEAD:_BODY], sealed[_BODY:], context)
    except (InvalidTag, ValueError):
        # ValueError: it is too short for a nonce.
        return None


def _encode(raw: bytes) -> str:
    # Base64 as it is, RFC 4648, section 4: a cookie holds + and / as well as it does - and _.
    return b2a_base64(raw, newline=False).rstrip(b"=").decode("ascii")


def _decode(token: str) -> bytes | None:
    """Return the bytes of *token* where it is their one spelling, without padding (RFC 4648, section 3.5)."""
    rest = len(token) % 4
    if not token or len(token) > _LONGEST_TOKEN or token[-1] not in _LAST[rest]:
        return None
    try:
        # Strictly, a character that is none of base64's, or padding in the middle, is an error.
        return a2b_base64(token + _PADDING[rest], strict_mode=True)
    except ValueError:
        return None
