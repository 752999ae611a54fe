"""The Redis driver: what its URL may say, how many trips it makes, what it keeps where, and what it makes of damage."""

from __future__ import annotations

import asyncio
import math
import socket
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any, Self

import pytest

from gaman import ConfigError
from gaman.session import TOMBSTONE, Outcome, Record, Session, SessionStoreError, Tag
from gaman.session.testing import OWNER_CONTRACT
from gaman_session import _sealing
from gaman_session.drivers.redis import RedisDriver
from tests import servers
from tests.session.sites import Clock, Site, getting, serving, setting

pytestmark = pytest.mark.anyio

NOW = math.floor(time.time() * 1000) / 1000
MAX_SIZE = 1 << 20


def new_id() -> str:
    return _sealing.handle(_sealing.new_id())


def record(**fields: bytes) -> Record:
    return Record(fields or {"a": b"1"}, NOW, NOW + 1000, NOW + 1000)


@asynccontextmanager
async def opened(**options: Any) -> AsyncGenerator[RedisDriver]:
    options.setdefault("url", servers.redis_url())
    driver = RedisDriver(**options)
    await driver.open()
    try:
        yield driver
    finally:
        await driver.close()


def told_by(error: BaseException | None) -> str:
    """Return what a log shows of *error*, and of all that led to it."""
    if error is None:
        return ""
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return f"{error!r} {error} {told_by(before)}"


