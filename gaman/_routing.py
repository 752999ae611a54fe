"""Routes: a table checked when it is defined and matched in a time that does not grow with it; never calls a handler."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping, MutableMapping, Sequence
from functools import partial
from inspect import Parameter, Signature, isasyncgenfunction, isclass, iscoroutinefunction, isroutine, signature
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias, TypeGuard, cast
from urllib.parse import unquote

from gaman import _target
from gaman._context import Context
from gaman._response import Response
from gaman._results import Result, error_response
from gaman.errors import ConfigError, HTTPError

Handler: TypeAlias = Callable[[Context], Awaitable[Result]]
Table: TypeAlias = "Mapping[str, Handler | Sequence[Handler] | Table]"
Segments: TypeAlias = tuple[str, ...]
Match: TypeAlias = tuple[Handler, Mapping[str, str]]
"""What answers a request, several handlers made into one, and the path's parameters."""

# RFC 9110, section 9.3, without CONNECT, which asks for a tunnel; and RFC 5789.
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
_PERCENT = ord("%")
_parameter = re.compile(r":[A-Za-z_][A-Za-z0-9_]*\*?").fullmatch
# A parameter as other frameworks write it: `{id}`, `{id:int}`, `<int:id>`, `{path...}` or `*path`.
_foreign = re.compile(r"[^{<]*[{<](.*[A-Za-z_].*)[}>].*|(\*+[A-Za-z_].*)").fullmatch
# `user-:id`, but not `items:batch`.
_holds_parameter = re.compile(r".*[^\w:]:[A-Za-z_].*").fullmatch
_is_encoded = re.compile(r"%[0-9A-Fa-f]{2}").search
_is_converter = re.compile(r"str|string|int|float|path|slug|uuid|any").fullmatch
_names = re.compile(r"[A-Za-z_]\w*").findall
# Empty segments, `.` and `..` would be other ways to write a path, which a guard misses; and no file's name has a NUL.
_is_ambiguous = re.compile(r"(?:\A|/)\.{0,2}(?:/|\Z)|\0").search
_NO_PARAMS: Mapping[str, str] = MappingProxyType({})


class Answered(Exception):
    """Raised for a request that is answered, with a Response or an HTTPError, before any hook runs."""

    def __init__(self, answer: Response | HTTPError) -> None:
        self.response = error_response(answer) if isinstance(answer, HTTPError) else answer


def define_routes(table: Table | Callable[[], Table] | Callable[[Any], Table], *, strict: bool = False) -> Routes:
    """Return the routes of *table*, checked; ConfigError names the path of what is wrong in it.

    A key is a path (`/users/:id`, or `/files/:path*` for all paths below `/files`), a path that ends in `/*` (middleware for that
    path and all below it), or an HTTP method, `ALL` among them; a value is an async handler, a list of them, or a table of its own.
    A function that returns such a dict may take one argument: the `deps` of the App. With *strict*, a trailing slash makes another
    path.
    """
    return Routes(table, strict=strict)


