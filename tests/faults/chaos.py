"""A site under load whose store has one fault after the other, drawn by a seeded generator; holds no test.

A server is taken away only when all are running and in step, because a store promises to survive the loss of one. A fault that
takes none away, such as dropped connections, may begin at any time.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from random import Random
from typing import Any, Generic, NamedTuple, TypeVar

import pymongo
import redis
from pymongo.errors import PyMongoError
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.faults.history import Event, History
from tests.faults.hopping import Common, Crew, Processes, read_all
from tests.faults.site_under_load import freeze, kill
from tests.servers import MongoReplicaSet, MongoServer, RedisCluster, RedisSentinels, RedisServer, Server
from tests.serving import until

S = TypeVar("S", bound=Server)

SEED = int(os.environ.get("GAMAN_TEST_CHAOS_SEED", str(Random().randrange(1_000_000))))
SECONDS = float(os.environ.get("GAMAN_TEST_CHAOS_SECONDS", "60"))
TICK = 0.1
PLANNED = "fail over as planned"
SLOTS = 100
"""How many slots move at a time."""
PAUSES = (0.5, 2.0)
"""The shortest and the longest time between two faults, in seconds."""
CALM = 90.0
"""Seconds within which all servers are running and in step again."""
_ONCE = Retry(NoBackoff(), 0)
_ERRORS = (redis.RedisError, PyMongoError, OSError)
DURABLE = ("--appendonly", "yes")
"""Options of a Redis that keeps its data when it is killed: its replicas would otherwise copy an empty master."""


class Fault(NamedTuple):
    """A fault of a store."""

    name: str
    begin: Callable[[Any], Callable[[], object] | None]
    """Begins it on a server, and returns a function that repairs it, or None if it passes by itself."""
    target: str
    """`master` or `replica`, or empty if it takes no server away."""
    seconds: tuple[float, float] = (0, 0)
    """The shortest and the longest duration."""


class Store(ABC, Generic[S]):
    """Servers of one store, and their faults."""

    driver: Mapping[str, Any]
    servers: Sequence[S]

    @abstractmethod
    def masters(self, servers: Sequence[S]) -> list[S]:
        """Return those of *servers* that say that they are masters, or primary; they have to be running."""

    @abstractmethod
    def is_whole(self) -> bool:
        """Return whether all servers are running and in step."""

    @abstractmethod
    def fail_over(self, master: S) -> None:
        """Have another server take over from *master*, as an administrator does."""

    @abstractmethod
    def drop_connections(self, _: object) -> None: ...

    def successors(self, master: S) -> list[S]:
        """Return the servers that may take over from *master*."""
        return [each for each in self.servers if each is not master]

    def faults(self) -> list[Fault]:
        return [
            Fault("kill a master, and start it soon", kill, "master", (0.2, 6)),
            Fault("kill a master, and leave it dead", kill, "master", (14, 16)),
            Fault("freeze a master", freeze, "master", (4, 8)),
            Fault("slow a master down", freeze, "master", (1, 1)),
            Fault("freeze a replica", freeze, "replica", (1, 3)),
            Fault(PLANNED, self.fail_over, "master"),
            Fault("drop connections", self.drop_connections, ""),
        ]


class _Redis(Store[RedisServer]):
    def masters(self, servers: Sequence[RedisServer]) -> list[RedisServer]:
        return [server for server in servers if _role(server)[0] == "master"]

    def drop_connections(self, _: object) -> None:
        self._tell_all("CLIENT", "KILL", "TYPE", "normal")

    def faults(self) -> list[Fault]:
        return [*super().faults(), Fault("forget scripts", self._forget_scripts, "")]

    def _forget_scripts(self, _: object) -> None:
        self._tell_all("SCRIPT", "FLUSH")

    def _tell_all(self, *command: str) -> None:
        for server in self.servers:
            # The test doesn't wait for a server that is away.
            client: Any = redis.Redis(port=server.port, socket_timeout=0.2, retry=_ONCE)
            with suppress(redis.RedisError), client:
                client.execute_command(*command)


class Cluster(_Redis):
    """A Redis Cluster of three masters with a replica each."""

    def __init__(self, cluster: RedisCluster, **options: Any) -> None:
        self.servers = cluster.nodes
        self.driver = {"type": "redis", "url": cluster.url, **options}
        for node in cluster.nodes:
            with node.client() as client:
                client.config_set("cluster-require-full-coverage", "no")

    def is_whole(self) -> bool:
        roles = [_role(server) for server in self.servers]
        masters = [role for role in roles if role[0] == "master"]
        if len(masters) != len(roles) // 2 or not all(_is_in_step(role, 1) for role in roles):
            return False
        return all("cluster_state:ok" in str(server.execute("CLUSTER INFO")) for server in self.servers)

    def successors(self, master: RedisServer) -> list[RedisServer]:
        return [each for each in self.servers if _master_of(each) == master.port]

    def fail_over(self, master: RedisServer) -> None:
        self.successors(master)[0].execute("CLUSTER FAILOVER")

    def faults(self) -> list[Fault]:
        return [*super().faults(), Fault("move slots", self._move_slots, "master")]

    def _move_slots(self, source: RedisServer) -> None:
        """Give some of a master's slots to another, as redis-cli does."""
        target = next(master for master in self.masters(self.servers) if master is not source)
        held = [range(first, last + 1) for first, last, (_, port, *_), *_ in source.execute("CLUSTER SLOTS") if port == source.port]
        with source.client() as here, target.client() as there:
            old, new = (client.execute_command("CLUSTER", "MYID") for client in (here, there))
            for slot in [slot for slots in held for slot in slots][:SLOTS]:
                there.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", old)
                here.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", new)
                while keys := here.execute_command("CLUSTER", "GETKEYSINSLOT", slot, 100):
                    here.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "KEYS", *keys)
                for client in (there, here):
                    client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", new)


