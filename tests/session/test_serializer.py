"""Values become bytes and values again; a value that can't be encoded raises at once, and decoding runs no code."""

from __future__ import annotations

import ast
import json
import uuid
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Annotated, Any, TypedDict

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

import gaman
import gaman_session
from gaman.session import Session, SessionSerializationError, SessionTypeError, SessionUseError, session
from gaman.testing import TestClient
from gaman_session._serializer import CODECS
from gaman_session.drivers.memory import MemoryDriver
from tests.session.sites import Browser, Clock, Site, Work, getting, serving, setting

pytestmark = pytest.mark.anyio

both = pytest.mark.parametrize("serializer", ["msgpack", "json"])


@dataclass
class User:
    id: int
    name: str


class Cart(msgspec.Struct):
    items: list[str]
    total: float = 0.0


class Place(TypedDict):
    town: str
    zip: int


@dataclass
class Choice:
    size: str = "M"


@dataclass
class Basket:
    choices: list[Choice]
    note: str = ""


class Exclaiming:
    """A serializer of strings only, whose mark shows in the store."""

    def encode(self, value: Any) -> bytes:
        if not isinstance(value, str):
            raise TypeError("strings only, please")
        return value.encode() + b"!"

    def decode(self, data: bytes, type: Any) -> Any:
        text = data.removesuffix(b"!").decode()
        return text if type is None else type(text)


@asynccontextmanager
async def browsing(serializer: Any = None, *, stored: bool = True) -> AsyncGenerator[Browser, None]:
    driver = MemoryDriver() if stored else None
    async with serving(Site(driver, Clock(), serializer=serializer)) as site:
        yield site.browser()


def getting_as(key: str, type: Any) -> Work:
    async def work(session: Session) -> Any:
        return await session.get(key, type=type)

    return work


# Decoded values


@both
@pytest.mark.parametrize("stored", [True, False], ids=["memory", "cookies"])
@pytest.mark.parametrize(
    "value",
    [
        None,
        True,
        False,
        0,
        -1,
        2**63,
        -(2**63),
        0.1,
        1e300,
        "",
        "ключ 🔑",
        "a\0b\r\n",
        [],
        {},
        [None, [True, [0, [""]]]],
        {"a": {"b": [{"c": None}]}, "": 0, "a.b": 1, "$set": 2},
    ],
    ids=repr,
)
async def test_a_value_comes_back_in_another_request(serializer: str, stored: bool, value: Any) -> None:
    async with browsing(serializer, stored=stored) as browser:
        await browser.do(setting(value=value))
        found = await browser.do(getting("value"))
    assert found == value
    assert type(found) is type(value)


_plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4),
    max_leaves=20,
)


@given(value=_plain | st.binary())
def test_messagepack_keeps_any_plain_value(value: Any) -> None:
    codec = CODECS["msgpack"]
    found = codec.decoder.decode(codec.encoder.encode(value))
    assert found == value
    assert type(found) is type(value)


@given(value=_plain.filter(lambda value: "inf" not in repr(value)))
def test_json_keeps_any_plain_value(value: Any) -> None:
    codec = CODECS["json"]
    found = codec.decoder.decode(codec.encoder.encode(value))
    assert found == value
    assert type(found) is type(value)


async def test_messagepack_keeps_bytes_and_datetimes() -> None:
    octets = bytes(range(256))
    moment = datetime(2027, 1, 15, 8, 0, 0, 123456, UTC)
    elsewhere = datetime(2027, 1, 15, 8, tzinfo=timezone(timedelta(hours=7)))
    async with browsing("msgpack") as browser:
        await browser.do(setting(octets=octets, moment=moment, elsewhere=elsewhere, nested={"deep": [octets, moment]}))
        assert await browser.all() == {
            "octets": octets,
            "moment": moment,
            "elsewhere": elsewhere,
            "nested": {"deep": [octets, moment]},
        }


async def test_json_returns_bytes_and_datetimes_if_the_type_says_so() -> None:
    octets, moment = bytes(range(256)), datetime(2027, 1, 15, 8, 0, 0, 123456, UTC)
    async with browsing("json") as browser:
        await browser.do(setting(octets=octets, moment=moment))
        assert await browser.do(getting_as("octets", bytes)) == octets
        assert await browser.do(getting_as("moment", datetime)) == moment


