"""A browser's treatment of the session's cookie: when it keeps it, shows it to scripts, sends it and removes it."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import quote

import pytest
from playwright.sync_api import BrowserContext, Page

from tests.e2e.sites import Serve, Site
from tests.serving import until

pytestmark = pytest.mark.e2e

DAY = 86_400


def names(header: str) -> set[str]:
    """Return the names of the cookies in a Cookie field."""
    return {pair.partition("=")[0] for pair in header.split("; ") if pair}


def send_cookie(site: Site, page: Page, line: str | bytes, host: str = "a.test") -> None:
    """Let the server at *host* send a cookie."""
    site.visit(page, f"/cookie?line={quote(line)}", host)


def lifetime(context: BrowserContext) -> float:
    """Return the seconds until the browser's only cookie expires; negative if it expires when the browser is closed."""
    [cookie] = context.cookies()
    return cookie.get("expires", 0) - time.time()


# Keeping it


@pytest.mark.parametrize("host", ["localhost", "localhost.", "shop.localhost", "127.0.0.1", "0.0.0.0", "a.test"])
def test_a_secure_cookie_over_plain_http_causes_a_warning_if_the_browser_drops_it(serve: Serve, page: Page, host: str) -> None:
    site = serve(tls=False)
    site.visit(page, "/login", host)
    is_kept = site.visit(page, "/profile", host) == "Angga"
    assert is_kept == (host not in ("0.0.0.0", "a.test"))
    assert ("will not keep it" in site.program.stderr) == (not is_kept)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"secure": False},
        {"domain": "a.test"},
        {"path": "/profile"},
        {"same_site": "strict"},
        {"same_site": "none", "partitioned": True},
        {"domain": "a.test", "path": "/profile"},
        {"cookie_name": "__Http-sid", "domain": "a.test"},
        {"driver": {"type": "memory"}, "cookie_name": "sid"},
    ],
    ids=str,
)
def test_a_login_is_kept_and_a_logout_removes_it_with_any_options(serve: Serve, page: Page, options: dict[str, Any]) -> None:
    site = serve(**options)
    site.visit(page, "/login")
    assert site.visit(page, "/profile") == "Angga"
    site.visit(page, "/profile/logout")
    assert page.context.cookies() == []
    assert site.visit(page, "/profile") == "nobody"


# Access to it


def test_the_cookie_is_sent_only_to_its_own_host_and_only_over_tls(serve: Serve, page: Page) -> None:
    site, plain = serve(), serve(tls=False)
    site.visit(page, "/login")
    [cookie] = page.context.cookies()
    kept = {name: value for name, value in cookie.items() if name not in ("value", "expires")}
    assert kept == {
        "name": "__Host-Http-gaman",
        "domain": "a.test",
        "path": "/",
        "secure": True,
        "httpOnly": True,
        "sameSite": "Lax",
    }
    assert names(site.visit(page, "/cookies")) == {"__Host-Http-gaman"}
    assert site.visit(page, "/cookies", "shop.a.test") == ""
    assert plain.visit(page, "/cookies") == ""


def test_a_script_can_neither_read_nor_replace_the_cookie(serve: Serve, page: Page) -> None:
    site = serve()
    site.visit(page, "/login")
    assert page.evaluate("document.cookie") == ""
    assert page.evaluate("cookieStore.getAll()") == []
    page.evaluate("document.cookie = '__Host-Http-gaman=mine; Secure; Path=/'")
    assert page.evaluate("cookieStore.set('__Host-Http-gaman', 'mine').catch(() => 'refused')") == "refused"
    page.evaluate("document.cookie = '__Host-Http-gaman=; Max-Age=0; Secure; Path=/'")
    assert site.visit(page, "/profile") == "Angga"
    # It can't create one either, although it could with only the prefix __Host-.
    page.context.clear_cookies()
    page.evaluate("document.cookie = '__Host-Http-gaman=mine; Secure; Path=/'")
    page.evaluate("document.cookie = '__Host-gaman=mine; Secure; Path=/'")
    assert site.visit(page, "/cookies") == "__Host-gaman=mine"


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "__Host-Http-gaman"),
        ({"partitioned": True, "same_site": "none"}, "__Host-Http-gaman"),
        ({"domain": "a.test"}, "__Secure-gaman"),
        ({"path": "/profile"}, "__Secure-gaman"),
        ({"secure": False}, "gaman"),
    ],
    ids=str,
)
def test_the_browser_keeps_the_cookie_under_the_strictest_name_that_its_attributes_allow(
    serve: Serve, page: Page, options: dict[str, Any], name: str
) -> None:
    site = serve(**options)
    site.visit(page, "/login")
    assert [cookie.get("name") for cookie in page.context.cookies()] == [name]


