"""Whose sessions are whose: what a session's tag says, and what can be asked and done about all the sessions of one owner."""

from __future__ import annotations

import asyncio
import math
import re
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import msgspec

from gaman_session._counters import Counters
from gaman_session._damage import Damage
from gaman_session._driver import MAX_SKEW, OWNER_METHODS, TOMBSTONE, Driver, OwnerDriver, Ownership, Record
from gaman_session._errors import SessionStoreError, SessionUnsupported, SessionUseError
from gaman_session._sealing import Keyring
from gaman_session._serializer import Codec

if TYPE_CHECKING:
    from gaman_session._session import Session

_HANDLE: Final = re.compile("[0-9a-f]{64}")
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[str, bytes]).decode


class Wish(NamedTuple):
    """What a request has asked for by calling set_owner()."""

    owner: str | None
    note: bytes
    """Encoded; empty where there is none."""
    since: float
    """When it was asked for, in seconds since the epoch."""
    moment: float
    """When it was asked for, by a clock that is never set back."""


class _End(NamedTuple):
    """When all sessions of an owner were ended, by both clocks."""

    at: float
    moment: float


@dataclass(frozen=True, slots=True)
class OwnedSession:
    """A session of somebody's, as it was when it was listed."""

    handle: str
    """What `ctx.session.id` gives in that session. No cookie can be made of it, and end() takes it."""
    created_at: datetime
    """When it began or was last regenerated."""
    last_used_at: datetime | None
    """When it was last used, as the idle limit tells: to a tenth of `idle_timeout`. None where there is no such limit: a read then
    writes nothing, and what a driver keeps has no place for the time of a write."""
    expires_at: datetime
    """When it is over if nobody comes back to it."""
    note: Any
    """What set_owner() was given, or None."""


def supports_owners(driver: Driver | None) -> bool:
    """Return whether *driver* is an OwnerDriver."""
    return all(callable(getattr(driver, name, None)) for name in OWNER_METHODS)


