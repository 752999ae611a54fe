"""Sessions in Redis, alone, behind Sentinels or in a Cluster: a hash for each session, which Redis itself removes.

Beside the session's own fields, whose names begin with a colon, a hash holds `created`, `expires` and their `seal`, `deadline`,
`version`, the `size` of those fields, and the `token` of the last write that must not happen twice. A tombstone holds `ended`,
`deadline`, and after a rename the `successor`.
A session with an owner also has `owner`, `since` (when it was tied), and `note`. For each owner, the sorted set `owner:<owner>`
holds the ids of the owner's sessions by `expires`; its member `ended` tells for a minute when all of them were ended. The sorted
set `live` holds all ids by `deadline`. A Cluster lacks it, because each write touches one key there, so count() looks at every key.

`redis.lua` is the script that makes a call in one step or not at all, and `_redis_calls.py` sends it to the server.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from secrets import token_urlsafe
from time import monotonic
from typing import Any, Final, Literal, cast

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import (
    AuthenticationError,
    ConnectionError,
    MovedError,
    NoPermissionError,
    RedisClusterException,
    ResponseError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from gaman.errors import ConfigError
from gaman_session._damage import Damage
from gaman_session._driver import LARGE, Outcome, Ownership, Record, is_sound
from gaman_session._errors import SessionStoreError
from gaman_session.drivers._checks import check_timeout, check_whole_number
from gaman_session.drivers._redis_address import Address, parse
from gaman_session.drivers._redis_calls import CONNECTION_FAILURES, DEMOTED, FAILURES, PAUSE, Action, Call, Calls, Unconfirmed
from gaman_session.drivers._redis_master import NotMasterError, SentinelWatch, ServerWatch, Watch, greet
from gaman_session.drivers._redis_replicas import warn
from gaman_session.drivers._redis_walk import Walk

logger = logging.getLogger("gaman")

_DATABASE: Final = re.compile("DB index|SELECT is not allowed|is not an integer|out of range")
_is_whole: Final = re.compile(rb"[0-9]{1,14}").fullmatch
_FORBIDDEN: Final = re.compile("no permission|can't (run|access)|unknown", re.IGNORECASE)
_COLON: Final = ord(":")
_LARGE_KNOWN: Final = 1000
_TAG: Final = ("owner", "since", "note")


class RedisDriver:
    """Keeps sessions in the Redis at *url*, under keys that begin with *prefix*.

    *url* is `redis://host:port/db`, `rediss://` for TLS, or `unix:///path`; `redis+sentinel://host:port,host:port/name` for the
    master that Sentinels know by that name; `redis+cluster://host:port,host:port` for a Cluster; with `user:password@` before the
    first host, and options of redis-py behind a `?`. A call gives up after *timeout* seconds, retries included. *pool_size* bounds
    the connections to each server. A write is acknowledged when *wait_replicas* replicas have it.
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
        check_timeout("redis", timeout)
        for name, number, least in (("pool_size", pool_size, 1), ("wait_replicas", wait_replicas, 0)):
            found = f"the redis driver has {name}={number!r};"
            check_whole_number(number, found, f"a whole number from {least} up", least=least)
        self._address = parse(url)
        self._is_cluster = self._address.kind == "cluster"
        self._prefix = prefix
        self._timeout = timeout
        self._pool_size = pool_size
        self._calls = Calls(self._address, timeout=timeout, pool_size=pool_size, wait_replicas=wait_replicas)
        self._wait_replicas = wait_replicas
        self._damage = Damage("redis")
        self._client: Any = None
        self._watch = Watch()
        self._walk = Walk(prefix, timeout)
        self._live = prefix + "live"
        self._policy = ""
        """The maxmemory-policy by which a server evicts keys, or empty if none does, or none tells."""
        self._large: set[str] = set()
        """Sessions that were large when they were last loaded; only a hint, which saves asking first."""

    async def open(self) -> None:
        """Connect, try each command that the driver needs, and warn of settings that can lose sessions.

        ConfigError: the url, or what its user may do, has to be fixed. SessionStoreError: the server can't be reached.
        """
        self._client, self._watch = _connect(self._address, self._pool_size, self._calls.patience)
        self._calls.open(self._client, self._watch)
        await self._watch.open(None if self._is_cluster else self._client.connection_pool)
        key = (f"{self._shard('000')}check",)
        # The first needs only HGETALL. The second teaches the server the script, so that the third waits for replicas only once.
        calls = [Call("load", key), Call("look", key), Call("check", key)]
        until, answers = monotonic() + self._timeout, list[Any]()
        # A failover may be in progress. Without an answer of a Sentinel or a Cluster, another attempt would find nothing either.
        passing: tuple[type[Exception], ...] = (*DEMOTED, NotMasterError)
        if self._is_cluster:
            passing = (*DEMOTED, MovedError, ConnectionError, RedisTimeoutError)
        elif self._watch.answer is not None:
            passing = CONNECTION_FAILURES
        while True:
            try:
                async with asyncio.timeout(until - monotonic()):
                    answers = [answer for call in calls for answer in await self._calls.attempt([call])]
            except TimeoutError as cause:
                # What an earlier attempt was answered tells more.
                answers = answers or [cause]
            may_pass = any(isinstance(answer, passing) and not isinstance(answer, AuthenticationError) for answer in answers)
            if not may_pass or monotonic() + PAUSE > until:
                break
            await asyncio.sleep(PAUSE)
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
            seconds=self._calls.patience,
        )
        await self._learn_policy()

    def _refusal(self, cause: BaseException) -> Exception | None:
        """Return the error that open() raises for *cause*, or None where that may pass by itself."""
        while isinstance(cause, RedisClusterException) and cause.__cause__ is not None:
            cause = cause.__cause__
        if isinstance(cause, Unconfirmed) and isinstance(cause.__cause__, NoPermissionError):
            cause = cause.__cause__
        text, hosts = str(cause), self._calls.server()
        if isinstance(cause, AuthenticationError):
            return ConfigError(f"the redis driver can't log in at {hosts}: {text}; check the user and the password in its url")
        if isinstance(cause, MovedError) and not self._is_cluster:
            return ConfigError(f"the redis driver found a Cluster at {hosts}; write redis+cluster:// in its url")
        if isinstance(cause, (*DEMOTED, NotMasterError)) and not self._is_cluster:
            fix = "see that its Sentinels have a master" if self._address.kind else "write the master's address in its url"
            return ConfigError(f"the redis driver found a replica at {hosts}, which takes no changes; {fix}")
        # Over a socket, redis-py takes this for a failed connection.
        if _DATABASE.search(text):
            return ConfigError(f"the redis driver can't use the database in its url at {hosts}: {text}; choose one that is there")
        if isinstance(cause, (*CONNECTION_FAILURES, TimeoutError)) or not isinstance(cause, FAILURES):
            return SessionStoreError(self.name, f"be reached at {hosts}; see that it runs there, or change the driver's url")
        if "No such master" in text:
            return ConfigError(f"the Sentinels at {hosts} watch no master {self._address.master!r}; write its name in the url")
        if "cluster support disabled" in text:
            return ConfigError(f"the redis driver found no Cluster at {hosts}; write redis:// in its url")
        if "SENTINEL" in text:
            return ConfigError(f"the redis driver found no Sentinel at {hosts}; write their hosts, or redis:// in its url")
        if _FORBIDDEN.search(text):
            fix = f"let its user run it, on the keys {self._prefix}*"
            return ConfigError(f"the redis driver lacks a permission at {hosts}: {text}; {fix}")
        # Such as a full memory, or too few replicas.
        return None

    async def close(self) -> None:
        """Close every connection, after the calls in flight."""
        await self._calls.close()
        await self._watch.close()
        if self._client is not None:
            with suppress(*FAILURES):
                await self._client.aclose()
        self._client, self._watch = None, Watch()

    async def load(self, id: str, *, now: float) -> Record | Literal[Outcome.ENDED] | None:
        """Return the session, ENDED, or None."""
        action, key = self._calls.begin("load a session"), (self._key(id),)
        found: Any = b"LARGE" if id in self._large else await self._call(action, id, Call("load", key))
        if found == b"LARGE":
            found = await self._call(action, id, Call("load", key, (), (True,)), is_large=True)
        return self._record(id, found, now)

    async def create(self, id: str, record: Record) -> Literal[Outcome.REVOKED] | None:
        """Store a new session."""
        outcome = await self._create(id, record)
        if outcome is Outcome.REVOKED:
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
        return await self._write(self._calls.begin("change a session"), "apply", (id,), (*sets.values(),), *arguments)

    async def swap(
        self, id: str, field: str, old: bytes | None, new: bytes, *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        """Set one field if it still is *old*."""
        values = (new,) if old is None else (new, old)
        arguments = (now, _text(deadline), max_size, token_urlsafe(12), ":" + field)
        return await self._write(self._calls.begin("change a session"), "swap", (id,), values, *arguments)

    async def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
        """Replace the session by *record* under *new_id*, if it is still at *version*."""
        action, ownership = self._calls.begin("rename a session"), record.ownership
        values, rest = _unfold(record)
        condition = (now, str(version), new_id, ownership is not None and repr(ownership.since))
        if not self._is_cluster:
            ids = (id, new_id) if ownership is None else (id, new_id, _index(ownership.owner))
            return await self._write(action, "rename", ids, values, *condition, *rest)
        # The old id must not die where the new one finds no room.
        room = self._write(action, "room", (new_id,), ())
        if ownership is None:
            await room
        elif (await asyncio.gather(self._enter(action, new_id, ownership, record, now), room))[0] is Outcome.REVOKED:
            # A tag that the session already has is never refused. This round trip comes only within a minute of an end_owned().
            found = await self._look(action, id, now)
            if not isinstance(found, Record):
                return found or Outcome.ABSENT
            if found.ownership is None or found.ownership.since != ownership.since:
                return Outcome.REVOKED
            await self._enter(action, new_id, ownership, record, now, is_carried=True)
        # No script spans two slots of a Cluster: the old id dies first, and a destroy() may come before the new one lives.
        unconfirmed: SessionStoreError | None = None
        try:
            outcome = await self._write(action, "rename", (id,), (), *condition)
        except SessionStoreError as error:
            # The master has ended the old id, so the new one has to live.
            if not error.is_unconfirmed:
                raise
            outcome, unconfirmed = Outcome.WRITTEN, error
        if outcome is not Outcome.WRITTEN:
            return outcome
        created = await self._write(action, "create", (new_id,), values, False, *rest)
        if created is not Outcome.WRITTEN:
            return Outcome.ENDED
        if unconfirmed is not None:
            raise unconfirmed
        return created

    async def destroy(self, id: str, *, now: float) -> None:
        """End the session, and those that it was renamed to."""
        action, seen = self._calls.begin("end a session"), set[str]()
        while id not in seen:
            call = Call("destroy", self._keys(id), (), (now, bool(seen)))
            seen.add(id)
            successor = await self._call(action, id, call)
            if successor is None:
                return
            id = successor.decode()

    async def purge(self, *, now: float, limit: int) -> int:
        """Return 0, because Redis removes sessions by itself; remove expired ids from the indexes, which have no TTL.

        These are the index of all, and the owners' sets, which each call finds among a sixtieth of the server's keys.
        """
        action = "remove expired sessions from its indexes"
        await self._learn_policy()
        try:
            for server in await self._calls.masters():
                async for keys in self._walk.expiring(server, now):
                    await asyncio.gather(*(self._tidy(action, key, now) for key in keys))
        except SessionStoreError:
            raise
        except Exception as cause:
            await self._calls.distrust(cause)
            raise SessionStoreError(self.name, action, self._calls.reason(cause)) from cause
        if not self._is_cluster:
            await self._tidy(action, self._live, now)
        return 0

    async def _tidy(self, action: str, key: str, now: float) -> None:
        while await self._call(self._calls.begin(action), None, Call("tidy", (key,), (), (now,))):
            pass

    async def set_owner(
        self,
        id: str,
        ownership: Ownership | None,
        sets: Mapping[str, bytes],
        deletes: Collection[str],
        *,
        now: float,
        deadline: float | None,
        max_size: int,
    ) -> Outcome:
        """Do what apply() does, and give the session to the owner of *ownership*, or take it from its owner where that is None.

        In a Cluster, it takes three round trips.
        """
        action, names, values, gone = self._calls.begin("change a session"), _names(sets), (*sets.values(),), _names(deletes)
        limits = (_text(deadline), max_size)
        if ownership is None:
            return await self._write(action, "set_owner", (id,), values, now, False, False, *limits, names, [*gone, *_TAG])
        ids = [id, _index(ownership.owner)]
        if self._is_cluster:
            # The owner's set comes first: it may have the id of a session that isn't there, and must not lack one that is.
            found = await self._look(action, id, now)
            if not isinstance(found, Record):
                return found or Outcome.ABSENT
            if await self._enter(action, id, ownership, found, now) is Outcome.REVOKED:
                return Outcome.REVOKED
            ids.pop()
        arguments = (now, repr(ownership.since), ownership.owner, *limits, [*names, *_TAG], gone)
        return await self._write(action, "set_owner", ids, (*values, *_pack(ownership)), *arguments)

    async def owned(self, owner: str, *, now: float) -> Mapping[str, Record]:
        """Return the owner's sessions by id, without their fields; in two round trips, one for the ids and one for the sessions.

        SessionStoreError also where Redis may have evicted the owner's set.
        """
        action = self._calls.begin("list the sessions of an owner")
        self._check_policy(action.name)
        ids = await self._members(action, "owned", owner, now)
        found = dict(zip(ids, await asyncio.gather(*(self._look(action, id, now) for id in ids)), strict=True))
        # An ended session never comes back. In a Cluster, an absent one may be about to be stored, because its id comes first.
        is_atomic = not self._is_cluster
        over = [id for id, each in found.items() if each is Outcome.ENDED or (each is None and is_atomic)]
        await self._leave(action, owner, over, now)
        return {
            id: each
            for id, each in found.items()
            if isinstance(each, Record) and each.ownership is not None and each.ownership.owner == owner
        }

    async def end_owned(self, owner: str, *, keep: Collection[str], now: float) -> int:
        """Refuse the owner's older tags from now on, end the owner's sessions, and return how many.

        SessionStoreError, after those in the owner's set were ended, where Redis may have evicted that set before.
        """
        action = self._calls.begin("end the sessions of an owner")
        ids = [id for id in await self._members(action, "end_owned", owner, now) if id not in keep]
        ended, over, seen = 0, set(ids), {*ids, *keep}
        while ids:
            # In a Cluster a session may be about to be stored, or renamed.
            arguments = (now, owner, self._is_cluster)
            calls = [(id, Call("end_one", self._keys(id), (), arguments)) for id in ids]
            answers: list[bytes | int | None] = await asyncio.gather(*(self._call(action, id, call) for id, call in calls))
            ended += answers.count(1)
            # A session that has another owner by now may be given back, and then it must not leave the set.
            over.difference_update(id for id, answer in zip(ids, answers, strict=True) if answer == 0)
            ids = [id for answer in answers if isinstance(answer, bytes) and (id := answer.decode()) not in seen]
            seen.update(ids)
        await self._leave(action, owner, over, now)
        self._check_policy(f"{action.name} for certain")
        return ended

    async def count(self, *, now: float) -> int:
        """Return how many sessions there are, by the index of all, or in a Cluster by a look at each key.

        The index counts a session that Redis has evicted, or a person has deleted, up to its deadline.
        """
        action = self._calls.begin("count its sessions")
        if not self._is_cluster:
            return cast("int", await self._call(action, None, Call("count", (self._live,), (), (now,))))
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    counts = [self._walk.count(server, now) for server in await self._calls.masters()]
                    results = await asyncio.gather(*counts, return_exceptions=True)
                    failures = [each for each in results if isinstance(each, BaseException)]
                    if not failures:
                        return sum(each for each in results if isinstance(each, int))
                    if not isinstance(failures[0], CONNECTION_FAILURES):
                        raise failures[0]
                    # From the start, because a cursor means nothing to the server that takes over.
                    await asyncio.sleep(PAUSE)
        except Exception as cause:
            await self._calls.distrust(cause)
            raise SessionStoreError(self.name, action.name, self._calls.reason(cause)) from cause

    async def _learn_policy(self) -> None:
        """Find out whether a server evicts keys when its memory is full, and warn if that is new; nothing changes if none tells."""
        try:
            async with asyncio.timeout(self._timeout):
                found = [await server.execute_command("INFO", "memory") for server in await self._calls.masters()]
        except Exception as error:
            await self._calls.distrust(error)
            return
        # A server without a limit never evicts.
        policies = {told["maxmemory_policy"] for told in found if told["maxmemory"]} - {"noeviction"}
        known, self._policy = self._policy, next(filter(_evicts_indexes, policies), "") or next(iter(policies), "")
        if self._policy not in ("", known):
            fails = "; list(), end_all() and max_sessions_per_owner fail, because it also evicts the owners' indexes"
            logger.warning(
                "the redis at %s has maxmemory-policy %s: it logs visitors out when its memory is full%s. Set it to noeviction",
                self._address.hosts,
                self._policy,
                fails if _evicts_indexes(self._policy) else "",
                extra={"driver": self.name},
            )

    def _check_policy(self, action: str) -> None:
        """Raise SessionStoreError where Redis may have evicted an owner's set."""
        if _evicts_indexes(self._policy):
            reason = f"maxmemory-policy {self._policy} may have evicted the owner's index; set maxmemory-policy noeviction"
            raise SessionStoreError(self.name, action, reason, is_partial=True)

    async def _look(self, action: Action, id: str, now: float) -> Record | Literal[Outcome.ENDED] | None:
        """Return what load() does, without the fields."""
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
            ownership = Ownership(found[b"owner"].decode(), found[b"note"], float(found[b"since"])) if b"owner" in found else None
            created, expires, version = float(found[b"created"]), float(found[b"expires"]), int(found[b"version"])
            # The script writes whole numbers so, and takes no others.
            if not (is_sound(created, expires, deadline) and _is_whole(found[b"version"]) and _is_whole(found[b"size"])):
                raise ValueError
            return Record(fields, created, expires, deadline, version, ownership, found.get(b"seal", b""))
        except (KeyError, ValueError):
            self._damage.report(id, "its hash")
            return None

    async def _create(self, id: str, record: Record) -> Outcome:
        action, (values, rest), ownership = self._calls.begin("create a session"), _unfold(record), record.ownership
        if ownership is None:
            return await self._write(action, "create", (id,), values, False, *rest)
        if not self._is_cluster:
            return await self._write(action, "create", (id, _index(ownership.owner)), values, repr(ownership.since), *rest)
        if await self._enter(action, id, ownership, record, record.created) is Outcome.REVOKED:
            return Outcome.REVOKED
        outcome = await self._write(action, "create", (id,), values, False, *rest)
        if outcome is Outcome.CONFLICT and await self._look(action, id, record.created) is Outcome.ENDED:
            # All of the owner's sessions were ended after this one had its place among them, and before it was there.
            return Outcome.REVOKED
        return outcome

    async def _enter(
        self, action: Action, id: str, ownership: Ownership, record: Record, now: float, *, is_carried: bool = False
    ) -> Outcome:
        arguments = (now, repr(ownership.since), id, repr(record.expires), is_carried)
        return _outcome(await self._call(action, None, Call("enter", (self._prefix + _index(ownership.owner),), (), arguments)))

    async def time(self) -> float:
        """Return the time of the master, in seconds since the epoch; in a Cluster, of the master that has one certain slot."""
        call = Call("time", (f"{self._shard('000')}time",))
        return float(await self._call(self._calls.begin("tell the time"), None, call))

    def _key(self, id: str) -> str:
        return self._shard(id) + id

    def _keys(self, id: str, *others: str) -> Sequence[str]:
        """Return the keys of a call that writes to a session: its own, and outside a Cluster the index of all and *others*."""
        return (self._key(id),) if self._is_cluster else (self._key(id), self._live, *(self._prefix + other for other in others))

    def _shard(self, id: str) -> str:
        """Return what a session's key begins with: in a Cluster, with a hash tag."""
        return f"{self._prefix}{{{id[:3]}}}" if self._is_cluster else self._prefix

    async def _members(self, action: Action, operation: str, owner: str, *times: float) -> list[str]:
        """Return the ids in the owner's set, after what *operation* does to it."""
        call = Call(operation, (self._prefix + _index(owner),), (), times)
        found: dict[bytes, bytes] = await self._call(action, None, call) or {}
        return [member.decode() for member in found if member != b"ended"]

    async def _leave(self, action: Action, owner: str, ids: Collection[str], now: float) -> None:
        if ids:
            await self._call(action, None, Call("leave", (self._prefix + _index(owner),), (), (now, [*ids])))

    async def _write(self, action: Action, operation: str, ids: Sequence[str], values: Sequence[bytes], *arguments: Any) -> Outcome:
        call = Call(operation, self._keys(*ids), values, arguments)
        return _outcome(await self._call(action, ids[0], call))

    async def _call(self, action: Action, id: str | None, call: Call, *, is_large: bool = False) -> Any:
        """Return what *call* answers, or None where no hash stands in the place of the session *id*."""
        try:
            return await self._calls.call(action, call, is_large=is_large)
        except Exception as cause:
            if id is not None and isinstance(cause, ResponseError) and "WRONGTYPE" in str(cause):
                self._damage.report(id, "its hash")
                return None
            raise SessionStoreError(
                self.name,
                f"{action.name} at {self._calls.server(call)}",
                self._calls.reason(cause),
                is_unconfirmed=isinstance(cause, Unconfirmed) and cause.is_change,
            ) from cause


def _check_tls(options: Mapping[str, Any]) -> None:
    """Raise ConfigError for options of TLS that can't work, as for a file that isn't there."""
    if options.get("connection_class") is SSLConnection:
        try:
            connection: Any = SSLConnection(**{name: value for name, value in options.items() if name.startswith("ssl_")})
            connection.ssl_context.get()
        except (OSError, ValueError) as cause:
            raise ConfigError(f"the redis driver can't use the ssl_ options in its url: {cause}") from cause


def _connect(address: Address, pool_size: int, patience: float) -> tuple[Any, Watch]:
    """Return a client, and the watch over its master. Both connect later, and wait *patience* seconds for each step."""
    is_alone = not address.kind
    settings: dict[str, Any] = {
        # Without Sentinels or a Cluster, Calls times each round trip once; redis-py would time each reply.
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


def _outcome(word: bytes | None) -> Outcome:
    return Outcome.ABSENT if word is None else Outcome[word.decode()]


def _unfold(record: Record) -> tuple[Sequence[bytes], Sequence[Any]]:
    """Return the values, and what else the script takes to store *record*."""
    times = [repr(time) for time in (record.created, record.expires, record.deadline)]
    names, values = _names(record.fields), [*record.fields.values()]
    if record.seal:
        names.append("seal")
        values.append(record.seal)
    if record.ownership is not None:
        names += _TAG
        values += _pack(record.ownership)
    return values, (token_urlsafe(12), *times, names)


def _pack(ownership: Ownership) -> Sequence[bytes]:
    """Return the values of the fields that _TAG names."""
    return (ownership.owner.encode(), repr(ownership.since).encode(), ownership.note)


def _names(fields: Iterable[str]) -> list[str]:
    return [":" + field for field in fields]


def _text(deadline: float | None) -> str | Literal[False]:
    # A nil would end the list of arguments in Lua.
    return False if deadline is None else repr(deadline)


def _evicts_indexes(policy: str) -> bool:
    # volatile-* evicts only what has a TTL.
    return policy.startswith("allkeys-")


def _index(owner: str) -> str:
    """Return what the key of an owner's set has after the prefix."""
    return f"owner:{owner}"
