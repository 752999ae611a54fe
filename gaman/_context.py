"""Context: what a handler gets of one request, each part parsed when it is first asked for."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from io import FileIO
from secrets import token_hex
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar, overload
from urllib.parse import quote

from gaman import _target
from gaman._asgi import Receive, Scope
from gaman._body import RequestBody
from gaman._cookies import Cookies, SetCookies, find_cookie
from gaman._fields import Fields
from gaman._forms import Form, UploadedFile, parse_pairs
from gaman._headers import Headers
from gaman._log import printable
from gaman._proxies import Origin
from gaman.errors import ConfigError

if TYPE_CHECKING:
    from gaman._app import App
    from gaman.session import Session

T = TypeVar("T")

_LOG_EXTRA = "gaman.log_extra"
_is_id = re.compile(r"[A-Za-z0-9._-]{1,64}").fullmatch


class Context:
    """One request. Integrations put what they give to handlers into `locals`."""

    __slots__ = (
        "_body",
        "_cookies",
        "_headers",
        "_locals",
        "_open_files",
        "_origin",
        "_query",
        "_receive",
        "app",
        "began",
        "params",
        "scope",
        "session",
        "set_cookies",
    )

    _body: RequestBody
    _locals: dict[str, Any]
    _query: Fields[str]
    began: float
    """When the request came, by time.perf_counter(); only for the access line, where there is one."""
    session: Session

    def __init__(
        self,
        scope: Scope,
        receive: Receive,
        params: Mapping[str, str],
        app: App,
    ) -> None:
        self.scope = scope
        """The ASGI scope, for what has no name here."""
        self.params = params
        """The path's parameters, percent-decoded."""
        self.app = app
        """The App that serves the request."""
        self._receive = receive
        # None until somebody asks: an empty slot takes an exception to see, and these are asked for often.
        self._headers: Headers | None = None
        self._origin: Origin | None = None
        self._cookies: Cookies | None = None
        self.set_cookies: SetCookies | None = None
        """The Set-Cookie fields to send, once there may be some."""
        self._open_files: list[FileIO] | None = None
        """The files that responses have opened, once there are some."""
        self.session = _NO_SESSION

    @property
    def method(self) -> str:
        """The request's method, in capitals."""
        method: str = self.scope["method"]
        return method

    @property
    def path(self) -> str:
        """The path as routes see it: percent-decoded, without the query and the server's root_path, repeated slashes as one.

        A trailing slash stays, and a slash within a segment is `%2F`.
        """
        return _target.path_of(self.scope)

    @property
    def url(self) -> str:
        """The absolute URL that was asked for, by `scheme` and `host`, and with the path as it came."""
        scope = self.scope
        raw: bytes | None = scope.get("raw_path")
        path = quote(scope["path"]) if raw is None else raw.decode("latin-1")
        query: bytes = scope["query_string"]
        return f"{self.scheme}://{self.host}{path}{'?' if query else ''}{query.decode('latin-1')}"

    @property
    def scheme(self) -> str:
        """`https` or `http`, as the client asked: behind a trusted proxy that says it, between the client and that proxy."""
        return self._find_origin().scheme

    @property
    def host(self) -> str:
        """The host that was asked for, with the port where it is not the usual one, as the client spells it: it may spell any.

        A trusted proxy may tell it; else it is the Host field, and without one the server's own address.
        """
        host = self._find_origin().host or self.header("host")
        if not host:
            name, port = self.scope.get("server") or ("localhost", None)
            # A server on a Unix socket gives its path here.
            name = "localhost" if name.startswith("/") else f"[{name}]" if ":" in name else name
            host = name if port is None else f"{name}:{port}"
        return host

    @property
    def ip(self) -> str | None:
        """The client's address: the peer's, or where that is a trusted proxy, the one that it names; None on a Unix socket."""
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
        """Return the first value of a header field, or None when there is none."""
        return self.headers.get(name)

    def param(self, name: str) -> str | None:
        """Return a parameter of the path, or None when the route has none of that name."""
        return self.params.get(name)

    @property
    def query(self) -> Fields[str]:
        """The query's fields: `query["a"]` is the first of a name, `query.getall("a")` is a list of all, which may be empty."""
        if not hasattr(self, "_query"):
            self._query = parse_pairs(self.scope["query_string"], "query")
        return self._query

    @property
    def cookies(self) -> Cookies:
        """The request's cookies; what is set or deleted here goes out with the response."""
        if self._cookies is None:
            if self.set_cookies is None:
                self.set_cookies = {}
            # It does not hold the context, which holds it: such a circle would have to wait for the garbage collector.
            scope, find_origin = self.scope, self.app.proxies.find_origin
            self._cookies = Cookies(scope["headers"], self.set_cookies, is_secure=lambda: find_origin(scope).scheme == "https")
        return self._cookies

    def cookie(self, name: str) -> str | None:
        """Return a cookie as the request brought it, or None when there is none; `cookies.get` knows what was set since."""
        return find_cookie(self.scope["headers"], name)

    def send_cookie(self, line: bytes) -> None:
        """Send *line* as a Set-Cookie value; the caller answers for what it holds, and `cookies.get` knows nothing of it."""
        if self.set_cookies is None:
            self.set_cookies = {}
        # Nobody asks for it again, so any key does that no other has.
        self.set_cookies[len(self.set_cookies)] = (b"set-cookie", line)

    def forget_cookies(self) -> None:
        """Send none of the cookies that were set."""
        self._cookies = self.set_cookies = None

    def _close_files(self) -> None:
        """Close the files that responses have opened."""
        if self._open_files is not None:
            for file in self._open_files:
                file.close()

    @property
    def locals(self) -> dict[str, Any]:
        """A place for what hooks and handlers of this request tell one another."""
        if not hasattr(self, "_locals"):
            self._locals = {}
        return self._locals

    @property
    def request_id(self) -> str:
        """What names this request in logs: its X-Request-ID, if that is 1 to 64 letters, digits, `.`, `_` and `-`, else a new one.

        A client may send any that it likes; where that matters, have the proxy set the header.
        """
        request_id: str = self.log_extra["request_id"]
        return request_id

    @property
    def log_extra(self) -> dict[str, Any]:
        """What records about this request carry, for logging's `extra`: request_id, method, path, and what integrations add.

        Control characters in them are escaped.
        """
        return log_extra(self.scope)

    @property
    def _request_body(self) -> RequestBody:
        if not hasattr(self, "_body"):
            self._body = RequestBody(self._receive, self.headers, self.app.max_body_size)
        return self._body

    def stream(self, max_size: int | None = None) -> AsyncIterator[bytes]:
        """Yield the body as it comes, once; HTTPError 413 beyond *max_size* bytes, by default the App's max_body_size."""
        return self._request_body.stream(max_size)

    async def disconnected(self) -> None:
        """Return when the client has left; a body that the handler has not asked for by then is thrown away."""
        await self._request_body.disconnected()

    async def body(self, max_size: int | None = None) -> bytes:
        """Return the whole body; HTTPError 413 beyond *max_size* bytes, by default the App's max_body_size."""
        return await self._request_body.read(max_size)

    async def text(self) -> str:
        """Return the body as text; HTTPError 400 where it is not UTF-8."""
        return await self._request_body.text()

    @overload
    async def json(self) -> Any: ...
    @overload
    async def json(self, type: type[T]) -> T: ...
    async def json(self, type: Any = None) -> Any:
        """Return the JSON body, decoded into *type* where one is given: a dataclass, Struct, TypedDict or any that msgspec knows.

        HTTPError 400 is raised for malformed JSON, and for JSON that is nested deeper than 100 levels. HTTPError 422 is raised for
        a body that doesn't fit the type, with the place of the fault, and ResultError for what isn't a type.
        """
        return await self._request_body.json(type)

    async def form(self, max_size: int | None = None) -> Form:
        """Return the form's fields and files, from an urlencoded or multipart body.

        HTTPError 400 is raised for a malformed form and for a Content-Type over 1 KiB, HTTPError 415 for a body that isn't a form.
        HTTPError 413 is raised beyond *max_size* bytes, by default the App's max_body_size, and beyond 1,000 fields, 100 files, or
        4 KiB of header fields in a part. The fields together never exceed max_body_size, whatever *max_size* is.
        """
        return await self._request_body.form(max_size)

    async def input(self, name: str) -> str | None:
        """Return the form's first field of that name, or None when there is none."""
        return (await self.form()).fields.get(name)

    async def inputs(self, name: str) -> list[str]:
        """Return every field of that name; an empty list where there is none."""
        return (await self.form()).fields.getall(name)

    async def file(self, name: str) -> UploadedFile | None:
        """Return the form's first file of that name; None where there is none, or where its input was left empty."""
        return (await self.form()).files.get(name)

    async def files(self, name: str) -> list[UploadedFile]:
        """Return every file of that name, without inputs that were left empty; an empty list where there is none."""
        return (await self.form()).files.getall(name)


class _NoSession:
    """Stands where the session does, until the integration brings one: whatever is wanted of it is refused."""

    __slots__ = ()

    def __getattr__(self, name: str) -> NoReturn:
        raise ConfigError("ctx.session needs the session integration: pass integrations=[session(...)], from gaman.session")

    def __setattr__(self, name: str, value: object) -> NoReturn:
        self.__getattr__(name)


# A __getattr__ of the context's would make every other attribute of it slow.
_NO_SESSION: Any = _NoSession()


def log_extra(scope: Scope) -> dict[str, Any]:
    """Return `ctx.log_extra` of the request with that ASGI *scope*."""
    if _LOG_EXTRA not in scope:
        given = Headers(scope["headers"]).get("x-request-id")
        request_id = token_hex(16) if given is None or _is_id(given) is None else given
        method, path = printable(scope["method"]), printable(_target.path_of(scope))
        scope[_LOG_EXTRA] = {"request_id": request_id, "method": method, "path": path}
    extra: dict[str, Any] = scope[_LOG_EXTRA]
    return extra
