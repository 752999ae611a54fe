"""mount(): an ASGI application below a prefix of a table, as a handler whose response passes through the hooks."""

from __future__ import annotations

import logging
from collections.abc import MutableMapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import anyio

from gaman import _target
from gaman._application import check_application, kind_of
from gaman._asgi import Application, Scope, Send
from gaman._context import Context, log_extra
from gaman._disconnects import Disconnected
from gaman._framing import BODILESS, without_body
from gaman._headers import RawHeaders, encode_name, encode_value
from gaman._layers import Handler
from gaman._response import Response
from gaman._results import Result
from gaman._tracebacks import exc_info_of
from gaman.errors import ClientDisconnected, ConfigError, GamanError, HTTPError, comes_of

if TYPE_CHECKING:
    from asyncio import Event, Future, Task

logger = logging.getLogger("gaman")

_PATH_CHARACTERS = "/:@!$&'()*+,;=~"
"""What a path may hold unescaped (RFC 3986, section 3.3)."""


OUTER = "gaman.outer"
"""The key of an ASGI scope under which a mounted application has the Context of the App around it."""


def mount(application: Application) -> Mount:
    """Return *application* as the value of a path that ends in `/*`, where it gets the requests that no route of the table matches.

        routes = define_routes({"/admin/*": [require_login, mount(admin)], "/admin/health": health})

    Guards and hooks run before it, and on_response hooks see its status and header fields. Its `root_path` is the prefix. It
    starts and ends with the App. The App's max_body_size doesn't limit the bodies that it reads. ConfigError is raised for anything
    but an ASGI 3 application.
    """
    return Mount(check_application("mount()", application))


class Mount:
    """A value of a table; define_routes() replaces it by a handler that knows its prefix."""

    def __init__(self, application: Application) -> None:
        self.application = application

    def at(self, depth: int) -> Handler:
        """Return the handler for a prefix of *depth* segments."""
        return _Mounted(self.application, depth)

    async def __call__(self, ctx: Context) -> Result:
        raise ConfigError("mount() is a value of a table, as in {'/admin/*': mount(app)}; it isn't called")


class _Mounted:
    """The handler of a mounted application."""

    def __init__(self, application: Application, depth: int) -> None:
        self._application = application
        self._depth = depth
        self.__qualname__ = f"mount({kind_of(application)})"

    async def __call__(self, ctx: Context) -> Response:
        scope = self._scope(ctx)
        call = _Call(self.__qualname__, ctx)
        ctx._close_later(call)
        return await call.begin(self._application, scope)

    def prefix_of(self, ctx: Context) -> str:
        """Return the path in this request that the application is mounted at, without a slash at its end."""
        return "/".join(ctx.path.split("/")[: self._depth + 1])

    def _scope(self, ctx: Context) -> Scope:
        """Return the application's scope, with the path that the guards saw; HTTPError 404 for a path with other spellings."""
        given = ctx.scope
        # The application's lines of the log have the same id and path.
        log_extra(given)
        segments = _target.split(given["path"], given.get("raw_path"), given.get("root_path")) or []
        if not _target.has_one_spelling(segments[:-1] if segments[-1:] == [""] else segments):
            raise HTTPError(404)
        if not segments and given["path"].endswith("/"):
            # Directly below root_path, split() drops the slash.
            segments = [""]
        outer: str = (given.get("root_path") or "").rstrip("/")
        root, path = "/".join([outer, *segments[: self._depth]]), "/".join([outer, *segments])
        origin = ctx._find_origin()
        client, headers = given.get("client"), given["headers"]
        if origin.ip != (client and client[0]):
            client = None if origin.ip is None else (origin.ip, 0)
        if origin.host is not None:
            headers = [(b"host", origin.host.encode("latin-1")), *(field for field in headers if field[0] != b"host")]
        scope = {
            **given,
            OUTER: ctx,
            "path": path,
            "root_path": root,
            "client": client,
            "scheme": origin.scheme,
            "headers": headers,
            "state": {**given.get("state", {}), **ctx.app._state_of(self._application)},
            # Starlette's name for them.
            "path_params": {**given.get("path_params", {}), **ctx.params},
        }
        # Messages of extensions would bypass the hooks.
        scope.pop("extensions", None)
        if path != given["path"]:
            scope["raw_path"] = quote(path, safe=_PATH_CHARACTERS).encode("ascii")
        return scope


class _Body:
    """The body of the response that *call* has begun."""

    def __init__(self, call: _Call) -> None:
        self._call = call

    async def send(self, status: int, headers: RawHeaders, ctx: Context, send: Send) -> None:
        await self._call.respond(status, headers, ctx, send)


