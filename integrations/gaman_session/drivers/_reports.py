"""@reports(action): bounds a driver's method by its time limit, and turns the store's failures into SessionStoreError."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from functools import wraps
from typing import Any, ClassVar, TypeVar, cast

from gaman import GamanError
from gaman_session._errors import SessionStoreError
from gaman_session.drivers._time_limit import TimeLimit

# The decorated method keeps its exact type, which the protocol Driver asks for.
Method = TypeVar("Method", bound=Callable[..., Coroutine[Any, Any, Any]])


class Reporter:
    """The base class of a driver whose methods use @reports()."""

    name: str
    _limit: TimeLimit
    _failures: ClassVar[tuple[type[Exception], ...]] = (OSError, TimeoutError)
    """The exceptions of the store and its library."""

    def _explain(self, error: Exception) -> tuple[str, Exception]:
        """Return the reason for the message of the SessionStoreError, which may be empty, and its cause."""
        return "", error


def reports(action: str) -> Callable[[Method], Method]:
    """Bound the decorated method, and turn its `_failures` into a SessionStoreError that names *action*.

    A decorated method can't await another one of the same driver, because a TimeLimit holds each task only once.

        @reports("load a session")
        async def load(self, id, *, now): ...
    """

    def decorate(method: Method) -> Method:
        @wraps(method)
        async def reporting(self: Reporter, /, *args: Any, **kwargs: Any) -> Any:
            try:
                with self._limit:
                    return await method(self, *args, **kwargs)
            except GamanError:
                raise
            except self._failures as error:
                reason, cause = self._explain(error)
                raise SessionStoreError(self.name, action, reason) from cause

        return cast("Method", reporting)

    return decorate
