"""App: the ASGI application, and a request's life from top to bottom."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterable
from typing import Any, NoReturn, cast

from gaman import _access
from gaman._asgi import Receive, Scope, Send
from gaman._context import Context, log_extra
from gaman._failures import log_failure
from gaman._framing import BODILESS, CONTENT_TYPE, content_length, without_body
from gaman._handlers import function_of, name_of
from gaman._headers import RawHeaders
from gaman._hosts import AllowedHosts, parse_host
from gaman._integration import Integration, in_order
from gaman._matching import Answered, Handler, Routes, last_of
from gaman._payloads import Payload
from gaman._proxies import NEARBY, TrustedProxies
from gaman._response import OK, Response, check, open_body
from gaman._results import NothingReturned, error_response, to_response
from gaman._routing import Table, define_routes
from gaman._target import in_origin_form
from gaman._tracebacks import explain, own, place
from gaman._trailers import drop_trailers
from gaman.errors import ClientDisconnected, ConfigError, GamanError, HeaderError, HTTPError, ResultError

logger = logging.getLogger("gaman")

_SMALL = 1 << 10
"""Bytes of a body up to which its length is looked up in a list: that takes half the time of a cache."""
_LENGTHS = [content_length(size) for size in range(_SMALL)]


class App:
    """Routes and integrations as one ASGI 3 application, for gaman.serve() or any other ASGI server.

    *deps* is given to routes that are defined by a function. *debug* shows tracebacks to the client, and logs each request.
    *max_body_size*, in bytes, bounds the request bodies that handlers read. *trusted_proxies* are those whose word on the client's
    address, scheme and host is taken, from X-Forwarded-For, -Proto and -Host, or from Forwarded (RFC 7239): addresses and networks,
    `unix:` for who connects through a Unix socket, or `*` for whoever connects. By default it is this machine's loopback and Unix
    sockets.

    *allowed_hosts* are those that requests may be for, as `ctx.host` tells them; by default any. Others are answered 400. It takes
    names, `*.shop.example` for subdomains, addresses, each with a port or for any, and `*`.
    """

    def __init__(
        self,
        routes: Routes | Table,
        *,
        integrations: Iterable[Integration] = (),
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
        if not isinstance(debug, bool):
            raise ConfigError(f"debug={debug!r} is neither True nor False, and any text counts as true; write debug=text == '1'")
        if not isinstance(max_body_size, int) or isinstance(max_body_size, bool) or max_body_size < 0:
            raise ConfigError(f"max_body_size={max_body_size!r} isn't a number of bytes; give an int, such as 1 << 20 for 1 MiB")
        self.routes = (routes if isinstance(routes, Routes) else define_routes(routes)).bind(deps)
        self.integrations = tuple(in_order(integrations))
        self.debug = debug
        self.max_body_size = max_body_size
        self.trust(trusted_proxies)
        self.allow(allowed_hosts)
        self.workers = 1
        """How many processes serve this application side by side, as far as gaman.serve() knows."""
        # Lists of bare hooks, so that an integration without a hook costs nothing in a request.
        self._on_request = [i.on_request for i in self.integrations if i.on_request is not None]
        self._on_response = [i.on_response for i in reversed(self.integrations) if i.on_response is not None]
        self._on_error = [i.on_error for i in self.integrations if i.on_error is not None]
        if debug:
            # Around all integrations; without it, no request pays for it.
            self._on_request.insert(0, _access.begin)
            self._on_response.append(_access.finish)
        self._passed: RawHeaders = []
        """The fields of the last response that passed check(); most responses after hooks have the same."""
        self._returned_nothing: set[int] = set()
        """The ids of handlers of which the log has said that."""
        self._loaded: list[Integration] = []
        self._must_load = any(integration.on_load is not None for integration in self.integrations)
        self._matcher: Routes | _NotLoaded = _NotLoaded() if self._must_load else self.routes

    def trust(self, proxies: str | Iterable[str]) -> None:
        """Take *proxies* in the place of trusted_proxies; ConfigError names what is no address or network."""
        _check_list("trusted_proxies", proxies)
        self.proxies = TrustedProxies(proxies)

    def allow(self, hosts: str | Iterable[str]) -> None:
        """Take *hosts* in the place of allowed_hosts; ConfigError names one that can't be a host."""
        _check_list("allowed_hosts", hosts)
        self._allowed_hosts = AllowedHosts(hosts)
        self._has_refused_a_host = False
        # The last Host field that was valid, where any is allowed: most sites have one.
        self._known_host: tuple[bytes, bytes] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._call_other(scope, receive, send)
            return
        fields: RawHeaders = scope["headers"]
        try:
            # Most clients send Host first. Servers refuse a second one, gaman's and those that build on h11 among them.
            if not fields or fields[0] != self._known_host:
                self._check_host(scope, receive)
            handler, params = self._matcher.match(scope)
        except Answered as answered:
            if _fault(scope) is None and (rewritten := in_origin_form(scope)) is not None:
                await self(rewritten, receive, send)
            else:
                # No hook runs: hooks count on a path and a host.
                await self._send_early(answered.response, scope, send)
            return
        ctx = Context(scope, receive, params, self)
        answer: Any = None
        try:
            try:
                if self._on_request:
                    for on_request in self._on_request:
                        answer = on_request(ctx)
                        if answer is not None and hasattr(answer, "__await__"):
                            answer = await answer
                        if answer is not None:
                            break
                if answer is None:
                    answer = await handler(ctx)
                response = answer if answer.__class__ is Response else to_response(answer)
                if response.body.__class__ is not bytes:
                    response = await open_body(response, ctx)
                headers = response.raw_headers
                # Most responses have nothing that check() looks at.
                if len(headers) != 1 or headers[0][0] is not CONTENT_TYPE or response.status is not OK:
                    response = check(response, ctx)
            except ClientDisconnected:
                raise
            except Exception as error:
                if not isinstance(error, HTTPError):
                    # An error undoes the request: its cookies go with it.
                    ctx.forget_cookies()
                response = await self._recover(ctx, error, handler)
            if self._on_response:
                # A handler may return the same Response for every request.
                response = response.__copy__()
                for on_response in self._on_response:
                    try:
                        answer = on_response(ctx, response)
                        if answer is not None and hasattr(answer, "__await__"):
                            answer = await answer
                        if answer is not None and answer is not response:
                            response = to_response(answer).__copy__()
                        if response.body.__class__ is not bytes:
                            response = await open_body(response, ctx)
                        if response.raw_headers != self._passed or response.status is not OK:
                            response = check(response, ctx, self._passed)
                    except ClientDisconnected:
                        raise
                    except Exception as error:
                        response = (await self._recover(ctx, error)).__copy__()
            status, body, headers = response.status, response.body, response.raw_headers
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
            logger.debug("the client left during %s %r", ctx.method, ctx.path, extra=ctx.log_extra)
        finally:
            if ctx._open_files is not None:
                ctx._close_files()

    async def _send_payload(
        self, body: Payload, status: int, headers: RawHeaders, ctx: Context, send: Send, handler: object
    ) -> None:
        """Have *body* send itself, and log what is wrong in the user's code where that breaks it off."""
        try:
            await body.send(status, headers, ctx, send)
        except ClientDisconnected:
            raise
        except GamanError as error:
            # The head is out. A server closes the connection after a response without an end, so that the client notices.
            told = f"{type(error).__name__}: {explain(error)}{place(error, handler)}"
            logger.error("%s %r broke off: %s", ctx.method, ctx.path, told, extra=ctx.log_extra)

    async def _recover(self, ctx: Context, error: Exception, handler: object = None) -> Response:
        """Return the answer to *error*: an on_error hook's or the error's own. What nobody expected is logged and says nothing."""
        told = ""
        if isinstance(error, NothingReturned):
            self._tell_of_nothing(ctx, error, last_of(cast("Handler", handler)))
        else:
            told = log_failure(ctx, error, handler)
        response: Response | None = None
        for hook in self._on_error:
            try:
                answer: Any = hook(ctx, error)
                if answer is not None and hasattr(answer, "__await__"):
                    answer = await answer
                if answer is not None:
                    response = response or check(await open_body(to_response(answer), ctx), ctx)
            except ClientDisconnected:
                raise
            except Exception as fault:
                logger.error("an on_error hook failed on %s %r", ctx.method, ctx.path, exc_info=own(fault), extra=ctx.log_extra)
        if response is not None:
            return response
        if isinstance(error, HTTPError):
            try:
                return check(error_response(error), ctx)
            except (HeaderError, ResultError) as fault:
                return await self._recover(ctx, fault, handler)
        if self.debug:
            return Response.text(told or "".join(traceback.format_exception(*own(error))), 500)
        return error_response(HTTPError(500))

    def _tell_of_nothing(self, ctx: Context, error: NothingReturned, handler: Handler) -> None:
        """Name *handler*, which returned None: in the log once, because each visitor may repeat it, and with debug in *error*."""
        told = f"the handler {name_of(handler)} returned nothing"
        where = place(error, function_of(handler))
        if id(handler) not in self._returned_nothing:
            self._returned_nothing.add(id(handler))
            fix = "write `return` before its result, or raise HTTPError(404) where that is meant"
            logger.warning(
                "%s %r was answered 404, because %s (logged once); %s%s",
                ctx.method,
                ctx.path,
                told,
                fix,
                where,
                extra=ctx.log_extra,
            )
        if self.debug:
            error.detail = f"{error.detail}: {told}{where}"

    def _check_host(self, scope: Scope, receive: Receive) -> None:
        """Raise Answered for a Host field with a fault, or for a host that isn't allowed."""
        if (fault := _fault(scope)) is not None:
            raise Answered(HTTPError(400, fault))
        if self._allowed_hosts.allows_any:
            self._known_host = next((field for field in scope["headers"] if field[0] == b"host" and field[1]), None)
            return
        # What proxies say of the host can differ from request to request.
        asked = Context(scope, receive, {}, self)
        if not self._allowed_hosts.allows(asked.host, asked.scheme):
            if not self._has_refused_a_host:
                self._has_refused_a_host = True
                logger.warning(
                    "a request for the host %r was answered 400, because allowed_hosts lacks it (logged once)", asked.host
                )
            raise Answered(HTTPError(400, "this host isn't among the application's allowed_hosts"))

    async def _send_early(self, response: Response, scope: Scope, send: Send) -> None:
        if self.debug:
            extra = log_extra(scope)
            logger.info("%s %r %d before any hook: %s", extra["method"], extra["path"], response.status, response.body, extra=extra)
        body = response.body if isinstance(response.body, bytes) else b""
        length = [] if response.status in BODILESS else [content_length(len(body))]
        await send({"type": "http.response.start", "status": response.status, "headers": [*response.raw_headers, *length]})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _call_other(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "websocket":
            await receive()
            # Closing before accepting is a refusal: the server answers 403 (ASGI, WebSocket, Close).
            await send({"type": "websocket.close", "code": 1000, "reason": "WebSockets are not supported"})
        else:
            raise GamanError(f"gaman serves http and lifespan, not the ASGI scope {scope['type']!r}")

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        drop_trailers()
        try:
            await self.load()
        except Exception as error:
            if isinstance(error, GamanError):
                reason = explain(error)
            else:
                reason = str(error) or repr(error)
                logger.error("start-up failed", exc_info=own(error))
            await send({"type": "lifespan.startup.failed", "message": reason})
            return
        await send({"type": "lifespan.startup.complete"})
        await receive()
        await self.shutdown()
        await send({"type": "lifespan.shutdown.complete"})

    async def load(self) -> None:
        """Run every on_load hook; where one fails, shut down those before it and raise what it raised."""
        for integration in self.integrations:
            try:
                if integration.on_load is not None and (loading := integration.on_load(self)) is not None:
                    await loading
            except BaseException:
                await self.shutdown()
                raise
            self._loaded.append(integration)
        self._matcher = self.routes

    async def shutdown(self) -> None:
        """Run the on_shutdown hooks of what was loaded, all of them, even where one fails; that is logged."""
        if self._must_load:
            self._matcher = _NotLoaded()
        while self._loaded:
            integration = self._loaded.pop()
            try:
                if integration.on_shutdown is not None and (closing := integration.on_shutdown(self)) is not None:
                    await closing
            except Exception as error:
                logger.error("on_shutdown of the integration %r failed", integration.name, exc_info=own(error))

    async def purge(self) -> dict[str, int]:
        """Have integrations remove what is over; return how much that was, by the name of each that has an on_purge hook."""
        removed: dict[str, int] = {}
        for integration in self._loaded:
            if integration.on_purge is not None:
                count = integration.on_purge(self)
                removed[integration.name] = count if isinstance(count, int) else await count
        return removed

    async def check(self) -> dict[str, Exception | None]:
        """Ask each integration that has an on_check hook whether it can do its work; return by its name None, or what it raised.

        What was raised is logged as well. Show visitors the names alone: an error may tell where a store is.
        """
        found: dict[str, Exception | None] = {}
        for integration in self.integrations:
            if integration.on_check is not None:
                try:
                    if (checking := integration.on_check(self)) is not None:
                        await checking
                    found[integration.name] = None
                except Exception as error:
                    found[integration.name] = error
                    reason = explain(error) if isinstance(error, GamanError) else repr(error)
                    logger.error("the check of the integration %r failed: %s", integration.name, reason)
        return found


def _check_list(option: str, value: object) -> None:
    if not isinstance(value, Iterable):
        raise ConfigError(f"{option}={value!r} isn't a list of str; write {option}=[...], or leave it out")


def _fault(scope: Scope) -> str | None:
    """Return what is wrong with the Host field of a request (RFC 9112, section 3.2), or None."""
    hosts = [value for name, value in scope["headers"] if name == b"host"]
    if hosts in ([], [b""]):
        # An empty field says no more than none does, and some servers add one to a request without it.
        return "the request has no Host" if scope.get("http_version") == "1.1" else None
    is_valid = len(hosts) == 1 and parse_host(hosts[0].decode("latin-1")) is not None
    return None if is_valid else "the request has an invalid Host, or two"


class _NotLoaded:
    """Stands where the routes do, until every integration is loaded."""

    def match(self, scope: Scope) -> NoReturn:
        raise ConfigError("the server runs no ASGI lifespan, so no integration is loaded; turn its lifespan support on")
