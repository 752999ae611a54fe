"""Mistakes in users' code, each with one message that names the mistake, its line and the fix."""

from __future__ import annotations

import asyncio
import logging
import re
import warnings
from collections.abc import Callable, Generator, Iterable
from pathlib import Path
from typing import Any

import pytest

from gaman import App, ConfigError, Context, Response, ResultError
from gaman._tracebacks import explain, location_of
from gaman.errors import a_type
from gaman.session import session
from gaman.static import static
from gaman.testing import TestClient

SECRET = "a secret of the tests, long enough"

IMPORTS = f"""
import gaman
from gaman import App, Middleware, define_integration, define_routes, mount
from gaman.cors import cors
from gaman.session import session
from gaman.static import static
async def home(ctx): return "hello"
async def asgi(scope, receive, send): ...
def no_arguments(): ...
def of_ctx(ctx): ...
def swapped(response, ctx): ...
async def chunks(ctx): yield "chunk"
class GZipMiddleware:
    def __init__(self, app, minimum_size=500): self.app = app
    async def __call__(self, scope, receive, send): await self.app(scope, receive, send)
routes, options = {{"/": home}}, {{"secret": {SECRET!r}}}
"""

STARTS = [
    # Middleware and integrations in each other's list
    (
        "App(routes, integrations=[Middleware(GZipMiddleware)])",
        "integrations holds the ASGI middleware GZipMiddleware; write middleware=[Middleware(GZipMiddleware, ...)]",
    ),
    (
        "App(routes, integrations=[GZipMiddleware])",
        "integrations holds the ASGI middleware GZipMiddleware; write middleware=[Middleware(GZipMiddleware, ...)]",
    ),
    (
        "App(routes, integrations=[home])",
        "integrations holds the async function home; one for every request goes into the routes, as {'*': home}",
    ),
    (
        "App(routes, integrations=[asgi])",
        "integrations holds the application asgi; put it into the routes, as {'/path/*': mount(...)}",
    ),
    ("App(routes, integrations=[session])", "integrations holds session itself; write integrations=[session()]"),
    (
        "App(routes, middleware=[session(**options)])",
        "middleware holds the integration 'session'; write integrations=[session(...)]",
    ),
    *(
        (
            f"App(routes, middleware=[{name}])",
            f"middleware holds {name}, which makes an integration; write integrations=[{name}(...)]",
        )
        for name in ("session", "static", "cors")
    ),
    (
        "App(routes, middleware=[home])",
        "middleware holds the async function home; one for every request goes into the routes, as {'*': home}, and ",
    ),
    # Arguments that a call doesn't take
    ("session(max_agee=3)", "session() has no option 'max_agee'; did you mean 'max_age'?"),
    ("App(routes, integration=[])", "App() has no option 'integration'; did you mean 'integrations'?"),
    ("gaman.serve(routes, worker=2)", "serve() has no option 'worker'; did you mean 'workers'?"),
    ("cors('*', path='/')", "cors() has no option 'path'; it takes origins, methods, headers, "),
    ("static('/a', dirr='public')", "static() has no option 'dirr'; it takes path, folder, fallback, "),
    ("static('/a')", "static(): missing a required argument: 'folder'; it takes path, folder, "),
    (
        "define_integration(name='x', on_requests=of_ctx)",
        "Integration() has no option 'on_requests'; did you mean 'on_request'?",
    ),
    ("define_routes(routes, strct=True)", "define_routes() has no option 'strct'; did you mean 'strict'?"),
    (
        "App(routes, [session(**options)])",
        "App() takes routes without a name; name the other options, as in integrations=...",
    ),
    # Hooks
    (
        "define_integration(name='x', on_request=no_arguments)",
        "on_request of the integration 'x': no_arguments takes (), but is called as no_arguments(ctx)",
    ),
    (
        "define_integration(name='x', on_response=of_ctx)",
        "on_response of the integration 'x': of_ctx takes (ctx), but is called as of_ctx(ctx, response)",
    ),
    (
        "define_integration(name='x', on_response=swapped)",
        "on_response of the integration 'x': swapped takes (response, ctx), but is called as swapped(ctx, response)",
    ),
    (
        "define_integration(name='x', on_request=chunks)",
        "on_request of the integration 'x': chunks is a generator, because it holds `yield`; ",
    ),
    (
        "define_integration(name='x', on_load=home(None))",
        "on_load of the integration 'x': home is called here; write home by itself, ",
    ),
    ("define_integration(name='x', on_load=1)", "on_load of the integration 'x': an int isn't a function"),
    # Values of routes
    ("App({'/a/*': asgi})", "/a/*: asgi is an ASGI application, not a handler; write {'/a/*': mount(asgi)}"),
    (
        "App({'/a/*': GZipMiddleware(None)})",
        "/a/*: GZipMiddleware is an ASGI application, not a handler; write {'/a/*': mount(app)}",
    ),
    (
        "App({'/a': static('/a', 'public')})",
        "/a: an integration isn't a handler; write App(..., integrations=[...])",
    ),
    ("App({'/': 1})", "/: an int isn't a handler; "),
    ("App({'/': None})", "/: None isn't a handler; "),
]


