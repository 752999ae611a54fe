from __future__ import annotations

import asyncio
import importlib
import re
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from gaman import App, ConfigError, Context, HTTPError, MissingDependency, Response, define_integration, define_routes
from gaman.testing import SyncTestClient, TestClient, _transport
from tests.test_readme import blocks

anyio = pytest.mark.anyio
CHAPTER = "examples/guide/testing.md"


async def show(ctx: Context) -> dict[str, object]:
    return {"method": ctx.method, "url": ctx.url, "body": await ctx.text()}


async def fail(ctx: Context) -> Response:
    raise ValueError("the handler")


async def break_off(ctx: Context) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"begun"
        raise ValueError("the stream")

    return Response.stream(chunks())


async def exceed(ctx: Context) -> Response:
    async def chunks() -> AsyncIterator[bytes]:
        yield b"more than one byte"

    return Response.stream(chunks(), headers={"content-length": "1"})


async def refuse(ctx: Context) -> Response:
    raise HTTPError(403, "not you")


async def visit(ctx: Context) -> str:
    seen = ctx.cookies.get("__Host-Http-n") or "0"
    ctx.cookies.set("__Host-Http-n", str(int(seen) + 1), http_only=True)
    return seen


async def upload(ctx: Context) -> list[object]:
    file = await ctx.file("f")
    assert file is not None
    return [await ctx.input("a"), file.filename, file.content_type, (await file.read()).decode()]


def recording(events: list[str]) -> App:
    """Return an App that adds its start-up, its requests and its shutdown to *events*."""

    async def handler(ctx: Context) -> str:
        events.append("request")
        return "ok"

    integration = define_integration(
        name="x", on_load=lambda app: events.append("load"), on_shutdown=lambda app: events.append("shutdown")
    )
    return App({"/": handler}, integrations=[integration])


@anyio
async def test_the_client_sends_requests_to_the_app_over_https() -> None:
    async with TestClient(App({"/x": show})) as client:
        response = await client.post("/x?a=1", content="hello")
    assert response.json() == {"method": "POST", "url": "https://testserver/x?a=1", "body": "hello"}


def test_plain_with_gives_a_client_whose_calls_need_no_await() -> None:
    with TestClient(App({"/x": show})) as client:
        assert isinstance(client, httpx.Client)
        response = client.post("/x?a=1", content="hello")
    assert response.json() == {"method": "POST", "url": "https://testserver/x?a=1", "body": "hello"}


@anyio
async def test_the_client_accepts_the_options_of_an_httpx_client() -> None:
    async with TestClient(App({"/": show}), base_url="http://example.com", headers={"host": "other.example"}) as client:
        assert isinstance(client, httpx.AsyncClient)
        assert (await client.get("/")).json()["url"] == "http://other.example/"


def test_the_synchronous_client_has_the_options_and_the_settings_of_its_test_client() -> None:
    unopened = TestClient(App({"/": show}), base_url="http://example.com", follow_redirects=True)
    unopened.headers["host"] = "other.example"
    unopened.cookies.set("a", "1")
    with unopened as client:
        assert client.get("/").json()["url"] == "http://other.example/"
        assert (client.follow_redirects, client.cookies["a"]) == (True, "1")


@anyio
async def test_requests_run_between_load_and_shutdown() -> None:
    events: list[str] = []
    async with TestClient(recording(events)) as client:
        await client.get("/")
    assert events == ["load", "request", "shutdown"]


def test_load_requests_and_shutdown_share_one_task_and_loop_with_plain_with() -> None:
    found: list[asyncio.AbstractEventLoop] = []
    tasks: list[object] = []

    async def note(_: object) -> None:
        found.append(asyncio.get_running_loop())
        tasks.append(asyncio.current_task())

    async def handler(ctx: Context) -> str:
        await note(ctx)
        return "ok"

    with TestClient(App({"/": handler}, integrations=[define_integration(name="x", on_load=note, on_shutdown=note)])) as client:
        client.get("/")
    assert len(found) == 3
    assert len(set(found)) == 1
    # A task group that on_load enters can be left only in the same task.
    assert tasks[0] is tasks[2]


@anyio
async def test_the_app_is_shut_down_if_the_test_fails() -> None:
    events: list[str] = []
    with pytest.raises(RuntimeError, match="the test"):
        async with TestClient(recording(events)):
            raise RuntimeError("the test")
    assert events == ["load", "shutdown"]


