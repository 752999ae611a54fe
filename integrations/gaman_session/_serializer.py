"""Serializers: a value to bytes and back; never pickle, which runs code that an attacker has written into the store."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from itertools import chain
from typing import Any, Final, Protocol, cast

import msgspec

from gaman import defaults_setter
from gaman.errors import a_type
from gaman_session._errors import SessionSerializationError

MAX_DEPTH: Final = 100
"""Levels of containers in a value. A deeper value might be encoded, and then fail to be decoded on a deeper stack."""
TOO_DEEP: Final = f"it is nested deeper than {MAX_DEPTH} levels"

# The first octets of dicts and lists in MessagePack.
_CONTAINERS: Final = bytes([*range(0x80, 0xA0), 0xDC, 0xDD, 0xDE, 0xDF])
_NO_CONTAINERS: Final = bytes({*range(256)} - {*_CONTAINERS})
_KINDS: Final = frozenset({dict, list, tuple})
_decode_msgpack = msgspec.msgpack.Decoder().decode
_encode_json = msgspec.json.Encoder().encode
_decode_json = msgspec.json.Decoder().decode

# A request may create types, so the number of their decoders is limited.
_MAX_TYPES: Final = 1024


class Serializer(Protocol):
    """Any object with these two methods. They raise if they can't encode or decode."""

    def encode(self, value: Any, /) -> bytes:
        """Return *value* as bytes."""
        ...

    def decode(self, data: bytes, type: Any, /) -> Any:
        """Return the value of *data*; *type* is the type asked for, or None."""
        ...


class Encoder(Protocol):
    """Encodes values of any type."""

    def encode(self, value: Any, /) -> bytes: ...


class Decoder(Protocol):
    """Decodes values of one type, or of any type."""

    def decode(self, data: bytes, /) -> Any: ...


class Codec(msgspec.Struct):
    """Encodes and decodes values. Its encoder and decoders are msgspec's own, or a serializer's."""

    encoder: Encoder
    decoder: Decoder
    """Decodes a value of any type, as most reads do."""
    make: Callable[[Any], Decoder]
    """Makes the decoder of a type."""
    check_depth: Callable[[bytes], None] | None = None
    """Raises ValueError if an encoded value is nested deeper than MAX_DEPTH; None if the encoder does that.

    It is only called for data of more bytes than MAX_DEPTH.
    """
    decoders: dict[Any, Decoder] = {}
    """The decoders of the types that were asked for."""

    def encode(self, key: str, value: Any) -> bytes:
        """Return *value* as bytes. SessionSerializationError: it can't be encoded; the error names *key* and the type."""
        try:
            key.encode()
            data = self.encoder.encode(value)
            if data.__class__ is not bytes:
                raise TypeError(f"the serializer returned {a_type(data)}, not bytes")
            if self.check_depth is not None and len(data) > MAX_DEPTH:
                self.check_depth(data)
            return data
        except MemoryError:
            raise
        except Exception as cause:
            if isinstance(value, Coroutine):
                name = getattr(cast("object", value), "__qualname__", "?")
                value.close()
                raise SessionSerializationError(
                    f"the session can't keep {key!r}, the coroutine {name!r}: write `await` before that call"
                ) from None
            reason = TOO_DEEP if isinstance(cause, RecursionError) else cause
            raise SessionSerializationError(f"the session can't keep {key!r}, {a_type(value)}: {reason}") from cause

    def decoder_of(self, type: Any) -> Decoder:
        """Return the decoder of *type*."""
        try:
            return self.decoders[type]
        except (KeyError, TypeError):
            pass
        # Outside the handler, so that learn()'s errors don't chain to the KeyError.
        return self.learn(type)

    def learn(self, type: Any) -> Decoder:
        """Make the decoder of a *type* that is new, and keep it."""
        if len(self.decoders) >= _MAX_TYPES:
            self.decoders.popitem()
        decoder = self.make(type)
        # A type may be unhashable, as an Annotated can be.
        with suppress(TypeError):
            self.decoders[type] = decoder
        return decoder


class _CustomDecoder(msgspec.Struct, frozen=True):
    serializer: Serializer
    type: Any

    def decode(self, data: bytes, /) -> Any:
        return self.serializer.decode(data, self.type)


def custom(serializer: Serializer) -> Codec:
    """Return the codec of a user's serializer."""
    decoder = _CustomDecoder(serializer, None)

    def check_depth(data: bytes) -> None:
        try:
            value = decoder.decode(data)
        except (RecursionError, MemoryError):
            raise
        except Exception:
            # It may need a type; get() reports a value that can't be decoded.
            return
        if value.__class__ in _KINDS and _is_too_deep(value):
            raise ValueError(TOO_DEEP)

    return Codec(serializer, decoder, partial(_CustomDecoder, serializer), check_depth)


def _is_too_deep(value: Any) -> bool:
    """Return whether a decoded container is nested deeper than MAX_DEPTH. It doesn't recurse."""
    level: list[Any] = [value]
    for _ in range(MAX_DEPTH):
        # One comprehension without calls, because a visitor may have sent a million containers.
        level = [
            part
            for container in level
            if container
            for part in (chain(container, container.values()) if container.__class__ is dict else container)
            if part.__class__ in _KINDS
        ]
    return bool(level)


def _check_msgpack_depth(data: bytes) -> None:
    # Each container begins with one of these octets, so counting them shows that most values are shallow.
    if data[0] in _CONTAINERS and len(data.translate(None, _NO_CONTAINERS)) > MAX_DEPTH and _is_too_deep(_decode_msgpack(data)):
        raise ValueError(TOO_DEEP)


class _Json:
    """msgspec's JSON encoder, which also refuses values that would silently be decoded as something else."""

    def encode(self, value: Any, /) -> bytes:
        data = _encode_json(value)
        if data[0] in b"[{":
            decoded = _decode_json(data)
            if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _is_too_deep(decoded):
                raise ValueError(TOO_DEEP)
            # If a second encoding gives the same bytes, no dict has a key twice.
            if _encode_json(decoded) != data:
                json.loads(data, object_pairs_hook=_refuse_duplicates)
        if b"null" in data:
            # msgspec encodes inf and nan as null.
            try:
                json.dumps(msgspec.to_builtins(value, str_keys=True), allow_nan=False)
            except ValueError as cause:
                raise ValueError("JSON has neither inf nor nan; take the msgpack serializer, or None") from cause
        return data


def _refuse_duplicates(pairs: list[tuple[str, object]]) -> None:
    if len(dict(pairs)) != len(pairs):
        raise ValueError("two keys of a dict become one in JSON; make each of them text")


class _SettingDecoder(msgspec.Struct, frozen=True):
    """A decoder of dataclasses that sets their defaults, which msgspec leaves to the class."""

    decoder: Decoder
    set_defaults: Callable[[Any], None]

    def decode(self, data: bytes, /) -> Any:
        value = self.decoder.decode(data)
        self.set_defaults(value)
        return value


def _make(make: Callable[[Any], Decoder], type: Any) -> Decoder:
    decoder = make(type)
    set_defaults = defaults_setter(type)
    return decoder if set_defaults is None else _SettingDecoder(decoder, set_defaults)


CODECS = {
    "msgpack": Codec(
        msgspec.msgpack.Encoder(), msgspec.msgpack.Decoder(), partial(_make, msgspec.msgpack.Decoder), _check_msgpack_depth
    ),
    "json": Codec(_Json(), msgspec.json.Decoder(), partial(_make, msgspec.json.Decoder)),
}
