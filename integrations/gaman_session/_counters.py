"""Counters: how often sessions began, were written, ended and so on in this process; OpenTelemetry exports them if installed."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, partial
from typing import Literal, TypeAlias

from msgspec import Struct

Rejection: TypeAlias = Literal["forged", "expired", "unreadable", "cross_site"]


class Counters(Struct):
    """Totals since the process started; each worker counts for itself."""

    created: int = 0
    """Sessions that began: they were stored or, with the cookies driver, sent to a browser."""
    loaded: int = 0
    """Times that a session was loaded."""
    written: int = 0
    """Times that an existing session was changed or renamed, or its idle limit was refreshed."""
    ended: int = 0
    """Sessions that clear(), the delete() of their last key, end(), end_all() or an owner's limit ended, but not expired ones.

    Without an audit trail, nothing tells whether the session of a logout had ended before, so it counts.
    """
    forged: int = 0
    """Requests with an invalid cookie: forged, changed, or sealed with a secret that is no longer in the list."""
    expired: int = 0
    """Requests with a valid cookie whose session has expired, was ended elsewhere, or was lost with the store's data."""
    unreadable: int = 0
    """Requests with a damaged value, or a cookie that another version of this package sealed."""
    cross_site: int = 0
    """Requests that were answered 403, because a page of another origin sent them."""
    store_errors: int = 0
    """Calls that raised SessionStoreError, whether it was caught or not; background calls count as well."""

    def reject(self, reason: Rejection) -> None:
        """Count a request that was rejected, or whose cookie or session was."""
        setattr(self, reason, getattr(self, reason) + 1)


def export(counters: Counters, driver: str) -> None:
    """Have OpenTelemetry observe *counters*, if its API is installed."""
    if (exported := _exported()) is not None:
        exported.append((driver, counters))


@cache
def _exported() -> list[tuple[str, Counters]] | None:
    """Return the list that the instruments observe. They are created once, because the API can't remove an instrument."""
    try:
        from opentelemetry.metrics import CallbackOptions, Observation, get_meter  # noqa: PLC0415 - where it is installed
    except ModuleNotFoundError:
        return None
    observed: list[tuple[str, Counters]] = []

    def observe(names: tuple[str, ...], options: CallbackOptions) -> Iterable[Observation]:
        sums: dict[tuple[str, str], int] = {}
        for driver, counters in observed:
            for name in names:
                sums[driver, name] = sums.get((driver, name), 0) + getattr(counters, name)
        for (driver, name), count in sums.items():
            attributes = {"gaman.session.driver": driver}
            if len(names) > 1:
                attributes["gaman.session.rejection"] = name
            yield Observation(count, attributes)

    meter = get_meter("gaman.session")
    for instrument, unit, description, names in _INSTRUMENTS:
        meter.create_observable_counter(f"gaman.session.{instrument}", [partial(observe, names)], unit, description)
    return observed


_INSTRUMENTS = (
    ("created", "{session}", "Sessions that began.", ("created",)),
    ("loaded", "{load}", "Times that a session was loaded.", ("loaded",)),
    ("written", "{write}", "Times that an existing session was changed.", ("written",)),
    ("ended", "{session}", "Sessions that were ended on purpose.", ("ended",)),
    (
        "rejected",
        "{request}",
        "Requests that were rejected, or whose cookie or session was.",
        ("forged", "expired", "unreadable", "cross_site"),
    ),
    ("store.errors", "{error}", "Calls of the store that failed.", ("store_errors",)),
)
