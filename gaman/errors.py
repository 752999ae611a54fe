"""Every error of the core, in one tree, and what handlers of errors and messages share; imports nothing of gaman."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial, wraps
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar, cast, overload

import msgspec

if TYPE_CHECKING:
    from gaman._app import App

_C = TypeVar("_C", bound=Callable[..., Any])

# Of names in capitals, the first letter is spoken: an HTTPError, a UUID.
_takes_an = re.compile(r"[AEIOaeio]|[FHLMNRSX][A-Z0-9]|[Uu]p").match


class GamanError(Exception):
    """The root of everything that gaman raises on purpose."""

    _place = ""
    """The line of the user's code that made what raised the error, for messages; "" without one."""


class ConfigError(GamanError):
    """Something is misconfigured. The message names it and the fix. Raised at start, or on the first use of something missing."""


class MissingDependency(ConfigError, ImportError):
    """An optional package is missing. The message names the command that installs it."""


class HeaderError(GamanError, ValueError):
    """A header field, cookie or redirect target can't be sent, or browsers would drop it. The message says why."""


class ResultError(GamanError, TypeError, ValueError):
    """A handler's result, or an argument of Response, can't be sent. The message names it."""

    function: object = None
    """The hook or guard that returned the result; None for a route's last handler."""


class HTTPError(GamanError):
    """Answers the request with *status* and *detail*; may be raised anywhere in a request.

        raise HTTPError(404, "no such user")
        raise HTTPError(422, {"email": "is taken"})

    A text is sent as plain text, anything else as JSON. Without a *detail*, the body is the phrase of the status. *headers* are
    added to the response. ResultError is raised for a status that isn't an int from 400 to 599, a detail that JSON can't hold, and
    headers that aren't a dict.
    """

    detail: Any

    def __init__(self, status: int, detail: object = None, *, headers: Mapping[str, str] | None = None) -> None:
        if not isinstance(status, int):
            raise ResultError(f"HTTPError takes a status first, not {status!r}; write HTTPError(400, {str(status)!r})")
        if not 400 <= status <= 599:
            raise ResultError(f"HTTPError takes a status from 400 to 599, not {status}; return a Response instead")
        if not isinstance(detail, str):
            _check_json(detail)
        super().__init__(status, detail)
        self.status = status
        self.detail = detail if detail is not None else _phrase(status)
        try:
            self.headers = dict(headers or {})
        except (TypeError, ValueError):
            raise ResultError(f"HTTPError takes a dict as its headers, not {headers!r}") from None

    def __str__(self) -> str:
        return f"{self.status} {self.detail}"


def _check_json(detail: object) -> None:
    """Raise ResultError for a *detail* that JSON can't hold, here, where the traceback shows the line that made it."""
    # JSON would hold bytes as base64, which no client expects of an error.
    if isinstance(detail, (bytes, bytearray, memoryview)):
        raise ResultError(f"HTTPError takes text or JSON data as its detail, not {detail!r}; decode it")
    try:
        msgspec.json.encode(detail)
    except (TypeError, ValueError, RecursionError) as cause:
        kind = type(detail).__name__
        raise ResultError(f"HTTPError takes text or JSON data as its detail, and JSON can't hold this {kind}: {cause}") from None


class InvalidInput(HTTPError):
    """422: the input doesn't fit the type that `json`, `query_as` or `form_as` of the context decode it into.

        try:
            order = await ctx.form_as(Order)
        except InvalidInput as error:
            return render("order.html", faults={error.field: error.detail})

    The client gets `{"detail": ..., "path": ...}` if it accepts JSON, otherwise a sentence. *detail* completes a sentence that
    begins with the field. A handler may raise it for a check of its own: `raise InvalidInput("is in the past", "$.day", "day")`.
    """

    detail: str

    def __init__(self, detail: str, path: str = "$", field: str | None = None) -> None:
        super().__init__(422, detail)
        self.args = (detail, path, field)
        self.path = path
        """Where the fault is: `$` for the whole input, or a path such as `$.items[2].price`."""
        self.field = field
        """The field of the query or form, by the name that the request has for it; None for JSON, and for the whole input."""

    @property
    def sentence(self) -> str:
        """The detail and the place of the fault, as text."""
        if self.field is not None:
            return f"the field {self.field!r} {self.detail}"
        return self.detail if self.path == "$" else f"{self.detail} - at `{self.path}`"

    def __str__(self) -> str:
        return f"{self.status} {self.sentence}"


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"Error {status}"


class ClientDisconnected(GamanError):
    """The client disconnected before its whole body had arrived, or before its response was sent. The request ends there."""


def causes_of(error: BaseException | None) -> Iterator[BaseException]:
    """Yield *error*, its cause or context, that one's, and so on, each once: an application can make a cycle of its errors."""
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        # Also after `from None`, by which asyncio's TaskGroup raises the group of its tasks' errors.
        error = error.__cause__ if error.__cause__ is not None else error.__context__


