"""Audit: tells `on_event` and the log what happened to sessions, without delaying a request."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from datetime import UTC, datetime
from functools import partial
from inspect import iscoroutinefunction
from typing import Any, Final, Literal, TypeAlias

import anyio.to_thread
import msgspec

from gaman import log_extra

logger = logging.getLogger("gaman.session.audit")

Kind: TypeAlias = Literal["began", "logged in", "confirmed", "renewed", "ended", "forged", "refused"]
Reason: TypeAlias = Literal["logout", "login", "end", "end_all", "end_everyone", "limit", "eviction"]

_MAX_WAITING: Final = 10_000
"""Events that wait for a slow `on_event`; more are dropped."""


class SessionEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to a session. No cookie can be made of it, and no owner be read from it."""

    kind: Kind
    """`renewed` is a new id, and `forged` an invalid cookie. A cross-site request is `refused`."""
    at: datetime
    handle: str | None = None
    """The session's `ctx.session.id`, after the event; None if no session is known."""
    former: str | None = None
    """The handle that the session had before, if the event gave it a new id."""
    owner: str | None = None
    """A keyed hash of the owner; None if there is no owner, or the request didn't read it."""
    reason: Reason | None = None
    """What ended the session: a call, the `limit` of sessions per owner, or the memory driver's `eviction`."""
    count: int = 1
    """How many sessions it happened to; end_all() and end_everyone() are one event."""
    request_id: str | None = None
    """The request's `ctx.request_id`; None outside of a request."""


OnEvent: TypeAlias = Callable[[SessionEvent], Awaitable[object] | object]


class Audit:
    """The events of an application's sessions, in their order.

    A plain function runs in a thread, one event at a time. An error of it is logged, and the next event follows.
    """

    def __init__(self, on_event: OnEvent | None, clock: Callable[[], float]) -> None:
        self._on_event = on_event
        self._clock = clock
        self._waiting = deque[SessionEvent]()
        self._dropped = 0
        self._wake: Callable[[], object] | None = None
        """Wakes deliver() while it runs, from any thread."""
        self._is_stopping = False

    @property
    def is_due(self) -> bool:
        """Whether deliver() has something to do, and doesn't run."""
        return self._on_event is not None and self._wake is None

    @property
    def is_on(self) -> bool:
        """Whether events are logged or delivered."""
        return self._on_event is not None or logger.isEnabledFor(logging.INFO)

    def note(
        self,
        kind: Kind,
        scope: MutableMapping[str, Any] | None = None,
        *,
        handle: str | None = None,
        former: str | None = None,
        owner: str | None = None,
        reason: Reason | None = None,
        count: int = 1,
    ) -> None:
        """Log an event of the request with this *scope*, and leave it to deliver(); None of both if the audit isn't on."""
        if not self.is_on:
            return
        extra = {} if scope is None else log_extra(scope)
        event = SessionEvent(
            kind=kind,
            at=datetime.fromtimestamp(self._clock(), UTC),
            handle=handle,
            former=former,
            owner=owner,
            reason=reason,
            count=count,
            request_id=extra.get("request_id"),
        )
        fields = {name: value for name, value in msgspec.structs.asdict(event).items() if value not in (None, 1)}
        text = ", ".join([f"{name}={value}" for name, value in fields.items() if name not in ("kind", "at")])
        logger.info("session %s: %s", kind, text, extra={**extra, "event": fields})
        if self._on_event is None:
            return
        if len(self._waiting) >= _MAX_WAITING:
            self._dropped += 1
            return
        self._waiting.append(event)
        if self._wake is not None:
            self._wake()

    async def deliver(self) -> None:
        """Call `on_event` with each event, until stop() is called and no event is left."""
        from asyncio import Event, get_running_loop  # noqa: PLC0415 - takes 20 ms to load, which a server has done

        on_event: Any = self._on_event
        call = on_event if iscoroutinefunction(on_event) else partial(anyio.to_thread.run_sync, on_event)
        event_came, self._is_stopping = Event(), False
        self._wake = partial(get_running_loop().call_soon_threadsafe, event_came.set)
        while self._waiting or not self._is_stopping:
            while self._waiting:
                event = self._waiting.popleft()
                try:
                    await call(event)
                except Exception:
                    logger.exception("on_event failed for %r", event)
                self._report_dropped()
            event_came.clear()
            if not self._waiting and not self._is_stopping:
                await event_came.wait()

    def stop(self) -> None:
        """Let deliver() end."""
        self._is_stopping = True
        if self._wake is not None:
            self._wake()

    def abandon(self) -> None:
        """Drop the events that are left, after deliver() has ended."""
        self._wake = None
        if self._waiting:
            logger.error("%d events were dropped, because the server has stopped", len(self._waiting))
            self._waiting.clear()

    def _report_dropped(self) -> None:
        if dropped := self._dropped:
            self._dropped = 0
            logger.error("%d events were dropped, because on_event is slower than they come", dropped)
