"""The store is opened and closed with the application: through the lifespan, by running(), or at first use."""

from __future__ import annotations

import asyncio
import re
import signal
import threading
from collections.abc import AsyncGenerator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.testclient import TestClient as StarletteClient

from gaman import ConfigError
from gaman.session import SessionStoreError
from gaman.session.asgi import SessionMiddleware, get_session
from tests.servers import free_port
from tests.serving import Program, get, running, until
from tests.session.sites import Recording
from tests.session.visitors import Visitor, answering, sessions_in, starlette
from tests.test_asgi_servers import program_of

pytestmark = pytest.mark.anyio


async def _count(request: Any) -> int:
    visits: int = await (await get_session(request)).update("visits", lambda visits: visits + 1, 0)
    return visits


class Lifespan:
    """The server's side of the lifespan protocol."""

    def __init__(self, app: Any) -> None:
        self._incoming: asyncio.Queue[Any] = asyncio.Queue()
        self._outgoing: asyncio.Queue[Any] = asyncio.Queue()
        self.task = asyncio.create_task(app({"type": "lifespan", "state": {}}, self._incoming.get, self._outgoing.put))

    async def send(self, name: str) -> Any:
        """Send the message *name*, and return the application's."""
        self._incoming.put_nowait({"type": f"lifespan.{name}"})
        return await asyncio.wait_for(self._outgoing.get(), 5)

    def is_silent(self) -> bool:
        """Return whether the application has sent nothing more."""
        return self._outgoing.empty()


# --- through the middleware


@pytest.mark.parametrize("kind", [Starlette, FastAPI])
async def test_the_store_is_open_while_the_applications_own_lifespan_runs(kind: Any) -> None:
    driver = Recording()
    sessions = sessions_in(driver)

    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncGenerator[None, None]:
        driver.events.append(f"up with {await sessions.end_all('user:1')}")
        yield
        driver.events.append(f"down with {await sessions.end_all('user:1')}")

    app = kind(lifespan=lifespan)
    app.add_middleware(SessionMiddleware, sessions=sessions)
    server = Lifespan(app)
    assert await server.send("startup") == {"type": "lifespan.startup.complete"}
    assert await server.send("shutdown") == {"type": "lifespan.shutdown.complete"}
    await server.task
    assert [event for event in driver.events if event not in {"open", "close"}] == ["up with 0", "down with 0"]
    assert (driver.events[0], driver.events[-1]) == ("open", "close")


async def test_requests_within_the_lifespan_open_nothing_again() -> None:
    driver = Recording()
    app = starlette(sessions_in(driver), count=answering(_count))
    server = Lifespan(app)
    await server.send("startup")
    visitor = Visitor(app)
    assert [(await visitor.get("/count")).json for _ in range(2)] == [1, 2]
    await server.send("shutdown")
    await server.task
    assert (driver.events.count("open"), driver.events.count("close"), driver.events[-1]) == (1, 1, "close")


@pytest.mark.parametrize("kind", [Starlette, FastAPI])
async def test_a_store_that_cannot_be_opened_fails_the_start_with_its_reason(kind: Any, caplog: pytest.LogCaptureFixture) -> None:
    driver = Recording()
    driver.failing = {"open"}
    app = kind()
    app.add_middleware(SessionMiddleware, sessions=sessions_in(driver))
    server = Lifespan(app)
    message = await server.send("startup")
    assert message == {"type": "lifespan.startup.failed", "message": "the session store (recording) could not open"}
    with pytest.raises(SessionStoreError):
        await server.task
    # The server logs it.
    assert caplog.records == []
    assert driver.events == ["open"]


async def _in_a_group(scope: Any, receive: Any, send: Any) -> None:
    async with asyncio.TaskGroup() as group:
        await group.create_task(receive())


async def _reporting_itself(scope: Any, receive: Any, send: Any) -> None:
    try:
        await receive()
    except Exception as error:
        await send({"type": "lifespan.startup.failed", "message": f"the framework's own message: {error}"})
        raise ValueError("the framework's own error") from error


async def _going_on(scope: Any, receive: Any, send: Any) -> None:
    with suppress(SessionStoreError):
        await receive()
    await send({"type": "lifespan.startup.complete"})


@pytest.mark.parametrize("app", [_in_a_group, _reporting_itself, _going_on])
async def test_the_server_gets_the_stores_reason_whatever_the_application_does_with_the_error(app: Any) -> None:
    driver = Recording()
    driver.failing = {"open"}
    server = Lifespan(SessionMiddleware(app, sessions=sessions_in(driver)))
    message = await server.send("startup")
    assert message == {"type": "lifespan.startup.failed", "message": "the session store (recording) could not open"}
    with pytest.raises(SessionStoreError):
        await server.task
    assert server.is_silent()


