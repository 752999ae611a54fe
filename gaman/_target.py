"""The path of a request's target (RFC 9112, section 3.2.1): the segments that routes match, and ctx.path, which joins them."""

from __future__ import annotations

import re
from collections.abc import Mapping, MutableMapping, Sequence
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

_PERCENT = ord("%")
_MAX_SEGMENTS = 1000
"""Segments of a path that is percent-encoded. More would take too long to decode."""
# Empty segments, `.` and `..`. No file name has a NUL.
_is_ambiguous = re.compile(r"(?:\A|/)\.{0,2}(?:/|\Z)|\0").search
_absolute = re.compile(rb"https?://([^/?#]*)(/.*)?", re.IGNORECASE | re.DOTALL).fullmatch


def split(path: str, raw_path: bytes | None, root_path: str | None) -> list[str] | None:
    """Return the decoded segments of the path below *root_path*, or None for a target that isn't a path.

    The arguments are from an ASGI scope. The empty segments between repeated slashes are left out. An empty last segment stands for
    a trailing slash.
    """
    if raw_path is None or _PERCENT not in raw_path:
        segments = path.split("/")
    elif raw_path.count(b"/") > _MAX_SEGMENTS:
        return None
    else:
        try:
            # Only the raw path distinguishes `%2F`, which is data, from a slash.
            segments = [unquote(part, errors="strict") for part in raw_path.decode("ascii").split("/")]
        except UnicodeDecodeError:
            return None
    if segments.pop(0) or not (segments or root_path):
        return None
    if "" in segments:
        segments = without_empty(segments, strict=True)
    if root_path:
        for root in _roots(root_path):
            if segments[: len(root)] == root:
                # Without the prefix, `/app/` is the root, which has no segments.
                below = segments[len(root) :]
                return below if below != [""] else []
    return segments


def without_empty(segments: Sequence[str], strict: bool) -> list[str]:
    """Return *segments* without empty ones. If *strict*, the last one stays, because it stands for a trailing slash."""
    named = [segment for segment in segments if segment]
    return [*named, ""] if strict and named and not segments[-1] else named


def has_one_spelling(segments: Sequence[str]) -> bool:
    """Return whether *segments* spell a path in the only way, without `.`, `..`, empty segments, slashes within one, and NUL.

    A guard would miss another spelling.
    """
    path = "/".join(segments)
    # A segment with an encoded slash adds one to the count.
    return not segments or (path.count("/") < len(segments) and _is_ambiguous(path) is None)


def path_of(scope: Mapping[str, Any]) -> str:
    """Return the path of an ASGI *scope* as routes see it: decoded, below root_path, with repeated slashes as one.

    A slash within a segment stays `%2F`, because it separates nothing. A target without a path is returned unchanged.
    """
    path: str = scope["path"]
    raw_path: bytes | None = scope.get("raw_path")
    root_path: str | None = scope.get("root_path")
    # Most paths need no splitting. This saves half a microsecond.
    if not root_path and "//" not in path and (raw_path is None or _PERCENT not in raw_path):
        return path
    segments = split(path, raw_path, root_path)
    if segments is not None:
        return "/" + "/".join([segment.replace("/", "%2F") for segment in segments])
    rewritten = in_origin_form(scope)
    return path if rewritten is None else path_of(rewritten)


def in_origin_form(scope: Mapping[str, Any]) -> MutableMapping[str, Any] | None:
    """Return *scope* with the path and the host of its target, if that is in absolute-form; None for another target.

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


# Saves a microsecond a request, because a server has one root_path.
@lru_cache(maxsize=16)
def _roots(root_path: str) -> tuple[list[str], ...]:
    """Return the segments of *root_path*, both unchanged and decoded, because servers may pass either."""
    return tuple([segment for segment in path.split("/") if segment] for path in (root_path, unquote(root_path)))
