"""The page of `make demo` on http://localhost, used by its buttons."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

import pytest
from playwright.sync_api import Browser, BrowserContext, Locator, Page, expect

from tests.e2e.sites import Site
from tests.serving import running

pytestmark = pytest.mark.e2e

DEMO = Path(__file__).parents[2] / "examples" / "demo.py"


@pytest.fixture
def driver(request: pytest.FixtureRequest) -> str:
    return str(getattr(request, "param", "memory"))


@pytest.fixture
def demo(driver: str, tmp_path: Path) -> Generator[Site]:
    with running(str(DEMO), cwd=tmp_path, env={"PORT": "0", "DRIVER": driver}) as program:
        yield Site(program, "http")


@pytest.fixture(autouse=True)
def no_errors(page: Page) -> Generator[None]:
    """Fail the test at the end if a script of its page failed, or the page's policy refused something."""
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if "Content Security Policy" in message.text else None)
    yield
    assert errors == []


def click(page: Page, button: str, status: str, *texts: str) -> None:
    page.locator(".buttons").get_by_role("button", name=button).click()
    method = "POST" if button in ("Log in", "Log out") else "GET"
    expect(page.locator("#asked")).to_have_text(re.compile(f"^{method} /"))
    expect(page.locator("#status")).to_have_text(status)
    for text in texts:
        expect(page.locator("#body")).to_contain_text(text)


def test_a_user_stays_logged_in_after_a_reload_until_the_logout(demo: Site, page: Page) -> None:
    body, came, seen = page.locator("#body"), page.locator("#came"), page.locator("#seen")
    demo.visit(page, host="localhost")
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


def test_a_login_survives_a_restart_of_the_browser(
    demo: Site, start_again: Callable[[], AbstractContextManager[BrowserContext]]
) -> None:
    with start_again() as context:
        page = context.new_page()
        demo.visit(page, host="localhost")
        click(page, "Log in", "200 OK", "logged in")
    with start_again() as context:
        page = context.new_page()
        demo.visit(page, host="localhost")
        click(page, "Profile", "200 OK", "angga@example.com")


def test_the_page_and_the_server_report_that_the_browser_drops_the_cookie(demo: Site, page: Page) -> None:
    demo.visit(page, host="a.test")
    click(page, "Log in", "200 OK", "logged in")
    expect(page.locator("#hint")).to_contain_text("did not keep the cookie")
    click(page, "Profile", "401 Unauthorized")
    assert "the browser will not keep it" in demo.program.stderr


def run(page: Page, panel: str) -> Locator:
    """Press the button of a *panel*, and return the results once they are there."""
    page.locator(panel).get_by_role("button").click()
    results = page.locator(f"{panel} .pill")
    expect(results.first).to_be_visible()
    return results


@pytest.mark.parametrize(
    ("driver", "items", "counted"),
    [
        ("memory", "2 of 2 items: bread and tea", "10 of 10 counted"),
        # Without a store, the later of two responses replaces the cookie of the other.
        ("cookies", re.compile("^1 of 2 items: "), re.compile("^[1-9] of 10 counted")),
    ],
    indirect=["driver"],
)
def test_concurrent_requests_keep_all_changes_if_there_is_a_store(
    demo: Site, page: Page, items: str | re.Pattern[str], counted: str | re.Pattern[str]
) -> None:
    demo.visit(page, host="localhost")
    expect(run(page, "#updates")).to_have_text([items, counted])
    expect(page.locator("#updates .result")).to_contain_text("Each read an empty cart before the other wrote.")


@pytest.mark.parametrize(
    ("driver", "verdict", "state"),
    [
        ("memory", "Its write was dropped: still logged out", "You are logged out"),
        ("cookies", "It has logged you in again", "You are logged in"),
    ],
    indirect=["driver"],
)
def test_a_logout_is_final_for_a_request_in_flight_if_there_is_a_store(demo: Site, page: Page, verdict: str, state: str) -> None:
    demo.visit(page, host="localhost")
    expect(run(page, "#logout")).to_have_text(verdict)
    expect(page.locator("#logout .result")).to_contain_text("The request had read: Angga.")
    expect(page.locator("#state")).to_have_text(state)


def test_a_logout_in_one_tab_shows_in_the_other(demo: Site, context: BrowserContext, page: Page) -> None:
    demo.visit(page, host="localhost")
    with context.expect_page() as opened:
        page.get_by_role("link", name="Another tab").click()
    other = opened.value
    click(page, "Log in", "200 OK", "logged in")
    for tab in (other, page):
        expect(tab.locator("#state")).to_have_text("You are logged in")
    click(other, "Log out", "200 OK", "logged out")
    expect(page.locator("#state")).to_have_text("You are logged out")


def test_a_logout_everywhere_ends_the_sessions_of_all_devices(demo: Site, browser: Browser, page: Page) -> None:
    demo.visit(page, host="localhost")
    click(page, "Log in", "200 OK", "logged in")
    # In the browser of the other device, the page's link leads to the same server under its other name.
    link = page.locator("#elsewhere")
    expect(link).to_have_text(f"127.0.0.1:{demo.program.port}")
    with page.context.expect_page() as opened:
        link.click()
    with browser.new_context() as private:
        elsewhere, window = opened.value, private.new_page()
        demo.visit(window, host="localhost")
        for device in (elsewhere, window):
            expect(device.locator("#state")).to_have_text("You are logged out")
            click(device, "Log in", "200 OK", "logged in")
        expect(page.locator("#list li")).to_have_text(
            [re.compile("localhost.* \\(this device\\)$"), re.compile("127"), re.compile("localhost")]
        )
        expect(run(window, "#devices")).to_have_text("3 sessions ended")
        for device in (page, elsewhere, window):
            expect(device.locator("#state")).to_have_text("You are logged out")
            expect(device.locator("#list li")).to_have_count(0)


@pytest.mark.parametrize("driver", ["cookies"], indirect=True)
def test_the_page_says_that_a_driver_without_a_store_keeps_none_of_the_promises(demo: Site, page: Page) -> None:
    demo.visit(page, host="localhost")
    expect(page.locator("#no-store")).to_contain_text("It has no store, so it keeps none of the three promises")
    click(page, "Log in", "200 OK", "logged in")
    expect(run(page, "#devices")).to_contain_text("501: the cookies driver has no store")
    expect(page.locator("#state")).to_have_text("You are logged in")


@pytest.mark.parametrize("width", [390, 1280])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_fits_the_window(demo: Site, browser: Browser, width: int, scheme: Literal["light", "dark"]) -> None:
    with browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme) as context:
        page = context.new_page()
        demo.visit(page, host="localhost")
        click(page, "Log in", "200 OK", "logged in")
        run(page, "#updates")
        assert page.evaluate("document.documentElement.scrollWidth") == width
        is_dark = page.evaluate("parseInt(getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0]) < 128")
        assert is_dark == (scheme == "dark")


def test_the_page_reports_that_the_server_has_stopped(demo: Site, page: Page) -> None:
    demo.visit(page, host="localhost")
    expect(page.locator("#state")).to_have_text("You are logged out")
    demo.program.stop()
    expect(page.locator("#state")).to_have_text("The server does not answer")
    expect(run(page, "#updates")).to_have_text("The server does not answer.")
