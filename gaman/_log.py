"""The log `gaman`: control characters are escaped in its lines, so that no request can forge one."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Sequence
from typing import Any, cast


def printable(text: str) -> str:
    """Return *text* with every character that could break a line or control a terminal escaped, such as U+001B and U+2028."""
    return text if text.isprintable() else "".join([c if c.isprintable() else ascii(c)[1:-1] for c in text])


def escape(record: logging.LogRecord) -> bool:
    """Escape the message and the traceback of *record*. Without control characters, it stays unchanged, with its arguments."""
    try:
        message = record.getMessage()
    except Exception:
        # The repr() of an argument fails. logging's handlers report that and go on.
        return True
    if not message.isprintable():
        record.msg, record.args = printable(message), None
    if record.exc_info and (error := record.exc_info[1]) is not None:
        # Format it as logging does, which uses exc_text if that is set.
        formatted = traceback.TracebackException(type(error), error, record.exc_info[2], compact=True)
        trace = "".join(formatted.format()).removesuffix("\n")
        _indent_texts(formatted)
        indented = "".join(formatted.format()).removesuffix("\n")
        escaped = "\n".join([printable(line) for line in indented.split("\n")])
        if escaped != trace:
            record.exc_text = escaped
    return True


def _indent_texts(formatted: traceback.TracebackException) -> None:
    """Indent all lines but the first of each text, so that none of them looks like a record."""
    rest: list[traceback.TracebackException | None] = [formatted]
    while rest:
        if (each := rest.pop()) is None:
            continue
        # The text of an exception, and of a SyntaxError.
        for name in ("_str", "msg", "text", "filename"):
            if hasattr(each, name):
                setattr(each, name, _indent(getattr(each, name)))
        # A copy, because the list belongs to the exception.
        if isinstance(notes := getattr(each, "__notes__", None), (list, tuple)):
            each.__notes__ = [_indent(note) for note in cast("Sequence[object]", notes)]
        rest += (each.__cause__, each.__context__, *(each.exceptions or ()))


def _indent(text: object) -> Any:
    if not isinstance(text, str):
        return text
    lines = text.rstrip("\n")
    return lines.replace("\n", "\n    ") + text[len(lines) :]


logging.getLogger("gaman").addFilter(escape)
