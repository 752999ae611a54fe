"""Matching: a tree of paths, searched in a time that does not grow with the number of routes; never calls a handler."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias, cast

from gaman import _target
from gaman._asgi import Scope
from gaman._context import Context
from gaman._response import Response
from gaman._results import Result, error_response
from gaman.errors import ConfigError, HTTPError

Handler: TypeAlias = Callable[[Context], Awaitable[Result]]
Segments: TypeAlias = tuple[str, ...]
Match: TypeAlias = tuple[Handler, Mapping[str, str]]
"""What answers a request, several handlers made into one, and the path's parameters."""

# RFC 9110, section 9.3, without CONNECT, which asks for a tunnel; and RFC 5789.
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
_PERCENT = ord("%")
# Empty segments, `.` and `..` would be other ways to write a path, which a guard misses; and no file's name has a NUL.
_is_ambiguous = re.compile(r"(?:\A|/)\.{0,2}(?:/|\Z)|\0").search


class EarlyResponse(Exception):
    """Raised for a request that is answered, with a Response or an HTTPError, before any hook runs."""

    def __init__(self, answer: Response | HTTPError) -> None:
        self.response = error_response(answer) if isinstance(answer, HTTPError) else answer


class Layer(NamedTuple):
    """Handlers, and the path they are for; those of middleware are for all that lies below it as well."""

    segments: Segments
    handlers: tuple[Handler, ...]
    is_middleware: bool = False

    @property
    def params(self) -> dict[str, int]:
        """The places of the parameters of one segment."""
        return {segment[1:]: place for place, segment in enumerate(self.segments) if segment[:1] == ":" and segment[-1] != "*"}

    @property
    def rest(self) -> str:
        """The name of the catch-all, or an empty string."""
        return self.segments[-1][1:-1] if self.segments and self.segments[-1][-1:] == "*" else ""

    def covers(self, path: Sequence[str]) -> bool:
        """Whether *path* is this one or lies below; of a pattern, whether all of its paths do."""
        pairs = zip(self.segments, path, strict=False)
        # A parameter doesn't match an empty segment, which a trailing slash leaves.
        return len(path) >= len(self.segments) and all((mine[:1] == ":" and its) or mine == its for mine, its in pairs)

    def may_cover(self, pattern: Sequence[str]) -> bool:
        """Whether some path of *pattern* is this one or lies below."""
        is_open = bool(pattern) and pattern[-1][-1:] == "*"
        pairs = zip(self.segments, pattern, strict=False)
        return (is_open or len(pattern) >= len(self.segments)) and all(
            (mine[:1] == ":" and its) or its[:1] == ":" or mine == its for mine, its in pairs
        )


class Entry(NamedTuple):
    """One row of the flattened table, checked; errors call it by its *name*."""

    name: str
    method: str
    layer: Layer


