"""What a session in a store costs over HTTP: gaman on each driver against a floor by hand, each in a worker of uvicorn's.

Contenders take turns in rounds within one run. Printed are the medians of the rounds in requests a second and in milliseconds, and
the median of the ratios to the floor, round by round, with its quartiles: above 1, gaman answers more requests than the floor.
"""

from __future__ import annotations

import asyncio
import socket
import statistics
import sys
import tempfile
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

import uvicorn
import uvloop

from benchmarks import contenders
from benchmarks.contenders import ASGI
from benchmarks.in_process import compare
from benchmarks.load import Load, load
from benchmarks.stores import STORES, Floor
from gaman import App
from gaman._server import run
from tests import servers
from tests.serving import running

ROUNDS = 12
SECONDS = 1.0
CONNECTIONS = (1, 64)


class Question(NamedTuple):
    """What is asked of a store's contenders, and the ratio to the floor that gaman is held to."""

    path: str
    connections: int
    goal: float | None


class Store(NamedTuple):
    """A store: where it is, what gaman's driver is told, with {} for that place, and the goals at 64 connections."""

    name: str
    place: Callable[[], str]
    options: dict[str, str]
    read: float | None = None
    write: float | None = None

    def questions(self) -> list[Question]:
        goals = {("/read", 64): self.read, ("/write", 64): self.write}
        return [Question(path, n, goals.get((path, n), 0.9)) for path in ("/read", "/write") for n in CONNECTIONS]


ALL = [
    Store("redis", servers.redis_url, {"url": "{}"}, read=1.8, write=2.2),
    Store("sql", tempfile.mkdtemp, {"file": "{}/sessions.db"}, write=4.0),
    Store("file", tempfile.mkdtemp, {"dir": "{}/sessions"}),
    Store("mongodb", servers.mongodb_uri, {"uri": "{}", "db_name": "gaman_benchmark"}),
]


def make(contender: str, store: Store, place: str) -> ASGI:
    """Return the ASGI application of *contender*."""
    if contender == "floor":
        return Floor(STORES[store.name](place))
    options = {name: value.format(place) for name, value in store.options.items()}
    app: ASGI = contenders.gaman_session({"type": store.name, **options})
    return app


@contextmanager
def serving(contender: str, store: Store, place: str) -> Generator[int]:
    """Serve *contender* in a process of its own, and give its port."""
    with running("-m", "benchmarks.over_http", contender, store.name, place, cwd=Path.cwd()) as program:
        yield program.port


async def log_in(port: int) -> bytes:
    """Return the Cookie field of a new session."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /write HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    answer = await reader.read()
    writer.close()
    _, _, cookie = answer.partition(b"set-cookie: ")
    assert cookie, answer
    return cookie.partition(b";")[0]


async def measure(ports: dict[str, int], question: Question) -> dict[str, list[Load]]:
    """Return the loads of each contender, by round."""
    requests: dict[str, list[bytes]] = {}
    for name, port in ports.items():
        cookies = [await log_in(port) for _ in range(question.connections)]
        path = question.path.encode()
        requests[name] = [b"GET %s HTTP/1.1\r\nHost: localhost\r\nCookie: %s\r\n\r\n" % (path, cookie) for cookie in cookies]
    loads: dict[str, list[Load]] = {name: [] for name in ports}
    for number in range(ROUNDS + 1):
        for name, port in ports.items():
            found = await load(port, requests[name], SECONDS)
            # The first round warms up connections, pages and caches.
            if number:
                loads[name].append(found)
    return loads


def report(store: Store, question: Question, loads: dict[str, list[Load]]) -> None:
    floor, gaman = ([each.rate for each in loads[name]] for name in ("floor", "gaman"))
    what = f"{store.name}, {question.path[1:]}, {question.connections} at once"
    ratio, quartiles = compare(gaman, floor)
    late = statistics.median(each.latencies[len(each.latencies) * 99 // 100] for each in loads["gaman"])
    goal = "" if question.goal is None else f"{question.goal:.1f}"
    figures = f"{statistics.median(floor):9.0f}{statistics.median(gaman):9.0f}{ratio:8.2f}{quartiles:>14}"
    print(f"{what:36}{figures}{goal:>7}{late * 1000:9.1f}", flush=True)


def main(names: Sequence[str] = ()) -> None:
    print(f"Python {sys.version.split()[0]}, uvloop, {ROUNDS} rounds of {SECONDS} s each; requests a second, p99 in ms")
    print(f"{'case':36}{'floor':>9}{'gaman':>9}{'ratio':>8}{'quartiles':>14}{'goal':>7}{'p99':>9}")
    for store in ALL:
        if names and store.name not in names:
            continue
        place = store.place()
        with ExitStack() as stack, asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            ports = {name: stack.enter_context(serving(name, store, place)) for name in ("floor", "gaman")}
            for question in store.questions():
                report(store, question, runner.run(measure(ports, question)))


def serve(contender: str, name: str, place: str) -> None:
    """Serve gaman as gaman.serve() does, and anything else on uvicorn as it comes."""
    store = next(store for store in ALL if store.name == name)
    app = make(contender, store, place)
    if isinstance(app, App):
        run(app, host="127.0.0.1", port=0, workers=1, reload=False, timeout_graceful_shutdown=1)
    config = uvicorn.Config(app, loop="uvloop", http="httptools", lifespan="on", log_level="warning", access_log=False)
    with socket.create_server(("127.0.0.1", 0), backlog=2048) as listener:
        print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    serve(*sys.argv[1:])
