"""The page of `make demo`: the workflow, and three promises of sessions in a store, each with a button.

`make demo DRIVER=file` keeps the sessions in files. `make demo DRIVER=cookies` shows what sessions without a store can't promise.
"""

import asyncio
import os
from pathlib import Path
from typing import Any

import gaman
from gaman import Context, HTTPError, Response, define_integration, define_routes
from gaman.headers import headers
from gaman.session import session
from workflow import check, login, logout, profile, secret

DRIVER = os.environ.get("DRIVER", "memory")
HAS_STORE = DRIVER != "cookies"
OWNER = "user:1"  # the user of the workflow's login

# Safari drops Secure cookies over http://localhost: pass secure=False during development with it.
sessions = session(secret=secret, driver={"type": DRIVER})


# The first promise: concurrent requests never undo each other's changes.


async def empty_cart(ctx: Context) -> dict[str, Any]:
    # The counter begins the session. Without one, each of two concurrent requests would begin its own.
    await ctx.session.set("count", 0)
    for item in await items_of(ctx):
        await ctx.session.delete(f"cart:{item}")
    return await show_cart(ctx)


async def add_to_cart(ctx: Context) -> dict[str, Any]:
    """Read the cart, work for half a second, and add an item under its own key."""
    saw = await items_of(ctx)
    await asyncio.sleep(0.5)
    await ctx.session.set(f"cart:{ctx.params['item']}", 1)
    return {"saw": saw}


async def count(ctx: Context) -> dict[str, Any]:
    """Count by `update`, which is atomic, although the request has read the session a moment before."""
    await ctx.session.get("count")
    await asyncio.sleep(0.1)
    return {"count": await ctx.session.update("count", lambda number: number + 1, default=0)}


async def show_cart(ctx: Context) -> dict[str, Any]:
    return {"items": await items_of(ctx), "count": await ctx.session.get("count", 0)}


async def items_of(ctx: Context) -> list[str]:
    return sorted(key.removeprefix("cart:") for key in await ctx.session.all() if key.startswith("cart:"))


# The second promise: a logout is final, for requests in flight too.


async def write_late(ctx: Context) -> dict[str, Any]:
    """Read the session, work for a second, and write. If a logout has ended the session meanwhile, the write is dropped."""
    user = await ctx.session.get("user")
    await asyncio.sleep(1)
    await ctx.session.set("late", True)
    return {"user": user}


# The third promise: all sessions of a user can be listed, and ended at once.


async def log_in(ctx: Context) -> Response:
    """Log in as the workflow does, and note the device for the list of the user's sessions."""
    response = await login(ctx)
    if HAS_STORE:
        await ctx.session.set_owner(OWNER, note=f"{browser(ctx.header('user-agent') or '')} at {ctx.host}")
    return response


async def status(ctx: Context) -> dict[str, Any]:
    owner = await ctx.session.owner()
    owned = await sessions.list(owner) if owner is not None and HAS_STORE else []
    devices = [{"name": each.note, "here": each.handle == ctx.session.id} for each in owned]
    return {"driver": DRIVER, "loggedIn": owner is not None, "devices": devices}


async def log_out_everywhere(ctx: Context) -> dict[str, Any]:
    owner = await ctx.session.owner()
    if owner is None:
        raise HTTPError(401, "log in first")
    if not HAS_STORE:
        raise HTTPError(501, "the cookies driver has no store, so it finds no session but the request's own")
    ended = await sessions.end_all(owner)
    await ctx.session.logout()  # removes the cookie as well
    return {"ended": ended}


def browser(agent: str) -> str:
    """Return a short name for a User-Agent. Many browsers name others as well, so the order counts."""
    return next((name for name in ("Edg", "Firefox", "Chrome", "Safari", "curl") if name in agent), "Another browser")


# The page, and the guide to read on.

HERE = Path(__file__).parent
PAGE = HERE / "demo"
GUIDE = {
    "first-steps": "README.md",
    "tutorial": "examples/guide/tutorial.md",
    "sessions": "integrations/gaman_session/README.md",
    "recipes": "examples/guide/recipes.md",
    "testing": "examples/guide/testing.md",
    "security": "examples/guide/security.md",
    "asvs": "examples/guide/asvs.md",
    "deployment": "examples/guide/deployment.md",
    "frameworks": "examples/guide/frameworks.md",
    "asgi": "examples/guide/asgi.md",
    "moving": "examples/guide/moving.md",
    "scale": "examples/guide/scale.md",
    "integrations": "integrations/README.md",
}


async def page(ctx: Context) -> Response:
    return Response.file(PAGE / "index.html")


async def page_file(ctx: Context) -> Response:
    return Response.file(ctx.params["name"], root=PAGE)


async def chapter(ctx: Context) -> Response:
    if (path := GUIDE.get(ctx.params["chapter"])) is None:
        raise HTTPError(404)
    return Response.file(HERE.parent / path, content_type="text/plain; charset=utf-8")


def reveal(ctx: Context, response: Response) -> None:
    """Show the page what its scripts can't see: whether the cookie was sent, and its attributes, but never its value."""
    response.headers["x-cookie-came"] = "yes" if "gaman=" in ctx.headers.get("cookie", "") else "no"
    for _, line in ctx.cookies.fields():
        name, _, value_and_attributes = line.decode().partition("=")
        response.headers["x-cookie-set"] = f"{name}=...;{value_and_attributes.partition(';')[2]}"


# It is listed before the sessions, so its on_response runs after they have set their cookie.
page_helper = define_integration(name="page helper", priority="very-high", on_response=reveal)

# Scripts and styles come only from this server, and no other site may frame the page. Its icon is empty, and written in the page.
security = headers(csp={"img_src": ["data:"]})

routes = define_routes(
    {
        "/": page,
        "/page/:name": page_file,
        "/guide/:chapter": chapter,
        "/login": log_in,
        "/profile": profile,
        "/check": check,
        "/logout": logout,
        "/cart": {"GET": show_cart, "DELETE": empty_cart, "/:item": {"POST": add_to_cart}},
        "/count": {"POST": count},
        "/late": {"POST": write_late},
        "/status": status,
        "/logout-everywhere": {"POST": log_out_everywhere},
    }
)

if __name__ == "__main__":
    port = int(os.environ.get("PORT", "3431"))
    print(f"\n  Open http://localhost:{port} in a browser. Sessions are kept by the {DRIVER} driver. Ctrl+C ends it.\n")
    gaman.serve(routes, integrations=[security, page_helper, sessions], port=port)
