from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum
from typing import TYPE_CHECKING, Annotated, Any, Generic, Literal, NamedTuple, NotRequired, TypedDict, TypeVar
from urllib.parse import quote_plus, urlencode
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import Meta, Struct
from msgspec import field as struct_field

from gaman import App, Context, InvalidInput, Response, UploadedFile

if TYPE_CHECKING:
    from collections.abc import Callable

    from gaman import Handler
    from tests.asgi import Exchange, Fetch

    class OnlyForCheckers: ...


pytestmark = pytest.mark.anyio

URLENCODED = {"content-type": "application/x-www-form-urlencoded"}
MULTIPART = {"content-type": "multipart/form-data; boundary=xx"}
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8"
AN_ID = UUID("0198c0de-7a5e-7e1f-8a3b-0123456789ab")


class Color(Enum):
    RED = "red"
    BLUE = "blue"


class Size(IntEnum):
    SMALL = 1
    LARGE = 2


class Order(Enum):
    DEFAULT = ""
    NEWEST = "newest"


@dataclass
class One:
    """Each field has a default, so that a query needs only one."""

    text: str = "default"
    any: Any = None
    number: int = -1
    decimal: Decimal | None = None
    real: float = -1.0
    either: int | float = -1
    truth: bool = False
    day: date | None = None
    moment: datetime | None = None
    clock: time | None = None
    span: timedelta | None = None
    id: UUID | None = None
    color: Color = Color.RED
    size: Size = Size.SMALL
    order: Order = Order.NEWEST
    choice: Literal["a", 1] = "a"
    maybe: int | None = 7
    maybe_text: str | None = None
    bounded: Annotated[int, Meta(ge=1, le=9, description="a digit")] = 1
    numbers: list[int] = field(default_factory=lambda: [7])
    words: list[str] = field(default_factory=list[str])
    some: set[int] = field(default_factory=set[int])
    frozen: frozenset[str] = frozenset()
    row: tuple[int, ...] = ()
    perhaps: list[int] | None = None


def from_query(type_: type[Any]) -> Handler:
    async def from_query(ctx: Context) -> Response:
        SEEN.append(ctx.query_as(type_))
        return Response("ok")

    return from_query


def from_form(type_: type[Any], **options: Any) -> Handler:
    async def from_form(ctx: Context) -> Response:
        SEEN.append(await ctx.form_as(type_, **options))
        return Response("ok")

    return from_form


def from_json(type_: type[Any]) -> Handler:
    async def from_json(ctx: Context) -> Response:
        SEEN.append(await ctx.json(type_))
        return Response("ok")

    return from_json


SEEN: list[Any] = []


async def decoded(fetch: Fetch, type_: type[Any], query: str) -> Any:
    """Return the value of *query*, which the same urlencoded form has as well; for a 422, its path and detail."""
    SEEN.clear()
    app = App({"/": {"GET": from_query(type_), "POST": from_form(type_)}})
    responses = [await fetch(app, f"/?{query}"), await fetch(app, "/", "POST", headers=URLENCODED, body=query.encode())]
    assert responses[0].body == responses[1].body
    if responses[0].status == 200:
        assert SEEN[0] == SEEN[1]
        return SEEN[0]
    assert [response.status for response in responses] == [422, 422]
    fault = json.loads(responses[0].text)
    return fault["path"], fault["detail"]


# Values


