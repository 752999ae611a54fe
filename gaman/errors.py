"""Every error of the core, in one tree; imports nothing."""

from collections.abc import Mapping
from http import HTTPStatus


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
    """Answers the request with *status* and, as plain text, *detail*; may be raised anywhere in a request.

        raise HTTPError(404, "no such user")

    Without a *detail*, the body is the phrase of the status. *headers* are added to the response. ResultError is raised for a
    status that isn't an int from 400 to 599, a detail that isn't a str, and headers that aren't a dict.
    """

    def __init__(self, status: int, detail: str | None = None, *, headers: Mapping[str, str] | None = None) -> None:
        if not isinstance(status, int):
            raise ResultError(f"HTTPError takes a status first, not {status!r}; write HTTPError(400, {str(status)!r})")
        if not 400 <= status <= 599:
            raise ResultError(f"HTTPError takes a status from 400 to 599, not {status}; return a Response instead")
        if detail is not None and not isinstance(detail, str):
            raise ResultError(f"HTTPError takes a str as its detail, not {detail!r}; return Response.json(..., {status}) for JSON")
        super().__init__(status, detail)
        self.status = status
        self.detail = detail if detail is not None else _phrase(status)
        try:
            self.headers = dict(headers or {})
        except (TypeError, ValueError):
            raise ResultError(f"HTTPError takes a dict as its headers, not {headers!r}") from None

    def __str__(self) -> str:
        return f"{self.status} {self.detail}"


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return f"Error {status}"


class ClientDisconnected(GamanError):
    """The client disconnected before its whole body had arrived, or before its response was sent. The request ends there."""
