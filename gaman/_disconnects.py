"""Disconnected: the error in an application that sends to a client which has disconnected."""

from __future__ import annotations

from gaman.errors import ClientDisconnected


class Disconnected(ClientDisconnected, ConnectionResetError):
    """An OSError (ASGI 2.4), which an App understands as well."""
