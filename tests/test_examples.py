"""Each example is started as a user would start it, and serves requests over a real socket."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests import servers
from tests.serving import Connection, request, running, until

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
ATTRIBUTES = "Max-Age=86400; Path=/; Secure; HttpOnly; SameSite=Lax"


class Browser:
    """A client that keeps cookies as a browser on localhost does: httpx drops Secure cookies over plain HTTP."""

    def __init__(self, url: str, **headers: str) -> None:
        self.client = httpx.Client(base_url=url)
        self.headers = headers
        self.cookies: dict[str, str] = {}

    def get(self, path: str) -> httpx.Response:
        return self._request("GET", path)

    def post(self, path: str, **form: str) -> httpx.Response:
        return self._request("POST", path, data=form)

    def delete(self, path: str) -> httpx.Response:
        return self._request("DELETE", path)

    def _request(self, method: str, path: str, **content: Any) -> httpx.Response:
        cookie = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        response = self.client.request(method, path, headers={"cookie": cookie, **self.headers}, **content)
        for line in response.headers.get_list("set-cookie"):
            name, value = line.partition(";")[0].split("=", 1)
            self.cookies[name] = value
            if "max-age=0" in line.lower():
                del self.cookies[name]
        return response


@contextmanager
def serving(*command: str, folder: Path = ROOT, environment: dict[str, str] | None = None) -> Generator[Browser]:
    """Run a server by Python with *command* until the block ends; it must then stop at SIGINT without an error."""
    printed: list[str] = []
    with subprocess.Popen(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "PORT": "0", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        watchdog = threading.Timer(60, process.kill)
        watchdog.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                printed.append(line)
                if found := re.search(r"(?:gaman: listening|Uvicorn running) on (\S+)", line):
                    break
            else:
                pytest.fail(f"{command} does not serve: {''.join(printed)}")
            browser = Browser(found[1])
            with browser.client:
                yield browser
            process.send_signal(signal.SIGINT)
            rest = process.stdout.read()
            assert process.wait() == 0, rest
            assert "Traceback" not in rest
        finally:
            process.kill()
            watchdog.cancel()


def walk_through(browser: Browser) -> None:
    """Run the seed's workflow, and check every response."""
    assert browser.get("/profile").status_code == 401
    assert browser.get("/check").json() == {"hasUser": False, "isAuthenticated": False}
    assert not browser.cookies

    user = {"id": 1, "name": "Angga", "email": "angga@example.com"}
    login = browser.post("/login")
    assert login.json() == {"status": "logged in", "user": user}
    name, _, rest = login.headers["set-cookie"].partition("=")
    assert (name, rest.partition("; ")[2]) == ("__Host-Http-gaman", ATTRIBUTES)
    assert "Angga" not in login.headers["set-cookie"]

    profile = browser.get("/profile")
    assert (profile.status_code, profile.json()) == (200, {"user": user})
    assert "set-cookie" not in profile.headers
    assert browser.get("/check").json() == {"hasUser": True, "isAuthenticated": True}

    logout = browser.post("/logout")
    assert logout.json() == {"status": "logged out"}
    assert logout.headers["set-cookie"] == f"__Host-Http-gaman=; {ATTRIBUTES.replace('86400', '0')}"
    assert browser.get("/profile").json() == {"error": "Not authenticated"}
    assert browser.get("/check").json() == {"hasUser": False, "isAuthenticated": False}


def test_the_workflow_logs_in_and_out() -> None:
    with serving(str(EXAMPLES / "workflow.py")) as browser:
        walk_through(browser)


def test_the_workflow_runs_from_any_folder_and_with_a_key_its_sessions_survive_a_restart(tmp_path: Path) -> None:
    key = {"GAMAN_KEY": "a secret of this test, long enough for it"}
    with serving(str(EXAMPLES / "workflow.py"), folder=tmp_path, environment=key) as browser:
        browser.post("/login")
        cookies = browser.cookies
    with serving(str(EXAMPLES / "workflow.py"), folder=tmp_path, environment=key) as browser:
        browser.cookies = cookies
        assert browser.get("/profile").status_code == 200


@pytest.fixture(scope="module")
def demo_url() -> Generator[str]:
    with serving(str(EXAMPLES / "demo.py")) as browser:
        yield str(browser.client.base_url)


@pytest.fixture
def demo(demo_url: str) -> Generator[Browser]:
    """A new browser on the demo with its default driver."""
    browser = Browser(demo_url, **{"user-agent": "Mozilla/5.0 Firefox/140.0"})
    with browser.client:
        yield browser


