"""Servers of Redis, each with the calls that wait for it, and which of them has which slot of a Cluster."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from time import monotonic
from typing import Any, Final, Generic, NamedTuple, TypeVar

from redis.asyncio.cluster import ClusterNode
from redis.cluster import get_node_name
from redis.crc import REDIS_CLUSTER_HASH_SLOTS
from redis.exceptions import AskError, RedisClusterException, ResponseError, SlotNotCoveredError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gaman_session.drivers._batches import Batches

Call = TypeVar("Call")

# Round trips to a server at a time. More would only carry fewer calls each.
_AT_ONCE: Final = 4
# The same for large sessions, each of which has a round trip and a connection to itself.
_LARGE_AT_ONCE: Final = 2
# Servers that are asked for the slots, and seconds that the others have to answer after one that has nothing new.
_ASKED: Final = 5
_GRACE: Final = 0.1
# Seconds for which the slots aren't asked for again.
_FRESH: Final = 0.1


class Server(Generic[Call]):
    """A server, and the calls that wait for it; *run* makes a batch of them, over *pool_size* connections at most.

    *node* has the connections to a server of a Cluster. It is None elsewhere, where redis-py's client finds the server. *waits* is
    whether a write waits for replicas to confirm it.
    """

    def __init__(
        self,
        name: str,
        node: ClusterNode | None,
        run: Callable[[Server[Call], Sequence[Call]], Awaitable[Sequence[Any]]],
        *,
        pool_size: int,
        timeout: float,
        waits: bool,
    ) -> None:
        self.name = name
        self.node = node
        large, run_here = min(_LARGE_AT_ONCE, pool_size // 2), partial(run, self)
        # Reads don't wait for the replicas that a write waits for.
        lanes = min(2 if waits else 1, pool_size - large)
        at_once = min(_AT_ONCE, (pool_size - large) // lanes)
        self.calls = Batches[Call, Any](run_here, at_once=at_once, timeout=timeout)
        # Over a single connection, everything waits for everything.
        self.writes = self.calls if lanes == 1 else Batches[Call, Any](run_here, at_once=at_once, timeout=timeout)
        self.large_calls = Batches[Call, Any](run_here, at_once=large, most=1, timeout=timeout) if large else self.calls

    async def send(self, commands: Sequence[Sequence[Any]], *, wait: float) -> list[Any]:
        """Send *commands* to a server of a Cluster in one round trip, and return for each its answer or its error.

        The answer to WAIT may take *wait* seconds longer than others.
        """
        node: Any = self.node
        connection, answers = node.acquire_connection(), list[Any]()
        try:
            if connection.should_reconnect():
                await connection.disconnect(nowait=True)
            await connection.send_packed_command(connection.pack_commands(commands))
            for command in commands:
                try:
                    answers.append(await (_confirmation(connection, wait) if command[0] == "WAIT" else connection.read_response()))
                except ResponseError as error:
                    answers.append(error)
        except Exception as error:
            # This one may hold answers that were not read, and the idle ones lead to the same server, which is away.
            connection.mark_for_reconnect()
            self.connect_anew()
            answers += [error] * (len(commands) - len(answers))
        finally:
            node.release(connection)
        return answers

    def connect_anew(self) -> None:
        """Have the idle connections to a server of a Cluster closed before they are used again."""
        node: Any = self.node
        for idle in node._free:
            idle.mark_for_reconnect()

    async def close(self) -> None:
        """Close the connections of a Cluster's server, after the calls in flight."""
        for batches in (self.calls, self.writes, self.large_calls):
            await batches.drain()
        if self.node is not None:
            await self.node.disconnect()


class Slots(NamedTuple, Generic[Call]):
    """The owner of each slot, and all servers by name, as one server of a Cluster tells."""

    owners: list[Server[Call] | None]
    servers: dict[str, Server[Call]]


