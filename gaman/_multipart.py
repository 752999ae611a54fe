"""Multipart forms (RFC 7578): parsed by python-multipart, within limits."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

import anyio.lowlevel
from multidict import MultiDict
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, MultipartState, parse_options_header

from gaman._fields import Fields
from gaman._forms import MAX_FIELDS, MAX_FILES, SLICE, Form, UploadedFile, fields_too_large
from gaman.errors import HTTPError

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

_MAX_PART_HEAD = 1 << 12
"""In bytes, of a part's header fields."""

_IN_DATA = MultipartState.PART_DATA
_IN_HEADER_VALUE = (MultipartState.HEADER_VALUE_START, MultipartState.HEADER_VALUE)
# The end of a folded line or of a head, or a line end at the end of a chunk, which may become one of them.
_find_line_end = re.compile(rb"\r\n(?:[ \t]|\r\n|\Z)|\r\Z").search
# Not allowed in a field's value (RFC 9110, section 5.5).
_find_control = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search
# The form that browsers send. parse_options_header reads the others, and takes 7 microseconds more.
_match_disposition = re.compile(rb'form-data; name="([^"\\]*)"(?:; filename="([^"\\]*)")?').fullmatch

# python-multipart logs a warning for each malformed body. Without a handler, logging would print it to stderr.
logging.getLogger("python_multipart").addHandler(logging.NullHandler())


async def read_multipart(chunks: AsyncIterator[bytes], content_type: str, field_limit: int) -> Form:
    """Return the form in *chunks*; HTTPError 400 if it is malformed, 413 beyond a limit."""
    boundary = parse_options_header(content_type)[1].get(b"boundary")
    if not boundary:
        raise HTTPError(400, "malformed multipart body: its Content-Type names no boundary")
    reader = _Multipart(field_limit)
    try:
        # The reader doesn't refer to its parser, because in a reference cycle the files would outlive the request.
        parser = _Parser(boundary, reader)
        async for chunk in chunks:
            for start in range(0, len(chunk), SLICE):
                if start:
                    await anyio.lowlevel.checkpoint()
                parser.write(chunk[start : start + SLICE])
            await reader.store()
        return reader.finish()
    except FormParserError as cause:
        raise HTTPError(400, f"malformed multipart body: {cause}") from cause


class _Multipart:
    """Builds a form from the parser's callbacks, within limits."""

    def __init__(self, field_limit: int) -> None:
        self._fields = MultiDict[str]()
        self._files: list[tuple[str, UploadedFile]] = []
        self._field_limit = field_limit
        self._field_bytes = 0
        self._part_headers: dict[bytes, bytes] = {}
        self._head_bytes = 0
        self._header_name = self._header_value = b""
        self._name: str | None = None
        self._encoding = "utf-8"
        self._value = bytearray()
        self._file: UploadedFile | None = None
        self._unwritten: list[tuple[UploadedFile, list[bytes]]] = []
        self._is_complete = False

    def callbacks(self) -> MultipartCallbacks:
        return {
            "on_part_begin": self._on_part_begin,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_part_data": self._on_part_data,
            "on_part_end": self._on_part_end,
            "on_end": self._on_end,
        }

    async def store(self) -> None:
        """Write the data of files in the last chunk."""
        unwritten, self._unwritten = self._unwritten, []
        for file, pieces in unwritten:
            # One write, because each may need a thread.
            await file.append(b"".join(pieces))

    def finish(self) -> Form:
        if not self._is_complete:
            raise FormParserError("it ends before its last boundary")
        # A browser sends an empty file input as a file without a name and content.
        files = MultiDict((name, file) for name, file in self._files if file.filename or file.size)
        return Form(Fields(self._fields), Fields(files))

    def grow_head(self, size: int) -> None:
        """Count *size* more bytes of a part's header fields."""
        self._head_bytes += size
        if self._head_bytes > _MAX_PART_HEAD:
            raise HTTPError(413, f"the header fields of a part of the form are larger than {_MAX_PART_HEAD} bytes")

    def _grow_fields(self, size: int) -> None:
        # Fields stay in memory, so max_size doesn't raise their limit.
        self._field_bytes += size
        if self._field_bytes > self._field_limit:
            raise fields_too_large(self._field_limit)

    def _on_part_begin(self) -> None:
        self._part_headers = {}
        self._head_bytes = 0
        self._value = bytearray()
        self._file = None

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self.grow_head(end - start)
        self._header_name += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self.grow_head(end - start)
        self._header_value += data[start:end]

    def _on_header_end(self) -> None:
        # A colon, a space, CR and LF.
        self.grow_head(4)
        if _find_control(self._header_value):
            raise FormParserError("a header field of a part has a control character in its value")
        self._part_headers.setdefault(self._header_name.lower(), self._header_value.strip(b" \t"))
        self._header_name = self._header_value = b""

    def _on_headers_finished(self) -> None:
        self._name, filename = _parse_disposition(self._part_headers.get(b"content-disposition", b""))
        content_type = self._part_headers.get(b"content-type")
        if filename is not None:
            if len(self._files) >= MAX_FILES:
                raise HTTPError(413, f"the form has more than {MAX_FILES} files")
            self._file = UploadedFile(filename, (content_type or b"application/octet-stream").decode("latin-1"))
            self._files.append((self._name, self._file))
            return
        if len(self._fields) >= MAX_FIELDS:
            raise HTTPError(413, f"the form has more than {MAX_FIELDS} fields")
        self._grow_fields(len(self._name))
        self._encoding = "utf-8" if content_type is None else _find_encoding(content_type)

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._file is not None:
            if not self._unwritten or self._unwritten[-1][0] is not self._file:
                self._unwritten.append((self._file, []))
            self._unwritten[-1][1].append(data[start:end])
            return
        self._grow_fields(end - start)
        self._value += data[start:end]

    def _on_part_end(self) -> None:
        if self._name is not None and self._file is None:
            self._fields.add(self._name, self._value.decode(self._encoding, "replace"))

    def _on_end(self) -> None:
        self._is_complete = True


