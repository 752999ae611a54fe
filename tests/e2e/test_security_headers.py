"""The fields of headers() in a browser: which scripts run, who may frame or open a page, and what other sites learn."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from playwright.sync_api import Page, expect

from tests.e2e.sites import Certificate, Site
from tests.serving import running_script

pytestmark = pytest.mark.e2e

SCRIPT = """
import os
import gaman
from gaman import Context, Response
from gaman.headers import headers


async def page(ctx: Context) -> Response:
    nonce = ctx.locals["csp_nonce"]
    return Response.html(
        "<!doctype html><title>start</title><link rel=icon href='data:,'><p id=said>nothing</p>"
        f"<style nonce={nonce}>p {{ color: rgb(1, 2, 3) }}</style><style>p {{ color: rgb(9, 9, 9) }}</style>"
        f"<script nonce={nonce}>said.textContent = 'with a nonce'</script>"
        "<script>said.textContent = 'injected'</script><img src=/no onerror=\\"said.textContent = 'injected'\\">"
        "<base href='https://b.test/'><script src=/app.js></script>"
        "<form action='https://b.test/'><button>Send</button></form>"
    )


async def app_js(ctx: Context) -> Response:
    return Response("document.title = 'from this site'", content_type="text/javascript")


async def upload(ctx: Context) -> Response:
    return Response("document.title = 'an upload'", content_type="text/plain")


async def outside(ctx: Context) -> Response:
    # A page of another site, whose own policy allows everything.
    own = {"content-security-policy": "default-src * 'unsafe-inline'", "cross-origin-opener-policy": "unsafe-none"}
    html = f"<!doctype html><title>outside</title><iframe src='{ctx.query['framed']}'></iframe><script src=/upload></script>"
    return Response.html(html, headers=own | {"referrer-policy": "unsafe-url"})


async def referer(ctx: Context) -> str:
    return ctx.header("referer") or "none"


async def leave(ctx: Context) -> Response:
    return Response.html(f"<!doctype html><title>leave</title><a href='{ctx.query['to']}'>Leave</a>")


async def shared_js(ctx: Context) -> Response:
    own = {"cross-origin-resource-policy": "cross-origin"}
    return Response("document.title = 'shared'", content_type="text/javascript", headers=own)


routes = {"/": page, "/app.js": app_js, "/shared.js": shared_js, "/upload": upload, "/outside": outside}
routes |= {"/referer": referer, "/leave": leave}
integrations = [headers(csp={"img_src": "'self' data:"})]
gaman.serve(routes, integrations=integrations, port=0, ssl_certfile=os.environ["CERTIFICATE"])
"""


@pytest.fixture(scope="module")
def served(certificate: Certificate, tmp_path_factory: pytest.TempPathFactory) -> Generator[Site]:
    folder = tmp_path_factory.mktemp("site")
    with running_script(SCRIPT, folder, env={"CERTIFICATE": str(certificate.path)}) as program:
        yield Site(program, "https")


def test_inline_code_runs_only_with_the_nonce_and_scripts_come_only_from_the_site(served: Site, page: Page) -> None:
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text) if message.type == "error" else None)
    served.visit(page)
    expect(page).to_have_title("from this site")
    expect(page.locator("#said")).to_have_text("with a nonce")
    expect(page.locator("#said")).to_have_css("color", "rgb(1, 2, 3)")
    # The base, the style, the script and the handler that have no nonce
    assert {directive for text in refused for directive in ("base-uri", "style-src", "script-src") if directive in text} == {
        "base-uri",
        "style-src",
        "script-src",
    }
    # Not a click, after which Playwright waits for the page that the form leads to.
    with page.expect_console_message(lambda message: "form-action" in message.text):
        page.evaluate("document.forms[0].requestSubmit()")
    assert page.url == served.url()


def test_another_site_cannot_frame_a_page_and_an_upload_is_no_script(served: Site, page: Page) -> None:
    refused: list[str] = []
    page.on("console", lambda message: refused.append(message.text) if message.type == "error" else None)
    served.visit(page, f"/outside?framed={served.url()}", host="b.test")
    expect(page).to_have_title("outside")
    assert page.frames[1].locator("#said").count() == 0
    assert any("frame-ancestors" in text for text in refused)
    assert any("nosniff" in text or "MIME type" in text for text in refused)


def test_a_site_that_opens_a_page_cannot_reach_its_window(served: Site, page: Page) -> None:
    served.visit(page, f"/outside?framed={served.url('/outside?framed=about:blank', 'b.test')}", host="b.test")
    for path, is_reachable in {"/": False, "/outside?framed=about:blank": True}.items():
        with page.context.expect_page() as opened:
            page.evaluate("url => { window.opened = window.open(url) }", served.url(path))
        opened.value.wait_for_load_state()
        assert page.evaluate("window.opened.closed") is not is_reachable
        assert opened.value.evaluate("window.opener !== null") is is_reachable


@pytest.mark.parametrize("host", ["b.test", "shop.a.test"], ids=["cross-site", "same-site"])
def test_a_page_of_another_origin_embeds_only_what_is_meant_for_it(served: Site, page: Page, host: str) -> None:
    load = """url => new Promise(resolve => document.head.append(
        Object.assign(document.createElement("script"), {src: url, onload: () => resolve(true), onerror: () => resolve(false)})))"""
    served.visit(page, "/outside?framed=about:blank", host=host)
    assert page.evaluate(load, served.url("/app.js")) is False
    assert page.title() == "outside"
    assert page.evaluate(load, served.url("/shared.js")) is True
    assert page.title() == "shared"
    assert page.evaluate(load, served.url("/app.js", host)) is True
    assert page.title() == "from this site"


def test_another_site_learns_nothing_of_the_pages_url(served: Site, page: Page) -> None:
    for host, learned in {"b.test": "none", "a.test": served.url("/leave?to=/referer")}.items():
        path = "/referer" if host == "a.test" else served.url("/referer", host)
        served.visit(page, f"/leave?to={path}")
        page.get_by_role("link").click()
        expect(page.locator("body")).to_have_text(learned)


def test_after_the_first_visit_the_browser_uses_only_https_for_the_host_and_its_subdomains(served: Site, page: Page) -> None:
    served.visit(page)
    for host in ("a.test", "shop.a.test"):
        page.goto(served.url(host=host).replace("https:", "http:"))
        assert page.url == served.url(host=host)
