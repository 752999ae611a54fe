"""The peers in Python that only take part over HTTP: those with sessions in a store, and those with their own server.

Each is set up as its own documentation shows. Each package is imported where it is used, as in peers.py.
"""

from __future__ import annotations

import socket
from importlib import import_module
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.rivals.bare import ASGI, OTHERS, USER

_MAX_AGE = 86_400
_encode_json = msgspec.json.Encoder().encode


async def build_starsessions(kind: str, place: str) -> ASGI:
    """Return Starlette with starsessions, in memory or in Redis."""
    applications: Any = import_module("starlette.applications")
    routing: Any = import_module("starlette.routing")
    responses: Any = import_module("starlette.responses")
    starsessions: Any = import_module("starsessions")

    async def read(request: Any) -> Any:
        return responses.Response(_encode_json({"user": request.session.get("user")}), media_type="application/json")

    async def write(request: Any) -> Any:
        request.session["user"] = USER
        return responses.Response(_encode_json({"status": "logged in"}), media_type="application/json")

    if kind == "redis":
        stores: Any = import_module("starsessions.stores.redis")
        store: Any = stores.RedisStore(connection=import_module("redis.asyncio").Redis.from_url(place))
    else:
        store = starsessions.InMemoryStore()
    app: Any = applications.Starlette(routes=[routing.Route("/read", read), routing.Route("/write", write)])
    app.add_middleware(starsessions.SessionAutoloadMiddleware)
    app.add_middleware(starsessions.SessionMiddleware, store=store, lifetime=_MAX_AGE)
    built: ASGI = app
    return built


async def build_litestar(kind: str, place: str) -> ASGI:
    """Return Litestar with sessions in its Redis store or its file store."""
    litestar: Any = import_module("litestar")
    sessions: Any = import_module("litestar.middleware.session.server_side")

    async def read(request: Any) -> dict[str, Any]:
        return {"user": request.session.get("user")}

    async def write(request: Any) -> dict[str, Any]:
        request.session["user"] = USER
        return {"status": "logged in"}

    for handler in (read, write):
        handler.__annotations__["request"] = litestar.Request
    stores: Any = import_module(f"litestar.stores.{kind}")
    store: Any = stores.RedisStore.with_client(place) if kind == "redis" else stores.FileStore(Path(place, "litestar"))
    config: Any = sessions.ServerSideSessionConfig(max_age=_MAX_AGE, secure=True)
    handlers = [litestar.get("/read")(read), litestar.get("/write")(write)]
    app: ASGI = litestar.Litestar(
        handlers, middleware=[config.middleware], stores={"sessions": store}, openapi_config=None, logging_config=None
    )
    return app


def serve_sanic(kind: str, place: str) -> None:
    """Serve Sanic on its own server in one process."""
    sanic: Any = import_module("sanic")
    app: Any = sanic.Sanic("benchmark")

    async def show_json(request: Any) -> Any:
        return sanic.json({"message": "hello"})

    async def show_other(request: Any, name: str) -> Any:
        return sanic.json({"message": "hello"})

    async def show_post(request: Any, user: str, post: str) -> Any:
        return sanic.json({"user": user, "post": post})

    routes = [(show_json, "/json"), (show_post, "/users/{user}/posts/{post}")]
    for handler, path in [*((show_other, path) for path in OTHERS[0]), *routes, *((show_other, path) for path in OTHERS[1])]:
        app.add_route(handler, path.replace("{", "<").replace("}", ">"), name=f"route {path}")
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        app.run(sock=listener, single_process=True, access_log=False, motd=False)
