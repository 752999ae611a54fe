"""The recipes keep their promises: each block is run unchanged, in this process or by the command that its chapter names."""

from __future__ import annotations

import asyncio
import base64
import gzip
import json
import re
import sys
import types
import zlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gaman.testing import SyncTestClient, TestClient
from tests.serving import Program, running, until
from tests.test_examples import ROOT

CHAPTER = "examples/guide/recipes.md"


def section(title: str) -> str:
    """Return the text of a recipe."""
    text: str
    [text] = re.findall(rf"^## {re.escape(title)}\n(.*?)(?=^## |\Z)", (ROOT / CHAPTER).read_text(), re.MULTILINE | re.DOTALL)
    return text


def code(title: str, language: str = "python") -> str:
    """Return the block of a recipe in that *language*."""
    block: str
    [block] = re.findall(rf"^```{language}\n(.*?)^```$", section(title), re.MULTILINE | re.DOTALL)
    return block


Load = Callable[[str], Any]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """A function that imports a recipe as main.py, with an empty folder as the working directory."""

    def load(title: str) -> types.ModuleType:
        (tmp_path / "main.py").write_text(code(title))
        module = types.ModuleType("main")
        module.__file__ = str(tmp_path / "main.py")
        monkeypatch.setitem(sys.modules, "main", module)
        exec(compile(code(title), module.__file__, "exec", dont_inherit=True), module.__dict__)
        return module

    monkeypatch.chdir(tmp_path)
    return load


def serve(title: str, folder: Path, *options: str) -> Any:
    """Serve a recipe by the command."""
    (folder / "main.py").write_text(code(title))
    return running("-m", "gaman", "serve", "main:app", "--port", "0", *options, cwd=folder)


def test_each_recipe_is_tested_here() -> None:
    titles = re.findall(r"(?m)^## (.*)$", (ROOT / CHAPTER).read_text())
    source = Path(__file__).read_text()
    assert [title for title in titles if f'("{title}"' not in source] == []


def test_a_template_escapes_text_and_attributes(load: Load, tmp_path: Path) -> None:
    recipe = load("Pages with Jinja")
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates/hello.html").write_text(code("Pages with Jinja", "html"))
    with TestClient(recipe.app) as client:
        page = client.get("/", params={"name": """"><script>alert('&')</script>"""})
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        escaped = "&#34;&gt;&lt;script&gt;alert(&#39;&amp;&#39;)&lt;/script&gt;"
        assert f'<p title="{escaped}">Hello {escaped}</p>' in page.text
        (tmp_path / "templates/hello.html").write_text("{{ ctx.path }}, {{ name }}")
        assert client.get("/").text == "/, visitor"


def test_only_public_paths_are_compressed(load: Load) -> None:
    recipe = load("Compressed responses")
    with TestClient(recipe.app, base_url="https://testserver") as client:

        def encoding(path: str, accepted: str = "gzip") -> str | None:
            encoding: str | None = client.get(path, headers={"accept-encoding": accepted}).headers.get("content-encoding")
            return encoding

        assert (encoding("/articles/1"), encoding("/articles/1", "identity"), encoding("/account")) == ("gzip", None, None)
        response = client.get("/articles/1", headers={"accept-encoding": "gzip"})
        assert response.text == "A long article. " * 1000
        assert response.headers["vary"] == "Accept-Encoding"
        assert int(response.headers["content-length"]) < 200


