"""as_dict: `request.session` is the dict of Starlette's users, with the promises of the session."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
import operator
import pickle
from collections.abc import AsyncIterator, Callable, Mapping
from inspect import isawaitable
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.middleware.sessions import SessionMiddleware as StarlettesMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starsessions import InMemoryStore, SessionAutoloadMiddleware
from starsessions import SessionMiddleware as StarsessionsMiddleware

from gaman import HTTPError
from gaman.session import Driver, Outcome, Session, SessionClosed, SessionIntegration
from gaman.session.asgi import get_session
from gaman_session._login import LOGIN
from gaman_session.drivers.memory import MemoryDriver
from tests.session.sites import Recording, Sealing
from tests.session.visitors import Reply, Visitor, answering, sessions_in, starlette

pytestmark = pytest.mark.anyio

Work = Callable[[dict[str, Any]], Any]


class Site:
    """An application whose handler runs the work that a visitor's request is sent with, on `request.session`."""

    def __init__(self, driver: Any = None, **options: Any) -> None:
        self.sessions: SessionIntegration = sessions_in(driver, **options)
        self.app = starlette(self.sessions, as_dict=True, run=self._run)

    @staticmethod
    async def _run(request: Request) -> Response:
        result: Any = request.scope["work"](request.session)
        if isawaitable(result):
            result = await result
        response: Response = request.scope.get("response") or PlainTextResponse("done")
        request.scope["results"].append(result)
        return response

    def visitor(self) -> Visitor:
        return Visitor(self.app)


async def run(visitor: Visitor, work: Work, **scope: Any) -> tuple[Any, Reply]:
    """Run *work*; return its result and the response."""
    results: list[Any] = []
    reply = await visitor.get("/run", work=work, results=results, **scope)
    return (results or [None])[0], reply


async def do(visitor: Visitor, work: Work) -> Any:
    """Return the result of *work*, which must succeed."""
    result, reply = await run(visitor, work)
    if reply.error is not None:
        raise reply.error
    assert reply.status == 200
    return result


async def everything(visitor: Visitor) -> dict[str, Any]:
    found: dict[str, Any] = await do(visitor, dict)
    return found


# --- on every driver


async def test_it_works_as_starlettes_on_every_driver(driver: Driver | None) -> None:
    site = Site({"type": "cookies"} if driver is None else driver)
    async with site.sessions.running():
        visitor = site.visitor()
        assert await everything(visitor) == {}
        await do(visitor, lambda session: session.update(user=1, cart=["apple"]))
        await do(visitor, lambda session: session["cart"].append("pear"))
        assert await everything(visitor) == {"user": 1, "cart": ["apple", "pear"]}
        assert await do(visitor, lambda session: session.pop("user")) == 1
        assert await everything(visitor) == {"cart": ["apple", "pear"]}
        await do(visitor, lambda session: session.clear())
        assert visitor.cookies == {}
        assert await everything(visitor) == {}


async def test_concurrent_requests_keep_the_changes_of_different_keys(store: Driver) -> None:
    site = Site(store)
    async with site.sessions.running():
        visitor = site.visitor()
        await do(visitor, lambda session: session.update(start=0))
        gate = asyncio.Barrier(8)

        async def write(session: dict[str, Any], number: int) -> None:
            await gate.wait()
            session[f"key {number}"] = number

        # mypy infers no type for a lambda with a default.
        await asyncio.gather(*(do(visitor.again(), lambda session, n=n: write(session, n)) for n in range(8)))  # type: ignore[misc]
        assert await everything(visitor) == {"start": 0, **{f"key {number}": number for number in range(8)}}


LOGOUTS: dict[str, Work] = {
    "clear": lambda session: session.clear(),
    "pop": lambda session: session.pop("user"),
    "popitem": lambda session: session.popitem(),
    "del": lambda session: session.__delitem__("user"),
}


