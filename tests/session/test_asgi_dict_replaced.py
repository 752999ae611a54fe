"""A dict that replaces `request.session`, and the calls of get_session() around it: the last change wins."""

from __future__ import annotations

from collections.abc import Callable
from inspect import isawaitable
from typing import Any

import litestar
import pytest
from litestar.middleware import DefineMiddleware
from starlette.websockets import WebSocket

from gaman import HTTPError
from gaman.session import Session, SessionIntegration, SessionUseError
from gaman.session.asgi import SessionMiddleware, get_session
from tests.session.visitors import Visitor, answering, sessions_in, starlette

pytestmark = pytest.mark.anyio

Both = Callable[[Any, Session], Any]
"""What a handler does with its request and the session. It may be a coroutine function."""


def _replaced_by(**values: Any) -> Both:
    def work(request: Any, current: Session) -> None:
        request.scope["session"] = values

    return work


async def _keep_and_add(request: Any, current: Session) -> None:
    request.scope["session"] = {**request.scope["session"], "seen": 1}


async def _unset(request: Any, current: Session) -> None:
    request.scope["session"] = None


def _clear_session(request: Any, current: Session) -> None:
    """Clear the session by Litestar's own method, if there is one."""
    request.clear_session() if hasattr(request, "clear_session") else request.scope.update(session={})


async def _held(request: Any, current: Session) -> None:
    values = request.scope["session"] = {"a": 2, "gone": 1}
    current.set("b", 2)
    values["c"] = 3
    del values["gone"]


async def _held_and_set(request: Any, current: Session) -> None:
    values: dict[str, Any] = {"a": [2], "b": 1}
    request.scope["session"] = values
    current.set("a", [3])
    values["b"] = 2
    current.set("b", 3)
    values["a"].append(4)


async def _held_before_the_end(request: Any, current: Session) -> None:
    values = request.scope["session"] = {"a": 2}
    await current.logout()
    values["a"] = 3


def _dict_held(request: Any, current: Session) -> None:
    values = request.scope["session"]
    request.scope["session"] = {"a": 2}
    values["b"] = 2


def _shown(request: Any, current: Session) -> None:
    request.scope["session"] = {"a": 2}
    current.set("b", 2)
    assert dict(request.scope["session"]) == {"a": 2, "b": 2}


def _set(**values: Any) -> Both:
    def work(request: Any, current: Session) -> None:
        for key, value in values.items():
            current.set(key, value)

    return work


def _add(**values: Any) -> Both:
    return lambda request, current: request.scope["session"].update(values)


_log_in: Both = lambda request, current: current.login("user:1")  # noqa: E731
_log_in_another: Both = lambda request, current: current.login("user:2")  # noqa: E731
_log_in_fresh: Both = lambda request, current: current.login("user:1", fresh=True)  # noqa: E731
_log_out: Both = lambda request, current: current.logout()  # noqa: E731
_confirm: Both = lambda request, current: current.confirm()  # noqa: E731
_regenerate: Both = lambda request, current: current.regenerate()  # noqa: E731
_save: Both = lambda request, current: current.save()  # noqa: E731
_empty = _replaced_by()

_READS: list[Both] = [
    lambda request, current: current.get("a"),
    lambda request, current: current.has("a"),
    lambda request, current: current.all(),
    lambda request, current: current.is_new,
    lambda request, current: current.created_at,
    lambda request, current: current.expires_at,
]

