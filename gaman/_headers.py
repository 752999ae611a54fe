"""Header fields (RFC 9110, section 5): pairs of bytes in ASGI, read and written here as strings."""

import re
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from functools import lru_cache

from gaman.errors import HeaderError

RawHeaders = list[tuple[bytes, bytes]]

MAX_FIELDS = 256
"""How many fields a request may have. A request with more gets 431 (RFC 6585, section 5)."""

_token = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+").fullmatch
_forbidden = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]").search


# Saves 0.4 microseconds a field, because responses repeat few names.
@lru_cache(maxsize=1024)
def encode_name(name: str) -> bytes:
    """Return *name* in lower case; HeaderError unless it is a token (RFC 9110, section 5.6.2), and for transfer-encoding."""
    if not isinstance(name, str):
        raise HeaderError(f"a header's name is a str, not {name!r}; write {as_text(name)!r}")
    if _token(name) is None:
        raise HeaderError(f"{name!r} is not a header name: RFC 9110 allows letters, digits and !#$%&'*+-.^_`|~")
    if (lower := name.lower()) == "transfer-encoding":
        raise HeaderError("only the server sets transfer-encoding, because it frames the body; remove it")
    return lower.encode("ascii")


def encode_value(value: str) -> bytes:
    """Return *value* as octets; HeaderError if it has a control character, such as CR, LF or NUL."""
    if not isinstance(value, str):
        raise HeaderError(f"a header's value is a str, not {value!r}; write {as_text(value)!r}")
    # isprintable() decides about nearly every value in half the time of the pattern, which allows a tab.
    if not value.isprintable() and _forbidden(value) is not None:
        raise HeaderError(f"the header value {value!r} holds a control character (CR, LF, NUL, ...); remove it")
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError as cause:
        raise HeaderError(f"the header value {value!r} does not fit into ISO-8859-1; percent-encode it") from cause


def as_text(value: object) -> str:
    """Return the str that an error message proposes instead of *value*."""
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


class Headers(Mapping[str, str]):
    """The fields of a request by case-insensitive name. `[name]` is the first field of that name, or raises KeyError."""

    __slots__ = ("raw",)

    def __init__(self, raw: Iterable[tuple[bytes, bytes]] = ()) -> None:
        self.raw: RawHeaders = raw if isinstance(raw, list) else list(raw)

    def getall(self, name: str) -> list[str]:
        """Return every value of *name*, in order; an empty list without one."""
        key = name.lower().encode("latin-1", "replace")
        return [value.decode("latin-1") for field, value in self.raw if field == key]

    def __getitem__(self, name: str) -> str:
        key = name.lower().encode("latin-1", "replace")
        for field, value in self.raw:
            if field == key:
                return value.decode("latin-1")
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys(field.decode("latin-1") for field, _ in self.raw))

    def __len__(self) -> int:
        return len({field for field, _ in self.raw})

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.raw!r})"


class MutableHeaders(Headers, MutableMapping[str, str]):
    """The fields of a response. Setting one raises HeaderError if it could inject another field."""

    __slots__ = ()

    def add(self, name: str, value: str) -> None:
        """Append a field, after those of the same name."""
        self.raw.append((encode_name(name), encode_value(value)))

    def __setitem__(self, name: str, value: str) -> None:
        pair = (encode_name(name), encode_value(value))
        self.raw[:] = [field for field in self.raw if field[0] != pair[0]]
        self.raw.append(pair)

    def __delitem__(self, name: str) -> None:
        key = encode_name(name)
        others = [field for field in self.raw if field[0] != key]
        if len(others) == len(self.raw):
            raise KeyError(name)
        self.raw[:] = others
