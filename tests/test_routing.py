from __future__ import annotations

import functools
import itertools
import re
import unittest.mock
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gaman import App, ConfigError, Context, Handler, HTTPError, Response, Table, define_routes

if TYPE_CHECKING:
    from tests.asgi import Exchange, Fetch

pytestmark = pytest.mark.anyio

METHODS = ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"]


def passing(name: str) -> Handler:
    async def passing(ctx: Context) -> None:
        ctx.locals.setdefault("seen", []).append(name)

    return passing


def answering(name: str) -> Handler:
    async def answering(ctx: Context) -> str:
        return " ".join([*ctx.locals.get("seen", []), name, *(f"{key}={value}" for key, value in sorted(ctx.params.items()))])

    return answering


async def handler(ctx: Context) -> str:
    return "ok"


def sync_handler(ctx: Context) -> str:
    return "ok"


async def takes_an_id(id: Context) -> str:
    return "ok"


def of_deps(deps: object) -> Table:
    return {"/a": answering(repr(deps))}


class AsyncCallable:
    async def __call__(self, ctx: Context) -> str:
        return "ok"


class SyncCallable:
    def __call__(self, ctx: Context) -> str:
        return "ok"


def text_or_status(response: Exchange) -> str | int:
    """Return the text of a 200 response, or the status of another one."""
    return response.text if response.status == 200 else response.status


# Paths


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/", "home"),
        ("/about", "about"),
        ("/About", 404),
        ("/about.html", 404),
        ("/api/v1/ping", "ping"),
        ("/api/v1", "v1"),
        ("/api", 404),
        ("/api/v1/ping/x", 404),
        ("/file.txt", "dot"),
        ("/fileXtxt", 404),
        ("/a+b", "plus"),
        ("/caf%C3%A9", "unicode"),
        ("/%61bout", "about"),
        ("/nothing", 404),
    ],
)
async def test_a_path_is_literal(fetch: Fetch, target: str, expected: str | int) -> None:
    routes = define_routes(
        {
            "/": answering("home"),
            "/about": answering("about"),
            "/api": {"/v1": {"/": answering("v1"), "/ping": answering("ping")}},
            "/file.txt": answering("dot"),
            "/a+b": answering("plus"),
            "/caf\xe9": answering("unicode"),
        }
    )
    assert text_or_status(await fetch(App(routes), target)) == expected


@pytest.mark.parametrize("target", ["/users/me", "/users/me/", "//users/me", "/users//me", "/users///me//", "//users//me//"])
async def test_a_trailing_slash_is_ignored_and_slashes_collapse(fetch: Fetch, target: str) -> None:
    assert text_or_status(await fetch(App({"/users/me": answering("me")}), target)) == "me"
    assert text_or_status(await fetch(App({"/users/:id": answering("user")}), target)) == "user id=me"
    assert text_or_status(await fetch(App({"/users/me/": answering("me")}), target)) == "me"


@pytest.mark.parametrize("target", ["/", "//", "///"])
async def test_the_root_matches_any_number_of_slashes(fetch: Fetch, target: str) -> None:
    assert text_or_status(await fetch(App({"/": answering("home")}), target)) == "home"
    assert text_or_status(await fetch(App(define_routes({"/": answering("home")}, strict=True)), target)) == "home"


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/a", "without"),
        ("/a/", "with"),
        ("//a", "without"),
        ("/a//", "with"),
        ("/b", 404),
        ("/b/", "b"),
        ("/c", "c"),
        ("/c/", 404),
        ("/u/1", "user id=1"),
        ("/u/1/", 404),
        ("/v/1", 404),
        ("/v/1/", "slash id=1"),
        ("/u/", 404),
        ("/u", 404),
    ],
)
async def test_strict_routes_distinguish_a_trailing_slash(fetch: Fetch, target: str, expected: str | int) -> None:
    table = {
        "/a": answering("without"),
        "/a/": answering("with"),
        "/b/": answering("b"),
        "/c": answering("c"),
        "/u/:id": answering("user"),
        "/v/:id/": answering("slash"),
    }
    assert text_or_status(await fetch(App(define_routes(table, strict=True)), target)) == expected


async def test_strict_also_applies_to_routes_of_a_function(fetch: Fetch) -> None:
    app = App(define_routes(of_deps, strict=True), deps="given")
    assert text_or_status(await fetch(app, "/a")) == "'given'"
    assert text_or_status(await fetch(app, "/a/")) == 404


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/users/42", "user id=42"),
        ("/users/a%20b", "user id=a b"),
        ("/users/a+b", "user id=a+b"),
        ("/users/a%2Fb", "user id=a/b"),
        ("/users/a%2fb", "user id=a/b"),
        ("/users/%2F", "user id=/"),
        ("/users/a%252Fb", "user id=a%2Fb"),
        ("/users/caf%C3%A9", "user id=caf\xe9"),
        ("/users/%F0%9F%8D%AA", "user id=\U0001f36a"),
        ("/users/%00", "user id=\x00"),
        ("/users/%2E%2E", "user id=.."),
        ("/users/100%", "user id=100%"),
        ("/users/%zz", "user id=%zz"),
        ("/users/:id", "user id=:id"),
        ("/users/*", "user id=*"),
        ("/users/GET", "user id=GET"),
        ("/users/1/posts/2", "post id=1 post=2"),
        ("/users", 404),
        ("/users/", 404),
        ("/users//posts/2", 404),
        ("/users/a%2Fposts%2F2", "user id=a/posts/2"),
    ],
)
async def test_a_parameter_binds_one_decoded_segment(fetch: Fetch, target: str, expected: str | int) -> None:
    app = App({"/users/:id": answering("user"), "/users/:id/posts/:post": answering("post")})
    assert text_or_status(await fetch(app, target)) == expected


@pytest.mark.parametrize("target", ["/users/%FF", "/users/%C3", "/users/%ED%A0%80", "/%C0%AF", "/nowhere/%FF", "/users/a%2F%FF"])
async def test_a_path_that_is_not_utf8_gets_400(fetch: Fetch, target: str) -> None:
    response = await fetch(App({"/users/:id": answering("user")}), target)
    assert (response.status, response.text) == (400, "the path does not begin with a slash, or is not valid UTF-8")


@pytest.mark.parametrize(
    "target",
    [
        "",
        "?q",
        "*x",
        "users/1",
        "users/%31",
        "@evil.example/x",
        "*",
        "http:/evil.example/x",
        "ftp://evil.example/x",
        "evil.example:443",
    ],
)
async def test_a_target_that_is_not_a_path_gets_400(fetch: Fetch, target: str) -> None:
    assert (await fetch(App({"/users/:id": answering("user"), "/": answering("home")}), target)).status == 400


async def test_octets_beyond_ascii_in_a_raw_path_get_400(fetch: Fetch) -> None:
    response = await fetch(App({"/:a": answering("a")}), scope={"raw_path": b"/\xc3\xa9%20", "path": "/\xe9 "})
    assert response.status == 400


async def test_without_a_raw_path_the_decoded_one_is_used(fetch: Fetch) -> None:
    scope = {"raw_path": None, "path": "/users/caf\xe9 %41"}
    assert text_or_status(await fetch(App({"/users/:id": answering("user")}), scope=scope)) == "user id=caf\xe9 %41"


@pytest.mark.parametrize(("target", "root"), [("/app/users/1", "/app"), ("/app/users/%31", "/app"), ("/a%20b/users/%31", "/a b")])
async def test_the_root_path_of_the_server_is_not_matched(fetch: Fetch, target: str, root: str) -> None:
    app = App({"/users/:id": answering("user"), "/": answering("home")})
    assert text_or_status(await fetch(app, target, scope={"root_path": root})) == "user id=1"
    assert text_or_status(await fetch(app, target.partition("/users")[0], scope={"root_path": root})) == "home"


