"""Watcher: reports to the supervisor which Python files have changed."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from multiprocessing import Pipe
from pathlib import Path

_PAUSE = 0.25
"""Seconds between two scans of all files, where watchfiles isn't installed."""


class Watcher:
    """Watches the Python files in the working directory and beside the script; *changes* becomes readable after a change."""

    def __init__(self) -> None:
        self.changes, self._report = Pipe(duplex=False)
        self._stop = threading.Event()
        folders = [os.getcwd(), os.path.abspath(sys.path[0])]
        self._thread = threading.Thread(target=self._watch, args=(_find_changes(folders, self._stop),), daemon=True)
        self._thread.start()

    def read(self) -> str:
        """Return the names of the files that have changed, as a line for the log."""
        changed: set[Path] = set()
        while self.changes.poll():
            changed |= self.changes.recv()
        here = Path.cwd()
        return ", ".join(f"'{path.relative_to(here) if path.is_relative_to(here) else path}'" for path in sorted(changed))

    def stop(self) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self, changes: Iterator[set[Path]]) -> None:
        for changed in changes:
            self._report.send(changed)


def _find_changes(folders: Sequence[str], stop: threading.Event) -> Iterator[set[Path]]:
    try:
        from watchfiles import watch  # noqa: PLC0415 - optional
    except ImportError:
        yield from _scan_repeatedly(folders, stop)
    else:
        for changes in watch(*folders, watch_filter=_is_source, stop_event=stop, ignore_permission_denied=True):
            yield {Path(path) for _, path in changes}


def _is_source(_change: object, path: str) -> bool:
    return path.endswith(".py") and not os.path.basename(path).startswith(".")


def _scan_repeatedly(folders: Sequence[str], stop: threading.Event) -> Iterator[set[Path]]:
    """Scan every Python file several times a second, with the standard library only."""
    seen = _sources(folders)
    while not stop.wait(_PAUSE):
        before, seen = seen, _sources(folders)
        if changed := {path for path, _ in before ^ seen}:
            yield changed


def _sources(folders: Sequence[str]) -> set[tuple[Path, int]]:
    """Return the Python files in *folders* with their times of modification, without hidden folders and virtual environments."""
    sources: set[tuple[Path, int]] = set()
    for root in folders:
        for folder, below, names in os.walk(root):
            if "pyvenv.cfg" in names:
                below.clear()
                continue
            below[:] = [name for name in below if not name.startswith(".")]
            for path in [Path(folder, name) for name in names if name.endswith(".py")]:
                try:
                    sources.add((path, path.stat().st_mtime_ns))
                except OSError:
                    # An editor is replacing it, or it is a dangling link.
                    continue
    return sources
