"""The peers and the bare callables, and how each is set up."""
