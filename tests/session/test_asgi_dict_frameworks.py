"""as_dict in every framework: code in C that reads the dict, values that replace it, and changes that can't be written."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import falcon
import falcon.asgi
import litestar
import msgspec
import pytest
import quart
from fastapi import FastAPI
from litestar.background_tasks import BackgroundTask as LitestarTask
from litestar.middleware import DefineMiddleware
from litestar.middleware.session.client_side import CookieBackendConfig
from litestar.types import Empty
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware as StarlettesMiddleware
from starlette.requests import HTTPConnection, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.websockets import WebSocket
from starsessions import InMemoryStore, SessionAutoloadMiddleware
from starsessions import SessionMiddleware as StarsessionsMiddleware

from gaman.session import SessionIntegration
from gaman.session.asgi import SessionMiddleware
from gaman_session._scope_session import _calls_mark_accessed
from tests.session.visitors import Reply, Visitor, answering, sessions_in, starlette

pytestmark = pytest.mark.anyio

Work = Callable[[Any], Any]


def _run(request: Any) -> Any:
    """Run the work that the request is sent with, on the request of its framework."""
    return request.scope["work"](request)


def _litestars_run() -> Any:
    @litestar.get("/run", sync_to_thread=False)
    def run(request: litestar.Request[Any, Any, Any]) -> Any:
        return _run(request)

    return run


def _litestar(sessions: SessionIntegration, *inner: Any) -> Any:
    """Return an application with middleware *inner* inside of ours."""
    middleware = [DefineMiddleware(SessionMiddleware, sessions=sessions, as_dict=True), *inner]
    return litestar.Litestar([_litestars_run()], middleware=middleware, openapi_config=None, logging_config=None)


def _quart(sessions: SessionIntegration) -> Any:
    app: Any = quart.Quart(__name__)

    async def run() -> Any:
        return quart.Response(msgspec.json.encode(_run(quart.request)))

    app.add_url_rule("/run", "run", run)
    app.asgi_app = SessionMiddleware(app.asgi_app, sessions=sessions, as_dict=True)
    return app


def _falcon(sessions: SessionIntegration) -> Any:
    class Runner:
        async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
            resp.data = msgspec.json.encode(_run(req))

    app = falcon.asgi.App()
    app.add_route("/run", Runner())
    return SessionMiddleware(app, sessions=sessions, as_dict=True)


def _fastapi(sessions: SessionIntegration) -> Any:
    app = FastAPI()

    @app.get("/run")
    async def run(request: Request) -> Any:
        return _run(request)

    app.add_middleware(SessionMiddleware, sessions=sessions, as_dict=True)
    return app


def _starlette(sessions: SessionIntegration, *inner: Any) -> Any:
    """Return an application with middleware *inner* inside of ours."""

    async def run(request: Request) -> Response:
        return Response(msgspec.json.encode(_run(request)), background=request.scope.get("background"))

    middleware = [Middleware(SessionMiddleware, sessions=sessions, as_dict=True), *inner]
    return Starlette(routes=[Route("/run", run), Mount("/mounted", routes=[Route("/run", run)])], middleware=middleware)


def _plain(sessions: SessionIntegration) -> Any:
    """Return an application without a framework, which uses Starlette's requests."""

    async def run(scope: Any, receive: Any, send: Any) -> None:
        await Response(msgspec.json.encode(_run(Request(scope))))(scope, receive, send)

    return SessionMiddleware(run, sessions=sessions, as_dict=True)


FRAMEWORKS = {
    "litestar": _litestar,
    "quart": _quart,
    "falcon": _falcon,
    "fastapi": _fastapi,
    "starlette": _starlette,
    "none": _plain,
}
OF_STARLETTE = ("fastapi", "starlette")
each_framework = pytest.mark.parametrize("framework", FRAMEWORKS)


def _dict_of(request: Any) -> Any:
    """Return the session as the framework's users take it."""
    return request.session if isinstance(request, (Request, litestar.Request)) else request.scope["session"]


async def run(visitor: Visitor, work: Work) -> Reply:
    """Return the response to a request whose handler runs *work*."""
    return await visitor.get("/run", work=work)


