"""The fixtures of the session's tests, most of which run on every driver."""

from __future__ import annotations

from collections.abc import AsyncIterator
from secrets import token_hex
from typing import Any

import pytest

from gaman.session import Driver
from tests.session.endings import in_cookies
from tests.session.sites import DRIVERS, Clock, Site, of_its_own, serving


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Any:
    """Return each value of session(driver=...)."""
    return DRIVERS[request.param]()


@pytest.fixture(params=[name for name in DRIVERS if "cookies" not in name])
def store(request: pytest.FixtureRequest) -> Driver:
    """Return each driver that keeps sessions in a store."""
    driver: Driver = DRIVERS[request.param]()
    return driver


@pytest.fixture(params=[name for name in DRIVERS if "cookies" not in name])
def own_store(request: pytest.FixtureRequest) -> Driver:
    """Return each driver that keeps sessions in a store, with sessions that no other test has."""
    return of_its_own(request.param)


@pytest.fixture
async def site(driver: Driver | None, clock: Clock) -> AsyncIterator[Site]:
    async with serving(Site(driver, clock)) as opened:
        yield opened


@pytest.fixture(params=[name for name in DRIVERS if "cookies" not in name])
async def ending(request: pytest.FixtureRequest, clock: Clock) -> AsyncIterator[Site]:
    """Return a site with each store of ended sessions."""
    store: Any = DRIVERS[request.param]()
    # With a secret of its own, a test doesn't see the owners of other tests that share the store.
    async with serving(Site(in_cookies(store), clock, secret=token_hex(32))) as site:
        yield site
