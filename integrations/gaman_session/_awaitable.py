"""SessionCall: what a call of the session returns; using it without `await` raises."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, Final, NoReturn, ParamSpec, Protocol, TypeVar

from gaman_session._errors import SessionUseError

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")
P = ParamSpec("P")

MYPY: Final = False
"""True for mypy, and False for everything else."""

_PENDING: Any = object()
_frame = sys._getframe
_is_finalizing = sys.is_finalizing
# The beginnings of names that asyncio, inspect and debuggers look up on any coroutine.
_INTERNAL: Final = ("_", "cr_", "gi_", "ag_")


class Reporter(Protocol):
    """What calls are made on: it logs those that were never awaited, and knows their names in the user's framework."""

    def _report_unawaited(self, line: str) -> None: ...
    def _spelled(self, text: str) -> str: ...


class SessionCall(Coroutine[Any, Any, T_co]):
    """One call of the session. `await` returns its result, every time; any other use raises SessionUseError, a TypeError.

    A call that needs the store reads when it is awaited; the others read at once. A call that is never awaited is logged.
    """

    __slots__ = ("_code", "_instruction", "_name", "_reporter", "_running", "_value", "_work")

    _code: CodeType
    """Where the call is made. A frame would refer to this object, and so keep it alive."""
    _instruction: int
    _name: str
    _reporter: Any
    _running: Generator[Any, Any, T_co]
    """What send() and throw() run."""
    _value: T_co
    _work: Any
    """How to get the value: a generator or, in a Reading, the arguments of Session._read()."""

    def __await__(self) -> Generator[Any, Any, T_co]:
        self.__class__ = SessionCall  # pyright: ignore[reportAttributeAccessIssue]
        if self._value is _PENDING:
            work: Generator[Any, Any, T_co] | None = self._work
            self._work = None
            if work is None:
                raise RuntimeError(f"{self._spelled()}(...) has failed, or another task is awaiting it; call it once more")
            self._value = yield from work
        return self._value

    # asyncio mostly takes only coroutines, so this is one.

    def send(self, value: Any, /) -> Any:
        """Continue; StopIteration has the result."""
        try:
            return self._run().send(value)
        except BaseException:
            del self._running
            raise

    def throw(self, *error: Any) -> Any:
        """Raise *error* where the call waits; a call that has not begun never begins."""
        try:
            return self._run().throw(*error)
        except BaseException:
            self._drop()
            del self._running
            raise
        finally:
            # Otherwise the error's traceback refers to the error, and only the garbage collector frees both and the request.
            del error

    def close(self) -> None:
        """End the call."""
        self._drop()
        if hasattr(self, "_running"):
            self._running.close()
            del self._running

    def _run(self) -> Generator[Any, Any, T_co]:
        if not hasattr(self, "_running"):
            self._running = self.__await__()
        return self._running

    def _spelled(self) -> str:
        """Return the call's name, as the user's framework has it."""
        name: str = self._reporter._spelled(self._name)
        return name

    def _drop(self) -> None:
        """Drop the work, and don't log the call."""
        self.__class__ = SessionCall  # pyright: ignore[reportAttributeAccessIssue]
        if self._value is _PENDING:
            self._work = None

    def _refuse(self, *_: object) -> NoReturn:
        self._drop()
        raise SessionUseError(f"write `await` before {self._spelled()}(...)")

    if not MYPY:
        # pyright reports a condition if this returns no bool, and mypy's truthy-bool if there is none.
        def __bool__(self) -> NoReturn:  # noqa: PLE0304 - it raises
            self._refuse()

    if not TYPE_CHECKING:
        __contains__ = __iter__ = __len__ = __getitem__ = __setitem__ = __delitem__ = __format__ = __str__ = _refuse
        __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = _refuse

        def __bool__(self) -> bool:
            # The repr() of a task tests whether it has a coroutine.
            return _is_asyncio(_frame(1)) or self._refuse()

        def __hash__(self) -> int:
            # gather() and as_completed() put calls into a dict or a set. Elsewhere, a lookup is a comparison by mistake.
            return object.__hash__(self) if _is_asyncio(_frame(1)) else self._refuse()