async def do(visitor: Visitor, work: Work) -> Any:
    """Return the result of *work*, which must succeed."""
    reply = await run(visitor, work)
    assert (reply.status, reply.error) == (200, None), reply.text
    return reply.json


def _nothing(connection: Any) -> None: ...


def _begin(visitor: Visitor, **values: Any) -> Any:
    return do(visitor, lambda request: _dict_of(request).update(values))


def _everything(visitor: Visitor) -> Any:
    return do(visitor, lambda request: dict(_dict_of(request)))


def _private(reply: Reply) -> bool:
    """Return whether the response is kept out of caches."""
    fields = (reply.headers.getall("vary"), reply.headers.getall("cache-control"))
    assert fields in ((["Cookie"], ["no-store"]), ([], []))
    return bool(fields[0])


# --- uses


@each_framework
async def test_a_dict_that_code_in_c_encodes_counts_as_a_use(framework: str) -> None:
    visitor = Visitor(FRAMEWORKS[framework](sessions_in()))
    await _begin(visitor, user=1)
    reply = await run(visitor, _dict_of)
    assert (reply.json, _private(reply)) == ({"user": 1}, True)


@each_framework
async def test_a_response_without_the_session_can_be_cached_as_far_as_that_is_known(framework: str) -> None:
    visitor = Visitor(FRAMEWORKS[framework](sessions_in()))
    assert not _private(await run(visitor, lambda request: 1))
    await _begin(visitor, user=1)
    # Only Starlette tells that a handler takes its session.
    assert _private(await run(visitor, lambda request: 1)) == (framework not in OF_STARLETTE)


@each_framework
async def test_a_change_inside_a_value_that_no_method_of_the_dict_tells_of_is_written(framework: str) -> None:
    visitor = Visitor(FRAMEWORKS[framework](sessions_in()))
    await _begin(visitor, cart=[])

    def work(request: Any) -> None:
        # Code in C reads a dict like this.
        values: dict[str, Any] = _dict_of(request)
        dict[str, Any].__getitem__(values, "cart").append("apple")

    await do(visitor, work)
    assert await _everything(visitor) == {"cart": ["apple"]}


async def test_a_mounted_application_of_another_framework_counts_as_a_use() -> None:
    mounted: Any = litestar.Litestar([_litestars_run()], openapi_config=None, logging_config=None)
    app = Starlette(
        routes=[Route("/run", answering(_run)), Mount("/inner", mounted)],
        middleware=[Middleware(SessionMiddleware, sessions=sessions_in(), as_dict=True)],
    )
    visitor = Visitor(app)
    await _begin(visitor, user=1)
    reply = await visitor.get("/inner/run", work=_dict_of)
    assert (reply.json, _private(reply)) == ({"user": 1}, True)
    assert not _private(await run(visitor, lambda request: 1))


async def test_the_response_of_an_older_starlette_counts_as_a_use(monkeypatch: pytest.MonkeyPatch) -> None:
    # It takes the session from the scope without a call.
    monkeypatch.setattr(Request, "session", property(lambda request: request.scope["session"]))
    monkeypatch.setattr(HTTPConnection, "session", property(lambda request: request.scope["session"]))
    _calls_mark_accessed.cache_clear()
    try:
        visitor = Visitor(_starlette(sessions_in()))
        await _begin(visitor, user=1)
        assert _private(await run(visitor, _dict_of))
    finally:
        _calls_mark_accessed.cache_clear()


# --- a dict that is replaced


@dataclass
class Data:
    """Litestar's set_session() takes objects like this as well."""

    user: int


REPLACED: dict[str, tuple[Any, dict[str, Any]]] = {
    "an empty dict": ({}, {}),
    "None": (None, {}),
    "Litestar's Empty": (Empty, {}),
    "another dict": ({"user": 2}, {"user": 2}),
    "a dict with one more key": ({"user": 1, "cart": [], "more": 1}, {"user": 1, "cart": [], "more": 1}),
    "a mapping": (MappingProxyType({"user": 2}), {"user": 2}),
    "a dataclass": (Data(2), {"user": 2}),
}


def _replace(values: Any) -> Work:
    def work(request: Any) -> None:
        request.scope["session"] = values

    return work