async def test_routes_may_name_the_same_parameter_differently(fetch: Fetch) -> None:
    app = App({"/:a": answering("one"), "/:b/x": {"GET": answering("two")}, "/:c": {"/:d": {"POST": answering("three")}}})
    assert text_or_status(await fetch(app, "/1")) == "one a=1"
    assert text_or_status(await fetch(app, "/1/x")) == "two b=1"
    assert text_or_status(await fetch(app, "/1/x", "POST")) == "three c=1 d=x"


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/users/me", "me"),
        ("/users/you", "user id=you"),
        ("/users/me/posts", "posts id=me"),
        ("/users/me/photos", "photos"),
        ("/users/you/photos", 404),
        ("/users/me/posts/1", 404),
        ("/a/b/c", "abc"),
        ("/a/b/d", "a:d x=b"),
        ("/a/x/c", "deep p=a q=x r=c"),
        ("/a/b/e", "deep p=a q=b r=e"),
    ],
)
async def test_a_literal_has_precedence_over_a_parameter_and_never_hides_it(fetch: Fetch, target: str, expected: str | int) -> None:
    app = App(
        {
            "/users/:id": answering("user"),
            "/users/me": answering("me"),
            "/users/:id/posts": answering("posts"),
            "/users/me/photos": answering("photos"),
            "/:p/:q/:r": answering("deep"),
            "/a/:x/d": answering("a:d"),
            "/a/b/c": answering("abc"),
        }
    )
    # Paths such as /users/you/photos also match the deepest fallback.
    if expected == 404 and target.count("/") == 3:
        expected = "deep " + " ".join(f"{k}={v}" for k, v in zip("pqr", target.split("/")[1:], strict=True))
    assert text_or_status(await fetch(app, target)) == expected


# Typed parameters

INTS = ["0", "1", "42", "-7", "9223372036854775807", "-9223372036854775807"]
NOT_INTS = [
    "",
    "007",
    "+7",
    "-0",
    "4.0",
    "1e3",
    "1_000",
    " 7",
    "7 ",
    "\u0663",
    "\uff17",
    "abc",
    "-",
    "7\n",
    "0x7",
    "9223372036854775808",
]
FLOATS = ["0", "1", "-33.87", "151.21", "0.5", "1.50"]
NOT_FLOATS = ["", ".5", "5.", "+1", "01", "1e3", "nan", "inf", "-inf", "1_0.0", "1,5", " 1.5", "\u0661", "9" * 400, "-"]
UUID_TEXT = "0198c0de-7a5e-7e1f-8a3b-0123456789ab"
NOT_UUIDS = ["", UUID_TEXT.upper(), UUID_TEXT.replace("-", ""), f"{{{UUID_TEXT}}}", f"urn:uuid:{UUID_TEXT}", UUID_TEXT + "0", "42"]


@pytest.mark.parametrize(
    ("type_", "value", "matches"),
    [
        *(("int", value, True) for value in INTS),
        *(("int", value, False) for value in [*NOT_INTS, "9" * 5000, "1" * 20, "-9223372036854775808"]),
        *(("float", value, True) for value in FLOATS),
        *(("float", value, False) for value in NOT_FLOATS),
        ("uuid", UUID_TEXT, True),
        *(("uuid", value, False) for value in NOT_UUIDS),
    ],
)
async def test_a_typed_parameter_matches_only_a_segment_that_fits(fetch: Fetch, type_: str, value: str, matches: bool) -> None:
    app = App({f"/x/:v<{type_}>": answering("typed")})
    assert text_or_status(await fetch(app, f"/x/{quote(value)}")) == (f"typed v={value}" if matches else 404)


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/7", "seven"),
        ("/8", "int i=8"),
        ("/8.5", "float f=8.5"),
        (f"/{UUID_TEXT}", f"uuid u={UUID_TEXT}"),
        ("/me", "name n=me"),
        ("/007", "name n=007"),
        ("/a/b", "rest r=a/b"),
        ("/7/x", "int x i=7"),
        ("/8.5/x", "rest r=8.5/x"),
        ("/7/y", "name y n=7"),
    ],
)
@pytest.mark.parametrize("is_reversed", [False, True])
async def test_a_literal_has_precedence_over_types_and_types_over_a_plain_parameter_and_a_catch_all(
    fetch: Fetch, target: str, expected: str, is_reversed: bool
) -> None:
    rows = [
        ("/7", answering("seven")),
        ("/:i<int>", answering("int")),
        ("/:u<uuid>", answering("uuid")),
        ("/:f<float>", answering("float")),
        ("/:n", answering("name")),
        ("/:r*", answering("rest")),
        ("/:i<int>/x", answering("int x")),
        ("/:n/y", answering("name y")),
    ]
    assert text_or_status(await fetch(App(dict(rows[::-1] if is_reversed else rows)), target)) == expected


async def test_a_segment_that_does_not_fit_is_404_for_every_method(fetch: Fetch) -> None:
    app = App({"/users/:id<int>": {"GET": answering("user")}})
    assert [(await fetch(app, "/users/me", method)).status for method in ("GET", "PUT", "OPTIONS")] == [404, 404, 404]
    refused = await fetch(app, "/users/7", "PUT")
    assert (refused.status, refused.headers["allow"]) == (405, "GET, HEAD, OPTIONS")


async def test_a_method_that_a_typed_route_lacks_falls_back_to_the_plain_one(fetch: Fetch) -> None:
    app = App({"/:id<int>": {"GET": answering("number")}, "/:name": {"PUT": answering("name")}})
    assert text_or_status(await fetch(app, "/7", "PUT")) == "name name=7"


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/users/7", "guard user id=7"),
        ("/users/7/", "guard user id=7"),
        ("/users//7", "guard user id=7"),
        ("/users/%37", "guard user id=7"),
        ("/users/me", "user id=me"),
        ("/users/007", "user id=007"),
        ("/users/7/edit", "guard edit id=7 name=7"),
        ("/users/me/edit", "edit name=me"),
        ("/users/7/a/b", "guard rest id=7 path=7/a/b"),
        ("/users/:id<int>/edit", "edit name=:id<int>"),
        ("/users/7/edit/more/", "guard rest id=7 path=7/edit/more"),
    ],
)
async def test_typed_middleware_covers_the_paths_that_fit(fetch: Fetch, target: str, expected: str) -> None:
    table = {
        "/users/:id<int>/*": passing("guard"),
        "/users/:id": answering("user"),
        "/users/:name/edit": answering("edit"),
        "/users/:path*": answering("rest"),
    }
    assert text_or_status(await fetch(App(table), target)) == expected


async def test_a_table_of_10000_routes_matches_each_of_them(fetch: Fetch) -> None:
    app = App({f"/r{i}": {"/": answering(f"r{i}"), "/:id/x": answering(f"x{i}")} for i in range(5_000)})
    for i in (0, 1, 2_500, 4_999):
        assert text_or_status(await fetch(app, f"/r{i}")) == f"r{i}"
        assert text_or_status(await fetch(app, f"/r{i}/7/x")) == f"x{i} id=7"
    assert text_or_status(await fetch(app, "/r5000")) == 404


async def test_a_path_of_a_thousand_segments_is_a_404(fetch: Fetch) -> None:
    app = App({"/:a/:b": answering("two"), "/a/:b/c": answering("three")})
    assert text_or_status(await fetch(app, "/a" * 1_000)) == 404


async def test_a_route_of_a_hundred_segments_is_found(fetch: Fetch) -> None:
    assert text_or_status(await fetch(App({"/a" * 100: answering("deep")}), "/a" * 100)) == "deep"


# Methods


@pytest.mark.parametrize("method", METHODS)
async def test_each_method_may_have_its_own_handler(fetch: Fetch, method: str) -> None:
    app = App({"/": {name: answering(name.lower()) for name in METHODS}})
    response = await fetch(app, "/", method)
    assert response.text == ("" if method == "HEAD" else method.lower())


@pytest.mark.parametrize("method", [*METHODS, "PROPFIND", "BREW"])
async def test_all_matches_every_method(fetch: Fetch, method: str) -> None:
    for table in ({"/x": {"ALL": answering("all")}}, {"/x": answering("all")}, {"/:x": answering("all")}):
        response = await fetch(App(table), "/x", method)
        assert response.status == 200
        assert method == "HEAD" or response.text.startswith("all")


async def test_a_method_has_precedence_over_all(fetch: Fetch) -> None:
    app = App({"/": {"ALL": answering("all"), "POST": answering("post"), "GET": answering("get")}})
    assert [text_or_status(await fetch(app, "/", method)) for method in ("GET", "POST", "PUT", "OPTIONS")] == [
        "get",
        "post",
        "all",
        "all",
    ]


