"""The cost of sealing a session and of opening it.

gaman seals with AES-256-GCM-SIV, which tolerates a repeated nonce. The baseline is plain AES-256-GCM, which doesn't.
"""

from __future__ import annotations

import json
import os
import time
from base64 import b64decode, b64encode, urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from functools import partial
from importlib import import_module
from importlib.metadata import version
from typing import Any

from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESGCMSIV

from benchmarks.harness import Case, Contender, Entered, Missing, Plan, Question, contenders, line_of, timed_call
from benchmarks.rivals.bare import SECRET, USER, decode, encode
from gaman.session import session
from gaman_session._sealing import Keyring, new_raw_id

AES_GCM = AESGCM(bytes(range(32)))
AES_GCM_SIV = AESGCMSIV(bytes(range(32)))
FERNET = Fernet(urlsafe_b64encode(bytes(range(32))))
BASELINE = "bare AES-GCM"
SIV = "bare AES-GCM-SIV"
LENGTHS = (100, 1000, 10_000)
Call = Callable[[Any], Any]


def with_nonce(cipher: AESGCM | AESGCMSIV) -> tuple[Call, Call]:
    """Return functions that seal and open with a bare *cipher*."""

    def seal(data: bytes) -> bytes:
        nonce = os.urandom(12)
        return nonce + cipher.encrypt(nonce, data, b"session")

    def unseal(sealed: bytes) -> bytes:
        return cipher.decrypt(sealed[:12], sealed[12:], b"session")

    return seal, unseal


def in_base64(seal: Call, unseal: Call) -> tuple[Call, Call]:
    """Return the same functions for a cookie, which contains text."""

    def seal_text(data: bytes) -> str:
        return urlsafe_b64encode(seal(data)).decode()

    def unseal_text(token: str) -> Any:
        return unseal(urlsafe_b64decode(token))

    return seal_text, unseal_text


def in_msgpack(seal: Call, unseal: Call) -> tuple[Call, Call]:
    """Return the same functions for a session: a dict with its deadline."""

    def write(values: dict[str, Any]) -> Any:
        return seal(encode((time.time() + 86_400, values)))

    def read(sealed: Any) -> Any:
        expires, values = decode(unseal(sealed))
        return values if expires > time.time() else None

    return write, read


def fernet() -> tuple[Call, Call]:
    return FERNET.encrypt, FERNET.decrypt


def signed() -> tuple[Call, Call]:
    """Return itsdangerous' functions, which sign with a timestamp; the value stays readable."""
    itsdangerous: Any = import_module("itsdangerous")
    signer = itsdangerous.TimestampSigner(SECRET)
    return signer.sign, signer.unsign


def gaman_value() -> tuple[Call, Call]:
    """Return the functions that seal and open values in a store."""
    sealed = Keyring([SECRET], "session").values(new_raw_id())
    return partial(sealed.seal, "user"), partial(sealed.open, "user")


def in_json(seal: Call, unseal: Call) -> tuple[Call, Call]:
    """Return Starlette's format of a session: JSON in base64, signed with a timestamp."""

    def write(values: dict[str, Any]) -> Any:
        return seal(b64encode(json.dumps(values).encode()))

    def read(sealed: Any) -> Any:
        return json.loads(b64decode(unseal(sealed)))

    return write, read


def encrypted_json() -> tuple[Call, Call]:
    def write(values: dict[str, Any]) -> bytes:
        return FERNET.encrypt(json.dumps(values).encode())

    def read(token: bytes) -> Any:
        return json.loads(FERNET.decrypt(token, ttl=86_400))

    return write, read


def cookies_driver() -> tuple[Call, Call]:
    """Return functions that write a new session with one value, and read it, as one request each with the cookies driver."""
    make_session: Any = session(SECRET, {"type": "cookies"}).make_session

    def write(values: dict[str, Any]) -> bytes:
        # The work of Session.set() and close_session, without the call's object and the header.
        kept = make_session({"headers": []})
        kept._put("user", kept._encode("user", values["user"]))
        token, _ = kept._cookie()
        return b"__Host-Http-gaman=" + bytes(token, "ascii")

    def read(cookie: bytes) -> dict[str, Any]:
        kept = make_session({"headers": [(b"cookie", cookie)]})
        # Each call sees the cookie for the first time.
        kept._sessions.keyring._opened.clear()
        kept._is_ready()
        return {key: kept._value(key, None, None) for key in kept._fields}

    return write, read


def contend(
    name: str, kind: Any, make: Callable[[], tuple[Call, Call]], value: Any, writes: bool, package: str | None = None
) -> Contender | Missing:
    """Return a contender that seals *value* or opens it; its result is the opened value."""
    try:
        write, read = make()
    except ModuleNotFoundError as error:
        return Missing(name, f"not installed: {error.name}")
    written = write(value)
    return Contender(
        name=name,
        kind=kind,
        source=line_of(make),
        version=package and version(package),
        measure=timed_call(write, value) if writes else timed_call(read, written),
        result=partial(read, written),
    )


def bare(cipher: AESGCM | AESGCMSIV, *around: Callable[[Call, Call], tuple[Call, Call]]) -> Callable[[], tuple[Call, Call]]:
    def make() -> tuple[Call, Call]:
        found = with_nonce(cipher)
        for each in around:
            found = each(*found)
        return found

    return make


def of_bytes(length: int, writes: bool) -> Entered:
    data = os.urandom(length)
    return contenders(
        contend(BASELINE, "baseline", bare(AES_GCM), data, writes, "cryptography"),
        contend(SIV, "baseline", bare(AES_GCM_SIV), data, writes, "cryptography"),
        contend("gaman, a value", "ours", gaman_value, data, writes),
        contend("Fernet", "peer", fernet, data, writes, "cryptography"),
        contend("itsdangerous", "peer", signed, data, writes, "itsdangerous"),
    )


def of_session(writes: bool) -> Entered:
    values = {"user": USER}
    return contenders(
        contend(BASELINE, "baseline", bare(AES_GCM, in_base64, in_msgpack), values, writes, "cryptography"),
        contend(SIV, "baseline", bare(AES_GCM_SIV, in_base64, in_msgpack), values, writes, "cryptography"),
        contend("gaman, the cookies driver", "ours", cookies_driver, values, writes),
        contend("Fernet, of JSON", "peer", encrypted_json, values, writes, "cryptography"),
        contend("itsdangerous, of JSON", "peer", lambda: in_json(*signed()), values, writes, "itsdangerous"),
    )


def cases(plan: Plan) -> list[Case]:
    verbs = {"seal": True, "open": False}
    return [
        *(
            Case(
                name=f"{verb} {length:,} bytes",
                baseline=BASELINE,
                enter=partial(of_bytes, length, writes),
            )
            for length in LENGTHS
            for verb, writes in verbs.items()
        ),
        Case(name="write a session for a cookie", baseline=BASELINE, enter=partial(of_session, True)),
        Case(name="read a session from a cookie", baseline=BASELINE, enter=partial(of_session, False)),
    ]


QUESTION = Question(
    name="sealing",
    title="What does it cost to seal a session, and to open it?",
    cases=cases,
    seconds=30,
    quick_seconds=3,
)
