"""The MongoDB driver: one round trip for each call, JSON in MongoDB's own types, and writes in a majority's journals."""

from __future__ import annotations

import asyncio
import gc
import logging
import re
import signal
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import closing, suppress
from functools import partial
from secrets import token_hex
from types import SimpleNamespace
from typing import Any, Literal, Self

import anyio
import bson
import msgspec
import pymongo
import pytest
from bson import Binary, DatetimeMS, Int64, ObjectId
from bson.raw_bson import RawBSONDocument
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pymongo import AsyncMongoClient
from pymongo.errors import OperationFailure, PyMongoError, ServerSelectionTimeoutError

from gaman import ConfigError
from gaman.session import TOMBSTONE, Outcome, Ownership, Record, Session, SessionStoreError
from gaman_session._damage import Damage
from gaman_session._driver import LARGE
from gaman_session.drivers import _mongodb_owners
from gaman_session.drivers._mongodb_batches import Documents
from gaman_session.drivers._mongodb_errors import conceal
from gaman_session.drivers._mongodb_owners import CallTime, Revocations
from gaman_session.drivers.mongodb import MongoDBDriver
from tests.servers import MongoServer, free_port, mongodb_uri
from tests.serving import until
from tests.session.sites import SECRET, Clock, Site, getting, serving, setting

pytestmark = pytest.mark.anyio

# Far ahead of the server's time, so that only the driver can tell that a session is expired.
NOW = 4_000_000_000.0
ID, NEW_ID = (digit * 64 for digit in "ab")
PASSWORD = "hunter2"
MAX_SIZE = 1 << 20


@pytest.fixture
async def driver() -> AsyncIterator[MongoDBDriver]:
    """A driver with a database of its own."""
    driver = MongoDBDriver(db_name=f"gaman_test_{token_hex(8)}", uri=mongodb_uri())
    await driver.open()
    yield driver
    await driver._client.drop_database(driver._db_name)
    await driver.close()


def record(fields: dict[str, bytes] | None = None, *, lasts: float = 1000) -> Record:
    return Record(fields or {"key": b"\1value"}, NOW, NOW + lasts, NOW + lasts)


async def apply(
    driver: MongoDBDriver, sets: dict[str, bytes], *deletes: str, id: str = ID, now: float = NOW, max_size: int = MAX_SIZE
) -> Outcome:
    return await driver.apply(id, sets, deletes, now=now, deadline=None, max_size=max_size)


async def swap(driver: MongoDBDriver, old: bytes | None, new: bytes) -> Outcome:
    return await driver.swap(ID, "key", old, new, now=NOW, deadline=None, max_size=MAX_SIZE)


async def loaded(driver: MongoDBDriver, id: str = ID) -> dict[str, bytes]:
    found = await driver.load(id, now=NOW)
    assert isinstance(found, Record), found
    return found.fields


async def document(driver: MongoDBDriver, id: str = ID) -> dict[str, Any] | None:
    return await driver._sessions.find_one({"_id": id})


async def edit(driver: MongoDBDriver, changes: dict[str, Any], id: str = ID) -> None:
    """Change a document by hand."""
    assert (await driver._sessions.update_one({"_id": id}, changes)).matched_count == 1


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]


# Options


@pytest.mark.parametrize(
    ("option", "value"),
    [
        *(("db_name", value) for value in ("", None, 1, "a.b", "a b", "\0")),
        *(("collection", value) for value in ("", None, "a..b", "$x", "\0")),
        *(("uri", value) for value in (None, 1, "", "mongodb://", "redis://localhost", "mongodb://host:port")),
        *(("timeout", value) for value in (0, -1, True, "1", float("nan"), float("inf"))),
        *(("pool_size", value) for value in (0, -1, True, 1.5, "1")),
    ],
)
def test_a_wrong_option_is_refused_by_name(option: str, value: object) -> None:
    options: dict[str, Any] = {"db_name": "app", option: value}
    with pytest.raises(ConfigError, match=option):
        MongoDBDriver(**options)


def test_a_database_must_be_named() -> None:
    with pytest.raises(ConfigError, match="db_name"):
        Site({"type": "mongodb"}, Clock())


@pytest.mark.parametrize("option", ["w=0", "tls=maybe", "maxPoolSize=many", "tlsCAFile=/none", "nonsense=1", "w=majority&w"])
def test_a_wrong_option_of_the_uri_is_refused(option: str) -> None:
    with pytest.raises(ConfigError, match="uri"):
        MongoDBDriver(db_name="app", uri=f"mongodb://localhost/?{option}")


@pytest.mark.parametrize(
    "uri",
    [
        "mongodb://user:hunter/2@localhost",
        "mongodb://user:hunter@2@localhost",
        "mongodb://user:hunter:2@localhost",
        "mongodb://user:hunter%2@localhost",
        "user:hunter2@localhost",
        "mongodb+srv://user:hunter2@localhost:1/",
        "mongodb://user:hunter2@localhost/?w=0",
    ],
)
def test_an_error_about_the_uri_does_not_show_its_password(uri: str) -> None:
    with pytest.raises(ConfigError) as caught:
        MongoDBDriver(db_name="app", uri=uri)
    lines = [line for line in traceback.format_exception(caught.value) if not line.startswith("  File")]
    assert "hunter" not in "".join(lines)


def test_writes_wait_for_a_majoritys_journals_and_all_waits_are_bounded() -> None:
    driver = MongoDBDriver(db_name="app", timeout=4)
    client, pool = driver._client, driver._client.options.pool_options
    assert client.write_concern.document == {"w": "majority", "j": True}
    assert client.options.retry_writes
    assert client.options.retry_reads
    assert (pool.socket_timeout, pool.connect_timeout, pool.max_pool_size) == (None, 1, 100)
    assert client.options.server_selection_timeout < 4
    assert (driver._sessions.database.name, driver._sessions.name) == ("app", "sessions")


def test_options_of_the_uri_take_precedence() -> None:
    options = "W=1&JOURNAL=false&socketTimeoutMS=7000&maxPoolSize=7&serverSelectionTimeoutMS=7000&connectTimeoutMS=7000"
    client = MongoDBDriver(db_name="app", uri=f"mongodb://localhost/?{options}", pool_size=3)._client
    pool = client.options.pool_options
    assert client.write_concern.document == {"w": 1, "j": False}
    assert (pool.socket_timeout, pool.connect_timeout, pool.max_pool_size) == (7, 7, 7)
    assert client.options.server_selection_timeout == 7


def test_an_srv_uri_is_left_to_pymongo() -> None:
    driver = MongoDBDriver(db_name="app", uri="mongodb+srv://user:hunter2@sessions.example.com/")
    assert driver._client.write_concern.document == {"w": "majority", "j": True}
    assert "hunter2" not in repr(driver)


# Opening


# pymongo leaves the socket to the garbage collector if a client closes while it connects.
@pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")
async def test_an_unreachable_server_fails_the_start_within_the_timeout_and_is_named() -> None:
    port = free_port()
    driver = MongoDBDriver(db_name="app", uri=f"mongodb://user:{PASSWORD}@127.0.0.1:{port}", timeout=2)
    with pytest.raises(SessionStoreError) as caught:
        await driver.open()
    assert isinstance(caught.value.__cause__, ServerSelectionTimeoutError)
    assert str(port) in str(caught.value.__cause__)
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))
    del driver, caught
    gc.collect()


async def test_a_wrong_password_fails_the_start_and_is_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    with WithPasswords() as server:
        with server.client() as client:
            client.admin.command("createUser", "user", pwd="right", roles=["root"])
        right = MongoDBDriver(db_name="app", uri=f"mongodb://user:right@{server.address}")
        await right.open()
        await right.close()
        wrong = MongoDBDriver(db_name="app", uri=f"mongodb://user:{PASSWORD}@{server.address}")
        with pytest.raises(SessionStoreError) as caught:
            await wrong.open()
    assert isinstance(caught.value.__cause__, OperationFailure)
    assert PASSWORD not in "".join(traceback.format_exception(caught.value)) + caplog.text


class WithPasswords(MongoServer):
    def command(self) -> list[str]:
        return [*super().command(), "--auth"]


async def test_many_drivers_can_open_at_once() -> None:
    drivers = [MongoDBDriver(db_name=f"gaman_test_{token_hex(8)}", uri=mongodb_uri())]
    drivers += [MongoDBDriver(db_name=drivers[0]._db_name, uri=mongodb_uri()) for _ in range(9)]
    await asyncio.gather(*(driver.open() for driver in drivers))
    await drivers[0].create(ID, record())
    assert await loaded(drivers[9]) == record().fields
    await drivers[0]._client.drop_database(drivers[0]._db_name)
    await asyncio.gather(*(driver.close() for driver in drivers))


async def test_a_driver_that_was_closed_can_be_opened_again(driver: MongoDBDriver) -> None:
    await driver.create(ID, record())
    await driver.close()
    await driver.open()
    assert await loaded(driver) == record().fields