def test_starlettes_client_raises_that_the_store_cannot_be_opened() -> None:
    driver = Recording()
    driver.failing = {"open"}
    with pytest.raises(SessionStoreError), StarletteClient(starlette(sessions_in(driver))):
        raise AssertionError


async def test_a_start_that_fails_without_a_message_has_one() -> None:
    class Broken(Recording):
        async def open(self) -> None:
            raise NotImplementedError

    server = Lifespan(SessionMiddleware(_going_on, sessions=sessions_in(Broken())))
    assert await server.send("startup") == {"type": "lifespan.startup.failed", "message": "NotImplementedError()"}
    with pytest.raises(NotImplementedError):
        await server.task


@pytest.mark.parametrize("when", ["up", "down"])
async def test_an_application_that_fails_in_its_own_lifespan_leaves_no_store_open(when: str) -> None:
    @asynccontextmanager
    async def lifespan(_: Any) -> AsyncGenerator[None, None]:
        if when == "up":
            raise ValueError("no database")
        yield
        raise ValueError("no database")

    driver = Recording()
    app = Starlette(lifespan=lifespan)
    app.add_middleware(SessionMiddleware, sessions=sessions_in(driver))
    server = Lifespan(app)
    message = await server.send("startup")
    if when == "down":
        assert message["type"] == "lifespan.startup.complete"
        message = await server.send("shutdown")
    assert "no database" in message["message"]
    with pytest.raises(ValueError, match="no database"):
        await server.task
    assert driver.events == ["open", "close"]


async def test_an_application_without_a_lifespan_leaves_no_store_open() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http", "there is no lifespan"

    driver = Recording()
    server = Lifespan(SessionMiddleware(app, sessions=sessions_in(driver)))
    with pytest.raises(AssertionError):
        await server.task
    assert driver.events == []


# --- running()


async def test_running_opens_the_store_for_a_mounted_application() -> None:
    driver = Recording()
    sessions = sessions_in(driver)
    # No framework passes the lifespan to what is mounted.
    app = Starlette(routes=[Mount("/inner", starlette(sessions, count=answering(_count)))])
    async with sessions.running():
        assert driver.events == ["open"]
        visitor = Visitor(app)
        assert [(await visitor.get("/inner/count")).json for _ in range(2)] == [1, 2]
    assert (driver.events.count("open"), driver.events[-1]) == (1, "close")


async def test_running_beside_the_lifespan_closes_the_store_with_the_last_of_them() -> None:
    driver = Recording()
    sessions = sessions_in(driver)
    server = Lifespan(starlette(sessions))
    await server.send("startup")
    async with sessions.running(), sessions.running():
        await server.send("shutdown")
        assert driver.events == ["open"]
    assert driver.events == ["open", "close"]
    await server.task


async def test_running_raises_what_the_store_says() -> None:
    driver = Recording()
    driver.failing = {"open"}
    with pytest.raises(SessionStoreError):
        async with sessions_in(driver).running():
            raise AssertionError


async def test_running_closes_the_store_after_an_error() -> None:
    driver = Recording()
    with pytest.raises(ValueError, match="a bug"):
        async with sessions_in(driver).running():
            raise ValueError("a bug")
    assert driver.events == ["open", "close"]


# --- first use


class Slow(Recording):
    """Takes a moment to open."""

    async def open(self) -> None:
        await asyncio.sleep(0.02)
        await super().open()


async def test_fifty_concurrent_first_requests_open_the_store_once() -> None:
    driver = Slow()
    app = starlette(sessions_in(driver), count=answering(_count))
    replies = await asyncio.gather(*(Visitor(app).get("/count") for _ in range(50)))
    assert [reply.json for reply in replies] == [1] * 50
    assert driver.events.count("open") == 1


async def test_fifty_concurrent_first_requests_share_one_failure_and_the_next_one_tries_again() -> None:
    driver = Slow()
    driver.failing = {"open"}
    app = starlette(sessions_in(driver), count=answering(_count))
    replies = await asyncio.gather(*(Visitor(app).get("/count") for _ in range(50)))
    assert [reply.status for reply in replies] == [503] * 50
    assert driver.events == ["open"]
    driver.failing = set()
    assert (await Visitor(app).get("/count")).json == 1


async def test_a_first_request_that_is_cancelled_leaves_the_store_to_the_others() -> None:
    driver = Slow()
    app = starlette(sessions_in(driver), count=answering(_count))
    first, second = (asyncio.create_task(Visitor(app).get("/count")) for _ in range(2))
    await asyncio.sleep(0.01)
    first.cancel()
    assert (await second).json == 1
    assert driver.events.count("open") == 1
    with pytest.raises(asyncio.CancelledError):
        await first


