"""The tutorial builds its shop: each step serves, its tests pass, and two workers serve a visitor and an admin."""

from __future__ import annotations

import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.serving import Program, running
from tests.test_examples import ROOT, Browser

CHAPTER = "examples/guide/tutorial.md"
PHOTO = b"\xff\xd8\xff the rest of a JPEG"


def files() -> Iterator[tuple[str, str]]:
    """Yield the name and the text of each file, in the chapter's order."""
    for block in re.finditer(r"^```(?:python|html|css|js)\n(.*?)^```$", (ROOT / CHAPTER).read_text(), re.MULTILINE | re.DOTALL):
        name = re.match(r"(?:#|\{#|/\*|//) ([\w./]+)", block[1])
        assert name, f"a block without a file's name:\n{block[1]}"
        yield name[1], block[1]


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def command(beginning: str) -> list[str]:
    """Return the arguments of the chapter's shell command with that *beginning*, for `python -m`."""
    [line] = re.findall(rf"(?m)^{re.escape(beginning)}.*$", (ROOT / CHAPTER).read_text())
    return shlex.split(line)


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder at the end of the chapter."""
    folder = tmp_path_factory.mktemp("tutorial") / "shop"
    for name, text in files():
        write(folder, name, text)
    run(folder, "-m", *command("gaman key"))
    return folder


def run(folder: Path, *arguments: str, entered: str = "") -> str:
    """Return the output of Python with *arguments*, a new session without a terminal; AssertionError if the status isn't 0."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        input=entered,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
        start_new_session=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def server(shop: Path) -> Generator[Program]:
    """The chapter's last command, on a free port."""
    run(shop, "accounts.py", "Angga", entered="correct horse\n")
    serve = command("gaman serve main:app --env-file .env --workers 2")
    with running("-m", *serve, "--port", "0", cwd=shop) as program:
        yield program
        assert program.stop(signal.SIGINT) == 0, program.stderr
        assert "Traceback" not in program.stderr


Visit = Callable[..., Browser]


@pytest.fixture
def visit(server: Program) -> Generator[Visit]:
    """A function that returns a new browser, which has logged in if it is called with fields of the login's form."""
    with ExitStack() as opened:

        def visit(**form: str) -> Browser:
            browser = Browser(server.url)
            opened.enter_context(browser.client)
            if form:
                assert browser.post("/login", password="correct horse", **form).status_code == 303
            return browser

        yield visit


def test_each_step_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAMAN_KEY", "a secret of this test, long enough for it")
    check = (
        "import main; from gaman.testing import TestClient\n"
        "with TestClient(main.app) as client: print(client.get('/').status_code, client.get('/assets/style.css').status_code)"
    )
    write(tmp_path, "check.py", check)
    served: list[str] = []
    steps = [name for name, _ in files()].count("main.py")
    for name, text in files():
        write(tmp_path, name, text)
        if name == "main.py":
            served.append(run(tmp_path, "check.py").strip())
    assert served == ["200 404", *["200 200"] * (steps - 1)]