@pytest.mark.parametrize("logout", LOGOUTS.values(), ids=LOGOUTS)
async def test_deleting_all_keys_ends_the_session_finally(store: Driver, logout: Work) -> None:
    site = Site(store)
    async with site.sessions.running():
        visitor = site.visitor()
        await do(visitor, lambda session: session.update(user=1))
        late, entered, leave = visitor.again(), asyncio.Event(), asyncio.Event()

        async def write(session: dict[str, Any]) -> None:
            session["late"] = 1
            entered.set()
            await leave.wait()

        writer = asyncio.create_task(do(late, write))
        await entered.wait()
        thief = visitor.again()
        await do(visitor, logout)
        assert visitor.cookies == {}
        leave.set()
        await writer
        assert await everything(thief) == await everything(late) == {}


async def test_after_clear_a_new_session_begins_under_a_new_id() -> None:
    site = Site()
    visitor = site.visitor()
    await do(visitor, lambda session: session.update(user=1, cart=[]))
    thief = visitor.again()

    def log_out(session: dict[str, Any]) -> None:
        session.clear()
        session["flash"] = "Good bye"

    await do(visitor, log_out)
    assert await everything(visitor) == {"flash": "Good bye"}
    assert await everything(thief) == {}


@pytest.mark.parametrize("logout", [each for each in LOGOUTS if each != "clear"])
async def test_deleting_the_last_key_keeps_the_key_of_a_concurrent_request(store: Driver, logout: str) -> None:
    site = Site(store)
    async with site.sessions.running():
        visitor = site.visitor()
        await do(visitor, lambda session: session.update(user=1))
        other, entered, leave = visitor.again(), asyncio.Event(), asyncio.Event()

        async def delete(session: dict[str, Any]) -> None:
            LOGOUTS[logout](session)
            entered.set()
            await leave.wait()

        deleting = asyncio.create_task(do(visitor, delete))
        await entered.wait()
        await do(other, lambda session: session.update(cart=["apple"]))
        leave.set()
        await deleting
        assert await everything(other) == await everything(visitor) == {"cart": ["apple"]}


# --- beside the session itself


STORES: dict[str, Callable[[], Any]] = {"memory": MemoryDriver, "sealed": Sealing, "cookies": lambda: {"type": "cookies"}}
each_store = pytest.mark.parametrize("make", STORES.values(), ids=STORES)
Both = Callable[[dict[str, Any], Session], Any]
"""What a handler does with the dict and the session of its request. It may be a coroutine function."""


async def _beside(visitor: Visitor, work: Both) -> Any:
    """Return the result of *work*."""
    reply = await visitor.get("/beside", both=work)
    assert (reply.status, reply.error) == (200, None), reply.text
    return reply.json


async def _answer_beside(request: Request) -> Any:
    result = request.scope["both"](request.session, await get_session(request))
    return await result if isawaitable(result) else result


async def _add(session: dict[str, Any], current: Session) -> None:
    session["n"] = 5
    await current.update("n", lambda n: n + 1, 0)


async def _add_first(session: dict[str, Any], current: Session) -> None:
    await current.update("n", lambda n: n + 1, 0)
    session["n"] *= 10


async def _save(session: dict[str, Any], current: Session) -> None:
    current.set("a", 2)
    await current.save()
    session["a"] += 1


async def _hold(session: dict[str, Any], current: Session) -> None:
    held = session["list"]
    await current.clear()
    held.append(2)


async def _pop(session: dict[str, Any], current: Session) -> None:
    session["a"] = 2
    await current.pop("a")