@both
def test_an_endless_number_of_types_does_not_fill_the_memory(serializer: str) -> None:
    codec: Any = CODECS[serializer]
    data = codec.encoder.encode([1])
    for _ in range(2000):
        kind: Any = type("Kind", (msgspec.Struct,), {"__annotations__": {"number": int}}, array_like=True)
        assert codec.learn(kind).decode(data) == codec.decoders[kind].decode(data) == kind(1)
    assert len(codec.decoders) < 1100
    assert codec.decoder.decode(data) == [1]


@both
async def test_get_returns_a_fresh_copy(serializer: str) -> None:
    async def work(session: Session) -> Any:
        (await session.get("list")).append("mine")
        return await session.get("list")

    async with browsing(serializer) as browser:
        await browser.do(setting(list=["theirs"]))
        assert await browser.do(work) == ["theirs"]


async def test_values_are_stored_as_messagepack_by_default() -> None:
    async def stored(**options: Any) -> bytes:
        driver = MemoryDriver()
        async with serving(Site(driver, Clock(), **options)) as site:
            await site.browser().do(setting(value={"a": 1}))
            (record,) = driver._sessions.values()
            return record.fields["value"]

    assert await stored() == msgspec.msgpack.encode({"a": 1})
    assert await stored(serializer="msgpack") == msgspec.msgpack.encode({"a": 1})
    assert await stored(serializer="json") == b'{"a":1}'
    # A user turns sealing off in order to read the store.
    assert await stored(encrypt=False) == b'{"a":1}'


# Values that can't be encoded


def _endless() -> list[Any]:
    endless: list[Any] = []
    endless.append(endless)
    return endless


def _numbers() -> Iterator[int]:
    yield 1


UNKEEPABLE: dict[str, tuple[Callable[[], Any], str]] = {
    "an object": (object, "object"),
    "a function": (lambda: setting, "function"),
    "a class": (lambda: User, "type"),
    "a lone surrogate": (lambda: "\ud800", "str"),
    "a lone surrogate as a key": (lambda: {"\udfff": 1}, "dict"),
    "a list that holds itself": (_endless, "list"),
    "a generator": (_numbers, "generator"),
    "a complex number": (lambda: 1j, "complex"),
    "an exception": (lambda: ValueError("no"), "ValueError"),
    "an object deep inside": (lambda: {"a": [{"b": object()}]}, "dict"),
}


@both
@pytest.mark.parametrize("stored", [True, False], ids=["memory", "cookies"])
@pytest.mark.parametrize(("make", "type_name"), UNKEEPABLE.values(), ids=UNKEEPABLE)
async def test_a_value_that_cannot_be_encoded_raises_and_names_key_and_type(
    serializer: str, stored: bool, make: Callable[[], Any], type_name: str
) -> None:
    async with browsing(serializer, stored=stored) as browser:
        await browser.do(setting(basket="as it was"))
        reply = await browser.request(setting(basket=make()))
        assert type(reply.error) is SessionSerializationError
        assert "'basket'" in str(reply.error)
        assert f" {type_name}:" in str(reply.error)
        assert reply.error.__cause__ is not None
        assert await browser.all() == {"basket": "as it was"}


@pytest.mark.parametrize("value", [2**64, 2**70, -(2**63) - 1, [2**70]], ids=["2**64", "2**70", "-2**63-1", "in a list"])
async def test_messagepack_refuses_a_number_that_is_too_large_for_it(value: Any) -> None:
    async with browsing() as browser:
        reply = await browser.request(setting(number=value))
        assert isinstance(reply.error, SessionSerializationError)
        assert "'number'" in str(reply.error)
        assert type(value).__name__ in str(reply.error)


async def test_json_keeps_a_number_of_any_size() -> None:
    async with browsing("json") as browser:
        await browser.do(setting(number=2**70))
        assert await browser.do(getting("number")) == 2**70


