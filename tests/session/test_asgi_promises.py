"""The promises of the session in other frameworks: when it is written, what undoes it, and what a store that is down does."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import anyio
import falcon
import falcon.asgi
import litestar
import pytest
import quart
from fastapi import BackgroundTasks, Depends, FastAPI
from litestar.middleware import DefineMiddleware
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from gaman import App, Context, HTTPError
from gaman import Response as GamanResponse
from gaman.session import Outcome, Record, SessionClosed, SessionConflict, SessionStoreError, SessionTooLarge
from gaman.session.asgi import Session, SessionMiddleware, get_session
from tests.asgi import Exchange, http_scope
from tests.session.sites import Clock, Recording, Site
from tests.session.visitors import Reply, Visitor, add_inside, answering, sessions_in, starlette

pytestmark = pytest.mark.anyio

Work = Callable[[Session], Any]


def _with_session(work: Work) -> Any:
    async def answer(request: Request) -> Any:
        return await work(await get_session(request))

    return answering(answer)


async def _set(session: Session) -> str:
    await session.set("user", 1)
    return "set"


async def _get(session: Session) -> Any:
    return await session.get("user")


# --- the flush


@pytest.mark.parametrize("as_dict", [False, True], ids=["session", "as_dict"])
async def test_the_session_is_in_the_store_before_the_response_begins(as_dict: bool) -> None:
    driver = Recording()

    class Telling(Reply):
        async def send(self, message: Any) -> None:
            driver.events.append(message["type"])
            await super().send(message)

    async def write(request: Request) -> str:
        if as_dict:
            request.session["user"] = 1
        else:
            await _set(await get_session(request))
        return "written"

    app = starlette(sessions_in(driver), as_dict=as_dict, write=answering(write))
    await Visitor(app).get("/write", reply=Telling())
    assert driver.events == ["open", "create", "http.response.start", "http.response.body"]


@pytest.mark.parametrize("as_dict", [False, True], ids=["session", "as_dict"])
async def test_a_stream_reads_the_session_and_its_changes_raise(as_dict: bool) -> None:
    async def stream(request: Request) -> Response:
        current = await get_session(request)
        await _set(current)

        changes: list[Callable[[], object]] = [
            lambda: current.set("user", 2),
            lambda: current.delete("user"),
            current.clear,
            current.regenerate,
            lambda: request.session.update(user=2) if as_dict else current.set("user", 2),
        ]

        async def chunks() -> AsyncIterator[str]:
            yield f"{await current.get('user')} "
            for change in changes:
                try:
                    change()
                except SessionClosed:
                    yield "closed "

        return StreamingResponse(chunks())

    visitor = Visitor(starlette(sessions_in(), as_dict=as_dict, stream=answering(stream), user=_with_session(_get)))
    assert (await visitor.get("/stream")).text == "1 " + 5 * "closed "
    assert (await visitor.get("/user")).json == 1


async def test_a_stream_that_is_the_first_to_use_the_session_is_refused() -> None:
    errors: list[str] = []

    async def stream(request: Request) -> Response:
        async def chunks() -> AsyncIterator[str]:
            for use in (_get, _set):
                try:
                    await use(await get_session(request))
                except SessionClosed as error:
                    errors.append(str(error))
            yield "end"

        return StreamingResponse(chunks())

    visitor = Visitor(starlette(sessions_in(), login=_with_session(_set), stream=answering(stream), user=_with_session(_get)))
    await visitor.get("/login")
    assert (await visitor.get("/stream")).text == "end"
    assert errors == [
        "the session is read for the first time after the response has begun; read it before",
        "the response has begun, so a change of the session would be lost; make it before",
    ]


@pytest.mark.parametrize("as_dict", [False, True], ids=["session", "as_dict"])
async def test_a_background_task_that_changes_the_session_fails_loudly(as_dict: bool) -> None:
    async def run(request: Request) -> Response:
        current = await get_session(request)
        await _set(current)

        async def change() -> None:
            if as_dict:
                request.session["user"] = 2
            else:
                await current.set("user", 2)

        return PlainTextResponse("begun", background=BackgroundTask(change))

    visitor = Visitor(starlette(sessions_in(), as_dict=as_dict, run=answering(run), user=_with_session(_get)))
    reply = await visitor.get("/run")
    assert (reply.status, reply.text, type(reply.error)) == (200, "begun", SessionClosed)
    assert (await visitor.get("/user")).json == 1


async def test_a_background_task_of_fastapi_that_changes_the_session_fails_loudly() -> None:
    app = FastAPI()
    app.add_middleware(SessionMiddleware, sessions=sessions_in())

    @app.get("/run")
    async def run(tasks: BackgroundTasks, current: Session = Depends(get_session)) -> None:  # noqa: B008
        await current.set("user", 1)
        tasks.add_task(current.set, "user", 2)

    reply = await Visitor(app).get("/run")
    assert (reply.status, type(reply.error)) == (200, SessionClosed)


async def test_a_dependency_of_fastapi_that_ends_after_the_response_is_refused() -> None:
    app = FastAPI()
    app.add_middleware(SessionMiddleware, sessions=sessions_in())

    async def visiting(current: Session = Depends(get_session)) -> AsyncIterator[None]:  # noqa: B008
        await current.set("before", 1)
        yield
        await current.set("after", 1)

    @app.get("/", dependencies=[Depends(visiting)])
    async def visit() -> None: ...

    @app.get("/all")
    async def read(current: Session = Depends(get_session)) -> Any:  # noqa: B008
        return await current.all()

    visitor = Visitor(app)
    reply = await visitor.get("/")
    assert (reply.status, type(reply.error)) == (200, SessionClosed)
    assert (await visitor.get("/all")).json == {"before": 1}


# --- what undoes the request


class Abort(BaseException):
    """As a server raises it to end a request."""


@pytest.mark.parametrize("as_dict", [False, True], ids=["session", "as_dict"])
@pytest.mark.parametrize(
    ("raised", "status", "is_kept"),
    [
        (HTTPException(403), 403, True),
        (HTTPException(302, headers={"location": "/"}), 302, True),
        (HTTPException(500), 500, False),
        (HTTPException(503), 503, False),
        (HTTPError(403), 403, True),
        (HTTPError(503), 503, False),
        (ValueError("a bug"), 500, False),
        (ExceptionGroup("bugs", [ValueError("a bug")]), 500, False),
        (OSError("the disk is full"), 500, False),
        (asyncio.CancelledError(), None, False),
        (Abort(), None, False),
        (BaseExceptionGroup("ends", [Abort()]), None, False),
    ],
    ids=repr,
)
async def test_only_a_response_below_500_keeps_the_changes(
    raised: BaseException, status: int | None, is_kept: bool, as_dict: bool
) -> None:
    async def fail(request: Request) -> None:
        if as_dict:
            request.session["user"] = 2
        else:
            await (await get_session(request)).set("user", 2)
        raise raised

    app = starlette(sessions_in(), as_dict=as_dict, login=_with_session(_set), fail=answering(fail), user=_with_session(_get))
    visitor = Visitor(app)
    await visitor.get("/login")
    reply = Reply()
    if status is None:
        with pytest.raises(type(raised)):
            await visitor.get("/fail", reply=reply)
    else:
        await visitor.get("/fail", reply=reply)
        assert reply.status == status
    assert (await visitor.get("/user")).json == (2 if is_kept else 1)


async def test_a_new_session_of_a_request_that_fails_has_no_cookie() -> None:
    async def fail(session: Session) -> None:
        await _set(session)
        raise ValueError("a bug")

    reply = await Visitor(starlette(sessions_in(), fail=_with_session(fail))).get("/fail")
    assert (reply.status, reply.cookies) == (500, [])


async def test_a_failing_request_sends_the_cookie_of_what_it_has_saved() -> None:
    async def fail(session: Session) -> None:
        await session.set("user", 1)
        await session.save()
        await session.set("user", 2)
        raise ValueError("a bug")

    visitor = Visitor(starlette(sessions_in(), fail=_with_session(fail), user=_with_session(_get)))
    reply = await visitor.get("/fail")
    assert (reply.status, len(reply.cookies), type(reply.error)) == (500, 1, ValueError)
    assert (await visitor.get("/user")).json == 1


async def test_a_handler_of_errors_decides_by_the_status_of_its_response() -> None:
    app = starlette(sessions_in(), login=_with_session(_set), user=_with_session(_get))

    async def fail(session: Session) -> None:
        await session.set("user", 2)
        raise KeyError("a fault of the client")

    async def answer(_: Request, error: Exception) -> Response:
        return PlainTextResponse(str(error), 400)

    app.add_route("/fail", _with_session(fail))
    app.add_exception_handler(KeyError, answer)
    visitor = Visitor(app)
    await visitor.get("/login")
    assert (await visitor.get("/fail")).status == 400
    assert (await visitor.get("/user")).json == 2


# --- caches


async def test_a_response_that_used_its_session_is_kept_out_of_caches() -> None:
    async def cached(request: Request) -> Response:
        await _get(await get_session(request))
        return PlainTextResponse("cached", headers={"Cache-Control": "private, max-age=60", "Vary": "Accept"})

    visitor = Visitor(starlette(sessions_in(), login=_with_session(_set), user=_with_session(_get), cached=answering(cached)))
    for target in ("/login", "/user"):
        reply = await visitor.get(target)
        assert (reply.headers.getall("cache-control"), reply.headers.getall("vary")) == (["no-store"], ["Cookie"])
    reply = await visitor.get("/cached")
    assert reply.headers.getall("cache-control") == ["private, max-age=60"]
    assert reply.headers.getall("vary") == ["Accept", "Cookie"]


# --- a store that is down


async def _starlette(driver: Recording, work: Work, as_dict: bool) -> Any:
    return starlette(sessions_in(driver), as_dict=as_dict, work=_with_session(work))


async def _fastapi(driver: Recording, work: Work, as_dict: bool) -> Any:
    app = FastAPI()
    app.add_middleware(SessionMiddleware, sessions=sessions_in(driver), as_dict=as_dict)

    @app.get("/work")
    async def answer(current: Session = Depends(get_session)) -> Any:  # noqa: B008
        return await work(current)

    @app.exception_handler(Exception)
    async def swallow(request: Request, error: Exception) -> Response:
        return JSONResponse({"swallowed": str(error)}, 500)

    return app


async def _litestar(driver: Recording, work: Work, as_dict: bool) -> Any:
    @litestar.get("/work")
    async def answer(request: litestar.Request[Any, Any, Any]) -> Any:
        return await work(await get_session(request))

    return litestar.Litestar(
        [answer],
        middleware=[DefineMiddleware(SessionMiddleware, sessions=sessions_in(driver), as_dict=as_dict)],
        openapi_config=None,
        logging_config=None,
    )


async def _quart(driver: Recording, work: Work, as_dict: bool) -> Any:
    app: Any = quart.Quart(__name__)
    app.asgi_app = SessionMiddleware(app.asgi_app, sessions=sessions_in(driver), as_dict=as_dict)

    async def answer() -> Any:
        return quart.jsonify(await work(await get_session(quart.request)))

    app.add_url_rule("/work", "work", answer)
    return app


async def _falcon(driver: Recording, work: Work, as_dict: bool) -> Any:
    class Worker:
        async def on_get(self, req: falcon.asgi.Request, resp: falcon.asgi.Response) -> None:
            resp.media = await work(await get_session(req))

    app = falcon.asgi.App()
    app.add_route("/work", Worker())
    return SessionMiddleware(app, sessions=sessions_in(driver), as_dict=as_dict)


each_framework = pytest.mark.parametrize(
    "make", [_starlette, _fastapi, _litestar, _quart, _falcon], ids=["starlette", "fastapi", "litestar", "quart", "falcon"]
)


async def _work(session: Session) -> Any:
    """Count the session's uses: it reads in the handler, and writes at the flush."""
    uses = await session.get("uses", 0) + 1
    await session.set("uses", uses)
    return uses


