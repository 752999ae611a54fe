"""Applications that were written for Starlette's SessionMiddleware, with Authlib and sqladmin, move without a changed handler."""

from __future__ import annotations

import base64
import hashlib
import socket
import warnings
from collections.abc import Generator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Thread
from types import ModuleType
from typing import Any, cast
from urllib.parse import parse_qs, urlencode, urlsplit

import httpx
import pytest
import redis
import sqladmin
import uvicorn
from fastapi import FastAPI
from sqladmin.authentication import AuthenticationBackend
from sqlalchemy import create_engine
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from gaman.session import SessionIntegration
from gaman.session.asgi import SessionMiddleware
from tests.servers import RedisServer, free_port
from tests.serving import Program, running, until
from tests.session.visitors import NAME, Visitor, sessions_in
from tests.test_asgi_servers import program_of

pytestmark = pytest.mark.anyio

# An application as its users have it today.
SITE = """
import asyncio, os

from authlib.integrations.starlette_client import OAuth
from fastapi import FastAPI, Request
from fastapi.responses import RedirectResponse, StreamingResponse
from starlette.middleware.sessions import SessionMiddleware

app = FastAPI()
app.add_middleware(SessionMiddleware, secret_key="a secret of the tests that is long enough")

provider = os.environ["PROVIDER"]
oauth = OAuth()
oauth.register(
    "provider",
    client_id="shop",
    client_secret="secret",
    authorize_url=f"{provider}/authorize",
    access_token_url=f"{provider}/token",
    userinfo_endpoint=f"{provider}/userinfo",
    client_kwargs={"scope": "profile", "code_challenge_method": "S256"},
)


@app.get("/login")
async def login(request: Request):
    return await oauth.provider.authorize_redirect(request, request.url_for("callback"))


@app.get("/callback")
async def callback(request: Request):
    token = await oauth.provider.authorize_access_token(request)
    user = await oauth.provider.userinfo(token=token)
    request.session["user"] = dict(user)
    return RedirectResponse("/")


@app.get("/")
async def home(request: Request):
    return {"pid": os.getpid(), "user": request.session.get("user"), "cart": request.session.get("cart", [])}


@app.get("/plain")
async def plain():
    return {"pid": os.getpid()}


@app.post("/cart/{item}")
async def add(request: Request, item: str):
    request.session.setdefault("cart", []).append(item)


@app.post("/slow/{key}")
async def write_slowly(request: Request, key: str):
    request.session[key] = True
    await asyncio.sleep(0.3)


@app.get("/all")
def everything(request: Request):
    return request.session


@app.post("/fail")
async def fail(request: Request):
    request.session["cart"] = ["of a request that fails"]
    raise ValueError("a bug")


@app.get("/stream")
async def stream(request: Request):
    async def chunks():
        yield "begun"
        request.session["cart"] = ["of a stream"]

    return StreamingResponse(chunks())


@app.post("/logout")
async def logout(request: Request):
    request.session.clear()
"""
MOVE = {
    "from starlette.middleware.sessions import SessionMiddleware\n": (
        "from gaman.session.asgi import SessionMiddleware, session\n"
    ),
    'app.add_middleware(SessionMiddleware, secret_key="a secret of the tests that is long enough")\n': (
        "app.add_middleware(SessionMiddleware, sessions=session(SECRET, DRIVER, secure=False), as_dict=True)\n"
    ),
}


def moved(driver: Mapping[str, Any]) -> str:
    """Return the source of the application with gaman's middleware: one import and one line differ."""
    source = SITE
    for old, new in MOVE.items():
        assert source.count(old) == 1
        source = source.replace(old, new)
    assert len(source.splitlines()) == len(SITE.splitlines())
    return source.replace("SECRET", '"a secret of the tests that is long enough"').replace("DRIVER", repr(driver))


