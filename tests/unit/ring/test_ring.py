"""The consistent-hash ring and the placement of partitions on it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections import Counter
from itertools import pairwise

import pytest

from dss.core.ring.placement import place, replicas_moved
from dss.core.ring.ring import SLOTS, Ring, load_max, slot_of


def names(count: int) -> list[str]:
    return [f"queue-{number}" for number in range(1, count + 1)]


def test_same_nodes_in_any_order__same_owners_and_table() -> None:
    nodes = names(7)
    ring = Ring(nodes)
    owners = [ring.owner(slot) for slot in range(SLOTS)]
    table = place(64, nodes, 3)
    for seed in range(5):
        random.Random(seed).shuffle(nodes)
        again = Ring(nodes)
        assert [again.owner(slot) for slot in range(SLOTS)] == owners
        assert place(64, nodes + nodes[:2], 3) == table


def test_other_process_with_other_hash_seed__same_ring() -> None:
    code = (
        "from dss.core.ring.ring import Ring, slot_of\n"
        "from dss.core.ring.placement import place\n"
        "r = Ring(['a', 'b', 'c'])\n"
        "print([r.owner(s) for s in range(99)], slot_of('k'), place(9, ['a', 'b', 'c', 'd'], 2))"
    )
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert outputs[0] == outputs[1]
    assert outputs[0]


def test_known_keys__fixed_slots() -> None:
    # These are on disk and in every running cluster: a change of them is a change of format.
    assert [slot_of(key) for key in ("", "a", "price/42", "ключ")] == [692, 559, 573, 32]


@pytest.mark.parametrize("count", range(1, 10))
def test_slots__bounded_load_and_all_owned(count: int) -> None:
    ring = Ring(names(count))
    load = Counter(ring.owner(slot) for slot in range(SLOTS))
    assert sum(load.values()) == SLOTS
    assert max(load.values()) <= load_max(SLOTS, count)
    assert min(load.values()) >= SLOTS / count / 2


@pytest.mark.parametrize("count", [2, 3, 5, 8])
def test_node_added__about_one_share_of_the_slots_moves(count: int) -> None:
    before, after = Ring(names(count)), Ring(names(count + 1))
    moved = [slot for slot in range(SLOTS) if before.owner(slot) != after.owner(slot)]
    share = 1 / (count + 1)
    assert 0.6 * share < len(moved) / SLOTS < 1.4 * share
    to_new = sum(after.owner(slot) == f"queue-{count + 1}" for slot in moved)
    assert to_new / len(moved) > 0.8  # the rest is passed on by full nodes


def test_home_of_key__owner_of_its_slot() -> None:
    ring = Ring(["cache-1", "cache-2"])
    for key in ("a", "b", "price/42"):
        assert ring.home(key) == ring.owner(slot_of(key))


def test_no_nodes__refused() -> None:
    with pytest.raises(ValueError, match="at least one node"):
        Ring([])
    with pytest.raises(ValueError, match="at least one partition"):
        place(0, ["a"], 1)


@pytest.mark.parametrize("partitions", [1, 32, 256])
@pytest.mark.parametrize("replication_factor", [1, 3])
def test_place__distinct_replicas_within_bounded_load(
    partitions: int, replication_factor: int
) -> None:
    for count in (1, 3, 4, 9):
        table = place(partitions, names(count), replication_factor)
        replicas = min(replication_factor, count)
        assert len(table) == partitions
        assert all(len(row) == len(set(row)) == replicas for row in table)
        load = Counter(node for row in table for node in row)
        assert max(load.values()) <= load_max(partitions * replicas, count)
        leaders = Counter(row[0] for row in table)
        assert max(leaders.values()) <= load_max(partitions, count) + 1


def test_place_32_on_3__everyone_leads_about_a_third() -> None:
    table = place(32, names(3), 3)
    leaders = Counter(row[0] for row in table)
    assert all(8 <= leaders[node] <= 14 for node in names(3))


def test_table_after_a_node_joins__about_one_share_of_replicas_moves() -> None:
    tables = [place(256, names(count), 3) for count in (3, 4, 5)]
    for before, after in pairwise(tables):
        nodes = len({node for row in after for node in row})
        assert 0.6 / nodes < replicas_moved(before, after) < 1.4 / nodes
    assert replicas_moved(tables[0], tables[0]) == 0