@pytest.mark.parametrize("path", ["/x", "/:id"])
async def test_get_serves_head_without_the_body(fetch: Fetch, path: str) -> None:
    response = await fetch(App({path: {"GET": handler}}), "/x", "HEAD")
    assert (response.status, response.body, response.headers["content-length"]) == (200, b"", "2")


async def test_head_may_have_its_own_handler(fetch: Fetch) -> None:
    async def head(ctx: Context) -> str:
        return "longer"

    response = await fetch(App({"/": {"GET": handler, "HEAD": head}}), "/", "HEAD")
    assert response.headers["content-length"] == "6"


@pytest.mark.parametrize(
    ("table", "method", "allow"),
    [
        pytest.param({"/x": {"GET": handler}}, "POST", "GET, HEAD, OPTIONS", id="get"),
        pytest.param({"/x": {"POST": handler}}, "GET", "POST, OPTIONS", id="post"),
        pytest.param({"/x": {"POST": handler}}, "HEAD", "POST, OPTIONS", id="head without get"),
        pytest.param({"/:id": {"DELETE": handler, "PATCH": handler}}, "GET", "PATCH, DELETE, OPTIONS", id="parameter"),
        pytest.param(
            {"/:id": {"GET": handler}, "/x": {"POST": handler}}, "PUT", "GET, HEAD, POST, OPTIONS", id="two routes, one path"
        ),
        pytest.param({"/x": {"GET": handler}}, "PROPFIND", "GET, HEAD, OPTIONS", id="a method that no table can name"),
    ],
)
async def test_a_known_path_with_an_unknown_method_gets_405(fetch: Fetch, table: Any, method: str, allow: str) -> None:
    response = await fetch(App(table), "/x", method)
    assert (response.status, response.headers["allow"]) == (405, allow)


async def test_an_unknown_path_gets_404_for_every_method(fetch: Fetch) -> None:
    for method in [*METHODS, "PROPFIND"]:
        response = await fetch(App({"/x": {"GET": handler}}), "/y", method)
        assert (response.status, "allow" in response.headers) == (404, False)


async def test_options_returns_the_allowed_methods(fetch: Fetch) -> None:
    response = await fetch(App({"/x": {"GET": handler, "POST": handler}}), "/x", "OPTIONS")
    assert (response.status, response.headers["allow"], response.body) == (204, "GET, HEAD, POST, OPTIONS", b"")


async def test_routes_may_define_options(fetch: Fetch) -> None:
    assert text_or_status(await fetch(App({"/x": {"GET": handler, "OPTIONS": answering("mine")}}), "/x", "OPTIONS")) == "mine"


async def test_a_literal_path_without_the_method_falls_back_to_the_parameter(fetch: Fetch) -> None:
    app = App({"/users/me": {"GET": answering("me")}, "/users/:id": {"POST": answering("user")}})
    assert text_or_status(await fetch(app, "/users/me")) == "me"
    assert text_or_status(await fetch(app, "/users/me", "POST")) == "user id=me"
    assert text_or_status(await fetch(app, "/users/x")) == 405


@pytest.mark.parametrize("segment", [*METHODS, "ALL"])
async def test_a_method_name_in_a_path_is_a_segment(fetch: Fetch, segment: str) -> None:
    app = App({"/x": {segment: answering("method")}, "/y": {f"/{segment}": answering("path")}})
    assert text_or_status(await fetch(app, f"/x/{segment}")) == 404
    assert text_or_status(await fetch(app, f"/y/{segment}")) == "path"
    assert text_or_status(await fetch(app, "/y")) == 404


async def test_a_method_at_the_top_is_for_the_root(fetch: Fetch) -> None:
    app = App({"GET": answering("get"), "POST": answering("post")})
    assert text_or_status(await fetch(app, "/", "POST")) == "post"


# Handlers


async def test_the_handlers_of_a_list_run_until_one_returns_a_result(fetch: Fetch) -> None:
    app = App({"/": [passing("one"), passing("two"), answering("three"), answering("four")]})
    assert text_or_status(await fetch(app)) == "one two three"


@pytest.mark.parametrize("value", [passing("one"), [passing("one"), passing("two")], {"GET": passing("one")}])
async def test_the_response_is_404_if_no_handler_returns_a_result(fetch: Fetch, value: Any) -> None:
    assert text_or_status(await fetch(App({"/": value}))) == 404


@pytest.mark.parametrize("result", ["", b"", {}, [], 0], ids=repr)
async def test_only_none_passes_the_request_on(fetch: Fetch, result: Any) -> None:
    async def empty(ctx: Context) -> Any:
        return result

    response = await fetch(App({"/": [empty, handler]}))
    assert response.text != "ok"


@pytest.mark.parametrize("callable_", [AsyncCallable(), functools.partial(handler)], ids=["object", "partial"])
async def test_any_async_callable_can_be_a_handler(fetch: Fetch, callable_: Handler) -> None:
    assert text_or_status(await fetch(App({"/": callable_}))) == "ok"


async def test_a_bound_method_can_be_a_handler(fetch: Fetch) -> None:
    assert text_or_status(await fetch(App({"/": AsyncCallable().__call__}))) == "ok"


# Middleware


SHOP: Table = {"/": {"GET": answering("shop")}, "*": passing("guard"), "/:id<int>": answering("item")}
ADMIN: Table = {"/users": {"/:id": {"GET": answering("user")}}}


@pytest.mark.parametrize(
    ("table", "answers"),
    [
        ({**SHOP, **ADMIN}, {"/": "guard shop", "/7": "guard item id=7", "/users/7": "guard user id=7"}),
        (
            {"/": answering("home"), "/shop": SHOP, "/admin": ADMIN},
            {
                "/": "home",
                "/shop": "guard shop",
                "/shop/": "guard shop",
                "/shop/7": "guard item id=7",
                "/admin/users/7": "user id=7",
            },
        ),
        ({"/v1": {"/shop": SHOP, **ADMIN}}, {"/v1/shop/7": "guard item id=7", "/v1/users/7": "user id=7"}),
    ],
    ids=["merged", "nested", "nested twice"],
)
async def test_the_tables_of_several_modules_make_one(fetch: Fetch, table: Table, answers: dict[str, str]) -> None:
    app = App(table)
    assert {path: (await fetch(app, path)).text for path in answers} == answers


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/", "top home"),
        ("/admin", "top a b admin"),
        ("/admin/", "top a b admin"),
        ("//admin//", "top a b admin"),
        ("/%61dmin", "top a b admin"),
        ("/admin/users", "top a b deeper users"),
        ("/admin//users", "top a b deeper users"),
        ("/%61dmin/users", "top a b deeper users"),
        ("/admin/users/1", "top a b deeper user id=1"),
        ("/administrators", "top others"),
    ],
)
async def test_middleware_runs_for_its_prefix_and_every_path_below_it(fetch: Fetch, target: str, expected: str) -> None:
    app = App(
        {
            "/admin/users": {"/": answering("users"), "/:id": answering("user")},
            "*": passing("top"),
            "/": answering("home"),
            "/admin": {"/": answering("admin"), "*": [passing("a"), passing("b")]},
            "/admin/users/*": passing("deeper"),
            "/administrators": answering("others"),
        }
    )
    assert text_or_status(await fetch(app, target)) == expected


