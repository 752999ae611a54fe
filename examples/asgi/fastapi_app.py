"""Sessions in FastAPI: a login, a cart, the user's devices, and a logout on all of them."""

import os
import secrets
from typing import Annotated, Any

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request

from gaman.session.asgi import Session, SessionMiddleware, get_session, session

sessions = session(secret=os.environ.get("GAMAN_KEY") or secrets.token_urlsafe(32), driver={"type": "memory"})

app = FastAPI()
# It opens the store when the application starts, and closes it at the end.
app.add_middleware(SessionMiddleware, sessions=sessions)

CurrentSession = Annotated[Session, Depends(get_session)]


async def find_user(current: CurrentSession) -> str:
    user = await current.owner()
    if user is None:
        raise HTTPException(401, "log in first")
    return user


CurrentUser = Annotated[str, Depends(find_user)]


@app.post("/login")
async def login(request: Request, current: CurrentSession, name: str = "angga") -> dict[str, str]:
    # Simulate login: a real one checks a password first.
    await current.login(name, note=request.headers.get("user-agent"))
    return {"status": "logged in"}


@app.get("/profile")
def profile(user: CurrentUser) -> dict[str, str]:
    # A function without `async` runs in a thread, where it can't await: a dependency reads the session for it.
    return {"user": user}


@app.post("/cart/{item}")
async def add_to_cart(item: str, current: CurrentSession) -> list[str]:
    # One atomic step: concurrent requests don't undo each other's changes.
    return await current.update("cart", lambda cart: [*cart, item], default=[])


@app.get("/devices")
async def devices(user: CurrentUser, current: CurrentSession) -> list[dict[str, Any]]:
    listed = await sessions.list(user)
    return [{"device": each.note, "here": each.handle == current.id} for each in listed]


@app.post("/logout-everywhere")
async def log_out_everywhere(user: CurrentUser, current: CurrentSession) -> dict[str, int]:
    ended = await sessions.end_all(user)
    await current.logout()  # removes the cookie as well
    return {"ended": ended}


@app.post("/logout")
async def logout(current: CurrentSession) -> dict[str, str]:
    await current.logout()
    return {"status": "logged out"}


if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "3431")))
