"""The peers in JavaScript, which npm installs: the programs in node/, on Node or on Bun."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).with_name("node")
BY_NPM = " (npm install --prefix benchmarks/rivals/node)"


@dataclass(frozen=True)
class Script:
    """A program in node/, called as the function `serve` of a Server is."""

    runtime: str
    file: str

    def __call__(self, kind: str, place: str) -> None:
        """Replace this process by the program."""
        os.environ["NODE_ENV"] = "production"
        path = _find_runtime(self.runtime)
        os.execv(path, [path, str(FOLDER / self.file), kind, place])

    @property
    def source(self) -> str:
        """The place of the program, in the form in which harness.line_of() names a function's."""
        return f"rivals/node/{self.file}:1"

    def absence(self, packages: Sequence[str]) -> str | None:
        """Return the reason why it can't run on this machine, or None."""
        if not _runs(_find_runtime(self.runtime)):
            return f"not installed: {self.runtime}{'' if self.runtime == 'node' else BY_NPM}"
        for package in packages:
            if not _manifest(package).exists():
                return f"not installed: {package}{BY_NPM}"
        return None

    def version(self, package: str) -> str:
        """Return the version of an installed npm package."""
        found: str = json.loads(_manifest(package).read_bytes())["version"]
        return found


def _manifest(package: str) -> Path:
    return FOLDER / "node_modules" / package / "package.json"


def _find_runtime(runtime: str) -> str:
    if runtime == "node":
        return shutil.which("node") or ""
    return str(FOLDER / "node_modules" / ".bin" / runtime)


@cache
def _runs(path: str) -> bool:
    """Return whether *path* is a program that runs: without npm's install scripts, Bun's is a placeholder."""
    try:
        return subprocess.run([path, "--version"], capture_output=True, check=False).returncode == 0
    except OSError:
        return False
