"""Routes: matched against requests, in a time that doesn't grow with the number of static routes; never calls a handler."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias, cast

from gaman import _params, _target
from gaman._asgi import Application, Scope
from gaman._context import Context
from gaman._layers import Handler, Layer, Segments
from gaman._params import TYPES, Test
from gaman._response import Response
from gaman._results import Result, error_response, to_response
from gaman.errors import ConfigError, HTTPError

RequestHook: TypeAlias = Callable[[Context], Awaitable[Response | None] | Response | None]
Hooks: TypeAlias = tuple[RequestHook, ...]
"""What runs before the handlers of a route."""
HooksOf: TypeAlias = Callable[[tuple[Handler, ...]], Hooks]
"""Returns the hooks of requests that meet these handlers."""
FindHooks: TypeAlias = Callable[[str, tuple[Handler, ...]], Hooks]
"""The same, for requests of a method."""
Match: TypeAlias = tuple[Handler, Mapping[str, str], Hooks]
"""The handler of a request, which may be a chain of several, the path's parameters, and the hooks that run first."""

# RFC 9110, section 9.3, and RFC 5789. CONNECT is missing because it asks for a tunnel.
METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
_PERCENT = ord("%")


class EarlyResponse(Exception):
    """Raised for a request whose response is sent before any hook runs."""

    def __init__(self, response: Response | HTTPError) -> None:
        self.response = error_response(response) if isinstance(response, HTTPError) else response


class Entry(NamedTuple):
    """One checked row of a table; *name* is its method and path, for error messages."""

    name: str
    method: str
    layer: Layer
    mounted: Application | None = None
    """The application that the layer calls, if it is mounted. Such a row is used where no other matches."""


