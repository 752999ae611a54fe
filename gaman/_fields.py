"""Fields: the values of a query or a form, which may have several of one name."""

from __future__ import annotations

from typing import Any, TypeVar, overload

from multidict import MultiDictProxy

T = TypeVar("T")
D = TypeVar("D")

_EMPTY_LIST: Any = object()


class Fields(MultiDictProxy[T]):
    """The values by name, in the order of the request; read-only. `[name]` is the first of that name, or raises KeyError."""

    __slots__ = ()

    @overload
    def getall(self, key: str) -> list[T]: ...
    @overload
    def getall(self, key: str, default: D) -> list[T] | D: ...
    def getall(self, key: str, default: Any = _EMPTY_LIST) -> Any:
        """Return every value of *key*; without one, *default* if it is given, or else an empty list."""
        return super().getall(key, [] if default is _EMPTY_LIST else default)
