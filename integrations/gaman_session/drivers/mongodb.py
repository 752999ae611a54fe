"""Sessions in MongoDB: a document a session, which the server itself removes when it is over.

A session is `{_id, created, expires, deadline, version, fields}`; times are dates, and `fields` holds the values by key. JSON,
which values are with `session(encrypt=False)`, is kept in types of MongoDB's own, so that a query can ask for `{"fields.user.id":
1}`, and anything else as binary. In the name of a field, `%`, `.`, `$` and NUL are written as in a URL, and the empty name is `%`.
A tombstone is `{_id, ended: true, deadline}`, with a `successor` after a rename.

A session of somebody's also has its `owner`, `since` when, as a number, and a `note`. The tombstone of a rename to one has the
`owner` too, for whoever ends all that is theirs. That it was done is kept for a minute, as `{_id: "owner:...", ended: true,
deadline, before}`. With `session(encrypt=False)` the owner is what tag() was given, and by an index `{"owner": "user:7", "ended":
null}` finds the sessions.
"""

from __future__ import annotations

import asyncio
import math
import re
import sys
import time
import warnings
from collections.abc import AsyncGenerator, Collection, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final, Literal, NamedTuple
from urllib.parse import unquote

import msgspec
from bson import CodecOptions, DatetimeMS, Int64
from bson.codec_options import DatetimeConversion
from bson.errors import BSONError
from pymongo import AsyncMongoClient, ReturnDocument, UpdateOne
from pymongo.errors import (
    BulkWriteError,
    ConfigurationError,
    DuplicateKeyError,
    InvalidName,
    InvalidURI,
    PyMongoError,
    WriteConcernError,
    WriteError,
)

from gaman.errors import ConfigError
from gaman_session._batches import Batches
from gaman_session._damage import Damage
from gaman_session._driver import TOMBSTONE, Outcome, Record, Tag
from gaman_session._errors import SessionStoreError
from gaman_session._time_limit import TimeLimit

# What is damaged is absent for a write too: it takes only a document of this shape.
_TYPES: Final = {"created": "date", "expires": "date", "deadline": "date", "version": "long", "fields": "object"}
_SHAPE: Final = {
    "required": list(_TYPES),
    "properties": {name: {"bsonType": kind} for name, kind in _TYPES.items()},
    "not": {"required": ["ended"]},
}
# The same for the pipeline of an update that finds its document by the _id alone: any other search takes the server longer to plan
# than the update does.
_IS_SOUND: Final = {"$eq": [[{"$type": f"${name}"} for name in (*_TYPES, "ended")], {"$literal": [*_TYPES.values(), "missing"]}]}
# An id is no number, so this fails, with a code of its own. So the server tells which of a batch's updates met no live session.
_REFUSAL: Final = {"$toInt": "$_id"}
_REFUSED: Final = 241
_IS_EMPTY: Final = {"$eq": ["$fields", {"$literal": dict[str, Any]()}]}