class Routes:
    """The result of define_routes(): immutable, for any number of Apps."""

    __slots__ = ("_factory", "_find_hooks", "_middleware", "_root", "_static", "_strict", "entries", "mounted")

    def __init__(
        self,
        entries: Iterable[Entry] = (),
        *,
        strict: bool = False,
        factory: Callable[[Any], Routes] | None = None,
        find_hooks: FindHooks | None = None,
    ) -> None:
        self._strict = strict
        self._factory = factory
        self._find_hooks = find_hooks
        self._root = _Node()
        # Paths without parameters. One lookup here instead of the tree's search saves 0.8 microseconds a request.
        self._static: dict[str, dict[str, Match]] = {}
        self.entries = tuple(entries)
        """The checked rows of the table, in its order; none before bind() has called the table's function."""
        self._middleware = tuple(entry.layer for entry in self.entries if entry.layer.is_middleware)
        applications = {id(entry.mounted): entry.mounted for entry in self.entries if entry.mounted is not None}
        self.mounted = tuple(applications.values())
        """The mounted applications, each once."""
        for entry in sorted(self.entries, key=lambda entry: entry.mounted is not None):
            if not entry.layer.is_middleware:
                self._add(entry)
        for path, node in _walk(self._root):
            complete(node.endpoint)
            if find_hooks is not None:
                node.endpoint = {method: route.with_hooks(partial(find_hooks, method)) for method, route in node.endpoint.items()}
            if not any(segment[:1] == ":" for segment in path):
                matches = {method: route.match(path) for method, route in node.endpoint.items()}
                # Read-only, because every request to a static path gets the same parameters.
                frozen: dict[str, Match] = {
                    method: (handler, MappingProxyType(params), hooks) for method, (handler, params, hooks) in matches.items()
                }
                self._static["/" + "/".join(path)] = frozen
        self._root.close()

    def bind(self, deps: Any, find_hooks: FindHooks | None) -> Routes:
        """Return these routes, or those of the function that they were defined by, called with *deps*; *find_hooks* adds hooks."""
        routes = self if self._factory is None else self._factory(deps)
        return routes if find_hooks is None else Routes(routes.entries, strict=routes._strict, find_hooks=find_hooks)

    def match(self, scope: Scope) -> Match:
        """Return the match of a request, whose handler may raise 404 or 405; EarlyResponse: its target isn't a path."""
        path: str = scope["path"]
        raw_path, root_path = scope.get("raw_path"), scope.get("root_path")
        if not root_path and (raw_path is None or _PERCENT not in raw_path):
            endpoint = self._static.get(path)
            if endpoint is not None and (match := endpoint.get(scope["method"])) is not None:
                return match
            # A path without escapes needs no _target.split(), which saves 0.2 microseconds for a route with parameters.
            segments = path.split("/")
            if not segments.pop(0) and segments:
                return self._search(scope["method"], segments)
        decoded = _target.split(path, raw_path, root_path)
        if decoded is None:
            if scope["method"] == "OPTIONS" and path == "*":
                # A ping of the server (RFC 9110, section 9.3.7). It has no Allow, which describes a resource.
                raise EarlyResponse(Response(None, 204))
            raise EarlyResponse(HTTPError(400, "the path does not begin with a slash, or is not valid UTF-8"))
        if decoded and not decoded[-1] and not self._strict:
            decoded.pop()
        return self._search(scope["method"], decoded)

    def _search(self, method: str, segments: list[str]) -> Match:
        node, depth = self._root, 0
        # Where to continue if the search ends without a route, the next one last: parameters and catch-alls that it has passed.
        branches: tuple[tuple[_Node, int], ...] = ()
        endpoints: tuple[Mapping[str, _Route], ...] = ()
        while True:
            # The first search needs no copy, which saves 5 % of a request with a parameter.
            for segment in segments[depth:] if depth else segments:
                if node.others is not None and segment:
                    branches += node.branches(segment, depth, len(segments))
                depth += 1
                following = node.literals.get(segment)
                if following is None:
                    following = node.parameter if segment else None
                    if following is None:
                        break
                elif node.parameter is not None and segment:
                    branches = (*branches, (node.parameter, depth))
                node = following
            else:
                route = node.endpoint.get(method) or node.endpoint.get("ALL")
                if route is not None:
                    return route.match(segments)
                endpoints = (*endpoints, node.endpoint)
            while branches and not branches[-1][0].accepts(segments, self._strict):
                branches = branches[:-1]
            if not branches:
                # No parameter matches an empty segment, so a path with repeated slashes fails at first, and is collapsed here.
                if "" in segments and (collapsed := _target.without_empty(segments, self._strict)) != segments:
                    return self._search(method, collapsed)
                return self._unmatched(method, segments, {name for endpoint in endpoints for name in endpoint})
            (node, depth), branches = branches[-1], branches[:-1]

    def _unmatched(self, method: str, segments: Sequence[str], known_methods: set[str]) -> Match:
        layers = [layer for layer in self._middleware if layer.covers(segments)]
        layers.append(Layer((), (_other_method(method, known_methods),)) if known_methods else _NOT_FOUND)
        return _match(layers, segments, self._find_hooks and partial(self._find_hooks, method))

    def _add(self, entry: Entry) -> None:
        node, layer = self._root, entry.layer
        for index, segment in enumerate(layer.segments):
            if (parameter := _params.parse(segment)) is None:
                node = node.literals.setdefault(segment, _Node())
            elif not parameter.is_catch_all:
                node = node.parameters.setdefault(parameter.type, _Node())
            else:
                # Below a mount, the prefix has one spelling too.
                node.catch_all = node.catch_all or _Node(segment, index if entry.mounted is None else 0)
                node = node.catch_all
                if node.segment != segment and entry.mounted is not None:
                    raise ConfigError(f"{entry.name}: {node.segment!r} of another route takes every path of the mount; remove one")
                if node.segment != segment:
                    raise ConfigError(
                        f"{entry.name}: another route has {node.segment!r} in the place of {segment!r}; give both one name"
                    )
        if entry.method in node.endpoint:
            if entry.mounted is not None and not node.segment:
                return
            raise ConfigError(f"{entry.name}: this path and method have a route already")
        layers = [*(other for other in self._middleware if other.may_cover(layer.segments)), layer]
        # A catch-all and a parameter have different values, even if both begin at the same segment.
        indexes: dict[str, int | None] = {layer.catch_all: None} if layer.catch_all else {}
        for name, index in [pair for other in layers for pair in other.params.items()]:
            if indexes.setdefault(name, index) != index:
                raise ConfigError(f"{entry.name}: ':{name}' is at another position here than in the middleware above; rename one")
        node.endpoint[entry.method] = _Route(layers)


