"""The SQL driver: writes share transactions, a wait for a lock delays no reads, and damaged rows are absent."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Generator
from contextlib import closing, contextmanager
from pathlib import Path
from random import Random
from typing import Any

import pytest

from gaman.errors import ConfigError
from gaman.session import TOMBSTONE, Outcome, Ownership, Record, Session, SessionStoreError
from gaman_session._driver import LARGE
from gaman_session.drivers import _sqlite_sessions, sql
from gaman_session.drivers._reports import reports
from gaman_session.drivers._sqlite import Connection
from gaman_session.drivers._sqlite_sessions import SessionTables
from gaman_session.drivers.sql import SQLDriver
from tests.session.sites import Clock, Site, getting, serving, setting

pytestmark = pytest.mark.anyio

ROOT = Path(__file__).parents[2]
NOW = 1_800_000_000.0
MAX_SIZE = 1 << 20
SEALED = b"\x01 not JSON"


def record(lasts: float = 1000, *, fields: dict[str, bytes] | None = None, ownership: Ownership | None = None) -> Record:
    return Record(fields or {"key": SEALED}, NOW, NOW + lasts, NOW + lasts, ownership=ownership)


def id_of(number: int) -> str:
    return f"{number:064x}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "sessions.db"


@pytest.fixture
async def driver(file: Path) -> AsyncIterator[SQLDriver]:
    driver = SQLDriver(file=file)
    await driver.open()
    yield driver
    await driver.close()


async def write(driver: SQLDriver, number: int, key: str = "key", value: bytes = b"\x01") -> Outcome:
    return await driver.apply(id_of(number), {key: value}, (), now=NOW, deadline=None, max_size=MAX_SIZE)


async def is_there(driver: SQLDriver, number: int) -> bool:
    return isinstance(await driver.load(id_of(number), now=NOW), Record)


def by_hand(file: Path, statement: str, *values: object) -> list[Any]:
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("PRAGMA ignore_check_constraints = ON")
        return db.execute(statement, values).fetchall()


@contextmanager
def locked(file: Path) -> Generator[sqlite3.Connection]:
    """Hold the write lock, as another process would."""
    with closing(sqlite3.connect(file, isolation_level=None)) as db:
        db.execute("BEGIN EXCLUSIVE")
        yield db


def files(file: Path) -> dict[str, int]:
    """Return the mode of each file in the folder of *file*."""
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in file.parent.iterdir()}


def damage_pages(file: Path) -> None:
    """Overwrite all pages but the first."""
    content = file.read_bytes()
    file.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))


def starting(file: Path, script: str, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", script, str(file), *arguments],
        env={**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "integrations")))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[str, str]:
    """Return its output and its errors, once it has ended."""
    try:
        return process.communicate(timeout=60)
    finally:
        process.kill()


async def traced(connection: Connection[SessionTables]) -> list[str]:
    """Return a list of the statements that are run from now on."""
    statements: list[str] = []

    def trace(statement: str) -> None:
        # The statements of a trigger are shown as comments.
        if not statement.startswith("--"):
            statements.append(statement.split(None, 1)[0] if statement.startswith(("SELECT", "\nSELECT")) else statement)

    await connection.perform(lambda db: db.set_trace_callback(trace))
    return statements


def verbs(statements: list[str]) -> list[str]:
    return [statement.split()[0] for statement in statements]


# Options


@pytest.mark.parametrize("file", ["", ":memory:", "a\0b", None, 1, b"sessions.db"], ids=repr)
async def test_a_file_that_is_not_a_path_is_refused(file: Any) -> None:
    with pytest.raises(ConfigError, match="the sql driver has file="):
        SQLDriver(file=file)


@pytest.mark.parametrize("seconds", [0, -1, True, "5", None, float("nan"), float("inf"), 1e10], ids=repr)
async def test_a_timeout_that_is_not_a_number_of_seconds_is_refused(seconds: Any) -> None:
    with pytest.raises(ConfigError, match="the sql driver has timeout="):
        SQLDriver(timeout=seconds)


async def test_making_a_driver_opens_nothing(file: Path) -> None:
    driver = SQLDriver(file=file)
    assert files(file) == {}
    await driver.close()


# The file


async def test_the_files_and_a_new_folder_are_for_this_user_only(tmp_path: Path) -> None:
    file = tmp_path / "new" / "sessions.db"
    driver, mask = SQLDriver(file=file), os.umask(0)
    try:
        await driver.open()
        await driver.create(id_of(0), record())
    finally:
        os.umask(mask)
    assert files(file.parent) == {"new": 0o700}
    assert files(file) == {"sessions.db": 0o600, "sessions.db-wal": 0o600, "sessions.db-shm": 0o600}
    await driver.close()


async def test_an_existing_file_keeps_its_mode_and_its_other_tables(file: Path) -> None:
    by_hand(file, "CREATE TABLE visitors (name)")
    by_hand(file, "INSERT INTO visitors VALUES ('Ada')")
    by_hand(file, "PRAGMA user_version = 7")
    os.chmod(file, 0o640)
    driver = SQLDriver(file=file)
    await driver.open()
    await driver.create(id_of(0), record())
    await driver.close()
    assert files(file) == {"sessions.db": 0o640}
    assert by_hand(file, "SELECT name FROM visitors") == [("Ada",)]
    assert by_hand(file, "PRAGMA user_version") == [(7,)]


async def test_sessions_are_there_after_reopening_and_closing_removes_the_wal(driver: SQLDriver, file: Path) -> None:
    await driver.create(id_of(0), record(fields={"a": b"1", "b": SEALED}))
    await driver.close()
    assert list(files(file)) == ["sessions.db"]
    await driver.open()
    found = await driver.load(id_of(0), now=NOW)
    assert found == record(fields={"a": b"1", "b": SEALED})


async def test_closing_finishes_the_calls_in_flight(file: Path) -> None:
    driver = SQLDriver(file=file)
    await driver.open()
    calls = [asyncio.create_task(driver.create(id_of(number), record())) for number in range(3)]
    await asyncio.sleep(0)
    await driver.close()
    assert await asyncio.gather(*calls) == [None] * 3
    assert by_hand(file, "SELECT count(*) FROM sessions") == [(3,)]


@pytest.mark.parametrize("content", [b"no database", b"no database" * 1000], ids=["short", "long"])
def test_a_file_that_is_not_a_database_is_refused_and_stays_unchanged(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    driver = SQLDriver(file=file)
    with pytest.raises(ConfigError, match=r"sessions\.db.*isn't a database"):
        asyncio.run(driver.open())
    assert driver._connections == []
    assert file.read_bytes() == content


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE sessions (id, data)",
        "ALTER TABLE sessions ADD COLUMN added_later",
        "ALTER TABLE sessions DROP COLUMN size",
        "ALTER TABLE session_values DROP COLUMN value",
    ],
)
async def test_tables_of_another_kind_or_version_are_refused(driver: SQLDriver, file: Path, statement: str) -> None:
    await driver.close()
    if statement.startswith("CREATE"):
        by_hand(file, "DROP TABLE sessions")
    by_hand(file, statement)
    with pytest.raises(ConfigError, match="other tables named sessions"):
        await driver.open()


async def test_a_path_where_no_file_can_be_created_is_refused(tmp_path: Path) -> None:
    by_hand(tmp_path / "file", "CREATE TABLE visitors (name)")
    with pytest.raises(ConfigError, match="can't be created: Not a directory"):
        await SQLDriver(file=tmp_path / "file" / "sessions.db").open()
    with pytest.raises(ConfigError, match="isn't a file"):
        await SQLDriver(file=tmp_path).open()
    (tmp_path / "link").symlink_to(tmp_path / "missing" / "sessions.db")
    threads = set(threading.enumerate())
    with pytest.raises(SessionStoreError, match="open") as raised:
        await SQLDriver(file=tmp_path / "link").open()
    assert "unable to open" in str(raised.value.__cause__)
    # The threads of the event loop wait for more work. The thread of the connection has ended.
    left = [thread.name for thread in set(threading.enumerate()) - threads]
    assert [name for name in left if not name.startswith(("asyncio_", "uvloop_"))] == []


def test_many_processes_can_open_a_new_file_at_once(file: Path) -> None:
    script = """
