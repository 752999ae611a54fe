"""Files of settings such as .env: read into the environment by --env-file, and given a secret by `gaman key --env`."""

from __future__ import annotations

import os
import secrets
import shlex
import stat
import sys
from io import StringIO
from multiprocessing import parent_process
from pathlib import Path

# The names that a file has set, joined by the one character that no name has. Worker processes inherit it.
_NAMES = "GAMAN_ENV_FILE_NAMES"


def load_settings(file: Path) -> None:
    """Set the variables of *file* that the environment doesn't have. SystemExit says why the file can't be read.

    A worker inherits what the first process has read. It reads the file again, so that a reload and SIGHUP apply its changes.
    """
    names: set[str] = set()
    is_worker = parent_process() is not None
    if is_worker:
        if not file.is_file():
            # It was removed, or it was a pipe of the first process. What it said still holds.
            return
        names.update(filter(None, os.environ.get(_NAMES, "").split("=")))
    values = _parse(file, _read(file))
    if not is_worker:
        # A service may own the file by its group.
        warn_of_readers(file, stat.S_IROTH)
    for name in names - values.keys():
        os.environ.pop(name, None)
    names = {name for name in values if name in names or name not in os.environ}
    for name in names:
        try:
            os.environ[name] = values[name]
        except (ValueError, OSError):
            sys.exit(f"gaman: {file} sets {name!r}, which can't be a variable of the environment; correct its line")
    os.environ[_NAMES] = "=".join(names)


def add_key(file: Path) -> None:
    """Add a new GAMAN_KEY to *file*, which only its owner can read if it is new. SystemExit: it has one, or can't be written."""
    before = _read(file) if file.exists() else b""
    if _parse(file, before).get("GAMAN_KEY"):
        sys.exit(f"gaman: {file} already has a GAMAN_KEY; sessions sealed with it would be lost, so remove it yourself first")
    newline = "" if not before or before.endswith(b"\n") else "\n"
    try:
        # An existing file keeps its mode.
        with open(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "ab") as opened:
            opened.write(f"{newline}GAMAN_KEY={secrets.token_urlsafe(32)}\n".encode())
    except OSError as error:
        sys.exit(f"gaman: can't write {file}: {error.strerror}")


def warn_of_readers(file: Path, readers: int = stat.S_IRGRP | stat.S_IROTH) -> None:
    """Warn on stderr if *file* has one of these bits of its mode."""
    if file.stat().st_mode & readers:
        print(f"gaman: other users of this machine may read {file}; run `chmod 600 {shlex.quote(str(file))}`", file=sys.stderr)


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        sys.exit(f"gaman: there is no file {file}; `gaman key --env {shlex.quote(str(file))}` makes one with a GAMAN_KEY")
    except OSError as error:
        sys.exit(f"gaman: can't read {file}: {error.strerror}; give the path of a file of NAME=value lines")


def _parse(file: Path, data: bytes) -> dict[str, str]:
    """Return the values that *data* gives to names. SystemExit names a line that can't be read."""
    from dotenv.parser import parse_stream  # noqa: PLC0415 - most commands read no file

    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        sys.exit(f"gaman: line {line} of {file} isn't UTF-8; save the file as UTF-8")
    values: dict[str, str] = {}
    # dotenv_values() would skip a line that it can't read.
    for binding in parse_stream(StringIO(text)):
        if binding.error:
            blank = binding.original.string.partition(binding.original.string.lstrip())[0]
            line = binding.original.line + blank.count("\n")
            sys.exit(f"gaman: line {line} of {file} isn't NAME=value, or its quote isn't closed; correct that line")
        if binding.key is not None and binding.value is not None:
            values[binding.key] = binding.value
    return values
