"""Remediation over the real Raft core: equal timeouts split every vote, the decision ends it.

And what makes it safe: whatever is done to the chosen candidate, no committed entry is lost.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "raft"))
from raft_cluster import GROUP, Cluster

from dss.core.raft import effects as fx
from dss.remediation import (
    Action,
    Diagnosis,
    Policy,
    Record,
    SampleWindow,
    decide,
    diagnose,
    parse_status,
)

TIMEOUT_MS = 300
POLICY = Policy(window_ms=10 * TIMEOUT_MS)
TICK_MS = 10


class EqualTimeouts:
    """Every member draws the same timeout, for ever."""

    def randrange(self, start: int, stop: int, /) -> int:
        return TIMEOUT_MS


class Group:
    """A Raft group without pre-vote, the window that watches it and the record of what was done."""

    def __init__(self, size: int, seed: int) -> None:
        self.cluster = Cluster(
            size, seed, pre_vote=False, election_min_ms=TIMEOUT_MS, election_max_ms=TIMEOUT_MS + 1
        )
        self.boots = dict.fromkeys(self.cluster.nodes, 1)
        self.window = SampleWindow(POLICY.window_ms)
        self.record = Record()

    def equal_timeouts(self) -> None:
        """From here on all members campaign at the same moment, and nobody can win."""
        self.cluster.now += 10 * TIMEOUT_MS
        for node in self.cluster.nodes.values():
            node.raft._rng = EqualTimeouts()
            node.raft._timeout_ms = TIMEOUT_MS
            node.raft._election_ms = self.cluster.now + TIMEOUT_MS

    def run(self, ms: int) -> Action:
        """Time passes; ten times in a window the members are looked at; the first action."""
        action = Action(kind="none")
        for step in range(ms // TICK_MS):
            self.cluster.run(TICK_MS, TICK_MS)
            if step % (POLICY.window_ms // 10 // TICK_MS) == 0:
                action = self.decide()
                if action.kind != "none":
                    break
        return action

    def decide(self) -> Action:
        for name in self.cluster.nodes:
            self.window.add(parse_status(name, self.status(name), self.cluster.now))
        now = self.cluster.now / 1_000
        action = decide(self.diagnoses(), POLICY, self.record.history, "", now)
        self.record = self.record.begin(action, now)
        return action

    def diagnoses(self) -> list[Diagnosis]:
        samples, members = self.window.samples(), list(self.cluster.nodes)
        return diagnose(samples, members, POLICY, self.cluster.now, groups=(GROUP,))

    def status(self, name: str) -> dict[str, Any]:
        node = self.cluster[name]
        links = {peer: {"up": True} for peer in self.cluster.nodes if peer != name}
        boot_id = f"{name} {self.boots[name]}"
        return {
            "node_id": name, "boot_id": boot_id, "links": links, "groups": [node.raft.status()],
        }  # fmt: skip

    def act(self, action: Action) -> None:
        node = self.cluster[action.member]
        if action.kind == "backoff":
            node.step(fx.Backoff(2 * TIMEOUT_MS))
        else:
            self.boots[action.member] += 1
            node.restart()
            node.raft._rng = EqualTimeouts()

    def leads(self) -> bool:
        """A leader that has committed its own first entry."""
        node = self.cluster.leader()
        return node is not None and node.raft.commit_index == node.raft.last_index


def test_equal_timeouts__split_for_ever_without_help() -> None:
    group = Group(3, seed=1)
    group.equal_timeouts()
    group.cluster.run(100 * TIMEOUT_MS, TICK_MS)
    assert group.cluster.leader() is None
    assert min(node.raft.term for node in group.cluster.nodes.values()) > 90


def test_split_vote__the_backoff_that_is_decided_ends_it() -> None:
    group = Group(3, seed=1)
    group.equal_timeouts()
    action = group.run(3 * POLICY.window_ms)
    assert (action.kind, action.group_id, action.member) == ("backoff", GROUP, "n3")
    group.act(action)
    recovered = group.run(POLICY.window_ms)
    assert (recovered.kind, recovered.group_id) == ("recovered", GROUP)
    assert group.leads()


def test_backoff_that_is_ignored__the_restart_ends_it() -> None:
    group = Group(3, seed=1)
    group.equal_timeouts()
    first = group.run(3 * POLICY.window_ms)
    second = group.run(3 * POLICY.window_ms)
    assert (first.kind, second.kind, second.member) == ("backoff", "restart", "n3")
    assert second.term > first.term + 5
    group.cluster.run(TIMEOUT_MS // 2, TICK_MS)  # it is away for a while: out of step after
    group.act(second)
    assert group.run(POLICY.window_ms).kind == "recovered"
    assert group.leads()


def shuffle_history(group: Group, rng: random.Random) -> set[bytes]:
    """Leaders come and go, members are cut off: logs differ. What was committed for certain."""
    cluster = group.cluster
    names = list(cluster.nodes)
    for round_ in range(rng.randrange(1, 5)):
        cut = rng.sample(names, rng.randrange((len(names) + 1) // 2))
        leader = cluster.await_leader()
        cluster.isolate(*(name for name in cut if name != leader.name))
        for at in range(rng.randrange(4)):
            leader.step(fx.Propose(at, b"%d-%d" % (round_, at)))
        cluster.settle()
        if rng.random() < 0.5:  # entries that only the leader has: they may be lost
            cluster.isolate(leader.name)
            leader.step(fx.Propose(99, b"lone %d" % round_))
            cluster.wire.clear()
        cluster.run(4 * TIMEOUT_MS)
        cluster.heal()
        if rng.random() < 0.5:
            cluster.run(4 * TIMEOUT_MS)
    return {entry.payload for entry in cluster.applied.values() if entry.payload}


@pytest.mark.parametrize("seed", range(60))
def test_acting_on_the_chosen_candidate__loses_no_committed_entry(seed: int) -> None:
    rng = random.Random(seed)
    group = Group(rng.choice([3, 3, 5]), seed)
    committed = shuffle_history(group, rng)
    cluster = group.cluster
    group.equal_timeouts()
    for node in cluster.nodes.values():  # nobody leads any more
        if node.raft.role == "leader":
            node.restart()
            group.equal_timeouts()
    logs = {n: (x.raft.log.last_term, x.raft.last_index) for n, x in cluster.nodes.items()}
    action = group.run(4 * POLICY.window_ms)
    if action.kind == "none":  # one member alone had the log to win with: no split vote
        assert group.leads()
    else:
        assert action.kind == "backoff"
        assert sorted(logs.values()).index(logs[action.member]) < len(logs) - 1
        group.act(action if rng.random() < 0.5 else Action(kind="restart", member=action.member))
    for node in cluster.nodes.values():  # what happens next is an ordinary election
        node.raft.settings = msgspec.structs.replace(
            node.raft.settings, election_max_ms=3 * TIMEOUT_MS
        )
        node.raft._rng = random.Random(rng.random())
    leader = cluster.await_leader(60_000)
    leader.step(fx.Propose(1, b"after"))
    cluster.run(2 * TIMEOUT_MS)
    held = {e.payload for e in leader.raft.log.slice(1, leader.raft.last_index)}
    assert committed <= held
    assert all(b"after" in node.machine for node in cluster.nodes.values())
    cluster.check_log_matching()
