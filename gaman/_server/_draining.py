"""Draining: accepts every established connection before a listening socket is closed, because the close would reset it."""

from __future__ import annotations

import asyncio
import select
import socket
import struct
import sys
import time
from array import array
from collections.abc import Sequence
from contextlib import suppress
from typing import Final

from gaman._server._listeners import remove_path

_HANDSHAKE: Final = 0.1
"""Seconds for the TCP handshakes that have begun. Those of most clients take less."""
_MAX_DRAIN: Final = 1.0
"""Seconds after which a queue that still fills is abandoned, on systems that can't stop it from filling."""
_SO_ATTACH_FILTER: Final = 26
# Classic BPF (linux/filter.h): load the octet of TCP's flags, drop the segment if SYN is set, else accept all of it.
_DROP_SYN: Final = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFFFFFF))


def stop_handshakes(listeners: Sequence[socket.socket]) -> None:
    """Refuse new connections on *listeners*, in every process that shares them. Those that have begun can still be accepted.

    Closing the last copy of a listening socket resets the connections that the kernel has established and no process has accepted.
    Only Linux can stop new ones before the close; elsewhere, this does nothing.
    """
    if sys.platform == "linux":
        program = array("B", b"".join(struct.pack("HBBI", *line) for line in _DROP_SYN))
        # A struct sock_fprog, which the kernel copies.
        filter_ = struct.pack("HP", len(_DROP_SYN), program.buffer_info()[0])
        for listener in listeners:
            remove_path(listener)
            with suppress(OSError):
                listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filter_)


async def drain(listeners: Sequence[socket.socket]) -> None:
    """Wait until the event loop has accepted every connection that is queued on *listeners*."""
    if sys.platform != "win32":
        await asyncio.sleep(_HANDSHAKE)
        deadline = time.monotonic() + _MAX_DRAIN
        while _has_queued(listeners) and time.monotonic() < deadline:  # noqa: ASYNC110 - only the kernel knows
            await asyncio.sleep(0)  # one turn of the loop accepts one connection


def _has_queued(listeners: Sequence[socket.socket]) -> bool:
    queues = select.poll()
    for listener in listeners:
        # A retiring worker has closed it.
        if listener.fileno() >= 0:
            queues.register(listener, select.POLLIN)
    return any(events & select.POLLIN for _, events in queues.poll(0))
