"""Multipart forms (RFC 7578): parsed by python-multipart, within limits; a malformed one is a 400."""

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

_IN_DATA = MultipartState.PART_DATA
_IN_HEADER_VALUE = (MultipartState.HEADER_VALUE_START, MultipartState.HEADER_VALUE)
# A folded line's end, a head's end, or a line end that the next chunk may complete to one of them.
_find_line_end = re.compile(rb"\r\n(?:[ \t]|\r\n|\Z)|\r\Z").search
# What no field's value holds (RFC 9110, section 5.5).
_find_control = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]").search
# What browsers send. parse_options_header reads anything else, at a multiple of the time.
_match_disposition = re.compile(rb'form-data; name="([^"\\]*)"(?:; filename="([^"\\]*)")?').fullmatch

# python-multipart logs a warning for each malformed body, which logging prints to stderr unless some handler is set up.
logging.getLogger("python_multipart").addHandler(logging.NullHandler())


def parse_content_type(content_type: str) -> tuple[bytes, bytes | None]:
    """Return the media type in lower case, and its boundary if it has one."""
    kind, options = parse_options_header(content_type)
    return kind, options.get(b"boundary")


async def read_multipart(chunks: AsyncIterator[bytes], boundary: bytes, field_limit: int) -> Form:
    """Return the form that *chunks* hold; HTTPError 400 where it is malformed, 413 beyond a limit."""
    reader = _Multipart(field_limit)
    try:
        # The reader does not keep its parser, which calls it back: in a circle, the files would outlive the request.
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
    """One multipart/form-data body (RFC 7578), put together from what the parser calls back."""

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
        self._complete = False

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
        """Write to the files what the last chunk held of them."""
        unwritten, self._unwritten = self._unwritten, []
        for file, pieces in unwritten:
            # At once, because each write may take a thread.
            await file.append(b"".join(pieces))

    def finish(self) -> Form:
        if not self._complete:
            raise FormParserError("it ends before its last boundary")
        # A browser sends a file input that was left empty as a file with neither a name nor content.
        files = MultiDict((name, file) for name, file in self._files if file.filename or file.size)
        return Form(Fields(self._fields), Fields(files))

    def grow_head(self, size: int) -> None:
        """Count *size* more bytes of a part's header fields."""
        self._head_bytes += size
        if self._head_bytes > _MAX_PART_HEAD:
            raise HTTPError(413, f"the header fields of a part of the form are larger than {_MAX_PART_HEAD} bytes")

    def _grow_fields(self, size: int) -> None:
        # Fields stay in memory, however large an upload the route allows.
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
        # The line's own octets: a colon, a space and its end.
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
        self._complete = True


class _Parser:
    """python-multipart's parser, given what it can't read by itself: a preamble, and folded header fields.

    It relies on the parser's `state`, and on `index`, which is 0 outside a delimiter.
    """

    def __init__(self, boundary: bytes, reader: _Multipart) -> None:
        self._reader = reader
        self._delimiter = b"\r\n--" + boundary
        # Without a preamble, no line end comes before the first boundary.
        self._held = b"\r\n"
        # The reader's own limits answer 413.
        self._parser = MultipartParser(boundary, reader.callbacks(), max_header_count=sys.maxsize, max_header_size=sys.maxsize)
        # The parser drops a preamble (RFC 2046, section 5.1.1) if it takes it for data, because no part has begun.
        self._parser.state = _IN_DATA

    def write(self, chunk: bytes) -> None:
        """Parse *chunk* without the line ends that fold header fields (RFC 5322, section 2.2.3)."""
        parser = self._parser
        data, self._held = self._held + chunk, b""
        written = seen = 0
        # Only a guess: it saves the search of a part's data for line ends.
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
                # Its second half may begin a delimiter, if this is data after all.
                seen = line_end.end() - 2
                in_data = True
                continue
            parser.write(data[written : line_end.start()])
            written, seen = line_end.span()
            # Only the parser knows whether it is in a header field.
            if parser.state in _IN_HEADER_VALUE:
                if seen == len(data):
                    # The next chunk tells whether the field goes on.
                    self._held = data[written:]
                    return
                self._reader.grow_head(2)
                written += 2
            in_data = parser.state == _IN_DATA
        parser.write(data[written:])


def _parse_disposition(disposition: bytes) -> tuple[str, str | None]:
    """Return the name and the filename in a part's Content-Disposition, None for a field; FormParserError where it is malformed."""
    if plain := _match_disposition(disposition):
        name, filename = plain.groups()
    else:
        kind, options = parse_options_header(disposition)
        name, filename = options.get(b"name"), options.get(b"filename")
        if kind != b"form-data" or name is None:
            raise FormParserError("a part has no Content-Disposition: form-data with a name")
        # parse_options_header leaves out parameters with an asterisk in their names. NUL isn't in any header field.
        if filename is None and b"*" in disposition:
            _, options = parse_options_header(disposition.replace(b"*", b"\0"))
            if any(option.partition(b"\0")[0].rstrip() == b"filename" for option in options):
                raise FormParserError("a part has a filename* without a filename (RFC 7578, section 4.2)")
    return _decode_name(name), None if filename is None else _decode_name(filename)


def _decode_name(octets: bytes) -> str:
    """Return a name as it was before the browser percent-encoded quotes, CR and LF, and nothing else.

    See "multipart/form-data encoding algorithm" in the HTML standard.
    """
    name = octets.decode("utf-8", "replace")
    return name.replace("%22", '"').replace("%0D", "\r").replace("%0A", "\n") if "%" in name else name


def _find_encoding(content_type: bytes) -> str:
    """Return what to decode a field of that Content-Type with: clients other than browsers may send ISO-8859-1."""
    charset = parse_options_header(content_type)[1].get(b"charset", b"")
    return "latin-1" if charset.lower() == b"iso-8859-1" else "utf-8"
