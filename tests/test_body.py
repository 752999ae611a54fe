from __future__ import annotations

import asyncio
import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Sized
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, Generic, TypedDict, TypeVar

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec import Struct
from pydantic import BaseModel

from gaman import App, Context, Form, HTTPError, Response, ResultError, UploadedFile
from gaman.testing import TestClient
from tests.asgi import Exchange, Fetch, http_scope

pytestmark = pytest.mark.anyio

MULTIPART = {"content-type": "multipart/form-data; boundary=xx"}
CONTROLS = "".join(map(chr, [*range(9), *range(10, 32), 127]))
URLENCODED = {"content-type": "application/x-www-form-urlencoded"}


@dataclass
class User:
    name: str
    age: int


class Point(msgspec.Struct):
    x: int
    y: int = 0


class Movie(TypedDict):
    title: str


async def echo(ctx: Context) -> bytes:
    return await ctx.body()


async def text(ctx: Context) -> str:
    return await ctx.text()


async def as_json(ctx: Context) -> dict[str, Any]:
    return {"got": await ctx.json()}


async def form(ctx: Context) -> list[Any]:
    return await described(await ctx.form())


async def described(form: Form) -> list[Any]:
    files = [
        [name, file.filename, file.content_type, file.size, (await file.read()).decode("latin-1")]
        for name, file in form.files.items()
    ]
    return [[[name, value] for name, value in form.fields.items()], files]


def part(disposition: str, content: str | bytes = "", *more: str) -> bytes:
    head = "\r\n".join(["--xx", f"Content-Disposition: {disposition}", *more, "", ""])
    return head.encode() + (content if isinstance(content, bytes) else content.encode()) + b"\r\n"


END = b"--xx--\r\n"


def head(*lines: bytes) -> bytes:
    """Return a body with one part: a field `a` with the value `1` and these additional header lines."""
    return b"\r\n".join([b"--xx", b'Content-Disposition: form-data; name="a"', *lines, b"", b"1", END])


def cut(body: bytes, at: Iterable[int]) -> list[bytes]:
    places = sorted(at)
    return [body[i:j] for i, j in zip([0, *places], [*places, len(body)], strict=True)]


def in_pieces(body: bytes, size: int) -> list[bytes]:
    return [body[i : i + size] for i in range(0, len(body), size)]


any_cut = pytest.mark.parametrize("size", [1, 2, 3, 7, 1 << 20])


# Bytes and text


@pytest.mark.parametrize("chunks", [[b"hello"], [b"hel", b"lo"], [b"", b"h", b"", b"ello", b""]], ids=repr)
async def test_a_body_is_joined_from_its_chunks(fetch: Fetch, chunks: list[bytes]) -> None:
    assert (await fetch(App({"/": echo}), body=chunks)).body == b"hello"


async def test_a_request_without_a_body_has_an_empty_one(fetch: Fetch) -> None:
    assert (await fetch(App({"/": echo}))).body == b""


async def test_a_body_can_be_read_twice(fetch: Fetch) -> None:
    async def twice(ctx: Context) -> bytes:
        return await ctx.body() + await ctx.body() + (await ctx.text()).encode()

    assert (await fetch(App({"/": twice}), body=b"ab")).body == b"ababab"


async def test_a_form_can_be_read_after_its_body(fetch: Fetch) -> None:
    async def both(ctx: Context) -> list[Any]:
        return [await ctx.text(), await ctx.input("a"), await ctx.input("a")]

    response = await fetch(App({"/": both}), headers=URLENCODED, body=b"a=1")
    assert response.text == '["a=1","1","1"]'


async def test_reading_a_body_after_its_form_raises_instead_of_waiting(fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    async def both(ctx: Context) -> bytes:
        await ctx.form()
        return await ctx.body()

    response = await fetch(App({"/": both}), headers=URLENCODED, body=b"a=1")
    assert response.body == b"a=1" or (response.status == 500 and "body" in caplog.text)


async def test_two_readers_of_one_body_get_all_of_it(fetch: Fetch) -> None:
    async def twice(ctx: Context) -> list[str]:
        return [*await asyncio.gather(ctx.text(), ctx.text())]

    assert (await fetch(App({"/": twice}), body=[b"a", b"b", b"c"])).text == '["abc","abc"]'


async def test_text_that_is_not_utf8_gets_400(fetch: Fetch) -> None:
    response = await fetch(App({"/": text}), body=b"caf\xe9")
    assert (response.status, response.text) == (400, "the body is not valid UTF-8")


async def test_a_stream_yields_the_chunks_as_they_arrive(fetch: Fetch) -> None:
    async def chunks(ctx: Context) -> list[str]:
        return [chunk.decode() async for chunk in ctx.stream()]

    assert (await fetch(App({"/": chunks}), body=[b"a", b"b", b"c"])).text == '["a","b","c"]'


# Limits


@pytest.mark.parametrize("handler", [echo, text, as_json, form])
@pytest.mark.parametrize(
    ("headers", "chunks"),
    [({"content-length": "11"}, [b""]), ({}, [b"12345678901"]), ({}, [b"1" * 5] * 3), ({"content-length": "3"}, [b"1" * 11])],
    ids=["announced", "in one chunk", "while streaming", "more than announced"],
)
async def test_a_body_beyond_the_limit_gets_413(fetch: Fetch, handler: Any, headers: dict[str, str], chunks: list[bytes]) -> None:
    response = await fetch(App({"/": handler}, max_body_size=10), headers={**URLENCODED, **headers}, body=chunks)
    assert (response.status, response.text) == (413, "the body is larger than 10 bytes")


async def test_a_body_at_the_limit_is_read(fetch: Fetch) -> None:
    response = await fetch(App({"/": echo}, max_body_size=10), headers={"content-length": "10"}, body=[b"12345", b"67890"])
    assert response.body == b"1234567890"


async def test_the_default_limit_of_a_body_is_one_mebibyte(fetch: Fetch) -> None:
    assert (await fetch(App({"/": echo}), body=b"1" * (1 << 20))).status == 200
    assert (await fetch(App({"/": echo}), body=b"1" * ((1 << 20) + 1))).status == 413


async def test_no_more_of_a_body_is_read_than_the_limit_allows() -> None:
    exchange = Exchange([b"1" * 10] * 10)
    await App({"/": echo}, max_body_size=25)(http_scope("/", "POST"), exchange.receive, exchange.send)
    assert (exchange.status, 10 - len(exchange.incoming)) == (413, 3)


async def test_a_handler_may_set_its_own_limit(fetch: Fetch) -> None:
    async def small(ctx: Context) -> bytes:
        return await ctx.body(max_size=2)

    async def large(ctx: Context) -> bytes:
        return await ctx.body(max_size=20)

    app = App({"/small": small, "/large": large}, max_body_size=10)
    assert (await fetch(app, "/small", body=b"123")).status == 413
    assert (await fetch(app, "/large", body=b"1" * 20)).status == 200
    assert (await fetch(app, "/large", body=b"1" * 21)).status == 413


async def test_the_size_of_a_body_that_is_not_read_is_not_checked(fetch: Fetch) -> None:
    async def lazy(ctx: Context) -> str:
        return "ok"

    response = await fetch(
        App({"/": lazy}, max_body_size=1), headers={"content-length": "999", "content-encoding": "gzip"}, body=b"1" * 999
    )
    assert response.status == 200


@pytest.mark.parametrize("length", ["", "-1", "x", "1e3", "9" * 5_000, "\xb2", "+5"], ids=ascii)
async def test_an_invalid_content_length_is_never_a_500(fetch: Fetch, length: str) -> None:
    assert (await fetch(App({"/": echo}), headers={"content-length": length}, body=b"ok")).status in (200, 413)


@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "GZIP", "identity, gzip", "unknown"])
@pytest.mark.parametrize("handler", [echo, as_json, form])
async def test_an_encoded_body_gets_415(fetch: Fetch, handler: Any, encoding: str) -> None:
    response = await fetch(App({"/": handler}), headers={**URLENCODED, "content-encoding": encoding}, body=b"\x1f\x8b")
    assert (response.status, response.headers["accept-encoding"]) == (415, "identity")


