from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
import time
from base64 import urlsafe_b64decode
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, suppress
from importlib.metadata import PackageNotFoundError
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

import pytest
from rich.console import Console

from benchmarks.cores import on_load_cores, on_server_core
from benchmarks.harness import Case, Contender, Missing, Plan, _turn, check
from benchmarks.load import Aim, Load, load_by_wrk, load_from_here, read_wrk
from benchmarks.questions import drivers, growth, memory, over_http, owners
from benchmarks.report.results import BEST_PEER, CaseResult, ContenderResult, QuestionResult
from benchmarks.report.table import show
from benchmarks.rivals import called, javascript, servers
from tests.serving import PATIENCE, get, running

pytestmark = pytest.mark.anyio

BODY = b'{"user":1}'
RIGHT = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n" + BODY
WRONG = {
    "status": b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 10\r\n\r\n" + BODY,
    "redirect": b"HTTP/1.1 302 Found\r\nLocation: /login\r\nContent-Length: 10\r\n\r\n" + BODY,
    "body": b'HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{"user":null}',
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
}


async def by_wrk(aim: Aim, seconds: float) -> Load:
    """Send requests from wrk in a thread, so that this event loop can respond."""
    return await asyncio.to_thread(load_by_wrk, aim, seconds)


GENERATORS = [
    pytest.param(by_wrk, marks=pytest.mark.skipif(shutil.which("wrk") is None, reason="there is no wrk")),
    load_from_here,
]
each_generator = pytest.mark.parametrize("load", GENERATORS)
Generator = Callable[[Aim, float], Awaitable[Load]]


@asynccontextmanager
async def server(wrong: bytes, after: int, seen: list[bytes] | None = None) -> AsyncGenerator[int]:
    """Send *after* right responses, and then the *wrong* one; yield the port."""
    count = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                if seen is not None:
                    seen.append(head)
                count += 1
                writer.write(wrong if count > after else RIGHT)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        yield listener.sockets[0].getsockname()[1]


@each_generator
async def test_right_responses_are_counted(load: Generator) -> None:
    seen: list[bytes] = []
    async with server(RIGHT, 0, seen) as port:
        found = await load(Aim(port, "/read", 4, ["session=1", "session=2", "session=3", "session=4"], BODY), 0.15)
    assert 0 < found.rate < len(seen) / 0.05
    assert 0 < found.p50 <= found.p99
    for i in range(1, 5):
        assert any(b"\r\nCookie: session=%d\r\n" % i in head for head in seen)
    assert all(head.startswith(b"GET /read HTTP/1.1\r\n") for head in seen)


@each_generator
@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
async def test_a_wrong_response_fails_however_fast_it_is(load: Generator, wrong: bytes) -> None:
    async with server(wrong, 20) as port:
        with pytest.raises(AssertionError, match="wrong response"):
            await load(Aim(port, "/read", 2, [], BODY), 0.15)


@pytest.mark.skipif(shutil.which("wrk") is None, reason="there is no wrk")
async def test_wrk_gets_more_time_if_there_was_no_response_in_its_turn() -> None:
    now = asyncio.get_running_loop().time
    ready_at = now() + 0.6

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                await asyncio.sleep(max(0, ready_at - now()))
                writer.write(RIGHT)
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listener:
        assert (await by_wrk(Aim(listener.sockets[0].getsockname()[1], "/read", 2, [], BODY), 0.05)).rate > 0


@each_generator
async def test_a_server_that_closes_its_connection_fails(load: Generator) -> None:
    async def close(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1000)
        writer.close()

    async with await asyncio.start_server(close, "127.0.0.1", 0) as closing:
        with pytest.raises(AssertionError, match=r"failed|closed"):
            await load(Aim(closing.sockets[0].getsockname()[1], "/read", 2, [], BODY), 0.15)


FIGURES = {"seconds": 0.2, "requests": 100, "failed": 0, "wrong": 0, "p50": 1.5, "p99": 4.0}


def test_the_output_of_wrk_is_read() -> None:
    assert read_wrk(f"Running 60m test\n\nfigures {json.dumps(FIGURES)} \n") == Load(500, 1.5, 4.0)


@pytest.mark.parametrize(
    ("output", "error"),
    [
        ("unable to connect to 127.0.0.1:1 Connection refused", "unable to connect"),
        (f"\nfigures {json.dumps({**FIGURES, 'failed': 2})} \n", "2 connections"),
        (f"\nfigures {json.dumps({**FIGURES, 'wrong': 3})} 503 {{}}\nno\n", "3 wrong responses of 100, such as: 503 {}"),
        (f"\nfigures {json.dumps({**FIGURES, 'requests': 0})} \n", "there was no response"),
    ],
)
def test_an_error_of_wrk_is_raised(output: str, error: str) -> None:
    with pytest.raises(AssertionError, match=error):
        read_wrk(output)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lets Python choose the cores")
