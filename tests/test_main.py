"""The `gaman` command, as typed in a terminal."""

from __future__ import annotations

import os
import re
import socket
import sqlite3
import stat
import sys
from argparse import ArgumentParser
from contextlib import closing
from inspect import signature
from pathlib import Path
from typing import cast

import pytest

import gaman as package
from gaman.__main__ import find_app, make_parser
from tests.serving import Connection, get, running, until

APP = """
import os
import gaman

async def home(ctx):
    return {"pid": os.getpid()}

app = gaman.App({"/": home})
other = 1
nothing = None

async def page(ctx, first, second):
    return "page"

table = {"/": page}

async def greet(ctx, name=""):
    return "hello"
"""


def gaman(*arguments: str, cwd: Path, status: int = 0) -> tuple[str, str]:
    """Run the command, check its exit *status*, and return its stdout and stderr."""
    with running("-m", "gaman", *arguments, cwd=cwd) as program:
        assert program.wait() == status, program.stderr
        return program.stdout, program.stderr


def test_key_prints_a_new_secret_each_time(tmp_path: Path) -> None:
    keys = {gaman("key", cwd=tmp_path)[0] for _ in range(3)}
    assert len(keys) == 3
    assert all(re.fullmatch(r"[\w-]{43,}\n", key, re.ASCII) for key in keys)


def test_key_creates_a_file_that_only_its_owner_can_read(tmp_path: Path) -> None:
    stdout, stderr = gaman("key", "--env", ".env", cwd=tmp_path)
    file = tmp_path / ".env"
    assert re.fullmatch(rb"GAMAN_KEY=[\w-]{43,}\n", file.read_bytes())
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert ".env" in stdout
    assert file.read_text().removeprefix("GAMAN_KEY=").strip() not in stdout + stderr


@pytest.mark.parametrize(
    ("before", "added"),
    [
        (b"", b""),
        (b"A=1\n", b""),
        (b"A=1", b"\n"),
        (b"A=1\r\nB=2\r\n", b""),
        (b"# GAMAN_KEY=old\n", b""),
        (b"OTHER_GAMAN_KEY=1\nGAMAN_KEY_2=1\n", b""),
        (b"\xef\xbb\xbfA=1", b"\n"),
        (b"GAMAN_KEY=\n", b""),
        (b"GAMAN_KEY", b"\n"),
        (b"export GAMAN_KEY='' # none yet\r\n", b""),
        (b"GAMAN_KEY=old\nGAMAN_KEY=\n", b""),
        (b"NOTE='\nGAMAN_KEY=quoted\n'\n", b""),
        ("PLACE=Århus\r\n\r\n\tx = 'y'  ".encode(), b"\n"),
    ],
)
def test_key_keeps_the_other_lines_of_a_file_byte_for_byte(tmp_path: Path, before: bytes, added: bytes) -> None:
    file = tmp_path / "settings"
    file.write_bytes(before)
    file.chmod(0o640)
    gaman("key", "--env", "settings", cwd=tmp_path)
    after = file.read_bytes()
    assert after.startswith(before + added + b"GAMAN_KEY=")
    assert re.fullmatch(rb"GAMAN_KEY=[\w-]{43,}\n", after.removeprefix(before + added))
    assert stat.S_IMODE(file.stat().st_mode) == 0o640


@pytest.mark.parametrize("mode", [0o600, 0o700, 0o640, 0o604, 0o644, 0o622])
def test_key_says_how_to_hide_a_file_that_others_may_read(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "my settings"
    file.touch()
    file.chmod(mode)
    _, stderr = gaman("key", "--env", "my settings", cwd=tmp_path)
    warning = "gaman: other users of this machine may read my settings; run `chmod 600 'my settings'`\n"
    assert stderr == (warning if mode & 0o044 else "")
    assert stat.S_IMODE(file.stat().st_mode) == mode


@pytest.mark.parametrize(
    "line",
    [
        b"GAMAN_KEY=old",
        b"export GAMAN_KEY=old",
        b"  GAMAN_KEY = old",
        b"\xef\xbb\xbfGAMAN_KEY=old",
        b"A=1\r\nGAMAN_KEY='old'\r\n",
        b"'GAMAN_KEY'=\"old\" # the key",
        b"GAMAN_KEY=\nGAMAN_KEY=old\n",
    ],
)
def test_key_refuses_to_replace_a_key(tmp_path: Path, line: bytes) -> None:
    file = tmp_path / ".env"
    file.write_bytes(line)
    _, stderr = gaman("key", "--env", ".env", cwd=tmp_path, status=1)
    assert stderr.startswith("gaman: .env already has a GAMAN_KEY")
    assert len(stderr.splitlines()) == 1
    assert file.read_bytes() == line


@pytest.mark.parametrize(("path", "what"), [(".", "read"), ("no/such/folder/.env", "write")])
def test_key_says_in_one_line_why_a_file_cannot_be_written(tmp_path: Path, path: str, what: str) -> None:
    _, stderr = gaman("key", "--env", path, cwd=tmp_path, status=1)
    assert stderr.startswith(f"gaman: can't {what} {path}: ")
    assert len(stderr.splitlines()) == 1


def test_serve_finds_the_app_from_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "web.py").write_text(APP)
    with running("-m", "gaman", "serve", "shop.web:app", "--port", "0", cwd=tmp_path) as program:
        assert b"pid" in get(program.port, "/").body
        assert program.stop() == 0
        assert program.stderr == ""


