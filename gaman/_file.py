"""Files as representations: opened below a root, validated, and cut into ranges (RFC 9110, sections 8.8, 13 and 14)."""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
import time
from collections.abc import AsyncGenerator, Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from functools import lru_cache
from io import FileIO
from mimetypes import guess_type
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import anyio

from gaman._headers import Headers, RawHeaders, encode_value
from gaman._tracebacks import place_of_caller
from gaman.errors import ResultError

logger = logging.getLogger("gaman")

_CHUNK = 1 << 16
_MAX_PATH = 4095
"""In bytes, the limit of Linux."""
_MAX_DATE_AGE = 2
"""In seconds, of the Date field: servers update it about once a second."""
_NOT_NAMES = frozenset({"", ".", ".."})
_CAN_WALK = os.open in os.supports_dir_fd
_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NO_WAIT = getattr(os, "O_NONBLOCK", 0)

# Errors that mean 404: the path names no file to send. For a link, FreeBSD has EMLINK instead of ELOOP. For octets that aren't
# UTF-8, macOS has EILSEQ.
_ABSENT = frozenset(
    {
        *(errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ),
        *(errno.EACCES, errno.EPERM, errno.ELOOP, errno.EMLINK, errno.ENXIO, errno.ENODEV),
    }
)

_is_hidden = re.compile(r"(?:\A|[/\\])\.").search
_range = re.compile(r"bytes=[ \t]*(\d{0,19})-(\d{0,19})[ \t]*", re.IGNORECASE).fullmatch
_etags = re.compile(r'(W/)?("[^"]*")').findall

_MONTHS = ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"]
_DAY, _MONTH, _TIME = "(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun)", f"(?P<month>{'|'.join(_MONTHS)})", r"(?P<time>\d\d:\d\d:\d\d)"
# RFC 9110, section 5.6.7: IMF-fixdate and the obsolete formats of RFC 850 and asctime(), all of them in UTC.
_dates = [
    re.compile(pattern, re.ASCII).fullmatch
    for pattern in (
        rf"{_DAY}, (?P<day>\d\d) {_MONTH} (?P<year>\d{{4}}) {_TIME} GMT",
        rf"(?:Mon|Tues|Wednes|Thurs|Fri|Satur|Sun)day, (?P<day>\d\d)-{_MONTH}-(?P<year>\d\d) {_TIME} GMT",
        rf"{_DAY} {_MONTH} (?P<day>[ \d]\d) {_TIME} (?P<year>\d{{4}})",
    )
]


class File(NamedTuple):
    """An open regular file, as it was when it was opened. *size* is in bytes; *modified* is in seconds, 0 if no date is known."""

    opened: FileIO
    size: int
    modified: int
    etag: str
    content_type: str

    def fields(self) -> Mapping[str, str]:
        """Return the header fields that describe the file."""
        fields = {
            "content-type": self.content_type,
            "etag": self.etag,
            "accept-ranges": "bytes",
            # Keeps browsers from guessing that an upload is an HTML page.
            "x-content-type-options": "nosniff",
        }
        if self.modified:
            from email.utils import formatdate  # noqa: PLC0415 - takes 4 ms to load, and only files need it

            # Must not be later than Date (RFC 9110, section 8.8.2.1).
            fields["last-modified"] = formatdate(min(self.modified, int(time.time()) - _MAX_DATE_AGE), usegmt=True)
        return fields


def find(name: str, root: str | os.PathLike[str] | None, *, hidden: bool) -> File:
    """Open the file *name*, below *root* if one is given; OSError or ValueError if that fails.

    is_absent() tells whether the error means 404. Call find() in a thread, because it reads the disk.
    """
    if len(os.fsencode(name)) > _MAX_PATH:
        raise ValueError("the path is too long")
    opener: Callable[[str, int], int] = _open
    if root is not None:
        if not hidden and _is_hidden(name):
            raise ValueError("a part of the path is hidden")
        name, opener = _resolve(os.path.realpath(root), name)
    # The caller closes it.
    opened = open(name, "rb", buffering=0, opener=opener)  # noqa: SIM115
    status = os.fstat(opened.fileno())
    if not stat.S_ISREG(status.st_mode):
        opened.close()
        raise ValueError(f"{name!r} is not a regular file")
    modified, stamp = status.st_mtime_ns // 1_000_000_000, status.st_mtime_ns
    if modified <= 1:
        # Reproducible builds date every file 0 or 1. Only the time of the last inode change distinguishes their versions.
        modified, stamp = 0, status.st_ctime_ns
    return File(opened, status.st_size, modified, f'"{stamp:x}-{status.st_size:x}"', _guess(name))


@lru_cache(maxsize=1024)
def warn_of_missing(root: str) -> None:
    """Log once that there is no folder *root*, with the line of the user's code that is calling."""
    if not os.path.isdir(root):
        logger.warning(
            "Response.file(root=%r): there is no folder %r, so every path is 404 (logged once)%s",
            root,
            os.path.abspath(root),
            place_of_caller(),
        )


def is_absent(error: OSError | ValueError) -> bool:
    """Return whether an *error* of find() means that there is no file to send. Any other means that the system failed."""
    return not isinstance(error, OSError) or error.errno in _ABSENT


