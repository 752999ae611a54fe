"""A site in use while its Redis is away, is frozen, forgets, is full, and fails over."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import Any, Self

import pytest

from gaman_session.drivers.redis import RedisDriver
from tests.faults.site_under_load import (
    Counting,
    Load,
    Newcomers,
    Visitor,
    Writer,
    arrive,
    assert_comes_back,
    assert_many_requests_wait_no_longer,
    freeze,
    kill,
    site,
)
from tests.servers import RedisCluster, RedisSentinels, RedisServer, Server, free_port
from tests.serving import PATIENCE, ParsedResponse, until

PASSWORD = "hunter2"
FAILOVER = 30.0
"""Seconds within which every visitor can write again; a Cluster or Sentinels need about four to agree."""
RECOVERY = 10.0
"""Seconds within which the new master is found; it takes less than two on an idle machine."""


def redis(url: str, **options: Any) -> dict[str, Any]:
    return {"type": "redis", "url": url, **options}


@pytest.fixture
def server() -> Generator[RedisServer]:
    with RedisServer("--appendonly", "yes", "--appendfsync", "always") as server:
        yield server


# A single server


@pytest.mark.parametrize("fault", [kill, freeze])
def test_a_redis_that_is_away_is_unavailable_and_not_a_logout(
    server: RedisServer, fault: Callable[[Server], Callable[[], object]], tmp_path: Path
) -> None:
    assert_comes_back(tmp_path, redis(server.url, timeout=1), server, fault)


@pytest.mark.slow
def test_many_requests_wait_for_a_frozen_redis_no_longer_than_one(server: RedisServer, tmp_path: Path) -> None:
    assert_many_requests_wait_no_longer(tmp_path, redis(server.url, timeout=4), server)


def test_an_emptied_redis_logs_visitors_out_without_an_error(server: RedisServer, tmp_path: Path) -> None:
    with site(tmp_path, redis(server.url)) as program, server.client() as client:
        visitors = arrive(program.port)
        client.flushall()
        for use, visitor in visitors.items():
            assert visitor.get(use).status == 200
            assert visitor.put("new").status == 200
            assert visitor.all().keys() == {"/put/more/value": {"more", "new"}, "/count": {"count", "new"}}.get(use, {"new"})


def test_scripts_that_redis_forgets_are_sent_again(server: RedisServer, tmp_path: Path) -> None:
    with site(tmp_path, redis(server.url)) as program, server.client() as client:
        for use, visitor in arrive(program.port).items():
            client.script_flush()
            assert visitor.get(use).status == 200


def test_a_full_redis_refuses_writes_and_serves_reads(server: RedisServer, tmp_path: Path) -> None:
    with site(tmp_path, redis(server.url)) as program, server.client() as client:
        visitors, user = arrive(program.port), Visitor(program.port)
        assert user.get("/login/me").status == 200
        client.config_set("maxmemory", 1)
        newcomer = Visitor(program.port)
        for visitor in (visitors["/all"], newcomer):
            for use in ("/put/more/value", "/login/me"):
                response = visitor.get(use)
                assert (response.status, "set-cookie" in response.headers) == (503, False)
        for use in ("/count", "/renew"):
            assert visitors[use].get(use).status == 503
            assert visitors[use].all() == {"key": "value"}
        assert visitors["/all"].all() == {"key": "value"}
        # A logout frees memory.
        assert visitors["/end"].get("/end").status == 200
        assert user.get("/end_all/me").status == 200
        assert user.all() == {}
        client.config_set("maxmemory", 0)
        assert visitors["/all"].put("more").status == newcomer.put("more").status == 200
        assert visitors["/all"].all() == {"key": "value", "more": "value"}


@pytest.mark.slow
@pytest.mark.parametrize("policy", ["volatile-lru", "volatile-random"])
def test_a_redis_that_evicts_sessions_knows_the_owners_of_the_others(policy: str, tmp_path: Path) -> None:
    with (
        RedisServer("--maxmemory", "100mb", "--maxmemory-policy", policy) as server,
        site(tmp_path, redis(server.url)) as program,
        server.client() as client,
    ):
        users = [Visitor(program.port) for _ in range(20)]
        handles = [json.loads(user.get("/login/me").body)["handle"] for user in users]
        assert f"maxmemory-policy {policy}: it logs visitors out" in program.stderr
        client.config_set("maxmemory", client.info("memory")["used_memory"] + 10_000_000)
        others = count()
        # To Redis, keys that were used in the same second are equally old: it takes more than one to fill its memory.
        while client.info("stats")["evicted_keys"] < 3000:
            for _ in range(50):
                client.set(f"other:{next(others)}", "x" * 2000, ex=1000)
            for user in users[:5]:
                user.all()
        alive = {handle for user, handle in zip(users, handles, strict=True) if user.all()}
        assert 0 < len(alive) < 20
        assert {*json.loads(users[0].get("/handles/me").body)} == alive
        assert users[0].get("/end_all/me").status == 200
        assert [user.all() for user in users] == [{}] * 20


def test_an_increment_whose_answer_was_lost_is_counted_once_despite_another_before_its_retry(
    server: RedisServer, tmp_path: Path
) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    with Line(server.port) as line, site(here, redis(line.url)) as program, site(there, redis(server.url)) as other:
        counting, elsewhere = Counting(program.port), Counting(other.port)
        assert [counting.step(), counting.step()] == [200, 200]
        elsewhere.visitor.cookie = counting.visitor.cookie
        line.lose_an_answer()
        with ThreadPoolExecutor() as pool:
            retried = pool.submit(counting.step)
            assert line.has_lost_it.wait(PATIENCE)
            assert elsewhere.step() == 200
            line.repair()
            assert retried.result() in {200, 503}
        assert elsewhere.visitor.all()["count"] == 4


class Line:
    """A proxy for a server that loses the answer to a script, and then accepts no call until it is repaired."""

    def __init__(self, port: int) -> None:
        self._server = ("127.0.0.1", port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._is_whole = threading.Event()
        self._is_whole.set()
        self._is_losing = False
        self.has_lost_it = threading.Event()
        self._sockets = [self._listener]
        self._threads: list[threading.Thread] = []

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(self, *_: object) -> None:
        self.repair()
        for each in self._sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for each in self._sockets:
            each.close()

    def lose_an_answer(self) -> None:
        self._is_losing = True

    def repair(self) -> None:
        self._is_whole.set()

    def _start(self, target: Callable[..., None], *arguments: object) -> None:
        self._threads.append(threading.Thread(target=target, args=arguments))
        self._threads[-1].start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._sockets.append(client)
                self._is_whole.wait()
                server = socket.create_connection(self._server)
                self._sockets.append(server)
                self._start(self._ask, client, server)
                self._start(self._answer, server, client)

    def _ask(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while octets := client.recv(65536):
                if self._is_losing and b"EVALSHA" in octets:
                    self._is_losing = False
                    self._is_whole.clear()
                    client.shutdown(socket.SHUT_RDWR)
                server.sendall(octets)

    def _answer(self, server: socket.socket, client: socket.socket) -> None:
        try:
            while octets := server.recv(65536):
                client.sendall(octets)
        except OSError:
            self.has_lost_it.set()


# Starting


def test_a_site_whose_redis_is_away_does_not_start_and_names_the_server(tmp_path: Path) -> None:
    address = f"127.0.0.1:{free_port()}"
    with site(tmp_path, redis(f"redis://:{PASSWORD}@{address}", timeout=1)) as program:
        assert program.wait() == 1
        assert f"gaman: the session store (redis) could not be reached at {address}" in program.stderr
        assert PASSWORD not in program.stdout + program.stderr


def test_a_wrong_password_fails_the_start_and_is_not_shown(server: RedisServer, tmp_path: Path) -> None:
    with server.client() as client:
        client.config_set("requirepass", "right")
    with site(tmp_path, redis(f"redis://:{PASSWORD}@{server.address}", timeout=1)) as program:
        assert program.wait() == 1
        assert f"gaman: the redis driver can't log in at {server.address}: " in program.stderr
        assert PASSWORD not in program.stdout + program.stderr
    with site(tmp_path, redis(f"redis://:right@{server.address}")) as program:
        assert Visitor(program.port).put("key").status == 200
        assert "right" not in program.stdout + program.stderr


@pytest.mark.parametrize(
    "url", [f"redis://:{PASSWORD}@host:port", f"redis://:{PASSWORD}@[::1", f"redis://:{PASSWORD}@host?socket_timeout={PASSWORD}"]
)
def test_a_url_that_cannot_be_read_fails_the_start_and_its_password_is_not_shown(url: str, tmp_path: Path) -> None:
    with site(tmp_path, redis(url)) as program:
        assert program.wait() == 1
        assert "the redis driver can't read its url" in program.stderr
        assert PASSWORD not in program.stdout + program.stderr


# Failing over


def wait_until_replicated(master: RedisServer, replica: RedisServer) -> None:
    """Return when the replica has all changes that the master has now."""
    with master.client() as client:
        offset: int = client.info("replication")["master_repl_offset"]

    def has_it() -> bool:
        with replica.client() as client:
            return bool(client.info("replication")["slave_repl_offset"] >= offset)

    until(has_it, "the replica to have the changes of the master")


def spread(cluster: RedisCluster, port: int, each: int) -> dict[RedisServer, list[Writer]]:
    """Return *each* writers for each master, which has their sessions."""

    def sizes() -> list[int]:
        found: list[int] = []
        for master in cluster.masters:
            with master.client() as client:
                found.append(client.dbsize())
        return found

    writers: dict[RedisServer, list[Writer]] = {master: [] for master in cluster.masters}
    while any(len(some) < each for some in writers.values()):
        before, writer = sizes(), Writer(port)
        writer.step()
        [master] = [master for master, old, new in zip(cluster.masters, before, sizes(), strict=True) if new > old]
        if len(writers[master]) < each:
            writers[master].append(writer)
    return writers


@pytest.mark.slow
def test_a_cluster_that_loses_a_master_recovers_by_itself_and_its_other_shards_continue(tmp_path: Path) -> None:
    with RedisCluster(3, 1) as cluster, site(tmp_path, redis(cluster.url)) as program:
        for node in cluster.nodes:
            with node.client() as client:
                client.config_set("cluster-require-full-coverage", "no")
        writers = spread(cluster, program.port, 2)
        doomed, *_ = cluster.masters
        sharing = writers.pop(doomed)
        others = [writer for some in writers.values() for writer in some]
        newcomers = Newcomers(program.port)
        with Load(*sharing, *others, newcomers) as load:
            acknowledged = {writer: [*writer.acknowledged] for writer in load.writers}
            wait_until_replicated(doomed, cluster.replicas[0])
            doomed.kill()
            killed = time.monotonic()
            until(lambda: all(writer.wrote_at > killed + 1 for writer in others), "the other shards to continue", seconds=FAILOVER)
            assert not any(writer.wrote_at > killed for writer in sharing), (
                "there was a new master before the other shards continued"
            )
            load.wait_until_all_write(FAILOVER)
        assert set(load.statuses) <= {200, 503}
        assert {status for writer in others for status in writer.statuses} == {200}
        for writer in sharing:
            assert {*acknowledged[writer]} <= writer.visitor.all().keys()
        assert [writer.lost() for writer in others] == [[]] * len(others)


@pytest.mark.slow
@pytest.mark.parametrize("wait_replicas", [0, 1])
@pytest.mark.parametrize("fault", [kill, freeze])
def test_a_cluster_whose_master_stays_away_continues_with_its_replica(
    fault: Callable[[Server], Callable[[], object]], wait_replicas: int, tmp_path: Path
) -> None:
    # A replica that takes over needs one of its own to confirm writes.
    with RedisCluster(3, 1 + wait_replicas) as cluster:
        doomed, *_ = cluster.masters
        options = redis(f"redis+cluster://{doomed.address}", wait_replicas=wait_replicas)
        with site(tmp_path, options) as program:
            writers = spread(cluster, program.port, 2)
            reader = writers[doomed][0].visitor
            with Load(*(writer for some in writers.values() for writer in some), Newcomers(program.port)) as load:
                fault(doomed)
                replicas = cluster.replicas[:: len(cluster.masters)]
                until(lambda: any(role(each) == "master" for each in replicas), "a replica to take over", seconds=FAILOVER)
                until(lambda: reader.get("/all").status == 200, "a read to succeed", seconds=RECOVERY)
                # The other replica may need a while to follow the first.
                load.wait_until_all_write(FAILOVER if wait_replicas else RECOVERY)
            assert set(load.statuses) <= {200, 503}
            if wait_replicas:
                assert [writer.lost() for writer in load.writers] == [[]] * len(load.writers)


@pytest.mark.slow
def test_a_cluster_is_resharded_under_load_without_an_error(tmp_path: Path) -> None:
    with RedisCluster(3, 1) as cluster, site(tmp_path, redis(cluster.url, wait_replicas=1)) as program:
        writers = [Writer(program.port) for _ in range(4)]
        newcomers, logins = Newcomers(program.port), Logins(program.port)
        with Load(*writers, newcomers, logins) as load:
            source, target, _ = cluster.masters
            for giver, taker in ((source, target), (target, source)):
                reshard(giver, taker, 400)
                load.wait_until_all_write()
        assert load.statuses.keys() == {200}
        assert [writer.lost() for writer in load.writers] == [[]] * len(load.writers)
        assert "[OK] All 16384 slots covered" in redis_cli("--cluster", "check", source.address)

        async def count() -> int:
            driver = RedisDriver(url=cluster.url)
            await driver.open()
            try:
                return await driver.count(now=time.time())
            finally:
                await driver.close()

        assert asyncio.run(count()) == len(writers) + len(newcomers.visitors) + len(logins.visitors)


class Logins(Newcomers):
    """Begins a new session of the same owner with each write."""

    def write(self) -> ParsedResponse:
        visitor = Visitor(self.visitor.port)
        response = visitor.get("/login/me")
        if response.status == 200:
            self.visitors.append(visitor)
        return response

    def lost(self) -> list[str]:
        return [str(visitor.cookie) for visitor in self.visitors if visitor.all() != {"user": "me"}]


def reshard(giver: RedisServer, taker: RedisServer, slots: int) -> None:
    """Move so many slots, with their keys, from *giver* to *taker*."""
    # After another move, the nodes need a moment to agree on the slots, and redis-cli refuses until then.
    until(lambda: run_redis_cli("--cluster", "check", giver.address).returncode == 0, "the nodes to agree on the slots")
    names = [node.execute("CLUSTER MYID") for node in (giver, taker)]
    options = ("--cluster-from", names[0], "--cluster-to", names[1], "--cluster-slots", str(slots), "--cluster-yes")
    redis_cli("--cluster", "reshard", giver.address, *options)


def redis_cli(*arguments: str) -> str:
    """Return the output of redis-cli, whose failure fails the test."""
    done = run_redis_cli(*arguments)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr
    return done.stdout


def run_redis_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    program = shutil.which("redis-cli")
    if program is None and not os.environ.get("CI"):
        pytest.skip("there is no redis-cli: apt-get install redis-tools")
    assert program, "there is no redis-cli: .ci/run installs it"
    return subprocess.run([program, *arguments], capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.slow
def test_increments_are_neither_lost_nor_doubled_while_a_cluster_fails_over(tmp_path: Path) -> None:
    with RedisCluster(3, 1) as cluster, site(tmp_path, redis(cluster.url, wait_replicas=1)) as program:
        doomed, successor = cluster.masters[0], cluster.replicas[0]
        [writer] = spread(cluster, program.port, 1)[doomed]
        counting = [Counting(program.port, writer.visitor) for _ in range(4)]
        with Load(writer, *counting) as load:
            doomed.kill()
            until(lambda: role(successor) == "master", "the replica to take over", seconds=FAILOVER)
            # It returns as a replica, without which no write would be confirmed.
            doomed.start().wait()
            load.wait_until_all_write(FAILOVER)
        assert set(load.statuses) <= {200, 503}
        assert writer.lost() == []
        confirmed = sum(each.statuses[200] for each in counting)
        attempted = sum(each.attempts for each in counting)
        assert confirmed <= writer.visitor.all()["count"] <= attempted


@pytest.mark.slow
def test_a_write_that_no_replica_has_is_not_acknowledged_with_wait_replicas(tmp_path: Path) -> None:
    with RedisCluster(3, 1) as cluster, site(tmp_path, redis(cluster.url, wait_replicas=1, timeout=2)) as program:
        doomed, successor = cluster.masters[0], cluster.replicas[0]
        [writer] = spread(cluster, program.port, 1)[doomed]
        successor.send_signal(signal.SIGSTOP)
        assert writer.step() == 503
        successor.send_signal(signal.SIGCONT)
        until(lambda: writer.step() == 200, "a write to succeed")
        successor.send_signal(signal.SIGSTOP)
        assert [writer.step() for _ in range(3)] == [503] * 3
        doomed.kill()
        successor.send_signal(signal.SIGCONT)
        until(lambda: role(successor) == "master", "the replica to take over", seconds=FAILOVER)
        doomed.start().wait()
        until(lambda: writer.step() == 200, "a write to succeed", seconds=FAILOVER)
        assert writer.lost() == []


@pytest.mark.slow
def test_sentinels_replace_a_master_and_the_changes_that_its_replica_has_survive(tmp_path: Path) -> None:
    with RedisSentinels() as sentinels, site(tmp_path, redis(sentinels.url)) as program:
        writers = [Writer(program.port), Writer(program.port), Newcomers(program.port)]
        with Load(*writers) as load:
            acknowledged = {writer: [*writer.acknowledged] for writer in writers}
            wait_until_replicated(sentinels.master, sentinels.replica)
            sentinels.master.kill()
            load.wait_until_all_write(FAILOVER)
        assert set(load.statuses) <= {200, 503}
        assert role(sentinels.replica) == "master"
        for writer in writers[:2]:
            assert {*acknowledged[writer]} <= writer.visitor.all().keys()


@pytest.mark.slow
def test_owners_and_ended_sessions_survive_when_sentinels_replace_the_master(tmp_path: Path) -> None:
    with RedisSentinels() as sentinels, site(tmp_path, redis(sentinels.url, wait_replicas=1)) as program:
        mine, yours = Visitor(program.port), Visitor(program.port)
        handle = json.loads(mine.get("/login/me").body)["handle"]
        assert yours.get("/login/you").status == 200
        assert mine.get("/end_all/you").status == 200
        sentinels.master.kill()
        # No replica is left to confirm a write; a read shows the takeover.
        until(lambda: mine.get("/all").status == 200, "a read to succeed", seconds=FAILOVER)
        assert (mine.all(), yours.all()) == ({"user": "me"}, {})
        assert json.loads(mine.get("/handles/me").body) == [handle]
        assert json.loads(mine.get("/handles/you").body) == []
        sentinels.master.start().wait()
        until(lambda: mine.get("/end_all/me").status == 200, "a write to succeed", seconds=FAILOVER)
        assert mine.all() == {}
        assert json.loads(mine.get("/handles/me").body) == []


class Leavers(Writer):
    """Begins a session with each write, and ends it."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.ended: list[str] = []

    def write(self) -> ParsedResponse:
        visitor = Visitor(self.visitor.port)
        response = visitor.put("key")
        if response.status == 200:
            cookie = str(visitor.cookie)
            response = visitor.get("/end")
            if response.status == 200:
                self.ended.append(cookie)
        return response

    def lost(self) -> list[str]:
        return alive(self.ended, self.visitor.port)