class Routes:
    """What define_routes returns: immutable, and ready for any number of Apps."""

    __slots__ = ("_factory", "_middleware", "_root", "_static", "_strict")

    def __init__(self, table: Table | Callable[[], Table] | Callable[[Any], Table], *, strict: bool = False) -> None:
        self._strict = strict
        self._factory: Callable[[Any], Table] | None = None
        self._root = _Node()
        # A path without parameters, spelled as it was defined, takes one look-up and skips the tree.
        self._static: dict[str, dict[str, Match]] = {}
        self._middleware: tuple[_Layer, ...] = ()
        if _has_routes(table) or not callable(table):
            self._add(cast("Table", table))
        elif iscoroutinefunction(table) or iscoroutinefunction(function_of(table)):
            raise ConfigError(f"routes are a dict of paths and handlers, not a handler; write {{'/': {name_of(table)}}}")
        elif (takes := _signature(table)) is None or not takes.parameters:
            self._add(cast("Callable[[], Table]", table)())
        elif _fits(takes):
            self._factory = cast("Callable[[Any], Table]", table)
        else:
            raise ConfigError(f"the function {name_of(table)} of routes takes {_required(takes)}; it may take `deps`, and no more")

    def bind(self, deps: Any) -> Routes:
        """Return these routes where their table was a dict, else those that its function makes of *deps*."""
        return self if self._factory is None else Routes(self._factory(deps), strict=self._strict)

    def match(self, scope: MutableMapping[str, Any]) -> Match:
        """Return what answers the ASGI *scope*, be it with an error; Answered is raised for a target that isn't a path."""
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
                raise Answered(Response(None, 204))
            raise Answered(HTTPError(400, "the path does not begin with a slash, or is not valid UTF-8"))
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
                if "" in segments and (kept := _without_empty(segments, self._strict)) != segments:
                    return self._search(method, kept)
                return self._unanswered(method, segments, known)
            node, depth = branches.pop()

    def _unanswered(self, method: str, segments: Sequence[str], known: set[str] | None) -> Match:
        layers = [layer for layer in self._middleware if layer.covers(segments)]
        layers.append(_Layer((), (_known_path(method, known),)) if known else _NOWHERE)
        return _match(layers, segments)

    def _add(self, table: Table) -> None:
        if _has_routes(table):
            raise ConfigError(
                "define_routes() takes a dict of paths and handlers, and these routes are defined already; pass the dict"
            )
        if not _is_table(table):
            raise ConfigError(
                f"routes are a dict of paths and handlers, or a function that returns one, not a {type(table).__name__}"
            )
        entries = [(entry, _Layer.of(entry, self._strict)) for entry in _flatten(table, "")]
        self._middleware = tuple(layer for _, layer in entries if layer.is_middleware)
        for entry, layer in entries:
            if not layer.is_middleware:
                self._add_route(entry, layer)
        for path, node in _walk(self._root):
            _complete(node.endpoint)
            if not any(segment[:1] == ":" for segment in path):
                matches = {method: route.match(path) for method, route in node.endpoint.items()}
                # Every request to a static path gets the same parameters, so nobody may change them.
                frozen: dict[str, Match] = {
                    method: (answer, MappingProxyType(params)) for method, (answer, params) in matches.items()
                }
                self._static["/" + "/".join(path)] = frozen

    def _add_route(self, entry: _Entry, layer: _Layer) -> None:
        node = self._root
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
                        f"{entry}: another route has {node.segment!r} in the place of {segment!r}; give both one name"
                    )
        if entry.method in node.endpoint:
            raise ConfigError(f"{entry}: this path and method have a route already")
        layers = [*(other for other in self._middleware if other.may_cover(layer.segments)), layer]
        # A catch-all and another parameter have different values, even where both begin at one place.
        values: dict[str, int | None] = {layer.rest: None} if layer.rest else {}
        for name, value in [pair for other in layers for pair in other.params.items()]:
            if values.setdefault(name, value) != value:
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
    """Handlers, and the path they are for; those of middleware are for all that lies below it as well."""

    segments: Segments
    handlers: tuple[Handler, ...]
    is_middleware: bool = False

    @classmethod
    def of(cls, entry: _Entry, strict: bool) -> _Layer:
        parts = entry.path.split("/")
        # `/adm*` is none: it would look as if it guarded `/admin/users`.
        if is_middleware := parts[-1] == "*":
            parts.pop()
        segments = tuple(_without_empty(parts, strict and not is_middleware))
        names: set[str] = set()
        for place, segment in enumerate(segments, 1):
            if _foreign(segment) is not None:
                path = "/".join(map(_translate, parts)) + "/*" * is_middleware
                raise ConfigError(f"{entry}: {segment!r} isn't a parameter, which is a whole segment with a colon; write {path}")
            if segment[:1] != ":":
                if (fault := _fault(segment)) is not None:
                    raise ConfigError(f"{entry}: {fault}")
                continue
            if _parameter(segment) is None:
                raise ConfigError(f"{entry}: {segment!r} is no parameter; after the colon comes a name of letters, digits and _")
            if segment[-1] == "*" and (is_middleware or place < len(segments)):
                raise ConfigError(f"{entry}: nothing comes after {segment!r}, because it takes the rest of the path")
            if (name := segment.strip(":*")) in names:
                raise ConfigError(f"{entry}: the parameter ':{name}' stands there twice")
            names.add(name)
        return cls(segments, entry.handlers, is_middleware)

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


