"""Sessions: what the sessions of one application share, such as the driver, the keys and the limits."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass, field
from functools import partial
from itertools import islice
from typing import Any, Final, cast

from gaman import find_cookies, log_extra
from gaman_session._audit import Audit, OnEvent, Reason
from gaman_session._counters import Counters, Rejection
from gaman_session._damage import Damage
from gaman_session._driver import Driver, LoadAtOnce, Record
from gaman_session._ended import EndedSessions
from gaman_session._owners import Owners
from gaman_session._sealing import CACHE_SIZE, OVERHEAD, Identity, Keyring
from gaman_session._serializer import Codec

logger = logging.getLogger("gaman")

MAX_LIFETIME: Final = 1000 * 365 * 86_400
"""Seconds. With a longer lifetime, a session would expire after the last date that datetime supports."""

MAX_COOKIE: Final = 4096
"""Bytes that browsers must keep of a cookie, attributes included (RFC 6265, section 6.1)."""

MAX_COOKIES: Final = 4
"""How many cookies of the session's name a request may have; the rest is ignored."""

_MAX_FIELD: Final = 4096
"""Bytes of a Cookie field that is remembered, so that visitors can't fill the memory."""

# The idle limit moves when a tenth of it has passed, so that not every read is also a write.
_TOUCH_AFTER: Final = 0.1


@dataclass(slots=True)
class Sessions:
    """The configuration of an application's sessions, and what they share; times are in seconds."""

    driver: Driver | None
    keyring: Keyring
    codec: Codec
    max_age: int
    idle_timeout: int | None
    max_size: int
    encrypt: bool
    cookie_overhead: int
    """Bytes of the Set-Cookie line beside the cookie's value."""
    cookie_name: str
    clock: Callable[[], float]
    damage: Damage
    max_sessions_per_owner: int | None = None
    browser_session: bool = False
    on_event: OnEvent | None = None
    ended: Driver | None = None
    """The store of ended sessions, if sessions are in cookies and there is one."""
    counters: Counters = field(default_factory=Counters)
    audit: Audit = field(init=False)
    is_sealed: bool = field(init=False)
    """Whether values are sealed before they go to the store. In memory they aren't, because the key is in the same process."""
    overhead: int = field(init=False)
    """Bytes that sealing adds to a value."""
    max_contents: int = field(init=False)
    """Bytes of contents that fit into a cookie."""
    store: Driver = field(init=False)
    """The driver, for stored sessions, which have one."""
    owners: Owners = field(init=False)
    load_at_once: LoadAtOnce | None = field(init=False, default=None)
    """The load of a driver that needs no `await`, which saves 10 % of a request that reads a session in memory; or None."""
    identities: dict[bytes, Identity] = field(init=False, default_factory=dict[bytes, Identity])
    """The sessions that the last Cookie fields led to. Most browsers send the same field with each request.

    This saves 12 % of a request that reads a session in memory.
    """

    def __post_init__(self) -> None:
        self.is_sealed = self.encrypt and self.driver is not None and self.driver.shared
        self.overhead = OVERHEAD if self.is_sealed else 0
        self.max_contents = (MAX_COOKIE - self.cookie_overhead) * 3 // 4 - OVERHEAD
        self.store = cast("Driver", self.driver)
        # Not an inherited one, because a subclass may have a load() of its own.
        if "load_at_once" in vars(type(self.driver)):
            self.load_at_once = cast("Any", self.driver).load_at_once
        self.audit = Audit(self.on_event, self._now)
        if hasattr(self.driver, "on_evict"):
            cast("Any", self.driver).on_evict = self._note_eviction
        make_owners = Owners if self.ended is None else partial(EndedSessions, self.ended)
        self.owners = make_owners(
            self.driver,
            self.keyring,
            self.codec,
            self.damage,
            self.counters,
            self.audit,
            self._now,
            is_sealed=self.is_sealed,
            idle_timeout=self.idle_timeout,
            max_sessions=self.max_sessions_per_owner,
        )

    def _now(self) -> float:
        # Its clock may be set later, by a test.
        return self.clock()

    def note_end(self, scope: MutableMapping[str, Any], id: str, record: Record | None, reason: Reason) -> None:
        """Count and note that a request ended a session, which had this *record* if the request has loaded it."""
        self.counters.ended += 1
        owner = None if record is None else self.owners.hash_in(record.ownership)
        self.audit.note("ended", scope, handle=id, owner=owner, reason=reason)

    def _note_eviction(self, id: str) -> None:
        self.audit.note("ended", handle=id, reason="eviction")

    def reject(self, reason: Rejection, scope: MutableMapping[str, Any]) -> None:
        """Count a request whose cookie or session was rejected, and note a forged one."""
        self.counters.reject(reason)
        if reason == "forged":
            self.audit.note("forged", scope)

    def warn_of_revocation(self, scope: MutableMapping[str, Any], id: str | None, store: Driver) -> None:
        """Log that the request's changes were dropped, because end_all() ended its owner's sessions, or end_everyone() all."""
        logger.warning(
            "session %s: what this request changed was dropped, because end_all() ended the sessions of its owner, or "
            "end_everyone() all, meanwhile; if it was a login, the user has to log in again",
            id or "(a new one)",
            extra={**log_extra(scope), "session": id, "driver": store.name},
        )

    def tokens(self, scope: MutableMapping[str, Any]) -> Iterator[str]:
        """Return the values of the request's cookies with the session's name, in their order."""
        return islice(find_cookies(scope["headers"], self.cookie_name), MAX_COOKIES)

    def remember(self, field: bytes, identity: Identity) -> None:
        """Remember that the Cookie *field* leads to this session."""
        if len(field) <= _MAX_FIELD:
            if len(self.identities) >= CACHE_SIZE:
                self.identities.clear()
            self.identities[field] = identity

    def deadline(self, now: float, expires: float) -> float:
        """Return when a session that is used *now* expires unless it is used again."""
        return expires if self.idle_timeout is None else min(expires, now + self.idle_timeout)

    def idle_deadline(self, now: float) -> float | None:
        """Return the idle limit of a session that is used *now*, or None if sessions have none."""
        return None if self.idle_timeout is None else now + self.idle_timeout

    def is_touch_due(self, deadline: float, expires: float, now: float) -> bool:
        """Return whether the idle limit of a session that is used *now* has to move: a tenth of it has passed."""
        idle = self.idle_timeout
        return idle is not None and deadline < expires and now >= deadline - idle * (1 - _TOUCH_AFTER)

    def terms(self, max_age: int | None, lifetime: float | None, is_transient: bool) -> tuple[int, bool]:
        """Return the lifetime of a session under a new id, and whether its cookie ends with the browser.

        The *max_age* of regenerate() comes first, then the session's own *lifetime*, and then the server's limit.
        """
        if max_age is not None:
            return max_age or self.max_age, max_age == 0
        return (self.max_age, self.browser_session) if lifetime is None else (round(lifetime), is_transient)
