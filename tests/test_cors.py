from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from gaman import App, ConfigError, Context, HTTPError, Response
from gaman.cors import cors
from gaman.session import session
from tests.serving import SERVES, get, running_script
from tests.session.sites import SECRET

if TYPE_CHECKING:
    from tests.asgi import Exchange, Fetch

pytestmark = pytest.mark.anyio

ORIGIN = "https://app.example.com"
PREFIX = "access-control-"
METHODS = "GET, HEAD, POST, PUT, PATCH, DELETE"
VARY = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"


async def hello(ctx: Context) -> str:
    return "hello"


async def fail(ctx: Context) -> str:
    raise ValueError("no more")


async def guard(ctx: Context) -> str:
    raise HTTPError(401, "log in")


async def own(ctx: Context) -> Response:
    return Response.text("own", headers={"access-control-allow-origin": "*", "vary": "Cookie, origin"})


async def cached(ctx: Context) -> Response:
    return Response.text("cached", headers={"vary": "Accept"})


ROUTES: dict[str, Any] = {"/": hello, "/fail": fail, "/guarded/*": guard, "/post": {"POST": hello}, "/own": own, "/cached": cached}


async def make(origins: Any = (ORIGIN,), **options: Any) -> App:
    app = App(ROUTES, integrations=[cors(origins, **options)])
    await app.load()
    return app


def preflight(origin: str = ORIGIN, method: str = "PUT", **more: str) -> dict[str, str]:
    return {"origin": origin, f"{PREFIX}request-method": method, **more}


def fields(response: Exchange) -> dict[str, str]:
    """Return the fields of CORS in *response*, without their common prefix."""
    assert len(response.headers) == len(response.headers.raw), "a field is sent twice"
    return {name.removeprefix(PREFIX): value for name, value in response.headers.items() if name.startswith(PREFIX)}


# Origins


@pytest.mark.parametrize(
    ("origins", "allowed", "refused"),
    [
        (
            ORIGIN,
            [ORIGIN, "HTTPS://APP.example.com", "https://app.example.com:443"],
            [
                "http://app.example.com",
                "https://app.example.com:8443",
                "https://example.com",
                "https://x.app.example.com",
                "https://app.example.com.evil.test",
                "https://evil-app.example.com",
                "https://app-example.com",
                "https://app.example.com/",
                "https://app.example.com.",
                "https://user@app.example.com",
                "app.example.com",
                "null",
                "",
                "*",
                "https://*.example.com",
                "https://*.app.example.com",
                f"{ORIGIN} {ORIGIN}",
                f"{ORIGIN},{ORIGIN}",
                "https://app.example.com" + "x" * 400,
            ],
        ),
        (
            ["https://*.example.com"],
            [ORIGIN, "https://a.b.example.com", "https://A.EXAMPLE.COM"],
            [
                "https://example.com",
                "https://evilexample.com",
                "https://app.example.com.evil.test",
                "http://app.example.com",
                "https://app.example.com:444",
                "https://.example.com",
                "https://*.example.com",
                "https://a..example.com",
                "https://evil.test/.example.com",
                "https://evil.test?.example.com",
                "https://evil.test\\.example.com",
                "https://a@b.example.com",
            ],
        ),
        (["https://*.example.com:8443"], ["https://a.example.com:8443"], ["https://a.example.com"]),
        (["HTTP://Localhost:80", "https://[::1]:8000"], ["http://localhost", "https://[::1]:8000"], ["http://localhost:8080"]),
        (["capacitor://localhost"], ["capacitor://localhost"], ["https://localhost", "capacitor://localhost:80"]),
        ("https://a.test, https://b.test", ["https://a.test", "https://b.test"], ["https://c.test"]),
        (["null"], ["null"], ["NULL", ORIGIN, ""]),
    ],
)
async def test_only_the_named_origins_are_allowed(fetch: Fetch, origins: Any, allowed: list[str], refused: list[str]) -> None:
    app = await make(origins)
    for origin in [*allowed, *refused]:
        response = await fetch(app, headers={"origin": origin})
        assert response.text == "hello"
        assert fields(response) == ({"allow-origin": origin} if origin in allowed else {}), origin
        assert response.headers["vary"] == "Origin"


async def test_an_origin_that_is_sent_twice_is_not_allowed(fetch: Fetch) -> None:
    response = await fetch(await make(), headers=[(b"origin", ORIGIN.encode()), (b"origin", b"https://evil.test")])
    assert fields(response) == {}


async def test_any_origin_may_be_allowed(fetch: Fetch) -> None:
    for origins in ("*", ["*"], [ORIGIN, "*"]):
        for headers in ({}, {"origin": "https://evil.test"}, {"origin": "null"}):
            response = await fetch(await make(origins), headers=headers)
            assert (fields(response), response.headers.get("vary")) == ({"allow-origin": "*"}, None)


# Responses


