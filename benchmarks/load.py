"""Load in a closed loop, from wrk if it is installed, otherwise from this process.

Each connection sends its next request when the response has arrived. Status and body of every response are checked, and a wrong one
raises AssertionError, because a fast response may be wrong.
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
    """The request, the connections that send it, the sessions' cookies, and the expected body."""

    port: int
    path: str
    connections: int
    cookies: Sequence[str]
    body: bytes


class Load(NamedTuple):
    """The responses per second, and their median and 99th percentile latency in milliseconds."""

    rate: float
    p50: float
    p99: float


def generator() -> str:
    """Return the name of the load generator on this machine."""
    return "wrk" if shutil.which("wrk") else "benchmarks/load.py"


async def load(aim: Aim, seconds: float) -> Load:
    """Send requests for *seconds*."""
    return load_by_wrk(aim, seconds) if shutil.which("wrk") else await load_from_here(aim, seconds)


class NoResponse(AssertionError):
    """There was no response."""


def load_by_wrk(aim: Aim, seconds: float) -> Load:
    """Send requests from one thread of wrk."""
    try:
        return read_wrk(_run_wrk(aim, seconds))
    except NoResponse:
        # A busy machine may take longer to start wrk, which is part of its time.
        return read_wrk(_run_wrk(aim, seconds + 1))


def _run_wrk(aim: Aim, seconds: float) -> str:
    url = f"http://127.0.0.1:{aim.port}{aim.path}"
    command = ["wrk", "-t1", f"-c{aim.connections}", "-d1h", "-s", str(_SCRIPT), url, "--", aim.body.decode(), *aim.cookies]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            time.sleep(seconds)
        finally:
            output = _interrupt(process)
    if process.returncode == -signal.SIGINT:
        raise NoResponse("wrk was interrupted before it started")
    return output


def _interrupt(process: subprocess.Popen[str]) -> str:
    """End wrk, which only takes whole seconds, and return its output; it stops within a tenth of a second."""
    while True:
        process.send_signal(signal.SIGINT)
        try:
            return process.communicate(timeout=0.5)[0]
        except subprocess.TimeoutExpired:
            # wrk forgets an interrupt that arrives shortly before it begins to wait, so it gets another.
            continue


def read_wrk(output: str) -> Load:
    """Return the figures that wrk.lua printed."""
    match = re.search(r"^figures (\{.*?\}) ?(.*)", output, re.MULTILINE | re.DOTALL)
    assert match, f"wrk failed:\n{output}"
    figures, example = json.loads(match[1]), match[2].strip()
    assert not figures["failed"], f"{figures['failed']} connections or requests failed"
    assert not figures["wrong"], f"{figures['wrong']} wrong responses of {figures['requests']}, such as: {example}"
    if not figures["requests"]:
        raise NoResponse("there was no response")
    return Load(figures["requests"] / figures["seconds"], figures["p50"], figures["p99"])


class _Connection(asyncio.Protocol):
    """A connection that sends one request after the other until it is closed."""

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
        self._send()

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
            self.ended.set_exception(AssertionError(f"a wrong response: {self._received.decode('latin-1')}"))
            return
        self._received = b""
        self._latencies.append(time.perf_counter() - self._sent_at)
        self._send()

    def _send(self) -> None:
        assert self.transport is not None
        self._sent_at = time.perf_counter()
        self.transport.write(self._request)


async def load_from_here(aim: Aim, seconds: float) -> Load:
    """Send requests from this process, which uses more CPU than wrk does."""
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
    assert latencies, "there was no response"
    latencies.sort()
    return Load(len(latencies) / elapsed, latencies[len(latencies) // 2] * 1e3, latencies[len(latencies) * 99 // 100] * 1e3)
