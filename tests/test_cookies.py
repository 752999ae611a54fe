from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaman import App, Context, Cookies, HeaderError, find_cookie, find_cookies
from gaman._cookies import parse_cookies
from gaman.testing import TestClient

if TYPE_CHECKING:
    from tests.asgi import Fetch

anyio = pytest.mark.anyio


def lines(cookies: Cookies) -> list[str]:
    assert {name for name, _ in cookies.fields()} <= {b"set-cookie"}
    return [value.decode() for _, value in cookies.fields()]


@pytest.mark.parametrize(
    ("field", "cookies"),
    [
        pytest.param(b"a=1; b=2", {"a": "1", "b": "2"}, id="two"),
        pytest.param(b"a=1;b=2;", {"a": "1", "b": "2"}, id="no spaces"),
        pytest.param(b"\t a \t=\t 1 \t;  b=2", {"a": "1", "b": "2"}, id="spaces and tabs around"),
        pytest.param(b"a=first; a=second", {"a": "first"}, id="the first of two"),
        pytest.param(b"a=; b=2", {"a": "", "b": "2"}, id="an empty value"),
        pytest.param(b"a=b=c==", {"a": "b=c=="}, id="equals signs in the value"),
        pytest.param(b'a="1"; b="x y"', {"a": '"1"', "b": '"x y"'}, id="quotes are kept"),
        pytest.param(b'a="x;b=2"', {"a": '"x', "b": '2"'}, id="quotes hide no semicolon"),
        pytest.param(b"=secret; ; b=2", {"b": "2"}, id="without a name"),
        pytest.param(b"flag; b=2", {"b": "2"}, id="without an equals sign"),
        pytest.param(b"\x85a=1; \xa0a=2; a\xa0=3; a=4", {"\x85a": "1", "\xa0a": "2", "a\xa0": "3", "a": "4"}, id="lookalikes"),
        pytest.param(b"a\x0b=1; \x0ca=2; a\x1f=3", {"a\x0b": "1", "\x0ca": "2", "a\x1f": "3"}, id="other white space stays"),
        pytest.param(b"A=1; a=2", {"A": "1", "a": "2"}, id="case matters"),
        pytest.param(b"$Version=1; a=2; $Path=/", {"$Version": "1", "a": "2", "$Path": "/"}, id="nothing is special"),
        pytest.param(b"a=%41\xff", {"a": "%41\xff"}, id="nothing is decoded"),
        pytest.param(b"a=1, b=2", {"a": "1, b=2"}, id="a comma is data"),
        pytest.param(b"", {}, id="empty"),
        pytest.param(b";;=;;", {}, id="only separators"),
    ],
)
def test_a_cookie_field_reads_as_browsers_write_it(field: bytes, cookies: dict[str, str]) -> None:
    assert parse_cookies([(b"cookie", field)]) == cookies


def test_cookies_of_several_fields_are_read_together() -> None:
    assert parse_cookies([(b"cookie", b"a=1; b=2"), (b"x-cookie", b"b=0; d=0"), (b"cookie", b"b=3; c=4")]) == {
        "a": "1",
        "b": "2",
        "c": "4",
    }


