"""@reports(action): a driver's method that ends within the driver's time limit and fails with SessionStoreError."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeAlias, TypeVar

from gaman import GamanError
from gaman_session._errors import SessionStoreError

P = ParamSpec("P")
T = TypeVar("T")


class Reporter:
    """What a driver tells @reports() about its store."""

    name: str
    _limit: AbstractContextManager[None]
    _failures: ClassVar[tuple[type[Exception], ...]] = (OSError, TimeoutError)
    """What the store and its library raise."""

    def _explain(self, error: Exception) -> tuple[str, Exception]:
        """Return the reason that the SessionStoreError shows, or an empty one, and its cause."""
        return "", error


R = TypeVar("R", bound=Reporter)
Method: TypeAlias = Callable[Concatenate[R, P], Coroutine[Any, Any, T]]


def reports(action: str) -> Callable[[Method[R, P, T]], Method[R, P, T]]:
    """Bound the decorated method, and turn the failures of its store into a SessionStoreError that names *action*."""

    def decorate(method: Method[R, P, T]) -> Method[R, P, T]:
        @wraps(method)
        async def reporting(self: R, /, *args: P.args, **kwargs: P.kwargs) -> T:
            try:
                with self._limit:
                    return await method(self, *args, **kwargs)
            except GamanError:
                raise
            except self._failures as error:
                reason, cause = self._explain(error)
                raise SessionStoreError(self.name, action, reason) from cause

        return reporting

    return decorate
