"""Paths: checks the file or folder that a driver is configured with, its parent folder and its permissions."""

from __future__ import annotations

import os
import re
import stat
import sys
from contextlib import suppress
from shlex import quote

from gaman.errors import ConfigError

if sys.platform != "win32":
    from pwd import getpwuid


# A drive of Windows has one letter.
_is_url = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/|(file|sqlite):").match


def expand(path: str, setting: str) -> str:
    """Return *path* with `~` or `~user` replaced by a home folder.

    ConfigError, which begins with *setting*: it is a URL, or the home folder is unknown.
    """
    if _is_url(path):
        # A URL may hold a password.
        raise ConfigError(f"{setting}=..., which is a URL; write a path on this machine, such as './sessions'")
    expanded = os.path.expanduser(path)
    if expanded.startswith("~"):
        raise ConfigError(
            f"{setting}={path!r}, but the home folder {path.partition(os.sep)[0]!r} isn't known; write the whole path"
        )
    return expanded


def make_parent(path: str, setting: str) -> None:
    """Create the parent folder of *path* if it is missing, for this user only. ConfigError: its parent is missing too.

    More than one missing folder is more likely a typing error, or a disk that isn't mounted.
    """
    parent = os.path.dirname(os.path.abspath(path))
    try:
        with suppress(FileExistsError):
            os.mkdir(parent, 0o700)
            # The umask may have removed the owner's permissions.
            os.chmod(parent, 0o700)
    except FileNotFoundError:
        missing = parent
        while not os.path.lexists(above := os.path.dirname(missing)):
            missing = above
        fix = f"correct the path, or run `mkdir -p {quote(parent)}`"
        raise ConfigError(f"{setting}, but there is no folder {missing!r}; {fix}") from None


def check_access(path: str, status: os.stat_result, setting: str, *, within: str | None = None) -> None:
    """Raise ConfigError, with the command that fixes it, if *path* belongs to another user, or its group or others may write to it.

    With *within*, the command fixes everything in that folder.
    """
    if sys.platform == "win32":
        return
    option, target = ("-R ", quote(within)) if within else ("", quote(path))
    if status.st_uid != (user := os.geteuid()):
        owner, own = _name(status.st_uid), _name(user)
        fix = f"run `chown {option}{own} {target}`, or start as {owner}"
        raise ConfigError(f"{setting}, but {path!r} belongs to the user {owner}, and this process runs as {own}; {fix}")
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        # A sticky folder, such as /tmp, is shared on purpose, so its permissions have to stay.
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
