"""Hints: what to write in place of an attribute, an argument or a use that the App or the context doesn't have."""

from __future__ import annotations

import re
from collections.abc import Iterable
from inspect import signature
from traceback import extract_tb, walk_tb

from gaman._calls import Call
from gaman._context import Context
from gaman._cookies import Cookies
from gaman._fields import Fields
from gaman._forms import Form, UploadedFile
from gaman._headers import Headers
from gaman._response import Response
from gaman.errors import HTTPError, InvalidInput, nearest

_lacks_attribute = re.compile(r"'(\w+)' object has no attribute '(\w+)'").match
_names_call = re.compile(r"\bCall\b").search
_calls = re.compile(r"\bctx\.(query|headers|cookies|params)\s*\(").search
_subscribes_method = re.compile(r"\bctx\.(form|json|body|text|stream|param|header|cookie|input|inputs|file|files)\s*\[").search

_awaits = re.compile(
    r"await\s+ctx\.(query_as|query|param|params|header|headers|cookie|cookies|locals|stream|method|path|url|ip)\b"
).search

_INSTEAD = {
    name: instead
    for names, instead in (
        ("request req", "ctx is the request, as in ctx.method"),
        ("response res resp set_header", "return Response(..., headers=...)"),
        ("status status_code", "return Response(..., status)"),
        ("redirect", "return Response.redirect(...)"),
        ("set_cookie", "write ctx.cookies.set(...)"),
        ("args query_params GET queries search_params", "the query is ctx.query"),
        ("path_params view_args match_info kwargs", "the path's parameters are ctx.params"),
        ("POST form_data post values", "write `await ctx.form()`"),
        ("FILES", "write `await ctx.file(...)`"),
        ("get_json", "write `await ctx.json()`"),
        ("data get_data content raw", "write `await ctx.body()`"),
        ("remote_addr client remote client_ip", "the client's address is ctx.ip"),
        ("user_agent content_type content_length referrer", "write ctx.header(...)"),
        ("state g store", "what you add to a request yourself goes into ctx.locals"),
        ("deps", "write ctx.app.deps"),
        ("next call_next", "a handler that returns None passes the request on"),
    )
    for name in names.split()
}
"""What other frameworks call an attribute of their request, and what to write here."""
_CALLS = {
    "query": "ctx.query.get(...)",
    "headers": "ctx.header(...)",
    "cookies": "ctx.cookie(...)",
    "params": "ctx.param(...)",
}
"""What to write in place of a call of these attributes."""


_APP = {
    name: instead
    for names, instead in (
        (
            "get post put patch delete options head route add_route add_url_rule add_api_route api_route",
            "routes are a table: App({'/path': {'GET': handler}})",
        ),
        ("include_router register_blueprint", "write a table below a prefix: App({'/prefix': {'/path': handler}})"),
        ("mount add_asgi", "write App({'/path/*': mount(application)})"),
        ("run serve listen", "write gaman.serve(app), or run `gaman serve main:app`"),
        ("test_client test_request_context", "write gaman.testing.TestClient(app)"),
        ("add_middleware", "write App(..., middleware=[Middleware(Class, ...)])"),
        ("use wsgi_app before_request after_request", "one handler for all requests is {'*': handler} in the routes"),
        ("teardown_request teardown_appcontext", "write define_integration(name=..., on_response=...)"),
        ("add_integration add_plugin register plugin", "write App(..., integrations=[...])"),
        (
            "exception_handler add_exception_handler errorhandler register_error_handler",
            "write define_integration(name=..., on_error=...)",
        ),
        (
            "on_event add_event_handler lifespan on_startup on_shutdown",
            "write define_integration(name=..., on_load=..., on_shutdown=...)",
        ),
        ("state config extra settings db", "what handlers share is App(..., deps=...), which they have as ctx.app.deps"),
        ("session sessions secret_key", "write App(..., integrations=[session()]), and ctx.session in a handler"),
        ("add_cors", "write App(..., integrations=[cors(...)])"),
        ("websocket websocket_route", "WebSockets are served by another ASGI application, beside this one"),
        ("url_for url_path_for", "write the path as text"),
        ("logger", "write logging.getLogger(...)"),
    )
    for name in names.split()
}
"""What other frameworks call an attribute of their application, and what to write here."""

_unfit_call = re.compile(
    r"(?P<cls>\w+)\.(?P<name>\w+)\(\) (?:got an unexpected keyword argument '(?P<given>\w+)'|takes |missing |got )"
).match
_CALLED: tuple[type, ...] = (Context, Cookies, Fields, Form, Headers, HTTPError, InvalidInput, Response, UploadedFile)
"""The classes whose parameters are explained, besides the session's."""
_gets_field = re.compile(r"\.(query|fields)\.get\(").search
_TYPED = "for values of a type, write ctx.query_as(Class) or `await ctx.form_as(Class)`"


def hint_of_app(name: str, known: Iterable[str]) -> str:
    """Return what to write in place of the attribute *name*, which an App doesn't have; *known* are those that it has."""
    return f"; {_APP[name]}" if name in _APP else nearest(name, [each for each in known if each[0] != "_"])