import asyncio, sys
from gaman.session import Record
from gaman_session.drivers.sql import SQLDriver
async def main():
    driver = SQLDriver(file=sys.argv[1], timeout=60)
    print("ready", flush=True)
    sys.stdin.readline()
    await driver.open()
    await driver.create(sys.argv[2], Record({"key": b"1"}, 1.0, 2e9, 2e9))
    await driver.close()
asyncio.run(main())
"""
    processes = [starting(file, script, id_of(number)) for number in range(6)]
    for process in processes:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    assert [finish(process)[1] for process in processes] == [""] * 6
    assert by_hand(file, "SELECT count(*) FROM sessions") == [(6,)]


async def test_another_driver_in_this_process_does_not_drop_the_locks_of_the_first(driver: SQLDriver, file: Path) -> None:
    # Closing any descriptor of a file drops fcntl's locks on it.
    await driver.create(id_of(0), record())
    other = SQLDriver(file=file)
    await other.open()
    script = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.execute('SELECT * FROM sessions'); db.close()"
    assert finish(starting(file, script)) == ("", "")
    # The process would have removed the WAL if it had believed that no other used it.
    assert "sessions.db-wal" in files(file)
    await other.close()


def test_a_process_can_end_without_closing_the_driver(file: Path) -> None:
    script = """
