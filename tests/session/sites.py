"""A site whose handler runs a test's code, a browser that keeps the session's cookie, and a clock that tests set."""

from __future__ import annotations

import functools
import os
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from pathlib import Path
from secrets import token_hex
from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import Response as StarletteResponse
from starlette.responses import StreamingResponse
from starlette.routing import Route

from gaman import App, Context, HTTPError, Response
from gaman.session import Driver, Outcome, Record, Session, SessionError, SessionIntegration, SessionStoreError
from gaman.session.asgi import SessionMiddleware, get_session
from gaman_session import _options
from gaman_session._integration import integrate
from gaman_session.drivers import find_driver
from gaman_session.drivers.memory import MemoryDriver
from tests import servers
from tests.asgi import Exchange, http_scope

FRAMEWORK = os.environ.get("FRAMEWORK", "gaman")
"""The framework that the sites of the tests are applications of."""
SESSION = "ctx.session" if FRAMEWORK == "gaman" else "session"
"""The session's name in messages: only gaman has a `ctx`."""
gaman_only = pytest.mark.skipif(FRAMEWORK != "gaman", reason="the test is about gaman's hooks or errors")
SECRET = "a secret of the tests that is long enough"
Work = Callable[[Session], Awaitable[Any]]


class Clock:
    def __init__(self) -> None:
        # Far ahead of the servers' clocks, so that no server removes a record that is live by this clock.
        self.now = 4_000_000_000.0

    def __call__(self) -> float:
        return self.now


class Reply(Exchange):
    """A response, with the result or the error of its handler's work."""

    def __init__(self) -> None:
        super().__init__()
        self.result: Any = None
        self.error: BaseException | None = None

    @property
    def set_cookie(self) -> str | None:
        lines = self.headers.getall("set-cookie")
        assert len(lines) <= 1, lines
        return lines[0] if lines else None


class InStarlette:
    """The site's application in Starlette, with the methods of an App that tests call."""

    workers = 1

    def __init__(self, handle: Callable[[Any], Awaitable[Response]], sessions: SessionIntegration) -> None:
        self.integrations = (sessions,)
        self._handle = handle
        middleware = [Middleware(SessionMiddleware, sessions=sessions)]
        self._app = Starlette(routes=[Route("/", self._answer)], middleware=middleware)

    async def _answer(self, request: Request) -> StarletteResponse:
        ctx = SimpleNamespace(scope=request.scope, session=await get_session(request))
        try:
            response = await self._handle(ctx)
        except HTTPError as error:
            if isinstance(error, SessionError):
                raise
            raise HTTPException(error.status, error.detail) from error
        body = response.body
        made = StarletteResponse(body) if isinstance(body, bytes) else StreamingResponse(cast("Any", body)._chunks)
        made.status_code = response.status
        made.raw_headers = [*response.raw_headers, *(field for field in made.raw_headers if field[0] == b"content-length")]
        return made

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        with suppress(Exception):
            # Starlette answers an error, and then raises it for the server's log.
            await self._app(scope, receive, send)
        assert scope["reply"].messages

    async def load(self) -> None:
        await self.integrations[0]._upkeep().open(self.workers)

    async def shutdown(self) -> None:
        await self.integrations[0]._upkeep().close()

    async def check(self) -> dict[str, Exception | None]:
        try:
            await self.integrations[0].check()
        except SessionStoreError as error:
            return {"session": error}
        return {"session": None}

    async def purge(self) -> dict[str, int]:
        return {"session": await self.integrations[0].purge()}


class Site:
    """An application with sessions; each request runs the work that it is sent with."""

    def __init__(self, driver: Driver | dict[str, Any] | None, clock: Clock, **changed: Any) -> None:
        options: dict[str, Any] = {
            "secret": SECRET,
            "driver": driver,
            "max_age": 86_400,
            "secure": True,
            "idle_timeout": None,
            "cookie_name": None,
            "same_site": "lax",
            "domain": None,
            "path": "/",
            "partitioned": False,
            "encrypt": True,
            "serializer": None,
            "max_size": 1 << 20,
            "max_sessions_per_owner": None,
            "browser_session": False,
            "on_event": None,
            "csrf": True,
            "trusted_origins": (),
            **changed,
        }
        self.clock = clock
        self.driver = driver
        checked = _options.check(**options)
        self.cookie_name = checked.cookie.name
        self.sessions = integrate(checked, clock)
        self.app: Any = App({"/": self._handle}, integrations=[self.sessions], debug=True)
        if FRAMEWORK == "starlette":
            self.app = InStarlette(self._handle, self.sessions)

    async def _handle(self, ctx: Context) -> Response:
        reply: Reply = ctx.scope["reply"]
        try:
            reply.result = await ctx.scope["work"](ctx.session)
        except BaseException as error:
            reply.error = error
            raise
        response: Response = ctx.scope["response"]
        return response

    async def request(
        self, work: Work, cookie: str | Sequence[str] | None = None, *, response: Response | None = None, scheme: str = "https"
    ) -> Reply:
        """Run one request; *cookie* is a raw Cookie field, or several."""
        reply = Reply()
        fields = [(b"cookie", field.encode("latin-1")) for field in ([cookie] if isinstance(cookie, str) else cookie or ())]
        scope = http_scope(headers=fields, scheme=scheme, reply=reply, work=work, response=response or Response("done"))
        await self.app(scope, reply.receive, reply.send)
        return reply

    def browser(self, cookie: str | None = None) -> Browser:
        return Browser(self, cookie)


