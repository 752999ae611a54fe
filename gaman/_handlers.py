"""Handlers: checked when a table is defined, and named in messages."""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from inspect import Parameter, Signature, isasyncgenfunction, isclass, iscoroutinefunction, isroutine, signature
from typing import Any, cast

from gaman._dropped import find_dropped
from gaman._layers import Handler
from gaman._matching import Routes
from gaman.errors import ConfigError, a_type


def check_handlers(where: str, value: object) -> tuple[Handler, ...]:
    """Return the handlers of a table's *value*; ConfigError says what is wrong with one, and *where*."""
    handlers = cast("Sequence[object]", value) if isinstance(value, (list, tuple)) else (value,)
    if not handlers:
        raise ConfigError(f"{where}: the list of handlers is empty")
    for handler in handlers:
        _check_handler(where, handler)
    return cast("tuple[Handler, ...]", tuple(handlers))


def _check_handler(where: str, handler: object) -> None:
    if has_routes(handler):
        raise ConfigError(f"{where}: routes aren't a handler; give the dict that they are made of in their place")
    if isinstance(handler, Coroutine):
        name = name_of(cast("object", handler))
        handler.close()
        raise ConfigError(f"{where}: {name} is called here; write {name} by itself, because each request calls it")
    if hasattr(type(handler), "on_unmatched"):
        raise ConfigError(f"{where}: an integration isn't a handler; write App(..., integrations=[...])")
    if not callable(handler):
        raise ConfigError(f"{where}: {a_type(handler)} isn't a handler; give an async function, or a list of them")
    called, name = function_of(handler), name_of(handler)
    if isclass(handler) and (middleware := middleware_in(handler)) is not None:
        name = name_of(middleware)
        raise ConfigError(f"{where}: {name} is ASGI middleware; write App(..., middleware=[Middleware({name}, ...)])")
    if isclass(handler):
        raise ConfigError(f"{where}: {name} is a class, not a handler; give an async function, or a method of an object")
    if isasyncgenfunction(called):
        raise ConfigError(
            f"{where}: the handler {name} is an async generator, because it holds `yield`; write a handler that returns "
            "Response.stream() of that generator"
        )
    if not iscoroutinefunction(handler) and not iscoroutinefunction(called):
        if "Awaitable" in str(getattr(called, "__annotations__", {}).get("return")):
            raise ConfigError(f"{where}: {name} makes a handler; write {name}(...)")
        raise ConfigError(f"{where}: the handler {name} is not async; write `async def`")
    if (fault := find_dropped(called)) is not None:
        raise ConfigError(f"{where}: the handler {name} {fault}")
    takes = signature_of(handler)
    if takes is None:
        return
    first = next(iter(takes.parameters), "ctx")
    # `async def show(ctx, user_id, post_id)` wants the parameters of the path.
    names = {segment[1:] for segment in re.split("[/<*]", where) if segment.startswith(":")}
    if fits(takes, 3) and not fits(takes) and first != "ctx" and names.isdisjoint(takes.parameters):
        path, value = where.rpartition(" ")[2], name if isroutine(handler) else "app"
        path = path if path.endswith("*") else f"{path.rstrip('/')}/*"
        kind = name if isroutine(handler) else type(handler).__name__
        raise ConfigError(f"{where}: {kind} is an ASGI application, not a handler; write {{{path!r}: mount({value})}}")
    # `async def show(id)` for `/users/:id` would get the context as its id.
    if not fits(takes) or first == "self" or (first != "ctx" and first in names):
        fix = "give the method of an object, not of its class" if first == "self" else "path parameters are in ctx.params"
        raise ConfigError(f"{where}: the handler {name} takes {required(takes)}, but is called as {name}(ctx); {fix}")


def middleware_in(value: object) -> object:
    """Return the class of ASGI middleware that *value* is or, as a Middleware, names; None for anything else."""
    # Starlette's own Middleware has this attribute too.
    cls: Any = getattr(value, "cls", value)
    if cls is not value:
        return cls
    # The class is called with the application, and its objects with self, scope, receive and send.
    takes = signature_of(cls.__call__) if isclass(cls) and callable(getattr(cls, "__call__", None)) else None  # noqa: B004
    return cls if takes is not None and fits(takes, 4) else None


def has_routes(value: object) -> bool:
    """Return whether *value* is Routes or an App."""
    return isinstance(getattr(value, "routes", value), Routes)


def signature_of(function: Callable[..., object]) -> Signature | None:
    """Return the signature of *function*, or None for a C function that has none."""
    try:
        # The wrapper's own signature counts, because the wrapper is called.
        return signature(function, follow_wrapped=False)
    except ValueError:
        return None


def fits(takes: Signature, count: int = 1) -> bool:
    """Return whether a function with this signature can be called with *count* arguments."""
    try:
        takes.bind(*[None] * count)
    except TypeError:
        return False
    return True


def required(takes: Signature) -> Signature:
    """Return the signature without annotations and without optional parameters, for messages."""
    variadic = (Parameter.VAR_POSITIONAL, Parameter.VAR_KEYWORD)
    required = [p for p in takes.parameters.values() if p.default is p.empty and p.kind not in variadic]
    return Signature([p.replace(annotation=p.empty) for p in required])


def name_of(handler: object) -> str:
    """Return the name of *handler*: its function's, or that of the function which a partial or an object calls."""
    return str(getattr(handler, "__qualname__", None) or getattr(function_of(handler), "__qualname__", repr(handler)))


def function_of(handler: object) -> object:
    """Return the function that *handler* calls: a partial's function, an object's `__call__`, or *handler* itself."""
    while isinstance(handler, partial):
        handler = cast("partial[object]", handler).func
    return handler if isroutine(handler) or isclass(handler) else getattr(type(handler), "__call__", handler)  # noqa: B004