class _Route:
    """The handlers of one path and method: the layers of middleware, and its own layer last."""

    __slots__ = ("_all_layers", "_catch_all", "_find_hooks", "_handler", "_hooks", "_layers", "_params")

    def __init__(self, layers: Sequence[Layer], find_hooks: HooksOf | None = None) -> None:
        *above, own = self._all_layers = layers
        self._find_hooks = find_hooks
        self._hooks: Hooks = () if find_hooks is None else find_hooks(_handlers_of(layers))
        # `/users/me/*` covers `/users/:id/posts` only if the id is "me", so each request has to check.
        is_certain = all(layer.covers_all(own.segments) for layer in above)
        self._layers = None if is_certain else layers
        self._handler = chain(_handlers_of(layers))
        self._params = tuple({name: index for layer in layers for name, index in layer.params.items()}.items())
        self._catch_all = (own.catch_all, len(own.segments) - 1) if own.catch_all else None

    def with_hooks(self, find_hooks: HooksOf) -> _Route:
        """Return this route for one method, with the hooks of its handlers."""
        return _Route(self._all_layers, find_hooks)

    def match(self, segments: Sequence[str]) -> Match:
        """Return the match of *segments*, which this route's path matches."""
        handler, hooks = self._handler, self._hooks
        params: dict[str, str] = {}
        if self._layers is not None:
            *above, own = self._layers
            layers = [*(layer for layer in above if layer.covers(segments)), own]
            handler, params, hooks = _match(layers, segments, self._find_hooks)
        else:
            for name, index in self._params:
                params[name] = segments[index]
        if self._catch_all is not None:
            name, index = self._catch_all
            params[name] = "/".join(segments[index:])
        return handler, params, hooks


class _Node:
    """A node in the tree of paths. Its children are literal segments, a parameter of each type, and at most one catch-all."""

    __slots__ = ("catch_all", "endpoint", "literals", "others", "parameter", "parameters", "segment", "start")

    def __init__(self, segment: str = "", start: int | None = None) -> None:
        self.literals: dict[str, _Node] = {}
        self.parameters: dict[str, _Node] = {}
        """By type; without one, an empty string."""
        self.catch_all: _Node | None = None
        # The next two are for the search, and close() sets them. A path without types and catch-alls pays for neither.
        self.parameter: _Node | None = None
        """The parameter without a type, if there is none with one."""
        self.others: tuple[tuple[Test, _Node], ...] | None = None
        """The other children and the tests of their first segments, in order of precedence, the first one last."""
        self.endpoint: dict[str, _Route] = {}
        """The routes of this path, by method."""
        self.segment = segment
        self.start = start
        """The index of a catch-all's first segment."""

    def close(self) -> None:
        """Prepare the search, when the tree below this node is complete."""
        children = [*self.literals.values(), *self.parameters.values()]
        others: list[tuple[Test, _Node]] = [] if self.catch_all is None else [(bool, self.catch_all)]
        plain = self.parameters.get("")
        if len(self.parameters) > (plain is not None):
            others += [(bool, plain)] if plain is not None else []
            others += [(TYPES[name], self.parameters[name]) for name in reversed(TYPES) if name in self.parameters]
        else:
            self.parameter = plain
        self.others = tuple(others) or None
        for child in children:
            child.close()

    def branches(self, segment: str, depth: int, end: int) -> tuple[tuple[_Node, int], ...]:
        """Return the others that match *segment*, the one at *depth* of *end*, each with the depth where it continues."""
        found: tuple[tuple[_Node, int], ...] = ()
        for fits, other in self.others or ():
            if fits(segment):
                found = (*found, (other, depth + 1 if other.start is None else end))
        return found

    def accepts(self, segments: Sequence[str], strict: bool) -> bool:
        """Return whether a catch-all may match the end of *segments*: not if that has other spellings, which a guard would miss.

        Other nodes return True.
        """
        if self.start is None:
            return True
        rest = segments[self.start :]
        return _target.has_one_spelling(rest[:-1] if strict and not rest[-1] else rest)


