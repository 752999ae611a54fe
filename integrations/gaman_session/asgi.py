"""SessionMiddleware: the sessions of gaman in FastAPI, Starlette, Litestar, and any other ASGI application."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from inspect import Parameter, Signature
from typing import Any, Final, Protocol, TypeAlias, cast

from gaman import ConfigError, HTTPError
from gaman.errors import a_type, checks_arguments
from gaman_session._connection import REQUEST_ENDED, Connection, Message, Receive, RequestEnded, Scope, Send, is_replaced
from gaman_session._cross_site import SAFE_METHODS
from gaman_session._exempt import ExemptPaths
from gaman_session._integration import IN_SCOPE, MOUNTED, SessionIntegration, session
from gaman_session._options import instead_in_middleware
from gaman_session._session import Session

__all__ = ["Session", "SessionMiddleware", "get_session", "session"]

Application: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
"""An ASGI 3 application. Frameworks have types of their own for the scope and the messages, which don't fit each other."""


class HasScope(Protocol):
    """A request or a WebSocket of a framework."""

    @property
    def scope(self) -> Any:
        """The ASGI scope."""
        ...


@checks_arguments(instead=instead_in_middleware)
class SessionMiddleware:
    """Gives each request and WebSocket of *app* a session, which is written before the response's header fields.

        app.add_middleware(SessionMiddleware, sessions=session(driver={"type": "redis"}))

    Handlers get the session from `get_session(request)`. Nothing is read before that. With *as_dict*, `request.session` is a dict
    too, as with Starlette's middleware: it is loaded before the handler, and its changed keys are written with the response.

    Requests and WebSockets that pages of other origins send are answered 403, unless their method is GET, HEAD or OPTIONS.
    *allow_cross_site* lists the paths that take them from every page, such as `["/webhook", "/api/*"]`, as the application's routes
    write them. `session(trusted_origins=...)` lists the origins that may send them to every path.

    The store is opened and closed with the application's lifespan. A framework that keeps the lifespan from middleware, like
    Litestar, has `async with sessions.running()` in its own; without either, the first use opens the store. ConfigError is raised
    if *sessions* isn't what `session()` returns.
    """

    def __init__(
        self, app: Application, *, sessions: SessionIntegration, as_dict: bool = False, allow_cross_site: Iterable[str] = ()
    ) -> None:
        if not isinstance(sessions, SessionIntegration):
            given = "session itself" if sessions is session else a_type(sessions)
            raise ConfigError(f"sessions of SessionMiddleware holds {given}; write sessions=session(...), from gaman.session.asgi")
        self.app = app
        self._sessions = sessions
        self._as_dict = as_dict
        self._exempt = ExemptPaths(allow_cross_site)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Run *app* with a session in the scope (ASGI 3)."""
        if scope["type"] != "http" or scope["method"] not in SAFE_METHODS:
            if scope["type"] == "lifespan":
                await self._run_lifespan(scope, receive, send)
                return
            guard = self._sessions._guard
            if guard is not None and not self._exempt.cover(scope) and (refusal := guard.find_refusal(scope)) is not None:
                if scope["type"] == "websocket":
                    await receive()
                await Connection(self._sessions, scope, send).respond(refusal)
                return
        outer: Connection | RequestEnded | None = scope.get(IN_SCOPE)
        # The test saves 0.1 µs where nothing is around this application.
        provider = self._sessions._find_outer(scope) if outer is not None or MOUNTED in scope else None
        connection = scope[IN_SCOPE] = Connection(self._sessions, scope, send, outer, provider)
        try:
            if self._as_dict:
                await connection.load_dict(scope, self.app)
            await self.app(scope, receive, connection.send)
        except HTTPError as error:
            # The framework can't answer gaman's errors.
            if not await connection.respond(error):
                raise
        except BaseException as error:
            await connection.fail(error)
            if not is_replaced(error):
                raise
        else:
            if connection._session is not None:
                connection.log_unsaved()
        finally:
            # Otherwise only the garbage collector would free the scope, the session and what they hold. Without a session, not
            # calling log_unsaved() and release() saves 11 % of what a request costs that doesn't use it.
            scope[IN_SCOPE] = REQUEST_ENDED
            if outer is not None or connection._session is not None:
                connection.release()

    async def _run_lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        upkeep = self._sessions._upkeep()
        is_open = False
        failure: Exception | None = None

        async def receive_open() -> Message:
            nonlocal is_open, failure
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await upkeep.open()
                except Exception as error:
                    # Sent at once, because the application may catch the error, or wrap it in an ExceptionGroup.
                    failure = error
                    await report(str(error) or repr(error))
                    raise
                is_open = True
            return message

        async def send_closed(message: Message) -> None:
            if failure is not None:
                return
            # The application may use its sessions until it has shut down.
            if message["type"] != "lifespan.startup.complete":
                await close()
            await send(message)

        async def report(reason: str) -> None:
            nonlocal failure
            try:
                await send({"type": "lifespan.startup.failed", "message": reason})
            except Exception as error:
                # hypercorn expects its own error to be raised.
                failure = error

        async def close() -> None:
            nonlocal is_open
            if is_open:
                is_open = False
                await upkeep.close()

        try:
            await self.app(scope, receive_open, send_closed)
        except Exception:
            if failure is None:
                raise
        finally:
            await close()
        if failure is not None:
            # Servers log the message. Starlette's test client raises the error.
            raise failure


class _GetSession:
    """`get_session`, an object because FastAPI has to see the class of Starlette's connections in its signature."""

    async def __call__(self, connection: HasScope) -> Session:
        """Return the session of a request or a WebSocket.

        ConfigError is raised if SessionMiddleware isn't in use, and SessionClosed if the request has ended.
        """
        scope: Any = getattr(connection, "scope", None)
        # An abstract class takes 0.25 µs to know a dict, 3 % of a request that reads its session.
        if not isinstance(scope, (dict, MutableMapping)):
            raise ConfigError(f"get_session() takes a request or a WebSocket, not {connection!r}")
        found = cast("Scope", scope).get(IN_SCOPE)
        if found is None:
            raise ConfigError(
                "get_session() needs SessionMiddleware: write app.add_middleware(SessionMiddleware, sessions=session(...))"
            )
        return await cast("Connection", found).find_session()

    # Python's own errors name the coroutine.
    __call__.__qualname__ = "get_session"

    @property
    def __signature__(self) -> Signature:
        # Without Starlette, nothing takes the connection from it.
        requests = sys.modules.get("starlette.requests")
        connection: Any = HasScope if requests is None else requests.HTTPConnection
        return Signature(
            [Parameter("connection", Parameter.POSITIONAL_OR_KEYWORD, annotation=connection)], return_annotation=Session
        )


get_session: Final = _GetSession()
"""`await get_session(request)` returns the session of a request or a WebSocket; ConfigError if SessionMiddleware isn't in use.

It is a dependency of FastAPI as well:

    CurrentSession = Annotated[Session, Depends(get_session)]

    @app.get("/")
    async def home(current: CurrentSession) -> str:
        return await current.get("user", "")
"""
