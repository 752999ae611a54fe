"""The READMEs are true: each Python block runs, each command exists, each table is complete, each link works."""

from __future__ import annotations

import asyncio
import functools
import logging
import re
import shlex
import subprocess
import sys
import tomllib
import types
from collections.abc import Callable
from inspect import Parameter, iscoroutinefunction, signature
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import pytest

import gaman
from gaman.cors import cors
from gaman.headers import headers
from gaman.session import Counters, Session, session
from gaman.session.testing import CONTRACT
from gaman.static import static
from gaman.testing import TestClient
from gaman_session._counters import _INSTRUMENTS
from gaman_session._misuse import OF_SESSION
from gaman_session.drivers import DRIVERS, find_driver
from tests import servers
from tests.test_asgi_servers import SERVERS
from tests.test_examples import ROOT, serving, walk_through

# Chapters of whole files, which tests/test_testing.py, test_tutorial.py and test_recipes.py run.
OF_FILES = [f"examples/guide/{chapter}.md" for chapter in ("testing", "tutorial", "recipes")]
GUIDE = [
    *(f"examples/guide/{chapter}.md" for chapter in ("deployment", "security", "asvs", "moving", "frameworks", "asgi")),
    *OF_FILES,
]
INTEGRATIONS = [f"integrations/gaman_{name}/README.md" for name in ("static", "cors", "headers")]
DOCUMENTS = ["README.md", "integrations/README.md", "integrations/gaman_session/README.md", *INTEGRATIONS, *GUIDE]
# The programs that the guide uses; tests/test_guide.py runs the commands that need neither systemd nor Docker.
HOST = set(
    shlex.split(
        ". cd chmod cp docker done export for journalctl mkdir nginx openssl pytest python python3 redis-cli sed sleep sqlite3"
        " systemctl useradd"
    )
)
LANGUAGES = {
    "examples/guide/asvs.md": {"html"},
    "examples/guide/deployment.md": {"conf", "dockerfile", "ini", "yaml"},
    "examples/guide/tutorial.md": {"css", "html", "js", "text"},
    "examples/guide/recipes.md": {"html", "text"},
}
"""The languages of a chapter's blocks, beside those of all."""
PACKAGES = {"jinja2", "starlette"}
"""What the recipes install."""
SECRET = "a secret for the documents' examples"
# A block runs unchanged, but on a free port.
RUN = """
import functools, runpy, sys, gaman
gaman.serve = functools.partial(gaman.serve, port=0)
runpy.run_path(sys.argv[1], run_name="__main__")
"""


FOLDERS = ["public", "dist", "static"]
"""The folders that the documents serve."""


class Block(NamedTuple):
    document: str
    line: int
    code: str
    above: str
    """The code of the blocks before it, which it may use."""

    @property
    def serves(self) -> bool:
        return "gaman.serve(" in self.code


