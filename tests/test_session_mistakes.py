"""Mistakes with the session in FastAPI and Starlette, each with one message that says what to write."""

from __future__ import annotations

import asyncio
import logging
import re
import traceback
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import anyio.from_thread
import pytest
from fastapi import Depends, FastAPI, HTTPException, Request
from starlette.middleware.sessions import SessionMiddleware as StarletteMiddleware

from gaman import ConfigError, GamanError
from gaman.session import SessionIntegration, SessionUseError, session
from gaman.session.asgi import Session, SessionMiddleware, get_session
from gaman.testing import TestClient

SECRET = "a sentence of the tests which has 32 bytes or more"
CurrentSession = Annotated[Session, Depends(get_session)]


def made() -> SessionIntegration:
    return session(SECRET, {"type": "memory"})


def application(work: Callable[[Session], Any]) -> FastAPI:
    """Return an application whose handler calls *work* with the session."""
    app = FastAPI()
    app.add_middleware(SessionMiddleware, sessions=made())

    @app.get("/")
    async def use(current: CurrentSession) -> None:
        result = work(current)
        if hasattr(result, "__await__"):
            await result

    return app


async def fault(app: FastAPI) -> GamanError:
    """Return the error that a request ends with."""
    async with TestClient(app) as client:
        with pytest.raises(GamanError) as raised:
            await client.get("/")
    return raised.value


