"""The documents of sessions: what they hold, the filters that find them, and the updates that change them.

A session is `{_id, created, expires, deadline, version, fields}`. Times are dates, and `fields` holds the values by key. JSON, as
with `session(encrypt=False)`, is stored in MongoDB's own types, so that a query can ask for `{"fields.user.id": 1}`. Any other
value is binary. A session that has ever held such JSON is `native`, and a document of more than LARGE bytes is `large`. In the name
of a field, `%`, `.`, `$` and NUL are percent-encoded, and the empty name is `%`.

A session with an owner also has the fields `owner`, `since` (a number) and `note`. A tombstone is `{_id, ended: true, deadline}`,
with a `successor` after a rename.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import unquote

import bson
import msgspec
from bson import DatetimeMS, Int64
from bson.raw_bson import RawBSONDocument
from msgspec import Struct

from gaman_session._damage import Damage
from gaman_session._driver import LARGE, TOMBSTONE, YEAR_10000, Outcome, Ownership, Record, is_sound, size_of

Document: TypeAlias = dict[str, Any]
Pipeline: TypeAlias = list[Document]

# A damaged document is absent for a write too: a write takes only a document of this shape.
_TYPES: Final = {"created": "date", "expires": "date", "deadline": "date", "version": "long", "fields": "object"}
_SHAPE: Final = {
    "required": list(_TYPES),
    "properties": {name: {"bsonType": kind} for name, kind in _TYPES.items()},
    "not": {"required": ["ended"]},
}
# The same as an expression of a pipeline, with a deadline within the absolute limit. A deadline between two dates is a date. The
# update's filter has only the _id, because the server takes longer to plan any other filter than to make the update.
_OTHERS: Final = {"created": "date", "version": "long", "fields": "object", "ended": "missing"}
_LAST: Final = DatetimeMS(YEAR_10000 * 1000 - 1)
_IS_SOUND: Final = {
    "$and": [
        {"$lte": ["$deadline", "$expires"]},
        {"$lte": ["$expires", _LAST]},
        {"$eq": [[{"$type": f"${name}"} for name in _OTHERS], {"$literal": [*_OTHERS.values()]}]},
    ]
}
# Encoded once, because every update sends it.
_SENT_IS_SOUND: Final = RawBSONDocument(bson.encode(_IS_SOUND))
REFUSAL: Final = {"$toInt": "$_id"}
"""Fails with the code REFUSED, because an id isn't a number. A batch thus reports which updates found no live session."""
REFUSED: Final = 241
_IS_EMPTY: Final = {"$eq": ["$fields", {"$literal": dict[str, Any]()}]}
_GROWTH: Final = 6
"""How many times larger the JSON of one of MongoDB's own values can be: one octet of text may become `\\u0000`."""
_IS_LARGE: Final = {"$cond": [{"$gt": [{"$bsonSize": "$$ROOT"}, LARGE]}, True, "$$REMOVE"]}
_SMALL_PART: Final = 16
"""A write of at most this part of the allowed sizes is checked by what it may add, because the server is faster with that."""
_MAX_LEVELS: Final = 50
"""MongoDB takes a hundred levels, including those of the document and of the command around it."""

_ESCAPES: Final = str.maketrans({character: f"%{ord(character):02X}" for character in "%.$\0"})