def blocks(document: str, language: str) -> list[Block]:
    text = (ROOT / document).read_text()
    found: list[Block] = []
    for match in re.finditer(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        line = text.count("\n", 0, match.start(1))
        # With the empty lines before it, a traceback shows the line of the document.
        above = found[-1].above + found[-1].code if found else ""
        found.append(Block(document, line + 1, match[1], above + "\n" * (line - above.count("\n"))))
    return found


PYTHON = [block for document in DOCUMENTS for block in blocks(document, "python")]


def environment(block: Block) -> dict[str, str]:
    """Return the environment of the documents' programs."""
    redis_url = replicated_redis_url() if "wait_replicas" in block.code else servers.redis_url()
    return {"GAMAN_KEY": SECRET, "REDIS_URL": redis_url, "MONGODB_URI": servers.mongodb_uri()}


@functools.cache
def replicated_redis_url() -> str:
    return servers.RedisCluster(masters=1, replicas=1).__enter__().url


def make_folders(parent: Path) -> None:
    for name in FOLDERS:
        (parent / name).mkdir()
        (parent / name / "index.html").write_text("<title>hello</title>")


def name_of(block: Block) -> str:
    return f"{block.document}:{block.line}"


@pytest.mark.parametrize("block", [block for block in PYTHON if not block.serves and block.document not in OF_FILES], ids=name_of)
def test_a_python_block_runs(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    make_folders(tmp_path)
    for name, value in environment(block).items():
        monkeypatch.setenv(name, value)
    # A block sets this level, which is restored after the test.
    caplog.set_level(logging.NOTSET, "gaman.session.audit")
    module = types.ModuleType("main")
    monkeypatch.setitem(sys.modules, "main", module)
    exec(compile(block.above, ROOT / block.document, "exec"), module.__dict__)
    before = dict(module.__dict__)
    exec(compile("\n" * (block.line - 1) + block.code, ROOT / block.document, "exec"), module.__dict__)
    fresh = [value for name, value in module.__dict__.items() if before.get(name) is not value]
    for logger in (None, "gaman.session.audit"):
        caplog.set_level(logging.WARNING, logger)
    asyncio.run(exercise(fresh))
    # Some blocks show a refused host, or a refused request of another site.
    messages = [record.getMessage() for record in caplog.records]
    assert [message for message in messages if not re.search(r" was answered 40[03], because ", message)] == []


async def exercise(fresh: list[object]) -> None:
    """Use each object that a block defines: send requests to Apps and handlers, plug in integrations, run tests."""
    for value in fresh:
        if isinstance(value, gaman.App):
            await visit(value)
        elif isinstance(value, gaman.Routes):
            await visit(gaman.App(value, integrations=[session()]))
        elif isinstance(value, gaman.Integration):
            integrations = [value] if value.name == "session" else [value, session()]
            await visit(gaman.App({"/": touch}, integrations=integrations))
        elif isinstance(value, types.FunctionType) and iscoroutinefunction(value):
            parameters = list(signature(value).parameters)
            if parameters == ["ctx"]:
                for driver in ("cookies", "memory"):
                    await visit(gaman.App({"/": [given_params, value, touch]}, integrations=[session(driver={"type": driver})]))
            elif not parameters:
                await value()
            elif parameters == ["check"]:
                for check in CONTRACT:
                    await value(check)
        elif isinstance(value, types.FunctionType) and value.__name__.startswith("test_"):
            # A synchronous test runs where there is no event loop.
            await asyncio.to_thread(value)


async def visit(app: gaman.App) -> None:
    async with TestClient(app) as client:
        for _ in range(2):
            response = await client.get("/?item=tea", follow_redirects=False)
            assert response.status_code < 500, response.text


async def given_params(ctx: gaman.Context) -> None:
    ctx.params = {"id": "7", "path": "page.html"}


async def touch(ctx: gaman.Context) -> str:
    count = await ctx.session.get("touched", 0) + 1
    await ctx.session.set("touched", count)
    return str(count)


@pytest.mark.parametrize("block", [block for block in PYTHON if block.serves and block.document not in OF_FILES], ids=name_of)
def test_a_python_block_that_serves_handles_requests(block: Block, tmp_path: Path) -> None:
    make_folders(tmp_path)
    (tmp_path / "main.py").write_text(re.sub(r"(?m)^    gaman\.serve\(.*\n", "    pass\n", block.above) + block.code)
    with serving("-c", RUN, "main.py", folder=tmp_path, environment=environment(block)) as browser:
        if '"/logout"' in block.code:
            walk_through(browser)
        else:
            assert browser.get("/").status_code == 200


def test_the_blocks_are_found() -> None:
    assert {document: sum(block.document == document for block in PYTHON) >= 3 for document in DOCUMENTS} == dict.fromkeys(
        DOCUMENTS, True
    )
    for document in DOCUMENTS:
        languages = re.findall(r"^```(\S+)$", (ROOT / document).read_text(), re.MULTILINE)
        tested = {"python", "sh", "nginx"} | LANGUAGES.get(document, set())
        assert set(languages) <= tested, f"{document} has blocks that nothing tests"


@pytest.mark.parametrize("document", [*DOCUMENTS, "CONTRIBUTING.md"])
def test_a_shell_block_names_only_what_exists(document: str) -> None:
    targets = re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for block in blocks(document, "sh"):
        for line in block.code.splitlines():
            command, *arguments = shlex.split(line.replace("$(", " $( ").replace(")", " ) "))
            command = command.removeprefix("/srv/shop/.venv/bin/")
            if document in GUIDE and command in HOST:
                continue
            if command == "make":
                assert {name for name in arguments if "=" not in name} <= set(targets), line
            elif command == "gaman":
                check_options(command, arguments[:1], arguments, line)
            elif command == "granian" and document in GUIDE:
                check_options(command, [], arguments, line)
            elif command == ".ci/run":
                assert (ROOT / ".ci/run").stat().st_mode & 0o111, ".ci/run can't be executed"
            elif command == "curl":
                assert f'"{urlsplit(arguments[-1]).path}": ' in (ROOT / document).read_text(), line
            elif command == "export":
                assert "gaman key" in line
            else:
                extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
                names = {"gaman", *(f"gaman[{extra}]" for extra in extras), *PACKAGES}
                installs = {("pip", "install", name) for name in names} | {("pip", "install", "gaman[sql,test]", "jinja2")}
                servers = {(name, *rest) for name, rest in SERVERS.items()}
                assert (command, *arguments) in {*installs, *servers, ("python", "main.py")}, line


def check_options(program: str, subcommand: list[str], arguments: list[str], line: str) -> None:
    described = subprocess.run(
        [sys.executable, "-m", program, *subcommand, "--help"], capture_output=True, text=True, check=False, timeout=60
    )
    assert described.returncode == 0, line
    for argument in arguments:
        assert not argument.startswith("--") or argument in described.stdout, line


@pytest.mark.parametrize("document", ["README.md", "integrations/gaman_session/README.md"])
def test_the_table_of_options_has_each_option_with_its_default(document: str) -> None:
    text = (ROOT / document).read_text()
    table = text[text.index("| option | type |") :].split("\n\n")[0]
    listed: dict[str, str] = dict(re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", table, re.MULTILINE))
    real = signature(session).parameters
    assert list(listed) == list(real)
    in_words = {"secret": "`GAMAN_KEY`", "driver": '`{"type": "cookies"}`'}
    for name, default in listed.items():
        assert in_words.get(name, f"`{quoted(real[name])}`") in default, name


@pytest.mark.parametrize(
    ("document", "function"), [*zip(INTEGRATIONS, [static, cors, headers], strict=True)], ids=["static", "cors", "headers"]
)
def test_the_table_of_an_integration_has_each_option_with_its_default(document: str, function: Callable[..., object]) -> None:
    listed = re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", (ROOT / document).read_text(), re.MULTILINE)
    in_words = {"hashed": "`HASHED`", "csp": "`STRICT`"}
    assert dict(listed) == {
        name: in_words.get(name)
        or ("required" if each.default is Parameter.empty else None)
        or f"`{quoted(each).replace(chr(39), chr(34))}`"
        for name, each in signature(function).parameters.items()
    }


def quoted(parameter: Parameter) -> str:
    default: Any = parameter.default
    return f'"{default}"' if isinstance(default, str) else repr(default)


@pytest.mark.parametrize(
    ("start", "kind"), [("| of `ctx` |", gaman.Context), ("| call |", Session), ("| make a `Response` with |", gaman.Response)]
)
def test_a_table_names_only_existing_attributes(start: str, kind: type) -> None:
    text = (ROOT / "README.md").read_text()
    table = text[text.index(start) :].split("\n\n")[0]
    for cell in re.findall(r"^\| (.*?) \|", table, re.MULTILINE)[2:]:
        for name in re.findall(r"`(?:await )?(?:s\.|Response\.|\.)?([a-z_]+)(?:\(.*?\))?`", cell):
            assert hasattr(kind, name), name


def test_each_call_of_a_session_has_its_place_in_the_table_and_in_the_reference() -> None:
    calls = {name for name in dir(Session) if not name.startswith("_")} - OF_SESSION.keys()
    text = (ROOT / "README.md").read_text()
    table = text[text.index("| call |") :].split("\n\n")[0]
    assert calls - set(re.findall(r"`(?:await )?s\.([a-z_]+)", table)) == set()
    _, _, text = (ROOT / "integrations/gaman_session/README.md").read_text().partition("\n## API reference\n")
    titles = "\n".join(re.findall(r"(?m)^### (.*)$", text.partition("\n## Integration setup\n")[0]))
    # The chapter on owners has the other call.
    assert calls - set(re.findall(r"\.([a-z_]+)", titles)) == {"set_owner"}


def test_the_table_of_counters_has_each_counter_with_its_instrument() -> None:
    text = (ROOT / "README.md").read_text()
    table = text[text.index("| counter |") :].split("\n\n")[0]
    listed = re.findall(r"^\| `(\w+)` \|.*\| `([\w.]+)` \|$", table, re.MULTILINE)
    assert [name for name, _ in listed] == list(Counters.__struct_fields__)
    assert listed == [(name, f"gaman.session.{instrument}") for instrument, _, _, names in _INSTRUMENTS for name in names]


async def health(browser: TestClient) -> tuple[int, object]:
    response = await browser.get("/healthz")
    return response.status_code, response.json()


@pytest.mark.anyio
async def test_the_examples_of_typed_input_decode_it_and_show_a_fault() -> None:
    names: dict[str, Any] = {}
    for block in PYTHON:
        if block.document == "README.md" and re.search(r"ctx\.(param\(.*int|query_as|form_as)\b", block.code):
            source = "from gaman import Context, Response, define_routes\n" + block.code
            # Without this file's `from __future__ import annotations`, whose strings need a module.
            exec(compile(source, "README.md", "exec", dont_inherit=True), names)
    async with TestClient(gaman.App(names["order_routes"])) as browser:
        assert [(await browser.get(f"/orders/{number}")).status_code for number in ("7", "007")] == [200, 404]
    async with TestClient(gaman.App({"/search": names["search"], "/cats": names["new_cat"], "/add": names["add"]})) as browser:
        found = await browser.get("/search?q=cat&page=2&tags=a&tags=b")
        assert found.json() == {"q": "cat", "page": 2, "tags": ["a", "b"]}
        for page, detail in [("x", "isn't an integer"), ("100", "is more than 99"), ("9" * 20, "is too large")]:
            fault = await browser.get(f"/search?page={page}")
            assert (fault.status_code, fault.json()) == (422, {"detail": detail, "path": "$.page"})
        form = {"name": "Tom", "born": "", "is_tame": "on"}
        assert (await browser.post("/cats", data=form, files={"photos": b"JPEG"})).text == "Tom has 1 photos"
        assert (await browser.post("/add", data=form)).text == "welcome, Tom"
        assert (await browser.post("/add", data={"name": "Tom", "born": "x"})).text == "born isn't a date"


def test_each_driver_is_listed_with_its_options() -> None:
    table = (ROOT / "README.md").read_text().partition("### Which driver")[2].partition("\n## ")[0]
    listed = dict(re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", table, re.MULTILINE))
    assert {name: set(re.findall(r"`(\w+)`", options)) for name, options in listed.items()} == {
        "cookies": set(),
        **{name: {*signature(find_driver(name)).parameters} for name in DRIVERS},
    }


@pytest.mark.anyio
async def test_the_fastapi_application_of_the_readme_logs_in(monkeypatch: pytest.MonkeyPatch) -> None:
    block = next(block for block in PYTHON if block.document == "README.md" and "SessionMiddleware" in block.code)
    for name, value in environment(block).items():
        monkeypatch.setenv(name, value)
    names: dict[str, Any] = {"__name__": "main"}
    exec(compile(block.code, "README.md", "exec", dont_inherit=True), names)
    async with TestClient(names["api"]) as browser:
        assert (await browser.post("/login")).json() == {"status": "logged in"}
        assert [*browser.cookies] == ["__Host-Http-gaman"]
        assert names["sessions"].counters.created == 1


@pytest.mark.anyio
async def test_the_fastapi_application_of_the_guide_does_as_its_chapter_says(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GAMAN_KEY", SECRET)
    [block] = [block for block in PYTHON if block.document.endswith("frameworks.md") and "sessions.running()" in block.code]
    module = types.ModuleType("main")
    monkeypatch.setitem(sys.modules, "main", module)
    exec(compile(block.above + block.code, block.document, "exec", dont_inherit=True), module.__dict__)
    async with TestClient(module.site) as browser:
        assert (await browser.get("/shop/healthz")).status_code == 200
        assert (await browser.get("/shop/profile")).status_code == 401
        await browser.post("/shop/login?name=ada")
        carts = [browser.post(f"/shop/cart/{item}") for item in ("tea", "bread", "jam")]
        assert sorted(len(cart.json()) for cart in await asyncio.gather(*carts)) == [1, 2, 3]
        assert (await browser.get("/shop/profile")).json() == {"user": "ada"}
        assert (await browser.get("/shop/devices")).json() == [True]
        assert (await browser.post("/shop/logout-everywhere")).json() == {"ended": 0}
        await browser.post("/shop/logout")
        assert not browser.cookies
    async with TestClient(module.old_style) as browser:
        found = [(await browser.get("/visit")).json() for _ in range(2)]
    assert found == [{"visits": 1, "pages": ["/visit"]}, {"visits": 2, "pages": ["/visit", "/visit"]}]


def names_in(document: str, text: str) -> dict[str, Any]:
    """Run the only block of the *document* that has the *text*, after those above it, and return what they define."""
    [block] = [block for block in PYTHON if block.document.endswith(document) and text in block.code]
    names: dict[str, Any] = {}
    exec(block.above + block.code, names)
    return names


@pytest.mark.anyio
async def test_the_site_of_the_cors_guide_opens_only_its_api(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAMAN_KEY", SECRET)
    names = names_in("gaman_cors/README.md", "mount(api)")
    origin = {"origin": "https://app.example.com"}
    async with TestClient(names["site"]) as browser:
        for path, status, is_open in [("/", 200, False), ("/api/hello", 200, True), ("/api/no", 404, True), ("/no", 404, False)]:
            response = await browser.get(path, headers=origin)
            assert (response.status_code, "access-control-allow-origin" in response.headers) == (status, is_open), path
        preflight = await browser.options("/api/hello", headers=origin | {"access-control-request-method": "PUT"})
        assert (preflight.status_code, preflight.headers["access-control-allow-origin"]) == (204, origin["origin"])


@pytest.mark.anyio
async def test_a_mounted_app_of_the_guide_shares_the_session_and_matches_below_its_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GAMAN_KEY", SECRET)
    names = names_in("asgi.md", "whole = ")
    async with TestClient(names["whole"]) as browser:
        found = [(await browser.get(path)).text for path in ("/count", "/api/count", "/count", "/api/api/count")]
    assert found == ['{"visits":1}', '{"visits":2}', '{"visits":3}', "Not Found"]


@pytest.mark.anyio
async def test_the_health_check_names_the_integration_whose_store_is_down_and_no_secret() -> None:
    block = next(block for block in PYTHON if block.document == "README.md" and "ctx.app.check()" in block.code)
    names: dict[str, Any] = {}
    exec("from gaman import Context, Response\n" + block.code, names)
    with servers.RedisServer() as server:
        # A Redis user without a password accepts any password.
        driver = {"type": "redis", "url": f"redis://default:hidden@{server.address}", "timeout": 1}
        app = gaman.App({"/healthz": names["healthz"]}, integrations=[session(SECRET, driver)])
        async with TestClient(app) as browser:
            assert await health(browser) == (200, {"failed": []})
            server.kill()
            assert await health(browser) == (503, {"failed": ["session"]})
            server.start().wait()
            assert await health(browser) == (200, {"failed": []})


@pytest.mark.parametrize(
    "document",
    [*DOCUMENTS, "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md", "examples/README.md", "examples/guide/scale.md"],
)
def test_a_link_leads_to_an_existing_target(document: str) -> None:
    for target in re.findall(r"\]\((?!https?:)(.*?)\)", (ROOT / document).read_text()):
        path, _, anchor = target.partition("#")
        file = (ROOT / document).parent / path if path else ROOT / document
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text()), target


def anchors(text: str) -> set[str]:
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in re.findall(r"(?m)^#+ (.*)$", text)}


def test_contributors_learn_where_each_promise_of_the_guide_is_kept() -> None:
    promised = first_column("integrations/gaman_session/README.md", "What you can rely on")
    assert len(promised) > 5
    assert promised == first_column("CONTRIBUTING.md", "Where each promise is kept")


def first_column(document: str, section: str) -> list[str]:
    """Return the cells of the first column of the first table in a *section*."""
    _, _, rest = (ROOT / document).read_text().partition(f"\n## {section}\n")
    [table] = re.findall(r"\A[^|]*\n((?:\|.*\n)+)", rest)
    return [row.split(" | ")[0] for row in table.splitlines()[2:]]


def test_the_list_of_examples_names_each_one() -> None:
    named = set(re.findall(r"\(([\w/]+\.(?:py|html))\)", (ROOT / "examples/README.md").read_text()))
    listed = [path for folder in ("", "asgi") for path in (ROOT / "examples" / folder).iterdir()]
    assert named == {path.relative_to(ROOT / "examples").as_posix() for path in listed if path.suffix in (".py", ".html")}


def test_the_contents_of_the_readme_name_each_section() -> None:
    contents, _, rest = (ROOT / "README.md").read_text().partition("\n## ")
    linked = set(re.findall(r"\(#([\w-]+)\)", contents))
    # Operating is linked by its parts. A title that occurs twice is numbered by its place, so it is linked by its section.
    assert anchors(f"## {rest}") - {"operating", "options", "a-folder-of-files", "which-driver"} == linked


def test_the_readme_tells_the_sizes_of_the_core_and_the_sessions() -> None:
    # Without the parts that serve no request: the command with its project, the test client, and the suite for drivers.
    core = [
        path
        for path in (ROOT / "gaman").rglob("*.py")
        if {"testing", "_project"}.isdisjoint(path.parts) and not path.name.startswith(("__main__", "_command_"))
    ]
    server = (ROOT / "gaman/_server").rglob("*.py")
    sessions = [path for path in (ROOT / "integrations/gaman_session").rglob("*.py") if path.name != "testing.py"]
    counted = [sum(path.read_text().count("\n") for path in files) for files in (core, server, sessions)]
    [told] = re.findall(
        r"The core is about ([\d,]+) lines, of which ([\d,]+) are its server, and the sessions [a-z ]+ are about ([\d,]+)\.",
        (ROOT / "README.md").read_text(),
    )
    for claim, lines in zip(told, counted, strict=True):
        assert 0.95 < int(claim.replace(",", "")) / lines < 1.05
