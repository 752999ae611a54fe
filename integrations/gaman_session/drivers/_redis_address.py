"""The url of the Redis driver: its parts, and its faults with their fixes, in messages that repeat no password."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from ssl import VerifyFlags
from typing import Final, NamedTuple
from urllib.parse import SplitResult, parse_qsl, urlsplit, urlunsplit

from gaman.errors import ConfigError

_FORMS: Final = (
    "it takes one that begins with redis://, rediss://, unix:///, redis+sentinel:// with the master's name as its path, or "
    "redis+cluster://"
)
_KINDS: Final = {(scheme, kind) for scheme in ("redis", "rediss") for kind in ("", "sentinel", "cluster")} | {("unix", "")}


class Address(NamedTuple):
    """The parts of a url."""

    kind: str
    """`cluster`, `sentinel`, or nothing for a single server."""
    hosts: str
    """The hosts as the url has them, or the path of a socket, for messages: without user and password."""
    urls: Sequence[str]
    """For each host a url that redis-py understands."""
    master: str
    """The name that Sentinels have for the master."""
    is_socket: bool
    """Whether it is a Unix socket."""

    def __repr__(self) -> str:
        # The urls may hold a password.
        return f"{type(self).__name__}({self.hosts!r})"


def parse(url: str) -> Address:
    """Return the parts of *url*, or raise ConfigError with the fix."""
    try:
        parts = urlsplit(url) if isinstance(url, str) else urlsplit("")
    except ValueError:
        # The error's text may contain a part of the password.
        raise _unreadable(_FORMS) from None
    scheme, _, kind = parts.scheme.partition("+")
    if (scheme, kind) not in _KINDS:
        raise _unreadable(_FORMS)
    credentials, at, hosts = parts.netloc.rpartition("@")
    _, _, rest = url.partition("//" + parts.netloc)
    fault = _fault(scheme, kind, hosts, parts, rest)
    if fault and "@" in rest:
        fault = "percent-encode user and password: %2F for /, %3F for ?, %23 for #, %40 for @"
    if fault:
        raise _unreadable(fault)
    path, master = ("", parts.path.strip("/")) if kind == "sentinel" else (parts.path, "")
    urls = [urlunsplit((scheme, credentials + at + host, path, parts.query, "")) for host in hosts.split(",")]
    is_socket = scheme == "unix"
    return Address(kind, parts.path if is_socket else hosts or "localhost", urls, master, is_socket)


def _unreadable(fault: str) -> ConfigError:
    return ConfigError(f"the redis driver can't read its url: {fault}")


def _fault(scheme: str, kind: str, hosts: str, parts: SplitResult, rest: str) -> str | None:
    """Return the first fault of a url, with the fix, or None."""
    if "#" in rest:
        return "nothing may follow a #; percent-encode it as %23"
    return _fault_of_hosts(scheme, kind, hosts) or _fault_of_path(scheme, kind, parts.path) or _fault_of_query(scheme, kind, parts)


def _fault_of_hosts(scheme: str, kind: str, hosts: str) -> str | None:
    if scheme == "unix":
        return "a socket's path begins with a slash: write unix:///run/redis.sock" if hosts else None
    if "," in hosts and not kind:
        return "several hosts take redis+sentinel:// or redis+cluster://"
    each = hosts.split(",")
    if len(each) > 1 and "" in each:
        return "a host is missing beside a comma"
    try:
        ports = [urlsplit("//" + host).port for host in each]
    except ValueError:
        ports = [0]
    return "a host's colon is followed by a port, from 1 to 65535" if 0 in ports else None


def _fault_of_path(scheme: str, kind: str, path: str) -> str | None:
    if scheme == "unix":
        return None if path.strip("/") else "it lacks the socket's path: write unix:///run/redis.sock"
    if kind == "sentinel":
        is_name = re.fullmatch(r"/[A-Za-z0-9._-]+/?", path)
        return (
            None if is_name else "the master's name follows the hosts, as in redis+sentinel://host:26379/name; a database is ?db=1"
        )
    if kind == "cluster":
        return None if path in {"", "/", "/0"} else "a Cluster has one database: nothing follows its hosts but options"
    is_number = re.fullmatch("/?[0-9]*/?", path)
    return None if is_number else "a database follows the host, as a number: redis://host:6379/0"


# The values that an option takes, in words and as a check.
_Values = tuple[str, Callable[[str], object]]
_TEXT: Final[_Values] = "some text", bool
_SECONDS: Final[_Values] = (
    "a number of seconds above 0",
    lambda value: re.fullmatch(r"[0-9]+(\.[0-9]+)?", value) is not None and float(value) > 0,
)
_SIZE: Final[_Values] = "a whole number above 0", lambda value: value.isdecimal() and int(value) > 0
_FLAGS: Final[_Values] = (
    "names of ssl.VerifyFlags",
    lambda value: {*value.strip("[]").replace(" ", "").split(",")} <= {*VerifyFlags.__members__},
)
_SWITCH: Final[_Values] = "yes or no", lambda value: value.lower() in {"yes", "no", "true", "false", "1", "0"}
_OPTIONS: Final[Mapping[str, _Values]] = {
    "username": _TEXT,
    "password": _TEXT,
    "client_name": ("letters, digits and signs without a space", re.compile("[!-~]+").fullmatch),
    "protocol": ("2 or 3", {"2", "3"}.__contains__),
    "socket_timeout": _SECONDS,
    "socket_connect_timeout": _SECONDS,
    "socket_read_size": _SIZE,
    "health_check_interval": _SIZE,
}
_TLS_OPTIONS: Final[Mapping[str, _Values]] = {
    "ssl_ca_certs": _TEXT,
    "ssl_ca_data": _TEXT,
    "ssl_certfile": _TEXT,
    "ssl_keyfile": _TEXT,
    "ssl_password": _TEXT,
    "ssl_ciphers": _TEXT,
    "ssl_include_verify_flags": _FLAGS,
    "ssl_exclude_verify_flags": _FLAGS,
    "ssl_cert_reqs": ("none, optional or required", {"none", "optional", "required"}.__contains__),
    "ssl_check_hostname": _SWITCH,
    "ssl_min_version": ("771 for TLS 1.2, or 772 for TLS 1.3", {"771", "772"}.__contains__),
}
_ELSEWHERE: Final = {
    "max_connections": "write pool_size=… beside url instead",
    "timeout": "write timeout=… beside url instead",
    **dict.fromkeys(("host", "port", "path"), "write it where it belongs, before the ?"),
}


def _fault_of_query(scheme: str, kind: str, parts: SplitResult) -> str | None:
    allowed: dict[str, _Values] = dict(_OPTIONS)
    if kind != "cluster":
        allowed["db"] = "a whole number from 0 up", str.isdecimal
    if scheme != "unix":
        allowed["socket_keepalive"] = _SWITCH
    if kind == "sentinel":
        allowed |= dict.fromkeys(("sentinel_username", "sentinel_password"), _TEXT)
    if scheme == "rediss":
        allowed |= _TLS_OPTIONS
        if kind != "cluster":
            allowed["ssl_ca_path"] = _TEXT
    seen = {"db"} if kind != "sentinel" and scheme != "unix" and parts.path.strip("/") else set[str]()
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name in seen:
            return f"it says {name} twice"
        seen.add(name)
        if name not in allowed:
            fix = "rediss:// takes it" if name in _TLS_OPTIONS and scheme != "rediss" else _ELSEWHERE.get(name, "remove it")
            return f"the driver takes no option {name!r} there; {fix}"
        words, is_right = allowed[name]
        if not is_right(value):
            return f"{name} takes {words}"
    return None
