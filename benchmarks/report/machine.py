"""The conditions of a run: the machine, the versions, the commit and the method."""

from __future__ import annotations

import gc
import subprocess
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PACKAGES = ("gaman", "msgspec", "cryptography", "uvicorn", "uvloop", "httptools", "anyio", "redis", "pymongo", "aiosqlite")
# pyperf's facts about a machine, without those that only identify it.
_KNOWN = (
    ("machine", "cpu_model_name"),
    ("cores", "cpu_count"),
    ("frequency", "cpu_freq"),
    ("system", "platform"),
    ("python", "python_version"),
    ("implementation", "python_implementation"),
    ("compiler", "python_compiler"),
    ("load before", "load_avg_1min"),
)


def commit() -> str:
    """Return the commit that is measured, marked if files differ from it, or "unknown"."""
    try:
        command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def about() -> dict[str, str]:
    pyperf: Any = import_module("pyperf")
    known = pyperf.Run([1.0], collect_metadata=True).get_metadata()
    found = {name: str(known[key]) for name, key in _KNOWN if key in known}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    found["commit"] = commit()
    found["garbage collector"] = f"{'on' if gc.isenabled() else 'off'}; objects from before the rounds are frozen"
    return found
