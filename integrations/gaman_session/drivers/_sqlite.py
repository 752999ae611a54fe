"""The SQLite file: its schema, its connections, and the transactions that concurrent calls share."""

from __future__ import annotations

import asyncio
import math
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import CoroutineType
from typing import Any, Final, Generic, Self, TypeVar

import aiosqlite

from gaman.errors import ConfigError
from gaman_session._paths import check_access, make_parent
from gaman_session.drivers._batches import Batches

T = TypeVar("T")
Call = TypeVar("Call")
D = TypeVar("D", bound="Database")

_SCHEMA: Final = """
BEGIN IMMEDIATE;
CREATE TABLE IF NOT EXISTS sessions (
    id TEXT NOT NULL PRIMARY KEY,  -- as Session.id has it
    created REAL NOT NULL,         -- seconds since the epoch, as are the next two
    expires REAL NOT NULL,         -- the absolute limit
    deadline REAL NOT NULL,        -- when it expires unless it is used; its row may stay for a while
    version INTEGER NOT NULL,      -- raised by each write
    ended INTEGER NOT NULL,        -- 1 for a tombstone, which stays until its deadline
    successor TEXT,                -- the id that it was renamed to
    owner TEXT,                    -- a hash, or with encrypt=False the text that set_owner() got
    since REAL,                    -- when set_owner() was called
    note,                          -- the note that set_owner() got: TEXT if it is JSON, otherwise a BLOB
    size INTEGER NOT NULL,         -- bytes of its keys and values
    seal BLOB NOT NULL             -- authenticates created and expires; empty if values aren't sealed
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS sessions_deadline ON sessions (deadline);
CREATE INDEX IF NOT EXISTS sessions_owner ON sessions (owner) WHERE owner IS NOT NULL;
CREATE TABLE IF NOT EXISTS session_owners_ended (
    owner TEXT NOT NULL PRIMARY KEY,
    ended REAL NOT NULL            -- when all sessions of the owner were ended; kept for a minute
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS session_values (
    session_id TEXT NOT NULL,
    key TEXT NOT NULL CHECK (typeof(key) = 'text'),
    value NOT NULL,                -- TEXT if it is JSON, otherwise a BLOB
    PRIMARY KEY (session_id, key)
);
CREATE TRIGGER IF NOT EXISTS delete_session_values AFTER DELETE ON sessions
    BEGIN DELETE FROM session_values WHERE session_id = OLD.id; END;
COMMIT;
"""
# Not in the schema above, because files of earlier versions lack it.
_SCHEMA_OF_ENDING: Final = """
CREATE TABLE IF NOT EXISTS session_ending (
    min_version INTEGER NOT NULL,  -- a session of a smaller version was ended by end_everyone(), and so was everyone's
    at REAL NOT NULL,              -- when
    swept TEXT                     -- such rows are removed up to this id; NULL: there are none
)
"""
COLUMNS: Final = b"id created expires deadline version ended successor owner since note size seal session_id key value".split()

_CHECK_INTERVAL: Final = 0.01
"""Seconds between two checks that the file is still there. A check for each read would be a large part of its cost."""


class Connection(aiosqlite.Connection, Generic[D]):
    """A connection whose thread makes a batch of calls by one *run*.

    With aiosqlite's own methods, each statement would go to the thread and back, while other calls wait for the transaction to end.
    """

    _execute: Callable[..., CoroutineType[Any, Any, Any]]

    def __init__(self, connect: Callable[[], D], run: Callable[[D, Sequence[Callable[[D], Any]]], list[Any]]) -> None:
        super().__init__(connect, iter_chunk_size=1)
        # Before aiosqlite 0.22 a connection was a thread itself. As a daemon, it doesn't keep a program from ending.
        self._worker: Any = getattr(self, "_thread", self)
        self._worker.daemon = True
        self._batches: Batches[Callable[[D], Any], Any] = Batches(lambda calls: self._execute(run, self._conn, calls))

    async def open(self) -> None:
        """Connect, or raise sqlite3.Error, OSError, or a RuntimeError if no thread can be started."""
        try:
            await self
        except Exception:
            # aiosqlite doesn't wait for its thread, which would then call an event loop that may be closed.
            if self._worker.ident is not None:
                await asyncio.to_thread(self._worker.join)
            raise

    async def perform(self, function: Callable[[D], T]) -> T:
        """Return what *function* returns for the connection."""
        result: T = await self._execute(function, self._conn)
        return result

    def call(self, call: Callable[[D], T]) -> Awaitable[T]:
        """Return what *call* returns for the connection; concurrent calls share a batch."""
        return self._batches.call(call)

    async def close(self) -> None:
        """Finish the calls in flight, and close."""
        await self._batches.drain()
        await super().close()