# Nothing that lies in a document may keep it from being read: dates beyond the year 9999, text that is no UTF-8.
_CODEC: Final[CodecOptions[dict[str, Any]]] = CodecOptions(
    datetime_conversion=DatetimeConversion.DATETIME_MS, unicode_decode_error_handler="surrogateescape"
)
# MongoDB takes a hundred levels, those of the document and of the command around it included.
_DEEPEST: Final = 50
_FAILURES: Final = (PyMongoError, BSONError, TimeoutError)
# Calls of one moment share a trip; with so many under way, a slow one holds up few others.
_AT_ONCE: Final = 4
# A larger change goes out by itself, so that what is too large for the server fails nobody else.
_LARGE: Final = 1 << 20

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
        if not isinstance(timeout, (int, float)) or isinstance(timeout, bool) or not 0 < timeout < math.inf:
            raise ConfigError(f"the mongodb driver has timeout={timeout!r}; it takes a number of seconds above 0")
        if not isinstance(pool_size, int) or isinstance(pool_size, bool) or pool_size < 1:
            raise ConfigError(f"the mongodb driver has pool_size={pool_size!r}; it takes a whole number above 0")
        self._uri = uri
        self._db_name = db_name
        self._collection = collection
        self._timeout = timeout
        self._pool_size = pool_size
        self._damage = Damage("mongodb")
        self._limit = TimeLimit(timeout)
        self._documents = Batches(self._find_all, at_once=_AT_ONCE, timeout=timeout)
        self._updates: Batches[_Update, bool] = Batches(self._update_all, at_once=_AT_ONCE, timeout=timeout)
        self._connect()

    async def open(self) -> None:
        """Have the collection remove by itself what is over, or raise SessionStoreError where the server can't be asked to."""
        try:
            async with self._asking("prepare its collection; see that it runs where the driver's uri says, and lets this user in"):
                await self._sessions.create_index("deadline", expireAfterSeconds=0)
                await self._sessions.create_index("owner", sparse=True)
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Close every connection."""
        await self._documents.drain()
        await self._updates.drain()
        await self._client.close()
        self._connect()

    async def load(self, id: str, *, now: float) -> Record | Literal[Outcome.ENDED] | None:
        """Return the session, ENDED, or None."""
        try:
            return await self._find(id, now)
        except _FAILURES as cause:
            raise SessionStoreError(self.name, "load a session") from cause

    async def create(self, id: str, record: Record) -> Literal[Outcome.REFUSED] | None:
        """Insert a document, unless the id has one."""
        async with self._asking("create a session"):
            try:
                if record.tag is None:
                    await self._insert(id, record)
                    return None
                return await self._insert_owned(id, record, record.tag, record.created)
            except DuplicateKeyError as cause:
                raise SessionStoreError(self.name, "create a session under an id that is taken") from cause

    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None
    ) -> Outcome:
        """Set and delete single fields of a session that is there."""
        action, began = "change a session", time.monotonic()
        if deletes:
            async with self._asking(action):
                return await self._apply(id, sets, deletes, now, deadline)
        try:
            if await self._set(id, sets, _change(sets, now, deadline)):
                return Outcome.WRITTEN
            async with asyncio.timeout(began + self._timeout - time.monotonic()):
                return await self._missing(id, now)
        except _FAILURES as cause:
            raise SessionStoreError(self.name, action) from cause

    async def swap(self, id: str, field: str, old: bytes | None, new: bytes, *, now: float, deadline: float | None) -> Outcome:
        """Set one field if it still is *old*."""
        live, change = _live(id, now), _change({field: new}, now, deadline)
        stored = None if old is None else _to_bson(old)
        async with self._asking("change a session"):
            if old is None or isinstance(stored, bytes):
                same = {"$exists": False} if old is None else {"$eq": stored}
                if await self._update({**live, _path(field): same}, change):
                    return Outcome.WRITTEN
            # To MongoDB, 1 is 1.0, and [1] is found under 1: of its own values, only the version tells that they are the same.
            found = await self._find(id, now)
            if not isinstance(found, Record):
                return found or Outcome.ABSENT
            if found.fields.get(field) == old and await self._update({**live, "version": found.version}, change):
                return Outcome.WRITTEN
            return Outcome.CONFLICT

    async def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
        """End the session, if nobody has written to it since *version*, and then store *record* under *new_id*."""
        async with self._asking("rename a session"):
            live, tombstone = {**_live(id, now), "version": version}, {**_tombstone(now), "successor": new_id}
            tag, since = record.tag, None
            if tag is None:
                is_ended = (await self._sessions.replace_one(live, tombstone)).matched_count > 0
            else:
                # Whoever ends what is the owner's finds by it what is about to be.
                tombstone["owner"] = tag.owner
                before = await self._sessions.find_one_and_replace(live, tombstone, {"_id": False, "since": True})
                is_ended, since = before is not None, before and before.get("since")
            if not is_ended:
                found = await self._find(id, now)
                return Outcome.CONFLICT if isinstance(found, Record) else found or Outcome.ABSENT
            try:
                if tag is None or tag.since == since:
                    await self._insert(new_id, record)
                elif await self._insert_owned(new_id, record, tag, now) is Outcome.REFUSED:
                    return Outcome.REFUSED
            except DuplicateKeyError as cause:
                if await self._find(new_id, now) is Outcome.ENDED:
                    return Outcome.ENDED
                raise SessionStoreError(self.name, "rename a session to an id that is taken") from cause
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

    async def tag(
        self, id: str, tag: Tag | None, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None
    ) -> Outcome:
        """Do what apply() does, and give the session to the owner of *tag*, in a trip between two others, or to nobody, in one."""
        owning: dict[str, Any] = {"$unset": ["owner", "since", "note"]}
        if tag is not None:
            owning = {"$set": {name: {"$literal": value} for name, value in _tagged(tag).items()}}
        async with self._asking("change a session"):
            if tag is not None and await self._is_barred(tag, now):
                return Outcome.REFUSED
            outcome = await self._apply(id, sets, deletes, now, deadline, owning)
            if tag is None or outcome is not Outcome.WRITTEN or not await self._is_barred(tag, now):
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
        return {id: record for id, record in found.items() if isinstance(record, Record) and record.tag is not None}

    async def end_owned(self, owner: str, *, keep: Collection[str], now: float, until: float) -> int:
        """Refuse the owner's older tags from now on, and then end the sessions that there are, and those that others become."""
        kept = list(keep)
        async with self._asking("end the sessions of an owner"):
            bar = {"$max": {"before": until, "deadline": _date(until + TOMBSTONE)}, "$set": {"ended": True}}
            await self._sessions.update_one({"_id": _bar(owner)}, bar, upsert=True)
            live = {"owner": owner, "ended": None, "deadline": {"$gt": _date(now)}, "_id": {"$nin": kept}}
            ended = (await self._sessions.update_many(live, [{"$replaceWith": _tombstone(now)}])).modified_count
            renamed = {**live, "ended": True}
            async for tombstone in self._sessions.find(renamed, {"successor": True}):
                ended += await self._end_successors(tombstone.get("successor"), owner, {*kept, tombstone["_id"]}, now)
        return ended

    async def count(self, *, now: float) -> int:
        """Return how many sessions there are, by the entries of an index."""
        # A tombstone is due within a minute, or, by a clock that is a little ahead, in two.
        soon = {"deadline": {"$gt": _date(now), "$lte": _date(now + 2 * TOMBSTONE)}, "ended": True}
        async with self._asking("count its sessions"):
            there = await self._sessions.count_documents({"deadline": {"$gt": _date(now)}})
            return there - await self._sessions.count_documents(soon)

    def _connect(self) -> None:
        """Make a client, which connects with its first call."""
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

    @asynccontextmanager
    async def _asking(self, action: str) -> AsyncGenerator[None]:
        """Give what goes out by itself its time and its turn, and raise SessionStoreError where it fails."""
        try:
            async with asyncio.timeout(self._timeout), self._turns:
                yield
        except _FAILURES as cause:
            raise SessionStoreError(self.name, action) from cause

    async def _apply(
        self,
        id: str,
        sets: Mapping[str, bytes],
        deletes: Collection[str],
        now: float,
        deadline: float | None,
        *more: dict[str, Any],
    ) -> Outcome:
        change = [*_change(sets, now, deadline), *more]
        # Only what may end the session needs the document back: a replica set keeps a copy of each that it may have to return.
        if not deletes:
            if await self._set(id, sets, change):
                return Outcome.WRITTEN
        else:
            change.append({"$unset": [_path(field) for field in deletes]})
            change.append({"$replaceWith": {"$cond": [_IS_EMPTY, _tombstone(now), "$$ROOT"]}})
            if (left := await self._update_and_find(_live(id, now), change)) is not None:
                return Outcome.EMPTIED if "ended" in left else Outcome.WRITTEN
        return await self._missing(id, now)

    async def _missing(self, id: str, now: float) -> Literal[Outcome.ENDED, Outcome.ABSENT]:
        """Return why there is no session to change."""
        return Outcome.ENDED if await self._find(id, now) is Outcome.ENDED else Outcome.ABSENT

    async def _set(self, id: str, sets: Mapping[str, bytes], change: list[dict[str, Any]]) -> bool:
        """Make a change that ends no session, and return whether it met a live one."""
        update = _Update(id, change)
        if sum(map(len, sets.values())) <= _LARGE:
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

    async def _is_barred(self, tag: Tag, now: float) -> bool:
        return await self._sessions.find_one(_barring(tag, now), {"_id": True}) is not None

    async def _end_successors(self, id: Any, owner: str, seen: set[str], now: float) -> int:
        """End what a session of the owner's was renamed to, even before that is there; return how many were."""
        ended = 0
        while isinstance(id, str) and id not in seen:
            seen.add(id)
            theirs = {"$or": [{"$eq": [{"$type": "$deadline"}, "missing"]}, {"$eq": ["$owner", owner]}]}
            is_live = {"$ne": [{"$ifNull": ["$ended", False]}, True]}
            end = [{"$replaceWith": {"$cond": [{"$and": [theirs, is_live]}, _tombstone(now), "$$ROOT"]}}]
            shown = {"ended": True, "owner": True, "successor": True}
            before = await self._sessions.find_one_and_update({"_id": id}, end, shown, upsert=True)
            ended += before is not None and "ended" not in before and before.get("owner") == owner
            id = before and before.get("successor")
        return ended

    async def _find(self, id: str, now: float) -> Record | Literal[Outcome.ENDED] | None:
        return self._record(id, await self._documents.call(id), now)

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
            } if "ended" not in document:
                if deadline <= _date(now):
                    return None
                fields = self._read(id, document["fields"])
                tag = self._read_tag(id, document) if "owner" in document else None
                return Record(fields, _seconds(created), _seconds(expires), _seconds(deadline), int(version), tag)
            case _:
                self._damage.report(id, "its document")
                return None

    async def _find_all(self, ids: list[str]) -> list[dict[str, Any] | None]:
        with self._limit:
            if len(ids) == 1:
                # Without a cursor, it is a little faster.
                return [await self._sessions.find_one({"_id": ids[0]})]
            found = {document["_id"]: document async for document in self._sessions.find({"_id": {"$in": ids}})}
        return [found.get(id) for id in ids]

    def _read(self, id: str, fields: Mapping[str, Any]) -> dict[str, bytes]:
        """Return the fields of a document, without those that can't be ours."""
        found: dict[str, bytes] = {}
        for name, value in fields.items():
            try:
                found[_unescape(name)] = bytes(value) if isinstance(value, bytes) else _encode(value)
            except (TypeError, ValueError):
                self._damage.report(id, f"the value of {name!r}")
        return found

    def _read_tag(self, id: str, document: Mapping[str, Any]) -> Tag | None:
        """Return the tag of a document, or None for one that can't be ours."""
        owner, since, note = document["owner"], document.get("since"), document.get("note", b"")
        try:
            if isinstance(owner, str) and isinstance(since, float):
                return Tag(owner, bytes(note) if isinstance(note, bytes) else _encode(note), since)
        except (TypeError, ValueError):
            pass
        self._damage.report(id, "its owner")
        return None

    async def _insert(self, id: str, record: Record) -> None:
        await self._sessions.insert_one({"_id": id, **_document(record)})

    async def _insert_owned(self, id: str, record: Record, tag: Tag, now: float) -> Literal[Outcome.REFUSED] | None:
        """Insert a document and then, in the same trip, see whether all of the owner's were ended: that may have missed it."""
        # Neither changes what is there already; so those that are matched and not inserted tell which of the two it was.
        insert = UpdateOne({"_id": id}, {"$setOnInsert": _document(record)}, upsert=True)
        look = UpdateOne(_barring(tag, now), {"$min": {"before": math.inf}})
        result = await self._sessions.bulk_write([insert, look])
        if 0 not in (result.upserted_ids or {}):
            raise DuplicateKeyError("the id is taken")
        if not result.matched_count:
            return None
        await self._sessions.replace_one({"_id": id}, _tombstone(now))
        return Outcome.REFUSED

    async def _update(self, where: Mapping[str, Any], change: list[dict[str, Any]]) -> bool:
        return (await self._sessions.update_one(where, change)).matched_count > 0

    async def _update_and_find(
        self, where: Mapping[str, Any], change: list[dict[str, Any]], *, upsert: bool = False
    ) -> dict[str, Any] | None:
        """Return what of a tombstone the document then has, or None where there was none to change."""
        return await self._sessions.find_one_and_update(
            where, change, {"_id": False, "ended": True, "successor": True}, upsert=upsert, return_document=ReturnDocument.AFTER
        )