async def test_responses_to_allowed_origins_have_the_fields(fetch: Fetch) -> None:
    app = await make(credentials=True, expose=["X-Total", "ETag"])
    expected = {"allow-origin": ORIGIN, "allow-credentials": "true", "expose-headers": "X-Total, ETag"}
    statuses: dict[str, int] = {}
    for target in ("/", "/fail", "/guarded/x", "/post", "/missing"):
        response = await fetch(app, target, headers={"origin": ORIGIN})
        statuses[target] = response.status
        assert (fields(response), response.headers["vary"]) == (expected, "Origin")
        for headers in ({}, {"origin": "https://evil.test"}):
            other = await fetch(app, target, headers=headers)
            assert (other.status, fields(other), other.headers["vary"]) == (response.status, {}, "Origin")
    assert statuses == {"/": 200, "/fail": 500, "/guarded/x": 401, "/post": 405, "/missing": 404}


async def test_fields_of_a_handler_are_kept_and_not_sent_twice(fetch: Fetch) -> None:
    app = await make(credentials=True)
    response = await fetch(app, "/own", headers={"origin": ORIGIN})
    assert (fields(response), response.headers["vary"]) == ({"allow-origin": "*"}, "Cookie, origin")
    assert (await fetch(app, "/cached", headers={"origin": ORIGIN})).headers["vary"] == "Accept, Origin"


async def test_a_session_varies_by_cookie_and_origin(fetch: Fetch) -> None:
    async def login(ctx: Context) -> str:
        await ctx.session.set("user", 1)
        return "welcome"

    app = App({"/": login}, integrations=[cors(ORIGIN, credentials=True), session(SECRET)])
    await app.load()
    response = await fetch(app, headers={"origin": ORIGIN})
    assert fields(response) == {"allow-origin": ORIGIN, "allow-credentials": "true"}
    assert response.headers["vary"] == "Cookie, Origin"
    assert "set-cookie" in response.headers


# Preflights


async def test_a_preflight_is_answered_before_routes_and_guards(fetch: Fetch) -> None:
    app = await make(expose="X-Total")
    for target in ("/", "/fail", "/guarded/x", "/post", "/missing"):
        response = await fetch(app, target, "OPTIONS", headers=preflight())
        assert (response.status, response.body) == (204, b"")
        assert fields(response) == {
            "allow-origin": ORIGIN,
            "allow-methods": METHODS,
            "allow-headers": "Authorization, Content-Type",
            "max-age": "600",
        }
        assert response.headers["vary"] == VARY


async def test_a_preflight_of_another_origin_gets_no_fields(fetch: Fetch) -> None:
    for options in ({}, {"credentials": True, "private_network": True}):
        response = await fetch(await make(**options), "/guarded/x", "OPTIONS", headers=preflight("https://evil.test"))
        assert (response.status, fields(response)) == (204, {})
        assert response.headers["vary"].startswith(VARY)


async def test_a_plain_options_request_is_the_routes_own(fetch: Fetch) -> None:
    app = await make()
    for headers in ({"origin": ORIGIN}, {f"{PREFIX}request-method": "PUT"}, {}):
        response = await fetch(app, "/post", "OPTIONS", headers=headers)
        assert (response.status, response.headers["allow"]) == (204, "POST, OPTIONS")
        assert fields(response) == ({"allow-origin": ORIGIN} if "origin" in headers else {})
        assert response.headers["vary"] == "Origin"
    # A preflight is an OPTIONS request.
    assert (await fetch(app, "/", headers=preflight())).text == "hello"


async def test_what_a_preflight_asks_for_is_never_reflected(fetch: Fetch) -> None:
    asked = {f"{PREFIX}request-headers": "x-evil, content-type"}
    response = await fetch(await make(), "/", "OPTIONS", headers=preflight(method="EVIL", **asked))
    assert "evil" not in str(response.headers.raw).lower()


async def test_the_options_decide_what_a_preflight_allows(fetch: Fetch) -> None:
    app = await make(methods=["get", "PURGE"], headers="X-One, X-Two", max_age=0, credentials=True)
    assert fields(await fetch(app, "/", "OPTIONS", headers=preflight())) == {
        "allow-origin": ORIGIN,
        "allow-credentials": "true",
        "allow-methods": "GET, PURGE",
        "allow-headers": "X-One, X-Two",
        "max-age": "0",
    }
    # The wildcard of headers doesn't include Authorization.
    app = await make("*", methods="*", headers="*", expose="*")
    allowed = {"allow-origin": "*", "allow-methods": "*", "allow-headers": "*, Authorization", "max-age": "600"}
    assert fields(await fetch(app, "/", "OPTIONS", headers=preflight())) == allowed
    assert fields(await fetch(app, "/")) == {"allow-origin": "*", "expose-headers": "*"}
    assert "allow-headers" not in fields(await fetch(await make(headers=[]), "/", "OPTIONS", headers=preflight()))


