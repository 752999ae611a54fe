"""The file driver: the permissions of its files, damage, faults, and what purges leave."""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import shutil
import stat
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest

from gaman import ConfigError
from gaman.session import TOMBSTONE, Outcome, Ownership, Record, SessionStoreError
from gaman_session._driver import LARGE
from gaman_session.drivers import _encoding, file
from gaman_session.drivers.file import FileDriver
from tests.session.sites import Clock, Site, getting, new_folder, serving, setting

pytestmark = pytest.mark.anyio

NOW = 1_800_000_000.0
MAX_SIZE = 1 << 20
ID = "ab" + "0" * 62
OTHER = "ab" + "1" * 62
FAR = "cd" + "2" * 62


def record(lasts: float = 10_000, *, deadline: float | None = None, fields: dict[str, bytes] | None = None) -> Record:
    return Record(fields or {"key": b"value"}, NOW, NOW + lasts, NOW + (lasts if deadline is None else deadline))


@pytest.fixture
def folder() -> Iterator[Path]:
    path = new_folder()
    yield path / "sessions"
    shutil.rmtree(path)


@pytest.fixture
async def driver(folder: Path) -> AsyncIterator[FileDriver]:
    driver = FileDriver(dir=folder, timeout=30)
    await driver.open()
    yield driver
    await driver.close()


@pytest.fixture
def warnings(caplog: pytest.LogCaptureFixture) -> Callable[[], list[str]]:
    caplog.set_level(logging.WARNING, "gaman")
    return lambda: [each.getMessage() for each in caplog.records]


