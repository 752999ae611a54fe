"""require_same_origin(): refuses a request unless a page of its own origin sent it, also a GET."""

from __future__ import annotations

from typing import Final

from gaman import Context, HTTPError

_DESTINATIONS: Final = ("document", "empty")
"""What a link, a form and a script's fetch() load. An image, a frame and the like have others."""


async def require_same_origin(ctx: Context) -> None:
    """Raise HTTPError 403 unless a page of this origin sent the request, by a link, a form or a script.

        "/unsubscribe": {"GET": [require_same_origin, unsubscribe]}

    It is for a GET that changes something, which session() lets pass, because a link of another site is a GET as well. Browsers say
    in Sec-Fetch-Site and Sec-Fetch-Dest (Fetch Metadata) where a request comes from and what for. A request without them is
    refused, and so is one of the address bar, of an image or a frame, and a prefetch.
    """
    if (
        ctx.header("sec-fetch-site") != "same-origin"
        or ctx.header("sec-fetch-dest") not in _DESTINATIONS
        or ctx.header("sec-purpose") is not None
    ):
        raise HTTPError(403, "only a page of this site may send this request")
