"""Files as representations: found below a root, validated, and cut into ranges (RFC 9110, sections 8.8, 13 and 14)."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import AsyncGenerator, Mapping, MutableMapping
from email.utils import formatdate, parsedate_to_datetime
from mimetypes import guess_type
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import anyio

from gaman._headers import Headers, RawHeaders, encode_value
from gaman.errors import HTTPError

_CHUNK = 1 << 16
_range = re.compile(r"bytes=[ \t]*(\d{0,19})-(\d{0,19})[ \t]*", re.IGNORECASE).fullmatch
_etags = re.compile(r'(W/)?("[^"]*")').findall


class File(NamedTuple):
    """A regular file as it was when it was found; *size* in bytes."""

    path: Path
    size: int
    modified_ns: int
    content_type: str

    def validators(self) -> Mapping[str, str]:
        return {
            "etag": f'"{self.modified_ns:x}-{self.size:x}"',
            "last-modified": formatdate(self.modified_ns // 1_000_000_000, usegmt=True),
            "accept-ranges": "bytes",
        }


def find(path: str | os.PathLike[str], root: str | os.PathLike[str] | None) -> File:
    """Return the file at *path*, below *root* where that is given; HTTPError 404 where there is none to show."""
    try:
        if root is None:
            found = Path(path)
        else:
            base = Path(root).resolve()
            found = (base / os.fspath(path).lstrip("/\\")).resolve()
            if not found.is_relative_to(base):
                raise HTTPError(404)
        status = found.stat()
    except (OSError, ValueError, RuntimeError) as cause:
        # ValueError is a NUL in the name, RuntimeError a loop of links.
        raise HTTPError(404) from cause
    if not stat.S_ISREG(status.st_mode):
        raise HTTPError(404)
    kind, encoding = guess_type(found.name)
    if kind is None or encoding is not None:
        kind = "application/octet-stream"
    elif kind.startswith("text/"):
        kind += "; charset=utf-8"
    return File(found, status.st_size, status.st_mtime_ns, kind)


def attachment(name: str) -> str:
    """Return a Content-Disposition that has the browser save under *name* (RFC 6266)."""
    plain = re.sub(r'[^\x20-\x7e]|["\\%]', "_", name)
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name, safe='')}"


def select(file: File, status: int, own: Headers, scope: MutableMapping[str, Any]) -> tuple[int, int, int, RawHeaders]:
    """Return the status, first byte, length and further fields with which to answer *scope* about *file*."""
    whole: RawHeaders = [(b"content-length", b"%d" % file.size)]
    if status != 200 or scope["method"] not in ("GET", "HEAD"):
        return status, 0, file.size, whole
    asked = Headers(scope["headers"])
    etag, modified = own.get("etag", ""), own.get("last-modified", "")
    # The order is that of RFC 9110, section 13.2.2.
    if (match := asked.get("if-match")) is not None:
        if match.strip() != "*" and etag not in _tags(asked.getall("if-match"), strong=True):
            return 412, 0, 0, [(b"content-length", b"0")]
    elif _time(modified) > _time(asked.get("if-unmodified-since"), later=True):
        return 412, 0, 0, [(b"content-length", b"0")]
    if (none_match := asked.get("if-none-match")) is not None:
        if none_match.strip() == "*" or etag.removeprefix("W/") in _tags(asked.getall("if-none-match")):
            return 304, 0, 0, []
    elif _time(modified, later=True) <= _time(asked.get("if-modified-since")):
        return 304, 0, 0, []
    if scope["method"] != "GET" or (wanted := _range(asked.get("range", ""))) is None:
        return 200, 0, file.size, whole
    # A weak tag is equal to none, not even to itself (RFC 9110, section 13.1.5).
    if (condition := asked.get("if-range")) is not None and condition.strip() not in {modified, *_tags([etag], strong=True)}:
        return 200, 0, file.size, whole
    start, end = wanted.groups()
    if not start and not end:
        return 200, 0, file.size, whole
    first = int(start) if start else max(file.size - int(end), 0)
    last = min(int(end), file.size - 1) if start and end else file.size - 1
    if start and end and int(end) < int(start):
        return 200, 0, file.size, whole
    if first >= file.size or (not start and int(end) == 0):
        return 416, 0, 0, [(b"content-range", b"bytes */%d" % file.size), (b"content-length", b"0")]
    length = last - first + 1
    content_range = encode_value(f"bytes {first}-{last}/{file.size}")
    return 206, first, length, [(b"content-range", content_range), (b"content-length", b"%d" % length)]


async def read(opened: anyio.AsyncFile[bytes], first: int, length: int) -> AsyncGenerator[bytes, None]:
    """Yield *length* bytes from *first* on; OSError where the file has become shorter, so that the answer breaks off."""
    await opened.seek(first)
    while length > 0:
        chunk = await opened.read(min(_CHUNK, length))
        if not chunk:
            raise OSError(f"{opened.name!r} became shorter while it was sent")
        length -= len(chunk)
        yield chunk


def _tags(values: list[str], *, strong: bool = False) -> set[str]:
    """Return the entity tags in *values*, without the mark of the weak ones, or only those that have none."""
    return {tag for value in values for weak, tag in _etags(value) if not (weak and strong)}


def _time(value: str | None, *, later: bool = False) -> float:
    """Return an HTTP date in seconds; where there is none, before or after all that there are, so that no condition holds."""
    try:
        if value:
            return parsedate_to_datetime(value).timestamp()
    except (ValueError, TypeError, OverflowError):
        pass
    return float("inf") if later else float("-inf")
