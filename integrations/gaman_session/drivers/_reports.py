"""@reports(action): a driver's method that ends within the driver's time limit and fails with SessionStoreError."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ClassVar, Concatenate, TypeVar, cast

from gaman import GamanError
from gaman_session._errors import SessionStoreError
from gaman_session.drivers._time_limit import TimeLimit


class Reporter:
    """What a driver tells @reports() about its store."""

    name: str
    _limit: TimeLimit
    _failures: ClassVar[tuple[type[Exception], ...]] = (OSError, TimeoutError)
    """What the store and its library raise."""

    def _explain(self, error: Exception) -> tuple[str, Exception]:
        """Return the reason that the SessionStoreError shows, or an empty one, and its cause."""
        return "", error

    def _report(self, action: str, error: Exception) -> SessionStoreError:
        """Return what the caller gets for *error*, with its cause."""
        reason, cause = self._explain(error)
        report = SessionStoreError(self.name, action, reason)
        report.__cause__ = cause
        return report


# The whole type, because mypy and pyright differ in the type that a method with `async def` returns.
Method = TypeVar("Method", bound=Callable[Concatenate[Any, ...], Coroutine[Any, Any, Any]])


def reports(action: str) -> Callable[[Method], Method]:
    """Bound the decorated method, and turn the failures of its store into a SessionStoreError that names *action*."""

    def decorate(method: Method) -> Method:
        @wraps(method)
        async def reporting(self: Reporter, /, *args: Any, **kwargs: Any) -> Any:
            limit = self._limit
            task = limit.enter()
            try:
                return await method(self, *args, **kwargs)
            except GamanError:
                raise
            except self._failures as error:
                failure = error
            except asyncio.CancelledError as error:
                if not limit.is_late(task):
                    raise
                failure = TimeoutError()
                failure.__cause__ = error
            finally:
                limit.leave(task)
            report = self._report(action, failure)
            raise report from report.__cause__

        return cast("Method", reporting)

    return decorate
