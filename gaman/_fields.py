"""Fields: what a query or a form holds, several of a name among them."""

from __future__ import annotations

from typing import Any, TypeVar, overload

from multidict import MultiDictProxy

T = TypeVar("T")
D = TypeVar("D")

_EMPTY_LIST: Any = object()


class Fields(MultiDictProxy[T]):
    """The values by name, in the order they were sent; read-only. `[name]` is the first of a name, or raises KeyError."""

    __slots__ = ()

    @overload
    def getall(self, key: str) -> list[T]: ...
    @overload
    def getall(self, key: str, default: D) -> list[T] | D: ...
    def getall(self, key: str, default: Any = _EMPTY_LIST) -> Any:
        """Return every value of that name; where there is none, an empty list, or *default* if one is given."""
        return super().getall(key, [] if default is _EMPTY_LIST else default)
