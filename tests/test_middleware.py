"""App(middleware=[...]), with Starlette's middleware and handwritten ones."""

from __future__ import annotations

import gzip
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.middleware import Middleware as StarletteMiddleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware

from gaman import App, ConfigError, Context, HTTPError, Integration, Middleware, Response, define_integration
from gaman.session import session
from gaman.testing import TestClient
from tests.asgi import Channel, fetch
from tests.serving import get, running_script

pytestmark = pytest.mark.anyio

SECRET = "a secret of these tests, long enough"


async def home(ctx: Context) -> str:
    return "x" * 1000


async def refuse(ctx: Context) -> str:
    raise HTTPError(403)


class Named:
    """Middleware that notes which scopes it sees."""

    def __init__(self, app: Any, *, name: str, events: list[str]) -> None:
        self._app, self._name, self._events = app, name, events

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._events.append(f"{self._name} {scope['type']}")
        await self._app(scope, receive, send)


async def test_the_first_is_the_outermost_and_all_see_every_scope() -> None:
    events: list[str] = []
    app = App({"/": home}, middleware=[Middleware(Named, name="a", events=events), lambda app: Named(app, name="b", events=events)])
    async with TestClient(app) as client:
        await client.get("/")
    refused = Channel({"type": "websocket.connect"})
    await app({"type": "websocket"}, refused.receive, refused.send)
    assert events == [f"{name} {scope}" for scope in ("lifespan", "http", "websocket") for name in "ab"]
    assert [message["type"] for message in refused.messages] == ["websocket.close"]


def compress(app: Any) -> Any:
    return GZipMiddleware(app, minimum_size=500)


ENTRIES: dict[str, Any] = {
    "Middleware": Middleware(GZipMiddleware, minimum_size=500),
    "Starlette's Middleware": StarletteMiddleware(GZipMiddleware, minimum_size=500),
    "function": compress,
    "class": GZipMiddleware,
}


@pytest.mark.parametrize("entry", ENTRIES.values(), ids=ENTRIES)
async def test_each_way_to_write_it_works(entry: Any) -> None:
    exchange = await fetch(App({"/": home}, middleware=[entry]), headers={"accept-encoding": "gzip"})
    assert exchange.headers["content-encoding"] == "gzip"
    assert gzip.decompress(exchange.body) == b"x" * 1000


async def test_middleware_answers_preflights_and_adds_fields_to_errors() -> None:
    app = App(
        {"/": {"POST": home}, "/no": refuse},
        middleware=[Middleware(CORSMiddleware, allow_origins=["https://app.example"], allow_methods=["POST"])],
    )
    headers = {"origin": "https://app.example", "access-control-request-method": "POST"}
    preflight = await fetch(app, "/", "OPTIONS", headers=headers)
    assert (preflight.status, preflight.headers["access-control-allow-origin"]) == (200, "https://app.example")
    refused = await fetch(app, "/no", headers=headers)
    assert (refused.status, refused.headers["access-control-allow-origin"]) == (403, "https://app.example")


async def test_starlettes_base_http_middleware_works_with_sessions_streams_and_bodies() -> None:
    async def dispatch(request: Any, call_next: Any) -> Any:
        response = await call_next(request)
        response.headers["x-by"] = "dispatch"
        return response

    async def stream(ctx: Context) -> Response:
        await ctx.session.set("size", len(await ctx.body()))

        async def chunks() -> AsyncIterator[str]:
            yield "a"
            yield "b"

        return Response.stream(chunks())

    app = App(
        {"/": {"POST": stream}},
        integrations=[session(SECRET)],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=dispatch)],
    )
    async with TestClient(app) as client:
        response = await client.post("/", content=b"body")
    assert (response.text, response.headers["x-by"], len(response.cookies)) == ("ab", "dispatch", 1)


# --- the start and the end


def noting(events: list[str]) -> Integration:
    return define_integration(
        name="x", on_load=lambda app: events.append("load"), on_shutdown=lambda app: events.append("shutdown")
    )