@pytest.mark.parametrize(
    ("name", "texts"),
    [
        ("text", {"": "", " a ": " a ", "null": "null", "\0": "\0", "5": "5"}),
        ("any", {"5": "5"}),
        ("number", {"5": 5, "-5": -5, "+5": 5, "05": 5, " 5 ": 5, "5.0": 5, "1e3": 1000, "9223372036854775807": (1 << 63) - 1}),
        ("decimal", {"1.50": Decimal("1.50"), "-3": Decimal(-3), " 2 ": Decimal(2)}),
        ("real", {"1.5": 1.5, "5": 5.0, ".5": 0.5, "5.": 5.0, "-1e-3": -0.001}),
        ("either", {"5": 5, "5.5": 5.5}),
        ("truth", dict.fromkeys(["on", "yes", "true", "True", "1"], True)),
        ("truth", dict.fromkeys(["off", "no", "false", "FALSE", "0"], False)),
        ("day", {"2026-02-28": date(2026, 2, 28)}),
        ("moment", {"2026-02-28T03:04": datetime(2026, 2, 28, 3, 4)}),
        ("moment", {"2026-02-28T03:04:05Z": datetime(2026, 2, 28, 3, 4, 5, tzinfo=UTC)}),
        ("clock", {"03:04": time(3, 4), "03:04:05": time(3, 4, 5)}),
        ("span", {"PT90S": timedelta(seconds=90)}),
        ("id", {str(AN_ID): AN_ID, str(AN_ID).upper(): AN_ID}),
        ("color", {"blue": Color.BLUE}),
        ("size", {"2": Size.LARGE}),
        ("order", {"": Order.DEFAULT}),
        ("choice", {"a": "a", "1": 1}),
        ("bounded", {"9": 9}),
        ("maybe", {"": None, " ": None, "3": 3}),
        ("maybe_text", {"": "", "null": "null"}),
    ],
)
async def test_a_text_becomes_a_value_of_the_fields_type(fetch: Fetch, name: str, texts: dict[str, Any]) -> None:
    for text, expected in texts.items():
        found = getattr(await decoded(fetch, One, urlencode({name: text})), name)
        assert (type(found), found) == (type(expected), expected)


@pytest.mark.parametrize(
    ("name", "texts", "detail"),
    [
        (
            "number",
            [
                "x",
                "5.5",
                "4503599627370496.1",
                "1.00000000000000000001",
                "1e-400",
                "1_0",
                "0x5",
                "\u0665",
                "nan",
                "inf",
                "9" * 5000,
                "1e400",
                "true",
                "\0",
                "5\0",
            ],
            "isn't an integer",
        ),
        ("real", ["x", "nan", "inf", "-Infinity", "1e999", "9" * 5000, "1,5", "\u0665"], "isn't a number"),
        ("decimal", ["x", "NaN", "Infinity", "sNaN", "1e99999999", "9" * 5000], "isn't a number"),
        ("truth", ["x", "2", "t", "null"], "isn't true or false"),
        ("day", ["2026-02-30", "5", "today"], "isn't a date"),
        ("moment", ["5", "2026-02-28", "2026-02-28T25:00"], "isn't a date and time"),
        ("id", ["x", str(AN_ID)[:-1]], "isn't a UUID"),
        ("color", ["green", "RED"], "isn't one of the choices"),
        ("size", ["3"], "isn't one of the choices"),
        ("size", ["x"], "isn't an integer"),
        ("choice", ["b"], "isn't one of the choices"),
        ("maybe", ["null", "x"], "isn't an integer"),
        ("bounded", ["10"], "is more than 9"),
        ("bounded", ["0"], "is less than 1"),
        ("number", ["9223372036854775808", "9" * 300], "is too large"),
        ("number", ["-9223372036854775809"], "is too small"),
        ("maybe", ["9223372036854775808"], "is too large"),
        ("either", ["9223372036854775808", "9" * 300], "is too large"),
        ("either", ["9" * 309, "1e400", "-1e400", "NaN", "Infinity"], "isn't an integer or a number"),
    ],
)
async def test_a_text_that_does_not_fit_gets_422_with_the_field(fetch: Fetch, name: str, texts: list[str], detail: str) -> None:
    for text in texts:
        path, told = await decoded(fetch, One, urlencode({name: text}))
        assert path == f"$.{name}"
        assert told == detail


@pytest.mark.parametrize("name", ["number", "real", "truth", "color", "size", "choice", "bounded", "day", "either"])
async def test_an_empty_value_of_a_field_that_is_no_text_is_absent_or_none(fetch: Fetch, name: str) -> None:
    assert getattr(await decoded(fetch, One, f"{name}="), name) == getattr(One(), name)


@pytest.mark.parametrize(
    ("query", "name", "value"),
    [
        ("numbers=1&numbers=2", "numbers", [1, 2]),
        ("numbers=1", "numbers", [1]),
        ("numbers=", "numbers", [7]),
        ("", "numbers", [7]),
        ("numbers=&numbers=3", "numbers", [3]),
        ("words=&words=a", "words", ["", "a"]),
        ("some=1&some=1&some=2", "some", {1, 2}),
        ("frozen=a", "frozen", frozenset("a")),
        ("row=1&row=2", "row", (1, 2)),
        ("perhaps=1", "perhaps", [1]),
        ("", "perhaps", None),
    ],
)
async def test_repeated_fields_become_a_list(fetch: Fetch, query: str, name: str, value: object) -> None:
    assert getattr(await decoded(fetch, One, query), name) == value


