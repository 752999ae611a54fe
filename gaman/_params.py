"""Parameters of a path: their syntax, and which segments fit a type."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

Test = Callable[[str], object]
"""Returns something true for a segment that fits."""

BELOW_MOUNT = ":*"
"""The catch-all of a mounted application. It has no name, so no table can have it."""
_MAX_INT = str((1 << 63) - 1)

# One spelling for each value: no `007`, `+7` or `-0`, which caches and guards would take for other paths. ASCII digits only.
_is_integer = re.compile(r"0|-?[1-9][0-9]{0,18}").fullmatch
# No exponent, and few enough digits that the value is finite.
_is_number = re.compile(r"-?(?:0|[1-9][0-9]{0,18})(?:\.[0-9]{1,20})?").fullmatch
# RFC 9562, section 4: written in lower case.
_is_uuid = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}").fullmatch

_parse = re.compile(r":([A-Za-z_][A-Za-z0-9_]*)(?:<([a-z]+)>|(\*))?").fullmatch
_parse_mistake = re.compile(r":([A-Za-z_][A-Za-z0-9_]*)(\*?)<([^<>]*)>?(\*?)").fullmatch


def _is_int(segment: str) -> bool:
    """Return whether *segment* is an integer of 64 bits, as databases hold them, in its one spelling."""
    return _is_integer(segment) is not None and (
        len(segment) < len(_MAX_INT) or segment.removeprefix("-").zfill(len(_MAX_INT)) <= _MAX_INT
    )


TYPES: dict[str, Test] = {"int": _is_int, "uuid": _is_uuid, "float": _is_number}
"""The test of each type. Of two types at one place, the first that a segment fits has precedence."""


_OTHER_TYPES = {
    "integer": "<int>",
    "number": "<float>",
    "decimal": "<float>",
    "guid": "<uuid>",
    **dict.fromkeys(("str", "string", "text"), ", because a parameter without a type takes any text"),
    "path": "*, which takes the rest of the path",
}
"""What other frameworks call a type, and what follows the name here."""


class Parameter(NamedTuple):
    """A parameter of a path; its *type* is an empty string for `:name` and for the catch-all `:name*`."""

    name: str
    type: str
    is_catch_all: bool


def parse(segment: str) -> Parameter | None:
    """Return the parameter that *segment* of a route's path is; None for a literal one, and for a mistake."""
    if segment == BELOW_MOUNT:
        return Parameter("", "", is_catch_all=True)
    if segment[:1] != ":" or (found := _parse(segment)) is None or (found[2] or "int") not in TYPES:
        return None
    return Parameter(found[1], found[2] or "", bool(found[3]))


def mistake(segment: str) -> str:
    """Return what is wrong with a *segment* that begins with a colon and isn't a parameter."""
    found = _parse_mistake(segment)
    if found is None:
        return f"{segment!r} isn't a parameter; after the colon comes a name of letters, digits and _, and maybe a type: :id<int>"
    name, star, type_, late_star = found.groups()
    if star or late_star:
        return f"{segment!r} has a type, and a parameter that takes the rest of the path has none; write :{name}*"
    if type_ not in TYPES and name in TYPES and type_.isidentifier():
        return f"in {segment!r}, the type comes before the name; write :{type_}<{name}>"
    if (meant := _OTHER_TYPES.get(type_)) is not None:
        return f"{segment!r} has the type {type_!r}; write :{name}{meant}"
    if type_ not in TYPES:
        return (
            f"{segment!r} has the type {type_!r}, and the types are {', '.join(TYPES)}; write :{name}, and check it in the handler"
        )
    return f"{segment!r} has no '>' after its type; write :{name}<{type_}>"
