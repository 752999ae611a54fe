"""The peers' applications for the same cases, each set up as its own documentation shows.

Each package is imported where it is used, so a missing one costs only its own figures. All peers have the same routes: `/json` and
`/users/42/posts/7` with others before and after them, or those of a session. `/fill` sets the user and extra values, `/read` gets
the user, `/write` sets the user, and `/size` gets a value's length.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib import import_module
from importlib.metadata import version
from typing import Any, NamedTuple

import msgspec

from benchmarks.asgi import contend, log_in
from benchmarks.harness import Contender, Missing, line_of
from benchmarks.rivals.bare import ASGI, SECRET, USER

Paths = Sequence[str]
Extra = Mapping[str, object]
Plain = Callable[[Paths, Paths], Awaitable[ASGI]]
"""Builds the application of the plain cases, with other routes before and after: literal, or with a {name}."""
WithSession = Callable[[Extra], Awaitable[ASGI]]
"""Builds the application of the session's cases."""

_MAX_AGE = 86_400
_encode_json = msgspec.json.Encoder().encode


class Peer(NamedTuple):
    """A framework; *sessions* maps its own kinds of sessions, "cookies" and "memory", to builders.

    *session* says what a session in a cookie does with its values, see `SESSIONS`.
    """

    name: str
    package: str
    plain: Plain
    sessions: Mapping[str, WithSession]
    session: str = ""

    def with_session(self, kind: str, extra: Extra | None = None) -> Awaitable[ASGI] | str:
        """Return an awaitable of the application, or the reason why there is none."""
        build = self.sessions.get(kind)
        return f"no sessions in {'a cookie' if kind == 'cookies' else kind}" if build is None else build(extra or {})


async def blacksheep_plain(before: Paths, after: Paths) -> ASGI:
    blacksheep: Any = import_module("blacksheep")

    async def show_json(request: Any) -> Any:
        return blacksheep.json({"message": "hello"})

    async def show_post(request: Any) -> Any:
        return blacksheep.json({"user": request.route_values["user"], "post": request.route_values["post"]})

    return await _blacksheep(
        [
            *((path, show_json) for path in before),
            ("/json", show_json),
            ("/users/{user}/posts/{post}", show_post),
            *((path, show_json) for path in after),
        ]
    )


async def blacksheep_cookies(extra: Extra) -> ASGI:
    return await _blacksheep_session(extra, SECRET, session_max_age=_MAX_AGE)


async def blacksheep_memory(extra: Extra) -> ASGI:
    memory: Any = import_module("blacksheep.sessions.memory")
    return await _blacksheep_session(extra, memory.InMemorySessionStore())


async def _blacksheep_session(extra: Extra, *store: Any, **options: Any) -> ASGI:
    blacksheep: Any = import_module("blacksheep")

    async def fill(request: Any) -> Any:
        request.session["user"] = USER
        for key, value in extra.items():
            request.session[key] = value
        return blacksheep.json({"status": "logged in"})

    async def read(request: Any) -> Any:
        return blacksheep.json({"user": request.session.get("user")})

    async def write(request: Any) -> Any:
        request.session["user"] = USER
        return blacksheep.json({"status": "logged in"})

    async def size(request: Any) -> Any:
        return blacksheep.json({"size": len(request.session["value"])})

    routes = [("/fill", fill), ("/read", read), ("/write", write), ("/size", size)]
    return await _blacksheep(routes, lambda app: app.use_sessions(*store, **options))


async def _blacksheep(routes: Sequence[tuple[str, Any]], configure: Callable[[Any], object] = lambda app: None) -> ASGI:
    blacksheep: Any = import_module("blacksheep")
    router: Any = blacksheep.Router()
    app: Any = blacksheep.Application(router=router)
    configure(app)
    for path, handler in routes:
        # BlackSheep calls a handler without a wrapper only if its annotation promises a Response.
        handler.__annotations__["return"] = blacksheep.Response
        router.add_get(path, handler)
    await app.start()
    built: ASGI = app
    return built


async def falcon_plain(before: Paths, after: Paths) -> ASGI:
    asgi: Any = import_module("falcon.asgi")

    class Json:
        async def on_get(self, request: Any, response: Any, **params: str) -> None:
            response.media = {"message": "hello"}

    class Post:
        async def on_get(self, request: Any, response: Any, user: str, post: str) -> None:
            response.media = {"user": user, "post": post}

    app: Any = asgi.App()
    for path in before:
        app.add_route(path, Json())
    app.add_route("/json", Json())
    app.add_route("/users/{user}/posts/{post}", Post())
    for path in after:
        app.add_route(path, Json())
    built: ASGI = app
    return built