@pytest.mark.parametrize("encoding", ["identity", "Identity", "", " "])
async def test_the_identity_encoding_is_accepted(fetch: Fetch, encoding: str) -> None:
    assert (await fetch(App({"/": echo}), headers={"content-encoding": encoding}, body=b"ok")).body == b"ok"


# JSON


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"{'a': 1}",
        b'{"a":1}x',
        b"nan",
        b"[1,]",
        b'"\xff"',
        b"\xff\xfe[\x00]\x00",
        b'"\\ud800"',
        b"[" * 100_000,
        b'{"a":' * 100_000,
    ],
    ids=[
        "empty",
        "blank",
        "cut",
        "single quotes",
        "trailing",
        "nan",
        "comma",
        "not utf-8",
        "utf-16",
        "surrogate",
        "deep list",
        "deep object",
    ],
)
async def test_malformed_json_gets_400(fetch: Fetch, body: bytes) -> None:
    response = await fetch(App({"/": as_json}), body=body)
    assert response.status == 400
    assert response.text.startswith("malformed JSON: ")
    assert response.text.lower().count("malformed") == 1


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b'{"name":"\xff","age":1}', b'{"name":"A","age":1}x', b'{"x":' * 100_000],
    ids=["empty", "cut", "not utf-8", "trailing", "deep"],
)
async def test_malformed_json_gets_400_for_any_type(fetch: Fetch, body: bytes) -> None:
    response = await fetch(App({"/": typed(User)}), body=body)
    assert (response.status, response.text[:14]) == (400, "malformed JSON")


