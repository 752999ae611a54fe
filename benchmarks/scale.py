"""The formulas of the guide's chapter on scale, and what measured runs say of them: python -m benchmarks.scale [RUN].

Without a run it prints the chapter's tables, which are made of these formulas. With the folder of a run that measured `growth`, it
compares each measured point with its formula, and its exit status is 1 if one is further off than TOLERANCE. The formulas are for
10,000 sessions or more.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final, NamedTuple

from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from benchmarks.questions.growth import PER_OWNER
from benchmarks.report.results import Results, load

MILLION: Final = 1_000_000
ON_PAPER: Final = (100 * MILLION, 1000 * MILLION)
POINTER: Final = 8
GB: Final = 10**9


TOLERANCE: Final = 0.1
"""How far a measured store may be from its formula."""
SMALL: Final = 100_000
BLOCK: Final = 4096
"""The least that a file or a folder takes on a disk."""
FULL: Final = 0.65
"""The part of a large folder's blocks that entries fill."""


@dataclass(frozen=True)
class Folders:
    """Folders of the file driver that share the entries of all sessions: 256 for ids, and one for each minute of a day."""

    number: int
    entry: float
    """Bytes of a session's entry."""
    has_owners: bool = False
    """Whether they are only there if sessions have owners."""

    def bytes_for(self, sessions: float) -> float:
        return BLOCK * self.number * max(1, sessions / self.number * self.entry / (FULL * BLOCK))


@dataclass(frozen=True)
class Store:
    """What sessions take in a store, in bytes."""

    title: str
    where: str
    each: float
    """A session without an owner."""
    owner: float
    """What an owner adds to each session, if an owner has PER_OWNER sessions."""
    fixed: float = 0
    """What the store takes however many sessions it has; with sql, its write-ahead log."""
    tables: int = 0
    """Redis's hash tables that have a pointer for each session. Each table grows in powers of two."""
    folders: tuple[Folders, ...] = ()
    while_small: float = 1
    """The part of it that a store of at most SMALL sessions takes."""


STORES: Final = {
    "memory": Store("`memory`", "memory of the process", 762, 320),
    "file": Store(
        "`file`",
        "disk",
        BLOCK,
        BLOCK / PER_OWNER,
        folders=(Folders(256, 72), Folders(24 * 61, 88), Folders(256, 72 / PER_OWNER, has_owners=True)),
    ),
    "sql": Store("`sql`", "disk", 487, 334, fixed=5.5e6),
    "redis": Store("`redis`", "memory of one Redis", 1_152, 621, tables=3),
    "redis, compact": Store("`redis`, compact", "memory of one Redis", 566, 335, tables=3),
    "redis cluster": Store("`redis`, in a Cluster", "memory of all masters", 1_160, 675, tables=2),
    "redis cluster, compact": Store("`redis`, in a Cluster, compact", "memory of all masters", 540, 425, tables=2),
    # Pages are full until the cache, here of 256 MB, no longer holds everything: then they are split at random ids.
    "mongodb": Store("`mongodb`", "disk", 360, 213, while_small=0.78),
}
"""The formulas' constants, from a measured run of `growth`. A session has one value of 73 bytes."""


def bytes_of(kind: str, sessions: float, *, with_owners: bool = False, servers: int = 1) -> float:
    """Return the bytes that *sessions* take in all, evenly spread over *servers*."""
    store = STORES[kind]
    here = sessions / servers
    keys = here + (here / PER_OWNER if with_owners else 0)
    tables = POINTER * (_table_size(keys) + (store.tables - 1) * _table_size(here)) if store.tables else 0
    folders = sum(each.bytes_for(here) for each in store.folders if with_owners or not each.has_owners)
    density = store.while_small if here <= SMALL else 1
    return servers * (here * density * (store.each + (store.owner if with_owners else 0)) + store.fixed + folders + tables)


def _table_size(keys: float) -> int:
    """Return the buckets of a hash table of Redis: a power of two that isn't less than the keys."""
    return 1 << max(2, math.ceil(math.log2(max(keys, 1))))


# Redis Cluster

TAGS: Final = tuple(f"{number:03x}" for number in range(16**3))
"""The hash tags of the driver's keys: three digits of the id, so each tag has the same share of the sessions."""
MACHINE: Final = 32 * GB
"""Memory of a machine that runs one Redis."""
USABLE: Final = 0.6
"""The part of a server's memory that sessions may take; the rest is for copies while Redis writes its file, buffers, and growth."""


@cache
def _slots() -> tuple[int, ...]:
    return tuple(key_slot(f"gaman:{{{tag}}}".encode()) for tag in TAGS)


