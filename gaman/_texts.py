"""Texts: read as the values of a type, as forms, queries and paths spell them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from datetime import datetime
from decimal import Decimal
from functools import lru_cache
from math import isfinite
from typing import TYPE_CHECKING, Any

import msgspec

from gaman._faults import is_beyond_utc, out_of_range
from gaman._params import TYPES, Test
from gaman.errors import HTTPError, ResultError

if TYPE_CHECKING:
    from msgspec.inspect import Type

Reader = Callable[[str], object]
"""Returns what a text spells, for msgspec to check, or EMPTY if it is empty. A text that spells nothing is returned as text."""

EMPTY: Any = object()
_TYPE = type

_BOOLS = {"true": True, "on": True, "yes": True, "1": True, "false": False, "off": False, "no": False, "0": False}
# More digits would cost noticeable time. ASCII only.
_is_integer = re.compile(r"[+-]?[0-9]{1,300}").fullmatch
_is_number = re.compile(r"[+-]?(?:[0-9]{1,300}\.?[0-9]{0,300}|\.[0-9]{1,300})(?:[eE][+-]?[0-9]{1,3})?").fullmatch
_MAX_EXACT = 1 << 53
"""A float is an exact integer up to here."""
# Browsers leave out the seconds of `<input type="datetime-local">` and `<input type="time">`.
_lacks_seconds = re.compile(r"(?:[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ])?[0-9]{2}:[0-9]{2}").fullmatch


def decode_text(text: str, type: Any) -> Any:
    """Return the parameter *text* of a path as *type*; HTTPError 404 if it doesn't fit, ResultError for an unsuitable type."""
    try:
        read, fits = _reader_of(type)
    except ResultError:
        raise
    except TypeError:
        # An unhashable object isn't a type.
        raise _unsuitable(type) from None
    # One spelling for each value, as in typed parameters.
    if (fits is not None and not fits(text)) or (read is not as_text and text != text.strip()):
        raise HTTPError(404)
    value = read(text)
    # The spelling of an int has at most 64 bits.
    if fits is None and out_of_range(value) is not None:
        raise HTTPError(404)
    try:
        return msgspec.convert(value, type)
    except (msgspec.ValidationError, UnicodeEncodeError) as cause:
        raise HTTPError(404) from cause


@lru_cache(maxsize=1024)
def _reader_of(type: Any) -> tuple[Reader, Test | None]:
    """Return the reader of *type*, and the test of its spellings if it is an int, a float or a UUID, also an Annotated one."""
    from msgspec import inspect as i  # noqa: PLC0415 - takes a millisecond to load, and many applications never need it

    try:
        members = members_of(i.type_info(type))
        read = reader(members)
    except TypeError:
        raise _unsuitable(type) from None
    if read is None:
        raise _unsuitable(type)
    kinds = {member.__class__ for member in members} - {i.NoneType}
    tests: dict[type[i.Type], Test] = {i.IntType: TYPES["int"], i.FloatType: TYPES["float"], i.UUIDType: TYPES["uuid"]}
    return read, tests.get(kinds.pop()) if len(kinds) == 1 else None


def _unsuitable(type: Any) -> ResultError:
    return ResultError(f"ctx.param() takes a type that a text can become, such as int, UUID, date or an Enum, not {describe(type)}")


def unresolved(type: Any, call: str, error: NameError) -> ResultError:
    """Return the error for a *type* whose annotations have a name that isn't defined."""
    return ResultError(f"{call}: {error}, in an annotation of {describe(type)}; define or import it at the top of the module")


def describe(type: Any) -> str:
    """Return the name of *type* for messages; for what isn't a type, the name of its class."""
    if isinstance(type, _TYPE):
        return type.__qualname__
    return repr(type) if hasattr(type, "__args__") else f"an object of {type.__class__.__name__}"


def _is_beyond_utc(text: str) -> bool:
    try:
        return is_beyond_utc(msgspec.convert(text, datetime))
    except msgspec.ValidationError:
        return False


def as_text(text: str) -> str:
    """Return *text*: the reader of a type that takes any text."""
    return text


def members_of(node: Type) -> list[Type]:
    """Return the members of a union, or the type itself, without the wrappers of metadata."""
    from msgspec import inspect  # noqa: PLC0415

    if isinstance(node, inspect.Metadata):
        return members_of(node.type)
    return [member for inner in node.types for member in members_of(inner)] if isinstance(node, inspect.UnionType) else [node]


def reader(members: Sequence[Type]) -> Reader | None:
    """Return the reader of a type with these *members*, or None if no text becomes one of them."""
    from msgspec import inspect as i  # noqa: PLC0415

    scalars = (
        i.BoolType,
        i.IntType,
        i.FloatType,
        i.DecimalType,
        i.DateTimeType,
        i.DateType,
        i.TimeType,
        i.TimeDeltaType,
        i.UUIDType,
    )
    texts, choices = (i.StrType, i.AnyType, i.BytesType), (i.EnumType, i.LiteralType)
    if not all(isinstance(member, (*scalars, *texts, *choices, i.NoneType)) for member in members):
        return None
    if any(isinstance(member, texts) for member in members):
        return as_text
    values: list[object] = [
        value
        for member in members
        if isinstance(member, choices)
        for value in (member.values if isinstance(member, i.LiteralType) else [choice.value for choice in member.cls])
    ]
    kinds: set[object] = {member.__class__ for member in members}
    if any(isinstance(value, int) for value in values):
        kinds.add(i.IntType)
    empty = None if i.NoneType in kinds or None in values else EMPTY
    has_int, has_float, has_decimal, has_bool = (kind in kinds for kind in (i.IntType, i.FloatType, i.DecimalType, i.BoolType))
    has_time = bool(kinds & {i.DateTimeType, i.TimeType})

    def read(text: str) -> object:
        if text in values or not (text := text.strip()):
            return text or ("" if "" in values else empty)
        if has_int and _is_integer(text) is not None:
            return int(text)
        if has_bool and (truth := _BOOLS.get(text.lower())) is not None:
            return truth
        if (has_int or has_float) and _is_number(text) is not None and isfinite(number := float(text)):
            # A float is rounded: 4503599627370496.1 is an integer, and 1e-400 is 0.
            is_exact = has_float or (number.is_integer() and abs(number) <= _MAX_EXACT and Decimal(text) == number)
            return number if has_float else int(number) if is_exact else text
        if has_time and _lacks_seconds(text) is not None:
            return f"{text}:00"
        if i.DateTimeType in kinds and text.startswith(("0001-", "9999-")) and _is_beyond_utc(text):
            return ""
        # msgspec takes NaN and Infinity as a Decimal, and refuses an empty text.
        return "" if has_decimal and _is_number(text) is None else text

    return read