class _Route:
    """What one path answers to one method: the layers of middleware and last its own."""

    __slots__ = ("_handler", "_layers", "_places", "_rest")

    def __init__(self, layers: Sequence[_Layer]) -> None:
        *above, own = layers
        # `/users/me/*` is for `/users/:id/posts` only where the id is "me", which each request must tell.
        is_certain = all(layer.covers(own.segments) for layer in above)
        self._layers = None if is_certain else layers
        self._handler = _chain(tuple(handler for layer in layers for handler in layer.handlers))
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


def _match(layers: Sequence[_Layer], segments: Sequence[str]) -> tuple[Handler, dict[str, str]]:
    handler = _chain(tuple(handler for layer in layers for handler in layer.handlers))
    return handler, {name: segments[place] for layer in layers for name, place in layer.params.items()}


def _without_empty(segments: Sequence[str], strict: bool) -> list[str]:
    """Return *segments* without the empty ones that slashes leave, but where *strict* the last, for its trailing slash."""
    kept = [segment for segment in segments if segment]
    return [*kept, ""] if strict and kept and not segments[-1] else kept


def _flatten(table: Table, prefix: str) -> Iterator[_Entry]:
    for key, value in table.items():
        if key in _METHODS or key == "ALL":
            yield _Entry(key, prefix or "/", _handlers(f"{key} {prefix or '/'}", value))
            continue
        path = _join(prefix, key)
        if not _is_table(value):
            yield _Entry("ALL", path, _handlers(path, value))
        elif path.endswith("/*") or path == "*":
            yield _Entry("ALL", path, (_by_method(path, value),))
        else:
            yield from _flatten(value, path)


def _is_table(value: object) -> TypeGuard[Table]:
    return isinstance(value, Mapping)


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


def _translate(segment: str) -> str:
    """Return *segment* with a colon where it is a parameter as other frameworks write it, else as it is."""
    found = _foreign(segment)
    if found is None:
        return segment
    inner = found[1] or found[2]
    if "<" in segment:
        kind, _, name = inner.rpartition(":")
        if kind and _is_converter(name) and not _is_converter(kind):
            kind, name = name, kind
    else:
        name, _, kind = inner.partition(":")
    [found_name, *_] = _names(name) or _names(inner)
    return f":{found_name}{'*' if kind == 'path' or '*' in name or '...' in name else ''}"


def _fault(segment: str) -> str | None:
    """Return what is wrong with a literal *segment*, which no request could match, or None."""
    if "*" in segment:
        return "a * stands alone at the end of a path, or after a parameter's name there"
    if "?" in segment or "#" in segment:
        return f"{segment!r} isn't of a path, which ends before ? and #; the query is in ctx.query"
    if _holds_parameter(segment) is not None:
        return f"{segment!r} holds a parameter, which is a whole segment; write :name in its place, and split that in the handler"
    if _is_encoded(segment) is not None:
        return f"{segment!r} is percent-encoded, and routes match decoded paths; write {unquote(segment)!r}"
    return f"{segment!r} is a segment that clients resolve; write the path without it" if segment in (".", "..") else None


def _handlers(where: str, value: object) -> tuple[Handler, ...]:
    handlers = cast("Sequence[object]", value) if isinstance(value, (list, tuple)) else (value,)
    if not handlers:
        raise ConfigError(f"{where}: the list of handlers is empty")
    for handler in handlers:
        _check_handler(where, handler)
    return cast("tuple[Handler, ...]", tuple(handlers))


