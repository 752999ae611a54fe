"""SessionMiddleware: the sessions of gaman in FastAPI, Starlette, Litestar, and any other ASGI application."""

from __future__ import annotations

import logging
import sys
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from inspect import Parameter, Signature
from typing import Any, Final, NamedTuple, Protocol, TypeAlias, cast

from gaman import ConfigError, HTTPError, Response, log_extra
from gaman_session._closing import RawHeaders, fail
from gaman_session._errors import SessionError
from gaman_session._integration import SessionIntegration
from gaman_session._session import Session
from gaman_session._session_dict import SessionDict

__all__ = ["Session", "SessionMiddleware", "get_session"]

logger = logging.getLogger("gaman")

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Any, Any, Any], Awaitable[None]]
"""An ASGI 3 application. Frameworks have types of their own for the scope and the messages, which don't fit each other."""

_KEY: Final = "gaman.session"
"""The key of an ASGI scope under which SessionMiddleware puts the Connection."""
_BEGINNINGS: Final = ("http.response.start", "websocket.accept", "websocket.http.response.start")
_INTERNAL_ERROR: Final = 1011
_TRY_AGAIN_LATER: Final = 1013
"""Codes with which a WebSocket is closed (RFC 6455, section 7.4.1, and the IANA's registry)."""


class HasScope(Protocol):
    """A request or a WebSocket of a framework."""

    @property
    def scope(self) -> Any:
        """The ASGI scope."""
        ...


class SessionMiddleware:
    """Gives each request and WebSocket of *app* a session, which is written before the response's header fields.

        app.add_middleware(SessionMiddleware, sessions=session(driver={"type": "redis"}))

    Handlers get the session from `get_session(request)`. Nothing is read before that. With *as_dict*, `request.session` is a dict
    too, as with Starlette's middleware: it is loaded before the handler, and its changed keys are written with the response.

    The store is opened and closed with the application's lifespan. A framework that keeps the lifespan from middleware, like
    Litestar, has `async with sessions.running()` in its own; without either, the first use opens the store. ConfigError is raised
    if *sessions* isn't what `session()` returns.
    """

    def __init__(self, app: Application, *, sessions: SessionIntegration, as_dict: bool = False) -> None:
        if not isinstance(sessions, SessionIntegration):
            raise ConfigError(f"SessionMiddleware has sessions={sessions!r}; write sessions=session(...), from gaman.session")
        self.app = app
        self._sessions = sessions
        self._as_dict = as_dict

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Run *app* with a session in the scope (ASGI 3)."""
        if scope["type"] == "lifespan":
            await self._run_lifespan(scope, receive, send)
            return
        outer: Connection | None = scope.get(_KEY)
        if outer is not None and outer.sessions is self._sessions:
            # An application and one that is mounted in it share these sessions, and the request has one of them.
            if self._as_dict:
                await outer.load_dict(scope)
            await self.app(scope, receive, send)
            return
        connection = scope[_KEY] = Connection(self._sessions, scope, send)
        try:
            if self._as_dict:
                await connection.load_dict(scope)
            await self.app(scope, receive, connection.send)
        except HTTPError as error:
            # The framework knows no error of gaman's.
            if not await connection.answer(error):
                raise
        except BaseException as error:
            await connection.fail(error)
            if not _is_replaced(error):
                raise
        else:
            if connection._session is not None:
                connection.end()
        finally:
            # Otherwise only the garbage collector would free the scope, the session and what they hold. Not calling end() and
            # release() without a session saves 11 % of what a request costs that doesn't use it.
            del scope[_KEY]
            if outer is not None or connection._session is not None:
                connection.release(outer)

    async def _run_lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        upkeep = self._sessions._upkeep()
        is_open = False

        async def receive_open() -> Message:
            nonlocal is_open
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await upkeep.open()
                except Exception as error:
                    raise _StartFailed from error
                is_open = True
            return message

        async def send_closed(message: Message) -> None:
            # The application may use its sessions until it has shut down.
            if message["type"] != "lifespan.startup.complete":
                await close()
            await send(message)

        async def close() -> None:
            nonlocal is_open
            if is_open:
                is_open = False
                await upkeep.close()

        try:
            await self.app(scope, receive_open, send_closed)
        except _StartFailed as failed:
            # The server logs the message.
            await send({"type": "lifespan.startup.failed", "message": str(failed.__cause__)})
        finally:
            await close()


class _StartFailed(Exception):
    """The store can't be opened; the cause says why."""


class _Replaced(OSError):
    """The rest of a response was dropped, because another one was sent in its place."""

    def __init__(self) -> None:
        super().__init__("the response was replaced, because the session could not be written")


