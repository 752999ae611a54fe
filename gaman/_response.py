"""Response: what goes back to the client."""

from __future__ import annotations

import os
import re
from collections.abc import AsyncIterable, Coroutine, Iterable, Mapping
from functools import partial
from inspect import isgenerator
from typing import TYPE_CHECKING, Any, Final, cast
from urllib.parse import quote

import msgspec

from gaman import _file
from gaman._framing import CONTENT_TYPE, FRAMING, check_framing
from gaman._headers import MutableHeaders, RawHeaders, as_text, encode_name, encode_value
from gaman._payloads import FileBody, Payload, Stream
from gaman.errors import HeaderError, HTTPError, ResultError

if TYPE_CHECKING:
    from gaman._context import Context

HeadersInit = Mapping[str, str] | Iterable[tuple[str, str]]

OK: Final = 200
"""Compared by identity, which is the cheapest check that nearly every response passes."""
_JSON = (CONTENT_TYPE, b"application/json")
_TEXT = (CONTENT_TYPE, b"text/plain; charset=utf-8")
_HTML = (CONTENT_TYPE, b"text/html; charset=utf-8")
_BYTES = (CONTENT_TYPE, b"application/octet-stream")

# What a URI can't hold (RFC 3986, section 2), but for control characters: the header check refuses these.
_not_in_uri = re.compile(r"""%(?![0-9A-Fa-f]{2})|[ "<>\\^`{|}]|[^\x00-\x7f]""")
# Browsers take `\` for `/`, and leave out tabs and line breaks. After `//`, they read a host.
_is_local_path = re.compile(r"/(?![/\\])[^\x00-\x1f\x7f\\?#]*(?:[?#][^\x00-\x1f\x7f]*)?").fullmatch


def _refuse(value: object) -> object:
    if isinstance(value, Coroutine):
        raise ResultError(f"the result holds the coroutine {close(cast('object', value))!r}: write `await` before that call")
    raise ResultError(f"JSON can't hold a {type(value).__name__}; give it a dict, list, dataclass or Struct in its place")


def close(coroutine: Any) -> str:
    """Close what was not awaited, so that Python doesn't complain as well; return its name."""
    # A call of the session has no name any more once it is closed.
    name: str = getattr(coroutine, "__qualname__", type(coroutine).__name__)
    coroutine.close()
    return name


def _close_coroutines(data: object) -> None:
    """Close what was not awaited in *data*, so that Python does not complain of each as well."""
    if isinstance(data, Coroutine):
        data.close()
    elif isinstance(data, dict):
        for value in cast("dict[object, object]", data).values():
            _close_coroutines(value)
    elif isinstance(data, (list, tuple, set)):
        for value in cast("Iterable[object]", data):
            _close_coroutines(value)


_MAX_LOCAL = 4096
"""Bytes of a redirect's target that a visitor chose: proxies refuse a response whose fields don't fit into a page or two."""
_new = object.__new__
_encode_json = msgspec.json.Encoder(enc_hook=_refuse).encode


