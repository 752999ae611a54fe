"""Audit: tells `on_event` and the log what happened to sessions, without delaying a request."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable, MutableMapping
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from inspect import isawaitable, iscoroutinefunction
from threading import RLock
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias

import anyio.to_thread
import msgspec

from gaman import log_extra

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop, Event

logger = logging.getLogger("gaman.session.audit")
if logger.level == logging.NOTSET:
    # Otherwise the access log, which sets `gaman` to INFO, would also get these events.
    logger.setLevel(logging.WARNING)

Kind: TypeAlias = Literal["began", "logged in", "confirmed", "renewed", "ended", "forged", "refused"]
Reason: TypeAlias = Literal["logout", "login", "end", "end_all", "end_everyone", "limit", "eviction"]

_MAX_WAITING: Final = 10_000
"""Events that wait for a slow `on_event`; more are dropped."""
_MAX_UNMERGED: Final = 1_000
"""Waiting events of one kind in `_MERGED`; further ones are merged into one event."""
_MERGED: Final = ("forged", "refused")
"""Kinds of events that any client can cause, so they must not displace logins."""


class SessionEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to a session. It reveals neither the session's cookie nor its owner."""

    kind: Kind
    """`renewed` is a new id, and `forged` an invalid cookie. A cross-site request is `refused`."""
    at: datetime
    handle: str | None = None
    """The session's `ctx.session.id`, after the event; None if no session is known."""
    former: str | None = None
    """The handle that the session had before, if the event gave it a new id."""
    owner: str | None = None
    """A keyed hash of the owner; None if there is no owner, or the request didn't read it."""
    level: int | None = None
    """The level of a login or a confirmation; 2 for a login that was confirmed with a second factor in the same request."""
    reason: Reason | None = None
    """What ended the session: a call, the `limit` of sessions per owner, or the memory driver's `eviction`.

    `login` is the login of another owner, or with fresh=True. A call that gives a new id also ends the sessions of the request's
    other cookies.
    """
    count: int = 1
    """How many sessions or requests it stands for. end_all() is one event, and many `forged` or `refused` requests may be one."""
    request_id: str | None = None
    """The request's `ctx.request_id`, of the last request if there were several; None outside of a request."""


OnEvent: TypeAlias = Callable[[SessionEvent], Awaitable[object] | object]


class _Delivery:
    """A call of deliver(), in one event loop."""

    def __init__(self, loop: AbstractEventLoop, event_came: Event) -> None:
        self.loop = loop
        self.event_came = event_came
        self.is_stopping = False

    def wake(self) -> None:
        # The loop may have been closed meanwhile, by another thread.
        with suppress(RuntimeError):
            self.loop.call_soon_threadsafe(self.event_came.set)


