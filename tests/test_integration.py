from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest

import gaman.session
from gaman import App, ConfigError, Context, Handler, HTTPError, Integration, Priority, Response, define_integration
from gaman._handlers import name_of
from gaman.session import session

if TYPE_CHECKING:
    from tests.asgi import Fetch

pytestmark = pytest.mark.anyio

PRIORITIES: list[Priority] = ["very-high", "high", "normal", "low", "very-low"]
HOOKS = ["on_load", "on_shutdown", "on_request", "on_response", "on_error", "on_purge"]


async def handler(ctx: Context) -> str:
    return "handled"


async def failing(ctx: Context) -> str:
    raise ValueError("no more")


def noting(events: list[str], name: str, *, kind: str = "sync", result: object = None, error: Exception | None = None) -> Any:
    """Return a hook that records its name, and then returns *result* or raises *error*."""

    def hook(*_: object) -> object:
        events.append(name)
        if error is not None:
            raise error
        return result

    async def async_hook(*_: object) -> object:
        await asyncio.sleep(0)
        return hook()

    return hook if kind == "sync" else async_hook


def integration(events: list[str], name: str, *, priority: Priority = "normal", kind: str = "sync") -> Integration:
    return define_integration(name=name, priority=priority, **{hook: noting(events, f"{hook} {name}", kind=kind) for hook in HOOKS})


# Definition


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": ""}, "needs a name"),
        ({"name": "x", "priority": "urgent"}, "'x'.*'urgent'.*very-high"),
        *(({"name": "x", hook: "not callable"}, f"{hook}.*'x'.*str") for hook in [*HOOKS, "make_session", "close_session"]),
    ],
)
def test_a_mistake_in_an_integration_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        define_integration(**options)


def test_an_unknown_hook_is_refused() -> None:
    options: dict[str, Any] = {"on_reqest": handler}
    with pytest.raises(ConfigError, match="has no option 'on_reqest'; did you mean 'on_request'"):
        define_integration(name="x", **options)


def test_an_integration_is_immutable() -> None:
    defined = define_integration(name="x")
    assert (type(defined), defined.name, defined.priority, defined.on_request) == (Integration, "x", "normal", None)
    changing: Any = defined
    with pytest.raises(AttributeError):
        changing.name = "y"


# Order


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_request_hooks_run_by_priority_and_response_hooks_in_reverse(fetch: Fetch, kind: str) -> None:
    events: list[str] = []

    async def handler(ctx: Context) -> str:
        events.append("handler")
        return "handled"

    names: list[Priority] = [PRIORITIES[i] for i in (3, 0, 4, 2, 1)]
    app = App({"/": handler}, integrations=[integration(events, name, priority=name, kind=kind) for name in names])
    await app.load()
    assert (await fetch(app)).text == "handled"
    await app.shutdown()
    inwards, outwards = PRIORITIES, PRIORITIES[::-1]
    assert events == [
        *(f"on_load {name}" for name in inwards),
        *(f"on_request {name}" for name in inwards),
        "handler",
        *(f"on_response {name}" for name in outwards),
        *(f"on_shutdown {name}" for name in outwards),
    ]


async def test_integrations_of_one_priority_keep_the_order_of_their_list(fetch: Fetch) -> None:
    events: list[str] = []
    app = App({"/": failing}, integrations=(integration(events, name) for name in "abc"))
    await app.load()
    await fetch(app)
    assert [event for event in events if "on_request" in event] == ["on_request a", "on_request b", "on_request c"]
    assert [event for event in events if "on_error" in event] == ["on_error a", "on_error b", "on_error c"]
    assert [event for event in events if "on_response" in event] == ["on_response c", "on_response b", "on_response a"]


def test_two_integrations_with_the_same_name_are_refused() -> None:
    first, second = define_integration(name="x"), define_integration(name="x", priority="high")
    for integrations in ([first, second], [first, first]):
        with pytest.raises(ConfigError, match=r"two named 'x'.*remove one"):
            App({"/": handler}, integrations=integrations)


