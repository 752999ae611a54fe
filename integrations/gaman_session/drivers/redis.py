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
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import sha1
from itertools import chain, islice, repeat
from secrets import token_urlsafe
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import urlsplit, urlunsplit

from msgspec import Struct
from msgspec.msgpack import Encoder
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

_encode = Encoder().encode

_FAILURES = (RedisError, RedisClusterException, OSError, TimeoutError)
_CONNECTION_FAILURES = (ConnectionError, RedisTimeoutError, RedisClusterException, OSError)
_CLUSTER_FAILURES = (ClusterDownError, MasterDownError, ReadOnlyError, TryAgainError)
# Seconds before the next attempts. Where another server may take over, the last one is repeated.
_PAUSES: Final = (0.05, 0.1, 0.2, 0.4)
# So many trips to a server at a time: more would be smaller ones.
_AT_ONCE: Final = 4
# What one command of the script takes on, so that it holds up nobody else's.
_AT_A_TIME: Final = 64
_COLON: Final = ord(":")

# Numbers that are stored come and go as strings, in which they keep their last digit. An error keeps its code at the front. The
# answers are one flat array, each after the number of its parts, for Redis sends a nested array in pieces.
_SOURCE = f"""
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
    if not deadline then return end
    local expires = redis.call('HGET', key, 'expires')
    keep(key, now, tonumber(deadline) < tonumber(expires) and deadline or expires)
end

local function bury(key, now, successor)
    redis.call('DEL', key)
    redis.call('HSET', key, 'ended', 1)
    if successor then redis.call('HSET', key, 'successor', successor) end
    keep(key, now, string.format('%.17g', now + {TOMBSTONE}))
end

local function set(key, names, values)
    for i, name in ipairs(names) do redis.call('HSET', key, name, values[i]) end
end

local operations = {{}}

function operations.load(keys)
    return redis.call('HGETALL', keys[1])
end

function operations.create(keys, values, token, created, expires, deadline, names)
    local key = keys[#keys]
    if redis.call('EXISTS', key) == 1 then
        return redis.call('HGET', key, 'token') == token and 'WRITTEN' or 'CONFLICT'
    end
    redis.call('HSET', key, 'token', token, 'created', created, 'expires', expires, 'version', 0)
    set(key, names, values)
    keep(key, tonumber(created), deadline)
    return 'WRITTEN'
end

function operations.apply(keys, values, now, deadline, names, deletes)
    local key = keys[1]
    local state = missing(key, now)
    if state then return state end
    set(key, names, values)
    for _, name in ipairs(deletes) do redis.call('HDEL', key, name) end
    touch(key, now, deadline)
    if #deletes == 0 then return 'WRITTEN' end
    for _, name in ipairs(redis.call('HKEYS', key)) do
        if string.sub(name, 1, 1) == ':' then return 'WRITTEN' end
    end
    bury(key, now)
    return 'EMPTIED'
end

function operations.swap(keys, values, now, deadline, token, name)
    local key = keys[1]
    local state = missing(key, now)
    if state then return state end
    if redis.call('HGET', key, 'token') == token then return 'WRITTEN' end
    if redis.call('HGET', key, name) ~= (values[2] or false) then return 'CONFLICT' end
    redis.call('HSET', key, 'token', token, name, values[1])
    touch(key, now, deadline)
    return 'WRITTEN'
end

function operations.rename(keys, values, now, version, new_id, ...)
    local key = keys[1]
    local state = missing(key, now)
    if state == 'ENDED' and redis.call('HGET', key, 'successor') == new_id then return 'WRITTEN' end
    if state then return state end
    if redis.call('HGET', key, 'version') ~= version then return 'CONFLICT' end
    bury(key, now, new_id)
    return keys[2] and operations.create(keys, values, ...) or 'WRITTEN'
end

-- Returns the successor, if any; a tombstone may have led here.
function operations.destroy(keys, values, now, is_led)
    local key = keys[1]
    local state = missing(key, now)
    if state == 'ENDED' then return redis.call('HGET', key, 'successor') end
    if not state or is_led then bury(key, now) end
    return false
end

local answers = {{}}
local key, value = 1, 2
for _, call in ipairs(cmsgpack.unpack(ARGV[1])) do
    local keys, values = {{unpack(KEYS, key, key + call[2] - 1)}}, {{unpack(ARGV, value, value + call[3] - 1)}}
    key, value = key + call[2], value + call[3]
    local is_done, answer = pcall(operations[call[1]], keys, values, unpack(call, 4))
    if not is_done then
        local text = type(answer) == 'table' and answer.err or answer
        answer = {{err = string.match(text, '%u%u%u+ .*') or text}}
    end
    local parts = (type(answer) ~= 'table' or answer.err) and {{answer}} or answer
    answers[#answers + 1] = #parts
    for _, part in ipairs(parts) do answers[#answers + 1] = part end
end
return answers
"""
_SHA = sha1(_SOURCE.encode(), usedforsecurity=False).hexdigest()


