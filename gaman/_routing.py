"""define_routes: a table of routes, flattened and checked when it is defined."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from inspect import iscoroutinefunction
from typing import Any, NamedTuple, TypeAlias, TypeGuard, cast
from urllib.parse import unquote

from gaman import _params
from gaman._handlers import check_handlers, fits, function_of, has_routes, name_of, required, signature_of
from gaman._layers import Handler, Layer
from gaman._matching import METHODS, ByMethod, Entry, Routes
from gaman._mount import Mount
from gaman._target import without_empty
from gaman.errors import ConfigError, a_type, checks_arguments

Table: TypeAlias = "Mapping[str, Handler | Sequence[Handler] | Table]"
"""Paths, methods and middleware, each with a handler, a list of handlers, or a table whose paths continue this one."""

# A parameter in the syntax of another framework: `{id}`, `{id:int}`, `<int:id>`, `{path...}` or `*path`.
_foreign = re.compile(r"[^{<]*[{<](.*[A-Za-z_].*)[}>].*|(\*+[A-Za-z_].*)").fullmatch
# `user-:id`, but not `items:batch`.
_holds_parameter = re.compile(r".*[^\w:]:[A-Za-z_].*").fullmatch
# `user-:id<int>`, also in our own syntax.
_holds_typed = re.compile(r"[^{<]*:[A-Za-z_]\w*<.*").fullmatch
_is_encoded = re.compile(r"%[0-9A-Fa-f]{2}").search
_is_converter = re.compile(r"str|string|int|float|path|slug|uuid|any").fullmatch
_names = re.compile(r"[A-Za-z_]\w*").findall


@checks_arguments
def define_routes(table: Table | Callable[[], Table] | Callable[[Any], Table], *, strict: bool = False) -> Routes:
    """Return the routes of *table*; ConfigError names the path of a mistake.

        routes = define_routes({
            "/admin/*": require_login,
            "/users": {"GET": list_users, "POST": [check_input, create_user]},
            "/users/:id": show_user,
            "/files/:path*": download,
        })

    A key is a path, a path that ends in `/*`, or an HTTP method, including `ALL`. A value is an async handler, a list of them, or
    a nested table. `/admin/*` is middleware for `/admin` and every path below it. `:id` binds one segment, and `:path*` binds the
    rest of the path. `:id<int>`, `:id<float>` and `:id<uuid>` match only a segment that fits the type. *table* may also be a
    function that returns the dict; it may take one argument, the `deps` of the App. With *strict*, a trailing slash makes a
    different path.
    """
    if callable(table) and not has_routes(table):
        if iscoroutinefunction(table) or iscoroutinefunction(function_of(table)):
            raise ConfigError(f"routes are a dict of paths and handlers, not a handler; write {{'/': {name_of(table)}}}")
        takes = signature_of(table)
        if takes is not None and takes.parameters:
            if not fits(takes):
                raise ConfigError(
                    f"the function {name_of(table)} of routes takes {required(takes)}; it may take `deps`, and no more"
                )
            make = cast("Callable[[Any], Table]", table)
            return Routes(strict=strict, factory=lambda deps: define_routes(make(deps), strict=strict))
        table = cast("Callable[[], Table]", table)()
    return Routes(_read(table, strict), strict=strict)


def _read(table: object, strict: bool) -> list[Entry]:
    """Return the checked rows of *table*."""
    if has_routes(table):
        raise ConfigError("define_routes() takes a dict of paths and handlers, and these routes are defined already; pass the dict")
    if not _is_table(table):
        raise ConfigError(f"routes are a dict of paths and handlers, or a function that returns one, not {a_type(table)}")
    return [entry for row in _flatten(table, "") for entry in _entries(row, strict)]


def _entries(row: _Row, strict: bool) -> Iterator[Entry]:
    """Yield the entry of *row*, or those of a mounted application: its guards, the prefix, and every path below."""
    *guards, last = row.handlers
    mount: object = last
    if not isinstance(mount, Mount):
        yield Entry(str(row), row.method, _layer(row, strict))
        return
    if guards:
        yield Entry(str(row), row.method, _layer(row._replace(handlers=tuple(guards)), strict))
    segments = _layer(row, strict).segments
    below = (_params.BELOW_MOUNT,)
    for end in ((), ("",), below) if strict and segments else ((), below):
        yield Entry(str(row), row.method, Layer((*segments, *end), (mount.at(len(segments)),)), mount.application)


def _check_mounts(row: _Row, method: str = "") -> _Row:
    """Return *row*; ConfigError is raised for a mount() below a *method*, at a path without `*`, or before other handlers."""
    mounts: list[bool] = [isinstance(cast("object", handler), Mount) for handler in row.handlers]
    if not any(mounts):
        return row
    if method:
        raise ConfigError(f"{row}: mount() takes every method; give it to the path, without {method!r}")
    if row.path.rsplit("/", 1)[-1] != "*":
        below = re.sub(r"/(:\w+\*)?\Z", "", row.path)
        raise ConfigError(f"{row}: mount() takes every path below its own; write {below + '/*'!r}")
    if any(mounts[:-1]):
        raise ConfigError(f"{row}: mount() answers every request, so nothing runs after it; make it the last of the list")
    return row


class _Row(NamedTuple):
    """One row of the flattened table, not checked yet."""

    method: str
    path: str
    handlers: tuple[Handler, ...]

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


def _layer(row: _Row, strict: bool) -> Layer:
    """Return the layer of *row*; ConfigError says what is wrong with its path."""
    parts = row.path.split("/")
    # `/adm*` isn't middleware, because it would seem to guard `/admin/users`.
    if is_middleware := parts[-1] == "*":
        parts.pop()
    segments = tuple(without_empty(parts, strict and not is_middleware))
    names: set[str] = set()
    for number, segment in enumerate(segments, 1):
        if _is_foreign(segment):
            path = "/".join(map(_translate, parts)) + "/*" * is_middleware
            raise ConfigError(f"{row}: {segment!r} isn't a parameter, which is a whole segment with a colon; write {path}")
        if segment[:1] != ":":
            if (fault := _fault(segment)) is not None:
                raise ConfigError(f"{row}: {fault}")
            continue
        if (parameter := _params.parse(segment)) is None or not parameter.name:
            raise ConfigError(f"{row}: {_params.mistake(segment)}")
        if parameter.is_catch_all and (is_middleware or number < len(segments)):
            raise ConfigError(f"{row}: nothing comes after {segment!r}, because it takes the rest of the path")
        if (name := parameter.name) in names:
            raise ConfigError(f"{row}: the path has the parameter ':{name}' twice")
        names.add(name)
    return Layer(segments, row.handlers, is_middleware)


def _flatten(table: Table, prefix: str) -> Iterator[_Row]:
    for key, value in table.items():
        if key in METHODS or key == "ALL":
            yield _check_mounts(_Row(key, prefix or "/", check_handlers(f"{key} {prefix or '/'}", value)), key)
            continue
        path = _join(prefix, key)
        if not _is_table(value):
            yield _check_mounts(_Row("ALL", path, check_handlers(path, value)))
        elif path.endswith("/*") or path == "*":
            yield _Row("ALL", path, (_by_method(path, value),))
        else:
            yield from _flatten(value, path)


def _is_table(value: object) -> TypeGuard[Table]:
    return isinstance(value, Mapping)


def _join(prefix: str, key: object) -> str:
    where = f"{key!r} below {prefix!r}" if prefix else repr(key)
    if not isinstance(key, str):
        raise ConfigError(f"{where}: a key is a path or a method, not {a_type(key)}")
    if key.startswith("/"):
        return (prefix + key).removesuffix("/") if key == "/" and prefix else prefix + key
    if key == "*":
        return f"{prefix}/*" if prefix else "*"
    if key.upper() in (*METHODS, "ALL"):
        raise ConfigError(f"{where}: write a method in capitals, {key.upper()!r}")
    raise ConfigError(f"{where}: a path begins with '/', and a method is one of {', '.join(METHODS)}, ALL")


def _is_foreign(segment: str) -> bool:
    """Return whether *segment* is a parameter in another framework's syntax."""
    return segment[:1] != ":" and _holds_typed(segment) is None and _foreign(segment) is not None