@pytest.mark.parametrize("kind", ["memory", "file", "sql", "redis", "mongodb", "cookies"])
def test_first_use_works_in_one_event_loop_after_the_other(kind: str, tmp_path: Path) -> None:
    from tests import servers

    options: dict[str, Any] = {
        "file": {"dir": str(tmp_path)},
        "sql": {"file": str(tmp_path / "sessions.db")},
    }.get(kind, {})
    if kind == "redis":
        options = {"url": servers.redis_url()}
    if kind == "mongodb":
        options = {"uri": servers.mongodb_uri(), "db_name": "gaman_test"}
    visitor = Visitor(starlette(sessions_in({"type": kind, **options}), count=answering(_count)))

    async def visit() -> list[int]:
        return [(await visitor.get("/count")).json for _ in range(2)]

    assert [asyncio.run(visit()) for _ in range(3)] == [[1, 2], [3, 4], [5, 6]]


def test_first_use_closes_the_store_with_its_event_loop() -> None:
    driver = Recording()
    visitor = Visitor(starlette(sessions_in(driver), count=answering(_count)))
    for _ in range(2):
        driver.events.clear()
        asyncio.run(visitor.get("/count"))
        assert (driver.events[0], driver.events[-1]) == ("open", "close")


# --- several event loops


@pytest.mark.parametrize("kind", ["memory", "cookies"])
def test_two_of_starlettes_clients_may_be_open_at_once_if_sessions_have_no_store(kind: str) -> None:
    sessions = sessions_in({"type": kind})
    app = starlette(sessions, count=answering(_count))
    with StarletteClient(app) as first:
        assert first.get("/count").json() == 1
        with StarletteClient(app) as second:
            assert [client.get("/count").json() for client in (second, first, second)] == [1, 2, 2]
        assert first.get("/count").json() == 3
    with StarletteClient(app) as third:
        assert third.get("/count").json() == 1


@pytest.mark.parametrize("kind", ["memory", "cookies", "file", "sql"])
def test_starlettes_client_keeps_its_session_without_a_with_block(kind: str, tmp_path: Path) -> None:
    options = {"file": {"dir": str(tmp_path)}, "sql": {"file": str(tmp_path / "sessions.db")}}.get(kind, {})
    client = StarletteClient(starlette(sessions_in({"type": kind, **options}), count=answering(_count)))
    # Each request has an event loop of its own.
    assert [client.get("/count").json() for _ in range(3)] == [1, 2, 3]


# Recording counts as a store that several processes share, and is named after memory.
IN_USE = (
    "the session store (memory) is open in another event loop, and its connections work only there; call session() for each "
    "event loop, open one TestClient at a time, or take the memory driver in tests"
)


@pytest.mark.filterwarnings("error")
def test_a_store_refuses_a_second_event_loop_while_the_first_one_uses_it() -> None:
    driver = Recording()
    app = starlette(sessions_in(driver), count=answering(_count))
    with StarletteClient(app) as first:
        assert first.get("/count").json() == 1
        with pytest.raises(ConfigError, match=re.escape(IN_USE)), StarletteClient(app):
            raise AssertionError
        with pytest.raises(ConfigError, match=re.escape(IN_USE)):
            asyncio.run(_raising(Visitor(app)))
        assert first.get("/count").json() == 2
    assert driver.events.count("open") == driver.events.count("close") == 1
    with StarletteClient(app) as second:
        second.get("/count")
    assert driver.events.count("open") == driver.events.count("close") == 2


async def _raising(visitor: Visitor) -> None:
    reply = await visitor.get("/count")
    assert reply.error is not None
    raise reply.error


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["memory", "recording"])
def test_of_several_threads_that_open_the_store_at_once_one_uses_it_or_all_do(kind: str) -> None:
    driver = Slow() if kind == "recording" else None
    app = starlette(sessions_in(driver), count=answering(_count))
    start = threading.Barrier(4)

    async def visit() -> list[Any]:
        visitor = Visitor(app)
        start.wait()
        replies = [await visitor.get("/count") for _ in range(2)]
        await asyncio.sleep(0.1)
        return [type(reply.error) if reply.error else reply.json for reply in replies]

    with ThreadPoolExecutor(4) as threads:
        found = [each.result() for each in [threads.submit(asyncio.run, visit()) for _ in range(4)]]
    if driver is None:
        assert found == [[1, 2]] * 4
    else:
        assert sorted(found, key=str) == sorted([[1, 2], *[[ConfigError] * 2] * 3], key=str)
        assert (driver.events.count("open"), driver.events.count("close")) == (1, 1)


