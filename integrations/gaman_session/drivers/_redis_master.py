"""Watch: asks the Sentinels, or the server itself, which server is the master, for as long as the Redis driver is open.

A client doesn't notice by itself that its server was demoted, or that another one was promoted. A server that was frozen or cut off
continues to serve its old connections, and accepts writes that are lost with it. So the driver asks in the background, drops all
connections at once when the master has changed, and trusts no answer that was in flight then. A Sentinel that replaces a master
says so some 100 ms before it promotes the replica: from then until the switch, no write is acknowledged.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Collection, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Final, NamedTuple, cast

from redis.exceptions import AuthenticationError, ConnectionError, ResponseError

logger = logging.getLogger("gaman")

_EXTRA: Final = {"driver": "redis"}

_EVENTS: Final = ("*failover*", "+selected-slave", "+promoted-slave", "+switch-master")
# Seconds between two requests to a Sentinel, unless an event comes: a change is noticed within this time.
_PERIOD: Final = 1.0
# Seconds between two requests to a server without Sentinels. A write to a demoted server notices it at once.
_LONG_PERIOD: Final = 10.0
# Seconds for which writes wait for a switch. A Sentinel needs little more than one, unless it is cut off in the middle of it.
_MAX_SWITCHING: Final = 5.0


class NotMasterError(ConnectionError):
    """The server isn't the master. It counts as a broken connection: the call is made again."""


class Answer(NamedTuple):
    """The master, as a Sentinel knows it."""

    epoch: int
    """The number of the failover that made it the master: the highest is the latest."""
    address: tuple[str, int]
    is_switching: bool
    """Whether a replica is being promoted in its place."""
    replicas: int
    sentinels: int
    """How many Sentinels there are, this one included."""

    @property
    def server(self) -> str:
        """The master's host and port, for messages."""
        host, port = self.address
        return f"{host}:{port}"


