"""Known: which session the cookies of a request lead to, and what the request has learned of it from the store."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, ClassVar, TypeAlias, final

from msgspec import Struct

from gaman import find_cookie, log_extra
from gaman_session._counters import Rejection
from gaman_session._driver import LoadAtOnce, Outcome, Record
from gaman_session._sealing import Identity
from gaman_session._sessions import Sessions

# gc=False on these, on Pending and on Flush saves 2 % of a request that uses a session in memory. Nothing in them refers back to
# them, so they need no garbage collector.


@final
class Unidentified(Struct, frozen=True, gc=False):
    """Nothing is known: the request's cookies haven't been looked at."""

    is_read: ClassVar[bool] = False


@final
class Unread(Struct, frozen=True, gc=False):
    """A cookie leads to this session, which hasn't been loaded."""

    is_read: ClassVar[bool] = False
    identity: Identity
    was_ended: bool = False
    """Whether an earlier cookie of the request led to a tombstone: one is enough to drop the request's changes."""


class Live(Struct, frozen=True, gc=False):
    """The session is in the store, or was when it was loaded or written last."""

    is_read: ClassVar[bool] = True
    identity: Identity
    record: Record


class Absent(Struct, frozen=True, gc=False):
    """There is no session: the request has no valid cookie, or the session has expired or was lost."""

    is_read: ClassVar[bool] = True
    identity: Identity | None


class Ended(Struct, frozen=True, gc=False):
    """The session was ended elsewhere, so this request's changes are dropped."""

    is_read: ClassVar[bool] = True
    identity: Identity | None


Identified: TypeAlias = Unread | Live | Absent | Ended
_UNIDENTIFIED = Unidentified()


class Known(Struct):
    """What one request knows of its session. Only identify(), load() and the flush change its state."""

    sessions: Sessions
    scope: MutableMapping[str, Any]
    state: Unidentified | Identified = _UNIDENTIFIED
    has_cookie: bool = False
    """Whether the request has a cookie of the session's name, valid or not."""
    is_cookie_due: bool = False
    """Whether this request has begun, renamed or ended a session, which the browser has to know."""
    can_send_cookie: bool = True
    """Whether the browser can still get a cookie; after the handshake of a WebSocket, it can't."""
    can_touch: bool = True
    """Whether the request moves the idle limit; one that failed doesn't, because the store may be why."""
    is_rejected: bool = False
    """Whether a cookie or a session of this request was counted as rejected."""

    def identify(self) -> Identified:
        """Return the state; the first call finds out from the cookies which session it is, without the store."""
        state = self.state
        # isinstance() takes 0.1 µs to find that a Struct is of another class.
        if type(state) is Unidentified:
            identity = self._first()
            state = self.state = Absent(None) if identity is None else Unread(identity)
        return state

    def _first(self) -> Identity | None:
        """Return the first session that a cookie of this request leads to."""
        sessions = self.sessions
        for name, field in self.scope["headers"]:
            if name != b"cookie":
                continue
            identity = sessions.identities.get(field)
            if identity is None:
                token = find_cookie([(name, field)], sessions.cookie_name)
                if token is None:
                    continue
                self.has_cookie = True
                identity = sessions.keyring.identify(token)
                if identity is None:
                    self.reject("forged")
                    return next(iter(self.twins()), None)
                sessions.remember(field, identity)
            self.has_cookie = True
            return identity
        return None

    def twins(self) -> list[Identity]:
        """Return every session, live or dead, that a cookie of this request leads to, in the order of the cookies."""
        identities = map(self.sessions.keyring.identify, self.sessions.tokens(self.scope))
        return list({identity.id: identity for identity in identities if identity is not None}.values())

    def twins_after(self, current: Identity) -> list[Identity]:
        """Return the twins after the *current* session; none if it has no cookie, because this request began it."""
        twins = self.twins()
        ids = [twin.id for twin in twins]
        return twins[ids.index(current.id) + 1 :] if current.id in ids else []

    def next_twin(self, dead: Identity, was_ended: bool) -> Unread | None:
        """Go on with the twin after a *dead* session, and return it, or None if there is none.

        A browser keeps a dead cookie beside a live one if they differ in domain, path or partition, and may send it first.
        """
        twins = self.twins_after(dead)
        if not twins:
            return None
        self.state = twin = Unread(twins[0], was_ended)
        return twin

    async def load(self, *, again: bool = False) -> None:
        """Load the session, unless this request has loaded it and doesn't want it *again*.

        If the session is dead, load its next twin. But a session that this request has read isn't replaced by another one.
        """
        state = self.identify()
        while isinstance(state, Unread) or (again and isinstance(state, Live)):
            again, now = False, self.sessions.clock()
            found = await self.sessions.store.load(state.identity.id, now=now)
            state = self.learn(state, found, now)

    def load_at_once(self, load: LoadAtOnce) -> None:
        """Do what load() does, with a *load* that needs no `await`."""
        state = self.identify()
        while type(state) is Unread:
            now = self.sessions.clock()
            state = self.learn(state, load(state.identity.id, now=now), now)

    def learn(self, state: Unread | Live, found: Record | Outcome | None, now: float) -> Identified:
        """Return the state that follows from what the store has *found* for this one."""
        sessions, identity = self.sessions, state.identity
        if not isinstance(found, Record):
            self.reject("expired")
        elif now < found.expires and (
            not sessions.is_sealed or identity.values.proves_times(found.seal, found.created, found.expires)
        ):
            sessions.counters.loaded += 1
            live = self.state = Live(identity, found)
            return live
        else:
            self.report_damage(identity, "its lifetime")
        was_ended = found is Outcome.ENDED or (isinstance(state, Unread) and state.was_ended)
        if isinstance(state, Unread) and (twin := self.next_twin(identity, was_ended)) is not None:
            return twin
        self.state = dead = Ended(identity) if was_ended else Absent(identity)
        return dead

    def reject(self, reason: Rejection) -> None:
        """Count, once a request, that its cookie or session was rejected."""
        if not self.is_rejected:
            self.is_rejected = True
            self.sessions.reject(reason, self.scope)

    def report_damage(self, identity: Identity, what: str) -> None:
        """Log, once a process, that *what* of a session in the store is damaged."""
        self.reject("unreadable")
        self.sessions.damage.report(identity.id, what, log_extra(self.scope))


def is_touch_due(known: Known) -> bool:
    """Return whether the idle limit of the session has to move."""
    state, sessions = known.state, known.sessions
    return (
        known.can_touch
        and isinstance(state, Live)
        and sessions.is_touch_due(state.record.deadline, state.record.expires, sessions.clock())
    )


def open_field(known: Known, live: Live, key: str) -> bytes | None:
    """Return the encoded data of *key* in the store, or None if it is missing or damaged."""
    sealed = live.record.fields.get(key)
    if sealed is None or not known.sessions.is_sealed:
        return sealed
    data = live.identity.values.open(key, sealed)
    if data is None:
        known.report_damage(live.identity, f"the value of {key!r}")
    return data
