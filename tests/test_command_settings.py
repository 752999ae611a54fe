"""`--env-file` of the commands, and `gaman key --env`, which follow the same rules."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from threading import Thread

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gaman._command_settings import _parse, add_key
from tests.serving import Program, get, running, running_script, until

APP = """
import json, os
import gaman

async def home(ctx):
    return {"pid": os.getpid(), "a": A, "b": os.environ.get("B")}

A = os.environ.get("A")
app = gaman.App({"/": home})
"""
SHOW = """
import json, os, sys
import gaman

json.dump({**os.environ}, open("environment.json", "w"))
app = gaman.App({})
"""


def read(folder: Path, *, status: int = 0, env: dict[str, str] | None = None) -> tuple[dict[str, str], str]:
    """Return the environment that an application has with `--env-file settings`, and the command's stderr."""
    (folder / "main.py").write_text(SHOW, encoding="utf-8")
    with running("-m", "gaman", "routes", "main:app", "--env-file", "settings", cwd=folder, env=env) as program:
        assert program.wait() == status, program.stderr
        return json.loads((folder / "environment.json").read_text()) if status == 0 else {}, program.stderr


def test_each_way_to_write_a_value_is_read(tmp_path: Path) -> None:
    file = tmp_path / "settings"
    file.write_bytes(
        b"\xef\xbb\xbfBOM=1\r\n\r\n# COMMENT=1\r\nexport EXPORTED = spaces around \r\nSINGLE='a # b'\r\n"
        b'DOUBLE="line\\nline" # a comment\r\nPLAIN=a#b # a comment\r\nMONEY=$5 ${HOME}\r\nEMPTY=\r\nNO_VALUE\r\nTWICE=1\r\nTWICE=2'
    )
    file.chmod(0o600)
    environment, stderr = read(tmp_path)
    expected = {
        "BOM": "1",
        "EXPORTED": "spaces around",
        "SINGLE": "a # b",
        "DOUBLE": "line\nline",
        "PLAIN": "a#b",
        "MONEY": "$5 ${HOME}",
        "EMPTY": "",
        "TWICE": "2",
    }
    assert {name: environment[name] for name in expected} == expected
    assert not {"COMMENT", "NO_VALUE"} & environment.keys()
    assert stderr == ""


