"""The judge of the chaos runs finds each kind of broken promise, and nothing in a history that keeps them all."""

from __future__ import annotations

from typing import Any

import pytest

from tests.faults.history import Event, History, Request, Verdict

OWNER = "owner-0."


def request(action: str, at: float, found: dict[str, Any] | None = None, **fields: Any) -> Request:
    """Return an acknowledged request that took a tenth of a second."""
    defaults: dict[str, Any] = {
        "client": "writing0",
        "session": "mine.",
        "cookie": "first",
        "given": "first",
        "ended": at + 0.1,
        "status": 200,
        **({"key": "key"} if action in {"put", "login"} else {}),
    }
    return Request(action=action, began=at, found=found, **{**defaults, **fields})


def judge(*requests: Request) -> Verdict:
    return History(requests).judge()


KEPT = {"key": "mine."}
LOGIN = request("login", 1, owner=OWNER, session=f"{OWNER}0.", key="user")


def read(at: float, found: dict[str, Any], **fields: Any) -> Request:
    return request("read", at, found, **fields)


def test_a_history_that_keeps_every_promise_has_no_finding() -> None:
    end_all = request("end_all", 3, session=OWNER, owner=OWNER, cookie=None, given=None)
    verdict = judge(
        request("put", 1),
        read(2, KEPT),
        request("renew", 3, given="second"),
        read(4, {}),
        read(4, KEPT, cookie="second"),
        request("end", 5, cookie="second"),
        read(6, {}, cookie="second"),
        LOGIN,
        read(2, {"user": OWNER}, session=LOGIN.session),
        end_all,
        read(4, {}, session=LOGIN.session),
        request("login", 4, owner=OWNER, session=f"{OWNER}1.", key="user"),
        read(5, {"user": OWNER}, session=f"{OWNER}1."),
    )
    assert verdict == Verdict()


def test_a_write_that_the_last_read_lacks_is_lost() -> None:
    verdict = judge(request("put", 1), read(2, KEPT), read(3, {}))
    assert verdict.lost == ["mine. lacks put key by writing0"]
    assert verdict.stale == []


def test_a_write_that_only_an_earlier_read_lacks_is_a_stale_read() -> None:
    verdict = judge(request("put", 1), read(2, {"other": "mine."}), read(3, KEPT))
    assert verdict.lost == []
    assert [round(each.lag, 3) for each in verdict.stale] == [0.9]


def test_a_write_that_was_not_acknowledged_may_exist_or_not() -> None:
    unclear = request("put", 2, key="unclear", status=503)
    for found in (KEPT, {**KEPT, "unclear": "mine."}):
        assert judge(request("put", 1), unclear, read(3, found)) == Verdict()


def test_a_read_that_began_before_the_acknowledgement_may_see_either() -> None:
    assert judge(request("put", 1, ended=3), read(2, {})) == Verdict()
    assert judge(request("put", 1), request("end", 2, ended=4), read(3, KEPT), read(3, {})) == Verdict()


@pytest.mark.parametrize("action", ["end", "renew"])
def test_an_ended_session_that_is_alive_again_is_a_lost_end(action: str) -> None:
    assert len(judge(request("put", 1), request(action, 2, given=None), read(3, KEPT)).lost) == 1


def test_an_ended_session_that_is_alive_for_a_while_is_a_stale_read() -> None:
    reads = [read(at, KEPT) for at in (3, 3.5, 4, 9)]
    verdict = judge(request("put", 1), request("end", 2), *reads, read(12, {}))
    assert verdict.lost == []
    assert [(span.reads, round(span.seconds, 3)) for span in verdict.spans] == [(3, 1.1), (1, 0.1)]
    assert round(verdict.spans[1].longest_lag, 3) == 6.9


def test_an_end_that_was_not_acknowledged_may_come_at_any_time_but_ends_the_whole_session() -> None:
    put, end = [request("put", 1), request("put", 1, key="other")], request("end", 2, status=503)
    assert judge(*put, end, read(3, {"key": "mine.", "other": "mine."}), read(4, {})) == Verdict()
    assert judge(*put, end, read(3, KEPT)).lost == ["mine. lacks put other by writing0"]


def test_a_session_that_an_unclear_renewal_has_ended_is_counted() -> None:
    verdict = judge(request("put", 1), request("renew", 2, status=503), read(3, {}))
    assert (verdict.lost, verdict.logged_out) == ([], 1)


def test_an_end_of_all_ends_earlier_logins_and_no_later_ones() -> None:
    end_all = request("end_all", 3, session=OWNER, owner=OWNER, cookie=None, given=None)
    alive = {"user": OWNER}
    assert len(judge(LOGIN, end_all, read(4, alive, session=LOGIN.session)).lost) == 1
    later = request("login", 4, owner=OWNER, session=f"{OWNER}1.", key="user")
    assert len(judge(end_all, later, read(5, {}, session=later.session)).lost) == 1
    meanwhile = request("login", 2.95, owner=OWNER, session=f"{OWNER}2.", key="user")
    for found in ({}, alive):
        assert judge(end_all, meanwhile, read(5, found, session=meanwhile.session)) == Verdict()


def test_a_value_of_another_session_is_foreign() -> None:
    assert len(judge(request("put", 1), read(2, {"key": "mine.", "other": "theirs."})).foreign) == 1
    assert len(judge(request("put", 1, session="mine-1."), read(2, {"key": "mine-11."}, session="mine-1.")).foreign) == 1


def count(at: float, value: int | None, **fields: Any) -> Request:
    return request("count", at, count=value, **fields)


def test_an_increment_is_lost_if_a_result_is_too_small_or_comes_twice() -> None:
    assert judge(count(1, 1), count(2, 2), read(3, {"count": 2}, count=2)) == Verdict()
    assert len(judge(count(1, 1), count(2, 2), read(3, {"count": 1}, count=1)).lost) == 1
    unclear = count(1, None, status=503)
    assert judge(unclear, count(2, 2)) == Verdict()
    assert len(judge(unclear, unclear, count(2, 2), count(3, 2)).lost) == 1


def test_an_increment_is_doubled_if_the_counter_exceeds_the_attempts() -> None:
    assert len(judge(count(1, 1), count(2, 3)).doubled) == 1
    assert judge(count(1, 1), count(2, None, status=503), count(3, 3)) == Verdict()


def test_other_statuses_and_missing_responses_are_found_unless_the_process_was_killed() -> None:
    history = History([request("put", 1, status=500), request("put", 2, status=0, port=1), request("put", 3, status=0, port=2)])
    history.killed = {2}
    assert history.judge().statuses == ["put key by writing0: 500", "put key by writing0: no response"]


def test_a_slow_response_and_a_gap_are_found() -> None:
    history = History([request("put", 1), request("put", 2, ended=9)])
    assert history.slower_than(5) == ["put key by writing0: 7.0 s"]
    assert round(history.longest_gap("put"), 3) == 7.9


def test_a_recovery_lasts_until_reads_succeed_or_until_the_next_event() -> None:
    history = History([read(1, KEPT), request("read", 11, status=503, ended=14), read(15, KEPT), read(29, KEPT, ended=40)])
    history.events = [
        Event(10, "taken over", is_takeover=True),
        Event(20, "scripts forgotten", is_harmless=True),
        Event(25, "killed"),
        Event(28, "taken over", is_takeover=True),
    ]
    assert history.recoveries() == [4, 12]
