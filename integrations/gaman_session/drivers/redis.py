"""Sessions in Redis, alone, behind Sentinels or in a Cluster: a hash for each session, which Redis itself removes.

Beside the session's own fields, whose names begin with a colon, a hash holds `created`, `expires`, `deadline`, `version`, and the
`token` of the last write that must not happen twice. A tombstone holds `ended`, `deadline`, and after a rename the `successor`.
A session of somebody's also has its `owner`, `since` when, and a `note`. For each owner there is a sorted set, `owner:` and the
owner, of the ids of their sessions by when these expire; its member `ended` tells for a minute when all of them were ended.

Each write is one script, so that it happens at once or not at all. Commands that come while others are under way go out together,
in one pipeline. What a broken connection leaves open is tried again, within the driver's timeout; the token tells a write's second
attempt that the first has arrived.
"""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from hashlib import sha1
from itertools import chain, repeat
from os import urandom
from typing import Any, Final, Literal, NamedTuple, TypeAlias, cast
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
from gaman_session._driver import TOMBSTONE, Outcome, Record, Tag
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
_READS: Final = ("HGETALL", "ZRANGEBYSCORE")

# What the scripts share. Numbers come and go as strings, in which they keep their last digit.
_PRELUDE = f"""
local function missing(key, now)
    local ended, deadline, expires, version, owner =
        unpack(redis.call('HMGET', key, 'ended', 'deadline', 'expires', 'version', 'owner'))
    deadline = tonumber(deadline or '')
    if not deadline or deadline <= now then return 'ABSENT' end
    if ended then return 'ENDED' end
    if not tonumber(expires or '') or not tonumber(version or '') then return 'ABSENT' end
    return nil, owner
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

local function leave(key, owner)
    -- In a Cluster, the set may live elsewhere. Then its member goes later.
    if owner then redis.pcall('ZREM', string.sub(key, 1, -65) .. 'owner:' .. owner, string.sub(key, -64)) end
end

local function bury(key, now, successor, owner)
    leave(key, owner)
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
local state, owner = missing(key, now)
if state then return state end
local deletes = 4 + 2 * sets
for i = 4, deletes - 1, 2 do redis.call('HSET', key, ARGV[i], ARGV[i + 1]) end
for i = deletes, #ARGV do redis.call('HDEL', key, ARGV[i]) end
touch(key, now, ARGV[2])
if deletes > #ARGV then return 'WRITTEN' end
for _, name in ipairs(redis.call('HKEYS', key)) do
    if string.sub(name, 1, 1) == ':' then return 'WRITTEN' end
end
bury(key, now, nil, owner)
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
local state, owner = missing(key, now)
if state == 'ENDED' and redis.call('HGET', key, 'successor') == ARGV[3] then return 'WRITTEN' end
if state then return state end
if redis.call('HGET', key, 'version') ~= ARGV[2] then return 'CONFLICT' end
bury(key, now, ARGV[3], owner)
return KEYS[2] and create(KEYS[2], 4) or 'WRITTEN'
""")

# ARGV: now, and whether a tombstone led here. Returns the successor, if any.
_DESTROY = _script("""
local key, now = KEYS[1], tonumber(ARGV[1])
local state, owner = missing(key, now)
if state == 'ENDED' then return redis.call('HGET', key, 'successor') end
if not state or ARGV[2] == '1' then bury(key, now, nil, owner) end
return false
""")

_OWNERS_PRELUDE = f"""
local function is_refused(set, now, since)
    redis.call('ZREMRANGEBYSCORE', set, '-inf', now)
    local until_then = redis.call('ZSCORE', set, 'ended')
    return until_then and tonumber(since) < tonumber(until_then) - {TOMBSTONE}
end

local function last(set, now)
    local latest = tonumber(redis.call('ZREVRANGE', set, 0, 0, 'WITHSCORES')[2])
    redis.call('PEXPIRE', set, math.ceil((latest - now) * 1000))
end

local function enter(set, id, now, expires)
    redis.call('ZADD', set, expires, id)
    last(set, now)
end
"""

# KEYS: an owner's set. ARGV: id, now, since, when the session expires, and whether its tag is no new one.
_ENTER = _script(f"""{_OWNERS_PRELUDE}
local now = tonumber(ARGV[2])
if is_refused(KEYS[1], now, ARGV[3]) and ARGV[5] ~= '1' then return 'REFUSED' end
enter(KEYS[1], ARGV[1], now, ARGV[4])
return 'WRITTEN'
""")