class Call(Struct):
    """What the script is to do, and with which keys of Redis; values are apart, for a script's MessagePack knows no bytes."""

    operation: str
    keys: Sequence[str]
    values: Sequence[bytes] = ()
    arguments: Sequence[Any] = ()


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
        self._batches: dict[str, Batches[Call, Any]] = {}

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
        found: dict[bytes, bytes] | None = await self._call("load a session", id, Call("load", (self._prefix + id,)))
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
        values, rest = _unfold(record)
        if await self._write("create a session", "create", (id,), values, *rest) is not Outcome.WRITTEN:
            raise SessionStoreError(self.name, "create a session under an id that is taken")

    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None
    ) -> Outcome:
        """Set and delete single fields of a session that is there."""
        arguments = (now, _text(deadline), _names(sets), _names(deletes))
        return await self._write("change a session", "apply", (id,), (*sets.values(),), *arguments)

    async def swap(self, id: str, field: str, old: bytes | None, new: bytes, *, now: float, deadline: float | None) -> Outcome:
        """Set one field if it still is *old*."""
        values = (new,) if old is None else (new, old)
        return await self._write("change a session", "swap", (id,), values, now, _text(deadline), token_urlsafe(12), ":" + field)

    async def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
        """Replace the session by *record* under *new_id*, if nobody has written to it since *version*."""
        action, condition = "rename a session", (now, str(version), new_id)
        values, rest = _unfold(record)
        if self._address.kind != "cluster":
            return await self._write(action, "rename", (id, new_id), values, *condition, *rest)
        # Two slots of a Cluster share no script: the old id dies first, and a destroy() may come before the new one lives.
        outcome = await self._write(action, "rename", (id,), (), *condition)
        if outcome is Outcome.WRITTEN and await self._write(action, "create", (new_id,), values, *rest) is not Outcome.WRITTEN:
            return Outcome.ENDED
        return outcome

    async def destroy(self, id: str, *, now: float) -> None:
        """End the session, and those that it was renamed to."""
        seen: set[str] = set()
        while id not in seen:
            call = Call("destroy", (self._prefix + id,), (), (now, bool(seen)))
            seen.add(id)
            successor = await self._call("end a session", id, call)
            if successor is None:
                return
            id = successor.decode()

    async def purge(self, *, now: float, limit: int) -> int:
        """Return 0: Redis removes by itself what is over."""
        return 0

    async def _write(self, action: str, operation: str, ids: Sequence[str], values: Sequence[bytes], *arguments: Any) -> Outcome:
        call = Call(operation, [self._prefix + id for id in ids], values, arguments)
        answer: bytes | None = await self._call(action, ids[0], call)
        return Outcome.ABSENT if answer is None else Outcome[answer.decode()]

    async def _call(self, action: str, id: str, call: Call) -> Any:
        """Return what *call* answers, or None where no hash stands in the session's place."""
        node = self._node(call)
        server = "" if node is None else node.name
        if (batches := self._batches.get(server)) is None:
            at_once = min(_AT_ONCE, self._pool_size)
            batches = self._batches[server] = Batches(self._run, at_once=at_once, timeout=self._timeout)
        try:
            return await batches.call(call)
        except _FAILURES as cause:
            if isinstance(cause, ResponseError) and "WRONGTYPE" in str(cause):
                self._damage.report(id, "its hash")
                return None
            raise SessionStoreError(self.name, action) from cause

    def _node(self, call: Call) -> Any:
        """Return the node of a Cluster on which the call's first key lives, as far as that is known; None outside a Cluster."""
        if self._address.kind == "cluster":
            with suppress(RedisClusterException):
                return self._client.get_node_from_key(call.keys[0])
        return None

    async def _run(self, calls: Sequence[Call]) -> list[Any]:
        """Make *calls*, and again those to which a fault leaves no answer, until the time is up; return answers and errors."""
        now = asyncio.get_running_loop().time
        until = now() + self._timeout
        results = await self._attempt(calls)
        for pause in _PAUSES if not self._address.kind else chain(_PAUSES, repeat(_PAUSES[-1])):
            unanswered = [i for i, result in enumerate(results) if isinstance(result, Exception) and _may_pass(result)]
            if not unanswered or now() + pause + self._patience > until:
                break
            await asyncio.sleep(pause)
            again = await self._attempt([calls[i] for i in unanswered])
            for i, result in zip(unanswered, again, strict=True):
                # The first attempt may have come through, before the write of somebody else that has brought this conflict about.
                is_unclear = result == b"CONFLICT" and calls[i].operation == "swap"
                results[i] = RedisError("the answer to the write was lost") if is_unclear else result
        return results

    async def _attempt(self, calls: Sequence[Call]) -> list[Any]:
        """Make *calls*, in one trip, or in two where a server does not know the script yet."""
        try:
            # Elsewhere redis-py finds its way to the server first, and has to bound each step by itself.
            async with asyncio.timeout(None if self._address.kind else self._patience):
                results = await self._send(calls, "EVALSHA", _SHA)
                unknown = [i for i, result in enumerate(results) if isinstance(result, NoScriptError)]
                if unknown:
                    again = await self._send([calls[i] for i in unknown], "EVAL", _SOURCE)
                    for i, result in zip(unknown, again, strict=True):
                        results[i] = result
                return results
        except _FAILURES as cause:
            return [cause] * len(calls)

    async def _send(self, calls: Sequence[Call], *script: str) -> list[Any]:
        """Make *calls* in one trip, in as few commands as *script* can take them, and return for each its answer or its error."""
        most = 1 if self._address.kind == "cluster" else _AT_A_TIME
        groups = [calls[i : i + most] for i in range(0, len(calls), most)]
        writes = {i: self._node(call) for i, call in enumerate(calls) if self._wait_replicas and call.operation != "load"}
        written_to = list(dict.fromkeys(writes.values()))
        if len(groups) == 1 and not writes:
            # A pipeline would cost a lone command half as much again.
            try:
                answers = [await self._client.execute_command(*_command(calls, script))]
            except ResponseError as error:
                answers = [error]
        else:
            pipeline = self._client.pipeline(transaction=False)
            for group in groups:
                pipeline.execute_command(*_command(group, script))
            for node in written_to:
                where = {} if node is None else {"target_nodes": node}
                pipeline.execute_command("WAIT", self._wait_replicas, math.ceil(self._patience * 500), **where)
            answers = await pipeline.execute(raise_on_error=False)
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
            # A server on its own is timed here, once for a trip; redis-py would do it for each reply.
            "socket_timeout": None if is_alone else patience,
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


