"""The calls of the contract in SQL, made by the thread of a connection."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias

import msgspec

from gaman_session._damage import Damage
from gaman_session._driver import MAX_SKEW, TOMBSTONE, YEAR_10000, Outcome, Ownership, Record, size_of
from gaman_session._rules import NEVER, Ending, began_before, is_outdated, next_ending, still_counts
from gaman_session.drivers._sqlite import Database

_Missing: TypeAlias = Literal[Outcome.ENDED, Outcome.ABSENT]

# SQLite orders texts and blobs above all numbers.
_IS_SOUND: Final = f"""
created >= 0 AND created <= expires AND deadline >= 0 AND deadline <= expires AND expires < {YEAR_10000}
AND version >= 0 AND typeof(version) = 'integer' AND ended IN (0, 1)
AND size >= 0 AND typeof(size) = 'integer' AND typeof(seal) = 'blob'
"""
# See Ending in _rules.py. SQLite evaluates it once for each statement.
_MIN_VERSION: Final = "ifnull((SELECT min_version FROM session_ending), 0)"
_COLUMNS_OF_HEAD: Final = f"created, expires, deadline, version, ended, {_IS_SOUND}, seal, version < {_MIN_VERSION}"
_HEAD: Final = f"SELECT {_COLUMNS_OF_HEAD} FROM sessions WHERE id = ?"  # noqa: S608 - a constant
# For a session beyond a size, it returns the head only and reads no page of the values.
_LOAD: Final = f"""
SELECT {_COLUMNS_OF_HEAD}, owner, since, note, key, value
FROM sessions LEFT JOIN session_values ON session_id = id AND size <= ? WHERE id = ?
"""  # noqa: S608
# The length of a text is in characters, and that of a blob is known without reading all of its pages.
_BYTES: Final = """
SELECT length(CAST(key AS BLOB)) + iif(typeof(value) = 'blob', length(value), length(CAST(value AS BLOB)))
FROM session_values WHERE session_id = ?2 AND key = ?3
"""
# ?1 is by how many bytes the session grows if the field ?3 is new, and ?5 is its maximum size.
_TOUCH: Final = f"""
UPDATE sessions SET version = version + 1, size = max(0, size + ?1 - ifnull(({_BYTES}), 0))
WHERE id = ?2 AND deadline > ?4 AND NOT ended AND {_IS_SOUND} AND size + ?1 <= ?5 AND version >= {_MIN_VERSION}
"""  # noqa: S608
_MOVE: Final = _TOUCH.replace("\nWHERE id", ", deadline = min(?6, expires)\nWHERE id")
_CREATE: Final = f"INSERT INTO sessions VALUES (?, ?, ?, ?, ? + {_MIN_VERSION}, 0, NULL, ?, ?, ?, ?, ?)"  # noqa: S608
_SET: Final = "INSERT INTO session_values VALUES (?, ?, ?) ON CONFLICT (session_id, key) DO UPDATE SET value = excluded.value"
_END: Final = """
UPDATE sessions SET created = ?1, expires = ?1, deadline = ?1, version = 0, ended = 1, successor = ?2,
    owner = NULL, since = NULL, note = NULL, size = 0, seal = x''
WHERE id = ?3
"""
_SET_OWNER: Final = "UPDATE sessions SET owner = ?, since = ?, note = ? WHERE id = ?"
_OWNED: Final = f"""
SELECT {_COLUMNS_OF_HEAD}, owner, since, note, id
FROM sessions WHERE owner = ? AND deadline > ?
"""  # noqa: S608
# A time that is further ahead was stored before the clock was set back.
_REVOKE: Final = f"""
INSERT INTO session_owners_ended VALUES (?, ?) ON CONFLICT (owner) DO UPDATE
SET ended = iif(ended > excluded.ended + {MAX_SKEW}, excluded.ended, max(ended, excluded.ended))
"""  # noqa: S608
# The index is enough to count all rows. Tombstones are found among the rows with a near deadline: it is at most a minute ahead, or
# two by a clock that is a little ahead.
_COUNT: Final = """
SELECT (SELECT count(*) FROM sessions WHERE deadline > ?1)
    - (SELECT count(*) FROM sessions WHERE deadline > ?1 AND deadline <= ?2 AND ended)
