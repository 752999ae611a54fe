"""A forgotten `await` passes no check, makes the request fail, and is logged."""

from __future__ import annotations

import asyncio
import copy
import gc
import json
import logging
import re
import subprocess
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest

from gaman import App, Context, HTTPError, Response, define_integration
from gaman.session import Session, SessionClosed, SessionSerializationError, SessionTypeError, SessionUseError, session
from gaman.session.asgi import SessionMiddleware, get_session
from gaman.testing import TestClient
from tests.asgi import Exchange, http_scope
from tests.session.sites import DRIVERS, SECRET, SESSION, Browser, Clock, Site, Work, gaman_only, serving, setting

pytestmark = pytest.mark.anyio
HERE = "tests/session/test_awaitable.py"


@pytest.fixture(params=["cookies", "memory", "sealed"])
async def browser(request: pytest.FixtureRequest) -> AsyncGenerator[Browser]:
    async with browsing(request.param) as browser:
        await browser.do(setting(user="Angga", n=1))
        yield browser


@asynccontextmanager
async def browsing(kind: str) -> AsyncGenerator[Browser]:
    """A visitor of sessions that are readable at once, in "cookies" and "memory", or only by `await`: "sealed"."""
    async with serving(Site(DRIVERS[kind](), Clock())) as site:
        yield site.browser()


def logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


async def reported(browser: Browser, work: Work, caplog: pytest.LogCaptureFixture) -> list[str]:
    """Run *work*, whose request must fail because it never awaits a call; return what the log's only line says of each call."""
    reply = await browser.request(work)
    assert (reply.status, reply.error, reply.set_cookie) == (500, None, None)
    [line] = logged(caplog)
    return re.findall(r"[a-z.]+\(\.\.\.\) was never awaited: write `await` before it \(.*?\)", line)


READS: dict[str, Callable[[Session], Any]] = {
    "get": lambda session: session.get("user"),
    "has": lambda session: session.has("user"),
    "pop": lambda session: session.pop("user"),
    "all": lambda session: session.all(),
    "update": lambda session: session.update("n", lambda n: n + 1),
    "save": lambda session: session.save(),
}
CHANGES: dict[str, Callable[[Session], Any]] = {
    "set": lambda session: session.set("user", 1),
    "delete": lambda session: session.delete("user"),
    "clear": lambda session: session.clear(),
    "regenerate": lambda session: session.regenerate(),
}
EXPECTED = {"get": "Angga", "has": True, "pop": "Angga", "all": {"user": "Angga", "n": 1}, "update": 2, "save": None}
MISUSES: dict[str, Callable[[Any], object]] = {
    "if": lambda call: 1 if call else 2,
    "not": lambda call: not call,
    "==": lambda call: call == "Angga",
    "!=": lambda call: call != "Angga",
    "== on the right": lambda call: "Angga" == call,  # noqa: SIM300
    "<": lambda call: call < 1,
    "<=": lambda call: call <= 1,
    ">": lambda call: call > 1,
    ">=": lambda call: call >= 1,
    "in it": lambda call: "user" in call,
    "in a list": lambda call: call in ["Angga", "Budi"],
    "in a set": lambda call: call in {"Angga", "Budi"},
    "in a dict": lambda call: call in {"Angga": 1},
    "[...]": lambda call: call["user"],
    "[...] =": lambda call: call.__setitem__("user", 1),
    "+": lambda call: call + 1,
    "+ on the right": lambda call: 1 + call,
    "int": int,
    "float": float,
    "bytes": bytes,
    "len": len,
    "for": list,
    "attribute": lambda call: call.name,
    "method": lambda call: call.strip(),
    "f-string": lambda call: f"Hello {call}",
    "str": str,
    "format": "Hello {}".format,
    "JSON": lambda call: json.dumps({"user": call}, default=str),
}


def error_of(misuse: Callable[[Any], object], call: Any) -> str | None:
    try:
        misuse(call)
    except TypeError as error:
        # Without gaman's log, it has the line of the call.
        return str(error).partition(f" ({HERE}, line ")[0]
    return None