def test_the_environment_has_precedence_even_if_it_is_empty(tmp_path: Path) -> None:
    (tmp_path / "settings").write_text("A=file\nB=file\nC=file\n")
    environment, _ = read(tmp_path, env={"A": "environment", "B": ""})
    assert (environment["A"], environment["B"], environment["C"]) == ("environment", "", "file")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "there is no file settings; `gaman key --env settings` makes one with a GAMAN_KEY"),
        (b"", ""),
        (b"A=1\nB=\xe9\n", "line 2 of settings isn't UTF-8; save the file as UTF-8"),
        (b"A=1\n\n\nB='not closed\nC=1\n", "line 4 of settings isn't NAME=value, or its quote isn't closed; correct that line"),
        (b"GAMAN KEY=1\n", "line 1 of settings isn't NAME=value, or its quote isn't closed; correct that line"),
        (b"'a=b'=1", "settings sets 'a=b', which can't be a variable of the environment; correct its line"),
        (b"A=a\0b", "settings sets 'A', which can't be a variable of the environment; correct its line"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line_with_the_fix(tmp_path: Path, content: bytes | None, message: str) -> None:
    file = tmp_path / "settings"
    if content is not None:
        file.write_bytes(content)
        file.chmod(0o600)
    _, stderr = read(tmp_path, status=1 if message else 0)
    assert stderr == (f"gaman: {message}\n" if message else "")


def test_a_folder_in_place_of_a_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "settings").mkdir()
    _, stderr = read(tmp_path, status=1)
    assert stderr == "gaman: can't read settings: Is a directory; give the path of a file of NAME=value lines\n"


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o644, 0o604])
def test_a_file_that_all_users_may_read_is_a_warning(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "settings"
    file.write_text("A=1\n")
    file.chmod(mode)
    _, stderr = read(tmp_path)
    warning = "gaman: other users of this machine may read settings; run `chmod 600 settings`\n"
    assert stderr == (warning if mode & 0o004 else "")


def test_a_new_key_seals_the_sessions_of_the_application_that_is_served_with_it(tmp_path: Path) -> None:
    source = (
        'import gaman\nfrom gaman.session import session\napp = gaman.App({}, integrations=[session(driver={"type": "sql"})])\n'
    )
    (tmp_path / "main.py").write_text(source)
    with running("-m", "gaman", "key", "--env", ".env", cwd=tmp_path) as program:
        assert program.wait() == 0
    for command in (["purge"], ["routes"]):
        with running("-m", "gaman", *command, "main:app", cwd=tmp_path) as program:
            assert program.wait() == 1
            assert "run `gaman key --env .env`, then `gaman serve --env-file .env main:app`" in program.stderr
        with running("-m", "gaman", *command, "main:app", "--env-file", ".env", cwd=tmp_path) as program:
            assert program.wait() == 0, program.stderr
            assert program.stderr == ""


def test_a_script_reads_the_file_by_load_dotenv(tmp_path: Path) -> None:
    with running("-m", "gaman", "key", "--env", ".env", cwd=tmp_path) as program:
        assert program.wait() == 0
    source = """
from dotenv import load_dotenv

load_dotenv()

import gaman
from gaman.session import session

async def home(ctx):
    await ctx.session.set("a", 1)
    return "hello"

gaman.serve({"/": home}, integrations=[session(secure=False)], port=0)
"""
    with running_script(source, tmp_path) as program:
        assert get(program.port, "/").body == b"hello"
        assert program.stderr == ""


def values(program: Program) -> tuple[int, str | None, str | None]:
    body = json.loads(get(program.port, "/").body)
    return body["pid"], body["a"], body["b"]


def test_workers_read_the_file_again_when_they_are_renewed(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(APP)
    file = tmp_path / ".env"
    file.write_text("A=1\nB=1\n")
    file.chmod(0o600)
    arguments = ("-m", "gaman", "serve", "--env-file", ".env", "main:app", "--workers", "2", "--port", "0")
    with running(*arguments, cwd=tmp_path) as program:

        def renew(expected: tuple[str, str | None]) -> None:
            program.send_signal(signal.SIGHUP)
            until(lambda: {values(program)[1:] for _ in range(10)} == {expected}, "the new values")

        assert values(program)[1:] == ("1", "1")
        file.write_text("A=2\n")
        renew(("2", None))
        # What the environment has still counts, but nothing is read.
        file.unlink()
        renew(("1", "1"))
        assert program.stop() == 0
        assert program.stderr == ""


@pytest.mark.parametrize(("way", "renewed_by"), [("script", "SIGHUP"), ("command", "a reload")])
def test_workers_call_load_dotenv_again_when_they_are_renewed(way: str, renewed_by: str, tmp_path: Path) -> None:
    is_reload = renewed_by == "a reload"
    options = ["reload=True"] if is_reload else ["workers=2"]
    load = '\nfrom dotenv import load_dotenv\n\nload_dotenv(".env")\n'
    source = APP.replace("\nasync def", f"{load}\nasync def")
    script = source + f'\nif __name__ == "__main__":\n    gaman.serve(app, port=0, {", ".join(options)})\n'
    (tmp_path / "main.py").write_text(script)
    file = tmp_path / ".env"
    file.write_text("A=1\nB=1\n")
    flags = ["--reload"] if is_reload else ["--workers", "2"]
    arguments = ["main.py"] if way == "script" else ["-m", "gaman", "serve", "main:app", "--port", "0", *flags]
    with running(*arguments, cwd=tmp_path) as program:
        assert values(program)[1:] == ("1", "1")
        file.write_text("A=2\n")
        if is_reload:
            (tmp_path / "main.py").write_text(f"{script}\n")
        else:
            program.send_signal(signal.SIGHUP)
        until(lambda: {values(program)[1:] for _ in range(10)} == {("2", None)}, "the new values")


def test_a_pipe_is_read_once_for_all_workers(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(APP)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe, 0o600)
    Thread(target=pipe.write_text, args=("A=secret\n",), daemon=True).start()
    arguments = ("-m", "gaman", "serve", "--env-file", "pipe", "main:app", "--workers", "2", "--port", "0")
    with running(*arguments, cwd=tmp_path) as program:
        assert values(program)[1] == "secret"


PARTS = [
    "A=1",
    "A='1",
    'A="',
    "B=\\",
    "C='a\\'",
    "GAMAN_KEY",
    "GAMAN_KEY=",
    "GAMAN_KEY=''",
    "GAMAN_KEY=old",
    "export GAMAN_KEY= # none",
]
LINES = st.sampled_from([*PARTS, "#", "'", '"', "\\", "", " ", "\t", "=", "export"])


@given(st.lists(st.tuples(LINES, st.sampled_from(["\n", "\r\n", "\r", ""]))))
def test_a_key_that_was_added_is_read_and_changes_no_other_line(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[str, str]]
) -> None:
    file = tmp_path_factory.getbasetemp() / "settings"
    file.write_bytes(before := "".join(map("".join, lines)).encode())
    try:
        add_key(file)
    except SystemExit:
        assert file.read_bytes() == before
        return
    old, new = _parse(file, before), _parse(file, file.read_bytes())
    assert not old.get("GAMAN_KEY")
    assert len(new.pop("GAMAN_KEY")) >= 43
    old.pop("GAMAN_KEY", None)
    assert new == old
