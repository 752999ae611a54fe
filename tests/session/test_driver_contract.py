"""Every driver keeps the contract, and the conformance suite detects every known fault of drivers."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from copy import deepcopy
from typing import Any, Literal, TypeVar

import pytest
from msgspec import structs

from gaman.session import LARGE, TOMBSTONE, Driver, Outcome, OwnerDriver, Ownership, Record
from gaman.session.testing import CONTRACT, EVERYONE_CONTRACT, OWNER_CONTRACT, Check, EveryoneCheck, OwnerCheck
from gaman_session._driver import size_of
from gaman_session.drivers.memory import MemoryDriver
from tests.session.sites import Sealing

pytestmark = pytest.mark.anyio

Found = Record | Literal[Outcome.ENDED] | None
D = TypeVar("D", bound=Driver)


async def _run(check: Callable[[D], Awaitable[None]], driver: D) -> None:
    await driver.open()
    try:
        await check(driver)
    finally:
        await driver.close()


@pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
async def test_each_driver_keeps_the_contract(check: Check, store: Driver) -> None:
    await _run(check, store)


@pytest.mark.parametrize("check", OWNER_CONTRACT, ids=lambda check: check.__name__)
async def test_each_driver_keeps_the_contract_of_owners(check: OwnerCheck, store: OwnerDriver) -> None:
    await _run(check, store)


@pytest.mark.parametrize("check", EVERYONE_CONTRACT, ids=lambda check: check.__name__)
async def test_each_driver_keeps_the_contract_of_end_everyone(check: EveryoneCheck, own_store: Any) -> None:
    await _run(check, own_store)


@pytest.mark.parametrize("checks", [CONTRACT, OWNER_CONTRACT, EVERYONE_CONTRACT], ids=["sessions", "owners", "everyone"])
def test_the_names_of_the_checks_are_unique(checks: list[Callable[..., object]]) -> None:
    names = [check.__name__ for check in checks]
    assert len(set(names)) == len(names) > 8


@pytest.mark.parametrize("checks", [CONTRACT, OWNER_CONTRACT], ids=["sessions", "owners"])
async def test_checks_may_share_a_store(checks: list[Callable[..., Awaitable[None]]], store: Driver) -> None:
    async def check_all(driver: Driver) -> None:
        for _ in range(2):
            for check in checks:
                await check(driver)

    await _run(check_all, store)


# Faults, one for each class; its name describes the fault.

FAULTS: list[type[MemoryDriver]] = []


def fault(broken: type[MemoryDriver]) -> type[MemoryDriver]:
    FAULTS.append(broken)
    return broken


# Endings


@fault
class DestroyLeavesNoTombstone(MemoryDriver):
    async def destroy(self, id: str, *, now: float) -> None:
        await super().destroy(id, now=now)
        self._tombstones.clear()


@fault
class DestroyDoesNothing(MemoryDriver):
    async def destroy(self, id: str, *, now: float) -> None:
        return None


@fault
class DestroyKeepsTheSession(MemoryDriver):
    """It leaves a tombstone, and the session beside it."""

    async def destroy(self, id: str, *, now: float) -> None:
        kept = self._sessions.get(id)
        await super().destroy(id, now=now)
        if kept is not None:
            self._add(id, kept)


@fault
class DestroyLeavesATombstoneForAnUnknownId(MemoryDriver):
    """Logouts with made-up cookies fill the store."""

    async def destroy(self, id: str, *, now: float) -> None:
        if id not in self._sessions and id not in self._tombstones:
            self._add(id, Record({}, now, now + 60, now + 60))
        await super().destroy(id, now=now)


@fault
class DestroyFailsTheSecondTime(MemoryDriver):
    async def destroy(self, id: str, *, now: float) -> None:
        if id in self._tombstones:
            raise KeyError(id)
        await super().destroy(id, now=now)


@fault
class DestroyDoesNotFollowARename(MemoryDriver):
    async def destroy(self, id: str, *, now: float) -> None:
        if id in self._sessions:
            await super().destroy(id, now=now)


@fault
class DestroyFollowsOnlyOneRename(MemoryDriver):
    async def destroy(self, id: str, *, now: float) -> None:
        tombstone = self._tombstone(id, now)
        successor = id if tombstone is None else tombstone.successor
        if successor is not None and successor in self._sessions:
            await super().destroy(successor, now=now)


@fault
class TombstonesNeverExpireForLoad(MemoryDriver):
    async def load(self, id: str, *, now: float) -> Found:
        return await super().load(id, now=now if id in self._sessions else 0)


@fault
class TombstonesNeverExpireForWrites(MemoryDriver):
    def _missing(self, id: str, now: float) -> Outcome:
        return Outcome.ENDED if id in self._tombstones else Outcome.ABSENT


@fault
class TombstonesExpireTooSoon(MemoryDriver):
    async def load(self, id: str, *, now: float) -> Found:
        return await super().load(id, now=now if id in self._sessions else now + 5)


@fault
class ExpiryLeavesATombstone(MemoryDriver):
    """An expired cookie then counts as a logout, and the next login with it is dropped."""

    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        was_there = id in self._sessions
        outcome = await super().apply(id, sets, deletes, now=now, deadline=deadline, max_size=max_size)
        return Outcome.ENDED if was_there and outcome is Outcome.ABSENT else outcome


@fault
class LoadReturnsNoneForATombstone(MemoryDriver):
    async def load(self, id: str, *, now: float) -> Found:
        found = await super().load(id, now=now)
        return None if found is Outcome.ENDED else found


# Renames


@fault
class RenameLosesTheSuccessor(MemoryDriver):
    async def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
        outcome = await super().rename(id, new_id, record, version=version, now=now)
        if id in self._tombstones:
            self._tombstones[id] = self._tombstones[id]._replace(successor=None)
        return outcome


@fault
class RenameLeavesNoTombstone(MemoryDriver):
    async def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
        outcome = await super().rename(id, new_id, record, version=version, now=now)
        self._tombstones.pop(id, None)
        return outcome


@fault
class RenameIgnoresTheVersion(MemoryDriver):
    async def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
        current = self._sessions.get(id)
        return await super().rename(id, new_id, record, version=current.version if current else version, now=now)


@fault
class RenameLeavesTheOldIdAlive(MemoryDriver):
    async def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
        kept = self._sessions.get(id)
        outcome = await super().rename(id, new_id, record, version=version, now=now)
        if outcome is Outcome.WRITTEN and kept is not None:
            self._add(id, kept)
            self._tombstones.pop(id, None)
        return outcome


@fault
class RenameKeepsTheOldFields(MemoryDriver):
    """It moves the stored fields, and drops the record that was sealed for the new id."""

    async def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
        kept = self._sessions.get(id)
        outcome = await super().rename(id, new_id, record, version=version, now=now)
        if outcome is Outcome.WRITTEN and kept is not None:
            self._sessions[new_id].fields = kept.fields
        return outcome


@fault
class RenameStoresTheNewIdInAConflict(MemoryDriver):
    async def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
        outcome = await super().rename(id, new_id, record, version=version, now=now)
        if outcome is Outcome.CONFLICT:
            self._add(new_id, record)
        return outcome


@fault
class RenameUpserts(MemoryDriver):
    async def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
        if id not in self._sessions and id not in self._tombstones:
            await self.create(id, record)
        return await super().rename(id, new_id, record, version=version, now=now)


@fault
class RenameRevivesAnEndedSession(MemoryDriver):
    async def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
        outcome = await super().rename(id, new_id, record, version=version, now=now)
        if outcome is not Outcome.ENDED:
            return outcome
        self._add(new_id, record)
        return Outcome.WRITTEN


# Writes


@fault
class ApplyUpserts(MemoryDriver):
    """The classic fault: a write after the logout revives the session."""

    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        if id not in self._sessions:
            self._add(id, Record({}, now, now + 60, now + 60))
        return await super().apply(id, sets, deletes, now=now, deadline=deadline, max_size=max_size)


@fault
class ApplyUpsertsOnlyUnknownIds(MemoryDriver):
    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        if id not in self._sessions and id not in self._tombstones:
            self._add(id, Record({}, now, now + 60, now + 60))
        return await super().apply(id, sets, deletes, now=now, deadline=deadline, max_size=max_size)


@fault
class ApplyWritesTheWholeSessionBack(MemoryDriver):
    """Concurrent requests undo each other's changes."""

    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        before = await self.load(id, now=now)
        await asyncio.sleep(0)
        if isinstance(before, Record) and id in self._sessions:
            self._sessions[id].fields = dict(before.fields)
        return await super().apply(id, sets, deletes, now=now, deadline=deadline, max_size=max_size)