BESIDE: dict[str, tuple[Both, dict[str, Any]]] = {
    "set, then the dict": (lambda session, current: (current.set("a", 2), session.update(a=3)), {"a": 3}),
    "the dict, then set": (lambda session, current: (session.update(a=3), current.set("a", 2)), {"a": 2}),
    "set of a new key, then the dict": (lambda session, current: (current.set("b", 2), session.update(b=3)), {"b": 3}),
    "the dict, then set of a new key": (lambda session, current: (session.update(b=3), current.set("b", 2)), {"b": 2}),
    "set, then a nested change": (lambda session, current: (current.set("list", [2]), session["list"].append(3)), {"list": [2, 3]}),
    "a nested change, then set": (lambda session, current: (session["list"].append(3), current.set("list", [2])), {"list": [2]}),
    "set of another key": (lambda session, current: (current.set("b", 2), session.update(a=3)), {"a": 3, "b": 2}),
    "delete, then the dict": (lambda session, current: (current.delete("a"), session.update(a=3)), {"a": 3}),
    "the dict, then delete": (lambda session, current: (session.update(a=3), current.delete("a")), {"a": None}),
    "a nested change, then delete": (lambda session, current: (session["list"].append(3), current.delete("list")), {"list": None}),
    "a deletion, then set": (lambda session, current: (session.pop("a"), current.set("a", 2)), {"a": 2}),
    "set, then a deletion": (lambda session, current: (current.set("a", 2), session.pop("a")), {"a": None}),
    "the dict, then pop": (_pop, {"a": None}),
    # update() reads what is stored, not the dict.
    "the dict, then update": (_add, {"n": 1}),
    "update, then the dict": (_add_first, {"n": 10}),
    "save, then the dict": (_save, {"a": 3}),
    "regenerate": (lambda session, current: (session.update(a=2), current.regenerate(), session.update(b=3)), {"a": 2, "b": 3}),
    "nothing but set": (lambda session, current: current.set("a", 2), {"a": 2}),
    "nothing but delete": (lambda session, current: current.delete("a"), {"a": None}),
}
ENDS: dict[str, tuple[Both, dict[str, Any]]] = {
    "clear": (lambda session, current: current.clear(), {}),
    "the dict, then clear": (lambda session, current: (session.update(a=2, b=3), current.clear()), {}),
    "a nested change, then clear": (lambda session, current: (session["list"].append(2), current.clear()), {}),
    "clear, then a change of a value from before": (_hold, {}),
    "clear, then the dict": (lambda session, current: (current.clear(), session.update(a=2)), {"a": 2}),
    "the dict's clear, then set": (lambda session, current: [LOGOUTS["clear"](session), current.set("a", 2)], {"a": 2}),
    "set, then the dict's clear": (lambda session, current: [current.set("b", 2), LOGOUTS["clear"](session)], {}),
}


def _site_beside(make: Callable[[], Any]) -> Visitor:
    return Visitor(starlette(sessions_in(make()), as_dict=True, beside=answering(_answer_beside)))


@each_store
@pytest.mark.parametrize("name", BESIDE)
async def test_the_last_change_of_a_key_wins_by_the_dict_or_by_the_session(make: Callable[[], Any], name: str) -> None:
    visitor = _site_beside(make)
    await _beside(visitor, lambda session, current: session.update(a=1, list=[1]))
    work, changes = BESIDE[name]

    async def compare(session: dict[str, Any], current: Session) -> dict[str, Any]:
        result = work(session, current)
        if isawaitable(result):
            await result
        return dict(session)

    expected = {key: value for key, value in {"a": 1, "list": [1], **changes}.items() if value is not None}
    assert await _beside(visitor, compare) == expected
    assert await _beside(visitor, lambda session, current: session) == expected


@each_store
@pytest.mark.parametrize("name", ENDS)
async def test_what_was_before_clear_does_not_come_back(make: Callable[[], Any], name: str) -> None:
    visitor = _site_beside(make)
    await _beside(visitor, lambda session, current: session.update(a=1, list=[1]))
    thief = visitor.again()
    work, expected = ENDS[name]

    async def compare(session: dict[str, Any], current: Session) -> dict[str, Any]:
        result = work(session, current)
        if isawaitable(result):
            await result
        return dict(session)

    assert await _beside(visitor, compare) == expected
    assert await _beside(visitor, lambda session, current: session) == expected
    if make is not STORES["cookies"]:
        assert await _beside(thief, lambda session, current: session) == {}


@each_store
async def test_a_key_that_the_session_itself_has_set_survives_the_deletion_of_all_others(make: Callable[[], Any]) -> None:
    visitor = _site_beside(make)
    await _beside(visitor, lambda session, current: session.update(user=1))
    await _beside(visitor, lambda session, current: (session.pop("user", None), current.set("flash", 1))[0])
    assert await _beside(visitor, lambda session, current: session) == {"flash": 1}
    await _beside(visitor, lambda session, current: (current.set("more", 1), session.pop("flash"))[1])
    assert await _beside(visitor, lambda session, current: session) == {"more": 1}


