"""The session's workflow: log in, see the profile, check, log out. Run it with `make demo`, or as `python examples/workflow.py`."""

import os
import secrets
from pathlib import Path

import gaman
from gaman import Context, Response, define_integration, define_routes
from gaman.session import session


async def login(ctx: Context) -> Response:
    # Simulate login: a real one looks at a password first.
    user = {"id": 1, "name": "Angga", "email": "angga@example.com"}

    await ctx.session.regenerate()  # a new id at login, so that one known from before is worth nothing
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
    await ctx.session.clear()  # the whole session goes, and its cookie with it

    return Response.json({"status": "logged out"})


async def page(ctx: Context) -> Response:
    return Response.file(Path(__file__).with_suffix(".html"))


def reveal(ctx: Context, response: Response) -> None:
    """Tell the page of its cookie what no script can see there: whether it came, and how it is set; never its value."""
    response.headers["x-cookie-came"] = "yes" if "gaman=" in ctx.headers.get("cookie", "") else "no"
    for _, line in ctx.cookies.fields():
        name, _, value_and_attributes = line.decode().partition("=")
        response.headers["x-cookie-set"] = f"{name}=...;{value_and_attributes.partition(';')[2]}"


# Here each path takes any method, so that you can try it in an address bar too. In your application, what changes something takes
# POST only, `"/login": {"POST": login}`, because any page can make a browser send a GET.
routes = define_routes({"/": page, "/login": login, "/profile": profile, "/check": check, "/logout": logout})

# Sessions are sealed with a secret. Without one in GAMAN_KEY, this makes one up at each start, and so forgets who was logged in;
# an application of yours should have its own, which `gaman key` makes.
secret = os.environ.get("GAMAN_KEY") or secrets.token_urlsafe(32)

# Only for the page. It comes before session(), so its on_response comes after, when the cookie is known.
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
    # Safari keeps no Secure cookie over http://localhost: for it, pass secure=False while you develop.
    gaman.serve(routes, integrations=[page_helper, session(secret=secret, driver={"type": "cookies"})], port=port)
