"""What gaman costs, measured against bare ASGI callables that do the same work, and against its peers."""
