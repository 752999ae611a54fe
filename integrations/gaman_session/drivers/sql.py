"""Sessions in SQLite: four tables in one file, for all processes of one machine.

The file may be a database with other tables too. The schema says what the columns mean; it is in `_sqlite.py` and in the file.
With `session(encrypt=False)` values are JSON, so SQL can query them. This query finds the sessions of user 7, and deleting a row of
`sessions` ends that session:

    SELECT id FROM sessions JOIN session_values ON session_id = id
    WHERE NOT ended AND deadline > unixepoch() AND key = 'user' AND json_extract(value, '$.id') = 7

The owner is then stored as set_owner() got it, and the note as JSON. This query finds the sessions of an owner by an index:

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
from typing import Any, Final, Literal, TypeVar

from gaman.errors import ConfigError, GamanError
from gaman_session._damage import Damage
from gaman_session._driver import LARGE, Outcome, Ownership, Record
from gaman_session._errors import SessionStoreError
from gaman_session._paths import expand
from gaman_session.drivers._checks import check_timeout
from gaman_session.drivers._reports import reports
from gaman_session.drivers._sqlite import COLUMNS, Connection, create_file
from gaman_session.drivers._sqlite_sessions import IsLarge, SessionTables
from gaman_session.drivers._transactions import TransactionDriver

T = TypeVar("T")

_MAX_PURGED: Final = 50
"""Sessions that one purge removes. Other writes wait for it, and fifty take two milliseconds."""
_DAY: Final = 86_400


class SQLDriver(TransactionDriver):
    """Keeps sessions in *file*. A missing file and its missing folder are created with access for this user only.

    A call waits at most *timeout* seconds for a lock that another process holds, and as long again for the calls before it. Reads
    don't wait for writes. Concurrent writes share a transaction, and each is acknowledged when it is on the disk, where it survives
    a loss of power. The disk must be a local one, because SQLite's locks don't work over a network.
    """

    name = "sql"
    shared = True

    _failures = (Exception,)
    # SQLite itself bounds the only wait, which is for a lock.
    _limit = nullcontext()

    _reader: Connection[SessionTables]
    _large_reader: Connection[SessionTables]
    _writer: Connection[SessionTables]

    def __init__(self, *, file: str | os.PathLike[str] = "sessions.db", timeout: float = 5) -> None:
        path = os.fspath(file) if isinstance(file, (str, os.PathLike)) else None
        if not isinstance(path, str) or path in ("", ":memory:") or "\0" in path:
            raise ConfigError(f"the sql driver has file={file!r}; it takes the path of a file on a disk")
        check_timeout("sql", timeout, "a number of seconds above 0, and below a day", below=_DAY)
        self._file = Path(expand(path, "the sql driver has file"))
        self._timeout = timeout
        self._damage = Damage("sql")
        self._connections: list[Connection[SessionTables]] = []

    async def open(self) -> None:
        """Connect, and create the file and its tables if they are missing.

        ConfigError says that the file can't be created, can be written to by other users, isn't a database, or has other tables of
        these names. SessionStoreError says that SQLite could not open it.
        """
        try:
            await self._open()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Finish the calls in flight, and close the file."""
        while self._connections:
            await self._connections.pop().close()

    @reports("load a session")
    async def load(self, id: str, *, now: float) -> Record | Literal[Outcome.ENDED] | None:
        """Return the session, ENDED, or None, by one SELECT."""
        try:
            return await self._reader.call(lambda sessions: sessions.load(id, now, LARGE))
        except IsLarge:
            return await self._large_reader.call(lambda sessions: sessions.load(id, now, math.inf))

    @reports("load sessions")
    async def load_all(self, ids: Sequence[str], *, now: float) -> list[Record | Literal[Outcome.ENDED] | None]:
        """Return what load() does for each of *ids*, by a SELECT each."""
        try:
            return await self._reader.call(lambda sessions: [sessions.load(id, now, LARGE) for id in ids])
        except IsLarge:
            return await self._large_reader.call(lambda sessions: [sessions.load(id, now, math.inf) for id in ids])

    @reports("remove expired sessions")
    async def purge(self, *, now: float, limit: int) -> int:
        """Remove a few expired sessions and tombstones."""
        count = min(limit, _MAX_PURGED)
        return await self._writer.call(lambda sessions: sessions.purge(now, count))

    @reports("list the sessions of an owner")
    async def owned(self, owner: str, *, now: float) -> Mapping[str, Record]:
        """Return the owner's sessions, without their fields, by one SELECT."""
        return await self._reader.call(lambda sessions: sessions.owned(owner, now))

    @reports("end the sessions of an owner")
    async def end_owned(self, owner: str, *, keep: Collection[str], now: float) -> int:
        """End the owner's sessions except those in *keep*, in one transaction."""
        return await self._writer.call(lambda sessions: sessions.end_owned(owner, keep, now))

    @reports("end all sessions")
    async def end_everyone(self, *, now: float) -> None:
        """End every session, by writing one row."""
        await self._writer.call(lambda sessions: sessions.end_everyone(now))

    @reports("count its sessions")
    async def count(self, *, now: float) -> int:
        """Return how many sessions there are, by counting an index, or after end_everyone() all rows until they are purged."""
        return await self._reader.call(lambda sessions: sessions.count(now))

    async def _transact(self, change: Callable[[SessionTables], T], *ids: str, now: float, ownership: Ownership | None = None) -> T:
        return await self._writer.call(change)

    async def _open(self) -> None:
        setting = f"the sql driver has file={str(self._file)!r}"
        try:
            create_file(self._file, setting)
            # With a WAL, reads don't wait for writes, unless they share a connection.
            self._reader = await self._connect(SessionTables.read)
            self._large_reader = await self._connect(SessionTables.read)
            self._writer = await self._connect(SessionTables.write)
            columns = await self._reader.perform(SessionTables.columns)
        except OSError as cause:
            raise ConfigError(f"{setting}, which can't be created: {cause.strerror}; choose another place") from cause
        except GamanError:
            raise
        except Exception as cause:
            if getattr(cause, "sqlite_errorcode", None) == sqlite3.SQLITE_NOTADB:
                raise ConfigError(f"{setting}, which isn't a database; choose another file") from cause
            raise SessionStoreError(self.name, f"open {str(self._file)!r}") from cause
        if columns != COLUMNS:
            raise ConfigError(f"{setting}, which has other tables named sessions or session_values; choose another file")

    async def _connect(
        self, run: Callable[[SessionTables, Sequence[Callable[[SessionTables], Any]]], list[Any]]
    ) -> Connection[SessionTables]:
        connection = Connection(partial(SessionTables, self._file, self._timeout, self._damage), run)
        await connection.open()
        self._connections.append(connection)
        await connection.perform(lambda sessions: sessions.prepare(self._timeout))
        return connection