def test_serve_runs_the_given_number_of_workers(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(APP)
    with running("-m", "gaman", "serve", "main:app", "--workers", "2", "--port", "0", cwd=tmp_path) as program:
        found: set[bytes] = set()

        def fetch() -> bool:
            found.add(get(program.port, "/").body)
            return len(found) == 2

        until(fetch, "responses of two workers")
        assert program.stop() == 0
        assert program.stdout.count("listening") == 1
        assert program.stderr == ""


@pytest.mark.parametrize(("proxies", "ip"), [("10.0.0.0/8", "127.0.0.1"), ("10.0.0.0/8,127.0.0.1", "1.1.1.1")])
def test_serve_trusts_the_given_proxies(tmp_path: Path, proxies: str, ip: str) -> None:
    (tmp_path / "main.py").write_text(APP.replace("os.getpid()", "ctx.ip"))
    with running("-m", "gaman", "serve", "main:app", "--trusted-proxies", proxies, "--port", "0", cwd=tmp_path) as program:
        assert get(program.port, "/", "X-Forwarded-For: 1.1.1.1").body == b'{"pid":"%s"}' % ip.encode()


@pytest.mark.parametrize(("hosts", "status"), [("shop.example", 400), ("shop.example, *.example", 200), ("*", 200)])
def test_serve_allows_the_given_hosts(tmp_path: Path, hosts: str, status: int) -> None:
    (tmp_path / "main.py").write_text(APP)
    arguments = ("-m", "gaman", "serve", "main:app", "--allowed-hosts", hosts, "--port", "0")
    with running(*arguments, cwd=tmp_path) as program, Connection(program.port) as client:
        assert client.fetch(b"GET / HTTP/1.1\r\nHost: www.example\r\n\r\n").status == status


def test_a_port_in_use_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(APP)
    with closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = taken.getsockname()[1]
        _, stderr = gaman("serve", "main:app", "--port", str(port), cwd=tmp_path, status=1)
    assert stderr == f"gaman: port {port} on 127.0.0.1 is taken; stop what listens there, or take another port\n"


def test_the_memory_driver_refuses_two_workers_in_one_line(tmp_path: Path) -> None:
    session = "from gaman.session import session\nmemory = session('s' * 32, {'type': 'memory'})\n"
    (tmp_path / "main.py").write_text(session + APP.replace("home}", "home}, integrations=[memory]"))
    _, stderr = gaman("serve", "main:app", "--workers", "2", "--port", "0", cwd=tmp_path, status=1)
    assert stderr.startswith("gaman: the memory driver keeps sessions in one process")
    assert len(stderr.splitlines()) == 1


def test_serve_with_reload_serves_the_current_code(tmp_path: Path) -> None:
    main = tmp_path / "main.py"
    main.write_text(APP)
    with running("-m", "gaman", "serve", "main:app", "--reload", "--port", "0", cwd=tmp_path) as program:

        def read() -> bytes:
            try:
                return get(program.port, "/").body
            except ConnectionError:
                # The worker was ending.
                return b""

        assert b"pid" in read()
        main.write_text(APP.replace('"pid"', '"process"'))
        until(lambda: b"process" in read(), "the new response")
        assert "detected changes in 'main.py'. Reloading..." in program.stderr
        assert program.stop() == 0


def test_serve_with_reload_waits_for_a_file_without_its_first_mistake(tmp_path: Path) -> None:
    main = tmp_path / "main.py"
    main.write_text("app = (\n")
    with running("-m", "gaman", "serve", "main:app", "--reload", "--port", "0", cwd=tmp_path) as program:
        until(lambda: "requests wait until the next change" in program.stderr, "the line that says that it waits")
        assert program.stderr.count("SyntaxError") == 1
        main.write_text(APP)
        assert b"pid" in get(program.port, "/").body
        assert program.stop() == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["main"], "'main' doesn't name an application; write it as module:app"),
        ([":app"], "':app' doesn't name an application; write it as module:app"),
        (["main:"], "'main:' doesn't name an application; write it as module:app"),
        ([".main:app"], "'.main:app' doesn't name an application; write it as module:app"),
        (["absent:app"], "there is no module 'absent' in "),
        (["main.absent:app"], "there is no module 'main.absent' in "),
        (["main.py:app"], "'main.py:app' has the name of a file; write main:app"),
        (["main:application()"], "'main:application()' is a call; write application = application() in main, and name "),
        (["main:absent"], "main:absent is missing; did you mean main:app?"),
        (["main:other"], "main:other: a value of the type int isn't an ASGI application; give "),
        (["main:nothing"], "main:nothing is None; did you mean main:app?"),
        (["main:table"], "main:table: routes aren't an application; make an App of them first: gaman.App(routes); did you mean "),
        (["main:page"], "main:page: page is a handler; give gaman.App({'/': page}) in its place; did you mean main:app?"),
        (["main:greet"], "main:greet: greet is a handler; give gaman.App({'/': greet}) in its place; did you mean main:app?"),
        (["main:app", "--port", "70000"], "port=70000 isn't a port"),
        (["main:app", "--trusted-proxies", "nginx"], "trusted_proxies: 'nginx' does not appear to be an IPv4 or IPv6 network"),
        (["main:app", "--allowed-hosts", "https://shop.example"], "allowed_hosts: 'https://shop.example' isn't a host"),
        (["main:app", "--workers", "0"], "workers=0 isn't a number of processes"),
    ],
)
def test_a_wrong_argument_of_serve_is_reported_in_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    (tmp_path / "main.py").write_text(APP)
    _, stderr = gaman("serve", *arguments, cwd=tmp_path, status=1)
    assert stderr.startswith(f"gaman: {message}")
    assert len(stderr.splitlines()) == 1


