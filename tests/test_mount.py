"""mount(), with Starlette and Flask as the mounted applications, in this process and over real sockets."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import signal
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import flask
import pytest
from a2wsgi import WSGIMiddleware
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.responses import Response as StarletteResponse
from starlette.routing import Route

from gaman import App, ConfigError, Context, HTTPError, Response, define_integration, define_routes, mount
from gaman.session import session
from gaman.testing import TestClient
from tests.asgi import Exchange, fetch, http_scope
from tests.serving import Connection, Program, get, request, running_script, until

pytestmark = pytest.mark.anyio

METHODS = ["GET", "POST", "PUT", "DELETE", "OPTIONS", "PROPFIND"]
SECRET = "a secret of these tests, long enough"


async def show(seen: Request) -> JSONResponse:
    scope = seen.scope
    return JSONResponse(
        {
            "method": seen.method,
            "path": scope["path"],
            "raw_path": scope["raw_path"].decode(),
            "root_path": scope["root_path"],
            "params": seen.path_params,
            "url": str(seen.url),
            "client": seen.client.host if seen.client else None,
            "body": (await seen.body()).decode(),
        }
    )


async def own(ctx: Context) -> str:
    return "own"


def mounted() -> Starlette:
    return Starlette(routes=[Route("/{rest:path}", show, methods=METHODS)])


def app_of(table: Any, **options: Any) -> App:
    """Return an App that needs no load(), because its mounted applications have no lifespan of their own."""
    app = App(table, **options)
    app._matcher = app.routes
    return app


async def ask(app: App, target: str, method: str = "GET", **options: Any) -> Any:
    exchange = await fetch(app, target, method, **options)
    assert exchange.status == 200, exchange.text
    return json.loads(exchange.body)


# --- which path it gets


@pytest.mark.parametrize(
    ("target", "root_path", "path", "raw_path"),
    [
        ("/admin/", "/admin", "/admin/", "/admin/"),
        ("/admin/users", "/admin", "/admin/users", "/admin/users"),
        ("/admin/users/", "/admin", "/admin/users/", "/admin/users/"),
        ("//admin///users//", "/admin", "/admin/users/", "/admin/users/"),
        ("/%61dmin/caf%C3%A9", "/admin", "/admin/café", "/%61dmin/caf%C3%A9"),
        ("/admin//a%20b", "/admin", "/admin/a b", "/admin/a%20b"),
        ("/acme/shop/a:b@c", "/acme/shop", "/acme/shop/a:b@c", "/acme/shop/a:b@c"),
        ("/elsewhere", "", "/elsewhere", "/elsewhere"),
    ],
)
async def test_it_gets_the_whole_path_as_guards_see_it_and_the_prefix_as_its_root_path(
    target: str, root_path: str, path: str, raw_path: str
) -> None:
    seen: list[str] = []

    async def guard(ctx: Context) -> None:
        seen.append(ctx.path)

    app = app_of({"*": [guard, mount(mounted())], "/admin/*": mount(mounted()), "/:tenant/shop/*": mount(mounted())})
    told = await ask(app, target)
    assert (told["root_path"], told["path"], told["raw_path"]) == (root_path, path, raw_path)
    assert seen == [path]


async def test_the_prefix_itself_belongs_to_it() -> None:
    app = app_of({"/admin/*": mount(mounted())})
    exchange = await fetch(app, "/admin")
    # Starlette redirects to its root.
    assert (exchange.status, exchange.headers.get("location")) == (307, "https://testserver/admin/")
    assert (await fetch(app, "/adminx")).status == 404


async def test_the_parameters_of_the_prefix_are_its_path_params() -> None:
    told = await ask(app_of({"/:tenant/*": mount(mounted())}), "/acme/users")
    assert told["params"] == {"tenant": "acme", "rest": "users"}
    assert told["root_path"] == "/acme"


async def test_below_the_root_path_of_a_server_and_below_another_mount_the_prefixes_add_up() -> None:
    inner = app_of({"/inner/*": mount(mounted())})
    app = app_of({"/outer/*": mount(inner)})
    for target in ("/base/outer/inner/x", "/outer/inner/x"):
        told = await ask(app, target, scope={"root_path": "/base"})
        assert (told["root_path"], told["path"]) == ("/base/outer/inner", "/base/outer/inner/x")
    for target in ("/base/", "/base/outer/"):
        told = await ask(
            app_of({"*": mount(mounted()), "/outer/*": mount(app_of({"*": mount(mounted())}))}),
            target,
            scope={"root_path": "/base"},
        )
        assert (told["root_path"], told["path"]) == (target.rstrip("/"), target)


@pytest.mark.parametrize(
    "target",
    ["/admin/..", "/admin/%2e%2e/x", "/admin/./x", "/admin/a%2Fb", "/admin/a%00b", "/a%2Fb", "/a%2Fb/x", "/%2e%2e/x", "/.%2e"],
)
@pytest.mark.parametrize("strict", [False, True])
async def test_a_path_with_another_spelling_is_404(target: str, strict: bool) -> None:
    called: list[str] = []

    async def note(scope: Any, receive: Any, send: Any) -> None:
        called.append(scope["path"])

    app = app_of(define_routes({"/admin/*": mount(note), "/:tenant/*": mount(note)}, strict=strict))
    assert (await fetch(app, target)).status == 404
    assert called == []


async def test_a_strict_table_mounts_the_same_paths() -> None:
    app = app_of(define_routes({"/admin/*": mount(mounted())}, strict=True))
    assert [(await fetch(app, target)).status for target in ("/admin", "/admin/", "/admin/x", "/admin/x/")] == [307, 200, 200, 200]


async def test_guards_below_the_prefix_run_whatever_their_order() -> None:
    async def refuse(ctx: Context) -> None:
        raise HTTPError(403)

    app = app_of({"/admin/*": mount(mounted()), "/admin/secret/*": refuse})
    assert [(await fetch(app, target)).status for target in ("/admin/x", "/admin/secret", "/admin//%73ecret/x")] == [200, 403, 403]


@pytest.mark.parametrize("first", [True, False])
async def test_routes_of_the_table_have_precedence(first: bool) -> None:
    routes: dict[str, Any] = {"/admin/health": own, "/admin/:id/edit": {"GET": own}, "/admin": {"GET": own}}
    table = {**routes, "/admin/*": mount(mounted())} if first else {"/admin/*": mount(mounted()), **routes}
    app = app_of(table)
    for target in ("/admin/health", "/admin//health", "/admin/7/edit", "/admin"):
        assert (await fetch(app, target)).text == "own"
    # Another method, and any other path.
    assert (await ask(app, "/admin/7/edit", "POST"))["method"] == "POST"
    assert (await ask(app, "/admin/7"))["path"] == "/admin/7"


async def test_the_deepest_mount_has_precedence() -> None:
    app = app_of({"*": mount(mounted()), "/a/*": mount(mounted()), "/a/b/*": mount(mounted())})
    assert [(await ask(app, target))["root_path"] for target in ("/a/b/c", "/a/c", "/c")] == ["/a/b", "/a", ""]


# --- what it gets and sends


@pytest.mark.parametrize("method", METHODS)
async def test_it_gets_every_method_and_the_body(method: str) -> None:
    told = await ask(app_of({"/admin/*": mount(mounted())}, max_body_size=2), "/admin/x", method, body=[b"hel", b"lo"])
    assert (told["method"], told["body"]) == (method, "hello")


async def test_it_gets_a_body_that_a_guard_has_read_and_kept() -> None:
    async def guard(ctx: Context) -> None:
        assert await ctx.json() == {"a": 1}

    told = await ask(app_of({"/admin/*": [guard, mount(mounted())]}), "/admin/x", "POST", body=b'{"a": 1}')
    assert told["body"] == '{"a": 1}'


async def test_a_body_that_a_guard_has_read_and_not_kept_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    async def guard(ctx: Context) -> None:
        await ctx.form()

    headers = {"content-type": "application/x-www-form-urlencoded"}
    exchange = await fetch(app_of({"/a/*": [guard, mount(mounted())]}), "/a/x", "POST", headers=headers, body=b"a=1")
    assert exchange.status == 500
    assert (
        "a handler or hook before it has read it with form() or stream(), which don't keep it; call await ctx.body() first"
        in caplog.text
    )


async def test_it_gets_the_client_the_scheme_and_the_host_that_a_trusted_proxy_reports() -> None:
    headers = {"x-forwarded-for": "6.6.6.6", "x-forwarded-proto": "http", "x-forwarded-host": "shop.example"}
    told = await ask(app_of({"*": mount(mounted())}), "/x", headers=headers)
    assert (told["client"], told["url"]) == ("6.6.6.6", "http://shop.example/x")
    told = await ask(app_of({"*": mount(mounted())}, trusted_proxies=[]), "/x", headers=headers)
    assert (told["client"], told["url"]) == ("127.0.0.1", "https://testserver/x")


async def test_hooks_and_the_session_apply_to_its_real_status_and_fields() -> None:
    def add(ctx: Context, response: Response) -> None:
        response.headers["x-status"] = str(response.status)

    async def login(ctx: Context) -> None:
        await ctx.session.set("user", 1)

    async def answer(seen: Request) -> StarletteResponse:
        response = PlainTextResponse("made", 201, {"X-Mixed": "kept"})
        response.set_cookie("a", "1")
        response.set_cookie("b", "2")
        return response

    app = App(
        {"/a/*": [login, mount(Starlette(routes=[Route("/", answer)]))]},
        integrations=[define_integration(name="x", on_response=add), session(SECRET)],
    )
    async with TestClient(app) as client:
        response = await client.get("/a/")
        assert (response.status_code, response.text) == (201, "made")
        assert (response.headers["x-status"], response.headers["x-mixed"], response.headers["content-length"]) == (
            "201",
            "kept",
            "4",
        )
        cookies = [line.split("=")[0] for line in response.headers.get_list("set-cookie")]
        assert cookies == ["a", "b", "__Host-Http-gaman"]


async def test_a_guard_keeps_requests_from_it() -> None:
    async def refuse(ctx: Context) -> None:
        raise HTTPError(401)

    assert (await fetch(app_of({"/a/*": [refuse, mount(mounted())]}), "/a/x")).status == 401


@pytest.mark.parametrize("status", [204, 304])
async def test_a_status_without_a_body_has_none(status: int) -> None:
    async def bare(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": [(b"content-length", b"3")]})
        await send({"type": "http.response.body", "body": b"abc"})

    exchange = await fetch(app_of({"/a/*": mount(bare)}), "/a/x")
    assert (exchange.status, exchange.body, exchange.headers.get("content-length")) == (status, b"", None)


async def test_head_gets_the_length_and_no_body() -> None:
    exchange = await fetch(app_of({"/a/*": mount(Starlette(routes=[Route("/", long)]))}), "/a/", "HEAD")
    assert (exchange.status, exchange.body, exchange.headers["content-length"]) == (200, b"", "2000")


async def long(seen: Request) -> PlainTextResponse:
    return PlainTextResponse("x" * 2000)


async def test_each_chunk_is_sent_when_it_is_ready_and_send_waits_for_the_client() -> None:
    sent: list[int] = []

    async def counts() -> AsyncIterator[str]:
        for number in range(100):
            sent.append(number)
            yield str(number)

    async def stream(seen: Request) -> StreamingResponse:
        return StreamingResponse(counts())

    app, exchange, taken = app_of({"/a/*": mount(Starlette(routes=[Route("/", stream)]))}), Exchange(), asyncio.Semaphore(0)

    async def send(message: Any) -> None:
        await taken.acquire()
        await exchange.send(message)

    running = asyncio.create_task(app(http_scope("/a/"), exchange.receive, send))
    for number in range(5):
        taken.release()
        await asyncio.sleep(0.01)
        assert len(exchange.messages) == number + 1
        assert len(sent) <= number + 2
    for _ in range(200):
        taken.release()
    await running
    assert exchange.text == "".join(map(str, range(100)))


# --- how it ends


async def test_the_request_lasts_until_the_application_returns() -> None:
    done: list[str] = []

    async def later() -> None:
        await asyncio.sleep(0.01)
        done.append("later")

    async def answer(seen: Request) -> PlainTextResponse:
        return PlainTextResponse("now", background=BackgroundTask(later))

    exchange = await fetch(app_of({"/a/*": mount(Starlette(routes=[Route("/", answer)]))}), "/a/")
    assert (exchange.text, done) == ("now", ["later"])


class Endless:
    """An application whose response never ends; it notes how its call ended."""

    def __init__(self, pause: float = 0.001) -> None:
        self.events: list[str] = []
        self._pause = pause

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
                if self._pause:
                    await asyncio.sleep(self._pause)
        except asyncio.CancelledError:
            self.events.append("cancelled")
            raise
        except OSError:
            self.events.append("OSError")
            raise


@pytest.mark.parametrize("pause", [0, 0.001, 1000])
async def test_it_is_cancelled_when_the_client_disconnects(pause: float, caplog: pytest.LogCaptureFixture) -> None:
    endless, exchange = Endless(pause), Exchange()
    running = asyncio.create_task(app_of({"/a/*": mount(endless)})(http_scope("/a/x"), exchange.receive, exchange.send))
    while len(exchange.messages) < 2:
        await asyncio.sleep(0.001)
    exchange.disconnected.set()
    await asyncio.wait_for(running, 20)
    assert endless.events in (["cancelled"], ["OSError"])
    assert [record for record in caplog.records if record.levelno > logging.DEBUG] == []


async def lets_through(cause: OSError) -> None:
    raise cause


async def wraps(cause: OSError) -> None:
    raise RuntimeError("wrapped") from cause


async def groups(cause: OSError) -> None:
    raise ExceptionGroup("of tasks", [cause, cause])


async def raises_again(cause: OSError) -> None:
    try:
        raise ExceptionGroup("of tasks", [ValueError("a bug")])
    except ExceptionGroup as group:
        raise group.exceptions[0] from group


async def groups_a_bug(cause: OSError) -> None:
    raise ExceptionGroup("of tasks", [cause, ValueError("a bug")])


async def catches(cause: OSError) -> None: ...


@pytest.mark.parametrize(
    ("clean_up", "is_logged"),
    [(lets_through, False), (wraps, False), (groups, False), (groups_a_bug, True), (raises_again, True), (catches, True)],
)
async def test_of_the_errors_after_a_disconnect_only_a_bug_is_logged(
    clean_up: Any, is_logged: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
        except OSError as cause:
            await clean_up(cause)
        raise ValueError("a bug")

    async def leave(message: Any) -> None:
        if message.get("body"):
            raise BrokenPipeError
        await exchange.send(message)

    exchange = Exchange()
    await app_of({"/a/*": mount(application)})(http_scope("/a/x"), exchange.receive, leave)
    # asyncio reports an error that was never read.
    gc.collect()
    lines = [record.getMessage() for record in caplog.records if record.levelno > logging.DEBUG]
    assert [line.rpartition(".")[2] for line in lines] == ["application) failed after its response"] * is_logged


async def test_an_application_that_waits_for_the_disconnect_ends_by_itself() -> None:
    events: list[str] = []

    async def waiting(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        assert (await receive())["type"] == "http.request"
        events.append((await receive())["type"])
        await asyncio.sleep(0.01)
        events.append("returned")

    exchange = Exchange()
    running = asyncio.create_task(app_of({"/a/*": mount(waiting)})(http_scope("/a/x"), exchange.receive, exchange.send))
    while not exchange.messages:
        await asyncio.sleep(0.001)
    exchange.disconnected.set()
    await asyncio.wait_for(running, 20)
    assert events == ["http.disconnect", "returned"]


async def test_it_is_cancelled_when_a_hook_replaces_its_response() -> None:
    endless = Endless()
    app = app_of(
        {"/a/*": mount(endless)}, integrations=[define_integration(name="x", on_response=lambda ctx, _: Response("other"))]
    )
    assert (await fetch(app, "/a/x")).text == "other"
    assert endless.events == ["cancelled"]


async def test_it_is_cancelled_with_its_request() -> None:
    endless, exchange = Endless(), Exchange()
    running = asyncio.create_task(app_of({"/a/*": mount(endless)})(http_scope("/a/x"), exchange.receive, exchange.send))
    while len(exchange.messages) < 2:
        await asyncio.sleep(0.001)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert endless.events == ["cancelled"]


async def test_an_exception_before_the_response_goes_to_on_error() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        raise ValueError("no table")

    seen: list[Exception] = []

    def on_error(ctx: Context, error: Exception) -> Response:
        seen.append(error)
        return Response("sorry", 500)

    app = app_of({"/a/*": mount(broken)}, integrations=[define_integration(name="x", on_error=on_error)])
    assert (await fetch(app, "/a/x")).text == "sorry"
    assert [repr(error) for error in seen] == ["ValueError('no table')"]


BEGINNINGS: list[tuple[list[dict[str, Any]], str]] = [
    ([], "mount(sending) returned without a response"),
    ([{"type": "http.response.body", "body": b""}], "the application sent 'http.response.body' before 'http.response.start'"),
    ([{"type": "http.response.start", "status": 200, "headers": [(b"content-length ", b"3")]}], "is not a header name"),
    ([{"type": "http.response.start", "status": 200, "headers": [(b"a: b\r\nc", b"d")]}], "is not a header name"),
    ([{"type": "http.response.start", "status": 200, "headers": [(b"a", b"b\r\nc: d")]}], "holds a control character"),
    ([{"type": "http.response.start", "status": 99, "headers": []}], "a response's status is an int from 200 to 599, not 99"),
]


@pytest.mark.parametrize(("messages", "text"), BEGINNINGS)
async def test_a_wrong_beginning_is_500(messages: list[Any], text: str, caplog: pytest.LogCaptureFixture) -> None:
    async def sending(scope: Any, receive: Any, send: Any) -> None:
        for message in messages:
            await send(message)

    sending.__qualname__ = "sending"
    assert (await fetch(app_of({"/a/*": mount(sending)}), "/a/x")).status == 500
    assert text in caplog.text


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt()])
async def test_an_application_that_exits_does_not_end_the_server(error: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    async def leaving(scope: Any, receive: Any, send: Any) -> None:
        raise error

    leaving.__qualname__ = "leaving"
    assert (await fetch(app_of({"/a/*": mount(leaving)}), "/a/x")).status == 500
    assert f"GamanError: mount(leaving) raised {error!r}" in caplog.text


async def test_it_may_use_its_message_again() -> None:
    async def thrifty(scope: Any, receive: Any, send: Any) -> None:
        message: dict[str, Any] = {"type": "http.response.start", "status": 201, "headers": [(b"x-a", b"1")]}
        await send(message)
        message["headers"].clear()
        message.clear()
        message |= {"type": "http.response.body", "body": b"ok"}
        await send(message)

    exchange = await fetch(app_of({"/a/*": mount(thrifty)}), "/a/x")
    assert (exchange.status, exchange.headers["x-a"], exchange.text) == (201, "1", "ok")


async def test_an_error_of_middleware_that_reads_the_body_reaches_it() -> None:
    def limit(app: Any) -> Any:
        async def limited(scope: Any, receive: Any, send: Any) -> None:
            async def receive_some() -> Any:
                if len((message := await receive()).get("body", b"")) > 3:
                    raise ValueError("too large")
                return message

            await app(scope, receive_some, send)

        return limited

    seen: list[str] = []

    async def reading(scope: Any, receive: Any, send: Any) -> None:
        try:
            await receive()
        except ValueError as error:
            seen.append(str(error))
        await PlainTextResponse("refused", 413)(scope, receive, send)

    app = app_of({"/a/*": mount(reading)}, middleware=[limit])
    assert (await fetch(app, "/a/x", "POST", body=b"long")).status == 413
    assert seen == ["too large"]


async def test_a_response_that_stops_early_is_logged_and_not_completed(caplog: pytest.LogCaptureFixture) -> None:
    async def stopping(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})

    stopping.__qualname__ = "stopping"
    exchange = await fetch(app_of({"/a/*": mount(stopping)}), "/a/x")
    assert exchange.messages[-1]["more_body"]
    assert "GET '/a/x' broke off: GamanError: mount(stopping) returned within its response" in caplog.text


async def test_an_exception_within_the_response_breaks_it_off() -> None:
    async def failing(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        await fetch(app_of({"/a/*": mount(failing)}), "/a/x")


async def test_an_exception_after_the_response_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise ValueError("no mail")

    async def answer(seen: Request) -> PlainTextResponse:
        return PlainTextResponse("now", background=BackgroundTask(fail))

    exchange = await fetch(app_of({"/a/*": mount(Starlette(routes=[Route("/", answer)]))}), "/a/")
    assert exchange.text == "now"
    [record] = caplog.records
    assert record.getMessage() == "GET '/a/': mount(Starlette) failed after its response"
    assert "ValueError: no mail" in caplog.text


# --- its lifespan


def recording(events: list[str], name: str, *, fails: bool = False) -> Starlette:
    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncGenerator[dict[str, str]]:
        events.append(f"{name} starts")
        if fails:
            raise ValueError("no database")
        # A task group has to end in the task that it began in.
        async with asyncio.TaskGroup():
            yield {"name": name}
        events.append(f"{name} ends")

    async def state(seen: Request) -> PlainTextResponse:
        return PlainTextResponse(seen.state.name)

    return Starlette(routes=[Route("/", state)], lifespan=lifespan)


async def test_each_starts_once_after_the_integrations_and_ends_before_them() -> None:
    events: list[str] = []
    store = define_integration(
        name="store", on_load=lambda app: events.append("store starts"), on_shutdown=lambda app: events.append("store ends")
    )
    one, two = recording(events, "one"), recording(events, "two")
    app = App({"/1/*": mount(one), "/2/*": mount(App({"/*": mount(two)})), "/3/*": mount(one)}, integrations=[store])
    for _ in range(2):
        events.clear()
        async with TestClient(app) as client:
            assert [(await client.get(path)).text for path in ("/1/", "/2/", "/3/")] == ["one", "two", "one"]
        assert events == ["store starts", "one starts", "two starts", "two ends", "one ends", "store ends"]


async def test_one_that_fails_stops_the_start_with_its_reason_and_ends_the_others() -> None:
    events: list[str] = []
    app = App({"/1/*": mount(recording(events, "one")), "/2/*": mount(recording(events, "two", fails=True))})
    with pytest.raises(ConfigError, match=r"^the application can't start: ValueError: no database \(.*line \d+, in lifespan\)$"):
        await app.load()
    assert events == ["one starts", "two starts", "one ends"]


async def test_without_a_lifespan_the_requests_fail_with_the_reason(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(ConfigError, match="no integration and no mounted application is loaded"):
        await fetch(App({"/a/*": mount(mounted())}), "/a/x")


async def test_routes_that_a_function_makes_may_mount_what_it_is_given() -> None:
    events: list[str] = []
    app = App(define_routes(lambda deps: {"/a/*": mount(deps)}), deps=recording(events, "one"))
    async with TestClient(app) as client:
        assert (await client.get("/a/")).text == "one"
    assert events == ["one starts", "one ends"]


# --- mistakes


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"/admin": mount(mounted())}, "ALL /admin: mount() takes every path below its own; write '/admin/*'"),
        ({"/": mount(mounted())}, "ALL /: mount() takes every path below its own; write '/*'"),
        ({"/f/:path*": mount(mounted())}, "ALL /f/:path*: mount() takes every path below its own; write '/f/*'"),
        ({"/a": {"GET": mount(mounted())}}, "GET /a: mount() takes every method; give it to the path, without 'GET'"),
        ({"/a/*": {"ALL": mount(mounted())}}, "ALL /a/*: mount() takes every method; give it to the path, without 'ALL'"),
        ({"/a/*": [mount(mounted()), own]}, "ALL /a/*: mount() answers every request, so nothing runs after it; make it the last"),
        ({"/a/*": mount(mounted()), "/a": {"*": mount(mounted())}}, "ALL /a/*: this path and method have a route already"),
        (
            {"/a/*": mount(mounted()), "/a/:rest*": own},
            "ALL /a/*: ':rest*' of another route takes every path of the mount; remove one",
        ),
    ],
)
def test_a_mount_where_it_makes_no_sense_is_an_error(table: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        define_routes(table)
    assert str(raised.value).startswith(message)


async def test_a_mount_outside_a_table_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    admin = mount(mounted())

    async def forward(ctx: Context) -> Any:
        return await admin(ctx)

    assert (await fetch(App({"/a": forward}), "/a")).status == 500
    assert "mount() is a value of a table, as in {'/admin/*': mount(app)}; it isn't called" in caplog.text


# --- another framework's application


async def test_flask_works_below_a_guard_with_urls_that_lead_to_it() -> None:
    site: Any = flask.Flask("site")

    @site.route("/")  # type: ignore[untyped-decorator]  # Flask's own
    def root() -> str:
        return flask.url_for("form")

    @site.route("/form", methods=["POST"])  # type: ignore[untyped-decorator]  # as above
    def form() -> tuple[str, int]:
        return flask.request.form["name"], 201

    async def guard(ctx: Context) -> None:
        if ctx.header("x-user") is None:
            raise HTTPError(401)

    async with TestClient(App({"/old/*": [guard, mount(WSGIMiddleware(site))]})) as client:
        assert (await client.get("/old/")).status_code == 401
        client.headers["x-user"] = "1"
        assert (await client.get("/old/")).text == "/old/form"
        response = await client.post("/old/form", data={"name": "Angga"})
        assert (response.status_code, response.text) == (201, "Angga")


# --- over real sockets

SERVED = """
import asyncio, sys
import gaman
from gaman import mount
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Route

