"""Sessions in Redis, alone, behind Sentinels or in a Cluster: a hash for each session, which Redis itself removes.

Beside the session's own fields, whose names begin with a colon, a hash holds `created`, `expires` and their `seal`, `deadline`,
`version`, the `size` of those fields, and the `token` of the last write that must not happen twice. A tombstone holds `ended`,
`deadline`, and after a rename the `successor`.
A session of somebody's also has its `owner`, `since` when, and a `note`. For each owner there is a sorted set, `owner:` and the
owner, of the ids of their sessions by when these expire; its member `ended` tells for a minute when all of them were ended. One
more, `live`, is of all ids by their deadlines. In a Cluster there are 4,096 of these, each in the slot of the sessions in it.

`redis.lua`, beside this file, is the script that does what a call asks, at once or not at all. Calls that come while others are
under way go out together, in one command; in a Cluster each has its own, to the server that has its key. What a broken connection
leaves open is tried again, within the driver's timeout; the token tells a write's second attempt that the first has arrived.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from hashlib import sha1
from importlib.resources import files
from itertools import chain, islice, repeat
from secrets import token_urlsafe
from time import monotonic
from typing import Any, Final, Literal, cast

from msgspec import Struct
from msgspec.msgpack import Encoder
from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    ClusterDownError,
    ConnectionError,
    MasterDownError,
    MovedError,
    NoScriptError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    TryAgainError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from gaman.errors import ConfigError
from gaman_session._batches import Batches
from gaman_session._damage import Damage
from gaman_session._driver import LARGE, MAX_SKEW, TOMBSTONE, YEAR_10000, Outcome, Record, Tag, is_sound
from gaman_session._errors import SessionStoreError
from gaman_session._time_limit import TimeLimit
from gaman_session.drivers._redis_address import Address, parse
from gaman_session.drivers._redis_master import NotMasterError, SentinelWatch, ServerWatch, Watch, greet
from gaman_session.drivers._redis_replicas import warn

_encode = Encoder().encode

_FAILURES = (RedisError, RedisClusterException, OSError, TimeoutError)
_CONNECTION_FAILURES = (ConnectionError, RedisTimeoutError, RedisClusterException, OSError)
_CLUSTER_FAILURES = (ClusterDownError, MasterDownError, ReadOnlyError, TryAgainError)
_DEMOTED = (MasterDownError, ReadOnlyError)
_DATABASE: Final = re.compile("DB index|SELECT is not allowed|is not an integer|out of range")
_is_whole: Final = re.compile(rb"[0-9]{1,14}").fullmatch
_FORBIDDEN: Final = re.compile("no permission|can't (run|access)|unknown", re.IGNORECASE)
# Seconds before the next attempts. Where another server may take over, the last one is repeated.
_PAUSES: Final = (0.05, 0.1, 0.2, 0.4)
# So many trips to a server at a time: more would be smaller ones.
_AT_ONCE: Final = 4
# What one command of the script takes on, so that it holds up nobody else's.
_AT_A_TIME: Final = 64
_COLON: Final = ord(":")
# Of large sessions, each in a round trip and over a connection that no other call waits for.
_LARGE_AT_ONCE: Final = 2
_LARGE_KNOWN: Final = 1000
_READS: Final = ("load", "look", "owned", "count")
_TAG: Final = ("owner", "since", "note")

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


class RedisDriver:
    """Keeps sessions in the Redis at *url*, under keys that begin with *prefix*.

    *url* is `redis://host:port/db`, `rediss://` for TLS, or `unix:///path`; `redis+sentinel://host:port,host:port/name` for the
    master that Sentinels know by that name; `redis+cluster://host:port,host:port` for a Cluster; with `user:password@` before the
    first host, and options of redis-py behind a `?`. After *timeout* seconds a call gives up, retries included. *pool_size*
    bounds the connections to each server. A write is acknowledged when *wait_replicas* replicas have it.
    """

    name = "redis"
    shared = True

    def __init__(
        self,
        *,
        url: str = "redis://localhost:6379",
        prefix: str = "gaman:",
        timeout: float = 10,
        pool_size: int = 16,
        wait_replicas: int = 0,
    ) -> None:
        if not isinstance(prefix, str):
            raise ConfigError(f"the redis driver has prefix={prefix!r}; it takes text")
        if not isinstance(timeout, (int, float)) or isinstance(timeout, bool) or not 0 < timeout < math.inf:
            raise ConfigError(f"the redis driver has timeout={timeout!r}; it takes a number of seconds above 0")
        for name, number, least in (("pool_size", pool_size, 1), ("wait_replicas", wait_replicas, 0)):
            if not isinstance(number, int) or isinstance(number, bool) or number < least:
                raise ConfigError(f"the redis driver has {name}={number!r}; it takes a whole number from {least} up")
        self._address = parse(url)
        self._is_cluster = self._address.kind == "cluster"
        self._prefix = prefix
        self._timeout = timeout
        self._pool_size = pool_size
        self._wait_replicas = wait_replicas
        # A fail-over takes seconds, in which it helps to ask often; a server on its own, and WAIT, need a little longer.
        self._patience = min(0.5 if self._address.kind and not wait_replicas else 2.0, timeout)
        # Elsewhere than on a server of its own, redis-py finds its way there first, and has to bound each step by itself.
        self._limit: AbstractContextManager[None] = nullcontext() if self._address.kind else TimeLimit(self._patience)
        self._damage = Damage("redis")
        self._client: Any = None
        self._watch = Watch()
        # Each server of a Cluster has its own: one that is lost holds up no session of another's.
        self._batches: dict[tuple[str, bool], Batches[Call, Any]] = {}
        """For each server two: one for ordinary calls, and one for loading large sessions."""
        self._large: set[str] = set()
        """Sessions that were large when they were last loaded; only a hint, which saves asking first."""

    async def open(self) -> None:
        """Connect, and find out whether the driver may do all that it needs; or raise ConfigError or SessionStoreError."""
        self._client, self._watch = _connect(self._address, self._pool_size, self._patience)
        await self._watch.open(None if self._is_cluster else self._client.connection_pool)
        key = (f"{self._shard('000')}check",)
        # The first tells whether it may read, and the second brings the script, because waiting for replicas takes the third long.
        calls = [Call("load", key), Call("look", key), Call("check", key)]
        until = monotonic() + self._timeout
        while True:
            try:
                async with asyncio.timeout(until - monotonic()):
                    answers = [answer for call in calls for answer in await self._attempt([call])]
            except TimeoutError as cause:
                answers = [cause]
            # A failover may be under way.
            passing = (*_DEMOTED, NotMasterError) if self._watch.answer is None else _CONNECTION_FAILURES
            may_pass = any(isinstance(answer, passing) and not isinstance(answer, AuthenticationError) for answer in answers)
            if not may_pass or monotonic() + _PAUSES[-1] > until:
                break
            await asyncio.sleep(_PAUSES[-1])
        # The check names the command that a user may not run.
        for answer in reversed(answers):
            if isinstance(answer, Exception) and (error := self._refusal(answer)) is not None:
                await self.close()
                raise error from answer
        await warn(
            self._client,
            self._watch.answer,
            is_cluster=self._is_cluster,
            named=len(self._address.urls),
            wait_replicas=self._wait_replicas,
            seconds=self._patience,
        )

    def _refusal(self, cause: BaseException) -> Exception | None:
        """Return why the driver can't work with what open() got for an answer, or None where that may pass by itself."""
        while isinstance(cause, RedisClusterException) and cause.__cause__ is not None:
            cause = cause.__cause__
        text, hosts = str(cause), self._address.hosts
        if isinstance(cause, AuthenticationError):
            return ConfigError(f"the redis driver can't log in at {hosts}: {text}; check the user and the password in its url")
        if isinstance(cause, MovedError):
            return ConfigError(f"the redis driver found a Cluster at {hosts}; write redis+cluster:// in its url")
        if isinstance(cause, (*_DEMOTED, NotMasterError)) and not self._is_cluster:
            fix = "see that its Sentinels have a master" if self._address.kind else "write the master's address in its url"
            return ConfigError(f"the redis driver found a replica at {hosts}, which takes no changes; {fix}")
        # Over a socket, redis-py takes this for a failed connection.
        if _DATABASE.search(text):
            return ConfigError(f"the redis driver can't use the database in its url at {hosts}: {text}; choose one that is there")
        if isinstance(cause, (*_CONNECTION_FAILURES, TimeoutError)):
            return SessionStoreError(self.name, f"be reached at {hosts}; see that it runs there, or change the driver's url")
        if "No such master" in text:
            return ConfigError(f"the Sentinels at {hosts} watch no master {self._address.master!r}; write its name in the url")
        if "SENTINEL" in text:
            return ConfigError(f"the redis driver found no Sentinel at {hosts}; write their hosts, or redis:// in its url")
        if _FORBIDDEN.search(text):
            fix = f"let its user run it, on the keys {self._prefix}*"
            return ConfigError(f"the redis driver lacks a permission at {hosts}: {text}; {fix}")
        # Memory is full, say, or too few replicas are there.
        return None

    async def close(self) -> None:
        """Close every connection, after what is under way."""
        for batches in self._batches.values():
            await batches.drain()
        await self._watch.close()
        if self._client is not None:
            with suppress(*_FAILURES):
                await self._client.aclose()
        self._client, self._watch = None, Watch()

    async def load(self, id: str, *, now: float) -> Record | Literal[Outcome.ENDED] | None:
        """Return the session, ENDED, or None."""
        action, key = "load a session", (self._key(id),)
        found: Any = b"LARGE" if id in self._large else await self._call(action, id, Call("load", key))
        if found == b"LARGE":
            found = await self._call(action, id, Call("load", key, (), (True,)), is_large=True)
        return self._record(id, found, now)

    async def create(self, id: str, record: Record) -> Literal[Outcome.REFUSED] | None:
        """Store a new session."""
        outcome = await self._create(id, record)
        if outcome is Outcome.REFUSED:
            return outcome
        if outcome is not Outcome.WRITTEN:
            raise SessionStoreError(self.name, "create a session under an id that is taken")
        return None

    async def apply(
        self,
        id: str,
        sets: Mapping[str, bytes],
        deletes: Collection[str],
        *,
        now: float,
        deadline: float | None,
        max_size: int,
    ) -> Outcome:
        """Set and delete single fields of a session that is there."""
        arguments = (now, _text(deadline), max_size, _names(sets), _names(deletes))
        return await self._write("change a session", "apply", (id,), (*sets.values(),), *arguments)

    async def swap(
        self, id: str, field: str, old: bytes | None, new: bytes, *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        """Set one field if it still is *old*."""
        values = (new,) if old is None else (new, old)
        arguments = (now, _text(deadline), max_size, token_urlsafe(12), ":" + field)
        return await self._write("change a session", "swap", (id,), values, *arguments)

    async def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
        """Replace the session by *record* under *new_id*, if nobody has written to it since *version*."""
        action, tag = "rename a session", record.tag
        values, rest = _unfold(record)
        condition = (now, str(version), new_id, tag is not None and repr(tag.since))
        if not self._is_cluster:
            ids = (id, new_id) if tag is None else (id, new_id, _index(tag.owner))
            return await self._write(action, "rename", ids, values, *condition, *rest)
        if tag is not None and await self._enter(action, new_id, tag, record, now) is Outcome.REFUSED:
            # Only shortly after an end of all this costs a trip more: a tag that is no new one is not refused.
            found = await self._look(action, id, now)
            if not isinstance(found, Record):
                return found or Outcome.ABSENT
            if found.tag is None or found.tag.since != tag.since:
                return Outcome.REFUSED
            await self._enter(action, new_id, tag, record, now, is_carried=True)
        # Two slots of a Cluster share no script: the old id dies first, and a destroy() may come before the new one lives.
        outcome = await self._write(action, "rename", (id,), (), *condition)
        if outcome is not Outcome.WRITTEN:
            return outcome
        created = await self._write(action, "create", (new_id,), values, False, *rest)
        return created if created is Outcome.WRITTEN else Outcome.ENDED

    async def destroy(self, id: str, *, now: float) -> None:
        """End the session, and those that it was renamed to."""
        seen: set[str] = set()
        while id not in seen:
            call = Call("destroy", (self._key(id),), (), (now, bool(seen)))
            seen.add(id)
            successor = await self._call("end a session", id, call)
            if successor is None:
                return
            id = successor.decode()

    async def purge(self, *, now: float, limit: int) -> int:
        """Return 0: Redis removes by itself what is over."""
        return 0

    async def tag(
        self,
        id: str,
        tag: Tag | None,
        sets: Mapping[str, bytes],
        deletes: Collection[str],
        *,
        now: float,
        deadline: float | None,
        max_size: int,
    ) -> Outcome:
        """Do what apply() does, and give the session to the owner of *tag*, or to nobody. In a Cluster, it takes three trips."""
        action, names, values, gone = "change a session", _names(sets), (*sets.values(),), _names(deletes)
        limits = (_text(deadline), max_size)
        if tag is None:
            return await self._write(action, "tag", (id,), values, now, False, False, *limits, names, [*gone, *_TAG])
        ids = [id, _index(tag.owner)]
        if self._is_cluster:
            # The owner's set comes first: it may have what is not there, and must not lack what is.
            found = await self._look(action, id, now)
            if not isinstance(found, Record):
                return found or Outcome.ABSENT
            if await self._enter(action, id, tag, found, now) is Outcome.REFUSED:
                return Outcome.REFUSED
            ids.pop()
        arguments = (now, repr(tag.since), tag.owner, *limits, [*names, *_TAG], gone)
        return await self._write(action, "tag", ids, (*values, *_pack(tag)), *arguments)

    async def owned(self, owner: str, *, now: float) -> Mapping[str, Record]:
        """Return the owner's sessions, without their fields: in two round trips: one for their ids, and one for them."""
        action = "list the sessions of an owner"
        ids = await self._members(action, "owned", owner, now)
        found = dict(zip(ids, await asyncio.gather(*(self._look(action, id, now) for id in ids)), strict=True))
        # What has ended never comes back. Where a set is in another slot, what is not there may be about to come.
        is_atomic = not self._is_cluster
        over = [id for id, each in found.items() if each is Outcome.ENDED or (each is None and is_atomic)]
        await self._leave(action, owner, over, now)
        return {
            id: each for id, each in found.items() if isinstance(each, Record) and each.tag is not None and each.tag.owner == owner
        }

    async def end_owned(self, owner: str, *, keep: Collection[str], now: float) -> int:
        """Refuse the owner's older tags from now on, and then end the sessions that there are."""
        action = "end the sessions of an owner"
        ids = [id for id in await self._members(action, "end_owned", owner, now) if id not in keep]
        ended, over, seen = 0, set(ids), {*ids, *keep}
        while ids:
            # In a Cluster a session may be about to be stored, or renamed.
            arguments = (now, owner, self._is_cluster)
            calls = [(id, Call("end_one", (self._key(id),), (), arguments)) for id in ids]
            answers: list[bytes | int | None] = await asyncio.gather(*(self._call(action, id, call) for id, call in calls))
            ended += answers.count(1)
            # What is somebody else's may be given back, and then it must not leave the set.
            over.difference_update(id for id, answer in zip(ids, answers, strict=True) if answer == 0)
            ids = [id for answer in answers if isinstance(answer, bytes) and (id := answer.decode()) not in seen]
            seen.update(ids)
        await self._leave(action, owner, over, now)
        return ended

    async def count(self, *, now: float) -> int:
        """Return how many sessions the index has. One that Redis evicts, or a person deletes, is in it up to its deadline."""
        shards = [f"{number:03x}" for number in range(16**3)] if self._is_cluster else [""]
        indexes = [self._shard(shard) + "live" for shard in shards]
        count = 0
        for start in range(0, len(indexes), _AT_A_TIME):
            calls = [Call("count", (index,), (), (now,)) for index in indexes[start : start + _AT_A_TIME]]
            count += sum(await asyncio.gather(*(self._call("count its sessions", None, call) for call in calls)))
        return count

    async def _look(self, action: str, id: str, now: float) -> Record | Literal[Outcome.ENDED] | None:
        """Return what load() does, but for the fields."""
        return self._record(id, await self._call(action, id, Call("look", (self._key(id),))), now)

    def _record(self, id: str, found: dict[bytes, bytes] | None, now: float) -> Record | Literal[Outcome.ENDED] | None:
        """Return what the hash *found* holds; None where there is none, or it has expired or is damaged."""
        if not found:
            return None
        try:
            deadline = float(found[b"deadline"])
            if not deadline > now:
                return None
            if b"ended" in found:
                return Outcome.ENDED
            if int(found[b"size"]) <= LARGE:
                self._large.discard(id)
            else:
                if len(self._large) == _LARGE_KNOWN:
                    self._large.clear()
                self._large.add(id)
            fields = {name[1:].decode(errors="replace"): value for name, value in found.items() if name and name[0] == _COLON}
            tag = Tag(found[b"owner"].decode(), found[b"note"], float(found[b"since"])) if b"owner" in found else None
            created, expires, version = float(found[b"created"]), float(found[b"expires"]), int(found[b"version"])
            # The script writes whole numbers so, and takes no others.
            if not (is_sound(created, expires, deadline) and _is_whole(found[b"version"]) and _is_whole(found[b"size"])):
                raise ValueError
            return Record(fields, created, expires, deadline, version, tag, found.get(b"seal", b""))
        except (KeyError, ValueError):
            self._damage.report(id, "its hash")
            return None

    async def _create(self, id: str, record: Record) -> Outcome:
        action, (values, rest), tag = "create a session", _unfold(record), record.tag
        if tag is None:
            return await self._write(action, "create", (id,), values, False, *rest)
        if not self._is_cluster:
            return await self._write(action, "create", (id, _index(tag.owner)), values, repr(tag.since), *rest)
        if await self._enter(action, id, tag, record, record.created) is Outcome.REFUSED:
            return Outcome.REFUSED
        outcome = await self._write(action, "create", (id,), values, False, *rest)
        if outcome is Outcome.CONFLICT and await self._look(action, id, record.created) is Outcome.ENDED:
            # All of the owner's sessions were ended after this one had its place among them, and before it was there.
            return Outcome.REFUSED
        return outcome

    async def _enter(self, action: str, id: str, tag: Tag, record: Record, now: float, *, is_carried: bool = False) -> Outcome:
        arguments = (now, repr(tag.since), id, repr(record.expires), is_carried)
        index = _index(tag.owner)
        return _outcome(await self._call(action, index, Call("enter", (self._prefix + index,), (), arguments)))

    def _key(self, id: str) -> str:
        return self._shard(id) + id

    def _shard(self, id: str) -> str:
        """Return what a session's key begins with, and that of its index: in a Cluster, with a hash tag that they share."""
        return f"{self._prefix}{{{id[:3]}}}" if self._is_cluster else self._prefix

    async def _members(self, action: str, operation: str, owner: str, *times: float) -> list[str]:
        """Return the ids in the owner's set, after what *operation* does to it."""
        key = self._prefix + _index(owner)
        found: dict[bytes, bytes] = await self._call(action, _index(owner), Call(operation, (key,), (), times)) or {}
        return [member.decode() for member in found if member != b"ended"]

    async def _leave(self, action: str, owner: str, ids: Collection[str], now: float) -> None:
        if ids:
            index = _index(owner)
            await self._call(action, index, Call("leave", (self._prefix + index,), (), (now, [*ids])))

    async def _write(self, action: str, operation: str, ids: Sequence[str], values: Sequence[bytes], *arguments: Any) -> Outcome:
        call = Call(operation, [self._key(id) for id in ids], values, arguments)
        return _outcome(await self._call(action, ids[0], call))

    async def _call(self, action: str, id: str | None, call: Call, *, is_large: bool = False) -> Any:
        """Return what *call* answers, or None where no hash stands in the session's place."""
        node = self._node(call) if self._is_cluster else None
        server = "" if node is None else node.name
        # Over a single connection, everything waits for everything.
        lane = server, is_large and self._pool_size > 1
        if (batches := self._batches.get(lane)) is None:
            batches = self._batches[lane] = self._new_batches(is_large=lane[1])
        try:
            return await batches.call(call)
        except _FAILURES as cause:
            if id is not None and isinstance(cause, ResponseError) and "WRONGTYPE" in str(cause):
                self._damage.report(id, "its hash")
                return None
            raise SessionStoreError(self.name, f"{action} at {server or self._address.hosts}") from cause

    def _new_batches(self, *, is_large: bool) -> Batches[Call, Any]:
        large = min(_LARGE_AT_ONCE, self._pool_size // 2)
        if is_large:
            return Batches(self._run, at_once=large, most=1, timeout=self._timeout)
        return Batches(self._run, at_once=min(_AT_ONCE, self._pool_size - large), timeout=self._timeout)

    def _node(self, call: Call) -> Any:
        """Return the node of a Cluster on which the call's first key lives, as far as that is known; None outside a Cluster."""
        if self._is_cluster:
            with suppress(RedisClusterException):
                return self._client.get_node_from_key(call.keys[0])
        return None

    async def _run(self, calls: Sequence[Call]) -> list[Any]:
        """Make *calls*, and again those to which a fault leaves no answer, until the time is up; return answers and errors."""
        until = monotonic() + self._timeout
        results = await self._attempt(calls)
        for pause in _PAUSES if not self._address.kind else chain(_PAUSES, repeat(_PAUSES[-1])):
            unanswered = [i for i, result in enumerate(results) if isinstance(result, Exception) and _may_pass(result)]
            if any(isinstance(results[i], _DEMOTED) for i in unanswered):
                await self._disconnect()
            if not unanswered or monotonic() + pause + self._patience > until:
                break
            await asyncio.sleep(pause)
            again = await self._attempt([calls[i] for i in unanswered])
            for i, result in zip(unanswered, again, strict=True):
                # The first attempt may have come through, before the write of somebody else that has brought this conflict about.
                is_unclear = result == b"CONFLICT" and calls[i].operation == "swap"
                results[i] = RedisError("the answer to the write was lost") if is_unclear else result
        return results

    async def _disconnect(self) -> None:
        """Drop all connections: they lead to a server that isn't the master any more, and new ones find what replaced it."""
        self._watch.leave()

    async def _attempt(self, calls: Sequence[Call]) -> list[Any]:
        """Make *calls*, in one trip, or in two where a server does not know the script yet."""
        watch = self._watch
        if watch.is_switching and not all(call.operation in _READS for call in calls):
            await watch.settle(self._patience)
        changes = watch.changes
        try:
            with self._limit:
                results = await self._send(calls, "EVALSHA", _SHA)
                unknown = [i for i, result in enumerate(results) if isinstance(result, NoScriptError)]
                if unknown:
                    again = await self._send([calls[i] for i in unknown], "EVAL", _SCRIPT)
                    for i, result in zip(unknown, again, strict=True):
                        results[i] = result
                if watch.is_switching or watch.changes != changes:
                    reads = {i for i, call in enumerate(calls) if call.operation in _READS}
                    return watch.trusted(results, reads, changes)
                return results
        except _FAILURES as cause:
            return [cause] * len(calls)

    async def _send(self, calls: Sequence[Call], *script: str) -> list[Any]:
        """Make *calls* in one trip, in as few commands as *script* can take them, and return for each its answer or its error."""
        most = 1 if self._is_cluster else _AT_A_TIME
        if len(calls) <= most and not self._wait_replicas:
            # A pipeline would cost a lone command half as much again.
            try:
                return _results(calls, await self._client.execute_command(*_command(calls, script, is_alone=True)))
            except ResponseError as error:
                return [error] * len(calls)
        groups = [calls[i : i + most] for i in range(0, len(calls), most)]
        writes = {i: self._node(call) for i, call in enumerate(calls) if self._wait_replicas and call.operation not in _READS}
        written_to = list(dict.fromkeys(writes.values()))
        pipeline = self._client.pipeline(transaction=False)
        for group in groups:
            pipeline.execute_command(*_command(group, script, is_alone=len(calls) == 1))
        for node in written_to:
            where = {} if node is None else {"target_nodes": node}
            pipeline.execute_command("WAIT", self._wait_replicas, math.ceil(self._patience * 500), **where)
        answers: list[Any] = await pipeline.execute(raise_on_error=False)
        results = [result for group, answer in zip(groups, answers, strict=False) for result in _results(group, answer)]
        counts = dict(zip(written_to, answers[len(groups) :], strict=True))
        for i, node in writes.items():
            count = counts[node]
            if isinstance(results[i], Exception):
                # A replica refuses to WAIT as well, and tells less by that.
                continue
            if isinstance(count, Exception):
                results[i] = count
            elif count < self._wait_replicas or node != self._node(calls[i]):
                results[i] = RedisError(
                    f"{count} of {self._wait_replicas} replicas have confirmed the write, which may yet be lost"
                )
        return results


def _may_pass(error: Exception) -> bool:
    """Return whether the command may get an answer when its server is back, or another has taken over."""
    return isinstance(error, (*_CONNECTION_FAILURES, *_CLUSTER_FAILURES)) and not isinstance(error, AuthenticationError)


def _check_tls(options: Mapping[str, Any]) -> None:
    """Raise ConfigError for options of TLS that can't work, as for a file that isn't there."""
    if options.get("connection_class") is SSLConnection:
        try:
            connection: Any = SSLConnection(**{name: value for name, value in options.items() if name.startswith("ssl_")})
            connection.ssl_context.get()
        except (OSError, ValueError) as cause:
            raise ConfigError(f"the redis driver can't use the ssl_ options in its url: {cause}") from cause


def _connect(address: Address, pool_size: int, patience: float) -> tuple[Any, Watch]:
    """Return a client, and what watches its master; they connect later, and lose patience after so many seconds."""
    is_alone = not address.kind
    settings: dict[str, Any] = {
        # A server on its own is timed here, once a round trip; redis-py would do it for each reply.
        "socket_timeout": None if is_alone else patience,
        "socket_connect_timeout": patience,
        "max_connections": pool_size,
        # Only the driver knows which commands it may send twice.
        "retry": Retry(NoBackoff(), 0),
    }
    if not address.is_socket:
        settings["socket_keepalive"] = True
    options: list[dict[str, Any]] = [dict(parse_url(url)) for url in address.urls]
    _check_tls(options[0])
    if is_alone:
        client: Any = Redis
        settings["redis_connect_func"] = greet
        watching = client.from_url(address.urls[0], **settings | {"socket_timeout": patience, "max_connections": 1})
        return client.from_url(address.urls[0], **settings), ServerWatch(address.hosts, watching)
    nodes = [(each.pop("host", "localhost"), each.pop("port", 6379)) for each in options]
    settings |= options[0]
    if settings.pop("connection_class", None) is not None:
        settings["ssl"] = True
    if address.kind == "cluster":
        return RedisCluster(startup_nodes=[ClusterNode(host, port) for host, port in nodes], **settings), Watch()
    # The Sentinels have passwords of their own.
    theirs = {name.removeprefix("sentinel_"): settings.pop(name) for name in [*settings] if name.startswith("sentinel_")}
    theirs |= {name: value for name, value in settings.items() if name.startswith(("socket_", "ssl", "retry"))}
    make: Any = Redis
    watch = SentinelWatch(address.master, [make(host=host, port=port, **theirs) for host, port in nodes])
    pool: Any = SentinelConnectionPool
    return make.from_pool(pool(address.master, watch, redis_connect_func=watch.greet, **settings)), watch


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


def _outcome(word: bytes | None) -> Outcome:
    return Outcome.ABSENT if word is None else Outcome[word.decode()]


def _parts(answer: Iterable[Any]) -> Iterator[Any]:
    rest = iter(answer)
    for length in rest:
        if length == 1:
            yield next(rest)
        else:
            yield _pairs(islice(rest, length))


def _unfold(record: Record) -> tuple[Sequence[bytes], Sequence[Any]]:
    """Return the values, and what else the script takes to store *record*."""
    times = [repr(time) for time in (record.created, record.expires, record.deadline)]
    names, values = _names(record.fields), [*record.fields.values()]
    if record.seal:
        names.append("seal")
        values.append(record.seal)
    if record.tag is not None:
        names += _TAG
        values += _pack(record.tag)
    return values, (token_urlsafe(12), *times, names)


def _pack(tag: Tag) -> Sequence[bytes]:
    """Return the values of the fields that _TAG names."""
    return (tag.owner.encode(), repr(tag.since).encode(), tag.note)


def _names(fields: Iterable[str]) -> list[str]:
    return [":" + field for field in fields]


def _text(deadline: float | None) -> str | Literal[False]:
    # A nil would end the list of arguments in Lua.
    return False if deadline is None else repr(deadline)


def _index(owner: str) -> str:
    """Return what the key of an owner's set has after the prefix."""
    return f"owner:{owner}"
