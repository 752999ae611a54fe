"""Sessions in Quart: a login, a cart, the user's devices, and a logout on all of them."""

import os
import secrets
from typing import Any

import uvicorn
from quart import Quart, abort, request

from gaman.session.asgi import SessionMiddleware, get_session, session

sessions = session(secret=os.environ.get("GAMAN_KEY") or secrets.token_urlsafe(32), driver={"type": "memory"})

app = Quart(__name__)
# It opens the store when the application starts, and closes it at the end.
app.asgi_app = SessionMiddleware(app.asgi_app, sessions=sessions)  # type: ignore[method-assign]  # as Quart documents


async def find_user() -> str:
    user = await (await get_session(request)).owner()
    if user is None:
        abort(401)
    return user


@app.post("/login")
async def login() -> dict[str, str]:
    # Simulate login: a real one checks a password first.
    name = request.args.get("name", "angga")
    current = await get_session(request)
    await current.login(name, note=request.headers.get("user-agent"))
    return {"status": "logged in"}


@app.get("/profile")
async def profile() -> dict[str, str]:
    return {"user": await find_user()}


@app.post("/cart/<item>")
async def add_to_cart(item: str) -> list[str]:
    current = await get_session(request)
    # One atomic step: concurrent requests don't undo each other's changes.
    return await current.update("cart", lambda cart: [*cart, item], default=[])


@app.get("/devices")
async def devices() -> list[dict[str, Any]]:
    listed = await sessions.list(await find_user())
    here = (await get_session(request)).id
    return [{"device": each.note, "here": each.handle == here} for each in listed]


@app.post("/logout-everywhere")
async def log_out_everywhere() -> dict[str, int]:
    ended = await sessions.end_all(await find_user())
    await (await get_session(request)).logout()  # removes the cookie as well
    return {"ended": ended}


@app.post("/logout")
async def logout() -> dict[str, str]:
    await (await get_session(request)).logout()
    return {"status": "logged out"}


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "3431")))
