"""Tracebacks: shows an error with the line of the user's code that caused it, without this framework's frames."""

from __future__ import annotations

import os
import sys
import traceback
from inspect import unwrap
from types import CodeType, FrameType, TracebackType
from typing import NoReturn

from gaman.errors import ConfigError, GamanError


def explain(error: GamanError) -> str:
    """Return the message of *error*, its cause and its place, on one line; a ConfigError's is complete without the cause."""
    text, cause = str(error), error.__cause__
    reason = "" if cause is None or isinstance(error, ConfigError) else " ".join(str(cause).split()) or type(cause).__name__
    if reason not in text:
        # Some database clients add the state of a whole cluster.
        text = f"{text}: {reason}" if len(reason) <= 200 else f"{text}: {reason[:200]}..."
    return text + error._place


def location_of(error: BaseException, handler: object = None) -> str:
    """Return in brackets the last line of the user's code in *error*, or else the line of their *handler*; "" without either."""
    code, line = getattr(unwrap(handler) if callable(handler) else None, "__code__", None), 0
    for frame, number in traceback.walk_tb(error.__traceback__):
        if not _is_ours(frame) and not _is_pythons(frame.f_code):
            code, line = frame.f_code, number
    if not isinstance(code, CodeType) or code.co_filename.startswith(_HERE):
        return ""
    return _location(code, line or code.co_firstlineno)


def place_of_caller() -> str:
    """Return in brackets the line of the user's code that is calling; "" if all callers are gaman's."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and (_is_ours(frame) or _is_pythons(frame.f_code)):
        frame = frame.f_back
    return "" if frame is None else _location(frame.f_code, frame.f_lineno)


def _location(code: CodeType, line: int) -> str:
    path = os.path.relpath(code.co_filename) if code.co_filename.startswith(os.getcwd()) else code.co_filename
    return f" ({path}, line {line}, in {code.co_name})"


def exc_info_of(error: BaseException) -> tuple[type[BaseException], BaseException, TracebackType | None]:
    """Return *error* as logging's exc_info, with the traceback from the user's code on; without any, the whole traceback."""
    rest = error.__traceback__
    while rest is not None and _is_ours(rest.tb_frame):
        rest = rest.tb_next
    # A SyntaxError names its own line.
    return type(error), error, rest if rest or isinstance(error, SyntaxError) else error.__traceback__


def exit_with(error: BaseException) -> NoReturn:
    """End the process with status 1: print the message of a GamanError, or else the traceback from the user's code on."""
    if isinstance(error, GamanError):
        sys.exit(f"gaman: {explain(error)}")
    traceback.print_exception(*exc_info_of(error))
    sys.exit(1)


_HERE = os.path.dirname(__file__) + os.sep
_STANDARD_LIBRARY = os.path.dirname(os.__file__) + os.sep
_CALLERS = ("gaman", "importlib", "asyncio", "uvicorn", "uvloop")
"""The packages that call the user's code."""


def _is_ours(frame: FrameType) -> bool:
    """Whether *frame* runs code of gaman, of an integration that ships with it, or of a package that calls the user's code."""
    package = str(frame.f_globals.get("__package__")).partition(".")[0]
    return package in _CALLERS or package.startswith("gaman_")


def _is_pythons(code: CodeType) -> bool:
    """Whether *code* is of the standard library, whose folder may hold the installed packages too."""
    path = code.co_filename
    return path.startswith(_STANDARD_LIBRARY) and not path.startswith(f"{_STANDARD_LIBRARY}site-packages")


def _print_error(kind: type[BaseException], error: BaseException, rest: TracebackType | None) -> None:
    if isinstance(error, ConfigError):
        print(f"gaman: {explain(error)}{location_of(error)}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, rest)


# A ConfigError may be raised at import, where only Python's own hook can show it. `python -X dev` shows the whole traceback, and a
# hook that is already installed stays.
if sys.excepthook is sys.__excepthook__ and not sys.flags.dev_mode:
    sys.excepthook = _print_error