NESTED: dict[str, Callable[[int], bytes]] = {
    "arrays": lambda levels: b"[" * levels + b"]" * levels,
    "objects": lambda levels: b'{"[":' * levels + b"1" + b"}" * levels,
    "arrays in objects": lambda levels: (
        b"[" * (levels % 2) + b'{"":[' * (levels // 2) + b"]}" * (levels // 2) + b"]" * (levels % 2)
    ),
    "unclosed": lambda levels: b"[" * levels,
    "after flat ones": lambda levels: b"[" + b"[],{}," * 200 + b"[" * (levels - 1) + b"]" * levels,
    "both": lambda levels: b'[{"a":' * (levels // 2) + b"[" * (levels % 2) + b"1" + b"]" * (levels % 2) + b"}]" * (levels // 2),
    "after a string that ends in a backslash": lambda levels: b'["\\\\",' + b"[" * (levels - 1) + b"]" * levels,
    "after an escaped quote": lambda levels: b'["\\"",' + b"[" * (levels - 1) + b"]" * levels,
}


@pytest.mark.parametrize("type", [None, list[Any], User], ids=["any", "list", "dataclass"])
@pytest.mark.parametrize("nest", NESTED.values(), ids=NESTED)
async def test_json_nested_deeper_than_100_levels_is_refused_before_it_is_decoded(
    fetch: Fetch, nest: Callable[[int], bytes], type: Any
) -> None:
    response = await fetch(App({"/": typed(type)}), body=nest(101))
    assert (response.status, response.text) == (400, "malformed JSON: nested deeper than 100 levels")


@pytest.mark.parametrize("name", [name for name in NESTED if name != "unclosed"])
async def test_json_nested_100_levels_deep_is_read(fetch: Fetch, name: str) -> None:
    body = NESTED[name](100)
    response = await fetch(App({"/": as_json}), body=body)
    assert response.status == 200
    assert json.loads(response.text) == {"got": json.loads(body)}


@pytest.mark.parametrize(
    "value",
    [["[" * 500, "{" * 500], ['"[' * 200], ["\\[" * 200], [[1]] * 500, [{"a": {"b": [1]}}] * 200],
    ids=["brackets in strings", "and quotes", "and backslashes", "arrays side by side", "objects side by side"],
)
async def test_brackets_that_do_not_nest_do_not_count_as_levels(fetch: Fetch, value: Any) -> None:
    body = json.dumps(value).encode()
    response = await fetch(App({"/": as_json}), body=body)
    assert response.status == 200
    assert json.loads(response.text) == {"got": value}


@pytest.mark.parametrize("body", [b"1e999", b"-1e999", b"[1e999]", b"1" * 5_000], ids=["inf", "-inf", "nested", "long integer"])
async def test_a_number_beyond_all_limits_is_never_a_500(fetch: Fetch, body: bytes) -> None:
    response = await fetch(App({"/": as_json}), body=body)
    assert response.status in (200, 400, 422)


T = TypeVar("T")


def typed(type: Any) -> Any:
    async def typed(ctx: Context) -> dict[str, Any]:
        value = await ctx.json(type)
        return {"type": value.__class__.__name__, "value": value}

    return typed


@pytest.mark.parametrize(
    ("type", "body", "expected"),
    [
        pytest.param(User, '{"name":"A","age":3}', '{"type":"User","value":{"name":"A","age":3}}', id="dataclass"),
        pytest.param(Point, '{"x":1}', '{"type":"Point","value":{"x":1,"y":0}}', id="Struct"),
        pytest.param(Movie, '{"title":"M"}', '{"type":"dict","value":{"title":"M"}}', id="TypedDict"),
        pytest.param(list[int], "[1,2]", '{"type":"list","value":[1,2]}', id="list"),
        pytest.param(int | None, "null", '{"type":"NoneType","value":null}', id="union"),
    ],
)
async def test_json_is_decoded_into_a_type(fetch: Fetch, type: Any, body: str, expected: str) -> None:
    assert (await fetch(App({"/": typed(type)}), body=body.encode())).text == expected


@pytest.mark.parametrize(
    ("type", "body", "places"),
    [
        pytest.param(User, '{"name":"A","age":"old"}', ["isn't an integer", "$.age"], id="dataclass"),
        pytest.param(User, '{"name":"A"}', ["is required", "$.age"], id="missing field"),
        pytest.param(Point, '{"x":1.5}', ["isn't an integer", "$.x"], id="Struct"),
        pytest.param(list[Point], '[{"x":1},{"x":"1"}]', ["$[1].x"], id="nested"),
        pytest.param(Movie, '{"title":null}', ["$.title"], id="TypedDict"),
        pytest.param(User, "[]", ["the input isn't an object"], id="another kind"),
    ],
)
async def test_json_that_does_not_fit_gets_422_with_the_location_of_the_error(
    fetch: Fetch, type: Any, body: str, places: list[str]
) -> None:
    response = await fetch(App({"/": typed(type)}), body=body.encode())
    assert response.status == 422
    assert all(place in response.text for place in places)


@pytest.mark.parametrize(
    ("type", "body", "path", "detail"),
    [
        (User, '{"name":"A","age":9223372036854775808}', "$.age", "is too large"),
        (list[Point], '[{"x":1},{"x":-9223372036854775809}]', "$[1].x", "is too small"),
        (dict[int, str], '{"9223372036854775808":""}', "$", "the input has a key that is too large"),
        (set[int], "[99999999999999999999]", "$[0]", "is too large"),
        (int, "99999999999999999999", "$", "the input is too large"),
        (None, '{"ages":[1,9223372036854775808]}', "$.ages[1]", "is too large"),
    ],
)
async def test_an_integer_beyond_64_bits_gets_422(fetch: Fetch, type: Any, body: str, path: str, detail: str) -> None:
    response = await fetch(App({"/": typed(type)}), body=body.encode())
    assert (response.status, json.loads(response.text)) == (422, {"detail": detail, "path": path})


@pytest.mark.parametrize(
    ("type", "body", "path", "detail"),
    [
        (list[datetime], '["2026-01-01T00:00:00Z","0001-01-01T00:00:00+23:59"]', "$[1]", "is out of range"),
        (datetime, r'"\u0039999-12-31T23:59:59-23:59"', "$", "the input is out of range"),
        (dict[datetime, int], '{"9999-12-31T23:59:59-00:01":1}', "$", "the input has a key that is out of range"),
    ],
)
async def test_a_time_beyond_the_range_of_utc_gets_422(fetch: Fetch, type: Any, body: str, path: str, detail: str) -> None:
    response = await fetch(App({"/": typed(type)}), body=body.encode())
    assert (response.status, json.loads(response.text)) == (422, {"detail": detail, "path": path})


@pytest.mark.parametrize(
    ("type", "body", "path", "detail"),
    [
        *((Decimal, f'"{text}"', "$", "the input isn't a number") for text in ("NaN", "-inf", "Infinity", "sNaN7", "N_a_N")),
        (list[Decimal | int], '["1", "NaN"]', "$[1]", "isn't a number"),
        (Decimal, "1e999999999", "$", "the input is out of range"),
        (Decimal, '"-1e-999999999"', "$", "the input is out of range"),
        (dict[Decimal, int], '{"NaN":1}', "$", "the input has a key that isn't a number"),
        (dict[Decimal, int], '{"1e10000":1}', "$", "the input has a key that is out of range"),
        (dict[str, dict[float, int]], '{"a":{"Infinity":1}}', "$.a", "has a key that isn't a number"),
        (dict[Decimal, int], '{"1":1,"sNaN":1,"sNaN1":1}', "$", "the input has a key that isn't a number"),
        (set[Decimal], '["NaN"]', "$[0]", "isn't a number"),
    ],
)
async def test_a_decimal_that_is_no_number_or_extreme_gets_422(fetch: Fetch, type: Any, body: str, path: str, detail: str) -> None:
    response = await fetch(App({"/": typed(type)}), body=body.encode())
    assert (response.status, json.loads(response.text)) == (422, {"detail": detail, "path": path})


async def test_a_decimal_that_the_type_itself_adds_may_be_infinite(fetch: Fetch) -> None:
    class Price(msgspec.Struct):
        least: Decimal = Decimal(0)
        most: Decimal = Decimal("Infinity")

    async def handler(ctx: Context) -> str:
        price = await ctx.json(Price)
        return f"{price.least} {price.most}"

    app = App({"/": handler})
    assert (await fetch(app, body=b'{"least":1.50}')).text == "1.50 Infinity"
    refused = await fetch(app, body=b'{"least":"NaN"}')
    assert json.loads(refused.text) == {"detail": "isn't a number", "path": "$.least"}


@pytest.mark.parametrize(
    ("type", "number", "detail"),
    [
        *((int | float, sign + "9" * 300, "is too small" if sign else "is too large") for sign in ("", "-")),
        (int | float, "9" * 309, "is too large"),
        (int | float, "1" + "0" * 5000, "is out of range"),
        (int | float | None, "18446744073709551616", "is too large"),
        *((type_, number, "is out of range") for type_ in (int, float, int | float) for number in ("1e400", "-1e400")),
        (float, "9" * 309, "is out of range"),
    ],
)
async def test_a_number_that_no_float_and_no_integer_of_64_bits_holds_gets_422(
    fetch: Fetch, type: Any, number: str, detail: str
) -> None:
    response = await fetch(App({"/": typed(dict[str, type])}), body=b'{"n":%b}' % number.encode())
    assert (response.status, json.loads(response.text)["detail"]) == (422, detail)


async def test_the_first_and_the_last_time_of_utc_are_read(fetch: Fetch) -> None:
    times = ["0001-01-01T00:00:00Z", "0001-01-01T00:00:00", "9999-12-31T23:59:59+23:59"]
    response = await fetch(App({"/": typed(list[datetime])}), body=json.dumps(times).encode())
    assert json.loads(response.text)["value"] == times


async def test_long_digits_that_are_no_integer_beyond_64_bits_are_read(fetch: Fetch) -> None:
    class Kept(msgspec.Struct):
        low: int
        high: int
        real: float
        text: str
        raw: msgspec.Raw

    numbers = {"low": -(1 << 63), "high": (1 << 63) - 1, "real": 10**20, "text": "9" * 30}

    async def handler(ctx: Context) -> Response:
        kept = await ctx.json(Kept)
        return Response.json([kept.low, kept.high, kept.real, kept.text] == [*numbers.values()])

    body = json.dumps(numbers | {"raw": 10**20}).encode()
    assert (await fetch(App({"/": handler}), body=body)).text == "true"


async def test_an_integer_that_the_type_itself_adds_may_exceed_64_bits(fetch: Fetch) -> None:
    class Card(msgspec.Struct):
        number: str
        limit: int = 1 << 70
        reversed: int = 0

        def __post_init__(self) -> None:
            self.reversed = int(self.number[::-1])

    async def handler(ctx: Context) -> str:
        card = await ctx.json(Card)
        return f"{card.limit} {card.reversed}"

    app = App({"/": handler})
    assert (await fetch(app, body=b'{"number":"41111111111111111112"}')).text == f"{1 << 70} 21111111111111111114"
    refused = await fetch(app, body=b'{"number":"41111111111111111112","limit":99999999999999999999}')
    assert json.loads(refused.text) == {"detail": "is too large", "path": "$.limit"}


@dataclass
class Leaf:
    color: str = "green"
    n: int = 1


@dataclass
class Tree:
    leaves: list[Leaf]
    by_name: dict[str, tuple[int, Leaf]] = field(default_factory=dict[str, tuple[int, Leaf]])
    children: list[Tree] = field(default_factory=list["Tree"])
    top: Leaf | None = None
    name: str = "oak"


class Forest(Struct):
    trees: list[Tree]


@dataclass(slots=True)
class Slotted:
    a: int = 1


@dataclass(frozen=True)
class Frozen(Generic[T]):
    key: T
    a: int = 1


LEAF = {"color": "green", "n": 1}
TREE: dict[str, Any] = {"leaves": [], "by_name": {}, "children": [], "top": None, "name": "oak"}


DEFAULTS: list[tuple[Any, Any, Any]] = [
    (Leaf, {"n": 2}, LEAF | {"n": 2}),
    (Tree, {"leaves": [{}]}, TREE | {"leaves": [LEAF]}),
    (Tree, {"leaves": [], "by_name": {"a": [1, {}]}, "top": {}}, TREE | {"by_name": {"a": [1, LEAF]}, "top": LEAF}),
    (Forest, {"trees": [{"leaves": [], "children": [{"leaves": []}]}]}, {"trees": [TREE | {"children": [TREE]}]}),
    (Slotted, {}, {"a": 1}),
    (list[Frozen[int] | None], [{"key": 2}, None], [{"key": 2, "a": 1}, None]),
]


@pytest.mark.parametrize(("type", "body", "expected"), DEFAULTS, ids=str)
async def test_a_dataclass_has_its_defaults(fetch: Fetch, type: Any, body: Any, expected: Any) -> None:
    response = await fetch(App({"/": typed(type)}), body=json.dumps(body).encode())
    assert json.loads(response.text)["value"] == expected


async def test_vars_of_a_dataclass_have_its_defaults(fetch: Fetch) -> None:
    async def handler(ctx: Context) -> dict[str, Any]:
        return {"json": vars(await ctx.json(Leaf)), "query": vars(ctx.query_as(Leaf)), "own": vars(Leaf(n=3))}

    response = await fetch(App({"/": handler}), target="/?n=3", body=b'{"n":3}')
    found = json.loads(response.text)
    assert found["json"] == found["query"] == found["own"] == LEAF | {"n": 3}


class Plain:
    pass


class Model(BaseModel):
    a: int = 1


@dataclass
class HoldsPlain:
    plain: Plain


@dataclass
class MayHoldPlain:
    a: int
    plain: Plain | None = None


PLAIN = "ctx.json() can't decode into Plain; make it a dataclass, a Struct or a TypedDict"
MODEL = "ctx.json() can't decode into Model; for this model of pydantic, write `Model.model_validate(await ctx.json())`"


@pytest.mark.parametrize(
    ("type", "said"),
    [(Model, MODEL), (dict[str, Model], MODEL), (Plain, PLAIN), (list[Plain | None], PLAIN), (HoldsPlain, PLAIN)],
    ids=str,
)
async def test_a_class_that_no_json_becomes_is_an_error_for_the_developer(type: Any, said: str) -> None:
    async with TestClient(App({"/": {"POST": typed(type)}})) as client:
        with pytest.raises(ResultError) as raised:
            await client.post("/", json={"a": 1})
    assert str(raised.value) == said


@pytest.mark.parametrize(
    ("result", "said"),
    [
        (Model(), "a handler returned a Model; for a model of pydantic, write `.model_dump()` after it"),
        ({"model": Model()}, "JSON can't hold a Model; for a model of pydantic, write `.model_dump()` after it"),
    ],
    ids=["itself", "in a dict"],
)
async def test_a_model_of_pydantic_as_a_result_is_an_error_with_its_fix(result: Any, said: str) -> None:
    async def handler(ctx: Context) -> Any:
        return result

    async with TestClient(App({"/": handler})) as client:
        with pytest.raises(ResultError) as raised:
            await client.get("/")
    assert str(raised.value) == said


@pytest.mark.parametrize(
    ("type", "body"), [(MayHoldPlain, '{"a":1}'), (object, "1"), (Sized, "[]"), (dict[str, Iterable[int]], '{"a":[]}')], ids=str
)
async def test_a_class_that_json_may_lack_or_that_is_abstract_is_no_error(fetch: Fetch, type: Any, body: str) -> None:
    async def handler(ctx: Context) -> str:
        return str(await ctx.json(type) is not None)

    assert (await fetch(App({"/": handler}), body=body.encode())).text == "True"


async def test_json_can_be_decoded_into_two_types(fetch: Fetch) -> None:
    async def twice(ctx: Context) -> list[Any]:
        return [await ctx.json(), (await ctx.json(Point)).x]

    assert (await fetch(App({"/": twice}), body=b'{"x":1}')).text == '[{"x":1},1]'


# Urlencoded forms


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        pytest.param(b"a=1&b=2", [["a", "1"], ["b", "2"]], id="two"),
        pytest.param(b"a=1&a=2", [["a", "1"], ["a", "2"]], id="a list"),
        pytest.param(b"a=b+c%20d%2B", [["a", "b c d+"]], id="spaces and pluses"),
        pytest.param(b"a=&b&=c&&", [["a", ""], ["b", ""], ["", "c"]], id="blanks"),
        pytest.param(b"a=caf%C3%A9&b=\xc3\xa9", [["a", "caf\xe9"], ["b", "\xe9"]], id="utf-8"),
        pytest.param(b"a=%FF&b=\xff&%C3=1", [["a", "\ufffd"], ["b", "\ufffd"], ["\ufffd", "1"]], id="not utf-8"),
        pytest.param(b"a=1;b=2", [["a", "1;b=2"]], id="a semicolon is data"),
        pytest.param(b"a=%&b=%zz", [["a", "%"], ["b", "%zz"]], id="odd percents"),
        pytest.param(b"a[]=1&a[b]=2", [["a[]", "1"], ["a[b]", "2"]], id="brackets mean nothing"),
        pytest.param(b"", [], id="empty"),
    ],
)
async def test_an_urlencoded_form_is_decoded_as_browsers_encode_it(fetch: Fetch, body: bytes, fields: list[list[str]]) -> None:
    response = await fetch(App({"/": form}), headers=URLENCODED, body=[bytes([octet]) for octet in body])
    assert msgspec.json.decode(response.body) == [fields, []]