class Cluster(Generic[Call]):
    """The servers that *client* begins with, and those that they name.

    *serve* makes the Server of a node, and *ask* returns a Server's answer to CLUSTER SLOTS.
    """

    def __init__(
        self, client: Any, serve: Callable[[ClusterNode], Server[Call]], ask: Callable[[Server[Call]], Awaitable[Any]]
    ) -> None:
        self._options: dict[str, Any] = client.get_connection_kwargs()
        self._serve = serve
        self._ask = ask
        self._servers: dict[str, Server[Call]] = {}
        self._owners: list[Server[Call] | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        for node in client.nodes_manager.startup_nodes.values():
            self._server(node.host, node.port)
        # They stay known, because their names may lead to new servers once all others are gone.
        self._first = self._servers.copy()
        self._learning: asyncio.Task[Exception | None] | None = None
        self._fresh_until = 0.0
        self._closing: set[asyncio.Task[None]] = set()

    def owner(self, slot: int) -> Server[Call] | None:
        """Return the server that has *slot*, as far as that is known."""
        return self._owners[slot]

    async def masters(self) -> list[Server[Call]]:
        """Return the servers that have slots now, as a server tells that is asked anew; RedisClusterException: a slot has none."""
        await self.learn(0, None)
        masters = [server for server in dict.fromkeys(self._owners) if server is not None]
        if None in self._owners:
            raise SlotNotCoveredError(f"no known server has the slot {self._owners.index(None)}")
        return masters

    def connect_anew(self) -> None:
        """Have all idle connections closed before they are used again."""
        for server in self._servers.values():
            server.connect_anew()

    def named_by(self, error: AskError, server: Server[Call]) -> Server[Call]:
        """Return the server that *error*, an answer of *server*, names."""
        told: Any = error
        return self._server(told.host, told.port, server)

    def move(self, slot: int, server: Server[Call]) -> None:
        """Take *server* for the owner of *slot*."""
        self._owners[slot] = server

    async def learn(self, slot: int, failed: Server[Call] | None) -> None:
        """Learn the owner of each slot anew, because *failed* did not serve *slot*; RedisClusterException: no server tells.

        Calls that ask at almost the same time share one answer.
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

    async def _learn(self, slot: int, failed: Server[Call] | None) -> Exception | None:
        others = [server for server in self._servers.values() if server is not failed]
        asked = random.sample(others, min(_ASKED, len(others)))
        waiting = {asyncio.create_task(self._slots_of(server)) for server in asked}
        best: Slots[Call] | None = None
        errors: list[Exception] = []
        try:
            # A server that still names the one that failed may not have noticed: another one may know more.
            while waiting and (best is None or best.owners[slot] in (None, failed)):
                done, waiting = await asyncio.wait(
                    waiting, timeout=None if best is None else _GRACE, return_when=asyncio.FIRST_COMPLETED
                )
                if not done:
                    break
                for task in done:
                    told = task.result()
                    if isinstance(told, Exception):
                        errors.append(told)
                    elif best is None or best.owners[slot] in (None, failed):
                        best = told
        finally:
            for task in waiting:
                task.cancel()
        if best is not None:
            self._take_over(best)
        elif errors:
            error = RedisClusterException("no server of the Cluster tells which one has which slot")
            # A server's error says more than the silence of another one.
            error.__cause__ = next((each for each in errors if isinstance(each, ResponseError)), errors[-1])
            return error
        return None

    async def _slots_of(self, server: Server[Call]) -> Slots[Call] | Exception:
        told = Slots[Call]([None] * REDIS_CLUSTER_HASH_SLOTS, {})
        try:
            for start, end, *nodes in await self._ask(server):
                named = [self._server(host.decode() if host else "", port, server) for host, port, *_ in nodes]
                told.owners[start : end + 1] = named[:1] * (end + 1 - start)
                told.servers.update({each.name: each for each in named})
        except Exception as error:
            return error
        return told if told.servers else RedisClusterException(f"{server.name} knows of no slots")

    def _take_over(self, told: Slots[Call]) -> None:
        self._owners = told.owners
        self._fresh_until = monotonic() + _FRESH
        kept = self._first | told.servers
        for gone in self._servers.keys() - kept.keys():
            task = asyncio.create_task(self._servers[gone].close())
            self._closing.add(task)
            task.add_done_callback(self._closing.discard)
        self._servers = kept

    def _server(self, host: str, port: int, teller: Server[Call] | None = None) -> Server[Call]:
        """Return the server at *host* and *port*. *teller*, which named it, leaves out its own host where it doesn't know it."""
        if teller is not None and teller.node is not None and host in ("", "?"):
            host = teller.node.host
        name = get_node_name(host, port)
        if (server := self._servers.get(name)) is None:
            server = self._servers[name] = self._serve(ClusterNode(host, port, **self._options))
        return server


async def _confirmation(connection: Any, seconds: float) -> Any:
    """Return the answer to WAIT, which may take *seconds* longer than others."""
    usual: float | None = connection.socket_timeout
    answer = await connection.read_response(timeout=None if usual is None else usual + seconds)
    if answer is None:
        await connection.disconnect(nowait=True)
        raise RedisTimeoutError("Timeout reading")
    return answer
