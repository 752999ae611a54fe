"""`gaman routes`: one row for each path and handler, with what runs before it and where it is written."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

import pytest

import gaman
from gaman import Context, Integration, Middleware, Table, define_routes
from gaman._command_routes import describe
from gaman.session import require_fresh
from tests.serving import running

HERE = Path(__file__)


async def home(ctx: Context) -> str:
    return "home"


async def guard(ctx: Context) -> None:
    pass


async def audit(ctx: Context) -> None:
    pass


async def show(prefix: str, ctx: Context) -> str:
    return prefix


class Users:
    __hash__ = None  # type: ignore[assignment]  # an object that compares by value
    """A handler need not be hashable."""

    async def list(self, ctx: Context) -> str:
        return "list"

    async def __call__(self, ctx: Context) -> str:
        return "call"


def traced(handler: Callable[[Context], Awaitable[str]]) -> Callable[[Context], Awaitable[str]]:
    @wraps(handler)
    async def wrapper(ctx: Context) -> str:
        return await handler(ctx)

    return wrapper


def around(app: Any) -> Any:
    return app


class Around:
    def __init__(self, app: Any, header: str = "") -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


@traced
async def decorated(ctx: Context) -> str:
    return "decorated"


def rows(app: gaman.App) -> list[list[str]]:
    """Return the cells of the table, by the columns that its first line has."""
    title, *lines = "\n".join(describe(app)).split("\n\n")[0].splitlines()
    starts = [title.index(name) for name in ("methods", "path", "middleware", "handler", "line")]
    return [[line[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)] for line in lines]


def line_of(text: str) -> str:
    """Return the place of the line of this file that begins with *text*, as the table shows it."""
    lines = HERE.read_text(encoding="utf-8").splitlines()
    [number] = [number for number, line in enumerate(lines, 1) if line.strip().startswith(text)]
    return f"{HERE.name}:{number}"


def test_each_kind_of_handler_has_its_name_and_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE.parent)
    users = Users()
    app = gaman.App(
        {"/": home, "/partial": partial(show, "x"), "/method": users.list, "/object": users, "/decorated": decorated},
    )
    assert [(path, handler, line) for _, path, _, handler, line in rows(app)] == [
        ("/", "home", line_of("async def home")),
        ("/partial", "show", line_of("async def show")),
        ("/method", "Users.list", line_of("async def list")),
        ("/object", "Users.__call__", line_of("async def __call__(self, ctx")),
        ("/decorated", "decorated", line_of("@traced")),
    ]


def test_a_file_outside_the_working_directory_has_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    [[*_, line]] = rows(gaman.App({"/": home}))
    assert line == str(HERE.parent / line_of("async def home"))


def test_methods_with_one_handler_share_a_row_and_others_do_not() -> None:
    table: Table = {"/": {"GET": home, "POST": home, "PUT": [guard, home]}, "/all": home}
    assert [row[:4] for row in rows(gaman.App(table))] == [
        ["GET, POST", "/", "", "home"],
        ["PUT", "/", "guard", "home"],
        ["ALL", "/all", "", "home"],
    ]


def test_a_row_names_the_middleware_that_runs_before_its_handler_in_order() -> None:
    table: Table = {
        "*": audit,
        "/admin/*": [guard, audit],
        "/admin/users": {"/:id": [guard, home]},
        "/unused/*": {"POST": guard, "PUT": audit},
    }
    assert [row[:4] for row in rows(gaman.App(table))] == [
        ["ALL", "*", "", "audit"],
        ["ALL", "/admin/*", "guard", "audit"],
        ["ALL", "/admin/users/:id", "audit, guard, audit, guard", "home"],
        ["ALL", "/unused/*", "", "POST guard, PUT audit"],
    ]


def test_middleware_that_is_written_twice_has_one_row() -> None:
    table: Table = {"/admin/*": guard, "/admin": {"/*": guard, "/users": home}}
    assert [row[:4] for row in rows(gaman.App(table))] == [
        ["ALL", "/admin/*", "", "guard"],
        ["ALL", "/admin/users", "guard, guard", "home"],
    ]


def test_middleware_that_runs_for_some_requests_of_a_route_has_its_path() -> None:
    table: Table = {"/files/private/*": guard, "/users/:id/*": audit, "/files/:path*": home, "/users/:name/posts": home}
    assert [(path, middleware) for _, path, middleware, *_ in rows(gaman.App(table))][2:] == [
        ("/files/:path*", "guard (/files/private/*)"),
        ("/users/:name/posts", "audit"),
    ]


def test_the_table_of_a_function_is_made_with_the_deps() -> None:
    def table(deps: str) -> Table:
        return {f"/{deps}": home}

    assert [row[1] for row in rows(gaman.App(define_routes(table), deps="shop"))] == ["/shop"]


def test_the_integrations_follow_in_the_order_in_which_they_run() -> None:
    app = gaman.App(
        {"/": home},
        integrations=[
            Integration(name="late", priority="low", on_shutdown=lambda app: None),
            Integration(name="first", on_request=guard, on_response=lambda ctx, response: None),
        ],
    )
    assert list(describe(app))[-3:] == [
        "integration  priority  hooks",
        "first        normal    on_request, on_response",
        "late         low       on_shutdown",
    ]


def test_asgi_middleware_is_listed_the_outermost_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(HERE.parent)
    app = gaman.App({"/": home}, middleware=[around, Middleware(Around, header="x"), Around])
    assert [line.split() for line in list(describe(app))[-4:]] == [
        ["ASGI", "middleware", "line"],
        ["around", line_of("def around")],
        ["Around", line_of("async def __call__(self, scope")],
        ["Around", line_of("async def __call__(self, scope")],
    ]


def test_columns_are_aligned_and_no_cell_is_cut_or_coloured() -> None:
    long = "/" + "x" * 300
    title, *lines = describe(gaman.App({"/": home, long: home}))
    assert len(lines) == 2
    assert len({line.index("home") for line in lines} | {title.index("handler")}) == 1
    assert long in lines[1]
    assert "\x1b" not in title + "".join(lines)
    assert not [line for line in lines if line != line.rstrip()]


def test_the_command_prints_the_table_and_opens_no_store(tmp_path: Path) -> None:
    source = """
