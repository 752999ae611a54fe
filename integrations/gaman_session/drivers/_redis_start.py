"""The start of the Redis driver: each command that it needs is tried once, and a refusal becomes an error with the fix."""

from __future__ import annotations

import asyncio
import re
from time import monotonic
from typing import Any, Final

from redis.exceptions import (
    AuthenticationError,
    ConnectionError,
    MovedError,
    NoPermissionError,
    RedisClusterException,
)
from redis.exceptions import TimeoutError as RedisTimeoutError

from gaman.errors import ConfigError
from gaman_session._errors import SessionStoreError
from gaman_session.drivers._redis_address import Address
from gaman_session.drivers._redis_calls import Calls
from gaman_session.drivers._redis_failures import CONNECTION_FAILURES, DEMOTED, FAILURES, PAUSE, Unconfirmed
from gaman_session.drivers._redis_master import NotMasterError
from gaman_session.drivers._redis_script import Call

_DATABASE: Final = re.compile("DB index|SELECT is not allowed|is not an integer|out of range")
_FORBIDDEN: Final = re.compile("no permission|can't (run|access)|unknown", re.IGNORECASE)


async def try_commands(calls: Calls, address: Address, *, prefix: str, key: str, is_watched: bool, seconds: float) -> None:
    """Try the commands that the driver needs on *key*, and wait up to *seconds* for a failover to pass.

    *is_watched* is whether a Sentinel has answered. ConfigError: the url, or the permissions of its user, have to be fixed.
    SessionStoreError: the server can't be reached.
    """
    # The second teaches the server the script, so that the check waits for replicas only once.
    attempts = [Call(operation, (key,)) for operation in ("load", "look", "check")]
    until, answers = monotonic() + seconds, list[Any]()
    # A failover may be in progress. If neither a Sentinel nor a Cluster answers, another attempt would fail as well.
    passing: tuple[type[Exception], ...] = (*DEMOTED, NotMasterError)
    if address.kind == "cluster":
        passing = (*DEMOTED, MovedError, ConnectionError, RedisTimeoutError)
    elif is_watched:
        passing = CONNECTION_FAILURES
    while True:
        try:
            async with asyncio.timeout(until - monotonic()):
                answers = [await calls.attempt(call) for call in attempts]
        except TimeoutError as cause:
            # The answers to an earlier attempt say more.
            answers = answers or [cause]
        may_pass = any(isinstance(answer, passing) and not isinstance(answer, AuthenticationError) for answer in answers)
        if not may_pass or monotonic() + PAUSE > until:
            break
        await asyncio.sleep(PAUSE)
    # The check, which comes last, names the command that a user may not run.
    for answer in reversed(answers):
        if isinstance(answer, Exception) and (error := _explain(answer, address, calls.server(), prefix)) is not None:
            raise error from answer


def _explain(cause: BaseException, address: Address, hosts: str, prefix: str) -> Exception | None:
    """Return the error with which the start ends because of *cause*, or None if that may pass by itself."""
    is_cluster = address.kind == "cluster"
    while isinstance(cause, RedisClusterException) and cause.__cause__ is not None:
        cause = cause.__cause__
    if isinstance(cause, Unconfirmed) and isinstance(cause.__cause__, NoPermissionError):
        cause = cause.__cause__
    text = str(cause)
    if isinstance(cause, AuthenticationError):
        return ConfigError(f"the redis driver can't log in at {hosts}: {text}; check the user and the password in its url")
    if isinstance(cause, MovedError) and not is_cluster:
        return ConfigError(f"the redis driver found a Cluster at {hosts}; write redis+cluster:// in its url")
    if isinstance(cause, (*DEMOTED, NotMasterError)) and not is_cluster:
        fix = "see that its Sentinels have a master" if address.kind else "write the master's address in its url"
        return ConfigError(f"the redis driver found a replica at {hosts}, which takes no changes; {fix}")
    # On a Unix socket, redis-py reports this as a failed connection.
    if _DATABASE.search(text):
        return ConfigError(f"the redis driver can't use the database in its url at {hosts}: {text}; choose one that is there")
    if isinstance(cause, (*CONNECTION_FAILURES, TimeoutError)) or not isinstance(cause, FAILURES):
        return SessionStoreError("redis", f"be reached at {hosts}; see that it runs there, or change the driver's url")
    if "No such master" in text:
        return ConfigError(f"the Sentinels at {hosts} watch no master {address.master!r}; write its name in the url")
    if "cluster support disabled" in text:
        return ConfigError(f"the redis driver found no Cluster at {hosts}; write redis:// in its url")
    if "SENTINEL" in text:
        return ConfigError(f"the redis driver found no Sentinel at {hosts}; write their hosts, or redis:// in its url")
    if _FORBIDDEN.search(text):
        return ConfigError(f"the redis driver lacks a permission at {hosts}: {text}; let its user run it, on the keys {prefix}*")
    # A full memory, or too few replicas.
    return None
