"""The folder of the file driver as its threads see it: paths, locks, and transactions that write each file once."""

from __future__ import annotations

import math
import os
import re
import sys
import tempfile
from collections.abc import Callable, Collection, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from itertools import groupby, islice
from typing import Any, Final, NamedTuple, TypeVar, TypeVarTuple

from gaman.errors import ConfigError
from gaman_session import _rules
from gaman_session._damage import Damage
from gaman_session._driver import TOMBSTONE, Ownership, Record
from gaman_session._paths import check_access, make_parent
from gaman_session._rules import NEVER, Ending, Store, Stored, Tombstone, find, has_expired, next_ending
from gaman_session.drivers._disk import NOT_A_FILE, make_folder, read_file, remove, sync, temporary, write_file
from gaman_session.drivers._due import ExpiryMarkers
from gaman_session.drivers._encoding import decode, decode_ending, encode, encode_ending
from gaman_session.drivers._owner_folders import ID, OwnerFolders, ids_in, owner_hash

if sys.platform != "win32":
    import fcntl

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

# Windows can't.
_CAN_TEST_EFFECTIVE_IDS: Final = os.access in os.supports_effective_ids
_FOLDER: Final = re.compile(r"[0-9a-f]{2}|due|owners")


class Call(NamedTuple):
    """A write, and the folders whose locks it needs. Calls with the same first folder share transactions."""

    folders: Sequence[str]
    change: Callable[[Transaction], Any]


