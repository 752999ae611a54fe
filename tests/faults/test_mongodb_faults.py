"""A site under load while its MongoDB is down, frozen or killed, and while it elects a new primary."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.faults.site_under_load import (
    Counting,
    Load,
    Newcomers,
    Visitor,
    Writer,
    assert_comes_back,
    assert_many_requests_wait_no_longer,
    freeze,
    kill,
    site,
)
from tests.servers import MongoReplicaSet, MongoServer, Server, free_port

PASSWORD = "hunter2"
ELECTION = 60.0
"""Seconds within which all clients can write again: it takes three after the primary died, and up to twenty if it is frozen."""


def mongodb(uri: str, **options: Any) -> dict[str, Any]:
    return {"type": "mongodb", "db_name": "gaman_test", "uri": uri, **options}


@pytest.fixture
def server() -> Generator[MongoServer]:
    with MongoServer() as server:
        yield server


@pytest.mark.slow
@pytest.mark.parametrize("fault", [kill, freeze])
def test_a_mongodb_that_is_down_is_unavailable_and_not_a_logout(
    server: MongoServer, fault: Callable[[Server], Callable[[], object]], tmp_path: Path
) -> None:
    assert_comes_back(tmp_path, mongodb(server.uri, timeout=2), server, fault)


@pytest.mark.slow
def test_many_requests_wait_for_a_frozen_mongodb_no_longer_than_one(server: MongoServer, tmp_path: Path) -> None:
    assert_many_requests_wait_no_longer(tmp_path, mongodb(server.uri, timeout=4), server)


@pytest.mark.slow
def test_requests_wait_for_a_slow_mongodb(server: MongoServer, tmp_path: Path) -> None:
    with site(tmp_path, mongodb(server.uri)) as program, server.client() as client:
        visitor = Visitor(program.port)
        assert visitor.put("key").status == 200
        client.admin.command("fsync", lock=True)
        with ThreadPoolExecutor() as pool:
            slow = pool.submit(visitor.put, "slow")
            time.sleep(4)
            assert not slow.done()
            client.admin.command("fsyncUnlock")
            assert slow.result().status == 200
        assert visitor.all() == {"key": "value", "slow": "value"}


@pytest.mark.slow
def test_acknowledged_writes_are_there_after_a_mongodb_was_killed(server: MongoServer, tmp_path: Path) -> None:
    with site(tmp_path, mongodb(server.uri)) as program:
        writer, newcomers = Writer(program.port), Newcomers(program.port)
        for _ in range(3):
            for each in (writer, newcomers) * 5:
                each.step()
            server.kill()
            server.start().wait()
        assert writer.statuses == newcomers.statuses == {200: 15}
        assert writer.lost() == newcomers.lost() == []


@pytest.mark.slow
@pytest.mark.parametrize("fault", [kill, freeze])
def test_a_replica_set_that_loses_its_primary_recovers_by_itself_and_loses_nothing(
    fault: Callable[[MongoServer], Callable[[], object]], tmp_path: Path
) -> None:
    with MongoReplicaSet() as replicas, site(tmp_path, mongodb(replicas.uri)) as program:
        shared = Visitor(program.port)
        counting = [Counting(program.port, shared) for _ in range(3)]
        counting[0].step()
        writers = [Writer(program.port), Writer(program.port), Newcomers(program.port)]
        with Load(*writers, *counting) as load:
            repair = fault(replicas.primary)
            load.wait_until_all_write(ELECTION)
            repair()
            load.wait_until_all_write(ELECTION)
        assert set(load.statuses) <= {200, 503}
        assert [writer.lost() for writer in writers] == [[], [], []]
        confirmed = sum(each.statuses[200] for each in counting)
        attempted = sum(each.attempts for each in counting)
        assert confirmed <= shared.all()["count"] <= attempted


def test_a_site_whose_mongodb_is_down_does_not_start_and_names_the_address(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    with site(tmp_path, mongodb(f"mongodb://visitor:{PASSWORD}@{address}", timeout=1)) as program:
        assert program.wait() == 1
        assert "gaman: the session store (mongodb) could not" in program.stderr
        assert address in program.stderr
        assert PASSWORD not in program.stdout + program.stderr
