"""A site with sessions in a process of its own, visitors that keep its cookie, and writers that load it; holds no test."""

from __future__ import annotations

import json
import math
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from tests.servers import Server
from tests.serving import Connection, ParsedResponse, Program, request, running_script, until

SITE = """
import json, os, time
import gaman
from gaman.session import session

async def put(ctx):
    await ctx.session.set(ctx.params["key"], ctx.params["value"])
    return "kept"

async def show(ctx):
    return await ctx.session.all()

async def count(ctx):
    return str(await ctx.session.update("count", lambda count: count + 1, 0))

async def renew(ctx):
    await ctx.session.regenerate()
    return "renewed"

async def end(ctx):
    await ctx.session.clear()
    return "ended"

async def login(ctx):
    began = time.time()
    await ctx.session.set_owner(ctx.params["owner"])
    owned = time.time()
    await ctx.session.set("user", ctx.params["owner"])
    await ctx.session.save()
    return {"by": os.getpid(), "began": began, "owned": owned, "handle": ctx.session.id}

async def end_all(ctx):
    called = time.time()
    await sessions.end_all(ctx.params["owner"])
    return {"by": os.getpid(), "called": called, "returned": time.time()}

async def handles(ctx):
    return [each.handle for each in await sessions.list(ctx.params["owner"])]

async def plain(ctx):
    return "no session here"

routes = {
    "/put/:key/:value": put, "/all": show, "/count": count, "/renew": renew, "/end": end, "/plain": plain,
    "/login/:owner": login, "/end_all/:owner": end_all, "/handles/:owner": handles,
}
sessions = session("a secret of the tests that is long enough", driver=json.loads(os.environ["DRIVER"]))
gaman.serve(routes, integrations=[sessions], port=0)
"""

HANGING = 40.0
"""Seconds after which a missing response counts as one that never comes; more than any timeout here."""

SLACK = 3.0
"""Seconds by which a response may be late on a busy machine."""


@contextmanager
def site(folder: Path, driver: Mapping[str, Any]) -> Generator[Program]:
    """Serve SITE with *driver* for as long as the block lasts, or until it ends by itself."""
    with running_script(SITE, folder, env={"DRIVER": json.dumps(driver)}, name="site.py") as program:
        yield program


class Visitor:
    """A browser that keeps only the session's cookie."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.cookie: str | None = None

    def get(self, target: str) -> ParsedResponse:
        headers = [] if self.cookie is None else [f"Cookie: {self.cookie}"]
        with Connection(self.port) as connection:
            connection.socket.settimeout(HANGING)
            response = connection.fetch(request(target, *headers))
        if (line := response.headers.get("set-cookie")) is not None:
            self.cookie = None if "Max-Age=0" in line else line.partition(";")[0]
        return response

    def put(self, key: str, value: str = "value") -> ParsedResponse:
        return self.get(f"/put/{key}/{value}")

    def all(self) -> dict[str, Any]:
        """Return the session's values; a status other than 200 fails the test."""
        response = self.get("/all")
        assert response.status == 200, response
        found: dict[str, Any] = json.loads(response.body)
        return found


USES = ("/all", "/put/more/value", "/count", "/renew", "/end")


def arrive(port: int) -> dict[str, Visitor]:
    """Return a visitor with a session for each of USES."""
    visitors = {use: Visitor(port) for use in USES}
    for visitor in visitors.values():
        assert visitor.put("key").status == 200
    return visitors


def assert_unavailable(visitors: Mapping[str, Visitor], timeout: float) -> None:
    """Each use of a session is answered 503 within *timeout* seconds, and logs no visitor out. Other requests work meanwhile."""
    cookies = {use: visitor.cookie for use, visitor in visitors.items()}
    with ThreadPoolExecutor(len(visitors)) as pool:
        asked = [pool.submit(_ask, visitor, use) for use, visitor in visitors.items()]
        _, seconds = _ask(next(iter(visitors.values())), "/plain")
        assert seconds < 1
    for response, seconds in [each.result() for each in asked]:
        assert (response.status, response.headers["cache-control"]) == (503, "no-store")
        assert seconds < timeout + SLACK, f"it took {seconds:.1f} s"
    assert {use: visitor.cookie for use, visitor in visitors.items()} == cookies


def kill(server: Server) -> Callable[[], object]:
    """Kill the server, and return a function that starts it again."""
    server.kill()
    return lambda: server.start().wait()


def freeze(server: Server) -> Callable[[], object]:
    """Freeze the server, and return a function that wakes it."""
    server.send_signal(signal.SIGSTOP)
    return lambda: server.send_signal(signal.SIGCONT)