@both
async def test_a_request_continues_after_a_value_that_cannot_be_encoded(serializer: str) -> None:
    async def work(session: Session) -> None:
        await session.set("before", 1)
        with pytest.raises(SessionSerializationError):
            await session.set("before", object())
        with pytest.raises(SessionSerializationError):
            await session.set("new", object())
        await session.set("after", 2)

    async with browsing(serializer) as browser:
        await browser.do(work)
        assert await browser.all() == {"before": 1, "after": 2}


@both
@pytest.mark.parametrize("stored", [True, False], ids=["memory", "cookies"])
async def test_update_refuses_what_set_refuses(serializer: str, stored: bool) -> None:
    async def work(session: Session) -> None:
        await session.update("basket", lambda _: object())

    async with browsing(serializer, stored=stored) as browser:
        await browser.do(setting(basket="as it was"))
        reply = await browser.request(work)
        assert isinstance(reply.error, SessionSerializationError)
        assert "'basket'" in str(reply.error)
        assert await browser.all() == {"basket": "as it was"}


@pytest.mark.parametrize("key", [5, None, b"key", "\ud800", ("a", "b")], ids=repr)
async def test_a_key_is_a_string_that_utf_8_can_encode(key: Any) -> None:
    async def work(session: Session) -> None:
        await session.set(key, "fine")

    async with browsing() as browser:
        reply = await browser.request(work)
        assert isinstance(reply.error, SessionSerializationError if isinstance(key, str) else SessionUseError)
        assert repr(key) in str(reply.error)


# Values that would be decoded as something else, or not at all


def nest(levels: int, of: type = list) -> Any:
    value: Any = []
    for _ in range(levels - 1):
        value = {"in": value} if of is dict else (value,) if of is tuple else [value]
    return value


def from_a_deep_call(function: Callable[[], Any], frames: int) -> Any:
    return function() if frames == 0 else from_a_deep_call(function, frames - 1)


@dataclass
class Spot:
    latitude: float


NESTED: dict[str, Callable[[int], Any]] = {
    "lists": nest,
    "dicts": lambda levels: nest(levels, dict),
    "tuples": lambda levels: nest(levels, tuple),
    "dataclass": lambda levels: User(1, nest(levels - 1)),
    "beside many": lambda levels: [[[1]] * 500, nest(levels - 1)],
    "beside text": lambda levels: ['\u0400[{"' * 200, nest(levels - 1)],
}


@pytest.mark.parametrize("name", NESTED)
@pytest.mark.parametrize("serializer", ["msgpack", "json"])
@pytest.mark.parametrize("driver", ["cookies", "memory"])
async def test_a_value_nested_deeper_than_100_levels_is_refused(driver: str, serializer: str, name: str) -> None:
    async def work(session: Session) -> None:
        await session.set("fine", NESTED[name](100))
        with pytest.raises(SessionSerializationError, match="nested deeper than 100 levels"):
            session.set("deep", NESTED[name](101))
        with pytest.raises(SessionSerializationError, match="nested deeper than 100 levels"):
            await session.update("deep", lambda _: NESTED[name](101))

    async with serving(Site({"type": driver}, Clock(), serializer=serializer)) as site:
        browser = site.browser()
        await browser.do(work)
        assert {*await browser.all()} == {"fine"}


@pytest.mark.parametrize("levels", [101, 800, 100_000])
@pytest.mark.parametrize("serializer", ["msgpack", "json"])
async def test_a_deep_note_and_a_cycle_are_refused_too(serializer: str, levels: int) -> None:
    ring: list[Any] = []
    ring.append(ring)

    async def work(session: Session) -> None:
        for value in (nest(levels), ring):
            with pytest.raises(SessionSerializationError, match="nested deeper than 100 levels"):
                session.set_owner("user:1", note=value)
            with pytest.raises(SessionSerializationError, match="nested deeper than 100 levels"):
                session.set("deep", value)

    async with serving(Site({"type": "memory"}, Clock(), serializer=serializer)) as site:
        await site.browser().do(work)