class Due(SessionCall[T_co]):
    """A call that has yet to be awaited. `await` changes its class, because __getattr__ and __del__ make objects slow."""

    __slots__ = ()

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            return _find(self, name)

        def __del__(self) -> None:
            self._drop()
            if not _is_finalizing():
                place = _place(self._code, self._instruction)
                self._reporter._report_unawaited(f"{self._spelled()}(...) was never awaited: write `await` before it ({place})")


class Reading(SessionCall[T_co]):
    """A call that reads a session that may have to be loaded; it reads each time it is awaited."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, Any, T_co]:
        self.__class__ = Reading  # pyright: ignore[reportAttributeAccessIssue]
        reading: Generator[Any, Any, T_co] = self._reporter._read(*self._work).__await__()
        return reading

    def _drop(self) -> None:
        self.__class__ = Reading  # pyright: ignore[reportAttributeAccessIssue]


class DueReading(Reading[T_co], Due[T_co]):
    """A call that reads, and has yet to be awaited."""

    __slots__ = ()


class Done(SessionCall[None]):
    """A call that only recorded a change, and is complete: awaiting it does nothing."""

    __slots__ = ()

    def __init__(self, name: str) -> None:
        self._name, self._value = name, None

    def __await__(self) -> Any:
        return _NOTHING

    def send(self, value: Any, /) -> Any:
        """Raise StopIteration: the call is complete."""
        raise StopIteration

    def throw(self, *error: Any) -> Any:
        """Raise *error*."""
        try:
            return _finish().throw(*error)
        finally:
            del error

    def _spelled(self) -> str:
        return self._name

    def _drop(self) -> None:
        pass

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            return _find(self, name)


def _find(call: SessionCall[Any], name: str) -> str:
    """Return the call's name, as a coroutine has one; raise for an attribute that its result may have."""
    if name in ("__name__", "__qualname__"):
        return call._spelled()
    if name.startswith(_INTERNAL):
        raise AttributeError(f"{type(call).__name__!r} object has no attribute {name!r}")
    return call._refuse()


# An exhausted iterator is the cheapest way for an awaitable to be complete.
_NOTHING: Final[Any] = iter(())


def _finish() -> Generator[Any, Any, None]:
    yield


def run(function: Callable[P, Coroutine[Any, Any, T]], *arguments: P.args, **named: P.kwargs) -> Generator[Any, Any, T]:
    """Await `function(...)` and return its result. The coroutine is created only then, so it can't be left without `await`."""
    return (yield from function(*arguments, **named).__await__())


def later(reporter: Reporter, name: str, work: Generator[Any, Any, T]) -> SessionCall[T]:
    """Return the call *name*, made by the caller's caller. Its result is the result of *work*."""
    frame = _frame(2)
    call: Due[T] = Due()
    call._code, call._instruction = frame.f_code, frame.f_lasti
    call._name, call._reporter = name, reporter
    call._value, call._work = _PENDING, work
    return call


def ready(session: Any, name: str, value: T) -> SessionCall[T]:
    """Return the call *name*, made by the caller's caller, with the result *value*."""
    frame = _frame(2)
    call: Due[T] = Due()
    call._code, call._instruction = frame.f_code, frame.f_lasti
    call._name, call._reporter = name, session
    call._value = value
    return call


def reading(
    session: Any, name: str, read: Callable[..., T], key: str | None, default: Any = None, type: Any = None
) -> SessionCall[T]:
    """Return the call *name*, made by the caller's caller. Its result is what *read* returns once the session is loaded."""
    frame = _frame(2)
    call: DueReading[T] = DueReading()
    call._code, call._instruction = frame.f_code, frame.f_lasti
    call._name, call._reporter = name, session
    call._work = read, key, default, type
    return call


def _is_asyncio(frame: FrameType) -> bool:
    return frame.f_globals.get("__package__") == "asyncio"


def _place(code: CodeType, instruction: int) -> str:
    """Return the place in the source of *instruction*, an offset in bytes."""
    line = next((line for start, end, line in code.co_lines() if start <= instruction < end), None)
    path = code.co_filename
    # The working directory may have been removed.
    with suppress(OSError):
        path = os.path.relpath(path) if path.startswith(os.getcwd()) else path
    return f"{path}, line {line or code.co_firstlineno}, in {code.co_name}"
