"""Fields: the values of a query or a form, which may have several of one name."""

from __future__ import annotations

from typing import Any, TypeVar, overload

from multidict import MultiDictProxy

from gaman.errors import InvalidInput

T = TypeVar("T")
D = TypeVar("D")

_EMPTY_LIST: Any = object()


class _MissingField(InvalidInput, KeyError):
    """A field that the request lacks, as query_as() and form_as() report it. It is also a KeyError, which a mapping raises."""

    def __init__(self, name: str) -> None:
        super().__init__("is required", f"$.{name}", name)


class Fields(MultiDictProxy[T]):
    """The values by name, in the order of the request; read-only.

    `[name]` is the first of that name. Without one, it raises InvalidInput, a 422 that is also a KeyError, and `get` returns None.
    """

    __slots__ = ()

    def __getitem__(self, key: str) -> T:
        try:
            return super().__getitem__(key)
        except KeyError:
            raise _MissingField(key) from None

    @overload
    def getall(self, key: str) -> list[T]: ...
    @overload
    def getall(self, key: str, default: D) -> list[T] | D: ...
    def getall(self, key: str, default: Any = _EMPTY_LIST) -> Any:
        """Return every value of *key*; without one, *default* if it is given, or else an empty list."""
        return super().getall(key, [] if default is _EMPTY_LIST else default)
