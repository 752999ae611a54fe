"""TCP: system calls on a connection's socket, for what the transports of event loops don't offer."""

from __future__ import annotations

import asyncio
import select
import socket
import struct
import sys
from typing import Final, Literal, cast

if sys.platform == "linux":
    import fcntl
    import termios

_POLLRDHUP: Final = getattr(select, "POLLRDHUP", 0)
_MAX_KEEP_IDLE: Final = 32767
"""Seconds that Linux allows for TCP_KEEPIDLE."""


def address(name: object) -> tuple[str, int | None] | None:
    """Return a socket's name as ASGI has it: an address and a port, or the path of a Unix socket and None; None without a name."""
    if isinstance(name, tuple):
        host, port, *_ = cast("tuple[str, int]", name)
        return host, port
    return (name, None) if isinstance(name, str) and name else None


def keep_alive(transport: asyncio.Transport, seconds: float) -> None:
    """Probe a client that has been silent for *seconds*, so that TCP notices that it has gone (RFC 9293, section 3.8.4)."""
    connection = transport.get_extra_info("socket")
    if connection is not None and sys.platform == "linux" and isinstance(transport.get_extra_info("peername"), tuple):
        idle = max(1, int(min(seconds, _MAX_KEEP_IDLE)))
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, idle)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, max(1, idle // 3))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def count_unsent(transport: asyncio.Transport) -> int:
    """Return how many bytes written to *transport* the client hasn't acknowledged; outside Linux, how many the loop holds."""
    buffered = transport.get_write_buffer_size()
    if sys.platform != "linux":
        return buffered
    unacknowledged = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    return buffered + int.from_bytes(unacknowledged, sys.byteorder)


def client_state(transport: asyncio.Transport) -> Literal["open", "half-closed", "gone"] | None:
    """Return what the client has done to its side of the connection, or None on systems that can't tell without a read."""
    if not hasattr(select, "poll"):
        return None
    poll = select.poll()
    poll.register(transport.get_extra_info("socket").fileno(), _POLLRDHUP)
    events = sum(events for _, events in poll.poll(0))
    if events & (select.POLLERR | select.POLLHUP):
        return "gone"
    return "half-closed" if events else "open"


def is_secure(transport: asyncio.Transport) -> bool:
    """Return whether the connection has TLS, in which neither side can close only its own."""
    return transport.get_extra_info("sslcontext") is not None


def reset(transport: asyncio.Transport) -> None:
    """Close the connection with a reset, which discards what the client hasn't received."""
    transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    transport.abort()
