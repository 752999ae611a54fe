"""session(): makes the integration of sessions; the only file that knows gaman's hooks."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, cast

import anyio
import anyio.lowlevel

from gaman import App, ConfigError, Context, Headers, HTTPError, Integration, Response, SameSite
from gaman.errors import checks_arguments
from gaman_session import _options, _sealing
from gaman_session._awaitable import SessionCall, later, run
from gaman_session._clock import StoreClock, has_clock
from gaman_session._cookie_session import CookieSession
from gaman_session._counters import Counters, export
from gaman_session._damage import Damage
from gaman_session._driver import Driver
from gaman_session._errors import SessionStoreError, SessionTooLarge, SessionUseError
from gaman_session._owners import OwnedSession, Owners
from gaman_session._sealing import Keyring
from gaman_session._serializer import Serializer
from gaman_session._session import Session
from gaman_session._sessions import Sessions
from gaman_session._stored import StoredSession
from gaman_session.drivers import DRIVERS

if TYPE_CHECKING:
    from asyncio import Task

logger = logging.getLogger("gaman")

RawHeaders: TypeAlias = list[tuple[bytes, bytes]]

_PRIVATE = ((b"cache-control", b"no-store"), (b"vary", b"Cookie"))
_QUIET_START = 1.0
"""Seconds after which the start reports that it waits for the store."""
_SWEEP_SECONDS = 60
_SWEEP_BATCH = 1000


@dataclass(frozen=True, kw_only=True)
class SessionIntegration(Integration):
    """What session() returns: the integration, its counters, and the calls that find sessions from outside of a request.

    `ctx.session.set_owner(owner)` sets a session's owner. These calls find the sessions of an owner in the store, in every process
    that shares it, once the application has loaded. Sessions that they end are ended at once, for requests in flight too.

    They raise SessionUnsupported if the driver has no owners, like the cookies driver; SessionStoreError if the store fails or may
    have evicted some of the sessions; and SessionUseError for an owner that is empty or isn't text.
    """

    counters: Counters
    _owners: Owners

    def end(self, handle: str) -> Coroutine[Any, Any, bool]:
        """End the session with this handle, its `ctx.session.id`; return whether it existed.

        If the session was renamed within the last minute, this ends it under its new id. If a visitor chose the *handle*, check
        first that it is one of theirs:

        `if any(each.handle == handle for each in await sessions.list(owner)): await sessions.end(handle)`
        """
        return later(self, "sessions.end", run(self._owners.end, handle))

    def end_all(self, owner: str, *, keep: Session | None = None) -> Coroutine[Any, Any, int]:
        """End all sessions of *owner*, except the one to *keep*; return how many it ended.

        `await sessions.end_all(f"user:{user.id}", keep=ctx.session)` after a change of the password logs out all other devices.

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

    async def _end_all(self, owner: str, keep: Session | None) -> int:
        if keep is not None and not isinstance(keep, Session):
            raise SessionUseError(f"end_all() keeps a session, not {keep!r}: write keep=ctx.session")
        return await self._owners.end_all(owner, keep)

    def _report_unawaited(self, line: str) -> None:
        logger.error("%s", line)


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
    default, `memory`, `file`, `redis`, `sql` or `mongodb`) and that driver's options, or a Driver object. *max_age* is a session's
    lifetime in seconds, and *idle_timeout* a shorter limit that starts again with each use. *secure* limits the cookie to HTTPS and
    localhost. *max_size* limits the bytes of the keys and the encoded values of a session in a store (SessionTooLarge).

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
    store_clock = StoreClock(driver) if clock is None and has_clock(driver) else None
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
    )
    hooks = _Hooks(options, sessions, driver_name, store_clock)
    return SessionIntegration(
        name="session",
        priority="very-high",
        on_load=hooks.on_load,
        on_shutdown=hooks.on_shutdown,
        make_session=hooks.make_session,
        close_session=hooks.close_session,
        on_error=hooks.on_error,
        on_purge=None if driver is None else hooks.on_purge,
        on_check=None if driver is None else hooks.on_check,
        counters=sessions.counters,
        _owners=sessions.owners,
    )


