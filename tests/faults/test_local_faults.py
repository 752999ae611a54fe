"""A site whose sessions lie in files, or in SQLite: it is killed, served by many processes, out of space, and out of its store."""

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
from tests.serving import Answer

TIMEOUT = 5.0
"""Seconds that the drivers wait, unless they are told otherwise."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the store lies."""
    return tmp_path / "store"


@pytest.fixture(params=["file", "sql"])
def driver(request: pytest.FixtureRequest, folder: Path) -> dict[str, Any]:
    if request.param == "file":
        return {"type": "file", "dir": str(folder)}
    return {"type": "sql", "file": str(folder / "sessions.db")}


# Killed


class Witness(Visitor):
    """Knows what its session holds, and what it may hold as well where a request was not answered."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.kept: dict[str, Any] = {}
        self.maybe = self.kept

    def visit(self) -> None:
        """Change the session in many ways, and leave it or end it."""
        for number in range(random.randrange(20)):
            self.write(f"key{number % 5}", f"{number}-" * random.choice([1, 100, 3000]))
        self._do("/renew", {}, self.kept)
        self._do("/count", after := {**self.kept, "count": self.kept.get("count", 0) + 1}, after)
        if random.random() < 0.5:
            cookie = self.cookie
            self._do("/end", {}, {})
            # Whoever has copied the cookie finds nothing.
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


def bear_witness(port: int, witnesses: list[Witness]) -> None:
    """Visit the site again and again, each time anew, until it is gone."""
    with suppress(ConnectionError, HTTPException):
        while True:
            witnesses.append(Witness(port))
            witnesses[-1].visit()


@pytest.mark.slow
def test_a_process_that_is_killed_in_its_writes_has_kept_what_it_answered(driver: dict[str, Any], tmp_path: Path) -> None:
    witnesses: list[Witness] = []
    new: list[Witness] = []
    with ThreadPoolExecutor(6) as pool:
        for _ in range(50):
            with site(tmp_path, driver) as program:
                for witness in new:
                    witness.port = program.port
                    witness.check()
                new = []
                writing = [pool.submit(bear_witness, program.port, new) for _ in range(6)]
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


# Served by many processes


class Sharing(Writer):
    """Writes keys of its own into a session that others write to as well."""

    def __init__(self, visitor: Visitor, name: str) -> None:
        super().__init__(visitor.port)
        self.visitor = visitor
        self._name = name

    def write(self) -> Answer:
        key = f"{self._name}{self.attempts}"
        answer = self.visitor.put(key)
        self.acknowledged.append(key)
        return answer


@pytest.mark.slow
def test_four_processes_that_write_at_once_lose_nothing_and_lock_nobody_out(driver: dict[str, Any], tmp_path: Path) -> None:
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
    """Let no file of the process grow beyond *size* bytes, as on a disk that is full; return what takes the limit away."""
    before = resource.prlimit(pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (size, before[1]))
    return lambda: resource.prlimit(pid, resource.RLIMIT_FSIZE, before)


def test_a_disk_without_any_room_fails_writes_gives_what_it_has_and_logs_nobody_out(
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


def test_a_disk_that_fills_up_in_the_middle_of_a_write_keeps_what_was_there(
    driver: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
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


@pytest.mark.parametrize("is_blocked", [False, True], ids=["gone", "unreadable"])
def test_a_folder_that_is_not_in_its_place_is_unavailable_and_not_a_logout(
    driver: dict[str, Any], is_blocked: bool, folder: Path, tmp_path: Path
) -> None:
    with site(tmp_path, driver) as program:
        visitors = arrive(program.port)
        hidden = folder.rename(folder.with_name("hidden"))
        if is_blocked:
            # Root could read a folder whatever its mode.
            folder.touch()
        # Whoever only reads sees it a moment later.
        time.sleep(0.02)
        assert_unavailable(visitors, TIMEOUT)
        folder.unlink(missing_ok=True)
        hidden.rename(folder)
        assert [visitor.all() for visitor in visitors.values()] == [{"key": "value"}] * 5
        assert {visitor.put("key").status for visitor in visitors.values()} == {200}


@pytest.mark.parametrize("driver", ["file"], indirect=True)
def test_files_that_are_removed_are_sessions_that_end_and_the_site_goes_on(
    driver: dict[str, Any], folder: Path, tmp_path: Path
) -> None:
    with site(tmp_path, driver) as program:
        visitors = arrive(program.port)
        for each in folder.iterdir():
            shutil.rmtree(each)
        for use, visitor in visitors.items():
            assert visitor.get(use).status == visitor.put("new").status == 200
            assert visitor.all().keys() == {"/put/more/value": {"more", "new"}, "/count": {"count", "new"}}.get(use, {"new"})
        assert "Traceback" not in program.stderr


@pytest.mark.parametrize("driver", ["sql"], indirect=True)
def test_a_database_that_is_removed_takes_nothing_that_would_be_lost(driver: dict[str, Any], folder: Path, tmp_path: Path) -> None:
    with site(tmp_path, driver) as program:
        visitors = arrive(program.port)
        for each in folder.iterdir():
            each.unlink()
        # Whoever only reads sees it a moment later.
        time.sleep(0.02)
        assert_unavailable(visitors, TIMEOUT)
    with site(tmp_path, driver) as program:
        for visitor in visitors.values():
            visitor.port = program.port
            assert visitor.all() == {}
            assert visitor.put("new").status == 200
