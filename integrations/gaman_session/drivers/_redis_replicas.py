"""Warnings at start-up: a `wait_replicas` that doesn't fit the number of replicas, and Sentinels that the url doesn't name."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from redis.exceptions import RedisClusterException, RedisError

from gaman_session.drivers._redis_master import Answer

logger = logging.getLogger("gaman")


async def warn(client: Any, answer: Answer | None, *, is_cluster: bool, named: int, wait_replicas: int, seconds: float) -> None:
    """Warn of settings that can lose changes or refuse them all, as far as this user may read them within *seconds*.

    *answer* is the Sentinels' latest one, or None without Sentinels; *named* is how many of them the url has.
    """
    warnings: list[str] = []
    if answer is not None and answer.sentinels > named:
        warnings.append(
            f"the url of the redis driver names {named} of {answer.sentinels} Sentinels: one that it doesn't name may replace the "
            "master unnoticed for a second, in which changes are lost. Name them all"
        )
    # A user without the permission gets no warning.
    with suppress(RedisError, RedisClusterException, OSError, TimeoutError):
        async with asyncio.timeout(seconds):
            if wait_replicas:
                replicas = await (_in_cluster(client) if is_cluster else _beside(client, answer))
                covered = {master: await _min_replicas(client, master, is_cluster=is_cluster) for master in replicas}
                warnings += _unfit(replicas, covered, wait_replicas)
    for warning in warnings:
        logger.warning("%s", warning, extra={"driver": "redis"})


async def _in_cluster(client: Any) -> Mapping[str, int]:
    # CLUSTER SLOTS leaves out a replica that hasn't copied its master yet, or is away for a moment.
    nodes = await client.cluster_nodes()
    masters = Counter(node["master_id"] for node in nodes.values())
    return {address: masters[node["node_id"]] for address, node in nodes.items() if node["slots"]}


async def _beside(client: Any, answer: Answer | None) -> Mapping[str, int]:
    if answer is not None:
        # Sentinels count a replica that is away for a moment too.
        return {answer.server: answer.replicas}
    info = await client.info("replication")
    settings = client.get_connection_kwargs()
    where = settings.get("path") or f"{settings.get('host', 'localhost')}:{settings.get('port', 6379)}"
    return {where: info["connected_slaves"]}


async def _min_replicas(client: Any, master: str, *, is_cluster: bool) -> int:
    """Return how many replicas Redis itself wants before it accepts a change, or 0 if this user may not ask."""
    where = {"target_nodes": client.get_node(node_name=master)} if is_cluster else {}
    with suppress(RedisError):
        settings = await client.config_get("min-replicas-to-write", **where)
        return int(settings.get("min-replicas-to-write", 0))
    return 0


def _unfit(replicas: Mapping[str, int], covered: Mapping[str, int], wait_replicas: int) -> Iterator[str]:
    """Yield a warning for each number of replicas that isn't *wait_replicas*, with the masters that have this number.

    *covered* is how many replicas each master itself wants before it accepts a change.
    """
    for number in sorted({*replicas.values()}):
        masters = [master for master, each in replicas.items() if each == number]
        if number < wait_replicas:
            yield (
                f"wait_replicas={wait_replicas}, and Redis has {number} replica{'' if number == 1 else 's'} of "
                f"{', '.join(masters)}: each change there is a 503 until it has more. Add replicas, or set a lower wait_replicas"
            )
        elif open_to_loss := [master for master in masters if covered[master] < number > wait_replicas]:
            yield (
                f"wait_replicas={wait_replicas}, and Redis has {number} replicas of {', '.join(open_to_loss)}: a change that only "
                f"{wait_replicas} of them got is lost, a logout too, if another one becomes the master. Set "
                f"wait_replicas={number}, or min-replicas-to-write {number} in Redis"
            )
