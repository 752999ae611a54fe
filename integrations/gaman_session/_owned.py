"""OwnedSession: a session of an owner, as sessions.list() returns it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec


class OwnedSession(msgspec.Struct, frozen=True):
    """A session of an owner, as it was when it was listed."""

    handle: str
    """The session's `ctx.session.id`, which end() takes. No cookie can be made of it."""
    created_at: datetime
    """When it began or was last regenerated."""
    last_used_at: datetime | None
    """When it was last used, to a tenth of `idle_timeout`. None without an idle limit, because a read then writes nothing."""
    expires_at: datetime
    """When it expires unless it is used again. For a session in a cookie, up to a fifth of `idle_timeout` earlier."""
    note: Any
    """The note that login() or set_owner() was given, or None."""