def test_a_server_and_its_load_run_on_different_cores() -> None:
    before = os.sched_getaffinity(0)
    shown = [sys.executable, "-c", "import os; print(*os.sched_getaffinity(0))"]
    cores: list[set[str]] = []
    for chosen in (on_server_core, on_load_cores):
        with chosen():
            cores.append({*subprocess.run(shown, capture_output=True, text=True, check=True).stdout.split()})
        assert os.sched_getaffinity(0) == before
    of_server, of_load = cores
    assert len(of_server) == 1
    assert of_load == ({str(core) for core in before} - of_server or of_server)


async def taking_part(case: Case) -> tuple[dict[str, str | None], dict[str, str]]:
    """Check the contenders of *case*; return the versions of those present, and the reasons of those absent."""
    async with case.enter() as entered:
        present = [each for each in entered if isinstance(each, Contender)]
        await check(case, present)
        return {each.name: each.version for each in present}, {
            each.name: each.reason for each in entered if isinstance(each, Missing)
        }


BARE_AND_GAMAN = [each for each in servers.SERVERS if each.name in ("bare callable", "gaman")]
SEALING = [each for each in servers.SERVERS if "cookies" in each.kinds and each.session in ("encrypts", "signs")]


def setting(name: str, plan: Plan) -> Case:
    return next(case for case in over_http.cases(plan) if case.name == name)


@pytest.mark.parametrize(
    "names",
    [
        ("memory, read",),
        *(
            # Each starts every server.
            pytest.param(names, marks=pytest.mark.slow)
            for names in (
                # Those of one kind share the servers, whose starts take most of the time.
                ("JSON", "two params, 100 routes"),
                ("cookies, read", "cookies, write"),
                ("redis, write, one at a time",),
                ("sql, read, one at a time",),
                ("file, write, one at a time",),
                ("mongodb, read, one at a time",),
            )
        ),
    ],
    ids=" and ".join,
)
async def test_all_installed_servers_respond_alike(names: Sequence[str]) -> None:
    plan = Plan()
    settings = [next(each for each in over_http.SETTINGS if each.name == name) for name in names]
    with over_http.running_servers(settings[0], plan) as (started, missing):
        for each in settings:
            found = [*missing, *over_http.contenders_at(started, each, plan)]
            present = [contender for contender in found if isinstance(contender, Contender)]
            await check(setting(each.name, plan), present)
            assert {"bare callable", "gaman", *expected_here(each.kind)} <= {contender.name for contender in present}
            assert all(absent.reason.startswith("not installed: ") for absent in found if isinstance(absent, Missing))


def expected_here(kind: str) -> set[str]:
    """Return the rivals that this machine can run, found without the code that reports an absent one."""
    modules = javascript.FOLDER / "node_modules"
    found = {servers.BARE_ON_GRANIAN, servers.ON_GRANIAN} if find_spec("granian") else set[str]()
    if shutil.which("node") and (modules / "fastify").exists():
        found |= {"Express", "Fastify"}
    if (modules / "@oven").exists():
        found |= {"Hono on Bun", "Elysia on Bun"}
    return {server.name for server in servers.SERVERS if server.name in found and kind in server.kinds}


def decoded(cookie: str) -> bytes:
    """Return the value of *cookie*, its parts decoded from base64, and their parts decoded again: BlackSheep encodes twice."""
    found = layer = unquote(cookie.partition("=")[2]).encode()
    for _ in range(2):
        layer = b" ".join(decoded_parts(layer))
        found += layer
    return found


def decoded_parts(value: bytes) -> Iterator[bytes]:
    """Yield the parts of *value* that are base64, decoded."""
    for part in re.split(rb"[^\w-]", value.replace(b"+", b"-").replace(b"/", b"_")):
        with suppress(ValueError):
            yield urlsafe_b64decode(part + b"==")


@pytest.mark.parametrize("server", SEALING, ids=lambda server: server.name)
async def test_the_cookie_of_a_server_is_encrypted_or_signed_as_its_row_says(server: servers.Server) -> None:
    if (reason := server.absence()) is not None:
        pytest.skip(reason)
    with running("-m", "benchmarks.rivals.servers", server.name, "cookies", "", cwd=over_http.ROOT) as program:
        site = over_http.Site(server, over_http.Setting("", "cookies", "/read", 1), None, program.port, 0.1)
        cookie = site.log_in()
        assert (b"Angga" in decoded(cookie)) == (server.session == "signs")
        assert b"Angga" in site.request("/read", f"Cookie: {cookie}").body
        middle = len(cookie) - 10
        forged = cookie[:middle] + ("A" if cookie[middle] != "A" else "B") + cookie[middle + 1 :]
        assert b"Angga" not in get(program.port, "/read", f"Cookie: {forged}").body


