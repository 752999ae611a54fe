"""TestClient: requests to an App in the same process, for tests; nothing of gaman imports it."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

try:
    import httpx
except ImportError as cause:
    from gaman.errors import MissingDependency

    raise MissingDependency("gaman.testing needs httpx: pip install httpx") from cause

from gaman._app import App


class TestClient(httpx.AsyncClient):
    """An httpx.AsyncClient that asks *app* instead of the network, between its start-up and its shutdown.

    Use it as `async with TestClient(app) as client`. It speaks https, so it keeps Secure cookies as a browser does. A response
    is whole when it arrives; what streams without an end needs a real server. For an App with *allowed_hosts*, pass a *base_url*
    with one of these hosts, as in `base_url="https://shop.example"`.
    """

    __test__ = False

    def __init__(self, app: App, *, base_url: str = "https://testserver", **options: Any) -> None:
        super().__init__(transport=httpx.ASGITransport(app=app), base_url=base_url, **options)
        self._app = app

    async def __aenter__(self) -> Self:
        await self._app.load()
        await super().__aenter__()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None = None,
        exc_value: BaseException | None = None,
        traceback: TracebackType | None = None,
    ) -> None:
        try:
            await super().__aexit__(exc_type, exc_value, traceback)
        finally:
            await self._app.shutdown()
