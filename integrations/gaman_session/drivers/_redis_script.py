"""The script `redis.lua` and its calls: how they are encoded as commands, and how results are decoded, without any I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha1
from importlib.resources import files
from itertools import islice
from typing import Any, Final, cast

from msgspec import Struct
from msgspec.msgpack import Encoder

from gaman_session._driver import LARGE, MAX_SKEW, TOMBSTONE, YEAR_10000

_pack = Encoder().encode

READS: Final = frozenset({"load", "look", "owned", "count", "room", "time"})
"""Operations that change nothing."""
# Operations that make the whole change of a driver's method, and results that say that nothing was changed.
_CHANGES: Final = ("create", "apply", "swap", "rename", "set_owner")
_UNCHANGED: Final = (b"ABSENT", b"CONFLICT", b"ENDED", b"REVOKED", b"TOO_LARGE")

_TEXT = (
    f"local TOMBSTONE, MAX_SKEW, LARGE, YEAR_10000 = {TOMBSTONE}, {MAX_SKEW}, {LARGE}, {YEAR_10000}\n"
    + files("gaman_session.drivers").joinpath("redis.lua").read_text()
)
BY_TEXT: Final = ("EVAL", _TEXT)
"""The beginning of a command that has the whole script, which the server keeps."""
BY_HASH: Final = ("EVALSHA", sha1(_TEXT.encode(), usedforsecurity=False).hexdigest())
"""The same for a server that has the script."""


class Call(Struct):
    """An operation of the script, with its keys. Values are apart, because a script's MessagePack knows no bytes."""

    operation: str
    keys: Sequence[str]
    values: Sequence[bytes] = ()
    arguments: Sequence[Any] = ()
    slot: int = -1
    """The slot of the first key, or -1 until a Cluster needs it."""
    is_asking: bool = False
    """Whether it is sent after ASKING, to the server that is importing its slot."""


def encode(calls: Sequence[Call], script: Sequence[str], *, is_only: bool) -> Sequence[Any]:
    """Return the command that makes *calls*: one of *script*, or HGETALL for a load that is the *only* call of its round trip."""
    if _is_load(calls):
        # Without arguments, the script loads a session only if it isn't large.
        return ("HGETALL", *calls[0].keys) if is_only or calls[0].arguments else (*script, 1, *calls[0].keys)
    keys = [key for call in calls for key in call.keys]
    operations = [(call.operation, len(call.keys), len(call.values), *call.arguments) for call in calls]
    # One argument is cheaper for redis-py to send than its parts.
    return (*script, len(keys), *keys, _pack(operations), *(value for call in calls for value in call.values))


def decode(calls: Sequence[Call], answer: Any) -> list[Any]:
    """Return for each of *calls* its part of *answer*: a dict, a word, a number, None, or an error."""
    if isinstance(answer, Exception):
        return [answer] * len(calls)
    if _is_load(calls):
        return [_pairs(cast("Iterable[Any]", answer)) if isinstance(answer, list) else answer]
    return [*_parts(answer)]


def changes_session(call: Call, result: Any) -> bool:
    """Return whether *call*, which had this *result*, was the whole change of a driver's method."""
    return call.operation in _CHANGES and result not in _UNCHANGED


def _is_load(calls: Sequence[Call]) -> bool:
    return len(calls) == 1 and calls[0].operation == "load"


def _pairs(parts: Iterable[Any]) -> dict[Any, Any]:
    each = iter(parts)
    return dict(zip(each, each, strict=True))


def _parts(answer: Iterable[Any]) -> Iterator[Any]:
    """Yield the results in *answer*, where each follows the number of its parts."""
    rest = iter(answer)
    for length in rest:
        if length == 1:
            yield next(rest)
        else:
            yield _pairs(islice(rest, length))