@pytest.mark.parametrize("error", [RecursionError, MemoryError])
async def test_an_exhausted_process_is_not_reported_as_damage(error: type[Exception], caplog: pytest.LogCaptureFixture) -> None:
    class Failing:
        def encode(self, value: Any, /) -> bytes:
            return json.dumps(value).encode()

        def decode(self, data: bytes, type: Any, /) -> Any:
            raise error

    async def work(session: Session) -> None:
        for read in (
            lambda: session.get("a"),
            lambda: session.get("a", type=int),
            session.all,
            lambda: session.pop("a"),
            lambda: session.update("a", int),
        ):
            with pytest.raises(error):
                await read()

    async with serving(Site({"type": "memory"}, Clock(), serializer=Failing())) as site:
        browser = site.browser()
        await browser.do(setting(a=1))
        await browser.do(work)

        async def set_owner(session: Session) -> None:
            await session.set_owner("user:1", note="a phone")

        await browser.do(set_owner)
        with pytest.raises(error):
            await site.sessions.list("user:1")
    assert "is damaged" not in caplog.text


async def test_a_value_that_is_read_from_a_deep_call_is_never_absent() -> None:
    async def work(session: Session) -> set[str]:
        await session.has("deep")

        def read() -> str:
            call = session.get("deep")
            try:
                call.__await__().send(None)
            except StopIteration as done:
                return type(done.value).__name__
            raise AssertionError

        seen: set[str] = set()
        for frames in range(800, 1000, 5):
            try:
                seen.add(from_a_deep_call(read, frames))
            except RecursionError:
                seen.add("RecursionError")
        return seen

    async with serving(Site({"type": "memory"}, Clock())) as site:
        browser = site.browser()
        await browser.do(setting(deep=nest(100)))
        assert await browser.do(work) <= {"list", "RecursionError"}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ({1: "a", "1": "b"}, "two keys of a dict become one"),
        ([{"deep": [{1: "a", "1": "b"}]}], "two keys of a dict become one"),
        ({uuid.UUID(int=1): 1, str(uuid.UUID(int=1)): 2}, "two keys of a dict become one"),
        (float("inf"), "neither inf nor nan"),
        (float("-inf"), "neither inf nor nan"),
        ([1.5, {"a": float("nan")}], "neither inf nor nan"),
        ({"a": Spot(float("nan"))}, "neither inf nor nan"),
    ],
    ids=str,
)
async def test_json_refuses_values_that_would_be_decoded_as_something_else(value: Any, reason: str) -> None:
    async def work(session: Session) -> None:
        with pytest.raises(SessionSerializationError, match=reason):
            session.set("a", value)

    async with serving(Site({"type": "memory"}, Clock(), serializer="json")) as site:
        await site.browser().do(work)


@pytest.mark.parametrize(
    "value", [None, [None, "null"], {"1": 1, "2": None}, {1: 2}, 1e300, '\U0001f600"\\', [1.0, -0.0]], ids=repr
)
async def test_json_keeps_all_other_values(value: Any) -> None:
    async with serving(Site({"type": "memory"}, Clock(), serializer="json")) as site:
        browser = site.browser()
        await browser.do(setting(a=value))
        assert (await browser.all())["a"] == json.loads(json.dumps(value))


async def test_msgpack_keeps_inf_and_keys_of_two_kinds() -> None:
    async with browsing() as browser:
        await browser.do(setting(a=[float("inf"), {1: "a", "1": "b"}]))
        assert (await browser.all())["a"] == [float("inf"), {1: "a", "1": "b"}]


# Typed reads