@pytest.mark.parametrize("kind", ["Application/X-WWW-Form-Urlencoded", "application/x-www-form-urlencoded; charset=utf-8"])
async def test_the_content_type_of_a_form_is_parsed_as_a_media_type(fetch: Fetch, kind: str) -> None:
    assert (await fetch(App({"/": form}), headers={"content-type": kind}, body=b"a=1")).text == '[[["a","1"]],[]]'


@pytest.mark.parametrize("kind", [None, "application/x-www-form-urlencoded", "application/json"])
@pytest.mark.parametrize("chunks", [[b""], [b"", b""]], ids=repr)
async def test_an_empty_body_is_an_empty_form(fetch: Fetch, kind: str | None, chunks: list[bytes]) -> None:
    async def handler(ctx: Context) -> list[Any]:
        return [
            await described(await ctx.form()),
            await ctx.input("a"),
            await ctx.inputs("a"),
            await ctx.file("a"),
            await ctx.files("a"),
        ]

    response = await fetch(App({"/": handler}), "/", "POST", headers={"content-type": kind} if kind else {}, body=chunks)
    assert (response.status, response.text) == (200, "[[[],[]],null,[],null,[]]")


async def test_a_body_after_an_empty_chunk_is_not_an_empty_form(fetch: Fetch) -> None:
    assert (await fetch(App({"/": form}), "/", "POST", body=[b"", b"a=1"])).status == 415