@each_framework
async def test_the_session_works(make: Any) -> None:
    visitor = Visitor(await make(Recording(), _work, False))
    assert [(await visitor.get("/work")).json for _ in range(3)] == [1, 2, 3]


@each_framework
@pytest.mark.parametrize(
    ("failing", "as_dict"),
    [("load", True), ("load", False), ("apply", False), ("apply", True)],
    ids=["before the handler", "in the handler", "at the flush", "at the flush, with as_dict"],
)
async def test_a_store_that_is_down_is_503_and_logs_no_visitor_out(
    make: Any, failing: str, as_dict: bool, caplog: pytest.LogCaptureFixture
) -> None:
    driver, calls = Recording(), 0

    async def work(session: Session) -> Any:
        nonlocal calls
        calls += 1
        return await _work(session)

    app = await make(driver, work, as_dict)
    visitor = Visitor(app)
    await visitor.get("/work")
    driver.failing = {failing}
    caplog.clear()
    reply = await visitor.get("/work")
    assert (reply.status, reply.text, reply.cookies) == (503, "Service Unavailable", [])
    assert reply.headers.getall("content-length") == ["19"]
    assert reply.headers.getall("cache-control") == ["no-store"]
    assert [message["type"] for message in reply.messages] == ["http.response.start", "http.response.body"]
    assert calls == (1 if failing == "load" and as_dict else 2)
    line = f"GET '/work' answered 503: the session store (recording) could not {failing}: OSError('the store is out of reach')"
    assert [record.getMessage() for record in caplog.records if record.name == "gaman"] == [line]
    driver.failing = set()
    assert (await visitor.get("/work")).json == 2


