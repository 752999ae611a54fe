from __future__ import annotations

import re
import shlex
import time
from bisect import bisect_right
from collections import Counter
from pathlib import Path

import pytest
from redis.crc import key_slot

from benchmarks import __main__ as command
from benchmarks import places, scale
from benchmarks.asgi import log_in
from benchmarks.harness import Contender, _turn
from benchmarks.places import make_driver, place_for
from benchmarks.questions import capacity, growth, round_trips
from benchmarks.report.results import CaseResult, ContenderResult, QuestionResult, Results, load, save
from benchmarks.rivals.bare import SECRET
from benchmarks.scale import MILLION, STORES, Point
from gaman.session import Record, session
from tests import servers
from tests.test_examples import ROOT
from tests.test_readme import blocks

pytestmark = pytest.mark.anyio

CHAPTER = "examples/guide/scale.md"
# So few that the test is quick, and so many that a file is in each folder, and that a master's buffers weigh little.
SESSIONS = {"file": 2_000, "redis": 5_000, "redis cluster": 5_000, "mongodb": 5_000}


@pytest.mark.slow
@pytest.mark.parametrize("with_owners", [False, True], ids=["", "with owners"])
@pytest.mark.parametrize("kind", STORES)
async def test_a_formula_predicts_the_bytes_of_a_real_store(monkeypatch: pytest.MonkeyPatch, kind: str, with_owners: bool) -> None:
    count = SESSIONS.get(kind, 10_000)
    if kind == "memory":
        # This process has memory that sessions would use again.
        measured = growth.grow_apart(kind, count, with_owners=with_owners).bytes_each
    elif kind == "mongodb":
        # A checkpoint in the middle of a fill leaves holes in the files.
        measured = min([await _fill_and_weigh(kind, count, with_owners) for _ in range(3)])
    elif kind.startswith("redis"):
        # The hash tables of a server that other tests use may have grown before.
        options = places.COMPACT if kind.endswith("compact") else ()
        own: servers.RedisServer | servers.RedisCluster
        own = servers.RedisCluster(3, 0, *options, node_timeout=60_000) if "cluster" in kind else servers.RedisServer(*options)
        with own:
            monkeypatch.setitem(places.SERVERS, kind, lambda: own.url)
            measured = await _fill_and_weigh(kind, count, with_owners)
    else:
        measured = await _fill_and_weigh(kind, count, with_owners)
    point = Point(kind, count, with_owners, measured)
    # The formula is CPython 3.11's; a later Python takes a tenth less.
    tolerance = 0.15 if kind == "memory" else scale.TOLERANCE
    assert abs(point.error) <= tolerance, f"{point.measured:.0f} bytes a session, and the formula says {point.predicted:.0f}"


async def _fill_and_weigh(kind: str, count: int, with_owners: bool) -> float:
    async with growth.opened(kind) as (driver, place):
        return await growth.fill_and_weigh(driver, place, kind, count, time.time(), with_owners=with_owners)


async def test_redis_has_the_buckets_that_the_formula_says() -> None:
    with servers.RedisServer() as server:
        driver = make_driver("redis", server.url)
        await driver.open()
        await growth.fill(driver, "redis", 5000, time.time())
        await driver.close()
        [size] = re.findall(r"table size: (\d+)", str(server.execute("DEBUG HTSTATS", 0)))[:1]
    assert int(size) == scale._table_size(5000) == 8192


def test_the_hash_tags_of_ids_are_those_of_the_formula_and_each_has_the_same_share() -> None:
    driver = make_driver("redis cluster", "redis+cluster://127.0.0.1:1")
    sessions = 100_000
    tags = Counter(driver._keyspace.key(growth.new_id()).partition("{")[2].partition("}")[0] for _ in range(sessions))
    assert tags.keys() == {*scale.TAGS}
    # Ids are random: a tag with 24 of them on average has three times as many in one of 10^14 runs.
    assert max(tags.values()) < 3 * sessions / len(tags)