BESIDE: dict[str, tuple[list[Both], str | None, dict[str, Any]]] = {
    "emptied, then login": ([_empty, _log_in], "user:1", {}),
    "None, then login": ([_unset, _log_in], "user:1", {}),
    "login, then emptied": ([_log_in, _empty], None, {}),
    "emptied, then login of another owner": ([_empty, _log_in_another], "user:2", {}),
    "emptied, then login and the dict": ([_empty, _log_in, _add(b=2)], "user:1", {"b": 2}),
    "replaced, then login": ([_replaced_by(b=2), _log_in], "user:1", {"b": 2}),
    "login, then replaced": ([_log_in, _replaced_by(b=2)], "user:1", {"b": 2}),
    "added to, then login of another owner": ([_keep_and_add, _log_in_another], "user:2", {}),
    "the dict, then login of another owner": ([_add(b=2), _log_in_another], "user:2", {}),
    "login of another owner, then replaced": ([_log_in_another, _replaced_by(b=2)], "user:2", {"b": 2}),
    "login of another owner, then added to": ([_log_in_another, _keep_and_add], "user:2", {"seen": 1}),
    "added to, then a fresh login": ([_keep_and_add, _log_in_fresh], "user:1", {"seen": 1}),
    "the dict, then a fresh login": ([_add(b=2), _log_in_fresh], "user:1", {"b": 2}),
    "set and the dict, then a fresh login": ([_set(b=2, c=2), _add(b=3), _log_in_fresh], "user:1", {"b": 3, "c": 2}),
    "the dict and set, then a fresh login": ([_add(b=3, c=3), _set(b=2), _log_in_fresh], "user:1", {"b": 2, "c": 3}),
    "replaced, then logout": ([_replaced_by(user="alice"), _log_out], None, {}),
    "logout, then replaced": ([_log_out, _replaced_by(flash=1)], None, {"flash": 1}),
    "emptied, then logout": ([_empty, _log_out], None, {}),
    "replaced, then set": ([_replaced_by(a=2), _set(b=2)], "user:1", {"a": 2, "b": 2}),
    "replaced, then set of the same key": ([_replaced_by(b=1), _set(b=2)], "user:1", {"b": 2}),
    "set, then replaced": ([_set(b=2), _replaced_by(a=2)], "user:1", {"a": 2}),
    "set, then added to": ([_set(b=2), _keep_and_add], "user:1", {"a": 1, "b": 2, "seen": 1}),
    "emptied, then set": ([_empty, _set(b=2)], None, {"b": 2}),
    "set, then emptied": ([_set(b=2), _empty], None, {}),
    "replaced, then delete": ([_replaced_by(a=2, b=2), lambda request, current: current.delete("a")], "user:1", {"b": 2}),
    "replaced, then pop": ([_replaced_by(a=2, b=2), lambda request, current: current.pop("a")], "user:1", {"b": 2}),
    "replaced, then update": (
        [_replaced_by(b=2), lambda request, current: current.update("n", lambda n: n + 1, 0)],
        "user:1",
        {"b": 2, "n": 1},
    ),
    "replaced, then confirm": ([_replaced_by(b=2), _confirm], "user:1", {"b": 2}),
    "confirm, then replaced": ([_confirm, _replaced_by(b=2)], "user:1", {"b": 2}),
    "confirm, then emptied": ([_confirm, _empty], None, {}),
    "replaced, then regenerate": ([_replaced_by(b=2), _regenerate], "user:1", {"b": 2}),
    "emptied, then regenerate": ([_empty, _regenerate], None, {}),
    "replaced, then save": ([_replaced_by(b=2), _save], "user:1", {"b": 2}),
    "emptied, then save": ([_empty, _save], None, {}),
    "emptied, then save and set": ([_empty, _save, _set(b=2)], None, {"b": 2}),
    "replaced twice": ([_replaced_by(b=2), _set(c=2), _replaced_by(d=2), _set(e=2)], "user:1", {"d": 2, "e": 2}),
    "what replaced it, after set": ([_held], "user:1", {"a": 2, "b": 2, "c": 3}),
    "what replaced it, by turns with set": ([_held_and_set], "user:1", {"a": [2, 4], "b": 3}),
    "what replaced it, after logout": ([_held_before_the_end], None, {}),
    "the dict itself, after it was replaced": ([_dict_held], "user:1", {"a": 2, "b": 2}),
    "the dict shows both": ([_shown], "user:1", {"a": 2, "b": 2}),
}


async def _answer_beside(request: Any) -> Any:
    current = await get_session(request)
    for work in request.scope["works"]:
        result = work(request, current)
        if isawaitable(result):
            await result
    return [await current.owner(), await current.all()]


def _litestar_beside(sessions: SessionIntegration) -> Any:
    @litestar.get("/beside")
    async def beside(request: litestar.Request[Any, Any, Any]) -> Any:
        return await _answer_beside(request)

    middleware = [DefineMiddleware(SessionMiddleware, sessions=sessions, as_dict=True)]
    return litestar.Litestar([beside], middleware=middleware, openapi_config=None, logging_config=None)


def _starlette_beside(sessions: SessionIntegration) -> Any:
    return starlette(sessions, as_dict=True, beside=answering(_answer_beside))


each_beside = pytest.mark.parametrize("make", [_starlette_beside, _litestar_beside], ids=["starlette", "litestar"])
each_driver = pytest.mark.parametrize("driver", ["memory", "cookies", "ended"])
DRIVERS: dict[str, dict[str, Any]] = {
    "memory": {"type": "memory"},
    "cookies": {"type": "cookies"},
    "ended": {"type": "cookies", "ended": {"type": "memory"}},
}


async def _beside(visitor: Visitor, *works: Both, status: int = 200) -> Any:
    reply = await visitor.get("/beside", works=works)
    assert (reply.status, reply.error) == (status, None), reply.text
    return reply.json if status == 200 else None


async def _logged_in(make: Callable[[SessionIntegration], Any], driver: str) -> Visitor:
    """Return a visitor that user:1 has logged in."""
    visitor = Visitor(make(sessions_in(DRIVERS[driver])))
    await _beside(visitor, _log_in, _set(a=1))
    return visitor