@each_framework
@pytest.mark.parametrize("replaced", REPLACED)
@pytest.mark.parametrize("driver", ["memory", "cookies"])
async def test_what_replaces_the_dict_is_written(framework: str, replaced: str, driver: str) -> None:
    visitor = Visitor(FRAMEWORKS[framework](sessions_in({"type": driver})))
    await _begin(visitor, user=1, cart=[])
    thief = visitor.again()
    values, expected = REPLACED[replaced]
    reply = await run(visitor, _replace(values))
    assert (reply.status, reply.error, _private(reply)) == (200, None, True)
    assert await _everything(visitor) == expected
    if not expected:
        assert visitor.cookies == {}
        assert driver == "cookies" or await _everything(thief) == {}


async def test_clear_session_and_set_session_of_litestar_work() -> None:
    visitor = Visitor(_litestar(sessions_in()))
    await do(visitor, lambda request: request.set_session({"user": 1}))
    assert await do(visitor, lambda request: request.session) == {"user": 1}
    await do(visitor, lambda request: request.set_session({**request.session, "cart": ["apple"]}))
    assert await do(visitor, lambda request: request.session) == {"user": 1, "cart": ["apple"]}
    thief = visitor.again()
    await do(visitor, lambda request: request.clear_session())
    assert visitor.cookies == {}
    assert await do(thief, lambda request: request.session) == {}


async def test_concurrent_requests_that_replace_the_dict_keep_each_others_keys() -> None:
    sessions = sessions_in()
    app = FastAPI()
    gate = asyncio.Barrier(8)

    @app.get("/run")
    async def write(request: Request, key: str = "") -> Any:
        if key:
            await gate.wait()
            request.scope["session"] = {**request.session, key: 1}
        return _run(request)

    app.add_middleware(SessionMiddleware, sessions=sessions, as_dict=True)
    visitor = Visitor(app)
    await _begin(visitor, start=0)
    await asyncio.gather(*(visitor.again().get(f"/run?key={n}", work=_dict_of) for n in range(8)))
    assert sorted(await _everything(visitor)) == [*map(str, range(8)), "start"]


async def test_a_session_that_a_replaced_dict_ends_is_not_written_by_a_request_in_flight() -> None:
    app = FastAPI()
    entered, leave = asyncio.Event(), asyncio.Event()

    @app.get("/run")
    async def answer(request: Request, late: bool = False) -> Any:
        if late:
            request.session["late"] = 1
            entered.set()
            await leave.wait()
        return _run(request)

    app.add_middleware(SessionMiddleware, sessions=sessions_in(), as_dict=True)
    visitor = Visitor(app)
    await _begin(visitor, user=1)
    thief, late = visitor.again(), visitor.again()
    writer = asyncio.create_task(late.get("/run?late=1", work=_nothing))
    await entered.wait()
    await do(visitor, _replace({}))
    leave.set()
    assert (await writer).status == 200
    assert await _everything(thief) == {}


async def test_a_dict_that_replaces_the_session_in_a_mount_of_the_same_application_is_written() -> None:
    visitor = Visitor(_starlette(sessions_in()))
    await _begin(visitor, user=1)
    assert (await visitor.get("/mounted/run", work=_replace({}))).status == 200
    assert await _everything(visitor) == {}


async def test_a_request_that_fails_does_not_write_what_replaces_the_dict() -> None:
    def work(request: Any) -> None:
        request.scope["session"] = {}
        raise ValueError("a bug")

    visitor = Visitor(_litestar(sessions_in()))
    await _begin(visitor, user=1)
    assert (await run(visitor, work)).status == 500
    assert await _everything(visitor) == {"user": 1}


@each_framework
async def test_what_cannot_replace_the_dict_is_an_error(framework: str, caplog: pytest.LogCaptureFixture) -> None:
    visitor = Visitor(FRAMEWORKS[framework](sessions_in()))
    await _begin(visitor, user=1)
    reply = await run(visitor, _replace([1]))
    assert (reply.status, reply.text, reply.error) == (500, "Internal Server Error", None)
    line = "SessionUseError: request.session was replaced by a list: replace it by a dict, or call its clear()"
    assert _errors(caplog) == [f"GET '/run' answered 500: {line}"]
    assert await _everything(visitor) == {"user": 1}


