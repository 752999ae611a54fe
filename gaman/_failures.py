"""Failures: what the log says of an error that a handler or a hook has raised."""

from __future__ import annotations

import logging
import re

from gaman._context import Context
from gaman._tracebacks import explain, own, place
from gaman.errors import GamanError, HTTPError

logger = logging.getLogger("gaman")

_lacks_attribute = re.compile(r"'(\w+)' object has no attribute '(\w+)'").match


def log_failure(ctx: Context, error: Exception, handler: object) -> str:
    """Log *error*; return what it says, and where, if it tells what is wrong in the user's code, else ""."""
    if isinstance(error, HTTPError):
        if error.status >= 500 and (cause := error.__cause__) is not None:
            # A line is enough: where a store is down, every request that needs it comes by here.
            logger.error("%s %r answered %d: %s: %r", ctx.method, ctx.path, error.status, error, cause, extra=ctx.log_extra)
        return ""
    reason = explain(error) if isinstance(error, GamanError) else _explain_attribute(error, ctx)
    if not reason:
        logger.error("%s %r failed", ctx.method, ctx.path, exc_info=own(error), extra=ctx.log_extra)
        return ""
    # It says what is wrong in the user's code, and that is where it should lead.
    told = f"{type(error).__name__}: {reason}{place(error, handler)}"
    trace = own(error) if logger.isEnabledFor(logging.DEBUG) else None
    logger.error("%s %r failed: %s", ctx.method, ctx.path, told, exc_info=trace, extra=ctx.log_extra)
    return told


def _explain_attribute(error: Exception, ctx: Context) -> str:
    """Return what to write in place of an attribute that a context or a session doesn't have; "" for any other *error*."""
    # By its text: before Python 3.12, an error of setting an attribute doesn't have its object.
    if not isinstance(error, AttributeError) or (found := _lacks_attribute(str(error))) is None:
        return ""
    fault, kind, name = found[0], found[1], found[2]
    if kind == type(ctx).__name__ and (error.obj is ctx or error.obj is None):
        return f"{fault}; what you add to a request yourself goes into ctx.locals[{name!r}]"
    if kind == type(ctx.session).__name__:
        return f"{fault}; write `await ctx.session.get({name!r})`, or `await ctx.session.set({name!r}, ...)`"
    return ""
