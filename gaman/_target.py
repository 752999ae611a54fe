"""The path of a request's target (RFC 9112, section 3.2.1): its segments, which routes match, and ctx.path, made of the same."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

_PERCENT = ord("%")
_MAX_SEGMENTS = 1000
"""A path that has more, and some of them encoded, would take long to decode, one after the other."""
_absolute = re.compile(rb"https?://([^/?#]*)(/.*)?", re.IGNORECASE | re.DOTALL).fullmatch


def split(path: str, raw_path: bytes | None, root_path: str | None) -> list[str] | None:
    """Return the decoded segments of the path below *root_path*, all of an ASGI scope, or None for a target that isn't a path.

    Segments that repeated slashes leave empty aren't among them. A last one that is empty stands for a trailing slash.
    """
    if raw_path is None or _PERCENT not in raw_path:
        segments = path.split("/")
    elif raw_path.count(b"/") > _MAX_SEGMENTS:
        return None
    else:
        try:
            # Only the raw path tells `%2F`, which is data, from a slash.
            segments = [unquote(part, errors="strict") for part in raw_path.decode("ascii").split("/")]
        except UnicodeDecodeError:
            return None
    if segments.pop(0) or not (segments or root_path):
        return None
    if "" in segments:
        last = segments[-1]
        segments = [segment for segment in segments if segment]
        if segments and not last:
            segments.append("")
    if root_path:
        for root in _roots(root_path):
            if segments[: len(root)] == root:
                # Without the prefix, `/app/` is the root, which has no segments.
                below = segments[len(root) :]
                return below if below != [""] else []
    return segments


def path_of(scope: Mapping[str, Any]) -> str:
    """Return the path of an ASGI *scope* as routes see it: decoded, below root_path, with one slash where several were repeated.

    A slash within a segment stays `%2F`, because it separates nothing. A target that isn't a path is returned as it came.
    """
    path: str = scope["path"]
    raw_path: bytes | None = scope.get("raw_path")
    root_path: str | None = scope.get("root_path")
    if not root_path and "//" not in path and (raw_path is None or _PERCENT not in raw_path):
        return path
    segments = split(path, raw_path, root_path)
    return path if segments is None else "/" + "/".join([segment.replace("/", "%2F") for segment in segments])


def in_origin_form(scope: MutableMapping[str, Any]) -> MutableMapping[str, Any] | None:
    """Return an ASGI *scope* whose target is in absolute-form with its host as the Host field, or None for any other.

    Most servers do this themselves (RFC 9112, section 3.2.2).
    """
    raw_path: bytes = scope.get("raw_path") or b""
    match = _absolute(raw_path)
    if match is None:
        return None
    host, below = match.groups()
    below = below or b"/"
    headers = [(b"host", host), *(field for field in scope["headers"] if field[0] != b"host")]
    return {**scope, "raw_path": below, "path": unquote(below.decode("latin-1")), "headers": headers}


@lru_cache(maxsize=16)
def _roots(root_path: str) -> tuple[list[str], ...]:
    """Return the segments of *root_path*, as it is and decoded, because servers take either from their settings."""
    return tuple([segment for segment in path.split("/") if segment] for path in (root_path, unquote(root_path)))
