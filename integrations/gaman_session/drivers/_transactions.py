"""TransactionDriver: the calls of the contract that change a session, each in a transaction of the driver's store."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, TypeVar

from gaman_session._driver import Outcome, Ownership, Record
from gaman_session._rules import destroy_all
from gaman_session.drivers._reports import Reporter, reports

T = TypeVar("T")


class TransactionDriver(Reporter, ABC):
    """The base class of a driver whose store has a method for each of these calls, such as the Store in _rules.py."""

    @abstractmethod
    async def _transact(self, change: Callable[[Any], T], *ids: str, now: float, ownership: Ownership | None = None) -> T:
        """Return the result of *change*, which gets the store, once its changes of the sessions *ids* are stored.

        It may add one of these sessions to those of the owner.
        """

    @reports("create a session")
    async def create(self, id: str, record: Record) -> Literal[Outcome.REVOKED] | None:
        """Store a new session."""
        return await self._transact(lambda store: store.create(id, record), id, now=record.created, ownership=record.ownership)

    @reports("change a session")
    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        """Set and delete single fields of the session."""
        return await self._transact(
            lambda store: store.apply(id, sets, deletes, now=now, deadline=deadline, max_size=max_size), id, now=now
        )

    @reports("change a session")
    async def swap(
        self, id: str, field: str, old: bytes | None, new: bytes, *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        """Set one field if its bytes are *old*."""
        return await self._transact(
            lambda store: store.swap(id, field, old, new, now=now, deadline=deadline, max_size=max_size), id, now=now
        )

    @reports("rename a session")
    async def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
        """Replace the session by *record* under *new_id* if its version is still *version*."""
        return await self._transact(
            lambda store: store.rename(id, new_id, record, version=version, now=now),
            *(id, new_id),
            now=now,
            ownership=record.ownership,
        )

    @reports("end a session")
    async def destroy(self, id: str, *, now: float) -> None:
        """End the session, and those it was renamed to."""
        await destroy_all(id, lambda each: self._transact(lambda store: store.destroy(each, now=now), each, now=now))

    @reports("change a session")
    async def set_owner(
        self,
        id: str,
        ownership: Ownership | None,
        sets: Mapping[str, bytes],
        deletes: Collection[str],
        *,
        now: float,
        deadline: float | None,
        max_size: int,
    ) -> Outcome:
        """Do what apply() does, and set the session's ownership in the same step."""
        return await self._transact(
            lambda store: store.set_owner(id, ownership, sets, deletes, now=now, deadline=deadline, max_size=max_size),
            id,
            now=now,
            ownership=ownership,
        )
