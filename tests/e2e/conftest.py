"""A real Chromium: one with a new profile for each test, or one that restarts with the profile of its last run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, Playwright, sync_playwright

from tests.e2e.sites import Certificate, Serve, Site, make_certificate, site

_NAMES = ("chromium", "chromium-browser", "google-chrome")
CHROMIUM = os.environ.get("GAMAN_TEST_CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)
MISSING = "there is no Chromium here: apt-get install chromium, or name one in GAMAN_TEST_CHROMIUM"


def pytest_report_header() -> str:
    return f"browser: {CHROMIUM or MISSING}"


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    return make_certificate(tmp_path_factory.mktemp("certificate"))


# While it runs, no other event loop can run in this thread, so it ends with the module.
@pytest.fixture(scope="module")
def playwright() -> Generator[Playwright]:
    with sync_playwright() as playwright:
        yield playwright


@pytest.fixture(scope="module")
def chromium(certificate: Certificate) -> dict[str, Any]:
    """The options that start Chromium; without it tests are skipped, or fail in CI."""
    if CHROMIUM is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(MISSING)
    return {
        "executable_path": CHROMIUM,
        "args": [
            "--disable-quic",
            "--host-resolver-rules=MAP *.test 127.0.0.1",
            f"--ignore-certificate-errors-spki-list={certificate.trust}",
        ],
    }


@pytest.fixture(scope="module")
def browser(chromium: dict[str, Any], playwright: Playwright) -> Generator[Browser]:
    # As users have it: the back button restores a page from memory, if the page allows that.
    with playwright.chromium.launch(**chromium, ignore_default_args=["--disable-back-forward-cache"]) as browser:
        yield browser


@pytest.fixture
def context(browser: Browser) -> Generator[BrowserContext]:
    """A new profile of one person; its pages are tabs, which share cookies."""
    with browser.new_context() as context:
        yield context


@pytest.fixture
def page(context: BrowserContext) -> Page:
    return context.new_page()


@pytest.fixture
def start_again(
    chromium: dict[str, Any], playwright: Playwright, tmp_path: Path
) -> Callable[[], AbstractContextManager[BrowserContext]]:
    """Return a function that starts a separate browser with the profile of its last run."""
    return lambda: playwright.chromium.launch_persistent_context(tmp_path / "profile", **chromium)


@pytest.fixture
def serve(certificate: Certificate, tmp_path: Path) -> Generator[Serve]:
    with ExitStack() as stack:

        def serve(*, tls: bool = True, **options: Any) -> Site:
            return stack.enter_context(site(tmp_path, certificate if tls else None, options))

        yield serve
