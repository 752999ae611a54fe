"""Cookies (RFC 6265): the Cookie field read as browsers write it, Set-Cookie lines written so that browsers keep them."""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from typing import Literal

from gaman._headers import RawHeaders, as_text
from gaman.errors import HeaderError

SetCookies = dict[object, tuple[bytes, bytes]]
"""Set-Cookie fields, by what tells one cookie from another."""

_NONE: RawHeaders = []
_NOTHING: dict[str, str | None] = {}
SameSite = Literal["lax", "strict", "none"]

_token = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
# cookie-octet, RFC 6265, section 4.1.1
_octets = bytes({0x21, *range(0x23, 0x2C), *range(0x2D, 0x3B), *range(0x3C, 0x5C), *range(0x5D, 0x7F)})
# Of name and value together; a longer one they drop without a word (RFC 6265bis, section 5.6).
_LONGEST = 4096
_SECURE_PREFIXES = ("__host-", "__secure-", "__http-")
_HTTP_ONLY_PREFIXES = ("__http-", "__host-http-")
# RFC 1123, section 2.1, and underscores, which browsers take.
_host_name = re.compile(r"(?!.{254})[0-9A-Za-z_](?:[0-9A-Za-z_-]{0,62})(?:\.[0-9A-Za-z_][0-9A-Za-z_-]{0,62})*").fullmatch
_attribute_octets = re.compile(r"[\x20-\x3a\x3c-\x7e]*").fullmatch


def parse_cookies(headers: RawHeaders) -> dict[str, str]:
    """Return the cookies in *headers* by name: the first of two alike, the octets as ISO-8859-1."""
    cookies: dict[str, str] = {}
    for field, value in headers:
        if field == b"cookie":
            for pair in value.split(b";"):
                # Only space and tab are trimmed, and quotes are kept: a bit more, and a lookalike would pass for another name.
                name, equals, content = pair.partition(b"=")
                if equals and (name := name.strip(b" \t")):
                    cookies.setdefault(name.decode("latin-1"), content.strip(b" \t").decode("latin-1"))
    return cookies


def find_cookie(headers: RawHeaders, wanted: str) -> str | None:
    """Return the cookie *wanted* that an ASGI scope's *headers* bring, or None when there is none, as `ctx.cookie` does.

    It is what parse_cookies() has under that name, in a fraction of the time.
    """
    for field, value in headers:
        if field == b"cookie":
            # Often the first is the one, and often the only one.
            first, _, others = value.decode("latin-1").partition(";")
            name, equals, content = first.partition("=")
            if equals and (name == wanted or name.strip(" \t") == wanted):
                return content.strip(" \t")
            for pair in others.split(";"):
                if wanted in pair:
                    name, equals, content = pair.partition("=")
                    if equals and name.strip(" \t") == wanted:
                        return content.strip(" \t")
    return None


def find_cookies(headers: RawHeaders, wanted: str) -> Iterator[str]:
    """Yield every cookie *wanted* that an ASGI scope's *headers* bring, in their order; find_cookie() returns the first.

    A browser may keep several of one name, for different paths, domains or partitions, and no server can rely on their order
    (RFC 6265, section 5.4).
    """
    for field, value in headers:
        if field == b"cookie":
            for pair in value.decode("latin-1").split(";"):
                name, equals, content = pair.partition("=")
                if equals and name.strip(" \t") == wanted:
                    yield content.strip(" \t")


