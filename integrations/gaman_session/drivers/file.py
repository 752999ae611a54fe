"""Sessions in files, one for each session: processes share the folder, and a write returns when it is on the disk."""

from __future__ import annotations

import asyncio
import math
import os
import random
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from itertools import groupby
from typing import Any, Final, Literal, TypeVar

from gaman.errors import ConfigError
from gaman_session import _rules
from gaman_session._driver import LARGE, Outcome, Ownership, Record
from gaman_session._paths import expand
from gaman_session._rules import Ending, Stored
from gaman_session.drivers._batches import Batches
from gaman_session.drivers._checks import check_timeout
from gaman_session.drivers._disk import FileTooLarge
from gaman_session.drivers._folder import Call, Folder, Transaction
from gaman_session.drivers._reports import reports
from gaman_session.drivers._threads import Threads
from gaman_session.drivers._time_limit import TimeLimit
from gaman_session.drivers._transactions import TransactionDriver

T = TypeVar("T")

_MAX_THREADS: Final = 16
"""More than there are processors, because the threads wait for the disk."""
_MAX_CALLS: Final = 100
"""Calls in a transaction. Each of them waits until the files of all are on the disk."""
_MAX_MARKERS: Final = 100
"""Expiry markers that a purge handles in one step, which the timeout bounds."""
_MAX_PAUSE: Final = 0.05
"""Seconds between two attempts to get a lock."""


