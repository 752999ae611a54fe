"""Routes: a table checked when it is defined and matched in a time that does not grow with it; never calls a handler."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from inspect import iscoroutinefunction, signature
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias, cast
from urllib.parse import unquote

from gaman._context import Context
from gaman._response import Response
from gaman.errors import ConfigError, HTTPError

Handler: TypeAlias = Callable[[Context], Awaitable[object]]
Table: TypeAlias = "Mapping[str, Handler | Sequence[Handler] | Table]"
Segments: TypeAlias = tuple[str, ...]

# RFC 9110, section 9.3, without CONNECT, which asks for a tunnel; and RFC 5789.
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
_parameter = re.compile(r":[A-Za-z_][A-Za-z0-9_]*").fullmatch
_NO_PARAMS: Mapping[str, str] = MappingProxyType({})


class Match(NamedTuple):
    """The handlers to call in turn until one answers, and the path's parameters."""

    handlers: tuple[Handler, ...]
    params: Mapping[str, str] = _NO_PARAMS


def define_routes(table: Table | Callable[..., Table], *, strict: bool = False) -> Routes:
    """Return the routes of *table*, checked; ConfigError names the path of what is wrong in it.

    A key is a path (`/users/:id`), a path that ends in `*` (middleware for all that lies below it), or an HTTP method, `ALL`
    among them; a value is an async handler, a list of them, or a table of its own. A function that returns such a dict may take
    one argument: the `deps` of the App. With *strict*, a trailing slash makes another path.
    """
    return Routes(table, strict=strict)


class Routes:
    """What define_routes returns: immutable, and ready for any number of Apps."""

    __slots__ = ("_factory", "_middleware", "_root", "_static", "_strict")

    def __init__(self, table: Table | Callable[..., Table], *, strict: bool = False) -> None:
        self._strict = strict
        self._factory: Callable[[Any], Table] | None = None
        self._root = _Node()
        # A path without parameters, spelled as it was defined, takes one look-up and skips the tree.
        self._static: dict[str, dict[str, Match]] = {}
        self._middleware: tuple[_Layer, ...] = ()
        if not callable(table):
            self._add(table)
        elif not signature(table).parameters:
            self._add(table())
        else:
            self._factory = table

    def bind(self, deps: Any) -> Routes:
        """Return these routes where their table was a dict, else those that its function makes of *deps*."""
        return self if self._factory is None else Routes(self._factory(deps), strict=self._strict)

    def match(self, method: str, path: str, raw_path: bytes | None = None) -> Match:
        """Return what answers; HTTPError 400 where the path is not UTF-8. *raw_path* tells `%2F` from a slash."""
        if raw_path is None or b"%" not in raw_path:
            endpoint = self._static.get(path)
            if endpoint is not None and (match := endpoint.get(method)) is not None:
                return match
            parts = path.split("/")
        else:
            try:
                parts = [unquote(part, errors="strict") for part in raw_path.decode("ascii").split("/")]
            except UnicodeDecodeError as cause:
                raise HTTPError(400, "the path is not valid UTF-8") from cause
        return self._search(method, _segments(parts, self._strict))

    def _search(self, method: str, segments: Segments) -> Match:
        node, depth = self._root, 0
        # Where a literal was taken and a parameter would do as well, to come back to.
        branches: list[tuple[_Node, int]] = []
        known: set[str] = set()
        while True:
            following: _Node | None = None
            if depth < len(segments):
                segment = segments[depth]
                depth += 1
                following = node.literals.get(segment)
                if node.parameter is not None and segment:
                    if following is None:
                        following = node.parameter
                    else:
                        branches.append((node.parameter, depth))
            elif node.endpoint:
                route = node.endpoint.get(method) or node.endpoint.get("ALL")
                if route is not None:
                    return route.match(segments)
                known.update(node.endpoint)
            if following is not None:
                node = following
            elif branches:
                node, depth = branches.pop()
            else:
                return self._unanswered(method, segments, known)

    def _unanswered(self, method: str, segments: Segments, known: set[str]) -> Match:
        layers = [layer for layer in self._middleware if layer.covers(segments)]
        if known:
            layers.append(_Layer((), (_known_path(method, known),)))
        return _match(layers, segments)

    def _add(self, table: Table) -> None:
        entries = [(entry, _Layer.of(entry, self._strict)) for entry in _flatten(table, "")]
        self._middleware = tuple(layer for _, layer in entries if layer.is_middleware)
        for entry, layer in entries:
            if not layer.is_middleware:
                self._add_route(entry, layer)
        for path, node in _walk(self._root):
            _complete(node.endpoint)
            if not any(segment[:1] == ":" for segment in path):
                matches = {method: route.match(path) for method, route in node.endpoint.items()}
                self._static["/" + "/".join(path)] = {
                    m: Match(found.handlers, MappingProxyType(found.params)) for m, found in matches.items()
                }

    def _add_route(self, entry: _Entry, layer: _Layer) -> None:
        node = self._root
        for segment in layer.segments:
            if segment[:1] == ":":
                node.parameter = node.parameter or _Node()
                node = node.parameter
            else:
                node = node.literals.setdefault(segment, _Node())
        if entry.method in node.endpoint:
            raise ConfigError(f"{entry}: this path and method have a route already")
        layers = [*(other for other in self._middleware if other.may_cover(layer.segments)), layer]
        places: dict[str, int] = {}
        for name, place in [pair for other in layers for pair in other.params.items()]:
            if places.setdefault(name, place) != place:
                raise ConfigError(f"{entry}: ':{name}' stands at another place here than in the middleware above; rename one")
        node.endpoint[entry.method] = _Route(layers)