async def ticks():
    try:
        while True:
            yield "data: tick\\n\\n"
            await asyncio.sleep(0.05)
    finally:
        print("stream ended", flush=True)

async def events(request):
    return StreamingResponse(ticks(), media_type="text/event-stream")

async def flood(scope, receive, send):
    try:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while True:
            await send({"type": "http.response.body", "body": bytes(65536), "more_body": True})
    finally:
        print("flood ended", flush=True)

async def work():
    print("work begins", flush=True)
    await asyncio.sleep(0.5)
    print("work ends", flush=True)

async def begin(request):
    return PlainTextResponse("accepted", 202, background=BackgroundTask(work))

async def fail(request):
    async def chunks():
        yield "first"
        raise ValueError("no more")
    return StreamingResponse(chunks())

async def count(request):
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
    return PlainTextResponse(str(size))

routes = [Route("/events", events), Route("/begin", begin), Route("/fail", fail), Route("/count", count, methods=["POST"])]
gaman.serve({"/a/*": mount(Starlette(routes=routes)), "/flood/*": mount(flood)}, port=0)
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Generator[Program]:
    with running_script(SERVED, tmp_path_factory.mktemp("mounted")) as program:
        yield program
        assert program.stop() == 0


@pytest.mark.parametrize(("path", "name"), [("/a/events", "stream"), ("/flood/x", "flood")])
def test_a_stream_ends_when_its_client_disconnects(served: Program, path: str, name: str) -> None:
    before = served.stdout.count(f"{name} ended")
    with Connection(served.port) as client:
        client.send(request(path))
        client.read_until(b"\r\n\r\n")
    until(lambda: served.stdout.count(f"{name} ended") > before, f"the end of the {name}")


