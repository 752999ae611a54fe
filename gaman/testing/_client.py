"""TestClient and SyncTestClient: send requests to an application in the same process, and open the client's session."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, ExitStack
from inspect import signature
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn, ParamSpec, Self, TypeVar, cast

import httpx
from anyio.from_thread import BlockingPortal, BlockingPortalProvider

from gaman._application import check_application
from gaman._asgi import Application
from gaman._response import close_coroutine
from gaman.errors import ConfigError, nearest
from gaman.testing._lifespan import started
from gaman.testing._portal import call
from gaman.testing._session import AsyncBlock, SyncBlock, SyncSession, opened
from gaman.testing._transport import SyncTransport, Transport

if TYPE_CHECKING:
    from gaman.session import Session

P = ParamSpec("P")
T = TypeVar("T")

_BASE_URL = "https://testserver"
_CALLS = ("request", "send", "stream", "get", "options", "head", "post", "put", "patch", "delete", "session", "call")
# All synchronous clients share one event loop, so that several may use one application at a time.
_portals = BlockingPortalProvider("asyncio")


class TestClient(httpx.AsyncClient):
    """A client whose requests go to *app* instead of the network: an App, or any other ASGI application.

        def test_the_front_page() -> None:
            with TestClient(app) as client:
                assert client.get("/").status_code == 200

    `with` gives a SyncTestClient. `async with`, in an async test, gives this client, an httpx.AsyncClient, whose calls need
    `await`. Both start the application and shut it down. Several clients of one application, each with its own cookies, start it
    once.

    - An exception of a handler or a hook is raised in the test, unless *raise_errors* is false: then the client gets the 500. An
      HTTPError is a response, and so is an error that an on_error hook answers with a status below 500.
    - *base_url* is https, so the client keeps Secure cookies as a browser does. For an App with *allowed_hosts*, name one of them,
      such as `base_url="https://shop.example"`.
    - The other *options* are those of an httpx client, such as `headers` and `follow_redirects`.
    """

    __test__ = False
    _was_entered = False

    def __init__(self, app: Application, *, base_url: str = _BASE_URL, raise_errors: bool = True, **options: Any) -> None:
        self._app = check_application("TestClient()", app)
        _check_options(options)
        self._options: dict[str, Any] = {"base_url": base_url, "raise_errors": raise_errors, **options}
        self._sync: SyncTestClient | None = None
        self._stack = AsyncExitStack()
        self._app_transport = Transport(app, raises_errors=raise_errors)
        super().__init__(transport=self._app_transport, base_url=base_url, **options)
        _refuse_calls(self)

    async def __aenter__(self) -> Self:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            raise RuntimeError(
                "gaman runs on asyncio, and this test doesn't; for the pytest plugin of anyio, write a fixture `anyio_backend` "
                'that returns "asyncio"'
            ) from None
        _enter_once(self)
        async with AsyncExitStack() as stack:
            self._app_transport.state = await stack.enter_async_context(started(self._app))
            await super().__aenter__()
            stack.push_async_exit(super().__aexit__)
            self._stack = stack.pop_all()
        _allow_calls(self)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        _refuse_calls(self)
        await self._stack.__aexit__(exc_type, exc_value, traceback)

    def __enter__(self) -> SyncTestClient:
        _enter_once(self)
        self._sync = SyncTestClient(self._app, **self._options)
        # What was set on this client before `with` counts.
        self._sync.headers, self._sync.cookies = self.headers, self.cookies
        return self._sync.__enter__()

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        if self._sync is not None:
            self._sync.__exit__(exc_type, exc_value, traceback)

    def session(self, url: str = "/") -> AbstractAsyncContextManager[Session]:
        """Open the session of this client, as a handler of *url* would see it; the block's changes are written at its end.

            async with client.session() as session:
                await session.login("user:1")
            assert (await client.get("/profile")).status_code == 200

        It runs no route and no hook, and the client keeps the cookie. An exception drops the changes. *url* matters only if the
        session's cookie has a path or a domain. ConfigError: the application has no session integration.
        """
        return AsyncBlock(opened(self._app, self.build_request("GET", url), self.cookies))

    if not TYPE_CHECKING:

        def call(self, *_: object, **__: object) -> NoReturn:
            raise RuntimeError("this client is async: write `await` before the call itself, as in `await sessions.count(owner)`")


class SyncTestClient(httpx.Client):
    """What `with TestClient(app) as client` gives: an httpx.Client whose calls need no `await`.

    The application runs in an event loop in another thread. The arguments are those of TestClient.
    """

    __test__ = False
    _was_entered = False
    _portal: BlockingPortal

    def __init__(self, app: Application, *, base_url: str = _BASE_URL, raise_errors: bool = True, **options: Any) -> None:
        self._app = check_application("TestClient()", app)
        self._stack = ExitStack()
        self._app_transport = Transport(app, raises_errors=raise_errors)
        self._portal_transport = SyncTransport(self._app_transport)
        super().__init__(transport=self._portal_transport, base_url=base_url, **options)
        _refuse_calls(self)

    def __enter__(self) -> Self:
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            raise RuntimeError("this test is async: write `async with TestClient(app) as client:`, and `await` the client's calls")
        _enter_once(self)
        with ExitStack() as stack:
            self._portal = self._portal_transport.portal = stack.enter_context(_portals)
            self._app_transport.state = stack.enter_context(self._portal.wrap_async_context_manager(started(self._app)))
            super().__enter__()
            stack.push(super().__exit__)
            self._stack = stack.pop_all()
        _allow_calls(self)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        _refuse_calls(self)
        self._stack.__exit__(exc_type, exc_value, traceback)

    def session(self, url: str = "/") -> AbstractContextManager[SyncSession]:
        """Open the session of this client, as TestClient.session() does, with calls that need no `await`.

            with client.session() as session:
                session.login("user:1")
            assert client.get("/profile").status_code == 200

        ConfigError: the application has no session integration.
        """
        return SyncBlock(self._portal, opened(self._app, self.build_request("GET", url), self.cookies))

    def call(self, function: Callable[P, Awaitable[T]], *arguments: P.args, **named: P.kwargs) -> T:
        """Call an async function in the application's event loop, and return its result.

        `assert client.call(sessions.count, "user:1") == 1`
        """
        if isinstance(function, Coroutine):
            name = close_coroutine(cast("object", function))
            raise TypeError(f"client.call() takes the function and its arguments: write client.call({name}, ...)")
        return call(self._portal, function, *arguments, **named)


def _check_options(options: Iterable[str]) -> None:
    """Raise ConfigError for an option that httpx's clients don't take."""
    known = {*signature(httpx.Client).parameters, "raise_errors"}
    for name in options:
        if name not in known:
            near = "; did you mean 'raise_errors'?" if name.startswith("raise_") else nearest(name, known)
            raise ConfigError(f"TestClient() has no option {name!r}{near}")


def _refuse(*_: object, **__: object) -> NoReturn:
    raise RuntimeError(
        "the application isn't running: write `async with TestClient(app) as client:`, or in a test that isn't async "
        "`with TestClient(app) as client:`, and use that client inside the block"
    )


def _refuse_calls(client: TestClient | SyncTestClient) -> None:
    """Make each call raise. Those of an async client would raise only with `await`, which a synchronous test lacks."""
    vars(client).update(dict.fromkeys(_CALLS, _refuse))


def _allow_calls(client: TestClient | SyncTestClient) -> None:
    for name in _CALLS:
        del vars(client)[name]


def _enter_once(client: TestClient | SyncTestClient) -> None:
    if client._was_entered:
        raise RuntimeError("a TestClient is used for one block; make another: `with TestClient(app) as client:`")
    client._was_entered = True
