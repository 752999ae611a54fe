"""System calls of the file driver: each opens, writes or syncs one file or folder, and follows no link.

They call os.open() and its kind, because open() makes more system calls, and each of them releases the interpreter's lock.
"""

from __future__ import annotations

import errno
import math
import os
import stat
from contextlib import suppress
from typing import Final

# The errors of os.open() for a link, a folder or a socket in a file's place.
NOT_A_FILE: Final = (errno.ELOOP, errno.EMLINK, errno.EISDIR, errno.ENXIO)


class FileTooLarge(Exception):
    """The file has more bytes than read_file() was allowed to read."""


def read_file(path: str, max_size: float = math.inf) -> bytes:
    """Return the file's content, or b"" if *path* isn't a regular file; raise FileTooLarge for more bytes than *max_size*."""
    # O_NONBLOCK: a pipe without a writer would block.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            return b""
        if status.st_size > max_size:
            raise FileTooLarge
        return os.read(descriptor, status.st_size)
    finally:
        os.close(descriptor)


def write_file(path: str, content: bytes) -> None:
    """Write a new file and sync it; a file of that name is removed first."""
    try:
        descriptor = _open_to_write(path, os.O_EXCL)
    except FileExistsError:
        os.unlink(path)
        descriptor = _open_to_write(path, os.O_EXCL)
    try:
        # A disk that is nearly full writes a part, and fails at the next call.
        while content:
            content = content[os.write(descriptor, content) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def touch(folder: str, name: str, *missing: str) -> None:
    """Create an empty file unless it exists, and the folders *missing*, outermost first, if there is no *folder* yet."""
    path = os.path.join(folder, name)
    try:
        descriptor = _open_to_write(path)
    except FileNotFoundError:
        for each in missing:
            make_folder(each)
        descriptor = _open_to_write(path)
    os.close(descriptor)


def temporary(path: str) -> str:
    """Return where the file's next content is written before it replaces the file.

    A killed process may leave this file. The next write, or the session's removal, removes it.
    """
    return f"{path}.new"


def make_folder(path: str) -> None:
    """Create the folder, for this user only, unless it exists."""
    with suppress(FileExistsError):
        os.mkdir(path, 0o700)
        os.chmod(path, 0o700)
        sync(os.path.dirname(path))


def remove(path: str) -> bool:
    """Remove the file; return False if there is none."""
    try:
        os.unlink(path)
    except (FileNotFoundError, IsADirectoryError):
        return False
    return True


def sync(folder: str) -> None:
    """Sync the folder's entries to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _open_to_write(path: str, flags: int = 0) -> int:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | flags, 0o600)
    # The umask may have removed the owner's own permissions.
    os.fchmod(descriptor, 0o600)
    return descriptor