class _Parser:
    """python-multipart's parser, extended by a preamble and by folded header fields.

    It depends on the parser's `state`, and on `index`, which is 0 outside a delimiter.
    """

    def __init__(self, boundary: bytes, reader: _Multipart) -> None:
        self._reader = reader
        self._delimiter = b"\r\n--" + boundary
        # Without a preamble, the first boundary has no line end before it, so this adds one.
        self._held = b"\r\n"
        # Unlimited here, because the reader's limits raise 413.
        self._parser = MultipartParser(boundary, reader.callbacks(), max_header_count=sys.maxsize, max_header_size=sys.maxsize)
        # In this state the parser skips a preamble (RFC 2046, section 5.1.1), as data without a part.
        self._parser.state = _IN_DATA

    def write(self, chunk: bytes) -> None:
        """Parse *chunk* without the line ends that fold header fields (RFC 5322, section 2.2.3)."""
        parser = self._parser
        data, self._held = self._held + chunk, b""
        written = seen = 0
        # A guess that saves searching a part's data for line ends: a text file is parsed 20 % faster.
        in_data = parser.state == _IN_DATA and not parser.index
        while True:
            if in_data:
                delimiter = data.find(self._delimiter, seen)
                if delimiter < 0:
                    break
                seen = delimiter + len(self._delimiter)
            line_end = _find_line_end(data, seen)
            if line_end is None:
                break
            if line_end[0] == b"\r\n\r\n":
                # If this is data after all, the second line end may begin a delimiter.
                seen = line_end.end() - 2
                in_data = True
                continue
            parser.write(data[written : line_end.start()])
            written, seen = line_end.span()
            # The parser's state tells whether this is in a header field.
            if parser.state in _IN_HEADER_VALUE:
                if seen == len(data):
                    # The next chunk shows whether the field continues.
                    self._held = data[written:]
                    return
                self._reader.grow_head(2)
                written += 2
            in_data = parser.state == _IN_DATA
        parser.write(data[written:])


def _parse_disposition(disposition: bytes) -> tuple[str, str | None]:
    """Return the name and filename of a part's Content-Disposition. A field's filename is None.

    FormParserError is raised if it is malformed.
    """
    if plain := _match_disposition(disposition):
        name, filename = plain.groups()
    else:
        kind, options = parse_options_header(disposition)
        name, filename = options.get(b"name"), options.get(b"filename")
        if kind != b"form-data" or name is None:
            raise FormParserError("a part has no Content-Disposition: form-data with a name")
        # parse_options_header ignores parameters with `*` in their names. NUL replaces it, because no header field has one.
        if filename is None and b"*" in disposition:
            _, options = parse_options_header(disposition.replace(b"*", b"\0"))
            if any(option.partition(b"\0")[0].rstrip() == b"filename" for option in options):
                raise FormParserError("a part has a filename* without a filename (RFC 7578, section 4.2)")
    return _decode_name(name), None if filename is None else _decode_name(filename)


def _decode_name(octets: bytes) -> str:
    """Return a name as it was before the browser percent-encoded its quotes, CR and LF.

    Browsers encode nothing else: see "multipart/form-data encoding algorithm" in the HTML standard.
    """
    name = octets.decode("utf-8", "replace")
    return name.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n") if "%" in name else name


def _find_encoding(content_type: bytes) -> str:
    """Return the encoding of a field with this Content-Type. Clients other than browsers may send ISO-8859-1."""
    charset = parse_options_header(content_type)[1].get(b"charset", b"")
    return "latin-1" if charset.lower() == b"iso-8859-1" else "utf-8"
