"""Listening sockets: a TCP port, or a Unix socket with its file."""

from __future__ import annotations

import errno
import os
import socket
import stat
import sys
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager, suppress
from os import PathLike

from gaman.errors import ConfigError

if sys.platform != "win32":
    import fcntl

_BACKLOG = 2048
_MAX_WAIT = 1.0
"""Seconds for which the start waits for another process that locks the folder of a Unix socket."""
_files: dict[str, tuple[int, int]] = {}
"""The files of the Unix sockets that this process has bound, by their paths. Workers have none, so they remove none."""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on a TCP port; ConfigError says why it can't."""
    try:
        # min() prefers IPv4, where a name such as localhost has both.
        family, _, _, _, address = min(socket.getaddrinfo(host or " ", port, type=socket.SOCK_STREAM))
        return socket.create_server(address, family=family, backlog=_BACKLOG)
    except (socket.gaierror, UnicodeError, TypeError):
        raise ConfigError(
            f"host={host!r} isn't an address of this machine; 127.0.0.1 serves only this machine, 0.0.0.0 every network"
        ) from None
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(f"port {port} on {host} is taken; stop what listens there, or take another port") from None
        raise ConfigError(f"can't listen on {host}, port {port}: {os.strerror(error.errno or 0)}") from None


def listen_unix(path: str | PathLike[str]) -> socket.socket:
    """Return a socket that listens on *path*, where it replaces the socket of a server that has ended.

    Every user of the machine may connect, as to a port of 127.0.0.1; the permissions of the folder can limit that. ConfigError says
    why it can't listen, also for a *path* where a server listens or another kind of file is.
    """
    if sys.platform == "win32":
        raise ConfigError("uds= needs a system with Unix sockets, such as Linux or macOS")
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path) or "\0" in os.fspath(path):
        raise ConfigError(f"uds={path!r} isn't a path; give one such as '/run/shop/shop.sock'")
    # Absolute, because the program may change its working directory.
    path = os.path.abspath(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with _locking(os.path.dirname(path)):
            _remove_stale(path)
            # By the umask, because chmod() would follow a link that has replaced the socket.
            umask = os.umask(0o111)
            try:
                listener.bind(path)
            finally:
                os.umask(umask)
            listener.listen(_BACKLOG)
            _files[path] = _identify(path)
    except (OSError, ConfigError) as error:
        listener.close()
        if isinstance(error, OSError):
            # Python's own message about a long path has no number.
            raise ConfigError(f"can't listen on {path}: {error.strerror or error}") from None
        raise
    return listener


@contextmanager
def _locking(folder: str) -> Generator[None]:
    """Inside, no other server starts in *folder*: it would take a socket that is bound and doesn't listen yet for a stale one.

    Without the lock, two servers must start within microseconds for that. Where the folder can't be locked, the block runs without.
    """
    with ExitStack() as opened:
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            opened.callback(os.close, descriptor)
            deadline = time.monotonic() + _MAX_WAIT
            while time.monotonic() < deadline:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    # A server that starts, or another program, which may keep the lock.
                    time.sleep(0.05)
        yield


def _remove_stale(path: str) -> None:
    """Remove the socket at *path* if no server listens on it; ConfigError is raised if one does, and for another kind of file."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise ConfigError(f"uds={path!r} is a file, not a socket; take another path, or remove the file")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        # A server whose queue is full makes a client wait.
        client.settimeout(1)
        try:
            client.connect(path)
        except (ConnectionRefusedError, FileNotFoundError):
            with suppress(FileNotFoundError):
                os.unlink(path)
            return
        except OSError as error:
            if isinstance(error, PermissionError):
                raise
    raise ConfigError(f"a server listens on {path}; stop it, or take another path")


def name_of(listener: socket.socket, host: str, *, is_secure: bool) -> str:
    """Return where *listener* listens: a URL, or the path of a Unix socket after `unix:`."""
    name = listener.getsockname()
    if isinstance(name, str):
        return f"unix:{name}"
    return f"{'https' if is_secure else 'http'}://{f'[{host}]' if ':' in host else host}:{name[1]}"


def remove_path(listener: socket.socket) -> None:
    """Remove the file of a Unix socket, so that no client connects any more; do nothing for another socket."""
    if listener.fileno() >= 0:
        _remove(listener.getsockname())


@contextmanager
def removing(listener: socket.socket) -> Generator[None]:
    """Remove the file of a Unix socket after the block, if it is still there."""
    path = listener.getsockname()
    try:
        yield
    finally:
        _remove(path)


def _remove(path: object) -> None:
    if not isinstance(path, str) or (file := _files.pop(path, None)) is None:
        return
    with suppress(OSError):
        # Another server may listen there by now.
        if _identify(path) == file:
            os.unlink(path)


def _identify(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_dev, found.st_ino
