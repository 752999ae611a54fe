"""The site of these tests, served by several processes at once; holds no test."""

from __future__ import annotations

import json
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.faults.site_under_load import SITE
from tests.serving import Program, get, running_script, until


@contextmanager
def crew(folder: Path, driver: Mapping[str, Any], workers: int) -> Generator[Program]:
    """Serve SITE by *workers* processes for as long as the block lasts, which begins when each of them answers."""
    source = SITE.replace('"no session here"', "str(os.getpid())").replace("port=0", f"port=0, workers={workers}")
    with running_script(source, folder, env={"DRIVER": json.dumps(driver)}, name="site.py") as program:
        pids: set[bytes] = set()

        def all_answer() -> bool:
            pids.add(get(program.port, "/plain").body)
            return len(pids) == workers

        until(all_answer, f"answers of {workers} processes")
        yield program