class Cookies:
    """The cookies of one request, which reads what it has written; *is_secure* tells whether it came over HTTPS."""

    __slots__ = ("_came", "_fields", "_headers", "_is_secure", "_written")

    def __init__(
        self, headers: RawHeaders = _NONE, fields: SetCookies | None = None, *, is_secure: Callable[[], bool] = lambda: True
    ) -> None:
        self._headers = headers
        self._is_secure = is_secure
        self._came: dict[str, str] | None = None
        self._written: dict[str, str | None] = _NOTHING
        self._fields: SetCookies = {} if fields is None else fields

    def fields(self) -> Iterable[tuple[bytes, bytes]]:
        """Return the Set-Cookie fields to send, one for each cookie that was set or deleted."""
        return self._fields.values()

    def get(self, name: str) -> str | None:
        """Return the cookie's value, or None when there is none."""
        if name in self._written:
            return self._written[name]
        if self._came is None:
            self._came = parse_cookies(self._headers)
        return self._came.get(name)

    def has(self, name: str) -> bool:
        """Return whether the cookie is there, be its value empty or not."""
        return self.get(name) is not None

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
        RFC 6265, section 4.1.1, does not allow in a value (percent-encode it), and for what browsers silently drop: a
        combination of attributes, and more than 4,096 bytes of name and value. *domain* is a host name; a dot before it has no
        meaning (RFC 6265, section 5.2.3). Two cookies of one name that differ in it, in *path* or in *partitioned* are both sent.
        """
        domain = domain.removeprefix(".") if isinstance(domain, str) else domain
        secure = self._is_secure() if secure is None else secure
        attributes = _attributes(name, max_age, path, domain, secure, http_only, same_site, partitioned)
        if not isinstance(value, str):
            raise HeaderError(f"the cookie {name!r} takes a str, not {value!r}; write {as_text(value)!r}")
        octets = value.encode("utf-8", "surrogatepass")
        if octets.translate(None, _octets):
            raise HeaderError(f"the cookie {name!r} can't hold {value!r}; encode it first, with urllib.parse.quote for instance")
        if (size := len(name) + len(octets)) > _LONGEST:
            raise HeaderError(
                f"browsers drop the cookie {name!r}: name and value have {size} bytes, and they keep {_LONGEST}; send less"
            )
        self._fields[name, domain and domain.lower(), path, partitioned] = (
            b"set-cookie",
            f"{name}={value}{attributes}".encode("ascii"),
        )
        self._written = {**self._written, name: value}

    def delete(self, name: str, *, path: str = "/", domain: str | None = None, partitioned: bool = False) -> None:
        """Have the browser forget the cookie; *path*, *domain* and *partitioned* must be those that it was set with."""
        secure = partitioned or self._is_secure() or name.lower().startswith(_SECURE_PREFIXES)
        self.set(name, "", max_age=0, path=path, domain=domain, secure=secure, partitioned=partitioned)
        self._written = {**self._written, name: None}


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
    if not isinstance(name, str):
        raise HeaderError(f"a cookie's name is a str, not {name!r}; write {as_text(name)!r}")
    if _token(name) is None:
        raise HeaderError(f"{name!r} is not a cookie name: RFC 6265 allows letters, digits and !#$%&'*+-.^_`|~")
    if max_age is not None and not isinstance(max_age, int):
        raise HeaderError(
            f"the cookie {name!r} has max_age={max_age!r}; it takes whole seconds, or None for as long as the browser"
        )
    if same_site not in ("lax", "strict", "none"):
        raise HeaderError(f"the cookie {name!r} has same_site={same_site!r}; it takes 'lax', 'strict' or 'none'")
    if not isinstance(path, str) or _attribute_octets(path) is None or not path.startswith("/"):
        raise HeaderError(f"the cookie {name!r} has path={path!r}; it begins with / and holds neither ; nor control characters")
    if domain is not None and (not isinstance(domain, str) or _host_name(domain) is None):
        raise HeaderError(
            f"the cookie {name!r} has domain={domain!r}; give a host name such as example.com, without a scheme, port or *, "
            "or None for this host alone"
        )
    if not secure:
        if name.lower().startswith(_SECURE_PREFIXES):
            raise HeaderError(f"browsers drop the cookie {name!r} unless it is Secure; pass secure=True or rename it")
        if same_site == "none":
            raise HeaderError(f"browsers drop the cookie {name!r}: same_site='none' needs secure=True")
        if partitioned:
            raise HeaderError(f"browsers drop the cookie {name!r}: partitioned=True needs secure=True")
    if not http_only and name.lower().startswith(_HTTP_ONLY_PREFIXES):
        raise HeaderError(f"browsers drop the cookie {name!r} unless it is HttpOnly; pass http_only=True or rename it")
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
