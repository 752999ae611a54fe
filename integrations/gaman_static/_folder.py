"""Folder: finds files and their compressed variants below a folder; reads the disk, so it is called in a thread."""

from __future__ import annotations

import errno
import mimetypes
import os
import stat

from gaman import ConfigError, HTTPError
from gaman_static._encodings import IDENTITY

_CODINGS = {"gzip": ".gz", "br": ".br"}
"""The content codings, the preferred one last, and the endings of their files."""
_ABSENT = {errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL, errno.EILSEQ}

# Python's own table. The system's is empty in small containers, and on Windows it can have .js as text/plain.
_TYPES = mimetypes.MimeTypes()
_TYPES.types_map[True].update({".js": "text/javascript", ".mjs": "text/javascript", ".map": "application/json"})
_TYPES.types_map[True].update({".webp": "image/webp", ".woff": "font/woff", ".woff2": "font/woff2", ".ttf": "font/ttf"})


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
        if not os.path.isdir(self.root):
            fix = "is a file; name its folder" if os.path.exists(self.root) else "doesn't exist; create it, or start elsewhere"
            raise ConfigError(f"static: the folder {self._folder!r}, which is {self.root!r}, {fix}")
        if fallback is not None and not self.find(f"/{fallback}"):
            raise ConfigError(f"static: the fallback {fallback!r} isn't a file in {self.root!r}; build it first, or name another")

    def find(self, path: str) -> dict[str, str] | None:
        """Return the names of the variants of the file at *path*, such as `/a/b.js`, by content coding, the preferred one first.

        A path with a slash at its end is that of the index below it. The dict is empty for a folder that has an index, and None is
        returned if there is none of them. HTTPError 503 is raised if the disk fails.
        """
        name = f"{path}index.html"[1:] if path.endswith("/") else path[1:]
        if self.is_hidden(path):
            return None
        if (status := self._stat(name)) is None:
            return {} if not path.endswith("/") and self._stat(os.path.join(name, "index.html")) else None
        # By size, because variants of one size could share an ETag. A variant from before the file's last change is stale.
        variants = {status.st_size: (IDENTITY, name)}
        for coding, ending in _CODINGS.items():
            other = self._stat(name + ending)
            if other is not None and int(other.st_mtime) >= int(status.st_mtime):
                variants.setdefault(other.st_size, (coding, name + ending))
        return dict(reversed(variants.values()))

    def is_hidden(self, path: str) -> bool:
        """Return whether a segment of *path* begins with a dot, holds a backslash or NUL, or is empty and not the last."""
        segments = path.split("/")[1:]
        if self._at_root and segments[:1] == [".well-known"]:
            segments = segments[1:]
        return not all(segments[:-1]) or any(segment[:1] == "." or "\\" in segment or "\0" in segment for segment in segments)

    def _stat(self, name: str) -> os.stat_result | None:
        """Return the status of the regular file *name*, or None if it is absent, unreadable or outside the folder."""
        try:
            status = os.stat(path := os.path.realpath(os.path.join(self.root, name)))
            is_file = path.startswith(os.path.join(self.root, "")) and stat.S_ISREG(status.st_mode)
            return status if is_file and os.access(path, os.R_OK) else None
        except (OSError, ValueError) as cause:
            if isinstance(cause, OSError) and cause.errno not in _ABSENT:
                raise HTTPError(503) from cause
            return None


def content_type(name: str) -> str:
    """Return the content type of the file *name*, by its ending."""
    # The slash keeps guess_type from reading a name such as `data:text/html,.png` as a URL.
    path = "/" + os.path.basename(name)
    guess = _TYPES.guess_type(path)
    kind, encoding = guess if any(guess) else mimetypes.guess_type(path)
    if kind is None or encoding is not None:
        return "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") else kind


def may_be_page(path: str) -> bool:
    """Return whether *path* may be a page's: it doesn't end like another kind of file, such as `.js`."""
    return _TYPES.guess_type("/" + os.path.basename(path)) in ((None, None), ("text/html", None))
