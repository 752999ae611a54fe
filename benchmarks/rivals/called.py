"""Services that call an ASGI application with sessions in a store, in this process."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Final

from benchmarks.asgi import EmptyBody, make_scope
from benchmarks.places import driver_options
from benchmarks.rivals.bare import ASGI, SECRET, Message
from benchmarks.rivals.bare_stores import STORES, BareCallable
from benchmarks.rivals.ours import read, write
from benchmarks.rivals.peer_stores import Service, visit
from gaman import App, Context, Handler, Response, define_routes
from gaman.session import session


async def _read_write(ctx: Context) -> Response:
    user = await ctx.session.get("user")
    await ctx.session.set("user", user)
    return Response.json({"user": user})


async def _update(ctx: Context) -> Response:
    return Response.json({"user": await ctx.session.update("user", visit)})


async def _regenerate(ctx: Context) -> Response:
    user = await ctx.session.get("user")
    await ctx.session.regenerate()
    return Response.json({"user": user})


HANDLERS: Final[Mapping[str, Handler]] = {
    "load": read,
    "write": write,
    "read-write": _read_write,
    "update": _update,
    "regenerate": _regenerate,
}


class Called(Service):
    """An ASGI application that is called in this process. A key is the Cookie field; a response is the body."""

    def __init__(self, app: ASGI) -> None:
        self._app = app

    async def serve(self, operation: str, key: bytes | None) -> tuple[bytes | None, bytes]:
        body = b""

        async def send(message: Message) -> None:
            nonlocal key, body
            if message["type"] == "http.response.start":
                for name, value in message["headers"]:
                    if name == b"set-cookie":
                        key = value.partition(b";")[0]
            else:
                body = message["body"]

        await self._app(make_scope(f"/{operation}", key), EmptyBody(), send)
        return key, body

    def read(self, response: bytes) -> Any:
        return json.loads(response).get("user")


class CalledBare(Called):
    def __init__(self, kind: str, place: str) -> None:
        self._store = STORES[kind](place)
        super().__init__(BareCallable(self._store))

    async def open(self) -> None:
        await self._store.open()

    async def close(self) -> None:
        await self._store.close()


class CalledGaman(Called):
    def __init__(self, kind: str, place: str, **options: Any) -> None:
        routes = define_routes({f"/{operation}": {"GET": handler} for operation, handler in HANDLERS.items()})
        self._gaman = App(routes, integrations=[session(SECRET, {**driver_options(kind, place), **options})])
        super().__init__(self._gaman)

    async def open(self) -> None:
        await self._gaman.load()

    async def close(self) -> None:
        await self._gaman.shutdown()
