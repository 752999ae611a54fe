"""How the Redis driver's calls reach a server: as commands of its script, several in one trip, and again after a fault.

Calls that come while others are under way go out together, in one command; in a Cluster each has its own, to the server that has
its key. What a broken connection leaves open is tried again, within the driver's timeout; the token tells a write's second attempt
that the first has arrived.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from hashlib import sha1
from importlib.resources import files
from itertools import chain, islice, repeat
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, cast

from msgspec import Struct
from msgspec.msgpack import Encoder
from redis.exceptions import (
    AuthenticationError,
    ClusterDownError,
    ConnectionError,
    MasterDownError,
    NoScriptError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from gaman_session._batches import Batches
from gaman_session._driver import LARGE, MAX_SKEW, TOMBSTONE, YEAR_10000
from gaman_session._time_limit import TimeLimit

if TYPE_CHECKING:
    from gaman_session.drivers._redis_address import Address

_encode = Encoder().encode

FAILURES = (RedisError, RedisClusterException, OSError, TimeoutError)
CONNECTION_FAILURES = (ConnectionError, RedisTimeoutError, RedisClusterException, OSError)
_CLUSTER_FAILURES = (ClusterDownError, MasterDownError, ReadOnlyError, TryAgainError)
_DEMOTED = (MasterDownError, ReadOnlyError)
# Seconds before the next attempts. Where another server may take over, the last one is repeated.
_PAUSES: Final = (0.05, 0.1, 0.2, 0.4)
# So many trips to a server at a time: more would be smaller ones.
_AT_ONCE: Final = 4
# What one command of the script takes on, so that it holds up nobody else's.
_AT_A_TIME: Final = 64
# Of large sessions, each in a round trip and over a connection that no other call waits for.
_LARGE_AT_ONCE: Final = 2
_READS: Final = ("load", "look", "owned", "count")

_SCRIPT = (
    f"local TOMBSTONE, MAX_SKEW, LARGE, YEAR_10000 = {TOMBSTONE}, {MAX_SKEW}, {LARGE}, {YEAR_10000}\n"
    + files("gaman_session.drivers").joinpath("redis.lua").read_text()
)
_SHA = sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()


class Call(Struct):
    """What the script is to do, with which keys of Redis; values are apart, for a script's MessagePack knows no bytes."""

    operation: str
    keys: Sequence[str]
    values: Sequence[bytes] = ()
    arguments: Sequence[Any] = ()


