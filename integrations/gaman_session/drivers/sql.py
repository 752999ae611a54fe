"""Sessions in SQLite: two tables in one file, for all the processes of one machine.

The file may be a database that has other tables too. What the columns of ours mean stands in their schema, below and in the file.
With `session(encrypt=False)` values are JSON, so that SQL can ask for them. These are the sessions of user 7; whoever deletes rows
from `sessions` ends theirs:

    SELECT id FROM sessions JOIN session_values ON session_id = id
    WHERE NOT ended AND deadline > unixepoch() AND key = 'user' AND json_extract(value, '$.id') = 7

The owner that set_owner() was given then stands there as it is, with the note as JSON. These are the sessions of one, by an index:

    SELECT id, json_extract(note, '$.device') FROM sessions WHERE owner = 'user:7' AND deadline > unixepoch()
"""

from __future__ import annotations

import asyncio
import math
import os
import sqlite3
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import CoroutineType
from typing import Any, Final, Literal, NamedTuple, TypeAlias, TypeVar

import aiosqlite
import msgspec

from gaman.errors import ConfigError, GamanError
from gaman_session._damage import Damage
from gaman_session._driver import LARGE, MAX_SKEW, TOMBSTONE, Outcome, Ownership, Record, size_of
from gaman_session._errors import SessionStoreError
from gaman_session._paths import check_access, expand, make_parent
from gaman_session.drivers._batches import Batches
from gaman_session.drivers._checks import check_timeout

T = TypeVar("T")
_Call: TypeAlias = "Callable[[_Sessions], T]"
_Run: TypeAlias = "Callable[[_Sessions, Sequence[_Call[Any]]], list[Any]]"
_Missing: TypeAlias = Literal[Outcome.ENDED, Outcome.ABSENT]

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
_COLUMNS: Final = b"id created expires deadline version ended successor owner since note size seal session_id key value".split()
# What is no number is above all numbers; the last one is the year 10,000, for which datetime has no name.
_IS_SOUND: Final = """
created >= 0 AND created <= expires AND deadline >= 0 AND deadline <= expires AND expires < 253402300800
AND version >= 0 AND typeof(version) = 'integer' AND ended IN (0, 1)
AND size >= 0 AND typeof(size) = 'integer' AND typeof(seal) = 'blob'
"""
_COLUMNS_OF_HEAD: Final = f"created, expires, deadline, version, ended, {_IS_SOUND}, seal"
_HEAD: Final = f"SELECT {_COLUMNS_OF_HEAD} FROM sessions WHERE id = ?"  # noqa: S608 - a constant
# Of a session beyond a size it has the head only, and reads no page of its values.
_LOAD: Final = f"""
SELECT {_COLUMNS_OF_HEAD}, owner, since, note, key, value
FROM sessions LEFT JOIN session_values ON session_id = id AND size <= ? WHERE id = ?
"""  # noqa: S608
# The length of a text is counted in characters, and that of a blob without reading all of its pages.
_BYTES: Final = """
SELECT length(CAST(key AS BLOB)) + iif(typeof(value) = 'blob', length(value), length(CAST(value AS BLOB)))
FROM session_values WHERE session_id = ?2 AND key = ?3
"""
# ?1 is by how many bytes the session grows if the field ?3 is new, and ?5 is how large it may then be.
_TOUCH: Final = f"""
UPDATE sessions SET version = version + 1, size = max(0, size + ?1 - ifnull(({_BYTES}), 0))
WHERE id = ?2 AND deadline > ?4 AND NOT ended AND {_IS_SOUND} AND size + ?1 <= ?5
"""  # noqa: S608
_MOVE: Final = _TOUCH.replace("\nWHERE id", ", deadline = min(?6, expires)\nWHERE id")
_CREATE: Final = "INSERT INTO sessions VALUES (?, ?, ?, ?, ?, 0, NULL, ?, ?, ?, ?, ?)"
_SET: Final = "INSERT INTO session_values VALUES (?, ?, ?) ON CONFLICT (session_id, key) DO UPDATE SET value = excluded.value"
_END: Final = """
UPDATE sessions SET created = ?1, expires = ?1, deadline = ?1, version = 0, ended = 1, successor = ?2,
    owner = NULL, since = NULL, note = NULL, size = 0, seal = x''
WHERE id = ?3
"""
_TAG: Final = "UPDATE sessions SET owner = ?, since = ?, note = ? WHERE id = ?"
_OWNED: Final = f"""
SELECT {_COLUMNS_OF_HEAD}, owner, since, note, id
FROM sessions WHERE owner = ? AND deadline > ?
"""  # noqa: S608
# What is further ahead was noted before the clock was set back.
_REMEMBER_END: Final = f"""
INSERT INTO session_owners_ended VALUES (?, ?) ON CONFLICT (owner) DO UPDATE
SET ended = iif(ended > excluded.ended + {MAX_SKEW}, excluded.ended, max(ended, excluded.ended))
"""  # noqa: S608
# All by the index, but for tombstones: these are due within a minute, or, by a clock that is a little ahead, in two.
_COUNT: Final = """
SELECT (SELECT count(*) FROM sessions WHERE deadline > ?1)
    - (SELECT count(*) FROM sessions WHERE deadline > ?1 AND deadline <= ?2 AND ended)
"""
# UNION, and not UNION ALL, ends where tombstones lead in a circle.
_LIVING: Final = """
WITH RECURSIVE names (id) AS (SELECT ?1 UNION SELECT successor FROM names JOIN sessions USING (id) WHERE ended AND deadline > ?2)
SELECT id FROM names JOIN sessions USING (id) WHERE NOT ended AND deadline > ?2
"""
_PURGE: Final = "DELETE FROM sessions WHERE id IN (SELECT id FROM sessions WHERE deadline <= ? ORDER BY deadline LIMIT ?)"