class Folder:
    """The store. Its failures are raised as OSError; BlockingIOError means that another process holds a lock.

    A session is `<its id's first two digits>/<its id>`. Each session has an expiry marker in `due`, see ExpiryMarkers; if it has an
    owner, it has an entry in `owners` as well, see OwnerFolders. Both are written before the session.
    The file `ending` has the last end_everyone(), see Ending.
    """

    def __init__(self, dir: str) -> None:
        self.dir = dir
        self.owners = OwnerFolders(os.path.join(dir, "owners"))
        self._due = ExpiryMarkers(os.path.join(dir, "due"))
        self._ending = os.path.join(dir, "ending")
        self._damage = Damage("file")

    def prepare(self) -> None:
        """Create the folders, and check that they can be locked and synced; raise ConfigError if other users may write to them."""
        setting = f"the file driver has dir={self.dir!r}"
        make_parent(self.dir, setting)
        make_folder(self.dir)
        check_access(self.dir, os.stat(self.dir), setting)
        for folder in (self._due.folder, self.owners.folder):
            make_folder(folder)
        for folder in (self.dir, self.owners.folder):
            _check_folders(folder, setting, self.dir)
        with tempfile.TemporaryFile(dir=self.dir) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.fsync(file.fileno())
        sync(self.dir)

    def folder_of(self, id: str) -> str:
        """Return the folder of the session; raise ValueError unless *id* is an id, because it becomes a part of a path."""
        if not ID.fullmatch(id):
            raise ValueError(f"a session's id is 64 hexadecimal digits, not {id!r}")
        return f"{self.dir}/{id[:2]}"

    def path(self, id: str) -> str:
        """Return the path of the session's file."""
        return f"{self.folder_of(id)}/{id}"

    # Reading

    def load_each(self, ids: list[str], max_size: float) -> list[tuple[Stored | None, Ending] | BaseException]:
        """Return what is stored under each id, or the error: FileTooLarge for a file of more bytes than *max_size*.

        Beside it is the last end_everyone(), which may have ended the session.
        """
        ending = self.ending()
        found = [_attempt(self._load, id, max_size) for id in ids]
        return [each if isinstance(each, BaseException) else (each, ending) for each in found]

    def ending(self) -> Ending:
        """Return the last end_everyone(), or NEVER."""
        # Most stores have none, and opening a missing file costs twice as much as this. A process that may not search the
        # folder gets False as well, but it can't read a session either.
        if not os.access(self._ending, os.F_OK, effective_ids=_CAN_TEST_EFFECTIVE_IDS):
            return NEVER
        if (ending := decode_ending(read_file(self._ending))) is None:
            # Without it, no session is known to live.
            raise OSError(f"{self._ending!r} is damaged; remove it with the sessions, or restore it")
        return ending

    def _load(self, id: str, max_size: float = math.inf) -> Stored | None:
        return self.decode(id, self.read(id, max_size))

    def read(self, id: str, max_size: float = math.inf) -> bytes | None:
        """Return the content of the session's file: b"" if it isn't a file, None if it doesn't exist."""
        try:
            return read_file(self.path(id), max_size)
        except FileNotFoundError:
            # Raises if the whole store is missing, for example unmounted: the session isn't known to be absent then.
            os.stat(self.dir)
            return None
        except OSError as cause:
            if cause.errno not in NOT_A_FILE:
                raise
            return b""

    def decode(self, id: str, content: bytes | None) -> Stored | None:
        """Return the session or tombstone in *content*. Damaged content is reported, and counts as absent."""
        stored = None if content is None else decode(id, content)
        if content is not None and stored is None:
            self._damage.report(id, "its file")
        return stored

    def owned(self, owner: str, now: float) -> dict[str, Record]:
        """Return the sessions of *owner*; remove other entries from the owner's folder unless its lock is held."""
        ids, ending = self.owners.ids(owner), self.ending()
        found = {id: record for id in ids if (record := _rules.owned(self._load(id), owner, now, ending)) is not None}
        if len(found) < len(ids):
            with suppress(BlockingIOError), self.locked([self.owners.lock_of(owner)]):
                # A session that was written meanwhile has its entry, so each one is read again. An expired one keeps its entry
                # until a purge, because a write whose *now* is earlier may still move its deadline.
                for id in ids:
                    if id not in found and _rules.owned(self._load(id), owner, -math.inf) is None:
                        self.owners.remove(owner, id)
                self.owners.tidy(owner_hash(owner), now)
        return found

    def count(self, now: float) -> int:
        """Return how many sessions there are. After an end_everyone(), this reads each."""
        names, ending = 0, self.ending()
        for folder in os.scandir(self.dir):
            if len(folder.name) == 2:
                ids = ids_in(folder.path)
                if ending is not NEVER:
                    ids = [id for id in ids if isinstance(find(self._load(id), now, ending), Record)]
                names += len(ids)
        if ending is not NEVER:
            return names
        # A tombstone's deadline is at most a minute ahead, or two by a clock that is a little ahead.
        candidates = {marker.id for marker in self._due.find(now + 2 * TOMBSTONE) if not marker.is_owner}
        for id in candidates:
            content = self.read(id)
            if content is not None and not isinstance(find(decode(id, content), now), Record):
                names -= 1
        return names

    # Purging

    def purge(self, now: float, limit: int) -> tuple[int, int]:
        """Handle at most *limit* expired markers; return their number, and that of the sessions and tombstones removed."""
        handled = removed = 0
        for marker in islice(self._due.find(now), limit):
            folder = os.path.dirname(self.owners.path_of(marker.id)) if marker.is_owner else self.folder_of(marker.id)
            with suppress(BlockingIOError), self.locked([folder]):
                if marker.is_owner:
                    self.owners.tidy(marker.id, now)
                else:
                    removed += self._purge(marker.id, now)
                handled += remove(marker.path)
        if not handled:
            self._due.remove_folders(now - TOMBSTONE)
        return handled, removed

    def _purge(self, id: str, now: float) -> bool:
        """Remove the session if it has expired, and mark its present deadline otherwise; return whether it was removed."""
        remove(temporary(self.path(id)))
        stored = self._load(id)
        if stored is not None and not has_expired(stored, now):
            self._due.mark(id, stored.deadline)
            return False
        if isinstance(stored, Record) and stored.ownership is not None:
            owner = stored.ownership.owner
            with self.locked([self.owners.lock_of(owner)]):
                self.owners.remove(owner, id)
                self.owners.tidy(owner_hash(owner), now)
        return remove(self.path(id))

    # Writing

    def run(self, calls: list[Call]) -> list[Any]:
        """Make the calls in one transaction; return each call's result or error after everything is on the disk.

        The result is BlockingIOError for each call that needs a lock which another process holds.
        """
        with ExitStack() as held:
            locks: dict[str, int | BlockingIOError] = {}
            transaction, results = Transaction(self), list[Any]()
            for call in calls:
                for folder in call.folders:
                    if folder not in locks:
                        locks[folder] = self._lock(folder, held)
                blocked = next((lock for folder in call.folders if not isinstance(lock := locks[folder], int)), None)
                results.append(blocked or _attempt(call.change, transaction))
            self._commit(transaction, {folder: lock for folder, lock in locks.items() if isinstance(lock, int)})
        return results

    def _commit(self, transaction: Transaction, locks: Mapping[str, int]) -> None:
        try:
            for id, deadline in transaction.new:
                self._due.mark(id, deadline)
            # A crash may leave an entry without a session, but never a session without its entry.
            for folder in {self.owners.add(owner, id) for (owner, id), left in transaction.entries.items() if left is None}:
                sync(folder)
            for (owner, _), left in transaction.entries.items():
                # Whether the owner's folder may be removed is only known under the owner's lock, which a purge takes.
                if left is not None:
                    self.mark_owner(owner, left)
            for id, content in transaction.changed.items():
                write_file(temporary(self.path(id)), content)
            # Every step that needs space is done. Each folder is synced before the next one changes: after a rename, not even a
            # power failure leaves both ids alive.
            for folder, ids in groupby(transaction.changed, self.folder_of):
                for path in map(self.path, ids):
                    os.replace(temporary(path), path)
                os.fsync(locks[folder])
        except BaseException:
            for id in transaction.changed:
                remove(temporary(self.path(id)))
            raise
        for (owner, id), left in transaction.entries.items():
            if left is not None:
                self.owners.remove(owner, id)

    def end_everyone(self, now: float) -> None:
        """Store that all sessions are ended *now*."""
        write_file(temporary(self._ending), encode_ending(next_ending(self.ending(), now)))
        os.replace(temporary(self._ending), self._ending)
        sync(self.dir)

    def mark_owner(self, owner: str, now: float) -> None:
        """Mark the owner's folder, so that a purge tidies it when a time stored *now* no longer counts."""
        self._due.mark(owner_hash(owner), now + TOMBSTONE, is_owner=True)

    # Locks

    @contextmanager
    def locked(self, folders: Collection[str]) -> Generator[None]:
        """Hold the locks of the folders; raise BlockingIOError if another process holds one."""
        with ExitStack() as held:
            for folder in folders:
                if isinstance(lock := self._lock(folder, held), BlockingIOError):
                    raise lock
            yield

    def _lock(self, folder: str, held: ExitStack) -> int | BlockingIOError:
        """Lock the folder until *held* is closed; return its descriptor, or the error if another process holds the lock."""
        try:
            descriptor = os.open(folder, os.O_RDONLY)
        except FileNotFoundError:
            make_folder(folder)
            descriptor = os.open(folder, os.O_RDONLY)
        held.callback(os.close, descriptor)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            return error
        # Closing the descriptor isn't enough: a process that was forked meanwhile holds a copy of it.
        held.callback(fcntl.flock, descriptor, fcntl.LOCK_UN)
        return descriptor


