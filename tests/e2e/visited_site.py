"""A site for the browser; the environment has the options of session() in SESSION, and a file for TLS in CERTIFICATE."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from urllib.parse import unquote_to_bytes

import uvicorn

import gaman
from gaman import Context, Response
from gaman.session import SessionTooLarge, require_same_origin, session

arrived, released = asyncio.Event(), asyncio.Event()
both = asyncio.Barrier(2)


async def home(ctx: Context) -> Response:
    return Response.html("<title>home</title>")


async def login(ctx: Context) -> str:
    max_age = ctx.query.get("max_age")
    await ctx.session.regenerate(max_age=None if max_age is None else int(max_age))
    await ctx.session.set("user", ctx.query.get("name", "Angga"))
    return "welcome"


async def profile(ctx: Context) -> Response:
    return Response.html(f"<title>profile</title>{await ctx.session.get('user', 'nobody')}")


async def cached_profile(ctx: Context) -> Response:
    """Show the time of the response, so that a test can tell a cached page from a new one."""
    user = await ctx.session.get("user", "nobody")
    return Response.html(f"{user}, {time.time()}", headers={"cache-control": "private, max-age=60"})


async def logout(ctx: Context) -> Response:
    await ctx.session.clear()
    return Response.redirect("/")


async def cookies(ctx: Context) -> str:
    """Return the raw Cookie field."""
    return ctx.header("cookie") or ""


async def send_cookie(ctx: Context) -> str:
    """Send the raw cookie of the query."""
    ctx.send_cookie(unquote_to_bytes(ctx.scope["query_string"].removeprefix(b"line=")))
    return "sent"


async def send_sized_cookie(ctx: Context) -> str:
    """Send a cookie whose name and value have the query's size in bytes."""
    try:
        ctx.cookies.set("name", "x" * (int(ctx.query["size"]) - len("name")))
    except gaman.HeaderError as error:
        return str(error)
    return "sent"


async def fill(ctx: Context) -> str:
    """Fill the session as far as possible, and return the bytes of the value."""
    fits, too_large = 0, 1 << 16
    while too_large - fits > 1:
        size = (fits + too_large) // 2
        try:
            await ctx.session.set("filling", b"x" * size)
            fits = size
        except SessionTooLarge:
            too_large = size
    return str(fits)


async def filling(ctx: Context) -> str:
    return str(len(await ctx.session.get("filling", b"")))


async def overfill(ctx: Context) -> str:
    await ctx.session.set("more", b"x" * 100)
    return "never"


async def put(ctx: Context) -> str:
    """Set a key while another request does the same."""
    await ctx.session.all()
    await both.wait()
    await ctx.session.set(ctx.params["key"], True)
    return "kept"


async def keys(ctx: Context) -> list[str]:
    return sorted(await ctx.session.all())


async def read_slowly(ctx: Context) -> str:
    user = await ctx.session.get("user", "nobody")
    arrived.set()
    await released.wait()
    return str(user)


async def write_slowly(ctx: Context) -> str:
    """Change a session that exists when the request arrives, as a page that counts visits does."""
    user = await read_slowly(ctx)
    if user != "nobody":
        await ctx.session.set("late", True)
    return user


async def wait(ctx: Context) -> str:
    """Respond as soon as a slow request has arrived."""
    await arrived.wait()
    return "it has arrived"


async def go_on(ctx: Context) -> str:
    """Let the slow request continue."""
    released.set()
    return "it continues"


routes = gaman.define_routes(
    {
        "/": home,
        "/login": login,
        "/profile": {"GET": profile, "/cached": cached_profile, "/logout": logout},
        "/logout": logout,
        "/guarded/logout": {"GET": [require_same_origin, logout]},
        "/cookies": cookies,
        "/cookie": send_cookie,
        "/size": send_sized_cookie,
        "/fill": fill,
        "/filling": filling,
        "/overfill": overfill,
        "/put/:key": put,
        "/keys": keys,
        "/slow/read": read_slowly,
        "/slow/write-if-known": write_slowly,
        "/wait": wait,
        "/go-on": go_on,
    }
)
sessions = session("a secret of the tests that is long enough", **json.loads(os.environ["SESSION"]))

if certificate := os.environ.get("CERTIFICATE"):
    listener = socket.create_server(("127.0.0.1", 0))
    print(f"listening on https://127.0.0.1:{listener.getsockname()[1]}", flush=True)
    config = uvicorn.Config(gaman.App(routes, integrations=[sessions]), ssl_certfile=certificate, log_level="warning")
    uvicorn.Server(config).run([listener])
else:
    gaman.serve(routes, integrations=[sessions], port=0)