@fault
class ApplyReplacesAllFields(MemoryDriver):
    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        others = [field for field in self._sessions[id].fields if field not in sets] if id in self._sessions and sets else []
        return await super().apply(id, sets, [*deletes, *others], now=now, deadline=deadline, max_size=max_size)


@fault
class ApplyForgetsToDelete(MemoryDriver):
    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        return await super().apply(id, sets, (), now=now, deadline=deadline, max_size=max_size)


@fault
class ApplyDeletesBeforeItSetsAndEndsTheSession(MemoryDriver):
    """Deleting the old fields and setting new ones isn't a logout."""

    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        outcome = await super().apply(id, {}, deletes, now=now, deadline=deadline, max_size=max_size)
        return (
            await super().apply(id, sets, (), now=now, deadline=deadline, max_size=max_size)
            if outcome is Outcome.WRITTEN
            else outcome
        )


@fault
class ApplyRevivesASessionThatIsDestroyedMeanwhile(MemoryDriver):
    """It checks that the session exists, waits for the store, and writes without another check."""

    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        found = self._find(id, now)
        await asyncio.sleep(0)
        if found is not None and id not in self._sessions:
            self._add(id, found)
            self._tombstones.pop(id, None)
        return await super().apply(id, sets, deletes, now=now, deadline=deadline, max_size=max_size)


@fault
class EmptyingLeavesAnEmptySession(MemoryDriver):
    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        kept = self._sessions.get(id)
        outcome = await super().apply(id, sets, deletes, now=now, deadline=deadline, max_size=max_size)
        if outcome is Outcome.EMPTIED and kept is not None:
            self._add(id, Record({}, kept.created, kept.expires, kept.deadline))
            del self._tombstones[id]
        return outcome


