"""check_csrf(): refuses a request without a token of its session, for browsers that don't say where a request comes from."""

from __future__ import annotations

import logging
from typing import Final
from weakref import WeakSet

from gaman import App, Context, HTTPError
from gaman_session._cross_site import SAFE_METHODS

logger = logging.getLogger("gaman")

_FORMS: Final = ("application/x-www-form-urlencoded", "multipart/form-data")
_FIX: Final = (
    "put a hidden input `csrf_token` with `await ctx.session.csrf_token()` into its form, or send that token as X-CSRF-Token"
)
_named: Final = WeakSet[App]()
"""The applications whose log has the fix. Any client can send a request without a token, and would fill the log."""


async def check_csrf(ctx: Context) -> None:
    """Raise HTTPError 403 unless the request has a token of csrf_token(): in `X-CSRF-Token`, or as `csrf_token` in its form.

        "/transfer": {"POST": [check_csrf, transfer]}

    A request that another site's page sends can't have one (OWASP's synchronizer token). It is an addition to what session()
    refuses by itself, and needed only for browsers from before 2020. GET, HEAD and OPTIONS pass.
    """
    if ctx.method in SAFE_METHODS:
        return
    # Without session(), this raises ConfigError, also for a request without a token.
    session = ctx.session
    token = ctx.header("x-csrf-token")
    if token is None and (ctx.header("content-type") or "").lower().startswith(_FORMS):
        token = await ctx.input("csrf_token")
    if token is None or not await session.is_csrf_token(token):
        error = HTTPError(403, "the form is too old: reload its page, and send it again")
        if token is None:
            _name_fix(ctx, error)
        raise error


def _name_fix(ctx: Context, error: HTTPError) -> None:
    """Log once that a request has no token at all, which is a mistake in its page; with debug, say so in *error* too."""
    if ctx.app not in _named:
        _named.add(ctx.app)
        extra = ctx.log_extra
        message = "%s %r was answered 403, because it has no token for check_csrf (logged once); %s"
        logger.warning(message, extra["method"], extra["path"], _FIX, extra=extra)
    if ctx.app.debug:
        error.detail = f"{error.detail}; {_FIX}"