def _match(layers: Sequence[Layer], segments: Sequence[str], find_hooks: HooksOf | None) -> tuple[Handler, dict[str, str], Hooks]:
    handlers = _handlers_of(layers)
    params = {name: segments[index] for layer in layers for name, index in layer.params.items()}
    return chain(handlers), params, () if find_hooks is None else find_hooks(handlers)


def _handlers_of(layers: Iterable[Layer]) -> tuple[Handler, ...]:
    return tuple(handler for layer in layers for handler in layer.handlers)


def chain(handlers: tuple[Handler, ...]) -> Handler:
    """Return one handler that calls *handlers* in turn until one returns a result."""
    return handlers[0] if len(handlers) == 1 else partial(_call_in_turn, handlers)


class ByMethod:
    """Middleware with handlers of its own for each method."""

    def __init__(self, by_method: dict[str, tuple[Handler, ...]], name: str) -> None:
        complete(by_method)
        self._handlers = by_method
        self._chains = {method: chain(handlers) for method, handlers in by_method.items()}
        self.__qualname__ = name

    def handlers_for(self, method: str) -> tuple[Handler, ...]:
        """Return the handlers of *method*, which may be none."""
        return self._handlers.get(method) or self._handlers.get("ALL", ())

    async def __call__(self, ctx: Context) -> Result:
        handler = self._chains.get(ctx.method) or self._chains.get("ALL")
        return None if handler is None else await handler(ctx)


async def _call_in_turn(handlers: tuple[Handler, ...], ctx: Context) -> Result:
    for handler in handlers:
        if (result := await handler(ctx)) is not None:
            # Made into a Response here, where an error can name the guard.
            return result if handler is handlers[-1] else to_response(result, handler)
    return None


def last_of(handler: Handler) -> Handler:
    """Return the last handler of a chain(); return any other *handler* unchanged."""
    chained: Any = handler
    is_chain = isinstance(chained, partial) and chained.func is _call_in_turn
    return cast("Handler", chained.args[0][-1]) if is_chain else handler


def complete(endpoint: dict[str, Any]) -> None:
    """Let GET serve HEAD (RFC 9110, section 9.3.2) and ALL every method without a route of its own."""
    if "GET" in endpoint:
        endpoint.setdefault("HEAD", endpoint["GET"])
    if "ALL" in endpoint:
        for method in METHODS:
            endpoint.setdefault(method, endpoint["ALL"])


async def _find_unmatched(ctx: Context) -> Response | None:
    """Return the first response of the on_unmatched hooks, or None."""
    for on_unmatched in ctx.app._on_unmatched:
        result: Any = on_unmatched(ctx)
        if result is not None and hasattr(result, "__await__"):
            result = await result
        if result is not None:
            return to_response(result, on_unmatched)
    return None


async def _not_found(ctx: Context) -> Result:
    if (response := await _find_unmatched(ctx)) is not None:
        return response
    raise HTTPError(404)


_NOT_FOUND = Layer((), (_not_found,))
"""The last layer of a path without a route: then only a route's own handler can return None as the last one."""


def _other_method(method: str, known_methods: set[str]) -> Handler:
    """Return the handler for a path that has routes, but none for *method*."""
    allow = {"allow": ", ".join(name for name in METHODS if name in known_methods or name == "OPTIONS")}

    async def options(ctx: Context) -> Response:
        return Response(None, 204, allow)

    async def refuse(ctx: Context) -> Response:
        if (response := await _find_unmatched(ctx)) is not None:
            return response
        raise HTTPError(405, headers=allow)

    return options if method == "OPTIONS" else refuse


def _walk(node: _Node, path: Segments = ()) -> Iterator[tuple[Segments, _Node]]:
    """Yield every node with routes, and its path, in which `:` stands for a parameter or a catch-all."""
    if node.endpoint:
        yield path, node
    for segment, below in node.literals.items():
        yield from _walk(below, (*path, segment))
    for below in node.parameters.values():
        yield from _walk(below, (*path, ":"))
    if node.catch_all is not None:
        yield from _walk(node.catch_all, (*path, ":"))