@pytest.mark.parametrize(("call", "message"), STARTS, ids=[call for call, _ in STARTS])
def test_a_call_that_cannot_work_raises_an_error_with_its_line_and_the_fix(call: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        exec(compile(IMPORTS + call, "script.py", "exec"), {})
    assert explain(raised.value).startswith(message)
    assert location_of(raised.value) == f" (script.py, line {IMPORTS.count(chr(10)) + 1}, in <module>)"


async def form_item(ctx: Any) -> Any:
    return ctx.form()["x"]


async def form_variable(ctx: Any) -> Any:
    data = ctx.form()
    return data["x"]


async def form_attribute(ctx: Any) -> Any:
    return ctx.form().fields


async def form_unpacked(ctx: Any) -> Any:
    fields, _ = ctx.form()
    return fields


async def form_as_attribute(ctx: Any) -> Any:
    return ctx.form_as(int).name


async def input_compared(ctx: Any) -> Any:
    return {"is": ctx.input("x") == "y"}


async def input_tested(ctx: Any) -> Any:
    return "yes" if ctx.input("x") else "no"


async def input_formatted(ctx: Any) -> Any:
    return f"hello {ctx.input('x')}"


async def input_added(ctx: Any) -> Any:
    return "hello " + ctx.input("x")


async def input_as_a_key(ctx: Any) -> Any:
    return {"a": 1}[ctx.input("x")]


async def json_iterated(ctx: Any) -> Any:
    return list(ctx.json())


async def json_contains(ctx: Any) -> Any:
    return {"is": "x" in ctx.json()}


async def json_as_a_number(ctx: Any) -> Any:
    return int(ctx.json())


async def json_returned(ctx: Any) -> Any:
    return ctx.json()


async def json_within_a_result(ctx: Any) -> Any:
    return {"is": [ctx.json()]}


async def json_kept(ctx: Any) -> Any:
    await ctx.session.set("x", ctx.json())


async def session_item(ctx: Any) -> Any:
    return ctx.session.get("x")["y"]


async def form_without_a_call(ctx: Any) -> Any:
    return ctx.form["x"]


async def json_without_a_call(ctx: Any) -> Any:
    return ctx.json["x"]


async def form_as_a_dict(ctx: Any) -> Any:
    return (await ctx.form())["x"]


async def form_get(ctx: Any) -> Any:
    return (await ctx.form()).get("x")


async def cookie_item(ctx: Any) -> Any:
    return ctx.cookies["x"]


async def cookie_set(ctx: Any) -> Any:
    ctx.cookies["x"] = "y"


async def cookie_deleted(ctx: Any) -> Any:
    del ctx.cookies["x"]


async def cookie_contained(ctx: Any) -> Any:
    return {"is": "x" in ctx.cookies}


async def cookie_attribute(ctx: Any) -> Any:
    return ctx.cookies.theme


async def query_called(ctx: Any) -> Any:
    return ctx.query("x")


async def query_attribute(ctx: Any) -> Any:
    return ctx.query.page


async def params_attribute(ctx: Any) -> Any:
    return ctx.params.id


async def request(ctx: Any) -> Any:
    return ctx.request.method


async def args(ctx: Any) -> Any:
    return ctx.args["x"]


async def misspelt(ctx: Any) -> Any:
    return ctx.cookeis


async def user(ctx: Any) -> Any:
    return ctx.user


async def item_of_the_context(ctx: Any) -> Any:
    return ctx["x"]


async def item_set_on_the_context(ctx: Any) -> Any:
    ctx["x"] = 1


async def query_awaited(ctx: Any) -> Any:
    return await ctx.query.get("x")


async def stream_without_async_for(ctx: Any) -> Any:
    return list(ctx.stream())


async def update_without_default(ctx: Any) -> Any:
    def add(n: int) -> int:
        return n + 1

    return await ctx.session.update("n", add)


Handle = Callable[[Any], Any]
LACKS = "AttributeError: 'Context' object has no attribute"
REQUESTS: dict[Handle, str] = {
    **dict.fromkeys([form_item, form_variable, form_attribute, form_unpacked], "ResultError: write `await` before ctx.form(...)"),
    form_as_attribute: "ResultError: write `await` before ctx.form_as(...)",
    **dict.fromkeys(
        [input_compared, input_tested, input_formatted, input_added, input_as_a_key],
        "ResultError: write `await` before ctx.input(...)",
    ),
    **dict.fromkeys([json_iterated, json_contains, json_as_a_number], "ResultError: write `await` before ctx.json(...)"),
    json_returned: "ResultError: a handler returned the coroutine 'ctx.json': write `await` before that call",
    json_within_a_result: "ResultError: the result holds the coroutine 'ctx.json': write `await` before that call",
    json_kept: "SessionSerializationError: the session can't keep 'x', the coroutine 'ctx.json': write `await` before that call",
    session_item: "SessionUseError: write `await` before ctx.session.get(...)",
    form_without_a_call: "TypeError: ctx.form is a method; write `(await ctx.form()).fields[...]`",
    json_without_a_call: "TypeError: ctx.json is a method; write ctx.json(...), with `await` if it is async",
    form_as_a_dict: "ResultError: a form isn't a dict: write form.fields['x'], or form.files['x']",
    form_get: "AttributeError: 'Form' object has no attribute 'get'; its fields are in form.fields, and its files in form.files",
    cookie_item: "ResultError: cookies aren't a dict: write ctx.cookies.get('x')",
    cookie_set: "ResultError: cookies aren't a dict: write ctx.cookies.set('x', ...)",
    cookie_deleted: "ResultError: cookies aren't a dict: write ctx.cookies.delete('x')",
    cookie_contained: "ResultError: cookies aren't a dict: write ctx.cookies.has('x')",
    cookie_attribute: "AttributeError: 'Cookies' object has no attribute 'theme'; write .get('theme')",
    query_called: "TypeError: 'Fields' object is not callable; write ctx.query.get(...)",
    query_attribute: "AttributeError: 'Fields' object has no attribute 'page'; write .get('page')",
    params_attribute: "AttributeError: 'mappingproxy' object has no attribute 'id'; write .get('id')",
    request: f"{LACKS} 'request'; ctx is the request, as in ctx.method",
    args: f"{LACKS} 'args'; the query is ctx.query",
    misspelt: f"{LACKS} 'cookeis'; did you mean 'cookies'?",
    user: f"{LACKS} 'user'; what you add to a request yourself goes into ctx.locals['user']",
    item_of_the_context: "TypeError: 'Context' object is not subscriptable; what the hooks and handlers of a request share is in ",
    item_set_on_the_context: "TypeError: 'Context' object does not support item assignment; what the hooks and handlers of ",
    query_awaited: "TypeError: ctx.query isn't async; write it without `await`",
    stream_without_async_for: "TypeError: ctx.stream() is asynchronous; write `async for`",
    update_without_default: "SessionUseError: update('n'): the key is missing, so the function got None: give a default, as in "
    "`await ctx.session.update('n', lambda value: ..., 0)`: unsupported operand type(s) for +: 'NoneType' and 'int'",
}


@pytest.fixture(scope="module")
def client() -> Generator[Any]:
    app = App({f"/{each.__name__}": each for each in REQUESTS}, integrations=[session(SECRET)])
    with TestClient(app, raise_errors=False) as client:
        yield client


@pytest.mark.parametrize("handler", REQUESTS, ids=lambda handler: handler.__name__)
def test_a_mistake_of_a_handler_is_one_line_of_the_log(handler: Handle, client: Any, caplog: pytest.LogCaptureFixture) -> None:
    name = handler.__name__
    with caplog.at_level(logging.INFO), warnings.catch_warnings():
        # A coroutine that Python itself reports would be a second line.
        warnings.simplefilter("error")
        assert client.post(f"/{name}", data={"x": "y"}).status_code == 500
    [line] = [record.getMessage() for record in caplog.records if record.name == "gaman"]
    assert line.startswith(f"POST '/{name}' failed: {REQUESTS[handler]}")
    assert re.search(rf" \(\S*test_mistakes.py, line \d+, in ({name})\)$", line)
    assert caplog.records[-1].exc_info is None


def test_the_calls_of_a_context_are_still_coroutines() -> None:
    async def handler(ctx: Context) -> list[Any]:
        task = asyncio.create_task(ctx.text())
        assert "ctx.text" in repr(task)
        text, body, again = await asyncio.gather(task, ctx.body(), ctx.text())
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ctx.disconnected(), 0.01)
        return [text, body.decode(), again, repr(ctx.text())[:9]]

    with TestClient(App({"/": handler})) as client, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert client.post("/", content="hello").json() == ["hello"] * 3 + ["<gaman._c"]


