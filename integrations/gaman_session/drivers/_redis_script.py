"""The script `redis.lua` and its calls: how they are encoded as commands, and how results are decoded, without any I/O."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from hashlib import sha1
from importlib.resources import files
from itertools import islice
from typing import Any, Final, cast

from msgspec import Struct
from msgspec.msgpack import Encoder
from redis.exceptions import AskError, MovedError, ResponseError

from gaman_session._driver import LARGE, MAX_FLIGHT, MAX_SKEW, TOMBSTONE, YEAR_10000
from gaman_session._rules import MAX_WRITES
from gaman_session.drivers._redis_failures import ENDING_ELSEWHERE

_pack = Encoder().encode

OF_SESSIONS: Final = frozenset({"load", "look", "create", "apply", "swap", "rename", "destroy", "set_owner", "end_one"})
"""Operations whose first key is a session's, which look at the ending as well."""
READS: Final = frozenset({"load", "look", "owned", "count", "room", "time", "ending"})
"""Operations that change nothing."""
ID_LENGTH: Final = 64
"""Characters of a session's id, which its key ends with."""
# Operations that make the whole change of a driver's method, and results that say that nothing was changed.
_CHANGES: Final = ("create", "apply", "swap", "rename", "set_owner")
_UNCHANGED: Final = (b"ABSENT", b"CONFLICT", b"ENDED", b"REVOKED", b"TOO_LARGE")

_TEXT = (
    f"local TOMBSTONE, MAX_SKEW, LARGE = {TOMBSTONE}, {MAX_SKEW}, {LARGE}\n"
    f"local YEAR_10000, MAX_WRITES, MAX_FLIGHT = {YEAR_10000}, {MAX_WRITES}, {MAX_FLIGHT}\n"
    + "".join(files("gaman_session.drivers").joinpath(f"{name}.lua").read_text() for name in ("redis_session", "redis"))
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
    is_one_of_several: bool = False
    """Whether it shares a round trip with others, which are made in the same turn of the event loop."""
    is_asking: bool = False
    """Whether it is sent after ASKING, to the server that is importing its slot."""
    ending: tuple[bytes, bytes] | None = None
    """The result of the operation `ending`, if this call's slot moves, because the server may then lack it."""


def encode(calls: Sequence[Call], script: Sequence[str]) -> Sequence[Any]:
    """Return the command of *script* that makes *calls*."""
    if _is_plain(calls):
        return (*script, 1, *calls[0].keys)
    keys = [key for call in calls for key in call.keys]
    operations = [(_operation(call), len(call.keys), len(call.values), *call.arguments) for call in calls]
    # One argument is cheaper for redis-py to send than its parts.
    return (*script, len(keys), *keys, _pack(operations), *(value for call in calls for value in call.values))


def decode(calls: Sequence[Call], answer: Any) -> list[Any]:
    """Return for each of *calls* its part of *answer*: a dict, a word, a number, None, or an error."""
    if isinstance(answer, Exception):
        return [answer] * len(calls)
    if _is_plain(calls):
        return [_hash(answer)]
    return [*_parts(answer)]


def load_commands(load: Call) -> Sequence[Sequence[str]]:
    """Return the commands of a load that has a round trip to itself, whose answers are for loaded().

    A script would cost a load a quarter more. The two commands aren't atomic together, so their order matters. The ending comes
    first. If an end_everyone() comes in between, the load counts as earlier: an ended session is never written again, so the hash
    is that of the instant before. A session that begins after it has a version above both endings. In the other order, an ended
    session would live again if it were read, and then its ending were lost to FLUSHALL or an eviction.
    """
    [key] = load.keys
    return (("HGETALL", _ending_key(key)), ("HGETALL", key))


def loaded(ending: Any, session: Any) -> Any:
    """Return the result of a load: the hash, a tombstone in place of a session that the ending ended, or an error."""
    if isinstance(ending, AskError) and not isinstance(ending, MovedError):
        return ResponseError(f"{ENDING_ELSEWHERE}: {ending}")
    if isinstance(ending, Exception):
        # Marked like the script's: a session whose own key holds no hash is only absent.
        return ResponseError(f"ENDING {ending}") if "WRONGTYPE" in str(ending) else ending
    found = _hash(session)
    if not ending or isinstance(found, Exception) or b"ended" in found:
        return found
    known = _hash(ending)
    version, deadline = _number(found.get(b"version")), _number(found.get(b"deadline"))
    min_version = _number(known.get(b"min_version")) or 0
    if version is None or deadline is None or version >= min_version:
        return found
    return {b"ended": b"1", b"deadline": repr(min(deadline, float(known[b"at"]) + TOMBSTONE)).encode()}


def changes_session(call: Call, result: Any) -> bool:
    """Return whether *call*, which had this *result*, was the whole change of a driver's method."""
    return call.operation in _CHANGES and result not in _UNCHANGED


def ending_call(key: str) -> Call:
    """Return the call that reads the ending for the session at *key*; its result is a dict of one item."""
    return Call("ending", (_ending_key(key),))


def is_load(calls: Sequence[Call]) -> bool:
    """Return whether this is one load, whose slot doesn't move."""
    return len(calls) == 1 and calls[0].operation == "load" and calls[0].ending is None


def _is_plain(calls: Sequence[Call]) -> bool:
    """Return whether this is one load of a session that isn't known to be large, which the script takes without arguments."""
    return is_load(calls) and not calls[0].arguments


def _ending_key(key: str) -> str:
    """Return the key of the ending for the session at *key*."""
    return f"{key[:-ID_LENGTH]}ending"


def _operation(call: Call) -> str | list[str]:
    return call.operation if call.ending is None else [call.operation, *(each.decode() for each in call.ending)]


def _hash(answer: Any) -> Any:
    """Return a hash as a dict, although it comes as a list from a script or with RESP2."""
    return _pairs(cast("Iterable[Any]", answer)) if isinstance(answer, list) else answer


def _number(digits: bytes | None) -> float | None:
    with suppress(TypeError, ValueError):
        return float(cast("bytes", digits))
    return None


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
