"""A site with its sessions in files or in SQLite: it is killed, has several processes, a full disk, or no store."""

from __future__ import annotations

import random
import resource
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from http.client import HTTPException
from pathlib import Path
from typing import Any

import pytest

from tests.faults.crews import crew
from tests.faults.site_under_load import Counting, Load, Newcomers, Visitor, Writer, arrive, assert_unavailable, site
from tests.serving import ParsedResponse

TIMEOUT = 5.0
"""Seconds: the drivers' default timeout."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of the store."""
    return tmp_path / "store"


@pytest.fixture(params=["file", "sql"])
def driver(request: pytest.FixtureRequest, folder: Path) -> dict[str, Any]:
    if request.param == "file":
        return {"type": "file", "dir": str(folder)}
    return {"type": "sql", "file": str(folder / "sessions.db")}


# Killed


class CheckedVisitor(Visitor):
    """Knows the content of its session, and the other possible one if its last request got no response."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.kept: dict[str, Any] = {}
        self.maybe = self.kept

    def visit(self) -> None:
        """Change the session in many ways, and keep it or end it."""
        for number in range(random.randrange(20)):
            self.write(f"key{number % 5}", f"{number}-" * random.choice([1, 100, 3000]))
        self._do("/renew", {}, self.kept)
        self._do("/count", after := {**self.kept, "count": self.kept.get("count", 0) + 1}, after)
        if random.random() < 0.5:
            cookie = self.cookie
            self._do("/end", {}, {})
            # A copy of the cookie must find no session.
            self.cookie = cookie

    def write(self, key: str, value: str) -> None:
        self._do(f"/put/{key}/{value}", after := {**self.kept, key: value}, after)

    def _do(self, target: str, unanswered: dict[str, Any], answered: dict[str, Any]) -> None:
        self.maybe = unanswered
        assert self.get(target).status == 200
        self.kept = self.maybe = answered

    def check(self) -> None:
        found = self.all()
        assert found in (self.kept, self.maybe)
        self.kept = self.maybe = found


def keep_visiting(port: int, witnesses: list[CheckedVisitor]) -> None:
    """Visit the site as one new visitor after another, until it stops."""
    with suppress(ConnectionError, HTTPException):
        while True:
            witnesses.append(CheckedVisitor(port))
            witnesses[-1].visit()


@pytest.mark.slow
def test_a_killed_process_leaves_every_acknowledged_write(driver: dict[str, Any], tmp_path: Path) -> None:
    witnesses: list[CheckedVisitor] = []
    new: list[CheckedVisitor] = []
    with ThreadPoolExecutor(6) as pool:
        for _ in range(50):
            with site(tmp_path, driver) as program:
                for witness in new:
                    witness.port = program.port
                    witness.check()
                new = []
                writing = [pool.submit(keep_visiting, program.port, new) for _ in range(6)]
                time.sleep(random.uniform(0.05, 0.4))
                assert "Traceback" not in program.stderr
            for each in writing:
                each.result()
            witnesses += new
    with site(tmp_path, driver) as program:
        for witness in witnesses:
            witness.port = program.port
            witness.check()
        assert "is damaged" not in program.stderr


# Several processes


class Sharing(Writer):
    """Writes its own keys to a session that other writers share."""

    def __init__(self, visitor: Visitor, name: str) -> None:
        super().__init__(visitor.port)
        self.visitor = visitor
        self._name = name

    def write(self) -> ParsedResponse:
        key = f"{self._name}{self.attempts}"
        response = self.visitor.put(key)
        self.acknowledged.append(key)
        return response


@pytest.mark.slow
def test_four_processes_that_write_concurrently_lose_nothing_and_fail_no_request(driver: dict[str, Any], tmp_path: Path) -> None:
    with crew(tmp_path, driver, 4) as program:
        shared = Visitor(program.port)
        shared.put("key")
        counting = [Counting(program.port, shared) for _ in range(3)]
        others = [Writer(program.port), Writer(program.port), Newcomers(program.port), *(Sharing(shared, name) for name in "abcd")]
        with Load(*counting, *others, pause=0) as load:
            time.sleep(10)
        assert set(load.statuses) == {200}
        assert [writer.lost() for writer in others] == [[]] * len(others)
        assert shared.all()["count"] == sum(writer.attempts for writer in counting)
        assert "locked" not in program.stderr
        assert "Traceback" not in program.stderr


# Out of space


def limit_files(pid: int, size: int) -> Callable[[], object]:
    """Let no file of the process grow beyond *size* bytes, as on a full disk; return a function that removes the limit."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, before[1]))
    return lambda: resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


