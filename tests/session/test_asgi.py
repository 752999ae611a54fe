"""SessionMiddleware and get_session, in real applications of Starlette and FastAPI."""

from __future__ import annotations

import asyncio
import gc
import logging
from typing import Annotated, Any

import anyio.from_thread
import pytest
from fastapi import Depends, FastAPI, Request
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import HTTPConnection
from starlette.responses import Response
from starlette.routing import Mount, Route

from gaman import ConfigError
from gaman.session import SessionClosed
from gaman.session.asgi import Session, SessionMiddleware, get_session
from gaman_session._connection import REQUEST_ENDED, Connection
from tests.session.sites import Recording
from tests.session.visitors import NAME, Visitor, add_inside, answering, sessions_in, starlette

pytestmark = pytest.mark.anyio

CurrentSession = Annotated[Session, Depends(get_session)]


async def _login(request: Request) -> str:
    current = await get_session(request)
    await current.set("user", 1)
    return "in"


async def _user(request: Request) -> Any:
    return await (await get_session(request)).get("user")


async def _plain(_: Request) -> str:
    return "plain"


# --- get_session


async def test_fastapi_endpoints_get_the_session_as_a_dependency() -> None:
    app = FastAPI()
    app.add_middleware(SessionMiddleware, sessions=sessions_in())

    @app.post("/login")
    async def login(current: CurrentSession) -> dict[str, str]:
        await current.regenerate()
        await current.set("user", 1)
        return {"status": "logged in"}

    @app.get("/async")
    async def read(current: CurrentSession) -> Any:
        return await current.get("user")

    @app.get("/def")
    def read_in_a_thread(current: CurrentSession) -> Any:
        async def user() -> Any:
            return await current.get("user")

        return anyio.from_thread.run(user)

    @app.post("/def")
    def write_in_a_thread(current: CurrentSession) -> None:
        current.set("user", 2)

    @app.get("/nested")
    async def nested(current: CurrentSession, user: Any = Depends(read)) -> Any:  # noqa: B008
        return [user, await current.get("user")]

    visitor = Visitor(app)
    assert (await visitor.get("/async")).json is None
    login_reply = await visitor.post("/login")
    assert login_reply.json == {"status": "logged in"}
    assert len(login_reply.cookies) == 1
    assert [(await visitor.get(target)).json for target in ("/async", "/def")] == [1, 1]
    assert (await visitor.post("/def")).status == 200
    assert (await visitor.get("/nested")).json == [2, 2]


def test_the_dependency_adds_nothing_to_the_schema() -> None:
    app = FastAPI()

    @app.get("/")
    async def read(current: CurrentSession) -> None: ...

    assert "parameters" not in app.openapi()["paths"]["/"]["get"]


async def test_get_session_takes_whatever_has_a_scope_and_returns_one_session_per_request() -> None:
    async def compare(request: Request) -> Any:
        class Wrapped:
            scope = request.scope

        found = [await get_session(each) for each in (request, HTTPConnection(request.scope), Wrapped())]
        return [each is found[0] for each in found] + [isinstance(found[0], Session)]

    reply = await Visitor(starlette(sessions_in(), compare=answering(compare))).get("/compare")
    assert reply.json == [True] * 4


async def test_without_the_middleware_the_error_names_the_missing_line() -> None:
    app = Starlette(routes=[Route("/", answering(_user))])
    reply = await Visitor(app).get("/")
    assert reply.status == 500
    assert isinstance(reply.error, ConfigError)
    assert "write app.add_middleware(SessionMiddleware, sessions=session(...))" in str(reply.error)