@cache
def fullest(masters: int) -> float:
    """Return how many times the average number of sessions the fullest master has, if each has the same number of slots."""
    ends = [REDIS_CLUSTER_HASH_SLOTS * number // masters for number in range(1, masters)]
    tags = Counter(bisect_right(ends, slot) for slot in _slots())
    return max(tags.values()) * masters / len(TAGS)


def masters(kind: str, sessions: float, *, with_owners: bool = True) -> int:
    """Return the masters of a Cluster whose fullest one has room; the sessions take the bytes of *kind*."""
    count = 3
    while bytes_of(kind, sessions * fullest(count), with_owners=with_owners, servers=count) > count * USABLE * MACHINE:
        count += 1
    return count


# MongoDB

INDEXES: Final = 0.47
"""The part of the bytes that are indexes."""
MONGODB_MACHINE: Final = 64 * GB
MONGODB_DISK: Final = 1000 * GB


def shards(sessions: float, *, with_owners: bool = True) -> int:
    """Return the replica sets whose caches, half of the memory, hold the indexes, and whose disks hold everything."""
    size = bytes_of("mongodb", sessions, with_owners=with_owners)
    cache_size = MONGODB_MACHINE / 2
    return max(math.ceil(size * INDEXES / (USABLE * cache_size)), math.ceil(size / (USABLE * MONGODB_DISK)))


# Round trips

NETWORK: Final = ("redis", "redis cluster", "mongodb")
ROUND_TRIPS: Final[dict[str, tuple[int, ...]]] = {
    "read": (0, 0, 1, 1, 1),
    "write": (1, 2, 1, 1, 1),
    "update()": (1, 2, 2, 2, 2),
    "login of a new visitor": (1, 4, 1, 2, 1),
    "login in a session": (1, 6, 2, 4, 3),
    "logout": (1, 2, 1, 1, 1),
    "list() of two sessions": (0, 0, 3, 2, 1),
    "end_all() of two sessions": (1, 6, 4, 3, 2),
}
"""Syncs with sql and file, and round trips with redis, redis cluster and mongodb. The number of sessions changes none of them."""


# Calls whose cost grows with the number of sessions

COUNTED: Final = {"sql": 0.05, "file": 4.8, "redis cluster": 4.3, "mongodb": 0.7}
"""Microseconds of count() for each session; in a Cluster for each key, owners' sets included, on all masters at once."""
SWEPT: Final = {"sql": 100, "file": 340}
"""Microseconds of a sweep for each session that has expired."""
SCANNED: Final = 2.3
"""Microseconds of a master's CPU for each key that a sweep of the owners' sets looks at."""
MINUTES: Final = 24 * 60
"""Minutes that a session lasts."""


def keys_of_master(sessions: float) -> float:
    """Return the keys of a master of a Cluster with owners."""
    return sessions * (1 + 1 / PER_OWNER) / masters("redis cluster", sessions)


def count_seconds(kind: str, sessions: float) -> float:
    """Return how long count() takes."""
    return COUNTED[kind] * (keys_of_master(sessions) if kind == "redis cluster" else sessions) / 1e6


def sweep_seconds(kind: str, sessions: float) -> float:
    """Return how long the sweep of each minute takes, by one process for all."""
    return SWEPT[kind] * sessions / MINUTES / 1e6


def sweep_share(sessions: float) -> float:
    """Return the part of a master's core that the sweeps of one process take: each looks at all keys once an hour."""
    return keys_of_master(sessions) * SCANNED / 3600e6


def most(kind: str, room: float) -> float:
    """Return how many sessions with owners have room, in millions."""
    found = room / bytes_of(kind, MILLION, with_owners=True) * MILLION
    return room / bytes_of(kind, found, with_owners=True) * found / MILLION


# The chapter's tables


def amount(size: float) -> str:
    """Return bytes with two significant digits, such as 1.2 GB."""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if size < 999.5 or unit == "TB":
            return f"{size:,.0f} {unit}" if size >= 9.95 or unit == "bytes" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(cells)} |".replace("| --- ", "|---").replace("| ---: ", "|---:") for cells in lines)


def sizes() -> str:
    """Return the table of bytes: measured at a million sessions, and on paper."""
    rows = [
        [
            store.title,
            store.where,
            f"{bytes_of(kind, MILLION) / MILLION:,.0f}",
            f"{bytes_of(kind, MILLION, with_owners=True) / MILLION:,.0f}",
            *(amount(bytes_of(kind, count, with_owners=True)) for count in ON_PAPER),
        ]
        for kind, store in STORES.items()
    ]
    return table(["store", "takes", "bytes a session", "with an owner", "100 million, with owners", "a billion"], rows)


