"""The end of all sessions of an owner, and how a concurrent login, set_owner() or rename() learns of it.

It is remembered for a minute in a document of its own, the owner's revocation: `{_id: "owner:...", ended: true, deadline, before,
kept: [{id, since}]}`. Ownerships made before `before` are revoked.

A rename in flight may insert its session too late for the revocation to find it. So the rename looks for a revocation after it has
inserted the session, and ends the session itself unless the revocation kept the one that it was renamed from. end_owned() therefore
needs no search for renames.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from pymongo import UpdateOne
from pymongo.errors import BulkWriteError, DuplicateKeyError

from gaman_session._driver import MAX_SKEW, TOMBSTONE, Ownership, Record
from gaman_session.drivers._mongodb_client import Collection, write
from gaman_session.drivers._mongodb_documents import REFUSED, Document, date, owned_by, to_document, tombstone
from gaman_session.drivers._mongodb_ending import Endings
from gaman_session.drivers._mongodb_errors import unconfirmed_error

_DUPLICATE_KEY: Final = 11000


class CallTime:
    """The time of a call: its *now*, and what the time is after some waiting."""

    def __init__(self, now: float) -> None:
        self.now = now
        self._began = time.monotonic()

    def current(self) -> float:
        """Return *now*, plus the seconds that the call has taken since."""
        return self.now + (time.monotonic() - self._began)


class Revocations:
    """The revocations of the owners of *sessions*, and the writes that they affect."""

    def __init__(self, sessions: Collection, endings: Endings) -> None:
        self._sessions = sessions
        self._endings = endings

    async def end_owned(self, owner: str, keep: list[str], now: float) -> int:
        """Revoke the owner's ownerships, and then end the owner's sessions except those in *keep*; return how many were ended."""
        await self._endings.learn_during(self._revoke(owner, keep, now))
        ending = {**owned_by(owner, now), "_id": {"$nin": keep}, **self._endings.live()}
        return (await self._sessions.update_many(ending, [{"$replaceWith": tombstone(now)}])).modified_count

    async def is_revoked(self, ownership: Ownership, call: CallTime) -> bool:
        """Return whether the owner's sessions were ended after *ownership* was made."""
        found = await self._sessions.find_one(_revoking(ownership, call.now), {"_id": False, "before": True})
        # A time that is further ahead was stored before the clock was set back.
        return found is not None and bool(found["before"] <= call.current() + MAX_SKEW)

    async def insert(
        self, id: str, record: Record, call: CallTime, is_live: Callable[[], bool], *, old_id: str | None = None
    ) -> bool:
        """Insert a session, and return whether it isn't revoked; *old_id* is the one that it had with the same ownership.

        The search for a revocation follows the insertion in the same round trip. A revocation that it misses finds the session. The
        same holds for the end of all sessions, after which *is_live* says whether this one has begun later.
        """
        ownership = record.ownership
        # Neither update changes a document that is there. After an insertion, only a revocation can be matched.
        # Without an await between this and begun(), so that both see the same ending.
        if not is_live():
            return False
        document = self._endings.begun(to_document(record))
        insert = UpdateOne({"_id": id}, {"$setOnInsert": document}, upsert=True)
        requests = [insert, self._endings.search()]
        if ownership is not None:
            requests.insert(1, UpdateOne(_revoking(ownership, call.now), {"$min": {"before": math.inf}}))
        result: Mapping[str, Any]
        is_later = False
        try:
            result = (await write(lambda: self._sessions.bulk_write(requests))).bulk_api_result
        except BulkWriteError as error:
            result = error.details
            is_later = [(each["index"], each["code"]) for each in result["writeErrors"]] == [(len(requests) - 1, REFUSED)]
            if result["writeErrors"] and not is_later:
                raise
        unconfirmed = unconfirmed_error(result)
        if not any(upserted["index"] == 0 for upserted in result["upserted"]):
            raise unconfirmed or DuplicateKeyError("the id is taken", _DUPLICATE_KEY)
        if is_later and not await self._endings.settle(id, is_live):
            return False
        if not result["nMatched"] or ownership is None or not await self.is_revoked(ownership, call):
            if unconfirmed is not None:
                raise unconfirmed
            return True
        if old_id is not None and await self._keep(ownership.owner, old_id, id):
            return True
        await write(lambda: self._sessions.replace_one({"_id": id}, tombstone(call.now)))
        return False

    async def _revoke(self, owner: str, keep: list[str], now: float) -> None:
        """Store that ownerships made before *now* are revoked, and which sessions are kept."""
        since: Document = {}
        if keep:
            kept_ones = self._sessions.find({"_id": {"$in": keep}, "owner": owner, "ended": None}, {"since": True})
            since = {document["_id"]: document.get("since") async for document in kept_ones}
        kept = {"$literal": [{"id": id, "since": since.get(id, -math.inf)} for id in keep]}
        # A time that is further ahead was stored before the clock was set back.
        stands = {"$and": [{"$gt": ["$deadline", date(now)]}, {"$lte": ["$before", now + MAX_SKEW]}]}
        # A session that an earlier revocation ended may be in flight under another id, so a later one doesn't keep it.
        outlived = {"$or": [{"$gte": ["$$this.since", "$before"]}, {"$in": ["$$this.id", "$kept.id"]}]}
        deadline = date(now + TOMBSTONE)
        revocation = {
            "ended": True,
            "before": {"$cond": [stands, {"$max": ["$before", now]}, now]},
            "deadline": {"$cond": [stands, {"$max": ["$deadline", deadline]}, deadline]},
            "kept": {"$cond": [stands, {"$filter": {"input": kept, "cond": outlived}}, kept]},
        }
        where = {"_id": _revocation_id(owner)}
        await write(lambda: self._sessions.update_one(where, [{"$set": revocation}], upsert=True))

    async def _keep(self, owner: str, id: str, new_id: str) -> bool:
        """Return whether the revocation kept the session, and have it keep *new_id* instead."""
        kept = {"_id": _revocation_id(owner), "kept.id": id}
        return (await write(lambda: self._sessions.update_one(kept, {"$set": {"kept.$.id": new_id}}))).matched_count > 0


def _revocation_id(owner: str) -> str:
    return f"owner:{owner}"


def _revoking(ownership: Ownership, now: float) -> Document:
    """Return the filter that finds the owner's revocation if it revokes *ownership*."""
    return {
        "_id": _revocation_id(ownership.owner),
        "before": {"$type": "double", "$gt": ownership.since},
        "deadline": {"$gt": date(now)},
    }