# KEYS: the session's and its owner's set. ARGV: since, and what _CREATE takes.
_CREATE_OWNED = _script(f"""{_OWNERS_PRELUDE}
local now = tonumber(ARGV[3])
if redis.call('EXISTS', KEYS[1]) == 0 then
    if is_refused(KEYS[2], now, ARGV[1]) then return 'REFUSED' end
    enter(KEYS[2], string.sub(KEYS[1], -64), now, ARGV[4])
end
return create(KEYS[1], 2)
""")

# KEYS: the old id's, the new one's, and the owner's set. ARGV: now, version, new id, since, and what _CREATE takes.
_RENAME_OWNED = _script(f"""{_OWNERS_PRELUDE}
local key, now = KEYS[1], tonumber(ARGV[1])
local state, owner = missing(key, now)
if state == 'ENDED' and redis.call('HGET', key, 'successor') == ARGV[3] then return 'WRITTEN' end
if state then return state end
if redis.call('HGET', key, 'version') ~= ARGV[2] then return 'CONFLICT' end
if redis.call('HGET', key, 'since') ~= ARGV[4] and is_refused(KEYS[3], now, ARGV[4]) then return 'REFUSED' end
bury(key, now, ARGV[3], owner)
enter(KEYS[3], ARGV[3], now, ARGV[7])
return create(KEYS[2], 5)
""")

# KEYS: the session's, and outside a Cluster the owner's set, if it is to have one. ARGV: owner, since, note, and what _APPLY takes.
_TAG = _script(f"""{_OWNERS_PRELUDE}
local key, now, sets = KEYS[1], tonumber(ARGV[4]), tonumber(ARGV[6])
local state, owner = missing(key, now)
if state then return state end
local barred = tonumber(redis.call('HGET', key, 'barred:' .. ARGV[1]) or '')
if barred and tonumber(ARGV[2]) < barred then return 'REFUSED' end
if KEYS[2] then
    if redis.call('HGET', key, 'since') ~= ARGV[2] and is_refused(KEYS[2], now, ARGV[2]) then return 'REFUSED' end
    enter(KEYS[2], string.sub(key, -64), now, redis.call('HGET', key, 'expires'))
end
if owner and owner ~= ARGV[1] then leave(key, owner) end
if ARGV[1] == '' then
    owner = nil
    redis.call('HDEL', key, 'owner', 'since', 'note')
else
    owner = ARGV[1]
    redis.call('HSET', key, 'owner', ARGV[1], 'since', ARGV[2], 'note', ARGV[3])
end
local deletes = 7 + 2 * sets
for i = 7, deletes - 1, 2 do redis.call('HSET', key, ARGV[i], ARGV[i + 1]) end
for i = deletes, #ARGV do redis.call('HDEL', key, ARGV[i]) end
touch(key, now, ARGV[5])
for _, name in ipairs(redis.call('HKEYS', key)) do
    if string.sub(name, 1, 1) == ':' then return 'WRITTEN' end
end
bury(key, now, nil, owner)
return 'EMPTIED'
""")

# KEYS: an owner's set. ARGV: now, and until when tags are refused. Returns the ids that it has.
_END_OWNED = _script(f"""{_OWNERS_PRELUDE}
local set, now, over = KEYS[1], tonumber(ARGV[1]), tonumber(ARGV[2]) + {TOMBSTONE}
redis.call('ZREMRANGEBYSCORE', set, '-inf', now)
local until_then = redis.call('ZSCORE', set, 'ended')
if not until_then or tonumber(until_then) < over then
    redis.call('ZADD', set, string.format('%.17g', over), 'ended')
end
last(set, now)
local ids = redis.call('ZRANGE', set, 0, -1)
for i, id in ipairs(ids) do
    if id == 'ended' then table.remove(ids, i) break end
end
return ids
""")

# KEYS: an owner's set. ARGV: now, and ids that it is to lose.
_LEAVE = _script(f"""{_OWNERS_PRELUDE}
for i = 2, #ARGV do redis.call('ZREM', KEYS[1], ARGV[i]) end
if redis.call('EXISTS', KEYS[1]) == 1 then last(KEYS[1], tonumber(ARGV[1])) end
return false
""")

