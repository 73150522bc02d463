"""Seeded random runs: messages lost, doubled, reordered and delayed; crashes; slow disks.

The cluster harness checks election safety and state machine safety at every step, the cores
check themselves; here the logs are compared and, after a heal, everybody must converge.
"""

from __future__ import annotations

import random

import pytest
from raft_cluster import Cluster

from dss.core.raft import effects as fx

STEPS = 1_500


class Chaos:
    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        voters = self.rng.choice([1, 2, 3, 3, 5])
        learners = ["z"] if voters == 1 or self.rng.random() < 0.2 else []
        self.cluster = Cluster(
            logs={name: [] for name in [f"n{i}" for i in range(voters)] + learners},
            learners=learners,
            seed=seed,
            pre_vote=self.rng.random() < 0.7,
            log_tail_entries=self.rng.choice([0, 3, 50]),
            max_inflight=self.rng.choice([1, 2, 64]),
            max_append_bytes=self.rng.choice([60, 10_000]),
            max_apply_entries=self.rng.choice([3, 1_000]),
            quiesce_after=seed % 3,
            lazy_ms=(0, 5, 5, 60)[seed % 4],
            snapshot_keep_ms=self.rng.choice([200, 60_000]),
            transfer_log_bytes_max=self.rng.choice([100, 10_000_000]),
        )
        self.loss = self.rng.choice([0.0, 0.05, 0.2])
        self.doubles = self.rng.choice([0.0, 0.1])
        self.proposed: dict[bytes, None] = {}
        self.replaced = 0

    def deliver_some(self) -> None:
        cluster, rng = self.cluster, self.rng
        for _ in range(min(len(cluster.wire), rng.randrange(1, 8))):
            at = 0 if rng.random() < 0.8 else rng.randrange(len(cluster.wire))
            source, target, message = cluster.wire.pop(at)
            if rng.random() < self.loss:
                continue
            cluster.deliver(source, target, message)
            if rng.random() < self.doubles:
                cluster.wire.insert(rng.randrange(len(cluster.wire) + 1), (source, target, message))

    def propose(self) -> None:
        node = self.rng.choice(list(self.cluster.nodes.values()))
        payloads = [b"p%d-%d" % (len(self.proposed), i) for i in range(self.rng.randrange(1, 4))]
        for payload in payloads:
            self.proposed[payload] = None
        events: list[fx.Event] = [fx.Propose(i, p) for i, p in enumerate(payloads)]
        if self.rng.random() < 0.3:
            events.append(fx.Read(len(self.proposed)))
        effects = node.step(*events)
        if node.up:
            answers = [e for e in effects if isinstance(e, fx.Proposed | fx.Refused)]
            assert len(answers) == len(payloads)

    def fault(self) -> None:
        cluster, rng = self.cluster, self.rng
        node = rng.choice(list(cluster.nodes.values()))
        kind = rng.randrange(10)
        if kind == 0:
            node.restart()
        elif kind == 1:
            cluster.isolate(node.name)
        elif kind == 2:
            cluster.heal()
        elif kind == 3:
            node.auto_sync = not node.auto_sync
        elif kind == 4 and node.raft.applied_index > node.raft.log.base_index:
            node.sync()
            node.take_snapshot()
        elif kind == 5:
            node.step(fx.Transfer())
        elif kind == 6:
            other = rng.choice(list(cluster.nodes))
            node.step(fx.LinkChanged(other, rng.random() < 0.5))
        elif kind == 7:
            node.sync()
        elif kind == 8:
            self.change_members(node.name)
        elif kind == 9 and node is cluster.leader():
            gone = [n for n in cluster.nodes if n not in node.raft.membership.members]
            if gone and node.raft.membership.index <= node.raft.commit_index:
                self.replace(rng.choice(gone))
        cluster.settle_local()

    def change_members(self, leader: str) -> None:
        name = self.rng.choice([*self.cluster.nodes, "late"])
        if name not in self.cluster.nodes:
            self.cluster.join(name)
        node = self.cluster[name]
        remove = self.rng.random() < 0.4
        self.cluster.change(leader, name, remove=remove, incarnation=node.incarnation)

    def replace(self, name: str) -> None:
        """A removed node loses its disk, and waits to be added again."""
        self.cluster.wipe(name)
        self.replaced += 1
        self.cluster.join(name, f"i-{self.replaced}")

    def add_everybody(self) -> None:
        cluster = self.cluster
        for _ in range(20):
            leader = cluster.await_leader(30_000)
            members = leader.raft.membership.members
            missing = [n for n in cluster.nodes.values() if n.name not in members]
            if not missing:
                return
            cluster.change(leader.name, missing[0].name, incarnation=missing[0].incarnation)
            cluster.run(1_000)
        raise AssertionError("a member is missing")

    def run(self) -> None:
        cluster, rng = self.cluster, self.rng
        for _ in range(STEPS):
            dice = rng.random()
            if dice < 0.6:
                self.deliver_some()
            elif dice < 0.8:
                cluster.tick(rng.choice([1, 10, 50]))
            elif dice < 0.97:
                self.propose()
            else:
                self.fault()
            for node in cluster.nodes.values():
                if not node.auto_sync and rng.random() < 0.2:
                    node.sync()
            if len(cluster.wire) > 2_000:
                del cluster.wire[:1_000]
        cluster.check_log_matching()

    def heal_and_converge(self) -> None:
        cluster = self.cluster
        cluster.heal()
        for node in cluster.nodes.values():
            node.auto_sync = True
            node.sync()
        cluster.settle_local()
        cluster.run(3_000)
        self.add_everybody()
        for _ in range(5):  # a leader that is handing over refuses proposals for a while
            leader = cluster.await_leader(30_000)
            refused = leader.step(fx.Propose(1, b"last"))[0]
            cluster.run(2_000)
            if isinstance(refused, fx.Proposed):
                break
        assert not any(node.raft.status()["removed"] for node in cluster.nodes.values())
        machines = [node.machine for node in cluster.nodes.values()]
        assert all(machine == machines[0] for machine in machines)
        assert machines[0][-1] == b"last"
        assert set(machines[0]) <= {*self.proposed, b"last"}
        assert len(set(machines[0])) == len(machines[0])
        cluster.check_log_matching()


@pytest.mark.parametrize("seed", range(60))
def test_random_faults__safe_throughout_and_converged_after_the_heal(seed: int):
    chaos = Chaos(seed)
    chaos.run()
    chaos.heal_and_converge()