# Nobody writes while one purges, and so many sessions are a matter of two milliseconds.
_PURGED_AT_ONCE: Final = 50
_DAY: Final = 86_400
# Whoever reads sees after so many seconds that the file is gone. To look each time would be a good part of a trip.
_LOOKS: Final = 0.01
_parse_json: Final = msgspec.json.Decoder(msgspec.Raw).decode


class _IsLarge(Exception):
    """The session is large, so it has to be loaded by itself."""


class SQLDriver:
    """Keeps sessions in *file*, which is created for this user alone, with its folder if that is missing.

    A call waits *timeout* seconds at most for a lock that another process holds, and as long again for the calls before it; reading
    waits for nobody who writes. Writes that are made at the same moment share a transaction, and each is answered when it is on the
    disk, where it survives a loss of power. The disk must be a local one, for SQLite's locks don't reach over a network.
    """

    name = "sql"
    shared = True

    _reader: _Connection
    _large_reader: _Connection
    _writer: _Connection

    def __init__(self, *, file: str | os.PathLike[str] = "sessions.db", timeout: float = 5) -> None:
        path = os.fspath(file) if isinstance(file, (str, os.PathLike)) else None
        if not isinstance(path, str) or path in ("", ":memory:") or "\0" in path:
            raise ConfigError(f"the sql driver has file={file!r}; it takes the path of a file on a disk")
        check_timeout("sql", timeout, "a number of seconds above 0, and below a day", below=_DAY)
        self._file = Path(expand(path, f"the sql driver has file={path!r}"))
        self._timeout = timeout
        self._damage = Damage("sql")
        self._connections: list[_Connection] = []

    async def open(self) -> None:
        """Create the file and its tables where they are missing, and connect.

        ConfigError says that the file can't be created, may be written to by other users, isn't a database, or has tables of these
        names that are not ours; SessionStoreError that SQLite could not open it.
        """
        try:
            await self._open()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Finish what is under way, and close the file."""
        while self._connections:
            await self._connections.pop().close()

    async def load(self, id: str, *, now: float) -> Record | Literal[Outcome.ENDED] | None:
        """Return the session, ENDED, or None, by one SELECT."""
        try:
            return await self._reader.call("load a session", lambda sessions: sessions.load(id, now, LARGE))
        except _IsLarge:
            return await self._large_reader.call("load a session", lambda sessions: sessions.load(id, now, math.inf))

    async def create(self, id: str, record: Record) -> Literal[Outcome.REVOKED] | None:
        """Store a new session; an id that is taken raises SessionStoreError."""
        return await self._writer.call("create a session", lambda sessions: sessions.create(id, record))

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
        return await self._writer.call(
            "change a session", lambda sessions: sessions.apply(id, sets, deletes, now, deadline, max_size)
        )

    async def swap(
        self, id: str, field: str, old: bytes | None, new: bytes, *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        """Set one field if it still is *old*."""
        return await self._writer.call(
            "change a session", lambda sessions: sessions.swap(id, field, old, new, now, deadline, max_size)
        )

    async def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
        """Replace the session by *record* under *new_id*, if nobody has written to it since *version*."""
        return await self._writer.call("rename a session", lambda sessions: sessions.rename(id, new_id, record, version, now))

    async def destroy(self, id: str, *, now: float) -> None:
        """End the session, or the one that it was renamed to."""
        await self._writer.call("end a session", lambda sessions: sessions.destroy(id, now))

    async def purge(self, *, now: float, limit: int) -> int:
        """Remove what is over, a few at a time."""
        count = min(limit, _PURGED_AT_ONCE)
        return await self._writer.call("remove what is over", lambda sessions: sessions.purge(now, count))

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
        return await self._writer.call(
            "change a session", lambda sessions: sessions.set_owner(id, ownership, sets, deletes, now, deadline, max_size)
        )

    async def owned(self, owner: str, *, now: float) -> Mapping[str, Record]:
        """Return the owner's sessions, without their fields, by one SELECT."""
        return await self._reader.call("list the sessions of an owner", lambda sessions: sessions.owned(owner, now))

    async def end_owned(self, owner: str, *, keep: Collection[str], now: float) -> int:
        """End the owner's sessions but those to keep, in one transaction."""
        return await self._writer.call("end the sessions of an owner", lambda sessions: sessions.end_owned(owner, keep, now))

    async def count(self, *, now: float) -> int:
        """Return how many sessions there are, by the entries of an index."""
        return await self._reader.call("count its sessions", lambda sessions: sessions.count(now))

    async def _open(self) -> None:
        setting = f"the sql driver has file={str(self._file)!r}"
        try:
            _create(self._file, setting)
            # In a WAL nobody who reads waits for one who writes, unless they share a connection.
            self._reader = await self._connect(_Sessions.read)
            self._large_reader = await self._connect(_Sessions.read)
            self._writer = await self._connect(_Sessions.write)
            columns = await self._reader.perform(_Sessions.columns)
        except OSError as cause:
            raise ConfigError(f"{setting}, which can't be created: {cause.strerror}; choose another place") from cause
        except GamanError:
            raise
        except Exception as cause:
            if getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
                raise ConfigError(f"{setting}, which is no database; choose another file") from cause
            raise SessionStoreError(self.name, f"open {str(self._file)!r}") from cause
        if columns != _COLUMNS:
            raise ConfigError(f"{setting}, which has other tables named sessions or session_values; choose another file")

    async def _connect(self, run: _Run) -> _Connection:
        connection = _Connection(partial(_Sessions, self._file, self._timeout, self._damage), run)
        await connection.open()
        self._connections.append(connection)
        await connection.perform(lambda sessions: sessions.prepare(self._timeout))
        return connection


