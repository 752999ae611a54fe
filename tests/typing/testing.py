"""A user's tests: read by mypy and pyright, never run."""

from collections.abc import AsyncIterator, Iterator
from datetime import datetime
from typing import Any, assert_type

import httpx
import pytest
from msgspec import Struct

from gaman import App, Context
from gaman.session import Session, session
from gaman.session.testing import later
from gaman.testing import SyncSession, SyncTestClient, TestClient


class User(Struct):
    name: str


async def front(ctx: Context) -> str:
    return "Hello"


sessions = session()
app = App({"/": front}, integrations=[sessions])


async def application(scope: dict[str, Any], receive: object, send: object) -> None:
    """Any ASGI application."""


@pytest.fixture
def client() -> Iterator[SyncTestClient]:
    with TestClient(app, raise_errors=False, base_url="https://shop.example", headers={"a": "b"}) as client:
        yield client


@pytest.fixture
async def async_client() -> AsyncIterator[TestClient]:
    async with TestClient(application, follow_redirects=True) as client:
        yield client


def test_without_await(client: SyncTestClient) -> None:
    assert_type(client.get("/"), httpx.Response)
    with later(sessions, 301) as nothing:
        assert_type(nothing, None)
    with client.session("/shop") as opened:
        assert_type(opened, SyncSession)
        assert_type(opened.get("user"), Any)
        assert_type(opened.get("user", type=User), User | None)
        assert_type(opened.get("user", User("visitor"), type=User), User)
        assert_type(opened.has("user"), bool)
        assert_type(opened.all(), dict[str, Any])
        assert_type(opened.update("n", lambda _: 1, 0), int)
        assert_type(opened.id, str | None)
        assert_type(opened.expires_at, datetime | None)
        opened.set("user", User("Angga"))
        opened.login("user:1", max_age=60, note="a phone", fresh=True)
        opened.confirm(2)
        assert_type(opened.owner(), str | None)
        assert_type(opened.is_fresh(300, level=2), bool)
        assert_type(opened.authenticated_at, datetime | None)
        assert_type(opened.csrf_token(), str)
        assert_type(opened.is_csrf_token("a token"), bool)
        opened.set_owner("user:1", note="a phone")
        opened.regenerate(max_age=60)
        opened.logout()
    assert_type(client.call(sessions.count, "user:1"), int)
    client.call(sessions.count, owner="user:1")


async def test_with_await(async_client: TestClient) -> None:
    assert_type(await async_client.get("/"), httpx.Response)
    async with async_client.session() as opened:
        assert_type(opened, Session)
        await opened.set("user", User("Angga"))
        assert_type(await opened.get("user", type=User), User | None)
