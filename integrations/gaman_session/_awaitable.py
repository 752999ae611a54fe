"""SessionCall: what a call of the session returns; using it without `await` raises."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Coroutine, Generator
from contextlib import suppress
from inspect import CO_ASYNC_GENERATOR, CO_COROUTINE
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn, ParamSpec, TypeAlias, TypeVar

from gaman_session._errors import SessionUseError

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")
P = ParamSpec("P")

Place: TypeAlias = tuple[str, CodeType, int]
"""A call's name, and where it was made: the code, and the offset of the instruction in bytes."""

MYPY: Final = False
"""True for mypy, and False for everything else."""

_PENDING: Any = object()
_frame = sys._getframe
_is_finalizing = sys.is_finalizing
_names_call: Final = re.compile(r"\b(SessionCall|Reading|Due|DueReading|Ready|Done)\b|: write `await`").search
# The beginnings of names that asyncio, inspect and debuggers look up on any coroutine.
_INTERNAL: Final = ("_", "cr_", "gi_", "ag_")


class MakesCalls:
    """Makes calls, and has the places of those that are due: nothing has begun to await them."""

    # A place can't be part of a reference cycle: a call refers to this object, and the frame that made it may refer to the call.
    __slots__ = ("_due", "_more_due", "_name")

    def __init__(self, name: str) -> None:
        self._name = name
        """The name in the user's code, such as `ctx.session`."""
        self._due: Place | tuple[()] | None = None
        """The place of the Ready call; empty once it needs no `await` any more."""
        self._more_due: dict[object, Place] | None = None
        """The places of the other due calls, by their id(), and of the dropped ones, by themselves."""

    def _report(self, place: Place) -> None:
        """Report the call that was made in this *place* and dropped without `await`."""
        raise NotImplementedError

    def _remember(self, key: object, place: Place) -> None:
        if self._more_due is None:
            self._more_due = {}
        self._more_due[key] = place

    def _forget_due(self) -> None:
        """Forget the due calls, but not those that were dropped."""
        self._due = self._due and ()
        self._more_due = {key: place for key, place in (self._more_due or {}).items() if key is place}

    def _take_lines(self) -> list[str]:
        """Forget all calls, and return a line about each place. A loop may have made many calls in one place."""
        lines = [self._line(place) for place in (self._due, *(self._more_due or {}).values()) if place]
        self._due, self._more_due = self._due and (), None
        return [*dict.fromkeys(lines)]

    def _line(self, place: Place) -> str:
        name, code, instruction = place
        fix = "write `await` before it"
        # In a lambda or a comprehension, the function around it may be async.
        if not code.co_flags & (CO_COROUTINE | CO_ASYNC_GENERATOR) and not code.co_name.startswith("<"):
            fix += f" in `async def {code.co_name}`, or `anyio.from_thread.run({self._name}.{name}, ...)` in a `def` endpoint"
        return f"{self._name}.{name}(...) was never awaited: {fix} ({_line_of(code, instruction)})"


class SessionCall(Coroutine[Any, Any, T_co]):
    """One call of the session. `await` returns its result, every time; any other use raises SessionUseError, a TypeError.

    A call that needs the store reads when it is awaited; the others read at once. A call that is never awaited is reported.
    """

    __slots__ = ("_maker", "_name", "_running", "_value", "_work")

    _maker: Any
    """What the call is made on."""
    _name: str
    _running: Generator[Any, Any, T_co]
    """What send() and throw() run."""
    _value: T_co
    _work: Any
    """How to get the value: a generator or, in a Reading, the arguments of Session._read()."""

    def __await__(self) -> Generator[Any, Any, T_co]:
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
        return f"{self._maker._name}.{self._name}"

    def _begin(self) -> Place | None:
        """Note that the call is awaited or dropped. If it was due, return its place."""

    def _drop(self) -> None:
        """Drop the work, and don't report the call."""
        self._begin()
        if self._value is _PENDING:
            self._work = None

    def _refuse(self, *_: object) -> NoReturn:
        place = self._begin()
        self._drop()
        # The log of an App has the line. A traceback of FastAPI, whose encoder uses what an endpoint returns, doesn't.
        where = f" ({_line_of(*place[1:])})" if place and self._maker._name == "session" else ""
        raise SessionUseError(f"write `await` before {self._spelled()}(...){where}")

    def __repr__(self) -> str:
        return f"<{self._spelled()}(...): write `await` before it>"

    if not MYPY:
        # pyright reports a condition if this returns no bool, and mypy's truthy-bool if there is none.
        def __bool__(self) -> NoReturn:  # noqa: PLE0304 - it raises
            self._refuse()

    if not TYPE_CHECKING:
        __contains__ = __iter__ = __len__ = __getitem__ = __setitem__ = __delitem__ = __format__ = __str__ = _refuse
        __eq__ = __ne__ = __lt__ = __le__ = __gt__ = __ge__ = __add__ = __radd__ = __int__ = __float__ = __bytes__ = _refuse

        def __bool__(self) -> bool:
            # The repr() of a task tests whether it has a coroutine.
            return _is_asyncio(_frame(1)) or self._refuse()

        def __hash__(self) -> int:
            # gather() and as_completed() put calls into a dict or a set. Elsewhere, a lookup is a comparison by mistake.
            return object.__hash__(self) if _is_asyncio(_frame(1)) else self._refuse()