class _Entry(NamedTuple):
    """One row of the flattened table."""

    method: str
    path: str
    handlers: tuple[Handler, ...]

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


class _Layer(NamedTuple):
    """Handlers, and the path they are for; those of middleware are for what lies below it, or with *everywhere* for all."""

    segments: Segments
    handlers: tuple[Handler, ...]
    is_middleware: bool = False
    everywhere: bool = False

    @classmethod
    def of(cls, entry: _Entry, strict: bool) -> _Layer:
        is_middleware = entry.path.endswith("*")
        segments = _segments(entry.path.removesuffix("*").split("/"), strict and not is_middleware)
        for i, segment in enumerate(segments):
            if "*" in segment:
                raise ConfigError(f"{entry}: a * stands alone at the end of a path, nowhere else")
            if segment[:1] == ":" and _parameter(segment) is None:
                raise ConfigError(f"{entry}: {segment!r} is no parameter; after the colon comes a name of letters, digits and _")
            if segment[:1] == ":" and segment in segments[:i]:
                raise ConfigError(f"{entry}: the parameter {segment!r} stands there twice")
        return cls(segments, entry.handlers, is_middleware, entry.path == "*")

    @property
    def params(self) -> dict[str, int]:
        return {segment[1:]: place for place, segment in enumerate(self.segments) if segment[:1] == ":"}

    def covers(self, path: Segments) -> bool:
        """Whether *path* lies below; of a pattern, whether all of its paths do."""
        pairs = zip(self.segments, path, strict=False)
        return self._reaches(path) and all(mine[:1] == ":" or mine == its for mine, its in pairs)

    def may_cover(self, pattern: Segments) -> bool:
        """Whether some path of *pattern* lies below."""
        pairs = zip(self.segments, pattern, strict=False)
        return self._reaches(pattern) and all(mine[:1] == ":" or its[:1] == ":" or mine == its for mine, its in pairs)

    def _reaches(self, path: Segments) -> bool:
        return self.everywhere or len(path) > len(self.segments)


class _Route:
    """What one path answers to one method: the layers of middleware and last its own."""

    __slots__ = ("_handlers", "_layers", "_places")

    def __init__(self, layers: Sequence[_Layer]) -> None:
        *above, own = layers
        # `/users/me/*` is for `/users/:id/posts` only where the id is "me", which each request must tell.
        is_certain = all(layer.covers(own.segments) for layer in above)
        self._layers = None if is_certain else layers
        self._handlers = tuple(handler for layer in layers for handler in layer.handlers)
        self._places = tuple({name: place for layer in layers for name, place in layer.params.items()}.items())

    def match(self, segments: Segments) -> Match:
        if self._layers is not None:
            *above, own = self._layers
            return _match([*(layer for layer in above if layer.covers(segments)), own], segments)
        return Match(self._handlers, {name: segments[place] for name, place in self._places})


class _Node:
    """A place in the tree of paths: below it, literal segments and at most one parameter."""

    __slots__ = ("endpoint", "literals", "parameter")

    def __init__(self) -> None:
        self.literals: dict[str, _Node] = {}
        self.parameter: _Node | None = None
        self.endpoint: dict[str, _Route] = {}


