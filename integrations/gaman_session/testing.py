"""For tests: later(), and the conformance suite for drivers, the contract in `Driver` as checks that any test runner can call.

Each check takes an open driver. It uses its own ids, so checks may share a store.

    @pytest.mark.anyio
    @pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
    async def test_my_driver_keeps_the_contract(check: Check) -> None:
        driver = MyDriver()
        await driver.open()
        try:
            await check(driver)
        finally:
            await driver.close()

OWNER_CONTRACT has the checks for the optional part of the contract, `OwnerDriver`, and EVERYONE_CONTRACT those for
`EveryoneDriver`, which is an OwnerDriver here. They end all sessions in the store, so they run one after another.
"""

from __future__ import annotations

import asyncio
import math
import random
import time
from collections.abc import Awaitable, Callable, Collection, Mapping
from itertools import pairwise
from typing import Protocol, TypeAlias, TypeVar

from gaman_session import _sealing
from gaman_session._clock import has_clock
from gaman_session._driver import (
    LARGE,
    MAX_FLIGHT,
    MAX_SKEW,
    TOMBSTONE,
    YEAR_10000,
    Driver,
    EveryoneDriver,
    Outcome,
    OwnerDriver,
    Ownership,
    Record,
    loads_all,
)
from gaman_session._errors import SessionStoreError
from gaman_session._later import later

__all__ = ["CONTRACT", "EVERYONE_CONTRACT", "OWNER_CONTRACT", "Check", "EveryoneCheck", "OwnerCheck", "later"]

T = TypeVar("T")
Check: TypeAlias = Callable[[Driver], Awaitable[None]]
"""A check of an open driver; AssertionError is raised if the driver breaks a promise."""
OwnerCheck: TypeAlias = Callable[[OwnerDriver], Awaitable[None]]
"""A check of an open driver with owners."""


class _EveryoneDriver(OwnerDriver, EveryoneDriver, Protocol):
    """A driver with owners that can end all sessions."""


EveryoneCheck: TypeAlias = Callable[[_EveryoneDriver], Awaitable[None]]
"""A check of an open driver with owners and end_everyone()."""

CONTRACT: list[Check] = []
"""Every check of `Driver`; each name is a sentence."""

OWNER_CONTRACT: list[OwnerCheck] = []
"""Every check of `OwnerDriver`."""

EVERYONE_CONTRACT: list[EveryoneCheck] = []
"""Every check of `EveryoneDriver`."""

_HOSTILE_NAMES = (
    *("", " ", "a", "A", "\u00e9", "e\u0301", ".", "..", "a.b", "$", "$set", "_id", "__proto__", "../../etc/passwd"),
    *("\0", "a\0b", "\U0001f511", "k" * 10_000),
)
_ALL_BYTES = bytes(range(256))
_MAX_SIZE = 1 << 20
_MAX_FIELD_OVERHEAD = 64
_MAX_SESSION_OVERHEAD = 256


def _check(check: Check) -> Check:
    CONTRACT.append(check)
    return check


def _owner_check(check: OwnerCheck) -> OwnerCheck:
    OWNER_CONTRACT.append(check)
    return check


def _everyone_check(check: EveryoneCheck) -> EveryoneCheck:
    EVERYONE_CONTRACT.append(check)
    return check


def _new_id() -> str:
    return _sealing.id_of(_sealing.new_raw_id())


def _to_milliseconds(seconds: float) -> float:
    """Return *seconds* in whole milliseconds."""
    return round(seconds * 1000) / 1000


def _record(
    fields: dict[str, bytes] | None = None, *, lasts: float = 1000, deadline: float | None = None, seal: bytes = b""
) -> Record:
    now = math.floor(time.time() * 1000) / 1000
    expires = _to_milliseconds(now + lasts)
    fields = {"a": b"1", "b": b"2"} if fields is None else fields
    return Record(fields, now, expires, expires if deadline is None else now + deadline, seal=seal)


async def _create(driver: Driver, record: Record | None = None) -> tuple[str, Record]:
    id, record = _new_id(), record or _record()
    await driver.create(id, record)
    return id, record


async def _load(driver: Driver, id: str, now: float | None = None) -> Record:
    found = await driver.load(id, now=now or time.time())
    assert isinstance(found, Record), found
    return found


async def _apply(
    driver: Driver,
    id: str,
    sets: dict[str, bytes] | None = None,
    *deletes: str,
    now: float | None = None,
    deadline: float | None = None,
    max_size: int = _MAX_SIZE,
) -> Outcome:
    return await driver.apply(id, sets or {}, deletes, now=now or time.time(), deadline=deadline, max_size=max_size)


async def _swap(
    driver: Driver,
    id: str,
    old: bytes | None,
    new: bytes,
    now: float | None = None,
    deadline: float | None = None,
    max_size: int = _MAX_SIZE,
) -> Outcome:
    return await driver.swap(id, "n", old, new, now=now or time.time(), deadline=deadline, max_size=max_size)


@_check
async def an_unknown_id_is_absent(driver: Driver) -> None:
    id, now = _new_id(), time.time()
    assert await driver.load(id, now=now) is None
    assert await _apply(driver, id, {"a": b"1"}) is Outcome.ABSENT
    assert await _swap(driver, id, None, b"1") is Outcome.ABSENT
    assert await driver.rename(id, _new_id(), _record(), version=0, now=now) is Outcome.ABSENT
    await driver.destroy(id, now=now)
    assert await driver.load(id, now=now) is None


@_check
async def a_created_session_is_loaded_unchanged(driver: Driver) -> None:
    id, record = await _create(driver, _record({"a": b"", "b": _ALL_BYTES}, lasts=1000, deadline=500))
    found = await _load(driver, id)
    assert found.fields == record.fields
    assert (found.created, found.expires) == (record.created, record.expires)
    assert abs(found.deadline - record.deadline) < 0.01


@_check
async def created_and_expires_are_kept_to_the_millisecond(driver: Driver) -> None:
    now = int(time.time() * 1000)
    times = random.sample(range(now - 5000, now), 20)
    lifetimes = [*random.sample(range(600_000, 2_000_000), 19), 86_400_000]
    for created, lasts in zip(times, lifetimes, strict=True):
        expires = (created + lasts) / 1000
        id, _ = await _create(driver, Record({"a": b"1"}, created / 1000, expires, expires))
        found = await _load(driver, id)
        assert (found.created, found.expires) == (created / 1000, expires)
        assert await _apply(driver, id, {"a": b"2"}, deadline=expires + 1) is Outcome.WRITTEN
        new_id, version = _new_id(), (await _load(driver, id)).version
        renamed = Record({"a": b"1"}, created / 1000, expires, expires)
        assert await driver.rename(id, new_id, renamed, version=version, now=time.time()) is Outcome.WRITTEN
        found = await _load(driver, new_id)
        assert (found.created, found.expires) == (created / 1000, expires)


@_check
async def a_seal_is_kept_with_the_times_and_survives_writes(driver: Driver) -> None:
    for seal in (b"\1seal" + bytes(16), b"\xff" * 21, _ALL_BYTES, b""):
        id, _ = await _create(driver, _record(seal=seal))
        assert (await _load(driver, id)).seal == seal
        assert await _apply(driver, id, {"a": b"3"}, "b", deadline=time.time() + 500) is Outcome.WRITTEN
        assert await _swap(driver, id, None, b"1") is Outcome.WRITTEN
        found = await _load(driver, id)
        assert found.seal == seal
        for renamed in (seal[::-1] + b"another", b""):
            new_id = _new_id()
            record = _record(seal=renamed)
            assert await driver.rename(id, new_id, record, version=found.version, now=time.time()) is Outcome.WRITTEN
            found, id = await _load(driver, new_id), new_id
            assert found.seal == renamed