def test_no_other_host_can_plant_a_session(serve: Serve, context: BrowserContext, page: Page) -> None:
    site, plain = serve(), serve(tls=False)
    site.visit(page, "/login")
    token = site.visit(page, "/cookies").partition("=")[2]
    context.clear_cookies()
    # Names that a lenient parser would trim to the session's. A single octet isn't UTF-8; browsers send it unchanged.
    lookalikes = [
        prefix + b"__Host-Http-gaman" for prefix in (b"", b"\x85", b"\xa0", "\u2000".encode(), b"$Version=1,", b"x,", b"=")
    ]
    lookalikes += [b'"__Host-Http-gaman"', b"__host-http-gaman"]
    for name in lookalikes:
        send_cookie(plain, page, name + f"={token}; Path=/; HttpOnly".encode())
        send_cookie(site, page, name + f"={token}; Domain=a.test; Path=/; Secure; HttpOnly".encode(), "evil.a.test")
    sent = names(site.visit(page, "/cookies"))
    assert "x,__Host-Http-gaman" in sent
    assert "__Host-Http-gaman" not in sent
    assert site.visit(page, "/profile") == "nobody"
    # From the host itself and under the exact name, the same token is a session.
    send_cookie(site, page, f"__Host-Http-gaman={token}; Path=/; Secure; HttpOnly")
    assert site.visit(page, "/profile") == "Angga"


# Sending it

REQUESTS = {
    "a link": '<a href="{url}"><button>go</button></a>',
    "a form": '<form action="{url}" method="post"><button>go</button></form>',
}


@pytest.mark.parametrize(("same_site", "sent_with"), [("strict", []), ("lax", ["a link"]), ("none", ["a link", "a form"])])
def test_same_site_decides_which_requests_from_another_site_have_the_cookie(
    serve: Serve, page: Page, same_site: str, sent_with: list[str]
) -> None:
    # The form of another site is to show which cookies it has.
    site = serve(same_site=same_site, csrf=False)
    site.visit(page, "/login")
    # For two minutes, browsers also send a new cookie without the attribute with a form.
    send_cookie(site, page, "unsaid=1; Path=/; Secure")

    def go(host: str, kind: str) -> set[str]:
        site.visit(page, "/", host)
        page.set_content(REQUESTS[kind].format(url=site.url("/cookies")))
        page.get_by_role("button").click()
        page.wait_for_url("**/cookies")
        return names(page.inner_text("body"))

    assert "unsaid" in go("b.test", "a form")
    assert [kind for kind in REQUESTS if "__Host-Http-gaman" in go("b.test", kind)] == sent_with
    # A subdomain is the same site, so SameSite doesn't protect against it.
    assert [kind for kind in REQUESTS if "__Host-Http-gaman" in go("shop.a.test", kind)] == ["a link", "a form"]


def test_in_a_frame_of_another_site_a_partitioned_session_is_kept_only_for_that_site(serve: Serve, page: Page) -> None:
    site = serve(same_site="none", partitioned=True)
    site.visit(page, "/login")
    site.visit(page, "/", "b.test")
    page.set_content(f'<iframe name="frame" src="{site.url("/")}"></iframe>')
    frame = page.frame("frame")
    assert frame is not None
    assert site.visit(frame, "/profile") == "nobody"
    site.visit(frame, "/login")
    assert site.visit(frame, "/profile") == "Angga"
    site.visit(frame, "/logout")
    assert site.visit(frame, "/profile") == "nobody"
    assert site.visit(page, "/profile") == "Angga"