async def test_an_element_that_does_not_fit_is_named_by_its_index(fetch: Fetch) -> None:
    assert await decoded(fetch, One, "numbers=1&numbers=x") == ("$.numbers[1]", "isn't an integer")


@pytest.mark.parametrize("query", ["text=a&text=b", "number=1&number=1", "maybe=&maybe=2"])
async def test_a_single_value_that_is_sent_twice_gets_422(fetch: Fetch, query: str) -> None:
    assert await decoded(fetch, One, query) == (f"$.{query.partition('=')[0]}", "has more than one value")


# Types


@dataclass
class Needs:
    name: str
    tags: list[str]
    maybe: int | None
    least: Annotated[list[int], Meta(min_length=1)]


async def test_a_missing_field_gets_422_a_missing_list_is_empty_and_a_missing_optional_one_is_none(fetch: Fetch) -> None:
    assert await decoded(fetch, Needs, "name=a&least=1") == Needs("a", [], None, [1])
    assert await decoded(fetch, Needs, "least=1") == ("$.name", "is required")
    assert await decoded(fetch, Needs, "name=a") == ("$.least", "is empty")


class Base(Struct, rename="camel"):
    first_name: str


class Renamed(Base, rename="camel", kw_only=True):
    last_name: str = "none"
    tag_list: list[int] = struct_field(name="tags[]", default_factory=list[int])


async def test_a_struct_may_rename_and_inherit_its_fields(fetch: Fetch) -> None:
    assert await decoded(fetch, Renamed, "firstName=a&tags[]=1&tags[]=2&first_name=x") == Renamed(first_name="a", tag_list=[1, 2])
    assert await decoded(fetch, Renamed, "first_name=a") == ("$.firstName", "is required")
    assert await decoded(fetch, Renamed, "firstName=a&tags[]=x") == ("$.tags[][0]", "isn't an integer")


class Strict(Struct, forbid_unknown_fields=True):
    a: int = 0


async def test_unknown_fields_are_ignored_unless_the_struct_forbids_them(fetch: Fetch) -> None:
    assert await decoded(fetch, One, "unknown=1") == One()
    assert await decoded(fetch, Strict, "a=1") == Strict(1)
    assert await decoded(fetch, Strict, "a=1&b=2") == ("$.b", "isn't a known field")


class Movie(TypedDict):
    year: int
    tags: NotRequired[list[str]]


async def test_a_typed_dict_gets_the_fields_that_were_sent(fetch: Fetch) -> None:
    assert await decoded(fetch, Movie, "year=1984&x=1") == {"year": 1984}
    assert await decoded(fetch, Movie, "year=1984&tags=a") == {"year": 1984, "tags": ["a"]}


class Tagged(Struct, tag="cat"):
    a: int = 0


async def test_a_tagged_struct_checks_its_tag_if_it_is_sent(fetch: Fetch) -> None:
    assert await decoded(fetch, Tagged, "type=cat&a=1") == Tagged(1)
    assert await decoded(fetch, Tagged, "type=dog") == ("$.type", "isn't one of the choices")


@dataclass
class At:
    at: datetime


@pytest.mark.parametrize("at", ["0001-01-01T00:00:00%2B23:59", "9999-12-31T23:59:59-23:59", "9999-12-31T23:59-23:59"])
async def test_a_time_beyond_the_range_of_utc_is_a_422(fetch: Fetch, at: str) -> None:
    assert await decoded(fetch, At, f"at={at}") == ("$.at", "isn't a date and time")


T = TypeVar("T")


@dataclass
class Page(Generic[T]):
    key: T


async def test_a_generic_type_is_decoded_with_its_argument(fetch: Fetch) -> None:
    assert await decoded(fetch, Page[int], "key=5") == Page(5)
    assert await decoded(fetch, Page[str], "key=5") == Page("5")


class Checked(Struct):
    low: int
    high: int

    def __post_init__(self) -> None:
        if self.low > self.high:
            raise ValueError("low is above high")


