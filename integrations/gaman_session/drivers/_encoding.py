"""Records and tombstones as bytes with a checksum, for stores that keep plain bytes."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

from msgspec import DecodeError
from msgspec.msgpack import Decoder, Encoder

from gaman_session._driver import YEAR_10000, Record
from gaman_session._rules import Ending, Stored, Tombstone

_encoder = Encoder()
_RECORD, _TOMBSTONE = b"\x01", b"\x02"
_ENDING: Final = "ending"
_decode_ending: Final = Decoder(Ending).decode
_CHECKSUM_SIZE: Final = 16
_DECODERS: Final[Mapping[bytes, Decoder[Any]]] = {_RECORD: Decoder(Record), _TOMBSTONE: Decoder(Tombstone)}


def encode(id: str, stored: Stored) -> bytes:
    """Return the bytes of a session or a tombstone, which decode() accepts only for the same *id*."""
    return protect(id, (_TOMBSTONE if isinstance(stored, Tombstone) else _RECORD) + _encoder.encode(stored))


def decode(id: str, content: bytes) -> Stored | None:
    """Return the session or tombstone that encode() was given, or None for damaged bytes."""
    data = verify(id, content)
    if data is None or data[:1] not in _DECODERS:
        return None
    # The checksum detects accidents. A program that can write to the store can compute one, so the types are checked as well.
    try:
        stored: Stored = _DECODERS[data[:1]].decode(data[1:])
    except (DecodeError, UnicodeDecodeError, RecursionError):
        return None
    is_sound = 0 <= stored.deadline < YEAR_10000
    if isinstance(stored, Record):
        is_sound = (
            is_sound and 0 <= stored.created < YEAR_10000 and 0 <= stored.expires < YEAR_10000 and 0 <= stored.version < 1 << 63
        )
    return stored if is_sound else None


def encode_ending(ending: Ending) -> bytes:
    """Return the bytes of *ending*, for decode_ending()."""
    return protect(_ENDING, _encoder.encode(ending))


def decode_ending(content: bytes) -> Ending | None:
    """Return the Ending that encode_ending() was given, or None for damaged bytes."""
    data = verify(_ENDING, content)
    try:
        return None if data is None else _decode_ending(data)
    except DecodeError:
        return None


def protect(key: str, data: bytes) -> bytes:
    """Return *data* with a checksum before it. The key is a part of the checksum, so the bytes are valid under this key only."""
    return _checksum(key, data) + data


def verify(key: str, content: bytes) -> bytes | None:
    """Return the data that protect() was given, or None for damaged bytes."""
    data = content[_CHECKSUM_SIZE:]
    return data if content[:_CHECKSUM_SIZE] == _checksum(key, data) else None


def _checksum(key: str, data: bytes) -> bytes:
    return blake2b(data, digest_size=_CHECKSUM_SIZE, key=key.encode("ascii")).digest()