@fault
class EmptyingIsReportedAsWritten(MemoryDriver):
    """The cookie then stays in the browser."""

    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        outcome = await super().apply(id, sets, deletes, now=now, deadline=deadline, max_size=max_size)
        return Outcome.WRITTEN if outcome is Outcome.EMPTIED else outcome


@fault
class EmptyingLeavesNoTombstone(MemoryDriver):
    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        outcome = await super().apply(id, sets, deletes, now=now, deadline=deadline, max_size=max_size)
        if outcome is Outcome.EMPTIED:
            del self._tombstones[id]
        return outcome


@fault
class ApplyRaisesNoVersion(MemoryDriver):
    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        outcome = await super().apply(id, sets, deletes, now=now, deadline=deadline, max_size=max_size)
        if outcome is Outcome.WRITTEN:
            self._sessions[id].version -= 1
        return outcome


@fault
class DeletingRaisesNoVersion(MemoryDriver):
    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        outcome = await super().apply(id, sets, deletes, now=now, deadline=deadline, max_size=max_size)
        if outcome is Outcome.WRITTEN and not sets:
            self._sessions[id].version -= 1
        return outcome


@fault
class WritingFollowsARename(MemoryDriver):
    """The tombstone would give the old id access to the renamed session."""

    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        tombstone = self._tombstone(id, now)
        return await super().apply(
            tombstone.successor if tombstone and tombstone.successor else id,
            sets,
            deletes,
            now=now,
            deadline=deadline,
            max_size=max_size,
        )


# Swaps