class Change(Struct, frozen=True):
    """What one call changes of a session; *owner* is the stage of the update that sets or unsets the owner."""

    sets: Mapping[str, bytes]
    deletes: Collection[str]
    now: float
    deadline: float | None
    max_size: int
    owner: Document | None = None
    min_version: int = 0
    """The version of a live session at least, see Ending."""

    def small_update(self) -> Pipeline | None:
        """Return the update of a live session that stays well within LARGE and the size allowed; it fails for any other document.

        Return None if the change does more than setting a few small values.
        """
        added, size = size_of(self.sets), min(self.max_size, LARGE)
        if added * _SMALL_PART > size or self.deletes or self.owner is not None:
            return None
        room = size - added
        has_room = {"$lte": [{"$bsonSize": "$$ROOT"}, {"$cond": ["$native", min((self.max_size - added) // _GROWTH, room), room]}]}
        return [{"$set": self._fields(has_room)}]

    def sized_update(self) -> Pipeline:
        """Return update(), which also fails where the session may then be larger than allowed.

        A session that is too large and doesn't grow is refused as well: the server doesn't compare the sizes before and after.
        """
        if not self.sets:
            return self.update()
        has_room = {"$lte": [{"$bsonSize": "$fields"}, {"$cond": ["$native", self.max_size // _GROWTH, self.max_size]}]}
        return self.update({"$set": {"version": {"$cond": [has_room, "$version", REFUSAL]}}})

    def update(self, *checks: Document) -> Pipeline:
        """Return the update of a live session, which fails for any other document and leaves it unchanged."""
        pipeline: Pipeline = [{"$set": self._fields()}]
        if self.owner is not None:
            pipeline.append(self.owner)
        if self.deletes:
            pipeline.append({"$unset": [path(field) for field in self.deletes]})
        pipeline += [*checks, {"$set": {"large": _IS_LARGE}}]
        if self.deletes:
            # With its version, which shows whether end_everyone() has ended it before.
            ended = {"$mergeObjects": [tombstone(self.now), {"version": "$version"}]}
            pipeline.append({"$replaceWith": {"$cond": [_IS_EMPTY, ended, "$$ROOT"]}})
        return pipeline

    def outgrows(self, fields: Mapping[str, bytes]) -> bool:
        """Return whether the change makes a session with these fields larger, and larger than allowed."""
        after = {field: data for field, data in {**fields, **self.sets}.items() if field not in self.deletes}
        return size_of(fields) < size_of(after) > self.max_size

    def _fields(self, *conditions: Document) -> Document:
        changed: Document = {}
        for field, data in self.sets.items():
            value = to_bson(data)
            if isinstance(value, bytes):
                changed[path(field)] = value
            else:
                changed[path(field)] = {"$literal": value}
                changed["native"] = True
        if self.min_version:
            conditions += ({"$gte": ["$version", Int64(self.min_version)]},)
        is_live = {"$and": [{"$gt": ["$deadline", date(self.now)]}, _SENT_IS_SOUND, *conditions]}
        changed["version"] = {"$cond": [is_live, {"$add": ["$version", 1]}, REFUSAL]}
        if self.deadline is not None:
            changed["deadline"] = {"$min": [date(self.deadline), "$expires"]}
        return changed


def to_document(record: Record) -> Document:
    """Return the document of *record*, without its id."""
    fields = {_escape(field): to_bson(data) for field, data in record.fields.items()}
    document: Document = {
        "created": date(record.created),
        "expires": date(record.expires),
        "deadline": date(record.deadline),
        "version": Int64(record.version),
        "fields": fields,
    }
    if not all(isinstance(value, bytes) for value in fields.values()):
        document["native"] = True
    if size_of(record.fields) > LARGE:
        document["large"] = True
    if record.seal:
        document["seal"] = record.seal
    if record.ownership is not None:
        document |= _owner_fields(record.ownership)
    return document


def to_record(document: Document | None, now: float, damage: Damage) -> Record | Literal[Outcome.ENDED] | None:
    """Return what a document holds: a session, ENDED for a tombstone, or None if it has expired or is damaged."""
    if document is None:
        return None
    # Matching these as a pattern would cost six times as much.
    get = document.get
    created, expires, deadline, version, fields = get("created"), get("expires"), get("deadline"), get("version"), get("fields")
    if (
        isinstance(created, DatetimeMS)
        and isinstance(expires, DatetimeMS)
        and isinstance(deadline, DatetimeMS)
        and isinstance(version, Int64)
        and isinstance(fields, dict)
        and "ended" not in document
        and is_sound(began := int(created) / 1000, ends := int(expires) / 1000, lasts := int(deadline) / 1000)
    ):
        if int(deadline) <= _milliseconds(now):
            return None
        values = _to_fields(document, damage)
        ownership = _to_ownership(document, damage) if "owner" in document else None
        seal = get("seal")
        return Record(values, began, ends, lasts, int(version), ownership, bytes(seal) if isinstance(seal, bytes) else b"")
    if get("ended") is True and isinstance(deadline, DatetimeMS):
        return Outcome.ENDED if int(deadline) > _milliseconds(now) else None
    damage.report(document["_id"], "its document")
    return None


def _to_fields(document: Document, damage: Damage) -> dict[str, bytes]:
    """Return the fields of a document, without the damaged ones."""
    found: dict[str, bytes] = {}
    for name, value in document["fields"].items():
        try:
            found[_unescape(name)] = bytes(value) if isinstance(value, bytes) else _encode(value)
        except (TypeError, ValueError):
            damage.report(document["_id"], f"the value of {name!r}")
    return found


def _to_ownership(document: Document, damage: Damage) -> Ownership | None:
    """Return the ownership in a document, or None if it is damaged."""
    owner, since, note = document["owner"], document.get("since"), document.get("note", b"")
    try:
        if isinstance(owner, str) and isinstance(since, float):
            return Ownership(owner, bytes(note) if isinstance(note, bytes) else _encode(note), since)
    except (TypeError, ValueError):
        pass
    damage.report(document["_id"], "its owner")
    return None


def _owner_fields(ownership: Ownership) -> Document:
    return {"owner": ownership.owner, "since": ownership.since, "note": to_bson(ownership.note)}


def owner_stage(ownership: Ownership | None) -> Document:
    """Return the stage of an update that gives a session to the owner of *ownership*, or to no owner."""
    if ownership is None:
        return {"$unset": ["owner", "since", "note"]}
    return {"$set": {name: {"$literal": value} for name, value in _owner_fields(ownership).items()}}


def live(id: str, now: float) -> Document:
    """Return the filter that finds the session if it is live and sound."""
    return {"_id": id, "deadline": {"$gt": date(now)}, "$jsonSchema": _SHAPE}


def owned_by(owner: str, now: float) -> Document:
    """Return the filter that finds the owner's sessions by the index."""
    return {"owner": owner, "ended": None, "deadline": {"$gt": date(now)}}


def tombstone(now: float) -> Document:
    """Return the document that takes the place of a session that ends at *now*, without its id."""
    return {"ended": True, "deadline": date(now + TOMBSTONE)}


def replace_by_tombstone(now: float) -> Pipeline:
    """Return the update that replaces a document by a tombstone, unless it is one that still counts."""
    stands = {"$and": [{"$eq": ["$ended", True]}, {"$gt": ["$deadline", date(now)]}]}
    return [{"$replaceWith": {"$cond": [stands, "$$ROOT", tombstone(now)]}}]


def date(time: float) -> DatetimeMS:
    """Return the nearest date."""
    return DatetimeMS(_milliseconds(time))


def _milliseconds(time: float) -> int:
    # Rounding down would lose a millisecond where the product falls just short of a whole number.
    return round(time * 1000)


def path(field: str) -> str:
    """Return where a document holds a field."""
    return f"fields.{_escape(field)}"


def _escape(field: str) -> str:
    return field.translate(_ESCAPES) if field else "%"


def _unescape(name: str) -> str:
    """Return the field of a *name* in a document, or raise ValueError for one that _escape() would not give."""
    field = unquote(name) if name != "%" else ""
    if _escape(field) != name:
        raise ValueError(name)
    field.encode()
    return field


def to_bson(data: bytes) -> Any:
    """Return the value of the JSON in *data* if MongoDB gives back the same bytes, otherwise *data*."""
    # No JSON begins like a sealed value. The exception would cost a microsecond.
    if data < b"\t":
        return data
    try:
        value = msgspec.json.decode(data)
        return value if _encode(value) == data and _fits(value, _MAX_LEVELS) else data
    except (ValueError, RecursionError):
        return data


def _fits(value: Any, levels: int) -> bool:
    kind: type[Any] = value.__class__
    if kind is dict:
        # A $ may give a key a special meaning, as in {"$ref": ..., "$id": ...}.
        return levels > 0 and all("\0" not in key and key[:1] != "$" and _fits(inner, levels - 1) for key, inner in value.items())
    if kind is list:
        return levels > 0 and all(_fits(inner, levels - 1) for inner in value)
    return kind is not int or -(2**63) <= value < 2**63


def _number(value: Any) -> int:
    if isinstance(value, Int64):
        return int(value)
    raise TypeError(f"JSON has no {type(value).__name__}")


_encode: Final = msgspec.json.Encoder(enc_hook=_number).encode
