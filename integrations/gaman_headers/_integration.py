"""headers(): the header fields that tell browsers what a page may do, as in OWASP ASVS 5, section V3.4."""

from __future__ import annotations

import logging
from collections.abc import Mapping

from gaman import ConfigError, Context, Integration, Response, log_extra
from gaman.errors import check_before_session, check_bool, checks_arguments, nearest
from gaman_headers._caches import keep_private
from gaman_headers._nonce import Nonce
from gaman_headers._policy import STRICT, Policy, Sources

logger = logging.getLogger("gaman")

_NONCE_KEY = "csp_nonce"
"""The nonce's key in `ctx.locals`."""
_YEAR = 31_536_000
_REFERRER_POLICIES = [
    *("no-referrer", "same-origin", "origin", "strict-origin", "origin-when-cross-origin"),
    *("strict-origin-when-cross-origin", "no-referrer-when-downgrade", "unsafe-url"),
]
_CORP = ["same-origin", "same-site", "cross-origin"]
_COOP = ["same-origin", "same-origin-allow-popups", "noopener-allow-popups", "unsafe-none"]


@checks_arguments
def headers(
    *,
    csp: Mapping[str, Sources] | str | None = STRICT,
    csp_report_only: Mapping[str, Sources] | str | None = None,
    hsts: int | None = _YEAR,
    hsts_subdomains: bool = True,
    hsts_preload: bool = False,
    nosniff: bool = True,
    referrer_policy: str | None = "same-origin",
    coop: str | None = "same-origin",
    corp: str | None = "same-origin",
) -> Integration:
    """Return an integration that adds security header fields to every response that passes through the hooks.

    A handler's own field stays unchanged, except that `Cache-Control` becomes `private` beside a nonce.

        app = App(routes, integrations=[headers(csp={"img_src": ["'self'", "data:"]}), session()])

    - *csp* is the Content-Security-Policy. A dict replaces directives of STRICT, or removes those that are None. A str is the
      whole policy. `ctx.locals["csp_nonce"]` is the nonce of inline scripts and styles.
    - *csp_report_only* is a second policy, which browsers report on and don't enforce.
    - *hsts* is how many seconds browsers use only HTTPS for this host, and with *hsts_subdomains* for its subdomains (RFC 6797). It
      is sent over HTTPS only. *hsts_preload* lets browsers put the host on their preload lists.
    - *nosniff* keeps browsers from guessing a response's type. *referrer_policy* limits what other sites see of a page's URL.
    - *coop* is the Cross-Origin-Opener-Policy, which separates a page from windows of other sites.
    - *corp* is the Cross-Origin-Resource-Policy: which pages may embed a response, such as an image or a script.

    None leaves a field out. ConfigError is raised for an invalid option, and at the start if an integration that makes sessions is
    listed before this one.
    """
    check_bool("hsts_subdomains", hsts_subdomains)
    check_bool("hsts_preload", hsts_preload)
    check_bool("nosniff", nosniff)
    policies = [
        (name, Policy(option, given))
        for option, name, given in (
            ("csp", b"content-security-policy", csp),
            ("csp_report_only", b"content-security-policy-report-only", csp_report_only),
        )
        if given is not None
    ]
    over_http = [(name, policy.without_nonce) for name, policy in policies]
    if nosniff:
        over_http.append((b"x-content-type-options", b"nosniff"))
    if referrer_policy is not None:
        # A browser uses the last policy of the list that it knows.
        _check("referrer_policy", referrer_policy, _REFERRER_POLICIES, str(referrer_policy).split(","))
        over_http.append((b"referrer-policy", referrer_policy.encode()))
    if coop is not None:
        _check("coop", coop, _COOP, [str(coop)])
        over_http.append((b"cross-origin-opener-policy", coop.encode()))
    if corp is not None:
        _check("corp", corp, _CORP, [str(corp)])
        over_http.append((b"cross-origin-resource-policy", corp.encode()))
    over_https = [*over_http, *_hsts(hsts, hsts_subdomains, hsts_preload)]
    names = {name for name, _ in over_https}
    takes_nonce = any(policy.takes_nonce for _, policy in policies)
    warns_of_caches = True

    def on_request(ctx: Context) -> None:
        ctx.locals[_NONCE_KEY] = Nonce()

    def on_response(ctx: Context, response: Response) -> None:
        fields = over_https if ctx.scheme == "https" else over_http
        if takes_nonce and isinstance(nonce := ctx.locals.get(_NONCE_KEY), Nonce):
            nonce.is_sent = True
            if text := nonce.text:
                fields = [*((name, policy.with_nonce(text)) for name, policy in policies), *fields[len(policies) :]]
                keep_from_caches(ctx, response)
        own = dict(response.raw_headers)
        # The test for the usual response, which has none of the fields, saves 0.25 microseconds.
        response.raw_headers += fields if names.isdisjoint(own) else [field for field in fields if field[0] not in own]

    def keep_from_caches(ctx: Context, response: Response) -> None:
        nonlocal warns_of_caches
        changed = keep_private(response.raw_headers)
        if changed and warns_of_caches:
            warns_of_caches = False
            extra = log_extra(ctx.scope)
            logger.warning(
                "the response to %s %r had %r beside a nonce; it was sent as private, because a shared cache would give the nonce "
                "to other visitors (logged once). Write Cache-Control: private there, or move its inline scripts and styles into "
                "files, which need no nonce",
                extra["method"],
                extra["path"],
                changed,
                extra=extra,
            )

    # The outermost integration, so that every response has the fields.
    return Integration(
        name="headers",
        priority="very-high",
        on_load=lambda app: check_before_session(app, "headers", "its errors have the fields, too"),
        on_request=on_request if takes_nonce else None,
        on_response=on_response,
    )


def _hsts(seconds: object, subdomains: bool, preload: bool) -> list[tuple[bytes, bytes]]:
    """Return the field Strict-Transport-Security, or no field for None."""
    if seconds is not None and (not isinstance(seconds, int) or isinstance(seconds, bool) or seconds < 0):
        raise ConfigError(
            f"headers(hsts={seconds!r}) isn't a number of seconds; give an int, such as 31_536_000 for a year, or None for no field"
        )
    if preload and not (subdomains and seconds is not None and seconds >= _YEAR):
        raise ConfigError(
            "headers(hsts_preload=True) needs hsts_subdomains=True and hsts=31_536_000 or more, as browsers' lists require"
        )
    if seconds is None:
        return []
    value = f"max-age={seconds}{'; includeSubDomains' * subdomains}{'; preload' * preload}"
    return [(b"strict-transport-security", value.encode())]


def _check(option: str, value: object, known: list[str], texts: list[str]) -> None:
    for text in texts:
        if not isinstance(value, str) or text.strip(" ") not in known:
            fix = nearest(text, known) or f"; give one of {', '.join(known)}, or None to leave the field out"
            raise ConfigError(f"headers({option}={value!r}) isn't a policy that browsers know{fix}")
