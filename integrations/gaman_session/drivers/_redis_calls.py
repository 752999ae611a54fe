"""Calls: sends the Redis driver's calls to a server, as commands of its script, and again after a fault.

Calls that are made while others are in flight share a command. In a Cluster each has its own, and those to one server share a round
trip. A call that gets no answer because of a fault is made again while its action has time; by the token, the script knows a write
that it has already made. Each call is retried by itself, so that in a Cluster it goes to the server that has its slot by then, and
a lost server delays no call to another.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Iterable, Iterator, Sequence
from contextlib import suppress
from hashlib import sha1
from importlib.resources import files
from itertools import compress, islice
from time import monotonic
from typing import Any, Final, cast

from msgspec import Struct, structs
from msgspec.msgpack import Encoder
from redis.crc import key_slot
from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    MasterDownError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    SlotNotCoveredError,
    TryAgainError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from gaman_session._driver import LARGE, MAX_SKEW, TOMBSTONE, YEAR_10000
from gaman_session.drivers._batches import Batches
from gaman_session.drivers._redis_address import Address
from gaman_session.drivers._redis_master import Watch
from gaman_session.drivers._redis_servers import Cluster, Server
from gaman_session.drivers._time_limit import TimeLimit

_encode = Encoder().encode


class _Elsewhere(RedisError):
    """The slot of a call went to another server while the call waited."""


FAILURES = (RedisError, RedisClusterException, OSError, TimeoutError)
CONNECTION_FAILURES = (ConnectionError, RedisTimeoutError, RedisClusterException, OSError)
DEMOTED = (MasterDownError, ReadOnlyError)
_PASSING = (ConnectionError, RedisTimeoutError, ClusterDownError, ReadOnlyError, TryAgainError, _Elsewhere)
# After these, a write has certainly not happened.
_WITHOUT_EFFECT = (AskError, BusyLoadingError, ClusterDownError, ReadOnlyError, SlotNotCoveredError, TryAgainError, _Elsewhere)
# Seconds before the next attempts. Where another server may take over, the last one is repeated.
PAUSE: Final = 0.4
_PAUSES: Final = (0.05, 0.1, 0.2, PAUSE)
# How often a call goes on to another server of a Cluster at once. Then it pauses, because two servers may each name the other.
_JUMPS: Final = 8
# Calls to one command of the script. More would hold up other clients.
_AT_A_TIME: Final = 64
_READS: Final = frozenset({"load", "look", "owned", "count", "room", "time", "slots"})
# Operations that make the whole change of their action, and results that say that nothing was changed.
_CHANGES: Final = ("create", "apply", "swap", "rename", "set_owner")
_UNCHANGED: Final = (b"ABSENT", b"CONFLICT", b"ENDED", b"REVOKED", b"TOO_LARGE")
_ASKING: Final = ("ASKING",)
# A server's error about an unknown command repeats its arguments, which may be ids, values or a password.
_ARGUMENTS: Final = re.compile(", with args beginning with: .*", re.DOTALL)

_SCRIPT = (
    f"local TOMBSTONE, MAX_SKEW, LARGE, YEAR_10000 = {TOMBSTONE}, {MAX_SKEW}, {LARGE}, {YEAR_10000}\n"
    + files("gaman_session.drivers").joinpath("redis.lua").read_text()
)
_SHA = sha1(_SCRIPT.encode(), usedforsecurity=False).hexdigest()


class Call(Struct):
    """An operation of the script, with its keys. Values are apart, because a script's MessagePack knows no bytes."""

    operation: str
    keys: Sequence[str]
    values: Sequence[bytes] = ()
    arguments: Sequence[Any] = ()
    slot: int = -1
    """The slot of the first key, or -1 until a Cluster needs it."""
    is_asking: bool = False
    """Whether it is sent after ASKING, to the server that is importing its slot."""


class Action(Struct):
    """What a method of the driver does, in the words of its errors, and until when it may take, by monotonic()."""

    name: str
    until: float
    has_begun: bool = False


class Unconfirmed(RedisError):
    """Too few replicas have confirmed a write."""

    is_change = False
    """Whether this write is the whole change of its action."""


_SLOTS: Final = Call("slots", ())


