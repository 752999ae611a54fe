"""Who takes part over HTTP, and the program that serves one of them: python -m benchmarks.rivals.servers NAME KIND [PLACE].

A kind is what a server is set up for: `plain`, sessions in `cookies`, or in the store that it names, which is at a place.
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
from benchmarks.rivals.bare import ASGI, FLOOR, OTHERS, Message, Receive, Send
from benchmarks.rivals.bare_stores import STORES, Floor
from benchmarks.rivals.peers import PEERS, Peer
from gaman import App
from gaman._server import run
from tests.servers import free_port

KINDS = ("plain", "cookies", "memory", *places.STORES)


class Entrant(NamedTuple):
    """*serve* serves a kind at a place, in this process, until it is ended, and says on stdout where it listens.

    *warm_up* is for how many seconds it is asked before the rounds: Node compiles what it has run for a while.
    """

    name: str
    packages: Sequence[str]
    kinds: Collection[str]
    serve: Callable[[str, str], None]
    kind: Kind = "peer"
    warm_up: float = 0
    passes: Collection[str] = ()
    """Paths at which it would show nothing."""

    def absence(self) -> str | None:
        """Return why it can't take part on this machine, or None where it can."""
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
    """Serve on uvicorn as it comes, without a log of requests."""

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


async def build_floor(kind: str, place: str) -> ASGI:
    """Return the bare callable."""
    if kind == "plain":
        return bare.floor_plain
    if kind == "cookies":
        return _floor_cookies
    return Floor(STORES[kind](place))


async def _floor_cookies(scope: Message, receive: Receive, send: Send) -> None:
    answer = bare.floor_cookie_read if scope["path"] == "/read" else bare.floor_cookie_write
    await answer(scope, receive, send)


def build_gaman(kind: str, place: str) -> App:
    """Return gaman's App."""
    if kind == "plain":
        return ours.gaman_plain(*OTHERS)
    return ours.gaman_session(places.driver_options(kind, place))


def serve_gaman(kind: str, place: str) -> None:
    """Serve as gaman.serve() does."""
    run(build_gaman(kind, place), host="127.0.0.1", port=0, workers=1, reload=False, timeout_graceful_shutdown=1)


def serve_gaman_singly(kind: str, place: str) -> None:
    """Serve gaman with a driver whose batches are of one call each: every write is a commit of its own."""
    with patch("gaman_session.drivers.sql.Batches", _Singly):
        serve_gaman(kind, place)


class _Singly:
    """In the place of Batches: each call by itself, one after the other."""

    def __init__(self, run: Callable[[list[Any]], Awaitable[list[Any]]]) -> None:
        self._run = run
        self._turn = asyncio.Lock()

    async def call(self, call: Any) -> Any:
        async with self._turn:
            [result] = await self._run([call])
        if isinstance(result, BaseException):
            raise result
        return result

    async def drain(self) -> None:
        async with self._turn:
            pass


def on_granian(kind: str, place: str) -> None:
    """Serve gaman's App by Granian, whose worker builds it."""
    server: Any = import_module("granian.server")
    constants: Any = import_module("granian.constants")
    os.environ["GAMAN_BENCHMARK"] = f"{kind} {place}"
    port = free_port()
    print(f"listening on http://127.0.0.1:{port}", flush=True)
    target, interface, loop = "benchmarks.rivals.servers:granian_app", constants.Interfaces.ASGI, constants.Loops.uvloop
    server.Server(target, port=port, interface=interface, loop=loop, factory=True, log_level="warning").serve()


def granian_app() -> App:
    """Return the App that Granian's worker is to serve."""
    kind, _, place = os.environ["GAMAN_BENCHMARK"].partition(" ")
    return build_gaman(kind, place)


async def _build_peer(peer: Peer, kind: str, place: str) -> ASGI:
    return await (peer.plain(*OTHERS) if kind == "plain" else peer.sessions[kind]({}))


def _from_peers(peer: Peer) -> Entrant:
    return Entrant(peer.name, [peer.package], ("plain", *peer.sessions), partial(on_uvicorn, partial(_build_peer, peer)))


ENTRANTS = [
    Entrant(FLOOR, ["uvicorn"], KINDS, partial(on_uvicorn, build_floor), "floor"),
    Entrant("gaman", ["gaman"], KINDS, serve_gaman, "ours"),
    Entrant("gaman, a commit a write", ["gaman"], ("sql",), serve_gaman_singly, "ours", passes=("/read",)),
    Entrant("gaman on Granian", ["gaman", "granian"], ("plain", "cookies", "memory", "redis"), on_granian, "ours"),
    *map(_from_peers, PEERS),
    Entrant("Starlette", ["starlette", "starsessions"], ("memory", "redis"), partial(on_uvicorn, http_peers.build_starsessions)),
    Entrant("Litestar", ["litestar"], ("redis", "file"), partial(on_uvicorn, http_peers.build_litestar)),
    Entrant("Sanic", ["sanic"], ("plain",), http_peers.serve_sanic),
    Entrant("Express", ["express"], ("plain",), http_peers.become_express, warm_up=1),
    Entrant("Express", ["express", "express-session"], ("memory",), http_peers.become_express, warm_up=1),
    Entrant("Express", ["express", "connect-redis"], ("redis",), http_peers.become_express, warm_up=1),
]


if __name__ == "__main__":
    _name, _kind, *_place = sys.argv[1:]
    next(entrant for entrant in ENTRANTS if entrant.name == _name and _kind in entrant.kinds).serve(_kind, "".join(_place))