@each_beside
@each_driver
@pytest.mark.parametrize("name", BESIDE)
async def test_the_last_change_wins_by_what_replaces_the_dict_or_by_the_session(make: Any, driver: str, name: str) -> None:
    works, owner, values = BESIDE[name]
    visitor = await _logged_in(make, driver)
    await _beside(visitor, *works)
    assert await _beside(visitor) == [owner, values]


@each_driver
async def test_a_session_that_a_replaced_dict_ends_cannot_be_confirmed(driver: str) -> None:
    visitor = await _logged_in(_starlette_beside, driver)
    await _beside(visitor, _empty, _confirm, status=401)
    assert await _beside(visitor) == [None, {}]


@each_driver
async def test_the_login_of_a_session_that_a_replaced_dict_ends_is_not_read_any_more(driver: str) -> None:
    visitor = await _logged_in(_starlette_beside, driver)
    found: list[Any] = []

    async def read(request: Any, current: Session) -> None:
        found.append(
            [await current.owner(), await current.is_fresh(60), current.authenticated_at, await (await get_session(request)).all()]
        )

    await _beside(visitor, read, _empty, read)
    assert [each[0] for each in found] == ["user:1", None]
    assert found[1] == [None, False, None, {}]


@each_beside
@each_driver
@pytest.mark.parametrize("end", [_empty, _unset, _clear_session], ids=["emptied", "None", "cleared"])
async def test_a_session_that_was_taken_before_a_replaced_dict_ends_it_reads_nothing_any_more(
    make: Any, driver: str, end: Both
) -> None:
    visitor = await _logged_in(make, driver)
    found: list[Any] = []

    async def read(request: Any, current: Session) -> None:
        found.append([current.is_new, current.created_at is None, current.expires_at is None])
        found.append([await current.get("a"), await current.get("a", type=int), await current.has("a"), await current.all()])

    # Each work gets the session that was taken before all of them, and each of these reads is once the first after the end.
    await _beside(visitor, read, end, read)
    assert found == [[False] * 3, [1, 1, True, {"a": 1}], [True] * 3, [None, None, False, {}]]
    ended: list[Any] = [None, False, {}, True]
    for first in _READS:
        found.clear()
        visitor = await _logged_in(make, driver)

        async def read_first(request: Any, current: Session, first: Both = first) -> None:
            result = first(request, current)
            found.append(await result if isawaitable(result) else result)

        await _beside(visitor, read_first, end, read_first)
        assert found[0] != found[1]
        assert found[1] in ended


@each_driver
async def test_a_csrf_token_after_a_replaced_dict_has_ended_the_session_is_one_of_the_new_session(driver: str) -> None:
    visitor = await _logged_in(_starlette_beside, driver)
    tokens: list[str] = []
    valid: list[bool] = []

    async def take(request: Any, current: Session) -> None:
        tokens.append(await current.csrf_token())

    async def check(request: Any, current: Session) -> None:
        valid.extend([await current.is_csrf_token(token) for token in tokens])

    await _beside(visitor, take, _empty, take)
    await _beside(visitor, check)
    assert valid == [False, True]


async def test_what_cannot_replace_the_dict_is_an_error_of_the_session() -> None:
    visitor = await _logged_in(_starlette_beside, "memory")
    found: list[str] = []

    async def fail(request: Any, current: Session) -> None:
        request.scope["session"] = [1]
        for call in (lambda: current.set("b", 2), lambda: get_session(request)):
            with pytest.raises(SessionUseError, match="replaced by a list") as raised:
                await call()
            found.append(str(raised.value))
        request.scope["session"] = {"a": 2}

    assert await _beside(visitor, fail) == ["user:1", {"a": 1}]
    assert len(found) == 2
    assert await _beside(visitor) == ["user:1", {"a": 2}]


async def test_a_request_that_fails_writes_nothing_of_a_replaced_dict_that_the_session_took_over() -> None:
    def fail(request: Any, current: Session) -> None:
        raise HTTPError(500)

    visitor = await _logged_in(_starlette_beside, "memory")
    await _beside(visitor, _empty, _set(b=2), fail, status=500)
    assert await _beside(visitor) == ["user:1", {"a": 1}]


async def test_what_replaces_the_dict_before_accept_is_taken_over_by_a_call_of_the_session() -> None:
    async def socket(websocket: WebSocket) -> None:
        websocket.scope["session"] = {}
        await (await get_session(websocket)).login("user:2")
        await websocket.accept()

    app = starlette(sessions_in(), as_dict=True, sockets={"socket": socket}, beside=answering(_answer_beside))
    visitor = Visitor(app)
    await _beside(visitor, _log_in, _set(a=1))
    async with visitor.connect("/socket") as opened:
        await opened.accepted()
    assert await _beside(visitor) == ["user:2", {}]
