"""RuleDriver: the calls of the contract that change sessions, for drivers whose stores follow the rules in _rules.py."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, TypeVar

from gaman_session import _rules
from gaman_session._driver import Outcome, Ownership, Record
from gaman_session.drivers._reports import Reporter, reports

T = TypeVar("T")


class RuleDriver(Reporter, ABC):
    """The base class of a driver that locks sessions, and calls a rule with its store."""

    @abstractmethod
    async def _apply_rule(self, rule: Callable[[Any], T], *ids: str, now: float, ownership: Ownership | None = None) -> T:
        """Return the result of *rule*, once its changes of the sessions *ids* are stored; it may add one to the owner's."""

    @reports("create a session")
    async def create(self, id: str, record: Record) -> Literal[Outcome.REVOKED] | None:
        """Store a new session."""
        return await self._apply_rule(
            lambda store: _rules.create(store, id, record), id, now=record.created, ownership=record.ownership
        )

    @reports("change a session")
    async def apply(
        self,
        id: str,
        sets: Mapping[str, bytes],
        deletes: Collection[str],
        *,
        now: float,
        deadline: float | None,
        max_size: int,
    ) -> Outcome:
        """Set and delete single fields of the session."""
        return await self._apply_rule(
            lambda store: _rules.apply(store, id, sets, deletes, now=now, deadline=deadline, max_size=max_size), id, now=now
        )

    @reports("change a session")
    async def swap(
        self, id: str, field: str, old: bytes | None, new: bytes, *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        """Set one field if its bytes are *old*."""
        return await self._apply_rule(
            lambda store: _rules.swap(store, id, field, old, new, now=now, deadline=deadline, max_size=max_size), id, now=now
        )

    @reports("rename a session")
    async def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
        """Replace the session by *record* under *new_id* if its version is still *version*."""
        return await self._apply_rule(
            lambda store: _rules.rename(store, id, new_id, record, version=version, now=now),
            *(id, new_id),
            now=now,
            ownership=record.ownership,
        )

    @reports("end a session")
    async def destroy(self, id: str, *, now: float) -> None:
        """End the session, and those it was renamed to."""
        await _rules.destroy_all(
            id, lambda each: self._apply_rule(lambda store: _rules.destroy(store, each, now=now), each, now=now)
        )

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
        return await self._apply_rule(
            lambda store: _rules.set_owner(store, id, ownership, sets, deletes, now=now, deadline=deadline, max_size=max_size),
            id,
            now=now,
            ownership=ownership,
        )