def _is_replaced(error: BaseException | None) -> bool:
    """Return whether *error* is what the application made of _Replaced."""
    while error is not None and not isinstance(error, _Replaced):
        error = error.__cause__ or error.__context__
    return error is not None


class Connection:
    """A request or a WebSocket, with its session and what its response carries."""

    __slots__ = ("_cookies", "_dict", "_has_begun", "_is_answered", "_is_closed", "_send", "_session", "scope", "sessions")

    def __init__(self, sessions: SessionIntegration, scope: Scope, send: Send) -> None:
        self.scope = scope
        self.sessions = sessions
        self._send = send
        self._session: Session | None = None
        self._dict: SessionDict | None = None
        self._cookies: Sequence[tuple[bytes, bytes]] = ()
        self._has_begun = False
        """Whether the response has begun, or the WebSocket was accepted."""
        self._is_closed = False
        """Whether the session was written, as far as it could be."""
        self._is_answered = False
        """Whether the middleware has answered in the place of the application."""

    @property
    def scheme(self) -> str:
        """`https` or `http`."""
        return "https" if self.scope["scheme"] in ("https", "wss") else "http"

    @property
    def host(self) -> str:
        """The request's Host field, or an empty text."""
        return next((value.decode("latin-1") for name, value in self.scope["headers"] if name == b"host"), "")

    @property
    def _failure(self) -> HTTPError | None:
        """The last error of a call of the session that should be the response."""
        return getattr(self._session, "_failure", None)

    def send_cookie(self, line: bytes) -> None:
        """Send *line* as the value of a Set-Cookie field, whatever becomes of the response."""
        self._cookies = [*self._cookies, (b"set-cookie", line)]

    async def find_session(self) -> Session:
        """Return the session, which the first call makes. The store is opened if neither the lifespan nor running() did."""
        if self._session is None:
            upkeep = self.sessions._upkeep()
            if not upkeep.is_open:
                await upkeep.open_for_loop()
                if self._session is not None:
                    # A concurrent call of this request has made it.
                    return self._session
            is_socket = self.scope["type"] == "websocket"
            make_session: Any = self.sessions.make_session
            session: Session = make_session(self.scope, self._has_begun and not is_socket)
            if self._has_begun and is_socket:
                session._end_handshake()
            self._session = session
        return self._session

    async def load_dict(self, scope: Scope) -> None:
        """Put the session as a dict into the *scope*, where Starlette's requests look for it."""
        if self._dict is None:
            self._dict = await SessionDict.load(await self.find_session())
        scope["session"] = self._dict

    def send(self, message: Message) -> Awaitable[None]:
        """Send *message*; before the first one that has header fields, write the session."""
        # Not a coroutine, so that a request that doesn't use its session has none more.
        if not self._has_begun:
            if message["type"] in _BEGINNINGS:
                self._has_begun = True
                if self._session is not None:
                    return self._begin(message, self._session)
        elif self._is_answered:
            return self._drop(message)
        return self._send(message)

    async def _begin(self, message: Message, session: Session) -> None:
        is_accepted = message["type"] == "websocket.accept"
        head = Head(
            101 if is_accepted else message["status"], [(name.lower(), value) for name, value in message.get("headers", ())]
        )
        try:
            if head.status == 500 and self._failure is not None:
                # The framework has made this response of an error that isn't its own.
                raise self._failure
            if self._dict is not None and head.status < 500:
                self._dict.write()
            headers = await self._close(session, head)
        except BaseException as error:
            self._has_begun = False
            if isinstance(error, HTTPError) and await self.answer(error):
                if is_accepted:
                    # The handler must not go on as if the WebSocket were open.
                    raise _Replaced from error
                return
            raise
        if is_accepted:
            # No cache keeps the response to a handshake.
            headers = head.raw_headers
            session._end_handshake()
        await self._send({**message, "headers": [*headers, *self._cookies]})

    async def _close(self, session: Session, head: Head) -> RawHeaders:
        """Write the session, unless that was tried before, and return the header fields of the response."""
        if self._is_closed:
            return head.raw_headers
        self._is_closed = True
        closing = self.sessions._closing.close(self, session, head)
        return closing if isinstance(closing, list) else await closing

    async def _drop(self, message: Message) -> None:
        if message.get("more_body", False) or message["type"] == "websocket.send":
            # As to a client that has disconnected (ASGI, Disconnected Client), so that an endless response ends.
            raise _Replaced

    async def answer(self, error: HTTPError) -> bool:
        """Answer *error* in the place of the application; return False if its response has begun."""
        if self._session is not None:
            fail(self._session, error)
        is_socket = self.scope["type"] == "websocket"
        if self._is_answered or (self._has_begun and not is_socket):
            return False
        if self._dict is not None and not self._is_closed and error.status < 500 and not isinstance(error, SessionError):
            self._dict.write()
        if error.status >= 500 and error.__cause__ is not None:
            extra = log_extra(self.scope)
            logger.error(
                "%s %r answered %d: %s: %r", extra["method"], extra["path"], error.status, error, error.__cause__, extra=extra
            )
        has_begun, self._has_begun, self._is_answered = self._has_begun, True, True
        if has_begun or (is_socket and "websocket.http.response" not in self.scope.get("extensions", {})):
            # Before the WebSocket is accepted, this refuses it with 403 (ASGI, WebSocket, Close).
            try:
                await self._send({"type": "websocket.close", "code": _TRY_AGAIN_LATER if error.status == 503 else _INTERNAL_ERROR})
            except Exception:
                # The application or the client has closed it before.
                return False
            return True
        detail = error.detail
        response = (Response.text if isinstance(detail, str) else Response.json)(detail, error.status, error.headers)
        headers = response.raw_headers
        if self._session is not None:
            headers = await self._close(self._session, Head(error.status, headers))
        body = cast("bytes", response.body)
        headers = [*headers, (b"content-length", b"%d" % len(body)), *self._cookies]
        prefix = "websocket.http" if is_socket else "http"
        await self._send({"type": f"{prefix}.response.start", "status": error.status, "headers": headers})
        await self._send({"type": f"{prefix}.response.body", "body": b"" if self.scope.get("method") == "HEAD" else body})
        return True

    async def fail(self, error: BaseException) -> None:
        """Drop the changes of a request that failed, and see that the browser gets the cookie of what was saved before."""
        if (session := self._session) is None:
            return
        # A handler that waits for messages ends by an error, when the client has gone.
        self.end()
        fail(session, error)
        if isinstance(error, Exception) and not self._has_begun and self.scope["type"] == "http":
            await self._close(session, Head(500, []))
            if self._cookies:
                # Starlette answers errors outside of its middleware, where this cookie would be lost.
                await self.answer(HTTPError(500))

    def release(self, outer: Connection | None) -> None:
        """Remove what refers to the scope from it, and put the *outer* middleware's connection back."""
        if self._dict is not None:
            self.scope.pop("session", None)
        if outer is not None:
            self.scope[_KEY] = outer
            if outer._dict is not None:
                self.scope["session"] = outer._dict

    def end(self) -> None:
        """Log changes that were made through a WebSocket and not saved."""
        if self._session is None or self.scope["type"] != "websocket" or self._failure is not None:
            return
        fix = "write `await session.save()` after them"
        if self._dict is not None and self._dict.modified:
            fix = "`websocket.session` is written by accept() only, so change it before, or take `await get_session(websocket)`"
        elif not self._session._has_changes():
            return
        extra = log_extra(self.scope)
        logger.error("%r lost changes of its session; %s", extra["path"], fix, extra=extra)


