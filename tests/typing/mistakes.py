"""Mistakes of a user: read by mypy and pyright, never run.

Each line with two ignores is an error for both checkers. If a checker no longer reports it, its ignore is unused, which is an error
as well. The comment above a line, or at its end, says what is wrong.
"""

from dataclasses import dataclass
from functools import partial
from typing import Annotated

from fastapi import Depends, FastAPI, Request
from starlette.applications import Starlette
from starlette.middleware import Middleware

import gaman
from gaman import App, Context, Response, Table, define_integration, define_routes
from gaman.cors import cors
from gaman.headers import headers
from gaman.session import Driver, require_fresh
from gaman.session.asgi import Session, SessionMiddleware, get_session, session
from gaman.static import static
from gaman.testing import TestClient
from gaman_session.drivers.memory import MemoryDriver


@dataclass
class User:
    name: str


def sync(ctx: Context) -> str:
    return "not a coroutine"


async def no_context() -> str:
    return "no argument"


async def two_arguments(ctx: Context, name: str) -> str:
    return name


async def wrong_context(ctx: Response) -> str:
    return "a response is not a context"


async def number(ctx: Context) -> int:
    return 1


async def in_a_set(ctx: Context) -> set[str]:
    return {"a"}


async def of_a_class(ctx: Context) -> type[User]:
    return User


class Sync:
    def __call__(self, ctx: Context) -> str:
        return "not a coroutine"


async def good(ctx: Context) -> str:
    return "fine"


# A handler must be async.
define_routes({"/": sync})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
define_routes({"/": [good, sync]})  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
define_routes({"/users": {"GET": sync}})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
define_routes({"/": Sync()})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
define_routes({"/": lambda ctx: "not a coroutine"})  # type: ignore[dict-item, return-value]  # pyright: ignore[reportArgumentType, reportUnknownLambdaType]
App({"/": sync})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
gaman.serve({"/": sync})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
sync_table: Table = {"/": sync}  # type: ignore[dict-item]  # pyright: ignore[reportAssignmentType]

# A handler takes one argument, a context.
define_routes({"/": no_context})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
define_routes({"/": two_arguments})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
define_routes({"/": partial(two_arguments, name=1)})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
define_routes({"/": wrong_context})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]

# A handler must return a result that becomes a response.
define_routes({"/": number})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
define_routes({"/": [good, in_a_set]})  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
define_routes({"/": of_a_class})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]

# A key is a str, and a value is a handler, a list of handlers or a dict.
define_routes({1: good})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]
define_routes({"/": "good"})  # type: ignore[dict-item]  # pyright: ignore[reportArgumentType]


sessions_of_all = session(driver={"type": "memory"})