@pytest.mark.parametrize("failing", ["load", "apply"])
async def test_the_503_to_a_head_request_has_no_body(failing: str) -> None:
    driver = Recording()
    visitor = Visitor(await _starlette(driver, _work, False))
    await visitor.get("/work")
    driver.failing = {failing}
    reply = await visitor.get("/work", method="HEAD")
    assert (reply.status, reply.body, reply.headers["content-length"]) == (503, b"", "19")


async def test_an_error_that_the_handler_catches_is_its_own_affair() -> None:
    driver = Recording()

    async def work(session: Session) -> str:
        try:
            await session.get("user")
        except HTTPError:
            return "without a session"
        return "with a session"

    visitor = Visitor(starlette(sessions_in(driver), login=_with_session(_set), work=_with_session(work)))
    await visitor.get("/login")
    driver.failing = {"load"}
    reply = await visitor.get("/work")
    assert (reply.status, reply.json) == (200, "without a session")


async def test_a_session_that_is_too_large_is_413() -> None:
    async def grow(session: Session) -> None:
        await session.set("key", "x" * 200)

    reply = await Visitor(starlette(sessions_in(max_size=100), grow=_with_session(grow))).get("/grow")
    assert (reply.status, reply.text, reply.cookies) == (413, "the session would be larger than 100 bytes", [])


