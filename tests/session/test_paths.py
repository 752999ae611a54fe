"""The paths of stores on a disk: home folders, missing folders, and the write permissions of other users."""

from __future__ import annotations

import os
import pwd
import re
import shutil
import stat
import subprocess
from collections.abc import Callable, Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from gaman.errors import ConfigError
from gaman.session import Driver, Record
from gaman_session.drivers.file import FileDriver
from gaman_session.drivers.sql import SQLDriver

pytestmark = pytest.mark.anyio

NOW = 1_800_000_000.0
ID = "ab" + "0" * 62
RECORD = Record({"key": b"value"}, NOW, NOW + 1000, NOW + 1000)
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file to another user")
NOBODY = pwd.getpwnam("nobody")
ME = pwd.getpwuid(os.geteuid()).pw_name

MAKERS: dict[str, Callable[[Any], Driver]] = {"file": lambda path: FileDriver(dir=path), "sql": lambda path: SQLDriver(file=path)}


@pytest.fixture(params=MAKERS.values(), ids=[*MAKERS])
def make(request: pytest.FixtureRequest) -> Callable[[Any], Driver]:
    maker: Callable[[Any], Driver] = request.param
    return maker


async def begin(driver: Driver) -> None:
    """Store a session and close the driver."""
    await driver.open()
    await driver.create(ID, RECORD)
    await driver.close()


async def refused(driver: Driver) -> str:
    """Return the reason why the driver doesn't open."""
    try:
        with pytest.raises(ConfigError) as raised:
            await driver.open()
    finally:
        await driver.close()
    return str(raised.value)


def run_fix(reason: str) -> None:
    """Run the command that the error message contains."""
    subprocess.run(reason.split("`")[1].replace(f"chown {ME}", f"chown {os.geteuid()}"), shell=True, check=True)


@contextmanager
def umask(mask: int) -> Generator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# Home folders