def test_its_own_tests_pass(shop: Path) -> None:
    assert re.search(r"\d passed", run(shop, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider"))


@pytest.mark.slow
def test_mypy_and_ruff_find_no_fault(shop: Path) -> None:
    assert "Success" in run(shop, "-m", "mypy", "--strict", ".")
    run(shop, "-m", "ruff", "check", "--isolated", "--select", "ASYNC,B,E,F,I,RET,SIM,UP", "--line-length", "132", ".")
    run(shop, "-m", "ruff", "format", "--isolated", "--check", "--line-length", "132", ".")


def test_its_routes_are_listed(shop: Path) -> None:
    listed = run(shop, "-m", *command("gaman routes main:app"))
    assert re.search(r"/admin/orders/events .*require_login", listed), listed


def test_the_server_says_what_the_chapter_shows(server: Program) -> None:
    [shown] = re.findall(r"^```text\n(.*?)^```$", (ROOT / CHAPTER).read_text(), re.MULTILINE | re.DOTALL)
    port = str(server.port)
    assert server.stdout.replace(port, "3431") == shown


def test_a_visitor_fills_a_cart_and_orders(visit: Visit) -> None:
    visitor = visit()
    assert visitor.get("/assets/style.css").headers["content-type"].startswith("text/css")
    assert "Teapot, 29.00 €" in visitor.get("/").text
    assert not visitor.cookies
    for _ in range(2):
        assert visitor.post("/cart/1").headers["location"] == "/"
    assert "Cart (2)" in (page := visitor.get("/").text)
    assert "Tea is in your cart." in page
    assert "Tea is in your cart." not in visitor.get("/").text
    assert "Together 9.00 €" in visitor.get("/cart").text
    assert visitor.post("/orders").status_code == 303
    assert "You ordered 2 × Tea." in (page := visitor.get("/").text)
    assert "Cart" not in page


def test_two_clicks_at_once_are_two_teas_and_one_order(visit: Visit) -> None:
    visitor = visit()
    visitor.post("/cart/1")
    with ThreadPoolExecutor(8) as clicks:

        def click(path: str) -> None:
            headers = {"cookie": "; ".join(f"{name}={value}" for name, value in visitor.cookies.items())}
            assert visitor.client.post(path, headers=headers).status_code == 303

        list(clicks.map(click, ["/cart/1"] * 8))
        assert "9 × Tea" in visitor.get("/cart").text
        before = orders(visit)
        list(clicks.map(click, ["/orders"] * 8))
    assert orders(visit)[len(before) :] == ["9 × Tea, 40.50 €"]


def test_an_admin_logs_in_is_remembered_and_logs_out_for_good(visit: Visit) -> None:
    browser = visit()
    assert browser.get("/admin/orders").headers["location"] == "/login?next=/admin/orders"
    wrong = browser.post("/login?next=/admin/orders", name="Angga", password="battery staple")
    assert (wrong.status_code, "There is no user" in wrong.text) == (403, True)
    assert browser.post("/login?next=//evil.example", name="Angga", password="correct horse").status_code == 400
    assert not browser.cookies
    admin = visit(name="Angga", remember="on")
    assert "Hello Angga!" in admin.get("/").text
    assert admin.get("/admin/orders").status_code == 200
    copied = dict(admin.cookies)
    admin.post("/logout")
    admin.cookies = copied
    assert admin.get("/admin/orders").status_code == 303


def test_an_admin_uploads_a_photo_and_others_do_not(visit: Visit, shop: Path) -> None:
    def upload(browser: Browser, content: bytes, product: int = 3) -> int:
        files = {"photo": ("../../main.py", content, "text/html")}
        return browser._request("POST", f"/admin/products/{product}/photo", files=files).status_code

    visitor, admin = visit(), visit(name="Angga")
    assert upload(visitor, PHOTO) == 303
    assert not list((shop / "data/photos").iterdir())
    assert upload(admin, PHOTO + bytes(2 << 20)) == 303
    assert upload(admin, b"<script>") == 422
    assert upload(admin, PHOTO, product=99) == 404
    assert upload(admin, PHOTO + bytes(10 << 20)) == 413
    [photo] = (shop / "data/photos").iterdir()
    shown = visitor.get(f"/photos/{photo.name}")
    assert (shown.headers["content-type"], len(shown.content)) == ("image/jpeg", len(PHOTO) + (2 << 20))
    assert f'<img src="/photos/{photo.name}"' in visitor.get("/").text


def test_orders_arrive_live_and_a_browser_that_reconnects_continues_after_its_last_one(visit: Visit) -> None:
    visitor = visit()
    for product in (2, 3):
        visitor.post(f"/cart/{product}")
        visitor.post("/orders")
    with events(visit) as live:
        number, seen = next(pair for pair in live if "Rice" in pair[1])
        assert seen == "1 × Rice, 3.20 €"
        assert next(live) == (str(int(number) + 1), "1 × Teapot, 29.00 €")
        visitor.post("/cart/1")
        visitor.post("/orders")
        assert next(live) == (str(int(number) + 2), "1 × Tea, 4.50 €")
    with events(visit, after=number) as live:
        assert next(live)[1] == "1 × Teapot, 29.00 €"


@contextmanager
def events(visit: Visit, after: str = "") -> Generator[Iterator[tuple[str, str]]]:
    """The events of the orders, as their ids and data."""
    admin = visit(name="Angga")
    headers = {"cookie": "; ".join(f"{name}={value}" for name, value in admin.cookies.items()), "last-event-id": after}
    with admin.client.stream("GET", "/admin/orders/events", headers=headers) as stream:
        assert (stream.headers["content-type"], stream.headers["cache-control"]) == ("text/event-stream", "no-store")
        lines = (line for line in stream.iter_lines() if line.startswith(("id:", "data:")))
        yield ((number.removeprefix("id: "), next(lines).removeprefix("data: ")) for number in lines)


def orders(visit: Visit) -> list[str]:
    """Return the orders until now."""
    admin = visit(name="Angga")
    headers = {"cookie": "; ".join(f"{name}={value}" for name, value in admin.cookies.items())}
    found: list[str] = []
    with admin.client.stream("GET", "/admin/orders/events", headers=headers) as stream:
        for line in stream.iter_lines():
            if line.startswith(":"):
                break
            if line.startswith("data: "):
                found.append(line.removeprefix("data: "))
    return found
