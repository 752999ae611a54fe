"""The same application of Starlette or FastAPI, without sessions and with the sessions of each middleware.

`/unused` doesn't touch the session, `/read` gets the user, and `/write` sets the user. Each package is imported where it is used, so
a missing one costs only its own figures.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from importlib import import_module
from typing import Annotated, Any, Final, NamedTuple

import msgspec

from benchmarks.rivals.bare import ASGI, SECRET, USER
from gaman.session import session
from gaman.session.asgi import Session, SessionMiddleware, get_session

_MAX_AGE = 86_400
_encode_json = msgspec.json.Encoder().encode


class Access(NamedTuple):
    """How a handler reads and writes the user; *depends* is true if FastAPI passes it the session instead of the request."""

    read: Callable[[Any], Awaitable[Any]]
    write: Callable[[Any], Awaitable[None]]
    depends: bool = False


async def _read_nothing(request: Any) -> Any:
    return USER


async def _write_nothing(request: Any) -> None:
    pass


async def _read_dict(request: Any) -> Any:
    return request.session.get("user")


async def _write_dict(request: Any) -> None:
    request.session["user"] = USER


async def _read_session(request: Any) -> Any:
    return await (await get_session(request)).get("user")


async def _write_session(request: Any) -> None:
    await (await get_session(request)).set("user", USER)


async def _read_current(current: Session) -> Any:
    return await current.get("user")


async def _write_current(current: Session) -> None:
    await current.set("user", USER)


_NOTHING: Final = Access(_read_nothing, _write_nothing)
_DICT: Final = Access(_read_dict, _write_dict)
_SESSION: Final = Access(_read_session, _write_session)
_CURRENT: Final = Access(_read_current, _write_current, depends=True)


def starlette(access: Access) -> Any:
    """Return an application of Starlette, whose handlers encode JSON by msgspec."""
    applications: Any = import_module("starlette.applications")
    responses: Any = import_module("starlette.responses")
    routing: Any = import_module("starlette.routing")

    def respond(data: object) -> Any:
        return responses.Response(_encode_json(data), media_type="application/json")

    async def unused(request: Any) -> Any:
        return respond({"message": "hello"})

    async def read(request: Any) -> Any:
        return respond({"user": await access.read(request)})

    async def write(request: Any) -> Any:
        await access.write(request)
        return respond({"status": "logged in"})

    return applications.Starlette(routes=[routing.Route(f"/{each.__name__}", each) for each in (unused, read, write)])


def fastapi(access: Access) -> Any:
    """Return an application of FastAPI, whose handlers return a dict."""
    package: Any = import_module("fastapi")

    async def unused() -> dict[str, Any]:
        return {"message": "hello"}

    async def read(given: Any) -> dict[str, Any]:
        return {"user": await access.read(given)}

    async def write(given: Any) -> dict[str, Any]:
        await access.write(given)
        return {"status": "logged in"}

    # FastAPI reads annotations, and is imported only here.
    given = Annotated[Session, package.Depends(get_session)] if access.depends else package.Request
    app: Any = package.FastAPI()
    for handler in (unused, read, write):
        if handler is not unused:
            handler.__annotations__["given"] = given
        app.get(f"/{handler.__name__}")(handler)
    return app


Entered = AbstractAsyncContextManager[ASGI]


class Rival(NamedTuple):
    """A contender: *enter* sets up its application of a framework. *session* is one of `SESSIONS`, *package* its own."""

    name: str
    package: str
    session: str
    enter: Callable[[Callable[[Access], Any]], Entered]


@asynccontextmanager
async def without(framework: Callable[[Access], Any]) -> AsyncGenerator[ASGI]:
    """Return the application without sessions; its handlers read and write nothing."""
    yield framework(_NOTHING)


@asynccontextmanager
async def _own(framework: Callable[[Access], Any]) -> AsyncGenerator[ASGI]:
    middleware: Any = import_module("starlette.middleware.sessions")
    app = framework(_DICT)
    app.add_middleware(middleware.SessionMiddleware, secret_key=SECRET, max_age=_MAX_AGE, https_only=True)
    yield app


@asynccontextmanager
async def _starsessions(kind: str, framework: Callable[[Access], Any]) -> AsyncGenerator[ASGI]:
    package: Any = import_module("starsessions")
    store = package.CookieStore(SECRET) if kind == "cookies" else package.InMemoryStore()
    app = framework(_DICT)
    app.add_middleware(package.SessionAutoloadMiddleware)
    app.add_middleware(package.SessionMiddleware, store=store, lifetime=_MAX_AGE)
    yield app


@asynccontextmanager
async def _ours(kind: str, as_dict: bool, framework: Callable[[Access], Any]) -> AsyncGenerator[ASGI]:
    sessions = session(SECRET, {"type": kind}, _MAX_AGE)
    app = framework(_DICT if as_dict else _CURRENT if framework is fastapi else _SESSION)
    app.add_middleware(SessionMiddleware, sessions=sessions, as_dict=as_dict)
    async with sessions.running():
        yield app


OWN: Final = "Starlette's own, in a cookie"
COOKIE: Final = "gaman, in a cookie"
COOKIE_DICT: Final = "gaman, in a cookie, as_dict"
MEMORY: Final = "gaman, in memory"
MEMORY_DICT: Final = "gaman, in memory, as_dict"

RIVALS: Final = (
    Rival(OWN, "starlette", "signs", _own),
    Rival("starsessions, in a cookie", "starsessions", "signs", partial(_starsessions, "cookies")),
    Rival("starsessions, in memory", "starsessions", "in memory", partial(_starsessions, "memory")),
    Rival(COOKIE, "gaman", "encrypts", partial(_ours, "cookies", False)),
    Rival(COOKIE_DICT, "gaman", "encrypts", partial(_ours, "cookies", True)),
    Rival(MEMORY, "gaman", "in memory", partial(_ours, "memory", False)),
    Rival(MEMORY_DICT, "gaman", "in memory", partial(_ours, "memory", True)),
)
