"""Call: what an async call of the context returns; using it without `await` raises."""

from __future__ import annotations

import sys
from collections.abc import Callable, Coroutine, Generator
from functools import wraps
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, cast

from gaman.errors import ResultError

T_co = TypeVar("T_co", covariant=True)
C = TypeVar("C", bound=Callable[..., Coroutine[Any, Any, Any]])


class Call(Coroutine[Any, Any, T_co]):
    """A coroutine whose operators, conversions and attributes raise ResultError, a TypeError, that names the call, and end it.

    Python gives `is` and `match` no such hook. asyncio mostly takes only coroutines, so this is one. A call of the session may be
    awaited again and logs its own warning, so that has a class of its own, SessionCall.
    """

    __slots__ = ("_coroutine",)

    def __init__(self, name: str, coroutine: Coroutine[Any, Any, T_co]) -> None:
        # Python's warning about a coroutine that was never awaited has this name.
        cast("Any", coroutine).__qualname__ = name
        self._coroutine = coroutine

    def __await__(self) -> Generator[Any, Any, T_co]:
        return self._coroutine.__await__()

    def send(self, value: Any, /) -> Any:
        return self._coroutine.send(value)

    def throw(self, *error: Any) -> Any:
        return self._coroutine.throw(*error)

    def close(self) -> None:
        self._coroutine.close()

    def _refuse(self, *_: object) -> NoReturn:
        self._coroutine.close()
        raise ResultError(f"write `await` before {cast('Any', self._coroutine).__qualname__}(...)")

    # Type checkers see a coroutine, and report these uses themselves.
    if not TYPE_CHECKING:
        __contains__ = __iter__ = __len__ = __getitem__ = __setitem__ = __delitem__ = __format__ = __str__ = _refuse
        __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __add__ = __radd__ = __int__ = __float__ = __bytes__ = _refuse

        def __bool__(self) -> bool:
            # The repr() of a task tests whether it has a coroutine.
            return _is_asyncio() or self._refuse()

        def __hash__(self) -> int:
            # gather() puts calls into a dict. Elsewhere, a lookup is a comparison by mistake.
            return object.__hash__(self) if _is_asyncio() else self._refuse()

        def __getattr__(self, name: str) -> Any:
            if name == "__name__":
                return self._coroutine.__qualname__
            # asyncio, inspect and debuggers look up names like these on any coroutine.
            return getattr(self._coroutine, name) if name.startswith(("_", "cr_", "gi_", "ag_")) else self._refuse()


def awaited(function: C) -> C:
    """Return the async *function*, which returns a Call; a function that only passes on a coroutine makes the Call itself."""
    name = function.__qualname__.replace("Context.", "ctx.")

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Call[Any]:
        return Call(name, function(*args, **kwargs))

    return cast("C", call)


def _is_asyncio() -> bool:
    """Return whether asyncio calls the method that calls this."""
    return sys._getframe(2).f_globals.get("__package__") == "asyncio"
