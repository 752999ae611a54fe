"""Forms: their fields and uploaded files, and the parser of urlencoded forms."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, NamedTuple, cast
from urllib.parse import parse_qsl

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar
from multidict import MultiDict

from gaman._calls import awaited
from gaman._fields import Fields
from gaman.errors import HTTPError, ResultError

if TYPE_CHECKING:
    from pathlib import Path
    from tempfile import SpooledTemporaryFile

MAX_FIELDS = 1000
MAX_FILES = 100
SLICE = 1 << 16
"""Bytes that are parsed before other requests get a turn: at worst, some tens of milliseconds."""
_MAX_IN_MEMORY = 1 << 18
"""In bytes; a larger file is written to disk."""

# One thread, because more would only compete with the event loop for the interpreter.
_limiter: RunVar[anyio.CapacityLimiter] = RunVar("gaman_form")


class UploadedFile:
    """A file of a form.

    The client chooses *filename* and *content_type*: never use the name as a path, and don't trust the type.
    """

    __slots__ = ("content_type", "file", "filename", "size")

    def __init__(self, filename: str, content_type: str) -> None:
        from tempfile import SpooledTemporaryFile  # noqa: PLC0415 - takes 4 ms to load, and only files need it

        self.filename = filename
        self.content_type = content_type
        self.size = 0
        """In bytes."""
        self.file: SpooledTemporaryFile[bytes] = SpooledTemporaryFile(max_size=_MAX_IN_MEMORY)  # noqa: SIM115
        """The content: in memory up to 256 KiB, above that on disk. It is closed with the last reference to this object."""

    def __del__(self) -> None:
        self.file.close()

    @awaited
    async def read(self) -> bytes:
        """Return the whole content."""

        def read() -> bytes:
            self.file.seek(0)
            return self.file.read()

        return await anyio.to_thread.run_sync(read)

    @awaited
    async def save(self, path: str | Path) -> None:
        """Write the content to *path*, and replace a file there; OSError if that fails."""

        def copy() -> None:
            self.file.seek(0)
            with open(path, "wb") as target:
                while chunk := self.file.read(SLICE):
                    target.write(chunk)

        await anyio.to_thread.run_sync(copy)

    async def append(self, data: bytes) -> None:
        """Add *data* at the end; in a thread if the content is on disk."""
        self.size += len(data)
        if self.size > _MAX_IN_MEMORY:
            await anyio.to_thread.run_sync(self.file.write, data)
        else:
            self.file.write(data)


class Form(NamedTuple):
    """A form's fields and files, by name, in the order in which they were sent. File inputs that were left empty aren't in it."""

    fields: Fields[str]
    files: Fields[UploadedFile]


def _item_of(form: Form, key: Any) -> Any:
    if isinstance(key, str):
        raise ResultError(f"a form isn't a dict: write form.fields[{key!r}], or form.files[{key!r}]")
    return cast("tuple[Any, ...]", super(Form, form)).__getitem__(key)


# Not in the class, because type checkers report a name as the index of a tuple only without it.
if not TYPE_CHECKING:
    Form.__getitem__ = _item_of


async def read_urlencoded(chunks: AsyncIterator[bytes], limit: int) -> Fields[str]:
    """Return the fields of an urlencoded form; HTTPError 413 beyond *limit* bytes."""
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > limit:
            raise fields_too_large(limit)
    if len(body) > SLICE:
        limiter = _limiter.get(None)
        if limiter is None:
            _limiter.set(limiter := anyio.CapacityLimiter(1))
        return await anyio.to_thread.run_sync(parse_pairs, body, "form", 413, limiter=limiter)
    return parse_pairs(body, "form", 413)


def parse_pairs(encoded: bytes | bytearray, what: str, excess: int = 400) -> Fields[str]:
    """Return the pairs of a query or an urlencoded form, decoded as browsers do: octets that aren't UTF-8 become U+FFFD.

    HTTPError with the status *excess* is raised for more than 1,000 pairs.
    """
    try:
        pairs = parse_qsl(encoded.decode("utf-8", "replace"), keep_blank_values=True, max_num_fields=MAX_FIELDS)
    except ValueError as cause:
        raise HTTPError(excess, f"the {what} has more than {MAX_FIELDS} fields") from cause
    return Fields(MultiDict(pairs))


def fields_too_large(limit: int) -> HTTPError:
    return HTTPError(413, f"the form's fields are larger than {limit} bytes")
