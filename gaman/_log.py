"""The log, which is logging's `gaman`: control characters, whatever brought them there, are escaped in its lines."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from typing import Any, cast


def printable(text: str) -> str:
    """Return *text* with what could break a line or steer a terminal escaped as Python writes it, such as U+001B and U+2028."""
    return text if text.isprintable() else "".join([c if c.isprintable() else ascii(c)[1:-1] for c in text])


def escape(record: logging.LogRecord) -> bool:
    """Escape the message and the traceback of *record*; one without control characters stays as it is, arguments included."""
    try:
        message = record.getMessage()
    except Exception:
        # An error whose repr() fails: its handlers say so, and go on.
        return True
    if not message.isprintable():
        record.msg, record.args = printable(message), None
    if record.exc_info and (error := record.exc_info[1]) is not None:
        # As logging does it; what is escaped takes the place of what it would format.
        told = traceback.TracebackException(type(error), error, record.exc_info[2], compact=True)
        trace = "".join(told.format()).removesuffix("\n")
        _indent_texts(told)
        indented = "".join(told.format()).removesuffix("\n")
        escaped = "\n".join([printable(line) for line in indented.split("\n")])
        if escaped != trace:
            record.exc_text = escaped
    return True


def _indent_texts(told: traceback.TracebackException) -> None:
    """Indent the second line of each text, and those after it, so that none of them can pass for a record."""
    rest: list[traceback.TracebackException | None] = [told]
    while rest:
        if (each := rest.pop()) is None:
            continue
        # An exception's text, and what a SyntaxError has in its place.
        for name in ("_str", "msg", "text", "filename"):
            if hasattr(each, name):
                setattr(each, name, _indent(getattr(each, name)))
        # A copy, because the list is the exception's own.
        if isinstance(notes := getattr(each, "__notes__", None), (list, tuple)):
            each.__notes__ = [_indent(note) for note in cast("Sequence[object]", notes)]
        rest += (each.__cause__, each.__context__, *(each.exceptions or ()))


def _indent(text: object) -> Any:
    if not isinstance(text, str):
        return text
    lines = text.rstrip("\n")
    return lines.replace("\n", "\n    ") + text[len(lines) :]


logging.getLogger("gaman").addFilter(escape)
