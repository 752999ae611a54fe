"""Request bodies: read within their limits, and parsed where they are forms; what does not fit is a 4xx."""

import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from pathlib import Path
from tempfile import SpooledTemporaryFile
from typing import Any, NamedTuple
from urllib.parse import parse_qsl

import anyio.to_thread
from multidict import MultiDict
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from gaman._fields import Fields
from gaman._headers import Headers
from gaman.errors import ClientDisconnected, HTTPError

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

MAX_FIELDS = 1000
MAX_FILES = 100
_SPOOL = 1 << 18


class UploadedFile:
    """A file of a form. *filename* and *content_type* are the client's word: never make a path of the one or trust the other."""

    __slots__ = ("content_type", "file", "filename", "size")

    def __init__(self, filename: str, content_type: str) -> None:
        self.filename = filename
        self.content_type = content_type
        self.size = 0
        """Bytes."""
        self.file = SpooledTemporaryFile[bytes](max_size=_SPOOL)
        """The content, in memory up to 256 KiB, then on disk; closed with the last reference to this object."""

    def __del__(self) -> None:
        self.file.close()

    async def read(self) -> bytes:
        """Return the whole content."""

        def read() -> bytes:
            self.file.seek(0)
            return self.file.read()

        return await anyio.to_thread.run_sync(read)

    async def save(self, path: str | Path) -> None:
        """Write the content to *path*, over what is there; OSError says why it could not be."""

        def copy() -> None:
            self.file.seek(0)
            with open(path, "wb") as target:
                shutil.copyfileobj(self.file, target)

        await anyio.to_thread.run_sync(copy)

    async def append(self, data: bytes) -> None:
        """Add *data* at the end, off the event loop once the content is on disk."""
        self.size += len(data)
        if self.size > _SPOOL:
            await anyio.to_thread.run_sync(self.file.write, data)
        else:
            self.file.write(data)


class Form(NamedTuple):
    """What a form held, by name, in the order it was sent."""

    fields: Fields[str]
    files: Fields[UploadedFile]


async def stream_body(receive: Receive, headers: Headers, limit: int) -> AsyncIterator[bytes]:
    """Yield the body's chunks; HTTPError 413 beyond *limit* bytes, 415 for an encoded body, which could unpack to anything."""
    if headers.get("content-encoding", "identity").strip().lower() not in ("identity", ""):
        raise HTTPError(415, "send the body without a Content-Encoding", headers={"accept-encoding": "identity"})
    announced = headers.get("content-length", "0")
    if announced.isdecimal() and len(announced) < 20 and int(announced) > limit:
        raise HTTPError(413, f"the body is larger than {limit} bytes")
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnected("the client left before its body had come whole")
        chunk = message.get("body", b"")
        size += len(chunk)
        if size > limit:
            raise HTTPError(413, f"the body is larger than {limit} bytes")
        yield chunk
        if not message.get("more_body", False):
            return


async def read_form(chunks: AsyncIterator[bytes], headers: Headers, field_limit: int) -> Form:
    """Return the form that *chunks* hold; HTTPError 400 where it is malformed, 413 beyond a limit, 415 where it is no form."""
    kind, options = parse_options_header(headers.get("content-type"))
    if kind == b"application/x-www-form-urlencoded":
        body = b"".join([chunk async for chunk in chunks])
        return Form(parse_pairs(body, "form", 413), Fields(MultiDict[UploadedFile]()))
    if kind != b"multipart/form-data":
        raise HTTPError(415, "expected a form: application/x-www-form-urlencoded or multipart/form-data")
    if not (boundary := options.get(b"boundary")):
        raise HTTPError(400, "malformed multipart body: its Content-Type names no boundary")
    reader = _Multipart(field_limit)
    try:
        # The reader does not keep its parser, which calls it back: in a circle, the files would outlive the request.
        parser = reader.parser(boundary)
        async for chunk in chunks:
            parser.write(chunk)
            await reader.store()
        parser.finalize()
        return reader.finish()
    except FormParserError as cause:
        raise HTTPError(400, f"malformed multipart body: {cause}") from cause


def parse_pairs(encoded: bytes, what: str, excess: int = 400) -> Fields[str]:
    """Return the pairs of a query or an urlencoded form, decoded as browsers do: what is not UTF-8 becomes U+FFFD.

    HTTPError is raised with the status *excess* where there are too many.
    """
    try:
        pairs = parse_qsl(encoded.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError as cause:
        raise HTTPError(excess, f"the {what} has more than {MAX_FIELDS} fields") from cause
    return Fields(MultiDict(pairs))


class _Multipart:
    """One multipart/form-data body (RFC 7578), put together from what the parser calls back."""

    def __init__(self, field_limit: int) -> None:
        self._fields = MultiDict[str]()
        self._files = MultiDict[UploadedFile]()
        self._field_limit = field_limit
        self._field_bytes = 0
        self._part_headers: list[tuple[bytes, bytes]] = []
        self._header_name = self._header_value = b""
        self._name = ""
        self._value = bytearray()
        self._file: UploadedFile | None = None
        self._unwritten: list[tuple[UploadedFile, bytes]] = []
        self._complete = False

    def parser(self, boundary: bytes) -> MultipartParser:
        return MultipartParser(
            boundary,
            {
                "on_part_begin": self._on_part_begin,
                "on_header_field": self._on_header_field,
                "on_header_value": self._on_header_value,
                "on_header_end": self._on_header_end,
                "on_headers_finished": self._on_headers_finished,
                "on_part_data": self._on_part_data,
                "on_part_end": self._on_part_end,
                "on_end": self._on_end,
            },
        )

    async def store(self) -> None:
        """Write to the files what the last chunk held of them."""
        unwritten, self._unwritten = self._unwritten, []
        for file, data in unwritten:
            await file.append(data)

    def finish(self) -> Form:
        if not self._complete:
            raise FormParserError("it ends before its last boundary")
        return Form(Fields(self._fields), Fields(self._files))

    def _on_part_begin(self) -> None:
        self._part_headers = []
        self._value = bytearray()
        self._file = None

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        self._part_headers.append((self._header_name.lower(), self._header_value))
        self._header_name = self._header_value = b""

    def _on_headers_finished(self) -> None:
        headers = Headers(self._part_headers)
        kind, options = parse_options_header(headers.get("content-disposition"))
        if kind != b"form-data" or b"name" not in options:
            raise FormParserError("a part has no Content-Disposition: form-data with a name")
        self._name = options[b"name"].decode("utf-8", "replace")
        if b"filename" in options:
            if len(self._files) >= MAX_FILES:
                raise HTTPError(413, f"the form has more than {MAX_FILES} files")
            filename = options[b"filename"].decode("utf-8", "replace")
            self._file = UploadedFile(filename, headers.get("content-type", "application/octet-stream"))
            self._files.add(self._name, self._file)
        elif len(self._fields) >= MAX_FIELDS:
            raise HTTPError(413, f"the form has more than {MAX_FIELDS} fields")

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            self._unwritten.append((self._file, data[start:end]))
            return
        # Fields stay in memory, however large an upload the route allows.
        self._field_bytes += end - start
        if self._field_bytes > self._field_limit:
            raise HTTPError(413, f"the form's fields are larger than {self._field_limit} bytes")
        self._value += data[start:end]

    def _on_part_end(self) -> None:
        if self._file is None:
            self._fields.add(self._name, self._value.decode("utf-8", "replace"))

    def _on_end(self) -> None:
        self._complete = True
