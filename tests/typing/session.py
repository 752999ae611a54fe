"""A user's session: read by mypy and pyright, never run."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypedDict, assert_type

from msgspec import Struct

import gaman
from gaman import Context, Integration, Response, Table
from gaman.session import (
    BatchDriver,
    OwnedSession,
    OwnerDriver,
    Session,
    SessionConflict,
    SessionError,
    SessionIntegration,
    SessionLoginRequired,
    SessionStoreError,
    check_csrf,
    require_fresh,
    require_same_origin,
    session,
)
from gaman_session.drivers.file import FileDriver
from gaman_session.drivers.memory import MemoryDriver
from gaman_session.drivers.mongodb import MongoDBDriver
from gaman_session.drivers.redis import RedisDriver
from gaman_session.drivers.sql import SQLDriver


@dataclass
class User:
    id: int
    name: str


class Preferences(Struct):
    theme: str = "dark"


class Item(TypedDict):
    name: str
    count: int


def rename(user: User) -> User:
    return User(user.id, "Budi")


async def reads(ctx: Context) -> Response:
    assert_type(ctx.session, Session)
    assert_type(await ctx.session.get("user"), Any)
    assert_type(await ctx.session.get("user", "nobody"), Any)
    assert_type(await ctx.session.get("user", type=User), User | None)
    assert_type(await ctx.session.get("user", None, type=User), User | None)
    assert_type(await ctx.session.get("user", User(0, "nobody"), type=User), User)
    assert_type(await ctx.session.get("user", "nobody", type=User), User | str)
    assert_type(await ctx.session.get("preferences", type=Preferences), Preferences | None)
    assert_type(await ctx.session.get("item", type=Item), Item | None)
    assert_type(await ctx.session.get("count", 0, type=int), int)
    assert_type(await ctx.session.get("tags", type=list[str]), list[str] | None)
    assert_type(await ctx.session.get("seen", type=set[int]), set[int] | None)
    assert_type(await ctx.session.get("place", type=tuple[int, int]), tuple[int, int] | None)
    assert_type(await ctx.session.get("when", type=datetime), datetime | None)
    assert_type(await ctx.session.has("user"), bool)
    assert_type(await ctx.session.all(), dict[str, Any])
    assert_type(ctx.session.id, str | None)
    assert_type(ctx.session.is_new, bool)
    assert_type(ctx.session.created_at, datetime | None)
    assert_type(ctx.session.expires_at, datetime | None)
    assert_type(ctx.session.authenticated_at, datetime | None)
    assert_type(await ctx.session.owner(), str | None)
    assert_type(await ctx.session.is_fresh(300), bool)
    assert_type(await ctx.session.is_fresh(0.5, level=2), bool)
    assert_type(await ctx.session.csrf_token(), str)
    assert_type(await ctx.session.is_csrf_token("a token"), bool)
    user = await ctx.session.get("user", type=User)
    return Response.json({"name": user.name if user is not None else "nobody"})


async def changes(ctx: Context) -> None:
    s = ctx.session
    await s.set("user", User(1, "Angga"))
    await s.delete("user")
    assert_type(await s.pop("user"), Any)
    assert_type(await s.pop("user", "nobody"), Any)
    # update() returns the function's type.
    assert_type(await s.update("count", lambda count: int(count) + 1, 0), int)
    assert_type(await s.update("user", rename), User)
    await s.regenerate()
    await s.regenerate(max_age=0)
    await s.login("user:1")
    await s.login("user:1", max_age=3600, note={"device": "a phone"}, fresh=True)
    await s.confirm()
    await s.confirm(level=2)
    await s.save()
    await s.logout()
    await s.clear()


async def confirm(ctx: Context) -> Response | None:
    try:
        await ctx.session.confirm()
    except SessionLoginRequired as refused:
        assert_type(refused, SessionLoginRequired)
        return Response.text("log in first", refused.status)
    return None


guarded: Table = {
    "/password": [require_fresh(300, redirect="/confirm"), confirm],
    "/keys": {"POST": [check_csrf, require_fresh(300, level=2), confirm]},
    "/unsubscribe": {"GET": [require_same_origin, confirm]},
}


async def count_failures(ctx: Context) -> int:
    try:
        failures = await ctx.session.update("failures", lambda count: int(count) + 1, 0)
    except SessionConflict as conflict:
        assert_type(conflict, SessionConflict)
        return 0
    except SessionStoreError as failure:
        assert_type(failure.driver, str)
        return failure.status
    except SessionError:
        return 1
    return failures


integrations: list[Integration] = [
    session(),
    session("a secret"),
    session(secret=["new", "old"], max_age=3600, secure=False, idle_timeout=60, same_site="strict", serializer="json"),
    session(driver={"type": "memory", "max_sessions": 5}, cookie_name="id", path="/app", encrypt=False),
    session(driver={"type": "redis", "url": "redis://localhost"}, domain="example.com", partitioned=True),
    session(trusted_origins=["https://app.example.com"]),
    session(trusted_origins="https://app.example.com", csrf=True),
]


sessions = session(driver={"type": "memory"}, max_sessions_per_owner=3)
owning: OwnerDriver = MemoryDriver()
batching: list[BatchDriver] = [FileDriver(), SQLDriver(), RedisDriver(), MongoDBDriver(db_name="app")]


async def owners(ctx: Context) -> Response:
    await ctx.session.set_owner("user:1", note={"device": "a phone"})
    await ctx.session.set_owner(None)
    assert_type(sessions, SessionIntegration)
    assert_type(await sessions.list("user:1"), list[OwnedSession])
    assert_type(await sessions.end("handle"), bool)
    assert_type(await sessions.end_all("user:1", keep=ctx.session), int)
    assert_type(await sessions.count(), int)
    return Response.json({})


def main() -> None:
    gaman.serve({"/": reads}, integrations=[session(secret=["new", "old"], secure=False)], workers=2, reload=False)