@pytest.mark.parametrize("octets", [b'\\"', b"; ", b"a=", b"=", b"\xa0", b"a=b;"], ids=repr)
def test_a_cookie_field_of_100_kb_is_read(octets: bytes) -> None:
    filler = octets * (100_000 // len(octets))
    assert parse_cookies([(b"cookie", b"x=1; " + filler + b"; y=2")])["x"] == "1"


def test_a_field_of_very_many_cookies_keeps_them_all() -> None:
    field = b"; ".join(b"n%d=%d" % (i, i) for i in range(10_000))
    assert parse_cookies([(b"cookie", field)]) == {f"n{i}": str(i) for i in range(10_000)}


@given(st.lists(st.tuples(st.sampled_from([b"cookie", b"x-cookie"]), st.lists(st.sampled_from([*b"ab=;; \t\xa0"])).map(bytes))))
def test_find_cookie_returns_what_parse_cookies_does(headers: list[tuple[bytes, bytes]]) -> None:
    for name in ("a", "b", "ab", "missing"):
        assert find_cookie(headers, name) == parse_cookies(headers).get(name)
        assert next(find_cookies(headers, name), None) == find_cookie(headers, name)


def test_find_cookies_yields_all_of_one_name_in_their_order() -> None:
    headers = [(b"cookie", b"a=1; b=2;a = 3 ; A=4"), (b"x-cookie", b"a=5"), (b"cookie", b'a="6"; a; =a; aa=7; a=; a=1')]
    assert list(find_cookies(headers, "a")) == ["1", "3", '"6"', "", "1"]
    assert list(find_cookies(headers, "missing")) == []


@given(st.binary())
def test_no_octets_of_a_cookie_field_raise(field: bytes) -> None:
    for name, value in parse_cookies([(b"cookie", field)]).items():
        assert name.encode("latin-1") in field
        assert value.encode("latin-1") in field


@given(st.from_regex(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", fullmatch=True), st.from_regex(r"[!#-+\--:<-\[\]-~]*", fullmatch=True))
def test_every_cookie_that_can_be_set_reads_back_the_same(name: str, value: str) -> None:
    cookies = Cookies()
    cookies.set(name, value)
    (line,) = lines(cookies)
    assert parse_cookies([(b"cookie", line.partition(";")[0].encode())]) == {name: value}


def test_cookies_read_their_own_writes() -> None:
    cookies = Cookies([(b"cookie", b"a=old; b=kept")])
    cookies.set("a", "new")
    assert cookies.get("a") == "new"
    cookies.set("c", "")
    assert cookies.has("c")
    assert cookies.get("c") == ""
    cookies.delete("a")
    assert not cookies.has("a")
    assert cookies.get("a") is None
    cookies.set("a", "again")
    assert cookies.get("a") == "again"
    assert cookies.get("b") == "kept"


def test_a_missing_cookie_is_none() -> None:
    assert Cookies().get("a") is None
    assert not Cookies().has("a")


def test_nothing_is_sent_if_nothing_was_set() -> None:
    cookies = Cookies([(b"cookie", b"a=1")])
    cookies.get("a")
    assert lines(cookies) == []


def test_each_cookie_has_its_own_line() -> None:
    cookies = Cookies()
    cookies.set("a", "1")
    cookies.set("b", "2")
    assert [line.partition(";")[0] for line in lines(cookies)] == ["a=1", "b=2"]


def test_only_the_last_write_to_a_cookie_is_sent() -> None:
    cookies = Cookies()
    cookies.set("a", "1", max_age=5)
    cookies.set("a", "2")
    assert lines(cookies) == ["a=2; Path=/; Secure; HttpOnly; SameSite=Lax"]


@pytest.mark.parametrize("other", [{"path": "/below"}, {"domain": "example.com"}, {"partitioned": True}], ids=str)
def test_cookies_of_one_name_but_another_scope_do_not_replace_each_other(other: dict[str, Any]) -> None:
    cookies = Cookies()
    cookies.set("a", "1")
    cookies.set("a", "2", **other)
    assert len(lines(cookies)) == 2


@pytest.mark.parametrize(
    ("options", "line"),
    [
        pytest.param({}, "a=1; Path=/; Secure; HttpOnly; SameSite=Lax", id="defaults"),
        pytest.param({"max_age": 60}, "a=1; Max-Age=60; Path=/; Secure; HttpOnly; SameSite=Lax", id="max_age"),
        pytest.param({"max_age": 0}, "a=1; Max-Age=0; Path=/; Secure; HttpOnly; SameSite=Lax", id="max_age 0"),
        pytest.param({"path": "/x"}, "a=1; Path=/x; Secure; HttpOnly; SameSite=Lax", id="path"),
        pytest.param({"domain": ".Example.com"}, "a=1; Path=/; Domain=Example.com; Secure; HttpOnly; SameSite=Lax", id="dot"),
        pytest.param({"domain": "a_b.c-d.e"}, "a=1; Path=/; Domain=a_b.c-d.e; Secure; HttpOnly; SameSite=Lax", id="characters"),
        pytest.param({"domain": "example.com"}, "a=1; Path=/; Domain=example.com; Secure; HttpOnly; SameSite=Lax", id="domain"),
        pytest.param({"secure": False}, "a=1; Path=/; HttpOnly; SameSite=Lax", id="secure"),
        pytest.param({"http_only": False}, "a=1; Path=/; Secure; SameSite=Lax", id="http_only"),
        pytest.param({"same_site": "strict"}, "a=1; Path=/; Secure; HttpOnly; SameSite=Strict", id="strict"),
        pytest.param({"same_site": "none"}, "a=1; Path=/; Secure; HttpOnly; SameSite=None", id="none"),
        pytest.param({"partitioned": True}, "a=1; Path=/; Secure; HttpOnly; SameSite=Lax; Partitioned", id="partitioned"),
    ],
)
def test_a_cookie_is_sent_with_its_attributes(options: dict[str, Any], line: str) -> None:
    cookies = Cookies()
    cookies.set("a", "1", **options)
    assert lines(cookies) == [line]


def test_a_max_age_of_true_is_one_second() -> None:
    cookies = Cookies()
    cookies.set("a", "1", max_age=True)
    assert "Max-Age=1;" in lines(cookies)[0]


def test_a_cookie_is_secure_if_the_request_was() -> None:
    cookies = Cookies(is_secure=lambda: False)
    cookies.set("a", "1")
    assert lines(cookies) == ["a=1; Path=/; HttpOnly; SameSite=Lax"]


@pytest.mark.parametrize("name", ["", "a b", "a;", "a=", "a\r\n", "a\x00", '"a"', "a,b", "caf\xe9", "\x85a", "\xa0a"], ids=ascii)
def test_a_name_that_is_not_a_token_is_refused(name: str) -> None:
    cookies = Cookies()
    with pytest.raises(HeaderError, match="cookie name"):
        cookies.set(name, "1")
    assert lines(cookies) == []
    assert not cookies.has(name)


@pytest.mark.parametrize("value", [1, None, b"1", True, {"a": 1}], ids=repr)
def test_a_name_or_value_that_is_not_a_str_is_refused(value: Any) -> None:
    cookies = Cookies()
    with pytest.raises(HeaderError, match="the cookie 'a' takes a str, not"):
        cookies.set("a", value)
    if not isinstance(value, dict):
        with pytest.raises(HeaderError, match="cookie's name is a str, not"):
            cookies.set(value, "a")
        with pytest.raises(HeaderError, match="has path="):
            cookies.set("a", "a", path=value)
    assert lines(cookies) == []


@pytest.mark.parametrize(
    "value",
    ["a b", "a;b", "a,b", '"a"', "a\\b", "a\r\nSet-Cookie: b=1", "\n", "\x00", "\x7f", "caf\xe9", "\u20ac", "\ud800"],
    ids=ascii,
)
def test_a_value_that_a_cookie_cannot_hold_is_refused(value: str) -> None:
    cookies = Cookies([(b"cookie", b"a=old")])
    with pytest.raises(HeaderError, match="encode it first"):
        cookies.set("a", value)
    assert lines(cookies) == []
    assert cookies.get("a") == "old"


@pytest.mark.parametrize(
    ("name", "options"),
    [
        pytest.param("a", {"path": "/;x"}, id="path with a semicolon"),
        pytest.param("a", {"path": "/\r\nx: y"}, id="path with a line break"),
        pytest.param("a", {"path": "x"}, id="path without a slash"),
        pytest.param("a", {"path": ""}, id="empty path"),
        pytest.param("a", {"domain": "x; Secure"}, id="domain with a semicolon"),
        pytest.param("a", {"domain": "x\n"}, id="domain with a line break"),
        pytest.param("a", {"domain": ""}, id="empty domain"),
        *(
            pytest.param("a", {"domain": domain}, id=f"domain {domain!r}")
            for domain in [
                "https://example.com",
                "example.com:443",
                "*.example.com",
                "example.com/",
                "example.com/path",
                "exa mple.com",
                " example.com",
                "example.com ",
                "..example.com",
                ".",
                "example..com",
                "example.com.",
                "-example.com",
                "user@example.com",
                "[::1]",
                "caf\xe9.example",
                "a" * 64 + ".example",
                "a." * 127 + "example",
                5,
            ]
        ),
        pytest.param("a", {"max_age": 2.5}, id="max_age of half seconds"),
        pytest.param("a", {"max_age": "3; Domain=example.com"}, id="max_age with another attribute"),
        pytest.param("a", {"same_site": "Lax; X"}, id="unknown same_site"),
        pytest.param("a", {"same_site": "none", "secure": False}, id="none without secure"),
        pytest.param("a", {"partitioned": True, "secure": False}, id="partitioned without secure"),
        pytest.param("__Host-a", {"secure": False}, id="__Host- without secure"),
        pytest.param("__Secure-a", {"secure": False}, id="__Secure- without secure"),
        pytest.param("__Http-a", {"secure": False}, id="__Http- without secure"),
        pytest.param("__Http-a", {"http_only": False}, id="__Http- without http_only"),
        pytest.param("__Host-Http-a", {"http_only": False}, id="__Host-Http- without http_only"),
        pytest.param("__Host-Http-a", {"secure": False}, id="__Host-Http- without secure"),
        pytest.param("__Host-Http-a", {"domain": "example.com"}, id="__Host-Http- with a domain"),
        pytest.param("__Host-Http-a", {"path": "/x"}, id="__Host-Http- with a path"),
        pytest.param("__HOST-a", {"secure": False}, id="prefixes in any case"),
        pytest.param("__hTTp-a", {"http_only": False}, id="__Http- in any case"),
        pytest.param("__hOST-hTTP-a", {"http_only": False}, id="__Host-Http- in any case"),
        pytest.param("__Host-a", {"domain": "example.com"}, id="__Host- with a domain"),
        pytest.param("__Host-a", {"path": "/x"}, id="__Host- with a path"),
    ],
)
def test_a_cookie_that_browsers_would_drop_is_refused(name: str, options: dict[str, Any]) -> None:
    cookies = Cookies()
    with pytest.raises(HeaderError, match=name):
        cookies.set(name, "1", **options)
    assert lines(cookies) == []


def test_a_cookie_that_is_too_long_for_browsers_is_refused() -> None:
    cookies = Cookies([(b"cookie", b"name=old")])
    with pytest.raises(HeaderError, match=r"'name'.* 4097 bytes"):
        cookies.set("name", "x" * 4093)
    assert lines(cookies) == []
    assert cookies.get("name") == "old"
    cookies.set("name", "x" * 4092)
    assert len(lines(cookies)) == 1


def test_deleting_sends_an_expired_cookie() -> None:
    cookies = Cookies([(b"cookie", b"a=1")])
    cookies.delete("a", path="/x", domain="example.com")
    assert lines(cookies) == ["a=; Max-Age=0; Path=/x; Domain=example.com; Secure; HttpOnly; SameSite=Lax"]


def test_a_partitioned_cookie_and_an_unpartitioned_one_are_deleted_separately() -> None:
    cookies = Cookies()
    cookies.set("a", "1", partitioned=True)
    cookies.set("a", "2")
    cookies.delete("a", partitioned=True)
    tail = "; Path=/; Secure; HttpOnly; SameSite=Lax"
    assert lines(cookies) == [f"a=; Max-Age=0{tail}; Partitioned", f"a=2{tail}"]


def test_a_domain_ignores_its_case_and_a_leading_dot() -> None:
    cookies = Cookies()
    cookies.set("a", "1", domain="example.com")
    cookies.set("a", "2", domain=".Example.COM")
    assert lines(cookies) == ["a=2; Path=/; Domain=Example.COM; Secure; HttpOnly; SameSite=Lax"]


def test_deleting_twice_is_fine() -> None:
    cookies = Cookies()
    cookies.delete("a")
    cookies.delete("a")
    assert len(lines(cookies)) == 1


@pytest.mark.parametrize(("name", "partitioned"), [("__Host-a", False), ("__Secure-a", False), ("__HTTP-a", False), ("a", True)])
def test_deleting_is_secure_if_browsers_require_it(name: str, partitioned: bool) -> None:
    cookies = Cookies(is_secure=lambda: False)
    cookies.delete(name, partitioned=partitioned)
    assert "; Secure" in lines(cookies)[0]


@anyio
async def test_each_cookie_is_sent_as_its_own_set_cookie_field(fetch: Fetch) -> None:
    async def handler(ctx: Context) -> str:
        ctx.cookies.set("a", "1")
        ctx.cookies.set("b", "2")
        ctx.cookies.delete("c")
        return "ok"

    response = await fetch(App({"/": handler}))
    assert [line.partition(";")[0] for line in response.headers.getall("set-cookie")] == ["a=1", "b=2", "c="]


@anyio
async def test_a_request_over_http_gets_cookies_that_are_not_secure(fetch: Fetch) -> None:
    async def handler(ctx: Context) -> str:
        ctx.cookies.set("a", "1")
        return "ok"

    response = await fetch(App({"/": handler}), scope={"scheme": "http"})
    assert response.headers["set-cookie"] == "a=1; Path=/; HttpOnly; SameSite=Lax"


@anyio
async def test_a_browser_sends_back_what_was_set_and_forgets_what_was_deleted() -> None:
    async def put(ctx: Context) -> str:
        ctx.cookies.set("__Host-a", "1")
        return "ok"

    async def drop(ctx: Context) -> str:
        ctx.cookies.delete("__Host-a")
        return "ok"

    async def show(ctx: Context) -> str:
        return ctx.cookies.get("__Host-a") or "none"

    async with TestClient(App({"/put": put, "/drop": drop, "/": show})) as client:
        await client.get("/put")
        assert (await client.get("/")).text == "1"
        await client.get("/drop")
        assert (await client.get("/")).text == "none"


@anyio
async def test_cookies_of_two_fields_and_odd_octets_reach_the_handler(fetch: Fetch) -> None:
    async def handler(ctx: Context) -> list[str | None]:
        return [ctx.cookies.get("a"), ctx.cookies.get("b"), ctx.cookies.get("\xa0a")]

    response = await fetch(App({"/": handler}), headers=[(b"cookie", b"\xa0a=evil; a=1"), (b"cookie", b"a=2; b=\xff")])
    assert response.text == '["1","\xff","evil"]'
