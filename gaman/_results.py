"""Results: what a handler may return, and the Response that it becomes."""

from __future__ import annotations

from collections.abc import Coroutine, Mapping
from dataclasses import is_dataclass
from inspect import isasyncgen, isclass, isgenerator, isroutine
from typing import Any, ClassVar, Protocol, TypeAlias, cast

import msgspec

from gaman._accept import prefers_json
from gaman._headers import Headers
from gaman._response import Response, close_coroutine, dumped
from gaman.errors import HTTPError, InvalidInput, ResultError, a_type


class _Dataclass(Protocol):
    __dataclass_fields__: ClassVar[dict[str, Any]]


# A Mapping, because type checkers don't accept a TypedDict as a dict.
Result: TypeAlias = Response | str | bytes | Mapping[Any, Any] | list[Any] | msgspec.Struct | _Dataclass | None
"""What a handler may return. None passes the request to the next handler."""


def to_response(result: object, function: object = None) -> Response:
    """Return the Response that the *result* of a handler, or of another *function*, becomes.

    HTTPError 404 is raised for None, and ResultError for a result that can't be sent. A str is always sent as text/plain, because
    a visitor's text must not become a page.
    """
    # The usual results first, which saves 3 % of a small request.
    if isinstance(result, (dict, list, msgspec.Struct)):
        return Response.json(result)  # pyright: ignore[reportUnknownArgumentType]
    if isinstance(result, Response):
        return result
    if result is None:
        raise NothingReturned
    if isinstance(result, str):
        return Response.text(result)
    if isinstance(result, bytes):
        return Response(result)
    if is_dataclass(result) and not isinstance(result, type):
        return Response.json(result)
    if isinstance(result, Coroutine):
        name = close_coroutine(cast("object", result))
        fault = f"the coroutine {name!r}: write `await` before that call"
    else:
        fault = _describe(result)
    name = "a handler" if function is None else getattr(function, "__qualname__", type(function).__name__)
    error = ResultError(f"{name} returned {fault}")
    error.function = function
    raise error


def _describe(result: object) -> str:
    """Return a description of a *result* that can't be sent, and what to write instead."""
    kind = type(result).__name__
    if kind == "tuple" and len(cast("tuple[object, ...]", result)) in (2, 3):
        return "a tuple; for a status or headers, write Response.json(..., status) or Response(..., status, headers)"
    if isinstance(result, HTTPError):
        return f"the error HTTPError({result.status}); write `raise` in the place of `return`"
    if isclass(result) and issubclass(result, BaseException):
        return f"the error {result.__name__} itself; write `raise {result.__name__}(...)`"
    if isinstance(result, BaseException):
        return f"{a_type(result)}; an error is raised, as in `raise HTTPError(400)`"
    if isroutine(result) or isclass(result):
        return f"{result.__qualname__} itself; call it, with `await` if it is async"
    if isasyncgen(result) or isgenerator(result):
        return f"{a_type(result)}; write Response.stream({result.__name__}(...))"
    if hasattr(result, "status_code"):
        return f"{a_type(result)} of another framework; return gaman's Response, such as Response.json(...), in its place"
    return f"{a_type(result)}; {dumped(result) or 'return a Response, str, bytes, dict, list, dataclass, Struct or None'}"


class NothingReturned(HTTPError):
    """404 because the last handler of a route returned None, usually because its `return` is missing."""

    def __init__(self) -> None:
        super().__init__(404)


def error_response(error: HTTPError, headers: Headers | None = None) -> Response:
    """Return the response to *error*: its detail as plain text, or as JSON if it isn't text.

    InvalidInput becomes JSON with its path, or else a sentence, as the request's *headers* prefer.
    """
    if not isinstance(error, InvalidInput):
        send = Response.text if isinstance(error.detail, str) else Response.json
        return send(error.detail, error.status, error.headers)
    if headers is None or prefers_json(headers.getall("accept")):
        response = Response.json({"detail": error.detail, "path": error.path}, error.status, error.headers)
    else:
        response = Response.text(error.sentence, error.status, error.headers)
    response.headers.add("vary", "Accept")
    return response
