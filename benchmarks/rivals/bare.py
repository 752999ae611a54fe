"""Bare callables: hand-written ASGI callables that do the work of each case and nothing else."""

from __future__ import annotations

import os
import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from hashlib import blake2b
from typing import Any

import msgspec
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGI = Callable[[Message, Receive, Send], Awaitable[None]]

BARE = "bare callable"
BARE_NOTE = (
    "Bare callable: written by hand for the task, without a framework. Like the other frameworks, it opens the cookie of every "
    "request."
)
OTHERS = [f"/other/{i}/{{name}}" for i in range(50)], [f"/other/{i}/{{name}}" for i in range(50, 100)]
"""Paths of other routes, before and after the requested one."""
SECRET = "a secret for benchmarks, 32 bytes and more"
USER = {"id": 1, "name": "Angga", "email": "angga@example.com"}
SECOND_KEY = {"value": "dark"}
"""What a new visitor's session has beside the user."""

encode_json = msgspec.json.Encoder().encode
encode = msgspec.msgpack.Encoder().encode
decode = msgspec.msgpack.Decoder().decode
cipher = AESGCMSIV(bytes(range(32)))
_MAX_AGE = 86_400


async def send_json(send: Send, data: object, *headers: tuple[bytes, bytes]) -> None:
    body = encode_json(data)
    fields = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": 200, "headers": fields})
    await send({"type": "http.response.body", "body": body})


def find_cookie(scope: Message, name: bytes) -> bytes | None:
    for field, value in scope["headers"]:
        if field == b"cookie":
            for pair in value.split(b"; "):
                key, _, found = pair.partition(b"=")
                if key == name:
                    return bytes(found)
    return None


def _open(token: bytes) -> Any:
    raw = urlsafe_b64decode(token + b"=" * (-len(token) % 4))
    return decode(cipher.decrypt(raw[:12], raw[12:], b"session"))


def _seal(payload: object) -> bytes:
    nonce = os.urandom(12)
    return urlsafe_b64encode(nonce + cipher.encrypt(nonce, encode(payload), b"session")).rstrip(b"=")


_NOTHING: tuple[bytes, int, int, dict[str, bytes]] = (b"", 0, 0, {})
NO_STORE = ((b"cache-control", b"no-store"), (b"vary", b"Cookie"))


async def _json(scope: Message, send: Send) -> None:
    await send_json(send, {"message": "hello"})


async def _post(send: Send, user: str, post: str) -> None:
    await send_json(send, {"user": user, "post": post})


_routes = {("GET", "/json"): _json}


async def plain(scope: Message, receive: Receive, send: Send) -> None:
    handler = _routes.get((scope["method"], scope["path"]))
    if handler is not None:
        await handler(scope, send)
        return
    _, first, user, posts, post = scope["path"].split("/")
    if first == "users" and posts == "posts" and scope["method"] == "GET":
        await _post(send, user, post)


async def read_cookie(scope: Message, receive: Receive, send: Send) -> None:
    token = find_cookie(scope, b"session")
    _, _, expires, values = _open(token) if token else _NOTHING
    user = decode(values["user"]) if expires > time.time() else None
    await send_json(send, {"user": user}, *NO_STORE)


async def write_cookie(scope: Message, receive: Receive, send: Send) -> None:
    token = find_cookie(scope, b"session")
    id, created, expires, values = _open(token) if token else _NOTHING
    if (now := time.time()) >= expires:
        id, created, expires, values = os.urandom(16), int(now), int(now) + _MAX_AGE, {}
    values["user"] = encode(USER)
    await _send_cookie(send, (id, created, expires, values))


async def _send_cookie(send: Send, payload: object) -> None:
    cookie = b"session=" + _seal(payload) + b"; Max-Age=86400; Path=/; Secure; HttpOnly; SameSite=Lax"
    await send_json(send, {"status": "logged in"}, *NO_STORE, (b"set-cookie", cookie))


async def begin_cookie(scope: Message, receive: Receive, send: Send) -> None:
    """Begin a session with two keys."""
    now = int(time.time())
    values = {"user": encode(USER)}
    values |= {key: encode(value) for key, value in SECOND_KEY.items()}
    await _send_cookie(send, (os.urandom(16), now, now + _MAX_AGE, values))


class BareMemory:
    """Bare callables with sessions in memory: encoded values by the hash of the id; /fill adds the values of *extra*."""

    def __init__(self, extra: Mapping[str, object] = {}) -> None:
        self._sessions: dict[str, dict[str, bytes]] = {}
        self._extra = extra

    async def read(self, scope: Message, receive: Receive, send: Send) -> None:
        values = self._find(scope)
        await send_json(send, {"user": decode(values["user"]) if values else None}, *NO_STORE)

    async def size(self, scope: Message, receive: Receive, send: Send) -> None:
        values = self._find(scope)
        await send_json(send, {"size": len(decode(values["value"])) if values else 0}, *NO_STORE)

    async def write(self, scope: Message, receive: Receive, send: Send) -> None:
        values, cookie = self._find_or_begin(scope)
        values["user"] = encode(USER)
        await send_json(send, {"status": "logged in"}, *NO_STORE, *cookie)

    async def fill(self, scope: Message, receive: Receive, send: Send) -> None:
        values, cookie = self._find_or_begin(scope)
        values["user"] = encode(USER)
        for key, value in self._extra.items():
            values[key] = encode(value)
        await send_json(send, {"status": "logged in"}, *NO_STORE, *cookie)

    def _find(self, scope: Message) -> dict[str, bytes] | None:
        token = find_cookie(scope, b"session")
        return self._sessions.get(blake2b(token, digest_size=32).hexdigest()) if token else None

    def _find_or_begin(self, scope: Message) -> tuple[dict[str, bytes], tuple[tuple[bytes, bytes], ...]]:
        values = self._find(scope)
        if values is not None:
            return values, ()
        id = os.urandom(32).hex().encode()
        values = self._sessions[blake2b(id, digest_size=32).hexdigest()] = {}
        return values, ((b"set-cookie", b"session=" + id + b"; Max-Age=86400; Path=/; Secure; HttpOnly; SameSite=Lax"),)