class Routes:
    """What define_routes returns: immutable, and ready for any number of Apps."""

    __slots__ = ("_factory", "_middleware", "_root", "_static", "_strict")

    def __init__(
        self, entries: Iterable[Entry] = (), *, strict: bool = False, factory: Callable[[Any], Routes] | None = None
    ) -> None:
        self._strict = strict
        self._factory = factory
        self._root = _Node()
        # A path without parameters, spelled as it was defined, takes one look-up and skips the tree.
        self._static: dict[str, dict[str, Match]] = {}
        entries = tuple(entries)
        self._middleware = tuple(entry.layer for entry in entries if entry.layer.is_middleware)
        for entry in entries:
            if not entry.layer.is_middleware:
                self._add(entry)
        for path, node in _walk(self._root):
            complete(node.endpoint)
            if not any(segment[:1] == ":" for segment in path):
                matches = {method: route.match(path) for method, route in node.endpoint.items()}
                # Every request to a static path gets the same parameters, so nobody may change them.
                frozen: dict[str, Match] = {
                    method: (answer, MappingProxyType(params)) for method, (answer, params) in matches.items()
                }
                self._static["/" + "/".join(path)] = frozen

    def bind(self, deps: Any) -> Routes:
        """Return these routes where their table was a dict, else those that its function makes of *deps*."""
        return self if self._factory is None else self._factory(deps)

    def match(self, scope: Scope) -> Match:
        """Return what answers the ASGI *scope*, be it with an error; EarlyResponse is raised for a target that isn't a path."""
        path: str = scope["path"]
        try:
            raw_path, root_path = scope["raw_path"], scope["root_path"]
        except KeyError:
            # Both are optional, and every server that we know gives them.
            raw_path, root_path = scope.get("raw_path"), scope.get("root_path", "")
        if not root_path and (raw_path is None or _PERCENT not in raw_path):
            endpoint = self._static.get(path)
            if endpoint is not None and (match := endpoint.get(scope["method"])) is not None:
                return match
            plain = path.split("/")
            if not plain.pop(0) and plain:
                return self._search(scope["method"], plain)
        segments = _target.split(path, raw_path, root_path)
        if segments is None:
            if scope["method"] == "OPTIONS" and path == "*":
                # A question whether the server is there (RFC 9110, section 9.3.7). Allow is about a resource, and it names none.
                raise EarlyResponse(Response(None, 204))
            raise EarlyResponse(HTTPError(400, "the path does not begin with a slash, or is not valid UTF-8"))
        if segments and not segments[-1] and not self._strict:
            segments.pop()
        return self._search(scope["method"], segments)

    def _search(self, method: str, segments: list[str]) -> Match:
        node, depth = self._root, 0
        # Where a literal was taken and a parameter would do as well, to come back to.
        branches: list[tuple[_Node, int]] | None = None
        known: set[str] | None = None
        while True:
            for segment in segments[depth:] if depth else segments:
                if node.rest is not None and segment:
                    branches = [*(branches or ()), (node.rest, len(segments))]
                depth += 1
                following = node.literals.get(segment)
                if following is None:
                    following = node.parameter if segment else None
                    if following is None:
                        break
                elif node.parameter is not None and segment:
                    branches = [*(branches or ()), (node.parameter, depth)]
                node = following
            else:
                route = node.endpoint.get(method) or node.endpoint.get("ALL")
                if route is not None:
                    return route.match(segments)
                known = {*(known or ()), *node.endpoint}
            while branches and not branches[-1][0].takes(segments, self._strict):
                branches.pop()
            if not branches:
                # No parameter takes an empty segment, so that only what matches nothing has to be searched for them.
                if "" in segments and (kept := without_empty(segments, self._strict)) != segments:
                    return self._search(method, kept)
                return self._unanswered(method, segments, known)
            node, depth = branches.pop()

    def _unanswered(self, method: str, segments: Sequence[str], known: set[str] | None) -> Match:
        layers = [layer for layer in self._middleware if layer.covers(segments)]
        layers.append(Layer((), (_known_path(method, known),)) if known else _NOWHERE)
        return _match(layers, segments)

    def _add(self, entry: Entry) -> None:
        node, layer = self._root, entry.layer
        for place, segment in enumerate(layer.segments):
            if segment[:1] != ":":
                node = node.literals.setdefault(segment, _Node())
            elif segment[-1] != "*":
                node.parameter = node.parameter or _Node()
                node = node.parameter
            else:
                node.rest = node.rest or _Node(segment, place)
                node = node.rest
                if node.segment != segment:
                    raise ConfigError(
                        f"{entry.name}: another route has {node.segment!r} in the place of {segment!r}; give both one name"
                    )
        if entry.method in node.endpoint:
            raise ConfigError(f"{entry.name}: this path and method have a route already")
        layers = [*(other for other in self._middleware if other.may_cover(layer.segments)), layer]
        # A catch-all and another parameter have different values, even where both begin at one place.
        values: dict[str, int | None] = {layer.rest: None} if layer.rest else {}
        for name, value in [pair for other in layers for pair in other.params.items()]:
            if values.setdefault(name, value) != value:
                raise ConfigError(f"{entry.name}: ':{name}' stands at another place here than in the middleware above; rename one")
        node.endpoint[entry.method] = _Route(layers)


