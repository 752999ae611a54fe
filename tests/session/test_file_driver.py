"""The file driver: who may read its files, what it makes of damage, and what is left after faults and sweeps."""

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
    """Everything below *folder* but folders."""
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


def test_making_a_driver_makes_no_folder(folder: Path) -> None:
    FileDriver(dir=folder)
    assert not folder.exists()


async def test_a_folder_that_cannot_be_one_is_named_at_start(folder: Path) -> None:
    folder.write_text("a file")
    for dir in (folder, folder / "below", Path("/dev/null/sessions")):
        with pytest.raises(ConfigError) as raised:
            await FileDriver(dir=dir).open()
        assert f"dir='{dir}'" in str(raised.value)


async def test_on_windows_another_driver_is_advised(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ConfigError, match="choose another driver"):
        await FileDriver(dir=folder).open()


async def test_a_relative_folder_stays_where_it_was_when_the_driver_was_made(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder.parent)
    driver = FileDriver(dir="sessions")
    monkeypatch.chdir("/")
    await driver.open()
    await driver.close()
    assert folder.is_dir()


# Files


@pytest.mark.parametrize("umask", [0, 0o077, 0o777], ids=oct)
async def test_nobody_else_may_read_whatever_the_umask(folder: Path, umask: int) -> None:
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


async def test_a_folder_that_is_there_keeps_its_mode(folder: Path) -> None:
    folder.mkdir(0o750)
    driver = FileDriver(dir=folder)
    await driver.open()
    await driver.close()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o750


async def test_a_session_lies_under_its_id_and_is_filed_under_its_deadline(driver: FileDriver, folder: Path) -> None:
    await driver.create(ID, record(3600))
    assert files(folder) == [f"ab/{ID}", f"due/500001/30000060/1800003600.0.{ID}"]


@pytest.mark.parametrize(
    "id", ["", ".", "..", "../x", "/etc/passwd", "ab/../../x", "\0", ID[:-1], ID + "0", ID + "\n", ID.upper(), "ab" + "é" * 62]
)
async def test_what_is_no_id_touches_nothing(driver: FileDriver, folder: Path, id: str) -> None:
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


async def test_drivers_on_one_folder_share_and_reopening_finds(driver: FileDriver, folder: Path) -> None:
    await driver.create(ID, record())
    for _ in range(2):
        other = FileDriver(dir=folder)
        await other.open()
        assert isinstance(await other.load(ID, now=NOW), Record)
        assert await apply(other, {"more": b"1"}) is Outcome.WRITTEN
        await other.close()
    assert await driver.load(ID, now=NOW) == Record({"key": b"value", "more": b"1"}, NOW, NOW + 10_000, NOW + 10_000, 2)


async def test_a_driver_opens_again_after_it_was_closed(folder: Path) -> None:
    driver = FileDriver(dir=folder)
    for expected in (None, record()):
        await driver.open()
        assert await driver.load(ID, now=NOW) == expected
        if expected is None:
            await driver.create(ID, record())
        await driver.close()


