"""The log, which is logging's `gaman`: control characters, whatever brought them there, are escaped in its lines."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterator, Sequence
from contextlib import suppress
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
        trace = "".join(traceback.format_exception(*record.exc_info)).removesuffix("\n")
        escaped = trace
        for text in _texts(error, set()):
            if "\n" in text.rstrip("\n"):
                # A second line of an error's text is indented, so that it can't pass for a record.
                escaped = escaped.replace(text, text.replace("\n", "\n    "))
        escaped = "\n".join([printable(line) for line in escaped.split("\n")])
        if escaped != trace:
            record.exc_text = escaped
    return True


def _texts(error: BaseException, seen: set[int]) -> Iterator[str]:
    """Yield the text and the notes of *error*, and of all that its traceback shows beside it."""
    if id(error) in seen:
        return
    seen.add(id(error))
    with suppress(Exception):
        yield str(error)
    yield from getattr(error, "__notes__", ())
    grouped: Sequence[BaseException] = cast("Any", error).exceptions if isinstance(error, BaseExceptionGroup) else ()
    for other in (error.__cause__, error.__context__, *grouped):
        if other is not None:
            yield from _texts(other, seen)


logging.getLogger("gaman").addFilter(escape)