async def answered(app: FastAPI, caplog: pytest.LogCaptureFixture) -> str:
    """Return the error of a request that the middleware answers with 500, as it is logged."""
    async with TestClient(app) as client:
        assert (await client.get("/")).status_code == 500
    [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    prefix, _, error = line.partition(": ")
    assert prefix == "GET '/' answered 500"
    return error


OPTIONS: dict[str, tuple[dict[str, Any], str]] = {
    "the function": ({"sessions": session}, "sessions of SessionMiddleware holds session itself; write sessions=session(...), "),
    "a driver": ({"sessions": {"type": "redis"}}, "sessions of SessionMiddleware holds a dict; write sessions=session(...), "),
    "nothing": ({}, "SessionMiddleware(): missing a required "),
    "Starlette's": (
        {"secret_key": SECRET},
        "SessionMiddleware() has no option 'secret_key'; write sessions=session(secret=...)",
    ),
    "session's": ({"driver": {"type": "redis"}}, "SessionMiddleware() has no option 'driver'; write sessions=session(driver=...)"),
    "another": ({"retries": 3}, "SessionMiddleware() has no option 'retries'; it takes app, sessions, as_dict, "),
    "misspelt": ({"asdict": True, "sessions": made()}, "SessionMiddleware() has no option 'asdict'; did you mean 'as_dict'?"),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_wrong_options_are_errors_at_the_start_without_the_secret(name: str) -> None:
    options, message = OPTIONS[name]
    app = FastAPI()
    app.add_middleware(SessionMiddleware, **options)
    with pytest.raises(ConfigError, match=f"^{re.escape(message)}") as raised:
        app.build_middleware_stack()
    assert SECRET not in str(raised.value)


USES: dict[str, tuple[Callable[[Any], Any], str]] = {
    "if": (lambda current: bool(current.has("user")), "write `await` before session.has(...)"),
    "a comparison": (lambda current: current.get("user") == 1, "write `await` before session.get(...)"),
    "a change": (lambda current: bool(current.set("user", 1)), "write `await` before session.set(...)"),
    "an item": (lambda current: current["user"], "a session isn't a dict: write `await session.get('user')`"),
    "an item to set": (
        lambda current: current.__setitem__("user", 1),
        "a session isn't a dict: write `await session.set('user', ...)`",
    ),
    "in": (lambda current: "user" in current, "a session isn't a dict: write `await session.has('user')`"),
    "a key": (lambda current: current.set(1, 2), "a session's key is a str, not 1: write `await session.set('1', ...)`"),
    "a coroutine function": (
        lambda current: current.update("n", coroutine, 0),
        "update() takes a plain function, not an async function: write `await session.update('n', lambda value: ..., 0)`",
    ),
    "no default": (
        lambda current: current.update("n", double),
        "update('n'): the key is missing, so the function got None: give a default, as in "
        "`await session.update('n', lambda value: ..., 0)`",
    ),
    "a call of the integration": (
        lambda current: current.end_all("user:1"),
        "session has no 'end_all': write `await sessions.end_all(...)`, on what session() has returned",
    ),
    "a call of a session": (
        lambda _: made().login("user:1"),  # type: ignore[attr-defined] # pyright: ignore[reportAttributeAccessIssue]
        "sessions has no 'login': write `await ctx.session.login(...)`, on the session of a request",
    ),
    "a call of Django's session": (lambda current: current.flush(), "session has no 'flush': write `await session.logout()`"),
    "an attribute of Flask's session": (
        lambda current: setattr(current, "permanent", True),
        "session has no 'permanent': write `await session.login(owner, max_age=...)`",
    ),
    "keep": (
        lambda _: made().end_all("user:1", keep=1),  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]
        "end_all() keeps a session, not 1: write keep=ctx.session, or keep=await get_session(request)",
    ),
}


async def coroutine(value: int) -> int:
    return value + 1


def double(value: Any) -> Any:
    return value + value


@pytest.mark.anyio
@pytest.mark.parametrize("name", USES)
async def test_a_wrong_use_says_what_to_write_where_there_is_no_ctx(name: str) -> None:
    work, message = USES[name]
    error = await fault(application(work))
    assert isinstance(error, SessionUseError)
    # A call that is used without `await` has its line.
    assert re.sub(r" \(tests/test_session_mistakes\.py, line \d+, in <lambda>\)$", "", str(error)) == message


@pytest.mark.anyio
@pytest.mark.parametrize("path", ["/plain", "/anything", "/typed", "/within"])
async def test_the_last_line_of_an_endpoint_that_returns_a_call_says_what_to_write(path: str) -> None:
    app = FastAPI()
    app.add_middleware(SessionMiddleware, sessions=made())

    @app.get("/plain", response_model=None)
    async def plain(current: CurrentSession) -> Any:
        return current.get("user")

    @app.get("/anything")
    async def anything(current: CurrentSession) -> Any:
        return current.get("user")

    @app.get("/typed")
    async def typed(current: CurrentSession) -> str:
        return current.get("user")  # type: ignore[return-value] # pyright: ignore[reportReturnType]

    @app.get("/within", response_model=None)
    async def within(current: CurrentSession) -> Any:
        return {"user": current.get("user")}

    async with TestClient(app) as client:
        with pytest.raises(Exception) as raised:  # noqa: PT011 - one of pydantic, FastAPI or gaman
            await client.get(path)
    *_, last = "".join(traceback.format_exception(raised.value)).splitlines()
    assert re.search(rf"write `await` before .*test_session_mistakes\.py, line \d+, in {path[1:]}\)", last)


@pytest.mark.anyio
async def test_a_call_that_is_never_awaited_is_logged_by_the_name_that_the_user_knows(caplog: pytest.LogCaptureFixture) -> None:
    async with TestClient(application(lambda current: [current.update("n", lambda n: n + 1, 0)])) as client:
        await client.get("/")
    [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert line.startswith(
        "GET '/' answered 500: SessionUseError: session.update(...) was never awaited: write `await` before it ("
    )
    assert line.endswith("in <lambda>)")


def in_a_thread(current: CurrentSession) -> Any:
    return current.get("user")


def in_a_generator(current: CurrentSession) -> Iterator[Any]:
    yield current.get("user")


async def in_an_async_generator(current: CurrentSession) -> AsyncIterator[Any]:
    yield current.get("user")


async def in_the_state(request: Request, current: CurrentSession) -> Any:
    request.state.user = current.get("user")
    return request.state.user


def in_a_thread_awaited(current: CurrentSession) -> Any:
    return anyio.from_thread.run(current.get, "user")


class InAVariable:
    """ASGI middleware that keeps a call in a variable while the application responds."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            user: Any = (await get_session(Request(scope))).get("user")
            if user is None:
                raise HTTPException(401)
        await self.app(scope, receive, send)


def guarded(dependency: Callable[..., Any] | None) -> FastAPI:
    """Return an application with a secret behind a guard that gets the user from *dependency*, or behind InAVariable."""
    app = FastAPI()
    if dependency is None:
        app.add_middleware(InAVariable)
    app.add_middleware(SessionMiddleware, sessions=made())

    @app.get("/")
    async def home(user: Any = Depends(dependency or in_a_thread_awaited)) -> str:  # noqa: B008
        if user is None and dependency is not None:
            raise HTTPException(401)
        return "the secret"

    return app


GUARDS = {
    **{each.__name__: each for each in (in_a_thread, in_a_generator, in_an_async_generator, in_the_state)},
    "__call__": None,
}


@pytest.mark.anyio
@pytest.mark.parametrize("name", GUARDS)
async def test_a_guard_whose_call_is_never_awaited_lets_no_visitor_in(name: str, caplog: pytest.LogCaptureFixture) -> None:
    async with TestClient(guarded(GUARDS[name]), raise_errors=False) as client:
        response = await client.get("/")
    assert (response.status_code, response.text) == (500, "Internal Server Error")
    [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    fix = ""
    if name in ("in_a_thread", "in_a_generator"):
        fix = re.escape(f" in `async def {name}`, or `anyio.from_thread.run(session.get, ...)` in a `def` endpoint")
    assert re.fullmatch(
        r"GET '/' answered 500: SessionUseError: session\.get\(\.\.\.\) was never awaited: "
        rf"write `await` before it{fix} \(tests/test_session_mistakes\.py, line \d+, in {name}\)",
        line,
    )


@pytest.mark.anyio
async def test_a_dependency_in_a_thread_that_awaits_its_call_is_fine(caplog: pytest.LogCaptureFixture) -> None:
    async with TestClient(guarded(in_a_thread_awaited)) as client:
        assert (await client.get("/")).status_code == 401
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


@pytest.mark.anyio
async def test_calls_of_two_threads_at_once_are_due_until_they_are_awaited() -> None:
    app = FastAPI()
    app.add_middleware(SessionMiddleware, sessions=made())

    async def running_loop() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    @app.get("/")
    def home(current: CurrentSession) -> int:
        loop = anyio.from_thread.run(running_loop)

        def read() -> int:
            value: int = asyncio.run_coroutine_threadsafe(current.get("n", 1), loop).result()
            return value

        with ThreadPoolExecutor(4) as threads:
            return sum([call.result() for call in [threads.submit(read) for _ in range(50)]])

    async with TestClient(app) as client:
        assert (await client.get("/")).json() == 50


@pytest.mark.anyio
async def test_a_call_that_is_dropped_after_the_middleware_has_returned_is_logged_by_its_name_too(
    caplog: pytest.LogCaptureFixture,
) -> None:
    kept: list[Any] = []
    async with TestClient(application(kept.append)) as client:
        await client.get("/")
    [current] = kept
    current.has("user")
    with pytest.raises(SessionUseError, match=re.escape("write `await session.get('user')`")):
        current["user"]
    [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert line.startswith("session.has(...) was never awaited: write `await` before it (")


@pytest.mark.anyio
async def test_the_missing_middleware_is_named() -> None:
    app = FastAPI()

    @app.get("/")
    async def use(current: CurrentSession) -> None: ...

    error = await fault(app)
    expected = "get_session() needs SessionMiddleware: write app.add_middleware(SessionMiddleware, sessions=session(...))"
    assert (type(error), str(error)) == (ConfigError, expected)


@pytest.mark.anyio
async def test_get_session_takes_a_request_only() -> None:
    with pytest.raises(ConfigError, match=r"^get_session\(\) takes a request or a WebSocket, not 1$"):
        await get_session(1)  # type: ignore[arg-type] # pyright: ignore[reportArgumentType]


@pytest.mark.anyio
async def test_get_session_without_await_is_named_by_python() -> None:
    call = get_session(Request({"type": "http"}))
    assert "coroutine object get_session at" in repr(call)
    call.close()


def with_both(first: Callable[[FastAPI], None], second: Callable[[FastAPI], None]) -> FastAPI:
    app = FastAPI()
    first(app)
    second(app)

    @app.get("/")
    async def use(request: Request) -> Any:
        request.session["user"] = 1
        return request.session

    return app


def add_ours(app: FastAPI) -> None:
    app.add_middleware(SessionMiddleware, sessions=made(), as_dict=True)


def add_starlettes(app: FastAPI) -> None:
    app.add_middleware(StarletteMiddleware, secret_key=SECRET)


@pytest.mark.anyio
@pytest.mark.parametrize("order", [(add_ours, add_starlettes), (add_starlettes, add_ours)], ids=["inside", "outside"])
async def test_starlettes_middleware_beside_ours_is_an_error(order: tuple[Any, Any]) -> None:
    message = (
        "request.session is the session of another middleware: remove that one, such as Starlette's SessionMiddleware, which "
        "SessionMiddleware(as_dict=True) of gaman.session.asgi replaces"
    )
    error = await fault(with_both(*order))
    assert (type(error), str(error)) == (ConfigError, message)


@pytest.mark.anyio
async def test_a_mounted_application_may_have_starlettes_session() -> None:
    app = FastAPI()
    add_ours(app)
    admin = with_both(add_starlettes, lambda app: None)
    app.mount("/admin", admin)

    @app.get("/")
    async def use(request: Request) -> Any:
        request.session["visits"] = request.session.get("visits", 0) + 1
        return request.session

    async with TestClient(app) as client:
        found = [(await client.get(path)).json() for path in ("/", "/admin/", "/", "/admin/")]
        assert set(client.cookies) == {"session", "__Host-Http-gaman"}
    assert found == [{"visits": 1}, {"user": 1}, {"visits": 2}, {"user": 1}]


@pytest.mark.anyio
async def test_a_key_of_the_dict_that_is_not_text_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    app = FastAPI()
    add_ours(app)

    @app.get("/")
    async def use(request: Request) -> None:
        request.session[1] = 1  # type: ignore[index] # pyright: ignore[reportArgumentType]

    assert await answered(app, caplog) == "SessionUseError: a session's key is a str, not 1: write `request.session['1'] = ...`"
