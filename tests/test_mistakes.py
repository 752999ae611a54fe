"""Mistakes in users' code, each with one message that names the mistake, its line and the fix."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import re
import warnings
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterable
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
from starlette.responses import JSONResponse

from gaman import App, ConfigError, Context, HTTPError, Integration, Response, ResultError, _hints, mount
from gaman._tracebacks import explain, location_of
from gaman.errors import a_type
from gaman.session import session
from gaman.static import static
from gaman.testing import TestClient
from tests.asgi import Fetch

SECRET = "a secret of the tests, long enough"

IMPORTS = f"""
import gaman
from contextlib import asynccontextmanager
from gaman.testing import TestClient
from starlette.applications import Starlette
from gaman import App, Middleware, define_integration, define_routes, mount
from gaman.cors import cors
from gaman.headers import headers
from gaman.session import session
from gaman.static import static
async def home(ctx): return "hello"
async def asgi(scope, receive, send): ...
def no_arguments(): ...
def of_ctx(ctx): ...
def swapped(response, ctx): ...
async def show(ctx, user_id, post_id): ...
async def show_user(request, user_id, post_id): ...
async def chunks(ctx): yield "chunk"
class GZipMiddleware:
    def __init__(self, app, minimum_size=500): self.app = app
    async def __call__(self, scope, receive, send): await self.app(scope, receive, send)
class Lazy:
    def __init__(self, app): ...
    async def __call__(self, request): ...
@asynccontextmanager
async def lifespan(app): yield
class Mine: ...
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
        for name in ("session", "static", "cors", "headers")
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
    ("headers(hst=0)", "headers() has no option 'hst'; did you mean 'hsts'?"),
    ("headers(csp={'scrip_src': []})", "headers(csp=...): 'scrip_src' isn't a directive; did you mean 'script-src'?"),
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
    (
        "define_integration(name='x', on_load=lifespan)",
        "on_load of the integration 'x': lifespan is a generator, because it holds `yield`; write what follows it as on_shutdown",
    ),
    ("define_integration(name='x', on_load=1)", "on_load of the integration 'x': an int isn't a function"),
    # Values of routes
    ("App({'/scope/*': asgi})", "/scope/*: asgi is an ASGI application, not a handler; write {'/scope/*': mount(asgi)}"),
    ("App({'/a/*': asgi})", "/a/*: asgi is an ASGI application, not a handler; write {'/a/*': mount(asgi)}"),
    (
        "App({'/a/*': GZipMiddleware(None)})",
        "/a/*: GZipMiddleware is an ASGI application, not a handler; write {'/a/*': mount(app)}",
    ),
    (
        "App({'/a': static('/a', 'public')})",
        "/a: an integration isn't a handler; write App(..., integrations=[...])",
    ),
    (
        "App({'/users/:user_id/posts/:post_id<int>': show})",
        "/users/:user_id/posts/:post_id<int>: the handler show takes (ctx, user_id, post_id), but is called as show(ctx); path ",
    ),
    ("App({'/users/:user_id/*': show_user})", "/users/:user_id/*: the handler show_user takes (request, user_id, post_id), but "),
    (
        "App({'/api/*': Starlette()})",
        "/api/*: Starlette is an ASGI application, not a handler; write {'/api/*': mount(app)}",
    ),
    (
        "App({'/api': {'GET': asgi}})",
        "GET /api: asgi is an ASGI application, not a handler; write {'/api/*': mount(asgi)}",
    ),
    (
        "App({'*': GZipMiddleware})",
        "*: GZipMiddleware is ASGI middleware; write App(..., middleware=[Middleware(GZipMiddleware, ...)])",
    ),
    (
        "App(routes, middleware=[GZipMiddleware(None)])",
        "middleware holds an object of GZipMiddleware; write Middleware(GZipMiddleware, ...), with its options",
    ),
    (
        "App(routes, middleware=[Lazy])",
        "the middleware Lazy: its __call__ takes (request), but is called with scope, receive and send",
    ),
    (
        "App(routes, integrations=[Mine()])",
        "integrations holds a Mine; make an integration of its methods: define_integration(name=..., on_request=...)",
    ),
    ("gaman.serve('main:app')", "App() takes routes, not text; give the table or App itself, or run `gaman serve main:app`"),
    ("session({'type': 'sql'})", "session(): the first argument is the secret; write session(driver={...})"),
    ("cors('*', methods=['GTE'])", "cors(methods=...): 'GTE' isn't a method; did you mean 'GET'?"),
    ("TestClient(App({}), raise_error=False)", "TestClient() has no option 'raise_error'; did you mean 'raise_errors'?"),
    (
        "TestClient(App({}), raise_server_exceptions=False)",
        "TestClient() has no option 'raise_server_exceptions'; did you mean 'raise_errors'?",
    ),
    ("App({'/:id<integer>': home})", "ALL /:id<integer>: ':id<integer>' has the type 'integer'; write :id<int>"),
    ("App({'/:id<path>': home})", "ALL /:id<path>: ':id<path>' has the type 'path'; write :id*, which takes the rest"),
    ("App({'/': 1})", "/: an int isn't a handler; "),
    ("App({'/': None})", "/: None isn't a handler; "),
]