class _Hooks:
    def __init__(self, options: _options.Options, sessions: Sessions, driver_name: str, store_clock: StoreClock | None) -> None:
        self._sessions = sessions
        self._store_clock = store_clock
        self._log_extra = {"driver": driver_name}
        self._has_store = sessions.driver is not None
        self.make_session = partial(StoredSession if self._has_store else CookieSession, sessions)
        # The line is checked once. Tokens need no check: they are base64.
        self._cookie_name, _, self._cookie_attributes = options.cookie.line(0).decode("ascii").partition("; Max-Age=0")
        self._warnings = options.warnings
        self._sweeper: Task[None] | None = None
        self._warns_of_http = options.cookie.secure
        self._warns_of_caches = True

    async def on_load(self, app: App) -> None:
        driver = self._sessions.driver
        if app.workers > 1 and driver is not None and not driver.shared:
            raise ConfigError(
                f"the {driver.name} driver keeps sessions in one process, and {app.workers} workers would not share them; "
                f"take {', '.join(['cookies', *(name for name in DRIVERS if name != 'memory')])}, or workers=1"
            )
        place = next((each.place for each in app.integrations if each.on_load == self.on_load), "")
        for warning in self._warnings:
            logger.warning("%s%s", warning, place, extra=self._log_extra)
        export(self._sessions.counters, self._log_extra["driver"])
        if driver is not None:
            from asyncio import create_task, get_running_loop  # noqa: PLC0415 - takes 20 ms to load, which a server has done

            report = get_running_loop().call_later(_QUIET_START, self._report_waiting, driver.name)
            try:
                await driver.open()
                try:
                    await self._measure()
                except BaseException:
                    await driver.close()
                    raise
            finally:
                report.cancel()
            self._sweeper = create_task(self._sweep(app))

    def _report_waiting(self, driver: str) -> None:
        logger.warning(
            "waiting for the session store (%s); without an answer, the start fails within half a minute, "
            "or later if the driver has a longer timeout",
            driver,
            extra=self._log_extra,
        )

    async def on_shutdown(self, app: App) -> None:
        if self._sweeper is not None:
            from asyncio import wait  # noqa: PLC0415 - takes 20 ms to load, which a server has done

            self._sweeper.cancel()
            await wait([self._sweeper])
        if self._sessions.driver is not None:
            await self._sessions.driver.close()

    def close_session(self, ctx: Context, session: Session, response: Response) -> RawHeaders | Awaitable[RawHeaders]:
        """Write the session, and return the header fields of the response."""
        headers = response.raw_headers
        if not session._close():
            return headers
        # Most responses have only a content type. Not searching their fields saves 10 % of a request that uses its session.
        is_plain = len(headers) == 1 and headers[0][0] == b"content-type"
        headers = [*headers, *_PRIVATE] if is_plain else _keep_private(headers)
        if response.status >= 500:
            session._discard()
        if self._has_store:
            return self._flush(ctx, session, headers, is_plain) if session._needs_store() else headers
        return self._add_cookie(ctx, session, headers, is_plain)

    async def _flush(self, ctx: Context, session: Session, headers: RawHeaders, is_plain: bool) -> RawHeaders:
        try:
            await session._flush()
        except Exception:
            # The flush may have renamed the session before it failed. The error's response then carries the only cookie that works.
            self._add_cookie(ctx, session, [], is_plain=True)
            raise
        return self._add_cookie(ctx, session, headers, is_plain)

    def on_error(self, ctx: Context, error: Exception) -> None:
        # The handler raised an HTTPError on purpose, so its changes are kept, as with a Response.
        ctx.session._fail(keeps_changes=isinstance(error, HTTPError) and not isinstance(error, SessionTooLarge))

    def _add_cookie(self, ctx: Context, session: Session, headers: RawHeaders, is_plain: bool) -> RawHeaders:
        """Send the session's cookie, if the browser needs one, and return *headers* without those that let caches keep it."""
        if (cookie := session._cookie()) is None:
            return headers
        token, max_age = cookie
        lifetime = "" if max_age is None else f"; Max-Age={max_age}"
        # Cookies of the request are sent even if another hook replaces the response.
        ctx.send_cookie(f"{self._cookie_name}{token}{lifetime}{self._cookie_attributes}".encode("ascii"))
        # A browser that sends the cookie keeps it.
        if token and self._warns_of_http and not session._has_cookie() and not _keeps_secure(ctx):
            self._warns_of_http = False
            logger.warning(
                "the session's cookie is Secure, and %s was requested over plain HTTP: the browser will not keep it. Serve HTTPS "
                "(and have the proxy say so in X-Forwarded-Proto), or pass secure=False while developing",
                ctx.url.partition("?")[0],
                extra={**ctx.log_extra, **self._log_extra, "session": session.id},
            )
        return headers if is_plain else self._keep_from_caches(ctx, session, headers)

    def _keep_from_caches(self, ctx: Context, session: Session, headers: RawHeaders) -> RawHeaders:
        """Return *headers* that keep a response with the session's cookie out of every cache."""
        allowing = [(name, value) for name, value in headers if _is_cache_control(name) and not _is_no_store(value)]
        if allowing and self._warns_of_caches:
            self._warns_of_caches = False
            logger.warning(
                "the response to %s %r had %r beside the session's cookie; it was sent as no-store, because a cache would give the "
                "cookie to other visitors. Leave that field out where a session begins, ends or gets a new id",
                ctx.method,
                ctx.path,
                ", ".join([f"{name}: {value}" for name, value in Headers(allowing).items()]),
                extra={**ctx.log_extra, **self._log_extra, "session": session.id},
            )
        return [_PRIVATE[0], *(field for field in headers if not _is_cache_control(field[0]))]

    async def on_purge(self, app: App) -> int:
        """Remove expired sessions and tombstones, in batches; return how many. Some stores do that by themselves."""
        removed, driver = 0, cast("Driver", self._sessions.driver)
        while batch := await driver.purge(now=self._sessions.clock(), limit=_SWEEP_BATCH):
            removed += batch
            # Let requests run between two batches.
            await anyio.lowlevel.checkpoint()
        return removed

    async def on_check(self, app: App) -> None:
        """Load a session that doesn't exist, to see that the store works."""
        try:
            await cast("Driver", self._sessions.driver).load(_sealing.id_of(_sealing.new_raw_id()), now=self._sessions.clock())
        except SessionStoreError:
            self._sessions.counters.store_errors += 1
            raise

    async def _measure(self) -> None:
        if self._store_clock is not None:
            await self._store_clock.measure()

    async def _sweep(self, app: App) -> None:
        while True:
            await anyio.sleep(_SWEEP_SECONDS)
            await self._attempt("asking the store for its time", self._measure())
            await self._attempt("sweeping expired sessions", self.on_purge(app))

    async def _attempt(self, action: str, work: Awaitable[object]) -> None:
        """Await *work*, and log its failure as a failure of *action*."""
        try:
            await work
        except SessionStoreError as error:
            self._sessions.counters.store_errors += 1
            message = "%s failed; it is tried again in %d s: %s: %r"
            logger.error(message, action, _SWEEP_SECONDS, error, error.__cause__, extra=self._log_extra)
        except Exception:
            logger.exception("%s failed; it is tried again in %d s", action, _SWEEP_SECONDS, extra=self._log_extra)


