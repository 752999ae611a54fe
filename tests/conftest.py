"""The event loop that tests run on, the client of most tests as a fixture, and the option --quick."""

from __future__ import annotations

import gc
import sys
from collections.abc import Generator
from importlib.util import find_spec

import pytest
from hypothesis import HealthCheck, settings

from tests import asgi

# Beside other tests, an example may take long without a fault. CI uses the same profile, so its examples are the same.
settings.register_profile("beside others", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("quick", settings.get_profile("beside others"), max_examples=10)
settings.load_profile("beside others")

# `make e2e` installs it.
collect_ignore = [] if find_spec("playwright") else ["e2e"]


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session")
def fetch() -> asgi.Fetch:
    return asgi.fetch


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--quick", action="store_true", help="try few examples, and skip each test that starts a process")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--quick"):
        settings.load_profile("quick")
        config.pluginmanager.register(Quick())


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Exempt the collected tests, half a million objects, from garbage collection."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


class Quick:
    """Skips a test at the first process that it starts, so that no list of quick tests is needed."""

    def __init__(self) -> None:
        self._is_testing = False
        sys.addaudithook(self._skip)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self) -> Generator[None, object, object]:
        self._is_testing = True
        try:
            return (yield)
        finally:
            self._is_testing = False

    def _skip(self, event: str, _: tuple[object, ...]) -> None:
        if self._is_testing and event in {"subprocess.Popen", "os.fork", "os.posix_spawn"}:
            pytest.skip("it starts a process")
