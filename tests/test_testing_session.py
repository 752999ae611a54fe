from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from gaman import App, ConfigError, Context, HTTPError, Integration, Response
from gaman.session import (
    Driver,
    SessionClosed,
    SessionLoginRequired,
    SessionSerializationError,
    SessionStoreError,
    SessionTypeError,
    SessionUnsupported,
    SessionUseError,
    check_csrf,
    session,
)
from gaman.testing import SyncTestClient, TestClient
from tests.servers import RedisServer
from tests.session.sites import DRIVERS, SECRET

anyio = pytest.mark.anyio


async def profile(ctx: Context) -> dict[str, Any]:
    return {"user": await ctx.session.get("user"), "id": ctx.session.id}


async def add(ctx: Context) -> list[str]:
    return await ctx.session.update("cart", lambda cart: [*cart, "tea"], [])


def shop(driver: Driver | dict[str, Any] | None = None, **options: Any) -> App:
    return App({"/profile": profile, "/cart": add}, integrations=[session(SECRET, driver or {"type": "memory"}, **options)])


@pytest.fixture(params=DRIVERS)
def driver(request: pytest.FixtureRequest) -> Any:
    return DRIVERS[request.param]() or {"type": "cookies"}


@pytest.fixture
def client() -> Iterator[SyncTestClient]:
    with TestClient(shop()) as client:
        yield client


@anyio
async def test_a_test_logs_in_reads_and_logs_out_with_each_driver(driver: Any) -> None:
    async with TestClient(shop(driver)) as client:
        async with client.session() as opened:
            assert await opened.get("user") is None
            await opened.set("user", 1)
        assert (await client.get("/profile")).json()["user"] == 1

        await client.post("/cart")
        async with client.session() as opened:
            assert await opened.all() == {"user": 1, "cart": ["tea"]}
            await opened.regenerate(max_age=60)
            await opened.set("user", 2)
        assert (await client.get("/profile")).json()["user"] == 2

        async with client.session() as opened:
            await opened.clear()
        assert not client.cookies
        assert (await client.get("/profile")).json() == {"user": None, "id": None}


def test_a_synchronous_test_does_the_same_with_each_driver(driver: Any) -> None:
    with TestClient(shop(driver)) as client:
        with client.session() as opened:
            assert opened.get("user") is None
            opened.set("user", 1)
        assert client.get("/profile").json()["user"] == 1

        client.post("/cart")
        with client.session() as opened:
            assert opened.all() == {"user": 1, "cart": ["tea"]}
            opened.regenerate(max_age=60)
            opened.set("user", 2)
        assert client.get("/profile").json()["user"] == 2

        with client.session() as opened:
            opened.clear()
        assert not client.cookies
        assert client.get("/profile").json() == {"user": None, "id": None}


async def account(ctx: Context) -> dict[str, Any]:
    return {"owner": await ctx.session.owner(), "is_fresh": await ctx.session.is_fresh(300, level=2)}


async def transfer(ctx: Context) -> str:
    return "transferred"


def bank(driver: Driver | dict[str, Any]) -> App:
    routes: Any = {"/account": account, "/transfer": [check_csrf, transfer]}
    return App(routes, integrations=[session(SECRET, driver)])


@anyio
async def test_a_test_logs_in_confirms_and_logs_out_with_each_driver(driver: Any) -> None:
    async with TestClient(bank(driver)) as client:
        async with client.session() as opened:
            assert (await opened.owner(), opened.authenticated_at) == (None, None)
            await opened.login("user:1", max_age=60, note="a phone")
        assert (await client.get("/account")).json() == {"owner": "user:1", "is_fresh": False}

        before = dict(client.cookies)
        async with client.session() as opened:
            await opened.confirm(level=2)
            token = await opened.csrf_token()
            assert await opened.is_csrf_token(token)
        assert dict(client.cookies) != before
        assert (await client.get("/account")).json() == {"owner": "user:1", "is_fresh": True}
        assert (await client.post("/transfer", data={"csrf_token": token})).text == "transferred"

        async with client.session() as opened:
            await opened.logout()
        assert not client.cookies
        assert (await client.get("/account")).json() == {"owner": None, "is_fresh": False}
        assert (await client.post("/transfer", data={"csrf_token": token})).status_code == 403