import gaman
from gaman.session import session

async def front(ctx):
    return "home"

async def check(ctx):
    pass

app = gaman.App(
    {"/admin/*": check, "/admin": {"GET": front}},
    integrations=[session("a secret of the tests, long enough", {"type": "redis", "url": "redis://127.0.0.1:1"})],
)
"""
    (tmp_path / "main.py").write_text(source)
    with running("-m", "gaman", "routes", "main:app", cwd=tmp_path) as program:
        assert program.wait() == 0, program.stderr
        assert program.stdout == (
            "methods  path      middleware  handler  line\n"
            "ALL      /admin/*              check    main.py:8\n"
            "GET      /admin    check       front    main.py:5\n"
            "\n"
            "integration  priority   hooks\n"
            "session      very-high  on_load, on_shutdown, on_route, on_error, make_session, close_session, on_purge, on_check\n"
        )
        assert program.stderr == ""


def test_a_mounted_app_shows_its_own_routes_below_its_prefix() -> None:
    inner = gaman.App({"*": audit, "/": home, "/deep/*": gaman.mount(gaman.App({"/end": {"GET": home}}))})
    app = gaman.App({"*": guard, "/in/*": gaman.mount(inner), "/": home})
    assert [row[:4] for row in rows(app)] == [
        ["ALL", "*", "", "guard"],
        ["ALL", "/in/*", "guard", "mount(App)"],
        ["ALL", "/in/*", "guard", "audit"],
        ["ALL", "/in/", "guard, audit", "home"],
        ["ALL", "/in/deep/*", "guard, audit", "mount(App)"],
        ["GET", "/in/deep/end", "guard, audit", "home"],
        ["ALL", "/", "guard", "home"],
    ]


def test_a_guard_that_a_call_makes_is_shown_as_it_is_written() -> None:
    guards = [require_fresh(300), require_fresh(60, redirect="/code", level=2)]
    rows = [*describe(gaman.App(define_routes({"/email": [*guards, home]})))]
    assert "  require_fresh(300), require_fresh(60, redirect='/code', level=2)  home " in rows[1]
