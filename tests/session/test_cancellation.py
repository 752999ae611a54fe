"""A request that is cancelled writes what it has begun to write, and a later response of it carries the cookie."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response

from gaman.session import Outcome, Record, Session, SessionStoreError
from gaman.session.asgi import SessionMiddleware, get_session
from tests.asgi import Exchange, http_scope
from tests.session.sites import Clock, Recording, Site, getting, serving, setting
from tests.session.visitors import NAME, Visitor, answering, sessions_in, starlette

pytestmark = pytest.mark.anyio

Limit = Callable[[Callable[[], Awaitable[Any]]], Awaitable[None]]


class Slow(Recording):
    """Takes a moment after each change, in which the answer is on its way, and a moment before it fails."""

    slow = False

    async def destroy(self, id: str, *, now: float) -> None:
        await self._pause("destroy")
        await super().destroy(id, now=now)
        await self._pause("destroy")

    async def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
        outcome = await super().rename(id, new_id, record, version=version, now=now)
        await self._pause("rename")
        return outcome

    async def create(self, id: str, record: Record) -> None:
        await super().create(id, record)
        await self._pause("create")

    async def apply(self, id: str, sets: Any, deletes: Any, **given: Any) -> Outcome:
        await self._pause("apply")
        outcome = await super().apply(id, sets, deletes, **given)
        await self._pause("apply")
        return outcome

    async def _pause(self, event: str) -> None:
        if self.slow:
            await asyncio.sleep(0.03)
            if f"late {event}" in self.failing:
                raise SessionStoreError("recording", event)


async def _by_asyncio(run: Callable[[], Awaitable[Any]]) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(0.01):
            await run()


async def _by_anyio(run: Callable[[], Awaitable[Any]]) -> None:
    with anyio.move_on_after(0.01):
        await run()


async def _by_task(run: Callable[[], Awaitable[Any]]) -> None:
    """Cancel as a server does that stops; some cancel again."""
    task = asyncio.ensure_future(run())
    for _ in range(3):
        await asyncio.sleep(0.005)
        task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def _by_group(run: Callable[[], Awaitable[Any]]) -> None:
    async def fail() -> None:
        await asyncio.sleep(0.01)
        raise ValueError("another task has failed")

    with suppress(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            group.create_task(_awaiting(run))
            group.create_task(fail())


async def _awaiting(run: Callable[[], Awaitable[Any]]) -> None:
    await run()


LIMITS = {"asyncio.timeout": _by_asyncio, "anyio": _by_anyio, "task.cancel": _by_task, "TaskGroup": _by_group}


@pytest.fixture(params=LIMITS)
def limit(request: pytest.FixtureRequest) -> Limit:
    return LIMITS[request.param]


async def _clear(session: Session) -> None:
    await session.clear()


async def _regenerate(session: Session) -> None:
    await session.regenerate()
    await session.set("user", 2)


async def _clear_and_save(session: Session) -> None:
    await session.clear()
    await session.save()


async def _delete(session: Session) -> None:
    await session.delete("user")


@pytest.mark.parametrize("work", [_clear, _clear_and_save, _delete])
async def test_a_logout_is_written_though_its_request_is_cancelled(limit: Limit, work: Callable[[Session], Any]) -> None:
    driver = Slow()
    async with serving(Site(driver, Clock())) as site:
        browser = site.browser()
        await browser.do(setting(user=1))
        driver.slow = True
        await limit(lambda: site.request(work, browser.cookie))
        driver.slow = False
        assert await browser.do(getting("user")) is None


async def test_an_event_loop_that_ends_waits_for_no_write() -> None:
    driver = Slow()
    async with serving(Site(driver, Clock())) as site:
        browser = site.browser()
        await browser.do(setting(user=1))
        driver.slow = True
        before = asyncio.all_tasks()
        request = asyncio.create_task(site.request(_clear, browser.cookie))
        await asyncio.sleep(0.01)
        for task in asyncio.all_tasks() - before:
            # As asyncio.run() does.
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        driver.slow = False
        assert await browser.do(getting("user")) == 1


def _limited(sessions: Any, limit: Limit, work: Callable[[Session], Any]) -> Any:
    """Return an application with a middleware that limits the time of the handlers, and answers 200 after that."""
    app = starlette(sessions, login=answering(_login), user=answering(_user), work=_working(work))
    app.user_middleware.append(Middleware(_Limiting, limit))
    return app


class _Limiting:
    def __init__(self, app: Any, limit: Limit) -> None:
        self._app = app
        self._limit = limit

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        has_begun = False

        async def note(message: Any) -> None:
            nonlocal has_begun
            await send(message)
            has_begun = True

        async def run() -> None:
            await self._app(scope, receive, note)

        await (self._limit(run) if scope["path"] == "/work" else run())
        if not has_begun:
            await PlainTextResponse("a second response")(scope, receive, send)


async def _login(request: Request) -> str:
    await (await get_session(request)).set("user", 1)
    return "in"


async def _user(request: Request) -> Any:
    return await (await get_session(request)).get("user")


def _working(work: Callable[[Session], Any]) -> Any:
    async def answer(request: Request) -> None:
        await work(await get_session(request))

    return answering(answer)


async def _set(session: Session) -> None:
    await session.set("user", 2)


async def _regenerate_and_save(session: Session) -> None:
    await _regenerate(session)
    await session.save()


@pytest.mark.parametrize("work", [_regenerate, _regenerate_and_save])
async def test_a_new_id_reaches_the_browser_with_the_response_that_follows_a_cancellation(
    limit: Limit, work: Callable[[Session], Any]
) -> None:
    driver = Slow()
    visitor = Visitor(_limited(sessions_in(driver), limit, work))
    await visitor.get("/login")
    driver.slow = True
    reply = await visitor.get("/work")
    driver.slow = False
    assert (reply.status, reply.text) == (200, "a second response")
    assert [line.partition("=")[0] for line in reply.cookies] == [NAME]
    assert reply.headers["cache-control"] == "no-store"
    assert reply.headers["vary"] == "Cookie"
    assert (await visitor.get("/user")).json == 2
    assert driver.events.count("rename") == 1


async def test_what_a_cancelled_request_has_set_is_written_with_the_response_that_follows(limit: Limit) -> None:
    driver = Slow()
    visitor = Visitor(_limited(sessions_in(driver), limit, _set))
    await visitor.get("/login")
    driver.slow = True
    assert (await visitor.get("/work")).text == "a second response"
    driver.slow = False
    assert (await visitor.get("/user")).json == 2


async def test_a_write_that_fails_in_a_cancelled_request_is_answered_503(limit: Limit, caplog: pytest.LogCaptureFixture) -> None:
    driver = Slow()
    visitor = Visitor(_limited(sessions_in(driver), limit, _regenerate))
    await visitor.get("/login")
    driver.slow, driver.failing = True, {"late rename"}
    reply = await visitor.get("/work")
    assert reply.status == 503
    assert reply.headers["cache-control"] == "no-store"
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == (
        "GET '/work' was cancelled, and its session could not be written: "
        "SessionStoreError: the session store (recording) could not rename"
    )


async def test_base_http_middleware_that_gives_up_sends_the_cookie(limit: Limit) -> None:
    driver = Slow()

    class Limiting(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Response:
            replies: list[Response] = []

            async def run() -> None:
                replies.append(await call_next(request))

            await (limit(run) if request.url.path == "/work" else run())
            return replies[0] if replies else PlainTextResponse("a second response")

    app = starlette(sessions_in(driver), login=answering(_login), user=answering(_user), work=_working(_regenerate_and_save))
    app.add_middleware(Limiting)
    app.user_middleware.reverse()
    visitor = Visitor(app)
    await visitor.get("/login")
    driver.slow = True
    reply = await visitor.get("/work")
    driver.slow = False
    assert reply.text == "a second response"
    assert (await visitor.get("/user")).json == 2


async def test_a_start_after_a_flush_that_was_cut_off_writes_again() -> None:
    """An application may catch the cancellation of its send()."""

    class CutOff(Recording):
        async def create(self, id: str, record: Record) -> None:
            if self.events.count("create") == 0:
                self.events.append("create")
                raise asyncio.CancelledError
            await super().create(id, record)

    driver = CutOff()

    async def application(scope: Any, receive: Any, send: Any) -> None:
        request: Any = SimpleNamespace(scope=scope)
        await (await get_session(request)).set("user", 1)
        for _ in range(2):
            try:
                await send({"type": "http.response.start", "status": 200, "headers": []})
                break
            except asyncio.CancelledError:
                pass
        await send({"type": "http.response.body", "body": b"done"})

    exchange = Exchange()
    await SessionMiddleware(application, sessions=sessions_in(driver))(http_scope(), exchange.receive, exchange.send)
    assert (exchange.status, len(exchange.headers.getall("set-cookie"))) == (200, 1)
    assert driver.events.count("create") == 2