class Response:
    """A status, headers and a body."""

    __slots__ = ("body", "raw_headers", "status")

    status: int
    body: bytes | Payload
    """The body, or for stream() and file() what will send it."""
    raw_headers: RawHeaders
    """The header fields as ASGI has them; `headers` is the way to read and change them."""

    def __init__(
        self,
        body: str | bytes | None = None,
        status: int = 200,
        headers: HeadersInit | None = None,
        *,
        content_type: str | None = None,
    ) -> None:
        if body is None:
            field, self.body = None, b""
        elif isinstance(body, str):
            try:
                field, self.body = _TEXT, body.encode()
            except UnicodeEncodeError as cause:
                raise _no_utf8(cause) from None
        elif isinstance(body, bytes):
            field, self.body = _BYTES, body
        else:
            raise ResultError(f"a Response's body is str, bytes or None, not {type(body).__name__}; did you mean Response.json()?")
        if status is not OK:
            _check_status(status)
        self.status = status
        if content_type is not None:
            field = (CONTENT_TYPE, encode_value(content_type))
        self.raw_headers = [] if field is None else [field]
        if headers is not None:
            self._add(headers)

    def _add(self, headers: HeadersInit) -> None:
        own = self.headers
        try:
            items = cast("Mapping[str, str]", headers).items() if isinstance(headers, Mapping) else headers
            pairs = [(name, value) for name, value in items]
        except (TypeError, ValueError):
            raise HeaderError(f"headers are a dict, or pairs of str, not {headers!r}") from None
        if any(encode_name(name) == CONTENT_TYPE for name, _ in pairs):
            self.raw_headers.clear()
        for name, value in pairs:
            own.add(name, value)

    def __copy__(self) -> Response:
        copied = _new(Response)
        copied.status, copied.body, copied.raw_headers = self.status, self.body, [*self.raw_headers]
        return copied

    @property
    def headers(self) -> MutableHeaders:
        """The response's fields; setting one that could inject another raises HeaderError."""
        return MutableHeaders(self.raw_headers)

    @staticmethod
    def json(data: object, status: int = 200, headers: HeadersInit | None = None) -> Response:
        """Encode *data* as msgspec does: dicts, lists, dataclasses, Structs, datetimes, UUIDs; ResultError for what it can't."""
        # Unrolled, for this is where most responses come from.
        response = _new(Response)
        if status is not OK:
            _check_status(status)
        response.status = status
        try:
            response.body = _encode_json(data)
        except ResultError:
            _close_coroutines(data)
            raise
        except UnicodeEncodeError as cause:
            raise _no_utf8(cause) from None
        except RecursionError:
            raise ResultError("JSON can't hold data that is nested this deep, or within itself; give it less") from None
        response.raw_headers = [_JSON]
        if headers is not None:
            response._add(headers)
        return response

    @staticmethod
    def text(text: str, status: int = 200, headers: HeadersInit | None = None) -> Response:
        """Send *text* as text/plain."""
        try:
            return _make(text.encode(), _TEXT, status, headers)
        except AttributeError:
            raise _no_text("text", text) from None
        except UnicodeEncodeError as cause:
            raise _no_utf8(cause) from None

    @staticmethod
    def html(html: str, status: int = 200, headers: HeadersInit | None = None) -> Response:
        """Send *html* as it is; escape what came from a visitor, with html.escape or a template engine."""
        try:
            return _make(html.encode(), _HTML, status, headers)
        except AttributeError:
            raise _no_text("html", html) from None
        except UnicodeEncodeError as cause:
            raise _no_utf8(cause) from None

    @staticmethod
    def redirect(location: str, status: int = 302, headers: HeadersInit | None = None, *, local: bool = False) -> Response:
        """Send the browser to *location* (RFC 9110, section 15.4); what a URI can't hold is percent-encoded.

        Pass *local* where *location* comes from a visitor: HTTPError 400 then refuses all but a path of this site, of at most
        4,096 bytes. ResultError is raised for anything but a str.
        """
        if status not in (301, 302, 303, 307, 308):
            raise ResultError(f"{status!r} is not a redirect's status; take 301, 302, 303, 307 or 308")
        _check_target(location, local=local)
        try:
            # A host may be percent-encoded too (RFC 3986, section 3.2.2), and the octets of a file name need not be UTF-8.
            target = _not_in_uri.sub(lambda found: quote(found[0], safe="", errors="surrogateescape"), location)
        except UnicodeEncodeError as cause:
            raise HeaderError(f"the redirect's target {location!r} holds half a surrogate pair; remove it") from cause
        if local and len(target) > _MAX_LOCAL:
            raise HTTPError(400, f"the redirect's target is longer than {_MAX_LOCAL} bytes")
        if "\t" in target:
            raise HeaderError(f"the redirect's target {location!r} holds a tab, which browsers leave out; remove it")
        response = _make(b"", None, status, headers)
        response.headers["location"] = target
        return response

    @staticmethod
    def stream(
        chunks: AsyncIterable[bytes | str],
        status: int = 200,
        headers: HeadersInit | None = None,
        *,
        content_type: str = "application/octet-stream",
    ) -> Response:
        """Send *chunks* as they come. When the client leaves, the iterator is cancelled and closed."""
        if not hasattr(type(chunks), "__aiter__"):
            raise ResultError(f"Response.stream() takes an async iterator, not {_name_what_is_wrong(chunks)}")
        return _make(Stream(chunks), (CONTENT_TYPE, encode_value(content_type)), status, headers)

    @staticmethod
    def file(
        path: str | os.PathLike[str],
        status: int = 200,
        headers: HeadersInit | None = None,
        *,
        root: str | os.PathLike[str] | None = None,
        hidden: bool = False,
        content_type: str | None = None,
        download: str | None = None,
    ) -> Response:
        """Send a file, in ranges and under conditions if the client asks for them (RFC 9110, sections 13 and 14).

        Give *root* where *path* comes from a visitor: a path that leads out of it through a link answers 404, as one that names
        no file does. So does one with a segment that is empty, `.` or `..`, but for a leading slash. So does one of which a part
        begins with a dot, unless you pass *hidden*. The content type is guessed from the name; *download* has the browser save
        under that name.

        The file is opened when the handler has returned the response. Where there is none, HTTPError 404 goes to the on_error
        hooks; HTTPError 503 where the system fails to open it, as where it is out of file descriptors.
        """
        for place in (path,) if root is None else (path, root):
            if not isinstance(place, (str, os.PathLike)):
                raise ResultError(f"Response.file() takes a path, not {place!r}; give a str or a Path, or raise HTTPError(404)")
        field = None if content_type is None else (CONTENT_TYPE, encode_value(content_type))
        response = _make(FileBody(partial(_file.find, os.fspath(path), root, hidden=hidden)), field, status, headers)
        if download is not None:
            response.headers["content-disposition"] = _file.attachment(download)
        return response


