"""Lifespan: starts an application for its first client, and shuts it down after the last."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from gaman import App, ConfigError, Routes

Application: TypeAlias = Callable[[Any, Any, Any], Awaitable[Any]]
"""An App, or any other ASGI application."""
State: TypeAlias = dict[str, Any]
"""What an application's lifespan shares with its requests (ASGI, Lifespan State)."""


@dataclass
class _Use:
    """An application that clients of one event loop use."""

    app: Application
    loop: asyncio.AbstractEventLoop
    lifespan: AbstractAsyncContextManager[None]
    state: State
    clients: int = field(default=0)


_uses: dict[int, _Use] = {}
"""By the id of the application."""


def check_application(app: object) -> None:
    """Raise ConfigError if *app* can't be an ASGI application."""
    if isinstance(app, (Routes, dict)):
        raise ConfigError("TestClient takes an App, not routes; write TestClient(App(routes, integrations=[...]))")
    if isinstance(app, type) or not callable(app):
        described = f"the class {app.__name__}" if isinstance(app, type) else repr(app)
        raise ConfigError(f"TestClient takes an App, not {described}; write TestClient(App(routes))")


@asynccontextmanager
async def started(app: Application) -> AsyncGenerator[State]:
    """Keep *app* running, and yield the state for its requests. Errors of its start-up are raised."""
    loop = asyncio.get_running_loop()
    use = _uses.get(id(app))
    if use is None or use.loop is not loop:
        state: State = {}
        use = _Use(app, loop, _run_app(app) if isinstance(app, App) else _run(app, state), state)
        await use.lifespan.__aenter__()
        _uses[id(app)] = use
    use.clients += 1
    try:
        yield use.state
    finally:
        use.clients -= 1
        if not use.clients:
            if _uses.get(id(app)) is use:
                del _uses[id(app)]
            await use.lifespan.__aexit__(None, None, None)


@asynccontextmanager
async def _run_app(app: App) -> AsyncGenerator[None]:
    # Not the lifespan protocol, which would turn an error of load() into text.
    await app.load()
    try:
        yield
    finally:
        await app.shutdown()


@asynccontextmanager
async def _run(app: Application, state: State) -> AsyncGenerator[None]:
    """Run the lifespan of *app*, if it has one (ASGI, Lifespan Protocol)."""
    incoming, outgoing = asyncio.Queue[dict[str, Any]](), asyncio.Queue[dict[str, Any] | None]()
    scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": state}

    async def send(message: dict[str, Any]) -> None:
        if not message["type"].startswith("lifespan."):
            raise RuntimeError("a lifespan has no HTTP response; this application doesn't look at its scope's type")
        outgoing.put_nowait(message)

    task = asyncio.ensure_future(app(scope, incoming.get, send))
    task.add_done_callback(lambda _: outgoing.put_nowait(None))

    async def ask(event: str) -> bool:
        """Send an event, and return whether the application answers it."""
        incoming.put_nowait({"type": f"lifespan.{event}"})
        answer = await outgoing.get()
        if answer is not None and answer["type"] == f"lifespan.{event}.failed":
            # Most applications raise the error as well, which says more than its text.
            await task
            raise RuntimeError(answer.get("message") or f"the {event} of the application failed")
        return answer is not None

    try:
        # An application without a lifespan raises, or returns.
        has_lifespan = await ask("startup")
        yield
        if has_lifespan:
            await ask("shutdown")
            await task
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            # The error is raised above, or says that there is no lifespan. Reading it keeps asyncio from logging it.
            task.exception()