@pytest.mark.parametrize(
    "kind",
    [None, "", "application/json", "text/plain", "multipart/mixed; boundary=xx", "multipart", ";;", "\xff; a=\xff"],
    ids=ascii,
)
async def test_a_body_that_is_not_a_form_gets_415(fetch: Fetch, kind: str | None) -> None:
    headers = {} if kind is None else {"content-type": kind}
    assert (await fetch(App({"/": form}), headers=headers, body=b"a=1")).status == 415


async def test_inputs_are_found_by_name(fetch: Fetch) -> None:
    async def handler(ctx: Context) -> list[Any]:
        return [
            await ctx.input("a"),
            await ctx.inputs("a"),
            await ctx.input("x"),
            await ctx.inputs("x"),
            await ctx.file("a"),
            await ctx.files("a"),
        ]

    response = await fetch(App({"/": handler}), headers=URLENCODED, body=b"a=1&a=2")
    assert response.text == '["1",["1","2"],null,[],null,[]]'


@pytest.mark.parametrize("count", [1_000, 1_001])
async def test_an_urlencoded_form_has_1000_fields_at_most(fetch: Fetch, count: int) -> None:
    response = await fetch(App({"/": form}), headers=URLENCODED, body=b"&".join([b"a=1"] * count))
    assert response.status == (200 if count == 1_000 else 413)


@pytest.mark.parametrize("size", [1 << 16, (1 << 16) + 1, 1 << 20])
async def test_a_large_urlencoded_form_is_parsed_like_a_small_one(fetch: Fetch, size: int) -> None:
    body = b"a=%C3%A9&b=" + b"%" * (size - 11)
    response = await fetch(App({"/": form}), headers=URLENCODED, body=in_pieces(body, 100_000))
    assert msgspec.json.decode(response.body) == [[["a", "\xe9"], ["b", "%" * (size - 11)]], []]


@pytest.mark.parametrize(("size", "status"), [(1_000, 200), (1_001, 413)])
async def test_a_larger_limit_of_a_route_does_not_apply_to_urlencoded_forms(fetch: Fetch, size: int, status: int) -> None:
    async def upload(ctx: Context) -> int:
        return len((await ctx.form(max_size=1 << 20)).fields)

    async def after_the_body(ctx: Context) -> int:
        await ctx.body(max_size=1 << 20)
        return len((await ctx.form()).fields)

    for handler in (upload, after_the_body):

        async def response(ctx: Context, handler: Any = handler) -> str:
            return str(await handler(ctx))

        body = b"a=" + b"1" * (size - 2)
        assert (
            await fetch(App({"/": response}, max_body_size=1_000), headers=URLENCODED, body=in_pieces(body, 300))
        ).status == status


async def test_a_form_of_100_000_keys_gets_413(fetch: Fetch) -> None:
    body = b"&".join(b"%d" % i for i in range(100_000))
    assert (await fetch(App({"/": form}), headers=URLENCODED, body=body)).status == 413


# Multipart forms

WHOLE = (
    part('form-data; name="title"', "Bon\xe9")
    + part('form-data; name="pic"; filename="a b.png"', b"\x89PNG\r\n--x\r\n--xy\x00", "Content-Type: image/png")
    + part('form-data; name="title"', "")
    + part('form-data; name="doc"; filename=""', "text", "Content-Type: application/octet-stream")
    + part('form-data; name="unfilled"; filename=""', "", "Content-Type: application/octet-stream")
    + END
)
DESCRIBED = [
    [["title", "Bon\xe9"], ["title", ""]],
    [
        ["pic", "a b.png", "image/png", 16, "\x89PNG\r\n--x\r\n--xy\x00"],
        ["doc", "", "application/octet-stream", 4, "text"],
    ],
]


async def test_a_multipart_form_has_fields_and_files(fetch: Fetch) -> None:
    response = await fetch(App({"/": form}), headers=MULTIPART, body=WHOLE)
    assert msgspec.json.decode(response.body) == DESCRIBED


@any_cut
async def test_a_multipart_form_may_be_split_into_chunks_anywhere(fetch: Fetch, size: int) -> None:
    response = await fetch(App({"/": form}), headers=MULTIPART, body=in_pieces(WHOLE, size))
    assert msgspec.json.decode(response.body) == DESCRIBED


@given(
    st.binary(max_size=200).filter(lambda content: b"\r\n--xx" not in b"\r\n" + content),
    st.lists(st.integers(0, 400), max_size=5).map(sorted),
)
async def test_the_octets_of_a_file_are_unchanged(fetch: Fetch, content: bytes, cuts: list[int]) -> None:
    body = part('form-data; name="f"; filename="f"', content) + END
    response = await fetch(App({"/": form}), headers=MULTIPART, body=cut(body, cuts))
    assert msgspec.json.decode(response.body)[1][0][4].encode("latin-1") == content


@given(
    st.lists(
        st.one_of(
            st.sampled_from([b"--xx", b"\r\n", b"--", b":", b"Content-Disposition", b"form-data", b'; name="a"', b"=", b'"']),
            st.binary(max_size=8),
        )
    )
)
async def test_no_octets_of_a_multipart_body_cause_a_500(fetch: Fetch, pieces: list[bytes]) -> None:
    for body in (b"".join(pieces), b"--xx\r\n" + b"".join(pieces)):
        assert (await fetch(App({"/": form}), headers=MULTIPART, body=body)).status in (200, 400)


@given(st.text(st.characters(max_codepoint=255)))
async def test_no_content_type_causes_a_500(fetch: Fetch, text: str) -> None:
    for kind in (text, f"multipart/form-data;{text}", f"multipart/form-data; boundary={text}"):
        assert (await fetch(App({"/": form}), headers={"content-type": kind}, body=WHOLE)).status in (200, 400, 415)


@given(st.binary())
async def test_no_content_disposition_causes_a_500(fetch: Fetch, octets: bytes) -> None:
    for value in (octets, b"form-data; " + octets, b'form-data; name="a"; filename=' + octets):
        body = b"--xx\r\nContent-Disposition: " + value + b"\r\n\r\nx\r\n" + END
        assert (await fetch(App({"/": form}), headers=MULTIPART, body=body)).status in (200, 400)


