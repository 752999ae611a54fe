"""Worker count: how many processes gaman's server, uvicorn, hypercorn or Granian serves with, as far as one of them can know."""

from __future__ import annotations

import sys
from contextlib import suppress
from inspect import signature
from pathlib import PurePath
from typing import Any

serving = 1
"""How many processes gaman's own server serves with; it sets this."""


def count_workers() -> int:
    """Return the number of workers, this process included; 1 if it can't be known, and in any other server's process but a worker.

    uvicorn and hypercorn tell each worker the number. Granian tells it only its own place, and its command line has the number. A
    script that runs Granian may have it from anywhere. There, the first worker returns 1, and the others return their places.
    """
    # Their workers are child processes of multiprocessing, so where nothing has imported it, there are none.
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is None:
        return serving
    process: Any = multiprocessing.current_process()
    # None of this is documented. Where another version differs, the number is unknown, and the server must start all the same.
    counts: list[object] = []
    with suppress(Exception):
        # A child process keeps the call that it runs. The main process has none.
        target = process._target
        server = target.__module__.partition(".")[0]
        if server == "granian" and next(iter(signature(target).parameters)) == "worker_id":
            counts.append(process._args[0])
            counts.append(_read_command_line())
        elif server in ("uvicorn", "hypercorn"):
            config = process._kwargs["config"]
            # uvicorn ignores the number while it reloads.
            if not getattr(config, "should_reload", False):
                counts.append(config.workers)
    return max([serving, *(count for count in counts if isinstance(count, int))])


def _read_command_line() -> object:
    """Return the number of workers that the command `granian` was given, or None if a script runs Granian."""
    program = PurePath(sys.argv[0])
    if program.stem != "granian" and program.parts[-2:] != ("granian", "__main__.py"):
        return None
    cli: Any = sys.modules["granian.cli"]
    parsed = cli.cli.make_context("granian", sys.argv[1:], auto_envvar_prefix="GRANIAN", resilient_parsing=True).params
    # The command has read GRANIAN_WORKERS before it loads these files, which may set it for its workers only.
    return None if parsed["env_files"] else parsed["workers"]
