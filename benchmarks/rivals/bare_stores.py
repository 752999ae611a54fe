"""A bare callable with sessions in a store: one value per session, and one call of the store's own client per round trip.

It does the work of every session: it finds the record by a hash of the cookie's id, seals and opens the value, and acknowledges a
write when the store has it. Except in memory, a session expires a day after its last write: Redis expires it, and with other stores
a read compares the deadline beside the value with the clock. It has no guard against a concurrent logout, and no rotation of keys.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from hashlib import blake2b
from pathlib import Path
from struct import Struct
from threading import get_ident
from typing import Any, Final, Protocol

from benchmarks.rivals.bare import NO_STORE, USER, Message, Receive, Send, cipher, decode, encode, find_cookie, send_json

DAY: Final = 86_400
_EXPIRES: Final = Struct("d")


class Store(Protocol):
    """The part of a store's client that the bare callable uses."""

    async def open(self) -> None: ...
    async def close(self) -> None: ...
    async def read(self, id: str) -> bytes | None: ...
    async def write(self, id: str, value: bytes) -> None: ...
    async def delete(self, id: str) -> None: ...


class MemoryStore:
    """A dict."""

    def __init__(self, place: str) -> None:
        self._values: dict[str, bytes] = {}

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def read(self, id: str) -> bytes | None:
        return self._values.get(id)

    async def write(self, id: str, value: bytes) -> None:
        self._values[id] = value

    async def delete(self, id: str) -> None:
        self._values.pop(id, None)


class RedisStore:
    """redis-py, one command per call."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def open(self) -> None:
        import redis.asyncio

        client: Any = redis.asyncio.Redis
        self._client = client.from_url(self._url)

    async def close(self) -> None:
        await self._client.aclose()

    async def read(self, id: str) -> bytes | None:
        found: dict[bytes, bytes] = await self._client.hgetall("bare:" + id)
        return found.get(b"user")

    async def write(self, id: str, value: bytes) -> None:
        await self._client.hset("bare:" + id, "user", value)
        await self._client.expire("bare:" + id, DAY)

    async def delete(self, id: str) -> None:
        await self._client.delete("bare:" + id)


class MongoDBStore:
    """pymongo, one command per call, as durable as the driver."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    async def open(self) -> None:
        from pymongo import AsyncMongoClient

        self._client: Any = AsyncMongoClient(self._uri, w="majority", journal=True, tz_aware=True)
        self._sessions = self._client["gaman_benchmark"]["bare"]
        await self._sessions.create_index("expires", expireAfterSeconds=0)

    async def close(self) -> None:
        await self._client.close()

    async def read(self, id: str) -> bytes | None:
        found: Any = await self._sessions.find_one({"_id": id})
        return bytes(found["user"]) if found and found["expires"] > datetime.now(UTC) else None

    async def write(self, id: str, value: bytes) -> None:
        expires = datetime.now(UTC) + timedelta(seconds=DAY)
        await self._sessions.update_one({"_id": id}, {"$set": {"user": value, "expires": expires}}, upsert=True)

    async def delete(self, id: str) -> None:
        await self._sessions.delete_one({"_id": id})


class SQLStore:
    """aiosqlite, one statement and commit per call, as durable as the driver."""

    def __init__(self, folder: str) -> None:
        self._file = Path(folder, "bare.db")

    async def open(self) -> None:
        import aiosqlite

        self._connection = await aiosqlite.connect(self._file, isolation_level=None)
        await self._connection.executescript("""
            PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;
            CREATE TABLE IF NOT EXISTS bare (id TEXT PRIMARY KEY, user BLOB, expires REAL);
            CREATE INDEX IF NOT EXISTS bare_expires ON bare (expires);
        """)

    async def close(self) -> None:
        await self._connection.close()

    async def read(self, id: str) -> bytes | None:
        query = "SELECT user FROM bare WHERE id = ? AND expires > ?"
        rows = [*await self._connection.execute_fetchall(query, (id, time.time()))]
        return bytes(rows[0][0]) if rows else None

    async def write(self, id: str, value: bytes) -> None:
        await self._connection.execute_fetchall("INSERT OR REPLACE INTO bare VALUES (?, ?, ?)", (id, value, time.time() + DAY))

    async def delete(self, id: str) -> None:
        await self._connection.execute_fetchall("DELETE FROM bare WHERE id = ?", (id,))