def _translate(segment: str) -> str:
    """Return *segment* with a colon if it is a parameter in another framework's syntax, otherwise unchanged."""
    found = _foreign(segment)
    if found is None or not _is_foreign(segment):
        return segment
    inner = found[1] or found[2]
    if "<" in segment:
        kind, _, name = inner.rpartition(":")
        if kind and _is_converter(name) and not _is_converter(kind):
            kind, name = name, kind
    else:
        name, _, kind = inner.partition(":")
    [found_name, *_] = _names(name) or _names(inner)
    if kind == "path" or "*" in name or "..." in name:
        return f":{found_name}*"
    return f":{found_name}<{kind}>" if kind in _params.TYPES else f":{found_name}"


def _fault(segment: str) -> str | None:
    """Return what is wrong with a literal *segment* that no request can match, or None."""
    if "*" in segment:
        return "a * is allowed only at the end of a path: as its last segment, or after the name of its last parameter"
    if "?" in segment or "#" in segment:
        return f"{segment!r} isn't part of a path, which ends before ? and #; the query is in ctx.query"
    if _holds_parameter(segment) is not None:
        return f"{segment!r} holds a parameter, which is a whole segment; write :name in its place, and split that in the handler"
    if _is_encoded(segment) is not None:
        return f"{segment!r} is percent-encoded, and routes match decoded paths; write {unquote(segment)!r}"
    return f"{segment!r} is a segment that clients resolve; write the path without it" if segment in (".", "..") else None


def _by_method(path: str, table: Table) -> Handler:
    """Return middleware that runs the handlers of *table* for the request's method."""
    rows = list(_flatten(table, path))
    by_method = {row.method: row.handlers for row in rows}
    for key in table:
        if key not in by_method:
            raise ConfigError(f"{path}: a path that ends in * has only methods below it, not {key!r}")
    return ByMethod(by_method, ", ".join(f"{row.method} {name_of(handler)}" for row in rows for handler in row.handlers))