async def context(ctx: Context) -> None:
    # A session's calls must be awaited.
    user: User | None = ctx.session.get("user", type=User)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    if not ctx.session.has("user"):  # type: ignore[truthy-bool]  # pyright: ignore[reportGeneralTypeIssues]
        return
    if ctx.session.get("user"):  # type: ignore[truthy-bool]  # pyright: ignore[reportGeneralTypeIssues]
        return
    if ctx.session.get("user") is None:  # type: ignore[comparison-overlap]  # pyright: ignore[reportUnnecessaryComparison]
        return
    if ctx.session.all():  # type: ignore[truthy-bool]  # pyright: ignore[reportGeneralTypeIssues]
        return
    if ctx.session.pop("user"):  # type: ignore[truthy-bool]  # pyright: ignore[reportUnnecessaryComparison]
        return
    ctx.session.pop("user")  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    ctx.session.update("count", lambda count: 1)  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    ctx.session.save()  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    if not ctx.session.owner():  # type: ignore[truthy-bool]  # pyright: ignore[reportGeneralTypeIssues]
        return
    if ctx.session.owner() is None:  # type: ignore[comparison-overlap]  # pyright: ignore[reportUnnecessaryComparison]
        return
    if ctx.session.is_fresh(300):  # type: ignore[truthy-bool]  # pyright: ignore[reportGeneralTypeIssues]
        return
    if not ctx.session.is_csrf_token("a token"):  # type: ignore[truthy-bool]  # pyright: ignore[reportGeneralTypeIssues]
        return
    ctx.session.login("user:1")  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    ctx.session.confirm()  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    csrf_token: str = ctx.session.csrf_token()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    # The owner is text, and the rest are keyword arguments. A level is a number.
    await ctx.session.login(1, note=csrf_token)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await ctx.session.login("user:1", 3600)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await ctx.session.confirm("password")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await ctx.session.is_fresh(300, 2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    require_fresh("300")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    require_fresh(300, "/confirm")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    sessions_of_all.end_all("user:1")  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    if sessions_of_all.list("user:1"):  # type: ignore[truthy-bool]  # pyright: ignore[reportGeneralTypeIssues]
        return
    # A session isn't a dict.
    ctx.session["user"]  # type: ignore[index]  # pyright: ignore[reportIndexIssue]
    ctx.session["user"] = "Angga"  # type: ignore[index]  # pyright: ignore[reportIndexIssue]
    # A missing value is None.
    name = (await ctx.session.get("user", type=User)).name  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
    (await ctx.input("name")).strip()  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
    # User has no such attribute.
    name = (await ctx.json(User)).nmae  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType]
    # A parameter, a query and a form have the type that they are decoded into.
    label: str = ctx.param("id", int)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    ctx.param("id", "int")  # type: ignore[call-overload]  # pyright: ignore[reportArgumentType]
    ctx.param("id").strip()  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
    label = ctx.query_as(User).nmae  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType]
    label = ctx.form_as(User).name  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType]
    # The default is a str, so the result may be one.
    count: int = await ctx.session.get("count", "none", type=int)  # type: ignore[arg-type]  # pyright: ignore[reportAssignmentType]
    # These attributes don't exist.
    await ctx.session.remove("user")  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    sessions = ctx.sessions  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownVariableType]
    ctx.user = user  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
    # Values from the request or the store are read-only.
    ctx.session.id = "mine"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    ctx.method = "GET"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
    # A key is a str.
    await ctx.session.set(1, (name, sessions, count, label))  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    # max_age is a keyword argument, and a number of seconds.
    await ctx.session.regenerate(3600)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await ctx.session.regenerate(max_age="1 day")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def hook_of_nothing() -> None: ...


def hook_of_a_request(ctx: Context) -> None: ...


def hook_of_an_app(app: App) -> None: ...


def hook_of_text(ctx: Context) -> str:
    return "not a response"


# Each hook has its own arguments and results.
define_integration(name="a", on_request=hook_of_nothing)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
define_integration(name="a", on_request=hook_of_an_app)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
define_integration(name="a", on_request=hook_of_text)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
define_integration(name="a", on_response=hook_of_a_request)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
define_integration(name="a", on_error=hook_of_a_request)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
define_integration(name="a", on_load=hook_of_a_request)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
define_integration(name="a", on_purge=hook_of_an_app)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
# The hook, the priority and the missing name are wrong.
define_integration(name="a", on_requests=hook_of_a_request)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
define_integration(name="a", priority="highest")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
define_integration()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
# The options have other names.
App({}, integration=[])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
gaman.serve({}, worker=2)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
define_routes({}, strct=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
cors("*", path="/")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
headers(hst=0)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
headers(hsts="1 year")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
headers(csp=["'self'"])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
static("/a", dirr="public")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
# The list holds integrations, which session() returns.
App({}, integrations=[session])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]
App({}, integrations=session())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