async def test_a_check_of_the_type_itself_is_a_422(fetch: Fetch) -> None:
    assert await decoded(fetch, Checked, "low=2&high=1") == ("$", "low is above high")


class Row(NamedTuple):
    a: int


class AsArray(Struct, array_like=True):
    a: int


@dataclass
class Nested:
    inner: One


@dataclass
class Mapped:
    inner: dict[str, int]


@dataclass
class Deep:
    rows: list[list[int]]


@dataclass
class Pair:
    pair: tuple[int, str]


@dataclass
class WithFile:
    photo: UploadedFile


@dataclass
class Unresolved:
    a: OnlyForCheckers


UNSUITABLE: list[tuple[Any, str]] = [
    (5, "takes a dataclass, a Struct or a TypedDict, not an object of int"),
    ({"a": int}, "takes a dataclass, a Struct or a TypedDict, not an object of dict"),
    (int, "takes a dataclass, a Struct or a TypedDict, not int"),
    (list[int], r"takes a dataclass, a Struct or a TypedDict, not list\[int\]"),
    (dict[str, int], r"a TypedDict, not dict\[str, int\]"),
    (One | None, "a TypedDict, not .*One | None"),
    (Row, "a TypedDict, not Row"),
    (AsArray, "a TypedDict, not AsArray that is array_like, because fields have names"),
    (Nested, "the field 'inner' of Nested has a type that no text becomes; take str, int, .* or a list of one of them"),
    (Mapped, "the field 'inner' of Mapped has a type that no text becomes"),
    (Deep, "the field 'rows' of Deep has a type that no text becomes"),
    (Pair, "the field 'pair' of Pair has a type that no text becomes"),
    (
        Unresolved,
        "name 'OnlyForCheckers' is not defined, in an annotation of Unresolved; define or import it at the top of the module",
    ),
]


@pytest.mark.parametrize(("type_", "message"), UNSUITABLE, ids=lambda value: getattr(value, "__name__", None))
@pytest.mark.parametrize(("make", "call"), [(from_query, "ctx.query_as"), (from_form, "ctx.form_as")])
async def test_a_type_that_cannot_hold_fields_is_an_error_for_the_developer(
    fetch: Fetch, make: Callable[..., Handler], call: str, type_: Any, message: str, caplog: pytest.LogCaptureFixture
) -> None:
    assert (await fetch(App({"/": make(type_)}), headers=URLENCODED)).status == 500
    [record] = caplog.records
    caplog.clear()
    assert record.exc_info is None
    assert re.search(rf"ResultError: {re.escape(call)}\(\).*{message}.*test_decoding.py, line", record.getMessage())