def cpu_of(group: int) -> dict[int, int]:
    """Return the CPU time of each process of a process group, in clock ticks."""
    found: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                found[int(path.parent.name)] = int(fields[11]) + int(fields[12])
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="it reads /proc")
@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("server", [each for each in servers.SERVERS if each.has_workers], ids=lambda server: server.name)
async def test_each_worker_of_a_server_serves(server: servers.Server, workers: int) -> None:
    if (reason := server.absence()) is not None:
        pytest.skip(reason)
    with running("-m", "benchmarks.rivals.servers", server.name, "plain", "", str(workers), cwd=over_http.ROOT) as program:
        site = over_http.Site(server, over_http.Setting("", "plain", "/json", 64, workers=(workers,)), workers, program.port, 0.3)
        assert await site.result() == [{"message": "hello"}]
        deadline = time.monotonic() + PATIENCE
        busy: list[int] = []
        # A worker may start later than another.
        while len(busy) < workers and time.monotonic() < deadline:
            before = cpu_of(program.pid)
            await site.measure()
            busy = [pid for pid, ticks in cpu_of(program.pid).items() if ticks - before.get(pid, ticks) > 1]
        assert len(busy) == workers


@pytest.mark.slow
async def test_the_curve_over_workers_has_a_point_for_each_number_and_its_row_says_what_shares_the_cores() -> None:
    case = setting(f"JSON, {over_http.SHARED}", Plan())
    assert case.axis == "workers"
    assert "shared with the load" in case.name
    async with case.enter() as entered:
        present = [each for each in entered if isinstance(each, Contender)]
        await check(case, present)
        assert {(each.name, each.at) for each in present} >= {(name, at) for name in ("bare callable", "gaman") for at in (1, 2)}
    assert not any(each.axis for each in over_http.cases(Plan(quick=True)))


def test_a_quick_run_has_each_of_its_contenders_in_each_of_its_cases() -> None:
    for each in over_http.SETTINGS:
        if each.name in over_http.QUICK_SETTINGS:
            assert {*over_http.QUICK} <= {server.name for server in servers.SERVERS if each.invites(server)}, each.name
    assert {*over_http.QUICK_SETTINGS} == {case.name for case in over_http.cases(Plan(quick=True))}


def test_a_server_imports_neither_pytest_nor_the_clients_of_stores_before_it_needs_them() -> None:
    code = "import sys, benchmarks.rivals.servers; print(*{'pytest', 'redis', 'pymongo'} & {*sys.modules})"
    found = subprocess.run([sys.executable, "-c", code], cwd=over_http.ROOT, capture_output=True, text=True, check=True, timeout=60)
    assert found.stdout.split() == []


def test_each_goal_is_about_contenders_of_its_case() -> None:
    for each in over_http.SETTINGS:
        names = {server.name for server in servers.SERVERS if each.invites(server)} | {BEST_PEER}
        assert {name for goal in each.goals for name in (goal.of, goal.against)} <= names, each.name


def test_the_median_latency_and_the_99th_percentile_are_beside_each_other() -> None:
    gaman = ContenderResult("gaman", "ours", "a.py:1", [1.0], extra={"p50, ms": [1.5], "p99, ms": [4.25]})
    case = CaseResult("case", "requests a second", "higher", "gaman", "a.py:1", contenders=[gaman])
    console = Console(width=200)
    with console.capture() as capture:
        console.print(show(QuestionResult("question", "What?", "a.py:1", 1.0, [case])))
    assert re.search(r"p50, ms · p99, ms +1\.5 · 4\.25", capture.get())


@pytest.mark.slow
async def test_the_load_on_a_server_uses_its_sessions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(over_http, "TURN", 0.5)  # wrk must have started before it is interrupted
    async with setting("memory, read", Plan(against=frozenset({"blacksheep"}))).enter() as entered:
        assert {each.name for each in entered} <= {"bare callable", "gaman", "gaman on Granian", "BlackSheep"}
        for each in entered:
            if isinstance(each, Missing):
                continue
            assert each.result is not None
            await each.result()
            sample = await _turn(each)
            assert sample.figure > 0
            assert [*sample.extra] == ["p50, ms", "p99, ms"]


@pytest.mark.slow
async def test_a_server_that_is_not_installed_is_a_row_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    def lack(package: str) -> str:
        if package not in ("gaman", "uvicorn"):
            raise PackageNotFoundError(package)
        return "1.0"

    monkeypatch.setattr(servers, "version", lack)
    monkeypatch.setenv("PATH", "")
    present, absent = await taking_part(setting("memory, read", Plan()))
    assert {*present} == {"bare callable", "gaman"}
    assert absent["Litestar"] == "not installed: litestar"
    assert absent["gaman on Granian"] == "not installed: granian"
    assert absent["Express"] == "not installed: node"


