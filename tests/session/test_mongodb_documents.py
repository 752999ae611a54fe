"""Documents, filters and updates of the MongoDB driver, without a server."""

from __future__ import annotations

import logging
from typing import Any

import msgspec
import pytest
from bson import DatetimeMS, Int64
from hypothesis import given
from hypothesis import strategies as st

from gaman.session import TOMBSTONE, Outcome, Ownership, Record
from gaman_session._damage import Damage
from gaman_session._driver import LARGE
from gaman_session.drivers._mongodb_documents import (
    REFUSED,
    Change,
    date,
    live,
    owned_by,
    owner_stage,
    path,
    replace_by_tombstone,
    to_bson,
    to_document,
    to_record,
    tombstone,
)

NOW = 4_000_000_000.0
ID = "a" * 64
MAX_SIZE = 1 << 20
SEALED = b"\1sealed"
ORDINARY = Record({"key": SEALED}, NOW, NOW + 1000, NOW + 500, 7)
OWNED = Record({"key": b'{"id":7}'}, NOW, NOW + 1000, NOW + 500, 7, Ownership("user:1", b'"a phone"', NOW), b"\1seal")


def change(
    sets: dict[str, bytes], *deletes: str, deadline: float | None = None, max_size: int = MAX_SIZE, owner: Any = None
) -> Change:
    return Change(sets, deletes, NOW, deadline, max_size, owner)


def read(document: dict[str, Any], now: float = NOW) -> Record | Outcome | None:
    return to_record({"_id": ID, **document}, now, Damage("mongodb"))


def stages(pipeline: list[dict[str, Any]]) -> list[str]:
    return [name for stage in pipeline for name in stage]


# Documents


@pytest.mark.parametrize("record", [ORDINARY, OWNED], ids=["ordinary", "owned"])
def test_a_record_comes_back_from_its_document(record: Record) -> None:
    assert read(to_document(record)) == record


def test_a_document_has_dates_a_long_version_and_its_fields() -> None:
    assert to_document(ORDINARY) == {
        "created": DatetimeMS(int(NOW) * 1000),
        "expires": DatetimeMS(int(NOW + 1000) * 1000),
        "deadline": DatetimeMS(int(NOW + 500) * 1000),
        "version": Int64(7),
        "fields": {"key": SEALED},
    }


def test_a_document_with_json_is_native_and_has_its_owner_and_seal() -> None:
    document = to_document(OWNED)
    assert document["fields"] == {"key": {"id": 7}}
    assert document["native"] is True
    assert (document["owner"], document["since"], document["note"], document["seal"]) == ("user:1", NOW, "a phone", b"\1seal")


@pytest.mark.parametrize(("size", "is_large"), [(LARGE - 3, False), (LARGE - 2, True)])
def test_a_document_is_large_beyond_the_size_of_its_fields(size: int, is_large: bool) -> None:
    document = to_document(Record({"key": bytes(size)}, NOW, NOW + 1, NOW + 1))
    assert document.get("large", False) is is_large


def test_no_document_is_no_session() -> None:
    assert to_record(None, NOW, Damage("mongodb")) is None


def test_a_session_is_expired_at_its_deadline() -> None:
    document = to_document(ORDINARY)
    assert isinstance(read(document, NOW + 499.999), Record)
    assert read(document, NOW + 500) is None


def test_a_tombstone_is_ended_until_its_deadline() -> None:
    assert read(tombstone(NOW)) is Outcome.ENDED
    assert read({**tombstone(NOW), "successor": "b" * 64}) is Outcome.ENDED
    assert read(tombstone(NOW), NOW + TOMBSTONE) is None


@pytest.mark.parametrize(
    "damage",
    [
        {"created": NOW},
        {"expires": None},
        {"deadline": "later"},
        {"version": 1},
        {"fields": []},
        {"ended": False},
        {"ended": 1},
        {"created": DatetimeMS(int(NOW + 2000) * 1000)},
        {"deadline": DatetimeMS(int(NOW + 2000) * 1000)},
    ],
    ids=str,
)
def test_a_damaged_document_is_no_session_and_is_reported(damage: dict[str, Any], caplog: pytest.LogCaptureFixture) -> None:
    assert read({**to_document(ORDINARY), **damage}) is None
    assert [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING] == [
        f"session {ID}: its document is damaged and counts as absent"
    ]


def test_damaged_fields_and_a_damaged_owner_are_left_out_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    document = to_document(OWNED)
    document["fields"] |= {"a%41": 1, "date": DatetimeMS(0)}
    document["since"] = "then"
    found = read(document)
    assert isinstance(found, Record)
    assert (found.fields, found.ownership) == ({"key": b'{"id":7}'}, None)
    assert len(caplog.records) == 3


def test_a_time_is_rounded_to_the_nearest_millisecond() -> None:
    assert 1.001 * 1000 < 1001
    assert date(1.001) == DatetimeMS(1001)
    assert (date(4.0004), date(4.0006)) == (DatetimeMS(4000), DatetimeMS(4001))


# Names and values


@pytest.mark.parametrize(
    ("field", "name"), [("", "%"), ("%", "%25"), ("a.b", "a%2Eb"), ("$set", "%24set"), ("\0", "%00"), ("_id", "_id"), ("é", "é")]
)
def test_the_name_of_a_field_is_escaped_where_mongodb_would_read_it_as_a_path(field: str, name: str) -> None:
    assert path(field) == f"fields.{name}"


