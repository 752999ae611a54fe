"""Sessions in Falcon: a login, a cart, the user's devices, and a logout on all of them."""

import os
import secrets

import uvicorn
from falcon import HTTPUnauthorized
from falcon.asgi import App, Request, Response

from gaman.session.asgi import SessionMiddleware, get_session, session

sessions = session(secret=os.environ.get("GAMAN_KEY") or secrets.token_urlsafe(32), driver={"type": "memory"})


async def find_user(request: Request) -> str:
    user = await (await get_session(request)).owner()
    if user is None:
        raise HTTPUnauthorized(description="log in first")
    return user


class Login:
    async def on_post(self, request: Request, response: Response) -> None:
        # Simulate login: a real one checks a password first.
        name = request.get_param("name", default="angga")
        current = await get_session(request)
        await current.login(name, note=request.user_agent)
        response.media = {"status": "logged in"}


class Profile:
    async def on_get(self, request: Request, response: Response) -> None:
        response.media = {"user": await find_user(request)}


class Cart:
    async def on_post(self, request: Request, response: Response, item: str) -> None:
        current = await get_session(request)
        # One atomic step: concurrent requests don't undo each other's changes.
        response.media = await current.update("cart", lambda cart: [*cart, item], default=[])


class Devices:
    async def on_get(self, request: Request, response: Response) -> None:
        listed = await sessions.list(await find_user(request))
        here = (await get_session(request)).id
        response.media = [{"device": each.note, "here": each.handle == here} for each in listed]


class LogoutEverywhere:
    async def on_post(self, request: Request, response: Response) -> None:
        response.media = {"ended": await sessions.end_all(await find_user(request))}
        await (await get_session(request)).logout()  # removes the cookie as well


class Logout:
    async def on_post(self, request: Request, response: Response) -> None:
        await (await get_session(request)).logout()
        response.media = {"status": "logged out"}


falcon_app = App()
falcon_app.add_route("/login", Login())
falcon_app.add_route("/profile", Profile())
falcon_app.add_route("/cart/{item}", Cart())
falcon_app.add_route("/devices", Devices())
falcon_app.add_route("/logout-everywhere", LogoutEverywhere())
falcon_app.add_route("/logout", Logout())

# It opens the store when the application starts, and closes it at the end.
app = SessionMiddleware(falcon_app, sessions=sessions)

if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "3431")))