# pymongo leaves a client of a loop that has ended to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore:Unclosed AsyncMongoClient:ResourceWarning")
@pytest.mark.parametrize("is_closed", [True, False])
def test_a_driver_opens_again_in_the_next_event_loop(is_closed: bool) -> None:
    driver = MongoDBDriver(db_name=f"gaman_test_{token_hex(8)}", uri=mongodb_uri())
    ids = [token_hex(32) for _ in range(50)]

    async def use() -> None:
        await driver.open()
        created = [await driver.load(id, now=NOW) is None for id in ids]
        await asyncio.gather(*(driver.create(id, record()) for id, is_new in zip(ids, created, strict=True) if is_new))
        assert await asyncio.gather(*(loaded(driver, id) for id in ids)) == [record().fields] * 50
        if is_closed:
            await driver.close()

    async def leave() -> None:
        await driver.open()
        await driver._client.drop_database(driver._db_name)
        await driver.close()

    for work in (use, use, leave):
        asyncio.run(work())
        gc.collect()


# pymongo leaves a client of a loop that has ended to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning", "ignore:Unclosed AsyncMongoClient:ResourceWarning")
def test_a_driver_can_be_closed_in_another_event_loop_than_the_one_it_was_used_in() -> None:
    driver = MongoDBDriver(db_name="gaman_test", uri=mongodb_uri())
    asyncio.run(driver.open())
    asyncio.run(driver.close())
    gc.collect()


@pytest.mark.parametrize(
    ("keys", "options", "names"),
    [
        ("deadline", {"expireAfterSeconds": 3600}, ["deadline_1"]),
        ("deadline", {}, ["deadline_1"]),
        ("deadline", {"expireAfterSeconds": 5, "name": 'my "own"'}, ['my "own"']),
        ("other", {"name": "deadline_1"}, ["deadline_1"]),
        ("owner", {"unique": True}, ["owner_1"]),
    ],
)
async def test_an_index_that_is_in_the_way_is_named_with_the_command_that_drops_it(
    driver: MongoDBDriver, keys: str, options: dict[str, Any], names: list[str]
) -> None:
    await driver._sessions.drop_indexes()
    await driver._sessions.create_index(keys, **options)
    with pytest.raises(ConfigError) as caught:
        await driver.open()
    for name in names:
        command = f'db.getSiblingDB("{driver._db_name}").getCollection("sessions").dropIndex({msgspec.json.encode(name).decode()})'
        assert command in str(caught.value)
        await driver._sessions.drop_index(name)
    await driver.open()
    await driver.create(ID, record())
    assert await loaded(driver) == record().fields


async def test_the_error_of_a_user_that_may_not_create_indexes_names_the_role_that_may() -> None:
    with WithPasswords() as server:
        with server.client() as client:
            client.admin.command("createUser", "root", pwd="right", roles=["root"])
        with pymongo.MongoClient[dict[str, Any]](f"mongodb://root:right@{server.address}") as client:
            client.admin.command("createUser", "user", pwd=PASSWORD, roles=[{"role": "read", "db": "app"}])
        driver = MongoDBDriver(db_name="app", uri=f"mongodb://user:{PASSWORD}@{server.address}")
        with pytest.raises(ConfigError, match=r'app\.sessions.*{role: "readWrite", db: "app"}') as caught:
            await driver.open()
    assert PASSWORD not in "".join(traceback.format_exception(caught.value))


async def test_the_server_removes_expired_sessions_and_a_purge_removes_none(driver: MongoDBDriver) -> None:
    indexes = await driver._sessions.index_information()
    assert [(each["key"], each["expireAfterSeconds"]) for each in indexes.values() if "expireAfterSeconds" in each] == [
        ([("deadline", 1)], 0)
    ]
    await driver.create(ID, record(lasts=100))
    kept = await document(driver)
    assert kept is not None
    assert isinstance(kept["deadline"], DatetimeMS)
    assert await driver.load(ID, now=NOW + 100) is None
    assert await driver.purge(now=NOW + 100, limit=10) == 0
    assert await document(driver) == kept


@pytest.mark.parametrize("fraction", [0.0, 0.0001, 0.0004, 0.00051, 0.000999, 0.1234567])
async def test_a_session_expires_at_its_deadline_to_the_fraction_of_a_millisecond(driver: MongoDBDriver, fraction: float) -> None:
    deadline = NOW + 100 + fraction
    await driver.create(ID, Record({"key": b"1"}, NOW, NOW + 1000, deadline))
    assert isinstance(await driver.load(ID, now=deadline - 0.002), Record)
    assert await driver.load(ID, now=deadline) is None
    assert await apply(driver, {"key": b"2"}, now=deadline) is Outcome.ABSENT
    await driver.destroy(ID, now=deadline)
    assert await driver.load(ID, now=deadline) is None


# Round trips


async def commands(driver: MongoDBDriver) -> list[str]:
    """Return the commands that the server got since the last time, without those of this test."""
    await driver._sessions.database.command("profile", 0)
    profile = driver._sessions.database["system.profile"]
    asked = [
        next(name for name in ("findAndModify", "find", "insert", "q") if name in each["command"])
        async for each in profile.find({"ns": driver._sessions.full_name})
    ]
    await profile.drop()
    await driver._sessions.database.command("profile", 2)
    return ["update" if name == "q" else name for name in asked]


async def test_each_use_of_a_session_is_one_round_trip(driver: MongoDBDriver) -> None:
    async def nothing(session: Session) -> None:
        pass

    async def deleting(session: Session) -> None:
        await session.delete("other")

    async def counting(session: Session) -> None:
        await session.update("count", lambda count: count + 1, 0)

    async def clearing(session: Session) -> None:
        await session.clear()

    async with serving(Site(driver, Clock())) as site:
        await commands(driver)
        browser = site.browser()
        for work, expected in (
            (getting("key"), []),
            # The profiler lists each part of a bulk write. The last one looks for a later end_everyone().
            (setting(key="value", other=1), ["update", "update"]),
            (nothing, []),
            (getting("key"), ["find"]),
            (setting(key="other"), ["update", "update"]),
            # In flight together.
            (deleting, ["findAndModify", "find"]),
            (counting, ["find", "update", "update"]),
            (clearing, ["findAndModify"]),
        ):
            await browser.do(work)
            assert sorted(await commands(driver)) == sorted(expected)


async def test_concurrent_reads_share_round_trips(driver: MongoDBDriver) -> None:
    ids = [f"{number:064x}" for number in range(50)]
    for number, id in enumerate(ids):
        await driver.create(id, record({"key": b"%d" % number}))
    await commands(driver)
    found = await asyncio.gather(*(loaded(driver, id) for id in ids * 2))
    assert found == [{"key": b"%d" % number} for number in range(50)] * 2
    assert len(await commands(driver)) <= 2


@pytest.mark.parametrize("secret", [[SECRET], [SECRET, f"the older {SECRET}"]], ids=["one secret", "rotated"])
async def test_a_read_looks_up_whether_a_session_in_a_cookie_has_ended_by_one_find(
    driver: MongoDBDriver, secret: list[str]
) -> None:
    async def log_in(session: Session) -> None:
        await session.login("user:1")

    async with serving(Site({"type": "cookies", "ended": driver}, Clock(), secret=secret)) as site:
        browser = site.browser()
        for work in (setting(key=1), log_in, getting("key")):
            await browser.do(work)
        await commands(driver)
        for _ in range(2):
            await browser.do(getting("key"))
            assert await commands(driver) == ["find"]


async def test_concurrent_loads_of_several_sessions_share_finds(driver: MongoDBDriver) -> None:
    ids = [f"{number:064x}" for number in range(50)]
    for number, id in enumerate(ids[:25]):
        await driver.create(id, record({"key": b"%d" % number}))
    await commands(driver)
    found = await asyncio.gather(*(driver.load_all([ids[i], ids[0], ids[-1 - i]], now=NOW) for i in range(25)))
    assert found == [[record({"key": b"%d" % i}), record({"key": b"0"}), None] for i in range(25)]
    assert len(await commands(driver)) <= 2


async def test_concurrent_writes_share_round_trips_and_each_has_its_own_outcome(driver: MongoDBDriver) -> None:
    async def count_updates() -> int:
        status = await driver._client.admin.command("serverStatus")
        count: int = status["metrics"]["commands"]["update"]["total"]
        return count

    ids = [digit * 64 for digit in "0123456789"]
    for id in ids[:6]:
        await driver.create(id, record(lasts=1 if id == ids[1] else 1000))
    await driver.destroy(ids[2], now=NOW)
    await driver._sessions.update_one({"_id": ids[3]}, {"$set": {"version": "none"}})
    before = await count_updates()
    outcomes = await asyncio.gather(*(apply(driver, {"key": b"new"}, id=id, now=NOW + 1) for id in ids))
    absent, ended, written = Outcome.ABSENT, Outcome.ENDED, Outcome.WRITTEN
    assert outcomes == [written, absent, ended, absent, written, written, absent, absent, absent, absent]
    # The first one is sent by itself.
    assert await count_updates() == before + 2
    assert [document["_id"] async for document in driver._sessions.find().sort("_id")] == ids[:6]
    assert await driver._sessions.count_documents({"fields.key": b"new"}) == 3


