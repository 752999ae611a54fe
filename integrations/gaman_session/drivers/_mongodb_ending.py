"""The end of all sessions in MongoDB: a document that each read gets with its sessions, and that each write looks for.

It is `{_id: "ending", min_version, at}`, see Ending in `_rules.py`. A process knows the last one that it has seen. A write relies
on that, and looks in the same round trip for a later one; only if there is one, what it has written is examined.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Coroutine
from typing import Any, Final, Literal, TypeVar

from bson import Int64
from pymongo import ReturnDocument, UpdateOne

from gaman_session._driver import MAX_FLIGHT, MAX_SKEW, Outcome, Ownership, Record
from gaman_session._rules import MAX_WRITES, NEVER, Ending, began_before, find, is_outdated
from gaman_session.drivers._mongodb_client import Collection as Sessions
from gaman_session.drivers._mongodb_client import write
from gaman_session.drivers._mongodb_documents import REFUSAL, Document, tombstone

T = TypeVar("T")

ENDING: Final = "ending"
"""The _id of the document."""


class Endings:
    """The last end_everyone() of *sessions* that this process has seen, as `known`."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self.known = NEVER

    def note(self, document: Document | None, before: Ending) -> None:
        """Note the ending in *document*, if it is a later one. None: a read found none; *before* was known when it was sent."""
        if document is None and self.known is before:
            # If one was known, the collection was emptied since, because an ending is never removed.
            self.known = NEVER
        min_version, at = (document or {}).get("min_version"), (document or {}).get("at")
        if isinstance(min_version, Int64) and isinstance(at, float) and min_version > self.known.min_version:
            self.known = Ending(int(min_version), at)

    async def learn(self) -> Ending:
        """Return the last ending, in one round trip."""
        before = self.known
        self.note(await self._sessions.find_one({"_id": ENDING}), before)
        return self.known

    async def learn_during(self, call: Coroutine[Any, Any, T]) -> T:
        """Return the result of *call*, and learn the last ending at the same time."""
        learning = asyncio.create_task(self.learn())
        # If both fail, the error of the call is raised, and asyncio would report the other as one that nothing has retrieved.
        learning.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            result = await call
        except asyncio.CancelledError:
            # After an error it ends by itself: pymongo leaves the socket to the garbage collector if it is cancelled in connecting.
            learning.cancel()
            raise
        await learning
        return result

    async def end_everyone(self, now: float) -> None:
        """Store a later ending."""
        # A time that is further ahead was stored before the clock was set back.
        stands = {"$and": [{"$gt": ["$at", now]}, {"$lte": ["$at", now + MAX_SKEW]}]}
        ending = {
            "min_version": {"$add": [{"$ifNull": ["$min_version", Int64(0)]}, Int64(MAX_WRITES)]},
            "at": {"$cond": [stands, "$at", now]},
        }
        options: dict[str, Any] = {"upsert": True, "return_document": ReturnDocument.AFTER}
        stored = await write(lambda: self._sessions.find_one_and_update({"_id": ENDING}, [{"$set": ending}], **options))
        self.note(stored, self.known)

    def search(self) -> UpdateOne:
        """Return the last part of a bulk write, which is refused if there is a later ending than the one known."""
        return UpdateOne({"_id": ENDING, "min_version": {"$gt": Int64(self.known.min_version)}}, [{"$set": {"at": REFUSAL}}])

    def find(self, found: Record | Literal[Outcome.ENDED] | None, now: float) -> Record | Literal[Outcome.ENDED] | None:
        """Return what a load has *found*, unless the session was ended."""
        if not isinstance(found, Record) or found.version >= self.known.min_version:
            return found
        outcome = find(found, now, self.known)
        return outcome if outcome is Outcome.ENDED else None

    def live(self) -> Document:
        """Return the part of a filter that leaves out the sessions which the ending ended."""
        return {"version": {"$gte": Int64(self.known.min_version)}} if self.known.min_version else {}

    def is_late(self, record: Record) -> bool:
        """Return whether a new session began, or its ownership was made, before the ending."""
        return began_before(record.created, self.known, MAX_FLIGHT) or (
            record.ownership is not None and self.is_outdated(record.ownership, record.created)
        )

    def is_outdated(self, ownership: Ownership, now: float) -> bool:
        """Return whether an ownership was made before the ending."""
        return is_outdated(ownership, self.known, now, MAX_FLIGHT)

    def begun(self, document: Document) -> Document:
        """Return the document of a session that begins now."""
        return {**document, "version": Int64(document["version"] + self.known.min_version)}

    async def dead(self, ids: Collection[str]) -> set[str]:
        """Return those of *ids* that are sessions which the ending ended."""
        outlived = {"_id": {"$in": list(ids)}, "version": {"$lt": Int64(self.known.min_version)}}
        return {document["_id"] async for document in self._sessions.find(outlived, {"_id": True})}

    async def settle(self, id: str, is_live: Callable[[], bool]) -> bool:
        """Learn the ending after the session *id* was inserted before it; end that session unless it *is_live*, and return that."""
        await self.learn()
        if not is_live():
            await write(lambda: self._sessions.replace_one({"_id": id}, tombstone(self.known.at)))
            return False
        raised = {"$max": {"version": Int64(self.known.min_version)}}
        await write(lambda: self._sessions.update_one({"_id": id, "version": {"$exists": True}}, raised))
        return True
