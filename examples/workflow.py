"""The session's workflow: log in, see the profile, check, log out."""

import os
import secrets

import gaman
from gaman import Context, Response, define_routes
from gaman.session import session


async def login(ctx: Context) -> Response:
    # Simulate login: a real one checks a password first.
    user = {"id": 1, "name": "Angga", "email": "angga@example.com"}

    await ctx.session.login("user:1")  # a new id, so that an id known before opens nothing, and an owner
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
    await ctx.session.logout()  # ends the session and removes its cookie

    return Response.json({"status": "logged out"})


async def home(ctx: Context) -> Response:
    return Response.html("".join(f'<p><a href="{path}">{path}</a></p>' for path in PATHS))


# Each path takes any method, so that you can try it in an address bar. In your application, let only POST change things, as in
# `"/login": {"POST": login}`, because any page can make a browser send a GET.
PATHS = {"/login": login, "/profile": profile, "/check": check, "/logout": logout}
routes = define_routes({"/": home, **PATHS})

# The secret seals the sessions. Without GAMAN_KEY, each start makes a new one, which logs everyone out. Make one for your own
# application with `gaman key`.
secret = os.environ.get("GAMAN_KEY") or secrets.token_urlsafe(32)

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
    gaman.serve(routes, integrations=[session(secret=secret, driver={"type": "cookies"})], port=port)
