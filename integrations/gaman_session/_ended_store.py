"""The records of the store of ended sessions: how long one is needed, and how it is made."""

from __future__ import annotations

from typing import Final

from gaman_session._driver import YEAR_10000, Driver, Record
from gaman_session._errors import SessionStoreError

MAX_COOKIE_AGE: Final = 400 * 86_400
"""Seconds. Browsers keep no cookie longer (RFC 6265bis, section 5.5), so no record is needed longer."""


async def try_create(store: Driver, id: str, fields: dict[str, bytes], now: float, deadline: float) -> SessionStoreError | None:
    """Make a record in the store of ended sessions; return the error if another process may have made it before."""
    try:
        await store.create(id, Record(fields, milliseconds(now), YEAR_10000 - 1, deadline))
    except SessionStoreError as error:
        if error.is_unconfirmed:
            raise
        return error
    return None


def milliseconds(now: float) -> float:
    """Return *now* in whole milliseconds, as a record's time."""
    return int(now * 1000) / 1000
