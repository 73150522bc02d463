"""Where partitions should be: the first table of a cluster, made from the ring.

Each partition gets its replicas on distinct nodes; the first is the preferred leader. Replicas and
preferred leaderships keep to the bounded load of the ring. What must not live here: who commits
the table (core/meta), how a partition gets from one table to the next (a later `moves.py`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from dss.core.ring.ring import Ring, load_max, point

Table = tuple[tuple[str, ...], ...]
"""Per partition its replicas' node ids; the first one is the preferred leader."""


def place(partitions: int, nodes: Iterable[str], replication_factor: int) -> Table:
    """The table of `partitions` over `nodes`; the same for every order of `nodes`.

    Args:
        replication_factor: replicas a partition; with fewer nodes than that, all of them.

    Raises:
        ValueError: no nodes, no partitions or no replicas asked for.
    """
    if partitions < 1 or replication_factor < 1:
        raise ValueError("a table needs at least one partition and one replica")
    ring = Ring(nodes)
    count = min(replication_factor, len(ring.nodes))
    replica_load = dict.fromkeys(ring.nodes, 0)
    leader_load = dict.fromkeys(ring.nodes, 0)
    replica_bound = load_max(partitions * count, len(ring.nodes))
    leader_bound = load_max(partitions, len(ring.nodes))
    table = []
    for partition in range(partitions):
        walk = list(ring.walk(point(f"partition\0{partition}".encode())))
        replicas = _pick(walk, count, replica_load, replica_bound)
        leader = _pick(replicas, 1, leader_load, leader_bound)[0]
        table.append((leader, *(node for node in replicas if node != leader)))
    return tuple(table)


def replicas_moved(before: Table, after: Table) -> float:
    """The share of `after`'s replica slots that are on a node that did not have them before."""
    moved = sum(
        node not in before[partition]
        for partition, replicas in enumerate(after)
        for node in replicas
    )
    return moved / sum(len(replicas) for replicas in after)


def _pick(walk: Sequence[str], count: int, load: dict[str, int], bound: int) -> list[str]:
    """The first `count` nodes of `walk` below `bound`, whose load rises by one.

    When too few are below it (the last partitions of a dense table), the least loaded ones of the
    others: every partition gets all its replicas, and the bound is passed by as little as can be.
    """
    chosen = [node for node in walk if load[node] < bound][:count]
    if len(chosen) < count:
        others = [node for node in walk if node not in chosen]
        others.sort(key=load.__getitem__)  # stable: equal ones stay in ring order
        chosen += others[: count - len(chosen)]
    for node in chosen:
        load[node] += 1
    return chosen
