"""Integrations: records of hooks, and the order in which they run; knows no integration by name."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from inspect import isasyncgenfunction, iscoroutinefunction, isgeneratorfunction, ismodule, unwrap
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

from gaman._application import kind_of, takes
from gaman._asgi import Scope
from gaman._context import Context
from gaman._dropped import find_dropped
from gaman._handlers import function_of, middleware_in, name_of, required, signature_of
from gaman._headers import RawHeaders
from gaman._layers import Handler
from gaman._matching import ByMethod, FindHooks, Hooks, RequestHook
from gaman._response import Response, close_coroutine
from gaman._tracebacks import place_of_caller
from gaman.errors import ConfigError, a_type, checks_arguments

if TYPE_CHECKING:
    from gaman._app import App
    from gaman.session import Session

ResponseHook: TypeAlias = Callable[[Context, Response], Awaitable[Response | None] | Response | None]
SessionMaker: TypeAlias = "Callable[[Scope, bool], Session]"
SessionCloser: TypeAlias = "Callable[[Context, Session, Response], Awaitable[RawHeaders] | RawHeaders]"
Priority = Literal["very-high", "high", "normal", "low", "very-low"]
"""How far out an integration lies around the handlers: `"very-high"` runs first on the way in, and last on the way out."""

_ARGUMENTS = {
    "on_load": ["app"],
    "on_shutdown": ["app"],
    "on_request": ["ctx"],
    "on_route": ["method", "handlers"],
    "on_response": ["ctx", "response"],
    "on_unmatched": ["ctx"],
    "on_error": ["ctx", "error"],
    "make_session": ["scope", "is_closed"],
    "close_session": ["ctx", "session", "response"],
    "on_purge": ["app"],
    "on_check": ["app"],
    "trusts_origin": ["origin"],
}
"""What each hook is called with."""
_ORDER: tuple[Priority, ...] = ("very-high", "high", "normal", "low", "very-low")


@checks_arguments
@dataclass(frozen=True, kw_only=True)
class Integration:
    """A name, a priority, and optional hooks, which are sync or async functions.

        def add_header(ctx: Context, response: Response) -> None:
            response.headers["x-frame-options"] = "DENY"

        app = App(routes, integrations=[Integration(name="frames", on_response=add_header)])

    Hooks with a higher priority run first on the way to the handlers (`on_load`, `on_request`, `on_unmatched`, `on_error`) and last
    on the way back (`on_response`, `on_shutdown`).
    """

    name: str
    priority: Priority = "normal"
    on_load: Callable[[App], Awaitable[None] | None] | None = None
    """Runs before the first request. An error stops the start-up."""
    on_shutdown: Callable[[App], Awaitable[None] | None] | None = None
    """Runs after the last request, if this integration's on_load has succeeded."""
    on_request: RequestHook | None = None
    """Runs before the handlers. A Response is sent instead of calling them."""
    on_route: Callable[[str, Sequence[Handler]], RequestHook | None] | None = None
    """Chooses an on_request hook for the requests that have this method and meet these handlers, or None for no hook.

    It is called for each route when the App is made. It is called for each request that no route matches, and where middleware
    covers only some paths of a route. The method is `ALL` for methods that HTTP doesn't define. Middleware counts among the
    handlers, in the order of the table.
    """
    on_response: ResponseHook | None = None
    """Runs before any response is sent. It may return another Response; None keeps the same one."""
    on_unmatched: Callable[[Context], Awaitable[Response | None] | Response | None] | None = None
    """Runs after middleware, where no route has the request's path and method. A Response is sent instead of a 404 or 405."""
    on_error: Callable[[Context, Exception], Awaitable[Response | None] | Response | None] | None = None
    """Runs for every error, including HTTPError. The first Response that an on_error hook returns is sent."""
    make_session: SessionMaker | None = None
    """Makes the `ctx.session` of a request with this ASGI scope, when the request first uses it.

    If the flag is true, close_session has had its turn, so the session has to refuse changes. Only one integration of an App makes
    sessions.
    """
    close_session: SessionCloser | None = None
    """Takes the turn of on_response for each session that was made: writes it, and returns the response's header fields.

    It leaves the Response unchanged, because a handler may return it again. The fields that it adds aren't checked.
    """
    on_purge: Callable[[App], Awaitable[int] | int] | None = None
    """Removes what has expired from the integration's store, and returns the number removed; called by `gaman purge`."""
    on_check: Callable[[App], Awaitable[None] | None] | None = None
    """Raises an error if the integration can't work at the moment; called by `app.check()`."""
    trusts_origin: Callable[[str], bool] | None = None
    """Returns whether pages of this origin may send requests in the name of a user, as those of cors(credentials=True) may.

    An integration that refuses requests of other origins asks it.
    """
    _place: str = field(init=False, repr=False, compare=False, default="")
    """The line that made the integration, for messages: ` (main.py, line 8, in <module>)`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "_place", place_of_caller())
        if not self.name:
            raise ConfigError("an integration needs a name, for the errors and logs that it appears in")
        if self.priority not in _ORDER:
            raise ConfigError(f"the integration {self.name!r} has priority={self.priority!r}; it takes one of {', '.join(_ORDER)}")
        for option, arguments in _ARGUMENTS.items():
            if (hook := getattr(self, option)) is not None and (fault := _fault(hook, arguments)):
                raise ConfigError(f"{option} of the integration {self.name!r}: {fault}")
        if (self.make_session is None) != (self.close_session is None):
            raise ConfigError(
                f"the integration {self.name!r} has only one of make_session and close_session; give it both, or none"
            )


def _fault(hook: object, arguments: list[str]) -> str | None:
    """Return why *hook* can't be called with these *arguments*, or None if it can, as far as its signature tells."""
    if isinstance(hook, Coroutine):
        name = close_coroutine(cast("object", hook))
        return f"{name} is called here; write {name} by itself, because it is called later"
    if not callable(hook):
        return f"{a_type(hook)} isn't a function"
    name, function = name_of(hook), cast("Any", function_of(hook))
    # Functions of @asynccontextmanager and @contextmanager make a generator as well.
    made = unwrap(function) if getattr(function, "__globals__", {}).get("__name__") == "contextlib" else function
    if isasyncgenfunction(made) or isgeneratorfunction(made):
        fix = "write what follows it as on_shutdown" if arguments == ["app"] else "write a function that returns"
        return f"{name} is a generator, because it holds `yield`; {fix}"
    if (dropped := find_dropped(function)) is not None:
        return f"{name} {dropped}"
    signature = signature_of(hook)
    given = [*signature.parameters] if signature is not None else []
    is_swapped = len(arguments) > 1 and given[: len(arguments)] == arguments[::-1]
    if signature is not None and (is_swapped or not takes(hook, len(arguments))):
        return f"{name} takes {required(signature)}, but is called as {name}({', '.join(arguments)})"
    return None


