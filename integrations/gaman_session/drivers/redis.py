"""Sessions in Redis, as a single server, behind Sentinels or in a Cluster: a hash for each, which Redis itself removes.

Beside the session's own fields, whose names begin with a colon, a hash holds `created`, `expires` and their `seal`, `deadline`,
`version`, the `size` of those fields, and the `token` of the last write that must not happen twice. A session with an owner also
has `owner`, `since` (when the owner was set), and `note`. A tombstone holds `ended`, `deadline`, and after a rename `successor`.

For each owner, the sorted set `owner:<owner>` holds the ids of the owner's sessions by `expires`. For a minute after all of them
were ended, its member `ended` has that time. The sorted set `live` holds all ids by `deadline`. A Cluster has no `live`, because
each write touches one key there, so count() reads every key. The hash `ending` has the last end_everyone(), see Ending in
`_rules.py`; in a Cluster each hash tag has one.

`redis.lua` is the script that makes each call atomic, and `_redis_calls.py` sends it to the server. A load that has a round trip
to itself needs no script.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import suppress
from secrets import token_urlsafe
from time import monotonic
from typing import Any, Final, Literal

from gaman import GamanError
from gaman.errors import ConfigError
from gaman_session._driver import Outcome, Ownership, Record
from gaman_session._errors import SessionStoreError
from gaman_session.drivers._checks import check_timeout, check_whole_number
from gaman_session.drivers._redis_address import parse
from gaman_session.drivers._redis_calls import Calls
from gaman_session.drivers._redis_client import connect
from gaman_session.drivers._redis_failures import FAILURES, CallError, Unconfirmed
from gaman_session.drivers._redis_keyspace import Keyspace, owner_key
from gaman_session.drivers._redis_master import Watch
from gaman_session.drivers._redis_policy import EvictionPolicy
from gaman_session.drivers._redis_records import (
    OWNERSHIP,
    deadline_argument,
    field_names,
    ownership_values,
    since_argument,
    values_and_arguments,
)
from gaman_session.drivers._redis_replicas import warn
from gaman_session.drivers._redis_scan import Scan
from gaman_session.drivers._redis_script import Call
from gaman_session.drivers._redis_start import try_commands
from gaman_session.drivers._reports import Reporter, reports
from gaman_session.drivers._time_limit import TimeLimit

_LIST: Final = "list the sessions of an owner"
_END_ALL: Final = "end the sessions of an owner"
_SWEEP: Final = "remove expired sessions from its indexes"


class RedisDriver(Reporter):
    """Keeps sessions in the Redis at *url*, under keys that begin with *prefix*.

    *url* is `redis://host:port/db`, `rediss://` for TLS, or `unix:///path`; `redis+sentinel://host:port,host:port/name` for the
    master that Sentinels know by that name; `redis+cluster://host:port,host:port` for a Cluster; with `user:password@` before the
    first host, and options of redis-py behind a `?`. A call gives up after *timeout* seconds, retries included. *pool_size* bounds
    the connections to each server. A write is acknowledged when *wait_replicas* replicas have it.
    """

    name = "redis"
    shared = True
    _failures = (CallError, TimeoutError)

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
        for name, number, minimum in (("pool_size", pool_size, 1), ("wait_replicas", wait_replicas, 0)):
            found = f"the redis driver has {name}={number!r};"
            check_whole_number(number, found, f"a whole number from {minimum} up", minimum=minimum)
        self._address = parse(url)
        self._is_cluster = self._address.kind == "cluster"
        self._prefix = prefix
        self._timeout = timeout
        self._pool_size = pool_size
        self._limit = TimeLimit(timeout)
        self._calls = Calls(self._address, limit=self._limit, timeout=timeout, pool_size=pool_size, wait_replicas=wait_replicas)
        self._wait_replicas = wait_replicas
        self._client: Any = None
        self._watch = Watch()
        self._keyspace = Keyspace(prefix, self._calls, is_cluster=self._is_cluster)
        self._scan = Scan(prefix, self._calls.ask)
        self._policy = EvictionPolicy(self._address.hosts)

    async def open(self) -> None:
        """Connect, try each command that the driver needs, and warn of settings that can lose sessions.

        ConfigError: the url, or the permissions of its user, have to be fixed. SessionStoreError: the server can't be reached.
        """
        self._client, self._watch = connect(self._address, pool_size=self._pool_size, step_timeout=self._calls.step_timeout)
        self._calls.open(self._client, self._watch)
        await self._watch.open(None if self._is_cluster else self._client.connection_pool)
        # As long as a session's key, from which the script gets the prefix.
        key, is_watched = self._keyspace.key("check".rjust(64, "0")), self._watch.answer is not None
        try:
            await try_commands(
                self._calls, self._address, prefix=self._prefix, key=key, is_watched=is_watched, seconds=self._timeout
            )
        except GamanError:
            await self.close()
            raise
        await warn(
            self._client,
            self._watch.answer,
            is_cluster=self._is_cluster,
            named=len(self._address.urls),
            wait_replicas=self._wait_replicas,
            seconds=self._calls.step_timeout,
        )
        await self._learn_policy()

    async def close(self) -> None:
        """Finish the calls in flight, and close every connection."""
        await self._calls.close()
        await self._watch.close()
        if self._client is not None:
            with suppress(*FAILURES):
                await self._client.aclose()
        self._client, self._watch = None, Watch()

    @reports("load a session")
    async def load(self, id: str, *, now: float) -> Record | Literal[Outcome.ENDED] | None:
        """Return the session, ENDED, or None."""
        return await self._keyspace.load(id, now)

    @reports("load sessions")
    async def load_all(self, ids: Sequence[str], *, now: float) -> list[Record | Literal[Outcome.ENDED] | None]:
        """Return what load() does for each of *ids*, by one command, or in a Cluster by one round trip to each server."""
        return await self._calls.gather(*(self._keyspace.load(id, now, is_one_of_several=True) for id in ids))

    @reports("create a session")
    async def create(self, id: str, record: Record) -> Literal[Outcome.REVOKED] | None:
        """Store a new session."""
        outcome = await self._create(id, record)
        if outcome is Outcome.REVOKED:
            return outcome
        if outcome is not Outcome.WRITTEN:
            raise SessionStoreError(self.name, "create a session under an id that is taken")
        return None

    @reports("change a session")
    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        """Set and delete single fields of the session."""
        arguments = (now, deadline_argument(deadline), max_size, field_names(sets), field_names(deletes))
        return await self._keyspace.write("apply", id, (), (*sets.values(),), *arguments)

    @reports("change a session")
    async def swap(
        self, id: str, field: str, old: bytes | None, new: bytes, *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        """Set one field if its bytes are *old*."""
        values = (new,) if old is None else (new, old)
        arguments = (now, deadline_argument(deadline), max_size, token_urlsafe(12), ":" + field)
        return await self._keyspace.write("swap", id, (), values, *arguments)

    @reports("rename a session")
    async def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
        """Replace the session by *record* under *new_id* if its version is still *version*."""
        ownership = record.ownership
        condition = (now, str(version), new_id, since_argument(ownership))
        if self._is_cluster:
            return await self._rename_in_cluster(id, new_id, record, condition)
        values, rest = values_and_arguments(record)
        others = (new_id,) if ownership is None else (new_id, owner_key(ownership.owner))
        return await self._keyspace.write("rename", id, others, values, *condition, *rest)

    async def _rename_in_cluster(self, id: str, new_id: str, record: Record, condition: Sequence[Any]) -> Outcome:
        now, ownership, gather = condition[0], record.ownership, self._calls.gather
        # The old id must not die if there is no room for the new one.
        room = self._keyspace.write("room", new_id, (), ())
        if ownership is None:
            await room
        elif (await gather(self._keyspace.enter(new_id, ownership, record.expires, now=now), room))[0] is Outcome.REVOKED:
            # An ownership that the session already has is never revoked. It is only looked up within a minute of an end_owned().
            found = await self._keyspace.look(id, now)
            if not isinstance(found, Record):
                return found or Outcome.ABSENT
            if found.ownership is None or found.ownership.since != ownership.since:
                return Outcome.REVOKED
            await self._keyspace.enter(new_id, ownership, record.expires, now=now, is_carried=True)
        # No script spans two slots of a Cluster: the old id dies first, and a destroy() may come before the new one lives.
        unconfirmed: CallError | None = None
        try:
            outcome = await self._keyspace.write("rename", id, (), (), *condition)
        except CallError as error:
            # The master has ended the old id, so the new one has to live.
            if not (isinstance(error.failure, Unconfirmed) and error.failure.has_changed):
                raise
            outcome, unconfirmed = Outcome.WRITTEN, error
            error.failure.is_change = True
        if outcome is not Outcome.WRITTEN:
            return outcome
        values, rest = values_and_arguments(record)
        since = since_argument(ownership)
        if await self._keyspace.write("create", new_id, (), values, since, *rest) is not Outcome.WRITTEN:
            return Outcome.ENDED
        if unconfirmed is not None:
            raise unconfirmed
        return Outcome.WRITTEN

    @reports("end a session")
    async def destroy(self, id: str, *, now: float) -> None:
        """End the session, and those it was renamed to."""
        seen = set[str]()
        while id not in seen:
            call = Call("destroy", self._keyspace.keys(id), (), (now, bool(seen)))
            seen.add(id)
            successor = await self._keyspace.call(id, call)
            if successor is None:
                return
            id = successor.decode()

    async def purge(self, *, now: float, limit: int) -> int:
        """Return 0, because Redis removes sessions by itself; remove expired ids from the indexes, which have no TTL.

        These are the index of all, and the owners' sets in the next sixtieth of the server's keys. Each step
        has the whole timeout.
        """
        await self._learn_policy()
        for node in await self._masters():
            pages = self._scan.expiring(node, now)
            while (keys := await self._next_page(pages)) is not None:
                await asyncio.gather(*(self._tidy(key, now) for key in keys))
        if not self._is_cluster:
            await self._tidy(None, now)
        return 0

    @reports(_SWEEP)
    async def _masters(self) -> list[Any]:
        return await self._calls.masters()

    @reports(_SWEEP)
    async def _next_page(self, pages: AsyncGenerator[list[str]]) -> list[str] | None:
        return await anext(pages, None)

    async def _tidy(self, key: str | None, now: float) -> None:
        while await self._tidy_some(key, now):
            pass

    @reports(_SWEEP)
    async def _tidy_some(self, key: str | None, now: float) -> bool:
        return await self._keyspace.tidy(key, now=now)

    @reports("change a session")
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
        """Do what apply() does, and set the session's ownership in the same step.

        In a Cluster, a new owner takes three round trips.
        """
        names, values, deleted = field_names(sets), (*sets.values(),), field_names(deletes)
        limits = (deadline_argument(deadline), max_size)
        if ownership is None:
            arguments: Sequence[Any] = (now, False, False, *limits, names, [*deleted, *OWNERSHIP])
            return await self._keyspace.write("set_owner", id, (), values, *arguments)
        if self._is_cluster:
            # The owner's set comes first: it may have the id of an absent session, and must not lack that of a live one.
            found = await self._keyspace.look(id, now)
            if not isinstance(found, Record):
                return found or Outcome.ABSENT
            if await self._keyspace.enter(id, ownership, found.expires, now=now) is Outcome.REVOKED:
                return Outcome.REVOKED
        arguments = (now, repr(ownership.since), ownership.owner, *limits, [*names, *OWNERSHIP], deleted)
        others, values = (owner_key(ownership.owner),), (*values, *ownership_values(ownership))
        return await self._keyspace.write("set_owner", id, others, values, *arguments)

    @reports(_LIST)
    async def owned(self, owner: str, *, now: float) -> Mapping[str, Record]:
        """Return the owner's sessions, without their fields; in two round trips, one for the ids and one for the sessions.

        SessionStoreError: Redis may have evicted the owner's set.
        """
        if doubt := self._policy.doubt():
            raise SessionStoreError(self.name, _LIST, doubt)
        ids = await self._keyspace.members("owned", owner, now=now)
        found = dict(zip(ids, await self._calls.gather(*(self._keyspace.look(id, now) for id in ids)), strict=True))
        # An ended session never comes back. In a Cluster, an absent one may be about to be stored, because its id comes first.
        is_atomic = not self._is_cluster
        gone = [id for id, each in found.items() if each is Outcome.ENDED or (each is None and is_atomic)]
        await self._keyspace.leave(owner, gone, now=now)
        return {
            id: each
            for id, each in found.items()
            if isinstance(each, Record) and each.ownership is not None and each.ownership.owner == owner
        }

    @reports(_END_ALL)
    async def end_owned(self, owner: str, *, keep: Collection[str], now: float) -> int:
        """End the owner's sessions except those in *keep*.

        SessionStoreError: the sessions in the owner's set were ended, but Redis may have evicted that set before.
        """
        ids = [id for id in await self._keyspace.members("end_owned", owner, now=now) if id not in keep]
        ended, gone, seen = 0, set(ids), {*ids, *keep}
        while ids:
            # In a Cluster a session may be about to be stored, or renamed.
            arguments = (now, owner, self._is_cluster)
            calls = [self._keyspace.call(id, Call("end_one", self._keyspace.keys(id), (), arguments)) for id in ids]
            answers: list[bytes | int | None] = await self._calls.gather(*calls)
            ended += answers.count(1)
            # A session that has another owner by now may be given back, and then it must not leave the set.
            gone.difference_update(id for id, answer in zip(ids, answers, strict=True) if answer == 0)
            ids = [id for answer in answers if isinstance(answer, bytes) and (id := answer.decode()) not in seen]
            seen.update(ids)
        await self._keyspace.leave(owner, gone, now=now)
        if doubt := self._policy.doubt():
            raise SessionStoreError(self.name, f"{_END_ALL} for certain", doubt, is_partial=True)
        return ended

    @reports("end all sessions")
    async def end_everyone(self, *, now: float) -> None:
        """End every session, by writing one key, or in a Cluster one for each hash tag; an error may say that Redis evicts it."""
        began = monotonic()
        await self._calls.gather(*self._keyspace.ends(now=now))
        if self._is_cluster:
            # A rename may have left a slot before its turn, and come to another one after its turn. By this second instant, at
            # least a millisecond later than its `created`, it is ended or REVOKED there.
            await self._calls.gather(*self._keyspace.ends(now=now + monotonic() - began + 0.001))
        if doubt := self._policy.doubt("may evict the key that says so"):
            raise SessionStoreError(self.name, "end all sessions for certain", doubt, is_partial=True)

    @reports("count its sessions")
    async def count(self, *, now: float) -> int:
        """Return how many sessions there are, by the index of all, or in a Cluster by reading each key.

        The index counts a session that Redis has evicted, or a person has deleted, up to its deadline.
        """
        if not self._is_cluster:
            return await self._keyspace.count(now=now)
        return await self._scan.count_all(self._calls.masters, now)

    @reports("tell the time")
    async def time(self) -> float:
        """Return the time of the master, in seconds since the epoch; in a Cluster, of the master of one certain slot."""
        return float(await self._calls.call(Call("time", (self._keyspace.special_key("time"),))))

    def _report(self, action: str, error: Exception) -> SessionStoreError:
        server, reason, failure = self._calls.explain(error)
        is_unconfirmed = isinstance(failure, Unconfirmed) and failure.is_change
        report = SessionStoreError(self.name, f"{action} at {server}", reason, is_unconfirmed=is_unconfirmed)
        report.__cause__ = failure
        return report

    async def _learn_policy(self) -> None:
        # A user without the permission gets no warning.
        with suppress(CallError, TimeoutError), self._limit:
            self._policy.learn([await self._calls.ask(node, "INFO", "memory") for node in await self._calls.masters()])

    async def _create(self, id: str, record: Record) -> Outcome:
        (values, rest), ownership = values_and_arguments(record), record.ownership
        since = since_argument(ownership)
        if ownership is None:
            return await self._keyspace.write("create", id, (), values, since, *rest)
        if not self._is_cluster:
            return await self._keyspace.write("create", id, (owner_key(ownership.owner),), values, since, *rest)
        if await self._keyspace.enter(id, ownership, record.expires, now=record.created) is Outcome.REVOKED:
            return Outcome.REVOKED
        outcome = await self._keyspace.write("create", id, (), values, since, *rest)
        if outcome is Outcome.CONFLICT and await self._keyspace.look(id, record.created) is Outcome.ENDED:
            # All of the owner's sessions were ended after the set had this id, and before the session was stored.
            return Outcome.REVOKED
        return outcome