def _results(count: int, details: Mapping[str, Any]) -> list[bool | BaseException]:
    """Return for each of a bulk's updates whether it met a live session, or its error, without all that was to be written."""
    for fault in details["writeConcernErrors"]:
        raise WriteConcernError(fault["errmsg"], fault["code"]) from None
    results: list[bool | BaseException] = [True] * count
    for fault in details["writeErrors"]:
        results[fault["index"]] = False if fault["code"] == _REFUSED else WriteError(fault["errmsg"], fault["code"])
    return results


def _document(record: Record) -> dict[str, Any]:
    return {
        "created": _date(record.created),
        "expires": _date(record.expires),
        "deadline": _date(record.deadline),
        "version": Int64(record.version),
        "fields": {_escape(field): _to_bson(data) for field, data in record.fields.items()},
        **({} if record.tag is None else _tagged(record.tag)),
    }


def _tagged(tag: Tag) -> dict[str, Any]:
    return {"owner": tag.owner, "since": tag.since, "note": _to_bson(tag.note)}


def _bar(owner: str) -> str:
    """Return where it is kept that all sessions of *owner* were ended."""
    return f"owner:{owner}"


def _barring(tag: Tag, now: float) -> dict[str, Any]:
    """Return the condition that all sessions of the owner were ended after *tag* was made, less than a minute ago."""
    return {"_id": _bar(tag.owner), "before": {"$gt": tag.since}, "deadline": {"$gt": _date(now)}}


def _live(id: str, now: float) -> dict[str, Any]:
    """Return the condition that a session is there, and is sound."""
    return {"_id": id, "deadline": {"$gt": _date(now)}, "$jsonSchema": _SHAPE}


def _change(sets: Mapping[str, bytes], now: float, deadline: float | None) -> list[dict[str, Any]]:
    """Return the change of a live session; of any other document it fails, and leaves it as it is."""
    changed: dict[str, Any] = {_path(field): {"$literal": _to_bson(data)} for field, data in sets.items()}
    is_live = {"$and": [_IS_SOUND, {"$gt": ["$deadline", _date(now)]}]}
    changed["version"] = {"$cond": [is_live, {"$add": ["$version", 1]}, _REFUSAL]}
    if deadline is not None:
        changed["deadline"] = {"$min": [_date(deadline), "$expires"]}
    return [{"$set": changed}]


def _tombstone(now: float) -> dict[str, Any]:
    return {"ended": True, "deadline": _date(now + TOMBSTONE)}


def _date(time: float) -> DatetimeMS:
    # Rounded down as the clock is, so that a session is gone at its deadline, and at most a millisecond before.
    return DatetimeMS(math.floor(time * 1000))


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