define_integration = Integration
"""Integration by another name, which matches define_routes."""


def in_order(integrations: Iterable[Integration]) -> list[Integration]:
    """Return *integrations* by priority, then in the order of the list; ConfigError names an entry that isn't an integration."""
    if isinstance(integrations, str) or not isinstance(integrations, Iterable):
        raise ConfigError(f"integrations is a list, not {_describe(integrations)}")
    integrations, names, maker = tuple(integrations), set[str](), ""
    for integration in integrations:
        if not isinstance(integration, Integration):
            raise ConfigError(f"integrations holds {_describe(integration)}")
        if integration.name in names:
            raise ConfigError(f"integrations holds two named {integration.name!r}, which would conflict; remove one")
        names.add(integration.name)
        if integration.make_session is not None:
            if maker:
                raise ConfigError(f"the integrations {maker!r} and {integration.name!r} both make ctx.session; remove one")
            maker = integration.name
    return sorted(integrations, key=lambda integration: _ORDER.index(integration.priority))


def hook_finder(integrations: Sequence[Integration]) -> FindHooks | None:
    """Return what finds the hooks that run before the handlers of a route, or None if there are no such hooks."""
    integrations = [i for i in integrations if i.on_request is not None or i.on_route is not None]

    def find_hooks(method: str, handlers: tuple[Handler, ...]) -> Hooks:
        hooks: list[RequestHook] = []
        for integration in integrations:
            if integration.on_request is not None:
                hooks.append(integration.on_request)
            if integration.on_route is not None and (hook := integration.on_route(method, _flat(method, handlers))) is not None:
                hooks.append(hook)
        return tuple(hooks)

    return find_hooks if integrations else None


def _flat(method: str, handlers: Iterable[Handler]) -> list[Handler]:
    """Return *handlers* with those of *method* in the place of middleware that has others for each method."""
    return [each for handler in handlers for each in (handler.handlers_for(method) if isinstance(handler, ByMethod) else [handler])]


def _describe(value: object) -> str:
    """Return a description of *value*, which should be a list of integrations or one of them, and what to write instead."""
    if isinstance(value, Integration):
        return f"the integration {value.name!r} by itself; write integrations=[{value.name}(...)]"
    if isinstance(value, (list, tuple)):
        return "a list; write integrations=[session()], without another list in it"
    if (middleware := middleware_in(value)) is not None:
        return f"the ASGI middleware {name_of(middleware)}; write middleware=[Middleware({name_of(middleware)}, ...)]"
    if iscoroutinefunction(value) and takes(value, 1):
        return f"the async function {name_of(value)}; one for every request goes into the routes, as {{'*': {name_of(value)}}}"
    if iscoroutinefunction(function_of(value)) and takes(value, 3):
        return f"the application {kind_of(value)}; put it into the routes, as {{'/path/*': mount(...)}}"
    if ismodule(value):
        return f"the module {value.__name__}; import the integration from it"
    if callable(value):
        name = getattr(value, "__name__", type(value).__name__)
        return f"{name} itself; write integrations=[{name}()]"
    if type(value).__module__ != "builtins":
        return f"{a_type(value)}; make an integration of its methods: define_integration(name=..., on_request=...)"
    return f"{value!r}; write integrations=[session()], for example, or leave it out"