async def fastapi_plain(before: Paths, after: Paths) -> ASGI:
    fastapi: Any = import_module("fastapi")
    app: Any = fastapi.FastAPI()

    async def show_json() -> dict[str, Any]:
        return {"message": "hello"}

    async def show_named(name: str) -> dict[str, Any]:
        return {"message": "hello"}

    async def show_post(user: str, post: str) -> dict[str, Any]:
        return {"user": user, "post": post}

    def add_others(paths: Paths) -> None:
        for path in paths:
            app.get(path)(show_named if "{name}" in path else show_json)

    add_others(before)
    app.get("/json")(show_json)
    app.get("/users/{user}/posts/{post}")(show_post)
    add_others(after)
    built: ASGI = app
    return built


def _session_handlers(extra: Extra, request_class: type) -> Sequence[Any]:
    """Return handlers for FastAPI and Litestar, which read the annotations of parameters."""

    async def fill(request: Any) -> dict[str, Any]:
        request.session.update({"user": USER, **extra})
        return {"status": "logged in"}

    async def read(request: Any) -> dict[str, Any]:
        return {"user": request.session.get("user")}

    async def write(request: Any) -> dict[str, Any]:
        request.session["user"] = USER
        return {"status": "logged in"}

    async def size(request: Any) -> dict[str, Any]:
        return {"size": len(request.session["value"])}

    handlers = (fill, read, write, size)
    for handler in handlers:
        handler.__annotations__["request"] = request_class
    return handlers


async def fastapi_cookies(extra: Extra) -> ASGI:
    fastapi: Any = import_module("fastapi")
    sessions: Any = import_module("starlette.middleware.sessions")
    app: Any = fastapi.FastAPI()
    app.add_middleware(sessions.SessionMiddleware, secret_key=SECRET, max_age=_MAX_AGE, https_only=True)

    for handler in _session_handlers(extra, fastapi.Request):
        app.get(f"/{handler.__name__}")(handler)
    built: ASGI = app
    return built


async def litestar_plain(before: Paths, after: Paths) -> ASGI:
    litestar: Any = import_module("litestar")

    async def show_json() -> dict[str, Any]:
        return {"message": "hello"}

    async def show_post(request: Any) -> dict[str, Any]:
        return {"user": request.path_params["user"], "post": request.path_params["post"]}

    show_post.__annotations__["request"] = litestar.Request
    requested = [litestar.get("/json")(show_json), litestar.get("/users/{user:str}/posts/{post:str}")(show_post)]
    first, last = ([litestar.get(path.replace("{name}", "{name:str}"))(show_json) for path in paths] for paths in (before, after))
    app: ASGI = litestar.Litestar([*first, *requested, *last], openapi_config=None, logging_config=None)
    return app


async def litestar_cookies(extra: Extra) -> ASGI:
    cookies: Any = import_module("litestar.middleware.session.client_side")
    return _litestar_session(extra, cookies.CookieBackendConfig(secret=SECRET.encode()[:32], max_age=_MAX_AGE, secure=True))


async def litestar_memory(extra: Extra) -> ASGI:
    server_side: Any = import_module("litestar.middleware.session.server_side")
    return _litestar_session(extra, server_side.ServerSideSessionConfig(max_age=_MAX_AGE, secure=True))


def _litestar_session(extra: Extra, config: Any) -> ASGI:
    litestar: Any = import_module("litestar")

    routes = [litestar.get(f"/{handler.__name__}")(handler) for handler in _session_handlers(extra, litestar.Request)]
    app: ASGI = litestar.Litestar(routes, middleware=[config.middleware], openapi_config=None, logging_config=None)
    return app


async def quart_plain(before: Paths, after: Paths) -> ASGI:
    quart: Any = import_module("quart")
    app: Any = quart.Quart(__name__)

    async def show_json(**params: str) -> dict[str, Any]:
        return {"message": "hello"}

    async def show_post(user: str, post: str) -> dict[str, Any]:
        return {"user": user, "post": post}

    def add(path: str, handler: Any) -> None:
        app.add_url_rule(path.replace("{", "<").replace("}", ">"), path, handler)

    for path in before:
        add(path, show_json)
    add("/json", show_json)
    add("/users/{user}/posts/{post}", show_post)
    for path in after:
        add(path, show_json)
    built: ASGI = app
    return built


