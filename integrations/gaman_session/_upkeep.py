"""Upkeep: opens the store before the first request, sweeps it and measures its clock, and closes it after the last request."""

from __future__ import annotations

import logging
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
_SWEEP_SECONDS = 60
_SWEEP_BATCH = 1000


class Upkeep:
    """The store of an application's sessions, from its start to its end; without a store, the counters and warnings only."""

    def __init__(self, sessions: Sessions, driver_name: str, store_clock: StoreClock | None, warnings: Sequence[str]) -> None:
        self._sessions = sessions
        self._store = sessions.ended if sessions.driver is None else sessions.driver
        self._store_clock = store_clock
        self._log_extra = {"driver": driver_name}
        self._warnings = warnings
        self._sweeper: Task[None] | None = None
        self._opening: Task[None] | None = None
        self._users = 0
        self._loop: AbstractEventLoop | None = None
        """The event loop of the users."""
        self._lock: Lock

    @property
    def is_open(self) -> bool:
        """Whether the store is open in this event loop."""
        return self._users > 0 and self._loop is get_running_loop()

    async def open(self, workers: int | None = None) -> None:
        """Open the store for one more user, unless it is open; ConfigError if that many *workers* would not share it."""
        async with self._exclusively():
            if not self._users:
                await self._open(count_workers() if workers is None else workers)
            self._users += 1

    async def close(self) -> None:
        """Close the store, unless it has another user."""
        async with self._exclusively():
            # A user of an event loop that has ended isn't counted any more.
            if self._users:
                self._users -= 1
                if not self._users:
                    await self._close()

    async def open_for_loop(self) -> None:
        """Open the store, unless it is open, until the event loop ends. Concurrent calls share one attempt and its failure."""
        opening = self._opening
        if opening is None or opening.done() or opening.get_loop() is not get_running_loop():
            opening = self._opening = create_task(self._open_for_loop())
        # A request that is cancelled leaves the attempt to the others.
        await shield(opening)

    async def _open_for_loop(self) -> None:
        async with self._exclusively():
            if not self._users:
                await self._open(count_workers())
                self._users += 1
                self._keeper = self._close_with_loop()
                await anext(self._keeper)

    async def _close_with_loop(self) -> AsyncGenerator[None]:
        # asyncio.run() and the servers' runners close the asynchronous generators of their loop before they close it.
        try:
            yield
        finally:
            await self.close()

    def _exclusively(self) -> Lock:
        loop = get_running_loop()
        if self._loop is not loop:
            self._loop, self._lock, self._users = loop, Lock(), 0
        return self._lock

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
        if driver is not None:
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
            self._sweeper = create_task(self._sweep())

    async def _close(self) -> None:
        if self._sweeper is not None:
            self._sweeper.cancel()
            await wait([self._sweeper])
        if self._store is not None:
            await self._store.close()

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
