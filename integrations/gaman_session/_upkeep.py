"""Upkeep: opens the store before the first request, sweeps it and measures its clock, and closes it after the last request."""

from __future__ import annotations

import logging
import threading
from asyncio import AbstractEventLoop, Lock, Task, create_task, get_running_loop, shield, wait
from collections.abc import AsyncGenerator, Awaitable, Sequence

import anyio
import anyio.lowlevel

from gaman import ConfigError, count_workers
from gaman_session import _sealing
from gaman_session._clock import StoreClock
from gaman_session._counters import export
from gaman_session._errors import SessionStoreError
from gaman_session._sessions import Sessions
from gaman_session.drivers import DRIVERS

logger = logging.getLogger("gaman")

_QUIET_START = 1.0
"""Seconds after which the start reports that it waits for the store."""
_MAX_DELIVERY = 5
"""Seconds that the shutdown waits for the audit's events to be delivered."""
_SWEEP_SECONDS = 60
_SWEEP_BATCH = 1000


class _InLoop:
    """The store in one event loop."""

    def __init__(self) -> None:
        self.lock = Lock()
        self.users = 0
        """How many have opened the store, or are about to."""
        self.is_open = False
        self.sweeper: Task[None] | None = None
        self.delivery: Task[None] | None = None
        """Delivers the events of the audit, unless another event loop does."""
        self.opening: Task[None] | None = None
        self.closer: AsyncGenerator[None] | None = None
        """Closes the store with the event loop; held here, because the loop holds it weakly."""