def alive(ended: Sequence[str], port: int) -> list[str]:
    """Return those of the *ended* cookies that still have a session."""

    def is_alive(cookie: str) -> bool:
        visitor = Visitor(port)
        visitor.cookie = cookie
        return visitor.all() != {}

    # Over as many connections as the driver uses.
    with ThreadPoolExecutor(16) as pool:
        return [cookie for cookie, found in zip(ended, pool.map(is_alive, ended), strict=True) if found]


@pytest.mark.slow
def test_a_planned_failover_loses_no_acknowledged_write_though_another_replica_confirms_it(tmp_path: Path) -> None:
    with RedisSentinels(2) as sentinels, site(tmp_path, redis(sentinels.url, wait_replicas=1)) as program:
        writers = [cls(program.port) for cls in (Writer, Newcomers, Newcomers, Leavers, Leavers)]
        with Load(*writers) as load:
            # The last one, because a driver may ask only the first.
            with sentinels.sentinels[-1].client() as client:
                client.execute_command("SENTINEL", "FAILOVER", sentinels.name)
            # Until then, it accepts writes, which the other replica confirms.
            until(lambda: role(sentinels.master) == "slave", "the old master to be demoted", seconds=FAILOVER)
            load.wait_until_all_write(FAILOVER)
        assert "master" in {role(replica) for replica in sentinels.replicas}
        assert set(load.statuses) <= {200, 503}
        assert [writer.lost() for writer in writers] == [[]] * len(writers)


