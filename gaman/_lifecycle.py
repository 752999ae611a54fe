"""Lifecycle: what an App runs beside its requests, the hooks of its integrations and the lifespans of mounted applications."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import anyio

from gaman._asgi import Application, Receive, Scope, Send
from gaman._integration import Integration
from gaman._lifespan import RAISES, Lifespan
from gaman._tracebacks import exc_info_of, explain
from gaman._trailers import drop_trailers
from gaman._worker_count import count_workers
from gaman.errors import GamanError

if TYPE_CHECKING:
    from gaman._app import App

logger = logging.getLogger("gaman")


class Lifecycle:
    """The start and the end of *app*: its *integrations* in order, then the *mounted* applications; at the end in reverse."""

    def __init__(self, app: App, integrations: Sequence[Integration], mounted: Sequence[Application]) -> None:
        self._app = app
        self._integrations = integrations
        self.lifespans = {id(application): Lifespan(application) for application in mounted}
        """The lifespans of the mounted applications, by the id of each."""
        self.is_needed = bool(self.lifespans) or any(each.on_load is not None for each in integrations)
        """Whether the App can't serve requests before load()."""
        self.is_loaded = False
        self._loaded: list[Integration] = []
        self._started: list[Lifespan] = []

    async def load(self) -> None:
        """Start everything. If one fails, end what has started, and raise its error."""
        # Makes anyio load its backend, for which the first request with a body would otherwise wait 40 ms.
        anyio.Event()
        self._app.workers = max(self._app.workers, count_workers())
        try:
            for integration in self._integrations:
                await self._load(integration)
                self._loaded.append(integration)
            # Last, because handlers and hooks of the App run before those of a mounted application.
            for lifespan in self.lifespans.values():
                await lifespan.load()
                self._started.append(lifespan)
        except BaseException:
            await self.shutdown()
            raise
        self.is_loaded = True

    async def _load(self, integration: Integration) -> None:
        """Call the on_load hook; its error gets the line that made the integration."""
        try:
            await self._call(integration.on_load)
        except GamanError as error:
            error._place = integration._place
            raise
        except Exception as error:
            error.add_note(f"on_load of the integration {integration.name!r} failed{integration._place}")
            raise

    async def _call(self, hook: Callable[[App], Any] | None) -> Any:
        """Return the result of *hook*, which may be sync; None without a hook."""
        result: Any = None if hook is None else hook(self._app)
        return await result if hasattr(result, "__await__") else result

    async def shutdown(self) -> None:
        """End everything that has started. A failure is logged, and the others still end."""
        self.is_loaded = False
        while self._started:
            await self._started.pop().shutdown()
        while self._loaded:
            integration = self._loaded.pop()
            try:
                await self._call(integration.on_shutdown)
            except Exception as error:
                logger.error("on_shutdown of the integration %r failed", integration.name, exc_info=exc_info_of(error))

    async def purge(self) -> dict[str, int]:
        removed: dict[str, int] = {}
        for integration in self._loaded:
            if integration.on_purge is not None:
                removed[integration.name] = await self._call(integration.on_purge)
        return removed

    async def check(self) -> dict[str, Exception | None]:
        found: dict[str, Exception | None] = {}
        for integration in self._integrations:
            if integration.on_check is not None:
                try:
                    await self._call(integration.on_check)
                    found[integration.name] = None
                except Exception as error:
                    found[integration.name] = error
                    reason = explain(error) if isinstance(error, GamanError) else repr(error)
                    logger.error("the check of the integration %r failed: %s", integration.name, reason)
        return found


async def answer_lifespan(
    load: Callable[[], Awaitable[None]], shutdown: Callable[[], Awaitable[None]], scope: Scope, receive: Receive, send: Send
) -> None:
    """Answer a server's lifespan messages by calling *load* and *shutdown*."""
    await receive()
    drop_trailers()
    try:
        await load()
    except Exception as error:
        reason = explain(error) if isinstance(error, GamanError) else str(error) or repr(error)
        failed: dict[str, object] = {"type": "lifespan.startup.failed", "message": reason}
        if RAISES in scope:
            failed[RAISES] = error
        elif not isinstance(error, GamanError):
            logger.error("start-up failed", exc_info=exc_info_of(error))
        await send(failed)
        return
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await shutdown()
    await send({"type": "lifespan.shutdown.complete"})
