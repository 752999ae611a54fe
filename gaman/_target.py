"""The path of a request's target (RFC 9112, section 3.2.1): its segments, which routes match, and ctx.path, made of the same."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

_PERCENT = ord("%")


def split(path: str, raw_path: bytes | None, root_path: str | None) -> list[str] | None:
    """Return the decoded segments of the path below *root_path*, all of an ASGI scope, or None for a target that isn't a path.

    Segments that repeated slashes leave empty aren't among them. A last one that is empty stands for a trailing slash.
    """
    if raw_path is None or _PERCENT not in raw_path:
        segments = path.split("/")
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


@lru_cache(maxsize=16)
def _roots(root_path: str) -> tuple[list[str], ...]:
    """Return the segments of *root_path*, as it is and decoded, because servers take either from their settings."""
    return tuple([segment for segment in path.split("/") if segment] for path in (root_path, unquote(root_path)))
