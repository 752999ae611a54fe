"""Response: a status, header fields and a body, checked when it is made and before it is sent."""

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
from gaman.errors import HeaderError, HTTPError, ResultError, a_type

if TYPE_CHECKING:
    from gaman._context import Context

HeadersInit = Mapping[str, str] | Iterable[tuple[str, str]]

OK: Final = 200
"""The usual status, compared by identity: unlike `==`, that is false for 200.0, and it saves 0.08 microseconds a response."""
_JSON = (CONTENT_TYPE, b"application/json")
_TEXT = (CONTENT_TYPE, b"text/plain; charset=utf-8")
_HTML = (CONTENT_TYPE, b"text/html; charset=utf-8")
_BYTES = (CONTENT_TYPE, b"application/octet-stream")

# What a URI can't hold (RFC 3986, section 2), except control characters, which the check of header values refuses.
_not_in_uri = re.compile(r"""%(?![0-9A-Fa-f]{2})|[ "<>\\^`{|}]|[^\x00-\x7f]""")
# Browsers read `\` as `/` and remove tabs and line breaks. They read `//` as the start of a host.
_is_local_path = re.compile(r"/(?![/\\])[^\x00-\x1f\x7f\\?#]*(?:[?#][^\x00-\x1f\x7f]*)?").fullmatch


def _refuse(value: object) -> object:
    """Raise ResultError for a *value* that msgspec can't encode."""
    if isinstance(value, Coroutine):
        raise ResultError(
            f"the result holds the coroutine {close_coroutine(cast('object', value))!r}: write `await` before that call"
        )
    raise ResultError(
        f"JSON can't hold {a_type(value)}; {dumped(value) or 'give it a dict, list, dataclass or Struct in its place'}"
    )


def dumped(value: object) -> str:
    """Return what to write for a model of pydantic, and "" for anything else."""
    return "for a model of pydantic, write `.model_dump()` after it" if hasattr(value, "model_dump") else ""


def close_coroutine(coroutine: Any) -> str:
    """Close a coroutine that was never awaited, so that Python adds no warning; return its name."""
    # Read first, because a closed call of the session has no name.
    name: str = getattr(coroutine, "__qualname__", type(coroutine).__name__)
    coroutine.close()
    return name


def _close_coroutines(data: object) -> None:
    """Close the coroutines in *data*, so that Python adds no warning for each."""
    if isinstance(data, Coroutine):
        data.close()
    elif isinstance(data, dict):
        for value in cast("dict[object, object]", data).values():
            _close_coroutines(value)
    elif isinstance(data, (list, tuple, set)):
        for value in cast("Iterable[object]", data):
            _close_coroutines(value)


_MAX_LOCAL = 4096
"""In bytes, of a redirect's target that a visitor chose. Proxies refuse responses with header fields over 4 or 8 KiB."""
_encode_json = msgspec.json.Encoder(enc_hook=_refuse).encode


