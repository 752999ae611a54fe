"""Context: one request as handlers see it, each part parsed on first use."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from os import urandom
from typing import TYPE_CHECKING, Any, NoReturn, Protocol, TypeVar, overload
from urllib.parse import quote

from gaman import _target
from gaman._asgi import Receive, Scope
from gaman._body import RequestBody
from gaman._calls import Call, awaited
from gaman._cookies import Cookies, SetCookies, find_cookie
from gaman._decoding import decode_fields
from gaman._fields import Fields
from gaman._forms import Form, UploadedFile, parse_pairs
from gaman._headers import Headers
from gaman._log import printable
from gaman._proxies import Origin
from gaman._texts import decode_text
from gaman.errors import ConfigError

if TYPE_CHECKING:
    from gaman._app import App
    from gaman.session import Session

T = TypeVar("T")

_LOG_EXTRA = "gaman.log_extra"
_is_id = re.compile(r"[A-Za-z0-9._-]{1,64}").fullmatch


class Open(Protocol):
    """Something that a request has opened."""

    def close(self) -> Awaitable[None] | None: ...


class Context:
    """One request. Integrations provide objects for handlers in `locals`."""

    __slots__ = (
        "_body",
        "_cookies",
        "_headers",
        "_locals",
        "_open",
        "_origin",
        "_query",
        "_receive",
        "_session",
        "app",
        "is_session_closed",
        "params",
        "scope",
        "set_cookies",
    )

    _body: RequestBody
    _locals: dict[str, Any]
    _query: Fields[str]

    def __init__(self, scope: Scope, receive: Receive, params: Mapping[str, str], app: App) -> None:
        self.scope = scope
        """The ASGI scope, for everything without a name here."""
        self.params = params
        """The path's parameters, percent-decoded."""
        self.app = app
        """The App that serves the request."""
        self._receive = receive
        # Most requests read these. None saves 0.3 microseconds a read, which hasattr() would take for an empty slot.
        self._headers: Headers | None = None
        self._origin: Origin | None = None
        self._cookies: Cookies | None = None
        self.set_cookies: SetCookies | None = None
        """The Set-Cookie fields of the response, or None if no cookie was used."""
        self._open: list[Open] | None = None
        """What has to be closed after the request, or None: files of responses, calls of mounted applications."""
        self._session: Session | None = None
        self.is_session_closed = False
        """Whether the session's turn on the way out is over: it is written, and one that is made later refuses changes."""

    @property
    def method(self) -> str:
        """The request's method, in capitals."""
        method: str = self.scope["method"]
        return method

    @property
    def path(self) -> str:
        """The path as routes see it: percent-decoded, without the query and the server's root_path.

        Repeated slashes are collapsed, a trailing slash stays, and a slash within a segment is `%2F`.
        """
        return _target.path_of(self.scope)

    @property
    def url(self) -> str:
        """The absolute URL of the request, from `scheme`, `host` and the undecoded path and query."""
        scope = self.scope
        raw: bytes | None = scope.get("raw_path")
        path = quote(scope["path"]) if raw is None else raw.decode("latin-1")
        query: bytes = scope["query_string"]
        return f"{self.scheme}://{self.host}{path}{'?' if query else ''}{query.decode('latin-1')}"

    @property
    def scheme(self) -> str:
        """`https` or `http`. Behind a trusted proxy that reports it, the scheme between the client and the proxy."""
        return self._find_origin().scheme

    @property
    def host(self) -> str:
        """The host that the request is for, with its port unless that is the scheme's default.

        It is the host that a trusted proxy reports, otherwise the Host field, otherwise the server's address. Don't trust it
        without the App's *allowed_hosts*, because a client may send any host.
        """
        host = self._find_origin().host or self.header("host")
        if not host:
            name, port = self.scope.get("server") or ("localhost", None)
            # A server on a Unix socket has the socket's path here.
            name = "localhost" if name.startswith("/") else f"[{name}]" if ":" in name else name
            host = name if port is None else f"{name}:{port}"
        return host

    @property
    def ip(self) -> str | None:
        """The client's address: the peer's, or the one that a trusted proxy reports; None on a Unix socket."""
        return self._find_origin().ip

    def _find_origin(self) -> Origin:
        if self._origin is None:
            self._origin = self.app.proxies.find_origin(self.scope)
        return self._origin

    @property
    def headers(self) -> Headers:
        """The request's header fields, by case-insensitive name."""
        if self._headers is None:
            self._headers = Headers(self.scope["headers"])
        return self._headers

    def header(self, name: str) -> str | None:
        """Return the first value of a header field, or None if the request doesn't have it."""
        return self.headers.get(name)

    @overload
    def param(self, name: str) -> str | None: ...
    @overload
    def param(self, name: str, type: type[T]) -> T: ...
    def param(self, name: str, type: Any = None) -> Any:
        """Return a parameter of the path, or None if the route doesn't have it; with *type*, the value of that type.

            user_id = ctx.param("id", int)

        *type* is int, float, UUID, date, an Enum, or another type that a text can become. HTTPError 404 is raised for a text that
        doesn't fit: an int, float or UUID has the same spellings as in `:id<int>`. With *type*, ConfigError is raised if the route
        doesn't have the parameter, and ResultError for a type that no text becomes.
        """
        if type is None:
            return self.params.get(name)
        if (text := self.params.get(name)) is None:
            known = ", ".join(f":{known}" for known in self.params) or "none"
            raise ConfigError(f"ctx.param({name!r}, ...): the route has no parameter :{name}; its parameters are: {known}")
        return decode_text(text, type)

    @property
    def query(self) -> Fields[str]:
        """The query's fields: `query["a"]` is the first of a name, or else InvalidInput; `query.getall("a")` is a list of all."""
        if not hasattr(self, "_query"):
            self._query = parse_pairs(self.scope["query_string"], "query")
        return self._query

    def query_as(self, type: type[T]) -> T:
        """Return the query, decoded into *type*: a dataclass, Struct or TypedDict.

            @dataclass
            class Search:
                tags: list[str]
                q: str = ""
                page: int = 1

            search = ctx.query_as(Search)

        Texts become numbers, bools, dates, UUIDs and Enums, and repeated fields become lists. InvalidInput, a 422, is raised for a
        query that doesn't fit or has an integer beyond 64 bits, and ResultError for a *type* that can't hold fields.
        """
        decoded: T = decode_fields(type, "ctx.query_as()", self.query)
        return decoded

    @property
    def cookies(self) -> Cookies:
        """The request's cookies. Changes are sent with the response."""
        if self._cookies is None:
            if self.set_cookies is None:
                self.set_cookies = {}
            # Cookies don't refer to the context, because a reference cycle would have to wait for the garbage collector.
            scope, find_origin = self.scope, self.app.proxies.find_origin
            self._cookies = Cookies(scope["headers"], self.set_cookies, is_secure=lambda: find_origin(scope).scheme == "https")
        return self._cookies

    def cookie(self, name: str) -> str | None:
        """Return a cookie of the request, or None if it doesn't have it. Unlike `cookies.get`, ignore the handlers' changes."""
        return find_cookie(self.scope["headers"], name)

    def send_cookie(self, line: bytes) -> None:
        """Send *line* as the value of a Set-Cookie field, for integrations. It isn't checked, and `cookies.get` doesn't see it."""
        if self.set_cookies is None:
            self.set_cookies = {}
        # The key only has to be unique, because no lookup follows.
        self.set_cookies[len(self.set_cookies)] = (b"set-cookie", line)

    def forget_cookies(self) -> None:
        """Drop every change of a cookie."""
        self._cookies = self.set_cookies = None

    def _close_later(self, opened: Open) -> None:
        """Close *opened* after the request."""
        if self._open is None:
            self._open = []
        self._open.append(opened)

    async def _close(self, report: Callable[[Context, Exception], None]) -> None:
        """Close everything that has to be closed after the request, and *report* each failure."""
        for opened in self._open or ():
            try:
                if (closing := opened.close()) is not None:
                    await closing
            except Exception as error:
                report(self, error)

    @property
    def locals(self) -> dict[str, Any]:
        """Values that the hooks and handlers of this request share."""
        if not hasattr(self, "_locals"):
            self._locals = {}
        return self._locals

    @property
    def request_id(self) -> str:
        """The request's id in logs: its X-Request-ID if that is 1 to 64 letters, digits, `.`, `_` and `-`, or else a random id.

        A client can choose this id. If that matters, let the proxy set the header.
        """
        request_id: str = self.log_extra["request_id"]
        return request_id

    @property
    def log_extra(self) -> dict[str, Any]:
        """The fields of log records about this request: request_id, method, path, and fields that integrations add.

            logger.info("sold out", extra=ctx.log_extra)

        Control characters are escaped.
        """
        return log_extra(self.scope)

    @property
    def session(self) -> Session:
        """The request's session. It is made on first use; ConfigError is raised if no integration makes one."""
        if self._session is None:
            self._session = self.app._make_session(self.scope, self.is_session_closed)
        return self._session

    @property
    def _request_body(self) -> RequestBody:
        if not hasattr(self, "_body"):
            self._body = RequestBody(self._receive, self.headers, self.app.max_body_size)
        return self._body

    def take_body(self) -> bytes | None:
        """Leave the body to a mounted application: return it if it is read and kept, None if it isn't read; else GamanError."""
        return self._request_body.take()

    def stream(self, max_size: int | None = None) -> AsyncIterator[bytes]:
        """Yield the body's chunks as they arrive, once; HTTPError 413 beyond *max_size* bytes, by default the App's max_body_size.

        A body that is larger than memory needs its own limit:

            async for chunk in ctx.stream(max_size=10 << 30):
                await upload.write(chunk)
        """
        return self._request_body.stream(max_size)

    def disconnected(self) -> Coroutine[Any, Any, None]:
        """Return when the client has disconnected. A body that isn't read by then is discarded.

        It can end work that only this client waits for:

            disconnected = asyncio.create_task(ctx.disconnected())
            await asyncio.wait({work, disconnected}, return_when=asyncio.FIRST_COMPLETED)
        """
        return Call("ctx.disconnected", self._request_body.disconnected())

    def body(self, max_size: int | None = None) -> Coroutine[Any, Any, bytes]:
        """Return the whole body; HTTPError 413 beyond *max_size* bytes, by default the App's max_body_size."""
        return Call("ctx.body", self._request_body.read(max_size))

    def text(self) -> Coroutine[Any, Any, str]:
        """Return the body as text; HTTPError 400 if it isn't UTF-8."""
        return Call("ctx.text", self._request_body.text())

    @overload
    async def json(self) -> Any: ...
    @overload
    async def json(self, type: type[T]) -> T: ...
    def json(self, type: Any = None) -> Coroutine[Any, Any, Any]:
        """Return the JSON body, decoded into *type*: a dataclass, Struct, TypedDict or another type that msgspec supports.

            @dataclass
            class User:
                name: str
                age: int = 0

            user = await ctx.json(User)

        InvalidInput, a 422, is raised for a body that doesn't fit the type or has an integer beyond 64 bits, and has the path of
        the fault. HTTPError 400 is raised for malformed JSON and for more than 100 nested levels, and ResultError for a *type* that
        isn't one.
        """
        return Call("ctx.json", self._request_body.json(type))

    def form(self, max_size: int | None = None) -> Coroutine[Any, Any, Form]:
        """Return the fields and files of an urlencoded or multipart form. An empty body is an empty form.

            form = await ctx.form(max_size=20 << 20)
            title, photo = form.fields["title"], form.files.get("photo")

        HTTPError 400 is raised for a malformed form and for a Content-Type over 1 KiB, HTTPError 415 for a body that isn't a form.
        HTTPError 413 is raised beyond *max_size* bytes, by default the App's max_body_size, and beyond 1,000 fields, 100 files, or
        4 KiB of header fields in a part. The fields together may not exceed max_body_size, even if *max_size* is larger.
        """
        return Call("ctx.form", self._request_body.form(max_size))

    @awaited
    async def form_as(self, type: type[T], max_size: int | None = None) -> T:
        """Return the form, decoded into *type*: a dataclass, Struct or TypedDict. Its files are UploadedFile.

            @dataclass
            class Cat:
                name: str
                age: int | None = None
                is_tame: bool = False
                photo: UploadedFile | None = None

            cat = await ctx.form_as(Cat, max_size=20 << 20)

        Texts become values as in `query_as`. An unchecked checkbox isn't sent, so a bool needs a default. InvalidInput, a 422, is
        raised for a form that doesn't fit, ResultError for a *type* that can't hold fields, and HTTPError as by `form`.
        """
        decoded: T = decode_fields(type, "ctx.form_as()", *await self._request_body.form(max_size))
        return decoded

    @awaited
    async def input(self, name: str) -> str | None:
        """Return the form's first field of that name, or None."""
        return (await self._request_body.form()).fields.get(name)

    @awaited
    async def inputs(self, name: str) -> list[str]:
        """Return every field of that name, in a list that may be empty."""
        return (await self._request_body.form()).fields.getall(name)

    @awaited
    async def file(self, name: str) -> UploadedFile | None:
        """Return the form's first file of that name, or None, also for an input that was left empty."""
        return (await self._request_body.form()).files.get(name)

    @awaited
    async def files(self, name: str) -> list[UploadedFile]:
        """Return every file of that name, in a list that may be empty. Inputs that were left empty aren't in it."""
        return (await self._request_body.form()).files.getall(name)


def no_session(scope: Any, *_: object) -> NoReturn:
    """Raise ConfigError in the place of an integration that makes sessions. mount() puts path_params into its *scope*."""
    place, fix = "", "pass integrations=[session(...)]"
    if "path_params" in scope:
        place, fix = " in a mounted App too", "pass both Apps the same integrations=[sessions], where sessions = session(...)"
    raise ConfigError(f"ctx.session needs the session integration{place}: {fix}, from gaman.session")


def log_extra(scope: Scope) -> dict[str, Any]:
    """Return `ctx.log_extra` of the request with this ASGI *scope*, where there is no Context."""
    if _LOG_EXTRA not in scope:
        given = Headers(scope["headers"]).get("x-request-id")
        request_id = urandom(16).hex() if given is None or _is_id(given) is None else given
        # A WebSocket's scope has no method, and its handshake is a GET (RFC 6455, section 4.1).
        method, path = printable(scope.get("method", "GET")), printable(_target.path_of(scope))
        scope[_LOG_EXTRA] = {"request_id": request_id, "method": method, "path": path}
    extra: dict[str, Any] = scope[_LOG_EXTRA]
    return extra