@pytest.mark.parametrize("key", ["*", "/*"])
async def test_a_star_at_the_top_includes_the_root(fetch: Fetch, key: str) -> None:
    app = App({key: passing("mw"), "/": answering("home"), "/x": answering("x")})
    assert (text_or_status(await fetch(app, "/")), text_or_status(await fetch(app, "/x"))) == ("mw home", "mw x")


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "table",
    [
        pytest.param({"/admin/*": "guard", "/admin": {"GET": "show"}, "/admin/": {"POST": "show"}}, id="flat"),
        pytest.param({"/admin": {"*": "guard", "GET": "show", "/": {"POST": "show"}}}, id="nested"),
        pytest.param({"/admin": {"/*": "guard", "GET": "show"}}, id="nested with a slash"),
        pytest.param({"/admin": {"GET": "show"}, "/admin/*": "guard"}, id="guard last"),
        pytest.param({"/:any": {"GET": "show"}, "/admin/*": "guard"}, id="parameter"),
        pytest.param({"/:any*": {"GET": "show"}, "/admin/*": "guard"}, id="catch-all"),
        pytest.param({"/admin/*": "guard"}, id="no route"),
    ],
)
@pytest.mark.parametrize("method", [*METHODS, "PROPFIND"])
async def test_a_guard_covers_its_root_in_every_spelling_and_method(
    fetch: Fetch, table: dict[str, Any], strict: bool, method: str
) -> None:
    async def guard(ctx: Context) -> None:
        raise HTTPError(403)

    def named(below: Any) -> Any:
        return handlers[below] if isinstance(below, str) else {key: named(value) for key, value in below.items()}

    handlers = {"guard": guard, "show": handler}
    app = App(define_routes(named(table), strict=strict))
    for target in ("/admin", "/admin/", "//admin", "/admin//", "/%61dmin", "/admin/x", "/admin//x/", "/admin/%2F"):
        assert (await fetch(app, target, method)).status == 403, target
    for target in ("/adminx", "/admi", "/ADMIN", "/", "/x/admin"):
        assert (await fetch(app, target, method)).status != 403, target


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/users/7", "mw user id=7"),
        ("/users/7/", "mw user id=7"),
        ("/users/7/posts", "mw posts id=7"),
        ("/users", "users"),
        ("/users/", "users"),
    ],
)
async def test_a_guard_binds_the_parameters_of_its_prefix_at_the_prefix_too(fetch: Fetch, target: str, expected: str) -> None:
    seen: list[dict[str, str]] = []

    async def note(ctx: Context) -> None:
        seen.append(dict(ctx.params))

    table: dict[str, Any] = {"/users/:id/*": [note, passing("mw")], "/users": answering("users"), "/users/:id": answering("user")}
    app = App({**table, "/users/:id/posts": answering("posts")})
    assert text_or_status(await fetch(app, target)) == expected
    assert seen == ([{"id": "7"}] if "7" in target else [])


async def test_a_trailing_slash_is_not_a_value_of_a_guards_parameter(fetch: Fetch) -> None:
    table = {"/users/:id/*": passing("mw"), "/users/": answering("slash"), "/users": answering("bare")}
    app = App(define_routes(table, strict=True))
    assert (text_or_status(await fetch(app, "/users/")), text_or_status(await fetch(app, "/users"))) == ("slash", "bare")
    assert (await fetch(app, "/users/x/")).status == 404


async def test_a_guard_of_some_methods_covers_its_root_for_them(fetch: Fetch) -> None:
    app = App({"/a": {"*": {"POST": answering("guard")}, "GET": answering("get"), "POST": answering("post")}})
    assert (text_or_status(await fetch(app, "/a")), text_or_status(await fetch(app, "/a", "POST"))) == ("get", "guard")


async def test_middleware_runs_in_the_order_it_was_declared(fetch: Fetch) -> None:
    app = App({"/a/b/*": passing("1"), "*": passing("2"), "/a/*": passing("3"), "/a/b/c": answering("end")})
    assert text_or_status(await fetch(app, "/a/b/c")) == "1 2 3 end"


async def test_middleware_may_respond_instead_of_the_route(fetch: Fetch) -> None:
    app = App({"/a/*": answering("stop"), "/a/b": answering("never")})
    assert text_or_status(await fetch(app, "/a/b")) == "stop"


async def test_middleware_may_refuse(fetch: Fetch) -> None:
    async def guard(ctx: Context) -> None:
        if ctx.header("authorization") is None:
            raise HTTPError(401)

    app = App({"/admin/*": guard, "/admin/x": answering("secret")})
    assert text_or_status(await fetch(app, "/admin/x")) == 401
    assert text_or_status(await fetch(app, "/admin/x", headers={"authorization": "me"})) == "secret"
    assert text_or_status(await fetch(app, "/admin/%78")) == 401
    assert text_or_status(await fetch(app, "//admin///x/")) == 401


async def test_middleware_also_runs_if_no_route_matches(fetch: Fetch) -> None:
    seen: list[str] = []

    async def note(ctx: Context) -> None:
        seen.append(ctx.path)

    app = App({"/api/*": note, "/api/x": {"GET": handler}})
    assert text_or_status(await fetch(app, "/api/y")) == 404
    assert text_or_status(await fetch(app, "/api/x", "POST")) == 405
    assert text_or_status(await fetch(app, "/other")) == 404
    assert seen == ["/api/y", "/api/x"]


@pytest.mark.parametrize("key", ["*", "/*"])
async def test_middleware_may_respond_if_no_route_matches(fetch: Fetch, key: str) -> None:
    app = App({key: answering("caught")})
    assert text_or_status(await fetch(app, "/anything/at/all")) == "caught"
    assert text_or_status(await fetch(app, "/")) == "caught"


async def test_options_of_a_known_path_passes_the_middleware(fetch: Fetch) -> None:
    app = App({"*": answering("cors"), "/x": {"GET": handler}})
    assert text_or_status(await fetch(app, "/x", "OPTIONS")) == "cors"


@pytest.mark.parametrize(
    ("target", "method", "expected"),
    [("/a/x", "GET", "get x"), ("/a/x", "HEAD", 200), ("/a/x", "POST", "all x"), ("/a/x", "BREW", "all x"), ("/b/x", "POST", "x")],
)
async def test_middleware_may_be_for_some_methods(fetch: Fetch, target: str, method: str, expected: str | int) -> None:
    app = App(
        {
            "/a/*": {"GET": [passing("get")], "ALL": passing("all")},
            "/b/*": {"DELETE": passing("never")},
            "/a/x": answering("x"),
            "/b/x": answering("x"),
        }
    )
    response = await fetch(app, target, method)
    assert (response.status if isinstance(expected, int) else response.text) == expected


async def test_get_middleware_guards_head_as_well(fetch: Fetch) -> None:
    async def guard(ctx: Context) -> None:
        raise HTTPError(403)

    assert text_or_status(await fetch(App({"*": {"GET": guard}, "/x": handler}), "/x", "HEAD")) == 403


async def test_the_handlers_of_method_middleware_stop_at_the_first_result(fetch: Fetch) -> None:
    app = App({"*": {"GET": [passing("one"), answering("two"), answering("never")]}, "/": handler})
    assert text_or_status(await fetch(app)) == "one two"


async def test_middleware_sees_the_parameters_of_its_prefix_and_of_the_route(fetch: Fetch) -> None:
    seen: list[dict[str, str]] = []

    async def note(ctx: Context) -> None:
        seen.append(dict(ctx.params))

    app = App({"/:lang/*": note, "/:lang/users/:id": handler, "/en/about": answering("about")})
    await fetch(app, "/de/users/7")
    assert text_or_status(await fetch(app, "/en/about")) == "about lang=en"
    assert text_or_status(await fetch(app, "/fr/unknown")) == 404
    assert seen == [{"lang": "de", "id": "7"}, {"lang": "en"}, {"lang": "fr"}]


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/users/me/posts", "mine posts id=me"),
        ("/users/you/posts", "posts id=you"),
        ("/users/me", "mine user id=me"),
        ("/users/%6De/posts", "mine posts id=me"),
        ("/users/me/drafts", "mine drafts"),
        ("/x/me/posts", 404),
    ],
)
async def test_middleware_with_a_literal_where_the_route_has_a_parameter_is_conditional(
    fetch: Fetch, target: str, expected: str | int
) -> None:
    app = App(
        {
            "/users/me/*": passing("mine"),
            "/users/:id": answering("user"),
            "/users/:id/posts": answering("posts"),
            "/users/me/drafts": answering("drafts"),
        }
    )
    assert text_or_status(await fetch(app, target)) == expected


async def test_parameters_of_middleware_that_does_not_apply_are_not_bound(fetch: Fetch) -> None:
    app = App({"/me/:own/*": passing("mine"), "/:who/:what/x": answering("x")})
    assert text_or_status(await fetch(app, "/me/1/x")) == "mine x own=1 what=1 who=me"
    assert text_or_status(await fetch(app, "/you/1/x")) == "x what=1 who=you"


