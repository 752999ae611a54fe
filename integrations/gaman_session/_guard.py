"""Guard: answers 403 to cross-site requests of unsafe methods, counts them, and logs the fix once."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from gaman import Context, Handler, Headers, HTTPError, log_extra
from gaman_session._audit import Audit
from gaman_session._counters import Counters
from gaman_session._cross_site import SAFE_METHODS, is_cross_site, normalize

logger = logging.getLogger("gaman")


async def allow_cross_site(ctx: Context) -> None:
    """Mark routes that take requests from pages of every site, such as webhooks and public APIs. It does nothing by itself.

        routes = define_routes({
            "/webhook": {"POST": [allow_cross_site, take_event]},
            "/api/*": allow_cross_site,
        })

    It counts anywhere in the list of a route's handlers, and as middleware. A mounted App with session() checks by itself, after
    the App around it. For a route in it, mark the mount as well: `"/shop/*": [allow_cross_site, mount(shop)]`.
    """


class Guard:
    """The check of session(csrf=True); *trusted* are normalized origins, whose pages may send any request."""

    def __init__(self, trusted: frozenset[str], counters: Counters, audit: Audit) -> None:
        self._trusted = trusted
        self._counters = counters
        self._audit = audit
        self._has_refused = False

    def choose(self, method: str, handlers: Sequence[Handler]) -> Callable[[Context], None] | None:
        """Return the check of a route, for Integration.on_route; None for a safe method, and for handlers with the mark."""
        if method in SAFE_METHODS or any(handler is allow_cross_site for handler in handlers):
            return None
        prefix_of: Callable[[Context], str] | None = getattr(handlers[-1], "prefix_of", None) if handlers else None
        return self._check if prefix_of is None else partial(self._check, prefix_of=prefix_of)

    def _check(self, ctx: Context, prefix_of: Callable[[Context], str] | None = None) -> None:
        """Raise HTTPError 403 for a cross-site request; *prefix_of* is that of a mount, for the fix."""

        def is_trusted(origin: str) -> bool:
            return self._trusts(origin) or any(
                integration.trusts_origin(origin) for integration in ctx.app.integrations if integration.trusts_origin is not None
            )

        if is_cross_site(ctx.scope["headers"], lambda: ctx.host, is_trusted):
            exemption = "put allow_cross_site before the handlers of its route"
            if prefix_of is not None:
                exemption = (
                    f"write {prefix_of(ctx) + '/*'!r}: [allow_cross_site, mount(...)], and have the mounted application check all "
                    "other requests, as an App with session() does"
                )
            error, fix = self._refuse(ctx.scope, ctx.host, exemption)
            if ctx.app.debug:
                error.detail = f"{error.detail}; {fix}"
            raise error

    def find_refusal(self, scope: Any) -> HTTPError | None:
        """Return HTTPError 403 for a cross-site request or WebSocket of any ASGI application, or None."""
        # The server decides which proxies may replace the Host field.
        host = Headers(scope["headers"]).get("host", "")
        if not is_cross_site(scope["headers"], lambda: host, self._trusts):
            return None
        path = log_extra(scope)["path"]
        return self._refuse(scope, host, f"write SessionMiddleware(..., allow_cross_site=[{path!r}])")[0]

    def _trusts(self, origin: str) -> bool:
        return normalize(origin) in self._trusted

    def _refuse(self, scope: Any, host: str, exemption: str) -> tuple[HTTPError, str]:
        """Count and log the refusal; return the error, and what the developer can do if the request was legitimate."""
        self._counters.reject("cross_site")
        self._audit.note("refused", scope)
        origin = normalize(Headers(scope["headers"]).get("origin", ""))
        fix = f"if every site may send it, {exemption}"
        if origin is not None:
            fix = f"if that page is yours, write session(trusted_origins=[{origin!r}]); {fix}"
        extra = log_extra(scope)
        # Any site can repeat the request, and would fill the log.
        level, note = (logging.DEBUG, "") if self._has_refused else (logging.WARNING, " (logged once)")
        self._has_refused = True
        logger.log(
            level,
            "%s %r was answered 403, because a page of %s sent it to the host %r%s; %s",
            extra["method"],
            extra["path"],
            "an unknown origin" if origin is None else repr(origin),
            host,
            note,
            fix,
            extra=extra,
        )
        return HTTPError(403, "cross-site request refused"), fix