class _Route:
    """What one path answers to one method: the layers of middleware and last its own."""

    __slots__ = ("_handler", "_layers", "_places", "_rest")

    def __init__(self, layers: Sequence[Layer]) -> None:
        *above, own = layers
        # `/users/me/*` is for `/users/:id/posts` only where the id is "me", which each request must tell.
        is_certain = all(layer.covers(own.segments) for layer in above)
        self._layers = None if is_certain else layers
        self._handler = chain(tuple(handler for layer in layers for handler in layer.handlers))
        self._places = tuple({name: place for layer in layers for name, place in layer.params.items()}.items())
        self._rest = (own.rest, len(own.segments) - 1) if own.rest else None

    def match(self, segments: Sequence[str]) -> Match:
        handler = self._handler
        params: dict[str, str] = {}
        if self._layers is not None:
            *above, own = self._layers
            handler, params = _match([*(layer for layer in above if layer.covers(segments)), own], segments)
        else:
            for name, place in self._places:
                params[name] = segments[place]
        if self._rest is not None:
            name, place = self._rest
            params[name] = "/".join(segments[place:])
        return handler, params


class _Node:
    """A place in the tree of paths: below it, literal segments, at most one parameter, and at most one catch-all."""

    __slots__ = ("endpoint", "literals", "parameter", "place", "rest", "segment")

    def __init__(self, segment: str = "", place: int | None = None) -> None:
        self.literals: dict[str, _Node] = {}
        self.parameter: _Node | None = None
        self.rest: _Node | None = None
        self.endpoint: dict[str, _Route] = {}
        self.segment = segment
        self.place = place
        """Of a catch-all, where it begins."""

    def takes(self, segments: Sequence[str], strict: bool) -> bool:
        """Whether a catch-all may be the rest of *segments*, which no other path could be taken for; True of any other node."""
        if self.place is None:
            return True
        rest = segments[self.place :]
        path = "/".join(rest)
        if strict and not rest[-1]:
            path = path[:-1]
            rest = rest[:-1]
        # An encoded slash is one more.
        return path.count("/") < len(rest) and _is_ambiguous(path) is None


def _match(layers: Sequence[Layer], segments: Sequence[str]) -> tuple[Handler, dict[str, str]]:
    handler = chain(tuple(handler for layer in layers for handler in layer.handlers))
    return handler, {name: segments[place] for layer in layers for name, place in layer.params.items()}


def without_empty(segments: Sequence[str], strict: bool) -> list[str]:
    """Return *segments* without the empty ones that slashes leave, but where *strict* the last, for its trailing slash."""
    kept = [segment for segment in segments if segment]
    return [*kept, ""] if strict and kept and not segments[-1] else kept


def chain(handlers: tuple[Handler, ...]) -> Handler:
    """Return one handler that asks *handlers* in turn until one answers."""
    return handlers[0] if len(handlers) == 1 else partial(_ask_in_turn, handlers)


async def _ask_in_turn(handlers: tuple[Handler, ...], ctx: Context) -> Result:
    for handler in handlers:
        if (answer := await handler(ctx)) is not None:
            return answer
    return None


def last_of(handler: Handler) -> Handler:
    """Return the last of the handlers that *handler*, of a Match, asks in turn."""
    chain: Any = handler
    is_chain = isinstance(chain, partial) and chain.func is _ask_in_turn
    return cast("Handler", chain.args[0][-1]) if is_chain else handler


def complete(endpoint: dict[str, Any]) -> None:
    """Let GET serve HEAD (RFC 9110, section 9.3.2) and ALL every method without a route of its own."""
    if "GET" in endpoint:
        endpoint.setdefault("HEAD", endpoint["GET"])
    if "ALL" in endpoint:
        for method in METHODS:
            endpoint.setdefault(method, endpoint["ALL"])


async def _not_found(ctx: Context) -> Result:
    raise HTTPError(404)


_NOWHERE = Layer((), (_not_found,))
"""The end of every request to a path without a route, so that only a route's own handler can return None as the last."""


def _known_path(method: str, known: set[str]) -> Handler:
    """Return the handler that answers on a known path to a method that it has no route for."""
    allow = {"allow": ", ".join(name for name in METHODS if name in known or name == "OPTIONS")}

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
    if node.rest is not None:
        yield from _walk(node.rest, (*path, ":"))