@pytest.mark.parametrize(
    ("disposition", "name", "filename"),
    [
        pytest.param('form-data; name="a"; filename="caf\xe9.txt"', "a", "caf\xe9.txt", id="utf-8"),
        pytest.param(r'form-data; name="a"; filename="a\"b.txt"', "a", 'a"b.txt', id="quote"),
        pytest.param('form-data; name="a"; filename="a;b.txt"', "a", "a;b.txt", id="semicolon"),
        pytest.param('form-data; filename="../../etc/passwd"; name="a"', "a", "../../etc/passwd", id="path"),
        pytest.param("form-data; name=a; filename=b", "a", "b", id="without quotes"),
        pytest.param('FORM-DATA; name="a"; filename="b"', "a", "b", id="capitals"),
        pytest.param('form-data;name="a";filename="b"', "a", "b", id="without spaces"),
        pytest.param('form-data; name=""; filename="b"', "", "b", id="empty name"),
        pytest.param('form-data; name="a"; filename="b"; filename*=UTF-8\'\'evil', "a", "b", id="extended name is ignored"),
        pytest.param('form-data; name="a"; filename*=UTF-8\'\'evil; filename="b"', "a", "b", id="extended name comes first"),
        pytest.param('form-data; name="a"; filename="x; filename*=y"', "a", "x; filename*=y", id="extended name in quotes"),
        pytest.param('form-data; name="%22a%0D%0A%22"; filename="%22b%0D%0A%22"', '"a\r\n"', '"b\r\n"', id="browser's escapes"),
        pytest.param('form-data; name="%41%"; filename="%2F%00%zz"', "%41%", "%2F%00%zz", id="other percents"),
        pytest.param(r'form-data; name="a"; filename="C:\x\y.txt"', "a", "y.txt", id="path of Internet Explorer"),
        pytest.param(r'form-data; name="a"; filename="x\y.txt"', "a", r"x\y.txt", id="backslash"),
        pytest.param('form-data; name="a"; filename=" b "', "a", " b ", id="spaces"),
        pytest.param('form-data; name="a"; filename="b" ; x="y"', "a", "b", id="another parameter"),
    ],
)
async def test_a_file_has_the_filename_of_its_part(fetch: Fetch, disposition: str, name: str, filename: str) -> None:
    response = await fetch(App({"/": form}), headers=MULTIPART, body=part(disposition, "x") + END)
    assert msgspec.json.decode(response.body)[1] == [[name, filename, "application/octet-stream", 1, "x"]]


async def test_octets_that_are_not_utf8_are_replaced_in_names_and_fields(fetch: Fetch) -> None:
    body = b'--xx\r\nContent-Disposition: form-data; name="\xff"\r\n\r\n\xfe\r\n' + END
    response = await fetch(App({"/": form}), headers=MULTIPART, body=body)
    assert msgspec.json.decode(response.body) == [[["\ufffd", "\ufffd"]], []]


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"not multipart", id="no boundary"),
        pytest.param(part('form-data; name="a"', "1"), id="without an end"),
        pytest.param(WHOLE[:-10], id="cut"),
        pytest.param(WHOLE[:30], id="cut in a header"),
        pytest.param(WHOLE[:120], id="cut in a file"),
        pytest.param(b"--yy\r\n\r\n--yy--\r\n", id="another boundary"),
        pytest.param(part("form-data", "1") + END, id="no name"),
        pytest.param(part('attachment; name="a"', "1") + END, id="another disposition"),
        pytest.param(b"--xx\r\nContent-Type: text/plain\r\n\r\n1\r\n" + END, id="no disposition"),
        pytest.param(b"--xx\r\n\r\n1\r\n" + END, id="no headers"),
        pytest.param(b"--xx\r\nno colon\r\n\r\n1\r\n" + END, id="a header without a colon"),
        pytest.param(b"--xx\r\n: value\r\n\r\n1\r\n" + END, id="a header without a name"),
        pytest.param(b"--xx\r\n X: folded\r\n\r\n1\r\n" + END, id="a fold of no header"),
        pytest.param(head(b"X\r\n : 1"), id="a folded header name"),
        pytest.param(head(b"X: 1\n 2"), id="a line feed in a header"),
        pytest.param(head(b"X: 1\r2"), id="a carriage return in a header"),
        pytest.param(head(b"X: \0"), id="NUL in a header"),
        *(pytest.param(head(b"X: 1%c2" % ord(c)), id=f"{c!r} in a header") for c in CONTROLS if c != "\0"),
        pytest.param(part('form-data; name="a"; filename="a\x1b[31m"', "1") + END, id="an escape in a file name"),
        pytest.param(b"--xx x\r\n" + WHOLE[6:], id="text after a boundary"),
        pytest.param(part("form-data; name=\"a\"; filename*=UTF-8''b", "1") + END, id="only an extended file name"),
        pytest.param(part("form-data; name=\"a\"; FileName*=UTF-8''b", "1") + END, id="only an extended file name in capitals"),
        pytest.param(part("form-data; name=\"a\"; filename*0*=UTF-8''b", "1") + END, id="only a continued file name"),
        *(
            pytest.param(part(f"form-data; name=\"a\"; {name}=UTF-8''b", "1") + END, id=f"only {name!r}")
            for name in ("filename *", "filename\t*", "filename \t *", "FILENAME *", "filename* ", "filename*0 *", "filename *0*")
        ),
        pytest.param(part("form-data; name*=UTF-8''a; filename=\"b\"", "1") + END, id="only an extended name"),
    ],
)
@pytest.mark.parametrize("bytewise", [False, True], ids=["at once", "byte by byte"])
async def test_a_malformed_multipart_body_gets_400(fetch: Fetch, body: bytes, bytewise: bool) -> None:
    response = await fetch(
        App({"/": form}), headers=MULTIPART, body=[bytes([octet]) for octet in body[:6_000]] if bytewise else body
    )
    assert response.status == 400
    assert "malformed multipart body" in response.text


@pytest.mark.parametrize(
    "boundary",
    ["", "; boundary", "; boundary=", '; boundary=""', f"; boundary={'x' * 900}"],
    ids=["none", "no value", "empty", "quotes", "long"],
)
async def test_a_multipart_body_without_a_valid_boundary_gets_400(fetch: Fetch, boundary: str) -> None:
    response = await fetch(App({"/": form}), headers={"content-type": f"multipart/form-data{boundary}"}, body=WHOLE)
    assert response.status == 400
    assert "malformed multipart body" in response.text


@pytest.mark.parametrize(
    "kind",
    ['multipart/form-data; boundary="xx"', "Multipart/Form-Data; boundary=xx", "multipart/form-data;charset=utf-8;boundary=xx"],
)
async def test_a_boundary_is_found_in_any_spelling_of_the_content_type(fetch: Fetch, kind: str) -> None:
    assert (await fetch(App({"/": form}), headers={"content-type": kind}, body=WHOLE)).status == 200


@pytest.mark.parametrize("kind", ["multipart/form-data; boundary=xx", "application/x-www-form-urlencoded", "text/plain"])
@pytest.mark.parametrize("over", [0, 1])
async def test_a_content_type_has_1024_bytes_at_most(fetch: Fetch, kind: str, over: int) -> None:
    padded = kind + "; x=".ljust(1024 + over - len(kind), "y")
    response = await fetch(App({"/": form}), headers={"content-type": padded}, body=END)
    assert response.status == (400 if over else 415 if kind == "text/plain" else 200)