def _check_handler(where: str, handler: object) -> None:
    if _has_routes(handler):
        raise ConfigError(f"{where}: routes aren't a handler; give the dict that they are made of in their place")
    if isinstance(handler, Coroutine):
        name = name_of(cast("object", handler))
        handler.close()
        raise ConfigError(f"{where}: {name} is called here; write {name} by itself, because each request calls it")
    if not callable(handler):
        raise ConfigError(f"{where}: a {type(handler).__name__} isn't a handler; give an async function, or a list of them")
    called, name = function_of(handler), name_of(handler)
    if isclass(handler):
        raise ConfigError(f"{where}: {name} is a class, not a handler; give an async function, or a method of an object")
    if isasyncgenfunction(called):
        raise ConfigError(
            f"{where}: the handler {name} is an async generator, because it holds `yield`; write a handler that returns "
            "Response.stream() of that generator"
        )
    if not iscoroutinefunction(handler) and not iscoroutinefunction(called):
        raise ConfigError(f"{where}: the handler {name} is not async; write `async def`")
    takes = _signature(handler)
    if takes is None:
        return
    first = next(iter(takes.parameters), "ctx")
    # `async def show(id)` of `/users/:id` would get the context as its id.
    if not _fits(takes) or first == "self" or (first != "ctx" and f":{first}" in where.replace("*", "").split("/")):
        fix = "give the method of an object, not of its class" if first == "self" else "path parameters are in ctx.params"
        raise ConfigError(f"{where}: the handler {name} takes {_required(takes)}, but is called as {name}(ctx); {fix}")


def _has_routes(value: object) -> bool:
    """Whether *value* is Routes or an App."""
    return isinstance(getattr(value, "routes", value), Routes)


def _signature(function: Callable[..., object]) -> Signature | None:
    """Return what *function* takes, or None for one that is written in C and doesn't tell."""
    try:
        # What a decorator's own function takes, which passes on to the decorated one what that needs.
        return signature(function, follow_wrapped=False)
    except ValueError:
        return None


def _fits(takes: Signature) -> bool:
    """Whether one argument is enough for a function that *takes* these."""
    try:
        takes.bind(None)
    except TypeError:
        return False
    return True


def _required(takes: Signature) -> Signature:
    """Return *takes* without annotations, and without what a caller may leave out."""
    variadic = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    required = [p for p in takes.parameters.values() if p.default is p.empty and p.kind not in variadic]
    return Signature([p.replace(annotation=p.empty) for p in required])


def name_of(handler: object) -> str:
    """Return what the user calls *handler*: the name of a function, or of what a partial or an object calls."""
    return str(getattr(handler, "__qualname__", None) or getattr(function_of(handler), "__qualname__", repr(handler)))


def function_of(handler: object) -> object:
    """Return the function that calling *handler* runs: that of a partial, the `__call__` of an object, or itself."""
    while isinstance(handler, partial):
        handler = cast("partial[object]", handler).func
    return handler if isroutine(handler) or isclass(handler) else getattr(type(handler), "__call__", handler)  # noqa: B004


def _by_method(path: str, table: Table) -> Handler:
    """Return middleware that runs those handlers of *table* that are for the request's method."""
    by_method = {entry.method: _chain(entry.handlers) for entry in _flatten(table, path)}
    for key in table:
        if key not in by_method:
            raise ConfigError(f"{path}: a * stands alone at the end of a path, so below it come only methods, not {key!r}")
    _complete(by_method)

    async def middleware(ctx: Context) -> Result:
        handler = by_method.get(ctx.method) or by_method.get("ALL")
        return None if handler is None else await handler(ctx)

    return middleware


def _chain(handlers: tuple[Handler, ...]) -> Handler:
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


def _complete(endpoint: dict[str, Any]) -> None:
    """Let GET serve HEAD (RFC 9110, section 9.3.2) and ALL every method without a route of its own."""
    if "GET" in endpoint:
        endpoint.setdefault("HEAD", endpoint["GET"])
    if "ALL" in endpoint:
        for method in _METHODS:
            endpoint.setdefault(method, endpoint["ALL"])


async def _not_found(ctx: Context) -> Result:
    raise HTTPError(404)


_NOWHERE = _Layer((), (_not_found,))
"""The end of every request to a path without a route, so that only a route's own handler can return None as the last."""


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
    if node.rest is not None:
        yield from _walk(node.rest, (*path, ":"))
