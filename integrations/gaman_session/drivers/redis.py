"""Sessions in Redis, alone, behind Sentinels or in a Cluster: a hash for each session, which Redis itself removes.

Beside the session's own fields, whose names begin with a colon, a hash holds `created`, `expires`, `deadline`, `version`, and the
`token` of the last write that must not happen twice. A tombstone holds `ended`, `deadline`, and after a rename the `successor`.

Each write is one script, so that it happens at once or not at all. Commands that come while others are under way go out together,
in one pipeline. What a broken connection leaves open is tried again, within the driver's timeout; the token tells a write's second
attempt that the first has arrived.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from hashlib import sha1
from itertools import chain, repeat
from os import urandom
from typing import Any, Final, Literal, NamedTuple, TypeAlias
from urllib.parse import urlsplit, urlunsplit

from redis.asyncio import Redis, RedisCluster, Sentinel
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
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

from gaman.errors import ConfigError
from gaman_session._batches import Batches
from gaman_session._damage import Damage
from gaman_session._driver import TOMBSTONE, Outcome, Record
from gaman_session._errors import SessionStoreError

Command: TypeAlias = tuple[Any, ...]

_FAILURES = (RedisError, RedisClusterException, OSError, TimeoutError)
_CONNECTION_FAILURES = (ConnectionError, RedisTimeoutError, RedisClusterException, OSError)
_CLUSTER_FAILURES = (ClusterDownError, MasterDownError, ReadOnlyError, TryAgainError)
# Seconds before the next attempts. Where another server may take over, the last one is repeated.
_PAUSES: Final = (0.05, 0.1, 0.2, 0.4)
# So many trips to a server at a time: more would be smaller ones.
_AT_ONCE: Final = 4
_COLON: Final = ord(":")

# What the scripts share. Numbers come and go as strings, in which they keep their last digit.
_PRELUDE = f"""
local function missing(key, now)
    local ended, deadline, expires, version = unpack(redis.call('HMGET', key, 'ended', 'deadline', 'expires', 'version'))
    deadline = tonumber(deadline or '')
    if not deadline or deadline <= now then return 'ABSENT' end
    if ended then return 'ENDED' end
    if not tonumber(expires or '') or not tonumber(version or '') then return 'ABSENT' end
end

local function keep(key, now, deadline)
    redis.call('HSET', key, 'deadline', deadline)
    redis.call('PEXPIRE', key, math.ceil((tonumber(deadline) - now) * 1000))
end

local function touch(key, now, deadline)
    redis.call('HINCRBY', key, 'version', 1)
    if deadline == '' then return end
    local expires = redis.call('HGET', key, 'expires')
    keep(key, now, tonumber(deadline) < tonumber(expires) and deadline or expires)
end

local function bury(key, now, successor)
    redis.call('DEL', key)
    redis.call('HSET', key, 'ended', 1)
    if successor then redis.call('HSET', key, 'successor', successor) end
    keep(key, now, string.format('%.17g', now + {TOMBSTONE}))
end

local function create(key, first)
    if redis.call('EXISTS', key) == 1 then
        return redis.call('HGET', key, 'token') == ARGV[first] and 'WRITTEN' or 'CONFLICT'
    end
    redis.call('HSET', key, 'token', ARGV[first], 'created', ARGV[first + 1], 'expires', ARGV[first + 2], 'version', 0)
    for i = first + 4, #ARGV, 2 do redis.call('HSET', key, ARGV[i], ARGV[i + 1]) end
    keep(key, tonumber(ARGV[first + 1]), ARGV[first + 3])
    return 'WRITTEN'