def test_an_event_loop_that_was_stopped_leaves_the_store_to_the_next() -> None:
    driver = Recording()
    visitor = Visitor(starlette(sessions_in(driver), count=answering(_count)))
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()
    try:
        assert first.run_until_complete(visitor.get("/count")).json == 1
        assert second.run_until_complete(visitor.get("/count")).json == 2
        # It isn't the store's event loop any more, so its end closes nothing.
        closed = driver.events.count("close")
        first.run_until_complete(first.shutdown_asyncgens())
        assert driver.events.count("close") == closed
        second.run_until_complete(second.shutdown_asyncgens())
        assert driver.events[-1] == "close"
    finally:
        for loop in (first, second):
            for task in asyncio.all_tasks(loop):
                task.cancel()
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()


async def _ask(sessions: Any, call: str) -> Any:
    return await {
        "list": lambda: sessions.list("user:1"),
        "count": lambda: sessions.count("user:1"),
        "count of all": sessions.count,
        "end": lambda: sessions.end("0" * 64),
        "end_all": lambda: sessions.end_all("user:1"),
        "check": sessions.check,
        "purge": sessions.purge,
    }[call]()


each_call = pytest.mark.parametrize(
    ("call", "result"),
    [("list", []), ("count", 0), ("count of all", 0), ("end", False), ("end_all", 0), ("check", None), ("purge", 0)],
)


@each_call
@pytest.mark.parametrize("kind", ["memory", "file", "sql", "redis"])
def test_a_call_opens_the_store_if_nothing_else_has(call: str, result: Any, kind: str, tmp_path: Path) -> None:
    from tests import servers

    options: dict[str, Any] = {
        "file": {"dir": str(tmp_path)},
        "sql": {"file": str(tmp_path / "sessions.db")},
    }.get(kind, {})
    if kind == "redis":
        options = {"url": servers.redis_url()}
    sessions = sessions_in({"type": kind, **options})
    if kind == "redis" and call == "count of all":
        assert asyncio.run(_ask(sessions, call)) >= 0
        return
    # The end of an event loop closes the store.
    assert [asyncio.run(_ask(sessions, call)) for _ in range(2)] == [result] * 2


@each_call
async def test_a_call_opens_the_store_once_and_says_why_it_cannot(call: str, result: Any) -> None:
    driver = Slow()
    driver.failing = {"open"}
    sessions = sessions_in(driver)
    with pytest.raises(SessionStoreError, match="could not open"):
        await _ask(sessions, call)
    driver.failing = set()
    assert await asyncio.gather(*(_ask(sessions, call) for _ in range(5))) == [result] * 5
    assert driver.events.count("open") == 2


# --- servers

SITE = """
import os
from fastapi import Depends, FastAPI
from starlette.applications import Starlette
from starlette.routing import Mount
from gaman.session.asgi import Session, SessionMiddleware, get_session, session

sessions = session("a secret of the tests that is long enough", DRIVER, secure=False)
inner = FastAPI()
inner.add_middleware(SessionMiddleware, sessions=sessions)

@inner.get("/count")
async def count(current: Session = Depends(get_session)) -> int:
    return await current.update("visits", lambda visits: visits + 1, 0)

app = IS_LAZY and Starlette(routes=[Mount("/", inner)]) or inner
"""
COMMANDS = {
    "uvicorn": ["uvicorn", "main:app", "--log-level", "warning", "--port"],
    "hypercorn": ["hypercorn", "main:app", "--bind"],
    "granian": ["granian", "--interface", "asgi", "main:app", "--log-level", "warning", "--port"],
    "gunicorn": ["gunicorn", "-k", "uvicorn_worker.UvicornWorker", "--no-control-socket", "main:app", "--bind"],
}


def command_of(name: str, port: int) -> list[str]:
    program, *options = COMMANDS[name]
    return [program_of(program), *options, f"127.0.0.1:{port}" if options[-1] == "--bind" else str(port)]


def write_site(folder: Path, driver: dict[str, Any], *, is_lazy: bool = False) -> None:
    (folder / "main.py").write_text(SITE.replace("DRIVER", repr(driver)).replace("IS_LAZY", repr(is_lazy)))


