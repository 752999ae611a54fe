"""Flush: writes a request's pending changes to the store, without undoing what other requests write at the same time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from time import monotonic
from typing import Final, NoReturn, cast

from msgspec import Struct

from gaman import log_extra
from gaman_session._audit import Reason
from gaman_session._driver import Outcome, OwnerDriver, Ownership, Record, size_of
from gaman_session._errors import SessionConflict, SessionStoreError, SessionUseError, StoredSessionTooLarge, too_late_for_cookie
from gaman_session._known import Absent, Ended, Known, Live, Unread, is_touch_due, open_field
from gaman_session._login import LOGIN, check_change, kind_of_renewal, login_in
from gaman_session._owners import PendingOwner
from gaman_session._pending import Pending
from gaman_session._sealing import Identity, new_raw_id

# Python 3.11 takes 0.2 µs to look up a member of an enum, 2 % of a request that writes a session in memory.
_WRITTEN: Final = Outcome.WRITTEN
MAX_ATTEMPTS: Final = 100


class Flush(Struct, gc=False):
    """A flush of what is *pending* to the session that is *known*."""

    known: Known
    pending: Pending

    async def run(self) -> None:
        """Write everything that is pending. SessionStoreError, SessionConflict or SessionTooLarge: not everything was written."""
        pending = self.pending
        if pending.is_end:
            await self._end()
        if pending.owner is not None and self.known.sessions.owners.is_revoked(pending.owner):
            self._revoke()
        elif pending.renewal is not None:
            await self._rename()
        elif pending.changes or pending.owner is not None:
            state = self.known.identify()
            if pending.owner is not None and isinstance(state, Unread):
                # Its login has to be known.
                await self.known.load()
                state = self.known.identify()
            if isinstance(state, (Unread, Live)):
                await self._apply(state, dict(pending.changes))
            elif isinstance(state, Ended):
                pending.discard()
            else:
                await self._begin()
        elif is_touch_due(self.known):
            await self._apply(cast("Live", self.known.state), {})

    async def swap(self, live: Live, key: str, data: bytes) -> bool:
        """Set *key* if its stored value is still the one in *live*; return False if it isn't.

        If the session was ended or has expired, the request's changes are dropped.
        """
        sessions, now = self.known.sessions, self.known.sessions.clock()
        sets = self._seal(live.identity, {key: data})
        outcome = await sessions.store.swap(
            live.identity.id,
            key,
            live.record.fields.get(key),
            sets[key],
            now=now,
            deadline=sessions.idle_deadline(now),
            max_size=sessions.max_size,
        )
        if outcome is Outcome.CONFLICT:
            return False
        if outcome is Outcome.TOO_LARGE:
            await self._refuse_size(live.identity, sets, (), key)
        if outcome is _WRITTEN:
            self._note_written(live, sets, (), now)
            self.pending.changes.pop(key, None)
        else:
            self._drop_changes()
        return True

    # Ending

    async def _end(self) -> None:
        """End the session, and every other session that a cookie of this request leads to."""
        identity = self.known.identify().identity
        if identity is not None:
            login = login_in(self.pending.changes.get(LOGIN), self.known.sessions.codec)
            reason: Reason = "logout" if login is None else "login"
            # Twins first, so that no request in between finds one of them as the browser's session.
            await self._end_all_but(identity, self.known.twins(), reason)
            await self._destroy(identity, reason)
            self._forget()
        self.pending.is_end = False

    async def _end_all_but(self, current: Identity, twins: Iterable[Identity], reason: Reason) -> None:
        for twin in twins:
            if twin.id != current.id:
                await self._destroy(twin, reason)

    async def _destroy(self, identity: Identity, reason: Reason) -> None:
        """End a session, and note that if it was live."""
        state, sessions = self.known.identify(), self.known.sessions
        is_this = state.identity is not None and state.identity.id == identity.id
        record = state.record if is_this and isinstance(state, Live) else None
        was_live = record is not None or not (is_this and state.is_read)
        if record is None and was_live and sessions.audit.is_on:
            # A copy of a dead cookie ends nothing, and only the record has the owner. A failure of this must not stop a logout.
            with suppress(SessionStoreError):
                found = await sessions.store.load(identity.id, now=sessions.clock())
                record = found if isinstance(found, Record) else None
                was_live = record is not None
        try:
            await sessions.store.destroy(identity.id, now=sessions.clock())
        except SessionStoreError as error:
            # The next attempt may find no session.
            if was_live and error.is_unconfirmed:
                sessions.note_end(self.known.scope, identity.id, record, reason)
            raise
        if was_live:
            sessions.note_end(self.known.scope, identity.id, record, reason)

    # Changing the session that a cookie leads to

    async def _apply(self, state: Unread | Live, changes: dict[str, bytes | None]) -> None:
        """Write single fields, the owner, and the idle limit."""
        self._check_owner(state)
        sessions, identity, owner = self.known.sessions, state.identity, self.pending.owner
        now = sessions.clock()
        sets = self._seal(identity, changes)
        deletes = [key for key, data in changes.items() if data is None] if None in changes.values() else ()
        deadline, max_size = sessions.idle_deadline(now), sessions.max_size
        ownership = None
        if owner is None:
            outcome = await sessions.store.apply(identity.id, sets, deletes, now=now, deadline=deadline, max_size=max_size)
        else:
            ownership = sessions.owners.ownership(owner, identity.id)
            before = state.record.ownership if isinstance(state, Live) else None
            # A save() of this request may have given it a new id before.
            if not self.known.is_cookie_due:
                sessions.owners.warn_of_old_id(owner, before, {**log_extra(self.known.scope), "driver": sessions.store.name})
            driver = cast("OwnerDriver", sessions.store)
            outcome = await driver.set_owner(identity.id, ownership, sets, deletes, now=now, deadline=deadline, max_size=max_size)
        if outcome is _WRITTEN:
            self._note_written(state, sets, deletes, now)
            self.pending.settle(changes)
            if owner is not None:
                if isinstance(state, Live):
                    state.record.ownership = ownership
                await self._settle_owner(owner, identity.id)
        elif outcome is Outcome.TOO_LARGE:
            await self._refuse_size(identity, sets, deletes)
        elif outcome is Outcome.REVOKED:
            self._revoke()
        elif outcome is Outcome.EMPTIED:
            await self._end_all_but(identity, self.known.twins(), "logout")
            sessions.note_end(self.known.scope, identity.id, state.record if isinstance(state, Live) else None, "logout")
            self._forget()
            self.pending.settle(changes)
        elif isinstance(state, Live):
            # This request has read the session, so its changes are for no other one.
            self._drop_changes()
        else:
            self.known.reject("expired")
            was_ended = state.was_ended or outcome is Outcome.ENDED
            if (twin := self.known.next_twin(identity, was_ended)) is not None:
                await self._apply(twin, changes)
            elif was_ended:
                self._drop_changes()
            else:
                # The cookie is an old one, so a new session begins.
                await self._begin()

    def _check_owner(self, state: Unread | Live) -> None:
        """Raise SessionUseError, and drop the changes, if set_owner() contradicts the login of the session."""
        owner = self.pending.owner
        if owner is not None and LOGIN not in self.pending.changes and isinstance(state, Live):
            try:
                check_change(login_in(open_field(self.known, state, LOGIN), self.known.sessions.codec), owner.owner)
            except SessionUseError:
                self.pending.discard()
                raise

    # Beginning and renaming

    async def _begin(self, former: tuple[Ownership, str] | None = None, moment: float | None = None) -> None:
        """Store the changes as a new session, unless they set nothing.

        *former* is the ownership and the id of the session that they were for. The new session inherits the owner, so that a
        concurrent end_all() revokes it too. It began at *moment*, if that is given, for a concurrent end_everyone().
        """
        changes, owner = dict(self.pending.changes), self.pending.owner
        if any(data is not None for data in changes.values()):
            if not self.known.can_send_cookie:
                self.pending.discard()
                raise too_late_for_cookie()
            identity, record = self._new_session(None, changes, moment)
            self._check_size(record.fields, {})
            if owner is not None:
                record.ownership = self.known.sessions.owners.ownership(owner, identity.id)
            elif former is not None:
                record.ownership = self.known.sessions.owners.move(*former, identity.id)
            if await self.known.sessions.store.create(identity.id, record) is Outcome.REVOKED:
                self._revoke()
                return
            self.known.sessions.counters.created += 1
            self._note_renewal(None, identity.id, record)
            self._adopt(identity, record)
            if owner is not None:
                await self._settle_owner(owner, identity.id)
        self.pending.settle(changes)
        self.pending.renewal = None

    async def _rename(self) -> None:
        """Move the session, as it is in the store at that moment and with the pending changes, to a new id."""
        former: tuple[Ownership, str] | None = None
        moment = monotonic() if self.pending.renewal is None else self.pending.renewal.moment
        for attempt in range(MAX_ATTEMPTS):
            await self.known.load(again=attempt > 0)
            state = self.known.state
            if not isinstance(state, Live):
                # A session that was ended stays ended, but a login beside a logout isn't lost.
                if self.pending.renewal is None or self.pending.renewal.begins:
                    await self._begin(former, moment if isinstance(state, Ended) else None)
                else:
                    self._drop_changes()
                return
            # The browser may send the cookie of an older session before the new one, and would then be logged out.
            await self._end_all_but(state.identity, self.known.twins_after(state.identity), "login")
            if state.record.ownership is not None:
                former = state.record.ownership, state.identity.id
            if await self._rename_once(state):
                return
        raise SessionConflict(
            f"regenerate() met other requests' changes {MAX_ATTEMPTS} times; let fewer requests share this session"
        )

    async def _rename_once(self, live: Live) -> bool:
        """Rename the session if it is still as in *live*; return False if it isn't."""
        self._check_owner(live)
        changes, owner = dict(self.pending.changes), self.pending.owner
        kept = {key: open_field(self.known, live, key) for key in live.record.fields if key not in changes}
        identity, record = self._new_session(live, {**kept, **changes})
        self._check_size(record.fields, live.record.fields)
        if not record.fields:
            await self._end()
            self.pending.settle(changes)
            return True
        if owner is not None:
            record.ownership = self.known.sessions.owners.ownership(owner, identity.id)
        elif live.record.ownership is not None:
            record.ownership = self.known.sessions.owners.move(live.record.ownership, live.identity.id, identity.id)
        now = self.known.sessions.clock()
        try:
            outcome = await self.known.sessions.store.rename(
                live.identity.id, identity.id, record, version=live.record.version, now=now
            )
        except SessionStoreError as error:
            if error.is_unconfirmed:
                # The old id is dead, so the browser gets the new one. The changes stay pending: if the handler catches this error,
                # its response is below 500 only if the store confirms them then.
                self._note_renewal(live, identity.id, record)
                self._adopt(identity, record)
            raise
        if outcome is _WRITTEN:
            self.known.sessions.counters.written += 1
            self._note_renewal(live, identity.id, record)
            self._adopt(identity, record)
            self.pending.settle(changes)
            self.pending.renewal = None
            if owner is not None:
                await self._settle_owner(owner, identity.id)
        elif outcome is Outcome.REVOKED:
            self._revoke()
        else:
            return False
        return True

    def _new_session(
        self, before: Live | None, changes: dict[str, bytes | None], moment: float | None = None
    ) -> tuple[Identity, Record]:
        """Return a new identity and its record, with the lifetime of the session *before* unless regenerate() set another one."""
        sessions, renewal = self.known.sessions, self.pending.renewal
        lifetime = None if before is None else before.record.expires - before.record.created
        is_transient = before is not None and before.identity.is_transient
        lifetime, is_transient = sessions.terms(None if renewal is None else renewal.max_age, lifetime, is_transient)
        identity = sessions.keyring.identity(new_raw_id(), is_transient)
        now = sessions.owners.created_at(moment)
        milliseconds = int(now * 1000)
        created, expires = milliseconds / 1000, (milliseconds + lifetime * 1000) / 1000
        seal = identity.values.seal_times(created, expires) if sessions.is_sealed else b""
        fields = self._seal(identity, changes)
        return identity, Record(fields, created, expires, sessions.deadline(now, expires), seal=seal)

    # What is known and pending afterwards

    def _adopt(self, identity: Identity, record: Record) -> None:
        self.known.state = Live(identity, record)
        self.known.is_cookie_due = True

    def _note_renewal(self, before: Live | None, id: str, record: Record) -> None:
        """Note that the session has a new id; if there was none *before*, that it began."""
        audit, scope = self.known.sessions.audit, self.known.scope
        if audit.is_on:
            owner, codec = self.known.sessions.owners.hash_in(record.ownership), self.known.sessions.codec
            former, login = (None, None) if before is None else (before.identity.id, open_field(self.known, before, LOGIN))
            if before is None:
                audit.note("began", scope, handle=id, owner=owner)
            kind, level = kind_of_renewal(login_in(login, codec), login_in(self.pending.changes.get(LOGIN, login), codec))
            if kind != "renewed" or before is not None:
                audit.note(kind, scope, handle=id, former=former, owner=owner, level=level)

    def _forget(self) -> None:
        """Go on without the session, which this request ended."""
        self.known.state = Ended(None) if isinstance(self.known.state, Ended) else Absent(None)
        self.known.is_cookie_due = True

    def _drop_changes(self) -> None:
        """Drop the changes, because the session was ended elsewhere; the cookie is left to the request that ended it."""
        self.pending.drop_changes()
        self.known.state = Ended(self.known.identify().identity)
        self.known.is_cookie_due = False

    def _revoke(self) -> None:
        """Drop the changes, because end_all() ended the sessions of their owner, or end_everyone() all sessions."""
        identity, sessions = self.known.identify().identity, self.known.sessions
        sessions.warn_of_revocation(self.known.scope, None if identity is None else identity.id, sessions.store)
        if identity is not None:
            self.known.reject("expired")
        self.pending.drop_changes()
        self.known.state = Ended(identity)

    def _note_written(self, state: Unread | Live, sets: Mapping[str, bytes], deletes: Collection[str], now: float) -> None:
        """Update the loaded record, if any, by what was written."""
        self.known.sessions.counters.written += 1
        # isinstance() takes 0.1 µs to find that a Struct is of another class.
        if type(state) is Live:
            record = state.record
            record.fields.update(sets)
            for key in deletes:
                record.fields.pop(key, None)
            record.version += 1
            record.deadline = self.known.sessions.deadline(now, record.expires)

    async def _settle_owner(self, written: PendingOwner, id: str) -> None:
        """Drop the pending owner, which was *written* to the session *id*, and end the owner's sessions beyond the limit."""
        if self.pending.owner is written:
            self.pending.owner = None
        await self.known.sessions.owners.trim(written, id)

    # Size and seal

    def _check_size(self, fields: Mapping[str, bytes], before: Mapping[str, bytes]) -> None:
        """Drop the changes, and raise SessionTooLarge, if *fields* are too large, and larger than *before*."""
        size = size_of(fields)
        if size > self.known.sessions.max_size and size > size_of(before):
            self.pending.discard()
            raise StoredSessionTooLarge(size, self.known.sessions.max_size)

    async def _refuse_size(
        self, identity: Identity, sets: Mapping[str, bytes], deletes: Collection[str], key: str | None = None
    ) -> NoReturn:
        """Drop the changes, which the store found too large, and raise SessionTooLarge."""
        self.pending.discard()
        found = await self.known.sessions.store.load(identity.id, now=self.known.sessions.clock())
        stored = found.fields if isinstance(found, Record) else {}
        size = size_of({name: sealed for name, sealed in {**stored, **sets}.items() if name not in deletes})
        # The store may count a little more, and other requests may have written since.
        raise StoredSessionTooLarge(max(size, self.known.sessions.max_size + 1), self.known.sessions.max_size, key)

    def _seal(self, identity: Identity, changes: dict[str, bytes | None]) -> dict[str, bytes]:
        """Return the fields that *changes* set, as the store gets them; maybe *changes* itself."""
        if None in changes.values():
            changes = {key: data for key, data in changes.items() if data is not None}
        sets = cast("dict[str, bytes]", changes)
        if not self.known.sessions.is_sealed:
            return sets
        seal = identity.values.seal
        return {key: seal(key, data) for key, data in sets.items()}
