"""session(): makes the integration of sessions, for gaman's hooks and for SessionMiddleware."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Literal

from gaman import App, ConfigError, Context, Integration, SameSite
from gaman.errors import checks_arguments
from gaman_session import _options
from gaman_session._awaitable import SessionCall, later, run
from gaman_session._clock import StoreClock, has_clock
from gaman_session._closing import Closing, fail
from gaman_session._cookie_session import CookieSession
from gaman_session._counters import Counters
from gaman_session._damage import Damage
from gaman_session._driver import Driver
from gaman_session._endable_cookie_session import EndableCookieSession
from gaman_session._errors import SessionUseError
from gaman_session._owners import OwnedSession, Owners
from gaman_session._sealing import Keyring
from gaman_session._serializer import Serializer
from gaman_session._session import Session
from gaman_session._sessions import Sessions
from gaman_session._stored import StoredSession

if TYPE_CHECKING:
    from gaman_session._upkeep import Upkeep

logger = logging.getLogger("gaman")


@dataclass(frozen=True, kw_only=True)
class SessionIntegration(Integration):
    """What session() returns: the integration, its counters, and the calls that find sessions from outside of a request.

    `ctx.session.set_owner(owner)` sets a session's owner. These calls find the sessions of an owner in the store, in every process
    that shares it, once the application has loaded. Sessions that they end are ended at once, for requests in flight too.

    They raise SessionUnsupported if the driver has no owners, like the cookies driver (with `ended`, it has end() and end_all());
    SessionStoreError if the store fails or may have evicted some of the sessions; and SessionUseError for an owner that is empty or
    isn't text.
    """

    counters: Counters
    _cookie_name: str
    _owners: Owners
    _closing: Closing
    _upkeep: Callable[[], Upkeep]

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Open the store, and close it at the end, where neither an App nor SessionMiddleware sees the start of the server.

            async with sessions.running():
                await sessions.end_all("user:1")

        SessionStoreError is raised if the store can't be opened, and ConfigError if several workers would not share it.
        """
        await self._upkeep().open()
        try:
            yield
        finally:
            await self._upkeep().close()

    def end(self, handle: str) -> Coroutine[Any, Any, bool]:
        """End the session with this handle, its `ctx.session.id`; return whether it existed.

        If the session was renamed within the last minute, this ends it under its new id. With the cookies driver and `ended`, this
        returns False only if the session has ended before. If a visitor chose the *handle*, check first that it is one of theirs:

        `if any(each.handle == handle for each in await sessions.list(owner)): await sessions.end(handle)`
        """
        return later(self, "sessions.end", run(self._owners.end, handle))

    def end_all(self, owner: str, *, keep: Session | None = None) -> Coroutine[Any, Any, int]:
        """End all sessions of *owner*, except the one to *keep*; return how many it ended.

        `await sessions.end_all(f"user:{user.id}", keep=ctx.session)` after a change of the password logs out all other devices.

        It returns 0 with the cookies driver and `ended`, because the number isn't known.

        It takes effect at one instant between call and return, in every process. Sessions that have this owner at that instant are
        ended. A login in flight loses its changes if it called set_owner() before, and succeeds if it calls set_owner() later.
        """
        return later(self, "sessions.end_all", run(self._end_all, owner, keep))

    def count(self, owner: str | None = None) -> SessionCall[int]:
        """Return how many live sessions *owner* has, or, without an owner, how many are in the store.

        Counting all sessions takes longer the more there are, so do it for a graph and not in each request. The file driver reads
        each file's name, SQLite and MongoDB each entry of an index, and a Redis Cluster each key. A Redis server without a Cluster
        reads the number from an index.
        """
        return later(self, "sessions.count", run(self._owners.count, owner))

    def list(self, owner: str) -> SessionCall[list[OwnedSession]]:
        """Return the live sessions of *owner*, in the order of their set_owner() calls.

        `[(each.note, each.handle == ctx.session.id) for each in await sessions.list(f"user:{user.id}")]`
        """
        return later(self, "sessions.list", run(self._owners.listed, owner))

    async def purge(self) -> int:
        """Remove expired sessions from the store, and return how many; the running application does so each minute by itself."""
        return await self._upkeep().purge()

    async def check(self) -> None:
        """Return if the store works; SessionStoreError says why it doesn't."""
        await self._upkeep().check()

    async def _end_all(self, owner: str, keep: Session | None) -> int:
        if keep is not None and not isinstance(keep, Session):
            raise SessionUseError(
                f"end_all() keeps a session, not {keep!r}: write keep=ctx.session, or keep=await get_session(request)"
            )
        return await self._owners.end_all(owner, keep)

    def _report_unawaited(self, line: str) -> None:
        logger.error("%s", line)

    def _spelled(self, text: str) -> str:
        return text


