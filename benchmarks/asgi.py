"""Calls of ASGI applications in this process, without a server: one response, or the time of many."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from functools import partial
from itertools import cycle
from typing import Any

from benchmarks.harness import Contender, timed
from tests.asgi import ASGI, Exchange, Message, http_scope

_SCOPE = http_scope()
_HEADERS = [(b"host", b"testserver"), (b"user-agent", b"benchmark"), (b"accept", b"*/*")]


def make_scope(path: str, cookie: bytes | None) -> Message:
    headers = [*_HEADERS]
    if cookie is not None:
        headers.append((b"cookie", cookie))
    return {**_SCOPE, "path": path, "raw_path": path.encode(), "headers": headers}


class EmptyBody:
    """A receive that returns an empty body, and then waits: some peers, such as Quart, wait for the client to disconnect.

    It is part of the time that is measured, so it does less than tests.asgi.Exchange.
    """

    __slots__ = ("_is_read",)

    def __init__(self) -> None:
        self._is_read = False

    async def __call__(self) -> Message:
        if self._is_read:
            await asyncio.get_running_loop().create_future()
        self._is_read = True
        return {"type": "http.request", "body": b"", "more_body": False}


async def fetch(app: ASGI, path: str, cookie: bytes | None = None) -> tuple[int, dict[bytes, bytes], bytes]:
    """Return the status, headers and body of the response."""
    exchange = Exchange()
    await app(make_scope(path, cookie), exchange.receive, exchange.send)
    return exchange.status, dict(exchange.headers.raw), exchange.body


async def log_in(app: ASGI, path: str) -> bytes:
    """Return the Cookie field of a new session."""
    _, headers, _ = await fetch(app, path)
    return headers[b"set-cookie"].partition(b";")[0]


async def time_calls(app: ASGI, path: str, cookies: Iterator[bytes | None], calls: int) -> float:
    """Return the seconds of CPU that *calls* take, each with the next of *cookies*."""
    made = [(make_scope(path, next(cookies)), EmptyBody()) for _ in range(calls)]

    async def send(message: Message) -> None:
        pass

    began = time.process_time()
    for scope, receive in made:
        await app(scope, receive, send)
    return time.process_time() - began


async def contend(app: ASGI, path: str, *cookies: bytes, **described: Any) -> Contender:
    """Return a contender that gets requests for *path*, with *cookies* in turn; *described* are further fields of Contender."""
    turns = cycle(cookies or (None,))

    async def result() -> tuple[int, Any]:
        status, _, body = await fetch(app, path, next(turns))
        return status, json.loads(body)

    return Contender(measure=timed(partial(time_calls, app, path, turns)), result=result, **described)
