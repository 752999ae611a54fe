"""Two processes on one store, with clocks that are half a minute apart, agree on the order of events and on expiry."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple
from uuid import uuid4

import pytest

from tests import servers
from tests.faults.site_under_load import Visitor
from tests.serving import Program, get, running_script, until

APART = 30
"""Seconds between the two clocks."""
SLACK = 0.5
"""Seconds by which their times for sessions may differ on a busy machine; on an idle one it is a few milliseconds."""
IDLE = 10

SITE = f"""
import asyncio, json, os
import gaman
from gaman.session import session

async def begin(ctx):
    await ctx.session.set("key", "value")
    await ctx.session.save()
    await ctx.session.get("key")
    return {{"began": ctx.session.created_at.timestamp(), "expires": ctx.session.expires_at.timestamp()}}

async def show(ctx):
    return await ctx.session.all()

async def login(ctx):
    await ctx.session.set_owner(ctx.params["owner"])
    await ctx.session.set("user", ctx.params["owner"])
    if ctx.query.get("waits"):
        print("in flight", flush=True)
        await go_on.wait()
    return "logged in"

async def end_all(ctx):
    await sessions.end_all(ctx.params["owner"])
    return "ended"

async def let_go(ctx):
    go_on.set()
    return "goes on"

go_on = asyncio.Event()
routes = {{"/begin": begin, "/all": show, "/login/:owner": login, "/end_all/:owner": end_all, "/let_go": let_go}}
sessions = session("a secret of the tests that is long enough", json.loads(os.environ["DRIVER"]), idle_timeout={IDLE}, secure=False)
gaman.serve(routes, integrations=[sessions], port=0)
"""


class Pair(NamedTuple):
    """The same site on a machine with the right clock, and on one whose clock is *ahead*."""

    right: Program
    ahead: Program


def faked(seconds: int) -> dict[str, str]:
    """Return the environment of a program whose clock is *seconds* ahead, except for the monotonic one."""
    command = shutil.which("faketime")
    if command is None and not os.environ.get("CI"):
        pytest.skip("there is no faketime: apt-get install faketime")
    assert command
    # Found without the command, which fails if a killed program left a semaphore under the pid that the command gets.
    prefix = Path(command).resolve().parents[1]
    [library] = (path for folder in ("lib*/faketime", "lib/*/faketime") for path in prefix.glob(f"{folder}/libfaketime.so.1"))
    return {"LD_PRELOAD": str(library), "FAKETIME": f"+{seconds}s", "DONT_FAKE_MONOTONIC": "1"}


@pytest.fixture(params=["redis", "mongodb"])
def pair(request: pytest.FixtureRequest, tmp_path: Path) -> Generator[Pair]:
    driver: dict[str, Any] = {
        "redis": lambda: {"type": "redis", "url": servers.redis_url()},
        "mongodb": lambda: {"type": "mongodb", "uri": servers.mongodb_uri(), "db_name": "gaman_test"},
    }[request.param]()
    with ExitStack() as stack:
        programs: list[Program] = []
        for name, env in (("right", {}), ("ahead", faked(APART))):
            folder = tmp_path / name
            folder.mkdir()
            programs.append(stack.enter_context(running_script(SITE, folder, env={"DRIVER": json.dumps(driver), **env})))
        for program in programs:
            assert program.port
        yield Pair(*programs)


@pytest.fixture
def owner() -> str:
    return f"owner-{uuid4()}"


def holds(visitor: Visitor, port: int) -> bool:
    """Return whether the process at *port* finds the visitor's session."""
    visitor.port = port
    response = visitor.get("/all")
    assert response.status == 200, response
    return response.body != b"{}"


def test_the_clock_that_is_ahead_is_a_warning_at_start_up(pair: Pair) -> None:
    assert "ahead of that of the" in pair.ahead.stderr
    assert "NTP" in pair.ahead.stderr
    assert "ahead of" not in pair.right.stderr + pair.right.stdout


def test_a_login_after_the_end_of_all_by_the_other_process_works_at_once(pair: Pair, owner: str) -> None:
    for here, there in (pair, reversed(pair)):
        assert get(here.port, f"/end_all/{owner}").status == 200
        visitor = Visitor(there.port)

        def logs_in(visitor: Visitor = visitor, port: int = there.port) -> bool:
            visitor.port = port
            return visitor.get(f"/login/{owner}").status == 200 and holds(visitor, port)

        until(logs_in, "a login to work")
        assert holds(visitor, here.port)
        # Earlier logins are ended, in whichever process they happened.
        assert get(there.port, f"/end_all/{owner}").status == 200
        assert not holds(visitor, here.port)
        assert not holds(visitor, there.port)


def test_a_login_in_flight_is_dropped_by_the_end_of_all_in_the_other_process(pair: Pair, owner: str) -> None:
    for here, there in (pair, reversed(pair)):
        visitor = Visitor(there.port)
        with ThreadPoolExecutor() as pool:
            coming = pool.submit(visitor.get, f"/login/{owner}?waits=1")
            until(lambda: "in flight" in there.stdout, "the login to be in flight")  # noqa: B023 - it is called at once
            time.sleep(SLACK)
            assert get(here.port, f"/end_all/{owner}").status == 200
            assert get(there.port, "/let_go").status == 200
            assert coming.result().status == 200
        assert visitor.cookie is None or not holds(visitor, here.port)
        assert "end_all() ended the sessions of its owner" in there.stderr + there.stdout


def test_sessions_begin_and_expire_by_one_clock(pair: Pair) -> None:
    times = [json.loads(Visitor(program.port).get("/begin").body) for program in (*pair, *pair)]
    for what in ("began", "expires"):
        for before, after in pairwise(times):
            assert before[what] < after[what] + SLACK, what


def test_an_idle_session_is_alive_in_one_process_as_long_as_in_the_other(pair: Pair) -> None:
    for here, there in (pair, reversed(pair)):
        visitor = Visitor(here.port)
        assert visitor.get("/begin").status == 200
        assert holds(visitor, there.port)
        assert holds(visitor, here.port)