def hint_of(error: Exception, ctx: Context) -> str:
    """Return what to write instead of what raised *error*, an error of Python's own; "" for any other error.

    Objects of the user's classes may have the same names, so an error without its object needs a line that names the context.
    """
    # A class of the user may fail in str().
    if type(error) is AttributeError:
        return _hint_of_attribute(error, str(error), ctx)
    if type(error) is KeyError:
        return _hint_of_local(error, ctx)
    if type(error) is not TypeError:
        return ""
    message = str(error)
    if (unfit := _unfit_call(message)) is not None:
        # Python 3.13 adds a suggestion of its own.
        return _hint_of_call(error, message.partition(". Did you mean")[0], unfit, ctx)
    line = _line_of(error, ctx)
    if _names_call(message) is not None and (line or _has_call(error)):
        return f"{message}; write `await` before the call of ctx"
    if not line:
        return ""
    if message.endswith("' object is not callable") and (used := _calls(line)) is not None:
        return f"{message}; write {_CALLS[used[1]]}"
    if message.startswith("'Context' object ") and "ctx[" in line:
        return f"{message}; what the hooks and handlers of a request share is in ctx.locals[...]"
    if message == "'method' object is not subscriptable" and (used := _subscribes_method(line)) is not None:
        name = used[1]
        fix = "`(await ctx.form()).fields[...]`" if name == "form" else f"ctx.{name}(...), with `await` if it is async"
        return f"ctx.{name} is a method; write {fix}"
    if message.startswith("get() ") and _gets_field(line) is not None:
        return f"{message}; {_TYPED}"
    if "await" in message and (used := _awaits(line)) is not None:
        return f"ctx.{used[1]} isn't async; write it without `await`"
    if message == "'async_generator' object is not iterable" and "ctx.stream(" in line:
        return "ctx.stream() is asynchronous; write `async for`"
    return ""


def _hint_of_call(error: TypeError, message: str, unfit: re.Match[str], ctx: Context) -> str:
    """Return the *message* of a call whose arguments don't fit, and the parameter that was meant, or else all of them."""
    kinds = {cls.__name__: cls for cls in (*_CALLED, *type(ctx._session).__mro__)}
    *_, (frame, _) = walk_tb(error.__traceback__)
    cls = kinds.get(unfit["cls"])
    # A class of the user may have the same name.
    function = getattr(cls, unfit["name"], None)
    if function is None or {**frame.f_globals, **frame.f_locals}.get(unfit["cls"], cls) is not cls:
        return ""
    known = [name for name in signature(function).parameters if name != "self"]
    given = unfit["given"]
    if cls is Context and unfit["name"] == "input" and (given == "type" or "takes" in message):
        return f"{message}; {_TYPED}"
    near = "" if given is None else nearest(given, known)
    return message + (near or "; it takes " + (", ".join(known) or "no argument"))


def _hint_of_local(error: KeyError, ctx: Context) -> str:
    key: object = error.args[0] if error.args else None
    # The key of another dict on that line may be missing.
    if not isinstance(key, str) or key in ctx.locals or f"ctx.locals[{key!r}]" not in _line_of(error, ctx).replace('"', "'"):
        return ""
    fix = f"have a hook or a handler before this one set it, or write ctx.locals.get({key!r})"
    if key == "csp_nonce":
        fix = "write App(..., integrations=[headers(), ...]), and leave the nonce in its csp"
    return f"ctx.locals has no {key!r}; {fix}"


def _hint_of_attribute(error: AttributeError, message: str, ctx: Context) -> str:
    # The text is parsed because before Python 3.12 the error of setting an attribute has no object.
    if (found := _lacks_attribute(message)) is None:
        return ""
    message, name, thing = found[0], found[2], error.obj
    if thing is None:
        used = re.search(rf"\bctx\.(?:(session|query|headers|cookies|params)\.)?{name}\b", _line_of(error, ctx))
        thing = None if used is None else getattr(ctx, used[1]) if used[1] else ctx
    if thing is ctx:
        known = [each for each in dir(ctx) if each[0] != "_"]
        if name in _INSTEAD:
            return f"{message}; {_INSTEAD[name]}"
        near = nearest(name, known, 0.75)
        return f"{message}{near or f'; what you add to a request yourself goes into ctx.locals[{name!r}]'}"
    if thing is not None and thing is ctx._session:
        return f"{message}; write `await ctx.session.get({name!r})`, or `await ctx.session.set({name!r}, ...)`"
    if isinstance(thing, Form):
        return f"{message}; its fields are in form.fields, and its files in form.files"
    if isinstance(thing, Fields) and name == "getlist":
        return f"{message}; write .getall(...)"
    if isinstance(thing, (Fields, Headers, Cookies)) or thing is ctx.params:
        return f"{message}; write .get({name!r})"
    return ""


def _line_of(error: Exception, ctx: Context) -> str:
    """Return the last line of the traceback if it names *ctx*, which is called `ctx` in it whatever its name is; "" otherwise."""
    *_, (frame, _) = walk_tb(error.__traceback__)
    line = extract_tb(error.__traceback__)[-1].line or ""
    for name, value in frame.f_locals.items():
        if value is ctx and (renamed := re.sub(rf"\b{name}\b", "ctx", line)) != re.sub(rf"\b{name}\b", "", line):
            return renamed
    return ""


def _has_call(error: Exception) -> bool:
    """Return whether the function that raised *error* has a Call, as `json.loads(body)` has one without `await`."""
    *_, (frame, _) = walk_tb(error.__traceback__)
    return any(type(value) is Call for value in frame.f_locals.values())
