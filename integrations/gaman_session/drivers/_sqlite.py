"""A file of SQLite: how it is created and opened, and its threads, each of which makes the calls of one connection.

What the columns mean stands in the schema, here and in the file.
"""

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
    deadline REAL NOT NULL,        -- when it is over if nobody touches it; its row may stay for a while
    version INTEGER NOT NULL,      -- raised by each write
    ended INTEGER NOT NULL,        -- 1 where it was ended or renamed, which is remembered until the deadline
    successor TEXT,                -- the id that it was renamed to
    owner TEXT,                    -- whose it is: a hash, or with encrypt=False as set_owner() was given it
    since REAL,                    -- when it was tied to the owner
    note,                          -- what set_owner() was given with it: TEXT where it is JSON, a BLOB otherwise
    size INTEGER NOT NULL,         -- bytes of its keys and values
    seal BLOB NOT NULL             -- what proves created and expires; empty where values aren't sealed
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS sessions_deadline ON sessions (deadline);
CREATE INDEX IF NOT EXISTS sessions_owner ON sessions (owner) WHERE owner IS NOT NULL;
CREATE TABLE IF NOT EXISTS session_owners_ended (
    owner TEXT NOT NULL PRIMARY KEY,
    ended REAL NOT NULL            -- when all sessions of the owner were ended, which is remembered for a minute
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS session_values (
    session_id TEXT NOT NULL,
    key TEXT NOT NULL CHECK (typeof(key) = 'text'),
    value NOT NULL,                -- TEXT where it is JSON, a BLOB otherwise
    PRIMARY KEY (session_id, key)
);
CREATE TRIGGER IF NOT EXISTS session_values_of_nobody AFTER DELETE ON sessions
    BEGIN DELETE FROM session_values WHERE session_id = OLD.id; END;
COMMIT;
"""
COLUMNS: Final = b"id created expires deadline version ended successor owner since note size seal session_id key value".split()

# Whoever reads sees after so many seconds that the file is gone. To look each time would be a good part of a trip.
_LOOKS: Final = 0.01


class Connection(aiosqlite.Connection, Generic[D]):
    """A connection whose thread is given whole functions: calls that are made at the same moment, to be answered by one *run*.

    By aiosqlite's own methods each statement would go there and back, while others wait for the transaction to end.
    """

    _execute: Callable[..., CoroutineType[Any, Any, Any]]

    def __init__(self, connect: Callable[[], D], run: Callable[[D, Sequence[Callable[[D], Any]]], list[Any]]) -> None:
        super().__init__(connect, iter_chunk_size=1)
        # Before aiosqlite 0.22 a connection was a thread itself. Who forgets to close it can end nevertheless.
        self._worker: Any = getattr(self, "_thread", self)
        self._worker.daemon = True
        self._batches: Batches[Callable[[D], Any], Any] = Batches(lambda calls: self._execute(run, self._conn, calls))

    async def open(self) -> None:
        """Connect, or raise what prevents it: sqlite3.Error, OSError, or a RuntimeError where no thread can be started."""
        try:
            await self
        except Exception:
            # aiosqlite does not wait for its thread, which would speak to an event loop that is closed by then.
            if self._worker.ident is not None:
                await asyncio.to_thread(self._worker.join)
            raise

    async def perform(self, function: Callable[[D], T]) -> T:
        """Return what *function* does with the connection."""
        result: T = await self._execute(function, self._conn)
        return result

    def call(self, call: Callable[[D], T]) -> Awaitable[T]:
        """Return what *call* does, together with the calls of the same moment."""
        return self._batches.call(call)

    async def close(self) -> None:
        """Answer what was called, and close."""
        await self._batches.drain()
        await super().close()


class Database(sqlite3.Connection):
    """The file, as the thread of a connection sees it; who writes is in a transaction."""

    def __init__(self, file: Path, timeout: float) -> None:
        super().__init__(file, timeout=timeout, isolation_level=None)
        self.text_factory = bytes
        self._file = file.absolute()
        self._opened = file.stat()
        self._looked_at = -math.inf

    def prepare(self, timeout: float) -> None:
        """Make the settings, and the tables where there are none."""
        until = time.monotonic() + timeout
        while True:
            try:
                self.execute("PRAGMA journal_mode = WAL")
                break
            except sqlite3.OperationalError as error:
                # For this one SQLite does not wait by itself, where others do it at the same moment.
                if not _is_busy(error) or time.monotonic() >= until:
                    raise
                time.sleep(0.01)
        self.execute("PRAGMA synchronous = FULL")
        if not self.columns():
            self.executescript(_SCHEMA)

    def columns(self) -> list[bytes]:
        """Return the names of the tables' columns."""
        tables = ("sessions", "session_values")
        return [name for table in tables for (name,) in self.execute("SELECT name FROM pragma_table_info(?)", (table,))]

    def read(self, calls: Sequence[Callable[[Self], Any]]) -> list[Any]:
        """Make the calls, and return the result or the error of each."""
        if time.monotonic() >= self._looked_at + _LOOKS:
            self._check_place()
        return _each(calls, lambda call: call(self))

    def write(self, calls: Sequence[Callable[[Self], Any]]) -> list[Any]:
        """Make the calls in one transaction, or each in its own where one of them fails; return the result or the error of each."""
        self._check_place()
        self.execute("BEGIN IMMEDIATE")
        try:
            with self:
                return [call(self) for call in calls]
        except Exception:
            if len(calls) == 1:
                raise
        return _each(calls, lambda call: self.write([call])[0])

    def _check_place(self) -> None:
        """Raise OSError where the file was removed or replaced: SQLite would go on with one that nobody else sees."""
        if not os.path.samestat(os.stat(self._file), self._opened):
            raise FileNotFoundError(f"another file lies at {str(self._file)!r} than the one that was opened")
        self._looked_at = time.monotonic()


def _each(calls: Sequence[Call], make: Callable[[Call], Any]) -> list[Any]:
    """Return for each call what *make* returns for it, or the error that it raises."""
    results: list[Any] = []
    for call in calls:
        try:
            results.append(make(call))
        except Exception as error:
            if _is_busy(error):
                # Whoever comes next would wait for the same lock as long again.
                return results + [error] * (len(calls) - len(results))
            results.append(error)
    return results


def _is_busy(error: Exception) -> bool:
    # What the lock was wanted for stands in the higher bytes. An error that Python raises has no code.
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


def create_file(file: Path, setting: str) -> None:
    """Create the file and its folder, where they are missing, for this user alone; ConfigError if other users may write to it."""
    make_parent(str(file), setting)
    # SQLite gives the files beside it the same mode. One that is there is not opened, for to close it again would drop the locks
    # on it that SQLite holds in this process (fcntl, POSIX).
    with suppress(FileExistsError):
        os.close(os.open(file, os.O_CREAT | os.O_EXCL, 0o600))
    # What SQLite finds in the files beside it becomes part of the database.
    for path in (os.path.realpath(file) + suffix for suffix in ("", "-wal", "-shm", "-journal")):
        if os.path.exists(path):
            # SQLite would wait for ever for a pipe's other end.
            if not os.path.isfile(path):
                raise ConfigError(f"{setting}, but {path!r} isn't a file; remove it, or choose another place")
            check_access(path, os.stat(path), setting)