def assert_comes_back(
    folder: Path, driver: Mapping[str, Any], server: Server, fault: Callable[[Server], Callable[[], object]]
) -> None:
    """A site whose server is away is unavailable, and afterwards every visitor still has the session."""
    with site(folder, driver) as program:
        visitors = arrive(program.port)
        repair = fault(server)
        assert_unavailable(visitors, driver["timeout"])
        repair()
        assert visitors["/all"].all() == {"key": "value"}
        assert {visitor.put("key").status for visitor in visitors.values()} == {200}


def assert_many_requests_wait_no_longer(folder: Path, driver: Mapping[str, Any], server: Server) -> None:
    """Of many requests to a frozen server at once, none waits longer than a single one."""
    with site(folder, driver) as program:
        visitor = arrive(program.port)["/all"]
        repair = freeze(server)
        assert_unavailable({f"/all?{number}": visitor for number in range(40)}, driver["timeout"])
        repair()
        assert visitor.all() == {"key": "value"}


def _ask(visitor: Visitor, target: str) -> tuple[ParsedResponse, float]:
    asked = time.monotonic()
    response = visitor.get(target)
    return response, time.monotonic() - asked


class Writer:
    """Writes one key after the other into one session, and remembers the acknowledged ones."""

    def __init__(self, port: int) -> None:
        self.visitor = Visitor(port)
        self.statuses: Counter[int] = Counter()
        self.wrote_at = 0.0
        """When it sent the last acknowledged request, by time.monotonic()."""
        self.acknowledged: list[str] = []

    @property
    def attempts(self) -> int:
        return self.statuses.total()

    def step(self) -> int:
        """Write once, and return the response's status."""
        sent = time.monotonic()
        response = self.write()
        self.statuses[response.status] += 1
        if response.status == 200:
            self.wrote_at = sent
        else:
            assert "set-cookie" not in response.headers, response
        return response.status

    def write(self) -> ParsedResponse:
        key = f"key{self.attempts}"
        response = self.visitor.put(key)
        if response.status == 200:
            self.acknowledged.append(key)
        return response

    def lost(self) -> list[str]:
        """Return the acknowledged keys that are missing."""
        return sorted({*self.acknowledged} - self.visitor.all().keys())


class Newcomers(Writer):
    """Begins a new session with each write."""

    def __init__(self, port: int) -> None:
        super().__init__(port)
        self.visitors: list[Visitor] = []

    def write(self) -> ParsedResponse:
        visitor = Visitor(self.visitor.port)
        response = visitor.put("key")
        if response.status == 200:
            self.visitors.append(visitor)
        return response

    def lost(self) -> list[str]:
        return [str(visitor.cookie) for visitor in self.visitors if visitor.all() != {"key": "value"}]


class Counting(Writer):
    """Adds one to a counter, which it may share with other writers."""

    def __init__(self, port: int, visitor: Visitor | None = None) -> None:
        super().__init__(port)
        self.visitor = visitor or self.visitor

    def write(self) -> ParsedResponse:
        return self.visitor.get("/count")


class Threads:
    """Repeats each of *steps* in a thread of its own, until the block ends, *seconds* have passed, or the step raises an error."""

    def __init__(self, steps: Iterable[Callable[[], object]], *, pause: float, seconds: float = math.inf) -> None:
        self._pause = pause
        self._until = time.monotonic() + seconds
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._repeat, args=[step], daemon=True) for step in steps]
        self.errors: list[Exception] = []

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._is_over.set()
        if kind is None:
            for thread in self._threads:
                thread.join()
            self.check()

    def check(self) -> None:
        """Raise the first error of a step."""
        if self.errors:
            raise self.errors[0]

    def _repeat(self, step: Callable[[], object]) -> None:
        try:
            while not self._is_over.wait(self._pause) and time.monotonic() < self._until:
                step()
        except Exception as error:
            self.errors.append(error)


class Load(Threads):
    """Keeps *writers* writing, each in a thread of its own, for as long as the block lasts."""

    def __init__(self, *writers: Writer, pause: float = 0.02, seconds: float = 120) -> None:
        super().__init__([writer.step for writer in writers], pause=pause, seconds=seconds)
        self.writers = writers

    def __enter__(self) -> Self:
        super().__enter__()
        self.wait_until_all_write()
        return self

    @property
    def statuses(self) -> Counter[int]:
        return Counter(status for writer in self.writers for status in writer.statuses.elements())

    def wait_until_all_write(self, seconds: float = 30) -> None:
        """Return when each writer has sent a request from now on that was acknowledged."""
        now = time.monotonic()

        def all_write() -> bool:
            self.check()
            return all(writer.wrote_at >= now for writer in self.writers)

        until(all_write, "every writer to succeed", seconds=seconds)
