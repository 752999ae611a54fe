"""The errors that people meet: a table of them, each with one message that names the mistake, its place and the fix.

An error of a start ends the process with status 1 and a line on stderr. An error of a request is a line in the log. Neither shows
a frame of this framework.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Generator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.serving import Program, get, running, running_script

SECRET = "a secret of the tests, long enough"

# Each row has the values for the braces.
START = """import sys
import gaman
from gaman.session import session
{before}
async def home(ctx):
    return "hello"

app = gaman.App({routes}, integrations=[session({options})])
if __name__ == "__main__":
    gaman.serve({{"/": home}}, integrations=[session({options})], port={port})
"""


class Start(NamedTuple):
    """A script that doesn't start, and its message."""

    message: str
    options: str = f"{SECRET!r}"
    before: str = ""
    routes: str = '{"/": home}'
    place: str = ""
    """The end of the message, which names the line of the script."""
    port: str = "0"

    def source(self) -> str:
        return START.format(before=self.before, routes=self.routes, options=self.options, port=self.port)


def driver(text: str) -> str:
    return f"{SECRET!r}, {text}"


HERE = " (main.py, line 8, in <module>)"
STARTS = {
    "no secret": Start(
        "session() has no secret: run `gaman key --env .env`, then `gaman serve --env-file .env main:app`; or, for a "
        "script, `export GAMAN_KEY=$(gaman key)`",
        options="",
        place=HERE,
    ),
    "empty secret": Start("session(): a secret is empty, or isn't printable text; run `gaman key` to make one", '""', place=HERE),
    "bad driver name": Start(
        "session(driver={'type': 'reddis'}): there is no such driver; the types are cookies, memory, file, redis, sql, mongodb; "
        "did you mean 'redis'?",
        driver("{'type': 'reddis'}"),
        place=HERE,
    ),
    "driver by its name": Start(
        "session(driver='redis'): it takes a dict with a type, not text; write driver={'type': 'redis'}",
        driver("'redis'"),
        place=HERE,
    ),
    "driver by its URL": Start(
        "session(driver=...): it takes a dict with a type, not text; write driver={'type': 'redis', 'url': ...}",
        driver("'redis://:hidden@localhost'"),
        place=HERE,
    ),
    "driver without a type": Start(
        "session(driver=...): the dict has no 'type'; the types are cookies, memory, file, redis, sql, mongodb",
        driver("{'url': 'redis://:hidden@localhost'}"),
        place=HERE,
    ),
    "typo in a driver's option": Start(
        "the memory driver has no option 'max_session'; it takes max_sessions; did you mean 'max_sessions'?",
        driver("{'type': 'memory', 'max_session': 5}"),
        place=HERE,
    ),
    "bad value of an option": Start(
        "session(max_age='1 day'): it takes a whole number of seconds above 0, and below a thousand years",
        driver("max_age='1 day'"),
        place=HERE,
    ),
    "name of a driver with a typo": Start(
        "session(driver=...): it takes a dict with a type, not text; write driver={'type': 'mongodb'}",
        driver("driver='mongo'"),
        place=HERE,
    ),
    "an idle limit above the absolute one": Start(
        "session(idle_timeout=7200): max_age=3600 ends every session before; write a smaller idle_timeout, or leave it out",
        driver("max_age=3600, idle_timeout=7200"),
        place=HERE,
    ),
    "a number for a switch": Start("session(secure=1): it takes True or False", driver("secure=1"), place=HERE),
    "a switch for a number": Start(
        "session(idle_timeout=True): it takes a whole number of seconds above 0, and below a thousand years",
        driver("idle_timeout=True"),
        place=HERE,
    ),
    "missing extra": Start(
        'the redis driver needs the package redis: pip install "gaman[redis]"',
        driver("{'type': 'redis'}"),
        before="sys.modules['redis'] = None",
        place=HERE,
    ),
    "missing part of an extra": Start(
        'the mongodb driver needs the package pymongo: pip install "gaman[mongodb]"',
        driver("{'type': 'mongodb', 'db_name': 'x'}"),
        before="sys.modules['bson'] = None",
        place=HERE,
    ),
    "Redis not running": Start(
        "the session store (redis) could not be reached at 127.0.0.1:1; see that it runs there, or change the driver's url: ",
        driver("{'type': 'redis', 'url': 'redis://:hidden@127.0.0.1:1'}"),
    ),
    "MongoDB not running": Start(
        "the session store (mongodb) could not prepare its collection; see that it runs where the driver's uri says, and lets this "
        "user in: 127.0.0.1:1: ",
        driver("{'type': 'mongodb', 'db_name': 'x', 'uri': 'mongodb://user:hidden@127.0.0.1:1', 'timeout': 1}"),
    ),
    "folder that can't be written to": Start(
        "the file driver can't use dir='/dev/null/sessions' (Not a directory); it takes a folder that it may write to",
        driver("{'type': 'file', 'dir': '/dev/null/sessions'}"),
    ),
    "database in a folder that can't be made": Start(
        "the sql driver has file='/dev/null/sessions.db', which can't be created: Not a directory; choose another place",
        driver("{'type': 'sql', 'file': '/dev/null/sessions.db'}"),
    ),
    "folder of sessions in a folder that is missing": Start(
        "the file driver has dir='/no-such/folder/sessions/here', but there is no folder '/no-such'; correct the path, or run "
        "`mkdir -p /no-such/folder/sessions`",
        driver("{'type': 'file', 'dir': '/no-such/folder/sessions/here'}"),
    ),
    "home folder that isn't known": Start(
        "the file driver has dir='~no-such-user/sessions', but the home folder '~no-such-user' isn't known; write the whole path",
        driver("{'type': 'file', 'dir': '~no-such-user/sessions'}"),
        place=HERE,
    ),
    "file that is no database": Start(
        "the sql driver has file='main.py', which isn't a database; choose another file",
        driver("{'type': 'sql', 'file': 'main.py'}"),
    ),
    "sync handler": Start(
        "/sync: the handler sync is not async; write `async def`",
        before="def sync(ctx): return 'hello'",
        routes='{"/sync": sync}',
        place=HERE,
    ),
    "unknown key in the routes": Start(
        "'home': a path begins with '/', and a method is one of GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE, ALL",
        routes='{"home": home}',
        place=HERE,
    ),
    "method in small letters": Start(
        "'get' below '/': write a method in capitals, 'GET'", routes='{"/": {"get": home}}', place=HERE
    ),
    "a route that is there twice": Start(
        "ALL /a/: this path and method have a route already", routes='{"/a": home, "/a/": home}', place=HERE
    ),
}


