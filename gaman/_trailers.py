"""Trailers under plain uvicorn, which appends them to the fields of the head, and limits neither."""

from __future__ import annotations

import sys
from functools import wraps
from typing import Any

from gaman._headers import MAX_FIELDS


def drop_trailers() -> None:
    """Make uvicorn, if it serves this process, drop trailers (RFC 9110, section 6.5.1).

    An application can't drop them: when it is called, they may have arrived, and the list of fields doesn't say where the head
    ended. A proxy that checks the head doesn't check trailers, so a client could forge the fields in which the proxy names it.
    """
    module = sys.modules.get("uvicorn.protocols.http.httptools_impl")
    protocol: Any = getattr(module, "HttpToolsProtocol", None)
    if protocol is None or hasattr(protocol.on_header, "__wrapped__"):
        return
    append = protocol.on_header

    @wraps(append)
    def on_header(self: Any, name: bytes, value: bytes) -> None:
        # The scope has a method as soon as the head is complete.
        if "method" not in self.scope:
            # uvicorn answers an exception in here with 400.
            if len(self.headers) >= MAX_FIELDS:
                raise ValueError(f"a request has at most {MAX_FIELDS} fields")
            if name.lower() == b"host" and any(field[0] == b"host" for field in self.headers):
                raise ValueError("a request has one Host (RFC 9112, section 3.2)")
            append(self, name, value)

    protocol.on_header = on_header
