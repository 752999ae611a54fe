"""Layers: handlers and the pattern of their path, which says which requests they are for."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from gaman import _params
from gaman._context import Context
from gaman._params import TYPES, Test
from gaman._results import Result

Handler: TypeAlias = Callable[[Context], Awaitable[Result]]
"""An async function of the request. Its result is the response, or None to pass the request on."""
Segments: TypeAlias = tuple[str, ...]


class Layer:
    """Handlers and their path. Middleware also runs for every path below its own."""

    __slots__ = ("_tests", "catch_all", "handlers", "is_middleware", "params", "segments")

    def __init__(self, segments: Segments, handlers: tuple[Handler, ...], is_middleware: bool = False) -> None:
        self.segments = segments
        self.handlers = handlers
        self.is_middleware = is_middleware
        self.params: dict[str, int] = {}
        """The index of each parameter's segment, without the catch-all's."""
        self.catch_all = ""
        """The name of the catch-all, or an empty string."""
        self._tests: list[Test] = []
        for index, segment in enumerate(segments):
            parameter = _params.parse(segment)
            if parameter is None:
                self._tests.append(segment.__eq__)
                continue
            # An empty segment, which a trailing slash leaves, fits no parameter.
            self._tests.append(TYPES.get(parameter.type, bool))
            if parameter.is_catch_all:
                self.catch_all = parameter.name
            else:
                self.params[parameter.name] = index

    def covers(self, path: Sequence[str]) -> bool:
        """Return whether the *path* of a request is this path or below it."""
        return len(path) >= len(self._tests) and all(test(segment) for test, segment in zip(self._tests, path, strict=False))

    def covers_all(self, pattern: Segments) -> bool:
        """Return whether every path of *pattern* is this path or below it."""
        return len(pattern) >= len(self.segments) and all(map(_includes, self.segments, pattern))

    def may_cover(self, pattern: Segments) -> bool:
        """Return whether some path of *pattern* is this path or below it. True may be wrong, and False never is."""
        is_open = bool(pattern) and pattern[-1][-1:] == "*"
        return (is_open or len(pattern) >= len(self.segments)) and all(map(_overlaps, self.segments, pattern))


def _includes(own: str, other: str) -> bool:
    """Return whether the segment *own* of a pattern matches everything that the segment *other* matches."""
    if (mine := _params.parse(own)) is None:
        return own == other
    its = _params.parse(other)
    return bool(TYPES.get(mine.type, bool)(other) if its is None else mine.type in ("", its.type))


def _overlaps(own: str, other: str) -> bool:
    """Return whether some text may match both segments of patterns. Two types count as overlapping."""
    mine, its = _params.parse(own), _params.parse(other)
    if mine is not None:
        return its is not None or bool(TYPES.get(mine.type, bool)(other))
    return own == other if its is None else bool(TYPES.get(its.type, bool)(own))
