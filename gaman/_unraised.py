"""Unraised errors: the statement `HTTPError(403)`, whose `raise` is missing, found in the bytecode of a handler or a hook."""

from __future__ import annotations

from collections.abc import Mapping
from dis import get_instructions
from types import CodeType
from typing import Any, Final

from gaman.errors import HTTPError, InvalidInput

_NAMES: Final = {HTTPError.__name__, InvalidInput.__name__}
"""Of errors that may be attributes, as in `gaman.HTTPError(403)`."""


def find_unraised(function: object) -> str | None:
    """Return what is wrong with *function* and the fix, if a statement in it makes an HTTPError and drops it; otherwise None."""
    while function is not None:
        code, names = getattr(function, "__code__", None), getattr(function, "__globals__", None)
        if isinstance(code, CodeType) and names is not None and (found := _search(code, names)) is not None:
            error, line = found
            return f"makes {error}(...) in line {line} and drops it, so the request goes on; write `raise {error}(...)`"
        # What a decorator wraps is called as well.
        function = getattr(function, "__wrapped__", None)
    return None


def _search(code: CodeType, names: Mapping[str, Any]) -> tuple[str, int] | None:
    """Return the name of the first such error in *code*, and its line; *names* are the global ones."""
    # Most functions name no such error, and reading the instructions of one takes 0.2 ms.
    if any(name in _NAMES or _is_error(names.get(name)) for name in code.co_names):
        # What is called begins where its call begins, so the position of a call finds it.
        loaded: dict[tuple[int | None, int], Any] = {}
        called: Any = None
        for each in get_instructions(code):
            position = each.positions
            if position is None or position.col_offset is None:
                continue
            start = position.lineno, position.col_offset
            if each.opname == "LOAD_GLOBAL":
                loaded[start] = names.get(each.argval)
            elif each.opname in ("LOAD_ATTR", "LOAD_METHOD") and start in loaded:
                loaded[start] = getattr(loaded[start], each.argval, None)
            elif each.opname == "POP_TOP" and _is_error(called):
                return called.__name__, position.lineno or code.co_firstlineno
            called = loaded.get(start) if each.opname.startswith("CALL") else None
    inner = (constant for constant in code.co_consts if isinstance(constant, CodeType))
    return next((found for each in inner if (found := _search(each, names)) is not None), None)


def _is_error(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, HTTPError)