class Response:
    """A status, headers and a body: `Response("no", 403)`.

    A str is sent as text/plain, bytes are sent as application/octet-stream, unless *content_type* or *headers* say otherwise.
    ResultError is raised for another body or status, and HeaderError for an invalid header field.
    """

    __slots__ = ("body", "raw_headers", "status")

    status: int
    body: bytes | Payload
    """The body. For stream() and file(), an object that sends it."""
    raw_headers: RawHeaders
    """The header fields as ASGI defines them. Use `headers` to read and change them."""

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
                raise _not_utf8(cause) from None
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
        copied = object.__new__(Response)
        copied.status, copied.body, copied.raw_headers = self.status, self.body, [*self.raw_headers]
        return copied

    @property
    def headers(self) -> MutableHeaders:
        """The header fields. Setting a value with a control character raises HeaderError, because it could inject another field."""
        return MutableHeaders(self.raw_headers)

    @staticmethod
    def json(data: object, status: int = 200, headers: HeadersInit | None = None) -> Response:
        """Send *data* as JSON: dicts, lists, dataclasses, Structs, datetimes, UUIDs and the other types that msgspec encodes.

        ResultError names a value that JSON can't hold.
        """
        try:
            body = _encode_json(data)
        except ResultError:
            _close_coroutines(data)
            raise
        except UnicodeEncodeError as cause:
            raise _not_utf8(cause) from None
        except RecursionError:
            raise ResultError("JSON can't hold data that is nested this deep, or within itself; give it less") from None
        if headers is not None or status is not OK:
            return _make(body, _JSON, status, headers)
        # _make() unrolled: this saves 2 % of a small request.
        response = object.__new__(Response)
        response.status, response.body, response.raw_headers = OK, body, [_JSON]
        return response

    @staticmethod
    def text(text: str, status: int = 200, headers: HeadersInit | None = None) -> Response:
        """Send *text* as text/plain."""
        try:
            return _make(text.encode(), _TEXT, status, headers)
        except AttributeError:
            raise _not_text("text", text) from None
        except UnicodeEncodeError as cause:
            raise _not_utf8(cause) from None

    @staticmethod
    def html(html: str, status: int = 200, headers: HeadersInit | None = None) -> Response:
        """Send *html* unchanged as text/html. Escape a visitor's text with html.escape or a template engine."""
        try:
            return _make(html.encode(), _HTML, status, headers)
        except AttributeError:
            raise _not_text("html", html) from None
        except UnicodeEncodeError as cause:
            raise _not_utf8(cause) from None

    @staticmethod
    def redirect(location: str, status: int = 302, headers: HeadersInit | None = None, *, local: bool = False) -> Response:
        """Send the browser to *location* (RFC 9110, section 15.4). Characters that a URI can't hold are percent-encoded.

        Pass *local* if a visitor chose *location*. Anything but a path of this site, of at most 4,096 bytes, then raises
        HTTPError 400:

            return Response.redirect(ctx.query.get("next") or "/", local=True)

        ResultError is raised for a location that isn't a str and for a status that isn't a redirect's.
        """
        if status not in (301, 302, 303, 307, 308):
            raise ResultError(f"{status!r} is not a redirect's status; take 301, 302, 303, 307 or 308")
        _check_target(location, local=local)
        try:
            # This is valid in a host as well (RFC 3986, section 3.2.2). Surrogates are octets of a file name that isn't UTF-8.
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
        endless: bool = False,
    ) -> Response:
        """Send each chunk of an async iterator when it is ready.

            async def ticks() -> AsyncIterator[str]:
                while True:
                    yield "tick"
                    await asyncio.sleep(1)

            return Response.stream(ticks(), content_type="text/plain")

        When the client disconnects, the iterator is cancelled and closed. So is an *endless* one as soon as gaman's server stops,
        and its response ends; any other has timeout_graceful_shutdown seconds to finish. ResultError is raised for anything but an
        async iterator.
        """
        if not hasattr(type(chunks), "__aiter__"):
            raise ResultError(f"Response.stream() takes an async iterator, not {_describe(chunks)}")
        return _make(Stream(chunks, endless), (CONTENT_TYPE, encode_value(content_type)), status, headers)

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
        """Send a file. Conditional requests and ranges are supported (RFC 9110, sections 13 and 14).

        Pass *root* if a visitor chose *path*:

            return Response.file(ctx.params["path"], root="uploads")

        Then the response is 404 unless *path* names a file below *root*, also through links. A leading slash is ignored. A path
        with another empty segment, with `.` or with `..` gets 404. So does a path with a part that begins with a dot, unless
        *hidden* is true. The content type is guessed from the name. With *download*, the browser saves the file under that name.

        The file is opened after the handler has returned. If it doesn't exist, the on_error hooks get HTTPError 404. They get
        HTTPError 503 if the system fails to open it, for example without a free file descriptor.
        """
        for each in (path,) if root is None else (path, root):
            if not isinstance(each, (str, os.PathLike)):
                raise ResultError(f"Response.file() takes a path, not {each!r}; give a str or a Path, or raise HTTPError(404)")
        if root is not None:
            _file.warn_of_missing(os.fspath(root))
        field = None if content_type is None else (CONTENT_TYPE, encode_value(content_type))
        response = _make(FileBody(partial(_file.find, os.fspath(path), root, hidden=hidden)), field, status, headers)
        if download is not None:
            response.headers["content-disposition"] = _file.attachment(download)
        return response


def _make(body: bytes | Payload, field: tuple[bytes, bytes] | None, status: int, headers: HeadersInit | None) -> Response:
    response = object.__new__(Response)
    if status is not OK:
        _check_status(status)
    response.status = status
    response.body = body
    response.raw_headers = [] if field is None else [field]
    if headers is not None:
        response._add(headers)
    return response


def _not_text(method: str, value: object) -> ResultError:
    fix = "" if value is None else f"; write {as_text(value)!r}"
    return ResultError(f"Response.{method}() takes a str, not {value!r}{fix}")


def _not_utf8(cause: UnicodeEncodeError) -> ResultError:
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


def _describe(chunks: object) -> str:
    """Return a description of *chunks*, which aren't an async iterator, and what to write instead."""
    if isinstance(chunks, Coroutine):
        name = close_coroutine(cast("object", chunks))
        return f"the coroutine {name!r}: write `yield` in it, or `await` before the call if it returns an iterator"
    if callable(chunks):
        return f"{getattr(chunks, '__qualname__', chunks)!r} itself: call it"
    if isgenerator(chunks):
        return f"the generator {chunks.__qualname__!r}: write `async def` in place of its `def`"
    return f"{a_type(chunks)}; write an `async def` that yields its chunks, or pass all of them to Response()"


async def open_body(response: Response, ctx: Context) -> Response:
    """Return *response*, or a copy with its file open, which *ctx* closes after the request.

    HTTPError 404 is raised if the file doesn't exist, HTTPError 503 if the system fails to open it, and ResultError for a body
    that can't be sent.
    """
    body: object = response.body
    if isinstance(body, FileBody):
        return await body.open(response, ctx)
    if not isinstance(body, bytes) and not hasattr(body, "send"):
        raise ResultError(f"a response's body is bytes, not {type(body).__name__}; encode it, or return another Response")
    return response


def check_response(response: Response, ctx: Context, checked: RawHeaders | None = None) -> Response:
    """Return *response*, or a copy without its content-length, which gaman adds itself.

    ResultError is raised for a status that can't be sent. HeaderError is raised for a framing that doesn't fit the body (RFC 9112,
    section 6). *checked* is replaced with the header fields if they fit any body.
    """
    status = response.status
    if status is not OK and (status.__class__ is not int or not 200 <= status <= 599):
        _check_status(status)
    for name, _ in response.raw_headers:
        if name in FRAMING:
            headers = check_framing(response.raw_headers, status, response.body, ctx.method)
            if headers is not response.raw_headers:
                # Copied because a handler may return the same Response for every request.
                response = response.__copy__()
                response.raw_headers = headers
            return response
    if checked is not None:
        checked[:] = response.raw_headers
    return response