# The call is line 15 of its script.
CALL = """import asyncio
import gaman
import gaman.session as module
from gaman import Response, define_integration
from gaman.session import session

async def home(ctx):
    return "hello"

async def chunks(ctx):
    yield "chunk"

routes, options, tag = {{"/": home}}, {{"secret": {secret!r}}}, define_integration(name="tag")
app = gaman.App(routes)
{call}
"""


class Call(NamedTuple):
    """A line of a script that doesn't start, and its message, which ends with the number of the line."""

    call: str
    message: str


TWO_NAMED = "integrations holds two named 'session', which would conflict; remove one"
CALLS = {
    "an unknown option": Call("session(max_agee=3)", "session() has no option 'max_agee'; did you mean 'max_age'?"),
    "an App in an App": Call(
        "gaman.App(app)", "App() takes routes, not an App; serve an App with gaman.serve(app), or by `gaman serve main:app`"
    ),
    "the class in an App": Call("gaman.App(gaman.App)", "App is a class; make an App of routes first: gaman.App(routes)"),
    "the class served": Call("gaman.serve(gaman.App)", "App is a class; make an App of routes first: gaman.App(routes)"),
    "an App and integrations": Call(
        "gaman.serve(app, integrations=[session(**options)])",
        "gaman.serve() got an App, so pass integrations= where the App is created: gaman.App(..., integrations=...)",
    ),
    "a handler alone": Call("gaman.App(home)", "routes are a dict of paths and handlers, not a handler; write {'/': home}"),
    "one integration": Call(
        "gaman.App(routes, integrations=session(**options))",
        "integrations is a list, not the integration 'session' by itself; write integrations=[session(...)]",
    ),
    "integrations without a call": Call(
        "gaman.App(routes, integrations=[session])", "integrations holds session itself; write integrations=[session()]"
    ),
    "an integration's module": Call(
        "gaman.App(routes, integrations=[module])", "integrations holds the module gaman.session; import the integration from it"
    ),
    "two sessions": Call("gaman.App(routes, integrations=[session(**options), session(**options)])", TWO_NAMED),
    "integrations as text": Call(
        "gaman.App(routes, integrations='session')", "integrations is a list, not 'session'; write integrations=[session()], for "
    ),
    "a list of lists of integrations": Call(
        "gaman.App(routes, integrations=[[session(**options)]])",
        "integrations holds a list; write integrations=[session()], without another list in it",
    ),
    "an App below a path": Call(
        "gaman.App({'/api': app})", "/api: routes aren't a handler; give the dict that they are made of in their place"
    ),
    "routes defined twice": Call(
        "gaman.App(lambda: gaman.define_routes(routes))",
        "define_routes() takes a dict of paths and handlers, and these routes are defined already; pass the dict",
    ),
    "routes of more than deps": Call(
        "def make(db, cache): ...\ngaman.App(make)",
        "the function make of routes takes (db, cache); it may take `deps`, and no more",
    ),
    "a response for a handler": Call(
        "gaman.App({'/': Response('hello')})", "/: a Response isn't a handler; give an async function, or a list of them"
    ),
    "a handler that is called": Call(
        "gaman.App({'/': home(None)})", "/: home is called here; write home by itself, because each request calls it"
    ),
    "a parameter for an argument": Call(
        'async def show(id): ...\ngaman.App({"/:id": show})',
        "/:id: the handler show takes (id), but is called as show(ctx); path parameters are in ctx.params",
    ),
    "a parameter within a segment": Call(
        'gaman.App({"/users/@:name": home})',
        "ALL /users/@:name: '@:name' holds a parameter, which is a whole segment; write :name ",
    ),
    "a query in a path": Call(
        'gaman.App({"/search?q=:q": home})',
        "ALL /search?q=:q: 'search?q=:q' isn't part of a path, which ends before ? and #; the query is in ctx.query",
    ),
    "braces": Call(
        'gaman.App({"/users/{id}": home})',
        "ALL /users/{id}: '{id}' isn't a parameter, which is a whole segment with a colon; write /users/:id",
    ),
    "a converter for a path": Call(
        'gaman.App({"/files": {"/<path:name>": home}})',
        "ALL /files/<path:name>: '<path:name>' isn't a parameter, which is a whole segment with a colon; write /files/:name*",
    ),
    "a handler without ctx": Call(
        'async def show(): ...\ngaman.App({"/": show})', "/: the handler show takes (), but is called as show(ctx); "
    ),
    "a handler of more than ctx": Call(
        'async def show(ctx, id): ...\ngaman.App({"/:id": show})',
        "/:id: the handler show takes (ctx, id), but is called as show(ctx); path parameters are in ctx.params",
    ),
    "an async generator": Call(
        'gaman.App({"/": chunks})',
        "/: the handler chunks is an async generator, because it holds `yield`; write a handler that returns Response.stream() of ",
    ),
    "max_body_size": Call(
        "gaman.App(routes, max_body_size='1MB')",
        "max_body_size='1MB' isn't a number of bytes; give an int, such as 1 << 20 for 1 MiB",
    ),
    "trusted_proxies": Call(
        "gaman.App(routes, trusted_proxies=5)",
        "trusted_proxies=5 isn't a list of str; write trusted_proxies=[...], or leave it out",
    ),
    "allowed_hosts": Call(
        "gaman.App(routes, allowed_hosts=None)",
        "allowed_hosts=None isn't a list of str; write allowed_hosts=[...], or leave it out",
    ),
    "debug": Call(
        "gaman.App(routes, debug='0')",
        "debug='0' is neither True nor False, and any text counts as true; compare a text, as in os.environ.get('NAME') == '1'",
    ),
    "reload": Call("gaman.serve(routes, reload='no')", "reload='no' is neither True nor False, and any text counts as true; "),
    "port": Call("gaman.serve(app, port='80')", "port='80' isn't a port; write port=int('80')"),
    "host": Call("gaman.serve(app, host=80)", "host=80 isn't an address of this machine; "),
    "workers": Call("gaman.serve(app, workers='2')", "workers='2' isn't a number of processes; give 1 or more"),
    "timeout_request": Call(
        "gaman.serve(app, timeout_request='30')", "timeout_request='30' isn't a time for clients; give seconds, such as 30"
    ),
    "timeout_graceful_shutdown": Call(
        "gaman.serve(app, timeout_graceful_shutdown='30')",
        "timeout_graceful_shutdown='30' isn't a time for requests; give seconds, such as 30",
    ),
    "max_connections": Call(
        "gaman.serve(app, max_connections='9')",
        "max_connections='9' isn't a number of clients; give 1 or more, or None for no limit",
    ),
    "a loop that runs": Call(
        "async def main(): gaman.serve(app, port=0)\nasyncio.run(main())",
        "gaman.serve() runs its own event loop, and one is already running here; call it outside `async def`, or write "
        "`await uvicorn.Server(uvicorn.Config(gaman.App(...), proxy_headers=False)).serve()`",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_a_call_that_cannot_work_is_reported_in_one_line(name: str, tmp_path: Path) -> None:
    row = CALLS[name]
    with running_script(CALL.format(secret=SECRET, call=row.call), tmp_path) as program:
        status, stderr = program.wait(), program.stderr
    assert status == 1
    assert stderr.count("\n") == 1, stderr
    assert stderr.startswith(f"gaman: {row.message}"), stderr
    assert re.search(r" \(script.py, line 1[56], in \S+\)\n$", stderr), stderr


SCRIPT = ("main.py",)
COMMAND = ("-m", "gaman", "serve", "main:app", "--port", "0")
OTHER_SERVER = ("-m", "uvicorn", "main:app", "--port", "0")


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        *((name, SCRIPT) for name in STARTS),
        *((name, COMMAND) for name in ("no secret", "sync handler", "Redis not running")),
        *((name, OTHER_SERVER) for name in ("no secret", "sync handler", "missing extra")),
    ],
    ids=str,
)
def test_an_obstacle_to_the_start_is_reported_in_one_line(name: str, arguments: tuple[str, ...], tmp_path: Path) -> None:
    row = STARTS[name]
    (tmp_path / "main.py").write_text(row.source())
    with running(*arguments, cwd=tmp_path, env={"GAMAN_KEY": ""} if row.options else {}) as program:
        status, stderr = program.wait(), program.stderr
    assert status == 1
    assert stderr.count("\n") == 1, stderr
    assert stderr.startswith(f"gaman: {row.message}"), stderr
    # A store is opened later, and the line is that of its session(): of the App, or of serve().
    place = re.escape(row.place) or r" \(main\.py, line (8|10), in <module>\)"
    assert re.search(rf"{place}\n$", stderr), stderr
    assert "hidden" not in stderr