import asyncio, sys
from gaman_session.drivers.sql import SQLDriver
driver = SQLDriver(file=sys.argv[1])
asyncio.run(driver.open())
"""
    assert finish(starting(file, script))[0] == ""


# Transactions


async def test_a_read_is_one_select_and_an_untouched_session_nothing(driver: SQLDriver) -> None:
    async with serving(Site(driver, Clock())) as site:
        browser = site.browser()
        await browser.do(setting(a=1, b=2))
        reads, writes = await traced(driver._reader), await traced(driver._writer)

        async def nothing(_: object) -> None:
            return None

        await browser.do(nothing)
        assert reads == writes == []
        assert await browser.all() == {"a": 1, "b": 2}
        assert verbs(reads) == ["SELECT"]
        assert writes == []


async def test_several_loads_are_one_call_of_the_thread(driver: SQLDriver) -> None:
    await driver.create(id_of(1), record())
    run, calls = driver._reader._execute, 0

    async def counted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        return await run(*arguments)

    # Only this connection's method, which still runs.
    driver._reader._execute = counted  # type: ignore[assignment]
    assert await driver.load_all([id_of(1), id_of(2), id_of(1)], now=NOW) == [record(), None, record()]
    assert calls == 1


async def test_a_write_to_a_session_that_was_not_read_is_one_transaction(driver: SQLDriver) -> None:
    async with serving(Site(driver, Clock())) as site:
        browser = site.browser()
        await browser.do(setting(a=1))
        reads, writes = await traced(driver._reader), await traced(driver._writer)
        await browser.do(setting(a=2))
        assert reads == []
        assert verbs(writes) == ["BEGIN", "UPDATE", "INSERT", "COMMIT"]
        assert writes[0] == "BEGIN IMMEDIATE"


async def test_concurrent_writes_share_a_transaction(driver: SQLDriver) -> None:
    writes = await traced(driver._writer)
    await asyncio.gather(*(driver.create(id_of(number), record()) for number in range(100)))
    # The first is sent at once, and all others when it has returned.
    assert (verbs(writes).count("BEGIN"), verbs(writes).count("COMMIT")) == (2, 2)
    assert [await is_there(driver, number) for number in range(100)] == [True] * 100


async def test_concurrent_calls_are_made_in_their_order(driver: SQLDriver) -> None:
    outcomes = tuple(
        await asyncio.gather(
            driver.create(id_of(0), record()),
            write(driver, 0),
            driver.destroy(id_of(0), now=NOW),
            write(driver, 0),
            write(driver, 1),
        )
    )
    assert outcomes == (None, Outcome.WRITTEN, None, Outcome.ENDED, Outcome.ABSENT)


async def test_a_commit_waits_for_the_disk(driver: SQLDriver) -> None:
    assert await driver._writer.perform(lambda sessions: sessions.execute("PRAGMA synchronous").fetchone()) == (2,)


async def test_a_failed_call_does_not_affect_the_rest_of_its_batch_and_is_undone_as_a_whole(driver: SQLDriver, file: Path) -> None:
    await driver.create(id_of(0), record())
    await driver.create(id_of(1), record())
    first, second, failed, last = await asyncio.gather(
        write(driver, 0, "first"),
        write(driver, 0, "second"),
        driver.rename(id_of(1), id_of(0), record(), version=0, now=NOW),
        write(driver, 0, "last"),
        return_exceptions=True,
    )
    assert first is second is last is Outcome.WRITTEN
    assert isinstance(failed, SessionStoreError)
    assert str(failed) == "the session store (sql) could not rename a session"
    assert isinstance(failed.__cause__, sqlite3.IntegrityError)
    assert await is_there(driver, 1)
    keys = by_hand(file, "SELECT key FROM session_values WHERE session_id = ? ORDER BY rowid", id_of(0))
    assert keys == [("key",), ("first",), ("second",), ("last",)]


async def test_a_call_with_values_that_sqlite_refuses_does_not_affect_the_rest_of_its_batch(driver: SQLDriver) -> None:
    await driver.create(id_of(0), record())
    beyond: Any = 2**70
    results = await asyncio.gather(
        write(driver, 0, "first"),
        write(driver, 0, "second"),
        write(driver, 0, "\ud800"),
        driver.create(id_of(1), Record({}, NOW, NOW, NOW, beyond)),
        write(driver, 0, "last"),
        return_exceptions=True,
    )
    assert [type(result) for result in results] == [Outcome, Outcome, SessionStoreError, SessionStoreError, Outcome]
    causes = [result.__cause__ for result in results if isinstance(result, SessionStoreError)]
    assert [type(cause) for cause in causes] == [UnicodeEncodeError, OverflowError]


async def test_an_error_of_aiosqlite_is_a_store_error(file: Path) -> None:
    closed = SQLDriver(file=file)
    await closed.open()
    await closed.close()
    calls = (
        closed.load(id_of(0), now=NOW),
        closed.create(id_of(0), record()),
        closed.destroy(id_of(0), now=NOW),
        closed.count(now=NOW),
    )
    for failed in await asyncio.gather(*calls, return_exceptions=True):
        assert isinstance(failed, SessionStoreError)
        assert isinstance(failed.__cause__, ValueError)


async def test_a_thread_that_cannot_be_started_is_a_store_error(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    other = SQLDriver(file=file)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(SessionStoreError) as caught:
            await other.open()
    assert "new thread" in str(caught.value.__cause__)


@pytest.mark.parametrize("cancelled", range(3))
async def test_a_cancelled_call_does_not_affect_the_rest_of_its_batch(driver: SQLDriver, cancelled: int) -> None:
    await driver.create(id_of(0), record())
    calls = [asyncio.create_task(write(driver, 0, f"k{number}")) for number in range(3)]
    await asyncio.sleep(0)
    calls.pop(cancelled).cancel()
    assert await asyncio.gather(*calls) == [Outcome.WRITTEN] * 2
    found = await driver.load(id_of(0), now=NOW)
    assert isinstance(found, Record)
    assert {"k0", "k1", "k2"} - {f"k{cancelled}"} <= set(found.fields)


async def test_a_full_disk_fails_the_write_and_keeps_the_stored_sessions(driver: SQLDriver) -> None:
    await driver.create(id_of(0), record())
    limit = await driver._writer.perform(lambda db: db.execute("PRAGMA max_page_count").fetchone()[0])
    await driver._writer.perform(lambda db: db.execute("PRAGMA max_page_count = 1"))
    big = write(driver, 0, "big", bytes(100_000))
    first, failed, last = await asyncio.gather(write(driver, 0, "a"), big, write(driver, 0, "b"), return_exceptions=True)
    assert first is last is Outcome.WRITTEN
    assert isinstance(failed, SessionStoreError)
    assert "full" in str(failed.__cause__)
    await driver._writer.perform(lambda db: db.execute(f"PRAGMA max_page_count = {limit}"))
    assert await write(driver, 0, "big", bytes(100_000)) is Outcome.WRITTEN
    found = await driver.load(id_of(0), now=NOW)
    assert isinstance(found, Record)
    assert set(found.fields) == {"key", "a", "b", "big"}


# Locks


async def test_reads_continue_and_a_write_waits_while_another_process_writes(driver: SQLDriver, file: Path) -> None:
    await driver.create(id_of(0), record())
    with locked(file) as other:
        waiting = asyncio.create_task(write(driver, 0, value=b"\x02"))
        for _ in range(20):
            found = await driver.load(id_of(0), now=NOW)
            assert isinstance(found, Record)
            assert found.fields == {"key": SEALED}
        assert not waiting.done()
        other.execute("COMMIT")
        assert await waiting is Outcome.WRITTEN


async def test_a_write_gives_up_after_the_timeout_and_says_why(file: Path) -> None:
    driver = SQLDriver(file=file, timeout=0.05)
    await driver.open()
    await driver.create(id_of(0), record())
    with locked(file):
        results = await asyncio.gather(*(write(driver, 0) for _ in range(50)), return_exceptions=True)
        for result in results:
            assert isinstance(result, SessionStoreError)
            assert str(result.__cause__) == "database is locked"
        writes = await traced(driver._writer)
        with pytest.raises(SessionStoreError):
            await write(driver, 0)
        assert writes == ["BEGIN IMMEDIATE"]
    assert await write(driver, 0) is Outcome.WRITTEN
    await driver.close()


async def test_calls_of_a_batch_that_waits_for_a_lock_give_up_together(file: Path) -> None:
    tried = 0

    def try_to_lock(sessions: SessionTables) -> None:
        nonlocal tried
        tried += 1
        sessions.execute("BEGIN IMMEDIATE")

    class Locking(SQLDriver):
        @reports("lock")
        async def lock(self) -> None:
            await self._reader.call(try_to_lock)

    driver = Locking(file=file, timeout=0.05)
    await driver.open()
    with locked(file):
        results = await asyncio.gather(*(driver.lock() for _ in range(50)), return_exceptions=True)
    assert [type(result) for result in results] == [SessionStoreError] * 50
    # The first is sent by itself.
    assert tried == 2
    await driver.close()


async def test_opening_waits_for_a_connection_that_prevents_the_change_to_a_wal(file: Path) -> None:
    by_hand(file, "CREATE TABLE visitors (name)")
    driver = SQLDriver(file=file, timeout=60)
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        # SQLite doesn't wait for this lock by itself.
        other.execute("BEGIN IMMEDIATE")
        opening = asyncio.create_task(driver.open())
        done, _ = await asyncio.wait([opening], timeout=0.1)
        assert not done
        other.execute("COMMIT")
        await opening
    await driver.close()


async def test_opening_gives_up_after_the_timeout_too(file: Path) -> None:
    by_hand(file, "CREATE TABLE visitors (name)")
    with locked(file), pytest.raises(SessionStoreError, match=r"could not open '.*sessions\.db'") as raised:
        await SQLDriver(file=file, timeout=0.05).open()
    assert str(raised.value.__cause__) == "database is locked"


# SQL


async def test_json_is_text_that_sql_can_query_and_any_other_value_is_a_blob(driver: SQLDriver, file: Path) -> None:
    texts = {"a": b'{"id": 7}', "b": b" 1.50 ", "c": '"\u00e9\\u0000\U0001f511"'.encode()}
    blobs = {"d": SEALED, "e": b"", "f": b'"\xff"', "g": b"[" * 100_000, "h": b"1\0", "i": b"NaN", "j": b"\xef\xbb\xbf1"}
    await driver.create(id_of(0), record(fields=texts | blobs))
    assert await driver.load(id_of(0), now=NOW) == record(fields=texts | blobs)
    kinds = by_hand(file, "SELECT key, typeof(value) FROM session_values")
    assert dict(kinds) == dict.fromkeys(texts, "text") | dict.fromkeys(blobs, "blob")
    assert by_hand(file, "SELECT json_extract(value, '$.id') FROM session_values WHERE key = 'a'") == [(7,)]
    assert await driver.swap(id_of(0), "b", b"1.50", b"2", now=NOW, deadline=None, max_size=MAX_SIZE) is Outcome.CONFLICT
    assert await driver.swap(id_of(0), "b", b" 1.50 ", b"2", now=NOW, deadline=None, max_size=MAX_SIZE) is Outcome.WRITTEN


async def test_the_query_of_the_docstring_finds_a_users_sessions(driver: SQLDriver, file: Path) -> None:
    query = (sql.__doc__ or "").split(":\n\n")[1].partition("\n\n")[0]
    async with serving(Site(driver, Clock(), encrypt=False)) as site:
        browsers = [site.browser() for _ in range(3)]
        for number, browser in zip((7, 8, 7), browsers, strict=True):
            await browser.do(setting(user={"id": number}))
        ids = [id for (id,) in by_hand(file, query)]
        assert len(ids) == 2
        assert await site.browser().all() == {}
        for id in ids:
            by_hand(file, "DELETE FROM sessions WHERE id = ?", id)
        assert [await browser.all() for browser in browsers] == [{}, {"user": {"id": 8}}, {}]
        assert by_hand(file, "SELECT count(*) FROM session_values") == [(1,)]


async def test_values_are_sealed_by_default(driver: SQLDriver, file: Path) -> None:
    async with serving(Site(driver, Clock())) as site:
        await site.browser().do(setting(key="value"))
        ((value,),) = by_hand(file, "SELECT value FROM session_values")
        assert value[0] == 1
        assert b"value" not in value


async def test_a_tombstone_has_no_data_of_the_session(driver: SQLDriver, file: Path) -> None:
    await driver.create(id_of(0), record(ownership=Ownership("owner", b"note", NOW)))
    await driver.create(id_of(1), record(ownership=Ownership("owner", b"note", NOW)))
    assert await driver.rename(id_of(0), id_of(2), record(), version=0, now=NOW) is Outcome.WRITTEN
    await driver.destroy(id_of(1), now=NOW)
    until = NOW + TOMBSTONE
    assert by_hand(file, "SELECT * FROM sessions WHERE ended ORDER BY id") == [
        (id_of(0), until, until, until, 0, 1, id_of(2), None, None, None, 0, b""),
        (id_of(1), until, until, until, 0, 1, None, None, None, None, 0, b""),
    ]
    assert by_hand(file, "SELECT session_id FROM session_values") == [(id_of(2),)]


# Sizes


async def test_the_stored_size_is_the_bytes_of_keys_and_values_after_any_write(driver: SQLDriver, file: Path) -> None:
    random = Random(17)
    values = [b"", SEALED, '"\u00e9\U0001f511"'.encode(), b"1", bytes(5000), b'"' + b"x" * 5000 + b'"']
    keys = ["a", "\u00e9", "\U0001f511", "k\0", "k" * 100]
    id = id_of(0)
    await driver.create(id, record(fields={"kept": SEALED, "\u00e9": values[2]}))
    for _ in range(200):
        sets = {key: random.choice(values) for key in random.sample(keys, random.randrange(4))}
        deletes = random.sample(keys, random.randrange(3))
        limit = random.choice([MAX_SIZE, 6000])
        if random.random() < 0.2:
            found = await driver.load(id, now=NOW)
            assert isinstance(found, Record)
            old = found.fields.get(keys[0])
            assert await driver.swap(id, keys[0], old, values[1], now=NOW, deadline=None, max_size=limit) in (
                Outcome.WRITTEN,
                Outcome.TOO_LARGE,
            )
        else:
            deadline = random.choice([None, NOW + 500])
            await driver.apply(id, sets, deletes, now=NOW, deadline=deadline, max_size=limit)
        found = await driver.load(id, now=NOW)
        assert isinstance(found, Record)
        assert by_hand(file, "SELECT size FROM sessions") == [(sum(len(k.encode()) + len(v) for k, v in found.fields.items()),)]


async def test_a_session_with_a_wrong_stored_size_can_be_written(driver: SQLDriver, file: Path) -> None:
    await driver.create(id_of(0), record(fields={"key": bytes(1000)}))
    by_hand(file, "UPDATE sessions SET size = 10")
    assert await write(driver, 0) is Outcome.WRITTEN
    assert by_hand(file, "SELECT size FROM sessions") == [(0,)]
    assert await is_there(driver, 0)


async def test_a_small_session_is_loaded_while_a_large_one_is_read(driver: SQLDriver) -> None:
    large = record(fields={"key": bytes(LARGE)})
    await driver.create(id_of(0), record())
    await driver.create(id_of(1), large)
    go_on = threading.Event()
    reading = asyncio.create_task(driver._large_reader.perform(lambda _: go_on.wait()))
    loading = asyncio.create_task(driver.load(id_of(1), now=NOW))
    try:
        for _ in range(20):
            assert await is_there(driver, 0)
        assert not loading.done()
    finally:
        go_on.set()
    assert await loading == large
    await reading


# Purging


async def test_a_purge_removes_rows_of_both_tables_up_to_its_limit(driver: SQLDriver, file: Path) -> None:
    for number in range(7):
        await driver.create(id_of(number), record(10 * (number + 1), fields={"a": b"1", "b": b"2"}))
    assert [await driver.purge(now=NOW + 50, limit=3) for _ in range(3)] == [3, 2, 0]
    assert by_hand(file, "SELECT id FROM sessions") == [(id_of(5),), (id_of(6),)]
    assert by_hand(file, "SELECT count(*) FROM session_values") == [(4,)]


async def test_a_purge_removes_at_most_fifty_sessions_at_once(driver: SQLDriver) -> None:
    await asyncio.gather(*(driver.create(id_of(number), record(10)) for number in range(120)))
    assert [await driver.purge(now=NOW + 10, limit=1000) for _ in range(4)] == [50, 50, 20, 0]


async def test_a_purge_finds_expired_sessions_by_the_index(driver: SQLDriver, file: Path) -> None:
    plan = [step for *_, step in by_hand(file, f"EXPLAIN QUERY PLAN {_sqlite_sessions._PURGE}", NOW, 10)]
    assert any("sessions_deadline (deadline<?)" in step for step in plan), plan
    assert not any(step.startswith("SCAN") for step in plan), plan


# Owners


async def test_the_query_of_the_docstring_finds_an_owners_sessions(driver: SQLDriver, file: Path) -> None:
    query = (sql.__doc__ or "").split(":\n\n")[2]

    async def log_in(session: Session) -> None:
        await session.set("user", {"id": 7})
        await session.set_owner("user:7", note={"device": "a phone"})

    async with serving(Site(driver, Clock(), encrypt=False)) as site:
        browser, other = site.browser(), site.browser()
        await browser.do(log_in)
        await other.do(setting(user={"id": 7}))
        assert by_hand(file, query) == [(await browser.do(handle), "a phone")]
        by_hand(file, "DELETE FROM sessions WHERE owner = 'user:7'")
        assert (await browser.all(), await other.all()) == ({}, {"user": {"id": 7}})


async def handle(session: Session) -> str | None:
    return session.id


async def test_an_owners_sessions_are_found_and_all_sessions_are_counted_by_an_index(driver: SQLDriver, file: Path) -> None:
    plan = [step for *_, step in by_hand(file, f"EXPLAIN QUERY PLAN {_sqlite_sessions._OWNED}", "owner", NOW)]
    assert any("sessions_owner (owner=?)" in step for step in plan), plan
    plan = [step for *_, step in by_hand(file, f"EXPLAIN QUERY PLAN {_sqlite_sessions._COUNT}", NOW, NOW + 120)]
    assert any("COVERING INDEX sessions_deadline (deadline>?)" in step for step in plan), plan
    assert any("sessions_deadline (deadline>? AND deadline<?)" in step for step in plan), plan


async def test_a_purge_removes_the_revocation_of_an_owner_after_a_minute(driver: SQLDriver, file: Path) -> None:
    await driver.end_owned("owner", keep=(), now=NOW)
    await driver.purge(now=NOW + TOMBSTONE - 1, limit=10)
    assert by_hand(file, "SELECT owner FROM session_owners_ended") == [("owner",)]
    await driver.purge(now=NOW + TOMBSTONE, limit=10)
    assert by_hand(file, "SELECT owner FROM session_owners_ended") == []


@pytest.mark.parametrize("damage", ["since = 'then'", "since = NULL", "note = 7", "note = NULL"])
async def test_a_damaged_owner_is_absent_and_is_reported(
    driver: SQLDriver, file: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    await driver.create(id_of(0), record(ownership=Ownership("owner", b"note", NOW)))
    by_hand(file, f"UPDATE sessions SET {damage}")
    assert await driver.load(id_of(0), now=NOW) == record()
    assert await driver.owned("owner", now=NOW) == {}
    assert "its owner" in caplog.text


# Damage

HEADS = [
    "created = 'soon'",
    "created = x'00'",
    "created = 9e999",
    "created = 1e300",
    "created = -1",
    "created = expires + 1",
    "expires = 'late'",
    "expires = 9e999",
    "deadline = 'later'",
    "deadline = x'ff'",
    "deadline = expires + 1",
    "version = 'first'",
    "version = -1",
    "version = 1.5",
    "ended = 2",
    "ended = 'no'",
]


@pytest.mark.parametrize("change", HEADS)
async def test_a_damaged_row_is_absent_and_is_reported_once(
    driver: SQLDriver, file: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Site(driver, Clock())) as site:
        browser = site.browser()
        await browser.do(setting(key="value"))
        by_hand(file, f"UPDATE sessions SET {change}")
        ((id,),) = by_hand(file, "SELECT id FROM sessions")
        now = site.clock.now
        for _ in range(2):
            assert await browser.all() == {}
        assert await driver.load(id, now=now) is None
        assert await driver.load_all([id, id], now=now) == [None, None]
        assert await driver.apply(id, {"a": b"1"}, (), now=now, deadline=None, max_size=MAX_SIZE) is Outcome.ABSENT
        assert await driver.swap(id, "a", None, b"1", now=now, deadline=None, max_size=MAX_SIZE) is Outcome.ABSENT
        assert await driver.rename(id, id_of(0), record(), version=0, now=now) is Outcome.ABSENT
        await browser.do(setting(key="new"))
        assert await browser.all() == {"key": "new"}
        (warning,) = caplog.records
        assert warning.getMessage().startswith(f"session {id}: its row is damaged")


VALUES = {
    "a number": "value = 7",
    "text": "value = '\"forged\"'",
    "text that is not UTF-8": "value = CAST(x'ff' AS TEXT)",
    "a blob": "value = x'01ff'",
    "nothing": "value = x''",
    "another key's": "value = (SELECT value FROM session_values WHERE key = 'kept')",
    "another session's": "value = (SELECT value FROM session_values WHERE key = 'other')",
}


@pytest.mark.parametrize("change", VALUES.values(), ids=VALUES)
async def test_a_damaged_value_is_absent_and_the_others_stay(
    driver: SQLDriver, file: Path, change: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with serving(Site(driver, Clock())) as site:
        await site.browser().do(setting(other="other"))
        browser = site.browser()
        await browser.do(setting(key="value", kept="kept"))
        by_hand(file, f"UPDATE session_values SET {change} WHERE key = 'key'")
        for _ in range(2):
            assert await browser.do(getting("key")) is None
            assert await browser.all() == {"kept": "kept"}
        (warning,) = caplog.records
        assert "the value of 'key' is damaged" in warning.getMessage()

        def more(before: int) -> int:
            return before + 1

        async def count(session: Session) -> int:
            return await session.update("key", more, 0)

        assert await browser.do(count) == 1
        assert await browser.all() == {"key": 1, "kept": "kept"}


async def test_a_key_that_is_not_text_is_refused_or_left_out(
    driver: SQLDriver, file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await driver.create(id_of(0), record(fields={"key": b"1", "kept": b"2"}))
    with closing(sqlite3.connect(file)) as db, pytest.raises(sqlite3.IntegrityError):
        db.execute("UPDATE session_values SET key = x'61' WHERE key = 'key'")
    by_hand(file, "UPDATE session_values SET key = CAST(x'ff61' AS TEXT) WHERE key = 'key'")
    for _ in range(2):
        assert await driver.load(id_of(0), now=NOW) == record(fields={"kept": b"2"})
    assert len(caplog.records) == 1


async def test_a_session_whose_values_are_lost_is_empty_and_can_be_written(driver: SQLDriver, file: Path) -> None:
    async with serving(Site(driver, Clock())) as site:
        browser = site.browser()
        await browser.do(setting(key="value"))
        by_hand(file, "DELETE FROM session_values")
        assert await browser.all() == {}
        await browser.do(setting(key="new"))
        assert await browser.all() == {"key": "new"}


async def test_tombstones_that_lead_in_a_circle_or_nowhere_are_each_followed_once(driver: SQLDriver, file: Path) -> None:
    for number in range(3):
        await driver.create(id_of(number), record())
        await driver.destroy(id_of(number), now=NOW)
    by_hand(file, "UPDATE sessions SET successor = ? WHERE id = ?", id_of(1), id_of(0))
    by_hand(file, "UPDATE sessions SET successor = ? WHERE id = ?", id_of(0), id_of(1))
    by_hand(file, "UPDATE sessions SET successor = x'ff' WHERE id = ?", id_of(2))
    for number in range(3):
        await driver.destroy(id_of(number), now=NOW)
        assert await driver.load(id_of(number), now=NOW) is Outcome.ENDED


async def test_a_damaged_page_is_a_store_error(driver: SQLDriver, file: Path) -> None:
    await asyncio.gather(*(driver.create(id_of(number), record()) for number in range(500)))
    await driver.close()
    damage_pages(file)
    await driver.open()
    with pytest.raises(SessionStoreError) as raised:
        await driver.load(id_of(0), now=NOW)
    assert "malformed" in str(raised.value.__cause__)