@_check
async def any_text_is_a_field_name_and_any_bytes_are_a_value(driver: Driver) -> None:
    fields = {name: name.encode() + _ALL_BYTES for name in _HOSTILE_NAMES}
    id, _ = await _create(driver, _record(dict(fields)))
    assert (await _load(driver, id)).fields == fields
    changed = {name: value[::-1] for name, value in fields.items()}
    assert await _apply(driver, id, changed) is Outcome.WRITTEN
    assert (await _load(driver, id)).fields == changed
    assert await _apply(driver, id, {"kept": b"1"}, *_HOSTILE_NAMES) is Outcome.WRITTEN
    assert (await _load(driver, id)).fields == {"kept": b"1"}


@_check
async def changing_a_loaded_record_changes_nothing_in_the_store(driver: Driver) -> None:
    id, record = await _create(driver)
    record.fields["mine"] = b"1"
    (await _load(driver, id)).fields.clear()
    assert (await _load(driver, id)).fields == {"a": b"1", "b": b"2"}


@_check
async def creating_never_overwrites(driver: Driver) -> None:
    id, _ = await _create(driver)
    try:
        await driver.create(id, _record({"other": b"1"}))
    except SessionStoreError:
        pass
    else:
        raise AssertionError("a session was created under an id that is taken")
    assert (await _load(driver, id)).fields == {"a": b"1", "b": b"2"}


@_check
async def a_session_is_absent_at_its_deadline(driver: Driver) -> None:
    for write in ("nothing", "apply", "swap", "rename"):
        id, record = await _create(driver, _record(lasts=1000, deadline=500))
        now = record.deadline
        assert isinstance(await driver.load(id, now=now - 1), Record)
        if write == "apply":
            assert await _apply(driver, id, {"a": b"2"}, now=now) is Outcome.ABSENT
        elif write == "swap":
            assert await _swap(driver, id, None, b"1", now) is Outcome.ABSENT
        elif write == "rename":
            assert await driver.rename(id, _new_id(), _record(), version=0, now=now) is Outcome.ABSENT
        assert await driver.load(id, now=now) is None


@_check
async def a_write_changes_only_its_own_fields(driver: Driver) -> None:
    id, _ = await _create(driver)
    assert await _apply(driver, id, {"b": b"3", "c": b"4"}) is Outcome.WRITTEN
    assert await _apply(driver, id, {}, "a", "missing") is Outcome.WRITTEN
    assert (await _load(driver, id)).fields == {"b": b"3", "c": b"4"}


@_check
async def a_write_that_deletes_the_last_field_ends_the_session(driver: Driver) -> None:
    id, _ = await _create(driver)
    assert await _apply(driver, id, {}, "a", "b") is Outcome.EMPTIED
    assert await driver.load(id, now=time.time()) is Outcome.ENDED
    assert await _apply(driver, id, {"a": b"1"}) is Outcome.ENDED


@_check
async def a_write_that_replaces_all_fields_keeps_the_session(driver: Driver) -> None:
    id, _ = await _create(driver)
    assert await _apply(driver, id, {"c": b"1"}, "a", "b") is Outcome.WRITTEN
    assert (await _load(driver, id)).fields == {"c": b"1"}


@_check
async def a_deadline_moves_but_never_beyond_expires(driver: Driver) -> None:
    for write in ("set", "touch", "swap"):
        id, record = await _create(driver, _record({"n": b"1"}, lasts=1000, deadline=300))
        later = record.created + 600
        for asked, expected in ((None, record.deadline), (later, later), (record.expires + 1, record.expires)):
            if write == "swap":
                assert await _swap(driver, id, b"1", b"1", deadline=asked) is Outcome.WRITTEN
            else:
                sets = {"n": b"1"} if write == "set" else {}
                assert await _apply(driver, id, sets, deadline=asked) is Outcome.WRITTEN
            assert abs((await _load(driver, id)).deadline - expected) < 0.01
        assert isinstance(await driver.load(id, now=record.expires - 1), Record)
        assert await driver.load(id, now=record.expires) is None


@_check
async def every_write_raises_the_version(driver: Driver) -> None:
    id, _ = await _create(driver)
    versions = [(await _load(driver, id)).version]
    for write in (_apply(driver, id, {"a": b"1"}), _apply(driver, id, {}, "b"), _swap(driver, id, None, b"1")):
        assert await write is Outcome.WRITTEN
        versions.append((await _load(driver, id)).version)
    assert versions == sorted(set(versions))


@_check
async def a_swap_needs_the_bytes_that_are_stored(driver: Driver) -> None:
    id, _ = await _create(driver)
    assert await _swap(driver, id, b"1", b"2") is Outcome.CONFLICT
    assert await _swap(driver, id, b"", b"2") is Outcome.CONFLICT
    assert await _swap(driver, id, None, b"1") is Outcome.WRITTEN
    assert await _swap(driver, id, None, b"2") is Outcome.CONFLICT
    assert await _swap(driver, id, b"1", _ALL_BYTES) is Outcome.WRITTEN
    assert await _swap(driver, id, _ALL_BYTES, b"") is Outcome.WRITTEN
    assert await _swap(driver, id, None, b"3") is Outcome.CONFLICT
    assert await _swap(driver, id, b"", b"3") is Outcome.WRITTEN
    assert (await _load(driver, id)).fields == {"a": b"1", "b": b"2", "n": b"3"}


@_check
async def a_rename_moves_the_session_and_kills_the_old_id(driver: Driver) -> None:
    id, _ = await _create(driver)
    new_id, record = _new_id(), _record({"c": b"3"})
    version = (await _load(driver, id)).version
    assert await driver.rename(id, new_id, record, version=version, now=time.time()) is Outcome.WRITTEN
    assert (await _load(driver, new_id)).fields == {"c": b"3"}
    assert await driver.load(id, now=time.time()) is Outcome.ENDED
    assert await _apply(driver, id, {"a": b"1"}) is Outcome.ENDED
    assert await _swap(driver, id, None, b"1") is Outcome.ENDED
    assert await driver.rename(id, _new_id(), _record(), version=version, now=time.time()) is Outcome.ENDED


@_check
async def a_rename_loses_no_write_that_came_in_between(driver: Driver) -> None:
    id, _ = await _create(driver)
    new_id, version = _new_id(), (await _load(driver, id)).version
    assert await _apply(driver, id, {"late": b"1"}) is Outcome.WRITTEN
    assert await driver.rename(id, new_id, _record(), version=version, now=time.time()) is Outcome.CONFLICT
    assert (await _load(driver, id)).fields["late"] == b"1"
    assert await driver.load(new_id, now=time.time()) is None


@_check
async def an_ended_session_stays_ended(driver: Driver) -> None:
    id, _ = await _create(driver)
    await driver.destroy(id, now=time.time())
    await driver.destroy(id, now=time.time())
    assert await driver.load(id, now=time.time()) is Outcome.ENDED
    assert await _apply(driver, id, {"a": b"1"}) is Outcome.ENDED
    assert await _swap(driver, id, b"1", b"2") is Outcome.ENDED
    assert await driver.rename(id, _new_id(), _record(), version=0, now=time.time()) is Outcome.ENDED


