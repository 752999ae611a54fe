"""Owners: sets the owner of a session, and lists, counts and ends the sessions of an owner."""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, Final, NamedTuple, Protocol, cast

import msgspec

from gaman_session._audit import Audit
from gaman_session._counters import Counters
from gaman_session._damage import Damage
from gaman_session._driver import MAX_SKEW, TOMBSTONE, Driver, OwnerDriver, Ownership, Record, ends_everyone, supports_owners
from gaman_session._errors import SessionStoreError, SessionUnsupported, SessionUseError
from gaman_session._gather import gather
from gaman_session._owned import OwnedSession
from gaman_session._sealing import Keyring
from gaman_session._serializer import Codec

logger = logging.getLogger("gaman")

is_id: Final = re.compile("[0-9a-f]{64}").fullmatch
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(tuple[str, bytes]).decode


class PendingOwner(NamedTuple):
    """The change of owner that a request wants: what it passed to set_owner(), and when."""

    owner: str | None
    note: bytes
    """Encoded; empty for None."""
    since: float
    """When set_owner() was called, in seconds since the epoch."""
    moment: float
    """The same by the monotonic clock."""


class _End(NamedTuple):
    """When all sessions of an owner, or of everyone, were ended, by both clocks."""

    at: float
    moment: float


class KeptSession(Protocol):
    """The session that end_all() keeps."""

    @property
    def id(self) -> str | None: ...

    async def _find(self) -> None:
        """Find out which of the request's cookies leads to a live session, so that `id` is its id."""

    def _since(self) -> float:
        """Return when the session's login was, if it is in a cookie."""
        ...

    def _outlive_end(self) -> None:
        """Date a pending change of owner from now, so that end_all() doesn't revoke it."""


