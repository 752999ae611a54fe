"""The results of a run: figures, tables, charts, and the comparison of two runs."""
