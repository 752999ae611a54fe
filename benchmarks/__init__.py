"""The cost of gaman, measured against bare ASGI callables that do the same work, and against its peers."""