def _command(calls: Sequence[Call], script: Sequence[str]) -> Sequence[Any]:
    """Return the command that makes *calls*: *script*'s, but for a lone load, which needs none."""
    if len(calls) == 1 and calls[0].operation == "load":
        return ("HGETALL", *calls[0].keys)
    keys = [key for call in calls for key in call.keys]
    what = [(call.operation, len(call.keys), len(call.values), *call.arguments) for call in calls]
    # One piece is cheaper for redis-py to send than its parts.
    return (*script, len(keys), *keys, _encode(what), *(value for call in calls for value in call.values))


def _results(calls: Sequence[Call], answer: Any) -> Iterable[Any]:
    """Return for each of *calls* its part of *answer*: a hash for load(), a word or nothing for any other, or an error."""
    if isinstance(answer, Exception):
        return [answer] * len(calls)
    return [answer] if isinstance(answer, dict) else _parts(answer)


def _parts(answer: Iterable[Any]) -> Iterator[Any]:
    parts = iter(answer)
    for count in parts:
        if count == 1:
            yield next(parts)
        else:
            pairs = islice(parts, count)
            yield dict(zip(pairs, pairs, strict=True))


def _unfold(record: Record) -> tuple[Sequence[bytes], Sequence[Any]]:
    """Return the values, and what else the script takes to create *record*."""
    times = [repr(time) for time in (record.created, record.expires, record.deadline)]
    return (*record.fields.values(),), (token_urlsafe(12), *times, _names(record.fields))


def _names(fields: Iterable[str]) -> Sequence[str]:
    return [":" + field for field in fields]


def _text(deadline: float | None) -> str | Literal[False]:
    # A nil would end the list of arguments in Lua.
    return False if deadline is None else repr(deadline)
