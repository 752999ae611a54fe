"""Measure: python -m benchmarks, with the name of one question or none, and of stores for over_http."""

from __future__ import annotations

import sys

from benchmarks import in_process, over_http

if __name__ == "__main__":
    question, *names = sys.argv[1:] or [""]
    if question in ("", "in_process"):
        in_process.main()
    if question in ("", "over_http"):
        over_http.main(names)