@pytest.mark.parametrize("target", ["shop:app", "sites.shop:app"])
def test_a_folder_in_place_of_a_module_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str) -> None:
    folder = tmp_path.joinpath(*target.partition(":")[0].split("."))
    folder.mkdir(parents=True)
    (folder / "main.py").write_text(APP)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "modules", {**sys.modules})
    with pytest.raises(SystemExit) as exited:
        find_app(target)
    name, path = target.removesuffix(":app"), folder.relative_to(tmp_path)
    assert str(exited.value) == f"gaman: {name!r} is a folder; `cd {path}`, and name a module in it, such as main:app"


@pytest.mark.parametrize("cause", ["import absent_package", "raise ImportError('half installed')", "raise LookupError('lost')"])
def test_a_module_that_fails_shows_its_own_traceback(tmp_path: Path, cause: str) -> None:
    (tmp_path / "main.py").write_text(cause)
    _, stderr = gaman("serve", "main:app", cwd=tmp_path, status=1)
    assert f"{os.sep}main.py" in stderr
    assert "there is no module 'main'" not in stderr
    assert stderr.splitlines()[-1].split(": ")[1] in ("No module named 'absent_package'", "half installed", "lost")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "remove expired sessions"),
        (["unknown"], "invalid choice: 'unknown'"),
        (["serve"], "the following arguments are required: main:app"),
        (["routes"], "the following arguments are required: main:app"),
        (["new"], "the following arguments are required: NAME"),
        (["serve", "main:app", "--port", "x"], "argument --port: invalid int value: 'x'"),
        (["serve", "main:app", "--log-level", "loud"], "argument --log-level: invalid choice: 'loud'"),
    ],
)
def test_an_invalid_command_shows_the_usage(tmp_path: Path, arguments: list[str], message: str) -> None:
    _, stderr = gaman(*arguments, cwd=tmp_path, status=2)
    assert stderr.startswith("usage: gaman ")
    assert message in stderr


def test_the_version_is_that_of_the_package(tmp_path: Path) -> None:
    [line] = gaman("--version", cwd=tmp_path)[0].splitlines()
    assert line.startswith(f"gaman {package.__version__} (")
    assert re.fullmatch(r"\d+\.\d+\.\d+", package.__version__)


def options_of(parser: ArgumentParser) -> dict[str, str]:
    """Return the help of each option except --help, by its name and the name of its value."""
    return {
        action.option_strings[0] + (f" {action.metavar or action.dest.upper()}" if action.nargs is None else ""): str(action.help)
        for action in parser._actions
        if action.option_strings and action.dest != "help"
    }


def parsers() -> dict[str, ArgumentParser]:
    """Return the parser of each command, by its name; `gaman` has that of the options before a command."""
    parser = make_parser()
    [choices] = [action.choices for action in parser._actions if action.metavar == "command"]
    return {"gaman": parser, **cast("dict[str, ArgumentParser]", choices)}


