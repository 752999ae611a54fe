"""Sites whose sessions are in cookies, with a store of ended sessions; has no tests."""

from __future__ import annotations

from typing import Any

from gaman.session import Driver, Session
from tests.session.sites import Browser, Site, setting

OWNER = "user:1"


def in_cookies(store: Driver) -> dict[str, Any]:
    return {"type": "cookies", "ended": store}


async def log_out(session: Session) -> None:
    await session.logout()


async def log_in(session: Session) -> None:
    await session.login(OWNER)


async def confirm(session: Session) -> None:
    await session.confirm()


async def regenerate(session: Session) -> None:
    await session.regenerate()


async def owner_of(session: Session) -> str | None:
    return await session.owner()


async def handle_of(session: Session) -> str | None:
    return session.id


async def logged_in(site: Site, **values: Any) -> Browser:
    browser = site.browser()
    await browser.do(log_in)
    if values:
        await browser.do(setting(**values))
    return browser