ANOTHER = (
    "ConfigError: request.session is the session of another middleware: remove that one, such as Starlette's SessionMiddleware, "
    "which SessionMiddleware(as_dict=True) of gaman.session.asgi replaces"
)


def _errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "gaman" and record.levelno == logging.ERROR]


class PlainSessionMiddleware:
    """Starlette's middleware as it was before its session got a class of its own."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        scope["session"] = {"user": 2}
        await self.app(scope, receive, send)


PlainSessionMiddleware.__name__ = "SessionMiddleware"
SECRET_KEY = "a secret of the tests that is long enough"
OTHERS: dict[str, Callable[[SessionIntegration], Any]] = {
    "starlette": lambda sessions: _starlette(sessions, Middleware(StarlettesMiddleware, secret_key=SECRET_KEY)),
    "an older starlette": lambda sessions: _starlette(sessions, Middleware(PlainSessionMiddleware)),
    "starsessions": lambda sessions: _starlette(
        sessions,
        Middleware(StarsessionsMiddleware, store=InMemoryStore(), lifetime=60, cookie_https_only=False),
        Middleware(SessionAutoloadMiddleware),
    ),
    "litestar": lambda sessions: _litestar(sessions, CookieBackendConfig(secret=b"0123456789abcdef").middleware),
}


@pytest.mark.parametrize("other", OTHERS)
async def test_another_middleware_inside_of_ours_is_an_error(other: str, caplog: pytest.LogCaptureFixture) -> None:
    reply = await run(Visitor(OTHERS[other](sessions_in())), lambda request: 1)
    assert (reply.status, reply.cookies) == (500, [])
    assert _errors(caplog) == [f"GET '/run' answered 500: {ANOTHER}"]


# --- changes that can't be written


UNWRITABLE: dict[str, tuple[Work, dict[str, Any], int, str]] = {
    "a value that can't be encoded": (
        lambda request: _dict_of(request).update(a=2, b=object()),
        {},
        500,
        "SessionSerializationError: the session can't keep 'b'",
    ),
    "a key that isn't text": (
        lambda request: _dict_of(request).update({1: 2}),
        {},
        500,
        "SessionUseError: a session's key is a str, not 1: write `request.session['1'] = ...`",
    ),
    "too much for a cookie": (
        lambda request: _dict_of(request).update(a=2, b="x" * 5000),
        {"driver": {"type": "cookies"}},
        500,
        "SessionTooLarge: with 'b' the session's cookie would have",
    ),
    "too much for the store": (lambda request: _dict_of(request).update(a=2, b="x" * 5000), {"max_size": 1000}, 413, ""),
}


@each_framework
@pytest.mark.parametrize("unwritable", UNWRITABLE)
async def test_a_change_that_cannot_be_written_replaces_the_response(
    framework: str, unwritable: str, caplog: pytest.LogCaptureFixture
) -> None:
    work, options, status, line = UNWRITABLE[unwritable]
    visitor = Visitor(FRAMEWORKS[framework](sessions_in(**options)))
    await _begin(visitor, a=1)
    reply = await run(visitor, work)
    assert (reply.status, reply.error, reply.cookies) == (status, None, [])
    assert [message["type"] for message in reply.messages] == ["http.response.start", "http.response.body"]
    found = _errors(caplog)
    assert len(found) == bool(line)
    assert all(each.startswith(f"GET '/run' answered 500: {line}") for each in found)
    assert await _everything(visitor) == {"a": 1}


# --- after the response


@pytest.mark.parametrize("framework", ["litestar", *OF_STARLETTE])
@pytest.mark.parametrize("replaced", [{}, {"user": 2}], ids=repr)
async def test_what_replaces_the_dict_after_the_response_is_logged_as_lost(
    framework: str, replaced: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def work(request: Any) -> Any:
        return _background(framework, lambda: _replace(replaced)(request))

    visitor = Visitor(_with_background(framework, sessions_in()))
    await _begin(visitor, user=1)
    assert (await visitor.get("/background", work=work)).error is None
    assert _errors(caplog) == [LOST]
    assert await _everything(visitor) == {"user": 1}


@pytest.mark.parametrize("framework", ["litestar", *OF_STARLETTE])
@pytest.mark.parametrize("late", ["late", object()], ids=["a value", "an object"])
async def test_a_change_inside_a_value_after_the_response_is_logged_as_lost(
    framework: str, late: Any, caplog: pytest.LogCaptureFixture
) -> None:
    visitor = Visitor(_with_background(framework, sessions_in()))
    await _begin(visitor, user=1, cart=["apple"])

    def changing(*values: Any) -> Work:
        def work(request: Any) -> Any:
            cart = _dict_of(request)["cart"]
            cart.append("pear")
            return _background(framework, lambda: cart.extend(values))

        return work

    reply = await visitor.get("/background", work=changing())
    assert (reply.error, _errors(caplog)) == (None, [])
    reply = await visitor.get("/background", work=changing(late))
    assert (reply.error, _errors(caplog)) == (None, [LOST])
    assert await _everything(visitor) == {"user": 1, "cart": ["apple", "pear", "pear"]}


LOST = "'/background' lost changes of its session; change `request.session` before the response begins"


def _background(framework: str, call: Callable[[], Any]) -> Any:
    """Return a response of the framework that is followed by *call*."""

    async def late() -> None:
        call()

    if framework == "litestar":
        return litestar.Response("done", background=LitestarTask(late))
    return PlainTextResponse("done", background=BackgroundTask(late))


def _with_background(framework: str, sessions: SessionIntegration) -> Any:
    """Return an application of the framework whose handler for /background returns the response that its work makes."""
    app = FRAMEWORKS[framework](sessions)
    if framework == "litestar":

        @litestar.get("/background", sync_to_thread=False)
        def background(request: litestar.Request[Any, Any, Any]) -> litestar.Response[str]:
            response: litestar.Response[str] = _run(request)
            return response

        app.register(background)
    else:

        async def respond(request: Request) -> Response:
            response: Response = _run(request)
            return response

        app.add_route("/background", respond)
    return app


# --- WebSockets


def _with_socket(before: Work, after: Work) -> Starlette:
    """Return an application whose WebSocket runs *before* until it is accepted, and then *after*."""

    async def socket(websocket: WebSocket) -> None:
        before(websocket)
        await websocket.accept()
        after(websocket)
        await websocket.send_text("end")

    return starlette(sessions_in(), as_dict=True, sockets={"socket": socket}, run=answering(_run))


async def test_what_replaces_the_dict_before_accept_is_written() -> None:
    visitor = Visitor(_with_socket(_replace({}), _nothing))
    await _begin(visitor, user=1)
    async with visitor.connect("/socket") as opened:
        await opened.accepted()
    assert visitor.cookies == {}


async def test_what_replaces_the_dict_after_accept_is_logged_as_lost(caplog: pytest.LogCaptureFixture) -> None:
    visitor = Visitor(_with_socket(_nothing, _replace({})))
    await _begin(visitor, user=1)
    async with visitor.connect("/socket") as opened:
        await opened.accepted()
        await opened.next()
    assert _errors(caplog) == [
        "'/socket' lost changes of its session; `websocket.session` is written by accept() only, so change it before, or take "
        "`await get_session(websocket)`"
    ]
    assert await _everything(visitor) == {"user": 1}


@pytest.mark.parametrize("can_deny", [False, True])
async def test_a_change_that_cannot_be_written_refuses_the_handshake(can_deny: bool, caplog: pytest.LogCaptureFixture) -> None:
    visitor = Visitor(_with_socket(lambda websocket: websocket.session.update(user=object()), _nothing))
    await _begin(visitor, user=1)
    async with visitor.connect("/socket", can_deny=can_deny) as opened:
        refused = await opened.next()
    assert refused["type"] == ("websocket.http.response.start" if can_deny else "websocket.close")
    assert refused.get("status", 500) == 500
    assert any("answered 500: SessionSerializationError: the session can't keep 'user'" in line for line in _errors(caplog))
    assert await _everything(visitor) == {"user": 1}
