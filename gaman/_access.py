"""The access line: a request's method and path, the status of its response, and how long it took."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from time import perf_counter
from typing import Any

from gaman import _target
from gaman._asgi import Application, Receive, Scope, Send
from gaman._context import log_extra

logger = logging.getLogger("gaman")


class LoggedApplication:
    """Any ASGI application, with a line about each response when it is complete or has broken off.

    A request without a response has no line. The server responds for an application that doesn't.
    """

    def __init__(self, application: Application) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        began = perf_counter()
        status: int | None = None
        substitute = 500
        has_disconnected = is_logged = False
        # Read now, because the application may change its scope.
        method, path, extra = scope["method"], _target.path_of(scope), log_extra(scope)

        def log_once() -> None:
            nonlocal is_logged
            if status is not None and not is_logged:
                is_logged = True
                milliseconds = (perf_counter() - began) * 1000
                fields = {**extra, "status": status, "milliseconds": round(milliseconds, 3)}
                logger.info("%s %r %d in %.1f ms", method, path, status, milliseconds, extra=fields)

        async def forward(message: MutableMapping[str, Any]) -> None:
            nonlocal has_disconnected, status
            try:
                await send(message)
            except OSError:
                # The server reports a disconnected client (ASGI 2.4).
                has_disconnected = True
                raise
            status = message.get("status", status)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                log_once()

        async def watch() -> MutableMapping[str, Any]:
            nonlocal has_disconnected
            message = await receive()
            if message["type"] == "http.disconnect":
                has_disconnected = True
            return message

        try:
            await self._application(scope, watch, forward)
        except BaseException as error:
            from asyncio import CancelledError, current_task  # noqa: PLC0415 - importing gaman doesn't load asyncio

            if isinstance(error, CancelledError) and (task := current_task()) is not None and task.cancelling():
                # The server is stopping.
                substitute = 503
            raise
        finally:
            if not has_disconnected:
                status = status or substitute
            log_once()