def test_the_app_is_shut_down_if_a_synchronous_test_fails() -> None:
    events: list[str] = []
    with pytest.raises(RuntimeError, match="the test"), TestClient(recording(events)):
        raise RuntimeError("the test")
    assert events == ["load", "shutdown"]


def failing_to_load() -> App:
    def on_load(app: App) -> None:
        raise ValueError("no store")

    return App({"/": show}, integrations=[define_integration(name="x", on_load=on_load)])


@anyio
async def test_a_failed_load_fails_the_test() -> None:
    with pytest.raises(ValueError, match="no store"):
        async with TestClient(failing_to_load()):
            pass


def test_a_failed_load_fails_a_synchronous_test() -> None:
    with pytest.raises(ValueError, match="no store"), TestClient(failing_to_load()):
        pass


def test_clients_of_one_app_start_it_once_and_the_last_one_shuts_it_down() -> None:
    events: list[str] = []
    app = recording(events)
    first, second = TestClient(app), TestClient(app)
    with first as one:
        client = second.__enter__()
        one.get("/")
    client.get("/")
    assert events == ["load", "request", "request"]
    second.__exit__()
    assert events == ["load", "request", "request", "shutdown"]
    with TestClient(app):
        assert events[-1] == "load"


@anyio
async def test_an_app_works_in_one_event_loop_after_the_other() -> None:
    events: list[str] = []
    app = recording(events)
    for _ in range(2):
        async with TestClient(app) as one, TestClient(app) as other:
            await one.get("/")
            await other.get("/")

    def synchronous() -> None:
        with TestClient(app) as client:
            client.get("/")

    await asyncio.to_thread(synchronous)
    assert events == ["load", "request", "request", "shutdown"] * 2 + ["load", "request", "shutdown"]


@anyio
async def test_the_client_keeps_secure_cookies_until_they_are_removed() -> None:
    async def leave(ctx: Context) -> str:
        ctx.cookies.delete("__Host-Http-n")
        return "left"

    async with TestClient(App({"/": visit, "/leave": leave})) as client:
        assert [(await client.get("/")).text for _ in range(3)] == ["0", "1", "2"]
        assert client.cookies["__Host-Http-n"] == "3"
        await client.get("/leave")
        assert not client.cookies
        assert (await client.get("/")).text == "0"


def test_the_client_drops_a_cookie_after_its_max_age_and_a_secure_one_over_http() -> None:
    async def brief(ctx: Context) -> str:
        ctx.cookies.set("brief", "1", max_age=0)
        ctx.cookies.set("long", "1", max_age=60)
        return "ok"

    async def secure(ctx: Context) -> str:
        ctx.cookies.set("__Host-a", "1", secure=True)
        return ctx.header("cookie") or "none"

    app = App({"/brief": brief, "/secure": secure})
    with TestClient(app) as client:
        client.get("/brief")
        assert [*client.cookies] == ["long"]
    with TestClient(app, base_url="http://testserver") as client:
        client.get("/secure")
        assert client.get("/secure").text == "none"


def test_two_clients_do_not_share_cookies() -> None:
    with TestClient(app := App({"/": visit})) as one, TestClient(app) as other:
        one.get("/")
        assert (one.get("/").text, other.get("/").text) == ("1", "0")


@anyio
async def test_a_file_can_be_uploaded() -> None:
    async with TestClient(App({"/": upload})) as client:
        response = await client.post("/", data={"a": "1"}, files={"f": ("x.txt", b"content", "text/plain")})
    assert response.json() == ["1", "x.txt", "text/plain", "content"]


def test_a_file_can_be_uploaded_without_await() -> None:
    with TestClient(App({"/": upload, "/x": show})) as client:
        response = client.post("/", data={"a": "1"}, files={"f": ("x.txt", b"content", "text/plain")})
        assert client.post("/x", content=iter([b"in ", b"chunks"])).json()["body"] == "in chunks"
    assert response.json() == ["1", "x.txt", "text/plain", "content"]


# Errors


@anyio
async def test_the_exception_of_a_handler_is_raised_with_its_traceback() -> None:
    error = ValueError("this very one")

    async def handler(ctx: Context) -> Response:
        raise error

    async with TestClient(App({"/": handler, "/x": show})) as client:
        with pytest.raises(ValueError, match="this very one") as raised:
            await client.get("/")
        assert raised.value is error
        assert raised.traceback[-1].name == "handler"
        assert (await client.get("/x")).status_code == 200


