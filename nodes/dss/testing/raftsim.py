"""Raft under faults: real cores, real engine, real WAL, on a simulated net, disk and clock.

One `Simulation` is one seed: it draws the cluster's size, timeouts, workloads and which faults are
on (plan.py), runs the workloads (tallyload.py, lockload.py) while it breaks things (chaos.py),
heals everything, and requires convergence. What is checked after every cycle of every node stands
in invariants.py; what a workload promises, with the workload.
"""

from __future__ import annotations

from typing import Any, Final

from dss.core.machine import Machine, PiecewiseMachine
from dss.core.raft.messages import Configuration, Member
from dss.drivers.engine import Engine
from dss.testing.chaos import Chaos
from dss.testing.invariants import Invariants
from dss.testing.lockload import LockWorkload
from dss.testing.observed import Observed, ObservedInPieces, Witness
from dss.testing.plan import Plan
from dss.testing.simnode import SimNode, incarnation_of
from dss.testing.tallyload import TallyWorkload
from dss.testing.upgrades import Upgrades
from dss.testing.workload import Workload
from dss.testing.world import Net, World

SETTLE_MS_MAX: Final = 15_000.0
"""After a heal, converged within 15 s."""
QUIET_MS_MAX: Final = 40_000.0
"""After that, sessions and waits that nobody renews have ended."""


class Simulation:
    """One seed from start to verdict. `run()` raises AssertionError on any violation."""

    def __init__(self, seed: int, *, seconds: float = 60.0, plan: Plan | None = None) -> None:
        self.world = World(seed)
        self.seconds = seconds
        self.plan = plan or Plan(self.world.rng("plan"))
        self.settle_ms = 0.0
        names = [f"n{i}" for i in range(1, self.plan.nodes + 1)]
        self.configuration = Configuration(tuple(Member(n, incarnation_of(n, 0)) for n in names))
        self.net = Net(self.world, self._deliver, faults=self.plan.net)
        self.workloads: dict[int, Workload] = {}
        self.clients = LockWorkload(self, len(self.plan.workloads))
        for gid, kind in enumerate(self.plan.workloads, start=1):
            self.workloads[gid] = self.clients if kind == "locks" else TallyWorkload(self, gid)
        self.invariants = {gid: Invariants() for gid in self.workloads}
        self.witnesses = {gid: Witness(load.rules) for gid, load in self.workloads.items()}
        self.nodes = {name: SimNode(self, name) for name in names}
        if self.plan.joins_ms:
            self._add_newcomer(f"n{self.plan.nodes + 1}")
        self.elections = self.snapshots_taken = self.snapshots_installed = 0
        self.chaos = Chaos(self)
        self.upgrades = Upgrades(self)

    def _add_newcomer(self, name: str) -> None:
        """A node that founds nothing, and is let in while all goes on."""
        node = self.nodes[name] = SimNode(self, name)
        node.wipe()
        node.joins_ms = self.plan.joins_ms

    def note_end_of(self, engine: Engine) -> None:
        """Its process is over, and so are its counters."""
        self.snapshots_taken += engine.snapshotting.taken
        self.snapshots_installed += engine.snapshotting.installed

    @property
    def acknowledged(self) -> int:
        return sum(workload.acknowledged for workload in self.workloads.values())

    @property
    def checks(self) -> int:
        return sum(invariants.checks for invariants in self.invariants.values())

    def new_machine(self, gid: int, node: str) -> Machine:
        machine = self.workloads[gid].new_machine()
        kind = ObservedInPieces if isinstance(machine, PiecewiseMachine) else Observed
        return kind(node, machine, self.witnesses[gid])

    def leaders(self, gid: int) -> list[SimNode]:
        """All nodes that believe that they lead."""
        return [node for node in self.nodes.values() if node.leads(gid)]

    def members(self) -> list[SimNode]:
        """The nodes that are voters: not those that wait to be let in with a new disk."""
        return [
            node for node in self.nodes.values() if not (node.lost or node.absent or node.leaving)
        ]

    def run(self) -> None:
        self._run()
        for node in self.nodes.values():
            if node.engine is not None:
                self.note_end_of(node.engine)

    def _run(self) -> None:
        self.upgrades.start()
        for node in self.nodes.values():
            node.guard(node.start)
        for workload in self.workloads.values():
            workload.start()
        self.chaos.start()
        self.world.run_until(self.seconds * 1000)
        self.upgrades.end()
        self.chaos.end()
        for workload in self.workloads.values():
            workload.stop()
        healed = self.world.now
        self._settle()
        self.settle_ms = self.world.now - healed
        self._serves_again()
        self._becomes_quiet()
        self._verdict()

    def _deliver(self, sender: str, receiver: str, payload: Any) -> None:
        self.nodes[receiver].receive(sender, payload)

    # --- the end ---

    def _settle(self) -> None:
        until = self.world.now + SETTLE_MS_MAX
        while not self._settled() and self.world.now < until:
            self.world.run_until(self.world.now + 50.0)
        assert self._settled(), (
            f"not converged {SETTLE_MS_MAX / 1000:g} s after the heal: leaders "
            f"{[[node.node_id for node in self.leaders(gid)] for gid in self.workloads]}"
        )

    def _serves_again(self) -> None:
        """Commands sent after the heal are acknowledged."""
        for gid, workload in self.workloads.items():
            before = workload.acknowledged
            until = self.world.now + SETTLE_MS_MAX
            while workload.acknowledged == before and self.world.now < until:
                for leader in self.leaders(gid):  # a client repeats: a hand-over may be under way
                    workload.probe(leader)
                self.world.run_until(self.world.now + 200.0)
            assert workload.acknowledged > before, "no command is acknowledged after the heal"

    def _becomes_quiet(self) -> None:
        until = self.world.now + QUIET_MS_MAX
        while self.world.now < until and not self._quiet():
            self.world.run_until(self.world.now + 200.0)
        assert all(each.quiet() for each in self.workloads.values()), "something never ends"
        inside = self.members()
        outside = [node.node_id for node in self.nodes.values() if node not in inside]
        assert not outside, f"{outside} are not let in again"
        self._settle()

    def _quiet(self) -> bool:
        everybody = len(self.members()) == len(self.nodes)
        for gid in self.workloads:
            for node in self.members():
                if not node.alive or node.machine(gid).level != self.upgrades.level:
                    return False
        return everybody and all(each.quiet() for each in self.workloads.values())

    def _settled(self) -> bool:
        """One leader, and everybody has applied all of its log."""
        members = self.members()
        for gid in self.workloads:
            leaders = self.leaders(gid)
            if len(leaders) != 1 or not all(node.alive for node in members):
                return False
            last_index = leaders[0].raft(gid).last_index  # type: ignore[union-attr]
            for node in members:
                raft = node.raft(gid)
                if raft is None or raft.applied_index != last_index:
                    return False
        return True

    def _verdict(self) -> None:
        """Everybody up, one leader, equal states, and what the workloads promise."""
        for gid, workload in self.workloads.items():
            machines = {node.node_id: node.machine(gid) for node in self.members()}
            levels = [machine.level for machine in machines.values()]
            assert levels == [self.upgrades.level] * len(levels), f"levels at the end: {levels}"
            states = {name: machine.snapshot() for name, machine in machines.items()}
            first = next(iter(states.values()))
            for name, state in states.items():
                assert state == first, f"{name} has another state at the end"
            workload.final(machines)