def files(folder: Path) -> list[str]:
    """Return the paths of all files below *folder*."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if not path.is_dir())


async def apply(
    driver: FileDriver, sets: dict[str, bytes], id: str = ID, *, now: float = NOW, deadline: float | None = None
) -> Outcome:
    return await driver.apply(id, sets, (), now=now, deadline=deadline, max_size=MAX_SIZE)


# Options


@pytest.mark.parametrize("dir", ["", "a\0b", b"sessions", 1, None])
def test_a_folder_is_a_path(dir: Any) -> None:
    with pytest.raises(ConfigError, match="it takes the path of a folder"):
        FileDriver(dir=dir)


@pytest.mark.parametrize("timeout", [0, -1, True, "5", float("inf"), float("nan")])
def test_a_timeout_is_a_number_of_seconds(timeout: Any) -> None:
    with pytest.raises(ConfigError, match="it takes a number of seconds above 0"):
        FileDriver(timeout=timeout)


def test_a_new_driver_creates_no_folder(folder: Path) -> None:
    FileDriver(dir=folder)
    assert not folder.exists()


async def test_a_folder_that_cannot_be_created_is_named_at_start_up(folder: Path) -> None:
    folder.write_text("a file")
    for dir in (folder, folder / "below", Path("/dev/null/sessions")):
        with pytest.raises(ConfigError) as raised:
            await FileDriver(dir=dir).open()
        assert f"dir='{dir}'" in str(raised.value)


async def test_on_windows_the_error_names_another_driver(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ConfigError, match="choose another driver"):
        await FileDriver(dir=folder).open()


async def test_a_relative_folder_is_relative_to_the_working_directory_of_the_constructor(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder.parent)
    driver = FileDriver(dir="sessions")
    monkeypatch.chdir("/")
    await driver.open()
    await driver.close()
    assert folder.is_dir()


# Files


@pytest.mark.parametrize("umask", [0, 0o077, 0o777], ids=oct)
async def test_no_other_user_can_read_whatever_the_umask(folder: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        driver = FileDriver(dir=folder)
        await driver.open()
        await driver.create(ID, record())
        await driver.rename(ID, FAR, record(), version=0, now=NOW)
        await driver.close()
    finally:
        os.umask(before)
    for path in (folder, *folder.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path


async def test_an_existing_folder_keeps_its_mode(folder: Path) -> None:
    folder.mkdir(0o750)
    driver = FileDriver(dir=folder)
    await driver.open()
    await driver.close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750


async def test_a_session_is_a_file_named_by_its_id_with_a_marker_named_by_its_deadline(driver: FileDriver, folder: Path) -> None:
    await driver.create(ID, record(3600))
    assert files(folder) == [f"ab/{ID}", f"due/500001/30000060/1800003600.0.{ID}"]


@pytest.mark.parametrize(
    "id", ["", ".", "..", "../x", "/etc/passwd", "ab/../../x", "\0", ID[:-1], ID + "0", ID + "\n", ID.upper(), "ab" + "é" * 62]
)
async def test_a_string_that_is_not_an_id_touches_no_file(driver: FileDriver, folder: Path, id: str) -> None:
    await driver.create(ID, record())
    before = sorted(folder.parent.rglob("*"))
    for call in (
        driver.load(id, now=NOW),
        driver.create(id, record()),
        apply(driver, {"key": b"1"}, id),
        driver.swap(id, "key", None, b"1", now=NOW, deadline=None, max_size=MAX_SIZE),
        driver.rename(id, OTHER, record(), version=0, now=NOW),
        driver.rename(ID, id, record(), version=0, now=NOW),
        driver.destroy(id, now=NOW),
    ):
        with pytest.raises(ValueError, match="64 hexadecimal digits"):
            await call
    assert sorted(folder.parent.rglob("*")) == before
    assert await driver.load(ID, now=NOW) == record()


async def test_drivers_share_a_folder_and_a_new_one_finds_the_sessions(driver: FileDriver, folder: Path) -> None:
    await driver.create(ID, record())
    for _ in range(2):
        other = FileDriver(dir=folder)
        await other.open()
        assert isinstance(await other.load(ID, now=NOW), Record)
        assert await apply(other, {"more": b"1"}) is Outcome.WRITTEN
        await other.close()
    assert await driver.load(ID, now=NOW) == Record({"key": b"value", "more": b"1"}, NOW, NOW + 10_000, NOW + 10_000, 2)


async def test_a_closed_driver_can_be_opened_again(folder: Path) -> None:
    driver = FileDriver(dir=folder)
    for expected in (None, record()):
        await driver.open()
        assert await driver.load(ID, now=NOW) == expected
        if expected is None:
            await driver.create(ID, record())
        await driver.close()


async def test_a_store_that_is_emptied_while_it_is_open_still_works(driver: FileDriver, folder: Path) -> None:
    for purges in (True, False):
        await driver.create(ID, record())
        for path in folder.iterdir():
            shutil.rmtree(path)
        assert await driver.load(ID, now=NOW) is None
        assert await apply(driver, {"key": b"1"}) is Outcome.ABSENT
        assert not purges or await purge(driver, NOW) == 0
    await driver.create(ID, record())
    assert await driver.load(ID, now=NOW) == record()


async def test_no_descriptor_stays_open(driver: FileDriver, folder: Path) -> None:
    await driver.create(ID, record())
    (folder / "ab" / OTHER).mkdir()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        await driver.load(ID, now=NOW)
        await driver.load(OTHER, now=NOW)
        await apply(driver, {"key": b"1"})
        await apply(driver, {"key": b"1"}, OTHER)
        await driver.purge(now=NOW + 9_999, limit=10)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_file_has_the_names_that_its_fields_had_at_first() -> None:
    fields = {"fields": {"key": b"value"}, "created": 1.0, "expires": 9.0, "deadline": 9.0}
    tag = {"owner": "me", "note": b"note", "since": 1.0}
    stored = Record({"key": b"value"}, 1.0, 9.0, 9.0, ownership=Ownership("me", b"note", 1.0))
    content = _encoding.protect(ID, b"\x01" + msgspec.msgpack.encode({**fields, "tag": tag}))
    assert _encoding.decode(ID, content) == stored
    assert _encoding.encode(ID, stored) == content


# Damage


async def expect_absent(driver: FileDriver, id: str = ID) -> None:
    assert await driver.load(id, now=NOW) is None
    assert await apply(driver, {"key": b"1"}, id) is Outcome.ABSENT
    assert await driver.swap(id, "key", None, b"1", now=NOW, deadline=None, max_size=MAX_SIZE) is Outcome.ABSENT
    assert await driver.rename(id, FAR, record(), version=0, now=NOW) is Outcome.ABSENT
    await driver.destroy(id, now=NOW)
    assert await driver.load(id, now=NOW) is None
    assert await driver.load(FAR, now=NOW) is None


@pytest.mark.parametrize("kept", ["a session", "a tombstone"])
async def test_a_truncated_or_damaged_file_is_absent(
    driver: FileDriver, folder: Path, kept: str, warnings: Callable[[], list[str]]
) -> None:
    path = folder / "ab" / ID
    await driver.create(ID, record())
    if kept == "a tombstone":
        await driver.rename(ID, OTHER, record(), version=0, now=NOW)
    whole = path.read_bytes()
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        assert await driver.load(ID, now=NOW) is None
        assert await driver.load_all([ID, OTHER], now=NOW) == [None, await driver.load(OTHER, now=NOW)]
    for bit in range(len(whole) * 8):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        assert await driver.load(ID, now=NOW) is None
        assert await apply(driver, {"key": b"1"}) is Outcome.ABSENT
    path.write_bytes(whole + b"\0")
    await expect_absent(driver)
    assert path.read_bytes() == whole + b"\0"
    assert warnings() == [f"session {ID}: its file is damaged and counts as absent"]
    path.write_bytes(whole)
    assert await driver.load(ID, now=NOW) == (record() if kept == "a session" else Outcome.ENDED)


@pytest.mark.parametrize(
    "place",
    ["a folder", "a link to a session", "a link outside", "a dangling link", "a pipe", "a pipe with data", "an empty file"],
)
async def test_an_entry_that_is_not_a_file_is_absent(
    driver: FileDriver, folder: Path, place: str, warnings: Callable[[], list[str]]
) -> None:
    await driver.create(OTHER, record())
    outside = folder.parent / "outside"
    outside.write_bytes(b"mine")
    path = folder / "ab" / ID
    if place == "a folder":
        path.mkdir()
    elif "a pipe" in place:
        os.mkfifo(path)
    elif place == "an empty file":
        path.touch()
    else:
        path.symlink_to({"a link to a session": OTHER, "a link outside": str(outside)}.get(place, "nowhere"))
    with ExitStack() as stack:
        if place == "a pipe with data":
            # For reading and writing, because opening one end would wait for the other.
            pipe = stack.enter_context(open(os.open(path, os.O_RDWR), "r+b", buffering=0))
            pipe.write(_encoding.encode(ID, record()))
        await expect_absent(driver)
    assert len(warnings()) == 1
    assert await driver.load(OTHER, now=NOW) == record()
    assert outside.read_bytes() == b"mine"


async def test_a_session_copied_to_another_id_is_absent(driver: FileDriver, folder: Path) -> None:
    await driver.create(OTHER, record())
    shutil.copy(folder / "ab" / OTHER, folder / "ab" / ID)
    await expect_absent(driver)


@pytest.mark.parametrize("encrypt", [True, False])
async def test_visitors_whose_files_were_swapped_have_no_session(folder: Path, encrypt: bool) -> None:
    async with serving(Site({"type": "file", "dir": folder}, Clock(), encrypt=encrypt)) as site:
        anna, otto = site.browser(), site.browser()
        await anna.do(setting(name="anna"))
        await otto.do(setting(name="otto"))
        first, second = folder.glob("[0-9a-f][0-9a-f]/*")
        contents = first.read_bytes(), second.read_bytes()
        first.write_bytes(contents[1])
        second.write_bytes(contents[0])
        for browser in (anna, otto):
            assert await browser.do(getting("name")) is None
            await browser.do(setting(name="again"))
            assert await browser.do(getting("name")) == "again"


async def test_a_forged_file_is_at_worst_absent(driver: FileDriver, folder: Path) -> None:
    """A program that can write to the folder can compute a checksum."""

    def forge(kind: bytes, content: object) -> None:
        data = kind + (content if isinstance(content, bytes) else _encoding._encoder.encode(content))
        (folder / "ab" / ID).write_bytes(_encoding._checksum(ID, data) + data)

    await driver.create(ID, record())
    good: dict[str, Any] = {"fields": {"key": b"1"}, "created": NOW, "expires": NOW + 1000, "deadline": NOW + 1000, "version": 0}
    forge(_encoding._RECORD, good)
    assert isinstance(await driver.load(ID, now=NOW), Record)
    contents: list[Any] = [
        *(
            {**good, name: bad}
            for name in ("created", "expires", "deadline")
            for bad in (float("nan"), float("inf"), -1.0, 1e300, "1")
        ),
        *({**good, "version": bad} for bad in (-1, 2**63, 2**64 - 1, 0.5)),
        *({**good, "fields": bad} for bad in (None, "", {"key": "text"}, {b"key": b"1"})),
        {name: value for name, value in good.items() if name != "expires"},
        *(b"", b"\xc1", b"\x81\xa1x" + b"\x91" * 100_000, b"\x81\xa6fields\x81\xa1\xff\xc4\x00", [], None),
    ]
    for content in contents:
        forge(_encoding._RECORD, content)
        assert await driver.load(ID, now=NOW) is None, content
        assert await apply(driver, {"key": b"1"}) is Outcome.ABSENT
    for successor in ("../../outside", "", ID + "\n", 1):
        forge(_encoding._TOMBSTONE, {"deadline": NOW + 10, "successor": successor})
        await expect_absent(driver)
    forge(_encoding._TOMBSTONE, {"deadline": NOW + 10, "successor": ID})
    await driver.destroy(ID, now=NOW)
    assert await driver.load(ID, now=NOW) is Outcome.ENDED


# Purging


async def purge(driver: FileDriver, now: float, limit: int = 1000) -> int:
    return await driver.purge(now=now, limit=limit)


async def test_a_purge_removes_sessions_tombstones_markers_and_their_folders(driver: FileDriver, folder: Path) -> None:
    for number in range(5):
        await driver.create(f"{number:064x}", record(10 + number * 3600))
    await driver.create(ID, record())
    await driver.rename(ID, FAR, record(3600), version=0, now=NOW)
    assert [await purge(driver, NOW + 5 * 3600, 3) for _ in range(4)] == [3, 3, 1, 0]
    assert files(folder) == []
    assert await purge(driver, NOW + 7 * 3600) == 0
    assert list((folder / "due").iterdir()) == []


async def test_a_purge_removes_a_session_at_its_deadline_and_not_before(driver: FileDriver, folder: Path) -> None:
    await driver.create(ID, record(0.5))
    assert await purge(driver, NOW + 0.4) == 0
    assert await driver.load(ID, now=NOW + 0.5) is None
    assert len(files(folder)) == 2
    assert await purge(driver, NOW + 0.5) == 1
    assert files(folder) == []


async def test_a_purge_reads_no_session_whose_marker_has_not_expired(
    driver: FileDriver, folder: Path, warnings: Callable[[], list[str]]
) -> None:
    await driver.create(ID, record(100))
    await driver.create(OTHER, record(200))
    (folder / "ab" / OTHER).write_bytes(b"reading this would report damage")
    assert await purge(driver, NOW + 199) == 1
    assert warnings() == []
    assert await purge(driver, NOW + 200) == 1
    assert files(folder) == []


async def test_a_purge_reads_no_markers_of_later_minutes(driver: FileDriver, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        await driver.create(f"{number:064x}", record(30 + 60 * number))
    read = list[Path]()

    def scandir(path: str) -> Any:
        read.append(Path(path))
        return os_scandir(path)

    os_scandir = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    assert await purge(driver, NOW + 89) == 1
    assert set(read) == {folder / "due" / "500000" / minute for minute in ("30000000", "30000001")}


async def test_a_session_whose_deadline_has_moved_gets_a_new_marker(driver: FileDriver, folder: Path) -> None:
    for number in range(10):
        await driver.create(f"{number:064x}", record(deadline=10))
        assert await apply(driver, {}, f"{number:064x}", deadline=NOW + 5000) is Outcome.WRITTEN
    # More deadlines have moved than one purge may handle, and one session after them has expired.
    await driver.create(ID, record(11))
    assert await purge(driver, NOW + 4999, 3) == 1
    assert len(files(folder)) == 20
    assert isinstance(await driver.load(f"{0:064x}", now=NOW + 4999), Record)
    assert await purge(driver, NOW + 5000) == 10
    assert files(folder) == []


@pytest.mark.parametrize("lasts", [10, 10_000])
async def test_a_tombstone_is_purged_after_a_minute_whatever_the_deadline_of_its_session(
    driver: FileDriver, folder: Path, lasts: float
) -> None:
    await driver.create(ID, record(lasts))
    await driver.destroy(ID, now=NOW)
    assert await purge(driver, NOW + TOMBSTONE - 1) == 0
    assert await driver.load(ID, now=NOW + TOMBSTONE - 1) is Outcome.ENDED
    assert await purge(driver, NOW + TOMBSTONE) == 1
    assert await purge(driver, NOW + lasts) == 0
    assert files(folder) == []


async def test_leftovers_of_a_crash_are_harmless_and_are_removed(driver: FileDriver, folder: Path) -> None:
    await driver.create(ID, record(20))
    (folder / "ab" / f"{ID}.new").write_bytes(b"half a sess")
    assert await apply(driver, {"key": b"1"}) is Outcome.WRITTEN
    assert f"ab/{ID}.new" not in files(folder)
    (folder / "ab" / f"{ID}.new").write_bytes(b"half a sess")
    marked = folder / "due" / "500000" / "30000000"
    (marked / f"1800000010.0.{OTHER}").touch()
    (folder / "ab" / f"{OTHER}.new").write_bytes(b"half a sess")
    assert await purge(driver, NOW + 20, 2) == 1
    assert files(folder) == []


async def test_foreign_files_among_the_markers_stay(driver: FileDriver, folder: Path) -> None:
    await driver.create(ID, record(20))
    hour, minute = folder / "due" / "500000", folder / "due" / "500000" / "30000000"
    foreign = [folder / "due" / "README", folder / "due" / "7", hour / "README", hour / "7"]
    foreign += [minute / name for name in ("README", "7", "1.0.x", f"x.{ID}")]
    for path in foreign:
        path.touch()
    foreign.append(minute / f"1800000001.0.{OTHER}")
    foreign[-1].mkdir()
    assert await purge(driver, NOW + 7200) == 1
    assert await purge(driver, NOW + 7200) == 0
    assert all(path.exists() for path in foreign)


async def test_a_purge_skips_a_session_that_is_locked_or_not_a_file(driver: FileDriver, folder: Path) -> None:
    for id in (ID, OTHER, FAR):
        await driver.create(id, record(20))
    with holding_lock(folder / "ab"):
        assert await purge(driver, NOW + 20) == 1
    (folder / "ab" / ID).unlink()
    (folder / "ab" / ID).mkdir()
    assert await purge(driver, NOW + 20) == 1
    assert await purge(driver, NOW + 20) == 0


async def test_concurrent_purges_remove_each_session_once(driver: FileDriver, folder: Path) -> None:
    for number in range(200):
        await driver.create(f"{number:064x}", record(number))
    other = FileDriver(dir=folder)
    await other.open()
    removed = 0
    while files(folder):
        removed += sum(await asyncio.gather(*(purge(each, NOW + 7200, 30) for each in (driver, other, driver, other))))
    await other.close()
    assert removed == 200


async def test_a_session_whose_deadline_an_earlier_call_moves_is_still_its_owners(driver: FileDriver) -> None:
    expiring = record(deadline=10)
    expiring.ownership = Ownership("owner", b"", NOW)
    await driver.create(ID, expiring)
    assert await driver.owned("owner", now=NOW + 10) == {}
    assert await driver.apply(ID, {}, (), now=NOW + 9, deadline=NOW + 500, max_size=MAX_SIZE) is Outcome.WRITTEN
    assert [*await driver.owned("owner", now=NOW + 10)] == [ID]


# Faults


class holding_lock:  # noqa: N801 - it reads like a function
    """Holds a folder's lock, as another process does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        self.descriptor = os.open(self.folder, os.O_RDONLY)
        fcntl.flock(self.descriptor, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)


