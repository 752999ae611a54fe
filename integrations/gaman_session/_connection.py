"""Connection: a request or a WebSocket of any ASGI application, with its session and what its response carries."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, MutableMapping, Sequence
from typing import Any, Final, TypeAlias, cast

from gaman import ConfigError, GamanError, HTTPError, Response, log_extra
from gaman.errors import comes_of
from gaman_session._awaitable import note_calls
from gaman_session._closing import NO_STORE, RawHeaders, fail
from gaman_session._errors import SessionClosed, SessionError
from gaman_session._integration import IN_SCOPE, Outer, SessionIntegration
from gaman_session._scope_session import another_session
from gaman_session._session import Session
from gaman_session._session_dict import SessionDict

logger = logging.getLogger("gaman")

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

_BEGINNINGS: Final = ("http.response.start", "websocket.accept", "websocket.http.response.start")
_INTERNAL_ERROR: Final = 1011
"""Closes a WebSocket after an error of the server (RFC 6455, section 7.4.1)."""
_TRY_AGAIN_LATER: Final = 1013
"""Closes a WebSocket while the store is down (IANA's registry of close codes)."""
_ERRORS: Final = (_INTERNAL_ERROR, 4500)
"""Codes with which frameworks close a WebSocket whose handler raises an error; Litestar adds 4000 to the status."""


class _Replaced(OSError):
    """The rest of a response was dropped, because another one was sent in its place."""

    def __init__(self) -> None:
        super().__init__("the response was replaced, because the session could not be written")


def is_replaced(error: BaseException) -> bool:
    """Return whether *error* is _Replaced, or an exception of the application that came of it."""
    return isinstance(error, Exception) and comes_of(error, _Replaced)


class Connection:
    """A request or a WebSocket, with its session and what its response carries."""

    __slots__ = (
        "_cookies",
        "_dict",
        "_has_begun",
        "_is_answered",
        "_provider",
        "_send",
        "_session",
        "outer",
        "scope",
        "sessions",
    )

    def __init__(
        self,
        sessions: SessionIntegration,
        scope: Scope,
        send: Send,
        outer: Connection | RequestEnded | None = None,
        provider: Outer | None = None,
    ) -> None:
        self.scope = scope
        self.sessions = sessions
        self.outer = outer
        """The connection of the next SessionMiddleware around this one."""
        self._provider = provider
        """An App or a SessionMiddleware around this application, with the same sessions: it makes and writes the session."""
        self._send = send
        self._session: Session | None = None
        self._dict: SessionDict | None = None
        self._cookies: Sequence[tuple[bytes, bytes]] = ()
        self._has_begun = False
        """Whether the response has begun, or the WebSocket was accepted."""
        self._is_answered = False
        """Whether the middleware has answered in the place of the application."""

    @property
    def scheme(self) -> str:
        """`https` or `http`."""
        return "https" if self.scope.get("scheme") in ("https", "wss") else "http"

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
        self._cookies = ((b"set-cookie", line),)

    async def find_session(self) -> Session:
        """Return the session, which the first call makes. The store is opened if neither the lifespan nor running() did."""
        session = self._session
        if session is None:
            upkeep = self.sessions._upkeep()
            # The test saves a coroutine for each request.
            if not upkeep.is_open:
                await upkeep.ensure_open()
            return self.session
        session._follow_dict()
        return session

    @property
    def session(self) -> Session:
        """The session, which the first use makes."""
        if self._session is None:
            if self._provider is not None:
                self._session = self._provider.session
                return self._session
            is_socket = self.scope["type"] == "websocket"
            self._session = self.sessions._make(self.scope, self._has_begun and not is_socket)
            self._session._name = "session"
            if self._has_begun and is_socket:
                self._session._end_handshake()
        return self._session

    async def load_dict(self, scope: Scope, app: Any) -> None:
        """Put the session as a dict into the *scope* of *app*, where Starlette's requests look for it."""
        if isinstance(self._provider, Connection):
            await self._provider.load_dict(scope, app)
            return
        if "session" in scope and not isinstance(scope["session"], SessionDict):
            raise another_session()
        if self._dict is None:
            self._dict = await SessionDict.load(await self.find_session(), scope, app)
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
        elif self._session is not None and message["type"] == "websocket.close":
            message = self._explain(message)
        return self._send(message)

    def _explain(self, message: Message) -> Message:
        """Return the *message* that closes a WebSocket; with the code for a store that is down, if that is the reason."""
        failure = self._failure
        if failure is None or failure.status != 503 or message.get("code") not in _ERRORS:
            return message
        self._log(failure)
        return {**message, "code": _TRY_AGAIN_LATER}

    async def _begin(self, message: Message, session: Session) -> None:
        is_accepted = message["type"] == "websocket.accept"
        status: int = 101 if is_accepted else message["status"]
        fields = [(name.lower(), value) for name, value in message.get("headers", ())]
        try:
            if self._failure is not None and (status == 500 or session._is_closed):
                # The framework has made a 500 of an error that isn't its own, or the flush has failed in a cancelled request.
                raise self._failure
            if self._dict is not None:
                self._dict.settle(status)
            headers = await self._close(session, status, fields)
        except Exception as error:
            # Answered here, because some frameworks neither answer nor log the errors of their send().
            self._has_begun = False
            await self.respond(_as_http_error(error))
            if is_accepted:
                # The handler must not go on as if the WebSocket were open.
                raise _Replaced from error
            if isinstance(error, ConfigError):
                # A test client shows it.
                raise
            return
        except BaseException:
            # A request that is cancelled may have a response of its own yet, which carries the cookie and what wasn't written.
            self._has_begun = False
            raise
        if is_accepted:
            # No cache keeps the response to a handshake.
            headers = fields
            if self._provider is None:
                session._end_handshake()
        await self._send({**message, "headers": [*headers, *self._cookies]})

    async def _close(self, session: Session, status: int, headers: RawHeaders) -> RawHeaders:
        """Write the session, as far as that is left to do, and return *headers* with those that the response needs for it."""
        if self._provider is not None:
            return headers
        closing = self.sessions._closing.close(self, session, status, headers)
        return closing if isinstance(closing, list) else await closing

    async def _drop(self, message: Message) -> None:
        if message.get("more_body", False) or message["type"] == "websocket.send":
            # As to a client that has disconnected (ASGI, Disconnected Client), so that an endless response ends.
            raise _Replaced

    async def respond(self, error: HTTPError) -> bool:
        """Respond to *error* in the place of the application; return False if its response has begun."""
        if (session := self._session) is not None:
            fail(session, error)
        is_socket = self.scope["type"] == "websocket"
        if self._is_answered or (self._has_begun and not is_socket):
            return False
        if self._has_begun or (is_socket and "websocket.http.response" not in self.scope.get("extensions", {})):
            return await self._close_socket(error)
        response = _response_to(error)
        headers = response.raw_headers
        if session is not None:
            try:
                if self._dict is not None and not session._is_closed and error.status < 500 and not isinstance(error, SessionError):
                    self._dict.settle(error.status)
                headers = await self._close(session, error.status, headers)
            except Exception as failure:
                if error.status >= 500:
                    raise
                # An error below 500 keeps the changes, which couldn't be written.
                return await self.respond(_as_http_error(failure))
        self._log(error)
        self._has_begun = self._is_answered = True
        if self._cookies and all(name != b"cache-control" for name, _ in headers):
            headers = [*headers, NO_STORE]
        body = cast("bytes", response.body)
        headers = [*headers, (b"content-length", b"%d" % len(body)), *self._cookies]
        prefix = "websocket.http" if is_socket else "http"
        await self._send({"type": f"{prefix}.response.start", "status": error.status, "headers": headers})
        await self._send({"type": f"{prefix}.response.body", "body": b"" if self.scope.get("method") == "HEAD" else body})
        return True

    async def _close_socket(self, error: HTTPError) -> bool:
        """Close the WebSocket because of *error*; return False if it is closed. Before accept(), this refuses it with 403."""
        self._log(error)
        self._has_begun = self._is_answered = True
        try:
            await self._send({"type": "websocket.close", "code": _TRY_AGAIN_LATER if error.status == 503 else _INTERNAL_ERROR})
        except Exception:
            # The application or the client has closed it before.
            return False
        return True

    def _log(self, error: HTTPError) -> None:
        """Log why the response to *error* is 500 or more."""
        cause = error.__cause__
        if error.status < 500 or cause is None:
            return
        extra = log_extra(self.scope)
        reason = f"{error}: {cause!r}" if isinstance(error, SessionError) else f"{type(cause).__name__}: {cause}"
        # A message of gaman's explains itself.
        trace = None if isinstance(error, SessionError) or isinstance(cause, GamanError) else cause
        logger.error("%s %r answered %d: %s", extra["method"], extra["path"], error.status, reason, extra=extra, exc_info=trace)

    async def fail(self, error: BaseException) -> None:
        """Drop the changes of a request that failed, and see that the browser gets the cookie of what was saved before."""
        if (session := self._session) is None:
            return
        note_calls(session, error)
        # A handler that waits for messages ends by an error, when the client has gone.
        session._forget_due()
        self.log_unsaved()
        fail(session, error)
        if isinstance(error, Exception) and not self._has_begun and self.scope["type"] == "http":
            await self._close(session, 500, [])
            if self._cookies:
                # Starlette answers errors outside of its middleware, where this cookie would be lost.
                await self.respond(HTTPError(500))

    def release(self) -> None:
        """Remove from the scope what refers to it, and put the outer middleware's connection back."""
        if self._dict is not None:
            self._dict.release()
        if self.outer is not None:
            self.outer.put_into(self.scope)

    def put_into(self, scope: Scope) -> None:
        """Put this connection, and its dict if it has one, into a *scope* from which an inner one was removed."""
        scope[IN_SCOPE] = self
        if self._dict is not None:
            scope["session"] = self._dict

    def log_unsaved(self) -> None:
        """Log the changes that nothing has written, and the calls of a WebSocket that were never awaited.

        Nothing writes changes of the dict after the response has begun, and those of a WebSocket without save().
        """
        if (session := self._session) is None or self._failure is not None or self._provider is not None:
            return
        is_socket, values = self.scope["type"] == "websocket", self._dict
        if is_socket:
            session._log_unawaited()
        if values is not None and ((values.modified if is_socket else values.has_lost()) or values.is_replaced_late()):
            fix = "change `request.session` before the response begins"
            if is_socket:
                fix = "`websocket.session` is written by accept() only, so change it before, or take `await get_session(websocket)`"
        elif is_socket and session._has_changes():
            fix = "write `await session.save()` after them"
        else:
            return
        extra = log_extra(self.scope)
        logger.error("%r lost changes of its session; %s", extra["path"], fix, extra=extra)


class RequestEnded:
    """Takes the place of a connection in the scope of a request that has ended."""

    sessions = outer = _dict = None

    async def find_session(self) -> Session:
        """Raise SessionClosed."""
        raise SessionClosed(
            "get_session() was called after its request has ended: call it in the handler, and give what the task needs to the task"
        )

    def put_into(self, scope: Scope) -> None:
        """Put this into a *scope* from which a connection was removed."""
        scope[IN_SCOPE] = self


REQUEST_ENDED: Final = RequestEnded()


def _as_http_error(error: Exception) -> HTTPError:
    """Return *error*, or a 500 that came of it."""
    if isinstance(error, HTTPError):
        return error
    failure = HTTPError(500)
    failure.__cause__ = error
    return failure


def _response_to(error: HTTPError) -> Response:
    make = Response.text if isinstance(error.detail, str) else Response.json
    return make(error.detail, error.status, error.headers)