async def test_a_write_that_mongodb_refuses_does_not_affect_the_rest_of_its_batch(driver: MongoDBDriver) -> None:
    ids = [digit * 64 for digit in "0123"]
    for id in ids:
        await driver.create(id, record())
    sets = [{"key": bytes(17 << 20) if id == ids[2] else b"new"} for id in ids]
    calls = (apply(driver, each, id=id, max_size=1 << 30) for id, each in zip(ids, sets, strict=True))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(outcomes.pop(2), SessionStoreError)
    assert outcomes == [Outcome.WRITTEN] * 3


async def test_a_write_beyond_max_size_does_not_affect_the_rest_of_its_batch(driver: MongoDBDriver) -> None:
    ids = [digit * 64 for digit in "abcdef"]
    for id in ids[1:]:
        await driver.create(id, record({"key": bytes(1000)}))
    sets = [{"other": bytes(9001 if id in ids[3:5] else 10)} for id in ids]
    outcomes = await asyncio.gather(*(apply(driver, each, id=id, max_size=10_000) for id, each in zip(ids, sets, strict=True)))
    assert outcomes == [Outcome.ABSENT, *[Outcome.WRITTEN] * 2, *[Outcome.TOO_LARGE] * 2, Outcome.WRITTEN]


def size(fields: dict[str, bytes]) -> int:
    return sum(len(name.encode()) + len(value) for name, value in fields.items())


# Fields that take far more or far less room in MongoDB than they have bytes.
SIZED = {
    "numbers": {"key": msgspec.json.encode([1] * 5000)},
    "fractions": {"key": msgspec.json.encode([0.1234567890123456] * 1000)},
    "nulls": {"key": msgspec.json.encode([None] * 5000)},
    "empty names": {"key": msgspec.json.encode([{"": None}] * 1000)},
    "control characters": {"key": msgspec.json.encode("\x01" * 5000)},
    "names of control characters": {"key": msgspec.json.encode({"\x01" * n: None for n in range(100)})},
    "a name of dots": {"." * 3000: b"\1"},
    "many fields": {f"key{n}": b"1" for n in range(500)},
    "sealed": {"key": b"\1" * 5000},
}


@pytest.mark.parametrize("fields", SIZED.values(), ids=SIZED)
async def test_max_size_counts_the_bytes_and_not_the_room_in_mongodb(driver: MongoDBDriver, fields: dict[str, bytes]) -> None:
    [*_, last] = fields
    await driver.create(ID, record(dict(fields)))
    for other in (b"1", b"true", b"\1" * 100, msgspec.json.encode(["\x01"] * 100)):
        needed = size({**fields, "other": other})
        assert await apply(driver, {"other": other}, max_size=needed - 1) is Outcome.TOO_LARGE
        assert await driver.swap(ID, "other", None, other, now=NOW, deadline=None, max_size=needed - 1) is Outcome.TOO_LARGE
        assert await apply(driver, {"other": other}, "none", max_size=needed - 1) is Outcome.TOO_LARGE
        assert await apply(driver, {"other": other}, max_size=needed) is Outcome.WRITTEN
        assert await apply(driver, {last: fields[last]}, max_size=1) is Outcome.WRITTEN
        assert await apply(driver, {}, "other", max_size=1) is Outcome.WRITTEN
        assert await driver.swap(ID, "other", None, other, now=NOW, deadline=None, max_size=needed) is Outcome.WRITTEN
        assert await apply(driver, {}, "other", max_size=1) is Outcome.WRITTEN
    assert await loaded(driver) == fields


async def test_concurrent_writes_near_max_size_read_the_session_about_once_each(driver: MongoDBDriver) -> None:
    fields = {f"key{number}": b"\1" * 4000 for number in range(60)}
    assert size(fields) > LARGE
    await driver.create(ID, record(dict(fields)))
    await commands(driver)
    writes = [apply(driver, {name: b"\2" * 4000}, max_size=size(fields)) for name in fields]
    assert await asyncio.gather(*writes) == [Outcome.WRITTEN] * 60
    assert (await commands(driver)).count("find") <= 90
    assert await loaded(driver) == dict.fromkeys(fields, b"\2" * 4000)


async def test_a_large_load_shares_no_round_trip(driver: MongoDBDriver) -> None:
    ids = [f"{number:064x}" for number in range(50)]
    for number, id in enumerate(ids):
        await driver.create(id, record({"key": b"\1" * (LARGE + 1 if number in (20, 30) else 10)}))
    profile = driver._sessions.database["system.profile"]
    for _ in range(2):
        await commands(driver)
        found = await asyncio.gather(*(loaded(driver, id) for id in ids))
        assert [number for number, fields in enumerate(found) if len(fields["key"]) > LARGE] == [20, 30]
        await driver._sessions.database.command("profile", 0)
        responses = [(each["nreturned"], each["responseLength"]) async for each in profile.find({"op": "query"})]
        assert max(responses)[0] > 40
        assert [returned for returned, length in responses if length > LARGE] == [1, 1]


async def is_large(driver: MongoDBDriver) -> Any:
    found = await document(driver)
    assert found is not None
    return found.get("large", False)