class Owners:
    """The owners of an application's sessions, by names that the store is not told."""

    def __init__(
        self,
        driver: Driver | None,
        keyring: Keyring,
        codec: Codec,
        damage: Damage,
        counters: Counters,
        clock: Callable[[], float],
        *,
        is_sealed: bool,
        idle_timeout: int | None,
        most: int | None,
    ) -> None:
        self._any_driver = driver
        self._keyring = keyring
        self._codec = codec
        self._damage = damage
        self._counters = counters
        self._clock = clock
        self._is_sealed = is_sealed
        self._idle_timeout = idle_timeout
        self._most = most
        self._latest = 0.0
        self._latest_moment = 0.0
        # What end_all() has ended here within the last TOMBSTONE seconds, by owner, in that order.
        self._ended: dict[str, _End] = {}

    # What a session asks for

    def wish(self, owner: str | None, note: bytes) -> Wish:
        """Return what set_owner() is to do, or raise SessionUnsupported, or SessionUseError for what can't be an owner."""
        self._driver()
        if owner is not None:
            _check(owner)
        return self.again(Wish(owner, note, 0, 0))

    def again(self, wish: Wish) -> Wish:
        """Return *wish* as if it had been made only now."""
        return wish._replace(since=self._now(), moment=self._moment())

    def is_revoked(self, wish: Wish) -> bool:
        """Return whether this process has ended the sessions of the owner after *wish* was made.

        The store would say so too, unless the clock was set back since.
        """
        end = self._ended.get(wish.owner or "")
        return end is not None and end.moment > wish.moment

    def set_owner(self, wish: Wish, handle: str) -> Ownership | None:
        """Return the tag for the session *handle*, or None for that of nobody."""
        if wish.owner is None:
            return None
        name, since = self._names(wish.owner)[0], self._since(wish)
        if not self._is_sealed:
            return Ownership(name, wish.note, since)
        # With the owner's own name beside it, it can be hashed again under a newer secret; see move().
        return Ownership(name, self._keyring.seal_note(handle, name, _encode((wish.owner, wish.note))), since)

    def move(self, ownership: Ownership, handle: str, new_handle: str) -> Ownership:
        """Return *ownership* for what the session *handle* is renamed to, under the newest secret."""
        opened = self._open(handle, ownership) if self._is_sealed else None
        if opened is None:
            return ownership
        name = self._names(opened[0])[0]
        return Ownership(name, self._keyring.seal_note(new_handle, name, _encode(opened)), ownership.since)

    async def trim(self, wish: Wish) -> None:
        """End the owner's oldest sessions where there are too many. Whoever comes last sees all of those that came at once."""
        if self._most is None or wish.owner is None:
            return
        found = await self._find(wish.owner)
        oldest = sorted(found, key=lambda handle: _age(handle, found[handle]))[: -self._most]
        await asyncio.gather(*(self._driver().destroy(handle, now=self._clock()) for handle in oldest))
        self._counters.ended += len(oldest)

    # What an application asks for

    async def listed(self, owner: str) -> list[OwnedSession]:
        """Return the sessions of *owner*, the one that was tied to it first in front."""
        with self._noting_failure():
            found = await self._find(owner)
        return [self._show(handle, found[handle]) for handle in sorted(found, key=lambda handle: _age(handle, found[handle]))]

    async def end(self, handle: str) -> bool:
        """End the session *handle*; return whether it was there."""
        driver = self._any_driver
        if driver is None:
            raise SessionUnsupported("cookies")
        # It may come from a form.
        if not isinstance(handle, str) or not _HANDLE.fullmatch(handle):
            return False
        now = self._clock()
        with self._noting_failure():
            found = await driver.load(handle, now=now)
            await driver.destroy(handle, now=now)
        was_there = isinstance(found, Record)
        self._counters.ended += was_there
        return was_there

    async def end_all(self, owner: str, keep: Session | None) -> int:
        """End the sessions of *owner* but *keep*; return how many that were."""
        driver, names = self._driver(), self._names(_check(owner))
        if keep is not None and not hasattr(keep, "_outlive"):
            raise SessionUseError(f"end_all() keeps a session, not {keep!r}: write keep=ctx.session")
        if keep is not None:
            await keep._find_out()
        kept = () if keep is None or keep.id is None else (keep.id,)
        # The instant at which it takes effect. A tag that was made before is refused, by every process.
        now = self._now()
        self._remember(owner, now)
        if keep is not None:
            # It may be about to log in, and has lived to see this.
            keep._outlive()
        ended, unsure = 0, None
        # A session may go from one name to another while they are asked about in turn.
        for name in (*names, *names[-2::-1]):
            try:
                with self._noting_failure():
                    of_name = await driver.end_owned(name, keep=kept, now=now)
            except SessionStoreError as error:
                if error.__cause__ is not None:
                    raise
                # Without a cause, the store works and only may have evicted some of the sessions: end those under the other names.
                unsure = error
                continue
            self._counters.ended += of_name
            ended += of_name
        if unsure is not None:
            raise unsure
        return ended

    async def count(self, owner: str | None) -> int:
        """Return how many sessions *owner* has, or how many there are."""
        with self._noting_failure():
            return await self._driver().count(now=self._clock()) if owner is None else len(await self._find(owner))

    @contextmanager
    def _noting_failure(self) -> Generator[None]:
        """Count a call of the store that fails."""
        try:
            yield
        except SessionStoreError:
            self._counters.store_errors += 1
            raise

    async def _find(self, owner: str) -> dict[str, Record]:
        driver, now = self._driver(), self._clock()
        found: dict[str, Record] = {}
        for each in await asyncio.gather(*(driver.owned(name, now=now) for name in self._names(_check(owner)))):
            found.update(each)
        return found

    def _show(self, handle: str, record: Record) -> OwnedSession:
        idle, last_used = self._idle_timeout, None
        if idle is not None:
            last_used = datetime.fromtimestamp(max(record.created, min(record.deadline - idle, self._clock())), UTC)
        created, deadline = datetime.fromtimestamp(record.created, UTC), datetime.fromtimestamp(record.deadline, UTC)
        return OwnedSession(handle, created, last_used, deadline, self._note(handle, cast("Ownership", record.ownership)))

    def _note(self, handle: str, ownership: Ownership) -> Any:
        try:
            opened = self._open(handle, ownership) if self._is_sealed else ("", ownership.note)
            if opened is not None:
                return self._codec.decoder.decode(opened[1]) if opened[1] else None
        except (RecursionError, MemoryError):
            raise
        except Exception:  # noqa: S110 - a serializer raises what it likes, and all of it says the same
            pass
        self._damage.report(handle, "its note")
        return None

    def _open(self, handle: str, ownership: Ownership) -> tuple[str, bytes] | None:
        """Return the name of the owner and the note, or None where they were not sealed for this session."""
        data = self._keyring.open_note(handle, ownership.owner, ownership.note)
        return None if data is None else _decode(data)

    def _names(self, owner: str) -> list[str]:
        """Return the names under which the store may have *owner*; what is new goes under the first."""
        return self._keyring.owners(owner) if self._is_sealed else [owner]

    def _driver(self) -> OwnerDriver:
        driver = self._any_driver
        if not supports_owners(driver):
            raise SessionUnsupported("cookies" if driver is None else driver.name)
        return cast("OwnerDriver", driver)

    def _since(self, wish: Wish) -> float:
        """Return when *wish* was made, by the clock as it goes now."""
        now, end = self._clock(), self._ended.get(wish.owner or "")
        since, waited = wish.since, self._moment() - wish.moment
        if since + waited > now + MAX_SKEW:
            # The clock was set back meanwhile: what was ended by the new time was ended later than this.
            since = now - waited
        if end is not None and end.moment < wish.moment and end.at <= now + MAX_SKEW:
            # It was set back between the end and this.
            since = max(since, end.at)
        return since

    def _remember(self, owner: str, now: float) -> None:
        """Remember that the sessions of *owner* are ended *now*."""
        moment = self._moment()
        self._ended.pop(owner, None)
        self._ended[owner] = _End(now, moment)
        while self._ended[oldest := next(iter(self._ended))].moment < moment - TOMBSTONE:
            del self._ended[oldest]

    def _now(self) -> float:
        """Return the time, and never the same one twice: what comes before an end_all() is to be told from what comes after."""
        now = self._clock()
        # Where the clock was set back, by more than what may be made up for, it is right.
        self._latest = math.nextafter(self._latest, math.inf) if 0 <= self._latest - now <= MAX_SKEW else now
        return self._latest

    def _moment(self) -> float:
        """Return the time by a clock that is never set back, and never the same one twice."""
        self._latest_moment = max(time.monotonic(), math.nextafter(self._latest_moment, math.inf))
        return self._latest_moment


def _age(handle: str, record: Record) -> tuple[float, str]:
    return cast("Ownership", record.ownership).since, handle


def _check(owner: str) -> str:
    """Return *owner*, or raise SessionUseError for what can't be one."""
    if not isinstance(owner, str) or not owner:
        raise SessionUseError(f"an owner is text, and not empty, such as 'user:1'; it can't be {owner!r}")
    try:
        owner.encode()
    except UnicodeEncodeError as cause:
        raise SessionUseError(f"an owner is text that UTF-8 can hold, without surrogates; it can't be {owner!r}") from cause
    return owner
