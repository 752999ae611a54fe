"""Reload: the process that serves starts again when a Python file changes."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
from uvicorn.supervisors.basereload import BaseReload

from gaman._server._workers import Place, find_main, run_again, starting


class _FileWatcher(BaseReload):
    """Looks at every Python file several times a second, which no other package is needed for."""

    def startup(self) -> None:
        self.reloader_name = "gaman"
        self._seen = _sources(self.config.reload_dirs)
        super().startup()

    def should_restart(self) -> list[Path] | None:
        self.pause()
        seen = _sources(self.config.reload_dirs)
        changed = {path for path, _ in seen ^ self._seen}
        self._seen = seen
        return sorted(changed)


if TYPE_CHECKING:
    _Watcher = BaseReload
else:
    try:
        from uvicorn.supervisors.watchfilesreload import WatchFilesReload as _Watcher
    except ImportError:
        _Watcher = _FileWatcher


class Reloader(_Watcher):
    """Starts the one process below it again when a Python file changes, in the working directory or beside the script."""

    def __init__(self, sockets: list[socket.socket]) -> None:
        folders = [os.getcwd(), os.path.abspath(sys.path[0])]
        # watchfiles waits by itself, and begins to see changes when it is first asked: before the script is read, that is.
        pause = 0.25 if issubclass(Reloader, _FileWatcher) else 0
        config = uvicorn.Config("", reload=True, reload_dirs=folders, reload_delay=pause, log_config=None)
        super().__init__(config, partial(_serve_again, find_main()), sockets)

    def startup(self) -> None:
        with starting():
            super().startup()

    def restart(self) -> None:
        with starting():
            super().restart()


def _serve_again(run_main: Callable[[], object], sockets: list[socket.socket] | None) -> None:
    run_again(run_main, Place(sockets or [], None))


def _sources(folders: Sequence[Path]) -> set[tuple[Path, int]]:
    """Return the Python files in *folders* and when each was written, hidden folders and virtual environments left out."""
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
                except FileNotFoundError:
                    # An editor is just replacing it.
                    continue
    return sources