# Options


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"prefix": 1}, "prefix=1"),
        *(({"timeout": value}, f"timeout={value!r}") for value in (0, -1, True, "5", float("inf"), float("nan"))),
        *(({"pool_size": value}, f"pool_size={value!r}") for value in (0, True, 1.5)),
        *(({"wait_replicas": value}, f"wait_replicas={value!r}") for value in (-1, True, 1.5)),
        *(({"url": url}, "can't read its url") for url in ("", "http://localhost", "localhost:6379", None, 7)),
        *(({"url": url}, "can't read its url") for url in ("redis+sentinel://localhost", "redis+sentinel://localhost/")),
        *(({"url": url}, "can't read its url") for url in ("unix+cluster://x", "redis+ring://x", "redis://[", "redis://x:port")),
        *(
            ({"url": url}, "can't read its url")
            for url in ("redis://x,y", "redis://x?socket_timeout=soon", "redis+cluster://x,y:port", "redis://x?client_name=a%20b")
        ),
    ],
)
def test_a_wrong_option_is_named_at_once(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RedisDriver(**options)
    assert words in str(caught.value)


@pytest.mark.parametrize("url", ["redis://:hid/den@localhost:port", "redis://user:hidden@x:hidden", "http://:hidden@localhost"])
def test_a_password_is_in_no_error(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RedisDriver(url=url)
    assert "hid" not in told_by(caught.value)


async def test_a_server_that_is_not_there_is_named_without_its_password() -> None:
    hosts = "127.0.0.1:1,127.0.0.1:2"
    for url in (
        "redis://user:hidden@127.0.0.1:1",
        f"redis+cluster://user:hidden@{hosts}",
        f"redis+sentinel://user:hidden@{hosts}/x",
    ):
        with pytest.raises(SessionStoreError) as caught:
            async with opened(url=url, timeout=0.5):
                pass
        assert "127.0.0.1:1" in str(caught.value)
        assert caught.value.__cause__ is not None
        assert "hidden" not in told_by(caught.value)


@pytest.mark.parametrize("database", ["99", "9" * 20])
async def test_a_database_that_is_not_there_is_found_at_the_start_by_a_socket_too(database: str) -> None:
    with servers.RedisServer("--unixsocket", "redis.sock") as server:
        for url in (f"{server.url}/{database}", f"unix://{server.folder}/redis.sock?db={database}"):
            with pytest.raises(ConfigError, match=r"can't use the database in its url at .*; choose one that is there"):
                async with opened(url=url):
                    pass


async def test_a_server_that_is_no_sentinel_is_named() -> None:
    with servers.RedisServer() as server, pytest.raises(ConfigError, match=f"found no Sentinel at {server.address}; write"):
        async with opened(url=f"redis+sentinel://{server.address}/sessions"):
            pass


async def test_a_frozen_server_costs_no_more_than_the_timeout() -> None:
    # The system accepts the connection, and nobody reads from it.
    with socket.create_server(("127.0.0.1", 0)) as frozen, pytest.raises(SessionStoreError):
        async with asyncio.timeout(5), opened(url=f"redis://127.0.0.1:{frozen.getsockname()[1]}", timeout=0.2):
            pass


async def test_what_the_url_says_holds_over_what_we_would() -> None:
    url = servers.redis_url()
    async with opened(url=f"{url}{'&' if '?' in url else '?'}socket_timeout=7&client_name=mine", pool_size=3) as driver:
        settings = driver._client.connection_pool.connection_kwargs
        assert (settings["socket_timeout"], settings["client_name"]) == (7, "mine")
        assert driver._client.connection_pool.max_connections == 3


async def test_each_prefix_has_sessions_of_its_own() -> None:
    id = new_id()
    async with opened(prefix="one:") as one, opened(prefix="two:") as two:
        await one.create(id, record())
        assert await two.load(id, now=NOW) is None
        assert [key async for key in one._client.scan_iter(f"*{id}")] == [f"one:{id}".encode()]


# What is kept


async def test_a_session_is_a_hash_that_redis_removes_at_its_deadline() -> None:
    async with opened() as driver:
        id = new_id()
        await driver.create(id, Record({"a": b"1"}, NOW, NOW + 1000, NOW + 500))
        key = f"gaman:{id}"
        kept = await driver._client.hgetall(key)
        assert set(kept) == {b":a", b"created", b"deadline", b"expires", b"size", b"token", b"version"}
        assert 490 < await driver._client.ttl(key) <= 500
        await driver.apply(id, {}, (), now=NOW + 100, deadline=NOW + 700, max_size=MAX_SIZE)
        assert 590 < await driver._client.ttl(key) <= 600
        await driver.apply(id, {"b": b"2"}, (), now=NOW + 200, deadline=None, max_size=MAX_SIZE)
        assert 590 < await driver._client.ttl(key) <= 600
        await driver.destroy(id, now=NOW)
        assert set(await driver._client.hgetall(key)) == {b"ended", b"deadline"}
        assert TOMBSTONE - 10 < await driver._client.ttl(key) <= TOMBSTONE


async def test_a_server_whose_clock_differs_keeps_a_session_as_long_as_ours_says() -> None:
    async with opened() as driver:
        for hours in (-5000, 5000):
            id, now = new_id(), NOW + hours * 3600
            await driver.create(id, Record({"a": b"1"}, now, now + 1000, now + 1000))
            assert 990 < await driver._client.ttl(f"gaman:{id}") <= 1000
            assert isinstance(await driver.load(id, now=now + 999), Record)


# The index of all


async def test_all_are_counted_by_an_index_and_by_no_look_at_the_keys() -> None:
    with servers.RedisServer() as server, servers.RedisCluster() as cluster:
        for url, nodes in ((server.url, [server]), (cluster.url, cluster.nodes)):
            async with opened(url=url) as driver:
                ids = [new_id() for _ in range(100)]
                await asyncio.gather(*(driver.create(id, record()) for id in ids))
                await driver.destroy(ids[0], now=NOW)
                await driver.rename(ids[1], new_id(), record(), version=0, now=NOW)
                assert await driver.count(now=NOW) == 99
            for node in nodes:
                with node.client() as client:
                    asked: dict[str, Any] = client.info("commandstats")
                assert not asked.keys() & {"cmdstat_scan", "cmdstat_keys"}


async def test_a_session_that_is_over_leaves_the_index_by_itself() -> None:
    async with opened(prefix=f"{new_id()}:") as driver:
        client, index = driver._client, f"{driver._prefix}live"
        ids = [new_id() for _ in range(150)]
        for id in ids:
            await driver.create(id, Record({"a": b"1"}, NOW, NOW + 1000, NOW + 10))
        await driver.apply(ids[0], {}, (), now=NOW, deadline=NOW + 500, max_size=MAX_SIZE)
        assert (await driver.count(now=NOW), await driver.count(now=NOW + 10)) == (150, 1)
        assert 490 < await client.ttl(index) <= 500
        # A hundred at a time.
        for left in (51, 3):
            await driver.create(new_id(), Record({"a": b"1"}, NOW + 20, NOW + 1000, NOW + 1000))
            assert await client.zcard(index) == left
        await driver.destroy(ids[0], now=NOW + 20)
        assert (await client.zcard(index), await driver.count(now=NOW + 20)) == (2, 2)
        assert 970 < await client.ttl(index) <= 980


async def test_a_broken_index_costs_no_session() -> None:
    async with opened(prefix=f"{new_id()}:") as driver:
        await driver._client.set(f"{driver._prefix}live", "text")
        id = new_id()
        await driver.create(id, record())
        assert await driver.apply(id, {"b": b"2"}, (), now=NOW, deadline=NOW + 10, max_size=MAX_SIZE) is Outcome.WRITTEN
        assert isinstance(await driver.load(id, now=NOW), Record)
        await driver.destroy(id, now=NOW)
        assert await driver.load(id, now=NOW) is Outcome.ENDED
        with pytest.raises(SessionStoreError, match="count its sessions"):
            await driver.count(now=NOW)


# Trips


class Monitor:
    """What clients have sent to Redis, without what scripts do inside."""

    def __init__(self, url: str) -> None:
        self._driver = RedisDriver(url=url)

    async def __aenter__(self) -> Self:
        await self._driver.open()
        self._monitor = await self._driver._client.monitor().__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._monitor.__aexit__(None, None, None)
        await self._driver.close()

    async def seen(self, client: Any) -> list[str]:
        """Return the names of the commands since the last time."""
        mark = new_id()
        await client.echo(mark)
        names: list[str] = []
        while True:
            command = await self._monitor.next_command()
            if mark in command["command"]:
                return names
            if command["client_type"] != "lua":
                names.append(command["command"].split()[0].upper())


@pytest.fixture
async def watched(clock: Clock) -> AsyncGenerator[tuple[Site, Monitor, Any]]:
    """A site on a server of its own, and what that server is asked."""
    with servers.RedisServer() as server:
        driver = RedisDriver(url=server.url)
        async with serving(Site(driver, clock, idle_timeout=1000)) as site:
            # The first call of each script brings its text along.
            for id in (new_id(), new_id()):
                await driver.create(id, record())
                await driver.apply(id, {}, (), now=NOW, deadline=None, max_size=MAX_SIZE)
                await driver.swap(id, "a", b"1", b"2", now=NOW, deadline=None, max_size=MAX_SIZE)
                await driver.rename(id, new_id(), record(), version=2, now=NOW)
                await driver.destroy(id, now=NOW)
            async with Monitor(server.url) as monitor:
                yield site, monitor, driver._client


async def test_each_request_makes_as_few_trips_as_it_can(watched: tuple[Site, Monitor, Any], clock: Clock) -> None:
    site, monitor, client = watched
    browser, visitor = site.browser(), site.browser()

    async def nothing(session: Session) -> None:
        pass

    async def read_all(session: Session) -> None:
        await asyncio.gather(session.get("a"), session.get("b"), session.has("c"), session.all())

    async def read_and_write(session: Session) -> None:
        await session.set("c", await session.get("a"))
        await session.delete("b")

    async def login(session: Session) -> None:
        await session.regenerate()
        await session.set("user", 1)

    async def count(session: Session) -> None:
        await session.update("n", lambda n: n + 1, default=0)

    async def logout(session: Session) -> None:
        await session.clear()

    for who, work, expected in (
        (visitor, nothing, []),
        (visitor, read_all, []),
        (visitor, logout, []),
        (browser, setting(a=1, b=2), ["EVALSHA"]),
        (browser, nothing, []),
        (browser, read_all, ["HGETALL"]),
        (browser, setting(a=3, d=4), ["EVALSHA"]),
        (browser, read_and_write, ["HGETALL", "EVALSHA"]),
        (browser, count, ["HGETALL", "EVALSHA"]),
        (browser, login, ["HGETALL", "EVALSHA"]),
        (browser, logout, ["EVALSHA"]),
    ):
        await who.do(work)
        assert await monitor.seen(client) == expected, work.__name__


async def test_a_forged_cookie_costs_no_trip(watched: tuple[Site, Monitor, Any]) -> None:
    site, monitor, client = watched
    browser = site.browser()
    await browser.do(setting(a=1))
    assert browser.token is not None
    await monitor.seen(client)
    for token in (browser.token[:-1] + ("A" if browser.token[-1] != "A" else "E"), "x" * 74, ""):
        await site.browser(token).do(getting("a"))
    assert await monitor.seen(client) == []


async def test_reading_an_idle_session_moves_it_on_once_a_tenth_has_passed(
    watched: tuple[Site, Monitor, Any], clock: Clock
) -> None:
    site, monitor, client = watched
    browser = site.browser()
    await browser.do(setting(a=1))
    await monitor.seen(client)
    for seconds, expected in ((99, ["HGETALL"]), (1, ["HGETALL", "EVALSHA"]), (1, ["HGETALL"])):
        clock.now += seconds
        await browser.do(getting("a"))
        assert await monitor.seen(client) == expected


# Many calls at once


async def test_calls_of_one_turn_share_a_command() -> None:
    async with opened() as driver:
        ids = [new_id() for _ in range(50)]
        connections = driver._client.connection_pool._available_connections
        # One goes ahead, and the others together: two connections are all that it takes.
        await asyncio.gather(*(driver.create(id, record()) for id in ids))
        assert len(connections) <= 2
        found = await asyncio.gather(*(driver.load(id, now=NOW) for id in ids))
        assert all(isinstance(each, Record) for each in found)
        assert len(connections) <= 2


async def test_a_call_that_fails_fails_alone() -> None:
    async with opened() as driver:
        taken, damaged, *ids = [new_id() for _ in range(20)]
        await driver.create(taken, record())
        await driver._client.set(f"gaman:{damaged}", "no hash")
        results = await asyncio.gather(
            *(driver.create(id, record()) for id in ids[:9]),
            driver.create(taken, record()),
            driver.load(damaged, now=NOW),
            driver.create(damaged, record()),
            *(driver.create(id, record()) for id in ids[9:]),
            return_exceptions=True,
        )
        assert [type(result) for result in results if result is not None] == [SessionStoreError] * 2
        assert all([isinstance(await driver.load(id, now=NOW), Record) for id in ids])


async def test_a_request_that_is_cancelled_takes_only_its_own_call_with_it() -> None:
    async with opened() as driver:
        ids = [new_id() for _ in range(10)]
        tasks = [asyncio.create_task(driver.create(id, record())) for id in ids]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert results[1::2] == [None] * 5
        for id in ids[1::2]:
            assert isinstance(await driver.load(id, now=NOW), Record)


async def test_a_server_that_has_forgotten_the_scripts_is_told_them_again() -> None:
    with servers.RedisServer() as server:
        async with opened(url=server.url) as driver:
            ids = [new_id() for _ in range(5)]
            for forget in (True, False):
                if forget:
                    await driver._client.script_flush()
                await asyncio.gather(*(driver.create(id, record()) for id in ids))
                await driver._client.script_flush()
                assert await driver.apply(ids[0], {"b": b"2"}, (), now=NOW, deadline=None, max_size=MAX_SIZE) is Outcome.WRITTEN
                assert isinstance(await driver.load(ids[-1], now=NOW), Record)
                ids = [new_id() for _ in range(5)]


# A write that is tried again, because nobody knows whether its first attempt has arrived


async def test_a_write_that_arrives_twice_happens_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with opened() as driver:
        sent: list[Any] = []
        real = driver._run

        async def twice(commands: list[Any]) -> Any:
            sent.extend(commands)
            await real(commands)
            return await real(commands)

        monkeypatch.setattr(driver, "_run", twice)
        id, new = new_id(), new_id()
        await driver.create(id, record(n=b"1"))
        assert await driver.swap(id, "n", b"1", b"2", now=NOW, deadline=None, max_size=MAX_SIZE) is Outcome.WRITTEN
        found = await driver.load(id, now=NOW)
        assert isinstance(found, Record)
        assert (found.fields, found.version) == ({"n": b"2"}, 1)
        assert await driver.rename(id, new, record(), version=1, now=NOW) is Outcome.WRITTEN
        await driver.destroy(id, now=NOW)
        assert await driver.load(new, now=NOW) is Outcome.ENDED
        assert len(sent) == 7


# Two slots of a Cluster


async def test_a_logout_between_the_two_halves_of_a_rename_ends_what_it_becomes() -> None:
    async with opened(url=servers.redis_cluster_url()) as driver:

        class Interrupted(RedisDriver):
            async def _write(
                self, action: str, operation: str, ids: Sequence[str], values: Sequence[bytes], *arguments: Any
            ) -> Outcome:
                if ids[0] == new:
                    await driver.destroy(old, now=NOW)
                return await super()._write(action, operation, ids, values, *arguments)

        old, new = new_id(), new_id()
        await driver.create(old, record())
        interrupted = Interrupted(url=servers.redis_cluster_url())
        await interrupted.open()
        assert await interrupted.rename(old, new, record(), version=0, now=NOW) is Outcome.ENDED
        await interrupted.close()
        for id in (old, new):
            assert await driver.load(id, now=NOW) is Outcome.ENDED


# Replicas


async def test_a_write_waits_for_as_many_replicas_as_were_asked_for() -> None:
    with servers.RedisSentinels() as sentinels:
        for url in (sentinels.url, sentinels.master.url):
            async with opened(url=url, wait_replicas=1) as driver:
                ids = [new_id() for _ in range(5)]
                await asyncio.gather(*(driver.create(id, record()) for id in ids))
                with sentinels.replica.client() as replica:
                    assert all(replica.exists(f"gaman:{id}") for id in ids)
                assert isinstance(await driver.load(ids[0], now=NOW), Record)
            async with opened(url=url, wait_replicas=2) as driver:
                with pytest.raises(SessionStoreError) as caught:
                    await driver.create(new_id(), record())
                assert "1 of 2 replicas" in str(caught.value.__cause__)


async def test_sessions_have_owners_behind_sentinels_too() -> None:
    with servers.RedisSentinels() as sentinels:
        async with opened(url=sentinels.url, wait_replicas=1) as driver:
            for check in OWNER_CONTRACT:
                await check(driver)


# Damage


@pytest.mark.parametrize(
    "damage",
    [
        ("DEL", "created"),
        ("DEL", "expires"),
        ("DEL", "deadline"),
        ("DEL", "version"),
        ("DEL", "size"),
        *(("SET", name, value) for name in ("created", "expires", "deadline", "version", "size") for value in ("soon", "", "\xff")),
        *(("SET", name, value) for name in ("created", "expires", "deadline") for value in ("1e18", "inf", "nan", "-1")),
        *(("SET", name, value) for name in ("version", "size") for value in ("1_0", "inf", "9" * 400)),
        ("SET", "created", str(NOW + 2000)),
        ("SET", "deadline", str(NOW + 2000)),
        ("SET", "deadline", "1e18", "expires", "1e18"),
    ],
)
async def test_a_damaged_hash_is_absent_and_reported_once(damage: tuple[str, ...], caplog: pytest.LogCaptureFixture) -> None:
    async with opened() as driver:
        id = new_id()
        await driver.create(id, record())
        verb, name, *values = damage
        await driver._client.execute_command(f"H{verb}", f"gaman:{id}", name, *values)
        for _ in range(2):
            assert await driver.load(id, now=NOW) is None
        # One whose deadline is over is no damage.
        assert len([line for line in caplog.messages if id in line]) == (
            damage[1:] not in (("deadline", "nan"), ("deadline", "-1"))
        )
        if name != "created":
            assert await driver.apply(id, {"b": b"2"}, ["a"], now=NOW, deadline=NOW + 10, max_size=MAX_SIZE) is Outcome.ABSENT
            assert await driver.swap(id, "a", b"1", b"2", now=NOW, deadline=None, max_size=MAX_SIZE) is Outcome.ABSENT
            assert await driver.rename(id, new_id(), record(), version=0, now=NOW) is Outcome.ABSENT
        await driver.destroy(id, now=NOW)


async def test_a_member_of_an_owners_set_that_never_ends_holds_up_neither_logins_nor_their_end() -> None:
    async with opened() as driver:
        owner, id, other = new_id(), new_id(), new_id()
        tagged = record()
        tagged.tag = Tag(owner, b"", NOW)
        await driver.create(id, tagged)
        await driver._client.execute_command("ZADD", f"gaman:owner:{owner}", "1e18", new_id(), "inf", new_id())
        await driver.create(other, tagged)
        assert set(await driver.owned(owner, now=NOW)) == {id, other}
        assert await driver.end_owned(owner, keep=(), now=NOW) == 2


async def test_a_key_that_holds_no_hash_is_absent_and_reported_once(caplog: pytest.LogCaptureFixture) -> None:
    async with opened() as driver:
        id = new_id()
        await driver._client.set(f"gaman:{id}", "text")
        for _ in range(2):
            assert await driver.load(id, now=NOW) is None
            assert await driver.apply(id, {"b": b"2"}, (), now=NOW, deadline=None, max_size=MAX_SIZE) is Outcome.ABSENT
            await driver.destroy(id, now=NOW)
        assert len([line for line in caplog.messages if id in line]) == 1


async def test_values_that_were_moved_are_absent_and_no_error(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    driver = RedisDriver(url=servers.redis_url())
    async with serving(Site(driver, clock)) as site:
        thief, victim = site.browser(), site.browser()
        await thief.do(setting(theme="dark", n=1))
        await victim.do(setting(admin=True))

        async def get_id(session: Session) -> str:
            return f"gaman:{session.id}"

        mine, theirs = await thief.do(get_id), await victim.do(get_id)
        admin = await driver._client.hget(theirs, ":admin")
        await driver._client.hset(mine, mapping={":admin": admin, ":n": await driver._client.hget(mine, ":theme"), b":\xff": b"x"})
        for _ in range(2):
            assert await thief.all() == {"theme": "dark"}
            await thief.do(setting(other=1))
            await thief.do(lambda session: session.delete("other"))
        assert len([line for line in caplog.messages if "is not what was written there" in line]) == 3
