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

import math
import os
import sqlite3
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal

from gaman.errors import ConfigError, GamanError
from gaman_session._damage import Damage
from gaman_session._driver import LARGE, Outcome, Ownership, Record
from gaman_session._errors import SessionStoreError
from gaman_session._paths import expand
from gaman_session.drivers._checks import check_timeout
from gaman_session.drivers._reports import Reporter, reports
from gaman_session.drivers._sqlite import COLUMNS, Connection, create_file
from gaman_session.drivers._sqlite_sessions import IsLarge, Sessions

# Nobody writes while one purges, and so many sessions are a matter of two milliseconds.
_PURGED_AT_ONCE: Final = 50
_DAY: Final = 86_400


class SQLDriver(Reporter):
    """Keeps sessions in *file*, which is created for this user alone, with its folder if that is missing.

    A call waits *timeout* seconds at most for a lock that another process holds, and as long again for the calls before it; reading
    waits for nobody who writes. Writes that are made at the same moment share a transaction, and each is answered when it is on the
    disk, where it survives a loss of power. The disk must be a local one, for SQLite's locks don't reach over a network.
    """

    name = "sql"
    shared = True

    _failures = (Exception,)
    # The only wait is for a lock, and SQLite bounds it.
    _limit = nullcontext()

    _reader: Connection[Sessions]
    _large_reader: Connection[Sessions]
    _writer: Connection[Sessions]

    def __init__(self, *, file: str | os.PathLike[str] = "sessions.db", timeout: float = 5) -> None:
        path = os.fspath(file) if isinstance(file, (str, os.PathLike)) else None
        if not isinstance(path, str) or path in ("", ":memory:") or "\0" in path:
            raise ConfigError(f"the sql driver has file={file!r}; it takes the path of a file on a disk")
        check_timeout("sql", timeout, "a number of seconds above 0, and below a day", below=_DAY)
        self._file = Path(expand(path, f"the sql driver has file={path!r}"))
        self._timeout = timeout
        self._damage = Damage("sql")
        self._connections: list[Connection[Sessions]] = []

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

    @reports("load a session")
    async def load(self, id: str, *, now: float) -> Record | Literal[Outcome.ENDED] | None:
        """Return the session, ENDED, or None, by one SELECT."""
        try:
            return await self._reader.call(lambda sessions: sessions.load(id, now, LARGE))
        except IsLarge:
            return await self._large_reader.call(lambda sessions: sessions.load(id, now, math.inf))

    @reports("create a session")
    async def create(self, id: str, record: Record) -> Literal[Outcome.REVOKED] | None:
        """Store a new session; an id that is taken raises SessionStoreError."""
        return await self._writer.call(lambda sessions: sessions.create(id, record))

    @reports("change a session")
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
        return await self._writer.call(lambda sessions: sessions.apply(id, sets, deletes, now, deadline, max_size))

    @reports("change a session")
    async def swap(
        self, id: str, field: str, old: bytes | None, new: bytes, *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        """Set one field if it still is *old*."""
        return await self._writer.call(lambda sessions: sessions.swap(id, field, old, new, now, deadline, max_size))

    @reports("rename a session")
    async def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
        """Replace the session by *record* under *new_id*, if nobody has written to it since *version*."""
        return await self._writer.call(lambda sessions: sessions.rename(id, new_id, record, version, now))

    @reports("end a session")
    async def destroy(self, id: str, *, now: float) -> None:
        """End the session, or the one that it was renamed to."""
        await self._writer.call(lambda sessions: sessions.destroy(id, now))

    @reports("remove what is over")
    async def purge(self, *, now: float, limit: int) -> int:
        """Remove what is over, a few at a time."""
        count = min(limit, _PURGED_AT_ONCE)
        return await self._writer.call(lambda sessions: sessions.purge(now, count))

    @reports("change a session")
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
        return await self._writer.call(lambda sessions: sessions.set_owner(id, ownership, sets, deletes, now, deadline, max_size))

    @reports("list the sessions of an owner")
    async def owned(self, owner: str, *, now: float) -> Mapping[str, Record]:
        """Return the owner's sessions, without their fields, by one SELECT."""
        return await self._reader.call(lambda sessions: sessions.owned(owner, now))

    @reports("end the sessions of an owner")
    async def end_owned(self, owner: str, *, keep: Collection[str], now: float) -> int:
        """End the owner's sessions but those to keep, in one transaction."""
        return await self._writer.call(lambda sessions: sessions.end_owned(owner, keep, now))

    @reports("count its sessions")
    async def count(self, *, now: float) -> int:
        """Return how many sessions there are, by the entries of an index."""
        return await self._reader.call(lambda sessions: sessions.count(now))

    async def _open(self) -> None:
        setting = f"the sql driver has file={str(self._file)!r}"
        try:
            create_file(self._file, setting)
            # In a WAL nobody who reads waits for one who writes, unless they share a connection.
            self._reader = await self._connect(Sessions.read)
            self._large_reader = await self._connect(Sessions.read)
            self._writer = await self._connect(Sessions.write)
            columns = await self._reader.perform(Sessions.columns)
        except OSError as cause:
            raise ConfigError(f"{setting}, which can't be created: {cause.strerror}; choose another place") from cause
        except GamanError:
            raise
        except Exception as cause:
            if getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
                raise ConfigError(f"{setting}, which is no database; choose another file") from cause
            raise SessionStoreError(self.name, f"open {str(self._file)!r}") from cause
        if columns != COLUMNS:
            raise ConfigError(f"{setting}, which has other tables named sessions or session_values; choose another file")

    async def _connect(self, run: Callable[[Sessions, Sequence[Callable[[Sessions], Any]]], list[Any]]) -> Connection[Sessions]:
        connection = Connection(partial(Sessions, self._file, self._timeout, self._damage), run)
        await connection.open()
        self._connections.append(connection)
        await connection.perform(lambda sessions: sessions.prepare(self._timeout))
        return connection
