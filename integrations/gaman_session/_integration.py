"""session(): makes the integration of sessions, for gaman's hooks and for SessionMiddleware."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Iterable, Mapping, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final, Literal, ParamSpec, TypeAlias, TypeVar, cast

from gaman import App, ConfigError, Context, Integration, Response, SameSite
from gaman.errors import checks_arguments
from gaman_session import _options
from gaman_session._audit import OnEvent
from gaman_session._awaitable import MakesCalls, Place, SessionCall, deferred, run
from gaman_session._clock import StoreClock, has_clock
from gaman_session._closing import Closing, RawHeaders, fail
from gaman_session._cookie_session import CookieSession
from gaman_session._counters import Counters
from gaman_session._damage import Damage
from gaman_session._driver import Driver
from gaman_session._endable_cookie_session import EndableCookieSession
from gaman_session._errors import SessionUseError
from gaman_session._guard import Guard
from gaman_session._misuse import OF_SESSION, explain_missing, of_sessions
from gaman_session._owned import OwnedSession
from gaman_session._owners import Owners, check_owner
from gaman_session._sealing import Keyring
from gaman_session._serializer import Serializer
from gaman_session._session import Session
from gaman_session._sessions import Sessions
from gaman_session._stored import StoredSession

if TYPE_CHECKING:
    from gaman_session._connection import Connection, RequestEnded
    from gaman_session._upkeep import Upkeep

logger = logging.getLogger("gaman")

P = ParamSpec("P")
T = TypeVar("T")

IN_SCOPE: Final = "gaman.session"
"""The key of an ASGI scope under which SessionMiddleware puts the request's connection."""
MOUNTED: Final = "gaman.outer"
"""The key of an ASGI scope under which a mounted application has the Context of the App around it."""

Outer: TypeAlias = "Context | Connection"
"""What has the session of a request for the applications inside of an App or a SessionMiddleware."""


class _Calls(MakesCalls):
    """The calls of a SessionIntegration, which is frozen."""

    def __init__(self) -> None:
        super().__init__("sessions")

    def _report(self, place: Place) -> None:
        logger.error("%s", self._line(place))


@dataclass(frozen=True, kw_only=True)
class SessionIntegration(Integration):
    """What session() returns: the integration, its counters, and the calls that find sessions from outside of a request.

    `ctx.session.login(owner)` sets a session's owner. These calls find the sessions of an owner in the store, in every process that
    shares it. Sessions that they end are ended at once, for requests in flight too. Unless an application or running() has
    opened the store, the first call does, and the end of the event loop closes it.

    They raise SessionUnsupported if the driver has no owners, like the cookies driver without `ended`; SessionStoreError if the
    store fails or may have evicted some of the sessions; and SessionUseError for an owner that is empty or isn't text.
    """

    counters: Counters
    shared: bool
    """Whether other processes see the same sessions: true for every driver but memory."""
    _cookie_name: str
    _owners: Owners
    _closing: Closing
    _guard: Guard | None
    _upkeep: Callable[[], Upkeep]
    _make: Callable[[MutableMapping[str, Any], bool], Session]
    """Makes the session of a request, unless an application around this one has made it."""
    _calls: _Calls = field(default_factory=_Calls)

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
        if isinstance(handle, Session):
            raise SessionUseError("end() takes a handle: write `await sessions.end(ctx.session.id)`, or `each.handle` of a list")
        return deferred(self._calls, "end", run(self._opened, self._owners.end, handle))

    def hash_of(self, owner: str) -> str:
        """Return the hash of *owner* that a SessionEvent has, to find the owner's events. A new secret changes it."""
        return self._owners.hash_of(check_owner(owner))

    def end_all(self, owner: str, *, keep: Session | None = None) -> Coroutine[Any, Any, int]:
        """End all sessions of *owner*, except the one to *keep*; return how many it ended.

        `await sessions.end_all(f"user:{user.id}", keep=ctx.session)` after a change of the password logs out all other devices.

        It takes effect at one instant between call and return, in every process. Sessions that have this owner at that instant are
        ended. A login in flight loses its changes if it called login() before, and succeeds if it calls login() later.
        """
        return deferred(self._calls, "end_all", run(self._end_all, owner, keep))

    def end_everyone(self) -> Coroutine[Any, Any, None]:
        """End all sessions of all users, for example after an intrusion (OWASP ASVS 5, 7.4.5).

        `await sessions.end_everyone()` logs out every visitor, in every process, and the caller.

        It takes effect at one instant between call and return, however many sessions there are. Requests in flight lose their
        changes, and so does one that called login() before; sessions that begin later live. Sessions of another session()
        with its own prefix, folder, file or collection stay. To know how many it ends, call count() before.

        SessionUnsupported is raised for the cookies driver without `ended`, where a new secret does the same, and for a driver
        without this call.
        """
        return deferred(self._calls, "end_everyone", run(self._opened, self._owners.end_everyone))

    def count(self, owner: str | None = None) -> SessionCall[int]:
        """Return how many live sessions *owner* has, or, without an owner, how many are in the store; cookies aren't counted.

        Counting all sessions takes longer the more there are, so do it for a graph and not in each request. The file driver reads
        each file's name, SQLite and MongoDB each entry of an index, and a Redis Cluster each key. A Redis server without a Cluster
        reads the number from an index.
        """
        return deferred(self._calls, "count", run(self._opened, self._owners.count, owner))

    def list(self, owner: str) -> SessionCall[list[OwnedSession]]:
        """Return the live sessions of *owner*, in the order of their logins.

        `[(each.note, each.handle == ctx.session.id) for each in await sessions.list(f"user:{user.id}")]`
        """
        return deferred(self._calls, "list", run(self._opened, self._owners.listed, owner))

    async def purge(self) -> int:
        """Remove expired sessions from the store, and return how many; the running application does so each minute by itself."""
        return await self._opened(self._upkeep().purge)

    async def check(self) -> None:
        """Return if the store works; SessionStoreError says why it doesn't."""
        await self._opened(self._upkeep().check)

    async def _end_all(self, owner: str, keep: Session | None) -> int:
        if keep is not None and not isinstance(keep, Session):
            raise SessionUseError(
                f"end_all() keeps a session, not {keep!r}: write keep=ctx.session, or keep=await get_session(request)"
            )
        return await self._opened(self._owners.end_all, owner, keep)

    async def _opened(self, call: Callable[P, Coroutine[Any, Any, T]], *arguments: P.args, **named: P.kwargs) -> T:
        """Return the result of *call*, for which the store is opened if nothing has opened it."""
        await self._upkeep().ensure_open()
        return await call(*arguments, **named)

    def _find_outer(self, scope: MutableMapping[str, Any]) -> Outer | None:
        """Return the App or SessionMiddleware around this application that has a session of these for the request, or None.

        Two sessions of one request would not see each other's changes, and send two cookies of one name. ConfigError is raised if
        the middleware has other sessions with the same cookie.
        """
        connection: Connection | RequestEnded | None = scope.get(IN_SCOPE)
        while connection is not None:
            other = connection.sessions
            if other is not None and other.counters is self.counters:
                return cast("Connection", connection)
            if other is not None and other._cookie_name == self._cookie_name:
                raise ConfigError(
                    f"a SessionMiddleware around this application has another session() with the cookie {self._cookie_name!r}"
                    f"{other._place}, and {_CONFLICT}; pass the same session() object to both, or give one a cookie_name"
                )
            connection = connection.outer
        ctx: Context | None = scope.get(MOUNTED)
        while ctx is not None:
            if any(isinstance(each, SessionIntegration) and each.counters is self.counters for each in ctx.app.integrations):
                return ctx
            ctx = ctx.scope.get(MOUNTED)
        return None


