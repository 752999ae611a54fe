"""The questions that the benchmarks answer, one file each."""