class Calls:
    """Makes calls of the server, or the Cluster, at *address*; *leave* drops its connections once they lead to the wrong one."""

    def __init__(
        self, address: Address, *, timeout: float, pool_size: int, wait_replicas: int, leave: Callable[[], Awaitable[None]]
    ) -> None:
        self.client: Any = None
        """The client of redis-py that sends them, once there is one."""
        self._address = address
        self._is_cluster = address.kind == "cluster"
        self._timeout = timeout
        self._pool_size = pool_size
        self._wait_replicas = wait_replicas
        self._leave = leave
        # A fail-over takes seconds, in which it helps to ask often; a server on its own, and WAIT, need a little longer.
        self.patience = min(0.5 if address.kind and not wait_replicas else 2.0, timeout)
        # Elsewhere than on a server of its own, redis-py finds its way there first, and has to bound each step by itself.
        self._limit: AbstractContextManager[None] = nullcontext() if address.kind else TimeLimit(self.patience)
        # Each server of a Cluster has its own: one that is lost holds up no session of another's.
        self._batches: dict[tuple[str, bool], Batches[Call, Any]] = {}
        """For each server two: one for ordinary calls, and one for loading large sessions."""

    def server(self, call: Call) -> str:
        """Return the server that has the call's first key, as far as that is known, or the hosts of the address."""
        node = self._node(call)
        return self._address.hosts if node is None else cast("str", node.name)

    def call(self, call: Call, *, is_large: bool = False) -> Awaitable[Any]:
        """Return what waits for the answer to *call*."""
        node = self._node(call) if self._is_cluster else None
        # Over a single connection, everything waits for everything.
        lane = "" if node is None else node.name, is_large and self._pool_size > 1
        if (batches := self._batches.get(lane)) is None:
            batches = self._batches[lane] = self._new_batches(is_large=lane[1])
        return batches.call(call)

    async def drain(self) -> None:
        """Wait until nothing is under way."""
        for batches in self._batches.values():
            await batches.drain()

    def _new_batches(self, *, is_large: bool) -> Batches[Call, Any]:
        large = min(_LARGE_AT_ONCE, self._pool_size // 2)
        if is_large:
            return Batches(self._run, at_once=large, most=1, timeout=self._timeout)
        return Batches(self._run, at_once=min(_AT_ONCE, self._pool_size - large), timeout=self._timeout)

    def _node(self, call: Call) -> Any:
        """Return the node of a Cluster on which the call's first key lives, as far as that is known; None outside a Cluster."""
        if self._is_cluster:
            with suppress(RedisClusterException):
                return self.client.get_node_from_key(call.keys[0])
        return None

    async def _run(self, calls: Sequence[Call]) -> list[Any]:
        """Make *calls*, and again those to which a fault leaves no answer, until the time is up; return answers and errors."""
        until = monotonic() + self._timeout
        results = await self.attempt(calls)
        for pause in _PAUSES if not self._address.kind else chain(_PAUSES, repeat(_PAUSES[-1])):
            unanswered = [i for i, result in enumerate(results) if isinstance(result, Exception) and _may_pass(result)]
            if any(isinstance(results[i], _DEMOTED) for i in unanswered):
                await self._leave()
            if not unanswered or monotonic() + pause + self.patience > until:
                break
            await asyncio.sleep(pause)
            again = await self.attempt([calls[i] for i in unanswered])
            for i, result in zip(unanswered, again, strict=True):
                # The first attempt may have come through, before the write of somebody else that has brought this conflict about.
                is_unclear = result == b"CONFLICT" and calls[i].operation == "swap"
                results[i] = RedisError("the answer to the write was lost") if is_unclear else result
        return results

    async def attempt(self, calls: Sequence[Call]) -> list[Any]:
        """Make *calls*, in one trip, or in two where a server does not know the script yet."""
        try:
            with self._limit:
                results = await self._send(calls, "EVALSHA", _SHA)
                unknown = [i for i, result in enumerate(results) if isinstance(result, NoScriptError)]
                if unknown:
                    again = await self._send([calls[i] for i in unknown], "EVAL", _SCRIPT)
                    for i, result in zip(unknown, again, strict=True):
                        results[i] = result
                return results
        except FAILURES as cause:
            return [cause] * len(calls)

    async def _send(self, calls: Sequence[Call], *script: str) -> list[Any]:
        """Make *calls* in one trip, in as few commands as *script* can take them, and return for each its answer or its error."""
        most = 1 if self._is_cluster else _AT_A_TIME
        if len(calls) <= most and not self._wait_replicas:
            # A pipeline would cost a lone command half as much again.
            try:
                return _results(calls, await self.client.execute_command(*_command(calls, script, is_alone=True)))
            except ResponseError as error:
                return [error] * len(calls)
        groups = [calls[i : i + most] for i in range(0, len(calls), most)]
        writes = {i: self._node(call) for i, call in enumerate(calls) if self._wait_replicas and call.operation not in _READS}
        written_to = list(dict.fromkeys(writes.values()))
        pipeline = self.client.pipeline(transaction=False)
        for group in groups:
            pipeline.execute_command(*_command(group, script, is_alone=len(calls) == 1))
        for node in written_to:
            where = {} if node is None else {"target_nodes": node}
            pipeline.execute_command("WAIT", self._wait_replicas, math.ceil(self.patience * 500), **where)
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        results = [result for group, answer in zip(groups, answers, strict=False) for result in _results(group, answer)]
        counts = dict(zip(written_to, answers[len(groups) :], strict=True))
        for i, node in writes.items():
            count = counts[node]
            if isinstance(count, Exception):
                results[i] = count
            elif not isinstance(results[i], Exception) and (count < self._wait_replicas or node != self._node(calls[i])):
                results[i] = RedisError(
                    f"{count} of {self._wait_replicas} replicas have confirmed the write, which may yet be lost"
                )
        return results


def _may_pass(error: Exception) -> bool:
    """Return whether the command may get an answer when its server is back, or another has taken over."""
    return isinstance(error, (*CONNECTION_FAILURES, *_CLUSTER_FAILURES)) and not isinstance(error, AuthenticationError)


def _command(calls: Sequence[Call], script: Sequence[str], *, is_alone: bool) -> Sequence[Any]:
    """Return the command that makes *calls*: *script*'s, but for a load that shares no round trip, which needs none."""
    if _is_load(calls):
        # Without arguments, the script loads what is not large.
        return ("HGETALL", *calls[0].keys) if is_alone or calls[0].arguments else (*script, 1, *calls[0].keys)
    keys = [key for call in calls for key in call.keys]
    what = [(call.operation, len(call.keys), len(call.values), *call.arguments) for call in calls]
    # One piece is cheaper for redis-py to send than its parts.
    return (*script, len(keys), *keys, _encode(what), *(value for call in calls for value in call.values))


def _results(calls: Sequence[Call], answer: Any) -> list[Any]:
    """Return for each of *calls* its part of *answer*: a hash or a set, a word, a number, nothing, or an error."""
    if isinstance(answer, Exception):
        return [answer] * len(calls)
    if _is_load(calls):
        return [_pairs(cast("Iterable[Any]", answer)) if isinstance(answer, list) else answer]
    return [*_parts(answer)]


def _is_load(calls: Sequence[Call]) -> bool:
    return len(calls) == 1 and calls[0].operation == "load"


def _pairs(parts: Iterable[Any]) -> dict[Any, Any]:
    each = iter(parts)
    return dict(zip(each, each, strict=True))


def _parts(answer: Iterable[Any]) -> Iterator[Any]:
    rest = iter(answer)
    for length in rest:
        if length == 1:
            yield next(rest)
        else:
            yield _pairs(islice(rest, length))
