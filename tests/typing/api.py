"""What type checkers make of a user's code: read by mypy and pyright, never run."""

from dataclasses import dataclass
from typing import Any, assert_type

import gaman
from gaman import App, Context, Response, define_integration, define_routes
from gaman.session import Driver, OwnedSession, OwnerDriver, Session, SessionIntegration, session
from gaman_session.drivers.memory import MemoryDriver


@dataclass
class User:
    id: int
    name: str


@dataclass
class Deps:
    greeting: str


async def typed_session(ctx: Context) -> Response:
    assert_type(ctx.session, Session)
    assert_type(await ctx.session.get("user"), Any)
    assert_type(await ctx.session.get("user", type=User), User | None)
    assert_type(await ctx.session.get("count", 0, type=int), int)
    assert_type(await ctx.session.get("tags", type=list[str]), list[str] | None)
    assert_type(await ctx.session.has("user"), bool)
    assert_type(await ctx.session.update("count", lambda count: int(count) + 1, 0), int)
    assert_type(await ctx.session.all(), dict[str, Any])
    return Response.json({})


async def typed_request(ctx: Context) -> str:
    assert_type(await ctx.json(type=User), User)
    assert_type(await ctx.json(), Any)
    assert_type(ctx.param("id"), str | None)
    assert_type(ctx.query.get("a"), str | None)
    assert_type(await ctx.inputs("a"), list[str])
    return "done"


async def guard(ctx: Context) -> Response | None:
    return None if await ctx.session.has("user") else Response.redirect("/login")


class Greeter:
    async def __call__(self, ctx: Context) -> dict[str, str]:
        return {"hello": ctx.params["name"]}


def routes_of(deps: Deps) -> dict[str, Any]:
    async def greet(ctx: Context) -> str:
        return deps.greeting

    return {"/greet": greet}


def on_request(ctx: Context) -> None:
    ctx.locals["began"] = 1


async def on_response(ctx: Context, response: Response) -> Response:
    return response


async def on_load(app: App) -> None: ...


timing = define_integration(name="timing", on_load=on_load, on_request=on_request, on_response=on_response)
driver: Driver = MemoryDriver(max_sessions=10)
table = define_routes(
    {"/": typed_session, "/admin/*": [guard], "/users": {"GET": typed_request, "POST": [guard, typed_request], "/:name": Greeter()}}
)
sessions = session(driver={"type": "memory"}, max_sessions_per_owner=3)


async def typed_owners(ctx: Context) -> Response:
    await ctx.session.tag("user:1", note={"device": "a phone"})
    await ctx.session.tag(None)
    assert_type(sessions, SessionIntegration)
    assert_type(await sessions.list("user:1"), list[OwnedSession])
    assert_type(await sessions.end("handle"), bool)
    assert_type(await sessions.end_all("user:1", keep=ctx.session), int)
    assert_type(await sessions.count(), int)
    return Response.json({})


owning: OwnerDriver = MemoryDriver()
app = App(table, integrations=[timing, session("secret", driver), session(driver={"type": "memory", "max_sessions": 5})])
bound = App(define_routes(routes_of), deps=Deps("hello"))
lazy = define_routes(lambda: {"/": typed_session})
with_deps = define_routes(lambda deps: {"/": guard})


def main() -> None:
    gaman.serve(table, integrations=[session(secret=["new", "old"], secure=False)], workers=2)