@pytest.mark.slow
def test_a_replaced_master_that_wakes_is_asked_for_no_session(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir()
    there.mkdir()
    with RedisSentinels(2) as sentinels:
        driver = redis(sentinels.url, wait_replicas=1)
        with site(here, driver) as program, site(there, driver) as idle:
            visitors = [Visitor(program.port) for _ in range(40)]
            assert {visitor.put("key").status for visitor in visitors} == {200}
            cookies = [str(visitor.cookie) for visitor in visitors]
            # Both have connections to the master.
            assert len(alive(cookies, program.port)) == len(alive(cookies, idle.port)) == len(cookies)
            wait_until_replicated(sentinels.master, sentinels.replicas[0])
            wait_until_replicated(sentinels.master, sentinels.replicas[1])
            sentinels.master.send_signal(signal.SIGSTOP)
            until(lambda: "master" in {role(each) for each in sentinels.replicas}, "a replica to take over", seconds=FAILOVER)
            newcomer = Writer(program.port)
            until(lambda: newcomer.step() == 200, "a write to succeed", seconds=FAILOVER)
            assert {visitor.get("/end").status for visitor in visitors} == {200}
            sentinels.master.send_signal(signal.SIGCONT)
            assert alive(cookies, idle.port) == alive(cookies, program.port) == []


def role(server: RedisServer) -> str:
    with server.client() as client:
        found: str = client.info("replication")["role"]
    return found
