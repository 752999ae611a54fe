"""later(): a test looks at its application after some time."""

from __future__ import annotations

from typing import Any

import pytest

from gaman import App, Context, define_routes
from gaman.session import SessionUseError, require_fresh, session
from gaman.session.testing import later
from gaman.testing import SyncTestClient, TestClient
from tests.session.sites import SECRET


async def show(ctx: Context) -> str:
    return str(await ctx.session.owner())


ROUTES = define_routes({"/": show, "/email": [require_fresh(300), show]})


def log_in(client: SyncTestClient) -> None:
    with client.session() as visitors:
        visitors.login("user:1")


def test_a_login_is_no_longer_fresh_later(driver: Any) -> None:
    sessions = session(SECRET, driver)
    with TestClient(App(ROUTES, integrations=[sessions])) as client:
        log_in(client)
        with later(sessions, 290):
            assert client.get("/email").status_code == 200
            with later(sessions, 20):
                assert client.get("/email").status_code == 401
                assert client.get("/").text == "user:1"
                with client.session() as visitors:
                    visitors.confirm()
                assert client.get("/email").status_code == 200


def test_the_time_is_right_again_after_the_block(driver: Any) -> None:
    sessions = session(SECRET, driver)
    with TestClient(App(ROUTES, integrations=[sessions])) as client:
        log_in(client)
        with pytest.raises(ZeroDivisionError), later(sessions, 301):
            raise ZeroDivisionError
        assert client.get("/email").status_code == 200


@pytest.mark.parametrize("limit", ["max_age", "idle_timeout"])
def test_a_session_expires_later(driver: Any, limit: str) -> None:
    limits: dict[str, Any] = {limit: 60}
    sessions = session(SECRET, driver, **limits)
    with TestClient(App(ROUTES, integrations=[sessions])) as client:
        log_in(client)
        with later(sessions, 61):
            assert client.get("/").text == "None"


def test_an_app_has_no_clock() -> None:
    app: Any = App(ROUTES)
    with pytest.raises(SessionUseError, match=r"^later\(\) takes what session\(\) returns, not an App$"), later(app, 1):
        pass


@pytest.mark.parametrize("seconds", ["5", None, -1, float("nan"), float("inf"), 1e20, True])
def test_a_time_that_can_not_be_later_raises(seconds: Any) -> None:
    with pytest.raises(SessionUseError, match="takes a number of seconds"), later(session(SECRET), seconds):
        pass
