"""Measure: python -m benchmarks."""

from __future__ import annotations

from benchmarks import in_process

if __name__ == "__main__":
    in_process.main()
