"""A site to visit with a browser; the environment's SESSION holds the options of session(), CERTIFICATE a file for TLS."""

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
from gaman.session import SessionTooLarge, session

arrived, let_go = asyncio.Event(), asyncio.Event()
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
    """Tell when the page was made, so that one from a cache can be told from a new one."""
    user = await ctx.session.get("user", "nobody")
    return Response.html(f"{user}, {time.time()}", headers={"cache-control": "private, max-age=60"})


async def logout(ctx: Context) -> Response:
    await ctx.session.clear()
    return Response.redirect("/")


async def cookies(ctx: Context) -> str:
    """Tell what the browser has sent, octet by octet."""
    return ctx.header("cookie") or ""


async def send_cookie(ctx: Context) -> str:
    """Send a cookie that the visitor makes up, octet by octet."""
    ctx.send_cookie(unquote_to_bytes(ctx.scope["query_string"].removeprefix(b"line=")))
    return "sent"


async def send_sized_cookie(ctx: Context) -> str:
    """Send a cookie with so many bytes of name and value."""
    try:
        ctx.cookies.set("name", "x" * (int(ctx.query["size"]) - len("name")))
    except gaman.HeaderError as error:
        return str(error)
    return "sent"


async def fill(ctx: Context) -> str:
    """Put as much into the session as goes in, and tell how many bytes that were."""
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
    """Set a key, in the middle of another request that does so too."""
    await ctx.session.all()
    await both.wait()
    await ctx.session.set(ctx.params["key"], True)
    return "kept"


async def keys(ctx: Context) -> list[str]:
    return sorted(await ctx.session.all())


async def read_slowly(ctx: Context) -> str:
    user = await ctx.session.get("user", "nobody")
    arrived.set()
    await let_go.wait()
    return str(user)


async def write_slowly(ctx: Context) -> str:
    """Change a session that was there when the request came, as a page does that counts the visits of those it knows."""
    user = await read_slowly(ctx)
    if user != "nobody":
        await ctx.session.set("late", True)
    return user


async def wait(ctx: Context) -> str:
    """Answer as soon as a slow request has come in."""
    await arrived.wait()
    return "it has come"


async def go_on(ctx: Context) -> str:
    """Let the slow request go on."""
    let_go.set()
    return "it goes on"


routes = gaman.define_routes(
    {
        "/": home,
        "/login": login,
        "/profile": {"GET": profile, "/cached": cached_profile, "/logout": logout},
        "/logout": logout,
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
