"""Folder: finds files and their compressed variants below a folder; reads the disk, so it is called in a thread."""

from __future__ import annotations

import errno
import mimetypes
import os
import stat
from collections.abc import Mapping
from typing import NamedTuple

from gaman import ConfigError, HTTPError
from gaman_static._encodings import IDENTITY

_CODINGS = {"br": ".br", "gzip": ".gz"}
"""The content codings, the preferred one first, and the endings of their files."""
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EILSEQ}

# Python's own table. The system's is empty in small containers, and on Windows it can have .js as text/plain.
_TYPES = mimetypes.MimeTypes()
for _kind, _ending in (
    ("text/javascript", ".js"),
    ("text/javascript", ".mjs"),
    ("application/json", ".map"),
    ("image/webp", ".webp"),
    ("font/woff", ".woff"),
    ("font/woff2", ".woff2"),
    ("font/ttf", ".ttf"),
):
    _TYPES.add_type(_kind, _ending)


class Found(NamedTuple):
    """A file: its name, and the names of its variants by content coding. A folder with an index has no variants."""

    name: str
    variants: Mapping[str, str]


class Folder:
    """The files below *folder*. If it is served *at_root*, it may hold `.well-known` (RFC 8615)."""

    root: str
    """The folder with links resolved, from open() on."""

    def __init__(self, folder: str | os.PathLike[str], *, at_root: bool) -> None:
        self._folder = os.fspath(folder)
        self._at_root = at_root

    def open(self, fallback: str | None) -> None:
        """Resolve the folder; ConfigError unless it exists and has the file *fallback*, if one is named."""
        self.root = os.path.realpath(self._folder)
        if not os.path.exists(self.root):
            raise ConfigError(f"static: there is no folder {self.root!r}; create it, or start where {self._folder!r} is")
        if not os.path.isdir(self.root):
            raise ConfigError(f"static: {self.root!r} is a file; name the folder that it is in")
        if fallback is not None and ((found := self.find(f"/{fallback}")) is None or not found.variants):
            raise ConfigError(f"static: the fallback {fallback!r} isn't a file in {self.root!r}; build the site first, or rename it")

    def find(self, path: str) -> Found | None:
        """Return the file at *path*, such as `/a/b.js`; the index of a folder, for a slash at its end; or the folder, without one.

        None is returned if there is none of them, and HTTPError 503 is raised if the disk fails.
        """
        name = f"{path}index.html"[1:] if path.endswith("/") else path[1:]
        status = None if self.is_hidden(path) else self._stat(name)
        if status is None:
            return None
        if stat.S_ISDIR(status.st_mode):
            index = self._stat(os.path.join(name, "index.html"))
            has_index = index is not None and stat.S_ISREG(index.st_mode)
            return Found(name, {}) if has_index and not path.endswith("/") else None
        variants: dict[str, str] = {}
        sizes = {status.st_size}
        for coding, ending in _CODINGS.items():
            other = self._stat(name + ending)
            # A variant from before the file's last change is stale. Variants of one size could share an ETag.
            if other and int(other.st_mtime) >= int(status.st_mtime) and other.st_size not in sizes:
                variants[coding] = name + ending
                sizes.add(other.st_size)
        return Found(name, {**variants, IDENTITY: name})

    def is_hidden(self, path: str) -> bool:
        """Return whether a segment of *path* begins with a dot, holds a backslash, or is empty and not the last."""
        segments = path.split("/")[1:]
        if self._at_root and segments[:1] == [".well-known"]:
            del segments[0]
        return not all(segments[:-1]) or any(segment[:1] == "." or "\\" in segment for segment in segments)

    def _stat(self, name: str) -> os.stat_result | None:
        """Return the status of the file or folder *name*, or None if it is absent, unreadable or outside this folder."""
        try:
            path = os.path.realpath(os.path.join(self.root, name))
            status = os.stat(path)
            is_inside = os.path.join(path, "").startswith(os.path.join(self.root, ""))
            is_sendable = stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)
            return status if is_inside and is_sendable and os.access(path, os.R_OK) else None
        except (OSError, ValueError) as cause:
            if isinstance(cause, OSError) and cause.errno not in _ABSENT:
                raise HTTPError(503) from cause
            return None


def content_type(name: str) -> str:
    """Return the content type of the file *name*, by its ending."""
    # The slash keeps guess_type from reading a name such as `data:text/html,.png` as a URL.
    path = "/" + os.path.basename(name)
    kind, encoding = _TYPES.guess_type(path)
    if kind is None and encoding is None:
        kind, encoding = mimetypes.guess_type(path)
    if kind is None or encoding is not None:
        return "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


def may_be_page(path: str) -> bool:
    """Return whether *path* may be a page's: it doesn't end like another kind of file, such as `.js`."""
    return _TYPES.guess_type("/" + os.path.basename(path)) in ((None, None), ("text/html", None))