explain_missing(SessionIntegration, of_sessions(Session))
explain_missing(Session, OF_SESSION)

_CONFLICT: Final = "one would log out the visitors of the other"


@checks_arguments(instead=_options.instead_of)
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
    browser_session: bool = False,
    on_event: OnEvent | None = None,
    csrf: bool = True,
    trusted_origins: str | Iterable[str] = (),
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
    *max_sessions_per_owner* limits the sessions of an owner: one more ends the oldest. *browser_session* makes every cookie end
    with the browser, except after a login with a *max_age* of its own. *on_event* is called with each SessionEvent, such as a login
    or a logout, without delaying a request.

    With *csrf*, requests that pages of other origins send are answered 403, unless their method is GET, HEAD or OPTIONS.
    *trusted_origins* may send them, such as `["https://app.example.com"]`, and so may every page to routes with `allow_cross_site`.
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
        browser_session=browser_session,
        on_event=on_event,
        csrf=csrf,
        trusted_origins=trusted_origins,
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
        browser_session=options.browser_session,
        on_event=options.on_event,
    )
    closing = Closing(options, sessions, driver_name)
    guard = None if options.trusted_origins is None else Guard(options.trusted_origins, sessions.counters, sessions.audit)

    @cache
    def upkeep() -> Upkeep:
        from gaman_session._upkeep import Upkeep  # noqa: PLC0415 - loads asyncio, which takes 20 ms, and which a server has loaded

        return Upkeep(sessions, driver_name, store_clock, [f"{warning}{integration._place}" for warning in options.warnings])

    def load(app: App) -> Coroutine[Any, Any, None]:
        _check_mounted(app, integration)
        return upkeep().open(app.workers)

    make = StoredSession if driver is not None else CookieSession if options.ended is None else EndableCookieSession

    def make_session(scope: MutableMapping[str, Any], is_closed: bool) -> Session:
        outer = integration._find_outer(scope) if MOUNTED in scope or IN_SCOPE in scope else None
        return make(sessions, scope, is_closed) if outer is None else outer.session

    def close_session(ctx: Context, session: Session, response: Response) -> RawHeaders | Awaitable[RawHeaders]:
        if (MOUNTED in ctx.scope or IN_SCOPE in ctx.scope) and integration._find_outer(ctx.scope) is not None:
            # The application around this one closes it.
            return response.raw_headers
        return closing.close(ctx, session, response.status, response.raw_headers)

    integration = SessionIntegration(
        name="session",
        priority="very-high",
        on_load=load,
        on_route=None if guard is None else guard.choose,
        on_shutdown=lambda app: upkeep().close(),
        make_session=make_session,
        close_session=close_session,
        on_error=_fail,
        on_purge=(lambda app: upkeep().purge()) if store is not None else None,
        on_check=(lambda app: upkeep().check()) if store is not None else None,
        counters=sessions.counters,
        shared=store is None or store.shared,
        _cookie_name=cookie.name,
        _owners=sessions.owners,
        _upkeep=upkeep,
        _closing=closing,
        _guard=guard,
        _make=partial(make, sessions),
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
                        f"a mounted App has another session() with the cookie {own._cookie_name!r}{other._place}, and {_CONFLICT}; "
                        "pass the same session() object to both Apps, or give one a cookie_name"
                    )
            _check_mounted(mounted, own)


def _fail(ctx: Context, error: Exception) -> None:
    fail(ctx.session, error)
