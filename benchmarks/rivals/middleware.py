"""The same application of Starlette or FastAPI, without sessions and with the sessions of each middleware.

`/unused` doesn't touch the session, `/login` sets the user, `/read` gets the user, and `/write` sets a new one. Each package is
imported where it is used, so a missing one costs only its own figures.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from importlib import import_module
from itertools import count
from typing import Annotated, Any, Final, NamedTuple

import msgspec

from benchmarks.rivals.bare import ASGI, SECRET, USER, Message, Receive, Send
from gaman.session import session
from gaman.session.asgi import Session, SessionMiddleware, get_session

_MAX_AGE = 86_400
_encode_json = msgspec.json.Encoder().encode
_ids = count(2)


class Access(NamedTuple):
    """How a handler reads and writes the user. FastAPI's get what *depends* returns, if it is given, and the request otherwise."""

    read: Callable[[Any], Awaitable[Any]]
    write: Callable[[Any, Any], Awaitable[None]]
    depends: Callable[..., Any] | None = None


async def _read_nothing(_: Any) -> Any:
    return USER


async def _write_nothing(_: Any, user: Any) -> None:
    pass


async def _depend_on_nothing() -> None:
    pass


async def _read_dict(request: Any) -> Any:
    return request.session.get("user")


async def _write_dict(request: Any, user: Any) -> None:
    request.session["user"] = user


async def _read_session(request: Any) -> Any:
    return await (await get_session(request)).get("user")


async def _write_session(request: Any, user: Any) -> None:
    await (await get_session(request)).set("user", user)


async def _read_current(current: Session) -> Any:
    return await current.get("user")


async def _write_current(current: Session, user: Any) -> None:
    await current.set("user", user)


_NOTHING: Final = Access(_read_nothing, _write_nothing)
_DEPENDS: Final = Access(_read_nothing, _write_nothing, _depend_on_nothing)
_DICT: Final = Access(_read_dict, _write_dict)
_SESSION: Final = Access(_read_session, _write_session)
_CURRENT: Final = Access(_read_current, _write_current, get_session)

Framework = Callable[[Access], Any]
"""Builds the application of a framework."""


def starlette(access: Access) -> Any:
    """Return an application of Starlette, whose handlers encode JSON by msgspec."""
    applications: Any = import_module("starlette.applications")
    responses: Any = import_module("starlette.responses")
    routing: Any = import_module("starlette.routing")

    def respond(data: object) -> Any:
        return responses.Response(_encode_json(data), media_type="application/json")

    async def unused(request: Any) -> Any:
        return respond({"message": "hello"})

    async def login(request: Any) -> Any:
        await access.write(request, USER)
        return respond({"status": "logged in"})

    async def read(request: Any) -> Any:
        return respond({"user": await access.read(request)})

    async def write(request: Any) -> Any:
        await access.write(request, {**USER, "id": next(_ids)})
        return respond({"status": "logged in"})

    return applications.Starlette(routes=[routing.Route(f"/{each.__name__}", each) for each in (unused, login, read, write)])


def fastapi(access: Access) -> Any:
    """Return an application of FastAPI, whose handlers return a dict."""
    package: Any = import_module("fastapi")

    async def unused() -> dict[str, Any]:
        return {"message": "hello"}

    async def login(given: Any) -> dict[str, Any]:
        await access.write(given, USER)
        return {"status": "logged in"}

    async def read(given: Any) -> dict[str, Any]:
        return {"user": await access.read(given)}

    async def write(given: Any) -> dict[str, Any]:
        await access.write(given, {**USER, "id": next(_ids)})
        return {"status": "logged in"}

    # FastAPI reads annotations, and is imported only here.
    given = package.Request if access.depends is None else Annotated[Any, package.Depends(access.depends)]
    app: Any = package.FastAPI()
    handlers: Sequence[Callable[..., Any]] = (unused, login, read, write)
    for handler in handlers:
        if handler is not unused:
            handler.__annotations__["given"] = given
        app.get(f"/{handler.__name__}")(handler)
    return app


FRAMEWORKS: Final = {"Starlette": starlette, "FastAPI": fastapi}


class Rival(NamedTuple):
    """A contender: *enter* sets up its application. *session* is one of `SESSIONS`, or empty, and *package* its own or empty."""

    name: str
    package: str
    session: str
    enter: Callable[[Framework], AbstractAsyncContextManager[ASGI]]


class BareMiddleware:
    """A middleware that sees the messages of the response and does nothing else."""

    def __init__(self, app: ASGI) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        def pass_on(message: Message) -> Awaitable[None]:
            return send(message)

        await self.app(scope, receive, pass_on)


@asynccontextmanager
async def without(framework: Framework, access: Access = _NOTHING) -> AsyncGenerator[ASGI]:
    """Return the application without sessions, whose handlers read and write nothing."""
    yield framework(access)


@asynccontextmanager
async def _bare(framework: Framework) -> AsyncGenerator[ASGI]:
    app = framework(_NOTHING)
    app.add_middleware(BareMiddleware)
    yield app


@asynccontextmanager
async def _own(framework: Framework) -> AsyncGenerator[ASGI]:
    middleware: Any = import_module("starlette.middleware.sessions")
    app = framework(_DICT)
    app.add_middleware(middleware.SessionMiddleware, secret_key=SECRET, max_age=_MAX_AGE, https_only=True)
    yield app


@asynccontextmanager
async def _starsessions(framework: Framework, kind: str) -> AsyncGenerator[ASGI]:
    package: Any = import_module("starsessions")
    stores: Any = import_module("starsessions.stores.cookie")
    store = stores.CookieStore(SECRET) if kind == "cookies" else package.InMemoryStore()
    app = framework(_DICT)
    app.add_middleware(package.SessionAutoloadMiddleware)
    app.add_middleware(package.SessionMiddleware, store=store, lifetime=_MAX_AGE)
    yield app


@asynccontextmanager
async def _ours(framework: Framework, kind: str, *, as_dict: bool) -> AsyncGenerator[ASGI]:
    sessions = session(SECRET, {"type": kind}, _MAX_AGE)
    app = framework(_DICT if as_dict else _CURRENT if framework is fastapi else _SESSION)
    app.add_middleware(SessionMiddleware, sessions=sessions, as_dict=as_dict)
    async with sessions.running():
        yield app


BARE: Final = "bare middleware"
DEPENDS: Final = "Depends() of an empty function"
OWN: Final = "Starlette's own, in a cookie"
COOKIE: Final = "gaman, in a cookie"
COOKIE_DICT: Final = "gaman, in a cookie, as_dict"
MEMORY: Final = "gaman, in memory"
MEMORY_DICT: Final = "gaman, in memory, as_dict"

RIVALS: Final = (
    Rival(BARE, "", "", _bare),
    Rival(DEPENDS, "fastapi", "", partial(without, access=_DEPENDS)),
    Rival(OWN, "starlette", "signs", _own),
    Rival("starsessions, in a cookie", "starsessions", "signs", partial(_starsessions, kind="cookies")),
    Rival("starsessions, in memory", "starsessions", "in memory", partial(_starsessions, kind="memory")),
    Rival(COOKIE, "gaman", "encrypts", partial(_ours, kind="cookies", as_dict=False)),
    Rival(COOKIE_DICT, "gaman", "encrypts", partial(_ours, kind="cookies", as_dict=True)),
    Rival(MEMORY, "gaman", "in memory", partial(_ours, kind="memory", as_dict=False)),
    Rival(MEMORY_DICT, "gaman", "in memory", partial(_ours, kind="memory", as_dict=True)),
)