def test_with_compression_streams_flow_and_events_parts_and_encoded_responses_stay_unchanged(load: Load, tmp_path: Path) -> None:
    recipe = load("Compressed responses")
    gaman = recipe.gaman
    (tmp_path / "file.txt").write_bytes(b"x" * 5000)

    async def chunks(ctx: Any) -> Any:
        async def endless() -> Any:
            while True:
                yield "a chunk\n" * 100

        return gaman.Response.stream(endless(), content_type=ctx.query["type"])

    async def file(ctx: Any) -> Any:
        return gaman.Response.file("file.txt", root=".")

    async def encoded(ctx: Any) -> Any:
        return gaman.Response(gzip.compress(b"x" * 5000), headers={"content-encoding": "gzip", "content-type": "text/plain"})

    routes = {"/assets/chunks": chunks, "/assets/file": file, "/assets/encoded": encoded}
    with TestClient(gaman.App(routes, middleware=[recipe.gzip])) as client:
        for kind, expected in [("text/plain", "gzip"), ("text/event-stream", None)]:
            with client.stream("GET", f"/assets/chunks?type={kind}", headers={"accept-encoding": "gzip"}) as response:
                assert response.headers.get("content-encoding") == expected
                # Endless: the first bytes arrive although the stream has no end.
                first = next(response.iter_raw())
                text = zlib.decompressobj(16 + zlib.MAX_WBITS).decompress(first) if expected else first
                assert text.startswith(b"a chunk\n")
        part = client.get("/assets/file", headers={"accept-encoding": "gzip", "range": "bytes=0-3"})
        assert (part.status_code, part.content, "content-encoding" in part.headers) == (206, b"xxxx", False)
        assert client.get("/assets/encoded", headers={"accept-encoding": "gzip"}).content == b"x" * 5000


def test_an_upload_is_kept_by_its_content_under_a_name_of_ours(load: Load, tmp_path: Path) -> None:
    recipe = load("Uploads to disk")
    with TestClient(recipe.app) as client:

        def upload(content: bytes, name: str = "../../x.html") -> Any:
            return client.post("/uploads", files={"file": (name, content, "text/html")})

        photo = b"\xff\xd8\xff" + bytes(3 << 20)
        kept = upload(photo)
        url = kept.json()["url"]
        assert (kept.status_code, bool(re.fullmatch(r"/uploads/[0-9a-f]{32}\.jpg", url))) == (201, True)
        shown = client.get(url)
        assert (shown.content, shown.headers["content-type"], shown.headers["x-content-type-options"]) == (
            photo,
            "image/jpeg",
            "nosniff",
        )
        assert upload(b"<script>alert(1)</script>", "x.jpg").status_code == 422
        assert client.post("/uploads", data={"file": "text"}).status_code == 422
        assert len(list((tmp_path / "uploads").iterdir())) == 1