def test_the_exception_of_a_handler_is_raised_with_its_traceback_without_await() -> None:
    with TestClient(App({"/": fail, "/x": show})) as client:
        with pytest.raises(ValueError, match="the handler") as raised:
            client.get("/")
        assert raised.traceback[-1].name == "fail"
        assert client.get("/x").status_code == 200


def test_errors_are_not_raised_if_the_test_says_so() -> None:
    with TestClient(App({"/": fail, "/stream": break_off}), raise_errors=False) as client:
        response = client.get("/")
        assert (response.status_code, response.text) == (500, "Internal Server Error")
        with pytest.raises(httpx.RemoteProtocolError, match="before its response was complete"):
            client.get("/stream")


def test_a_request_whose_error_is_raised_ends_in_the_application_as_any_other() -> None:
    events: list[str] = []
    app = App({"/": fail})

    async def middleware(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)
        events.append(scope["type"])

    with TestClient(middleware) as client, pytest.raises(ValueError, match="the handler"):
        client.get("/")
    assert events == ["http", "lifespan"]


def test_an_http_error_is_a_response_even_at_500() -> None:
    async def unavailable(ctx: Context) -> Response:
        raise HTTPError(503, "later")

    with TestClient(App({"/": refuse, "/later": unavailable})) as client:
        assert (client.get("/").text, client.get("/later").text, client.get("/none").status_code) == ("not you", "later", 404)


@pytest.mark.parametrize("hook", ["on_request", "on_response"])
def test_the_exception_of_a_hook_is_raised(hook: str) -> None:
    def raising(*_: object) -> None:
        raise ValueError("the hook")

    hooks: dict[str, Any] = {hook: raising}
    with (
        TestClient(App({"/": show}, integrations=[define_integration(name="x", **hooks)])) as client,
        pytest.raises(ValueError, match="the hook"),
    ):
        client.get("/")


def answering(status: int) -> App:
    """Return an App whose on_error hook answers each ValueError with *status*."""

    def on_error(ctx: Context, error: Exception) -> Response | None:
        return Response.text("answered", status) if isinstance(error, ValueError) else None

    return App({"/": fail}, integrations=[define_integration(name="x", on_error=on_error)])


def test_an_error_that_a_hook_answers_is_a_response_below_500() -> None:
    with TestClient(answering(409)) as client:
        assert (client.get("/").status_code, client.get("/").text) == (409, "answered")
    with TestClient(answering(500)) as client, pytest.raises(ValueError, match="the handler"):
        client.get("/")


@pytest.mark.parametrize(("path", "error"), [("/", "the handler"), ("/refuse", "the hook")])
def test_the_exception_of_an_on_error_hook_is_raised_unless_it_hides_another(path: str, error: str) -> None:
    def on_error(ctx: Context, error: Exception) -> None:
        raise ValueError("the hook")

    app = App({"/": fail, "/refuse": refuse}, integrations=[define_integration(name="x", on_error=on_error)])
    with TestClient(app) as client, pytest.raises(ValueError, match=error):
        client.get(path)


@pytest.mark.parametrize(("handler", "error"), [(break_off, "the stream"), (exceed, "more bytes than the 1")])
def test_the_exception_of_a_stream_is_raised_after_its_first_chunks(handler: Callable[[Context], Any], error: str) -> None:
    with TestClient(App({"/": handler})) as client:
        with pytest.raises(ValueError, match=error):
            client.get("/")
        with client.stream("GET", "/") as response:
            assert response.status_code == 200
            with pytest.raises(ValueError, match=error):
                response.read()


def test_a_handler_may_fail_the_test() -> None:
    async def handler(ctx: Context) -> Response:
        pytest.fail("from the handler")

    with TestClient(App({"/": handler, "/x": show}), raise_errors=False) as client:
        with pytest.raises(pytest.fail.Exception, match="from the handler"):
            client.get("/")
        assert client.get("/x").status_code == 200


# Streams


class Ticks:
    """An endless stream, which tells how far it ran, and whether it has ended."""

    def __init__(self) -> None:
        self.count = 0
        self.has_ended = False

    async def handle(self, ctx: Context) -> Response:
        return Response.stream(self._run())

    async def _run(self) -> AsyncGenerator[str]:
        try:
            while True:
                self.count += 1
                yield f"{self.count}\n"
        finally:
            self.has_ended = True


@anyio
async def test_an_endless_stream_runs_as_fast_as_the_test_reads_and_ends_with_the_block() -> None:
    ticks = Ticks()
    async with TestClient(App({"/": ticks.handle})) as client:
        async with client.stream("GET", "/") as response:
            lines = response.aiter_lines()
            assert [await anext(lines) for _ in range(3)] == ["1", "2", "3"]
            for _ in range(50):
                await asyncio.sleep(0)
            assert ticks.count < 6
        assert ticks.has_ended