def test_a_synchronous_test_logs_in_confirms_and_logs_out_with_each_driver(driver: Any) -> None:
    with TestClient(bank(driver)) as client:
        with client.session() as opened:
            assert (opened.owner(), opened.authenticated_at, opened.is_fresh(300)) == (None, None, False)
            opened.login("user:1", max_age=60, note="a phone")
            opened.set("cart", ["tea"])
        assert client.get("/account").json() == {"owner": "user:1", "is_fresh": False}

        before = dict(client.cookies)
        with client.session() as opened:
            assert (opened.owner(), opened.is_fresh(300), opened.is_fresh(300, level=2)) == ("user:1", True, False)
            assert opened.created_at is not None
            assert opened.expires_at == opened.created_at + timedelta(seconds=60)
            logged_in_at = opened.authenticated_at
            opened.confirm(2)
            assert opened.is_fresh(300, level=2)
            assert logged_in_at is not None
            assert opened.authenticated_at is not None
            assert opened.authenticated_at > logged_in_at
            token = opened.csrf_token()
            assert (opened.is_csrf_token(token), opened.is_csrf_token("another")) == (True, False)
        assert dict(client.cookies) != before
        assert client.get("/account").json() == {"owner": "user:1", "is_fresh": True}
        assert client.post("/transfer", data={"csrf_token": token}).text == "transferred"

        with client.session() as opened:
            opened.login("user:1", fresh=True)
            assert opened.all() == {}
        with client.session() as opened:
            opened.logout()
        assert not client.cookies
        assert client.get("/account").json() == {"owner": None, "is_fresh": False}


def test_a_login_is_listed_with_its_note_and_ended_by_its_owner() -> None:
    sessions = session(SECRET, {"type": "memory"})
    app = App({"/account": account}, integrations=[sessions])
    with TestClient(app) as phone, TestClient(app) as laptop:
        for device in (phone, laptop):
            with device.session() as opened:
                opened.login("user:1", note="a device")
        assert [each.note for each in phone.call(sessions.list, "user:1")] == ["a device"] * 2
        assert phone.call(sessions.end_all, "user:1") == 2
        assert laptop.get("/account").json()["owner"] is None


class User(msgspec.Struct):
    name: str


def test_each_call_of_a_session_works_without_await(client: SyncTestClient) -> None:
    with client.session() as opened:
        assert (opened.is_new, opened.id, opened.created_at, opened.expires_at) == (True, None, None, None)
        opened.set("user", User("Angga"))
        assert opened.get("user", type=User) == User("Angga")
        assert opened.get("none", 7) == 7
        assert (opened.has("user"), opened.has("none")) == (True, False)
        assert opened.update("n", lambda n: n + 1, 0) == 1
        assert (opened.pop("n"), opened.pop("n", "gone")) == (1, "gone")
        opened.set("x", 1)
        opened.delete("x")
        opened.save()
    with client.session() as opened:
        assert opened.all() == {"user": {"name": "Angga"}}
        assert opened.is_new is False
        assert opened.id == client.get("/profile").json()["id"]
        assert opened.created_at is not None
        assert opened.expires_at == opened.created_at + timedelta(days=1)


def test_the_errors_of_a_session_are_its_own(client: SyncTestClient) -> None:
    with client.session() as opened:
        with pytest.raises(SessionSerializationError):
            opened.set("user", object())
        with pytest.raises(SessionUseError):
            opened.update("cart", lambda cart: cart.append("tea"), [])
        opened.set("user", 1)
        with pytest.raises(SessionTypeError):
            opened.get("user", type=User)
        with pytest.raises(SessionUseError, match="an owner is text"):
            opened.login("")
        with pytest.raises(SessionLoginRequired):
            opened.confirm()
    changes: list[Callable[[], None]] = [lambda: opened.set("user", 2), lambda: opened.login("user:1"), opened.logout]
    for change in changes:
        with pytest.raises(SessionClosed):
            change()
    with TestClient(shop({"type": "cookies"})) as other, other.session() as opened, pytest.raises(SessionUnsupported):
        opened.set_owner("user:1")


def test_a_session_belongs_to_its_owner_in_the_store() -> None:
    sessions = session(SECRET, {"type": "memory"})
    app = App({"/profile": profile}, integrations=[sessions])
    with TestClient(app) as phone, TestClient(app) as laptop:
        for device in (phone, laptop):
            with device.session() as opened:
                opened.set("user", 1)
                opened.set_owner("user:1", note="a device")
        assert [each.note for each in phone.call(sessions.list, "user:1")] == ["a device"] * 2
        assert phone.call(sessions.end_all, "user:1") == 2
        assert laptop.get("/profile").json()["user"] is None