def test_a_stream_that_never_reads_its_upload_ends_when_its_client_disconnects(served: Program) -> None:
    before, log = served.stdout.count("flood ended"), served.stderr
    with Connection(served.port) as client:
        client.send(request("/flood/x", "Content-Length: 1000000", method="POST") + bytes(500_000))
        client.read_until(b"\r\n\r\n")
    until(lambda: served.stdout.count("flood ended") > before, "the end of the flood")
    assert get(served.port, "/a/missing").status == 404
    assert served.stderr == log


def test_the_connection_serves_on_while_background_work_lasts(served: Program) -> None:
    with Connection(served.port) as client:
        assert client.fetch(request("/a/begin")).status == 202
        assert client.fetch(request("/a/missing")).status == 404


def test_an_upload_larger_than_max_body_size_arrives(served: Program) -> None:
    with Connection(served.port) as client:
        assert client.fetch(request("/a/count", method="POST", body=bytes(3 << 20))).body == b"%d" % (3 << 20)


def test_a_response_that_fails_is_broken_off_and_logged_once(served: Program) -> None:
    before = served.stderr
    with Connection(served.port) as client:
        client.send(request("/a/fail"))
        assert not client.read_rest().endswith(b"0\r\n\r\n")
    until(lambda: "ValueError: no more" in served.stderr.removeprefix(before), "the log line")
    assert served.stderr.removeprefix(before).count("'/a/fail' broke off") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM])
def test_a_stop_waits_for_background_work(number: signal.Signals, tmp_path: Path) -> None:
    with running_script(SERVED, tmp_path) as program:
        assert get(program.port, "/a/begin").status == 202
        until(lambda: "work begins" in program.stdout, "the work")
        assert program.stop(number) == 0
        assert "work ends" in program.stdout