class Sentinels(_Redis):
    """A master and its replicas, which Sentinels watch."""

    def __init__(self, sentinels: RedisSentinels, **options: Any) -> None:
        self.servers = [sentinels.master, *sentinels.replicas]
        self.driver = {"type": "redis", "url": sentinels.url, **options}
        self._sentinels = sentinels

    def is_whole(self) -> bool:
        roles = [_role(server) for server in self.servers]
        masters = self.masters(self.servers)
        if len(masters) != 1 or not all(_is_in_step(role, len(roles) - 1) for role in roles):
            return False
        for sentinel in self._sentinels.sentinels:
            with sentinel.client() as client:
                state = client.sentinel_master(self._sentinels.name)
                replicas = client.sentinel_slaves(self._sentinels.name)
            if (state["flags"], state["port"]) != ("master", masters[0].port) or {each["flags"] for each in replicas} != {"slave"}:
                return False
        return True

    def fail_over(self, master: RedisServer) -> None:
        del master
        # Sentinels refuse it shortly after another failover.
        with suppress(redis.ResponseError):
            self._sentinels.sentinels[0].execute("SENTINEL FAILOVER", self._sentinels.name)


class ReplicaSet(Store[MongoServer]):
    """A MongoDB replica set of three."""

    def __init__(self, replicas: MongoReplicaSet, **options: Any) -> None:
        self.servers = replicas.members
        self.driver = {"type": "mongodb", "db_name": "gaman_test", "uri": replicas.uri, **options}

    def masters(self, servers: Sequence[MongoServer]) -> list[MongoServer]:
        return [server for server in servers if self._command(server, "hello")["isWritablePrimary"]]

    def is_whole(self) -> bool:
        members = [self._command(server, "replSetGetStatus")["members"] for server in self.servers]
        return all(sorted(member["stateStr"] for member in seen) == ["PRIMARY", "SECONDARY", "SECONDARY"] for seen in members)

    def fail_over(self, master: MongoServer) -> None:
        # A primary refuses it if no other member has caught up in time.
        with suppress(PyMongoError):
            self._command(master, "replSetStepDown", 3, secondaryCatchUpPeriodSecs=2)

    def drop_connections(self, _: object) -> None:
        for server in self.servers:
            # The test doesn't wait for a server that is away.
            client = pymongo.MongoClient[dict[str, Any]](server.uri, directConnection=True, timeoutMS=200)
            with suppress(PyMongoError), client:
                client.admin.command("dropConnections", 1, hostAndPort=[each.address for each in self.servers])

    @staticmethod
    def _command(server: MongoServer, name: str, value: Any = 1, **options: Any) -> dict[str, Any]:
        with server.client() as client:
            return client.admin.command(name, value, **options)


