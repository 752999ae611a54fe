"""The documentation site in a browser: as files, without a network, and as narrow as a phone."""

from __future__ import annotations

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from playwright.sync_api import Browser, expect

from guide.site import build

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if find_spec("zensical") is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)("there is no Zensical here; `make docs` installs it")
    return build.build(tmp_path_factory.mktemp("site"))


def test_search_works_in_files_and_asks_no_host(browser: Browser, home: Path) -> None:
    page = browser.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto((home.parent / "guide/security.html").as_uri())
    page.keyboard.press("Control+k")
    page.get_by_placeholder("Search").fill("set_owner")
    found = page.locator("a[href*='gaman.session/Session.html'][href$='#gaman.session.Session.set_owner']")
    expect(found).to_be_visible()
    found.click()
    expect(page.get_by_role("heading", name="set_owner")).to_be_in_viewport()
    assert [url for url in asked if not url.startswith("file:")] == []
    page.close()


@pytest.mark.parametrize("width", [390, 1280])
def test_no_page_is_wider_than_the_screen(width: int, browser: Browser, home: Path) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    wide: list[str] = []
    for path in ("index.html", "serving.html", "guide/deployment.html", "project/benchmarks.html", "reference/gaman/Context.html"):
        page.goto((home.parent / path).as_uri())
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            wide.append(path)
    page.close()
    assert wide == []