@pytest.mark.parametrize("driver", [{"type": "cookies"}, {"type": "sql", "file": "sessions.db"}], ids=lambda driver: driver["type"])
@pytest.mark.parametrize("before", [{"domain": "a.test"}, {"path": "/profile"}, {"partitioned": True}], ids=str)
def test_a_cookie_with_former_attributes_neither_locks_out_nor_survives_a_logout(
    serve: Serve, page: Page, driver: dict[str, Any], before: dict[str, Any]
) -> None:
    options: dict[str, Any] = {"driver": driver, "cookie_name": "sid", "same_site": "none"}
    old, new = serve(**options, **before), serve(**options)
    old.visit(page, "/login?name=old")
    # Without a store such a cookie is invalid; with one its session lasts until the logout.
    assert new.visit(page, "/profile") == ("nobody" if driver["type"] == "cookies" else "old")
    new.visit(page, "/profile/logout")
    assert new.visit(page, "/profile") == "nobody"
    new.visit(page, "/login?name=new")
    assert len(page.context.cookies()) == 2
    assert new.visit(page, "/profile") == "new"
    new.visit(page, "/profile/logout")
    assert len(page.context.cookies()) == 1
    assert new.visit(page, "/profile") == "nobody"


# Its size


@pytest.mark.parametrize("options", [{}, {"domain": "a.test", "same_site": "none", "partitioned": True}], ids=str)
def test_the_largest_session_in_a_cookie_comes_back_unchanged(serve: Serve, page: Page, options: dict[str, Any]) -> None:
    site = serve(**options)
    response = page.goto(site.url("/fill"))
    assert response is not None
    assert 4094 < len(response.header_value("set-cookie") or "") <= 4096
    size = page.inner_text("body")
    assert int(size) > 2900
    assert site.visit(page, "/filling") == size
    response = page.goto(site.url("/overfill"))
    assert response is not None
    assert response.status == 500
    assert site.visit(page, "/filling") == size


def test_the_largest_cookie_that_a_handler_may_send_is_the_largest_that_the_browser_keeps(serve: Serve, page: Page) -> None:
    site = serve()
    assert site.visit(page, "/size?size=4096") == "sent"
    assert len(site.visit(page, "/cookies")) == 4096 + len("=")
    assert "4097 bytes, and they keep 4096" in site.visit(page, "/size?size=4097")
    page.context.clear_cookies()
    send_cookie(site, page, "x" * 4096 + "=y; Path=/")
    assert site.visit(page, "/cookies") == ""


# Its lifetime


def test_the_browser_keeps_the_cookie_as_long_as_the_session_lives(serve: Serve, page: Page) -> None:
    site = serve()
    site.visit(page, "/login")
    assert lifetime(page.context) == pytest.approx(DAY, abs=60)
    site.visit(page, f"/login?max_age={30 * DAY}")
    assert lifetime(page.context) == pytest.approx(30 * DAY, abs=60)
    # A read doesn't send it again.
    [before] = page.context.cookies()
    site.visit(page, "/profile")
    assert page.context.cookies() == [before]


def test_the_browser_keeps_no_cookie_longer_than_the_400_days_of_the_warning(serve: Serve, page: Page) -> None:
    site = serve(max_age=401 * DAY)
    site.visit(page, "/login")
    assert lifetime(page.context) == pytest.approx(400 * DAY, abs=60)
    assert "400 days" in site.program.stderr


def test_the_browser_removes_the_cookie_when_the_session_has_expired(serve: Serve, page: Page) -> None:
    site = serve(max_age=1)
    site.visit(page, "/login")
    until(lambda: not page.context.cookies(), "the browser to remove the cookie")
    assert site.visit(page, "/profile") == "nobody"


def test_a_restart_of_the_browser_ends_only_sessions_with_max_age_0(
    serve: Serve, start_again: Callable[[], AbstractContextManager[BrowserContext]]
) -> None:
    site = serve(driver={"type": "memory"})
    with start_again() as context:
        site.visit(context.new_page(), "/login")
    with start_again() as context:
        page = context.new_page()
        assert site.visit(page, "/profile") == "Angga"
        # From now on it ends with the browser, although it began as a lasting one.
        site.visit(page, "/login?max_age=0")
        assert lifetime(context) < 0
        assert site.visit(page, "/profile") == "Angga"
    with start_again() as context:
        assert site.visit(context.new_page(), "/profile") == "nobody"