class Calls:
    """Makes calls of the server, or the Cluster, at *address*."""

    def __init__(self, address: Address, *, timeout: float, pool_size: int, wait_replicas: int) -> None:
        self._address = address
        self._timeout = timeout
        self._pool_size = pool_size
        self._wait_replicas = wait_replicas
        # Seconds that replicas have to confirm a write.
        self._wait = min(2.0, timeout) / 2
        # Short, because a failover takes seconds in which frequent attempts help. Behind Sentinels, it has to bound WAIT as well.
        is_quick = address.kind == "cluster" or (address.kind and not wait_replicas)
        self.patience = min(0.5 if is_quick else 2.0, timeout)
        # With Sentinels or a Cluster, the server has to be found first, so redis-py times out each step itself.
        self._limit = TimeLimit(timeout if address.kind else self.patience)
        self._client: Any = None
        self._watch = Watch()
        self._only = self._serve(address.hosts)
        self._cluster: Cluster[Call] | None = None
        self._retrying = 0

    def open(self, client: Any, watch: Watch) -> None:
        """Make calls through redis-py's *client* from now on; *watch* knows whether its server is still the master."""
        self._client, self._watch = client, watch
        if self._address.kind == "cluster":
            self._cluster = Cluster(client, lambda node: self._serve(node.name, node), lambda server: server.calls.call(_SLOTS))

    async def close(self) -> None:
        """Close the connections that the client doesn't know, after the calls in flight."""
        while self._retrying:  # noqa: ASYNC110 - it is for the end, where nothing is in a hurry
            await asyncio.sleep(0.001)
        await self._only.close()
        if self._cluster is not None:
            await self._cluster.close()
        self._client = self._cluster = None

    def begin(self, name: str) -> Action:
        """Return an action that begins now."""
        return Action(name, monotonic() + self._timeout)

    def call(self, action: Action, call: Call, *, is_large: bool = False) -> Awaitable[Any]:
        """Return an awaitable of the result of *call*, which is made again after a fault while *action* has time."""
        if action.has_begun:
            return self._call_in_time(action, call, is_large=is_large)
        # The first call of an action needs no timer of its own, because its batch and its retries have the timeout.
        action.has_begun = True
        return self._call(action, call, is_large=is_large)

    async def attempt(self, calls: Sequence[Call]) -> list[Any]:
        """Make each of *calls* once, and return the results, with exceptions among them."""
        results: list[Any] = []
        for call in calls:
            try:
                if self._cluster is not None and self._find(call) is None:
                    await self._cluster.learn(call.slot, None)
                server = self._find(call)
                [result] = [_no_owner(call)] if server is None else await self._run(server, [call])
                results.append(result)
                if isinstance(result, Exception) and self._may_pass(result):
                    # The next attempt goes to the server that has the slot by then.
                    await self._follow(call, server, result)
            except RedisClusterException as error:
                results.append(error)
        return results

    async def masters(self) -> list[Any]:
        """Return redis-py's client, or in a Cluster its nodes that have slots now; RedisClusterException: a slot has none."""
        return [self._client] if self._cluster is None else [server.node for server in await self._cluster.masters()]

    async def distrust(self, error: Exception) -> None:
        """Drop the idle connections after an *error* of the library's own.

        It may have left an answer unread, which the next call over that connection would take for its own.
        """
        if isinstance(error, FAILURES):
            return
        if self._cluster is not None:
            self._cluster.connect_anew()
        elif self._client is not None:
            with suppress(Exception):
                await self._client.connection_pool.disconnect(inuse_connections=False)

    def server(self, call: Call | None = None) -> str:
        """Return the server that *call* goes to, or the hosts of the address where that isn't known."""
        if (answer := self._watch.answer) is not None:
            return answer.server
        server = None if call is None or self._cluster is None or call.slot < 0 else self._find(call)
        return self._address.hosts if server is None else server.name

    def reason(self, error: Exception) -> str:
        """Return what logs say about *error*: the server's own words, or what happened to the connection; never a value."""
        told, inner = [error], error.__cause__ or error.__context__
        # redis-py wraps a ReadOnlyError without naming it as the cause.
        if isinstance(inner, (RedisError, RedisClusterException)) and (error.__cause__ or isinstance(inner, ReadOnlyError)):
            while isinstance(inner.__cause__, RedisError):
                inner = inner.__cause__
            told.append(inner)
        return ": ".join(dict.fromkeys(map(self._words, told)))

    def _words(self, error: Exception) -> str:
        if isinstance(error, TimeoutError):
            return f"no answer within {self._timeout:g} s"
        if not isinstance(error, FAILURES):
            return type(error).__name__
        code = getattr(error, "status_code", None)
        return _ARGUMENTS.sub("", f"{code} {error}" if code else str(error)) or type(error).__name__

    def _serve(self, name: str, node: Any = None) -> Server[Call]:
        return Server(name, node, self._run, pool_size=self._pool_size, timeout=self._timeout, waits=self._wait_replicas > 0)

    def _find(self, call: Call) -> Server[Call] | None:
        """Return the server for *call*, or None where the owner of its slot isn't known."""
        if self._cluster is None:
            return self._only
        if call.slot < 0:
            call.slot = key_slot(call.keys[0].encode())
        return self._cluster.owner(call.slot)

    async def _call_in_time(self, action: Action, call: Call, *, is_large: bool) -> Any:
        async with asyncio.timeout(action.until - monotonic()):
            return await self._call(action, call, is_large=is_large)

    async def _call(self, action: Action, call: Call, *, is_large: bool) -> Any:
        server = self._find(call)
        try:
            if server is None:
                raise _no_owner(call)
            return await _lane(server, call, is_large=is_large).call(call)
        except Exception as error:
            if not self._may_pass(error):
                raise
            failure = error
        self._retrying += 1
        try:
            return await self._call_again(action, call, server, failure, is_large=is_large)
        finally:
            self._retrying -= 1

    async def _call_again(
        self, action: Action, call: Call, server: Server[Call] | None, failure: Exception, *, is_large: bool
    ) -> Any:
        """Make *call* again after *failure* on *server*; return its result, or raise the last failure when *action* has no time."""
        unconfirmed: Unconfirmed | None = None
        demoted: Exception | None = None
        is_unclear, jumps, pauses = False, 0, 0
        with suppress(TimeoutError):
            async with asyncio.timeout(action.until - monotonic()):
                while True:
                    is_unclear = is_unclear or not isinstance(failure, _WITHOUT_EFFECT)
                    if isinstance(failure, Unconfirmed):
                        unconfirmed = failure
                    elif isinstance(failure, DEMOTED):
                        # It says more than the lost connections that follow.
                        demoted = failure
                    before, (server, asked) = server, await self._follow(call, server, failure)
                    if server is not before and jumps < _JUMPS:
                        jumps += 1
                    else:
                        pause = _PAUSES[min(pauses, len(_PAUSES) - 1)]
                        pauses += 1
                        # Only another server is worth waiting for longer.
                        is_enough = pauses > len(_PAUSES) and not (self._address.kind and isinstance(failure, FAILURES))
                        if is_enough or monotonic() + pause + self.patience > action.until:
                            break
                        await asyncio.sleep(pause)
                    try:
                        if server is None:
                            raise _no_owner(call)
                        result = await _lane(server, asked, is_large=is_large).call(asked)
                    except Exception as error:
                        failure = error
                        if not self._may_pass(error):
                            break
                        continue
                    # An earlier attempt may have come through, before the write of another client that has caused this conflict.
                    if is_unclear and result == b"CONFLICT" and call.operation == "swap":
                        raise RedisError("the answer to the write was lost")
                    return result
        raise unconfirmed or demoted or failure

    async def _follow(self, call: Call, server: Server[Call] | None, failure: Exception) -> tuple[Server[Call] | None, Call]:
        """Return where *call* goes after *failure* on *server*, and the call as it has to be sent there."""
        if self._cluster is None:
            return server, call
        if isinstance(failure, AskError) and server is not None:
            named = self._cluster.named_by(failure, server)
            if not isinstance(failure, MovedError):
                return named, structs.replace(call, slot=-1, is_asking=True)
            self._cluster.move(call.slot, named)
        elif not isinstance(failure, TryAgainError) and self._find(call) is server:
            # The call's own failure says more than one of this.
            with suppress(RedisClusterException):
                await self._cluster.learn(call.slot, server)
        return self._find(call), call

    def _may_pass(self, error: Exception) -> bool:
        return _may_pass(error) or (isinstance(error, AskError) and self._cluster is not None)

    async def _run(self, server: Server[Call], calls: Sequence[Call]) -> list[Any]:
        """Make *calls* in one round trip, or in two where *server* lacks the script; return results, with exceptions among them."""
        if (cluster := self._cluster) is not None:
            here = [call.slot < 0 or cluster.owner(call.slot) is server for call in calls]
            if not all(here):
                made = iter(await self._run(server, [*compress(calls, here)]) if any(here) else ())
                return [next(made) if is_here else _Elsewhere("the slot has moved") for is_here in here]
        watch = self._watch
        begun, changes = monotonic(), watch.changes
        try:
            with self._limit:
                if watch.is_switching and any(call.operation not in _READS for call in calls):
                    await watch.settle(self.patience)
                    begun, changes = monotonic(), watch.changes
                results = await self._send(server, calls, "EVALSHA", _SHA)
                errors = [i for i, result in enumerate(results) if isinstance(result, Exception)]
                if not errors and not watch.is_switching and watch.changes == changes:
                    return results
                if unknown := [i for i in errors if isinstance(results[i], NoScriptError)]:
                    again = await self._send(server, [calls[i] for i in unknown], "EVAL", _SCRIPT)
                    for i, result in zip(unknown, again, strict=True):
                        results[i] = result
        except Exception as error:
            results = [error] * len(calls)
            await self.distrust(error)
        if watch.is_switching or watch.changes != changes:
            results = watch.trusted(results, {i for i, call in enumerate(calls) if call.operation in _READS}, changes)
        elif any(isinstance(result, DEMOTED) for result in results):
            watch.leave()
        name = self.server() if cluster is None else server.name
        return [_tell(result, name, monotonic() - begun) for result in results]

    async def _send(self, server: Server[Call], calls: Sequence[Call], *script: str) -> list[Any]:
        """Make *calls* in one round trip, in as few commands of *script* as possible; return for each its result or its error."""
        most = _AT_A_TIME if server.node is None else 1
        is_write = self._wait_replicas > 0 and any(call.operation not in _READS for call in calls)
        if len(calls) <= most and not is_write and server.node is None:
            # A pipeline would cost a lone command half as much again.
            try:
                return _results(calls, await self._client.execute_command(*_command(calls, script, is_alone=True)))
            except ResponseError as error:
                return [error] * len(calls)
        groups = [calls[i : i + most] for i in range(0, len(calls), most)]
        commands: list[Sequence[Any]] = []
        for group in groups:
            if group[0].is_asking:
                commands.append(_ASKING)
            commands.append(_command(group, script, is_alone=len(calls) == 1))
        if is_write:
            commands.append(("WAIT", self._wait_replicas, math.ceil(self._wait * 1000)))
        answers = await (self._pipe(commands) if server.node is None else server.send(commands, wait=self._wait))
        count = answers.pop() if is_write else 0
        answers = [answer for command, answer in zip(commands, answers, strict=False) if command is not _ASKING]
        results = [result for group, answer in zip(groups, answers, strict=True) for result in _results(group, answer)]
        if is_write and (isinstance(count, Exception) or count < self._wait_replicas):
            for i, call in enumerate(calls):
                if call.operation not in _READS and not isinstance(results[i], Exception):
                    results[i] = self._unconfirmed(call, results[i], count)
        return results

    def _unconfirmed(self, call: Call, result: Any, count: Any) -> Unconfirmed:
        cause = count if isinstance(count, Exception) else None
        confirmed = count if cause is None else "none"
        error = Unconfirmed(f"{confirmed} of {self._wait_replicas} replicas have confirmed the write, which may yet be lost")
        error.is_change = call.operation in _CHANGES and result not in _UNCHANGED
        error.__cause__ = cause
        return error

    async def _pipe(self, commands: Sequence[Sequence[Any]]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        return cast("list[Any]", await pipeline.execute(raise_on_error=False))


def _may_pass(error: BaseException | None) -> bool:
    """Return whether the command may get an answer when its server is back, or another has taken over."""
    if isinstance(error, Unconfirmed):
        return _may_pass(error.__cause__)
    if isinstance(error, RedisError):
        return isinstance(error, _PASSING) and not isinstance(error, AuthenticationError)
    # redis-py itself may stumble over a server that is away.
    return isinstance(error, Exception)


def _lane(server: Server[Call], call: Call, *, is_large: bool) -> Batches[Call, Any]:
    return server.large_calls if is_large else server.calls if call.operation in _READS else server.writes


def _no_owner(call: Call) -> RedisClusterException:
    return SlotNotCoveredError(f"no known server has the slot {call.slot}")


def _tell(result: Any, server: str, seconds: float) -> Any:
    """Return *result*, or where it is an error, one that tells what timed out and has no values."""
    if isinstance(result, (RedisTimeoutError, TimeoutError)):
        error = RedisTimeoutError(f"{server} gave no answer in {seconds:.1f} s")
        error.__cause__ = result
        return error
    if isinstance(result, ResponseError):
        result.args = tuple(_ARGUMENTS.sub("", str(each)) for each in result.args)
    return result


def _command(calls: Sequence[Call], script: Sequence[str], *, is_alone: bool) -> Sequence[Any]:
    """Return the command that makes *calls*: one of *script*, or HGETALL for a load that shares no round trip."""
    if calls[0] is _SLOTS:
        return ("CLUSTER", "SLOTS")
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
    if calls[0] is _SLOTS:
        return [answer]
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