end
"""


class Script(NamedTuple):
    """A script, and the name under which Redis knows it."""

    source: str
    sha: str


def _script(body: str) -> Script:
    source = _PRELUDE + body
    return Script(source, sha1(source.encode(), usedforsecurity=False).hexdigest())


# ARGV: token, created, expires, deadline, then fields and values.
_CREATE = _script("return create(KEYS[1], 1)")

# ARGV: now, deadline, how many fields to set, those with their values, and the fields to delete.
_APPLY = _script("""
local key, now, sets = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[3])
local state = missing(key, now)
if state then return state end
local deletes = 4 + 2 * sets
for i = 4, deletes - 1, 2 do redis.call('HSET', key, ARGV[i], ARGV[i + 1]) end
for i = deletes, #ARGV do redis.call('HDEL', key, ARGV[i]) end
touch(key, now, ARGV[2])
if deletes > #ARGV then return 'WRITTEN' end
for _, name in ipairs(redis.call('HKEYS', key)) do
    if string.sub(name, 1, 1) == ':' then return 'WRITTEN' end
end
bury(key, now)
return 'EMPTIED'
""")

# ARGV: now, deadline, token, field, new, and old unless there is to be none.
_SWAP = _script("""
local key, now = KEYS[1], tonumber(ARGV[1])
local state = missing(key, now)
if state then return state end
if redis.call('HGET', key, 'token') == ARGV[3] then return 'WRITTEN' end
if redis.call('HGET', key, ARGV[4]) ~= (ARGV[6] or false) then return 'CONFLICT' end
redis.call('HSET', key, 'token', ARGV[3], ARGV[4], ARGV[5])
touch(key, now, ARGV[2])
return 'WRITTEN'
""")

# ARGV: now, version, new id, and, with the new id's key beside the old one's, what _CREATE takes.
_RENAME = _script("""
local key, now = KEYS[1], tonumber(ARGV[1])
local state = missing(key, now)
if state == 'ENDED' and redis.call('HGET', key, 'successor') == ARGV[3] then return 'WRITTEN' end
if state then return state end
if redis.call('HGET', key, 'version') ~= ARGV[2] then return 'CONFLICT' end
bury(key, now, ARGV[3])
return KEYS[2] and create(KEYS[2], 4) or 'WRITTEN'
""")

# ARGV: now, and whether a tombstone led here. Returns the successor, if any.
_DESTROY = _script("""
local key, now = KEYS[1], tonumber(ARGV[1])
local state = missing(key, now)
if state == 'ENDED' then return redis.call('HGET', key, 'successor') end
if not state or ARGV[2] == '1' then bury(key, now) end
return false
""")

_SOURCES = {script.sha: script.source for script in (_CREATE, _APPLY, _SWAP, _RENAME, _DESTROY)}


class RedisDriver:
    """Keeps sessions in the Redis at *url*, under keys that begin with *prefix*.

    *url* is `redis://host:port/db`, `rediss://` for TLS, or `unix://path`; `redis+sentinel://host:port,host:port/name` for the
    master that Sentinels know by that name; `redis+cluster://host:port,host:port` for a Cluster; with `user:password@` before the
    first host, and redis-py's own options behind a `?`. After *timeout* seconds a call gives up, retries included. *pool_size*
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
        self._address = _parse(url)
        self._prefix = prefix
        self._timeout = timeout
        self._pool_size = pool_size
        self._wait_replicas = wait_replicas
        # A fail-over takes seconds, in which it helps to ask often; a server on its own, and WAIT, need a little longer.
        self._patience = min(0.5 if self._address.kind and not wait_replicas else 2.0, timeout)
        self._damage = Damage("redis")
        self._client: Any = None
        self._sentinels: list[Any] = []
        # Each server of a Cluster has its own: one that is lost holds up no session of another's.
        self._batches: dict[str, Batches[Command, Any]] = {}

    async def open(self) -> None:
        """Connect, or raise SessionStoreError."""
        self._client, *self._sentinels = self._address.connect(self._pool_size, self._patience)
        try:
            async with asyncio.timeout(self._timeout):
                await self._client.execute_command("EXISTS", self._prefix)
        except _FAILURES as cause:
            await self.close()
            action = f"be reached at {self._address.hosts}; see that it runs there, or change the driver's url"
            raise SessionStoreError(self.name, action) from cause

    async def close(self) -> None:
        """Close every connection, after what is under way."""
        for batches in self._batches.values():
            await batches.drain()
        for client in (self._client, *self._sentinels):
            if client is not None:
                with suppress(*_FAILURES):
                    await client.aclose()
        self._client, self._sentinels = None, []

    async def load(self, id: str, *, now: float) -> Record | Literal[Outcome.ENDED] | None:
        """Return the session, ENDED, or None."""
        found: dict[bytes, bytes] | None = await self._call("load a session", id, ("HGETALL", self._prefix + id))
        if not found:
            return None
        try:
            deadline = float(found[b"deadline"])
            if not deadline > now:
                return None
            if b"ended" in found:
                return Outcome.ENDED
            fields = {name[1:].decode(errors="replace"): value for name, value in found.items() if name and name[0] == _COLON}
            return Record(fields, float(found[b"created"]), float(found[b"expires"]), deadline, int(found[b"version"]))
        except (KeyError, ValueError):
            self._damage.report(id, "its hash")
            return None

    async def create(self, id: str, record: Record) -> None:
        """Store a new session."""
        if await self._write("create a session", id, _CREATE, (id,), *self._pack(record)) is not Outcome.WRITTEN:
            raise SessionStoreError(self.name, "create a session under an id that is taken")

    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None
    ) -> Outcome:
        """Set and delete single fields of a session that is there."""
        pairs = _pair(sets)
        gone = [b":" + field.encode() for field in deletes]
        return await self._write("change a session", id, _APPLY, (id,), now, _optional(deadline), len(sets), *pairs, *gone)

    async def swap(self, id: str, field: str, old: bytes | None, new: bytes, *, now: float, deadline: float | None) -> Outcome:
        """Set one field if it still is *old*."""
        arguments = (now, _optional(deadline), urandom(12), b":" + field.encode(), new)
        return await self._write("change a session", id, _SWAP, (id,), *arguments, *(() if old is None else (old,)))

    async def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
        """Replace the session by *record* under *new_id*, if nobody has written to it since *version*."""
        action, packed = "rename a session", self._pack(record)
        if self._address.kind != "cluster":
            return await self._write(action, id, _RENAME, (id, new_id), now, version, new_id, *packed)
        # Two slots of a Cluster share no script: the old id dies first, and a destroy() may come before the new one lives.
        outcome = await self._write(action, id, _RENAME, (id,), now, version, new_id)
        if outcome is Outcome.WRITTEN and await self._write(action, new_id, _CREATE, (new_id,), *packed) is not Outcome.WRITTEN:
            return Outcome.ENDED
        return outcome

    async def destroy(self, id: str, *, now: float) -> None:
        """End the session, and those that it was renamed to."""
        seen: set[str] = set()
        while id not in seen:
            command = self._command(_DESTROY, (id,), now, int(bool(seen)))
            seen.add(id)
            successor = await self._call("end a session", id, command)
            if successor is None:
                return
            id = successor.decode()

    async def purge(self, *, now: float, limit: int) -> int:
        """Return 0: Redis removes by itself what is over."""
        return 0

    def _pack(self, record: Record) -> Sequence[Any]:
        return (urandom(12), record.created, record.expires, record.deadline, *_pair(record.fields))

    async def _write(self, action: str, id: str, script: Script, ids: Sequence[str], *arguments: Any) -> Outcome:
        answer: bytes | None = await self._call(action, id, self._command(script, ids, *arguments))
        return Outcome.ABSENT if answer is None else Outcome[answer.decode()]

    def _command(self, script: Script, ids: Sequence[str], *arguments: Any) -> Command:
        return ("EVALSHA", script.sha, len(ids), *(self._prefix + id for id in ids), *arguments)

    async def _call(self, action: str, id: str, command: Command) -> Any:
        """Return what *command* answers, or None where no hash stands in the session's place."""
        node = self._node(command)
        server = "" if node is None else node.name
        if (batches := self._batches.get(server)) is None:
            at_once = min(_AT_ONCE, self._pool_size)
            batches = self._batches[server] = Batches(self._run, at_once=at_once, timeout=self._timeout)
        try:
            return await batches.call(command)
        except _FAILURES as cause:
            if isinstance(cause, ResponseError) and "WRONGTYPE" in str(cause):
                self._damage.report(id, "its hash")
                return None
            raise SessionStoreError(self.name, action) from cause

    def _node(self, command: Command) -> Any:
        """Return the node of a Cluster on which the command's first key lives, as far as that is known; None outside a Cluster."""
        if self._address.kind == "cluster":
            with suppress(RedisClusterException):
                return self._client.get_node_from_key(command[1] if command[0] == "HGETALL" else command[3])
        return None

    async def _run(self, commands: Sequence[Command]) -> list[Any]:
        """Send *commands*, and again those to which a fault leaves no answer, until the time is up; return answers and errors."""
        now = asyncio.get_running_loop().time
        until = now() + self._timeout
        results = await self._attempt(commands)
        for pause in _PAUSES if not self._address.kind else chain(_PAUSES, repeat(_PAUSES[-1])):
            unanswered = [i for i, result in enumerate(results) if isinstance(result, Exception) and _may_pass(result)]
            if not unanswered or now() + pause + self._patience > until:
                break
            await asyncio.sleep(pause)
            again = await self._attempt([commands[i] for i in unanswered])
            for i, result in zip(unanswered, again, strict=True):
                # The first attempt may have come through, before the write of somebody else that has brought this conflict about.
                is_unclear = result == b"CONFLICT" and commands[i][1] == _SWAP.sha
                results[i] = RedisError("the answer to the write was lost") if is_unclear else result
        return results

    async def _attempt(self, commands: Sequence[Command]) -> list[Any]:
        """Send *commands* once, with the source of each script that the server does not know."""
        try:
            results = await self._send(commands)
            unknown = [i for i, result in enumerate(results) if isinstance(result, NoScriptError)]
            if unknown:
                again = await self._send([("EVAL", _SOURCES[commands[i][1]], *commands[i][2:]) for i in unknown])
                for i, result in zip(unknown, again, strict=True):
                    results[i] = result
            return results
        except _FAILURES as cause:
            return [cause] * len(commands)

    async def _send(self, commands: Sequence[Command]) -> list[Any]:
        """Send *commands* in one trip, and return for each its answer or its error."""
        if len(commands) == 1 and not self._wait_replicas:
            # A pipeline would cost a lone command half as much again.
            try:
                return [await self._client.execute_command(*commands[0])]
            except ResponseError as error:
                return [error]
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        if self._wait_replicas:
            return await self._wait(pipeline, commands)
        results: list[Any] = await pipeline.execute(raise_on_error=False)
        return results

    async def _wait(self, pipeline: Any, commands: Sequence[Command]) -> list[Any]:
        """Send the pipeline, and have each of its writes confirmed by replicas of the server that it went to."""
        nodes = {i: self._node(command) for i, command in enumerate(commands) if command[0] != "HGETALL"}
        written_to = list(dict.fromkeys(nodes.values()))
        for node in written_to:
            where = {} if node is None else {"target_nodes": node}
            pipeline.execute_command("WAIT", self._wait_replicas, math.ceil(self._patience * 500), **where)
        results: list[Any] = await pipeline.execute(raise_on_error=False)
        counts = dict(zip(written_to, results[len(commands) :], strict=True))
        for i, node in nodes.items():
            count = counts[node]
            if isinstance(count, Exception):
                results[i] = count
            elif not isinstance(results[i], Exception) and (count < self._wait_replicas or node != self._node(commands[i])):
                results[i] = RedisError(
                    f"{count} of {self._wait_replicas} replicas have confirmed the write, which may yet be lost"
                )
        return results[: len(commands)]


