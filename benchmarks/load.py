"""Load: requests in a closed loop, from wrk where this machine has it, and otherwise from here.

Each connection sends its next request as soon as the answer is there. Every answer is held to its status and its body, and a wrong
one is an AssertionError, for who answers fast may not answer right.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple, cast

_SCRIPT = Path(__file__).with_name("wrk.lua")


class Aim(NamedTuple):
    """What is asked, over how many connections, in which sessions, and the answer that each request gets."""

    port: int
    path: str
    connections: int
    cookies: Sequence[str]
    body: bytes


class Load(NamedTuple):
    """How many requests were answered in a second, and milliseconds within which half and 99 of 100 were."""

    rate: float
    p50: float
    p99: float


def generator() -> str:
    """Return the name of what makes the load on this machine."""
    return "wrk" if shutil.which("wrk") else "benchmarks/load.py"


async def load(aim: Aim, seconds: float) -> Load:
    """Ask for so many seconds."""
    return ask_by_wrk(aim, seconds) if shutil.which("wrk") else await ask_from_here(aim, seconds)


def ask_by_wrk(aim: Aim, seconds: float) -> Load:
    """Ask by one thread of wrk's."""
    url = f"http://127.0.0.1:{aim.port}{aim.path}"
    command = ["wrk", "-t1", f"-c{aim.connections}", "-d1h", "-s", str(_SCRIPT), url, "--", aim.body.decode(), *aim.cookies]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            time.sleep(seconds)
        finally:
            # It takes whole seconds alone. When it is interrupted, it stops within a tenth, and tells how long it was.
            process.send_signal(signal.SIGINT)
            output, _ = process.communicate()
    return read_wrk(output)


def read_wrk(output: str) -> Load:
    """Return what wrk.lua has printed."""
    match = re.search(r"^figures (\{.*?\}) ?(.*)", output, re.MULTILINE | re.DOTALL)
    assert match, f"wrk failed:\n{output}"
    figures, example = json.loads(match[1]), match[2].strip()
    assert not figures["failed"], f"{figures['failed']} connections or requests failed"
    assert not figures["wrong"], f"{figures['wrong']} wrong answers of {figures['requests']}, such as: {example}"
    assert figures["requests"], "nothing was answered"
    return Load(figures["requests"] / figures["seconds"], figures["p50"], figures["p99"])


class _Connection(asyncio.Protocol):
    """Asks for ever."""

    def __init__(self, request: bytes, body: bytes, latencies: list[float]) -> None:
        self._request = request
        self._body = body
        self._latencies = latencies
        self._received = b""
        self._sent_at = 0.0
        self.transport: asyncio.Transport | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.Transport", transport)
        self._ask()

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_exception(AssertionError(f"the connection was closed: {exc}"))

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end or self.ended.done():
            return
        _, found, rest = head.lower().partition(b"\r\ncontent-length: ")
        length = int(rest.partition(b"\r\n")[0]) if found else 0
        if len(body) < length:
            return
        if not head.startswith(b"HTTP/1.1 200 ") or body != self._body:
            self.ended.set_exception(AssertionError(f"a wrong answer: {self._received.decode('latin-1')}"))
            return
        self._received = b""
        self._latencies.append(time.perf_counter() - self._sent_at)
        self._ask()

    def _ask(self) -> None:
        assert self.transport is not None
        self._sent_at = time.perf_counter()
        self.transport.write(self._request)


async def ask_from_here(aim: Aim, seconds: float) -> Load:
    """Ask from this process, which takes more of the machine than wrk does."""
    latencies: list[float] = []
    loop = asyncio.get_running_loop()
    fields = [f"Cookie: {cookie}\r\n" for cookie in aim.cookies] or [""] * aim.connections
    requests = [f"GET {aim.path} HTTP/1.1\r\nHost: 127.0.0.1\r\n{field}\r\n".encode() for field in fields]
    began = time.perf_counter()
    made = [
        await loop.create_connection(partial(_Connection, request, aim.body, latencies), "127.0.0.1", aim.port)
        for request in requests
    ]
    try:
        ended, _ = await asyncio.wait(
            [connection.ended for _, connection in made], timeout=seconds, return_when=asyncio.FIRST_COMPLETED
        )
        elapsed = time.perf_counter() - began
        for each in ended:
            each.result()
    finally:
        for transport, connection in made:
            connection.ended.cancel()
            transport.abort()
    assert latencies, "nothing was answered"
    latencies.sort()
    return Load(len(latencies) / elapsed, latencies[len(latencies) // 2] * 1e3, latencies[len(latencies) * 99 // 100] * 1e3)
