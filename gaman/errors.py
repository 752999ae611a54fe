"""Every error of the core, in one tree; imports nothing."""

from collections.abc import Mapping
from http import HTTPStatus


class GamanError(Exception):
    """The root of everything that gaman raises on purpose."""


class ConfigError(GamanError):
    """Something is misconfigured; the message names it and the mend. Raised at start-up, or where code asks for what is missing."""


class MissingDependency(ConfigError, ImportError):
    """An optional package is absent; the message names the command that installs it."""


class HeaderError(GamanError, ValueError):
    """A header, cookie or redirect target holds what RFC 9110, section 5.5, or RFC 6265, section 4.1, forbids."""


class ResultError(GamanError, TypeError, ValueError):
    """A handler's result, or what a Response was to be made of, can't be sent; the message names it."""


class HTTPError(GamanError):
    """Raise it anywhere in a request to answer with *status* and, as plain text, *detail*.

    Without a *detail* the body is the status's own phrase. *headers* are added to the answer. ResultError is raised for a status
    that isn't an int from 400 to 599, a detail that isn't a str, and headers that aren't a dict.
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
    """The client left before its request's body had come whole; the request ends without an answer."""
