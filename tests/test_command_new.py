"""`gaman new`: what it writes and prints, and where it refuses to write."""

from __future__ import annotations

import os
import re
import shlex
import stat
from pathlib import Path

import pytest

from gaman import __version__
from gaman.__main__ import make_parser
from gaman._command_new import create_project
from tests.serving import running

FILES = {".env", ".gitignore", "README.md", "main.py", "requirements.txt", "test_main.py", "users.py"}


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def refused(folder: str) -> str:
    with pytest.raises(SystemExit) as exited:
        list(create_project(Path(folder)))
    return str(exited.value)


def test_a_project_has_its_files_and_the_commands_to_go_on_with(tmp_path: Path) -> None:
    with running("-m", "gaman", "new", "my-shop", cwd=tmp_path) as program:
        assert program.wait() == 0, program.stderr
        assert program.stdout == (
            "gaman: my-shop is ready; go on with\n"
            "\n"
            "    cd my-shop\n"
            "    pip install -r requirements.txt\n"
            "    gaman serve main:app --debug --reload\n"
        )
        assert program.stderr == ""
    folder = tmp_path / "my-shop"
    assert files(folder) == FILES
    assert re.fullmatch(r"GAMAN_KEY=[\w-]{43,}\n", (folder / ".env").read_text())
    assert stat.S_IMODE((folder / ".env").stat().st_mode) == 0o600
    assert (folder / "README.md").read_text().startswith("# my-shop\n")
    assert (folder / "requirements.txt").read_text() == f"gaman[test]~={__version__}\n"
    assert (folder / ".gitignore").read_text().splitlines()[0] == ".env"
    # A new secret for each project.
    list(create_project(tmp_path / "other"))
    assert (tmp_path / "other" / ".env").read_text() != (folder / ".env").read_text()


def test_its_readme_says_how_to_install_run_test_and_deploy(tmp_path: Path) -> None:
    list(create_project(tmp_path / "site"))
    text = (tmp_path / "site" / "README.md").read_text()
    install, *others = [line.partition(" #")[0].strip() for line in text.splitlines() if line.startswith("    ")]
    assert install.endswith("pip install -r requirements.txt")
    develop, test, deploy = (shlex.split(line) for line in others)
    assert test == ["pytest"]
    parse = make_parser().parse_args
    assert (parse(develop[1:]).debug, parse(develop[1:]).reload, parse(deploy[1:]).workers) == (True, True, 2)
    assert len(text.splitlines()) <= 13


def test_the_working_directory_may_hold_a_virtual_environment_and_hidden_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "site 1"
    for name in (".git", ".venv", "venv"):
        (folder / name).mkdir(parents=True)
    (folder / "venv" / "pyvenv.cfg").touch()
    monkeypatch.chdir(folder)
    assert not [line for line in create_project(Path()) if "cd " in line]
    assert files(folder) == FILES | {".git", ".venv", "venv"}
    assert (folder / "README.md").read_text().startswith("# site 1\n")


@pytest.mark.parametrize("name", [*sorted(FILES), "notes.txt", "folder"])
def test_a_folder_in_use_is_refused_and_unchanged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / name).write_text("mine")
    monkeypatch.chdir(tmp_path)
    assert refused("site") == f"gaman: site isn't empty: it has {name}; choose a new folder, because nothing is overwritten"
    assert files(tmp_path / "site") == {name}
    assert (tmp_path / "site" / name).read_text() == "mine"


@pytest.mark.parametrize("name", ["my shop", "-x", "a\nb", "shop!", "😀"])
def test_a_name_that_is_awkward_in_a_shell_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    assert refused(name) == f"gaman: {name!r} isn't a name for a project; write letters, digits, - and _, such as my-site"
    assert files(tmp_path) == set()


def test_a_place_that_cannot_hold_a_project_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    assert refused("no/site") == "gaman: there is no folder no; make it first"
    assert refused("file") == "gaman: can't write to file: File exists"
    assert refused("file/site") == "gaman: can't write to file/site: Not a directory"
    if os.geteuid() != 0:
        tmp_path.chmod(0o500)
        assert refused("site") == "gaman: can't write to site: Permission denied"