def _provider() -> Starlette:
    """Return a provider of OAuth 2.0 (RFC 6749) with PKCE (RFC 7636), which knows one user, Angga."""
    granted: dict[str, str] = {}

    async def authorize(request: Request) -> Response:
        query = request.query_params
        assert (query["response_type"], query["client_id"], query["code_challenge_method"]) == ("code", "shop", "S256")
        code = f"code-{len(granted)}"
        granted[code] = query["code_challenge"]
        return RedirectResponse(f"{query['redirect_uri']}?{urlencode({'code': code, 'state': query['state']})}")

    async def token(request: Request) -> Response:
        form = {name: values[0] for name, values in parse_qs((await request.body()).decode()).items()}
        digest = hashlib.sha256(form["code_verifier"].encode()).digest()
        if granted.pop(form["code"], None) != base64.urlsafe_b64encode(digest).rstrip(b"=").decode():
            return JSONResponse({"error": "invalid_grant"}, 400)
        assert request.headers["authorization"] == "Basic " + base64.b64encode(b"shop:secret").decode()
        return JSONResponse({"access_token": "token", "token_type": "Bearer", "expires_in": 3600})

    async def userinfo(request: Request) -> Response:
        assert request.headers["authorization"] == "Bearer token"
        return JSONResponse({"sub": "1", "name": "Angga"})

    routes = [Route("/authorize", authorize), Route("/token", token, methods=["POST"]), Route("/userinfo", userinfo)]
    return Starlette(routes=routes)


@pytest.fixture(scope="module")
def provider() -> Generator[str]:
    """Serve the provider in a thread, and return its URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(_provider(), log_level="warning"))
    thread = Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join()


def _load(source: str) -> Any:
    module = ModuleType("site_of_a_test")
    with warnings.catch_warnings(record=True):
        # Authlib warns that it uses httpx, whatever the filters are.
        exec(compile(source, "site.py", "exec"), module.__dict__)
    return module.app


async def _log_in(visitor: Visitor) -> None:
    """Follow the redirects of a login, as a browser does."""
    begun = await visitor.get("/login")
    assert begun.status == 302
    async with httpx.AsyncClient() as client:
        granted = await client.get(begun.headers["location"])
    back = urlsplit(granted.headers["location"])
    assert back.path == "/callback"
    reply = await visitor.get(f"{back.path}?{back.query}")
    assert reply.status == 307, reply.error
    assert reply.headers["location"] == "/"


@pytest.mark.parametrize("kind", ["starlettes", "memory", "cookies"])
async def test_a_login_by_authlib_passes_through_the_middleware(kind: str, provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROVIDER", provider)
    visitor = Visitor(_load(SITE if kind == "starlettes" else moved({"type": kind})))
    assert (await visitor.get("/")).json["user"] is None
    await _log_in(visitor)
    assert (await visitor.get("/")).json["user"] == {"sub": "1", "name": "Angga"}
    # Authlib has removed the state of the login.
    assert {*(await visitor.get("/all")).json} == {"user"}
    assert (await visitor.post("/logout")).status == 200
    assert (await visitor.get("/")).json["user"] is None


async def test_an_answer_of_the_provider_is_refused_in_another_session(provider: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROVIDER", provider)
    visitor = Visitor(_load(moved({"type": "memory"})))
    begun = await visitor.get("/login")
    async with httpx.AsyncClient() as client:
        granted = await client.get(begun.headers["location"])
    back = urlsplit(granted.headers["location"])
    reply = await Visitor(visitor.app).get(f"{back.path}?{back.query}")
    assert (reply.status, type(reply.error).__name__) == (500, "MismatchingStateError")


# --- sqladmin


class Backend(AuthenticationBackend):
    """As sqladmin's documentation has it."""

    async def login(self, request: Request) -> bool:
        form = await request.form()
        if (form["username"], form["password"]) != ("admin", "secret"):
            return False
        request.session.update({"token": "1234"})
        return True

    async def logout(self, request: Request) -> bool:
        request.session.clear()
        return True

    async def authenticate(self, request: Request) -> bool:
        return "token" in request.session


