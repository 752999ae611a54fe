"""Portal: async functions, called from a thread that has no event loop."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import Awaitable, Callable
from typing import ParamSpec, TypeVar

from anyio.from_thread import BlockingPortal

P = ParamSpec("P")
T = TypeVar("T")


def call(portal: BlockingPortal, function: Callable[P, Awaitable[T]], *arguments: P.args, **named: P.kwargs) -> T:
    """Call *function* in the event loop of *portal*; return what it returns, and raise what it raises."""

    async def run() -> tuple[T] | BaseException:
        try:
            made = function(*arguments, **named)
            if not isinstance(made, Awaitable):
                name = getattr(function, "__qualname__", "the function")
                raise TypeError(f"client.call() takes an async function, and {name} isn't one; call it without the client")
            return (await made,)
        except CancelledError:
            raise
        except BaseException as error:
            # pytest.fail() raises one that isn't an Exception, which would end the portal.
            return error

    done = portal.call(run)
    if isinstance(done, BaseException):
        raise done
    return done[0]
