"""Applications: checks that a value is an ASGI 3 application, and says what to write in place of anything else."""

from __future__ import annotations

from collections.abc import Coroutine
from inspect import isclass, iscoroutinefunction, ismodule, isroutine
from typing import cast

from gaman._asgi import Application
from gaman._handlers import fits, function_of, has_routes, name_of, signature_of
from gaman._response import close_coroutine
from gaman.errors import ConfigError


def check_application(where: str, value: object) -> Application:
    """Return *value* if it is an ASGI 3 application; ConfigError begins with *where* it isn't, and says what to write."""
    if (fault := _fault(value)) is not None:
        raise ConfigError(f"{where}: {fault}")
    return cast("Application", value)


def takes(value: object, count: int) -> bool:
    """Return whether *value* can be called with *count* arguments, as far as its signature tells."""
    if not callable(value):
        return False
    signature = signature_of(value)
    return signature is None or fits(signature, count)


def kind_of(value: object) -> str:
    """Return what messages call the application *value*: the name of its function, or of its class."""
    return name_of(value) if isroutine(value) else type(value).__name__


def _fault(value: object) -> str | None:
    """Return what *value* is in place of an application, and the fix; None for an application."""
    if ismodule(value):
        return f"{value.__name__} is a module; give the application in it, such as {value.__name__}.app"
    if isinstance(value, Coroutine):
        return f"{close_coroutine(cast('object', value))}() is a coroutine; await it first, and give its result"
    if isclass(value):
        return f"{value.__name__} is a class; make an application of it first, such as {value.__name__}()"
    if isinstance(value, dict) or (has_routes(value) and not callable(value)):
        return "routes aren't an application; make an App of them first: gaman.App(routes)"
    if not callable(value):
        kind = "None" if value is None else f"a value of the type {type(value).__name__}"
        return f"{kind} isn't an ASGI application; give an object such as gaman.App(routes) or Starlette(...)"
    name, signature = kind_of(value), signature_of(value)
    is_async = iscoroutinefunction(value) or iscoroutinefunction(function_of(value))
    is_handler = signature is not None and next(iter(signature.parameters), "") == "ctx"
    if takes(value, 3) and not is_handler:
        return None
    if is_handler or (takes(value, 1) and is_async):
        return f"{name} is a handler; give gaman.App({{'/': {name}}}) in its place"
    if takes(value, 2):
        return (
            f"{name} is called with two arguments, as a WSGI application is; "
            "`pip install a2wsgi`, and give a2wsgi.WSGIMiddleware(app)"
        )
    if takes(value, 1):
        return (
            f"{name} is called with one argument, as an ASGI 2 application is; "
            "`pip install asgiref`, and give asgiref.compatibility.guarantee_single_callable(app)"
        )
    if takes(value, 0):
        return f"{name} takes no arguments; if it makes the application, write application = {name}(), and give that"
    return f"{name} isn't an ASGI application, because it isn't called with scope, receive and send"