def _admin(sessions: SessionIntegration, *, keeps_own: bool) -> FastAPI:
    app = FastAPI()
    backend = Backend(secret_key="a secret of the tests that is long enough")
    if keeps_own:
        app.add_middleware(SessionMiddleware, sessions=sessions, as_dict=True)
    else:
        backend.middlewares = [Middleware(SessionMiddleware, sessions=sessions, as_dict=True)]
    sqladmin.Admin(app, create_engine("sqlite://"), authentication_backend=backend)
    return app


@pytest.mark.parametrize("keeps_own", [False, True], ids=["with our middleware", "with its own middleware, inside ours"])
async def test_a_login_to_sqladmin_passes_through_the_middleware(keeps_own: bool) -> None:
    visitor = Visitor(_admin(sessions_in(), keeps_own=keeps_own))
    assert (await visitor.get("/admin/")).status in {302, 307}
    for password, status in [("wrong", 400), ("secret", 302)]:
        form = urlencode({"username": "admin", "password": password}).encode()
        reply = await visitor.post("/admin/login", form)
        assert reply.status == status
    assert {*visitor.cookies} == {"session" if keeps_own else NAME}
    assert (await visitor.get("/admin/")).status == 200
    old = visitor.again()
    assert (await visitor.get("/admin/logout")).status == 302
    assert (await visitor.get("/admin/")).status == 302
    # With its own middleware, a copy of the cookie is still logged in.
    assert (await old.get("/admin/")).status == (200 if keeps_own else 302)


# --- the promises, on Redis and with two workers


class Moved:
    """The application in two workers of uvicorn, and its Redis."""

    def __init__(self, program: Program, port: int, redis: RedisServer) -> None:
        self.program = program
        self.redis = redis
        self.base_url = f"http://127.0.0.1:{port}"

    @contextmanager
    def browser(self, cookies: Mapping[str, str] | None = None) -> Generator[httpx.Client]:
        # Without kept connections, each request may get to the other worker.
        limits = httpx.Limits(max_keepalive_connections=0)
        with httpx.Client(base_url=self.base_url, cookies=dict(cookies or {}), limits=limits, timeout=25) as client:
            yield client

    @contextmanager
    def user(self) -> Generator[httpx.Client]:
        """Yield a browser that is logged in."""
        with self.browser() as client:
            reply = client.get("/login", follow_redirects=True)
            assert reply.json()["user"] == {"sub": "1", "name": "Angga"}
            yield client


@pytest.fixture(scope="module")
def site(provider: str, tmp_path_factory: pytest.TempPathFactory) -> Generator[Moved]:
    folder = tmp_path_factory.mktemp("moved")
    port = free_port()
    with RedisServer() as redis:
        (folder / "main.py").write_text(moved({"type": "redis", "url": redis.url}))
        command = [program_of("uvicorn"), "main:app", "--workers", "2", "--port", str(port), "--log-level", "error"]
        with running(*command, cwd=folder, env={"PROVIDER": provider}) as program:
            site, pids = Moved(program, port, redis), set[int]()

            def has_both() -> bool:
                assert not program.has_ended(), program.stderr
                try:
                    pids.add(httpx.get(f"{site.base_url}/plain").json()["pid"])
                except httpx.TransportError:
                    return False
                return len(pids) == 2

            until(has_both, "a response of each worker")
            yield site


def test_the_moved_site_logs_in_across_two_workers(site: Moved) -> None:
    with site.user() as user:
        seen: set[int] = set()

        def asks() -> bool:
            found = user.get("/").json()
            assert found["user"] == {"sub": "1", "name": "Angga"}
            seen.add(found["pid"])
            return len(seen) == 2

        until(asks, "both workers")


def test_the_moved_site_loses_no_concurrent_write(site: Moved) -> None:
    with site.user() as user, ThreadPoolExecutor(8) as pool:
        keys = [f"key {number}" for number in range(8)]

        def write(key: str) -> httpx.Response:
            return httpx.post(f"{site.base_url}/slow/{key}", cookies=dict(user.cookies), timeout=25)

        replies = pool.map(write, keys)
        assert [(reply.status_code, reply.headers.get("set-cookie")) for reply in replies] == [(200, None)] * 8
        assert {*user.get("/all").json()} == {"user", *keys}