def _keep_private(headers: RawHeaders) -> RawHeaders:
    """Return *headers* that keep the response out of shared caches (RFC 9111, section 3, and RFC 9110, section 12.5.5)."""
    no_store, vary_by_cookie = _PRIVATE
    kept = [*headers]
    if b"cache-control" not in dict(headers):
        kept.append(no_store)
    vary = [name.strip().lower() for line in Headers(headers).getall("vary") for name in line.split(",")]
    if "cookie" not in vary and "*" not in vary:
        kept.append(vary_by_cookie)
    return kept


def _is_cache_control(name: bytes) -> bool:
    """Return whether a field controls caches: Cache-Control, or a targeted field (RFC 9213)."""
    return name.endswith(b"cache-control") or name == b"surrogate-control"


def _is_no_store(value: bytes) -> bool:
    return b"no-store" in [directive.strip().lower() for directive in value.split(b",")]


def _keeps_secure(ctx: Context) -> bool:
    """Return whether the browser keeps a Secure cookie: over HTTPS, and from localhost."""
    return ctx.scope["scheme"] == "https" or ctx.scheme == "https" or _is_local(ctx.host)


@lru_cache(maxsize=64)
def _is_local(authority: str) -> bool:
    host = re.sub(r"\.?(:\d*)?$", "", authority).lower()
    return host in ("", "localhost", "[::1]") or host.endswith(".localhost") or re.fullmatch(r"127(\.\d+){3}", host) is not None
