"""Accept (RFC 9110, section 12.5.1): whether a client prefers JSON to text."""

from __future__ import annotations

import re
from collections.abc import Iterable

_MAX_LENGTH = 1 << 12
"""Octets of Accept that are read. Browsers send some hundred, and a whole head of them would take 0.2 seconds."""

_quality = re.compile(r"q=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)", re.IGNORECASE).fullmatch


def prefers_json(fields: Iterable[str]) -> bool:
    """Return whether JSON is acceptable by these values of Accept, and text/plain and text/html are no better.

    An API's client sends `application/json`, `*/*` or nothing, and gets JSON. A browser that opens a page prefers text/html. Of two
    types with the same quality, the one that is named precedes the one that only matches `*/*`.
    """
    ranges: dict[str, float] = {}
    for element in ",".join(fields)[:_MAX_LENGTH].split(","):
        name, *parameters = (part.strip().lower() for part in element.split(";"))
        qualities = [parameter for parameter in parameters if parameter.startswith("q=")]
        found = _quality(qualities[0]) if qualities else None
        # An element whose quality is malformed doesn't count.
        if name and (found is not None or not qualities):
            kind = "application/json" if name.endswith("+json") else name
            ranges[kind] = max(ranges.get(kind, 0.0), 1.0 if found is None else float(found[1]))
    if not ranges:
        return True
    as_json = _rank(ranges, "application/json")
    return as_json[0] > 0 and as_json >= max(_rank(ranges, "text/plain"), _rank(ranges, "text/html"))


def _rank(ranges: dict[str, float], name: str) -> tuple[float, int]:
    """Return the quality of the media type *name*, and how specific the range is that gives it."""
    for specificity, range_ in ((2, name), (1, f"{name.partition('/')[0]}/*"), (0, "*/*")):
        if range_ in ranges:
            return ranges[range_], specificity
    return 0.0, 0