def at_once(browser: Browser, *paths: str) -> list[dict[str, Any]]:
    """POST to all *paths* at once with the browser's cookies; the cookie of the last response stays."""
    with ThreadPoolExecutor(len(paths)) as pool:
        return [response.json() for response in pool.map(browser.post, paths)]


def test_the_demo_serves_the_workflow(demo: Browser) -> None:
    walk_through(demo)


def test_the_page_has_a_button_for_each_route_and_loads_nothing_from_other_hosts(demo: Browser) -> None:
    page = demo.get("/")
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    asked = re.findall(r'data-method="(.*?)" data-path="(.*?)"', page.text)
    assert asked == [("POST", "/login"), ("GET", "/profile"), ("GET", "/check"), ("POST", "/logout")]
    loaded = [path for path in re.findall(r"""(?:src|href)=["'](.*?)["']""", page.text) if path != "data:,"]
    assert {"/page/style.css", "/page/script.js"} < set(loaded)
    assert [demo.get(path).status_code for path in loaded if path.startswith("/")] == [200] * len(loaded)
    assert not re.search(r"@import|url\(", demo.get("/page/style.css").text)
    # Inline styles, scripts and handlers would need an exception in the policy.
    assert "default-src 'self'" in page.headers["content-security-policy"]
    assert not re.search(r"<style|<script>|\sstyle=|\son\w+=", page.text)


def test_every_response_of_the_demo_has_the_security_header_fields(demo: Browser) -> None:
    responses = [demo.get(path) for path in ("/", "/page/script.js", "/check", "/guide/security", "/missing", "/profile")]
    assert [response.status_code for response in responses] == [200, 200, 200, 200, 404, 401]
    for response in responses:
        assert "script-src 'self';" in response.headers["content-security-policy"]
        assert response.headers["x-content-type-options"] == "nosniff"
        assert response.headers["referrer-policy"] == response.headers["cross-origin-opener-policy"] == "same-origin"
        assert "strict-transport-security" not in response.headers


def test_the_page_links_each_chapter_of_the_guide_which_is_readable_text(demo: Browser) -> None:
    linked = re.findall(r'href="/guide/(.*?)"', demo.get("/").text)
    titles = {demo.get(f"/guide/{chapter}").text.partition("\n")[0] for chapter in linked}
    documents = [ROOT / "README.md", *(ROOT / "integrations").rglob("README.md"), *(EXAMPLES / "guide").glob("*.md")]
    assert titles <= {document.read_text().partition("\n")[0] for document in documents}
    assert len(titles) == len(linked) > 5
    assert demo.get("/guide/sessions").headers["content-type"] == "text/plain; charset=utf-8"
    assert demo.get("/guide/nothing").status_code == demo.get("/guide/..%2Fdemo.py").status_code == 404


def test_the_page_shows_the_cookies_attributes_and_never_its_value(demo: Browser) -> None:
    login = demo.post("/login")
    assert login.headers["x-cookie-came"] == "no"
    assert login.headers["x-cookie-set"] == f"__Host-Http-gaman=...; {ATTRIBUTES}"
    check = demo.get("/check")
    assert check.headers["x-cookie-came"] == "yes"
    assert "x-cookie-set" not in check.headers
    assert "Max-Age=0" in demo.post("/logout").headers["x-cookie-set"]


def test_two_concurrent_requests_both_keep_their_item_and_ten_are_counted(demo: Browser) -> None:
    assert demo.delete("/cart").json() == {"items": [], "count": 0}
    assert at_once(demo, "/cart/tea", "/cart/bread") == [{"saw": []}] * 2
    assert sorted(answer["count"] for answer in at_once(demo, *["/count"] * 10)) == [*range(1, 11)]
    assert demo.get("/cart").json() == {"items": ["bread", "tea"], "count": 10}
    assert demo.delete("/cart").json() == {"items": [], "count": 0}


def test_a_logout_ends_the_session_although_a_request_writes_later(demo: Browser) -> None:
    demo.post("/login")
    [(name, token)] = demo.cookies.items()
    with Connection(demo.client.base_url.port or 0) as late:
        late.fetch(request("/check"))
        late.send(request("/late", f"Cookie: {name}={token}", method="POST"))
        # Once this is answered, the server has read the request before it, because that connection is accepted.
        demo.get("/check")
        demo.post("/logout")
        written = late.read()
    assert b"Angga" in written.body
    assert "set-cookie" not in written.headers
    demo.cookies[name] = token
    assert demo.get("/status").json() == {"driver": "memory", "loggedIn": False, "devices": []}