class _Connection(aiosqlite.Connection):
    """A connection whose thread is given whole functions: calls that are made at the same moment, to be answered by one *run*.

    By aiosqlite's own methods each statement would go there and back, while others wait for the transaction to end.
    """

    _execute: Callable[..., CoroutineType[Any, Any, Any]]

    def __init__(self, connect: Callable[[], _Sessions], run: _Run) -> None:
        super().__init__(connect, iter_chunk_size=1)
        # Before aiosqlite 0.22 a connection was a thread itself. Who forgets to close it can end nevertheless.
        self._worker: Any = getattr(self, "_thread", self)
        self._worker.daemon = True
        self._batches: Batches[_Call[Any], Any] = Batches(lambda calls: self._execute(run, self._conn, calls))

    async def open(self) -> None:
        """Connect, or raise what prevents it: sqlite3.Error, OSError, or a RuntimeError where no thread can be started."""
        try:
            await self
        except Exception:
            # aiosqlite does not wait for its thread, which would speak to an event loop that is closed by then.
            if self._worker.ident is not None:
                await asyncio.to_thread(self._worker.join)
            raise

    async def perform(self, function: Callable[[_Sessions], T]) -> T:
        """Return what *function* does with the connection."""
        result: T = await self._execute(function, self._conn)
        return result

    async def call(self, action: str, call: _Call[T]) -> T:
        """Return what *call* does; SessionStoreError says that *action* failed."""
        try:
            result: T = await self._batches.call(call)
        except (_IsLarge, GamanError):
            raise
        except Exception as cause:
            raise SessionStoreError(SQLDriver.name, action) from cause
        return result

    async def close(self) -> None:
        """Answer what was called, and close."""
        await self._batches.drain()
        await super().close()


class _Head(NamedTuple):
    """What is in a row of the table sessions, and whether it is one that was written here."""

    created: float
    expires: float
    deadline: float
    version: int
    ended: int
    is_sound: int
    seal: bytes


