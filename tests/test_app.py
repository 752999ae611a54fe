from __future__ import annotations

import asyncio
import functools
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaman import (
    App,
    ClientDisconnected,
    ConfigError,
    Context,
    GamanError,
    Handler,
    HTTPError,
    Integration,
    Response,
    define_integration,
    define_routes,
)
from gaman._disconnects import Disconnected
from tests.asgi import Channel, Exchange, Fetch, http_scope

pytestmark = pytest.mark.anyio


async def handler(ctx: Context) -> str:
    return "handled"


async def failing(ctx: Context) -> str:
    ctx.cookies.set("a", "1")
    raise ValueError("a secret detail")


def raising(error: BaseException) -> Any:
    async def raising(ctx: Context) -> None:
        ctx.cookies.set("a", "1")
        raise error

    return raising


# Errors


async def test_an_http_error_becomes_its_response(fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    response = await fetch(App({"/": raising(HTTPError(429, "slow <b>down</b>", headers={"Retry-After": "5"}))}))
    assert (response.status, response.text, response.headers["retry-after"]) == (429, "slow <b>down</b>", "5")
    assert response.headers["content-type"] == "text/plain; charset=utf-8"
    assert caplog.records == []


async def test_an_http_error_keeps_the_cookies_that_were_set(fetch: Fetch) -> None:
    assert "set-cookie" in (await fetch(App({"/": raising(HTTPError(403))}))).headers


async def test_an_http_error_may_have_a_content_type_of_its_own(fetch: Fetch) -> None:
    error = HTTPError(400, '{"a":1}', headers={"Content-Type": "application/problem+json"})
    response = await fetch(App({"/": raising(error)}))
    assert response.headers.getall("content-type") == ["application/problem+json"]


@pytest.mark.parametrize(
    "integrations", [[], [define_integration(name="x", on_response=lambda ctx, response: response)]], ids=["bare", "hooked"]
)
async def test_any_other_error_gets_500_without_detail_and_is_logged(
    fetch: Fetch, integrations: list[Integration], caplog: pytest.LogCaptureFixture
) -> None:
    received = await fetch(App({"/": failing}, integrations=integrations))
    assert (received.status, received.text) == (500, "Internal Server Error")
    (record,) = caplog.records
    assert (record.name, record.levelname, record.getMessage()) == ("gaman", "ERROR", "GET '/' failed")
    assert "Traceback" in caplog.text
    assert "ValueError: a secret detail" in caplog.text


async def test_cookies_that_a_failing_handler_has_set_are_dropped(fetch: Fetch) -> None:
    assert "set-cookie" not in (await fetch(App({"/": failing}))).headers


@pytest.mark.parametrize("is_sent_first", [True, False])
async def test_send_cookie_adds_a_line_to_the_cookies_that_were_set(fetch: Fetch, is_sent_first: bool) -> None:
    async def handler(ctx: Context) -> None:
        if is_sent_first:
            ctx.send_cookie(b"line=1; HttpOnly")
        ctx.cookies.set("a", "1", path="/only", http_only=False)
        if not is_sent_first:
            ctx.send_cookie(b"line=1; HttpOnly")
        assert ctx.cookies.get("a") == "1"
        assert ctx.cookies.get("line") is None

    response = await fetch(App({"/": handler}))
    assert sorted(response.headers.getall("set-cookie")) == ["a=1; Path=/only; Secure; SameSite=Lax", "line=1; HttpOnly"]


async def test_a_cookie_line_of_a_failing_handler_is_dropped(fetch: Fetch) -> None:
    async def failing(ctx: Context) -> None:
        ctx.send_cookie(b"line=1")
        raise ValueError

    assert "set-cookie" not in (await fetch(App({"/": failing}))).headers


async def test_cookies_that_are_set_after_a_failure_are_sent(fetch: Fetch) -> None:
    def on_error(ctx: Context, error: Exception) -> None:
        assert not ctx.cookies.has("a")
        ctx.cookies.set("b", "2")

    response = await fetch(App({"/": failing}, integrations=[define_integration(name="x", on_error=on_error)]))
    assert [line[:4] for line in response.headers.getall("set-cookie")] == ["b=2;"]


async def test_cookies_of_a_handler_survive_an_on_response_hook_that_fails(fetch: Fetch) -> None:
    async def handler(ctx: Context) -> str:
        ctx.cookies.set("a", "1")
        return "ok"

    def on_response(ctx: Context, response: Response) -> None:
        raise ValueError

    received = await fetch(App({"/": handler}, integrations=[define_integration(name="x", on_response=on_response)]))
    assert (received.status, "set-cookie" in received.headers) == (500, True)


async def test_debug_shows_the_traceback_as_text(fetch: Fetch) -> None:
    response = await fetch(App({"/": raising(ValueError("<script>"))}, debug=True))
    assert (response.status, response.headers["content-type"]) == (500, "text/plain; charset=utf-8")
    assert response.text.startswith("Traceback")
    assert "ValueError: <script>" in response.text
    assert "in raising" in response.text


# Handlers that return nothing


class Named:
    async def method(self, ctx: Context) -> None: ...

    async def __call__(self, ctx: Context) -> None: ...


def wrapped(handler: Handler) -> Handler:
    @functools.wraps(handler)
    async def wrapper(ctx: Context) -> None:
        await handler(ctx)

    return wrapper


async def nothing(ctx: Context) -> None: ...


async def nothing_of(_: str, ctx: Context) -> None: ...


@pytest.mark.parametrize(
    ("silent", "name"),
    [
        (nothing, "nothing"),
        ([nothing, Named()], "Named.__call__"),
        (Named().method, "Named.method"),
        (functools.partial(nothing_of, "x"), "nothing_of"),
        (wrapped(handler), "handler"),
    ],
)
@pytest.mark.parametrize("path", ["/x", "/:id", "/:path*"])
async def test_the_last_handler_of_a_route_that_returns_nothing_is_named(
    fetch: Fetch, silent: Any, name: str, path: str, caplog: pytest.LogCaptureFixture
) -> None:
    told = rf"the handler {re.escape(name)} returned nothing"
    app = App({"/*": passes, path: silent, "/never": handler})
    responses = [await fetch(app, "/x"), await fetch(app, "/x", "POST")]
    assert [(response.status, response.text) for response in responses] == [(404, "Not Found")] * 2
    [record] = caplog.records
    assert (record.levelname, vars(record)["path"]) == ("WARNING", "/x")
    place = rf" \(\S*test_app.py, line \d+, in {name.rsplit('.', maxsplit=1)[-1]}\)$"
    assert re.search(rf"^GET '/x' was answered 404, because {told} \(logged once\); .*{place}", record.getMessage())
    for _ in range(2):
        response = await fetch(App({path: silent}, debug=True), "/x")
        assert response.status == 404
        assert re.search(rf"^Not Found: {told}{place}", response.text)


async def test_a_path_without_a_route_has_no_warning_of_a_missing_return(fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    async def refuse(ctx: Context) -> None:
        raise HTTPError(404)

    app = App({"/*": passes, "/x": {"POST": handler}, "/refuses": refuse}, debug=True)
    responses = [await fetch(app, target, method) for target, method in (("/y", "GET"), ("/refuses", "GET"), ("/x", "OPTIONS"))]
    assert [(response.status, response.text) for response in responses] == [(404, "Not Found"), (404, "Not Found"), (204, "")]
    assert [record for record in caplog.records if record.levelname == "WARNING"] == []


async def test_a_page_for_404_is_also_sent_if_a_handler_returns_nothing(fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    def page(ctx: Context, error: Exception) -> Response | None:
        return Response.text("gone", 404) if isinstance(error, HTTPError) and error.status == 404 else None

    app = App({"/x": nothing}, integrations=[define_integration(name="page", on_error=page)])
    assert (await fetch(app, "/x")).text == "gone"
    assert len(caplog.records) == 1


async def test_debug_does_not_change_the_response_to_an_http_error(fetch: Fetch) -> None:
    assert (await fetch(App({"/": raising(HTTPError(403, "no"))}, debug=True))).text == "no"


async def test_an_http_error_of_500_with_a_cause_is_logged_in_one_line(fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(ctx: Context) -> None:
        try:
            raise OSError("store down")
        except OSError as cause:
            raise HTTPError(503, "try again") from cause

    response = await fetch(App({"/": handler}))
    assert (response.status, response.text) == (503, "try again")
    (record,) = caplog.records
    assert "store down" in record.message
    assert record.exc_info is None


async def test_an_http_error_with_a_header_that_cannot_be_sent_gets_500(fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    response = await fetch(App({"/": raising(HTTPError(400, headers={"x": "a\r\nb: c"}))}))
    assert (response.status, "b" in response.headers) == (500, False)
    assert "HeaderError" in caplog.text


async def test_the_path_in_the_log_cannot_forge_a_line(fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    await fetch(App({"/:x": failing}), "/a%0AERROR%20forged")
    assert "\n" not in caplog.records[0].getMessage()


@pytest.mark.parametrize("error", [asyncio.CancelledError(), KeyboardInterrupt(), SystemExit(1)], ids=lambda e: type(e).__name__)
async def test_a_base_exception_is_not_caught(error: BaseException) -> None:
    exchange = Exchange()
    request = App({"/": raising(error)})(http_scope(), exchange.receive, exchange.send)
    with pytest.raises(type(error)):
        # Outside of a task, so that the event loop doesn't see it.
        request.send(None)
    assert exchange.messages == []


async def test_a_client_that_has_disconnected_gets_no_response_and_no_line_above_debug(
    fetch: Fetch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, "gaman")

    async def on_request(ctx: Context) -> None:
        await ctx.body()

    for app in (
        App({"/": raising(ClientDisconnected())}),
        App({"/": handler}, integrations=[define_integration(name="x", on_request=on_request)]),
    ):
        caplog.clear()
        response = await fetch(app, disconnects=True)
        assert response.messages == []
        assert [record.levelname for record in caplog.records] == ["DEBUG"]


async def test_a_client_that_disconnects_while_a_hook_reads_its_body_leaves_no_line_above_debug(
    fetch: Fetch, caplog: pytest.LogCaptureFixture
) -> None:
    async def audit(ctx: Context, response: Response) -> None:
        await ctx.body()

    await fetch(App({"/": handler}, integrations=[define_integration(name="audit", on_response=audit)]), disconnects=True)
    assert caplog.records == []


# Hostile requests


@given(path=st.binary(max_size=30), query=st.binary(max_size=30), header=st.binary(max_size=30), body=st.binary(max_size=60))
async def test_no_octets_in_a_request_cause_a_500(fetch: Fetch, path: bytes, query: bytes, header: bytes, body: bytes) -> None:
    async def everything(ctx: Context) -> dict[str, Any]:
        found: list[object] = [
            ctx.url,
            ctx.path,
            ctx.ip,
            dict(ctx.headers),
            ctx.query.get("a"),
            ctx.cookies.get("a"),
            dict(ctx.params),
        ]
        for read in (ctx.text, ctx.json):
            try:
                found.append(await read())
            except HTTPError as error:
                found.append(error.detail)
        return {"found": found}

    percent_encoded = "".join(f"%{octet:02x}" for octet in path)
    headers = [(b"cookie", header), (b"host", header), (b"content-type", header), (b"x", header)]
    scope = {"query_string": query}
    for target in (f"/{percent_encoded}", "/" + path.decode("latin-1")):
        response = await fetch(
            App({"/:a": everything, "*": everything}), target.partition("?")[0], headers=headers, body=body, scope=scope
        )
        assert response.status in (200, 400)


# Other scopes


class Server(Channel):
    """The server's side of a connection that isn't a request; *incoming* are types of messages."""

    def __init__(self, *incoming: str) -> None:
        super().__init__(*({"type": kind} for kind in incoming))


async def test_a_websocket_is_refused() -> None:
    server = Server("websocket.connect")
    await App({"/": handler})({"type": "websocket", "path": "/"}, server.receive, server.send)
    assert [message["type"] for message in server.messages] == ["websocket.close"]
    assert server.incoming == []


@pytest.mark.parametrize("kind", ["webtransport", ""])
async def test_an_unknown_scope_raises(kind: str) -> None:
    server = Server()
    with pytest.raises(GamanError, match=f"'{kind}'"):
        await App({"/": handler})({"type": kind}, server.receive, server.send)
    assert server.messages == []


async def test_the_lifespan_loads_and_shuts_down() -> None:
    events: list[str] = []
    integration = define_integration(
        name="x", on_load=lambda app: events.append("load"), on_shutdown=lambda app: events.append("shutdown")
    )
    server = Server("lifespan.startup", "lifespan.shutdown")
    await App({"/": handler}, integrations=[integration])({"type": "lifespan"}, server.receive, server.send)
    assert events == ["load", "shutdown"]
    assert [message["type"] for message in server.messages] == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


@pytest.mark.parametrize(
    ("error", "message", "logged"),
    [(ConfigError("no secret"), "no secret", 0), (OSError("no store"), "no store", 1), (ValueError(), "ValueError()", 1)],
    ids=["misconfigured", "broken", "without a word"],
)
async def test_a_failed_start_up_gives_the_server_its_reason(
    error: Exception, message: str, logged: int, caplog: pytest.LogCaptureFixture
) -> None:
    def on_load(app: App) -> None:
        raise error

    server = Server("lifespan.startup")
    app = App({"/": handler}, integrations=[define_integration(name="x", on_load=on_load)])
    await app({"type": "lifespan"}, server.receive, server.send)
    # Only an error of gaman's explains itself, and so gets the line that made the integration.
    place = app.integrations[0]._place if isinstance(error, GamanError) else ""
    assert server.messages == [{"type": "lifespan.startup.failed", "message": message + place}]
    assert len(caplog.records) == logged


async def test_a_shutdown_completes_even_if_a_hook_fails(caplog: pytest.LogCaptureFixture) -> None:
    def on_shutdown(app: App) -> None:
        raise ValueError("stuck")

    server = Server("lifespan.startup", "lifespan.shutdown")
    app = App({"/": handler}, integrations=[define_integration(name="x", on_shutdown=on_shutdown)])
    await app({"type": "lifespan"}, server.receive, server.send)
    assert server.messages[-1] == {"type": "lifespan.shutdown.complete"}
    assert "stuck" in caplog.text


# The App itself


async def test_an_app_takes_routes_or_a_bare_table(fetch: Fetch) -> None:
    for routes in ({"/": handler}, define_routes({"/": handler})):
        assert (await fetch(App(routes))).text == "handled"


async def test_routes_serve_any_number_of_apps(fetch: Fetch) -> None:
    routes = define_routes({"/": handler})
    for app in (App(routes), App(routes, debug=True)):
        assert (await fetch(app)).text == "handled"


async def test_an_app_without_routes_responds_404(fetch: Fetch) -> None:
    assert (await fetch(App({}))).status == 404


async def test_concurrent_requests_are_isolated(fetch: Fetch) -> None:
    async def slow(ctx: Context) -> str:
        ctx.locals["id"] = ctx.params["id"]
        ctx.cookies.set("id", ctx.params["id"])
        await asyncio.sleep(0)
        return str(ctx.locals["id"])

    app = App({"/:id": slow})
    responses = await asyncio.gather(*(fetch(app, f"/{i}") for i in range(200)))
    assert [response.text for response in responses] == [str(i) for i in range(200)]
    assert [response.headers["set-cookie"].partition(";")[0] for response in responses] == [f"id={i}" for i in range(200)]


# The log


class Kept:
    """An object that JSON can't hold."""


async def returns_a_set(ctx: Context) -> Any:
    return {1}


async def returns_json_of_an_object(ctx: Context) -> Any:
    return Response.json({"a": Kept()})


async def asks_for_a_session(ctx: Context) -> Any:
    return await ctx.session.get("a")


async def passes(ctx: Context) -> None:
    return None


@pytest.mark.parametrize(
    ("handlers", "message", "name"),
    [
        (returns_a_set, "ResultError: a handler returned a set; return a Response", "returns_a_set"),
        (returns_json_of_an_object, "ResultError: JSON can't hold a Kept", "returns_json_of_an_object"),
        (asks_for_a_session, "ConfigError: ctx.session needs the session integration", "asks_for_a_session"),
        ([passes, asks_for_a_session], "ConfigError: ctx.session needs", "asks_for_a_session"),
        ([passes, returns_a_set], "ResultError: a handler returned a set", "returns_a_set"),
    ],
    ids=["set", "json", "session", "chain", "chained set"],
)
async def test_a_mistake_in_a_handler_is_one_log_line_with_its_location(
    fetch: Fetch, handlers: Any, message: str, name: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    await fetch(App({"/": handlers}))
    (record,) = caplog.records
    assert record.getMessage().startswith(f"GET '/' failed: {message}")
    assert record.exc_info is None
    if name is not None:
        assert re.search(rf"\(tests/test_app.py, line \d+, in {name}\)$", record.getMessage()), record.getMessage()


async def test_a_mistake_in_a_handler_has_its_traceback_at_the_level_debug(fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "gaman")
    await fetch(App({"/": asks_for_a_session}))
    assert "await ctx.session.get" in caplog.text


@pytest.mark.parametrize("debug", [False, True], ids=["", "debug"])
async def test_a_traceback_begins_with_the_users_code(fetch: Fetch, debug: bool, caplog: pytest.LogCaptureFixture) -> None:
    app = App({"/": [passes, failing]}, integrations=[define_integration(name="x", on_request=lambda ctx: None)], debug=debug)
    response = await fetch(app)
    told = response.text if debug else caplog.text
    first = told[told.index("Traceback") :].splitlines()[1]
    assert re.search(r"tests/test_app\.py\", line \d+, in failing$", first), told
    assert "_app.py" not in told.replace("test_app.py", "").replace("gaman:_app.py", "")


async def test_log_records_about_a_request_have_its_id_method_and_path(fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    def on_error(ctx: Context, error: Exception) -> None:
        raise ValueError

    async def unavailable(ctx: Context) -> None:
        raise HTTPError(503) from OSError("down")

    async def reads(ctx: Context) -> str:
        return await ctx.text()

    caplog.set_level(logging.DEBUG, "gaman")
    hooks = [define_integration(name="x", on_error=on_error)]
    for route in (failing, unavailable, asks_for_a_session):
        await fetch(App({"/:a": route}, integrations=hooks), "/x", "POST", headers={"X-Request-ID": "r-1"})
    await fetch(App({"/:a": reads}), "/x", "POST", headers={"X-Request-ID": "r-1"}, disconnects=True)
    assert len(caplog.records) == 7
    for record in caplog.records:
        assert record.name == "gaman"
        assert [vars(record)[name] for name in ("request_id", "method", "path")] == ["r-1", "POST", "/x"]


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, int]]:
    """Return the access lines without their times, each with its status."""
    records = [record for record in caplog.records if hasattr(record, "status")]
    return [(record.getMessage().rpartition(" in ")[0], vars(record)["status"]) for record in records]


async def test_debug_logs_a_line_for_each_request(fetch: Fetch, caplog: pytest.LogCaptureFixture, tmp_path: Path) -> None:
    caplog.set_level(logging.INFO, "gaman")
    (tmp_path / "file").write_text("0123456789")

    async def stream(ctx: Context) -> Response:
        async def chunks() -> AsyncIterator[str]:
            yield "a"
            await asyncio.sleep(0.01)
            yield "b"

        return Response.stream(chunks())

    async def file(ctx: Context) -> Response:
        return Response.file(tmp_path / "file")

    app = App({"/": handler, "/failing": failing, "/stream": stream, "/file": {"GET": file}}, debug=True)
    await fetch(app, headers={"X-Request-ID": "r-1"})
    for target in ("/a%0Ab", "/failing", "/stream", "/file"):
        await fetch(app, target)
    await fetch(app, "/file", headers={"Range": "bytes=0-1"})
    await fetch(app, "/file", "POST")
    assert lines(caplog) == [
        ("GET '/' 200", 200),
        ("GET '/a\\nb' 404", 404),
        ("GET '/failing' 500", 500),
        ("GET '/stream' 200", 200),
        ("GET '/file' 200", 200),
        ("GET '/file' 206", 206),
        ("POST '/file' 405", 405),
    ]
    first, *_ = records = [vars(record) for record in caplog.records if hasattr(record, "status")]
    assert (first["name"], first["levelname"], first["request_id"], first["path"]) == ("gaman", "INFO", "r-1", "/")
    assert 0 < first["milliseconds"] < 1000
    assert records[3]["milliseconds"] >= 9


async def test_the_access_line_has_the_status_that_hooks_have_set(fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gaman")

    def on_request(ctx: Context) -> Response | None:
        return Response("no", 403) if ctx.path == "/closed" else None

    def on_response(ctx: Context, response: Response) -> Response:
        return Response("tea", 418)

    outermost = define_integration(name="x", priority="very-high", on_request=on_request, on_response=on_response)
    app = App({"/": handler}, integrations=[outermost], debug=True)
    await fetch(app)
    await fetch(app, "/closed")
    assert lines(caplog) == [("GET '/' 418", 418), ("GET '/closed' 418", 418)]


async def test_a_stream_that_breaks_off_has_an_access_line(fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gaman")

    async def stream(ctx: Context) -> Response:
        async def chunks() -> AsyncIterator[str]:
            yield "a"
            raise ValueError("in the middle")

        return Response.stream(chunks())

    with pytest.raises(ValueError, match="in the middle"):
        await fetch(App({"/": stream}, debug=True))
    assert lines(caplog) == [("GET '/' 200", 200)]


async def test_a_client_that_has_left_has_no_access_line(fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gaman")

    async def body(ctx: Context) -> bytes:
        return await ctx.body()

    await fetch(App({"/": body}, debug=True), "/", "POST", disconnects=True)

    async def leave(message: Any) -> None:
        raise Disconnected

    await App({"/": handler}, debug=True)(http_scope(), Exchange().receive, leave)
    assert lines(caplog) == []


async def test_an_absolute_target_has_the_path_in_both_lines(fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "gaman")
    scope = {"path": "http://a/failing", "raw_path": b"http://a/failing"}
    await fetch(App({"/failing": failing}, debug=True), scope=scope)
    assert [record.getMessage().partition(" in ")[0] for record in caplog.records] == [
        "GET '/failing' failed",
        "GET '/failing' 500",
    ]
    assert [vars(record)["path"] for record in caplog.records] == ["/failing"] * 2


async def test_without_debug_there_are_no_access_lines(fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "gaman")
    await fetch(App({"/": handler}))
    assert caplog.records == []


async def test_a_failed_start_up_gives_its_cause_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    def on_load(app: App) -> None:
        raise GamanError("the store can't be reached") from OSError("refused\n  by the host")

    server = Server("lifespan.startup")
    app = App({"/": handler}, integrations=[define_integration(name="x", on_load=on_load)])
    await app({"type": "lifespan"}, server.receive, server.send)
    [message] = server.messages
    assert message["message"] == f"the store can't be reached: refused by the host{app.integrations[0]._place}"
    assert caplog.records == []