def test_an_uploaded_file_that_is_used_without_await_names_the_call() -> None:
    async def handler(ctx: Context) -> str:
        photo: Any = await ctx.file("photo")
        with pytest.raises(ResultError, match=r"write `await` before UploadedFile\.read\(\.\.\.\)"):
            photo.read().decode()
        return str(await photo.read(), "utf-8")

    with TestClient(App({"/": handler})) as client:
        assert client.post("/", files={"photo": b"pixels"}).text == "pixels"


def test_a_field_that_the_request_lacks_is_reported_to_the_client_as_by_query_as() -> None:
    async def search(ctx: Context) -> str:
        return ctx.query["q"]

    async def create(ctx: Context) -> str:
        return (await ctx.form()).fields["name"]

    async def default(ctx: Context) -> str:
        try:
            return ctx.query["q"]
        except KeyError as error:
            return f"{ctx.query.get('q', 'nothing')}, {error}"

    with TestClient(App({"/search": search, "/create": create, "/default": default})) as client:
        missing = client.get("/search")
        assert (missing.status_code, missing.json()) == (422, {"detail": "is required", "path": "$.q"})
        assert client.get("/search?q=cats").text == "cats"
        assert client.post("/create", data={"q": "x"}).json()["path"] == "$.name"
        assert client.post("/create", data={"name": "Tom"}).text == "Tom"
        assert client.get("/default").text == "nothing, 422 the field 'q' is required"


