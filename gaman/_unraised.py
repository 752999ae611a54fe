"""Unraised errors: the statement `HTTPError(403)`, whose `raise` is missing, found in the source of a handler or a hook."""

from __future__ import annotations

import ast
from inspect import getsourcelines, isfunction, unwrap
from textwrap import dedent
from tokenize import TokenError
from typing import Any

from gaman.errors import HTTPError


def find_unraised(function: Any) -> str | None:
    """Return what is wrong with *function* and the fix, if a statement in it makes an HTTPError and drops it; otherwise None."""
    # What a decorator wraps is called as well.
    function = unwrap(function)
    function = getattr(function, "__func__", function)
    if not isfunction(function):
        return None
    try:
        lines, first_line = getsourcelines(function)
        # A part of a line, such as a lambda in a table, is no statement.
        tree = ast.parse(dedent("".join(lines)))
    except (OSError, SyntaxError, TokenError):
        return None
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            error = _global(node.value.func, function.__globals__)
            if isinstance(error, type) and issubclass(error, HTTPError):
                name, line = error.__name__, first_line + node.lineno - 1
                return f"makes {name}(...) in line {line} and drops it, so the request goes on; write `raise {name}(...)`"
    return None


def _global(name: ast.expr, names: dict[str, Any]) -> Any:
    """Return what a *name* stands for, such as `HTTPError` or `gaman.HTTPError`, or None."""
    if isinstance(name, ast.Attribute):
        return getattr(_global(name.value, names), name.attr, None)
    return names.get(name.id) if isinstance(name, ast.Name) else None
