"""Paths: the file or folder that a user names for sessions on a disk, the folder around it, and which users may write to it."""

from __future__ import annotations

import os
import stat
import sys
from contextlib import suppress
from shlex import quote

from gaman.errors import ConfigError

if sys.platform != "win32":
    from pwd import getpwuid


def expand(path: str, setting: str) -> str:
    """Return *path* with a home folder in place of `~` or `~user`; ConfigError, which begins with *setting*, if none is known."""
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ConfigError(f"{setting}, but the home folder {path.partition(os.sep)[0]!r} isn't known; write the whole path")
    return expanded


def make_parent(path: str, setting: str) -> None:
    """Create the folder of *path* for this user only if it is missing. ConfigError names a missing folder above it.

    More than one missing folder is more likely a typing error, or a disk that isn't mounted.
    """
    parent = os.path.dirname(os.path.abspath(path))
    try:
        with suppress(FileExistsError):
            os.mkdir(parent, 0o700)
            # The umask may have taken the owner's own rights.
            os.chmod(parent, 0o700)
    except FileNotFoundError:
        missing = parent
        while not os.path.lexists(above := os.path.dirname(missing)):
            missing = above
        fix = f"correct the path, or run `mkdir -p {quote(parent)}`"
        raise ConfigError(f"{setting}, but there is no folder {missing!r}; {fix}") from None


def check_access(path: str, status: os.stat_result, setting: str, *, within: str | None = None) -> None:
    """Raise ConfigError with the command to run if *path* belongs to another user, or if its group or others may write to it.

    The command is for all that is *within* a folder, if that is given.
    """
    if sys.platform == "win32":
        return
    option, target = ("-R ", quote(within)) if within else ("", quote(path))
    if status.st_uid != (user := os.geteuid()):
        owner, own = _name(status.st_uid), _name(user)
        fix = f"run `chown {option}{own} {target}`, or start as {owner}"
        raise ConfigError(f"{setting}, but {path!r} belongs to the user {owner}, and this process runs as {own}; {fix}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        # A sticky folder, such as /tmp, is meant to be shared, and others need it as it is.
        is_sticky = status.st_mode & stat.S_ISVTX
        fix = (
            f"choose a folder in it, such as {os.path.join(path, 'sessions')!r}"
            if is_sticky
            else f"run `chmod {option}go-w {target}`"
        )
        raise ConfigError(f"{setting}, but other users may write to {path!r}; {fix}")


def _name(user: int) -> str:
    try:
        return getpwuid(user).pw_name
    except KeyError:
        return str(user)