class Chaos:
    """Begins a fault of a store every few seconds, and in the end waits until the store is whole again."""

    def __init__(self, store: Store[Any], common: Common) -> None:
        self._store = store
        self._common = common
        self._random = Random(common.seed)
        self._faults: list[Fault] = []
        self._repair: Callable[[], object] | None = None
        self._repair_at = 0.0
        self._successors: list[Any] = []
        self._watch_until = 0.0

    def rage(self, seconds: float) -> None:
        """Begin faults for so many seconds. Servers end with the thread that started them, so call it from the main thread."""
        over = time.monotonic() + seconds
        after = time.monotonic() + 2
        while time.monotonic() < over:
            time.sleep(TICK)
            self._watch()
            if self._repair is not None and time.monotonic() >= self._repair_at:
                self._end_fault()
            elif time.monotonic() >= after and not self._successors and self._draw():
                after = time.monotonic() + self._random.uniform(*PAUSES)
        self._end_fault()
        until(self._is_whole, "the store to be whole again", seconds=CALM)
        self._note("all is well")

    def _draw(self) -> bool:
        """Begin the next fault that may begin now, if there is one; each begins once before one is repeated."""
        is_whole = self._repair is None and self._is_whole()
        if not self._faults:
            self._faults = [*self._store.faults(), Fault("kill a process of the site", self._kill_process, "")]
            self._random.shuffle(self._faults)
            # The planned failover is first, because the longer faults may leave no time for it.
            self._faults.sort(key=lambda fault: fault.name != PLANNED)
        fault = next((fault for fault in self._faults if is_whole or not fault.target), None)
        if fault is None:
            return False
        self._faults.remove(fault)
        if not fault.target:
            self._note(fault.name, is_harmless=True)
            fault.begin(None)
            return True
        masters = self._store.masters(self._store.servers)
        replicas = [server for server in self._store.servers if server not in masters]
        server = self._random.choice(masters if fault.target == "master" else replicas)
        successors = self._store.successors(server) if fault.target == "master" else []
        seconds = self._random.uniform(*fault.seconds)
        self._note(f"{fault.name}: {server.port}" + (f", for {seconds:.1f} s" if seconds else ""))
        self._common.is_rough = seconds > 0
        self._repair = fault.begin(server)
        self._repair_at = time.monotonic() + seconds
        self._successors, self._watch_until = successors, self._repair_at + 3
        return True

    def _watch(self) -> None:
        """Note a takeover by another server."""
        if not self._successors:
            return
        with suppress(*_ERRORS):
            for server in self._store.masters(self._successors):
                self._note(f"{server.port} has taken over", is_takeover=True)
                self._successors = []
        if time.monotonic() > self._watch_until:
            self._successors = []

    def _end_fault(self) -> None:
        if self._repair is not None:
            self._note("repaired")
            self._repair()
            self._repair = None
            self._common.is_rough = False

    def _kill_process(self, _: object) -> None:
        self._common.processes.replace(self._random)

    def _is_whole(self) -> bool:
        with suppress(*_ERRORS):
            return self._store.is_whole()
        return False

    def _note(self, what: str, **kind: bool) -> None:
        self._common.history.events.append(Event(time.monotonic(), what, **kind))


def run(store: Store[Any], folder: Path, *, seed: int = SEED, seconds: float = SECONDS) -> History:
    """Have clients use a site for so many seconds while its *store* has faults, and return their history."""
    print(f"GAMAN_TEST_CHAOS_SEED={seed}")
    history = History()
    with Processes(folder, store.driver) as processes:
        history.killed = processes.killed
        common = Common(processes, history, seed)
        with Crew(common):
            Chaos(store, common).rage(seconds)
        read_all(common)
        history.log = processes.logs()
    return history


def _role(server: RedisServer) -> list[Any]:
    found: list[Any] = server.execute("ROLE")
    return found


def _master_of(replica: RedisServer) -> int | None:
    role = _role(replica)
    return int(role[2]) if role[0] == "slave" else None


def _is_in_step(role: list[Any], replicas: int) -> bool:
    """Return whether a master has this number of replicas, or a replica its master."""
    return len(role[2]) == replicas if role[0] == "master" else role[3] == "connected"
