"""The public names for tests of an application; never imported by gaman."""

from __future__ import annotations

from importlib.util import find_spec

from gaman.errors import MissingDependency

if find_spec("httpx") is None:
    raise MissingDependency('gaman.testing needs httpx: pip install "gaman[test]"')

from gaman.testing._client import SyncTestClient, TestClient
from gaman.testing._session import SyncSession

__all__ = ["SyncSession", "SyncTestClient", "TestClient"]