def machines() -> str:
    """Return the table of servers on paper."""
    rows: list[list[str]] = []
    for name, kind in (("Redis Cluster", "redis cluster"), ("Redis Cluster, compact", "redis cluster, compact")):
        cells: list[str] = []
        for sessions in ON_PAPER:
            count = masters(kind, sessions)
            cells.append(f"{count} masters and {count} replicas")
            cells.append(f"+{fullest(count) - 1:.0%}")
        rows.append([name, f"{MACHINE // GB} GB", *cells])
    found = [shards(sessions) for sessions in ON_PAPER]
    cells = [cell for count in found for cell in (f"{count} shards of 3 servers" if count > 1 else "one replica set of 3", "")]
    rows.append(["MongoDB", f"{MONGODB_MACHINE // GB} GB", *cells])
    return table(["", "memory of each", "100 million", "the fullest", "a billion", "the fullest"], rows)


def calls() -> str:
    """Return the table of round trips and syncs."""
    head = ["request", "`sql`, syncs", "`file`, syncs", "`redis`", "in a Cluster", "`mongodb`"]
    return table(head, [[name, *map(str, counts)] for name, counts in ROUND_TRIPS.items()])


def growing() -> str:
    """Return the table of the calls that take longer in a larger store."""
    sizes_ = (MILLION, *ON_PAPER)
    rows = [
        [
            f"`count()`, {STORES[kind].title}{', CPU of each master' if kind == 'redis cluster' else ''}",
            *(seconds(count_seconds(kind, size)) for size in sizes_),
        ]
        for kind in COUNTED
    ]
    rows += [
        [f"sweep of a minute, {STORES[kind].title}", *(seconds(sweep_seconds(kind, size)) for size in sizes_)] for kind in SWEPT
    ]
    rows.append(["sweeps of one process, of a master's core in a Cluster", *(f"{sweep_share(size):.2%}" for size in sizes_)])
    return table(["", "a million", "100 million", "a billion"], rows)


def seconds(number: float) -> str:
    """Return a time with two significant digits."""
    return f"{number:,.0f} s" if number >= 9.95 else f"{number:.1f} s" if number >= 0.995 else f"{number * 1000:.0f} ms"


def sentences() -> list[str]:
    """Return the chapter's sentences that have a number of these formulas."""
    room, slots = USABLE * MACHINE, len(set(_slots()))
    return [
        f"One Redis of {MACHINE // GB} GB holds {int(most('redis', room))} million sessions with an owner, "
        f"or {int(most('redis, compact', room))} million compact ones",
        f"{len(TAGS):,} hash tags, which lie in {slots:,} of the {REDIS_CLUSTER_HASH_SLOTS:,} slots",
    ]


# Measured runs


class Point(NamedTuple):
    """A measured store, and its formula."""

    kind: str
    sessions: int
    with_owners: bool
    measured: float
    """Bytes a session."""

    @property
    def predicted(self) -> float:
        servers = 3 if self.kind.startswith("redis cluster") else 1
        return bytes_of(self.kind, self.sessions, with_owners=self.with_owners, servers=servers) / self.sessions

    @property
    def error(self) -> float:
        return self.predicted / self.measured - 1

    @property
    def holds(self) -> bool:
        return abs(self.error) <= TOLERANCE


def points(results: Results) -> Iterator[Point]:
    """Yield the points of the question `growth` in a run."""
    for question in results.questions:
        for case in question.cases if question.name == "growth" else ():
            kind, owners, _ = case.name.partition(", with owners")
            for each in case.contenders:
                yield Point(kind, int(each.at or 0), bool(owners), each.figures[0])


def main(arguments: Sequence[str]) -> int:
    """Print the tables, or compare the run in a folder with the formulas; return 1 if a formula doesn't hold."""
    if not arguments:
        print(*(make() for make in (sizes, calls, machines, growing)), sep="\n\n")
        return 0
    found = list(points(load(Path(arguments[0]) / "results.json")))
    if not found:
        print(f"{arguments[0]} has no figures of `growth`")
        return 1
    for point in found:
        owners = ", with owners" if point.with_owners else ""
        print(
            f"{point.kind + owners:28} {point.sessions:>9,}  measured {point.measured:7,.0f} bytes a session, "
            f"formula {point.predicted:7,.0f}: {point.error:+.0%}{'' if point.holds else ', beyond its tolerance'}"
        )
    return int(not all(point.holds for point in found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
