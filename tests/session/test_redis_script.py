"""The Redis driver's calls as commands and its records as hashes, without a server."""

from __future__ import annotations

import pytest
from msgspec import msgpack
from redis.exceptions import ResponseError

from gaman.session import Outcome, Ownership, Record
from gaman_session.drivers._redis_records import read_outcome, read_record, values_and_arguments
from gaman_session.drivers._redis_script import BY_HASH, BY_TEXT, Call, changes_session, decode, encode, ending_call


def test_a_batch_is_one_command_with_the_keys_and_values_of_its_calls() -> None:
    calls = [Call("apply", ("a", "live"), (b"1", b"2"), (5.0, False)), Call("destroy", ("b",), (), (6.0, True))]
    name, script, number, *rest = encode(calls, BY_HASH)
    assert (name, script) == BY_HASH
    assert (number, rest[:3], rest[4:]) == (3, ["a", "live", "b"], [b"1", b"2"])
    assert msgpack.decode(rest[3]) == [["apply", 2, 2, 5.0, False], ["destroy", 1, 0, 6.0, True]]


def test_a_load_is_the_plainest_command_that_will_do() -> None:
    load, large = Call("load", ("a",)), Call("load", ("a",), (), (True,))
    assert encode([load], BY_HASH) == (*BY_HASH, 1, "a")
    assert encode([load], BY_TEXT) == (*BY_TEXT, 1, "a")
    *command, operations = encode([large], BY_HASH)
    assert command == [*BY_HASH, 1, "a"]
    assert msgpack.decode(operations) == [["load", 1, 0, True]]


def test_a_call_has_its_ending_if_its_server_may_lack_it() -> None:
    key = "gaman:{abc}" + 64 * "a"
    assert ending_call(key) == Call("ending", ("gaman:{abc}ending",))
    *_, operations = encode([Call("load", (key,), ending=(b"8", b"5.5"))], BY_HASH)
    assert msgpack.decode(operations) == [[["load", "8", "5.5"], 1, 0]]


def test_each_call_gets_its_part_of_the_answer() -> None:
    calls = [Call("apply", ("a",)), Call("load", ("b",)), Call("load", ("c",)), Call("destroy", ("d",)), Call("count", ("e",))]
    error = ResponseError("OOM")
    response = [1, b"WRITTEN", 4, b"x", b"1", b"y", b"2", 0, 1, None, 1, error]
    assert decode(calls, response) == [b"WRITTEN", {b"x": b"1", b"y": b"2"}, {}, None, error]
    assert decode(calls[:2], error) == [error, error]


def test_the_answer_to_a_single_load_is_a_hash_or_the_marker_of_a_large_session() -> None:
    load = [Call("load", ("a",))]
    assert decode(load, [b"x", b"1"]) == decode(load, {b"x": b"1"}) == [{b"x": b"1"}]
    assert decode(load, b"LARGE") == [b"LARGE"]


@pytest.mark.parametrize(
    ("operation", "result", "is_change"),
    [("apply", b"WRITTEN", True), ("swap", b"CONFLICT", False), ("create", b"REVOKED", False), ("tidy", 0, False)],
)
def test_only_some_operations_and_results_are_a_change_of_the_session(operation: str, result: object, is_change: bool) -> None:
    assert changes_session(Call(operation, ("a",)), result) is is_change


def test_each_outcome_has_a_word_and_no_word_is_absent() -> None:
    assert {read_outcome(outcome.name.encode()) for outcome in Outcome} == {*Outcome}
    assert read_outcome(None) is Outcome.ABSENT


def test_a_record_is_read_as_it_was_written() -> None:
    record = Record({"": b"", "é": b"\xff"}, 1.001, 50.0, 20.123, 0, Ownership("me", b"\0", 1.5), b"seal")
    values, (token, created, expires, deadline, names) = values_and_arguments(record)
    found = dict(zip((name.encode() for name in names), values, strict=True))
    found |= {b"created": created.encode(), b"expires": expires.encode(), b"deadline": deadline.encode()}
    found |= {b"version": b"0", b"size": b"3", b"token": token.encode()}
    assert read_record(found, 20.1) == record
    assert read_record(found, 20.123) is None
    assert read_record({b"ended": b"1", b"deadline": b"60"}, 20.0) is Outcome.ENDED
    with pytest.raises(ValueError, match="damaged"):
        read_record({b"deadline": b"60"}, 20.0)