async def test_the_session_itself_sees_the_changes_of_the_dict_once_they_are_written() -> None:
    visitor = _site_beside(MemoryDriver)

    async def read(session: dict[str, Any], current: Session) -> Any:
        session["a"] = session.get("a", 0) + 1
        return await current.get("a")

    assert [await _beside(visitor, read) for _ in range(3)] == [None, 1, 2]


async def test_a_value_that_the_serializer_cannot_decode_is_left_out_of_the_dict() -> None:
    class OneWay(Versioned):
        def decode(self, data: bytes, type: Any) -> Any:
            value = super().decode(data, type)
            if value == "one way":
                raise ValueError(value)
            return value

    sessions = sessions_in(MemoryDriver(), serializer=OneWay())
    visitor = Visitor(starlette(sessions, as_dict=True, beside=answering(_answer_beside)))
    shown = await _beside(visitor, lambda session, current: (session.update(a=1), current.set("a", "one way"), dict(session))[2])
    assert shown == {}


# --- every method of dict


def _collect(**values: Any) -> dict[str, Any]:
    return values


def _match(session: dict[str, Any]) -> Any:
    match session:
        case {"a": found}:
            return found
        case _:
            return None


READS: dict[str, Work] = {
    "[]": lambda session: session["a"],
    "get": lambda session: session.get("a"),
    "get of a missing key": lambda session: session.get("x"),
    "in": lambda session: "a" in session,
    "len": len,
    "bool": bool,
    "iter": list,
    "reversed": lambda session: list(reversed(session)),
    "keys": lambda session: list(session.keys()),
    "values": lambda session: list(session.values()),
    "items": lambda session: list(session.items()),
    "copy": lambda session: session.copy(),
    "dict": dict,
    "**": lambda session: {**session},
    "a call with **": lambda session: _collect(**session),
    "==": lambda session: session == {"a": 1, "b": [2]},
    "==, from the left": lambda session: operator.eq({"a": 1, "b": [2]}, session),
    "!=": lambda session: session != {},
    "|": lambda session: session | {"c": 3},
    "|, from the left": lambda session: {"c": 3} | session,
    "repr": repr,
    "str": str,
    "format": lambda session: f"{session}",
    "json.dumps": json.dumps,
    "json.dumps in Python": lambda session: json.dumps(session, indent=1),
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "pickle": lambda session: pickle.loads(pickle.dumps(session)),
    "match": _match,
    "sorted": sorted,
    "update of another dict": lambda session: _collect() | session,
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
async def test_every_read_gives_what_a_dict_does_and_counts_as_a_use(read: Work) -> None:
    visitor = Site().visitor()
    await do(visitor, lambda session: session.update(a=1, b=[2]))
    result, reply = await run(visitor, read)
    assert result == read({"a": 1, "b": [2]})
    assert type(result) is type(read({"a": 1, "b": [2]}))
    assert (reply.headers.getall("vary"), reply.headers.getall("cache-control"), reply.cookies) == (["Cookie"], ["no-store"], [])


CHANGES: dict[str, Work] = {
    "[]=": lambda session: session.__setitem__("a", 2),
    "del": lambda session: session.__delitem__("a"),
    "pop": lambda session: session.pop("a"),
    "pop of a missing key": lambda session: session.pop("x", 0),
    "popitem": lambda session: session.popitem(),
    "setdefault": lambda session: session.setdefault("c", 3),
    "setdefault of a key that exists": lambda session: session.setdefault("a", 3),
    "update": lambda session: session.update({"c": 3}),
    "update by names": lambda session: session.update(c=3),
    "update by pairs": lambda session: session.update([("c", 3)]),
    "|=": lambda session: session.__ior__({"c": 3}),
    "clear": lambda session: session.clear(),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_every_change_is_written(change: Work) -> None:
    visitor = Site().visitor()
    await do(visitor, lambda session: session.update(a=1, b=[2]))
    expected: dict[str, Any] = {"a": 1, "b": [2]}
    assert await do(visitor, change) == change(expected)
    assert await everything(visitor) == expected


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_every_change_after_the_response_raises(change: Work) -> None:
    visitor = Site().visitor()
    await do(visitor, lambda session: session.update(a=1, b=[2]))
    kept = await do(visitor, lambda session: session)
    with pytest.raises(SessionClosed):
        change(kept)
    assert dict(kept) == {"a": 1, "b": [2]}
    assert await everything(visitor) == {"a": 1, "b": [2]}


def test_no_method_of_dict_is_forgotten() -> None:
    """A new version of Python may add a method, which would neither count as a use nor raise after the response."""
    from gaman_session._session_dict import SessionDict

    passive = {
        *("__class_getitem__", "__delattr__", "__dir__", "__format__", "__getattribute__", "__getstate__", "__hash__"),
        *("__init__", "__init_subclass__", "__new__", "__reduce_ex__", "__setattr__", "__sizeof__", "__str__", "__subclasshook__"),
        # Without an order, dicts refuse these.
        *("__ge__", "__gt__", "__le__", "__lt__", "__class__"),
    }
    assert {name for name in dir(dict) if name not in vars(SessionDict)} <= passive


async def test_the_attributes_of_starlettes_session_exist() -> None:
    driver = Recording()
    visitor = Site(driver).visitor()
    await do(visitor, lambda session: session.update(cart=[]))
    driver.events.clear()

    def work(session: Any) -> Any:
        seen = [(session.accessed, session.modified)]
        session["cart"].append("apple")
        session.mark_modified()
        return [*seen, (session.accessed, session.modified)]

    assert await do(visitor, work) == [(True, False), (True, True)]
    kept: Any = await do(visitor, lambda session: session)
    with pytest.raises(SessionClosed):
        kept.mark_modified()
    assert kept == {"cart": ["apple"]}


@pytest.mark.parametrize("encode", [json.dumps, msgspec.json.encode], ids=["json", "msgspec"])
async def test_a_read_that_calls_no_method_of_the_dict_counts_as_a_use(encode: Work) -> None:
    # json encodes an empty dict without a call, and msgspec every dict.
    visitor = Site().visitor()
    for _ in range(2):
        _, reply = await run(visitor, encode)
        assert (reply.headers.getall("vary"), reply.headers.getall("cache-control")) == (["Cookie"], ["no-store"])
        await do(visitor, lambda session: session.update(a=1))


async def test_an_error_of_a_dict_is_a_dicts() -> None:
    visitor = Site().visitor()

    def work(session: dict[str, Any]) -> None:
        with pytest.raises(KeyError):
            session["x"]
        with pytest.raises(KeyError):
            del session["x"]
        with pytest.raises(KeyError):
            session.pop("x")
        with pytest.raises(KeyError):
            session.popitem()
        with pytest.raises(TypeError):
            hash(session)
        assert isinstance(session, dict)
        assert isinstance(session, Mapping)

    await do(visitor, work)


# --- what is written


async def test_nested_changes_are_written_and_other_keys_are_not() -> None:
    driver = Recording()
    writes: list[Any] = []
    apply = driver.apply

    async def noting(id: str, sets: Any, deletes: Any, **options: Any) -> Any:
        writes.append((sorted(sets), sorted(deletes)))
        return await apply(id, sets, deletes, **options)

    driver.apply = noting  # type: ignore[method-assign]  # calls are noted
    visitor = Site(driver).visitor()
    await do(visitor, lambda session: session.update(cart={"items": []}, user=1, other=[{}]))
    await do(visitor, lambda session: session["cart"]["items"].append("apple"))
    await do(visitor, lambda session: session["other"][0].update(deep=[1]))
    await do(visitor, lambda session: session.update(user=1))
    await do(visitor, lambda session: (session.pop("user"), session["cart"]["items"].clear()))
    assert writes == [(["cart"], []), (["other"], []), (["cart"], ["user"])]
    assert await everything(visitor) == {"cart": {"items": []}, "other": [{"deep": [1]}]}


ALMOST_EQUAL: list[tuple[Any, Any]] = [(1, True), (0, False), (1, 1.0), ("1", 1), (None, False), ([1], [1.0])]


@pytest.mark.parametrize(("before", "after"), ALMOST_EQUAL, ids=repr)
async def test_a_value_that_is_equal_and_of_another_type_is_a_change(before: Any, after: Any) -> None:
    visitor = Site().visitor()
    await do(visitor, lambda session: session.update(key=before))
    await do(visitor, lambda session: session.update(key=after))
    assert repr((await everything(visitor))["key"]) == repr(after)


class Versioned:
    """A serializer whose newer version encodes the same value as other bytes."""

    version = b"1"

    def encode(self, value: Any) -> bytes:
        return self.version + json.dumps(value).encode()

    def decode(self, data: bytes, type: Any) -> Any:
        return json.loads(data[1:])


async def test_values_of_an_older_serializer_are_not_written_again() -> None:
    driver, serializer = Recording(), Versioned()
    visitor = Site(driver, serializer=serializer).visitor()
    await do(visitor, lambda session: session.update(cart=[1], user=1))
    serializer.version = b"2"
    driver.events.clear()
    assert await everything(visitor) == {"cart": [1], "user": 1}
    assert driver.events == ["load"]
    await do(visitor, lambda session: session["cart"].append(2))
    assert driver.events == ["load", "load", "apply"]
    assert await everything(visitor) == {"cart": [1, 2], "user": 1}


@pytest.mark.parametrize("value", [object(), {1, object()}, lambda: None, float], ids=["object", "set", "function", "class"])
async def test_a_value_that_cannot_be_encoded_is_500_and_changes_nothing(value: Any, caplog: pytest.LogCaptureFixture) -> None:
    visitor = Site().visitor()
    await do(visitor, lambda session: session.update(a=1))
    _, reply = await run(visitor, lambda session: session.update(a=2, b=value))
    assert (reply.status, reply.text, reply.error, reply.cookies) == (500, "Internal Server Error", None, [])
    [line] = _logged(caplog)
    assert line.startswith("GET '/run' answered 500: SessionSerializationError: the session can't keep 'b'")
    assert await everything(visitor) == {"a": 1}


@pytest.mark.parametrize("key", [1, None, b"key", ("a", "b")], ids=repr)
async def test_a_key_that_is_not_text_is_500_and_the_error_names_it(key: Any, caplog: pytest.LogCaptureFixture) -> None:
    visitor = Site().visitor()
    await do(visitor, lambda session: session.update(a=1))
    _, reply = await run(visitor, lambda session: session.update({key: 1, "b": 2}))
    assert (reply.status, reply.text, reply.error, reply.cookies) == (500, "Internal Server Error", None, [])
    [line] = _logged(caplog)
    assert line.startswith(f"GET '/run' answered 500: SessionUseError: a session's key is a str, not {key!r}")
    assert await everything(visitor) == {"a": 1}


async def test_a_deliberate_error_with_changes_that_cannot_be_encoded_is_500(caplog: pytest.LogCaptureFixture) -> None:
    def work(session: dict[str, Any]) -> None:
        session["a"] = object()
        raise HTTPError(403)

    visitor = Site().visitor()
    await do(visitor, lambda session: session.update(a=1))
    _, reply = await run(visitor, work)
    assert (reply.status, reply.error) == (500, None)
    assert _logged(caplog)[0].startswith("GET '/run' answered 500: SessionSerializationError: the session can't keep 'a'")
    assert await everything(visitor) == {"a": 1}


async def test_a_regenerate_that_gives_up_is_500(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    class Contended(MemoryDriver):
        async def rename(self, *_: Any, **__: Any) -> Outcome:
            return Outcome.CONFLICT

    async def work(request: Request) -> str:
        request.session["a"] = 1
        await (await get_session(request)).regenerate()
        return "renamed"

    visitor = Visitor(starlette(sessions_in(Contended()), as_dict=True, work=answering(work)))
    assert (await visitor.get("/work")).status == 200
    reply = await visitor.get("/work")
    assert (reply.status, reply.text, reply.error) == (500, "Internal Server Error", None)
    assert _logged(caplog)[0].startswith("GET '/work' answered 500: SessionConflict: regenerate() met other requests' changes")


def _logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == "gaman" and record.levelno == logging.ERROR]


async def test_a_login_cannot_be_set_in_the_dict(caplog: pytest.LogCaptureFixture) -> None:
    visitor = Site().visitor()
    await do(visitor, lambda session: session.update(a=1))
    _, reply = await run(visitor, lambda session: session.update({LOGIN: "user:1", "b": 2}))
    assert (reply.status, reply.error, reply.cookies) == (500, None, [])
    assert "only login() writes 'gaman.login'" in _logged(caplog)[0]
    assert await everything(visitor) == {"a": 1}


@pytest.mark.parametrize("serializer", ["msgpack", "json"])
@pytest.mark.parametrize("driver", ["cookies", "memory"])
async def test_a_login_is_not_in_the_dict_and_outlives_its_keys(
    driver: str, serializer: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def log_in(request: Request) -> str:
        request.session["cart"] = ["tea"]
        await (await get_session(request)).login("user:1")
        return "in"

    async def read(request: Request) -> Any:
        return [dict(request.session), await (await get_session(request)).owner()]

    async def empty(request: Request) -> str:
        request.session.pop("cart")
        return "emptied"

    async def log_out(request: Request) -> str:
        request.session.clear()
        return "out"

    handlers = {"login": log_in, "read": read, "empty": empty, "logout": log_out}
    sessions = sessions_in({"type": driver}, serializer=serializer)
    visitor = Visitor(starlette(sessions, as_dict=True, **{name: answering(work) for name, work in handlers.items()}))
    found: list[Any] = []
    for target in ("/login", "/empty", "/logout"):
        await visitor.get(target)
        found.append((await visitor.get("/read")).json)
    assert found == [[{"cart": ["tea"]}, "user:1"], [{}, "user:1"], [{}, None]]
    assert caplog.messages == []


async def test_a_dict_that_is_too_large_is_413_and_changes_nothing() -> None:
    visitor = Site(max_size=100).visitor()
    await do(visitor, lambda session: session.update(a=1))
    _, reply = await run(visitor, lambda session: session.update(a=2, b="x" * 200))
    assert (reply.status, reply.text, reply.cookies) == (413, "the session would be larger than 100 bytes", [])
    assert await everything(visitor) == {"a": 1}


async def test_damaged_values_are_left_out_and_not_deleted() -> None:
    driver = Sealing()
    visitor = Site(driver).visitor()
    await do(visitor, lambda session: session.update(good=1, bad=2))
    (record,) = driver._sessions.values()
    intact, record.fields["bad"] = record.fields["bad"], b"damaged"
    assert await everything(visitor) == {"good": 1}
    await do(visitor, lambda session: session.update(good=2))
    assert record.fields["bad"] == b"damaged"
    record.fields["bad"] = intact
    assert await everything(visitor) == {"good": 2, "bad": 2}


async def test_a_response_of_500_writes_nothing() -> None:
    visitor = Site().visitor()
    await do(visitor, lambda session: session.update(a=1))
    for status in (500, 503):
        _, reply = await run(visitor, lambda session: session.update(a=object()), response=Response(status_code=status))
        assert (reply.status, reply.error, reply.cookies) == (status, None, [])
    assert await everything(visitor) == {"a": 1}


@pytest.mark.parametrize("status", [200, 400, 500])
async def test_a_change_inside_a_value_in_a_stream_is_logged_as_lost(status: int, caplog: pytest.LogCaptureFixture) -> None:
    def stream(session: dict[str, Any]) -> AsyncIterator[str]:
        async def chunks() -> AsyncIterator[str]:
            yield "begun"
            session["cart"].append("late")

        return chunks()

    async def handle(request: Request) -> Response:
        return StreamingResponse(stream(request.session), status)

    async def begin(request: Request) -> str:
        request.session["cart"] = []
        return "begun"

    async def read(request: Request) -> Any:
        return request.session

    app = starlette(sessions_in(), as_dict=True, begin=answering(begin), stream=handle, read=answering(read))
    visitor = Visitor(app)
    await visitor.get("/begin")
    assert (await visitor.get("/stream")).text == "begun"
    # A response of 500 writes no changes of its request at all.
    lost = "'/stream' lost changes of its session; change `request.session` before the response begins"
    assert _logged(caplog) == ([] if status == 500 else [lost])
    assert (await visitor.get("/read")).json == {"cart": []}


async def test_no_change_is_logged_as_lost_where_none_is(caplog: pytest.LogCaptureFixture) -> None:
    def fail(session: dict[str, Any]) -> None:
        session["cart"].append(1)
        raise ValueError("a bug")

    serializer = Versioned()
    visitor = Site(serializer=serializer).visitor()
    await do(visitor, lambda session: session.update(cart=[1], user=1))
    serializer.version = b"2"
    await everything(visitor)
    await do(visitor, lambda session: session["cart"].append(2))
    await run(visitor, fail)
    await run(visitor, lambda session: session["cart"].append(3), response=Response(status_code=503))
    await do(visitor, lambda session: session.clear())
    assert _logged(caplog) == []


async def test_an_empty_session_is_neither_begun_nor_ended() -> None:
    driver = Recording()
    visitor = Site(driver).visitor()
    works: list[Work] = [
        dict,
        lambda session: session.clear(),
        lambda session: session.pop("x", None),
        lambda session: session.update(),
    ]
    for work in works:
        _, reply = await run(visitor, work)
        assert reply.cookies == []
    assert driver.events == ["open"]


async def test_a_forged_cookie_is_an_empty_dict() -> None:
    site = Site()
    visitor = site.visitor()
    visitor.cookies["gaman"] = "forged"
    assert await everything(visitor) == {}


async def test_values_come_back_as_the_serializer_makes_them() -> None:
    class Point(msgspec.Struct):
        x: int

    visitor = Site().visitor()
    await do(visitor, lambda session: session.update(octets=b"\0", point=Point(1), many=(1, 2)))
    assert await everything(visitor) == {"octets": b"\0", "point": {"x": 1}, "many": [1, 2]}


# --- beside Starlette's middleware and starsessions


def _starlettes(app: Any) -> Any:
    return StarlettesMiddleware(app, "a secret of the tests that is long enough")


def _starsessions(app: Any) -> Any:
    return StarsessionsMiddleware(SessionAutoloadMiddleware(app), InMemoryStore(), lifetime=3600, cookie_https_only=False)


def _ours(app: Any) -> Any:
    from gaman.session.asgi import SessionMiddleware

    return SessionMiddleware(app, sessions=sessions_in(), as_dict=True)


def _peers_site(middleware: Callable[[Any], Any]) -> Visitor:
    return Visitor(middleware(Starlette(routes=[Route("/run", Site._run)])))


each_middleware = pytest.mark.parametrize("middleware", [_starlettes, _starsessions, _ours])


@each_middleware
async def test_of_eight_parallel_writes_only_ours_keeps_all(middleware: Any) -> None:
    visitor = _peers_site(middleware)
    await do(visitor, lambda session: session.update(start=0))
    gate, replies = asyncio.Barrier(8), []

    async def write(session: dict[str, Any], number: int) -> None:
        await gate.wait()
        session[f"key {number}"] = number

    browsers = [visitor.again() for _ in range(8)]
    replies = await asyncio.gather(
        # mypy infers no type for a lambda with a default.
        *(run(browser, lambda session, n=n: write(session, n)) for n, browser in enumerate(browsers))  # type: ignore[misc]
    )
    for _, reply in replies:
        visitor.take(reply.cookies)
    written = [key for key in await everything(visitor) if key != "start"]
    assert len(written) == (8 if middleware is _ours else 1)


@each_middleware
async def test_a_nested_append_is_kept_by_starsessions_and_by_ours(middleware: Any) -> None:
    visitor = _peers_site(middleware)
    await do(visitor, lambda session: session.update(cart=[]))
    await do(visitor, lambda session: session["cart"].append("apple"))
    assert await everything(visitor) == {"cart": [] if middleware is _starlettes else ["apple"]}


@each_middleware
async def test_an_old_cookie_is_logged_out_with_ours_only_when_a_late_writer_meets_the_logout(middleware: Any) -> None:
    visitor = _peers_site(middleware)
    await do(visitor, lambda session: session.update(user=1))
    thief, late, entered, leave = visitor.again(), visitor.again(), asyncio.Event(), asyncio.Event()

    async def write(session: dict[str, Any]) -> None:
        session["seen"] = True
        entered.set()
        await leave.wait()

    writer = asyncio.create_task(do(late, write))
    await entered.wait()
    await do(visitor, lambda session: session.clear())
    leave.set()
    await writer
    assert ("user" in await everything(thief)) == (middleware is not _ours)
