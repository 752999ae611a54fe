"""check_csrf(): refuses a request without a token of its session, for browsers that don't say where a request comes from."""

from __future__ import annotations

from typing import Final

from gaman import Context, HTTPError
from gaman_session._cross_site import SAFE_METHODS

_FORMS: Final = ("application/x-www-form-urlencoded", "multipart/form-data")


async def check_csrf(ctx: Context) -> None:
    """Raise HTTPError 403 unless the request has a token of csrf_token(): in `X-CSRF-Token`, or as `csrf_token` in its form.

        "/transfer": {"POST": [check_csrf, transfer]}

    A request that another site's page sends can't have one (OWASP's synchronizer token). It is an addition to what session()
    refuses by itself, and needed only for browsers from before 2020. GET, HEAD and OPTIONS pass.
    """
    if ctx.method in SAFE_METHODS:
        return
    token = ctx.header("x-csrf-token")
    if token is None and (ctx.header("content-type") or "").lower().startswith(_FORMS):
        token = await ctx.input("csrf_token")
    if token is None or not await ctx.session.is_csrf_token(token):
        raise HTTPError(403, "the form is too old: reload its page, and send it again")
