"""Known: which session the cookies of a request lead to, and what the request has learned of it from the store."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, TypeAlias, cast

from msgspec import Struct

from gaman import find_cookie, log_extra
from gaman_session._counters import Rejection
from gaman_session._driver import Driver, Record
from gaman_session._sealing import Identity
from gaman_session._sessions import Sessions


class Unread(Struct, frozen=True):
    """A cookie leads to this session, which hasn't been loaded."""

    identity: Identity


class Live(Struct, frozen=True):
    """The session is in the store, or was when it was loaded or written last."""

    identity: Identity
    record: Record


class Absent(Struct, frozen=True):
    """There is no session: the request has no valid cookie, or the session has expired or was lost."""

    identity: Identity | None


class Ended(Struct, frozen=True):
    """The session was ended elsewhere, so this request's changes are dropped."""

    identity: Identity | None


State: TypeAlias = Unread | Live | Absent | Ended


class Known(Struct):
    """What one request knows of its session. Only identify(), load() and the flush change its state."""

    sessions: Sessions
    scope: MutableMapping[str, Any]
    state: State | None = None
    """None until identify() has looked at the cookies."""
    has_cookie: bool = False
    """Whether the request has a cookie of the session's name, valid or not."""
    is_cookie_due: bool = False
    """Whether this request has begun, renamed or ended a session, which the browser has to know."""
    is_rejected: bool = False

    @property
    def driver(self) -> Driver:
        """The store's driver."""
        return cast("Driver", self.sessions.driver)

    def identify(self) -> State:
        """Return the state; the first call finds out from the cookies which session it is, without the store."""
        if self.state is None:
            token = find_cookie(self.scope["headers"], self.sessions.cookie_name)
            self.has_cookie = token is not None
            identity = None
            if token is not None and (identity := self.sessions.keyring.identify(token)) is None:
                self.reject("forged")
                identity = next(iter(self.twins()), None)
            self.state = Absent(None) if identity is None else Unread(identity)
        return self.state

    def twins(self) -> list[Identity]:
        """Return every session, live or not, that a cookie of this request leads to, in the order of the cookies."""
        identities = map(self.sessions.keyring.identify, self.sessions.tokens(self.scope))
        return list({identity.id: identity for identity in identities if identity is not None}.values())

    def twins_after(self, current: Identity) -> list[Identity]:
        """Return the twins after the *current* session; none if it has no cookie, because this request began it."""
        twins = self.twins()
        ids = [twin.id for twin in twins]
        return twins[ids.index(current.id) + 1 :] if current.id in ids else []

    def next_twin(self, dead: Identity) -> bool:
        """Go on with the twin after a *dead* session; return whether there is one.

        A browser keeps a dead cookie beside a live one if they differ in domain, path or partition, and may send it first.
        """
        following = self.twins_after(dead)
        if following:
            self.state = Unread(following[0])
        return bool(following)

    async def load(self, *, again: bool = False) -> None:
        """Load the session unless the request has loaded it before, or, with *again*, to see what it is now.

        Dead sessions are skipped for their twins, but a session that this request has read isn't replaced by another one.
        """
        state = self.identify()
        if not isinstance(state, Unread) and not (again and isinstance(state, Live)):
            return
        identity, is_ended = state.identity, False
        while True:
            now = self.sessions.clock()
            found = await self.driver.load(identity.id, now=now)
            if not isinstance(found, Record):
                self.reject("expired")
                # One tombstone among several dead sessions is enough to drop the request's changes.
                is_ended = is_ended or found is not None
            elif now < found.expires and (
                not self.sessions.is_sealed or identity.values.proves_times(found.seal, found.created, found.expires)
            ):
                self.sessions.counters.loaded += 1
                self.state = Live(identity, found)
                return
            else:
                self.report_damage(identity, "its lifetime")
            twins = self.twins_after(identity) if isinstance(state, Unread) else []
            if not twins:
                self.state = Ended(identity) if is_ended else Absent(identity)
                return
            identity = twins[0]

    def reject(self, reason: Rejection) -> None:
        """Count, once a request, that its cookie or session was rejected."""
        if not self.is_rejected:
            self.is_rejected = True
            self.sessions.counters.reject(reason)

    def report_damage(self, identity: Identity, what: str) -> None:
        """Log, once a process, that *what* of a session in the store is damaged."""
        self.reject("unreadable")
        self.sessions.damage.report(identity.id, what, log_extra(self.scope))
