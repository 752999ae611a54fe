"""Keyspace: the driver's keys in Redis, and the calls to one session's hash, one owner's set, or the index of all."""

from __future__ import annotations

from collections.abc import Awaitable, Collection, Iterable, Iterator, Sequence
from typing import Any, Final, Literal, cast

from gaman_session._damage import Damage
from gaman_session._driver import LARGE, Outcome, Ownership, Record
from gaman_session.drivers._redis_calls import Calls
from gaman_session.drivers._redis_failures import CallError
from gaman_session.drivers._redis_records import read_outcome, read_record
from gaman_session.drivers._redis_script import Call

_MAX_LARGE_IDS: Final = 1000
_TAG_LENGTH: Final = 3
"""Digits of a session's id that are its hash tag."""


class Keyspace:
    """The keys that begin with *prefix*; *calls* raises CallError."""

    def __init__(self, prefix: str, calls: Calls, *, is_cluster: bool) -> None:
        self._prefix = prefix
        self._calls = calls
        self._is_cluster = is_cluster
        self._damage = Damage("redis")
        self._live = prefix + "live"
        self._large: set[str] = set()
        """Sessions that were large when they were last loaded: a load by themselves, without trying first, saves a round trip."""

    def key(self, id: str) -> str:
        """Return the key of a session: in a Cluster, with a hash tag."""
        return f"{self._prefix}{{{id[:_TAG_LENGTH]}}}{id}" if self._is_cluster else self._prefix + id

    def special_key(self, name: str) -> str:
        """Return a key that is no session's, always in the same slot."""
        return f"{self._prefix}{{000}}{name}" if self._is_cluster else self._prefix + name

    async def load(self, id: str, now: float, *, is_one_of_several: bool = False) -> Record | Literal[Outcome.ENDED] | None:
        """Return the session *id*, ENDED for its tombstone, or None if it is absent, expired or damaged."""
        keys = (self.key(id),)
        load = Call("load", keys, is_one_of_several=is_one_of_several)
        try:
            found: Any = b"LARGE" if id in self._large else await self._calls.call(load)
            if found == b"LARGE":
                found = await self._calls.call(Call("load", keys, (), (True,)), is_large=True)
        except CallError as error:
            self._check_type(id, error)
            return None
        return self._record(id, found, now)

    async def look(self, id: str, now: float) -> Record | Literal[Outcome.ENDED] | None:
        """Return what load() does, without the fields."""
        return self._record(id, await self.call(id, Call("look", (self.key(id),))), now)

    async def write(self, operation: str, id: str, others: Sequence[str], values: Sequence[bytes], *arguments: Any) -> Outcome:
        """Return the outcome of *operation* on the session *id*, with *others* as further keys, which don't exist in a Cluster."""
        try:
            return read_outcome(await self._calls.call(Call(operation, self.keys(id, *others), values, arguments)))
        except CallError as error:
            self._check_type(id, error)
            return Outcome.ABSENT

    async def call(self, id: str, call: Call) -> Any:
        """Return the result of *call*, or None if the key of the session *id* holds no hash."""
        try:
            return await self._calls.call(call)
        except CallError as error:
            self._check_type(id, error)
            return None

    def keys(self, id: str, *others: str) -> Sequence[str]:
        """Return the keys of a call that writes to a session: its own, and outside a Cluster the index of all and *others*."""
        return (self.key(id),) if self._is_cluster else (self.key(id), self._live, *(self._prefix + other for other in others))

    async def enter(self, id: str, ownership: Ownership, expires: float, *, now: float, is_carried: bool = False) -> Outcome:
        """Put *id* into the owner's set; REVOKED, unless *is_carried*: the session had this ownership before."""
        arguments = (now, repr(ownership.since), id, repr(expires), is_carried)
        return read_outcome(await self._calls.call(Call("enter", (self._owner_key(ownership.owner),), (), arguments)))

    async def leave(self, owner: str, ids: Collection[str], *, now: float) -> None:
        """Remove *ids* from the owner's set."""
        if ids:
            await self._calls.call(Call("leave", (self._owner_key(owner),), (), (now, [*ids])))

    async def members(self, operation: str, owner: str, *, now: float) -> list[str]:
        """Return the ids in the owner's set, after *operation*, which is owned or end_owned."""
        found: dict[bytes, bytes] = await self._calls.call(Call(operation, (self._owner_key(owner),), (), (now,))) or {}
        return [member.decode() for member in found if member != b"ended"]

    def ends(self, *, now: float) -> Iterator[Awaitable[Any]]:
        """Yield the calls that end all sessions: one, or in a Cluster one for each hash tag."""
        keys: Iterable[Sequence[str]] = [(f"{self._prefix}ending", self._live)]
        if self._is_cluster:
            keys = ((f"{self._prefix}{{{tag:03x}}}ending",) for tag in range(16**_TAG_LENGTH))
        for each in keys:
            yield self._calls.call(Call("end_everyone", each, (), (now,)))

    async def count(self, *, now: float) -> int:
        """Return how many ids the index of all has."""
        return cast("int", await self._calls.call(Call("count", (self._live,), (), (now,))))

    async def tidy(self, key: str | None, *, now: float) -> bool:
        """Remove a thousand expired ids from the owner's set at *key*, or from the index of all; return whether more are left."""
        return bool(await self._calls.call(Call("tidy", (key or self._live,), (), (now,))))

    def _owner_key(self, owner: str) -> str:
        return self._prefix + owner_key(owner)

    def _record(self, id: str, found: dict[bytes, bytes] | None, now: float) -> Record | Literal[Outcome.ENDED] | None:
        if not found:
            return None
        try:
            record = read_record(found, now)
        except ValueError:
            self._damage.report(id, "its hash")
            return None
        if isinstance(record, Record):
            if int(found[b"size"]) <= LARGE:
                self._large.discard(id)
            else:
                if len(self._large) == _MAX_LARGE_IDS:
                    self._large.clear()
                self._large.add(id)
        return record

    def _check_type(self, id: str, error: CallError) -> None:
        """Report a key that holds no hash, or raise any other *error*."""
        text = str(error.failure)
        if "WRONGTYPE" not in text or text.startswith("ENDING "):
            raise error
        self._damage.report(id, "its hash")


def owner_key(owner: str) -> str:
    """Return the key of an owner's set, without the prefix."""
    return f"owner:{owner}"
