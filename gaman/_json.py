"""JSON bodies: decoded within a limit of depth, into a type if one is given."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from itertools import accumulate
from typing import Any, NamedTuple

import msgspec

from gaman._faults import fault_of, out_of_range
from gaman._texts import describe, members_of, unresolved
from gaman._types import defaults_setter, parts_of
from gaman.errors import HTTPError, InvalidInput, ResultError, a_type

_MAX_DEPTH = 100
"""In nested arrays and objects."""

# Both kinds of brackets count the same. Each becomes a signed octet: one level down is 1, one level up is -1.
_ALIKE = bytes.maketrans(b"{}", b"[]")
_STEPS = bytes.maketrans(b"[]", b"\x01\xff")
_NO_BRACKETS = bytes({*range(256)} - {*b"[{]}"})

_AS_ZEROS = bytes.maketrans(b"123456789", b"0" * 9)
_LONG_INTEGER = b"0" * 19
_long_integers = re.compile(rb"[1-9][0-9]{18,}").findall

# The years in which a time can be beyond the range of UTC. The digits may be escaped.
_holds_edge = re.compile(rb"0001-|9999-|\\u00").search

# What Decimal takes for no finite number, or for an extreme one, in ASCII or not. The text may be escaped.
_spells_odd_number = re.compile(
    rb"""(?i)"[\s+\-_\x80-\xff]*(?:(?:s_*)?n_*a_*n[\d_]*|i_*n_*f[inty_]*)[\s\x80-\xff]*"|e[+-]?(?:[\d_]{4}|[\d_]*[\x80-\xff])|[\d_]{9999}|\\u"""
).search

_VALUES = (dict, list, str, int, float, bool, type(None))
"""The types of JSON."""


class _Decoder(NamedTuple):
    """What decodes JSON into a type."""

    decode: Callable[[bytes], Any]
    has_times: bool = False
    has_numbers: bool = False
    """Whether a text may become a number: a Decimal, or a float that is a key. It may spell NaN."""
    set_defaults: Callable[[Any], None] | None = None


_any = _Decoder(msgspec.json.Decoder().decode)


def decode(body: bytes, type: Any = None) -> Any:
    """Return the value of a JSON *body*, decoded into *type* if one is given.

    HTTPError 400 is raised for malformed JSON, InvalidInput for a body that doesn't fit the type, and ResultError for a *type* that
    isn't one.
    """
    _check_depth(body)
    decode, has_times, has_numbers, set_defaults = _any if type is None else _decoder_of(type)
    try:
        value = decode(body)
    except msgspec.ValidationError as cause:
        raise InvalidInput(*fault_of(cause)) from cause
    except (msgspec.DecodeError, UnicodeDecodeError) as cause:
        raise HTTPError(400, f"malformed JSON: {str(cause).removeprefix('JSON is malformed: ')}") from cause
    # Few bodies hold so many digits, and the check takes several times as long as decoding.
    if (
        _LONG_INTEGER in body.translate(_AS_ZEROS)
        or (has_times and _holds_edge(body) is not None)
        or (has_numbers and _spells_odd_number(body) is not None)
    ):
        builtins = msgspec.to_builtins(value, builtin_types=(datetime, Decimal), enc_hook=lambda _: None)
        # A default of the type, or a value that it derives, may be larger.
        if (fault := out_of_range(builtins, {*_long_integers(body)})) is not None:
            raise InvalidInput(*fault)
    if set_defaults is not None:
        set_defaults(value)
    return value


def _decoder_of(type: Any) -> _Decoder:
    try:
        return _json_decoder(type)
    except NameError as error:
        raise unresolved(type, "ctx.json()", error) from None
    except ResultError:
        raise
    except TypeError:
        raise ResultError(
            f"ctx.json() takes a type to decode the body into, not {a_type(type)}; return Response.json() to answer"
        ) from None


# Saves 2 microseconds a body, because handlers decode into few types.
@lru_cache(maxsize=1024)
def _json_decoder(type: Any) -> _Decoder:
    from msgspec import inspect  # noqa: PLC0415 - takes a millisecond to load, and many applications never need it

    decode = msgspec.json.Decoder(type).decode
    # A field with a default may have any type, because no client needs to send it.
    for part in parts_of(type, required=True):
        # An abstract class may be one of a JSON value.
        if isinstance(part, inspect.CustomType) and not any(issubclass(kind, part.cls) for kind in _VALUES):
            raise _foreign(part.cls)
    parts = [*parts_of(type)]
    keys = [key for part in parts if isinstance(part, inspect.DictType) for key in members_of(part.key_type)]
    return _Decoder(
        decode,
        any(isinstance(part, inspect.DateTimeType) for part in parts),
        any(isinstance(part, inspect.DecimalType) for part in parts) or any(isinstance(key, inspect.FloatType) for key in keys),
        defaults_setter(type),
    )


def _foreign(cls: type[Any]) -> ResultError:
    """Return the error for a class that no JSON becomes."""
    if hasattr(cls, "model_validate"):
        fix = f"for this model of pydantic, write `{cls.__name__}.model_validate(await ctx.json())`"
    else:
        fix = "make it a dataclass, a Struct or a TypedDict"
    return ResultError(f"ctx.json() can't decode into {describe(cls)}; {fix}")


def _check_depth(body: bytes) -> None:
    """Raise HTTPError 400 for a JSON *body* with more than 100 nested levels, because the decoder recurses into each."""
    if body.count(b"[") + body.count(b"{") <= _MAX_DEPTH:
        return
    # Without escaped quotes, every second piece between quotes is outside of strings.
    outside = b"".join(body.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')[::2])
    brackets = outside.translate(_ALIKE, _NO_BRACKETS)
    # Removing up to four innermost levels first makes the check of a large body 13 % faster: most containers hold no other.
    levels = _MAX_DEPTH
    while levels > _MAX_DEPTH - 4 and (rest := brackets.replace(b"[]", b"")) != brackets:
        brackets, levels = rest, levels - 1
    if any(map(levels.__lt__, accumulate(memoryview(brackets.translate(_STEPS)).cast("b")))):
        raise HTTPError(400, f"malformed JSON: nested deeper than {_MAX_DEPTH} levels")