@pytest.mark.parametrize("name", ["uvicorn", *(pytest.param(name, marks=pytest.mark.slow) for name in ("hypercorn", "granian"))])
def test_a_store_that_first_use_has_opened_is_closed_without_a_warning(name: str, tmp_path: Path) -> None:
    write_site(tmp_path, {"type": "sql", "file": str(tmp_path / "sessions.db")}, is_lazy=True)
    port = free_port()
    with running("-X", "dev", "-W", "error", *command_of(name, port), cwd=tmp_path) as program:
        assert until(lambda: _try_get(port, "/count", program), "a response") == 200
        assert program.stop(signal.SIGTERM) in (0, -signal.SIGTERM)
        log = program.stdout + program.stderr
        assert "Warning" not in log
        assert "Traceback" not in log
        assert "never" not in log


def test_a_store_that_cannot_be_opened_fails_the_start_of_uvicorn_with_one_line(tmp_path: Path) -> None:
    port = free_port()
    write_site(tmp_path, {"type": "redis", "url": f"redis://127.0.0.1:{port}"})
    with running(*command_of("uvicorn", free_port()), cwd=tmp_path) as program:
        assert program.wait() == 3
        lines = program.stderr.splitlines()
    reason = (
        f"the session store (redis) could not be reached at 127.0.0.1:{port}; see that it runs there, or change the driver's url"
    )
    assert lines == [f"ERROR:    {reason}", "ERROR:    Application startup failed. Exiting."]


def _try_get(port: int, target: str, program: Program) -> int | None:
    assert not program.has_ended(), program.stdout + program.stderr
    try:
        return get(port, target).status
    except OSError:
        return None


# --- several workers with sessions in memory

REFUSED = "the memory driver keeps sessions in one process, and 2 workers would not share them; take cookies, file, redis, sql"


@pytest.mark.parametrize(
    ("name", "options", "env"),
    [
        ("gunicorn", ["--workers", "2"], {}),
        # An App counts its workers in the same way, and has quicker tests of these.
        pytest.param("uvicorn", ["--workers", "2"], {}, marks=pytest.mark.slow),
        pytest.param("hypercorn", ["--workers", "2"], {}, marks=pytest.mark.slow),
        pytest.param("granian", ["--workers", "2"], {}, marks=pytest.mark.slow),
        pytest.param("gunicorn", [], {"WEB_CONCURRENCY": "2"}, marks=pytest.mark.slow),
        pytest.param("gunicorn", ["-c", "settings.py"], {}, marks=pytest.mark.slow),
    ],
)
def test_sessions_in_memory_refuse_two_workers(name: str, options: Sequence[str], env: dict[str, str], tmp_path: Path) -> None:
    write_site(tmp_path, {"type": "memory"})
    (tmp_path / "settings.py").write_text("workers = 2")
    with running(*command_of(name, free_port()), *options, cwd=tmp_path, env=env) as program:
        program.wait()
        assert REFUSED in program.stdout + program.stderr


@pytest.mark.slow
@pytest.mark.parametrize("worker", ["uvicorn_worker.UvicornWorker", "asgi"])
def test_sessions_in_memory_start_with_one_worker_of_gunicorn(worker: str, tmp_path: Path) -> None:
    write_site(tmp_path, {"type": "memory"})
    port = free_port()
    with running(*command_of("gunicorn", port), "-k", worker, cwd=tmp_path) as program:
        assert until(lambda: _try_get(port, "/count", program), "a response") == 200
        assert program.stop() == 0
        assert "memory" not in program.stdout + program.stderr


@pytest.mark.slow
def test_of_two_workers_that_open_the_store_at_first_use_each_refuses_its_requests(tmp_path: Path) -> None:
    write_site(tmp_path, {"type": "memory"}, is_lazy=True)
    port = free_port()
    with running(*command_of("gunicorn", port), "--workers", "2", cwd=tmp_path) as program:
        assert until(lambda: _try_get(port, "/count", program), "a response") == 500
        until(lambda: REFUSED in program.stderr, "the log")


def test_where_the_number_of_workers_is_unknown_a_warning_names_the_driver_and_the_fix(tmp_path: Path) -> None:
    source = SITE.replace("DRIVER", "{'type': 'memory'}").replace("IS_LAZY", "False")
    source += f"""
import multiprocessing, uvicorn

def serve():
    uvicorn.run(app, port={(port := free_port())}, log_level="warning")

if __name__ == "__main__":
    process = multiprocessing.get_context("fork").Process(target=serve)
    process.start()
    process.join()
"""
    (tmp_path / "script.py").write_text(source)
    with running("script.py", cwd=tmp_path) as program:
        assert until(lambda: _try_get(port, "/count", program), "a response") == 200
        (line,) = program.stderr.splitlines()
    assert line == (
        "the memory driver keeps sessions in one process, and this server's workers, if it has several, would not share them; "
        "take cookies, file, redis, sql, mongodb, or workers=1"
    )
