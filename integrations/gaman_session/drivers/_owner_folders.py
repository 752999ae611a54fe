"""The owners' index of the file driver: a folder for each owner, with an empty file named by the id of each session."""

from __future__ import annotations

import os
import re
from contextlib import suppress
from hashlib import blake2b
from typing import Final

from gaman_session._rules import revoked_at, still_counts
from gaman_session.drivers._disk import make_folder, read_file, remove, sync, temporary, touch, write_file

ID: Final = re.compile(r"[0-9a-f]{64}")
# In an owner's folder: the time when all of the owner's sessions were ended.
_REVOKED: Final = ".ended"


def owner_hash(owner: str) -> str:
    """Return the name of the owner's folder."""
    return blake2b(owner.encode(), digest_size=32).hexdigest()


def ids_in(folder: str) -> list[str]:
    """Return the names in *folder* that are ids; none if there is no folder."""
    try:
        return [name for name in os.listdir(folder) if ID.fullmatch(name)]
    except FileNotFoundError:
        return []


class OwnerFolders:
    """The folders `<two digits>/<hash of the owner>` in one folder. A change of one needs the lock of its parent."""

    def __init__(self, folder: str) -> None:
        self.folder = folder

    def path(self, owner: str) -> str:
        """Return the owner's folder."""
        return self.path_of(owner_hash(owner))

    def path_of(self, hash: str) -> str:
        """Return the folder of the owner with that *hash*."""
        return os.path.join(self.folder, hash[:2], hash)

    def lock_of(self, owner: str) -> str:
        """Return the folder whose lock is held while the owner's folder changes."""
        return os.path.join(self.folder, owner_hash(owner)[:2])

    def add(self, owner: str, id: str) -> str:
        """Add the session to the owner's folder; return the folder, which the caller syncs."""
        folder = self.path(owner)
        touch(folder, id, folder)
        return folder

    def remove(self, owner: str, id: str) -> None:
        """Remove the session from the owner's folder."""
        remove(os.path.join(self.path(owner), id))

    def ids(self, owner: str) -> list[str]:
        """Return the ids in the owner's folder. Some of these sessions may have ended, or changed their owner."""
        return ids_in(self.path(owner))

    def revoked(self, owner: str) -> float | None:
        """Return when all of the owner's sessions were ended, or None if that isn't stored."""
        return _revoked(self.path(owner))

    def revoke(self, owner: str, now: float) -> None:
        """Store that all of the owner's sessions are ended *now*."""
        folder = self.path(owner)
        path = os.path.join(folder, _REVOKED)
        make_folder(folder)
        write_file(temporary(path), repr(revoked_at(_revoked(folder), now)).encode())
        os.replace(temporary(path), path)
        sync(folder)

    def tidy(self, hash: str, now: float) -> None:
        """Remove the owner's folder if it is empty, or has only a time that no longer counts."""
        folder = self.path_of(hash)
        if not still_counts(_revoked(folder), now):
            for name in (_REVOKED, temporary(_REVOKED)):
                remove(os.path.join(folder, name))
        with suppress(OSError):
            os.rmdir(folder)


def _revoked(folder: str) -> float | None:
    try:
        return float(read_file(os.path.join(folder, _REVOKED)))
    except (FileNotFoundError, ValueError):
        return None