def test_an_endless_stream_can_be_read_without_await() -> None:
    ticks = Ticks()
    with TestClient(App({"/": ticks.handle})) as client:
        with client.stream("GET", "/") as response:
            lines = response.iter_lines()
            assert [next(lines) for _ in range(3)] == ["1", "2", "3"]
        assert ticks.has_ended


@anyio
async def test_a_response_that_stays_open_is_closed_with_the_client() -> None:
    ticks = Ticks()
    async with TestClient(App({"/": ticks.handle})) as client:
        response = await client.send(client.build_request("GET", "/"), stream=True)
        assert response.status_code == 200
    assert ticks.has_ended


class Sleeper:
    """A handler that sleeps for an hour, before its response or after the first chunk, and tells if it is cancelled."""

    def __init__(self) -> None:
        self.is_asleep = asyncio.Event()
        self.is_cancelled = False

    async def sleep(self) -> None:
        self.is_asleep.set()
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            self.is_cancelled = True
            raise

    async def handle(self, ctx: Context) -> str:
        await self.sleep()
        return "late"

    async def send(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await self.sleep()


@anyio
async def test_a_request_that_the_test_cancels_is_cancelled_in_the_application() -> None:
    sleeper = Sleeper()
    async with TestClient(App({"/": sleeper.handle, "/x": show})) as client:
        request = asyncio.create_task(client.get("/"))
        await sleeper.is_asleep.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        assert sleeper.is_cancelled
        assert (await client.get("/x")).status_code == 200


@anyio
async def test_an_application_that_ignores_the_disconnect_is_cancelled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_transport, "_GRACE", 0.05)
    sleeper = Sleeper()
    async with TestClient(sleeper.send) as client, client.stream("GET", "/") as response:
        assert await anext(response.aiter_bytes()) == b"first"
    assert sleeper.is_cancelled


