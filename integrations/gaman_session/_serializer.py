"""Serializers: a value to bytes and back. Never pickle, which runs what a thief has written into the store."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache
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


class _Msgspec:
    """One of msgspec's protocols, with an encoder and decoders that are made once."""

    __slots__ = ("_decode_any", "_decoder", "_encode")

    def __init__(self, encoder: Any, decoder: Any) -> None:
        self._encode: Callable[[Any], bytes] = encoder().encode
        self._decode_any: Callable[[bytes], Any] = decoder().decode
        self._decoder = lru_cache(maxsize=1024)(decoder)

    def encode(self, value: Any, /) -> bytes:
        return self._encode(value)

    def decode(self, data: bytes, type: Any, /) -> Any:
        return self._decode_any(data) if type is None else self._decoder(type).decode(data)


SERIALIZERS: Mapping[str, Serializer] = {
    "msgpack": _Msgspec(msgspec.msgpack.Encoder, msgspec.msgpack.Decoder),
    "json": _Msgspec(msgspec.json.Encoder, msgspec.json.Decoder),
}