class FileStore:
    """One file per session, read and replaced in a thread, as durable as the driver."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder, "bare")

    async def open(self) -> None:
        self._folder.mkdir(exist_ok=True)

    async def close(self) -> None:
        pass

    async def read(self, id: str) -> bytes | None:
        try:
            content = await asyncio.to_thread((self._folder / id).read_bytes)
        except FileNotFoundError:
            return None
        (expires,) = _EXPIRES.unpack_from(content)
        return content[_EXPIRES.size :] if expires > time.time() else None

    async def write(self, id: str, value: bytes) -> None:
        await asyncio.to_thread(self._replace, id, _EXPIRES.pack(time.time() + DAY) + value)

    async def delete(self, id: str) -> None:
        await asyncio.to_thread(self._remove, id)

    def _replace(self, id: str, value: bytes) -> None:
        # Two requests of one session may write at the same time.
        temporary = self._folder / f"{id}.{get_ident()}"
        with temporary.open("wb") as file:
            file.write(value)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._folder / id)
        self._settle()

    def _remove(self, id: str) -> None:
        (self._folder / id).unlink(missing_ok=True)
        self._settle()

    def _settle(self) -> None:
        folder = os.open(self._folder, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


class BareCallable:
    """The ASGI application."""

    def __init__(self, store: Store) -> None:
        self._store = store
        # Sealing in memory protects nothing, because the key is in the same process.
        self._seal: Callable[[bytes], bytes] = bytes if isinstance(store, MemoryStore) else _seal
        self._open: Callable[[bytes], bytes] = bytes if isinstance(store, MemoryStore) else _open

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await self._store.open()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            await self._store.close()
            await send({"type": "lifespan.shutdown.complete"})
            return
        token = find_cookie(scope, b"session")
        id = token or os.urandom(32).hex().encode()
        match scope["path"]:
            case "/read" | "/load":
                await send_json(send, {"user": await self._read(id)}, *NO_STORE)
                return
            case "/write":
                await self._write(id, USER)
                response: Any = {"status": "logged in"}
            case "/read-write":
                await self._write(id, user := await self._read(id))
                response = {"user": user}
            case "/update":
                user = await self._read(id)
                user["visits"] = user.get("visits", 0) + 1
                await self._write(id, user)
                response = {"user": user}
            case _:  # "/regenerate"
                user, old, token, id = await self._read(id), id, None, os.urandom(32).hex().encode()
                await self._write(id, user)
                await self._store.delete(_hash(old))
                response = {"user": user}
        cookie = () if token else ((b"set-cookie", b"session=" + id + b"; Max-Age=86400; Path=/; Secure; HttpOnly; SameSite=Lax"),)
        await send_json(send, response, *NO_STORE, *cookie)

    async def _read(self, id: bytes) -> Any:
        stored = await self._store.read(_hash(id))
        return None if stored is None else decode(self._open(stored))

    async def _write(self, id: bytes, user: Any) -> None:
        await self._store.write(_hash(id), self._seal(encode(user)))


def _seal(value: bytes) -> bytes:
    nonce = os.urandom(12)
    return nonce + cipher.encrypt(nonce, value, b"user")


def _open(sealed: bytes) -> bytes:
    return cipher.decrypt(sealed[:12], sealed[12:], b"user")


def _hash(id: bytes) -> str:
    return blake2b(id, digest_size=32).hexdigest()


STORES: dict[str, Callable[[str], Store]] = {
    "memory": MemoryStore,
    "redis": RedisStore,
    "mongodb": MongoDBStore,
    "sql": SQLStore,
    "file": FileStore,
}
