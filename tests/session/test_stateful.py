"""Any sequence of calls, in any number of requests, has the effect that it has on a dict; hypothesis looks for a counterexample."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from secrets import token_hex
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule, run_state_machine_as_test

from gaman import Response
from gaman.session import Session
from tests.session.sites import DRIVERS, Browser, Clock, Site

KEYS = st.sampled_from(["", "a", "b", "a.b", "$x", "\0", "é"])
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False)
    | st.text(max_size=8)
    | st.binary(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)

OWNERS = st.sampled_from(["me", "you"])
Call = tuple[str, tuple[Any, ...]]
CALLS: st.SearchStrategy[Call] = st.one_of(
    st.tuples(st.just("set"), st.tuples(KEYS, VALUES)),
    st.tuples(st.just("delete"), st.tuples(KEYS)),
    st.tuples(st.just("pop"), st.tuples(KEYS)),
    st.tuples(st.just("get"), st.tuples(KEYS)),
    st.tuples(st.just("has"), st.tuples(KEYS)),
    st.tuples(st.just("all"), st.tuples()),
    st.tuples(st.just("clear"), st.tuples()),
    st.tuples(st.just("save"), st.tuples()),
    st.tuples(st.just("regenerate"), st.tuples()),
    st.tuples(st.just("update"), st.tuples(KEYS)),
)


def _expect(model: dict[str, Any], call: Call) -> Any:
    """Apply *call* to a dict as if it were a session, and return the expected result."""
    name, arguments = call
    if name == "set":
        model[arguments[0]] = arguments[1]
    elif name == "delete":
        model.pop(arguments[0], None)
    elif name == "pop":
        return model.pop(arguments[0], None)
    elif name == "get":
        return model.get(arguments[0])
    elif name == "has":
        return arguments[0] in model
    elif name == "all":
        return dict(model)
    elif name == "clear":
        model.clear()
    elif name == "update":
        model[arguments[0]] = [model.get(arguments[0])]
        return model[arguments[0]]
    return None


def _wrap(before: Any) -> list[Any]:
    return [before]


def _work(calls: list[Call], expected: list[Any]) -> Callable[[Session], Awaitable[None]]:
    async def work(session: Session) -> None:
        for (name, arguments), value in zip(calls, expected, strict=True):
            more = (_wrap,) if name == "update" else ()
            assert await getattr(session, name)(*arguments, *more) == value

    return work


async def _handle(session: Session) -> str | None:
    return session.id


class Sessions(RuleBasedStateMachine):
    driver = ""

    @initialize()
    def begin(self) -> None:
        self.runner = asyncio.Runner()
        self.site = Site(DRIVERS[self.driver](), Clock(), idle_timeout=600, max_age=3600, max_size=10_000)
        self.runner.run(self.site.app.load())
        self.browser = self.site.browser()
        self.model: dict[str, Any] = {}
        self.owner: str | None = None
        # Examples share a store.
        self.names = {name: f"{name}:{token_hex(8)}" for name in ("me", "you")}

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.runner.run(self.site.app.shutdown())
            self.runner.close()

    @rule(calls=st.lists(CALLS, max_size=6))
    def a_request(self, calls: list[Call]) -> None:
        expected: list[Any] = []
        for call in calls:
            if call[0] in ("save", "update"):
                self._disown_the_empty()
            expected.append(_expect(self.model, call))
            if call[0] == "clear":
                self.owner = None
        self._disown_the_empty()
        reply = self.runner.run(self.browser.request(_work(calls, expected)))
        assert reply.error is None
        assert reply.status == 200

    def _disown_the_empty(self) -> None:
        """A session that is empty at a flush ends, and has no owner then."""
        if not self.model:
            self.owner = None

    @precondition(lambda self: "cookies" not in self.driver)
    @rule(owner=OWNERS, renews=st.booleans())
    def a_login(self, owner: str, renews: bool) -> None:
        async def work(session: Session) -> None:
            if renews:
                await session.regenerate()
            await session.set_owner(self.names[owner])
            await session.set("a", owner)

        self.runner.run(self.browser.do(work))
        self.model["a"], self.owner = owner, owner

    @precondition(lambda self: "cookies" not in self.driver)
    @rule()
    def the_session_is_untied(self) -> None:
        async def work(session: Session) -> None:
            await session.set_owner(None)

        self.runner.run(self.browser.do(work))
        self.owner = None

    @precondition(lambda self: "cookies" not in self.driver)
    @rule(owner=OWNERS, keeps=st.booleans())
    def all_of_an_owners_sessions_end(self, owner: str, keeps: bool) -> None:
        async def work(session: Session) -> int:
            return await self.site.sessions.end_all(self.names[owner], keep=session if keeps else None)

        is_ended = self.owner == owner and not keeps
        assert self.runner.run(self.browser.do(work)) == is_ended
        if is_ended:
            self._forget()

    @precondition(lambda self: self.driver != "cookies")
    @rule()
    def the_session_is_ended_by_its_handle(self) -> None:
        handle = self.runner.run(self.browser.do(_handle))
        assert self.runner.run(self.site.sessions.end(handle)) == bool(self.model)
        if self.model:
            self._forget()

    def _forget(self) -> None:
        """Check that a session that was ended elsewhere is empty, and drop its cookie."""
        assert self.runner.run(self.browser.all()) == {}
        self.browser.token, self.model, self.owner = None, {}, None

    @rule(calls=st.lists(CALLS.filter(lambda call: call[0] not in ("save", "update")), max_size=4))
    def a_request_that_fails(self, calls: list[Call]) -> None:
        scratch = dict(self.model)
        expected = [_expect(scratch, call) for call in calls]
        reply = self.runner.run(self.browser.request(_work(calls, expected), response=Response("sorry", 500)))
        assert reply.set_cookie is None

    @precondition(lambda self: "cookies" not in self.driver)
    @rule(calls=st.lists(CALLS.filter(lambda call: call[0] not in ("save", "update", "clear")), max_size=4), is_read=st.booleans())
    def a_request_that_takes_the_session_beyond_its_size(self, calls: list[Call], is_read: bool) -> None:
        scratch = dict(self.model)
        expected = [_expect(scratch, call) for call in calls]

        async def work(session: Session) -> None:
            if is_read:
                await session.all()
            await _work(calls, expected)(session)
            # Either of these would be allowed without the other.
            await session.set("x", "x" * 6000)
            await session.set("y", "y" * 6000)

        reply = self.runner.run(self.browser.request(work))
        assert (reply.status, reply.set_cookie) == (413, None)

    @rule(seconds=st.sampled_from([1, 59, 61, 599]))
    def time_goes_by_and_the_visitor_comes_back(self, seconds: int) -> None:
        self.site.clock.now += seconds
        found = self.runner.run(self.browser.all())
        assert found in (self.model, {})
        if found != self.model:
            # Only the absolute limit ends a session that is in use.
            self.model, self.owner = {}, None

    @rule()
    def the_visitor_stays_away(self) -> None:
        self.site.clock.now += 600
        self.model, self.owner = {}, None

    @invariant()
    def the_session_holds_what_the_dict_holds(self) -> None:
        if hasattr(self, "browser"):
            assert self.runner.run(Browser(self.site, self.browser.token).all()) == self.model

    @precondition(lambda self: "cookies" not in self.driver)
    @invariant()
    def the_session_is_listed_as_its_owners(self) -> None:
        if hasattr(self, "browser"):
            handle = self.runner.run(self.browser.do(_handle))
            for owner, name in self.names.items():
                listed = self.runner.run(self.site.sessions.list(name))
                assert [each.handle for each in listed] == ([handle] if owner == self.owner else [])


@pytest.mark.parametrize("driver", DRIVERS)
def test_any_calls_have_the_effect_that_they_have_on_a_dict(driver: str) -> None:
    DRIVERS[driver]()  # starts its server, which isn't part of the first example
    machine: Any = type("Machine", (Sessions,), {"driver": driver})
    run_state_machine_as_test(machine, settings=settings(max_examples=settings().max_examples // 2, stateful_step_count=12))