@pytest.mark.parametrize("path", ["~/sessions", "~/sub/sessions"])
async def test_a_tilde_is_the_home_folder(
    make: Callable[[Any], Driver], path: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    await begin(make(path))
    await begin_again(make(Path(path)))
    assert [*(tmp_path / "here").iterdir()] == []
    assert (tmp_path / "home" / path.removeprefix("~/")).exists()


async def begin_again(driver: Driver) -> None:
    await driver.open()
    assert await driver.load(ID, now=NOW) == RECORD
    await driver.close()


def test_a_tilde_with_a_name_is_the_home_folder_of_that_user(
    make: Callable[[Any], Driver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/elsewhere")
    driver: Any = make(f"~{NOBODY.pw_name}/sessions")
    path = driver._folder.dir if isinstance(driver, FileDriver) else str(driver._file)
    assert path == f"{NOBODY.pw_dir}/sessions"


def test_the_home_folder_of_an_unknown_user_is_refused(make: Callable[[Any], Driver]) -> None:
    for path in ("~nobody-such", "~nobody-such/sessions"):
        with pytest.raises(ConfigError, match=r"='~nobody-such.*the home folder '~nobody-such' isn't known"):
            make(path)


async def test_a_tilde_elsewhere_is_part_of_a_name(
    make: Callable[[Any], Driver], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    await begin(make("./~nobody-such"))
    assert (tmp_path / "~nobody-such").exists()


# Missing folders


@pytest.mark.parametrize("mask", [0, 0o077, 0o777], ids=oct)
async def test_one_missing_folder_is_created_for_this_user_only(make: Callable[[Any], Driver], mask: int, tmp_path: Path) -> None:
    with umask(mask):
        await begin(make(tmp_path / "new" / "sessions"))
    assert mode(tmp_path / "new") == 0o700


@pytest.mark.parametrize("path", ["a/b/sessions", "a/b/c/d/sessions", "there/b/c/sessions", "there/../a/b/sessions"])
async def test_if_several_folders_are_missing_the_first_is_named_and_none_is_created(
    make: Callable[[Any], Driver], path: str, tmp_path: Path
) -> None:
    (tmp_path / "there").mkdir()
    missing = "there/b" if path.startswith("there/b") else "a"
    reason = await refused(make(tmp_path / path))
    assert f"there is no folder '{tmp_path / missing}'; correct the path, or run `mkdir -p {tmp_path}/" in reason
    assert [str(each.relative_to(tmp_path)) for each in tmp_path.rglob("*")] == ["there"]
    run_fix(reason)
    await begin(make(tmp_path / path))


async def test_a_command_is_quoted_correctly_whatever_the_names_of_the_folders(
    make: Callable[[Any], Driver], tmp_path: Path
) -> None:
    path = tmp_path / "a b; 'c'" / "$HOME" / "sessions"
    run_fix(await refused(make(path)))
    await begin(make(path))
    path.chmod(0o777)
    run_fix(await refused(make(path)))
    await begin_again(make(path))


# Write permissions of other users


@pytest.mark.parametrize("open_to", [0o020, 0o002, 0o022], ids=["group", "others", "both"])
async def test_a_path_that_others_may_write_to_is_refused_with_the_command_that_fixes_it(
    make: Callable[[Any], Driver], open_to: int, tmp_path: Path
) -> None:
    path = tmp_path / "sessions"
    await begin(make(path))
    before = mode(path)
    path.chmod(before | open_to)
    reason = await refused(make(path))
    assert f"other users may write to '{path}'; run `chmod go-w {path}`" in reason
    assert mode(path) == before | open_to
    run_fix(reason)
    assert mode(path) == before
    await begin_again(make(path))


async def test_a_path_that_others_may_read_is_accepted(make: Callable[[Any], Driver], tmp_path: Path) -> None:
    path = tmp_path / "sessions"
    await begin(make(path))
    path.chmod(mode(path) | 0o055)
    await begin_again(make(path))


async def test_the_parent_folder_may_be_writable_by_others(make: Callable[[Any], Driver], tmp_path: Path) -> None:
    for each in (0o775, 0o777, 0o1777):
        (tmp_path / oct(each)).mkdir()
        (tmp_path / oct(each)).chmod(each)
        await begin(make(tmp_path / oct(each) / "sessions"))


@AS_ROOT
async def test_a_path_of_another_user_is_refused_with_the_command_that_fixes_it(
    make: Callable[[Any], Driver], tmp_path: Path
) -> None:
    path = tmp_path / "sessions"
    await begin(make(path))
    os.chown(path, NOBODY.pw_uid, -1)
    reason = await refused(make(path))
    assert (
        f"'{path}' belongs to the user nobody, and this process runs as {ME}; run `chown {ME} {path}`, or start as nobody" in reason
    )
    run_fix(reason)
    await begin_again(make(path))
    # A user without a name is identified by its number.
    os.chown(path, 54_321, -1)
    assert "belongs to the user 54321" in await refused(make(path))


async def test_a_link_is_judged_by_its_target(make: Callable[[Any], Driver], tmp_path: Path) -> None:
    path = tmp_path / "sessions"
    await begin(make(path))
    (tmp_path / "link").symlink_to(path)
    await begin_again(make(tmp_path / "link"))
    path.chmod(0o777)
    assert "other users may write to" in await refused(make(tmp_path / "link"))


# A folder of files


@pytest.mark.parametrize("inner", ["due", "owners", "owners/00", "ab"])
async def test_the_subfolders_of_a_folder_are_checked_too(inner: str, tmp_path: Path) -> None:
    path = tmp_path / "sessions"
    await begin(FileDriver(dir=path))
    (path / inner).mkdir(exist_ok=True)
    (path / inner).chmod(0o775)
    reason = await refused(FileDriver(dir=path))
    assert f"other users may write to '{path / inner}'; run `chmod -R go-w {path}`" in reason
    run_fix(reason)
    await begin_again(FileDriver(dir=path))
    if os.geteuid() == 0:
        os.chown(path / inner, NOBODY.pw_uid, -1)
        reason = await refused(FileDriver(dir=path))
        assert f"run `chown -R {ME} {path}`" in reason
        run_fix(reason)
        await begin_again(FileDriver(dir=path))


async def test_a_subfolder_that_is_a_link_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sessions"
    await begin(FileDriver(dir=path))
    shutil.move(path / "ab", tmp_path / "elsewhere")
    (path / "ab").symlink_to(tmp_path / "elsewhere")
    assert f"'{path / 'ab'}' isn't a folder; remove it" in await refused(FileDriver(dir=path))


@pytest.mark.parametrize("name", ["sessions.db", "sessions.db-wal", "sessions.db-journal"])
@pytest.mark.parametrize("make_it", [os.mkfifo, os.mkdir])
async def test_a_database_that_is_a_pipe_or_a_folder_is_refused(tmp_path: Path, name: str, make_it: Callable[[Path], None]) -> None:
    make_it(tmp_path / name)
    reason = await refused(SQLDriver(file=tmp_path / "sessions.db", timeout=1))
    assert f"but '{tmp_path / name}' isn't a file; remove it, or choose another place" in reason


async def test_foreign_entries_of_a_folder_are_ignored(tmp_path: Path) -> None:
    path = tmp_path / "sessions"
    await begin(FileDriver(dir=path))
    (path / "lost+found").mkdir()
    (path / "lost+found").chmod(0o777)
    (path / ".nfs").touch(0o666)
    await begin_again(FileDriver(dir=path))


async def test_a_shared_folder_is_refused_and_stays_unchanged(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    reason = await refused(FileDriver(dir=tmp_path))
    assert f"other users may write to '{tmp_path}'; choose a folder in it, such as '{tmp_path}/sessions'" in reason
    assert [*tmp_path.iterdir()] == []


# A database


@pytest.mark.parametrize("beside", ["-wal", "-shm", "-journal"])
async def test_the_files_beside_a_database_are_checked_too(beside: str, tmp_path: Path) -> None:
    path = tmp_path / "sessions.db"
    await begin(SQLDriver(file=path))
    other = Path(f"{path}{beside}")
    other.touch()
    other.chmod(0o666)
    assert f"other users may write to '{other}'" in await refused(SQLDriver(file=path))
    (tmp_path / "link.db").symlink_to(path)
    reason = await refused(SQLDriver(file=tmp_path / "link.db"))
    assert f"other users may write to '{other}'" in reason
    run_fix(reason)
    await begin_again(SQLDriver(file=path))


async def test_a_path_that_is_not_a_file_is_refused_and_keeps_its_mode(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    driver = SQLDriver(file=tmp_path)
    assert "isn't a file" in await refused(driver)


@pytest.mark.parametrize(
    "url",
    [
        "sqlite:///sessions.db",
        "sqlite:sessions.db",
        "file:sessions?mode=rwc",
        "postgresql://shop:hunter2@db/shop",
        Path("redis://db"),
    ],
)
def test_a_url_in_the_place_of_a_path_is_refused_without_its_password(make: Callable[[Any], Driver], url: Any) -> None:
    with pytest.raises(ConfigError) as raised:
        make(url)
    said = str(raised.value)
    assert re.fullmatch(
        r"the (file driver has dir|sql driver has file)=\.\.\., which is a URL; write a path on this machine, such as './sessions'",
        said,
    )


@pytest.mark.parametrize("path", ["C:/sessions", "a:b", "sessions:2", "~/sqlite:/a"])
def test_a_colon_alone_makes_no_url(make: Callable[[Any], Driver], path: str) -> None:
    make(path)
