"""The session in an ASGI scope: whether the framework calls mark_accessed(), and what applications put in the place of its dict."""

from __future__ import annotations

import sys
from collections.abc import Mapping, MutableMapping
from functools import lru_cache
from typing import Any, Final, cast

from gaman import ConfigError
from gaman.errors import a_type
from gaman_session._errors import SessionUseError
from gaman_session._session import Session

_MAX_MIDDLEWARE: Final = 100
"""How many applications inside each other are looked at."""


def calls_mark_accessed(scope: MutableMapping[str, Any]) -> bool:
    """Return whether the framework calls mark_accessed() when a handler takes its session, as Starlette does."""
    app: Any = scope.get("app")
    return _calls_mark_accessed(app.__class__)


class _Probe:
    is_taken = False

    def mark_accessed(self) -> None:
        self.is_taken = True


@lru_cache(maxsize=64)
def _calls_mark_accessed(framework: type) -> bool:
    applications, requests = sys.modules.get("starlette.applications"), sys.modules.get("starlette.requests")
    if applications is None or requests is None or not issubclass(framework, applications.Starlette):
        return False
    # Older versions of Starlette don't call it.
    probe = _Probe()
    return requests.HTTPConnection({"type": "http", "session": probe}).session is probe and probe.is_taken


def values_of(found: Any, session: Session, app: Any) -> Mapping[str, Any]:
    """Return the values of what was *found* in the place of the dict: none for None, and for Litestar's Empty.

    An object that the serializer makes a dict of has values, such as a dataclass. ConfigError: another middleware has put it there.
    Such a middleware is inside of *app*, which is the application that ours calls.
    """
    if hasattr(found, "mark_accessed") or _has_session_middleware(app):
        raise another_session()
    litestar = sys.modules.get("litestar.types")
    if not found or (litestar is not None and found is litestar.Empty):
        return {}
    if isinstance(found, Mapping):
        return cast("Mapping[str, Any]", found)
    values = session._decode(session._encode("session", found))
    if not isinstance(values, dict):
        raise SessionUseError(f"request.session was replaced by {a_type(found)}: replace it by a dict, or call its clear()")
    return cast("dict[str, Any]", values)


def _has_session_middleware(app: Any) -> bool:
    """Return whether *app*, or an application inside of it, is the SessionMiddleware of Starlette, Litestar or another package."""
    for _ in range(_MAX_MIDDLEWARE):
        if type(app).__name__ == "SessionMiddleware" and type(app).__module__ != "gaman_session.asgi":
            return True
        app = getattr(app, "app", None)
    return False


def another_session() -> ConfigError:
    """Return the error for handlers that have the session of another middleware."""
    return ConfigError(
        "request.session is the session of another middleware: remove that one, such as Starlette's SessionMiddleware, which "
        "SessionMiddleware(as_dict=True) of gaman.session.asgi replaces"
    )
