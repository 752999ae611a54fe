"""Any sequence of calls, in any number of requests, leaves what a dict would hold: hypothesis looks for one that does not."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

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
    """Do to a dict what *call* does to a session, and return what that returns."""
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


class Sessions(RuleBasedStateMachine):
    driver = ""

    @initialize()
    def begin(self) -> None:
        self.runner = asyncio.Runner()
        self.site = Site(DRIVERS[self.driver](), Clock(), idle_timeout=600, max_age=3600)
        self.runner.run(self.site.app.load())
        self.browser = self.site.browser()
        self.model: dict[str, Any] = {}
        self.stolen: str | None = None

    def teardown(self) -> None:
        if hasattr(self, "runner"):
            self.runner.run(self.site.app.shutdown())
            self.runner.close()

    @rule(calls=st.lists(CALLS, max_size=6))
    def a_request(self, calls: list[Call]) -> None:
        expected = [_expect(self.model, call) for call in calls]
        reply = self.runner.run(self.browser.request(_work(calls, expected)))
        assert reply.error is None
        assert reply.status == 200

    @rule(calls=st.lists(CALLS.filter(lambda call: call[0] not in ("save", "update")), max_size=4))
    def a_request_that_fails(self, calls: list[Call]) -> None:
        scratch = dict(self.model)
        expected = [_expect(scratch, call) for call in calls]
        reply = self.runner.run(self.browser.request(_work(calls, expected), response=Response("sorry", 500)))
        assert reply.set_cookie is None

    @rule(seconds=st.sampled_from([1, 59, 61, 599]))
    def time_goes_by_and_the_visitor_comes_back(self, seconds: int) -> None:
        self.site.clock.now += seconds
        found = self.runner.run(self.browser.all())
        assert found in (self.model, {})
        if found != self.model:
            # Only the absolute limit ends a session that is in use.
            self.model = {}

    @rule()
    def the_visitor_stays_away(self) -> None:
        self.site.clock.now += 600
        self.model = {}

    @invariant()
    def the_session_holds_what_the_dict_holds(self) -> None:
        if hasattr(self, "browser"):
            assert self.runner.run(Browser(self.site, self.browser.token).all()) == self.model


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_session_is_a_dict(driver: str) -> None:
    machine: Any = type("Machine", (Sessions,), {"driver": driver})
    run_state_machine_as_test(machine, settings=settings(max_examples=60, stateful_step_count=12, deadline=None))
