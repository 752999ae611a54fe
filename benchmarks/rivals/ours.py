"""The applications of gaman that the benchmarks measure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.rivals.bare import SECRET, USER
from gaman import App, Context, Integration, Table, define_routes
from gaman.session import Driver, session


async def _json(ctx: Context) -> dict[str, str]:
    return {"message": "hello"}


async def _post(ctx: Context) -> dict[str, str]:
    return {"user": ctx.params["user"], "post": ctx.params["post"]}


async def read(ctx: Context) -> dict[str, Any]:
    return {"user": await ctx.session.get("user")}


async def write(ctx: Context) -> dict[str, str]:
    await ctx.session.set("user", USER)
    return {"status": "logged in"}


async def _size(ctx: Context) -> dict[str, int]:
    return {"size": len(await ctx.session.get("value"))}


def plain(before: Sequence[str] = (), after: Sequence[str] = (), *integrations: Integration) -> App:
    """Return an application with the routes of the plain cases, and other routes *before* and *after* them."""
    requested = {"/json": {"GET": _json}, "/users/:user/posts/:post": {"GET": _post}}
    first, last = ({path.replace("{name}", ":name"): {"GET": _json} for path in paths} for paths in (before, after))
    return App(define_routes({**first, **requested, **last}), integrations=integrations)


def unused_session(before: Sequence[str] = (), after: Sequence[str] = ()) -> App:
    """Return the same application with session(), which no handler uses."""
    return plain(before, after, session(SECRET, {"type": "cookies"}))


def with_session(driver: Mapping[str, Any] | Driver, extra: Mapping[str, object] = {}) -> App:
    """Return an application with a session, in which /fill sets the user and the values of *extra*."""

    async def fill(ctx: Context) -> dict[str, str]:
        await ctx.session.set("user", USER)
        for key, value in extra.items():
            await ctx.session.set(key, value)
        return {"status": "logged in"}

    routes: Table = {"/read": {"GET": read}, "/write": {"GET": write}, "/size": {"GET": _size}, "/fill": {"GET": fill}}
    return App(define_routes(routes), integrations=[session(SECRET, driver)])