async def test_middleware_below_a_parameter_covers_every_value_of_it(fetch: Fetch) -> None:
    app = App({"/users/:id": {"*": passing("below"), "/": answering("user"), "/posts": answering("posts")}})
    assert text_or_status(await fetch(app, "/users/1")) == "below user id=1"
    assert text_or_status(await fetch(app, "/users/1/posts")) == "below posts id=1"


async def test_strict_middleware_guards_the_path_with_and_without_the_slash(fetch: Fetch) -> None:
    app = App(define_routes({"/a/*": passing("mw"), "/a/": answering("slash"), "/a": answering("bare")}, strict=True))
    assert text_or_status(await fetch(app, "/a/")) == "mw slash"
    assert text_or_status(await fetch(app, "/a")) == "mw bare"


# Catch-alls


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/files/a", "file path=a"),
        ("/files/a/b/c.txt", "file path=a/b/c.txt"),
        ("/files/a%20b/caf%C3%A9", "file path=a b/caf\xe9"),
        ("/files/a%252Fb", "file path=a%2Fb"),
        ("/%66iles/a", "file path=a"),
        ("/files/...", "file path=..."),
        ("/files/.hidden/..b", "file path=.hidden/..b"),
        ("/files/*", "file path=*"),
        ("/files/a/", "file path=a"),
        ("/files//a//b//", "file path=a/b"),
        ("/files", 404),
        ("/files/", 404),
        ("/files//", 404),
        ("/filesx/a", 404),
        ("/", 404),
        ("/files/a%2Fb", 404),
        ("/files/%2F", 404),
        ("/files/%2Fetc/passwd", 404),
        ("/files/a%2F/b", 404),
        ("/files/..", 404),
        ("/files/../x", 404),
        ("/files/a/../b", 404),
        ("/files/a/..", 404),
        ("/files/%2e%2e/x", 404),
        ("/files/a/%2E%2E%2Fb", 404),
        ("/files/./a", 404),
        ("/files/a/.", 404),
        ("/files/%2e", 404),
        ("/files/a%00.txt", 404),
        ("/files/a/%FF", 400),
    ],
)
async def test_a_catch_all_binds_the_rest_of_the_path(fetch: Fetch, target: str, expected: str | int) -> None:
    app = App({"/files/:path*": answering("file")})
    assert text_or_status(await fetch(app, target)) == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [("/files/a", "file path=a"), ("/files/a/", "file path=a/"), ("/files//a//b//", "file path=a/b/"), ("/files/", 404)],
)
async def test_a_strict_catch_all_keeps_the_trailing_slash(fetch: Fetch, target: str, expected: str | int) -> None:
    assert text_or_status(await fetch(App(define_routes({"/files/:path*": answering("file")}, strict=True)), target)) == expected


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("/a/b", "literal"),
        ("/a/x", "parameter p=x"),
        ("/a/b/c", "rest of b r=c"),
        ("/a/x/c", "rest r=x/c"),
        ("/a/b/d/e", "rest of b r=d/e"),
        ("/a/x/end", "end p=x"),
        ("/a/b/end", "rest of b r=end"),
        ("/a/b/only/post", "rest of b r=only/post"),
        ("/a", "top r=a"),
        ("/z/a/b", "top r=z/a/b"),
        ("/", 404),
    ],
)
async def test_a_literal_has_precedence_over_a_parameter_and_a_parameter_over_a_catch_all(
    fetch: Fetch, target: str, expected: str | int
) -> None:
    app = App(
        {
            "/:r*": answering("top"),
            "/a/:r*": answering("rest"),
            "/a/:p": answering("parameter"),
            "/a/:p/end": answering("end"),
            "/a/b": answering("literal"),
            "/a/b/:r*": answering("rest of b"),
            "/a/b/only/post": {"POST": answering("post")},
        }
    )
    assert text_or_status(await fetch(app, target)) == expected


async def test_a_catch_all_has_its_own_methods_and_405(fetch: Fetch) -> None:
    app = App(
        {"/files/:path*": {"GET": answering("get"), "PUT": [passing("one"), answering("put")]}, "/files/x": {"POST": handler}}
    )
    assert text_or_status(await fetch(app, "/files/a/b")) == "get path=a/b"
    assert text_or_status(await fetch(app, "/files/a/b", "PUT")) == "one put path=a/b"
    assert (await fetch(app, "/files/a/b", "HEAD")).status == 200
    responses = [await fetch(app, target, "DELETE") for target in ("/files/a/b", "/files/x", "/files/a/../b")]
    assert [response.status for response in responses] == [405, 405, 404]
    assert [response.headers.get("allow") for response in responses] == [
        "GET, HEAD, PUT, OPTIONS",
        "GET, HEAD, POST, PUT, OPTIONS",
        None,
    ]


async def test_middleware_beside_a_catch_all_runs_for_the_paths_that_it_covers(fetch: Fetch) -> None:
    app = App(
        {
            "/files/*": passing("all"),
            "/files/private/deep/*": passing("deep"),
            "/files/:first/*": passing("below"),
            "/files/:path*": answering("file"),
        }
    )
    assert text_or_status(await fetch(app, "/files/a")) == "all below file first=a path=a"
    assert text_or_status(await fetch(app, "/files/private/x")) == "all below file first=private path=private/x"
    for target in ("/files/private/deep/x", "//files//private///deep/x", "/files/privat%65/deep/x/"):
        assert text_or_status(await fetch(app, target)) == "all deep below file first=private path=private/deep/x"


@pytest.mark.parametrize(
    "target",
    [
        "/files/private/x",
        "/files//private/x",
        "/files/private%2Fx",
        "/files/a%2F..%2Fprivate/x",
        "/files/a/../private/x",
        "/files/./private/x",
        "/files/%2e/private/x",
        "/files/private/./x",
        "/files/%2Fprivate/x",
        "/files/private",
        "/files/private/",
    ],
)
async def test_no_spelling_of_a_path_leads_a_catch_all_past_a_guard(fetch: Fetch, target: str) -> None:
    async def guard(ctx: Context) -> None:
        raise HTTPError(403)

    app = App({"/files": {"/private/*": guard, "/:path*": answering("file")}})
    assert text_or_status(await fetch(app, target)) in (403, 404)


async def test_hooks_see_the_same_path_that_a_catch_all_binds(fetch: Fetch) -> None:
    async def show(ctx: Context) -> str:
        return f"{ctx.path} {ctx.params['path']}"

    app = App({"/f/:path*": show})
    for target in ("/f/a/b%20c", "//f//a//b%20c"):
        assert text_or_status(await fetch(app, target)) == "/f/a/b c a/b c"


async def test_a_catch_all_whose_handlers_return_none_gets_404(fetch: Fetch) -> None:
    app = App({"/:path*": [passing("one"), passing("two")], "/x": answering("x")})
    assert (text_or_status(await fetch(app, "/y/z")), text_or_status(await fetch(app, "/x"))) == (404, "x")


async def test_the_cost_of_a_catch_all_is_proportional_to_the_paths_length(fetch: Fetch) -> None:
    app = App({f"{'/a' * depth}/:rest*": {"POST": handler} for depth in range(50)})
    assert (await fetch(app, "/a" * 30_000 + "/..")).status == 404
    assert (await fetch(app, "/a" * 30_000)).status == 405


# Definitions


