"""Sessions in files: one a session, shared by all processes that see the folder, and on the disk once a call returns."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import random
import re
import stat
import sys
import tempfile
from collections.abc import Awaitable, Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from hashlib import blake2b
from itertools import groupby, islice
from typing import Annotated, Any, Final, Literal, NamedTuple, TypeAlias, TypeVar, TypeVarTuple, cast

from msgspec import DecodeError, Meta, Struct
from msgspec.msgpack import Decoder, Encoder

from gaman.errors import ConfigError, GamanError
from gaman_session._damage import Damage
from gaman_session._driver import LARGE, MAX_SKEW, TOMBSTONE, YEAR_10000, Outcome, Ownership, Record, size_of
from gaman_session._errors import SessionStoreError
from gaman_session._paths import check_access, expand, make_parent
from gaman_session.drivers._batches import Batches
from gaman_session.drivers._checks import check_timeout
from gaman_session.drivers._threads import Threads

if sys.platform != "win32":
    import fcntl

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# They wait for the disk, not for a processor.
_THREADS: Final = 16
# So many calls make a trip; with more, all of them would wait for the last one's file to be on the disk.
_TRIP: Final = 100
_LONGEST_PAUSE: Final = 0.05
_ID: Final = re.compile(r"[0-9a-f]{64}")
_FOLDER: Final = re.compile(r"[0-9a-f]{2}|due|owners")
_MARKER: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\.([0-9a-f]{64})(\.owner)?")
# In an owner's folder: when all of their sessions were ended.
_BAR: Final = ".ended"
# What open() says of a link, a folder or a socket in a file's place.
_NO_FILE: Final = (errno.ELOOP, errno.EMLINK, errno.EISDIR, errno.ENXIO)


class _Tomb(Struct):
    """What is left of a session that was ended, or renamed to *successor*."""

    deadline: float
    successor: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")] | None


class _IsLarge(Exception):
    """The session is large, so it has to be loaded by itself."""


_Kept: TypeAlias = Record | _Tomb
_Edit: TypeAlias = Callable[[dict[str, bytes]], dict[str, bytes] | None]
_encoder = Encoder()
_SESSION, _TOMB = b"\x01", b"\x02"
_DECODERS: Final[Mapping[bytes, Decoder[Any]]] = {_SESSION: Decoder(Record), _TOMB: Decoder(_Tomb)}


class _Call(NamedTuple):
    """A write, which needs the locks of its folders. The first of them tells with which others it shares a trip."""

    folders: Sequence[str]
    change: Callable[[_Trip], Any]


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
        self._files = _Files(os.path.abspath(expand(path, f"the file driver has dir={path!r}")))
        self._timeout = timeout
        self._threads = Threads(_THREADS, "gaman-session-files")
        # Writes always find a thread that no load is in.
        self._loads: Batches[str, _Kept | None] = Batches(partial(self._read, LARGE), at_once=_THREADS // 2, timeout=timeout)
        # One at a time, because decoding holds the interpreter's lock.
        self._large_loads: Batches[str, _Kept | None] = Batches(partial(self._read, math.inf), most=1, timeout=timeout)
        self._writes: dict[str, Batches[_Call, Any]] = {}

    async def open(self) -> None:
        """Make the folder, and raise ConfigError where it can't be written to, or where another user may write to it."""
        if sys.platform == "win32":
            raise ConfigError("the file driver needs the file locks of Unix; on Windows choose another driver, such as sql")
        try:
            await asyncio.to_thread(self._files.prepare)
        except OSError as cause:
            raise ConfigError(
                f"the file driver can't use dir={self._files.dir!r} ({cause.strerror}); it takes a folder that it may write to"
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
        self._files.folder(id)
        try:
            kept = await self._answer("load a session", self._loads.call(id))
        except _IsLarge:
            kept = await self._answer("load a session", self._large_loads.call(id))
        found = _look(kept, now)
        return None if found is Outcome.ABSENT else found

    async def create(self, id: str, record: Record) -> Literal[Outcome.REVOKED] | None:
        """Store a new session."""

        def change(trip: _Trip) -> Literal[Outcome.REVOKED] | None:
            if trip.get(id) is not None:
                raise SessionStoreError(self.name, "create a session under an id that is taken")
            if record.ownership is not None and not trip.own(id, record.ownership, None, record.created):
                return Outcome.REVOKED
            trip.put({id: record})
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

        def change(trip: _Trip) -> Outcome:
            old = _look(trip.get(id), now)
            if not isinstance(old, Record):
                return old
            if old.version != version:
                return Outcome.CONFLICT
            if trip.get(new_id) is not None:
                raise SessionStoreError(self.name, "rename a session to an id that is taken")
            if record.ownership is not None and not trip.own(new_id, record.ownership, old.ownership, now):
                return Outcome.REVOKED
            trip.disown(id, old.ownership, now)
            trip.put({id: _Tomb(now + TOMBSTONE, new_id), new_id: record})
            return Outcome.WRITTEN

        return await self._write("rename a session", change, id, new_id, ownership=record.ownership)

    async def destroy(self, id: str, *, now: float) -> None:
        """End the session, or the one that it was renamed to."""

        def change(trip: _Trip) -> str | None:
            kept = trip.get(ending[-1])
            if isinstance(record := _look(kept, now), Record):
                trip.disown(ending[-1], record.ownership, now)
                trip.put({ending[-1]: _Tomb(now + TOMBSTONE, None)})
            return kept.successor if isinstance(kept, _Tomb) and kept.deadline > now else None

        ending = [id]
        # Tombstones that lead in a circle are not ours, and must not lead a request around for ever.
        while (successor := await self._write("end a session", change, ending[-1])) and successor not in ending:
            ending.append(successor)

    async def purge(self, *, now: float, limit: int) -> int:
        """Remove what is over; a session whose folder is locked at that moment is left to the next purge."""
        removed, looked_at = 0, 1
        while looked_at and removed < limit:
            try:
                looked_at, gone = await self._threads.call(self._files.sweep, now, limit - removed)
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

        def change(trip: _Trip) -> Outcome:
            record = _look(trip.get(id), now)
            before = record.ownership if isinstance(record, Record) else None
            stays = before is not None and ownership is not None and ownership.owner == before.owner
            if isinstance(record, Record) and ownership is not None and not trip.own(id, ownership, before, now):
                return Outcome.REVOKED
            outcome = write(trip)
            if outcome is Outcome.WRITTEN:
                written = cast("Record", trip.get(id))
                written.ownership = ownership
                trip.put({id: written})
                if not stays:
                    trip.disown(id, before, now)
            elif isinstance(record, Record) and not stays:
                trip.disown(id, ownership, now)
            return outcome

        write = self._editing(id, partial(_replace, sets, deletes), now, deadline, max_size)
        return await self._write("change a session", change, id, ownership=ownership)

    async def owned(self, owner: str, *, now: float) -> Mapping[str, Record]:
        """Return the owner's sessions. What their folder has beside them goes, if nobody is about to write there."""
        try:
            async with asyncio.timeout(self._timeout):
                return await self._threads.call(self._files.find_owned, owner, now)
        except Exception as cause:
            raise SessionStoreError(self.name, "list the sessions of an owner") from cause

    async def end_owned(self, owner: str, *, keep: Collection[str], now: float) -> int:
        """Refuse the owner's older tags from now on, and then end the sessions that there are, a folder at a time."""

        def bar(trip: _Trip) -> list[str]:
            # Those that came before in this trip have no entry on the disk yet.
            return [
                *self._files.bar(owner, now),
                *(id for (whose, id), gone in trip.entries.items() if whose == owner and gone is None),
            ]

        def end(ids: list[str]) -> Awaitable[list[str | bool]]:
            def change(trip: _Trip) -> list[str | bool]:
                return [trip.end_owned(id, owner, now) for id in ids]

            return self._write(action, change, ids[0])

        action, ended = "end the sessions of an owner", 0
        seen = set(keep)
        ids = await self._visit_owner(action, bar, owner)
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
            return await self._threads.call(self._files.count, now)
        except Exception as cause:
            raise SessionStoreError(self.name, "count its sessions") from cause

    async def _edit(self, id: str, edit: _Edit, now: float, deadline: float | None, max_size: int) -> Outcome:
        """Change the fields of a session that is there to what *edit* makes of them, unless that is None."""
        return await self._write("change a session", self._editing(id, edit, now, deadline, max_size), id)

    def _editing(self, id: str, edit: _Edit, now: float, deadline: float | None, max_size: int) -> Callable[[_Trip], Outcome]:
        def change(trip: _Trip) -> Outcome:
            record = _look(trip.get(id), now)
            if not isinstance(record, Record):
                return record
            fields = edit(record.fields)
            if fields is None:
                return Outcome.CONFLICT
            if (size := size_of(fields)) > max_size and size > size_of(record.fields):
                return Outcome.TOO_LARGE
            record.fields = fields
            if not fields:
                trip.disown(id, record.ownership, now)
                trip.put({id: _Tomb(now + TOMBSTONE, None)})
                return Outcome.EMPTIED
            record.version += 1
            if deadline is not None:
                record.deadline = min(deadline, record.expires)
            trip.put({id: record})
            return Outcome.WRITTEN

        return change

    async def _write(self, action: str, change: Callable[[_Trip], T], *ids: str, ownership: Ownership | None = None) -> T:
        """Return what *change* returns, once what it has put is on the disk."""
        folders = [self._files.folder(id) for id in ids]
        if ownership is not None:
            # Logins of one owner at once share a trip, instead of waiting for each other.
            folders.insert(0, self._files.owner_lock(ownership.owner))
        return await self._call(action, change, folders)

    async def _visit_owner(self, action: str, change: Callable[[_Trip], T], owner: str) -> T:
        return await self._call(action, change, [self._files.owner_lock(owner)])

    async def _call(self, action: str, change: Callable[[_Trip], T], folders: Sequence[str]) -> T:
        if folders[0] not in self._writes:
            self._writes[folders[0]] = Batches(self._visit, most=_TRIP)
        result: T = await self._answer(action, self._insist(_Call(folders, change)))
        return result

    async def _insist(self, call: _Call) -> Any:
        """Make the call, as soon as nobody else is in its folders."""
        # No thread waits, so that a lock which is stuck holds up nobody else; nor can two that wait for each other.
        pause = 0.001
        async with asyncio.timeout(self._timeout):
            while True:
                with suppress(BlockingIOError):
                    return await self._writes[call.folders[0]].call(call)
                await asyncio.sleep(random.uniform(0, pause))  # noqa: S311
                pause = min(2 * pause, _LONGEST_PAUSE)

    async def _answer(self, action: str, coming: Awaitable[T]) -> T:
        try:
            return await coming
        except TimeoutError:
            cause = TimeoutError(f"another process held the lock, or the disk did not answer, for {self._timeout} seconds")
            raise SessionStoreError(self.name, action) from cause
        except (_IsLarge, GamanError):
            raise
        except Exception as cause:
            raise SessionStoreError(self.name, action) from cause

    async def _read(self, most: float, ids: list[str]) -> list[_Kept | BaseException | None]:
        if len(ids) > 1:
            # They have a clock in common.
            return await self._threads.call(self._files.read_each, ids, most)
        async with asyncio.timeout(self._timeout):
            return await self._threads.call(self._files.read_each, ids, most)

    async def _visit(self, calls: list[_Call]) -> list[Any]:
        return await self._threads.call(self._files.visit, calls)


class _Trip:
    """A visit to the store: each call sees what those before it have put, and then all is written, each file once.

    What is put is encoded at once, so that a call which fails half way has changed nothing.
    """

    def __init__(self, files: _Files) -> None:
        self._files = files
        self._contents: dict[str, bytes | None] = {}
        self.changed: dict[str, bytes] = {}
        """New contents of files, in the order in which they are to be written."""
        self.begun: list[tuple[str, float]] = []
        """Sessions and tombstones that were not there before, with their deadlines."""
        self.entries: dict[tuple[str, str], float | None] = {}
        """By owner and id, None for a session that is to be found by its owner, and for one that is not any more, since when."""

    def get(self, id: str) -> _Kept | None:
        """Return what is kept under *id*; it is the caller's own."""
        if id not in self._contents:
            self._contents[id] = self._files.read(id)
        return self._files.decode(id, self._contents[id])

    def put(self, kept: Mapping[str, _Kept]) -> None:
        """Have all of *kept* written, or none of it."""
        contents = {id: _encode(id, each) for id, each in kept.items()}
        for id, each in kept.items():
            if isinstance(each, _Tomb) or self.get(id) is None:
                self.begun.append((id, each.deadline))
        self._contents |= contents
        self.changed |= contents

    def own(self, id: str, ownership: Ownership, before: Ownership | None, now: float) -> bool:
        """Have the session found by its owner, or return False for a new tag that was made before all of theirs were ended."""
        is_new = before is None or before.since != ownership.since
        if is_new and self._files.is_barred(ownership, now):
            return False
        self.entries[ownership.owner, id] = None
        return True

    def disown(self, id: str, ownership: Ownership | None, now: float) -> None:
        """Have the session found by its owner no more."""
        if ownership is not None:
            self.entries[ownership.owner, id] = now

    def end_owned(self, id: str, owner: str, now: float) -> str | bool:
        """End a session of that owner's; return its successor where it was renamed, and else whether it was there."""
        kept = self.get(id)
        record = _look(kept, now)
        if record is Outcome.ENDED and isinstance(kept, _Tomb) and kept.successor is not None:
            return kept.successor
        if not isinstance(record, Record) or record.ownership is None or record.ownership.owner != owner:
            return False
        self.disown(id, record.ownership, now)
        self.put({id: _Tomb(now + TOMBSTONE, None)})
        return True


class _Files:
    """The store as threads see it; what goes wrong is raised as OSError, and BlockingIOError means that a lock is held."""

    def __init__(self, dir: str) -> None:
        self.dir = dir
        self._due = os.path.join(dir, "due")
        self._owners = os.path.join(dir, "owners")
        self._damage = Damage("file")

    def prepare(self) -> None:
        """Make the folders, and try what a write will need."""
        setting = f"the file driver has dir={self.dir!r}"
        make_parent(self.dir, setting)
        _make_folder(self.dir)
        check_access(self.dir, os.stat(self.dir), setting)
        for folder in (self._due, self._owners):
            _make_folder(folder)
        for folder in (self.dir, self._owners):
            _check_folders(folder, setting, self.dir)
        with tempfile.TemporaryFile(dir=self.dir) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.fsync(file.fileno())
        _sync(self.dir)

    def folder(self, id: str) -> str:
        """Return the folder that *id* lies in, or raise ValueError for what is no id, and so must not become a path."""
        if not _ID.fullmatch(id):
            raise ValueError(f"a session's id is 64 hexadecimal digits, not {id!r}")
        return f"{self.dir}/{id[:2]}"

    def path(self, id: str) -> str:
        """Return where the session lies."""
        return f"{self.folder(id)}/{id}"

    def owner_lock(self, owner: str) -> str:
        """Return the folder whose lock is held while the owner's one changes."""
        return os.path.join(self._owners, _name(owner)[:2])

    def _owner_folder(self, owner: str) -> str:
        return self._owner_folder_of(_name(owner))

    def _owner_folder_of(self, name: str) -> str:
        return os.path.join(self._owners, name[:2], name)

    def read_each(self, ids: list[str], most: float) -> list[_Kept | BaseException | None]:
        """Return what is kept under each id, or what was raised for it: _IsLarge for a file of more bytes than *most*."""
        return [_attempt(self._find, id, most) for id in ids]

    def _find(self, id: str, most: float = math.inf) -> _Kept | None:
        return self.decode(id, self.read(id, most))

    def read(self, id: str, most: float = math.inf) -> bytes | None:
        """Return what is in the session's file: nothing if it is no file, and None if there is none."""
        try:
            return _read_file(self.path(id), most)
        except FileNotFoundError:
            # Where the store itself is not there, unmounted say, nobody knows whether there is a session.
            os.stat(self.dir)
            return None
        except OSError as cause:
            if cause.errno not in _NO_FILE:
                raise
            return b""

    def decode(self, id: str, content: bytes | None) -> _Kept | None:
        """Return what *content* holds; what is not one of ours is reported, and counts as absent."""
        kept = None if content is None else _decode(id, content)
        if content is not None and kept is None:
            self._damage.report(id, "its file")
        return kept

    def visit(self, calls: list[_Call]) -> list[Any]:
        """Make the calls, in their order, and return what each returned or raised once all is on the disk.

        Where somebody else is in a folder, that is BlockingIOError for each call which needs it.
        """
        with ExitStack() as held:
            locks: dict[str, int | BlockingIOError] = {}
            trip, results = _Trip(self), list[Any]()
            for call in calls:
                for folder in call.folders:
                    if folder not in locks:
                        locks[folder] = self._lock(folder, held)
                held_up = next((lock for folder in call.folders if not isinstance(lock := locks[folder], int)), None)
                results.append(held_up or _attempt(call.change, trip))
            self._write(trip, {folder: lock for folder, lock in locks.items() if isinstance(lock, int)})
        return results

    def _write(self, trip: _Trip, locks: Mapping[str, int]) -> None:
        try:
            for id, deadline in trip.begun:
                self._mark(id, deadline)
            # A crash may leave an entry without a session, and never a session without its entry.
            for folder in {self._enter(owner, id) for (owner, id), gone in trip.entries.items() if gone is None}:
                _sync(folder)
            for (owner, _), gone in trip.entries.items():
                # Whether the owner's folder can go is for someone to see who has its lock.
                if gone is not None:
                    self._mark(f"{_name(owner)}.owner", gone + TOMBSTONE)
            for id, content in trip.changed.items():
                _write_file(_new(self.path(id)), content)
            # All that needs room is done. Each folder is synced before the next one changes, so that after a rename not even
            # a power cut leaves both ids alive.
            for folder, ids in groupby(trip.changed, self.folder):
                for path in map(self.path, ids):
                    os.replace(_new(path), path)
                os.fsync(locks[folder])
        except BaseException:
            for id in trip.changed:
                _remove(_new(self.path(id)))
            raise
        for (owner, id), gone in trip.entries.items():
            if gone is not None:
                _remove(os.path.join(self._owner_folder(owner), id))

    def _enter(self, owner: str, id: str) -> str:
        """Make the entry, and return the folder that is to be synced."""
        folder = self._owner_folder(owner)
        os.close(_open_in(folder, id, folder))
        return folder

    def is_barred(self, ownership: Ownership, now: float) -> bool:
        """Return whether *ownership* was made before all sessions of its owner were ended, less than a minute ago."""
        ended = self._barred_since(self._owner_folder(ownership.owner), now)
        return ownership.since < ended and now < ended + TOMBSTONE

    def _barred_since(self, folder: str, now: float) -> float:
        """Return when all sessions of the owner were ended, or -inf if they weren't."""
        try:
            ended = float(_read_file(os.path.join(folder, _BAR)))
        except (FileNotFoundError, ValueError):
            return -math.inf
        # A later instant was noted before the clock was set back.
        return ended if ended <= now + MAX_SKEW else -math.inf

    def bar(self, owner: str, now: float) -> list[str]:
        """Remember that all sessions of *owner* are ended *now*; return the ids that their folder has. Its lock is held."""
        folder = self._owner_folder(owner)
        path = os.path.join(folder, _BAR)
        self._mark(f"{_name(owner)}.owner", now + TOMBSTONE)
        _make_folder(folder)
        _write_file(_new(path), repr(max(now, self._barred_since(folder, now))).encode())
        os.replace(_new(path), path)
        _sync(folder)
        return _ids_in(folder)

    def find_owned(self, owner: str, now: float) -> dict[str, Record]:
        """Return the sessions of *owner*, and tidy their folder."""
        folder = self._owner_folder(owner)
        ids = _ids_in(folder)
        found = {id: record for id in ids if (record := self._theirs(id, owner, now)) is not None}
        if len(found) < len(ids):
            with suppress(BlockingIOError), self._locked([self.owner_lock(owner)]):
                # What is written meanwhile has its entry already, and is looked for once more.
                for id in ids:
                    if id not in found and self._theirs(id, owner, now) is None:
                        _remove(os.path.join(folder, id))
                self._tidy(folder, now)
        return found

    def _theirs(self, id: str, owner: str, now: float) -> Record | None:
        record = _look(self._find(id), now)
        return record if isinstance(record, Record) and record.ownership is not None and record.ownership.owner == owner else None

    def _tidy(self, folder: str, now: float) -> None:
        """Remove an owner's folder if nothing is left in it that counts. Its lock is held."""
        if now >= self._barred_since(folder, now) + TOMBSTONE:
            for name in (_BAR, _new(_BAR)):
                _remove(os.path.join(folder, name))
        with suppress(OSError):
            os.rmdir(folder)

    def count(self, now: float) -> int:
        """Return how many sessions there are."""
        names = 0
        for folder in os.scandir(self.dir):
            if len(folder.name) == 2:
                names += len(_ids_in(folder.path))
        # What is over has come due, and a tombstone is about to; it may be one by a clock that is a little ahead.
        due = {id for _, id, is_owner in self._find_due(now + 2 * TOMBSTONE) if not is_owner}
        for id in due:
            content = self.read(id)
            if content is not None and not isinstance(_look(_decode(id, content), now), Record):
                names -= 1
        return names

    def sweep(self, now: float, most: int) -> tuple[int, int]:
        """Look at *most* of what has come due; return at how many there were to look, and how many of them were removed."""
        looked_at = removed = 0
        for marker, id, is_owner in islice(self._find_due(now), most):
            folder = os.path.dirname(self._owner_folder_of(id)) if is_owner else self.folder(id)
            with suppress(BlockingIOError), self._locked([folder]):
                if is_owner:
                    self._tidy(self._owner_folder_of(id), now)
                else:
                    removed += self._settle(id, now)
                looked_at += _remove(marker)
        if not looked_at:
            self._remove_past(now - TOMBSTONE)
        return looked_at, removed

    def _remove_past(self, before: float) -> None:
        """Remove the folders of markers in which nobody files anything any more, be it by a clock that is a little behind."""
        minutes = [minute for hour in _until(before // 3600, self._due) for minute in _until(before // 60 - 1, hour)]
        for folder in (*minutes, *_until(before // 3600 - 1, self._due)):
            with suppress(OSError):
                os.rmdir(folder)

    def _settle(self, id: str, now: float) -> bool:
        """Remove the session if it is over, and else mark it at the deadline that it has now; return whether it was removed."""
        _remove(_new(self.path(id)))
        kept = self._find(id)
        if isinstance(kept, Record) and kept.ownership is not None and kept.deadline <= now:
            self._disown(id, kept.ownership.owner, now)
        if kept is None or kept.deadline <= now:
            return _remove(self.path(id))
        self._mark(id, kept.deadline)
        return False

    def _disown(self, id: str, owner: str, now: float) -> None:
        with self._locked([self.owner_lock(owner)]):
            folder = self._owner_folder(owner)
            _remove(os.path.join(folder, id))
            self._tidy(folder, now)

    def _find_due(self, now: float) -> Iterator[tuple[str, str, bool]]:
        """Yield the markers that have come due, minute by minute, each with its id, and whether that is an owner's."""
        _make_folder(self._due)
        for hour in _until(now // 3600, self._due):
            for minute in _until(now // 60, hour):
                with suppress(FileNotFoundError, NotADirectoryError), os.scandir(minute) as markers:
                    for marker in markers:
                        match = _MARKER.fullmatch(marker.name)
                        if match and float(match[1]) <= now:
                            yield marker.path, match[2], match[3] is not None

    def _mark(self, id: str, deadline: float) -> None:
        """Have sweep() look at the session when *deadline* has come."""
        # By minutes, so that a sweep with nothing to do reads few markers, and these by hours, so that it reads few folders.
        hour = os.path.join(self._due, str(int(deadline // 3600)))
        minute = os.path.join(hour, str(int(deadline // 60)))
        # The marker itself is not synced: if a power cut takes it, a file stays that is never served.
        os.close(_open_in(minute, f"{deadline}.{id}", self._due, hour, minute))

    @contextmanager
    def _locked(self, folders: Collection[str]) -> Generator[None]:
        with ExitStack() as held:
            for folder in folders:
                if isinstance(lock := self._lock(folder, held), BlockingIOError):
                    raise lock
            yield

    def _lock(self, folder: str, held: ExitStack) -> int | BlockingIOError:
        """Lock the folder for as long as *held* lasts, and return its descriptor, or the error where somebody else has the lock."""
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            _make_folder(folder)
            descriptor = os.open(folder, os.O_RDONLY)
        held.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            return error
        # Closing it is not enough where a process was forked meanwhile, and holds it open.
        held.callback(fcntl.flock, descriptor, fcntl.LOCK_UN)
        return descriptor


def _check_folders(folder: str, setting: str, dir: str) -> None:
    """Raise ConfigError if another user owns or may write to one of the driver's folders in *folder*.

    They may have been made when *dir* was open to others, and their own content has the rights that they have.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if _FOLDER.fullmatch(entry.name):
                if not entry.is_dir(follow_symlinks=False):
                    raise ConfigError(f"{setting}, but {entry.path!r} isn't a folder; remove it")
                check_access(entry.path, entry.stat(follow_symlinks=False), setting, within=dir)


def _name(owner: str) -> str:
    """Return what the folder of an owner is named by."""
    return blake2b(owner.encode(), digest_size=32).hexdigest()


def _ids_in(folder: str) -> list[str]:
    try:
        return [name for name in os.listdir(folder) if _ID.fullmatch(name)]
    except FileNotFoundError:
        return []


def _replace(sets: Mapping[str, bytes], deletes: Collection[str], fields: dict[str, bytes]) -> dict[str, bytes]:
    fields = {**fields, **sets}
    for field in deletes:
        fields.pop(field, None)
    return fields


def _look(kept: _Kept | None, now: float) -> Record | Literal[Outcome.ENDED, Outcome.ABSENT]:
    if kept is None or kept.deadline <= now:
        return Outcome.ABSENT
    return Outcome.ENDED if isinstance(kept, _Tomb) else kept


def _attempt(function: Callable[[*Ts], T], *arguments: *Ts) -> T | BaseException:
    """Return what *function* returns or raises, so that one call of many fails alone."""
    try:
        return function(*arguments)
    except Exception as error:
        return error


def _encode(id: str, kept: _Kept) -> bytes:
    data = (_TOMB if isinstance(kept, _Tomb) else _SESSION) + _encoder.encode(kept)
    return _checksum(id, data) + data


def _decode(id: str, content: bytes) -> _Kept | None:
    """Return what _encode() was given, or None."""
    checksum, kind, data = content[:16], content[16:17], content[17:]
    if kind not in _DECODERS or checksum != _checksum(id, kind + data):
        return None
    # A checksum finds accidents; whoever may write here can make one.
    try:
        kept: _Kept = _DECODERS[kind].decode(data)
    except (DecodeError, UnicodeDecodeError, RecursionError):
        return None
    numbers = [kept.created, kept.expires, kept.deadline, kept.version] if isinstance(kept, Record) else [kept.deadline]
    return kept if all(0 <= number < YEAR_10000 for number in numbers) else None


def _checksum(id: str, data: bytes) -> bytes:
    """Return what tells *data* from any other, and from the same in another session's place."""
    return blake2b(data, digest_size=16, key=id.encode("ascii")).digest()


def _new(path: str) -> str:
    """Return where a file's next content is written; what a kill leaves there goes with the next write, or with the session."""
    return f"{path}.new"


# Files are read and written by system calls, each of which gives the interpreter away and has to get it back: open() makes more.
def _read_file(path: str, most: float = math.inf) -> bytes:
    """Return what is in a file, and nothing if it isn't a file; raise _IsLarge for more bytes than *most*."""
    # What lies there may be a link to somewhere else, or a pipe that nobody writes to.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return b""
        if status.st_size > most:
            raise _IsLarge
        return os.read(descriptor, status.st_size)
    finally:
        os.close(descriptor)


def _write_file(path: str, content: bytes) -> None:
    try:
        descriptor = _open_to_write(path, os.O_EXCL)
    except FileExistsError:
        os.unlink(path)
        descriptor = _open_to_write(path, os.O_EXCL)
    try:
        # A disk that is nearly full takes a part, and then says so.
        while content:
            content = content[os.write(descriptor, content) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _until(period: float, folder: str) -> list[str]:
    """Return the folders in *folder* that are numbered up to *period*, in their order."""
    try:
        numbers = [int(name) for name in os.listdir(folder) if name.isdecimal()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [os.path.join(folder, str(number)) for number in sorted(numbers) if number <= period]


def _open_in(folder: str, name: str, *folders: str) -> int:
    """Open a file, and make it, and *folders*, where they are missing."""
    path = os.path.join(folder, name)
    try:
        return _open_to_write(path)
    except FileNotFoundError:
        for each in folders:
            _make_folder(each)
        return _open_to_write(path)


def _open_to_write(path: str, flags: int = 0) -> int:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | flags, 0o600)
    # The umask may have taken the owner's own rights.
    os.fchmod(descriptor, 0o600)
    return descriptor


def _make_folder(path: str) -> None:
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
        os.chmod(path, 0o700)
        _sync(os.path.dirname(path))


def _remove(path: str) -> bool:
    """Remove the file; return False where there is none."""
    try:
        os.unlink(path)
    except (FileNotFoundError, IsADirectoryError):
        return False
    return True


def _sync(folder: str) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
