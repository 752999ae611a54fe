"""The example's page on http://localhost, used by its buttons."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from playwright.sync_api import BrowserContext, Page, expect

from tests.e2e.sites import Site
from tests.serving import running

pytestmark = pytest.mark.e2e

WORKFLOW = Path(__file__).parents[2] / "examples" / "workflow.py"


@pytest.fixture
def workflow(tmp_path: Path) -> Generator[Site]:
    with running(str(WORKFLOW), cwd=tmp_path, env={"PORT": "0"}) as program:
        yield Site(program, "http")


def click(page: Page, button: str, status: str, *texts: str) -> None:
    page.get_by_role("button", name=button).click()
    method = "POST" if button in ("Log in", "Log out") else "GET"
    expect(page.locator("#asked")).to_have_text(re.compile(f"^{method} /"))
    expect(page.locator("#status")).to_have_text(status)
    for text in texts:
        expect(page.locator("#body")).to_contain_text(text)


def test_a_user_stays_logged_in_after_a_reload_until_the_logout(workflow: Site, page: Page) -> None:
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    body, came, seen = page.locator("#body"), page.locator("#came"), page.locator("#seen")
    workflow.visit(page, host="localhost")
    expect(body).to_contain_text('"hasUser": false')
    click(page, "Profile", "401 Unauthorized", "Not authenticated")

    click(page, "Log in", "200 OK", "logged in", "Angga")
    expect(page.locator("#attributes")).to_contain_text("__Host-Http-gaman=...")
    expect(seen).to_have_text("Nothing: document.cookie does not show it.")

    page.reload()
    expect(body).to_contain_text('"hasUser": true')
    expect(came).to_have_text("Yes.")
    expect(page.locator("#set")).to_have_text("No: nothing changed.")
    click(page, "Profile", "200 OK", "angga@example.com")
    click(page, "Check", "200 OK", '"isAuthenticated": true')

    click(page, "Log out", "200 OK", "logged out")
    click(page, "Profile", "401 Unauthorized", "Not authenticated")
    expect(came).to_have_text("No: there was none to send.")
    page.reload()
    expect(body).to_contain_text('"hasUser": false')
    expect(page.locator("#hint")).to_be_hidden()
    assert errors == []


def test_a_login_survives_a_restart_of_the_browser(
    workflow: Site, start_again: Callable[[], AbstractContextManager[BrowserContext]]
) -> None:
    with start_again() as context:
        page = context.new_page()
        workflow.visit(page, host="localhost")
        click(page, "Log in", "200 OK", "logged in")
    with start_again() as context:
        page = context.new_page()
        workflow.visit(page, host="localhost")
        click(page, "Profile", "200 OK", "angga@example.com")


def test_the_page_and_the_server_report_that_the_browser_drops_the_cookie(workflow: Site, page: Page) -> None:
    workflow.visit(page, host="a.test")
    click(page, "Log in", "200 OK", "logged in")
    expect(page.locator("#hint")).to_contain_text("did not keep the cookie")
    click(page, "Profile", "401 Unauthorized")
    assert "the browser will not keep it" in workflow.program.stderr
