"""A request has one session, however many Apps and middlewares with the same sessions it passes."""

from __future__ import annotations

import gc
import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware.base import RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Mount
from starlette.websockets import WebSocket

from gaman import App, ConfigError, Context, HTTPError, Integration, Middleware, mount
from gaman.session import SessionIntegration
from gaman.session.asgi import Session, SessionMiddleware, get_session
from gaman_session._connection import Connection
from tests.session.sites import Recording
from tests.session.visitors import Visitor, add_inside, answering, sessions_in, starlette

pytestmark = pytest.mark.anyio

# The inner application, in gaman, in Starlette and with the dict. /login sets the user, and returns what the outer one has set.


async def _login_in_gaman(ctx: Context) -> Any:
    await ctx.session.set("user", 1)
    return {"outer": await ctx.session.get("outer")}


async def _fail_in_gaman(ctx: Context) -> None:
    await ctx.session.set("user", 1)
    raise ValueError("a bug")


async def _refuse_in_gaman(ctx: Context) -> None:
    await ctx.session.set("user", 1)
    raise HTTPError(404)


async def _login(request: Request) -> Any:
    current = await get_session(request)
    await current.set("user", 1)
    return {"outer": await current.get("outer")}


async def _login_in_dict(request: Request) -> Any:
    request.session["user"] = 1
    return {"outer": request.session.get("outer")}


async def _fail(request: Request) -> None:
    await _login(request)
    raise ValueError("a bug")


async def _refuse(request: Request) -> None:
    await _login(request)
    raise HTTPError(404)


async def _gaman(sessions: SessionIntegration) -> Any:
    app = App({"/login": _login_in_gaman, "/fail": _fail_in_gaman, "/refuse": _refuse_in_gaman}, integrations=[sessions])
    await app.load()
    return app


async def _starlette(sessions: SessionIntegration) -> Any:
    return starlette(sessions, login=answering(_login), fail=answering(_fail), refuse=answering(_refuse))


async def _starlette_dict(sessions: SessionIntegration) -> Any:
    return starlette(sessions, as_dict=True, login=answering(_login_in_dict), fail=answering(_fail), refuse=answering(_refuse))


INSIDE: Any = {"gaman": _gaman, "starlette": _starlette, "starlette, as_dict": _starlette_dict}

# The outer application sets a key in every request.


async def _in_gaman(inner: Any, sessions: SessionIntegration) -> Any:
    async def begin(ctx: Context) -> None:
        await ctx.session.set("outer", 1)

    async def read(ctx: Context) -> Any:
        return await ctx.session.all()

    routes: dict[str, Any] = {"/inner/*": mount(inner), "/all": read}
    app = App(routes, integrations=[sessions, Integration(name="outer", on_request=begin)])
    await app.load()
    return app


async def _read(request: Request) -> Any:
    return await (await get_session(request)).all()


async def _begin(request: Request, call_next: RequestResponseEndpoint) -> Response:
    await (await get_session(request)).set("outer", 1)
    return await call_next(request)


async def _in_starlette(inner: Any, sessions: SessionIntegration) -> Any:
    app = starlette(sessions, all=answering(_read))
    app.router.routes.append(Mount("/inner", inner))
    add_inside(app, _begin)
    return app


async def _in_others(inner: Any, sessions: SessionIntegration) -> Any:
    """Between the two, there is a middleware with other sessions."""
    return await _in_starlette(SessionMiddleware(inner, sessions=sessions_in(cookie_name="other")), sessions)


async def _in_middleware_of_an_app(inner: Any, sessions: SessionIntegration) -> Any:
    async def read(ctx: Context) -> Any:
        return await ctx.session.all()

    class Beginning:
        def __init__(self, app: Any) -> None:
            self._app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                await (await get_session(Request(scope))).set("outer", 1)
            await self._app(scope, receive, send)

    app = App(
        {"/inner/*": mount(inner), "/all": read},
        integrations=[sessions],
        middleware=[Middleware(SessionMiddleware, sessions=sessions), Middleware(Beginning)],
    )
    await app.load()
    return app


OUTSIDE: Any = {
    "gaman": _in_gaman,
    "starlette": _in_starlette,
    "other sessions": _in_others,
    "middleware of gaman": _in_middleware_of_an_app,
}

each_inside = pytest.mark.parametrize("inside", INSIDE.values(), ids=INSIDE)
each_outside = pytest.mark.parametrize("outside", OUTSIDE.values(), ids=OUTSIDE)


async def _make(driver: Any, inside: Any, outside: Any) -> Visitor:
    sessions = sessions_in(driver)
    return Visitor(await outside(await inside(sessions), sessions))


