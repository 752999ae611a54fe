"""Measure: python -m benchmarks, with a question: in_process, over_http or growth, and for the last two the names of stores."""

from __future__ import annotations

import sys

from benchmarks import growth, in_process, over_http

if __name__ == "__main__":
    question, *names = sys.argv[1:] or [""]
    if question in ("", "in_process"):
        in_process.main()
    if question in ("", "over_http"):
        over_http.main(names)
    if question == "growth":
        growth.main(names)
