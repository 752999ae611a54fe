"""A browser's treatment of the fields of CORS: which scripts of other origins may send a request, and read its response."""

from __future__ import annotations

import json
from collections.abc import Callable, Generator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from tests.serving import running_script

pytestmark = pytest.mark.e2e

PAGE = """
import gaman
async def page(ctx): return gaman.Response.html("<title>page</title>")
gaman.serve({"/": page}, port=0)
"""
API = """
import json, os, gaman
from gaman import HTTPError, Response
from gaman.cors import cors
from gaman.session import allow_cross_site, session

async def echo(ctx): return Response.json(await ctx.json(), headers={"x-total": "7"})
async def count(ctx): return str(await ctx.session.update("visits", lambda visits: visits + 1, 0))
async def guard(ctx):
    if ctx.header("authorization") is None:
        raise HTTPError(401, "log in")
async def fail(ctx): raise ValueError("no more")

put = {"PUT": [allow_cross_site, echo]}
routes = {"/echo": put, "/count": count, "/guarded/*": guard, "/guarded/echo": put, "/fail": fail}
sessions = session("a secret of the tests that is long enough", secure=False)
gaman.serve(routes, integrations=[cors(**json.loads(os.environ["CORS"])), sessions], port=0)
"""
FETCH = """async ([url, options]) => {
    try {
        const response = await fetch(url, options)
        return [response.status, await response.text(), response.headers.get("x-total")]
    } catch { return null }
}"""
JSON: dict[str, Any] = {"method": "PUT", "body": '{"a":1}', "headers": {"content-type": "application/json"}}

Call = Callable[..., Any]
"""Return the status, text and X-Total that a script of *origin* can read of *path*, or None if the browser refuses it."""


@pytest.fixture
def call(request: pytest.FixtureRequest, page: Page, tmp_path: Path) -> Generator[Call]:
    """Serve pages at one port, and at another an application whose options of cors() are the fixture's parameter."""
    with ExitStack() as stack:
        pages = stack.enter_context(running_script(PAGE, tmp_path, name="page.py"))
        options = json.dumps(request.param).replace("PORT", str(pages.port))
        api = stack.enter_context(running_script(API, tmp_path, env={"CORS": options}, name="api.py"))

        def call(path: str, origin: str = "app.a.test", **options: Any) -> Any:
            page.goto(f"http://{origin}:{pages.port}/")
            return page.evaluate(FETCH, [f"http://api.a.test:{api.port}{path}", options])

        yield call


ONE = {"origins": ["http://app.a.test:PORT"]}


@pytest.mark.parametrize("call", [{**ONE, "expose": ["X-Total"]}], indirect=True)
def test_a_script_of_an_allowed_origin_sends_and_reads_and_another_does_neither(call: Call) -> None:
    assert call("/echo", **JSON) == [200, '{"a":1}', "7"]
    assert call("/echo", "b.test", **JSON) is None
    assert call("/count", "b.test") is None
    # The script can read the errors too, and the preflight meets no guard.
    assert call("/fail") == [500, "Internal Server Error", None]
    assert call("/missing") == [404, "Not Found", None]
    # Without credentials, cors() doesn't let the origin act for users.
    assert call("/missing", **JSON) == [403, "cross-site request refused", None]
    assert call("/guarded/echo", **JSON) == [401, "log in", None]
    authorized = {**JSON, "headers": {**JSON["headers"], "authorization": "Bearer x"}}
    assert call("/guarded/echo", **authorized) == [200, '{"a":1}', "7"]


@pytest.mark.parametrize("call", [{**ONE, "methods": ["GET"], "headers": ["X-One"]}], indirect=True)
def test_a_method_or_header_that_is_not_listed_is_not_sent(call: Call) -> None:
    assert call("/echo", **JSON) is None
    assert call("/count", headers={"x-one": "1"}) == [200, "1", None]
    assert call("/count", headers={"x-two": "1"}) is None


@pytest.mark.parametrize("call", [{"origins": "*", "headers": "*"}], indirect=True)
def test_any_origin_may_read_what_needs_no_credentials(call: Call) -> None:
    for origin in ("app.a.test", "b.test"):
        assert call("/count", origin, headers={"x-any": "1", "authorization": "x"}) == [200, "1", None]
        assert call("/count", origin, credentials="include") is None


@pytest.mark.parametrize("call", [{"origins": ["http://*.a.test:PORT"], "credentials": True}], indirect=True)
def test_a_session_counts_across_origins_only_with_credentials(call: Call) -> None:
    assert [call("/count", credentials="include") for _ in range(2)] == [[200, "1", None], [200, "2", None]]
    assert call("/count", "shop.a.test", credentials="include") == [200, "3", None]
    assert call("/count") == [200, "1", None]
    assert call("/count", "b.test", credentials="include") is None
    # Such origins may also change things, and the requests of others don't reach the handler.
    assert call("/count", credentials="include", method="POST") == [200, "4", None]
    assert call("/count", "b.test", credentials="include", method="POST", mode="no-cors") == [0, "", None]
    assert call("/count", credentials="include") == [200, "5", None]
