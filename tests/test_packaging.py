"""The wheel and the source distribution have the right contents, and users can install and type-check the wheel."""

from __future__ import annotations

import os
import shutil
import site
import subprocess
import sys
import tarfile
import venv
from collections.abc import Sequence
from configparser import ConfigParser
from email.message import Message
from email.parser import Parser
from pathlib import Path
from typing import NamedTuple
from zipfile import ZipFile

import pytest

import gaman
from tests.typing.test_typing import CHECKERS, assert_passes, check, make_project

ROOT = Path(__file__).parent.parent
IGNORED = shutil.ignore_patterns(
    ".git", ".env", ".venv*", ".*_cache", ".hypothesis", "__pycache__", "dist", "build", "node_modules", "runs"
)


class Built(NamedTuple):
    """The wheel of a copy of the tree, its source distribution unpacked, and the wheel of that."""

    tree: Path
    wheel: Path
    sdist: Path
    wheel_of_sdist: Path


def run(*command: str | Path, cwd: Path) -> str:
    """Return the output of *command*; AssertionError shows all output if it fails."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    folder = tmp_path_factory.mktemp("packaging")
    tree = folder / "tree"
    shutil.copytree(ROOT, tree, ignore=IGNORED)
    # Stray files, which the wheel must not contain.
    (tree / "stray.py").touch()
    (tree / "integrations" / "stray.py").touch()

    def build(out: Path, *arguments: str) -> Path:
        run(sys.executable, "-m", "build", "--no-isolation", "--outdir", out, *arguments, cwd=tree)
        [wheel] = out.glob("*.whl")
        return wheel

    # Without an argument, the wheel is built from the source distribution.
    wheel, wheel_of_sdist = build(folder / "a", "--wheel"), build(folder / "b")
    [archive] = (folder / "b").glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(folder / "sdist", filter="data")
    [sdist] = (folder / "sdist").iterdir()
    return Built(tree, wheel, sdist, wheel_of_sdist)


def names(wheel: Path) -> Sequence[str]:
    with ZipFile(wheel) as opened:
        return opened.namelist()


def read(wheel: Path, suffix: str) -> str:
    with ZipFile(wheel) as opened:
        [name] = [name for name in opened.namelist() if name.endswith(suffix)]
        return opened.read(name).decode()


@pytest.fixture
def metadata(built: Built) -> Message:
    return Parser().parsestr(read(built.wheel, ".dist-info/METADATA"))


def test_the_wheel_puts_five_packages_and_nothing_else_into_site_packages(built: Built) -> None:
    tops = {name.split("/")[0] for name in names(built.wheel)}
    [info] = [top for top in tops if top.endswith(".dist-info")]
    assert tops == {"gaman", "gaman_cors", "gaman_headers", "gaman_session", "gaman_static", info}


def test_the_wheel_has_every_module_and_no_stray_file(built: Built) -> None:
    modules = {
        path.relative_to(root).as_posix()
        for root in (built.tree, built.tree / "integrations")
        for path in root.glob("gaman*/**/*.py")
    }
    packed = {name for name in names(built.wheel) if ".dist-info/" not in name}
    assert {name for name in packed if name.endswith(".py")} == modules
    assert {Path(name).name for name in packed - modules} == {
        *("py.typed", "README.md", "redis.lua", "redis_session.lua", "gitignore", "requirements.txt")
    }
    assert {"gaman_session/README.md", "gaman/_project/README.md"} <= packed


def test_every_package_is_marked_as_typed(built: Built) -> None:
    assert {f"{name}/py.typed" for name in ("gaman", "gaman_cors", "gaman_headers", "gaman_session", "gaman_static")} <= set(
        names(built.wheel)
    )


def test_the_wheel_has_its_licence(built: Built, metadata: Message) -> None:
    assert metadata["License-Expression"] == "MIT"
    assert metadata["License-File"] == "LICENSE"
    assert "Permission is hereby granted" in read(built.wheel, ".dist-info/licenses/LICENSE")


def test_the_metadata_name_required_and_optional_packages(metadata: Message) -> None:
    assert (metadata["Name"], metadata["Requires-Python"]) == ("gaman", ">=3.11")
    assert set(metadata.get_all("Provides-Extra", [])) == {"redis", "sql", "mongodb", "granian", "test", "all"}
    needed = metadata.get_all("Requires-Dist", [])
    for extra, package in {
        "redis": "redis",
        "sql": "aiosqlite",
        "mongodb": "pymongo",
        "granian": "granian",
        "test": "httpx",
    }.items():
        assert [need for need in needed if need.startswith(package) and need.endswith(f"extra == '{extra}'")]
    assert [need for need in needed if need.startswith("uvicorn") and "extra" not in need]


def test_the_command_is_an_entry_point(built: Built) -> None:
    entry_points = ConfigParser()
    entry_points.read_string(read(built.wheel, ".dist-info/entry_points.txt"))
    assert {section: dict(entry_points[section]) for section in entry_points.sections()} == {
        "console_scripts": {"gaman": "gaman.__main__:main"}
    }


def test_the_source_distribution_builds_the_same_wheel(built: Built) -> None:
    with ZipFile(built.wheel) as one, ZipFile(built.wheel_of_sdist) as other:
        assert {info.filename: info.CRC for info in one.infolist()} == {info.filename: info.CRC for info in other.infolist()}


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_source_distribution_has_all_that_builds_and_tests_it(built: Built) -> None:
    assert files(built.sdist) == files(built.tree) - {"stray.py"} | {"PKG-INFO"}
    assert {"Makefile", ".ci/run", ".gitignore", "LICENSE", "tests/conftest.py", "examples/README.md"} <= files(built.sdist)
    assert os.access(built.sdist / ".ci" / "run", os.X_OK)


def test_the_source_distribution_passes_its_own_structural_tests(built: Built) -> None:
    folder = built.sdist.with_name("without stray files")
    shutil.copytree(built.sdist, folder, ignore=shutil.ignore_patterns("stray.py"))
    checks = ["tests/test_architecture.py", "tests/test_readme.py", "-k", "tables or declared or link or size"]
    assert " passed" in run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *checks, cwd=folder)


def test_the_version_has_one_source(built: Built, metadata: Message) -> None:
    assert metadata["Version"] == gaman.__version__
    assert built.wheel.name.startswith(f"gaman-{gaman.__version__}-")


def test_the_classifiers_name_the_pythons_that_ci_may_test(metadata: Message) -> None:
    named = {line.removeprefix("Programming Language :: Python :: ") for line in metadata.get_all("Classifier", [])}
    assert {"3.11", "3.12", "3.13"} <= named


@pytest.fixture(scope="module")
def installed(built: Built, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a new environment in which the wheel is installed."""
    folder = tmp_path_factory.mktemp("installed") / "venv"
    venv.create(folder, symlinks=True)
    pip = (sys.executable, "-m", "pip", "--python", folder / "bin" / "python")
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", built.wheel, cwd=folder)
    # Its dependencies come from this environment: a .pth file adds its path last, and .pth files in that path are ignored.
    (packages_of(folder) / "borrowed.pth").write_text("\n".join(site.getsitepackages()))
    return folder


