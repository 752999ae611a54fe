"""The access line: a request's method and path, the status of its response, and how long it took."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from time import perf_counter
from typing import Any

from gaman._asgi import Send
from gaman._context import Context
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
    _log(ctx, status)
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
            _log(ctx, status)


def _log(ctx: Context, status: int) -> None:
    milliseconds = (perf_counter() - ctx.began) * 1000
    extra = {**ctx.log_extra, "status": status, "milliseconds": round(milliseconds, 3)}
    logger.info("%s %r %d in %.1f ms", ctx.method, ctx.path, status, milliseconds, extra=extra)
