from __future__ import annotations

from datetime import date
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import quote
from uuid import UUID

import msgspec
import pytest
from msgspec import Meta

from gaman import App, ConfigError, Context, Headers, define_integration, define_routes, log_extra
from gaman.testing import TestClient

if TYPE_CHECKING:
    from tests.asgi import Fetch

pytestmark = pytest.mark.anyio


async def show(ctx: Context) -> dict[str, Any]:
    return {"method": ctx.method, "path": ctx.path, "url": ctx.url, "ip": ctx.ip}


async def test_a_context_has_the_method_path_url_and_ip(fetch: Fetch) -> None:
    response = await fetch(App({"/a/:b": show}), "/a/b%20c?x=1&y=%20", "POST", headers={"Host": "example.com"})
    assert response.text == '{"method":"POST","path":"/a/b c","url":"https://example.com/a/b%20c?x=1&y=%20","ip":"127.0.0.1"}'


@pytest.mark.parametrize(
    ("scope", "url"),
    [
        ({}, "https://testserver:443/caf%C3%A9"),
        ({"server": ("testserver", None)}, "https://testserver/caf%C3%A9"),
        ({"server": None}, "https://localhost/caf%C3%A9"),
        ({"server": ("::1", 8000)}, "https://[::1]:8000/caf%C3%A9"),
        ({"server": ("::1", None)}, "https://[::1]/caf%C3%A9"),
        ({"server": ("/run/gaman.sock", None)}, "https://localhost/caf%C3%A9"),
        ({"raw_path": None}, "https://testserver:443/caf%C3%A9"),
        ({"scheme": "http", "query_string": b"a=\xff"}, "http://testserver:443/caf%C3%A9?a=\xff"),
    ],
)
async def test_a_url_needs_no_host_header(fetch: Fetch, scope: dict[str, Any], url: str) -> None:
    async def handler(ctx: Context) -> str:
        return ctx.url

    bare: dict[str, Any] = {"http_version": "1.0", "headers": []}
    assert (await fetch(App({"/caf\xe9": handler}), "/caf%C3%A9", scope={**bare, **scope})).text == url


@pytest.mark.parametrize(("client", "ip"), [(("::1", 1), "::1"), (None, None)])
async def test_the_ip_is_the_peers_address_or_none(fetch: Fetch, client: tuple[str, int] | None, ip: str | None) -> None:
    async def handler(ctx: Context) -> list[str | None]:
        return [ctx.ip]

    assert (await fetch(App({"/": handler}), scope={"client": client})).text == ('["::1"]' if ip else "[null]")


async def test_header_names_are_case_insensitive(fetch: Fetch) -> None:
    async def handler(ctx: Context) -> list[Any]:
        assert ctx.headers is ctx.headers
        assert isinstance(ctx.headers, Headers)
        return [ctx.header("X-A"), ctx.headers["x-a"], ctx.headers.getall("X-a"), ctx.header("x-missing")]

    response = await fetch(App({"/": handler}), headers=[(b"x-a", b"1"), (b"x-a", b"\xff")])
    assert response.text == '["1","1",["1","\xff"],null]'


async def test_cookie_returns_the_value_of_the_request(fetch: Fetch) -> None:
    async def handler(ctx: Context) -> list[Any]:
        ctx.cookies.set("a", "2")
        return [ctx.cookie("a"), ctx.cookies.get("a"), ctx.cookie("missing"), ctx.cookie("\u20ac")]

    assert (await fetch(App({"/": handler}), headers={"cookie": "a=1"})).text == '["1","2",null,null]'


async def test_params_are_read_by_name(fetch: Fetch) -> None:
    async def handler(ctx: Context) -> list[Any]:
        return [ctx.params["id"], ctx.param("id"), ctx.param("missing")]

    assert (await fetch(App({"/:id": handler}), "/%C3%A9")).text == '["\xe9","\xe9",null]'