@checks_arguments
def session(
    secret: str | Sequence[str] | None = None,
    driver: Mapping[str, Any] | Driver | None = None,
    max_age: int = 86_400,
    secure: bool = True,
    *,
    idle_timeout: int | None = None,
    max_size: int = 1 << 20,
    cookie_name: str | None = None,
    same_site: SameSite = "lax",
    domain: str | None = None,
    path: str = "/",
    partitioned: bool = False,
    encrypt: bool = True,
    serializer: Literal["msgpack", "json"] | Serializer | None = None,
    max_sessions_per_owner: int | None = None,
) -> SessionIntegration:
    """Return the integration that gives every request its `ctx.session`; ConfigError names an invalid option and its fix.

    `gaman.serve(routes, integrations=[session(driver={"type": "redis"}, idle_timeout=1800)])`

    *secret* seals the sessions: a string, or a list with the newest first, of which the older ones still open what they sealed. By
    default it is GAMAN_KEY in the environment. *driver* says where sessions are stored: a dict with a `type` (`cookies`, the
    default, `memory`, `file`, `redis`, `sql` or `mongodb`) and that driver's options, or a Driver object. With `ended`, another
    driver remembers which sessions in cookies have ended, so that a logout is final:

    `session(driver={"type": "cookies", "ended": {"type": "sql"}})`

    *max_age* is a session's lifetime in seconds, and *idle_timeout* a shorter limit that starts again with each use. *secure*
    limits the cookie to HTTPS and localhost. *max_size* limits the bytes of the keys and the encoded values of a session in a store
    (SessionTooLarge).

    *cookie_name* is by default `__Host-Http-gaman`; with a domain or another path `__Secure-gaman`, and without *secure* `gaman`.
    *same_site*, *domain*, *path* and *partitioned* are the cookie's attributes (RFC 6265bis). *encrypt* seals the values in a
    store. *serializer* is `"msgpack"`, `"json"` or an object with `encode(value)` and `decode(data, type)`.
    *max_sessions_per_owner* limits the sessions of an owner: one more ends the oldest.
    """
    options = _options.check(
        secret,
        driver,
        max_age,
        secure,
        idle_timeout=idle_timeout,
        max_size=max_size,
        cookie_name=cookie_name,
        same_site=same_site,
        domain=domain,
        path=path,
        partitioned=partitioned,
        encrypt=encrypt,
        serializer=serializer,
        max_sessions_per_owner=max_sessions_per_owner,
    )
    return integrate(options)


def integrate(options: _options.Options, clock: Callable[[], float] | None = None) -> SessionIntegration:
    """Return the integration for *options*. The *clock* returns seconds since the epoch.

    By default it is the store's clock, or this machine's if the store has none.
    """
    cookie, driver = options.cookie, options.driver
    driver_name = "cookies" if driver is None else driver.name
    store = options.ended if driver is None else driver
    store_clock = StoreClock(store) if clock is None and has_clock(store) else None
    sessions = Sessions(
        driver=driver,
        # After a change of the cookie's attributes, browsers keep the old cookie beside the new one. A store can end the old
        # session; without a store, the slot in the keyring's name makes the old cookie invalid.
        keyring=Keyring(options.secrets, cookie.slot if driver is None else cookie.name),
        codec=options.codec,
        max_age=options.max_age,
        idle_timeout=options.idle_timeout,
        max_size=options.max_size,
        encrypt=options.encrypt,
        cookie_overhead=len(cookie.line(options.max_age)),
        cookie_name=cookie.name,
        clock=clock or (time.time if store_clock is None else store_clock.now),
        damage=Damage(driver_name),
        max_sessions_per_owner=options.max_sessions_per_owner,
        ended=options.ended,
    )
    closing = Closing(options, sessions, driver_name)
    cookie_session = CookieSession if options.ended is None else EndableCookieSession

    @cache
    def upkeep() -> Upkeep:
        from gaman_session._upkeep import Upkeep  # noqa: PLC0415 - loads asyncio, which takes 20 ms, and which a server has loaded

        return Upkeep(sessions, driver_name, store_clock, [f"{warning}{integration._place}" for warning in options.warnings])

    def load(app: App) -> Coroutine[Any, Any, None]:
        _check_mounted(app, integration)
        return upkeep().open(app.workers)

    integration = SessionIntegration(
        name="session",
        priority="very-high",
        on_load=load,
        on_shutdown=lambda app: upkeep().close(),
        make_session=partial(cookie_session if driver is None else StoredSession, sessions),
        close_session=closing.close,
        on_error=_fail,
        on_purge=(lambda app: upkeep().purge()) if store is not None else None,
        on_check=(lambda app: upkeep().check()) if store is not None else None,
        counters=sessions.counters,
        _cookie_name=cookie.name,
        _owners=sessions.owners,
        _upkeep=upkeep,
        _closing=closing,
    )
    return integration


def _check_mounted(app: App, own: SessionIntegration) -> None:
    """Raise ConfigError if an App that is mounted in *app*, at any depth, has another session with the same cookie."""
    for mounted in app.routes.mounted:
        if isinstance(mounted, App):
            for other in mounted.integrations:
                if (
                    isinstance(other, SessionIntegration)
                    and other.counters is not own.counters
                    and other._cookie_name == own._cookie_name
                ):
                    raise ConfigError(
                        f"a mounted App has another session() with the cookie {own._cookie_name!r}{other._place}, and one would "
                        "log out the visitors of the other; pass the same session() object to both Apps, or give one a cookie_name"
                    )
            _check_mounted(mounted, own)


def _fail(ctx: Context, error: Exception) -> None:
    fail(ctx.session, error)
