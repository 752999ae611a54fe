"""Disconnects: the error in an application that sends to a client which has disconnected, and the errors that come of it."""

from __future__ import annotations

from gaman.errors import ClientDisconnected, comes_of


class Disconnected(ClientDisconnected, ConnectionResetError):
    """An OSError (ASGI 2.4), which an App understands as well."""


def is_of_disconnect(error: BaseException | None) -> bool:
    """Return whether *error*, its cause or, of a group, each error comes of a disconnected client."""
    return comes_of(error, ClientDisconnected)