@_check
async def ending_an_old_id_ends_the_renamed_session(driver: Driver) -> None:
    id, _ = await _create(driver)
    ids = [id, _new_id(), _new_id()]
    for old, new in pairwise(ids):
        version = (await _load(driver, old)).version
        assert await driver.rename(old, new, _record(), version=version, now=time.time()) is Outcome.WRITTEN
    await driver.destroy(id, now=time.time())
    for each in ids:
        assert await driver.load(each, now=time.time()) is Outcome.ENDED


@_check
async def a_tombstone_expires_after_a_minute(driver: Driver) -> None:
    id, record = await _create(driver)
    now = record.created
    await driver.destroy(id, now=now)
    assert await driver.load(id, now=now + TOMBSTONE - 1) is Outcome.ENDED
    assert await driver.load(id, now=now + TOMBSTONE) is None
    assert await _apply(driver, id, {"a": b"1"}, now=now + TOMBSTONE) is Outcome.ABSENT


@_check
async def concurrent_writes_lose_no_field(driver: Driver) -> None:
    id, _ = await _create(driver)
    outcomes = await asyncio.gather(*(_apply(driver, id, {f"k{i}": b"%d" % i}) for i in range(50)))
    assert set(outcomes) == {Outcome.WRITTEN}
    assert (await _load(driver, id)).fields == {"a": b"1", "b": b"2", **{f"k{i}": b"%d" % i for i in range(50)}}


@_check
async def concurrent_swaps_lose_no_count(driver: Driver) -> None:
    id, _ = await _create(driver, _record({"n": b"0"}))

    async def count() -> None:
        for _ in range(1000):
            before = (await _load(driver, id)).fields["n"]
            if await _swap(driver, id, before, b"%d" % (int(before) + 1)) is Outcome.WRITTEN:
                return
        raise AssertionError("a swap had a conflict a thousand times")

    await asyncio.gather(*(count() for _ in range(50)))
    assert (await _load(driver, id)).fields["n"] == b"50"


@_check
async def one_of_several_concurrent_creations_succeeds(driver: Driver) -> None:
    id = _new_id()
    results = await asyncio.gather(*(driver.create(id, _record({"n": b"%d" % i})) for i in range(10)), return_exceptions=True)
    assert [result for result in results if not isinstance(result, SessionStoreError)] == [None]
    assert (await _load(driver, id)).fields == {"n": b"%d" % results.index(None)}


@_check
async def no_concurrent_write_revives_an_ended_session(driver: Driver) -> None:
    for _ in range(10):
        id, _ = await _create(driver)
        writers = [_apply(driver, id, {f"k{i}": b"1"}) for i in range(10)]
        await asyncio.gather(*writers, driver.destroy(id, now=time.time()), *(_swap(driver, id, None, b"1") for _ in range(3)))
        assert await driver.load(id, now=time.time()) is Outcome.ENDED


@_check
async def a_purge_removes_only_what_has_expired(driver: Driver) -> None:
    old = [(await _create(driver, _record(lasts=10)))[0] for _ in range(5)]
    kept, record = await _create(driver, _record(lasts=1000, deadline=20))
    assert await _apply(driver, kept, {"a": b"2"}, deadline=record.created + 500) is Outcome.WRITTEN
    ended, _ = await _create(driver)
    await driver.destroy(ended, now=record.created)
    assert await driver.purge(now=record.created + 10, limit=2) <= 2
    assert await driver.load(ended, now=record.created + TOMBSTONE - 1) is Outcome.ENDED
    later = record.created + TOMBSTONE
    for _ in range(1000):
        removed = await driver.purge(now=later, limit=2)
        assert removed <= 2
        if not removed:
            break
    for id in (*old, ended):
        assert await driver.load(id, now=later) is None
    assert (await _load(driver, kept, later)).fields == {"a": b"2", "b": b"2"}


# Sizes


def _size(fields: Mapping[str, bytes]) -> int:
    return sum(len(name.encode()) + len(value) for name, value in fields.items())


def _max_size_of(fields: Mapping[str, bytes]) -> int:
    """Return the size of *fields* with the largest overhead that a store may add."""
    return _size(fields) + _MAX_FIELD_OVERHEAD * len(fields) + _MAX_SESSION_OVERHEAD


async def _changes_nothing(driver: Driver, id: str, write: Awaitable[Outcome]) -> None:
    before = await _load(driver, id)
    assert await write is Outcome.TOO_LARGE
    assert await _load(driver, id) == before


@_check
async def a_write_within_max_size_is_written_and_one_beyond_it_changes_nothing(driver: Driver) -> None:
    for length in (0, 1, 500, 5000):
        fields = {"a": b"1" * 300, "b": b"2" * 300}
        id, record = await _create(driver, _record(dict(fields), lasts=1000, deadline=500))
        new, later = b"3" * length, record.created + 700
        after = {**fields, "n": new}
        await _changes_nothing(driver, id, _apply(driver, id, {"n": new}, deadline=later, max_size=_size(after) - 1))
        await _changes_nothing(driver, id, _swap(driver, id, None, new, deadline=later, max_size=_size(after) - 1))
        assert await _swap(driver, id, None, new, max_size=_max_size_of(after)) is Outcome.WRITTEN
        await _changes_nothing(driver, id, _swap(driver, id, new, new + b"4", deadline=later, max_size=_size(after)))
        await _changes_nothing(driver, id, _apply(driver, id, {"n": new + b"4"}, deadline=later, max_size=_size(after)))
        assert await _apply(driver, id, {"n": new + b"4"}, max_size=_max_size_of(after) + 1) is Outcome.WRITTEN
        assert (await _load(driver, id)).fields == {**fields, "n": new + b"4"}


@_check
async def field_names_count_in_bytes(driver: Driver) -> None:
    for name in ("k" * 3000, "\u00e9" * 1500):
        id, _ = await _create(driver)
        after = {"a": b"1", "b": b"2", name: b""}
        await _changes_nothing(driver, id, _apply(driver, id, {name: b""}, max_size=_size(after) - 1))
        write = driver.swap(id, name, None, b"", now=time.time(), deadline=None, max_size=_size(after) - 1)
        assert await write is Outcome.TOO_LARGE
        assert await _apply(driver, id, {name: b""}, max_size=_max_size_of(after)) is Outcome.WRITTEN
        assert (await _load(driver, id)).fields == after


@_check
async def deleted_fields_make_room_in_the_same_write(driver: Driver) -> None:
    id, _ = await _create(driver, _record({"a": b"1" * 2000, "b": b"2" * 2000}))
    after = {"b": b"3" * 1000, "c": b"4" * 3000}
    assert await _apply(driver, id, after, "a", max_size=_max_size_of(after)) is Outcome.WRITTEN
    await _changes_nothing(driver, id, _apply(driver, id, {"d": b"5" * 1001}, "b", max_size=_size(after)))
    assert (await _load(driver, id)).fields == after


@_check
async def a_session_beyond_max_size_may_stay_or_shrink_but_not_grow(driver: Driver) -> None:
    old = {"a": b"1" * 3000, "n": b"2" * 3000}
    id, record = await _create(driver, _record(dict(old), lasts=1000, deadline=500))
    later = record.created + 700
    assert await _apply(driver, id, {}, deadline=later, max_size=100) is Outcome.WRITTEN
    assert abs((await _load(driver, id)).deadline - later) < 0.01
    assert await _apply(driver, id, {"a": b"3" * 3000}, max_size=100) is Outcome.WRITTEN
    assert await _swap(driver, id, old["n"], b"4" * 3000, max_size=100) is Outcome.WRITTEN
    await _changes_nothing(driver, id, _apply(driver, id, {"a": b"5" * 3001}, max_size=100))
    await _changes_nothing(driver, id, _swap(driver, id, b"4" * 3000, b"5" * 3001, max_size=100))
    assert await _apply(driver, id, {"a": b"6" * 3010, "n": b"7" * 2980}, max_size=100) is Outcome.WRITTEN
    assert await _swap(driver, id, b"7" * 2980, b"8" * 2979, max_size=100) is Outcome.WRITTEN
    assert await _apply(driver, id, {}, "a", max_size=100) is Outcome.WRITTEN
    assert (await _load(driver, id)).fields == {"n": b"8" * 2979}
    assert await _apply(driver, id, {}, "n", max_size=1) is Outcome.EMPTIED