def test_an_error_of_the_start_names_the_line_that_made_the_integration(tmp_path: Path) -> None:
    app = App({}, integrations=[static("/assets", tmp_path / "missing")])
    with pytest.raises(ConfigError, match="doesn't exist; create it") as raised:
        asyncio.run(app.load())
    line = test_an_error_of_the_start_names_the_line_that_made_the_integration.__code__.co_firstlineno + 1
    name = "test_an_error_of_the_start_names_the_line_that_made_the_integration"
    assert explain(raised.value).endswith(f"test_mistakes.py, line {line}, in {name})")


def test_the_warning_of_a_weak_secret_names_the_line_that_made_the_session(caplog: pytest.LogCaptureFixture) -> None:
    app = App({}, integrations=[session("secret")])
    asyncio.run(app.load())
    [line] = [record.getMessage() for record in caplog.records if "secret" in record.getMessage()]
    assert line.startswith("a session secret of 6 bytes can be guessed; make one of at least 32 with `gaman key`")
    assert re.search(r" \(\S*test_mistakes.py, line \d+, in test_the_warning_of_a_weak\w+\)$", line)


async def visits(ctx: Context) -> dict[str, Any]:
    return {"visits": await ctx.session.get("visits")}


def site() -> App:
    return App({"/": visits}, integrations=[session(SECRET, {"type": "memory"})])