class Audit:
    """The events of an application's sessions, in their order.

    A plain function runs in a thread, one event at a time. If `on_event` raises an error, it is logged, and the next event follows.
    """

    def __init__(self, on_event: OnEvent | None, clock: Callable[[], float]) -> None:
        self._on_event = on_event
        self._clock = clock
        # Each thread may have its own event loop. Reentrant, because Python may end the deliver() of a closed loop within any call.
        self._lock = RLock()
        self._waiting = deque[SessionEvent]()
        self._unmerged = dict.fromkeys(_MERGED, 0)
        self._merged: dict[Kind, SessionEvent] = {}
        self._dropped = 0
        self._deliveries: list[_Delivery] = []
        """One for each event loop; the first whose loop runs delivers the events."""

    @property
    def is_delivered(self) -> bool:
        """Whether each event loop has to run deliver()."""
        return self._on_event is not None

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
        level: int | None = None,
        reason: Reason | None = None,
        count: int = 1,
    ) -> None:
        """Log an event of the request with this *scope*, and leave it to deliver(); do neither if the audit isn't on.

        The store is already written, so an error is logged and doesn't fail the request.
        """
        if not self.is_on:
            return
        try:
            extra = {} if scope is None else log_extra(scope)
            event = SessionEvent(
                kind=kind,
                at=datetime.fromtimestamp(self._clock(), UTC),
                handle=handle,
                former=former,
                owner=owner,
                level=level,
                reason=reason,
                count=count,
                request_id=extra.get("request_id"),
            )
            if self._on_event is not None:
                self._put(event)
            fields = {
                name: value
                for name, value in msgspec.structs.asdict(event).items()
                if value is not None and (name, value) != ("count", 1)
            }
            text = ", ".join([f"{name}={value}" for name, value in fields.items() if name not in ("kind", "at")])
            logger.info("session %s: %s", kind, text, extra={**extra, "event": fields})
        except Exception:
            with suppress(Exception):
                logger.exception("the event %r of a session could not be noted", kind)

    async def deliver(self) -> None:
        """Call `on_event` with each event, unless another event loop does, until stop() is called here and no event is left."""
        from asyncio import Event, get_running_loop  # noqa: PLC0415 - takes 20 ms to load, which a server has done

        delivery = _Delivery(get_running_loop(), Event())
        with self._lock:
            self._deliveries = [each for each in self._deliveries if not each.loop.is_closed()] + [delivery]
        try:
            while True:
                delivery.event_came.clear()
                if (event := self._take(delivery)) is not None:
                    await self._tell(event)
                    self._report_dropped()
                elif delivery.is_stopping:
                    return
                else:
                    await delivery.event_came.wait()
        finally:
            with self._lock:
                self._deliveries = [each for each in self._deliveries if each is not delivery]
            self._wake()

    def stop(self) -> None:
        """Let deliver() end in this event loop."""
        from asyncio import get_running_loop  # noqa: PLC0415 - as above

        loop = get_running_loop()
        with self._lock:
            for delivery in self._deliveries:
                if delivery.loop is loop:
                    delivery.is_stopping = True
                    delivery.event_came.set()

    def abandon(self) -> None:
        """Drop the events that are left, after deliver() has ended, unless it runs in another event loop."""
        with self._lock:
            if self._first() is not None:
                return
            left = len(self._waiting) + sum(event.count for event in self._merged.values())
            self._waiting.clear()
            self._merged.clear()
            self._unmerged = dict.fromkeys(_MERGED, 0)
        if left:
            logger.error("%d events were dropped, because the server has stopped", left)

    def _put(self, event: SessionEvent) -> None:
        kind = event.kind
        # Any visitor can begin and end sessions, and evict others, so half of the room is reserved for the events of users.
        is_visitors = event.owner is None and (kind == "began" or event.reason in ("logout", "eviction"))
        with self._lock:
            if kind in self._unmerged:
                if kind in self._merged or self._unmerged[kind] >= _MAX_UNMERGED:
                    before = self._merged.get(kind)
                    count = event.count if before is None else before.count + event.count
                    self._merged[kind] = msgspec.structs.replace(event, count=count)
                else:
                    self._unmerged[kind] += 1
                    self._waiting.append(event)
            elif len(self._waiting) - sum(self._unmerged.values()) >= (_MAX_WAITING // 2 if is_visitors else _MAX_WAITING):
                self._dropped += 1
            else:
                self._waiting.append(event)
        self._wake()

    def _take(self, delivery: _Delivery) -> SessionEvent | None:
        """Return the next event, or None if there is none or another event loop delivers it."""
        with self._lock:
            if self._first() is not delivery:
                return None
            if self._waiting:
                event = self._waiting.popleft()
                if event.kind in self._unmerged:
                    self._unmerged[event.kind] -= 1
                return event
            return self._merged.pop(next(iter(self._merged))) if self._merged else None

    def _wake(self) -> None:
        with self._lock:
            first = self._first()
        if first is not None:
            first.wake()

    def _first(self) -> _Delivery | None:
        """Return the delivery that gets the events. An event loop that was stopped or closed can't deliver."""
        return next((each for each in self._deliveries if each.loop.is_running()), None)

    async def _tell(self, event: SessionEvent) -> None:
        """Call `on_event`; log its failure."""
        from asyncio import CancelledError, Task, current_task  # noqa: PLC0415 - as above

        on_event: Any = self._on_event
        try:
            told = on_event(event) if _is_async(on_event) else await anyio.to_thread.run_sync(on_event, event)
            if isawaitable(told):
                await told
        except (Exception, CancelledError, SystemExit) as error:
            task: Task[Any] | None = current_task()
            if isinstance(error, CancelledError) and task is not None and task.cancelling():
                raise
            logger.exception("on_event failed for %r", event)

    def _report_dropped(self) -> None:
        with self._lock:
            dropped, self._dropped = self._dropped, 0
        if dropped:
            logger.error(
                "%d events were dropped, because on_event is slower than the events; let it only put them into a queue", dropped
            )


def _is_async(on_event: Any) -> bool:
    """Return whether *on_event* is async, so that the event loop calls it. Another callable may still return an awaitable."""
    while isinstance(on_event, partial):
        on_event = on_event.func
    return iscoroutinefunction(on_event) or iscoroutinefunction(type(on_event).__call__)
