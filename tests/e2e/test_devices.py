"""An account in two browsers: each ends the other's session after a confirmation, and another site can do neither."""

from __future__ import annotations

import re
from collections.abc import Generator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.e2e.sites import Site
from tests.serving import running

pytestmark = pytest.mark.e2e

DEVICES = Path(__file__).parents[2] / "examples" / "devices.py"


@pytest.fixture
def devices(tmp_path: Path) -> Generator[Site]:
    with running(str(DEVICES), cwd=tmp_path, env={"PORT": "0"}) as program:
        yield Site(program, "http")


@pytest.fixture
def phone(browser: Browser) -> Generator[Page]:
    with browser.new_context(user_agent="a phone") as context:
        yield context.new_page()


@pytest.fixture
def desk(browser: Browser) -> Generator[Page]:
    with browser.new_context(user_agent="a desk") as context:
        yield context.new_page()


def click(page: Page, button: str) -> None:
    page.get_by_role("button", name=button, exact=True).click()


def log_in(site: Site, page: Page) -> None:
    site.visit(page, host="localhost")
    click(page, "Log in")
    expect(page.get_by_role("heading")).to_have_text("Your account")


def show_devices(site: Site, page: Page) -> None:
    """Open the list, which asks for the password once, and leads back."""
    site.visit(page, host="localhost")
    page.get_by_role("link", name="Your devices").click()
    expect(page.get_by_role("heading")).to_have_text("Is it you?")
    click(page, "Confirm")
    expect(page.get_by_role("heading")).to_have_text("Your devices")
    assert page.url == site.url("/devices", "localhost")


def is_out(page: Page) -> None:
    page.reload()
    expect(page.get_by_role("button", name="Log in", exact=True)).to_be_visible()


def test_each_device_lists_both_and_logs_the_other_out(devices: Site, phone: Page, desk: Page) -> None:
    log_in(devices, phone)
    log_in(devices, desk)
    show_devices(devices, phone)
    rows = phone.get_by_role("listitem")
    expect(rows).to_have_text([re.compile(r"a phone \(this device\)"), re.compile("a desk")])
    expect(rows.nth(1)).not_to_contain_text("this device")

    rows.nth(1).get_by_role("button", name="Log out").click()
    expect(rows).to_have_text([re.compile("a phone")])
    is_out(desk)

    log_in(devices, desk)
    show_devices(devices, desk)
    click(desk, "Log out all others")
    expect(desk.get_by_role("listitem")).to_have_text([re.compile(r"a desk \(this device\)")])
    is_out(phone)

    log_in(devices, phone)
    click(desk, "Log out everywhere")
    expect(desk.get_by_role("heading")).to_have_text("Log in")
    is_out(phone)


def test_every_page_of_the_account_shows_its_logout_and_the_back_button_none_after_it(devices: Site, phone: Page) -> None:
    log_in(devices, phone)
    logout = phone.get_by_role("navigation").get_by_role("button", name="Log out")
    for path in ("/", "/confirm"):
        devices.visit(phone, path, "localhost")
        expect(logout).to_be_visible()
    show_devices(devices, phone)
    expect(logout).to_be_visible()
    logout.click()
    expect(phone.get_by_role("heading")).to_have_text("Log in")
    # Chromium restores the page that a login or a confirmation has led to, although its response was no-store.
    phone.go_back(wait_until="commit")
    expect(phone.get_by_role("heading")).to_have_text("Log in")
    expect(phone.get_by_role("navigation")).to_have_count(0)


def test_another_site_neither_logs_the_user_out_nor_in_as_another(devices: Site, phone: Page) -> None:
    log_in(devices, phone)
    for button in ("Log you out", "Log you in as Mallory"):
        devices.visit(phone, host="localhost")
        phone.get_by_role("link", name="another site").click()
        expect(phone).to_have_title("Another site")
        assert phone.url == devices.url("/elsewhere", "127.0.0.1")
        click(phone, button)
        expect(phone.locator("body")).to_have_text("cross-site request refused")
        assert phone.url.startswith(devices.url("/log", "localhost"))
        devices.visit(phone, host="localhost")
        expect(phone.get_by_role("navigation")).to_contain_text("angga")