@pytest.mark.parametrize(("call", "message"), STARTS, ids=[call for call, _ in STARTS])
def test_a_call_that_cannot_work_raises_an_error_with_its_line_and_the_fix(call: str, message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        exec(compile(IMPORTS + call, "script.py", "exec"), {"__name__": "script"})
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


async def body_parsed(ctx: Any) -> Any:
    return json.loads(ctx.body())


async def body_variable_parsed(ctx: Any) -> Any:
    body = ctx.body()
    return json.loads(body)


async def text_joined(ctx: Any) -> Any:
    return ",".join([ctx.text()])  # noqa: FLY002 - the mistake


async def query_of_another_name(request: Any) -> Any:
    return request.query("x")


async def item_of_another_name(request: Any) -> Any:
    return request["x"]


async def user_set(request: Any) -> Any:
    request.user = "Tom"


async def update_without_default(ctx: Any) -> Any:
    def add(n: int) -> int:
        return n + 1

    return await ctx.session.update("n", add)


async def context_next(ctx: Any) -> Any:
    return await ctx.next()


async def json_with_status_code(ctx: Any) -> Any:
    return Response.json({}, status_code=201)  # type: ignore[call-arg]  # the mistake


async def error_with_status_code(ctx: Any) -> Any:
    raise HTTPError(status_code=404)  # type: ignore[call-arg]  # the mistake


async def error_without_status(ctx: Any) -> Any:
    raise HTTPError  # type: ignore[call-arg,unused-ignore]  # the mistake


async def cookie_with_samesite(ctx: Any) -> Any:
    ctx.cookies.set("a", "b", samesite="lax")


async def input_of_a_type(ctx: Any) -> Any:
    return await ctx.input("x", int)


async def query_of_a_type(ctx: Any) -> Any:
    return ctx.query.get("x", type=int)


async def session_updated_with_a_dict(ctx: Any) -> Any:
    await ctx.session.update({"a": 1})


async def form_with_a_size_in_words(ctx: Any) -> Any:
    await ctx.form(max_size="5MB")


async def form_getlist(ctx: Any) -> Any:
    return (await ctx.form()).fields.getlist("x")


async def html_of_nothing(ctx: Any) -> Any:
    return Response.html(None)  # type: ignore[arg-type]  # the mistake


async def pages() -> AsyncGenerator[str]:
    yield "page"


async def returned_generator(ctx: Any) -> Any:
    return pages()


async def returned_response_of_starlette(ctx: Any) -> Any:
    return JSONResponse({})


async def missing_local(ctx: Any) -> Any:
    return ctx.locals["user"]


async def missing_nonce(ctx: Any) -> Any:
    return f'<script nonce="{ctx.locals["csp_nonce"]}">'


Handle = Callable[[Any], Any]
LACKS = "AttributeError: 'Context' object has no attribute"
UNFIT = "TypeError: HTTPError.__init__()"
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
    query_of_another_name: "TypeError: 'Fields' object is not callable; write ctx.query.get(...)",
    item_of_another_name: "TypeError: 'Context' object is not subscriptable; what the hooks and handlers of a request share is in ",
    user_set: f"{LACKS} 'user'; what you add to a request yourself goes into ctx.locals['user']",
    context_next: f"{LACKS} 'next'; a handler that returns None passes the request on",
    json_with_status_code: "TypeError: Response.json() got an unexpected keyword argument 'status_code'; did you mean 'status'?",
    error_with_status_code: f"{UNFIT} got an unexpected keyword argument 'status_code'; did you mean 'status'?",
    error_without_status: f"{UNFIT} missing 1 required positional argument: 'status'; it takes status, detail, headers",
    cookie_with_samesite: "TypeError: Cookies.set() got an unexpected keyword argument 'samesite'; did you mean 'same_site'?",
    input_of_a_type: "TypeError: Context.input() takes 2 positional arguments but 3 were given; for values of a type, write ctx.q",
    query_of_a_type: "TypeError: get() got an unexpected keyword argument 'type'; for values of a type, write ctx.query_as(Class) ",
    session_updated_with_a_dict: "TypeError: Session.update() missing 1 required positional argument: 'fn'; it takes key, fn, def",
    form_with_a_size_in_words: "ResultError: max_size='5MB' isn't a number of bytes; give an int, such as 5 << 20 for 5 MiB",
    form_getlist: "AttributeError: 'Fields' object has no attribute 'getlist'; write .getall(...)",
    html_of_nothing: "ResultError: Response.html() takes a str, not None (",
    returned_generator: "ResultError: a handler returned an async_generator; write Response.stream(pages(...))",
    returned_response_of_starlette: "ResultError: a handler returned a JSONResponse of another framework; return gaman's Response",
    missing_local: "KeyError: ctx.locals has no 'user'; have a hook or a handler before this one set it, or write ctx.locals.get(",
    missing_nonce: "KeyError: ctx.locals has no 'csp_nonce'; write App(..., integrations=[headers(), ...]), and leave the nonce in",
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


class Elsewhere:
    """A class of the user, with the names of the context."""

    path = "x"

    def query(self, *_: object) -> list[int]:
        return [1]

    def json(self) -> None: ...

    async def stream(self) -> AsyncIterator[int]:
        yield 1


def foreign(name: str) -> Any:
    """Return an object of the user, whose class has the *name* of one of the framework's."""
    return type(name, (), {"__slots__": ()})()


FOREIGN: list[Callable[[Any], Any]] = [
    lambda _: Elsewhere().json["x"],  # type: ignore[index]
    lambda _: list(Elsewhere().stream()),  # type: ignore[call-overload]
    lambda ctx: Elsewhere().json[ctx.path],  # type: ignore[index]
    lambda _: foreign("Fields")("x"),
    lambda ctx: foreign("Fields")(ctx.path),
    lambda ctx: foreign("Context")[ctx.path],
    lambda _: json.loads(foreign("Call")),
    *(
        lambda _, name=name: foreign(name).emial
        for name in ("Form", "Headers", "Fields", "Cookies", "mappingproxy", "Context", "Session", "CookieSession")
    ),
    lambda _: setattr(foreign("Context"), "user", 1),
    lambda _: MappingProxyType({}).id,  # type: ignore[attr-defined]
]


@pytest.mark.parametrize("use", FOREIGN)
def test_an_error_of_an_object_of_the_user_has_no_hint_and_keeps_its_traceback(
    use: Callable[[Any], Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def handler(ctx: Context) -> str:
        await ctx.session.get("x")
        return f"{use(ctx)}"

    with TestClient(App({"/": handler}, integrations=[session(SECRET)]), raise_errors=False) as client:
        assert client.get("/").status_code == 500
    [line] = [record for record in caplog.records if record.name == "gaman" and record.levelname == "ERROR"]
    assert (line.getMessage(), line.exc_info is None) == ("GET '/' failed", False)


def test_an_await_of_another_object_has_no_hint(caplog: pytest.LogCaptureFixture) -> None:
    async def handler(ctx: Context) -> Any:
        database: Any = Elsewhere()
        return await database.query(ctx.path)

    with TestClient(App({"/": handler}), raise_errors=False) as client:
        assert client.get("/").status_code == 500
    assert "GET '/' failed" in [record.getMessage() for record in caplog.records]


async def home(ctx: Context) -> str:
    return "home"


async def lost(ctx: Context) -> str:
    raise LookupError("lost")


async def passes(ctx: Context) -> None:
    pass


def true(*_: object) -> Any:
    return True


async def true_guard(ctx: Context) -> Any:
    return True


BLAMED: dict[str, App] = {
    "on_request": App({"/": home}, integrations=[Integration(name="x", on_request=true)]),
    "on_response": App({"/": home}, integrations=[Integration(name="x", on_response=true)]),
    "on_unmatched": App({}, integrations=[Integration(name="x", on_unmatched=true)]),
    "guard": App({"*": true_guard, "/": home}),
    "guard in a list": App({"/": [true_guard, home]}),
    "last in a list": App({"/": [passes, true_guard]}),
}


@pytest.mark.parametrize("case", BLAMED)
def test_a_result_that_cannot_be_sent_names_the_hook_or_guard_that_returned_it(case: str, caplog: pytest.LogCaptureFixture) -> None:
    with TestClient(BLAMED[case], raise_errors=False) as client:
        assert client.get("/").status_code == 500
    name = "true" if case.startswith("on_") else "true_guard"
    subject = "a handler" if case == "last in a list" else name
    [line] = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert line.startswith(f"GET '/' failed: ResultError: {subject} returned a bool; return a Response, str, ")
    assert re.search(rf" \(\S*test_mistakes.py, line \d+, in {name}\)$", line)


def test_an_on_error_hook_that_fails_is_named(caplog: pytest.LogCaptureFixture) -> None:
    def broken(ctx: Context, error: Exception) -> None:
        raise KeyError("broken")

    hooks = [Integration(name="a", on_error=true), Integration(name="b", on_error=broken)]
    with TestClient(App({"/": lost}, integrations=hooks), raise_errors=False) as client:
        assert client.get("/").status_code == 500
    _, first, second = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert first.startswith("the on_error hook true failed on GET '/': ResultError: true returned a bool; ")
    assert re.search(r" \(\S*test_mistakes.py, line \d+, in true\)$", first)
    assert re.fullmatch(r"the on_error hook \S*broken failed on GET '/'", second)


@pytest.mark.parametrize("depth", [1, 2])
def test_a_mounted_app_logs_the_path_and_the_id_that_the_client_sent(depth: int, caplog: pytest.LogCaptureFixture) -> None:
    app, path = App({"/x": lost}), "/x"
    for _ in range(depth):
        app, path = App({"/api/*": mount(app)}), f"/api{path}"
    with TestClient(app, raise_errors=False) as client:
        assert client.get(path, headers={"x-request-id": "one"}).status_code == 500
    [record] = [record for record in caplog.records if record.levelname == "ERROR"]
    assert record.getMessage() == f"GET {path!r} failed"
    assert (vars(record)["request_id"], vars(record)["path"]) == ("one", path)


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("get", "routes are a table: App({'/path': {'GET': handler}})"),
        ("route", "routes are a table: App({'/path': {'GET': handler}})"),
        ("run", "write gaman.serve(app), or run `gaman serve main:app`"),
        ("test_client", "write gaman.testing.TestClient(app)"),
        ("add_middleware", "write App(..., middleware=[Middleware(Class, ...)])"),
        ("state", "what handlers share is App(..., deps=...), which they have as ctx.app.deps"),
        ("shutdwon", "did you mean 'shutdown'?"),
    ],
)
def test_an_attribute_that_an_app_lacks_says_what_to_write(name: str, hint: str) -> None:
    app = App({})
    with pytest.raises(AttributeError) as raised:
        getattr(app, name)
    assert str(raised.value) == f"'App' object has no attribute {name!r}; {hint}"
    assert not hasattr(app, "__wrapped__")


def test_every_hint_of_an_app_is_for_a_name_that_it_lacks() -> None:
    assert [name for name in _hints._APP if hasattr(App({}), name)] == []
    assert [name for name in _hints._INSTEAD if hasattr(Context, name)] == []


def test_a_class_of_the_user_with_the_name_of_ours_gets_no_hint_of_ours() -> None:
    class Response:
        def __init__(self, body: str) -> None: ...

    with pytest.raises(TypeError) as raised:
        Response("x", status_code=3)  # type: ignore[call-arg]  # the mistake
    assert _hints.hint_of(raised.value, Context({}, None, {}, App({}))) == ""  # type: ignore[arg-type]  # never received


@pytest.mark.anyio
async def test_without_a_lifespan_the_message_names_the_client_for_tests(fetch: Fetch) -> None:
    app = App({"/": home}, integrations=[session(SECRET)])
    with pytest.raises(ConfigError, match=r"lifespan support on, or in a test use gaman.testing.TestClient\(app\), in a `with` "):
        await fetch(app, "/")


@pytest.mark.anyio
async def test_the_result_of_an_on_load_hook_is_ignored() -> None:
    app = App({"/": home}, integrations=[Integration(name="x", on_load=true, on_shutdown=true)])
    await app.load()
    await app.shutdown()


@pytest.mark.anyio
async def test_an_error_of_on_load_names_the_integration() -> None:
    def fail(app: App) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no") as raised:
        await App({}, integrations=[Integration(name="x", on_load=fail)]).load()
    [note] = raised.value.__notes__
    assert re.fullmatch(r"on_load of the integration 'x' failed \(\S*test_mistakes.py, line \d+, in test_\w+\)", note)


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


@pytest.mark.filterwarnings("ignore:coroutine .* was never awaited", "ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("handler", [body_parsed, body_variable_parsed, text_joined])
def test_a_function_of_python_that_refuses_a_call_is_explained(handler: Handle, caplog: pytest.LogCaptureFixture) -> None:
    with TestClient(App({"/": handler}), raise_errors=False) as client:
        assert client.post("/").status_code == 500
    gc.collect()
    [line] = [record.getMessage() for record in caplog.records if record.name == "gaman"]
    assert re.search(
        rf"\bCall\b.*; write `await` before the call of ctx \(\S*test_mistakes.py, line \d+, in {handler.__name__}\)$", line
    )


def test_a_call_that_is_never_awaited_is_named_by_the_warning_of_python() -> None:
    async def handler(ctx: Context) -> str:
        call: Any = ctx
        call.body()
        call.form_as(dict)
        return "hello"

    with TestClient(App({"/": handler})) as client, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert client.post("/").text == "hello"
        gc.collect()
    names = {f"coroutine '{name}' was never awaited" for name in ("ctx.body", "ctx.form_as")}
    assert names <= {str(warning.message).partition("\n")[0] for warning in caught}


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


def test_the_place_of_an_error_is_the_same_at_each_start_and_no_note_is_part_of_it() -> None:
    error = ConfigError("no store")
    error.add_note("a note of the user")

    def fail(app: App) -> None:
        raise error

    app = App({}, integrations=[replace(Integration(name="x", on_load=fail), name="y")])
    for _ in range(2):
        with pytest.raises(ConfigError):
            asyncio.run(app.load())
    assert re.fullmatch(r"no store \(\S*test_mistakes.py, line \d+, in test_the_place_of_an_error\w+\)", explain(error))
    assert error.__notes__ == ["a note of the user"]


def test_middleware_whose_annotation_speaks_of_an_integration_is_middleware() -> None:
    class IntegrationTracer:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await self.app(scope, receive, send)

    def trace(app: Any) -> IntegrationTracer:
        return IntegrationTracer(app)

    async def home(ctx: Context) -> str:
        return "hello"

    with TestClient(App({"/": home}, middleware=[trace])) as client:
        assert client.get("/").text == "hello"


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
        (type("ORM", (), {})(), "an ORM"),
        (type("RLock", (), {})(), "an RLock"),
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
