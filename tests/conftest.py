"""The event loop that tests run on, and the client of most tests as a fixture."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from tests import asgi

# Beside other tests, an example may take long without a fault. CI uses the same profile, so its examples are the same.
settings.register_profile("beside others", settings(), deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("beside others")


@pytest.fixture(scope="session")
def anyio_backend() -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": True}


@pytest.fixture(scope="session")
def fetch() -> asgi.Fetch:
    return asgi.fetch