@pytest.mark.parametrize(
    ("query", "pairs"),
    [
        ("", []),
        ("a=1&b=2&a=3", [["a", "1"], ["b", "2"], ["a", "3"]]),
        ("a=x+y%2B&b=&c", [["a", "x y+"], ["b", ""], ["c", ""]]),
        ("a=%C3%A9&b=\xe9", [["a", "\xe9"], ["b", "\xe9"]]),
        ("a=%FF&%C3=1", [["a", "\ufffd"], ["\ufffd", "1"]]),
        ("a=%&&=&b=1;c=2", [["a", "%"], ["", ""], ["b", "1;c=2"]]),
        ("a=b=c?d#e", [["a", "b=c?d#e"]]),
        ("%0D%0A=%00", [["\r\n", "\x00"]]),
    ],
)
async def test_a_query_is_decoded_as_browsers_encode_it(fetch: Fetch, query: str, pairs: list[list[str]]) -> None:
    async def handler(ctx: Context) -> dict[str, Any]:
        assert ctx.query is ctx.query
        return {"pairs": [list(pair) for pair in ctx.query.items()]}

    response = await fetch(App({"/": handler}), f"/?{query}")
    assert msgspec.json.decode(response.body) == {"pairs": pairs}


async def test_a_query_returns_the_first_value_of_a_name_or_all(fetch: Fetch) -> None:
    async def handler(ctx: Context) -> list[Any]:
        absent = [ctx.query.getall("b"), ctx.query.getall("b", None), ctx.query.getall("b", default=["c"])]
        return [ctx.query["a"], ctx.query.get("b"), ctx.query.getall("a"), *absent]

    assert (await fetch(App({"/": handler}), "/?a=1&a=2")).text == '["1",null,["1","2"],[],null,["c"]]'
    assert (await fetch(App({"/": handler}), "/?a=1")).text == '["1",null,["1"],[],null,["c"]]'


async def test_octets_that_are_not_utf8_in_a_query_are_replaced(fetch: Fetch) -> None:
    async def handler(ctx: Context) -> str:
        return ctx.query["a"]

    assert (await fetch(App({"/": handler}), scope={"query_string": b"a=\xff\xfe"})).text == "\ufffd\ufffd"


@pytest.mark.parametrize(("count", "status"), [(1_000, 200), (1_001, 400), (100_000, 400)])
async def test_a_query_has_1000_fields_at_most(fetch: Fetch, count: int, status: int) -> None:
    async def handler(ctx: Context) -> str:
        return str(len(ctx.query))

    assert (await fetch(App({"/": handler}), "/?" + "&".join(["a=1"] * count))).status == status


async def test_a_query_that_is_not_read_is_not_parsed(fetch: Fetch) -> None:
    assert (await fetch(App({"/": show}), "/?" + "&" * 5_000)).status == 200


async def test_locals_are_shared_by_the_handlers_of_one_request_only(fetch: Fetch) -> None:
    async def first(ctx: Context) -> None:
        ctx.locals.setdefault("seen", []).append(ctx.path)

    async def second(ctx: Context) -> list[str]:
        seen: list[str] = ctx.locals["seen"]
        return seen

    app = App({"/": [first, second]})
    for _ in range(2):
        assert (await fetch(app)).text == '["/"]'