def test_under_another_server_a_missing_store_is_reported_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(STARTS["Redis not running"].source())
    with running(*OTHER_SERVER, cwd=tmp_path) as program:
        assert program.wait() != 0
        assert "Traceback" not in program.stderr
        assert f"ERROR:    {STARTS['Redis not running'].message}" in program.stderr
        assert "hidden" not in program.stderr


def test_a_port_in_use_is_reported_in_one_line(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with running_script(Start("", port=str(port)).source(), tmp_path) as program:
            assert program.wait() == 1
            fault = f"gaman: port {port} on 127.0.0.1 is taken; stop what listens there, or take another port"
            assert program.stderr == f"{fault} (script.py, line 10, in <module>)\n"


@pytest.mark.parametrize("arguments", [SCRIPT, COMMAND], ids=["script", "command"])
def test_an_error_of_the_user_at_import_shows_only_their_frames(arguments: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(Start("", options=driver("max_age=1 / 0")).source())
    with running(*arguments, cwd=tmp_path) as program:
        assert program.wait() == 1
        assert re.findall(r'File "(.*?)", line (\d+)', program.stderr) == [(str(tmp_path / "main.py"), "8")]
        assert "ZeroDivisionError: division by zero" in program.stderr


ON_LOAD = """
import gaman
def fail(app):
    raise LookupError("no database")
app = gaman.App({}, integrations=[gaman.Integration(name="db", on_load=fail)])
if __name__ == "__main__":
    gaman.serve(app, port=0, workers=1)
"""


@pytest.mark.parametrize("arguments", [SCRIPT, COMMAND, (*COMMAND, "--workers", "2")], ids=["script", "command", "workers"])
def test_an_error_of_on_load_shows_only_the_users_frames(arguments: tuple[str, ...], tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(ON_LOAD)
    with running(*arguments, cwd=tmp_path) as program:
        assert program.wait() == 1
        assert re.findall(r'File "(.*?)", line (\d+)', program.stderr) == [(str(tmp_path / "main.py"), "4")]
        assert program.stderr.endswith(
            "LookupError: no database\non_load of the integration 'db' failed (main.py, line 5, in <module>)\n"
        )


def test_a_syntax_error_shows_only_its_own_line(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("app = (\n")
    with running(*COMMAND, cwd=tmp_path) as program:
        assert program.wait() == 1
        assert re.findall(r'File "(.*?)", line (\d+)', program.stderr) == [(str(tmp_path / "main.py"), "1")]


def test_dev_mode_and_other_hooks_get_the_whole_traceback(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text(STARTS["no secret"].source())
    with running("-X", "dev", "main.py", cwd=tmp_path) as program:
        assert program.wait() == 1
        assert "_options.py" in program.stderr


REQUESTS_SOURCE = f"""
import gaman
from gaman import Response
from gaman.session import session

class Cat:
    pass

async def no_await(ctx):
    return {{"cat": ctx.session.get("cat"), "all": [ctx.session.get("dog"), 1]}}

async def no_await_at_all(ctx):
    return ctx.session.get("cat")

async def no_await_of_a_value(ctx):
    await ctx.session.set("cat", ctx.session.get("dog"))

async def no_await_of_set(ctx):
    ctx.session.set("cat", 1)
    return "hello"

async def no_await_of_pop(ctx):
    ctx.session.pop("cat")
    return "hello"

async def condition(ctx):
    if not ctx.session.has("cat"):
        return "open"

async def comparison(ctx):
    return {{"is": ctx.session.get("cat") == "Tom"}}

async def item(ctx):
    return ctx.session["cat"]

async def item_of_a_call(ctx):
    return ctx.session.get("cat")["name"]

async def item_set(ctx):
    ctx.session["cat"] = 1

async def item_deleted(ctx):
    del ctx.session["cat"]

async def contained(ctx):
    return {{"is": "cat" in ctx.session}}

async def iterated(ctx):
    return list(ctx.session)

async def counted(ctx):
    return {{"is": len(ctx.session)}}

async def truth(ctx):
    return {{"is": bool(ctx.session)}}

async def key(ctx):
    await ctx.session.set(1, "cat")

async def nested(ctx):
    value = []
    for _ in range(100):
        value = [value]
    await ctx.session.set("cat", value)

async def unkept(ctx):
    await ctx.session.set("cat", {{"of": Cat()}})

async def no_type(ctx):
    return {{1, 2}}

async def no_json(ctx):
    return Response.json([Cat()])

async def no_body(ctx):
    return Response({{"a": 1}})

async def header(ctx):
    return Response("hello", headers={{"x": "a\\r\\nb: c"}})

async def secure(ctx):
    await ctx.session.set("cat", 1)
    return "hello"

async def broken(ctx):
    return 1 / 0

async def no_status(ctx):
    raise gaman.HTTPError("no such cat")

async def status_of_success(ctx):
    raise gaman.HTTPError(200)

async def detail(ctx):
    raise gaman.HTTPError(404, {{"error": ctx}})

async def header_of_an_int(ctx):
    return Response("hello", headers={{"x-count": 1}})

async def header_of_an_int_set(ctx):
    response = Response("hello")
    response.headers["x-count"] = 1
    return response

async def header_name(ctx):
    return Response("hello", headers={{1: "x"}})

async def header_of_an_error(ctx):
    raise gaman.HTTPError(503, headers={{"retry-after": 5}})

async def cookie_of_an_int(ctx):
    ctx.cookies.set("a", 1)
    return "hello"

async def cookie_of_bytes(ctx):
    ctx.cookies.set("a", b"b")
    return "hello"

async def cookie_name(ctx):
    ctx.cookies.set(1, "a")
    return "hello"

async def cookie_path(ctx):
    ctx.cookies.set("a", "b", path=None)
    return "hello"

async def tuple_of_a_status(ctx):
    return {{"error": "no"}}, 401

async def returned_error(ctx):
    return gaman.HTTPError(404)

async def no_call(ctx):
    return ctx.json

async def deep_result(ctx):
    deep = []
    deep.append(deep)
    return deep

async def surrogate(ctx):
    return "\\udcff"

async def surrogate_of_json(ctx):
    return {{"name": "\\udcff"}}

async def file_of_none(ctx):
    return Response.file(None)

async def root_of_an_int(ctx):
    return Response.file("a", root=1)

async def json_of_a_value(ctx):
    return await ctx.json({{"a": 1}})

async def attribute(ctx):
    ctx.user = "a"

async def session_attribute(ctx):
    return ctx.session.user

async def session_attribute_set(ctx):
    ctx.session.user = "a"

async def owner(ctx):
    await ctx.session.set_owner(1)

async def owner_of_list(ctx):
    return str(await sessions.list(None))

async def keep(ctx):
    await ctx.session.set("n", 1)
    await sessions.end_all("user:1", keep="the handle")

async def lifetime(ctx):
    await ctx.session.regenerate(max_age="1 day")

async def update_by_a_value(ctx):
    await ctx.session.update("n", 5)

async def update_by_a_coroutine(ctx):
    async def add(n): return n + 1
    await ctx.session.update("n", add, 0)

async def update_in_place(ctx):
    await ctx.session.update("cart", lambda cart: cart.append(1), [])

async def no_return(ctx):
    Response.json({{"a": 1}})

async def passes(ctx):
    pass

sessions = session({SECRET!r}, driver={{"type": "memory"}})
gaman.serve(
    {{f"/{{f.__name__}}": f for f in [
        no_await, no_await_at_all, no_await_of_a_value, no_await_of_set, no_await_of_pop, condition, comparison, item,
        item_of_a_call, item_set, item_deleted, contained, iterated, counted, truth, key, nested, attribute, session_attribute,
        session_attribute_set, unkept, no_type, no_json, no_body, header, secure, broken, no_status, status_of_success, detail,
        header_of_an_int, header_of_an_int_set, header_name, header_of_an_error,
        cookie_of_an_int, cookie_of_bytes, cookie_name, cookie_path, no_return,
        tuple_of_a_status, returned_error, no_call,
        deep_result, surrogate, surrogate_of_json, file_of_none, root_of_an_int, json_of_a_value,
        owner, owner_of_list, keep, lifetime, update_by_a_value, update_by_a_coroutine, update_in_place,
    ]}} | {{"/no_return_of_the_last": [passes, no_return], "/guarded/*": passes}},
    integrations=[sessions],
    port=0,
)
"""
NO_SESSION_SOURCE = """
import gaman

async def no_session(ctx):
    return await ctx.session.get("cat")

gaman.serve({"/no_session": no_session}, port=0)
"""


class Request(NamedTuple):
    """The log line of a request, and the source of the handler's line that it names."""

    message: str
    line: str | None


REQUESTS = {
    "no_await": Request(
        "ResultError: the result holds the coroutine 'ctx.session.get': write `await` before that call", "async def no_await(ctx)"
    ),
    "no_await_at_all": Request(
        "ResultError: a handler returned the coroutine 'ctx.session.get': write `await` before that call",
        "async def no_await_at_all(ctx)",
    ),
    "no_await_of_a_value": Request(
        "SessionSerializationError: the session can't keep 'cat', the coroutine 'ctx.session.get': write `await` before that call",
        'ctx.session.set("cat", ctx',
    ),
    "condition": Request("SessionUseError: write `await` before ctx.session.has(...)", 'if not ctx.session.has("cat")'),
    "comparison": Request("SessionUseError: write `await` before ctx.session.get(...)", 'ctx.session.get("cat") == "Tom"'),
    "item": Request("SessionUseError: a session isn't a dict: write `await ctx.session.get('cat')`", 'return ctx.session["cat"]'),
    "item_of_a_call": Request("SessionUseError: write `await` before ctx.session.get(...)", 'ctx.session.get("cat")["name"]'),
    "item_set": Request(
        "SessionUseError: a session isn't a dict: write `await ctx.session.set('cat', ...)`", 'ctx.session["cat"] = 1'
    ),
    "item_deleted": Request(
        "SessionUseError: a session isn't a dict: write `await ctx.session.delete('cat')`", 'del ctx.session["cat"]'
    ),
    "contained": Request("SessionUseError: a session isn't a dict: write `await ctx.session.has('cat')`", '"cat" in ctx.session'),
    "iterated": Request("SessionUseError: a session isn't a dict: write `await ctx.session.all()`", "list(ctx.session)"),
    "counted": Request("SessionUseError: a session isn't a dict: write `len(await ctx.session.all())`", "len(ctx.session)"),
    "truth": Request(
        "SessionUseError: a session is there for every visitor: write `await ctx.session.has(...)`", "bool(ctx.session)"
    ),
    "key": Request("SessionUseError: a session's key is a str, not 1: write `await ctx.session.set('1', ...)`", 'set(1, "cat")'),
    "nested": Request(
        "SessionSerializationError: the session can't keep 'cat', a list: it is nested deeper than 100 levels",
        'ctx.session.set("cat", value)',
    ),
    "unkept": Request("SessionSerializationError: the session can't keep 'cat', a dict: ", 'ctx.session.set("cat", {"of'),
    "no_type": Request(
        "ResultError: a handler returned a set; return a Response, str, bytes, dict, list, dataclass, Struct or None",
        "async def no_type(ctx)",
    ),
    "no_json": Request(
        "ResultError: JSON can't hold a Cat; give it a dict, list, dataclass or Struct in its place", "Response.json([Cat()])"
    ),
    "no_body": Request(
        "ResultError: a Response's body is str, bytes or None, not dict; did you mean Response.json()?", 'Response({"a": 1})'
    ),
    "header": Request("HeaderError: ", 'Response("hello", headers'),
    "no_status": Request(
        "ResultError: HTTPError takes a status first, not 'no such cat'; write HTTPError(400, 'no such cat')", 'HTTPError("no'
    ),
    "status_of_success": Request(
        "ResultError: HTTPError takes a status from 400 to 599, not 200; return a Response instead", "HTTPError(200)"
    ),
    "detail": Request(
        "ResultError: HTTPError takes text or JSON data as its detail, and JSON can't hold this dict: Encoding objects of type "
        "Context is unsupported",
        "HTTPError(404, {",
    ),
    "header_of_an_int": Request("HeaderError: a header's value is a str, not 1; write '1'", 'headers={"x-count": 1}'),
    "header_of_an_int_set": Request("HeaderError: a header's value is a str, not 1; write '1'", 'headers["x-count"] = 1'),
    "header_name": Request("HeaderError: a header's name is a str, not 1; write '1'", 'headers={1: "x"}'),
    "header_of_an_error": Request("HeaderError: a header's value is a str, not 5; write '5'", "async def header_of_an_error"),
    "cookie_of_an_int": Request("HeaderError: the cookie 'a' takes a str, not 1; write '1'", 'cookies.set("a", 1)'),
    "cookie_of_bytes": Request("HeaderError: the cookie 'a' takes a str, not b'b'; write 'b'", 'cookies.set("a", b"b")'),
    "cookie_name": Request("HeaderError: a cookie's name is a str, not 1; write '1'", 'cookies.set(1, "a")'),
    "cookie_path": Request("HeaderError: the cookie 'a' has path=None; it begins with /", "path=None"),
    "tuple_of_a_status": Request(
        "ResultError: a handler returned a tuple; for a status or headers, write Response.json(..., status) or Response(",
        "async def tuple_of_a_status",
    ),
    "returned_error": Request(
        "ResultError: a handler returned the error HTTPError(404); write `raise` in the place of `return`",
        "async def returned_error",
    ),
    "no_call": Request(
        "ResultError: a handler returned Context.json itself; call it, with `await` if it is async", "async def no_call(ctx)"
    ),
    "deep_result": Request(
        "ResultError: JSON can't hold data that is nested this deep, or within itself; give it less", "async def deep_result(ctx)"
    ),
    "surrogate": Request(
        "ResultError: UTF-8 can't hold '\\udcff', half a surrogate pair, as in a file's name ", "async def surrogate(ctx)"
    ),
    "surrogate_of_json": Request(
        "ResultError: UTF-8 can't hold '\\udcff', half a surrogate pair", "async def surrogate_of_json(ctx)"
    ),
    "file_of_none": Request(
        "ResultError: Response.file() takes a path, not None; give a str or a Path, or raise HTTPError(404)", "Response.file(None)"
    ),
    "root_of_an_int": Request("ResultError: Response.file() takes a path, not 1; give a str or a Path", "root=1"),
    "json_of_a_value": Request(
        "ResultError: ctx.json() takes a type to decode the body into, not a dict; return Response.json() to answer",
        'json({"a": 1})',
    ),
    "attribute": Request(
        "AttributeError: 'Context' object has no attribute 'user'; what you add to a request yourself goes into ctx.locals['user']",
        "ctx.user =",
    ),
    "session_attribute": Request(
        "AttributeError: 'StoredSession' object has no attribute 'user'; write `await ctx.session.get('user')`",
        "return ctx.session.user",
    ),
    "session_attribute_set": Request(
        "AttributeError: 'StoredSession' object has no attribute 'user'; write `await ctx.session.get('user')`",
        "ctx.session.user = ",
    ),
    "owner": Request(
        "SessionUseError: an owner is text, and not empty, such as 'user:1'; it can't be 1", "ctx.session.set_owner(1)"
    ),
    "owner_of_list": Request("SessionUseError: an owner is text, and not empty, such as 'user:1'; it can't be None", "list(None)"),
    "keep": Request("SessionUseError: end_all() keeps a session, not 'the handle': write keep=ctx.session", 'keep="the handle'),
    "lifetime": Request("SessionUseError: max_age is a whole number of seconds, 0 or more", 'max_age="1 day"'),
    "update_by_a_value": Request(
        "SessionUseError: update() takes a plain function, not an int: write `await ctx.session.update('n', lambda value: ..., ",
        'update("n", 5)',
    ),
    "update_by_a_coroutine": Request(
        "SessionUseError: update() takes a plain function, not an async function: write `await ctx.session.update('n', lambda ",
        'update("n", add, 0)',
    ),
    "update_in_place": Request(
        "SessionUseError: update('cart'): the function returned None for a list: have it return the new value, as in `lambda ",
        "cart.append(1)",
    ),
    "no_session": Request(
        "ConfigError: ctx.session needs the session integration: pass integrations=[session(...)], from gaman.session",
        "return await ctx.session.get",
    ),
}


class Served:
    """The server of a script, and what it prints on stderr."""

    def __init__(self, program: Program) -> None:
        self._program = program

    def stderr_of(self, path: str, *, status: int) -> str:
        """Return what the server prints on stderr during one request."""
        before = self._program.stderr
        assert get(self._program.port, path).status == status
        return self._program.stderr.removeprefix(before)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Generator[Served]:
    with running_script(REQUESTS_SOURCE, tmp_path_factory.mktemp("served")) as program:
        yield Served(program)


@pytest.fixture(scope="module")
def served_without_session(tmp_path_factory: pytest.TempPathFactory) -> Generator[Served]:
    with running_script(NO_SESSION_SOURCE, tmp_path_factory.mktemp("served")) as program:
        yield Served(program)


@pytest.mark.parametrize("name", REQUESTS)
def test_a_mistake_of_a_handler_is_reported_in_one_line(name: str, request: pytest.FixtureRequest) -> None:
    source, fixture = (NO_SESSION_SOURCE, "served_without_session") if name == "no_session" else (REQUESTS_SOURCE, "served")
    row = REQUESTS[name]
    server: Served = request.getfixturevalue(fixture)
    stderr = server.stderr_of(f"/{name}", status=500)
    assert stderr.count("\n") == 1, stderr
    assert stderr.startswith(f"GET '/{name}' failed: {row.message}"), stderr
    if row.line is not None:
        number = next(number for number, line in enumerate(source.splitlines(), 1) if row.line in line)
        assert stderr.endswith(f" (script.py, line {number}, in {name})\n"), stderr


def test_a_handler_that_returns_nothing_is_reported_once(served: Served) -> None:
    line = next(number for number, text in enumerate(REQUESTS_SOURCE.splitlines(), 1) if "async def no_return(ctx)" in text)
    stderr = served.stderr_of("/no_return", status=404)
    assert stderr.startswith(
        "GET '/no_return' was answered 404, because the handler no_return returned nothing (logged once); write "
    )
    assert stderr.endswith(f" (script.py, line {line}, in no_return)\n")
    assert stderr.count("\n") == 1
    # The handler is also the last of another route.
    assert [served.stderr_of(path, status=404) for path in ("/no_return", "/no_return_of_the_last")] == ["", ""]


@pytest.mark.parametrize("path", ["/guarded/nowhere", "/nowhere"])
def test_a_path_without_a_route_is_not_reported(served: Served, path: str) -> None:
    assert served.stderr_of(path, status=404) == ""


def test_a_read_that_is_never_awaited_is_reported_in_one_line(served: Served) -> None:
    stderr = served.stderr_of("/no_await_of_pop", status=500)
    number = next(number for number, line in enumerate(REQUESTS_SOURCE.splitlines(), 1) if 'ctx.session.pop("cat")' in line)
    place = f"script.py, line {number}, in no_await_of_pop"
    said = f"ctx.session.pop(...) was never awaited: write `await` before it ({place})"
    assert stderr == f"GET '/no_await_of_pop' failed: SessionUseError: {said}\n"


def test_a_secure_cookie_over_plain_http_is_reported_once(served: Served) -> None:
    stderr = served.stderr_of("/secure", status=200)
    assert stderr.startswith("the session's cookie is Secure, and http://test/secure was requested over plain HTTP: ")
    assert stderr.endswith("or pass secure=False while developing\n")
    assert stderr.count("\n") == 1
    assert served.stderr_of("/secure", status=200) == ""


def test_a_set_that_is_not_awaited_takes_effect_silently(served: Served) -> None:
    served.stderr_of("/secure", status=200)
    assert served.stderr_of("/no_await_of_set", status=200) == ""


def test_a_traceback_begins_with_the_users_handler(served: Served) -> None:
    stderr = served.stderr_of("/broken", status=500)
    assert stderr.startswith("GET '/broken' failed\nTraceback (most recent call last):\n")
    assert [Path(file).name for file in re.findall(r'File "(.*?)"', stderr)] == ["script.py"]
    assert stderr.endswith("ZeroDivisionError: division by zero\n")
