"""Serializers: a value to bytes and back; never pickle, which runs what a thief has written into the store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from types import ModuleType
from typing import Any, Protocol

import msgspec


class Serializer(Protocol):
    """Anything with these two methods; what it can't do, it raises."""

    def encode(self, value: Any, /) -> bytes:
        """Return *value* as bytes."""
        ...

    def decode(self, data: bytes, type: Any, /) -> Any:
        """Return the value of *data*, as a *type* where that is not None."""
        ...


@dataclass(frozen=True, slots=True)
class _Msgspec:
    """One of msgspec's protocols, with an encoder and decoders that are made once."""

    encode: Callable[[Any], bytes]
    decode_any: Callable[[bytes], Any]
    decoder: Callable[[Any], Any]

    def decode(self, data: bytes, type: Any, /) -> Any:
        return self.decode_any(data) if type is None else self.decoder(type).decode(data)


def _msgspec(protocol: ModuleType) -> Serializer:
    return _Msgspec(protocol.Encoder().encode, protocol.Decoder().decode, lru_cache(maxsize=1024)(protocol.Decoder))


def untyped(serializer: Serializer) -> Callable[[bytes], Any]:
    """Return what decodes values of any type: most are read so, and one of ours needs no call of Python's in between."""
    return serializer.decode_any if isinstance(serializer, _Msgspec) else lambda data: serializer.decode(data, None)


SERIALIZERS = {"msgpack": _msgspec(msgspec.msgpack), "json": _msgspec(msgspec.json)}
