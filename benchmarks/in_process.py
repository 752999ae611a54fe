"""What an ASGI call costs: scope, receive and send ready, against the bare callable that does the same work.

Contenders take turns in rounds within one run. Printed are the median of the rounds in microseconds, and the median of the ratios
to the floor, round by round, with its quartiles.
"""

from __future__ import annotations

import asyncio
import gc
import statistics
import sys
import time
from collections.abc import Callable
from typing import NamedTuple

import uvloop

from benchmarks import contenders
from benchmarks.contenders import ASGI, Message
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
    Case("cookie session, read", "/read", 1.6, contenders.floor_cookie_read, lambda: contenders.gaman_session("cookies"), True),
    Case("cookie session, write", "/write", 1.8, contenders.floor_cookie_write, lambda: contenders.gaman_session("cookies"), True),
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


async def run(case: Case) -> dict[str, list[float]]:
    """Return the microseconds a call of each contender, by round."""
    app = case.app()
    await app.load()
    entrants: dict[str, ASGI] = {"floor": case.floor, "gaman": app}
    cookies: dict[str, bytes | None] = dict.fromkeys(entrants)
    bodies: set[bytes] = set()
    for name, entrant in entrants.items():
        if case.needs_session:
            cookies[name] = await log_in(contenders.floor_cookie_write if name == "floor" else entrant)
        status, _, body = await ask(entrant, case.path, cookies[name])
        assert status == 200, (name, body)
        bodies.add(body)
    assert len(bodies) == 1, bodies
    times: dict[str, list[float]] = {name: [] for name in entrants}
    for _ in range(ROUNDS):
        for name, entrant in entrants.items():
            times[name].append(await time_calls(entrant, case.path, cookies[name]))
    await app.shutdown()
    return times


def main() -> None:
    gc.freeze()
    print(f"Python {sys.version.split()[0]}, uvloop, {ROUNDS} rounds of {CALLS} calls each; microseconds of CPU a call")
    print(f"{'':26}{'floor':>8}{'gaman':>8}{'ratio':>8}{'quartiles':>14}{'goal':>7}")
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        for case in CASES:
            times = runner.run(run(case))
            ratios = [mine / floor for mine, floor in zip(times["gaman"], times["floor"], strict=True)]
            low, middle, high = statistics.quantiles(ratios, n=4)
            floor, mine = statistics.median(times["floor"]), statistics.median(times["gaman"])
            print(f"{case.name:26}{floor:8.2f}{mine:8.2f}{middle:8.2f}{f'{low:.2f}-{high:.2f}':>14}{case.goal:7.1f}")


if __name__ == "__main__":
    main()
