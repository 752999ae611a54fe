"""Serializers: a value to bytes and back; never pickle, which runs what a thief has written into the store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Final, Protocol

import msgspec

# A type that a request makes for itself is not to fill the memory.
_MOST_TYPES: Final = 1024


class Serializer(Protocol):
    """Anything with these two methods; what it can't do, it raises."""

    def encode(self, value: Any, /) -> bytes:
        """Return *value* as bytes."""
        ...

    def decode(self, data: bytes, type: Any, /) -> Any:
        """Return the value of *data*, as a *type* where that is not None."""
        ...


class _Decoders(dict[Any, Callable[[bytes], Any]]):
    """What decodes a type, or with None any, by a protocol of msgspec's; made when it is first asked for."""

    def __init__(self, protocol: ModuleType) -> None:
        super().__init__({None: protocol.Decoder().decode})
        self._protocol = protocol

    def __missing__(self, type: Any) -> Callable[[bytes], Any]:
        if len(self) > _MOST_TYPES:
            self.popitem()
        decode: Callable[[bytes], Any] = self._protocol.Decoder(type).decode
        self[type] = decode
        return decode


@dataclass(frozen=True, slots=True)
class _Msgspec:
    """One of msgspec's protocols, with an encoder and decoders that are made once."""

    encode: Callable[[Any], bytes]
    decoders: _Decoders

    def decode(self, data: bytes, type: Any, /) -> Any:
        return self.decoders[type](data)


def _msgspec(protocol: ModuleType) -> Serializer:
    return _Msgspec(protocol.Encoder().encode, _Decoders(protocol))


def untyped(serializer: Serializer) -> Callable[[bytes], Any]:
    """Return what decodes values of any type: most are read so, and one of ours needs no call of Python's in between."""
    return serializer.decoders[None] if isinstance(serializer, _Msgspec) else lambda data: serializer.decode(data, None)


SERIALIZERS = {"msgpack": _msgspec(msgspec.msgpack), "json": _msgspec(msgspec.json)}