async def test_a_session_that_is_too_large_for_a_cookie_is_500() -> None:
    async def grow(session: Session) -> None:
        await session.set("key", "x" * 5000)

    reply = await Visitor(starlette(sessions_in({"type": "cookies"}), grow=_with_session(grow))).get("/grow")
    assert (reply.status, type(reply.error)) == (500, SessionTooLarge)


# --- a response that was replaced


@pytest.mark.parametrize("inside", [None, "BaseHTTPMiddleware"])
@pytest.mark.parametrize("spec_version", ["2.3", "2.4"])
async def test_an_endless_stream_ends_when_its_response_is_replaced(
    spec_version: str, inside: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    driver = Recording()

    async def stream(request: Request) -> Response:
        await _set(await get_session(request))

        async def chunks() -> AsyncIterator[bytes]:
            while True:
                yield b"x"
                await anyio.sleep(0)

        return StreamingResponse(chunks())

    app: Starlette = starlette(sessions_in(driver), stream=answering(stream))
    if inside:

        async def dispatch(request: Request, call_next: Any) -> Response:
            response: Response = await call_next(request)
            return response

        add_inside(app, dispatch)
    driver.failing = {"create"}
    caplog.set_level(logging.ERROR)
    reply = await Visitor(app).get("/stream", asgi={"version": "3.0", "spec_version": spec_version})
    assert (reply.status, reply.text, reply.error) == (503, "Service Unavailable", None)
    assert len(caplog.records) == 1


async def test_a_stream_in_a_task_group_ends_when_its_response_is_replaced() -> None:
    driver = Recording()
    driver.failing = {"create"}

    async def application(scope: Any, receive: Any, send: Any) -> None:
        await _set(await get_session(Request(scope)))
        await send({"type": "http.response.start", "status": 200, "headers": []})

        async def stream() -> None:
            await send({"type": "http.response.body", "body": b"x", "more_body": True})

        async with asyncio.TaskGroup() as group:
            group.create_task(stream())
            group.create_task(stream())

    reply = await Visitor(SessionMiddleware(application, sessions=sessions_in(driver))).get()
    assert (reply.status, reply.error) == (503, None)


async def test_a_bug_after_a_replaced_response_is_still_raised() -> None:
    driver = Recording()

    async def run(request: Request) -> Response:
        await _set(await get_session(request))

        async def fail() -> None:
            raise ValueError("a bug")

        return PlainTextResponse("begun", background=BackgroundTask(fail))

    driver.failing = {"create"}
    reply = await Visitor(starlette(sessions_in(driver), run=answering(run))).get("/run")
    assert (reply.status, type(reply.error)) == (503, ValueError)


async def raw_call(application: Any, **changes: Any) -> Exchange:
    """Send one request to a bare ASGI *application* within the middleware."""
    exchange = Exchange()
    scope = {**http_scope(), **changes}
    scope = {key: value for key, value in scope.items() if value is not None}
    await SessionMiddleware(application, sessions=sessions_in())(scope, exchange.receive, exchange.send)
    return exchange


async def test_errors_that_refer_to_each_other_end_the_request() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        first, second = ValueError("first"), ValueError("second")
        first.__context__, second.__context__ = second, first
        raise first

    with pytest.raises(ValueError, match="first"):
        await raw_call(application)


@pytest.mark.parametrize("scheme", [None, "http", "https"])
async def test_a_scope_may_lack_its_scheme(scheme: str | None) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        request: Any = SimpleNamespace(scope=scope)
        await (await get_session(request)).set("user", 1)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    assert "set-cookie" in (await raw_call(application, scheme=scheme)).headers


async def test_a_500_with_the_cookie_of_a_saved_session_is_kept_from_caches() -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        request: Any = SimpleNamespace(scope=scope)
        current = await get_session(request)
        await current.set("user", 1)
        await current.save()
        raise ValueError("broken")

    exchange = Exchange()
    with pytest.raises(ValueError, match="broken"):
        await SessionMiddleware(application, sessions=sessions_in(Recording()))(http_scope(), exchange.receive, exchange.send)
    assert (exchange.status, exchange.headers["cache-control"]) == (500, "no-store")
    assert "set-cookie" in exchange.headers


# --- a flush that fails in other ways


class Broken(Recording):
    """Raises *error* where a session begins."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    async def create(self, id: str, record: Record) -> None:
        self._note("create")
        raise self.error


@each_framework
@pytest.mark.parametrize(
    "error", [SessionConflict("another request was first"), RuntimeError("a bug of a driver")], ids=["SessionConflict", "a bug"]
)
async def test_any_error_of_the_flush_is_answered_500_and_logged(
    make: Any, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    reply = await Visitor(await make(Broken(error), _work, False)).get("/work")
    assert (reply.status, reply.text, reply.cookies, reply.error) == (500, "Internal Server Error", [], None)
    (record,) = [record for record in caplog.records if record.name == "gaman"]
    assert record.getMessage() == f"GET '/work' answered 500: {type(error).__name__}: {error}"
    # A message of gaman's explains itself.
    assert (record.exc_info is None) == isinstance(error, SessionConflict)


async def test_a_second_start_after_a_flush_that_failed_is_not_sent() -> None:
    """An application may catch the error of its send()."""

    async def application(scope: Any, receive: Any, send: Any) -> None:
        request: Any = SimpleNamespace(scope=scope)
        await (await get_session(request)).set("user", 1)
        for _ in range(2):
            try:
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"done"})
            except Exception:
                continue
            break

    exchange = Exchange()
    sessions = sessions_in(Broken(RuntimeError("a bug")))
    await SessionMiddleware(application, sessions=sessions)(http_scope(), exchange.receive, exchange.send)
    assert [message.get("status") for message in exchange.messages] == [500, None]


@each_framework
async def test_a_session_that_is_too_large_when_it_is_saved_is_413(make: Any) -> None:
    async def grow(session: Session) -> None:
        await session.set("other", "x" * 1000)
        await session.save()

    class Full(Recording):
        async def apply(self, *arguments: Any, **named: Any) -> Outcome:
            return Outcome.TOO_LARGE

    site = Visitor(await make(Full(), _work, False))
    await site.get("/work")
    site.app = await make(Full(), grow, False)
    reply = await site.get("/work")
    assert (reply.status, reply.text) == (413, "the session would be larger than 1048576 bytes")


@each_framework
async def test_a_500_is_the_handlers_own_after_a_call_that_works_again(make: Any) -> None:
    driver = Recording()

    async def retry(session: Session) -> Any:
        await session.set("user", 1)
        driver.failing = {"create"}
        with pytest.raises(SessionStoreError):
            await session.save()
        driver.failing = set()
        await session.save()
        raise ValueError("a bug")

    reply = await Visitor(await make(driver, retry, False)).get("/work")
    assert reply.status == 500


async def test_a_500_is_the_handlers_own_after_a_smaller_value() -> None:
    async def retry(session: Session) -> Response:
        with pytest.raises(SessionTooLarge):
            await session.set("key", "x" * 200)
        await session.set("key", "x")
        return PlainTextResponse("my own", 500)

    reply = await Visitor(starlette(sessions_in(max_size=100), retry=_with_session(retry))).get("/retry")
    assert (reply.status, reply.text) == (500, "my own")


# --- the idle limit of a session whose request fails


async def _read_and_return_500(session: Session) -> Response:
    await session.get("user")
    return PlainTextResponse("my own", 500)


async def _read_and_fail_to_save(session: Session) -> None:
    await session.get("user")
    await session.update("user", lambda user: user + 1)


async def _read_and_grow(session: Session) -> None:
    await session.get("user")
    await session.set("user", "x" * 2000)


async def _read_and_refuse(session: Session) -> None:
    await session.get("user")
    raise HTTPError(404)


async def _read_write_and_refuse(session: Session) -> None:
    await session.get("user")
    await session.set("user", 2)
    raise HTTPError(404)


@pytest.mark.parametrize(
    ("work", "status", "writes"),
    [
        (_read_and_return_500, 500, 0),
        (_read_and_fail_to_save, 503, 1),
        (_read_and_grow, 413, 0),
        (_read_and_refuse, 503, 1),
        (_read_write_and_refuse, 503, 1),
    ],
)
@pytest.mark.parametrize("is_app", [True, False], ids=["gaman", "starlette"])
async def test_a_second_failure_of_the_store_does_not_replace_the_response_to_the_first(
    is_app: bool, work: Work, status: int, writes: int
) -> None:
    driver, clock = Recording(), Clock()
    site = Site(driver, clock, idle_timeout=600, max_size=1000)
    app: Any = starlette(site.sessions, login=_with_session(_set), work=_with_session(work))
    if is_app:
        app = App({"/login": _in_gaman(_set), "/work": _in_gaman(work)}, integrations=[site.sessions])
        await app.load()
    visitor = Visitor(app)
    await visitor.get("/login")
    clock.now += 300
    driver.failing = {"apply", "swap"}
    reply = await visitor.get("/work")
    assert (reply.status, reply.error) == (status, None)
    assert driver.events.count("apply") == writes


def _in_gaman(work: Work) -> Any:
    async def handler(ctx: Context) -> Any:
        result = await work(ctx.session)
        return GamanResponse.text("my own", 500) if isinstance(result, Response) else result

    return handler