def test_a_full_disk_fails_writes_still_serves_reads_and_logs_no_visitor_out(
    driver: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    with site(tmp_path, driver) as program:
        visitors = arrive(program.port)
        newcomer, reader = Visitor(program.port), visitors.pop("/all")
        make_room = limit_files(program.pid, 0)
        assert_unavailable({**visitors, "/put/key/value": newcomer}, TIMEOUT)
        assert [visitor.all() for visitor in (reader, *visitors.values())] == [{"key": "value"}] * 5
        assert not [*folder.rglob("*.new")]
        make_room()
        assert {visitor.get(use).status for use, visitor in visitors.items()} == {200}
        assert newcomer.put("key").status == reader.put("more").status == 200
        assert newcomer.all() == {"key": "value"}
        assert reader.all() == {"key": "value", "more": "value"}


def test_a_disk_that_fills_up_during_a_write_keeps_earlier_writes(driver: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    with site(tmp_path, driver) as program:
        reader, writer = Visitor(program.port), Visitor(program.port)
        assert reader.put("key").status == 200
        make_room = limit_files(program.pid, 450_000)
        sent = {f"key{number}": "x" * 50_000 for number in range(9)}
        statuses = {key: writer.put(key, value).status for key, value in sent.items()}
        written = {key: sent[key] for key, status in statuses.items() if status == 200}
        assert set(statuses.values()) == {200, 503}
        assert (reader.all(), writer.all()) == ({"key": "value"}, written)
        assert not [*folder.rglob("*.new")]
        make_room()
        assert {writer.put(key, value).status for key, value in sent.items()} == {200}
        assert (reader.all(), writer.all()) == ({"key": "value"}, sent)


# Without a store


@pytest.mark.parametrize("is_blocked", [False, True], ids=["missing", "unreadable"])
def test_a_missing_folder_is_an_unavailable_store_and_not_a_logout(
    driver: dict[str, Any], is_blocked: bool, folder: Path, tmp_path: Path
) -> None:
    with site(tmp_path, driver) as program:
        visitors = arrive(program.port)
        hidden = folder.rename(folder.with_name("hidden"))
        if is_blocked:
            # A file in its place, because root can read a folder of any mode.
            folder.touch()
        # A read notices it a moment later.
        time.sleep(0.02)
        assert_unavailable(visitors, TIMEOUT)
        folder.unlink(missing_ok=True)
        hidden.rename(folder)
        assert [visitor.all() for visitor in visitors.values()] == [{"key": "value"}] * 5
        assert {visitor.put("key").status for visitor in visitors.values()} == {200}


@pytest.mark.parametrize("driver", ["file"], indirect=True)
def test_removed_files_are_absent_sessions_and_the_site_still_works(driver: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    with site(tmp_path, driver) as program:
        visitors = arrive(program.port)
        for each in folder.iterdir():
            shutil.rmtree(each)
        for use, visitor in visitors.items():
            assert visitor.get(use).status == visitor.put("new").status == 200
            assert visitor.all().keys() == {"/put/more/value": {"more", "new"}, "/count": {"count", "new"}}.get(use, {"new"})
        assert "Traceback" not in program.stderr


@pytest.mark.parametrize("driver", ["sql"], indirect=True)
def test_a_removed_database_accepts_no_write_that_would_be_lost(driver: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    with site(tmp_path, driver) as program:
        visitors = arrive(program.port)
        for each in folder.iterdir():
            each.unlink()
        # A read notices it a moment later.
        time.sleep(0.02)
        assert_unavailable(visitors, TIMEOUT)
    with site(tmp_path, driver) as program:
        for visitor in visitors.values():
            visitor.port = program.port
            assert visitor.all() == {}
            assert visitor.put("new").status == 200
