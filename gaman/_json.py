"""JSON bodies: decoded, also into a type, within a limit of depth."""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate
from typing import Any, TypeVar

import msgspec

from gaman.errors import HTTPError, ResultError

T = TypeVar("T")

_MAX_DEPTH = 100
"""Levels of arrays and objects in a JSON body."""

# Both kinds of brackets count alike. One becomes the signed octet that says where it leads: a level down, or up.
_ALIKE = bytes.maketrans(b"{}", b"[]")
_STEPS = bytes.maketrans(b"[]", b"\x01\xff")
_NO_BRACKETS = bytes({*range(256)} - {*b"[{]}"})

_decode_any = msgspec.json.Decoder().decode


def decode(body: bytes, type: Any = None) -> Any:
    """Return the value of a JSON *body*, decoded into *type* where one is given.

    HTTPError 400 is raised for malformed JSON, 422 for a body that doesn't fit the type, ResultError for what isn't a type.
    """
    if len(body) > _MAX_DEPTH:
        _check_depth(body)
    try:
        return _decode_any(body) if type is None else _decoder_of(type).decode(body)
    except msgspec.ValidationError as cause:
        raise HTTPError(422, str(cause)) from cause
    except (msgspec.DecodeError, UnicodeDecodeError) as cause:
        raise HTTPError(400, f"malformed JSON: {str(cause).removeprefix('JSON is malformed: ')}") from cause


def _decoder_of(type: Any) -> msgspec.json.Decoder[Any]:
    try:
        return _json_decoder(type)
    except TypeError:
        given = type.__class__.__name__
        raise ResultError(
            f"ctx.json() takes a type to decode the body into, not a {given}; return Response.json() to answer"
        ) from None


@lru_cache(maxsize=1024)
def _json_decoder(type: type[T]) -> msgspec.json.Decoder[T]:
    return msgspec.json.Decoder(type)


def _check_depth(body: bytes) -> None:
    """Raise HTTPError 400 for a JSON *body* that is nested deeper than 100 levels, which a decoder would need a stack for."""
    if body.count(b"[") + body.count(b"{") <= _MAX_DEPTH:
        return
    # Once the escaped quotes are out, every second piece between quotes is outside of strings.
    outside = b"".join(body.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"')[::2])
    brackets = outside.translate(_ALIKE, _NO_BRACKETS)
    # Most containers hold no other, so a few of the innermost levels are most of a body.
    levels = _MAX_DEPTH
    while levels > _MAX_DEPTH - 4 and (rest := brackets.replace(b"[]", b"")) != brackets:
        brackets, levels = rest, levels - 1
    if any(map(levels.__lt__, accumulate(memoryview(brackets.translate(_STEPS)).cast("b")))):
        raise HTTPError(400, f"malformed JSON: nested deeper than {_MAX_DEPTH} levels")
