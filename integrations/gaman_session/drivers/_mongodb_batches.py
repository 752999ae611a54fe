"""Reads and updates of single documents, which share a round trip with those of concurrent calls."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from itertools import chain
from typing import Any, Final, Literal
from weakref import WeakValueDictionary

from pymongo import ReturnDocument, UpdateOne
from pymongo.errors import BulkWriteError, OperationFailure

from gaman_session._damage import Damage
from gaman_session._driver import LARGE, Outcome, Record
from gaman_session.drivers._batches import Batches
from gaman_session.drivers._mongodb_client import Collection, write
from gaman_session.drivers._mongodb_documents import REFUSED, Change, Document, Pipeline, to_record
from gaman_session.drivers._mongodb_ending import ENDING, Endings
from gaman_session.drivers._mongodb_errors import results_of
from gaman_session.drivers._time_limit import TimeLimit

_LEFT_OUT: Final[Document] = {}
"""Stands for a document that is large or absent, because a projection that distinguishes them takes the server far longer."""
MAX_IN_FLIGHT: Final = 4
"""Batches of one kind in flight; with so many, a slow one delays few calls."""
_HELD: Final = nullcontext()
"""Stands for a connection that the caller has."""
_MAX_LARGE_IDS: Final = 1000
"""Sessions that are remembered as large."""
_NEARLY_LARGE: Final = LARGE - LARGE // 8
"""Bytes of values from which a document may be large, because it has more than its values."""


class Documents:
    """The documents of *sessions*, in batches that take at most *timeout* seconds; the caller bounds what runs in its own task."""

    def __init__(self, sessions: Collection, timeout: float, damage: Damage) -> None:
        self._sessions = sessions
        self._damage = damage
        self.endings = Endings(sessions)
        limit = TimeLimit(timeout)
        self._finds = Batches(self._find_all, max_in_flight=MAX_IN_FLIGHT, limit=limit)
        self._updates: Batches[tuple[str, Pipeline], bool] = Batches(self._update_all, max_in_flight=MAX_IN_FLIGHT, limit=limit)
        self._finds_of_several = Batches(self._find_groups, max_in_flight=MAX_IN_FLIGHT, limit=limit)
        self._large: set[str] = set()
        """Sessions that were large when they were last loaded: they don't go into a batch."""
        self._locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def drain(self) -> None:
        """Wait until no batch is waiting or in flight."""
        await self._finds.drain()
        await self._finds_of_several.drain()
        await self._updates.drain()

    async def load(
        self, id: str, now: float, connection: AbstractAsyncContextManager[Any] = _HELD
    ) -> Record | Literal[Outcome.ENDED] | None:
        """Return the session, ENDED, or None. A load that no batch can answer waits for a *connection*."""
        document = _LEFT_OUT if id in self._large else await self._finds.call(id)
        if document is _LEFT_OUT:
            async with connection:
                document = (await self._find_with_ending([id], {})).get(id)
            self._large.discard(id)
        found = to_record(document, now, self._damage)
        if isinstance(found, Record) and sum(map(len, found.fields.values())) > _NEARLY_LARGE:
            if len(self._large) == _MAX_LARGE_IDS:
                self._large.clear()
            self._large.add(id)
        return self.endings.find(found, now)

    async def load_all(self, ids: Sequence[str], now: float) -> list[Record | Literal[Outcome.ENDED] | None]:
        """Return what load() does for each of *ids*, by a find that other such calls share."""
        documents = await self._finds_of_several.call(ids)
        return [self.endings.find(to_record(document, now, self._damage), now) for document in documents]

    def lock(self, id: str) -> AbstractAsyncContextManager[Any]:
        """Return a lock for writes that read a large session first: each write makes the others read it again."""
        return self._locks.setdefault(id, asyncio.Lock()) if id in self._large else nullcontext()

    async def set(self, id: str, change: Change) -> bool:
        """Make a change that deletes nothing, and return whether it found a live session that has room for it."""
        if id not in self._large and (update := change.small_update()) is not None:
            return await self._updates.call((id, update))
        update = change.sized_update()
        # A large update is sent by itself, so that other calls neither wait for it nor fail with it.
        if sum(map(len, change.sets.values())) <= LARGE:
            return await self._updates.call((id, update))
        [result] = await self._update_all([(id, update)])
        if isinstance(result, BaseException):
            raise result
        return result

    async def update(self, where: Document, pipeline: Pipeline) -> bool:
        """Make a change, and return whether it found a session that has room for it."""
        matched, [result] = await self._write_all([where["_id"]], [UpdateOne(where, pipeline)])
        if isinstance(result, BaseException):
            raise result
        return result and matched > 0

    async def update_or_end(self, where: Document, pipeline: Pipeline) -> Literal[Outcome.WRITTEN, Outcome.EMPTIED] | None:
        """Make a change that may end the session, and return its outcome, or None if it found none that has room for it."""
        try:
            left = await self.endings.learn_during(self.update_and_find(where, pipeline))
        except OperationFailure as error:
            if error.code != REFUSED:
                raise
            return None
        if left is not None and left["version"] <= self.endings.known.min_version:
            # It was ended before: the change has raised its version by one.
            return None
        return None if left is None else Outcome.EMPTIED if "ended" in left else Outcome.WRITTEN

    async def update_and_find(self, where: Document, pipeline: Pipeline, *, upsert: bool = False) -> Document | None:
        """Return the part of a tombstone that the changed document has, or None if there was no document to change."""
        projection = {"_id": False, "ended": True, "successor": True, "version": True}
        options: dict[str, Any] = {"projection": projection, "upsert": upsert, "return_document": ReturnDocument.AFTER}
        return await write(lambda: self._sessions.find_one_and_update(where, pipeline, **options))

    async def _find_all(self, ids: list[str]) -> list[Document | None]:
        is_only = len(ids) == 1
        found = await self._find_with_ending(ids, {} if is_only else {"large": None})
        return [found.get(id, None if is_only else _LEFT_OUT) for id in ids]

    async def _find_groups(self, groups: list[Sequence[str]]) -> list[list[Document | None]]:
        found = await self._find_with_ending([*{*chain(*groups)}], {})
        return [[found.get(id) for id in ids] for ids in groups]

    async def _find_with_ending(self, ids: list[str], where: Document) -> dict[str, Document]:
        """Return the documents of *ids* that fit *where*, and note the ending."""
        before = self.endings.known
        # A filter by one _id is a twentieth faster, but a second command or $unionWith costs more than this one.
        documents = await self._sessions.find({"_id": {"$in": [*ids, ENDING]}, **where}).to_list()
        found = {each["_id"]: each for each in documents}
        self.endings.note(found.pop(ENDING, None), before)
        return found

    async def _update_all(self, updates: list[tuple[str, Pipeline]]) -> list[bool | BaseException]:
        """Make the updates in one round trip; return for each whether it found a live session, or its error."""
        # An upsert of a missing document is refused too, so it inserts nothing.
        requests = [UpdateOne({"_id": id}, pipeline, upsert=True) for id, pipeline in updates]
        _, results = await self._write_all([id for id, _ in updates], requests)
        return results

    async def _write_all(self, ids: list[str], updates: list[UpdateOne]) -> tuple[int, list[bool | BaseException]]:
        """Make the updates of *ids*; return how many documents they matched, and whether each was refused, or its error."""
        requests = [*updates, self.endings.search()]
        try:
            return (await write(lambda: self._sessions.bulk_write(requests, ordered=False))).matched_count, [True] * len(updates)
        except BulkWriteError as error:
            *results, is_known = results_of(len(requests), error.details)
            matched = int(error.details["nMatched"])
        if isinstance(is_known, BaseException):
            raise is_known
        if not is_known:
            await self.endings.learn()
            dead = await self.endings.dead(ids)
            results = [False if id in dead else result for id, result in zip(ids, results, strict=True)]
        return matched, results
