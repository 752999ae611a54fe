"""cors(): the header fields of the CORS protocol (WHATWG Fetch, section 3.3), and the responses to preflights."""

from __future__ import annotations

import re
from collections.abc import Iterable

from gaman import ConfigError, Context, Integration, Response
from gaman.errors import check_before_session, check_bool, checks_arguments, nearest
from gaman_cors._origins import Origins

_ORIGIN = "access-control-allow-origin"
_METHOD, _NETWORK = "access-control-request-method", "access-control-request-private-network"
_VARY = "Origin, Access-Control-Request-Method, Access-Control-Request-Headers"
_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE")
_is_token = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch


@checks_arguments
def cors(
    origins: str | Iterable[str],
    *,
    methods: str | Iterable[str] = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"),
    headers: str | Iterable[str] = ("Authorization", "Content-Type"),
    credentials: bool = False,
    expose: str | Iterable[str] = (),
    max_age: int = 600,
    private_network: bool = False,
) -> Integration:
    """Return an integration that lets scripts of other *origins* call the application.

        app = App(routes, integrations=[cors(["https://app.example.com"]), session()])

    - *origins* are `scheme://host` or `scheme://host:port`, `https://*.example.com` for every subdomain, `null`, or `*` for any.
    - *methods* and *headers* are those of the requests, *expose* are the headers of responses that scripts may read; `*` is any.
    - *credentials* lets the requests carry cookies. Then no option may be `*`, and origins not `null`.
    - *max_age* is how many seconds a browser may remember the answer to a preflight.
    - *private_network* lets public sites call an application in a private network.

    ConfigError is raised for an invalid option, and at the start if an integration that makes sessions is listed before this one.
    """
    allowed = Origins(origins)
    check_bool("credentials", credentials)
    check_bool("private_network", private_network)
    if credentials and (allowed.allows_any or allowed.allows_null):
        what = "'*'" if allowed.allows_any else "'null', which any site can have,"
        raise ConfigError(f"cors: {what} with credentials=True would let every site act as the user; name the origins")
    if not isinstance(max_age, int) or isinstance(max_age, bool) or max_age < 0:
        raise ConfigError(f"cors(max_age={max_age!r}) isn't a number of seconds; give an int, such as 600")
    preflight = {
        "access-control-allow-methods": _join("methods", methods, credentials).upper(),
        "access-control-allow-headers": _join("headers", headers, credentials),
        "access-control-max-age": str(max_age),
        "vary": f"{_VARY}, Access-Control-Request-Private-Network" if private_network else _VARY,
    }
    if preflight["access-control-allow-headers"] == "*":
        # The wildcard doesn't include Authorization (WHATWG Fetch, section 3.3.3).
        preflight["access-control-allow-headers"] = "*, Authorization"
    exposed = _join("expose", expose, credentials)
    preflight = {name: value for name, value in preflight.items() if value}

    def on_request(ctx: Context) -> Response | None:
        if not _is_preflight(ctx):
            return None
        if not allowed.allows(ctx.headers["origin"]):
            return Response(None, 204, {"vary": preflight["vary"]})
        response = Response(None, 204, preflight)
        if private_network and ctx.header(_NETWORK) == "true":
            response.headers["access-control-allow-private-network"] = "true"
        return response

    def on_response(ctx: Context, response: Response) -> None:
        fields = response.headers
        varies = [name.strip() for name in ",".join(fields.getall("vary")).split(",") if name.strip()]
        if not allowed.allows_any and not {"origin", "*"} & {name.lower() for name in varies}:
            fields["vary"] = ", ".join([*varies, "Origin"])
        origins = ctx.headers.getall("origin")
        # A handler that has set its own field knows better.
        if _ORIGIN in fields or not (allowed.allows_any or (len(origins) == 1 and allowed.allows(origins[0]))):
            return
        fields[_ORIGIN] = "*" if allowed.allows_any else origins[0]
        if credentials:
            fields["access-control-allow-credentials"] = "true"
        if exposed and not _is_preflight(ctx):
            fields.setdefault("access-control-expose-headers", exposed)

    # The outermost integration, so that every response has the fields, and a preflight meets no guard.
    return Integration(
        name="cors",
        priority="very-high",
        on_load=lambda app: check_before_session(app, "cors", "scripts can read its errors, too"),
        on_request=on_request,
        on_response=on_response,
        trusts_origin=allowed.allows if credentials else None,
    )


def _is_preflight(ctx: Context) -> bool:
    return ctx.method == "OPTIONS" and "origin" in ctx.headers and _METHOD in ctx.headers


def _join(option: str, names: str | Iterable[str], credentials: bool) -> str:
    """Return *names* as the value of a header; ConfigError names one that isn't a token (RFC 9110, section 5.6.2)."""
    texts = (
        [name.strip() for name in names.split(",")]
        if isinstance(names, str)
        else list(names if isinstance(names, Iterable) else [names])
    )
    example = "PURGE" if option == "methods" else "X-Total"
    for name in texts:
        if not isinstance(name, str) or _is_token(name) is None:
            raise ConfigError(f"cors({option}=...): {name!r} isn't a name; give a list of names, such as {option}=[{example!r}]")
        # Other methods exist, but a misspelt one would be refused by browsers only.
        if option == "methods" and name.upper() not in _METHODS and (near := nearest(name.upper(), _METHODS, 0.65)):
            raise ConfigError(f"cors(methods=...): {name!r} isn't a method{near}")
    if "*" in texts and credentials:
        raise ConfigError(f"cors({option}='*') means nothing to browsers with credentials=True; name each")
    return "*" if "*" in texts else ", ".join(texts)