def _match(layers: Sequence[_Layer], segments: Segments) -> Match:
    handlers = tuple(handler for layer in layers for handler in layer.handlers)
    return Match(handlers, {name: segments[place] for layer in layers for name, place in layer.params.items()})


def _segments(parts: Sequence[str], strict: bool) -> Segments:
    """Return the non-empty *parts* of a path, and where *strict* an empty one for its trailing slash."""
    segments = tuple(filter(None, parts))
    return (*segments, "") if strict and segments and not parts[-1] else segments


def _flatten(table: Table, prefix: str) -> Iterator[_Entry]:
    for key, value in table.items():
        if key in _METHODS or key == "ALL":
            yield _Entry(key, prefix or "/", _handlers(f"{key} {prefix or '/'}", value))
            continue
        path = _join(prefix, key)
        if not isinstance(value, Mapping):
            yield _Entry("ALL", path, _handlers(path, value))
        elif path.endswith("*"):
            yield _Entry("ALL", path, (_by_method(path, cast("Table", value)),))
        else:
            yield from _flatten(cast("Table", value), path)


def _join(prefix: str, key: object) -> str:
    where = f"{key!r} below {prefix!r}" if prefix else repr(key)
    if not isinstance(key, str):
        raise ConfigError(f"{where}: a key is a path or a method, not a {type(key).__name__}")
    if key.startswith("/"):
        return (prefix + key).removesuffix("/") if key == "/" and prefix else prefix + key
    if key == "*":
        return f"{prefix}/*" if prefix else "*"
    if key.upper() in (*_METHODS, "ALL"):
        raise ConfigError(f"{where}: write a method in capitals, {key.upper()!r}")
    raise ConfigError(f"{where}: a path begins with '/', and a method is one of {', '.join(_METHODS)}, ALL")


def _handlers(where: str, value: object) -> tuple[Handler, ...]:
    handlers = cast("Sequence[object]", value) if isinstance(value, (list, tuple)) else (value,)
    if not handlers:
        raise ConfigError(f"{where}: the list of handlers is empty")
    for handler in handlers:
        name = getattr(handler, "__qualname__", repr(handler))
        if not callable(handler):
            raise ConfigError(
                f"{where}: {name} is a {type(handler).__name__}, not a handler; give an async function, or a list of them"
            )
        if not iscoroutinefunction(handler) and not iscoroutinefunction(getattr(handler, "__call__", None)):  # noqa: B004
            raise ConfigError(f"{where}: the handler {name} is not async; write `async def`")
    return cast("tuple[Handler, ...]", tuple(handlers))


def _by_method(path: str, table: Table) -> Handler:
    """Return middleware that runs those handlers of *table* that are for the request's method."""
    chains = {entry.method: entry.handlers for entry in _flatten(table, path)}
    for key in table:
        if key not in chains:
            raise ConfigError(f"{path}: a * stands alone at the end of a path, so below it come only methods, not {key!r}")
    _complete(chains)

    async def middleware(ctx: Context) -> object:
        for handler in chains.get(ctx.method, chains.get("ALL", ())):
            if (result := await handler(ctx)) is not None:
                return result
        return None

    return middleware


def _complete(endpoint: dict[str, Any]) -> None:
    """Let GET serve HEAD (RFC 9110, section 9.3.2) and ALL every method without a route of its own."""
    if "GET" in endpoint:
        endpoint.setdefault("HEAD", endpoint["GET"])
    if "ALL" in endpoint:
        for method in _METHODS:
            endpoint.setdefault(method, endpoint["ALL"])


def _known_path(method: str, known: set[str]) -> Handler:
    """Return the handler that answers on a known path to a method that it has no route for."""
    allow = {"allow": ", ".join(name for name in _METHODS if name in known or name == "OPTIONS")}

    async def options(ctx: Context) -> Response:
        return Response(None, 204, allow)

    async def refuse(ctx: Context) -> Response:
        raise HTTPError(405, headers=allow)

    return options if method == "OPTIONS" else refuse


def _walk(node: _Node, path: Segments = ()) -> Iterator[tuple[Segments, _Node]]:
    if node.endpoint:
        yield path, node
    for segment, below in node.literals.items():
        yield from _walk(below, (*path, segment))
    if node.parameter is not None:
        yield from _walk(node.parameter, (*path, ":"))