def _make(body: bytes | Payload, field: tuple[bytes, bytes] | None, status: int, headers: HeadersInit | None) -> Response:
    response = _new(Response)
    if status is not OK:
        _check_status(status)
    response.status = status
    response.body = body
    response.raw_headers = [] if field is None else [field]
    if headers is not None:
        response._add(headers)
    return response


def _no_text(method: str, value: object) -> ResultError:
    return ResultError(f"Response.{method}() takes a str, not {value!r}; write {as_text(value)!r}")


def _no_utf8(cause: UnicodeEncodeError) -> ResultError:
    return ResultError(
        f"UTF-8 can't hold {cause.object[cause.start]!r}, half a surrogate pair, as in a file's name that isn't UTF-8; replace it"
    )


def _check_status(status: object) -> None:
    if not (isinstance(status, int) and 200 <= status <= 599):
        raise ResultError(f"a response's status is an int from 200 to 599, not {status!r}")


def _check_target(location: object, *, local: bool) -> None:
    if local and not (isinstance(location, str) and _is_local_path(location)):
        raise HTTPError(400, "the redirect does not lead to a path of this site")
    if not isinstance(location, str):
        raise ResultError(
            f"a redirect's target is a str, not {type(location).__name__}; "
            'for one that may be absent, write `Response.redirect(ctx.query.get("next") or "/", local=True)`'
        )


def _name_what_is_wrong(chunks: object) -> str:
    """Return what *chunks* are that Response.stream() can't take, and what to write instead."""
    if isinstance(chunks, Coroutine):
        name = close(cast("object", chunks))
        return f"the coroutine {name!r}: write `yield` in it, or `await` before the call if it returns an iterator"
    if callable(chunks):
        return f"{getattr(chunks, '__qualname__', chunks)!r} itself: call it"
    if isgenerator(chunks):
        return f"the generator {chunks.__qualname__!r}: write `async def` in place of its `def`"
    return f"a {type(chunks).__name__}; write an `async def` that yields its chunks, or give Response() all of them at once"


async def open_body(response: Response, ctx: Context) -> Response:
    """Return *response*, or a copy with its file open, for *ctx* to close.

    HTTPError 404 is raised where there is no such file, 503 where the system fails to open it, and ResultError for a body that
    can't be sent.
    """
    body: object = response.body
    if isinstance(body, FileBody):
        return await body.open(response, ctx)
    if not isinstance(body, bytes) and not hasattr(body, "send"):
        raise ResultError(f"a response's body is bytes, not {type(body).__name__}; encode it, or return another Response")
    return response


def check(response: Response, ctx: Context, passed: RawHeaders | None = None) -> Response:
    """Return *response*, or a copy without a content-length that says what the server will say by itself.

    ResultError is raised for a status that can't be sent, and HeaderError for fields that don't fit the body (RFC 9112, section 6).
    *passed* becomes fields that fit any body.
    """
    status = response.status
    if status is not OK and (status.__class__ is not int or not 200 <= status <= 599):
        _check_status(status)
    for name, _ in response.raw_headers:
        if name in FRAMING:
            headers = check_framing(response.raw_headers, status, response.body, ctx.method)
            if headers is not response.raw_headers:
                # A handler may return the same Response for every request.
                response = response.__copy__()
                response.raw_headers = headers
            return response
    if passed is not None:
        passed[:] = response.raw_headers
    return response
