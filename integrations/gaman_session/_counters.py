"""Counters: what has become of sessions in this process, for whoever asks, and for OpenTelemetry where that is installed."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cache, partial
from typing import Literal, TypeAlias

from msgspec import Struct

Rejection: TypeAlias = Literal["forged", "expired", "unreadable"]


class Counters(Struct):
    """How often something has happened since the process began; each worker counts for itself."""

    created: int = 0
    """Sessions that began: those that reached the store, or with the cookies driver a browser."""
    loaded: int = 0
    """Times that a session was found where it is kept."""
    written: int = 0
    """Times that a session which was there was changed, renamed, or had its idle limit moved on."""
    ended: int = 0
    """Sessions that clear(), the delete() of their last key, end(), end_all() or an owner's limit ended; none that ran out."""
    forged: int = 0
    """Requests whose cookie is none of ours: made up, changed, or sealed with a secret that is not honoured any more."""
    expired: int = 0
    """Requests with a cookie of ours whose session is over: past its limit, ended elsewhere, or lost with the store's data."""
    unreadable: int = 0
    """Requests that met a value which can't be unsealed or decoded, or a cookie that another version of this package has sealed."""
    store_errors: int = 0
    """Calls that ended in a SessionStoreError, whether or not somebody has caught it; those of the background are among them."""

    def reject(self, reason: Rejection) -> None:
        """Count a request whose session was turned down."""
        setattr(self, reason, getattr(self, reason) + 1)


def export(counters: Counters, driver: str) -> None:
    """Have OpenTelemetry observe *counters*, if its API is installed."""
    if (exported := _exported()) is not None:
        exported.append((driver, counters))


@cache
def _exported() -> list[tuple[str, Counters]] | None:
    """Return what the instruments observe; they are made once, for an API that has no way to take one back."""
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
    ("loaded", "{load}", "Times that a session was found where it is kept.", ("loaded",)),
    ("written", "{write}", "Times that a session was changed where it is kept.", ("written",)),
    ("ended", "{session}", "Sessions that were ended on purpose.", ("ended",)),
    ("rejected", "{request}", "Requests whose session was turned down.", ("forged", "expired", "unreadable")),
    ("store.errors", "{error}", "Calls of the store that failed.", ("store_errors",)),
)