def test_the_moved_site_keeps_nested_changes(site: Moved) -> None:
    with site.user() as user:
        for item in ("apple", "pear"):
            assert user.post(f"/cart/{item}").status_code == 200
        assert user.get("/").json()["cart"] == ["apple", "pear"]


def test_a_logout_of_the_moved_site_is_final_though_a_writer_is_late(site: Moved) -> None:
    with site.user() as user, ThreadPoolExecutor(1) as pool, site.browser(dict(user.cookies)) as thief:
        late = pool.submit(httpx.post, f"{site.base_url}/slow/late", cookies=dict(user.cookies), timeout=25)
        # A response tells that the writer, which sleeps, has been accepted before.
        assert user.get("/all").json().keys() == {"user"}
        assert user.post("/logout").status_code == 200
        assert dict(user.cookies) == {}
        # Its late response neither revives the session nor sets a cookie.
        assert (late.result().status_code, late.result().headers.get("set-cookie")) == (200, None)
        assert thief.get("/all").json() == {}


def test_a_late_response_of_the_moved_site_does_not_undo_a_login(site: Moved) -> None:
    with site.browser() as visitor, ThreadPoolExecutor(1) as pool:
        visitor.post("/cart/apple")
        late = pool.submit(httpx.post, f"{site.base_url}/slow/late", cookies=dict(visitor.cookies), timeout=25)
        assert visitor.get("/login", follow_redirects=True).json()["user"]["name"] == "Angga"
        assert late.result().headers.get("set-cookie") is None
        assert {*visitor.get("/all").json()} == {"user", "cart", "late"}


def test_the_store_of_the_moved_site_is_worthless_to_a_thief(site: Moved) -> None:
    with site.user() as user:
        (cookie,) = dict(user.cookies).values()
        with redis.Redis(port=site.redis.port) as client:
            keys: Any = cast("Any", client).keys()
            stored: list[bytes] = [*keys]
            for key in keys:
                if client.type(key) == b"hash":
                    values: Any = client.hgetall(key)
                    stored += [*values, *values.values()]
        assert stored
        assert not any(b"Angga" in each or cookie.encode() in each or cookie[:40].encode() in each for each in stored)


def test_a_forged_cookie_of_the_moved_site_is_an_empty_session(site: Moved) -> None:
    with site.user() as user:
        ((name, cookie),) = dict(user.cookies).items()
    for forged in (cookie[:-1] + ("A" if cookie[-1] != "A" else "B"), "forged", cookie[::-1]):
        with site.browser({name: forged}) as thief:
            assert thief.get("/all").json() == {}


def test_an_untouched_request_to_the_moved_site_says_nothing_of_a_session(site: Moved) -> None:
    with site.user() as user:
        assert {"set-cookie", "vary", "cache-control"} & {*user.get("/plain").headers} == set()
        used = user.get("/").headers
        assert (used["vary"], used["cache-control"], used.get("set-cookie")) == ("Cookie", "no-store", None)


def test_a_request_to_the_moved_site_that_fails_changes_nothing(site: Moved) -> None:
    with site.user() as user:
        user.post("/cart/apple")
        assert user.post("/fail").status_code == 500
        with pytest.raises(httpx.RemoteProtocolError):
            # The change in a stream raises, which the server shows by ending the connection.
            user.get("/stream")
        assert user.get("/").json()["cart"] == ["apple"]


def test_without_its_redis_the_moved_site_answers_503_and_logs_no_visitor_out(site: Moved) -> None:
    with site.user() as user:
        before = dict(user.cookies)
        site.redis.kill()
        try:
            replies = [user.get("/all"), user.post("/cart/apple"), user.post("/logout")]
        finally:
            site.redis.start().wait()
        assert [(reply.status_code, reply.headers.get("set-cookie")) for reply in replies] == [(503, None)] * 3
        assert dict(user.cookies) == before
