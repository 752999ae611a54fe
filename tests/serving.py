"""Programs in separate processes, and HTTP over plain sockets; has no tests."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPResponse
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self, TypeVar

T = TypeVar("T")

PATIENCE = 25.0
"""Seconds after which a test gives up: less than the server's own timeouts of 30 seconds, which would hide a failure."""
STARTING = 60.0
"""Seconds that a server or a program may take to start, because the machine may be loaded."""

SERVES = {
    "gaman": "gaman.serve(routes, integrations=integrations, port=0)",
    "uvicorn": """
import socket, uvicorn
listener = socket.create_server(("127.0.0.1", 0))
print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
uvicorn.Server(uvicorn.Config(gaman.App(routes, integrations=integrations), log_level="error")).run(sockets=[listener])
""",
}
"""The last lines of a script that serves its `routes` and `integrations`, by the name of the server."""


def until(condition: Callable[[], T | None], what: str, *, seconds: float = PATIENCE) -> T:
    """Return the first true value of *condition*; AssertionError names *what* didn't happen within *seconds*."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {seconds} s in vain for {what}"
        time.sleep(0.01)
    return value


class Program:
    """A Python program in a separate process, and what it has printed so far."""

    def __init__(self, arguments: tuple[str, ...], cwd: Path, env: Mapping[str, str]) -> None:
        with ExitStack() as opened:
            self._stdout, self._stderr = (opened.enter_context(tempfile.NamedTemporaryFile()) for _ in range(2))
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=cwd,
                env={**os.environ, **env},
                stdin=subprocess.DEVNULL,
                stdout=self._stdout,
                stderr=self._stderr,
                # A process group, so that signals can reach its workers as well.
                start_new_session=True,
            )
            opened.pop_all()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def stdout(self) -> str:
        return Path(self._stdout.name).read_text(encoding="utf-8")

    @property
    def stderr(self) -> str:
        return Path(self._stderr.name).read_text(encoding="utf-8")

    @property
    def port(self) -> int:
        """The port that it listens on. Waits until it has printed that."""

        def announced() -> re.Match[str] | None:
            match = re.search(r"listening on https?://\S+:(\d+)", self.stdout)
            assert match or self._process.poll() is None, f"it ended before it listened:\n{self.stdout}{self.stderr}"
            return match

        return int(until(announced, "the line that says where it listens", seconds=STARTING)[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def send_signal(self, number: signal.Signals, *, to_group: bool = False) -> None:
        """Send a signal to the process, or also to its workers, as a terminal does for Ctrl+C."""
        if to_group:
            os.killpg(self.pid, number)
        else:
            self._process.send_signal(number)

    def has_ended(self) -> bool:
        return self._process.poll() is not None

    def wait(self, seconds: float = PATIENCE) -> int:
        """Return the exit status, negative for a signal."""
        return self._process.wait(seconds)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Stop it by a signal, and return the exit status."""
        self.send_signal(number)
        return self.wait()

    def close(self) -> None:
        """Kill it and every process that it has started."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait()
        self._stdout.close()
        self._stderr.close()


@contextmanager
def running(*arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> Generator[Program]:
    """Run Python with *arguments*, a script's path or `-m` and a module's name, until the block ends."""
    program = Program(arguments, cwd, env or {})
    try:
        yield program
    finally:
        program.close()


@contextmanager
def running_script(
    source: str, folder: Path, *, env: Mapping[str, str] | None = None, name: str = "script.py"
) -> Generator[Program]:
    """Run *source* as a script in *folder*."""
    path = folder / name
    path.write_text(source, encoding="utf-8")
    with running(str(path), cwd=folder, env=env) as program:
        yield program


class ParsedResponse(NamedTuple):
    """A complete response; *headers* by their names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


class Connection:
    """A TCP connection that sends octets unchanged."""

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        self.socket.close()

    def send(self, octets: bytes) -> None:
        self.socket.sendall(octets)

    def read(self, method: str = "GET") -> ParsedResponse:
        """Read one response to a request of *method*."""
        response = HTTPResponse(self.socket, method=method)
        response.begin()
        body = response.read()
        return ParsedResponse(response.status, {name.lower(): value for name, value in response.getheaders()}, body)

    def fetch(self, octets: bytes) -> ParsedResponse:
        """Send a request and read its response."""
        self.send(octets)
        return self.read(octets.split(b" ", 1)[0].decode("latin-1"))

    def read_until(self, end: bytes) -> None:
        """Read octets until *end* has arrived."""
        seen = b""
        while end not in seen:
            part = self.socket.recv(65536)
            assert part, f"the server closed after {seen!r}"
            seen += part

    def read_rest(self) -> bytes:
        """Return everything that arrives until the server closes."""
        parts: list[bytes] = []
        while part := self.socket.recv(65536):
            parts.append(part)
        return b"".join(parts)

    def reset(self) -> None:
        """Reset the connection, as the system does for a client that crashes."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        self.socket.close()


def request(target: bytes | str, *headers: bytes | str, method: str = "GET", body: bytes = b"") -> bytes:
    """Return the octets of a request with *headers* as its lines."""
    lines = [b" ".join((method.encode(), _octets(target), b"HTTP/1.1")), b"Host: test", *map(_octets, headers)]
    if body:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"", body])


def get(port: int, target: bytes | str, *headers: bytes | str) -> ParsedResponse:
    """GET *target* on a new connection."""
    with Connection(port) as connection:
        return connection.fetch(request(target, *headers))


def _octets(text: bytes | str) -> bytes:
    return text.encode() if isinstance(text, str) else text
