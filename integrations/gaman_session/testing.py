"""The conformance suite for drivers: what the contract in `Driver` promises, as checks that any test runner can call.

Each check takes a driver that is open, and may share its store with other checks: it uses ids of its own.

    @pytest.mark.anyio
    @pytest.mark.parametrize("check", CONTRACT, ids=lambda check: check.__name__)
    async def test_my_driver_keeps_the_contract(check: Check) -> None:
        driver = MyDriver()
        await driver.open()
        try:
            await check(driver)
        finally:
            await driver.close()
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import TypeAlias

from gaman_session import _sealing
from gaman_session._driver import TOMBSTONE, Driver, Outcome, Record
from gaman_session._errors import SessionStoreError

Check: TypeAlias = Callable[[Driver], Awaitable[None]]

CONTRACT: list[Check] = []
"""Every check; its name is a sentence."""

_HOSTILE = (
    *("", " ", "a", "A", "\u00e9", "e\u0301", ".", "..", "a.b", "$", "$set", "_id", "__proto__", "../../etc/passwd"),
    *("\0", "a\0b", "\U0001f511", "k" * 10_000),
)
_OCTETS = bytes(range(256))


def _promise(check: Check) -> Check:
    CONTRACT.append(check)
    return check


def _new_id() -> str:
    return _sealing.handle(_sealing.new_id())


def _record(fields: dict[str, bytes] | None = None, *, lasts: float = 1000, deadline: float | None = None) -> Record:
    now = time.time()
    return Record({"a": b"1", "b": b"2"} if fields is None else fields, now, now + lasts, now + (deadline or lasts))


async def _begin(driver: Driver, record: Record | None = None) -> tuple[str, Record]:
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
) -> Outcome:
    return await driver.apply(id, sets or {}, deletes, now=now or time.time(), deadline=deadline)


async def _swap(
    driver: Driver, id: str, old: bytes | None, new: bytes, now: float | None = None, deadline: float | None = None
) -> Outcome:
    return await driver.swap(id, "n", old, new, now=now or time.time(), deadline=deadline)


@_promise
async def an_unknown_id_is_absent(driver: Driver) -> None:
    id, now = _new_id(), time.time()
    assert await driver.load(id, now=now) is None
    assert await _apply(driver, id, {"a": b"1"}) is Outcome.ABSENT
    assert await _swap(driver, id, None, b"1") is Outcome.ABSENT
    assert await driver.rename(id, _new_id(), _record(), version=0, now=now) is Outcome.ABSENT
    await driver.destroy(id, now=now)
    assert await driver.load(id, now=now) is None


@_promise
async def what_is_created_is_loaded(driver: Driver) -> None:
    id, record = await _begin(driver, _record({"a": b"", "b": _OCTETS}, lasts=1000, deadline=500))
    found = await _load(driver, id)
    assert found.fields == record.fields
    assert abs(found.created - record.created) < 0.01
    assert abs(found.expires - record.expires) < 0.01
    assert abs(found.deadline - record.deadline) < 0.01


@_promise
async def any_text_is_a_field_and_any_octets_are_a_value(driver: Driver) -> None:
    fields = {name: name.encode() + _OCTETS for name in _HOSTILE}
    id, _ = await _begin(driver, _record(dict(fields)))
    assert (await _load(driver, id)).fields == fields
    changed = {name: value[::-1] for name, value in fields.items()}
    assert await _apply(driver, id, changed) is Outcome.WRITTEN
    assert (await _load(driver, id)).fields == changed
    assert await _apply(driver, id, {"kept": b"1"}, *_HOSTILE) is Outcome.WRITTEN
    assert (await _load(driver, id)).fields == {"kept": b"1"}


@_promise
async def a_loaded_record_is_the_callers_own(driver: Driver) -> None:
    id, record = await _begin(driver)
    record.fields["mine"] = b"1"
    (await _load(driver, id)).fields.clear()
    assert (await _load(driver, id)).fields == {"a": b"1", "b": b"2"}


@_promise
async def creating_never_overwrites(driver: Driver) -> None:
    id, _ = await _begin(driver)
    try:
        await driver.create(id, _record({"other": b"1"}))
    except SessionStoreError:
        pass
    else:
        raise AssertionError("an id that is taken was created again")
    assert (await _load(driver, id)).fields == {"a": b"1", "b": b"2"}


@_promise
async def at_its_deadline_a_session_is_gone(driver: Driver) -> None:
    for write in ("nothing", "apply", "swap", "rename"):
        id, record = await _begin(driver, _record(lasts=1000, deadline=500))
        now = record.deadline
        assert await _load(driver, id, now - 1)
        if write == "apply":
            assert await _apply(driver, id, {"a": b"2"}, now=now) is Outcome.ABSENT
        elif write == "swap":
            assert await _swap(driver, id, None, b"1", now) is Outcome.ABSENT
        elif write == "rename":
            assert await driver.rename(id, _new_id(), _record(), version=0, now=now) is Outcome.ABSENT
        assert await driver.load(id, now=now) is None


@_promise
async def a_write_leaves_the_fields_of_others_alone(driver: Driver) -> None:
    id, _ = await _begin(driver)
    assert await _apply(driver, id, {"b": b"3", "c": b"4"}) is Outcome.WRITTEN
    assert await _apply(driver, id, {}, "a", "never there") is Outcome.WRITTEN
    assert (await _load(driver, id)).fields == {"b": b"3", "c": b"4"}


@_promise
async def a_write_that_takes_the_last_field_ends_the_session(driver: Driver) -> None:
    id, _ = await _begin(driver)
    assert await _apply(driver, id, {}, "a", "b") is Outcome.EMPTIED
    assert await driver.load(id, now=time.time()) is Outcome.ENDED
    assert await _apply(driver, id, {"a": b"1"}) is Outcome.ENDED


@_promise
async def a_write_that_swaps_all_fields_keeps_the_session(driver: Driver) -> None:
    id, _ = await _begin(driver)
    assert await _apply(driver, id, {"c": b"1"}, "a", "b") is Outcome.WRITTEN
    assert (await _load(driver, id)).fields == {"c": b"1"}


@_promise
async def a_deadline_moves_but_never_beyond_the_expiry(driver: Driver) -> None:
    for write in ("set", "touch", "swap"):
        id, record = await _begin(driver, _record({"n": b"1"}, lasts=1000, deadline=300))
        later = record.created + 600
        for asked, expected in ((None, record.deadline), (later, later), (record.expires + 1, record.expires)):
            if write == "swap":
                assert await _swap(driver, id, b"1", b"1", deadline=asked) is Outcome.WRITTEN
            else:
                sets = {"n": b"1"} if write == "set" else {}
                assert await _apply(driver, id, sets, deadline=asked) is Outcome.WRITTEN
            assert abs((await _load(driver, id)).deadline - expected) < 0.01
        assert await _load(driver, id, record.expires - 1)
        assert await driver.load(id, now=record.expires) is None


@_promise
async def every_write_raises_the_version(driver: Driver) -> None:
    id, _ = await _begin(driver)
    versions = [(await _load(driver, id)).version]
    for write in (_apply(driver, id, {"a": b"1"}), _apply(driver, id, {}, "b"), _swap(driver, id, None, b"1")):
        assert await write is Outcome.WRITTEN
        versions.append((await _load(driver, id)).version)
    assert versions == sorted(set(versions))


@_promise
async def a_swap_needs_the_value_that_was_read(driver: Driver) -> None:
    id, _ = await _begin(driver)
    assert await _swap(driver, id, b"1", b"2") is Outcome.CONFLICT
    assert await _swap(driver, id, b"", b"2") is Outcome.CONFLICT
    assert await _swap(driver, id, None, b"1") is Outcome.WRITTEN
    assert await _swap(driver, id, None, b"2") is Outcome.CONFLICT
    assert await _swap(driver, id, b"1", _OCTETS) is Outcome.WRITTEN
    assert await _swap(driver, id, _OCTETS, b"") is Outcome.WRITTEN
    assert await _swap(driver, id, None, b"3") is Outcome.CONFLICT
    assert await _swap(driver, id, b"", b"3") is Outcome.WRITTEN
    assert (await _load(driver, id)).fields == {"a": b"1", "b": b"2", "n": b"3"}


@_promise
async def a_rename_moves_the_session_and_kills_the_old_id(driver: Driver) -> None:
    id, _ = await _begin(driver)
    new_id, record = _new_id(), _record({"c": b"3"})
    version = (await _load(driver, id)).version
    assert await driver.rename(id, new_id, record, version=version, now=time.time()) is Outcome.WRITTEN
    assert (await _load(driver, new_id)).fields == {"c": b"3"}
    assert await driver.load(id, now=time.time()) is Outcome.ENDED
    assert await _apply(driver, id, {"a": b"1"}) is Outcome.ENDED
    assert await _swap(driver, id, None, b"1") is Outcome.ENDED
    assert await driver.rename(id, _new_id(), _record(), version=version, now=time.time()) is Outcome.ENDED


@_promise
async def a_rename_loses_no_write_that_came_in_between(driver: Driver) -> None:
    id, _ = await _begin(driver)
    new_id, version = _new_id(), (await _load(driver, id)).version
    assert await _apply(driver, id, {"late": b"1"}) is Outcome.WRITTEN
    assert await driver.rename(id, new_id, _record(), version=version, now=time.time()) is Outcome.CONFLICT
    assert (await _load(driver, id)).fields["late"] == b"1"
    assert await driver.load(new_id, now=time.time()) is None


@_promise
async def an_ended_session_stays_ended(driver: Driver) -> None:
    id, _ = await _begin(driver)
    await driver.destroy(id, now=time.time())
    await driver.destroy(id, now=time.time())
    assert await driver.load(id, now=time.time()) is Outcome.ENDED
    assert await _apply(driver, id, {"a": b"1"}) is Outcome.ENDED
    assert await _swap(driver, id, b"1", b"2") is Outcome.ENDED
    assert await driver.rename(id, _new_id(), _record(), version=0, now=time.time()) is Outcome.ENDED


@_promise
async def ending_a_renamed_session_ends_what_it_became(driver: Driver) -> None:
    id, _ = await _begin(driver)
    names = [id, _new_id(), _new_id()]
    for old, new in pairwise(names):
        version = (await _load(driver, old)).version
        assert await driver.rename(old, new, _record(), version=version, now=time.time()) is Outcome.WRITTEN
    await driver.destroy(id, now=time.time())
    for name in names:
        assert await driver.load(name, now=time.time()) is Outcome.ENDED


@_promise
async def a_tombstone_goes_after_a_minute(driver: Driver) -> None:
    id, record = await _begin(driver)
    now = record.created
    await driver.destroy(id, now=now)
    assert await driver.load(id, now=now + TOMBSTONE - 1) is Outcome.ENDED
    assert await driver.load(id, now=now + TOMBSTONE) is None
    assert await _apply(driver, id, {"a": b"1"}, now=now + TOMBSTONE) is Outcome.ABSENT


@_promise
async def writes_at_once_lose_no_field(driver: Driver) -> None:
    id, _ = await _begin(driver)
    outcomes = await asyncio.gather(*(_apply(driver, id, {f"k{i}": b"%d" % i}) for i in range(50)))
    assert set(outcomes) == {Outcome.WRITTEN}
    assert (await _load(driver, id)).fields == {"a": b"1", "b": b"2", **{f"k{i}": b"%d" % i for i in range(50)}}


@_promise
async def swaps_at_once_lose_no_count(driver: Driver) -> None:
    id, _ = await _begin(driver, _record({"n": b"0"}))

    async def count() -> None:
        for _ in range(1000):
            before = (await _load(driver, id)).fields["n"]
            if await _swap(driver, id, before, b"%d" % (int(before) + 1)) is Outcome.WRITTEN:
                return
        raise AssertionError("a swap met a conflict a thousand times")

    await asyncio.gather(*(count() for _ in range(50)))
    assert (await _load(driver, id)).fields["n"] == b"50"


@_promise
async def of_creations_at_once_one_succeeds(driver: Driver) -> None:
    id = _new_id()
    results = await asyncio.gather(*(driver.create(id, _record({"n": b"%d" % i})) for i in range(10)), return_exceptions=True)
    assert [result for result in results if not isinstance(result, SessionStoreError)] == [None]
    assert (await _load(driver, id)).fields == {"n": b"%d" % results.index(None)}


@_promise
async def no_writer_brings_back_what_is_ended_beside_it(driver: Driver) -> None:
    for _ in range(10):
        id, _ = await _begin(driver)
        writers = [_apply(driver, id, {f"k{i}": b"1"}) for i in range(10)]
        await asyncio.gather(*writers, driver.destroy(id, now=time.time()), *(_swap(driver, id, None, b"1") for _ in range(3)))
        assert await driver.load(id, now=time.time()) is Outcome.ENDED


@_promise
async def a_purge_takes_what_is_over_and_nothing_else(driver: Driver) -> None:
    old = [(await _begin(driver, _record(lasts=10)))[0] for _ in range(5)]
    kept, record = await _begin(driver, _record(lasts=1000, deadline=20))
    assert await _apply(driver, kept, {"a": b"2"}, deadline=record.created + 500) is Outcome.WRITTEN
    ended, _ = await _begin(driver)
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
