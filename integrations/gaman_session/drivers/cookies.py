"""Sessions in the browser's cookie: nothing to run, and nothing that could be taken back.

Three promises need a store that this driver does not have. Two requests at once each send their own copy of the session, and the
last answer to arrive wins; so update() is atomic within its own request alone. A logout removes the cookie from the browser, but a
copy that somebody has kept opens the session until it expires. And each change, like each refresh of an idle limit, sends the
cookie anew.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

import msgspec

from gaman_session._driver import Outcome, Record


class Carried(msgspec.Struct, array_like=True, frozen=True):
    """What a cookie carries, sealed."""

    id: bytes
    is_transient: bool
    created: float
    expires: float
    deadline: float
    fields: dict[str, bytes]


_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Carried).decode


def unpack(payload: bytes) -> Carried | None:
    """Return what pack() was given, or None where another version of this package wrote it."""
    try:
        return _decode(payload)
    except msgspec.DecodeError:
        return None


def pack(id: bytes, is_transient: bool, record: Record) -> bytes:
    """Return the bytes to seal for a session."""
    return _encode((id, is_transient, record.created, record.expires, record.deadline, record.fields))


class CookiesDriver:
    """Holds, for the time of one request, the one session that came with it."""

    name = "cookies"
    shared = True

    def __init__(self, id: str | None = None, record: Record | None = None) -> None:
        self._id = id
        self.record = record

    async def open(self) -> None:
        """Nothing to get ready."""

    async def close(self) -> None:
        """Nothing to let go."""

    async def load(self, id: str, *, now: float) -> Record | Literal[Outcome.ENDED] | None:
        """Return the session that came with the request, or None."""
        return self._find(id, now)

    async def create(self, id: str, record: Record) -> None:
        """Have a new session go back with the response."""
        self._id, self.record = id, record

    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None
    ) -> Outcome:
        """Set and delete single fields."""
        record = self._find(id, now)
        if record is None:
            return Outcome.ABSENT
        record.fields.update(sets)
        for field in deletes:
            record.fields.pop(field, None)
        if not record.fields:
            self.record = None
            return Outcome.EMPTIED
        if deadline is not None:
            record.deadline = min(deadline, record.expires)
        return Outcome.WRITTEN

    async def swap(self, id: str, field: str, old: bytes | None, new: bytes, *, now: float, deadline: float | None) -> Outcome:
        """Set one field; within one request nobody else can have changed it."""
        return await self.apply(id, {field: new}, (), now=now, deadline=deadline)

    async def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
        """Have *record* go back in the place of what came."""
        if self._find(id, now) is None:
            return Outcome.ABSENT
        self._id, self.record = new_id, record
        return Outcome.WRITTEN

    async def destroy(self, id: str, *, now: float) -> None:
        """Have nothing go back."""
        self.record = None

    async def purge(self, *, now: float, limit: int) -> int:
        """Browsers do it by themselves."""
        return 0

    def _find(self, id: str, now: float) -> Record | None:
        record = self.record
        return record if id == self._id and record is not None and record.deadline > now else None
