"""A driver's method that is decorated with @reports() ends in time, and fails only with errors that name the action."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest

from gaman import ConfigError
from gaman.session import SessionStoreError
from gaman_session.drivers._reports import Reporter, reports
from gaman_session.drivers._time_limit import TimeLimit

pytestmark = pytest.mark.anyio

SECONDS = 0.05


class Refused(Exception):
    """An error of the store's library."""


class Store(Reporter):
    """A driver with one method, which does what the test says."""

    name = "test"

    def __init__(self) -> None:
        self._limit = TimeLimit(SECONDS)

    @reports("do its work")
    async def do(self, work: Callable[[], Awaitable[str]], *, then: str = "") -> str:
        """Return what *work* returns."""
        return await work() + then


class Explaining(Store):
    _failures = (Refused,)

    def _explain(self, error: Exception) -> tuple[str, Exception]:
        return "it is full", LookupError(f"explained: {error}")


async def wait_for_ever() -> str:
    await asyncio.Event().wait()
    raise AssertionError("never reached")


def raising(error: BaseException) -> Callable[[], Awaitable[str]]:
    async def work() -> str:
        raise error

    return work


async def response() -> str:
    return "done"


async def test_the_method_keeps_its_result_its_parameters_and_its_docstring() -> None:
    assert await Store().do(response) == "done"
    assert await Store().do(response, then="!") == "done!"
    assert (Store.do.__name__, Store.do.__doc__) == ("do", "Return what *work* returns.")


async def test_a_call_that_takes_too_long_ends_in_time_and_is_reported() -> None:
    began = time.monotonic()
    with pytest.raises(SessionStoreError) as raised:
        async with asyncio.timeout(20):
            await Store().do(wait_for_ever)
    assert time.monotonic() - began >= SECONDS
    assert isinstance(raised.value.__cause__, TimeoutError)


async def test_each_concurrent_call_is_bounded() -> None:
    store = Store()
    results = await asyncio.gather(*(store.do(wait_for_ever) for _ in range(10)), store.do(response), return_exceptions=True)
    assert [type(result) for result in results] == [SessionStoreError] * 10 + [str]


@pytest.mark.parametrize("error", [OSError("disk"), ConnectionResetError("peer"), TimeoutError("client")], ids=repr)
async def test_a_failure_of_the_store_is_reported_with_its_action_and_its_cause(error: OSError) -> None:
    with pytest.raises(SessionStoreError) as raised:
        await Store().do(raising(error))
    assert raised.value.__cause__ is error
    assert str(raised.value) == "the session store (test) could not do its work"
    assert (raised.value.driver, raised.value.action, raised.value.status) == ("test", "do its work", 503)


async def test_a_driver_names_the_errors_of_its_library_and_explains_them() -> None:
    with pytest.raises(SessionStoreError) as raised:
        await Explaining().do(raising(Refused("no room")))
    assert str(raised.value) == "the session store (test) could not do its work: it is full"
    assert repr(raised.value.__cause__) == repr(LookupError("explained: no room"))


@pytest.mark.parametrize("error", [ValueError("a bug"), KeyError("a bug"), Refused("not of this store")], ids=repr)
async def test_any_other_exception_passes_through(error: Exception) -> None:
    with pytest.raises(type(error)) as raised:
        await Store().do(raising(error))
    assert raised.value is error


@pytest.mark.parametrize("error", [SessionStoreError("test", "do a part of it"), ConfigError("the url is wrong")], ids=repr)
async def test_an_error_of_gaman_passes_through(error: Exception) -> None:
    class Catching(Store):
        _failures = (Exception,)

    with pytest.raises(type(error)) as raised:
        await Catching().do(raising(error))
    assert raised.value is error


async def test_cancellation_passes_through() -> None:
    store = Store()
    task = asyncio.create_task(store.do(wait_for_ever))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # The time limit has forgotten the call.
    await asyncio.sleep(2 * SECONDS)
    assert await store.do(response) == "done"