@pytest.mark.parametrize("has_packages", [False, True])
async def test_a_peer_that_npm_has_not_installed_is_a_row_with_the_reason(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, has_packages: bool
) -> None:
    if has_packages:
        # Without its install script, npm's package of Bun has a placeholder for the program.
        program = tmp_path / "node_modules" / ".bin" / "bun"
        program.parent.mkdir(parents=True)
        program.write_text("#!/bin/sh\nexit 1\n")
        program.chmod(0o755)
        for package in ("hono", "elysia", "bun", "fastify"):
            (tmp_path / "node_modules" / package).mkdir()
            (tmp_path / "node_modules" / package / "package.json").write_text("{}")
    monkeypatch.setattr(javascript, "FOLDER", tmp_path)
    scripts = [each for each in servers.SERVERS if "Script" in repr(each.serve)]
    monkeypatch.setattr(over_http, "SERVERS", [*BARE_AND_GAMAN, *scripts])
    present, absent = await taking_part(setting("cookies, read", Plan()))
    assert {"bare callable", "gaman"} <= {*present}
    assert absent["Hono on Bun"] == absent["Elysia on Bun"] == "not installed: bun (npm install --prefix benchmarks/rivals/node)"
    lacking = "@fastify/secure-session" if has_packages else "fastify"
    node = f"{lacking} (npm install --prefix benchmarks/rivals/node)" if shutil.which("node") else "node"
    assert absent["Fastify"] == f"not installed: {node}"


async def test_a_peer_that_does_not_start_is_a_row_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    unknown = servers.Server("Unknown", [], ("plain",), servers.serve_bare)
    monkeypatch.setattr(over_http, "SERVERS", [*BARE_AND_GAMAN, unknown])
    present, absent = await taking_part(setting("JSON", Plan()))
    assert {"bare callable", "gaman"} <= {*present}
    assert absent["Unknown"] == "doesn't start: StopIteration"


async def test_each_write_is_a_commit_if_each_call_is_a_batch() -> None:
    batches: list[list[str]] = []

    async def run(calls: list[str]) -> list[str]:
        batches.append(calls)
        await asyncio.sleep(0)
        return [call.upper() for call in calls]

    one_by_one = servers._Singly(run)
    assert await asyncio.gather(*map(one_by_one.call, "abc")) == ["A", "B", "C"]
    assert batches == [["a"], ["b"], ["c"]]


STORED = [case for case in drivers.cases(Plan()) if case.name.endswith(("update", "regenerate"))]


@pytest.mark.parametrize("case", STORED, ids=[case.name for case in STORED])
async def test_all_installed_services_respond_alike(case: Case) -> None:
    present, absent = await taking_part(case)
    assert {"bare callable", "gaman"} <= {*present}
    lacks = ("leaves the session under its old id too", "can't change the id of a session")
    assert all(
        reason.startswith("not installed: ") or ("regenerate" in case.name and reason in lacks) for reason in absent.values()
    )


async def test_the_requests_of_concurrent_clients_are_added_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drivers, "TURN", 0.01)
    service = called.CalledGaman("memory", "")
    await service.open()
    clients = drivers.Clients(service, "regenerate", 8)
    await clients.result()
    before = [*clients._keys]
    assert await clients.measure() > 0
    assert not {*before} & {*clients._keys}
    await service.close()


async def test_sessions_in_memory_are_measured_in_a_process_of_their_own() -> None:
    sample = memory.sessions_of("gaman", 5000)
    assert 300 < sample.figure < 3000
    assert sample.extra["all, MB"] == pytest.approx(sample.figure * 5000 / 1e6)


async def test_memory_is_sampled_in_some_tenths_of_the_requests() -> None:
    async with memory.over_requests(800) as entered:
        assert [each.at for each in entered] == [80, 160, 400, 800]
        assert isinstance(entered[0], Contender)
        assert 10 < (await _turn(entered[0])).figure < 1000


@pytest.mark.parametrize("kind", growth.STORES)
async def test_a_filled_store_is_measured_and_swept(kind: str) -> None:
    # Of two thousand sessions in a day, one expires in a minute.
    found = await growth.grow(kind, 2000)
    assert (found.due_sweep_each is not None) == (kind in ("memory", "sql", "file"))
    assert (found.idle_sweep is None) == (kind == "mongodb")
    if kind != "memory":
        assert found.bytes_each > 95


async def test_the_sessions_of_an_owner_are_listed_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(owners, "OWNED", 10)
    async with owners.enter("sql", (10, 20)) as entered:
        assert [each.at for each in entered] == [10, 20]
        for each in entered:
            assert isinstance(each, Contender)
            sample = await _turn(each)
            assert [*sample.extra] == ["list of 10, ms", "end of 10, ms"]
