"""What does it cost to seal a session, and to open it: so that nobody else can write it, or read it?

gaman seals with AES-256-GCM-SIV, which a repeated nonce does not break; the floor is AES-256-GCM as it comes, which one does.
"""

from __future__ import annotations

import json
import os
import time
from base64 import b64decode, b64encode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from importlib import import_module
from importlib.metadata import version
from typing import Any

from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESGCMSIV

from benchmarks.contenders import SECRET, USER, decode, encode
from benchmarks.harness import BEST_PEER, Case, Contender, Goal, Missing, Plan, Question, contenders, timed_call
from gaman.session import session
from gaman_session._sealing import Keyring, new_id

AES_GCM = AESGCM(bytes(range(32)))
AES_GCM_SIV = AESGCMSIV(bytes(range(32)))
FERNET = Fernet(urlsafe_b64encode(bytes(range(32))))
FLOOR = "bare AES-GCM"
SIV = "bare AES-GCM-SIV"
LENGTHS = (100, 1000, 10_000)
Call = Callable[[Any], Any]


def with_nonce(cipher: AESGCM | AESGCMSIV) -> tuple[Call, Call]:
    """Return how to seal and how to open with a bare *cipher*."""

    def seal(data: bytes) -> bytes:
        nonce = os.urandom(12)
        return nonce + cipher.encrypt(nonce, data, b"session")

    def unseal(sealed: bytes) -> bytes:
        return cipher.decrypt(sealed[:12], sealed[12:], b"session")

    return seal, unseal


def in_base64(seal: Call, unseal: Call) -> tuple[Call, Call]:
    """Return the same for a cookie, which holds text."""

    def seal_text(data: bytes) -> str:
        return urlsafe_b64encode(seal(data)).decode()

    def unseal_text(token: str) -> Any:
        return unseal(urlsafe_b64decode(token))

    return seal_text, unseal_text


def in_msgpack(seal: Call, unseal: Call) -> tuple[Call, Call]:
    """Return the same for a session: a dict, with the time at which it is over."""

    def write(values: dict[str, Any]) -> Any:
        return seal(encode((time.time() + 86_400, values)))

    def read(sealed: Any) -> Any:
        expires, values = decode(unseal(sealed))
        return values if expires > time.time() else None

    return write, read