class FileDriver(TransactionDriver):
    """Keeps each session in a file in the folder *dir* that only this user can read; each call takes at most *timeout* seconds."""

    name = "file"
    shared = True
    # UnicodeEncodeError: a field's name is not UTF-8. RuntimeError: the system starts no more threads.
    _failures = (OSError, UnicodeEncodeError, RuntimeError)

    def __init__(self, *, dir: str | os.PathLike[str] = "./sessions", timeout: float = 5) -> None:
        path = os.fspath(dir) if isinstance(dir, (str, os.PathLike)) else None
        if not isinstance(path, str) or not path or "\0" in path:
            raise ConfigError(f"the file driver has dir={dir!r}; it takes the path of a folder")
        check_timeout("file", timeout)
        self._folder = Folder(os.path.abspath(expand(path, "the file driver has dir")))
        self._timeout = timeout
        self._limit = TimeLimit(timeout)
        self._threads = Threads(_MAX_THREADS, "gaman-session-files")
        # Half of the threads, so that a write always finds one that isn't loading.
        self._loads: Batches[str, tuple[Stored | None, Ending]] = Batches(
            partial(self._load_each, LARGE), max_in_flight=_MAX_THREADS // 2
        )
        # One at a time, because decoding holds the interpreter's lock.
        self._large_loads: Batches[str, tuple[Stored | None, Ending]] = Batches(partial(self._load_each, math.inf), max_calls=1)
        self._writes: dict[str, Batches[Call, Any]] = {}

    def _explain(self, error: Exception) -> tuple[str, Exception]:
        if isinstance(error, TimeoutError):
            error = TimeoutError(f"another process held the lock, or the disk did not answer, for {self._timeout} seconds")
        return "", error

    async def open(self) -> None:
        """Create the folder; raise ConfigError if this process can't write to it, or if another user can."""
        if sys.platform == "win32":
            raise ConfigError("the file driver needs the file locks of Unix; on Windows choose another driver, such as sql")
        try:
            await asyncio.to_thread(self._folder.prepare)
        except OSError as cause:
            raise ConfigError(
                f"the file driver can't use dir={self._folder.dir!r} ({cause.strerror}); it takes a folder that it may write to"
            ) from cause

    async def close(self) -> None:
        """Finish the calls in flight, and end the threads."""
        await self._loads.drain()
        await self._large_loads.drain()
        for batches in [*self._writes.values()]:
            await batches.drain()
        await self._threads.close()

    @reports("load a session")
    async def load(self, id: str, *, now: float) -> Record | Literal[Outcome.ENDED] | None:
        """Return the session, ENDED, or None. A load waits for no lock."""
        return await self._load(id, now)

    @reports("load sessions")
    async def load_all(self, ids: Sequence[str], *, now: float) -> list[Record | Literal[Outcome.ENDED] | None]:
        """Return what load() does for each of *ids*, by one call of a thread."""
        return await asyncio.gather(*(self._load(id, now, is_one_of_several=True) for id in ids))

    async def _load(self, id: str, now: float, *, is_one_of_several: bool = False) -> Record | Literal[Outcome.ENDED] | None:
        self._folder.folder_of(id)
        try:
            stored, ending = await self._loads.call(id, is_one_of_several=is_one_of_several)
        except FileTooLarge:
            stored, ending = await self._large_loads.call(id)
        return _rules.load(stored, now, ending)

    async def purge(self, *, now: float, limit: int) -> int:
        """Remove expired sessions and tombstones. The next purge removes those whose folder is locked now."""
        removed, handled = 0, 1
        while handled and removed < limit:
            handled, of_these = await self._purge_some(now, min(limit - removed, _MAX_MARKERS))
            removed += of_these
        return removed

    @reports("remove expired sessions")
    async def _purge_some(self, now: float, limit: int) -> tuple[int, int]:
        return await self._threads.call(self._folder.purge, now, limit)

    @reports("list the sessions of an owner")
    async def owned(self, owner: str, *, now: float) -> Mapping[str, Record]:
        """Return the owner's sessions by their ids."""
        return await self._threads.call(self._folder.owned, owner, now)

    async def end_owned(self, owner: str, *, keep: Collection[str], now: float) -> int:
        """End the owner's sessions except those in *keep*, in a transaction for each folder."""

        async def end(ids: list[str]) -> Iterable[str | bool]:
            folders = [list(group) for _, group in groupby(sorted(ids), lambda id: id[:2])]
            results = await asyncio.gather(*(self._end_in_folder(owner, group, now) for group in folders))
            return [each for of_folder in results for each in of_folder]

        return await _rules.end_all_owned(await self._revoke(owner, now), end, keep=keep)

    @reports("end the sessions of an owner")
    async def _revoke(self, owner: str, now: float) -> list[str]:
        return await self._run([self._folder.owners.lock_of(owner)], lambda transaction: transaction.revoke(owner, now))

    @reports("end the sessions of an owner")
    async def _end_in_folder(self, owner: str, ids: list[str], now: float) -> list[str | bool]:
        return await self._transact(lambda store: [store.end_owned(id, owner, now=now) for id in ids], ids[0], now=now)

    @reports("end all sessions")
    async def end_everyone(self, *, now: float) -> None:
        """End every session, by writing one file."""
        await self._run([self._folder.owners.folder], lambda transaction: self._folder.end_everyone(now))

    @reports("count its sessions")
    async def count(self, *, now: float) -> int:
        """Return how many sessions there are, by the names of their files; only those whose marker has expired are read.

        After end_everyone(), each file is read.
        """
        return await self._threads.call(self._folder.count, now)

    async def _transact(self, change: Callable[[Transaction], T], *ids: str, now: float, ownership: Ownership | None = None) -> T:
        """Return the result of *change* when its transaction is on the disk."""
        folders = [self._folder.folder_of(id) for id in ids]
        if ownership is not None:
            # The owner's lock first: concurrent logins of one owner then share a transaction instead of waiting for each other.
            folders.insert(0, self._folder.owners.lock_of(ownership.owner))
        return await self._run(folders, change)

    async def _run(self, folders: list[str], change: Callable[[Transaction], T]) -> T:
        """Return the result of *change* as soon as no other process holds the locks of *folders*."""
        if folders[0] not in self._writes:
            self._writes[folders[0]] = Batches(self._run_each, max_calls=_MAX_CALLS)
        # The task waits for the lock, not a thread, so that a stuck lock blocks no other call and threads can't deadlock.
        pause = 0.001
        while True:
            with suppress(BlockingIOError):
                result: T = await self._writes[folders[0]].call(Call(folders, change))
                return result
            await asyncio.sleep(random.uniform(0, pause))  # noqa: S311
            pause = min(2 * pause, _MAX_PAUSE)

    async def _run_each(self, calls: list[Call]) -> list[Any]:
        return await self._threads.call(self._folder.run, calls)

    async def _load_each(self, max_size: float, ids: list[str]) -> list[tuple[Stored | None, Ending] | BaseException]:
        return await self._threads.call(self._folder.load_each, ids, max_size)
