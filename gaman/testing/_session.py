"""The session of a test client: opened without a request to the application's routes, and written with the client's cookies."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast, overload

import httpx
from anyio.from_thread import BlockingPortal

from gaman import App, ConfigError, Context, Integration, Response
from gaman._asgi import Application
from gaman.testing._portal import call
from gaman.testing._transport import scope_of

if TYPE_CHECKING:
    from gaman.session import Session

T = TypeVar("T")
D = TypeVar("D")


@asynccontextmanager
async def opened(app: Application, request: httpx.Request, cookies: httpx.Cookies) -> AsyncGenerator[Session]:
    """Yield the session that *request* has in *app*; at the end, write its changes, and put its cookie into *cookies*.

    An exception in the block drops the changes, as in a handler.
    """
    if not isinstance(app, App):
        raise ConfigError(f"client.session() needs an App, not {app!r}; pass the App itself to TestClient")
    ctx = Context(scope_of(request), _receive_nothing, {}, app)
    session = ctx.session
    [integration] = [each for each in app.integrations if each.make_session is not None]
    try:
        yield session
    except Exception as error:
        if integration.on_error is not None and (recovering := integration.on_error(ctx, error)) is not None:
            await cast("Any", recovering)
        await _close(integration, ctx, Response.text("", 500), request, cookies)
        raise
    await _close(integration, ctx, Response.text(""), request, cookies)


class _Block:
    """What client.session() returns. Any other use than entering it explains how to."""

    _write = ""

    if not TYPE_CHECKING:

        def _refuse(self, *_: object) -> NoReturn:
            raise RuntimeError(f"write `{self._write}`, and use `session` inside the block")

        def __getattr__(self, name: str) -> NoReturn:
            if name.startswith("__"):
                raise AttributeError(name)
            self._refuse()

        __getitem__ = __setitem__ = __enter__ = __exit__ = __aenter__ = __aexit__ = __await__ = _refuse


class AsyncBlock(_Block, AbstractAsyncContextManager["Session"]):
    """The session of an async client, in an `async with` block."""

    _write = "async with client.session() as session:"

    def __init__(self, opening: AbstractAsyncContextManager[Session]) -> None:
        self._opening: Any = opening

    async def __aenter__(self) -> Session:
        session: Session = await self._opening.__aenter__()
        return session

    async def __aexit__(self, *error: object) -> bool | None:
        is_handled: bool | None = await self._opening.__aexit__(*error)
        return is_handled


class SyncBlock(_Block, AbstractContextManager["SyncSession"]):
    """The session of a SyncTestClient, in a `with` block."""

    _write = "with client.session() as session:"

    def __init__(self, portal: BlockingPortal, opening: AbstractAsyncContextManager[Session]) -> None:
        self._portal = portal
        self._opening: Any = portal.wrap_async_context_manager(opening)

    def __enter__(self) -> SyncSession:
        return SyncSession(self._portal, self._opening.__enter__())

    def __exit__(self, *error: object) -> bool | None:
        is_handled: bool | None = self._opening.__exit__(*error)
        return is_handled


async def _close(
    integration: Integration, ctx: Context, response: Response, request: httpx.Request, cookies: httpx.Cookies
) -> None:
    """Close the session as the App does before it sends *response*."""
    ctx.is_session_closed = True
    try:
        closed: Any = cast("Any", integration.close_session)(ctx, ctx.session, response)
        if not isinstance(closed, list):
            await closed
    finally:
        # A flush that fails may have given the session a new id.
        lines = [*(ctx.set_cookies or {}).values()]
        cookies.extract_cookies(httpx.Response(200, headers=lines, request=request))


async def _receive_nothing() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


class SyncSession:
    """The session of a SyncTestClient: the calls of `ctx.session`, without `await`."""

    def __init__(self, portal: BlockingPortal, session: Session) -> None:
        self._portal = portal
        self._session = session

    @property
    def id(self) -> str | None:
        """The session's handle, or None if there is no session yet."""
        return self._session.id

    @property
    def is_new(self) -> bool:
        """Whether the client has no session yet, or the block has cleared it."""
        return self._session.is_new

    @property
    def created_at(self) -> datetime | None:
        """When the session began or was last regenerated; None before the first read, and if there is no session."""
        return self._session.created_at

    @property
    def expires_at(self) -> datetime | None:
        """When the session expires unless it is used again; None before the first read, and if there is no session."""
        return self._session.expires_at

    @property
    def authenticated_at(self) -> datetime | None:
        """When login() or confirm() was called last; None before the first read, and without a login."""
        return self._session.authenticated_at

    @overload
    def get(self, key: str, default: None = None, *, type: None = None) -> Any: ...
    @overload
    def get(self, key: str, default: object, *, type: None = None) -> Any: ...
    @overload
    def get(self, key: str, default: None = None, *, type: type[T]) -> T | None: ...
    @overload
    def get(self, key: str, default: D, *, type: type[T]) -> T | D: ...
    def get(self, key: str, default: Any = None, *, type: Any = None) -> Any:
        """Return the value of *key*, or *default* if it is missing. SessionTypeError: the value doesn't fit *type*."""
        return call(self._portal, self._session.get, key, default, type=type)

    def has(self, key: str) -> bool:
        """Return whether *key* exists, whatever its value."""
        return call(self._portal, self._session.has, key)

    def all(self) -> dict[str, Any]:
        """Return all keys with their values."""
        return call(self._portal, self._session.all)

    def set(self, key: str, value: Any) -> None:
        """Set *key* to *value*, which is encoded at once."""
        call(self._portal, self._session.set, key, value)

    def delete(self, key: str) -> None:
        """Remove *key*, if it exists."""
        call(self._portal, self._session.delete, key)

    def pop(self, key: str, default: Any = None) -> Any:
        """Remove *key* and return its value, or *default* if it is missing."""
        return call(self._portal, self._session.pop, key, default)

    def update(self, key: str, fn: Callable[[Any], T], default: Any = None) -> T:
        """Replace the value of *key* by `fn(value)`, and return the new value."""
        return call(self._portal, self._session.update, key, fn, default)

    def clear(self) -> None:
        """End the session."""
        call(self._portal, self._session.clear)

    def login(self, owner: str, *, max_age: int | None = None, note: Any = None, fresh: bool = False) -> None:
        """Log in *owner*, such as "user:1"."""
        call(self._portal, self._session.login, owner, max_age=max_age, note=note, fresh=fresh)

    def confirm(self, level: int | None = None) -> None:
        """Note that the user has authenticated again."""
        call(self._portal, self._session.confirm, level)

    def logout(self) -> None:
        """End the session."""
        call(self._portal, self._session.logout)

    def owner(self) -> str | None:
        """Return the owner that is logged in, or None."""
        return call(self._portal, self._session.owner)

    def is_fresh(self, seconds: float, *, level: int = 1) -> bool:
        """Return whether the login, or its last confirm() at *level*, is at most that many *seconds* ago."""
        return call(self._portal, self._session.is_fresh, seconds, level=level)

    def csrf_token(self) -> str:
        """Return a token for a form of the client."""
        return call(self._portal, self._session.csrf_token)

    def is_csrf_token(self, token: str) -> bool:
        """Return whether *token* is one that csrf_token() returned for this session."""
        return call(self._portal, self._session.is_csrf_token, token)

    def regenerate(self, *, max_age: int | None = None) -> None:
        """Give the session a new id, and *max_age* seconds as its lifetime if given."""
        call(self._portal, self._session.regenerate, max_age=max_age)

    def set_owner(self, owner: str | None, *, note: Any = None) -> None:
        """Set the session's owner, such as "user:1", and a *note* for lists of sessions; None removes the owner."""
        call(self._portal, self._session.set_owner, owner, note=note)

    def save(self) -> None:
        """Write the pending changes now."""
        call(self._portal, self._session.save)