@pytest.mark.parametrize("step", [3000, 30_000], ids=["small writes", "large writes"])
@pytest.mark.parametrize("value", [b"\1" * 1000, b'"%s"' % (b"x" * 998)], ids=["sealed", "native"])
async def test_a_session_that_grows_is_large_until_it_shrinks(driver: MongoDBDriver, step: int, value: bytes) -> None:
    await driver.create(ID, record())
    for number in range(2 * LARGE // step):
        assert await apply(driver, {f"{number}-{n}": value for n in range(step // 1000)}) is Outcome.WRITTEN
        assert await is_large(driver) is ((number + 1) * step > LARGE)
    names = await loaded(driver)
    assert await apply(driver, {"key": b"\1"}) is Outcome.WRITTEN
    assert await is_large(driver) is True
    assert await apply(driver, {}, *(name for name in names if name != "key")) is Outcome.WRITTEN
    assert await is_large(driver) is False
    assert await swap(driver, b"\1", b"\1" * (LARGE + 1)) is Outcome.WRITTEN
    assert await is_large(driver) is True
    assert await swap(driver, b"\1" * (LARGE + 1), b"\1") is Outcome.WRITTEN
    assert await is_large(driver) is False


@pytest.mark.parametrize("large", [None, False, True, 1, "text", [None], {}], ids=repr)
@pytest.mark.parametrize("size", [10, LARGE + 1])
async def test_a_session_is_loaded_and_written_whatever_its_large_field_holds(driver: MongoDBDriver, size: int, large: Any) -> None:
    value = b"\1" * size
    await driver.create(NEW_ID, record())
    for _ in range(2):
        await driver._sessions.delete_one({"_id": ID})
        await driver.create(ID, record({"key": value}))
        await edit(driver, {"$unset": {"large": True}} if large is None else {"$set": {"large": large}})
        found = await asyncio.gather(*(loaded(driver, id) for id in (NEW_ID, ID, ID, NEW_ID)))
        assert [len(fields["key"]) for fields in found] == [6, size, size, 6]
        outcomes = await asyncio.gather(*(apply(driver, {str(n): b"\1"}) for n in range(5)))
        assert outcomes == [Outcome.WRITTEN] * 5
        assert await loaded(driver) == {"key": value, **{str(n): b"\1" for n in range(5)}}


async def test_an_unknown_session_in_a_batch_is_absent(driver: MongoDBDriver) -> None:
    await driver.create(ID, record())
    unknown = [f"{number:064x}" for number in range(20)]
    found = await asyncio.gather(*(driver.load(id, now=NOW) for id in [ID, ID, *unknown, ID]))
    assert [isinstance(each, Record) for each in found] == [True, True, *[False] * 20, True]
    assert found[2:22] == [None] * 20


async def test_a_cancelled_load_does_not_affect_the_rest_of_its_batch(driver: MongoDBDriver) -> None:
    await driver.create(ID, record())
    first, cancelled, last = (asyncio.create_task(driver.load(ID, now=NOW)) for _ in range(3))
    await asyncio.sleep(0)
    cancelled.cancel()
    assert isinstance(await first, Record)
    assert isinstance(await last, Record)
    assert cancelled.cancelled()


# Documents

HOSTILE = ["", "%", "%25", "%2E", ".", "..", "a.b", "$", "$set", "a$b", "\0", "_id", "0", "%zz", "é", "\U0001f511", "k" * 10_000]


async def test_hostile_names_are_escaped_and_ordinary_ones_are_not(driver: MongoDBDriver) -> None:
    fields = {name: b"\1" + name.encode() for name in HOSTILE}
    await driver.create(ID, record(fields))
    assert await loaded(driver) == fields
    for name in HOSTILE:
        assert await driver.swap(ID, name, fields[name], b"\2", now=NOW, deadline=None, max_size=MAX_SIZE) is Outcome.WRITTEN
    kept = await document(driver)
    assert kept is not None
    names = list(kept["fields"])
    assert len(set(names)) == len(HOSTILE)
    assert {"_id", "0", "é", "\U0001f511", "%", "a%2Eb", "%24set", "%00", "%25zz"} < set(names)
    assert await apply(driver, {}, *HOSTILE) is Outcome.EMPTIED


async def test_json_can_be_queried(driver: MongoDBDriver) -> None:
    async with serving(Site(driver, Clock(), encrypt=False)) as site:
        browser = site.browser()
        await browser.do(setting(user={"id": 1, "tags": ["a", "b"]}, cart=[{"sku": "x", "price": 1.5}]))
        for query in (
            {"fields.user.id": 1},
            {"fields.user.tags": "b"},
            {"fields.cart.sku": "x"},
            {"fields.cart.price": {"$gt": 1}},
        ):
            assert await driver._sessions.count_documents(query) == 1, query
        await browser.do(setting(user={"name": "Angga"}))
        assert await browser.all() == {"user": {"name": "Angga"}, "cart": [{"sku": "x", "price": 1.5}]}


async def test_sealed_values_are_binary(driver: MongoDBDriver) -> None:
    async with serving(Site(driver, Clock())) as site:
        await site.browser().do(setting(user={"id": 1}))
        kept = await driver._sessions.find_one({})
    assert kept is not None
    assert isinstance(kept["fields"]["user"], bytes)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from(["_id", "$ref", "$id", "$set", "a.b", "0"]), inner),
)
ODD = [
    *(b"null", b"[]", b"{}", b'""', b"0", b"-0", b"1", b"1.0", b"-0.0", b"1e300", b"5e-324", b"true", b'"\\u0000"'),
    *(b"9223372036854775807", b"9223372036854775808", b"-9223372036854775808", b"-9223372036854775809", b"2147483648"),
    *(b'{"b":1,"a":2}', b'{"a":1,"a":2}', b'{"":1}', b'{"\\u0000":1}', b'{"a.b":1}', b'{"b":1,"_id":2}', b"[1,1.0,[]]"),
    *(b'{"$ref":"a","$id":1}', b'{"$set":1}', b'{"$literal":1}', b'"$fields"', b'"$$ROOT"', b" 1", b"1 ", b'{"a": 1}', b"1E5"),
    *(b"[" * 49 + b"]" * 49, b"[" * 200 + b"]" * 200, b"[" * 5000 + b"]" * 5000, b"[" * 10**6, b'{"a":' * 60 + b"1" + b"}" * 60),
    *(b"", b"\0", b"\xff", b'"\xff"', b'"\\ud800"', b"NaN", b"1e999", b"\x01{}", bytes(range(256))),
]


@given(values=st.lists(JSON.map(msgspec.json.encode) | st.binary(), max_size=20))
@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_value_comes_back_to_the_byte(driver: MongoDBDriver, values: list[bytes]) -> None:
    await come_back(driver, values)


async def test_odd_values_come_back_to_the_byte(driver: MongoDBDriver) -> None:
    await come_back(driver, ODD)


async def come_back(driver: MongoDBDriver, values: list[bytes]) -> None:
    """Store the values by each call that can, and load them."""
    fields = {f"key{number}": value for number, value in enumerate(values)} | {"stays": b"1"}
    backwards = dict(zip(fields, reversed(fields.values()), strict=True))
    id = token_hex(32)
    await driver.create(id, record(fields))
    assert await loaded(driver, id) == fields
    assert await apply(driver, backwards, id=id) is Outcome.WRITTEN
    assert await loaded(driver, id) == backwards
    for name, value in fields.items():
        assert await driver.swap(id, name, backwards[name], value, now=NOW, deadline=None, max_size=MAX_SIZE) is Outcome.WRITTEN
    assert await loaded(driver, id) == fields


@pytest.mark.parametrize("new", [b'{"c":3}', b"{}", b"[]", b"null", b"\1"])
async def test_an_object_is_replaced_and_not_merged(driver: MongoDBDriver, new: bytes) -> None:
    await driver.create(ID, record({"key": b'{"a":1,"b":{"c":2}}'}))
    assert await apply(driver, {"key": new}) is Outcome.WRITTEN
    assert await loaded(driver) == {"key": new}


SIMILAR = [
    *(b"1", b"1.0", b"true", b'"1"', b"[1]", b"[1.0]", b"[[1]]", b"0", b"0.0", b"-0.0", b"null", b"[null]", b"false", b"[]", b"{}"),
    *(
        b'{"a":1,"b":2}',
        b'{"b":2,"a":1}',
        b'{"a":1.0,"b":2}',
        b'{"a":1}',
        b"",
        b"\1",
        b'""',
        b"9007199254740993",
        b"9007199254740992.0",
    ),
]


@pytest.mark.parametrize("stored", [*SIMILAR, None])
async def test_a_swap_distinguishes_similar_values(driver: MongoDBDriver, stored: bytes | None) -> None:
    await driver.create(ID, record({"other": b"1"} | ({} if stored is None else {"key": stored})))
    before = await document(driver)
    for old in (*SIMILAR, None):
        if old != stored:
            assert await swap(driver, old, b"2") is Outcome.CONFLICT, old
    assert await document(driver) == before
    assert await swap(driver, stored, b"2") is Outcome.WRITTEN
    assert await loaded(driver) == {"other": b"1", "key": b"2"}


async def test_a_swap_loses_no_write_that_comes_after_its_read(driver: MongoDBDriver) -> None:
    class Interrupted(Documents):
        """After each read of the session, another call writes to it."""

        async def load(self, id: str, now: float, connection: Any = None) -> Record | Literal[Outcome.ENDED] | None:
            found = await super().load(id, now)
            assert await apply(driver, {"key": b"2"}) is Outcome.WRITTEN
            return found

    await driver.create(ID, record({"key": b"1"}))
    interrupted = MongoDBDriver(db_name=driver._db_name, uri=mongodb_uri())
    interrupted._documents = Interrupted(interrupted._sessions, 10, Damage("mongodb"))
    assert await swap(interrupted, b"1", b"3") is Outcome.CONFLICT
    await interrupted.close()
    assert await loaded(driver) == {"key": b"2"}


async def test_a_document_that_is_too_large_is_an_error_and_the_stored_one_stays(driver: MongoDBDriver) -> None:
    large = b"\1" * 9_000_000
    await driver.create(ID, record({"key": large}))
    with pytest.raises(SessionStoreError) as caught:
        await apply(driver, {"other": large}, max_size=1 << 30)
    assert isinstance(caught.value.__cause__, PyMongoError)
    with pytest.raises(SessionStoreError):
        await driver.create(NEW_ID, record({"one": large, "other": large}))
    assert await loaded(driver) == {"key": large}
    assert await document(driver, NEW_ID) is None


# Endings


@pytest.mark.parametrize("end", ["destroy", "rename", "emptying"])
async def test_a_tombstone_has_no_data_of_the_session(driver: MongoDBDriver, end: str) -> None:
    await driver.create(ID, record())
    if end == "destroy":
        await driver.destroy(ID, now=NOW)
    elif end == "rename":
        assert await driver.rename(ID, NEW_ID, record(), version=0, now=NOW) is Outcome.WRITTEN
    else:
        assert await apply(driver, {}, "key") is Outcome.EMPTIED
    tombstone: dict[str, object] = {"_id": ID, "ended": True, "deadline": DatetimeMS(int(NOW + TOMBSTONE) * 1000)}
    rest: dict[str, dict[str, object]] = {"destroy": {}, "rename": {"successor": NEW_ID}, "emptying": {"version": 1}}
    assert await document(driver) == tombstone | rest[end]


async def test_a_logout_between_the_round_trips_of_a_rename_leaves_no_session(driver: MongoDBDriver) -> None:
    class Interrupted(Revocations):
        """Between the two round trips of a rename, the session is ended."""

        async def insert(
            self, id: str, record: Record, call: CallTime, is_live: Callable[[], bool], *, old_id: str | None = None
        ) -> bool:
            if id == NEW_ID:
                await driver.destroy(ID, now=NOW)
            return await super().insert(id, record, call, is_live, old_id=old_id)

    interrupted = MongoDBDriver(db_name=driver._db_name, uri=mongodb_uri())
    interrupted._revocations = Interrupted(interrupted._sessions, interrupted._documents.endings)
    await interrupted.create(ID, record())
    assert await interrupted.rename(ID, NEW_ID, record(), version=0, now=NOW) is Outcome.ENDED
    assert await interrupted.load(ID, now=NOW) is Outcome.ENDED
    assert await interrupted.load(NEW_ID, now=NOW) is Outcome.ENDED
    assert await interrupted.load(NEW_ID, now=NOW + TOMBSTONE) is None
    await interrupted.close()


async def test_a_logout_concurrent_with_a_rename_leaves_no_session(driver: MongoDBDriver) -> None:
    for _ in range(100):
        id, new_id = token_hex(32), token_hex(32)
        await driver.create(id, record())
        await asyncio.gather(driver.rename(id, new_id, record(), version=0, now=NOW), driver.destroy(id, now=NOW))
        assert await driver.load(id, now=NOW) is Outcome.ENDED
        assert not isinstance(await driver.load(new_id, now=NOW), Record)


async def test_ending_an_unknown_or_expired_session_stores_nothing(driver: MongoDBDriver) -> None:
    await driver.destroy(ID, now=NOW)
    await driver.create(NEW_ID, record(lasts=10))
    before = await document(driver, NEW_ID)
    await driver.destroy(NEW_ID, now=NOW + 10)
    assert await document(driver) is None
    assert await document(driver, NEW_ID) == before


async def test_a_late_ending_does_not_prolong_a_tombstone(driver: MongoDBDriver) -> None:
    await driver.create(ID, record())
    await driver.destroy(ID, now=NOW)
    await driver.destroy(ID, now=NOW + TOMBSTONE - 1)
    assert await driver.load(ID, now=NOW + TOMBSTONE) is None


async def test_tombstones_that_lead_in_a_circle_are_each_followed_once(driver: MongoDBDriver) -> None:
    tomb = {"ended": True, "deadline": DatetimeMS(int(NOW + TOMBSTONE) * 1000)}
    await driver._sessions.insert_many([{"_id": ID, **tomb, "successor": NEW_ID}, {"_id": NEW_ID, **tomb, "successor": ID}])
    await driver.destroy(ID, now=NOW)
    assert await driver.load(NEW_ID, now=NOW) is Outcome.ENDED


async def test_a_rename_to_an_id_that_is_taken_is_an_error(driver: MongoDBDriver) -> None:
    await driver.create(ID, record())
    await driver.create(NEW_ID, record({"other": b"1"}))
    with pytest.raises(SessionStoreError):
        await driver.rename(ID, NEW_ID, record(), version=0, now=NOW)
    assert await loaded(driver, NEW_ID) == {"other": b"1"}


# Owners

OWNER = "user:2"


def owned(since: float = NOW) -> Record:
    return Record({"key": b"\1value"}, NOW, NOW + 1000, NOW + 1000, ownership=Ownership(OWNER, b"", since))


async def rename(driver: MongoDBDriver, id: str, since: float = NOW, new_id: str | None = None) -> tuple[str, Outcome]:
    new_id = new_id or token_hex(32)
    return new_id, await driver.rename(id, new_id, owned(since), version=0, now=NOW + 1)


async def is_live(driver: MongoDBDriver, id: str) -> bool:
    found = isinstance(await driver.load(id, now=NOW + 1), Record)
    assert (id in await driver.owned(OWNER, now=NOW + 1)) is found
    return found


async def test_ending_all_examines_the_owners_sessions_and_not_the_renamed_ones(driver: MongoDBDriver) -> None:
    ids = [token_hex(32) for _ in range(8)]
    for id in ids:
        await driver.create(id, owned())
    for _ in range(25):
        renamed = await asyncio.gather(*(rename(driver, id) for id in ids))
        assert {outcome for _, outcome in renamed} == {Outcome.WRITTEN}
        ids = [id for id, _ in renamed]
    await commands(driver)
    assert await driver.end_owned(OWNER, keep=ids[:1], now=NOW + 1) == 7
    await driver._sessions.database.command("profile", 0)
    profile = driver._sessions.database["system.profile"]
    examined = [max(each["keysExamined"], each["docsExamined"]) async for each in profile.find({"keysExamined": {"$exists": True}})]
    assert len(examined) == 4
    assert sum(examined) < 20
    assert [await is_live(driver, id) for id in ids] == [True] + [False] * 7


async def test_ending_all_succeeds_while_clients_regenerate_all_the_time(driver: MongoDBDriver) -> None:
    renamed = 0

    async def regenerate(since: float) -> str:
        """Rename a session until it is ended, and return the last id."""
        nonlocal renamed
        await driver.create(id := token_hex(32), owned(since))
        outcome = Outcome.WRITTEN
        while outcome is Outcome.WRITTEN:
            id, outcome = await rename(driver, id, since)
            renamed += 1
        assert outcome is Outcome.ENDED
        return id

    for now in (NOW, NOW + 0.1, NOW + 0.2, NOW + 0.3):
        clients = [asyncio.create_task(regenerate(now)) for _ in range(8)]
        before = renamed
        while renamed < before + 100:
            await asyncio.sleep(0)
        await driver.end_owned(OWNER, keep=(), now=now + 0.1)
        async with asyncio.timeout(30):
            last = await asyncio.gather(*clients)
        assert not any([await is_live(driver, id) for id in last])
        assert await driver.owned(OWNER, now=NOW + 1) == {}


class Schedule:
    """The commands of several calls, sent one at a time in the order that *choices* give."""

    def __init__(self, driver: MongoDBDriver) -> None:
        self._sessions: Any = driver._sessions
        self._waiting: dict[asyncio.Task[Any], asyncio.Event] = {}
        self._changed = asyncio.Event()

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._sessions, name)
        return method if name == "find" else partial(self._send, method)

    async def _send(self, method: Callable[..., Awaitable[Any]], *arguments: Any, **options: Any) -> Any:
        if (go := self._waiting.get(asyncio.current_task())) is not None:  # type: ignore[arg-type] # always called by a task
            go.clear()
            self._changed.set()
            await go.wait()
        return await method(*arguments, **options)

    async def run(self, calls: list[Awaitable[Any]], choices: list[int]) -> tuple[list[Any], list[int]]:
        """Return the results, and how many calls each choice was between. Missing choices are 0."""
        tasks = [asyncio.ensure_future(call) for call in calls]
        self._waiting = {task: asyncio.Event() for task in tasks}
        for task, go in self._waiting.items():
            go.set()
            task.add_done_callback(lambda _: self._changed.set())
        widths = list[int]()
        while True:
            while any(go.is_set() and not task.done() for task, go in self._waiting.items()):
                await self._changed.wait()
                self._changed.clear()
            there = [go for task, go in self._waiting.items() if not task.done()]
            if not there:
                return [task.result() for task in tasks], widths
            there[choices[len(widths)] if len(widths) < len(choices) else 0].set()
            widths.append(len(there))


async def in_every_order(driver: MongoDBDriver, attempt: Callable[[Schedule, list[int]], Awaitable[list[int]]]) -> int:
    """Make an attempt for each order of the commands of its calls; return how many orders there were."""
    sessions, choices, count = driver._sessions, list[int](), 0
    while True:
        schedule: Any = Schedule(driver)
        driver._sessions = driver._documents._sessions = driver._revocations._sessions = schedule
        try:
            widths = await attempt(schedule, choices)
        finally:
            driver._sessions = driver._documents._sessions = driver._revocations._sessions = sessions
        count += 1
        choices = [*choices, *[0] * (len(widths) - len(choices))]
        while choices and choices[-1] == widths[len(choices) - 1] - 1:
            choices.pop()
        if not choices:
            return count
        choices[-1] += 1


async def test_a_rename_concurrent_with_ending_all_is_ended_in_any_order(driver: MongoDBDriver) -> None:
    async def attempt(schedule: Schedule, choices: list[int]) -> list[int]:
        await driver.create(id := token_hex(32), owned())

        async def rename_twice() -> list[tuple[str, Outcome]]:
            first = await rename(driver, id)
            return [first, await rename(driver, first[0])] if first[1] is Outcome.WRITTEN else [first]

        (renamed, _), widths = await schedule.run([rename_twice(), driver.end_owned(OWNER, keep=(), now=NOW + 1)], choices)
        assert {outcome for _, outcome in renamed} <= {Outcome.WRITTEN, Outcome.ENDED}
        assert not any([await is_live(driver, each) for each in (id, *(new_id for new_id, _ in renamed))])
        await driver._sessions.delete_many({})
        return widths

    assert await in_every_order(driver, attempt) > 20


@pytest.mark.parametrize(
    "names", [["set_owner"], ["rename"], pytest.param(["set_owner", "rename"], marks=pytest.mark.slow)], ids=" and ".join
)
async def test_a_login_concurrent_with_ending_all_is_dropped_in_any_order(driver: MongoDBDriver, names: list[str]) -> None:
    async def set_owner(id: str) -> Outcome:
        return await driver.set_owner(id, Ownership(OWNER, b"", NOW), {}, (), now=NOW + 1, deadline=None, max_size=MAX_SIZE)

    async def rename_it(id: str) -> Outcome:
        _, outcome = await rename(driver, id, NOW, token_hex(32))
        return outcome

    logins = {
        "set_owner": (set_owner, {Outcome.WRITTEN, Outcome.ENDED, Outcome.REVOKED}),
        "rename": (rename_it, {Outcome.WRITTEN, Outcome.REVOKED}),
    }

    async def attempt(schedule: Schedule, choices: list[int]) -> list[int]:
        calls: list[Awaitable[Any]] = []
        for name in names:
            log_in, _ = logins[name]
            await driver.create(id := token_hex(32), record())
            calls.append(log_in(id))
        results, widths = await schedule.run([*calls, driver.end_owned(OWNER, keep=(), now=NOW + 1)], choices)
        for name, outcome in zip(names, results[:-1], strict=True):
            _, allowed = logins[name]
            assert outcome in allowed
        assert await driver.owned(OWNER, now=NOW + 1) == {}
        await driver._sessions.delete_many({})
        return widths

    assert await in_every_order(driver, attempt) > 5


async def test_a_kept_session_can_be_renamed_repeatedly(driver: MongoDBDriver) -> None:
    await driver.create(ID, owned())
    await driver.create(NEW_ID, owned())
    assert await driver.end_owned(OWNER, keep=[ID, NEW_ID], now=NOW + 1) == 0
    # A later call keeps one of them, under the id that it then has.
    id = ID
    for keep in ([ID], [], []):
        for _ in range(3):
            id, outcome = await rename(driver, id)
            assert outcome is Outcome.WRITTEN
        if keep:
            assert await driver.end_owned(OWNER, keep=[id], now=NOW + 1.5) == 1
    assert await is_live(driver, id)
    assert not await is_live(driver, NEW_ID)
    revocation = await document(driver, f"owner:{OWNER}")
    assert revocation is not None
    assert [each["id"] for each in revocation["kept"]] == [id]


async def test_a_session_that_one_revocation_ends_is_not_kept_by_the_next(driver: MongoDBDriver) -> None:
    class Between(Revocations):
        """Before a rename inserts its session, the owner's sessions are ended twice."""

        async def insert(
            self, id: str, record: Record, call: CallTime, is_live: Callable[[], bool], *, old_id: str | None = None
        ) -> bool:
            assert await driver.end_owned(OWNER, keep=[], now=NOW + 1) == 0
            assert await driver.end_owned(OWNER, keep=[ID], now=NOW + 1.5) == 0
            return await super().insert(id, record, call, is_live, old_id=old_id)

    await driver.create(ID, owned())
    between = MongoDBDriver(db_name=driver._db_name, uri=mongodb_uri())
    between._revocations = Between(between._sessions, between._documents.endings)
    assert await rename(between, ID, NOW, NEW_ID) == (NEW_ID, Outcome.ENDED)
    await between.close()
    assert not await is_live(driver, NEW_ID)


async def test_a_slow_call_does_not_mistake_a_revocation_for_one_of_a_clock_that_was_set_back(
    driver: MongoDBDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Late(Revocations):
        """Before a rename inserts its session, five seconds pass, and the owner's sessions are ended."""

        async def insert(
            self, id: str, record: Record, call: CallTime, is_live: Callable[[], bool], *, old_id: str | None = None
        ) -> bool:
            await driver.end_owned(OWNER, keep=[], now=NOW + 5)
            real = time.monotonic
            monkeypatch.setattr(_mongodb_owners, "time", SimpleNamespace(monotonic=lambda: real() + 5))
            return await super().insert(id, record, call, is_live, old_id=old_id)

    await driver.create(ID, owned())
    late = MongoDBDriver(db_name=driver._db_name, uri=mongodb_uri())
    late._revocations = Late(late._sessions, late._documents.endings)
    assert await rename(late, ID, NOW, NEW_ID) == (NEW_ID, Outcome.ENDED)
    monkeypatch.undo()
    await late.close()
    assert not await is_live(driver, NEW_ID)


# Damage

WRONG: list[Any] = [
    "text",
    1,
    1.5,
    True,
    None,
    [],
    {},
    [DatetimeMS(int(NOW + 500) * 1000)],
    [Int64(0)],
    [{"key": 1}],
    ObjectId("0" * 24),
]
DAMAGE = {
    **{
        f"{name} is {value!r}": {"$set": {name: value}}
        for name in ("created", "expires", "deadline", "version", "fields")
        for value in WRONG
        if not (name == "fields" and value == {})
    },
    **{f"no {name}": {"$unset": {name: True}} for name in ("created", "expires", "deadline", "version", "fields")},
    **{f"ended is {value!r}": {"$set": {"ended": value}} for value in (False, None, 1, "true", [True])},
}


@pytest.mark.parametrize("change", DAMAGE.values(), ids=DAMAGE)
async def test_a_damaged_document_is_absent_and_reported_once(
    driver: MongoDBDriver, change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    await driver.create(ID, record())
    await edit(driver, change)
    before = await document(driver)
    for _ in range(2):
        assert await driver.load(ID, now=NOW) is None
        assert await driver.load_all([ID, ID], now=NOW) == [None, None]
        assert await apply(driver, {"key": b"1"}) is Outcome.ABSENT
        assert await apply(driver, {}, "key") is Outcome.ABSENT
        assert await swap(driver, b"\1value", b"1") is Outcome.ABSENT
        assert await swap(driver, None, b"1") is Outcome.ABSENT
        assert await driver.rename(ID, NEW_ID, record(), version=0, now=NOW) is Outcome.ABSENT
    assert await document(driver) == before
    assert warnings_in(caplog) == [f"session {ID}: its document is damaged and counts as absent"]
    await driver.destroy(ID, now=NOW)
    assert not isinstance(await driver.load(ID, now=NOW), Record)


@pytest.mark.parametrize(
    "times",
    [
        {"created": DatetimeMS(-1)},
        {"created": DatetimeMS(2**63 - 1)},
        {"deadline": DatetimeMS(2**63 - 1)},
        {"expires": DatetimeMS(2**63 - 1)},
        {"created": DatetimeMS(int(NOW + 2000) * 1000)},
        {"deadline": DatetimeMS(int(NOW + 2000) * 1000)},
        {"deadline": DatetimeMS(10**16), "expires": DatetimeMS(10**16)},
    ],
    ids=str,
)
async def test_impossible_times_are_damage_and_the_owners_other_sessions_are_listed(
    driver: MongoDBDriver, times: dict[str, DatetimeMS], caplog: pytest.LogCaptureFixture
) -> None:
    for id in (ID, NEW_ID):
        with_owner = record()
        with_owner.ownership = Ownership("user:1", b"", NOW)
        await driver.create(id, with_owner)
    await edit(driver, {"$set": times})
    for _ in range(2):
        assert await driver.load(ID, now=NOW) is None
        assert set(await driver.owned("user:1", now=NOW)) == {NEW_ID}
    assert warnings_in(caplog) == [f"session {ID}: its document is damaged and counts as absent"]
    if "created" not in times:
        assert await apply(driver, {"key": b"1"}) is Outcome.ABSENT
        assert await swap(driver, b"\1value", b"1") is Outcome.ABSENT
    await driver.end_owned("user:1", keep=(), now=NOW)
    assert await driver.load(NEW_ID, now=NOW) is Outcome.ENDED


@pytest.mark.parametrize("seal", [value for value in WRONG if value is not None])
async def test_a_damaged_seal_is_empty(driver: MongoDBDriver, seal: Any) -> None:
    await driver.create(ID, Record({"key": b"1"}, NOW, NOW + 1000, NOW + 1000, seal=b"\1seal"))
    await edit(driver, {"$set": {"seal": seal}})
    found = await driver.load(ID, now=NOW)
    assert isinstance(found, Record)
    assert found.seal == b""


NOT_JSON: list[Any] = [ObjectId("0" * 24), DatetimeMS(0), [ObjectId("0" * 24)], {"a": {"b": DatetimeMS(0)}}, re.compile("x")]


@pytest.mark.parametrize("value", NOT_JSON, ids=repr)
async def test_a_value_that_json_cannot_hold_is_left_out_and_can_be_replaced(
    driver: MongoDBDriver, value: Any, caplog: pytest.LogCaptureFixture
) -> None:
    await driver.create(ID, record({"key": b"1", "other": b"2"}))
    for _ in range(2):
        await edit(driver, {"$set": {"fields.key": value}})
        assert await loaded(driver) == {"other": b"2"}
        assert await swap(driver, None, b"3") is Outcome.WRITTEN
        assert await loaded(driver) == {"key": b"3", "other": b"2"}
    assert warnings_in(caplog) == [f"session {ID}: the value of 'key' is damaged and counts as absent"]


@pytest.mark.parametrize("name", ["a%", "a%41", "%2e", "$a", "%%"])
async def test_a_damaged_name_is_left_out(driver: MongoDBDriver, name: str, caplog: pytest.LogCaptureFixture) -> None:
    await driver.create(ID, record({"key": b"1"}))
    kept = await document(driver)
    assert kept is not None
    kept["fields"][name] = 2
    await driver._sessions.replace_one({"_id": ID}, kept)
    assert await loaded(driver) == {"key": b"1"}
    assert len(warnings_in(caplog)) == 1


async def test_text_that_is_not_utf8_is_left_out(driver: MongoDBDriver, caplog: pytest.LogCaptureFixture) -> None:
    await driver.create(ID, record({"key": b"1"}))
    kept = await document(driver)
    assert kept is not None
    kept["fields"] |= {"<name>": 1, "value": "<text>"}
    await driver._sessions.delete_one({"_id": ID})
    raw = bson.encode(kept).replace(b"<name>", b"<n\xffme>").replace(b"<text>", b"<t\xffxt>")
    await driver._sessions.insert_one(RawBSONDocument(raw))
    assert await loaded(driver) == {"key": b"1"}
    assert len(warnings_in(caplog)) == 2


async def test_values_written_by_hand_are_loaded_if_json_can_hold_them(
    driver: MongoDBDriver, caplog: pytest.LogCaptureFixture
) -> None:
    await driver.create(ID, record({"key": b"1"}))
    await edit(
        driver, {"$set": {"fields.key": [Int64(5), {"a": Int64(2**62)}], "fields.new": "text", "fields.uuid": Binary(b"x" * 16, 4)}}
    )
    assert await loaded(driver) == {"key": b'[5,{"a":4611686018427387904}]', "new": b'"text"', "uuid": b"x" * 16}
    assert type((await loaded(driver))["uuid"]) is bytes
    assert await swap(driver, b'[5,{"a":4611686018427387904}]', b"1") is Outcome.WRITTEN
    assert warnings_in(caplog) == []


async def test_values_that_were_moved_or_edited_are_absent_and_the_rest_stays(
    driver: MongoDBDriver, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Site(driver, Clock())) as site:
        one, other = site.browser(), site.browser()
        await one.do(setting(role="user", name="Angga"))
        await other.do(setting(role="admin", name="Siti"))
        documents = {each["fields"]["role"]: each async for each in driver._sessions.find({})}
        first, second = documents.values()
        await edit(driver, {"$set": {"fields.role": second["fields"]["role"]}}, first["_id"])
        await edit(driver, {"$set": {"fields.role": second["fields"]["name"]}}, second["_id"])
        for browser in (one, other, one, other):
            assert list(await browser.all()) == ["name"]
        assert len(warnings_in(caplog)) == 2
        for value in ("admin", 1, None, {"a": 1}, ObjectId(), b"", b"\1"):
            await edit(driver, {"$set": {"fields.role": value}}, first["_id"])
            assert await one.do(getting("role")) is None
        await one.do(setting(role="guest"))
        assert await one.all() == {"role": "guest", "name": "Angga"}


async def test_a_visitor_with_a_damaged_session_can_begin_a_new_one(driver: MongoDBDriver) -> None:
    async with serving(Site(driver, Clock())) as site:
        browser = site.browser()
        await browser.do(setting(key="value"))
        await driver._sessions.update_many({}, {"$set": {"version": "text"}})
        assert await browser.all() == {}
        await browser.do(setting(key="other"))
        assert await browser.all() == {"key": "other"}


async def test_calls_get_a_connection_in_their_order() -> None:
    driver = MongoDBDriver(db_name=f"gaman_test_{token_hex(8)}", uri=mongodb_uri(), pool_size=2)
    await driver.open()
    made, ahead = dict.fromkeys(range(20), 0), set[int]()

    async def create(caller: int) -> None:
        while max(made.values()) < 30:
            await driver.create(token_hex(32), record())
            made[caller] += 1
            ahead.add(made[caller] - min(made.values()))

    await asyncio.gather(*map(create, made))
    await driver._client.drop_database(driver._db_name)
    await driver.close()
    assert max(ahead) <= 3


# Failures


async def calls_of(driver: MongoDBDriver) -> AsyncIterator[Awaitable[Any]]:
    """Yield a call of each method, in a batch and by itself."""
    for id in (ID, NEW_ID):
        yield driver.load(id, now=NOW)
        yield apply(driver, {"key": b"\1"}, id=id)
    yield driver.create(ID, record())
    yield driver.create(ID, owned())
    yield apply(driver, {"key": b"\1"}, "other")
    yield swap(driver, b"\1value", b"\1")
    yield driver.rename(ID, NEW_ID, record(), version=0, now=NOW)
    yield driver.destroy(ID, now=NOW)
    yield driver.set_owner(ID, Ownership("user:1", b"", NOW), {}, (), now=NOW, deadline=None, max_size=MAX_SIZE)
    yield driver.owned("user:1", now=NOW)
    yield driver.end_owned("user:1", keep=[ID], now=NOW)
    yield driver.count(now=NOW)
    yield driver.load_all([ID, NEW_ID], now=NOW)


@pytest.mark.parametrize("error", [AttributeError("no such attribute"), AssertionError(), RecursionError("too deep")], ids=repr)
async def test_an_unexpected_error_of_the_library_is_a_store_error(
    driver: MongoDBDriver, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    calls = [call async for call in calls_of(driver)]
    with monkeypatch.context() as patched:
        patched.setattr(AsyncMongoClient, "_select_server", fail)
        results = [*await asyncio.gather(*calls[:4], return_exceptions=True)]
        results += [(await asyncio.gather(call, return_exceptions=True))[0] for call in calls[4:]]
    for failed in results:
        assert isinstance(failed, SessionStoreError), failed
        assert failed.__cause__ is error


@pytest.fixture
def server() -> Iterator[MongoServer]:
    with MongoServer() as server:
        yield server


class Losing:
    """A proxy for the server, which closes the new connections whose numbers are in `lost`."""

    def __init__(self) -> None:
        self.lost = set[int]()
        self.connections = 0
        self._tasks = list[asyncio.Task[None]]()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connect, "127.0.0.1")
        self.uri = "mongodb://127.0.0.1:{1}".format(*self._server.sockets[0].getsockname())
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.connections in self.lost:
            writer.close()
            return
        host, _, port = mongodb_uri().removeprefix("mongodb://").partition(":")
        theirs, ours = await asyncio.open_connection(host, int(port))
        self._tasks += (asyncio.create_task(self._forward(*pair)) for pair in ((reader, ours), (theirs, writer)))

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with closing(writer), suppress(ConnectionError):
            while octets := await reader.read(65536):
                writer.write(octets)


@pytest.mark.parametrize("number", [1, 2])
async def test_a_call_to_a_standalone_server_survives_a_lost_connection(number: int) -> None:
    first, second, third = (token_hex(32) for _ in range(3))
    async with Losing() as proxy:
        # Each round trip needs a new connection.
        driver = MongoDBDriver(db_name=f"gaman_test_{token_hex(8)}", uri=f"{proxy.uri}/?maxIdleTimeMS=1")
        await driver.open()

        async def call(result: Awaitable[Any]) -> Any:
            await asyncio.sleep(0.002)
            proxy.lost = {proxy.connections + number}
            return await result

        assert await call(driver.create(first, record({"a": b"\1a", "b": b"\1b"}))) is None
        assert await call(apply(driver, {"a": b"\1A"}, id=first)) is Outcome.WRITTEN
        both = asyncio.gather(apply(driver, {"c": b"\1c"}, id=first), apply(driver, {"d": b"\1d"}, id=first))
        assert await call(both) == [Outcome.WRITTEN] * 2
        assert await call(apply(driver, {"large": b"\1" + b"x" * LARGE}, id=first)) is Outcome.WRITTEN
        assert await call(apply(driver, {}, "large", id=first)) is Outcome.WRITTEN
        assert await call(driver.rename(first, second, record(), version=5, now=NOW)) is Outcome.WRITTEN
        owning = driver.set_owner(second, Ownership(OWNER, b"", NOW), {}, (), now=NOW, deadline=None, max_size=MAX_SIZE)
        assert await call(owning) is Outcome.WRITTEN
        assert await call(driver.rename(second, third, owned(), version=1, now=NOW)) is Outcome.WRITTEN
        assert await call(driver.load(second, now=NOW)) is Outcome.ENDED
        assert await call(driver.load_all([second, token_hex(32)], now=NOW)) == [Outcome.ENDED, None]
        assert set(await call(driver.owned(OWNER, now=NOW))) == {third}
        assert await call(driver.end_owned(OWNER, keep=[third], now=NOW)) == 0
        assert await call(driver.destroy(third, now=NOW)) is None
        assert await call(driver.load(third, now=NOW)) is Outcome.ENDED
        await driver._client.drop_database(driver._db_name)
        await driver.close()


# pymongo leaves a socket that is cancelled while it connects to the garbage collector.
@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")
async def test_a_server_that_does_not_answer_fails_every_call_within_the_timeout_and_says_so(server: MongoServer) -> None:
    driver = MongoDBDriver(db_name="gaman_test", uri=server.uri, timeout=1)
    await driver.open()
    server.send_signal(signal.SIGSTOP)
    try:
        # The server may answer for another moment.
        with suppress(SessionStoreError):
            while True:
                await driver.load(ID, now=NOW)
        began = time.monotonic()
        calls = [call for _ in range(5) async for call in calls_of(driver)]
        results = await asyncio.gather(*calls, return_exceptions=True)
        # One after the other, they would take more than a minute.
        assert time.monotonic() - began < 30
    finally:
        server.send_signal(signal.SIGCONT)
    await driver.close()
    errors = [failed for failed in results if isinstance(failed, SessionStoreError)]
    assert len(errors) == len(results), results
    causes = [repr(failed.__cause__) for failed in errors]
    # The errors' tracebacks hold these sockets.
    results.clear()
    errors.clear()
    gc.collect()
    assert "TimeoutError('MongoDB did not answer within 1 seconds')" in causes
    assert "TimeoutError()" not in causes


async def test_calls_that_are_cancelled_while_there_is_no_server_leave_later_calls_working(
    server: MongoServer, caplog: pytest.LogCaptureFixture
) -> None:
    driver = MongoDBDriver(db_name="gaman_test", uri=server.uri)
    await driver.open()
    server.kill()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.1):
            await driver.count(now=NOW)
    caplog.set_level(logging.DEBUG, "pymongo.serverSelection")
    try:
        async with anyio.create_task_group() as calls:
            for _ in range(5):
                calls.start_soon(partial(driver.count, now=NOW))
            while sum("Waiting for suitable server" in line for line in caplog.messages) < 5:
                await asyncio.sleep(0)
            # Unlike Task.cancel(), this cancels again in each iteration of the event loop.
            calls.cancel_scope.cancel()
        server.start().wait()
        assert await driver.count(now=NOW) == 0
        await driver.close()
    finally:
        # Tasks that wait for a lock of pymongo can't be cancelled, and would keep a failed test from ending.
        lock: Any = driver._client._topology._lock
        while lock.locked():
            lock.release()
            await asyncio.sleep(0)


async def test_messages_name_the_servers_error_and_have_no_id_or_value(driver: MongoDBDriver) -> None:
    await driver.create(ID, record({"key": b"\1value"}))
    validator = {"fields.other": {"$exists": False}}
    await driver._sessions.database.command("collMod", "sessions", validator=validator)
    fields = {"other": b'{"pass":"secret"}'}
    with_owner = Record(fields, NOW, NOW + 1000, NOW + 1000, ownership=Ownership("user:1", b"", NOW))
    failing = [
        (driver.create(ID, record()), "11000"),
        (driver.create(NEW_ID, record(fields)), "121"),
        (driver.create(NEW_ID, with_owner), "121"),
        (apply(driver, fields), "121"),
        (apply(driver, fields, "none"), "121"),
        (swap_in(driver, fields["other"]), "121"),
    ]
    for call, code in [*failing]:
        with pytest.raises(SessionStoreError) as caught:
            await call
        assert code in repr(caught.value.__cause__)
        shown = "".join(traceback.format_exception(caught.value))
        assert not [each for each in (ID, NEW_ID, "secret", "fields") if each in shown.replace("fields.", "")], shown
    for failed in await asyncio.gather(*(apply(driver, fields) for _ in range(4)), return_exceptions=True):
        assert isinstance(failed, SessionStoreError)
        assert repr(failed.__cause__) == "WriteError('code 121')"


async def swap_in(driver: MongoDBDriver, new: bytes) -> Outcome:
    return await driver.swap(ID, "other", None, new, now=NOW, deadline=None, max_size=MAX_SIZE)


class FailingOnDemand(MongoServer):
    """A server that can be told to fail, in a replica set of one."""

    def __init__(self) -> None:
        super().__init__("tested")

    def command(self) -> list[str]:
        return [*super().command(), "--setParameter", "enableTestCommands=1"]

    def __enter__(self) -> Self:
        super().__enter__()
        with self.client() as client:
            client.admin.command("replSetInitiate", {"_id": "tested", "members": [{"_id": 0, "host": self.address}]})
            until(lambda: client.admin.command("hello")["isWritablePrimary"], "a primary")
        return self


@pytest.fixture(scope="module")
def tested_uri() -> Iterator[str]:
    with FailingOnDemand() as server:
        yield f"{server.uri}/?replicaSet=tested"


@pytest.fixture
async def tested(tested_uri: str) -> AsyncIterator[MongoDBDriver]:
    driver = MongoDBDriver(db_name=f"gaman_test_{token_hex(8)}", uri=tested_uri)
    await driver.open()
    yield driver
    await fail(driver, [], 0)
    await driver.close()


async def fail(driver: MongoDBDriver, commands: list[str], times: int, **failure: Any) -> None:
    """Have the server fail the next *times* of these commands, or no more of them."""
    mode: Any = {"times": times} if times else "off"
    data = {"failCommands": commands, **failure} if times else {}
    await driver._client.admin.command({"configureFailPoint": "failCommand", "mode": mode, "data": data})


async def test_a_server_that_steps_down_is_named_by_its_error(tested: MongoDBDriver) -> None:
    # pymongo tries each command twice.
    await fail(tested, ["find", "update"], 4, errorCode=10107)
    for call in (tested.load(ID, now=NOW), apply(tested, {"key": b"1"})):
        with pytest.raises(SessionStoreError) as caught:
            await call
        assert repr(caught.value.__cause__) == "NotPrimaryError('NotWritablePrimary 10107')"


UNCONFIRMED = {"code": 64, "codeName": "WriteConcernFailed", "errmsg": "waiting for replication timed out"}


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("since", [None, NOW, NOW + 1], ids=["no owner", "same owner", "new owner"])
async def test_a_rename_that_is_made_and_not_confirmed_says_so_and_keeps_the_session(
    tested: MongoDBDriver, since: float | None, times: int
) -> None:
    new = record({"key": b"\1new"})
    await tested.create(ID, record() if since is None else owned())
    if since is not None:
        new.ownership = Ownership("user:1", b"", since)
    await fail(tested, ["update", "findAndModify", "insert"], times, writeConcernError=UNCONFIRMED)
    with pytest.raises(SessionStoreError) as caught:
        await tested.rename(ID, NEW_ID, new, version=0, now=NOW + 2)
    assert caught.value.is_unconfirmed
    assert repr(caught.value.__cause__) == "WriteConcernError('WriteConcernFailed 64')"
    assert await tested.load(ID, now=NOW + 2) is Outcome.ENDED
    assert await loaded(tested, NEW_ID) == {"key": b"\1new"}


async def test_a_rename_that_is_not_made_and_not_confirmed_is_an_ordinary_failure(tested: MongoDBDriver) -> None:
    await tested.create(ID, record())
    await fail(tested, ["update"], 1, writeConcernError=UNCONFIRMED)
    with pytest.raises(SessionStoreError) as caught:
        await tested.rename(ID, NEW_ID, record(), version=7, now=NOW)
    assert not caught.value.is_unconfirmed
    assert await loaded(tested) == {"key": b"\1value"}
    assert await tested.load(NEW_ID, now=NOW) is None


async def test_a_write_that_is_not_confirmed_is_a_failure(tested: MongoDBDriver) -> None:
    await tested.create(ID, record())
    ownership = Ownership("user:1", b"", NOW)
    makes: list[Callable[[], Awaitable[Any]]] = [
        lambda: apply(tested, {"key": b"\2"}),
        lambda: apply(tested, {"key": b"\2"}, "none"),
        lambda: tested.create(NEW_ID, owned()),
        lambda: tested.set_owner(ID, ownership, {"key": b"\2"}, (), now=NOW, deadline=None, max_size=MAX_SIZE),
        lambda: tested.end_owned("user:1", keep=(), now=NOW + 1),
        lambda: tested.destroy(ID, now=NOW),
    ]
    for make in makes:
        await fail(tested, ["update", "findAndModify", "insert"], 1, writeConcernError=UNCONFIRMED)
        with pytest.raises(SessionStoreError) as caught:
            await make()
        assert "WriteConcernFailed 64" in repr(caught.value.__cause__)


def test_errors_that_refer_to_each_other_are_concealed() -> None:
    error, cause = OperationFailure("secret"), OperationFailure("another secret")
    error.__cause__, cause.__cause__ = cause, error
    assert "secret" not in f"{conceal(error, 1)!r} {cause!r}"