@pytest.mark.parametrize("argument", [None, "request", {"type": "http"}, {}], ids=repr)
async def test_another_argument_than_a_request_is_an_error_that_names_it(argument: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        await get_session(argument)
    assert str(raised.value) == f"get_session() takes a request or a WebSocket, not {argument!r}"


@pytest.mark.parametrize("given", [None, {"type": "memory"}, sessions_in], ids=["None", "a dict", "a function"])
def test_another_argument_than_sessions_is_an_error_that_names_the_call(given: Any) -> None:
    with pytest.raises(ConfigError, match=r"write sessions=session\(\.\.\.\), from gaman\.session"):
        SessionMiddleware(Starlette(), sessions=given)


# --- laziness


@pytest.mark.parametrize("as_dict", [False, True], ids=["lazy", "as_dict"])
async def test_a_request_that_uses_no_session_costs_nothing(as_dict: bool) -> None:
    driver = Recording()
    app = starlette(sessions_in(driver), as_dict=as_dict, login=answering(_login), plain=answering(_plain))
    visitor = Visitor(app)
    await visitor.get("/login")
    driver.events.clear()
    # Without a cookie, even the dict is made without the store.
    for each, events in [(Visitor(app), []), (visitor, ["load"] if as_dict else [])]:
        reply = await each.get("/plain")
        assert {*reply.headers} == {"content-length", "content-type"}
        assert driver.events == events


async def test_a_session_that_is_only_handed_out_costs_nothing() -> None:
    driver = Recording()

    async def hold(request: Request) -> str:
        await get_session(request)
        return "held"

    visitor = Visitor(starlette(sessions_in(driver), login=answering(_login), hold=answering(hold)))
    await visitor.get("/login")
    driver.events.clear()
    assert {*(await visitor.get("/hold")).headers} == {"content-length", "content-type"}
    assert driver.events == []


# --- beside other middleware


async def test_a_middleware_inside_shares_the_handlers_session() -> None:
    async def dispatch(request: Request, call_next: RequestResponseEndpoint) -> Response:
        before = await (await get_session(request)).get("user")
        response = await call_next(request)
        response.headers["x-user"] = f"{before} {await (await get_session(request)).get('user')}"
        return response

    app = starlette(sessions_in(), login=answering(_login), user=answering(_user))
    add_inside(app, dispatch)
    visitor = Visitor(app)
    assert (await visitor.get("/login")).headers["x-user"] == "None 1"
    reply = await visitor.get("/user")
    assert (reply.headers["x-user"], reply.json) == ("1 1", 1)


async def _pass(request: Request, call_next: RequestResponseEndpoint) -> Response:
    return await call_next(request)


@pytest.mark.parametrize("as_dict", [False, True], ids=["lazy", "as_dict"])
async def test_a_change_in_a_middleware_inside_is_written_until_the_response_begins(as_dict: bool) -> None:
    async def dispatch(request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        await (await get_session(request)).set("path", request.url.path)
        return response

    async def path(request: Request) -> Any:
        return await (await get_session(request)).get("path")

    app = starlette(sessions_in(), as_dict=as_dict, plain=answering(_plain), path=answering(path))
    add_inside(app, dispatch)
    visitor = Visitor(app)
    await visitor.get("/plain")
    assert (await visitor.get("/path")).json == "/plain"


@pytest.mark.parametrize("is_inside", [False, True], ids=["around", "inside"])
async def test_base_http_middleware_changes_no_promise(is_inside: bool) -> None:
    async def fail(request: Request) -> None:
        await _login(request)
        raise ValueError("a bug")

    driver = Recording()
    app = starlette(sessions_in(driver), login=answering(_login), user=answering(_user), fail=answering(fail))
    app.add_middleware(BaseHTTPMiddleware, dispatch=_pass)
    if is_inside:
        app.user_middleware.reverse()
    visitor = Visitor(app)
    failed = await visitor.get("/fail")
    assert (failed.status, failed.cookies, type(failed.error)) == (500, [], ValueError)
    await visitor.get("/login")
    assert (await visitor.get("/user")).json == 1
    driver.failing = {"load"}
    assert (await visitor.get("/user")).status == 503
    driver.failing = {"apply"}
    assert (await visitor.get("/login")).status == 503


async def test_a_mounted_application_has_the_session_of_the_whole() -> None:
    inner = FastAPI()

    @inner.get("/user")
    async def user(current: CurrentSession) -> Any:
        return await current.get("user")

    app = starlette(sessions_in(), login=answering(_login))
    app.router.routes.append(Mount("/inner", inner))
    visitor = Visitor(app)
    await visitor.get("/login")
    assert (await visitor.get("/inner/user")).json == 1


async def test_two_middlewares_with_the_same_sessions_share_one_session() -> None:
    driver = Recording()
    sessions = sessions_in(driver)

    async def both(request: Request) -> Any:
        request.session["inner"] = 1
        current = await get_session(request)
        return [await current.get("outer"), await current.get("inner")]

    async def dispatch(request: Request, call_next: RequestResponseEndpoint) -> Response:
        await (await get_session(request)).set("outer", 1)
        response = await call_next(request)
        # The dict belongs to the mounted application and stays with the request.
        assert request.scope["session"]["inner"] == 1
        return response

    app = Starlette(routes=[Mount("/inner", starlette(sessions, as_dict=True, both=answering(both)))])
    app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
    app.add_middleware(SessionMiddleware, sessions=sessions)
    visitor = Visitor(app)
    first = await visitor.get("/inner/both")
    assert (first.status, first.json, len(first.cookies)) == (200, [1, None], 1)
    assert driver.events == ["open", "create"]
    assert (await visitor.get("/inner/both")).json == [1, 1]


async def test_a_dict_that_a_mounted_application_loads_forgets_no_change_that_was_made_before() -> None:
    sessions = sessions_in()

    async def dispatch(request: Request, call_next: RequestResponseEndpoint) -> Response:
        current = await get_session(request)
        await current.set("visits", await current.get("visits", 0) + 1)
        return await call_next(request)

    async def visits(request: Request) -> Any:
        return await (await get_session(request)).get("visits")

    inner = starlette(sessions, as_dict=True, plain=answering(_plain), visits=answering(visits))
    app = Starlette(routes=[Mount("/inner", inner)])
    app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
    app.add_middleware(SessionMiddleware, sessions=sessions)
    visitor = Visitor(app)
    for _ in range(2):
        assert (await visitor.get("/inner/plain")).headers["vary"] == "Cookie"
    assert (await visitor.get("/inner/visits")).json == 3


async def test_concurrent_calls_of_get_session_return_one_session() -> None:
    class Slow(Recording):
        async def open(self) -> None:
            await asyncio.sleep(0.01)

    async def compare(request: Request) -> Any:
        first, second = await asyncio.gather(get_session(request), get_session(request))
        return first is second

    assert (await Visitor(starlette(sessions_in(Slow()), compare=answering(compare))).get("/compare")).json is True


async def test_two_middlewares_with_other_sessions_each_have_their_own() -> None:
    inner = starlette(sessions_in(cookie_name="inner"), as_dict=True, login=answering(_login), user=answering(_user))

    async def dispatch(request: Request, call_next: RequestResponseEndpoint) -> Response:
        response = await call_next(request)
        # The mounted application's middleware has ended, so this is the outer session again, as a dict too.
        response.headers["x-outer"] = f"{await (await get_session(request)).get('user')} {request.session.get('user')}"
        return response

    app = starlette(sessions_in(), as_dict=True, login=answering(_login), user=answering(_user))
    app.router.routes.append(Mount("/inner", inner))
    add_inside(app, dispatch)
    visitor = Visitor(app)
    await visitor.get("/inner/login")
    assert {*visitor.cookies} == {"inner"}
    assert ((await visitor.get("/inner/user")).json, (await visitor.get("/user")).json) == (1, None)
    await visitor.get("/login")
    assert {*visitor.cookies} == {"inner", NAME}
    reply = await visitor.get("/inner/user")
    assert (reply.json, reply.headers["x-outer"], (await visitor.get("/user")).json) == (1, "1 1", 1)


# --- header fields of other applications


@pytest.mark.parametrize(
    ("given", "cache_control", "vary"),
    [
        (None, ["no-store"], ["Cookie"]),
        ([[b"Content-Type", b"text/plain"]], ["no-store"], ["Cookie"]),
        ([[b"Cache-Control", b"max-age=60"], (b"VARY", b"Accept, Cookie")], ["no-store"], ["Accept, Cookie"]),
        (((b"Vary", b"*"),), ["no-store"], ["*"]),
        (iter([(b"vary", b"Accept")]), ["no-store"], ["Accept", "Cookie"]),
    ],
    ids=["missing", "lists in mixed case", "its own fields", "a tuple", "an iterator"],
)
async def test_header_fields_of_every_spelling_are_understood(given: Any, cache_control: list[str], vary: list[str]) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        class Holder:
            pass

        holder: Any = Holder()
        holder.scope = scope
        await (await get_session(holder)).set("key", 1)
        start = {"type": "http.response.start", "status": 200}
        await send(start if given is None else {**start, "headers": given})
        await send({"type": "http.response.body"})

    reply = await Visitor(SessionMiddleware(app, sessions=sessions_in())).get()
    assert len(reply.cookies) == 1
    assert reply.headers.getall("cache-control") == cache_control
    assert reply.headers.getall("vary") == vary
    assert all(name == name.lower() for name, _ in reply.messages[0]["headers"])


# --- what a request leaves behind


def _alive() -> int:
    return sum(isinstance(each, Connection | Session) for each in gc.get_objects())


async def _fail(request: Request) -> None:
    await _login(request)
    raise ValueError("a bug")


async def _nest(request: Request) -> Any:
    request.session.setdefault("cart", []).append(1)
    return request.session


@pytest.mark.parametrize("as_dict", [False, True], ids=["lazy", "as_dict"])
async def test_a_request_leaves_nothing_to_the_garbage_collector(as_dict: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    # The records that pytest keeps would keep their errors.
    monkeypatch.setattr(logging.getLogger("gaman"), "disabled", True)
    driver = Recording()
    handlers = {"login": _login, "user": _user, "plain": _plain, "fail": _fail, **({"nest": _nest} if as_dict else {})}
    app = starlette(sessions_in(driver), as_dict=as_dict, **{name: answering(work) for name, work in handlers.items()})
    visitor = Visitor(app)
    # What they make at their first request stays.
    for name in handlers:
        await visitor.get(f"/{name}")
    gc.collect()
    before = _alive()
    gc.disable()
    try:
        for name in (*handlers, "user"):
            if name == "user":
                driver.failing = {"load"}
            await visitor.get(f"/{name}")
            assert _alive() == before, name
            driver.failing = set()
    finally:
        gc.enable()


async def test_the_scope_is_as_before_when_the_request_has_ended() -> None:
    seen: list[dict[str, Any]] = []

    async def keep(request: Request) -> str:
        seen.append(request.scope)  # type: ignore[arg-type]  # a MutableMapping
        return str(request.session)

    app = starlette(sessions_in(), as_dict=True, keep=answering(keep))
    await Visitor(app).get("/keep")
    assert "session" not in seen[0]
    # It refers to nothing of the request.
    assert seen[0]["gaman.session"] is REQUEST_ENDED


@pytest.mark.parametrize("uses_session", [True, False])
async def test_after_the_request_get_session_says_that_it_has_ended(uses_session: bool) -> None:
    async def spawn(request: Request) -> str:
        if uses_session:
            await _login(request)
        tasks.append(asyncio.create_task(late(request)))
        return "spawned"

    async def late(request: Request) -> None:
        await ended.wait()
        await get_session(request)

    tasks: list[asyncio.Task[None]] = []
    ended = asyncio.Event()
    await Visitor(starlette(sessions_in(), spawn=answering(spawn))).get("/spawn")
    ended.set()
    with pytest.raises(SessionClosed, match="was called after its request has ended: call it in the handler"):
        await tasks[0]


async def test_a_scope_may_be_used_for_a_second_request() -> None:
    """An application may try another one after a 404."""
    sessions = sessions_in()
    apps = [starlette(sessions, login=answering(_login)), starlette(sessions, user=answering(_user))]

    async def either(scope: Any, receive: Any, send: Any) -> None:
        await apps[0]({**scope, "path": "/user"}, receive, _drop)
        await apps[0](scope, receive, send)

    async def both(scope: Any, receive: Any, send: Any) -> None:
        await apps[0](scope, receive, _drop)
        await apps[1](scope, receive, send)

    visitor = Visitor(either)
    await visitor.get("/login")
    visitor.app = both
    assert (await visitor.get("/user")).json == 1


async def _drop(message: Any) -> None:
    pass


async def test_after_the_request_its_session_still_reads_what_it_has_read_and_refuses_changes() -> None:
    kept: list[Session] = []

    async def keep(request: Request) -> Any:
        kept.append(await get_session(request))
        return await kept[0].get("user")

    visitor = Visitor(starlette(sessions_in(), login=answering(_login), keep=answering(keep)))
    await visitor.get("/login")
    await visitor.get("/keep")
    assert await kept[0].get("user") == 1
    with pytest.raises(SessionClosed):
        await kept[0].set("user", 2)
