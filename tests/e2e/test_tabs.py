"""One person with several tabs: concurrent requests, late responses, and pages in the history."""

from __future__ import annotations

from typing import Any

import pytest
from playwright.sync_api import BrowserContext, Page, Playwright

from tests.e2e.sites import Serve

pytestmark = pytest.mark.e2e

ON_SERVER = {"type": "sql"}


def begin(page: Page, path: str) -> None:
    """Let a script of the page request *path*, without waiting for the response."""
    page.evaluate("path => { window.response = fetch(path).then(response => response.text()) }", path)


def finish(page: Page) -> str:
    text: str = page.evaluate("response")
    return text


def test_two_tabs_that_write_concurrently_lose_nothing(serve: Serve, context: BrowserContext) -> None:
    site = serve(driver=ON_SERVER)
    one, other = context.new_page(), context.new_page()
    site.visit(one, "/login")
    site.visit(other)
    # Neither gets a response before both requests have read the session.
    begin(one, "/put/one")
    begin(other, "/put/other")
    assert (finish(one), finish(other)) == ("kept", "kept")
    assert site.visit(one, "/keys") == '["one","other","user"]'


@pytest.mark.parametrize(
    ("driver", "slow", "user"),
    [
        ("sql", "/slow/read", "nobody"),
        ("sql", "/slow/read", "guest"),
        ("sql", "/slow/write-if-known", "guest"),
        ("cookies", "/slow/read", "nobody"),
        ("cookies", "/slow/read", "guest"),
    ],
)
def test_a_late_response_after_the_login_does_not_log_out(
    serve: Serve, context: BrowserContext, driver: str, slow: str, user: str
) -> None:
    site = serve(driver={"type": driver})
    one, other = context.new_page(), context.new_page()
    site.visit(one, "/login?name=guest" if user == "guest" else "/")
    begin(one, slow)
    site.visit(other, "/wait")
    site.visit(other, "/login")
    [cookie] = context.cookies()
    site.visit(other, "/go-on")
    assert finish(one) == user
    assert context.cookies() == [cookie]
    assert site.visit(one, "/profile") == site.visit(other, "/profile") == "Angga"


def test_a_late_response_after_the_logout_does_not_log_in(serve: Serve, context: BrowserContext) -> None:
    site = serve(driver=ON_SERVER)
    one, other = context.new_page(), context.new_page()
    site.visit(one, "/login")
    begin(one, "/slow/write-if-known")
    site.visit(other, "/wait")
    site.visit(other, "/logout")
    site.visit(other, "/go-on")
    assert finish(one) == "Angga"
    assert context.cookies() == []
    assert site.visit(one, "/keys") == "[]"


def test_a_logout_in_one_tab_logs_the_other_out(serve: Serve, context: BrowserContext) -> None:
    site = serve()
    one, other = context.new_page(), context.new_page()
    site.visit(one, "/login")
    assert site.visit(other, "/profile") == "Angga"
    site.visit(one, "/logout")
    other.reload()
    assert other.inner_text("body") == "nobody"


def go_back(page: Page) -> str:
    # A page that is restored from memory fires no load event.
    page.go_back(wait_until="commit")
    return page.inner_text("body")


@pytest.mark.parametrize("in_tab", ["the same tab", "another tab"])
def test_the_back_button_shows_nothing_private_after_a_logout(serve: Serve, context: BrowserContext, in_tab: str) -> None:
    site = serve()
    one, other = context.new_page(), context.new_page()
    site.visit(one, "/login")
    site.visit(one, "/profile")
    one.evaluate("document.body.append(', as it was left')")
    site.visit(one)
    assert go_back(one) == "Angga, as it was left"
    site.visit(one if in_tab == "the same tab" else other, "/logout")
    if in_tab == "another tab":
        one.go_forward(wait_until="commit")
    assert go_back(one) == "nobody"


def test_the_browsers_cache_shows_nothing_private_after_a_logout(
    serve: Serve, playwright: Playwright, chromium: dict[str, Any]
) -> None:
    site = serve()
    # This browser restores no page from memory: it loads each page again, from its cache if that is allowed.
    with playwright.chromium.launch(**chromium) as browser:
        page = browser.new_page()
        site.visit(page, "/login")
        # The handler allows the browser to cache this page, and the browser does.
        seen = site.visit(page, "/profile/cached")
        site.visit(page)
        assert go_back(page) == seen
        site.visit(page, "/logout")
        assert "nobody" in go_back(page)