class _Call:
    """One call of a mounted application, in a task of its own, from its request to its return."""

    _start: Future[MutableMapping[str, Any]]
    _task: Task[None]
    _arrived: Event
    _consumed: Event
    _sending: Event

    def __init__(self, name: str, ctx: Context) -> None:
        self._name = name
        self._ctx = ctx
        self._receive = ctx._receive
        self._messages: list[MutableMapping[str, Any]] = []
        """The messages for the application that it hasn't received yet."""
        if (body := ctx.take_body()) is not None:
            self._messages.append({"type": "http.request", "body": body, "more_body": False})
        self._reader: Task[None] | None = None
        self._receivers = 0
        """How many calls of receive() wait."""
        self._send: Send
        self._is_bodiless = self._is_complete = self._is_disconnected = self._is_reported = False

    async def begin(self, application: Application, scope: Scope) -> Response:
        """Call *application*, and return the response that it begins."""
        from asyncio import FIRST_COMPLETED, Event, get_running_loop, wait  # noqa: PLC0415 - importing gaman doesn't load asyncio

        async def call() -> None:
            try:
                await application(scope, self.receive, self.send)
            except (SystemExit, KeyboardInterrupt) as cause:
                # A task passes these on to the event loop, which would end the server.
                raise GamanError(f"{self._name} raised {cause!r}") from cause

        loop = get_running_loop()
        self._arrived, self._consumed, self._sending, self._start = Event(), Event(), Event(), loop.create_future()
        self._task = loop.create_task(call())
        either: set[Future[Any]] = {self._task, self._start}
        await wait(either, return_when=FIRST_COMPLETED)
        if not self._start.done():
            self._is_reported = True
            if self._task.cancelled():
                raise GamanError(f"{self._name} was cancelled before it began a response")
            self._task.result()
            if self._is_disconnected:
                raise ClientDisconnected("the client disconnected before the mounted application responded")
            raise GamanError(f"{self._name} returned without a response")
        message = self._start.result()
        response = Response(None, message["status"])
        response.body = _Body(self)
        # The server frames the body.
        fields = [(bytes(name).decode("latin-1"), bytes(value).decode("latin-1")) for name, value in message["headers"]]
        response.raw_headers = [
            (encode_name(name), encode_value(value)) for name, value in fields if name.lower() != "transfer-encoding"
        ]
        return response

    # --- called by the application

    async def receive(self) -> MutableMapping[str, Any]:
        self._receivers += 1
        try:
            while not self._messages and not self._is_disconnected:
                if self._reader is not None and self._reader.done():
                    # Raises its error: middleware around the App may refuse a body.
                    self._reader.result()
                self._read_ahead()
                self._arrived.clear()
                await self._arrived.wait()
        finally:
            self._receivers -= 1
        if not self._messages:
            return {"type": "http.disconnect"}
        message = self._messages.pop(0)
        self._consumed.set()
        return message

    async def send(self, message: MutableMapping[str, Any]) -> None:
        from asyncio import sleep  # noqa: PLC0415 - as above

        kind = message["type"]
        if not self._start.done():
            if kind != "http.response.start":
                raise RuntimeError(f"the application sent {kind!r} before 'http.response.start'")
            # Copied, because the application may use its message again.
            self._start.set_result({**message, "headers": [*message.get("headers", ())]})
            return
        await self._sending.wait()
        if self._is_disconnected and not self._is_complete:
            raise Disconnected("the client disconnected")
        if self._is_bodiless and message.get("body"):
            message = {**message, "body": b""}
        try:
            await self._send(message)
        except OSError as cause:
            # The server reports a disconnected client (ASGI 2.4).
            self._is_disconnected = True
            raise Disconnected("the client disconnected") from cause
        if kind == "http.response.body" and not message.get("more_body", False):
            self._is_complete = True
        else:
            # Let the reader run: sending to a client that has disconnected returns at once.
            await sleep(0)

    # --- called by the App

    async def respond(self, status: int, headers: RawHeaders, ctx: Context, send: Send) -> None:
        """Send the head, then what the application sends, and return when it has returned."""
        from asyncio import wait  # noqa: PLC0415 - as above

        self._is_bodiless = ctx.method == "HEAD" or status in BODILESS
        if status in BODILESS:
            headers = without_body(status, headers)
        await send({"type": "http.response.start", "status": status, "headers": headers})
        self._send = send
        self._sending.set()
        # Only now, because reading invites the client to send its body (RFC 9110, section 10.1.1).
        self._read_ahead()
        await wait({self._task})
        if not self._is_complete:
            if self._is_disconnected:
                raise ClientDisconnected("the client disconnected before its response was sent completely")
            self._is_reported = True
            if self._task.cancelled():
                raise GamanError(f"{self._name} was cancelled within its response")
            self._task.result()
            raise GamanError(f"{self._name} returned within its response")

    async def close(self) -> None:
        """Cancel the application if it still runs: a hook has replaced its response, or the request has ended early."""
        from asyncio import wait  # noqa: PLC0415 - as above

        tasks = {task for task in (getattr(self, "_task", None), self._reader) if task is not None}
        if running := {task for task in tasks if not task.done()}:
            for task in running:
                task.cancel()
            with anyio.CancelScope(shield=True):
                await wait(running)
        if self._reader is not None and not self._reader.cancelled():
            # Read, because asyncio would log an error that the application hasn't received.
            self._reader.exception()
        # Read in any case, as above.
        error = None if not tasks or self._task.cancelled() else self._task.exception()
        if error is not None and not self._is_reported and not comes_of(error, ClientDisconnected):
            ctx = self._ctx
            logger.error(
                "%s %r: %s failed after its response",
                ctx.method,
                ctx.path,
                self._name,
                exc_info=exc_info_of(error),
                extra=ctx.log_extra,
            )

    # --- the request

    def _read_ahead(self) -> None:
        """Read what the server receives, in a task, which also notices that the client has disconnected."""
        from asyncio import get_running_loop  # noqa: PLC0415 - as above

        if self._reader is None:
            self._reader = reader = get_running_loop().create_task(self._read())
            reader.add_done_callback(lambda _: self._arrived.set())

    async def _read(self) -> None:
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._is_disconnected = True
                # An application that waits for this message ends by itself. After a complete response, it may finish its work.
                if not self._receivers and self._sending.is_set() and not self._is_complete:
                    self._task.cancel()
                self._arrived.set()
                return
            self._messages.append(message)
            self._arrived.set()
            while message.get("more_body", False) and self._messages:
                # The application reads slowly, so the server's buffer may fill.
                self._consumed.clear()
                await self._consumed.wait()
