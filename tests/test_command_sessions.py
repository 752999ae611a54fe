"""`gaman sessions`: counts, lists and ends sessions from the shell, and asks before it ends any."""

from __future__ import annotations

import asyncio
import io
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any, cast

import pytest
from starlette.applications import Starlette

import gaman
from gaman import Context, Integration
from gaman.__main__ import main
from gaman.session import Record, SessionIntegration, session
from gaman.testing import TestClient
from tests.serving import running

SECRET = "a secret of the tests that is long enough"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the module a_shop, whose App has three sessions of user:1 in SQLite, and one of user:2."""
    module: Any = ModuleType("a_shop")
    module.sessions = session(SECRET, {"type": "sql", "file": str(tmp_path / "sessions.db")}, secure=False, idle_timeout=600)

    async def login(ctx: Context) -> str:
        await ctx.session.set("user", 1)
        await ctx.session.set_owner(ctx.query["owner"], note=ctx.query["note"])
        return "ok"

    module.app = gaman.App({"/login": login}, integrations=[module.sessions])
    module.without = gaman.App({})
    module.starlette = Starlette()
    module.memory = gaman.App({}, integrations=[session(SECRET, {"type": "memory"})])
    module.cookies = session(SECRET)
    module.other = gaman.App(
        {},
        integrations=[Integration(name="other", make_session=lambda scope, closed: None, close_session=close)],  # type: ignore[arg-type,return-value]  # never called
    )

    async def log_in() -> None:
        async with TestClient(module.app) as client:
            for owner, note in (("user:1", "Firefox"), ("user:1", "\x1b[31mred\u202e"), ("user:1", "phone"), ("user:2", "x")):
                client.cookies.clear()
                assert (await client.get("/login", params={"owner": owner, "note": note})).text == "ok"

    asyncio.run(log_in())
    monkeypatch.setitem(sys.modules, "a_shop", module)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    return module


async def close(ctx: Context, made: Any, response: Any) -> Any:
    return []


def run(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    """Run the command, which ends with that *status*, and return what it prints."""
    ended = 0
    try:
        main(["sessions", *arguments])
    except SystemExit as exit_:
        ended = cast("int", exit_.code)
    assert ended == status
    return capsys.readouterr().out


def refusal(*arguments: str) -> str:
    """Run the command, which ends with status 1, and return its message."""
    with pytest.raises(SystemExit) as ended:
        main(["sessions", *arguments])
    assert isinstance(ended.value.code, str)
    return ended.value.code


@pytest.mark.parametrize("name", ["app", "sessions"])
def test_it_counts_all_sessions_and_those_of_an_owner(shop: Any, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "count", f"a_shop:{name}") == "4\n"
    assert run(capsys, "count", f"a_shop:{name}", "user:1") == "3\n"
    assert json.loads(run(capsys, "count", f"a_shop:{name}", "nobody@example.com", "--json")) == {"count": 0}


def test_a_list_has_aligned_columns_times_in_utc_and_no_control_characters(shop: Any, capsys: pytest.CaptureFixture[str]) -> None:
    title, *lines = run(capsys, "list", "a_shop:app", "user:1").splitlines()
    assert title.split("  ")[0] == "handle"
    starts = [title.index(name) for name in ("handle", "created", "last used", "expires", "note")]
    rows = [[line[start:end].strip() for start, end in zip(starts, [*starts[1:], None], strict=True)] for line in lines]
    assert [row[4] for row in rows] == ["Firefox", "\\x1b[31mred\\u202e", "phone"]
    for handle, *times, _ in rows:
        assert re.fullmatch(r"[0-9a-f]{64}", handle)
        assert all(re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", time) for time in times)
    none = "gaman: no live session of user:3 with this GAMAN_KEY; check the owner's spelling, and the key\n"
    assert run(capsys, "list", "a_shop:app", "user:3") == none


def test_a_list_as_json_is_one_array(shop: Any, capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(run(capsys, "list", "a_shop:app", "user:1", "--json"))
    assert [each["note"] for each in found] == ["Firefox", "\x1b[31mred\u202e", "phone"]
    assert [*found[0]] == ["handle", "created_at", "last_used_at", "expires_at", "note"]
    assert found[0]["created_at"] < found[0]["expires_at"]
    assert json.loads(run(capsys, "list", "a_shop:app", "user:3", "--json")) == []


def test_a_note_that_json_can_not_hold_is_shown_too(shop: Any, capsys: pytest.CaptureFixture[str]) -> None:
    note = {(1, "a"): 2, 3: [float("nan"), {None: float("-inf")}]}
    plain = {"(1, 'a')": 2, "3": [None, {"None": None}]}

    async def log_in(ctx: Context) -> str:
        await ctx.session.login("user:3", note=note)
        return "ok"

    async def work() -> None:
        async with TestClient(gaman.App({"/": log_in}, integrations=[shop.sessions])) as client:
            assert (await client.get("/")).text == "ok"

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} isn't JSON")

    asyncio.run(work())
    [found] = json.loads(run(capsys, "list", "a_shop:app", "user:3", "--json"), parse_constant=refuse)
    assert found["note"] == plain
    assert run(capsys, "list", "a_shop:app", "user:3").splitlines()[1].endswith(f"  {json.dumps(plain)}")


def test_sessions_in_cookies_are_listed_and_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async def home(ctx: Context) -> str:
        await ctx.session.login("user:1", note="a phone")
        return "hello"

    ended = {"type": "sql", "file": str(tmp_path / "ended.db")}
    sessions = session(SECRET, {"type": "cookies", "ended": ended})
    module = ModuleType("a_bakery")
    module.__dict__["sessions"] = sessions
    monkeypatch.setitem(sys.modules, "a_bakery", module)
    with TestClient(gaman.App({"/": home}, integrations=[sessions]), base_url="https://shop.example") as client:
        client.get("/")
    assert run(capsys, "count", "a_bakery:sessions", "user:1") == "1\n"
    assert [each["note"] for each in json.loads(run(capsys, "list", "a_bakery:sessions", "user:1", "--json"))] == ["a phone"]
    assert run(capsys, "end-all", "a_bakery:sessions", "user:1", "--yes") == "gaman: 1 ended\n"
    assert run(capsys, "count", "a_bakery:sessions", "user:1") == "0\n"


def test_it_ends_one_session_those_of_an_owner_and_all(shop: Any, capsys: pytest.CaptureFixture[str]) -> None:
    handle = json.loads(run(capsys, "list", "a_shop:app", "user:1", "--json"))[0]["handle"]
    assert run(capsys, "end", "a_shop:app", handle, "--yes") == "gaman: ended\n"
    none = f"gaman: no live session has the handle {handle}\n"
    assert run(capsys, "end", "a_shop:app", handle, "--yes", status=1) == none
    assert json.loads(run(capsys, "end", "a_shop:app", handle, "--yes", "--json", status=1)) == {"ended": False}
    assert run(capsys, "count", "a_shop:app") == "3\n"
    assert run(capsys, "end-all", "a_shop:app", "user:1", "--yes") == "gaman: 2 ended\n"
    assert json.loads(run(capsys, "end-all", "a_shop:app", "user:1", "--yes", "--json", status=1)) == {"ended": 0}
    none = "gaman: no live session of Angga with this GAMAN_KEY; check the owner's spelling, and the key\n"
    assert run(capsys, "end-all", "a_shop:app", "Angga", "--yes", status=1) == none
    assert run(capsys, "count", "a_shop:app") == "1\n"
    assert run(capsys, "end-everyone", "a_shop:app", "--yes") == "gaman: all sessions of all users are ended\n"
    assert json.loads(run(capsys, "end-everyone", "a_shop:app", "--yes", "--json")) == {"ended": True}
    assert run(capsys, "count", "a_shop:app") == "0\n"


ENDINGS = [
    (["end", "a_shop:app", "0" * 64], f"End the session {'0' * 64}? This can't be undone. [y/N] "),
    (["end-all", "a_shop:app", "user:1"], "End all sessions of user:1? This can't be undone. [y/N] "),
    (["end-all", "a_shop:app", "\x1b[2Juser:1\r"], "End all sessions of \\x1b[2Juser:1\\r? This can't be undone. [y/N] "),
    (["end", "a_shop:app", "\x1b[2J"], "End the session \\x1b[2J? This can't be undone. [y/N] "),
    (["end-everyone", "a_shop:app"], "End all sessions of all users of a_shop:app? This can't be undone. [y/N] "),
]


@pytest.mark.parametrize(("arguments", "question"), ENDINGS, ids=[" ".join(arguments) for arguments, _ in ENDINGS])
def test_it_asks_before_it_ends_sessions(
    shop: Any, arguments: list[str], question: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for answer in ("", "\n", "n\n", "everything\n"):
        monkeypatch.setattr(sys, "stdin", Terminal(answer))
        assert refusal(*arguments) == "gaman: nothing is ended"
        assert capsys.readouterr() == ("", question)
    assert run(capsys, "count", "a_shop:app") == "4\n"
    monkeypatch.setattr(sys, "stdin", Terminal("Yes\n"))
    finds = arguments[0] == "end-everyone" or arguments[-1] == "user:1"
    assert run(capsys, *arguments, "--json", status=0 if finds else 1)
    left = {"end-all user:1": "1\n", "end-everyone": "0\n"}.get(" ".join(arguments).replace(" a_shop:app", ""), "4\n")
    assert run(capsys, "count", "a_shop:app") == left


@pytest.mark.parametrize("arguments", [arguments for arguments, _ in ENDINGS], ids=" ".join)
def test_without_a_terminal_it_ends_sessions_only_with_yes(
    shop: Any, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert refusal(*arguments) == (
        f"gaman: gaman sessions {arguments[0]} can't be undone, and no terminal is there to confirm it; add --yes"
    )
    assert run(capsys, "count", "a_shop:app") == "4\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["list", "a_shop:app"], "write gaman sessions list a_shop:app OWNER"),
        (["end", "a_shop:app"], "write gaman sessions end a_shop:app HANDLE"),
        (["end-all", "a_shop:app"], "write gaman sessions end-all a_shop:app OWNER"),
        (["end-everyone", "a_shop:app", "user:1"], "write gaman sessions end-everyone a_shop:app"),
        (["count", "a_shop:missing"], "a_shop:missing is missing; did you mean a_shop:app?"),
        (["count", "a_shop:without"], "a_shop:without has no session(); add it to integrations=[...], or name another App"),
        (
            ["end-everyone", "a_shop:memory", "--yes"],
            "a_shop:memory keeps its sessions in its own memory, where no other process sees them; "
            "choose another driver, such as sql, or call sessions.end_everyone() in a handler",
        ),
        (
            ["count", "a_shop:starlette"],
            "gaman sessions needs a gaman.App with session(), or the session() object itself, and a_shop:starlette is Starlette; "
            "write sessions = session(...) in a_shop, and name a_shop:sessions",
        ),
        (
            ["count", "a_shop:other"],
            "gaman sessions needs a gaman.App with session(), or the session() object itself, and that of a_shop:other is "
            "Integration; write sessions = session(...) in a_shop, and name a_shop:sessions",
        ),
        (
            ["end-everyone", "a_shop:cookies", "--yes"],
            "the cookies driver doesn't support end_everyone(); "
            "take a new secret and remove the old one, which ends all sessions in cookies",
        ),
        (["list", "a_shop:app", ""], "an owner is text, and not empty, such as 'user:1'; it can't be ''"),
    ],
)
def test_what_it_cannot_do_is_one_line_with_the_fix(shop: Any, arguments: list[str], message: str) -> None:
    assert refusal(*arguments) == f"gaman: {message}"


def test_an_unknown_action_shows_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["sessions", "stop", "a_shop:app"])
    assert ended.value.code == 2
    assert "invalid choice: 'stop'" in capsys.readouterr().err


def test_a_visitor_of_a_running_process_is_logged_out_by_the_command(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(
        f"from gaman.session import session\nsessions = session({SECRET!r}, {{'type': 'sql', 'file': 'sessions.db'}})\n"
    )
    sessions: SessionIntegration = session(SECRET, {"type": "sql", "file": str(tmp_path / "sessions.db")})
    store: Any = sessions._owners._any_driver

    async def work() -> None:
        async with sessions.running():
            await store.create("a" * 64, Record({"user": b"1"}, 1e9, 9e9, 9e9))
            assert isinstance(await store.load("a" * 64, now=2e9), Record)
            await asyncio.to_thread(end)
            assert not isinstance(await store.load("a" * 64, now=2e9), Record)
            assert await sessions.count() == 0

    def end() -> None:
        with running("-m", "gaman", "sessions", "end-everyone", "main:sessions", "--yes", cwd=tmp_path) as program:
            assert program.wait() == 0, program.stderr
            assert program.stdout == "gaman: all sessions of all users are ended\n"

    asyncio.run(work())
