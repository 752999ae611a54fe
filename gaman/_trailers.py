"""Trailers under plain uvicorn, whose protocol appends them to the fields of the head, which it does not limit."""

from __future__ import annotations

import sys
from functools import wraps
from typing import Any

from gaman._headers import MAX_FIELDS


def drop_trailers() -> None:
    """Have uvicorn, where it serves this process, drop trailers (RFC 9110, section 6.5.1).

    An application cannot: by its first line, both may have arrived, and the list of fields does not say where the head ended. A
    proxy that checks a head lets the same names pass in trailers, so a client could choose the address that the proxy reports.
    """
    module = sys.modules.get("uvicorn.protocols.http.httptools_impl")
    protocol: Any = getattr(module, "HttpToolsProtocol", None)
    if protocol is None or hasattr(protocol.on_header, "__wrapped__"):
        return
    append = protocol.on_header

    @wraps(append)
    def on_header(self: Any, name: bytes, value: bytes) -> None:
        # The method is known as soon as the head is complete.
        if "method" not in self.scope:
            # What is raised here, uvicorn answers with 400.
            if len(self.headers) >= MAX_FIELDS:
                raise ValueError(f"a request has at most {MAX_FIELDS} fields")
            if name.lower() == b"host" and any(field[0] == b"host" for field in self.headers):
                raise ValueError("a request has one Host (RFC 9112, section 3.2)")
            append(self, name, value)

    protocol.on_header = on_header
