"""`gaman new`: writes a small project, which is in the folder _project, with a secret of its own."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from gaman._command_settings import add_key
from gaman._version import __version__

_TEMPLATES = Path(__file__).parent / "_project"
# The files to write, and their templates.
_FILES = {
    "main.py": "main.py",
    "users.py": "users.py",
    "test_main.py": "test_main.py",
    "requirements.txt": "requirements.txt",
    "README.md": "README.md",
    ".gitignore": "gitignore",
}
_is_name = re.compile(r"\w[\w.-]*", re.ASCII).fullmatch


def create_project(folder: Path) -> Iterator[str]:
    """Write the project into *folder*, and yield the lines to print. SystemExit: the folder is in use, or can't be written."""
    name = folder.resolve().name
    if not folder.exists() and _is_name(name) is None:
        sys.exit(f"gaman: {str(folder)!r} isn't a name for a project; write letters, digits, - and _, such as my-site")
    try:
        folder.mkdir(exist_ok=True)
        _refuse_occupied(folder)
        for file, template in _FILES.items():
            text = (_TEMPLATES / template).read_text(encoding="utf-8")
            if template in ("README.md", "requirements.txt"):
                text = text.replace("NAME", name).replace("VERSION", __version__)
            # Never over a file that has appeared meanwhile.
            with (folder / file).open("x", encoding="utf-8") as opened:
                opened.write(text)
    except FileNotFoundError:
        sys.exit(f"gaman: there is no folder {folder.parent}; make it first")
    except OSError as error:
        sys.exit(f"gaman: can't write to {error.filename}: {error.strerror}")
    add_key(folder / ".env")
    yield f"gaman: {name} is ready; go on with"
    yield ""
    if folder.resolve() != Path.cwd():
        yield f"    cd {folder}"
    yield "    pip install -r requirements.txt"
    yield "    gaman serve main:app --debug --reload"


def _refuse_occupied(folder: Path) -> None:
    """Exit if *folder* has files. Names that begin with a dot, such as .git, and a virtual environment may be there."""
    for path in sorted(folder.iterdir()):
        is_harmless = path.name.startswith(".") or (path / "pyvenv.cfg").exists()
        if not is_harmless or path.name in (*_FILES, ".env"):
            sys.exit(f"gaman: {folder} isn't empty: it has {path.name}; choose a new folder, because nothing is overwritten")