@pytest.mark.parametrize(
    ("table", "message"),
    [
        pytest.param({"/x": {"GET": handler, "/": {"GET": handler}}}, "GET /x", id="one method twice"),
        pytest.param({"/x": handler, "/x/": handler}, "/x", id="one path twice, but for the slash"),
        pytest.param({"/x/y": handler, "/x": {"/y": handler}}, "/x/y", id="one path twice, nested"),
        pytest.param({"/u/:id": handler, "/u/:name": handler}, "/u/:name", id="one path twice, but for the name"),
        pytest.param({"/u/:id": {"GET": handler}, "/u": {"/:name": {"GET": handler}}}, "GET /u/:name", id="twice with methods"),
        pytest.param({"/x": sync_handler}, "/x.*sync_handler.*async def", id="sync handler"),
        pytest.param({"/x": {"GET": [handler, sync_handler]}}, "GET /x.*sync_handler", id="sync handler in a list"),
        pytest.param({"/x": SyncCallable()}, "/x.*async", id="sync callable"),
        pytest.param({"/x": AsyncCallable}, "/x.*AsyncCallable", id="a class in the place of its object"),
        pytest.param({"/x/*": sync_handler}, r"/x/\*.*sync_handler", id="sync middleware"),
        pytest.param({"/x": "handler"}, "/x.*str", id="string"),
        pytest.param({"/x": None}, "/x: None isn.t a handler", id="none"),
        pytest.param({"/x": 404}, "/x.*int", id="number"),
        pytest.param({"/x": [handler, "handler"]}, "/x.*str", id="string in a list"),
        pytest.param({"/x": []}, "/x.*empty", id="empty list"),
        pytest.param({"/x": {"GET": {"/y": handler}}}, "GET /x.*dict", id="table below a method"),
        pytest.param({"/a/*/b": handler}, r"/a/\*/b", id="star in the middle"),
        pytest.param({"/a*b": handler}, r"/a\*b", id="star within a segment"),
        pytest.param({"/a*": handler}, r"/a\*", id="star glued to a literal"),
        pytest.param({"/:a*/b": handler}, r"/:a\*/b: nothing comes after ':a\*'", id="catch-all in the middle"),
        pytest.param({"/:a*": {"/b": handler}}, r"/:a\*/b: nothing comes after", id="catch-all above a table"),
        pytest.param({"/:a*/:b*": handler}, "nothing comes after", id="two catch-alls in a path"),
        pytest.param({"/:a*/*": handler}, "nothing comes after", id="middleware below a catch-all"),
        pytest.param({"/:a*": {"*": handler}}, "nothing comes after", id="middleware below a catch-all, nested"),
        pytest.param({"/:a/:a*": handler}, "has the parameter ':a' twice", id="catch-all named like a parameter"),
        pytest.param({"/:a/*": handler, "/:a*": handler}, "':a' is at another position", id="catch-all named like a guard's"),
        pytest.param({"/f/:a*": handler, "/f": {"/:a*": handler}}, r"/f/:a\*: this path and method have", id="catch-all twice"),
        pytest.param(
            {"/f/:a*": {"GET": handler}, "/f/:b*": {"PUT": handler}},
            r"PUT /f/:b\*: .*':a\*' in the place of ':b\*'",
            id="two names",
        ),
        pytest.param({"/:*": handler}, "':\\*' isn't a parameter", id="catch-all without a name"),
        pytest.param({"/:a**": handler}, "':a\\*\\*' isn't a parameter", id="catch-all with two stars"),
        pytest.param({"/x:a*": handler}, "a \\* is allowed only", id="catch-all within a segment"),
        pytest.param({"/a*": {"GET": handler}}, r"/a\*", id="star glued to a literal, with methods"),
        pytest.param({"/a/**": handler}, r"/a/\*\*", id="two stars"),
        pytest.param({"/*/": handler}, r"/\*/", id="star and slash"),
        pytest.param({"/a": {"*": {"/b": handler}}}, r"/a/\*.*'/b'", id="path below a star"),
        pytest.param({"*": {"*": handler}}, r"\*", id="star below a star"),
        pytest.param({"users": handler}, "'users'.*begins with '/'", id="no slash"),
        pytest.param({"/api": {"users": handler}}, "'users' below '/api'", id="no slash, nested"),
        pytest.param({"": handler}, "''", id="empty key"),
        pytest.param({"x*": handler}, r"x\*", id="star without a slash"),
        pytest.param({"/x": {"get": handler}}, "'get' below '/x'.*'GET'", id="method in small letters"),
        pytest.param({"all": handler}, "'all'.*'ALL'", id="all in small letters"),
        pytest.param({"/x": {"CONNECT": handler}}, "'CONNECT' below '/x'", id="unknown method"),
        pytest.param({"/x": {1: handler}}, "1 below '/x'.*int", id="key that is no string"),
        pytest.param({"/a-:b": handler}, "'a-:b' holds a parameter, which is a whole segment", id="parameter with a prefix"),
        pytest.param({"/@:b/*": handler}, "'@:b' holds a parameter, which is a whole segment", id="parameter with an at sign"),
        pytest.param({"/x?a=:b": handler}, r"which ends before \? and #; the query is in ctx.query", id="query"),
        pytest.param({"/x#a": handler}, r"which ends before \? and #", id="fragment"),
        pytest.param({"/a%20b": handler}, "percent-encoded, and routes match decoded paths; write 'a b'", id="encoded segment"),
        pytest.param({"/a%2Fb/*": handler}, "percent-encoded", id="encoded segment of middleware"),
        pytest.param({"/a/../b": handler}, "'..' is a segment that clients resolve", id="dot segments"),
        pytest.param({"/./b/*": handler}, "'.' is a segment that clients resolve", id="dot segment of middleware"),
        pytest.param({"/:id": takes_an_id}, r"takes \(id\), but is called as takes_an_id\(ctx\)", id="parameter as argument"),
        pytest.param({"/:id*": [handler, takes_an_id]}, r"takes \(id\), but", id="catch-all as argument"),
        pytest.param({"/:": handler}, "/:", id="parameter without a name"),
        pytest.param({"/:1": handler}, "/:1", id="parameter that begins with a digit"),
        pytest.param({"/:a-b": handler}, "/:a-b", id="parameter with a dash"),
        pytest.param({"/:id.json": handler}, "/:id.json", id="parameter with a suffix"),
        pytest.param(
            {"/u/:id<slug>": handler},
            "ALL /u/:id<slug>: ':id<slug>' has the type 'slug', and the types are int, uuid, float; write :id, and check it in",
            id="unknown type",
        ),
        pytest.param({"/:id<Int>": handler}, "':id<Int>' has the type 'Int'", id="type in capitals"),
        pytest.param({"/:id<>": handler}, "':id<>' has the type ''", id="empty type"),
        pytest.param(
            {"/:int<id>": handler}, "in ':int<id>', the type comes before the name; write :id<int>", id="type before name"
        ),
        pytest.param(
            {"/u/:id<int": handler}, "/u/:id<int: ':id<int' has no '>' after its type; write :id<int>", id="type not closed"
        ),
        pytest.param(
            {"/:id<int>.json": handler}, "':id<int>.json' isn't a parameter; .* a type: :id<int>", id="typed with a suffix"
        ),
        pytest.param({"/:<int>": handler}, "':<int>' isn't a parameter; after the colon comes a name", id="type without a name"),
        pytest.param(
            {"/f/:p*<int>": handler},
            r"':p\*<int>' has a type, and a parameter that takes the rest of the path has none; write :p\*",
            id="typed catch-all",
        ),
        pytest.param({"/f/:p<int>*": handler}, r"has a type, .*; write :p\*", id="typed catch-all, star last"),
        pytest.param(
            {"/u-:id<int>": handler}, "'u-:id<int>' holds a parameter, which is a whole segment", id="typed with a prefix"
        ),
        pytest.param(
            {"/u/:id<int>": handler, "/u/:n<int>": handler}, "/u/:n<int>: this path and method have a route", id="typed twice"
        ),
        pytest.param({"/:id<int>/:id": handler}, "has the parameter ':id' twice", id="typed and plain of one name"),
        pytest.param({"/:id<int>/*": handler, "/7/:id": handler}, "/7/:id.*':id' is at another position", id="typed at two places"),
        pytest.param({"/:id<int>": takes_an_id}, r"takes \(id\), but is called", id="typed parameter as argument"),
        pytest.param({"/:id/x/:id": handler}, "/:id/x/:id", id="parameter twice"),
        pytest.param({"/:id/*": handler, "/users/:id": handler}, "/users/:id.*':id'", id="parameter at two places"),
    ],
)
def test_a_bad_table_fails_when_it_is_defined_and_the_error_names_the_path(table: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        define_routes(table)


@pytest.mark.parametrize(
    ("path", "ours"),
    [
        ("/users/{id}", "/users/:id"),
        ("/users/{id}/", "/users/:id/"),
        ("/users/<id>", "/users/:id"),
        ("/users/{id}/posts/{post_id}", "/users/:id/posts/:post_id"),
        ("/users/{id:int}", "/users/:id<int>"),
        ("/users/<int:id>", "/users/:id<int>"),
        ("/users/<id:int>", "/users/:id<int>"),
        ("/users/{id:float}", "/users/:id<float>"),
        ("/users/<uuid:id>", "/users/:id<uuid>"),
        ("/users/<slug:id>", "/users/:id"),
        ("/users/:id<int>/{name}", "/users/:id<int>/:name"),
        ("/users/{id:[0-9]{3}}", "/users/:id"),
        ("/users/<regex('[a-z]'):id>", "/users/:id"),
        ("/users/{id?}", "/users/:id"),
        ("/users/{ id }", "/users/:id"),
        ("/users/{id}.json", "/users/:id"),
        ("/files/{path:path}", "/files/:path*"),
        ("/files/<path:path>", "/files/:path*"),
        ("/files/<path:name>", "/files/:name*"),
        ("/files/<path>", "/files/:path"),
        ("/files/{path}", "/files/:path"),
        ("/files/{path...}", "/files/:path*"),
        ("/files/{*path}", "/files/:path*"),
        ("/files/*path", "/files/:path*"),
        ("/{lang}/*", "/:lang/*"),
        ("/users/:id/{name}", "/users/:id/:name"),
    ],
)
def test_a_parameter_in_another_frameworks_syntax_is_refused_with_a_fix(path: str, ours: str) -> None:
    tables: list[Any] = [{path: handler}, {path: {"GET": handler}}]
    for table in tables:
        with pytest.raises(
            ConfigError, match=re.escape(f" isn't a parameter, which is a whole segment with a colon; write {ours}") + "$"
        ):
            define_routes(table)
    with pytest.raises(ConfigError, match=re.escape(f"; write /api/v1{ours}") + "$"):
        define_routes({"/api": {"/v1": {path: handler}}})


@pytest.mark.parametrize("segment", ["{", "}", "<", ">", "{}", "<>", "a{b", "a<b", "a>b", "}a{", "{1}", "a:b", "[a]"])
async def test_a_brace_without_a_name_is_literal(fetch: Fetch, segment: str) -> None:
    app = App({f"/x/{segment}": answering("literal")})
    assert text_or_status(await fetch(app, f"/x/{segment}")) == "literal"
    assert text_or_status(await fetch(app, f"/x/{quote(segment)}")) == "literal"
    assert text_or_status(await fetch(app, "/x/y")) == 404


# Callables that can and can't be called as handler(ctx)


async def nothing() -> None: ...


async def two(ctx: Context, id: str) -> None: ...


async def takes_more(ctx: Context, given: str) -> str:
    return given


async def optional(ctx: Context, id: str = "none") -> str:
    return id


async def keyword_only(ctx: Context, *, db: str) -> str:
    return db


async def ctx_by_keyword(*, ctx: Context) -> None: ...


async def anything(*args: Any, **kwargs: Any) -> str:
    return f"{len(args)} {len(kwargs)}"


async def positional_only(ctx: Context, /) -> str:
    return "positional"


async def of_two(db: str, ctx: Context) -> str:
    return db


async def generator(ctx: Context) -> AsyncIterator[str]:
    yield "chunk"


def decorated(function: Any) -> Any:
    """Pass *function* its argument besides ctx."""

    @functools.wraps(function)
    async def wrapper(ctx: Context) -> Any:
        return await function(ctx, "given")

    return wrapper


class Controller:
    async def show(self, ctx: Context) -> str:
        return "shown"

    async def needs_more(self, ctx: Context, id: str) -> None: ...

    async def static_in_all_but_name(self) -> None: ...

    @classmethod
    async def of_class(cls, ctx: Context) -> str:
        return cls.__name__

    @staticmethod
    async def static(ctx: Context) -> str:
        return "static"


class NeedsMore:
    async def __call__(self, ctx: Context, id: str) -> None: ...


class Generating:
    async def __call__(self, ctx: Context) -> AsyncIterator[str]:
        yield "chunk"


@pytest.mark.parametrize(
    ("handler", "text"),
    [
        (optional, "none"),
        (anything, "1 0"),
        (positional_only, "positional"),
        (functools.partial(keyword_only, db="db"), "db"),
        (functools.partial(of_two, "db"), "db"),
        (functools.partial(AsyncCallable()), "ok"),
        (functools.partial(functools.partial(of_two), "db"), "db"),
        (Controller().show, "shown"),
        (Controller.of_class, "Controller"),
        (Controller.static, "static"),
        (decorated(takes_more), "given"),
        (unittest.mock.AsyncMock(return_value="mocked"), "mocked"),
    ],
)
async def test_any_async_callable_of_one_argument_can_be_a_handler(fetch: Fetch, handler: Any, text: str) -> None:
    assert text_or_status(await fetch(App({"/": [handler]}))) == text


@pytest.mark.parametrize(
    ("handler", "fault"),
    [
        (nothing, "nothing takes (), but is called as nothing(ctx)"),
        (two, "two takes (ctx, id), but is called as two(ctx); path parameters are in ctx.params"),
        (keyword_only, "keyword_only takes (ctx, *, db), but"),
        (ctx_by_keyword, "ctx_by_keyword takes (*, ctx), but"),
        (functools.partial(two), "two takes (ctx, id), but"),
        (functools.partial(Controller().show, None), "Controller.show takes (), but"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # None is not a Context
        (Controller.show, "Controller.show takes (self, ctx), but is called as Controller.show(ctx); give the method of an object"),
        (Controller().needs_more, "Controller.needs_more takes (ctx, id), but"),
        (Controller.static_in_all_but_name, "Controller.static_in_all_but_name takes (self), but is called as"),
        (AsyncCallable, "AsyncCallable is a class, not a handler; give an async function, or a method of an object"),
        (Response("hello"), "a Response isn't a handler; give an async function, or a list of them"),
        (None, "None isn't a handler; give"),
        (define_routes({"/": handler}), "routes aren't a handler; give the dict that they are made of in their place"),
        (App({"/": handler}), "routes aren't a handler; give the dict that they are made of in their place"),
        (NeedsMore(), "NeedsMore.__call__ takes (ctx, id), but"),
        (generator, "generator is an async generator, because it holds `yield`; write a handler that returns Response.stream() of"),
        (functools.partial(generator), "generator is an async generator, because"),
        (Generating(), "Generating.__call__ is an async generator, because"),
        (Controller().show(None), "Controller.show is called here; write Controller.show by itself, because each"),  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]  # None is not a Context
    ],
)
@pytest.mark.filterwarnings("ignore:coroutine")
def test_a_handler_that_cannot_be_called_with_ctx_is_refused_when_it_is_defined(handler: Any, fault: str) -> None:
    tables: list[Any] = [{"/x": {"GET": handler}}, {"/x": {"GET": [optional, handler]}}]
    for table in tables:
        with pytest.raises(ConfigError, match="^GET /x: (the handler )?" + re.escape(fault)):
            define_routes(table)
    with pytest.raises(ConfigError, match=re.escape(fault)):
        define_routes({"/x/*": handler})


@pytest.mark.parametrize("table", [handler, AsyncCallable(), functools.partial(handler)])
def test_a_handler_instead_of_a_table_is_refused(table: Any) -> None:
    with pytest.raises(ConfigError, match=r"routes are a dict of paths and handlers, not a handler; write \{'/': "):
        define_routes(table)


@pytest.mark.parametrize(
    ("table", "name"),
    [(None, "not None"), ([handler], "not a list"), (lambda: None, "not None"), (lambda: [("/", handler)], "list")],
    ids=["none", "list", "function of none", "function of list"],
)
def test_anything_but_a_table_is_refused(table: Any, name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        define_routes(table)


@pytest.mark.parametrize("table", [define_routes({"/": handler}), App({"/": handler}), lambda: define_routes({"/": handler})])
def test_routes_cannot_be_defined_again(table: Any) -> None:
    with pytest.raises(ConfigError, match="these routes are defined already; pass the dict"):
        define_routes(table)


def of_deps_and_db(deps: object, db: object) -> Table:
    return {}


def of_a_keyword(*, db: object) -> Table:
    return {}


@pytest.mark.parametrize(("table", "takes"), [(of_deps_and_db, "(deps, db)"), (of_a_keyword, "(*, db)")])
def test_a_function_of_routes_that_takes_more_than_deps_is_refused(table: Any, takes: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(f"of routes takes {takes}; it may take `deps`, and no more")):
        define_routes(table)


def test_the_table_of_a_function_of_deps_is_checked_by_the_app() -> None:
    def table(deps: object) -> Table:
        return {"users": handler}

    with pytest.raises(ConfigError, match="users"):
        App(define_routes(table))


def test_a_bare_table_is_checked_by_the_app() -> None:
    with pytest.raises(ConfigError, match="users"):
        App({"users": handler})


async def test_the_same_path_for_another_method_does_not_conflict(fetch: Fetch) -> None:
    app = App({"/x": {"GET": answering("get")}, "/x/": {"POST": answering("post")}})
    assert (text_or_status(await fetch(app, "/x")), text_or_status(await fetch(app, "/x", "POST"))) == ("get", "post")


async def test_a_function_without_an_argument_defines_routes(fetch: Fetch) -> None:
    routes = define_routes(lambda: {"/": answering("made")})
    assert text_or_status(await fetch(App(routes))) == "made"


async def test_a_function_with_an_argument_gets_the_deps_of_each_app(fetch: Fetch) -> None:
    routes = define_routes(of_deps)
    assert text_or_status(await fetch(App(routes, deps="one"), "/a")) == "'one'"
    assert text_or_status(await fetch(App(routes, deps="two"), "/a")) == "'two'"


async def test_deps_are_none_if_the_app_has_none(fetch: Fetch) -> None:
    assert text_or_status(await fetch(App(define_routes(of_deps)), "/a")) == "None"


async def test_changing_a_table_later_does_not_change_the_routes(fetch: Fetch) -> None:
    handlers = [answering("before")]
    table: dict[str, Any] = {"/x": handlers}
    app = App(define_routes(table))
    handlers[:] = [answering("after")]
    table["/y"] = handler
    assert text_or_status(await fetch(app, "/x")) == "before"
    assert text_or_status(await fetch(app, "/y")) == 404


@pytest.mark.parametrize("target", ["/en/x", "/de/x", "/plain"])
async def test_one_request_cannot_change_the_parameters_of_the_next(fetch: Fetch, target: str) -> None:
    async def change(ctx: Context) -> str:
        before = repr(dict(ctx.params))
        params: Any = ctx.params
        with suppress(TypeError):
            params["lang"] = "changed"
        return before

    app = App({"/:lang/*": passing("mw"), "/en/x": change, "/:lang/x": change, "/plain": change})
    first = text_or_status(await fetch(app, target))
    assert "changed" not in str(first)
    assert text_or_status(await fetch(app, target)) == first


# Against a reference

SEGMENTS = ["a", "7", ":p", ":q", ":i<int>", ":j<int>", ":f<float>", ":u<uuid>"]
VALUES = ["a", "b", "7", "8", "-7", "007", "1.5", "1e3", UUID_TEXT, UUID_TEXT.upper(), ":i<int>"]
# A parameter's name contains its depth, because a path can't have the same name twice.
patterns = st.lists(st.sampled_from(SEGMENTS), max_size=3).map(
    lambda p: tuple(s if s[0] != ":" else f"{s[:2]}{i}{s[2:]}" for i, s in enumerate(p))
)
route_patterns = st.tuples(patterns, st.sampled_from([(), (), (":rest*",)])).map(lambda parts: parts[0] + parts[1])
methods = st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "ALL"])
Pattern = tuple[str, ...]