@_check
async def concurrent_writes_do_not_exceed_max_size_together(driver: Driver) -> None:
    id, _ = await _create(driver)
    names = [f"k{i}" for i in range(50)]
    outcomes = await asyncio.gather(
        *(_apply(driver, id, {name: b"1" * 1000}, max_size=10_000) for name in names[:25]),
        *(driver.swap(id, name, None, b"1" * 1000, now=time.time(), deadline=None, max_size=10_000) for name in names[25:]),
    )
    assert set(outcomes) == {Outcome.WRITTEN, Outcome.TOO_LARGE}
    written = {name: b"1" * 1000 for name, outcome in zip(names, outcomes, strict=True) if outcome is Outcome.WRITTEN}
    fields = (await _load(driver, id)).fields
    assert fields == {"a": b"1", "b": b"2", **written}
    assert _size(fields) <= 10_000
    assert len(written) > 7


@_check
async def a_large_session_is_loaded_whole_by_itself_and_with_others(driver: Driver) -> None:
    large = {"a": b"1", "b": random.randbytes(3 * LARGE), "c": _ALL_BYTES * (LARGE // 128)}  # noqa: S311
    started, (grown, _) = (await _create(driver, _record(dict(large))))[0], await _create(driver)
    small = [(await _create(driver, _record({"n": b"%d" % i})))[0] for i in range(20)]
    assert (await _load(driver, started)).fields == large
    assert await _apply(driver, grown, large) is Outcome.WRITTEN
    assert (await _load(driver, grown)).fields == large
    ids = [*small[:5], started, *small[5:], grown, _new_id(), started]
    expected = [*({"n": b"%d" % i} for i in range(5)), large, *({"n": b"%d" % i} for i in range(5, 20)), large, None, large]
    found = await asyncio.gather(*(driver.load(id, now=time.time()) for id in ids))
    assert [record.fields if isinstance(record, Record) else record for record in found] == expected
    assert await _apply(driver, grown, {}, "b", "c") is Outcome.WRITTEN
    new_id, version = _new_id(), (await _load(driver, started)).version
    assert await driver.rename(started, new_id, _record(dict(large)), version=version, now=time.time()) is Outcome.WRITTEN
    # Twice, because a driver may remember which sessions are large.
    for _ in range(2):
        found = await asyncio.gather(*(driver.load(id, now=time.time()) for id in (started, new_id, grown, *small)))
        assert found[0] is Outcome.ENDED
        records = [record.fields for record in found if isinstance(record, Record)]
        assert records == [large, {"a": b"1"}, *({"n": b"%d" % i} for i in range(20))]


@_check
async def a_store_with_a_clock_returns_the_seconds_since_the_epoch(driver: Driver) -> None:
    if not has_clock(driver):
        return
    started = time.monotonic()
    first = await driver.time()
    await asyncio.sleep(0.05)
    second = await driver.time()
    assert 1_700_000_000 < first < YEAR_10000
    assert 0.04 < second - first < time.monotonic() - started + 0.01


@_check
async def load_all_returns_what_load_returns_for_each_id(driver: Driver) -> None:
    if not loads_all(driver):
        return
    plain, empty = await _create(driver), await _create(driver, _record({"a": b"", "b": _ALL_BYTES}, seal=b"\1seal"))
    large = await _create(driver, _record({"a": b"1" * (2 * LARGE)}))
    short, moved = await _create(driver, _record(deadline=100)), await _create(driver)
    ended, (renamed, _), new_id = (await _create(driver))[0], await _create(driver), _new_id()
    await driver.destroy(ended, now=time.time())
    assert await driver.rename(renamed, new_id, _record({"c": b"3"}), version=0, now=time.time()) is Outcome.WRITTEN
    assert await _apply(driver, moved[0], {"a": b"3"}, "b", deadline=time.time() + 500) is Outcome.WRITTEN
    ids = [plain[0], ended, large[0], renamed, _new_id(), short[0], new_id, moved[0], empty[0], large[0], plain[0]]
    absent = type(None)
    kinds = [Record, Outcome, Record, Outcome, absent, Record, Record, Record, Record, Record, Record]
    late_kinds = [Record, absent, Record, absent, absent, absent, Record, Record, Record, Record, Record]
    now, later = time.time(), time.time() + 200
    # Twice, because a driver may remember which sessions are large.
    for then, expected in ((now, kinds), (now, kinds), (later, late_kinds), (later, late_kinds)):
        found = await driver.load_all(ids, now=then)
        assert [type(each) for each in found] == expected
        assert found == [await driver.load(id, now=then) for id in ids]
        together = await asyncio.gather(*(driver.load_all(some, now=then) for some in (ids, ids[::-1], ids[:2], ids[2:])))
        assert together == [found, found[::-1], found[:2], found[2:]]
    assert await driver.load_all([], now=now) == []


@_check
async def changing_a_record_of_load_all_changes_no_other(driver: Driver) -> None:
    if not loads_all(driver):
        return
    id, record = await _create(driver)
    (first, second), [third] = await asyncio.gather(
        driver.load_all([id, id], now=time.time()), driver.load_all([id], now=time.time())
    )
    assert isinstance(first, Record)
    first.fields.clear()
    for other in (second, third, await driver.load(id, now=time.time())):
        assert isinstance(other, Record)
        assert other.fields == record.fields


@_check
async def load_all_returns_each_write_that_was_acknowledged_before(driver: Driver) -> None:
    if not loads_all(driver):
        return
    last = 11
    ids = [(await _create(driver, _record({"a": b"0", "b": b"0"})))[0] for _ in range(5)]
    acknowledged = dict.fromkeys(ids, 0)

    async def write(id: str) -> None:
        for number in range(1, last):
            value = b"%d" % number
            assert await _apply(driver, id, {"a": value, "b": value}) is Outcome.WRITTEN
            acknowledged[id] = number
            await asyncio.sleep(0)
        await driver.destroy(id, now=time.time())
        acknowledged[id] = last

    async def read() -> None:
        while min(acknowledged.values()) < last:
            before = [*acknowledged.values()]
            for number, found in zip(before, await driver.load_all(ids, now=time.time()), strict=True):
                if isinstance(found, Record):
                    assert found.fields["a"] == found.fields["b"]
                    assert number <= int(found.fields["a"])
                else:
                    assert found is Outcome.ENDED
            await asyncio.sleep(0)

    await asyncio.gather(*map(write, ids), read(), read())
    assert await driver.load_all(ids, now=time.time()) == [Outcome.ENDED] * len(ids)


# Owners


def _new_ownership(owner: str | None = None, *, note: bytes = b"", since: float | None = None) -> Ownership:
    return Ownership(_new_id() if owner is None else owner, note, time.time() if since is None else since)


def _record_with(ownership: Ownership, *, lasts: float = 1000, deadline: float | None = None) -> Record:
    record = _record(lasts=lasts, deadline=deadline)
    record.ownership = ownership
    return record


async def _create_owned(driver: OwnerDriver, ownership: Ownership) -> str:
    id, _ = await _create(driver, _record_with(ownership))
    return id


async def _owned(driver: OwnerDriver, owner: str, now: float | None = None) -> set[str]:
    return set(await driver.owned(owner, now=now or time.time()))


async def _set_owner(
    driver: OwnerDriver,
    id: str,
    ownership: Ownership | None,
    sets: dict[str, bytes] | None = None,
    *deletes: str,
    now: float | None = None,
    deadline: float | None = None,
    max_size: int = _MAX_SIZE,
) -> Outcome:
    return await driver.set_owner(id, ownership, sets or {}, deletes, now=now or time.time(), deadline=deadline, max_size=max_size)


async def _end_owned(driver: OwnerDriver, owner: str, keep: Collection[str] = (), now: float | None = None) -> int:
    return await driver.end_owned(owner, keep=keep, now=now or time.time())


async def _rename(driver: OwnerDriver, id: str, ownership: Ownership | None, now: float | None = None) -> tuple[str, Outcome]:
    new_id, record, version = _new_id(), _record({"c": b"3"}), (await _load(driver, id, now)).version
    record.ownership = ownership
    return new_id, await driver.rename(id, new_id, record, version=version, now=now or time.time())


@_owner_check
async def an_owners_sessions_are_listed_and_no_others(driver: OwnerDriver) -> None:
    ownership, other = _new_ownership(note=_ALL_BYTES), _new_ownership()
    record = _record_with(ownership, lasts=1000, deadline=500)
    id, _ = await _create(driver, record)
    second, of_other, (unowned, _) = (
        await _create_owned(driver, ownership),
        await _create_owned(driver, other),
        await _create(driver),
    )
    found = await driver.owned(ownership.owner, now=time.time())
    assert set(found) == {id, second}
    assert found[id].ownership == ownership
    assert (found[id].created, found[id].expires) == (record.created, record.expires)
    assert abs(found[id].deadline - record.deadline) < 0.01
    assert await _owned(driver, other.owner) == {of_other}
    assert await _owned(driver, _new_id()) == set()
    assert (await _load(driver, id)).ownership == ownership
    assert (await _load(driver, id)).fields == {"a": b"1", "b": b"2"}
    assert (await _load(driver, unowned)).ownership is None


@_owner_check
async def any_text_is_an_owner_and_any_bytes_are_a_note(driver: OwnerDriver) -> None:
    base = _new_id()
    owners = [
        base,
        base.upper(),
        *(base + name for name in _HOSTILE_NAMES if name),
        *(name + base for name in _HOSTILE_NAMES if name),
    ]
    ownerships = {owner: _new_ownership(owner, note=owner.encode() + _ALL_BYTES) for owner in owners}
    ids = {owner: await _create_owned(driver, ownership) for owner, ownership in ownerships.items()}
    for owner, ownership in ownerships.items():
        found = await driver.owned(owner, now=time.time())
        assert {id: record.ownership for id, record in found.items()} == {ids[owner]: ownership}
    assert await _end_owned(driver, owners[0]) == 1
    for owner in owners[1:]:
        assert await _owned(driver, owner) == {ids[owner]}


@_owner_check
async def an_owner_is_set_in_the_same_step_as_a_write(driver: OwnerDriver) -> None:
    id, record = await _create(driver, _record({"a": b"1", "b": b"2"}, lasts=1000, deadline=500))
    before, ownership = await _load(driver, id), _new_ownership(note=b"1")
    assert await _set_owner(driver, id, ownership, {"c": b"3"}, "a", deadline=record.created + 600) is Outcome.WRITTEN
    found = await _load(driver, id)
    assert (found.fields, found.ownership) == ({"b": b"2", "c": b"3"}, ownership)
    assert found.version > before.version
    assert abs(found.deadline - (record.created + 600)) < 0.01
    noted = _new_ownership(ownership.owner, note=b"2")
    assert await _set_owner(driver, id, noted) is Outcome.WRITTEN
    assert (await _load(driver, id)).ownership == noted
    assert (await _load(driver, id)).fields == {"b": b"2", "c": b"3"}
    assert await _owned(driver, ownership.owner) == {id}


@_owner_check
async def setting_an_owner_beyond_max_size_changes_nothing(driver: OwnerDriver) -> None:
    fields, ownership = {"a": b"1" * 300, "n": b"2" * 300}, _new_ownership(note=b"note")
    id, record = await _create(driver, _record(dict(fields), lasts=1000, deadline=500))
    later = record.created + 700
    after = {**fields, "n": b"3" * 301}
    write = {"n": after["n"]}
    await _changes_nothing(driver, id, _set_owner(driver, id, ownership, write, deadline=later, max_size=_size(after) - 1))
    await _changes_nothing(driver, id, _set_owner(driver, id, None, write, deadline=later, max_size=_size(after) - 1))
    assert await _owned(driver, ownership.owner) == set()
    assert await _set_owner(driver, id, ownership, {"n": b"4" * 300}, max_size=100) is Outcome.WRITTEN
    assert await _set_owner(driver, id, ownership, write, max_size=_max_size_of(after)) is Outcome.WRITTEN
    other = _new_ownership()
    await _changes_nothing(driver, id, _set_owner(driver, id, other, {"n": b"5" * 302}, max_size=_size(after)))
    assert (await _owned(driver, ownership.owner), await _owned(driver, other.owner)) == ({id}, set())
    assert (await _load(driver, id)).fields == after


@_owner_check
async def a_seal_survives_a_new_owner(driver: OwnerDriver) -> None:
    record = _record_with(ownership := _new_ownership())
    record.seal = _ALL_BYTES
    id, _ = await _create(driver, record)
    for each in (_new_ownership(), _new_ownership(ownership.owner), None):
        assert await _set_owner(driver, id, each) is Outcome.WRITTEN
        assert (await _load(driver, id)).seal == _ALL_BYTES


@_owner_check
async def an_owner_does_not_keep_an_empty_session(driver: OwnerDriver) -> None:
    for before in (None, _new_ownership()):
        id, _ = await _create(driver, _record_with(before) if before else None)
        ownership = _new_ownership()
        assert await _set_owner(driver, id, ownership, {}, "a", "b") is Outcome.EMPTIED
        assert await driver.load(id, now=time.time()) is Outcome.ENDED
        assert await _owned(driver, ownership.owner) == set()
        assert before is None or await _owned(driver, before.owner) == set()


@_owner_check
async def setting_an_owner_creates_no_session(driver: OwnerDriver) -> None:
    ownership, (ended, _) = _new_ownership(), await _create(driver)
    await driver.destroy(ended, now=time.time())
    assert await _set_owner(driver, ended, ownership, {"a": b"1"}) is Outcome.ENDED
    assert await _set_owner(driver, _new_id(), ownership, {"a": b"1"}) is Outcome.ABSENT
    expiring, record = await _create(driver, _record(lasts=1000, deadline=500))
    assert await _set_owner(driver, expiring, ownership, now=record.deadline) is Outcome.ABSENT
    assert await _owned(driver, ownership.owner) == set()


@_owner_check
async def a_session_can_change_its_owner_and_lose_it(driver: OwnerDriver) -> None:
    first, second = _new_ownership(), _new_ownership()
    id = await _create_owned(driver, first)
    assert await _set_owner(driver, id, second) is Outcome.WRITTEN
    assert (await _owned(driver, first.owner), await _owned(driver, second.owner)) == (set(), {id})
    assert await _end_owned(driver, first.owner) == 0
    assert await _set_owner(driver, id, None) is Outcome.WRITTEN
    assert await _owned(driver, second.owner) == set()
    assert await _end_owned(driver, second.owner) == 0
    assert (await _load(driver, id)).ownership is None


@_owner_check
async def other_writes_leave_the_owner_unchanged(driver: OwnerDriver) -> None:
    ownership = _new_ownership(note=b"1")
    id = await _create_owned(driver, ownership)
    assert await _apply(driver, id, {"a": b"3"}, "b") is Outcome.WRITTEN
    assert await _swap(driver, id, None, b"1") is Outcome.WRITTEN
    assert (await _load(driver, id)).ownership == ownership
    assert await _owned(driver, ownership.owner) == {id}


@_owner_check
async def a_renamed_session_has_the_owner_of_its_new_record(driver: OwnerDriver) -> None:
    ownership, other = _new_ownership(), _new_ownership()
    id = await _create_owned(driver, ownership)
    second, outcome = await _rename(driver, id, ownership)
    assert outcome is Outcome.WRITTEN
    assert await _owned(driver, ownership.owner) == {second}
    assert (await _load(driver, second)).ownership == ownership
    third, outcome = await _rename(driver, second, other)
    assert outcome is Outcome.WRITTEN
    assert (await _owned(driver, ownership.owner), await _owned(driver, other.owner)) == (set(), {third})
    fourth, outcome = await _rename(driver, third, None)
    assert outcome is Outcome.WRITTEN
    assert await _owned(driver, other.owner) == set()
    assert (await _load(driver, fourth)).ownership is None
    fifth, outcome = await _rename(driver, fourth, ownership)
    assert outcome is Outcome.WRITTEN
    assert await _owned(driver, ownership.owner) == {fifth}


@_owner_check
async def an_expired_or_ended_session_is_not_listed(driver: OwnerDriver) -> None:
    ownership = _new_ownership()
    kept, ended, emptied = [await _create_owned(driver, ownership) for _ in range(3)]
    expiring, record = await _create(driver, _record_with(ownership, lasts=1000, deadline=100))
    await driver.destroy(ended, now=time.time())
    assert await _apply(driver, emptied, {}, "a", "b") is Outcome.EMPTIED
    assert await _owned(driver, ownership.owner, record.deadline - 1) == {kept, expiring}
    assert await _owned(driver, ownership.owner, record.deadline) == {kept}
    assert await _end_owned(driver, ownership.owner, now=record.deadline) == 1
    assert await _owned(driver, ownership.owner, record.deadline) == set()


@_owner_check
async def end_owned_ends_all_sessions_except_those_to_keep(driver: OwnerDriver) -> None:
    ownership, other = _new_ownership(), _new_ownership()
    ids = [await _create_owned(driver, ownership) for _ in range(5)]
    of_other, (unowned, _) = await _create_owned(driver, other), await _create(driver)
    assert await _end_owned(driver, ownership.owner, keep=[ids[0], of_other, _new_id()]) == 4
    for id in ids[1:]:
        assert await driver.load(id, now=time.time()) is Outcome.ENDED
        assert await _apply(driver, id, {"a": b"1"}) is Outcome.ENDED
        assert await _set_owner(driver, id, other) is Outcome.ENDED
    assert await _owned(driver, ownership.owner) == {ids[0]}
    assert await _owned(driver, other.owner) == {of_other}
    assert (await _load(driver, unowned)).fields == (await _load(driver, ids[0])).fields == {"a": b"1", "b": b"2"}
    assert await _end_owned(driver, ownership.owner) == 1
    assert await _end_owned(driver, ownership.owner) == 0
    assert await _end_owned(driver, _new_id()) == 0


@_owner_check
async def an_ownership_made_before_end_owned_is_revoked(driver: OwnerDriver) -> None:
    old = _new_ownership(since=time.time() - 5)
    assert await _end_owned(driver, old.owner) == 0
    id = _new_id()
    assert await driver.create(id, _record_with(old)) is Outcome.REVOKED
    assert await driver.load(id, now=time.time()) in (None, Outcome.ENDED)
    existing, _ = await _create(driver)
    assert await _set_owner(driver, existing, old, {"a": b"3"}) is Outcome.REVOKED
    assert (await _load(driver, existing)).ownership is None
    assert (await _load(driver, existing)).fields["a"] == b"1"
    renamed, outcome = await _rename(driver, existing, old)
    assert outcome is Outcome.REVOKED
    assert await driver.load(renamed, now=time.time()) in (None, Outcome.ENDED)
    assert await _owned(driver, old.owner) == set()
    other_owner = _new_ownership(since=old.since)
    assert await _owned(driver, other_owner.owner) == set()
    assert await driver.create(_new_id(), _record_with(other_owner)) is None


@_owner_check
async def an_ownership_made_at_end_owned_or_later_is_not_revoked(driver: OwnerDriver) -> None:
    now = time.time()
    for since in (now, math.nextafter(now, math.inf), now + 0.5):
        ownership = _new_ownership(since=since)
        await _end_owned(driver, ownership.owner, now=now)
        just_before = _new_ownership(ownership.owner, since=math.nextafter(now, 0))
        assert await driver.create(_new_id(), _record_with(just_before)) is Outcome.REVOKED
        created = await _create_owned(driver, ownership)
        existing, _ = await _create(driver)
        assert await _set_owner(driver, existing, just_before) is Outcome.REVOKED
        assert await _set_owner(driver, existing, ownership) is Outcome.WRITTEN
        before, _ = await _create(driver)
        renamed, outcome = await _rename(driver, before, ownership)
        assert outcome is Outcome.WRITTEN
        assert await _owned(driver, ownership.owner) == {created, existing, renamed}


@_owner_check
async def end_owned_ends_a_session_whose_ownership_is_from_a_clock_that_was_ahead(driver: OwnerDriver) -> None:
    now = time.time()
    for ahead in (MAX_SKEW / 2, 3600):
        ownership = _new_ownership(since=now + ahead)
        ids = [await _create_owned(driver, ownership) for _ in range(3)]
        assert await _end_owned(driver, ownership.owner, keep=ids[:1], now=now) == 2
        assert await _owned(driver, ownership.owner) == {ids[0]}


@_owner_check
async def an_end_owned_further_ahead_than_clocks_differ_is_ignored(driver: OwnerDriver) -> None:
    now = time.time()
    for ahead, is_ignored in ((0.9 * MAX_SKEW, False), (5 * MAX_SKEW, True), (3600, True)):
        ownership = _new_ownership(since=now)
        await _end_owned(driver, ownership.owner, now=now + ahead)
        id, record = _new_id(), _record_with(ownership)
        record.created = _to_milliseconds(now)
        assert await driver.create(id, record) is (None if is_ignored else Outcome.REVOKED)
        existing, _ = await _create(driver)
        expected = Outcome.WRITTEN if is_ignored else Outcome.REVOKED
        assert await _set_owner(driver, existing, ownership, now=now) is expected
        before, _ = await _create(driver)
        renamed, outcome = await _rename(driver, before, ownership, now)
        assert outcome is expected
        assert await _owned(driver, ownership.owner) == ({id, existing, renamed} if is_ignored else set())


@_owner_check
async def an_end_owned_revokes_whatever_the_times_of_earlier_ones(driver: OwnerDriver) -> None:
    now = time.time()
    # In the second pair, the second clock is a little behind. In the last pair, the clock was set back in between.
    for first, second in ((-5, 0), (0, -MAX_SKEW / 2), (3600, 0)):
        old, (id, _) = _new_ownership(since=now - 0.1), await _create(driver)
        await _end_owned(driver, old.owner, now=now + first)
        await _end_owned(driver, old.owner, now=now + second)
        assert await driver.create(_new_id(), _record_with(old)) is Outcome.REVOKED
        assert await _set_owner(driver, id, old) is Outcome.REVOKED
        assert await _set_owner(driver, id, _new_ownership(old.owner, since=now)) is Outcome.WRITTEN


@_owner_check
async def end_owned_revokes_for_a_minute(driver: OwnerDriver) -> None:
    now = time.time()
    ownership, (id, _) = _new_ownership(since=now - 1), await _create(driver)
    await _end_owned(driver, ownership.owner, now=now)
    assert await _set_owner(driver, id, ownership, now=now + 1) is Outcome.REVOKED
    assert await _set_owner(driver, id, ownership, now=now + TOMBSTONE - 1) is Outcome.REVOKED
    assert await _set_owner(driver, id, ownership, now=now + TOMBSTONE) is Outcome.WRITTEN


@_owner_check
async def a_kept_session_may_be_renamed_with_its_ownership(driver: OwnerDriver) -> None:
    ownership = _new_ownership(since=time.time() - 5)
    id = await _create_owned(driver, ownership)
    assert await _end_owned(driver, ownership.owner, keep=[id]) == 0
    new_id, outcome = await _rename(driver, id, ownership)
    assert outcome is Outcome.WRITTEN
    assert await _owned(driver, ownership.owner) == {new_id}


@_owner_check
async def nothing_in_flight_survives_end_owned(driver: OwnerDriver) -> None:
    for _ in range(8):
        ownership = _new_ownership()
        now = math.nextafter(max(time.time(), ownership.since), math.inf)
        present = [await _create_owned(driver, ownership) for _ in range(6)]
        created_ids, new = [_new_id() for _ in range(6)], [(await _create(driver))[0] for _ in range(6)]
        moves = [_rename(driver, id, ownership) for id in (*present[:3], *new[:2])]
        _, *rest = await asyncio.gather(
            _after_a_moment(_end_owned(driver, ownership.owner, now=now)),
            *(_after_a_moment(driver.create(id, _record_with(ownership))) for id in created_ids),
            *(_after_a_moment(_set_owner(driver, id, ownership)) for id in new[2:]),
            *(_after_a_moment(_apply(driver, id, {"a": b"3"})) for id in present),
            *map(_after_a_moment, moves),
            return_exceptions=True,
        )
        renamed = [result[0] for result in rest if isinstance(result, tuple)]
        # A rename may find its session ended, or a tombstone under its new id; so may a creation in two steps.
        assert not [error for error in rest if isinstance(error, Exception) and not isinstance(error, AssertionError)], rest
        for id in (*present, *created_ids, *renamed):
            assert not isinstance(await driver.load(id, now=time.time()), Record)
        found = {id: await driver.load(id, now=time.time()) for id in new}
        alive = {id for id, record in found.items() if isinstance(record, Record)}
        assert not any(isinstance(record, Record) and record.ownership for record in found.values())
        assert await _owned(driver, ownership.owner) == set()
        # A later ownership is not revoked.
        later = _new_ownership(ownership.owner, since=now)
        assert {await _set_owner(driver, id, later) for id in alive} <= {Outcome.WRITTEN}
        assert await _owned(driver, ownership.owner) == alive


async def _after_a_moment(work: Awaitable[T]) -> T:
    await asyncio.sleep(random.uniform(0, 0.004))  # noqa: S311
    return await work


@_owner_check
async def count_returns_how_many_sessions_are_live(driver: OwnerDriver) -> None:
    # At *later*, the short sessions of other checks have expired, so none expires between two counts. Tombstones haven't expired.
    now, later = time.time(), time.time() + TOMBSTONE / 2
    before = await driver.count(now=later)
    ownership = _new_ownership()
    ended, expiring, renamed = (
        await _create_owned(driver, ownership),
        await _create(driver, _record(lasts=200)),
        await _create_owned(driver, ownership),
    )
    await _create(driver)
    assert await driver.count(now=later) == before + 4
    await driver.destroy(ended, now=now)
    await _rename(driver, renamed, ownership)
    assert await driver.count(now=later) == before + 3
    assert await driver.count(now=expiring[1].deadline) <= before + 2


# All sessions of all users


async def _end_everyone(driver: _EveryoneDriver, now: float) -> float:
    """End all sessions at *now*; return the time after that, when sessions begin that live."""
    began = time.monotonic()
    assert await driver.end_everyone(now=now) is None  # type: ignore[func-returns-value]  # another driver's may return anything
    # In whole milliseconds, and beyond the one in which a store may have finished.
    return math.ceil((now + time.monotonic() - began) * 1000 + 2) / 1000


async def _is_gone(driver: _EveryoneDriver, id: str, now: float) -> None:
    """See that the session is ENDED at *now* for every call, and that none of them revives it."""
    assert await driver.load(id, now=now) is Outcome.ENDED
    assert await _apply(driver, id, {"a": b"3"}, now=now) is Outcome.ENDED
    assert await _apply(driver, id, {}, "a", "b", now=now) is Outcome.ENDED
    assert await _swap(driver, id, None, b"1", now=now) is Outcome.ENDED
    assert await _set_owner(driver, id, _new_ownership(since=now), {"a": b"3"}, now=now) is Outcome.ENDED
    assert await driver.rename(id, new_id := _new_id(), _record(), version=0, now=now) is Outcome.ENDED
    await driver.destroy(id, now=now)
    assert await driver.load(id, now=now) is Outcome.ENDED
    assert await driver.load(new_id, now=now) is None


@_everyone_check
async def end_everyone_ends_every_session_and_those_that_begin_later_live(driver: _EveryoneDriver) -> None:
    ownerships = [_new_ownership() for _ in range(3)]
    ids = [await _create_owned(driver, ownership) for ownership in ownerships]
    ids.append((await _create(driver))[0])
    renamed, _ = await _rename(driver, ids[0], ownerships[0])
    written, _ = await _create(driver)
    assert await _apply(driver, written, {"a": b"3"}) is Outcome.WRITTEN
    now = await _end_everyone(driver, time.time())
    assert await driver.count(now=now) == 0
    for ownership in ownerships:
        assert await _owned(driver, ownership.owner, now) == set()
        assert await _end_owned(driver, ownership.owner, now=now) == 0
    for id in (*ids[1:], renamed, written):
        await _is_gone(driver, id, now)
    later = _new_ownership(ownerships[1].owner, since=now)
    record = _record_with(later)
    record.created = _to_milliseconds(now)
    new, _ = await _create(driver, record)
    assert (await _load(driver, new)).fields == record.fields
    assert await _apply(driver, new, {"a": b"3"}) is Outcome.WRITTEN
    assert await _swap(driver, new, None, b"1") is Outcome.WRITTEN
    assert await _owned(driver, later.owner) == {new}
    assert await driver.count(now=time.time()) == 1
    moved, outcome = _new_id(), await driver.rename(new, _new_id(), _record(), version=0, now=time.time())
    assert outcome is Outcome.CONFLICT
    found = await _load(driver, new)
    assert await driver.rename(new, moved, _record_with(later), version=found.version, now=time.time()) is Outcome.WRITTEN
    assert await _owned(driver, later.owner) == {moved}
    assert await driver.count(now=time.time()) == 1
    await driver.destroy(new, now=time.time())
    assert await driver.load(moved, now=time.time()) is Outcome.ENDED
    assert await driver.count(now=time.time()) == 0


@_everyone_check
async def end_everyone_can_be_called_again(driver: _EveryoneDriver) -> None:
    after = time.time()
    # The clock is set back a little in between.
    for back in (0, MAX_SKEW / 2, 0):
        record = _record()
        record.created = _to_milliseconds(after)
        id, _ = await _create(driver, record)
        assert isinstance(await driver.load(id, now=after), Record)
        after = max(after, await _end_everyone(driver, after - back))
        await _is_gone(driver, id, after)
        assert await driver.count(now=after) == 0


@_everyone_check
async def what_began_before_end_everyone_is_revoked(driver: _EveryoneDriver) -> None:
    old, record = _new_ownership(since=time.time()), _record(lasts=2000)
    now = await _end_everyone(driver, record.created + 0.5)
    later = _new_ownership(since=now)
    for each in (record, _record_with(old), _record_with(later)):
        each.created = record.created
        assert await driver.create(id := _new_id(), each) is Outcome.REVOKED
        assert await driver.load(id, now=now) in (None, Outcome.ENDED)
    new = _record()
    new.created = now
    id, _ = await _create(driver, new)
    assert await _set_owner(driver, id, old, {"a": b"3"}, now=now) is Outcome.REVOKED
    assert (await _load(driver, id, now)).fields["a"] == b"1"
    assert await _set_owner(driver, id, later, now=now) is Outcome.WRITTEN
    found = await _load(driver, id, now)
    _, other = _new_id(), _record_with(_new_ownership(since=old.since))
    assert await driver.rename(id, _new_id(), other, version=found.version, now=now) is Outcome.REVOKED
    assert await _owned(driver, old.owner, now) == set()


@_everyone_check
async def a_session_that_end_everyone_ended_is_absent_after_a_minute(driver: _EveryoneDriver) -> None:
    id, _ = await _create(driver)
    now = time.time()
    after = await _end_everyone(driver, now)
    assert await driver.load(id, now=now + TOMBSTONE - 1) is Outcome.ENDED
    later = after + TOMBSTONE
    assert await driver.load(id, now=later) is None
    assert await _apply(driver, id, {"a": b"3"}, now=later) is Outcome.ABSENT
    assert await _swap(driver, id, None, b"1", now=later) is Outcome.ABSENT
    assert await driver.rename(id, _new_id(), _record(), version=0, now=later) is Outcome.ABSENT
    for _ in range(3):
        await driver.purge(now=later, limit=1000)
        assert await driver.load(id, now=later) is None
        assert await driver.count(now=later) == 0
    record = _record()
    record.created = after
    new, _ = await _create(driver, record)
    assert await driver.count(now=later) == 1
    await driver.purge(now=later, limit=1000)
    assert isinstance(await driver.load(new, now=later), Record)


@_everyone_check
async def end_everyone_ends_sessions_of_a_clock_that_was_ahead(driver: _EveryoneDriver) -> None:
    now = time.time()
    for ahead in (MAX_SKEW / 2, 3600):
        record = _record(lasts=10_000)
        record.created = _to_milliseconds(now + ahead)
        id, _ = await _create(driver, record)
        after = await _end_everyone(driver, now)
        assert await driver.load(id, now=after) is Outcome.ENDED
        assert await driver.load(id, now=after + ahead + TOMBSTONE) is None


@_everyone_check
async def an_end_everyone_further_ahead_than_clocks_differ_revokes_nothing(driver: _EveryoneDriver) -> None:
    record = _record()
    for ahead, is_ignored in ((0.9 * MAX_SKEW, False), (MAX_FLIGHT * 1.5, True), (3600, True)):
        await _end_everyone(driver, record.created + ahead)
        assert await driver.create(_new_id(), record) is (None if is_ignored else Outcome.REVOKED)
    # The clock was set back in between.
    await _end_everyone(driver, record.created + 0.5 * MAX_SKEW)
    assert await driver.create(_new_id(), record) is Outcome.REVOKED


@_everyone_check
async def an_expired_session_stays_absent_after_end_everyone(driver: _EveryoneDriver) -> None:
    id, record = await _create(driver, _record(lasts=1000, deadline=20))
    after = await _end_everyone(driver, record.created + 10)
    assert await driver.load(id, now=after) is Outcome.ENDED
    assert await driver.load(id, now=record.created + 20) is None


@_everyone_check
async def a_large_session_is_ended_by_end_everyone(driver: _EveryoneDriver) -> None:
    id, _ = await _create(driver, _record({"a": b"1" * (2 * LARGE)}))
    for _ in range(2):
        await _load(driver, id)
    now = await _end_everyone(driver, time.time())
    assert await driver.load(id, now=now) is Outcome.ENDED
    assert set(await asyncio.gather(*(driver.load(id, now=now) for _ in range(4)))) == {Outcome.ENDED}
    assert await _apply(driver, id, {"b": b"1" * LARGE}, now=now) is Outcome.ENDED
    record = _record({"a": b"1" * (2 * LARGE)})
    record.created = now
    new, _ = await _create(driver, record)
    assert (await _load(driver, new)).fields == {"a": b"1" * (2 * LARGE)}


@_everyone_check
async def load_all_finds_that_every_session_was_ended(driver: _EveryoneDriver) -> None:
    batches: Driver = driver
    if not loads_all(batches):
        return
    ids = [(await _create(driver, record))[0] for record in (None, _record({"a": b"1" * (2 * LARGE)}), None)]
    now = await _end_everyone(driver, time.time())
    record = _record()
    record.created = now
    new, _ = await _create(driver, record)
    assert await batches.load_all([*ids, new, _new_id()], now=now) == [*[Outcome.ENDED] * 3, await _load(driver, new, now), None]
    later = now + TOMBSTONE
    assert await batches.load_all([*ids, new], now=later) == [None, None, None, await _load(driver, new, later)]


@_everyone_check
async def nothing_in_flight_survives_end_everyone(driver: _EveryoneDriver) -> None:
    for _ in range(6):
        ownership = _new_ownership()
        present = [await _create_owned(driver, ownership) for _ in range(6)]
        created_ids = [_new_id() for _ in range(6)]
        creations = [driver.create(id, _record_with(ownership)) for id in created_ids[:3]]
        creations += [driver.create(id, _record()) for id in created_ids[3:]]
        now = time.time() + 0.002
        moves = [_rename(driver, id, ownership) for id in present[:3]]
        _, *rest = await asyncio.gather(
            _after_a_moment(driver.end_everyone(now=now)),
            *map(_after_a_moment, creations),
            *(_after_a_moment(_set_owner(driver, id, ownership)) for id in present[2:5]),
            *(_after_a_moment(_apply(driver, id, {"a": b"3"})) for id in present),
            *map(_after_a_moment, moves),
            return_exceptions=True,
        )
        assert not [error for error in rest if isinstance(error, Exception) and not isinstance(error, AssertionError)], rest
        renamed = [result[0] for result in rest if isinstance(result, tuple)]
        for id in (*present, *created_ids, *renamed):
            assert not isinstance(await driver.load(id, now=time.time()), Record)
        assert await _owned(driver, ownership.owner) == set()
        assert await driver.count(now=time.time()) == 0


@_everyone_check
async def end_everyone_is_the_same_instant_for_concurrent_reads(driver: _EveryoneDriver) -> None:
    ids = [(await _create(driver))[0] for _ in range(20)]
    is_ended = False

    async def read() -> None:
        while not is_ended:
            await asyncio.gather(*(driver.load(id, now=time.time()) for id in ids))

    async def end() -> None:
        nonlocal is_ended
        await asyncio.sleep(0.005)
        await driver.end_everyone(now=time.time())
        found = await asyncio.gather(*(driver.load(id, now=time.time()) for id in ids))
        is_ended = True
        assert set(found) == {Outcome.ENDED}

    await asyncio.gather(read(), read(), end())