def test_no_guard_hook_or_host_stops_it() -> None:
    async def guard(ctx: Context) -> Response:
        raise HTTPError(403)

    def refuse(ctx: Context, *_: object) -> Response:
        raise HTTPError(403)

    gate = Integration(name="csrf", priority="very-high", on_request=refuse, on_response=refuse, on_error=refuse)
    app = App({"*": guard}, integrations=[gate, session(SECRET, {"type": "memory"})], allowed_hosts=["shop.example"])
    with TestClient(app) as client:
        with client.session() as opened:
            opened.set("user", 1)
        with client.session() as opened:
            assert opened.get("user") == 1
        assert client.get("/").status_code == 400


@anyio
@pytest.mark.parametrize("error", [ValueError("the test"), HTTPError(404)], ids=["ValueError", "HTTPError"])
async def test_an_exception_in_the_block_drops_the_changes(error: Exception) -> None:
    async def change(client: TestClient) -> None:
        async with client.session() as opened:
            await opened.set("user", 1)
            raise error

    async def update_and_change(client: TestClient) -> None:
        async with client.session() as opened:
            await opened.update("cart", lambda _: ["tea"])
            await opened.set("user", 1)
            raise error

    async with TestClient(shop()) as client:
        with pytest.raises(type(error)) as raised:
            await change(client)
        assert raised.value is error
        assert not client.cookies
        # What update() has written stays, and the client has its cookie, as after a request that fails.
        with pytest.raises(type(error)):
            await update_and_change(client)
        async with client.session() as opened:
            assert await opened.all() == {"cart": ["tea"]}


@pytest.mark.parametrize("kind", [ValueError, pytest.fail.Exception])
def test_an_exception_in_a_synchronous_block_drops_the_changes(kind: type[BaseException], client: SyncTestClient) -> None:
    def change() -> None:
        with client.session() as opened:
            opened.set("user", 1)
            raise kind("the test")

    with pytest.raises(kind, match="the test"):
        change()
    assert client.get("/profile").json()["user"] is None


def test_a_forgotten_await_in_the_block_raises() -> None:
    async def forgetting(client: TestClient) -> None:
        async with client, client.session() as opened:
            opened.has("user")  # pyright: ignore[reportUnusedCoroutine]

    with pytest.raises(SessionUseError, match=re.escape("ctx.session.has(...) was never awaited")):
        asyncio.run(forgetting(TestClient(shop())))


def test_a_login_without_await_in_the_block_raises() -> None:
    async def forgetting(client: TestClient) -> None:
        async with client, client.session() as opened:
            opened.login("user:1")  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]

    with pytest.raises(SessionUseError, match=re.escape("ctx.session.login(...) was never awaited")):
        asyncio.run(forgetting(TestClient(shop())))


def test_without_the_integration_the_usual_error_is_raised() -> None:
    said = re.escape("ctx.session needs the session integration")
    with TestClient(App({"/profile": profile})) as client, pytest.raises(ConfigError, match=said), client.session():
        pass


def test_another_application_has_no_session_for_the_client() -> None:
    app = shop()

    async def middleware(scope: Any, receive: Any, send: Any) -> None:
        await app(scope, receive, send)

    said = r"needs an App, not .*middleware.*; pass the App itself"
    with TestClient(middleware) as client, pytest.raises(ConfigError, match=said), client.session():
        pass


def test_a_cookie_with_a_path_belongs_to_the_urls_below_it() -> None:
    with TestClient(App({"/admin/*": profile}, integrations=[session(SECRET, {"type": "memory"}, path="/admin")])) as client:
        with client.session("/admin") as opened:
            opened.set("user", 1)
        with client.session("/admin/users") as opened:
            assert opened.get("user") == 1
        with client.session() as opened:
            assert opened.get("user") is None
        assert client.get("/admin/users").json()["user"] == 1


def test_a_store_that_fails_raises_its_error() -> None:
    with RedisServer() as server, TestClient(shop({"type": "redis", "url": server.url, "timeout": 1})) as client:
        with client.session() as opened:
            opened.set("user", 1)
        server.kill()
        with pytest.raises(SessionStoreError), client.session() as opened:
            opened.set("user", 2)
        # In a request, the same error is a response.
        assert client.get("/profile").status_code == 503