"""
# Until a purge has removed all that end_everyone() ended, the index isn't enough.
_COUNT_SINCE: Final = "SELECT count(*) FROM sessions WHERE deadline > ? AND NOT ended AND version >= ?"
# UNION, unlike UNION ALL, ends if tombstones lead in a circle.
_LIVING: Final = """
WITH RECURSIVE ids (id) AS (SELECT ?1 UNION SELECT successor FROM ids JOIN sessions USING (id) WHERE ended AND deadline > ?2)
SELECT id FROM ids JOIN sessions USING (id) WHERE NOT ended AND deadline > ?2
"""
_PURGE: Final = "DELETE FROM sessions WHERE id IN (SELECT id FROM sessions WHERE deadline <= ? ORDER BY deadline LIMIT ?)"

_END_EVERYONE: Final = "INSERT INTO session_ending VALUES (?, ?, '')"
_NEXT_ROWS: Final = "SELECT id, version < ? AND NOT ended FROM sessions WHERE id > ? ORDER BY id LIMIT ?"

_parse_json: Final = msgspec.json.Decoder(msgspec.Raw).decode

_MAX_STEPS: Final = 20
"""How many times a purge looks at its limit of rows for one that end_everyone() ended."""


class IsLarge(Exception):
    """The session is large, so it has to be loaded by itself."""


class _Head(NamedTuple):
    """A row of the table `sessions`, and whether a driver can have written it."""

    created: float
    expires: float
    deadline: float
    version: int
    ended: int
    is_sound: int
    seal: bytes
    is_outlived: int
    """Whether end_everyone() has ended it."""


class SessionTables(Database):
    """The sessions, as the thread of a connection sees them; a call that writes is in a transaction."""

    def __init__(self, file: Path, timeout: float, damage: Damage) -> None:
        super().__init__(file, timeout)
        self._damage = damage

    def load(self, id: str, now: float, max_size: float) -> Record | Literal[Outcome.ENDED] | None:
        rows = self.execute(_LOAD, (max_size, id)).fetchall()
        head = self._check(id, rows, now)
        if not isinstance(head, _Head):
            return None if head is Outcome.ABSENT else head
        fields: dict[str, bytes] = {}
        for *_, key, value in rows:
            if key is None:
                # The only row of the join for a session with no values, or with too many bytes of them.
                if max_size < math.inf:
                    raise IsLarge
                continue
            field = key.decode(errors="replace")
            if isinstance(value, bytes) and field.encode() == key:
                fields[field] = value
            else:
                self._damage.report(id, f"the value of {field!r}")
        return self._record(id, fields, head, rows[0])

    def create(self, id: str, record: Record) -> Literal[Outcome.REVOKED] | None:
        ownership = record.ownership
        if began_before(record.created, self._ending()):
            return Outcome.REVOKED
        if ownership is not None and self._is_revoked(ownership, record.created):
            return Outcome.REVOKED
        self._insert(id, record)
        return None

    def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
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
        self, id: str, field: str, old: bytes | None, new: bytes, *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        row = self.execute("SELECT value FROM session_values WHERE session_id = ? AND key = ?", (id, field)).fetchone()
        # A damaged value is missing here too, as in load().
        stored = row[0] if row is not None and isinstance(row[0], bytes) else None
        if stored != old:
            head = self._find(id, now)
            return Outcome.CONFLICT if isinstance(head, _Head) else head
        return self.apply(id, {field: new}, (), now=now, deadline=deadline, max_size=max_size)

    def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
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

    def destroy(self, id: str, *, now: float) -> None:
        for (living,) in self.execute(_LIVING, (id, now)).fetchall():
            self._end(living.decode(errors="replace"), now, None)

    def purge(self, now: float, limit: int) -> int:
        self.execute("DELETE FROM session_owners_ended WHERE ended <= ?", (now - TOMBSTONE,))
        return self.execute(_PURGE, (now, limit)).rowcount or self._sweep(now, limit)

    def set_owner(
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
        head = self._find(id, now)
        if isinstance(head, _Head) and ownership is not None and self._is_new(id, ownership) and self._is_revoked(ownership, now):
            return Outcome.REVOKED
        outcome = self.apply(id, sets, deletes, now=now, deadline=deadline, max_size=max_size)
        if outcome is Outcome.WRITTEN:
            self.execute(_SET_OWNER, (*_columns(ownership), id))
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
        self.execute(_REVOKE, (owner, now))
        return len(ending)

    def end_everyone(self, now: float) -> None:
        ending = next_ending(self._ending(), now)
        self.execute("DELETE FROM session_ending")
        self.execute(_END_EVERYONE, (ending.min_version, ending.at))

    def count(self, now: float) -> int:
        ending, swept = self._ending(), self._swept()
        if swept is None:
            [(count,)] = self.execute(_COUNT, (now, now + 2 * TOMBSTONE))
        else:
            [(count,)] = self.execute(_COUNT_SINCE, (now, ending.min_version))
        found: int = count
        return found

    def _ending(self) -> Ending:
        return next((Ending(*row) for row in self.execute("SELECT min_version, at FROM session_ending")), NEVER)

    def _swept(self) -> str | None:
        """Return the id up to which a purge has removed the rows that end_everyone() ended, or None if there are none."""
        rows = self.execute("SELECT swept FROM session_ending WHERE swept IS NOT NULL").fetchall()
        return next((swept.decode(errors="replace") for (swept,) in rows), None)

    def _sweep(self, now: float, limit: int) -> int:
        """Remove up to *limit* rows that end_everyone() ended; return how many. They stay for a minute, like tombstones."""
        ending, swept = self._ending(), self._swept()
        if swept is None or still_counts(ending.at, now):
            return 0
        for _ in range(_MAX_STEPS):
            rows = self.execute(_NEXT_ROWS, (ending.min_version, swept, limit)).fetchall()
            swept = rows[-1][0].decode(errors="replace") if rows else None
            self.execute("UPDATE session_ending SET swept = ?", (swept,))
            gone = [(id.decode(errors="replace"),) for id, is_outlived in rows if is_outlived]
            self.executemany("DELETE FROM sessions WHERE id = ?", gone)
            if gone or swept is None:
                return len(gone)
        return 0

    def _is_new(self, id: str, ownership: Ownership) -> bool:
        return self.execute("SELECT 1 FROM sessions WHERE id = ? AND since = ?", (id, ownership.since)).fetchone() is None

    def _is_revoked(self, ownership: Ownership, now: float) -> bool:
        """Return whether all sessions of the owner were ended after *ownership* was made, less than a minute ago."""
        if is_outdated(ownership, self._ending(), now):
            return True
        query = "SELECT 1 FROM session_owners_ended WHERE owner = ? AND ended > ? AND ended > ? AND ended <= ?"
        return self.execute(query, (ownership.owner, ownership.since, now - TOMBSTONE, now + MAX_SKEW)).fetchone() is not None

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
        head = _Head(*rows[0][:8])
        if not head.is_sound:
            self._damage.report(id, "its row")
            return Outcome.ABSENT
        if head.deadline <= now:
            return Outcome.ABSENT
        if head.is_outlived and not head.ended:
            return Outcome.ENDED if still_counts(self._ending().at, now) else Outcome.ABSENT
        return Outcome.ENDED if head.ended else head

    def _insert(self, id: str, record: Record) -> None:
        times = (record.created, record.expires, record.deadline, record.version)
        self.execute(_CREATE, (id, *times, *_columns(record.ownership), size_of(record.fields), record.seal))
        self._set(id, record.fields)

    def _touch(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], now: float, deadline: float | None, max_size: int
    ) -> bool:
        """Raise the session's version and size, and move its deadline; return False if it isn't live or would be too large."""
        first, *others = (*sets, *deletes) or (None,)
        growth = size_of(sets)
        for field in others:
            growth -= self._bytes(id, field)
        # A statement that sets the deadline also writes a page of its index.
        statement, moved = (_TOUCH, ()) if deadline is None else (_MOVE, (deadline,))
        # This assumes that the first field is new. It nearly always fits even then, so its old size is rarely needed.
        if self.execute(statement, (growth, id, first, now, max_size, *moved)).rowcount > 0:
            return True
        replaced = self._bytes(id, first)
        room = max_size + replaced if growth > replaced else math.inf
        return self.execute(statement, (growth, id, first, now, room, *moved)).rowcount > 0

    def _bytes(self, id: str, field: str | None) -> int:
        """Return the bytes of the field's name and value, or 0 if it is missing."""
        return next((bytes for (bytes,) in self.execute(_BYTES, (None, id, field))), 0)

    def _set(self, id: str, fields: Mapping[str, bytes]) -> None:
        for field, value in fields.items():
            self.execute(_SET, (id, field, _stored(value)))

    def _end(self, id: str, now: float, successor: str | None) -> None:
        until = now + TOMBSTONE
        self.execute(_END, (until, successor, id))
        self.execute("DELETE FROM session_values WHERE session_id = ?", (id,))


def _columns(ownership: Ownership | None) -> tuple[str | None, float | None, bytes | str | None]:
    """Return the values of the three columns of *ownership*."""
    return (None, None, None) if ownership is None else (ownership.owner, ownership.since, _stored(ownership.note))


def _stored(value: bytes) -> bytes | str:
    """Return *value* as SQLite stores it: JSON as text, of which it returns the same bytes."""
    # No JSON begins like a sealed value. The exception would cost a microsecond.
    if value < b"\t":
        return value
    try:
        _parse_json(value)
        return value.decode()
    except (ValueError, RecursionError):
        return value
