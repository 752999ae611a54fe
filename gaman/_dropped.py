"""Dropped calls: `HTTPError(403)` without `raise` and `check(ctx)` without `await`, in the source of a handler or a hook."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from inspect import getsourcelines, isclass, iscoroutinefunction, isfunction
from tokenize import TokenError
from types import CodeType, FunctionType, ModuleType
from typing import Any

from gaman.errors import HTTPError


def find_dropped(function: Any) -> str | None:
    """Return what is wrong with *function* and the fix, if a statement in it lacks its `raise` or `await`; otherwise None."""
    seen = set[int]()
    while function is not None and id(function) not in seen:
        seen.add(id(function))
        method = getattr(function, "__func__", function)
        if isfunction(method) and (fault := _search(method)) is not None:
            return fault
        # What a decorator wraps is called as well.
        function = getattr(function, "__wrapped__", None)
    return None


def _search(function: FunctionType) -> str | None:
    try:
        # The source of the function itself, and not of what it wraps.
        lines, first_line = getsourcelines(function.__code__)
        source = "".join(lines)
        if source[:1].isspace():
            # A method, or a function in another one.
            source, first_line = f"if True:\n{source}", first_line - 1
        # A lambda in a table is a part of a line, and can't be parsed alone.
        tree = ast.parse(source)
    except (OSError, SyntaxError, TokenError):
        return None
    names: dict[str, Any] = {**function.__globals__, **dict.fromkeys(_locals(function.__code__))}
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            called: Any = _value(node.value.func, names)
            name, line = getattr(called, "__name__", ""), first_line + node.lineno - 1
            if isclass(called) and issubclass(called, HTTPError):
                return f"makes {name}(...) in line {line} and drops it, so the request goes on; write `raise {name}(...)`"
            if iscoroutinefunction(called):
                return f"calls {name}(...) in line {line} without `await`, so it does nothing; write `await {name}(...)`"
    return None


def _locals(code: CodeType) -> Iterator[str]:
    """Yield the local names of *code*, and of functions in it: which values they have isn't known."""
    yield from (*code.co_varnames, *code.co_cellvars, *code.co_freevars)
    for each in code.co_consts:
        if isinstance(each, CodeType):
            yield from _locals(each)


def _value(name: ast.expr, names: dict[str, Any]) -> Any:
    """Return what a *name* stands for, such as `HTTPError` or `gaman.HTTPError`, or None."""
    if isinstance(name, ast.Attribute):
        owner = _value(name.value, names)
        # The attributes of any other object may be computed, such as those of a connection that isn't open yet.
        return vars(owner).get(name.attr) if isinstance(owner, (ModuleType, type)) else None
    return names.get(name.id) if isinstance(name, ast.Name) else None