async def quart_cookies(extra: Extra) -> ASGI:
    quart: Any = import_module("quart")
    app: Any = quart.Quart(__name__)
    app.secret_key = SECRET
    app.config["SESSION_COOKIE_SECURE"] = True

    async def fill() -> dict[str, Any]:
        quart.session.update({"user": USER, **extra})
        return {"status": "logged in"}

    async def read() -> dict[str, Any]:
        return {"user": quart.session.get("user")}

    async def write() -> dict[str, Any]:
        quart.session["user"] = USER
        return {"status": "logged in"}

    async def size() -> dict[str, Any]:
        return {"size": len(quart.session["value"])}

    for handler in (fill, read, write, size):
        app.add_url_rule(f"/{handler.__name__}", handler.__name__, handler)
    built: ASGI = app
    return built


async def starlette_plain(before: Paths, after: Paths) -> ASGI:
    applications: Any = import_module("starlette.applications")
    routing: Any = import_module("starlette.routing")

    async def show_json(request: Any) -> Any:
        return _starlette_json({"message": "hello"})

    async def show_post(request: Any) -> Any:
        return _starlette_json({"user": request.path_params["user"], "post": request.path_params["post"]})

    requested = [routing.Route("/json", show_json), routing.Route("/users/{user}/posts/{post}", show_post)]
    first, last = ([routing.Route(path, show_json) for path in paths] for paths in (before, after))
    app: ASGI = applications.Starlette(routes=[*first, *requested, *last])
    return app


async def starlette_cookies(extra: Extra) -> ASGI:
    applications: Any = import_module("starlette.applications")
    routing: Any = import_module("starlette.routing")
    sessions: Any = import_module("starlette.middleware.sessions")

    async def fill(request: Any) -> Any:
        request.session.update({"user": USER, **extra})
        return _starlette_json({"status": "logged in"})

    async def read(request: Any) -> Any:
        return _starlette_json({"user": request.session.get("user")})

    async def write(request: Any) -> Any:
        request.session["user"] = USER
        return _starlette_json({"status": "logged in"})

    async def size(request: Any) -> Any:
        return _starlette_json({"size": len(request.session["value"])})

    app: Any = applications.Starlette(
        routes=[routing.Route(f"/{handler.__name__}", handler) for handler in (fill, read, write, size)]
    )
    app.add_middleware(sessions.SessionMiddleware, secret_key=SECRET, max_age=_MAX_AGE, https_only=True)
    built: ASGI = app
    return built


def _starlette_json(data: object) -> Any:
    responses: Any = import_module("starlette.responses")
    return responses.Response(_encode_json(data), media_type="application/json")


PEERS = [
    Peer("BlackSheep", "blacksheep", blacksheep_plain, {"cookies": blacksheep_cookies, "memory": blacksheep_memory}, "signs"),
    Peer("Falcon", "falcon", falcon_plain, {}),
    Peer("FastAPI", "fastapi", fastapi_plain, {"cookies": fastapi_cookies}, "signs"),
    Peer("Litestar", "litestar", litestar_plain, {"cookies": litestar_cookies, "memory": litestar_memory}, "encrypts"),
    Peer("Quart", "quart", quart_plain, {"cookies": quart_cookies}, "signs"),
    Peer("Starlette", "starlette", starlette_plain, {"cookies": starlette_cookies}, "signs"),
]


def session_in(kind: str, of_values: str) -> str:
    """Return what a session of *kind* does with its values; *of_values* is true of all kinds outside the process."""
    return {"": "", "plain": "", "memory": "in memory"}.get(kind, of_values)


async def peers(
    path: str, build: Callable[[Peer], Awaitable[ASGI] | str], begin: str | None = None, at: float | None = None, kind: str = ""
) -> list[Contender | Missing]:
    """Return a contender for each peer; *build* returns its application, or the reason why there is none.

    If *begin* is a path, a request for it begins the session. *kind* is the kind of the session, empty if there is none.
    """
    found: list[Contender | Missing] = []
    for peer in PEERS:
        building = build(peer)
        if isinstance(building, str):
            found.append(Missing(peer.name, building, at))
            continue
        try:
            app = await building
        except ModuleNotFoundError as error:
            found.append(Missing(peer.name, f"not installed: {error.name}", at))
            continue
        cookies = () if begin is None else (await log_in(app, begin),)
        described = {"name": peer.name, "version": version(peer.package), "source": line_of(peer.plain), "at": at}
        found.append(await contend(app, path, *cookies, **described, session=session_in(kind, peer.session)))
    return found