class Browser:
    """It keeps the session's cookie as a browser does."""

    def __init__(self, site: Site, token: str | None = None) -> None:
        self.site = site
        self.token = token

    @property
    def cookie(self) -> str | None:
        return None if self.token is None else f"{self.site.cookie_name}={self.token}"

    async def request(self, work: Work, **options: Any) -> Reply:
        reply = await self.site.request(work, self.cookie, **options)
        self.take(reply)
        return reply

    def take(self, reply: Reply) -> None:
        """Apply the response's Set-Cookie."""
        if (line := reply.set_cookie) is not None:
            pair, *attributes = line.split("; ")
            name, _, value = pair.partition("=")
            assert name == self.site.cookie_name
            self.token = None if "Max-Age=0" in attributes else value

    async def do(self, work: Work) -> Any:
        """Run a request that must succeed, and return the result of its work."""
        reply = await self.request(work)
        if reply.error is not None:
            raise reply.error
        assert reply.status == 200, reply.body.decode()
        return reply.result

    async def all(self) -> dict[str, Any]:
        async def everything(session: Session) -> dict[str, Any]:
            return await session.all()

        found: dict[str, Any] = await self.do(everything)
        return found


class Sealing(MemoryDriver):
    """Memory that counts as a shared store, so that its values are sealed."""

    shared = True


class Recording(Sealing):
    """Records its calls, and fails in those named in *failing*."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[str] = []
        self.failing: set[str] = set()

    def _note(self, event: str) -> None:
        self.events.append(event)
        if event in self.failing:
            try:
                raise OSError("the store is out of reach")
            except OSError as cause:
                raise SessionStoreError("recording", event) from cause

    async def open(self) -> None:
        self._note("open")
        await super().open()

    async def close(self) -> None:
        self._note("close")

    async def load(self, id: str, *, now: float) -> Record | Literal[Outcome.ENDED] | None:
        self._note("load")
        return await super().load(id, now=now)

    async def create(self, id: str, record: Record) -> None:
        self._note("create")
        await super().create(id, record)

    async def apply(self, id: str, sets: Any, deletes: Any, *, now: float, deadline: float | None, max_size: int) -> Outcome:
        self._note("apply")
        return await super().apply(id, sets, deletes, now=now, deadline=deadline, max_size=max_size)

    async def swap(
        self, id: str, field: str, old: bytes | None, new: bytes, *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        self._note("swap")
        return await super().swap(id, field, old, new, now=now, deadline=deadline, max_size=max_size)

    async def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
        self._note("rename")
        return await super().rename(id, new_id, record, version=version, now=now)

    async def destroy(self, id: str, *, now: float) -> None:
        self._note("destroy")
        await super().destroy(id, now=now)

    async def purge(self, *, now: float, limit: int) -> int:
        self._note("purge")
        return await super().purge(now=now, limit=limit)


class _Opened:
    """A driver that another site opens and closes."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def __getattr__(self, name: str) -> Any:
        return getattr(self._driver, name)

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass


def opened(driver: Driver | dict[str, Any] | None) -> Any:
    """Return *driver* for a second site, which neither opens nor closes it."""
    if isinstance(driver, dict):
        return {**driver, "ended": _Opened(driver["ended"])}
    return driver and _Opened(driver)


def setting(**values: Any) -> Work:
    """Return work that sets *values*."""

    async def work(session: Session) -> None:
        for key, value in values.items():
            await session.set(key, value)

    return work


def getting(key: str) -> Work:
    async def work(session: Session) -> Any:
        return await session.get(key)

    return work


class serving:  # noqa: N801 - reads as what it does
    """A context manager that starts a site up and shuts it down."""

    def __init__(self, site: Site) -> None:
        self.site = site

    async def __aenter__(self) -> Site:
        await self.site.app.load()
        return self.site

    async def __aexit__(self, *_: object) -> None:
        await self.site.app.shutdown()


def new_folder() -> Path:
    """Return a new folder, which is removed after the tests."""
    return Path(tempfile.mkdtemp(dir=_folders().name))


@functools.cache
def _folders() -> tempfile.TemporaryDirectory[str]:
    return tempfile.TemporaryDirectory(prefix="gaman-test-")


def of_its_own(kind: str) -> Driver:
    """Return a driver of this kind whose sessions no other test has."""
    name = f"own-{token_hex(8)}"
    if kind == "mongodb":
        return _make("mongodb", uri=servers.mongodb_uri(), db_name="gaman_test", collection=name)
    if kind.startswith("redis"):
        url = servers.redis_cluster_url() if kind == "redis cluster" else servers.redis_url()
        return _make("redis", url=url, prefix=f"{name}:")
    driver: Driver = DRIVERS[kind]()
    return driver


def _make(kind: str, **options: Any) -> Driver:
    return find_driver(kind)(**options)


DRIVERS: dict[str, Callable[[], Any]] = {
    "cookies": lambda: None,
    "cookies with ended": lambda: {"type": "cookies", "ended": Sealing()},
    "memory": MemoryDriver,
    "sealed": Sealing,
    "file": lambda: _make("file", dir=new_folder() / "sessions"),
    "sql": lambda: _make("sql", file=new_folder() / "sessions.db"),
    "redis": lambda: _make("redis", url=servers.redis_url()),
    "redis cluster": lambda: _make("redis", url=servers.redis_cluster_url()),
    "mongodb": lambda: _make("mongodb", uri=servers.mongodb_uri(), db_name="gaman_test"),
}