@both
@pytest.mark.parametrize("stored", [True, False], ids=["memory", "cookies"])
@pytest.mark.parametrize(
    ("value", "type", "expected"),
    [
        ({"id": 1, "name": "Angga"}, User, User(1, "Angga")),
        (User(1, "Angga"), User, User(1, "Angga")),
        ({"items": ["a"]}, Cart, Cart(["a"])),
        (Cart(["a"], 2.5), Cart, Cart(["a"], 2.5)),
        ({"town": "Bandung", "zip": 40111}, Place, {"town": "Bandung", "zip": 40111}),
        ([1, 2, 3], list[int], [1, 2, 3]),
        ([1, 2, 3], tuple[int, ...], (1, 2, 3)),
        ([3, 1, 1], set[int], {1, 3}),
        ({"a": [1]}, dict[str, list[int]], {"a": [1]}),
        ([{"id": 1, "name": "Angga"}], list[User], [User(1, "Angga")]),
        (7, int, 7),
        (7, int | None, 7),
        (None, int | None, None),
        ({"a": 1}, Any, {"a": 1}),
    ],
    ids=repr,
)
async def test_a_value_is_decoded_into_the_type(serializer: str, stored: bool, value: Any, type: Any, expected: Any) -> None:
    async with browsing(serializer, stored=stored) as browser:
        await browser.do(setting(value=value))
        found = await browser.do(getting_as("value", type))
    assert found == expected
    assert found.__class__ is expected.__class__


@both
@pytest.mark.parametrize("stored", [True, False], ids=["memory", "cookies"])
@pytest.mark.parametrize(
    ("value", "type"),
    [
        ({"id": "one", "name": "Angga"}, User),
        ({"id": 1}, User),
        ({}, Cart),
        ({"town": "Bandung"}, Place),
        ([1, "2"], list[int]),
        ("7", int),
        (7, str),
        (None, int),
        (0, bool),
        ("tomorrow", datetime),
    ],
    ids=repr,
)
async def test_a_value_that_does_not_fit_the_type_names_key_and_type(serializer: str, stored: bool, value: Any, type: Any) -> None:
    async with browsing(serializer, stored=stored) as browser:
        await browser.do(setting(basket=value))
        reply = await browser.request(getting_as("basket", type))
        assert isinstance(reply.error, SessionTypeError)
        assert "'basket'" in str(reply.error)
        assert type.__name__ in str(reply.error)
        assert reply.error.__cause__ is not None
        # Asking for the wrong type loses nothing.
        assert await browser.all() == {"basket": value}


@both
async def test_a_missing_key_returns_the_default_whatever_the_type(serializer: str) -> None:
    async def work(session: Session) -> Any:
        return await session.get("missing", type=int), await session.get("missing", "nothing", type=int)

    async with browsing(serializer) as browser:
        await browser.do(setting(other=1))
        assert await browser.do(work) == (None, "nothing")


# A user's serializer


@pytest.mark.parametrize("stored", [True, False], ids=["memory", "cookies"])
async def test_any_object_that_encodes_and_decodes_is_a_serializer(stored: bool) -> None:
    async with browsing(Exclaiming(), stored=stored) as browser:
        await browser.do(setting(word="hello", number="42"))
        assert await browser.do(getting("word")) == "hello"
        assert await browser.do(getting_as("number", int)) == 42
        assert await browser.all() == {"word": "hello", "number": "42"}
        if isinstance(browser.site.driver, MemoryDriver):
            (record,) = browser.site.driver._sessions.values()
            assert record.fields == {"word": b"hello!", "number": b"42!"}


@both
async def test_a_type_need_not_be_hashable(serializer: str) -> None:
    kind: Any = Annotated[int, msgspec.Meta(ge=18), ["years"]]
    async with browsing(serializer) as browser:
        await browser.do(setting(age=18, youth=17))
        assert await browser.do(getting_as("age", kind)) == 18
        reply = await browser.request(getting_as("youth", kind))
        assert isinstance(reply.error, SessionTypeError)


async def test_a_users_serializer_may_take_unhashable_types_too() -> None:
    class Choosing:
        """A type that is given as a list of its values."""

        def encode(self, value: Any) -> bytes:
            return json.dumps(value).encode()

        def decode(self, data: bytes, choices: Any) -> Any:
            value = json.loads(data)
            if choices is not None and value not in choices:
                raise ValueError(f"{value!r} is none of {choices}")
            return value

    async with browsing(Choosing()) as browser:
        await browser.do(setting(size="L"))
        assert await browser.do(getting_as("size", ["M", "L"])) == "L"
        reply = await browser.request(getting_as("size", ["S"]))
        assert isinstance(reply.error, SessionTypeError)


