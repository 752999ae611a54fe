"""Caches: keeps a page with a nonce out of shared caches (RFC 9111), which would give one nonce to all visitors."""

from __future__ import annotations

from collections.abc import Iterable

# A cache that revalidates before each use gets the policy of the new response.
_SAFE = {"private", "no-store", "no-cache"}
_SHARED = {"public", "s-maxage", "proxy-revalidate"}


def keep_private(headers: list[tuple[bytes, bytes]]) -> str:
    """Change *headers* so that no shared cache keeps the response; return the fields that would have allowed it, as text."""
    own: list[str] = []
    unsafe: list[tuple[bytes, bytes]] = []
    for name, value in headers:
        directives = [each.strip() for each in value.decode("latin-1").split(",")]
        if name == b"cache-control":
            own += directives
        # Targeted fields replace Cache-Control for certain shared caches (RFC 9213).
        elif (name.endswith(b"-cache-control") or name == b"surrogate-control") and not _names(directives) & _SAFE:
            unsafe.append((name, value))
    if not _names(own) & _SAFE:
        unsafe += [field for field in headers if field[0] == b"cache-control"]
        own = ["private", *(each for each in own if not _names([each]) & _SHARED)]
        headers.append((b"cache-control", ", ".join(own).encode("latin-1")))
    headers[:] = [field for field in headers if field not in unsafe]
    return ", ".join(f"{name.decode()}: {value.decode('latin-1')}" for name, value in unsafe)


def _names(directives: Iterable[str]) -> set[str]:
    return {each.partition("=")[0].rstrip().lower() for each in directives}
