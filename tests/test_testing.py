from __future__ import annotations

import importlib
import sys

import httpx
import pytest

from gaman import App, Context, MissingDependency, define_integration
from gaman.testing import TestClient

pytestmark = pytest.mark.anyio


async def show(ctx: Context) -> dict[str, object]:
    return {"method": ctx.method, "url": ctx.url, "body": await ctx.text()}


async def test_the_client_sends_requests_to_the_app_over_https() -> None:
    async with TestClient(App({"/x": show})) as client:
        response = await client.post("/x?a=1", content="hello")
    assert response.json() == {"method": "POST", "url": "https://testserver/x?a=1", "body": "hello"}


async def test_the_client_accepts_the_options_of_an_httpx_client() -> None:
    async with TestClient(App({"/": show}), base_url="http://example.com", headers={"host": "other.example"}) as client:
        assert isinstance(client, httpx.AsyncClient)
        assert (await client.get("/")).json()["url"] == "http://other.example/"


async def test_requests_run_between_load_and_shutdown() -> None:
    events: list[str] = []

    async def handler(ctx: Context) -> str:
        events.append("request")
        return "ok"

    integration = define_integration(
        name="x", on_load=lambda app: events.append("load"), on_shutdown=lambda app: events.append("shutdown")
    )
    app = App({"/": handler}, integrations=[integration])
    async with TestClient(app) as client:
        await client.get("/")
    assert events == ["load", "request", "shutdown"]


async def test_the_app_is_shut_down_if_the_test_fails() -> None:
    events: list[str] = []
    app = App({"/": show}, integrations=[define_integration(name="x", on_shutdown=lambda app: events.append("shutdown"))])
    with pytest.raises(RuntimeError, match="the test"):
        async with TestClient(app):
            raise RuntimeError("the test")
    assert events == ["shutdown"]


async def test_a_failed_load_fails_the_test() -> None:
    def on_load(app: App) -> None:
        raise ValueError("no store")

    with pytest.raises(ValueError, match="no store"):
        async with TestClient(App({"/": show}, integrations=[define_integration(name="x", on_load=on_load)])):
            pass


async def test_the_client_keeps_secure_cookies() -> None:
    async def visit(ctx: Context) -> str:
        seen = ctx.cookies.get("__Host-n") or "0"
        ctx.cookies.set("__Host-n", str(int(seen) + 1))
        return seen

    async with TestClient(App({"/": visit})) as client:
        assert [(await client.get("/")).text for _ in range(3)] == ["0", "1", "2"]


async def test_two_clients_do_not_share_cookies() -> None:
    async def visit(ctx: Context) -> str:
        seen = ctx.cookies.get("n") or "none"
        ctx.cookies.set("n", "1")
        return seen

    app = App({"/": visit})
    async with TestClient(app) as one, TestClient(app) as other:
        await one.get("/")
        assert (await other.get("/")).text == "none"


async def test_a_file_can_be_uploaded() -> None:
    async def upload(ctx: Context) -> list[object]:
        file = await ctx.file("f")
        assert file is not None
        return [await ctx.input("a"), file.filename, file.content_type, (await file.read()).decode()]

    async with TestClient(App({"/": upload})) as client:
        response = await client.post("/", data={"a": "1"}, files={"f": ("x.txt", b"content", "text/plain")})
    assert response.json() == ["1", "x.txt", "text/plain", "content"]


async def test_without_httpx_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "httpx", None)
    monkeypatch.delitem(sys.modules, "gaman.testing")
    with pytest.raises(MissingDependency, match="pip install httpx"):
        importlib.import_module("gaman.testing")


def test_pytest_does_not_collect_the_client_as_a_test() -> None:
    assert TestClient.__test__ is False
