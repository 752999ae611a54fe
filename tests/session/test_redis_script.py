"""The Redis driver's calls as commands and its records as hashes, without a server."""

from __future__ import annotations

import pytest
from msgspec import msgpack
from redis.exceptions import AskError, MovedError, NoPermissionError, ResponseError

from gaman.session import Outcome, Ownership, Record
from gaman_session.drivers._redis_failures import is_ending_elsewhere
from gaman_session.drivers._redis_records import read_outcome, read_record, values_and_arguments
from gaman_session.drivers._redis_script import (
    BY_HASH,
    BY_TEXT,
    Call,
    changes_session,
    decode,
    encode,
    ending_call,
    load_commands,
    loaded,
)


def test_a_batch_is_one_command_with_the_keys_and_values_of_its_calls() -> None:
    calls = [Call("apply", ("a", "live"), (b"1", b"2"), (5.0, False)), Call("destroy", ("b",), (), (6.0, True))]
    name, script, number, *rest = encode(calls, BY_HASH)
    assert (name, script) == BY_HASH
    assert (number, rest[:3], rest[4:]) == (3, ["a", "live", "b"], [b"1", b"2"])
    assert msgpack.decode(rest[3]) == [["apply", 2, 2, 5.0, False], ["destroy", 1, 0, 6.0, True]]


def test_a_load_in_a_shared_round_trip_is_the_plainest_command_that_will_do() -> None:
    load, large = Call("load", ("a",)), Call("load", ("a",), (), (True,))
    assert encode([load], BY_HASH) == (*BY_HASH, 1, "a")
    assert encode([load], BY_TEXT) == (*BY_TEXT, 1, "a")
    *command, operations = encode([large], BY_HASH)
    assert command == [*BY_HASH, 1, "a"]
    assert msgpack.decode(operations) == [["load", 1, 0, True]]


KEY = "gaman:{abc}" + 64 * "a"


def test_a_load_by_itself_reads_the_ending_before_the_session() -> None:
    for arguments in ((), (True,)):
        assert load_commands(Call("load", (KEY,), (), arguments)) == (("HGETALL", "gaman:{abc}ending"), ("HGETALL", KEY))


@pytest.mark.parametrize("is_resp2", [False, True])
def test_a_session_below_the_version_of_the_ending_is_a_tombstone(is_resp2: bool) -> None:
    def answer(**fields: str) -> object:
        pairs = {name.encode(): value.encode() for name, value in fields.items()}
        return [part for pair in pairs.items() for part in pair] if is_resp2 else pairs

    ending, session = answer(min_version="8", at="1000.5"), answer(version="7", deadline="5000")
    assert loaded(answer(), session) == {b"version": b"7", b"deadline": b"5000"}
    assert loaded(ending, session) == {b"ended": b"1", b"deadline": b"1060.5"}
    assert loaded(ending, answer(version="7", deadline="1020")) == {b"ended": b"1", b"deadline": b"1020.0"}
    for unchanged in (
        {},
        {"version": "8", "deadline": "5000"},
        {"ended": "1", "deadline": "50"},
        {"version": "x", "deadline": "5000"},
    ):
        assert loaded(ending, answer(**unchanged)) == {name.encode(): value.encode() for name, value in unchanged.items()}
    for damaged in ({"at": "1000.5"}, {"min_version": "x", "at": "1000.5"}):
        assert loaded(answer(**damaged), session) == {b"version": b"7", b"deadline": b"5000"}


def test_the_error_of_an_ending_comes_before_that_of_its_session() -> None:
    moved, asked, refused = MovedError("1 127.0.0.1:1"), AskError("1 127.0.0.1:1"), NoPermissionError("NOPERM")
    wrong = ResponseError("WRONGTYPE Operation against a key")
    assert loaded({}, wrong) is wrong
    assert loaded(moved, wrong) is moved
    assert loaded(refused, {}) is refused
    assert str(loaded(wrong, wrong)) == "ENDING WRONGTYPE Operation against a key"
    assert is_ending_elsewhere(loaded(asked, {}))
    assert not any(is_ending_elsewhere(loaded(error, {})) for error in (moved, refused, wrong))


def test_a_call_has_its_ending_if_its_server_may_lack_it() -> None:
    assert ending_call(KEY) == Call("ending", ("gaman:{abc}ending",))
    *_, operations = encode([Call("load", (KEY,), ending=(b"8", b"5.5"))], BY_HASH)
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