# ARGV: now, owner, whether an id that is not there is about to be, and until when tags are refused. Returns 1 where a session was
# ended, 0 where it is somebody else's, or the successor, if any.
_END_ONE = _script("""
local key, now = KEYS[1], tonumber(ARGV[1])
local state, owner = missing(key, now)
if state == 'ENDED' then return redis.call('HGET', key, 'successor') end
if state == 'ABSENT' and ARGV[3] == '1' then bury(key, now) end
if state then return false end
if owner ~= ARGV[2] then
    -- In a Cluster, it may be about to be theirs: it is in their set already.
    redis.call('HSET', key, 'barred:' .. ARGV[2], ARGV[4])
    return '0'
end
bury(key, now, nil, owner)
return '1'
""")

# ARGV: now, cursor, pattern. Returns the next cursor, and how many sessions there were.
_COUNT = _script("""
local found, now = redis.call('SCAN', ARGV[2], 'MATCH', ARGV[3], 'COUNT', 1000), tonumber(ARGV[1])
local count = 0
for _, key in ipairs(found[2]) do
    if redis.call('TYPE', key).ok == 'hash' and not missing(key, now) then count = count + 1 end
end
return {found[1], count}
""")

_SOURCES = {
    script.sha: script.source
    for script in (
        *(_CREATE, _APPLY, _SWAP, _RENAME, _DESTROY),
        *(_ENTER, _CREATE_OWNED, _RENAME_OWNED, _TAG, _END_OWNED, _LEAVE, _END_ONE, _COUNT),
    )
}


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
            tag = _tag(found) if b"owner" in found else None
            return Record(fields, float(found[b"created"]), float(found[b"expires"]), deadline, int(found[b"version"]), tag)
        except (KeyError, ValueError):
            self._damage.report(id, "its hash")
            return None

    async def create(self, id: str, record: Record) -> Literal[Outcome.REFUSED] | None:
        """Store a new session."""
        outcome = await self._create("create a session", id, record)
        if outcome is Outcome.REFUSED:
            return outcome
        if outcome is not Outcome.WRITTEN:
            raise SessionStoreError(self.name, "create a session under an id that is taken")
        return None

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
        action, packed, tag = "rename a session", self._pack(record), record.tag
        if self._address.kind != "cluster":
            if tag is None:
                return await self._write(action, id, _RENAME, (id, new_id), now, version, new_id, *packed)
            ids = (id, new_id, _index(tag.owner))
            return await self._write(action, id, _RENAME_OWNED, ids, now, version, new_id, tag.since, *packed)
        if tag is not None and await self._enter(action, new_id, record, now) is Outcome.REFUSED:
            # Only shortly after an end of all this costs a trip more: a tag that is no new one is not refused.
            found = await self.load(id, now=now)
            if not isinstance(found, Record):
                return found or Outcome.ABSENT
            if found.tag is None or found.tag.since != tag.since:
                return Outcome.REFUSED
            await self._enter(action, new_id, record, now, is_carried=True)
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

    async def tag(
        self, id: str, tag: Tag | None, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None
    ) -> Outcome:
        """Do what apply() does, and give the session to the owner of *tag*, or to nobody. In a Cluster, it takes three trips."""
        action, ids = "change a session", [id]
        if tag is not None and self._address.kind != "cluster":
            ids.append(_index(tag.owner))
        elif tag is not None:
            # The owner's set comes first: it may have what is not there, and must not lack what is.
            found = await self.load(id, now=now)
            if not isinstance(found, Record):
                return found or Outcome.ABSENT
            found.tag = tag
            if await self._enter(action, id, found, now) is Outcome.REFUSED:
                return Outcome.REFUSED
        owner = ("", "", "") if tag is None else (tag.owner, tag.since, tag.note)
        gone = [b":" + field.encode() for field in deletes]
        return await self._write(action, id, _TAG, ids, *owner, now, _optional(deadline), len(sets), *_pair(sets), *gone)

    async def owned(self, owner: str, *, now: float) -> Mapping[str, Record]:
        """Return the owner's sessions: a trip for their ids, and one for them."""
        action, index = "list the sessions of an owner", _index(owner)
        members: list[bytes] = await self._call(action, index, ("ZRANGEBYSCORE", self._prefix + index, now, "+inf")) or []
        ids = [member.decode() for member in members if member != b"ended"]
        found = dict(zip(ids, await asyncio.gather(*(self.load(id, now=now) for id in ids)), strict=True))
        # What has ended never comes back. Where a set is in another slot, what is not there may be about to come.
        is_atomic = self._address.kind != "cluster"
        over = [id for id, each in found.items() if each is Outcome.ENDED or (each is None and is_atomic)]
        if over:
            await self._call(action, index, ("ZREM", self._prefix + index, *over))
        return {
            id: each for id, each in found.items() if isinstance(each, Record) and each.tag is not None and each.tag.owner == owner
        }

    async def end_owned(self, owner: str, *, keep: Collection[str], now: float, until: float) -> int:
        """Refuse the owner's older tags from now on, and then end the sessions that there are."""
        action, index = "end the sessions of an owner", _index(owner)
        members: list[bytes] = await self._call(action, index, self._command(_END_OWNED, (index,), now, until)) or []
        ids = [id for member in members if (id := member.decode()) not in keep]
        ended, over, seen = 0, set(ids), {*ids, *keep}
        while ids:
            # In a Cluster a session may be about to be stored, or renamed.
            is_cluster = int(self._address.kind == "cluster")
            commands = [(id, self._command(_END_ONE, (id,), now, owner, is_cluster, until)) for id in ids]
            answers: list[bytes | None] = await asyncio.gather(*(self._call(action, id, command) for id, command in commands))
            ended += sum(answer == b"1" for answer in answers)
            # What is somebody else's may be given back, and then it must not leave the set.
            over.difference_update(id for id, answer in zip(ids, answers, strict=True) if answer == b"0")
            ids = [id for answer in answers if answer and (id := answer.decode()) not in ("0", "1") and id not in seen]
            seen.update(ids)
        if over:
            await self._call(action, index, self._command(_LEAVE, (index,), now, *over))
        return ended

    async def count(self, *, now: float) -> int:
        """Return how many sessions there are, by a look at every key of the server, a thousand at a time."""
        pattern = re.sub(r"([*?\[\]\\])", r"\\\1", self._prefix) + "?" * 64
        is_cluster = self._address.kind == "cluster"
        try:
            nodes = self._client.get_primaries() if is_cluster else [None]
            return sum(await asyncio.gather(*(self._count(node, pattern, now) for node in nodes)))
        except _FAILURES as cause:
            raise SessionStoreError(self.name, "count its sessions") from cause

    async def _count(self, node: Any, pattern: str, now: float) -> int:
        where = {} if node is None else {"target_nodes": node}
        count = 0
        cursor: bytes = b"0"
        found: int
        while True:
            async with asyncio.timeout(self._timeout):
                cursor, found = await self._client.execute_command("EVAL", _COUNT.source, 0, now, cursor, pattern, **where)
            count += found
            if cursor == b"0":
                return count

    async def _create(self, action: str, id: str, record: Record) -> Outcome:
        packed, tag = self._pack(record), record.tag
        if tag is not None and self._address.kind != "cluster":
            return await self._write(action, id, _CREATE_OWNED, (id, _index(tag.owner)), tag.since, *packed)
        if tag is not None and await self._enter(action, id, record, record.created) is Outcome.REFUSED:
            return Outcome.REFUSED
        outcome = await self._write(action, id, _CREATE, (id,), *packed)
        if tag is not None and outcome is Outcome.CONFLICT and await self.load(id, now=record.created) is Outcome.ENDED:
            # All of the owner's sessions were ended after this one had its place among them, and before it was there.
            return Outcome.REFUSED
        return outcome

    async def _enter(self, action: str, id: str, record: Record, now: float, *, is_carried: bool = False) -> Outcome:
        tag = cast("Tag", record.tag)
        arguments = (id, now, tag.since, record.expires, int(is_carried))
        return await self._write(action, id, _ENTER, (_index(tag.owner),), *arguments)

    def _pack(self, record: Record) -> Sequence[Any]:
        tag = record.tag
        owner = () if tag is None else ("owner", tag.owner, "since", tag.since, "note", tag.note)
        return (urandom(12), record.created, record.expires, record.deadline, *_pair(record.fields), *owner)

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
                return self._client.get_node_from_key(command[3] if command[0] == "EVALSHA" else command[1])
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
        nodes = {i: self._node(command) for i, command in enumerate(commands) if command[0] not in _READS}
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


def _index(owner: str) -> str:
    """Return what the key of an owner's set has after the prefix."""
    return f"owner:{owner}"


def _tag(found: Mapping[bytes, bytes]) -> Tag:
    return Tag(found[b"owner"].decode(), found[b"note"], float(found[b"since"]))


def _optional(deadline: float | None) -> float | str:
    return "" if deadline is None else deadline
