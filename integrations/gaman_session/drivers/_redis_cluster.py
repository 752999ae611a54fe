"""Cluster: which server has which slot, as the servers of a Redis Cluster report it."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Any, Final, NamedTuple

from redis.asyncio.cluster import ClusterNode
from redis.cluster import get_node_name
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot
from redis.exceptions import AskError, RedisClusterException, ResponseError, SlotNotCoveredError

from gaman_session.drivers._redis_failures import CallError
from gaman_session.drivers._redis_script import Call
from gaman_session.drivers._redis_servers import Server

# Servers that are asked for the slots, and seconds that the others have to answer after one that has nothing new.
_MAX_ASKED: Final = 5
_GRACE: Final = 0.1
# Seconds for which the slots aren't asked for again.
_FRESH: Final = 0.1


class _Slots(NamedTuple):
    """The owner of each slot, and all servers by name, as one server of a Cluster reports them."""

    owners: list[Server | None]
    servers: dict[str, Server]


class Cluster:
    """The servers that *client* begins with, and those that they name.

    *serve* makes the Server of a node, and *ask* returns a node's answer to a command, or raises CallError.
    """

    def __init__(self, client: Any, serve: Callable[[ClusterNode], Server], ask: Callable[..., Awaitable[Any]]) -> None:
        self._options: dict[str, Any] = client.get_connection_kwargs()
        self._serve = serve
        self._ask = ask
        self._servers: dict[str, Server] = {}
        self._owners: list[Server | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        for node in client.nodes_manager.startup_nodes.values():
            self._server(node.host, node.port)
        # They stay known, because their names may lead to new servers once all others are gone.
        self._first = self._servers.copy()
        self._learning: asyncio.Task[Exception | None] | None = None
        self._fresh_until = 0.0
        self._closing: set[asyncio.Task[None]] = set()

    def owner(self, call: Call) -> Server | None:
        """Return the server that has the slot of *call*, or None if it isn't known."""
        if call.slot < 0:
            call.slot = key_slot(call.keys[0].encode())
        return self._owners[call.slot]

    async def masters(self) -> list[Server]:
        """Return the servers that have slots now; RedisClusterException: no server reports the slots, or a slot has none."""
        await self.learn(0, None)
        masters = [server for server in dict.fromkeys(self._owners) if server is not None]
        if None in self._owners:
            raise SlotNotCoveredError(f"no known server has the slot {self._owners.index(None)}")
        return masters

    def connect_anew(self) -> None:
        """Have all idle connections closed before they are used again."""
        for server in self._servers.values():
            server.connect_anew()

    def named_by(self, error: AskError, server: Server) -> Server:
        """Return the server that *error*, an answer of *server*, names."""
        redirection: Any = error
        return self._server(redirection.host, redirection.port, server)

    def move(self, slot: int, server: Server) -> None:
        """Note that *server* is the owner of *slot*."""
        self._owners[slot] = server

    async def learn(self, slot: int, failed: Server | None) -> None:
        """Learn the owner of each slot anew, because *failed* did not serve *slot*; RedisClusterException: no server knows.

        Calls that learn at almost the same time share one answer.
        """
        if self._learning is None or self._learning.done():
            if monotonic() < self._fresh_until:
                return
            self._learning = asyncio.create_task(self._learn(slot, failed))
        # Cancelling one call must not affect the others.
        if (error := await asyncio.shield(self._learning)) is not None:
            raise error

    async def close(self) -> None:
        """Close all connections, after the calls in flight."""
        if self._learning is not None:
            self._learning.cancel()
        await asyncio.gather(*self._closing, *(server.close() for server in self._servers.values()), return_exceptions=True)

    async def _learn(self, slot: int, failed: Server | None) -> Exception | None:
        others = [server for server in self._servers.values() if server is not failed]
        asked = random.sample(others, min(_MAX_ASKED, len(others)))
        waiting = {asyncio.create_task(self._slots_of(server)) for server in asked}
        best: _Slots | None = None
        errors: list[Exception] = []
        try:
            # A server that still names the failed one may not have noticed the failure: another one may know more.
            while waiting and (best is None or best.owners[slot] in (None, failed)):
                done, waiting = await asyncio.wait(
                    waiting, timeout=None if best is None else _GRACE, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    break
                for task in done:
                    found = task.result()
                    if isinstance(found, Exception):
                        errors.append(found)
                    elif best is None or best.owners[slot] in (None, failed):
                        best = found
        finally:
            for task in waiting:
                task.cancel()
        if best is not None:
            self._take_over(best)
        elif errors:
            error = RedisClusterException("no server of the Cluster says which one has which slot")
            # A server's error says more than the silence of another one.
            error.__cause__ = next((each for each in errors if isinstance(each, ResponseError)), errors[-1])
            return error
        return None

    async def _slots_of(self, server: Server) -> _Slots | Exception:
        slots = _Slots([None] * REDIS_CLUSTER_HASH_SLOTS, {})
        try:
            for start, end, *nodes in await self._ask(server.node, "CLUSTER", "SLOTS"):
                named = [self._server(host.decode() if host else "", port, server) for host, port, *_ in nodes]
                slots.owners[start : end + 1] = named[:1] * (end + 1 - start)
                slots.servers.update({each.name: each for each in named})
        except CallError as error:
            return error.failure or error
        except Exception as error:
            return error
        return slots if slots.servers else RedisClusterException(f"{server.name} knows of no slots")

    def _take_over(self, slots: _Slots) -> None:
        self._owners = slots.owners
        self._fresh_until = monotonic() + _FRESH
        servers = self._first | slots.servers
        for gone in self._servers.keys() - servers.keys():
            task = asyncio.create_task(self._servers[gone].close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        self._servers = servers

    def _server(self, host: str, port: int, source: Server | None = None) -> Server:
        """Return the server at *host* and *port*. *source*, which named it, leaves out its own host if it doesn't know it."""
        if source is not None and source.node is not None and host in ("", "?"):
            host = source.node.host
        name = get_node_name(host, port)
        if (server := self._servers.get(name)) is None:
            server = self._servers[name] = self._serve(ClusterNode(host, port, **self._options))
        return server
