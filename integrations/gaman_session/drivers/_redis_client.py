"""connect(): redis-py's client for an address, and the watch on its master."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.cluster import ClusterNode
from redis.asyncio.connection import SSLConnection, parse_url
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.backoff import NoBackoff

from gaman.errors import ConfigError
from gaman_session.drivers._redis_address import Address
from gaman_session.drivers._redis_master import SentinelWatch, ServerWatch, Watch, greet


def connect(address: Address, *, pool_size: int, step_timeout: float) -> tuple[Any, Watch]:
    """Return a client, and the watch on its master. Both connect later, and wait *step_timeout* seconds for each step.

    ConfigError: an option of TLS can't work, such as a file that isn't there.
    """
    is_single = not address.kind
    settings: dict[str, Any] = {
        # Without Sentinels or a Cluster, Calls times each round trip once; redis-py would time each reply.
        "socket_timeout": None if is_single else step_timeout,
        "socket_connect_timeout": step_timeout,
        "max_connections": pool_size,
        # Only the driver knows which commands it may send twice.
        "retry": Retry(NoBackoff(), 0),
    }
    if not address.is_socket:
        settings["socket_keepalive"] = True
    options: list[dict[str, Any]] = [dict(parse_url(url)) for url in address.urls]
    _check_tls(options[0])
    if is_single:
        client: Any = Redis
        settings["redis_connect_func"] = greet
        watching = client.from_url(address.urls[0], **settings | {"socket_timeout": step_timeout, "max_connections": 1})
        return client.from_url(address.urls[0], **settings), ServerWatch(address.hosts, watching)
    nodes = [(each.pop("host", "localhost"), each.pop("port", 6379)) for each in options]
    settings |= options[0]
    if settings.pop("connection_class", None) is not None:
        settings["ssl"] = True
    if address.kind == "cluster":
        return RedisCluster(startup_nodes=[ClusterNode(host, port) for host, port in nodes], **settings), Watch()
    # The Sentinels have passwords of their own.
    theirs = {name.removeprefix("sentinel_"): settings.pop(name) for name in [*settings] if name.startswith("sentinel_")}
    theirs |= {name: value for name, value in settings.items() if name.startswith(("socket_", "ssl", "retry"))}
    make: Any = Redis
    watch = SentinelWatch(address.master, [make(host=host, port=port, **theirs) for host, port in nodes])
    pool: Any = SentinelConnectionPool
    return make.from_pool(pool(address.master, watch, redis_connect_func=watch.greet, **settings)), watch


def _check_tls(options: Mapping[str, Any]) -> None:
    if options.get("connection_class") is SSLConnection:
        try:
            connection: Any = SSLConnection(**{name: value for name, value in options.items() if name.startswith("ssl_")})
            connection.ssl_context.get()
        except (OSError, ValueError) as cause:
            raise ConfigError(f"the redis driver can't use the ssl_ options in its url: {cause}") from cause
