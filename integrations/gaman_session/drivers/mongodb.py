"""Sessions in MongoDB: a document a session, which the server itself removes when it is over.

A session is `{_id, created, expires, deadline, version, fields}`; times are dates, and `fields` holds the values by key. JSON,
which values are with `session(encrypt=False)`, is kept in types of MongoDB's own, so that a query can ask for `{"fields.user.id":
1}`, and anything else as binary; once it had such JSON, a session is `native`. A document of more than LARGE bytes is `large`. In
the name of a field, `%`, `.`, `$` and NUL are written as in a URL, and the empty name is `%`. A tombstone is `{_id, ended: true,
deadline}`, with a `successor` after a rename.

A session with an owner also has the fields `owner`, `since` (a number) and `note`. With `session(encrypt=False)` the owner is
what set_owner() was given, and by an index `{"owner": "user:7", "ended": null}` finds the sessions.

That an owner's sessions were ended is kept for a minute, as the bar `{_id: "owner:...", ended: true, deadline, before, kept: [{id,
since}]}`. It refuses tags made before. A rename in flight may insert its session too late to be found, so it looks at the bar
afterwards, and ends that session itself unless the one it came from was kept. So ending all need not look for renames.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import sys
import time
import warnings
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import unquote
from weakref import WeakValueDictionary

import bson
import msgspec
from bson import CodecOptions, DatetimeMS, Int64
from bson.codec_options import DatetimeConversion
from bson.errors import BSONError
from bson.raw_bson import RawBSONDocument
from pymongo import AsyncMongoClient, ReturnDocument, UpdateOne
from pymongo.errors import (
    BulkWriteError,
    ConfigurationError,
    DocumentTooLarge,
    DuplicateKeyError,
    InvalidName,
    InvalidURI,
    NotPrimaryError,
    OperationFailure,
    WriteConcernError,
    WriteError,
)

from gaman.errors import ConfigError, GamanError
from gaman_session._damage import Damage
from gaman_session._driver import LARGE, MAX_SKEW, TOMBSTONE, YEAR_10000, Outcome, Ownership, Record, is_sound, size_of
from gaman_session._errors import SessionStoreError
from gaman_session.drivers._batches import Batches
from gaman_session.drivers._checks import check_timeout, check_whole_number
from gaman_session.drivers._time_limit import TimeLimit

# What is damaged is absent for a write too: it takes only a document of this shape.
_TYPES: Final = {"created": "date", "expires": "date", "deadline": "date", "version": "long", "fields": "object"}
_SHAPE: Final = {
    "required": list(_TYPES),
    "properties": {name: {"bsonType": kind} for name, kind in _TYPES.items()},
    "not": {"required": ["ended"]},
}
# The same for the pipeline of an update, with a deadline within the absolute limit. The update finds its document by the _id alone,
# because planning any other search takes the server longer than the update itself. A deadline between two dates is a date.
_OTHERS: Final = {"created": "date", "version": "long", "fields": "object", "ended": "missing"}
_LAST: Final = DatetimeMS(YEAR_10000 * 1000 - 1)
_IS_SOUND: Final = {
    "$and": [
        {"$lte": ["$deadline", "$expires"]},
        {"$lte": ["$expires", _LAST]},
        {"$eq": [[{"$type": f"${name}"} for name in _OTHERS], {"$literal": [*_OTHERS.values()]}]},
    ]
}
# As the bytes that every update sends.
_SENT_IS_SOUND: Final = RawBSONDocument(bson.encode(_IS_SOUND))
# An id is no number, so this fails, with a code of its own. So the server tells which of a batch's updates met no live session.
_REFUSAL: Final = {"$toInt": "$_id"}
_REFUSED: Final = 241
_IS_EMPTY: Final = {"$eq": ["$fields", {"$literal": dict[str, Any]()}]}
# The JSON of a value of MongoDB's own is at most so many times larger: an octet of text may become `\\u0000`.
_GROWTH: Final = 6
_IS_LARGE: Final = {"$cond": [{"$gt": [{"$bsonSize": "$$ROOT"}, LARGE]}, True, "$$REMOVE"]}
# A write of at most this part of the sizes allowed is checked by what it may add, because the exact size takes the server longer.
_PART: Final = 16
_LEFT_OUT: Final[dict[str, Any]] = {}
"""Stands for a document that is large or absent, because a projection that tells them apart takes the server far longer."""
_INDEXES: Final[dict[str, dict[str, Any]]] = {"deadline": {"expireAfterSeconds": 0}, "owner": {"sparse": True}}
_UNAUTHORIZED: Final = 13
_INDEX_CONFLICTS: Final = (85, 86)

# Nothing that lies in a document may keep it from being read: dates beyond the year 9999, text that is no UTF-8.
_CODEC: Final[CodecOptions[dict[str, Any]]] = CodecOptions(
    datetime_conversion=DatetimeConversion.DATETIME_MS, unicode_decode_error_handler="surrogateescape"
)
# MongoDB takes a hundred levels, those of the document and of the command around it included.
_DEEPEST: Final = 50
# Calls of one moment share a trip; with so many under way, a slow one holds up few others.
_AT_ONCE: Final = 4
_MOST_LARGE: Final = 1000
# Bytes of values from which a document may be large, because it has more than its values.
_NEARLY_LARGE: Final = LARGE - LARGE // 8

_ESCAPES: Final = str.maketrans({character: f"%{ord(character):02X}" for character in "%.$\0"})


class _Update(NamedTuple):
    """A change of one session."""

    id: str
    change: list[dict[str, Any]]


class MongoDBDriver:
    """Keeps sessions in the *collection* of *db_name*, with *timeout* seconds for each call, retries included.

    A write is answered when a majority of the replica set has it in its journal, and reads ask the primary, so what was answered is
    there after a failover too. What the *uri* says of these and of the connection's timeouts comes first: a `readConcernLevel` of
    `linearizable`, for one, keeps a primary that the others have just given up from answering, at the price of a trip among them.
    """

    name = "mongodb"
    shared = True

    def __init__(
        self,
        *,
        db_name: str,
        uri: str = "mongodb://localhost:27017",
        collection: str = "sessions",
        timeout: float = 10,
        pool_size: int = 100,
    ) -> None:
        # What is wrong with the uri is not shown: it may hold a password.
        if not isinstance(uri, str):
            raise ConfigError(f"the mongodb driver has a uri that is a {type(uri).__name__}; it takes text")
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
        """Have the collection remove expired documents by itself, or raise SessionStoreError where the server can't be asked to.

        An index that is in the way, or that this user may not create, is a ConfigError.
        """
        loop = asyncio.get_running_loop()
        if self._loop not in (None, loop):
            # The loop ended without close(), and pymongo's client is bound to it.
            self._connect()
        self._loop = loop
        try:
            async with self._asking("prepare its collection; see that it runs where the driver's uri says, and lets this user in"):
                for field, options in _INDEXES.items():
                    await self._create_index(field, options)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close every connection."""
        if self._loop in (None, asyncio.get_running_loop()):
            await self._documents.drain()
            await self._updates.drain()
            await self._client.close()
        self._loop = None
        self._connect()

    async def load(self, id: str, *, now: float) -> Record | Literal[Outcome.ENDED] | None:
        """Return the session, ENDED, or None."""
        action, began = "load a session", time.monotonic()
        try:
            if id not in self._large and (document := await self._documents.call(id)) is not _LEFT_OUT:
                return self._record(id, document, now)
        except Exception as cause:
            raise SessionStoreError(self.name, action) from self._conceal(cause)
        async with self._asking(action, began):
            return await self._find_large(id, now)

    async def create(self, id: str, record: Record) -> Literal[Outcome.REVOKED] | None:
        """Insert a document, unless the id has one."""
        began = time.monotonic()
        async with self._asking("create a session"):
            try:
                if record.ownership is None:
                    await self._insert(id, record)
                    return None
                is_in = await self._insert_owned(id, record, record.ownership, record.created, began)
                return None if is_in else Outcome.REVOKED
            except DuplicateKeyError as cause:
                raise SessionStoreError(self.name, "create a session under an id that is taken") from self._conceal(cause)

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
        action, began = "change a session", time.monotonic()
        if deletes:
            async with self._asking(action):
                return await self._apply(id, sets, deletes, now, deadline, max_size)
        try:
            is_small = id not in self._large and size_of(sets) * _PART <= min(max_size, LARGE)
            change = _small_change(sets, now, deadline, max_size) if is_small else _change(sets, (), now, deadline, max_size)
            if await self._set(id, sets, change):
                return Outcome.WRITTEN
        except Exception as cause:
            raise SessionStoreError(self.name, action) from self._conceal(cause)
        async with self._asking(action, began):
            return await self._apply_as_found(id, sets, deletes, now, deadline, max_size)

    async def swap(
        self, id: str, field: str, old: bytes | None, new: bytes, *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        """Set one field if it still is *old*."""
        live, sets = _live(id, now), {field: new}
        stored = None if old is None else _to_bson(old)
        async with self._asking("change a session"):
            if old is None or isinstance(stored, bytes):
                same = {"$exists": False} if old is None else {"$eq": stored}
                if await self._update({**live, _path(field): same}, _change(sets, (), now, deadline, max_size)):
                    return Outcome.WRITTEN
            # To MongoDB, 1 is 1.0, and [1] is found under 1: of its own values, only the version tells that they are the same.
            while True:
                async with self._looking(id):
                    found = await self._find(id, now)
                    if not isinstance(found, Record):
                        return found or Outcome.ABSENT
                    if found.fields.get(field) != old:
                        return Outcome.CONFLICT
                    if _outgrows(found.fields, {**found.fields, **sets}, max_size):
                        return Outcome.TOO_LARGE
                    if await self._update({**live, "version": found.version}, _change(sets, (), now, deadline)):
                        return Outcome.WRITTEN

    async def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
        """End the session, if nobody has written to it since *version*, and then store *record* under *new_id*."""
        action, began = "rename a session", time.monotonic()
        live, tombstone = {**_live(id, now), "version": version}, {**_tombstone(now), "successor": new_id}
        ownership, since, unconfirmed = record.ownership, None, None
        async with self._asking(action):
            try:
                if ownership is None:
                    is_ended = (await self._sessions.replace_one(live, tombstone)).matched_count > 0
                else:
                    before = await self._sessions.find_one_and_replace(live, tombstone, {"_id": False, "since": True})
                    is_ended, since = before is not None, before and before.get("since")
            except WriteConcernError as error:
                # The primary may have ended the session: then it must have the new one too.
                unconfirmed, is_ended = error, await self._sessions.find_one({"_id": id, "successor": new_id}) is not None
                since = ownership and ownership.since
            if not is_ended:
                if unconfirmed is not None:
                    raise unconfirmed
                found = await self._find(id, now)
                return Outcome.CONFLICT if isinstance(found, Record) else found or Outcome.ABSENT
            try:
                if ownership is None:
                    await self._insert(new_id, record)
                elif ownership.since == since:
                    # It was the owner's before. So where all of theirs were ended, it has ended, and isn't refused.
                    if not await self._insert_owned(new_id, record, ownership, now, began, id):
                        return Outcome.ENDED
                elif not await self._insert_owned(new_id, record, ownership, now, began):
                    return Outcome.REVOKED
            except DuplicateKeyError as cause:
                if await self._find(new_id, now) is Outcome.ENDED:
                    return Outcome.ENDED
                raise SessionStoreError(self.name, "rename a session to an id that is taken") from self._conceal(cause)
            except WriteConcernError as error:
                unconfirmed = error
            if unconfirmed is not None:
                raise SessionStoreError(self.name, action, is_unconfirmed=True) from self._conceal(unconfirmed)
        return Outcome.WRITTEN

    async def destroy(self, id: str, *, now: float) -> None:
        """Put a tombstone in the session's place, and in the place of what it was renamed to, even before that is there."""
        stands = {"$and": [{"$eq": ["$ended", True]}, {"$gt": ["$deadline", _date(now)]}]}
        end = [{"$replaceWith": {"$cond": [stands, "$$ROOT", _tombstone(now)]}}]
        followed: set[str] = set()
        cursor: Any = id
        async with self._asking("end a session"):
            while isinstance(cursor, str) and cursor not in followed:
                # What a rename leads to may have yet to be stored; of any other id, only what is there is ended.
                where = {"_id": cursor} if followed else {"_id": cursor, "deadline": {"$gt": _date(now)}}
                found = await self._update_and_find(where, end, upsert=bool(followed))
                followed.add(cursor)
                cursor = found and found.get("successor")

    async def purge(self, *, now: float, limit: int) -> int:
        """Return 0: the server does it by itself, within about a minute."""
        return 0

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
        """Do what apply() does, and give the session to the owner of *ownership*, in three round trips, or to no owner, in one."""
        began = time.monotonic()
        owning: dict[str, Any] = {"$unset": ["owner", "since", "note"]}
        if ownership is not None:
            owning = {"$set": {name: {"$literal": value} for name, value in _tagged(ownership).items()}}
        async with self._asking("change a session"):
            if ownership is not None and await self._is_barred(ownership, now, began):
                return Outcome.REVOKED
            outcome = await self._apply(id, sets, deletes, now, deadline, max_size, owning)
            if ownership is None or outcome is not Outcome.WRITTEN or not await self._is_barred(ownership, now, began):
                return outcome
            # Whoever has just ended all that is the owner's may not have seen this one.
            await self._sessions.replace_one(_live(id, now), _tombstone(now))
            return Outcome.ENDED

    async def owned(self, owner: str, *, now: float) -> Mapping[str, Record]:
        """Return the owner's sessions, without their fields."""
        async with self._asking("list the sessions of an owner"):
            theirs = self._sessions.find({"owner": owner, "ended": None, "deadline": {"$gt": _date(now)}}, {"fields": False})
            documents = [document async for document in theirs]
        found = {document["_id"]: self._record(document["_id"], {**document, "fields": {}}, now) for document in documents}
        return {id: record for id, record in found.items() if isinstance(record, Record) and record.ownership is not None}

    async def end_owned(self, owner: str, *, keep: Collection[str], now: float) -> int:
        """Refuse the owner's older tags from now on, and then end the sessions that there are; renames see to those in flight."""
        kept = list(keep)
        live = {"owner": owner, "ended": None, "deadline": {"$gt": _date(now)}}
        async with self._asking("end the sessions of an owner"):
            await self._bar(owner, kept, now)
            ending = {**live, "_id": {"$nin": kept}}
            return (await self._sessions.update_many(ending, [{"$replaceWith": _tombstone(now)}])).modified_count

    async def count(self, *, now: float) -> int:
        """Return how many sessions there are, by the entries of an index."""
        # A tombstone is due within a minute, or, by a clock that is a little ahead, in two.
        soon = {"deadline": {"$gt": _date(now), "$lte": _date(now + 2 * TOMBSTONE)}, "ended": True}
        async with self._asking("count its sessions"):
            there = await self._sessions.count_documents({"deadline": {"$gt": _date(now)}})
            return there - await self._sessions.count_documents(soon)

    async def time(self) -> float:
        """Return the time of the primary, in seconds since the epoch; behind a mongos, that of the mongos."""
        async with self._asking("tell the time"):
            hello = await self._client.admin.command("hello", codec_options=_CODEC)
            return _seconds(hello["localTime"])

    def _connect(self) -> None:
        """Make a client, which connects with its first call, and what is bound to its event loop."""
        self._limit = TimeLimit(self._timeout)
        self._documents = Batches(self._find_all, at_once=_AT_ONCE, timeout=self._timeout)
        # These are loaded by themselves from the start.
        self._large: set[str] = set()
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._updates: Batches[_Update, bool] = Batches(self._update_all, at_once=_AT_ONCE, timeout=self._timeout)
        # Reads keep the concern "local": a new primary has every acknowledged write, but may at first keep some from "majority".
        options: dict[str, Any] = {
            "appName": "gaman",
            "w": "majority",
            "journal": True,
            "connectTimeoutMS": 1000,
            "heartbeatFrequencyMS": 1000,
            # Sooner than the call gives up, since its error says which server did not answer, and why.
            "serverSelectionTimeoutMS": math.ceil(max(self._timeout - 1, self._timeout / 2) * 1000),
            "maxPoolSize": self._pool_size,
        }
        named = {option.partition("=")[0].lower() for option in re.split("[&;]", self._uri.partition("?")[2])}
        try:
            with warnings.catch_warnings():
                # Otherwise pymongo goes on without an option that it can't read, be it tls.
                warnings.simplefilter("error", UserWarning)
                self._client: AsyncMongoClient[dict[str, Any]] = AsyncMongoClient(
                    self._uri, **{name: value for name, value in options.items() if name.lower() not in named}
                )
            # pymongo's pool lets those who come late take what others have waited for, some of them for ever.
            most = int(min(self._client.options.pool_options.max_pool_size, sys.maxsize))
            self._turns = asyncio.Semaphore(max(1, most - 2 * _AT_ONCE))
            self._sessions = self._client.get_database(self._db_name).get_collection(self._collection, codec_options=_CODEC)
        except InvalidName as cause:
            names = f"db_name={self._db_name!r} and collection={self._collection!r}"
            raise ConfigError(f"the mongodb driver has {names}: {cause}") from cause
        except (InvalidURI, ValueError):
            takes = "it takes mongodb://user:password@host:port, where user and password are percent-encoded"
            raise ConfigError(f"the mongodb driver has a uri that can't be read; {takes}") from None
        except (ConfigurationError, OSError, UserWarning) as cause:
            raise ConfigError(f"the mongodb driver can't use the options of its uri: {cause}") from cause

    async def _create_index(self, field: str, options: dict[str, Any]) -> None:
        where, db, collection = self._sessions.full_name, json.dumps(self._db_name), json.dumps(self._collection)
        try:
            await self._sessions.create_index(field, **options)
        except OperationFailure as cause:
            if cause.code in _INDEX_CONFLICTS:
                name = f"{field}_1"
                indexes = await self._sessions.index_information()
                others = [each for each, index in indexes.items() if each == name or index["key"] == [(field, 1)]]
                drop = "; ".join(
                    f"db.getSiblingDB({db}).getCollection({collection}).dropIndex({json.dumps(each)})" for each in others
                )
                raise ConfigError(
                    f"the mongodb driver needs an index on {field!r} of {where} with {json.dumps(options)}, "
                    f"and another is in the way; drop it in mongosh: {drop}"
                ) from cause
            if cause.code == _UNAUTHORIZED:
                raise ConfigError(
                    f"the mongodb driver may not create its index on {field!r} of {where}; in mongosh, give its user the role "
                    f'that may: db.grantRolesToUser("...", [{{role: "readWrite", db: {db}}}])'
                ) from cause
            raise

    @asynccontextmanager
    async def _asking(self, action: str, began: float | None = None) -> AsyncGenerator[None]:
        """Give what goes out by itself its time, less what has passed since it *began*, and its turn.

        Raise SessionStoreError where it fails.
        """
        left = self._timeout if began is None else began + self._timeout - time.monotonic()
        try:
            async with asyncio.timeout(left), self._turns:
                yield
        except GamanError:
            raise
        except Exception as cause:
            raise SessionStoreError(self.name, action) from self._conceal(cause)

    def _conceal(self, cause: Exception) -> Exception:
        """Return *cause*, without documents, ids and values in its message and in those of its own causes: logs show them all."""
        each: BaseException | None = cause
        while each is not None:
            if isinstance(each, (OperationFailure, NotPrimaryError)):
                each.args = (_codes(each),)
            elif isinstance(each, BSONError) and not isinstance(each, DocumentTooLarge):
                each.args = ()
            elif isinstance(each, TimeoutError) and not each.args:
                each.args = (f"MongoDB did not answer within {self._timeout} seconds",)
            each = each.__cause__ or each.__context__
        return cause

    async def _apply(
        self,
        id: str,
        sets: Mapping[str, bytes],
        deletes: Collection[str],
        now: float,
        deadline: float | None,
        max_size: int,
        *more: dict[str, Any],
    ) -> Outcome:
        change = _change(sets, deletes, now, deadline, max_size, *more)
        # Only what may end the session needs the document back: a replica set keeps a copy of each that it may have to return.
        if deletes:
            if (outcome := await self._update_or_empty(_live(id, now), change)) is not None:
                return outcome
        elif await self._set(id, sets, change):
            return Outcome.WRITTEN
        return await self._apply_as_found(id, sets, deletes, now, deadline, max_size, *more)

    async def _apply_as_found(
        self,
        id: str,
        sets: Mapping[str, bytes],
        deletes: Collection[str],
        now: float,
        deadline: float | None,
        max_size: int,
        *more: dict[str, Any],
    ) -> Outcome:
        """Find out why the server refused a change, and make it if the session has room, as long as that is as it was found."""
        change = _change(sets, deletes, now, deadline, None, *more)
        while True:
            async with self._looking(id):
                found = await self._find(id, now)
                if not isinstance(found, Record):
                    return found or Outcome.ABSENT
                left = {field: data for field, data in {**found.fields, **sets}.items() if field not in deletes}
                if _outgrows(found.fields, left, max_size):
                    return Outcome.TOO_LARGE
                unchanged = {**_live(id, now), "version": found.version}
                if deletes:
                    if (outcome := await self._update_or_empty(unchanged, change)) is not None:
                        return outcome
                elif await self._update(unchanged, change):
                    return Outcome.WRITTEN

    def _looking(self, id: str) -> AbstractAsyncContextManager[Any]:
        """Have writes that look at a large session do so one by one, because each write makes the others look again."""
        return self._locks.setdefault(id, asyncio.Lock()) if id in self._large else nullcontext()

    async def _set(self, id: str, sets: Mapping[str, bytes], change: list[dict[str, Any]]) -> bool:
        """Make a change that ends no session, and return whether it met a live one that has room for it."""
        update = _Update(id, change)
        # A large change goes out by itself, so that others don't wait for it, and don't fail with it.
        if sum(map(len, sets.values())) <= LARGE:
            return await self._updates.call(update)
        [result] = await self._update_all([update])
        if isinstance(result, BaseException):
            raise result
        return result

    async def _update_all(self, updates: list[_Update]) -> list[bool | BaseException]:
        """Make the updates in one trip; return for each whether it met a live session, or its error."""
        # What is not there is refused too, rather than inserted.
        requests = [({"_id": id}, change) for id, change in updates]
        with self._limit:
            try:
                if len(requests) == 1:
                    # Without the bulk, it is a little faster.
                    await self._sessions.update_one(*requests[0], upsert=True)
                else:
                    await self._sessions.bulk_write([UpdateOne(*each, upsert=True) for each in requests], ordered=False)
            except WriteError as error:
                if error.code != _REFUSED:
                    raise
                return [False]
            except BulkWriteError as error:
                return _results(len(requests), error.details)
        return [True] * len(requests)

    async def _bar(self, owner: str, keep: list[str], now: float) -> None:
        """Refuse tags of the owner's that were made before *now*, and note which of the sessions live on."""
        since: dict[str, Any] = {}
        if keep:
            theirs = self._sessions.find({"_id": {"$in": keep}, "owner": owner, "ended": None}, {"since": True})
            since = {document["_id"]: document.get("since") async for document in theirs}
        kept = {"$literal": [{"id": id, "since": since.get(id, -math.inf)} for id in keep]}
        # One from further ahead is of a clock that was set back since.
        stands = {"$and": [{"$gt": ["$deadline", _date(now)]}, {"$lte": ["$before", now + MAX_SKEW]}]}
        # What an earlier end has ended may be in flight under another id. So it is not kept by a later one.
        outlived = {"$or": [{"$gte": ["$$this.since", "$before"]}, {"$in": ["$$this.id", "$kept.id"]}]}
        deadline = _date(now + TOMBSTONE)
        bar = {
            "ended": True,
            "before": {"$cond": [stands, {"$max": ["$before", now]}, now]},
            "deadline": {"$cond": [stands, {"$max": ["$deadline", deadline]}, deadline]},
            "kept": {"$cond": [stands, {"$filter": {"input": kept, "cond": outlived}}, kept]},
        }
        await self._sessions.update_one({"_id": _bar(owner)}, [{"$set": bar}], upsert=True)

    async def _is_barred(self, ownership: Ownership, now: float, began: float) -> bool:
        """Return whether the owner's sessions were ended after *ownership* was made; at *now*, time.monotonic() was *began*."""
        bar = await self._sessions.find_one(_barring(ownership, now), {"_id": False, "before": True})
        # What came while the call waited is no further ahead than that.
        return bar is not None and bool(bar["before"] <= now + (time.monotonic() - began) + MAX_SKEW)

    async def _is_kept(self, owner: str, id: str, new_id: str) -> bool:
        """Return whether the session was kept when the owner's were ended, and let it be kept as *new_id* from now on."""
        kept = {"_id": _bar(owner), "kept.id": id}
        return (await self._sessions.update_one(kept, {"$set": {"kept.$.id": new_id}})).matched_count > 0

    async def _find(self, id: str, now: float) -> Record | Literal[Outcome.ENDED] | None:
        if id not in self._large and (document := await self._documents.call(id)) is not _LEFT_OUT:
            return self._record(id, document, now)
        return await self._find_large(id, now)

    async def _find_large(self, id: str, now: float) -> Record | Literal[Outcome.ENDED] | None:
        document = await self._sessions.find_one({"_id": id})
        self._large.discard(id)
        return self._record(id, document, now)

    def _record(self, id: str, document: dict[str, Any] | None, now: float) -> Record | Literal[Outcome.ENDED] | None:
        match document:
            case None:
                return None
            case {"ended": True, "deadline": DatetimeMS() as deadline}:
                return Outcome.ENDED if deadline > _date(now) else None
            case {
                "created": DatetimeMS() as created,
                "expires": DatetimeMS() as expires,
                "deadline": DatetimeMS() as deadline,
                "version": Int64() as version,
                "fields": dict(),
            } if "ended" not in document and is_sound(
                began := _seconds(created), ends := _seconds(expires), lasts := _seconds(deadline)
            ):
                if deadline <= _date(now):
                    return None
                fields = self._read(id, document["fields"])
                if sum(map(len, fields.values())) > _NEARLY_LARGE:
                    if len(self._large) == _MOST_LARGE:
                        self._large.clear()
                    self._large.add(id)
                ownership = self._read_tag(id, document) if "owner" in document else None
                seal = document.get("seal")
                return Record(fields, began, ends, lasts, int(version), ownership, bytes(seal) if isinstance(seal, bytes) else b"")
            case _:
                self._damage.report(id, "its document")
                return None

    async def _find_all(self, ids: list[str]) -> list[dict[str, Any] | None]:
        with self._limit:
            if len(ids) == 1:
                # By the _id alone, it is a little faster.
                return [await self._sessions.find_one({"_id": ids[0]})]
            small = self._sessions.find({"_id": {"$in": ids}, "large": None})
            found = {document["_id"]: document async for document in small}
        return [found.get(id, _LEFT_OUT) for id in ids]

    def _read(self, id: str, fields: Mapping[str, Any]) -> dict[str, bytes]:
        """Return the fields of a document, without those that can't be ours."""
        found: dict[str, bytes] = {}
        for name, value in fields.items():
            try:
                found[_unescape(name)] = bytes(value) if isinstance(value, bytes) else _encode(value)
            except (TypeError, ValueError):
                self._damage.report(id, f"the value of {name!r}")
        return found

    def _read_tag(self, id: str, document: Mapping[str, Any]) -> Ownership | None:
        """Return the tag of a document, or None for one that can't be ours."""
        owner, since, note = document["owner"], document.get("since"), document.get("note", b"")
        try:
            if isinstance(owner, str) and isinstance(since, float):
                return Ownership(owner, bytes(note) if isinstance(note, bytes) else _encode(note), since)
        except (TypeError, ValueError):
            pass
        self._damage.report(id, "its owner")
        return None

    async def _insert(self, id: str, record: Record) -> None:
        await self._sessions.insert_one({"_id": id, **_document(record)})

    async def _insert_owned(
        self, id: str, record: Record, ownership: Ownership, now: float, began: float, old: str | None = None
    ) -> bool:
        """Insert a document, and return whether it may stay; *old* is the id that the session had with this tag.

        The look at the bar follows the insertion in the same round trip. Where it finds none, the end that sets one finds the
        document.
        """
        # Neither changes what is there already; so those that are matched and not inserted tell which of the two it was.
        insert = UpdateOne({"_id": id}, {"$setOnInsert": _document(record)}, upsert=True)
        look = UpdateOne(_barring(ownership, now), {"$min": {"before": math.inf}})
        result: Mapping[str, Any]
        try:
            result = (await self._sessions.bulk_write([insert, look])).bulk_api_result
        except BulkWriteError as error:
            if error.details["writeErrors"]:
                raise
            result = error.details
        unconfirmed = _unconfirmed(result)
        if not any(upserted["index"] == 0 for upserted in result["upserted"]):
            raise unconfirmed or DuplicateKeyError("the id is taken")
        if not result["nMatched"] or not await self._is_barred(ownership, now, began):
            if unconfirmed is not None:
                raise unconfirmed
            return True
        if old is not None and await self._is_kept(ownership.owner, old, id):
            return True
        await self._sessions.replace_one({"_id": id}, _tombstone(now))
        return False

    async def _update(self, where: Mapping[str, Any], change: list[dict[str, Any]]) -> bool:
        """Make a change, and return whether it met a session that has room for it."""
        try:
            return (await self._sessions.update_one(where, change)).matched_count > 0
        except WriteError as error:
            if error.code != _REFUSED:
                raise
            return False

    async def _update_or_empty(
        self, where: Mapping[str, Any], change: list[dict[str, Any]]
    ) -> Literal[Outcome.WRITTEN, Outcome.EMPTIED] | None:
        """Make a change that may end the session, and return what became of it, or None if it met none that has room for it."""
        try:
            left = await self._update_and_find(where, change)
        except OperationFailure as error:
            if error.code != _REFUSED:
                raise
            return None
        return None if left is None else Outcome.EMPTIED if "ended" in left else Outcome.WRITTEN

    async def _update_and_find(
        self, where: Mapping[str, Any], change: list[dict[str, Any]], *, upsert: bool = False
    ) -> dict[str, Any] | None:
        """Return what of a tombstone the document then has, or None where there was none to change."""
        return await self._sessions.find_one_and_update(
            where, change, {"_id": False, "ended": True, "successor": True}, upsert=upsert, return_document=ReturnDocument.AFTER
        )


def _results(count: int, details: Mapping[str, Any]) -> list[bool | BaseException]:
    """Return for each of a bulk's updates whether it met a live session, or its error, without all that was to be written."""
    if unconfirmed := _unconfirmed(details):
        raise unconfirmed from None
    results: list[bool | BaseException] = [True] * count
    for fault in details["writeErrors"]:
        results[fault["index"]] = False if fault["code"] == _REFUSED else WriteError(fault["errmsg"], fault["code"])
    return results


def _unconfirmed(details: Mapping[str, Any]) -> WriteConcernError | None:
    """Return the error of a bulk whose updates were made and not confirmed, or None."""
    return next((WriteConcernError(fault["errmsg"], fault["code"], fault) for fault in details["writeConcernErrors"]), None)


def _codes(error: OperationFailure | NotPrimaryError) -> str:
    """Return the server's names and codes for the errors in *error*."""
    details: Any = error.details if isinstance(error.details, Mapping) else {}
    faults: list[dict[str, Any]] = [*details.get("writeErrors", ()), *details.get("writeConcernErrors", ())] or [details]
    code = error.code if isinstance(error, OperationFailure) else None
    return ", ".join(sorted({f"{fault.get('codeName', 'code')} {fault.get('code', code)}" for fault in faults}))


def _document(record: Record) -> dict[str, Any]:
    fields = {_escape(field): _to_bson(data) for field, data in record.fields.items()}
    document: dict[str, Any] = {
        "created": _date(record.created),
        "expires": _date(record.expires),
        "deadline": _date(record.deadline),
        "version": Int64(record.version),
        "fields": fields,
    }
    if not all(isinstance(value, bytes) for value in fields.values()):
        document["native"] = True
    if size_of(record.fields) > LARGE:
        document["large"] = True
    if record.seal:
        document["seal"] = record.seal
    if record.ownership is not None:
        document |= _tagged(record.ownership)
    return document


def _tagged(ownership: Ownership) -> dict[str, Any]:
    return {"owner": ownership.owner, "since": ownership.since, "note": _to_bson(ownership.note)}


def _bar(owner: str) -> str:
    """Return where it is kept that all sessions of *owner* were ended."""
    return f"owner:{owner}"


def _barring(ownership: Ownership, now: float) -> dict[str, Any]:
    """Return the condition that all sessions of the owner were ended after *ownership* was made, less than a minute ago."""
    return {"_id": _bar(ownership.owner), "before": {"$type": "double", "$gt": ownership.since}, "deadline": {"$gt": _date(now)}}


def _live(id: str, now: float) -> dict[str, Any]:
    """Return the condition that a session is there, and is sound."""
    return {"_id": id, "deadline": {"$gt": _date(now)}, "$jsonSchema": _SHAPE}


def _change(
    sets: Mapping[str, bytes],
    deletes: Collection[str],
    now: float,
    deadline: float | None,
    max_size: int | None = None,
    *more: dict[str, Any],
) -> list[dict[str, Any]]:
    """Return the change of a live session, which fails for any other document and leaves it as it is.

    With *max_size*, it also fails where the session may be larger then. That it is not larger than before, only a look can tell.
    """
    change = [{"$set": _setting(sets, now, deadline)}, *more]
    if deletes:
        change.append({"$unset": [_path(field) for field in deletes]})
    if sets and max_size is not None:
        has_room = {"$lte": [{"$bsonSize": "$fields"}, {"$cond": ["$native", max_size // _GROWTH, max_size]}]}
        change.append({"$set": {"version": {"$cond": [has_room, "$version", _REFUSAL]}}})
    change.append({"$set": {"large": _IS_LARGE}})
    if deletes:
        change.append({"$replaceWith": {"$cond": [_IS_EMPTY, _tombstone(now), "$$ROOT"]}})
    return change


def _small_change(sets: Mapping[str, bytes], now: float, deadline: float | None, max_size: int) -> list[dict[str, Any]]:
    """Return the change of a live session that stays well within LARGE and *max_size*; it fails for any other document."""
    added = size_of(sets)
    most = min(max_size, LARGE) - added
    has_room = {"$lte": [{"$bsonSize": "$$ROOT"}, {"$cond": ["$native", min((max_size - added) // _GROWTH, most), most]}]}
    return [{"$set": _setting(sets, now, deadline, has_room)}]


def _setting(sets: Mapping[str, bytes], now: float, deadline: float | None, *conditions: dict[str, Any]) -> dict[str, Any]:
    changed: dict[str, Any] = {}
    for field, data in sets.items():
        value = _to_bson(data)
        if isinstance(value, bytes):
            changed[_path(field)] = value
        else:
            changed[_path(field)] = {"$literal": value}
            changed["native"] = True
    is_live = {"$and": [{"$gt": ["$deadline", _date(now)]}, _SENT_IS_SOUND, *conditions]}
    changed["version"] = {"$cond": [is_live, {"$add": ["$version", 1]}, _REFUSAL]}
    if deadline is not None:
        changed["deadline"] = {"$min": [_date(deadline), "$expires"]}
    return changed


def _outgrows(before: Mapping[str, bytes], after: Mapping[str, bytes], max_size: int) -> bool:
    """Return whether a session's fields are then larger than before, and too large."""
    return size_of(before) < size_of(after) > max_size


def _tombstone(now: float) -> dict[str, Any]:
    return {"ended": True, "deadline": _date(now + TOMBSTONE)}


def _date(time: float) -> DatetimeMS:
    # To the nearest one, because the product for whole milliseconds may be a little less. A deadline is rounded as the clock is.
    return DatetimeMS(round(time * 1000))


def _seconds(date: DatetimeMS) -> float:
    return int(date) / 1000


def _path(field: str) -> str:
    return f"fields.{_escape(field)}"


def _escape(field: str) -> str:
    return field.translate(_ESCAPES) if field else "%"


def _unescape(name: str) -> str:
    """Return the field of a *name* in a document, or raise ValueError for one that _escape() would not give."""
    field = unquote(name) if name != "%" else ""
    if _escape(field) != name:
        raise ValueError(name)
    field.encode()
    return field


def _to_bson(data: bytes) -> Any:
    """Return the value that *data* is the JSON of, if it comes back from MongoDB to the byte; otherwise *data*."""
    try:
        value = msgspec.json.decode(data)
        return value if _encode(value) == data and _fits(value, _DEEPEST) else data
    except (ValueError, RecursionError):
        return data


def _fits(value: Any, levels: int) -> bool:
    kind: type[Any] = value.__class__
    if kind is dict:
        # A $ may give a key a meaning of its own, as in {"$ref": ..., "$id": ...}.
        return levels > 0 and all("\0" not in key and key[:1] != "$" and _fits(inner, levels - 1) for key, inner in value.items())
    if kind is list:
        return levels > 0 and all(_fits(inner, levels - 1) for inner in value)
    return kind is not int or -(2**63) <= value < 2**63


def _number(value: Any) -> int:
    if isinstance(value, Int64):
        return int(value)
    raise TypeError(f"JSON has no {type(value).__name__}")


_encode: Final = msgspec.json.Encoder(enc_hook=_number).encode