def run(program: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a process with the import path of this one."""
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True)


async def test_a_thread_that_cannot_be_started_is_a_store_error(driver: FileDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    ownership = Ownership("owner", b"", NOW)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        calls = [
            driver.load(ID, now=NOW),
            driver.create(ID, record()),
            apply(driver, {"key": b"1"}),
            driver.destroy(ID, now=NOW),
            driver.set_owner(ID, ownership, {}, (), now=NOW, deadline=None, max_size=MAX_SIZE),
            driver.owned("owner", now=NOW),
            driver.end_owned("owner", keep=(), now=NOW),
            driver.count(now=NOW),
            driver.purge(now=NOW, limit=10),
        ]
        for call in calls:
            with pytest.raises(SessionStoreError) as caught:
                await call
            assert "new thread" in str(caught.value.__cause__)


async def test_a_held_lock_fails_writes_in_time_and_nothing_else(folder: Path) -> None:
    # It has the default timeout, because a disk under load may take longer than the other driver's.
    patient = FileDriver(dir=folder)
    await patient.open()
    for id in (ID, OTHER, FAR):
        await patient.create(id, record())
    await patient.close()
    driver = FileDriver(dir=folder, timeout=0.5)
    await driver.open()
    with holding_lock(folder / "ab"):
        writes = [
            *(apply(driver, {"key": b"2"}, id) for id in [ID, OTHER] * 20),
            driver.destroy(ID, now=NOW),
            *(driver.rename(FAR, "ab" + f"{number:062x}", record(), version=0, now=NOW) for number in range(20)),
        ]
        failing = asyncio.gather(*writes, return_exceptions=True)
        # More writes wait than there are threads, and no load waits for them.
        while not failing.done():
            assert await driver.load(ID, now=NOW) == record()
            await asyncio.sleep(0)
        errors = await failing
        assert {type(error) for error in errors} == {SessionStoreError}
        assert all("held the lock" in str(error.__cause__) for error in errors if isinstance(error, BaseException))
        assert await apply(driver, {}, "ef" + "0" * 62) is Outcome.ABSENT
    # A write that was reported as failed is not done later.
    assert await apply(driver, {"more": b"1"}) is Outcome.WRITTEN
    assert await driver.load(ID, now=NOW) == Record({"key": b"value", "more": b"1"}, NOW, NOW + 10_000, NOW + 10_000, 1)
    assert await driver.load(FAR, now=NOW) == record()
    await driver.close()


async def test_concurrent_logins_of_one_owner_wait_only_for_their_own_folders(folder: Path) -> None:
    ownership, ids = Ownership("owner", b"", NOW), [f"{number:02x}" + "0" * 62 for number in range(256)]
    driver = FileDriver(dir=folder, timeout=30)
    await driver.open()
    (folder / "ab").mkdir()
    with holding_lock(folder / "ab"):
        logins = {
            id: asyncio.ensure_future(driver.create(id, Record({"a": b"1"}, NOW, NOW + 9, NOW + 9, ownership=ownership)))
            for id in ids
        }
        kept_out = logins.pop("ab" + "0" * 62)
        assert {*await asyncio.gather(*logins.values())} == {None}
        assert not kept_out.done()
    assert await kept_out is None
    assert {*await driver.owned("owner", now=NOW)} == {*ids}
    await driver.close()


async def test_a_lock_that_is_released_in_time_fails_nothing(driver: FileDriver, folder: Path) -> None:
    await driver.create(ID, record())
    with holding_lock(folder / "ab"):
        writing = asyncio.ensure_future(apply(driver, {"key": b"2"}))
        for _ in range(20):
            await driver.load(ID, now=NOW)
        assert not writing.done()
    assert await writing is Outcome.WRITTEN


async def test_a_frozen_disk_fails_calls_in_time(folder: Path) -> None:
    driver = FileDriver(dir=folder, timeout=0.1)
    await driver.open()
    answered = threading.Event()
    stuck = [asyncio.ensure_future(driver._threads.call(answered.wait)) for _ in range(file._MAX_THREADS)]
    await asyncio.sleep(0)
    for call in (driver.load(ID, now=NOW), apply(driver, {"key": b"1"})):
        with pytest.raises(SessionStoreError) as raised:
            await call
        assert "the disk did not answer" in str(raised.value.__cause__)
    answered.set()
    await asyncio.gather(*stuck)
    await driver.close()


async def test_a_small_session_is_loaded_while_large_ones_are_read(driver: FileDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    large = record(fields={"key": bytes(LARGE)})
    await driver.create(ID, record())
    await driver.create(FAR, large)
    go_on, read_each = threading.Event(), driver._folder.load_each

    def read_when_told(ids: list[str], most: float) -> Any:
        return (most == LARGE or go_on.wait()) and read_each(ids, most)

    monkeypatch.setattr(driver._folder, "load_each", read_when_told)
    loading = asyncio.gather(*(driver.load(FAR, now=NOW) for _ in range(2 * file._MAX_THREADS)))
    try:
        for _ in range(20):
            assert await driver.load(ID, now=NOW) == record()
        assert not loading.done()
    finally:
        go_on.set()
    assert await loading == [large] * 2 * file._MAX_THREADS


async def test_several_loads_are_one_call_of_a_thread(driver: FileDriver) -> None:
    await driver.create(ID, record())
    run, calls = driver._threads.call, 0

    async def counted(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        return await run(*arguments)

    # Only this driver's method, which still runs.
    driver._threads.call = counted  # type: ignore[method-assign, assignment]  # of this object only
    assert await driver.load_all([ID, OTHER, FAR, ID], now=NOW) == [record(), None, None, record()]
    assert calls == 1


async def test_renames_in_both_directions_do_not_deadlock(driver: FileDriver) -> None:
    def id_of(folder: str, number: int) -> str:
        return folder + f"{number:062x}"

    async def wander(number: int) -> None:
        here, there = ("ab", "cd") if number % 2 else ("cd", "ab")
        await driver.create(id_of(here, number), record())
        old = id_of(here, number)
        for step in range(5):
            new = id_of(there, number + 1000 * (step + 1))
            assert await driver.rename(old, new, record(), version=0, now=NOW) is Outcome.WRITTEN
            here, there, old = there, here, new
        assert await driver.load(old, now=NOW) == record()

    await asyncio.gather(*(wander(number) for number in range(10)))


async def test_a_child_forked_during_a_write_does_not_hold_the_lock(driver: FileDriver, folder: Path) -> None:
    await driver.create(ID, record())
    with driver._folder.locked([str(folder / "ab")]):
        child = subprocess.Popen(["sleep", "60"], pass_fds=[_descriptor_of(folder / "ab")])
    try:
        assert await asyncio.wait_for(apply(driver, {"key": b"2"}), 20) is Outcome.WRITTEN
    finally:
        child.kill()
        child.wait()


def _descriptor_of(path: Path) -> int:
    return next(int(fd.name) for fd in Path("/proc/self/fd").iterdir() if fd.exists() and fd.samefile(path))


_FIFTY = """
import asyncio, sys
from gaman.session import Outcome, Record
from gaman_session.drivers.file import FileDriver

events = []
sys.addaudithook(lambda event, arguments: events.append(event))

async def main():
    driver = FileDriver(dir=sys.argv[1])
    await driver.open()
    await driver.create(sys.argv[2], Record({"key": b"value"}, 1, 1000, 1000))
    events.clear()
    calls = (driver.apply(sys.argv[2], {f"k{n}": b"1"}, (), now=1, deadline=None, max_size=1 << 20) for n in range(50))
    assert set(await asyncio.gather(*calls)) == {Outcome.WRITTEN}
    print(events.count("os.rename"))
    await driver.close()

asyncio.run(main())
"""


async def test_concurrent_writes_replace_the_file_once(driver: FileDriver, folder: Path) -> None:
    with run(_FIFTY, folder, ID) as process:
        assert int(process.communicate()[0]) <= 2
    found = await driver.load(ID, now=1)
    assert isinstance(found, Record)
    assert (len(found.fields), found.version) == (51, 50)


async def test_a_rename_never_overwrites(driver: FileDriver) -> None:
    await driver.create(ID, record())
    for taken in (OTHER, FAR):
        await driver.create(taken, record(fields={"other": b"1"}))
        with pytest.raises(SessionStoreError):
            await driver.rename(ID, taken, record(), version=0, now=NOW)
        assert await driver.load(ID, now=NOW) == record()
        assert await driver.load(taken, now=NOW) == record(fields={"other": b"1"})


async def test_a_rename_that_fails_half_way_has_ended_the_old_id(driver: FileDriver, folder: Path) -> None:
    await driver.create(ID, record())
    (folder / "cd" / FAR).mkdir(parents=True)
    with pytest.raises(SessionStoreError) as raised:
        await driver.rename(ID, FAR, record(), version=0, now=NOW)
    assert isinstance(raised.value.__cause__, IsADirectoryError)
    assert await driver.load(ID, now=NOW) is Outcome.ENDED
    assert await driver.load(FAR, now=NOW) is None
    assert not [name for name in files(folder) if name.endswith(".new")]


async def test_a_call_that_fails_or_is_cancelled_does_not_affect_the_others(driver: FileDriver) -> None:
    await driver.create(ID, record())
    calls: list[asyncio.Future[Any]] = [asyncio.ensure_future(apply(driver, {f"k{number}": b"1"})) for number in range(10)]
    calls.append(asyncio.ensure_future(apply(driver, {"\ud800": b"1"})))
    calls.append(asyncio.ensure_future(driver.rename(ID, FAR, record(fields={"\ud800": b"1"}), version=9, now=NOW)))
    calls.append(asyncio.ensure_future(driver.create(ID, record())))
    await asyncio.sleep(0)
    calls[3].cancel()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in results if result is not Outcome.WRITTEN] == [
        asyncio.CancelledError,
        *[SessionStoreError] * 3,
    ]
    causes = [result.__cause__ for result in results if isinstance(result, SessionStoreError)]
    assert [type(cause) for cause in causes] == [UnicodeEncodeError, UnicodeEncodeError, type(None)]
    found = await driver.load(ID, now=NOW)
    assert isinstance(found, Record)
    assert {f"k{number}" for number in range(10) if number != 3} < set(found.fields)


_FULL = """
import asyncio, resource, signal, sys
from gaman.session import Outcome, Record, SessionStoreError
from gaman_session.drivers.file import FileDriver

async def main():
    driver = FileDriver(dir=sys.argv[1])
    await driver.open()
    await driver.create(sys.argv[2], Record({"key": b"value"}, 1, 1000, 1000))
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, 1024))
    big = Record({"key": b"x" * int(sys.argv[4])}, 1, 1000, 1000)
    for call in (
        driver.apply(sys.argv[2], big.fields, (), now=1, deadline=None, max_size=1 << 20),
        driver.rename(sys.argv[2], sys.argv[3], big, version=0, now=1),
        driver.create(sys.argv[3], big),
    ):
        try:
            await call
        except SessionStoreError as error:
            print(error.__cause__.strerror)
    assert await driver.apply(sys.argv[2], {"small": b"1"}, (), now=1, deadline=None, max_size=1 << 20) is Outcome.WRITTEN
    await driver.close()

