"""Server: a Redis server, with the batches of the calls to it and, in a Cluster, its connections."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any, Final

from redis.asyncio.cluster import ClusterNode
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from gaman_session.drivers._batches import Batches
from gaman_session.drivers._redis_script import READS, Call

# Round trips to a server at a time. More would only carry fewer calls each.
_MAX_IN_FLIGHT: Final = 4
# The same for large sessions, each of which has a round trip and a connection to itself.
_MAX_LARGE_IN_FLIGHT: Final = 2


class Server:
    """A server, and the calls that wait for it; *run* makes a batch of them, over at most *pool_size* connections.

    *node* has the connections to a server of a Cluster. It is None elsewhere, where redis-py's client finds the server. *waits* is
    whether a write waits for replicas to confirm it.
    """

    def __init__(
        self,
        name: str,
        node: ClusterNode | None,
        run: Callable[[Server, Sequence[Call]], Awaitable[Sequence[Any]]],
        *,
        pool_size: int,
        waits: bool,
    ) -> None:
        self.name = name
        self.node = node
        large, run_here = min(_MAX_LARGE_IN_FLIGHT, pool_size // 2), partial(run, self)
        # Reads don't wait for the replicas that a write waits for.
        lanes = min(2 if waits else 1, pool_size - large)
        max_in_flight = min(_MAX_IN_FLIGHT, (pool_size - large) // lanes)
        self._reads = Batches[Call, Any](run_here, max_in_flight=max_in_flight)
        # Over a single connection, every call waits for every other.
        self._writes = self._reads if lanes == 1 else Batches[Call, Any](run_here, max_in_flight=max_in_flight)
        self._large = Batches[Call, Any](run_here, max_in_flight=large, max_calls=1) if large else self._reads

    def call(self, call: Call, *, is_large: bool) -> Awaitable[Any]:
        """Return an awaitable of the result of *call*; one that loads a large session delays no others."""
        batches = self._large if is_large else self._reads if call.operation in READS else self._writes
        return batches.call(call, is_one_of_several=call.is_one_of_several)

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
            # This connection may hold unread answers. The idle ones lead to the same server, which is away.
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
        for batches in (self._reads, self._writes, self._large):
            await batches.drain()
        if self.node is not None:
            await self.node.disconnect()


async def _confirmation(connection: Any, seconds: float) -> Any:
    """Return the answer to WAIT, which may take *seconds* longer than others."""
    usual: float | None = connection.socket_timeout
    answer = await connection.read_response(timeout=None if usual is None else usual + seconds)
    if answer is None:
        await connection.disconnect(nowait=True)
        raise RedisTimeoutError("Timeout reading")
    return answer
