"""Two browsers with one account: each lists both, and logs the other out."""

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


def log_in(site: Site, page: Page) -> None:
    site.visit(page, host="localhost")
    page.get_by_role("button", name="Log in").click()
    expect(page.get_by_role("heading")).to_have_text("Devices of angga")


def test_each_device_lists_both_and_logs_the_other_out(devices: Site, phone: Page, desk: Page) -> None:
    log_in(devices, phone)
    log_in(devices, desk)
    rows = phone.get_by_role("listitem")
    phone.reload()
    expect(rows).to_have_text([re.compile(r"a phone \(this device\)"), re.compile("a desk")])
    expect(rows.nth(1)).not_to_contain_text("this device")

    rows.nth(1).get_by_role("button", name="Log out").click()
    expect(rows).to_have_text([re.compile("a phone")])
    desk.reload()
    expect(desk.get_by_role("button", name="Log in")).to_be_visible()

    log_in(devices, desk)
    desk.get_by_role("button", name="Log out all others").click()
    expect(desk.get_by_role("listitem")).to_have_text([re.compile(r"a desk \(this device\)")])
    phone.reload()
    expect(phone.get_by_role("button", name="Log in")).to_be_visible()
