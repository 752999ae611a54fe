"""Sessions in Litestar: a login, a cart, the user's devices, and a logout on all of them."""

import os
import secrets
from typing import Any

import uvicorn
from litestar import Litestar, Request, get, post
from litestar.di import Provide
from litestar.exceptions import NotAuthorizedException
from litestar.middleware import DefineMiddleware

from gaman.session.asgi import Session, SessionMiddleware, get_session, session

sessions = session(secret=os.environ.get("GAMAN_KEY") or secrets.token_urlsafe(32), driver={"type": "memory"})


async def find_session(request: Request[Any, Any, Any]) -> Session:
    return await get_session(request)


async def find_user(current: Session) -> str:
    user = await current.owner()
    if user is None:
        raise NotAuthorizedException("log in first")
    return user


@post("/login")
async def login(request: Request[Any, Any, Any], current: Session, name: str = "angga") -> dict[str, str]:
    # Simulate login: a real one checks a password first.
    await current.login(name, note=request.headers.get("user-agent"))
    return {"status": "logged in"}


@get("/profile")
async def profile(user: str) -> dict[str, str]:
    return {"user": user}


@post("/cart/{item:str}")
async def add_to_cart(item: str, current: Session) -> list[str]:
    # One atomic step: concurrent requests don't undo each other's changes.
    return await current.update("cart", lambda cart: [*cart, item], default=[])


@get("/devices")
async def devices(user: str, current: Session) -> list[dict[str, Any]]:
    listed = await sessions.list(user)
    return [{"device": each.note, "here": each.handle == current.id} for each in listed]


@post("/logout-everywhere")
async def log_out_everywhere(user: str, current: Session) -> dict[str, int]:
    ended = await sessions.end_all(user)
    await current.logout()  # removes the cookie as well
    return {"ended": ended}


@post("/logout")
async def logout(current: Session) -> dict[str, str]:
    await current.logout()
    return {"status": "logged out"}


app = Litestar(
    [login, profile, add_to_cart, devices, log_out_everywhere, logout],
    dependencies={"current": Provide(find_session), "user": Provide(find_user)},
    middleware=[DefineMiddleware(SessionMiddleware, sessions=sessions)],
    # Litestar's middleware doesn't see the start of the application, so this opens the store, and closes it at the end.
    lifespan=[lambda app: sessions.running()],
)

if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "3431")))
