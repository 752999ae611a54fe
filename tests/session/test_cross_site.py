"""CSRF: which requests count as cross-site, where they are answered 403, and which options let them pass."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.websockets import WebSocket

import gaman
from gaman import App, ConfigError, Context, HTTPError, Integration, define_routes, mount
from gaman.cors import cors
from gaman.session import SessionIntegration, allow_cross_site, require_same_origin, session
from gaman.session.asgi import SessionMiddleware, get_session
from gaman_session._cross_site import is_cross_site
from tests.asgi import Channel, fetch, http_scope
from tests.serving import Connection, request, running_script
from tests.session.sites import SECRET

pytestmark = pytest.mark.anyio

EVIL = {"origin": "https://evil.example", "sec-fetch-site": "cross-site"}
UNSAFE = ["POST", "PUT", "PATCH", "DELETE", "TRACE", "PURGE"]


def sessions_with(**options: Any) -> SessionIntegration:
    return session(SECRET, {"type": "memory"}, **options)


async def enter(ctx: Context) -> str:
    await ctx.session.set("user", 1)
    return "entered"


async def opened(table: Any, *others: Integration, **options: Any) -> App:
    app = App(table, integrations=[*others, sessions_with(**options)])
    await app.load()
    return app


# The rule


def refuses(*fields: tuple[str, str], host: str = "shop.example", trusted: str = "") -> bool:
    headers = [(name.encode(), value.encode("latin-1")) for name, value in fields]
    return is_cross_site(headers, lambda: host, lambda origin: origin == trusted)


SITE, ORIGIN = "sec-fetch-site", "origin"
OWN = "https://shop.example"


@pytest.mark.parametrize("site", ["same-origin", "none"])
@pytest.mark.parametrize("origin", [OWN, "null", "https://evil.example", None])
def test_the_browsers_own_word_counts_before_the_origin(site: str, origin: str | None) -> None:
    assert not refuses((SITE, site), *([(ORIGIN, origin)] if origin else []))


@pytest.mark.parametrize("site", ["same-site", "cross-site", "Same-Origin", "none, none", "unknown"])
@pytest.mark.parametrize("origin", [OWN, "null", "https://evil.example", None])
def test_every_other_word_is_refused_whatever_the_origin(site: str, origin: str | None) -> None:
    assert refuses((SITE, site), *([(ORIGIN, origin)] if origin else []))


def test_a_request_with_neither_field_passes() -> None:
    assert not refuses(("host", "shop.example"))
    assert not refuses((SITE, ""), (ORIGIN, ""))


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("https://shop.example", "shop.example"),
        ("https://Shop.Example", "shop.EXAMPLE"),
        ("https://shop.example", "shop.example:443"),
        ("https://shop.example:443", "shop.example"),
        ("http://shop.example", "shop.example:80"),
        ("http://shop.example:8080", "shop.example:8080"),
        ("https://[2001:db8::1]:8443", "[2001:DB8::1]:8443"),
        ("http://192.0.2.1", "192.0.2.1"),
        # The scheme of the request isn't known behind a proxy that isn't trusted.
        ("http://shop.example", "shop.example"),
    ],
)
def test_without_the_browsers_word_an_origin_of_the_same_host_passes(origin: str, host: str) -> None:
    assert not refuses((ORIGIN, origin), host=host)


@pytest.mark.parametrize(
    ("origin", "host"),
    [
        ("null", "shop.example"),
        ("null", "null"),
        ("https://evil.example", "shop.example"),
        ("https://shop.example.evil.example", "shop.example"),
        ("https://evil-shop.example", "shop.example"),
        ("https://blog.shop.example", "shop.example"),
        ("https://shop.example:8443", "shop.example"),
        ("https://shop.example", "shop.example:80"),
        ("https://shop.example", "shop.example:8443"),
        ("https://shop.example/path", "shop.example"),
        ("https://user@shop.example", "shop.example"),
        ("https://shop.example https://shop.example", "shop.example"),
        ("capacitor://localhost", "localhost"),
        ("shop.example", "shop.example"),
        ("https://", ""),
        ("https://" + "a" * 65_000, "shop.example"),
        ("https://shop\xe9.example", "shop\xe9.example"),
    ],
)
def test_without_the_browsers_word_any_other_origin_is_refused(origin: str, host: str) -> None:
    assert refuses((ORIGIN, origin), host=host)


def test_of_a_field_that_is_sent_twice_each_value_has_to_pass() -> None:
    assert refuses((SITE, "same-origin"), (SITE, "cross-site"))
    assert refuses((SITE, "cross-site"), (SITE, "same-origin"))
    assert refuses((ORIGIN, OWN), (ORIGIN, "https://evil.example"))
    assert refuses((SITE, "cross-site"), (ORIGIN, "https://app.example"), (ORIGIN, "null"), trusted="https://app.example")
    assert not refuses((SITE, "same-origin"), (SITE, "none"))


def test_a_trusted_origin_passes_whatever_the_browser_says() -> None:
    for site in ("cross-site", "same-site"):
        assert not refuses((SITE, site), (ORIGIN, "https://app.example"), trusted="https://app.example")
    assert not refuses((ORIGIN, "https://app.example"), trusted="https://app.example")
    # Without an Origin, no page is known to be trusted.
    assert refuses((SITE, "cross-site"), trusted="https://app.example")


# In an App


@pytest.mark.parametrize("method", UNSAFE)
async def test_a_cross_site_request_of_an_unsafe_method_is_refused_before_its_handler(method: str) -> None:
    app = await opened({"/": enter, "/:name": enter})
    for target in ("/", "/name", "/no/such/path"):
        response = await fetch(app, target, method, headers=EVIL)
        assert (response.status, response.text) == (403, "cross-site request refused")
        assert "set-cookie" not in response.headers
    assert (await fetch(app, "/", method)).text == "entered"


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS"])
async def test_a_cross_site_request_of_a_safe_method_passes(method: str) -> None:
    app = await opened({"/": enter})
    assert (await fetch(app, "/", method, headers=EVIL)).status == 200


async def test_a_login_is_refused_without_any_session() -> None:
    app = await opened({"/login": {"POST": enter}})
    assert (await fetch(app, "/login", "POST", headers={"origin": "https://evil.example"})).status == 403
    assert (await fetch(app, "/login", "POST", headers={"origin": "https://testserver"})).text == "entered"


async def test_an_app_without_sessions_refuses_nothing() -> None:
    async def plain(ctx: Context) -> str:
        return "plain"

    assert (await fetch(App({"/": plain}), "/", "POST", headers=EVIL)).text == "plain"


async def test_the_refusal_comes_before_other_hooks_and_middleware_and_before_the_body() -> None:
    seen: list[str] = []

    async def guard(ctx: Context) -> None:
        seen.append("middleware")

    def hook(ctx: Context) -> None:
        seen.append("hook")

    def outer(ctx: Context) -> None:
        seen.append("outer")

    others = [
        Integration(name="other", priority="high", on_request=hook),
        Integration(name="x", priority="very-high", on_request=outer),
    ]
    app = await opened({"*": guard, "/": enter}, *others)
    refused = await fetch(app, "/", "POST", headers=EVIL, body=[b"a", b"b"])
    assert (refused.status, seen, len(refused.incoming)) == (403, ["outer"], 2)
    await fetch(app, "/", "POST")
    assert seen == ["outer", "outer", "hook", "middleware"]


async def test_the_host_that_a_trusted_proxy_reports_is_the_one_that_counts() -> None:
    app = await opened({"/": enter})
    headers = {"host": "10.0.0.5:8000", "x-forwarded-host": "shop.example", "origin": OWN}
    assert (await fetch(app, "/", "POST", headers=headers)).text == "entered"
    assert (await fetch(app, "/", "POST", headers=headers, scope={"client": ("192.0.2.9", 1)})).status == 403


async def test_an_on_error_hook_may_answer_the_refusal() -> None:
    def page(ctx: Context, error: Exception) -> gaman.Response | None:
        return gaman.Response.html("<h1>no</h1>", 403) if isinstance(error, HTTPError) and error.status == 403 else None

    app = await opened({"/": enter}, Integration(name="pages", on_error=page))
    assert (await fetch(app, "/", "POST", headers=EVIL)).text == "<h1>no</h1>"


# A GET that changes something


def sent_by(site: str, destination: str, **more: str) -> dict[str, str]:
    return {"sec-fetch-site": site, "sec-fetch-dest": destination, **more}


@pytest.mark.parametrize("destination", ["document", "empty"])
async def test_a_guarded_get_is_taken_from_a_page_of_its_own_origin(destination: str) -> None:
    app = await opened({"/": {"GET": [require_same_origin, enter]}})
    assert (await fetch(app, "/", headers=sent_by("same-origin", destination))).text == "entered"


@pytest.mark.parametrize(
    "headers",
    [
        *(sent_by(site, "document") for site in ("cross-site", "same-site", "none", "same-origin, same-origin", "")),
        *(sent_by("same-origin", destination) for destination in ("image", "iframe", "script", "")),
        sent_by("same-origin", "document", **{"sec-purpose": "prefetch;prerender"}),
        {"sec-fetch-site": "same-origin"},
        {"origin": OWN, "host": "shop.example"},
        {},
    ],
    ids=str,
)
async def test_a_guarded_get_of_any_other_kind_is_refused(headers: dict[str, str]) -> None:
    app = await opened({"/": [require_same_origin, enter]})
    for method in ("GET", "POST"):
        refused = await fetch(app, "/", method, headers=headers)
        assert refused.status == 403
        assert "set-cookie" not in refused.headers
    assert (await fetch(app, "/", headers=headers)).text == "only a page of this site may send this request"


# Exemptions in the table


@pytest.mark.parametrize(
    ("table", "open_to_all", "refused"),
    [
        ({"/hook": {"POST": [allow_cross_site, enter], "PUT": enter}}, ["POST /hook"], ["PUT /hook"]),
        ({"/hook": [allow_cross_site, enter], "/": enter}, ["POST /hook", "PURGE /hook"], ["POST /"]),
        (
            {"/api/*": allow_cross_site, "/api/a": enter, "/api": enter, "/": enter},
            ["POST /api/a", "POST /api"],
            ["POST /", "POST /x"],
        ),
        ({"/api/*": {"POST": allow_cross_site}, "/api/a": enter}, ["POST /api/a"], ["PUT /api/a"]),
        ({"/:id/*": allow_cross_site, "/:id/a": enter, "/": enter}, ["POST /1/a"], ["POST /"]),
        # This middleware covers some requests of the route.
        ({"/me/*": allow_cross_site, "/:id/a": enter}, ["POST /me/a"], ["POST /you/a"]),
    ],
    ids=["method", "route", "prefix", "method of a prefix", "parameter", "overlap"],
)
async def test_a_mark_in_the_table_exempts_its_routes_only(table: Any, open_to_all: list[str], refused: list[str]) -> None:
    app = await opened(table)
    for line in open_to_all:
        method, target = line.split()
        assert (await fetch(app, target, method, headers=EVIL)).text == "entered", line
    for line in refused:
        method, target = line.split()
        assert (await fetch(app, target, method, headers=EVIL)).status == 403, line


async def test_a_path_without_a_route_below_the_mark_is_a_404() -> None:
    app = await opened({"/api/*": allow_cross_site, "/api/a": {"GET": enter}})
    assert (await fetch(app, "/api/x", "POST", headers=EVIL)).status == 404
    assert (await fetch(app, "/api/a", "POST", headers=EVIL)).status == 405


async def test_one_table_serves_apps_with_and_without_sessions() -> None:
    async def plain(ctx: Context) -> str:
        return "plain"

    routes = define_routes({"/": plain})
    assert (await fetch(await opened(routes), "/", "POST", headers=EVIL)).status == 403
    assert (await fetch(App(routes), "/", "POST", headers=EVIL)).text == "plain"


async def test_a_mounted_app_checks_by_itself() -> None:
    async def plain(ctx: Context) -> str:
        return "plain"

    sessions = sessions_with()
    shop = mount(App({"/buy": enter, "/hook": [allow_cross_site, enter]}, integrations=[sessions]))
    table: Any = {"/shop/*": shop, "/open/*": [allow_cross_site, shop], "/plain/*": mount(App({"/": plain}))}
    app = App(table, integrations=[sessions])
    await app.load()
    for target, status in {"/shop/buy": 403, "/shop/hook": 403, "/open/buy": 403, "/open/hook": 200, "/plain": 403}.items():
        assert (await fetch(app, target, "POST", headers=EVIL)).status == status, target
        assert (await fetch(app, target, "POST", headers={"sec-fetch-site": "same-origin"})).status == 200, target
    await app.shutdown()


# Options


@pytest.mark.parametrize(
    "trusted", [["https://App.example.com:443"], "https://app.example.com", "http://x.example, https://app.example.com"]
)
async def test_pages_of_a_trusted_origin_may_send_requests(trusted: Any) -> None:
    app = await opened({"/": enter}, trusted_origins=trusted)
    for site in ("same-site", "cross-site"):
        fields = {"origin": "https://app.example.com", "sec-fetch-site": site}
        assert (await fetch(app, "/", "POST", headers=fields)).text == "entered"
        assert (await fetch(app, "/", "POST", headers={**fields, "origin": "https://app.example.com:8443"})).status == 403
        assert (await fetch(app, "/", "POST", headers={**fields, "origin": "http://app.example.com"})).status == 403


async def test_a_page_in_an_app_of_a_phone_can_be_trusted() -> None:
    app = await opened({"/": enter}, trusted_origins=["capacitor://localhost"])
    fields = {"origin": "capacitor://localhost", "sec-fetch-site": "cross-site"}
    assert (await fetch(app, "/", "POST", headers=fields)).text == "entered"


async def test_without_the_check_every_site_may_send_requests() -> None:
    app = await opened({"/": enter}, csrf=False)
    assert (await fetch(app, "/", "POST", headers=EVIL)).text == "entered"


@pytest.mark.parametrize(
    ("entry", "fix"),
    [
        ("app.example.com", "https://app.example.com"),
        ("app.example.com:8443", "https://app.example.com:8443"),
        ("https://app.example.com/", "https://app.example.com"),
        ("https://App.example.com/path?query", "https://app.example.com"),
        ("localhost:5173", "http://localhost:5173"),
        ("//app.example.com", "https://app.example.com"),
        ("https://*.example.com", "https://app.example.com"),
        ("https://user@app.example.com", "https://app.example.com"),
        ("https://", "https://app.example.com"),
        (None, "https://app.example.com"),
        (b"https://app.example.com", "https://app.example.com"),
    ],
)
def test_an_entry_that_is_not_an_origin_is_refused_with_its_fix(entry: Any, fix: str) -> None:
    with pytest.raises(ConfigError) as caught:
        sessions_with(trusted_origins=[entry])
    assert str(caught.value).startswith(
        f"session(trusted_origins=...): {entry!r} isn't an origin, which is scheme://host or scheme://host:port, without a path "
        f"and without a *; write {fix!r}"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trusted_origins": "*"}, r"'\*' would let every site act as the user; name the origins"),
        ({"trusted_origins": ["null"]}, "'null' would let every site act as the user; name the origins"),
        ({"trusted_origins": 7}, r"session\(trusted_origins=7\): it takes a list of origins; write trusted_origins=\["),
        ({"csrf": "no"}, r"session\(csrf='no'\): it takes True or False"),
        ({"csrf": False, "trusted_origins": [OWN]}, r"session\(csrf=False\): without the check, every origin is trusted; remove"),
    ],
    ids=str,
)
def test_an_invalid_option_is_refused_with_its_fix(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        sessions_with(**options)


async def test_origins_that_cors_lets_act_for_users_are_trusted() -> None:
    app = await opened({"/": enter}, cors(["https://*.example.com"], credentials=True))
    fields = {"origin": "https://app.example.com", "sec-fetch-site": "cross-site"}
    response = await fetch(app, "/", "POST", headers=fields)
    assert (response.text, response.headers["access-control-allow-origin"]) == ("entered", "https://app.example.com")
    assert (await fetch(app, "/", "POST", headers={**fields, "origin": "null"})).status == 403
    assert (await fetch(app, "/", "POST", headers=EVIL)).status == 403


async def test_origins_that_cors_allows_without_cookies_are_not_trusted_and_can_read_the_refusal() -> None:
    app = await opened({"/": enter}, cors(["https://app.example.com"]))
    fields = {"origin": "https://app.example.com", "sec-fetch-site": "cross-site"}
    response = await fetch(app, "/", "POST", headers=fields)
    assert (response.status, response.headers["access-control-allow-origin"]) == (403, "https://app.example.com")


# Reports

FIX = "put allow_cross_site before the handlers of its route"


async def test_a_refusal_is_counted_each_time_and_named_in_the_log_once(caplog: pytest.LogCaptureFixture) -> None:
    sessions = sessions_with()
    app = App({"/buy": enter}, integrations=[sessions])
    await app.load()
    caplog.set_level(logging.DEBUG, "gaman")
    for _ in range(2):
        await fetch(app, "/buy", "POST", headers={**EVIL, "host": "shop.example"})
    await fetch(app, "/buy", "POST", headers={"sec-fetch-site": "cross-site", "origin": "null"})
    assert sessions.counters.cross_site == 3
    said = "POST '/buy' was answered 403, because a page of 'https://evil.example' sent it to the host 'shop.example'"
    trust = f"if that page is yours, write session(trusted_origins=['https://evil.example']); if every site may send it, {FIX}"
    records = [record for record in caplog.records if record.name == "gaman"]
    assert [(record.levelname, record.getMessage()) for record in records] == [
        ("WARNING", f"{said} (logged once); {trust}"),
        ("DEBUG", f"{said}; {trust}"),
        (
            "DEBUG",
            "POST '/buy' was answered 403, because a page of an unknown origin sent it to the host 'testserver'; "
            f"if every site may send it, {FIX}",
        ),
    ]
    assert vars(records[0])["path"] == "/buy"


async def test_the_fix_for_a_route_of_a_mounted_app_names_the_mount(caplog: pytest.LogCaptureFixture) -> None:
    inner: Any = {"/": enter, "/hook": [allow_cross_site, enter]}
    for table, target, key in (
        ({"/eu/shop/*": mount(App(inner))}, "/eu//shop/hook", "/eu/shop/*"),
        ({"/:country/*": mount(App(inner))}, "/eu/hook", "/eu/*"),
        ({"/*": mount(App(inner))}, "/hook", "/*"),
        ({"/shop/*": mount(App(inner))}, "/shop", "/shop/*"),
    ):
        caplog.clear()
        app = await opened(table)
        await fetch(app, target, "POST", headers=EVIL)
        await app.shutdown()
        assert caplog.messages[-1].endswith(
            f"if every site may send it, write '{key}': [allow_cross_site, mount(...)], and have the mounted application check all "
            "other requests, as an App with session() does"
        )


async def test_with_debug_the_response_names_the_fix() -> None:
    app = App({"/": enter}, integrations=[sessions_with()], debug=True)
    await app.load()
    response = await fetch(app, "/", "POST", headers={"origin": "http://localhost:5173"})
    assert response.text == (
        "cross-site request refused; if that page is yours, write session(trusted_origins=['http://localhost:5173']); "
        f"if every site may send it, {FIX}"
    )


# In any ASGI application


async def buy(request: Request) -> Response:
    await (await get_session(request)).set("user", 1)
    return PlainTextResponse("bought")


def in_starlette(*paths: str, routes: Any = None, **options: Any) -> Starlette:
    every = ["GET", "POST", "PUT", "DELETE"]
    found = routes or [Route(path, buy, methods=every) for path in ("/buy", "/hook", "/api", "/api/a", "/transfer")]
    middleware = [Middleware(SessionMiddleware, sessions=sessions_with(**options), allow_cross_site=paths)]
    return Starlette(routes=found, middleware=middleware)


async def status(app: Any, target: str, method: str = "POST", headers: Any = EVIL, **scope: Any) -> int:
    return (await fetch(app, target, method, headers=headers, scope=scope)).status


async def test_the_middleware_refuses_cross_site_requests_before_the_application() -> None:
    app = in_starlette(trusted_origins=["https://app.example"])
    refused = await fetch(app, "/buy", "POST", headers=EVIL, body=[b"a", b"b"])
    assert (refused.status, refused.text, len(refused.incoming)) == (403, "cross-site request refused", 2)
    assert "set-cookie" not in refused.headers
    assert await status(app, "/none") == 403
    assert await status(app, "/buy", "GET") == 200
    for headers in (
        {},
        {"sec-fetch-site": "same-origin"},
        {"origin": "https://testserver"},
        {**EVIL, "origin": "https://app.example"},
    ):
        assert await status(app, "/buy", headers=headers) == 200
    assert await status(in_starlette(csrf=False), "/buy") == 200


async def test_a_script_can_read_the_refusal_if_starlettes_cors_is_outside() -> None:
    app = in_starlette(trusted_origins=["https://app.example"])
    app.add_middleware(CORSMiddleware, allow_origins=["https://app.example", "https://b.example"], allow_credentials=True)
    for origin, status in (("https://app.example", 200), ("https://b.example", 403)):
        response = await fetch(app, "/buy", "POST", headers={"origin": origin, "sec-fetch-site": "cross-site"})
        assert (response.status, response.headers["access-control-allow-origin"]) == (status, origin)


async def test_paths_of_the_middleware_are_exempt_in_one_spelling_only() -> None:
    app = in_starlette("/hook", "/api/*")
    for target in ("/hook", "/api", "/api/a"):
        assert await status(app, target) == 200, target
    assert await status(app, "/api/") in (200, 307)
    for target in (
        "/buy",
        "/hook/",
        "/hooks",
        "/apia",
        "//hook",
        "/api//a",
        "/api/../transfer",
        "/api/%2e%2e/transfer",
        "/api/..%2Ftransfer",
        "/",
    ):
        assert await status(app, target) == 403, target
    assert await status(in_starlette("/*"), "/buy") == 200


async def test_paths_of_the_middleware_leave_out_the_root_path() -> None:
    app = in_starlette("/hook")
    assert await status(app, "/site/hook", root_path="/site") == 200
    assert await status(app, "/site/buy", root_path="/site") == 403
    outer = Starlette(routes=[Mount("/shop", app)])
    assert await status(outer, "/shop/hook") == 200
    assert await status(outer, "/shop/buy") == 403


async def test_middleware_that_is_mounted_in_another_checks_by_itself() -> None:
    inner = in_starlette(cookie_name="inner")
    outer = in_starlette("/shop/*", routes=[Mount("/shop", inner)])
    assert await status(outer, "/shop/buy") == 403
    assert await status(outer, "/shop/buy", headers={}) == 200


@pytest.mark.parametrize("path", ["hook", "/hooks/{id}", "/hooks/:id", "/hooks/<int:id>", "/a*", "*", "/a?b", 7])
def test_a_path_that_the_middleware_can_not_match_is_refused(path: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        SessionMiddleware(in_starlette(), sessions=sessions_with(), allow_cross_site=[path])
    assert str(caught.value) == (
        f"SessionMiddleware(allow_cross_site=...): {path!r} isn't a path such as '/webhook', or '/api/*' for every path below it; "
        "it has no parameters and no query"
    )


@pytest.mark.parametrize("paths", ["/hook", True])
def test_paths_that_are_not_a_list_are_refused(paths: Any) -> None:
    with pytest.raises(ConfigError, match=r"it takes a list of paths; write allow_cross_site=\['/webhook'\]"):
        SessionMiddleware(in_starlette(), sessions=sessions_with(), allow_cross_site=paths)


async def test_the_middlewares_log_names_its_own_fix(caplog: pytest.LogCaptureFixture) -> None:
    await status(in_starlette(), "/buy", headers={"origin": "https://evil.example"})
    [record] = caplog.records
    assert record.getMessage().endswith("if every site may send it, write SessionMiddleware(..., allow_cross_site=['/buy'])")


async def hello(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text("open")
    await websocket.close()


async def handshake(app: Any, target: str, headers: dict[str, str], *, can_deny: bool = False) -> list[str]:
    """Return the types of the messages that *app* sends to a handshake, with the status of a denial."""
    extensions: dict[str, Any] = {"websocket.http.response": {}} if can_deny else {}
    scope = http_scope(target, headers=headers, type="websocket", scheme="wss", subprotocols=[], extensions=extensions)
    del scope["method"]
    channel = Channel({"type": "websocket.connect"}, {"type": "websocket.disconnect", "code": 1000})
    await app(scope, channel.receive, channel.send)
    return [f"{message['type']} {message.get('status', '')}".strip() for message in channel.messages]


@pytest.mark.parametrize("can_deny", [False, True])
async def test_a_handshake_from_another_site_is_refused(can_deny: bool) -> None:
    """As RFC 6455, section 10.2, and ASVS 4.4.2 ask, because browsers send cookies with handshakes of every site."""
    routes = [WebSocketRoute("/own", hello), WebSocketRoute("/public", hello)]
    app = in_starlette("/public", routes=routes, trusted_origins=["https://app.example"])
    denied = ["websocket.http.response.start 403", "websocket.http.response.body"] if can_deny else ["websocket.close"]
    accepted = ["websocket.accept", "websocket.send", "websocket.close"]
    for headers in ({"origin": "https://evil.example"}, {"origin": "null"}, EVIL):
        assert await handshake(app, "/own", headers, can_deny=can_deny) == denied
        assert await handshake(app, "/public", headers, can_deny=can_deny) == accepted
    for headers in ({}, {"origin": "https://testserver"}, {"origin": "https://app.example"}):
        assert await handshake(app, "/own", headers, can_deny=can_deny) == accepted


SITE_WITH_FORM = """
import gaman
from gaman.session import session
async def buy(ctx): return await ctx.text()
gaman.serve({"/buy": {"POST": buy}}, integrations=[session("a secret of the tests that is long enough")], port=0)
"""


def test_over_a_socket_the_refusal_does_not_wait_for_the_body(tmp_path: Path) -> None:
    with running_script(SITE_WITH_FORM, tmp_path) as program:
        evil = "Origin: http://evil.example"
        with Connection(program.port) as client:
            client.send(b"POST /buy HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n" + evil.encode() + b"\r\n\r\n")
            assert client.read("POST").status == 403
        with Connection(program.port) as client:
            own = client.fetch(request("/buy", "Origin: http://test", method="POST", body=b"tea"))
            assert (own.status, own.body) == (200, b"tea")