async def test_a_query_has_no_files(fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    assert (await fetch(App({"/": from_query(WithFile)}))).status == 500
    assert "ctx.query_as(): WithFile has a file, which a query can't hold; write `await ctx.form_as(...)`" in caplog.text


async def test_an_unresolved_name_in_a_type_of_json_is_an_error_for_the_developer(
    fetch: Fetch, caplog: pytest.LogCaptureFixture
) -> None:
    assert (await fetch(App({"/": from_json(Unresolved)}), body=b"{}")).status == 500
    assert "ctx.json(): name 'OnlyForCheckers' is not defined, in an annotation of Unresolved" in caplog.text


# Forms


@dataclass
class Cat:
    name: str
    photo: UploadedFile
    age: int | None = None
    is_tame: bool = False
    more: list[UploadedFile] = field(default_factory=list[UploadedFile])
    icon: UploadedFile | None = None


@dataclass
class Album:
    photos: list[UploadedFile]
    cover: UploadedFile | None


def multipart(*parts: tuple[str, str | None, str]) -> bytes:
    """Return a form of parts, each a name, a filename or None, and its content."""
    lines: list[str] = []
    for name, filename, content in parts:
        file = "" if filename is None else f'; filename="{filename}"'
        lines.append(f'--xx\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n{content}\r\n')
    return "".join([*lines, "--xx--\r\n"]).encode()


async def post(fetch: Fetch, type_: type[Any], *parts: tuple[str, str | None, str]) -> Exchange:
    SEEN.clear()
    return await fetch(App({"/": from_form(type_)}), "/", "POST", headers=MULTIPART, body=multipart(*parts))


async def test_a_form_has_its_files_as_uploaded_files(fetch: Fetch) -> None:
    parts = [("name", None, "Tom"), ("age", None, ""), ("is_tame", None, "on"), ("icon", "", "")]
    await post(fetch, Cat, *parts, ("photo", "a.png", "A"), ("more", "b.png", "B"), ("more", "c.png", "C"))
    [cat] = SEEN
    assert (cat.name, cat.age, cat.is_tame, cat.icon) == ("Tom", None, True, None)
    assert [file.filename for file in (cat.photo, *cat.more)] == ["a.png", "b.png", "c.png"]
    assert [await file.read() for file in (cat.photo, *cat.more)] == [b"A", b"B", b"C"]


async def test_a_file_input_that_was_left_empty_is_absent(fetch: Fetch) -> None:
    assert (await post(fetch, Album, ("photos", "", ""), ("cover", "", ""))).status == 200
    [album] = SEEN
    assert album == Album([], None)
    response = await post(fetch, Cat, ("name", None, "Tom"), ("photo", "", ""))
    assert (response.status, json.loads(response.text)["path"]) == (422, "$.photo")


async def test_two_files_for_one_get_422(fetch: Fetch) -> None:
    response = await post(fetch, WithFile, ("photo", "a", "A"), ("photo", "b", "B"))
    assert json.loads(response.text) == {"detail": "has more than one value", "path": "$.photo"}


@pytest.mark.parametrize("kind", [MULTIPART, URLENCODED])
async def test_a_text_in_the_place_of_a_file_gets_422_that_names_the_encoding(fetch: Fetch, kind: dict[str, str]) -> None:
    body = multipart(("photo", None, "a.png")) if kind is MULTIPART else b"photo=a.png"
    response = await fetch(App({"/": from_form(WithFile)}), "/", "POST", headers=kind, body=body)
    fault = {"detail": "isn't a file; send the form as multipart/form-data", "path": "$.photo"}
    assert (response.status, json.loads(response.text)) == (422, fault)


async def test_a_file_in_the_place_of_a_text_is_a_missing_field(fetch: Fetch) -> None:
    response = await post(fetch, Needs, ("name", "a.txt", "A"), ("least", None, "1"))
    assert json.loads(response.text) == {"detail": "is required", "path": "$.name"}


async def test_form_as_has_a_limit_of_its_own(fetch: Fetch) -> None:
    body = multipart(("photo", "a", "A" * 2000))
    statuses: list[int] = []
    for options in ({}, {"max_size": 4000}):
        app = App({"/": from_form(WithFile, **options)}, max_body_size=1000)
        statuses.append((await fetch(app, "/", "POST", headers=MULTIPART, body=body)).status)
    assert statuses == [413, 200]


# The response


@dataclass
class Item:
    price: int


@dataclass
class Cart:
    items: list[Item]


BAD_CART = b'{"items":[{"price":1},{"price":2},{"price":"x"}]}'
AS_JSON = '{"detail":"isn\'t an integer","path":"$.items[2].price"}'
AS_TEXT = "isn't an integer - at `$.items[2].price`"


@pytest.mark.parametrize(
    ("accept", "is_json"),
    [
        (None, True),
        ("", True),
        ("*/*", True),
        ("application/json", True),
        ("Application/JSON; charset=utf-8", True),
        ("application/*", True),
        ("application/problem+json", True),
        ("application/json, text/plain, */*", True),
        ("text/html;q=0.5, application/json;q=0.6", True),
        ("text/html, application/json", True),
        ("text/*;q=0.1, */*;q=0.2", True),
        ("application/json;q=0.001", True),
        (BROWSER, False),
        ("text/html, */*", False),
        ("text/html, application/xhtml+xml, image/jxr, */*", False),
        ("text/plain", False),
        ("text/html", False),
        ("image/png", False),
        ("application/json;q=0", False),
        ("application/json;q=0, */*", False),
        ("application/json;q=0.5, text/plain", False),
        ("application/json;q=2, text/plain;q=0.1", False),
        ("application/json;q=x", True),
        (",;,=;q", False),
    ],
)
async def test_a_client_that_prefers_json_gets_it_and_others_get_a_sentence(
    fetch: Fetch, accept: str | None, is_json: bool
) -> None:
    headers = {} if accept is None else {"accept": accept}
    response = await fetch(App({"/": from_json(Cart)}), "/", "POST", headers=headers, body=BAD_CART)
    assert (response.status, response.text, response.headers["vary"]) == (422, AS_JSON if is_json else AS_TEXT, "Accept")
    assert response.headers["content-type"] == ("application/json" if is_json else "text/plain; charset=utf-8")


async def test_an_accept_is_read_to_its_4096th_octet(fetch: Fetch) -> None:
    headers = {"accept": "text/plain;q=0.5," + "a/b," * 1100 + "application/json"}
    assert (await fetch(App({"/": from_json(Cart)}), "/", "POST", headers=headers, body=BAD_CART)).text == AS_TEXT


async def test_a_value_that_looks_like_a_path_takes_no_quadratic_time(fetch: Fetch) -> None:
    value = " - at `$" * 60_000
    response = await fetch(App({"/": from_json(Color)}), "/", "POST", body=json.dumps(value).encode())
    assert json.loads(response.body) == {"detail": "the input isn't one of the choices", "path": "$"}


async def test_several_fields_of_accept_count_as_one(fetch: Fetch) -> None:
    headers = [(b"accept", b"text/html"), (b"accept", b"application/json;q=0.9")]
    assert (await fetch(App({"/": from_json(Cart)}), "/", "POST", headers=headers, body=BAD_CART)).text == AS_TEXT


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ("number=x", "the field 'number' isn't an integer"),
        ("numbers=x", "the field 'numbers' isn't an integer"),
        ("text=a&text=b", "the field 'text' has more than one value"),
    ],
)
async def test_the_sentence_of_a_form_names_the_field(fetch: Fetch, query: str, sentence: str) -> None:
    response = await fetch(App({"/": from_query(One)}), f"/?{query}", headers={"accept": BROWSER})
    assert (response.status, response.text) == (422, sentence)


