"""The access line: a request's method and path, the status of its response, and how long it took."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from time import perf_counter
from typing import Any

from gaman import _target
from gaman._asgi import Application, Receive, Scope, Send
from gaman._context import Context, log_extra
from gaman._headers import RawHeaders
from gaman._payloads import Payload

logger = logging.getLogger("gaman")


def begin(ctx: Context) -> None:
    """Start the clock."""
    ctx.began = perf_counter()


def finish(ctx: Context, status: int, body: bytes | Payload) -> bytes | Payload:
    """Log the response, and return its *body*. One that sends itself is logged afterwards, when its status is known."""
    if not isinstance(body, bytes):
        return _LoggedBody(body)
    _log(ctx.method, ctx.path, status, ctx.began, ctx.log_extra)
    return body


class _LoggedBody:
    """A body that logs its response when it has been sent or has broken off."""

    def __init__(self, body: Payload) -> None:
        self._body = body

    async def send(self, status: int, headers: RawHeaders, ctx: Context, send: Send) -> None:
        async def forward(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            # A file may answer 304.
            status = message.get("status", status)
            await send(message)

        try:
            await self._body.send(status, headers, ctx, forward)
        finally:
            _log(ctx.method, ctx.path, status, ctx.began, ctx.log_extra)


class LoggedApplication:
    """Any ASGI application, with a line about each response when it is complete or has broken off."""

    def __init__(self, application: Application) -> None:
        self._application = application

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        began = perf_counter()
        # The server answers 500 for an application that fails before its response.
        status, is_logged = 500, False
        # Read now, because the application may change its scope.
        method, path, extra = scope["method"], _target.path_of(scope), log_extra(scope)

        def log_once() -> None:
            nonlocal is_logged
            if not is_logged:
                is_logged = True
                _log(method, path, status, began, extra)

        async def forward(message: MutableMapping[str, Any]) -> None:
            nonlocal status
            status = message.get("status", status)
            await send(message)
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                log_once()

        try:
            await self._application(scope, receive, forward)
        finally:
            log_once()


def _log(method: str, path: str, status: int, began: float, extra: dict[str, Any]) -> None:
    milliseconds = (perf_counter() - began) * 1000
    extra = {**extra, "status": status, "milliseconds": round(milliseconds, 3)}
    logger.info("%s %r %d in %.1f ms", method, path, status, milliseconds, extra=extra)