def packages_of(environment: Path) -> Path:
    [packages] = environment.glob("lib/python*/site-packages")
    return packages


def test_an_installed_wheel_works_in_a_new_environment(installed: Path, tmp_path: Path) -> None:
    modules = ("gaman", "gaman_session", "gaman.session", "gaman.session.asgi", "gaman.session.testing")
    code = f"import sys, {', '.join(modules)}; print(*(sys.modules[name].__file__ for name in {modules}))"
    for file in run(installed / "bin" / "python", "-W", "error", "-c", code, cwd=tmp_path).split():
        assert Path(file).is_relative_to(packages_of(installed))
    assert len(run(installed / "bin" / "gaman", "key", cwd=tmp_path).strip()) >= 43
    run(installed / "bin" / "gaman", "new", "site", cwd=tmp_path)
    assert "require_login" in run(installed / "bin" / "gaman", "routes", "main:app", cwd=tmp_path / "site")


@pytest.mark.parametrize("checker", CHECKERS)
def test_an_installed_wheel_is_typed_in_a_users_project(checker: str, installed: Path, tmp_path: Path) -> None:
    project = make_project(tmp_path / "project")
    # Only the installed copy has this module, so the checker must read that copy.
    (packages_of(installed) / "gaman" / "_installed.py").write_text("YES: bool = True\n")
    with (project / "session.py").open("a") as file:
        file.write("\nfrom gaman._installed import YES\n\nassert_type(YES, bool)\n")
    assert_passes(check(checker, project, installed / "bin" / "python"))
