"""Sessions in Starlette: a login, a cart, the user's devices, and a logout on all of them."""

import os
import secrets

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from gaman.session.asgi import SessionMiddleware, get_session, session

sessions = session(secret=os.environ.get("GAMAN_KEY") or secrets.token_urlsafe(32), driver={"type": "memory"})


async def find_user(request: Request) -> str:
    user = await (await get_session(request)).owner()
    if user is None:
        raise HTTPException(401, "log in first")
    return user


async def login(request: Request) -> JSONResponse:
    # Simulate login: a real one checks a password first.
    name = request.query_params.get("name", "angga")
    current = await get_session(request)
    await current.login(name, note=request.headers.get("user-agent"))
    return JSONResponse({"status": "logged in"})


async def profile(request: Request) -> JSONResponse:
    return JSONResponse({"user": await find_user(request)})


async def add_to_cart(request: Request) -> JSONResponse:
    item = request.path_params["item"]
    current = await get_session(request)
    # One atomic step: concurrent requests don't undo each other's changes.
    return JSONResponse(await current.update("cart", lambda cart: [*cart, item], default=[]))


async def devices(request: Request) -> JSONResponse:
    listed = await sessions.list(await find_user(request))
    here = (await get_session(request)).id
    return JSONResponse([{"device": each.note, "here": each.handle == here} for each in listed])


async def log_out_everywhere(request: Request) -> JSONResponse:
    ended = await sessions.end_all(await find_user(request))
    await (await get_session(request)).logout()  # removes the cookie as well
    return JSONResponse({"ended": ended})


async def logout(request: Request) -> JSONResponse:
    await (await get_session(request)).logout()
    return JSONResponse({"status": "logged out"})


app = Starlette(
    routes=[
        Route("/login", login, methods=["POST"]),
        Route("/profile", profile),
        Route("/cart/{item}", add_to_cart, methods=["POST"]),
        Route("/devices", devices),
        Route("/logout-everywhere", log_out_everywhere, methods=["POST"]),
        Route("/logout", logout, methods=["POST"]),
    ],
    # It opens the store when the application starts, and closes it at the end.
    middleware=[Middleware(SessionMiddleware, sessions=sessions)],
)

if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "3431")))