def is_int(text: str) -> bool:
    with suppress(ValueError):
        return text.isascii() and str(int(text)) == text
    return False


def is_float(text: str) -> bool:
    return is_int(text) or re.fullmatch(r"-?\d+\.\d+", text) is not None


def is_uuid(text: str) -> bool:
    with suppress(ValueError):
        return str(UUID(text)) == text
    return False


CHECKS = {"<int>": is_int, "<uuid>": is_uuid, "<float>": is_float}


def type_of(segment: str) -> str:
    return segment[2 + segment[2:].find("<") :] if "<" in segment else ""


def fits(pattern: Pattern, path: Pattern) -> bool:
    if len(pattern) > len(path):
        return False
    return all(
        CHECKS.get(type_of(mine), bool)(its) if mine[0] == ":" else mine == its for mine, its in zip(pattern, path, strict=False)
    )


def shape(pattern: Pattern) -> Pattern:
    return tuple(
        segment[-1] if segment[-1] == "*" else f":{type_of(segment)}" if segment[0] == ":" else segment for segment in pattern
    )


def ranks(pattern: Pattern) -> list[int]:
    return [
        5 if segment[-1] == "*" else ["<int>", "<uuid>", "<float>", ""].index(type_of(segment)) + 1 if segment[0] == ":" else 0
        for segment in pattern
    ]


