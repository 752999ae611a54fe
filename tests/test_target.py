from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaman import App, Context, HTTPError, define_integration, define_routes
from gaman._target import path_of, split

if TYPE_CHECKING:
    from tests.asgi import Fetch

pytestmark = pytest.mark.anyio


async def show(ctx: Context) -> dict[str, Any]:
    return {"path": ctx.path, "log": ctx.log_extra["path"], "url": ctx.url, "params": dict(ctx.params)}


SPELLINGS = ["/admin", "//admin", "///admin", "/%61dmin", "//%61%64min", "/admin/", "/admin//", "//admin///", "//%61dmin//"]


@pytest.mark.parametrize("root", ["", "/app", "/app/", "/a b", "/a%20b", "/app/v1", "/caf\xe9"])
@pytest.mark.parametrize("target", SPELLINGS)
async def test_routes_and_hooks_see_one_path_for_every_spelling(fetch: Fetch, target: str, root: str) -> None:
    app = App({"/admin": show})
    prefixes = {
        "": [""],
        "/app": ["/app", "/%61pp", "//app", "/a%70p/"],
        "/app/": ["/app", "/%61pp"],
        "/a b": ["/a%20b", "/%61%20b", "//a%20b"],
        "/a%20b": ["/a%20b", "/%61%20b"],
        "/app/v1": ["/app/v1", "/%61pp/v1", "/app//v1"],
        "/caf\xe9": ["/caf%C3%A9", "/c%61f%c3%a9"],
    }
    for prefix in prefixes[root]:
        response = await fetch(app, prefix + target, scope={"root_path": root})
        expected = "/admin/" if target.endswith("/") else "/admin"
        assert response.status == 200, prefix
        shown = msgspec.json.decode(response.body)
        assert (shown["path"], shown["log"]) == (expected, expected)
        assert shown["url"] == f"https://testserver{prefix}{target}"


@pytest.mark.parametrize("target", SPELLINGS)
async def test_no_spelling_bypasses_a_hook_that_guards_a_prefix(fetch: Fetch, target: str) -> None:
    def guard(ctx: Context) -> None:
        if ctx.path == "/admin" or ctx.path.startswith("/admin/"):
            raise HTTPError(403)

    for strict in (False, True):
        routes = define_routes({"/admin": show, "/admin/": show} if strict else {"/admin": show}, strict=strict)
        assert (await fetch(App(routes), target)).status == 200
        assert (await fetch(App(routes, integrations=[define_integration(name="guard", on_request=guard)]), target)).status == 403


@pytest.mark.parametrize(
    ("target", "root", "path"),
    [
        ("/", "", "/"),
        ("//", "", "/"),
        ("/%2F", "", "/%2F"),
        ("/static%2fx", "", "/static%2Fx"),
        ("/a%25b", "", "/a%b"),
        ("/caf%C3%A9", "", "/caf\xe9"),
        ("/a/../b", "", "/a/../b"),
        ("/app", "/app", "/"),
        ("/app/", "/app", "/"),
        ("/app//", "/app", "/"),
        ("/%61pp", "/app", "/"),
        # A server that removes the prefix itself, or a path outside it.
        ("/users", "/app", "/users"),
        ("/apple", "/app", "/apple"),
        ("/ap%2Fp", "/ap/p", "/ap%2Fp"),
    ],
)
async def test_a_path_is_decoded_and_below_the_root_path(fetch: Fetch, target: str, root: str, path: str) -> None:
    response = await fetch(App({"*": show}), target, scope={"root_path": root})
    assert msgspec.json.decode(response.body)["path"] == path


async def test_a_slash_within_a_segment_does_not_split_it(fetch: Fetch) -> None:
    app = App({"/:page": show, "/static/:file": show})
    shown = msgspec.json.decode((await fetch(app, "/static%2Fx")).body)
    assert shown == {
        "path": "/static%2Fx",
        "log": "/static%2Fx",
        "url": "https://testserver/static%2Fx",
        "params": {"page": "static/x"},
    }


async def test_options_of_an_asterisk_gets_an_empty_response(fetch: Fetch) -> None:
    response = await fetch(App({"/": show}), "*", "OPTIONS")
    assert (response.status, dict(response.headers), response.body) == (204, {}, b"")
    assert (await fetch(App({"/": show}), "*", "GET")).status == 400
    assert (await fetch(App({"/": show}), "/*", "OPTIONS")).status == 404


@pytest.mark.parametrize(
    ("target", "host", "status", "url"),
    [
        ("http://shop.example/admin", "evil.example", 200, "https://shop.example/admin"),
        ("HTTPS://shop.example:8000//%61dmin?a=1", "evil.example", 200, "https://shop.example:8000//%61dmin?a=1"),
        ("http://shop.example", "shop.example", 404, ""),
        ("http://evil.example/admin", "shop.example", 400, ""),
        ("http://user@shop.example/admin", "shop.example", 400, ""),
        ("http:///admin", "shop.example", 400, ""),
        ("http://shop.example/admin", "a b", 400, ""),
        ("http://shop.example/admin", "", 400, ""),
        ("http://http://shop.example/admin", "shop.example", 404, ""),
    ],
)
async def test_the_host_of_an_absolute_target_replaces_the_field(
    fetch: Fetch, target: str, host: str, status: int, url: str
) -> None:
    seen: list[str] = []
    hook = define_integration(name="hook", on_request=lambda ctx: seen.append(ctx.host))
    app = App({"/admin": show}, integrations=[hook], allowed_hosts=["shop.example", "http"])
    response = await fetch(app, target, headers={"host": host})
    assert response.status == status
    assert len(seen) == (status != 400)
    if status == 200:
        shown = msgspec.json.decode(response.body)
        assert (shown["url"], shown["path"]) == (url, "/admin")


@given(st.text("/a%2Fb4.", max_size=12), st.sampled_from(["", "/a", "/a/b", "/%61"]))
def test_the_segments_of_any_path_are_those_of_ctx_path(tail: str, root: str) -> None:
    raw = f"/{tail}".encode()
    scope = {"path": "/" + tail, "raw_path": raw, "root_path": root}
    segments = split("/" + tail, raw, root)
    if segments is not None:
        assert "" not in segments[:-1]
        assert segments != [""]
        assert path_of(scope).split("/")[1:] == [segment.replace("/", "%2F") for segment in segments] or segments == []
