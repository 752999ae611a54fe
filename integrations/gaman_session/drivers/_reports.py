"""@reports(action): bounds a driver's method by its time limit, and turns the store's failures into SessionStoreError."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any, ClassVar, TypeVar, cast

from gaman import GamanError
from gaman_session._errors import SessionStoreError

# The decorated method keeps its exact type, which the protocol Driver asks for.
Method = TypeVar("Method", bound=Callable[..., Coroutine[Any, Any, Any]])


class Reporter:
    """The base class of a driver whose methods use @reports()."""

    name: str
    _limit: AbstractContextManager[None]
    _failures: ClassVar[tuple[type[Exception], ...]] = (OSError, TimeoutError)
    """The exceptions of the store and its library."""

    def _explain(self, error: Exception) -> tuple[str, Exception]:
        """Return the reason for the message of the SessionStoreError, which may be empty, and its cause."""
        return "", error

    def _report(self, action: str, error: Exception) -> SessionStoreError:
        """Return the SessionStoreError for *error*, with its cause."""
        reason, cause = self._explain(error)
        report = SessionStoreError(self.name, action, reason)
        report.__cause__ = cause
        return report


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
                report = self._report(action, error)
                raise report from report.__cause__

        return cast("Method", reporting)

    return decorate