def test_a_large_upload_is_refused_and_leaves_nothing_on_the_disk(tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    (tmp_path / "main.py").write_text(code("Uploads to disk"))
    command = ("-m", "gaman", "serve", "main:app", "--port", "0")
    with running(*command, cwd=tmp_path, env={"TMPDIR": str(temporary)}) as program:
        content = b"\xff\xd8\xff" + bytes(20 << 20)

        def chunks() -> Generator[bytes]:
            # Without a length, so that the server only learns by reading that it is too long.
            yield b'--b\r\ncontent-disposition: form-data; name="file"; filename="x.jpg"\r\n\r\n'
            for begin in range(0, len(content), 1 << 20):
                yield content[begin : begin + (1 << 20)]
            yield b"\r\n--b--\r\n"

        headers = {"content-type": "multipart/form-data; boundary=b"}
        assert httpx.post(f"{program.url}/uploads", content=chunks(), headers=headers).status_code == 413
        files = {"file": ("x.jpg", content)}
        assert httpx.post(f"{program.url}/uploads", files=files).status_code == 413
        assert (list(temporary.iterdir()), (tmp_path / "uploads").exists()) == ([], False)
        open_files = [str(link.readlink()) for link in Path(f"/proc/{program.pid}/fd").iterdir() if link.is_symlink()]
        assert [name for name in open_files if str(temporary) in name] == []


def test_a_stop_waits_for_a_task_that_began_after_the_response(tmp_path: Path) -> None:
    with serve("Tasks after the response", tmp_path) as program:
        assert httpx.post(f"{program.url}/orders", data={"address": "angga@example.com"}).status_code == 202
        assert "sent" not in program.stdout
        assert program.stop() == 0
        assert program.stdout.endswith("sent\n")
        assert program.stderr == ""


def test_a_task_that_fails_is_logged_and_one_that_never_ends_is_cut_off(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    recipe = load("Tasks after the response")
    recipe.MAX_WAIT = 0.05
    ended: list[str] = []

    async def work(address: str) -> None:
        if not address:
            raise ValueError("the task")
        try:
            await recipe.asyncio.sleep(60)
        finally:
            ended.append(address)

    recipe.send_mail = work
    with TestClient(recipe.app) as client:
        client.post("/orders", data={"address": ""})
        client.post("/orders", data={"address": "endless"})
    assert [record.getMessage() for record in caplog.records] == ["a task failed", "1 tasks were cut off"]
    assert "ValueError: the task" in caplog.text
    assert (ended, recipe.running) == (["endless"], set())


class Events:
    """An EventSource: its events as pairs of id and data."""

    def __init__(self, response: httpx.Response) -> None:
        self.response = response
        self.lines = (line for line in response.iter_lines() if line)
        assert next(self.lines) == ": hello"

    def next(self) -> tuple[str, Any]:
        number, data = next(self.lines), next(self.lines)
        return number.removeprefix("id: "), json.loads(data.removeprefix("data: "))


@pytest.fixture(scope="module")
def feed(tmp_path_factory: pytest.TempPathFactory) -> Generator[Program]:
    """The recipe of events, with a short heartbeat; it prints a line when a listener has left."""
    folder = tmp_path_factory.mktemp("events")
    source = code("Server-sent events").replace("HEARTBEAT = 15", "HEARTBEAT = 0.2")
    source = source.replace(
        "        listeners.discard(news)\n", "        listeners.discard(news)\n        print('left', flush=True)\n"
    )
    (folder / "main.py").write_text(source)
    serve = ("-m", "gaman", "serve", "main:app", "--port", "0")
    with running(*serve, cwd=folder) as program:
        yield program
        with httpx.stream("GET", f"{program.url}/events") as stream:
            events = Events(stream)
            # An open stream ends at once, and completely.
            assert program.stop() == 0
            list(events.lines)
        assert "cut off" not in program.stderr
        assert "Traceback" not in program.stderr


def say(feed: Program, text: str) -> None:
    assert httpx.post(f"{feed.url}/say", data={"text": text}).status_code == 204


def test_events_arrive_and_a_browser_that_reconnects_gets_what_it_has_missed(feed: Program) -> None:
    say(feed, "before anyone listens")
    with httpx.stream("GET", f"{feed.url}/events") as stream:
        assert stream.headers["content-type"] == "text/event-stream"
        assert (stream.headers["cache-control"], stream.headers["x-accel-buffering"]) == ("no-store", "no")
        events = Events(stream)
        say(feed, "one\r\n\r\nid: 7\ndata: forged")
        number, value = events.next()
        assert value == {"text": "one\r\n\r\nid: 7\ndata: forged"}
        assert next(events.lines) == ": still here"
    until(lambda: "left" in feed.stdout, "the end of the iterator")
    say(feed, "two")
    say(feed, "three")
    with httpx.stream("GET", f"{feed.url}/events", headers={"last-event-id": number}) as stream:
        events = Events(stream)
        assert [events.next()[1]["text"] for _ in range(2)] == ["two", "three"]


@pytest.mark.parametrize("seen", ["", "x", "²", "-1", "9" * 5000])
def test_an_id_that_no_event_had_is_ignored(feed: Program, seen: str) -> None:
    with httpx.stream("GET", f"{feed.url}/events", headers={b"last-event-id": seen.encode("latin-1")}) as stream:
        Events(stream)


def test_each_error_is_a_problem_as_json_and_an_exception_tells_nothing(load: Load, caplog: pytest.LogCaptureFixture) -> None:
    recipe = load("Errors as JSON")
    with TestClient(recipe.app, raise_errors=False) as client:

        def problem(method: str, path: str, **content: Any) -> dict[str, Any]:
            response = client.request(method, path, **content)
            assert response.headers["content-type"] == "application/problem+json"
            body: dict[str, Any] = response.json()
            assert body.pop("status") == response.status_code
            return body

        assert client.post("/double", json={"n": 21}).json() == {"double": 42}
        assert problem("GET", "/nowhere") == {"title": "Not Found"}
        assert problem("GET", "/double") == {"title": "Method Not Allowed"}
        assert client.get("/double").headers["allow"] == "POST, OPTIONS"
        unprocessable = client.post("/double", json={}).json()["title"]
        assert problem("POST", "/double", json={}) == {"title": unprocessable, "detail": "n is missing"}
        [shown] = re.findall(r"^```text\n(.*?)^```$", section("Errors as JSON"), re.MULTILINE | re.DOTALL)
        wrong = client.post("/double", json={"n": "x"})
        # Python 3.13 has another phrase for 422.
        assert wrong.text.replace(unprocessable, "Unprocessable Entity") == shown.strip()
        assert not caplog.records
        assert problem("GET", "/fail") == {"title": "Internal Server Error"}
        assert "a password, for example" in caplog.text


def test_in_debug_mode_an_exception_is_shown(load: Load) -> None:
    recipe = load("Errors as JSON")
    app = recipe.gaman.App({"/fail": recipe.fail}, integrations=recipe.app.integrations, debug=True)
    with TestClient(app, raise_errors=False) as client:
        assert "a password, for example" in client.get("/fail").text


@pytest.mark.parametrize("scheme", ["Basic", "basic"])
def test_the_right_name_and_password_open_the_guarded_pages(load: Load, monkeypatch: pytest.MonkeyPatch, scheme: str) -> None:
    monkeypatch.setenv("METRICS_LOGIN", "anggä:correct: horse")
    recipe = load("Basic authentication")
    with TestClient(recipe.app) as client:
        login = base64.b64encode("anggä:correct: horse".encode()).decode()
        assert client.get("/metrics", headers={"authorization": f"{scheme} {login}"}).json() == {"orders": 7}
        refused = client.get("/metrics/below")
        assert (refused.status_code, refused.headers["www-authenticate"]) == (401, 'Basic realm="metrics", charset="UTF-8"')


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        "Basic",
        "Basic ",
        "Basic x",
        "Basic é",
        "Basic ====",
        "Bearer {}",
        "{}",
        "Basic {}x",
        "Basic Og==",
        "Basic w6k=",
        "Basic /w==",
    ],
)
@pytest.mark.parametrize("login", ["angga:horse", ""])
def test_any_other_authorization_is_401(load: Load, monkeypatch: pytest.MonkeyPatch, login: str, authorization: str) -> None:
    monkeypatch.setenv("METRICS_LOGIN", login)
    recipe = load("Basic authentication")
    with TestClient(recipe.app) as client:
        sent = authorization.format(base64.b64encode(b"angga:horse").decode()).encode("latin-1")
        assert client.get("/metrics", headers={b"authorization": sent}).status_code == 401


