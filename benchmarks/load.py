"""A closed loop of HTTP/1.1 requests: each connection sends its request again as soon as the answer is there."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from typing import NamedTuple, cast


class Load(NamedTuple):
    """How many requests were answered in a second, and the sorted latencies in seconds."""

    rate: float
    latencies: list[float]


class _Connection(asyncio.Protocol):
    """Asks for ever, and holds each answer to its status and its length."""

    def __init__(self, request: bytes, latencies: list[float]) -> None:
        self._request = request
        self._latencies = latencies
        self._received = b""
        self._sent_at = 0.0
        self.transport: asyncio.Transport | None = None
        self.closed = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        self.closed.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return
        assert head.startswith(b"HTTP/1.1 200 "), head
        _, _, rest = head.lower().partition(b"content-length: ")
        if len(body) >= int(rest.partition(b"\r\n")[0]):
            self._received = b""
            self._latencies.append(time.perf_counter() - self._sent_at)
            self._ask()

    def _ask(self) -> None:
        assert self.transport is not None
        if not self.transport.is_closing():
            self._sent_at = time.perf_counter()
            self.transport.write(self._request)


async def load(port: int, requests: list[bytes], seconds: float) -> Load:
    """Send each of *requests* over a connection of its own, again and again for so many seconds."""
    latencies: list[float] = []
    loop = asyncio.get_running_loop()
    began = time.perf_counter()
    made = [await loop.create_connection(partial(_Connection, request, latencies), "127.0.0.1", port) for request in requests]
    await asyncio.sleep(seconds)
    counted = latencies[:]
    elapsed = time.perf_counter() - began
    for transport, connection in made:
        transport.abort()
        await connection.closed
    return Load(len(counted) / elapsed, sorted(counted))
