from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from inspect import getsourcelines
from typing import Any

import pytest

import gaman
from gaman import App, ConfigError, Context, HTTPError, Integration, InvalidInput
from gaman._dropped import find_dropped


async def show(ctx: Context) -> str:
    return "a secret"


class Refused(HTTPError):
    """An error of the application's own."""


async def in_a_guard(ctx: Context) -> None:
    if not ctx.params:
        HTTPError(403)


async def by_the_module(ctx: Context) -> None:
    gaman.HTTPError(403, f"not {ctx.path}", headers={"a": str(ctx.method)})


async def on_several_lines(ctx: Context) -> None:
    HTTPError(
        403,
        "no",
    )


async def of_its_own(ctx: Context) -> None:
    try:
        Refused(403)
    finally:
        InvalidInput("is bad")


async def in_a_helper_of_its_own(ctx: Context) -> None:
    def check() -> None:
        HTTPError(403)

    check()


def _requiring(role: str) -> Callable[[Context], Awaitable[None]]:
    async def require(ctx: Context) -> None:
        if role not in ctx.params:
            HTTPError(403)

    return require


class Guard:
    async def __call__(self, ctx: Context) -> None:
        HTTPError(403)

    async def method(self, ctx: Context) -> None:
        HTTPError(403)


def _logged(handler: Callable[[Context], Awaitable[None]]) -> Callable[[Context], Awaitable[None]]:
    @functools.wraps(handler)
    async def call(ctx: Context) -> None:
        await handler(ctx)

    return call


def _checked(handler: Callable[[Context], Awaitable[Any]]) -> Callable[[Context], Awaitable[None]]:
    @functools.wraps(handler)
    async def call(ctx: Context) -> None:
        if not ctx.params:
            HTTPError(403)
        await handler(ctx)

    return call


def _with_text(role: str) -> Callable[[Context], Awaitable[None]]:
    async def require(ctx: Context) -> None:
        """Its
        text begins before the function does.
        """
        HTTPError(403, role)

    return require


async def _of_a_role(role: str, ctx: Context) -> None:
    HTTPError(403, role)


GUARDS: list[Any] = [
    in_a_guard,
    by_the_module,
    on_several_lines,
    of_its_own,
    in_a_helper_of_its_own,
    _requiring("admin"),
    Guard(),
    Guard().method,
    _logged(in_a_guard),
    _checked(show),
    _with_text("admin"),
    functools.partial(_of_a_role, "admin"),
]


@pytest.mark.parametrize("guard", GUARDS)
def test_an_error_that_a_handler_makes_and_does_not_raise_stops_the_start(guard: Any) -> None:
    tables: list[Any] = [{"/": [guard, show]}, {"/*": guard, "/": show}, {"/": {"GET": guard}}, {"/": guard}]
    for table in tables:
        with pytest.raises(ConfigError, match=r"the handler .* makes \w+\(\.\.\.\) in line [0-9]+ and drops it"):
            App(table)


async def check(ctx: Context) -> None:
    raise HTTPError(403)


async def without_await(ctx: Context) -> str:
    check(ctx)  # type: ignore[unused-coroutine]  # pyright: ignore[reportUnusedCoroutine]  # noqa: RUF100
    return "a secret"


async def with_await(ctx: Context) -> None:
    await check(ctx)
    later = [check(ctx)]
    await later[0]


def test_a_call_of_an_async_function_without_await_stops_the_start() -> None:
    with pytest.raises(ConfigError, match=r"without_await calls check\(\.\.\.\) in line [0-9]+ without `await`"):
        App({"/": without_await})
    App({"/": with_await})


def test_the_message_names_the_handler_the_line_and_the_fix() -> None:
    line = getsourcelines(in_a_guard)[1] + 2
    with pytest.raises(ConfigError) as raised:
        App({"/admin": [in_a_guard, show]})
    assert (
        f"/admin: the handler in_a_guard makes HTTPError(...) in line {line} and drops it, so the request goes on; "
        "write `raise HTTPError(...)`"
    ) in str(raised.value)


def test_an_error_that_a_hook_does_not_raise_is_refused_as_well() -> None:
    def hook(ctx: Context) -> None:
        HTTPError(403)

    for on_request in (hook, in_a_guard):
        with pytest.raises(ConfigError, match=r"on_request of the integration 'guard': .* makes HTTPError\(\.\.\.\) in line"):
            Integration(name="guard", on_request=on_request)


async def raised_at_once(ctx: Context) -> None:
    raise HTTPError(403)


async def raised_in_brackets(ctx: Context) -> None:
    raise (
        # The line begins as a statement does.
        HTTPError(403)
    ) from HTTPError(404)


async def raised_later(ctx: Context) -> None:
    error = gaman.HTTPError(403)
    error.headers["a"] = "b"
    raise error


async def given_to_a_function(ctx: Context) -> None:
    print(HTTPError(403))
    str(HTTPError(404).with_traceback(None))
    HTTPError(403).add_note("kept elsewhere")


async def named_alone(ctx: Context) -> Any:
    HTTPError  # noqa: B018  # pyright: ignore[reportUnusedExpression]  # not made
    return [HTTPError(403)], lambda: HTTPError(404)


@pytest.mark.parametrize("handler", [raised_at_once, raised_in_brackets, raised_later, given_to_a_function, named_alone, show, len])
def test_any_other_use_of_an_error_is_no_mistake(handler: Any) -> None:
    assert find_dropped(handler) is None
