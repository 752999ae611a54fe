"""require_fresh(): a handler that lets a request pass only soon after a login."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from urllib.parse import quote, urlsplit

from gaman import ConfigError, Context, HTTPError, Response
from gaman.errors import checks_arguments
from gaman_session._errors import SessionLoginRequired, SessionUseError
from gaman_session._login import check_age, check_level


@checks_arguments
def require_fresh(
    seconds: float, *, redirect: str | None = None, level: int = 1
) -> Callable[[Context], Awaitable[Response | None]]:
    """Return a handler that passes a request on if the login, or its last confirm() at *level*, is at most *seconds* ago.

        "/email": {"GET": [require_fresh(300, redirect="/confirm"), email_form]}

    Otherwise it redirects to *redirect* with 303, or, without one, answers 401. If *redirect* is a path, it gets the path and query
    of a GET request as `next`, so that the page there leads back:

        return Response.redirect(ctx.query.get("next") or "/", status=303, local=True)

    ConfigError names an invalid argument.
    """
    try:
        check_age(seconds)
        check_level(level)
    except SessionUseError as cause:
        raise ConfigError(f"require_fresh(): {cause}") from cause
    # Another site has no use for a path of this one.
    leads_back, page = False, None
    if redirect is not None:
        # An invalid target is an error now, and not in the first request.
        Response.redirect(redirect)
        leads_back = not any(urlsplit(redirect)[:2])
        page = urlsplit(redirect).path if leads_back and redirect.startswith("/") else None

    async def check_fresh(ctx: Context) -> Response | None:
        if await ctx.session.is_fresh(seconds, level=level):
            return None
        if redirect is None:
            raise SessionLoginRequired
        is_read = ctx.method in ("GET", "HEAD")
        if is_read and page is not None and _target_of(ctx).partition("?")[0] == page:
            name = check_fresh.__qualname__
            raise ConfigError(f"{name} guards {page!r} itself, and would redirect forever; leave that page out of its paths")
        is_repeatable = leads_back and is_read
        return Response.redirect(_with_next(redirect, ctx) if is_repeatable else redirect, 303)

    # As the user has written it, for `gaman routes` and messages.
    options = [("redirect", redirect, None), ("level", level, 1)]
    check_fresh.__qualname__ = (
        f"require_fresh({seconds!r}{''.join(f', {name}={value!r}' for name, value, default in options if value != default)})"
    )
    return check_fresh


def _target_of(ctx: Context) -> str:
    """Return the request's path and query, as the browser knows them."""
    return ctx.url.removeprefix(f"{ctx.scheme}://{ctx.host}")


def _with_next(redirect: str, ctx: Context) -> str:
    """Return *redirect* with the request's path and query as its last parameter, `next`."""
    target = _target_of(ctx)
    try:
        # The page there does the same, which fails for a target that is too long, or leads elsewhere, such as `//evil.example`.
        Response.redirect(target, local=True)
    except HTTPError:
        return redirect
    page, mark, fragment = redirect.partition("#")
    return f"{page}{'&' if '?' in page else '?'}next={quote(target)}{mark}{fragment}"
