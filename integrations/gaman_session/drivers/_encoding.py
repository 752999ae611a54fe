"""Records and tombstones as bytes with a checksum, for stores that keep plain bytes."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any, Final

from msgspec import DecodeError
from msgspec.msgpack import Decoder, Encoder

from gaman_session._driver import YEAR_10000, Record
from gaman_session._rules import Stored, Tombstone

_encoder = Encoder()
_RECORD, _TOMBSTONE = b"\x01", b"\x02"
_DECODERS: Final[Mapping[bytes, Decoder[Any]]] = {_RECORD: Decoder(Record), _TOMBSTONE: Decoder(Tombstone)}


def encode(id: str, stored: Stored) -> bytes:
    """Return the bytes of a session or a tombstone, which decode() accepts only for the same *id*."""
    data = (_TOMBSTONE if isinstance(stored, Tombstone) else _RECORD) + _encoder.encode(stored)
    return _checksum(id, data) + data


def decode(id: str, content: bytes) -> Stored | None:
    """Return the session or tombstone that encode() was given, or None for damaged bytes."""
    checksum, kind, data = content[:16], content[16:17], content[17:]
    if kind not in _DECODERS or checksum != _checksum(id, kind + data):
        return None
    # The checksum detects accidents. A program that can write to the store can compute one, so the types are checked as well.
    try:
        stored: Stored = _DECODERS[kind].decode(data)
    except (DecodeError, UnicodeDecodeError, RecursionError):
        return None
    numbers = [stored.created, stored.expires, stored.deadline, stored.version] if isinstance(stored, Record) else [stored.deadline]
    return stored if all(0 <= number < YEAR_10000 for number in numbers) else None


def _checksum(id: str, data: bytes) -> bytes:
    """Return the checksum of *data*; the id is its key, so that no session can be copied to another id."""
    return blake2b(data, digest_size=16, key=id.encode("ascii")).digest()