# Options have fixed names and types.
session(same_site="Lax")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
session(same_site=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
session(max_age="1 day")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
session(max_age=1.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
session(secret=b"bytes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
session(secure=None)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
session(samesite="lax")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
session("secret", {"type": "memory"}, 3600, True, 60)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
session(driver="memory")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
session(serializer="pickle")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
session(serializer=object())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


class Incomplete:
    """A driver without the methods for sessions."""

    name = "incomplete"
    shared = True

    async def open(self) -> None: ...

    async def close(self) -> None: ...


class SyncPurge:
    """A driver whose purge() isn't async."""

    name = "sync"
    shared = True

    def __init__(self, driver: MemoryDriver) -> None:
        self.open, self.close, self.load, self.create = driver.open, driver.close, driver.load, driver.create
        self.apply, self.swap, self.rename, self.destroy = driver.apply, driver.swap, driver.rename, driver.destroy

    def purge(self, *, now: float, limit: int) -> int:
        return 0


# A driver has every method of the contract, with its signature, and is an object instead of a class.
incomplete: Driver = Incomplete()  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
session(driver=Incomplete())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
sync_driver: Driver = SyncPurge(MemoryDriver())  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
session(driver=MemoryDriver)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

# A test client takes an App, not its class or its routes.
TestClient(App)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
TestClient({"/": good})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


# Sessions in other frameworks

api = FastAPI()
# The middleware needs sessions=, which session() returns.
api.add_middleware(SessionMiddleware)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
api.add_middleware(SessionMiddleware, session=sessions_of_all)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
api.add_middleware(SessionMiddleware, sessions=session)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
api.add_middleware(SessionMiddleware, sessions={"type": "memory"})  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
api.add_middleware(SessionMiddleware, secret_key="a secret")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Starlette(middleware=[Middleware(SessionMiddleware)])  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
Starlette(middleware=[Middleware(SessionMiddleware, sessions="memory")])  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
SessionMiddleware(api)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
SessionMiddleware(api, sessions_of_all)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
SessionMiddleware(sessions=sessions_of_all)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
SessionMiddleware("main:app", sessions=sessions_of_all)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
# The option is as_dict, a bool.
SessionMiddleware(api, sessions=sessions_of_all, as_dict="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
SessionMiddleware(api, sessions=sessions_of_all, dict=True)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
api.add_middleware(SessionMiddleware, sessions=sessions_of_all, as_dict="yes")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@api.get("/")
async def in_fastapi(current: Annotated[Session, Depends(get_session)], request: Request) -> str:
    # A session's calls must be awaited.
    if current.get("user"):  # type: ignore[truthy-bool]  # pyright: ignore[reportGeneralTypeIssues]
        return "logged in"
    if not current.has("user"):  # type: ignore[truthy-bool]  # pyright: ignore[reportGeneralTypeIssues]
        return "logged out"
    current.save()  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    if current.owner() is None:  # type: ignore[comparison-overlap]  # pyright: ignore[reportUnnecessaryComparison]
        return "logged out"
    current.login("user:1")  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    user: User | None = current.get("user", type=User)  # type: ignore[assignment]  # pyright: ignore[reportAssignmentType]
    name = (await current.get("user", type=User)).name  # type: ignore[union-attr]  # pyright: ignore[reportOptionalMemberAccess]
    # A session isn't a dict.
    current["user"] = "Angga"  # type: ignore[index]  # pyright: ignore[reportIndexIssue]
    # get_session() must be awaited, and takes a request.
    get_session(request)  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]
    if get_session(request):  # type: ignore[truthy-bool]  # pyright: ignore[reportUnnecessaryComparison]
        return "has a session"
    await get_session(request).get("user")  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]
    await get_session()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await get_session(request.scope)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await get_session("request")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    # update() returns the function's type.
    label: str = await current.update("count", lambda count: int(count) + 1, 0)  # type: ignore[arg-type, return-value]  # pyright: ignore[reportAssignmentType]
    return f"{user}{name}{label}"


def sync_lifespan() -> None:
    with sessions_of_all.running():  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        pass


async def lifespan() -> None:
    # running() must be called.
    async with sessions_of_all.running:  # type: ignore[attr-defined]  # pyright: ignore[reportGeneralTypeIssues]
        pass
    # It is a context manager.
    await sessions_of_all.running()  # type: ignore[misc]  # pyright: ignore[reportGeneralTypeIssues]