def stateful(events: list[str], *, fails: bool = False) -> Any:
    """Return middleware with something to start and to end, which it shares by the scope's state."""

    def wrap(app: Any) -> Any:
        async def middleware(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "lifespan":
                events.append(f"state {scope['state']}")
                await app(scope, receive, send)
                return

            async def noting(message: Any) -> None:
                events.append(message["type"])
                await send({"type": "lifespan.startup.failed", "message": "no cache"} if fails else message)

            scope["state"]["cache"] = 1
            await app(scope, receive, noting)

        return middleware

    return wrap


async def test_load_and_shutdown_go_through_the_middleware_and_its_state_reaches_requests() -> None:
    events: list[str] = []
    store = define_integration(
        name="x", on_load=lambda app: events.append("load"), on_shutdown=lambda app: events.append("shutdown")
    )
    app = App({"/": home}, integrations=[store], middleware=[stateful(events)])
    for _ in range(2):
        events.clear()
        async with TestClient(app) as client:
            await client.get("/")
        complete = "lifespan.startup.complete", "state {'cache': 1}", "shutdown", "lifespan.shutdown.complete"
        assert events == ["load", *complete]


async def test_a_failed_load_raises_the_same_error_as_without_middleware(caplog: pytest.LogCaptureFixture) -> None:
    error = OSError("no store")

    def on_load(app: App) -> None:
        raise error

    events: list[str] = []
    app = App({"/": home}, integrations=[define_integration(name="x", on_load=on_load)], middleware=[stateful(events)])
    with pytest.raises(OSError, match="no store") as raised:
        await app.load()
    assert raised.value is error
    assert caplog.records == []


async def test_middleware_that_fails_to_start_stops_the_start_and_ends_the_app() -> None:
    events: list[str] = []
    store = define_integration(name="x", on_shutdown=lambda app: events.append("shutdown"))
    with pytest.raises(ConfigError, match=r"^the application can't start: no cache$"):
        await App({"/": home}, integrations=[store], middleware=[stateful(events, fails=True)]).load()
    assert events[-1] == "shutdown"


@pytest.mark.parametrize("raises", [True, False])
async def test_an_app_loads_although_middleware_keeps_the_lifespan_from_it(raises: bool) -> None:
    events: list[str] = []

    def http_only(app: Any) -> Any:
        async def middleware(scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                await app(scope, receive, send)
            elif raises:
                raise TypeError("only http")

        return middleware

    store = define_integration(
        name="x", on_load=lambda app: events.append("load"), on_shutdown=lambda app: events.append("shutdown")
    )
    async with TestClient(App({"/": home}, integrations=[store], middleware=[http_only])) as client:
        assert (await client.get("/")).status_code == 200
    assert events == ["load", "shutdown"]


async def test_purge_finds_the_integrations_below_middleware() -> None:
    store = define_integration(name="x", on_purge=lambda app: 3)
    app = App({"/": home}, integrations=[store], middleware=[GZipMiddleware])
    await app.load()
    assert await app.purge() == {"x": 3}
    await app.shutdown()


class Shop(App):
    pass


class Gzipped(App):
    __slots__ = ("size",)

    def __init__(self) -> None:
        super().__init__({"/": home}, middleware=[GZipMiddleware])


@pytest.mark.parametrize("make", [lambda: Shop({"/": home}, middleware=[GZipMiddleware]), Gzipped])
async def test_a_subclass_of_app_may_have_middleware(make: Callable[[], App]) -> None:
    app = make()
    assert isinstance(app, (Shop, Gzipped))
    assert type(app).__name__ in ("Shop", "Gzipped")
    assert (await fetch(app, headers={"accept-encoding": "gzip"})).headers["content-encoding"] == "gzip"


async def test_a_request_with_an_absolute_target_passes_through_middleware_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gaman")
    events: list[str] = []
    app = App({"/": home}, middleware=[Middleware(Named, name="a", events=events)], debug=True)
    exchange = await fetch(app, scope={"path": "http://shop.example/", "raw_path": b"http://shop.example/"})
    assert (exchange.status, events, len(caplog.records)) == (200, ["a http"], 1)


@pytest.mark.parametrize("middleware", [[], [compress]])
async def test_a_request_that_gets_no_response_has_no_access_line(middleware: Any, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gaman")

    async def read(ctx: Context) -> bytes:
        return await ctx.body()

    exchange = await fetch(App({"/": read}, middleware=middleware, debug=True), body=b"x", disconnects=True)
    assert (exchange.messages, caplog.records) == ([], [])


async def test_the_access_line_has_what_middleware_answers_by_itself(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gaman")

    def teapot(app: Any) -> Any:
        async def middleware(scope: Any, receive: Any, send: Any) -> None:
            if scope["path"] == "/tea":
                await send({"type": "http.response.start", "status": 418, "headers": []})
                await send({"type": "http.response.body", "body": b""})
            else:
                await app(scope, receive, send)

        return middleware

    app = App({"/": home}, middleware=[teapot])
    await fetch(app, "/")
    assert caplog.records == []
    app.log_requests()
    app.debug = True
    await fetch(app, "/tea")
    await fetch(app, "/")
    assert [record.getMessage().partition(" in ")[0] for record in caplog.records] == ["GET '/tea' 418", "GET '/' 200"]


def test_serve_takes_a_dict_with_middleware(tmp_path: Path) -> None:
    source = """
import gaman
from gaman import Middleware
from starlette.middleware.cors import CORSMiddleware
async def home(ctx):
    return "home"
gaman.serve({"/": home}, middleware=[Middleware(CORSMiddleware, allow_origins=["*"])], port=0)
"""
    with running_script(source, tmp_path) as program:
        response = get(program.port, "/", "Origin: https://app.example")
        assert (response.body, response.headers["access-control-allow-origin"]) == (b"home", "*")
        assert program.stop() == 0
        assert program.stderr == ""


# --- mistakes


def not_around(app: Any) -> None:
    """Middleware whose `return` is missing."""


async def dispatch(request: Any, call_next: Any) -> None:
    """What Starlette's BaseHTTPMiddleware calls."""


async def application(scope: Any, receive: Any, send: Any) -> None:
    """An application."""


@pytest.mark.parametrize(
    ("middleware", "message"),
    [
        (GZipMiddleware, "middleware is a list, not <class 'starlette.middleware.gzip.GZipMiddleware'>; write middleware=[...]"),
        ("gzip", "middleware is a list, not 'gzip'; write middleware=[...]"),
        (["gzip"], "middleware holds 'gzip'; write Middleware(Class, **options), or a function that takes the application"),
        ([7], "middleware holds 7; write Middleware(Class, **options), or a function that takes the application"),
        ([session(SECRET)], "middleware holds the integration 'session'; write integrations=[session(...)]"),
        (
            [refuse],
            "middleware holds the async function refuse; one for every request goes into the routes, as {'*': refuse}, "
            "and one for Starlette's call_next is written Middleware(BaseHTTPMiddleware, dispatch=refuse)",
        ),
        ([dispatch], "middleware holds the async function dispatch; "),
        ([application], "middleware holds the async function application; "),
        ([App({})], "middleware holds App, which is an application itself; serve it, or mount() it in the routes"),
        ([Named], "middleware holds Named, which isn't called as Named(app); write Middleware(Named, ...) with its options"),
        ([lambda: None], "middleware holds <lambda>, which isn't called as <lambda>(app); it is called with the application only"),
        ([not_around], "the result of the middleware not_around: None isn't an ASGI application; "),
    ],
)
def test_a_mistake_in_the_list_is_an_error_when_the_app_is_made(middleware: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        App({}, middleware=middleware)
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("gzip",), "Middleware() takes a class of ASGI middleware and its options, not 'gzip'"),
        (
            (Named,),
            "Middleware(Named): missing a required",
        ),
    ],
)
def test_a_mistake_in_a_middlewares_options_is_an_error(arguments: Any, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        Middleware(*arguments)
    assert str(raised.value).startswith(message)
