"""A browser's requests from pages of other sites: refused by their Sec-Fetch-Site, or over plain HTTP by their Origin."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.sites import Serve, Site

pytestmark = pytest.mark.e2e

REFUSED = "cross-site request refused"


def post(page: Page, action: str) -> str:
    """Send a form from the page that is open, and return the text of the next one."""
    page.evaluate(
        """action => {
            const form = Object.assign(document.createElement("form"), {method: "post", action})
            document.body.append(form)
            form.submit()
        }""",
        action,
    )
    page.wait_for_url(action)
    return page.inner_text("body")


@pytest.fixture(params=[True, False], ids=["https", "http"])
def site(request: pytest.FixtureRequest, serve: Serve) -> Site:
    return serve(tls=request.param, secure=request.param, same_site="none" if request.param else "lax")


def test_a_form_of_the_own_origin_is_taken(site: Site, page: Page) -> None:
    site.visit(page)
    assert post(page, site.url("/login")) == "welcome"
    assert site.visit(page, "/profile") == "Angga"


@pytest.mark.parametrize("host", ["b.test", "shop.a.test"], ids=["cross-site", "same-site"])
def test_a_form_of_another_origin_neither_logs_in_nor_out(site: Site, page: Page, host: str) -> None:
    site.visit(page, host=host)
    assert post(page, site.url("/login?name=attacker")) == REFUSED
    assert site.visit(page, "/profile") == "nobody"
    assert page.context.cookies() == []
    site.visit(page, "/login")
    site.visit(page, host=host)
    assert post(page, site.url("/logout")) == REFUSED
    assert site.visit(page, "/profile") == "Angga"


def test_a_script_of_another_origin_changes_nothing(site: Site, page: Page) -> None:
    site.visit(page, "/login")
    site.visit(page, host="b.test")
    send = "url => fetch(url, {method: 'POST', mode: 'no-cors', credentials: 'include'}).then(response => response.type)"
    assert page.evaluate(send, site.url("/logout")) == "opaque"
    assert site.visit(page, "/profile") == "Angga"


def test_a_form_in_a_sandbox_is_refused(serve: Serve, page: Page) -> None:
    site = serve(same_site="none")
    site.visit(page, "/login")
    page.evaluate(
        """action => {
            const frame = document.createElement("iframe")
            frame.sandbox = "allow-forms allow-scripts"
            frame.srcdoc = `<form method=post action="${action}"></form><script>document.forms[0].submit()</script>`
            document.body.append(frame)
        }""",
        site.url("/logout"),
    )
    # Playwright often misses the request, because the frame moves to another process, so the server's log has to tell its origin.
    expect(page.frame_locator("iframe").locator("body")).to_have_text(REFUSED)
    assert "'/logout' was answered 403, because a page of an unknown origin sent it" in site.program.stderr
    assert site.visit(page, "/profile") == "Angga"


def test_a_link_of_another_site_leads_here(site: Site, page: Page) -> None:
    site.visit(page, "/login")
    site.visit(page, host="b.test")
    with page.expect_navigation():
        page.evaluate("url => { location.href = url }", site.url("/profile"))
    assert page.inner_text("body") == "Angga"


def follow(page: Page, url: str) -> str:
    """Follow a link to *url* from the page that is open, and return the text of the next page."""
    with page.expect_navigation():
        page.evaluate("url => document.body.appendChild(Object.assign(document.createElement('a'), {href: url})).click()", url)
    return page.inner_text("body")


def test_a_guarded_get_is_taken_only_from_a_link_or_a_script_of_its_own_origin(serve: Serve, page: Page) -> None:
    site = serve(same_site="none")
    guarded, refused = site.url("/guarded/logout"), "only a page of this site may send this request"
    site.visit(page, "/login")
    for host in ("b.test", "shop.a.test"):
        site.visit(page, host=host)
        assert follow(page, guarded) == refused
    assert site.visit(page, "/guarded/logout") == refused
    site.visit(page)
    for tag in ("img", "iframe", "script"):
        with page.expect_response(guarded) as answered:
            page.evaluate(
                "([tag, src]) => { document.body.append(Object.assign(document.createElement(tag), {src})) }", [tag, guarded]
            )
        assert answered.value.status == 403, tag
    assert site.visit(page, "/profile") == "Angga"
    site.visit(page)
    follow(page, guarded)
    assert page.url == site.url()
    assert site.visit(page, "/profile") == "nobody"
    site.visit(page, "/login")
    assert page.evaluate("url => fetch(url).then(response => response.status)", guarded) == 200
    assert site.visit(page, "/profile") == "nobody"


def test_a_page_of_a_trusted_origin_may_send_forms(serve: Serve, page: Page) -> None:
    trusted = serve()
    site = serve(trusted_origins=[trusted.url("", "b.test").removesuffix("/")])
    trusted.visit(page, host="b.test")
    assert post(page, site.url("/login")) == "welcome"
    trusted.visit(page, host="shop.b.test")
    assert post(page, site.url("/login")) == REFUSED


def test_a_page_with_no_referrer_may_still_post_to_its_own_site(serve: Serve, page: Page) -> None:
    site = serve()
    site.visit(page)
    page.evaluate("document.head.append(Object.assign(document.createElement('meta'), {name: 'referrer', content: 'no-referrer'}))")
    with page.expect_request(site.url("/login")) as sent:
        assert post(page, site.url("/login")) == "welcome"
    assert sent.value.all_headers()["origin"] == "null"
