"""The public names for tests of an application; never imported by gaman."""

from __future__ import annotations

try:
    import httpx  # noqa: F401 - the files below need it
except ImportError as cause:
    from gaman.errors import MissingDependency

    raise MissingDependency('gaman.testing needs httpx: pip install "gaman[test]"') from cause

from gaman.testing._client import SyncTestClient, TestClient
from gaman.testing._session import SyncSession

__all__ = ["SyncSession", "SyncTestClient", "TestClient"]
