"""A call of an ASGI application, without a server: asked for its answer, or timed; and those that are called."""

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


class Visitor:
    """A receive that has an empty body ready, and then stays: whoever waits for its leaving, as Quart does, waits."""

    __slots__ = ("_has_asked",)

    def __init__(self) -> None:
        self._has_asked = False

    async def __call__(self) -> Message:
        if self._has_asked:
            await asyncio.get_running_loop().create_future()
        self._has_asked = True
        return {"type": "http.request", "body": b"", "more_body": False}


async def ask(app: ASGI, path: str, cookie: bytes | None = None) -> tuple[int, dict[bytes, bytes], bytes]:
    """Return the status, headers and body that *app* answers with."""
    exchange = Exchange()
    await app(make_scope(path, cookie), exchange.receive, exchange.send)
    return exchange.status, dict(exchange.headers.raw), exchange.body


async def log_in(app: ASGI, path: str) -> bytes:
    """Return the Cookie field of a new session."""
    _, headers, _ = await ask(app, path)
    return headers[b"set-cookie"].partition(b";")[0]


async def time_calls(app: ASGI, path: str, cookies: Iterator[bytes | None], calls: int) -> float:
    """Return the seconds of CPU that so many calls take, each with the next of *cookies*."""
    made = [(make_scope(path, next(cookies)), Visitor()) for _ in range(calls)]

    async def send(message: Message) -> None:
        pass

    began = time.process_time()
    for scope, receive in made:
        await app(scope, receive, send)
    return time.process_time() - began


async def contend(app: ASGI, path: str, *cookies: bytes, **described: Any) -> Contender:
    """Return a contender that is asked for *path*, with those *cookies* in turn; *described* is what a Contender takes beside."""
    turns = cycle(cookies or (None,))

    async def answer() -> tuple[int, Any]:
        status, _, body = await ask(app, path, next(turns))
        return status, json.loads(body)

    return Contender(measure=timed(partial(time_calls, app, path, turns)), answer=answer, **described)