class Head(NamedTuple):
    """The beginning of a response."""

    status: int
    raw_headers: RawHeaders


class _GetSession:
    """`get_session`, an object because FastAPI has to see the class of Starlette's connections in its signature."""

    async def __call__(self, connection: HasScope) -> Session:
        """Return the session of a request or a WebSocket; ConfigError if SessionMiddleware isn't in use.

            CurrentSession = Annotated[Session, Depends(get_session)]

            @app.get("/")
            async def home(current: CurrentSession) -> str:
                return await current.get("user", "")

        Without FastAPI: `current = await get_session(request)`.
        """
        scope: Any = getattr(connection, "scope", None)
        # An abstract class takes 0.25 µs to know a dict, 3 % of a request that reads its session.
        if not isinstance(scope, (dict, MutableMapping)):
            raise ConfigError(f"get_session() takes a request or a WebSocket, not {connection!r}")
        found = cast("Scope", scope).get(_KEY)
        if found is None:
            raise ConfigError(
                "get_session() needs SessionMiddleware: write app.add_middleware(SessionMiddleware, sessions=session(...))"
            )
        return await cast("Connection", found).find_session()

    @property
    def __signature__(self) -> Signature:
        # Without Starlette, nothing takes the connection from it.
        requests = sys.modules.get("starlette.requests")
        connection: Any = HasScope if requests is None else requests.HTTPConnection
        return Signature(
            [Parameter("connection", Parameter.POSITIONAL_OR_KEYWORD, annotation=connection)], return_annotation=Session
        )


get_session: Final = _GetSession()
