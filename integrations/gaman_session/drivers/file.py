"""Sessions in files: one a session, shared by all processes that see the folder, and on the disk once a call returns."""

from __future__ import annotations

import asyncio
import math
import os
import random
import sys
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import groupby
from typing import Any, Final, Literal, TypeAlias, TypeVar, cast

from gaman.errors import ConfigError, GamanError
from gaman_session._driver import LARGE, TOMBSTONE, Outcome, Ownership, Record, size_of
from gaman_session._errors import SessionStoreError
from gaman_session._paths import expand
from gaman_session.drivers._batches import Batches
from gaman_session.drivers._checks import check_timeout
from gaman_session.drivers._disk import FileTooLarge
from gaman_session.drivers._encoding import Stored, Tombstone
from gaman_session.drivers._folder import Call, Folder, Transaction, look
from gaman_session.drivers._threads import Threads

T = TypeVar("T")

# They wait for the disk, not for a processor.
_THREADS: Final = 16
_MAX_CALLS: Final = 100
"""Calls in a transaction. With more, all of them would wait until the last one's file is on the disk."""
_MAX_PAUSE: Final = 0.05
_Edit: TypeAlias = Callable[[dict[str, bytes]], dict[str, bytes] | None]


class FileDriver:
    """Keeps each session in a file under *dir* that nobody else may read, and answers within *timeout* seconds.

    A session is `dir/<its id's first two digits>/<its id>`. For each there is an empty file in `dir/due`, named by the deadline it
    had when it began, so that purge() finds what is over without looking at what is not. Where it belongs to somebody, there is one
    more, with its id for a name, in `dir/owners/<two digits>/<a hash of the owner>`; it is there before the session is.
    """

    name = "file"
    shared = True

    def __init__(self, *, dir: str | os.PathLike[str] = "./sessions", timeout: float = 5) -> None:
        path = os.fspath(dir) if isinstance(dir, (str, os.PathLike)) else None
        if not isinstance(path, str) or not path or "\0" in path:
            raise ConfigError(f"the file driver has dir={dir!r}; it takes the path of a folder")
        check_timeout("file", timeout)
        self._folder = Folder(os.path.abspath(expand(path, f"the file driver has dir={path!r}")))
        self._timeout = timeout
        self._threads = Threads(_THREADS, "gaman-session-files")
        # Writes always find a thread that no load is in.
        self._loads: Batches[str, Stored | None] = Batches(partial(self._read, LARGE), at_once=_THREADS // 2, timeout=timeout)
        # One at a time, because decoding holds the interpreter's lock.
        self._large_loads: Batches[str, Stored | None] = Batches(partial(self._read, math.inf), most=1, timeout=timeout)
        self._writes: dict[str, Batches[Call, Any]] = {}

    async def open(self) -> None:
        """Make the folder, and raise ConfigError where it can't be written to, or where another user may write to it."""
        if sys.platform == "win32":
            raise ConfigError("the file driver needs the file locks of Unix; on Windows choose another driver, such as sql")
        try:
            await asyncio.to_thread(self._folder.prepare)
        except OSError as cause:
            raise ConfigError(
                f"the file driver can't use dir={self._folder.dir!r} ({cause.strerror}); it takes a folder that it may write to"
            ) from cause

    async def close(self) -> None:
        """Finish what is under way, and let the threads go."""
        await self._loads.drain()
        await self._large_loads.drain()
        for batches in [*self._writes.values()]:
            await batches.drain()
        await self._threads.close()

    async def load(self, id: str, *, now: float) -> Record | Literal[Outcome.ENDED] | None:
        """Return the session as it was last written, ENDED, or None; no lock is waited for."""
        self._folder.folder_of(id)
        try:
            kept = await self._answer("load a session", self._loads.call(id))
        except FileTooLarge:
            kept = await self._answer("load a session", self._large_loads.call(id))
        found = look(kept, now)
        return found if isinstance(found, Record) or found is Outcome.ENDED else None

    async def create(self, id: str, record: Record) -> Literal[Outcome.REVOKED] | None:
        """Store a new session."""

        def change(transaction: Transaction) -> Literal[Outcome.REVOKED] | None:
            if transaction.get(id) is not None:
                raise SessionStoreError(self.name, "create a session under an id that is taken")
            if record.ownership is not None and not transaction.own(id, record.ownership, None, record.created):
                return Outcome.REVOKED
            transaction.put({id: record})
            return None

        return await self._write("create a session", change, id, ownership=record.ownership)

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
        return await self._edit(id, partial(_replace, sets, deletes), now, deadline, max_size)

    async def swap(
        self, id: str, field: str, old: bytes | None, new: bytes, *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        """Set one field if it still is *old*."""

        def edit(fields: dict[str, bytes]) -> dict[str, bytes] | None:
            return {**fields, field: new} if fields.get(field) == old else None

        return await self._edit(id, edit, now, deadline, max_size)

    async def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
        """Replace the session by *record* under *new_id*, if nobody has written to it since *version*."""

        def change(transaction: Transaction) -> Outcome:
            old = look(transaction.get(id), now)
            if not isinstance(old, Record):
                return old
            if old.version != version:
                return Outcome.CONFLICT
            if transaction.get(new_id) is not None:
                raise SessionStoreError(self.name, "rename a session to an id that is taken")
            if record.ownership is not None and not transaction.own(new_id, record.ownership, old.ownership, now):
                return Outcome.REVOKED
            transaction.disown(id, old.ownership, now)
            transaction.put({id: Tombstone(now + TOMBSTONE, new_id), new_id: record})
            return Outcome.WRITTEN

        return await self._write("rename a session", change, id, new_id, ownership=record.ownership)

    async def destroy(self, id: str, *, now: float) -> None:
        """End the session, or the one that it was renamed to."""

        def change(transaction: Transaction) -> str | None:
            kept = transaction.get(ending[-1])
            if isinstance(record := look(kept, now), Record):
                transaction.disown(ending[-1], record.ownership, now)
                transaction.put({ending[-1]: Tombstone(now + TOMBSTONE, None)})
            return kept.successor if isinstance(kept, Tombstone) and kept.deadline > now else None

        ending = [id]
        # Tombstones that lead in a circle are not ours, and must not lead a request around for ever.
        while (successor := await self._write("end a session", change, ending[-1])) and successor not in ending:
            ending.append(successor)

    async def purge(self, *, now: float, limit: int) -> int:
        """Remove what is over; a session whose folder is locked at that moment is left to the next purge."""
        removed, looked_at = 0, 1
        while looked_at and removed < limit:
            try:
                looked_at, gone = await self._threads.call(self._folder.purge, now, limit - removed)
            except Exception as cause:
                raise SessionStoreError(self.name, "remove expired sessions") from cause
            removed += gone
        return removed

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
        """Do what apply() does, and give the session to the owner of *ownership*, or to nobody."""

        def change(transaction: Transaction) -> Outcome:
            record = look(transaction.get(id), now)
            before = record.ownership if isinstance(record, Record) else None
            stays = before is not None and ownership is not None and ownership.owner == before.owner
            if isinstance(record, Record) and ownership is not None and not transaction.own(id, ownership, before, now):
                return Outcome.REVOKED
            outcome = write(transaction)
            if outcome is Outcome.WRITTEN:
                written = cast("Record", transaction.get(id))
                written.ownership = ownership
                transaction.put({id: written})
                if not stays:
                    transaction.disown(id, before, now)
            elif isinstance(record, Record) and not stays:
                transaction.disown(id, ownership, now)
            return outcome

        write = self._editing(id, partial(_replace, sets, deletes), now, deadline, max_size)
        return await self._write("change a session", change, id, ownership=ownership)

    async def owned(self, owner: str, *, now: float) -> Mapping[str, Record]:
        """Return the owner's sessions. What their folder has beside them goes, if nobody is about to write there."""
        try:
            async with asyncio.timeout(self._timeout):
                return await self._threads.call(self._folder.owned, owner, now)
        except Exception as cause:
            raise SessionStoreError(self.name, "list the sessions of an owner") from cause

    async def end_owned(self, owner: str, *, keep: Collection[str], now: float) -> int:
        """Refuse the owner's older tags from now on, and then end the sessions that there are, a folder at a time."""

        def end(ids: list[str]) -> Awaitable[list[str | bool]]:
            def change(transaction: Transaction) -> list[str | bool]:
                return [transaction.end_owned(id, owner, now) for id in ids]

            return self._write(action, change, ids[0])

        action, ended = "end the sessions of an owner", 0
        seen = set(keep)
        ids = await self._visit_owner(action, lambda transaction: transaction.revoke(owner, now), owner)
        while ids := [id for id in ids if id not in seen]:
            seen.update(ids)
            folders = [list(group) for _, group in groupby(sorted(ids), lambda id: id[:2])]
            results = [result for group in await asyncio.gather(*map(end, folders)) for result in group]
            ended += sum(result is True for result in results)
            # What was renamed meanwhile ends under its new id.
            ids = [result for result in results if isinstance(result, str)]
        return ended

    async def count(self, *, now: float) -> int:
        """Return how many sessions there are, by their names and by a look into those that have come due."""
        try:
            return await self._threads.call(self._folder.count, now)
        except Exception as cause:
            raise SessionStoreError(self.name, "count its sessions") from cause

    async def _edit(self, id: str, edit: _Edit, now: float, deadline: float | None, max_size: int) -> Outcome:
        """Change the fields of a session that is there to what *edit* makes of them, unless that is None."""
        return await self._write("change a session", self._editing(id, edit, now, deadline, max_size), id)

    def _editing(self, id: str, edit: _Edit, now: float, deadline: float | None, max_size: int) -> Callable[[Transaction], Outcome]:
        def change(transaction: Transaction) -> Outcome:
            record = look(transaction.get(id), now)
            if not isinstance(record, Record):
                return record
            fields = edit(record.fields)
            if fields is None:
                return Outcome.CONFLICT
            if (size := size_of(fields)) > max_size and size > size_of(record.fields):
                return Outcome.TOO_LARGE
            record.fields = fields
            if not fields:
                transaction.disown(id, record.ownership, now)
                transaction.put({id: Tombstone(now + TOMBSTONE, None)})
                return Outcome.EMPTIED
            record.version += 1
            if deadline is not None:
                record.deadline = min(deadline, record.expires)
            transaction.put({id: record})
            return Outcome.WRITTEN

        return change

    async def _write(self, action: str, change: Callable[[Transaction], T], *ids: str, ownership: Ownership | None = None) -> T:
        """Return what *change* returns, once what it has put is on the disk."""
        folders = [self._folder.folder_of(id) for id in ids]
        if ownership is not None:
            # Logins of one owner at once share a transaction, instead of waiting for each other.
            folders.insert(0, self._folder.owners.lock_of(ownership.owner))
        return await self._call(action, change, folders)

    async def _visit_owner(self, action: str, change: Callable[[Transaction], T], owner: str) -> T:
        return await self._call(action, change, [self._folder.owners.lock_of(owner)])

    async def _call(self, action: str, change: Callable[[Transaction], T], folders: Sequence[str]) -> T:
        if folders[0] not in self._writes:
            self._writes[folders[0]] = Batches(self._visit, most=_MAX_CALLS)
        result: T = await self._answer(action, self._insist(Call(folders, change)))
        return result

    async def _insist(self, call: Call) -> Any:
        """Make the call, as soon as nobody else is in its folders."""
        # No thread waits, so that a lock which is stuck holds up nobody else; nor can two that wait for each other.
        pause = 0.001
        async with asyncio.timeout(self._timeout):
            while True:
                with suppress(BlockingIOError):
                    return await self._writes[call.folders[0]].call(call)
                await asyncio.sleep(random.uniform(0, pause))  # noqa: S311
                pause = min(2 * pause, _MAX_PAUSE)

    async def _answer(self, action: str, coming: Awaitable[T]) -> T:
        try:
            return await coming
        except TimeoutError:
            cause = TimeoutError(f"another process held the lock, or the disk did not answer, for {self._timeout} seconds")
            raise SessionStoreError(self.name, action) from cause
        except (FileTooLarge, GamanError):
            raise
        except Exception as cause:
            raise SessionStoreError(self.name, action) from cause

    async def _read(self, most: float, ids: list[str]) -> list[Stored | BaseException | None]:
        if len(ids) > 1:
            # They have a clock in common.
            return await self._threads.call(self._folder.load_each, ids, most)
        async with asyncio.timeout(self._timeout):
            return await self._threads.call(self._folder.load_each, ids, most)

    async def _visit(self, calls: list[Call]) -> list[Any]:
        return await self._threads.call(self._folder.run, calls)


def _replace(sets: Mapping[str, bytes], deletes: Collection[str], fields: dict[str, bytes]) -> dict[str, bytes]:
    fields = {**fields, **sets}
    for field in deletes:
        fields.pop(field, None)
    return fields