class Transaction(Store):
    """The changes of several calls: each call sees those of the calls before it, and each file is written once at the end.

    Stored values are encoded at once, so a call that fails has changed nothing.
    """

    name = "file"

    def __init__(self, folder: Folder) -> None:
        self._folder = folder
        self._contents: dict[str, bytes | None] = {}
        self._ending: Ending | None = None
        self.changed: dict[str, bytes] = {}
        """The new contents of files, in the order in which they are written."""
        self.new: list[tuple[str, float]] = []
        """Sessions and tombstones that had no marker before, with their deadlines."""
        self.entries: dict[tuple[str, str], float | None] = {}
        """By owner and id: None for an entry that is added to the owner's folder, otherwise when the session left the owner."""

    def get(self, id: str) -> Stored | None:
        """Return a copy of what is stored under *id*."""
        if id not in self._contents:
            self._contents[id] = self._folder.read(id)
        return self._folder.decode(id, self._contents[id])

    def put(self, stored: Mapping[str, Stored]) -> None:
        """Write all of *stored*, in its order, or nothing of it."""
        contents = {id: encode(id, each) for id, each in stored.items()}
        for id, each in stored.items():
            if isinstance(each, Tombstone) or self.get(id) is None:
                self.new.append((id, each.deadline))
        self._contents |= contents
        self.changed |= contents

    def move(self, id: str, before: Ownership | None, after: Ownership | None, *, now: float) -> None:
        """Move the session in the owners' index."""
        if after is not None:
            self.entries[after.owner, id] = None
        if before is not None and (after is None or after.owner != before.owner):
            self.entries[before.owner, id] = now

    def revoked(self, owner: str) -> float | None:
        """Return when all of the owner's sessions were ended, or None if that isn't stored."""
        return self._folder.owners.revoked(owner)

    @property
    def ending(self) -> Ending:
        """The last end_everyone(), or NEVER, when the transaction first needs it."""
        if self._ending is None:
            self._ending = self._folder.ending()
        return self._ending

    def revoke(self, owner: str, now: float) -> list[str]:
        """Store that all of the owner's sessions are ended *now*; return the ids of those sessions, and maybe of others."""
        self._folder.mark_owner(owner, now)
        self._folder.owners.revoke(owner, now)
        # Calls before this one in the transaction have no entry on the disk yet.
        added = [id for (entry_owner, id), left in self.entries.items() if entry_owner == owner and left is None]
        return [*self._folder.owners.ids(owner), *added]


def _check_folders(folder: str, setting: str, dir: str) -> None:
    """Raise ConfigError if another user owns, or may write to, one of the driver's folders in *folder*.

    They may have been created while *dir* was open to others, and they keep their own permissions.
    """
    with os.scandir(folder) as entries:
        for entry in entries:
            if _FOLDER.fullmatch(entry.name):
                if not entry.is_dir(follow_symlinks=False):
                    raise ConfigError(f"{setting}, but {entry.path!r} isn't a folder; remove it")
                check_access(entry.path, entry.stat(follow_symlinks=False), setting, within=dir)


def _attempt(function: Callable[[*Ts], T], *arguments: *Ts) -> T | BaseException:
    """Return the result of *function* or its error, so that a failed call does not affect the rest of its batch."""
    try:
        return function(*arguments)
    except Exception as error:
        return error