class Database(sqlite3.Connection):
    """The file, as the thread of a connection sees it."""

    def __init__(self, file: Path, timeout: float) -> None:
        super().__init__(file, timeout=timeout, isolation_level=None)
        self.text_factory = bytes
        self._file = file.absolute()
        self._opened = file.stat()
        self._checked_at = -math.inf

    def prepare(self, timeout: float) -> None:
        """Make the settings, and create the tables if they are missing."""
        until = time.monotonic() + timeout
        while True:
            try:
                self.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:
                # SQLite doesn't wait for this lock by itself if several connections change the mode at the same moment.
                if not _is_busy(error) or time.monotonic() >= until:
                    raise
                time.sleep(0.01)
        self.execute("PRAGMA synchronous = FULL")
        if not self.columns():
            self.executescript(_SCHEMA)
        self.execute(_SCHEMA_OF_ENDING)

    def columns(self) -> list[bytes]:
        """Return the names of the tables' columns."""
        tables = ("sessions", "session_values")
        return [name for table in tables for (name,) in self.execute("SELECT name FROM pragma_table_info(?)", (table,))]

    def read(self, calls: Sequence[Callable[[Self], Any]]) -> list[Any]:
        """Make the calls, and return the result or the error of each."""
        if time.monotonic() >= self._checked_at + _CHECK_INTERVAL:
            self._check_file()
        return _each(calls, lambda call: call(self))

    def write(self, calls: Sequence[Callable[[Self], Any]]) -> list[Any]:
        """Make the calls in one transaction, or each in its own if one fails; return the result or the error of each."""
        self._check_file()
        self.execute("BEGIN IMMEDIATE")
        try:
            with self:
                return [call(self) for call in calls]
        except Exception:
            if len(calls) == 1:
                raise
        return _each(calls, lambda call: self.write([call])[0])

    def _check_file(self) -> None:
        """Raise OSError if the file was removed or replaced: SQLite would go on with one that no other process sees."""
        if not os.path.samestat(os.stat(self._file), self._opened):
            raise FileNotFoundError(f"{str(self._file)!r} isn't the file that was opened")
        self._checked_at = time.monotonic()


def _each(calls: Sequence[Call], make: Callable[[Call], Any]) -> list[Any]:
    """Return for each call what *make* returns for it, or the error that it raises."""
    results: list[Any] = []
    for call in calls:
        try:
            results.append(make(call))
        except Exception as error:
            if _is_busy(error):
                # The next call would wait for the same lock, and as long again.
                return results + [error] * (len(calls) - len(results))
            results.append(error)
    return results


def _is_busy(error: Exception) -> bool:
    # The higher bytes say what the lock was for. An error that Python raises has no code.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def create_file(file: Path, setting: str) -> None:
    """Create a missing file and folder with access for this user only; ConfigError if other users can write to the file."""
    make_parent(str(file), setting)
    # SQLite gives the files beside it the same mode. An existing file isn't opened, because closing it would drop the locks that
    # SQLite holds on it in this process (fcntl, POSIX).
    with suppress(FileExistsError):
        os.close(os.open(file, os.O_CREAT | os.O_EXCL, 0o600))
    # SQLite takes the contents of the files beside it into the database.
    for path in (os.path.realpath(file) + suffix for suffix in ("", "-wal", "-shm", "-journal")):
        if os.path.exists(path):
            # SQLite would wait forever for the other end of a pipe.
            if not os.path.isfile(path):
                raise ConfigError(f"{setting}, but {path!r} isn't a file; remove it, or choose another place")
            check_access(path, os.stat(path), setting)
