"""Disconnects: the error in an application that sends to a client which has disconnected, and the errors that come of it."""

from __future__ import annotations

from typing import cast

from gaman.errors import ClientDisconnected


class Disconnected(ClientDisconnected, ConnectionResetError):
    """An OSError (ASGI 2.4), which an App understands as well."""


def is_of_disconnect(error: BaseException | None, seen: frozenset[int] = frozenset()) -> bool:
    """Return whether *error*, its cause or, of a group, each error comes of a disconnected client. *seen* are ids of errors."""
    # An error that is raised again out of its group is in a cycle.
    while error is not None and id(error) not in seen:
        if isinstance(error, ClientDisconnected):
            return True
        seen |= {id(error)}
        if isinstance(error, BaseExceptionGroup):
            group = cast("BaseExceptionGroup[BaseException]", error)
            return all(is_of_disconnect(each, seen) for each in group.exceptions)
        error = error.__cause__ or error.__context__
    return False
