"""The session's four basic calls: set, get, has and delete."""

import os
import secrets

import gaman
from gaman import Context, Response, define_routes
from gaman.session import session


async def set_values(ctx: Context) -> Response:
    await ctx.session.set("user", {"id": 1, "name": "Angga"})
    await ctx.session.set("token", "abc123")
    await ctx.session.set("preferences", {"theme": "dark", "lang": "en"})
    await ctx.session.set("userId", 123)
    return Response.json({"status": "set"})


async def get_values(ctx: Context) -> Response:
    user = await ctx.session.get("user")
    token = await ctx.session.get("token")
    preferences = await ctx.session.get("preferences")
    user_id = await ctx.session.get("userId")

    if user:
        print(user["name"])
    return Response.json({"user": user, "token": token, "preferences": preferences, "userId": user_id})


async def has_user(ctx: Context) -> Response:
    if await ctx.session.has("user"):
        return Response.json({"hasUser": True})
    return Response.json({"hasUser": False})


async def delete_values(ctx: Context) -> Response:
    await ctx.session.delete("token")
    await ctx.session.delete("user")
    return Response.json({"status": "deleted"})


async def home(ctx: Context) -> Response:
    return Response.html("".join(f'<p><a href="{path}">{path}</a></p>' for path in PATHS))


# Each path takes any method, so that you can try it in an address bar. In your application, let only POST change things.
PATHS = {"/set": set_values, "/get": get_values, "/has": has_user, "/delete": delete_values}
routes = define_routes({"/": home, **PATHS})

if __name__ == "__main__":
    gaman.serve(
        routes,
        integrations=[session(secret=os.environ.get("GAMAN_KEY") or secrets.token_urlsafe(32))],
        port=int(os.environ.get("PORT", "3431")),
    )