@each_inside
@each_outside
async def test_two_applications_with_the_same_sessions_share_one_session(inside: Any, outside: Any) -> None:
    driver = Recording()
    visitor = await _make(driver, inside, outside)
    first = await visitor.get("/inner/login")
    assert (first.status, len(first.cookies)) == (200, 1)
    assert driver.events.count("create") == 1
    if inside is not _starlette_dict:
        assert first.json == {"outer": 1}
    assert (await visitor.get("/all")).json == {"outer": 1, "user": 1}
    second = await visitor.get("/inner/login")
    assert (second.json, second.cookies) == ({"outer": 1}, [])


@each_inside
@each_outside
async def test_an_error_of_the_inner_application_undoes_the_request(inside: Any, outside: Any) -> None:
    driver = Recording()
    visitor = await _make(driver, inside, outside)
    assert (await visitor.get("/inner/fail")).status == 500
    assert (await visitor.get("/inner/fail")).cookies == []
    assert "create" not in driver.events
    refused = await visitor.get("/inner/refuse")
    assert (refused.status, len(refused.cookies)) == (404, 1)
    assert (await visitor.get("/all")).json == {"outer": 1, "user": 1}


@each_inside
@each_outside
async def test_a_store_that_is_down_is_answered_once(inside: Any, outside: Any, caplog: pytest.LogCaptureFixture) -> None:
    driver = Recording()
    visitor = await _make(driver, inside, outside)
    await visitor.get("/inner/login")
    driver.failing = {"apply"}
    caplog.set_level(logging.ERROR)
    reply = await visitor.get("/inner/login")
    assert (reply.status, reply.cookies) == (503, [])
    assert [message["type"] for message in reply.messages] == ["http.response.start", "http.response.body"]
    assert len(caplog.records) == 1


SAME_NAME = (
    r"a SessionMiddleware around this application has another session\(\) with the cookie 'gaman' \(.*\), and one would log out "
    r"the visitors of the other; pass the same session\(\) object to both, or give one a cookie_name"
)


@each_inside
async def test_other_sessions_with_the_same_cookie_are_refused(inside: Any, caplog: pytest.LogCaptureFixture) -> None:
    visitor = Visitor(SessionMiddleware(await inside(sessions_in()), sessions=sessions_in()))
    reply = await visitor.get("/login")
    assert re.search(SAME_NAME, caplog.text if inside is _gaman else str(reply.error))
    assert (reply.status == 500) if inside is _gaman else isinstance(reply.error, ConfigError)


async def test_a_websocket_through_two_middlewares_has_one_session() -> None:
    driver = Recording()
    sessions = sessions_in(driver)

    async def chat(socket: WebSocket) -> None:
        await (await get_session(socket)).set("user", 1)
        await socket.accept()
        await socket.send_text(str(await (await get_session(socket)).get("user")))
        await socket.receive_text()

    inner = starlette(sessions, sockets={"chat": chat})
    visitor = Visitor(SessionMiddleware(SessionMiddleware(inner, sessions=sessions_in(cookie_name="other")), sessions=sessions))
    async with visitor.connect("/chat") as socket:
        assert len(await socket.accepted()) == 1
        assert (await socket.next())["text"] == "1"
    assert driver.events.count("create") == 1


@each_inside
async def test_nested_applications_leave_nothing_to_the_garbage_collector(inside: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    # The records that pytest keeps would keep their errors.
    monkeypatch.setattr(logging.getLogger("gaman"), "disabled", True)
    visitor = await _make(Recording(), inside, _in_others)
    await visitor.get("/inner/login")
    gc.collect()
    before = _alive()
    gc.disable()
    try:
        await visitor.get("/inner/login")
        assert _alive() == before
    finally:
        gc.enable()


def _alive() -> int:
    return sum(isinstance(each, Connection | Session) for each in gc.get_objects())


@pytest.mark.parametrize("make", [_in_gaman, _in_starlette], ids=["gaman", "starlette"])
async def test_a_request_beside_the_inner_application_has_the_outer_session(make: Callable[..., Any]) -> None:
    visitor = await _make(Recording(), _gaman, make)
    await visitor.get("/inner/login")
    assert (await visitor.get("/all")).json == {"outer": 1, "user": 1}


async def test_an_app_without_middleware_or_mount_makes_its_own_session() -> None:
    sessions = sessions_in(Recording())
    inner = await _gaman(sessions)
    app = Starlette(routes=[Mount("/gaman", inner), Mount("/starlette", await _starlette(sessions))])
    visitor = Visitor(app)
    assert len((await visitor.get("/gaman/login")).cookies) == 1
    reply = await visitor.get("/starlette/login")
    assert (reply.cookies, reply.json) == ([], {"outer": None})