asyncio.run(main())
"""


@pytest.mark.parametrize("size", [1500, 100_000])
async def test_a_full_disk_fails_the_write_and_keeps_what_was_there(driver: FileDriver, folder: Path, size: int) -> None:
    with run(_FULL, folder, ID, FAR, size) as process:
        assert process.communicate()[0].splitlines() == ["File too large"] * 3
    assert process.returncode == 0
    assert await driver.load(ID, now=1) == Record({"key": b"value", "small": b"1"}, 1, 1000, 1000, 1)
    assert await driver.load(FAR, now=1) is None
    assert [name for name in files(folder) if not name.startswith("due")] == [f"ab/{ID}"]


_WRITER = """
import asyncio, sys
from gaman.session import Record
from gaman_session.drivers.file import FileDriver

async def main():
    driver = FileDriver(dir=sys.argv[1])
    await driver.open()
    now, number, fields = 1.0, 0, {"n": b"0"}
    id_of = lambda number: sys.argv[2] + format(number, "062x")
    await driver.create(id_of(0), Record(fields, 1, 1000, 1000))
    while True:
        for n in range(5):
            print(number, n, flush=True)
            sets = {"n": b"%d" % (n + 1), "more": b"x" * 10_000}
            await driver.apply(id_of(number), sets, (), now=1, deadline=None, max_size=1 << 20)
        record = Record({"n": b"0"}, 1, 1000, 1000)
        await driver.rename(id_of(number), id_of(number + 1), record, version=5, now=1)
        number += 1

asyncio.run(main())
"""


async def test_a_killed_process_leaves_every_acknowledged_write_and_never_two_sessions(driver: FileDriver) -> None:
    for round in range(8):
        start = f"{round:02x}"
        number = written = 0
        with run(_WRITER, driver._folder.dir, start) as process:
            assert process.stdout is not None
            for _ in range(20 + 7 * round):
                number, written = map(int, process.stdout.readline().split())
            process.kill()
            for line in process.stdout:
                number, written = map(int, line.split())
        found = [await driver.load(start + f"{each:062x}", now=1) for each in range(number + 2)]
        alive = [each for each in found if isinstance(each, Record)]
        # A rename in flight was not acknowledged, so no client has the new id.
        assert len(alive) == 1 or (written == 4 and found[number:] == [Outcome.ENDED, None])
        for each in alive:
            assert int(each.fields["n"]) in ((written, written + 1) if found[number] is each else (0,))
        # The process has released its lock.
        assert await apply(driver, {}, start + "f" * 62, now=1) is Outcome.ABSENT
