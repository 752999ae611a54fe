"""The peers: what other frameworks answer in the same cases, each set up the way its own documentation shows.

Each package is imported where it is used: whoever lacks one gets a ModuleNotFoundError from its builder, and every other figure.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from importlib import import_module
from typing import Any, NamedTuple

import msgspec

from benchmarks.contenders import ASGI, OTHER_ROUTES, SECRET, USER

_HALF = OTHER_ROUTES // 2
_MAX_AGE = 86_400
_encode_json = msgspec.json.Encoder().encode


class Peer(NamedTuple):
    """A framework: *build* returns its application, with the routes of the plain cases, or with sessions and their routes."""

    name: str
    package: str
    build: Callable[[bool], Awaitable[ASGI]]
    has_sessions: bool = True


async def build_blacksheep(with_sessions: bool) -> ASGI:
    blacksheep: Any = import_module("blacksheep")

    async def answer_json(request: Any) -> Any:
        return blacksheep.json({"message": "hello"})

    async def answer_post(request: Any) -> Any:
        return blacksheep.json({"user": request.route_values["user"], "post": request.route_values["post"]})

    async def read(request: Any) -> Any:
        return blacksheep.json({"user": request.session.get("user")})

    async def write(request: Any) -> Any:
        request.session["user"] = USER
        return blacksheep.json({"status": "logged in"})

    for handler in (answer_json, answer_post, read, write):
        # BlackSheep calls a handler directly, without a wrapper, only where it promises a Response.
        handler.__annotations__["return"] = blacksheep.Response
    router: Any = blacksheep.Router()
    app: Any = blacksheep.Application(router=router)
    if with_sessions:
        app.use_sessions(SECRET, session_max_age=_MAX_AGE)
        router.add_get("/read", read)
        router.add_get("/write", write)
    else:
        router.add_get("/json", answer_json)
        for i in range(OTHER_ROUTES):
            if i == _HALF:
                router.add_get("/users/{user}/posts/{post}", answer_post)
            router.add_get(f"/other/{i}/{{name}}", answer_json)
    await app.start()
    built: ASGI = app
    return built


async def build_falcon(with_sessions: bool) -> ASGI:
    asgi: Any = import_module("falcon.asgi")

    class Json:
        async def on_get(self, request: Any, response: Any, **params: str) -> None:
            response.media = {"message": "hello"}

    class Post:
        async def on_get(self, request: Any, response: Any, user: str, post: str) -> None:
            response.media = {"user": user, "post": post}

    app: Any = asgi.App()
    app.add_route("/json", Json())
    for i in range(OTHER_ROUTES):
        if i == _HALF:
            app.add_route("/users/{user}/posts/{post}", Post())
        app.add_route(f"/other/{i}/{{name}}", Json())
    built: ASGI = app
    return built


async def build_litestar(with_sessions: bool) -> ASGI:
    litestar: Any = import_module("litestar")
    cookies: Any = import_module("litestar.middleware.session.client_side")

    async def answer_json() -> dict[str, Any]:
        return {"message": "hello"}

    async def answer_post(request: Any) -> dict[str, Any]:
        return {"user": request.path_params["user"], "post": request.path_params["post"]}

    async def read(request: Any) -> dict[str, Any]:
        return {"user": request.session.get("user")}

    async def write(request: Any) -> dict[str, Any]:
        request.session["user"] = USER
        return {"status": "logged in"}

    for handler in (answer_post, read, write):
        # Litestar wants to know what it is to give.
        handler.__annotations__["request"] = litestar.Request
    if with_sessions:
        config: Any = cookies.CookieBackendConfig(secret=SECRET.encode()[:32], max_age=_MAX_AGE, secure=True)
        handlers = [litestar.get("/read")(read), litestar.get("/write")(write)]
        middleware = [config.middleware]
    else:
        others = [litestar.get(f"/other/{i}/{{name:str}}")(answer_json) for i in range(OTHER_ROUTES)]
        post = litestar.get("/users/{user:str}/posts/{post:str}")(answer_post)
        handlers = [litestar.get("/json")(answer_json), *others[:_HALF], post, *others[_HALF:]]
        middleware = []
    app: ASGI = litestar.Litestar(handlers, middleware=middleware, openapi_config=None)
    return app


async def build_starlette(with_sessions: bool) -> ASGI:
    applications: Any = import_module("starlette.applications")
    routing: Any = import_module("starlette.routing")
    responses: Any = import_module("starlette.responses")

    def make_json(data: object) -> Any:
        return responses.Response(_encode_json(data), media_type="application/json")

    async def answer_json(request: Any) -> Any:
        return make_json({"message": "hello"})

    async def answer_post(request: Any) -> Any:
        return make_json({"user": request.path_params["user"], "post": request.path_params["post"]})

    async def read(request: Any) -> Any:
        return make_json({"user": request.session.get("user")})

    async def write(request: Any) -> Any:
        request.session["user"] = USER
        return make_json({"status": "logged in"})

    if with_sessions:
        sessions: Any = import_module("starlette.middleware.sessions")
        routes = [routing.Route("/read", read), routing.Route("/write", write)]
        app: Any = applications.Starlette(routes=routes)
        app.add_middleware(sessions.SessionMiddleware, secret_key=SECRET, max_age=_MAX_AGE, https_only=True)
    else:
        others = [routing.Route(f"/other/{i}/{{name}}", answer_json) for i in range(OTHER_ROUTES)]
        post = routing.Route("/users/{user}/posts/{post}", answer_post)
        app = applications.Starlette(routes=[routing.Route("/json", answer_json), *others[:_HALF], post, *others[_HALF:]])
    built: ASGI = app
    return built


PEERS = [
    Peer("BlackSheep", "blacksheep", build_blacksheep),
    Peer("Falcon", "falcon", build_falcon, has_sessions=False),
    Peer("Litestar", "litestar", build_litestar),
    Peer("Starlette", "starlette", build_starlette),
]
