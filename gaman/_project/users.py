"""The users: their names, and hashes of their passwords, in a SQLite file."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import sqlite3
from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path

from anyio import to_thread

FILE = Path(__file__).with_name("users.db")


async def create(name: str, password: str) -> bool:
    """Add a user; return False if the name is taken."""
    # In a thread, because a hash takes a tenth of a second, in which the server answers other requests.
    return await to_thread.run_sync(_create, name, password)


async def check(name: str, password: str) -> bool:
    """Return whether there is a user of this name with this password."""
    return await to_thread.run_sync(_check, name, password)


def _create(name: str, password: str) -> bool:
    salt = secrets.token_bytes(16)
    row = (name, salt, _hash(password, salt))
    with _database() as database:
        return database.execute("INSERT OR IGNORE INTO users VALUES (?, ?, ?)", row).rowcount == 1


def _check(name: str, password: str) -> bool:
    with _database() as database:
        row = database.execute("SELECT salt, hash FROM users WHERE name = ?", (name,)).fetchone()
    # An unknown name takes as long as a wrong password, so that the time tells nothing.
    salt, expected = row or (bytes(16), b"")
    return hmac.compare_digest(_hash(password, salt), expected)


def _hash(password: str, salt: bytes) -> bytes:
    # The cost that OWASP's Password Storage Cheat Sheet recommends for 16 MiB.
    return hashlib.scrypt(password.encode(), salt=salt, n=2**14, r=8, p=5)


@contextmanager
def _database() -> Generator[sqlite3.Connection]:
    with closing(sqlite3.connect(FILE)) as database, database:
        database.execute("CREATE TABLE IF NOT EXISTS users (name TEXT PRIMARY KEY, salt BLOB, hash BLOB)")
        yield database