@pytest.mark.parametrize("is_loaded", [True, False], ids=["loaded", "not loaded"])
@pytest.mark.parametrize("name", READS)
async def test_a_call_that_is_used_as_its_result_raises(
    name: str, is_loaded: bool, browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(session: Session) -> None:
        if is_loaded:
            await session.has("user")
        errors = {misuse: error_of(use, READS[name](session)) for misuse, use in MISUSES.items()}
        assert errors == dict.fromkeys(MISUSES, f"write `await` before {SESSION}.{name}(...)")

    await browser.do(work)
    # A call that raised isn't logged as well.
    assert logged(caplog) == []


@pytest.mark.parametrize("name", CHANGES)
async def test_a_change_that_is_used_as_a_result_raises(name: str, browser: Browser) -> None:
    misuses = MISUSES.keys() - {"attribute", "method"}

    async def work(session: Session) -> None:
        errors = {misuse: error_of(MISUSES[misuse], CHANGES[name](session)) for misuse in misuses}
        assert errors == dict.fromkeys(misuses, f"write `await` before session.{name}(...)")

    await browser.do(work)


async def test_a_condition_without_await_raises(browser: Browser) -> None:
    async def work(session: Session) -> None:
        if not session.has("isAdmin"):  # type: ignore[truthy-bool, unused-ignore]  # pyright: ignore[reportGeneralTypeIssues]
            raise HTTPError(401)

    reply = await browser.request(work)
    assert reply.status == 500
    assert isinstance(reply.error, SessionUseError)


@pytest.mark.parametrize("name", READS)
async def test_a_call_returns_the_same_result_each_time_it_is_awaited(name: str, browser: Browser) -> None:
    async def work(session: Session) -> list[Any]:
        call = READS[name](session)
        return [await call, await call, await asyncio.create_task(call), await asyncio.create_task(call), await call]

    assert await browser.do(work) == [EXPECTED[name]] * 5
    n = 2 if name == "update" else 1
    assert await browser.all() == ({"n": n} if name == "pop" else {"user": "Angga", "n": n})


async def gathered(call: Awaitable[Any]) -> Any:
    [found] = await asyncio.gather(call)
    return found


async def in_a_group(call: Any) -> Any:
    async with asyncio.TaskGroup() as group:
        task = group.create_task(call)
    return task.result()


async def in_anyio(call: Any) -> Any:
    found: list[Any] = []

    async def wait() -> None:
        found.append(await call)

    async with anyio.create_task_group() as group:
        group.start_soon(wait)
    return found[0]


async def first_completed(call: Any) -> Any:
    [done] = asyncio.as_completed([call])
    return await done


async def with_a_timeout(call: Any) -> Any:
    async with asyncio.timeout(5):
        return await call


WAYS: dict[str, Callable[[Any], Awaitable[Any]]] = {
    "gather": gathered,
    "wait_for": lambda call: asyncio.wait_for(call, 5),
    "create_task": asyncio.create_task,
    "ensure_future": asyncio.ensure_future,
    "shield": asyncio.shield,
    "as_completed": first_completed,
    "TaskGroup": in_a_group,
    "timeout": with_a_timeout,
    "anyio": in_anyio,
}


@pytest.mark.parametrize("is_loaded", [True, False], ids=["loaded", "not loaded"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("name", READS)
async def test_a_call_is_awaited_in_every_way_that_a_coroutine_is(
    name: str, way: Callable[[Any], Awaitable[Any]], is_loaded: bool, browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(session: Session) -> Any:
        if is_loaded:
            await session.has("user")
        return await way(READS[name](session))

    assert await browser.do(work) == EXPECTED[name]
    assert logged(caplog) == []


@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
async def test_a_change_is_awaited_in_every_way_too(way: Callable[[Any], Awaitable[Any]], browser: Browser) -> None:
    async def work(session: Session) -> Any:
        return await way(session.set("b", 2))

    assert await browser.do(work) is None
    assert (await browser.all())["b"] == 2


async def test_gather_takes_many_calls(browser: Browser) -> None:
    async def work(session: Session) -> Any:
        return await asyncio.gather(
            session.get("user"), session.has("x"), session.set("x", 1), session.set("y", 1), session.get("n"), session.all()
        )

    user, _, x, y, n, _ = await browser.do(work)
    assert (user, x, y, n) == ("Angga", None, None, 1)
    assert await browser.all() == {"user": "Angga", "n": 1, "x": 1, "y": 1}


@pytest.mark.parametrize("is_read", [True, False])
async def test_one_call_that_two_tasks_await_at_once_works_or_says_what_to_do(is_read: bool) -> None:
    async with browsing("sealed") as browser:
        await browser.do(setting(user="Angga"))

        async def work(session: Session) -> list[Any]:
            started = asyncio.Event()

            async def slow(value: Any) -> Any:
                await started.wait()
                return value

            driver: Any = session._sessions.driver  # pyright: ignore[reportPrivateUsage]
            load = driver.load

            async def load_slowly(*args: Any, **named: Any) -> Any:
                return await slow(await load(*args, **named))

            driver.load = load_slowly
            try:
                call: Any = session.get("user") if is_read else session.pop("user")

                async def wait() -> Any:
                    return await call

                tasks = [asyncio.create_task(wait()), asyncio.create_task(wait())]
                await asyncio.sleep(0)
                started.set()
                return await asyncio.gather(*tasks, return_exceptions=True)
            finally:
                driver.load = load

        first, second = await browser.do(work)
        assert first == "Angga"
        if is_read:
            assert second == "Angga"
        else:
            assert isinstance(second, RuntimeError)
            assert "another task is awaiting it; call it once more" in str(second)


@pytest.mark.parametrize("name", CHANGES)
async def test_a_change_takes_effect_when_it_is_called(
    name: str, browser: Browser, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    ids: list[str | None] = []

    async def work(session: Session) -> None:
        ids.append(session.id)
        CHANGES[name](session)

    async def after(session: Session) -> None:
        ids.append(session.id)

    await browser.do(work)
    expected = {"set": {"user": 1, "n": 1}, "delete": {"n": 1}, "clear": {}, "regenerate": {"user": "Angga", "n": 1}}
    assert await browser.all() == expected[name]
    await browser.do(after)
    assert (ids[0] == ids[1]) == (name in ("set", "delete"))
    assert logged(caplog) == []
    assert [str(each.message) for each in recwarn] == []


async def test_an_owner_is_recorded_when_set_owner_is_called() -> None:
    async with browsing("sealed") as browser:

        async def work(session: Session) -> None:
            session.set("a", 1)
            session.set_owner("user:1", note="a phone")

        await browser.do(work)
        [owned] = await browser.site.sessions.list("user:1")
        assert owned.note == "a phone"


async def test_a_change_raises_at_the_call(browser: Browser) -> None:
    async def work(session: Session) -> None:
        with pytest.raises(SessionSerializationError):
            session.set("a", object())
        with pytest.raises(ValueError, match="max_age"):
            session.regenerate(max_age=-1)
        session._is_closed = True
        for change in CHANGES.values():
            with pytest.raises(SessionClosed):
                change(session)
        session._is_closed = False

    await browser.do(work)


def line_of(text: str) -> int:
    """Return the number of the line of this file that ends in the comment *text*."""
    with open(__file__, encoding="utf-8") as file:
        return next(number for number, line in enumerate(file, 1) if line.rstrip().endswith(f"# {text}"))


@pytest.mark.parametrize("name", READS)
async def test_a_call_that_is_never_awaited_is_an_error_in_the_log(
    name: str, browser: Browser, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    async def work(session: Session) -> None:
        await session.set("other", 1)
        kept = session.has("user")  # kept
        READS[name](session)
        del kept

    calls = await reported(browser, work, caplog)
    kept, call = sorted(calls, key=lambda line: "session.has" not in line or "in work" not in line)
    place = f"{HERE}, line {line_of('kept')}, in work"
    assert kept == f"{SESSION}.has(...) was never awaited: write `await` before it ({place})"
    assert call.startswith(f"{SESSION}.{name}(...) was never awaited: write `await` before it ({HERE}, line ")
    assert [str(each.message) for each in recwarn] == []
    record = next(record for record in caplog.records if record.levelno == logging.ERROR)
    assert getattr(record, "path", None) == "/"
    assert await browser.all() == {"user": "Angga", "n": 1}


async def test_a_guard_that_compares_a_call_with_none_lets_nobody_in(browser: Browser) -> None:
    async def guard(session: Session) -> None:
        user: Any = session.get("user")
        if user is None:
            raise HTTPError(401)

    for visitor in (browser, browser.site.browser()):
        reply = await visitor.request(guard)
        assert reply.status == 500
        assert b"done" not in reply.body


async def test_a_forgotten_await_is_500_without_debug_too() -> None:
    async def home(ctx: Context) -> str:
        ctx.session.get("user")  # pyright: ignore[reportUnusedCoroutine]
        return "the secret"

    async with TestClient(App({"/": home}, integrations=[session(SECRET)]), raise_errors=False) as client:
        response = await client.get("/")
    assert (response.status_code, response.text) == (500, "Internal Server Error")


async def test_a_test_client_raises_the_error_of_a_forgotten_await() -> None:
    async def home(ctx: Context) -> str:
        ctx.session.get("user")  # pyright: ignore[reportUnusedCoroutine]
        return "the secret"

    said = "ctx.session.get(...) was never awaited: write `await` before it"
    async with TestClient(App({"/": home}, integrations=[session(SECRET)])) as client:
        with pytest.raises(SessionUseError, match=re.escape(said)):
            await client.get("/")


async def test_the_cookie_of_a_saved_session_is_sent_after_a_forgotten_await() -> None:
    async with browsing("sealed") as browser:
        await browser.do(setting(user="Angga"))

        async def work(session: Session) -> None:
            await session.regenerate()
            await session.save()
            await session.set("user", "Budi")
            session.has("user")

        assert (await browser.request(work)).status == 500
        assert await browser.all() == {"user": "Angga"}


KEPT: list[Any] = []


@pytest.fixture(autouse=True)
def forget_kept() -> Iterator[None]:
    yield
    KEPT.clear()


HOLDERS: dict[str, Callable[[Any], object]] = {
    "a list": KEPT.append,
    "a closure": lambda call: KEPT.append(lambda: call),
    "a future": lambda call: asyncio.get_running_loop().create_future().set_result(call),
    "a thread's future": lambda call: KEPT.append(asyncio.get_running_loop().run_in_executor(None, lambda: call)),
    "a cycle": lambda call: (cycle := [call]).append(cycle),
}


def names_of(lines: list[str]) -> list[str]:
    """Return the names of the calls that *lines* are about."""
    said = r"([a-z.]+)\(\.\.\.\) was never awaited: write `await` before it \(.*, line \d+, in .*\)"
    return sorted([match[1] for line in lines if (match := re.fullmatch(said, line))])


ALL_READS = sorted([f"{SESSION}.{name}" for name in READS])


@pytest.mark.parametrize("holder", HOLDERS)
async def test_calls_that_something_holds_when_the_response_begins_fail_their_request(
    holder: str, browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(session: Session) -> None:
        await session.set("other", 1)
        for read in READS.values():
            HOLDERS[holder](read(session))

    assert names_of(await reported(browser, work, caplog)) == ALL_READS
    KEPT.clear()
    assert await browser.all() == {"user": "Angga", "n": 1}
    # They are reported once.
    gc.collect()
    assert len(logged(caplog)) == 1


async def test_calls_whose_tasks_have_not_begun_when_the_response_begins_fail_their_request(
    browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    tasks: list[asyncio.Task[Any]] = []

    async def start(session: Session) -> None:
        tasks.extend(asyncio.create_task(read(session)) for read in READS.values())

    async def start_and_wait(session: Session) -> None:
        await start(session)
        await asyncio.sleep(0)

    assert names_of(await reported(browser, start, caplog)) == ALL_READS
    await asyncio.gather(*tasks, return_exceptions=True)
    await browser.do(start_and_wait)
    await asyncio.gather(*tasks, return_exceptions=True)


@gaman_only
async def test_a_call_in_the_locals_of_the_context_opens_no_guard(caplog: pytest.LogCaptureFixture) -> None:
    async def guard(ctx: Context) -> None:
        user: Any = ctx.session.get("user")  # in the locals
        ctx.locals["user"] = user
        if user is None:
            raise HTTPError(401)

    async def home(ctx: Context) -> str:
        return "the secret"

    async with TestClient(App({"/": [guard, home]}, integrations=[session(SECRET)]), raise_errors=False) as client:
        response = await client.get("/")
    assert (response.status_code, response.text) == (500, "Internal Server Error")
    [line] = logged(caplog)
    said = "ctx.session.get(...) was never awaited: write `await` before it"
    assert f"{said} ({HERE}, line {line_of('in the locals')}, in guard)" in line


async def test_each_of_several_calls_is_named_once(browser: Browser, caplog: pytest.LogCaptureFixture) -> None:
    async def work(session: Session) -> None:
        KEPT.append(session.get("user"))  # the first
        KEPT.extend(session.has(key) for key in ("user", "n"))  # the others
        awaited = [session.get("user"), session.has("n")]
        session.has("x")  # the last
        assert await asyncio.gather(*awaited) == ["Angga", True]

    lines = await reported(browser, work, caplog)
    where = [re.sub(r".*line (\d+), in .*", r"\1", line) for line in lines]
    assert sorted(where) == sorted(str(line_of(f"the {which}")) for which in ("first", "others", "last"))


async def test_a_call_that_is_awaited_just_before_the_response_is_fine(browser: Browser, caplog: pytest.LogCaptureFixture) -> None:
    async def work(session: Session) -> Any:
        calls = [session.get("user"), session.has("user"), session.get("n"), session.all()]
        KEPT.extend(calls)
        task = asyncio.create_task(calls[2])
        await asyncio.sleep(0)
        found = [await call for call in (calls[3], calls[1], calls[0], calls[1])]
        return [*found, await task]

    assert await browser.do(work) == [{"user": "Angga", "n": 1}, True, "Angga", True, 1]
    assert logged(caplog) == []


@pytest.mark.parametrize("status", [200, 404, 500, 503])
async def test_a_response_that_says_that_the_request_failed_is_sent(
    status: int, browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(session: Session) -> None:
        await session.set("user", "Budi")
        KEPT.append(session.has("user"))

    reply = await browser.request(work, response=Response("sorry", status))
    KEPT.clear()
    is_replaced = status < 500
    assert (reply.status, b"sorry" not in reply.body) == (500 if is_replaced else status, is_replaced)
    assert len(logged(caplog)) == is_replaced
    assert await browser.all() == {"user": "Angga", "n": 1}


async def test_a_call_that_a_failed_request_leaves_to_others_is_not_reported(
    browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(session: Session) -> None:
        await session.has("user")
        KEPT.extend([session.get("user"), session.has("user"), session.pop("user")])
        raise ValueError("a bug")

    assert (await browser.request(work)).status == 500
    assert [line for line in logged(caplog) if "never awaited" in line] == []
    ready, other, change = KEPT
    assert (await ready, await other) == ("Angga", True)
    with pytest.raises(SessionClosed):
        await change
    del ready, other, change
    KEPT.clear()
    assert [line for line in logged(caplog) if "never awaited" in line] == []


async def test_an_error_hook_that_forgets_an_await_fails_too(caplog: pytest.LogCaptureFixture) -> None:
    async def home(ctx: Context) -> str:
        KEPT.append(ctx.session.has("a"))
        raise HTTPError(404)

    def show(ctx: Context, error: Exception) -> Response:
        ctx.session.get("user")  # pyright: ignore[reportUnusedCoroutine]  # in the hook
        return Response.text("the secret")

    hooks = define_integration(name="errors", on_error=show)
    app = App({"/": home}, integrations=[session(SECRET), hooks])
    async with TestClient(app, raise_errors=False) as client:
        assert (await client.get("/")).text != "the secret"
    [line] = [line for line in logged(caplog) if "never awaited" in line]
    assert f"line {line_of('in the hook')}, in show" in line


async def test_a_call_after_the_response_has_begun_is_logged_when_it_is_dropped(
    browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    sessions: list[Session] = []

    async def work(session: Session) -> None:
        await session.get("user")
        sessions.append(session)

    await browser.do(work)
    [session] = sessions
    awaited = session.get("user")
    KEPT.extend([session.get("user"), session.has("user")])
    assert logged(caplog) == []
    KEPT.clear()
    names = [line.partition("(")[0] for line in logged(caplog)]
    assert sorted(names) == [f"{SESSION}.get", f"{SESSION}.has"]
    assert await awaited == "Angga"
    assert len(logged(caplog)) == 2


async def test_calls_that_threads_make_are_due_until_they_end(browser: Browser) -> None:
    async def work(session: Session) -> int:
        await session.has("user")

        def make() -> int:
            count = 0
            for _ in range(300):
                for call in (session.get("user"), session.has("n"), session.pop("x"), session.all()):
                    call.close()
                    count += 1
            return count

        with ThreadPoolExecutor(4) as threads:
            return sum([future.result() for future in [threads.submit(make) for _ in range(4)]])

    assert await browser.do(work) == 4800


async def test_a_call_that_a_loop_never_awaits_is_logged_once(browser: Browser, caplog: pytest.LogCaptureFixture) -> None:
    async def work(session: Session) -> None:
        for _ in range(100):
            session.has("user")

    [line] = await reported(browser, work, caplog)
    assert line.startswith(f"{SESSION}.has(...) was never awaited")


async def test_a_call_that_lives_as_long_as_its_handler_is_logged_as_well(
    browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(session: Session) -> str:
        user: Any = session.get("user")  # until the end
        await asyncio.sleep(0)
        return "a guest" if user is None else "a user"

    [line] = await reported(browser, work, caplog)
    assert line.endswith(f"({HERE}, line {line_of('until the end')}, in work)")


async def test_a_call_of_the_integration_that_is_never_awaited_is_logged(
    caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    async with browsing("sealed") as browser:
        sessions: Any = browser.site.sessions
        sessions.end_all("user:1")
        for name in ("list", "end", "end_all", "count"):
            with pytest.raises(TypeError, match=f"write `await` before sessions.{name}"):
                assert getattr(sessions, name)("user:1")
        [line] = logged(caplog)
        assert line.startswith(f"sessions.end_all(...) was never awaited: write `await` before it ({HERE}, line ")
        assert await sessions.count() == 0
        assert await gathered(sessions.list("user:1")) == []
    assert [str(each.message) for each in recwarn] == []


@pytest.mark.parametrize("name", READS)
async def test_a_task_that_is_cancelled_before_it_begins_is_not_logged(
    name: str, browser: Browser, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    async def work(session: Session) -> None:
        task = asyncio.create_task(READS[name](session))
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        READS[name](session).close()

    await browser.do(work)
    assert logged(caplog) == []
    assert [str(each.message) for each in recwarn] == []
    assert await browser.all() == {"user": "Angga", "n": 1}


async def test_a_task_that_is_cancelled_before_it_begins_leaves_nothing_to_the_garbage_collector(browser: Browser) -> None:
    async def work(session: Session) -> None:
        for call in (session.get("user"), session.set("user", 1)):
            task = asyncio.create_task(call)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    gc.collect()
    gc.disable()
    try:
        before = len([each for each in gc.get_objects() if Session in type(each).__mro__])
        for _ in range(10):
            await browser.do(work)
        assert len([each for each in gc.get_objects() if Session in type(each).__mro__]) < before + 5
    finally:
        gc.enable()


async def test_a_call_is_logged_after_the_working_directory_was_removed(
    browser: Browser, caplog: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(session: Session) -> None:
        session.get("user")

    folder = tmp_path / "gone"
    folder.mkdir()
    monkeypatch.chdir(folder)
    folder.rmdir()
    [line] = await reported(browser, work, caplog)
    assert line.startswith(f"{SESSION}.get(...) was never awaited: write `await` before it (")


@gaman_only
@pytest.mark.parametrize("failure", [HTTPError(400), ValueError("broken")], ids=repr)
async def test_a_request_that_fails_before_its_await_logs_only_its_failure(
    failure: Exception, browser: Browser, caplog: pytest.LogCaptureFixture
) -> None:
    async def work(session: Session) -> Any:
        user = session.get("user")
        if failure.args:
            raise failure
        return await user

    await browser.request(work)
    failure.__traceback__ = None
    assert [line for line in logged(caplog) if "never awaited" in line] == []


async def test_a_request_that_is_cancelled_before_its_await_is_not_logged(
    browser: Browser, caplog: pytest.LogCaptureFixture, recwarn: pytest.WarningsRecorder
) -> None:
    waiting = asyncio.Event()

    async def work(session: Session) -> Any:
        calls = session.get("user"), session.all()
        waiting.set()
        await asyncio.sleep(60)
        return await asyncio.gather(*calls)

    task = asyncio.create_task(browser.request(work))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    del task
    assert logged(caplog) == []
    assert [str(each.message) for each in recwarn] == []


async def test_a_cancelled_request_leaves_no_due_call_to_the_garbage_collector() -> None:
    async def home(ctx: Context) -> str:
        calls = ctx.session.get("user"), ctx.session.has("n"), ctx.session.pop("x")
        await asyncio.sleep(60)
        await asyncio.gather(*calls)
        return "done"

    app = App({"/": home}, integrations=[session(SECRET)])

    async def cancel() -> None:
        exchange = Exchange()
        task = asyncio.create_task(app(http_scope(), exchange.receive, exchange.send))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])

    await app.load()
    await cancel()
    gc.collect()
    gc.disable()
    try:
        before = len([each for each in gc.get_objects() if Session in type(each).__mro__])
        await cancel()
        assert len([each for each in gc.get_objects() if Session in type(each).__mro__]) == before
    finally:
        gc.enable()


async def test_cancelling_a_read_ends_it() -> None:
    async with browsing("sealed") as browser:
        await browser.do(setting(user="Angga"))

        async def work(session: Session) -> Any:
            driver: Any = session._sessions.driver  # pyright: ignore[reportPrivateUsage]
            load = driver.load
            ends: list[str] = []

            async def load_for_ever(*_: Any, **__: Any) -> None:
                try:
                    await asyncio.sleep(60)
                except asyncio.CancelledError:
                    ends.append("cancelled")
                    raise

            driver.load = load_for_ever
            calls = [session.get("user") for _ in range(2)]
            try:
                for is_task, call in enumerate(calls):
                    with pytest.raises(TimeoutError):
                        await asyncio.wait_for(asyncio.create_task(call) if is_task else call, 0.1)
                with anyio.move_on_after(0.1):
                    await session.get("user")
            finally:
                driver.load = load
            return ends, await asyncio.gather(*calls, session.get("user"))

        assert await browser.do(work) == (["cancelled"] * 3, ["Angga"] * 3)


async def test_a_read_that_fails_raises_where_it_is_awaited() -> None:
    async with browsing("sealed") as browser:
        await browser.do(setting(user="Angga"))

        async def work(session: Session) -> Any:
            return await asyncio.gather(session.get("user", type=int), session.get("user"), return_exceptions=True)

        error, user = await browser.do(work)
        assert isinstance(error, SessionTypeError)
        assert user == "Angga"


async def test_tools_can_look_at_a_call(browser: Browser) -> None:
    async def work(session: Session) -> None:
        call: Any = session.get("user")
        assert not hasattr(call, "__wrapped__")
        assert not hasattr(call, "cr_frame")
        assert call.__qualname__ == f"{SESSION}.get"
        task = asyncio.create_task(call)
        assert f"{SESSION}.get" in repr(task)
        await task

    await browser.do(work)


USES: dict[str, tuple[Callable[[Any], object], str]] = {
    "read": (lambda session: session["user"], f"write `await {SESSION}.get('user')`"),
    "write": (lambda session: session.__setitem__("user", 1), f"write `await {SESSION}.set('user', ...)`"),
    "delete": (lambda session: session.__delitem__("user"), f"write `await {SESSION}.delete('user')`"),
    "in": (lambda session: "user" in session, f"write `await {SESSION}.has('user')`"),
    "for": (list, f"write `await {SESSION}.all()`"),
    "len": (len, f"write `len(await {SESSION}.all())`"),
    "if": (bool, f"write `await {SESSION}.has(...)`"),
    "get": (lambda session: session.get(1), f"write `await {SESSION}.get('1')`"),
    "has": (lambda session: session.has(1), f"write `await {SESSION}.has('1')`"),
    "set": (lambda session: session.set(1, "a"), f"write `await {SESSION}.set('1', ...)`"),
    "delete a number": (lambda session: session.delete(1), f"write `await {SESSION}.delete('1')`"),
    "pop": (lambda session: session.pop(1), f"write `await {SESSION}.pop('1')`"),
    "update": (lambda session: session.update(1, str), f"write `await {SESSION}.update('1', ...)`"),
}


@pytest.mark.parametrize("name", USES)
async def test_a_session_that_is_used_as_a_dict_says_what_to_write(name: str, browser: Browser) -> None:
    use, fix = USES[name]

    async def work(session: Session) -> None:
        with pytest.raises(SessionUseError) as raised:
            use(session)
        assert fix in str(raised.value)
        assert "\n" not in str(raised.value)

    await browser.do(work)


async def test_a_session_takes_no_other_attributes(browser: Browser) -> None:
    async def work(session: Session) -> None:
        assert not hasattr(session, "user")
        assert getattr(session, "user", None) is None
        with pytest.raises(AttributeError):
            session.user = 1  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
        assert type(copy.copy(session)) is type(session)
        assert isinstance(repr(session), str)

    await browser.do(work)


def test_nothing_is_logged_when_python_ends(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        """
import asyncio, gaman
from gaman.session import session

sessions = session("a secret of the tests, long enough", {"type": "memory"})

async def main():
    global call
    app = gaman.App({}, integrations=[sessions])
    await app.load()
    call = sessions.list("user:1")
    await app.shutdown()

asyncio.run(main())
"""
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_a_forgotten_await_fails_behind_the_middleware_too(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        async def guard() -> bool:
            request: Any = SimpleNamespace(scope=scope)
            user: Any = (await get_session(request)).get("user")
            return user is None

        assert not await guard()
        if kind == "websocket":
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.send", "text": "the secret"})
        else:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"the secret"})

    exchange = Exchange()
    scope = http_scope(type=kind, scheme="https" if kind == "http" else "wss")
    await SessionMiddleware(application, sessions=session(SECRET))(scope, exchange.receive, exchange.send)
    if kind == "websocket":
        assert exchange.messages == [{"type": "websocket.close", "code": 1011}]
    else:
        assert (exchange.status, exchange.body) == (500, b"Internal Server Error")
    [line] = logged(caplog)
    assert "session.get(...) was never awaited: write `await` before it" in line


@pytest.mark.parametrize("end", ["kept", "awaited", "failed"])
async def test_a_call_of_an_open_websocket_is_logged_at_the_end_unless_the_handler_fails(
    end: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def application(scope: Any, receive: Any, send: Any) -> None:
        request: Any = SimpleNamespace(scope=scope)
        current = await get_session(request)
        await current.has("user")
        await send({"type": "websocket.accept"})
        KEPT.extend([current.get("user"), current.has("user")])
        if end == "failed":
            raise ConnectionError("the client has gone")
        if end == "awaited":
            assert await asyncio.gather(*KEPT) == [None, False]

    exchange = Exchange()
    handled = SessionMiddleware(application, sessions=session(SECRET))
    with suppress(ConnectionError):
        await handled(http_scope(type="websocket", scheme="wss"), exchange.receive, exchange.send)
    assert exchange.messages == [{"type": "websocket.accept", "headers": []}]
    lines = logged(caplog)
    KEPT.clear()
    assert logged(caplog) == lines
    names = [line.partition("(...) was never awaited: write `await` before it (")[0] for line in lines]
    assert names == (["session.get", "session.has"] if end == "kept" else [])
