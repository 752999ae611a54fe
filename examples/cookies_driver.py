"""Sessions in an encrypted cookie, the default, without a store to install, to run or to share between servers."""

import os
import secrets

import gaman
from gaman import Context, define_routes
from gaman.session import session


async def visits(ctx: Context) -> dict[str, int]:
    count = await ctx.session.get("visits", 0, type=int) + 1
    await ctx.session.set("visits", count)
    return {"visits": count}


routes = define_routes({"/": visits})

if __name__ == "__main__":
    gaman.serve(
        routes,
        integrations=[
            session(
                driver={"type": "cookies"},
                secret=os.environ.get("GAMAN_KEY") or secrets.token_urlsafe(32),  # your-secret-key
                max_age=86400,  # 1 day
                secure=True,
            )
        ],
        port=int(os.environ.get("PORT", "3431")),
    )