async def test_a_users_serializer_keeps_no_value_that_is_nested_deeper_than_100_levels() -> None:
    class Lists:
        """A serializer that needs a type for dicts."""

        def encode(self, value: Any) -> bytes:
            return json.dumps(value).encode()

        def decode(self, data: bytes, type: Any) -> Any:
            if type is None and data.startswith(b"{"):
                raise TypeError("which one?")
            return json.loads(data)

    def nested(levels: int) -> Any:
        value: Any = "value"
        for _ in range(levels):
            value = [value]
        return value

    async with browsing(Lists()) as browser:
        await browser.do(setting(basket=nested(100), text="x" * 1000, typed={"a": "x" * 1000}))
        assert await browser.do(getting("basket")) == nested(100)
        reply = await browser.request(setting(basket=nested(101)))
        assert isinstance(reply.error, SessionSerializationError)
        assert "'basket'" in str(reply.error)
        assert "nested deeper than 100 levels" in str(reply.error)


async def test_an_error_of_a_users_serializer_becomes_an_error_of_the_session() -> None:
    async with browsing(Exclaiming()) as browser:
        reply = await browser.request(setting(basket=5))
        assert isinstance(reply.error, SessionSerializationError)
        assert "'basket'" in str(reply.error)
        assert "int" in str(reply.error)
        assert "strings only, please" in str(reply.error)
        await browser.do(setting(basket="five"))
        reply = await browser.request(getting_as("basket", int))
        assert isinstance(reply.error, SessionTypeError)
        assert isinstance(reply.error.__cause__, ValueError)


@pytest.mark.parametrize("stored", [True, False], ids=["memory", "cookies"])
async def test_a_serializer_that_returns_no_bytes_raises_at_set(stored: bool) -> None:
    class Forgetful:
        """A serializer whose author forgot that json.dumps returns a string."""

        def encode(self, value: Any) -> Any:
            return json.dumps(value)

        def decode(self, data: bytes, type: Any) -> Any:
            return json.loads(data)

    async with browsing(Forgetful(), stored=stored) as browser:
        reply = await browser.request(setting(basket=5))
        assert isinstance(reply.error, SessionSerializationError)
        assert "'basket'" in str(reply.error)


# Pickle


def _sources() -> list[Path]:
    packages = (gaman, gaman_session)
    return sorted(path for package in packages for path in Path(str(package.__file__)).parent.rglob("*.py"))


def _imports(source: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names.update(alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            names.add(node.module.partition(".")[0])
    return names


UNSAFE = {"pickle", "_pickle", "cPickle", "cloudpickle", "dill", "marshal", "shelve", "jsonpickle", "joblib"}


def test_nothing_imports_pickle_or_its_like() -> None:
    assert len(_sources()) > 20
    assert {path.name: _imports(path.read_text()) & UNSAFE for path in _sources()} == {path.name: set() for path in _sources()}


@pytest.mark.parametrize(
    "source",
    ["import pickle", "import os, pickle as p", "from pickle import loads", "def f():\n    import pickle", "import marshal"],
)
def test_an_import_of_pickle_would_be_seen(source: str) -> None:
    assert _imports(source) & UNSAFE


def test_a_pickle_in_the_store_is_not_run() -> None:
    exploit = b"cbuiltins\nexec\n(S'raise SystemExit'\ntR."
    for codec in CODECS.values():
        with pytest.raises(msgspec.DecodeError):
            codec.decoder.decode(exploit)


@both
async def test_a_dataclass_has_the_defaults_that_were_added_after_it_was_set(serializer: Any) -> None:
    async def handler(ctx: gaman.Context) -> gaman.Response:
        # As an earlier version of the class would have been stored.
        await ctx.session.set("basket", {"choices": [{}]})
        basket = await ctx.session.get("basket", type=Basket)
        await ctx.session.set("again", basket)
        return gaman.Response.json([basket, await ctx.session.get("again")])

    app = gaman.App({"/": handler}, integrations=[session("0123456789abcdefghijklmnopqrstuv", serializer=serializer)])
    async with TestClient(app) as client:
        expected = {"choices": [{"size": "M"}], "note": ""}
        assert (await client.get("/")).json() == [expected, expected]