async def test_the_key_of_a_dict_is_named_as_a_key(fetch: Fetch) -> None:
    response = await fetch(App({"/": from_json(dict[str, dict[int, int]])}), "/", "POST", body=b'{"a":{"x":1}}')
    assert json.loads(response.text) == {"detail": "has a key that isn't an integer", "path": "$[...]"}


async def test_a_handler_may_render_the_form_again(fetch: Fetch) -> None:
    async def handler(ctx: Context) -> Response:
        try:
            ctx.query_as(One)
        except InvalidInput as error:
            return Response.json({error.field: error.detail})
        return Response("ok")

    assert (await fetch(App({"/": handler}), "/?number=x")).text == '{"number":"isn\'t an integer"}'


# Hostile input


@pytest.mark.parametrize("query", ["number=1&" * 10_000, "numbers=1&" * 1001, "&".join(f"a{i}=" for i in range(10_000))])
async def test_a_query_of_10000_fields_is_refused(fetch: Fetch, query: str) -> None:
    app = App({"/": {"GET": from_query(One), "POST": from_form(One)}})
    assert (await fetch(app, f"/?{query}")).status == 400
    assert (await fetch(app, "/", "POST", headers=URLENCODED, body=query.encode())).status == 413


hostile = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["9" * 5000, "-" * 1000, "1e" + "9" * 400, "." * 5000, "nan", "[[[[", "{" * 1000, "\0", "%00", "\ufffd", "\u0661"]
    ),
    st.from_regex(r"[+-]?[0-9. :TZ-]{0,12}", fullmatch=True),
)


@given(pairs=st.lists(st.tuples(st.sampled_from([*One.__dataclass_fields__, "x"]), hostile), max_size=4))
async def test_no_query_or_form_is_a_500(fetch: Fetch, pairs: list[tuple[str, str]]) -> None:
    query = "&".join(f"{name}={quote_plus(text, errors='replace')}" for name, text in pairs)
    app = App({"/": {"GET": from_query(One), "POST": from_form(One)}})
    assert (await fetch(app, f"/?{query}")).status in (200, 422)
    assert (await fetch(app, "/", "POST", headers=URLENCODED, body=query.encode())).status in (200, 422)


@pytest.mark.parametrize("octets", ["%ED%A0%80", "%FF", "%00", "%C0%80"])
async def test_octets_that_are_not_utf8_are_never_a_500(fetch: Fetch, octets: str) -> None:
    for name in One.__dataclass_fields__:
        assert (await fetch(App({"/": from_query(One)}), f"/?{name}={octets}&{octets}=1")).status in (200, 422)
