"""The contenders over HTTP, and the program that runs one: python -m benchmarks.rivals.servers NAME KIND [PLACE [WORKERS]].

KIND is `plain`, `cookies` for sessions in a cookie, or a store. PLACE is the store's URL or folder. Some can run several WORKERS.
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

import gaman
from benchmarks import places
from benchmarks.harness import line_of
from benchmarks.report.results import Kind
from benchmarks.rivals import bare, ours
from benchmarks.rivals.bare import ASGI, BARE, OTHERS, Message, Receive, Send
from benchmarks.rivals.bare_stores import STORES, BareCallable
from benchmarks.rivals.http_peers import build_litestar, build_starsessions, serve_sanic
from benchmarks.rivals.javascript import Script
from benchmarks.rivals.peers import PEERS, Peer
from gaman import App

ON_GRANIAN, BARE_ON_GRANIAN = "gaman on Granian", "bare callable on Granian"
KINDS = ("plain", "cookies", "memory", *places.STORES)


class Server(NamedTuple):
    """A contender over HTTP: *serve* runs it in this process until it is terminated, and prints its address.

    It takes the kind and the place, and the number of processes if *has_workers*. *warm_up* is the seconds of load before the
    rounds: Node and Bun compile code only after it has run for a while. *session* says what becomes of the values of a session:
    its cookie encrypts or signs them, or a store keeps them.
    """

    name: str
    packages: Sequence[str]
    kinds: Collection[str]
    serve: Callable[..., None]
    kind: Kind = "peer"
    session: str = ""
    warm_up: float = 0
    passes: Collection[str] = ()
    """Paths for which it isn't measured."""
    has_workers: bool = False

    def absence(self) -> str | None:
        """Return the reason why it can't take part on this machine, or None."""
        if isinstance(self.serve, Script):
            return self.serve.absence(self.packages)
        for package in self.packages:
            try:
                version(package)
            except PackageNotFoundError:
                return f"not installed: {package}"
        return None

    def version(self) -> str:
        """Return the versions of its packages."""
        find = self.serve.version if isinstance(self.serve, Script) else version
        framework = self.name.partition(" ")[0].lower()
        # npm's scopes would make the label too long.
        named = ("" if each == framework else f"{each.rpartition('/')[2]} " for each in self.packages)
        return ", ".join(name + find(each) for name, each in zip(named, self.packages, strict=True))

    @property
    def source(self) -> str:
        """The line that defines the function or the program that sets it up."""
        found: Any = self.serve
        while isinstance(found, partial):
            found = found.args[0].plain if isinstance(found.args[0], Peer) else found.args[0]
        return found.source if isinstance(found, Script) else line_of(found)


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


def on_granian(build: Callable[[str, str], ASGI], kind: str, place: str, workers: int = 1) -> None:
    """Serve on Granian with its defaults, on uvloop; each worker builds the application."""
    server: Any = import_module("granian.server")
    constants: Any = import_module("granian.constants")
    port = _announce(build, kind, place)
    server.Server(
        "benchmarks.rivals.servers:build_here",
        port=port,
        interface=constants.Interfaces.ASGI,
        workers=workers,
        loop=constants.Loops.uvloop,
        factory=True,
        log_level="warning",
    ).serve()


def build_bare(kind: str, place: str) -> ASGI:
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


def _announce(build: Callable[[str, str], ASGI], kind: str, place: str) -> int:
    """Tell the workers of a server what to build; print the address, and return its port."""
    # Imported here, because the other servers would start more slowly: it imports pytest and the stores' clients.
    from tests.servers import free_port

    os.environ["GAMAN_BENCHMARK"] = f"{build.__name__} {kind} {place}"
    port = free_port()
    print(f"listening on http://127.0.0.1:{port}", flush=True)
    return port


def build_here() -> ASGI:
    """Return the application in a worker."""
    build, kind, place = os.environ["GAMAN_BENCHMARK"].split(" ", 2)
    app: ASGI = globals()[build](kind, place)
    return app


def serve_bare(kind: str, place: str, workers: int = 1) -> None:
    """Serve the bare callable on uvicorn with its defaults, without the access log."""
    port = _announce(build_bare, kind, place)
    uvicorn.run(
        "benchmarks.rivals.servers:build_here",
        factory=True,
        port=port,
        workers=workers,
        loop="uvloop",
        http="httptools",
        log_level="warning",
        access_log=False,
    )


def serve_gaman(kind: str, place: str, workers: int = 1) -> None:
    """Serve gaman's App."""
    gaman.serve(build_gaman(kind, place), port=0, workers=workers, timeout_graceful_shutdown=1)


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


async def _build_peer(peer: Peer, kind: str, place: str) -> ASGI:
    return await (peer.plain(*OTHERS) if kind == "plain" else peer.sessions[kind]({}))


def _from_peers(peer: Peer) -> Server:
    return Server(
        peer.name, [peer.package], ("plain", *peer.sessions), partial(on_uvicorn, partial(_build_peer, peer)), session=peer.session
    )


EXPRESS, FASTIFY = Script("node", "express.js"), Script("node", "fastify.js")
_COOKIES = ("plain", "cookies")
_KEEPS = "stores the values themselves"

SERVERS = [
    Server(BARE, ["uvicorn"], KINDS, serve_bare, "baseline", "encrypts", has_workers=True),
    Server(BARE_ON_GRANIAN, ["granian"], _COOKIES, partial(on_granian, build_bare), "baseline", "encrypts"),
    Server("gaman", ["gaman"], KINDS, serve_gaman, "ours", "encrypts", has_workers=True),
    Server("gaman, a commit a write", ["gaman"], ("sql",), serve_gaman_singly, "ours", "encrypts", passes=("/read",)),
    Server(
        ON_GRANIAN,
        ["gaman", "granian"],
        ("plain", "cookies", "memory", "redis"),
        partial(on_granian, build_gaman),
        "ours",
        "encrypts",
        has_workers=True,
    ),
    *map(_from_peers, PEERS),
    Server(
        "Starlette", ["starlette", "starsessions"], ("memory", "redis"), partial(on_uvicorn, build_starsessions), session=_KEEPS
    ),
    Server("Litestar", ["litestar"], ("redis", "file"), partial(on_uvicorn, build_litestar), session=_KEEPS),
    Server("Sanic", ["sanic"], ("plain",), serve_sanic),
    Server("Express", ["express"], ("plain",), EXPRESS, warm_up=1),
    Server("Express", ["express", "express-session"], ("memory",), EXPRESS, session=_KEEPS, warm_up=1),
    Server("Express", ["express", "connect-redis"], ("redis",), EXPRESS, session=_KEEPS, warm_up=1),
    Server("Fastify", ["fastify"], ("plain",), FASTIFY, warm_up=1),
    Server("Fastify", ["fastify", "@fastify/secure-session"], ("cookies",), FASTIFY, session="encrypts", warm_up=1),
    Server("Hono on Bun", ["hono", "bun"], _COOKIES, Script("bun", "hono.js"), session="signs", warm_up=1),
    Server("Elysia on Bun", ["elysia", "bun"], _COOKIES, Script("bun", "elysia.js"), session="signs", warm_up=1),
]


if __name__ == "__main__":
    _name, _kind, *_more = sys.argv[1:]
    _place, *_workers = _more or [""]
    next(server for server in SERVERS if server.name == _name and _kind in server.kinds).serve(_kind, _place, *map(int, _workers))