def test_the_help_names_the_default_of_each_option_of_the_server() -> None:
    helped = {name.partition(" ")[0]: text for name, text in options_of(parsers()["serve"]).items()}
    for name, parameter in signature(package.serve).parameters.items():
        if name in ("host", "port", "workers", "timeout_request", "max_connections", "timeout_graceful_shutdown"):
            default = "none" if parameter.default is None else parameter.default
            assert helped[f"--{name.replace('_', '-')}"].endswith(f"(default: {default})"), name


def test_the_readme_lists_each_command_and_each_of_its_options() -> None:
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    section = text.partition("\n### The command\n")[2].partition("\n### ")[0]
    commands, options = section.split("|---|---|\n")[1], section.split("|---|---|---|\n")[1]
    real = parsers()
    assert {*re.findall(r"^\| `gaman (\w+)", commands, re.MULTILINE)} == real.keys() - {"gaman"}
    listed: dict[str, set[str]] = {name: set() for name in real}
    for cells in re.findall(r"^\| (.*?) \| (.*?) \|", options, re.MULTILINE):
        for command in re.findall(r"`(\w+)`", cells[1]):
            listed[command].update(re.findall(r"`(.*?)`", cells[0]))
    assert listed == {name: {*options_of(parser)} for name, parser in real.items()}


@pytest.mark.parametrize("command", ["routes", "purge"])
def test_a_command_names_what_is_not_an_app(tmp_path: Path, command: str) -> None:
    (tmp_path / "main.py").write_text(APP)
    _, stderr = gaman(command, "main:other", cwd=tmp_path, status=1)
    assert stderr.startswith("gaman: main:other")
    assert len(stderr.splitlines()) == 1


def test_purge_removes_expired_sessions_and_prints_their_number(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(
        """
import gaman
from gaman.session import session

async def visit(ctx):
    await ctx.session.set("a", 1)
    return "hello"

app = gaman.App(
    {"/": visit}, integrations=[session("a secret of the tests, long enough", {"type": "sql"}, max_age=1)]
)
""",
        encoding="utf-8",
    )
    with running("-m", "gaman", "serve", "main:app", "--port", "0", cwd=tmp_path) as program:
        for _ in range(3):
            assert get(program.port, "/").status == 200
        assert program.stop() == 0
    with sqlite3.connect(tmp_path / "sessions.db") as database:
        [(count,)] = database.execute("SELECT count(*) FROM sessions")
        # As if two seconds had passed.
        database.execute("UPDATE sessions SET deadline = deadline - 2")
    database.close()
    assert count == 3
    assert gaman("purge", "main:app", cwd=tmp_path) == ("gaman: session: 3 removed\n", "")
    assert gaman("purge", "main:app", cwd=tmp_path) == ("gaman: session: 0 removed\n", "")


def test_purge_takes_the_sessions_of_an_application_of_another_framework(tmp_path: Path) -> None:
    source = """
from gaman.session import session
sessions = session("a secret of the tests, long enough", {"type": "sql"})
async def api(scope, receive, send): ...
"""
    (tmp_path / "main.py").write_text(source, encoding="utf-8")
    assert gaman("purge", "main:sessions", cwd=tmp_path) == ("gaman: session: 0 removed\n", "")
    _, stderr = gaman("purge", "main:api", cwd=tmp_path, status=1)
    assert stderr == "gaman: gaman purge needs a gaman.App, or a session() object, and main:api is the application api\n"


def test_purge_says_that_nothing_is_stored(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(APP, encoding="utf-8")
    assert gaman("purge", "main:app", cwd=tmp_path) == ("gaman: nothing in main:app is stored on this server\n", "")


def test_purge_names_a_store_that_it_cannot_reach(tmp_path: Path) -> None:
    source = """
import gaman
from gaman.session import session

driver = {"type": "redis", "url": "redis://:hidden@127.0.0.1:1"}
app = gaman.App({}, integrations=[session("a secret of the tests, long enough", driver)])
"""
    (tmp_path / "main.py").write_text(source, encoding="utf-8")
    _, stderr = gaman("purge", "main:app", cwd=tmp_path, status=1)
    assert stderr.startswith("gaman: the session store (redis) could not be reached at 127.0.0.1:1; see that ")
    assert stderr.count("\n") == 1
    assert "hidden" not in stderr


def test_serve_names_a_store_that_it_cannot_reach(tmp_path: Path) -> None:
    source = """
import gaman
from gaman.session import session

driver = {"type": "mongodb", "db_name": "x", "uri": "mongodb://user:hidden@127.0.0.1:1", "timeout": 1}
app = gaman.App({}, integrations=[session("a secret of the tests, long enough", driver)])
"""
    (tmp_path / "main.py").write_text(source, encoding="utf-8")
    _, stderr = gaman("serve", "main:app", "--port", "0", cwd=tmp_path, status=1)
    assert stderr.startswith("gaman: the session store (mongodb) could not prepare its collection; see that ")
    assert stderr.count("\n") == 1
    assert "hidden" not in stderr