async def send_greeting(scope: Any, receive: Any, send: Any) -> None:
    """Send a body whatever the method: dropping it is the server's part (ASGI, HTTP)."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"Hello"})


@pytest.mark.parametrize("application", [App({"/": show}), send_greeting], ids=["App", "ASGI"])
def test_a_head_request_gets_no_body(application: Any) -> None:
    with TestClient(application) as client:
        response = client.head("/")
    assert (response.status_code, response.content) == (200, b"")
    assert int(response.headers["content-length"]) >= 5


# Outside of `with`

NOT_RUNNING = re.escape("write `async with TestClient(app) as client:`, or in a test that isn't async `with TestClient(app) as")


@pytest.mark.parametrize("call", ["request", "get", "post", "stream", "session"])
def test_outside_of_with_a_call_says_what_to_write(call: str) -> None:
    app = App({"/": show})
    before, inside = TestClient(app), TestClient(app)
    # The client to use is the one that `with` gives.
    with inside as after, pytest.raises(RuntimeError, match=NOT_RUNNING):
        getattr(inside, call)("GET", "/")
    for client in (before, after, SyncTestClient(app)):
        with pytest.raises(RuntimeError, match=NOT_RUNNING):
            getattr(client, call)("GET", "/")


@anyio
async def test_outside_of_async_with_a_call_says_what_to_write() -> None:
    async with TestClient(App({"/": show})) as client:
        await client.get("/")
    with pytest.raises(RuntimeError, match=NOT_RUNNING):
        await client.get("/")
    await client.aclose()


@anyio
async def test_plain_with_in_an_async_test_says_what_to_write() -> None:
    said = r"this test is async: write `async with TestClient\(app\) as client:`"
    with pytest.raises(RuntimeError, match=said), TestClient(App({"/": show})):
        pass


def test_an_event_loop_of_another_kind_is_named() -> None:
    # Without asyncio's event loop, as on trio.
    entering = TestClient(App({"/": show})).__aenter__()
    with pytest.raises(RuntimeError, match=r"gaman runs on asyncio, and this test doesn't; .* returns \"asyncio\""):
        entering.send(None)


@anyio
async def test_a_client_is_used_for_one_block() -> None:
    client = TestClient(App({"/": show}))
    async with client:
        with pytest.raises(RuntimeError, match="used for one block; make another"):
            await client.__aenter__()
        assert (await client.get("/")).status_code == 200
    with pytest.raises(RuntimeError, match="used for one block; make another"):
        await client.__aenter__()


def test_an_async_function_is_called_in_the_event_loop_of_the_app() -> None:
    loops: list[object] = []

    async def handler(ctx: Context) -> str:
        loops.append(asyncio.get_running_loop())
        return "ok"

    async def double(number: int, *, plus: int) -> int:
        loops.append(asyncio.get_running_loop())
        return number * 2 + plus

    async def raising() -> None:
        raise KeyError("called")

    with TestClient(App({"/": handler})) as client:
        client.get("/")
        assert client.call(double, 2, plus=1) == 5
        with pytest.raises(KeyError, match="called"):
            client.call(raising)
    assert loops[0] is loops[1]


# Other applications


@pytest.mark.parametrize(
    ("application", "named"),
    [
        ({"/": show}, "routes aren't an application; make an App of them first"),
        (define_routes({"/": show}), "routes aren't an application; make an App of them first"),
        (App, "App is a class; make an application of it first"),
        (show, "show is a handler; give gaman.App"),
        (None, "None isn't an ASGI application"),
    ],
)
def test_what_cannot_be_an_application_is_refused(application: Any, named: str) -> None:
    for kind in (TestClient, SyncTestClient):
        with pytest.raises(ConfigError, match=rf"TestClient\(\): {named}"):
            kind(application)


def test_an_application_of_another_framework_runs_with_its_lifespan_and_raises_its_errors() -> None:
    events: list[str] = []

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[dict[str, str]]:
        events.append("startup")
        yield {"color": "red"}
        events.append("shutdown")

    async def color(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.state.color)

    async def failing(request: Request) -> PlainTextResponse:
        raise ValueError("starlette's handler")

    site = Starlette(routes=[Route("/", color), Route("/fail", failing)], lifespan=lifespan)
    with TestClient(site) as client:
        assert client.get("/").text == "red"
        with pytest.raises(ValueError, match="starlette's handler"):
            client.get("/fail")
    assert events == ["startup", "shutdown"]
    with TestClient(site, raise_errors=False) as client:
        assert client.get("/fail").status_code == 500


def test_a_failed_start_up_of_another_application_is_raised() -> None:
    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncGenerator[None]:
        raise KeyError("no database")
        yield

    async def telling(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "lifespan.startup.failed", "message": "no store"})

    with pytest.raises(ConfigError, match="can't start: KeyError: 'no database'"), TestClient(Starlette(lifespan=lifespan)):
        pass
    with pytest.raises(ConfigError, match="can't start: no store"), TestClient(telling):
        pass


def test_an_app_in_middleware_raises_its_errors_and_an_application_may_have_no_lifespan() -> None:
    app = App({"/": fail, "/x": show})

    async def middleware(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await app({**scope}, receive, send)

    with TestClient(middleware) as client:
        assert client.get("/x").status_code == 200
        with pytest.raises(ValueError, match="the handler"):
            client.get("/")


@pytest.mark.parametrize("raise_errors", [True, False])
def test_an_application_that_does_not_answer_is_an_error(raise_errors: bool) -> None:
    async def silent(scope: Any, receive: Any, send: Any) -> None:
        pass

    with (
        TestClient(silent, raise_errors=raise_errors) as client,
        pytest.raises(httpx.RemoteProtocolError, match="before its response was complete"),
    ):
        client.get("/")


# For newcomers


def test_the_guides_files_pass_as_they_are_copied(tmp_path: Path) -> None:
    tests = 0
    for block in blocks(CHAPTER, "python"):
        name = re.match(r"# (\w+\.py)\n", block.code)
        assert name, f"{CHAPTER}:{block.line} has no file name"
        (tmp_path / name[1]).write_text(block.code)
        tests += len(re.findall(r"^(?:async )?def test_", block.code, re.MULTILINE))
    strictly = ["-W", "error", "--strict-markers", "--strict-config", "-p", "no:cacheprovider"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *strictly], cwd=tmp_path, capture_output=True, text=True, check=False, timeout=120
    )
    assert f" {tests} passed in " in done.stdout, done.stdout
    assert (done.returncode, tests > 20) == (0, True)


def test_without_httpx_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    monkeypatch.delitem(sys.modules, "gaman.testing")
    with pytest.raises(MissingDependency, match=re.escape('gaman.testing needs httpx: pip install "gaman[test]"')):
        importlib.import_module("gaman.testing")


def test_pytest_does_not_collect_the_clients_as_tests() -> None:
    assert (TestClient.__test__, SyncTestClient.__test__) == (False, False)