@fault
class SwapIgnoresTheOldValue(MemoryDriver):
    async def swap(
        self, id: str, field: str, old: bytes | None, new: bytes, *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        return await self.apply(id, {field: new}, (), now=now, deadline=deadline, max_size=max_size)


@fault
class SwapComparesInTwoSteps(MemoryDriver):
    """It compares, waits for the store, and sets."""

    async def swap(
        self, id: str, field: str, old: bytes | None, new: bytes, *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        found = self._find(id, now)
        if found is not None and found.fields.get(field) != old:
            return Outcome.CONFLICT
        await asyncio.sleep(0)
        return await self.apply(id, {field: new}, (), now=now, deadline=deadline, max_size=max_size)


@fault
class SwapTakesMissingForEmpty(MemoryDriver):
    async def swap(
        self, id: str, field: str, old: bytes | None, new: bytes, *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        found = self._find(id, now)
        if found is not None and not old and not found.fields.get(field):
            old = found.fields.get(field)
        return await super().swap(id, field, old, new, now=now, deadline=deadline, max_size=max_size)


@fault
class SwapNeverSetsWhatIsMissing(MemoryDriver):
    async def swap(
        self, id: str, field: str, old: bytes | None, new: bytes, *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        return await super().swap(id, field, old or b"", new, now=now, deadline=deadline, max_size=max_size)


@fault
class SwapUpserts(MemoryDriver):
    async def swap(
        self, id: str, field: str, old: bytes | None, new: bytes, *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        if id not in self._sessions:
            self._add(id, Record({}, now, now + 60, now + 60))
        return await super().swap(id, field, old, new, now=now, deadline=deadline, max_size=max_size)


@fault
class SwapRaisesNoVersion(MemoryDriver):
    async def swap(
        self, id: str, field: str, old: bytes | None, new: bytes, *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        outcome = await super().swap(id, field, old, new, now=now, deadline=deadline, max_size=max_size)
        if outcome is Outcome.WRITTEN:
            self._sessions[id].version -= 1
        return outcome


@fault
class SwapForgetsTheDeadline(MemoryDriver):
    """update() then doesn't move the idle limit."""

    async def swap(
        self, id: str, field: str, old: bytes | None, new: bytes, *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        return await super().swap(id, field, old, new, now=now, deadline=None, max_size=max_size)


@fault
class SwapMovesTheDeadlineBeyondExpires(MemoryDriver):
    async def swap(
        self, id: str, field: str, old: bytes | None, new: bytes, *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        outcome = await super().swap(id, field, old, new, now=now, deadline=deadline, max_size=max_size)
        if outcome is Outcome.WRITTEN and deadline is not None:
            self._sessions[id].deadline = deadline
        return outcome


# Times


@fault
class DeadlinesAreIgnored(MemoryDriver):
    def _find(self, id: str, now: float) -> Any:
        return self._sessions.get(id)


@fault
class DeadlinesAreCheckedOnlyByLoad(MemoryDriver):
    """All else is left to a TTL daemon that runs once a minute."""

    async def load(self, id: str, *, now: float) -> Found:
        found = await super().load(id, now=now)
        return None if isinstance(found, Record) and found.deadline <= now else found

    def _find(self, id: str, now: float) -> Any:
        return self._sessions.get(id)


@fault
class ASessionIsLiveAtItsDeadline(MemoryDriver):
    def _find(self, id: str, now: float) -> Any:
        found = self._sessions.get(id)
        return found if found is not None and found.deadline == now else super()._find(id, now)


@fault
class CreateStoresExpiresAsTheDeadline(MemoryDriver):
    async def create(self, id: str, record: Record) -> None:
        await super().create(id, record)
        self._sessions[id].deadline = record.expires


@fault
class DeadlinesMoveBeyondExpires(MemoryDriver):
    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        outcome = await super().apply(id, sets, deletes, now=now, deadline=deadline, max_size=max_size)
        if outcome is Outcome.WRITTEN and deadline is not None:
            self._sessions[id].deadline = deadline
        return outcome


@fault
class DeadlinesNeverMove(MemoryDriver):
    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        return await super().apply(id, sets, deletes, now=now, deadline=None, max_size=max_size)


@fault
class EachWriteProlongsTheSession(MemoryDriver):
    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        return await super().apply(
            id, sets, deletes, now=now, deadline=now + 10_000 if deadline is None else deadline, max_size=max_size
        )


@fault
class ATouchWithoutAChangeIsNotWritten(MemoryDriver):
    """A write with nothing to set and nothing to delete still moves the deadline."""

    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        if not sets and not deletes and id in self._sessions:
            return Outcome.WRITTEN
        return await super().apply(id, sets, deletes, now=now, deadline=deadline, max_size=max_size)


@fault
class TimesAreTruncatedToTheDay(MemoryDriver):
    async def create(self, id: str, record: Record) -> None:
        await super().create(id, record)
        self._sessions[id].created = record.created // 86_400 * 86_400


@fault
class ExpiresIsLost(MemoryDriver):
    async def create(self, id: str, record: Record) -> None:
        await super().create(id, record)
        self._sessions[id].expires = record.deadline


@fault
class MillisecondsAreTruncated(MemoryDriver):
    """Multiplied by 1000, the fraction is often a little less than a whole number."""

    async def create(self, id: str, record: Record) -> None:
        await super().create(id, record)
        seconds = int(record.expires)
        self._sessions[id].expires = seconds + int((record.expires - seconds) * 1000) / 1000


@fault
class TimesHaveTwelveDigits(MemoryDriver):
    async def create(self, id: str, record: Record) -> None:
        await super().create(id, record)
        self._sessions[id].created = float(f"{record.created:.12g}")


@fault
class RenameTruncatesTheTimes(MemoryDriver):
    async def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
        record.created = float(f"{record.created:.12g}")
        return await super().rename(id, new_id, record, version=version, now=now)


# Seals


@fault
class CreateLosesTheSeal(MemoryDriver):
    async def create(self, id: str, record: Record) -> None:
        await super().create(id, record)
        self._sessions[id].seal = b""


@fault
class RenameKeepsTheOldSeal(MemoryDriver):
    async def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
        old = self._sessions.get(id)
        if old is not None:
            record.seal = old.seal
        return await super().rename(id, new_id, record, version=version, now=now)


@fault
class AWriteLosesTheSeal(MemoryDriver):
    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        outcome = await super().apply(id, sets, deletes, now=now, deadline=deadline, max_size=max_size)
        if outcome is Outcome.WRITTEN:
            self._sessions[id].seal = b""
        return outcome


@fault
class ASealIsText(MemoryDriver):
    async def create(self, id: str, record: Record) -> None:
        await super().create(id, record)
        self._sessions[id].seal = record.seal.decode("utf-8", "replace").encode()


# Sizes


@fault
class ApplyIgnoresTheSize(MemoryDriver):
    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        return await super().apply(id, sets, deletes, now=now, deadline=deadline, max_size=1 << 30)


@fault
class SwapIgnoresTheSize(MemoryDriver):
    async def swap(
        self, id: str, field: str, old: bytes | None, new: bytes, *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        return await super().swap(id, field, old, new, now=now, deadline=deadline, max_size=1 << 30)


@fault
class OnlyTheSizeOfTheWriteCounts(MemoryDriver):
    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        if sum(len(field) + len(value) for field, value in sets.items()) > max_size:
            return Outcome.TOO_LARGE
        return await super().apply(id, sets, deletes, now=now, deadline=deadline, max_size=1 << 30)


@fault
class OnlyTheValuesCount(MemoryDriver):
    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        names = sum(len(field) for field in {**sets, **(self._sessions[id].fields if id in self._sessions else {})})
        return await super().apply(id, sets, deletes, now=now, deadline=deadline, max_size=max_size + names)


@fault
class NamesCountInCharacters(MemoryDriver):
    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        more = sum(len(field.encode()) - len(field) for field in sets)
        return await super().apply(id, sets, deletes, now=now, deadline=deadline, max_size=max_size + more)


@fault
class TheSizeIsOffByOne(MemoryDriver):
    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        return await super().apply(id, sets, deletes, now=now, deadline=deadline, max_size=max_size + 1)


@fault
class AFieldHasTooMuchOverhead(MemoryDriver):
    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        return await super().apply(id, sets, deletes, now=now, deadline=deadline, max_size=max_size - 1000)


@fault
class ATooLargeWriteIsWritten(MemoryDriver):
    """The outcome is TOO_LARGE, but the write stays."""

    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        outcome = await super().apply(id, sets, deletes, now=now, deadline=deadline, max_size=max_size)
        if outcome is Outcome.TOO_LARGE:
            await super().apply(id, sets, deletes, now=now, deadline=deadline, max_size=1 << 30)
        return outcome


@fault
class ATooLargeWriteMovesTheDeadline(MemoryDriver):
    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        outcome = await super().apply(id, sets, deletes, now=now, deadline=deadline, max_size=max_size)
        if outcome is Outcome.TOO_LARGE and deadline is not None:
            self._sessions[id].deadline = deadline
        return outcome


@fault
class ATooLargeWriteRaisesTheVersion(MemoryDriver):
    async def swap(
        self, id: str, field: str, old: bytes | None, new: bytes, *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        outcome = await super().swap(id, field, old, new, now=now, deadline=deadline, max_size=max_size)
        if outcome is Outcome.TOO_LARGE:
            self._sessions[id].version += 1
        return outcome


@fault
class ATooLargeSessionCanNotBeChanged(MemoryDriver):
    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        if id in self._sessions and self._sessions[id].size > max_size:
            return Outcome.TOO_LARGE
        return await super().apply(id, sets, deletes, now=now, deadline=deadline, max_size=max_size)


@fault
class OnlyTheFieldsThatGrowCount(MemoryDriver):
    """It checks each field by itself, and not the session before and after."""

    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        if (record := self._find(id, now)) is not None:
            grown = sum(max(0, len(value) - len(record.fields.get(field, b""))) for field, value in sets.items())
            if grown and record.size + grown > max_size:
                return Outcome.TOO_LARGE
        return await super().apply(id, sets, deletes, now=now, deadline=deadline, max_size=max_size)


@fault
class TheSizeIsCheckedInTwoSteps(MemoryDriver):
    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        record = self._find(id, now)
        if record is not None:
            after = _size({**record.fields, **sets}) - sum(_size({field: record.fields.get(field, b"")}) for field in deletes)
            if after > max(max_size, record.size):
                return Outcome.TOO_LARGE
        await asyncio.sleep(0)
        return await super().apply(id, sets, deletes, now=now, deadline=deadline, max_size=1 << 30)


@fault
class ALargeSessionIsTruncated(MemoryDriver):
    async def load(self, id: str, *, now: float) -> Found:
        found = await super().load(id, now=now)
        if isinstance(found, Record):
            found.fields = {field: value[:LARGE] for field, value in found.fields.items()}
        return found


@fault
class ALargeSessionIsReturnedToAnotherCall(MemoryDriver):
    """A large session is loaded by a second command, and its result is given to another call."""

    _last: Found = None

    async def load(self, id: str, *, now: float) -> Found:
        found = await super().load(id, now=now)
        await asyncio.sleep(0)
        if isinstance(found, Record) and self._sessions[id].size > LARGE:
            self._last, found = found, self._last
        return found


def _size(fields: Mapping[str, bytes]) -> int:
    return sum(len(field.encode()) + len(value) for field, value in fields.items())


# Creating and reading


@fault
class CreateOverwrites(MemoryDriver):
    async def create(self, id: str, record: Record) -> None:
        self._add(id, record)


@fault
class CreateIgnoresATakenId(MemoryDriver):
    async def create(self, id: str, record: Record) -> None:
        if id not in self._sessions:
            await super().create(id, record)


@fault
class CreateChecksInTwoSteps(MemoryDriver):
    async def create(self, id: str, record: Record) -> None:
        is_taken = id in self._sessions
        await asyncio.sleep(0)
        if is_taken:
            await super().create(id, record)
        self._add(id, record)


@fault
class CreateRaisesAnotherError(MemoryDriver):
    async def create(self, id: str, record: Record) -> None:
        if id in self._sessions:
            raise KeyError(id)
        await super().create(id, record)


@fault
class CreateKeepsTheCallersRecord(MemoryDriver):
    async def create(self, id: str, record: Record) -> None:
        await super().create(id, record)
        self._sessions[id].fields = record.fields


@fault
class LoadReturnsTheStoredRecord(MemoryDriver):
    async def load(self, id: str, *, now: float) -> Found:
        return self._find(id, now) or await super().load(id, now=now)


@fault
class LoadReturnsTheStoredFields(MemoryDriver):
    async def load(self, id: str, *, now: float) -> Found:
        found = await super().load(id, now=now)
        if isinstance(found, Record):
            found.fields = self._sessions[id].fields
        return found


@fault
class AnUnknownIdIsAnEmptySession(MemoryDriver):
    async def load(self, id: str, *, now: float) -> Found:
        return await super().load(id, now=now) or Record({}, now, now + 60, now + 60)


@fault
class AnUnknownIdHasEnded(MemoryDriver):
    async def load(self, id: str, *, now: float) -> Found:
        return await super().load(id, now=now) or Outcome.ENDED


@fault
class AnUnknownIdRaises(MemoryDriver):
    async def load(self, id: str, *, now: float) -> Found:
        found = await super().load(id, now=now)
        if found is None:
            raise KeyError(id)
        return found


# Fields and values


class Mangling(MemoryDriver):
    """Changes names and values by mangle() before it stores them."""

    def mangle(self, field: str, value: bytes) -> tuple[str, bytes]:
        return field, value

    def _mangled(self, fields: Mapping[str, bytes]) -> dict[str, bytes]:
        return dict(self.mangle(field, value) for field, value in fields.items())

    async def create(self, id: str, record: Record) -> None:
        await super().create(id, record)
        self._sessions[id].fields = self._mangled(record.fields)

    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        deleted = [self.mangle(field, b"")[0] for field in deletes]
        return await super().apply(id, self._mangled(sets), deleted, now=now, deadline=deadline, max_size=max_size)


@fault
class DotsInFieldNamesAreReplaced(Mangling):
    def mangle(self, field: str, value: bytes) -> tuple[str, bytes]:
        return field.replace(".", "_"), value


@fault
class DollarsInFieldNamesAreStripped(Mangling):
    def mangle(self, field: str, value: bytes) -> tuple[str, bytes]:
        return field.lstrip("$"), value


@fault
class FieldNamesAreTruncatedAtNul(Mangling):
    def mangle(self, field: str, value: bytes) -> tuple[str, bytes]:
        return field.partition("\0")[0], value


@fault
class FieldNamesAreTruncatedAt255Characters(Mangling):
    def mangle(self, field: str, value: bytes) -> tuple[str, bytes]:
        return field[:255], value


@fault
class FieldNamesAreAscii(Mangling):
    def mangle(self, field: str, value: bytes) -> tuple[str, bytes]:
        return field.encode("ascii", "replace").decode(), value


@fault
class FieldNamesAreTrimmed(Mangling):
    def mangle(self, field: str, value: bytes) -> tuple[str, bytes]:
        return field.strip(" "), value


@fault
class FieldNamesAreCaseInsensitive(Mangling):
    def mangle(self, field: str, value: bytes) -> tuple[str, bytes]:
        return field.lower(), value


@fault
class FieldNamesAreNormalized(Mangling):
    def mangle(self, field: str, value: bytes) -> tuple[str, bytes]:
        from unicodedata import normalize

        return normalize("NFC", field), value


@fault
class TheFieldWithTheEmptyNameIsLost(Mangling):
    def _mangled(self, fields: Mapping[str, bytes]) -> dict[str, bytes]:
        return {field: value for field, value in fields.items() if field}


@fault
class ValuesAreText(Mangling):
    def mangle(self, field: str, value: bytes) -> tuple[str, bytes]:
        return field, value.decode("utf-8", "replace").encode()


@fault
class ValuesAreTruncatedAtNul(Mangling):
    def mangle(self, field: str, value: bytes) -> tuple[str, bytes]:
        return field, value.partition(b"\0")[0]


@fault
class EmptyValuesAreLost(Mangling):
    def _mangled(self, fields: Mapping[str, bytes]) -> dict[str, bytes]:
        return {field: value for field, value in fields.items() if value}


# Purging


@fault
class PurgeRemovesLiveSessions(MemoryDriver):
    async def purge(self, *, now: float, limit: int) -> int:
        count = len(self._sessions)
        self._sessions.clear()
        return count


@fault
class PurgeUsesTheFirstDeadline(MemoryDriver):
    """The deadline has moved in the session, but not in the index of deadlines."""

    async def purge(self, *, now: float, limit: int) -> int:
        for deadline, id in self._deadlines:
            if deadline <= now:
                self._sessions.pop(id, None)
        return await super().purge(now=now, limit=limit)


@fault
class PurgeRemovesTombstonesTooSoon(MemoryDriver):
    async def purge(self, *, now: float, limit: int) -> int:
        self._tombstones.clear()
        return await super().purge(now=now, limit=limit)


@fault
class PurgeRemovesMoreThanItsLimit(MemoryDriver):
    async def purge(self, *, now: float, limit: int) -> int:
        return await super().purge(now=now, limit=limit + 1)


# A store's clock


class WithAClock(MemoryDriver):
    async def time(self) -> float:
        return time.time()


@fault
class TheTimeIsInMilliseconds(WithAClock):
    async def time(self) -> float:
        return await super().time() * 1000


@fault
class TheTimeIsInWholeSeconds(WithAClock):
    async def time(self) -> float:
        return int(await super().time())


@fault
class TheTimeStartsAtBoot(WithAClock):
    async def time(self) -> float:
        return time.monotonic()


@fault
class TheTimeStandsStill(WithAClock):
    async def time(self) -> float:
        return 1_800_000_000


# Several loads in one round trip


class WithLoadAll(MemoryDriver):
    async def load_all(self, ids: Sequence[str], *, now: float) -> list[Found]:
        return [await self.load(id, now=now) for id in ids]


@fault
class LoadAllReturnsResultsInTheOrderOfTheStore(WithLoadAll):
    async def load_all(self, ids: Sequence[str], *, now: float) -> list[Found]:
        return await super().load_all(sorted(ids), now=now)


@fault
class LoadAllLeavesOutWhatIsAbsent(WithLoadAll):
    async def load_all(self, ids: Sequence[str], *, now: float) -> list[Found]:
        return [found for found in await super().load_all(ids, now=now) if found is not None]


@fault
class LoadAllReturnsEachIdOnce(WithLoadAll):
    async def load_all(self, ids: Sequence[str], *, now: float) -> list[Found]:
        return await super().load_all(list(dict.fromkeys(ids)), now=now)


@fault
class LoadAllReturnsNoneForATombstone(WithLoadAll):
    async def load_all(self, ids: Sequence[str], *, now: float) -> list[Found]:
        return [None if found is Outcome.ENDED else found for found in await super().load_all(ids, now=now)]


@fault
class LoadAllReturnsExpiredSessions(WithLoadAll):
    async def load_all(self, ids: Sequence[str], *, now: float) -> list[Found]:
        return await super().load_all(ids, now=now - 200)


@fault
class LoadAllLeavesOutLargeSessions(WithLoadAll):
    async def load_all(self, ids: Sequence[str], *, now: float) -> list[Found]:
        found = await super().load_all(ids, now=now)
        return [None if isinstance(each, Record) and size_of(each.fields) > LARGE else each for each in found]


@fault
class LoadAllLosesTheSeal(WithLoadAll):
    async def load_all(self, ids: Sequence[str], *, now: float) -> list[Found]:
        found = await super().load_all(ids, now=now)
        return [structs.replace(each, seal=b"") if isinstance(each, Record) else each for each in found]


@fault
class LoadAllReturnsOneRecordForEqualIds(WithLoadAll):
    async def load_all(self, ids: Sequence[str], *, now: float) -> list[Found]:
        found = dict(zip(ids, await super().load_all(ids, now=now), strict=True))
        return [found[id] for id in ids]


@fault
class LoadAllReturnsWhatItLoadedBefore(WithLoadAll):
    def __init__(self) -> None:
        super().__init__()
        self._loaded: dict[str, Found] = {}

    async def load_all(self, ids: Sequence[str], *, now: float) -> list[Found]:
        return [
            deepcopy(self._loaded.setdefault(id, found))
            for id, found in zip(ids, await super().load_all(ids, now=now), strict=True)
        ]


@pytest.mark.parametrize("broken", FAULTS, ids=lambda broken: broken.__name__)
async def test_a_driver_with_a_known_fault_fails_the_suite(broken: Callable[[], MemoryDriver]) -> None:
    caught: dict[str, str] = {}
    for check in CONTRACT:
        try:
            await _run(check, broken())
        except Exception as error:
            caught[check.__name__] = repr(error)
    assert caught


async def test_a_subclass_without_a_fault_passes_every_check() -> None:
    # So the suite detects the faults above, and not that they are subclasses.
    for harmless in (Mangling, Sealing, WithAClock, WithLoadAll):
        for check in CONTRACT:
            await _run(check, harmless())


# Faults of owners

OWNER_FAULTS: list[type[MemoryDriver]] = []


def owner_fault(broken: type[MemoryDriver]) -> type[MemoryDriver]:
    OWNER_FAULTS.append(broken)
    return broken


@owner_fault
class EndOwnedRevokesNothing(MemoryDriver):
    async def end_owned(self, owner: str, *, keep: Collection[str], now: float) -> int:
        ended = await super().end_owned(owner, keep=keep, now=now)
        self._ended.clear()
        return ended


@owner_fault
class EndOwnedRevokesAnOwnershipOfItsOwnInstant(MemoryDriver):
    def _is_revoked(self, ownership: Ownership, now: float) -> bool:
        return super()._is_revoked(Ownership(ownership.owner, ownership.note, math.nextafter(ownership.since, 0)), now)


@owner_fault
class EndOwnedIsRoundedToTheMillisecond(MemoryDriver):
    async def end_owned(self, owner: str, *, keep: Collection[str], now: float) -> int:
        return await super().end_owned(owner, keep=keep, now=math.floor(now * 1000) / 1000)


@owner_fault
class AnEndOwnedFarAheadCounts(MemoryDriver):
    """No login succeeds until the clock reaches that time again."""

    def _is_revoked(self, ownership: Ownership, now: float) -> bool:
        ended = self._ended.get(ownership.owner)
        return ended is not None and ownership.since < ended and now < ended + TOMBSTONE


@owner_fault
class AnEndOwnedALittleAheadIsIgnored(MemoryDriver):
    def _is_revoked(self, ownership: Ownership, now: float) -> bool:
        return super()._is_revoked(ownership, now) and self._ended[ownership.owner] <= now


@owner_fault
class OnlyTheLatestEndOwnedCounts(MemoryDriver):
    """A call after the clock was set back revokes nothing."""

    async def end_owned(self, owner: str, *, keep: Collection[str], now: float) -> int:
        before = self._ended.get(owner, now)
        ended = await super().end_owned(owner, keep=keep, now=now)
        self._ended[owner] = max(now, before)
        return ended


@owner_fault
class OnlyTheLastEndOwnedCounts(MemoryDriver):
    """A call by a clock that is a little behind undoes an earlier one."""

    async def end_owned(self, owner: str, *, keep: Collection[str], now: float) -> int:
        ended = await super().end_owned(owner, keep=keep, now=now)
        self._ended[owner] = now
        return ended


@owner_fault
class EndOwnedKeepsLaterOwnerships(MemoryDriver):
    """An ownership from a clock that was set back since survives."""

    async def end_owned(self, owner: str, *, keep: Collection[str], now: float) -> int:
        later = {id for id in self._owned.get(owner, ()) if (ownership := self._sessions[id].ownership) and ownership.since > now}
        return await super().end_owned(owner, keep={*keep, *later}, now=now)


@owner_fault
class EndOwnedRevokesForEver(MemoryDriver):
    def _is_revoked(self, ownership: Ownership, now: float) -> bool:
        return ownership.since < self._ended.get(ownership.owner, 0)


@owner_fault
class EndOwnedRevokesEveryOwnership(MemoryDriver):
    def _is_revoked(self, ownership: Ownership, now: float) -> bool:
        return ownership.owner in self._ended


@owner_fault
class EndOwnedIgnoresKeep(MemoryDriver):
    async def end_owned(self, owner: str, *, keep: Collection[str], now: float) -> int:
        return await super().end_owned(owner, keep=(), now=now)


@owner_fault
class EndOwnedLeavesNoTombstone(MemoryDriver):
    async def end_owned(self, owner: str, *, keep: Collection[str], now: float) -> int:
        ended = await super().end_owned(owner, keep=keep, now=now)
        self._tombstones.clear()
        return ended


@owner_fault
class EndOwnedEndsNothing(MemoryDriver):
    async def end_owned(self, owner: str, *, keep: Collection[str], now: float) -> int:
        self._ended[owner] = now
        return len(set(await self.owned(owner, now=now)) - set(keep))


@owner_fault
class RenameLosesTheOwnership(MemoryDriver):
    async def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
        record.ownership = None
        return await super().rename(id, new_id, record, version=version, now=now)


@owner_fault
class RenameRevokesAnOwnershipThatTheSessionHas(MemoryDriver):
    async def rename(self, id: str, new_id: str, record: Record, *, version: int, now: float) -> Outcome:
        if record.ownership is not None and self._is_revoked(record.ownership, now):
            return Outcome.REVOKED
        return await super().rename(id, new_id, record, version=version, now=now)


@owner_fault
class SetOwnerLosesTheWrite(MemoryDriver):
    async def apply(
        self, id: str, sets: Mapping[str, bytes], deletes: Collection[str], *, now: float, deadline: float | None, max_size: int
    ) -> Outcome:
        return await super().apply(id, {}, deletes, now=now, deadline=deadline, max_size=max_size)


@owner_fault
class SetOwnerIgnoresTheSize(MemoryDriver):
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
        return await super().set_owner(id, ownership, sets, deletes, now=now, deadline=deadline, max_size=1 << 30)


@owner_fault
class SetOwnerIsAppliedWithATooLargeWrite(MemoryDriver):
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
        outcome = await super().set_owner(id, ownership, sets, deletes, now=now, deadline=deadline, max_size=max_size)
        if outcome is Outcome.TOO_LARGE:
            await super().set_owner(id, ownership, {}, (), now=now, deadline=None, max_size=max_size)
        return outcome


@owner_fault
class SetOwnerLosesTheSeal(MemoryDriver):
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
        outcome = await super().set_owner(id, ownership, sets, deletes, now=now, deadline=deadline, max_size=max_size)
        if outcome is Outcome.WRITTEN:
            self._sessions[id].seal = b""
        return outcome


@owner_fault
class SetOwnerIgnoresNone(MemoryDriver):
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
        if ownership is None:
            return await self.apply(id, sets, deletes, now=now, deadline=deadline, max_size=max_size)
        return await super().set_owner(id, ownership, sets, deletes, now=now, deadline=deadline, max_size=max_size)


@owner_fault
class ExpiredSessionsAreListed(MemoryDriver):
    async def owned(self, owner: str, *, now: float) -> Mapping[str, Record]:
        return await super().owned(owner, now=0)


@owner_fault
class OwnersAreCaseInsensitive(MemoryDriver):
    async def owned(self, owner: str, *, now: float) -> Mapping[str, Record]:
        found: dict[str, Record] = {}
        for each in [each for each in self._owned if each.lower() == owner.lower()]:
            found.update(await super().owned(each, now=now))
        return found


@owner_fault
class OnlySessionsWithAnOwnerAreCounted(MemoryDriver):
    async def count(self, *, now: float) -> int:
        return sum(len(theirs) for theirs in self._owned.values())


@owner_fault
class TombstonesAreCounted(MemoryDriver):
    async def count(self, *, now: float) -> int:
        return await super().count(now=now) + len(self._tombstones)


@pytest.mark.parametrize("broken", OWNER_FAULTS, ids=lambda broken: broken.__name__)
async def test_a_driver_with_an_owner_fault_fails_the_suite_for_owners(broken: Callable[[], MemoryDriver]) -> None:
    caught: dict[str, str] = {}
    for check in OWNER_CONTRACT:
        try:
            await _run(check, broken())
        except Exception as error:
            caught[check.__name__] = repr(error)
    assert caught
