"""A session's record as Redis keeps it: the fields of a hash, the script's arguments that store it, and its way back."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from secrets import token_urlsafe
from typing import Any, Final, Literal

from gaman_session._driver import Outcome, Ownership, Record, is_sound

OWNERSHIP: Final = ("owner", "since", "note")
"""The fields that hold an Ownership."""
_COLON: Final = ord(":")
_OUTCOMES: Final[Mapping[bytes | None, Outcome]] = {None: Outcome.ABSENT, **{outcome.name.encode(): outcome for outcome in Outcome}}
_MAX_DIGITS: Final = 14


def read_record(found: Mapping[bytes, bytes], now: float) -> Record | Literal[Outcome.ENDED] | None:
    """Return the session in the hash *found*, ENDED for a tombstone, or None if it has expired; ValueError: it is damaged."""
    try:
        deadline = float(found[b"deadline"])
        if not deadline > now:
            return None
        if b"ended" in found:
            return Outcome.ENDED
        fields = {name[1:].decode(errors="replace"): value for name, value in found.items() if name and name[0] == _COLON}
        ownership = Ownership(found[b"owner"].decode(), found[b"note"], float(found[b"since"])) if b"owner" in found else None
        created, expires, version = float(found[b"created"]), float(found[b"expires"]), int(found[b"version"])
        # The script writes whole numbers like this, and takes no others.
        digits, size = found[b"version"], found[b"size"]
        is_whole = digits.isdigit() and size.isdigit() and len(digits) <= _MAX_DIGITS >= len(size)
        if not (is_whole and is_sound(created, expires, deadline)):
            raise ValueError("the hash is damaged")
    except KeyError as cause:
        raise ValueError("the hash is damaged") from cause
    return Record(fields, created, expires, deadline, version, ownership, found.get(b"seal", b""))


def values_and_arguments(record: Record) -> tuple[Sequence[bytes], Sequence[Any]]:
    """Return the values and the last arguments with which the script stores *record*."""
    times = [repr(time) for time in (record.created, record.expires, record.deadline)]
    names, values = field_names(record.fields), [*record.fields.values()]
    if record.seal:
        names.append("seal")
        values.append(record.seal)
    if record.ownership is not None:
        names += OWNERSHIP
        values += ownership_values(record.ownership)
    return values, (token_urlsafe(12), *times, names)


def ownership_values(ownership: Ownership) -> Sequence[bytes]:
    """Return the values of the fields OWNERSHIP."""
    return (ownership.owner.encode(), repr(ownership.since).encode(), ownership.note)


def since_argument(ownership: Ownership | None) -> str | Literal[False]:
    """Return when the ownership was made, as the script takes it."""
    return ownership is not None and repr(ownership.since)


def field_names(fields: Iterable[str]) -> list[str]:
    """Return the names that the hash has for a session's own *fields*."""
    return [":" + field for field in fields]


def deadline_argument(deadline: float | None) -> str | Literal[False]:
    """Return *deadline* as the script takes it."""
    # A nil would end the list of arguments in Lua.
    return False if deadline is None else repr(deadline)


def read_outcome(word: bytes | None) -> Outcome:
    """Return the Outcome that the script's *word* names; no word stands for an absent session."""
    return _OUTCOMES[word]
