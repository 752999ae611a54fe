"""Closing: a request's session is written before the response's header fields, and adds its own to them."""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, TypeAlias

from gaman import Context, Headers, HTTPError, log_extra
from gaman_session._errors import SessionTooLarge, SessionUseError
from gaman_session._options import Options
from gaman_session._session import Session
from gaman_session._sessions import Sessions

if TYPE_CHECKING:
    from gaman_session._connection import Connection

logger = logging.getLogger("gaman")

RawHeaders: TypeAlias = list[tuple[bytes, bytes]]
Exchange: TypeAlias = "Context | Connection"
"""A request, with what its response will carry: of an App, or of any other framework."""

_CONTENT = frozenset((b"content-length", b"content-type"))
NO_STORE: Final = (b"cache-control", b"no-store")
_PRIVATE: Final = (NO_STORE, (b"vary", b"Cookie"))


class Closing:
    """Closes the sessions of an application's requests."""

    def __init__(self, options: Options, sessions: Sessions, driver_name: str) -> None:
        self._log_extra = {"driver": driver_name}
        self._has_store = sessions.driver is not None or sessions.ended is not None
        # The line is checked once. Tokens need no check: they are base64.
        self._cookie_name, _, self._cookie_attributes = options.cookie.line(0).decode("ascii").partition("; Max-Age=0")
        self._warns_of_http = options.cookie.secure
        self._warns_of_caches = True

    def close(self, exchange: Exchange, session: Session, status: int, headers: RawHeaders) -> RawHeaders | Awaitable[RawHeaders]:
        """Write the session, and return *headers* with those that the response needs because of it.

        SessionUseError names calls that were never awaited.
        """
        if status >= 500:
            # The framework may have made this response of an error, which ended the handler before an `await`.
            session._fail(keeps_changes=False)
        try:
            is_used = session._close()
        except SessionUseError:
            # save() may have renamed the session. The error's response then carries the only cookie that works.
            self._add_cookie(exchange, session, [], is_plain=True)
            raise
        if not is_used:
            return headers
        # Most responses have only a content type, and in other frameworks its length. Not searching their fields saves 15 % of a
        # request that reads its session, and 20 % of one that writes it to a cookie. The first test saves gaman's own 0.1 µs.
        is_plain = (len(headers) == 1 and headers[0][0] == b"content-type") or _CONTENT.issuperset(dict(headers))
        headers = [*headers, *_PRIVATE] if is_plain else _keep_private(headers)
        if self._has_store:
            return self._flush(exchange, session, headers, is_plain) if session._needs_store() else headers
        return self._add_cookie(exchange, session, headers, is_plain)

    async def _flush(self, exchange: Exchange, session: Session, headers: RawHeaders, is_plain: bool) -> RawHeaders:
        try:
            await session._flush()
        except BaseException:
            # The flush may have renamed the session before it failed. The error's response then carries the only cookie that works.
            self._add_cookie(exchange, session, [], is_plain=True)
            raise
        return self._add_cookie(exchange, session, headers, is_plain)

    def _add_cookie(self, exchange: Exchange, session: Session, headers: RawHeaders, is_plain: bool) -> RawHeaders:
        """Send the session's cookie, if the browser needs one, and return *headers* without those that let caches keep it."""
        if (cookie := session._cookie()) is None:
            return headers
        token, max_age = cookie
        lifetime = "" if max_age is None else f"; Max-Age={max_age}"
        # Cookies of the request are sent even if another hook replaces the response.
        exchange.send_cookie(f"{self._cookie_name}{token}{lifetime}{self._cookie_attributes}".encode("ascii"))
        # A browser that sends the cookie keeps it.
        if token and self._warns_of_http and not session._has_cookie() and not _keeps_secure(exchange):
            self._warns_of_http = False
            extra = self._extra(exchange, session)
            logger.warning(
                "the session's cookie is Secure, and %s was requested over plain HTTP: the browser will not keep it. Serve HTTPS "
                "(and have the proxy say so in X-Forwarded-Proto), or pass secure=False while developing",
                f"{exchange.scheme}://{exchange.host}{extra['path']}",
                extra=extra,
            )
        return headers if is_plain else self._keep_from_caches(exchange, session, headers)

    def _keep_from_caches(self, exchange: Exchange, session: Session, headers: RawHeaders) -> RawHeaders:
        """Return *headers* that keep a response with the session's cookie out of every cache."""
        allowing = [(name, value) for name, value in headers if _is_cache_control(name) and not _is_no_store(value)]
        if allowing and self._warns_of_caches:
            self._warns_of_caches = False
            extra = self._extra(exchange, session)
            logger.warning(
                "the response to %s %r had %r beside the session's cookie; it was sent as no-store, because a cache would give the "
                "cookie to other visitors. Leave that field out where a session begins, ends or gets a new id",
                extra["method"],
                extra["path"],
                ", ".join([f"{name}: {value}" for name, value in Headers(allowing).items()]),
                extra=extra,
            )
        return [NO_STORE, *(field for field in headers if not _is_cache_control(field[0]))]

    def _extra(self, exchange: Exchange, session: Session) -> dict[str, Any]:
        return {**log_extra(exchange.scope), **self._log_extra, "session": session.id}


def fail(session: Session, error: BaseException) -> None:
    """Note that the request failed with *error*, which drops the changes of its *session*.

    An HTTPError was raised on purpose, so the changes are kept, as with a response.
    """
    session._fail(keeps_changes=isinstance(error, HTTPError) and not isinstance(error, SessionTooLarge))


def _keep_private(headers: RawHeaders) -> RawHeaders:
    """Return *headers* that keep the response out of shared caches (RFC 9111, section 3, and RFC 9110, section 12.5.5)."""
    no_store, vary_by_cookie = _PRIVATE
    kept = [*headers]
    if b"cache-control" not in dict(headers):
        kept.append(no_store)
    vary = [name.strip().lower() for line in Headers(headers).getall("vary") for name in line.split(",")]
    if "cookie" not in vary and "*" not in vary:
        kept.append(vary_by_cookie)
    return kept


def _is_cache_control(name: bytes) -> bool:
    """Return whether a field controls caches: Cache-Control, or a targeted field (RFC 9213)."""
    return name.endswith(b"cache-control") or name == b"surrogate-control"


def _is_no_store(value: bytes) -> bool:
    return b"no-store" in [directive.strip().lower() for directive in value.split(b",")]


def _keeps_secure(exchange: Exchange) -> bool:
    """Return whether the browser keeps a Secure cookie: over HTTPS, and from localhost."""
    return exchange.scope.get("scheme") == "https" or exchange.scheme == "https" or _is_local(exchange.host)


@lru_cache(maxsize=64)
def _is_local(authority: str) -> bool:
    host = re.sub(r"\.?(:\d*)?$", "", authority).lower()
    return host in ("", "localhost", "[::1]") or host.endswith(".localhost") or re.fullmatch(r"127(\.\d+){3}", host) is not None