def _resolve(base: str, name: str) -> tuple[str, Callable[[str, int], int]]:
    """Return the path of *name* below *base* with links resolved, and its opener; ValueError if it leads out of *base*."""
    segments = name.replace(os.sep, "/").removeprefix("/").split("/")
    # A file has one spelling, because routes compare segments literally: a guard on `/private/` must see every path below it.
    if not _NOT_NAMES.isdisjoint(segments):
        raise ValueError("a segment of the path is empty, `.` or `..`")
    found = os.path.realpath(os.path.join(base, *segments))
    *folders, last = Path(found).relative_to(base).parts
    if not _CAN_WALK:
        return found, _open

    def walk(_: str, flags: int) -> int:
        # Links are refused: a link found now was created after the path was resolved, and may lead anywhere.
        folder = os.open(base, _FOLDER)
        try:
            for step in folders:
                below = os.open(step, _FOLDER | _NO_LINK, dir_fd=folder)
                os.close(folder)
                folder = below
            return _open(last, flags | _NO_LINK, folder)
        finally:
            os.close(folder)

    return found, walk


def _open(name: str, flags: int, folder: int | None = None) -> int:
    # Checked first, because opening a pipe or a device may block or disturb another program.
    if not stat.S_ISREG(os.stat(name, dir_fd=folder, follow_symlinks=not flags & _NO_LINK).st_mode):
        raise ValueError(f"{name!r} is not a regular file")
    return os.open(name, flags | _NO_WAIT, dir_fd=folder)


def _guess(path: str) -> str:
    # The slash keeps guess_type from reading a name such as `data:text/html,.png` as a URL.
    kind, encoding = guess_type("/" + os.path.basename(path))
    if kind is None or encoding is not None:
        return "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


def attachment(name: str) -> str:
    """Return a Content-Disposition that makes the browser save the file as *name* (RFC 6266)."""
    plain = re.sub(r'[^\x20-\x7e]|["\\%]', "_", name)
    # Python decodes octets that aren't UTF-8 into surrogates, which can't be encoded.
    encoded = quote(re.sub("[\ud800-\udfff]", "\ufffd", name), safe="")
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}"


def select(file: File, status: int, headers: Headers, scope: MutableMapping[str, Any]) -> tuple[int, int, int, RawHeaders]:
    """Return the status, first byte, length and further fields of the response to the request *scope*.

    The response has *status* and *headers* until the request's conditions and range are evaluated.
    """
    whole: RawHeaders = [(b"content-length", b"%d" % file.size)]
    if status != 200 or scope["method"] not in ("GET", "HEAD"):
        return status, 0, file.size, whole
    requested = Headers(scope["headers"])
    etag, modified = headers.get("etag", ""), headers.get("last-modified", "")
    # In the order of RFC 9110, section 13.2.2.
    if (match := requested.get("if-match")) is not None:
        if match.strip() != "*" and etag not in _tags(requested.getall("if-match"), strong=True):
            return 412, 0, 0, [(b"content-length", b"0")]
    elif _time([modified]) > _time(requested.getall("if-unmodified-since"), later=True):
        return 412, 0, 0, [(b"content-length", b"0")]
    if (none_match := requested.get("if-none-match")) is not None:
        if none_match.strip() == "*" or etag.removeprefix("W/") in _tags(requested.getall("if-none-match")):
            return 304, 0, 0, []
    elif _time([modified], later=True) <= _time(requested.getall("if-modified-since")):
        return 304, 0, 0, []
    if scope["method"] != "GET" or (wanted := _range(requested.get("range", ""))) is None:
        return 200, 0, file.size, whole
    # A weak tag equals no tag, not even itself (RFC 9110, section 13.1.5).
    if (condition := requested.get("if-range")) is not None and condition.strip() not in {
        modified or None,
        *_tags([etag], strong=True),
    }:
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


async def read(file: File, first: int, length: int) -> AsyncGenerator[bytes, None]:
    """Yield *length* bytes, beginning with *first*; ResultError if the file can't be read that far, which ends the response."""
    opened = anyio.wrap_file(file.opened)
    file.opened.seek(first)
    while length > 0:
        try:
            chunk = await opened.read(min(_CHUNK, length))
        except OSError as cause:
            raise ResultError(f"{opened.name!r} can't be read to its end") from cause
        if not chunk:
            raise ResultError(f"{opened.name!r} became shorter while it was sent")
        length -= len(chunk)
        yield chunk


def _tags(values: list[str], *, strong: bool = False) -> set[str]:
    """Return the entity tags in *values* without the prefix `W/`. If *strong*, leave out weak ones."""
    return {tag for value in values for weak, tag in _etags(value) if not (weak and strong)}


def _time(values: list[str], *, later: bool = False) -> float:
    """Return an HTTP-date in seconds. If it is missing or invalid, return a time with which no condition holds."""
    try:
        [value] = values
        [found] = filter(None, (match(value.strip(" \t")) for match in _dates))
        hour, minute, second = map(int, found["time"].split(":"))
        year, month, day = int(found["year"]), _MONTHS.index(found["month"]) + 1, int(found["day"])
        if len(found["year"]) == 2:
            # The latest year with these digits that is at most 50 years in the future (RFC 9110, section 5.6.7).
            now = datetime.now(UTC)
            year += now.year - now.year % 100
            if (year, month, day, hour, minute, second) > (now.year + 50, *now.timetuple()[1:6]):
                year -= 100
        date = datetime(year, month, day, hour, minute, tzinfo=UTC)
        # 60 is a leap second.
        if second <= 60:
            return date.timestamp() + second
    except ValueError:
        pass
    return float("inf") if later else float("-inf")
