"""Middleware: ASGI middleware around an App, and the checks of the list that names it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from inspect import isclass, iscoroutinefunction, isroutine, signature
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from gaman._access import LoggedApplication
from gaman._application import check_application, kind_of, takes
from gaman._asgi import Application, Receive, Scope, Send
from gaman._handlers import name_of, required, signature_of
from gaman._integration import Integration
from gaman._lifespan import Lifespan
from gaman.errors import ConfigError

if TYPE_CHECKING:
    from gaman._app import App as Base
else:
    # App is made later, and wrap() adds it.
    Base = object

_INTEGRATIONS = ("Integration", "SessionIntegration")
"""The annotations of the functions that make integrations."""
Wrapper: TypeAlias = Callable[[Any], Any]
"""Middleware: a callable that takes an ASGI application and returns another one around it."""


class Middleware:
    """A class of ASGI middleware and its options, as Starlette's users write it.

        app = App(routes, middleware=[Middleware(GZipMiddleware, minimum_size=500)])

    ConfigError is raised for options that the class doesn't take.
    """

    def __init__(self, cls: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
        if not callable(cls):
            raise ConfigError(f"Middleware() takes a class of ASGI middleware and its options, not {cls!r}")
        self.cls, self.args, self.kwargs = cls, args, kwargs
        try:
            signature(cls).bind(None, *args, **kwargs)
        except ValueError:
            # A C function may have no signature.
            return
        except TypeError as cause:
            raise ConfigError(f"Middleware({name_of(cls)}): {cause}; it is called with the application and these options") from None

    def __call__(self, app: Application) -> Any:
        return self.cls(app, *self.args, **self.kwargs)


def apply(middleware: Sequence[Wrapper], app: Application) -> Application:
    """Return *app* within each entry of *middleware*, of which the first is the outermost; ConfigError names a mistake."""
    for wrapper in reversed(middleware):
        name, result = wrapper_name(wrapper), cast("object", wrapper(app))
        if callable(result) and not isroutine(result) and not isclass(result) and not takes(result, 3):
            given = required(signature(result))
            raise ConfigError(f"the middleware {name}: its __call__ takes {given}, but is called with scope, receive and send")
        app = check_application(f"the result of the middleware {name}", result)
    return app


def _check(middleware: object) -> tuple[Wrapper, ...]:
    if isinstance(middleware, (str, Mapping)) or not isinstance(middleware, Iterable):
        raise ConfigError(f"middleware is a list, not {middleware!r}; write middleware=[...]")
    return tuple(_check_entry(entry) for entry in cast("Iterable[object]", middleware))


def _check_entry(entry: object) -> Wrapper:
    """Return *entry* as a callable that takes the application; ConfigError says what to write in its place."""
    if isinstance(entry, Integration):
        raise ConfigError(f"middleware holds the integration {entry.name!r}; write integrations=[{entry.name}(...)]")
    if not callable(entry):
        # Starlette's own Middleware is a class, a sequence and a dict.
        parts: list[Any] = [*cast("Iterable[object]", entry)] if isinstance(entry, Iterable) else []
        if len(parts) == 3 and isinstance(parts[1], (list, tuple)) and isinstance(parts[2], dict):
            return Middleware(parts[0], *cast("Sequence[Any]", parts[1]), **cast("dict[str, Any]", parts[2]))
        raise ConfigError(
            f"middleware holds {entry!r}; write Middleware(Class, **options), or a function that takes the application"
        )
    name = wrapper_name(entry)
    if iscoroutinefunction(entry):
        raise ConfigError(
            f"middleware holds the async function {name}; one for every request goes into the routes, as {{'*': {name}}}, "
            f"and one for Starlette's call_next is written Middleware(BaseHTTPMiddleware, dispatch={name})"
        )
    if _makes_integration(entry):
        raise ConfigError(f"middleware holds {name}, which makes an integration; write integrations=[{name}(...)]")
    if not takes(entry, 1):
        made = type(entry)
        if takes(entry, 3) and "app" in (getattr(signature_of(made), "parameters", ())):
            raise ConfigError(
                f"middleware holds an object of {made.__name__}; write Middleware({made.__name__}, ...), with its options"
            )
        if takes(entry, 3):
            raise ConfigError(f"middleware holds {name}, which is an application itself; serve it, or mount() it in the routes")
        fix = f"write Middleware({name}, ...) with its options" if isclass(entry) else "it is called with the application only"
        raise ConfigError(f"middleware holds {name}, which isn't called as {name}(app); {fix}")
    return cast("Wrapper", entry)


def _makes_integration(entry: object) -> bool:
    """Return whether *entry* is a function such as session(), as far as its annotation tells."""
    made: object = getattr(entry, "__annotations__", {}).get("return")
    return (
        isclass(made) and issubclass(made, Integration) if not isinstance(made, str) else made.rpartition(".")[2] in _INTEGRATIONS
    )


def wrapper_name(wrapper: object) -> str:
    """Return what messages call an entry of *middleware*: its class, or its function."""
    return name_of(wrapper.cls) if isinstance(wrapper, Middleware) else name_of(wrapper) if isclass(wrapper) else kind_of(wrapper)


def wrap(app: Base, middleware: Iterable[Wrapper]) -> None:
    """Put *middleware* around *app*, by a subclass of its class: an App without middleware then never looks for it."""
    _extend(app, _Wrapped)
    cast("_Wrapped", app).wrap(middleware)


def log_requests(app: Base) -> None:
    """Put the access line around *app*, once, and around its middleware, which may answer by itself."""
    if not isinstance(app, _Logged):
        application = app.__call__
        _extend(app, _Logged)
        cast("_Logged", app).logged = LoggedApplication(application)


def _extend(app: Base, extension: type[Base]) -> None:
    cls = type(app)
    app.__class__ = cast("type[Base]", type(cls.__name__, (extension, cls), {}))


class _Logged(Base):
    """An App with an access line for each request."""

    logged: LoggedApplication

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.logged(scope, receive, send)


class _Wrapped(Base):
    """An App within middleware: requests, the start and the end go through it."""

    def wrap(self, middleware: Iterable[Wrapper]) -> None:
        """Put *middleware* around this App."""
        self.middleware = _check(middleware)
        self._outermost = apply(self.middleware, super().__call__)
        self._lifespan = Lifespan(self._outermost)

    @property
    def lifespan_state(self) -> dict[str, Any]:
        return self._lifespan.lifespan_state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        # httpx's transport, among others, has no state.
        if self._lifespan.lifespan_state and "state" not in scope:
            scope = {**scope, "state": self._lifespan.lifespan_state.copy()}
        await self._outermost(scope, receive, send)

    async def load(self) -> None:
        try:
            await self._lifespan.load()
            # Middleware may keep the lifespan from the App.
            if not self._lifecycle.is_loaded:
                await super().load()
        except BaseException:
            await self.shutdown()
            raise

    async def shutdown(self) -> None:
        await self._lifespan.shutdown()
        if self._lifecycle.is_loaded:
            await super().shutdown()
