"""The metadata machine: registry of nodes and queues, the table, snapshots."""

from __future__ import annotations

import random
from typing import Any

import msgspec

from dss.base.limits import QUEUES_MAX
from dss.core.machine import join_items
from dss.core.meta.commands import (
    DeleteQueue,
    Partition,
    PutQueue,
    QueueSettings,
    RegisterNode,
    Replica,
    SetTable,
    Sync,
)
from dss.core.meta.machine import MetaMachine


def apply(machine: MetaMachine, *commands: Any) -> list[tuple[int, Any]]:
    """Through the codec, as a log entry would be."""
    payload = join_items(len(commands), [machine.codec.encode_item(1, c) for c in commands])
    results = machine.apply(1, 1, machine.codec.decode(payload))
    machine.check_invariants()
    return results


def row(*nodes: str) -> Partition:
    return Partition(tuple(Replica(node, f"{node}-disk") for node in nodes))


def test_registered_twice__one_change() -> None:
    machine = MetaMachine()
    one = RegisterNode("queue-1", "queue", "aa")
    assert apply(machine, one) == [(200, {"version": 1})]
    assert apply(machine, one) == [(200, {"version": 1})]
    assert machine.members["queue-1"].incarnation == "aa"


def test_other_incarnation__recorded_as_lost_disk_once_and_refused() -> None:
    machine = MetaMachine()
    apply(machine, RegisterNode("queue-1", "queue", "aa"))
    for _ in range(2):
        [(status, body)] = apply(machine, RegisterNode("queue-1", "queue", "bb"))
        assert (status, body["code"], machine.version) == (409, "lost_disk", 2)
    assert machine.members["queue-1"].incarnation == "aa"
    assert machine.members["queue-1"].lost_disks == ("bb",)
    assert apply(machine, RegisterNode("queue-1", "queue", "aa")) == [(200, {"version": 2})]


def test_set_table__only_at_the_expected_version() -> None:
    machine = MetaMachine()
    first, other = (row("a", "b"), row("b", "a")), (row("b", "a"), row("b", "a"))
    assert apply(machine, SetTable(0, first))[0][0] == 200
    [(status, body)] = apply(machine, SetTable(0, other))
    assert (status, body["code"], machine.table) == (409, "table_changed", first)
    assert apply(machine, SetTable(1, other))[0] == (200, {"version": 2, "table_version": 2})
    assert machine.table == other


def test_set_table_with_wrong_shape__refused_and_unchanged() -> None:
    machine = MetaMachine()
    assert apply(machine, SetTable(0, (row("a", "a"),)))[0][0] == 422
    assert machine.version == 0
    apply(machine, SetTable(0, (row("a"), row("b"))))
    assert apply(machine, SetTable(1, (row("a"),)))[0][0] == 422
    assert len(machine.table) == 2


def test_put_again__same_incarnation_and_new_version_only_on_change() -> None:
    machine = MetaMachine()
    [(status, body)] = apply(machine, PutQueue("jobs"))
    assert (status, body["created"]) == (201, True)
    made = machine.queues["jobs"]
    [(status, body)] = apply(machine, PutQueue("jobs"))
    assert (status, body["created"], machine.version) == (200, False, 1)
    apply(machine, PutQueue("jobs", QueueSettings(visibility_ms=5)))
    changed = machine.queues["jobs"]
    assert (changed.incarnation, changed.version) == (made.incarnation, 2)
    assert changed.settings.visibility_ms == 5


def test_deleted_and_made_again__higher_incarnation() -> None:
    machine = MetaMachine()
    apply(machine, PutQueue("jobs"))
    first = machine.queues["jobs"].incarnation
    assert apply(machine, DeleteQueue("jobs"))[0][0] == 200
    [(status, body)] = apply(machine, DeleteQueue("jobs"))
    assert (status, body["code"]) == (404, "unknown_queue")
    apply(machine, PutQueue("jobs"))
    assert machine.queues["jobs"].incarnation > first


def test_too_many_queues__refused() -> None:
    machine = MetaMachine()
    apply(machine, *(PutQueue(f"q{number}") for number in range(QUEUES_MAX)))
    [(status, body)] = apply(machine, PutQueue("one-more"))
    assert (status, body["code"], len(machine.queues)) == (429, "too_many_queues", QUEUES_MAX)
    assert apply(machine, PutQueue("q1", QueueSettings(max_deliveries=2)))[0][0] == 200


def test_random_commands_with_restores__copies_stay_equal() -> None:
    rng = random.Random(7)
    leader, follower = MetaMachine(), MetaMachine()
    seen = 0
    for _ in range(500):
        command = rng.choice(
            [
                RegisterNode(f"queue-{rng.randrange(4)}", "queue", f"disk-{rng.randrange(3)}"),
                SetTable(
                    leader.table_version - rng.randrange(2) * (leader.version > 0), (row("a"),)
                )
                if leader.table_version
                else SetTable(0, (row("a", "b"),)),
                PutQueue(f"q{rng.randrange(5)}", QueueSettings(max_deliveries=rng.randrange(1, 4))),
                DeleteQueue(f"q{rng.randrange(5)}"),
                Sync(),
            ]
        )
        before = leader.snapshot()
        results = apply(leader, command)
        assert apply(follower, command) == results
        assert (leader.snapshot() != before) == (leader.version > seen)
        seen = leader.version
        if rng.random() < 0.05:
            fresh = MetaMachine()
            fresh.restore(follower.snapshot())
            follower = fresh
        assert follower.snapshot() == leader.snapshot()
    assert msgspec.msgpack.decode(leader.snapshot())["version"] == leader.version > 50
