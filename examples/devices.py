"""An account with its devices: a user confirms the login before ending them, and another site's requests are refused."""

import os
import secrets
from html import escape

import gaman
from gaman import Context, HTTPError, Response, define_routes
from gaman.headers import NONCE, headers
from gaman.session import OwnedSession, require_fresh, session

# `idle_timeout` makes `last_used_at` available.
sessions = session(
    secret=os.environ.get("GAMAN_KEY") or secrets.token_urlsafe(32),
    driver={"type": "memory"},
    max_age=30 * 86400,
    idle_timeout=14 * 86400,
    max_sessions_per_owner=10,
)
# A login is of level 1. Level 2 asks for the password again, even right after the login.
require_password = require_fresh(300, redirect="/confirm", level=2)

PASSWORDS = {"angga": "open sesame", "mallory": "12345"}  # in your application, a table of password hashes

PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Devices</title>
<style nonce="{nonce}">
body {{ max-width: 40rem; margin: 3rem auto; padding: 0 1rem; font-family: system-ui; }}
li {{ margin: 1rem 0; }}
form {{ display: inline; }}
</style>
<!-- The back button may show a page from the browser's memory, also after a logout. -->
<script nonce="{nonce}">addEventListener("pageshow", event => event.persisted && location.reload())</script>
{body}
</html>
"""
LOGIN = """<form method="post" action="/login">
<input name="user" value="angga"> <input name="password" type="password" value="open sesame"> <button>Log in</button></form>"""
LOGOUT = '<form method="post" action="/logout"><button>Log out</button></form>'
CONFIRM = """<h1>Is it you?</h1>
<form method="post"><input name="password" type="password" value="open sesame"> <button>Confirm</button></form>"""
OTHERS = '<form method="post" action="/devices/end-others"><button>Log out all others</button></form>'
EVERYWHERE = '<form method="post" action="/devices/end-all"><button>Log out everywhere</button></form>'
ELSEWHERE = """<!doctype html><title>Another site</title><h1>Another site</h1>
<form method="post" action="{account}/logout"><button>Log you out</button></form>
<form method="post" action="{account}/login"><input type="hidden" name="user" value="mallory">
<input type="hidden" name="password" value="12345"><button>Log you in as Mallory</button></form>"""


async def home(ctx: Context) -> Response:
    if await ctx.session.owner() is None:
        return await page(ctx, f"<h1>Log in</h1>{LOGIN}")
    link = f'<a href="{escape(other_site(ctx))}/elsewhere">another site</a>'
    return await page(ctx, f'<h1>Your account</h1><p><a href="/devices">Your devices</a><p>See what {link} can do to it.')


async def login(ctx: Context) -> Response:
    user = await ctx.input("user") or ""
    await check_password(ctx, user)
    await ctx.session.login(user, note=ctx.header("user-agent"))
    return Response.redirect("/", status=303)


async def logout(ctx: Context) -> Response:
    await ctx.session.logout()
    return Response.redirect("/", status=303)


async def require_login(ctx: Context) -> Response | None:
    return Response.redirect("/", status=303) if await ctx.session.owner() is None else None


async def confirm_form(ctx: Context) -> Response:
    return await page(ctx, CONFIRM)


async def confirm(ctx: Context) -> Response:
    await check_password(ctx, await ctx.session.owner())
    back = Response.redirect(ctx.query.get("next") or "/", status=303, local=True)
    await ctx.session.confirm(level=2)
    return back


async def devices(ctx: Context) -> Response:
    rows = "".join(row(device, ctx.session.id) for device in await sessions.list(await user_of(ctx)))
    return await page(ctx, f"<h1>Your devices</h1><ul>{rows}</ul>{OTHERS} {EVERYWHERE}")


async def end(ctx: Context) -> Response:
    handle = await ctx.input("handle")
    # The handle comes from a form, so it must be one of this user's.
    if any(device.handle == handle for device in await sessions.list(await user_of(ctx))):
        await sessions.end(str(handle))
    return Response.redirect("/devices", status=303)


async def end_others(ctx: Context) -> Response:
    await sessions.end_all(await user_of(ctx), keep=ctx.session)
    return Response.redirect("/devices", status=303)


async def end_all(ctx: Context) -> Response:
    await sessions.end_all(await user_of(ctx))
    return await logout(ctx)  # removes the cookie as well


async def elsewhere(ctx: Context) -> Response:
    """Show a page with forms that post to the account; to a browser, localhost and 127.0.0.1 are two sites."""
    html = ELSEWHERE.format(account=escape(other_site(ctx)))
    return Response.html(html, headers={"content-security-policy": "default-src 'none'"})  # headers() allows no such form


def other_site(ctx: Context) -> str:
    old, new = ("127.0.0.1", "localhost") if ctx.host.startswith("127.0.0.1") else ("localhost", "127.0.0.1")
    return f"{ctx.scheme}://{ctx.host.replace(old, new)}"


async def check_password(ctx: Context, user: str | None) -> None:
    if user is None or PASSWORDS.get(user) != await ctx.input("password"):
        raise HTTPError(403, "no such user, or another password")


async def user_of(ctx: Context) -> str:
    user = await ctx.session.owner()
    assert user is not None  # require_login has checked it
    return user


def row(device: OwnedSession, this: str | None) -> str:
    mark = " <strong>(this device)</strong>" if device.handle == this else ""
    times = f"since {device.created_at:%d %b %H:%M}, last used {device.last_used_at:%d %b %H:%M} UTC"
    button = f'<button name="handle" value="{device.handle}">Log out</button>'
    return f'<li>{escape(str(device.note))}{mark}<br>{times} <form method="post" action="/devices/end">{button}</form></li>'


async def page(ctx: Context, body: str) -> Response:
    user = await ctx.session.owner()
    # A logout on every page that needs a login
    top = "" if user is None else f"<nav>{escape(user)} {LOGOUT}</nav>"
    return Response.html(PAGE.format(body=top + body, nonce=ctx.locals["csp_nonce"]))


routes = define_routes(
    {
        "/": {"GET": home},
        "/login": {"POST": login},
        "/logout": {"POST": logout},
        "/confirm": {"*": require_login, "GET": confirm_form, "POST": confirm},
        "/devices": {
            "*": [require_login, require_password],
            "GET": devices,
            "/end": {"POST": end},
            "/end-others": {"POST": end_others},
            "/end-all": {"POST": end_all},
        },
        "/elsewhere": {"GET": elsewhere},
    }
)

if __name__ == "__main__":
    port = int(os.environ.get("PORT", "3431"))
    print(f"\n  Open http://localhost:{port} in two browsers, or in one and its private window, and log in with both.\n")
    gaman.serve(routes, integrations=[headers(csp={"style_src": NONCE, "script_src": NONCE}), sessions], port=port)
