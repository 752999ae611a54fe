"""Whom a request comes from: what trusted proxies tell in X-Forwarded-For, -Proto and -Host, or in Forwarded (RFC 7239)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any, NamedTuple

from gaman._hosts import parse_host
from gaman.errors import ConfigError

NEARBY = ("127.0.0.0/8", "::1", "unix:")
"""This machine: its loopback, and whoever comes through a Unix socket."""

MAX_HOPS = 32
"""So many hops of a request are looked at, from the nearest on; what lies beyond isn't believed."""

_MAX_HOP = 1024
_FIELDS = {b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host", b"forwarded"}
# A port may be obfuscated (RFC 7239, section 6.3).
_PORT = r"(?::(?:[0-9]{1,5}|_[0-9A-Za-z._-]{1,255}))?"
_address = re.compile(rf"\[([0-9A-Fa-f:.]{{2,45}})\]{_PORT}|([0-9.]{{7,15}}){_PORT}|([0-9A-Fa-f:.]{{2,45}})").fullmatch
_pair = re.compile(r'[ \t]*([!#$%&\'*+.^_`|~0-9A-Za-z-]+)=(?:"((?:[^"\\]|\\.)*)"|([^\s",;]+))[ \t]*(?:;|$)').match
_quotes = re.compile(r'\\.|(")').findall
_unescaped = re.compile(r"\\(.)").sub


class Origin(NamedTuple):
    """The client's address, and the scheme and host that it asked for; None for a host that only the Host field tells."""

    ip: str | None
    scheme: str
    host: str | None


class TrustedProxies:
    """Whose word is taken: *proxies* are addresses, networks, `unix:` and `*`, in a list or between commas.

    `*` trusts whoever connects, but nobody whom that one names; those before it need to be listed. ConfigError names what is none.
    """

    def __init__(self, proxies: str | Iterable[str] = NEARBY) -> None:
        names = [str(name).strip() for name in (proxies.split(",") if isinstance(proxies, str) else proxies) if name]
        self._all_peers = "*" in names
        self._unix_peers = self._all_peers or "unix:" in names
        try:
            self._networks = [_unmapped(ip_network(name)) for name in names if name not in ("*", "unix:")]
        except ValueError as cause:
            raise ConfigError(
                f"trusted_proxies: {cause}; it takes addresses such as 192.0.2.1, networks such as 10.0.0.0/8, unix: and *"
            ) from cause
        self._trusts = lru_cache(maxsize=1024)(self._is_listed)

    def find_origin(self, scope: Mapping[str, Any]) -> Origin:
        """Return where the request of an ASGI *scope* comes from.

        What stands in a field is read from the right, hop by hop, as far as the first address that is not trusted, or the first
        that is none, MAX_HOPS at most. Where there are X-Forwarded fields, Forwarded is not read: one proxy writes the one or the
        other, and what it does not write may be the client's.
        """
        client = scope.get("client")
        peer: str | None = (client and client[0]) or None
        if peer is not None and ":" in peer:
            peer = _parse_address(peer) or peer
        scheme: str = scope["scheme"]
        said: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            if name in _FIELDS:
                said.setdefault(name, []).append(value)
        if not said or not self._trusts_peer(peer):
            return Origin(peer, scheme, None)
        forwarded = said.pop(b"forwarded", [])
        if said:
            addresses, protos, hosts = (
                [value.strip() for value in _nearest(said.get(name, []))]
                for name in (b"x-forwarded-for", b"x-forwarded-proto", b"x-forwarded-host")
            )
        else:
            elements = [_parse(element) for element in _elements(_nearest(forwarded))]
            addresses, protos, hosts = ([element.get(name, "") for element in elements] for name in ("for", "proto", "host"))
        ip, hops = self._walk(peer, addresses)
        # The hop next to the client knows what it asked for; where it has not said so, the next hop may.
        proto = next((value.lower() for value in reversed(protos[:hops]) if value), "")
        host = next((value for value in reversed(hosts[:hops]) if value), "")
        return Origin(ip, proto if proto in ("http", "https") else scheme, host if parse_host(host) else None)

    def _walk(self, peer: str | None, addresses: list[str]) -> tuple[str | None, int]:
        """Return the first of *addresses*, the nearest first, at which trust ends, and how many were read to find it."""
        ip = peer
        for hops, text in enumerate(addresses, 1):
            address = _parse_address(text)
            if address is None:
                return ip, hops
            ip = address
            if not self._trusts(address):
                return ip, hops
        return ip, len(addresses)

    def _trusts_peer(self, peer: str | None) -> bool:
        return self._unix_peers if peer is None else self._all_peers or self._trusts(peer)

    def _is_listed(self, address: str) -> bool:
        try:
            ip = ip_address(address)
        except ValueError:
            return False
        return any(ip in network for network in self._networks)


def _unmapped(network: IPv4Network | IPv6Network) -> IPv4Network | IPv6Network:
    """Return the IPv4 network that an IPv4-mapped one stands for (RFC 4291, section 2.5.5.2), and any other as it is."""
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    return network if mapped is None or network.prefixlen < 96 else IPv4Network((mapped, network.prefixlen - 96))


@lru_cache(maxsize=1024)
def _parse_address(text: str) -> str | None:
    """Return an address without its brackets and port, or None where it is none, such as `unknown` (RFC 7239, section 6).

    An IPv4-mapped one is returned as the IPv4 address that it stands for.
    """
    match = _address(text)
    if match is None or match.lastindex is None:
        return None
    try:
        ip: IPv4Address | IPv6Address = ip_address(match[match.lastindex])
    except ValueError:
        return None
    return str((isinstance(ip, IPv6Address) and ip.ipv4_mapped) or ip)


def _nearest(values: list[bytes]) -> list[str]:
    """Return what stands between the commas of a field, the last first, MAX_HOPS at most; [""] for a field that is absent."""
    parts = b",".join(values).decode("latin-1").rsplit(",", MAX_HOPS)
    return [part if len(part) <= _MAX_HOP else "" for part in parts[: -MAX_HOPS - 1 : -1]]


def _elements(parts: list[str]) -> list[str]:
    """Return the elements of a Forwarded field that *parts* make, the last first.

    They are put together from the end, so that a quote which a client has left open can't swallow what a proxy has appended.
    """
    elements: list[str] = []
    element: list[str] = []
    quotes = 0
    for part in parts:
        element.append(part)
        quotes += _quotes(part).count('"')
        if quotes % 2 == 0:
            elements.append(",".join(reversed(element)))
            element, quotes = [], 0
    return elements


def _parse(element: str) -> dict[str, str]:
    """Return the pairs of an element, by their names in lower case; none at all where it is malformed."""
    pairs: dict[str, str] = {}
    position = 0
    while position < len(element):
        match = _pair(element, position)
        if match is None or (name := match[1].lower()) in pairs:
            return {}
        pairs[name] = match[3] if match[2] is None else _unescaped(r"\1", match[2])
        position = match.end()
    return pairs
