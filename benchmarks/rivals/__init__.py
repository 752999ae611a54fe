"""The contenders: bare callables, gaman and its peers, and how each is set up."""