@any_cut
@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"preamble\r\n" + WHOLE, id="preamble"),
        pytest.param(b"\r\n" + WHOLE, id="empty preamble"),
        pytest.param(b"--x\r\n--xy\r\n\r\n a: b\r\n c --xx\r\n\r\n" + WHOLE, id="preamble like a part"),
        pytest.param(WHOLE + b"epilogue", id="epilogue"),
        pytest.param(WHOLE + b"\r\n--xx\r\n a: b\r\n--xx--", id="epilogue like a part"),
        pytest.param(WHOLE.removesuffix(b"\r\n"), id="no line end at the end"),
        pytest.param(WHOLE.replace(b"--xx\r\n", b"--xx \t \r\n").replace(END, b"--xx-- \t\r\n"), id="padding"),
        pytest.param(WHOLE.replace(b": ", b":\r\n "), id="folds before values"),
        pytest.param(WHOLE.replace(b"; ", b";\r\n\t"), id="folds in values"),
        pytest.param(WHOLE.replace(b"\r\nContent", b"\r\nX: 1\r\n 2\r\n\t3\r\nContent"), id="several folds"),
        pytest.param(
            WHOLE.replace(b"Content-Disposition: ", b"CONTENT-disposition:\t ").replace(b'"\r\n', b'" \t\r\n'), id="space"
        ),
    ],
)
async def test_preambles_epilogues_padding_and_folds_change_nothing(fetch: Fetch, body: bytes, size: int) -> None:
    assert body != WHOLE
    response = await fetch(App({"/": form}), headers=MULTIPART, body=in_pieces(body, size))
    assert msgspec.json.decode(response.body) == DESCRIBED


@any_cut
@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\r\n ", b"\r\n\t", b"\r\n", b"\r", b"\n", b""])
async def test_data_that_looks_like_a_head_is_unchanged(fetch: Fetch, size: int, end: bytes) -> None:
    content = end + b"\r\n--xxy\r\nA: b\r\n c\r\n\r\n d\r\n--xx-\r\n e" + end
    body = part('form-data; name="f"; filename="f"', content, "X: 1\r\n 2") + part('form-data; name="f"; filename="f"', end) + END
    response = await fetch(App({"/": form}), headers=MULTIPART, body=in_pieces(body, size))
    _, files = msgspec.json.decode(response.body)
    assert [file[4].encode("latin-1") for file in files] == [content, end]


NAME = 'form-data; name="a"'
PIECES = [
    *(b"\r\n", b"\r", b"\n", b" ", b"\t", b"--", b"-", b"--xx", b"--xx--", b"\r\n--xx", b"\r\n\r\n", b"\r\n ", b": ", b";", b'"'),
    *(part(NAME, "1"), part(NAME + '; filename="f"', "2"), part(NAME + '; filename=""'), END, b"x"),
    *(head(b"X: 1\r\n 2"), b'Content-Disposition: form-data; name="b"', b"; filename*=x", b"%22", b"\\", b"charset=iso-8859-1"),
]


@settings(max_examples=4 * settings().max_examples)
@given(
    st.lists(st.sampled_from(PIECES) | st.binary(max_size=3), max_size=12),
    st.sets(st.integers(0, 600), max_size=12),
    st.sampled_from([b"", END]),
)
async def test_a_multipart_body_is_parsed_the_same_in_any_chunks(
    fetch: Fetch, pieces: list[bytes], cuts: set[int], end: bytes
) -> None:
    rest = b"".join(pieces) + end
    for body in (rest, b"--xx\r\n" + rest, part(NAME) + rest):
        responses = [
            await fetch(App({"/": form}), headers=MULTIPART, body=chunks)
            for chunks in ([body], cut(body, cuts), in_pieces(body, 1) or [b""])
        ]
        assert {response.status for response in responses} <= {200, 400}
        # A detail may contain the fault's offset in its chunk.
        assert len({(response.status, response.status == 200 and response.body) for response in responses}) == 1


@settings(max_examples=4 * settings().max_examples)
@given(
    st.lists(st.tuples(st.integers(0, len(WHOLE)), st.integers(0, 40), st.sampled_from(PIECES) | st.binary(max_size=3)), max_size=4)
)
async def test_no_change_of_a_multipart_body_causes_more_than_a_4xx(fetch: Fetch, changes: list[tuple[int, int, bytes]]) -> None:
    body = WHOLE
    for start, length, piece in changes:
        body = body[:start] + piece + body[start + length :]
    assert (await fetch(App({"/": form}), headers=MULTIPART, body=body)).status in (200, 400)


@given(st.text(st.characters(exclude_characters='"\\' + CONTROLS, exclude_categories=["Cs"]), max_size=20))
async def test_a_name_is_decoded_the_same_in_the_browsers_form_and_in_any_other(fetch: Fetch, name: str) -> None:
    responses = [
        await fetch(App({"/": form}), headers=MULTIPART, body=part(spelling, "x") + END)
        for spelling in (f'form-data; name="{name}"; filename="f"', f'form-data;name="{name}" ;filename="f"')
    ]
    assert responses[0].status == 200
    assert responses[0].body == responses[1].body


async def test_a_file_input_that_was_left_empty_is_not_a_file(fetch: Fetch) -> None:
    async def handler(ctx: Context) -> list[Any]:
        form = await ctx.form()
        return [await ctx.file("f"), len(await ctx.files("f")), list(form.files), list(form.fields)]

    unfilled = part('form-data; name="f"; filename=""', "", "Content-Type: application/octet-stream")
    assert (await fetch(App({"/": handler}), headers=MULTIPART, body=unfilled * 2 + END)).text == "[null,0,[],[]]"


@pytest.mark.parametrize(("name", "content"), [("", "x"), ("f", "")])
async def test_a_file_has_a_name_or_content(fetch: Fetch, name: str, content: str) -> None:
    body = part(f'form-data; name="f"; filename="{name}"', content) + END
    response = await fetch(App({"/": form}), headers=MULTIPART, body=body)
    assert msgspec.json.decode(response.body)[1] == [["f", name, "application/octet-stream", len(content), content]]


@pytest.mark.parametrize(
    ("charset", "value"),
    [
        ("iso-8859-1", "\xc3\xa9"),
        ('"ISO-8859-1"', "\xc3\xa9"),
        ("utf-8", "\xe9"),
        ("us-ascii", "\xe9"),
        ("idna", "\xe9"),
        ("zlib", "\xe9"),
        ("", "\xe9"),
    ],
)
async def test_a_field_is_decoded_as_utf8_or_as_iso_8859_1_if_its_part_says_so(fetch: Fetch, charset: str, value: str) -> None:
    body = part(NAME, "\xe9", f"Content-Type: text/plain; charset={charset}") + part('form-data; name="b"', "\xe9") + END
    response = await fetch(App({"/": form}), headers=MULTIPART, body=body)
    assert msgspec.json.decode(response.body) == [[["a", value], ["b", "\xe9"]], []]


@any_cut
@pytest.mark.parametrize(
    "lines",
    [
        pytest.param([b"X: " + b"x" * 5_000], id="a long value"),
        pytest.param([b"x" * 5_000 + b": 1"], id="a long name"),
        pytest.param([b"X: 1\r\n " + b"x" * 5_000], id="a long fold"),
        pytest.param([b"X:" + b"\r\n " * 3_000], id="many empty folds"),
        pytest.param([b"X: 1" + b"\r\n 2" * 3_000], id="many folds"),
        pytest.param([b"X: 1"] * 3_000, id="many"),
        pytest.param([b"X:"] * 3_000, id="many without a value"),
    ],
)
async def test_the_header_fields_of_a_part_have_4_kib_at_most(fetch: Fetch, lines: list[bytes], size: int) -> None:
    response = await fetch(App({"/": form}), headers=MULTIPART, body=in_pieces(head(*lines), size))
    assert (response.status, response.text) == (413, "the header fields of a part of the form are larger than 4096 bytes")