@pytest.mark.parametrize("masters", [3, 10, 50])
def test_the_fullest_master_of_a_cluster_has_the_share_that_the_formula_says(masters: int) -> None:
    driver = make_driver("redis cluster", "redis+cluster://127.0.0.1:1")
    ends = [16_384 * number // masters for number in range(1, masters)]
    # One session for each tag, because the shares of random ids would differ by some percent.
    keys = [driver._keyspace.key(tag + growth.new_id()[len(tag) :]) for tag in scale.TAGS]
    fullest = max(Counter(bisect_right(ends, key_slot(key.encode())) for key in keys).values())
    assert fullest * masters / len(keys) == pytest.approx(scale.fullest(masters))


async def test_the_masters_of_a_cluster_have_the_slots_that_the_formula_divides() -> None:
    with servers.RedisCluster(node_timeout=60_000) as cluster:
        slots = [entry[:2] for entry in cluster.masters[0].execute("CLUSTER SLOTS")]
    assert sorted(start for start, _ in slots)[1:] == [16_384 * number // 3 for number in range(1, 3)]


def test_a_cluster_has_enough_masters_and_not_one_too_many() -> None:
    for kind in ("redis cluster", "redis cluster, compact"):
        for sessions in (MILLION, 100 * MILLION, 1000 * MILLION):
            count = scale.masters(kind, sessions)
            room = scale.USABLE * scale.MACHINE

            def on_fullest(masters: int, kind: str = kind, sessions: int = sessions) -> float:
                return scale.bytes_of(kind, sessions * scale.fullest(masters), with_owners=True, servers=masters) / masters

            assert on_fullest(count) <= room
            assert count == 3 or on_fullest(count - 1) > room


@pytest.mark.parametrize("kind", round_trips.STORES)
async def test_a_request_takes_the_round_trips_that_the_chapter_says(kind: str) -> None:
    told = {name: counts[round_trips.STORES.index(kind)] for name, counts in scale.ROUND_TRIPS.items()}
    async with round_trips.enter(kind) as entered:
        counted = {each.name: (await _turn(each)).figure for each in entered if isinstance(each, Contender)}
    assert counted == told


@pytest.mark.parametrize("kind", ["cookies", "redis", "mongodb"])
async def test_the_cpu_of_a_request_is_that_of_the_application_and_of_its_server(kind: str) -> None:
    async with capacity.enter(kind) as entered:
        for each in entered:
            assert isinstance(each, Contender)
            sample = await _turn(each)
            assert 1 < sample.figure < 100_000
            assert [*sample.extra] == ([] if kind == "cookies" else ["in the server, µs"])
            assert all(0.1 < figure < 100_000 for figure in sample.extra.values())


async def test_a_filled_session_has_the_bytes_of_a_real_login() -> None:
    """The formulas are for these bytes, so the sizes in the question `growth` have to be those of a login."""
    with place_for("file") as place:
        driver = make_driver("file", place)
        stored: list[Record] = []
        create = driver.create

        async def note(id: str, record: Record) -> object:
            stored.append(record)
            return await create(id, record)

        driver.create = note
        site = round_trips.Site(session(SECRET, driver), iter([round_trips.OWNER]))
        await site.app.load()
        await log_in(site.app, "/log_in")
        await site.app.shutdown()
    [real] = stored
    filled = growth.make_record("file", 0, 1, growth.owner_name("file", 1))
    assert {name: len(value) for name, value in real.fields.items()} == {name: len(value) for name, value in filled.fields.items()}
    assert len(real.seal) == len(filled.seal)
    assert real.ownership is not None
    assert filled.ownership is not None
    assert len(real.ownership.owner) == len(filled.ownership.owner)
    assert len(real.ownership.note) == len(filled.ownership.note)


# The command


def run_of(*points: Point) -> Results:
    """Return a run that measured these points."""
    cases = [
        CaseResult(
            f"{point.kind}{', with owners' if point.with_owners else ''}",
            "bytes a session",
            "lower",
            "gaman",
            "questions/growth.py:1",
            "sessions",
            contenders=[ContenderResult("gaman", "ours", "questions/growth.py:1", [point.measured], at=point.sessions)],
        )
        for point in points
    ]
    return Results({}, quick=False, questions=[QuestionResult("growth", "What?", "questions/growth.py:1", 1, cases)])


@pytest.mark.parametrize(("factor", "status"), [(1.0, 0), (1.05, 0), (1.5, 1)])
def test_a_run_is_held_against_the_formulas(tmp_path: Path, capsys: pytest.CaptureFixture[str], factor: float, status: int) -> None:
    found = [
        Point(kind, MILLION, owners, factor * Point(kind, MILLION, owners, 1).predicted)
        for kind in STORES
        for owners in (False, True)
    ]
    save(run_of(*found), tmp_path / "results.json")
    assert [*scale.points(load(tmp_path / "results.json"))] == found
    assert scale.main([str(tmp_path)]) == status
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == len(found)
    assert any("beyond its tolerance" in line for line in lines) == bool(status)


def test_a_run_without_growth_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(Results({}, quick=False, questions=[]), tmp_path / "results.json")
    assert scale.main([str(tmp_path)]) == 1
    assert "has no figures of `growth`" in capsys.readouterr().out


# The chapter


def test_the_command_prints_the_tables_of_the_chapter(capsys: pytest.CaptureFixture[str]) -> None:
    assert scale.main([]) == 0
    printed = capsys.readouterr().out.strip().split("\n\n")
    chapter = (ROOT / CHAPTER).read_text()
    assert len(printed) == 4
    for table in printed:
        assert table in chapter


def test_the_numbers_in_the_chapters_sentences_are_those_of_the_formulas() -> None:
    chapter = (ROOT / CHAPTER).read_text()
    for sentence in scale.sentences():
        assert sentence in " ".join(chapter.split())


def test_the_commands_of_the_chapter_exist() -> None:
    for block in blocks(CHAPTER, "sh"):
        for line in block.code.splitlines():
            python, option, module, *arguments = shlex.split(line)
            assert (python, option) == ("python", "-m")
            assert module in ("benchmarks", "benchmarks.scale")
            if module == "benchmarks":
                assert {name for name in arguments if name[:2] != "--"} <= {*command.QUESTIONS, *command.LONG_QUESTIONS}
