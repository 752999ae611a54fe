"""Accept-Encoding (RFC 9110, section 12.5.3): which content coding of a file a client prefers."""

from __future__ import annotations

import re
from collections.abc import Iterable

IDENTITY = "identity"
"""The file unchanged."""

_element = re.compile(
    r"\s*(?:x-)?([\w!#$%&'*+.^`|~-]+)\s*(?:;\s*q\s*=\s*(0(?:\.\d{0,3})?|1(?:\.0{0,3})?)\s*)?", re.IGNORECASE | re.ASCII
).fullmatch
_LEAST = 0.0001
"""The quality of the unchanged file if the client doesn't mention it: less than any that the client can write."""


def choose(available: Iterable[str], fields: Iterable[str]) -> str:
    """Return the coding of *available* that these values of Accept-Encoding prefer; of equal ones, the first.

    If none is acceptable, return IDENTITY, because a client that refuses everything still prefers the file to an error. An element
    with a malformed quality doesn't count.
    """
    elements = [found.groups() for element in ",".join(fields).split(",") if (found := _element(element))]
    qualities = {name.lower(): 1.0 if quality is None else float(quality) for name, quality in elements}
    unsaid = qualities.get("*", 0.0)
    ranked = {coding: qualities.get(coding, unsaid or _LEAST * (coding == IDENTITY)) for coding in available}
    best = max(ranked, key=ranked.__getitem__)
    return best if ranked[best] else IDENTITY