class Watch:
    """The driver's knowledge of its master. This base class watches nothing: in a Cluster, a demoted server names the master."""

    def __init__(self) -> None:
        self.changes = 0
        """Rises when the connections are dropped because their server isn't the master: earlier results don't count."""
        self.is_switching = False
        """Whether a replica is being promoted: until it has been, no write may be acknowledged."""
        self.answer: Answer | None = None
        """The latest of the Sentinels' answers; None without Sentinels, or before one has answered."""
        self._pool: Any = None
        self._settled = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    async def open(self, pool: Any) -> None:
        """Begin to watch; the connections to drop are in *pool*."""
        self._pool = pool

    async def close(self) -> None:
        """Stop watching."""
        # Repeated, because wait_for(), which redis-py uses, may lose a cancellation up to Python 3.11.
        while tasks := [*self._tasks]:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=0.1)

    def leave(self) -> None:
        """Drop all connections, because their server says that it isn't the master; calls in flight are made again."""

    async def settle(self, seconds: float) -> None:
        """Return when no replica is being promoted, or after *seconds*."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._settled.wait()

    def trusted(self, results: Sequence[Any], reads: Collection[int], changes: int) -> list[Any]:
        """Return *results*, with an error in place of each that can't be trusted.

        These are all results if the master has changed since *changes*, and otherwise all but those at the positions *reads*.
        """
        error = NotMasterError("the master is being replaced")
        has_changed = changes != self.changes
        return [error if has_changed or i not in reads else result for i, result in enumerate(results)]

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _drop(self) -> None:
        self.changes += 1
        self._start(self._disconnect())

    async def _disconnect(self) -> None:
        with suppress(Exception):
            await self._pool.disconnect()
        # A call that began in between may have had an old connection.
        self.changes += 1


class ServerWatch(Watch):
    """Watches the server at *hosts* through *client*, which keeps a connection of its own beside those of the driver."""

    def __init__(self, hosts: str, client: Any) -> None:
        super().__init__()
        self._hosts = hosts
        self._client = client

    async def open(self, pool: Any) -> None:
        await super().open(pool)
        self._start(self._watch())

    async def close(self) -> None:
        await super().close()
        with suppress(Exception):
            await self._client.aclose()

    def leave(self) -> None:
        logger.warning(
            "the Redis server at %s has become a replica: the driver connects anew. If it stays one, write the master's address in "
            "the driver's url",
            self._hosts,
            extra=_EXTRA,
        )
        self._drop()

    async def _watch(self) -> None:
        # HELLO shows every user the server's role; ROLE and INFO need permissions.
        protocol = self._client.get_connection_kwargs().get("protocol") or 3
        while True:
            pause = _LONG_PERIOD
            try:
                if _is_replica(await self._client.execute_command("HELLO", protocol)):
                    await self._client.connection_pool.disconnect()
                    self.leave()
            except ResponseError:
                # The server is older than Redis 6.
                return
            except Exception:
                # When the server is back, its name may lead elsewhere, so the idle connections have to look it up as well.
                with suppress(Exception):
                    await self._pool.disconnect(inuse_connections=False)
                pause = _PERIOD
            await asyncio.sleep(pause)


class SentinelWatch(Watch):
    """Watches the master *name* through *sentinels*, a client for each; redis-py asks it for the address of new connections."""

    def __init__(self, name: str, sentinels: Sequence[Any]) -> None:
        super().__init__()
        self._name = name
        self._sentinels = sentinels
        self._answers: dict[int, Answer] = {}
        """The last answer of each Sentinel that answers, by its position."""
        self._error: Exception = ConnectionError("no Sentinel answers")
        self._is_silent = True
        self._timer: asyncio.TimerHandle | None = None

    async def open(self, pool: Any) -> None:
        await super().open(pool)
        positions = range(len(self._sentinels))
        # All of them, because one that was away may not know the latest master yet.
        found = await asyncio.gather(*(self._ask(i) for i in positions), return_exceptions=True)
        errors = [error for error in found if isinstance(error, Exception)]
        if errors:
            # A Sentinel's error says more than the silence of another one.
            self._error = max(errors, key=lambda error: isinstance(error, (ResponseError, AuthenticationError)))
        self._judge()
        for i in positions:
            self._start(self._watch(i))

    async def close(self) -> None:
        await super().close()
        self._settle()
        for sentinel in self._sentinels:
            with suppress(Exception):
                await sentinel.aclose()

    def leave(self) -> None:
        self._drop()

    async def discover_master(self, name: str) -> tuple[str, int]:
        """Return the master's address, or raise the Sentinels' error."""
        if self.answer is None:
            raise self._error
        return self.answer.address

    async def greet(self, connection: Any) -> None:
        """Log in over a new *connection*, or raise NotMasterError if it doesn't lead to the master."""
        await greet(connection)
        if self.answer is not None and self.answer.address != (connection.host, connection.port):
            raise NotMasterError("another server is the master now")

    async def _watch(self, i: int) -> None:
        while True:
            # The watch continues after any error of the library.
            with suppress(Exception):
                async with self._sentinels[i].pubsub() as events:
                    await events.psubscribe(*_EVENTS)
                    while True:
                        await self._ask(i)
                        self._judge()
                        await _wait_for(events)
            self._answers.pop(i, None)
            self._judge()
            await asyncio.sleep(_PERIOD)

    async def _ask(self, i: int) -> None:
        """Keep a Sentinel's answer; its events only say when to ask."""
        sentinel = self._sentinels[i]
        state = await sentinel.sentinel_master(self._name)
        # From the promotion on, the Sentinel that leads a failover gives the new address here. Its state has it after the failover.
        host, port = await sentinel.execute_command("SENTINEL GET-MASTER-ADDR-BY-NAME", self._name)
        address = (host.decode() if isinstance(host, bytes) else host, int(port))
        is_promoted = address != (state["ip"], state["port"])
        if is_promoted:
            # The state may be older, and have the epoch of the old master.
            state = await sentinel.sentinel_master(self._name)
        is_switching = "failover_in_progress" in state["flags"] and not is_promoted
        others = state["num-other-sentinels"]
        self._answers[i] = Answer(state["config-epoch"], address, is_switching, state["num-slaves"], others + 1)

    def _judge(self) -> None:
        """Choose the latest answer, and leave a master that was replaced."""
        answers = self._answers.values()
        if not answers:
            if not self._is_silent:
                logger.warning(
                    "no Sentinel of %s answers, so a failover goes unnoticed. See that they run, and can be reached from here",
                    self._name,
                    extra=_EXTRA,
                )
            self._is_silent = True
            return
        self._is_silent = False
        counts = Counter((answer.epoch, answer.address) for answer in answers)
        latest = max(answers, key=lambda answer: (answer.epoch, counts[answer.epoch, answer.address]))
        before = self.answer
        if before is None:
            self.answer = latest
        # A Sentinel that was away, or doesn't know of a failover yet, has a lower epoch. If all agree, they were set up anew.
        elif latest.epoch > before.epoch or counts[latest.epoch, latest.address] == len(self._sentinels):
            self.answer = latest
            if latest.address != before.address:
                addresses = before.server, latest.server
                logger.warning("the Redis master of %s was %s, and now is %s", self._name, *addresses, extra=_EXTRA)
                self._drop()
        self._hold(any(answer.is_switching and answer.epoch >= latest.epoch for answer in answers))

    def _hold(self, is_switching: bool) -> None:
        """Let writes wait while *is_switching*, for at most _MAX_SWITCHING seconds."""
        if not is_switching:
            self._settle()
            self._timer = None
        elif self._timer is None:
            self.is_switching = True
            self._settled.clear()
            self._timer = asyncio.get_running_loop().call_later(_MAX_SWITCHING, self._settle)

    def _settle(self) -> None:
        self.is_switching = False
        self._settled.set()
        if self._timer is not None:
            self._timer.cancel()


async def greet(connection: Any) -> None:
    """Log in over a new *connection*, or raise NotMasterError if a replica answers."""
    await connection.on_connect()
    await connection.send_command("HELLO", connection.protocol, check_health=False)
    with suppress(ResponseError):
        if _is_replica(await connection.read_response()):
            raise NotMasterError("it is a replica")


async def _wait_for(events: Any) -> None:
    """Return at the next event, or after _PERIOD seconds."""
    try:
        await events.get_message(timeout=_PERIOD)
    except ResponseError:
        # The user may not subscribe.
        await asyncio.sleep(_PERIOD)


def _is_replica(hello: Any) -> bool:
    # A map with RESP3, and a list with RESP2.
    is_map = isinstance(hello, dict)
    fields = cast("dict[bytes, Any]", hello if is_map else dict(zip(hello[::2], hello[1::2], strict=False)))
    return bool(fields.get(b"role") == b"replica")
