"""TLS: the certificate that the server presents, loaded when a process starts, and a limit for handshakes."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from os import PathLike, fspath
from weakref import WeakSet

from gaman.errors import ConfigError

Path = str | PathLike[str]


def load_certificate(certfile: Path | None, keyfile: Path | None) -> ssl.SSLContext | None:
    """Return the context for a certificate and its key, both in PEM form; None without a certificate.

    *certfile* has the chain, its own certificate first. Without *keyfile*, it has the key too. ConfigError names the file that
    can't be used.
    """
    if certfile is None:
        if keyfile is not None:
            raise ConfigError("ssl_keyfile= is the key of a certificate; give ssl_certfile= too")
        return None
    for name, path in (("ssl_certfile", certfile), ("ssl_keyfile", keyfile)):
        if path is not None:
            _check_readable(name, path)
    # TLS 1.2 and newer, with OpenSSL's defaults.
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.set_alpn_protocols(["http/1.1"])
    key = fspath(certfile if keyfile is None else keyfile)
    has_password = False

    def refuse() -> str:
        # OpenSSL would ask the terminal.
        nonlocal has_password
        has_password = True
        return ""

    try:
        context.load_cert_chain(fspath(certfile), None if keyfile is None else key, refuse)
    except (ssl.SSLError, OSError) as error:
        raise ConfigError(_explain(error, fspath(certfile), key, has_password=has_password)) from None
    return context


def limit_handshakes(context: ssl.SSLContext, has_room: Callable[[int], bool]) -> None:
    """Close a connection before its handshake unless *has_room*, which is called with the number of unfinished handshakes."""
    # Weak, because event loops don't tell when a client breaks its handshake off. asyncio's, before Python 3.13, leaves the object
    # to the garbage collector.
    unfinished = WeakSet[ssl.SSLObject]()

    class Handshake(ssl.SSLObject):
        def do_handshake(self) -> None:
            if self not in unfinished:
                if not has_room(len(unfinished)):
                    raise ssl.SSLError("max_connections is reached")
                unfinished.add(self)
            super().do_handshake()
            unfinished.discard(self)

    context.sslobject_class = Handshake


def _check_readable(name: str, path: Path) -> None:
    try:
        with open(path, "rb"):
            pass
    except (OSError, TypeError, ValueError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
        raise ConfigError(f"{name}={path!r} can't be read: {reason}") from None


def _explain(error: Exception, certfile: str, key: str, *, has_password: bool) -> str:
    if has_password:
        return (
            f"the key in {key} has a password, and a server starts without one; write a copy: openssl pkey -in {key} -out plain.key"
        )
    if isinstance(error, ssl.SSLError) and error.reason == "KEY_VALUES_MISMATCH":
        return f"the key in {key} isn't that of the certificate in {certfile}; give the pair that was issued together"
    for path, kind in ((certfile, b"CERTIFICATE"), (key, b"PRIVATE KEY")):
        with open(path, "rb") as file:
            if kind not in file.read():
                what = "certificate" if path == certfile and kind == b"CERTIFICATE" else "private key"
                option = "" if what == "certificate" or path != certfile else "; give its file as ssl_keyfile="
                return f"{path} has no {what} in PEM form{option}"
    return f"the certificate in {certfile} and the key in {key} can't be used: {error}"