@any_cut
async def test_the_limit_of_header_fields_applies_to_each_part(fetch: Fetch, size: int) -> None:
    value = "x" * (4096 - len(f"Content-Disposition: {NAME}\r\nX: \r\n"))
    for more, status in (("", 200), ("x", 413)):
        body = part(NAME, "1", f"X: {value}") + part(NAME, "1", f"X: {value}{more}") + END
        assert (await fetch(App({"/": form}), headers=MULTIPART, body=in_pieces(body, size))).status == status


@pytest.mark.parametrize("logger", ["python_multipart.multipart", "root"])
async def test_a_malformed_body_is_not_logged(fetch: Fetch, caplog: pytest.LogCaptureFixture, logger: str) -> None:
    caplog.set_level(logging.DEBUG, "" if logger == "root" else logger)
    for body in (
        head(b"\x1b[31m\x07: 1"),
        head(b"X: \x1b[31m\r\x1b"),
        b"--xx \x1b[31m",
        part("\x1b[31m") + END,
        b"--xx-\x1b" + END,
    ):
        assert (await fetch(App({"/": form}), headers=MULTIPART, body=body)).status == 400
    assert "\x1b" not in caplog.text
    assert "[31m" not in caplog.text


@pytest.mark.parametrize(("count", "status"), [(1_000, 200), (1_001, 413)])
async def test_a_multipart_form_has_1000_fields_at_most(fetch: Fetch, count: int, status: int) -> None:
    body = part('form-data; name="a"', "1") * count + END
    assert (await fetch(App({"/": form}), headers=MULTIPART, body=body)).status == status


@pytest.mark.parametrize(("count", "status"), [(100, 200), (101, 413)])
async def test_a_multipart_form_has_100_files_at_most(fetch: Fetch, count: int, status: int) -> None:
    body = part('form-data; name="a"; filename="b"', "1") * count + END
    assert (await fetch(App({"/": form}), headers=MULTIPART, body=body)).status == status


async def test_a_route_may_allow_larger_uploads_but_its_fields_stay_small(fetch: Fetch) -> None:
    async def upload(ctx: Context) -> list[Any]:
        return await described(await ctx.form(max_size=10_000))

    app = App({"/": upload}, max_body_size=100)
    small = part('form-data; name="a"', "1" * 50)
    file = part('form-data; name="f"; filename="f"', "x" * 5_000)
    assert (await fetch(app, headers=MULTIPART, body=small + file + END)).status == 200
    refused = await fetch(app, headers=MULTIPART, body=small * 3 + END)
    assert (refused.status, refused.text) == (413, "the form's fields are larger than 100 bytes")
    assert (await fetch(app, headers=MULTIPART, body=file * 2 + END)).status == 413


async def test_an_upload_over_256_kib_can_be_read_and_saved(fetch: Fetch, tmp_path: Path) -> None:
    content = bytes(range(256)) * 2_000

    async def upload(ctx: Context) -> list[Any]:
        small, large = await ctx.file("small"), await ctx.file("large")
        assert small is not None
        assert large is not None
        await large.save(tmp_path / "saved")
        return [small.size, large.size, await large.read() == await large.read() == content]

    body = part('form-data; name="small"; filename="s"', "s" * 1_000) + part('form-data; name="large"; filename="l"', content) + END
    chunks = [body[i : i + 65_536] for i in range(0, len(body), 65_536)]
    response = await fetch(App({"/": upload}), headers=MULTIPART, body=chunks)
    assert response.text == f"[1000,{len(content)},true]"
    assert (tmp_path / "saved").read_bytes() == content


async def test_only_an_upload_over_256_kib_is_written_to_disk(fetch: Fetch, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[int] = []
    temporary_file: Any = tempfile.TemporaryFile

    def counting(**options: Any) -> Any:
        opened.append(1)
        return temporary_file(**options)

    monkeypatch.setattr(tempfile, "TemporaryFile", counting)
    for size, files in ((1 << 18, 0), ((1 << 18) + 1, 1)):
        body = part('form-data; name="f"; filename="f"', b"x" * size) + END
        assert (await fetch(App({"/": form}), headers=MULTIPART, body=body)).status == 200
        assert len(opened) == files


async def test_saving_to_an_impossible_path_raises(fetch: Fetch, tmp_path: Path) -> None:
    async def upload(ctx: Context) -> str:
        file = await ctx.file("f")
        assert file is not None
        with pytest.raises(FileNotFoundError):
            await file.save(tmp_path / "missing" / "f")
        return "raised"

    assert (
        await fetch(App({"/": upload}), headers=MULTIPART, body=part('form-data; name="f"; filename="f"', "x") + END)
    ).text == "raised"


@pytest.mark.parametrize(("ending", "status"), [("answer", [200]), ("refusal", [403]), ("disconnect", []), ("malformed", [400])])
async def test_the_files_of_a_form_are_closed_after_every_request(
    fetch: Fetch, ending: str, status: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    init = UploadedFile.__init__

    def noting(self: UploadedFile, filename: str, content_type: str) -> None:
        init(self, filename, content_type)
        made.append(self.file)

    monkeypatch.setattr(UploadedFile, "__init__", noting)

    async def upload(ctx: Context) -> str:
        await ctx.form()
        assert not made[0].closed
        if ending == "refusal":
            raise HTTPError(403)
        return "ok"

    rest = {"malformed": [b"bad"], "disconnect": []}.get(ending, [END])
    body = [part('form-data; name="f"; filename="f"', "x" * (1 << 19)), *rest]
    response = await fetch(App({"/": upload}), headers=MULTIPART, body=body, disconnects=ending == "disconnect")
    assert [message["status"] for message in response.messages[:1]] == status
    assert [file.closed for file in made] == [True]


async def test_a_form_is_parsed_once(fetch: Fetch) -> None:
    async def handler(ctx: Context) -> bool:
        return await ctx.form() is await ctx.form()

    async def answer_it(ctx: Context) -> str:
        return str(await handler(ctx))

    assert (await fetch(App({"/": answer_it}), headers=URLENCODED, body=b"a=1")).text == "True"


# Clients that leave


@pytest.mark.parametrize("handler", [echo, text, as_json, form])
@pytest.mark.parametrize("chunks", [[], [b""], [b"a=1&", b"b="]], ids=["at once", "before a byte", "in the middle"])
async def test_a_client_that_disconnects_during_its_body_leaves_no_trace(
    fetch: Fetch, handler: Any, chunks: list[bytes], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    before = asyncio.all_tasks()
    response = await fetch(App({"/": handler}), headers=URLENCODED, body=chunks, disconnects=True)
    assert response.messages == []
    assert asyncio.all_tasks() == before
    assert [record.levelname for record in caplog.records if record.name == "gaman"] == ["DEBUG"]


async def test_a_handler_may_clean_up_after_a_client_that_left(fetch: Fetch) -> None:
    events: list[str] = []

    async def handler(ctx: Context) -> str:
        try:
            events.extend([chunk.decode() async for chunk in ctx.stream()])
        finally:
            events.append("cleaned")
        return "never sent"

    response = await fetch(App({"/": handler}), body=[b"a"], disconnects=True)
    assert (response.messages, events) == ([], ["cleaned"])