async def test_a_session_without_the_integration_names_the_line_to_add(fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(ctx: Context) -> str:
        return str(ctx.session.id)

    assert (await fetch(App({"/": handler}))).status == 500
    assert "integrations=[session(...)]" in caplog.text


async def test_setting_an_attribute_of_a_session_without_the_integration_raises_too(fetch: Fetch) -> None:
    async def handler(ctx: Context) -> str:
        anything: Any = ctx
        with pytest.raises(ConfigError, match=r"integrations=\[session\(\.\.\.\)\]"):
            anything.session.user = 1
        return "ok"

    assert (await fetch(App({"/": handler}))).text == "ok"


async def test_an_unknown_attribute_of_a_context_is_an_attribute_error(fetch: Fetch) -> None:
    async def handler(ctx: Context) -> str:
        anything: Any = ctx
        with pytest.raises(AttributeError):
            anything.user = 1
        assert not any(hasattr(ctx, name) for name in ("user", "request", "state"))
        return "ok"

    assert (await fetch(App({"/": handler}))).text == "ok"


async def test_the_error_of_an_unknown_attribute_of_a_context_names_locals(fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    async def handler(ctx: Context) -> Any:
        anything: Any = ctx
        return anything.user

    assert (await fetch(App({"/": handler}))).status == 500
    assert (
        "'Context' object has no attribute 'user'; what you add to a request yourself goes into ctx.locals['user']" in caplog.text
    )


async def test_the_error_of_an_unknown_attribute_of_another_object_does_not_name_locals(
    fetch: Fetch, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(ctx: Context) -> Any:
        anything: Any = ctx.path
        return anything.user

    assert (await fetch(App({"/": handler}))).status == 500
    assert "has no attribute 'user'" in caplog.text
    assert "ctx.locals" not in caplog.text


async def test_a_context_has_the_scope(fetch: Fetch) -> None:
    async def handler(ctx: Context) -> str:
        version: str = ctx.scope["http_version"]
        return version

    assert (await fetch(App({"/": handler}))).text == "1.1"


# The request's id


async def tell(ctx: Context) -> str:
    assert ctx.request_id == ctx.request_id
    return ctx.request_id


@pytest.mark.parametrize("given", ["7", "a" * 64, "Ab.9_-z"])
async def test_the_request_id_is_the_x_request_id(fetch: Fetch, given: str) -> None:
    assert (await fetch(App({"/": tell}), headers={"X-Request-ID": given})).text == given


@pytest.mark.parametrize("given", [None, "", "a" * 65, "a b", "a\nb", "a,b", "<b>", "caf\xe9", "%0a", "7\n"])
async def test_a_request_without_a_valid_x_request_id_gets_a_random_id(fetch: Fetch, given: str | None) -> None:
    headers = {} if given is None else {"X-Request-ID": given}
    names = {(await fetch(App({"/": tell}), headers=headers)).text for _ in range(3)}
    assert len(names) == 3
    assert all(len(name) == 32 and name.isalnum() for name in names)


async def test_log_extra_is_one_dict_that_integrations_add_to(fetch: Fetch) -> None:
    async def handler(ctx: Context) -> Any:
        ctx.log_extra["user"] = 7
        return log_extra(ctx.scope)

    response = await fetch(App({"/:id": handler}), "/a%20b?q=1", headers={"X-Request-ID": "7"})
    assert msgspec.json.decode(response.body) == {"request_id": "7", "method": "GET", "path": "/a b", "user": 7}


async def test_a_context_has_the_app_that_serves_it(fetch: Fetch) -> None:
    async def handler(ctx: Context) -> str:
        return str(ctx.app is app)

    app = App({"/": handler})
    assert (await fetch(app)).text == "True"


# Typed parameters

AN_ID = UUID("0198c0de-7a5e-7e1f-8a3b-0123456789ab")


class Color(Enum):
    RED = "red"


@pytest.mark.parametrize(
    ("type_", "text", "value"),
    [
        (str, " a ", " a "),
        (int, "42", 42),
        (int, "-7", -7),
        (float, "1.50", 1.5),
        (float, "2", 2.0),
        (UUID, str(AN_ID), AN_ID),
        (date, "2026-02-28", date(2026, 2, 28)),
        (Decimal, "1.5", Decimal("1.5")),
        (bool, "true", True),
        (Color, "red", Color.RED),
        (Literal["new", 1], "new", "new"),
        (Literal["new", 1], "1", 1),
    ],
)
async def test_a_parameter_may_have_a_type(fetch: Fetch, type_: Any, text: str, value: object) -> None:
    async def handler(ctx: Context) -> str:
        found = ctx.param("v", type_)
        assert (type(found), found) == (type(value), value)
        return "ok"

    assert (await fetch(App({"/:v": handler}), f"/{quote(text)}")).text == "ok"


@pytest.mark.parametrize(
    ("type_", "texts"),
    [
        (int, ["x", "007", "+7", "-0", "1.0", "1e3", "1_0", " 7", "\u0667", "9" * 5000, "9223372036854775808", "7\0"]),
        (float, ["x", "nan", "inf", ".5", "1e3", "9" * 5000, " 1.5"]),
        (UUID, ["x", str(AN_ID).upper(), AN_ID.hex]),
        (date, ["x", "2026-02-30", " 2026-02-28", "5"]),
        (Decimal, ["NaN", "1e99999999"]),
        (Annotated[int, Meta(ge=1)], ["0", "007", "9223372036854775808"]),
        (int | None, ["007", "9223372036854775808"]),
        (int | float, ["9223372036854775808"]),
        (bool, ["x", "2", " "]),
        (Color, ["RED", "green"]),
        (Literal["new", 1], ["old", "2"]),
    ],
)
async def test_a_parameter_that_does_not_fit_its_type_is_404(fetch: Fetch, type_: Any, texts: list[str]) -> None:
    async def handler(ctx: Context) -> str:
        return repr(ctx.param("v", type_))

    for text in texts:
        assert (await fetch(App({"/:v": handler}), f"/{quote(text)}")).status == 404, text


async def test_a_surrogate_in_a_path_is_404(fetch: Fetch) -> None:
    async def handler(ctx: Context) -> str:
        return repr(ctx.param("v", date))

    assert (await fetch(App({"/:v": handler}), scope={"path": "/\ud800", "raw_path": None})).status == 404


async def test_a_typed_parameter_that_the_route_lacks_is_an_error_that_names_the_ones_it_has(
    fetch: Fetch, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(ctx: Context) -> str:
        assert ctx.param("idd") is None
        return repr(ctx.param("idd", int))

    app = App({"/:id<int>/:name": handler, "/": handler})
    assert [(await fetch(app, "/7/a")).status, (await fetch(app, "/")).status] == [500, 500]
    assert "ctx.param('idd', ...): the route has no parameter :idd; its parameters are: :id, :name" in caplog.text
    assert "the route has no parameter :idd; its parameters are: none" in caplog.text


@pytest.mark.parametrize(
    ("type_", "name"),
    [(dict[str, int], "dict[str, int]"), ({"a": 1}, "an object of dict"), (5, "an object of int"), (object, "object")],
)
async def test_a_type_that_no_parameter_becomes_is_an_error_for_the_developer(
    fetch: Fetch, type_: Any, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(ctx: Context) -> str:
        return repr(ctx.param("v", type_))

    assert (await fetch(App({"/:v": handler}), "/7")).status == 500
    assert f"ctx.param() takes a type that a text can become, such as int, UUID, date or an Enum, not {name}" in caplog.text


@pytest.mark.parametrize("is_function", [False, True])
async def test_handlers_and_hooks_have_the_deps_of_the_app(fetch: Fetch, is_function: bool) -> None:
    seen: list[object] = []

    async def handler(ctx: Context) -> str:
        seen.append(ctx.app.deps)
        return "ok"

    def on_request(ctx: Context) -> None:
        seen.append(ctx.app.deps)

    deps = {"greeting": "hello"}
    routes = define_routes((lambda given: {"/": handler}) if is_function else {"/": handler})
    app = App(routes, deps=deps, integrations=[define_integration(name="x", on_request=on_request)])
    await fetch(app)
    assert [found is deps for found in seen] == [True, True]
    assert App(routes).deps is None


async def test_a_close_that_fails_is_logged_and_the_others_still_run(fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    class Opened:
        is_closed = False

        def __init__(self, error: Exception | None) -> None:
            self.error = error

        async def close(self) -> None:
            self.is_closed = True
            if self.error is not None:
                raise self.error

    opened = [Opened(OSError("stale handle")), Opened(None), Opened(ValueError("other"))]

    async def handler(ctx: Context) -> str:
        for each in opened:
            ctx._close_later(each)
        return "sent"

    app = App({"/": handler})
    assert (await fetch(app)).text == "sent"
    assert all(each.is_closed for each in opened)
    assert [record.getMessage() for record in caplog.records] == ["a close failed after GET '/'"] * 2
    # A test client raises the first one, as any error that no response tells.
    async with TestClient(app) as client:
        with pytest.raises(OSError, match="stale handle"):
            await client.get("/")
