"""Correct handlers and their use of a request: read by mypy and pyright, never run."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from enum import Enum
from functools import partial, wraps
from typing import Any, TypedDict, assert_type
from uuid import UUID

from msgspec import Struct

from gaman import (
    App,
    Context,
    Cookies,
    Form,
    Handler,
    Headers,
    HTTPError,
    InvalidInput,
    Response,
    Result,
    Routes,
    Table,
    UploadedFile,
    define_routes,
)


@dataclass
class User:
    id: int
    name: str


class Cat(Struct):
    name: str


class Dog(TypedDict):
    name: str


class Color(Enum):
    RED = "red"


@dataclass
class Upload:
    photo: UploadedFile
    more: list[UploadedFile]


@dataclass
class Deps:
    greeting: str


async def request(ctx: Context) -> str:
    assert_type(await ctx.json(), Any)
    assert_type(await ctx.json(User), User)
    assert_type(await ctx.json(type=User), User)
    assert_type(await ctx.json(type=Dog), Dog)
    assert_type(await ctx.json(type=list[Cat]), list[Cat])
    assert_type(await ctx.json(type=dict[str, int]), dict[str, int])
    assert_type(await ctx.body(), bytes)
    assert_type(await ctx.text(), str)
    assert_type(ctx.method, str)
    assert_type(ctx.url, str)
    assert_type(ctx.ip, str | None)
    assert_type(ctx.headers, Headers)
    assert_type(ctx.header("accept"), str | None)
    assert_type(ctx.param("id"), str | None)
    assert_type(ctx.param("id", int), int)
    assert_type(ctx.param("id", UUID), UUID)
    assert_type(ctx.param("color", type=Color), Color)
    assert_type(ctx.params["id"], str)
    assert_type(ctx.query_as(User), User)
    assert_type(ctx.query_as(Cat), Cat)
    assert_type(ctx.query_as(Dog), Dog)
    assert_type(ctx.query.get("a"), str | None)
    assert_type(ctx.query.getall("a"), list[str])
    assert_type(ctx.query.getall("a", None), list[str] | None)
    assert_type((await ctx.form()).fields.getall("a"), list[str])
    assert_type(ctx.cookies, Cookies)
    assert_type(ctx.cookies.get("theme"), str | None)
    assert_type(ctx.locals, dict[str, Any])
    return "done"


async def form(ctx: Context) -> None:
    assert_type(await ctx.form(), Form)
    assert_type(await ctx.form_as(Upload), Upload)
    assert_type(await ctx.form_as(Cat, max_size=1 << 20), Cat)
    assert_type(await ctx.input("a"), str | None)
    assert_type(await ctx.inputs("a"), list[str])
    assert_type(await ctx.file("photo"), UploadedFile | None)
    assert_type(await ctx.files("photos"), list[UploadedFile])
    if (photo := await ctx.file("photo")) is not None:
        assert_type(await photo.read(), bytes)


async def chunks() -> AsyncIterator[bytes]:
    yield b"tick"


async def stream(ctx: Context) -> Response:
    async for chunk in ctx.stream():
        assert_type(chunk, bytes)
    return Response.stream(chunks(), content_type="text/plain")


async def octets(ctx: Context) -> bytes:
    return b"GIF89a"


async def in_a_dict(ctx: Context) -> dict[str, object]:
    return {"id": 1}


async def in_a_typed_dict(ctx: Context) -> Dog:
    return {"name": "Rex"}


async def in_a_list(ctx: Context) -> list[User]:
    return [User(1, "Angga")]


async def in_a_dataclass(ctx: Context) -> User:
    return User(1, "Angga")


async def in_a_struct(ctx: Context) -> Cat:
    return Cat("Tom")


async def guard(ctx: Context) -> Response | None:
    return None if await ctx.session.has("user") else Response.redirect("/login")


async def refuse(ctx: Context) -> None:
    raise HTTPError(403, "no")


async def refuse_with_data(ctx: Context) -> None:
    raise HTTPError(422, {"email": ["is taken"]})


async def refuse_a_field(ctx: Context) -> str:
    try:
        ctx.query_as(User)
    except InvalidInput as error:
        assert_type(error.detail, str)
        assert_type(error.path, str)
        assert_type(error.field, str | None)
        assert_type(error.sentence, str)
    raise InvalidInput("is taken", "$.email", "email")


class Greeter:
    async def __call__(self, ctx: Context) -> dict[str, str]:
        return {"hello": ctx.params["name"]}


class Controller:
    def __init__(self, deps: Deps) -> None:
        self.deps = deps

    async def show(self, ctx: Context) -> str:
        return self.deps.greeting


async def greet(greeting: str, ctx: Context) -> str:
    return greeting


def logged(handler: Handler) -> Handler:
    @wraps(handler)
    async def wrapper(ctx: Context) -> Result:
        return await handler(ctx)

    return wrapper


def timed(handler: Callable[[Context], Awaitable[User]]) -> Callable[[Context], Awaitable[User]]:
    return handler


@logged
async def decorated(ctx: Context) -> str:
    return "done"


table: Table = {"/": request, "/users": {"GET": in_a_list, "POST": [guard, in_a_struct], "/:id": {"GET": in_a_dataclass}}}
routes = define_routes(
    {
        "*": guard,
        "/admin/*": [guard, refuse],
        "/": {"GET": stream, "POST": [guard, form, stream]},
        "/octets": octets,
        "/dict": in_a_dict,
        "/typed": in_a_typed_dict,
        "/hello/:name": Greeter(),
        "/refuse/:id<int>": [refuse_with_data, refuse_a_field],
        "/controller": Controller(Deps("Hello")).show,
        "/partial": partial(greet, "Hello"),
        "/lambda": [guard, partial(greet, "Hello"), Greeter()],
        "/decorated": decorated,
        "/timed": timed(in_a_dataclass),
        "/nested": {"/deeper": {"/deepest": {"ALL": request}}, "*": {"POST": guard}},
    },
    strict=True,
)
assert_type(routes, Routes)


def routes_of(deps: Deps) -> Table:
    async def greeting(ctx: Context) -> str:
        return deps.greeting

    return {"/greeting": greeting, "/controller": {"GET": Controller(deps).show}}


apps = [
    App(routes),
    App(table),
    App({"/": request}),
    App(define_routes(routes_of), deps=Deps("Hello")),
    App(define_routes(lambda: {"/": request})),
    App(define_routes(lambda deps: {"/": guard}), deps=1),
]