@pytest.mark.parametrize(
    ("option", "asked", "allowed"), [(True, "true", "true"), (True, "false", None), (True, None, None), (False, "true", None)]
)
async def test_a_private_network_is_open_only_by_the_option(
    fetch: Fetch, option: bool, asked: str | None, allowed: str | None
) -> None:
    headers = preflight() if asked is None else preflight(**{f"{PREFIX}request-private-network": asked})
    response = await fetch(await make(private_network=option), "/", "OPTIONS", headers=headers)
    assert fields(response).get("allow-private-network") == allowed
    assert response.headers["vary"] == VARY + (", Access-Control-Request-Private-Network" if option else "")


@pytest.mark.parametrize("server", SERVES)
def test_the_fields_arrive_over_a_socket(server: str, tmp_path: Any) -> None:
    script = f"""
import gaman
from gaman.cors import cors
async def hello(ctx): return "hello"
routes, integrations = {{"/": hello}}, [cors([{ORIGIN!r}], credentials=True)]
{SERVES[server]}"""
    with running_script(script, tmp_path) as program:
        for target, status in {"/": 200, "/missing": 404}.items():
            response = get(program.port, target, f"Origin: {ORIGIN}")
            assert (response.status, response.headers["access-control-allow-origin"]) == (status, ORIGIN)
            assert response.headers["vary"] == "Origin"


# The options


@pytest.mark.parametrize(
    ("origin", "fix"),
    [
        ("app.example.com", ORIGIN),
        ("app.example.com:8443", "https://app.example.com:8443"),
        ("https://app.example.com/", ORIGIN),
        ("https://App.example.com/path?x", ORIGIN),
        ("//app.example.com", ORIGIN),
        ("http:app.example.com", "http://app.example.com"),
        ("*.example.com", "https://*.example.com"),
        ("localhost:5173", "http://localhost:5173"),
        ("https://*", ORIGIN),
        ("https://app.*.com", ORIGIN),
        ("https://*app.example.com", ORIGIN),
        ("https://b\xfccher.example", ORIGIN),
        ("", ORIGIN),
        (7, ORIGIN),
    ],
)
def test_an_entry_that_is_no_origin_is_refused_with_its_fix(origin: Any, fix: str) -> None:
    with pytest.raises(ConfigError) as raised:
        cors([origin])
    assert str(raised.value) == (
        f"cors: {origin!r} isn't an origin, which is scheme://host or scheme://host:port, without a path; write {fix!r}"
    )


@pytest.mark.parametrize(
    ("origins", "options", "fault"),
    [
        ([], {}, "cors(origins=[]) allows no origin; name some, such as 'https://app.example.com', or remove cors()"),
        (None, {}, "cors(origins=None) isn't a list of origins; write origins=['https://app.example.com']"),
        ("*", {"credentials": True}, "cors: '*' with credentials=True would let every site act as the user; name the origins"),
        (
            [ORIGIN, "null"],
            {"credentials": True},
            "cors: 'null', which any site can have, with credentials=True would let every site act as the user; name the origins",
        ),
        (
            ORIGIN,
            {"methods": "*", "credentials": True},
            "cors(methods='*') means nothing to browsers with credentials=True; name each",
        ),
        (
            ORIGIN,
            {"headers": ["*"], "credentials": True},
            "cors(headers='*') means nothing to browsers with credentials=True; name each",
        ),
        (
            ORIGIN,
            {"expose": "*", "credentials": True},
            "cors(expose='*') means nothing to browsers with credentials=True; name each",
        ),
        (
            ORIGIN,
            {"headers": ["X One"]},
            "cors(headers=...): 'X One' isn't a name; give a list of names, such as headers=['X-Total']",
        ),
        (ORIGIN, {"methods": [7]}, "cors(methods=...): 7 isn't a name; give a list of names, such as methods=['PURGE']"),
        (
            ORIGIN,
            {"expose": ["a\r\nb"]},
            "cors(expose=...): 'a\\r\\nb' isn't a name; give a list of names, such as expose=['X-Total']",
        ),
        (ORIGIN, {"headers": None}, "cors(headers=...): None isn't a name; give a list of names, such as headers=['X-Total']"),
        (
            ORIGIN,
            {"credentials": "no"},
            "credentials='no' is neither True nor False, and any text counts as true; compare a text, as in "
            "os.environ.get('NAME') == '1'",
        ),
        (
            ORIGIN,
            {"private_network": 1},
            "private_network=1 is neither True nor False, and any text counts as true; write private_network=True",
        ),
        (ORIGIN, {"max_age": "600"}, "cors(max_age='600') isn't a number of seconds; give an int, such as 600"),
        (ORIGIN, {"max_age": True}, "cors(max_age=True) isn't a number of seconds; give an int, such as 600"),
        (ORIGIN, {"max_age": -1}, "cors(max_age=-1) isn't a number of seconds; give an int, such as 600"),
    ],
)
def test_an_invalid_option_is_refused_with_its_fix(origins: Any, options: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError) as raised:
        cors(origins, **options)
    assert str(raised.value) == fault
