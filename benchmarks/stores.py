"""Floors over a store: ASGI applications by hand that keep one sealed value a session, with one call of the store's client a trip.

A floor holds what any session must: it finds the session by a hash of the cookie's id, seals what it stores, opens what it reads,
and acknowledges a write when the store has it. It has no guard against a logout beside it and no rotation of keys.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from hashlib import blake2b
from pathlib import Path
from typing import Any, Protocol

from benchmarks.contenders import NO_STORE, USER, Message, Receive, Send, cipher, decode, encode, find_cookie, send_json


class Store(Protocol):
    """What a floor needs of a client."""

    async def open(self) -> None: ...
    async def close(self) -> None: ...
    async def read(self, id: str) -> bytes: ...
    async def write(self, id: str, value: bytes) -> None: ...


class MemoryStore:
    """A dict."""

    def __init__(self, place: str) -> None:
        self._values: dict[str, bytes] = {}

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def read(self, id: str) -> bytes:
        return self._values[id]

    async def write(self, id: str, value: bytes) -> None:
        self._values[id] = value


class RedisStore:
    """redis-py, a command a call."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def open(self) -> None:
        import redis.asyncio

        client: Any = redis.asyncio.Redis
        self._client = client.from_url(self._url)

    async def close(self) -> None:
        await self._client.aclose()

    async def read(self, id: str) -> bytes:
        found: dict[bytes, bytes] = await self._client.hgetall("floor:" + id)
        return found[b"user"]

    async def write(self, id: str, value: bytes) -> None:
        await self._client.hset("floor:" + id, "user", value)
        await self._client.expire("floor:" + id, 86_400)


class MongoDBStore:
    """pymongo, a command a call, as durable as the driver."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    async def open(self) -> None:
        from pymongo import AsyncMongoClient

        self._client: Any = AsyncMongoClient(self._uri, w="majority", journal=True)
        self._sessions = self._client["gaman_benchmark"]["floor"]

    async def close(self) -> None:
        await self._client.close()

    async def read(self, id: str) -> bytes:
        found: Any = await self._sessions.find_one({"_id": id})
        value: bytes = found["user"]
        return value

    async def write(self, id: str, value: bytes) -> None:
        await self._sessions.update_one({"_id": id}, {"$set": {"user": value}}, upsert=True)


class SQLStore:
    """aiosqlite, a statement a call, each committed by itself and as durable as the driver."""

    def __init__(self, folder: str) -> None:
        self._file = Path(folder, "floor.db")

    async def open(self) -> None:
        import aiosqlite

        self._connection = await aiosqlite.connect(self._file, isolation_level=None)
        await self._connection.executescript(
            "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; CREATE TABLE IF NOT EXISTS floor (id TEXT PRIMARY KEY, user BLOB)"
        )

    async def close(self) -> None:
        await self._connection.close()

    async def read(self, id: str) -> bytes:
        [(value,)] = await self._connection.execute_fetchall("SELECT user FROM floor WHERE id = ?", (id,))
        return bytes(value)

    async def write(self, id: str, value: bytes) -> None:
        await self._connection.execute_fetchall("INSERT OR REPLACE INTO floor VALUES (?, ?)", (id, value))


class FileStore:
    """A file a session, read and replaced in a thread, as durable as the driver."""

    def __init__(self, folder: str) -> None:
        self._folder = Path(folder, "floor")

    async def open(self) -> None:
        self._folder.mkdir(exist_ok=True)

    async def close(self) -> None:
        pass

    async def read(self, id: str) -> bytes:
        return await asyncio.to_thread((self._folder / id).read_bytes)

    async def write(self, id: str, value: bytes) -> None:
        await asyncio.to_thread(self._replace, id, value)

    def _replace(self, id: str, value: bytes) -> None:
        temporary = self._folder / f"{id}.new"
        with temporary.open("wb") as file:
            file.write(value)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self._folder / id)
        folder = os.open(self._folder, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


class Floor:
    """The ASGI application."""

    def __init__(self, store: Store) -> None:
        self._store = store

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
        name = blake2b(id, digest_size=32).hexdigest()
        if scope["path"] == "/read":
            sealed = await self._store.read(name)
            await send_json(send, {"user": decode(cipher.decrypt(sealed[:12], sealed[12:], b"user"))}, *NO_STORE)
            return
        nonce = os.urandom(12)
        await self._store.write(name, nonce + cipher.encrypt(nonce, encode(USER), b"user"))
        cookie = () if token else ((b"set-cookie", b"session=" + id + b"; Max-Age=86400; Path=/; Secure; HttpOnly; SameSite=Lax"),)
        await send_json(send, {"status": "logged in"}, *NO_STORE, *cookie)


STORES: dict[str, Callable[[str], Store]] = {
    "memory": MemoryStore,
    "redis": RedisStore,
    "mongodb": MongoDBStore,
    "sql": SQLStore,
    "file": FileStore,
}
