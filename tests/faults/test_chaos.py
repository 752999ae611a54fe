"""Stores that have one fault after the other while a site of two processes uses them keep the promises of the guide."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.faults.chaos import DURABLE, Cluster, ReplicaSet, Sentinels, run
from tests.faults.history import History
from tests.faults.site_under_load import SLACK
from tests.servers import MongoReplicaSet, RedisCluster, RedisSentinels

pytestmark = pytest.mark.slow

TIMEOUT = 10.0
"""Seconds that a driver waits by default."""
STALE = 1.0
"""Seconds for which a replaced Redis may still be read."""
RECOVERY = 2.0
"""Seconds within which reads succeed again once another Redis has taken over."""


def assert_kept(history: History, *, stale: float, recovery: float) -> None:
    """No acknowledged change is lost, and a replaced server is read for at most *stale* seconds.

    After each takeover, reads succeed within *recovery* seconds.
    """
    print(report(history))
    verdict = history.judge()
    assert (verdict.lost, verdict.doubled, verdict.foreign, verdict.statuses, history.stuck) == ([], [], [], [], [])
    assert [span for span in verdict.spans if span.seconds > stale] == []
    assert history.slower_than(TIMEOUT + SLACK) == []
    assert max(history.recoveries(), default=0) < recovery + SLACK


def report(history: History) -> str:
    """Return the events and the findings of a run, for a failing test."""
    verdict, start = history.judge(), history.requests[0].began
    lines = [f"{len(history.requests)} requests: {dict(sorted(history.statuses().items()))}"]
    lines += [f"{event.at - start:6.1f} s: {event.what}" for event in history.events]
    lines += [f"longest gap: reads {history.longest_gap('read'):.1f} s, writes {history.longest_gap('put', 'count', 'end'):.1f} s"]
    lines += [f"seconds until reads succeeded after a takeover: {[round(each, 1) for each in history.recoveries()]}"]
    lines += [
        f"{span.began - start:6.1f} s: {span.reads} stale reads in {span.seconds:.2f} s, up to {span.longest_lag:.1f} s late"
        for span in verdict.spans
    ]
    findings = {name: getattr(verdict, name) for name in ("lost", "doubled", "foreign", "statuses")}
    for name, found in {**findings, "stuck": history.stuck}.items():
        lines += [f"{name}: {len(found)}", *(f"  {each}" for each in found[:10])]
    lines += [f"logged out by a renewal that was not acknowledged: {verdict.logged_out}"]
    lines += [f"slow: {each}" for each in history.slower_than(TIMEOUT)[:10]]
    return "\n".join(lines)


def test_a_cluster_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    with RedisCluster(3, 1, *DURABLE) as cluster:
        assert_kept(run(Cluster(cluster, wait_replicas=1), tmp_path), stale=STALE + SLACK, recovery=RECOVERY)


@pytest.mark.parametrize("wait_replicas", [1, 2])
def test_sentinels_with_two_replicas_keep_what_was_acknowledged(wait_replicas: int, tmp_path: Path) -> None:
    with RedisSentinels(2, *DURABLE) as sentinels:
        history = run(Sentinels(sentinels, wait_replicas=wait_replicas), tmp_path)
        assert_kept(history, stale=STALE + SLACK, recovery=RECOVERY)


def test_a_replica_set_keeps_what_it_acknowledged(tmp_path: Path) -> None:
    with MongoReplicaSet() as replicas:
        assert_kept(run(ReplicaSet(replicas), tmp_path), stale=STALE + SLACK, recovery=TIMEOUT)
