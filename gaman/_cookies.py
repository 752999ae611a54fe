"""Cookies (RFC 6265): the Cookie field read as browsers write it, Set-Cookie lines written so that browsers keep them."""

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal

from gaman.errors import HeaderError

SameSite = Literal["lax", "strict", "none"]

_token = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
# cookie-octet, RFC 6265, section 4.1.1
_octets = bytes({0x21, *range(0x23, 0x2C), *range(0x2D, 0x3B), *range(0x3C, 0x5C), *range(0x5D, 0x7F)})
_attribute_octets = re.compile(r"[\x20-\x3a\x3c-\x7e]*").fullmatch


def parse_cookies(fields: Iterable[bytes]) -> dict[str, str]:
    """Return the cookies of the Cookie *fields* by name: the first of two alike, the octets as ISO-8859-1."""
    cookies: dict[str, str] = {}
    for field in fields:
        for pair in field.split(b";"):
            # Only space and tab are trimmed, and quotes are kept: an octet more, and a lookalike would pass for another name.
            name, equals, value = pair.partition(b"=")
            if equals and (name := name.strip(b" \t")):
                cookies.setdefault(name.decode("latin-1"), value.strip(b" \t").decode("latin-1"))
    return cookies


class Cookies:
    """The cookies of one request, which reads what it has written; *secure* is whether it came over HTTPS."""

    __slots__ = ("_fields", "_lines", "_read", "_secure")

    def __init__(self, fields: Iterable[bytes] = (), *, secure: bool = True) -> None:
        self._fields = fields
        self._read: dict[str, str] | None = None
        self._lines: dict[tuple[str, str | None, str], str] | None = None
        self._secure = secure

    @property
    def lines(self) -> Iterable[str]:
        """The Set-Cookie values to send, one for each cookie that was set or deleted."""
        return () if self._lines is None else self._lines.values()

    def get(self, name: str) -> str | None:
        """Return the cookie's value, or None when there is none."""
        return self._values().get(name)

    def has(self, name: str) -> bool:
        """Return whether the cookie is there, be its value empty or not."""
        return name in self._values()

    def set(
        self,
        name: str,
        value: str,
        *,
        max_age: int | None = None,
        path: str = "/",
        domain: str | None = None,
        secure: bool | None = None,
        http_only: bool = True,
        same_site: SameSite = "lax",
        partitioned: bool = False,
    ) -> None:
        """Send a cookie with the response, to live *max_age* seconds, or as long as the browser where that is None.

        It is Secure where the request came over HTTPS, unless *secure* says otherwise. HeaderError is raised for what
        RFC 6265, section 4.1.1, does not allow in a value (percent-encode it), and for a combination of attributes that
        browsers silently refuse.
        """
        secure = self._secure if secure is None else secure
        attributes = _attributes(name, max_age, path, domain, secure, http_only, same_site, partitioned)
        octets = value.encode("ascii", "replace")
        if octets.translate(None, _octets) or not value.isascii():
            raise HeaderError(f"the cookie {name!r} can't hold {value!r}; encode it first, with urllib.parse.quote for instance")
        if self._lines is None:
            self._lines = {}
        self._lines[name, domain, path] = f"{name}={value}{attributes}"
        self._values()[name] = value

    def delete(self, name: str, *, path: str = "/", domain: str | None = None, partitioned: bool = False) -> None:
        """Have the browser forget the cookie; *path* and *domain* must be those that it was set with."""
        secure = self._secure or partitioned or name.lower().startswith(("__host-", "__secure-"))
        self.set(name, "", max_age=0, path=path, domain=domain, secure=secure, partitioned=partitioned)
        self._values().pop(name, None)

    def _values(self) -> dict[str, str]:
        if self._read is None:
            self._read = parse_cookies(self._fields)
        return self._read


@lru_cache(maxsize=256)
def _attributes(
    name: str,
    max_age: int | None,
    path: str,
    domain: str | None,
    secure: bool,
    http_only: bool,
    same_site: str,
    partitioned: bool,
) -> str:
    """Return all that follows the value, after checking what a browser would drop without a word (RFC 6265bis, section 5.7)."""
    if _token(name) is None:
        raise HeaderError(f"{name!r} is not a cookie name: RFC 6265 allows letters, digits and !#$%&'*+-.^_`|~")
    if max_age is not None and not isinstance(max_age, int):
        raise HeaderError(
            f"the cookie {name!r} has max_age={max_age!r}; it takes whole seconds, or None for as long as the browser"
        )
    if same_site not in ("lax", "strict", "none"):
        raise HeaderError(f"the cookie {name!r} has same_site={same_site!r}; it takes 'lax', 'strict' or 'none'")
    if _attribute_octets(path) is None or not path.startswith("/"):
        raise HeaderError(f"the cookie {name!r} has path={path!r}; it begins with / and holds neither ; nor control characters")
    if domain is not None and (_attribute_octets(domain) is None or not domain):
        raise HeaderError(f"the cookie {name!r} has domain={domain!r}; give a host name, or None for this host alone")
    if not secure:
        if name.lower().startswith(("__host-", "__secure-")):
            raise HeaderError(f"browsers drop the cookie {name!r} unless it is Secure; pass secure=True or rename it")
        if same_site == "none":
            raise HeaderError(f"browsers drop the cookie {name!r}: same_site='none' needs secure=True")
        if partitioned:
            raise HeaderError(f"browsers drop the cookie {name!r}: partitioned=True needs secure=True")
    if name.lower().startswith("__host-") and (domain is not None or path != "/"):
        raise HeaderError(f"browsers drop the cookie {name!r} unless its path is '/' and its domain None; set these or rename it")
    parts = [
        "" if max_age is None else f"; Max-Age={max_age:d}",
        f"; Path={path}",
        "" if domain is None else f"; Domain={domain}",
        "; Secure" if secure else "",
        "; HttpOnly" if http_only else "",
        f"; SameSite={same_site.capitalize()}",
        "; Partitioned" if partitioned else "",
    ]
    return "".join(parts)
