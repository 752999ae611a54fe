"""The session's workflow: log in, see the profile, check, log out.

Run it with `make demo`, or with `python examples/workflow.py`.
"""

import os
import secrets
from pathlib import Path

import gaman
from gaman import Context, Response, define_integration, define_routes
from gaman.session import session


async def login(ctx: Context) -> Response:
    # Simulate login: a real one checks a password first.
    user = {"id": 1, "name": "Angga", "email": "angga@example.com"}

    await ctx.session.regenerate()  # a new id at login, so that an id known before opens nothing
    await ctx.session.set("user", user)
    await ctx.session.set("isAuthenticated", True)

    return Response.json({"status": "logged in", "user": user})


async def profile(ctx: Context) -> Response:
    if await ctx.session.has("isAuthenticated"):
        user = await ctx.session.get("user")
        return Response.json({"user": user})

    return Response.json({"error": "Not authenticated"}, status=401)


async def check(ctx: Context) -> Response:
    has_user = await ctx.session.has("user")
    is_auth = await ctx.session.get("isAuthenticated")

    return Response.json({"hasUser": has_user, "isAuthenticated": bool(is_auth)})


async def logout(ctx: Context) -> Response:
    await ctx.session.clear()  # ends the session and removes its cookie

    return Response.json({"status": "logged out"})


async def page(ctx: Context) -> Response:
    return Response.file(Path(__file__).with_suffix(".html"))


def reveal(ctx: Context, response: Response) -> None:
    """Show the page what its scripts can't see: whether the cookie was sent, and its attributes, but never its value."""
    response.headers["x-cookie-came"] = "yes" if "gaman=" in ctx.headers.get("cookie", "") else "no"
    for _, line in ctx.cookies.fields():
        name, _, value_and_attributes = line.decode().partition("=")
        response.headers["x-cookie-set"] = f"{name}=...;{value_and_attributes.partition(';')[2]}"


# Each path takes any method, so that you can try it in an address bar. In your application, let only POST change things, as in
# `"/login": {"POST": login}`, because any page can make a browser send a GET.
routes = define_routes({"/": page, "/login": login, "/profile": profile, "/check": check, "/logout": logout})

# The secret seals the sessions. Without GAMAN_KEY, each start makes a new one, which logs everyone out. Make one for your own
# application with `gaman key`.
secret = os.environ.get("GAMAN_KEY") or secrets.token_urlsafe(32)

# Only for the page. It is listed before session(), so its on_response runs after the session has set its cookie.
page_helper = define_integration(name="page helper", priority="very-high", on_response=reveal)

if __name__ == "__main__":
    port = int(os.environ.get("PORT", "3431"))
    print(f"""
  Open http://localhost:{port} in a browser, or try it by hand:

    curl -b jar -c jar -X POST http://localhost:{port}/login
    curl -b jar -c jar http://localhost:{port}/profile
    curl -b jar -c jar http://localhost:{port}/check
    curl -b jar -c jar -X POST http://localhost:{port}/logout
""")
    # Safari drops Secure cookies over http://localhost: pass secure=False during development with it.
    gaman.serve(routes, integrations=[page_helper, session(secret=secret, driver={"type": "cookies"})], port=port)
