"""Failures: the errors of handlers and hooks, as the log and a test client see them."""

from __future__ import annotations

import logging
from typing import cast

from gaman._context import Context
from gaman._handlers import function_of, name_of
from gaman._hints import hint_of
from gaman._layers import Handler
from gaman._matching import last_of
from gaman._results import NothingReturned
from gaman._tracebacks import exc_info_of, explain, location_of
from gaman.errors import GamanError, HTTPError, ResultError

logger = logging.getLogger("gaman")

FAILURES = "gaman.failures"
"""The key of an ASGI scope under which a test client puts the Failures of the request."""


class Failures:
    """The errors of one request that its response doesn't tell."""

    def __init__(self) -> None:
        self.lost: Exception | None = None
        """The first error that no response can answer: of an on_error hook, or of a stream that has begun."""
        self._error: Exception | None = None

    def add(self, error: Exception) -> None:
        """Add an error of a handler or a hook, which an on_error hook may yet answer."""
        self._error = self._error or error

    def hidden_by(self, status: int) -> Exception | None:
        """Return the error behind a response of this *status*, or None; a status below 500 is the answer to the error."""
        return self._error if self._error is not None and status >= 500 else self.lost


def log_failure(ctx: Context, error: Exception, handler: object) -> str:
    """Log *error*. If its message explains the mistake in the user's code, return the message with its location, otherwise ""."""
    if isinstance(error, HTTPError):
        if error.status >= 500 and (cause := error.__cause__) is not None:
            # One line, because with a store that is down every request that needs it is logged.
            logger.error("%s %r answered %d: %s: %r", *_request(ctx), error.status, error, cause, extra=ctx.log_extra)
        return ""
    if (failures := _failures_of(ctx)) is not None:
        failures.add(error)
    return _log(ctx, "%s %r failed", _request(ctx), error, handler)


def log_hook_failure(ctx: Context, error: Exception, hook: object) -> None:
    """Log the *error* of *hook*, an on_error hook."""
    _lose(ctx, error)
    _log(ctx, "the on_error hook %s failed on %s %r", (name_of(hook), *_request(ctx)), error, hook)


def _log(ctx: Context, message: str, arguments: tuple[str, ...], error: Exception, function: object) -> str:
    """Log the *message*, and the *error* of *function*; return the text that explains it, or ""."""
    reason = explain(error) if isinstance(error, GamanError) else hint_of(error, ctx)
    if not reason:
        logger.error(message, *arguments, exc_info=exc_info_of(error), extra=ctx.log_extra)
        return ""
    if isinstance(error, ResultError):
        function = error.function or last_of(cast("Handler", function))
    # The message and the line of the user's code are enough, so the traceback is shown only at the level DEBUG.
    fault = f"{type(error).__name__}: {reason}{location_of(error, function_of(function))}"
    trace = exc_info_of(error) if logger.isEnabledFor(logging.DEBUG) else None
    logger.error(f"{message}: %s", *arguments, fault, exc_info=trace, extra=ctx.log_extra)
    return fault


def _request(ctx: Context) -> tuple[str, str]:
    """Return the request's method and path in messages; below a mount(), the path that the outer App has."""
    return ctx.method, ctx.log_extra["path"]


def log_close_failure(ctx: Context, error: Exception) -> None:
    """Log the *error* of closing what a request has opened, such as a file."""
    _lose(ctx, error)
    logger.error("a close failed after %s %r", *_request(ctx), exc_info=exc_info_of(error), extra=ctx.log_extra)


def log_break(ctx: Context, error: GamanError, handler: object) -> None:
    """Log the *error* that ended a response early."""
    _lose(ctx, error)
    fault = f"{type(error).__name__}: {explain(error)}{location_of(error, handler)}"
    logger.error("%s %r broke off: %s", *_request(ctx), fault, extra=ctx.log_extra)


def warn_of_nothing(ctx: Context, error: NothingReturned, handler: Handler, named: set[int]) -> None:
    """Name the *handler* that returned None: once in the log, because any visitor can repeat it; with debug also in *error*.

    *named* has the ids of the handlers that the log has named.
    """
    fault = f"the handler {name_of(handler)} returned nothing"
    where = location_of(error, function_of(handler))
    if id(handler) not in named:
        named.add(id(handler))
        logger.warning(
            "%s %r was answered 404, because %s (logged once); %s%s",
            *_request(ctx),
            fault,
            "write `return` before its result, or raise HTTPError(404) where that is meant",
            where,
            extra=ctx.log_extra,
        )
    if ctx.app.debug:
        error.detail = f"{error.detail}: {fault}{where}"


def _failures_of(ctx: Context) -> Failures | None:
    failures: Failures | None = ctx.scope.get(FAILURES)
    return failures


def _lose(ctx: Context, error: Exception) -> None:
    if (failures := _failures_of(ctx)) is not None:
        failures.lost = failures.lost or error
