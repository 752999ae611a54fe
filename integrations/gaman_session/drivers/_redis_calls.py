"""Calls: makes the Redis driver's calls at a server, and makes each again after a fault.

Calls that are made while others are in flight share a command. In a Cluster each has its own, and those to one server share a round
trip. Each call is retried by itself, so that in a Cluster it goes to the server that has its slot by then, and a lost server delays
no call to another. The script recognizes a write that it has already made by its token.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from itertools import compress
from time import monotonic
from typing import Any, Final, TypeVar

from msgspec import structs
from redis.exceptions import (
    AskError,
    MaxConnectionsError,
    MovedError,
    NoScriptError,
    RedisClusterException,
    RedisError,
    ResponseError,
    SlotNotCoveredError,
    TryAgainError,
)

from gaman.errors import causes_of
from gaman_session.drivers._redis_address import Address
from gaman_session.drivers._redis_cluster import Cluster
from gaman_session.drivers._redis_failures import (
    DEMOTED,
    FAILURES,
    PAUSE,
    WITHOUT_EFFECT,
    CallError,
    ElsewhereError,
    Unconfirmed,
    is_ending_elsewhere,
    may_pass,
    no_answer,
    reason,
    without_values,
)
from gaman_session.drivers._redis_master import Watch
from gaman_session.drivers._redis_script import (
    BY_HASH,
    BY_TEXT,
    OF_SESSIONS,
    READS,
    Call,
    changes_session,
    decode,
    encode,
    ending_call,
    is_load,
    load_commands,
    loaded,
)
from gaman_session.drivers._redis_servers import Server
from gaman_session.drivers._time_limit import TimeLimit

T = TypeVar("T")

# Seconds before the next attempts. If another server may take over, the last pause is repeated.
_PAUSES: Final = (0.05, 0.1, 0.2, PAUSE)
# How often a call goes on to another server of a Cluster at once. Then it pauses, because two servers may each name the other.
_MAX_JUMPS: Final = 8
# Calls in one command of the script. More would hold up other clients.
_MAX_CALLS: Final = 64
# Seconds between two attempts to get a free connection.
_FREE: Final = 0.01
_ASKING: Final = ("ASKING",)


class Calls:
    """Makes calls at the server, or the Cluster, of *address*. *limit* bounds the driver's methods, to *timeout* seconds each."""

    def __init__(self, address: Address, *, limit: TimeLimit, timeout: float, pool_size: int, wait_replicas: int) -> None:
        self._address = address
        self._limit = limit
        self._timeout = timeout
        self._pool_size = pool_size
        self._wait_replicas = wait_replicas
        # Seconds that replicas have to confirm a write.
        self._wait = min(2.0, timeout) / 2
        # Short, because a failover takes seconds in which frequent attempts help. Behind Sentinels, it has to bound WAIT as well.
        is_quick = address.kind == "cluster" or (address.kind and not wait_replicas)
        self.step_timeout = min(0.5 if is_quick else 2.0, timeout)
        """Seconds that a server has for each step: to accept a connection, and to answer."""
        # With Sentinels or a Cluster, the server has to be found first, so redis-py times out each step itself.
        self._attempt_limit = TimeLimit(timeout if address.kind else self.step_timeout)
        self._client: Any = None
        self._watch = Watch()
        self._only = self._serve(address.hosts)
        self._cluster: Cluster | None = None
        self._retrying = 0

    def open(self, client: Any, watch: Watch) -> None:
        """Make calls through redis-py's *client* from now on; *watch* knows whether its server is still the master."""
        self._client, self._watch = client, watch
        if self._address.kind == "cluster":
            self._cluster = Cluster(client, lambda node: self._serve(node.name, node), self.ask)

    async def close(self) -> None:
        """Close the connections that the client doesn't know, after the calls in flight."""
        while self._retrying:  # noqa: ASYNC110 - shutdown may take a millisecond longer
            await asyncio.sleep(0.001)
        await self._only.close()
        if self._cluster is not None:
            await self._cluster.close()
        self._client = self._cluster = None

    async def call(self, call: Call, *, is_large: bool = False) -> Any:
        """Return the result of *call*, which is made again after a fault; CallError: it failed.

        If the limit of the driver's method comes first, its TimeoutError has a CallError among its causes.
        """
        server = self._find(call)
        try:
            if server is None:
                raise _no_owner(call)
            return await server.call(call, is_large=is_large)
        except asyncio.CancelledError as cancelled:
            raise cancelled from CallError(self.server(call), None)
        except Exception as error:
            failure = error
        if is_ending_elsewhere(failure) and call.ending is None:
            return await self.call(await self._with_ending(call), is_large=is_large)
        if self._may_pass(failure):
            self._retrying += 1
            try:
                return await self._call_again(call, server, failure, is_large=is_large)
            finally:
                self._retrying -= 1
        raise CallError(self.server(call), failure) from failure

    async def gather(self, *calls: Awaitable[T]) -> list[T]:
        """Return the results of *calls*. If one fails, the others go on, so each of their tasks has a limit of its own."""

        async def bounded(call: Awaitable[T]) -> T:
            with self._limit:
                return await call

        return await asyncio.gather(*map(bounded, calls))

    async def _with_ending(self, call: Call) -> Call:
        """Return *call* with the ending, which the server of a moving slot may lack."""
        found = await self.call(ending_call(call.keys[0]))
        return structs.replace(call, ending=next(iter(found.items())))

    async def attempt(self, call: Call) -> Any:
        """Make *call* once, and return its result or its error."""
        try:
            if self._cluster is not None and self._find(call) is None:
                await self._cluster.learn(call.slot, None)
            if (server := self._find(call)) is None:
                raise _no_owner(call)
            [result] = await self._run(server, [call])
            if isinstance(result, Exception) and self._may_pass(result):
                # The next attempt goes to the server that has the slot by then.
                await self._follow(call, server, result)
        except RedisClusterException as error:
            return error
        return result

    async def masters(self) -> list[Any]:
        """Return redis-py's client, or in a Cluster its nodes that have slots now; CallError: a slot has none."""
        if self._cluster is None:
            return [self._client]
        try:
            return [server.node for server in await self._cluster.masters()]
        except RedisClusterException as error:
            raise CallError(self.server(), error) from error

    async def ask(self, node: Any, *command: Any) -> Any:
        """Return the answer of *node*, one of masters(), to a command of its own; CallError: it failed."""
        try:
            while True:
                # Calls may use all connections, each of which is free in between.
                with suppress(MaxConnectionsError):
                    return await node.execute_command(*command)
                await asyncio.sleep(_FREE)
        except Exception as error:
            await self._distrust(error)
            raise CallError(self.server() if self._cluster is None else node.name, error) from error

    def server(self, call: Call | None = None) -> str:
        """Return the server that *call* goes to, or the hosts of the address if that isn't known."""
        if (answer := self._watch.answer) is not None:
            return answer.server
        server = None if call is None or self._cluster is None else self._find(call)
        return self._address.hosts if server is None else server.name

    def explain(self, error: Exception) -> tuple[str, str, Exception]:
        """Return for a CallError, or the TimeoutError of the limit: the server, the reason for logs, and the failure itself."""
        cause = next((each for each in causes_of(error) if isinstance(each, CallError)), None)
        server, failure = (self.server(), None) if cause is None else (cause.server, cause.failure)
        if failure is None:
            return server, no_answer(server, self._timeout), error
        return server, reason(failure), failure

    async def _distrust(self, error: Exception) -> None:
        """Drop the idle connections after an *error* of the library itself.

        It may have left an answer unread, which the next call on that connection would mistake for its own.
        """
        if isinstance(error, FAILURES):
            return
        if self._cluster is not None:
            self._cluster.connect_anew()
        elif self._client is not None:
            with suppress(Exception):
                await self._client.connection_pool.disconnect(inuse_connections=False)

    def _serve(self, name: str, node: Any = None) -> Server:
        return Server(name, node, self._run, pool_size=self._pool_size, waits=self._wait_replicas > 0)

    def _find(self, call: Call) -> Server | None:
        """Return the server for *call*, or None if the owner of its slot isn't known."""
        return self._only if self._cluster is None else self._cluster.owner(call)

    async def _call_again(self, call: Call, server: Server | None, failure: Exception, *, is_large: bool) -> Any:
        """Make *call* again after *failure* on *server*; CallError: it still fails, or there is no time for another attempt."""
        unconfirmed: Unconfirmed | None = None
        demoted: Exception | None = None
        is_unclear, jumps, pauses = False, 0, 0
        try:
            while True:
                is_unclear = is_unclear or not isinstance(failure, WITHOUT_EFFECT)
                if isinstance(failure, Unconfirmed):
                    unconfirmed = failure
                elif isinstance(failure, DEMOTED):
                    # This error says more than the lost connections that follow.
                    demoted = failure
                before, (server, asked) = server, await self._follow(call, server, failure)
                if server is not before and jumps < _MAX_JUMPS:
                    jumps += 1
                else:
                    pause = _PAUSES[min(pauses, len(_PAUSES) - 1)]
                    pauses += 1
                    # Only another server is worth a longer wait.
                    is_enough = pauses > len(_PAUSES) and not (self._address.kind and isinstance(failure, FAILURES))
                    if is_enough or pause + self.step_timeout > self._limit.left():
                        break
                    await asyncio.sleep(pause)
                try:
                    if server is None:
                        raise _no_owner(call)
                    if asked.is_asking and asked.operation in OF_SESSIONS:
                        asked = await self._with_ending(asked)
                    result = await server.call(asked, is_large=is_large)
                except Exception as error:
                    failure = error
                    if is_ending_elsewhere(error) and call.ending is None:
                        call = await self._with_ending(call)
                    elif not self._may_pass(error):
                        break
                    continue
                # An earlier attempt may have succeeded, before the write of another client that has caused this conflict.
                if is_unclear and result == b"CONFLICT" and call.operation == "swap":
                    raise CallError(self.server(call), RedisError("the answer to the write was lost"))
                return result
        except asyncio.CancelledError as cancelled:
            raise cancelled from CallError(self.server(call), unconfirmed or demoted or failure)
        raise CallError(self.server(call), unconfirmed or demoted or failure)

    async def _follow(self, call: Call, server: Server | None, failure: Exception) -> tuple[Server | None, Call]:
        """Return where *call* goes after *failure* on *server*, and the call as it has to be sent there."""
        if self._cluster is None:
            return server, call
        if isinstance(failure, AskError) and server is not None:
            named = self._cluster.named_by(failure, server)
            if not isinstance(failure, MovedError):
                return named, structs.replace(call, slot=-1, is_asking=True)
            self._cluster.move(call.slot, named)
        elif not isinstance(failure, TryAgainError) and self._find(call) is server:
            # The call's own failure says more than a failure to learn.
            with suppress(RedisClusterException):
                await self._cluster.learn(call.slot, server)
        return self._find(call), call

    def _may_pass(self, error: Exception) -> bool:
        return may_pass(error) or (isinstance(error, AskError) and self._cluster is not None)

    async def _run(self, server: Server, calls: Sequence[Call]) -> list[Any]:
        """Make *calls* in one round trip, or in two if *server* lacks the script; return results, with exceptions among them."""
        if (cluster := self._cluster) is not None:
            here = [call.is_asking or cluster.owner(call) is server for call in calls]
            if not all(here):
                made = iter(await self._run(server, [*compress(calls, here)]) if any(here) else ())
                return [next(made) if is_here else ElsewhereError("the slot has moved") for is_here in here]
        watch = self._watch
        begun, changes = monotonic(), watch.changes
        try:
            with self._attempt_limit:
                if watch.is_switching and any(call.operation not in READS for call in calls):
                    await watch.settle(self.step_timeout)
                    begun, changes = monotonic(), watch.changes
                results = await self._send(server, calls, BY_HASH)
                errors = [i for i, result in enumerate(results) if isinstance(result, Exception)]
                if not errors and not watch.is_switching and watch.changes == changes:
                    return results
                if unknown := [i for i in errors if isinstance(results[i], NoScriptError)]:
                    again = await self._send(server, [calls[i] for i in unknown], BY_TEXT)
                    for i, result in zip(unknown, again, strict=True):
                        results[i] = result
        except Exception as error:
            results = [error] * len(calls)
            await self._distrust(error)
        if watch.is_switching or watch.changes != changes:
            results = watch.trusted(results, {i for i, call in enumerate(calls) if call.operation in READS}, changes)
        elif any(isinstance(result, DEMOTED) for result in results):
            watch.leave()
        name = self.server() if cluster is None else server.name
        return [without_values(result, name, monotonic() - begun) for result in results]

    async def _send(self, server: Server, calls: Sequence[Call], script: Sequence[str]) -> list[Any]:
        """Make *calls* in one round trip, in as few commands of *script* as possible; return for each its result or its error."""
        if is_load(calls):
            return [loaded(*await self._exchange(server, load_commands(calls[0])))]
        max_calls = _MAX_CALLS if server.node is None else 1
        is_write = self._wait_replicas > 0 and any(call.operation not in READS for call in calls)
        if len(calls) <= max_calls and not is_write and server.node is None:
            try:
                return decode(calls, await self._client.execute_command(*encode(calls, script)))
            except ResponseError as error:
                return [error] * len(calls)
        groups = [calls[i : i + max_calls] for i in range(0, len(calls), max_calls)]
        commands: list[Sequence[Any]] = []
        for group in groups:
            if group[0].is_asking:
                commands.append(_ASKING)
            commands.append(encode(group, script))
        if is_write:
            commands.append(("WAIT", self._wait_replicas, math.ceil(self._wait * 1000)))
        answers = await self._exchange(server, commands)
        count = answers.pop() if is_write else 0
        answers = [answer for command, answer in zip(commands, answers, strict=False) if command is not _ASKING]
        results = [result for group, answer in zip(groups, answers, strict=True) for result in decode(group, answer)]
        if is_write and (isinstance(count, Exception) or count < self._wait_replicas):
            for i, call in enumerate(calls):
                if call.operation not in READS and not isinstance(results[i], Exception):
                    results[i] = self._unconfirmed(call, results[i], count)
        return results

    def _unconfirmed(self, call: Call, result: Any, count: Any) -> Unconfirmed:
        cause = count if isinstance(count, Exception) else None
        confirmed = count if cause is None else "none"
        error = Unconfirmed(f"{confirmed} of {self._wait_replicas} replicas have confirmed the write, which may yet be lost")
        error.has_changed = changes_session(call, result)
        # In a Cluster, rename() creates the new id by another call.
        error.is_change = error.has_changed and (self._cluster is None or call.operation != "rename")
        error.__cause__ = cause
        return error

    async def _exchange(self, server: Server, commands: Sequence[Sequence[Any]]) -> list[Any]:
        """Send *commands* in one round trip, and return for each its answer or its error."""
        if server.node is not None:
            return await server.send(commands, wait=self._wait)
        # A pipeline of redis-py costs half as much again. A connection disconnects itself after any error but the server's.
        pool = self._client.connection_pool
        connection = await pool.get_connection()
        try:
            await connection.send_packed_command(connection.pack_commands(commands))
            return [await _answer(connection) for _ in commands]
        finally:
            await pool.release(connection)


async def _answer(connection: Any) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error


def _no_owner(call: Call) -> RedisClusterException:
    return SlotNotCoveredError(f"no known server has the slot {call.slot}")
