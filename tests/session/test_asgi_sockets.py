"""WebSockets: the session of the handshake's cookie, read and saved while the socket is open."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeAlias

import fastapi
import litestar
import pytest
import quart
from litestar.middleware import DefineMiddleware
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.websockets import WebSocket
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect
from websockets.typing import Origin

from gaman import HTTPError
from gaman.session import SessionClosed, SessionIntegration, SessionStoreError
from gaman.session.asgi import Session, SessionMiddleware, get_session
from tests.servers import free_port
from tests.serving import Connection, request, running_script, until
from tests.session.sites import Recording
from tests.session.visitors import NAME, Visitor, answering, sessions_in, starlette

pytestmark = pytest.mark.anyio

Say = Callable[[str], Awaitable[Any]]


async def obey(session: Session, command: str) -> str:
    """Do what a message says to the session, and return what happened."""
    try:
        match command.split():
            case ["get"]:
                return repr(await session.get("user"))
            case ["set", user]:
                await session.set("user", user)
            case ["save"]:
                await session.save()
            case ["regenerate"]:
                await session.regenerate()
            case ["clear"]:
                await session.clear()
            case _:
                return "?"
    except SessionClosed as error:
        return f"closed: {error}"
    return "done"


async def _set(request: Any) -> str:
    await (await get_session(request)).set("user", "first")
    return "in"


async def _get(request: Any) -> Any:
    return await (await get_session(request)).get("user")


async def _clear(request: Any) -> None:
    await (await get_session(request)).clear()


# --- the frameworks; each has /login, /user, /logout and the WebSockets /socket and /new


def starlette_app(sessions: SessionIntegration, as_dict: bool = False) -> Any:
    async def socket(websocket: WebSocket) -> None:
        session = await get_session(websocket)
        await websocket.accept()
        while True:
            await websocket.send_text(await obey(session, await websocket.receive_text()))

    async def new(websocket: WebSocket) -> None:
        session = await get_session(websocket)
        await session.set("user", "new")
        await websocket.accept(headers=[(b"x-own", b"1")])
        while True:
            await websocket.send_text(await obey(session, await websocket.receive_text()))

    return starlette(
        sessions,
        as_dict=as_dict,
        sockets={"socket": socket, "new": new},
        login=answering(_set),
        user=answering(_get),
        logout=answering(_clear),
    )


def fastapi_app(sessions: SessionIntegration, as_dict: bool = False) -> Any:
    app = fastapi.FastAPI()
    app.add_middleware(SessionMiddleware, sessions=sessions, as_dict=as_dict)
    current = fastapi.Depends(get_session)

    @app.websocket("/socket")
    async def socket(websocket: fastapi.WebSocket, session: Session = current) -> None:
        await websocket.accept()
        while True:
            await websocket.send_text(await obey(session, await websocket.receive_text()))

    @app.websocket("/new")
    async def new(websocket: fastapi.WebSocket, session: Session = current) -> None:
        await session.set("user", "new")
        await websocket.accept(headers=[(b"x-own", b"1")])
        while True:
            await websocket.send_text(await obey(session, await websocket.receive_text()))

    for name, work in {"login": _set, "user": _get, "logout": _clear}.items():
        app.add_route(f"/{name}", answering(work))
    return app


Socket: TypeAlias = litestar.WebSocket[Any, Any, Any]
Sent: TypeAlias = litestar.Request[Any, Any, Any]


@litestar.websocket("/socket")
async def _litestar_socket(socket: Socket) -> None:
    session = await get_session(socket)
    await socket.accept()
    while True:
        await socket.send_text(await obey(session, await socket.receive_text()))


@litestar.websocket("/new")
async def _litestar_new(socket: Socket) -> None:
    session = await get_session(socket)
    await session.set("user", "new")
    await socket.accept(headers={"x-own": "1"})
    while True:
        await socket.send_text(await obey(session, await socket.receive_text()))


@litestar.get("/login")
async def _litestar_login(request: Sent) -> str:
    return await _set(request)


@litestar.get("/user")
async def _litestar_user(request: Sent) -> str:
    return json.dumps(await _get(request))


@litestar.get("/logout")
async def _litestar_logout(request: Sent) -> None:
    await _clear(request)


def litestar_app(sessions: SessionIntegration, as_dict: bool = False) -> Any:
    handlers: list[Any] = [_litestar_socket, _litestar_new, _litestar_login, _litestar_user, _litestar_logout]
    middleware = DefineMiddleware(SessionMiddleware, sessions=sessions, as_dict=as_dict)
    return litestar.Litestar(handlers, middleware=[middleware], openapi_config=None, logging_config=None)


def quart_app(sessions: SessionIntegration, as_dict: bool = False) -> Any:
    app: Any = quart.Quart(__name__)
    app.asgi_app = SessionMiddleware(app.asgi_app, sessions=sessions, as_dict=as_dict)
    ws: Any = quart.websocket

    async def socket() -> None:
        session = await get_session(ws)
        await ws.accept()
        while True:
            await ws.send(await obey(session, await ws.receive()))

    async def new() -> None:
        session = await get_session(ws)
        await session.set("user", "new")
        await ws.accept(headers={"x-own": "1"})
        while True:
            await ws.send(await obey(session, await ws.receive()))

    app.add_websocket("/socket", "socket", socket)
    app.add_websocket("/new", "new", new)
    for name, work in {"login": _set, "user": _get, "logout": _clear}.items():

        async def answer(work: Any = work) -> Any:
            return quart.jsonify(await work(quart.request))

        app.add_url_rule(f"/{name}", name, answer)
    return app


FRAMEWORKS = {"starlette": starlette_app, "fastapi": fastapi_app, "litestar": litestar_app, "quart": quart_app}
each_framework = pytest.mark.parametrize("make", FRAMEWORKS.values(), ids=FRAMEWORKS)


@each_framework
async def test_a_websocket_has_the_session_of_its_handshakes_cookie(make: Any) -> None:
    visitor = Visitor(make(sessions_in()))
    await visitor.get("/login")
    async with visitor.connect("/socket") as socket:
        assert await socket.accepted() == []
        assert await socket.ask("get") == "'first'"


@each_framework
async def test_a_change_through_a_websocket_is_saved_by_save(make: Any) -> None:
    visitor = Visitor(make(sessions_in()))
    await visitor.get("/login")
    async with visitor.connect("/socket") as socket:
        await socket.accepted()
        assert await socket.ask("set second") == "done"
        assert (await visitor.get("/user")).json == "first"
        assert await socket.ask("save") == "done"
        assert (await visitor.get("/user")).json == "second"
        for user in ("third", "fourth"):
            await socket.ask(f"set {user}")
            await socket.ask("save")
            assert (await visitor.get("/user")).json == user


@each_framework
async def test_a_change_that_is_not_saved_is_logged(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    visitor = Visitor(make(sessions_in()))
    await visitor.get("/login")
    async with visitor.connect("/socket") as socket:
        await socket.accepted()
        await socket.ask("set second")
    line = "'/socket' lost changes of its session; write `await session.save()` after them"
    assert [record.getMessage() for record in caplog.records if record.name == "gaman"] == [line]
    assert (await visitor.get("/user")).json == "first"


@each_framework
async def test_a_session_that_begins_before_accept_sends_its_cookie_with_it(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    visitor = Visitor(make(sessions_in()))
    async with visitor.connect("/new") as socket:
        (cookie,) = await socket.accepted()
        assert cookie.startswith(f"{NAME}=")
        headers = [(bytes(name), bytes(value)) for name, value in socket.messages[0]["headers"]]
        assert (b"x-own", b"1") in headers
        assert {name for name, _ in headers} == {b"x-own", b"set-cookie"}
        # It is written already, and can be read and changed further.
        assert (await visitor.get("/user")).json == "new"
        assert await socket.ask("get") == "'new'"
        assert await socket.ask("set newer") == "done"
        assert await socket.ask("save") == "done"
    assert (await visitor.get("/user")).json == "newer"
    assert [record for record in caplog.records if record.name == "gaman"] == []


@each_framework
async def test_a_new_id_after_accept_is_refused_because_no_cookie_can_be_sent(make: Any) -> None:
    visitor = Visitor(make(sessions_in()))
    refusal = "closed: the WebSocket is accepted, so the browser can't get the cookie of a new id; begin sessions before accept()"
    async with visitor.connect("/socket") as socket:
        await socket.accepted()
        assert await socket.ask("regenerate") == refusal
        # There is no session yet, so this would begin one.
        await socket.ask("set second")
        assert await socket.ask("save") == refusal
        assert await socket.ask("get") == "None"
    await visitor.get("/login")
    async with visitor.connect("/socket") as socket:
        await socket.accepted()
        assert await socket.ask("regenerate") == refusal
        assert await socket.ask("get") == "'first'"


@each_framework
async def test_a_session_that_is_ended_while_the_socket_is_open_stays_ended(make: Any) -> None:
    visitor = Visitor(make(sessions_in()))
    await visitor.get("/login")
    old = visitor.again()
    async with visitor.connect("/socket") as socket:
        await socket.accepted()
        assert await socket.ask("get") == "'first'"
        await visitor.get("/logout")
        assert await socket.ask("set late") == "done"
        assert await socket.ask("save") == "done"
        assert await socket.ask("get") == "None"
    assert (await old.get("/user")).json is None


@each_framework
async def test_a_websocket_can_end_the_session(make: Any) -> None:
    visitor = Visitor(make(sessions_in()))
    await visitor.get("/login")
    async with visitor.connect("/socket") as socket:
        await socket.accepted()
        assert await socket.ask("clear") == "done"
        assert await socket.ask("save") == "done"
        assert await socket.ask("get") == "None"
    assert (await visitor.get("/user")).json is None


@each_framework
async def test_a_session_in_a_cookie_is_read_only_after_accept(make: Any) -> None:
    visitor = Visitor(make(sessions_in({"type": "cookies"})))
    async with visitor.connect("/new") as socket:
        assert len(await socket.accepted()) == 1
        assert await socket.ask("get") == "'new'"
        assert (await socket.ask("set newer")).startswith("closed: ")
    assert (await visitor.get("/user")).json == "new"
    async with visitor.connect("/socket") as socket:
        assert await socket.accepted() == []
        assert await socket.ask("get") == "'new'"


# --- a store that is down


@each_framework
@pytest.mark.parametrize("can_deny", [False, True])
@pytest.mark.parametrize("as_dict", [False, True], ids=["lazy", "as_dict"])
async def test_a_store_that_is_down_before_accept_refuses_the_handshake(make: Any, as_dict: bool, can_deny: bool) -> None:
    driver = Recording()
    visitor = Visitor(make(sessions_in(driver), as_dict))
    await visitor.get("/login")
    driver.failing = {"load", "apply"}
    async with visitor.connect("/new", can_deny=can_deny) as socket:
        if can_deny:
            start, body = await socket.next(), await socket.next()
            assert (start["type"], start["status"]) == ("websocket.http.response.start", 503)
            assert (b"cache-control", b"no-store") in start["headers"]
            assert (body["type"], body["body"]) == ("websocket.http.response.body", b"Service Unavailable")
        else:
            assert await socket.next() == {"type": "websocket.close", "code": 1013}
        assert (await socket.next())["type"] == "end"


@each_framework
@pytest.mark.parametrize("failing", ["load", "apply"])
async def test_a_store_that_is_down_after_accept_closes_the_socket(
    make: Any, failing: str, caplog: pytest.LogCaptureFixture
) -> None:
    driver = Recording()
    visitor = Visitor(make(sessions_in(driver)))
    await visitor.get("/login")
    async with visitor.connect("/socket") as socket:
        await socket.accepted()
        if failing == "apply":
            await socket.ask("get")
            await socket.ask("set second")
        driver.failing = {failing}
        socket.tell({"load": "get", "apply": "save"}[failing])
        message = await socket.next()
        assert message["type"] == "websocket.close"
        # Quart closes it with the same code as at the end of a handler.
        assert message["code"] == (1000 if make is quart_app else 1013)
    assert f"the session store (recording) could not {failing}" in caplog.text
    assert "lost changes" not in caplog.text


# --- handshakes that the application refuses


async def test_a_handler_that_closes_the_socket_for_another_reason_chooses_the_code() -> None:
    driver = Recording()

    async def close(socket: WebSocket) -> None:
        current = await get_session(socket)
        await socket.accept()
        driver.failing = {"load"}
        with pytest.raises(SessionStoreError):
            await current.get("user")
        await socket.close(int(socket.query_params["code"]))

    async def login(request: Request) -> str:
        await (await get_session(request)).set("user", 1)
        return "in"

    visitor = Visitor(starlette(sessions_in(driver), sockets={"close": close}, login=answering(login)))
    await visitor.get("/login")
    for given, sent in (("1011", 1013), ("4001", 4001), ("1000", 1000)):
        driver.failing = set()
        async with visitor.connect(f"/close?code={given}") as socket:
            await socket.accepted()
            assert (await socket.next())["code"] == sent


async def test_a_denied_handshake_sends_the_cookie_with_its_response() -> None:
    async def deny(websocket: WebSocket) -> None:
        await (await get_session(websocket)).set("user", "denied")
        await websocket.send_denial_response(PlainTextResponse("log in", 401))

    visitor = Visitor(starlette(sessions_in(), sockets={"deny": deny}, user=answering(_get)))
    async with visitor.connect("/deny", can_deny=True) as socket:
        start = await socket.next()
        assert (start["type"], start["status"]) == ("websocket.http.response.start", 401)
        headers = dict(start["headers"])
        visitor.take([headers[b"set-cookie"].decode()])
        assert (headers[b"cache-control"], headers[b"vary"]) == (b"no-store", b"Cookie")
    assert (await visitor.get("/user")).json == "denied"


@pytest.mark.parametrize("can_deny", [False, True])
async def test_an_error_of_gaman_before_accept_refuses_the_handshake(can_deny: bool) -> None:
    async def deny(websocket: WebSocket) -> None:
        await (await get_session(websocket)).set("user", "denied")
        raise HTTPError(403)

    visitor = Visitor(starlette(sessions_in(), sockets={"deny": deny}))
    async with visitor.connect("/deny", can_deny=can_deny) as socket:
        start = await socket.next()
        if can_deny:
            assert (start["type"], start["status"]) == ("websocket.http.response.start", 403)
            assert b"set-cookie" in dict(start["headers"])
        else:
            assert start["type"] == "websocket.close"


@pytest.mark.parametrize("can_deny", [False, True])
async def test_an_http_exception_before_accept_refuses_the_handshake(can_deny: bool) -> None:
    async def deny(websocket: WebSocket) -> None:
        await (await get_session(websocket)).set("user", "denied")
        raise HTTPException(403)

    visitor = Visitor(starlette(sessions_in(), sockets={"deny": deny}))
    async with visitor.connect("/deny", can_deny=can_deny) as socket:
        start = await socket.next()
        assert start["type"] in {"websocket.http.response.start", "websocket.close"}


async def test_a_handshake_that_is_closed_before_accept_loses_its_changes_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async def refuse(websocket: WebSocket) -> None:
        await (await get_session(websocket)).set("user", "refused")
        await websocket.close()

    visitor = Visitor(starlette(sessions_in(), sockets={"refuse": refuse}, login=answering(_set), user=answering(_get)))
    await visitor.get("/login")
    async with visitor.connect("/refuse") as socket:
        assert (await socket.next())["type"] == "websocket.close"
    assert "'/refuse' lost changes of its session" in caplog.text
    assert (await visitor.get("/user")).json == "first"


async def test_an_error_after_the_application_has_closed_the_socket_is_raised() -> None:
    driver = Recording()

    async def close(websocket: WebSocket) -> None:
        session = await get_session(websocket)
        await websocket.accept()
        await websocket.close()
        driver.failing = {"load"}
        await session.get("user")

    visitor = Visitor(starlette(sessions_in(driver), sockets={"close": close}, login=answering(_set)))
    await visitor.get("/login")
    async with visitor.connect("/close") as socket:
        pass
    assert [message["type"] for message in socket.messages] == ["websocket.accept", "websocket.close", "end"]
    assert "could not load" in str(socket.error)


async def test_a_handler_does_not_go_on_when_its_handshake_was_refused() -> None:
    driver = Recording()
    events: list[str] = []

    async def push(websocket: WebSocket) -> None:
        session = await get_session(websocket)
        await session.set("user", "new")
        try:
            await websocket.accept()
            events.append("accepted")
        finally:
            events.append("ended")

    visitor = Visitor(starlette(sessions_in(driver), sockets={"push": push}))
    driver.failing = {"create"}
    async with visitor.connect("/push") as socket:
        assert await socket.next() == {"type": "websocket.close", "code": 1013}
        assert await socket.next() == {"type": "end"}
    assert (events, socket.error) == (["ended"], None)


async def test_a_websocket_that_uses_no_session_costs_nothing() -> None:
    driver = Recording()

    async def plain(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text("plain")

    visitor = Visitor(starlette(sessions_in(driver), sockets={"plain": plain}, login=answering(_set)))
    await visitor.get("/login")
    driver.events.clear()
    async with visitor.connect("/plain") as socket:
        assert await socket.next() == {"type": "websocket.accept", "subprotocol": None, "headers": []}
    assert driver.events == []


# --- as_dict


async def test_the_dict_of_a_websocket_is_written_by_accept(caplog: pytest.LogCaptureFixture) -> None:
    async def socket(websocket: WebSocket) -> None:
        websocket.session["before"] = websocket.session.get("user")
        await websocket.accept()
        await websocket.send_text(str(dict(websocket.session)))
        if await websocket.receive_text() == "change":
            websocket.session["after"] = 1
        await websocket.send_text("end")

    async def read(request: Request) -> Any:
        return request.session

    visitor = Visitor(
        starlette(sessions_in(), as_dict=True, sockets={"socket": socket}, login=answering(_set), all=answering(read))
    )
    await visitor.get("/login")
    for command in ("end", "change"):
        async with visitor.connect("/socket") as opened:
            assert await opened.accepted() == []
            assert (await opened.next())["text"] == str({"user": "first"} | {"before": "first"})
            assert await opened.ask(command) == "end"
        lines = [record.getMessage() for record in caplog.records if record.name == "gaman"]
        expected = (
            "'/socket' lost changes of its session; `websocket.session` is written by accept() only, so change it before, "
            "or take `await get_session(websocket)`"
        )
        assert lines == ([expected] if command == "change" else [])
    assert (await visitor.get("/all")).json == {"user": "first", "before": "first"}


# --- over real sockets

SITE = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from gaman.session.asgi import SessionMiddleware, get_session, session

async def user(request):
    return PlainTextResponse(str(await (await get_session(request)).get("user")))

async def socket(websocket):
    session = await get_session(websocket)
    if websocket.query_params.get("deny"):
        await session.set("user", "denied")
        await websocket.send_denial_response(PlainTextResponse("log in", 401))
        return
    if await session.get("user") is None:
        await session.set("user", "new")
    await websocket.accept()
    async for text in websocket.iter_text():
        await session.set("user", text)
        await session.save()
        await websocket.send_text(await session.get("user"))

sessions = session("a secret of the tests that is long enough", {"type": "file", "dir": FOLDER}, secure=False)
app = Starlette(routes=[Route("/user", user), WebSocketRoute("/socket", socket)])
app.add_middleware(SessionMiddleware, sessions=sessions)
port = PORT
"""
SERVERS = {
    "uvicorn with websockets": 'import uvicorn; uvicorn.run(app, port=port, ws="websockets-sansio", log_level="error")',
    "uvicorn with wsproto": 'import uvicorn; uvicorn.run(app, port=port, ws="wsproto", log_level="error")',
    "hypercorn": """
import asyncio
from hypercorn.asyncio import serve
from hypercorn.config import Config
config = Config()
config.bind = [f"127.0.0.1:{port}"]
asyncio.run(serve(app, config))
""",
}