def _may_pass(error: Exception) -> bool:
    """Return whether the command may get an answer when its server is back, or another has taken over."""
    return isinstance(error, (*_CONNECTION_FAILURES, *_CLUSTER_FAILURES)) and not isinstance(error, AuthenticationError)


_KINDS = {(scheme, kind) for scheme in ("redis", "rediss") for kind in ("", "sentinel", "cluster")} | {("unix", "")}


class _Address(NamedTuple):
    """What a URL says."""

    kind: str
    """`cluster`, `sentinel`, or nothing for a server on its own."""
    hosts: str
    """As they stand in the URL, without the password: for messages."""
    urls: Sequence[str]
    """For each host a URL of redis-py's."""
    master: str

    def connect(self, pool_size: int, patience: float) -> Sequence[Any]:
        """Return a client, and those of the Sentinels; they connect later, and lose patience after so many seconds."""
        is_alone = not self.kind
        settings: dict[str, Any] = {
            "socket_timeout": patience,
            "socket_connect_timeout": patience,
            "socket_keepalive": True,
            "max_connections": pool_size,
            # Only the driver knows which commands it may send twice.
            "retry": Retry(NoBackoff(), 0),
        }
        if is_alone:
            client: Any = Redis
            return [client.from_url(self.urls[0], **settings)]
        options: list[dict[str, Any]] = [dict(parse_url(url)) for url in self.urls]
        nodes = [(each.pop("host", "localhost"), each.pop("port", 6379)) for each in options]
        settings |= options[0]
        if settings.pop("connection_class", None) is not None:
            settings["ssl"] = True
        if self.kind == "cluster":
            return [RedisCluster(startup_nodes=[ClusterNode(host, port) for host, port in nodes], **settings)]
        # The Sentinels have passwords of their own.
        theirs = {name.removeprefix("sentinel_"): settings.pop(name) for name in [*settings] if name.startswith("sentinel_")}
        theirs |= {name: value for name, value in settings.items() if name.startswith(("socket_", "ssl"))}
        make: Any = Sentinel
        sentinel = make(nodes, sentinel_kwargs=theirs, **settings)
        return [sentinel.master_for(self.master), *sentinel.sentinels]