async def test_a_store_that_is_emptied_under_way_goes_on(driver: FileDriver, folder: Path) -> None:
    for purges in (True, False):
        await driver.create(ID, record())
        for path in folder.iterdir():
            shutil.rmtree(path)
        assert await driver.load(ID, now=NOW) is None
        assert await apply(driver, {"key": b"1"}) is Outcome.ABSENT
        assert not purges or await sweep(driver, NOW) == 0
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
async def test_a_file_that_was_cut_or_whose_bits_flipped_is_absent(
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
    for bit in range(len(whole) * 8):
        spoilt = bytearray(whole)
        spoilt[bit // 8] ^= 1 << bit % 8
        path.write_bytes(spoilt)
        assert await driver.load(ID, now=NOW) is None
        assert await apply(driver, {"key": b"1"}) is Outcome.ABSENT
    path.write_bytes(whole + b"\0")
    await expect_absent(driver)
    assert path.read_bytes() == whole + b"\0"
    assert warnings() == [f"session {ID}: its file is not what was written there; it counts as absent"]
    path.write_bytes(whole)
    assert await driver.load(ID, now=NOW) == (record() if kept == "a session" else Outcome.ENDED)


@pytest.mark.parametrize(
    "place",
    ["a folder", "a link to a session", "a link outside", "a dangling link", "a pipe", "a pipe that speaks", "nothing in it"],
)
async def test_what_is_no_file_is_absent(driver: FileDriver, folder: Path, place: str, warnings: Callable[[], list[str]]) -> None:
    await driver.create(OTHER, record())
    outside = folder.parent / "outside"
    outside.write_bytes(b"mine")
    path = folder / "ab" / ID
    if place == "a folder":
        path.mkdir()
    elif "a pipe" in place:
        os.mkfifo(path)
    elif place == "nothing in it":
        path.touch()
    else:
        path.symlink_to({"a link to a session": OTHER, "a link outside": str(outside)}.get(place, "nowhere"))
    with ExitStack() as stack:
        if place == "a pipe that speaks":
            # Both ends, as only that opens at once.
            pipe = stack.enter_context(open(os.open(path, os.O_RDWR), "r+b", buffering=0))
            pipe.write(_encoding.encode(ID, record()))
        await expect_absent(driver)
    assert len(warnings()) == 1
    assert await driver.load(OTHER, now=NOW) == record()
    assert outside.read_bytes() == b"mine"


async def test_a_session_that_was_copied_to_another_id_is_absent(driver: FileDriver, folder: Path) -> None:
    await driver.create(OTHER, record())
    shutil.copy(folder / "ab" / OTHER, folder / "ab" / ID)
    await expect_absent(driver)


@pytest.mark.parametrize("encrypt", [True, False])
async def test_a_visitor_whose_file_was_swapped_with_anothers_is_a_new_one(folder: Path, encrypt: bool) -> None:
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


async def test_a_file_that_was_forged_can_at_worst_be_absent(driver: FileDriver, folder: Path) -> None:
    """Whoever may write to the folder knows how to make a checksum."""

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


# Sweeping


async def sweep(driver: FileDriver, now: float, limit: int = 1000) -> int:
    return await driver.purge(now=now, limit=limit)


async def test_a_purge_removes_sessions_tombstones_markers_and_their_folders(driver: FileDriver, folder: Path) -> None:
    for number in range(5):
        await driver.create(f"{number:064x}", record(10 + number * 3600))
    await driver.create(ID, record())
    await driver.rename(ID, FAR, record(3600), version=0, now=NOW)
    assert [await sweep(driver, NOW + 5 * 3600, 3) for _ in range(4)] == [3, 3, 1, 0]
    assert files(folder) == []
    assert await sweep(driver, NOW + 7 * 3600) == 0
    assert list((folder / "due").iterdir()) == []


async def test_a_purge_takes_each_at_its_deadline_and_not_before(driver: FileDriver, folder: Path) -> None:
    await driver.create(ID, record(0.5))
    assert await sweep(driver, NOW + 0.4) == 0
    assert await driver.load(ID, now=NOW + 0.5) is None
    assert len(files(folder)) == 2
    assert await sweep(driver, NOW + 0.5) == 1
    assert files(folder) == []


async def test_a_purge_looks_at_no_session_that_is_not_due(
    driver: FileDriver, folder: Path, warnings: Callable[[], list[str]]
) -> None:
    await driver.create(ID, record(100))
    await driver.create(OTHER, record(200))
    (folder / "ab" / OTHER).write_bytes(b"not read, or it would be reported")
    assert await sweep(driver, NOW + 199) == 1
    assert warnings() == []
    assert await sweep(driver, NOW + 200) == 1
    assert files(folder) == []


async def test_a_purge_reads_the_markers_of_no_minute_that_is_not_due(
    driver: FileDriver, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(3):
        await driver.create(f"{number:064x}", record(30 + 60 * number))
    read = list[Path]()

    def scandir(path: str) -> Any:
        read.append(Path(path))
        return os_scandir(path)

    os_scandir = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    assert await sweep(driver, NOW + 89) == 1
    assert set(read) == {folder / "due" / "500000" / minute for minute in ("30000000", "30000001")}


async def test_a_deadline_that_moved_on_is_filed_anew_and_survives(driver: FileDriver, folder: Path) -> None:
    for number in range(10):
        await driver.create(f"{number:064x}", record(deadline=10))
        assert await apply(driver, {}, f"{number:064x}", deadline=NOW + 5000) is Outcome.WRITTEN
    # More have moved than one purge may remove, and behind them there is one that is over.
    await driver.create(ID, record(11))
    assert await sweep(driver, NOW + 4999, 3) == 1
    assert len(files(folder)) == 20
    assert isinstance(await driver.load(f"{0:064x}", now=NOW + 4999), Record)
    assert await sweep(driver, NOW + 5000) == 10
    assert files(folder) == []


@pytest.mark.parametrize("lasts", [10, 10_000])
async def test_a_tombstone_goes_at_its_time_whenever_the_session_would_have(driver: FileDriver, folder: Path, lasts: float) -> None:
    await driver.create(ID, record(lasts))
    await driver.destroy(ID, now=NOW)
    assert await sweep(driver, NOW + TOMBSTONE - 1) == 0
    assert await driver.load(ID, now=NOW + TOMBSTONE - 1) is Outcome.ENDED
    assert await sweep(driver, NOW + TOMBSTONE) == 1
    assert await sweep(driver, NOW + lasts) == 0
    assert files(folder) == []


async def test_what_a_crash_left_does_no_harm_and_goes(driver: FileDriver, folder: Path) -> None:
    await driver.create(ID, record(20))
    (folder / "ab" / f"{ID}.new").write_bytes(b"half a sess")
    assert await apply(driver, {"key": b"1"}) is Outcome.WRITTEN
    assert f"ab/{ID}.new" not in files(folder)
    (folder / "ab" / f"{ID}.new").write_bytes(b"half a sess")
    marked = folder / "due" / "500000" / "30000000"
    (marked / f"1800000010.0.{OTHER}").touch()
    (folder / "ab" / f"{OTHER}.new").write_bytes(b"half a sess")
    assert await sweep(driver, NOW + 20, 2) == 1
    assert files(folder) == []


async def test_what_others_put_among_the_markers_is_left_alone(driver: FileDriver, folder: Path) -> None:
    await driver.create(ID, record(20))
    hour, minute = folder / "due" / "500000", folder / "due" / "500000" / "30000000"
    strange = [folder / "due" / "README", folder / "due" / "7", hour / "README", hour / "7"]
    strange += [minute / name for name in ("README", "7", "1.0.x", f"x.{ID}")]
    for path in strange:
        path.touch()
    strange.append(minute / f"1800000001.0.{OTHER}")
    strange[-1].mkdir()
    assert await sweep(driver, NOW + 7200) == 1
    assert await sweep(driver, NOW + 7200) == 0
    assert all(path.exists() for path in strange)


async def test_a_purge_goes_on_past_a_session_that_is_locked_or_no_file(driver: FileDriver, folder: Path) -> None:
    for id in (ID, OTHER, FAR):
        await driver.create(id, record(20))
    with locked(folder / "ab"):
        assert await sweep(driver, NOW + 20) == 1
    (folder / "ab" / ID).unlink()
    (folder / "ab" / ID).mkdir()
    assert await sweep(driver, NOW + 20) == 1
    assert await sweep(driver, NOW + 20) == 0


async def test_purges_at_once_remove_each_session_once(driver: FileDriver, folder: Path) -> None:
    for number in range(200):
        await driver.create(f"{number:064x}", record(number))
    other = FileDriver(dir=folder)
    await other.open()
    removed = 0
    while files(folder):
        removed += sum(await asyncio.gather(*(sweep(each, NOW + 7200, 30) for each in (driver, other, driver, other))))
    await other.close()
    assert removed == 200


# Faults


class locked:  # noqa: N801 - reads as what it does
    """Holds a folder's lock, as another process does."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __enter__(self) -> None:
        self.descriptor = os.open(self.folder, os.O_RDONLY)
        fcntl.flock(self.descriptor, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)


def run(program: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a process that can import what this one can."""
    paths = os.pathsep.join(path for path in sys.path if path)
    command = [sys.executable, "-c", program, *map(str, arguments)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, stdout=subprocess.PIPE, text=True)


async def test_a_thread_that_the_system_does_not_give_is_an_error_of_the_store(
    driver: FileDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
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


async def test_a_lock_that_is_held_fails_writes_in_time_and_nothing_else(folder: Path) -> None:
    # A disk under load may take longer than the other one waits.
    patient = FileDriver(dir=folder)
    await patient.open()
    for id in (ID, OTHER, FAR):
        await patient.create(id, record())
    await patient.close()
    driver = FileDriver(dir=folder, timeout=0.2)
    await driver.open()
    with locked(folder / "ab"):
        writes = [
            *(apply(driver, {"key": b"2"}, id) for id in [ID, OTHER] * 20),
            driver.destroy(ID, now=NOW),
            *(driver.rename(FAR, "ab" + f"{number:062x}", record(), version=0, now=NOW) for number in range(20)),
        ]
        failing = asyncio.gather(*writes, return_exceptions=True)
        # More calls wait than there are threads, and still none of these has to.
        while not failing.done():
            assert await driver.load(ID, now=NOW) == record()
            await asyncio.sleep(0)
        errors = await failing
        assert {type(error) for error in errors} == {SessionStoreError}
        assert all("held the lock" in str(error.__cause__) for error in errors if isinstance(error, BaseException))
        assert await apply(driver, {}, "ef" + "0" * 62) is Outcome.ABSENT
    # What was said to have failed is not done later.
    assert await apply(driver, {"more": b"1"}) is Outcome.WRITTEN
    assert await driver.load(ID, now=NOW) == Record({"key": b"value", "more": b"1"}, NOW, NOW + 10_000, NOW + 10_000, 1)
    assert await driver.load(FAR, now=NOW) == record()
    await driver.close()


async def test_a_crowd_of_one_owner_logs_in_but_for_whom_somebody_elses_lock_keeps_out(folder: Path) -> None:
    ownership, ids = Ownership("owner", b"", NOW), [f"{number:02x}" + "0" * 62 for number in range(256)]
    driver = FileDriver(dir=folder, timeout=30)
    await driver.open()
    (folder / "ab").mkdir()
    with locked(folder / "ab"):
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


async def test_a_lock_that_is_let_go_in_time_fails_nothing(driver: FileDriver, folder: Path) -> None:
    await driver.create(ID, record())
    with locked(folder / "ab"):
        writing = asyncio.ensure_future(apply(driver, {"key": b"2"}))
        for _ in range(20):
            await driver.load(ID, now=NOW)
        assert not writing.done()
    assert await writing is Outcome.WRITTEN


async def test_a_disk_that_does_not_answer_fails_calls_in_time(folder: Path) -> None:
    driver = FileDriver(dir=folder, timeout=0.1)
    await driver.open()
    answered = threading.Event()
    stuck = [asyncio.ensure_future(driver._threads.call(answered.wait)) for _ in range(file._THREADS)]
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
    loading = asyncio.gather(*(driver.load(FAR, now=NOW) for _ in range(2 * file._THREADS)))
    try:
        for _ in range(20):
            assert await driver.load(ID, now=NOW) == record()
        assert not loading.done()
    finally:
        go_on.set()
    assert await loading == [large] * 2 * file._THREADS


async def test_renames_in_both_directions_do_not_wait_for_each_other(driver: FileDriver) -> None:
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


async def test_a_child_that_was_forked_in_a_write_does_not_keep_the_lock(driver: FileDriver, folder: Path) -> None:
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


async def test_writes_at_once_share_the_replacing_of_a_file(driver: FileDriver, folder: Path) -> None:
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


async def test_of_a_rename_that_fails_half_way_the_old_id_dies_first(driver: FileDriver, folder: Path) -> None:
    await driver.create(ID, record())
    (folder / "cd" / FAR).mkdir(parents=True)
    with pytest.raises(SessionStoreError) as raised:
        await driver.rename(ID, FAR, record(), version=0, now=NOW)
    assert isinstance(raised.value.__cause__, IsADirectoryError)
    assert await driver.load(ID, now=NOW) is Outcome.ENDED
    assert await driver.load(FAR, now=NOW) is None
    assert not [name for name in files(folder) if name.endswith(".new")]


async def test_a_call_that_fails_or_is_cancelled_leaves_the_others(driver: FileDriver) -> None:
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


async def test_a_killed_process_leaves_what_was_answered_and_never_two_sessions(driver: FileDriver) -> None:
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
        # Nothing is answered in the middle of a rename, so nobody has the new id.
        assert len(alive) == 1 or (written == 4 and found[number:] == [Outcome.ENDED, None])
        for each in alive:
            assert int(each.fields["n"]) in ((written, written + 1) if found[number] is each else (0,))
        # The lock went with the process.
        assert await apply(driver, {}, start + "f" * 62, now=1) is Outcome.ABSENT
