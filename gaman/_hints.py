"""Hints: what to write in place of an attribute or a use that the context doesn't have."""

from __future__ import annotations

import re
from traceback import extract_tb

from gaman._context import Context
from gaman.errors import nearest

_lacks_attribute = re.compile(r"'(\w+)' object has no attribute '(\w+)'").match
_is_called = re.compile(r"'(\w+)' object is not callable").match
_subscribes_method = re.compile(r"\.(form|json|body|text|stream|param|header|cookie|input|inputs|file|files)\s*\[").search

_awaits = re.compile(
    r"await\s+\w+\.(query_as|query|param|params|header|headers|cookie|cookies|locals|stream|method|path|url|ip)\b"
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
    )
    for name in names.split()
}
"""What other frameworks call an attribute of their request, and what to write here."""
_CALLS = {
    "Fields": "ctx.query.get(...)",
    "Headers": "ctx.header(...)",
    "Cookies": "ctx.cookie(...)",
    "mappingproxy": "ctx.param(...)",
}
"""What to write in place of a call, by the type of what is called."""


def hint_of(error: Exception, ctx: Context) -> str:
    """Return what to write instead of what raised *error*, an error of Python's own; "" for any other error."""
    # Not a subclass, whose str() may fail.
    if type(error) not in (AttributeError, TypeError):
        return ""
    message = str(error)
    if isinstance(error, AttributeError):
        return _hint_of_attribute(error, message, ctx)
    if (called := _is_called(message)) is not None and called[1] in _CALLS:
        return f"{message}; write {_CALLS[called[1]]}"
    if message.startswith("'Context' object "):
        return f"{message}; what the hooks and handlers of a request share is in ctx.locals[...]"
    line = extract_tb(error.__traceback__)[-1].line or ""
    if message == "'method' object is not subscriptable" and (used := _subscribes_method(line)) is not None:
        name = used[1]
        fix = "`(await ctx.form()).fields[...]`" if name == "form" else f"ctx.{name}(...), with `await` if it is async"
        return f"ctx.{name} is a method; write {fix}"
    if "await" in message and (used := _awaits(line)) is not None:
        return f"ctx.{used[1]} isn't async; write it without `await`"
    if message == "'async_generator' object is not iterable" and ".stream(" in line:
        return "ctx.stream() is asynchronous; write `async for`"
    return ""


def _hint_of_attribute(error: AttributeError, message: str, ctx: Context) -> str:
    # The text is parsed because before Python 3.12 the error of setting an attribute has no object.
    if (found := _lacks_attribute(message)) is None:
        return ""
    message, kind, name = found[0], found[1], found[2]
    if kind == type(ctx).__name__ and (error.obj is ctx or error.obj is None):
        known = [each for each in dir(ctx) if each[0] != "_"]
        if name in _INSTEAD:
            return f"{message}; {_INSTEAD[name]}"
        near = nearest(name, known, 0.75)
        return f"{message}{near or f'; what you add to a request yourself goes into ctx.locals[{name!r}]'}"
    if ctx._session is not None and kind == type(ctx._session).__name__:
        return f"{message}; write `await ctx.session.get({name!r})`, or `await ctx.session.set({name!r}, ...)`"
    if kind == "Form":
        return f"{message}; its fields are in form.fields, and its files in form.files"
    if kind in _CALLS and (kind != "mappingproxy" or error.obj is ctx.params):
        return f"{message}; write .get({name!r})"
    return ""
