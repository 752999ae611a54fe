"""Origins (RFC 6454): which ones cors() allows, by name or by a wildcard for subdomains."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache

from gaman import ConfigError

_PORTS = {"http": ":80", "https": ":443"}
_MAX_ORIGIN = 300
"""Characters of an origin: a scheme, a name of DNS, and a port."""

_split = re.compile(
    r"([a-z][a-z0-9+.-]*)://(\*\.)?((?:[a-z0-9_-]+\.)*[a-z0-9_-]+|\[[0-9a-f:.]+\])(:[1-9][0-9]{0,4})?", re.ASCII
).fullmatch
# What users write in the place of an origin: one without a scheme, or a whole URL.
_near = re.compile(
    r"(?:([A-Za-z][\w+.-]*):(?![0-9]))?/*((?:\*\.)?[\w.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]+)?(?:[/?#].*)?", re.ASCII
).fullmatch


class Origins:
    """The origins of cors(origins=...). ConfigError names the entry that isn't an origin."""

    def __init__(self, origins: str | Iterable[str]) -> None:
        if not isinstance(origins, Iterable):
            raise ConfigError(f"cors(origins={origins!r}) isn't a list of origins; write origins=['https://app.example.com']")
        texts = [text.strip() for text in origins.split(",")] if isinstance(origins, str) else list(origins)
        if not texts:
            raise ConfigError("cors(origins=[]) allows no origin; name some, such as 'https://app.example.com', or remove cors()")
        self.allows_any = "*" in texts
        self.allows_null = "null" in texts
        self._known = {text if text == "null" else _parse(text) for text in texts if text != "*"}
        # Saves two microseconds a request, because a site has few callers.
        self._allows = lru_cache(maxsize=1024)(self._look_up)

    def allows(self, origin: str) -> bool:
        """Return whether *origin*, the Origin field of a request, is allowed."""
        # Checked before the cache, which must not store texts of any length.
        return self.allows_any or (len(origin) <= _MAX_ORIGIN and self._allows(origin))

    def _look_up(self, origin: str) -> bool:
        found = _split(origin.lower())
        if found is None or found[2]:
            return origin in self._known and origin == "null"
        scheme, _, name, port = found.groups("")
        port = _without_default(scheme, port)
        if f"{scheme}://{name}{port}" in self._known:
            return True
        while name := name.partition(".")[2]:
            if f"{scheme}://*.{name}{port}" in self._known:
                return True
        return False


def _parse(text: object) -> str:
    """Return an entry as browsers write it."""
    if isinstance(text, str) and (found := _split(text.lower())) is not None:
        scheme, wildcard, name, port = found.groups("")
        return f"{scheme}://{wildcard}{name}{_without_default(scheme, port)}"
    near = _near(text) if isinstance(text, str) else None
    fix = "https://app.example.com"
    if near is not None:
        fix = f"{near[1] or ('http' if near[2] == 'localhost' else 'https')}://{near[2]}{near[3] or ''}".lower()
    raise ConfigError(
        f"cors: {text!r} isn't an origin, which is scheme://host or scheme://host:port, without a path; write {fix!r}"
    )


def _without_default(scheme: str, port: str) -> str:
    return "" if port == _PORTS.get(scheme) else port