def test_a_block_of_a_sync_client_that_is_used_in_another_way_explains_itself() -> None:
    with TestClient(site()) as client:
        block: Any = client.session()
        for use in (lambda: block.set("visits", 1), lambda: block["visits"], lambda: asyncio.run(enter(block))):
            with pytest.raises(RuntimeError, match=r"write `with client.session\(\) as session:`, and use `session` in"):
                use()
        with client.session() as opened:
            opened.set("visits", 1)
        assert client.get("/").json() == {"visits": 1}


async def enter(block: Any) -> None:
    async with block:
        pass


@pytest.mark.anyio
async def test_a_block_of_an_async_client_that_is_used_in_another_way_explains_itself() -> None:
    async with TestClient(site()) as client:
        block: Any = client.session()
        with pytest.raises(RuntimeError, match=r"write `async with client.session\(\) as session:`, and use"), block:
            pass
        with pytest.raises(RuntimeError, match=r"write `async with client.session\(\) as session:`, and use"):
            block.set("visits", 1)
        caller: Any = client
        with pytest.raises(RuntimeError, match="this client is async: write `await` before the call itself"):
            caller.call(visits)


def test_a_call_through_the_client_takes_an_async_function() -> None:
    async def double(number: int) -> int:
        return 2 * number

    with TestClient(site()) as client:
        call: Any = client.call
        assert call(double, 2) == 4
        with pytest.raises(TypeError, match=r"takes the function and its arguments: write client.call\(.*double, \.\.\.\)"):
            call(double(2))
        with pytest.raises(TypeError, match=r"client.call\(\) takes an async function, and .*site isn't one"):
            call(site)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "an int"),
        ("", "a str"),
        (None, "None"),
        (object(), "an object"),
        ([], "a list"),
        (Response(""), "a Response"),
        (ResultError(), "a ResultError"),
        (session(SECRET), "a SessionIntegration"),
        (type("HTTPThing", (), {})(), "an HTTPThing"),
        (type("UUID", (), {})(), "a UUID"),
        (type("UploadedFile", (), {})(), "an UploadedFile"),
        (type("Integration", (), {})(), "an Integration"),
    ],
)
def test_the_article_of_a_type_fits_its_name(value: object, text: str) -> None:
    assert a_type(value) == text


def test_no_message_has_an_article_of_its_own_before_the_name_of_a_type() -> None:
    def sources() -> Iterable[Path]:
        root = Path(__file__).parent.parent
        return (path for folder in ("gaman", "integrations") for path in (root / folder).rglob("*.py"))

    found = [path for path in sources() if re.search(r"\ba \{type\(\w+\)\.__name__\}", path.read_text(encoding="utf-8"))]
    assert found == []