def _parse(url: str) -> _Address:
    """Return what *url* says, or raise ConfigError, which does not repeat it: there may be a password in it."""
    forms = "redis://, rediss://, unix://, redis+sentinel:// with the master's name as its path, or redis+cluster://"
    wrong = ConfigError(f"the redis driver can't read its url; it takes one that begins with {forms}")
    if not isinstance(url, str):
        raise wrong
    try:
        parts = urlsplit(url)
    except ValueError:
        raise wrong from None
    scheme, _, kind = parts.scheme.partition("+")
    if (scheme, kind) not in _KINDS:
        raise wrong
    credentials, at, hosts = parts.netloc.rpartition("@")
    master = parts.path.strip("/") if kind == "sentinel" else ""
    if (kind == "sentinel" and not master) or (not kind and "," in hosts):
        raise wrong
    path = "" if kind == "sentinel" else parts.path
    urls = [urlunsplit((scheme, credentials + at + host, path, parts.query, "")) for host in hosts.split(",")]
    address = _Address(kind, hosts or parts.path or "localhost", urls, master)
    try:
        for each in urls:
            parse_url(each)
    except ValueError:
        # Its text, and so the cause's, may hold a part of the password.
        raise wrong from None
    return address


def _pair(fields: Mapping[str, bytes]) -> list[bytes]:
    """Return names and values by turns."""
    return [part for name, value in fields.items() for part in (b":" + name.encode(), value)]


def _optional(deadline: float | None) -> float | str:
    return "" if deadline is None else deadline
