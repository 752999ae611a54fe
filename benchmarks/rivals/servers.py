"""The contenders over HTTP, and the program that runs one: python -m benchmarks.rivals.servers NAME KIND [PLACE].

KIND is `plain`, `cookies` for sessions in a cookie, or a store. PLACE is the store's URL or folder.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from typing import Any, NamedTuple
from unittest.mock import patch

import uvicorn
import uvloop

from benchmarks import places
from benchmarks.report.results import Kind
from benchmarks.rivals import bare, http_peers, ours
from benchmarks.rivals.bare import ASGI, BARE, OTHERS, Message, Receive, Send
from benchmarks.rivals.bare_stores import STORES, BareCallable
from benchmarks.rivals.peers import PEERS, Peer
from gaman import App
from gaman._server import run
from tests.servers import free_port

KINDS = ("plain", "cookies", "memory", *places.STORES)


class Server(NamedTuple):
    """A contender over HTTP: *serve* runs it in this process until it is terminated, and prints its address.

    *warm_up* is the seconds of load before the rounds: Node compiles code only after it has run for a while.
    """

    name: str
    packages: Sequence[str]
    kinds: Collection[str]
    serve: Callable[[str, str], None]
    kind: Kind = "peer"
    warm_up: float = 0
    passes: Collection[str] = ()
    """Paths for which it isn't measured."""
    session: str = ""
    """What a session in a cookie or in a store does with its values, see `SESSIONS`."""

    def absence(self) -> str | None:
        """Return the reason why it can't take part on this machine, or None."""
        if self.serve is http_peers.become_express:
            return http_peers.find_node()
        for package in self.packages:
            try:
                version(package)
            except PackageNotFoundError:
                return f"not installed: {package}"
        return None

    def version(self) -> str:
        """Return the versions of its packages."""
        find = http_peers.version_in_node if self.serve is http_peers.become_express else version
        return ", ".join(find(each) if each == self.name.lower() else f"{each} {find(each)}" for each in self.packages)

    @property
    def defined_by(self) -> Callable[..., Any]:
        """The function that sets it up."""
        function: Any = self.serve
        while isinstance(function, partial):
            function = function.args[0].plain if isinstance(function.args[0], Peer) else function.args[0]
        found: Callable[..., Any] = function
        return found


def on_uvicorn(build: Callable[[str, str], Awaitable[ASGI]], kind: str, place: str) -> None:
    """Serve on uvicorn with its defaults, without the access log."""

    async def serve(listener: socket.socket) -> None:
        app = await build(kind, place)
        config = uvicorn.Config(app, loop="uvloop", http="httptools", log_level="warning", access_log=False)
        print(f"listening on http://127.0.0.1:{listener.getsockname()[1]}", flush=True)
        await uvicorn.Server(config).serve(sockets=[listener])

    with (
        socket.create_server(("127.0.0.1", 0), backlog=2048) as listener,
        asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner,
    ):
        runner.run(serve(listener))


async def build_bare(kind: str, place: str) -> ASGI:
    """Return the bare callable."""
    if kind == "plain":
        return bare.plain
    if kind == "cookies":
        return _bare_cookies
    return BareCallable(STORES[kind](place))


async def _bare_cookies(scope: Message, receive: Receive, send: Send) -> None:
    respond = bare.read_cookie if scope["path"] == "/read" else bare.write_cookie
    await respond(scope, receive, send)


def build_gaman(kind: str, place: str) -> App:
    """Return gaman's App."""
    if kind == "plain":
        return ours.plain(*OTHERS)
    return ours.with_session(places.driver_options(kind, place))


def serve_gaman(kind: str, place: str) -> None:
    """Serve gaman as gaman.serve() does."""
    run(build_gaman(kind, place), host="127.0.0.1", port=0, workers=1, reload=False, timeout_graceful_shutdown=1)


def serve_gaman_singly(kind: str, place: str) -> None:
    """Serve gaman with a driver whose batches have one call each, so that every write is its own commit."""
    with patch("gaman_session.drivers._sqlite.Batches", _Singly):
        serve_gaman(kind, place)


class _Singly:
    """A replacement for Batches that runs each call by itself, one after the other."""

    def __init__(self, run: Callable[[list[Any]], Awaitable[list[Any]]]) -> None:
        self._run = run
        self._lock = asyncio.Lock()

    async def call(self, call: Any) -> Any:
        async with self._lock:
            [result] = await self._run([call])
        if isinstance(result, BaseException):
            raise result
        return result

    async def drain(self) -> None:
        async with self._lock:
            pass


def on_granian(kind: str, place: str) -> None:
    """Serve gaman's App on Granian, whose worker builds it."""
    server: Any = import_module("granian.server")
    constants: Any = import_module("granian.constants")
    os.environ["GAMAN_BENCHMARK"] = f"{kind} {place}"
    port = free_port()
    print(f"listening on http://127.0.0.1:{port}", flush=True)
    target, interface, loop = "benchmarks.rivals.servers:granian_app", constants.Interfaces.ASGI, constants.Loops.uvloop
    server.Server(target, port=port, interface=interface, loop=loop, factory=True, log_level="warning").serve()


def granian_app() -> App:
    """Return the App for Granian's worker."""
    kind, _, place = os.environ["GAMAN_BENCHMARK"].partition(" ")
    return build_gaman(kind, place)


async def _build_peer(peer: Peer, kind: str, place: str) -> ASGI:
    return await (peer.plain(*OTHERS) if kind == "plain" else peer.sessions[kind]({}))


def _from_peers(peer: Peer) -> Server:
    return Server(
        peer.name, [peer.package], ("plain", *peer.sessions), partial(on_uvicorn, partial(_build_peer, peer)), session=peer.session
    )


SERVERS = [
    Server(BARE, ["uvicorn"], KINDS, partial(on_uvicorn, build_bare), "baseline", session="encrypts"),
    Server("gaman", ["gaman"], KINDS, serve_gaman, "ours", session="encrypts"),
    Server("gaman, a commit a write", ["gaman"], ("sql",), serve_gaman_singly, "ours", passes=("/read",), session="encrypts"),
    Server(
        "gaman on Granian", ["gaman", "granian"], ("plain", "cookies", "memory", "redis"), on_granian, "ours", session="encrypts"
    ),
    *map(_from_peers, PEERS),
    Server(
        "Starlette",
        ["starlette", "starsessions"],
        ("memory", "redis"),
        partial(on_uvicorn, http_peers.build_starsessions),
        session="stores the values themselves",
    ),
    Server(
        "Litestar",
        ["litestar"],
        ("redis", "file"),
        partial(on_uvicorn, http_peers.build_litestar),
        session="stores the values themselves",
    ),
    Server("Sanic", ["sanic"], ("plain",), http_peers.serve_sanic),
    Server("Express", ["express"], ("plain",), http_peers.become_express, warm_up=1),
    Server("Express", ["express", "express-session"], ("memory",), http_peers.become_express, warm_up=1),
    Server(
        "Express",
        ["express", "connect-redis"],
        ("redis",),
        http_peers.become_express,
        warm_up=1,
        session="stores the values themselves",
    ),
]


if __name__ == "__main__":
    _name, _kind, *_place = sys.argv[1:]
    next(server for server in SERVERS if server.name == _name and _kind in server.kinds).serve(_kind, "".join(_place))
