"""Serializers: a value to bytes and back; never pickle, which runs what a thief has written into the store."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
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


class Encoder(Protocol):
    """What encodes values of any type."""

    def encode(self, value: Any, /) -> bytes: ...


class Decoder(Protocol):
    """What decodes values of one type, or of any."""

    def decode(self, data: bytes, /) -> Any: ...


@dataclass(slots=True)
class Codec:
    """How values are kept: what encodes them, and what decodes them. msgspec's own objects are called with no step in between."""

    encoder: Encoder
    decoder: Decoder
    """Decodes a value of any type: most are read so."""
    make: Callable[[Any], Decoder]
    """Makes what decodes a type."""
    decoders: dict[Any, Decoder] = field(init=False, default_factory=dict[Any, Decoder])
    """What decodes the types that were asked for."""

    def learn(self, type: Any) -> Decoder:
        """Make what decodes a *type* that is not among the decoders, and keep it there."""
        if len(self.decoders) >= _MOST_TYPES:
            self.decoders.popitem()
        decoder = self.make(type)
        # An Annotated that can't be hashed is a type too.
        with suppress(TypeError):
            self.decoders[type] = decoder
        return decoder


@dataclass(frozen=True, slots=True)
class _CustomDecoder:
    serializer: Serializer
    type: Any

    def decode(self, data: bytes, /) -> Any:
        return self.serializer.decode(data, self.type)


def custom(serializer: Serializer) -> Codec:
    """Return the codec of a serializer that is not one of ours."""
    return Codec(serializer, _CustomDecoder(serializer, None), partial(_CustomDecoder, serializer))


CODECS = {
    name: Codec(protocol.Encoder(), protocol.Decoder(), protocol.Decoder)
    for name, protocol in (("msgpack", msgspec.msgpack), ("json", msgspec.json))
}