class Owners:
    """The owners of an application's sessions. The store only sees a keyed hash of each owner."""

    def __init__(
        self,
        driver: Driver | None,
        keyring: Keyring,
        codec: Codec,
        damage: Damage,
        counters: Counters,
        audit: Audit,
        clock: Callable[[], float],
        *,
        is_sealed: bool,
        idle_timeout: int | None,
        max_sessions: int | None,
    ) -> None:
        self._any_driver = driver
        self._keyring = keyring
        self._codec = codec
        self._damage = damage
        self._counters = counters
        self._audit = audit
        self._clock = clock
        self._is_sealed = is_sealed
        self._idle_timeout = idle_timeout
        self._max_sessions = max_sessions
        self._warns_of_old_id = True
        self._latest = 0.0
        self._latest_moment = 0.0
        # The owners whose sessions this process has ended within the last TOMBSTONE seconds, in that order.
        self._ended: dict[str, _End] = {}
        # When this process has last ended the sessions of everyone.
        self._everyone: _End | None = None

    # For a session

    def hash_of(self, owner: str) -> str:
        """Return the keyed hash of *owner*, which is safe to log."""
        return self._keyring.owner_names(owner)[0]

    def hash_in(self, ownership: Ownership | None) -> str | None:
        """Return the keyed hash of the owner in *ownership*."""
        if ownership is None:
            return None
        return ownership.owner if self._is_sealed else self.hash_of(ownership.owner)

    def pending(self, owner: str | None, note: bytes) -> PendingOwner:
        """Return a change of owner from now. SessionUnsupported, or SessionUseError for an invalid owner."""
        self._driver("set_owner()")
        if owner is not None:
            check_owner(owner)
        return self.dated_now(PendingOwner(owner, note, 0, 0))

    def dated_now(self, pending: PendingOwner) -> PendingOwner:
        """Return *pending* with the current time."""
        return pending._replace(since=self.instant(), moment=self._moment())

    def is_revoked(self, pending: PendingOwner) -> bool:
        """Return whether this process has ended the owner's sessions, or everyone's, after *pending*.

        The store revokes it too, unless the clock was set back since.
        """
        return any(end.moment > pending.moment for end in self._ends(pending))

    def ownership(self, pending: PendingOwner, id: str) -> Ownership | None:
        """Return the ownership of *pending* as the store gets it for the session *id*, or None if the owner is to be removed."""
        if pending.owner is None:
            return None
        name, since = self._names(pending.owner)[0], self._since(pending)
        if not self._is_sealed:
            return Ownership(name, pending.note, since)
        # The sealed note includes the owner, so that move() can hash the owner again with a newer secret.
        return Ownership(name, self._keyring.seal_note(id, name, _encode((pending.owner, pending.note))), since)

    def created_at(self, moment: float | None) -> float:
        """Return the `created` of a session that began at *moment* of the monotonic clock, or begins now."""
        now, end = self._clock(), self._everyone
        created = now if moment is None else now - (time.monotonic() - moment)
        if end is not None and (moment is None or end.moment < moment) and end.at <= now + MAX_SKEW:
            # The clock was set back after end_everyone().
            return max(created, end.at)
        return created

    def move(self, ownership: Ownership, id: str, new_id: str) -> Ownership:
        """Return the *ownership* of the session *id* for its new id, sealed with the newest secret."""
        opened = self._open(id, ownership) if self._is_sealed else None
        if opened is None:
            return ownership
        name = self._names(opened[0])[0]
        return Ownership(name, self._keyring.seal_note(new_id, name, _encode(opened)), ownership.since)

    def warn_of_old_id(self, pending: PendingOwner, before: Ownership | None, extra: dict[str, Any]) -> None:
        """Warn once if a session gets an owner, other than the one it had *before*, under its old id."""
        if self._warns_of_old_id and pending.owner is not None:
            if before is not None and before.owner in self._names(pending.owner):
                return
            self._warns_of_old_id = False
            logger.warning(
                "set_owner() gave a session its owner under its old id, so an id that was known before the login opens it (session "
                "fixation): write `await session.login(owner)`, or call regenerate() in the same request",
                extra=extra,
            )

    async def trim(self, pending: PendingOwner, id: str) -> None:
        """End the owner's oldest sessions beyond the limit, after *pending* was written to the session *id*.

        Of several logins at once, the last one sees them all.
        """
        if self._max_sessions is None or pending.owner is None:
            return
        records = await self._records(pending.owner)
        oldest = _by_age(records, self._clock(), id)[: -self._max_sessions]
        await gather(*(self._end_oldest(each, pending.owner) for each in oldest))

    async def _end_oldest(self, id: str, owner: str) -> None:
        await self._driver().destroy(id, now=self._clock())
        self._counters.ended += 1
        self._audit.note("ended", handle=id, owner=self.hash_of(owner), reason="limit")

    # For the application

    async def listed(self, owner: str) -> list[OwnedSession]:
        """Return the live sessions of *owner*, in the order of their set_owner() calls."""
        with self._noting_failure():
            records = await self._records(owner, "list()")
        return [self._owned_session(id, records[id]) for id in _by_age(records, self._clock())]

    async def end(self, id: str) -> bool:
        """End a session; return whether it existed."""
        driver = self._any_driver
        if driver is None:
            raise SessionUnsupported("cookies", "end()")
        # The id may come from a form.
        if not isinstance(id, str) or not is_id(id):
            return False
        now = self._clock()
        found, failure = None, None
        try:
            with self._noting_failure():
                found = await driver.load(id, now=now)
                await driver.destroy(id, now=now)
        except SessionStoreError as error:
            # The next attempt may find no session.
            if not error.is_unconfirmed:
                raise
            failure = error
        if isinstance(found, Record):
            self._counters.ended += 1
            self._audit.note("ended", handle=id, owner=self.hash_in(found.ownership), reason="end")
        if failure is not None:
            raise failure
        return isinstance(found, Record)

    async def end_all(self, owner: str, keep: KeptSession | None) -> int:
        """End the sessions of *owner* except *keep*; return how many it ended."""
        driver, names = self._driver("end_all()"), self._names(check_owner(owner))
        if keep is not None:
            await keep._find()
        kept = () if keep is None or keep.id is None else (keep.id,)
        # The instant at which it takes effect: every process revokes an earlier set_owner().
        now = self.instant()
        self._remember(owner, now)
        if keep is not None:
            keep._outlive_end()
        ended, partial_failure = 0, None
        # In both directions, because a rename may move a session from one name to another meanwhile.
        try:
            for name in (*names, *names[-2::-1]):
                try:
                    with self._noting_failure():
                        ended_now = await driver.end_owned(name, keep=kept, now=now)
                except SessionStoreError as error:
                    if not error.is_partial:
                        raise
                    # The store works and may have evicted some of the sessions, so end those under the other names too.
                    partial_failure = error
                    continue
                self._counters.ended += ended_now
                ended += ended_now
        finally:
            if ended:
                self._audit.note("ended", owner=self.hash_of(owner), reason="end_all", count=ended)
        if partial_failure is not None:
            raise partial_failure
        return ended

    async def end_everyone(self) -> None:
        """End all sessions in the store."""
        driver = self._any_driver
        if driver is None:
            raise SessionUnsupported(
                "cookies", "end_everyone()", "take a new secret and remove the old one, which ends all sessions in cookies"
            )
        if not ends_everyone(driver):
            raise SessionUnsupported(driver.name, "end_everyone()", "add it to the driver as EveryoneDriver says")
        # The instant at which it takes effect, as in end_all().
        now = self.instant()
        self._everyone = end = _End(now, self._moment())
        with self._noting_failure():
            await driver.end_everyone(now=now)
        if self._everyone is end:
            # With several steps, such as in a Redis Cluster, the store may have a later time, which is up to a millisecond ahead.
            self._everyone = _End(now + self._moment() - end.moment + 0.001, end.moment)
        self._audit.note("ended", reason="end_everyone")

    async def count(self, owner: str | None) -> int:
        """Return how many live sessions *owner* has, or how many there are in all."""
        with self._noting_failure():
            driver = self._driver("count()")
            return await driver.count(now=self._clock()) if owner is None else len(await self._records(owner))

    @contextmanager
    def _noting_failure(self) -> Generator[None]:
        """Count a failure of the store."""
        try:
            yield
        except SessionStoreError:
            self._counters.store_errors += 1
            raise

    async def _records(self, owner: str, call: str = "owners") -> dict[str, Record]:
        """Return the sessions of *owner* by id."""
        driver, now = self._driver(call), self._clock()
        records: dict[str, Record] = {}
        for of_name in await gather(*(driver.owned(name, now=now) for name in self._names(check_owner(owner)))):
            records.update(of_name)
        return records

    def _owned_session(self, id: str, record: Record) -> OwnedSession:
        return self._owned(id, record.created, record.deadline, self._note(id, cast("Ownership", record.ownership)))

    def _owned(self, id: str, created: float, deadline: float, note: Any) -> OwnedSession:
        idle, last_used = self._idle_timeout, None
        if idle is not None:
            last_used = datetime.fromtimestamp(max(created, min(deadline - idle, self._clock())), UTC)
        return OwnedSession(id, datetime.fromtimestamp(created, UTC), last_used, datetime.fromtimestamp(deadline, UTC), note)

    def _note(self, id: str, ownership: Ownership) -> Any:
        """Return the decoded note, or None if there is none or it is damaged."""
        opened = self._open(id, ownership) if self._is_sealed else ("", ownership.note)
        return self._decode_note(id, None if opened is None else opened[1])

    def _decode_note(self, id: str, note: bytes | None) -> Any:
        """Return the decoded *note*; None if it is damaged, or empty because there is none."""
        if note == b"":
            return None
        try:
            if note is not None:
                return self._codec.decoder.decode(note)
        except (RecursionError, MemoryError):
            raise
        except Exception:  # noqa: S110 - a serializer may raise anything, and it always means damage
            pass
        self._damage.report(id, "its note")
        return None

    def _open(self, id: str, ownership: Ownership) -> tuple[str, bytes] | None:
        """Return the owner and the encoded note, or None if they weren't sealed for this session."""
        data = self._keyring.open_note(id, ownership.owner, ownership.note)
        return None if data is None else _decode(data)

    def _names(self, owner: str) -> list[str]:
        """Return the names that *owner* may have in the store; new sessions get the first."""
        return self._keyring.owner_names(owner) if self._is_sealed else [owner]

    def _driver(self, call: str = "owners") -> OwnerDriver:
        driver = self._any_driver
        if not supports_owners(driver):
            raise SessionUnsupported("cookies" if driver is None else driver.name, call)
        return driver

    def _since(self, pending: PendingOwner) -> float:
        """Return when *pending* was made, by the current setting of the clock."""
        now = self._clock()
        since, age = pending.since, self._moment() - pending.moment
        if since + age > now + MAX_SKEW:
            # The clock was set back since. By its new time, an earlier end_all() must not appear to be later than this.
            since = now - age
        for end in self._ends(pending):
            if end.moment < pending.moment and end.at <= now + MAX_SKEW:
                # The clock was set back between end_all() and set_owner().
                since = max(since, end.at)
        return since

    def _ends(self, pending: PendingOwner) -> list[_End]:
        """Return when this process has ended the sessions of the owner, and of everyone, if it has."""
        return [end for end in (self._ended.get(pending.owner or ""), self._everyone) if end is not None]

    def _remember(self, owner: str, now: float) -> None:
        """Remember that end_all() ended the sessions of *owner* at *now*."""
        moment = self._moment()
        self._ended.pop(owner, None)
        self._ended[owner] = _End(now, moment)
        while self._ended[oldest := next(iter(self._ended))].moment < moment - TOMBSTONE:
            del self._ended[oldest]

    def instant(self) -> float:
        """Return the time, and never the same one twice, so that set_owner() and end_all() have an order."""
        now = self._clock()
        # The time doesn't go back unless the clock was set back by more than MAX_SKEW.
        self._latest = math.nextafter(self._latest, math.inf) if 0 <= self._latest - now <= MAX_SKEW else now
        return self._latest

    def _moment(self) -> float:
        """Return the monotonic time, and never the same one twice."""
        self._latest_moment = max(time.monotonic(), math.nextafter(self._latest_moment, math.inf))
        return self._latest_moment


def age_of(since: float, now: float) -> float:
    """Return a key that sorts logins by their time. One in the future is from before the clock was set back."""
    return since if since <= now + MAX_SKEW else -math.inf


def _by_age(records: Mapping[str, Record], now: float, newest: str | None = None) -> list[str]:
    """Return the ids in the order of their set_owner() calls; *newest* is the last of those with the same time.

    A create() that is repeated because the store didn't confirm the first one may leave two sessions of one set_owner().
    """
    return sorted(records, key=lambda id: (age_of(cast("Ownership", records[id].ownership).since, now), id == newest, id))


def check_owner(owner: str) -> str:
    """Return *owner*, or raise SessionUseError if it is invalid."""
    if not isinstance(owner, str) or not owner:
        raise SessionUseError(f"an owner is text, and not empty, such as 'user:1'; it can't be {owner!r}")
    try:
        owner.encode()
    except UnicodeEncodeError as cause:
        raise SessionUseError(f"an owner is text that UTF-8 can hold, without surrogates; it can't be {owner!r}") from cause
    return owner
