"""Failures of a Redis server: those that may pass, those that leave no doubt about a write, and their words in logs."""

from __future__ import annotations

import re
from typing import Any, Final

from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    MasterDownError,
    ReadOnlyError,
    RedisClusterException,
    RedisError,
    ResponseError,
    SlotNotCoveredError,
    TryAgainError,
)
from redis.exceptions import TimeoutError as RedisTimeoutError


class ElsewhereError(RedisError):
    """The slot of a call went to another server while the call waited."""


class Unconfirmed(RedisError):
    """Too few replicas have confirmed a write."""

    has_changed = False
    """Whether the write has changed the session, as opposed to a conflict."""
    is_change = False
    """Whether that is the whole change of the driver's method."""


class CallError(Exception):
    """A call to *server* failed, with its last *failure*. None: the time limit came before the first."""

    def __init__(self, server: str, failure: Exception | None) -> None:
        super().__init__(server)
        self.server = server
        self.failure = failure


FAILURES = (RedisError, RedisClusterException, OSError, TimeoutError)
CONNECTION_FAILURES = (ConnectionError, RedisTimeoutError, RedisClusterException, OSError)
PAUSE: Final = 0.4
"""Seconds before a further attempt, while another server may take over."""
ENDING_ELSEWHERE: Final = "ENDING elsewhere"
"""The beginning of a load's error if the key of the ending may be on the server to which the slot moves."""
DEMOTED = (MasterDownError, ReadOnlyError)
WITHOUT_EFFECT = (AskError, BusyLoadingError, ClusterDownError, ReadOnlyError, SlotNotCoveredError, TryAgainError, ElsewhereError)
"""After these, a write has certainly not happened."""
_PASSING = (ConnectionError, RedisTimeoutError, ClusterDownError, ReadOnlyError, TryAgainError, ElsewhereError)
# A server's error about an unknown command repeats its arguments, which may be ids, values or a password.
_ARGUMENTS: Final = re.compile(", with args beginning with: .*", re.DOTALL)


def may_pass(error: BaseException | None) -> bool:
    """Return whether another attempt may succeed, when the server is back or another one has taken over."""
    if isinstance(error, Unconfirmed):
        return may_pass(error.__cause__)
    if isinstance(error, RedisError):
        return isinstance(error, _PASSING) and not isinstance(error, AuthenticationError)
    # redis-py itself may fail when a server is away, for example with an AttributeError.
    return isinstance(error, Exception)


def is_ending_elsewhere(error: Exception) -> bool:
    """Return whether a call could not read the ending, because its key may be on the server to which the slot moves."""
    text = str(error) if isinstance(error, ResponseError) else ""
    return text.startswith(ENDING_ELSEWHERE) or (text.startswith("ENDING ") and "non local key" in text)


def without_values(result: Any, server: str, seconds: float) -> Any:
    """Return *result*. An error is stripped of values, and a timeout names its *server* and how many *seconds* it took."""
    if isinstance(result, (RedisTimeoutError, TimeoutError)):
        error = RedisTimeoutError(no_answer(server, seconds))
        error.__cause__ = result
        return error
    if isinstance(result, ResponseError):
        result.args = tuple(_ARGUMENTS.sub("", str(each)) for each in result.args)
    return result


def no_answer(server: str, seconds: float) -> str:
    """Return the words for a timeout."""
    return f"{server} gave no answer in {seconds:.1f} s"


def reason(error: Exception) -> str:
    """Return the reason for logs: the server's own words, or those for the connection's failure; never a value."""
    chain, inner = [error], error.__cause__ or error.__context__
    # redis-py wraps a ReadOnlyError without naming it as the cause.
    if isinstance(inner, (RedisError, RedisClusterException)) and (error.__cause__ or isinstance(inner, ReadOnlyError)):
        while isinstance(inner.__cause__, RedisError):
            inner = inner.__cause__
        chain.append(inner)
    return ": ".join(dict.fromkeys(map(_words, chain)))


def _words(error: Exception) -> str:
    if not isinstance(error, FAILURES):
        return type(error).__name__
    code = getattr(error, "status_code", None)
    return _ARGUMENTS.sub("", f"{code} {error}" if code else str(error)) or type(error).__name__
