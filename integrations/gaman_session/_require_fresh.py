"""require_fresh(): a handler that lets a request pass only soon after a login."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from gaman import ConfigError, Context, Response
from gaman.errors import checks_arguments
from gaman_session._errors import SessionLoginRequired, SessionUseError
from gaman_session._login import check_age, check_level


@checks_arguments
def require_fresh(
    seconds: float, *, redirect: str | None = None, level: int = 1
) -> Callable[[Context], Awaitable[Response | None]]:
    """Return a handler that passes a request on if the login, or its last confirm() at *level*, is at most *seconds* ago.

        "/password": [require_fresh(300, redirect="/confirm"), change_password]

    Otherwise it redirects to *redirect* with 303, or, without one, answers 401. ConfigError names an invalid argument.
    """
    try:
        check_age(seconds)
        check_level(level)
    except SessionUseError as cause:
        raise ConfigError(f"require_fresh(): {cause}") from cause
    if redirect is not None:
        # An invalid target is an error now, and not in the first request.
        Response.redirect(redirect)

    async def check_fresh(ctx: Context) -> Response | None:
        if await ctx.session.is_fresh(seconds, level=level):
            return None
        if redirect is None:
            raise SessionLoginRequired
        return Response.redirect(redirect, 303)

    return check_fresh
