"""A page that lists the devices of an account, and logs out one of them or all others."""

import os
import secrets
from html import escape

import gaman
from gaman import Context, Response, define_routes
from gaman.session import OwnedSession, session

# `idle_timeout` makes `last_used_at` available.
sessions = session(
    secret=os.environ.get("GAMAN_KEY") or secrets.token_urlsafe(32),
    driver={"type": "memory"},
    max_age=30 * 86400,
    idle_timeout=14 * 86400,
    max_sessions_per_owner=10,
)

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Devices</title>
<style>body {{ max-width: 40rem; margin: 3rem auto; padding: 0 1rem; font-family: system-ui; }} li {{ margin: 1rem 0; }}</style>
{}
</html>
"""


async def home(ctx: Context) -> Response:
    user = await ctx.session.owner()
    if user is None:
        return page('<form method="post" action="/login"><input name="user" value="angga"> <button>Log in</button></form>')
    devices = "".join(row(device, ctx.session.id) for device in await sessions.list(user))
    others = '<form method="post" action="/end-others"><button>Log out all others</button></form>'
    return page(f"<h1>Devices of {escape(user)}</h1><ul>{devices}</ul>{others}")


async def login(ctx: Context) -> Response:
    # Simulate login: a real one checks a password first.
    await ctx.session.login(await ctx.input("user") or "angga", note=ctx.header("user-agent"))
    return Response.redirect("/", status=303)


async def end(ctx: Context) -> Response:
    user, handle = await ctx.session.owner(), await ctx.input("handle")
    # The handle comes from a form, so it must be one of this user's.
    if user is not None and any(device.handle == handle for device in await sessions.list(user)):
        await sessions.end(str(handle))
    return Response.redirect("/", status=303)


async def end_others(ctx: Context) -> Response:
    user = await ctx.session.owner()
    if user is not None:
        await sessions.end_all(user, keep=ctx.session)
    return Response.redirect("/", status=303)


def row(device: OwnedSession, this: str | None) -> str:
    mark = " <strong>(this device)</strong>" if device.handle == this else ""
    times = f"since {device.created_at:%d %b %H:%M}, last used {device.last_used_at:%d %b %H:%M} UTC"
    button = f'<button name="handle" value="{device.handle}">Log out</button>'
    return f'<li>{escape(str(device.note))}{mark}<br>{times}<form method="post" action="/end">{button}</form></li>'


def page(body: str) -> Response:
    return Response.html(PAGE.format(body))


routes = define_routes(
    {"/": home, "/login": {"POST": login}, "/end": {"POST": end}, "/end-others": {"POST": end_others}},
)

if __name__ == "__main__":
    port = int(os.environ.get("PORT", "3431"))
    print(f"\n  Open http://localhost:{port} in two browsers, or in one and its private window, and log in with both.\n")
    gaman.serve(routes, integrations=[sessions], port=port)
