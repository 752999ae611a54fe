"""Worker count: how many processes gaman's server, uvicorn, hypercorn, Granian or gunicorn serves with, as far as one can know."""

from __future__ import annotations

import sys
from contextlib import suppress
from inspect import currentframe, signature
from pathlib import PurePath
from typing import Any

serving = 1
"""How many processes gaman's own server serves with; it sets this."""


def count_workers() -> int:
    """Return the number of workers, this process included; 0 in a worker that can't know it, and 1 in any other process.

    uvicorn and hypercorn tell each worker the number. Granian tells it only its own place, and its command line has the number. A
    script that runs Granian may have it from anywhere: there, the first worker can't know it, and the others return their places.
    A worker of gunicorn knows it in the thread that gunicorn has started.
    """
    # None of this is documented. Where another version differs, the number is unknown, and the server must start all the same.
    counts: list[object] = []
    if "gunicorn.arbiter" in sys.modules:
        counts.append(_find_gunicorns())
    # The others' workers are child processes of multiprocessing, so where nothing has imported it, there are none.
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is not None and multiprocessing.parent_process() is not None:
        counts.extend(_ask_process(multiprocessing.current_process()) or [None])
    count = max([serving, *(count for count in counts if isinstance(count, int))])
    return 0 if count == 1 and None in counts else count


def _ask_process(process: Any) -> list[object]:
    """Return what a child *process* knows of the number; None in it is an unknown number."""
    with suppress(Exception):
        # A child process keeps the call that it runs.
        target = process._target
        server = target.__module__.partition(".")[0]
        if server == "granian" and next(iter(signature(target).parameters)) == "worker_id":
            return [process._args[0], _read_command_line()]
        if server in ("uvicorn", "hypercorn"):
            config = process._kwargs["config"]
            # uvicorn ignores the number while it reloads.
            return [1 if getattr(config, "should_reload", False) else config.workers]
    return []


def _read_command_line() -> object:
    """Return the number of workers that the command `granian` was given, or None if a script runs Granian."""
    program = PurePath(sys.argv[0])
    if program.stem != "granian" and program.parts[-2:] != ("granian", "__main__.py"):
        return None
    cli: Any = sys.modules["granian.cli"]
    parsed = cli.cli.make_context("granian", sys.argv[1:], auto_envvar_prefix="GRANIAN", resilient_parsing=True).params
    # The command has read GRANIAN_WORKERS before it loads these files, which may set it for its workers only.
    return None if parsed["env_files"] else parsed["workers"]


def _find_gunicorns() -> object:
    """Return the number of gunicorn's workers, or None in a thread that gunicorn hasn't started."""
    # A worker is forked by a method of the master, which therefore still runs in it.
    frame = currentframe()
    with suppress(Exception):
        while frame is not None:
            if frame.f_code.co_name == "spawn_worker" and frame.f_globals["__name__"] == "gunicorn.arbiter":
                return frame.f_locals["self"].num_workers
            frame = frame.f_back
    return None