@given(st.dictionaries(st.text(), st.binary() | st.text().map(msgspec.json.encode)))
def test_any_fields_come_back_from_a_document(fields: dict[str, bytes]) -> None:
    found = read(to_document(Record(fields, NOW, NOW + 1, NOW + 1)))
    assert isinstance(found, Record)
    assert found.fields == fields


@pytest.mark.parametrize(("data", "value"), [(b"1", 1), (b"null", None), (b'"a"', "a"), (b'{"a":[1.5,true]}', {"a": [1.5, True]})])
def test_json_becomes_a_value_of_mongodb(data: bytes, value: object) -> None:
    assert to_bson(data) == value
    assert type(to_bson(data)) is type(value)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        SEALED,
        b" 1",
        b"1E5",
        b"NaN",
        b'{"a": 1}',
        b'{"$set":1}',
        b'{"\\u0000":1}',
        b"9223372036854775808",
        b"[" * 51 + b"]" * 51,
    ],
)
def test_a_value_that_mongodb_would_change_stays_bytes(data: bytes) -> None:
    assert to_bson(data) == data


# Filters


def test_a_filter_finds_only_live_and_sound_sessions() -> None:
    found = live(ID, NOW)
    assert (found["_id"], found["deadline"]) == (ID, {"$gt": DatetimeMS(int(NOW) * 1000)})
    assert found["$jsonSchema"]["not"] == {"required": ["ended"]}
    assert owned_by("user:1", NOW) == {"owner": "user:1", "ended": None, "deadline": {"$gt": DatetimeMS(int(NOW) * 1000)}}


# Updates


def test_a_small_update_is_one_stage_that_sets_the_fields_and_raises_the_version() -> None:
    pipeline = change({"key": SEALED, "a.b": b"1"}).small_update()
    assert pipeline is not None
    [stage] = pipeline
    assert list(stage["$set"]) == ["fields.key", "fields.a%2Eb", "native", "version"]
    assert (stage["$set"]["fields.key"], stage["$set"]["fields.a%2Eb"]) == (SEALED, {"$literal": 1})
    _, raised, refusal = stage["$set"]["version"]["$cond"]
    assert raised == {"$add": ["$version", 1]}
    # An id isn't a number, and the server has this code for it.
    assert (refusal, REFUSED) == ({"$toInt": "$_id"}, 241)


@pytest.mark.parametrize(
    "other",
    [
        change({"key": bytes(LARGE // 16)}),
        change({"key": bytes(100)}, max_size=1000),
        change({"key": SEALED}, "other"),
        change({"key": SEALED}, owner=owner_stage(None)),
    ],
    ids=["large", "near the size allowed", "deletes", "sets the owner"],
)
def test_only_a_few_small_values_have_a_small_update(other: Change) -> None:
    assert other.small_update() is None


def test_a_deadline_moves_no_further_than_the_absolute_limit() -> None:
    [first, *_] = change({}, deadline=NOW + 5).update()
    assert first["$set"]["deadline"] == {"$min": [DatetimeMS(int(NOW + 5) * 1000), "$expires"]}
    [first, *_] = change({}).update()
    assert "deadline" not in first["$set"]


def test_an_update_sets_the_owner_and_deletes_fields_before_it_judges_the_session() -> None:
    both = change({"key": SEALED}, "other", "a.b", owner=owner_stage(OWNED.ownership))
    assert stages(both.update()) == ["$set", "$set", "$unset", "$set", "$replaceWith"]
    _, owner, unset, large, end = both.update()
    assert owner == {"$set": {"owner": {"$literal": "user:1"}, "since": {"$literal": NOW}, "note": {"$literal": "a phone"}}}
    assert unset == {"$unset": ["fields.other", "fields.a%2Eb"]}
    assert list(large["$set"]) == ["large"]
    assert end["$replaceWith"]["$cond"][1:] == [{"$mergeObjects": [tombstone(NOW), {"version": "$version"}]}, "$$ROOT"]


def test_a_sized_update_checks_the_size_only_if_it_sets_a_field() -> None:
    sized = change({"key": SEALED}).sized_update()
    assert sized != change({"key": SEALED}).update()
    assert "version" in sized[-2]["$set"]
    assert change({}, "key").sized_update() == change({}, "key").update()


@pytest.mark.parametrize(
    ("sets", "deletes", "max_size", "outgrows"),
    [
        ({"new": b"12345"}, (), 18, False),
        ({"new": b"12345"}, (), 17, True),
        ({"new": b"12345"}, ("key",), 8, False),
        ({"key": b"1234567"}, (), 1, False),
        ({"key": b"12345678"}, (), 1, True),
        ({"new": b"12345"}, ("new",), 1, False),
    ],
)
def test_a_session_outgrows_the_size_allowed_only_if_it_grows(
    sets: dict[str, bytes], deletes: tuple[str, ...], max_size: int, outgrows: bool
) -> None:
    assert change(sets, *deletes, max_size=max_size).outgrows({"key": b"1234567"}) is outgrows


def test_no_owner_is_set_by_removing_the_owners_fields() -> None:
    assert owner_stage(None) == {"$unset": ["owner", "since", "note"]}


def test_a_tombstone_that_still_counts_is_not_buried_again() -> None:
    [stage] = replace_by_tombstone(NOW)
    stands, kept, new = stage["$replaceWith"]["$cond"]
    assert stands == {"$and": [{"$eq": ["$ended", True]}, {"$gt": ["$deadline", DatetimeMS(int(NOW) * 1000)]}]}
    assert (kept, new) == ("$$ROOT", {"ended": True, "deadline": DatetimeMS(int(NOW + TOMBSTONE) * 1000)})
