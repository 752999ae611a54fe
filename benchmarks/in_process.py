"""What an ASGI call costs: scope, receive and send ready, against the bare callable that does the same work.

Contenders take turns in rounds within one run. Printed are the median of the rounds in microseconds, and the median of the ratios
to the floor, round by round, with its quartiles; of each peer also the median of its ratios to gaman.
"""

from __future__ import annotations

import asyncio
import gc
import json
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from typing import NamedTuple

import uvloop

from benchmarks import contenders
from benchmarks.contenders import ASGI, Message
from benchmarks.peers import PEERS
from gaman import App

ROUNDS = 60
CALLS = 500


class Case(NamedTuple):
    """A question: what each contender is asked."""

    name: str
    path: str
    goal: float
    floor: ASGI
    app: Callable[[], App]
    needs_session: bool = False


CASES = [
    Case("JSON", "/json", 2.0, contenders.floor_plain, contenders.gaman_plain),
    Case("two params, 100 routes", "/users/42/posts/7", 2.6, contenders.floor_plain, contenders.gaman_plain),
    Case(
        "cookie session, read",
        "/read",
        1.6,
        contenders.floor_cookie_read,
        lambda: contenders.gaman_session({"type": "cookies"}),
        True,
    ),
    Case(
        "cookie session, write",
        "/write",
        1.8,
        contenders.floor_cookie_write,
        lambda: contenders.gaman_session({"type": "cookies"}),
        True,
    ),
]


def make_scope(path: str, cookie: bytes | None) -> Message:
    headers = [(b"host", b"testserver"), (b"user-agent", b"benchmark"), (b"accept", b"*/*")]
    if cookie is not None:
        headers.append((b"cookie", cookie))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "https",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 443),
    }


async def _receive() -> Message:
    return {"type": "http.request", "body": b"", "more_body": False}


async def ask(app: ASGI, path: str, cookie: bytes | None = None) -> tuple[int, dict[bytes, bytes], bytes]:
    """Return the status, headers and body that *app* answers with."""
    messages: list[Message] = []

    async def send(message: Message) -> None:
        messages.append(message)

    await app(make_scope(path, cookie), _receive, send)
    start, *rest = messages
    return start["status"], dict(start["headers"]), b"".join(message.get("body", b"") for message in rest)


async def log_in(app: ASGI) -> bytes:
    """Return the Cookie field of a session that holds the user."""
    _, headers, _ = await ask(app, "/write")
    return headers[b"set-cookie"].partition(b";")[0]


async def time_calls(app: ASGI, path: str, cookie: bytes | None) -> float:
    """Return the microseconds of CPU that one call takes."""
    scopes = [make_scope(path, cookie) for _ in range(CALLS)]

    async def send(message: Message) -> None:
        pass

    began = time.process_time()
    for scope in scopes:
        await app(scope, _receive, send)
    return (time.process_time() - began) / CALLS * 1e6


async def enter(case: Case, entrant: ASGI) -> tuple[bytes | None, tuple[int, dict[bytes, bytes], bytes]]:
    """Return the cookie that *entrant* gave, if the case needs a session, and how it then answers."""
    cookie = None
    if case.needs_session:
        cookie = await log_in(contenders.floor_cookie_write if entrant is case.floor else entrant)
    return cookie, await ask(entrant, case.path, cookie)


async def build_peers(with_sessions: bool) -> tuple[dict[str, ASGI], dict[str, str]]:
    """Return the peers that take part, and of the others the reason why not."""
    present: dict[str, ASGI] = {}
    absent: dict[str, str] = {}
    for peer in PEERS:
        if with_sessions and not peer.has_sessions:
            absent[peer.name] = "has no sessions"
            continue
        try:
            present[f"{peer.name} {version(peer.package)}"] = await peer.build(with_sessions)
        except ModuleNotFoundError as error:
            absent[peer.name] = f"not installed: {error.name}"
    return present, absent


async def run(case: Case) -> tuple[dict[str, list[float]], dict[str, str]]:
    """Return the microseconds a call of each contender, by round, and of absent peers the reason."""
    app = case.app()
    await app.load()
    peers, absent = await build_peers(case.needs_session)
    entrants: dict[str, ASGI] = {"floor": case.floor, "gaman": app, **peers}
    cookies: dict[str, bytes | None] = {}
    _, (_, _, expected) = await enter(case, case.floor)
    for name, entrant in entrants.items():
        cookies[name], (status, headers, body) = await enter(case, entrant)
        assert status == 200, (name, status)
        assert json.loads(body) == json.loads(expected), (name, body)
        assert case.path != "/write" or b"set-cookie" in headers, name
    gc.collect()
    gc.freeze()
    times: dict[str, list[float]] = {name: [] for name in entrants}
    for _ in range(ROUNDS):
        for name, entrant in entrants.items():
            times[name].append(await time_calls(entrant, case.path, cookies[name]))
    await app.shutdown()
    return times, absent


def compare(mine: list[float], others: list[float]) -> tuple[float, str]:
    """Return the median of the ratios, round by round, and their quartiles."""
    low, middle, high = statistics.quantiles([a / b for a, b in zip(mine, others, strict=True)], n=4)
    return middle, f"{low:.2f}-{high:.2f}"


def report(case: Case, times: dict[str, list[float]], absent: dict[str, str]) -> None:
    floor, gaman = times.pop("floor"), times.pop("gaman")
    ratio, quartiles = compare(gaman, floor)
    medians = f"{statistics.median(floor):8.2f}{statistics.median(gaman):8.2f}"
    print(f"{case.name:30}{medians}{ratio:8.2f}{quartiles:>14}{case.goal:9.1f}")
    for name, mine in times.items():
        ratio, quartiles = compare(mine, floor)
        times_gaman, _ = compare(mine, gaman)
        print(f"  {name:36}{statistics.median(mine):8.2f}{ratio:8.2f}{quartiles:>14}{times_gaman:9.1f}")
    for name, reason in absent.items():
        print(f"  {name:36}{reason}")


def main() -> None:
    print(f"Python {sys.version.split()[0]}, uvloop, {ROUNDS} rounds of {CALLS} calls each; microseconds of CPU a call")
    print(f"{'case':30}{'floor':>8}{'gaman':>8}{'ratio':>8}{'quartiles':>14}{'goal':>9}")
    print(f"  {'peer':36}{'peer':>8}{'ratio':>8}{'quartiles':>14}{'/ gaman':>9}")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for case in CASES:
            report(case, *runner.run(run(case)))


if __name__ == "__main__":
    main()
