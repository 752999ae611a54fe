"""Expiry markers of the file driver: empty files named by deadlines, so that a purge finds what has expired and reads nothing else.

A marker is `due/<hour>/<minute>/<deadline>.<id>`, or `<deadline>.<hash>.owner` for an owner's folder. The hours and minutes keep a
purge cheap if nothing has expired: it reads few folders and few markers.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Final, NamedTuple

from gaman_session.drivers._disk import make_folder, touch

_NAME: Final = re.compile(r"([0-9]+(?:\.[0-9]+)?)\.([0-9a-f]{64})(\.owner)?")


class Marker(NamedTuple):
    """A marker whose deadline has passed."""

    path: str
    id: str
    """A session's id, or the name of an owner's folder."""
    is_owner: bool


class ExpiryMarkers:
    """The markers below one folder."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def mark(self, id: str, deadline: float, *, is_owner: bool = False) -> None:
        """Let find() return the session, or the owner's folder, once *deadline* has passed."""
        hour = os.path.join(self.folder, str(int(deadline // 3600)))
        minute = os.path.join(hour, str(int(deadline // 60)))
        # Not synced: if a power failure loses a marker, its file stays on the disk but is never served after its deadline.
        touch(minute, f"{deadline}.{id}{'.owner' if is_owner else ''}", self.folder, hour, minute)

    def find(self, now: float) -> Iterator[Marker]:
        """Yield the markers whose deadline has passed, minute by minute."""
        make_folder(self.folder)
        for hour in _numbered_up_to(now // 3600, self.folder):
            for minute in _numbered_up_to(now // 60, hour):
                with suppress(FileNotFoundError, NotADirectoryError), os.scandir(minute) as entries:
                    for entry in entries:
                        match = _NAME.fullmatch(entry.name)
                        if match and float(match[1]) <= now:
                            yield Marker(entry.path, match[2], match[3] is not None)

    def remove_folders(self, before: float) -> None:
        """Remove the empty folders of all times before *before*.

        Choose it long enough ago that no process whose clock is a little behind still adds markers there.
        """
        minutes = [
            minute for hour in _numbered_up_to(before // 3600, self.folder) for minute in _numbered_up_to(before // 60 - 1, hour)
        ]
        for folder in (*minutes, *_numbered_up_to(before // 3600 - 1, self.folder)):
            with suppress(OSError):
                os.rmdir(folder)


def _numbered_up_to(number: float, folder: str) -> list[str]:
    """Return the entries of *folder* that are named by a number up to *number*, in order."""
    try:
        numbers = [int(name) for name in os.listdir(folder) if name.isdecimal()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [os.path.join(folder, str(each)) for each in sorted(numbers) if each <= number]
