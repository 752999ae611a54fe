"""headers(): the security header fields on every response, and the options that fail at the start."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import pytest
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from gaman import App, ConfigError, Context, HTTPError, Response, define_integration, mount
from gaman.cors import cors
from gaman.headers import NONCE, STRICT, headers
from gaman.static import static
from tests.serving import SERVES, Connection, get, request, running_script

if TYPE_CHECKING:
    from tests.asgi import Exchange, Fetch

pytestmark = pytest.mark.anyio

CSP, REPORT_ONLY = "content-security-policy", "content-security-policy-report-only"
HSTS = "strict-transport-security"
OTHERS = "object-src 'none'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
POLICY = f"default-src 'self'; script-src 'self'; style-src 'self'; {OTHERS}"
OVER_HTTP = {
    CSP: POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}
OVER_HTTPS = {**OVER_HTTP, HSTS: "max-age=31536000; includeSubDomains"}
NO_SECONDS = "isn't a number of seconds; give an int, such as 31_536_000 for a year, or None for no field"
EMPTY = "csp=...): img-src is empty; write [\"'none'\"] to allow nothing, or None to leave it out"
NO_SOURCE = "which isn't a source; give a list of str, or None to leave it out"
UNSENDABLE = "a comma, a semicolon or a character beyond ASCII can't be in it; percent-encode that"
NAMES = {*OVER_HTTPS, REPORT_ONLY}


async def hello(ctx: Context) -> str:
    return "hello"


async def data(ctx: Context) -> dict[str, str]:
    return {"hello": "world"}


async def fail(ctx: Context) -> str:
    raise ValueError("no more")


async def read(ctx: Context) -> Response:
    return Response(await ctx.body(max_size=10))


async def stream(ctx: Context) -> Response:
    async def chunks() -> AsyncIterator[str]:
        yield "a"
        yield "b"

    return Response.stream(chunks())


async def page(ctx: Context) -> Response:
    nonce = ctx.locals["csp_nonce"]
    return Response.html(f"<!doctype html><script nonce={nonce}>1</script><style nonce={nonce}></style>")


async def file(ctx: Context) -> Response:
    return Response.file(__file__)


ROUTES: dict[str, Any] = {
    "/": hello,
    "/data": data,
    "/fail": fail,
    "/read": {"POST": read},
    "/stream": stream,
    "/page": page,
    "/file": file,
}


async def make(routes: Any = ROUTES, *inner: Any, **options: Any) -> App:
    app = App(routes, integrations=[headers(**options), *inner])
    await app.load()
    return app


def fields(response: Exchange) -> dict[str, str]:
    """Return the security header fields of *response*, each of which is sent once."""
    names = [name.decode() for name, _ in response.headers.raw if name.decode() in NAMES]
    assert len(names) == len({*names}), "a field is sent twice"
    return {name: response.headers[name] for name in names}


# Responses


async def test_every_response_has_the_fields(fetch: Fetch, tmp_path: Path) -> None:
    (tmp_path / "app.js").write_text("1")
    app = await make(ROUTES, static("/assets", tmp_path))
    statuses: dict[str, int] = {}
    for target in ("/", "/data", "/stream", "/file", "/assets/app.js", "/fail", "/missing", "/read"):
        for method in ("GET", "HEAD", "OPTIONS"):
            response = await fetch(app, target, method)
            assert fields(response) == OVER_HTTPS, (method, target)
            statuses.setdefault(target, response.status)
    assert statuses == {
        **dict.fromkeys(("/", "/data", "/stream", "/file", "/assets/app.js"), 200),
        "/fail": 500,
        "/missing": 404,
        "/read": 405,
    }
    too_large = await fetch(app, "/read", "POST", body=b"x" * 11)
    assert (too_large.status, fields(too_large)) == (413, OVER_HTTPS)
    response = await fetch(app, "/file")
    unchanged = await fetch(app, "/file", headers={"if-none-match": response.headers["etag"]})
    assert (unchanged.status, fields(unchanged)) == (304, OVER_HTTPS)


async def test_a_preflight_has_the_fields_on_either_side_of_cors(fetch: Fetch) -> None:
    origin = "https://app.example.com"
    preflight = {"origin": origin, "access-control-request-method": "PUT"}
    for integrations in ([headers(), cors(origin)], [cors(origin), headers()]):
        app = App(ROUTES, integrations=integrations)
        await app.load()
        response = await fetch(app, "/", "OPTIONS", headers=preflight)
        assert (response.status, fields(response)) == (204, OVER_HTTPS)
        assert response.headers["access-control-allow-origin"] == origin


async def test_a_handlers_own_field_wins(fetch: Fetch) -> None:
    own = {
        CSP: "frame-ancestors https://partner.example",
        "Referrer-Policy": "no-referrer",
        "x-content-type-options": "own",
        "cross-origin-opener-policy": "unsafe-none",
        "cross-origin-resource-policy": "cross-origin",
        HSTS: "max-age=0",
    }

    async def handler(ctx: Context) -> Response:
        return Response.text("own", headers=own)

    async def refuse(ctx: Context) -> Response:
        raise HTTPError(403, headers={CSP: "default-src 'none'"})

    app = await make({"/own": handler, "/refused": refuse}, csp_report_only={})
    expected = {name.lower(): value for name, value in own.items()} | {REPORT_ONLY: POLICY}
    assert fields(await fetch(app, "/own")) == expected
    assert fields(await fetch(app, "/refused")) == OVER_HTTPS | {CSP: "default-src 'none'", REPORT_ONLY: POLICY}


async def test_two_fields_of_one_name_from_a_handler_both_stay(fetch: Fetch) -> None:
    async def handler(ctx: Context) -> Response:
        return Response.text("own", headers=[(CSP, "script-src 'self'"), (CSP, "img-src 'self'")])

    response = await fetch(await make({"/": handler}))
    assert response.headers.getall(CSP) == ["script-src 'self'", "img-src 'self'"]


async def test_a_mounted_application_has_the_fields_and_its_own_win(fetch: Fetch) -> None:
    async def partner(request: Any) -> PlainTextResponse:
        return PlainTextResponse("hello", headers={CSP: "frame-ancestors https://partner.example"})

    inner = App({"/": hello}, integrations=[headers(csp={"img_src": "*"}, referrer_policy=None)])
    app = await make({"/partner/*": mount(Starlette(routes=[Route("/", partner)])), "/inner/*": mount(inner)})
    assert fields(await fetch(app, "/partner/")) == OVER_HTTPS | {CSP: "frame-ancestors https://partner.example"}
    assert fields(await fetch(app, "/partner/missing")) == OVER_HTTPS
    # What the inner integration leaves out, the outer one adds.
    assert fields(await fetch(app, "/inner/")) == OVER_HTTPS | {CSP: f"{POLICY}; img-src *"}
    await app.shutdown()


async def test_a_response_that_a_handler_returns_again_stays_unchanged(fetch: Fetch) -> None:
    shared = Response.text("shared")

    async def handler(ctx: Context) -> Response:
        return shared

    app = await make({"/": handler})
    for scheme, expected in [("https", OVER_HTTPS), ("http", OVER_HTTP), ("https", OVER_HTTPS)]:
        assert fields(await fetch(app, scope={"scheme": scheme})) == expected
    assert [name for name, _ in shared.raw_headers] == [b"content-type"]


async def test_a_response_from_before_the_hooks_has_no_fields(fetch: Fetch) -> None:
    app = await make()
    response = await fetch(app, headers=[(b"host", b"a b")])
    assert (response.status, fields(response)) == (400, {})
    response = await fetch(app, scope={"path": "no-slash"})
    assert (response.status, fields(response)) == (400, {})
    response = await fetch(app, method="OPTIONS", scope={"path": "*", "raw_path": b"*"})
    assert (response.status, fields(response)) == (204, {})


# HTTPS


@pytest.mark.parametrize(
    ("scheme", "forwarded", "peer", "is_sent"),
    [
        ("https", {}, "127.0.0.1", True),
        ("http", {}, "127.0.0.1", False),
        ("http", {"x-forwarded-proto": "https"}, "127.0.0.1", True),
        ("http", {"forwarded": "proto=https;for=203.0.113.7"}, "127.0.0.1", True),
        ("https", {"x-forwarded-proto": "http"}, "127.0.0.1", False),
        # Not a trusted proxy
        ("http", {"x-forwarded-proto": "https"}, "203.0.113.7", False),
    ],
)
async def test_hsts_is_sent_only_if_the_client_uses_https(
    fetch: Fetch, scheme: str, forwarded: dict[str, str], peer: str, is_sent: bool
) -> None:
    if "x-forwarded-proto" in forwarded:
        forwarded = {**forwarded, "x-forwarded-for": "203.0.113.7"}
    response = await fetch(await make(), headers=forwarded, scope={"scheme": scheme, "client": (peer, 1)})
    assert fields(response) == (OVER_HTTPS if is_sent else OVER_HTTP)


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({"hsts": 300}, "max-age=300; includeSubDomains"),
        ({"hsts": 300, "hsts_subdomains": False}, "max-age=300"),
        ({"hsts": 63_072_000, "hsts_preload": True}, "max-age=63072000; includeSubDomains; preload"),
        ({"hsts": 0}, "max-age=0; includeSubDomains"),
        ({"hsts": None}, None),
    ],
)
async def test_hsts_has_the_options(fetch: Fetch, options: dict[str, Any], value: str | None) -> None:
    assert fields(await fetch(await make(**options))).get(HSTS) == value


# The other fields


@pytest.mark.parametrize(
    ("option", "value", "field"),
    [
        ("nosniff", False, "x-content-type-options"),
        ("referrer_policy", None, "referrer-policy"),
        ("coop", None, "cross-origin-opener-policy"),
        ("corp", None, "cross-origin-resource-policy"),
        ("csp", None, CSP),
        ("hsts", None, HSTS),
    ],
)
async def test_each_field_can_be_left_out(fetch: Fetch, option: str, value: Any, field: str) -> None:
    response = await fetch(await make(**{option: value}))
    assert fields(response) == {name: value for name, value in OVER_HTTPS.items() if name != field}


async def test_the_fields_have_other_values_by_their_options(fetch: Fetch) -> None:
    options = {
        "referrer_policy": "no-referrer, strict-origin-when-cross-origin",
        "coop": "same-origin-allow-popups",
        "corp": "same-site",
    }
    response = await fetch(await make(**options))
    assert fields(response) == OVER_HTTPS | {
        "referrer-policy": options["referrer_policy"],
        "cross-origin-opener-policy": options["coop"],
        "cross-origin-resource-policy": options["corp"],
    }


async def test_with_every_field_left_out_responses_stay_unchanged(fetch: Fetch) -> None:
    app = await make(csp=None, hsts=None, nosniff=False, referrer_policy=None, coop=None, corp=None)
    assert fields(await fetch(app)) == {}


# The policy


@pytest.mark.parametrize(
    ("given", "policy"),
    [
        (STRICT, POLICY),
        ({}, POLICY),
        ({"img_src": ["'self'", "data:"]}, f"{POLICY}; img-src 'self' data:"),
        ({"img-src": "'self' data:"}, f"{POLICY}; img-src 'self' data:"),
        ({"Img-Src": ("'self' data:", "https://cdn.example")}, f"{POLICY}; img-src 'self' data: https://cdn.example"),
        (
            {"form_action": None, "frame_ancestors": "'self'"},
            f"{POLICY.partition(' form-action')[0]} frame-ancestors 'self'",
        ),
        ({"upgrade_insecure_requests": False, "sandbox": None, "img_src": False}, POLICY),
        ({"upgrade_insecure_requests": True}, f"{POLICY}; upgrade-insecure-requests"),
        ({"sandbox": []}, f"{POLICY}; sandbox"),
        ({"sandbox": "allow-forms allow-scripts"}, f"{POLICY}; sandbox allow-forms allow-scripts"),
        ({"report_uri": "/csp"}, f"{POLICY}; report-uri /csp"),
        (
            {"require_trusted_types_for": "'script'", "trusted_types": "'none'"},
            f"{POLICY}; require-trusted-types-for 'script'; trusted-types 'none'",
        ),
        (
            {"connect_src": "wss://a.example:8443/x *.b.example https:"},
            f"{POLICY}; connect-src wss://a.example:8443/x *.b.example https:",
        ),
        ({"script_src": "'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='"}, None),
        ("default-src 'none'", "default-src 'none'"),
        (
            " default-src  'self' ;\n  IMG-src *;upgrade-insecure-requests; ",
            "default-src 'self'; img-src *; upgrade-insecure-requests",
        ),
    ],
    ids=str,
)
async def test_a_dict_changes_the_strict_policy_and_a_text_replaces_it(fetch: Fetch, given: Any, policy: str | None) -> None:
    if policy is None:
        policy = POLICY.replace("script-src 'self'", f"script-src {given['script_src']}")
    assert fields(await fetch(await make(csp=given))) == OVER_HTTPS | {CSP: policy}
    both = fields(await fetch(await make(csp="object-src 'none'", csp_report_only=given)))
    assert both == OVER_HTTPS | {CSP: "object-src 'none'", REPORT_ONLY: policy}


# The nonce


def nonces(response: Exchange) -> list[str]:
    """Return the nonces in the policy of *response*, by their place in it."""
    return re.findall(r"'nonce-([\w-]+)'", response.headers[CSP])


async def test_a_page_that_uses_the_nonce_has_it_in_its_policy(fetch: Fetch) -> None:
    app = await make(csp_report_only={"default_src": NONCE})
    seen = set[str]()
    for _ in range(3):
        response = await fetch(app, "/page")
        [in_page] = {*re.findall(r"nonce=([\w-]+)>", response.text)}
        assert fields(response)[CSP] == (
            f"default-src 'self'; script-src 'self' 'nonce-{in_page}'; style-src 'self' 'nonce-{in_page}'; {OTHERS}"
        )
        assert fields(response)[REPORT_ONLY].startswith(f"default-src 'nonce-{in_page}'; script-src 'self' 'nonce-{in_page}';")
        # 128 bits, as CSP 3 asks for in section 7.1
        assert len(in_page) == 22
        seen.add(in_page)
        assert fields(await fetch(app, "/"))[CSP] == POLICY
    assert len(seen) == 3


async def test_a_template_makes_the_nonce(fetch: Fetch) -> None:
    template = jinja2.Environment(autoescape=True).from_string(
        "{% if inline %}<script nonce='{{ csp_nonce }}'></script>{% endif %}"
    )

    async def handler(ctx: Context) -> Response:
        return Response.html(template.render(ctx.locals, inline="inline" in ctx.query))

    app = await make({"/": handler})
    [in_script, in_style] = nonces(response := await fetch(app, "/?inline"))
    assert response.text == f"<script nonce='{in_script}'></script>"
    assert in_script == in_style
    assert nonces(await fetch(app, "/")) == []


async def test_a_policy_of_nonces_only_allows_nothing_where_none_is_used(fetch: Fetch) -> None:
    app = await make(csp={"script_src": [NONCE, "'strict-dynamic'"], "style_src": NONCE})
    assert "; script-src 'strict-dynamic'; style-src; " in fields(await fetch(app))[CSP]
    [first, second] = nonces(response := await fetch(app, "/page"))
    assert first == second
    assert f"script-src 'nonce-{first}' 'strict-dynamic'; style-src 'nonce-{first}'; " in fields(response)[CSP]


async def test_a_nonce_in_a_text_has_its_place_too(fetch: Fetch) -> None:
    app = await make(csp="script-src 'nonce'; object-src 'none'")
    [nonce] = nonces(response := await fetch(app, "/page"))
    assert fields(response)[CSP] == f"script-src 'nonce-{nonce}'; object-src 'none'"


async def test_without_a_place_for_it_there_is_no_nonce(fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    for csp in (None, "script-src 'self'", {"script_src": "'self'", "style_src": "'self'"}):
        assert (await fetch(await make(csp=csp), "/page")).status == 500
        assert "KeyError: ctx.locals has no 'csp_nonce'; write App(..., integrations=[headers(), ...]), and leave " in caplog.text
        caplog.clear()


async def test_a_stream_may_use_only_a_nonce_that_is_made_before(fetch: Fetch, caplog: pytest.LogCaptureFixture) -> None:
    async def early(ctx: Context) -> Response:
        nonce = str(ctx.locals["csp_nonce"])

        async def chunks() -> AsyncIterator[str]:
            yield f"{nonce} {ctx.locals['csp_nonce']}"

        return Response.stream(chunks())

    async def late(ctx: Context) -> Response:
        async def chunks() -> AsyncIterator[str]:
            yield f"{ctx.locals['csp_nonce']}"

        return Response.stream(chunks())

    app = await make({"/early": early, "/late": late})
    [nonce, _] = nonces(response := await fetch(app, "/early"))
    assert response.text == f"{nonce} {nonce}"
    response = await fetch(app, "/late")
    assert (nonces(response), response.body) == ([], b"")
    assert (
        "this response's policy is sent without a nonce, so browsers would ignore one in its body; "
        "write nonce = str(ctx.locals['csp_nonce']) before the stream begins"
    ) in caplog.text


@pytest.mark.parametrize(
    ("given", "sent", "is_logged"),
    [
        ({}, {"cache-control": "private"}, False),
        ({"cache-control": "Public, max-age=60"}, {"cache-control": "private, max-age=60"}, True),
        ({"cache-control": "s-maxage=60 , immutable"}, {"cache-control": "private, immutable"}, True),
        ({"cache-control": "private, max-age=60"}, {"cache-control": "private, max-age=60"}, False),
        ({"cache-control": "no-store"}, {"cache-control": "no-store"}, False),
        ({"cache-control": "no-cache"}, {"cache-control": "no-cache"}, False),
        ({"cdn-cache-control": "max-age=60", "cache-control": "no-store"}, {"cache-control": "no-store"}, True),
        ({"surrogate-control": "max-age=60"}, {"cache-control": "private"}, True),
        ({"cdn-cache-control": "no-store"}, {"cdn-cache-control": "no-store", "cache-control": "private"}, False),
    ],
    ids=str,
)
async def test_no_shared_cache_keeps_a_page_with_a_nonce(
    fetch: Fetch, caplog: pytest.LogCaptureFixture, given: dict[str, str], sent: dict[str, str], is_logged: bool
) -> None:
    async def show(ctx: Context) -> Response:
        return Response.html(f"<script nonce={ctx.locals['csp_nonce']}></script>", headers=given)

    async def without(ctx: Context) -> Response:
        return Response.html("<p>", headers=given)

    def caching(response: Exchange) -> dict[str, str]:
        return {name: value for name, value in response.headers.items() if name.endswith(("cache-control", "surrogate-control"))}

    app = await make({"/": show, "/without": without})
    assert caching(await fetch(app, "/without")) == given
    for _ in range(2):
        assert caching(await fetch(app, "/")) == sent
    warnings = [message for message in caplog.messages if "beside a nonce" in message]
    assert len(warnings) == is_logged
    for warning in warnings:
        assert warning.startswith("the response to GET '/' had ")
        assert warning.endswith(
            "beside a nonce; it was sent as private, because a shared cache would give the nonce to other visitors (logged once). "
            "Write Cache-Control: private there, or move its inline scripts and styles into files, which need no nonce"
        )


async def test_an_error_page_may_use_the_nonce(fetch: Fetch) -> None:
    async def apologize(ctx: Context, error: Exception) -> Response:
        return Response.html(f"<script nonce={ctx.locals['csp_nonce']}></script>", 500)

    app = await make(ROUTES, define_integration(name="apology", on_error=apologize))
    response = await fetch(app, "/fail")
    assert response.text == f"<script nonce={nonces(response)[0]}></script>"


# The options


INVALID: list[tuple[dict[str, Any], str]] = [
    ({"hsts": "1 year"}, f"hsts='1 year') {NO_SECONDS}"),
    ({"hsts": True}, f"hsts=True) {NO_SECONDS}"),
    ({"hsts": -1}, f"hsts=-1) {NO_SECONDS}"),
    *(
        (
            {"hsts_preload": True, **options},
            "hsts_preload=True) needs hsts_subdomains=True and hsts=31_536_000 or more, as browsers' lists require",
        )
        for options in ({"hsts_subdomains": False}, {"hsts": 300}, {"hsts": None})
    ),
    (
        {"referrer_policy": "same-orign"},
        "referrer_policy='same-orign') isn't a policy that browsers know; did you mean 'same-origin'?",
    ),
    (
        {"referrer_policy": "same-origin\r\nx: y"},
        "referrer_policy='same-origin\\r\\nx: y') isn't a policy that browsers know; did you mean 'same-origin'?",
    ),
    (
        {"referrer_policy": 7},
        "referrer_policy=7) isn't a policy that browsers know; give one of no-referrer, same-origin, origin, strict-origin, "
        "origin-when-cross-origin, strict-origin-when-cross-origin, no-referrer-when-downgrade, unsafe-url, or None to leave "
        "the field out",
    ),
    (
        {"coop": False},
        "coop=False) isn't a policy that browsers know; give one of same-origin, same-origin-allow-popups, "
        "noopener-allow-popups, unsafe-none, or None to leave the field out",
    ),
    (
        {"corp": "none"},
        "corp='none') isn't a policy that browsers know; give one of same-origin, same-site, cross-origin, or None to leave the "
        "field out",
    ),
    ({"csp": False}, "csp=False) isn't a policy; give a dict of directives, a str, or None to leave it out"),
    ({"csp": ["'self'"]}, "csp=[\"'self'\"]) isn't a policy; give a dict of directives, a str, or None to leave it out"),
    ({"csp": " ; "}, "csp=' ; ') has no directive; write csp=None to leave the field out"),
    ({"csp": {"scrip_src": "'self'"}}, "csp=...): 'scrip_src' isn't a directive; did you mean 'script-src'?"),
    ({"csp": {7: "'self'"}}, "csp=...): 7 isn't a directive; remove it"),
    (
        {"csp_report_only": "scrip-src 'self'"},
        "csp_report_only=...): 'scrip-src' isn't a directive; did you mean 'script-src'?",
    ),
    (
        {"csp": {"img_src": "*", "img-src": "'self'"}},
        "csp=...) has img-src twice, and browsers ignore the second; write it once",
    ),
    (
        {"csp": {"img_src": ["self"]}},
        "csp=...): img-src has 'self': browsers take it for a host; write \"'self'\", with quotes",
    ),
    (
        {"csp": "script-src sha256-47DEQpj8="},
        "csp=...): script-src has 'sha256-47DEQpj8=': browsers take it for a host; write \"'sha256-47DEQpj8='\", with quotes",
    ),
    ({"csp": {"img_src": "data"}}, "csp=...): img-src has 'data': browsers take it for a host; write 'data:', with a colon"),
    (
        {"csp": {"script_src": "'unsafe-inlin'"}},
        "csp=...): script-src has \"'unsafe-inlin'\": it isn't a keyword; did you mean 'unsafe-inline'?",
    ),
    (
        {"csp": {"script_src": "'cdn.example'"}},
        "csp=...): script-src has \"'cdn.example'\": it isn't a keyword; remove its quotes",
    ),
    ({"csp": {"script_src": '"cdn.example"'}}, "csp=...): script-src has '\"cdn.example\"': remove its quotes"),
    (
        {"csp": {"script_src": "'nonce-1'"}},
        "csp=...): script-src has \"'nonce-1'\": a fixed nonce protects nothing; write NONCE, which differs for each response",
    ),
    (
        {"csp": {"script_src": "https://a.example; img-src"}},
        f"csp=...): script-src has 'https://a.example;': {UNSENDABLE}",
    ),
    ({"csp": {"report_uri": "/a,b"}}, f"csp=...): report-uri has '/a,b': {UNSENDABLE}"),
    ({"csp": {"img_src": "b\xfccher.example"}}, f"csp=...): img-src has 'b\xfccher.example': {UNSENDABLE}"),
    ({"csp": {"img_src": "a\0b"}}, f"csp=...): img-src has 'a\\x00b': {UNSENDABLE}"),
    *(({"csp": {"img_src": sources}}, f"csp=...): img-src is {sources!r}, {NO_SOURCE}") for sources in (7, True)),
    (
        {"csp": {"img_src": [None]}},
        f"csp=...): img-src is None, {NO_SOURCE}",
    ),
    ({"csp": {"img_src": []}}, EMPTY),
    ({"csp": {"img_src": ""}}, EMPTY),
    ({"csp": "img-src"}, EMPTY),
    (
        {"csp": "script-src 'none' 'self'"},
        "csp=...): script-src has 'none' beside other sources, and browsers ignore it; remove it, or the others",
    ),
    (
        {"csp": {"script_src": [NONCE, "'unsafe-inline'"]}},
        "csp=...): script-src has 'unsafe-inline' beside NONCE, and browsers ignore it; remove one of them",
    ),
]


@pytest.mark.parametrize(("options", "fault"), INVALID, ids=lambda value: str(value)[:60])
def test_an_invalid_option_is_refused_with_its_fix(options: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError) as raised:
        headers(**options)
    assert str(raised.value) == f"headers({fault}"


@pytest.mark.parametrize("option", ["hsts_subdomains", "hsts_preload", "nosniff"])
def test_a_switch_takes_only_a_bool(option: str) -> None:
    switch: dict[str, Any] = {option: None}
    with pytest.raises(ConfigError, match=f"^{option}=None is neither True nor False"):
        headers(**switch)


def test_a_line_break_in_a_policy_separates_sources_and_is_not_sent() -> None:
    [integration] = [headers(csp="default-src 'self'\r\n;img-src\n*\r\nhttps:")]
    ctx: Any = type("Ctx", (), {"scheme": "http", "locals": {}})
    response = Response.text("hello")
    assert integration.on_response is not None
    integration.on_response(ctx, response)
    assert response.headers[CSP] == "default-src 'self'; img-src * https:"


# Over a socket


@pytest.mark.parametrize("server", SERVES)
def test_the_fields_arrive_over_a_socket(server: str, tmp_path: Path) -> None:
    script = f"""
