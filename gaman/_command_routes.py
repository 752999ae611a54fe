"""`gaman routes`: an App's table as text, with the middleware and the line of each handler."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from inspect import isclass, unwrap
from types import CodeType
from typing import NamedTuple

from gaman._app import App
from gaman._asgi import Application
from gaman._handlers import function_of, name_of
from gaman._integration import Integration
from gaman._layers import Handler, Layer
from gaman._matching import Entry
from gaman._middleware import Middleware, Wrapper, wrapper_name

_GAMAN = os.path.dirname(__file__) + os.sep


def describe(app: App) -> Iterator[str]:
    """Yield the lines that show the routes of *app* as they were written, then its ASGI middleware and integrations in order."""
    # A mounted application has an entry for its prefix and one for what is below.
    yield from align([("methods", "path", "middleware", "handler", "line"), *dict.fromkeys(_cells(app))])
    if app.middleware:
        yield ""
        yield from align([("ASGI middleware", "line"), *((wrapper_name(entry), _place_around(entry)) for entry in app.middleware)])
    if app.integrations:
        yield ""
        yield from align([("integration", "priority", "hooks"), *map(_describe_integration, app.integrations)])


class _Row(NamedTuple):
    methods: list[str]
    path: str
    middleware: str
    handler: Handler
    mounted: Application | None


def _cells(app: App, prefix: str = "", before: str = "") -> Iterator[tuple[str, ...]]:
    """Yield the rows of *app*, and below each mounted App its own, with the *prefix* and with the middleware *before* it."""
    guards = [entry for entry in app.routes.entries if entry.layer.is_middleware]
    rows: dict[tuple[object, ...], _Row] = {}
    for entry in app.routes.entries:
        # By identity, because an object that is a handler may have no hash.
        path, middleware = _path_of(entry), ", ".join(filter(None, (before, _names_before(entry.layer, guards))))
        key = (path, *map(id, entry.layer.handlers))
        row = rows.setdefault(key, _Row([], path, middleware, entry.layer.handlers[-1], entry.mounted))
        if entry.method not in row.methods:
            row.methods.append(entry.method)
    for row in rows.values():
        path = f"{prefix}/*" if prefix and row.path == "*" else prefix + row.path
        yield ", ".join(row.methods), path, row.middleware, name_of(row.handler), place_of(row.handler)
        if isinstance(row.mounted, App):
            yield from _cells(row.mounted, path.removesuffix("*").rstrip("/"), row.middleware)


def _path_of(entry: Entry) -> str:
    return entry.name.removeprefix(f"{entry.method} ")


def _names_before(layer: Layer, guards: Iterable[Entry]) -> str:
    """Return the names of what runs before the last handler of *layer*, each with its path if it runs for some requests only."""
    names: list[str] = []
    for guard in guards:
        if not layer.is_middleware and guard.layer.may_cover(layer.segments):
            where = "" if guard.layer.covers_all(layer.segments) else f" ({_path_of(guard)})"
            names += [f"{name_of(handler)}{where}" for handler in guard.layer.handlers]
    return ", ".join([*names, *map(name_of, layer.handlers[:-1])])


def place_of(handler: object) -> str:
    """Return the file of *handler*, relative to the working directory if it is below it, and its line; "" for gaman's own."""
    function = function_of(handler)
    code = getattr(unwrap(function) if callable(function) else None, "__code__", None)
    if not isinstance(code, CodeType) or code.co_filename.startswith(_GAMAN):
        return ""
    path = os.path.relpath(code.co_filename) if code.co_filename.startswith(os.getcwd() + os.sep) else code.co_filename
    return f"{path}:{code.co_firstlineno}"


def _place_around(wrapper: Wrapper) -> str:
    """Return the place of the function that an entry of *middleware* is; of a class, that of its `__call__`."""
    wrapper = wrapper.cls if isinstance(wrapper, Middleware) else wrapper
    return place_of(vars(wrapper).get("__call__") if isclass(wrapper) else wrapper)


def _describe_integration(integration: Integration) -> tuple[str, str, str]:
    names = [field.name for field in fields(Integration) if field.init and field.name not in ("name", "priority")]
    hooks = (name for name in names if getattr(integration, name) is not None)
    return integration.name, integration.priority, ", ".join(hooks)


def align(rows: Sequence[Sequence[str]]) -> Iterator[str]:
    """Yield a line for each of *rows*, with its cells in columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
