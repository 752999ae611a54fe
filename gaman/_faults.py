"""Faults of input: what is wrong with a value, in words for a person, and the path of the value."""

from __future__ import annotations

import re
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from datetime import UTC, datetime
from decimal import Decimal
from math import isfinite
from typing import Any

import msgspec

_MIN, _MAX = -(1 << 63), (1 << 63) - 1
"""The integers of 64 bits."""
_MAX_EXPONENT = 9_999
"""Of a Decimal. The int of a larger one may take all memory."""
_KINDS = {
    "int": "an integer",
    "float": "a number",
    "decimal": "a number",
    "bool": "true or false",
    "str": "a string",
    "date": "a date",
    "time": "a time",
    "datetime": "a date and time",
    "duration": "a duration",
    "uuid": "a UUID",
    "array": "a list",
    "object": "an object",
    "null": "null",
}
"""msgspec's names of types."""
_CONTAINERS = {dict, list, tuple}
_UNITS = {"str": "character", "array": "item", "object": "entry"}

_missing = re.compile(r"Object (?:missing required|contains unknown) field `(.*)`", re.DOTALL).fullmatch


def _not_kind(found: re.Match[str]) -> str:
    names = [name for name in found[1].split(" | ") if name != "null"] or ["null"]
    *others, last = dict.fromkeys(kind for name in names for kind in _KINDS.get(name, name).split(" or "))
    return f"isn't {', '.join(others)}{' or ' if others else ''}{last}"


def _length(found: re.Match[str]) -> str:
    kind, sign, number = found.groups()
    if sign == ">=" and number == "1":
        return "is empty"
    unit = _UNITS.get(kind, "byte")
    units = unit if number == "1" else "entries" if unit == "entry" else f"{unit}s"
    return f"has {'fewer' if sign == '>=' else 'more'} than {number} {units}"


def _bound(found: re.Match[str]) -> str:
    sign, number = found[1], found[2].removesuffix(".0")
    return {">=": "is less than", "<=": "is more than", ">": "isn't more than", "<": "isn't less than"}[sign] + f" {number}"


_WORDINGS: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = tuple(
    (re.compile(pattern, re.DOTALL), wording)
    for pattern, wording in (
        (r"Expected `([^`]*)`, got `.*`", _not_kind),
        (r"Object missing required field .*", "is required"),
        (r"Object contains unknown field .*", "isn't a known field"),
        (r"Expected `(\w+)` of length ([<>]=) ([0-9]+)", _length),
        (r"Expected `array` of (?:at least )?length ([0-9]+).*", r"doesn't have \1 items"),
        (r"Expected `\w+` ([<>]=?) (.*)", _bound),
        (r"Expected `int` that's a (multiple of .*)", r"isn't a \1"),
        (r"Expected `str` matching regex .*", "doesn't have the expected format"),
        (r"Expected `\w+` with a timezone component", "has no time zone"),
        (r"Expected `\w+` with no timezone component", "has a time zone"),
        (r"Invalid (?:enum )?value .*", "isn't one of the choices"),
        (r"Invalid RFC3339 encoded (date|time)", r"isn't a \1"),
        (r"Invalid RFC3339 encoded datetime", "isn't a date and time"),
        (r"Invalid ISO8601 duration", "isn't a duration"),
        (r"Only units .*", "isn't a duration of days, hours, minutes and seconds"),
        (r"Invalid UUID", "isn't a UUID"),
        (r"Invalid decimal string", "isn't a number"),
        (r"Invalid base64 encoded string", "isn't base64"),
        (r"(?:Duration|Number|Timestamp|Integer value) (?:is )?out of range ?", "is out of range"),
    )
)
"""msgspec's messages, and what is said in their place. The text of an exception that a type itself raises stays."""


def fault_of(error: msgspec.ValidationError) -> tuple[str, str]:
    """Return what is wrong, as the end of a sentence about the value, and the value's path: `$`, or such as `$.items[2].price`."""
    # The text may hold a value of the client, so a pattern that tries every place could take quadratic time.
    detail, _, place = str(error).rpartition(" - at `")
    path = place.removeprefix("key` in `")
    if not detail or path[:1] != "$" or path[-1:] != "`":
        detail, path, place = str(error), "$`", "$`"
    for pattern, wording in _WORDINGS:
        if (found := pattern.fullmatch(detail)) is not None:
            plain = found.expand(wording) if isinstance(wording, str) else wording(found)
            break
    else:
        plain = detail
    if path != place:
        plain = f"has a key that {plain}"
    if (field := _missing(detail)) is not None:
        path = f"{path[:-1]}.{field[1]}`"
    elif path == "$`" and plain != detail:
        plain = f"the input {plain}"
    return plain, path[:-1]


def out_of_range(value: Any, given: AbstractSet[bytes] | None = None) -> tuple[str, str] | None:
    """Return what is wrong with the first value that is out of range, and its path; None if all are in range.

    Out of range are integers beyond 64 bits, times beyond UTC's years 1 to 9999, and Decimals that are NaN, infinite or extreme.
    Sessions and most databases refuse such a value. *value* consists of lists and dicts. With the digits of the large integers that
    the client has *given*, others are ignored.
    """
    if (found := _search([value], given)) is None:
        return None
    fault, path = found[0], found[1].removeprefix("[0]")
    return (fault, f"${path}") if path else (f"the input {fault}", "$")


def _search(container: Any, given: AbstractSet[bytes] | None) -> tuple[str, str] | None:
    """Return the fault of the first value that is out of range, and its path below *container*."""
    # The path is written on the way back, and an integer needs no call: half a million of them take 40 ms instead of 300.
    found: tuple[str, str] | None
    is_dict = container.__class__ is dict
    for key, item in container.items() if is_dict else enumerate(container):
        kind = item.__class__
        if kind is int:
            if _MIN <= item <= _MAX or not _is_large(item, given):
                continue
            found = _size(item), ""
        elif kind is Decimal:
            if (fault := _decimal_fault(item)) is None:
                continue
            found = fault, ""
        elif kind is datetime:
            if not is_beyond_utc(item):
                continue
            found = "is out of range", ""
        elif kind not in _CONTAINERS or (found := _search(item, given)) is None:
            continue
        return found[0], f".{key}{found[1]}" if is_dict else f"[{key}]{found[1]}"
    for key in container if is_dict else ():
        if key.__class__ is int and _is_large(key, given):
            return f"has a key that {_size(key)}", ""
        if key.__class__ is datetime and is_beyond_utc(key):
            return "has a key that is out of range", ""
        if key.__class__ is float and not isfinite(key):
            return "has a key that isn't a number", ""
        if key.__class__ is Decimal and (fault := _decimal_fault(key)) is not None:
            return f"has a key that {fault}", ""
    return None


def _is_large(integer: int, given: AbstractSet[bytes] | None) -> bool:
    return not _MIN <= integer <= _MAX and (given is None or b"%d" % abs(integer) in given)


def _decimal_fault(number: Decimal) -> str | None:
    if not number.is_finite():
        return "isn't a number"
    return "is out of range" if abs(number.adjusted()) > _MAX_EXPONENT else None


def is_beyond_utc(time: datetime) -> bool:
    """Return whether *time* has a time zone in which UTC's year isn't one from 1 to 9999."""
    if time.tzinfo is None:
        return False
    try:
        time.astimezone(UTC)
    except OverflowError:
        return True
    return False


def _size(integer: int) -> str:
    return "is too large" if integer > 0 else "is too small"