class _Sessions(sqlite3.Connection):
    """The sessions, as the thread of a connection sees them; who writes is in a transaction."""

    def __init__(self, file: Path, timeout: float, damage: Damage) -> None:
        super().__init__(file, timeout=timeout, isolation_level=None)
        self.text_factory = bytes
        self._damage = damage
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

    def read(self, calls: Sequence[_Call[Any]]) -> list[Any]:
        """Make the calls, and return the result or the error of each."""
        if time.monotonic() >= self._looked_at + _LOOKS:
            self._check_place()
        return _each(calls, lambda call: call(self))

    def write(self, calls: Sequence[_Call[Any]]) -> list[Any]:
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

    def load(self, id: str, now: float, most: float) -> Record | Literal[Outcome.ENDED] | None:
        rows = self.execute(_LOAD, (most, id)).fetchall()
        head = self._check(id, rows, now)
        if not isinstance(head, _Head):
            return None if head is Outcome.ABSENT else head
        fields: dict[str, bytes] = {}
        for *_, key, value in rows:
            if key is None:
                # The join's row for a session that has no values, or too many bytes of them.
                if most < math.inf:
                    raise _IsLarge
                continue
            field = key.decode(errors="replace")
            if isinstance(value, bytes) and field.encode() == key:
                fields[field] = value
            else:
                self._damage.report(id, f"the value of {field!r}")
        return self._record(id, fields, head, rows[0])

    def create(self, id: str, record: Record) -> Literal[Outcome.REVOKED] | None:
        ownership = record.ownership
        if ownership is not None and self._is_revoked(ownership, record.created):
            return Outcome.REVOKED
        self._insert(id, record)
        return None

    def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        if deletes:
            deletes = {*deletes}
            sets = {field: value for field, value in sets.items() if field not in deletes}
        if not self._touch(id, sets, deletes, now, deadline, max_size):
            head = self._find(id, now)
            return Outcome.TOO_LARGE if isinstance(head, _Head) else head
        self._set(id, sets)
        if deletes:
            self.executemany("DELETE FROM session_values WHERE session_id = ? AND key = ?", [(id, field) for field in deletes])
            if self.execute("SELECT 1 FROM session_values WHERE session_id = ?", (id,)).fetchone() is None:
                self._end(id, now, None)
                return Outcome.EMPTIED
        return Outcome.WRITTEN

    def swap(
        self, id: str, field: str, old: bytes | None, new: bytes, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        row = self.execute("SELECT value FROM session_values WHERE session_id = ? AND key = ?", (id, field)).fetchone()
        # A value that load() leaves out is missing here too.
        stored = row[0] if row is not None and isinstance(row[0], bytes) else None
        if stored != old:
            head = self._find(id, now)
            return Outcome.CONFLICT if isinstance(head, _Head) else head
        return self.apply(id, {field: new}, (), now, deadline, max_size)

    def rename(self, id: str, new_id: str, record: Record, version: int, now: float) -> Outcome:
        head = self._find(id, now)
        if not isinstance(head, _Head):
            return head
        if head.version != version:
            return Outcome.CONFLICT
        if record.ownership is not None and self._is_new(id, record.ownership) and self._is_revoked(record.ownership, now):
            return Outcome.REVOKED
        self._end(id, now, new_id)
        self._insert(new_id, record)
        return Outcome.WRITTEN

    def destroy(self, id: str, now: float) -> None:
        for (living,) in self.execute(_LIVING, (id, now)).fetchall():
            self._end(living.decode(errors="replace"), now, None)

    def purge(self, now: float, limit: int) -> int:
        self.execute("DELETE FROM session_owners_ended WHERE ended <= ?", (now - TOMBSTONE,))
        return self.execute(_PURGE, (now, limit)).rowcount

    def set_owner(
        self,
        id: str,
        ownership: Ownership | None,
        sets: Mapping[str, bytes],
        deletes: Collection[str],
        now: float,
        deadline: float | None,
        max_size: int,
    ) -> Outcome:
        head = self._find(id, now)
        if isinstance(head, _Head) and ownership is not None and self._is_new(id, ownership) and self._is_revoked(ownership, now):
            return Outcome.REVOKED
        outcome = self.apply(id, sets, deletes, now, deadline, max_size)
        if outcome is Outcome.WRITTEN:
            self.execute(_TAG, (*_columns(ownership), id))
        return outcome

    def owned(self, owner: str, now: float) -> dict[str, Record]:
        found: dict[str, Record] = {}
        for row in self.execute(_OWNED, (owner, now)).fetchall():
            id = row[-1].decode(errors="replace")
            head = self._check(id, [row], now)
            if isinstance(head, _Head):
                found[id] = self._record(id, {}, head, row)
        return {id: record for id, record in found.items() if record.ownership is not None}

    def end_owned(self, owner: str, keep: Collection[str], now: float) -> int:
        ending = [id for id in self.owned(owner, now) if id not in keep]
        for id in ending:
            self._end(id, now, None)
        self.execute(_REMEMBER_END, (owner, now))
        return len(ending)

    def count(self, now: float) -> int:
        [(count,)] = self.execute(_COUNT, (now, now + 2 * TOMBSTONE))
        found: int = count
        return found

    def _is_new(self, id: str, ownership: Ownership) -> bool:
        return self.execute("SELECT 1 FROM sessions WHERE id = ? AND since = ?", (id, ownership.since)).fetchone() is None

    def _is_revoked(self, ownership: Ownership, now: float) -> bool:
        """Return whether *ownership* was made before all sessions of its owner were ended, less than a minute ago."""
        question = "SELECT 1 FROM session_owners_ended WHERE owner = ? AND ended > ? AND ended > ? AND ended <= ?"
        return self.execute(question, (ownership.owner, ownership.since, now - TOMBSTONE, now + MAX_SKEW)).fetchone() is not None

    def _record(self, id: str, fields: dict[str, bytes], head: _Head, row: tuple[Any, ...]) -> Record:
        owner, since, note = row[len(head) : len(head) + 3]
        ownership = None
        if owner is not None:
            if isinstance(since, float) and isinstance(note, bytes):
                ownership = Ownership(owner.decode(errors="replace"), note, since)
            else:
                self._damage.report(id, "its owner")
        return Record(fields, head.created, head.expires, head.deadline, head.version, ownership, head.seal)

    def _find(self, id: str, now: float) -> _Head | _Missing:
        return self._check(id, self.execute(_HEAD, (id,)).fetchall(), now)

    def _check(self, id: str, rows: list[tuple[Any, ...]], now: float) -> _Head | _Missing:
        if not rows:
            return Outcome.ABSENT
        head = _Head(*rows[0][:7])
        if not head.is_sound:
            self._damage.report(id, "its row")
            return Outcome.ABSENT
        if head.deadline <= now:
            return Outcome.ABSENT
        return Outcome.ENDED if head.ended else head

    def _insert(self, id: str, record: Record) -> None:
        times = (record.created, record.expires, record.deadline, record.version)
        self.execute(_CREATE, (id, *times, *_columns(record.ownership), size_of(record.fields), record.seal))
        self._set(id, record.fields)

    def _touch(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], now: float, deadline: float | None, max_size: int
    ) -> bool:
        """Raise the session's version and size, and move its deadline; return False where it isn't there, or would be too large."""
        first, *others = (*sets, *deletes) or (None,)
        growth = size_of(sets)
        for field in others:
            growth -= self._bytes(id, field)
        # Naming the deadline would cost a page of its index.
        statement, moved = (_TOUCH, ()) if deadline is None else (_MOVE, (deadline,))
        # Nearly always there is room even if nothing is replaced, and no statement is needed to look at the only field.
        if self.execute(statement, (growth, id, first, now, max_size, *moved)).rowcount > 0:
            return True
        replaced = self._bytes(id, first)
        room = max_size + replaced if growth > replaced else math.inf
        return self.execute(statement, (growth, id, first, now, room, *moved)).rowcount > 0

    def _bytes(self, id: str, field: str | None) -> int:
        """Return the bytes of the field's name and value, or 0 if there is no such field."""
        return next((bytes for (bytes,) in self.execute(_BYTES, (None, id, field))), 0)

    def _set(self, id: str, fields: Mapping[str, bytes]) -> None:
        for field, value in fields.items():
            self.execute(_SET, (id, field, _stored(value)))

    def _end(self, id: str, now: float, successor: str | None) -> None:
        until = now + TOMBSTONE
        self.execute(_END, (until, successor, id))
        self.execute("DELETE FROM session_values WHERE session_id = ?", (id,))


def _columns(ownership: Ownership | None) -> tuple[str | None, float | None, bytes | str | None]:
    """Return what the three columns of *ownership* hold."""
    return (None, None, None) if ownership is None else (ownership.owner, ownership.since, _stored(ownership.note))


def _stored(value: bytes) -> bytes | str:
    """Return *value* as SQLite is to keep it: JSON as text, of which it gives back the same bytes."""
    # No JSON begins like a sealed value, and an exception would cost more than this.
    if value < b"\t":
        return value
    try:
        _parse_json(value)
        return value.decode()
    except (ValueError, RecursionError):
        return value


def _each(calls: Sequence[_Call[Any]], make: Callable[[_Call[Any]], Any]) -> list[Any]:
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


def _create(file: Path, setting: str) -> None:
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
