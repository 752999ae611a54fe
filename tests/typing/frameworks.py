"""A user's applications in FastAPI, Starlette and Litestar: read by mypy and pyright, never run."""

from collections.abc import AsyncGenerator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any, assert_type

from fastapi import Depends, FastAPI, HTTPException, WebSocket
from litestar import Litestar
from litestar import Request as LitestarRequest
from litestar import get as litestar_get
from litestar.middleware import DefineMiddleware
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket as StarletteWebSocket

from gaman.session import OwnedSession, SessionIntegration
from gaman.session.asgi import Session, SessionMiddleware, get_session, session

sessions = session(driver={"type": "redis", "url": "redis://localhost"}, idle_timeout=1800)
assert_type(sessions, SessionIntegration)


@dataclass
class User:
    id: int
    name: str


# FastAPI

CurrentSession = Annotated[Session, Depends(get_session)]


async def find_user(current: CurrentSession) -> User:
    user = await current.get("user", type=User)
    assert_type(user, User | None)
    if user is None:
        raise HTTPException(401)
    return user


CurrentUser = Annotated[User, Depends(find_user)]


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncGenerator[None]:
    async with sessions.running():
        assert_type(await sessions.count(), int)
        yield


api = FastAPI(lifespan=lifespan, middleware=[Middleware(SessionMiddleware, sessions=sessions)])
api.add_middleware(SessionMiddleware, sessions=sessions)
api.add_middleware(SessionMiddleware, sessions=sessions, as_dict=True)


@api.post("/login")
async def login(current: CurrentSession) -> dict[str, str]:
    assert_type(current, Session)
    await current.login("user:1", max_age=3600, note="Firefox")
    await current.set("user", User(1, "Angga"))
    return {"status": "logged in"}


async def is_recent(current: CurrentSession) -> None:
    assert_type(await current.owner(), str | None)
    if not await current.is_fresh(300, level=2):
        raise HTTPException(303, headers={"location": "/confirm"})


@api.post("/confirm")
async def confirm(current: CurrentSession) -> str:
    await current.confirm(2)
    assert_type(current.authenticated_at, datetime | None)
    return await current.csrf_token()


@api.post("/logout", dependencies=[Depends(is_recent)])
async def logout(current: CurrentSession) -> None:
    await current.logout()


@api.get("/profile")
def profile(user: CurrentUser) -> str:
    return user.name


@api.get("/default")
async def default(current: Session = Depends(get_session)) -> int:  # noqa: B008 - an older form of FastAPI
    return await current.update("visits", lambda visits: int(visits) + 1, 0)


@api.get("/devices")
async def devices(user: CurrentUser, current: CurrentSession) -> list[Any]:
    listed = await sessions.list(f"user:{user.id}")
    assert_type(listed, list[OwnedSession])
    assert_type(await sessions.end_all("user:1", keep=current), int)
    return [each.note for each in listed]


@api.websocket("/ws")
async def talk(websocket: WebSocket, current: CurrentSession) -> None:
    await websocket.accept()
    assert_type(await current.get("user", User(0, "a visitor"), type=User), User)
    await current.set("seen", 1)
    await current.save()


# Starlette


async def home(request: Request) -> JSONResponse:
    current = await get_session(request)
    assert_type(current, Session)
    await current.set("path", request.url.path)
    return JSONResponse({"user": await current.get("user"), "new": current.is_new})


async def as_dict(request: Request) -> JSONResponse:
    request.session["user"] = 1
    request.session.setdefault("cart", []).append("coffee")
    return JSONResponse({"user": request.session.get("user")})


async def chat(websocket: StarletteWebSocket) -> None:
    current = await get_session(websocket)
    await websocket.accept()
    await websocket.send_json(await current.all())


async def anything_with_a_scope(connection: HTTPConnection) -> str | None:
    return (await get_session(connection)).id


routes = [Route("/", home), Route("/dict", as_dict), WebSocketRoute("/ws", chat), Mount("/api", api)]
site = Starlette(routes=routes, middleware=[Middleware(SessionMiddleware, sessions=sessions, as_dict=True)])
site.add_middleware(SessionMiddleware, sessions=sessions)
wrapped = SessionMiddleware(site, sessions=sessions)
twice = SessionMiddleware(SessionMiddleware(api, sessions=sessions), sessions=sessions, as_dict=True)


# Litestar


@litestar_get("/")
async def in_litestar(request: LitestarRequest[Any, Any, Any]) -> dict[str, Any]:
    current = await get_session(request)
    assert_type(current, Session)
    return {"user": await current.get("user")}


def opened(_: Litestar) -> AbstractAsyncContextManager[None]:
    return sessions.running()


litestar = Litestar([in_litestar], middleware=[DefineMiddleware(SessionMiddleware, sessions=sessions)], lifespan=[opened])
whole = SessionMiddleware(litestar, sessions=sessions)