def comes_of(error: BaseException | None, kind: type[BaseException], seen: frozenset[int] = frozenset()) -> bool:
    """Return whether *error* or a cause of it is a *kind*, or, of a group, each of its errors. *seen* are ids of errors."""
    for each in causes_of(error):
        # An error that is raised again out of its group is in a cycle.
        if id(each) in seen:
            return False
        if isinstance(each, kind):
            return True
        seen |= {id(each)}
        if isinstance(each, BaseExceptionGroup):
            group = cast("BaseExceptionGroup[BaseException]", each)
            return all(comes_of(inner, kind, seen) for inner in group.exceptions)
    return False


def check_bool(option: str, value: object) -> None:
    """Raise ConfigError for a *value* that isn't a bool; *option* is its name in the message, such as `debug`."""
    if not isinstance(value, bool):
        fix = f"write {option}={bool(value)}" if isinstance(value, int) else "compare a text, as in os.environ.get('NAME') == '1'"
        raise ConfigError(f"{option}={value!r} is neither True nor False, and any text counts as true; {fix}")


def check_before_session(app: App, name: str, purpose: str) -> None:
    """Raise ConfigError if the integration with this *name* is listed after the one that makes sessions; *purpose* is the reason.

    If its store fails, that one answers 503, and the response has no fields of the integrations that are listed later.
    """
    for integration in app.integrations:
        if integration.name == name:
            return
        if integration.make_session is not None:
            other = integration.name
            raise ConfigError(
                f"{name}() has to come before {other}(), so that {purpose}; write integrations=[{name}(...), {other}(...)]"
            )


def a_type(value: object) -> str:
    """Return the type of *value* for a message, with its article: `an int`, `a str`; `None` for None."""
    name = type(value).__name__
    return "None" if value is None else f"{'an' if _takes_an(name) else 'a'} {name}"


def nearest(name: object, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return `; did you mean 'max_age'?` with the *known* name that is most similar to *name*, or "" if none is."""
    from difflib import get_close_matches  # noqa: PLC0415 - only mistakes need it

    near = get_close_matches(str(name), known, 1, cutoff)
    return f"; did you mean {near[0]!r}?" if near else ""


def _nothing(name: str) -> str:
    return ""


@overload
def checks_arguments(function: _C) -> _C: ...
@overload
def checks_arguments(*, instead: Callable[[str], str]) -> Callable[[_C], _C]: ...
def checks_arguments(function: Any = None, *, instead: Callable[[str], str] = _nothing) -> Any:
    """Return *function*, which raises ConfigError in place of TypeError for arguments that it doesn't take; for integrations.

        @checks_arguments
        def cors(origins: str, *, max_age: int = 600) -> Integration: ...

    A class is returned itself, with this check of its `__init__`. Calls without a mistake cost nothing more. For an option that
    there isn't, *instead* returns what to write, or "".
    """
    if function is None:
        return partial(_check_arguments, instead=instead)
    return _check_arguments(function, instead)


def _check_arguments(target: Any, instead: Callable[[str], str]) -> Any:
    if not isinstance(target, type):
        return _checking(target, target.__name__, instead)
    cls: Any = target
    cls.__init__ = _checking(cls.__init__, cls.__name__, instead)
    return cls


def _checking(function: Callable[..., Any], name: str, instead: Callable[[str], str]) -> Callable[..., Any]:
    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except TypeError:
            fault = _fault(function, name, args, kwargs, instead)
            if fault is None:
                raise
        raise ConfigError(fault)

    return call


def _fault(
    function: Callable[..., Any], name: str, args: tuple[Any, ...], kwargs: dict[str, Any], instead: Callable[[str], str]
) -> str | None:
    """Return what is wrong with the arguments of a call, or None if the signature fits."""
    from inspect import Parameter, signature  # noqa: PLC0415 - only mistakes need it

    takes = signature(function)
    try:
        takes.bind(*args, **kwargs)
    except TypeError as error:
        known = {each: parameter for each, parameter in takes.parameters.items() if each != "self"}
        for given in kwargs:
            if given not in known:
                fix = instead(given) or nearest(given, known) or f"; it takes {', '.join(known)}"
                return f"{name}() has no option {given!r}{fix}"
        named = [each for each, parameter in known.items() if parameter.kind is Parameter.KEYWORD_ONLY]
        if len(args) > len(takes.parameters) - len(named):
            unnamed = ", ".join(each for each in known if each not in named) or "no option"
            others = f"; name the other options, as in {named[0]}=..." if named else ""
            return f"{name}() takes {unnamed} without a name{others}"
        return f"{name}(): {error}; it takes {', '.join(known)}"
    return None
