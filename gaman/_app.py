"""App: the ASGI application, and a request's life from top to bottom."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn, cast

from gaman import _middleware
from gaman._asgi import Application, Receive, Scope, Send
from gaman._context import Context, log_extra, no_session
from gaman._failures import log_break, log_close_failure, log_failure, log_hook_failure, warn_of_nothing
from gaman._framing import BODILESS, CONTENT_TYPE, content_length, without_body
from gaman._headers import RawHeaders
from gaman._hints import hint_of_app
from gaman._hosts import AllowedHosts, host_fault
from gaman._integration import Integration, ResponseHook, SessionCloser, SessionMaker, hook_finder, in_order
from gaman._layers import Handler
from gaman._lifecycle import Lifecycle, answer_lifespan
from gaman._matching import EarlyResponse, Routes, last_of
from gaman._middleware import Wrapper
from gaman._payloads import Payload
from gaman._proxies import NEARBY, TrustedProxies
from gaman._response import OK, Response, check_response, open_body
from gaman._results import NothingReturned, error_response, to_response
from gaman._routing import Table, define_routes
from gaman._target import in_origin_form
from gaman._tracebacks import exc_info_of
from gaman.errors import (
    ClientDisconnected,
    ConfigError,
    GamanError,
    HeaderError,
    HTTPError,
    ResultError,
    check_bool,
    checks_arguments,
)

logger = logging.getLogger("gaman")

_SMALL = 1 << 10
_LENGTHS = [content_length(size) for size in range(_SMALL)]
"""The content-length fields of small bodies, by size in bytes."""


@checks_arguments
class App:
    """Routes and integrations as an ASGI 3 application, for gaman.serve() or any other ASGI server.

    - *middleware* is ASGI middleware, the outermost first: callables that take the application, or `Middleware(Class, **options)`.
    - *deps* is passed to routes that are defined by a function. Handlers and hooks have it as `ctx.app.deps`.
    - *debug* shows tracebacks to the client and logs each request.
    - *max_body_size*, in bytes, limits the request bodies that handlers read.
    - *trusted_proxies* may tell the client's address, scheme and host, with X-Forwarded-For, -Proto and -Host or with Forwarded
      (RFC 7239). It takes addresses, networks, `unix:` for every peer on a Unix socket, and `*` for every peer. The default is the
      loopback addresses of this machine and Unix sockets.
    - *allowed_hosts* limits `ctx.host`; other requests get 400. It takes names, addresses, `*.shop.example` for subdomains, and
      `*`, which is the default. An entry without a port allows every port.
    """

    middleware: tuple[Wrapper, ...] = ()
    """The ASGI middleware around this App, the outermost first."""

    def __init__(
        self,
        routes: Routes | Table,
        *,
        integrations: Iterable[Integration] = (),
        middleware: Iterable[Wrapper] = (),
        deps: Any = None,
        debug: bool = False,
        max_body_size: int = 1 << 20,
        trusted_proxies: str | Iterable[str] = NEARBY,
        allowed_hosts: str | Iterable[str] = "*",
    ) -> None:
        if isinstance(routes, type) and issubclass(routes, App):
            raise ConfigError("App is a class; make an App of routes first: gaman.App(routes)")
        if isinstance(routes, App):
            raise ConfigError("App() takes routes, not an App; serve an App with gaman.serve(app), or by `gaman serve main:app`")
        if isinstance(routes, str):
            raise ConfigError(f"App() takes routes, not text; give the table or App itself, or run `gaman serve {routes}`")
        if not isinstance(max_body_size, int) or isinstance(max_body_size, bool) or max_body_size < 0:
            raise ConfigError(f"max_body_size={max_body_size!r} isn't a number of bytes; give an int, such as 1 << 20 for 1 MiB")
        self.deps = deps
        self.integrations = tuple(in_order(integrations))
        routes = routes if isinstance(routes, Routes) else define_routes(routes)
        self.routes = routes.bind(deps, hook_finder(self.integrations))
        self.max_body_size = max_body_size
        self.trust(trusted_proxies)
        self.allow(allowed_hosts)
        self.workers = 1
        """How many processes serve this application, as far as it is known; set by gaman.serve() and by load()."""
        # Only the hooks that are defined, so that the others cost a request nothing. The routes have those of on_request.
        self._on_unmatched = [i.on_unmatched for i in self.integrations if i.on_unmatched is not None]
        self._on_error = [i.on_error for i in self.integrations if i.on_error is not None]
        self._make_session: SessionMaker = no_session
        self._close_session: SessionCloser = no_session
        # The session is closed when its integration has its turn. Hooks further out can't change it any more.
        self._on_response: list[ResponseHook] = []
        self._on_response_outside: list[ResponseHook] = []
        hooks = self._on_response
        for integration in reversed(self.integrations):
            if integration.make_session is not None and integration.close_session is not None:
                self._make_session, self._close_session = integration.make_session, integration.close_session
                hooks = self._on_response_outside
            if integration.on_response is not None:
                hooks.append(integration.on_response)
        self._checked: RawHeaders = []
        """The header fields that passed the last check. Most responses have the same, so this saves 4 % of a request with hooks."""
        self._returned_nothing: set[int] = set()
        """The ids of the handlers that the log has already named for returning None."""
        self._lifecycle = Lifecycle(self, self.integrations, self.routes.mounted)
        self._matcher: Routes | _NotLoaded = _NotLoaded() if self._lifecycle.is_needed else self.routes
        if middleware:
            _middleware.wrap(self, middleware)
        self.debug = debug

    if not TYPE_CHECKING:

        def __getattr__(self, name: str) -> NoReturn:
            hint = "" if name[:1] == "_" else hint_of_app(name, dir(self))
            raise AttributeError(f"'App' object has no attribute {name!r}{hint}", name=name, obj=self)

    @property
    def debug(self) -> bool:
        """Whether tracebacks are shown to the client and each request is logged; may be set until the App serves."""
        return self._debug

    @debug.setter
    def debug(self, debug: bool) -> None:
        check_bool("debug", debug)
        self._debug = debug
        if debug:
            self.log_requests()

    def log_requests(self) -> None:
        """Log each request in a line at INFO: its method and path, the status of its response, and the milliseconds it took."""
        _middleware.log_requests(self)

    def trust(self, proxies: str | Iterable[str]) -> None:
        """Replace trusted_proxies; ConfigError names an entry that isn't an address or a network."""
        _check_list("trusted_proxies", proxies)
        self.proxies = TrustedProxies(proxies)

    def allow(self, hosts: str | Iterable[str]) -> None:
        """Replace allowed_hosts; ConfigError names an entry that can't be a host."""
        _check_list("allowed_hosts", hosts)
        self._allowed_hosts = AllowedHosts(hosts)
        self._has_refused_a_host = False
        # The last valid Host field, if every host is allowed. Most sites have one host, so this saves 1.2 microseconds a request.
        self._known_host: tuple[bytes, bytes] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._call_other(scope, receive, send)
            return
        # Below, comparing by identity and by class, testing for an empty list of hooks, and _LENGTHS together save 7 % of a small
        # request.
        fields: RawHeaders = scope["headers"]
        try:
            # Most clients send Host first. Servers refuse a second Host, among them gaman's and those that build on h11.
            if not fields or fields[0] != self._known_host:
                self._check_host(scope, receive)
            handler, params, hooks = self._matcher.match(scope)
        except EarlyResponse as early:
            if host_fault(scope) is None and (rewritten := in_origin_form(scope)) is not None:
                # Not self(), which is within middleware already.
                await App.__call__(self, rewritten, receive, send)
            else:
                # No hook runs, because hooks rely on a path and a host.
                await self._send_early(early.response, scope, send)
            return
        ctx = Context(scope, receive, params, self)
        result: Any = None
        try:
            try:
                # Hooks are awaited in place: a function around the call would take 0.2 microseconds per hook.
                if hooks:
                    for on_request in hooks:
                        result = on_request(ctx)
                        if result is not None and hasattr(result, "__await__"):
                            result = await result
                        if result is not None:
                            result = to_response(result, on_request)
                            break
                if result is None:
                    result = await handler(ctx)
                if result.__class__ is dict:
                    # The most usual result. Its response needs none of the checks below, which saves 8 % of a small request.
                    response = Response.json(result)
                else:
                    response = result if result.__class__ is Response else to_response(result)
                    if response.body.__class__ is not bytes:
                        response = await open_body(response, ctx)
                    headers = response.raw_headers
                    # check_response() takes 5 % of a small request. It has nothing to do for a 200 with only a content-type.
                    if len(headers) != 1 or headers[0][0] is not CONTENT_TYPE or response.status is not OK:
                        response = check_response(response, ctx)
            except ClientDisconnected:
                raise
            except Exception as error:
                if not isinstance(error, HTTPError):
                    # An error undoes the request, including its cookies.
                    ctx.forget_cookies()
                response = await self._recover(ctx, error, handler)
            if self._on_response:
                response = await self._run_hooks(self._on_response, ctx, response, response.raw_headers)
            headers = response.raw_headers
            ctx.is_session_closed = True
            # Context.session makes the session on first use, so a request that doesn't use it has none.
            if ctx._session is not None:
                try:
                    closed: Any = self._close_session(ctx, ctx._session, response)
                    headers = closed if closed.__class__ is list else await closed
                except ClientDisconnected:
                    raise
                except Exception as error:
                    response = await self._recover(ctx, error)
                    headers = response.raw_headers
            if self._on_response_outside:
                response = await self._run_hooks(self._on_response_outside, ctx, response, headers)
                headers = response.raw_headers
            status, body = response.status, response.body
            if ctx.set_cookies is not None:
                headers = [*headers, *ctx.set_cookies.values()]
            if not isinstance(body, bytes):
                await self._send_payload(body, status, [*headers], ctx, send, handler)
            elif (status is not OK and status in BODILESS) or scope["method"] == "HEAD":
                headers = without_body(status, headers, len(body))
                await send({"type": "http.response.start", "status": status, "headers": headers})
                await send({"type": "http.response.body", "body": b""})
            else:
                size = len(body)
                headers = [*headers, _LENGTHS[size] if size < _SMALL else content_length(size)]
                await send({"type": "http.response.start", "status": status, "headers": headers})
                await send({"type": "http.response.body", "body": body})
        except ClientDisconnected:
            logger.debug("the client disconnected during %s %r", ctx.method, ctx.path, extra=ctx.log_extra)
        finally:
            if ctx._open is not None:
                await ctx._close(log_close_failure)

    async def _run_hooks(self, hooks: Iterable[ResponseHook], ctx: Context, response: Response, headers: RawHeaders) -> Response:
        """Return what the on_response *hooks* make of a copy of *response* with these *headers*."""
        # Copied because a handler may return the same Response for every request.
        response = response.__copy__()
        response.raw_headers = [*headers]
        for on_response in hooks:
            try:
                result: Any = on_response(ctx, response)
                if result is not None and hasattr(result, "__await__"):
                    result = await result
                if result is not None and result is not response:
                    response = to_response(result, on_response).__copy__()
                if response.body.__class__ is not bytes:
                    response = await open_body(response, ctx)
                if response.raw_headers != self._checked or response.status is not OK:
                    response = check_response(response, ctx, self._checked)
            except ClientDisconnected:
                raise
            except Exception as error:
                response = (await self._recover(ctx, error)).__copy__()
        return response

    async def _send_payload(
        self, body: Payload, status: int, headers: RawHeaders, ctx: Context, send: Send, handler: object
    ) -> None:
        """Let *body* send itself. A fault in the user's code that ends it early is logged."""
        try:
            await body.send(status, headers, ctx, send)
        except ClientDisconnected:
            raise
        except GamanError as error:
            # The status is already sent. The server closes the connection of an unfinished response, which the client notices.
            log_break(ctx, error, handler)

    async def _recover(self, ctx: Context, error: Exception, handler: object = None) -> Response:
        """Return the response to *error*: the first one of an on_error hook, or the error's own. Unexpected errors are logged."""
        fault = ""
        if isinstance(error, NothingReturned):
            warn_of_nothing(ctx, error, last_of(cast("Handler", handler)), self._returned_nothing)
        else:
            fault = log_failure(ctx, error, handler)
        response: Response | None = None
        for on_error in self._on_error:
            try:
                result: Any = on_error(ctx, error)
                if result is not None and hasattr(result, "__await__"):
                    result = await result
                if result is not None:
                    response = response or check_response(await open_body(to_response(result, on_error), ctx), ctx)
            except ClientDisconnected:
                raise
            except Exception as failure:
                log_hook_failure(ctx, failure, on_error)
        if response is not None:
            return response
        if isinstance(error, HTTPError):
            try:
                return check_response(error_response(error, ctx.headers), ctx)
            except (HeaderError, ResultError) as failure:
                return await self._recover(ctx, failure, handler)
        if self.debug:
            return Response.text(fault or "".join(traceback.format_exception(*exc_info_of(error))), 500)
        return error_response(HTTPError(500))

    def _check_host(self, scope: Scope, receive: Receive) -> None:
        """Raise EarlyResponse for an invalid Host field, and for a host that isn't allowed."""
        if (fault := host_fault(scope)) is not None:
            raise EarlyResponse(HTTPError(400, fault))
        if self._allowed_hosts.allows_any:
            self._known_host = next((field for field in scope["headers"] if field[0] == b"host" and field[1]), None)
            return
        # Checked for each request, because a proxy may report a different host each time.
        ctx = Context(scope, receive, {}, self)
        if not self._allowed_hosts.allows(ctx.host, ctx.scheme):
            if not self._has_refused_a_host:
                self._has_refused_a_host = True
                logger.warning("a request for the host %r was answered 400, because allowed_hosts lacks it (logged once)", ctx.host)
            raise EarlyResponse(HTTPError(400, "this host isn't among the application's allowed_hosts"))

    async def _send_early(self, response: Response, scope: Scope, send: Send) -> None:
        if logger.isEnabledFor(logging.DEBUG):
            extra = log_extra(scope)
            logger.debug(
                "%s %r %d before any hook: %s", extra["method"], extra["path"], response.status, response.body, extra=extra
            )
        body = response.body if isinstance(response.body, bytes) else b""
        length = [] if response.status in BODILESS else [content_length(len(body))]
        await send({"type": "http.response.start", "status": response.status, "headers": [*response.raw_headers, *length]})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    def __rsgi_init__(self, loop: object) -> NoReturn:
        """Refuse to start under Granian's own interface, which is its default."""
        raise SystemExit("gaman: an App speaks ASGI, and this is another interface; run `granian --interface asgi ...`")

    async def _call_other(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            # Not self.load(), which starts the middleware around this App.
            await answer_lifespan(partial(App.load, self), partial(App.shutdown, self), scope, receive, send)
        elif scope["type"] == "websocket":
            await receive()
            # Closing before accepting refuses the connection with 403 (ASGI, WebSocket, Close).
            await send({"type": "websocket.close", "code": 1000, "reason": "WebSockets are not supported"})
        else:
            raise GamanError(f"gaman serves http and lifespan, not the ASGI scope {scope['type']!r}")

    @property
    def lifespan_state(self) -> dict[str, Any]:
        """What the middleware's lifespan has put into the scope's `state`."""
        return {}

    def _state_of(self, mounted: Application) -> dict[str, Any]:
        """Return what the lifespan of a *mounted* application has put into the scope's `state`."""
        return self._lifecycle.lifespans[id(mounted)].lifespan_state

    async def load(self) -> None:
        """Run every on_load hook, and start mounted applications. If one fails, shut down the others, and raise its error."""
        await self._lifecycle.load()
        self._matcher = self.routes

    async def shutdown(self) -> None:
        """End mounted applications, and run the on_shutdown hook of every integration that is loaded. Failures are logged."""
        if self._lifecycle.is_needed:
            self._matcher = _NotLoaded()
        await self._lifecycle.shutdown()

    async def purge(self) -> dict[str, int]:
        """Run every on_purge hook, which removes what has expired; return the number removed, by the integration's name."""
        return await self._lifecycle.purge()

    async def check(self) -> dict[str, Exception | None]:
        """Run every on_check hook; return None or its error, by the integration's name. Errors are logged.

        Show visitors only the names, because an error may contain a store's address:

            async def health(ctx: Context) -> Response:
                failed = [name for name, error in (await ctx.app.check()).items() if error is not None]
                return Response.json({"failed": failed}, status=503 if failed else 200)
        """
        return await self._lifecycle.check()


def _check_list(option: str, value: object) -> None:
    if not isinstance(value, Iterable):
        raise ConfigError(f"{option}={value!r} isn't a list of str; write {option}=[...], or leave it out")


class _NotLoaded:
    """Takes the place of the routes until every integration is loaded."""

    def match(self, scope: Scope) -> NoReturn:
        raise ConfigError(
            "the server runs no ASGI lifespan, so no integration and no mounted application is loaded; turn its lifespan support "
            "on, or in a test use gaman.testing.TestClient(app), in a `with` block"
        )