@pytest.mark.parametrize(
    ("integrations", "told"),
    [
        (define_integration(name="x"), r"not the integration 'x' by itself; write integrations=\[x\(...\)\]"),
        (session, r"not session itself; write integrations=\[session\(\)\]"),
        ([session], r"holds session itself; write integrations=\[session\(\)\]"),
        ([gaman.session], "holds the module gaman.session; import the integration from it"),
        ([None], "holds None"),
        (None, "is a list, not None"),
        ({"x": define_integration(name="x")}, "holds 'x'"),
    ],
)
def test_an_invalid_list_of_integrations_is_refused_with_a_fix(integrations: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        App({"/": handler}, integrations=integrations)


def test_integrations_may_come_from_a_generator() -> None:
    app = App({"/": handler}, integrations=(define_integration(name=name) for name in "ab"))
    assert [integration.name for integration in app.integrations] == ["a", "b"]


@pytest.mark.parametrize("hook", HOOKS)
async def test_an_integration_may_have_only_one_hook(fetch: Fetch, hook: str) -> None:
    events: list[str] = []
    options: dict[str, Any] = {hook: noting(events, hook, result=0 if hook == "on_purge" else None)}
    app = App({"/": failing}, integrations=[define_integration(name="x", **options)])
    await app.load()
    assert (await fetch(app)).status == 500
    await app.purge()
    await app.shutdown()
    assert events == [hook]


async def test_an_integration_without_hooks_changes_nothing(fetch: Fetch) -> None:
    app = App({"/": handler}, integrations=[define_integration(name="x")])
    assert (await fetch(app)).text == "handled"


# on_request


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_response_of_on_request_is_sent_instead_of_calling_the_handler(fetch: Fetch, kind: str) -> None:
    events: list[str] = []
    app = App(
        {"/": failing},
        integrations=[
            define_integration(
                name="a",
                on_request=noting(events, "a", kind=kind, result=Response("early", 202)),
                on_response=noting(events, "response a"),
            ),
            define_integration(name="b", on_request=noting(events, "b"), on_response=noting(events, "response b")),
        ],
    )
    response = await fetch(app)
    assert (response.status, response.text) == (202, "early")
    assert events == ["a", "response b", "response a"]


async def test_on_request_also_runs_if_no_route_matches(fetch: Fetch) -> None:
    events: list[str] = []
    app = App({"/x": {"GET": handler}}, integrations=[define_integration(name="a", on_request=noting(events, "asked"))])
    assert [(await fetch(app, "/y")).status, (await fetch(app, "/x", "PUT")).status] == [404, 405]
    assert events == ["asked"] * 2


@pytest.mark.parametrize(
    ("target", "headers", "status"),
    [
        ("*", [(b"host", b"a")], 204),
        ("*", [], 400),
        ("@evil.example/x", [(b"host", b"a")], 400),
        ("/%FF", [(b"host", b"a")], 400),
        ("/", [], 400),
        ("/", [(b"host", b"a"), (b"host", b"a")], 400),
        ("/", [(b"host", b"a b")], 400),
        ("/", [(b"host", b"evil.example")], 400),
        ("*", [(b"host", b"evil.example")], 400),
    ],
)
async def test_no_hook_runs_for_a_request_without_a_path_or_a_host(
    fetch: Fetch, target: str, headers: list[tuple[bytes, bytes]], status: int
) -> None:
    events: list[str] = []

    def on_response(ctx: Context, response: Response) -> None:
        events.append("response")

    def on_error(ctx: Context, error: Exception) -> None:
        events.append("error")

    hooks = define_integration(name="a", on_request=noting(events, "asked"), on_response=on_response, on_error=on_error)
    app = App({"/": handler}, integrations=[hooks], allowed_hosts=["a"])
    received = await fetch(app, target, "OPTIONS", scope={"headers": headers})
    assert (received.status, events) == (status, [])
    assert (await fetch(app, "/", headers={"host": "a"})).status == 200
    assert events == ["asked", "response"]


async def test_on_route_chooses_a_hook_for_each_route(fetch: Fetch) -> None:
    seen: list[tuple[str, list[str]]] = []

    async def first(ctx: Context) -> None:
        pass

    def choose(method: str, handlers: Sequence[Handler]) -> Any:
        seen.append((method, [name_of(each).rpartition(".")[2] for each in handlers]))

        def hook(ctx: Context) -> str | None:
            return f"{method} is refused" if method in ("POST", "ALL", "DELETE") else None

        return hook if first in handlers else None

    table: Any = {"/a": handler, "/b/*": {"POST": first, "ALL": [first, first]}, "/b": {"GET": handler, "POST": handler}}
    app = App(table, integrations=[define_integration(name="x", on_route=choose)])
    at_start = len(seen)
    assert ("POST", ["first", "handler"]) in seen
    assert ("GET", ["first", "first", "handler"]) in seen
    assert ("HEAD", ["first", "first", "handler"]) in seen
    assert ("ALL", ["handler"]) in seen
    for method, target, text in [
        ("GET", "/a", "handled"),
        ("POST", "/a", "handled"),
        ("GET", "/b", "handled"),
        ("POST", "/b", "POST is refused"),
    ]:
        assert (await fetch(app, target, method)).text == text
    assert len(seen) == at_start
    # Without a route, it is asked for each request.
    assert (await fetch(app, "/b", "DELETE")).text == "DELETE is refused"
    assert seen[-1][0] == "DELETE"
    assert (await fetch(app, "/b/c", "GET")).status == 404


def always(hook: Any) -> Any:
    """Return an on_route that chooses *hook* for every route."""

    def choose(method: str, handlers: Sequence[Handler]) -> Any:
        return hook

    return choose


async def test_the_hook_of_on_route_runs_at_the_turn_of_its_integration(fetch: Fetch) -> None:
    events: list[str] = []

    def hooks(name: str) -> Any:
        return {"on_request": noting(events, f"on_request {name}"), "on_route": always(noting(events, f"route of {name}"))}

    integrations = [define_integration(name=name, priority=name, **hooks(name)) for name in ("low", "high")]
    await fetch(App({"/": handler}, integrations=integrations))
    assert events == ["on_request high", "route of high", "on_request low", "route of low"]


@pytest.mark.parametrize("error", [HTTPError(403, "no"), ValueError("no more")], ids=["HTTPError", "other"])
async def test_the_hook_of_on_route_may_fail(fetch: Fetch, error: Exception) -> None:
    noted: list[str] = []
    hook = noting(noted, "hook", kind="async", error=error)
    app = App({"/:id": handler}, integrations=[define_integration(name="x", on_route=always(hook))])
    assert (await fetch(app, "/1")).status == (403 if isinstance(error, HTTPError) else 500)
    assert noted == ["hook"]


async def test_on_request_sees_the_parameters_of_the_path(fetch: Fetch) -> None:
    def on_request(ctx: Context) -> Response:
        return Response.json(dict(ctx.params))

    app = App({"/:id": handler}, integrations=[define_integration(name="a", on_request=on_request)])
    assert (await fetch(app, "/7")).text == '{"id":"7"}'


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(("error", "status"), [(HTTPError(403), 403), (ValueError("no"), 500)], ids=["refusal", "fault"])
async def test_on_request_may_fail(fetch: Fetch, kind: str, error: Exception, status: int) -> None:
    events: list[str] = []
    app = App(
        {"/": handler},
        integrations=[
            define_integration(
                name="a",
                on_request=noting(events, "request", kind=kind, error=error),
                on_response=noting(events, "response"),
                on_error=noting(events, "error"),
            )
        ],
    )
    assert (await fetch(app)).status == status
    assert events == ["request", "error", "response"]


# make_session and close_session


class Visit:
    """What an integration may make as the session of a request."""


def visits(events: list[str], name: str = "visits", **hooks: Any) -> Integration:
    def make(scope: Any, is_closed: bool) -> Any:
        events.append(f"make {is_closed}")
        return Visit()

    def close(ctx: Context, session: Any, response: Response) -> Any:
        events.append(f"close {type(session).__name__}")
        return [*response.raw_headers, (b"x-visit", b"1")]

    return define_integration(name=name, make_session=make, close_session=close, **hooks)


async def test_a_session_is_made_on_first_use_and_closed_at_the_turn_of_its_integration(fetch: Fetch) -> None:
    events: list[str] = []

    def inside(ctx: Context, response: Response) -> None:
        events.append(f"inside {dict(response.headers)}")

    def outside(ctx: Context, response: Response) -> None:
        events.append(f"outside {dict(response.headers)}")

    async def use(ctx: Context) -> Response:
        assert ctx.session is ctx.session
        return shared

    shared = Response(None, 200, {"x-own": "1"})
    integrations = [
        define_integration(name="outside", on_response=outside),
        visits(events),
        define_integration(name="inside", on_response=inside),
    ]
    app = App({"/": use, "/unused": handler}, integrations=integrations)
    for _ in range(2):
        received = await fetch(app)
        assert received.headers["x-visit"] == "1"
    assert dict(shared.headers) == {"x-own": "1"}
    once = ["make False", "inside {'x-own': '1'}", "close Visit", "outside {'x-own': '1', 'x-visit': '1'}"]
    assert events == once * 2
    events.clear()
    await fetch(app, "/unused")
    assert [event.partition(" ")[0] for event in events] == ["inside", "outside"]


async def test_a_session_that_can_not_be_closed_fails_the_request(fetch: Fetch) -> None:
    def close(*_: object) -> Any:
        raise HTTPError(409)

    async def use(ctx: Context) -> str:
        return type(ctx.session).__name__

    maker = define_integration(name="visits", make_session=visits([]).make_session, close_session=close)
    assert (await fetch(App({"/": use}, integrations=[maker]))).status == 409


def test_an_integration_of_another_class_may_have_options_that_are_named_like_a_hook() -> None:
    @dataclass(frozen=True, kw_only=True)
    class Pool(Integration):
        close_after: float = 5
        make_at_start: bool = True

    assert Pool(name="pool").close_after == 5


def test_two_integrations_that_make_sessions_are_refused() -> None:
    with pytest.raises(ConfigError, match="'a' and 'b' both make"):
        App({"/": handler}, integrations=[visits([], "a"), visits([], "b")])


@pytest.mark.parametrize("hook", ["make_session", "close_session"])
def test_only_one_half_of_what_makes_sessions_is_refused(hook: str) -> None:
    half: dict[str, Any] = {hook: noting([], hook)}
    with pytest.raises(ConfigError, match="only one of make_session and close_session"):
        define_integration(name="x", **half)


# on_response


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_on_response_may_replace_the_response(fetch: Fetch, kind: str) -> None:
    def wrap(name: str) -> Callable[[Context, Response], Any]:
        def hook(ctx: Context, response: Response) -> Response:
            return Response(f"{name}({bytes_of(response)})", response.status)

        async def async_hook(ctx: Context, response: Response) -> Response:
            return hook(ctx, response)

        return hook if kind == "sync" else async_hook

    app = App({"/": handler}, integrations=[define_integration(name=name, on_response=wrap(name)) for name in "ab"])
    assert (await fetch(app)).text == "a(b(handled))"


def bytes_of(response: Response) -> str:
    assert isinstance(response.body, bytes)
    return response.body.decode()


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_on_response_may_change_the_response_and_return_nothing(fetch: Fetch, kind: str) -> None:
    def hook(ctx: Context, response: Response) -> None:
        response.headers["x-seen"] = str(response.status)
        response.status = 299

    async def async_hook(ctx: Context, response: Response) -> None:
        hook(ctx, response)

    app = App({"/": handler}, integrations=[define_integration(name="a", on_response=hook if kind == "sync" else async_hook)])
    received = await fetch(app)
    assert (received.status, received.headers["x-seen"]) == (299, "200")


@pytest.mark.parametrize(
    ("target", "method", "status"),
    [
        ("/", "GET", 200),
        ("/fails", "GET", 500),
        ("/nowhere", "GET", 404),
        ("/", "POST", 405),
        ("/", "OPTIONS", 204),
    ],
)
async def test_on_response_runs_for_every_response(fetch: Fetch, target: str, method: str, status: int) -> None:
    statuses: list[int] = []

    def hook(ctx: Context, response: Response) -> None:
        statuses.append(response.status)

    app = App({"/": {"GET": handler}, "/fails": failing}, integrations=[define_integration(name="a", on_response=hook)])
    assert (await fetch(app, target, method)).status == status
    assert statuses == [status]


@pytest.mark.parametrize("kind", ["sync", "async"])
@pytest.mark.parametrize(("error", "status"), [(HTTPError(503), 503), (ValueError("no"), 500)], ids=["refusal", "fault"])
async def test_every_on_response_hook_runs_even_if_one_raises(fetch: Fetch, kind: str, error: Exception, status: int) -> None:
    events: list[str] = []

    def last(ctx: Context, response: Response) -> None:
        events.append(f"last {response.status}")
        response.headers["x-last"] = "1"

    app = App(
        {"/": handler},
        integrations=[
            define_integration(name="a", on_response=last),
            define_integration(name="b", on_response=noting(events, "middle", kind=kind, error=error)),
            define_integration(name="c", on_response=noting(events, "first")),
        ],
    )
    received = await fetch(app)
    assert (received.status, received.headers["x-last"]) == (status, "1")
    assert events == ["first", "middle", f"last {status}"]


async def test_cookies_of_an_on_response_hook_are_sent(fetch: Fetch) -> None:
    def hook(ctx: Context, response: Response) -> None:
        ctx.cookies.set("b", "2")

    async def handler(ctx: Context) -> str:
        ctx.cookies.set("a", "1")
        return "ok"

    received = await fetch(App({"/": handler}, integrations=[define_integration(name="a", on_response=hook)]))
    assert [line[:4] for line in received.headers.getall("set-cookie")] == ["a=1;", "b=2;"]


@pytest.mark.parametrize("hook", ["on_request", "on_response"])
async def test_a_hook_that_returns_an_invalid_response_causes_a_500(
    fetch: Fetch, hook: str, caplog: pytest.LogCaptureFixture
) -> None:
    options: dict[str, Any] = {hook: noting([], hook, result=42)}
    response = await fetch(App({"/": handler}, integrations=[define_integration(name="a", **options)]))
    assert response.status == 500
    assert "int" in caplog.text


# on_error


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_the_first_response_of_an_on_error_hook_is_sent_and_every_hook_sees_the_error(fetch: Fetch, kind: str) -> None:
    events: list[str] = []
    results = {"a": None, "b": Response("sorry", 503), "c": Response("never", 500)}
    app = App(
        {"/": failing},
        integrations=[
            define_integration(name=name, on_error=noting(events, name, kind=kind, result=result))
            for name, result in results.items()
        ],
    )
    response = await fetch(app)
    assert (response.status, response.text, events) == (503, "sorry", ["a", "b", "c"])


async def test_on_error_sees_every_error_including_http_errors(fetch: Fetch) -> None:
    seen: list[Exception] = []

    def on_error(ctx: Context, error: Exception) -> None:
        seen.append(error)

    app = App({"/": failing}, integrations=[define_integration(name="a", on_error=on_error)])
    assert [(await fetch(app)).status, (await fetch(app, "/nowhere")).status] == [500, 404]
    assert [str(error) for error in seen] == ["no more", "404 Not Found"]


async def test_on_error_sees_the_failure_of_an_on_response_hook(fetch: Fetch) -> None:
    events: list[str] = []
    app = App(
        {"/": handler},
        integrations=[
            define_integration(
                name="a",
                on_response=noting(events, "response", error=ValueError()),
                on_error=noting(events, "error", result=Response("sorry", 503)),
            )
        ],
    )
    assert ((await fetch(app)).status, events) == (503, ["response", "error"])


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_an_on_error_hook_that_fails_is_logged_and_the_next_one_runs(
    fetch: Fetch, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    events: list[str] = []
    app = App(
        {"/": failing},
        integrations=[
            define_integration(name="a", on_error=noting(events, "a", kind=kind, error=RuntimeError("worse"))),
            define_integration(name="b", on_error=noting(events, "b", kind=kind, result=42)),
            define_integration(name="c", on_error=noting(events, "c", kind=kind)),
        ],
    )
    response = await fetch(app)
    assert (response.status, response.text, events) == (500, "Internal Server Error", ["a", "b", "c"])
    assert "worse" in caplog.text
    assert "no more" in caplog.text


async def test_a_custom_page_for_404_is_an_on_error_hook(fetch: Fetch) -> None:
    def on_error(ctx: Context, error: Exception) -> Response | None:
        return Response.html("<h1>Gone</h1>", 404) if isinstance(error, HTTPError) and error.status == 404 else None

    app = App({"/": failing}, integrations=[define_integration(name="a", on_error=on_error)])
    assert (await fetch(app, "/nowhere")).text == "<h1>Gone</h1>"
    assert (await fetch(app)).text == "Internal Server Error"


# Load and shutdown


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_failed_load_shuts_down_only_the_integrations_that_were_loaded(kind: str) -> None:
    events: list[str] = []
    app = App(
        {"/": handler},
        integrations=[
            integration(events, "a", kind=kind),
            integration(events, "b", kind=kind),
            define_integration(
                name="c",
                on_load=noting(events, "on_load c", kind=kind, error=ValueError("no store")),
                on_shutdown=noting(events, "never"),
            ),
            integration(events, "d", kind=kind),
        ],
    )
    with pytest.raises(ValueError, match="no store"):
        await app.load()
    assert events == ["on_load a", "on_load b", "on_load c", "on_shutdown b", "on_shutdown a"]


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_every_on_shutdown_hook_runs_even_if_one_raises(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    events: list[str] = []
    app = App(
        {"/": handler},
        integrations=[
            integration(events, "a", kind=kind),
            define_integration(name="b", on_shutdown=noting(events, "on_shutdown b", kind=kind, error=ValueError("stuck"))),
        ],
    )
    await app.load()
    await app.shutdown()
    assert events == ["on_load a", "on_shutdown b", "on_shutdown a"]
    assert "on_shutdown of the integration 'b' failed" in caplog.text
    assert "stuck" in caplog.text


async def test_a_second_shutdown_does_nothing() -> None:
    events: list[str] = []
    app = App({"/": handler}, integrations=[integration(events, "a")])
    await app.load()
    await app.shutdown()
    await app.shutdown()
    assert events == ["on_load a", "on_shutdown a"]


async def test_an_app_can_be_loaded_again() -> None:
    events: list[str] = []
    app = App({"/": handler}, integrations=[integration(events, "a")])
    for _ in range(2):
        await app.load()
        await app.shutdown()
    assert events == ["on_load a", "on_shutdown a"] * 2


async def test_no_request_is_served_before_every_load_is_done(fetch: Fetch) -> None:
    loading, go_on = asyncio.Event(), asyncio.Event()

    async def on_load(app: App) -> None:
        loading.set()
        await go_on.wait()

    app = App({"/": handler}, integrations=[define_integration(name="a", on_load=on_load)])
    with pytest.raises(ConfigError, match="lifespan"):
        await fetch(app)
    load = asyncio.create_task(app.load())
    await loading.wait()
    with pytest.raises(ConfigError, match="lifespan"):
        await fetch(app)
    go_on.set()
    await load
    assert (await fetch(app)).text == "handled"


async def test_no_request_is_served_after_shutdown(fetch: Fetch) -> None:
    app = App({"/": handler}, integrations=[integration([], "a")])
    await app.load()
    await app.shutdown()
    with pytest.raises(ConfigError):
        await fetch(app)


async def test_no_request_is_served_after_a_failed_load(fetch: Fetch) -> None:
    app = App({"/": handler}, integrations=[define_integration(name="a", on_load=noting([], "a", error=ValueError()))])
    with pytest.raises(ValueError):  # noqa: PT011
        await app.load()
    with pytest.raises(ConfigError):
        await fetch(app)


async def test_an_app_without_on_load_hooks_needs_no_lifespan(fetch: Fetch) -> None:
    app = App({"/": handler}, integrations=[define_integration(name="a", on_request=noting([], "a"))])
    assert (await fetch(app)).text == "handled"


@pytest.mark.parametrize("kind", ["plain", "async"])
async def test_a_purge_returns_the_number_that_each_integration_has_removed(kind: str) -> None:
    async def later(app: App) -> int:
        return len(app.integrations)

    def purge(app: App) -> Any:
        return 3 if kind == "plain" else later(app)

    hooked = [define_integration(name=name, on_purge=purge) for name in ("a", "b")]
    app = App({"/": handler}, integrations=[*hooked, define_integration(name="c")])
    await app.load()
    assert await app.purge() == {"a": 3, "b": 3}
    await app.shutdown()


async def test_on_load_gets_the_app() -> None:
    seen: list[App] = []
    app = App({"/": handler}, integrations=[define_integration(name="a", on_load=seen.append, on_shutdown=seen.append)])
    await app.load()
    await app.shutdown()
    assert seen == [app, app]


@pytest.mark.parametrize("kind", ["sync", "async"])
async def test_a_check_returns_the_error_of_each_integration_by_name(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    events: list[str] = []
    down = HTTPError(503, "hosts db1, db2")
    app = App(
        {"/": handler},
        integrations=[
            define_integration(name="well", on_check=noting(events, "well", kind=kind)),
            define_integration(name="ill", on_check=noting(events, "ill", kind=kind, error=down)),
            define_integration(name="worse", on_check=noting(events, "worse", kind=kind, error=OSError("no disk"))),
            define_integration(name="nothing to check"),
        ],
    )
    await app.load()
    found = await app.check()
    assert events == ["well", "ill", "worse"]
    assert list(found) == ["well", "ill", "worse"]
    assert (found["well"], found["ill"]) == (None, down)
    assert repr(found["worse"]) == "OSError('no disk')"
    assert [record.getMessage() for record in caplog.records] == [
        "the check of the integration 'ill' failed: 503 hosts db1, db2",
        "the check of the integration 'worse' failed: OSError('no disk')",
    ]


async def test_a_check_of_an_app_without_on_check_hooks_is_empty() -> None:
    assert await App({"/": handler}).check() == {}


# Where no route matches


async def test_on_unmatched_answers_after_middleware_where_no_route_matches(fetch: Fetch) -> None:
    events: list[str] = []

    async def middleware(ctx: Context) -> None:
        events.append(f"middleware {ctx.path}")
        if "authorization" not in ctx.headers:
            raise HTTPError(401)

    async def refuse(ctx: Context) -> str:
        raise HTTPError(404, "no such user")

    async def silent(ctx: Context) -> None:
        return None

    def nothing(ctx: Context) -> None:
        events.append("first")

    async def page(ctx: Context) -> Response | None:
        events.append("second")
        return Response.text(f"{ctx.method} {ctx.path}") if ctx.path.startswith("/pages/") else None

    table: dict[str, Any] = {"/pages/*": middleware, "/users": refuse, "/silent": silent, "/pages/form": {"POST": handler}}
    integrations = [
        define_integration(name="second", on_unmatched=page),
        define_integration(name="first", priority="high", on_unmatched=nothing),
    ]
    app = App(table, integrations=integrations)
    authorized = {"authorization": "yes"}
    assert (await fetch(app, "/pages/a", "DELETE", headers=authorized)).text == "DELETE /pages/a"
    assert events == ["middleware /pages/a", "first", "second"]
    # The path has a route, but not for this method.
    assert (await fetch(app, "/pages/form", headers=authorized)).text == "GET /pages/form"
    assert (await fetch(app, "/pages/form", "POST", headers=authorized)).text == "handled"
    assert (await fetch(app, "/nowhere")).status == 404
    events.clear()
    # A route's own answer stays, and so does a guard's.
    assert (await fetch(app, "/pages/a")).status == 401
    assert (await fetch(app, "/users")).text == "no such user"
    assert (await fetch(app, "/silent")).status == 404
    assert events == ["middleware /pages/a"]


async def test_on_unmatched_may_raise_and_the_routes_405_stays_without_a_response(fetch: Fetch) -> None:
    def refuse(ctx: Context) -> None:
        if ctx.path == "/gone":
            raise HTTPError(410)

    app = App({"/form": {"POST": handler}}, integrations=[define_integration(name="x", on_unmatched=refuse)])
    assert (await fetch(app, "/gone")).status == 410
    refused = await fetch(app, "/form")
    assert (refused.status, refused.headers["allow"]) == (405, "POST, OPTIONS")
    assert (await fetch(app, "/form", "OPTIONS")).status == 204