def test_a_logout_everywhere_ends_the_sessions_of_all_devices(demo: Browser, demo_url: str) -> None:
    other = Browser(demo_url, **{"user-agent": "something"})
    with other.client:
        assert demo.post("/logout-everywhere").status_code == 401
        demo.post("/login")
        other.post("/login")
        host = demo_url.rpartition("/")[2]
        assert demo.get("/status").json()["devices"] == [
            {"name": f"Firefox at {host}", "here": True},
            {"name": f"Another browser at {host}", "here": False},
        ]
        assert other.post("/logout-everywhere").json() == {"ended": 2}
        assert not other.cookies
        for browser in (demo, other):
            assert browser.get("/status").json()["loggedIn"] is False


def test_the_demo_without_a_store_loses_an_item_and_says_why_it_ends_no_other_session() -> None:
    with serving(str(EXAMPLES / "demo.py"), environment={"DRIVER": "cookies"}) as browser:
        browser.delete("/cart")
        at_once(browser, "/cart/tea", "/cart/bread")
        assert len(browser.get("/cart").json()["items"]) == 1
        browser.post("/login")
        refused = browser.post("/logout-everywhere")
        assert (refused.status_code, "has no store" in refused.text) == (501, True)
        assert browser.get("/status").json() == {"driver": "cookies", "loggedIn": True, "devices": []}


@pytest.mark.parametrize("example", ["workflow.py", "session_api.py"])
def test_an_example_without_a_page_lists_its_routes(example: str) -> None:
    with serving(str(EXAMPLES / example)) as browser:
        home = browser.get("/")
        assert home.headers["content-type"] == "text/html; charset=utf-8"
        linked = re.findall(r'<a href="(.*?)">', home.text)
        assert len(linked) == 4
        for path in linked:
            assert browser.get(path).status_code != 404


def test_the_session_api_sets_gets_has_and_deletes() -> None:
    values = {"user": {"id": 1, "name": "Angga"}, "token": "abc123", "preferences": {"theme": "dark", "lang": "en"}, "userId": 123}
    with serving(str(EXAMPLES / "session_api.py")) as browser:
        assert browser.get("/get").json() == dict.fromkeys(values)
        assert browser.get("/has").json() == {"hasUser": False}
        browser.get("/set")
        assert browser.get("/get").json() == values
        assert browser.get("/has").json() == {"hasUser": True}
        browser.get("/delete")
        assert browser.get("/get").json() == {**values, "user": None, "token": None}
        assert browser.get("/has").json() == {"hasUser": False}


@pytest.mark.parametrize("driver", [{"type": "memory"}, {"type": "cookies", "ended": {"type": "memory"}}], ids=["store", "cookies"])
def test_the_devices_of_an_account_are_ended_only_after_the_password_was_given_again(driver: object, tmp_path: Path) -> None:
    source, line = (EXAMPLES / "devices.py").read_text(), 'driver={"type": "memory"},'
    assert line in source
    script = tmp_path / "devices.py"
    script.write_text(source.replace(line, f"driver={driver},"))
    angga, mallory = ({"user": "angga", "password": "open sesame"}, {"user": "mallory", "password": "12345"})

    def log_in(browser: Browser, user: dict[str, str]) -> None:
        assert browser.post("/login", **user).status_code == 303
        asked = browser.get("/devices")
        assert (asked.status_code, asked.headers["location"]) == (303, "/confirm?next=/devices")
        assert browser.post(asked.headers["location"], password="?").status_code == 403
        assert browser.post("/devices/end-all").headers["location"] == "/confirm"
        assert browser.post(asked.headers["location"], password=user["password"]).headers["location"] == "/devices"

    def listed(browser: Browser) -> list[str]:
        return re.findall(r"<li>(.*?)<br>", browser.get("/devices").text)

    def is_out(browser: Browser) -> bool:
        return "Log out" not in browser.get("/").text and browser.get("/devices").headers["location"] == "/"

    with serving(str(script)) as phone:
        phone.headers = {"user-agent": "a <phone>"}
        desk, stranger = (Browser(str(phone.client.base_url), **{"user-agent": name}) for name in ("a desk", "a stranger"))
        for browser, user in ((phone, angga), (desk, angga), (stranger, mallory)):
            assert is_out(browser)
            log_in(browser, user)
        assert listed(phone) == ["a &lt;phone&gt; <strong>(this device)</strong>", "a desk"]
        assert listed(desk) == ["a &lt;phone&gt;", "a desk <strong>(this device)</strong>"]
        ours, others = re.findall(r'value="([0-9a-f]{64})"', phone.get("/devices").text)
        stranger.post("/devices/end", handle=ours)
        phone.post("/devices/end", handle=others)
        assert (is_out(phone), is_out(desk)) == (False, True)
        log_in(desk, angga)
        desk.post("/devices/end-others")
        assert (is_out(phone), listed(desk)) == (True, ["a desk <strong>(this device)</strong>"])
        log_in(phone, angga)
        phone.post("/devices/end-all")
        assert (is_out(phone), is_out(desk), is_out(stranger)) == (True, True, False)
        for each in (desk, stranger):
            each.client.close()


