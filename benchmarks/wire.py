"""A TCP proxy between a client and its servers, which counts the client's round trips."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial


class Wire:
    """The connections through the proxies.

    Requests that are in flight at the same time, on one connection or on several, are one round trip: together they delay the
    caller once.
    """

    def __init__(self) -> None:
        self.round_trips = 0
        self._is_answered = True

    async def pass_on(self, host: str, port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Connect the client at *reader* and *writer* to the server."""
        from_server, to_server = await asyncio.open_connection(host, port)
        await asyncio.gather(self._send(reader, to_server), self._receive(from_server, writer))

    async def _send(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                if self._is_answered:
                    self.round_trips += 1
                    self._is_answered = False
                writer.write(data)
        writer.close()

    async def _receive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(1 << 16):
                self._is_answered = True
                writer.write(data)
        writer.close()


@asynccontextmanager
async def opened_wire(servers: Sequence[tuple[str, int, int]]) -> AsyncGenerator[Wire]:
    """Yield a wire with a proxy for each server: its host, its port, and the port of its proxy on 127.0.0.1."""
    wire = Wire()
    async with AsyncExitStack() as stack:
        for host, port, own_port in servers:
            proxy = await asyncio.start_server(partial(wire.pass_on, host, port), "127.0.0.1", own_port)
            stack.callback(proxy.close)
        yield wire
