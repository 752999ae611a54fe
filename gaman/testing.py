"""TestClient: sends requests to an App in the same process, for tests; never imported by gaman."""

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
    """An httpx.AsyncClient whose requests go to *app* instead of the network.

        async with TestClient(app) as client:
            response = await client.post("/login", json={"name": "Angga"})
            assert response.status_code == 200

    `async with` starts the app and shuts it down. The client uses https, so it keeps Secure cookies as a browser does. Responses
    arrive complete, so testing an endless stream needs a real server. For an App with *allowed_hosts*, pass a *base_url* with one
    of them, such as `base_url="https://shop.example"`.
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
