"""Sessions in MongoDB: a document for each session, which the server removes when it has expired.

With `session(encrypt=False)`, values are in MongoDB's own types, and an index finds the sessions of an owner as set_owner() got it:

    db.sessions.find({"fields.user.id": 7})
    db.sessions.find({"owner": "user:7", "ended": null})
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Literal

from pymongo.errors import DuplicateKeyError, WriteConcernError

from gaman.errors import ConfigError, a_type
from gaman_session._damage import Damage
from gaman_session._driver import TOMBSTONE, Outcome, Ownership, Record
from gaman_session._errors import SessionStoreError
from gaman_session.drivers._checks import check_timeout, check_whole_number
from gaman_session.drivers._mongodb_batches import MAX_IN_FLIGHT, Documents
from gaman_session.drivers._mongodb_client import CODEC, create_indexes, find_collection, make_client, write
from gaman_session.drivers._mongodb_documents import (
    Change,
    Document,
    date,
    live,
    owned_by,
    owner_stage,
    path,
    replace_by_tombstone,
    to_bson,
    to_record,
    tombstone,
)
from gaman_session.drivers._mongodb_errors import conceal
from gaman_session.drivers._mongodb_owners import CallTime, Revocations
from gaman_session.drivers._reports import Reporter, reports
from gaman_session.drivers._time_limit import TimeLimit


class MongoDBDriver(Reporter):
    """Keeps sessions in the *collection* of *db_name*, with *timeout* seconds for each call, including retries.

    A write is acknowledged when a majority of the replica set has it in its journal, and reads ask the primary, so an acknowledged
    write is there after a failover too. Options in the *uri* for these and for the connection's timeouts take precedence. For
    example, a `readConcernLevel` of `linearizable` keeps a primary that the other members have just replaced from answering, at the
    price of a round trip among them.
    """

    name = "mongodb"
    shared = True

    _failures = (Exception,)

    def __init__(
        self,
        *,
        db_name: str,
        uri: str = "mongodb://localhost:27017",
        collection: str = "sessions",
        timeout: float = 10,
        pool_size: int = 100,
    ) -> None:
        # No error shows a wrong uri, because it may hold a password.
        if not isinstance(uri, str):
            raise ConfigError(f"the mongodb driver has a uri that is {a_type(uri)}; it takes text")
        for option, name in (("db_name", db_name), ("collection", collection)):
            if not isinstance(name, str) or not name:
                raise ConfigError(f"the mongodb driver has {option}={name!r}; it takes a name")
        check_timeout("mongodb", timeout)
        check_whole_number(pool_size, f"the mongodb driver has pool_size={pool_size!r};")
        self._uri = uri
        self._db_name = db_name
        self._collection = collection
        self._timeout = timeout
        self._pool_size = pool_size
        self._damage = Damage("mongodb")
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connect()

    async def open(self) -> None:
        """Have the collection remove expired documents, or raise SessionStoreError if the server can't be asked to.

        An index that is in the way, or that this user may not create, is a ConfigError.
        """
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            # The loop ended without close(), and pymongo's client is bound to it.
            self._connect()
        self._loop = loop
        try:
            await self._prepare()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Finish the calls in flight, and close every connection."""
        if self._loop in (None, asyncio.get_running_loop()):
            await self._documents.drain()
            await self._client.close()
        self._loop = None
        self._connect()

    @reports("load a session")
    async def load(self, id: str, *, now: float) -> Record | Literal[Outcome.ENDED] | None:
        """Return the session, ENDED, or None."""
        return await self._documents.load(id, now, self._connections)

    @reports("load sessions")
    async def load_all(self, ids: Sequence[str], *, now: float) -> list[Record | Literal[Outcome.ENDED] | None]:
        """Return what load() does for each of *ids*, by one find."""
        return await self._documents.load_all(ids, now)

    @reports("create a session")
    async def create(self, id: str, record: Record) -> Literal[Outcome.REVOKED] | None:
        """Store a new session."""
        endings = self._documents.endings
        async with self._connections:
            try:
                if not await self._revocations.insert(id, record, CallTime(record.created), lambda: not endings.is_late(record)):
                    return Outcome.REVOKED
            except DuplicateKeyError as error:
                raise SessionStoreError(self.name, "create a session under an id that is taken") from self._conceal(error)
        return None

    @reports("change a session")
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
        """Set and delete single fields of the session."""
        change = self._change(sets, deletes, now, deadline, max_size)
        if not deletes and await self._documents.set(id, change):
            return Outcome.WRITTEN
        async with self._connections:
            return await (self._apply(id, change) if deletes else self._apply_as_found(id, change))

    @reports("change a session")
    async def swap(
        self, id: str, field: str, old: bytes | None, new: bytes, *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        """Set one field if its bytes are *old*."""
        change = self._change({field: new}, (), now, deadline, max_size)
        stored = None if old is None else to_bson(old)
        async with self._connections:
            if old is None or isinstance(stored, bytes):
                same = {"$exists": False} if old is None else {"$eq": stored}
                if await self._documents.update({**live(id, now), path(field): same}, change.sized_update()):
                    return Outcome.WRITTEN
            # To MongoDB, 1 equals 1.0, and a filter by 1 finds [1]. Only the version shows that such a value is unchanged.
            while True:
                async with self._documents.lock(id):
                    found = await self._documents.load(id, now)
                    if not isinstance(found, Record):
                        return found or Outcome.ABSENT
                    if found.fields.get(field) != old:
                        return Outcome.CONFLICT
                    if change.outgrows(found.fields):
                        return Outcome.TOO_LARGE
                    if await self._documents.update({**live(id, now), "version": found.version}, change.update()):
                        return Outcome.WRITTEN

    @reports("rename a session")
    async def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
        """Replace the session by *record* under *new_id* if its version is still *version*, in two steps: the old id dies first."""
        call, ownership, unconfirmed, endings = CallTime(now), record.ownership, None, self._documents.endings

        def is_live() -> bool:
            return version >= endings.known.min_version

        unchanged, successor = {**live(id, now), "version": version}, {**tombstone(now), "successor": new_id}
        async with self._connections:
            since = None
            try:
                if not is_live():
                    is_ended = False
                elif ownership is None:
                    is_ended = (await write(lambda: self._sessions.replace_one(unchanged, successor))).matched_count > 0
                else:
                    before = await write(
                        lambda: self._sessions.find_one_and_replace(unchanged, successor, {"_id": False, "since": True})
                    )
                    is_ended, since = before is not None, before and before.get("since")
            except WriteConcernError as error:
                # If the primary has ended the session, it must have the new one too.
                unconfirmed, is_ended = error, await self._sessions.find_one({"_id": id, "successor": new_id}) is not None
                since = ownership and ownership.since
            if not is_ended:
                if unconfirmed is not None:
                    raise unconfirmed
                found = await self._documents.load(id, now)
                return Outcome.CONFLICT if isinstance(found, Record) else found or Outcome.ABSENT
            try:
                if ownership is None or ownership.since == since:
                    # The session has this owner already: it is never REVOKED, and it has ended if all of the owner's were ended.
                    if not await self._revocations.insert(new_id, record, call, is_live, old_id=id):
                        return Outcome.ENDED
                elif endings.is_outdated(ownership, now) or not await self._revocations.insert(new_id, record, call, is_live):
                    return Outcome.REVOKED
            except DuplicateKeyError as error:
                if await self._documents.load(new_id, now) is Outcome.ENDED:
                    return Outcome.ENDED
                raise SessionStoreError(self.name, "rename a session to an id that is taken") from self._conceal(error)
            except WriteConcernError as error:
                unconfirmed = error
        if unconfirmed is not None:
            raise SessionStoreError(self.name, "rename a session", is_unconfirmed=True) from self._conceal(unconfirmed)
        return Outcome.WRITTEN

    @reports("end a session")
    async def destroy(self, id: str, *, now: float) -> None:
        """End the session, and those it was renamed to, even one that isn't stored yet."""
        followed: set[str] = set()
        next_id: object = id
        async with self._connections:
            while isinstance(next_id, str) and next_id not in followed:
                # The session that a rename leads to may not be stored yet. For the first id, only a stored session is ended.
                where = {"_id": next_id} if followed else {"_id": next_id, "deadline": {"$gt": date(now)}}
                found = await self._documents.update_and_find(where, replace_by_tombstone(now), upsert=bool(followed))
                followed.add(next_id)
                next_id = found and found.get("successor")

    async def purge(self, *, now: float, limit: int) -> int:
        """Return 0: the server removes expired documents by itself, within about a minute."""
        return 0

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
        """Do what apply() does, and set the session's ownership in the same step; a new owner takes three round trips."""
        call, endings = CallTime(now), self._documents.endings
        async with self._connections:
            if ownership is not None:
                is_revoked = await endings.learn_during(self._revocations.is_revoked(ownership, call))
                if is_revoked or endings.is_outdated(ownership, now):
                    return Outcome.REVOKED
            ending = endings.known
            outcome = await self._apply(id, self._change(sets, deletes, now, deadline, max_size, owner_stage(ownership)))
            if ownership is None or outcome is not Outcome.WRITTEN:
                return outcome
            is_revoked = await endings.learn_during(self._revocations.is_revoked(ownership, call))
            if not is_revoked and (endings.known is ending or not await endings.dead([id])):
                return outcome
            # A revocation made in between may not have found this session.
            await write(lambda: self._sessions.replace_one(live(id, now), tombstone(now)))
            return Outcome.ENDED

    @reports("list the sessions of an owner")
    async def owned(self, owner: str, *, now: float) -> Mapping[str, Record]:
        """Return the owner's sessions, without their fields."""
        async with self._connections:
            find = self._sessions.find(owned_by(owner, now), {"fields": False})
            documents, _ = await asyncio.gather(find.to_list(), self._documents.endings.learn())
        endings, damage = self._documents.endings, self._damage
        found = {each["_id"]: endings.find(to_record({**each, "fields": {}}, now, damage), now) for each in documents}
        return {id: record for id, record in found.items() if isinstance(record, Record) and record.ownership is not None}

    @reports("end the sessions of an owner")
    async def end_owned(self, owner: str, *, keep: Collection[str], now: float) -> int:
        """End the owner's sessions except those in *keep*; a rename in flight ends its own."""
        async with self._connections:
            return await self._revocations.end_owned(owner, list(keep), now)

    @reports("end all sessions")
    async def end_everyone(self, *, now: float) -> None:
        """End every session, by writing one document."""
        async with self._connections:
            await self._documents.endings.end_everyone(now)

    @reports("count its sessions")
    async def count(self, *, now: float) -> int:
        """Return how many sessions there are, by counting an index, or after end_everyone() by reading each document."""
        # A tombstone's deadline is at most a minute ahead, or two by a clock that is a little ahead.
        soon = {"deadline": {"$gt": date(now), "$lte": date(now + 2 * TOMBSTONE)}, "ended": True}
        async with self._connections:
            if (await self._documents.endings.learn()).min_version:
                live = {"deadline": {"$gt": date(now)}, "ended": None, **self._documents.endings.live()}
                return await self._sessions.count_documents(live)
            there = await self._sessions.count_documents({"deadline": {"$gt": date(now)}})
            return there - await self._sessions.count_documents(soon)

    @reports("tell the time")
    async def time(self) -> float:
        """Return the time of the primary, in seconds since the epoch; behind a mongos, that of the mongos."""
        async with self._connections:
            hello = await self._client.admin.command("hello", codec_options=CODEC)
        return int(hello["localTime"]) / 1000

    def _explain(self, error: Exception) -> tuple[str, Exception]:
        return "", self._conceal(error)

    def _conceal(self, error: Exception) -> Exception:
        return conceal(error, self._timeout)

    def _connect(self) -> None:
        """Make a client, which connects with its first call, and everything else that is bound to its event loop."""
        self._client = make_client(self._uri, timeout=self._timeout, pool_size=self._pool_size)
        self._sessions = find_collection(self._client, self._db_name, self._collection)
        self._limit = TimeLimit(self._timeout)
        # pymongo's pool is unfair: a late call may take the connection that others have waited for. Each kind of batch has its own.
        size = int(min(self._client.options.pool_options.max_pool_size, sys.maxsize))
        self._connections = asyncio.Semaphore(max(1, size - 3 * MAX_IN_FLIGHT))
        self._documents = Documents(self._sessions, self._timeout, self._damage)
        self._revocations = Revocations(self._sessions, self._documents.endings)

    @reports("prepare its collection; see that it runs where the driver's uri says, and lets this user in")
    async def _prepare(self) -> None:
        async with self._connections:
            await create_indexes(self._sessions)

    async def _apply(self, id: str, change: Change) -> Outcome:
        # Only a change that may end the session needs the document back: a replica set stores a copy of each one it may return.
        if change.deletes:
            outcome = await self._documents.update_or_end(live(id, change.now), change.sized_update())
            if outcome is not None:
                return outcome
        elif await self._documents.set(id, change):
            return Outcome.WRITTEN
        return await self._apply_as_found(id, change)

    async def _apply_as_found(self, id: str, change: Change) -> Outcome:
        """Find out why the server refused a change, and make it if the session has room and doesn't change meanwhile."""
        while True:
            async with self._documents.lock(id):
                found = await self._documents.load(id, change.now)
                if not isinstance(found, Record):
                    return found or Outcome.ABSENT
                if change.outgrows(found.fields):
                    return Outcome.TOO_LARGE
                unchanged = {**live(id, change.now), "version": found.version}
                if change.deletes:
                    outcome = await self._documents.update_or_end(unchanged, change.update())
                    if outcome is not None:
                        return outcome
                elif await self._documents.update(unchanged, change.update()):
                    return Outcome.WRITTEN

    def _change(
        self,
        sets: Mapping[str, bytes],
        deletes: Collection[str],
        now: float,
        deadline: float | None,
        max_size: int,
        owner: Document | None = None,
    ) -> Change:
        return Change(sets, deletes, now, deadline, max_size, owner, self._documents.endings.known.min_version)
