"""EvictionPolicy: whether a full Redis evicts sessions, and the owners' sets with them."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import Any

logger = logging.getLogger("gaman")


class EvictionPolicy:
    """The maxmemory-policy by which the servers at *hosts* evict keys, as far as the driver's user may read it."""

    def __init__(self, hosts: str) -> None:
        self._hosts = hosts
        self._name = ""
        """Empty if no server is known to evict keys."""

    def learn(self, memories: Iterable[Mapping[str, Any]]) -> None:
        """Note the policy in *memories*, the answers of all servers to INFO memory, and warn of one that is new."""
        # A server without a limit never evicts.
        names = {memory["maxmemory_policy"] for memory in memories if memory["maxmemory"]} - {"noeviction"}
        known, self._name = self._name, next(filter(_evicts_indexes, names), "") or next(iter(names), "")
        if self._name not in ("", known):
            fails = "; list(), end_all() and max_sessions_per_owner fail, because it also evicts the owners' indexes"
            logger.warning(
                "the redis at %s has maxmemory-policy %s: it logs visitors out when its memory is full%s. Set it to noeviction",
                self._hosts,
                self._name,
                fails if _evicts_indexes(self._name) else "",
                extra={"driver": "redis"},
            )

    def doubt(self, loss: str = "may have evicted the owner's index") -> str:
        """Return the *loss* of a key without a TTL, if the policy allows it, and the fix; otherwise an empty text."""
        return f"maxmemory-policy {self._name} {loss}; set maxmemory-policy noeviction" if _evicts_indexes(self._name) else ""


def _evicts_indexes(policy: str) -> bool:
    # volatile-* evicts only keys with a TTL.
    return policy.startswith("allkeys-")
