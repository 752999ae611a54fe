"""csrf_token() and check_csrf(): a form has a token of its session."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from gaman import App, ConfigError, Context
from gaman.session import Driver, Session, check_csrf, session
from gaman.testing import TestClient
from tests.session.sites import SECRET, Browser, Clock, Recording, Site, gaman_only, opened, serving, setting

pytestmark = pytest.mark.anyio


async def token_of(session: Session) -> str:
    return await session.csrf_token()


async def log_in(session: Session) -> None:
    await session.login("user:1")


async def confirm(session: Session) -> None:
    await session.confirm()


async def regenerate(session: Session) -> None:
    await session.regenerate()


async def log_out(session: Session) -> None:
    await session.logout()


async def is_valid(browser: Browser, token: Any) -> bool:
    async def work(session: Session) -> bool:
        return await session.is_csrf_token(token)

    valid: bool = await browser.do(work)
    return valid


async def logged_in(site: Site) -> Browser:
    browser = site.browser()
    await browser.do(log_in)
    return browser


async def test_a_token_is_valid_in_its_session(site: Site) -> None:
    for browser in (site.browser(), await logged_in(site)):
        token = await browser.do(token_of)
        assert await is_valid(browser, token)
        assert await is_valid(browser, token)


async def test_each_token_is_another_text(site: Site) -> None:
    browser = await logged_in(site)
    first, second = await browser.do(token_of), await browser.do(token_of)
    assert first != second
    assert await is_valid(browser, first)
    assert await is_valid(browser, second)


async def test_a_token_of_another_session_is_invalid(site: Site) -> None:
    token = await (await logged_in(site)).do(token_of)
    for other in (site.browser(), await logged_in(site)):
        assert not await is_valid(other, token)
    visitor = site.browser()
    await visitor.do(token_of)
    assert not await is_valid(visitor, token)


async def test_the_token_of_a_visitor_is_invalid_after_the_login(site: Site) -> None:
    browser = site.browser()
    token = await browser.do(token_of)
    await browser.do(log_in)
    assert not await is_valid(browser, token)


async def test_forms_of_other_tabs_work_after_a_confirmation_and_a_new_id(site: Site) -> None:
    browser = await logged_in(site)
    token = await browser.do(token_of)
    await browser.do(confirm)
    assert await is_valid(browser, token)
    await browser.do(regenerate)
    assert await is_valid(browser, token)


async def test_a_token_is_invalid_after_the_logout_and_the_next_login(site: Site) -> None:
    browser = await logged_in(site)
    token = await browser.do(token_of)
    await browser.do(log_out)
    assert not await is_valid(browser, token)
    await browser.do(log_in)
    assert not await is_valid(browser, token)


async def test_a_session_with_values_stores_nothing_for_its_tokens(clock: Clock) -> None:
    driver = Recording()
    async with serving(Site(driver, clock)) as site:
        browser = site.browser()
        await browser.do(setting(cart=[1]))
        driver.events.clear()
        token = await browser.do(token_of)
        assert driver.events == ["load"]
        assert await is_valid(browser, token)
        await browser.do(log_in)
        driver.events.clear()
        await browser.do(token_of)
        assert driver.events == ["load"]


async def test_the_token_of_a_visitor_with_a_new_id_in_the_same_request_is_valid(site: Site) -> None:
    browser = site.browser()
    await browser.do(setting(cart=[1]))

    async def work(session: Session) -> str:
        await session.regenerate()
        return await session.csrf_token()

    assert await is_valid(browser, await browser.do(work))


async def test_a_visitors_token_is_no_login(site: Site) -> None:
    browser = site.browser()
    await browser.do(token_of)

    async def work(session: Session) -> Any:
        return await session.owner(), session.authenticated_at, await session.is_fresh(300), await session.all()

    assert await browser.do(work) == (None, None, False, {})


@pytest.mark.parametrize("token", ["", "x", "!" * 40, "A" * 44, "A" * 10_000, "\ud800", None, 1, b"x"])
async def test_a_malformed_token_is_invalid(site: Site, token: Any) -> None:
    assert not await is_valid(await logged_in(site), token)


async def test_a_token_of_an_older_secret_is_valid(store: Driver, clock: Clock) -> None:
    async with serving(Site(store, clock)) as site:
        browser = await logged_in(site)
        token = await browser.do(token_of)
        rotated = Site(opened(store), clock, secret=["a newer secret that is long enough too", SECRET])
        async with serving(rotated):
            assert await is_valid(rotated.browser(browser.token), token)


@pytest.fixture
async def client() -> AsyncIterator[TestClient]:
    async def form(ctx: Context) -> str:
        return await ctx.session.csrf_token()

    async def transfer(ctx: Context) -> str:
        return "transferred"

    routes: Any = {"/form": form, "/transfer": {"POST": [check_csrf, transfer]}}
    async with TestClient(App(routes, integrations=[session(SECRET, {"type": "memory"}, secure=False)])) as client:
        yield client


@gaman_only
async def test_a_form_needs_its_token(client: TestClient) -> None:
    token = (await client.get("/form")).text
    accepted: dict[str, Any]
    refused: dict[str, Any]
    for accepted in (
        {"data": {"csrf_token": token}},
        {"files": {"file": b"x"}, "data": {"csrf_token": token}},
        {"headers": {"x-csrf-token": token}, "json": {}},
        {"headers": {"x-csrf-token": token}},
    ):
        assert (await client.post("/transfer", **accepted)).text == "transferred"
    for refused in (
        {},
        {"json": {"csrf_token": token}},
        {"data": {"csrf_token": "x"}},
        {"data": {"csrf_token": token}, "headers": {"x-csrf-token": "x"}},
        {"content": b"{", "headers": {"content-type": "application/json"}},
    ):
        response = await client.post("/transfer", **refused)
        assert response.status_code == 403
        assert response.text == "the form is too old: reload its page, and send it again"


@gaman_only
async def test_a_page_needs_no_token() -> None:
    async def page(ctx: Context) -> str:
        return "page"

    routes: Any = {"*": check_csrf, "/": {"GET": page, "POST": page}}
    async with TestClient(App(routes, integrations=[session(SECRET, {"type": "memory"}, secure=False)])) as client:
        assert (await client.get("/")).text == "page"
        assert (await client.head("/")).status_code == 200
        assert (await client.post("/")).status_code == 403


@gaman_only
async def test_a_token_without_its_cookie_is_refused(client: TestClient) -> None:
    token = (await client.get("/form")).text
    client.cookies.clear()
    assert (await client.post("/transfer", data={"csrf_token": token})).status_code == 403


def form_app(*, debug: bool = False) -> App:
    async def change(ctx: Context) -> str:
        return "changed"

    return App({"/form": {"POST": [check_csrf, change]}}, integrations=[session(SECRET)], debug=debug)


def test_a_page_that_sends_no_token_is_named_in_the_log_once(caplog: pytest.LogCaptureFixture) -> None:
    with TestClient(form_app()) as client:
        for data in ({"csrf_token": "of an old form"}, {"name": "tea"}, {"name": "tea"}):
            response = client.post("/form", data=data)
            assert (response.status_code, response.text) == (403, "the form is too old: reload its page, and send it again")
    [message] = caplog.messages
    assert message.startswith("POST '/form' was answered 403, because it has no token for check_csrf (logged once); put a hidden ")


def test_with_debug_the_response_names_the_missing_token_too(caplog: pytest.LogCaptureFixture) -> None:
    with TestClient(form_app(debug=True)) as client:
        assert "; put a hidden input `csrf_token` with " in client.post("/form").text
        assert "put a hidden" not in client.post("/form", data={"csrf_token": "old"}).text


def test_the_missing_integration_is_named_also_for_a_request_without_a_token() -> None:
    async def change(ctx: Context) -> str:
        return "changed"

    with (
        TestClient(App({"/form": {"POST": [check_csrf, change]}})) as client,
        pytest.raises(ConfigError, match=r"session\(\.\.\.\)"),
    ):
        client.post("/form")
