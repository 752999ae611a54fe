"""Sessions in the server's memory, which are fast and end when the server stops."""

import os
import secrets

import gaman
from gaman import Context, define_routes
from gaman.session import session


def plus_one(count: int) -> int:
    return count + 1


async def visits(ctx: Context) -> dict[str, int]:
    # Atomic: concurrent requests are each counted exactly once.
    return {"visits": await ctx.session.update("visits", plus_one, default=0)}


routes = define_routes({"/": visits})

if __name__ == "__main__":
    gaman.serve(
        routes,
        integrations=[
            session(
                driver={"type": "memory"},
                secret=os.environ.get("GAMAN_KEY") or secrets.token_urlsafe(32),  # your-secret-key
                max_age=3600,  # 1 hour
            )
        ],
        port=int(os.environ.get("PORT", "3431")),
    )