FRAMEWORKS = sorted(path.stem.removesuffix("_app") for path in (EXAMPLES / "asgi").glob("*_app.py"))


@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_an_application_of_another_framework_has_a_login_a_cart_and_a_logout_on_all_devices(framework: str) -> None:
    with serving(str(EXAMPLES / f"asgi/{framework}_app.py")) as phone:
        phone.headers = {"user-agent": "a phone"}
        desk = Browser(str(phone.client.base_url), **{"user-agent": "a desk"})
        for browser in (phone, desk):
            refused = browser.get("/profile")
            assert (refused.status_code, browser.cookies) == (401, {})
            login = browser.post("/login?name=ada")
            assert login.json() == {"status": "logged in"}
            assert login.headers["set-cookie"].endswith(f"; {ATTRIBUTES}")
            assert (login.headers["cache-control"], "Cookie" in login.headers["vary"]) == ("no-store", True)
            profile = browser.get("/profile")
            assert (profile.json(), "set-cookie" in profile.headers) == ({"user": "ada"}, False)
        items = [f"tea{number}" for number in range(8)]
        carts = at_once(phone, *(f"/cart/{item}" for item in items))
        assert sorted(map(len, carts)) == [*range(1, 9)]
        assert sorted(phone.post("/cart/bread").json()) == ["bread", *items]
        assert phone.get("/devices").json() == [{"device": "a phone", "here": True}, {"device": "a desk", "here": False}]

        old = dict(desk.cookies)
        desk.post("/logout")
        assert (desk.cookies, desk.get("/profile").status_code) == ({}, 401)
        desk.cookies.update(old)
        assert desk.get("/profile").status_code == 401
        desk.cookies.clear()

        desk.post("/login?name=ada")
        assert desk.post("/logout-everywhere").json() == {"ended": 2}
        assert not desk.cookies
        assert phone.get("/profile").status_code == 401
        desk.client.close()


DRIVERS: dict[str, Callable[[], dict[str, str]]] = {
    "cookies": dict,
    "memory": dict,
    "file": dict,
    "sql": dict,
    "redis": lambda: {"REDIS_URL": servers.redis_url()},
    "mongodb": lambda: {"MONGODB_URI": servers.mongodb_uri()},
}


@pytest.mark.parametrize("driver", DRIVERS)
def test_each_driver_counts_visits(driver: str, tmp_path: Path) -> None:
    environment = {**DRIVERS[driver](), "GAMAN_KEY": "a secret of this test, long enough for it"}
    script = str(EXAMPLES / f"{driver}_driver.py")
    with serving(script, folder=tmp_path, environment=environment) as browser:
        first = browser.get("/")
        max_age = 3600 if driver == "memory" else 86400
        assert first.headers["set-cookie"].endswith(f"; Max-Age={max_age}; Path=/; Secure; HttpOnly; SameSite=Lax")
        assert [first.json(), browser.get("/").json(), browser.get("/").json()] == [{"visits": n} for n in (1, 2, 3)]
        cookies = dict(browser.cookies)
        browser.cookies.clear()
        assert browser.get("/").json() == {"visits": 1}
    with serving(script, folder=tmp_path, environment=environment) as browser:
        browser.cookies = cookies
        # Only sessions in memory end with the server.
        assert browser.get("/").json() == {"visits": 1 if driver == "memory" else 4}


@pytest.mark.parametrize(("driver", "variable"), [("redis", "REDIS_URL"), ("mongodb", "MONGODB_URI")])
def test_a_start_that_waits_for_its_store_says_how_long_that_may_take(driver: str, variable: str, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        environment = {"PORT": "0", variable: f"{driver}://127.0.0.1:{silent.getsockname()[1]}"}
        with running(str(EXAMPLES / f"{driver}_driver.py"), cwd=tmp_path, env=environment) as program:
            until(lambda: "\n" in program.stderr, "a line about the store")
            assert program.stderr == (
                f"waiting for the session store ({driver}); without an answer, the start fails within half a minute, "
                "or later if the driver has a longer timeout\n"
            )
            assert not program.has_ended()


def test_every_example_has_a_test() -> None:
    tested = Path(__file__).read_text()
    for example in EXAMPLES.glob("*.py"):
        assert f'"{example.name}"' in tested or example.stem.removesuffix("_driver") in DRIVERS
    assert FRAMEWORKS == ["falcon", "fastapi", "litestar", "quart", "starlette"]
    assert len(FRAMEWORKS) == len([*(EXAMPLES / "asgi").glob("*.py")])
