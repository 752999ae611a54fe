"""Lifespan: starts and ends an ASGI application as a server does, by the lifespan protocol of ASGI."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any

from gaman._asgi import Application
from gaman._tracebacks import exc_info_of, location_of
from gaman.errors import ConfigError

if TYPE_CHECKING:
    from asyncio import Future, Task

logger = logging.getLogger("gaman")

RAISES = "gaman.raises"
"""A key of the scope: an App puts its exception at this key of lifespan.startup.failed, because load() raises it."""

_LAST_STEPS = 0.5
"""Seconds that an application has to return after it has reported that it failed or has ended."""


class Lifespan:
    """The lifespan of *app*, in a task of its own: an application may hold a lock or a task group from its start to its end."""

    def __init__(self, app: Application) -> None:
        self.lifespan_state: dict[str, Any] = {}
        """What the application has put into the scope's `state`; each request gets a copy."""
        self._app = app
        self._task: Task[None] | None = None
        self._messages: list[Future[dict[str, Any]]]
        self._answers: list[Future[MutableMapping[str, Any]]]

    async def load(self) -> None:
        """Start the application. One that raises before it answers has no lifespan, and is served without.

        The error of an App's integration is raised unchanged, and ConfigError if another application reports that it can't start.
        """
        from asyncio import FIRST_COMPLETED, get_running_loop, wait  # noqa: PLC0415 - importing gaman doesn't load asyncio

        loop = get_running_loop()
        self.lifespan_state.clear()
        self._messages, self._answers = [loop.create_future() for _ in range(2)], [loop.create_future() for _ in range(2)]
        self._messages[0].set_result({"type": "lifespan.startup"})
        self._task = task = loop.create_task(self._run())
        started = self._answers[0]
        try:
            either: set[Future[Any]] = {task, started}
            await wait(either, return_when=FIRST_COMPLETED)
            answer = started.result() if started.done() else None
        except BaseException:
            task.cancel()
            await self._end()
            raise
        if answer is None:
            logger.info("the application has no lifespan, and is served without: %r", await self._end())
        elif answer["type"] == "lifespan.startup.failed":
            error = await self._end()
            if isinstance(failure := answer.get(RAISES), BaseException):
                raise failure
            # Starlette's message is a whole traceback, whose last line is the error.
            lines = str(answer.get("message", "")).strip().splitlines() or [repr(error) if error else "it gives no reason"]
            where = "" if error is None else location_of(error)
            raise ConfigError(f"the application can't start: {lines[-1]}{where}") from error

    async def shutdown(self) -> None:
        """End the application, if it is started. A failure is logged."""
        from asyncio import FIRST_COMPLETED, wait  # noqa: PLC0415 - as above

        if (task := self._task) is None:
            return
        ended = self._answers[1]
        if not self._messages[1].done():
            self._messages[1].set_result({"type": "lifespan.shutdown"})
        either: set[Future[Any]] = {task, ended}
        await wait(either, return_when=FIRST_COMPLETED)
        if ended.done() and ended.result()["type"] == "lifespan.shutdown.failed":
            logger.error("the application's shutdown failed: %s", ended.result().get("message", ""))
        if (error := await self._end()) is not None:
            logger.error("the application's shutdown failed", exc_info=exc_info_of(error))

    async def _run(self) -> None:
        scope = {"type": "lifespan", "asgi": {"version": "3.0", "spec_version": "2.0"}, "state": self.lifespan_state, RAISES: True}
        messages, answers = iter(self._messages), {"startup": self._answers[0], "shutdown": self._answers[1]}

        async def receive() -> dict[str, Any]:
            message = next(messages, None)
            if message is None:
                raise RuntimeError("the application receives after lifespan.shutdown, and nothing follows")
            return await message

        async def send(message: MutableMapping[str, Any]) -> None:
            answer = answers.pop(str(message["type"]).removeprefix("lifespan.").partition(".")[0], None)
            if answer is None:
                raise RuntimeError(f"the application sent {message['type']!r} out of turn")
            answer.set_result(message)

        await self._app(scope, receive, send)

    async def _end(self) -> BaseException | None:
        """Wait for the task, which is about to end, and return its exception."""
        from asyncio import wait  # noqa: PLC0415 - as above

        task, self._task = self._task, None
        if task is None:
            return None
        _, unfinished = await wait({task}, timeout=_LAST_STEPS)
        if unfinished:
            task.cancel()
            await wait({task})
        return None if task.cancelled() else task.exception()