class Upkeep:
    """The store of an application's sessions, from its start to its end; without a store, the counters and warnings only."""

    def __init__(self, sessions: Sessions, driver_name: str, store_clock: StoreClock | None, warnings: Sequence[str]) -> None:
        self._sessions = sessions
        self._store = sessions.ended if sessions.driver is None else sessions.driver
        self._store_clock = store_clock
        self._log_extra = {"driver": driver_name}
        self._warnings = warnings
        self._is_in_process = self._store is None or not self._store.shared
        """Whether sessions are in this process only: such a store has no connections, so every event loop can use it."""
        self._loops: dict[AbstractEventLoop, _InLoop] = {}
        self._is_driver_open = False
        # Threads may have an event loop each.
        self._threads = threading.Lock()

    @property
    def is_open(self) -> bool:
        """Whether the store is open in this event loop."""
        here = self._loops.get(get_running_loop())
        return here is not None and here.is_open

    async def open(self, workers: int | None = None) -> None:
        """Open the store for one more user, unless it is open.

        ConfigError is raised if that many *workers* would not share it, or if another event loop uses it.
        """
        here = self._enter()
        try:
            async with here.lock:
                if not here.is_open:
                    await self._open(count_workers() if workers is None else workers)
                    if self._store is not None:
                        here.sweeper = create_task(self._sweep())
                    here.is_open = True
                self._deliver(here)
        except BaseException:
            here.users -= 1
            raise

    async def close(self, *, ends_loop: bool = False) -> None:
        """Close the store, unless it has another user. One in this process keeps its sessions if only its event loop ends."""
        here = self._loops.get(get_running_loop())
        if here is None:
            # The event loop was stopped, and another one has opened the store since.
            return
        async with here.lock:
            here.users -= 1
            if here.users:
                return
            here.is_open = False
            if here.sweeper is not None:
                here.sweeper.cancel()
                await wait([here.sweeper])
            # asyncio.run() cancels all tasks first, and this one had events left.
            self._deliver(here)
            if here.delivery is not None:
                # So that the task has begun.
                await anyio.lowlevel.checkpoint()
                self._sessions.audit.stop()
                await wait([here.delivery], timeout=_MAX_DELIVERY)
                here.delivery.cancel()
                await wait([here.delivery])
                self._sessions.audit.abandon()
            driver = self._store
            if driver is not None and not self._is_used_elsewhere() and not (ends_loop and self._is_in_process):
                self._is_driver_open = False
                await driver.close()

    async def ensure_open(self) -> None:
        """Open the store, unless it is open, until the event loop ends. Concurrent calls share one attempt and its failure."""
        if self.is_open:
            return
        here = self._enter(0)
        opening = here.opening
        if opening is None or opening.done():
            opening = here.opening = create_task(self._open_for_loop(here))
        # A request that is cancelled leaves the attempt to the others.
        await shield(opening)

    def _deliver(self, here: _InLoop) -> None:
        """Deliver the events of the audit in this event loop, unless that is done; do it again if the task is cancelled."""
        audit = self._sessions.audit
        if audit.is_delivered and (here.delivery is None or here.delivery.done()):
            here.delivery = create_task(audit.deliver())
            here.delivery.add_done_callback(lambda _: self._deliver(here) if here.is_open else None)

    async def _open_for_loop(self, here: _InLoop) -> None:
        async with here.lock:
            # A start of the application may be opening it.
            is_open = here.is_open
        if not is_open:
            await self.open()
            here.closer = self._close_with_loop()
            await anext(here.closer)

    async def _close_with_loop(self) -> AsyncGenerator[None]:
        # asyncio.run() and the servers' runners close the asynchronous generators of their loop before they close it.
        try:
            yield
        finally:
            await self.close(ends_loop=True)

    def _enter(self, users: int = 1) -> _InLoop:
        """Return the store in this event loop, with that many more *users*; ConfigError if another event loop uses it."""
        with self._threads:
            if not self._is_in_process and self._is_used_elsewhere():
                raise ConfigError(
                    f"the session store ({self._log_extra['driver']}) is open in another event loop, and its connections work only "
                    "there; call session() for each event loop, open one TestClient at a time, or take the memory driver in tests"
                )
            here = self._loops.setdefault(get_running_loop(), _InLoop())
            here.users += users
            return here

    def _is_used_elsewhere(self) -> bool:
        """Return whether another event loop uses the store."""
        loop = get_running_loop()
        # One that was stopped without closing the store isn't counted any more.
        self._loops = {each: there for each, there in self._loops.items() if each is loop or each.is_running()}
        return any(there.users for each, there in self._loops.items() if each is not loop)

    async def _open(self, workers: int) -> None:
        driver = self._store
        if workers != 1 and driver is not None and not driver.shared:
            holds_sessions = self._sessions.driver is not None
            shared = (*(["cookies"] if holds_sessions else []), *(name for name in DRIVERS if name != "memory"))
            fix = f"take {', '.join(shared)}, or workers=1"
            rule = f"the {driver.name} driver keeps {'' if holds_sessions else 'ended '}sessions in one process, and"
            if workers:
                raise ConfigError(f"{rule} {workers} workers would not share them; {fix}")
            logger.warning(
                "%s this server's workers, if it has several, would not share them; %s", rule, fix, extra=self._log_extra
            )
        for warning in self._warnings:
            logger.warning("%s", warning, extra=self._log_extra)
        export(self._sessions.counters, self._log_extra["driver"])
        if driver is not None and not (self._is_in_process and self._is_driver_open):
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
            self._is_driver_open = True

    def _report_waiting(self, driver: str) -> None:
        logger.warning(
            "waiting for the session store (%s); without an answer, the start fails within half a minute, "
            "or later if the driver has a longer timeout",
            driver,
            extra=self._log_extra,
        )

    async def purge(self) -> int:
        """Remove expired sessions and tombstones, in batches; return how many. Some stores do that by themselves."""
        removed, driver = 0, self._store
        while driver is not None and (batch := await driver.purge(now=self._sessions.clock(), limit=_SWEEP_BATCH)):
            removed += batch
            # Let requests run between two batches.
            await anyio.lowlevel.checkpoint()
        return removed

    async def check(self) -> None:
        """Load a session that doesn't exist, to see that the store works."""
        driver = self._store
        if driver is None:
            return
        try:
            await driver.load(_sealing.id_of(_sealing.new_raw_id()), now=self._sessions.clock())
        except SessionStoreError:
            self._sessions.counters.store_errors += 1
            raise

    async def _measure(self) -> None:
        if self._store_clock is not None:
            await self._store_clock.measure()

    async def _sweep(self) -> None:
        while True:
            await anyio.sleep(_SWEEP_SECONDS)
            await self._attempt("asking the store for its time", self._measure())
            await self._attempt("sweeping expired sessions", self.purge())

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
