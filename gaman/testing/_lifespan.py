"""Lifespan: starts an application for its first client, and shuts it down after the last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from gaman import App
from gaman._asgi import Application
from gaman._lifespan import Lifespan


@dataclass
class _Use:
    """An application that clients of one event loop use."""

    loop: asyncio.AbstractEventLoop
    lifespan: App | Lifespan
    clients: int = 0


_uses: dict[int, _Use] = {}
"""By the id of the application."""


@asynccontextmanager
async def started(app: Application) -> AsyncGenerator[dict[str, Any]]:
    """Keep *app* running, and yield what its lifespan has put into the scope's `state`. A start that fails raises its error."""
    loop = asyncio.get_running_loop()
    use = _uses.get(id(app))
    if use is None or use.loop is not loop:
        use = _Use(loop, app if isinstance(app, App) else Lifespan(app))
        await use.lifespan.load()
        _uses[id(app)] = use
    use.clients += 1
    try:
        yield use.lifespan.lifespan_state
    finally:
        use.clients -= 1
        if not use.clients:
            if _uses.get(id(app)) is use:
                del _uses[id(app)]
            await use.lifespan.shutdown()