def reference(middleware: list[Pattern], routes: list[tuple[str, Pattern]], method: str, path: Pattern) -> tuple[str, str]:
    """Return the status and text of a response, found by looking at every route and its middleware."""
    seen = [f"*{'/'.join(prefix)}" for prefix in middleware if fits(prefix, path)]
    candidates = [
        (name, pattern)
        for name, pattern in routes
        if fits(pattern, path) and (len(pattern) == len(path) or shape(pattern)[-1:] == ("*",))
    ]
    # At the first segment that differs, a literal has precedence, and a catch-all comes last.
    for _, group in itertools.groupby(sorted(candidates, key=lambda c: ranks(c[1])), key=lambda c: shape(c[1])):
        named = dict(group)
        for name in (method, "GET" if method == "HEAD" else method, "ALL"):
            if name in named:
                return "200", " ".join([*seen, f"{name}/{'/'.join(named[name])}"])
    if not candidates:
        return "404", ""
    allowed = {"OPTIONS", *(name for name, _ in candidates)}
    if "GET" in allowed:
        allowed.add("HEAD")
    return ("204" if method == "OPTIONS" else "405"), ", ".join(name for name in METHODS if name in allowed)


@settings(max_examples=3 * settings().max_examples)
@given(
    middleware=st.lists(patterns, max_size=3, unique=True),
    routes=st.lists(st.tuples(methods, route_patterns), max_size=8, unique_by=lambda route: (route[0], shape(route[1]))),
    requests=st.lists(
        st.tuples(
            st.sampled_from(["GET", "POST", "HEAD", "OPTIONS", "PUT"]), st.lists(st.sampled_from(VALUES), max_size=4).map(tuple)
        ),
        min_size=1,
        max_size=8,
    ),
)
async def test_any_table_matches_like_a_search_through_all_routes(
    fetch: Fetch, middleware: list[Pattern], routes: list[tuple[str, Pattern]], requests: list[tuple[str, Pattern]]
) -> None:
    table: dict[str, Any] = {}
    for prefix in middleware:
        table["/" + "".join(f"{s}/" for s in prefix) + "*"] = passing(f"*{'/'.join(prefix)}")
    for method, pattern in routes:
        table.setdefault("/" + "/".join(pattern), {})[method] = recording(f"{method}/{'/'.join(pattern)}")
    app = App(table)
    for method, path in requests:
        response = await fetch(app, "/" + "/".join(path), method)
        seen = response.headers.get("x-seen") or response.headers.get("allow", "")
        assert (str(response.status), seen) == reference(middleware, routes, method, path)


def recording(name: str) -> Handler:
    async def recording(ctx: Context) -> Response:
        pattern, path = name.split("/")[1:], ctx.path.strip("/").split("/")
        if pattern[-1] == ":rest*":
            pattern.pop()
            assert ctx.params["rest"] == "/".join(path[len(pattern) :])
        for segment, value in zip(pattern, path, strict=False):
            assert segment[:1] != ":" or ctx.params[segment[1:].partition("<")[0]] == value
        return Response(None, headers={"x-seen": " ".join([*ctx.locals.get("seen", []), name])})

    return recording
