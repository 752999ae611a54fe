"""cors() and headers() are listed before session(), so that every response has their fields."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from gaman import App, ConfigError, Context, HTTPError, Integration, Response
from gaman.cors import cors
from gaman.headers import headers
from gaman.session import session
from tests.session.sites import SECRET

if TYPE_CHECKING:
    from tests.asgi import Fetch

pytestmark = pytest.mark.anyio

ORIGIN = "https://app.example.com"


async def hello(ctx: Context) -> Response:
    return Response.text("hello")


@pytest.mark.parametrize(
    ("make", "fields"),
    [
        (lambda: cors(ORIGIN), {"access-control-allow-origin": ORIGIN, "vary": "Origin"}),
        (headers, {"x-content-type-options": "nosniff", "cross-origin-opener-policy": "same-origin"}),
    ],
)
async def test_an_error_of_a_hook_or_of_a_store_has_the_fields(
    fetch: Fetch, make: Callable[[], Integration], fields: dict[str, str]
) -> None:
    def broken(ctx: Context, *_: object) -> None:
        raise HTTPError(503, "the store is down")

    def begin(ctx: Context) -> None:
        ctx.locals["session"] = ctx.session

    def make_session(scope: Any, is_closed: bool) -> Any:
        return object()

    hooks: list[dict[str, Any]] = [
        {"on_request": broken},
        {"on_response": broken},
        {"on_request": begin, "make_session": make_session, "close_session": broken},
    ]
    for options in hooks:
        for priority in ("very-high", "normal", "very-low"):
            app = App({"/": hello}, integrations=[make(), Integration(name="failing", priority=priority, **options)])
            await app.load()
            response = await fetch(app, headers={"origin": ORIGIN})
            assert (response.status, {name: response.headers[name] for name in fields}) == (503, fields), options


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        (
            lambda: cors(ORIGIN),
            "cors() has to come before session(), so that scripts can read its errors, too; "
            "write integrations=[cors(...), session(...)]",
        ),
        (
            headers,
            "headers() has to come before session(), so that its errors have the fields, too; "
            "write integrations=[headers(...), session(...)]",
        ),
    ],
)
async def test_a_session_that_is_listed_first_stops_the_start(make: Callable[[], Integration], fault: str) -> None:
    app = App({}, integrations=[session(SECRET), make()])
    with pytest.raises(ConfigError) as raised:
        await app.load()
    assert str(raised.value) == fault