import gaman
from gaman.headers import headers
async def hello(ctx): return gaman.Response.html(f"<script nonce={{ctx.locals['csp_nonce']}}></script>")
async def read(ctx): return await ctx.text()
routes, integrations = {{"/": hello, "/read": {{"POST": read}}}}, [headers()]
{SERVES[server]}"""
    with running_script(script, tmp_path) as program:
        response = get(program.port, "/", "X-Forwarded-Proto: https", "X-Forwarded-For: 203.0.113.7")
        [nonce] = {*re.findall(r"'nonce-([\w-]+)'", response.headers[CSP])}
        assert response.body == f"<script nonce={nonce}></script>".encode()
        assert response.headers[HSTS] == OVER_HTTPS[HSTS]
        for octets, status in [
            (request("/missing"), 404),
            (request("/read"), 405),
            (request("/read", method="POST", body=b"x" * (1 << 21)), 413),
        ]:
            with Connection(program.port) as connection:
                response = connection.fetch(octets)
            assert response.status == status
            assert {name: value for name, value in response.headers.items() if name in NAMES} == OVER_HTTP
        # The server refuses it, before the application.
        with Connection(program.port) as connection:
            response = connection.fetch(b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n")
        assert (response.status, response.headers.keys() & NAMES) == (400, set())