@pytest.mark.parametrize("serve", SERVERS.values(), ids=SERVERS)
def test_it_works_over_real_sockets(serve: str, tmp_path: Path) -> None:
    port = free_port()
    source = SITE.replace("FOLDER", repr(str(tmp_path / "sessions"))).replace("PORT", str(port))
    with running_script(source + serve, tmp_path) as program:

        def opened() -> Any:
            assert not program.has_ended(), program.stderr
            try:
                return connect(f"ws://127.0.0.1:{port}/socket")
            except OSError:
                return None

        with until(opened, "the server to listen") as socket:
            cookie = socket.response.headers["set-cookie"].partition(";")[0]

            def user() -> bytes:
                with Connection(port) as connection:
                    return connection.fetch(request("/user", f"Cookie: {cookie}")).body

            assert user() == b"new"
            for text in ("first", "second"):
                socket.send(text)
                assert socket.recv() == text
                assert user() == text.encode()
        with pytest.raises(InvalidStatus) as refused:
            connect(f"ws://127.0.0.1:{port}/socket?deny=1")
        response = refused.value.response
        assert response.status_code == 401
        assert response.headers["set-cookie"].startswith("gaman=")
        with pytest.raises(InvalidStatus) as refused:
            connect(f"ws://127.0.0.1:{port}/socket", origin=Origin("http://evil.example"))
        assert refused.value.response.status_code == 403
        with connect(f"ws://127.0.0.1:{port}/socket", origin=Origin(f"http://127.0.0.1:{port}")):
            pass
        program.stop()
        assert "Traceback" not in program.stderr