def test_a_form_is_sent_with_the_token_of_its_session(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAMAN_KEY", "a secret of this test, long enough for it")
    app = load("Forms with a CSRF token").app
    with TestClient(app) as client, TestClient(app) as other:

        def token(browser: SyncTestClient) -> str:
            return browser.get("/transfer").text.partition('name="csrf_token" value="')[2].partition('"')[0]

        form = {"amount": "7", "csrf_token": token(client)}
        assert client.post("/transfer", data=form).text == "transferred 7"
        assert client.post("/transfer", data=form, headers={"x-csrf-token": token(client)}).text == "transferred 7"
        for refused in ({"amount": "7"}, form | {"csrf_token": token(other)}):
            assert client.post("/transfer", data=refused).status_code == 403
        with client.session() as session:
            session.login("angga")
        assert client.post("/transfer", data=form).status_code == 403


def visits(client: SyncTestClient) -> int:
    count: int = client.get("/").json()["visits"]
    return count


def test_a_database_is_opened_checked_and_closed(load: Load) -> None:
    recipe = load("A database for all handlers")
    with TestClient(recipe.app) as client:
        assert [visits(client), visits(client)] == [1, 2]
        assert client.call(recipe.app.check) == {"database": None}
        client.call(recipe.close_database, recipe.app)
        assert isinstance(client.call(recipe.app.check)["database"], ValueError)
    with TestClient(recipe.app) as client:
        assert visits(client) == 3
        opened = recipe.app.deps.database
    with pytest.raises(ValueError, match="no active connection"):
        asyncio.run(opened.execute("SELECT 1"))
