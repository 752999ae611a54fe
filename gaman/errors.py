"""Every error of the core, in one tree; imports nothing of gaman."""

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

import msgspec


class GamanError(Exception):
    """The root of everything that gaman raises on purpose."""


class ConfigError(GamanError):
    """Something is misconfigured. The message names it and the fix. Raised at start, or on the first use of something missing."""


class MissingDependency(ConfigError, ImportError):
    """An optional package is missing. The message names the command that installs it."""


class HeaderError(GamanError, ValueError):
    """A header field, cookie or redirect target can't be sent, or browsers would drop it. The message says why."""


class ResultError(GamanError, TypeError, ValueError):
    """A handler's result, or an argument of Response, can't be sent. The message names it."""


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
