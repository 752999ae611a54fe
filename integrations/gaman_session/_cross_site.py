"""Cross-site requests: those that a page of another origin sends, by Sec-Fetch-Site (Fetch Metadata) and Origin (RFC 6454)."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Final, cast

from gaman import ConfigError

SAFE_METHODS: Final = frozenset(("GET", "HEAD", "OPTIONS"))
"""The methods that pages can send and that change nothing (RFC 9110, section 9.2.1)."""

_PORTS = {"http": ":80", "https": ":443"}
_MAX_ORIGIN = 300
"""Characters of an origin: a scheme, a name of DNS, and a port."""
_OWN = (b"same-origin", b"none")
_split = re.compile(
    r"([a-z][a-z0-9+.-]*)://((?:[a-z0-9_-]+\.)*[a-z0-9_-]+\.?|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?", re.ASCII
).fullmatch
# What users write in the place of an origin: one without a scheme, or a whole URL.
_near = re.compile(r"(?:([A-Za-z][\w+.-]*):)?//([\w.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?(?:[/?#].*)?", re.ASCII).fullmatch


def is_cross_site(headers: Iterable[tuple[bytes, bytes]], find_host: Callable[[], str], is_trusted: Callable[[str], bool]) -> bool:
    """Return whether a page of another origin sent the request that has these *headers*, and its origin isn't trusted.

    *find_host* returns the request's host, and *is_trusted* decides about an Origin. The rule is that of CrossOriginProtection in
    Go's net/http. A request with neither field passes, because every current browser sends at least one.
    """
    sites: list[bytes] = []
    origins: list[str] = []
    for name, value in headers:
        if name == b"sec-fetch-site" and value:
            sites.append(value)
        elif name == b"origin" and value:
            origins.append(value.decode("latin-1"))
    if sites:
        is_own = all(site in _OWN for site in sites)
    else:
        # The schemes aren't compared, because the request's scheme is unknown behind a proxy that isn't trusted. So in browsers
        # from before 2023, a page of http://shop.example may post to https://shop.example. HSTS leaves no such page.
        host = find_host() if origins else ""
        is_own = all(_is_on(host, origin) for origin in origins)
    return not is_own and not (origins and all(map(is_trusted, origins)))


def normalize(origin: str) -> str | None:
    """Return *origin* in lower case and without its scheme's default port; None if it isn't one, as for `null`."""
    found = _split(origin.lower()) if len(origin) <= _MAX_ORIGIN else None
    if found is None:
        return None
    scheme, host, port = found.groups("")
    return f"{scheme}://{host}{'' if port == _PORTS.get(scheme) else port}"


def _is_on(host: str, origin: str) -> bool:
    """Return whether *origin* is a page of *host*, a Host value."""
    scheme = origin.partition("://")[0].lower()
    return scheme in _PORTS and (known := normalize(origin)) is not None and known == normalize(f"{scheme}://{host}")


def check_origins(value: object) -> frozenset[str]:
    """Return the origins of session(trusted_origins=...), normalized; ConfigError names an entry that isn't an origin."""
    if not isinstance(value, Iterable):
        raise ConfigError(
            f"session(trusted_origins={value!r}): it takes a list of origins; write trusted_origins=['https://app.example.com']"
        )
    if isinstance(value, str):
        return frozenset(_check(text.strip()) for text in value.split(",") if text.strip())
    return frozenset(map(_check, cast("Iterable[object]", value)))


def _check(text: object) -> str:
    """Return an entry, normalized."""
    if text in ("*", "null"):
        raise ConfigError(f"session(trusted_origins=...): {text!r} would let every site act as the user; name the origins")
    if isinstance(text, str) and (known := normalize(text)) is not None:
        return known
    fix = "https://app.example.com"
    if isinstance(text, str) and (near := _near(text if "//" in text else f"//{text}")) is not None:
        fix = f"{near[1] or ('http' if near[2] == 'localhost' else 'https')}://{near[2]}{near[3] or ''}".lower()
    raise ConfigError(
        f"session(trusted_origins=...): {text!r} isn't an origin, which is scheme://host or scheme://host:port, without a path and "
        f"without a *; write {fix!r}"
    )