class Reading(SessionCall[T_co]):
    """A call that reads a session that may have to be loaded; it reads each time it is awaited."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, Any, T_co]:
        reading: Generator[Any, Any, T_co] = self._maker._read(*self._work).__await__()
        return reading


class Due(SessionCall[T_co]):
    """A call that has yet to be awaited. `await` changes its class, because __getattr__ and __del__ make objects slow."""

    __slots__ = ()

    _class: ClassVar[type[SessionCall[Any]]] = SessionCall
    """The class of the call once it is awaited."""

    def __await__(self) -> Generator[Any, Any, T_co]:
        self._begin()
        return self.__await__()

    def _begin(self) -> Place | None:
        self.__class__ = self._class  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]  # the layouts are the same
        places: dict[object, Place] = self._maker._more_due or {}
        return places.pop(id(self), None)

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            return _find(self, name)

        def __del__(self) -> None:
            if not _is_finalizing() and (place := self._begin()):
                self._maker._report(place)


class DueReading(Due[T_co], Reading[T_co]):
    """A call that reads, and has yet to be awaited."""

    __slots__ = ()

    _class = Reading


class Ready(Due[T_co]):
    """A due call that has its value, one at a time. Most reads are one. Having its place in a dict would cost a request 3 %."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, Any, T_co]:
        self.__class__ = SessionCall  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]  # the layouts are the same
        self._maker._due = None
        return self._value
        yield  # makes this a generator

    def _begin(self) -> Place | None:
        self.__class__ = SessionCall  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]  # the layouts are the same
        place: Place | None = self._maker._due
        self._maker._due = None
        return place


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


def deferred(maker: MakesCalls, name: str, work: Generator[Any, Any, T]) -> SessionCall[T]:
    """Return the call *name* of *maker*, made by the caller's caller. Its result is the result of *work*."""
    call: Due[T] = Due()
    call._value, call._work = _PENDING, work
    _make(call, maker, name, _frame(2))
    return call


def reading(
    session: Any, name: str, read: Callable[..., T], key: str | None, default: Any = None, type: Any = None
) -> SessionCall[T]:
    """Return the call *name*, made by the caller's caller. Its result is what *read* returns once the session is loaded."""
    call: DueReading[T] = DueReading()
    call._value, call._work = default, (read, key, default, type)
    _make(call, session, name, _frame(2))
    return call


def ready(maker: MakesCalls, name: str, value: T, frame: FrameType) -> SessionCall[T]:
    """Return the call *name* of *maker*, made in *frame*, with the result *value*."""
    call: Due[T]
    # Threads may share a session. CPython doesn't switch between this test and the assignment, because neither calls a function.
    if maker._due is None:
        maker._due = name, frame.f_code, frame.f_lasti
        call = Ready()
        call._maker, call._name = maker, name
    else:
        call = Due()
        _make(call, maker, name, frame)
    call._value = value
    return call


def _make(call: Due[Any], maker: MakesCalls, name: str, frame: FrameType) -> None:
    """Make *call* a due call of *maker*, made in *frame*."""
    call._maker, call._name = maker, name
    maker._remember(id(call), (name, frame.f_code, frame.f_lasti))


def note_calls(maker: MakesCalls, error: BaseException) -> None:
    """Add the lines of the due calls of *maker* to an *error* that speaks of a call, as a framework's does that can't encode it."""
    with suppress(Exception):
        if _names_call(str(error)) is not None:
            for line in maker._take_lines():
                error.add_note(line)


def _is_asyncio(frame: FrameType) -> bool:
    return frame.f_globals.get("__package__") == "asyncio"


def _line_of(code: CodeType, instruction: int) -> str:
    """Return the line in the source of *instruction*, an offset in bytes."""
    line = next((line for start, end, line in code.co_lines() if start <= instruction < end), None)
    path = code.co_filename
    # The working directory may have been removed.
    with suppress(OSError):
        path = os.path.relpath(path) if path.startswith(os.getcwd()) else path
    return f"{path}, line {line or code.co_firstlineno}, in {code.co_name}"
