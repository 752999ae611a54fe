"""Measure: python -m benchmarks, with in_process, over_http, growth or owners, and for all but the first names of stores."""

from __future__ import annotations

import sys

from benchmarks import growth, in_process, over_http, owners

if __name__ == "__main__":
    question, *names = sys.argv[1:] or [""]
    if question in ("", "in_process"):
        in_process.main()
    if question in ("", "over_http"):
        over_http.main(names)
    if question == "growth":
        growth.main(names)
    if question == "owners":
        owners.main(names)
